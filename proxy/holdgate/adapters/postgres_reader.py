"""Reading a fleet's ledger: of one node, or of the whole fleet, through a connection of its own.

The SQL of reader.py speaks of one node's tables. Here each name becomes that node's rows; for the whole fleet
every row, with the node as part of what is joined by.
"""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, Final

import asyncpg

from ..audit_fleet import FleetInput
from ..audit_rows import HeadRow
from ..config_store import PostgresStore as Settings
from ..erasure import Erasure
from ..errors import ConfigError
from ..ledger import Total
from .postgres_erase import erasure_filter
from .postgres_link import Link
from .postgres_schema import VERSION
from .reader import Reader, StoredReceipt
from .store import Conflict, StoreLost

__all__ = ["PostgresReader", "nodes_of"]

_FAILURES: Final = (StoreLost, Conflict, asyncpg.PostgresError)
_WHERE: Final = "PostgreSQL"
_PATIENCE_S: Final = 30.0  # for one query, and for one chunk of a long one
_CHUNK: Final = 1000
_TABLE: Final = re.compile(
    r"\b(FROM|JOIN) (head|receipts|inputs|sealed|secrets|permits|claims|counters|prepared|answers)\b"
)
_JOIN: Final = re.compile(r"\b(\w)\.idx = (\w)\.idx\b")
_OF_NODE: Final = frozenset({"receipts", "permits"})  # the others are joined to these
_PLACE: Final = re.compile(r"\?")
_PARAMETER: Final = re.compile(r"\$(\d+)")


