"""The `bundle:` block: does this node decide under plain files, or only under what was signed?

Invariants (tests/test_config.py):
  KB1  The mode is written out, and nothing else decides whether signatures are needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .config_values import read_path
from .strictyaml import Node

__all__ = ["Files", "Signed", "read_bundle_mode"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Development: maps and policies as they are in the configured folders."""

    paths: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """Only what `trust`'s keys signed; new ones appear as folders in `folder`."""

    trust: Path
    folder: Path

    @property
    def paths(self) -> tuple[Path, ...]:
        """What is there of it: nothing that an agent may write."""
        return tuple(path for path in (self.trust, self.folder) if path.exists())


def read_bundle_mode(node: Node | None, base: Path) -> Files | Signed:
    if node is None:
        return Files()
    keys = node.mapping(required=("mode",), optional=("trust", "dir"), what="bundle")
    if keys["mode"].choice(("files", "signed"), "bundle.mode") == "files":
        for name in ("trust", "dir"):
            if name in keys:
                raise keys[name].fail(f"bundle.{name} belongs to `mode: signed`")
        return Files()
    for name in ("trust", "dir"):
        if name not in keys:
            raise node.fail(
                "`mode: signed` needs `trust: trust.json` (whose keys) and `dir: bundles/` (where)"
            )
    return Signed(
        trust=read_path(keys["trust"], base, "bundle.trust"),
        folder=read_path(keys["dir"], base, "bundle.dir"),
    )
