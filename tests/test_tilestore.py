"""adapters/tilestore.py: the invariants in its docstring."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from holdgate.adapters import durable
from holdgate.adapters.tilestore import TileMissing, TileStore
from holdgate.tiles import ENTRIES, Tile, pack_entries
from holdgate.tlog import TlogError

HASHES = [bytes([number]) * 32 for number in range(256)]
ENTRY_LIST = [b"entry %d" % number for number in range(256)]


def _hashes(width: int) -> tuple[Tile, bytes]:
    return Tile(level=0, index=0, width=width), b"".join(HASHES[:width])


def _entries(width: int) -> tuple[Tile, bytes]:
    return Tile(level=ENTRIES, index=0, width=width), pack_entries(ENTRY_LIST[:width])


def test_ts1_a_tile_is_synced_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str]] = []

    class Os:
        def __getattr__(self, name: str) -> object:
            return getattr(os, name)

        def fsync(self, fd: int) -> None:
            seen.append(("fsync", os.readlink(f"/proc/self/fd/{fd}")))
            os.fsync(fd)

    rename = Path.replace

    def replace(self: Path, target: Path) -> Path:
        seen.append(("rename", str(target)))
        return rename(self, target)

    monkeypatch.setattr(durable, "os", Os())
    monkeypatch.setattr(Path, "replace", replace)
    TileStore(tmp_path).write([_hashes(3), _entries(3)])
    renamed = [name for step, name in seen if step == "rename"]
    assert renamed == [str(tmp_path / tile.path) for tile, _ in (_hashes(3), _entries(3))]
    for name in renamed:
        at = seen.index(("rename", name))
        assert ("fsync", name + ".new") in seen[:at]
        assert ("fsync", str(Path(name).parent)) in seen[at:]
    for folder in ("tile", "tile/0", "tile/0/000.p", "tile/entries", "tile/entries/000.p"):
        assert ("fsync", str((tmp_path / folder).parent)) in seen  # the name of every new folder


def test_ts1_a_write_that_fails_leaves_what_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = TileStore(tmp_path)
    store.write([_hashes(3)])
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())

    def fsync(_: int) -> None:
        raise OSError(5, "EIO")

    monkeypatch.setattr(durable.os, "fsync", fsync)
    with pytest.raises(OSError, match="EIO"):
        store.write([_hashes(4)])
    after = sorted(path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".new")
    assert after == before


@pytest.mark.parametrize("make", [_hashes, _entries], ids=["hashes", "entries"])
@pytest.mark.parametrize("stored", [5, 256])
def test_ts2_a_narrower_tile_is_cut_from_a_wider_one(tmp_path: Path, make, stored: int) -> None:  # type: ignore[no-untyped-def]
    store = TileStore(tmp_path)
    store.write([make(stored)])
    for width in (1, 4, 5):
        tile, data = make(width)
        assert store.read(tile) == data
    if stored == 5:
        with pytest.raises(TileMissing):
            store.read(make(6)[0])
    assert store.widths(make(1)[0].level, 0) == (stored,)


def test_ts2_what_is_missing_or_cut_off_is_said(tmp_path: Path) -> None:
    store = TileStore(tmp_path)
    with pytest.raises(TileMissing):
        store.read(_hashes(1)[0])
    assert store.widths(0, 0) == ()
    store.write([(_hashes(3)[0], bytes(95))])
    with pytest.raises(TlogError, match="cut off"):
        store.read(_hashes(3)[0])


def test_only_the_two_newest_widths_stay_and_none_beside_a_full_tile(tmp_path: Path) -> None:
    store = TileStore(tmp_path)
    for width in (3, 9, 20, 100):
        store.write([_hashes(width)])
        store.prune([_hashes(width)[0]])
    assert store.widths(0, 0) == (100, 20)
    (tmp_path / "tile/0/000.p/not-a-width").write_bytes(b"")
    store.write([_hashes(256)])
    store.prune([_hashes(256)[0]])
    assert store.widths(0, 0) == (256,)
    assert [path.name for path in (tmp_path / "tile/0/000.p").iterdir()] == ["not-a-width"]
    assert store.read(_hashes(20)[0]) == _hashes(20)[1]
