"""recall.py: which answers are kept, for whom, and that nobody else gets one."""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factories import make_canonical, make_recognised
from holdgate.agents import Agent
from holdgate.message import Headers, ResponseHead
from holdgate.recall import MAX_ANSWER_BYTES, MAX_KEPT_BYTES, asker_of, given_again, keep
from holdgate.sealing import KeptAnswer, seal_answer
from holdgate.surface.model import KeyRule, KeySource, Recognised

AGENT = Agent(id="bot", groups=(), attrs=())
KEY = KeyRule(source=KeySource.NATIVE, value="key-1", ttl_s=60, provider=False, keep=True)
SENT: Headers = (
    (b"Host", b"api.ok.test"),
    (b"Authorization", b"Bearer one"),
    (b"Accept-Encoding", b"gzip"),
    (b"User-Agent", b"sdk/1"),
)
REQUEST = make_canonical()
RECEIPT = "rcpt_first"
OK = ResponseHead(
    status=201,
    reason=b"Created",
    headers=((b"Content-Type", b"application/json"), (b"Request-Id", b"req_1")),
)
BODY = b'{"id": "re_1"}\n\x00\xff'


def recognised(headers: Headers = SENT, **change: Any) -> Recognised:
    return replace(make_recognised(REQUEST), **({"keys": (KEY,), "headers": headers} | change))


def asker(agent: Agent = AGENT, request: Any = REQUEST, **change: Any) -> bytes:
    found = asker_of(agent, request, recognised(**change))
    assert found is not None
    return found


def kept(head: ResponseHead = OK, body: bytes = BODY) -> KeptAnswer | None:
    return keep(RECEIPT, asker(), head, body, secrets.token_bytes)


def sent(name: bytes, value: bytes | None) -> Headers:
    """SENT with one header changed, added or (None) left out."""
    rest = tuple(row for row in SENT if row[0].lower() != name.lower())
    return rest if value is None else (*rest, (name, value))


# --- RC1 ---


def test_rc1_the_same_request_gets_the_answer_again() -> None:
    made = kept()
    assert made is not None
    assert given_again(RECEIPT, made, asker()) == (OK, BODY)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(asker(agent=replace(AGENT, id="other")), id="another agent"),
        pytest.param(asker(request=make_canonical(host="api.other.test")), id="another host"),
        pytest.param(asker(headers=sent(b"Authorization", b"Bearer two")), id="another credential"),
        pytest.param(asker(headers=(*SENT, (b"X-Api-Key", b"k"))), id="one credential more"),
        pytest.param(asker(headers=sent(b"Authorization", None)), id="no credential, but a principal"),
        pytest.param(asker(principal="e" * 32), id="another principal"),
        pytest.param(asker(keys=(replace(KEY, value="key-2"),)), id="another key"),
        pytest.param(asker(keys=(replace(KEY, source=KeySource.NATURAL),)), id="another kind of key"),
        pytest.param(asker(digest="sha256:" + "1" * 64), id="another meaning"),
        pytest.param(asker(headers=sent(b"Accept-Encoding", b"identity")), id="who reads no gzip"),
        pytest.param(asker(headers=sent(b"Accept-Encoding", None)), id="who says nothing of codings"),
        pytest.param(asker(headers=(*SENT, (b"Accept", b"text/html"))), id="who wants another type"),
    ],
)
def test_rc1_nobody_else_gets_it(other: bytes) -> None:
    made = kept()
    assert made is not None
    assert given_again(RECEIPT, made, other) is None


def test_rc1_what_says_nothing_of_the_request_may_differ() -> None:
    made = kept()
    assert made is not None
    assert given_again(RECEIPT, made, asker(headers=sent(b"User-Agent", b"sdk/2"))) == (OK, BODY)


def test_rc1_it_is_the_answer_to_one_receipt() -> None:
    made = kept()
    assert made is not None
    assert given_again("rcpt_other", made, asker()) is None


@given(st.data())
def test_rc1_an_edited_answer_is_none(data: st.DataObject) -> None:
    made = kept()
    assert made is not None
    name = data.draw(st.sampled_from(["key", "data"]))
    value = bytearray(getattr(made, name))
    at = data.draw(st.integers(0, len(value) - 1))
    value[at] ^= data.draw(st.integers(1, 255))
    edited = {"key": made.key, "data": made.data} | {name: bytes(value)}
    assert given_again(RECEIPT, KeptAnswer(**edited), asker()) is None


