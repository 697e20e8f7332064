"""Seeded mutation: the same target, seeds and number always give the same inputs, on every machine."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Final

from fuzz.base import Target

__all__ = ["inputs"]

MAX_BYTES: Final = 8192
_NUMBERS: Final = (b"0", b"1", b"9", b"16", b"255", b"1000", b"65536", b"4294967296", b"9223372036854775808")


def inputs(name: str, target: Target, count: int, round_: int = 0) -> Iterator[bytes]:
    """The seeds as they are, then mutated ones, `count` in all; another `round_` mutates otherwise."""
    seeds = list(target.seeds())
    yield from seeds[:count]
    chance = random.Random(f"holdgate {name} {round_}")
    for _ in range(count - len(seeds)):
        data = chance.choice(seeds)
        for _ in range(chance.choice((1, 1, 2, 3, 5))):
            data = _changed(chance, data, seeds, target.words)[:MAX_BYTES]
        yield data


def _changed(chance: random.Random, data: bytes, seeds: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    at = chance.randrange(len(data) + 1)
    end = min(len(data), at + chance.choice((1, 1, 2, 4, 16, 64)))
    match chance.randrange(10):
        case 0:
            return data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
        case 1:
            return data[:at] + data[end:]
        case 2:
            return data[:end] + data[at:end] + data[end:]
        case 3:
            other = chance.choice(seeds)
            return data[:at] + other[chance.randrange(len(other) + 1) :]
        case 4:
            place = chance.randrange(len(data) + 1)
            return data[:place] + data[at:end] + data[place:]
        case 5:
            return data[:at] + chance.choice(_NUMBERS) + data[end:]
        case 6:
            return (
                data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
                if at < len(data)
                else data
            )
        case 7 if words:
            return data[:at] + chance.choice(words) + data[end:]
        case _:
            return data[:at] + chance.choice(words or (b"\0",)) + data[at:]
