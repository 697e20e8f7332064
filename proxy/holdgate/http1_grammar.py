"""The HTTP/1.1 grammar that both roles of http1.py share: bytes in, parsed heads and chunks out.

An allow-list: whatever is not spelled out here is a Flaw. Lines end in CRLF only, no folding, no
white space before a colon, no control characters. The verdict depends on the bytes alone, never
on how they were cut into pieces: flaws are found in the order of their position. Each byte is
looked at a bounded number of times, so input that drips in costs no more than input that does not.

Invariants (tests/test_http1.py):
  HG1  A head is accepted whole or not at all, and only within `limits.header_bytes` and `limits.headers`.
  HG2  The same bytes give the same result however they are split.
  HG3  Reading n bytes one at a time takes O(n) work.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from .errors import HoldgateError
from .message import Headers

__all__ = [
    "MAX_METHOD",
    "REQUEST_GRAMMAR",
    "RESPONSE_GRAMMAR",
    "TARGET",
    "TOKEN",
    "TOKENS",
    "ChunkDecoder",
    "Flaw",
    "HeadGrammar",
    "HeadScanner",
    "Malformed",
]


class Flaw(StrEnum):
    """What is wrong with the bytes, before either role gives it its own error type."""

    SYNTAX = "syntax"
    VERSION = "version"
    HEAD_TOO_LARGE = "head too large"
    BODY_TOO_LARGE = "body too large"


class Malformed(HoldgateError):
    """Raised inside the wire modules only: each role turns it into its own error."""

    def __init__(self, flaw: Flaw, detail: str) -> None:
        self.flaw, self.detail = flaw, detail
        super().__init__(f"{flaw}: {detail}")


MAX_METHOD: Final = 32

_TCHAR = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_FIELD = rb"[\t\x20-\x7e\x80-\xff]"
_TARGET = rb"[\x21\x22\x24-\x7e]"  # visible ASCII without "#": a fragment is never sent
_METHOD = _TCHAR + rb"{1,32}+"
# Possessive quantifiers: a head that does not fit fails in one pass.
_HEADER = _TCHAR + rb"++:" + _FIELD + rb"*+"
_HEADERS = rb"(?:" + _HEADER + rb"\r\n)*+\r\n"
# HTTP/1.0 for CONNECT alone: Python 3.11 and older write it so (http.client), and what follows the tunnel's
# head is judged by itself.
_REQUEST_LINE = (
    rb"(?:(" + _METHOD + rb") (" + _TARGET + rb"++) HTTP/1\.1|(CONNECT) (" + _TARGET + rb"++) HTTP/1\.0)"
)
_STATUS_LINE = rb"HTTP/1\.1 ([1-5][0-9][0-9])(?: (" + _FIELD + rb"*+))?"

TOKEN: Final = re.compile(_TCHAR + rb"++")
TARGET: Final = re.compile(_TARGET + rb"++")
TOKENS: Final = re.compile(_TCHAR + rb"++(?:\n" + _TCHAR + rb"++)*+")  # one per line
_HEADER_LINE: Final = re.compile(_HEADER)
_PAIR: Final = re.compile(rb"([^:]++): ?+([^\r]*+)\r\n")  # only over validated heads
_REST: Final = re.compile(_FIELD + rb"*+\r?")
_OTHER_VERSION: Final = re.compile(_METHOD + rb" " + _TARGET + rb"++ HTTP/[0-9]++(?:\.[0-9]++)?")

# An unfinished first line is judged by its first bytes, so that a TLS record, an SSH client or a
# lower-case version is answered at once instead of at the head deadline.
_WINDOW: Final = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadGrammar:
    """What a head must look like: all of it, its first line, and the beginning of a first line."""

    whole: re.Pattern[bytes]
    first: re.Pattern[bytes]
    opening: re.Pattern[bytes]  # matches every prefix, of at most _WINDOW bytes, of a line that `flaw` knows
    version: re.Pattern[bytes] | None  # a first line that differs only in its version


REQUEST_GRAMMAR: Final = HeadGrammar(
    whole=re.compile(_REQUEST_LINE + rb"\r\n" + _HEADERS),
    first=re.compile(_REQUEST_LINE),
    opening=re.compile(rb"(?:" + _METHOD + rb"(?: (?:" + _TARGET + rb"++(?: [\x20-\x7e]*+\r?)?)?)?)?"),
    version=_OTHER_VERSION,
)

RESPONSE_GRAMMAR: Final = HeadGrammar(
    whole=re.compile(_STATUS_LINE + rb"\r\n" + _HEADERS),
    first=re.compile(_STATUS_LINE),
    opening=re.compile(rb"(?:H(?:T(?:T(?:P(?:/(?:1(?:\.(?:1(?: " + _FIELD + rb"*+\r?)?)?)?)?)?)?)?)?)?"),
    version=None,
)

type RawHead = tuple[re.Match[bytes], Headers]


class HeadScanner:
    """Takes one head off the front of a buffer, or says at the first byte possible why not."""

    __slots__ = ("_checked", "_grammar", "_limit_bytes", "_limit_headers", "_line", "_lines", "_searched")

    def __init__(self, grammar: HeadGrammar, limit_bytes: int, limit_headers: int) -> None:
        self._grammar = grammar
        self._limit_bytes, self._limit_headers = limit_bytes, limit_headers
        self.reset()

    def reset(self) -> None:
        self._searched = 0  # no head end begins before this offset
        self._line = 0  # where the first unfinished line begins
        self._checked = 0  # the unfinished line is clean up to here
        self._lines = 0  # finished lines so far

    def take(self, buffer: bytearray) -> RawHead | None:
        """The head at the front of `buffer`, removed from it; None while it is incomplete."""
        limit = self._limit_bytes
        at = buffer.find(b"\r\n\r\n", self._searched, limit)
        if at < 0:
            self._check_lines(buffer, min(len(buffer), limit))
            if len(buffer) > limit:
                raise Malformed(Flaw.HEAD_TOO_LARGE, f"the head is longer than {limit} bytes")
            self._searched = max(0, len(buffer) - 3)
            return None
        head = bytes(memoryview(buffer)[: at + 4])
        match = self._grammar.whole.fullmatch(head)
        if match is None:
            self._check_lines(buffer, at + 2)
            raise Malformed(Flaw.SYNTAX, "not a head")
        headers: Headers = tuple(_PAIR.findall(head, head.index(b"\r\n") + 2))
        if len(headers) > self._limit_headers:
            raise Malformed(Flaw.HEAD_TOO_LARGE, f"more than {self._limit_headers} headers")
        # The common case has one space after the colon and none at the end: look before stripping.
        if b":  " in head or b"\t" in head or b" \r\n" in head:
            headers = tuple([(name, value.strip(b"\t ")) for name, value in headers])
        del buffer[: at + 4]
        self.reset()
        return match, headers

    def _check_lines(self, buffer: bytearray, stop: int) -> None:
        """Raise for the first bad line before `stop`; look at every byte once, across calls."""
        while (end := buffer.find(b"\r\n", self._checked, stop)) >= 0:
            self._check_line(bytes(memoryview(buffer)[self._line : end]))
            self._lines += 1
            self._line = self._checked = end + 2
        clean = _REST.match(buffer, self._checked, stop)
        if clean is None or clean.end() != stop:
            raise Malformed(
                Flaw.SYNTAX, f"line {self._lines + 1} holds a control character or a bare CR or LF"
            )
        if self._lines == 0 and self._checked - self._line < _WINDOW:
            window = min(stop, self._line + _WINDOW)
            opening = self._grammar.opening.match(buffer, self._line, window)
            if opening is None or opening.end() != window:
                raise Malformed(Flaw.SYNTAX, "this does not begin an HTTP/1.1 message")
        # A last CR may still become a line end, so it is looked at again.
        self._checked = stop - 1 if stop > self._checked and buffer[stop - 1] == 0x0D else stop

    def _check_line(self, line: bytes) -> None:
        if self._lines == 0:
            if self._grammar.first.fullmatch(line):
                return
            version = self._grammar.version
            if version is not None and version.fullmatch(line):
                raise Malformed(Flaw.VERSION, "only HTTP/1.1 is carried")
            raise Malformed(Flaw.SYNTAX, "the first line is malformed")
        if self._lines > self._limit_headers:
            raise Malformed(Flaw.HEAD_TOO_LARGE, f"more than {self._limit_headers} headers")
        if not _HEADER_LINE.fullmatch(line):
            raise Malformed(Flaw.SYNTAX, f"header line {self._lines} is malformed")


class _State(StrEnum):
    SIZE = "size"
    DATA = "data"
    DATA_END = "data end"
    END = "end"
    DONE = "done"


_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,8})\r\n")
_SIZE_PART: Final = re.compile(rb"(?:[0-9A-Fa-f]{1,8}+\r?)?")
# An upstream may send extensions and trailers; they are read strictly, bounded, and dropped.
_SIZE_EXT: Final = re.compile(rb"([0-9A-Fa-f]{1,8}+)(?:;[\t\x20-\x7e]{0,256}+)?\r\n")
_SIZE_EXT_PART: Final = re.compile(rb"(?:[0-9A-Fa-f]{1,8}+(?:;[\t\x20-\x7e]{0,256}+)?\r?)?")


class ChunkDecoder:
    """Takes chunked coding off. From an agent: no extensions, no trailers (`trailer_bytes` 0)."""

    __slots__ = (
        "_left",
        "_limit",
        "_size",
        "_size_part",
        "_state",
        "_total",
        "_trailer_room",
        "_trailer_seen",
        "out",
    )

    def __init__(self, limit_bytes: int | None, trailer_bytes: int) -> None:
        self.out = bytearray()  # decoded; the owner takes from it
        self._state = _State.SIZE
        self._left = 0
        self._total = 0
        self._limit = limit_bytes
        self._trailer_room = trailer_bytes
        self._trailer_seen = 0
        self._size, self._size_part = (_SIZE_EXT, _SIZE_EXT_PART) if trailer_bytes else (_SIZE, _SIZE_PART)

    @property
    def done(self) -> bool:
        return self._state is _State.DONE

    def decode(self, buffer: bytearray) -> None:
        """Move what is complete from the front of `buffer` to `out`. Raises Malformed."""
        at = 0
        while self._state is not _State.DONE:
            match self._state:
                case _State.SIZE:
                    after = self._read_size(buffer, at)
                case _State.DATA:
                    after = min(at + self._left, len(buffer))
                    self.out += buffer[at:after]
                    self._left -= after - at
                    if self._left == 0:
                        self._state = _State.DATA_END
                case _State.DATA_END:
                    after = self._line_end(buffer, at, "chunk data is not followed by CRLF")
                    if after > at:
                        self._state = _State.SIZE
                case _State.END:
                    after = self._read_end(buffer, at)
            if after == at:
                break
            at = after
        del buffer[:at]

    def _read_size(self, buffer: bytearray, at: int) -> int:
        found = self._size.match(buffer, at)
        if found is None:
            part = self._size_part.match(buffer, at)
            if part is None or part.end() != len(buffer):
                raise Malformed(Flaw.SYNTAX, "a chunk size is not plain hexadecimal digits and CRLF")
            return at
        self._left = int(found[1], 16)
        self._total += self._left
        if self._limit is not None and self._total > self._limit:
            raise Malformed(Flaw.BODY_TOO_LARGE, f"the chunked body is longer than {self._limit} bytes")
        self._state = _State.DATA if self._left else _State.END
        return found.end()

    def _line_end(self, buffer: bytearray, at: int, detail: str) -> int:
        end = bytes(buffer[at : at + 2])
        if end == b"\r\n":
            return at + 2
        if end not in (b"", b"\r"):
            raise Malformed(Flaw.SYNTAX, detail)
        return at

    def _read_end(self, buffer: bytearray, at: int) -> int:
        if not self._trailer_room or bytes(buffer[at : at + 1]) in (b"", b"\r"):
            after = self._line_end(buffer, at, "trailers are refused")
            if after > at:
                self._state = _State.DONE
            return after
        # `_trailer_seen`: bytes of the unfinished trailer line that hold no CRLF.
        end = buffer.find(b"\r\n", at + max(0, self._trailer_seen - 1))
        if (len(buffer) if end < 0 else end) - at > self._trailer_room:
            raise Malformed(Flaw.SYNTAX, "the trailers are too long")
        if end < 0:
            self._trailer_seen = len(buffer) - at
            return at
        if not _HEADER_LINE.fullmatch(buffer, at, end):
            raise Malformed(Flaw.SYNTAX, "a trailer line is malformed")
        # RFC 9110 6.5.1: a reader that merges trailers into the head would frame the message anew.
        if bytes(buffer[at : buffer.index(b":", at)]).lower() in (b"content-length", b"transfer-encoding"):
            raise Malformed(Flaw.SYNTAX, "a trailer names the framing")
        self._trailer_room = max(1, self._trailer_room - (end + 2 - at))
        self._trailer_seen = 0
        return end + 2
