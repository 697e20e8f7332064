"""Looking for values in bytes, in every form in which a careless program would keep them."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from urllib.parse import quote, quote_plus

__all__ = ["forms", "found_in"]


def forms(needle: str) -> Iterator[tuple[str, bytes]]:
    """Names of forms and their bytes. The base64 ones are what any surrounding text makes of the needle."""
    raw = needle.encode()
    yield "plain", raw
    yield "upper case", needle.upper().encode()
    yield "lower case", needle.lower().encode()
    yield "url", quote(needle, safe="").encode()
    yield "url, form", quote_plus(needle).encode()
    yield "url, every byte", "".join(f"%{byte:02X}" for byte in raw).encode()
    yield "json", json.dumps(needle)[1:-1].encode()
    yield "hex", raw.hex().encode()
    yield "hex, upper case", raw.hex().upper().encode()
    yield "utf-16-le", needle.encode("utf-16-le")
    yield "utf-16-be", needle.encode("utf-16-be")
    for before in range(3):
        # What the neighbours' bits reach is cut off; with 9 characters at least 8 of base64 are left.
        inside = base64.b64encode(b"\0" * before + raw)[4 if before else 0 :]
        text = inside[: (len(raw) - (3 - before) % 3) // 3 * 4]
        yield f"base64 at {before}", text
        yield f"base64url at {before}", text.translate(bytes.maketrans(b"+/", b"-_"))
    digest = hashlib.sha256(raw).digest()
    yield "sha-256", digest
    yield "sha-256, hex", digest.hex().encode()
    yield "sha-256, base64", base64.b64encode(digest).rstrip(b"=")
    yield "sha-256, base64url", base64.urlsafe_b64encode(digest).rstrip(b"=")
    yield "sha-256, hex in base64", base64.b64encode(digest.hex().encode())[4:-4]


def found_in(
    places: Mapping[str, bytes], needles: Iterator[str] | tuple[str, ...]
) -> list[tuple[str, str, str]]:
    """(place, needle, form) of everything that is found."""
    return [
        (place, needle, form)
        for needle in needles
        for form, data in forms(needle)
        for place, kept in places.items()
        if data in kept
    ]
