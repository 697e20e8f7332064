"""The active bundle: surface maps and policies as one value with one digest.

A map edit is a policy edit: both are in the digest, which every receipt names. A request is decided under
exactly one bundle, because the pipeline takes the whole value once.

Made from files (development: the digest is over maps and policies, nothing is signed), or from a signed
folder (the digest is its manifest's, see manifest.py). `NO_BUNDLE` stands for "none was accepted".

Invariants (tests/test_bundle.py):
  B1  The digest changes when any byte of any map or policy changes, and with nothing else.
  B2  A bundle that exists has been parsed, compiled and type-checked completely.
  B3  Under no bundle, or one that has ended, every request is SILENCE, whatever its rules say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .errors import ConfigError, Reason
from .gate import ENGINE
from .policy import PolicySet, load_policies
from .policy_model import policy_set
from .surface.index import SurfaceIndex
from .surface.load import load_maps
from .yamlfiles import read_file, yaml_files

__all__ = ["NEVER_US", "NO_BUNDLE", "Bundle", "bundle_digest", "load_bundle", "source_files"]

_DOMAIN: Final = b"holdgate-bundle-v1\n"
NEVER_US: Final = 2**63 - 1  # files have no end


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    digest: str  # "sha256:<hex>": `bundle_digest` of files, the manifest's of a signed one, "" for none
    revision: int  # 0 in files mode
    signed: bool
    ends_us: int  # from this instant on it decides nothing
    index: SurfaceIndex
    policies: PolicySet

    def gap(self, now_us: int) -> Reason | None:
        """Why nothing is decided under it now."""
        if not self.digest:
            return Reason.POLICY_UNAVAILABLE
        return Reason.POLICY_EXPIRED if now_us >= self.ends_us else None

    @property
    def statement(self) -> dict[str, str | int | bool]:
        """What receipts say of it."""
        if not self.digest:
            return {}
        return {"digest": self.digest, "revision": self.revision, "signed": self.signed}


def _none() -> Bundle:
    index = SurfaceIndex.compile(())
    return Bundle(
        digest="", revision=0, signed=True, ends_us=0, index=index, policies=policy_set((), index, {}, ())
    )


NO_BUNDLE: Final = _none()


def load_bundle(surfaces: Sequence[Path], policies: Sequence[Path], *, kept: bool = False) -> Bundle:
    """Read, compile and type-check. Raises ConfigError with file and line; never returns a part.

    `kept`: files of a bundle that was active here once, see strictyaml.load().
    """
    digest = bundle_digest(surfaces, policies)
    index = SurfaceIndex.compile(load_maps(surfaces, kept=kept))
    rules = load_policies(policies, index, kept=kept)
    if bundle_digest(surfaces, policies) != digest:
        raise ConfigError("maps or policies changed while they were read; try again", file=str(surfaces[0]))
    return Bundle(
        digest=digest,
        revision=0,
        signed=False,
        ends_us=NEVER_US,
        index=index,
        policies=rules,
    )


def bundle_digest(surfaces: Sequence[Path], policies: Sequence[Path]) -> str:
    """SHA-256 over the domain, the engine and one line `kind/path size sha256` per file, sorted."""
    lines = set()
    for kind, paths in (("surfaces", surfaces), ("policies", policies)):
        for root in paths:
            for file, name in source_files(root):
                data = read_file(file)
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
    found = [p for p in yaml_files(root) if not p.name.endswith("_test.yaml")]
    return [(path, path.relative_to(root).as_posix()) for path in found]
