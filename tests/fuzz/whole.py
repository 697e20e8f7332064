"""The whole product on fuzzed bytes: the real door and pipeline, a recorder in place of the network.

    bytes -> GateLayer -> Pipeline (attack maps and policies, memory ledger) -> HttpDispatcher, recorded

The product is not believed: what reaches the recorder must be a request that `attack/strict.py` reads in the
agent's bytes, and one that `permits.py` permits by itself. Every hold ends in one recorded decision, every
PERMIT in one outcome.
"""

from __future__ import annotations

import asyncio
import gzip
import logging
import re
import secrets
from collections.abc import Coroutine, Iterator
from functools import cache
from typing import Any, Final

from mitmproxy import connection, options
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context

from attack.strict import framed
from fakes import FakeExchange, FakeMeter, MemoryLedger
from fuzz.asked import ARENA, arena_requests, origin_of
from fuzz.base import Target, must, pieces, split
from fuzz.permits import is_permitted, parts_of
from fuzz.values import FORM_WORDS, JSON_WORDS, XML_WORDS
from fuzz.wire import HTTP_WORDS, attacks
from fuzz.wrapped import MULTIPART_WORDS
from holdgate.adapters.dispatch import HttpDispatcher
from holdgate.adapters.gate_layer import GateLayer, HoldgateHoldHook, HoldgateRelayHook
from holdgate.adjudicate import Evidence
from holdgate.agents import Agent
from holdgate.answer import DispatchError
from holdgate.bundle import Bundle, load_bundle
from holdgate.errors import Outcome, Reason
from holdgate.explain import document, explain
from holdgate.headers import Verdicts
from holdgate.keys import SigningKey
from holdgate.limits import Limits
from holdgate.message import Origin, ResponseHead
from holdgate.pipeline import Pipeline
from holdgate.receipt import verify
from holdgate.release import Release

__all__ = ["LIMITS", "TARGETS", "check_evidence", "conversation", "talk"]

LIMITS: Final = Limits(body_bytes=32_768, head_s=1, body_s=1)
SIGNER: Final = SigningKey(seed=bytes(range(32)))
AGENT: Final = Agent(id="attacker", groups=(), attrs=())
HOSTS: Final = ("api.ok.test", "web.ok.test", "rpc.ok.test", "api.denied.test", "web.denied.test")


# --- one connection ---------------------------------------------------------------------------


class Recorder(HttpDispatcher):
    """The outer door up to its bytes: all its own checks, then a list instead of a connection."""

    def __init__(self, clock_us: Any, answer: FakeExchange | None) -> None:
        nothing: Any = None
        super().__init__(
            resolver=nothing, limits=LIMITS, clock_us=clock_us, public_tls=nothing, private_tls=nothing
        )
        self.sent: list[bytes] = []
        self.answer = answer  # None: 200 and two bytes, every time

    async def dispatch(self, release: Release) -> Any:
        self.sent.append(b"".join(self._request_bytes(release)))
        if self.answer is not None:
            return self.answer
        head = ResponseHead(status=200, reason=b"OK", headers=((b"Content-Type", b"text/plain"),))
        return FakeExchange(head=head, length=2, pieces=[b"ok"])


class Connection:
    """One agent's connection: a real GateLayer over a real Pipeline, its hooks run one by one."""

    def __init__(self, origin: Origin, answer: FakeExchange | None = None) -> None:
        self.ledger = MemoryLedger()
        self.recorder = Recorder(lambda: self.ledger.now_us, answer)
        self.meter = FakeMeter()
        self.keeper = Pipeline(
            bundle=_bundle(),
            identify=lambda _: AGENT,
            ledger=self.ledger,
            dispatcher=self.recorder,
            evidence=Evidence(
                signer=SIGNER,
                issuer="holdgate.local/n1",
                node="n1",
                fleet_key=b"f" * 32,
                draw=secrets.token_bytes,
            ),
            show=Verdicts(node="n1", full=False, public_url=None),
            limits=LIMITS,
            meter=self.meter,
            clock=lambda: 0.0,
        )
        self.tunnels: dict[str, Origin] = {}
        client = connection.Client(peername=("127.0.0.1", 1), sockname=("127.0.0.1", 2))
        self.layer = GateLayer(Context(client, _options()), self, origin)  # type: ignore[arg-type]
        self.client = client
        self.holds = 0
        self.answered = b""
        self.closed = False

    # What the layer asks of its door.
    def watch(self, gate: GateLayer) -> None: ...
    def forget(self, gate: GateLayer) -> None: ...
    def is_surplus(self, client: connection.Client) -> bool:
        return False

    def await_speech(self, client: connection.Client) -> None: ...
    def pause(self, client: connection.Client, *, paused: bool) -> None: ...

    async def give(self, event: events.Event) -> None:
        for command in list(self.layer.handle_event(event)):
            if isinstance(command, commands.SendData):
                self.answered += command.data
            elif isinstance(command, commands.CloseConnection):
                self.closed = True
            elif isinstance(command, HoldgateHoldHook):
                self.holds += 1
                command.held.answer = await command.held.ask()
                await self.give(events.HookCompleted(command, None))
            elif isinstance(command, HoldgateRelayHook):
                try:
                    command.relay.piece = await command.relay.stream.next()
                except DispatchError:
                    pass  # as in the addon: the piece stays None, the answer is cut
                await self.give(events.HookCompleted(command, None))

    async def say(self, data: bytes, cuts: bytes) -> None:
        await self.give(events.Start())
        for piece in pieces(data, cuts):
            if self.closed or self.layer.child is not None:
                return
            await self.give(events.DataReceived(self.client, piece))
        if not self.closed:
            await self.give(events.ConnectionClosed(self.client))


