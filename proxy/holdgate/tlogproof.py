"""Proof files: what convinces a stranger that a receipt is in the log, in one text.

    index, audit path, checkpoint <-> c2sp.org/tlog-proof (v1); old size, path, checkpoint <-> the request
    `add-checkpoint` of c2sp.org/tlog-witness

Invariants (tests/test_tlogproof.py has one test named after each):
  TP1  parse_proof() gives back what format_proof() wrote, and accepts no other spelling of it.
  TP2  verify_proof() accepts only a leaf that is in the tree that the log's key signed.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from .keys import key_set
from .note import Checkpoint, Verifier, b64_exact, verify_log
from .tlog import TlogError, leaf_hash, verify_inclusion

__all__ = ["HEADER", "Proof", "format_consistency", "format_proof", "parse_proof", "verify_proof"]

HEADER: Final = "c2sp.org/tlog-proof@v1"
_MAX_PATH: Final = 63
_INDEX: Final = re.compile(r"index (0|[1-9][0-9]{0,18})\Z", re.ASCII).match


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    index: int
    path: tuple[bytes, ...]  # from the leaf's sibling to the root's child
    checkpoint: bytes  # the signed note, cosignatures included
    extra: bytes = b""  # what the log's owner adds: the receipt itself, where it hands over a log key


def _lines(path: Sequence[bytes]) -> str:
    return "".join(base64.b64encode(item).decode() + "\n" for item in path)


def format_proof(proof: Proof) -> bytes:
    """The text of a `.tlog-proof` file."""
    extra = f"extra {base64.b64encode(proof.extra).decode()}\n" if proof.extra else ""
    return f"{HEADER}\n{extra}index {proof.index}\n{_lines(proof.path)}\n".encode() + proof.checkpoint


def format_consistency(old_size: int, path: Sequence[bytes], checkpoint: bytes) -> bytes:
    """The body of an `add-checkpoint` request: it proves `checkpoint` consistent with `old_size` leaves."""
    return f"old {old_size}\n{_lines(path)}\n".encode() + checkpoint


def parse_proof(data: bytes) -> Proof:
    """The parts of a proof file; nothing in it is verified yet. Raises TlogError."""
    head, separator, checkpoint = data.partition(b"\n\n")
    try:
        lines = head.decode("ascii").split("\n")
    except UnicodeDecodeError as error:
        raise TlogError("not a tlog-proof") from error
    if not separator or lines[0] != HEADER or len(lines) < 2:
        raise TlogError(f"not a tlog-proof: the first line is {HEADER}")
    del lines[0]
    extra = b""
    if lines[0].startswith("extra "):
        extra = b64_exact(lines[0].removeprefix("extra "))
        del lines[0]
    found = _INDEX(lines[0]) if lines else None
    path = tuple(b64_exact(line) for line in lines[1:])
    if found is None or len(path) > _MAX_PATH or any(len(item) != 32 for item in path):
        raise TlogError("not a tlog-proof: an index, then hashes of 32 bytes")
    return Proof(index=int(found[1]), path=path, checkpoint=checkpoint, extra=extra)


def verify_proof(proof: Proof, leaf: bytes, *log: Verifier) -> Checkpoint:
    """The checkpoint under which `leaf` is in the log; `log` are its keys, one after the other.

    Raises TlogError.
    """
    checkpoint = verify_log(proof.checkpoint, log[0].name, key_set(each.key for each in log))
    if not verify_inclusion(leaf_hash(leaf), proof.index, checkpoint.size, proof.path, checkpoint.root):
        raise TlogError("the proof is not of this receipt")
    return checkpoint
