"""What a server is, and whether what it commits can be lost.

    SELECT version() -> Server -> why it must not be used, "" when it may

PostgreSQL tells in settings that every transaction reads again. CockroachDB tells through SHOW statements
only, so it is asked at start, on every new connection and with every renewal of the lease. None of that has
been run against a CockroachDB (decisions/0013): what is not understood, or may not be read, is a refusal.

Invariants (tests/test_cockroach.py has one test named after each):
  PC1  A CockroachDB is used only where the configuration says so.
  PC2  A CockroachDB whose durability cannot be read, that does not synchronise the Raft log, or that has
       fewer replicas than are required, is not used.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final, Protocol

import asyncpg

from ..config_store import ENGINES

__all__ = ["COCKROACHDB", "POSTGRESQL", "CockroachServer", "PostgresServer", "Server", "server_of"]

POSTGRESQL, COCKROACHDB = ENGINES
_REQUIRED_REPLICAS: Final = 3  # that a quorum survives the loss of one
# The setting has two names; the first is the older one, and remains as the other's alias.
_UNSYNCHRONISED: Final = (
    "kv.raft_log.disable_synchronization_unsafe",
    "kv.raft_log.synchronization.unsafe.disabled",
)
_REPLICAS: Final = re.compile(r"\bnum_replicas = (\d+)")
_UNVERIFIED: Final = (
    "store: Holdgate's CockroachDB engine is written against documentation and is tested over PostgreSQL at"
    " SERIALIZABLE; its makers have not run it on a CockroachDB. Run the suite against yours before you rely"
    " on it (CONTRIBUTING.md, HOLDGATE_TEST_COCKROACH)"
)


class Server(Protocol):
    columns: str  # SQL of what every transaction reads, for check(); "" where there is none
    warning: str  # to be logged at start
    passing: tuple[str, ...]  # classes of errors that pass by themselves, beside those of postgres_link.py

    def check(self, row: Any, *, require_sync: bool, writes: bool = True) -> str:
        """Why a server with these columns must not be trusted with a permit."""
        ...

    async def look(self, conn: Any, *, require_sync: bool, writes: bool = True) -> str:
        """The same, asked outside a transaction."""
        ...

    async def look_at_tables(self, conn: Any, tables: Iterable[str], *, require_sync: bool) -> str:
        """The same of the ledger's own tables, once they are there."""
        ...

    async def settle(self, conn: Any, wait_ms: int) -> None:
        """Settings of a session that writes: whoever holds the fleet's row and vanishes must let go of it."""
        ...


def server_of(version: str, engine: str) -> Server | str:
    """What said this `version` of itself; a refusal when it is not what the configuration says."""
    if version.startswith("PostgreSQL ") and "-YB-" not in version:
        return PostgresServer()
    if version.startswith("CockroachDB "):
        if engine == COCKROACHDB:
            return CockroachServer()
        return (
            "this server is no PostgreSQL but CockroachDB: if it is meant, write"
            f" `store: {{url: ..., engine: {COCKROACHDB}}}` (README, Store, says what differs)"
        )
    return (
        f"this server is no PostgreSQL but {version[:60]!r}: what it promises about locks of a session and"
        " about durability is not known, so permits are not kept there"
    )