@cache
def _bundle() -> Bundle:
    logging.getLogger("holdgate").setLevel(logging.CRITICAL)
    return load_bundle([ARENA / "surfaces"], [ARENA / "policies"])


@cache
def _options() -> options.Options:
    return options.Options()


@cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


def conversation(said: Coroutine[Any, Any, Connection]) -> Connection:
    """Run talk() to its end."""
    return _loop().run_until_complete(said)


# --- the property -----------------------------------------------------------------------------


def whole(data: bytes) -> bool:
    """Only permitted requests reach the recorder, exactly as sent; every hold leaves one decision."""
    steer, sent = split(data, 3)
    tls = not steer[0] & 1
    host = HOSTS[(steer[0] >> 1) % len(HOSTS)] if tls else "web.ok.test"
    origin = origin_of(0 if tls else 1, host)
    line = conversation(talk(origin, sent, steer[1:]))
    check_evidence(line)
    _check_told(line)
    at = b"" if tls else b"http://web.ok.test"
    requests = _readings(sent, at, host.encode())
    arrived = list(line.recorder.sent)
    for request in requests:
        if arrived and _is_the_same(arrived[0], request):
            must(is_permitted(request, tls), "forwarded, but no rule permits it", request, sent)
            del arrived[0]
    must(not arrived, "forwarded, but not what was asked", arrived, requests, sent)
    return bool(line.recorder.sent)


async def talk(origin: Origin, sent: bytes, cuts: bytes, answer: FakeExchange | None = None) -> Connection:
    line = Connection(origin, answer)
    await line.say(sent, cuts)
    return line


def check_evidence(line: Connection) -> None:
    entries = line.ledger.entries
    permits = [entry for entry in entries if entry.outcome is Outcome.PERMIT]
    # Small enough to need no thread, one at a time: nothing joins another's flight.
    must(len(entries) == line.holds, "holds and recorded decisions differ", line.holds, entries)
    must(line.holds > 0 or bool(line.layer.child), "a connection that left no receipt", line.answered)
    must(len(line.recorder.sent) <= len(permits), "more was sent than permitted", line.recorder.sent)
    must(
        [row[0] for row in line.ledger.outcomes] == [e.receipt_id for e in permits],
        "outcomes",
        line.ledger.outcomes,
    )
    # Whatever is raised on the way ends in this reason: for an agent it is a refusal, for us a crash.
    must(all(entry.reason is not Reason.INTERNAL_ERROR for entry in entries), "internal error", entries)
    for entry in entries:
        said = verify(entry.jws, {SIGNER.kid: SIGNER.public}).statement
        must(
            said["outcome"] == entry.outcome.value and said["id"] == entry.receipt_id, "another receipt", said
        )
    must(
        line.keeper.held_bytes == 0 and line.keeper.in_flight == 0,
        "memory or holds left over",
        line.keeper.held_bytes,
    )


def _check_told(line: Connection) -> None:
    """Every decision that the agent was told is the recorded one of that id."""
    told = re.findall(rb"\r\nHoldgate-Decision: ([A-Z]+);id=\"([^\"]+)\"", line.answered)
    by_id = {entry.receipt_id.encode(): entry.outcome.value.encode() for entry in line.ledger.entries}
    must(all(by_id.get(name) == outcome for outcome, name in told), "told otherwise", told, by_id)


def _readings(sent: bytes, at: bytes, host: bytes) -> list[bytes]:
    """Every request that the strict reader finds, as far as it is certain where messages end."""
    found = []
    while (message := framed(sent)) is not None:
        request = message.forwarded(at, host)
        if request is not None:
            found.append(request)
        sent = message.after
    return found


def _is_the_same(arrived: bytes, request: bytes) -> bool:
    """One request. The product takes out more header names than the strict reader knows, and puts in none."""
    ours, theirs = parts_of(arrived), parts_of(request)
    rest = iter(theirs[2])
    decisive = {
        b"host",
        b"content-type",
        b"content-encoding",
        b"authorization",
        b"x-amz-target",
        b"content-length",
    }
    kept = [row for row in theirs[2] if row[0].lower() in decisive]
    return (
        (ours[0], ours[1], ours[3]) == (theirs[0], theirs[1], theirs[3])
        and all(row in rest for row in ours[2])
        and [row for row in ours[2] if row[0].lower() in decisive] == kept
    )


