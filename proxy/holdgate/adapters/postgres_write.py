"""What a group changes, as statements of its transaction: one for nearly all of it (postgres_sql.WRITE).

The caller began the transaction, holds the fleet's row, and commits.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any, Final

from ..ledger import Charge, is_free
from ..standing import MAX_DENIALS
from ..twins import seal
from . import postgres_sql as sql
from .postgres_schema import charges_text, row_of
from .sqlite_schema import denial_row, pack
from .store import FORGET_EVERY, Changes

__all__ = ["PostgresWriter"]

_TWINS_S: Final = 600  # a request that waits longer than that has given up


class PostgresWriter:
    """`owner` is this process's run of the node."""

    def __init__(self, node_id: int, owner: str, fleet_key: bytes) -> None:
        self._id, self._owner, self._fleet_key = node_id, owner, fleet_key

    async def write(self, conn: Any, changes: Changes, size: int, log_iat_us: int) -> bool:
        """`size` and `log_iat_us` are of the log before. False: this node's row has another owner."""
        if await conn.execute(sql.WRITE, *self._columns(changes, log_iat_us)) != "UPDATE 1":
            return False
        free = [key for key, row in changes.claims.items() if is_free(row)]
        if free:
            await conn.execute("DELETE FROM holdgate.claims WHERE key = ANY($1::text[])", free)
        if changes.denials:
            rows = [denial_row(changes.head.iat_us, denial) for _, denial in changes.denials]
            await conn.execute(sql.PUT_DENIALS, *_turned(rows, 7))
        if changes.prepared:
            objects = [(one.key, one.receipt_id, one.expires_us) for one in changes.prepared]
            await conn.execute(sql.PUT_PREPARED, *_turned(objects, 3))
        if changes.answers:
            await self._put_twins(conn, changes)
        if changes.kept:
            kept = [(one.receipt_id, one.index, one.expires_us) for one in changes.kept]
            await conn.execute(sql.PUT_ANSWERS, self._id, *_turned(kept, 3))
        if size // FORGET_EVERY != changes.head.tree.size // FORGET_EVERY:
            await self._forget(conn, changes.head.iat_us)
        if changes.charges:
            await self._write_counters(conn, changes.charges, changes.head.iat_us)
        return True

    def _columns(self, changes: Changes, log_iat_us: int) -> list[Any]:
        """The arguments of sql.WRITE."""
        permits = [
            (
                *(p.index, p.receipt_id, p.state.value, p.http_status, " ".join(p.claims)),
                *(charges_text(p.charges), p.lender),
            )
            for p in changes.permits.values()
        ]
        held = [row_of(row) for row in changes.claims.values() if not is_free(row)]
        sealed = [(index, item.data, item.salt, item.key) for index, item in changes.sealed]
        head = changes.head
        return [
            self._id,
            *_turned(changes.receipts, 9),
            *_turned(changes.inputs, 2),
            *_turned(sealed, 4),
            [index for index, _ in changes.erasing],
            self._owner,
            *_turned(permits, 7),
            *_turned(held, 11),
            head.iat_us,
            head.tree.size,
            pack(head.tree),
            [" ".join(permit.waiting) for permit in changes.permits.values()],
            head.iat_us if changes.receipts else log_iat_us,
        ]

    async def _put_twins(self, conn: Any, changes: Changes) -> None:
        """In the transaction of the outcomes: whoever sees the one sees the other."""
        now_us, rows = changes.head.iat_us, list[tuple[Any, ...]]()
        for permit, answer in changes.answers:
            for node in permit.waiting:
                data = seal(answer, permit.receipt_id, node, self._fleet_key, secrets.token_bytes)
                if data is not None:
                    rows.append((node, permit.receipt_id, now_us + _TWINS_S * 1_000_000, data))
        await conn.execute(sql.FORGET_TWINS, now_us)
        await conn.execute(sql.PUT_TWINS, *_turned(rows, 4))

    async def _forget(self, conn: Any, now_us: int) -> None:
        for statement in (*sql.FORGET, sql.FORGET_TWINS):
            await conn.execute(statement, now_us)
        for statement in sql.FORGET_ANSWERS:
            await conn.execute(statement, self._id, now_us)
        await conn.execute(sql.FORGET_DENIALS, MAX_DENIALS)

    async def _write_counters(self, conn: Any, changes: Sequence[Charge], now_us: int) -> None:
        rows = [(c.meter, c.at_us, c.until_us, c.amount, c.count) for c in changes if c.amount or c.count]
        if rows:
            await conn.execute(sql.PUT_COUNTERS, *_turned(rows, 5))
        await conn.execute(
            "DELETE FROM holdgate.counters WHERE id = ANY($1::text[]) AND (until_us <= $2 OR count = 0)",
            sorted({c.meter for c in changes}),
            now_us,
        )


def _turned(rows: Sequence[tuple[Any, ...]], width: int) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(width)]
