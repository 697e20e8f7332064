"""What Envoy asks before it forwards: one check of its `ext_authz` filter (HTTP) in, an answer out.

    head -> presented()  -> the token of Envoy's configuration
    head -> origin_of()  -> who connected to Envoy, and for which name
    head -> asked()      -> the agent's own request, as Envoy would forward it
    Release -> admitted() -> 200: the only answer that makes Envoy forward
    Answer  -> turned_away() -> never 200, whatever the vendor's own error form says

Envoy sends the agent's method, target, headers and body as they came, and sets four headers of its own over
whatever an agent sent under their names: token, source, SNI and port. This module believes nothing else.

Invariants (tests/test_ext_authz.py has one test named after each):
  XA1  Only a Release, which is a recorded PERMIT for exactly this request, becomes a 200.
  XA2  A refusal is a 4xx: 200 would forward, and what is 5xx Envoy may take for a failure that it was told to
       let pass.
  XA3  Who and where are read from headers that Envoy sets, each there exactly once; a body that Envoy cut is
       refused.
  XA4  With a PERMIT Envoy is told to take out every header that was not decided on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from .answer import Answer
from .errors import InputError, Reason
from .message import Headers, Listener, Origin, RequestHead
from .release import Release

__all__ = [
    "PORT",
    "SNI",
    "SOURCE",
    "TOKEN",
    "VIA",
    "admitted",
    "asked",
    "origin_of",
    "presented",
    "presented_in",
    "turned_away",
]

VIA: Final = "ext_authz"
# What Envoy sets (`headers_to_add`); all of them are names that no request may bring to an upstream.
TOKEN: Final = "holdgate-check-token"  # noqa: S105  (a header's name)
SOURCE: Final = "holdgate-check-source"
SNI: Final = "holdgate-check-sni"
PORT: Final = "holdgate-check-port"
_OURS: Final = frozenset(name.encode() for name in (TOKEN, SOURCE, SNI, PORT))
_CUT: Final = b"x-envoy-auth-partial-body"
_REMOVE: Final = b"x-envoy-auth-headers-to-remove"
# Envoy needs these two itself, and sets both anew.
_FRAME: Final = frozenset({b"host", b"content-length"})
_TOKEN_LINE: Final = re.compile(rb"(?i)\n" + TOKEN.encode() + rb":[ \t]*([!-~]+)[ \t]*\r")
_PORT: Final = re.compile(rb"[1-9][0-9]{0,4}\Z")


def presented(head: RequestHead) -> bytes:
    """The token that came with a check; b"" when none did, or more than one."""
    found = _values(head, TOKEN)
    return found[0] if len(found) == 1 else b""


def presented_in(seen: bytes) -> bytes:
    """The same out of a head that could not be read: good for a receipt that says so, for nothing else."""
    found = _TOKEN_LINE.findall(seen.partition(b"\r\n\r\n")[0] + b"\r\n")
    return found[0] if len(found) == 1 else b""


def origin_of(head: RequestHead) -> Origin:
    """How the agent's request reached Envoy. Raises InputError."""
    port = _one(head, PORT)
    if not _PORT.match(port) or int(port) > 65_535:
        raise InputError(Reason.MALFORMED_REQUEST, f"{PORT} is no port")
    return Origin(
        listener=Listener.TRANSPARENT,
        tls=True,
        source=_one(head, SOURCE).decode("latin-1"),  # read as an address by identify(), or refused
        source_port=0,
        connect=None,
        sni=_one(head, SNI).decode("latin-1"),
        original_port=int(port),
        proxy_authorization=(),
    )


def asked(head: RequestHead) -> RequestHead:
    """The agent's request: without what Envoy said of it. Raises InputError when its body is not whole."""
    if any(value.lower() != b"false" for value in _values(head, _CUT.decode())):
        raise InputError(
            Reason.TOO_LARGE, "Envoy sent a part of the body: allow_partial_message must be false"
        )
    return replace(head, headers=tuple(each for each in head.headers if each[0].lower() not in _OURS))


def _values(head: RequestHead, name: str) -> list[bytes]:
    wanted = name.encode()
    return [value for key, value in head.headers if key.lower() == wanted]


def _one(head: RequestHead, name: str) -> bytes:
    found = _values(head, name)
    if len(found) != 1 or not found[0]:
        raise InputError(Reason.MALFORMED_REQUEST, f"Envoy did not set {name}, or something else did too")
    return found[0]


def admitted(release: Release, seen: Headers, receipt_headers: Headers) -> Answer:
    """The answer to a PERMIT. Raises when the request is not the one of the receipt (Release.verify)."""
    release.verify()
    remove = b",".join(sorted(_undecided(seen, release.recognised.headers)))
    return Answer(
        status=200,
        reason=b"OK",
        headers=((_REMOVE, remove), *receipt_headers),
        body=b"",
        rest=None,
        length=0,
        bodiless=False,
        close=False,
    )


def _undecided(seen: Headers, sent: Headers) -> Iterable[bytes]:
    """Names that came, or could have come under Envoy's own, and are not sent on by what was decided."""
    kept = {name.lower() for name, _ in sent} | _FRAME
    return ({name.lower() for name, _ in seen} | _OURS) - kept


def turned_away(answer: Answer) -> Answer:
    """A refusal as Envoy must read it: its status is a 4xx, its body the vendor's own form."""
    status = answer.status if 400 <= answer.status < 500 else 403
    return replace(answer, status=status)
