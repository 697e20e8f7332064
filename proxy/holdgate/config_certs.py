"""The `client_cert` of an agent's `match`: who must have issued its certificate, and the name in it.

Invariants (tests/test_config.py):
  KC1  `san` is one SPIFFE id or one DNS name in its only spelling; a pattern or an address is refused.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from .agents import CertificateRule
from .config_values import read_path
from .strictyaml import Node

__all__ = ["read_client_cert"]

# SPIFFE ID, section 2: no query, no fragment, no port, no empty or dot segment, no percent-encoding.
_SPIFFE: Final = re.compile(r"spiffe://[a-z0-9._-]{1,255}(/(?!\.{1,2}(/|\Z))[A-Za-z0-9._-]+)+\Z")
_DNS: Final = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)+\Z"
)
_ALL_NUMBERS: Final = re.compile(r"[0-9.]+\Z")


def read_client_cert(node: Node, base: Path, agent: str) -> CertificateRule:
    keys = node.mapping(required=("ca_file", "san"), what=f"client_cert of {agent}")
    path = read_path(keys["ca_file"], base, "client_cert.ca_file")
    try:
        text = path.read_bytes()
    except OSError as error:
        raise keys["ca_file"].fail(f"client_cert.ca_file {path}: {error.strerror}") from None
    if b"-----BEGIN CERTIFICATE-----" not in text:
        raise keys["ca_file"].fail(f"client_cert.ca_file {path} holds no PEM certificate")
    san = keys["san"].text("client_cert.san")
    is_dns = _DNS.match(san) and not _ALL_NUMBERS.match(san)
    if len(san) > 2048 or not (_SPIFFE.match(san) or is_dns):
        raise keys["san"].fail(
            f"client_cert.san {san!r}: write a SPIFFE id with a path, such as spiffe://example.org/agents/refunds,"
            " or one lower-case DNS name"
        )
    return CertificateRule(ca_file=path, san=san)
