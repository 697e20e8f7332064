"""Step 2: a Message becomes one CanonicalRequest, or is refused.

Strict and map-independent: method, target, path, query, host identity, header grammar,
hop-by-hop removal. What the body means is decided later, because it depends on the surface map (`surface/`).
Where two reasonable readers could differ the answer is an InputError; nothing is repaired.

Which reading of a request is right depends on how it came: inside TLS, or in a plain tunnel, and
on the transparent listener the target is origin-form; on the explicit one it is absolute-form.

Invariants (tests/test_canonical.py has one test named after each):
  C1  Whatever is not refused is sent as it is: `raw_target` and `body` are the bytes that arrived.
  C2  Host, SNI, CONNECT target, scheme and port name one origin, or identity_mismatch.
  C3  No segment or query key of an accepted path reads differently under WHATWG URL parsing.
  C4  canonicalise() is total: it returns a CanonicalRequest or raises InputError.
  C5  No hop-by-hop, Proxy-*, forwarding, or Holdgate-*/TG-* header is in `headers`.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from urllib.parse import unquote_to_bytes

from .content.form import split_pairs
from .content.mediatype import check_charset, parse_media_type
from .errors import InputError, Reason
from .fields import read_fields
from .message import Headers, Listener, Message, Origin
from .quick import quick

__all__ = ["CanonicalRequest", "MediaType", "Target", "canonicalise", "read_target"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaType:
    """`type/subtype` in lower case and its parameters, names in lower case, in order."""

    essence: str
    params: tuple[tuple[str, str], ...]


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class CanonicalRequest:
    method: str  # upper case token as sent
    scheme: str  # "http" | "https"
    host: str  # lower-case LDH name, no port, no trailing dot
    port: int
    raw_target: bytes  # origin-form exactly as it will be sent: path, and "?query" if there was a "?"
    segments: tuple[str, ...]  # decoded path segments; "/" is ("",), "/a/" is ("a", "")
    raw_segments: tuple[str, ...]  # the same, percent-encoding kept (ASCII)
    query: tuple[tuple[str, str], ...] | None  # decoded pairs in order; None: no "?"; a bare key has value ""
    headers: (
        Headers  # to be sent, in order, after removals; no Host, Content-Length, Transfer-Encoding, Expect
    )
    fields: dict[
        str, str
    ]  # lower-case name -> value, of the headers above; a name occurs once or is in `repeated`
    repeated: frozenset[str]  # names that occurred more than once (never in `fields`)
    content_type: MediaType | None
    content_coding: str | None  # "gzip", "br", "zstd", "aws-chunked", "gzip,aws-chunked" ...; None: identity
    body: bytes  # exactly as it will be sent (codings on, transfer coding off)

    @property
    def destination(self) -> str:
        """`host:port`, the form that receipts and pools use."""
        return f"{self.host}:{self.port}"


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """An origin-form target, read."""

    segments: tuple[str, ...]
    raw_segments: tuple[str, ...]
    query: tuple[tuple[str, str], ...] | None


def canonicalise(message: Message) -> CanonicalRequest:
    """Return the one reading of `message`. Raises InputError."""
    head = message.head
    method = _method(head.method)
    headers = read_fields(head.headers)
    host_header = headers.host.encode("utf-8")
    authority, raw_target = _split_target(message.origin, head.target)
    scheme, host, port = _identity(message.origin, host_header, authority)
    target = read_target(raw_target)
    return CanonicalRequest(
        method=method,
        scheme=scheme,
        host=host,
        port=port,
        raw_target=raw_target,
        segments=target.segments,
        raw_segments=target.raw_segments,
        query=target.query,
        headers=headers.sent,
        fields=headers.values,
        repeated=headers.repeated,
        content_type=_content_type(headers.values.get("content-type"), message.body),
        content_coding=_content_coding(headers.values.get("content-encoding")),
        body=message.body,
    )


# --- method -------------------------------------------------------------------------------

_METHOD: Final = re.compile(rb"[A-Z]+(?:-[A-Z]+)*")
# TRACE echoes credentials, CONNECT asks for a tunnel, PRI is HTTP/2's preface.
_REFUSED_METHODS: Final = frozenset({b"CONNECT", b"PRI", b"TRACE", b"TRACK"})


@lru_cache(maxsize=64)
def _method(raw: bytes) -> str:
    if len(raw) > 32 or _METHOD.fullmatch(raw) is None:
        raise InputError(Reason.MALFORMED_REQUEST, "the method is not an upper-case token")
    if raw in _REFUSED_METHODS:
        raise InputError(Reason.UNSUPPORTED_PROTOCOL, f"method {raw.decode('ascii')}")
    return raw.decode("ascii")


# --- target form and identity ---------------------------------------------------------------

_ABSOLUTE: Final = re.compile(rb"http://([^/?#\\]*)(/.*)", re.DOTALL)
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


def _split_target(origin: Origin, target: bytes) -> tuple[bytes | None, bytes]:
    """The authority, where the target must have one, and the origin-form rest."""
    if origin.tls or origin.listener is Listener.TRANSPARENT or origin.connect is not None:
        if not target.startswith(b"/"):
            raise InputError(Reason.MALFORMED_REQUEST, "the target is not in origin-form")
        return None, target
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        raise InputError(Reason.MALFORMED_REQUEST, "the target is not http:// with a host and a path")
    return absolute[1], absolute[2]


def _identity(origin: Origin, host_header: bytes, authority: bytes | None) -> tuple[str, str, int]:
    """Scheme, host and port, once everything that names them agrees."""
    scheme = "https" if origin.tls else "http"
    name, port = _authority(host_header, _DEFAULT_PORTS[scheme])
    if authority is not None and _authority(authority, _DEFAULT_PORTS[scheme]) != (name, port):
        raise InputError(Reason.IDENTITY_MISMATCH, "the target names another origin than Host")
    if origin.tls and not _same_name(origin.sni, name):
        raise InputError(Reason.IDENTITY_MISMATCH, "SNI is absent or names another host than Host")
    if origin.listener is Listener.TRANSPARENT:
        if origin.connect is not None or origin.original_port != port:
            raise InputError(Reason.IDENTITY_MISMATCH, "the original destination has another port than Host")
    elif origin.connect is not None:
        tunnel_name, tunnel_port = origin.connect
        if not _same_name(tunnel_name, name) or tunnel_port != port:
            raise InputError(Reason.IDENTITY_MISMATCH, "CONNECT names another origin than Host")
    elif origin.tls:
        raise InputError(Reason.IDENTITY_MISMATCH, "TLS on the explicit listener without CONNECT")
    return scheme, name, port


def _same_name(claimed: str | None, name: str) -> bool:
    # Not-ASCII first: the Kelvin sign, for one, lower-cases to `k`.
    return claimed is not None and claimed.isascii() and claimed.lower() == name


_LABEL: Final = rb"[A-Za-z0-9](?:[A-Za-z0-9\-]{0,61}[A-Za-z0-9])?"
_NAME_PORT: Final = re.compile(rb"(" + _LABEL + rb"(?:\." + _LABEL + rb")*)(?::([1-9][0-9]{0,4}))?")
_BRACKETS: Final = re.compile(rb"\[([0-9A-Fa-f:.]{2,45})\](?::[1-9][0-9]{0,4})?")
# inet_aton reads one to four parts, decimal, octal or hexadecimal: all of them end in a number.
_ENDS_IN_NUMBER: Final = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")


@lru_cache(maxsize=1024)
def _authority(raw: bytes, default_port: int) -> tuple[str, int]:
    """`name[:port]` as lower-case name and port. What is refused is never cached."""
    parsed = _NAME_PORT.fullmatch(raw) if len(raw) <= 259 else None
    if parsed is None:
        _refuse_address(raw)
        raise InputError(Reason.MALFORMED_REQUEST, "the host is not an LDH name with an optional port")
    name = parsed[1].decode("ascii").lower()
    port = default_port if parsed[2] is None else int(parsed[2])
    if len(name) > 253 or port > 65_535:
        raise InputError(Reason.MALFORMED_REQUEST, "the host name is too long, or the port is no port")
    if _ENDS_IN_NUMBER.fullmatch(name) is not None:
        raise InputError(Reason.UNKNOWN_DESTINATION, "the host is an IP address")
    return name, port


def _refuse_address(raw: bytes) -> None:
    bracketed = _BRACKETS.fullmatch(raw)
    if bracketed is None:
        return
    try:
        ipaddress.IPv6Address(bracketed[1].decode("ascii"))
    except ValueError:
        return
    raise InputError(Reason.UNKNOWN_DESTINATION, "the host is an IP address")


# --- path and query -------------------------------------------------------------------------

# RFC 3986 pchar without `;`: path parameters are part of the name to some servers, not to others.
# Brackets and `|` are no pchar, but URL parsers of browsers and Node leave them raw, and every reader takes
# them. In a query the same holds for what curl, Go and Node send raw; a backslash is a slash to some.
_PATH_CHARS: Final = rb"[A-Za-z0-9\-._~!$&'()*+,=:@/\[\]|]*"
_PATH: Final = re.compile(rb"/" + _PATH_CHARS + rb"(?:%[0-9A-Fa-f]{2}" + _PATH_CHARS + rb")*")
_QUERY_CHARS: Final = rb"[A-Za-z0-9\-._~!$&'()*+,=:@/?\[\]|{}^`\"<>]*"
_QUERY: Final = re.compile(_QUERY_CHARS + rb"(?:%[0-9A-Fa-f]{2}" + _QUERY_CHARS + rb")*")
_MAX_PAIRS: Final = 1000

# In a decoded segment: control characters, and what some server treats as a separator.
_UNSAFE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\\;]")


def _residual_pattern() -> re.Pattern[str]:
    # Nobody escapes an unreserved character, so one that is escaped twice is there to be decoded
    # twice; separators, controls and `%` itself would change the path for such a server.
    unreserved = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
    codes = {ord(c) for c in unreserved + "/\\%;"} | set(range(0x20)) | {0x7F}
    return re.compile("%(?:" + "|".join(f"{code:02x}" for code in sorted(codes)) + "|u[0-9a-f]{4})", re.I)


_RESIDUAL: Final = _residual_pattern()
_DOTS: Final = frozenset({".", ".."})
_NOT_A_PIECE: Final = _DOTS | {""}


def read_target(raw_target: bytes) -> Target:
    """Read a path with an optional query; also for the requests inside a batch. Raises InputError."""
    path, mark, raw_query = raw_target.partition(b"?")
    if b"#" in raw_target:
        raise InputError(Reason.MALFORMED_REQUEST, "the target has a fragment")
    if _PATH.fullmatch(path) is None:
        raise InputError(Reason.NON_CANONICAL_PATH, "a byte that is not allowed, or a bad percent escape")
    raw_segments = tuple(path[1:].decode("ascii").split("/"))
    # Only the last segment may be empty: `/a/` and `/`, but not `//a`.
    if b"//" in path:
        raise InputError(Reason.NON_CANONICAL_PATH, "an empty path segment")
    segments = raw_segments if b"%" not in path else tuple(map(_segment, raw_segments))
    if b"/." in path and not _DOTS.isdisjoint(segments):
        raise InputError(Reason.NON_CANONICAL_PATH, "a dot segment")
    query = None
    if mark:
        query = tuple(
            split_pairs(raw_query, grammar=_QUERY, max_pairs=_MAX_PAIRS, reason=Reason.MALFORMED_REQUEST)
        )
    return Target(segments=segments, raw_segments=raw_segments, query=query)


def _segment(raw: str) -> str:
    """Decode one segment exactly once and refuse what a second reading would change."""
    if "%" not in raw:
        return raw
    try:
        decoded = unquote_to_bytes(raw).decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(Reason.NON_CANONICAL_PATH, "a path segment is not UTF-8") from None
    if _UNSAFE.search(decoded) is not None:
        raise InputError(Reason.NON_CANONICAL_PATH, "an escaped control character, backslash or semicolon")
    if "%" in decoded and _RESIDUAL.search(decoded) is not None:
        raise InputError(Reason.NON_CANONICAL_PATH, "a path segment is escaped twice")
    # An escaped slash is data (GitLab, FHIR, npm need it; the map must allow it), but what it
    # separates must read the same for a server that takes it for a separator.
    if decoded in _DOTS or ("/" in decoded and not _NOT_A_PIECE.isdisjoint(decoded.split("/"))):
        raise InputError(Reason.NON_CANONICAL_PATH, "an escaped dot segment or empty segment")
    return decoded


# --- body description -----------------------------------------------------------------------

_CODINGS: Final = {"gzip": "gzip", "br": "br", "zstd": "zstd", "aws-chunked": "aws-chunked", "identity": None}
# The AWS SDKs frame what is compressed already; the order is that of RFC 9110 8.4, the outermost last.
_CODINGS.update(
    {
        f"{inner}{comma}aws-chunked": f"{inner},aws-chunked"
        for inner in ("gzip", "br", "zstd")
        for comma in (",", ", ")
    }
)


def _content_type(value: str | None, body: bytes) -> MediaType | None:
    if value is None:
        return None
    essence, params = parse_media_type(value)
    if params:
        check_charset(params, body)
    return MediaType(essence=essence, params=params)


def _content_coding(value: str | None) -> str | None:
    if value is None:
        return None
    # Exactly these, in lower case: readers differ about other lists, x-gzip and raw deflate.
    if value not in _CODINGS:
        raise InputError(Reason.UNSUPPORTED_CONTENT, f"content coding {value[:40]!r}")
    return _CODINGS[value]
