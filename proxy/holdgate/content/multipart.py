"""multipart/form-data becomes parts with unique names, or is refused.

RFC 7578 as browsers, requests, curl and OkHttp write it, and nothing else: readers of
multipart disagree about nearly everything beyond that (WAFFLED, 2025).

Invariants (tests/test_content_multipart.py):
  MP1  The delimiter occurs only as a delimiter line; no preamble, no epilogue but an empty line, CRLF only.
  MP2  Every part has one quoted `name`; no name occurs twice unless the caller says so or it is a list `a[]`.
  MP3  No name or file name has an escape, so there is one way to read it.
  MP4  No part is itself multipart or transfer-encoded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from ..errors import InputError, Reason
from .mediatype import check_charset, parse_media_type

__all__ = ["Part", "boundary_of", "parse_multipart", "part_headers", "split_parts"]

_MAX_PARTS: Final = 1000
_MAX_HEAD_BYTES: Final = 4096
_BOUNDARY: Final = re.compile(r"[0-9A-Za-z'()+_,\-./:=?]{1,70}")
_HEADER: Final = re.compile(r"([0-9A-Za-z\-]+):[ \t]*([^\x00-\x1f\x7f-\x9f]*)")
_DISPOSITION: Final = re.compile(r'form-data; ?name="([^"\\]+)"(?:; ?filename="([^"\\]*)")?')
# RFC 2045 6.2: none of these is an encoding. Apache HttpClient and OkHttp write them.
_IDENTITY: Final = ("7bit", "8bit", "binary")
# Browsers escape quote, CR and LF like this; some servers undo it and some do not.
_ESCAPE: Final = re.compile(r"%(?:22|0[ad])", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    name: str
    filename: str | None
    content_type: str | None  # as sent
    data: bytes


def boundary_of(params: tuple[tuple[str, str], ...]) -> str:
    """The boundary among a media type's parameters. Raises InputError."""
    for name, value in params:
        if name == "boundary":
            return value
    raise InputError(Reason.BAD_BODY, "multipart without a boundary")


def parse_multipart(data: bytes, *, boundary: str, repeat: frozenset[str] = frozenset()) -> tuple[Part, ...]:
    """Return the parts in order. Names in `repeat` may occur several times. Raises InputError."""
    parts: list[Part] = []
    names: set[str] = set()
    for head, content in split_parts(data, boundary):
        part = _part(head, content)
        if part.name in names and part.name not in repeat and not part.name.endswith("[]"):
            raise InputError(Reason.DUPLICATE_PARAMETER, f"part {part.name!r} occurs more than once")
        names.add(part.name)
        parts.append(part)
    return tuple(parts)


def split_parts(data: bytes, boundary: str) -> list[tuple[bytes, bytes]]:
    """Head and content of every part, in order; their framing is right. Raises InputError."""
    if _BOUNDARY.fullmatch(boundary) is None:
        raise InputError(Reason.BAD_BODY, "the multipart boundary is malformed")
    delimiter = b"--" + boundary.encode("ascii")
    if data.count(delimiter) > _MAX_PARTS + 1:
        raise InputError(Reason.TOO_LARGE, f"more than {_MAX_PARTS} parts")
    first, *pieces = data.split(delimiter)
    # The delimiter anywhere else makes a piece that does not start or end with CRLF.
    # (An epilogue of one empty line is what form-data-encoder writes; every reader passes over it.)
    if first or len(pieces) < 2 or pieces.pop() not in (b"--", b"--\r\n", b"--\r\n\r\n"):
        raise InputError(Reason.BAD_BODY, "multipart does not begin and end with its delimiter")
    parts = []
    for piece in pieces:
        if not (piece.startswith(b"\r\n") and piece.endswith(b"\r\n") and len(piece) >= 4):
            raise InputError(Reason.BAD_BODY, "a multipart delimiter is not on a line of its own")
        end = piece.find(b"\r\n\r\n", 2, _MAX_HEAD_BYTES)
        if end < 0:
            raise InputError(Reason.BAD_BODY, "a part has no headers, or too many")
        parts.append((piece[2:end], piece[end + 4 : -2]))
    return parts


def part_headers(head: bytes, data: bytes) -> dict[str, str]:
    """Headers of a part by lower-case name, without those that only describe its bytes. Raises InputError."""
    headers = _headers(head)
    length = headers.pop("content-length", None)
    if length is not None and length != str(len(data)):
        raise InputError(Reason.BAD_BODY, "a part's Content-Length is wrong")
    if headers.get("content-transfer-encoding") in _IDENTITY:
        del headers["content-transfer-encoding"]
    return headers


def _part(head: bytes, data: bytes) -> Part:
    headers = part_headers(head, data)
    name, filename = _disposition(headers.pop("content-disposition", ""))
    content_type = headers.pop("content-type", None)
    if headers:
        raise InputError(Reason.BAD_BODY, f"a part has the header {min(headers)!r}")
    if content_type is not None:
        essence, params = parse_media_type(content_type)
        check_charset(params, data)
        if essence.startswith(("multipart/", "message/")):
            raise InputError(Reason.BAD_BODY, "a part is itself a container")
    return Part(name=name, filename=filename, content_type=content_type, data=data)


def _headers(head: bytes) -> dict[str, str]:
    try:
        lines = head.decode("utf-8").split("\r\n")
    except UnicodeDecodeError:
        raise InputError(Reason.BAD_BODY, "a part's headers are not UTF-8") from None
    headers: dict[str, str] = {}
    for line in lines:
        header = _HEADER.fullmatch(line)
        if header is None:
            raise InputError(Reason.BAD_BODY, "a part has a malformed header")
        name = header[1].lower()
        if name in headers:
            raise InputError(Reason.BAD_BODY, f"a part has {name} twice")
        headers[name] = header[2].rstrip(" ")
    return headers


def _disposition(value: str) -> tuple[str, str | None]:
    disposition = _DISPOSITION.fullmatch(value)
    if disposition is None:
        raise InputError(Reason.BAD_BODY, "Content-Disposition is not form-data with a quoted name")
    if _ESCAPE.search(value) is not None:
        raise InputError(Reason.BAD_BODY, "Content-Disposition has an escape")
    if disposition[1] == "_charset_":
        # HTML's way to change the charset of the other parts.
        raise InputError(Reason.UNSUPPORTED_CONTENT, "a _charset_ part")
    return disposition[1], disposition[2]
