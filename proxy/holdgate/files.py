"""Where the data that ships with Holdgate lies: surface maps and starter policies.

The wheel carries them in `holdgate/_data/`; in a checkout (editable install) they are the folders
`surfaces/` and `policies/` beside `proxy/`. Only `init` and `demo` copy from here: a path that the
configuration names and that is missing never falls back to packaged data.

Invariants (tests/test_files.py):
  F1  packaged() returns an existing folder with YAML in it, or raises ConfigError.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from .errors import ConfigError

__all__ = ["packaged"]

_HERE: Final = Path(__file__).resolve().parent


def packaged(name: Literal["surfaces", "policies"], *, package: Path = _HERE) -> Path:
    """The folder of packaged `name`. `package` is where holdgate's modules lie (tests pass another)."""
    wheel = package / "_data" / name
    # The wheel first: an installed copy must not pick up whatever stands two folders above it.
    places = [wheel] if wheel.is_dir() else []
    if package.parent.name == "proxy":
        places.append(package.parent.parent / name)
    for place in places:
        if any(place.rglob("*.yaml")):
            return place
    raise ConfigError(f"packaged {name} not found: the installation is incomplete, install holdgate again")
