"""Answers on their way back: events as they come, a cut that stays a cut, and upstreams that misbehave.

Both ends are by hand: an agent in a tunnel, and an upstream that the proxy takes for a model provider.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from behind import Bench
from byhand import MODEL, Peer, Port, asked, get, plain, post, tunnel
from holdgate.demo.instance import Instance
from holdgate.demo.standins import StandIns

EVENTS = 20
APART_S = 0.02
OPEN = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"


@pytest.fixture(scope="module")
def upstream() -> Iterator[Port]:
    port = Port()
    yield port
    port.close()


@pytest.fixture(scope="module")
def gate(upstream: Port, vendors: StandIns, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    names = vendors.connect_to() | {f"{MODEL}:443": upstream.address}
    with Instance(tmp_path_factory.mktemp("gate"), connect_to=names) as running:
        yield running


def once(data: bytes) -> Callable[[Peer], Awaitable[None]]:
    """An upstream that reads one request, answers these bytes and closes."""

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.send(data)

    return serve


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Ticker:
    """Sends an event only after the one before was seen by the agent: a relay that gathers never ends."""

    def __init__(self, *, chunked: bool) -> None:
        self.chunked = chunked
        self.seen = asyncio.Semaphore(0)
        self.sent_s: list[float] = []
        self.got_s: list[float] = []

    async def serve(self, peer: Peer) -> None:
        await peer.request()
        framing = b"Transfer-Encoding: chunked\r\n\r\n" if self.chunked else b"Connection: close\r\n\r\n"
        await peer.send(OPEN + framing)
        for number in range(EVENTS):
            await asyncio.sleep(APART_S)  # a model's pace
            event = b"data: %d\n\n" % number
            self.sent_s.append(time.perf_counter())
            await peer.send(chunk(event) if self.chunked else event)
            await asyncio.wait_for(self.seen.acquire(), 60)
        if self.chunked:
            await peer.send(b"0\r\n\r\n")

    async def read(self, next_piece: Callable[[], Awaitable[bytes]]) -> list[bytes]:
        events = []
        for _ in range(EVENTS):
            events.append(await next_piece())
            self.got_s.append(time.perf_counter())
            self.seen.release()
        return events

    @property
    def lag_ms(self) -> float:
        return statistics.median(got - sent for sent, got in zip(self.sent_s, self.got_s, strict=True)) * 1000


async def direct_lag_ms(upstream: Port, *, chunked: bool) -> float:
    ticker = Ticker(chunked=chunked)
    async with upstream.serving(ticker.serve):
        peer = Peer(*await asyncio.open_connection("127.0.0.1", upstream.number))
        await peer.send(asked())
        await peer.head()
        await ticker.read(peer.chunk if chunked else lambda: peer.reader.readuntil(b"\n\n"))
        peer.cut()
    return ticker.lag_ms


@pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "ended by close"])
async def test_each_event_arrives_before_the_next_is_sent(
    gate: Instance, upstream: Port, chunked: bool
) -> None:
    direct_ms = await direct_lag_ms(upstream, chunked=chunked)
    ticker = Ticker(chunked=chunked)
    async with upstream.serving(ticker.serve):
        agent = await tunnel(gate)
        await agent.send(asked())
        first, headers = await agent.head()
        assert first == "HTTP/1.1 200 OK" and headers["transfer-encoding"] == "chunked"
        assert headers["holdgate-decision"].startswith('PERMIT;id="rcpt_')
        assert await ticker.read(agent.chunk) == [b"data: %d\n\n" % number for number in range(EVENTS)]
        assert await agent.chunk() == b""
        agent.cut()
    added_ms = ticker.lag_ms - direct_ms
    print(f"an event needs {ticker.lag_ms:.2f} ms, {direct_ms:.2f} ms of it without the proxy")
    assert added_ms < 50


async def test_a_connection_serves_the_next_request_after_a_stream(gate: Instance, upstream: Port) -> None:
    ticker = Ticker(chunked=True)
    async with upstream.serving(ticker.serve):
        agent = await tunnel(gate)
        await agent.send(asked())
        await agent.head()
        await ticker.read(agent.chunk)
        assert await agent.chunk() == b""
        await agent.send(get("/v1/nothing-like-this"))
        assert (await agent.answer()).reason == "unknown_operation"
        agent.cut()


@pytest.mark.parametrize(
    ("data", "got"),
    [
        pytest.param(
            OPEN + b"Transfer-Encoding: chunked\r\n\r\n" + chunk(b"data: 1\n\n"),
            b"data: 1\n\n",
            id="no last chunk",
        ),
        pytest.param(
            OPEN + b"Transfer-Encoding: chunked\r\n\r\n" + chunk(b"data: 1\n\n") + b"40\r\nda",
            b"data: 1\n\n",
            id="in a chunk",
        ),
        pytest.param(
            OPEN + b"Content-Length: 200000\r\n\r\n" + b"x" * 100_000,
            b"x" * 100_000,
            id="short of its length",
        ),
    ],
)
async def test_what_the_upstream_cuts_is_cut_for_the_agent(
    gate: Instance, upstream: Port, data: bytes, got: bytes
) -> None:
    async with upstream.serving(once(data)):
        agent = await tunnel(gate)
        await agent.send(asked())
        answer = await agent.answer()
        assert answer.status == 200 and answer.decision.startswith("PERMIT;")
        assert not answer.whole
        assert answer.body in (got, got + b"da")
        assert await agent.ended()


BAD = {
    "switches protocols": b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    "nine interim answers": b"HTTP/1.1 103 Early Hints\r\n\r\n" * 9 + plain(b"{}"),
    "an oversized head": b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 200_000 + b"\r\nContent-Length: 0\r\n\r\n",
    "too many headers": b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 200 + b"Content-Length: 0\r\n\r\n",
    "closes without an answer": b"",
    "closes in the head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "two framings": plain(b"2\r\n{}\r\n0\r\n\r\n", extra="Transfer-Encoding: chunked\r\n"),
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "a folded header": b"HTTP/1.1 200 OK\r\nX-A: b\r\n c\r\nContent-Length: 2\r\n\r\n{}",
    "a bare newline": b"HTTP/1.1 200 OK\nContent-Length: 2\n\n{}",
    "another protocol": b"SSH-2.0-OpenSSH_9.7\r\n",
    "asks for proxy credentials": plain(b"", status="407 Proxy Authentication Required"),
}


@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in BAD.items()])
async def test_a_failed_exchange_is_502_and_stays_a_permit(
    gate: Instance, upstream: Port, data: bytes
) -> None:
    async with upstream.serving(once(data)):
        agent = await tunnel(gate)
        await agent.send(asked())
        answer = await agent.answer()
        assert answer.status == 502 and answer.whole
        assert answer.decision.startswith('PERMIT;id="rcpt_')
        known = "failed" if data.startswith(b"HTTP/1.1 407") else "unknown"
        assert answer.decision.endswith(f";status={known}")
        # The agent's own connection is fine: only the upstream's is not.
        await agent.send(get("/v1/nothing-like-this"))
        assert (await agent.answer()).reason == "unknown_operation"
        agent.cut()


async def test_a_small_answer_that_is_cut_is_502_after_all(gate: Instance, upstream: Port) -> None:
    async with upstream.serving(once(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}")):
        agent = await tunnel(gate)
        await agent.send(asked())
        answer = await agent.answer()
        agent.cut()
    assert answer.status == 502 and answer.whole and answer.decision.endswith(";status=executed")


async def test_nothing_listens_is_502_and_not_sent(vendors: StandIns, tmp_path: Path) -> None:
    nobody = Port()
    nobody.close()
    with Instance(tmp_path, connect_to=vendors.connect_to() | {f"{MODEL}:443": nobody.address}) as gate:
        agent = await tunnel(gate)
        await agent.send(asked())
        answer = await agent.answer()
        agent.cut()
    assert answer.status == 502 and answer.decision.endswith(";status=not_sent")


async def test_a_silent_upstream_is_504_at_the_deadline(
    upstream: Port, vendors: StandIns, tmp_path: Path
) -> None:
    async def serve(peer: Peer) -> None:
        await peer.request()
        assert await peer.ended()

    names = vendors.connect_to() | {"api.stripe.com:443": upstream.address}
    with Instance(tmp_path, connect_to=names, extra="limits: {first_byte_s: 1}") as gate:
        async with upstream.serving(serve):
            agent = await tunnel(gate, "api.stripe.com")
            await agent.send(get("/v1/balance", name="api.stripe.com"))
            answer = await agent.answer()
            agent.cut()
    assert answer.status == 504 and answer.decision.endswith(";status=unknown")


@pytest.mark.parametrize("number", [1, 5, 8])
async def test_interim_answers_are_dropped(gate: Instance, upstream: Port, number: int) -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nHoldgate-Decision: PERMIT\r\nLink: </a>\r\n\r\n" * number
    async with upstream.serving(once(interim + plain(b'{"ok":true}'))):
        agent = await tunnel(gate)
        await agent.send(asked())
        answer = await agent.answer()
        agent.cut()
    assert (answer.status, answer.body) == (200, b'{"ok":true}')
    assert "link" not in answer.headers and answer.receipt_id


async def test_what_is_not_the_upstreams_to_say_is_removed(gate: Instance, upstream: Port) -> None:
    extra = (
        'Holdgate-Decision: PERMIT;id="rcpt_forged"\r\nHOLDGATE_RECEIPT: x\r\nAlt-Svc: h3=":443"\r\n'
        "Proxy-Status: x\r\nProxy-Authenticate: Basic\r\nKeep-Alive: timeout=5\r\nX-Hop: 1\r\n"
        'Connection: X-Hop\r\nLink: <https://evil.test/>; rel="describedby"\r\nX-Kept: yes\r\n'
    )
    async with upstream.serving(once(plain(b"{}", extra=extra))):
        agent = await tunnel(gate)
        await agent.send(asked())
        answer = await agent.answer()
        agent.cut()
    assert set(answer.headers) == {"x-kept", "holdgate-decision", "content-length"}
    assert "forged" not in answer.decision


async def test_answers_without_a_body_carry_the_receipt_too(gate: Instance, upstream: Port) -> None:
    async with upstream.serving(once(b"HTTP/1.1 204 No Content\r\n\r\n")):
        agent = await tunnel(gate)
        await agent.send(post("/v1/embeddings", b'{"model":"text-embedding-3-small","input":"x"}'))
        first, headers = await agent.head()
        assert first.startswith("HTTP/1.1 204 ") and headers["holdgate-decision"].startswith("PERMIT;")
        await agent.send(get("/v1/nothing-like-this"))
        assert (await agent.answer()).status == 403
        agent.cut()


def test_the_log_is_clean_and_every_permit_has_its_outcome(bench: Bench) -> None:
    bench.gate.stop()
    audit = bench.holdgate("log", "audit", "--json")
    assert audit.returncode == 0, audit.stdout + audit.stderr
