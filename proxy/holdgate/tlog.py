"""The log's tree (RFC 6962): leaves become a root, and a root has proofs.

`Tree` is the compact form of a tree that only grows: the roots of its perfect subtrees, at most
64 hashes. It is a value; the ledger keeps it in the same transaction as the leaves. A proof is a list
of ranges of leaves first (`inclusion_ranges`), and their hashes second, from wherever those are kept:
in a list here, in tiles in tiles.py. Heads are signed in note.py.

Invariants (tests/test_tlog.py has one test named after each):
  T1  Tree.root() is the RFC 6962 Merkle tree hash of the leaves that were appended, in order.
  T2  A proof verifies only for its leaf, index, size and root.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from .errors import HoldgateError

__all__ = [
    "EMPTY",
    "Range",
    "TlogError",
    "Tree",
    "consistency_proof",
    "consistency_ranges",
    "inclusion_proof",
    "inclusion_ranges",
    "leaf_hash",
    "node_hash",
    "root_of",
    "root_of_perfect",
    "verify_consistency",
    "verify_inclusion",
]

_sha256: Final = hashlib.sha256


class TlogError(HoldgateError):
    """A checkpoint or proof is not valid."""


def leaf_hash(leaf: bytes) -> bytes:
    return _sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return _sha256(b"\x01" + left + right).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    size: int
    hashes: tuple[bytes, ...]  # roots of the perfect subtrees, the largest (leftmost) first

    def __post_init__(self) -> None:
        if self.size < 0 or len(self.hashes) != self.size.bit_count():
            raise TlogError("a tree of this size has another number of subtrees")

    def append(self, leaf: bytes) -> Tree:
        """The tree with one more leaf, given by its leaf_hash."""
        keep, carry, node = len(self.hashes), self.size, leaf
        while carry & 1:
            keep -= 1
            node = node_hash(self.hashes[keep], node)
            carry >>= 1
        return Tree(size=self.size + 1, hashes=(*self.hashes[:keep], node))

    def root(self) -> bytes:
        if not self.hashes:
            return _sha256(b"").digest()
        node = self.hashes[-1]
        for left in self.hashes[-2::-1]:
            node = node_hash(left, node)
        return node


EMPTY: Final = Tree(size=0, hashes=())


# --- proofs (RFC 6962 2.1.1, 2.1.2; verification as in RFC 9162 2.1.3.2, 2.1.4.2) ---

type Range = tuple[int, int]  # leaves first to last-but-one


def root_of(hashes: Sequence[bytes]) -> bytes:
    """The Merkle tree hash over the leaf (or subtree) hashes `hashes`."""
    if not hashes:
        return EMPTY.root()
    # Pairs, level by level; an odd last one goes up as it is. That is the tree of RFC 6962 2.1.
    level = list(hashes)
    while len(level) > 1:
        pairs = zip(level[::2], level[1::2], strict=False)
        last = level[-1:] if len(level) % 2 else []
        level = [_sha256(b"\x01" + left + right).digest() for left, right in pairs] + last
    return level[0]


def root_of_perfect(packed: bytes) -> bytes:
    """root_of() of a power of two of hashes that lie one behind the other, as in a tile."""
    while len(packed) > 32:
        pairs = range(0, len(packed), 64)
        packed = b"".join([_sha256(b"\x01" + packed[at : at + 64]).digest() for at in pairs])
    return packed


def _split(size: int) -> int:
    """The largest power of two below `size` (size > 1)."""
    return 1 << ((size - 1).bit_length() - 1)


def inclusion_ranges(index: int, size: int) -> tuple[Range, ...]:
    """The ranges of leaves whose hashes are the audit path of leaf `index` in a tree of `size` leaves."""
    if not 0 <= index < size:
        raise TlogError("there is no such leaf")
    path: list[Range] = []
    low, high = 0, size
    while high - low > 1:
        middle = low + _split(high - low)
        if index < middle:
            path.append((middle, high))
            high = middle
        else:
            path.append((low, middle))
            low = middle
    return tuple(reversed(path))


def inclusion_proof(hashes: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """The audit path of leaf `index` in the tree over the leaf hashes `hashes`."""
    return tuple(root_of(hashes[low:high]) for low, high in inclusion_ranges(index, len(hashes)))


def verify_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Whether `path` proves that the leaf hash `leaf` is number `index` of the tree (size, root)."""
    if not 0 <= index < size:
        return False
    fn, sn, node = index, size - 1, leaf
    for item in path:
        if sn == 0 or len(item) != 32:
            return False
        if fn & 1 or fn == sn:
            node = node_hash(item, node)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            node = node_hash(node, item)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and node == root


def consistency_ranges(old_size: int, size: int) -> tuple[Range, ...]:
    """The ranges of leaves whose hashes prove that the first `old_size` leaves are a prefix of `size`."""
    if not 0 < old_size <= size:
        raise TlogError("the old size must be between 1 and the size")
    path: list[Range] = []
    low, high = 0, size
    while old_size < high:
        middle = low + _split(high - low)
        if old_size <= middle:
            path.append((middle, high))
            high = middle
        else:
            path.append((low, middle))
            low = middle
    if low:  # else the old tree is exactly the subtree looked at, so its root is known to the verifier
        path.append((low, high))
    return tuple(reversed(path))


def consistency_proof(hashes: Sequence[bytes], old_size: int) -> tuple[bytes, ...]:
    """The proof that the first `old_size` leaves are a prefix of the tree over `hashes`."""
    return tuple(root_of(hashes[low:high]) for low, high in consistency_ranges(old_size, len(hashes)))


def verify_consistency(old_size: int, old_root: bytes, size: int, root: bytes, path: Sequence[bytes]) -> bool:
    """Whether `path` proves that the tree (size, root) starts with the tree (old_size, old_root)."""
    if not 0 < old_size <= size:
        return False
    if old_size == size:
        return not path and old_root == root
    steps = list(path) if old_size & (old_size - 1) else [old_root, *path]
    if not steps or any(len(item) != 32 for item in steps):
        return False
    fn, sn = old_size - 1, size - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    old = new = steps[0]
    for item in steps[1:]:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            old, new = node_hash(item, old), node_hash(item, new)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            new = node_hash(new, item)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and old == old_root and new == root
