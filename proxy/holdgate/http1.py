"""The strict HTTP/1.1 wire, without I/O: an agent's bytes become heads and bodies, answers become bytes.

ServerReader reads what agents send; ClientReader (http1_client.py) what upstreams answer; the
writers refuse whatever could be read as more than it says. The shared grammar is http1_grammar.py.

A ServerReader's life, per message:  feed* head() begin_body() feed* body().  After body() it
stands at the next message; bytes of a pipelined one are kept and served after this one.

Invariants (tests/test_http1.py):
  H1  Exactly one reading: a head or body that two readers could frame differently is an InputError.
  H2  Only InputError is raised, whatever the bytes, and once raised it is raised for ever.
  H3  No body byte beyond the limit is kept: an announced excess is refused before it is read.
  H4  An incomplete message is never returned as a complete one.
  H5  Writers put no control character, empty name or second line on the wire.
"""

from __future__ import annotations

import re
from typing import Final

from .errors import InputError, Reason
from .http1_client import ClientReader, WireError
from .http1_grammar import (
    MAX_METHOD,
    REQUEST_GRAMMAR,
    TARGET,
    TOKEN,
    TOKENS,
    ChunkDecoder,
    Flaw,
    HeadScanner,
    Malformed,
)
from .limits import Limits
from .message import Headers, RequestHead

__all__ = [
    "LAST_CHUNK",
    "ClientReader",
    "ServerReader",
    "WireError",
    "write_chunk",
    "write_request",
    "write_response_head",
]

SEEN_BYTES: Final = 65_536
_NUMBER: Final = re.compile(rb"[0-9]{1,19}")
# C1 controls: some readers take U+0085 for white space or a line end.
_C1_CONTROL: Final = re.compile(rb"\xc2[\x80-\x9f]")
_CONNECTION: Final = frozenset(
    {b"close", b"keep-alive", b"te", b"trailers", b"proxy-connection", b"http2-settings", b"upgrade"}
)
_READ: Final = frozenset(
    {
        b"host", b"content-length", b"transfer-encoding", b"expect", b"connection", b"upgrade",
        b"http2-settings",
        # Servers that map names to variables read these as the framing headers.
        b"content_length", b"transfer_encoding",
    }
)  # fmt: skip
_REFUSALS: Final = {
    Flaw.SYNTAX: (Reason.MALFORMED_REQUEST, None),
    Flaw.VERSION: (Reason.UNSUPPORTED_PROTOCOL, None),
    Flaw.HEAD_TOO_LARGE: (Reason.TOO_LARGE, 431),
    Flaw.BODY_TOO_LARGE: (Reason.TOO_LARGE, 413),
}


def _malformed(detail: str) -> InputError:
    return InputError(Reason.MALFORMED_REQUEST, detail)


