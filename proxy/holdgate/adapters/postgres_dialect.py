"""Everything in which the engines of a fleet's ledger differ (decisions/0013): one object for each.

`postgresql` locks the fleet's row at READ COMMITTED, and a session's advisory lock says that a node runs.
`cockroachdb` is SERIALIZABLE, and a lease in the node's row says it; no statement of it is PostgreSQL's
alone. Which durability is checked depends on the server that is found (postgres_server.py), so that all of
`cockroachdb` but that runs over a PostgreSQL too.

Invariants (tests/test_cockroach.py has one test named after each):
  PD1  A node starts only where no other process of its name runs; one that was killed starts again by itself.
  PD2  A node whose lease ran out is gone for others, and goes on where nobody took its place: whoever did has
       the row's `owner`, and the former one writes nothing any more.
  PD3  All nodes of a database use one engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Protocol

import asyncpg

from .postgres_schema import STEPS, VERSION, repeatable
from .postgres_server import COCKROACHDB, POSTGRESQL
from .postgres_sql import NOW_US, one
from .store import StoreBroken

__all__ = ["Dialect", "dialect_of"]

_LOCK_CLASS: Final = 0x484F4C44  # of the advisory locks that say: this node runs
_LOOK_S: Final = 0.1  # between two looks at a lease that still runs
_RACES: Final = 5  # tries at making the tables, beside other nodes that start
# What a statement that makes something says when another node has just made it, or makes it.
_MADE_TWICE: Final = (
    asyncpg.DuplicateObjectError,
    asyncpg.DuplicateTableError,
    asyncpg.DuplicateSchemaError,
    asyncpg.DuplicateColumnError,
    asyncpg.UniqueViolationError,
    asyncpg.InternalServerError,  # "tuple concurrently updated"
)
_NODE: Final = f"SELECT owner, lease_us, lease_us > {NOW_US} AS runs FROM holdgate.nodes WHERE id = $1"  # noqa: S608


class Dialect(Protocol):
    name: str
    begin: str  # a group's transaction
    isolation: str  # of what else a writer does
    snapshot: str  # a reader's transaction
    patience_s: float  # for making the tables, or until a lease ends, beyond a few deadlines
    gone: str  # SQL: nobody runs as node `p.node`
    gone_for_good: str  # the same, in a group's transaction

    def lease_s(self, deadline_s: float) -> float:
        """How long a node that is not heard of counts as running; 0: it is not known by a lease."""
        ...

    async def bring_up_to_date(self, conn: Any) -> None:
        """Make or change the tables. Raises StoreBroken when they are newer than this version."""
        ...

    async def enter(self, conn: Any, node_id: int) -> bool:
        """Whether no other process runs as this node. It is kept so from here on, or by a lease."""
        ...

    async def hold(self, conn: Any, node_id: int) -> bool:
        """The same on another connection of a node that has entered."""
        ...


class _Postgres:
    name = POSTGRESQL
    begin = "BEGIN"
    isolation = "read committed"
    snapshot = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
    patience_s = 0.0
    gone = (
        "NOT EXISTS (SELECT 1 FROM pg_locks l WHERE l.locktype = 'advisory' AND l.granted"  # noqa: S608
        f" AND l.classid = {_LOCK_CLASS} AND l.objid = p.node"
        " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()))"
    )
    gone_for_good = f"pg_try_advisory_xact_lock({_LOCK_CLASS}, p.node)"

    def lease_s(self, deadline_s: float) -> float:
        return 0.0

    async def bring_up_to_date(self, conn: Any) -> None:
        async with conn.transaction():
            # Two nodes that start at once: one after the other.
            await conn.execute("SELECT pg_advisory_xact_lock($1, 0)", _LOCK_CLASS)
            version = await _found(conn, "CREATE SCHEMA holdgate")
            for step in STEPS[version:]:
                await conn.execute(step)
            if version < VERSION:
                await conn.execute("UPDATE holdgate.fleet SET version = $1", VERSION)

    async def enter(self, conn: Any, node_id: int) -> bool:
        return await self.hold(conn, node_id)

    async def hold(self, conn: Any, node_id: int) -> bool:
        row = await one(conn, "SELECT pg_try_advisory_lock($1, $2)", _LOCK_CLASS, node_id)
        return bool(row[0])


class _Cockroach:
    name = COCKROACHDB
    begin = "BEGIN ISOLATION LEVEL SERIALIZABLE"
    isolation = "serializable"
    snapshot = "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY"
    patience_s = 120.0  # each change of the schema is a job there; the longest lease has 92 s
    gone = f"EXISTS (SELECT 1 FROM holdgate.nodes n WHERE n.id = p.node AND n.lease_us <= {NOW_US})"  # noqa: S608
    gone_for_good = gone

    def lease_s(self, deadline_s: float) -> float:
        """Longer than two groups and a renewal between them can take."""
        return 2.0 + 3 * deadline_s

    async def bring_up_to_date(self, conn: Any) -> None:
        """Nothing is atomic here but a statement: each may be done twice, and by several nodes at once; the
        format is written after what it stands for, and only goes up."""
        for number in range(_RACES):
            try:
                await self._bring_up_to_date(conn)
                return
            except _MADE_TWICE:
                if number == _RACES - 1:
                    raise
                await asyncio.sleep(_LOOK_S)  # another node makes the same

    async def _bring_up_to_date(self, conn: Any) -> None:
        version = await _found(conn, "CREATE SCHEMA IF NOT EXISTS holdgate")
        for number in range(version, VERSION):
            for statement in repeatable(STEPS[number]):
                await conn.execute(statement)
            await conn.execute("UPDATE holdgate.fleet SET version = $1 WHERE version < $1", number + 1)

    async def enter(self, conn: Any, node_id: int) -> bool:
        """A lease that still runs is waited for: whoever was killed does not renew it, whoever lives does."""
        first = await one(conn, _NODE, node_id)
        row = first
        while row["runs"]:
            await asyncio.sleep(_LOOK_S)
            row = await one(conn, _NODE, node_id)
            if (row["owner"], row["lease_us"]) != (first["owner"], first["lease_us"]):
                return False
        return True

    async def hold(self, conn: Any, node_id: int) -> bool:
        return True


async def _found(conn: Any, create: str) -> int:
    """The format that the database has; 0 when it is empty."""
    if not (await one(conn, "SELECT count(*) FROM pg_namespace WHERE nspname = 'holdgate'"))[0]:
        await conn.execute(create)
    made = await one(
        conn,
        "SELECT count(*) FROM information_schema.tables"
        " WHERE table_schema = 'holdgate' AND table_name = 'fleet'",
    )
    row = await one(conn, "SELECT version FROM holdgate.fleet") if made[0] else None
    version = int(row[0]) if row else 0
    if version > VERSION:
        raise StoreBroken(f"it has format {version}; this version writes {VERSION}")
    return version


_DIALECTS: Final[dict[str, Callable[[], Dialect]]] = {POSTGRESQL: _Postgres, COCKROACHDB: _Cockroach}


def dialect_of(engine: str) -> Dialect:
    return _DIALECTS[engine]()
