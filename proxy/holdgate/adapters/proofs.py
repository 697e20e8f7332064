"""Proofs out of a state directory: checkpoint and tiles in, `tlog-proof` out, checked before it is given.

Works while the ledger runs: tiles are durable before the checkpoint that speaks of them.

Invariants (tests/test_proofs.py has one test named after each):
  PF1  A proof that is given out verifies; damaged tiles are a ConfigError, never a wrong proof.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import ConfigError, HoldgateError
from ..note import Checkpoint, Verifier, parse_vkey, verify_checkpoint
from ..tiles import consistency_from_tiles, inclusion_from_tiles
from ..tlog import TlogError, verify_consistency
from ..tlogproof import Proof, format_consistency, format_proof, verify_proof
from .sequencer import CHECKPOINT, LOG
from .tilestore import TileStore

__all__ = ["NotCovered", "log_verifier", "prove", "prove_consistency"]


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


def prove(state_dir: Path, index: int, leaf: bytes) -> bytes:
    """The text of a `.tlog-proof` of leaf `index`. Raises NotCovered, ConfigError."""
    note, checkpoint, log = _signed(state_dir)
    if index >= checkpoint.size:
        raise NotCovered("no checkpoint covers this receipt yet; it takes up to a second")
    try:
        path = inclusion_from_tiles(index, checkpoint.size, TileStore(state_dir / LOG).read)
        proof = Proof(index=index, path=path, checkpoint=note)
        verify_proof(proof, leaf, log)
    except (TlogError, OSError) as error:
        raise ConfigError(f"the log is damaged: {error}", file=str(state_dir / LOG)) from error
    return format_proof(proof)


def prove_consistency(state_dir: Path, earlier: bytes) -> bytes:
    """That the log of now begins with the log of the signed note `earlier`, for a witness or an auditor.

    Raises ConfigError, and TlogError when it does not: the log was forked.
    """
    note, checkpoint, log = _signed(state_dir)
    old = verify_checkpoint(earlier, log.name, log.key)
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


def _signed(state_dir: Path) -> tuple[bytes, Checkpoint, Verifier]:
    log, path = log_verifier(state_dir / LOG / "key.vkey"), state_dir / CHECKPOINT
    try:
        note = path.read_bytes()
        return note, verify_checkpoint(note, log.name, log.key), log
    except OSError as error:
        raise ConfigError(f"cannot read: {error.strerror}", file=str(path)) from error
    except TlogError as error:
        raise ConfigError(str(error), file=str(path)) from error
