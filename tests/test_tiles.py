"""tiles.py: the invariants in its docstring; the oracle is RFC 6962's recursion over all leaves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdgate.tiles import (
    ENTRIES,
    Edge,
    Tile,
    consistency_from_tiles,
    inclusion_from_tiles,
    new_tiles,
    pack_entries,
    parse_tile,
    prefix_of,
    root_from_tiles,
    unpack_entries,
)
from holdgate.tlog import TlogError, consistency_proof, inclusion_proof, leaf_hash, root_of

# Sizes around which something becomes full, empty or higher. 66,000 leaves have three levels.
SIZES = [1, 2, 3, 255, 256, 257, 511, 512, 600, 1025]
BIG = 66_000


class Log:
    """A log in memory: every tile that its edge ever gave out."""

    def __init__(self, size: int) -> None:
        self.edge, self.tiles = Edge.empty(), {}
        self.leaves = [b"leaf %d" % number for number in range(size)]
        self.hashes = [leaf_hash(leaf) for leaf in self.leaves]
        for leaf in self.leaves:
            self.tiles |= dict(self.edge.append(leaf))
        self.tiles |= dict(self.edge.partials())

    def read(self, tile: Tile) -> bytes:
        return self.tiles[tile]


@pytest.fixture(scope="module")
def big() -> Log:
    return Log(BIG)


@pytest.mark.parametrize("size", SIZES)
def test_ti1_every_tile_has_the_hashes_of_its_ranges(size: int) -> None:
    log = Log(size)
    assert set(log.tiles) == set(new_tiles(0, size))
    for tile, data in log.tiles.items():
        if tile.level == ENTRIES:
            first = tile.index * 256
            assert unpack_entries(data) == tuple(log.leaves[first : first + tile.width])
            continue
        span = 256**tile.level
        hashes = [
            root_of(log.hashes[(tile.index * 256 + i) * span : (tile.index * 256 + i + 1) * span])
            for i in range(tile.width)
        ]
        assert data == b"".join(hashes)


def test_ti1_a_tree_of_70000_has_the_tiles_that_the_specification_lists() -> None:
    # c2sp.org/tlog-tiles, "Partial Tiles": its own example.
    tiles = [tile for tile in new_tiles(0, 70_000) if tile.level != ENTRIES]
    assert sum(tile.level == 0 and tile.width == 256 for tile in tiles) == 273
    partial = [(tile.level, tile.width) for tile in tiles if tile.width < 256]
    assert partial == [(0, 112), (1, 17), (2, 1)]
    assert sum(tile.level == 1 and tile.width == 256 for tile in tiles) == 1
    assert [tile.path for tile in new_tiles(255, 256)] == ["tile/entries/000", "tile/0/000", "tile/1/000.p/1"]


@given(st.integers(0, 3000), st.integers(0, 3000))
def test_ti1_growing_in_steps_makes_the_same_tiles(first: int, second: int) -> None:
    low, high = sorted((first, second))
    assert set(new_tiles(0, high)) - set(new_tiles(0, low)) == set(new_tiles(low, high))


@given(st.integers(-1, 63), st.integers(0, 10**15), st.integers(1, 256))
def test_ti2_a_path_is_read_back(level: int, index: int, width: int) -> None:
    tile = Tile(level=level, index=index, width=width)
    assert parse_tile(tile.path) == tile


def test_ti2_the_path_of_the_specifications_example() -> None:
    assert Tile(level=0, index=1_234_067, width=256).path == "tile/0/x001/x234/067"


@pytest.mark.parametrize(
    "path",
    ["", "tile", "tile/0", "tile/0/", "tile/0/0", "tile/0/00", "tile/00/000", "tile/64/000", "tile/-1/000",
     "tile/0/x000/000", "tile/0/001/000", "tile/0/x1/000", "tile/0/000.p/0", "tile/0/000.p/256",
     "tile/0/000.p/01", "tile/0/000.p/", "tile/0/000/", "/tile/0/000", "tile/0/../0/000", "tile/0/000\n",
     "tile/entries/x001", "tile/data/000", "tile/0/000.p/1/2", "tile/0/\u0660\u0660\u0660"],
)  # fmt: skip
def test_ti2_any_other_text_is_refused(path: str) -> None:
    with pytest.raises(TlogError):
        parse_tile(path)


@pytest.mark.parametrize("size", SIZES)
def test_ti3_proofs_from_tiles_are_those_from_leaves(size: int) -> None:
    log = Log(size)
    assert root_from_tiles(size, log.read) == root_of(log.hashes) == log.edge.tree.root()
    for index in {0, 1, 254, 255, 256, size // 2, size - 1} & set(range(size)):
        assert inclusion_from_tiles(index, size, log.read) == inclusion_proof(log.hashes, index)
    for old in {1, 2, 255, 256, 257, size // 2, size - 1, size} & set(range(1, size + 1)):
        assert consistency_from_tiles(old, size, log.read) == consistency_proof(log.hashes, old)


@pytest.mark.parametrize("index", [0, 255, 256, 65_535, 65_536, BIG - 1])
def test_ti3_proofs_across_three_levels(big: Log, index: int) -> None:
    assert inclusion_from_tiles(index, BIG, big.read) == inclusion_proof(big.hashes, index)
    assert consistency_from_tiles(index + 1, BIG, big.read) == consistency_proof(big.hashes, index + 1)


def test_ti3_there_is_no_proof_of_what_is_not_there() -> None:
    log = Log(3)
    for index in (-1, 3):
        with pytest.raises(TlogError):
            inclusion_from_tiles(index, 3, log.read)
    with pytest.raises(TlogError):
        consistency_from_tiles(4, 3, log.read)


@pytest.mark.parametrize("size", [0, *SIZES])
def test_ti4_a_restored_edge_goes_on(size: int) -> None:
    log = Log(size)
    restored = Edge.restore(size, log.read)
    assert restored.tree == log.edge.tree
    for number in range(300):
        leaf = b"later %d" % number
        assert restored.append(leaf) == log.edge.append(leaf)
    assert (restored.tree, restored.partials()) == (log.edge.tree, log.edge.partials())


def test_ti4_a_restored_edge_across_three_levels(big: Log) -> None:
    assert Edge.restore(BIG, big.read).tree == big.edge.tree


def test_ti4_a_bundle_that_is_not_what_its_hashes_say_is_refused() -> None:
    log = Log(3)
    bundle = Tile(level=ENTRIES, index=0, width=3)
    log.tiles[bundle] = pack_entries([b"leaf 0", b"leaf x", b"leaf 2"])
    with pytest.raises(TlogError, match="not what its hashes say"):
        Edge.restore(3, log.read)


# --- contents ---


@given(st.lists(st.binary(max_size=20), max_size=8), st.data())
def test_a_bundle_is_read_back_and_its_prefix_is_a_narrower_bundle(
    entries: list[bytes], data: st.DataObject
) -> None:
    packed = pack_entries(entries)
    assert unpack_entries(packed) == tuple(entries)
    if entries:
        width = data.draw(st.integers(1, len(entries)))
        assert prefix_of(Tile(level=ENTRIES, index=0, width=width), packed) == pack_entries(entries[:width])


def test_what_is_cut_off_is_refused() -> None:
    packed = pack_entries([b"one", b"two"])
    for cut in (1, 2, 4, 6, len(packed) - 1):
        with pytest.raises(TlogError):
            unpack_entries(packed[:cut])
    for tile, data in [
        (Tile(level=ENTRIES, index=0, width=3), packed),
        (Tile(level=0, index=0, width=2), bytes(32)),
        (Tile(level=0, index=0, width=1), bytes(33)),
    ]:
        with pytest.raises(TlogError):
            prefix_of(tile, data)
    with pytest.raises(TlogError):
        pack_entries([bytes(65_536)])
    with pytest.raises(TlogError):
        Tile(level=0, index=0, width=257)
