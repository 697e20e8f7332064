"""Which packets of an agent may go where: the configured boundary in, one nftables script out. Pure.

Agents are users of this machine (`match.user`) or whoever is behind an interface (`network.interfaces`).
Their TCP is led to the transparent listener, their DNS to the stub; all else of theirs ends here.

    user of this machine   nat output      -> redirected      filter output  -> only what was redirected
    behind an interface    nat prerouting  -> redirected      filter input   -> only what was redirected
    ... with mode tproxy   mangle prerouting -> diverted      filter input   -> only what was diverted
                                                              filter forward -> nothing, in either direction

A diverted packet keeps its destination: our mark and the route for it make any destination a local one.
Questions for names are redirected in both modes: the stub then needs no right of any kind.

Invariants (tests/test_network_rules.py has one test named after each):
  N1  Every verdict that lets an agent's packet through names a listener of ours, or neighbour discovery.
  N2  Nothing is let through for being established: a connection from before the rules is cut by them.
  N3  Each script has all chains and replaces all rules in place, so that one transaction swaps them: a packet
      meets the old rules or the new ones, never neither.
  N4  A script names agents only: other users and interfaces meet no verdict.
  N5  The closed script drops every packet of every agent, and uses nothing that a kernel could lack.
  N6  Diverting names agents' interfaces only, and what is let through for it has a mark of ours and ends at a
      transparent socket: nothing that this machine sends can be diverted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from .config import Address, Config, NetworkMode
from .errors import ConfigError

__all__ = [
    "FROM_HERE",
    "LOCAL_ROUTE",
    "MARK",
    "TABLE",
    "Boundary",
    "Uids",
    "boundary_of",
    "render",
    "render_closed",
    "routing",
    "twin",
]

TABLE: Final = "holdgate"
MARK: Final = 0x48474154  # of diverted packets. Where another table changes it, they are not let through
LOCAL_ROUTE: Final = 18503  # number of the routing table for marked packets, and preference of its rule
FROM_HERE: Final = LOCAL_ROUTE - 1  # preference of the rule before it

type Uids = tuple[int, int]  # first and last, both included

_INTERFACE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}\*?\Z")
_TWINS: Final = {"0.0.0.0": "::", "127.0.0.1": "::1"}  # noqa: S104  addresses that are compared

# Every script declares exactly these: see N3.
_BASE_CHAINS: Final = {
    "redirect_local": "type nat hook output priority -110; policy accept;",
    "divert_arriving": "type filter hook prerouting priority -150; policy accept;",
    "redirect_arriving": "type nat hook prerouting priority -110; policy accept;",
    "filter_local": "type filter hook output priority 0; policy accept;",
    "filter_arriving": "type filter hook input priority 0; policy accept;",
    "filter_passing": "type filter hook forward priority 0; policy accept;",
}
# Agents may use `meta skuid` (who owns the socket) or arrive at an interface; never both.
_NEIGHBOURS: Final = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit } accept"


@dataclass(frozen=True, slots=True, kw_only=True)
class Boundary:
    """Whose packets are forced, and to which listeners."""

    users: tuple[Uids, ...]
    interfaces: tuple[str, ...]  # a name, or a prefix and `*`
    transparent: Address
    dns: Address | None
    explicit: Address | None
    mode: NetworkMode

    def __post_init__(self) -> None:
        if not self.users and not self.interfaces:
            raise ValueError("a boundary around nobody")
        if any(not 0 < first <= last for first, last in self.users):
            raise ValueError("root cannot be an agent: it could remove the rules")
        if any(not _INTERFACE.match(name) for name in self.interfaces):
            raise ValueError("not the name of a network interface")

    @property
    def diverts(self) -> bool:
        return self.mode is NetworkMode.TPROXY and bool(self.interfaces)


def twin(address: Address) -> Address | None:
    """The IPv6 listener that belongs to a redirect target: `::` to 0.0.0.0 and `::1` to 127.0.0.1."""
    host = _TWINS.get(address.host)
    return Address(host=host, port=address.port) if host is not None and address.port else None


def boundary_of(config: Config, *, proxy_uid: int, subordinate: Mapping[int, tuple[Uids, ...]]) -> Boundary:
    """What `holdgate network` enforces for this configuration. Raises ConfigError.

    `subordinate`: the ranges that /etc/subuid gives to a uid. A user who may become another uid (newuidmap)
    is an agent under that uid too.
    """
    path = str(config.path)
    users = sorted({uid for rule in config.agents for uid in rule.users})
    if not users and not config.interfaces:
        raise ConfigError(
            "no agent to force through: write `match: {user: [NAME]}` for an agent that is a user of this "
            "machine, or `network: {interfaces: [NAME]}` for whoever is behind an interface",
            file=path,
        )
    if proxy_uid in users:
        raise ConfigError(
            f"uid {proxy_uid} owns state_dir, so Holdgate runs as it: an agent needs a user of its own",
            file=path,
        )
    for what, address in (("transparent", config.listen.transparent), ("dns", config.listen.dns)):
        _check_target(what, address, path, arriving=bool(config.interfaces))
    if config.listen.transparent is None:  # said already; for the type
        raise ConfigError("listen.transparent is off", file=path)
    ranges = [(uid, uid) for uid in users] + [pair for uid in users for pair in subordinate.get(uid, ())]
    return Boundary(
        users=_merged(ranges),
        interfaces=config.interfaces,
        transparent=config.listen.transparent,
        dns=config.listen.dns,
        explicit=config.listen.explicit,
        mode=config.network_mode,
    )


def _check_target(what: str, address: Address | None, path: str, *, arriving: bool) -> None:
    port = {"transparent": 8443, "dns": 5353}[what]
    wanted = f"0.0.0.0:{port}" if arriving else f"127.0.0.1:{port}"
    if address is None:
        if what == "transparent":
            raise ConfigError(f"listen.transparent is off: write for example {wanted}", file=path)
        return
    if twin(address) is None or (arriving and address.host != "0.0.0.0"):  # noqa: S104  compared
        raise ConfigError(
            f"listen.{what}: {address} is not where redirected traffic arrives, IPv6 too; write {wanted}",
            file=path,
        )


def _merged(ranges: list[Uids]) -> tuple[Uids, ...]:
    merged: list[Uids] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], max(last, merged[-1][1])
        else:
            merged.append((first, last))
    return tuple(merged)


def render(boundary: Boundary) -> str:
    """The whole script, for `nft -f`."""
    diverts = boundary.diverts
    through = _through(boundary)
    arriving = [_DIVERTED, *_stub_through(boundary)] if diverts else through
    # At once where that costs nothing: QUIC, so that clients fall back; and TCP that found no socket of ours,
    # since then no other kernel resets it.
    resets = ["meta l4proto tcp counter reject with tcp reset"] if diverts else []
    quick = ["udp dport 443 counter reject"]
    refuse = [*quick, *resets, "counter drop"]
    chains = {
        "redirect_local": _each_user(boundary, "jump to_listeners"),
        "divert_arriving": _each_interface(boundary, "iifname", "jump to_socket") if diverts else [],
        "redirect_arriving": _each_interface(
            boundary, "iifname", "jump to_stub" if diverts else "jump to_listeners"
        ),
        "filter_local": _each_user(boundary, "jump from_local"),
        "filter_arriving": _each_interface(boundary, "iifname", "jump from_interface"),
        "filter_passing": [
            *(line for each in (*quick, *resets) for line in _each_interface(boundary, "iifname", each)),
            *_each_interface(boundary, "iifname", "counter drop"),
            *_each_interface(boundary, "oifname", "counter drop"),
        ],
    }
    return _script(
        {
            "to_listeners": _redirects(boundary),
            "to_stub": _questions(boundary) if diverts else [],
            "to_socket": _diverts(boundary) if diverts else [],
            # After a redirect a local packet goes to loopback: another table's redirect does not count.
            "from_local": [f"{loopback} {rule}" for loopback in _LOOPBACK for rule in through]
            + [*_explicit(boundary, local=True), *quick, "counter drop"],
            "from_interface": [*arriving, *_explicit(boundary, local=False), _NEIGHBOURS, *refuse],
        },
        chains,
    )


def render_closed(boundary: Boundary) -> str:
    """No network at all for the agents: what holds before the whole script, and when that does not load."""
    return _script(
        {"to_listeners": [], "to_stub": [], "to_socket": [], "from_local": [], "from_interface": []},
        {
            "redirect_local": [],
            "divert_arriving": [],
            "redirect_arriving": [],
            "filter_local": _each_user(boundary, "drop"),
            "filter_arriving": _each_interface(boundary, "iifname", "drop"),
            "filter_passing": [
                *_each_interface(boundary, "iifname", "drop"),
                *_each_interface(boundary, "oifname", "drop"),
            ],
        },
    )


def routing(*, family: int) -> tuple[str, ...]:
    """What `ip` has to be told so that diverted packets are delivered here; the rule for it comes last.

    The rule before it is for questions that the kernel asks itself with a packet's mark (`iif lo`): is the
    source behind this interface (rp_filter with src_valid_mark), which way back (tcp_fwmark_accept).
    """
    return (
        f"-{family} route replace local default dev lo table {LOCAL_ROUTE}",
        f"-{family} rule add preference {FROM_HERE} iif lo fwmark {MARK:#x} lookup main",
        f"-{family} rule add preference {LOCAL_ROUTE} fwmark {MARK:#x} lookup {LOCAL_ROUTE}",
    )


_LOOPBACK: Final = ("ip daddr 127.0.0.1", "ip6 daddr ::1")
_DIVERTED: Final = f"meta mark {MARK:#x} socket transparent 1 meta l4proto tcp accept"


def _redirects(boundary: Boundary) -> list[str]:
    returns = [f"{there} return" for there in _explicit_targets(boundary)]
    everything = f"meta l4proto tcp redirect to :{boundary.transparent.port}"
    return [*returns, *_questions(boundary), everything]


def _questions(boundary: Boundary) -> list[str]:
    if boundary.dns is None:
        return []
    return [f"{proto} dport 53 redirect to :{boundary.dns.port}" for proto in ("udp", "tcp")]


def _diverts(boundary: Boundary) -> list[str]:
    """To the listener's socket, with the destination as it is. Where no socket listens, filters drop it."""
    returns = [f"{there} return" for there in _explicit_targets(boundary)]
    if boundary.dns is not None:
        returns.append("tcp dport 53 return")
    port = boundary.transparent.port
    tproxy = f"to :{port} meta mark set {MARK:#x} accept"
    return [
        *returns,
        f"meta nfproto ipv4 meta l4proto tcp tproxy ip {tproxy}",
        f"meta nfproto ipv6 meta l4proto tcp tproxy ip6 {tproxy}",
    ]


