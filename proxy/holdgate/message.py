"""What arrived: bytes of one request and facts of its connection, copied, not yet judged.

`Origin` holds only what the connection proves (addresses, SNI, CONNECT target, proxy
credentials); nothing in it can be set by a request header inside the tunnel.
Header names and values are bytes exactly as received, without the optional white space
around the value. Order is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from .quick import quick

__all__ = ["Headers", "Listener", "Message", "Origin", "RequestHead", "ResponseHead"]

type Headers = tuple[tuple[bytes, bytes], ...]


class Listener(StrEnum):
    EXPLICIT = "explicit"
    TRANSPARENT = "transparent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """How the bytes reached us."""

    listener: Listener
    tls: bool  # the request came inside TLS that we terminated
    source: str  # peer IP address, textual
    source_port: int
    connect: tuple[str, int] | None  # CONNECT target as sent; explicit listener only
    sni: str | None  # as sent in the ClientHello; None outside TLS or when absent
    original_port: int | None  # destination port before REDIRECT; transparent only
    proxy_authorization: tuple[bytes, ...]  # values of Proxy-Authorization seen by the proxy
    client_chain: tuple[bytes, ...] = ()  # DER certificates that the client showed in that TLS, its own first
    uid: int | None = (
        None  # owner of the agent's socket, when that is a socket of this machine and was asked for
    )
    vouched: str | None = None  # id of the agent whose namespace the connection came from: `holdgate exec`


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class RequestHead:
    method: bytes
    target: bytes
    headers: Headers


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One complete request: head and de-chunked body (content codings still on)."""

    origin: Origin
    head: RequestHead
    body: bytes


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseHead:
    """A response head from an upstream, or ours to an agent."""

    status: int
    reason: bytes
    headers: Headers
