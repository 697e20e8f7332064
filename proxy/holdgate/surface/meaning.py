"""The preimage of `request.digest`: what a request means, without how it was spelled.

The order of the parts is written down in proxy/SPEC.md, section "request.digest".

Invariants (tests/test_surface_digest.py):
  SM23  Equal meaning, equal digest: order of keys, headers and pairs, white space and codings do not
      count; neither do inert headers, credentials (but for their principal), keys and volatile fields.
  SM24  Changing any other header, query pair, path byte or body value changes the digest.
"""

from __future__ import annotations

import hashlib
from operator import itemgetter
from typing import Final

from ..canonical import CanonicalRequest
from ..digest import meaning_digest
from .exchange import Exchange
from .plan import Plan
from .types import canonical_json

__all__ = ["request_digest", "request_preimage"]

# Parameters of a media type that do not survive decoding.
_SPELLING: Final = frozenset({"charset", "boundary"})


def request_digest(
    request: CanonicalRequest,
    plan: Plan,
    exchange: Exchange,
    headers: list[str],
    principal: str | None,
    key: bytes | None,
) -> str:
    return meaning_digest(request_preimage(request, plan, exchange, headers, principal), key=key)


def request_preimage(
    request: CanonicalRequest, plan: Plan, exchange: Exchange, headers: list[str], principal: str | None
) -> list[bytes]:
    """The parts in their order; `headers` are the names of the declared ones."""
    path = "/".join(request.raw_segments)
    line = f"{request.method} {request.scheme} {request.host}:{request.port} /{path}"
    # Neither names nor values can hold a line feed, and no name a colon: lines are exact.
    headers.sort()
    lines = "\n".join([f"{name}:{exchange.fields[name]}" for name in headers])
    parts = [
        line.encode(),
        lines.encode("utf-8", "surrogatepass"),
        b"" if exchange.kind == "none" else _media(exchange).encode("utf-8", "surrogatepass"),
        exchange.kind.encode(),
        _body(plan, exchange),
        b"" if principal is None else principal.encode(),
    ]
    if request.query is not None:
        _add_query(parts, request.query, plan)
    return parts


def _add_query(parts: list[bytes], query: tuple[tuple[str, str], ...], plan: Plan) -> None:
    """Last, because it is a list; an empty query ("?") is one empty part."""
    # By key only: servers differ in which of two equal keys they take, so their order is meaning.
    pairs = sorted((pair for pair in query if pair[0] not in plan.digest_drop_query), key=itemgetter(0))
    parts.append(b"")
    for key, value in pairs:
        parts.append(key.encode("utf-8", "surrogatepass"))
        parts.append(value.encode("utf-8", "surrogatepass"))


def _media(exchange: Exchange) -> str:
    media = exchange.media
    if media is None:
        return ""
    kept = sorted([name, value] for name, value in media.params if name not in _SPELLING)
    return canonical_json([media.essence, *kept]) if kept else media.essence


def _body(plan: Plan, exchange: Exchange) -> bytes:
    kind = exchange.kind
    if kind == "none":
        return b""
    if kind == "opaque":
        return hashlib.sha256(exchange.data).digest()
    body = exchange.body if plan.digest_drop is None else plan.digest_drop.without(exchange.body)
    return canonical_json(body).encode("utf-8", "surrogatepass")
