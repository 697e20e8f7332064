"""Tiles on disk: `state_dir/log/tile/...` in the layout of c2sp.org/tlog-tiles.

Written by the sequencer alone; read by proofs, audits and the admin API, from any process. Of a tile that
is not full only the two newest widths stay: a narrower one is cut from what is there.

Invariants (tests/test_tilestore.py has one test named after each):
  TS1  When write() returns, every tile is durable under its name; a crash leaves the old one or the new one.
  TS2  read() gives a tile of the width that was asked for, from whatever wider one is there, or says missing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from ..tiles import WIDTH, Tile, prefix_of
from ..tlog import TlogError
from .durable import replace_files, sync_folder

__all__ = ["TileMissing", "TileStore"]

_KEPT: Final = 2  # widths of a partial tile: of the last checkpoint, and of the one before it


class TileMissing(TlogError):
    """No tile of this place is wide enough."""


class TileStore:
    """The tiles below one folder (`state_dir/log`)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._synced: set[Path] = {folder}

    def write(self, tiles: Iterable[tuple[Tile, bytes]]) -> None:
        """Store tiles, durably. Raises OSError."""
        files = [(self._folder / tile.path, data) for tile, data in tiles]
        self._make_folders({path.parent for path, _ in files})
        replace_files(files)

    def read(self, tile: Tile) -> bytes:
        """The content of `tile`. Raises TileMissing, TlogError when it is cut off, OSError."""
        for width in self._places(tile):
            wider = Tile(level=tile.level, index=tile.index, width=width)
            with contextlib.suppress(FileNotFoundError), open(f"{self._folder}/{wider.path}", "rb") as file:
                return prefix_of(tile, file.read())
        raise TileMissing(f"{tile.path} is missing")

    def widths(self, level: int, index: int) -> tuple[int, ...]:
        """The widths under which this tile is there, the widest first."""
        full = Tile(level=level, index=index, width=WIDTH)
        found = [WIDTH] if (self._folder / full.path).exists() else []
        return (*found, *sorted(self._partial_widths(full), reverse=True))

    def exact(self, tile: Tile) -> bytes:
        """The file of exactly this width, as it is. Raises OSError."""
        return (self._folder / tile.path).read_bytes()

    def prune(self, tiles: Iterable[Tile]) -> None:
        """Forget what `tiles`, now published, made superfluous. Raises OSError."""
        for tile in tiles:
            widths = sorted(self._partial_widths(tile), reverse=True)
            for width in widths if tile.width == WIDTH else widths[_KEPT:]:
                old = Tile(level=tile.level, index=tile.index, width=width)
                (self._folder / old.path).unlink(missing_ok=True)
            if tile.width == WIDTH and widths:
                # A scratch file of a crash may be in it; then the folder stays, and does no harm.
                self._synced.discard(self._partials(tile))
                with contextlib.suppress(OSError):
                    self._partials(tile).rmdir()

    def _places(self, tile: Tile) -> Iterator[int]:
        """The widths under which it may be found; the folder is listed where the likely ones are not."""
        yield tile.width
        yield WIDTH
        yield from (width for width in self._partial_widths(tile) if width > tile.width)

    def _partial_widths(self, tile: Tile) -> list[int]:
        try:
            names = os.listdir(self._partials(tile))
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [int(name) for name in names if name.isascii() and name.isdigit() and 0 < int(name) < WIDTH]

    def _partials(self, tile: Tile) -> Path:
        return self._folder / (tile.full.path + ".p")

    def _make_folders(self, folders: set[Path]) -> None:
        # A new folder is durable only when its parent is, up to one that was there before.
        for folder in sorted(folders - self._synced):  # what is durable, its parents are
            for each in reversed([folder, *folder.parents]):
                if each.is_relative_to(self._folder) and each not in self._synced:
                    each.mkdir(mode=0o755, exist_ok=True)
                    sync_folder(each.parent)
                    self._synced.add(each)
