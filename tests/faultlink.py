"""A TCP link that fails as networks do: cut, stalled, or deaf, while both ends believe in it.

with FaultLink(("127.0.0.1", 5432)) as link:
    link.fault(Fault.DEAF)  # what the client sends arrives, no answer comes back: a commit and then silence
    link.fault(Fault.NONE)
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from enum import Enum
from types import TracebackType
from typing import Self

__all__ = ["Fault", "FaultLink"]


class Fault(Enum):
    NONE = "none"
    CUT = "cut"  # open connections are reset, new ones refused at once
    STALLED = "stalled"  # nothing passes, nothing is closed
    DEAF = "deaf"  # requests pass, answers do not


class FaultLink:
    """Listens on loopback and carries each connection to `target`. Its loop runs in a thread of its own."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target, self._fault = target, Fault.NONE
        self._loop, self._ready = asyncio.new_event_loop(), threading.Event()
        self._changed = asyncio.Event()
        self._open: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._run)
        self.port = 0
        self.carried = 0  # connections

    def fault(self, fault: Fault) -> None:
        """From now on; what was held back by STALLED goes on when it ends, what DEAF lost is lost."""
        asyncio.run_coroutine_threadsafe(self._set(fault), self._loop).result(10)

    async def _set(self, fault: Fault) -> None:
        self._fault = fault
        self._changed.set()
        self._changed = asyncio.Event()
        if fault is Fault.CUT:
            for writer in list(self._open):
                _reset(writer)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            if self._fault is Fault.CUT:
                _reset(writer)
                return
            there, back = await asyncio.open_connection(*self._target)
            self._open.add(back)
            self.carried += 1
            try:
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._pump(reader, back, answers=False))
                    both.create_task(self._pump(there, writer, answers=True))
            finally:
                self._open.discard(back)
                back.transport.abort()
        except* (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._open.discard(writer)
            writer.transport.abort()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, answers: bool) -> None:
        while data := await source.read(65_536):
            while self._fault is Fault.STALLED:
                await self._changed.wait()
            if self._fault is Fault.DEAF and answers:
                continue
            sink.write(data)
            await sink.drain()
        with contextlib.suppress(OSError):
            sink.write_eof()
        raise ConnectionResetError  # one end closed: so does the other

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._carry, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Closed by RST, not by FIN."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
