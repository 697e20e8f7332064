"""Signed notes: a tree becomes a checkpoint that others can hold us to; and back, strictly.

    tree -> three lines (origin, size, root) -> signed note;  note -> Checkpoint, cosigners

Formats: c2sp.org/signed-note (notes, verifier keys), c2sp.org/tlog-checkpoint, c2sp.org/tlog-cosignature
(witnesses; the Ed25519 form). Checkpoints here have no extension lines.

Invariants (tests/test_note.py has one test named after each):
  N1  A checkpoint verifies only under its origin's log key; every byte of its text is signed.
  N2  A verifier key text is accepted only if its key id is that of its name and key.
  N3  A witness counts once, and only for a cosignature over exactly this checkpoint's text.
  N4  Of several log keys, one after the other, each counts only for the tree sizes that it was there for.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from .keys import KeySet, PublicKey, Signer
from .tlog import TlogError, Tree

__all__ = [
    "Checkpoint",
    "SignatureType",
    "Verifier",
    "b64_exact",
    "cosigners",
    "parse_vkey",
    "sign_checkpoint",
    "verify_checkpoint",
    "verify_log",
    "vkey",
]

_ORIGIN: Final = re.compile(r"[^\s+\x00-\x1f\x7f]{1,255}\Z").match
_SIZE: Final = re.compile(r"(0|[1-9][0-9]{0,18})\Z").match
_VKEY: Final = re.compile(r"([^\s+]{1,255})\+([0-9a-f]{8})\+([A-Za-z0-9+/]+=*)\Z", re.ASCII).match


class SignatureType(IntEnum):
    """The algorithm byte of a key id (c2sp.org/signed-note, c2sp.org/tlog-cosignature)."""

    ED25519 = 1
    COSIGNATURE = 4  # Ed25519 over `cosignature/v1`, a time, and the note's text


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    origin: str
    size: int
    root: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Verifier:
    """A name, and the key and signature type that it signs notes with."""

    name: str
    type: SignatureType
    key: PublicKey

    @property
    def key_id(self) -> bytes:
        return _key_id(self.name, self.type, self.key)


def b64_exact(text: str | bytes) -> bytes:
    """Standard base64 (RFC 4648 4) in its one spelling. Raises TlogError."""
    data = text.encode() if isinstance(text, str) else text
    try:
        decoded = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise TlogError("not base64") from error
    if base64.b64encode(decoded) != data:
        raise TlogError("not canonical base64")
    return decoded


def _key_id(name: str, kind: SignatureType, key: PublicKey) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + bytes([kind]) + key.raw).digest()[:4]


def vkey(origin: str, key: PublicKey) -> str:
    """The verifier key text of a log, `name+keyid+base64`."""
    if not _ORIGIN(origin):
        raise TlogError("a log origin has no white space, no control character and no +")
    public = base64.b64encode(bytes([SignatureType.ED25519]) + key.raw).decode()
    return f"{origin}+{_key_id(origin, SignatureType.ED25519, key).hex()}+{public}"


def parse_vkey(text: str) -> Verifier:
    """The inverse of vkey(), for logs and for Ed25519 witnesses. Raises TlogError."""
    found = _VKEY(text)
    if not found:
        raise TlogError("not a verifier key: name+keyid+base64")
    data = b64_exact(found[3])
    if len(data) != 33 or data[0] not in tuple(SignatureType):
        raise TlogError("not an Ed25519 verifier key")
    verifier = Verifier(name=found[1], type=SignatureType(data[0]), key=PublicKey(raw=data[1:]))
    if verifier.key_id.hex() != found[2]:
        raise TlogError("the key id is not that of this name and key")
    return verifier


def _text(origin: str, size: int, root: bytes) -> bytes:
    return f"{origin}\n{size}\n{base64.b64encode(root).decode()}\n".encode()


def sign_checkpoint(origin: str, tree: Tree, *keys: Signer) -> bytes:
    """The signed note that commits the log to `tree` (c2sp.org/tlog-checkpoint).

    Two keys sign the one checkpoint with which a log key hands over to the next.
    """
    if not _ORIGIN(origin):
        raise TlogError("a log origin has no white space, no control character and no +")
    text = _text(origin, tree.size, tree.root())
    lines = []
    for key in keys:
        key_id = _key_id(origin, SignatureType.ED25519, key.public)
        signature = base64.b64encode(key_id + key.sign(text)).decode()
        lines.append(f"\u2014 {origin} {signature}\n")
    return text + f"\n{''.join(lines)}".encode()


def verify_checkpoint(note: bytes, origin: str, key: PublicKey) -> Checkpoint:
    """The checkpoint in `note`, if the log signed it; others' cosignatures are skipped. Raises TlogError."""
    checkpoint, text, lines = _parse(note)
    if checkpoint.origin != origin or _text(origin, checkpoint.size, checkpoint.root) != text:
        raise TlogError("the checkpoint is of another log, or not canonical")
    ours = _key_id(origin, SignatureType.ED25519, key)
    mine = [signature for name, key_id, signature in lines if name == origin and key_id == ours]
    if len(mine) != 1 or not key.verifies(text, mine[0]):
        raise TlogError("the checkpoint is not signed by the log key")
    return checkpoint


