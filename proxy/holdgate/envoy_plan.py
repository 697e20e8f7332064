"""What Envoy's configuration is made of (envoy.py): a listener, the gate's side, upstreams.

A value that exists is one that may be configured: nothing crosses a network without TLS.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .config_values import Address
from .limits import Limits

__all__ = ["EnvoyPlan", "GateSide", "Upstream"]

_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/=-]{16,256}\Z")  # no `%`: Envoy would read it as a command


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """One mapped https host on port 443, and where it is dialled."""

    host: str  # lower-case name, no variable in it
    body_bytes: int  # the largest body that its maps take
    address: Address | None  # None: looked up by name, port 443
    tls: bool = True  # False: only to a loopback address
    ca_file: Path | None = None  # trust anchors in place of the public ones

    def __post_init__(self) -> None:
        if not self.tls and (self.address is None or not self.address.ip.is_loopback):
            raise ValueError(f"{self.host}: no TLS, and not on loopback")


@dataclass(frozen=True, slots=True, kw_only=True)
class GateSide:
    """The gate's listener, as Envoy reaches it. Mutual TLS: all four, or none on loopback."""

    address: Address
    token: str
    name: str = ""  # in its certificate
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    def __post_init__(self) -> None:
        if not _TOKEN.match(self.token):
            raise ValueError("the token is not 16 to 256 letters, digits or characters out of . _ ~ + / = -")
        given = [bool(each) for each in (self.name, self.ca_file, self.cert_file, self.key_file)]
        if any(given) != all(given):
            raise ValueError("TLS to the gate needs its name, its CA, and a certificate with its key")
        if not any(given) and not self.address.ip.is_loopback:
            raise ValueError("the gate is reached over a network: that needs TLS on both sides")


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvoyPlan:
    listen: Address  # where agents' TLS arrives
    redirected: bool  # by REDIRECT or TPROXY: then the port that the agent dialled is 443, or it is closed
    gate: GateSide
    upstreams: Sequence[Upstream]
    limits: Limits
    secrets: Path  # folder with one file for each host, see leaf_secret()
    roots: Path  # public trust anchors, PEM
    admin: Address | None  # Envoy's own admin listener; None: it has none
