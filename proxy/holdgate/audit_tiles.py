"""Tiles compared with leaves: what a log's leaves make of them, and what is stored.

    leaf after leaf -> the tiles that they fill -> problems, each with the leaf and receipt that is wrong

Pure, part of audit.py (its invariants A6 and A8).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

from .tiles import ENTRIES, WIDTH, Edge, Tile, prefix_of, unpack_entries
from .tlog import TlogError

__all__ = ["StoredTiles", "TileAudit"]


class StoredTiles(Protocol):
    """The tiles as they are stored."""

    def widths(self, level: int, index: int) -> tuple[int, ...]:
        """The widths under which the tile of this place is there."""
        ...

    def exact(self, tile: Tile) -> bytes:
        """The content stored for exactly this width. Raises OSError."""
        ...


class TileAudit:
    """The tree that the leaves make, compared with the stored tiles while it grows."""

    def __init__(self, stored: StoredTiles, problem: Callable[[str], None]) -> None:
        self.edge = Edge.empty()
        self.signed = 0  # leaves that the checkpoint covers: their tiles must be there
        self._stored, self._problem = stored, problem
        self._ids: deque[str] = deque(maxlen=WIDTH)  # of the newest leaves, to name what a tile got wrong

    def append(self, leaf: bytes, receipt_id: str) -> None:
        self._ids.append(receipt_id)
        self._compare(self.edge.append(leaf))

    def end(self) -> None:
        """All leaves were read: now the tiles that are not full."""
        self._compare(self.edge.partials())

    def _compare(self, wanted: Iterable[tuple[Tile, bytes]]) -> None:
        for tile, data in wanted:
            there = self._stored.widths(tile.level, tile.index)
            if max(there, default=0) < self._signed_width(tile):
                self._problem(f"{tile.path} is missing")
            for width in there:
                if width == tile.width:
                    self._tile(tile, data)
                elif width < tile.width:
                    narrow = Tile(level=tile.level, index=tile.index, width=width)
                    self._tile(narrow, prefix_of(narrow, data))

    def _signed_width(self, tile: Tile) -> int:
        """How much of a tile the checkpoint needs; beyond it a tile may be on its way."""
        nodes = self.signed >> 8 * max(tile.level, 0)
        return max(0, min(tile.width, nodes - tile.index * WIDTH))

    def _tile(self, tile: Tile, wanted: bytes) -> None:
        try:
            found = self._stored.exact(tile)
        except OSError as error:
            self._problem(f"{tile.path} cannot be read: {error.strerror}")
            return
        if found != wanted:
            where = self._difference(tile, found, wanted)
            self._problem(f"{tile.path} is not what the receipts make: {where}")

    def _difference(self, tile: Tile, found: bytes, wanted: bytes) -> str:
        try:
            ours, theirs = _items(tile, wanted), _items(tile, found)
        except TlogError as error:
            return str(error)
        pairs = zip(ours, [*theirs, *[None] * len(ours)], strict=False)
        place = next((number for number, (one, other) in enumerate(pairs) if one != other), tile.width)
        if place == tile.width:
            return "it goes on where it should end"
        span = 1 << 8 * max(tile.level, 0)
        first = (tile.index * WIDTH + place) * span
        if span > 1:
            return f"the hash of leaves {first} to {first + span - 1}"
        behind = self.edge.size - first  # 1: the newest leaf
        return f"leaf {first}" + (f" ({self._ids[-behind]})" if behind <= len(self._ids) else "")


def _items(tile: Tile, data: bytes) -> tuple[bytes, ...]:
    if tile.level == ENTRIES:
        return unpack_entries(data)
    return tuple(data[at : at + 32] for at in range(0, len(data), 32))
