"""ext_authz.py: what Envoy asks becomes a request, and only a Release becomes the answer that forwards."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factories import make_canonical, make_recognised, make_release
from holdgate.errors import BackendError, InputError, Outcome, Reason
from holdgate.ext_authz import (
    PORT,
    SNI,
    SOURCE,
    TOKEN,
    admitted,
    asked,
    origin_of,
    presented,
    presented_in,
    turned_away,
)
from holdgate.message import Headers, RequestHead
from holdgate.refusal import SHAPES, Refusal, refuse

FROM_ENVOY = ((TOKEN, "t0ken"), (SOURCE, "10.0.0.7"), (SNI, "api.stripe.com"), (PORT, "443"))


def head(*more: tuple[str, str], without: str = "") -> RequestHead:
    own = [(b"host", b"api.stripe.com"), (b"x-a", b"1")]
    rows = [*FROM_ENVOY, *more]
    theirs = [(name.encode(), value.encode("latin-1")) for name, value in rows if name != without]
    return RequestHead(method=b"GET", target=b"/", headers=(*own, *theirs))


def names_of(headers: Headers) -> set[bytes]:
    return {name.lower() for name, _ in headers}


def test_xa1_only_a_release_becomes_a_200() -> None:
    request = make_canonical()
    release = make_release(request, make_recognised(request))
    assert admitted(release, (), ()).status == 200
    denied = replace(release.recorded, entry=replace(release.recorded.entry, outcome=Outcome.DENY))
    with pytest.raises(BackendError):
        replace(release, recorded=denied)
    other = replace(release, request=replace(request, body=request.body + b"x"))
    with pytest.raises(InputError):
        admitted(other, (), ())


@pytest.mark.parametrize("shape", sorted(SHAPES))
@pytest.mark.parametrize("status", [200, 301, 403, 407, 409, 500, 503])
def test_xa2_every_refusal_is_a_4xx_with_its_body(shape: str, status: int) -> None:
    told = Refusal(
        outcome=Outcome.SILENCE,
        reason=Reason.STORE_UNAVAILABLE,
        id="rcpt_1",
        status=status,
        prior="",
        prior_status=0,
    )
    made = refuse(told, shape=shape, receipt_headers=(), retry_headers=(), head=False, close=False)
    answer = turned_away(made)
    assert 400 <= answer.status < 500
    assert (answer.body, answer.headers) == (made.body, made.headers)


@pytest.mark.parametrize("name", [name for name, _ in FROM_ENVOY[1:]])
@pytest.mark.parametrize("how", ["missing", "twice", "empty"])
def test_xa3_who_and_where_are_said_once_or_it_is_refused(name: str, how: str) -> None:
    if how == "missing":
        check = head(without=name)
    elif how == "twice":
        check = head((name.upper(), dict(FROM_ENVOY)[name]))
    else:
        check = head((name, ""), without=name)
    with pytest.raises(InputError) as caught:
        origin_of(check)
    assert caught.value.reason is Reason.MALFORMED_REQUEST


@pytest.mark.parametrize("port", ["0", "65536", "443 ", "0443", "x", "-1"])
def test_xa3_a_port_is_a_port(port: str) -> None:
    with pytest.raises(InputError):
        origin_of(head((PORT, port), without=PORT))


def test_xa3_a_body_that_envoy_cut_is_refused() -> None:
    assert asked(head(("x-envoy-auth-partial-body", "false"))).target == b"/"
    for value in ("true", "TRUE", "yes", ""):
        with pytest.raises(InputError) as caught:
            asked(head(("X-Envoy-Auth-Partial-Body", value)))
        assert caught.value.reason is Reason.TOO_LARGE


def test_the_agents_own_request_is_what_is_left() -> None:
    origin = origin_of(head())
    assert (origin.source, origin.sni, origin.original_port, origin.tls) == (
        "10.0.0.7",
        "api.stripe.com",
        443,
        True,
    )
    assert asked(head()).headers == ((b"host", b"api.stripe.com"), (b"x-a", b"1"))


def test_a_token_is_there_once() -> None:
    assert presented(head()) == b"t0ken"
    assert presented(head(without=TOKEN)) == b""
    assert presented(head((TOKEN.upper(), "other"))) == b""
    line = TOKEN.encode() + b": t0ken\r\n"
    assert presented_in(b"GET / HTTP/1.1\r\nX: \xff\r\n" + line + b"\r\n") == b"t0ken"
    assert presented_in(b"GET / HTTP/1.1\r\n" + line + line + b"\r\n") == b""
    assert presented_in(b"POST / HTTP/1.1\r\nX: \xff\r\n\r\n" + line) == b""  # in a body it is nobody's


NAMES = st.lists(st.sampled_from(["x-a", "te", "X-Forwarded-For", "Authorization", "host", "cookie"]))


@given(NAMES, NAMES)
def test_xa4_what_was_not_decided_is_taken_out(seen: list[str], kept: list[str]) -> None:
    request = make_canonical()
    sent = tuple((name.encode(), b"1") for name in kept)
    release = make_release(request, make_recognised(request, headers=sent))
    answer = admitted(release, tuple((name.encode(), b"1") for name in seen), ())
    removed = set(dict(answer.headers)[b"x-envoy-auth-headers-to-remove"].split(b","))
    assert removed >= {name.lower().encode() for name in seen} - names_of(sent) - {b"host"}
    assert removed >= {name.encode() for name, _ in FROM_ENVOY}
    assert removed.isdisjoint(names_of(sent) | {b"host", b"content-length"})
