"""PostgreSQL under the serial step: one row lock, a constant number of round trips per group.

    begin  -> BEGIN; lock the fleet's row; this node's head; permits, claims, counters of the whole group
    commit -> one statement that writes everything, COMMIT

Whoever has the row is the one who judges in the whole fleet, so what is read after it is what every earlier
permit left, at READ COMMITTED, and nothing has to be guessed from versions. Time is the fleet's: no receipt
is older than one that another node wrote before it.

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
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final

import asyncpg

from ..answer import Answer
from ..config_store import PostgresStore as Settings
from ..ledger import Charge, ClaimRow, Finding, State, Total, is_free
from ..sealing import KeptAnswer
from ..standing import MAX_DENIALS, Denial, Prepared
from ..tlog import TlogError
from ..twins import TwinError, open_sealed, seal
from . import postgres_sql as sql
from .postgres_erase import PostgresEraser
from .postgres_link import Link
from .postgres_schema import charges_of, charges_text, claim_of, row_of
from .sqlite_schema import answer_of, denial_of, denial_row, kept_input, pack, unpack
from .store import FORGET_EVERY, Changes, Conflict, Head, Node, OutcomeNote, Permit, StoreBroken, StoreLost

__all__ = ["PostgresLeaves", "PostgresStore", "permit_of"]

log = logging.getLogger("holdgate.postgres")

SKEW_S: Final = 5.0
_PAUSES_S: Final = (0.0, 0.1, 0.3, 1.0, 2.0)  # between two tries to reach a server that was lost
_TWINS_S: Final = 600  # a request that waits longer than that has given up


class PostgresStore:
    """Implements store.Store, and Rows of its open transaction."""

    errors: tuple[type[Exception], ...] = (StoreLost, StoreBroken, Conflict, asyncpg.PostgresError)

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
        self._claims: dict[str, ClaimRow | None] = {}
        self._permits: dict[str, Permit | None] = {}
        self._denials: dict[str, Denial | None] = {}
        self._buckets: dict[str, list[tuple[int, int, int]]] = {}  # meter -> (until_us, sum, count)
        self._leaves = PostgresLeaves(settings, f"holdgate {node.name} log", node_id, link)
        self.lost = ""
        self.unknown = 0
        self.eraser = PostgresEraser(self._ask, node_id)

    # --- store.Store ---

    def look(self) -> None:
        """Once, at start: how many outcomes are unknown. Nobody waits here for answers any more."""
        self._repeated(lambda conn: conn.execute("DELETE FROM holdgate.twins WHERE node = $1", self._id))
        self.unknown = self._repeated(lambda conn: sql.one(conn, sql.UNKNOWN, self._id))[0]

    def begin(self, work: Sequence[object]) -> PostgresStore:
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
        return self

    def commit(self, changes: Changes) -> None:
        self._in_doubt = True
        try:
            self._ask(lambda conn: self._commit(conn, changes), self._until)
        except StoreLost as error:
            self._lose(error)
            raise
        except Conflict:
            self._in_doubt, self._again = False, True
            raise
        self._in_doubt = False
        self.head = changes.head
        self._fleet_us = changes.head.iat_us
        if changes.receipts:
            self._log_iat_us = changes.head.iat_us
        self.unknown += changes.unknown
        for permit in changes.permits.values():
            if permit.state is State.DISPATCHING and permit.receipt_id not in self._permits:
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
        if self._lease_s and self._link.is_open:
            # What fails here ends with the lease.
            with contextlib.suppress(Exception):
                self._ask(lambda conn: conn.execute(sql.LET_GO, self._id, self._node.owner))
        self._link.close()
        self._leaves.close()

    # --- rows ---

    def claim(self, key: str) -> ClaimRow | None:
        if key not in self._claims:
            self._ask(lambda conn: self._fetch_claims(conn, [key]), self._until)
        return self._claims[key]

    def permit(self, receipt_id: str) -> Permit | None:
        if receipt_id not in self._permits:
            self._ask(lambda conn: self._fetch_permits(conn, [receipt_id]), self._until)
        return self._permits[receipt_id]

    def denial(self, key: str) -> Denial | None:
        if key not in self._denials:
            self._ask(lambda conn: self._fetch_denials(conn, [key]), self._until)
        return self._denials[key]

    def prepared(self, key: str) -> Prepared | None:
        if not _is_sendable(key):
            return None
        row = self._ask(lambda conn: sql.one(conn, sql.PREPARED, key), self._until)
        return (
            None
            if row is None
            else Prepared(key=row["key"], receipt_id=row["receipt_id"], expires_us=row["expires_us"])
        )

    def answer(self, receipt_id: str) -> KeptAnswer | None:
        row = self._ask(lambda conn: sql.one(conn, sql.ANSWER, receipt_id), self._until)
        return answer_of(row)

    def inputs(self, receipt_id: str) -> bytes | None:
        row = self._ask(lambda conn: sql.one(conn, sql.INPUTS, receipt_id), self._until)
        return None if row is None else kept_input(receipt_id, *row)

    def total(self, meter: str, now_us: int) -> Total:
        if meter not in self._buckets:
            self._ask(lambda conn: self._fetch_meters(conn, [meter]), self._until)
        rows = [row for row in self._buckets[meter] if now_us < row[0]]
        return Total(sum=sum(row[1] for row in rows), count=sum(row[2] for row in rows))

    def deserted(self, receipt_id: str) -> bool:
        """Whether the node of this PERMIT runs no more."""
        text = (
            f"SELECT p.node <> $2 AND {self._dialect.gone_for_good} FROM holdgate.permits p WHERE p.id = $1"  # noqa: S608
        )
        row = self._ask(lambda conn: sql.one(conn, text, receipt_id, self._id), self._until)
        return row is not None and bool(row[0])

    # --- inside the transaction ---

    def _ask[T](self, work: Callable[[Any], Any], until: float | None = None) -> Any:
        return self._link.call(work, time.monotonic() + self._link.deadline_s if until is None else until)

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
        self._claims, self._permits, self._denials, self._buckets, self._stranded = {}, {}, {}, {}, ()
        self._adopt(row)
        if self._in_doubt:
            await self._look_for_stranded(conn)
        await self._prefetch(conn, work)

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

    async def _prefetch(self, conn: Any, work: Sequence[object]) -> None:
        ids, keys, denials, meters = _wanted(work, self._stranded)
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
        for meter, until_us, total, count in await conn.fetch(sql.COUNTERS, wanted, self.head.iat_us):
            self._buckets[meter].append((until_us, total, count))

    # --- writing ---

    async def _commit(self, conn: Any, changes: Changes) -> None:
        done = await conn.execute(sql.WRITE, *self._columns(changes))
        if done != "UPDATE 1":
            raise StoreBroken(f"another process has taken over node {self._node.name}")
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
        if self.head.tree.size // FORGET_EVERY != changes.head.tree.size // FORGET_EVERY:
            await self._forget(conn, changes.head.iat_us)
        if changes.charges:
            await self._write_counters(conn, changes.charges, changes.head.iat_us)
        done = await conn.execute("COMMIT")
        if done != "COMMIT":
            raise StoreLost(f"COMMIT was answered by {done}")

    def _columns(self, changes: Changes) -> list[Any]:
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
            self._node.owner,
            *_turned(permits, 7),
            *_turned(held, 11),
            head.iat_us,
            head.tree.size,
            pack(head.tree),
            [" ".join(permit.waiting) for permit in changes.permits.values()],
            head.iat_us if changes.receipts else self._log_iat_us,
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


def _turned(rows: Sequence[tuple[Any, ...]], width: int) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(width)]


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
