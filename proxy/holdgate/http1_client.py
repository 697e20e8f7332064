"""The client role of the wire: bytes of one upstream response in, its head and body pieces out.

Sans-io and strict. An upstream is not trusted to frame well: whatever two readers could read
differently is a WireError, the exchange has failed and its connection is closed.

Invariants (tests/test_http1.py):
  HC1  Only a final answer is returned: 100 and 103 are dropped (at most 8), 101 and other 1xx are errors.
  HC2  `reusable` needs an exactly framed, completely read body and not one byte after it.
  HC3  A cut body is never reported as complete.
  HC4  Only WireError is raised, whatever the bytes.
"""

from __future__ import annotations

from typing import Final

from .errors import HoldgateError
from .http1_grammar import RESPONSE_GRAMMAR, ChunkDecoder, HeadScanner, Malformed
from .limits import Limits
from .message import Headers, ResponseHead

__all__ = ["ClientReader", "WireError"]

MAX_INTERIM: Final = 8
MAX_LENGTH_DIGITS: Final = 19


class WireError(HoldgateError):
    """The upstream's bytes are not one well-framed response."""


class ClientReader:
    """Reads the response to one request. Feed it until `done`, or call eof()."""

    __slots__ = (
        "_buffer", "_chunks", "_close", "_eof", "_head", "_interim", "_left", "_limits", "_method",
        "_scanner", "length",
    )  # fmt: skip

    def __init__(self, method: str, limits: Limits) -> None:
        self._method = method
        self._limits = limits
        self._buffer = bytearray()
        self._scanner = HeadScanner(RESPONSE_GRAMMAR, limits.header_bytes, limits.headers)
        self._head: ResponseHead | None = None
        self._chunks: ChunkDecoder | None = None
        self._left: int | None = None  # body bytes to come when framed by Content-Length; 0: no body
        self._interim = 0
        self._close = False
        self._eof = False
        self.length: int | None = None  # announced Content-Length, also where no body follows (HEAD, 304)

    def feed(self, data: bytes) -> None:
        self._buffer += data

    @property
    def buffered_bytes(self) -> int:
        """Bytes held here that read() has not returned."""
        return len(self._buffer) + (len(self._chunks.out) if self._chunks is not None else 0)

    def head(self) -> ResponseHead | None:
        """The final head, None while it is incomplete. Raises WireError."""
        while self._head is None:
            try:
                raw = self._scanner.take(self._buffer)
            except Malformed as bad:
                raise WireError(f"response head: {bad.detail}") from None
            if raw is None:
                return None
            match, headers = raw
            status = int(match[1])
            if status < 200:
                self._drop_interim(status, headers)
                continue
            self._frame(status, headers)
            self._head = ResponseHead(status=status, reason=match[2] or b"", headers=headers)
        return self._head

    def _drop_interim(self, status: int, headers: Headers) -> None:
        if status not in (100, 103):
            raise WireError(f"interim status {status} is not carried")
        self._interim += 1
        if self._interim > MAX_INTERIM:
            raise WireError(f"more than {MAX_INTERIM} interim answers")
        if any(name.lower() in (b"content-length", b"transfer-encoding") for name, _ in headers):
            raise WireError(f"interim status {status} announces a body")

    def _frame(self, status: int, headers: Headers) -> None:
        length = coding = None
        for name, value in headers:
            lower = name.lower()
            if lower == b"content-length":
                if length is not None:
                    raise WireError("more than one Content-Length")
                length = value
            elif lower == b"transfer-encoding":
                if coding is not None:
                    raise WireError("more than one Transfer-Encoding")
                coding = value
            elif lower == b"connection" and b"close" in [
                item.strip(b"\t ") for item in value.lower().split(b",")
            ]:
                self._close = True
        if length is not None and coding is not None:
            raise WireError("Content-Length and Transfer-Encoding together")
        if coding is not None and coding.lower() != b"chunked":
            raise WireError("a transfer coding other than chunked")
        if length is not None:
            if not length.isdigit() or len(length) > MAX_LENGTH_DIGITS:
                raise WireError("Content-Length is not a plain number")
            self.length = int(length)
        if status == 204 and (coding is not None or self.length):
            raise WireError("204 with a body")
        if self._method == "HEAD" or status in (204, 304):
            self._left = 0
        elif coding is not None:
            self._chunks = ChunkDecoder(None, self._limits.header_bytes)
        else:
            self._left = self.length

    def read(self) -> bytes:
        """Body bytes that are here, chunked coding removed; b"" when there are none now. Raises WireError."""
        if self._head is None:
            return b""
        if self._chunks is not None:
            try:
                self._chunks.decode(self._buffer)
            except Malformed as bad:
                raise WireError(f"response body: {bad.detail}") from None
            data = bytes(self._chunks.out)
            self._chunks.out.clear()
            return data
        if self._left is None:
            data = bytes(self._buffer)
            self._buffer.clear()
            return data
        if self._left == 0:
            return b""
        data = bytes(memoryview(self._buffer)[: self._left])
        del self._buffer[: len(data)]
        self._left -= len(data)
        return data

    @property
    def done(self) -> bool:
        """The whole body was returned by read()."""
        if self._head is None:
            return False
        if self._chunks is not None:
            return self._chunks.done and not self._chunks.out
        if self._left is None:
            return self._eof and not self._buffer
        return self._left == 0

    @property
    def reusable(self) -> bool:
        """The connection stands exactly at the end of this response and may carry another exchange."""
        framed = self._chunks is not None or self._left is not None
        return self.done and framed and not self._close and not self._eof and not self._buffer

    def eof(self) -> None:
        """The upstream closed cleanly. Raises WireError unless that completes the response.

        Call it after read() returned everything: only a body without announced length ends here.
        """
        self._eof = True
        if self._head is None:
            raise WireError("closed before the end of the response head")
        if self._left is not None or self._chunks is not None:
            if not self.done:
                raise WireError("closed in the middle of the response body")
