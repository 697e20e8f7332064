"""note.py: the invariants in its docstring; checkpoints written down once more without the code."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import replace

import pytest

from evidence import LOG_KEY, ORIGIN, OTHER_KEY
from holdgate.keys import SigningKey, key_set
from holdgate.note import (
    SignatureType,
    Verifier,
    cosigners,
    parse_vkey,
    sign_checkpoint,
    verify_checkpoint,
    verify_log,
    vkey,
)
from holdgate.tlog import EMPTY, TlogError, Tree, leaf_hash

HASHES = [leaf_hash(b"leaf %d" % number) for number in range(5)]
WITNESS_KEY = SigningKey(seed=bytes(range(3, 35)))
WITNESS = Verifier(name="witness.example/w", type=SignatureType.COSIGNATURE, key=WITNESS_KEY.public)


def _tree(size: int) -> Tree:
    tree = EMPTY
    for item in HASHES[:size]:
        tree = tree.append(item)
    return tree


def test_n1_a_checkpoint_is_a_signed_note_that_any_c2sp_tool_reads() -> None:
    tree = _tree(5)
    note = sign_checkpoint(ORIGIN, tree, LOG_KEY)
    root = base64.b64encode(tree.root()).decode()
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


def test_n1_any_changed_byte_is_refused() -> None:
    note = sign_checkpoint(ORIGIN, _tree(5), LOG_KEY)
    for position in range(len(note)):
        for change in (note[position] ^ 1, note[position] ^ 0x80):
            changed = note[:position] + bytes([change]) + note[position + 1 :]
            with pytest.raises(TlogError):
                verify_checkpoint(changed, ORIGIN, LOG_KEY.public)
    for cut in range(len(note)):
        with pytest.raises(TlogError):
            verify_checkpoint(note[:cut], ORIGIN, LOG_KEY.public)


def test_n1_another_origin_or_key_is_refused() -> None:
    note = sign_checkpoint(ORIGIN, _tree(5), LOG_KEY)
    for origin, key in ((ORIGIN + "x", LOG_KEY), (ORIGIN, OTHER_KEY)):
        with pytest.raises(TlogError):
            verify_checkpoint(note, origin, key.public)


def test_n1_a_witness_cosignature_is_skipped_and_a_second_one_of_ours_is_not() -> None:
    note = sign_checkpoint(ORIGIN, _tree(5), LOG_KEY)
    witness = f"\u2014 witness.example/w {base64.b64encode(bytes(76)).decode()}\n".encode()
    assert verify_checkpoint(note + witness, ORIGIN, LOG_KEY.public).size == 5
    ours = note[note.index(b"\n\n") + 2 :]
    for extra in (ours, b"\n", b"junk\n", b"\xff\n"):
        with pytest.raises(TlogError):
            verify_checkpoint(note + extra, ORIGIN, LOG_KEY.public)


@pytest.mark.parametrize("size", ["05", "-1", "+5", " 5", "5 ", "\u0665", "5.0", ""])
def test_n1_a_size_has_one_spelling(size: str) -> None:
    text = f"{ORIGIN}\n{size}\n{base64.b64encode(bytes(32)).decode()}\n".encode()
    key_id = hashlib.sha256(ORIGIN.encode() + b"\n\x01" + LOG_KEY.public.raw).digest()[:4]
    signature = base64.b64encode(key_id + LOG_KEY.sign(text)).decode()
    with pytest.raises(TlogError):
        verify_checkpoint(text + f"\n\u2014 {ORIGIN} {signature}\n".encode(), ORIGIN, LOG_KEY.public)


@pytest.mark.parametrize("origin", ["", "a b", "a+b", "a\nb", "a" * 256])
def test_n1_an_origin_that_breaks_the_note_format_is_refused(origin: str) -> None:
    with pytest.raises(TlogError):
        vkey(origin, LOG_KEY.public)
    with pytest.raises(TlogError):
        sign_checkpoint(origin, EMPTY, LOG_KEY)


# --- verifier keys ---


def test_n2_a_verifier_key_is_read_back_and_any_changed_character_is_refused() -> None:
    text = vkey(ORIGIN, LOG_KEY.public)
    assert parse_vkey(text) == Verifier(name=ORIGIN, type=SignatureType.ED25519, key=LOG_KEY.public)
    for position, character in enumerate(text):
        for other in "A0+/= \u00e9" if character != "A" else "B":
            if other != character:
                with pytest.raises(TlogError):
                    parse_vkey(text[:position] + other + text[position + 1 :])
    for cut in range(len(text)):
        with pytest.raises(TlogError):
            parse_vkey(text[:cut])


# --- witnesses ---


def _cosigned(note: bytes, time_s: int = 1_790_000_000, key: SigningKey = WITNESS_KEY) -> bytes:
    """c2sp.org/tlog-cosignature, word for word."""
    text = note[: note.index(b"\n\n") + 1]
    name = WITNESS.name.encode()
    key_id = hashlib.sha256(name + b"\n\x04" + WITNESS_KEY.public.raw).digest()[:4]
    signature = key.sign(b"cosignature/v1\ntime %d\n" % time_s + text)
    line = base64.b64encode(key_id + time_s.to_bytes(8, "big") + signature)
    return note + b"\xe2\x80\x94 " + name + b" " + line + b"\n"


def test_n3_a_witness_is_counted_once_and_strangers_are_not() -> None:
    note = sign_checkpoint(ORIGIN, _tree(5), LOG_KEY)
    assert cosigners(note, [WITNESS]) == frozenset()
    once = _cosigned(note)
    assert verify_checkpoint(once, ORIGIN, LOG_KEY.public).size == 5
    assert cosigners(once, [WITNESS, WITNESS]) == {WITNESS.name}
    assert cosigners(_cosigned(once, 1_790_000_001), [WITNESS]) == {WITNESS.name}
    stranger = Verifier(name="other.example", type=SignatureType.COSIGNATURE, key=WITNESS_KEY.public)
    assert cosigners(once, [stranger]) == frozenset()
    assert cosigners(once, []) == frozenset()


def test_n3_a_cosignature_of_anything_else_makes_the_note_invalid() -> None:
    note, other = (sign_checkpoint(ORIGIN, _tree(size), LOG_KEY) for size in (5, 4))
    moved = _cosigned(other)[len(other) :]
    for wrong in (note + moved, _cosigned(note, key=OTHER_KEY), _cosigned(note, 2**63)):
        with pytest.raises(TlogError, match="the signature of witness"):
            cosigners(wrong, [WITNESS])
    good = _cosigned(note)
    for position in range(good.index(b"\n\n")):
        changed = good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :]
        with pytest.raises(TlogError):
            cosigners(changed, [WITNESS])


# --- N4 ---


def test_n4_each_log_key_counts_for_its_sizes_only() -> None:
    first = replace(LOG_KEY.public, end_index=4)  # trees up to 4 leaves
    second = replace(OTHER_KEY.public, first_index=3)
    keys = key_set([first, second])
    trees = {size: Tree(size=size, hashes=(bytes(32),) * size.bit_count()) for size in (0, 3, 4, 5)}
    for size, key, counts in (
        (0, LOG_KEY, True),
        (3, LOG_KEY, True),
        (4, LOG_KEY, True),
        (5, LOG_KEY, False),
        (3, OTHER_KEY, False),
        (4, OTHER_KEY, True),
        (5, OTHER_KEY, True),
    ):
        note = sign_checkpoint(ORIGIN, trees[size], key)
        if counts:
            assert verify_log(note, ORIGIN, keys).size == size
        else:
            with pytest.raises(TlogError, match="does not count"):
                verify_log(note, ORIGIN, keys)
    both = sign_checkpoint(ORIGIN, trees[4], LOG_KEY, OTHER_KEY)
    for one in (keys, key_set([first]), key_set([second])):
        assert verify_log(both, ORIGIN, one).size == 4
    with pytest.raises(TlogError, match="another log"):
        verify_log(both, "holdgate.local/other", keys)
    lines = both.decode().splitlines(keepends=True)
    swapped = "".join([*lines[:4], lines[5][:-8] + "AAAAAA==\n"]).encode()
    with pytest.raises(TlogError):
        verify_log(swapped, ORIGIN, keys)
