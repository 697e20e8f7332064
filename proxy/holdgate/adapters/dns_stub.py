"""The stub resolver's sockets: UDP and TCP, questions that reach it and answers from dns_answer.py.

A name that no map has is a destination that an agent tried: it is counted, and leaves a receipt with the
reason unknown_destination, once per source and name while it is remembered, and not faster than the bound.

Invariants (tests/test_dns_stub.py has one test named after each):
  DS1  Only answers are sent: to where the question came from, from the address that it was sent to.
  DS2  Receipts for names are bounded: one per source and name, and RECEIPTS_PER_S in all.
  DS3  A TCP connection ends after its questions, its deadline or its first malformed one.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from cachetools import TTLCache

from ..config import Address
from ..dns_answer import Reply, answer
from ..network_rules import twin

__all__ = ["DnsStub", "bind_udp"]

type Peer = tuple[str, int]

RECEIPTS_PER_S: Final = 10
REMEMBERED: Final = 4096
REMEMBER_S: Final = 600.0
_BATCH: Final = 64  # questions taken from a socket before other work has its turn
_TCP_QUESTIONS: Final = 16
_TCP_S: Final = 5.0
_IP_PKTINFO: Final = 8  # linux/in.h; the socket module has it from Python 3.14


@dataclass
class DnsStub:
    """`report(source, name, query)` is awaited for names that no map has; `count(name)` is called for all."""

    is_mapped: Callable[[str], bool]
    count: Callable[[str], None]
    report: Callable[[Peer, str, bytes], Awaitable[object]]
    clock: Callable[[], float] = time.monotonic
    seen: TTLCache[tuple[str, str], bool] = field(init=False)
    tasks: set[asyncio.Task[object]] = field(default_factory=set)
    _second: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        self.seen = TTLCache(REMEMBERED, REMEMBER_S, timer=self.clock)

    def reply(self, query: bytes, source: Peer) -> bytes | None:
        """The answer's bytes; what is unmapped is noted on the way."""
        found = answer(query, self.is_mapped)
        if found is None:
            return None
        if not found.mapped:
            self._note(found, query, source)
        return found.data

    def _note(self, found: Reply, query: bytes, source: Peer) -> None:
        self.count(found.name)
        if (source[0], found.name) in self.seen:
            return
        second = int(self.clock())
        used = self._second[1] if self._second[0] == second else 0
        if used >= RECEIPTS_PER_S:
            return
        self._second = second, used + 1
        self.seen[source[0], found.name] = True
        self._spawn(self.report(source, found.name, query))

    def _spawn(self, work: Awaitable[object]) -> None:
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    # -- sockets ----------------------------------------------------------------------------------

    def serve_udp(self, sock: socket.socket) -> None:
        """Answer on a socket from bind_udp(), until it is closed by end_udp()."""
        sock.setblocking(False)
        asyncio.get_running_loop().add_reader(sock, self._readable, sock)

    @staticmethod
    def end_udp(sock: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(sock)
        sock.close()

    def _readable(self, sock: socket.socket) -> None:
        for _ in range(_BATCH):
            try:
                query, ancillary, _flags, source = sock.recvmsg(1024, 256)
            except OSError:
                return
            data = self.reply(query, source[:2])
            if data is not None:
                with contextlib.suppress(OSError):  # an answer that cannot be sent is a lost datagram
                    sock.sendmsg([data], _from_where_it_was_sent(ancillary), 0, source)

    async def serve_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection (RFC 7766: questions with their length in front)."""
        source = writer.get_extra_info("peername")[:2]
        with contextlib.suppress(OSError, EOFError, TimeoutError):
            async with asyncio.timeout(_TCP_S):
                for _ in range(_TCP_QUESTIONS):
                    (size,) = struct.unpack("!H", await reader.readexactly(2))
                    data = self.reply(await reader.readexactly(size), source)
                    if data is None:
                        break
                    writer.write(struct.pack("!H", len(data)) + data)
                    await writer.drain()
        writer.close()

    async def listen(self, address: Address) -> Callable[[], None]:
        """Serve UDP and TCP there, and on its IPv6 twin where this machine has IPv6. Raises OSError."""
        wanted = [address]
        if (other := twin(address)) is not None:
            wanted.append(other)
        ends: list[Callable[[], object]] = []
        for place in wanted:
            try:
                udp = bind_udp(place.host, place.port)
            except OSError:
                if place is address:
                    raise
                continue
            self.serve_udp(udp)
            ends.append(partial(self.end_udp, udp))
            server = await asyncio.start_server(self.serve_tcp, place.host, udp.getsockname()[1])
            ends.append(server.close)

        def end_all() -> None:
            for end in ends:
                end()

        return end_all


def bind_udp(host: str, port: int) -> socket.socket:
    """A socket that knows for each datagram which of our addresses it was sent to."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        sock.bind((host, port))
    except BaseException:
        sock.close()
        raise
    return sock


def _from_where_it_was_sent(ancillary: list[tuple[int, int, bytes]]) -> list[tuple[int, int, bytes]]:
    """Control data for the answer: its source is the question's destination, on any interface."""
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
            _interface, local, _destination = struct.unpack("=I4s4s", data[:12])
            return [(level, kind, struct.pack("=I4s4s", 0, local, b"\0" * 4))]
        if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
            return [(level, kind, data[:16] + struct.pack("=I", 0))]
    return []
