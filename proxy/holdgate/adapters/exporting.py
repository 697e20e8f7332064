"""The log, handed on: receipts from a cursor to a sink, at least once.

    read a batch -> format -> sink takes it durably -> cursor, durably -> next batch

A crash between the last two steps sends a batch again; receivers know a receipt by its id. Nothing here
touches the hot path: it is another process with a read-only connection.

Invariants (tests/test_exporting.py has one test named after each):
  E1  The cursor moves only after the sink took the batch; what a crash repeats is at most one batch.
  E2  A cursor of another log, or ahead of it, is a ConfigError: receipts would be left out in silence.
  E3  A file is rotated between lines, and no line is lost or cut by it.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Final, Protocol

from ..errors import BackendError, ConfigError, Reason
from ..siem import FORMATS, Row, otlp_request
from .durable import replace_file, sync_folder

__all__ = ["Cursor", "FileSink", "HttpSink", "Sink", "StdoutSink", "SyslogSink", "export"]

_BATCH: Final = 500
_TIMEOUT_S: Final = 20
_FACILITY: Final = 13  # log audit
_WARNING, _NOTICE = 4, 5


class Sink(Protocol):
    """Where rows go. take() returns when the receiver has them, or raises OSError or BackendError."""

    def take(self, rows: Sequence[Row]) -> None: ...
    def close(self) -> None: ...


def export(
    read: Callable[[int, int], Sequence[Row]],
    sink: Sink,
    *,
    start: int,
    limit: int,
    done: Callable[[int], None],
    wait: Callable[[], bool],
) -> int:
    """Send rows from index `start` on, `limit` of them (-1: all); returns how many.

    `read(index, count)` gives rows in order. `done(next)` is called after the sink took a batch. At the end
    of the log `wait()` is asked: True means look again, False means that was all.
    """
    sent = 0
    while limit < 0 or sent < limit:
        count = _BATCH if limit < 0 else min(_BATCH, limit - sent)
        rows = read(start + sent, count)
        if rows:
            sink.take(rows)
            sent += len(rows)
            done(start + sent)
        elif not wait():
            break
    return sent


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """A file that says which receipt is next."""

    path: Path
    origin: str

    def load(self, size: int) -> int | None:
        """The next index; None when there is no file yet. Raises ConfigError."""
        try:
            row = json.loads(self.path.read_bytes())
            origin, following = row["origin"], row["next"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"not a cursor of `receipts export`: {error}", file=str(self.path)) from error
        if origin != self.origin or type(following) is not int or not 0 <= following <= size:
            raise ConfigError(
                f"this cursor is at {following} of {origin}; here is {self.origin} with {size} receipts",
                file=str(self.path),
            )
        return following

    def save(self, following: int) -> None:
        """Raises OSError."""
        replace_file(self.path, json.dumps({"origin": self.origin, "next": following}).encode() + b"\n")


# --- sinks ---


class StdoutSink:
    def __init__(self, line: Callable[[Row], str]) -> None:
        self._line = line

    def take(self, rows: Sequence[Row]) -> None:
        sys.stdout.write("".join([self._line(row) + "\n" for row in rows]))
        sys.stdout.flush()

    def close(self) -> None:
        pass


class FileSink:
    """Appends to `path`; a full one becomes `path.<index of its successor's first receipt>`."""

    def __init__(self, path: Path, line: Callable[[Row], str], *, rotate_bytes: int) -> None:
        self._path, self._line, self._rotate_bytes = path, line, rotate_bytes
        self._fd = self._open()

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        fd = os.open(self._path, flags, 0o600)
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            os.write(fd, b"\n")  # a crash cut the last line: what follows must not be glued to it
        sync_folder(self._path.parent)
        return fd

    def take(self, rows: Sequence[Row]) -> None:
        for row in rows:
            data = self._line(row).encode() + b"\n"
            size = os.fstat(self._fd).st_size
            if self._rotate_bytes and size and size + len(data) > self._rotate_bytes:
                self._rotate(row.index)
            while data:
                data = data[os.write(self._fd, data) :]
        os.fsync(self._fd)

    def _rotate(self, index: int) -> None:
        os.fsync(self._fd)
        full = self._path.with_name(f"{self._path.name}.{index:012d}")
        number = 0
        while full.exists():  # a batch that is sent again fills a file of its own
            number += 1
            full = self._path.with_name(f"{self._path.name}.{index:012d}-{number}")
        self._path.rename(full)
        os.close(self._fd)
        self._fd = self._open()

    def close(self) -> None:
        os.close(self._fd)


class SyslogSink:
    """RFC 5424 messages over TLS, octet-counted (RFC 5425).

    Syslog has no acknowledgement: what the peer's kernel took and its daemon lost is not sent again.
    """

    def __init__(self, host: str, port: int, line: Callable[[Row], str], *, context: ssl.SSLContext) -> None:
        self._address, self._line, self._context = (host, port), line, context
        self._socket: ssl.SSLSocket | None = None

    def take(self, rows: Sequence[Row]) -> None:
        if self._socket is None:
            plain = socket.create_connection(self._address, timeout=_TIMEOUT_S)
            self._socket = self._context.wrap_socket(plain, server_hostname=self._address[0])
        try:
            self._socket.sendall(b"".join([self._frame(row) for row in rows]))
        except OSError:
            self.close()
            raise

    def _frame(self, row: Row) -> bytes:
        said = row.statement
        priority = _FACILITY * 8 + (_WARNING if row.is_refused else _NOTICE)
        head = f"<{priority}>1 {said['iat']} {said['node']} holdgate - {said['type']} - "
        message = head.encode() + self._line(row).encode()
        return b"%d %s" % (len(message), message)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class HttpSink:
    """POST of a batch: lines, or one LogsData message for OTLP. Any 2xx is an acknowledgement."""

    def __init__(self, url: str, form: str, *, token: str, context: ssl.SSLContext) -> None:
        self._url, self._form, self._token, self._context = url, form, token, context

    def take(self, rows: Sequence[Row]) -> None:
        is_otlp = self._form == "otlp"
        lines = [otlp_request(rows)] if is_otlp else [FORMATS[self._form](row) for row in rows]
        kind = "application/json" if is_otlp else "application/x-ndjson"
        headers = {"Content-Type": "text/plain; charset=utf-8" if self._form == "cef" else kind}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        body = "\n".join([*lines, ""]).encode()
        request = urllib.request.Request(self._url, data=body, headers=headers, method="POST")  # noqa: S310 - cli checks
        try:
            with _opener(self._context).open(request, timeout=_TIMEOUT_S) as answer:
                if not 200 <= answer.status < 300:
                    raise BackendError(Reason.STORE_UNAVAILABLE, f"{self._url}: {answer.status}")
        except urllib.error.HTTPError as error:
            raise BackendError(Reason.STORE_UNAVAILABLE, f"{self._url}: {error.code}") from error
        except HTTPException as error:
            raise ConnectionError(f"{self._url}: {error!r}") from error

    def close(self) -> None:
        pass


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        return None  # receipts and the token go to the address that was configured, or nowhere


def _opener(context: ssl.SSLContext) -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(
        urllib.request.HTTPSHandler(context=context), _NoRedirect(), urllib.request.ProxyHandler({})
    )
