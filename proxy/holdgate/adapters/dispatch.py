"""The outer door: a Release becomes one exchange with an upstream. Nothing else opens a connection.

One attempt, one outcome: no retry, no resend, no redirect. What is sent is built from the frozen
request in the Release, whose wire digest is checked again before anything is dialled. Until the
first byte was handed to the transport a failure is `not_sent`; after that it is `unknown`.

Invariants (tests/test_dispatch.py):
  DP1  An expired, altered or badly framed Release sends nothing, not even a DNS query or a SYN.
  DP2  Each dispatch writes its request at most once: in one piece, or head and large body, without a pause.
  DP3  Only addresses that the resolver returned for this connection are dialled, and the peer is checked.
  DP4  A connection is reused only after an exactly framed exchange, with no byte waiting.
  DP5  Before the first byte: NOT_SENT, 502, or 504 at the connect deadline. After: UNKNOWN, 502 or 504.
  DP6  A cancelled or abandoned exchange closes its connection.
  DP7  No other module opens outgoing connections (a test walks the source).
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from ipaddress import ip_address
from typing import Final

import certifi

from ..answer import DispatchError, Exchange
from ..errors import HoldgateError
from ..http1 import write_request
from ..http1_client import ClientReader, WireError
from ..ledger import OutcomeStatus
from ..limits import Limits
from ..release import Release
from .exchange import UpstreamExchange, unknown
from .pool import Pool, PoolKey, Wire
from .resolver import Address, ResolveError, Resolver

__all__ = ["HttpDispatcher", "tls_context"]

EYEBALL_DELAY_S: Final = 0.25
CLOSE_S: Final = 1.0
COPY_BYTES: Final = 65_536
_NOT_SENT: Final = OutcomeStatus.NOT_SENT
# Hop-by-hop or framing headers that would let the upstream read another message than ours.
_NEVER_SENT: Final = frozenset(
    {b"transfer-encoding", b"connection", b"upgrade", b"expect", b"te", b"trailer", b"keep-alive"}
    | {b"proxy-authorization", b"proxy-connection", b"http2-settings"}
)
_READ: Final = _NEVER_SENT | {b"host", b"content-length", b"authorization"}


def tls_context(ca_file: str | None = None) -> ssl.SSLContext:
    """Verifies host names against the public roots, and `ca_file`'s too. TLS 1.2 or later, HTTP/1.1 only."""
    # Not create_default_context(): it obeys SSLKEYLOGFILE, and no environment variable may matter here.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.hostname_checks_common_name = False
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.load_verify_locations(cafile=certifi.where())
    if ca_file is not None:
        context.load_verify_locations(cafile=ca_file)
    context.set_alpn_protocols(["http/1.1"])
    return context


def _not_sent(http: int, detail: str) -> DispatchError:
    return DispatchError(_NOT_SENT, http, detail)


