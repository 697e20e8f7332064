"""The folder of a signed bundle is read into memory once; whatever is odd about it refuses it.

Every name is opened relative to its folder's descriptor and without following links, so nothing that is
renamed or replaced meanwhile can lead elsewhere. What was read is what is verified, loaded and kept.

Invariants (tests/test_bundle_folder.py):
  BF1  Only plain files with one name are read: no link of either kind, no device, pipe or socket.
  BF2  Names are plain ASCII and differ in more than case; what is too many or too large is not read on.
  BF3  A file that changes while it is read refuses the folder.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ..manifest import (
    MANIFEST,
    MAX_BYTES,
    MAX_FILES,
    MAX_MANIFEST_BYTES,
    SIGNATURES,
    BundleRejected,
    Refusal,
    check_paths,
)
from ..signed_bundle import RawBundle

__all__ = ["read_folder"]

_MAX_DEPTH: Final = 8
_TOP: Final = (MANIFEST, SIGNATURES)


def read_folder(folder: Path) -> RawBundle:
    """Everything in it. Raises BundleRejected."""
    reader = _Reader()
    try:
        with _opened(folder, None) as descriptor:
            reader.walk(descriptor, "", 0)
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else folder.name
        raise BundleRejected(Refusal.UNREADABLE, f"{where}: {error.strerror}") from error
    return RawBundle.of(folder.name, reader.found)


class _Reader:
    def __init__(self) -> None:
        self.found: dict[str, bytes] = {}
        self._entries = 0
        self._bytes = 0

    def walk(self, folder: int, prefix: str, depth: int) -> None:
        names = sorted(os.listdir(folder))
        self._entries += len(names)
        if self._entries > 2 * MAX_FILES or depth > _MAX_DEPTH:  # folders count too
            raise BundleRejected(Refusal.TOO_MANY_FILES, f"more than {MAX_FILES} files, or too deep")
        for name in names:
            path = prefix + name
            mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
            if stat.S_ISLNK(mode):
                raise BundleRejected(Refusal.LINK, f"{path!a} is a symbolic link")
            if stat.S_ISDIR(mode):
                with _opened(Path(name), folder) as inner:
                    self.walk(inner, f"{path}/", depth + 1)
            elif stat.S_ISREG(mode):
                self._take(folder, name, path)
            else:
                raise BundleRejected(Refusal.NOT_A_FILE, f"{path!a} is no plain file")
        if depth == 0:
            check_paths(path for path in self.found if path not in _TOP)

    def _take(self, folder: int, name: str, path: str) -> None:
        if len(self.found) >= MAX_FILES + len(_TOP):
            raise BundleRejected(Refusal.TOO_MANY_FILES, f"more than {MAX_FILES} files")
        limit = MAX_MANIFEST_BYTES if path in _TOP else MAX_BYTES - self._bytes
        data = _read(folder, name, path, limit)
        self._bytes += 0 if path in _TOP else len(data)
        self.found[path] = data


def _read(folder: int, name: str, path: str, limit: int) -> bytes:
    # O_NONBLOCK: a pipe that took the file's place must not make us wait for a writer.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(name, flags, dir_fd=folder)
    with os.fdopen(descriptor, "rb") as file:
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            raise BundleRejected(Refusal.NOT_A_FILE, f"{path!a} is no plain file")
        if before.st_nlink != 1:
            # Whoever holds the other name could write here after the look.
            raise BundleRejected(Refusal.LINK, f"{path!a} has {before.st_nlink} names (hard links)")
        if before.st_size > limit:
            raise BundleRejected(Refusal.TOO_LARGE, f"{path!a}: more than {MAX_BYTES} bytes in all")
        data = file.read(limit + 1)
        after = os.fstat(descriptor)
    if len(data) != before.st_size or _state(before) != _state(after):
        raise BundleRejected(Refusal.CHANGED_WHILE_READ, ascii(path))
    return data


def _state(info: os.stat_result) -> tuple[int, int, int, int]:
    return info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_nlink


@contextmanager
def _opened(path: Path, within: int | None) -> Iterator[int]:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, dir_fd=within)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
