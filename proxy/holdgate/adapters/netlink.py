"""Three questions to the Linux kernel by netlink: who owns a socket, loopback up, every address local.

Invariants (tests/test_netlink.py has one test named after each):
  NL1  owner_uid() names a uid only for a connected socket of this namespace with exactly these two ends.
"""

from __future__ import annotations

import os
import socket
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

__all__ = ["every_address_is_local", "loopback_up", "owner_uid"]

type End = tuple[str, int]  # IP address, port
type _Address = IPv4Address | IPv6Address

_SOCK_DIAG: Final = 4  # NETLINK_SOCK_DIAG, linux/netlink.h
_BY_FAMILY: Final = 20  # SOCK_DIAG_BY_FAMILY, linux/sock_diag.h
_REQUEST, _ACK, _EXCL, _CREATE = 0x1, 0x4, 0x200, 0x400
_NEW_LINK, _NEW_ROUTE, _ERROR = 16, 24, 2
_ALL_STATES: Final = 0xFFFFFFFF
_NO_COOKIE: Final = b"\xff" * 8


def owner_uid(agent: End, ours: End) -> int | None:
    """The uid that owns the other end of a connection, or None: not a socket here, or gone already.

    `agent` is the peer's address and port, `ours` what the peer connected to (before any redirect).
    """
    try:
        source, target = ip_address(agent[0]), ip_address(ours[0])
        family = socket.AF_INET if source.version == 4 else socket.AF_INET6
        # struct inet_diag_req_v2
        question = struct.pack("=BBBxI", family, socket.IPPROTO_TCP, 0, _ALL_STATES)
        question += _ends(family, (source, agent[1]), (target, ours[1]))
        kind, data = _ask(_SOCK_DIAG, _BY_FAMILY, _REQUEST, question + b"\0" * 4 + _NO_COOKIE)
    except (OSError, ValueError):
        return None
    # struct inet_diag_msg, in the socket's own family: IPv4 is spoken over sockets of both (Java's are IPv6).
    if kind != _BY_FAMILY or len(data) < 72 or data[0] not in (socket.AF_INET, socket.AF_INET6):
        return None
    # A lookup can also end at a listener: its other end is not ours.
    if data[4:40] != _ends(data[0], (source, agent[1]), (target, ours[1])):
        return None
    uid, inode = struct.unpack_from("=II", data, 64)
    return uid if inode else None  # without an inode no process has it any more


def _ends(family: int, source: tuple[_Address, int], target: tuple[_Address, int]) -> bytes:
    """Ports and addresses as a socket of this family has them; IPv4 in IPv6 is mapped (RFC 4291 2.5.5.2)."""
    packed = b"".join(_packed(family, address).ljust(16, b"\0") for address, _ in (source, target))
    return struct.pack("!HH", source[1], target[1]) + packed


def _packed(family: int, address: _Address) -> bytes:
    if isinstance(address, IPv6Address):
        plain = address.ipv4_mapped
        return plain.packed if family == socket.AF_INET and plain is not None else address.packed
    return address.packed if family == socket.AF_INET else bytes(10) + b"\xff\xff" + address.packed


def loopback_up() -> None:
    """Raises OSError."""
    # struct ifinfomsg with IFF_UP
    _order(_NEW_LINK, 0, struct.pack("=BxHiII", 0, 0, socket.if_nametoindex("lo"), 1, 1))


def every_address_is_local(family: int) -> None:
    """Route all addresses of a family to loopback, in the table that is asked first. Raises OSError."""
    own = socket.inet_pton(family, "127.0.0.1" if family == socket.AF_INET else "::1")
    table_local, proto_static, scope_host, type_local = 255, 4, 254, 2
    route = struct.pack("=BBBBBBBBI", family, 0, 0, 0, table_local, proto_static, scope_host, type_local, 0)
    attributes = ((4, struct.pack("=I", socket.if_nametoindex("lo"))), (7, own))  # RTA_OIF, RTA_PREFSRC
    for kind, value in attributes:
        route += struct.pack("=HH", 4 + len(value), kind) + value
    _order(_NEW_ROUTE, _CREATE | _EXCL, route)


def _order(kind: int, flags: int, payload: bytes) -> None:
    got, data = _ask(socket.NETLINK_ROUTE, kind, _REQUEST | _ACK | flags, payload)
    (error,) = struct.unpack_from("=i", data)
    if got != _ERROR or error:
        raise OSError(-error, os.strerror(-error))


def _ask(protocol: int, kind: int, flags: int, payload: bytes) -> tuple[int, bytes]:
    """One message there, the first one back: its type and content. Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol) as kernel:
        kernel.settimeout(1.0)
        kernel.send(struct.pack("=IHHII", 16 + len(payload), kind, flags, 1, 0) + payload)
        answer = kernel.recv(65536)
    (got,) = struct.unpack_from("=H", answer, 4)
    return got, answer[16:]
