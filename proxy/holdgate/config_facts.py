"""The `facts:` block: which provider of a policy's facts is where, and how long it may take.

    facts:
      ehr-panel:
        file: {path: ./panel.csv, key: [agent, patient]}
        max_age_s: 900
      accounts:
        http: {url: "https://directory.example/v1/bucket", address: "10.0.0.7:443", key: [name]}
        deadline_ms: 200
        cache_s: 60
      channels:
        sql: {sqlite: ./channels.db, query: "SELECT shared FROM channels WHERE id = :id", key: [id]}

What a provider's values are called and of which types is said beside the policies (`kind: Bundle`), so that a
decision replays from policies and record alone.

Invariants (tests/test_config_facts.py has one test named after each):
  KF1  A provider is exactly one of file, http and sql, and every key of it is known.
  KF2  Whom a provider speaks to is written here alone: an address, TLS unless it is loopback, nothing in the
       URL that a key could be mistaken for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .config_values import Address, read_address, read_path, split_url
from .strictyaml import Node

__all__ = ["FileSource", "HttpSource", "Provider", "SqliteSource", "read_facts"]

_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}\Z")
_PART: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}\Z")
_PATH: Final = re.compile(r"/[A-Za-z0-9._~/-]*\Z")
_HOST: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?\Z")
_KINDS: Final = ("file", "http", "sql")
_SUFFIXES: Final = (".csv", ".json", ".yaml")
MAX_PARTS: Final = 8
_DEFAULT_DEADLINE_MS: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSource:
    path: Path
    key: tuple[str, ...]  # columns


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSource:
    url: str  # without a query; the key becomes one
    host: str
    address: Address  # what is connected to, whatever the host is
    tls: bool
    key: tuple[str, ...]  # names of the query's parameters
    ca_file: Path | None
    token_file: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SqliteSource:
    path: Path
    query: str
    key: tuple[str, ...]  # names of the query's parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    name: str
    source: FileSource | HttpSource | SqliteSource
    deadline_s: float
    max_age_s: int  # 0: any age
    cache_s: int  # 0: asked for every request
    line: int


def read_facts(node: Node | None, base: Path) -> tuple[Provider, ...]:
    if node is None:
        return ()
    return tuple(_provider(name, entry, base) for name, entry in node.open_mapping("facts").items())


def _provider(name: str, node: Node, base: Path) -> Provider:
    what = f"facts.{name}"
    if not _NAME.match(name):
        raise node.fail_key(f"{what}: a provider's name is lower-case letters, digits, `-` and `_`")
    keys = node.mapping(optional=(*_KINDS, "deadline_ms", "max_age_s", "cache_s"), what=what)
    kinds = [kind for kind in _KINDS if kind in keys]
    if len(kinds) != 1:
        raise node.fail(f"{what} needs exactly one of: {', '.join(_KINDS)}")
    reader = _READERS[kinds[0]]
    if kinds[0] == "file" and "cache_s" in keys:
        raise keys["cache_s"].fail_key(f"{what}: a file is read again when it changes; leave cache_s out")

    def seconds(key: str, high: int) -> int:
        return keys[key].integer(f"{what}.{key}", low=1, high=high) if key in keys else 0

    return Provider(
        name=name,
        source=reader(keys[kinds[0]], base, f"{what}.{kinds[0]}"),
        deadline_s=(seconds("deadline_ms", 10_000) or _DEFAULT_DEADLINE_MS) / 1000,
        max_age_s=seconds("max_age_s", 400 * 86_400),
        cache_s=seconds("cache_s", 3600),
        line=node.line,
    )


def _key(node: Node, what: str) -> tuple[str, ...]:
    names = [item.text(f"{what}.key") for item in node.sequence(f"{what}.key")]
    for item, name in zip(node.sequence(), names, strict=True):
        if not _PART.match(name) or names.count(name) > 1:
            raise item.fail(f"{what}.key: {name!r}: write each name once, letters, digits and `_`")
    if not 1 <= len(names) <= MAX_PARTS:
        raise node.fail(f"{what}.key: write the 1 to {MAX_PARTS} parts that identify one answer")
    return tuple(names)


def _file(node: Node, base: Path, what: str) -> FileSource:
    keys = node.mapping(required=("path", "key"), what=what)
    path = read_path(keys["path"], base, f"{what}.path")
    if path.suffix not in _SUFFIXES:
        raise keys["path"].fail(f"{what}.path: {path.name} is none of {', '.join(_SUFFIXES)}")
    return FileSource(path=path, key=_key(keys["key"], what))


def _http(node: Node, base: Path, what: str) -> HttpSource:
    keys = node.mapping(required=("url", "key"), optional=("address", "ca_file", "token_file"), what=what)
    text = keys["url"].text(f"{what}.url")
    url = split_url(keys["url"], f"{what}.url")
    host = url.hostname or ""
    exact = text == f"{url.scheme}://{url.netloc}{url.path}" and "@" not in url.netloc
    if url.scheme not in ("http", "https") or not host or not exact or not _PATH.match(url.path):
        raise keys["url"].fail(
            f"{what}.url must be http(s)://HOST/PATH without user, query and fragment; the key is its query"
        )
    literal = url.netloc if url.port else f"{url.netloc}:{443 if url.scheme == 'https' else 80}"
    named = _HOST.match(host) is not None and not host.replace(".", "").isdigit()
    if "address" in keys and named:
        address = read_address(keys["address"], f"{what}.address", low=1)
    elif "address" in keys:
        raise keys["address"].fail_key(f"{what}: the URL has an address already; leave `address` out")
    elif named:
        raise keys["url"].fail(f"{what}: say where {host} is: `address: IP:PORT`; no name is looked up")
    else:
        address = read_address(keys["url"]._replace(value=literal), f"{what}.url", low=1)
    if url.scheme == "http" and not address.ip.is_loopback:
        raise keys["url"].fail(f"{what}.url: http is only for loopback addresses: write https")
    return HttpSource(
        url=text,
        host=host,
        address=address,
        tls=url.scheme == "https",
        key=_key(keys["key"], what),
        ca_file=_existing(keys.get("ca_file"), base, f"{what}.ca_file"),
        token_file=_existing(keys.get("token_file"), base, f"{what}.token_file"),
    )


def _existing(node: Node | None, base: Path, what: str) -> Path | None:
    if node is None:
        return None
    path = read_path(node, base, what)
    if not path.is_file():
        raise node.fail(f"{what}: {path} does not exist")
    return path


def _sql(node: Node, base: Path, what: str) -> SqliteSource:
    keys = node.mapping(required=("sqlite", "query", "key"), what=what)
    query = keys["query"].text(f"{what}.query")
    key = _key(keys["key"], what)
    if not re.match(r"\s*select\b", query, re.IGNORECASE):
        raise keys["query"].fail(f"{what}.query must be one SELECT")
    for name in key:
        if not re.search(rf":{name}\b", query):
            raise keys["query"].fail(f"{what}.query does not use :{name}, which `key` names")
    return SqliteSource(path=read_path(keys["sqlite"], base, f"{what}.sqlite"), query=query, key=key)


type Source = FileSource | HttpSource | SqliteSource

_READERS: Final[Mapping[str, Callable[[Node, Path, str], Source]]] = {
    "file": _file,
    "http": _http,
    "sql": _sql,
}
