"""The `signer:` block: keys in files of the state directory, or in a signer process.

Invariants (tests/test_config.py):
  KS1  `signer` is the word `file`, or a socket with a deadline; anything else is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .config_values import read_path
from .strictyaml import Node

__all__ = ["SignerProcess", "read_signer"]

_DEFAULT_TIMEOUT_MS: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class SignerProcess:
    """Where keys are asked for that no file here holds."""

    socket: Path
    timeout_ms: int


def read_signer(node: Node | None, base: Path) -> SignerProcess | None:
    if node is None or node.value == "file":
        return None
    if not isinstance(node.value, dict):
        raise node.fail("write `signer: file`, or `signer: {socket: /run/holdgate-signer.sock}`")
    keys = node.mapping(required=("socket",), optional=("timeout_ms",), what="signer")
    timeout_ms = (
        keys["timeout_ms"].integer("signer.timeout_ms") if "timeout_ms" in keys else _DEFAULT_TIMEOUT_MS
    )
    if not 1 <= timeout_ms <= 10_000:
        raise keys["timeout_ms"].fail("signer.timeout_ms is 1 to 10000")
    path = read_path(keys["socket"], base, "signer.socket")
    if len(str(path).encode()) > 107:
        raise keys["socket"].fail("signer.socket: the name of a Unix socket has at most 107 bytes")
    return SignerProcess(socket=path, timeout_ms=timeout_ms)
