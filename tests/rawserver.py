"""Requests as raw bytes: read off a socket exactly as they were sent, and a server that keeps them.

Used by the test that replays recorded clients, and by the program that records them (tests/capture/clients).
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

__all__ = ["RawRequest", "RawServer", "parse", "requests_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RawRequest:
    """One request as it was on the wire; `body` has its transfer coding off."""

    raw: bytes
    body: bytes

    @property
    def lines(self) -> list[bytes]:
        return self.raw.partition(b"\r\n\r\n")[0].split(b"\r\n")

    @property
    def method(self) -> bytes:
        return self.lines[0].partition(b" ")[0]

    @property
    def target(self) -> bytes:
        return self.lines[0].split(b" ")[1]

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        pairs = [line.partition(b":") for line in self.lines[1:]]
        return [(name, value.strip(b" \t")) for name, _, value in pairs]

    def header(self, name: bytes) -> bytes:
        """The first value of that name (lower case), or nothing."""
        return next((value for each, value in self.headers if each.lower() == name), b"")


class _Source:
    """Bytes from a socket, or from memory where `stream` is None."""

    def __init__(self, stream: socket.socket | None, data: bytes = b"") -> None:
        self._stream = stream
        self.data = data

    def more(self) -> bool:
        piece = b"" if self._stream is None else self._stream.recv(262_144)
        self.data += piece
        return bool(piece)

    def need(self, size: int) -> None:
        while len(self.data) < size:
            if not self.more():
                raise ConnectionError("closed in the middle of a request")

    def find(self, what: bytes, start: int) -> int:
        while (at := self.data.find(what, start)) < 0:
            if not self.more():
                raise ConnectionError("closed in the middle of a request")
        return at

    def send(self, data: bytes) -> None:
        if self._stream is not None:
            self._stream.sendall(data)


def requests_of(stream: socket.socket) -> Iterator[RawRequest]:
    """Every request of one connection. An expectation is answered 100. Raises OSError."""
    source = _Source(stream)
    while source.data or source.more():
        yield _next(source)


def parse(raw: bytes) -> RawRequest:
    """A recorded request. Raises ConnectionError where it is not complete."""
    return _next(_Source(None, raw))


def _next(source: _Source) -> RawRequest:
    end = source.find(b"\r\n\r\n", 0) + 4
    head = source.data[:end]
    if re.search(rb"(?im)^expect: 100-continue\r?$", head):
        source.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    length = re.search(rb"(?im)^content-length: *(\d+)\r?$", head)
    if re.search(rb"(?im)^transfer-encoding: *chunked\r?$", head):
        body, at = _chunks(source, end)
    else:
        at = end + (int(length[1]) if length else 0)
        source.need(at)
        body = source.data[end:at]
    raw, source.data = source.data[:at], source.data[at:]
    return RawRequest(raw=raw, body=body)


def _chunks(source: _Source, at: int) -> tuple[bytes, int]:
    body = bytearray()
    while True:
        line = source.find(b"\r\n", at)
        size = int(source.data[at:line].partition(b";")[0], 16)
        source.need(line + 2 + size + 2)
        body += source.data[line + 2 : line + 2 + size]
        at = line + 2 + size + 2
        if size == 0:
            return bytes(body), at


def empty(request: RawRequest) -> bytes:
    """200 and `{}`."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n"
    return head + (b"" if request.method == b"HEAD" else b"{}")


class RawServer:
    """Plain HTTP/1.1 on a free loopback port: keeps every request, answers as told."""

    def __init__(self, answer: Callable[[RawRequest], bytes] = empty) -> None:
        self._answer = answer
        self.requests: list[RawRequest] = []
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                for request in requests_of(connection):
                    self.requests.append(request)
                    connection.sendall(self._answer(request))
            except OSError:
                return
