"""Reading a node's ledger from another process, while it runs or when nothing does.

One class for every store: the SQL is the same, written for SQLite; a store says how it is run. A reader
cannot write, and does not hold up the writer. Every call is one snapshot.
"""

from __future__ import annotations

import contextlib
import json
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ..audit import AuditInput
from ..audit_rows import CounterRow, HeadRow, LogRecord, PermitRow
from ..erasure import Erasure
from ..errors import ConfigError
from ..keyhistory import REVOKE, ROTATE
from ..keys import unb64url
from ..ledger import ClaimRow, State, Total
from ..sealing import SealError, Stored
from ..standing import Prepared
from .sequencer import CHECKPOINT, LOG
from .sqlite_schema import OPEN_PERMITS, charges_of, claim_of, permits_of
from .store import Permit
from .tilestore import TileStore

__all__ = ["Page", "Reader", "StoredReceipt"]

type _Decided = tuple[bytes, bytes | None, bytes]

_STATES = {state.value: state for state in State}
_INPUTS = (
    "SELECT r.id, r.jws, i.json, e.data, s.salt, s.key FROM receipts r LEFT JOIN inputs i ON i.idx = r.idx"
    " LEFT JOIN sealed e ON e.idx = r.idx LEFT JOIN secrets s ON s.idx = r.idx"
)
_COLUMNS = "idx, id, type, outcome, reason, agent, surface, iat_us, jws"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredReceipt:
    index: int
    id: str
    type: str
    outcome: str  # "" unless it is a decision
    reason: str  # an outcome receipt's status, an admin receipt's action
    agent: str
    surface: str
    iat_us: int
    jws: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    receipts: tuple[StoredReceipt, ...]  # newest first
    next: int | None  # cursor of the next page; None: there is none


