"""The ledger on one node: a SQLite file in the state directory, `ledger.db`."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Unpack

from ..errors import ConfigError
from ..keys import PublicKey
from .log_tail import signed_before
from .sqlite_open import open_file
from .sqlite_reader import SqliteReader, StoredReceipt
from .sqlite_schema import DB_NAME
from .sqlite_store import SqliteLeaves, SqliteStore
from .store import Node
from .store_ledger import Given, Prepared, StoreLedger

__all__ = ["SqliteLedger", "SqliteReader", "StoredReceipt"]


class SqliteLedger(StoreLedger):
    """Make one with open()."""

    @classmethod
    def open(cls, state_dir: Path, **given: Unpack[Given]) -> SqliteLedger:
        """Open or create the ledger. Raises as StoreLedger.open_over() does."""
        path = str(state_dir / DB_NAME)

        def prepare(node: Node, log_key: PublicKey) -> Prepared:
            signed = signed_before(state_dir, node.origin, log_key)
            try:
                opened = open_file(state_dir, node)
            except sqlite3.Error as error:
                raise ConfigError(f"cannot open the ledger: {error}", file=path) from error
            try:
                with SqliteLeaves(state_dir) as leaves:
                    signed.audit(opened.head.tree, leaves, opened.last, path)
                store = SqliteStore(opened, state_dir, node.owner)
            except BaseException:
                opened.db.close()
                raise
            return Prepared(store=store, edge=signed.edge, signed=signed.size)

        return cls.open_over(state_dir, prepare, **given)
