"""The ledger of one node of a fleet, in PostgreSQL or CockroachDB. Its log, keys and CA stay in its state
directory.

    migrate -> this node's row, where nobody else runs as it -> compare with the checkpoint -> own it

One process has a node at a time: whoever holds its lock or lease (postgres_dialect.py). The owner written in
the node's row is what fences: a process that lost its connection, and was replaced, writes nothing any more.
"""

from __future__ import annotations

import hashlib
import logging
import time
from pathlib import Path
from typing import Any, Final, Unpack

import asyncpg

from ..config_store import PostgresStore as Settings
from ..errors import ConfigError
from ..keys import PublicKey
from ..tlog import TlogError
from .log_tail import signed_before
from .postgres_dialect import Dialect
from .postgres_link import Link
from .postgres_schema import TABLES
from .postgres_sql import LOCK, NOW_US, one
from .postgres_store import SKEW_S, PostgresStore
from .sqlite_schema import unpack
from .store import Conflict, Head, Node, StoreBroken, StoreLost
from .store_ledger import Given, Prepared, StoreLedger

__all__ = ["PostgresLedger"]

log = logging.getLogger("holdgate.postgres")

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
            store: PostgresStore | None = None
            try:
                _prepare(link, fleet_key, settings)
                lease_s = link.dialect.lease_s(link.deadline_s)
                patience_s = link.dialect.patience_s
                row = link.again(lambda conn: _enter(conn, node, link.dialect), _until(link, patience_s))
                head = Head(tree=unpack(row["size"], row["hashes"]), iat_us=row["iat_us"])
                store = PostgresStore(settings, link, node, row["id"], head, skew_s, fleet_key)
                signed.audit(head.tree, store.leaves(), row["last"], f"{_WHERE}, node {node.name}")
                link.again(lambda conn: _own(conn, node, row, lease_s), _until(link))
                store.look()
            except BaseException as error:
                store.close() if store is not None else link.close()
                if isinstance(error, (*_FAILURES, TlogError)):
                    detail = error.detail if isinstance(error, StoreLost) else error
                    raise ConfigError(f"cannot use the ledger: {detail}", file=_WHERE) from error
                raise
            return Prepared(store=store, edge=signed.edge, signed=signed.size)

        return cls.open_over(state_dir, prepare, **given)


def _until(link: Link, more_s: float = 0.0) -> float:
    return time.monotonic() + _PATIENCE * link.deadline_s + more_s


def _prepare(link: Link, fleet_key: bytes, settings: Settings) -> None:
    """The tables of this version, on a server that keeps what is in them, for this fleet."""
    link.again(link.dialect.bring_up_to_date, _until(link, link.dialect.patience_s))
    link.again(lambda conn: _one_fleet(conn, fleet_key, settings.engine), _until(link))
    sync = settings.require_sync
    problem = link.again(
        lambda conn: link.server.look_at_tables(conn, TABLES, require_sync=sync), _until(link)
    )
    if problem:
        raise StoreLost(problem)
    if link.server.warning:
        log.warning("%s", link.server.warning)


async def _one_fleet(conn: Any, fleet_key: bytes, engine: str) -> None:
    """Claims are named by hashes under this key: under two keys, one action would have two claims. And under
    two engines, nodes would not know of each other whether they run."""
    mark = hashlib.blake2b(b"holdgate-fleet-v1", key=fleet_key, digest_size=16).hexdigest()
    await conn.execute(
        "UPDATE holdgate.fleet SET key_mark = $1, engine = $2 WHERE one = 1 AND key_mark = ''", mark, engine
    )
    row = await one(conn, "SELECT key_mark, engine FROM holdgate.fleet WHERE one = 1")
    if row["key_mark"] != mark:
        raise StoreBroken(
            "this node's keys/fleet.key is not that of the nodes that use this database: copy theirs here"
        )
    if row["engine"] != engine:
        raise StoreBroken(
            f"its nodes have `engine: {row['engine']}`, and this one {engine}: one fleet has one"
        )


async def _enter(conn: Any, node: Node, dialect: Dialect) -> Any:
    """This node's row, with the index of its last receipt as `last`. No other process runs as this node."""
    async with conn.transaction():
        await conn.execute(LOCK)
        row = await one(conn, "SELECT id FROM holdgate.nodes WHERE name = $1", node.name)
        if row is None:
            await conn.execute(
                "INSERT INTO holdgate.nodes (id, name, origin, owner, size, iat_us, hashes)"
                " VALUES ((SELECT coalesce(max(id), 0) + 1 FROM holdgate.nodes), $1, $2, '', 0, 0, $3)",
                *(node.name, node.origin, b""),
            )
            row = await one(conn, "SELECT id FROM holdgate.nodes WHERE name = $1", node.name)
    if not await dialect.enter(conn, row["id"]):
        raise StoreBroken(
            f"another process runs as node {node.name}: give each instance its own `node` and state directory"
        )
    row = await one(
        conn,
        "SELECT n.*, (SELECT max(idx) FROM holdgate.receipts r WHERE r.node = n.id) AS last"
        " FROM holdgate.nodes n WHERE n.id = $1",
        row["id"],
    )
    if row["origin"] != node.origin:
        raise StoreBroken(f"node {node.name} there has the log {row['origin']}, not {node.origin}")
    return row


async def _own(conn: Any, node: Node, row: Any, lease_s: float) -> None:
    done = await conn.execute(
        "UPDATE holdgate.nodes SET owner = $1,"  # noqa: S608
        f" lease_us = CASE WHEN $5::bigint = 0 THEN 0 ELSE {NOW_US} + $5::bigint END"
        " WHERE id = $2 AND owner = $3 AND size = $4 AND lease_us = $6",
        *(node.owner, row["id"], row["owner"], row["size"], round(lease_s * 1_000_000), row["lease_us"]),
    )
    if done != "UPDATE 1":
        raise StoreBroken(f"another process took node {node.name} meanwhile")
