"""multipart/related as Google's upload APIs take it: metadata in JSON, then one medium.

    --B CRLF Content-Type: application/json; charset=UTF-8 CRLF CRLF {"name": "a.txt"} CRLF
    --B CRLF Content-Type: text/plain CRLF CRLF the bytes CRLF --B--

RFC 2387 by its first part, framed as strictly as a form (multipart.py). LF alone as a line end, which
google-api-python-client writes, is refused: readers of multipart disagree about it.

Invariants (tests/test_content_related.py):
  MR1  There are exactly two parts, the first of them is JSON, and every byte belongs to one of them.
  MR2  A part has a Content-Type, and no header that could change what its bytes are.
"""

from __future__ import annotations

import hashlib
from typing import Any

from ..errors import InputError, Reason
from .mediatype import check_charset, parse_media_type
from .multipart import part_headers, split_parts
from .strictjson import parse_json

__all__ = ["parse_related"]


def parse_related(data: bytes, *, boundary: str) -> dict[str, Any]:
    """`{"metadata": JSON, "media": {"content_type", "bytes", "sha256"}}`. Raises InputError."""
    parts = split_parts(data, boundary)
    if len(parts) != 2:
        raise InputError(Reason.BAD_BODY, "multipart/related has metadata and one medium")
    (first_type, metadata), (media_type, media) = [_part(*part) for part in parts]
    if parse_media_type(first_type)[0] != "application/json":
        raise InputError(Reason.BAD_BODY, "the first part of multipart/related is not JSON")
    digest = hashlib.sha256(media).hexdigest()
    about = {"content_type": media_type, "bytes": len(media), "sha256": f"sha256:{digest}"}
    return {"metadata": parse_json(metadata), "media": about}


def _part(head: bytes, data: bytes) -> tuple[str, bytes]:
    headers = part_headers(head, data)
    content_type = headers.pop("content-type", None)
    if content_type is None or headers.pop("mime-version", "1.0") != "1.0" or headers:
        raise InputError(Reason.BAD_BODY, "a related part has no Content-Type, or another header")
    check_charset(parse_media_type(content_type)[1], data)
    return content_type, data
