"""From a configuration to a reader of its ledger, or of another node's in the same store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..config import Config
from ..errors import ConfigError
from .reader import Reader
from .sqlite_reader import SqliteReader
from .sqlite_schema import DB_NAME

__all__ = ["fleet_reader", "has_ledger", "nodes", "open_reader", "whole_fleet"]

if TYPE_CHECKING:  # asyncpg is an extra
    from .postgres_reader import PostgresReader


def open_reader(config: Config, node: str = "") -> Reader:
    """Of this node, or of another one of its fleet. Raises ConfigError."""
    if config.store is not None:
        from .postgres_reader import PostgresReader

        return PostgresReader(config.state_dir, config.store, node or config.node)
    _only_this(config, node)
    return SqliteReader(config.state_dir)


def fleet_reader(config: Config, node: str = "") -> Reader:
    """Of everything that is in the store, or of one node there. Only for what goes by id, and for list()."""
    if config.store is None or node:
        return open_reader(config, node)
    from .postgres_reader import PostgresReader

    return PostgresReader(config.state_dir, config.store, None)


def whole_fleet(config: Config) -> PostgresReader:
    """Of everything that is in a shared store. Raises ConfigError."""
    if config.store is None:
        raise ConfigError(f"--fleet: `store: sqlite` has this node, {config.node}, alone")
    from .postgres_reader import PostgresReader

    return PostgresReader(config.state_dir, config.store, None)


def nodes(config: Config, node: str = "") -> Sequence[str]:
    """Whose logs are in the store; `node` chooses one."""
    if config.store is None or node:
        _only_this(config, node if config.store is None else "")
        return (node or config.node,)
    from .postgres_reader import nodes_of

    return nodes_of(config.store)


def has_ledger(config: Config) -> bool:
    """Whether this node has ever recorded anything. Raises ConfigError when that cannot be asked."""
    if config.store is None:
        return (config.state_dir / DB_NAME).exists()
    return (config.state_dir / "log" / "checkpoint").exists()


def _only_this(config: Config, node: str) -> None:
    if node and node != config.node:
        raise ConfigError(f"--node {node}: `store: sqlite` has this node, {config.node}, alone")