class Reader(ABC):
    """Use it as a context manager, in one thread."""

    _place = "idx"  # what list() goes by
    _is_shared = False  # claims and counters with other nodes

    def __init__(self, state_dir: Path) -> None:
        self._dir = state_dir

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None: ...

    @abstractmethod
    def _rows(self, sql: str, values: Sequence[Any] = ()) -> Generator[Any]:
        """What the query gives, as it is read. Raises ConfigError."""

    @abstractmethod
    def _snapshot(self) -> None:
        """What is read from here to end_audit() is one state."""

    @abstractmethod
    def end_audit(self) -> None: ...

    @abstractmethod
    def totals(self, meters: tuple[str, ...], now_us: int) -> dict[str, Total]:
        """What stands on these meters (counters.py)."""

    @abstractmethod
    def count_kept(self, erasure: Erasure) -> int:
        """How many decisions an erasure would take something from."""

    @abstractmethod
    def integrity_problems(self) -> tuple[str, ...]:
        """What is wrong with the database itself."""

    def _row(self, sql: str, values: Sequence[Any] = ()) -> Any:
        with contextlib.closing(self._rows(sql, values)) as rows:
            return next(rows, None)

    @property
    def origin(self) -> str:
        return str(self._head("origin"))

    @property
    def size(self) -> int:
        return int(self._head("size"))

    def _head(self, column: str) -> Any:
        row = self._row(f"SELECT {column} FROM head")  # noqa: S608
        if row is None:
            raise ConfigError("the ledger was edited: it has no head row", file=str(self._dir))
        return row[0]

    def get(self, receipt_id: str) -> StoredReceipt | None:
        row = self._row(f"SELECT {_COLUMNS} FROM receipts WHERE id = ?", (receipt_id,))  # noqa: S608
        return None if row is None else _stored(row)

    def newest_admin(self, action: str) -> StoredReceipt | None:
        """The latest admin receipt of this action."""
        row = self._row(
            f"SELECT {_COLUMNS} FROM receipts WHERE type = 'admin' AND reason = ? ORDER BY idx DESC LIMIT 1",  # noqa: S608
            (action,),
        )
        return None if row is None else _stored(row)

    def state_of(self, receipt_id: str) -> State | None:
        """The state of a permit; None when there is no such permit."""
        row = self._row(
            "SELECT p.state FROM receipts r JOIN permits p ON p.idx = r.idx WHERE r.id = ?", (receipt_id,)
        )
        return None if row is None else State(row[0])

    def input(self, receipt_id: str) -> bytes | None:
        """The recorded decision input of a receipt."""
        row = self._row(f"{_INPUTS} WHERE r.id = ? AND r.type = 'decision'", (receipt_id,))
        return None if row is None else _opened(row)[1]

    def prepared(self, key: str) -> Prepared | None:
        """What is known of an object that later requests act on, with what was decided about it."""
        row = self._row("SELECT receipt_id, expires_us FROM prepared WHERE key = ?", (key,))
        if row is None:
            return None
        return Prepared(key=key, receipt_id=row[0], expires_us=row[1], inputs=self.input(row[0]))

    def stored(self, receipt_id: str) -> Stored | None:
        """What is kept sealed beside a decision; None when nothing ever was."""
        row = self._row(f"{_INPUTS} WHERE r.id = ? AND r.type = 'decision'", (receipt_id,))
        return None if row is None else _sealed(*row[3:])

    def list(
        self,
        *,
        agent: str = "",
        surface: str = "",
        outcome: str = "",
        since_us: int = 0,
        limit: int = 100,
        cursor: int | None = None,
    ) -> Page:
        """Receipts, newest first; "" does not filter. `cursor` is a Page's `next`."""
        at = self._place
        where, values = [f"{at} >= ?"], list[Any]((self._place_since(since_us) if since_us else 0,))
        for column, value in (("agent", agent), ("surface", surface), ("outcome", outcome)):
            if value:
                where.append(f"{column} = ?")
                values.append(value)
        if cursor is not None:
            where.append(f"{at} < ?")
            values.append(cursor)
        text = " AND ".join(where)
        sql = f"SELECT {_COLUMNS} FROM receipts WHERE {text} ORDER BY {at} DESC LIMIT ?"  # noqa: S608
        found = [_stored(row) for row in self._rows(sql, (*values, limit + 1))]
        page = found[:limit]
        return Page(
            receipts=tuple(page), next=self._cursor(page[-1]) if len(found) > limit and page else None
        )

    def _place_since(self, since_us: int) -> int:
        return self.index_since(since_us)

    def _cursor(self, last: StoredReceipt) -> int:
        return last.index

    def index_since(self, since_us: int) -> int:
        """The first index whose receipt is not older than `since_us` (indices are in time order)."""
        low, high = 0, self.size
        while low < high:
            middle = (low + high) // 2
            row = self._row("SELECT iat_us FROM receipts WHERE idx = ?", (middle,))
            if row is None or row[0] < since_us:
                low = middle + 1
            else:
                high = middle
        return low

    def export(self, since_index: int = 0, limit: int = -1) -> Iterator[StoredReceipt]:
        """Receipts in log order."""
        sql = f"SELECT {_COLUMNS} FROM receipts WHERE idx >= ? ORDER BY idx LIMIT ?"  # noqa: S608
        for row in self._rows(sql, (since_index, _limit(limit))):
            yield _stored(row)

    def decisions(self, since_index: int = 0, limit: int = -1, until: int = 2**62) -> Iterator[_Decided]:
        """Receipts of decisions in log order, each with the recorded input, opened where it was sealed.

        The third is the salt of its digest, b"" for an input in clear. What does not open is b"": damaged,
        and not what the receipt names.
        """
        sql = f"{_INPUTS} WHERE r.idx >= ? AND r.idx < ? AND r.type = 'decision' ORDER BY r.idx LIMIT ?"
        for row in self._rows(sql, (since_index, until, _limit(limit))):
            inputs = row[2]
            # Most rows are in clear, and a backtest reads millions of them.
            if row[4] is None and row[3] is None and inputs is not None and inputs[:1] != b"\0":
                yield row[1], inputs, b""
            else:
                yield _opened(row)

    def decided(self, receipt_id: str) -> _Decided | None:
        """One of decisions(); None when no decision has this id."""
        row = self._row(f"{_INPUTS} WHERE r.id = ? AND r.type = 'decision'", (receipt_id,))
        return None if row is None else _opened(row)

    def without_effect(self) -> dict[str, int]:
        """The permits that ended not_sent or failed, and when (us) that was found."""
        ended = {row[0] for row in self._rows("SELECT id FROM permits WHERE state IN ('not_sent', 'failed')")}
        if not ended:
            return {}
        sql = "SELECT jws, iat_us FROM receipts WHERE type = 'outcome' AND reason <> 'executed' ORDER BY idx"
        found: dict[str, int] = {}
        for jws, iat_us in self._rows(sql):
            of = json.loads(unb64url(bytes(jws).split(b".")[1]))["of"]
            if of in ended:
                found[of] = iat_us  # the last one: what was unknown first
        return found

    def counters(self) -> Iterator[CounterRow]:
        """Every row of the counters."""
        for row in self._rows("SELECT id, at_us, until_us, sum, count FROM counters ORDER BY id, at_us"):
            yield CounterRow(meter=row[0], at_us=row[1], until_us=row[2], sum=row[3], count=row[4])

    def claims(self) -> Iterator[ClaimRow]:
        """Every claim. Raises ConfigError where a row is not one."""
        for row in self._rows("SELECT * FROM claims ORDER BY key"):
            with self._damage():
                claim = claim_of(row)
            yield claim

    def permits(self, state: State) -> tuple[Permit, ...]:
        """The permits that are dispatching or unknown."""
        return permits_of(self._rows(OPEN_PERMITS, (state.value,)), state)

    def retired_keys(self) -> frozenset[tuple[str, bool]]:
        """(kid, whether it is revoked) of the keys that the log says are in use no more."""
        sql = "SELECT jws FROM receipts WHERE type = 'admin' AND reason = ? ORDER BY idx"
        old, revoked = (
            {
                str(json.loads(unb64url(bytes(row[0]).split(b".")[1]))["details"][name])
                for row in self._rows(sql, (action,))
            }
            for action, name in ((ROTATE, "old"), (REVOKE, "kid"))
        )
        return frozenset((kid, kid in revoked) for kid in old)

    def deserted(self) -> Sequence[StoredReceipt]:
        """PERMITs without an outcome whose node does not run: nobody is going to report one."""
        return ()

    def checkpoint(self) -> bytes:
        """The signed note as it is on disk. Raises ConfigError."""
        path = self._dir / CHECKPOINT
        try:
            return path.read_bytes()
        except OSError as error:
            raise ConfigError(f"cannot read: {error.strerror}", file=str(path)) from error

    def audit_input(self) -> AuditInput:
        """Everything that audit() looks at, in one snapshot. Raises ConfigError.

        The checkpoint is read before the snapshot, so a running ledger can only be ahead of it.
        Read `records` to the end before `claims` and `counters`; then call end_audit().
        """
        note = self.checkpoint()
        self._snapshot()
        with self._damage():
            row = self._row("SELECT origin, size, iat_us, hashes FROM head")
            if row is None:
                raise ValueError("it has no head row")
        return AuditInput(
            checkpoint=note,
            tiles=TileStore(self._dir / LOG),
            head=HeadRow(origin=row[0], size=row[1], iat_us=row[2], hashes=row[3]),
            records=self._records(),
            claims=self.claims(),
            counters=self.counters(),
            is_shared=self._is_shared,
            prepared=self._prepared(),
        )

    def _prepared(self) -> Iterator[Prepared]:
        for row in self._rows("SELECT key, receipt_id, expires_us FROM prepared ORDER BY key"):
            yield Prepared(key=row[0], receipt_id=row[1], expires_us=row[2])

    def _records(self, node: str = "''", by: str = "r.idx") -> Iterator[LogRecord]:
        """`node`: what names the log of a row; `by`: in which order. Both are SQL."""
        sql = (
            f"SELECT {node}, r.idx, r.id, r.type, r.outcome, r.reason, r.agent, r.surface,"  # noqa: S608
            " r.iat_us, r.jws,"
            " i.json, e.data, s.salt, s.key, p.id, p.state, p.http_status, p.claims, p.charges, p.lender"
            " FROM receipts r LEFT JOIN inputs i ON i.idx = r.idx"
            " LEFT JOIN sealed e ON e.idx = r.idx LEFT JOIN secrets s ON s.idx = r.idx"
            f" LEFT JOIN permits p ON p.idx = r.idx ORDER BY {by}"
        )
        for name, *row in self._rows(sql):
            index, receipt_id, kind, outcome, reason, agent, surface, iat_us, jws, clear, *sealed = row[:13]
            yield LogRecord(
                index=index,
                id=receipt_id,
                type=kind,
                outcome=outcome,
                reason=reason,
                agent=agent,
                surface=surface,
                iat_us=iat_us,
                jws=bytes(jws),
                inputs=None if clear is None else _clear(clear),
                sealed=_sealed(*sealed),
                permit=None if row[13] is None else self._permit_row(*row[13:]),
                node=name or "",
            )

    def _permit_row(
        self, receipt_id: str, state: str, http_status: int, claims: str, charges: str, lender: str
    ) -> PermitRow:
        if state not in _STATES:
            raise ConfigError(f"the ledger was edited: no state {state!r}", file=str(self._dir))
        with self._damage():
            return PermitRow(
                id=receipt_id,
                state=_STATES[state],
                http_status=http_status,
                claims=tuple(claims.split()),
                charges=charges_of(charges),
                lender=lender,
            )

    @contextlib.contextmanager
    def _damage(self) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            raise ConfigError(f"the ledger is damaged or was edited: {error}", file=str(self._dir)) from error


def _limit(limit: int) -> int:
    return limit if limit >= 0 else 2**62


def _clear(stored: bytes | None) -> bytes | None:
    """An input in clear; None when there is none, or zeros where one was."""
    return None if stored is None or stored[:1] == b"\0" else bytes(stored)


def _sealed(data: bytes | None, salt: bytes | None, key: bytes | None) -> Stored | None:
    if data is None and salt is None:
        return None
    return Stored(data=data, salt=salt or b"", key=key or b"")


def _opened(row: tuple[str, bytes, bytes | None, bytes | None, bytes | None, bytes | None]) -> _Decided:
    sealed = _sealed(*row[3:])
    if sealed is None:
        return row[1], _clear(row[2]), b""
    try:
        kept = sealed.open(row[0])
    except SealError:
        return row[1], b"", sealed.salt
    return row[1], kept.inputs if kept else None, sealed.salt


def _stored(row: tuple[int, str, str, str, str, str, str, int, bytes]) -> StoredReceipt:
    return StoredReceipt(
        index=row[0],
        id=row[1],
        type=row[2],
        outcome=row[3],
        reason=row[4],
        agent=row[5],
        surface=row[6],
        iat_us=row[7],
        jws=bytes(row[8]),
    )
