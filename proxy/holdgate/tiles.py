"""Tiles: the tree and its leaves as files that any web server can hand out (c2sp.org/tlog-tiles).

    leaves -> Edge -> (Tile, bytes) to store;  stored tiles -> the hash of any range -> any proof

A hash tile has up to 256 hashes of one level; level 0 is leaf hashes, a hash of level n + 1 is the root of a
full tile of level n. An entry bundle has up to 256 leaves, each behind its length in two bytes. A tile
that is not full has its width in its name; a narrower one is its prefix.

Invariants (tests/test_tiles.py has one test named after each):
  TI1  Every hash of every tile is the RFC 6962 hash of its range of leaves.
  TI2  A path that parse_tile() accepts is the path of exactly that tile; any other text is refused.
  TI3  Proofs made from tiles are those made from the leaves.
  TI4  An Edge restored from its partial tiles goes on like the one that was never lost.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

from .tlog import (
    EMPTY,
    Range,
    TlogError,
    Tree,
    consistency_ranges,
    inclusion_ranges,
    leaf_hash,
    node_hash,
    root_of,
    root_of_perfect,
)

__all__ = [
    "ENTRIES",
    "WIDTH",
    "Edge",
    "Tile",
    "consistency_from_tiles",
    "inclusion_from_tiles",
    "new_tiles",
    "pack_entries",
    "parse_tile",
    "prefix_of",
    "root_from_tiles",
    "unpack_entries",
]

WIDTH: Final = 256
ENTRIES: Final = -1  # the level of entry bundles
_BITS: Final = 8
_HASH: Final = 32
_MAX_ENTRY: Final = 65_535
_PATH: Final = re.compile(
    r"tile/(entries|0|[1-9]|[1-5][0-9]|6[0-3])/((?:x[0-9]{3}/){0,6}[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?\Z",
    re.ASCII,
).match


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Tile:
    level: int  # ENTRIES, or 0 and up
    index: int
    width: int  # 1 to 256 hashes or entries

    def __post_init__(self) -> None:
        if not (ENTRIES <= self.level <= 63 and self.index >= 0 and 1 <= self.width <= WIDTH):
            raise TlogError("there is no such tile")

    @property
    def path(self) -> str:
        """Below the log's folder or address, for example `tile/0/x001/x234/067.p/12`."""
        rest, last = divmod(self.index, 1000)
        name = f"{last:03d}"
        while rest:
            rest, part = divmod(rest, 1000)
            name = f"x{part:03d}/{name}"
        level = "entries" if self.level == ENTRIES else str(self.level)
        return f"tile/{level}/{name}" + ("" if self.width == WIDTH else f".p/{self.width}")

    @property
    def full(self) -> Tile:
        return Tile(level=self.level, index=self.index, width=WIDTH)


def parse_tile(path: str) -> Tile:
    """The tile of a path. Raises TlogError."""
    found = _PATH(path)
    if not found:
        raise TlogError("not the path of a tile")
    tile = Tile(
        level=ENTRIES if found[1] == "entries" else int(found[1]),
        index=int(found[2].replace("x", "").replace("/", "")),
        width=int(found[3]) if found[3] else WIDTH,
    )
    if tile.path != path:  # leading zero groups; width 256 written out
        raise TlogError("not the path of a tile")
    return tile