class ServerReader:
    """Reads requests from one connection, one after the other."""

    __slots__ = (
        "_body_begun", "_buffer", "_chunks", "_error", "_head", "_limits", "_scanner", "_seen", "_started",
        "chunked", "content_length", "expects_continue", "wants_close",
    )  # fmt: skip

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._buffer = bytearray()
        self._seen = bytearray()
        self._scanner = HeadScanner(REQUEST_GRAMMAR, limits.header_bytes, limits.headers)
        self._head: RequestHead | None = None
        self._chunks: ChunkDecoder | None = None
        self._body_begun = False
        self._started = False  # the one tolerated empty line before a request line has passed
        self._error: InputError | None = None
        # Facts of the last head; they stay readable until the next one is parsed.
        self.content_length: int | None = None
        self.chunked = False
        self.expects_continue = False  # a body is announced and the agent waits for 100 before it sends it
        self.wants_close = False

    def feed(self, data: bytes) -> None:
        if self._error is not None:
            return
        self._buffer += data
        room = SEEN_BYTES - len(self._seen)
        if room > 0:
            self._seen += data[:room]

    @property
    def seen(self) -> bytes:
        """Raw bytes of the current message that have arrived, at most 64 KiB of them."""
        return bytes(self._seen)

    @property
    def buffered_bytes(self) -> int:
        """Bytes held for this and later messages."""
        return len(self._buffer) + (len(self._chunks.out) if self._chunks is not None else 0)

    @property
    def pending(self) -> bool:
        """Bytes wait here that no finished message has used: after body(), those of a next message."""
        return bool(self._buffer)

    def discard(self) -> None:
        """Free what is buffered, at once: a reader may live on for a while in a cycle of references."""
        self._buffer.clear()
        self._seen.clear()
        self._head = self._chunks = None
        self._body_begun = self._started = False

    def head(self) -> RequestHead | None:
        """The head of the current message, None while it is incomplete. Raises InputError."""
        if self._error is not None:
            raise self._error
        if self._head is not None or not self._buffer:
            return self._head
        try:
            if not self._started:
                if self._buffer == b"\r":
                    return None
                if self._buffer.startswith(b"\r\n"):
                    del self._buffer[:2]
                self._started = True
            raw = self._scanner.take(self._buffer)
            if raw is None:
                return None
            match, headers = raw
            if not _is_text(match.string):
                raise _malformed("a header value is not UTF-8 text")
            tunnel = match[3] is not None  # CONNECT in HTTP/1.0, whose target is its only name
            self._read_meaning(headers, named=tunnel)
        except Malformed as bad:
            raise self._fail(bad) from None
        except InputError as error:
            self._error = error
            self._buffer.clear()
            raise
        method, target = match.group(3, 4) if tunnel else match.group(1, 2)
        self._head = RequestHead(method=method, target=target, headers=headers)
        return self._head

    def _read_meaning(self, headers: Headers, *, named: bool) -> None:
        """Framing and connection facts. Each header that is read occurs once (Connection: any number)."""
        found: dict[bytes, bytes] = {}
        for name, value in headers:
            lower = name.lower()
            if lower in _READ:
                if lower in found:
                    if lower != b"connection":
                        raise _malformed(f"more than one {lower.decode('ascii')}")
                    value = found[lower] + b"," + value
                found[lower] = value
        if not found.get(b"host") and not (named and b"host" not in found):
            raise _malformed("Host is missing or empty")
        length, coding = found.get(b"content-length"), found.get(b"transfer-encoding")
        if b"content_length" in found or b"transfer_encoding" in found:
            raise _malformed("a framing header spelled with an underscore")
        if length is not None and coding is not None:
            raise _malformed("Content-Length and Transfer-Encoding together")
        if length is not None and not _NUMBER.fullmatch(length):
            raise _malformed("Content-Length is not a plain number")
        if coding is not None and coding.lower() != b"chunked":
            raise _malformed("a transfer coding other than chunked")
        self.content_length = None if length is None else int(length)
        self.chunked = coding is not None
        self._read_connection(found)

    def _read_connection(self, found: dict[bytes, bytes]) -> None:
        # An offer of h2c may be ignored; whether it may be made at all, fields.py knows (not inside TLS).
        upgrade = found.get(b"upgrade", b"h2c")
        if upgrade.lower() != b"h2c" or (b"http2-settings" in found and b"upgrade" not in found):
            raise InputError(Reason.UNSUPPORTED_PROTOCOL, "protocol upgrades are not carried")
        expect = found.get(b"expect")
        if expect is not None and expect.lower() != b"100-continue":
            raise _malformed("an expectation other than 100-continue")
        self.expects_continue = expect is not None and (self.chunked or bool(self.content_length))
        self.wants_close = False
        connection = found.get(b"connection")
        if connection is not None and connection != b"keep-alive":
            for option in connection.lower().split(b","):
                option = option.strip(b"\t ")
                if option not in _CONNECTION:
                    raise _malformed("Connection names a header that is not hop-by-hop")
                self.wants_close |= option == b"close"

    def begin_body(self, limit_bytes: int) -> None:
        """Say how long the body may be; body() reads it. Raises InputError when more is announced."""
        if self._error is not None:
            raise self._error
        if self._head is None:
            raise RuntimeError("begin_body() before head()")
        if self.content_length is not None and self.content_length > limit_bytes:
            raise self._fail(
                Malformed(Flaw.BODY_TOO_LARGE, f"Content-Length {self.content_length} exceeds {limit_bytes}")
            )
        self._chunks = ChunkDecoder(limit_bytes, 0) if self.chunked else None
        self._body_begun = True

    def body(self) -> bytes | None:
        """The complete body, None while bytes are missing. Raises InputError."""
        if self._error is not None:
            raise self._error
        if not self._body_begun:
            raise RuntimeError("body() before begin_body()")
        if self._chunks is not None:
            try:
                self._chunks.decode(self._buffer)
            except Malformed as bad:
                raise self._fail(bad) from None
            if not self._chunks.done:
                return None
            data = bytes(self._chunks.out)
        else:
            length = self.content_length or 0
            if len(self._buffer) < length:
                return None
            data = bytes(memoryview(self._buffer)[:length])
            del self._buffer[:length]
        self._next_message()
        return data

    def _next_message(self) -> None:
        self._head = self._chunks = None
        self._body_begun = self._started = False
        self._seen = self._buffer[:SEEN_BYTES]

    def take_rest(self) -> bytes:
        """What came after a CONNECT head: it belongs to the tunnel, not to a message."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        self._next_message()
        return rest

    def eof(self) -> None:
        """The agent will send no more. Raises InputError unless we are between messages."""
        if self._error is not None:
            raise self._error
        # A lone empty line after a message is not the beginning of one.
        if self._head is not None or self._buffer:
            raise self._fail(Malformed(Flaw.SYNTAX, "closed in the middle of a request"))

    def _fail(self, bad: Malformed) -> InputError:
        reason, status = _REFUSALS[bad.flaw]
        self._error = InputError(reason, bad.detail, status=status)
        self._buffer.clear()  # nothing of a refused message is needed again; `seen` keeps its beginning
        return self._error


def _is_text(head: bytes) -> bool:
    """Whether a head is ASCII or UTF-8 without C1 controls (the grammar has refused C0 ones)."""
    if head.isascii():
        return True
    try:
        head.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return _C1_CONTROL.search(head) is None


LAST_CHUNK: Final = b"0\r\n\r\n"


_CONTROLS: Final = bytes([*range(9), *range(10, 32), 127])


def _head(first: bytes, headers: Headers) -> bytes:
    """A head with its empty line; every name is a token and no part holds a control character."""
    if headers and not TOKENS.fullmatch(b"\n".join([name for name, _ in headers])):
        raise ValueError("a header name is not a token")
    head = b"\r\n".join([first, *map(b": ".join, headers), b"\r\n"])
    # Ours are the only CR and LF, one pair per line: one more of any control is a part's own.
    if len(head) - len(head.translate(None, _CONTROLS)) != 2 * len(headers) + 4:
        raise ValueError("a part of the head holds a control character")
    return head


def write_request(method: str, raw_target: bytes, headers: Headers, body: bytes) -> bytes:
    """The whole request; `headers` include Host and Content-Length. Raises ValueError."""
    name = method.encode("ascii")
    if len(name) > MAX_METHOD or not TOKEN.fullmatch(name) or not TARGET.fullmatch(raw_target):
        raise ValueError("not a request line")
    return _head(name + b" " + raw_target + b" HTTP/1.1", headers) + body


def write_response_head(status: int, reason: bytes, headers: Headers) -> bytes:
    """A response head with its empty line. Raises ValueError."""
    if not 100 <= status <= 599:
        raise ValueError("not a status code")
    return _head(b"HTTP/1.1 %d " % status + reason, headers)


def write_chunk(data: bytes) -> bytes:
    """One chunk. An empty one would end the body: that is LAST_CHUNK, said explicitly."""
    if not data:
        raise ValueError("an empty chunk ends the body")
    return b"%x\r\n%b\r\n" % (len(data), data)
