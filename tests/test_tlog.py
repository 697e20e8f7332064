"""tlog.py: the invariants in its docstring; the oracle is RFC 6962's own recursion."""

from __future__ import annotations

import hashlib

import pytest

from holdgate.tlog import (
    EMPTY,
    TlogError,
    Tree,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    root_of,
    root_of_perfect,
    verify_consistency,
    verify_inclusion,
)

LEAVES = [b"leaf %d" % i for i in range(33)]
HASHES = [leaf_hash(leaf) for leaf in LEAVES]


def _mth(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1, word for word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + _mth(leaves[:k]) + _mth(leaves[k:])).digest()


def _tree(size: int) -> Tree:
    tree = EMPTY
    for item in HASHES[:size]:
        tree = tree.append(item)
    return tree


@pytest.mark.parametrize("size", range(len(LEAVES) + 1))
def test_t1_the_root_is_the_merkle_tree_hash(size: int) -> None:
    tree = _tree(size)
    assert tree.root() == _mth(LEAVES[:size])
    assert tree.size == size
    assert Tree(size=size, hashes=tree.hashes) == tree


def test_t1_a_size_that_does_not_fit_its_subtrees_is_refused() -> None:
    with pytest.raises(TlogError):
        Tree(size=3, hashes=(HASHES[0],))
    with pytest.raises(TlogError):
        Tree(size=-1, hashes=(HASHES[0],))


def test_t2_every_inclusion_proof_verifies_and_only_as_itself() -> None:
    for size in range(1, 18):
        root = _mth(LEAVES[:size])
        for index in range(size):
            path = inclusion_proof(HASHES[:size], index)
            assert verify_inclusion(HASHES[index], index, size, path, root)
            assert not verify_inclusion(HASHES[-1], index, size, path, root)
            assert not verify_inclusion(
                HASHES[index], index, size, path, HASHES[0] if size > 1 else HASHES[1]
            )
            assert not verify_inclusion(HASHES[index], index, size, (*path, HASHES[0]), root)
            assert not path or not verify_inclusion(HASHES[index], index, size, path[:-1], root)
            for other in range(size):
                if other != index:
                    assert not verify_inclusion(HASHES[index], other, size, path, root)
    assert not verify_inclusion(HASHES[0], 0, 0, (), _mth([]))
    assert not verify_inclusion(HASHES[0], -1, 1, (), HASHES[0])


def test_t2_every_consistency_proof_verifies_and_only_as_itself() -> None:
    for size in range(1, 18):
        for old in range(1, size + 1):
            path = consistency_proof(HASHES[:size], old)
            old_root, root = _mth(LEAVES[:old]), _mth(LEAVES[:size])
            assert verify_consistency(old, old_root, size, root, path)
            assert not verify_consistency(old, HASHES[-1], size, root, path)
            assert not verify_consistency(old, old_root, size, HASHES[-1], path)
            assert not verify_consistency(old, old_root, size, root, (*path, HASHES[0]))
            assert not path or not verify_consistency(old, old_root, size, root, path[:-1])
    assert not verify_consistency(0, _mth([]), 1, HASHES[0], ())
    assert not verify_consistency(2, HASHES[0], 1, HASHES[0], ())


def test_proofs_of_leaves_that_are_not_there_are_refused() -> None:
    for index in (-1, 3):
        with pytest.raises(TlogError):
            inclusion_proof(HASHES[:3], index)
    for old in (0, 4):
        with pytest.raises(TlogError):
            consistency_proof(HASHES[:3], old)


@pytest.mark.parametrize("height", range(9))
def test_t1_the_root_of_a_perfect_subtree_out_of_a_tile_is_the_root_of_its_hashes(height: int) -> None:
    hashes = [leaf_hash(bytes([number % 256])) for number in range(1 << height)]
    assert root_of_perfect(b"".join(hashes)) == root_of(hashes)
