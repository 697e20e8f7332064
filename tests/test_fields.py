"""fields.py: F1-F3, and which names a commit may carry unseen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdgate.digest import CREDENTIAL_HEADERS
from holdgate.errors import InputError, Reason
from holdgate.fields import INERT_HEADERS, FieldSet, is_inert, read_fields

MALFORMED = Reason.MALFORMED_REQUEST
HOST = (b"Host", b"api.ok.test")

REMOVED = """
    Holdgate-Decision X-Holdgate-Anything TG-Receipt X-TG-Id X-TrigGuard-Receipt TrigGuard-Key
    Proxy-Authorization Proxy-Connection Proxy-Status Via Forwarded X-Forwarded-For X-Forwarded-Host
    X-Forwarded-User X-Real-IP True-Client-IP X-Original-URL X-Rewrite-URL X-Agent-Id Remote-User
    X-Remote-Extra-Scopes X-Auth-Request-Email X-Envoy-Original-Path X-MS-Client-Principal-Id
    Keep-Alive TE Trailer HTTP2-Settings
""".split()
REFUSED = """
    X-HTTP-Method-Override X-HTTP-Method X-Method-Override _method X-HTTP-Host-Override Http-Host
""".split()


def read(*headers: tuple[bytes, bytes]) -> FieldSet | Reason:
    try:
        return read_fields((HOST, *headers))
    except InputError as error:
        return error.reason


def spellings(name: str) -> st.SearchStrategy[bytes]:
    """Case of each letter, and each hyphen as another character that CGI folds to `_`."""
    letters = [st.sampled_from(["-", "_", "."] if c in "-_" else [c.lower(), c.upper()]) for c in name]
    return st.tuples(*letters).map("".join).map(str.encode)


@given(st.sampled_from(REMOVED).flatmap(spellings))
def test_f1_every_spelling_of_a_removed_name_is_taken_out(name: bytes) -> None:
    result = read((b"Accept", b"*/*"), (name, b"x"))
    assert isinstance(result, FieldSet)
    assert result.sent == ((b"Accept", b"*/*"),) and result.values == {"accept": "*/*"}


@given(st.sampled_from(REFUSED).flatmap(spellings))
def test_f1_every_spelling_of_an_override_is_refused(name: bytes) -> None:
    assert read((name, b"DELETE")) is Reason.UNKNOWN_PARAMETER


@pytest.mark.parametrize(
    "name", [b"Content_Length", b"Transfer_Encoding", b"content.type", b"Content_Encoding"]
)
def test_f1_lookalikes_of_framing_and_typing_are_refused(name: bytes) -> None:
    assert read((name, b"1")) is MALFORMED


def test_f1_other_names_stay_in_order_as_they_were_spelt() -> None:
    headers = ((b"idempotency-KEY", b"k"), (b"X_Custom", b"1"), (b"Stripe-Version", b"2026-10-28.endive"))
    result = read(*headers)
    assert isinstance(result, FieldSet) and result.sent == headers
    assert set(result.values) == {"idempotency-key", "x_custom", "stripe-version"}


@pytest.mark.parametrize("name", [b"Host", b"Content-Type", b"Content-Encoding", b"Authorization", b"Expect"])
def test_f2_a_header_that_decides_occurs_once(name: bytes) -> None:
    value = {b"Content-Encoding": b"gzip", b"Expect": b"100-continue"}.get(name, b"a/b")
    assert read((name, value), (name.lower(), value)) is MALFORMED


def test_f2_no_host_is_refused() -> None:
    with pytest.raises(InputError):
        read_fields(((b"Accept", b"*/*"),))


def test_f2_other_repeated_names_are_named_and_have_no_value() -> None:
    result = read((b"Idempotency-Key", b"a"), (b"Accept", b"b"), (b"idempotency-key", b"c"))
    assert isinstance(result, FieldSet)
    assert result.repeated == {"idempotency-key"} and result.values == {"accept": "b"}
    assert len(result.sent) == 3


def test_f3_inert_is_never_removed_refused_or_a_credential() -> None:
    assert not INERT_HEADERS & CREDENTIAL_HEADERS
    for name in INERT_HEADERS:
        result = read((name.encode(), b"gzip"))
        assert isinstance(result, FieldSet) and name in result.values
    deciding = "range if-match if-none-match if-modified-since cookie origin stripe-account idempotency-key"
    unsafe = [*deciding.split(), "x-amz-copy-source", "x-amz-date", "impersonate-user", "content-md5"]
    assert not any(map(is_inert, [*unsafe, "user_agent", "accept-", "sec-fetc", "x-http-method"]))


def test_f3_sdk_telemetry_and_tracing_are_inert() -> None:
    names = (
        "x-stripe-client-user-agent amz-sdk-request traceparent x-stainless-os sec-fetch-mode x-b3-traceid "
        "x-ms-client-request-id x-elastic-client-meta x-fern-language mime-version npm-command"
    )
    assert all(map(is_inert, names.split()))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"keep-alive", None),
        (b"close", None),
        (b"Keep-Alive, TE", None),
        (b"close, Upgrade", None),  # no Upgrade header: an offer of nothing
        (b"Content-Length, Authorization, Idempotency-Key", MALFORMED),
        (b"transfer-encoding", MALFORMED),
        (b"close,,x", MALFORMED),
        (b"", MALFORMED),
    ],
)
def test_connection_names_only_hop_by_hop_headers(value: bytes, reason: Reason | None) -> None:
    result = read((b"Connection", value))
    assert result is reason if reason else isinstance(result, FieldSet) and not result.sent


def test_an_upgrade_is_left_out_but_a_nominated_one_is_refused() -> None:
    assert isinstance(read((b"Upgrade", b"h2c")), FieldSet)
    assert read((b"Upgrade", b"h2c"), (b"Connection", b"Upgrade")) is Reason.UNSUPPORTED_PROTOCOL
    upgrade = [(b"Upgrade", b"websocket"), (b"Connection", b"keep-alive, Upgrade")]
    assert read(*upgrade) is read(*reversed(upgrade)) is Reason.UNSUPPORTED_PROTOCOL
    # The nomination is found whichever of two Connection lines has it.
    split = ((b"Connection", b"upgrade"), (b"Upgrade", b"x"), (b"Connection", b"close"))
    assert read(*split) is Reason.UNSUPPORTED_PROTOCOL


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        pytest.param((b"Authorization", b"NTLM TlRM"), Reason.UNSUPPORTED_PROTOCOL, id="NTLM"),
        pytest.param((b"Authorization", b"negotiate x"), Reason.UNSUPPORTED_PROTOCOL, id="negotiate"),
        pytest.param((b"Expect", b"200-ok"), MALFORMED, id="other expectation"),
        pytest.param((b"X", b"a\0b"), MALFORMED, id="NUL"),
        pytest.param((b"X", b"a\rb"), MALFORMED, id="bare CR"),
        pytest.param((b"X", b"a\r\n b"), MALFORMED, id="obs-fold"),
        pytest.param((b"X", b"a\x0bb"), MALFORMED, id="VT"),
        pytest.param((b"X", b"a\xc2\x85b"), MALFORMED, id="NEL"),
        pytest.param((b"X", b"\xe9"), MALFORMED, id="Latin-1"),
        pytest.param((b"X", b" a"), MALFORMED, id="leading space"),
        pytest.param((b"", b"a"), MALFORMED, id="empty name"),
        pytest.param((b"X Y", b"a"), MALFORMED, id="space in name"),
        pytest.param((b"X\xc3\xa9", b"a"), MALFORMED, id="non-ASCII name"),
        pytest.param((b"X" * 257, b"a"), MALFORMED, id="long name"),
    ],
)
def test_headers_that_refuse_the_request(header: tuple[bytes, bytes], reason: Reason) -> None:
    assert read(header) is reason


def test_utf8_and_tabs_inside_values_are_kept() -> None:
    result = read((b"X-Name", "é\tz".encode()))
    assert isinstance(result, FieldSet) and result.values == {"x-name": "é\tz"}
