"""Where a permitted request may be dialled: a mapped name becomes addresses that were all checked.

Asked only after PERMIT, by the dispatcher, for every fresh connection: nothing is cached, and the
dispatcher dials exactly what was returned here (pinning). `ipaddress.is_global` is not used: it is
True for multicast, NAT64, 6to4, IPv4-compatible and site-local addresses. IPv6 is an allow-list:
only global unicast without the ranges that carry or mean something else.

Invariants (tests/test_resolver.py):
  RS1  One denied address refuses the whole answer: a rebinding name gets nothing, not the rest.
  RS2  IPv4 inside IPv6 is judged as IPv4 too; transition ranges are refused even so, until opened.
  RS3  Our own listeners, multicast, broadcast and unspecified addresses cannot be opened.
  RS4  A name in `connect_to` is never resolved; its address is the operator's explicit word.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from types import MappingProxyType
from typing import Final

from ..errors import HoldgateError
from .dnswire import AAAA, A, BadAnswer, build_query, parse_answer, truncated

__all__ = [
    "Address",
    "ConnectTo",
    "Lookup",
    "ResolveError",
    "Resolver",
    "denied",
    "dns_lookup",
    "system_lookup",
]

type IP = IPv4Address | IPv6Address
type Network = IPv4Network | IPv6Network
type Lookup = Callable[[str, int], Awaitable[tuple[str, ...]]]

MAX_ADDRESSES: Final = 16


class ResolveError(HoldgateError):
    """No address, or not only addresses that may be dialled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    family: int  # socket.AF_INET or AF_INET6
    ip: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectTo:
    """Dial there instead; the names (Host, SNI, certificate) stay. No TLS only to loopback."""

    ip: str
    port: int
    tls: bool

    def __post_init__(self) -> None:
        address = ip_address(self.ip)
        if not 0 < self.port < 65536:
            raise ValueError(f"connect_to: {self.port} is not a port")
        if not self.tls and not address.is_loopback:
            raise ValueError(f"connect_to: tls: false is only possible to loopback, not to {self.ip}")


def _table(rows: Mapping[str, str]) -> tuple[tuple[Network, str], ...]:
    return tuple([(ip_network(cidr), name) for cidr, name in rows.items()])


_V4: Final = _table(
    {
        "0.0.0.0/8": "unspecified",
        "10.0.0.0/8": "private",
        "100.64.0.0/10": "shared (CGNAT)",
        "127.0.0.0/8": "loopback",
        "168.63.129.16/32": "metadata",
        "169.254.0.0/16": "link-local (metadata)",
        "172.16.0.0/12": "private",
        "192.0.0.0/24": "reserved (IETF)",
        "192.0.2.0/24": "reserved (documentation)",
        "192.88.99.0/24": "transition (6to4 relay)",
        "192.168.0.0/16": "private",
        "198.18.0.0/15": "reserved (benchmarks)",
        "198.51.100.0/24": "reserved (documentation)",
        "203.0.113.0/24": "reserved (documentation)",
        "224.0.0.0/4": "multicast",
        "255.255.255.255/32": "broadcast",
        "240.0.0.0/4": "reserved",
    }
)
# Names for the message, first hit wins; whatever is outside 2000::/3 is refused in any case.
_V6: Final = _table(
    {
        "::/128": "unspecified",
        "::1/128": "loopback",
        "::ffff:0:0/96": "transition (IPv4-mapped)",
        "::ffff:0:0:0/96": "transition (IPv4-translated)",
        "::/96": "transition (IPv4-compatible)",
        "64:ff9b::/96": "transition (NAT64)",
        "64:ff9b:1::/48": "transition (NAT64)",
        "2001::/32": "transition (Teredo)",
        "2001::/23": "reserved (IETF)",
        "2001:db8::/32": "reserved (documentation)",
        "2002::/16": "transition (6to4)",
        "3fff::/20": "reserved (documentation)",
        "fc00::/7": "private",
        "fe80::/10": "link-local",
        "fec0::/10": "site-local",
        "ff00::/8": "multicast",
    }
)
_SIX_TO_FOUR: Final = IPv6Network("2002::/16")
_TEREDO: Final = IPv6Network("2001::/32")
_NAT64_LOCAL: Final = IPv6Network("64:ff9b:1::/48")
_LAST_32: Final = tuple(map(IPv6Network, ("::ffff:0:0/96", "::ffff:0:0:0/96", "::/96", "64:ff9b::/96")))
_GLOBAL_V6: Final = IPv6Network("2000::/3")
_NEVER: Final = frozenset({"unspecified", "multicast", "broadcast"})
_ANY: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104  a listener's address, not one we bind


