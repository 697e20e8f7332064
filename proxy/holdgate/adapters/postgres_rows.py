"""The rows that a group of a fleet's ledger starts from: fetched at once, or when they are asked for.

prefetch(work) -> what a group will ask for; claim(), permit() ... -> from that, or from the database
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import asyncpg

from ..ledger import ClaimRow, Finding, State, Total
from ..sealing import KeptAnswer
from ..standing import Denial, Prepared
from . import postgres_sql as sql
from .postgres_dialect import Dialect
from .postgres_schema import charges_of, claim_of
from .sqlite_schema import answer_of, denial_of, kept_input
from .store import Conflict, OutcomeNote, Permit, StoreBroken, StoreLost

__all__ = ["FAILURES", "PostgresRows", "permit_of"]

FAILURES: tuple[type[Exception], ...] = (StoreLost, StoreBroken, Conflict, asyncpg.PostgresError)


class PostgresRows:
    """Implements store.Rows; `ask` runs something with the writer's connection, within a deadline."""

    errors = FAILURES

    def __init__(self, ask: Callable[[Callable[[Any], Any]], Any], dialect: Dialect, node_id: int) -> None:
        self._ask, self._dialect, self._id = ask, dialect, node_id
        self._now_us = 0
        self._claims: dict[str, ClaimRow | None] = {}
        self._permits: dict[str, Permit | None] = {}
        self._denials: dict[str, Denial | None] = {}
        self._buckets: dict[str, list[tuple[int, int, int]]] = {}  # meter -> (until_us, sum, count)

    def has(self, receipt_id: str) -> bool:
        """Whether this group has asked for that PERMIT."""
        return receipt_id in self._permits

    def claim(self, key: str) -> ClaimRow | None:
        if key not in self._claims:
            self._ask(lambda conn: self._fetch_claims(conn, [key]))
        return self._claims[key]

    def permit(self, receipt_id: str) -> Permit | None:
        if receipt_id not in self._permits:
            self._ask(lambda conn: self._fetch_permits(conn, [receipt_id]))
        return self._permits[receipt_id]

    def denial(self, key: str) -> Denial | None:
        if key not in self._denials:
            self._ask(lambda conn: self._fetch_denials(conn, [key]))
        return self._denials[key]

    def prepared(self, key: str) -> Prepared | None:
        if not _is_sendable(key):
            return None
        row = self._ask(lambda conn: sql.one(conn, sql.PREPARED, key))
        return (
            None
            if row is None
            else Prepared(key=row["key"], receipt_id=row["receipt_id"], expires_us=row["expires_us"])
        )

    def answer(self, receipt_id: str) -> KeptAnswer | None:
        row = self._ask(lambda conn: sql.one(conn, sql.ANSWER, receipt_id))
        return answer_of(row)

    def inputs(self, receipt_id: str) -> bytes | None:
        row = self._ask(lambda conn: sql.one(conn, sql.INPUTS, receipt_id))
        return None if row is None else kept_input(receipt_id, *row)

    def total(self, meter: str, now_us: int) -> Total:
        if meter not in self._buckets:
            self._ask(lambda conn: self._fetch_meters(conn, [meter]))
        rows = [row for row in self._buckets[meter] if now_us < row[0]]
        return Total(sum=sum(row[1] for row in rows), count=sum(row[2] for row in rows))

    def deserted(self, receipt_id: str) -> bool:
        """Whether the node of this PERMIT runs no more."""
        text = (
            f"SELECT p.node <> $2 AND {self._dialect.gone_for_good} FROM holdgate.permits p WHERE p.id = $1"  # noqa: S608
        )
        row = self._ask(lambda conn: sql.one(conn, text, receipt_id, self._id))
        return row is not None and bool(row[0])

    # --- inside the transaction ---

    async def prefetch(self, conn: Any, work: Sequence[object], stranded: Sequence[str], now_us: int) -> None:
        """Begin a group: what `work` will ask for, in a constant number of queries."""
        self._claims, self._permits, self._denials, self._buckets = {}, {}, {}, {}
        self._now_us = now_us
        ids, keys, denials, meters = _wanted(work, stranded)
        if ids:
            await self._fetch_permits(conn, ids)
            keys |= {key for permit in self._permits.values() if permit for key in permit.claims}
        if keys:
            await self._fetch_claims(conn, keys)
        holders = {row.receipt_id for row in self._claims.values() if row}
        holders |= {permit.lender for permit in self._permits.values() if permit and permit.lender}
        if holders := holders - self._permits.keys():
            await self._fetch_permits(conn, holders)
        if denials:
            await self._fetch_denials(conn, denials)
        if meters:
            await self._fetch_meters(conn, meters)

    async def _fetch_denials(self, conn: Any, keys: Iterable[str]) -> None:
        wanted = list(keys)
        self._denials.update(dict.fromkeys(wanted))
        for row in await conn.fetch(sql.DENIALS, wanted):
            self._denials[row["key"]] = denial_of(tuple(row))

    async def _fetch_permits(self, conn: Any, ids: Iterable[str]) -> None:
        wanted = list(ids)
        self._permits.update(dict.fromkeys(wanted))
        for row in await conn.fetch(f"{sql.PERMITS} WHERE id = ANY($1::text[])", wanted):
            self._permits[row["id"]] = permit_of(row, self._id)

    async def _fetch_claims(self, conn: Any, keys: Iterable[str]) -> None:
        wanted = list(keys)
        self._claims.update(dict.fromkeys(wanted))
        for row in await conn.fetch(sql.CLAIMS, wanted):
            self._claims[row["key"]] = claim_of(tuple(row))

    async def _fetch_meters(self, conn: Any, meters: Iterable[str]) -> None:
        wanted = list(meters)
        self._buckets.update({meter: [] for meter in wanted})
        for meter, until_us, total, count in await conn.fetch(sql.COUNTERS, wanted, self._now_us):
            self._buckets[meter].append((until_us, total, count))


def permit_of(row: Mapping[str, Any], node_id: int) -> Permit:
    """`node_id`: whoever asks."""
    return Permit(
        index=row["idx"],
        receipt_id=row["id"],
        state=State(row["state"]),
        http_status=row["http_status"],
        claims=tuple(row["claims"].split()),
        charges=charges_of(row["charges"]),
        lender=row["lender"],
        away=row["node"] != node_id,
        waiting=tuple(row["waiting"].split()),
    )


def _wanted(work: Sequence[object], stranded: Sequence[str]) -> tuple[set[str], ...]:
    """Ids of permits, keys of claims and of denials, and meters that a group will ask for. What it asks for
    beyond is fetched then; what cannot be asked of a database at all is the judge's own failure, later."""
    ids, keys, denials, meters = set(stranded), set[str](), set[str](), set[str]()
    for item in work:
        task = getattr(item, "work", item)
        if isinstance(task, OutcomeNote):
            ids.add(task.receipt_id)
        elif isinstance(task, Finding):
            ids.add(task.of)
        else:
            keys.update(_names(task, "keys"))
            denials.update(_names(task, "denials"))
            meters.update(_names(task, "meters"))
    return {each for each in ids if _is_sendable(each)}, keys, denials, meters


def _names(judge: object, attribute: str) -> Iterable[str]:
    try:
        return [name for name in getattr(judge, attribute, ()) if _is_sendable(name)]
    except Exception:  # noqa: BLE001  (the batch meets the same error, and says whose it is)
        return ()


def _is_sendable(name: object) -> bool:
    return isinstance(name, str) and name.isascii() and "\0" not in name
