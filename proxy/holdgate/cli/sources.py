"""Paths on a command line, sorted by what the files in them are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError
from ..policy_document import policy_files
from ..strictyaml import load_file

__all__ = ["Sources", "sort_paths"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    configs: tuple[Path, ...]
    maps: tuple[Path, ...]
    policies: tuple[Path, ...]  # kinds Policy and Bundle
    tests: tuple[Path, ...]


def sort_paths(paths: Sequence[Path]) -> Sources:
    """Every YAML file under `paths`. Raises ConfigError for one that is nothing of ours."""
    found: dict[str, list[Path]] = {"config": [], "SurfaceMap": [], "Policy": [], "PolicyTest": []}
    for path in policy_files(paths):
        found[_kind(path)].append(path)
    if not any(found.values()):
        raise ConfigError("no YAML file here", file=", ".join(str(path) for path in paths))
    return Sources(
        configs=tuple(found["config"]),
        maps=tuple(found["SurfaceMap"]),
        policies=tuple(found["Policy"]),
        tests=tuple(found["PolicyTest"]),
    )


def _kind(path: Path) -> str:
    # A configuration may hold credentials, and only its keys are looked at here.
    root = load_file(path, excerpts=False)
    keys = root.open_mapping("the document")
    if "kind" not in keys:
        if "version" in keys:
            return "config"
        raise root.fail("neither a configuration (`version: 1`) nor a document with a `kind`")
    kind = keys["kind"].choice(("SurfaceMap", "Policy", "PolicyTest", "Bundle"), "kind")
    return "Policy" if kind == "Bundle" else kind
