"""The `store:` setting: a SQLite file in the state directory, or PostgreSQL or what speaks its protocol.

    postgresql://user@db1.example.org:5432,db2.example.org/holdgate?sslmode=verify-full

The URL is taken apart here, so that a word in it that we do not know is refused, and no environment variable
fills in what it leaves out. It may hold a password, so no message and no repr() shows it.

Invariants (tests/test_config.py):
  SR1  `store` is the word `sqlite`, or a PostgreSQL URL with hosts, user and database; else it is refused.
  SR2  A host that is not this machine is asked for its certificate, unless the URL says `sslmode=disable`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final
from urllib.parse import parse_qsl, quote, unquote, urlencode

from .strictyaml import Node

__all__ = ["ENGINES", "PostgresStore", "read_store"]

_URL: Final = re.compile(r"postgres(?:ql)?://(?:([^@/?#]*)@)?([^@/?#]*)/([^/?#]+)(?:\?([^#]*))?\Z")
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([1-9][0-9]{0,4}))?\Z")
_WORDS: Final = frozenset({"sslmode", "sslrootcert", "sslcert", "sslkey", "passfile", "host"})
_SSLMODES: Final = ("disable", "require", "verify-ca", "verify-full")
ENGINES: Final = ("postgresql", "cockroachdb")
_EXAMPLE: Final = "postgresql://holdgate@db.example.org/holdgate"


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresStore:
    """Where and how patiently. One URL per host, all of one cluster; PostgreSQL's primary alone is used."""

    urls: tuple[str, ...] = field(repr=False)
    hosts: tuple[str, ...]  # the same, for people
    require_sync: bool  # refuse to run without a synchronous standby
    deadline_ms: int  # of one group of decisions, commit included
    engine: str = ENGINES[0]


def read_store(node: Node | None) -> PostgresStore | None:
    """None: SQLite. Raises ConfigError."""
    if node is None or node.value == "sqlite":
        return None
    if isinstance(node.value, str):
        urls, hosts = _urls(node)
        return PostgresStore(urls=urls, hosts=hosts, require_sync=False, deadline_ms=1000)
    if not isinstance(node.value, dict):
        raise node.fail(f"write `store: sqlite`, or `store: {_EXAMPLE}`")
    keys = node.mapping(required=("url",), optional=("require_sync", "deadline_ms", "engine"), what="store")
    urls, hosts = _urls(keys["url"])
    sync = keys["require_sync"].boolean("store.require_sync") if "require_sync" in keys else False
    deadline = (
        keys["deadline_ms"].integer("store.deadline_ms", low=50, high=30_000)
        if "deadline_ms" in keys
        else 1000
    )
    engine = ENGINES[0]
    if "engine" in keys:
        engine = str(keys["engine"].value)
        if engine not in ENGINES:
            raise keys["engine"].fail(f"store.engine is one of {', '.join(ENGINES)}")
    return PostgresStore(urls=urls, hosts=hosts, require_sync=sync, deadline_ms=deadline, engine=engine)


def _urls(node: Node) -> tuple[tuple[str, ...], tuple[str, ...]]:
    found = _URL.match(node.value) if isinstance(node.value, str) else None
    if found is None:
        raise node.fail(f"store is `sqlite` or a URL such as {_EXAMPLE}")
    user, netloc, database, query = found.groups()
    try:
        words = dict(parse_qsl(query or "", keep_blank_values=True, strict_parsing=bool(query)))
    except ValueError:
        raise node.fail("store: what follows the `?` is not name=value&name=value") from None
    if unknown := sorted(words.keys() - _WORDS):
        raise node.fail(f"store: {unknown[0]!r} in the URL is unknown; there are {', '.join(sorted(_WORDS))}")
    if not user or not user.partition(":")[0]:
        raise node.fail("store: the URL names no user: write user@host")
    if words.get("sslmode", "disable") not in _SSLMODES:
        raise node.fail(f"store: sslmode is one of {', '.join(_SSLMODES)}")
    folder = words.pop("host", "")
    if bool(folder) == bool(netloc) or (folder and not folder.startswith("/")):
        raise node.fail("store: name hosts, or the folder of a Unix socket as ?host=/run/postgresql")
    hosts = [_host(node, each) for each in netloc.split(",")] if netloc else [("", 5432)]
    urls = [_url(user, host, port, database, words, folder) for host, port in hosts]
    return tuple(urls), tuple(f"{host}:{port}" if host else folder for host, port in hosts)


def _host(node: Node, text: str) -> tuple[str, int]:
    found = _HOST.match(text)
    if found is None or int(found[2] or 5432) > 65535:
        raise node.fail("store: a host of the URL is not name or name:port")
    return found[1], int(found[2] or 5432)


def _url(user: str, host: str, port: int, database: str, words: dict[str, str], folder: str) -> str:
    given = dict(words)
    given.setdefault("sslmode", "disable" if not host or _is_here(host) else "verify-full")
    if folder:
        given["host"] = folder
    where = f"{host}:{port}" if host else ""
    return f"postgresql://{user}@{where}/{quote(unquote(database))}?{urlencode(given)}"


def _is_here(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
