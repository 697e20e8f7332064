"""adapters/lane.py: the short way carries requests as the engine's does, and nothing else."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mitmproxy.proxy import commands, events, mode_servers

from doors import Door, ok, open_door
from holdgate.adapters.gate_layer import GateLayer

CONNECT = b"CONNECT api.ok.test:443 HTTP/1.1\r\nHost: api.ok.test:443\r\n\r\n"


def post(number: int, body: bytes = b"abc") -> bytes:
    return (
        b"POST /%d HTTP/1.1\r\nHost: api.ok.test\r\nContent-Length: %d\r\n\r\n" % (number, len(body)) + body
    )


class Agent:
    """A TLS client in a tunnel that decides for itself what is one record, and what is one write."""

    def __init__(self, door: Door) -> None:
        self._door, self._in, self._out = door, ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.create_default_context(cafile=str(door.ca))
        self.tls = context.wrap_bio(self._in, self._out, server_hostname="api.ok.test")

    async def open(self) -> None:
        self._reader, self.writer = await self._door.connect()
        self.writer.write(CONNECT)
        await self._reader.readuntil(b"\r\n\r\n")
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self.writer.write(self._out.read())
                self._in.write(await asyncio.wait_for(self._reader.read(65_536), 10))
        self.writer.write(self._out.read())

    def records(self, *pieces: bytes) -> bytes:
        for piece in pieces:
            self.tls.write(piece)
        return self._out.read()

    async def drop(self) -> None:
        """Read something, whatever it is."""
        assert await asyncio.wait_for(self._reader.read(65_536), 10)

    async def read(self, count: int) -> bytes:
        """So many answers; fewer where the connection ended."""
        seen = b""
        while seen.count(b"\r\n\r\nfine") < count:
            try:
                seen += self.tls.read(65_536)
            except ssl.SSLWantReadError:
                data = await asyncio.wait_for(self._reader.read(65_536), 10)
                if not data:
                    break
                self._in.write(data)
        return seen


def cut(data: bytes, at: random.Random) -> Iterator[bytes]:
    while data:
        size = at.choice((1, 2, 7, 100, 2000))
        yield data[:size]
        data = data[size:]


async def test_ln1_only_bytes_and_ended_hooks_take_it_and_only_inside_tls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines: list[tuple[str, bool]] = []
    theirs = mode_servers.ProxyConnectionHandler.__mro__[1].server_event  # type: ignore[attr-defined]

    async def noted(self: Any, event: events.Event) -> None:
        engines.append((type(event).__name__, self.lane is not None and self.lane.is_open))
        await theirs(self, event)

    async with open_door(tmp_path) as door:
        monkeypatch.setattr(mode_servers.ProxyConnectionHandler.__mro__[1], "server_event", noted)
        await door.exchange(b"GET http://a/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert {name for name, _ in engines} >= {"Start", "DataReceived", "HookCompleted"}
        assert not any(opened for _, opened in engines), "plain bytes have no short way"
        agent = Agent(door)
        await agent.open()
        for number in range(4):
            agent.writer.write(agent.records(post(number)))
            await agent.read(1)
            if number == 0:
                engines.clear()  # the first may have come with the end of the handshake
        assert not any(opened for _, opened in engines), "three requests, and the engine saw nothing of them"
        agent.writer.close()
        await agent.writer.wait_closed()
        while not engines or not engines[-1][1]:
            await asyncio.sleep(0)
        assert engines[-1] == ("ConnectionClosed", True)
        assert len(door.keeper.messages) == 5 and door.trips == []


async def test_ln2_a_command_that_is_not_known_ends_the_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_door(tmp_path) as door:
        agent = Agent(door)
        await agent.open()
        agent.writer.write(agent.records(post(1)))
        await agent.read(1)

        def other(self: GateLayer) -> Iterator[commands.Command]:
            yield commands.OpenConnection(self.context.server)

        monkeypatch.setattr(GateLayer, "_serve", other)
        agent.writer.write(agent.records(post(2)))
        assert await agent.read(1) == b""
        assert door.trips == ["command_OpenConnection"]
        assert len(door.keeper.messages) == 1


@pytest.mark.parametrize("seed", range(6))
async def test_ln3_bytes_arrive_once_and_in_order_however_they_are_cut(tmp_path: Path, seed: int) -> None:
    at = random.Random(seed)
    bodies = [at.randbytes(at.choice((0, 1, 300, 40_000))) for _ in range(5)]
    async with open_door(tmp_path) as door:
        agent = Agent(door)
        await agent.open()
        sent = b"".join(post(number, body) for number, body in enumerate(bodies))
        for piece in cut(agent.records(*cut(sent, at)), at):
            agent.writer.write(piece)
            await agent.writer.drain()
            if at.random() < 0.1:
                await asyncio.sleep(0)
        assert (await agent.read(5)).count(b"HTTP/1.1 200 OK\r\n") == 5
        assert [message.body for message in door.keeper.messages] == bodies
        assert [message.head.target for message in door.keeper.messages] == [b"/%d" % n for n in range(5)]
        agent.writer.close()


async def test_ln4_who_does_not_read_is_not_read(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        door.keeper.answer = lambda *_: ok(bytes(60_000))
        agent = Agent(door)
        await agent.open()
        agent.writer.transport.pause_reading()  # type: ignore[attr-defined]
        (handler,) = door.proxy.connections.values()
        there = handler.transports[handler.client].writer.transport
        seen = door.keeper.messages
        while there.get_write_buffer_size() <= 65_536:
            agent.writer.write(agent.records(post(len(seen))))
            before = len(seen)
            while len(seen) == before:
                await asyncio.sleep(0)
        before = len(seen)
        agent.writer.write(agent.records(*[post(number, bytes(16_000)) for number in range(100)]))
        for _ in range(500):
            await asyncio.sleep(0)
        assert len(seen) - before <= 8, "what one read of the engine's brings"
        agent.writer.transport.resume_reading()  # type: ignore[attr-defined]
        while len(seen) < before + 100:
            await agent.drop()
        agent.writer.close()


async def test_a_request_and_the_end_of_its_session_in_one_piece(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        agent = Agent(door)
        await agent.open()
        data = agent.records(post(1))
        with pytest.raises(ssl.SSLWantReadError):
            agent.tls.unwrap()
        agent.writer.write(data + agent._out.read())
        await asyncio.wait_for(agent._reader.read(), 10)  # the engine ends the connection
        assert len(door.keeper.messages) == 1


async def test_bytes_that_are_no_record_end_the_session(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        agent = Agent(door)
        await agent.open()
        agent.writer.write(agent.records(post(1)))
        await agent.read(1)
        agent.writer.write(b"\x17\x03\x03\x00\x20" + b"x" * 32)
        agent.writer.write_eof()
        await asyncio.wait_for(agent._reader.read(), 10)
        assert len(door.keeper.messages) == 1
