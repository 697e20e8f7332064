"""tlog.py: the invariants in its docstring; the oracle is RFC 6962's own recursion."""

from __future__ import annotations

import base64
import hashlib

import pytest

from evidence import LOG_KEY, ORIGIN, OTHER_KEY
from holdgate.tlog import (
    EMPTY,
    TlogError,
    Tree,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    sign_checkpoint,
    verify_checkpoint,
    verify_consistency,
    verify_inclusion,
    vkey,
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


def test_t3_a_checkpoint_is_a_signed_note_that_any_c2sp_tool_reads() -> None:
    tree = _tree(5)
    note = sign_checkpoint(ORIGIN, tree, LOG_KEY)
    root = base64.b64encode(_mth(LEAVES[:5])).decode()
    text = f"{ORIGIN}\n5\n{root}\n".encode()
    # signed-note: key id = SHA-256(name, newline, algorithm byte, key)[:4], before the signature
    key_id = hashlib.sha256(ORIGIN.encode() + b"\n\x01" + LOG_KEY.public.raw).digest()[:4]
    encoded = base64.b64encode(key_id + LOG_KEY.sign(text)).decode()
    assert note == text + f"\n\u2014 {ORIGIN} {encoded}\n".encode()
    assert vkey(ORIGIN, LOG_KEY.public) == (
        f"{ORIGIN}+{key_id.hex()}+{base64.b64encode(bytes([1]) + LOG_KEY.public.raw).decode()}"
    )
    checkpoint = verify_checkpoint(note, ORIGIN, LOG_KEY.public)
    assert (checkpoint.size, checkpoint.root) == (5, tree.root())


def test_t3_any_changed_byte_is_refused() -> None:
    note = sign_checkpoint(ORIGIN, _tree(5), LOG_KEY)
    for position in range(len(note)):
        for change in (note[position] ^ 1, note[position] ^ 0x80):
            changed = note[:position] + bytes([change]) + note[position + 1 :]
            with pytest.raises(TlogError):
                verify_checkpoint(changed, ORIGIN, LOG_KEY.public)
    for cut in range(len(note)):
        with pytest.raises(TlogError):
            verify_checkpoint(note[:cut], ORIGIN, LOG_KEY.public)


def test_t3_a_root_that_is_not_ascii_is_refused() -> None:
    with pytest.raises(TlogError):
        verify_checkpoint(f"{ORIGIN}\n5\né\n\n— {ORIGIN} AAAA\n".encode(), ORIGIN, LOG_KEY.public)


def test_t3_another_origin_or_key_is_refused() -> None:
    note = sign_checkpoint(ORIGIN, _tree(5), LOG_KEY)
    for origin, key in ((ORIGIN + "x", LOG_KEY), (ORIGIN, OTHER_KEY)):
        with pytest.raises(TlogError):
            verify_checkpoint(note, origin, key.public)


def test_t3_a_witness_cosignature_is_skipped_and_a_second_one_of_ours_is_not() -> None:
    note = sign_checkpoint(ORIGIN, _tree(5), LOG_KEY)
    witness = f"\u2014 witness.example/w {base64.b64encode(bytes(76)).decode()}\n".encode()
    assert verify_checkpoint(note + witness, ORIGIN, LOG_KEY.public).size == 5
    ours = note[note.index(b"\n\n") + 2 :]
    for extra in (ours, b"\n", b"junk\n", b"\xff\n"):
        with pytest.raises(TlogError):
            verify_checkpoint(note + extra, ORIGIN, LOG_KEY.public)


@pytest.mark.parametrize("size", ["05", "-1", "+5", " 5", "5 ", "\u0665", "5.0", ""])
def test_t3_a_size_has_one_spelling(size: str) -> None:
    text = f"{ORIGIN}\n{size}\n{base64.b64encode(bytes(32)).decode()}\n".encode()
    key_id = hashlib.sha256(ORIGIN.encode() + b"\n\x01" + LOG_KEY.public.raw).digest()[:4]
    signature = base64.b64encode(key_id + LOG_KEY.sign(text)).decode()
    with pytest.raises(TlogError):
        verify_checkpoint(text + f"\n\u2014 {ORIGIN} {signature}\n".encode(), ORIGIN, LOG_KEY.public)


@pytest.mark.parametrize("origin", ["", "a b", "a+b", "a\nb", "a" * 256])
def test_an_origin_that_breaks_the_note_format_is_refused(origin: str) -> None:
    with pytest.raises(TlogError):
        vkey(origin, LOG_KEY.public)
    with pytest.raises(TlogError):
        sign_checkpoint(origin, EMPTY, LOG_KEY)
