"""`ext_authz:` of holdgate.yaml: where Envoy asks before it forwards, see ext_authz.py.

    ext_authz: {listen: 127.0.0.1:9191}
    ext_authz: {listen: 10.0.0.5:9191, tls: {cert_file: gate.pem, key_file: gate.key, client_ca_file: ca.pem}}

Who asks shows a token of `admin.tokens` with the role `decider`, which names the agents it may ask for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .config_admin import Admin
from .config_values import Address, read_address, read_path
from .strictyaml import Node

__all__ = ["ExtAuthz", "MutualTls", "read_ext_authz"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MutualTls:
    """Both sides show a certificate."""

    cert_file: Path  # chain of the gate
    key_file: Path
    client_ca_file: Path  # who must have issued Envoy's


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtAuthz:
    listen: Address
    tls: MutualTls | None  # None: plain HTTP, on loopback only


def read_ext_authz(node: Node | None, base: Path, admin: Admin) -> ExtAuthz | None:
    """None: Envoy is not answered here. Raises ConfigError."""
    if node is None:
        return None
    keys = node.mapping(required=("listen",), optional=("tls",), what="ext_authz")
    listen = read_address(keys["listen"], "ext_authz.listen")
    tls = _tls(keys["tls"], base) if "tls" in keys else None
    if tls is None and not listen.ip.is_loopback:
        raise keys["listen"].fail(
            "ext_authz.listen: requests and the token would be readable on the network; write a loopback"
            " address, or add `tls: {cert_file, key_file, client_ca_file}`"
        )
    if not any(token.agents for token in admin.tokens):
        raise node.fail("nobody may ask here: give a token of admin.tokens the role decider and its agents")
    return ExtAuthz(listen=listen, tls=tls)


def _tls(node: Node, base: Path) -> MutualTls:
    names = ("cert_file", "key_file", "client_ca_file")
    keys = node.mapping(required=names, what="ext_authz.tls")
    paths = {name: read_path(keys[name], base, f"ext_authz.tls.{name}") for name in names}
    for name, path in paths.items():
        if not path.is_file():
            raise keys[name].fail(f"ext_authz.tls.{name}: {path} does not exist")
    return MutualTls(**paths)