class HttpDispatcher:
    """Implements answer.Dispatcher over TCP and TLS. Belongs to the event loop that it is made in."""

    def __init__(
        self,
        *,
        resolver: Resolver,
        limits: Limits,
        clock_us: Callable[[], int],
        public_tls: ssl.SSLContext,
        private_tls: ssl.SSLContext,
        generation: int = 0,
        on_event: Callable[[str], None] | None = None,
    ) -> None:
        """`private_tls` (with upstream.ca_file) is used only for names in connect_to.

        `on_event` is called with "connect", "reuse" or "refused" for metrics.
        """
        self._resolver, self._limits, self._clock_us = resolver, limits, clock_us
        self._public_tls, self._private_tls = public_tls, private_tls
        self._generation = generation
        self._on_event = on_event
        self._loop = asyncio.get_running_loop()
        self._pool = Pool(self._loop, limits.idle_s)
        self._wires: set[Wire] = set()
        self._closed = False
        self._empty: asyncio.Future[None] | None = None

    def renew(self, generation: int) -> None:
        """A new configuration is active: idle connections made under the old one are closed."""
        self._generation = generation
        self._pool.clear()

    async def dispatch(self, release: Release) -> Exchange:
        started_s = self._loop.time()
        try:
            if len(release.request.body) > COPY_BYTES:  # its digest takes milliseconds: not on the loop
                data = await asyncio.to_thread(self._request_bytes, release)
            else:
                data = self._request_bytes(release)
        except DispatchError:
            self._event("refused")
            raise
        deadlines = release.recognised.deadlines
        total_s = started_s + (deadlines.total_s or self._limits.upstream_total_s)
        connect_s = min(started_s + (deadlines.connect_s or self._limits.connect_s), total_s)
        request = release.request
        key: PoolKey = (
            release.agent,
            release.recognised.principal,
            request.scheme,
            request.host,
            request.port,
            self._generation,
        )
        wire = self._pool.take(key)
        self._event("connect" if wire is None else "reuse")
        if wire is None:
            wire = await self._connect(request.scheme, request.host, request.port, connect_s)
            self._check_time(release, wire)
        first_byte_s = deadlines.first_byte_s or self._limits.first_byte_s
        return await self._exchange(wire, key, request.method, data, first_byte_s, total_s)

    def _request_bytes(self, release: Release) -> tuple[bytes, ...]:
        """Everything that can be refused before a connection is touched. Raises DispatchError."""
        if self._closed:
            raise _not_sent(502, "the dispatcher is closed")
        self._check_time(release, None)
        try:
            release.verify()
        except HoldgateError as error:
            raise _not_sent(502, str(error)) from None
        request, headers = release.request, release.recognised.headers
        found: dict[bytes, bytes] = {}
        for name, value in headers:
            lower = name.lower()
            if lower in _READ:
                if lower in found or lower in _NEVER_SENT:
                    raise _not_sent(502, f"{lower.decode()} must not be sent, or not twice")
                found[lower] = value
        if found.get(b"authorization", b"").lower().startswith((b"ntlm", b"negotiate")):
            raise _not_sent(502, "this Authorization scheme authenticates the connection")
        body = request.body
        length = found.get(b"content-length", b"" if body else b"0")
        if b"host" not in found or length != b"%d" % len(body):
            raise _not_sent(502, "Host or Content-Length does not fit the request")
        try:
            if len(body) <= COPY_BYTES:
                return (write_request(request.method, request.raw_target, headers, body),)
            # A large body is held once, not once more behind its head.
            return write_request(request.method, request.raw_target, headers, b""), body
        except ValueError as error:
            raise _not_sent(502, str(error)) from None

    def _check_time(self, release: Release, wire: Wire | None) -> None:
        if self._clock_us() > release.expires_us:
            if wire is not None:
                wire.abort()
            raise _not_sent(502, "the permit expired before it was used")

    async def _exchange(
        self,
        wire: Wire,
        key: PoolKey,
        method: str,
        data: tuple[bytes, ...],
        first_byte_s: float,
        total_s: float,
    ) -> Exchange:
        transport = wire.transport
        if transport is None or wire.ended or wire.lost or transport.is_closing() or self._closed:
            wire.abort()
            raise _not_sent(502, "the upstream closed or spoke before the request")
        reader = wire.reader = ClientReader(method, self._limits)
        try:
            for part in data:  # from here on the effect is unknown until the answer says
                transport.write(part)
            if wire.write_paused:
                wire.arm(total_s)
                while wire.write_paused and not reader.buffered_bytes and not self._over(wire):
                    await wire.changed()
            wire.arm(min(self._loop.time() + first_byte_s, total_s))
            while (head := reader.head()) is None:
                if wire.expired:
                    raise unknown(504, "no complete response head before the deadline")
                if self._over(wire):
                    raise unknown(502, "the upstream closed before the end of the response head")
                await wire.changed()
        except WireError as error:
            wire.abort()
            raise unknown(502, str(error)) from None
        except BaseException:
            wire.abort()
            raise
        wire.arm(total_s)
        return UpstreamExchange(wire, reader, head, lambda reuse: self._ended(wire, key, reuse))

    @staticmethod
    def _over(wire: Wire) -> bool:
        return wire.ended or wire.lost or wire.expired

    def _ended(self, wire: Wire, key: PoolKey, reuse: bool) -> None:
        wire.disarm()
        wire.resume_reading()
        wire.reader = None
        if reuse and not self._closed and key[-1] == self._generation:
            self._pool.put(key, wire)
        else:
            wire.abort()

    async def _connect(self, scheme: str, host: str, port: int, deadline_s: float) -> Wire:
        """A new verified connection. Every failure is NOT_SENT: nothing of the request was written."""
        try:
            async with asyncio.timeout_at(deadline_s):
                addresses = await self._resolver.resolve(host, port)
                sock = await _connect_first(self._loop, addresses)
                try:
                    self._check_peer(sock, addresses)
                    return await self._open(sock, scheme, host, port)
                except BaseException:
                    sock.close()
                    raise
        except TimeoutError:
            raise _not_sent(504, f"no connection to {host}:{port} before the deadline") from None
        except (ResolveError, OSError, ValueError) as error:
            raise _not_sent(502, f"{host}:{port}: {error or type(error).__name__}") from None

    def _check_peer(self, sock: socket.socket, addresses: tuple[Address, ...]) -> None:
        peer, local = sock.getpeername(), sock.getsockname()
        if (str(ip_address(peer[0])), peer[1]) not in [(address.ip, address.port) for address in addresses]:
            raise ResolveError(f"connected to {peer[0]}, which was not resolved")
        if self._resolver.leads_to_us(local[0], peer[0], peer[1]):
            raise ResolveError("the address is one of our own listeners")

    async def _open(self, sock: socket.socket, scheme: str, host: str, port: int) -> Wire:
        target = self._resolver.pinned(host, port)
        context: ssl.SSLContext | None = None
        if scheme == "https" and (target is None or target.tls):
            context = self._public_tls if target is None else self._private_tls
        wire = Wire(self._loop, self._gone)
        self._wires.add(wire)
        try:
            transport, _ = await self._loop.create_connection(
                lambda: wire, sock=sock, ssl=context, server_hostname=host if context is not None else None
            )
        except BaseException:
            self._gone(wire)
            raise
        tls = transport.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() not in (None, "http/1.1"):
            wire.abort()
            raise ResolveError("the upstream chose a protocol that was not offered")
        return wire

    def _gone(self, wire: Wire) -> None:
        self._wires.discard(wire)
        if self._empty is not None and not self._wires and not self._empty.done():
            self._empty.set_result(None)

    def _event(self, name: str) -> None:
        if self._on_event is not None:
            self._on_event(name)

    async def close(self) -> None:
        """Close all connections, those in use too. No dispatch succeeds afterwards."""
        self._closed = True
        self._pool.clear()
        for wire in list(self._wires):
            wire.abort()
        if self._wires:
            self._empty = self._loop.create_future()
            await asyncio.wait([self._empty], timeout=CLOSE_S)


