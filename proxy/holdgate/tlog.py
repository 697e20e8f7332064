"""The log's mathematics: leaves become a tree head (RFC 6962), a tree head becomes a signed note (C2SP).

`Tree` is the compact form of a tree that only grows: the roots of its perfect subtrees, at most
64 hashes. It is a value; the ledger keeps it in the same transaction as the leaves.

Invariants (tests/test_tlog.py has one test named after each):
  T1  Tree.root() is the RFC 6962 Merkle tree hash of the leaves that were appended, in order.
  T2  A proof verifies only for its leaf, index, size and root.
  T3  A checkpoint verifies only under its origin's log key; every byte of its text is signed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from .errors import HoldgateError
from .keys import PublicKey, SigningKey

__all__ = [
    "EMPTY",
    "Checkpoint",
    "TlogError",
    "Tree",
    "consistency_proof",
    "inclusion_proof",
    "leaf_hash",
    "sign_checkpoint",
    "verify_checkpoint",
    "verify_consistency",
    "verify_inclusion",
    "vkey",
]

_sha256: Final = hashlib.sha256
_ED25519: Final = b"\x01"  # signed-note algorithm byte
_ORIGIN: Final = re.compile(r"[^\s+\x00-\x1f\x7f]{1,255}\Z").match
_SIZE: Final = re.compile(r"(0|[1-9][0-9]{0,18})\Z").match


class TlogError(HoldgateError):
    """A checkpoint or proof is not valid."""


def leaf_hash(leaf: bytes) -> bytes:
    return _sha256(b"\x00" + leaf).digest()


def _node(left: bytes, right: bytes) -> bytes:
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
            node = _node(self.hashes[keep], node)
            carry >>= 1
        return Tree(size=self.size + 1, hashes=(*self.hashes[:keep], node))

    def root(self) -> bytes:
        if not self.hashes:
            return _sha256(b"").digest()
        node = self.hashes[-1]
        for left in self.hashes[-2::-1]:
            node = _node(left, node)
        return node


EMPTY: Final = Tree(size=0, hashes=())


# --- proofs (RFC 6962 2.1.1, 2.1.2; verification as in RFC 9162 2.1.3.2, 2.1.4.2) ---


def _root_of(hashes: Sequence[bytes]) -> bytes:
    tree = EMPTY
    for item in hashes:
        tree = tree.append(item)
    return tree.root()


def _split(size: int) -> int:
    """The largest power of two below `size` (size > 1)."""
    return 1 << ((size - 1).bit_length() - 1)


def inclusion_proof(hashes: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """The audit path of leaf `index` in the tree over the leaf hashes `hashes`."""
    if not 0 <= index < len(hashes):
        raise TlogError("there is no such leaf")
    path: list[bytes] = []
    while len(hashes) > 1:
        half = _split(len(hashes))
        if index < half:
            path.append(_root_of(hashes[half:]))
            hashes = hashes[:half]
        else:
            path.append(_root_of(hashes[:half]))
            hashes, index = hashes[half:], index - half
    return tuple(reversed(path))


def verify_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Whether `path` proves that the leaf hash `leaf` is number `index` of the tree (size, root)."""
    if not 0 <= index < size:
        return False
    fn, sn, node = index, size - 1, leaf
    for item in path:
        if sn == 0 or len(item) != 32:
            return False
        if fn & 1 or fn == sn:
            node = _node(item, node)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            node = _node(node, item)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and node == root


def consistency_proof(hashes: Sequence[bytes], old_size: int) -> tuple[bytes, ...]:
    """The proof that the first `old_size` leaves are a prefix of the tree over `hashes`."""
    if not 0 < old_size <= len(hashes):
        raise TlogError("the old size must be between 1 and the size")
    path: list[bytes] = []
    whole = True  # the old tree is exactly the subtree looked at, so its root is known to the verifier
    while old_size < len(hashes):
        half = _split(len(hashes))
        if old_size <= half:
            path.append(_root_of(hashes[half:]))
            hashes = hashes[:half]
        else:
            path.append(_root_of(hashes[:half]))
            hashes, old_size, whole = hashes[half:], old_size - half, False
    if not whole:
        path.append(_root_of(hashes))
    return tuple(reversed(path))


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
            old, new = _node(item, old), _node(item, new)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            new = _node(new, item)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and old == old_root and new == root


# --- checkpoints (C2SP tlog-checkpoint over signed-note) ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    origin: str
    size: int
    root: bytes


def _key_id(origin: str, key: PublicKey) -> bytes:
    return _sha256(origin.encode() + b"\n" + _ED25519 + key.raw).digest()[:4]


def vkey(origin: str, key: PublicKey) -> str:
    """The verifier key text of a log, `name+keyid+base64`."""
    if not _ORIGIN(origin):
        raise TlogError("a log origin has no white space, no control character and no +")
    return f"{origin}+{_key_id(origin, key).hex()}+{base64.b64encode(_ED25519 + key.raw).decode()}"


def _text(origin: str, size: int, root: bytes) -> bytes:
    return f"{origin}\n{size}\n{base64.b64encode(root).decode()}\n".encode()


def sign_checkpoint(origin: str, tree: Tree, key: SigningKey) -> bytes:
    """The signed note that commits the log to `tree`."""
    if not _ORIGIN(origin):
        raise TlogError("a log origin has no white space, no control character and no +")
    text = _text(origin, tree.size, tree.root())
    signature = base64.b64encode(_key_id(origin, key.public) + key.sign(text)).decode()
    return text + f"\n\u2014 {origin} {signature}\n".encode()


def verify_checkpoint(note: bytes, origin: str, key: PublicKey) -> Checkpoint:
    """The checkpoint in `note`, if the log signed it; others' cosignatures are skipped. Raises TlogError."""
    head, separator, tail = note.partition(b"\n\n")
    text = head + b"\n"
    try:
        lines = text.decode("utf-8").split("\n")
        signatures = tail.decode("utf-8").split("\n")
        if not separator or len(lines) != 4 or signatures.pop() != "" or not _SIZE(lines[1]):
            raise TlogError("not a checkpoint")
        checkpoint = Checkpoint(
            origin=lines[0], size=int(lines[1]), root=base64.b64decode(lines[2], validate=True)
        )
    except ValueError as error:  # no UTF-8, no ASCII, or no base64
        raise TlogError("not a checkpoint") from error
    if checkpoint.origin != origin or _text(origin, checkpoint.size, checkpoint.root) != text:
        raise TlogError("the checkpoint is of another log, or not canonical")
    if len(checkpoint.root) != 32 or not _is_signed(text, signatures, origin, key):
        raise TlogError("the checkpoint is not signed by the log key")
    return checkpoint


def _is_signed(text: bytes, lines: Sequence[str], origin: str, key: PublicKey) -> bool:
    found = False
    for line in lines:
        dash, _, rest = line.partition(" ")
        name, _, encoded = rest.partition(" ")
        try:
            data = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            return False
        if dash != "\u2014" or not name or len(data) < 5:
            return False
        if name == origin and data[:4] == _key_id(origin, key):
            if found or not key.verifies(text, data[4:]):
                return False
            found = True
    return found
