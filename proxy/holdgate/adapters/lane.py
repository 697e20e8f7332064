"""The short way through the engine: TLS bytes of one connection go to its GateLayer, and its commands back.

Once TLS with the agent stands, every layer between the engine and our GateLayer only hands on what it is
given: three layers, each a generator in a generator, for every event and every command of a request. A
connection of ours skips them for what a request needs (bytes that came, a hook that ended) and leaves the
rest to the engine: what ends or fails, and what comes while the engine itself is at work. Both ways use the
same TLS session and the same GateLayer, so it does not matter which one an event takes. Bytes are also taken
before the stream that the engine reads in a task: that would be one more turn of the event loop.

Invariants (tests/test_lane.py has one test named after each):
  LN1  The short way is taken only when TLS is established and the GateLayer has begun, and only by bytes that
       came and by the GateLayer's own hooks that ended.
  LN2  A command that it does not know is not carried out: a barrier trip, and the connection ends.
  LN3  An agent's bytes reach the GateLayer once and in order, however they are cut into records and reads.
  LN4  While an agent reads no answers, what it sends is left to the engine, which then reads no more either.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, cast

from mitmproxy.proxy import commands, events, layers, mode_servers
from mitmproxy.proxy.tunnel import TunnelState
from OpenSSL import SSL

from .gate_layer import GateLayer

__all__ = ["AgentConnection", "Lane"]

log = logging.getLogger("holdgate.lane")

_READ_BYTES: Final = 16_384  # what one TLS record can hold
_WRITE_BYTES: Final = 65_536

_running: set[asyncio.Task[None]] = set()  # the event loop itself holds tasks weakly


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lane:
    """Where the short way leads. Made when the GateLayer inside TLS begins, in the engine's own step, which
    also hands on whatever came before."""

    tls: layers.ClientTLSLayer
    gate: GateLayer
    hooked: Callable[[commands.StartHook], Awaitable[None]]  # the addon's dispatcher
    barrier_trip: Callable[[str], None]

    @property
    def is_open(self) -> bool:
        return self.tls.tunnel_state is TunnelState.OPEN and self.tls._paused is None

    def asked(self, hook: commands.StartHook) -> bool:
        """Whether it is the GateLayer that waits for this hook: the layer that waits puts itself there."""
        waits: object = hook.blocking
        return waits is self.gate


class _Tap(asyncio.Protocol):
    """Before the stream that the engine reads: offers bytes to the short way first."""

    def __init__(self, stream: asyncio.Protocol, takes: Callable[[bytes], bool]) -> None:
        self._stream, self._takes = stream, takes

    def data_received(self, data: bytes) -> None:
        if not self._takes(data):
            self._stream.data_received(data)

    def eof_received(self) -> bool | None:
        return self._stream.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stream.connection_lost(exc)

    def pause_writing(self) -> None:
        self._stream.pause_writing()

    def resume_writing(self) -> None:
        self._stream.resume_writing()


class AgentConnection(mode_servers.ProxyConnectionHandler):
    """An agent's connection: the engine's own handler, and beside it the short way."""

    lane: Lane | None = None
    _streamed = 0  # bytes that the stream was given, less those that the engine is through with

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)  # type: ignore[no-untyped-call]
        io = self.transports[self.client]
        if isinstance(io.writer, asyncio.StreamWriter):
            transport = io.writer.transport
            transport.set_protocol(_Tap(cast(asyncio.Protocol, transport.get_protocol()), self._take))

    def _take(self, data: bytes) -> bool:
        """Handle bytes in the step in which they came, without the stream and its task. False: not now."""
        lane = self.lane
        if lane is None or self._streamed or not lane.is_open or self._server_event_lock.locked():
            self._streamed += len(data)
            return False
        io = self.transports.get(self.client)
        if io is None or not isinstance(io.writer, asyncio.StreamWriter) or _is_behind(io.writer):
            self._streamed += len(data)
            return False
        self.timeout_watchdog.register_activity()
        if self._receive(lane, data):
            _start(super().server_event(events.DataReceived(self.client, b"")))
        return True

    async def server_event(self, event: events.Event) -> None:
        try:
            await self._event(event)
        finally:
            if isinstance(event, events.DataReceived):
                self._streamed -= len(event.data)

    async def _event(self, event: events.Event) -> None:
        lane = self.lane
        # The lock is held while the engine is in an event: a hook that ends within it waits there.
        if lane is None or not lane.is_open or self._server_event_lock.locked():
            await super().server_event(event)
        elif isinstance(event, events.HookCompleted) and lane.asked(event.command):
            self._carry_out(lane, event)
        elif isinstance(event, events.DataReceived):
            self.timeout_watchdog.register_activity()
            if self._receive(lane, event.data):
                await super().server_event(events.DataReceived(event.connection, b""))
        else:
            await super().server_event(event)

    async def drain_writers(self) -> None:
        """Wait for room to write, which there is nearly always."""
        io = self.transports.get(self.client)
        if io is not None and isinstance(io.writer, asyncio.StreamWriter) and not _is_behind(io.writer):
            return
        await super().drain_writers()  # type: ignore[no-untyped-call]

    def _receive(self, lane: Lane, data: bytes) -> bool:
        """Hand on what was decrypted. True when the engine has to look: the session ended, or speaks."""
        session, plain, ended = lane.tls.tls, b"", False
        try:
            session.bio_write(data)
            while True:
                plain += session.recv(_READ_BYTES)
        except SSL.WantReadError:
            pass
        except SSL.Error:  # told again to whoever reads next: the engine
            ended = True
        if plain:
            self._carry_out(lane, events.DataReceived(self.client, plain))
        return ended or not plain

    def _carry_out(self, lane: Lane, event: events.Event) -> None:
        try:
            # All of them first: a hook that ends at once brings the next event before this one is through.
            for command in list(lane.gate.handle_event(event)):
                self._do(lane, command)
        except Exception:
            log.exception("an event of an agent's connection failed")

    def _do(self, lane: Lane, command: commands.Command) -> None:
        if isinstance(command, commands.StartHook):
            _start(self._hook(lane, command))
        elif isinstance(command, commands.SendData) and command.connection is self.client:
            self._send(lane.tls.tls, command.data)
        elif isinstance(command, commands.CloseConnection) and command.connection is self.client:
            if self.client in self.transports:
                half = isinstance(command, commands.CloseTcpConnection) and command.half_close
                self.close_connection(self.client, half)
        else:
            lane.barrier_trip(f"command_{type(command).__name__}")
            if self.client in self.transports:
                self.close_connection(self.client)

    def _send(self, session: SSL.Connection, data: bytes) -> None:
        io = self.transports.get(self.client)
        if io is None or not isinstance(io.writer, asyncio.StreamWriter) or io.writer.is_closing():
            return  # closed already
        try:
            session.sendall(data)
        except (SSL.ZeroReturnError, SSL.SysCallError):
            pass  # the agent is gone; what it still sends is read
        try:
            while len(out := session.bio_read(_WRITE_BYTES)) == _WRITE_BYTES:
                io.writer.write(out)
            io.writer.write(out)
        except SSL.WantReadError:
            pass

    async def _hook(self, lane: Lane, hook: commands.StartHook) -> None:
        with self.timeout_watchdog.disarm():
            await lane.hooked(hook)
        await self.server_event(events.HookCompleted(hook))


def _start(work: Coroutine[Any, Any, None]) -> None:
    """Begin at once, in this step of the event loop (the engine's tasks are eager)."""
    task = asyncio.get_running_loop().create_task(work)
    if not task.done():
        _running.add(task)
        task.add_done_callback(_running.discard)


def _is_behind(writer: asyncio.StreamWriter) -> bool:
    """Whether bytes wait that were written, or nothing more can be."""
    return writer.transport.is_closing() or writer.transport.get_write_buffer_size() > 0
