"""Where facts are: a table in a file, a row of SQLite, an answer over HTTP. One key in, one Found out.

Invariants (tests/test_facts_adapter.py has one test named after each):
  FS1  A table whose file changed is read again whole; one that does not load has no rows until it does.
  FS2  SQLite is opened read-only; a statement that is not one SELECT, or outlives the deadline, is stopped.
  FS3  An answer is HTTP 200 with one JSON object, from the configured address, of at most MAX_ANSWER bytes:
       no redirect, cookie, proxy variable or name is followed.
"""

from __future__ import annotations

import asyncio
import csv
import hashlib
import io
import os
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from ..config_facts import FileSource, HttpSource, SqliteSource
from ..config_values import Address
from ..content.strictjson import parse_json
from ..errors import ConfigError, InputError
from ..facts import Form, Found
from ..strictyaml import load
from .dispatch import tls_context
from .unasked import OwnAnswer

__all__ = ["MAX_ANSWER", "HttpAnswers", "SourceError", "SqliteRows", "TableFile", "read_table"]

MAX_ANSWER: Final = 65_536
MAX_TABLE: Final = 16 << 20
_STEPS: Final = 1000  # of SQLite's machine between two looks at the clock

type Key = tuple[str, ...]


class SourceError(Exception):
    """No answer. `of_the_key`: there is none for this key, and the source is well."""

    def __init__(self, message: str, *, of_the_key: bool = False) -> None:
        super().__init__(message)
        self.of_the_key = of_the_key


# --- a table in a file ---


class TableFile:
    """CSV with a header, or a JSON or YAML list of records. Rows are found by their key columns."""

    def __init__(self, source: FileSource, max_age_s: int) -> None:
        """Raises ConfigError."""
        self._source, self._max_age_s = source, max_age_s
        self._reading = asyncio.Lock()
        self._fault = ""
        self._load()
        if self._fault:
            raise ConfigError(self._fault, file=str(source.path))

    async def read(self, key: Key, *, deadline_s: float) -> Found:
        if self._stamp() != self._seen:
            async with self._reading:
                if self._stamp() != self._seen:
                    await asyncio.to_thread(self._load)
        if self._fault:
            raise SourceError(self._fault)
        row = self._rows.get(key)
        if row is None:
            raise SourceError("no row has this key", of_the_key=True)
        return Found(
            values=row,
            form=Form.TEXT if self._source.path.suffix == ".csv" else Form.JSON,
            read_s=self._changed_s,
            max_age_s=self._max_age_s,
            source=self._version,
        )

    async def close(self) -> None:
        pass

    def _stamp(self) -> tuple[int, ...]:
        try:
            info = self._source.path.stat()
        except OSError:
            return ()
        return info.st_ino, info.st_size, info.st_mtime_ns

    def _load(self) -> None:
        """FS1."""
        self._seen = self._stamp()
        self._rows: Mapping[Key, Mapping[str, Any]] = {}
        try:
            with self._source.path.open("rb") as file:
                self._changed_s = int(os.fstat(file.fileno()).st_mtime)
                data = file.read(MAX_TABLE + 1)
            self._rows = read_table(self._source, data)
            self._version = f"file sha256:{hashlib.sha256(data).hexdigest()}"
            self._fault = ""
        except OSError as error:
            self._fault = error.strerror or "cannot be read"
        except ConfigError as error:
            self._fault = error.shown  # no word of the table: its rows are about people
        except (SourceError, InputError, ValueError) as error:
            self._fault = str(error)


def read_table(source: FileSource, data: bytes) -> dict[Key, Mapping[str, Any]]:
    """Raises SourceError, ConfigError, InputError or ValueError for a table that is not one."""
    if len(data) > MAX_TABLE:
        raise SourceError(f"larger than {MAX_TABLE >> 20} MiB")
    rows: dict[Key, Mapping[str, Any]] = {}
    at: dict[Key, int] = {}
    for number, row in enumerate(_records(source.path, data), 1):
        parts = tuple(_text(row.get(name)) for name in source.key)
        key = tuple(part for part in parts if part is not None)
        if len(key) != len(parts):
            raise SourceError(f"row {number} lacks {source.key[parts.index(None)]}, a part of the key")
        if key in rows:
            # By number: keys name patients and accounts, and this is logged.
            raise SourceError(f"row {number} has the key of row {at[key]}")
        at[key] = number
        rows[key] = {name: value for name, value in row.items() if name not in source.key}
    return rows


def _records(path: Path, data: bytes) -> Iterator[Mapping[str, Any]]:
    text = data.decode("utf-8")
    if path.suffix == ".csv":
        yield from _csv(text)
        return
    if path.suffix == ".json":
        listed: Any = parse_json(data, max_nodes=4_000_000)
    else:
        listed = load(text, file=str(path)).plain()
    if not isinstance(listed, list) or not all(isinstance(row, dict) for row in listed):
        raise SourceError("is not a list of records")
    yield from listed


def _csv(text: str) -> Iterator[Mapping[str, Any]]:
    try:
        lines = csv.reader(io.StringIO(text, newline=""), strict=True)
        head = next(lines, [])
        if not head or len(set(head)) != len(head) or "" in head:
            raise SourceError("the first line must name every column, each once")
        for row in lines:
            if len(row) != len(head):
                raise SourceError(f"line {lines.line_num} has {len(row)} cells, and the first {len(head)}")
            # An empty cell is no value: that an optional field is absent, or a required one missing.
            yield {name: cell for name, cell in zip(head, row, strict=True) if cell}
    except csv.Error as error:
        raise SourceError(f"is not CSV: {error}") from error


