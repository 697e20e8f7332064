"""A strict reading of a request, written apart from the product: what a PERMIT must have forwarded.

Only for the requests that the generated attacks are made of: it knows the headers they use, not all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_DROPPED: Final = {
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "te",
    "expect",
    "trailer",
}
_DROPPED_STEMS: Final = (
    "proxy-", "holdgate-", "tg-", "x-trigguard-", "x-forwarded-", "x-original-", "x-rewrite-", "x-envoy-",
    "x-consumer-", "x-ms-client-principal",
)  # fmt: skip


@dataclass(frozen=True)
class Framed:
    """One message whose beginning and end are certain, whatever it means."""

    method: bytes
    target: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes
    after: bytes  # what follows it on its connection

    def forwarded(self, at: bytes, host: bytes) -> bytes | None:
        """This request as it must arrive; None when it is not certainly one for `host`."""
        target = _target(self.target, at)
        hosts = [value.lower() for name, value in self.headers if name.lower() == b"host"]
        if target is None or not re.fullmatch(rb"[A-Z]+", self.method):
            return None
        if hosts not in ([host], [host + (b":80" if at else b":443")]):
            return None
        kept = [b"%b: %b\r\n" % header for header in self.headers if _is_sent(header[0])]
        sized = self.body or self.method in (b"POST", b"PUT", b"PATCH")
        length = b"Content-Length: %d\r\n" % len(self.body) if sized else b""
        line = b"%b %b HTTP/1.1\r\nHost: %b\r\n" % (self.method, target, host)
        return line + b"".join(kept) + length + b"\r\n" + self.body


def forwarded(data: bytes, at: bytes, host: bytes) -> bytes | None:
    """The one request that `data` begins with, as it must arrive; None when it has no certain reading."""
    found = framed(data)
    return None if found is None else found.forwarded(at, host)


def framed(data: bytes) -> Framed | None:
    """The message that `data` begins with; None when readers could disagree about where it ends."""
    head, end, rest = data.removeprefix(b"\r\n").partition(b"\r\n\r\n")
    if not end:
        return None
    first, *lines = head.split(b"\r\n")
    words = first.split(b" ")
    if len(words) != 3 or words[2] != b"HTTP/1.1" or not _TOKEN.fullmatch(words[0]):
        return None
    headers = [_header(line) for line in lines]
    known = [header for header in headers if header is not None]
    if len(known) != len(headers):
        return None
    cut = _body(known, rest)
    return None if cut is None else Framed(words[0], words[1], known, *cut)


def _target(raw: bytes, at: bytes) -> bytes | None:
    """Origin-form. Host names have no case, so an absolute-form target may spell ours in any."""
    if raw[: len(at)].lower() != at:
        return None
    target = raw[len(at) :]
    if at and target.startswith(b":80/"):
        target = target[3:]
    if not target.startswith(b"/") or not re.fullmatch(rb"[\x21-\x7e]+", target) or b"#" in target:
        return None
    return target


def _header(line: bytes) -> tuple[bytes, bytes] | None:
    name, colon, value = line.partition(b":")
    if not colon or not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
        return None
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return None
    if any(0x80 <= ord(char) <= 0x9F for char in text):
        return None
    return name, value.strip(b" \t")


def _is_sent(name: bytes) -> bool:
    folded = re.sub(r"[^a-z0-9]", "-", name.decode().lower())
    return folded not in _DROPPED and not folded.startswith(_DROPPED_STEMS)


def _body(headers: list[tuple[bytes, bytes]], rest: bytes) -> tuple[bytes, bytes] | None:
    """The body, and what follows it."""
    lengths = [value for name, value in headers if name.lower() == b"content-length"]
    codings = [value for name, value in headers if name.lower() == b"transfer-encoding"]
    if not codings and not lengths:
        return b"", rest
    if codings:
        return (
            _chunked(rest) if len(codings) == 1 and codings[0].lower() == b"chunked" and not lengths else None
        )
    if len(lengths) != 1 or not re.fullmatch(rb"[0-9]+", lengths[0]) or len(rest) < int(lengths[0]):
        return None
    return rest[: int(lengths[0])], rest[int(lengths[0]) :]


def _chunked(rest: bytes) -> tuple[bytes, bytes] | None:
    body = b""
    while True:
        line = re.match(rb"([0-9A-Fa-f]{1,8})\r\n", rest)
        if line is None:
            return None
        size, rest = int(line[1], 16), rest[line.end() :]
        if rest[size : size + 2] != b"\r\n":
            return None
        body, rest = body + rest[:size], rest[size + 2 :]
        if size == 0:
            return body, rest
