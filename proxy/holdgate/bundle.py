"""The active bundle: surface maps and policies as one value with one digest.

A map edit is a policy edit: both are in the digest, which every receipt names. A request is decided under
exactly one bundle, because the pipeline takes the whole value once.

Invariants (tests/test_bundle.py):
  B1  The digest changes when any byte of any map or policy changes, and with nothing else.
  B2  A bundle that exists has been parsed, compiled and type-checked completely.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .errors import ConfigError
from .gate import ENGINE
from .policy import PolicySet, load_policies
from .surface.index import SurfaceIndex
from .surface.load import load_maps

__all__ = ["Bundle", "bundle_digest", "load_bundle", "source_files"]

_DOMAIN: Final = b"holdgate-bundle-v1\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    digest: str  # "sha256:<hex>" over every file, see `bundle_digest`
    revision: int  # 0 in files mode
    signed: bool
    index: SurfaceIndex
    policies: PolicySet


def load_bundle(surfaces: Sequence[Path], policies: Sequence[Path]) -> Bundle:
    """Read, compile and type-check. Raises ConfigError with file and line; never returns a part."""
    digest = bundle_digest(surfaces, policies)
    index = SurfaceIndex.compile(load_maps(surfaces))
    rules = load_policies(policies, index)
    if bundle_digest(surfaces, policies) != digest:
        raise ConfigError("maps or policies changed while they were read; try again", file=str(surfaces[0]))
    return Bundle(
        digest=digest,
        revision=0,
        signed=False,
        index=index,
        policies=rules,
    )


def bundle_digest(surfaces: Sequence[Path], policies: Sequence[Path]) -> str:
    """SHA-256 over the domain, the engine and one line `kind/path size sha256` per file, sorted."""
    lines = set()
    for kind, paths in (("surfaces", surfaces), ("policies", policies)):
        for root in paths:
            for file, name in source_files(root):
                data = file.read_bytes()
                lines.add(f"{kind}/{name} {len(data)} {hashlib.sha256(data).hexdigest()}\n")
    text = "".join(sorted(lines))
    return "sha256:" + hashlib.sha256(_DOMAIN + f"{ENGINE}\n{text}".encode()).hexdigest()


def source_files(root: Path) -> list[tuple[Path, str]]:
    """The maps or policies below a root, with the names under which they are digested. Raises ConfigError."""
    if root.is_file():
        return [(root, root.name)]
    if not root.is_dir():
        raise ConfigError("no such file or directory", file=str(root))
    # Tests decide nothing, so they are not part of what decided.
    found = [p for p in sorted(root.rglob("*.yaml")) if not p.name.endswith("_test.yaml")]
    return [(path, path.relative_to(root).as_posix()) for path in found]
