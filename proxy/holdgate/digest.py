"""The two digests of a request, and the fingerprint of a credential. Preimages: proxy/SPEC.md.

`request.digest` is over the meaning (surface/ computes its input); `wire_digest` is over exactly
what is sent: method, raw target, ordered headers with credential values replaced by their
fingerprints, body.

Invariants (tests/test_digest.py):
  W1  Changing any byte that would be sent changes wire_digest.
  W2  Parts are length-prefixed: no two different part lists share a preimage.
  W3  No credential value is in a preimage that is not keyed; its fingerprint is.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from .message import Headers

__all__ = [
    "CREDENTIAL_HEADERS",
    "fingerprint",
    "framed",
    "meaning_digest",
    "param_digest",
    "raw_digest",
    "wire_digest",
]

# Headers whose value is a secret on every API; maps add their own (`credential_slot`).
CREDENTIAL_HEADERS = frozenset(
    {
        "authorization",
        "cookie",
        "x-api-key",
        "api-key",
        "x-goog-api-key",
        "x-amz-security-token",
        "x-auth-token",
    }
)

_WIRE = b"holdgate-wire-v1"
_MEANING = b"holdgate-request-v1"
_CREDENTIAL = b"holdgate-credential-v1"
_RAW = b"holdgate-raw-v1"
_PARAM = b"holdgate-param-v1"


# Lengths of most parts, ready made.
_LENGTHS: Final = tuple(size.to_bytes(8, "big") for size in range(4096))


def framed(domain: bytes, parts: Iterable[bytes]) -> bytes:
    """A preimage: the domain, then each part behind its length. No two lists of parts have one preimage."""
    out = [domain]
    for part in parts:
        size = len(part)
        out.append(_LENGTHS[size] if size < 4096 else size.to_bytes(8, "big"))
        out.append(part)
    return b"".join(out)


@lru_cache(maxsize=4096)
def _lower(name: bytes) -> str:
    return name.decode("ascii").lower()


def _hash(preimage: bytes, key: bytes | None) -> str:
    if key is None:
        return "sha256:" + hashlib.sha256(preimage).hexdigest()
    return "hmac-sha256:" + hmac.digest(key, preimage, "sha256").hex()


def fingerprint(secret: bytes) -> str:
    """Stable name of a credential: 32 hex digits, one way."""
    return hashlib.sha256(framed(_CREDENTIAL, [secret])).hexdigest()[:32]


def wire_digest(
    method: str,
    raw_target: bytes,
    headers: Headers,
    body: bytes,
    *,
    secret_headers: frozenset[str] = CREDENTIAL_HEADERS,
    key: bytes | None = None,
) -> str:
    """Digest of what is sent; `headers` includes Host and Content-Length as sent.

    With `key` (sensitive operations) it is `hmac-sha256:<hex>`, otherwise `sha256:<hex>`.
    """
    parts = [method.encode("ascii"), raw_target]
    for name, value in headers:
        parts.append(name)
        parts.append(fingerprint(value).encode() if _lower(name) in secret_headers else value)
    parts.append(body)
    return _hash(framed(_WIRE, parts), key)


def meaning_digest(parts: Iterable[bytes], *, key: bytes | None = None) -> str:
    """Digest of the meaning; see proxy/SPEC.md for the order of `parts`."""
    return _hash(framed(_MEANING, parts), key)


def raw_digest(head: bytes, body: bytes, *, key: bytes) -> str:
    """Digest of bytes that could not be read as one request: refused, but still accounted for.

    Always keyed: nobody knows whether those bytes hold credentials or patients' data.
    """
    return _hash(framed(_RAW, [head, body]), key)


def param_digest(map_name: str, name: str, text: str, *, key: bytes) -> str:
    """What a receipt says of a parameter that it must not show: equal values of one parameter stay equal."""
    parts = [map_name.encode(), name.encode(), text.encode("utf-8", "surrogatepass")]
    return _hash(framed(_PARAM, parts), key)
