"""PostgreSQL or CockroachDB under the serial step: one row lock, a constant number of round trips per group.

    begin  -> BEGIN; lock the fleet's row; this node's head; permits, claims, counters of the whole group
    commit -> one statement that writes everything, COMMIT

Whoever has the row is the one who judges in the whole fleet, so what is read after it is what every earlier
permit left, and nothing has to be guessed from versions: at READ COMMITTED, or at SERIALIZABLE where a
snapshot older than the row is given up (postgres_dialect.py has what differs). Time is the fleet's: no
receipt is older than one that another node wrote before it.

Invariants (tests/test_postgres.py has one test named after each):
  PG1  What a group reads was read while it held the fleet's row, and its writes are in that transaction.
  PG2  A node whose row names another owner writes nothing any more.
  PG3  A PERMIT in a commit whose end nobody saw is not dispatched, and becomes not_sent once it is seen.
  PG4  A database that went back in time (a failover that lost commits) ends the ledger.
  PG5  A node whose clock is not the server's records nothing.
  PG6  Who waits for another node's PERMIT hears of its end together with the answer that is shared, exactly
       once; nothing is recorded of the waiting, and nobody else waits for it.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

import asyncpg

from ..answer import Answer
from ..config_store import PostgresStore as Settings
from ..ledger import State
from ..tlog import TlogError
from ..twins import TwinError, open_sealed
from . import postgres_sql as sql
from .postgres_erase import PostgresEraser
from .postgres_link import Link
from .postgres_rows import FAILURES, PostgresRows
from .postgres_write import PostgresWriter
from .sqlite_schema import unpack
from .store import Changes, Conflict, Head, Node, StoreBroken, StoreLost

__all__ = ["PostgresLeaves", "PostgresStore"]

log = logging.getLogger("holdgate.postgres")

SKEW_S: Final = 5.0
_PAUSES_S: Final = (0.0, 0.1, 0.3, 1.0, 2.0)  # between two tries to reach a server that was lost


class PostgresStore:
    """Implements store.Store."""

    errors = FAILURES

    def __init__(
        self,
        settings: Settings,
        link: Link,
        node: Node,
        node_id: int,
        head: Head,
        skew_s: float = SKEW_S,
        fleet_key: bytes = b"",
    ) -> None:
        self._fleet_key = fleet_key
        self._settings, self._link, self._node, self._id = settings, link, node, node_id
        self.head = head
        self._skew_us = round(skew_s * 1_000_000)
        self._log_iat_us = 0  # of this node's last receipt; head has the fleet's
        self._fleet_us = 0  # the latest time that was seen in the fleet
        self._live: set[str] = set()  # PERMITs that were given out and have no outcome
        self._in_doubt = False  # whether a commit ended nobody knows how
        self._stranded: tuple[str, ...] = ()
        self._until = 0.0
        self._dialect = link.dialect
        self._lease_s = link.dialect.lease_s(link.deadline_s)
        self.tend_s = self._lease_s / 5
        self._tend_at = 0.0  # monotonic
        self._holder = link.connection  # which connection has the lock that says: this node runs
        self._again = False  # a group is judged again: its deadline is the first one
        self._failures, self._try_at = 0, 0.0
        self._rows = PostgresRows(self._ask_in_group, link.dialect, node_id)
        self._writer = PostgresWriter(node_id, node.owner, fleet_key)
        self._leaves = PostgresLeaves(settings, f"holdgate {node.name} log", node_id, link)
        self.lost = ""
        self.unknown = 0
        self.eraser = PostgresEraser(self._ask, node_id)

    # --- store.Store ---

    def look(self) -> None:
        """Once, at start: how many outcomes are unknown. Nobody waits here for answers any more."""
        self._repeated(lambda conn: conn.execute("DELETE FROM holdgate.twins WHERE node = $1", self._id))
        self.unknown = self._repeated(lambda conn: sql.one(conn, sql.UNKNOWN, self._id))[0]

    def begin(self, work: Sequence[object]) -> PostgresRows:
        """Raises StoreLost at once while the server was lost a moment ago."""
        now = time.monotonic()
        if self.lost and now < self._try_at:
            raise StoreLost(self.lost)
        if not self._again:
            self._until = now + self._link.deadline_s
        self._again = False
        was_open = self._link.is_open
        try:
            try:
                self._ask(lambda conn: self._begin(conn, work), self._until)
            except StoreLost:
                # A connection that had died unnoticed is no reason to refuse: nothing was asked of it yet.
                if not was_open or time.monotonic() >= self._until:
                    raise
                self._ask(lambda conn: self._begin(conn, work), self._until)
        except StoreLost as error:
            self._lose(error)
            raise
        except Conflict:
            self._again = True
            raise
        self.lost, self._failures = "", 0
        return self._rows

    def commit(self, changes: Changes) -> None:
        doubted, self._in_doubt = self._in_doubt, True
        try:
            self._ask(lambda conn: self._commit(conn, changes), self._until)
        except StoreLost as error:
            self._lose(error)
            raise
        except Conflict:
            # An earlier doubt stays: the outcomes of what it had left were undone with this.
            self._in_doubt, self._again = doubted, True
            raise
        self._in_doubt = False
        self.head = changes.head
        self._fleet_us = changes.head.iat_us
        if changes.receipts:
            self._log_iat_us = changes.head.iat_us
        self.unknown += changes.unknown
        for permit in changes.permits.values():
            if permit.state is State.DISPATCHING and not self._rows.has(permit.receipt_id):
                self._live.add(permit.receipt_id)
            elif permit.state is not State.DISPATCHING:
                self._live.discard(permit.receipt_id)

    def rollback(self) -> None:
        try:
            if self._link.is_open:
                self._ask(lambda conn: conn.execute("ROLLBACK"), self._until)
        except StoreLost as error:
            self._lose(error)

    def heal(self) -> None:
        if self.lost and time.monotonic() >= self._try_at:
            with contextlib.suppress(StoreLost, Conflict):
                self.begin(())
                self.rollback()

    def tend(self) -> None:
        """Renew the lease, so that nobody takes this node for one that is gone; look at the server again."""
        now = time.monotonic()
        if not self._lease_s or now < self._tend_at:
            return
        self._tend_at = now + self.tend_s
        try:
            problem = self._ask(self._renew)
        except StoreLost as error:
            self._lose(error)
        except Conflict:
            self._tend_at = now
        else:
            if problem:
                self._lose(StoreLost(problem))

    async def _renew(self, conn: Any) -> str:
        done = await conn.execute(sql.RENEW, self._id, self._node.owner, round(self._lease_s * 1_000_000))
        if done != "UPDATE 1":
            raise StoreBroken(f"another process has taken over node {self._node.name}")
        return str(await self._link.server.look(conn, require_sync=self._settings.require_sync))

    def stranded(self) -> Sequence[str]:
        return self._stranded

    def orphans(self) -> Sequence[str]:
        return [row[0] for row in self._repeated(lambda conn: conn.fetch(sql.ORPHANS, self._id))]

    def ended(self, receipt_ids: Collection[str]) -> Mapping[str, Answer | None]:
        try:
            rows = self._ask(lambda conn: conn.fetch(sql.ENDED, self._id, list(receipt_ids)))
        except StoreLost as error:
            self._lose(error)
            raise
        except Conflict:
            return {}
        return {row[0]: self._opened(row[0], row[1]) for row in rows}

    def _opened(self, receipt_id: str, data: bytes | None) -> Answer | None:
        try:
            return None if data is None else open_sealed(data, receipt_id, self._node.name, self._fleet_key)
        except TwinError as error:
            log.error("%s", error)
            return None

    def key_events(self) -> Sequence[tuple[int, bytes]]:
        rows = self._repeated(lambda conn: conn.fetch(sql.KEY_EVENTS, self._id))
        return [(row[0], row[1]) for row in rows]

    def leaves(self) -> PostgresLeaves:
        return self._leaves

    def close(self) -> None:
        if self._lease_s and not self.lost:
            self._lease_s = 0.0
            # What fails here ends with the lease.
            with contextlib.suppress(Exception):
                self._ask(lambda conn: conn.execute(sql.LET_GO, self._id, self._node.owner))
        self._link.close()
        self._leaves.close()

    # --- inside the transaction ---

    def _ask[T](self, work: Callable[[Any], Any], until: float | None = None) -> Any:
        return self._link.call(work, time.monotonic() + self._link.deadline_s if until is None else until)

    def _ask_in_group(self, work: Callable[[Any], Any]) -> Any:
        try:
            return self._ask(work, self._until)
        except Conflict:
            self._again = True
            raise

    def _repeated(self, work: Callable[[Any], Any]) -> Any:
        """At start: once more where the transaction was undone."""
        return self._link.again(work, time.monotonic() + self._link.deadline_s)

    def _lose(self, error: StoreLost) -> None:
        if not self.lost:
            log.error("the store is lost: %s", error.detail)
        self._link.drop()
        self.lost = error.detail
        self._try_at = time.monotonic() + _PAUSES_S[min(self._failures, len(_PAUSES_S) - 1)]
        self._failures += 1

    async def _commit(self, conn: Any, changes: Changes) -> None:
        if not await self._writer.write(conn, changes, self.head.tree.size, self._log_iat_us):
            raise StoreBroken(f"another process has taken over node {self._node.name}")
        done = await conn.execute("COMMIT")
        if done != "COMMIT":
            raise StoreLost(f"COMMIT was answered by {done}")

    async def _begin(self, conn: Any, work: Sequence[object]) -> None:
        if self._in_doubt and self._lease_s and (problem := await self._renew(conn)):
            # Row locks can be lost there, and what was sent to an earlier connection may still be carried
            # out. It writes this node's row: a write to that, committed now, is after its end or undoes it.
            raise StoreLost(problem)
        await self._lock(conn)
        columns = self._link.server.columns
        row = await sql.one(conn, sql.HEAD % (f", {columns}" if columns else ""), self._id)
        self._check_server(row)
        if self._holder is not conn:
            # An earlier connection of ours may still hold it; who the owner is, is in the row.
            self._holder = conn if await self._dialect.hold(conn, self._id) else None
        self._stranded = ()
        self._adopt(row)
        if self._in_doubt:
            await self._look_for_stranded(conn)
        await self._rows.prefetch(conn, work, self._stranded, self.head.iat_us)

    async def _lock(self, conn: Any) -> None:
        """Until the deadline. A transaction whose snapshot is older than what the row's last holder wrote is
        of no use: it is undone when it gets the row, before anything was read in it, and is begun again."""
        while True:
            try:
                await conn.execute(f"{self._dialect.begin}; {sql.LOCK}")
                return
            except asyncpg.SerializationError:
                await conn.execute("ROLLBACK")

    def _check_server(self, row: Any) -> None:
        if row is None:
            raise StoreBroken("this node's row is gone")
        if row["owner"] != self._node.owner:
            raise StoreBroken(f"another process has taken over node {self._node.name}")
        problem = self._link.server.check(row, require_sync=self._settings.require_sync)
        if problem:
            raise StoreLost(problem)
        skew_us = self._node.clock_us() - row["now_us"]
        if abs(skew_us) > self._skew_us:
            raise StoreLost(f"this node's clock is {skew_us / 1e6:+.1f} s from that of the database")

    def _adopt(self, row: Any) -> None:
        """The head as it is in the database. It is what we know, unless a commit was in doubt."""
        try:
            head = Head(tree=unpack(row["size"], row["hashes"]), iat_us=max(row["iat_us"], row["fleet_us"]))
        except TlogError as error:
            raise StoreBroken(f"the ledger was edited: {error}") from error
        size = self.head.tree.size
        if head.tree.size < size or row["fleet_us"] < self._fleet_us:
            raise StoreBroken("the database has lost what it had committed: a failover without its standby?")
        if head.tree != self.head.tree and not (self._in_doubt and head.tree.size > size):
            raise StoreBroken("the end of the log is not what this process wrote")
        self.head, self._log_iat_us, self._fleet_us = head, row["iat_us"], row["fleet_us"]

    async def _look_for_stranded(self, conn: Any) -> None:
        rows = await conn.fetch(sql.STRANDED, self._id, self._node.owner)
        self._stranded = tuple(row[0] for row in rows if row[0] not in self._live)
        self.unknown = (await sql.one(conn, sql.UNKNOWN, self._id))[0]
        if not self._stranded:
            self._in_doubt = False


class PostgresLeaves:
    """Implements store.Leaves over a connection that is kept, to the host that the writer has."""

    def __init__(self, settings: Settings, name: str, node_id: int, writer: Link) -> None:
        self._link, self._id, self._writer = Link(settings, name, writes=False), node_id, writer

    def __enter__(self) -> PostgresLeaves:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def read(self, start: int, end: int) -> Sequence[bytes]:
        text = "SELECT jws FROM holdgate.receipts WHERE node = $1 AND idx >= $2 AND idx < $3 ORDER BY idx"
        self._link.prefer(self._writer.host)
        rows = self._link.again(
            lambda conn: conn.fetch(text, self._id, start, end), time.monotonic() + 10 * self._link.deadline_s
        )
        return [row[0] for row in rows]

    def close(self) -> None:
        self._link.close()
