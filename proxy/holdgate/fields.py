"""Which request headers are sent on, which are taken out, and which refuse the request.

Names are judged in lower case with every character that is no letter or digit read as `-`:
CGI and WSGI servers turn `Holdgate_Decision` and `Holdgate-Decision` into one variable, so
both are one name here. `is_inert` is the opposite: only the exact name is harmless.

Invariants (tests/test_fields.py):
  F1  Every spelling of a reserved or removed name is taken out; of an override name, refused.
  F2  Host, Expect, Content-Type, Content-Encoding and Authorization occur once or refuse.
  F3  No name is inert that is removed, refused, a credential or names a resource or its state.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache
from typing import Final

from .errors import InputError, Reason
from .message import Headers
from .quick import quick

__all__ = ["INERT_HEADERS", "FieldSet", "is_inert", "read_fields"]

INERT_HEADERS: Final = frozenset(
    """
    accept accept-charset accept-encoding accept-language cache-control content-encoding
    content-language content-type date dnt pragma priority save-data sec-gpc user-agent
    upgrade-insecure-requests
    amz-sdk-invocation-id amz-sdk-request x-amz-sdk-checksum-algorithm x-amz-user-agent x-amzn-query-mode
    client-request-id commandname parametersetname return-client-request-id
    x-client-cpu x-client-current-telemetry x-client-last-telemetry x-client-os x-client-request-id
    x-client-sku x-client-ver x-ms-client-request-id x-ms-correlation-request-id x-ms-lib-capability
    x-ms-return-client-request-id
    mime-version npm-command npm-in-ci npm-session
    x-client-info x-elastic-client-meta x-goog-api-client x-opaque-id x-openai-client-user-agent
    x-stripe-client-telemetry x-stripe-client-user-agent x-twilio-client x-vault-request
    b3 baggage elastic-apm-traceparent newrelic sentry-trace traceparent tracestate uber-trace-id
    x-amzn-trace-id
    x-cloud-trace-context x-correlation-id x-ot-span-context x-request-id
    """.split()
)
_INERT_PREFIXES: Final = (
    "sec-fetch-",
    "sec-ch-",
    "x-b3-",
    "x-datadog-",
    "x-fern-",
    "x-instana-",
    "x-stainless-",
)


def is_inert(name: str) -> bool:
    """True if a commit may carry this header (lower-case name) without a map declaring it."""
    return name in INERT_HEADERS or name.startswith(_INERT_PREFIXES)


class _Fate(Enum):
    KEEP = auto()
    ONCE = auto()  # kept; twice is malformed
    DROP = auto()
    HOST = auto()
    CONNECTION = auto()
    EXPECT = auto()
    OVERRIDE = auto()
    LOOKALIKE = auto()  # folds to a name of framing or typing, but is not that name


_HOP_BY_HOP: Final = frozenset("keep-alive te trailer upgrade http2-settings".split())
# What Connection may name (H1S-21: anything else could strip a header that decides).
_CONNECTION_TOKENS: Final = _HOP_BY_HOP | {"close", "proxy-connection"}
_DROP: Final = _HOP_BY_HOP | frozenset(
    """
    content-length transfer-encoding
    via forwarded client-ip true-client-ip x-client-ip x-cluster-client-ip x-real-ip
    cf-connecting-ip fastly-client-ip x-host x-proxyuser-ip x-http-destinationurl
    x-agent x-agent-id x-agent-name x-agent-user x-authenticated-user x-authenticated-userid
    remote-user remote-groups x-remote-user x-remote-group x-webauth-user x-user-identity
    x-client-cert x-client-dn x-ssl-client-cert x-ssl-client-dn x-ssl-client-s-dn
    x-ssl-client-verify x-tls-client-cert
    """.split()
)
_DROP_PREFIXES: Final = (
    "holdgate-",
    "x-holdgate-",
    "tg-",
    "x-tg-",
    "x-trigguard-",
    "trigguard-",
    "proxy-",
    "x-forwarded-",
    "x-original-",
    "x-rewrite-",
    "x-auth-request-",
    "x-remote-extra-",
    # What the gateways in front of vendors tell their services of caller, host and path.
    "x-envoy-",
    "x-waws-",
    "x-consumer-",
    "x-amzn-oidc-",
    "x-ms-client-principal",
    "x-goog-authenticated-user-",
)
_OVERRIDE: Final = frozenset(
    """
    x-http-method-override x-http-method x-method-override x-override-method http-method-override
    method-override -method x-http-verb x-verb-override x-url-override x-http-path-override
    x-override-url x-http-host-override x-http-host http-host
    """.split()
)
_ONCE: Final = frozenset({"authorization", "content-type", "content-encoding"})
_FRAMING: Final = frozenset({"content-length", "transfer-encoding"})
_SPECIAL: Final = {
    "host": _Fate.HOST,
    "connection": _Fate.CONNECTION,
    "expect": _Fate.EXPECT,
    "content-type": _Fate.ONCE,
    "content-encoding": _Fate.ONCE,
    "authorization": _Fate.ONCE,
}

_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,256}")
_NOT_ALNUM: Final = re.compile(r"[^0-9a-z]")
# Tab may stand inside a value. C1 controls are refused too: NEL is white space to some readers.
_CONTROL: Final = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f]")
_NONE: Final[frozenset[str]] = frozenset()
_HANDSHAKES: Final = frozenset({"ntlm", "negotiate", "kerberos"})


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class FieldSet:
    """The header section after removals."""

    host: str  # value of the one Host header
    sent: Headers
    values: dict[str, str]  # of the names in `sent` that occurred once
    repeated: frozenset[str]


@lru_cache(maxsize=2048)
def _judge(name: bytes) -> tuple[str, _Fate]:
    # Names come from a small vocabulary, so this is a table filled on first use. The bound in
    # _NAME also bounds what the cache can hold: refused names are never cached.
    if _NAME.fullmatch(name) is None:
        raise InputError(Reason.MALFORMED_REQUEST, "a header name is not a token of 1..256 characters")
    lower = name.decode("ascii").lower()
    folded = _NOT_ALNUM.sub("-", lower)
    special = _SPECIAL.get(lower)
    if special is not None:
        return lower, special
    if folded in _OVERRIDE:
        return lower, _Fate.OVERRIDE
    if folded != lower and (folded in _SPECIAL or folded in _FRAMING):
        return lower, _Fate.LOOKALIKE
    if folded in _DROP or folded.startswith(_DROP_PREFIXES):
        return lower, _Fate.DROP
    return lower, _Fate.KEEP


def read_fields(headers: Headers) -> FieldSet:
    """Judge every header once, in order. Raises InputError."""
    sent: list[tuple[bytes, bytes]] = []
    values: dict[str, str] = {}
    repeated: set[str] = set()
    structural: dict[str, str] = {}
    upgrade = False
    for header in headers:
        name, fate = _judge(header[0])
        value = _text(header[1])
        if fate is _Fate.KEEP:
            sent.append(header)
            if name in values:
                repeated.add(name)
            values[name] = value
        elif fate is _Fate.DROP:
            upgrade = upgrade or name == "upgrade"
        elif fate is _Fate.ONCE:
            if name in values:
                raise InputError(Reason.MALFORMED_REQUEST, f"{name} occurs more than once")
            sent.append(header)
            values[name] = value
        elif fate is _Fate.OVERRIDE:
            raise InputError(Reason.UNKNOWN_PARAMETER, f"{name} would override the method or target")
        elif fate is _Fate.LOOKALIKE:
            raise InputError(Reason.MALFORMED_REQUEST, f"{name} could be read as another header")
        else:
            # Connection is a list header; the others must not be split over lines.
            if name in structural and fate is not _Fate.CONNECTION:
                raise InputError(Reason.MALFORMED_REQUEST, f"{name} occurs more than once")
            structural[name] = f"{structural[name]},{value}" if name in structural else value
    for name in repeated:
        del values[name]
    _check_structural(structural, values, upgrade)
    return FieldSet(
        host=structural["host"],
        sent=tuple(sent),
        values=values,
        repeated=frozenset(repeated) if repeated else _NONE,
    )


def _text(raw: bytes) -> str:
    try:
        value = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(Reason.MALFORMED_REQUEST, "a header value is not UTF-8") from None
    # isprintable() is the cheap way to say "nothing to look at closer"; tab and U+00A0 fail it.
    if not value.isprintable() and _CONTROL.search(value) is not None:
        raise InputError(Reason.MALFORMED_REQUEST, "a header value has a control character")
    if value != value.strip(" \t"):
        raise InputError(Reason.MALFORMED_REQUEST, "a header value has white space around it")
    return value


def _check_structural(structural: dict[str, str], values: dict[str, str], upgrade: bool) -> None:
    if "host" not in structural:
        raise InputError(Reason.MALFORMED_REQUEST, "no Host header")
    connection = structural.get("connection")
    if connection is not None and connection not in ("keep-alive", "close"):
        tokens = {token.strip(" \t").lower() for token in connection.split(",")}
        if not tokens <= _CONNECTION_TOKENS:
            raise InputError(Reason.MALFORMED_REQUEST, "Connection names a header that is not hop-by-hop")
        # Upgrade alone is only an offer that we leave out; nominated, it asks for a tunnel.
        if upgrade and "upgrade" in tokens:
            raise InputError(Reason.UNSUPPORTED_PROTOCOL, "protocol upgrade")
    expect = structural.get("expect")
    if expect is not None and expect.lower() != "100-continue":
        raise InputError(Reason.MALFORMED_REQUEST, "Expect is not 100-continue")
    authorization = values.get("authorization")
    if authorization is not None and authorization.partition(" ")[0].lower() in _HANDSHAKES:
        # These authenticate the connection, not the request: a pooled connection would lend it.
        raise InputError(Reason.UNSUPPORTED_PROTOCOL, "connection-bound authentication scheme")