def _through(boundary: Boundary) -> list[str]:
    """What was redirected. `ct status dnat` keeps agents from dialling a listener themselves."""
    listener = f"ct status dnat tcp dport {boundary.transparent.port} accept"
    return [listener, *_stub_through(boundary)]


def _stub_through(boundary: Boundary) -> list[str]:
    if boundary.dns is None:
        return []
    return [f"ct status dnat {proto} dport {boundary.dns.port} accept" for proto in ("udp", "tcp")]


def _explicit(boundary: Boundary, *, local: bool) -> list[str]:
    if not local and boundary.explicit is not None and boundary.explicit.ip.is_loopback:
        return []
    return [f"{there} accept" for there in _explicit_targets(boundary)]


def _explicit_targets(boundary: Boundary) -> list[str]:
    """The explicit listener stays reachable as itself, for agents that use a proxy."""
    address = boundary.explicit
    if address is None or not address.port:
        return []
    if address.ip.is_unspecified:
        return [f"fib daddr type local tcp dport {address.port}"]
    return [f"ip{'6' if address.ip.version == 6 else ''} daddr {address.host} tcp dport {address.port}"]


def _each_user(boundary: Boundary, verdict: str) -> list[str]:
    names = [str(first) if first == last else f"{first}-{last}" for first, last in boundary.users]
    return [f"meta skuid {{ {', '.join(names)} }} {verdict}"] if names else []


def _each_interface(boundary: Boundary, side: str, verdict: str) -> list[str]:
    # One rule each: a set of names cannot hold a prefix on older kernels.
    return [f'{side} "{name}" {verdict}' for name in boundary.interfaces]


def _script(plain: dict[str, list[str]], base: dict[str, list[str]]) -> str:
    lines = [f"add table inet {TABLE}", f"flush table inet {TABLE}", f"table inet {TABLE} {{"]
    for name, rules in plain.items():
        lines += [f"  chain {name} {{", *(f"    {rule}" for rule in rules), "  }"]
    for name, head in _BASE_CHAINS.items():
        lines += [f"  chain {name} {{", f"    {head}", *(f"    {rule}" for rule in base[name]), "  }"]
    return "\n".join([*lines, "}", ""])
