"""Readers for the values of holdgate.yaml: one node in, one typed value out, or ConfigError at its line.

Invariants (tests/test_config.py):
  V1  No reader returns a value that is only nearly right: ports, CIDR blocks, digests and names are exact.
"""

from __future__ import annotations

import pwd
import re
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urlsplit

from .agents import Network
from .strictyaml import Node

__all__ = [
    "IDENTIFIER",
    "Address",
    "Ca",
    "NetworkMode",
    "read_address",
    "read_ca",
    "read_digest",
    "read_interfaces",
    "read_matching",
    "read_names",
    "read_networks",
    "read_optional_address",
    "read_path",
    "read_url",
    "read_users",
    "split_url",
]

IDENTIFIER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")
_HEX_DIGEST: Final = re.compile(r"[0-9a-f]{64}\Z")
# As the kernel names them (15 characters), or a prefix and `*`.
_INTERFACE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}\*?\Z")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Address:
    """An IP address and a port. Port 0 (listeners only) means any free one."""

    host: str  # IP address without brackets
    port: int

    @property
    def ip(self) -> IPv4Address | IPv6Address:
        return ip_address(self.host)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ca:
    """How the interception CA is made and rotated."""

    constrain: bool  # vouch for mapped hosts only
    overlap_h: int  # how long agents have to fetch a new root before it signs, and an old one still counts


class NetworkMode(StrEnum):
    """How the packets of agents behind an interface reach listen.transparent."""

    REDIRECT = "redirect"  # their destination is rewritten (conntrack remembers it)
    TPROXY = "tproxy"  # they are delivered as they are, to a socket that somebody privileged opened


def read_ca(node: Node | None) -> Ca:
    keys = {} if node is None else node.mapping(optional=("constrain", "overlap_h"), what="ca")
    constrain = keys["constrain"].boolean("ca.constrain") if "constrain" in keys else False
    hours = keys["overlap_h"].integer("ca.overlap_h", low=1, high=8760) if "overlap_h" in keys else 168
    return Ca(constrain=constrain, overlap_h=hours)


def read_path(node: Node, base: Path, what: str) -> Path:
    text = node.text(what)
    if not text or "\0" in text:
        raise node.fail(f"{what} must be a path")
    return base / text


def read_optional_address(node: Node | None, what: str) -> Address | None:
    return None if node is None or node.value is None else read_address(node, what)


def read_address(node: Node, what: str, *, low: int = 0) -> Address:
    host, colon, port = node.text(what).rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ip_address(host[1:-1] if bracketed else host)
        number = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else -1
    except ValueError:
        number = -1
    if number >= 0 and isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        # One spelling per address, or comparing a target with our own listeners could miss one.
        raise node.fail(f"{what}: write an IPv4-mapped address as IPv4, such as 127.0.0.1:8080")
    if number < low or number > 65535 or not colon or (":" in host) is not bracketed:
        raise node.fail(f"{what}: write an IP address and a port, such as 127.0.0.1:8080 or [::1]:8080")
    return Address(host=str(address), port=number)


def read_networks(node: Node, what: str) -> tuple[Network, ...]:
    networks: list[Network] = []
    for item in node.sequence(what):
        try:
            network = ip_network(item.text(what))
        except ValueError as error:
            raise item.fail(f"{what}: not a CIDR block ({error}); write for example 10.0.0.0/8") from None
        if isinstance(network, IPv6Network) and network.network_address.ipv4_mapped is not None:
            raise item.fail(f"{what}: write IPv4-mapped addresses as IPv4, such as 10.0.0.0/8")
        networks.append(network)
    return tuple(networks)


def read_users(node: Node, what: str) -> tuple[int, ...]:
    """Users of this machine, by name or number, as uids."""
    uids: list[int] = []
    for item in node.sequence(what):
        value = item.value
        if isinstance(value, int) and not isinstance(value, bool):
            uid = value
        else:
            try:
                uid = pwd.getpwnam(item.text(what)).pw_uid
            except KeyError:
                raise item.fail(
                    f"{what}: this machine has no user {value!r}; write a name or a uid"
                ) from None
        if not 0 < uid < 2**32 - 1:
            raise item.fail(f"{what}: uid {uid} cannot be an agent (root could undo whatever holds it)")
        if uid in uids:
            raise item.fail(f"{what}: uid {uid} is there twice")
        uids.append(uid)
    if not uids:
        raise node.fail(f"{what} is empty: write for example [agent]")
    return tuple(uids)


def read_interfaces(node: Node, what: str) -> tuple[str, ...]:
    form = "the name of an interface, or a prefix and `*`, such as agents0 or veth*"
    names = [read_matching(item, _INTERFACE, what, form) for item in node.sequence(what)]
    if "lo" in names or any("lo".startswith(name[:-1]) for name in names if name.endswith("*")):
        raise node.fail(
            f"{what}: `lo` is how this machine speaks to itself: name the interface of the agents"
        )
    if len(set(names)) != len(names):
        raise node.fail(f"{what}: a name is there twice")
    return tuple(names)


def read_names(node: Node, what: str) -> tuple[str, ...]:
    names = [
        read_matching(item, IDENTIFIER, what, "letters, digits, `.`, `_` or `-`")
        for item in node.sequence(what)
    ]
    if len(set(names)) != len(names):
        raise node.fail(f"{what}: a name is there twice")
    return tuple(names)


def read_digest(node: Node, what: str) -> bytes:
    form = "the SHA-256 of the token in 64 lower-case hex digits (printf %s TOKEN | sha256sum)"
    return bytes.fromhex(read_matching(node, _HEX_DIGEST, what, form))


def split_url(node: Node, what: str) -> SplitResult:
    """The parts of a URL; one whose host or port cannot be read is refused."""
    text = node.text(what)
    try:
        url = urlsplit(text)
        _ = url.port
    except ValueError as error:
        raise node.fail(f"{what} {text!r}: {error}") from None
    return url


def read_url(node: Node, pattern: re.Pattern[str], what: str, form: str) -> str:
    split_url(node, what)
    return read_matching(node, pattern, what, form)


def read_matching(node: Node, pattern: re.Pattern[str], what: str, form: str) -> str:
    text = node.text(what)
    if not pattern.match(text):
        raise node.fail(f"{what} {text!r}: write {form}")
    return text
