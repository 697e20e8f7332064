"""Destroying inputs, kept answers, keys and salts in a PostgreSQL ledger, a window of receipts at a time.

The order's admin receipt is committed first, with a row in `erasing` (sqlite_erase.py says more). Here an
update leaves the old version of a row in its page until VACUUM, in the write-ahead log until that is
recycled, and in every standby, archive and backup: so done() never says that it is out of the files.

Invariants (tests/test_postgres.py has one test named after each):
  PE1  After an erasure no row that a query can see holds the key, salt or clear input of what it covers,
       nor the key of a kept answer.
  PE2  A crash at any step leaves an erasure that the next open() finishes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from ..erasure import Erasure
from ..jcs import loads_strict
from ..keys import unb64url
from .store import Conflict

__all__ = ["PostgresEraser", "erasure_filter"]

_WINDOW: Final = 2048


class PostgresEraser:
    """Implements store.Eraser; `ask` runs something with the writer's connection."""

    def __init__(self, ask: Callable[[Callable[[Any], Any]], Any], node_id: int) -> None:
        self._ask, self._id = ask, node_id
        self._runs: deque[tuple[int, Erasure]] = deque()
        self._at = 0

    @property
    def busy(self) -> bool:
        return bool(self._runs)

    @property
    def pause_s(self) -> float:
        return 0.0

    def done(self, index: int) -> bool:
        return False

    def resume(self) -> None:
        rows = self._ask(
            lambda conn: conn.fetch(
                "SELECT e.idx, r.reason, r.jws FROM holdgate.erasing e JOIN holdgate.receipts r"
                " ON r.node = e.node AND r.idx = e.idx WHERE e.node = $1 ORDER BY e.idx",
                self._id,
            )
        )
        for index, action, jws in rows:
            self.start(index, Erasure.of(action, loads_strict(unb64url(jws.split(b".")[1]))["details"]))

    def start(self, index: int, erasure: Erasure) -> None:
        self._runs.append((index, erasure))

    def step(self) -> None:
        if not self._runs:
            return
        index, erasure = self._runs[0]
        end = index if erasure.ids else min(self._at + _WINDOW, index)
        try:
            self._ask(lambda conn: self._erase(conn, erasure, self._at, end, index))
        except Conflict:
            return  # nothing of it was done: the next step() is the same one
        self._at = end
        if end >= index:
            self._runs.popleft()
            self._at = 0

    async def _erase(self, conn: Any, erasure: Erasure, start: int, end: int, index: int) -> None:
        where, values = erasure_filter(erasure, 4)
        sql = (
            "SELECT r.idx FROM holdgate.receipts r WHERE r.node = $1 AND r.idx >= $2 AND r.idx < $3"  # noqa: S608
            f" AND {where}"
        )
        async with conn.transaction():
            rows = [row[0] for row in await conn.fetch(sql, self._id, start, end, *values)]
            mine = " WHERE node = $1 AND idx = ANY($2::bigint[])"
            salt = "salt = decode(repeat('00', 16), 'hex'), " if erasure.takes_salt else ""
            await conn.execute(
                f"UPDATE holdgate.secrets SET {salt}key = decode(repeat('00', 32), 'hex'){mine}",  # noqa: S608
                self._id,
                rows,
            )
            if erasure.takes_salt:
                zeros = "json = decode(repeat('00', length(json)), 'hex')"
                await conn.execute(f"UPDATE holdgate.inputs SET {zeros}{mine}", self._id, rows)  # noqa: S608
            else:
                await conn.execute(f"DELETE FROM holdgate.inputs{mine}", self._id, rows)  # noqa: S608
            await conn.execute(f"DELETE FROM holdgate.sealed{mine}", self._id, rows)  # noqa: S608
            await self._erase_answers(conn, rows)
            if end >= index:
                await conn.execute(
                    "DELETE FROM holdgate.erasing WHERE node = $1 AND idx = $2", self._id, index
                )

    async def _erase_answers(self, conn: Any, decisions: list[int]) -> None:
        """The answers that these decisions led to lie under the leaves of their outcomes."""
        answers = await conn.fetch(
            "SELECT a.idx, a.id FROM holdgate.answers a JOIN holdgate.receipts r ON r.id = a.id"
            " WHERE r.node = $1 AND r.idx = ANY($2::bigint[])",
            self._id,
            decisions,
        )
        leaves = [row[0] for row in answers]
        mine = " WHERE node = $1 AND idx = ANY($2::bigint[])"
        zeros = "key = decode(repeat('00', 32), 'hex')"
        await conn.execute(f"UPDATE holdgate.secrets SET {zeros}{mine}", self._id, leaves)  # noqa: S608
        await conn.execute(f"DELETE FROM holdgate.sealed{mine}", self._id, leaves)  # noqa: S608
        await conn.execute(
            "DELETE FROM holdgate.answers WHERE id = ANY($1::text[])", [row[1] for row in answers]
        )


def erasure_filter(erasure: Erasure, first: int) -> tuple[str, list[Any]]:
    """What an order covers, as SQL over receipts `r`, its values numbered from `first`."""
    if erasure.ids:
        return f"r.id = ANY(${first}::text[])", [sorted(erasure.ids)]
    where, values = ["r.type = 'decision'"], list[Any]()
    terms = (
        ("r.agent = ", erasure.agent),
        ("r.surface = ", erasure.surface),
        ("r.iat_us < ", erasure.before_us),
    )
    for term, value in terms:
        if value:
            where.append(f"{term}${first + len(values)}")
            values.append(value)
    return " AND ".join(where), values
