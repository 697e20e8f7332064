"""Files that are whole and durable, or not there: written under another name, fsynced, renamed.

The scratch name of a path is always the same, so what a crash left behind is overwritten, never collected.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

__all__ = ["replace_file", "replace_files", "sync_folder"]


def replace_file(path: Path, data: bytes) -> None:
    """Put `data` there, whole and durable, or leave what was. Raises OSError."""
    replace_files([(path, data)])


def replace_files(files: Iterable[tuple[Path, bytes]]) -> None:
    """The same for several files; when it returns, all of them are durable. Raises OSError."""
    paths = []
    for path, data in files:
        fd = os.open(_scratch(path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        paths.append(path)
    for path in paths:
        _scratch(path).replace(path)
    for folder in sorted({path.parent for path in paths}):
        sync_folder(folder)


def _scratch(path: Path) -> Path:
    return path.with_name(path.name + ".new")


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
