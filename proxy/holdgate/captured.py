"""One whole HTTP request as bytes, read as if it had come over a connection.

For whoever has a request but no connection of an agent: `explain`, policy tests, the decision doors. It is
taken as sent inside TLS to the name in its Host header, or as plain HTTP when its target is an absolute
http:// URL; the reading is the proxy's own, byte for byte.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from .errors import InputError, Reason
from .http1 import ServerReader
from .limits import Limits
from .message import Listener, Message, Origin, RequestHead
from .surface.index import SurfaceIndex

__all__ = ["SOURCE", "nowhere", "read_captured"]

SOURCE: Final = "127.0.0.1"


def read_captured(raw: bytes, limits: Limits, index: SurfaceIndex) -> Message:
    """One complete request as the proxy would read it from a connection. Raises InputError."""
    reader = ServerReader(limits)
    reader.feed(raw)
    head_read = reader.head()
    if head_read is None:
        raise InputError(Reason.MALFORMED_REQUEST, "the head is incomplete: no empty line after it")
    origin = _origin(head_read)
    host, port = origin.connect or ("", 80)
    scheme = "https" if origin.tls else "http"
    reader.begin_body(
        index.body_limit(host, port, scheme, default=limits.body_bytes, cap=limits.body_bytes_max)
    )
    body_read = reader.body()
    if body_read is None:
        raise InputError(Reason.MALFORMED_REQUEST, "the body is shorter than announced")
    if reader.pending:
        raise InputError(Reason.MALFORMED_REQUEST, "bytes after the end of the body")
    return Message(origin=origin, head=head_read, body=body_read)


def _origin(head: RequestHead) -> Origin:
    host = next((value for name, value in head.headers if name.lower() == b"host"), b"")
    name, _, port = host.decode("latin-1").partition(":")
    plain = head.target[:7].lower() == b"http://"
    number = int(port) if port.isascii() and port.isdigit() and len(port) < 6 else 443
    return replace(
        nowhere(Listener.EXPLICIT),
        tls=not plain,
        connect=None if plain else (name, number),
        sni=None if plain else name,
    )


def nowhere(listener: Listener) -> Origin:
    """The origin of a message that came over no connection of ours, or says too little to have another."""
    return Origin(
        listener=listener,
        tls=True,
        source=SOURCE,
        source_port=0,
        connect=None,
        sni=None,
        original_port=None,
        proxy_authorization=(),
    )
