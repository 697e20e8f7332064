"""`gate:` of holdgate.yaml: whether the policies decide here, or a service that is asked over HTTP does.

`embedded` (the default), or `{url, protocol: holdgate | authzen | trigguard, ...}`. A remote gate is asked
about every request that no rule of this instance refused already, so who can speak for it can permit
anything: TLS everywhere but on loopback, and for `holdgate` the public keys of its receipts.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from .config_values import read_path, read_url
from .strictyaml import Node

__all__ = ["RemoteGate", "RemoteProtocol", "read_gate"]

_URL: Final = re.compile(r"https?://[A-Za-z0-9.\-:\[\]]+(/[A-Za-z0-9._~/-]*)?\Z")
_OPTIONAL: Final = ("timeout_ms", "token_file", "ca_file", "client_cert", "client_key", "keys_file")


class RemoteProtocol(StrEnum):
    HOLDGATE = "holdgate"
    AUTHZEN = "authzen"
    TRIGGUARD = "trigguard"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteGate:
    url: str  # without a slash at the end; the protocol's own path comes after it
    protocol: RemoteProtocol
    timeout_ms: int
    token_file: Path | None  # bearer token
    ca_file: Path | None  # trust anchors besides the public ones
    client_cert: Path | None  # mutual TLS: chain and key, both or none
    client_key: Path | None
    keys_file: Path | None  # JWKS of the keys that sign its receipts


def read_gate(node: Node | None, base: Path) -> RemoteGate | None:
    """None: the policies decide here. Raises ConfigError."""
    if node is None or node.value == "embedded":
        return None
    if not isinstance(node.value, dict):
        raise node.fail("gate is `embedded`, or `{url: https://..., protocol: holdgate|authzen|trigguard}`")
    keys = node.mapping(required=("url", "protocol"), optional=_OPTIONAL, what="gate")
    url = read_url(keys["url"], _URL, "gate.url", "an http(s) URL without query").rstrip("/")
    if url.startswith("http://") and not _is_loopback(url):
        raise keys["url"].fail(
            "gate.url: http:// only to a loopback address; whoever answers can permit anything"
        )
    protocol = RemoteProtocol(keys["protocol"].choice(tuple(RemoteProtocol), "gate.protocol"))
    timeout = (
        keys["timeout_ms"].integer("gate.timeout_ms", low=1, high=30_000) if "timeout_ms" in keys else 250
    )
    paths = {name: read_path(keys[name], base, f"gate.{name}") for name in _OPTIONAL[1:] if name in keys}
    for name, path in paths.items():
        if not path.is_file():
            raise keys[name].fail(f"gate.{name}: {path} does not exist")
    if ("client_cert" in paths) != ("client_key" in paths):
        raise node.fail("gate.client_cert and gate.client_key go together")
    if protocol is RemoteProtocol.HOLDGATE and "keys_file" not in paths:
        raise node.fail(
            "gate.protocol holdgate needs `keys_file`: what `holdgate keys export` prints on the gate's host"
        )
    return RemoteGate(
        url=url,
        protocol=protocol,
        timeout_ms=timeout,
        token_file=paths.get("token_file"),
        ca_file=paths.get("ca_file"),
        client_cert=paths.get("client_cert"),
        client_key=paths.get("client_key"),
        keys_file=paths.get("keys_file"),
    )


def _is_loopback(url: str) -> bool:
    try:
        return ipaddress.ip_address(urlsplit(url).hostname or "").is_loopback
    except ValueError:
        return False
