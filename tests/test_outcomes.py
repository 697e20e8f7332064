"""What happens on the wire, to the outcome and to what a repeat may do: pipeline and outer door together.

Nothing sent, an answer, a cut, a deadline; each ends in one state.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import pytest

from fakes import FakeClient
from holdgate.errors import Outcome, Reason
from holdgate.limits import Limits
from test_dispatch import OK, Peer, Script, answers, dispatcher, hold_open, upstream
from test_pipeline import NATIVE, PROVIDER, House, recognised

LIMITS = Limits(connect_s=0.5, first_byte_s=0.2, upstream_total_s=2.0)


def status(code: int) -> Script:
    return answers(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % code)


async def reset(peer: Peer) -> None:
    """The request was read, and no answer begins."""
    await peer.request()
    peer.writer.transport.abort()


async def cut_head(peer: Peer) -> None:
    await peer.request()
    peer.writer.write(b"HTTP/1.1 200 O")
    await peer.writer.drain()
    peer.writer.transport.abort()


async def silent(peer: Peer) -> None:
    await peer.request()
    await hold_open(peer)


FREE, HELD, DONE = Outcome.PERMIT.value, Reason.OUTCOME_UNKNOWN.value, Reason.ALREADY_EXECUTED.value


@pytest.mark.parametrize(
    ("script", "http", "outcome", "repeat"),
    [
        pytest.param(status(200), 200, "executed", DONE, id="2xx"),
        pytest.param(status(304), 304, "executed", DONE, id="304"),
        pytest.param(status(302), 302, "failed", FREE, id="a redirect"),
        pytest.param(status(402), 402, "failed", FREE, id="4xx"),
        pytest.param(status(408), 408, "unknown", HELD, id="408"),
        pytest.param(status(409), 409, "unknown", HELD, id="409"),
        pytest.param(status(425), 425, "unknown", HELD, id="425"),
        pytest.param(status(500), 500, "unknown", HELD, id="5xx"),
        pytest.param(reset, 502, "unknown", HELD, id="a reset after the request"),
        pytest.param(cut_head, 502, "unknown", HELD, id="a reset after the first byte"),
        pytest.param(answers(b"SSH-2.0-x\r\n\r\n"), 502, "unknown", HELD, id="an answer that is none"),
        pytest.param(silent, 504, "unknown", HELD, id="no answer in time"),
        pytest.param(
            answers(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab"), 502, "executed", DONE, id="a cut body"
        ),
    ],
)
async def test_what_the_vendor_does_is_one_outcome_and_decides_the_repeat(
    monkeypatch: pytest.MonkeyPatch, script: Script, http: int, outcome: str, repeat: str
) -> None:
    house = House(monkeypatch, recognised(key=NATIVE))
    async with upstream(script) as served, door(house, served.port):
        answer = await house.ask()
        assert answer.status == http
        assert [(each[1].value) for each in house.ledger.outcomes] == [outcome]
        await house.ask()
    again = house.ledger.entries[1]
    assert (again.outcome.value if again.outcome is Outcome.PERMIT else again.reason.value) == repeat
    assert again.prior == house.ledger.entries[0].receipt_id
    assert served.connections == (2 if repeat == FREE else 1), "sent again only where it is free"


async def test_a_connection_that_is_refused_sent_nothing_and_frees_the_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house = House(monkeypatch, recognised(key=NATIVE))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        async with door(house, closed.getsockname()[1]):
            assert [(await house.ask()).status for _ in range(2)] == [502, 502]
    assert [each[1].value for each in house.ledger.outcomes] == ["not_sent", "not_sent"]
    assert house.ledger.entries[1].outcome is Outcome.PERMIT


@pytest.mark.parametrize(
    ("key", "reaches"), [pytest.param(NATIVE, 1, id="held"), pytest.param(PROVIDER, 2, id="the vendor's key")]
)
async def test_an_unknown_goes_out_again_only_where_the_vendor_answers_repeats(
    monkeypatch: pytest.MonkeyPatch, key: object, reaches: int
) -> None:
    house = House(monkeypatch, recognised(key=key))  # type: ignore[arg-type]
    async with upstream(reset) as served, door(house, served.port):
        await house.ask()
        await house.ask()
        assert served.connections == reaches


@pytest.mark.parametrize(
    ("closing", "outcome", "connections"),
    [
        pytest.param("at rest", "executed", 2, id="closed while idle: seen, and another one is used"),
        pytest.param("on the request", "unknown", 1, id="closed as the request came: nobody can know"),
    ],
)
async def test_a_stale_connection_never_sends_a_request_twice(
    monkeypatch: pytest.MonkeyPatch, closing: str, outcome: str, connections: int
) -> None:
    house = House(monkeypatch, recognised())
    closed = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        peer.writer.write(OK)
        await peer.writer.drain()
        if closing == "on the request" and served.connections == 1:
            await peer.request()
        peer.writer.transport.abort()
        closed.set()

    async with upstream(script) as served, door(house, served.port):
        assert (await house.ask()).status == 200
        if closing == "at rest":
            await closed.wait()
            for _ in range(5):  # the close arrives
                await asyncio.sleep(0)
        await house.ask()
        assert served.connections == connections
    assert [each[1].value for each in house.ledger.outcomes] == ["executed", outcome]


@pytest.mark.parametrize(
    ("leaves", "outcome", "reaches"),
    [
        pytest.param("before", "not_sent", 0, id="before the release"),
        pytest.param("after", "executed", 1, id="after it: a commit runs on to learn its outcome"),
    ],
)
async def test_an_agent_that_leaves(
    monkeypatch: pytest.MonkeyPatch, leaves: str, outcome: str, reaches: int
) -> None:
    house, client = House(monkeypatch, recognised(key=NATIVE)), FakeClient()

    async def script(peer: Peer) -> None:
        await peer.request()
        client.leave()
        peer.writer.write(OK)
        await hold_open(peer)

    if leaves == "before":
        client.leave()
    async with upstream(script) as served, door(house, served.port):
        await house.ask(client)
        assert served.connections == reaches
    ((_, status_, _, delivered),) = house.ledger.outcomes
    assert (status_.value, delivered) == (outcome, False)


def door(house: House, port: int) -> _Through:
    return _Through(house, port)


class _Through:
    """The outer door in front of this port, as the pipeline's dispatcher."""

    def __init__(self, house: House, port: int) -> None:
        self._house = house
        clock: Callable[[], int] = lambda: house.ledger.now_us  # noqa: E731
        self._made = dispatcher(port, limits=LIMITS, clock_us=clock)

    async def __aenter__(self) -> None:
        self._house.pipeline.dispatcher = await self._made.__aenter__()

    async def __aexit__(self, *error: object) -> None:
        await self._made.__aexit__(None, None, None)