def verify_log(note: bytes, origin: str, keys: KeySet) -> Checkpoint:
    """The checkpoint in `note`, if the log signed it with the key that it had at this size. Raises TlogError.

    For a log key, an index means the last leaf of a tree.
    """
    checkpoint, _, lines = _parse(note)
    if checkpoint.origin != origin:
        raise TlogError("the checkpoint is of another log, or not canonical")
    refusal = "the checkpoint is not signed by the log key"
    for name, key_id, _ in lines:
        for key in keys.values():
            if name == origin and key_id == _key_id(origin, SignatureType.ED25519, key):
                refusal = key.refuses(max(checkpoint.size - 1, 0))
                if not refusal:
                    return verify_checkpoint(note, origin, key)
                refusal = f"the checkpoint does not count: {refusal}"
    raise TlogError(refusal)


def cosigners(note: bytes, witnesses: Iterable[Verifier]) -> frozenset[str]:
    """The names of those `witnesses` whose cosignature of `note` verifies. Raises TlogError for no note.

    A line with a witness's name and key id that does not verify makes the note invalid, as
    c2sp.org/signed-note says; lines of others are skipped. The time that a witness signed is not
    compared with a clock.
    """
    _, text, lines = _parse(note)
    found = set()
    for witness in witnesses:
        for name, key_id, signature in lines:
            if name == witness.name and key_id == witness.key_id:
                if not _cosigned(text, witness, signature):
                    raise TlogError(f"the signature of {name} is wrong")
                found.add(name)
    return frozenset(found)


def _cosigned(text: bytes, witness: Verifier, signature: bytes) -> bool:
    if witness.type is SignatureType.ED25519:
        return witness.key.verifies(text, signature)
    time_s = int.from_bytes(signature[:8])
    return (
        len(signature) == 72
        and time_s < 2**63
        and witness.key.verifies(f"cosignature/v1\ntime {time_s}\n".encode() + text, signature[8:])
    )


def _parse(note: bytes) -> tuple[Checkpoint, bytes, tuple[tuple[str, bytes, bytes], ...]]:
    """What a note says, its signed text, and its signature lines as (name, key id, signature)."""
    head, separator, tail = note.partition(b"\n\n")
    text = head + b"\n"
    try:
        lines = text.decode("utf-8").split("\n")
        signatures = tail.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise TlogError("not a checkpoint") from error
    if not separator or len(lines) != 4 or signatures.pop() != "" or not _SIZE(lines[1]):
        raise TlogError("not a checkpoint")
    checkpoint = Checkpoint(origin=lines[0], size=int(lines[1]), root=b64_exact(lines[2]))
    if len(checkpoint.root) != 32:
        raise TlogError("not a checkpoint")
    return checkpoint, text, tuple(_signature_lines(signatures))


def _signature_lines(lines: Iterable[str]) -> Iterator[tuple[str, bytes, bytes]]:
    for line in lines:
        dash, _, rest = line.partition(" ")
        name, _, encoded = rest.partition(" ")
        data = b64_exact(encoded)
        if dash != "\u2014" or not name or len(data) < 5:
            raise TlogError("not a checkpoint: a signature line is malformed")
        yield name, data[:4], data[4:]