def _embedded(ip: IPv6Address) -> tuple[IPv4Address, ...]:
    """The IPv4 addresses that a transition address may lead to."""
    if int(ip) in (0, 1):  # "::" and "::1" only look IPv4-compatible
        return ()
    packed = ip.packed
    if ip in _SIX_TO_FOUR:
        return (IPv4Address(packed[2:6]),)
    if ip in _TEREDO:  # the client's address, inverted
        return (IPv4Address(bytes([byte ^ 0xFF for byte in packed[12:]])),)
    if ip in _NAT64_LOCAL:  # RFC 6052: after a /48 prefix, around a zero byte; or after a /96 one
        return (IPv4Address(packed[6:8] + packed[9:11]), IPv4Address(packed[12:]))
    if _isatap(ip) or any(ip in network for network in _LAST_32):
        return (IPv4Address(packed[12:]),)
    return ()


def _isatap(ip: IPv6Address) -> bool:
    return ip.packed[8:12] in (b"\x00\x00\x5e\xfe", b"\x02\x00\x5e\xfe")


def _range_of(ip: IP) -> str | None:
    for network, name in _V4 if isinstance(ip, IPv4Address) else _V6:
        if ip in network:
            return name
    if isinstance(ip, IPv6Address):
        if _isatap(ip):
            return "transition (ISATAP)"
        if ip not in _GLOBAL_V6:
            return "reserved"
    return None


def denied(
    ip: IP, allow: tuple[Network, ...], own: frozenset[tuple[str, int]] = frozenset(), port: int = 0
) -> str | None:
    """Why `ip` must not be dialled; None: it may be. `allow` opens ranges, never RS3's."""
    if isinstance(ip, IPv6Address) and ip.scope_id is not None:
        return "scoped"
    if (str(ip), port) in own or (ip.is_loopback and any((any_ip, port) in own for any_ip in _ANY)):
        return "own listener"
    for inner in _embedded(ip) if isinstance(ip, IPv6Address) else ():
        why = denied(inner, allow, own, port)
        if why is not None:
            return f"{why} inside IPv6"
    name = _range_of(ip)
    if name is None or (name not in _NEVER and any(ip in network for network in allow)):
        return None
    return name


def system_lookup(executor: ThreadPoolExecutor) -> Lookup:
    """The system's resolver, in threads of its own: a slow name server must not starve other work."""

    async def lookup(host: str, port: int) -> tuple[str, ...]:
        loop = asyncio.get_running_loop()
        try:
            answer = await loop.run_in_executor(
                executor, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            )
        except OSError as error:
            raise ResolveError(f"{host}: {error.strerror or error}") from error
        return tuple(dict.fromkeys([str(row[4][0]) for row in answer]))

    return lookup


