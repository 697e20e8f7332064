"""Checksums that a request carries about its own body: whether one is right.

A right one says nothing that the body does not say, so no map has to declare it; a wrong one, or one that
cannot be computed here (CRC32C, CRC64NVME), is a header like any other.

Invariants (tests/test_content_checksum.py):
  CK1  confirms() is True only for the one spelling of the checksum of exactly these bytes.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Callable
from typing import Final

__all__ = ["AMZ_CHECKSUMS", "confirms"]


def _crc32(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "big")


def _md5(data: bytes) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()


def _sha1(data: bytes) -> bytes:
    return hashlib.sha1(data, usedforsecurity=False).digest()


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


type _Compute = Callable[[bytes], bytes]

# Name -> (bytes of the checksum, how to compute it; None: the standard library cannot, S3 does).
AMZ_CHECKSUMS: Final[dict[str, tuple[int, _Compute | None]]] = {
    "x-amz-checksum-crc32": (4, _crc32),
    "x-amz-checksum-crc32c": (4, None),
    "x-amz-checksum-crc64nvme": (8, None),
    "x-amz-checksum-sha1": (20, _sha1),
    "x-amz-checksum-sha256": (32, _sha256),
}
_COMPUTED: Final[dict[str, _Compute]] = {
    name: compute for name, (_, compute) in AMZ_CHECKSUMS.items() if compute is not None
} | {"content-md5": _md5}  # RFC 1864


def confirms(name: str, value: str, body: bytes) -> bool:
    """True if header `name` (lower case) is a checksum, and `value` is that of `body` as it is sent."""
    compute = _COMPUTED.get(name)
    return compute is not None and base64.b64encode(compute(body)).decode("ascii") == value
