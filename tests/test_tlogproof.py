"""tlogproof.py: the invariants in its docstring."""

from __future__ import annotations

import base64
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from evidence import LOG_KEY, ORIGIN, OTHER_KEY
from holdgate.note import SignatureType, Verifier, sign_checkpoint
from holdgate.tlog import EMPTY, TlogError, inclusion_proof, leaf_hash
from holdgate.tlogproof import HEADER, Proof, format_consistency, format_proof, parse_proof, verify_proof

LEAVES = [b"leaf %d" % number for number in range(7)]
HASHES = [leaf_hash(leaf) for leaf in LEAVES]
LOG = Verifier(name=ORIGIN, type=SignatureType.ED25519, key=LOG_KEY.public)


def _proof(index: int) -> Proof:
    tree = EMPTY
    for item in HASHES:
        tree = tree.append(item)
    note = sign_checkpoint(ORIGIN, tree, LOG_KEY)
    return Proof(index=index, path=inclusion_proof(HASHES, index), checkpoint=note)


@pytest.mark.parametrize("index", range(7))
def test_tp1_a_proof_is_read_back(index: int) -> None:
    proof = _proof(index)
    assert parse_proof(format_proof(proof)) == proof


def test_tp1_the_text_is_that_of_the_specification() -> None:
    proof = _proof(6)  # a path of two hashes
    lines = format_proof(proof).decode().split("\n")
    assert lines[:2] == ["c2sp.org/tlog-proof@v1", "index 6"]
    assert [base64.b64decode(line) for line in lines[2:4]] == list(proof.path)
    assert lines[4] == "" and lines[5:8] == proof.checkpoint.decode().split("\n")[:3]


def test_tp1_extra_data_is_read_back() -> None:
    text = format_proof(_proof(1)).replace(b"\nindex", b"\nextra aGVsbG8=\nindex", 1)
    assert parse_proof(text) == replace(_proof(1), extra=b"hello")
    assert format_proof(parse_proof(text)) == text


@pytest.mark.parametrize(
    ("old", "new"),
    [(b"@v1", b"@v2"), (b"index 1", b"index 01"), (b"index 1", b"index -1"), (b"index 1", b"index  1"),
     (b"index 1", b"Index 1"), (b"index 1\n", b""), (b"index 1", b"extra x\nindex 1"), (b"=\n", b"\n"),
     (b"index 1\n", b"index 1\n\xff"), (b"index 1\n", b"index 1\nAAAA\n")],
    ids=lambda item: repr(item),
)  # fmt: skip
def test_tp1_any_other_spelling_is_refused(old: bytes, new: bytes) -> None:
    with pytest.raises(TlogError):
        parse_proof(format_proof(_proof(1)).replace(old, new, 1))


@pytest.mark.parametrize("data", [b"", b"\n\n", HEADER.encode(), HEADER.encode() + b"\n\n"])
def test_tp1_what_is_no_proof_is_refused(data: bytes) -> None:
    with pytest.raises(TlogError):
        parse_proof(data)


def test_tp2_a_proof_is_of_one_leaf_only() -> None:
    for index in range(7):
        proof = _proof(index)
        assert verify_proof(proof, LEAVES[index], LOG).size == 7
        for other in range(7):
            if other != index:
                with pytest.raises(TlogError, match="not of this receipt"):
                    verify_proof(proof, LEAVES[other], LOG)


def test_tp2_any_changed_byte_is_refused() -> None:
    text = format_proof(_proof(2))
    for position in range(len(text)):
        changed = text[:position] + bytes([text[position] ^ 1]) + text[position + 1 :]
        with pytest.raises(TlogError):
            verify_proof(parse_proof(changed), LEAVES[2], LOG)


def test_tp2_another_log_is_refused() -> None:
    for name, key in ((ORIGIN + "x", LOG_KEY), (ORIGIN, OTHER_KEY)):
        log = Verifier(name=name, type=SignatureType.ED25519, key=key.public)
        with pytest.raises(TlogError):
            verify_proof(_proof(2), LEAVES[2], log)


def test_a_consistency_proof_is_the_body_of_a_witness_request() -> None:
    path = [bytes(32), bytes(range(32))]
    # c2sp.org/tlog-witness: old size, hashes, an empty line, the checkpoint
    assert format_consistency(3, path, b"note\n").decode().split("\n") == [
        "old 3",
        base64.b64encode(path[0]).decode(),
        base64.b64encode(path[1]).decode(),
        "",
        "note",
        "",
    ]


# --- vectors ---

VECTORS = Path(__file__).parent / "vectors" / "log"
sys.path.insert(0, str(VECTORS.parent))
import regenerate_log  # noqa: E402  (a script beside its vectors, not a module)


@pytest.mark.parametrize("path", sorted(VECTORS.glob("valid/*.json")), ids=lambda path: path.stem)
def test_tp2_a_valid_vector_verifies(path: Path) -> None:
    found = regenerate_log.found_in(json.loads(path.read_text()))
    assert found.ok and found.inclusion is not None


@pytest.mark.parametrize("path", sorted(VECTORS.glob("invalid/*.json")), ids=lambda path: path.stem)
def test_tp2_an_invalid_vector_is_refused_for_its_reason(path: Path) -> None:
    row = json.loads(path.read_text())
    assert regenerate_log.found_in(row).reason == row["reason"] != ""


def test_the_vectors_are_those_that_the_script_writes() -> None:
    stored = {str(path.relative_to(VECTORS)): path.read_text() for path in VECTORS.rglob("*.json")}
    assert stored == regenerate_log.files()
    assert len(stored) > 25
