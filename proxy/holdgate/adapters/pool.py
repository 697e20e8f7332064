"""One upstream connection and the pool of idle ones: asyncio transports under the strict wire.

A Wire carries one exchange at a time and tells the dispatcher what happened to it; it decides
nothing. While it is idle nothing may happen to it: any byte, end or error removes and closes it.

Invariants (tests/test_dispatch.py):
  P1  A byte that arrives while no exchange owns the connection closes it; it answers nobody.
  P2  Connections are shared only within one key: agent, principal, origin, configuration generation.
  P3  An upstream that sends faster than the agent reads is paused; at most about UNREAD_BYTES wait.
"""

from __future__ import annotations

import asyncio
import math
import select
import ssl
from collections.abc import Callable
from typing import Final, cast

from ..http1_client import ClientReader

__all__ = ["MAX_IDLE", "MAX_IDLE_PER_KEY", "UNREAD_BYTES", "Pool", "PoolKey", "Wire"]

type PoolKey = tuple[str, str | None, str, str, int, int]

UNREAD_BYTES: Final = 262_144
MAX_IDLE_PER_KEY: Final = 64
MAX_IDLE: Final = 512


class Wire(asyncio.Protocol):
    """One connection. `reader` is set exactly while an exchange owns it."""

    __slots__ = (
        "_deadline_s", "_gone", "_loop", "_poll", "_read_paused", "_timer", "_waiter", "ended", "expired",
        "idle_until_s", "lost", "on_stray", "reader", "transport", "write_paused",
    )  # fmt: skip

    def __init__(self, loop: asyncio.AbstractEventLoop, gone: Callable[[Wire], None]) -> None:
        self._loop, self._gone = loop, gone
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._deadline_s = math.inf
        self._poll: select.poll | None = None
        self._read_paused = False
        self.transport: asyncio.Transport | None = None
        self.reader: ClientReader | None = None
        self.on_stray: Callable[[Wire], None] | None = None
        self.ended = False  # the upstream closed its side in an orderly way
        self.lost = False  # the connection is gone
        self.expired = False  # the deadline set by arm() has passed
        self.write_paused = False
        self.idle_until_s = 0.0

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not isinstance: uvloop's transports only look like asyncio's.
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        reader = self.reader
        if reader is None:
            self._stray()
            return
        reader.feed(data)
        if reader.buffered_bytes > UNREAD_BYTES and not self._read_paused and self.transport is not None:
            self._read_paused = True
            self.transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        if self._truncated():
            self.lost = True
        else:
            self.ended = True
        if self.reader is None:
            self._stray()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._stop_timer()
        if self.reader is None:
            self._stray()
        self._wake()
        self._gone(self)

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.write_paused = False
        self._wake()

    # for the dispatcher

    @property
    def fresh(self) -> bool:
        """Nothing has happened to it: no end, no error, no waiting byte, not even in the kernel."""
        transport = self.transport
        if self.ended or self.lost or transport is None or transport.is_closing():
            return False
        # The event loop may not have seen a FIN yet: ask the kernel, so that no request is lost to it.
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
        return not self._poll.poll(0)

    def arm(self, when_s: float) -> None:
        """Set the one deadline that counts now (event loop time)."""
        self.expired = False
        self._deadline_s = when_s
        # A timer that fires too early moves itself, so a busy connection needs no timer per exchange.
        if self._timer is not None and self._timer.when() > when_s:
            self._timer.cancel()
            self._timer = None
        if self._timer is None and when_s != math.inf:
            self._timer = self._loop.call_at(when_s, self._tick)

    def disarm(self) -> None:
        self._deadline_s = math.inf

    def _tick(self) -> None:
        self._timer = None
        if self._loop.time() < self._deadline_s:
            self.arm(self._deadline_s)
            return
        self.expired = True
        self._wake()

    async def changed(self) -> None:
        """Wait until bytes, an end, room for writing or the deadline came. Aborts when cancelled."""
        if self._waiter is not None:
            raise RuntimeError("two tasks read one connection")
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        except BaseException:
            self.abort()
            raise
        finally:
            self._waiter = None

    def resume_reading(self) -> None:
        if self._read_paused and self.transport is not None and not self.lost:
            self._read_paused = False
            self.transport.resume_reading()

    def abort(self) -> None:
        """Close at once, whatever is buffered. Idempotent, never blocks."""
        self._stop_timer()
        if self.transport is not None:
            self.transport.abort()

    def _stop_timer(self) -> None:
        self.disarm()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _truncated(self) -> bool:
        """Whether TLS ended without close_notify: asyncio hides that, but anyone on the path can do it."""
        tls = self.transport.get_extra_info("ssl_object") if self.transport is not None else None
        if tls is None:
            return False
        try:
            return bool(tls.read(1))
        except ssl.SSLError:
            return True

    def _stray(self) -> None:
        self.abort()
        if self.on_stray is not None:
            self.on_stray(self)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Pool:
    """Idle connections by key, newest first."""

    def __init__(self, loop: asyncio.AbstractEventLoop, idle_s: float) -> None:
        self._loop, self._idle_s = loop, idle_s
        self._idle: dict[PoolKey, list[Wire]] = {}
        self._count = 0
        self._sweeper: asyncio.TimerHandle | None = None

    def take(self, key: PoolKey) -> Wire | None:
        """A connection on which nothing has happened since it became idle, None when there is none."""
        wires = self._idle.get(key)
        while wires:
            wire = wires[-1]
            usable = wire.idle_until_s > self._loop.time() and wire.fresh
            self._remove(key, wire)
            if usable:
                return wire
            wire.abort()
        return None

    def put(self, key: PoolKey, wire: Wire) -> None:
        """Keep a connection whose exchange ended exactly; a full pool closes it instead."""
        wires = self._idle.setdefault(key, [])
        if len(wires) >= MAX_IDLE_PER_KEY or self._count >= MAX_IDLE:
            wire.abort()
            if not wires:
                del self._idle[key]
            return
        wire.idle_until_s = self._loop.time() + self._idle_s
        wire.on_stray = lambda stray: self._remove(key, stray)
        wires.append(wire)
        self._count += 1
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(self._idle_s, self._sweep)

    def clear(self) -> None:
        """Close every idle connection."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for wire in [wire for wires in self._idle.values() for wire in wires]:
            wire.on_stray = None
            wire.abort()
        self._idle.clear()
        self._count = 0

    def _remove(self, key: PoolKey, wire: Wire) -> None:
        wires = self._idle.get(key)
        if wires is None or wire not in wires:
            return
        wire.on_stray = None
        wires.remove(wire)
        self._count -= 1
        if not wires:
            del self._idle[key]

    def _sweep(self) -> None:
        self._sweeper = None
        now = self._loop.time()
        for key, wires in list(self._idle.items()):
            for wire in [wire for wire in wires if wire.idle_until_s <= now]:
                self._remove(key, wire)
                wire.abort()
        if self._idle:
            self._sweeper = self._loop.call_later(self._idle_s, self._sweep)
