"""Files that must be right: secrets that only their owner can read, and files replaced in one durable step.

Invariants (tests/test_durable.py):
  DU1  A secret that others may read, that is not a plain file, or that belongs to somebody who is neither
       this process nor the owner of its folder is a ConfigError.
  DU2  What is written is complete, durable and has its final mode before its name exists; a file that is
       replaced is the old one or the new one to every reader.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path

from ..errors import ConfigError

__all__ = ["read_private", "replace_file", "replace_files", "sync_folder", "write_new"]


def read_private(path: Path, what: str) -> bytes:
    """The file's bytes. Raises ConfigError for a file that is not private, OSError for one that is not there.

    Mode and owner are read from the open file, so they are this file's and not a later one's.
    """
    with path.open("rb") as file:
        info = os.fstat(file.fileno())
        if not stat.S_ISREG(info.st_mode) or info.st_mode & 0o077:
            raise ConfigError(f"others can read {what}; run: chmod 600 {path}", file=str(path))
        # Only root can open what another one owns. A folder of that owner is how a service's user keeps its
        # state; a key of somebody else in it is a key of somebody else.
        if info.st_uid not in (os.geteuid(), path.parent.stat().st_uid):
            raise ConfigError(
                f"{what} belongs to the user {info.st_uid}, who can read it; chown it to Holdgate's own user",
                file=str(path),
            )
        return file.read()


def write_new(path: Path, data: bytes, mode: int) -> None:
    """Make a file that must not exist yet. Raises FileExistsError, OSError."""
    # Complete and durable under another name first; link() then fails rather than overwrite.
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)  # the umask may have taken bits away
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.link(scratch, path)
    finally:
        scratch.unlink()
    sync_folder(path.parent)


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
