"""A folder of vectors as one function makes it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

__all__ = ["write"]


def write(folder: Path, wanted: Mapping[str, str]) -> None:
    """Exactly these JSON files, by their names below `folder`; older ones go."""
    for old in folder.rglob("*.json"):
        if str(old.relative_to(folder)) not in wanted:
            old.unlink()
    for name, content in wanted.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    sys.stdout.write(f"{len(wanted)} files in {folder}\n")
