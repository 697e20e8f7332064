"""Opening the file of a SQLite ledger: schema, whose it is, and whether all rows are there.

Invariants (tests/test_sqlite.py has one test named after each):
  S10  A ledger that lost claims, permits or counters, or got some from elsewhere, does not open.
  S11  A ledger with a view, a trigger, or another table under a name of ours does not open.
"""

from __future__ import annotations

import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError
from ..ledger import State
from ..tlog import TlogError
from .sqlite_schema import (
    DB_NAME,
    OPEN_PERMITS,
    STEPS,
    VERSION,
    Sizes,
    connect_writer,
    permits_of,
    schema_problems,
    unpack,
)
from .store import Head, Node, Permit

__all__ = ["OpenFile", "files_of", "open_file", "read_permits"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OpenFile:
    db: sqlite3.Connection
    head: Head
    last: int | None  # index of the last receipt
    sizes: Sizes


def open_file(state_dir: Path, node: Node) -> OpenFile:
    """The writer's connection, and the end of the log. Raises ConfigError, sqlite3.Error, OSError."""
    path = state_dir / DB_NAME
    if not path.exists():
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    db = connect_writer(path)
    try:
        head = _open_head(db, path, node)
        last = db.execute("SELECT max(idx) FROM receipts").fetchone()[0]
        sizes = _sizes(db, path)
    except BaseException:
        db.close()
        raise
    return OpenFile(db=db, head=head, last=last, sizes=sizes)


def _open_head(db: sqlite3.Connection, path: Path, node: Node) -> Head:
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version > VERSION:
        raise ConfigError(f"ledger format {version}; this version writes {VERSION}", file=str(path))
    if version < VERSION:
        _bring_up_to_date(db, version, node)
    if problems := schema_problems(db):
        raise ConfigError(f"the ledger was edited: {', '.join(problems)}", file=str(path))
    row = db.execute("SELECT origin, node, size, iat_us, hashes FROM head").fetchone()
    if row is None:
        raise ConfigError("the ledger has no head row: it was edited", file=str(path))
    if row[:2] != (node.origin, node.name):
        raise ConfigError(f"this ledger belongs to node {row[1]}, log {row[0]}", file=str(path))
    try:
        return Head(tree=unpack(row[2], row[4]), iat_us=row[3])
    except TlogError as error:
        raise ConfigError(f"the ledger was edited: {error}", file=str(path)) from error


def _sizes(db: sqlite3.Connection, path: Path) -> Sizes:
    """Raises ConfigError when rows are gone that nobody here took: what they held would be free again."""
    found, written = Sizes.counted(db), Sizes.written(db)
    for name, there, wrote in zip(Sizes._fields, found, written, strict=True):
        if there != wrote:
            raise ConfigError(
                f"the table {name} has {there} rows and {wrote} were written: the ledger was edited, or a"
                " part of it was restored. `holdgate log audit` says what differs. Put the whole file back"
                " as it was, or start a new node name with an empty state directory",
                file=str(path),
            )
    return found


def _bring_up_to_date(db: sqlite3.Connection, version: int, node: Node) -> None:
    """From one format, or none, to this version's, in one transaction."""
    db.execute("BEGIN IMMEDIATE")
    for step in STEPS[version:]:
        for statement in step.split(";")[:-1]:
            db.execute(statement)
    if version == 0:
        columns = "one, origin, node, size, iat_us, hashes"
        db.execute(f"INSERT INTO head ({columns}) VALUES (1,?,?,0,0,?)", (node.origin, node.name, b""))  # noqa: S608
    db.execute(f"PRAGMA user_version={VERSION}")
    db.execute("COMMIT")


def read_permits(db: sqlite3.Connection, state: State) -> tuple[Permit, ...]:
    """The permits in one open state, oldest first."""
    return permits_of(db.execute(OPEN_PERMITS, (state.value,)), state)


def files_of(state_dir: Path) -> tuple[tuple[int, int], ...]:
    """Which files the ledger's names stand for now. Raises OSError when one is gone."""
    path = f"{state_dir}/{DB_NAME}"
    return tuple((info.st_dev, info.st_ino) for info in (os.stat(path), os.stat(f"{path}-wal")))