class _Datagram(asyncio.DatagramProtocol):
    """Waits for the first datagram that answers `query`; others are dropped (spoofing)."""

    def __init__(self, query: bytes) -> None:
        self._query = query
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, addr: object) -> None:
        # The socket is connected, so the kernel has checked the source already.
        ours = data[:2] == self._query[:2] and data[12 : len(self._query)] == self._query[12:]
        if ours and not self.answer.done():
            self.answer.set_result(data)

    def error_received(self, exc: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(exc)


async def _ask(server: tuple[str, int], host: str, kind: int) -> tuple[str, ...]:
    query = build_query(_mixed_case(host), kind, secrets.randbits(16))
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(lambda: _Datagram(query), remote_addr=server)
    try:
        transport.sendto(query)
        answer = await protocol.answer
    finally:
        transport.close()
    if truncated(answer):
        reader, writer = await asyncio.open_connection(*server)
        try:
            writer.write(len(query).to_bytes(2, "big") + query)
            answer = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
        finally:
            writer.close()
    return parse_answer(answer, query)


def _mixed_case(host: str) -> str:
    # Servers echo the question's letter case: more bits that a spoofed answer must guess.
    return "".join([char.upper() if secrets.randbits(1) else char for char in host])


def dns_lookup(servers: tuple[tuple[str, int], ...], *, try_s: float = 2.0) -> Lookup:
    """A stub resolver over `servers`, asked in order; the first that answers decides."""
    if not servers:
        raise ValueError("a list of DNS servers must not be empty")

    async def lookup(host: str, port: int) -> tuple[str, ...]:
        failure = ""
        for server in servers:
            try:
                async with asyncio.timeout(try_s), asyncio.TaskGroup() as group:
                    v6 = group.create_task(_ask(server, host, AAAA))
                    v4 = group.create_task(_ask(server, host, A))
            except* (OSError, EOFError, BadAnswer) as errors:
                failure = str(errors.exceptions[0]) or type(errors.exceptions[0]).__name__
            else:
                return v6.result() + v4.result()
        raise ResolveError(f"{host}: no DNS server answered ({failure})")

    return lookup


class Resolver:
    """Turns (host, port) into addresses to dial, or refuses."""

    def __init__(
        self,
        *,
        lookup: Lookup,
        allow: tuple[Network, ...] = (),
        own: frozenset[tuple[str, int]] = frozenset(),
        connect_to: Mapping[str, ConnectTo] = MappingProxyType({}),
    ) -> None:
        self._lookup, self._allow, self._own = lookup, allow, own
        for key, target in connect_to.items():
            name, _, port = key.rpartition(":")
            if not name.removeprefix("*.") or not port.isdecimal():
                raise ValueError(f"connect_to: {key!r} is not name:port or *.suffix:port")
            if (target.ip, target.port) in own:
                raise ValueError(f"connect_to: {key} leads to one of our own listeners")
        self._connect_to = dict(connect_to)

    def pinned(self, host: str, port: int) -> ConnectTo | None:
        """The operator's address for this name, exact entries first, then the longest suffix."""
        if not self._connect_to:
            return None
        found = self._connect_to.get(f"{host}:{port}")
        rest = host
        while found is None and "." in rest:
            rest = rest.partition(".")[2]
            found = self._connect_to.get(f"*.{rest}:{port}")
        return found

    def leads_to_us(self, local_ip: str, peer_ip: str, port: int) -> bool:
        """Whether a connected socket ends at a listener of ours (one on 0.0.0.0 has every address)."""
        return (peer_ip, port) in self._own or (
            local_ip == peer_ip and any((any_ip, port) in self._own for any_ip in _ANY)
        )

    async def resolve(self, host: str, port: int) -> tuple[Address, ...]:
        """Addresses to dial, in the resolver's order. Raises ResolveError."""
        target = self.pinned(host, port)
        if target is not None:
            return (_address(ip_address(target.ip), target.port),)
        texts: tuple[str, ...]
        try:
            texts = (str(ip_address(host)),)
        except ValueError:
            texts = await self._lookup(host, port)
        if not texts:
            raise ResolveError(f"{host}: no address")
        addresses = []
        for text in texts:
            try:
                ip = ip_address(text)
            except ValueError:
                raise ResolveError(f"{host}: {text!r} is not an address") from None
            why = denied(ip, self._allow, self._own, port)
            if why is not None:
                raise ResolveError(f"{host}: {ip} must not be dialled: {why}")
            addresses.append(_address(ip, port))
        return tuple(addresses[:MAX_ADDRESSES])


def _address(ip: IP, port: int) -> Address:
    family = socket.AF_INET if isinstance(ip, IPv4Address) else socket.AF_INET6
    return Address(family=family, ip=str(ip), port=port)
