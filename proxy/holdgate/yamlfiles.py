"""Which YAML files a folder of maps or policies has, and their bytes: nothing in it is left out in silence.

A policy that is not read cannot refuse. Kubernetes mounts a ConfigMap as links to files below `..data`, which
is a link itself: beside such a link, what lies in a folder that begins with `..` is read through it, and not
once more.

Invariants (tests/test_yamlfiles.py):
  YF1  yaml_files() has every *.yaml below a folder, each once, or raises ConfigError: also where a folder in
       it cannot be read or is a link, and where a file is named *.yml or *.YAML.
  YF2  read_file() returns the whole of a plain file of at most MAX_FILE_BYTES, or raises ConfigError; it
       does not wait for what is no plain file.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Final, NoReturn

from .errors import ConfigError

__all__ = ["MAX_FILE_BYTES", "read_file", "yaml_files"]

MAX_FILE_BYTES: Final = 4 << 20
_KUBERNETES: Final = frozenset({"..data", "..data_tmp"})  # a link; the second while it is being replaced


def yaml_files(folder: Path) -> list[Path]:
    """Sorted. Raises ConfigError."""
    found = []
    for here, folders, names in folder.walk(on_error=_unreadable):
        mounted = any((here / name).is_dir() for name in _KUBERNETES.intersection(names))
        folders[:] = [name for name in folders if not (mounted and name.startswith(".."))]
        for name in names:
            path = here / name
            if name in _KUBERNETES and path.is_dir():
                continue
            if path.is_symlink() and path.is_dir():
                raise ConfigError(
                    "a link to a folder is not followed: name the folder itself in holdgate.yaml",
                    file=str(path),
                )
            if path.suffix == ".yaml":
                found.append(path)
            elif path.suffix.lower() in (".yml", ".yaml"):
                raise ConfigError("name it *.yaml; other names are not loaded", file=str(path))
    return sorted(found)


def _unreadable(error: OSError) -> NoReturn:
    raise ConfigError(f"cannot read: {error.strerror}", file=str(error.filename)) from error


def read_file(path: Path) -> bytes:
    """Raises ConfigError."""
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            raise ConfigError("not a plain file", file=str(path))
        if about.st_size > MAX_FILE_BYTES:
            raise ConfigError(f"longer than {MAX_FILE_BYTES} bytes", file=str(path))
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read: {error}", file=str(path)) from error
