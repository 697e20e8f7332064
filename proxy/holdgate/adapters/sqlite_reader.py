"""Reading a SQLite ledger: `mode=ro`, so it cannot write, checkpoint or hold up the writer (WAL)."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..erasure import Erasure
from ..errors import ConfigError
from ..ledger import Total
from .reader import Page, Reader, StoredReceipt
from .sqlite_erase import count_kept
from .sqlite_schema import DB_NAME, VERSION, connect_reader, read_total, schema_problems, strangers

__all__ = ["Page", "SqliteReader", "StoredReceipt"]


class SqliteReader(Reader):
    def __init__(self, state_dir: Path) -> None:
        super().__init__(state_dir)
        path = state_dir / DB_NAME
        if not path.exists():
            raise ConfigError("there is no ledger yet: `holdgate run` makes it", file=str(path))
        try:
            self._db = connect_reader(path)
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            odd = strangers(self._db)
        except sqlite3.Error as error:
            raise ConfigError(f"cannot read the ledger: {error}", file=str(path)) from error
        if version != VERSION:
            raise ConfigError(f"ledger format {version}; this version reads {VERSION}", file=str(path))
        if odd:
            raise ConfigError(f"the ledger was edited: {', '.join(odd)}", file=str(path))

    def close(self) -> None:
        self._db.close()

    def _rows(self, sql: str, values: Sequence[Any] = ()) -> Generator[Any]:
        with self._failures():
            # An iterator that cannot be closed: a reading that is left unfinished would close its cursor when
            # it is collected, and its database may be closed by then.
            yield from iter(self._db.execute(sql, values).fetchone, None)

    def _snapshot(self) -> None:
        self._db.execute("BEGIN")

    def end_audit(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def totals(self, meters: tuple[str, ...], now_us: int) -> dict[str, Total]:
        with self._failures():
            return {meter: read_total(self._db, meter, now_us) for meter in meters}

    def count_kept(self, erasure: Erasure) -> int:
        with self._failures():
            return count_kept(self._db, erasure)

    def integrity_problems(self) -> tuple[str, ...]:
        """Pages, indexes that are not their tables', another schema."""
        try:
            rows = self._db.execute("PRAGMA integrity_check(20)").fetchall()
            wrong = schema_problems(self._db)
        except sqlite3.Error as error:
            return (f"ledger.db: {error}",)
        found = [row[0] for row in rows if row[0] != "ok"] + wrong
        return tuple(f"ledger.db: {text}" for text in found)

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise ConfigError(f"the ledger is damaged or was edited: {error}", file=str(self._dir)) from error
        except (OverflowError, UnicodeEncodeError) as error:  # what was asked for, not what is there
            raise ConfigError(f"the ledger has no such value: {error}") from error
