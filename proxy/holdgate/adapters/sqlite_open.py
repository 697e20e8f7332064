"""Opening a SQLite ledger: schema, and the audit of the log's tail against its signed checkpoint.

The checkpoint lives outside the database, so a database restored from a backup is behind it, and
one that was edited is unlike it. Either refuses to open, and so do tiles that are not what was signed.
The tree under the checkpoint comes from its tiles; what was signed before is re-hashed by `log audit`, not
here: a start must not take minutes. Only where tiles are lost everything is read once, to make them again.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError
from ..keys import PublicKey
from ..ledger import State
from ..note import Checkpoint, verify_checkpoint
from ..tiles import Edge
from ..tlog import EMPTY, TlogError, Tree, leaf_hash
from .sequencer import CHECKPOINT, LOG, edge_of
from .sqlite_batch import Head, Node, Permit
from .sqlite_schema import DB_NAME, STEPS, VERSION, charges_of, connect_writer, unpack

__all__ = ["files_of", "free_bytes", "lock_directory", "prepare", "read_permits"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    db: sqlite3.Connection
    head: Head
    edge: Edge  # of the tiles that the checkpoint signed; empty when they are lost
    signed: int  # leaves under the checkpoint


def prepare(state_dir: Path, node: Node, log_key: PublicKey) -> Prepared:
    """The writer's connection, and the end of the log. Raises ConfigError, sqlite3.Error, OSError."""
    (state_dir / LOG).mkdir(mode=0o755, exist_ok=True)
    checkpoint = _stored_checkpoint(state_dir, node.origin, log_key)
    edge = None if checkpoint is None else edge_of(state_dir, checkpoint)
    path = state_dir / DB_NAME
    if not path.exists():
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    db = connect_writer(path)
    try:
        head = _open_head(db, path, node)
        _audit_tail(db, path, head, checkpoint, edge)
    except BaseException:
        db.close()
        raise
    return Prepared(db=db, head=head, edge=edge or Edge.empty(), signed=checkpoint.size if checkpoint else 0)


def _stored_checkpoint(state_dir: Path, origin: str, log_key: PublicKey) -> Checkpoint | None:
    path = state_dir / CHECKPOINT
    try:
        return verify_checkpoint(path.read_bytes(), origin, log_key)
    except FileNotFoundError:
        return None
    except TlogError as error:
        raise ConfigError(str(error), file=str(path)) from error


def _open_head(db: sqlite3.Connection, path: Path, node: Node) -> Head:
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version > VERSION:
        raise ConfigError(f"ledger format {version}; this version writes {VERSION}", file=str(path))
    if version < VERSION:
        _bring_up_to_date(db, version, node)
    row = db.execute("SELECT origin, node, size, iat_us, hashes FROM head").fetchone()
    if row is None:
        raise ConfigError("the ledger has no head row: it was edited", file=str(path))
    if row[:2] != (node.origin, node.name):
        raise ConfigError(f"this ledger belongs to node {row[1]}, log {row[0]}", file=str(path))
    try:
        return Head(tree=unpack(row[2], row[4]), iat_us=row[3])
    except TlogError as error:
        raise ConfigError(f"the ledger was edited: {error}", file=str(path)) from error


def _bring_up_to_date(db: sqlite3.Connection, version: int, node: Node) -> None:
    """From one format, or none, to this version's, in one transaction."""
    db.execute("BEGIN IMMEDIATE")
    for step in STEPS[version:]:
        for statement in step.split(";")[:-1]:
            db.execute(statement)
    if version == 0:
        db.execute("INSERT INTO head VALUES (1,?,?,0,0,?)", (node.origin, node.name, b""))
    db.execute(f"PRAGMA user_version={VERSION}")
    db.execute("COMMIT")


def _audit_tail(
    db: sqlite3.Connection, path: Path, head: Head, checkpoint: Checkpoint | None, edge: Edge | None
) -> None:
    size = head.tree.size
    if checkpoint is None:
        if size:
            raise ConfigError("the log's checkpoint is missing: the log was tampered with", file=str(path))
        return
    if checkpoint.size > size:
        raise ConfigError(
            f"the ledger has {size} receipts but {checkpoint.size} were signed: it was restored from a"
            " backup. Start a new node name with an empty state directory; never roll a log back",
            file=str(path),
        )
    start = edge.tree if edge is not None else _grow(db, EMPTY, checkpoint.size)
    if start.root() != checkpoint.root:
        raise ConfigError("the ledger differs from what its checkpoint signed", file=str(path))
    if _grow(db, start, size) != head.tree or _count(db) != size:
        raise ConfigError("the end of the ledger was edited or is damaged", file=str(path))


def _grow(db: sqlite3.Connection, tree: Tree, size: int) -> Tree:
    rows = db.execute(
        "SELECT idx, jws FROM receipts WHERE idx >= ? AND idx < ? ORDER BY idx", (tree.size, size)
    )
    for index, jws in rows:
        if index != tree.size:
            break
        tree = tree.append(leaf_hash(jws))
    return tree


def _count(db: sqlite3.Connection) -> int:
    last = db.execute("SELECT max(idx) FROM receipts").fetchone()[0]
    return 0 if last is None else int(last) + 1


def read_permits(db: sqlite3.Connection, state: State) -> tuple[Permit, ...]:
    """The permits in one open state, oldest first."""
    rows = db.execute(
        "SELECT idx, id, http_status, claims, charges, lender FROM permits"
        " WHERE state IN ('dispatching', 'unknown') AND state = ? ORDER BY idx",
        (state.value,),
    )
    return tuple(
        Permit(
            index=row[0],
            receipt_id=row[1],
            state=state,
            http_status=row[2],
            claims=tuple(row[3].split()),
            charges=charges_of(row[4]),
            lender=row[5],
        )
        for row in rows
    )


def files_of(state_dir: Path) -> tuple[tuple[int, int], ...]:
    """Which files the ledger's names stand for now. Raises OSError when one is gone."""
    path = f"{state_dir}/{DB_NAME}"
    return tuple((info.st_dev, info.st_ino) for info in (os.stat(path), os.stat(f"{path}-wal")))


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