# --- explain --------------------------------------------------------------------------------------


def explained(data: bytes) -> bool:
    """`holdgate explain` is total, and says of one whole request what the product decides about it."""
    told = explain(data, lambda _: AGENT, _bundle(), LIMITS, fleet_key=b"f" * 32, now_us=1)
    must(bool(document(told)), "nothing to show", data)
    request, decision = told.request, told.decision
    if request is None or b"\r\n" not in data.partition(b"\n\n")[0]:
        return False
    kind = 0 if request.scheme == "https" else 1
    if request.port not in (80, 443):
        return False
    line = conversation(talk(origin_of(kind, request.host), data, b"\1\2"))
    check_evidence(line)
    _check_told(line)
    entry = line.ledger.entries[0]
    decided = (entry.outcome, entry.reason)
    must((decision.outcome, decision.reason) == decided, "explained otherwise", decision, decided, data)
    must(bool(line.recorder.sent) == (decision.outcome is Outcome.PERMIT), "sent or not", decision, data)
    return decision.outcome is Outcome.PERMIT


def explained_seeds() -> Iterator[bytes]:
    yield from (request for _, request in arena_requests())
    yield from attacks("plain")[::3]
    yield b"GET /v1/search?q=a HTTP/1.1\nHost: api.ok.test\n\n"


def _large() -> Iterator[bytes]:
    """More than a receipt or a header can hold."""
    line = b"POST /v1/%b HTTP/1.1\r\nHost: api.ok.test\r\nContent-Type: application/%b\r\n%b"
    body = b"amount=5&recipient=" + b"%0a" * 8000
    yield b"\0\1\1" + line % (b"charges", b"x-www-form-urlencoded", b"Content-Length: 24019\r\n\r\n") + body
    body = b'{"amount":5,"recipient":"' + b"\\u0001" * 4000 + b'"}'
    yield b"\0\1\1" + line % (b"transfers", b"json", b"Content-Length: 24027\r\n\r\n") + body
    secret = b"Authorization: Bearer " + b"k" * 50_000 + b"\r\nContent-Length: 8\r\n\r\namount=5"
    yield b"\0\1\1" + line % (b"charges", b"x-www-form-urlencoded", secret)


def seeds() -> Iterator[bytes]:
    for kind, request in arena_requests():
        rpc = 4 if b"Host: rpc." in request else 0
        yield bytes([kind | rpc, 1, 2]) + request
        yield bytes([kind | rpc, 3, 4]) + request + request
    yield from _large()
    yield from (b"\0\5\5" + data for data in attacks("tls"))
    both = b"Content-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n"
    head = b"POST /v1/search HTTP/1.1\r\nHost: api.ok.test\r\nContent-Type: application/json\r\n"
    yield b"\0\2\2" + head + both + b'{"q":"a"}'
    twice = head.replace(b"search", b"transfers") + b"Content-Length: 26\r\n\r\n"
    yield b"\0\2\2" + twice + b'{"amount":9999,"amount":5}'
    yield b"\6\0\1POST /v1/search HTTP/1.1\r\nHost: api.denied.test\r\nContent-Type: application/json\r\n" + (
        b'Content-Length: 9\r\n\r\n{"q":"a"}'
    )
    packed = gzip.compress(b'{"q":"a"}', mtime=0)
    yield b"\0\1\1POST /v1/search HTTP/1.1\r\nHost: api.ok.test\r\nContent-Type: application/json\r\n" + (
        b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b" % (len(packed), packed)
    )


_ROUTES: Final = (
    b"/v1/search", b"/v1/items/", b"/v1/payouts", b"/v1/charges", b"/v1/transfers", b"/v1/merged",
    b"/v1/files", b"?q=a", b"?amount=5", b"1001", b"Content-Type: ", b"application/json", b"GET ", b"POST ",
    b"DELETE ", b"HEAD ", b"web.ok.test", b"api.ok.test", b"Idempotency-Key: a\r\n",
    b"Content-Encoding: br\r\n", b"Expect: 100-continue\r\n", b"%2e%2e/",
)  # fmt: skip

_WORDS: Final = (
    *_ROUTES, *HTTP_WORDS, *JSON_WORDS[:8], *FORM_WORDS[:8], *XML_WORDS[:8], *MULTIPART_WORDS[:8],
)  # fmt: skip
TARGETS: Final = {
    "whole": Target(
        run=whole,
        seeds=seeds,
        words=_WORDS,
        runs=800,
    ),
    "explained": Target(run=explained, seeds=explained_seeds, words=_WORDS, runs=250),
}
