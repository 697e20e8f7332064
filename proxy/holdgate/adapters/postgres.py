"""The ledger of one node of a fleet: PostgreSQL. Its log, keys and CA stay in the node's state directory.

    migrate -> this node's row, and the lock that says that it runs -> compare with the checkpoint -> own it

One process has a node at a time: whoever holds the lock (it ends with the connection). The owner written in
the node's row is what fences: a process that lost its connection, and was replaced, writes nothing any more.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any, Final, Unpack

import asyncpg

from ..config_store import PostgresStore as Settings
from ..errors import ConfigError
from ..keys import PublicKey
from ..tlog import TlogError
from .log_tail import signed_before
from .postgres_link import Link
from .postgres_schema import LOCK_CLASS, STEPS, VERSION
from .postgres_store import SKEW_S, PostgresStore
from .sqlite_schema import unpack
from .store import Conflict, Head, Node, StoreBroken, StoreLost
from .store_ledger import Given, Prepared, StoreLedger

__all__ = ["PostgresLedger"]

_WHERE: Final = "PostgreSQL"
_PATIENCE: Final = 5  # deadlines: tables are made, and a synchronous standby answers, within that
_FAILURES: Final = (StoreLost, StoreBroken, Conflict, asyncpg.PostgresError)


class PostgresLedger(StoreLedger):
    """Make one with open()."""

    @classmethod
    def open(
        cls,
        state_dir: Path,
        settings: Settings,
        *,
        fleet_key: bytes,
        skew_s: float = SKEW_S,
        **given: Unpack[Given],
    ) -> PostgresLedger:
        """Open or create the ledger of this node. Raises as StoreLedger.open_over() does."""

        def prepare(node: Node, log_key: PublicKey) -> Prepared:
            signed = signed_before(state_dir, node.origin, log_key)
            link = Link(settings, f"holdgate {node.name}", writes=True)
            until = time.monotonic() + _PATIENCE * link.deadline_s
            store: PostgresStore | None = None
            try:
                link.call(_bring_up_to_date, until)
                link.call(lambda conn: _one_fleet_key(conn, fleet_key), until)
                row = link.call(lambda conn: _enter(conn, node), until)
                head = Head(tree=unpack(row["size"], row["hashes"]), iat_us=row["iat_us"])
                store = PostgresStore(settings, link, node, row["id"], head, skew_s, fleet_key)
                signed.audit(head.tree, store.leaves(), row["last"], f"{_WHERE}, node {node.name}")
                link.call(lambda conn: _own(conn, node, row), until)
                store.look()
            except BaseException as error:
                store.close() if store is not None else link.close()
                if isinstance(error, (*_FAILURES, TlogError)):
                    detail = error.detail if isinstance(error, StoreLost) else error
                    raise ConfigError(f"cannot use the ledger: {detail}", file=_WHERE) from error
                raise
            return Prepared(store=store, edge=signed.edge, signed=signed.size)

        return cls.open_over(state_dir, prepare, **given)


async def _bring_up_to_date(conn: Any) -> None:
    async with conn.transaction():
        # Two nodes that start at once: one after the other.
        await conn.execute("SELECT pg_advisory_xact_lock($1, 0)", LOCK_CLASS)
        if not await conn.fetchval("SELECT count(*) FROM pg_namespace WHERE nspname = 'holdgate'"):
            await conn.execute("CREATE SCHEMA holdgate")
        made = await conn.fetchval("SELECT to_regclass('holdgate.fleet') IS NOT NULL")
        version = await conn.fetchval("SELECT version FROM holdgate.fleet") if made else 0
        if version > VERSION:
            raise StoreBroken(f"it has format {version}; this version writes {VERSION}")
        for step in STEPS[version:]:
            await conn.execute(step)
        if version < VERSION:
            await conn.execute("UPDATE holdgate.fleet SET version = $1", VERSION)


async def _one_fleet_key(conn: Any, fleet_key: bytes) -> None:
    """Claims are named by hashes under this key: under two keys, one action would have two claims."""
    mark = hashlib.blake2b(b"holdgate-fleet-v1", key=fleet_key, digest_size=16).hexdigest()
    await conn.execute("UPDATE holdgate.fleet SET key_mark = $1 WHERE key_mark = ''", mark)
    if await conn.fetchval("SELECT key_mark FROM holdgate.fleet") != mark:
        raise StoreBroken(
            "this node's keys/fleet.key is not that of the nodes that use this database: copy theirs here"
        )


async def _enter(conn: Any, node: Node) -> Any:
    """This node's row and the index of its last receipt; the lock of the node is held from here on."""
    async with conn.transaction():
        await conn.execute("SELECT one FROM holdgate.fleet WHERE one = 1 FOR UPDATE")
        await conn.execute(
            "INSERT INTO holdgate.nodes SELECT coalesce(max(id), 0) + 1, $1, $2, '', 0, 0, ''"
            " FROM holdgate.nodes HAVING NOT EXISTS (SELECT 1 FROM holdgate.nodes WHERE name = $1)",
            node.name,
            node.origin,
        )
        row = await conn.fetchrow(
            "SELECT n.*, (SELECT max(idx) FROM holdgate.receipts r WHERE r.node = n.id) AS last"
            " FROM holdgate.nodes n WHERE name = $1",
            node.name,
        )
    if row["origin"] != node.origin:
        raise StoreBroken(f"node {node.name} there has the log {row['origin']}, not {node.origin}")
    if not await conn.fetchval("SELECT pg_try_advisory_lock($1, $2)", LOCK_CLASS, row["id"]):
        raise StoreBroken(
            f"another process runs as node {node.name}: give each instance its own `node` and state directory"
        )
    return row


async def _own(conn: Any, node: Node, row: Any) -> None:
    done = await conn.execute(
        "UPDATE holdgate.nodes SET owner = $1 WHERE id = $2 AND owner = $3 AND size = $4",
        node.owner,
        row["id"],
        row["owner"],
        row["size"],
    )
    if done != "UPDATE 1":
        raise StoreBroken(f"another process took node {node.name} meanwhile")
