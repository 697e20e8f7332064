"""The end of a log at start: is what the store has what the checkpoint signed? And whose is the directory?

The checkpoint lives outside the database, so a database restored from a backup is behind it, and
one that was edited is unlike it. Either refuses to open, and so do tiles that are not what was signed.
The tree under the checkpoint comes from its tiles; what was signed before is re-hashed by `log audit`, not
here: a start must not take minutes. Only where tiles are lost everything is read once, to make them again.

Invariants (tests/test_sqlite.py has one test named after each):
  S4  A ledger behind its checkpoint, or unlike it, does not open; nor does one that is open elsewhere.
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..errors import ConfigError
from ..keys import PublicKey
from ..note import Checkpoint, verify_checkpoint
from ..tiles import Edge
from ..tlog import EMPTY, TlogError, Tree, leaf_hash
from .sequencer import CHECKPOINT, edge_of
from .store import Leaves

__all__ = ["Signed", "free_bytes", "lock_directory", "signed_before"]

_CHUNK: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """What the state directory says of the log."""

    checkpoint: Checkpoint | None
    tiles: Edge | None  # None: there are none

    @property
    def edge(self) -> Edge:
        return self.tiles or Edge.empty()

    @property
    def size(self) -> int:
        return self.checkpoint.size if self.checkpoint else 0

    def audit(self, head: Tree, leaves: Leaves, last: int | None, where: str) -> None:
        """Compare with the store: head row, receipts, index of the last one. Raises ConfigError."""
        size = head.size
        if self.checkpoint is None:
            if size:
                raise ConfigError("the log's checkpoint is missing: the log was tampered with", file=where)
            return
        if self.checkpoint.size > size:
            raise ConfigError(
                f"the ledger has {size} receipts but {self.checkpoint.size} were signed: it was restored from"
                " a backup. Start a new node name with an empty state directory; never roll a log back",
                file=where,
            )
        start = self.tiles.tree if self.tiles is not None else _grow(leaves, EMPTY, self.checkpoint.size)
        if start.root() != self.checkpoint.root:
            raise ConfigError("the ledger differs from what its checkpoint signed", file=where)
        if _grow(leaves, start, size) != head or (last if last is not None else -1) != size - 1:
            raise ConfigError("the end of the ledger was edited or is damaged", file=where)


def signed_before(state_dir: Path, origin: str, log_key: PublicKey) -> Signed:
    """Raises ConfigError."""
    path = state_dir / CHECKPOINT
    try:
        checkpoint = verify_checkpoint(path.read_bytes(), origin, log_key)
    except FileNotFoundError:
        return Signed(checkpoint=None, tiles=None)
    except TlogError as error:
        raise ConfigError(str(error), file=str(path)) from error
    return Signed(checkpoint=checkpoint, tiles=edge_of(state_dir, checkpoint))


def _grow(leaves: Leaves, tree: Tree, size: int) -> Tree:
    """`tree` with the leaves up to `size`; smaller when one is missing."""
    while tree.size < size:
        found = leaves.read(tree.size, min(size, tree.size + _CHUNK))
        for jws in found:
            tree = tree.append(leaf_hash(jws))
        if not found:
            break
    return tree


def free_bytes(path: Path) -> int:
    info = os.statvfs(path)
    return info.f_bavail * info.f_frsize


def lock_directory(state_dir: Path) -> int:
    """The descriptor that holds the state directory for this process. Raises ConfigError."""
    path = state_dir / "ledger.lock"
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"cannot write the state directory: {error.strerror}", file=str(path)) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise ConfigError("another process has this state directory open", file=str(path)) from error
    return lock
