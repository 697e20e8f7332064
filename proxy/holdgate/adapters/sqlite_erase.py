"""Destroying inputs, kept answers, keys and salts in a SQLite ledger, a few rows at a time between commits.

The order's admin receipt is committed first, with a row in `erasing`; a crash in between leaves that row,
and the next run goes on. Secrets and inputs in clear are overwritten with zeros of their length: SQLite
writes such an update in place, and their rows are never moved, so no page keeps a copy. Then the write-ahead
log, which has older versions of the pages, is emptied; a reader that is in a snapshot delays that.

What the file system, the disk's own remapping or a backup keeps is beyond this module.

Invariants (tests/test_sqlite_erase.py has one test named after each):
  SE1  After an erasure is done, no file of the ledger holds the key, salt or clear input of what it covers,
       nor the key of a kept answer.
  SE2  A crash at any step leaves an erasure that the next open() finishes; its receipt is there before.
  SE3  What is not covered is untouched.
"""

from __future__ import annotations

import sqlite3
import time
from collections import deque
from typing import Any, Final

from ..erasure import Erasure
from ..jcs import loads_strict
from ..keys import unb64url

__all__ = ["SqliteEraser", "count_kept"]

_WINDOW: Final = 512  # receipts looked at in one transaction: decisions wait for it
_PAUSE_S: Final = 0.02
_PATIENCE_S: Final = 30.0  # a reader that stays in one snapshot for longer is not going away


class SqliteEraser:
    """Used by the writer thread alone, but for done()."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._runs: deque[tuple[int, Erasure]] = deque()
        self._at = 0  # everything below is done in the first run
        self._unfinished: set[int] = set()  # admin receipts whose order is not done and out of the files
        self._try_at = self._give_up_at = 0.0  # monotonic

    @property
    def busy(self) -> bool:
        return bool(self._runs) or (bool(self._unfinished) and time.monotonic() < self._give_up_at)

    @property
    def pause_s(self) -> float:
        """How long the thread may wait for work before the next step."""
        return 0.0 if self._runs else _PAUSE_S

    def done(self, index: int) -> bool:
        """Whether the order of this admin receipt is carried out, files included."""
        return index not in self._unfinished

    def resume(self) -> None:
        """Take up what an earlier run did not finish."""
        rows = self._db.execute(
            "SELECT e.idx, r.reason, r.jws FROM erasing e JOIN receipts r ON r.idx = e.idx ORDER BY e.idx"
        ).fetchall()
        for index, action, jws in rows:
            self.start(index, Erasure.of(action, loads_strict(unb64url(jws.split(b".")[1]))["details"]))

    def start(self, index: int, erasure: Erasure) -> None:
        """The order is committed under `index`: carry it out from the next step on."""
        self._unfinished.add(index)
        self._runs.append((index, erasure))
        self._give_up_at = time.monotonic() + _PATIENCE_S

    def step(self) -> None:
        """One window of receipts, or one try to empty the write-ahead log. Raises sqlite3.Error."""
        if self._runs:
            self._erase_window()
        elif self._unfinished and (now := time.monotonic()) >= self._try_at:
            self._try_at = now + _PAUSE_S
            if self._truncate():
                self._unfinished.clear()

    def _erase_window(self) -> None:
        index, erasure = self._runs[0]
        end = min(self._at + _WINDOW, index)
        self._db.execute("BEGIN IMMEDIATE")
        if erasure.ids:
            end = index
            rows = [self._index_of(receipt_id) for receipt_id in sorted(erasure.ids)]
            self._destroy([(row,) for row in rows if row is not None and row < index], erasure)
        else:
            where, values = _filter(erasure)
            sql = f"SELECT r.idx FROM receipts r WHERE r.idx >= ? AND r.idx < ? AND {where}"  # noqa: S608
            self._destroy(self._db.execute(sql, (self._at, end, *values)).fetchall(), erasure)
        if end >= index:
            self._db.execute("DELETE FROM erasing WHERE idx = ?", (index,))
        self._db.execute("COMMIT")
        self._at = end
        if end >= index:
            self._runs.popleft()
            self._at = 0
            self._give_up_at = time.monotonic() + _PATIENCE_S

    def _index_of(self, receipt_id: str) -> int | None:
        row = self._db.execute("SELECT idx FROM receipts WHERE id = ?", (receipt_id,)).fetchone()
        return None if row is None else int(row[0])

    def _destroy(self, rows: list[tuple[int]], erasure: Erasure) -> None:
        db = self._db
        db.executemany("UPDATE inputs SET json = zeroblob(length(json)) WHERE idx = ?", rows)
        if erasure.takes_salt:
            db.executemany("UPDATE secrets SET salt = zeroblob(16), key = zeroblob(32) WHERE idx = ?", rows)
        else:
            # In the order of the rows: whole pages become free, and none is merged with one that stays.
            db.executemany("UPDATE secrets SET key = zeroblob(32) WHERE idx = ?", rows)
            db.executemany("DELETE FROM inputs WHERE idx = ?", rows)
        db.executemany("DELETE FROM sealed WHERE idx = ?", rows)
        # The answers that these decisions led to lie under the leaves of their outcomes.
        find = "SELECT a.idx, a.id FROM answers a JOIN receipts r ON r.id = a.id WHERE r.idx = ?"
        answers = [found for row in rows for found in db.execute(find, row).fetchall()]
        leaves = [(index,) for index, _ in answers]
        db.executemany("UPDATE secrets SET key = zeroblob(32) WHERE idx = ?", leaves)
        db.executemany("DELETE FROM sealed WHERE idx = ?", leaves)
        db.executemany("DELETE FROM answers WHERE id = ?", [(receipt_id,) for _, receipt_id in answers])

    def _truncate(self) -> bool:
        self._db.execute("PRAGMA busy_timeout=0")  # decisions must not wait for a reader
        try:
            busy, _, _ = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            self._db.execute("PRAGMA busy_timeout=1000")
        return not busy


def count_kept(db: sqlite3.Connection, erasure: Erasure) -> int:
    """How many decisions the erasure would take something from. For a reader: it may look at every row."""
    secret = "s.salt != zeroblob(16)" if erasure.takes_salt else "s.key != zeroblob(32)"
    sql = (
        "SELECT count(*) FROM receipts r LEFT JOIN inputs i ON i.idx = r.idx"  # noqa: S608
        f" LEFT JOIN secrets s ON s.idx = r.idx WHERE (substr(i.json, 1, 1) != x'00' OR {secret}"
        " OR EXISTS (SELECT 1 FROM answers a WHERE a.id = r.id)) AND "
    )
    if erasure.ids:
        marks = ",".join("?" * len(erasure.ids))
        return _number(db, f"{sql} r.id IN ({marks})", sorted(erasure.ids))
    where, values = _filter(erasure)
    return _number(db, sql + where, values)


def _number(db: sqlite3.Connection, sql: str, values: list[Any]) -> int:
    return int(db.execute(sql, values).fetchone()[0])


def _filter(erasure: Erasure) -> tuple[str, list[Any]]:
    where: list[str] = ["r.type = 'decision'"]
    values: list[Any] = []
    for column, value in (("r.agent =", erasure.agent), ("r.surface =", erasure.surface)):
        if value:
            where.append(f"{column} ?")
            values.append(value)
    if erasure.before_us:
        where.append("r.iat_us < ?")
        values.append(erasure.before_us)
    return " AND ".join(where), values