class PostgresServer:
    # Read in every transaction too: fsync can be switched off in a running server.
    columns = (
        "current_setting('fsync') AS fsync, current_setting('full_page_writes') AS full_page_writes,"
        " current_setting('synchronous_commit') AS synchronous_commit,"
        " current_setting('synchronous_standby_names') AS standbys, pg_is_in_recovery() AS standby"
    )
    warning = ""
    passing: tuple[str, ...] = ()

    def check(self, row: Any, *, require_sync: bool, writes: bool = True) -> str:
        if row["standby"]:  # for readers too: what it lacks yet would look like something that is lost
            return "this server is a standby: the primary is needed"
        if not writes:
            return ""
        for name in ("fsync", "full_page_writes"):
            if row[name] != "on":
                return f"{name} is {row[name]}: what was committed can be lost. Set {name} = on"
        if row["synchronous_commit"] not in ("on", "remote_apply", "remote_write"):
            found = row["synchronous_commit"]
            return (
                f"synchronous_commit is {found}: what was committed can be lost. Set synchronous_commit = on"
            )
        if require_sync and not row["standbys"].strip():
            return (
                "require_sync is true, and synchronous_standby_names is empty: a failover could lose permits"
            )
        return ""

    async def look(self, conn: Any, *, require_sync: bool, writes: bool = True) -> str:
        rows = await conn.fetch(f"SELECT {self.columns}")
        return self.check(rows[0], require_sync=require_sync, writes=writes)

    async def look_at_tables(self, conn: Any, tables: Iterable[str], *, require_sync: bool) -> str:
        return ""

    async def settle(self, conn: Any, wait_ms: int) -> None:
        seconds = max(1, -(-wait_ms // 1000))
        await conn.execute(
            f"SET tcp_user_timeout = {wait_ms}; SET tcp_keepalives_idle = {seconds};"
            f" SET tcp_keepalives_interval = {seconds}; SET tcp_keepalives_count = 3"
        )
        rows = await conn.fetch("SELECT current_setting('synchronous_commit') AS now")
        if rows[0]["now"] != "remote_apply":
            await conn.execute("SET synchronous_commit = 'on'")


class CockroachServer:
    columns = ""
    warning = _UNVERIFIED
    passing: tuple[str, ...] = ("XX",)  # ranges without a quorum, and what else it has no code for

    def check(self, row: Any, *, require_sync: bool, writes: bool = True) -> str:
        return ""

    async def look(self, conn: Any, *, require_sync: bool, writes: bool = True) -> str:
        if not writes:
            return ""
        unsynchronised = await self._unsynchronised(conn)
        if unsynchronised is None:
            return (
                f"cluster setting {_UNSYNCHRONISED[0]} cannot be read, so what is committed could be lost:"
                " GRANT SYSTEM VIEWCLUSTERSETTING to the user of the URL"
            )
        if unsynchronised not in (False, "false", "f"):
            return (
                f"{_UNSYNCHRONISED[0]} is {unsynchronised}: what was committed can be lost. Set it to false"
            )
        database = (await conn.fetch("SELECT current_database()"))[0][0]
        return await self._zone(conn, f"DATABASE {_quoted(database)}", require_sync)

    async def look_at_tables(self, conn: Any, tables: Iterable[str], *, require_sync: bool) -> str:
        """A table may have a zone of its own; and a zone says what is wanted, the ranges what there is."""
        for table in tables:
            if problem := await self._zone(conn, f"TABLE holdgate.{_quoted(table)}", require_sync):
                return problem
            if require_sync and (problem := await self._ranges(conn, table)):
                return problem
        return ""

    async def settle(self, conn: Any, wait_ms: int) -> None:
        """Nothing: what all sessions have set (postgres_link.py) is what there is."""

    async def _unsynchronised(self, conn: Any) -> object:
        """None: it cannot be read."""
        for name in _UNSYNCHRONISED:
            try:
                rows = await conn.fetch(f"SHOW CLUSTER SETTING {name}")
            except asyncpg.PostgresError as error:
                if _passes(error):
                    raise
                continue
            return rows[0][0] if rows else None
        return None

    async def _zone(self, conn: Any, target: str, require_sync: bool) -> str:
        try:
            rows = await conn.fetch(f"SHOW ZONE CONFIGURATION FROM {target}")
        except asyncpg.PostgresError as error:
            if _passes(error):
                raise
            return f"the replication zone of {target} cannot be read ({error}): permits could be lost"
        found = _REPLICAS.search(str(rows[0]["raw_config_sql"])) if rows else None
        if found is None:
            return f"the replication zone of {target} names no num_replicas: permits could be lost"
        if require_sync and int(found[1]) < _REQUIRED_REPLICAS:
            found_here = f"{target} has num_replicas = {found[1]}"
            return f"require_sync is true, and {found_here}: it needs {_REQUIRED_REPLICAS}"
        return ""

    async def _ranges(self, conn: Any, table: str) -> str:
        try:
            rows = await conn.fetch(f"SHOW RANGES FROM TABLE holdgate.{_quoted(table)}")
            fewest = min((len(row["voting_replicas"]) for row in rows), default=0)
        except (asyncpg.PostgresError, KeyError, TypeError) as error:
            if isinstance(error, asyncpg.PostgresError) and _passes(error):
                raise
            return (
                f"require_sync is true, and the replicas of holdgate.{table} cannot be read ({error}): GRANT"
                " ZONECONFIG on its tables to the user of the URL"
            )
        if fewest < _REQUIRED_REPLICAS:
            return f"require_sync is true, and a range of holdgate.{table} has {fewest} voting replicas"
        return ""


def _passes(error: asyncpg.PostgresError) -> bool:
    """A connection that breaks, or a server that shuts down, says nothing about what may be read."""
    return (error.sqlstate or "")[:2] in ("08", "40", "53", "57")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
