"""Files that are whole and durable, or not there: written under another name, fsynced, renamed.

The scratch name of a path is always the same, so what a crash left behind is overwritten, never collected.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

__all__ = ["replace_file", "replace_files", "sync_folder"]


def replace_file(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Put `data` there, whole and durable, or leave what was. Raises OSError."""
    replace_files([(path, data)], mode=mode)


def replace_files(files: Iterable[tuple[Path, bytes]], *, mode: int = 0o644) -> None:
    """The same for several files; when it returns, all of them are durable. Raises OSError."""
    paths = []
    try:
        for path, data in files:
            paths.append(path)
            _write_scratch(path, data, mode)
        for path in paths:
            _scratch(path).replace(path)
    except BaseException:
        for path in paths:
            _scratch(path).unlink(missing_ok=True)
        raise
    for folder in sorted({path.parent for path in paths}):
        sync_folder(folder)


def _write_scratch(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(_scratch(path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        _keep_owner(descriptor, path)
        file.write(data)
        file.flush()
        os.fsync(descriptor)


def _scratch(path: Path) -> Path:
    # Always the same name, so what a crash left behind is overwritten, never collected.
    return path.with_name(path.name + ".new")


def _keep_owner(descriptor: int, path: Path) -> None:
    """An administrator who acts as root does not take the file away from the service's user."""
    if os.geteuid() == 0 and path.exists():
        owner = path.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
