"""A secret on disk: private and durable before its name exists, read only while nobody else can read it.

Invariants (tests/test_private_file.py):
  PF1  A file that others may read, that is not a plain file, or that belongs to somebody who is neither this
       process nor the owner of its folder is a ConfigError.
  PF2  What is written is complete, durable and has its final mode before its name exists.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from ..errors import ConfigError
from .durable import sync_folder

__all__ = ["read_private", "write_new"]


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
    """Make a file that must not exist yet. Raises FileExistsError, OSError.

    It belongs to the owner of its folder: what root makes there, Holdgate's own user must be able to read.
    """
    # Complete and durable under another name first; link() then fails rather than overwrite.
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)  # the umask may have taken bits away
            if os.geteuid() == 0:
                owner = path.parent.stat()
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.link(scratch, path)
    finally:
        scratch.unlink()
    sync_folder(path.parent)
