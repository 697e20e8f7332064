"""One upstream exchange after its head: body pieces to whoever pulls, the connection back at its exact end.

Invariants (tests/test_dispatch.py):
  X1  A body that was cut raises, now and on every later call; it never ends like a complete one.
  X2  read() and drain() return each byte once, in order, and drain() never waits for a stream.
  X3  The connection goes back only after an exactly framed, fully sent and fully read exchange.
"""

from __future__ import annotations

from collections.abc import Callable

from ..answer import DispatchError
from ..http1_client import ClientReader, WireError
from ..ledger import OutcomeStatus
from ..message import ResponseHead
from .pool import Wire

__all__ = ["UpstreamExchange", "unknown"]


def unknown(http: int, detail: str) -> DispatchError:
    """A failure after the first byte was handed over: the effect is not known."""
    return DispatchError(OutcomeStatus.UNKNOWN, http, detail)


class UpstreamExchange:
    """An Exchange whose head has arrived. It gives its connection back by itself when it ends exactly."""

    __slots__ = ("_ended", "_error", "_kept", "_reader", "_wire", "head", "length")

    def __init__(
        self, wire: Wire, reader: ClientReader, head: ResponseHead, ended: Callable[[bool], None]
    ) -> None:
        self._wire, self._reader = wire, reader
        self._ended: Callable[[bool], None] | None = ended
        self._error: DispatchError | None = None
        self._kept = b""  # taken off the connection, not returned yet
        self.head = head
        self.length = reader.length
        try:
            # A short body came with its head: its connection is free before anybody reads it.
            self._kept = self._take()
        except DispatchError:
            pass  # it is in _error: the head is good, the first read() raises

    async def read(self) -> bytes:
        if self._kept:
            data, self._kept = self._kept, b""
            return data
        while True:
            data = self._take()
            if data or self._ended is None:
                return data
            await self._wire.changed()

    async def drain(self, limit_bytes: int) -> bytes | None:
        if self.length is not None and self.length > limit_bytes and self._ended is not None:
            return None
        parts = [self._kept]
        size = len(self._kept)
        while True:
            parts.append(data := self._take())
            size += len(data)
            if self._ended is None and size <= limit_bytes:
                self._kept = b""
                return b"".join(parts)
            # Of an announced length the rest is on its way; of a stream nobody knows: never wait for it.
            if size > limit_bytes or (not data and self.length is None):
                self._kept = b"".join(parts)
                return None
            if not data:
                await self._wire.changed()

    def abandon(self) -> None:
        if self._ended is not None:
            self._error = unknown(502, "the exchange was abandoned")
            self._kept = b""
            self._close(reuse=False)

    def _take(self) -> bytes:
        """Bytes that are here; ends the exchange with its last byte. Raises DispatchError on a cut."""
        if self._error is not None:
            raise self._error  # a cut answer never looks complete afterwards
        if self._ended is None:
            return b""
        wire, reader = self._wire, self._reader
        try:
            data = reader.read()
            # Who takes what keeps coming slowly gets no more time than who waits for it.
            if wire.expired and not reader.done and not (data and wire.ended):
                raise unknown(504, "the total deadline passed")
            if not data and not reader.done:
                if wire.lost and not wire.ended:
                    raise unknown(502, "the connection broke in the middle of the response body")
                if wire.ended:
                    reader.eof()
        except WireError as error:
            raise self._fail(unknown(502, str(error))) from None
        except DispatchError as error:
            raise self._fail(error) from None
        if reader.done:
            self._finish()
        else:
            wire.resume_reading()
        return data

    def _fail(self, error: DispatchError) -> DispatchError:
        self._error = error
        self._close(reuse=False)
        return error

    def _finish(self) -> None:
        wire = self._wire
        transport = wire.transport
        sent = transport is not None and not transport.is_closing() and not transport.get_write_buffer_size()
        self._close(reuse=sent and self._reader.reusable and not wire.ended and not wire.lost)

    def _close(self, *, reuse: bool) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(reuse)
