"""One strict YAML file in, one frozen Config out; everything that is wrong is a ConfigError with file:line.

proxy/README.md lists the keys (Configuration). Relative paths are relative to the file. No environment
variable is read. Whether the names in `connect_to` are mapped hosts is checked by whoever loads the surface
maps; each entry keeps its line for that. With `bundle.mode: signed` the folders `surfaces` and `policies` may
be left out: they are what `holdgate bundle build` reads, and decide nothing.

Invariants (tests/test_config.py):
  K1  load_config() returns a Config that can be run, or raises ConfigError with file, line and what to write.
  K2  Every unknown or duplicate key is refused, at every depth.
  K3  `tls: false` reaches loopback only, and no connect_to target is one of our own listeners.
  K4  Two entries that one token could mean, or an agent that matches everybody, are refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Final, Literal

from .agents import AgentRule, Network
from .config_admin import Admin, AdminToken, OpenDoor, read_admin
from .config_agents import read_agents
from .config_bundle import Files, Signed, read_bundle_mode
from .config_doctor import Doctor, read_doctor
from .config_ext_authz import ExtAuthz, read_ext_authz
from .config_facts import Provider, read_facts
from .config_gate import RemoteGate, read_gate
from .config_log import Anchoring, read_log
from .config_retention import Retention, read_retention
from .config_signer import SignerProcess, read_signer
from .config_store import PostgresStore, read_store
from .config_values import (
    Address,
    Ca,
    NetworkMode,
    read_address,
    read_ca,
    read_interfaces,
    read_matching,
    read_networks,
    read_optional_address,
    read_path,
)
from .errors import ConfigError
from .limits import Limits
from .strictyaml import Node, load_file

__all__ = [
    "Address",
    "Admin",
    "AdminToken",
    "Ca",
    "Config",
    "ConnectTo",
    "Listen",
    "NetworkMode",
    "OpenDoor",
    "ReceiptsHeader",
    "Upstream",
    "load_config",
]

# The node stands as an RFC 9651 token in Proxy-Status and in the CA's name, so it starts with a letter.
_NODE: Final = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,47}\Z")
_NAME_PORT: Final = re.compile(r"((?:\*\.)?[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?):([1-9][0-9]{0,4})\Z")
_DECIMAL: Final = re.compile(r"[0-9]{1,9}\.[0-9]{1,6}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """Where agents reach us; None is off. `explicit` or `transparent` is on."""

    explicit: Address | None
    transparent: Address | None
    dns: Address | None = None  # the stub resolver, target of redirected questions

    @property
    def all(self) -> tuple[Address, ...]:
        return tuple(each for each in (self.explicit, self.transparent, self.dns) if each is not None)


class ReceiptsHeader(StrEnum):
    FULL = "full"
    REFERENCE = "reference"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectTo:
    """Dial `address` for this name and port; Host and TLS name stay the surface's."""

    name: str  # exact, or "*.suffix"
    port: int
    address: Address
    tls: bool
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    ca_file: Path | None
    connect_to: tuple[ConnectTo, ...]
    allow_private: tuple[Network, ...]
    resolver: Literal["system"] | tuple[Address, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    path: Path
    node: str
    state_dir: Path
    listen: Listen
    admin: Admin
    bundle: Files | Signed
    surfaces: tuple[Path, ...]  # what decides in files mode; else sources, or none
    policies: tuple[Path, ...]
    agents: tuple[AgentRule, ...]
    interfaces: tuple[str, ...]  # whoever is behind them is an agent: `holdgate network`
    network_mode: NetworkMode
    limits: Limits
    receipts_header: ReceiptsHeader
    upstream: Upstream
    ca: Ca
    doctor: Doctor
    anchoring: Anchoring  # who else sees the log's checkpoints
    signer: SignerProcess | None  # None: keys are in the files of the state directory
    facts: tuple[Provider, ...]
    retention: Retention
    gate: RemoteGate | None  # None: the policies here decide
    store: PostgresStore | None  # None: a SQLite file in the state directory
    ext_authz: ExtAuthz | None  # None: Envoy is not answered here

    @property
    def issuer(self) -> str:
        """The origin of this node's log, which its receipts name as `iss`."""
        return f"holdgate.local/{self.node}"


def load_config(path: Path) -> Config:
    """Read holdgate.yaml. Raises ConfigError. Long because there are that many keys, each one line."""
    if path.is_dir():
        raise ConfigError("a folder; name the file in it: `-c FILE`", file=str(path))
    if not path.is_file():
        raise ConfigError("no such file; `holdgate init` writes one, `-c FILE` names another", file=str(path))
    root = load_file(path, excerpts=False)
    keys = root.mapping(
        required=("version", "node", "state_dir", "listen", "agents"),
        optional=(
            *("surfaces", "policies", "admin", "bundle", "ca", "store", "gate", "limits", "network"),
            *("receipts", "upstream", "doctor", "facts", "log", "retention", "signer", "ext_authz"),
        ),
        what="the configuration",
    )
    if keys["version"].integer("version") != 1:
        raise keys["version"].fail("this version of Holdgate reads `version: 1`")
    base = path.absolute().parent
    bundle = read_bundle_mode(keys.get("bundle"), base)
    for name in ("surfaces", "policies"):
        if name not in keys and isinstance(bundle, Files):
            raise root.fail(f"the configuration needs the key {name!r}")
    listen = _listen(keys["listen"])
    interfaces, network_mode = _network(keys.get("network"), listen)
    agents = read_agents(keys["agents"], base)
    admin = read_admin(keys.get("admin"), [rule.agent.id for rule in agents])
    ext_authz = read_ext_authz(keys.get("ext_authz"), base, admin)
    ours = [*listen.all, admin.listen, *([ext_authz.listen] if ext_authz else [])]
    _refuse_same_listener(keys["listen"], ours)
    return Config(
        path=path.absolute(),
        node=read_matching(
            keys["node"], _NODE, "node", "a letter, then up to 47 letters, digits, `.`, `_` or `-`"
        ),
        state_dir=read_path(keys["state_dir"], base, "state_dir"),
        listen=listen,
        admin=admin,
        bundle=bundle,
        surfaces=_existing(keys.get("surfaces"), base, "surfaces"),
        policies=_existing(keys.get("policies"), base, "policies"),
        agents=agents,
        interfaces=interfaces,
        network_mode=network_mode,
        limits=_limits(keys.get("limits")),
        receipts_header=_receipts(keys.get("receipts")),
        upstream=_upstream(keys.get("upstream"), base, ours),
        ca=read_ca(keys.get("ca")),
        doctor=read_doctor(keys.get("doctor")),
        anchoring=read_log(keys.get("log"), base),
        signer=read_signer(keys.get("signer"), base),
        facts=read_facts(keys.get("facts"), base),
        retention=read_retention(keys.get("retention")),
        gate=read_gate(keys.get("gate"), base),
        store=read_store(keys.get("store")),
        ext_authz=ext_authz,
    )


def _listen(node: Node) -> Listen:
    keys = node.mapping(optional=("explicit", "transparent", "dns"), what="listen")
    explicit = read_optional_address(keys.get("explicit"), "listen.explicit")
    transparent = read_optional_address(keys.get("transparent"), "listen.transparent")
    if explicit is None and transparent is None:
        raise node.fail("nothing to listen on: write `explicit: 127.0.0.1:8080` or a transparent address")
    dns = read_optional_address(keys.get("dns"), "listen.dns")
    return Listen(explicit=explicit, transparent=transparent, dns=dns)


def _network(node: Node | None, listen: Listen) -> tuple[tuple[str, ...], NetworkMode]:
    if node is None:
        return (), NetworkMode.REDIRECT
    keys = node.mapping(required=("interfaces",), optional=("mode",), what="network")
    interfaces = read_interfaces(keys["interfaces"], "network.interfaces")
    if (mode := keys.get("mode")) is None:
        return interfaces, NetworkMode.REDIRECT
    chosen = NetworkMode(mode.choice(tuple(NetworkMode), "network.mode"))
    if chosen is NetworkMode.TPROXY and (listen.transparent is None or not listen.transparent.port):
        raise mode.fail("network.mode tproxy needs a port to deliver to: write `transparent: 0.0.0.0:8443`")
    return interfaces, chosen


def _refuse_same_listener(node: Node, ours: list[Address]) -> None:
    for place, address in enumerate(ours):
        if any(_reaches(address, other) for other in ours[:place]):
            raise node.fail(f"two listeners share {address}: give each its own port")


def _limits(node: Node | None) -> Limits:
    if node is None:
        return Limits()
    # Annotations are text here (`from __future__ import annotations` in limits.py).
    known = {field.name: field.type for field in fields(Limits)}
    values: dict[str, int | float] = {}
    for name, value in node.mapping(optional=tuple(known), what="limits").items():
        values[name] = _seconds(value, name) if known[name] == "float" else value.integer(f"limits.{name}")
        if values[name] <= 0:
            raise value.fail(f"limits.{name} must be greater than zero")
    try:
        return Limits(**values)  # type: ignore[arg-type]  # names and kinds were checked just now
    except ValueError as error:
        raise node.fail(str(error)) from None


def _seconds(node: Node, name: str) -> float:
    if isinstance(node.value, str) and _DECIMAL.match(node.value):  # the YAML subset has no floats
        return float(node.value)
    if isinstance(node.value, bool) or not isinstance(node.value, int):
        raise node.fail(f"limits.{name} must be a number of seconds, such as 5 or 0.5")
    return float(node.value)


def _receipts(node: Node | None) -> ReceiptsHeader:
    if node is None:
        return ReceiptsHeader.FULL
    header = node.mapping(required=("header",), what="receipts")["header"]
    return ReceiptsHeader(header.choice(tuple(ReceiptsHeader), "receipts.header"))


def _upstream(node: Node | None, base: Path, ours: list[Address]) -> Upstream:
    if node is None:
        return Upstream(ca_file=None, connect_to=(), allow_private=(), resolver="system")
    known = ("ca_file", "connect_to", "allow_private", "resolver")
    keys = {
        name: value
        for name, value in node.mapping(optional=known, what="upstream").items()
        if value.value is not None
    }
    ca_file = _ca_file(keys["ca_file"], base) if "ca_file" in keys else None
    private = read_networks(keys["allow_private"], "allow_private") if "allow_private" in keys else ()
    resolver: Literal["system"] | tuple[Address, ...] = "system"
    if (choice := keys.get("resolver")) is not None and choice.value != "system":
        if not isinstance(choice.value, list) or not choice.value:
            raise choice.fail("upstream.resolver: write `system` or a list such as [10.0.0.53:53]")
        resolver = tuple(read_address(item, "upstream.resolver", low=1) for item in choice.value)
    targets: list[ConnectTo] = []
    if (table := keys.get("connect_to")) is not None:
        targets = [_connect_to(name, entry, ours) for name, entry in table.open_mapping("connect_to").items()]
    return Upstream(ca_file=ca_file, connect_to=tuple(targets), allow_private=private, resolver=resolver)


def _connect_to(key: str, node: Node, ours: list[Address]) -> ConnectTo:
    match = _NAME_PORT.match(key)
    if match is None or ".." in key or int(match[3]) > 65535:
        raise node.fail(f"connect_to {key!r}: write a lower-case name and a port, such as api.stripe.com:443")
    keys = node.mapping(required=("address",), optional=("tls",), what=f"connect_to {key}")
    address = read_address(keys["address"], f"connect_to {key} address", low=1)
    tls = keys["tls"].boolean(f"connect_to {key} tls") if "tls" in keys else True
    if not tls and not address.ip.is_loopback:
        raise keys["tls"].fail("tls: false is only for loopback addresses: write tls: true")
    for listener in ours:
        if _reaches(listener, address):
            raise keys["address"].fail(
                f"{address} is Holdgate's own listener {listener}: it is never a target"
            )
    return ConnectTo(name=match[1], port=int(match[3]), address=address, tls=tls, line=node.line)


def _reaches(listener: Address, target: Address) -> bool:
    """Whether dialling `target` could end at `listener`; a wildcard listener counts for every address."""
    if listener.port == 0 or listener.port != target.port:
        return False
    return listener.ip == target.ip or listener.ip.is_unspecified or target.ip.is_unspecified


def _ca_file(node: Node, base: Path) -> Path:
    path = read_path(node, base, "upstream.ca_file")
    try:
        text = path.read_bytes()
    except OSError as error:
        raise node.fail(f"upstream.ca_file {path}: {error.strerror}") from None
    if b"-----BEGIN CERTIFICATE-----" not in text:
        raise node.fail(f"upstream.ca_file {path} holds no PEM certificate")
    return path


def _existing(node: Node | None, base: Path, what: str) -> tuple[Path, ...]:
    if node is None:
        return ()
    paths: list[Path] = []
    for item in node.sequence(what):
        path = read_path(item, base, what)
        if not path.exists():
            raise item.fail(f"{what}: {path} does not exist; `holdgate init` writes a starter set")
        paths.append(path)
    if not paths:
        raise node.fail(f"{what} is empty, so nothing could ever be permitted: write for example [./{what}]")
    return tuple(paths)
