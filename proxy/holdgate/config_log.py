"""The `log:` block: who else sees the log's checkpoints. Off by default.

Invariants (tests/test_config.py):
  KL1  A witness is a URL and its own verifier key; every URL is https, or http on loopback; anything else is
       refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .config_values import read_path, read_url
from .note import SignatureType, Verifier, parse_vkey
from .strictyaml import Node
from .tlog import TlogError

__all__ = ["Anchoring", "TimeStamping", "Witness", "read_log"]

_URL: Final = re.compile(
    r"(https://|http://(127\.0\.0\.1|\[::1\])(?=[:/]|\Z))[A-Za-z0-9.\-:\[\]]+(/[A-Za-z0-9._~/-]*)?\Z"
)
_FORM: Final = "an https URL without query; http only on 127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Witness:
    """A c2sp.org/tlog-witness: where it is, and what its cosignatures verify with."""

    url: str  # without a slash at the end; `/add-checkpoint` is appended
    verifier: Verifier


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeStamping:
    """An RFC 3161 authority, and the root that its stamps verify with."""

    url: str
    ca_file: Path
    interval_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchoring:
    witnesses: tuple[Witness, ...]
    interval_s: int  # between two rounds to the witnesses
    timestamp: TimeStamping | None


def read_log(node: Node | None, base: Path) -> Anchoring:
    if node is None:
        return Anchoring(witnesses=(), interval_s=60, timestamp=None)
    keys = node.mapping(optional=("witnesses", "interval_s", "timestamp"), what="log")
    witnesses: list[Witness] = []
    for item in keys["witnesses"].sequence("log.witnesses") if "witnesses" in keys else ():
        witness = _witness(item)
        if any(other.verifier.name == witness.verifier.name for other in witnesses):
            raise item.fail(f"two witnesses are called {witness.verifier.name}")
        witnesses.append(witness)
    return Anchoring(
        witnesses=tuple(witnesses),
        interval_s=_seconds(keys, "log.interval_s", 60),
        timestamp=_timestamp(keys["timestamp"], base) if "timestamp" in keys else None,
    )


def _witness(node: Node) -> Witness:
    keys = node.mapping(required=("url", "vkey"), what="a witness of the log")
    text = keys["vkey"].value
    try:
        verifier = parse_vkey(text if isinstance(text, str) else "")
    except TlogError as error:
        raise keys["vkey"].fail(f"vkey: {error}") from None
    if verifier.type is not SignatureType.COSIGNATURE:
        raise keys["vkey"].fail("vkey: this is not a witness key, type 4 of c2sp.org/tlog-cosignature")
    return Witness(url=read_url(keys["url"], _URL, "url", _FORM).rstrip("/"), verifier=verifier)


def _timestamp(node: Node, base: Path) -> TimeStamping:
    keys = node.mapping(required=("url", "ca_file"), optional=("interval_s",), what="log.timestamp")
    path = read_path(keys["ca_file"], base, "log.timestamp.ca_file")
    if not path.is_file():
        raise keys["ca_file"].fail(f"log.timestamp.ca_file {path} does not exist")
    return TimeStamping(
        url=read_url(keys["url"], _URL, "log.timestamp.url", _FORM),
        ca_file=path,
        interval_s=_seconds(keys, "log.timestamp.interval_s", 3600),
    )


def _seconds(keys: dict[str, Node], what: str, default: int) -> int:
    node = keys.get("interval_s")
    if node is None:
        return default
    if not 1 <= (seconds := node.integer(what)) <= 86_400:
        raise node.fail(f"{what} is 1 to 86400 seconds")
    return seconds