def _text(value: Any) -> str | None:
    """A part of a key as facts.py writes it."""
    if type(value) is bool:
        return "true" if value else "false"
    return str(value) if type(value) in (int, str) and value != "" else None


# --- SQLite ---


class SqliteRows:
    """One row of one SELECT, in a thread, on a connection that was opened for it."""

    def __init__(self, source: SqliteSource, max_age_s: int, now_s: Callable[[], int]) -> None:
        """Raises ConfigError."""
        self._source, self._max_age_s, self._now_s = source, max_age_s, now_s
        try:
            with_none = dict.fromkeys(source.key, "")
            self._select(with_none, time.monotonic() + 10, explain=True)
        except (sqlite3.Error, SourceError) as error:
            raise ConfigError(f"facts: the query does not work: {error}", file=str(source.path)) from error

    async def read(self, key: Key, *, deadline_s: float) -> Found:
        values = dict(zip(self._source.key, key, strict=True))
        until = time.monotonic() + deadline_s
        try:
            names, rows = await asyncio.to_thread(self._select, values, until)
        except sqlite3.Error as error:
            raise SourceError(f"SQLite: {error}") from error
        if len(rows) != 1:
            raise SourceError(
                f"{'no row' if not rows else 'more than one row'} for this key", of_the_key=True
            )
        return Found(
            values=dict(zip(names, rows[0], strict=True)),
            form=Form.SQL,
            read_s=self._now_s(),
            max_age_s=self._max_age_s,
            source="sqlite",
        )

    async def close(self) -> None:
        pass

    def _select(
        self, values: Mapping[str, str], until: float, *, explain: bool = False
    ) -> tuple[list[str], Sequence[tuple[Any, ...]]]:
        """FS2."""
        uri = self._source.path.absolute().as_uri() + "?mode=ro"
        db = sqlite3.connect(uri, uri=True, timeout=0.05, isolation_level=None)
        try:
            db.execute("PRAGMA query_only=ON")
            db.set_authorizer(_only_reading)
            db.set_progress_handler(lambda: time.monotonic() > until, _STEPS)
            cursor = db.execute(("EXPLAIN " if explain else "") + self._source.query, values)
            return [column[0] for column in cursor.description or ()], cursor.fetchmany(2)
        finally:
            db.close()


_READING: Final = frozenset(
    {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
)
_NO_FUNCTIONS: Final = frozenset({"load_extension", "readfile", "writefile", "fts3_tokenizer"})


def _only_reading(action: int, _: str | None, name: str | None, *__: str | None) -> int:
    allowed = action in _READING and not (action == sqlite3.SQLITE_FUNCTION and name in _NO_FUNCTIONS)
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


# --- HTTP ---


class _Pinned(AbstractResolver):
    """Every name is the one address: no question is asked of anybody."""

    def __init__(self, address: Address) -> None:
        self._address = address

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        there = socket.AF_INET6 if self._address.ip.version == 6 else socket.AF_INET
        found = ResolveResult(
            hostname=host,
            host=self._address.host,
            port=self._address.port,
            family=there,
            proto=0,
            flags=socket.AI_NUMERICHOST,
        )
        return [found]

    async def close(self) -> None:
        pass


class HttpAnswers:
    """GET of the configured URL; the key is its query. A client of its own: no agent's request uses it."""

    def __init__(self, source: HttpSource, max_age_s: int, now_s: Callable[[], int]) -> None:
        """Raises ConfigError."""
        self._source, self._max_age_s, self._now_s = source, max_age_s, now_s
        self._session: aiohttp.ClientSession | None = None
        self._headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        try:
            self._tls = tls_context(str(source.ca_file) if source.ca_file else None) if source.tls else None
            if source.token_file is not None:
                token = source.token_file.read_text(encoding="ascii").strip()
                self._headers["Authorization"] = f"Bearer {token}"
        except (OSError, ValueError) as error:
            raise ConfigError(f"facts: {error}", file=str(source.ca_file or source.token_file)) from error

    async def read(self, key: Key, *, deadline_s: float) -> Found:
        query = urlencode(list(zip(self._source.key, key, strict=True)))
        url = URL(f"{self._source.url}?{query}", encoded=True)
        try:
            async with self._client().get(url, headers=self._headers, allow_redirects=False) as answer:
                if answer.status == 404:
                    raise SourceError("no answer for this key", of_the_key=True)
                if answer.status != 200:
                    raise SourceError(f"HTTP {answer.status}")
                data = await self._body(answer)
        except aiohttp.ClientError as error:
            raise SourceError(f"{type(error).__name__}: {error}") from error
        try:
            values = parse_json(data)
        except InputError as error:
            raise SourceError(f"not JSON: {error}") from error
        if not isinstance(values, dict):
            raise SourceError("not a JSON object")
        return Found(
            values=values,
            form=Form.JSON,
            read_s=self._now_s(),
            max_age_s=self._max_age_s,
            source="http",
        )

    @staticmethod
    async def _body(answer: aiohttp.ClientResponse) -> bytes:
        data = bytearray()
        async for piece in answer.content.iter_any():
            data += piece
            if len(data) > MAX_ANSWER:
                raise SourceError(f"an answer of more than {MAX_ANSWER} bytes")
        return bytes(data)

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:  # in the loop that uses it
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    resolver=_Pinned(self._source.address), ssl=self._tls or True, use_dns_cache=False
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                request_class=OwnAnswer,
            )
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
