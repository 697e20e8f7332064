"""What a fuzz target is, and the few words that all of them are written with.

A target is a function of bytes. It returns whether the product accepted them, and raises only when a property
does not hold: a `Violation`, or an exception that is none of our typed errors.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

__all__ = ["Target", "Violation", "must", "pieces", "split"]


class Violation(AssertionError):
    """A property that must hold for every input does not hold for this one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One row of the table in targets.py."""

    run: Callable[[bytes], bool]
    seeds: Callable[[], Iterable[bytes]]  # what mutation starts from; some accepted, some refused
    words: tuple[bytes, ...] = ()  # tokens of the language that random bytes would hardly hit
    runs: int = 300  # executions in the short run of `make test`


def must(holds: bool, what: str, *shown: object) -> None:
    """Raise a Violation with everything that is needed to understand it."""
    if not holds:
        raise Violation(f"{what}: " + " | ".join(f"{each!r:.800}" for each in shown))


def split(data: bytes, size: int) -> tuple[bytes, bytes]:
    """The first `size` bytes steer the target (zeros where there are too few), the rest is the input."""
    return data[:size].ljust(size, b"\0"), data[size:]


_MAX_PIECES: Final = 40


def pieces(data: bytes, seed: bytes) -> Iterator[bytes]:
    """`data` cut at places that `seed` chooses; a zero cuts after every byte of a short input."""
    if not any(seed) and len(data) <= 600:
        yield from (data[at : at + 1] for at in range(len(data)))
        return
    chance = random.Random(seed)
    places = [chance.randrange(len(data) + 1) for _ in range(chance.randrange(1, _MAX_PIECES))]
    start = 0
    for end in [*sorted(places), len(data)]:
        yield data[start:end]
        start = end