@given(st.binary(max_size=80), st.binary(max_size=40))
def test_rc1_any_other_bytes_are_none(data: bytes, key: bytes) -> None:
    assert given_again(RECEIPT, KeptAnswer(key=key, data=data), asker()) is None


@given(
    st.binary(max_size=60) | st.sampled_from([b"{}\n", b"[]\n", b'{"status":200}\n', b'{"status":null}\n'])
)
def test_rc1_what_opens_and_is_no_answer_is_none(text: bytes) -> None:
    sealed = seal_answer(RECEIPT, text, asker(), secrets.token_bytes)
    assert given_again(RECEIPT, sealed, asker()) is None


def test_rc1_the_ledger_alone_does_not_hold_the_answer() -> None:
    made = kept()
    assert made is not None
    for part in (b"re_1", b"req_1", b"Bearer", b"one"):
        assert part not in made.data + made.key


# --- RC2 ---


@pytest.mark.parametrize("status", [100, 199, 300, 302, 304, 400, 404, 409, 429, 500, 503])
def test_rc2_only_a_success_is_kept(status: int) -> None:
    assert kept(replace(OK, status=status)) is None


@pytest.mark.parametrize("status", [200, 201, 202, 204, 207, 299])
def test_rc2_every_success_is(status: int) -> None:
    assert kept(replace(OK, status=status)) is not None


def test_rc2_a_body_beyond_the_bound_is_not_kept() -> None:
    assert kept(body=bytes(MAX_ANSWER_BYTES)) is not None
    assert kept(body=bytes(MAX_ANSWER_BYTES + 1)) is None


@given(st.lists(st.sampled_from([b"Vary", b"ETag", b"X"]), max_size=20), st.integers(0, 3000), st.binary())
def test_rc2_what_is_kept_is_within_the_bound_of_the_store(
    names: list[bytes], size: int, body: bytes
) -> None:
    head = replace(OK, headers=tuple((name, b"\xff" * size) for name in names))
    made = kept(head, body.ljust(MAX_ANSWER_BYTES, b"x"))
    assert made is None or len(made.data) <= MAX_KEPT_BYTES


@pytest.mark.parametrize(
    "name",
    [
        *("Set-Cookie", "Set-Cookie2", "Authorization", "Authentication-Info", "WWW-Authenticate"),
        *("Connection", "Keep-Alive", "Transfer-Encoding", "Trailer", "Upgrade", "Content-Length"),
        *("Proxy-Authenticate", "Proxy-Status", "Alt-Svc", "Strict-Transport-Security", "Link"),
        *("Holdgate-Decision", "holdgate_receipt", "X-Auth-Token", "X-Subject-Token", "X-Amz-Security-Token"),
        *("Age", "Server", "Via", "X-Anything"),
    ],
)
def test_rc2_a_header_that_is_not_on_the_list_is_left_out(name: str) -> None:
    for spelling in (name, name.upper(), name.lower()):
        made = kept(replace(OK, headers=(*OK.headers, (spelling.encode(), b"secret"))))
        assert made is not None
        assert given_again(RECEIPT, made, asker()) == (OK, BODY)


# --- RC3 ---


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"keys": ()}, id="no key"),
        pytest.param({"keys": (replace(KEY, keep=False),)}, id="a map that says nothing"),
        pytest.param({"headers": sent(b"Authorization", None), "principal": None}, id="no credential"),
    ],
)
def test_rc3_who_may_not_have_it_again_asks_for_nothing(change: dict[str, Any]) -> None:
    assert asker_of(AGENT, REQUEST, recognised(**change)) is None


def test_rc3_a_head_request_has_no_answer_to_keep() -> None:
    assert asker_of(AGENT, replace(REQUEST, method="HEAD"), recognised()) is None


def test_rc3_a_token_in_a_body_is_a_credential_by_its_principal() -> None:
    one, two = (asker(headers=sent(b"Authorization", None), principal=name * 32) for name in "ef")
    assert one != two
