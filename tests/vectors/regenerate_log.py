"""Writes tests/vectors/log/ again from fixed keys: proofs, checkpoints and cosignatures, valid and not.

    python tests/vectors/regenerate_log.py

Every file is `{"jws", "proof", "vkey", "witnesses", "quorum"}`, for the keys in ../receipts/keys.jwks.json;
those in `invalid/WHAT-IS-WRONG.json` have a `reason` too. What is wrong is signed by the right key unless the
name says otherwise.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evidence import KEYS, LOG_KEY, ORIGIN, OTHER_KEY, RECEIPT_KEY, T0, permit_statement, receipt_id
from holdgate.keys import PublicKey, SigningKey, key_set
from holdgate.note import parse_vkey, sign_checkpoint, vkey
from holdgate.receipt import sign
from holdgate.tlog import EMPTY, TlogError, Tree, inclusion_proof, leaf_hash
from holdgate.tlogproof import Proof, format_proof, parse_proof
from holdgate.verification import Finding, Trust, judge
from vectors.folder import write

FOLDER = Path(__file__).resolve().parent / "log"
SIZE = 300  # more than one tile
LEAVES = [
    sign(
        permit_statement(receipt_id=receipt_id(n), iat_us=T0 + n, via="", replay_of=receipt_id(900)),
        RECEIPT_KEY,
    )
    for n in range(SIZE)
]
HASHES = [leaf_hash(leaf) for leaf in LEAVES]
WITNESS = SigningKey(seed=bytes(range(4, 36)))
WITNESS_NAME = "witness.example/w1"


def _tree(size: int) -> Tree:
    tree = EMPTY
    for item in HASHES[:size]:
        tree = tree.append(item)
    return tree


def _cosigner_vkey(name: str, key: PublicKey) -> tuple[str, bytes]:
    public = b"\x04" + key.raw
    key_id = hashlib.sha256(name.encode() + b"\n" + public).digest()[:4]
    return f"{name}+{key_id.hex()}+{base64.b64encode(public).decode()}", key_id


def _cosigned(note: bytes, text: bytes | None = None, time_s: int = T0 // 1_000_000) -> bytes:
    message = note[: note.index(b"\n\n") + 1] if text is None else text
    signature = WITNESS.sign(f"cosignature/v1\ntime {time_s}\n".encode() + message)
    _, key_id = _cosigner_vkey(WITNESS_NAME, WITNESS.public)
    line = base64.b64encode(key_id + time_s.to_bytes(8) + signature).decode()
    return note + f"\u2014 {WITNESS_NAME} {line}\n".encode()


def _row(index: int, proof: bytes, *, leaf: int = -1, quorum: int = 0) -> dict[str, Any]:
    witness, _ = _cosigner_vkey(WITNESS_NAME, WITNESS.public)
    return {
        "jws": LEAVES[index if leaf < 0 else leaf].decode(),
        "proof": proof.decode("utf-8"),
        "vkey": vkey(ORIGIN, LOG_KEY.public),
        "witnesses": [witness],
        "quorum": quorum,
    }


def _proof(index: int, size: int = SIZE, note: bytes | None = None) -> bytes:
    checkpoint = sign_checkpoint(ORIGIN, _tree(size), LOG_KEY) if note is None else note
    return format_proof(Proof(index=index, path=inclusion_proof(HASHES[:size], index), checkpoint=checkpoint))


def valid() -> Iterator[tuple[str, dict[str, Any]]]:
    for index, size in ((0, 1), (0, SIZE), (255, SIZE), (256, SIZE), (299, SIZE), (4, 7), (6, 7)):
        yield f"leaf-{index}-of-{size}", _row(index, _proof(index, size))
    note = sign_checkpoint(ORIGIN, _tree(SIZE), LOG_KEY)
    yield "cosigned", _row(17, _proof(17, note=_cosigned(note)), quorum=1)
    yield "extra-data", _row(17, _proof(17).replace(b"\nindex", b"\nextra aG9sZGdhdGU=\nindex", 1))


def invalid() -> Iterator[tuple[str, dict[str, Any]]]:
    good, note = _proof(17), sign_checkpoint(ORIGIN, _tree(SIZE), LOG_KEY)
    head, _, _ = good.partition(b"\n\n")
    lines = head.split(b"\n")
    yield "another-receipt", _row(17, good, leaf=18)
    yield "another-index", _row(17, good.replace(b"index 17", b"index 18"))
    yield "index-with-a-leading-zero", _row(17, good.replace(b"index 17", b"index 017"))
    yield "index-beyond-the-tree", _row(17, good.replace(b"index 17", b"index 300"))
    yield "a-hash-missing", _row(17, good.replace(lines[2] + b"\n", b"", 1))
    doubled = lines[-1] + b"\n" + lines[-1] + b"\n\n"
    yield "a-hash-too-many", _row(17, good.replace(lines[-1] + b"\n\n", doubled))
    yield "hashes-in-the-wrong-order", _row(17, b"\n".join([*lines[:2], *lines[:1:-1]]) + b"\n\n" + note)
    yield "a-hash-of-31-bytes", _row(17, good.replace(lines[2], base64.b64encode(bytes(31)), 1))
    yield "base64-without-padding", _row(17, good.replace(lines[2], lines[2].rstrip(b"="), 1))
    yield "another-version", _row(17, good.replace(b"@v1", b"@v2", 1))
    yield "no-checkpoint", _row(17, head + b"\n\n")
    other = sign_checkpoint(ORIGIN, _tree(SIZE), OTHER_KEY)
    yield "checkpoint-signed-by-another-key", _row(17, _proof(17, note=other))
    stray = sign_checkpoint("other.example", _tree(SIZE), LOG_KEY)
    yield "checkpoint-of-another-log", _row(17, _proof(17, note=stray))
    smaller = sign_checkpoint(ORIGIN, _tree(299), LOG_KEY)
    yield "checkpoint-of-a-smaller-tree", _row(17, _proof(17, note=smaller))
    yield "checkpoint-size-changed", _row(17, good.replace(b"\n300\n", b"\n301\n"))
    yield "checkpoint-without-signature", _row(17, good[: good.rindex(b"\n\n") + 2])
    yield "checkpoint-signed-twice", _row(17, good + good[good.rindex("\u2014".encode()) :])
    yield "quorum-not-met", _row(17, good, quorum=1)
    moved = _cosigned(note, text=smaller[: smaller.index(b"\n\n") + 1])
    yield "cosignature-of-another-checkpoint", _row(17, _proof(17, note=moved), quorum=1)
    late = _cosigned(note)
    swapped = late[:-3] + (b"A" if late[-3:-2] != b"A" else b"B") + late[-2:]
    yield "cosignature-with-a-changed-byte", _row(17, _proof(17, note=swapped), quorum=1)


def found_in(row: dict[str, Any]) -> Finding:
    """What the verifier says of a vector; a proof that cannot be read is a finding too."""
    trust = Trust(
        keys=key_set(KEYS.values()),
        log=(parse_vkey(row["vkey"]),),
        witnesses=tuple(parse_vkey(text) for text in row["witnesses"]),
        quorum=row["quorum"],
        require_permit=True,
    )
    try:
        return judge(row["jws"].encode(), trust, parse_proof(row["proof"].encode()))
    except TlogError as error:
        return Finding(reason=str(error), statement=None, inclusion=None)


def files() -> dict[str, str]:
    """Every vector file: relative path -> content."""
    found = {}
    for name, row in valid():
        if reason := found_in(row).reason:
            raise SystemExit(f"{name} does not verify: {reason}")
        found[f"valid/{name}.json"] = _text(row)
    for name, row in invalid():
        finding = found_in(row)
        if finding.ok:
            raise SystemExit(f"{name} verifies")
        found[f"invalid/{name}.json"] = _text(row | {"reason": finding.reason})
    return found


def _text(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    write(FOLDER, files())
