"""A log and the lists of keys beside it, of one moment, though an instance changes a key meanwhile.

    look: what was read, and whether it fits together -> the first that does, or the last one

An instance that changes a key writes leaf, lists and proofs one after the other, so what is read in
between does not fit together. Then it is read again; what still does not fit a little later is wrong, and
the audit says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from ..keys import NEVER, KeySet

__all__ = ["of_one_moment", "retired"]

_SETTLED_S: Final = 2.0  # in which a change of keys has written all its files
_PAUSE_S: Final = 0.1


def of_one_moment[T](look: Callable[[], tuple[T, bool]], forget: Callable[[], None]) -> T:
    """`look()` again, each time after `forget()`, until what it found fits together or time is up."""
    found, fits = look()
    until = time.monotonic() + _SETTLED_S
    while not fits and time.monotonic() <= until:
        forget()
        time.sleep(_PAUSE_S)
        found, fits = look()
    return found


def retired(*sets: KeySet) -> frozenset[tuple[str, bool]]:
    """(kid, whether it is revoked) of those that are not in use."""
    return frozenset(
        (key.kid, key.revoked_from_index != NEVER)
        for keys in sets
        for key in keys.values()
        if key.end_index != NEVER
    )