async def _connect_first(loop: asyncio.AbstractEventLoop, addresses: tuple[Address, ...]) -> socket.socket:
    """The first address that accepts: a new attempt every EYEBALL_DELAY_S, or when one failed (RFC 8305)."""
    if len(addresses) == 1:
        return await _connect_one(loop, addresses[0])
    running: set[asyncio.Task[socket.socket]] = set()
    failure: BaseException = OSError("no address")
    winner: socket.socket | None = None
    waiting = _interleaved(addresses)
    try:
        while winner is None and (waiting or running):
            if waiting:
                running.add(loop.create_task(_connect_one(loop, waiting.pop(0))))
            delay_s = EYEBALL_DELAY_S if waiting else None
            done, running = await asyncio.wait(running, timeout=delay_s, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                error = task.exception()
                if error is not None:
                    failure = error
                elif winner is None:
                    winner = task.result()
                else:
                    task.result().close()
    finally:
        for task in running:
            task.cancel()
            task.add_done_callback(_close_late)
    if winner is None:
        raise failure
    return winner


def _interleaved(addresses: tuple[Address, ...]) -> list[Address]:
    """Families alternate, beginning with the resolver's first choice."""
    first = [address for address in addresses if address.family == addresses[0].family]
    other = [address for address in addresses if address.family != addresses[0].family]
    order: list[Address] = []
    while first or other:
        order += first[:1] + other[:1]
        first, other = first[1:], other[1:]
    return order


def _close_late(task: asyncio.Task[socket.socket]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()


async def _connect_one(loop: asyncio.AbstractEventLoop, address: Address) -> socket.socket:
    sock = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await loop.sock_connect(sock, (address.ip, address.port))
    except BaseException:
        sock.close()
        raise
    return sock