class PostgresReader(Reader):
    """`node`: whose ledger; None: the whole fleet's, for what goes by receipt id, and for list()."""

    _is_shared = True

    def __init__(self, state_dir: Path, settings: Settings, node: str | None) -> None:
        super().__init__(state_dir)
        self._link = Link(settings, "holdgate reader", writes=False)
        self._in_snapshot = False
        self._cursors = 0
        try:
            version = self._ask("SELECT version FROM holdgate.fleet")[0][0]
            engine = self._ask("SELECT engine FROM holdgate.fleet")[0][0] if version == VERSION else ""
            found = self._ask("SELECT id FROM holdgate.nodes WHERE name = $1", node) if node else []
        except BaseException as error:
            self._link.close()
            if isinstance(error, asyncpg.UndefinedTableError | asyncpg.InvalidSchemaNameError):
                raise ConfigError("there is no ledger yet", file=_WHERE) from error
            if isinstance(error, _FAILURES):
                raise ConfigError(f"cannot read the ledger: {_said(error)}", file=_WHERE) from error
            raise
        self._id = found[0][0] if found else None
        if version != VERSION or engine != settings.engine or (node and not found):
            self._link.close()
            if version != VERSION:
                raise ConfigError(f"ledger format {version}; this version reads {VERSION}", file=_WHERE)
            if engine != settings.engine:
                raise ConfigError(f"its nodes have `engine: {engine}`, not {settings.engine}", file=_WHERE)
            raise ConfigError(f"no node {node} is in the ledger", file=_WHERE)
        self._place = "iat_us" if self._id is None else "idx"

    def close(self) -> None:
        self._link.close()

    def deserted(self) -> Sequence[StoredReceipt]:
        """PERMITs without an outcome whose node does not run: nobody is going to report one."""
        sql = (  # the second condition on the state is the index's own, and lets it be used
            "SELECT r.id FROM holdgate.permits p JOIN holdgate.receipts r ON r.id = p.id"  # noqa: S608
            " WHERE p.state = 'dispatching' AND p.state IN ('dispatching', 'unknown')"
            f" AND {self._link.dialect.gone} ORDER BY r.iat_us"
        )
        found = [self.get(row[0]) for row in self._rows(sql)]
        return [stored for stored in found if stored is not None]

    def fleet_input(self) -> FleetInput:
        """Everything that audit_fleet() looks at, in one snapshot: of a reader of the whole fleet. Read
        `records` to the end before the others; then call end_audit(). Raises ConfigError."""
        self._snapshot()
        heads = self._rows("SELECT name, origin, size, iat_us, hashes FROM holdgate.nodes ORDER BY id")
        return FleetInput(
            heads=tuple(
                (row[0], HeadRow(origin=row[1], size=row[2], iat_us=row[3], hashes=row[4])) for row in heads
            ),
            fleet_us=int(self._row("SELECT iat_us FROM holdgate.fleet")[0]),
            records=self._records(
                "(SELECT n.name FROM holdgate.nodes n WHERE n.id = r.node)", "r.iat_us, r.node"
            ),
            claims=self.claims(),
            counters=self.counters(),
            prepared=self._prepared(),
        )

    # --- reader.Reader ---

    def _rows(self, sql: str, values: Sequence[Any] = ()) -> Generator[Any]:
        text = self._own(sql)
        try:
            if not self._in_snapshot and " LIMIT " not in sql and "ORDER BY" not in sql:
                yield from self._link.call(lambda conn: conn.fetch(text, *values), self._until())
                return
            yield from self._in_chunks(text, values)
        except _FAILURES as error:
            raise ConfigError(f"cannot read the ledger: {_said(error)}", file=_WHERE) from error

    def _in_chunks(self, text: str, values: Sequence[Any]) -> Generator[Any]:
        alone = not self._in_snapshot
        if alone:
            self._snapshot()
        try:
            # Cursors of SQL: those of the protocol are portals, of which CockroachDB has one at a time; and
            # there DECLARE takes no parameters. The driver knows the columns of each by its name.
            self._cursors += 1
            name = f"c{self._cursors}"
            query = _PARAMETER.sub(lambda found: _literal(values[int(found[1]) - 1]), text)
            self._do(f"DECLARE {name} CURSOR FOR {query}")
            while rows := self._ask(f"FETCH FORWARD {_CHUNK} FROM {name}"):
                yield from rows
            self._do(f"CLOSE {name}")
        finally:
            if alone:
                self.end_audit()

    def _own(self, sql: str) -> str:
        """The query over this node's rows, with PostgreSQL's placeholders."""

        def table(found: re.Match[str]) -> str:
            word, name = found.groups()
            if name == "head":
                rows = f"SELECT * FROM holdgate.nodes WHERE id = {self._id or 0}"  # noqa: S608
                return f"{word} ({rows}) head"
            if name in _OF_NODE and self._id is not None:
                alias = "" if re.match(r" [a-z]\b", found.string[found.end() :]) else f" {name}"
                return f"{word} (SELECT * FROM holdgate.{name} WHERE node = {self._id}){alias}"  # noqa: S608
            if name in ("claims", "prepared") and self._id is not None:
                rows = f"SELECT id FROM holdgate.permits WHERE node = {self._id}"  # noqa: S608
                return f"{word} (SELECT * FROM holdgate.{name} WHERE receipt_id IN ({rows})) {name}"  # noqa: S608
            return f"{word} holdgate.{name}"

        text = _JOIN.sub(r"\1.node = \2.node AND \1.idx = \2.idx", _TABLE.sub(table, sql))
        numbers = iter(range(1, 100))
        return _PLACE.sub(lambda _: f"${next(numbers)}", text)

    def _snapshot(self) -> None:
        self._do(self._link.dialect.snapshot)
        self._in_snapshot = True

    def end_audit(self) -> None:
        if self._in_snapshot:
            self._in_snapshot = False
            if self._link.is_open:
                self._do("ROLLBACK")

    def totals(self, meters: tuple[str, ...], now_us: int) -> dict[str, Total]:
        sql = (
            "SELECT id, sum(sum), sum(count) FROM counters"
            " WHERE id = ANY(?::text[]) AND until_us > ? GROUP BY id"
        )
        rows = {row[0]: row for row in self._rows(sql, (list(meters), now_us))}
        return {
            meter: Total(sum=int(rows[meter][1]), count=int(rows[meter][2]))
            if meter in rows
            else Total(sum=0, count=0)
            for meter in meters
        }

    def count_kept(self, erasure: Erasure) -> int:
        where, values = erasure_filter(erasure, 1)
        secret = "length(replace(encode(s.salt, 'hex'), '00', ''))" if erasure.takes_salt else ""
        secret = secret or "length(replace(encode(s.key, 'hex'), '00', ''))"
        sql = (
            "SELECT count(*) FROM receipts r LEFT JOIN inputs i ON i.idx = r.idx"  # noqa: S608
            " LEFT JOIN secrets s ON s.idx = r.idx"
            f" WHERE (substr(i.json, 1, 1) <> decode('00', 'hex') OR {secret} > 0"
            f" OR EXISTS (SELECT 1 FROM answers a WHERE a.id = r.id)) AND {where}"
        )
        return int(self._row(sql, values)[0])

    def integrity_problems(self) -> tuple[str, ...]:
        return ()  # amcheck and checksums are the database's own

    def _place_since(self, since_us: int) -> int:
        return since_us if self._id is None else self.index_since(since_us)

    def _cursor(self, last: StoredReceipt) -> int:
        return last.iat_us if self._id is None else last.index

    def _ask(self, sql: str, *values: Any) -> Any:
        return self._link.call(lambda conn: conn.fetch(sql, *values), self._until())

    def _do(self, sql: str) -> None:
        self._link.call(lambda conn: conn.execute(sql), self._until())

    def _until(self) -> float:
        return time.monotonic() + _PATIENCE_S


def _said(error: BaseException) -> object:
    if isinstance(error, Conflict):
        return "another transaction was in the way; ask again"
    return error.detail if isinstance(error, StoreLost) else error


def _literal(value: object) -> str:
    """A value as SQL, without a character of it in the text."""
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, str):
        return f"convert_from(decode('{value.encode().hex()}', 'hex'), 'UTF8')"
    raise TypeError(f"no literal of {type(value).__name__}")


def nodes_of(settings: Settings) -> tuple[str, ...]:
    """The names of all nodes of the fleet. Raises ConfigError."""
    with PostgresReader(Path(), settings, None) as reader:
        return tuple(row[0] for row in reader._rows("SELECT name FROM holdgate.nodes ORDER BY id"))
