"""What an upstream says, through pipeline and door to the agent: framing, decision and cuts, by h11."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import h11

from attack.cases import load_answers
from fakes import FakeExchange
from fuzz.asked import origin_of
from fuzz.base import Target, must, split
from fuzz.whole import LIMITS, check_evidence, conversation, talk
from fuzz.wire import CLIENT_WORDS
from holdgate.http1 import ClientReader, WireError

__all__ = ["TARGETS"]


def answered(data: bytes) -> bool:
    """The agent gets one well-framed answer, with one decision, ours; and a cut body never looks complete."""
    steer, raw = split(data, 1)
    method = "HEAD" if steer[0] & 1 else "GET"
    exchange = _exchange(method, raw)
    if exchange is None:
        return False
    complete, body = not exchange.cut, b"".join(exchange.pieces)
    asked = f"{method} /v1/items/a HTTP/1.1\r\nHost: api.ok.test\r\n\r\n".encode()
    line = conversation(talk(origin_of(0), asked, b"\1\1", exchange))
    check_evidence(line)
    head, got, ended = read_answer(method, line.answered)
    names = [name for name, _ in head.headers]
    told = [value for name, value in head.headers if name == b"holdgate-decision"]
    must(
        len(told) == 1 and line.ledger.entries[0].receipt_id.encode() in told[0],
        "another decision",
        head,
        raw,
    )
    forged = [name for name in names if re.match(rb"(?:holdgate|tg|x-trigguard)[-_]", name)]
    must(forged == [b"holdgate-decision"], "reserved names from upstream", forged, raw)
    if not complete and head.status_code in (502, 504):  # ours, in place of what was cut before it began
        return False
    if exchange.head.status == 407:
        must(head.status_code == 502, "a proxy challenge passes", head)
        return False
    must(head.status_code == exchange.head.status, "another status", head, exchange.head)
    must(ended == complete, "a cut answer ends well, or a complete one does not", head, got, raw)
    must(not complete or got == body, "another body", got, body, raw)
    return complete


def _exchange(method: str, raw: bytes) -> FakeExchange | None:
    reader = ClientReader(method, LIMITS)
    reader.feed(raw)
    body, cut = b"", False
    try:
        if reader.head() is None:
            return None
        body = reader.read()
        if not reader.done:
            reader.eof()
    except WireError:
        cut = True
    try:
        head = reader.head()
    except WireError:
        return None
    return head and FakeExchange(head=head, length=reader.length, pieces=[body] if body else [], cut=cut)


def read_answer(method: str, raw: bytes) -> tuple[h11.Response, bytes, bool]:
    """What h11 reads of our bytes: the head, the body, and whether it saw the end."""
    peer = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    peer.send(h11.Request(method=method, target="/", headers=[("Host", "api.ok.test")]))
    peer.send(h11.EndOfMessage())
    peer.receive_data(raw)
    peer.receive_data(b"")
    head = peer.next_event()
    must(isinstance(head, h11.Response), "no answer", head, raw)
    body = b""
    try:
        while isinstance(event := peer.next_event(), h11.Data):
            body += event.data
    except h11.RemoteProtocolError:
        return head, body, False
    framing = {b"content-length", b"transfer-encoding"} & {name for name, _ in head.headers}
    must(
        bool(framing) or method == "HEAD" or head.status_code in (204, 304), "an answer without framing", raw
    )
    return head, body, isinstance(event, h11.EndOfMessage)


def answered_seeds() -> Iterator[bytes]:
    ok = b"HTTP/1.1 200 OK\r\n"
    yield b"\0" + ok + b"Content-Length: 2\r\nHoldgate-Decision: PERMIT\r\nX: y\r\n\r\nok"
    yield b"\0" + ok + b"Transfer-Encoding: chunked\r\nTG-Receipt: a\r\n\r\n2\r\nok\r\n0\r\n\r\n"
    yield b"\0" + ok + b"Connection: close, x-a\r\nX-A: b\r\n\r\nuntil the end"
    yield b"\0" + ok + b"Content-Length: 9\r\n\r\nshort"
    yield b"\0" + ok + b"Transfer-Encoding: chunked\r\n\r\n9\r\nshort"
    yield b"\1" + ok + b"Content-Length: 9\r\nHoldgate_Decision: x\r\n\r\n"
    yield b"\0HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n"
    yield b"\0HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"
    yield b"\0HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
    yield from (b"\0" + each.reply.data for each in load_answers() if len(each.reply.data) < 1500)


ANSWER_WORDS: Final = (
    *CLIENT_WORDS, b"Holdgate-Decision: PERMIT\r\n", b"Holdgate_Receipt: a\r\n", b"Connection: x-a\r\n",
)  # fmt: skip
TARGETS: Final = {"answered": Target(run=answered, seeds=answered_seeds, words=ANSWER_WORDS)}
