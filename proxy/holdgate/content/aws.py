"""The aws-chunked framing is taken off an S3 upload, all of it accounted for.

    5[;chunk-signature=<64 hex>] CRLF hello CRLF          any number of times
    0[;chunk-signature=<64 hex>] CRLF
    [x-amz-checksum-crc32:NhCmhg== CRLF]                  the one that X-Amz-Trailer names
    [x-amz-trailer-signature:<64 hex> CRLF]               when chunks are signed
    CRLF

Chunk signatures are not verified (only AWS has the key); that they are there, and only where
X-Amz-Content-SHA256 says so, is.

Invariants (tests/test_content_aws.py):
  A1  Every byte is framing that is described above, or data.
  A2  The length is X-Amz-Decoded-Content-Length.
  A3  Exactly the trailers named by X-Amz-Trailer are there, and a CRC32, SHA-1 or SHA-256 is right.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Final

from ..errors import InputError, Reason
from .checksum import AMZ_CHECKSUMS

__all__ = ["decode_aws_chunked"]

# X-Amz-Content-SHA256 -> (signed, has a trailer)
_FORMS: Final = {
    "STREAMING-UNSIGNED-PAYLOAD-TRAILER": (False, True),
    "STREAMING-AWS4-HMAC-SHA256-PAYLOAD": (True, False),
    "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER": (True, True),
}
_SIZE: Final = rb"(0|[1-9A-Fa-f][0-9A-Fa-f]{0,7})"
_PLAIN_CHUNK: Final = re.compile(_SIZE + rb"\r\n")
_SIGNED_CHUNK: Final = re.compile(_SIZE + rb";chunk-signature=[0-9a-f]{64}\r\n")
_TRAILER: Final = re.compile(rb"([a-z0-9-]{1,64}):([\x21-\x7e]{1,128})\r\n")
_TRAILER_SIGNATURE: Final = re.compile(rb"x-amz-trailer-signature:[0-9a-f]{64}\r\n")
_LENGTH: Final = re.compile(r"0|[1-9][0-9]{0,18}")


def decode_aws_chunked(body: bytes, headers: Mapping[str, str]) -> bytes:
    """Return the data; `headers` are the request's, names in lower case. Raises InputError."""
    form = _FORMS.get(headers.get("x-amz-content-sha256", ""))
    if form is None:
        raise InputError(Reason.UNSUPPORTED_CONTENT, "aws-chunked without a known X-Amz-Content-SHA256")
    signed, has_trailer = form
    length = headers.get("x-amz-decoded-content-length", "")
    if _LENGTH.fullmatch(length) is None:
        raise InputError(Reason.BAD_BODY, "aws-chunked without X-Amz-Decoded-Content-Length")
    trailer = headers.get("x-amz-trailer")
    if (trailer is not None) != has_trailer:
        raise InputError(Reason.BAD_BODY, "X-Amz-Trailer and X-Amz-Content-SHA256 disagree")
    data, position = _chunks(body, _SIGNED_CHUNK if signed else _PLAIN_CHUNK)
    if len(data) != int(length):
        raise InputError(Reason.BAD_BODY, "X-Amz-Decoded-Content-Length is wrong")
    if trailer is not None:
        position = _check_trailer(body, position, trailer.lower(), data)
        if signed:
            position = _end_of(_TRAILER_SIGNATURE, body, position)
    if body[position:] != b"\r\n":
        raise InputError(Reason.BAD_BODY, "aws-chunked body does not end where it should")
    return data


def _chunks(body: bytes, grammar: re.Pattern[bytes]) -> tuple[bytes, int]:
    out = bytearray()
    position = 0
    while True:
        head = grammar.match(body, position)
        if head is None:
            raise InputError(Reason.BAD_BODY, "a malformed aws-chunked chunk")
        size = int(head[1], 16)
        position = head.end()
        if size == 0:
            return bytes(out), position
        end = position + size
        if body[end : end + 2] != b"\r\n":
            raise InputError(Reason.BAD_BODY, "an aws-chunked chunk does not end where it says")
        out += body[position:end]
        position = end + 2


def _check_trailer(body: bytes, position: int, expected: str, data: bytes) -> int:
    line = _TRAILER.match(body, position)
    name = line[1].decode("ascii") if line is not None else ""
    # One name only: AWS allows one checksum per upload, and a list could be read in two ways.
    if line is None or name != expected or name not in AMZ_CHECKSUMS:
        raise InputError(Reason.BAD_BODY, "the trailer is not the checksum that X-Amz-Trailer names")
    size, compute = AMZ_CHECKSUMS[name]
    try:
        checksum = base64.b64decode(line[2], validate=True)
    except binascii.Error:
        raise InputError(Reason.BAD_BODY, "the trailing checksum is not base64") from None
    if len(checksum) != size or base64.b64encode(checksum) != line[2]:
        raise InputError(Reason.BAD_BODY, "the trailing checksum has the wrong form")
    if compute is not None and compute(data) != checksum:
        raise InputError(Reason.BAD_BODY, "the trailing checksum is wrong")
    return line.end()


def _end_of(grammar: re.Pattern[bytes], body: bytes, position: int) -> int:
    line = grammar.match(body, position)
    if line is None:
        raise InputError(Reason.BAD_BODY, "the trailer has no signature")
    return line.end()