def new_tiles(old_size: int, size: int) -> Iterator[Tile]:
    """The tiles of a log of `size` leaves that a log of `old_size` did not have, bundles included."""
    for level in (ENTRIES, *range(64)):
        shift = _BITS * max(level, 0)
        old, new = old_size >> shift, size >> shift
        if not new:
            return
        for index in range(old // WIDTH, new // WIDTH):
            yield Tile(level=level, index=index, width=WIDTH)
        if new % WIDTH and new != old:
            yield Tile(level=level, index=new // WIDTH, width=new % WIDTH)


# --- contents ---


def pack_entries(entries: Sequence[bytes]) -> bytes:
    """An entry bundle. Raises TlogError for an entry that has no place in one."""
    if any(len(entry) > _MAX_ENTRY for entry in entries):
        raise TlogError("a leaf is larger than a bundle can say")
    return b"".join([len(entry).to_bytes(2) + entry for entry in entries])


def unpack_entries(data: bytes) -> tuple[bytes, ...]:
    """The leaves of an entry bundle. Raises TlogError when it is cut off."""
    entries, at = [], 0
    while at < len(data):
        end = at + 2 + int.from_bytes(data[at : at + 2])
        if end > len(data) or at + 2 > len(data):
            raise TlogError("the entry bundle is cut off")
        entries.append(data[at + 2 : end])
        at = end
    return tuple(entries)


def prefix_of(tile: Tile, data: bytes) -> bytes:
    """The content of `tile`, given that of a wider tile with the same place. Raises TlogError."""
    if tile.level != ENTRIES:
        if len(data) < tile.width * _HASH or len(data) % _HASH:
            raise TlogError("the tile is cut off")
        return data[: tile.width * _HASH]
    entries = unpack_entries(data)
    if len(entries) < tile.width:
        raise TlogError("the entry bundle is cut off")
    return data[: sum(2 + len(entry) for entry in entries[: tile.width])]


# --- writing ---


class Edge:
    """The right edge of a log: what is in its partial tiles. Not a value: append() changes it."""

    def __init__(self, size: int, levels: list[list[bytes]], entries: list[bytes]) -> None:
        self.size = size
        self._levels, self._entries = levels, entries

    @classmethod
    def empty(cls) -> Edge:
        return cls(0, [], [])

    @property
    def tree(self) -> Tree:
        """The tree over all leaves so far: each bit of a tile's width is one of its perfect subtrees."""
        return Tree(size=self.size, hashes=tuple(_subtrees(self._levels)))

    @classmethod
    def restore(cls, size: int, read: Callable[[Tile], bytes]) -> Edge:
        """The edge of a log of `size` leaves from its partial tiles. Raises TlogError and what `read` raises.

        The tree is what those tiles say: compare its root with a signed one.
        """
        levels: list[list[bytes]] = []
        entries: tuple[bytes, ...] = ()
        for level in range(64):
            if not (whole := size >> _BITS * level):
                break
            levels.append(_hashes_of(read, level, whole // WIDTH, whole % WIDTH))
        if size % WIDTH:
            bundle = Tile(level=ENTRIES, index=size // WIDTH, width=size % WIDTH)
            entries = unpack_entries(prefix_of(bundle, read(bundle)))
            if [leaf_hash(entry) for entry in entries] != levels[0]:
                raise TlogError(f"{bundle.path} is not what its hashes say")
        return cls(size, levels, list(entries))

    def append(self, leaf: bytes) -> tuple[tuple[Tile, bytes], ...]:
        """Add one leaf; returns the tiles that this filled."""
        index, node = self.size, leaf_hash(leaf)
        self.size += 1
        self._entries.append(leaf)
        filled: list[tuple[Tile, bytes]] = []
        if len(self._entries) == WIDTH:
            bundle = Tile(level=ENTRIES, index=index // WIDTH, width=WIDTH)
            filled.append((bundle, pack_entries(self._entries)))
            self._entries = []
        for level in range(64):
            if level == len(self._levels):
                self._levels.append([])
            hashes = self._levels[level]
            hashes.append(node)
            if len(hashes) < WIDTH:
                break
            index //= WIDTH
            filled.append((Tile(level=level, index=index, width=WIDTH), b"".join(hashes)))
            node = root_of(hashes)
            self._levels[level] = []
        return tuple(filled)

    def partials(self) -> tuple[tuple[Tile, bytes], ...]:
        """The tiles that are not full, with their contents."""
        found = []
        if self._entries:
            bundle = Tile(level=ENTRIES, index=self.size // WIDTH, width=len(self._entries))
            found.append((bundle, pack_entries(self._entries)))
        for level, hashes in enumerate(self._levels):
            if hashes:
                index = self.size >> _BITS * (level + 1)
                found.append((Tile(level=level, index=index, width=len(hashes)), b"".join(hashes)))
        return tuple(found)


def _hashes_of(read: Callable[[Tile], bytes], level: int, index: int, width: int) -> list[bytes]:
    if not width:
        return []
    tile = Tile(level=level, index=index, width=width)
    data = prefix_of(tile, read(tile))
    return [data[at : at + _HASH] for at in range(0, len(data), _HASH)]


def _subtrees(levels: Sequence[Sequence[bytes]]) -> Iterator[bytes]:
    """Roots of the perfect subtrees, the largest first: each bit of a tile's width is one of them."""
    for hashes in reversed(levels):
        at = 0
        for bit in range(_BITS - 1, -1, -1):
            if len(hashes) >> bit & 1:
                yield root_of(hashes[at : at + (1 << bit)])
                at += 1 << bit


# --- proofs ---


def inclusion_from_tiles(index: int, size: int, read: Callable[[Tile], bytes]) -> tuple[bytes, ...]:
    """The audit path of leaf `index` in the tree of `size` leaves (RFC 6962 2.1.1). Raises TlogError."""
    read = cache(read)  # neighbours in a path are neighbours in a tile
    return tuple(_range_root(low, high, size, read) for low, high in inclusion_ranges(index, size))


def consistency_from_tiles(old_size: int, size: int, read: Callable[[Tile], bytes]) -> tuple[bytes, ...]:
    """The proof that the first `old_size` leaves are a prefix of `size` (RFC 6962 2.1.2), or TlogError."""
    read = cache(read)
    return tuple(_range_root(low, high, size, read) for low, high in consistency_ranges(old_size, size))


def root_from_tiles(size: int, read: Callable[[Tile], bytes]) -> bytes:
    """The root of the tree of `size` leaves as its tiles say. Raises TlogError."""
    return _range_root(0, size, size, read) if size else EMPTY.root()


def _range_root(low: int, high: int, size: int, read: Callable[[Tile], bytes]) -> bytes:
    """The hash of a range that RFC 6962's recursion can meet: perfect subtrees, the largest first."""
    parts = []
    while low < high:
        height = (high - low).bit_length() - 1
        parts.append(_subtree((low, low + (1 << height)), height, size, read))
        low += 1 << height
    node = parts.pop()
    while parts:
        node = node_hash(parts.pop(), node)
    return node


def _subtree(leaves: Range, height: int, size: int, read: Callable[[Tile], bytes]) -> bytes:
    level, rest = divmod(height, _BITS)
    first = leaves[0] >> _BITS * level  # number of its first hash among all of that level
    whole = size >> _BITS * level
    index = first // WIDTH
    tile = Tile(level=level, index=index, width=min(WIDTH, whole - index * WIDTH))
    data = prefix_of(tile, read(tile))
    at = first % WIDTH * _HASH
    return root_of_perfect(data[at : at + (_HASH << rest)])
