"""Proofs out of a state directory: checkpoint and tiles in, `tlog-proof` out, checked before it is given.

Works while the ledger runs: tiles are durable before the checkpoint that speaks of them.

Invariants (one test named after each: tests/test_proofs.py; PF2: tests/test_tampering.py):
  PF1  A proof that is given out verifies; damaged tiles are a ConfigError, never a wrong proof.
  PF2  A changed byte in what leads from the first log key to the newest, or in key.vkey, is a problem.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import ConfigError, HoldgateError
from ..keyhistory import follow
from ..keys import KeySet, PublicKey, key_set
from ..note import Checkpoint, SignatureType, Verifier, parse_vkey, verify_log, vkey
from ..tiles import consistency_from_tiles, inclusion_from_tiles
from ..tlog import TlogError, verify_consistency
from ..tlogproof import HEADER, Proof, format_consistency, format_proof, parse_proof, verify_proof
from .keyfiles import load_log_keys
from .sequencer import CHANGES, CHECKPOINT, LOG, VKEY
from .tilestore import TileStore

__all__ = [
    "NotCovered",
    "change_problems",
    "key_changes",
    "log_verifier",
    "log_verifiers",
    "prove",
    "prove_consistency",
    "read_changes",
]


class NotCovered(HoldgateError):
    """The receipt is committed, and no checkpoint covers it yet: that takes up to a second."""


def log_verifier(path: Path) -> Verifier:
    """The log key of a vkey file such as `state_dir/log/key.vkey`. Raises ConfigError."""
    try:
        return parse_vkey(path.read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the log's verifier key: {error}", file=str(path)) from error
    except TlogError as error:
        raise ConfigError(str(error), file=str(path)) from error


def log_verifiers(state_dir: Path) -> tuple[Verifier, ...]:
    """Every key that this node's log ever had. Raises ConfigError."""
    newest = log_verifier(state_dir / VKEY)
    if not (state_dir / "keys").is_dir():
        return (newest,)
    keys = load_log_keys(state_dir).values()
    return tuple(Verifier(name=newest.name, type=SignatureType.ED25519, key=key) for key in keys)


def key_changes(state_dir: Path) -> bytes:
    """The proofs of every change of the log key, one behind the other. Raises ConfigError."""
    folder = state_dir / CHANGES
    try:
        return b"".join(path.read_bytes() for path in sorted(folder.glob("*.tlog-proof")))
    except OSError as error:
        raise ConfigError(f"cannot read: {error.strerror}", file=str(folder)) from error


def read_changes(data: bytes) -> tuple[Proof, ...]:
    """The inverse of key_changes(). Raises TlogError."""
    head = HEADER.encode() + b"\n"
    before, *texts = data.split(head)
    if before:
        raise TlogError("not a list of tlog-proofs")
    return tuple(parse_proof(head + text) for text in texts)


def change_problems(state_dir: Path, origin: str, receipt_keys: KeySet, log_keys: KeySet) -> tuple[str, ...]:
    """What is wrong with the proofs of the changes of the log key, and with the verifier key beside them."""
    oldest = min(log_keys.values(), key=lambda key: (key.first_index, key.end_index))
    first = Verifier(name=origin, type=SignatureType.ED25519, key=PublicKey(raw=oldest.raw))
    try:
        data, written = key_changes(state_dir), (state_dir / VKEY).read_bytes()
        changes = read_changes(data)
        found = follow(first, changes, receipt_keys)
    except (TlogError, ConfigError, OSError) as error:
        return (f"log/changes: {error}",)
    problems = []
    is_whole = {each.key.kid for each in found} == log_keys.keys() and len(found) == len(changes) + 1
    if not is_whole or b"".join(map(format_proof, changes)) != data:
        problems.append("log/changes does not lead to the log keys that are listed")
    if written != vkey(origin, found[-1].key).encode() + b"\n":
        problems.append("log/key.vkey is not the log's newest key")
    return tuple(problems)


def prove(state_dir: Path, index: int, leaf: bytes, *, note: Path = CHECKPOINT) -> bytes:
    """The text of a `.tlog-proof` of leaf `index`, under the newest checkpoint, or under the one that
    witnesses cosigned (`note`). Raises NotCovered, ConfigError."""
    signed, checkpoint, log = _signed(state_dir, note)
    if index >= checkpoint.size:
        raise NotCovered("no checkpoint covers this receipt yet; it takes up to a second")
    try:
        path = inclusion_from_tiles(index, checkpoint.size, TileStore(state_dir / LOG).read)
        proof = Proof(index=index, path=path, checkpoint=signed)
        verify_proof(proof, leaf, *log)
    except (TlogError, OSError) as error:
        raise ConfigError(f"the log is damaged: {error}", file=str(state_dir / LOG)) from error
    return format_proof(proof)


def prove_consistency(state_dir: Path, earlier: bytes) -> bytes:
    """That the log of now begins with the log of the signed note `earlier`, for a witness or an auditor.

    Raises ConfigError, and TlogError when it does not: the log was forked.
    """
    note, checkpoint, log = _signed(state_dir)
    old = verify_log(earlier, log[0].name, key_set(each.key for each in log))
    if old.size > checkpoint.size:
        raise TlogError(f"{old.size} receipts were signed earlier, and now there are {checkpoint.size}")
    path: tuple[bytes, ...] = ()
    if old.size:
        try:
            path = consistency_from_tiles(old.size, checkpoint.size, TileStore(state_dir / LOG).read)
        except (TlogError, OSError) as error:
            raise ConfigError(f"the log is damaged: {error}", file=str(state_dir / LOG)) from error
        if not verify_consistency(old.size, old.root, checkpoint.size, checkpoint.root, path):
            raise TlogError(f"the log does not begin with the {old.size} receipts that were signed earlier")
    return format_consistency(old.size, path, note)


def _signed(state_dir: Path, where: Path = CHECKPOINT) -> tuple[bytes, Checkpoint, tuple[Verifier, ...]]:
    path = state_dir / where
    try:
        note = path.read_bytes()  # first: the key that signed it was listed before
        log = log_verifiers(state_dir)
        return note, verify_log(note, log[0].name, key_set(each.key for each in log)), log
    except OSError as error:
        raise ConfigError(f"cannot read: {error.strerror}", file=str(path)) from error
    except TlogError as error:
        raise ConfigError(str(error), file=str(path)) from error
