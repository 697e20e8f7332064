"""HTTP/2 is closed: whatever its frames say, in TLS or in clear text, nothing is read of it, nothing leaves.

The requests that its cases smuggle into HTTP/1.1 never meet a reader here. Each case is sent as its frames.
"""

from __future__ import annotations

import ssl
import struct
from collections.abc import Sequence
from typing import Final

import pytest
from hpack import Encoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from attack.arena import Agent, Arena, until

pytestmark = pytest.mark.slow

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS: Final = SettingsFrame(0).serialize()
OK: Final = (
    (":method", "GET"),
    (":scheme", "https"),
    (":authority", "api.ok.test"),
    (":path", "/v1/search?q=a"),
)


def headers(pairs: Sequence[tuple[str, str]], *, stream: int = 1, end: bool = True) -> bytes:
    frame = HeadersFrame(stream, data=Encoder().encode(pairs))
    frame.flags |= {"END_HEADERS", "END_STREAM"} if end else {"END_HEADERS"}
    return frame.serialize()


def data(payload: bytes, *, end: bool = True) -> bytes:
    frame = DataFrame(1, data=payload)
    if end:
        frame.flags.add("END_STREAM")
    return frame.serialize()


def instead(**changed: str) -> bytes:
    """The good request with some pseudo-headers changed."""
    return headers([(name, changed.get(name[1:], value)) for name, value in OK])


def with_(*more: tuple[str, str]) -> bytes:
    return headers([*OK, *more])


def bomb() -> bytes:
    """RFC 7541: one long entry in the table, then one byte for each time it is named."""
    block = Encoder().encode([*OK, ("x-a", "a" * 4000)])
    frame = HeadersFrame(1, data=block + b"\xbe" * 12_000)
    frame.flags |= {"END_HEADERS", "END_STREAM"}
    return frame.serialize()


def flood() -> bytes:
    opened = [
        headers(OK, stream=number) + RstStreamFrame(number, 8).serialize() for number in range(1, 200, 2)
    ]
    unending = HeadersFrame(1001, data=Encoder().encode(OK)).serialize()
    more = [ContinuationFrame(1001, data=b"").serialize() for _ in range(500)]
    pings = [PingFrame(0, opaque_data=b"12345678").serialize() + SETTINGS for _ in range(200)]
    return b"".join(opened + pings) + unending + b"".join(more)


POST: Final = ((":method", "POST"), *OK[1:])
CASES: Final = {
    "BYP-H2-01 a body without a length": headers(POST, end=False)
    + data(b"POST /v1/payouts HTTP/1.1\r\n\r\n"),
    "BYP-H2-03 trailers": headers(POST, end=False)
    + data(b'{"q":"a"}', end=False)
    + headers([("content-length", "1"), ("host", "evil.test")]),
    "BYP-H2-04 another authority than SNI": instead(authority="evil.test"),
    "BYP-H2-07 user-info in the authority": instead(authority="evil.test@api.ok.test"),
    "BYP-H2-07 a path in the authority": instead(authority="api.ok.test/v1"),
    "BYP-H2-07 no authority": instead(authority=""),
    "BYP-H2-11 a line end in the path": instead(path="/v1/search?q=a HTTP/1.1\r\nHost: evil.test\r\n\r\n"),
    "BYP-H2-11 NUL in the path": instead(path="/v1/search\0"),
    "BYP-H2-12 a request line in the method": instead(method="POST /v1/payouts HTTP/1.1\r\nX: "),
    "BYP-H2-12 a space in the method": instead(method="POST /v1/payouts"),
    "BYP-H2-15 a pseudo-header twice": with_((":path", "/v1/payouts")),
    "BYP-H2-15 a status in a request": with_((":status", "200")),
    "BYP-H2-15 a protocol without CONNECT": with_((":protocol", "websocket")),
    "BYP-H2-16 a line end in a value": with_(("x-a", "a\r\nTransfer-Encoding: chunked")),
    "BYP-H2-16 an upper-case name": with_(("X-A", "a")),
    "BYP-H2-16 a colon in a name": with_(("x: y", "a")),
    "BYP-H2-19 CONNECT": headers([(":method", "CONNECT"), (":authority", "evil.test:22")]),
    "BYP-H2-19 extended CONNECT": headers(
        [(":method", "CONNECT"), (":protocol", "websocket"), *OK[1:]], end=False
    ),
    "BYP-H2-20 another scheme": instead(scheme="http"),
    "BYP-H2-20 a URL for a scheme": instead(scheme="https://evil/?"),
    "BYP-H2-23 resets, pings and endless headers": flood(),
    "BYP-H2-24 a block that unpacks to more": bomb(),
    "BYP-H2-27 a frame larger than announced": struct.pack(">I", 0x00FFFFFF)[1:]
    + b"\1\5\0\0\0\1"
    + b"a" * 70_000,
    "a good request": headers(OK),
    "a window of nothing, then a good request": WindowUpdateFrame(0, window_increment=1).serialize()
    + headers(OK),
}


@pytest.mark.parametrize("path", ["tls", "plain"])
@pytest.mark.parametrize("frames", [pytest.param(frames, id=name) for name, frames in CASES.items()])
def test_h2_is_refused_unread(arena: Arena, path: str, frames: bytes) -> None:
    since, mark = arena.size(), arena.upstream.mark()
    with arena.agent(path) as agent:
        agent.send(PREFACE + SETTINGS + frames)
        seen = agent.receive()
    told = seen.only.decision
    assert (told["outcome"], told["reason"], seen.only.status) == ("SILENCE", "unsupported_protocol", 400)
    assert arena.check_receipt(since, seen.only).statement["reason"] == "unsupported_protocol"
    assert arena.upstream.since(mark) == [] and len(arena.upstream.queries) == mark.queries
    arena.still_serves("plain")


def test_an_upgrade_to_h2c_is_refused(arena: Arena) -> None:
    mark = arena.upstream.mark()
    upgrade = (
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
    )
    request = b"GET http://web.ok.test/v1/search?q=a HTTP/1.1\r\nHost: web.ok.test\r\n" + upgrade
    response = arena.ask("plain", request).only
    assert response.decision["outcome"] == "SILENCE" and response.status == 400
    assert arena.upstream.since(mark) == []


@pytest.mark.parametrize("offered", [["h2", "http/1.1"], ["h2"], ["h3", "foo"]], ids="+".join)
def test_h2_is_never_spoken(arena: Arena, offered: list[str]) -> None:
    context = ssl.create_default_context(cafile=str(arena.gate.state_dir / "ca" / "ca.pem"))
    context.set_alpn_protocols(offered)
    since, mark, log_at = arena.size(), arena.upstream.mark(), len(arena.gate.log)
    with Agent(arena) as agent:
        agent.connect("api.ok.test:443")
        try:
            agent.sock = context.wrap_socket(agent.sock, server_hostname="api.ok.test")
        except ssl.SSLError:
            assert "http/1.1" not in offered
        else:
            assert agent.sock.selected_alpn_protocol() == ("http/1.1" if "http/1.1" in offered else None)
            agent.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
            assert agent.receive().only.decision["reason"] == "unsupported_protocol"
    until(lambda: len(arena.decisions(since)) == 1)
    assert arena.upstream.since(mark) == []
    said = "HTTP/2 is not spoken here" in arena.gate.log[log_at:]
    assert said == ("http/1.1" not in offered), "what to look for when a client will not connect"
