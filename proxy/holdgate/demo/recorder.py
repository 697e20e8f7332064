"""What a stand-in vendor really received, counted below HTTP.

The assertion that matters in every test of a refusal is "the vendor saw nothing": not one connection, not
one byte. So the counter sits between the socket and the HTTP server, where nothing can be missed.

Invariants (tests/test_standins.py):
  V1  Every accepted connection and every received byte is counted, whether or not it is HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Counts", "Recorder", "tap"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What arrived at one vendor."""

    connections: int
    requests: int
    received_bytes: int

    def __sub__(self, earlier: Counts) -> Counts:
        return Counts(
            connections=self.connections - earlier.connections,
            requests=self.requests - earlier.requests,
            received_bytes=self.received_bytes - earlier.received_bytes,
        )

    @property
    def nothing(self) -> bool:
        return self == Counts(connections=0, requests=0, received_bytes=0)


class Recorder:
    """Counts of one vendor, and the requests it read: (method, path, headers, body), in order."""

    def __init__(self) -> None:
        self.connections = 0
        self.received_bytes = 0
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []

    @property
    def counts(self) -> Counts:
        return Counts(
            connections=self.connections,
            requests=len(self.requests),
            received_bytes=self.received_bytes,
        )


class _Tap(asyncio.Protocol):
    """Forwards every event of one connection to the HTTP server's protocol, and counts."""

    def __init__(self, inner: asyncio.Protocol, recorder: Recorder) -> None:
        self._inner = inner
        self._recorder = recorder

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._recorder.connections += 1
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self._recorder.received_bytes += len(data)
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def connection_lost(self, error: Exception | None) -> None:
        self._inner.connection_lost(error)

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()


def tap(make: Callable[[], asyncio.Protocol], recorder: Recorder) -> Callable[[], asyncio.Protocol]:
    """A protocol factory that counts what `make`'s protocols receive."""
    return lambda: _Tap(make(), recorder)
