"""An answer that its map keeps for repeats (`response: keep`): what of it is kept, for whom, and given again.

    (agent, request, credential) -> asker;   (answer, asker) -> KeptAnswer;   both -> the answer again

The asker is derived from everything that a repeat must have in common with the first request: agent, host and
port, key, request.digest, every credential that was sent, byte for byte, and what its answer was chosen by
(Accept and the like). It is part of the key under which the answer is sealed (sealing.py), so a request that
differs in any of it cannot open the answer, and neither can whoever has only the ledger.

What is not kept: streams and bodies above 64 KiB, cut ones, every status but 2xx, answers to requests without
a credential. Then a repeat hears 409 `already_executed`, as without `keep`.

Invariants (tests/test_recall.py):
  RC1  What keep() made is given again only to the same agent, request and credential under the same receipt;
       anything else, and anything that was edited, gives None.
  RC2  Nothing is kept but a whole 2xx answer of at most 64 KiB; of its headers only those on a closed list,
       which names no cookie, no credential, and nothing of the connection.
  RC3  A request without a credential has no asker, and neither has one whose map does not say `keep`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Final

from .agents import Agent
from .case import Target, flight_name
from .digest import framed
from .message import Headers, ResponseHead
from .sealing import KeptAnswer, SealError, open_answer, seal_answer
from .surface.model import Recognised

__all__ = ["MAX_ANSWER_BYTES", "MAX_KEPT_BYTES", "asker_of", "given_again", "keep"]

MAX_ANSWER_BYTES: Final = 65_536  # of a body, as it was sent
_MAX_HEAD_BYTES: Final = 16_384
MAX_KEPT_BYTES: Final = MAX_ANSWER_BYTES + _MAX_HEAD_BYTES + 64  # of KeptAnswer.data: sealing adds 40
_ASKER: Final = b"holdgate-asker-v1"

# The vendor chose its answer by these; to a repeat that accepts something else it may be unreadable.
_NEGOTIATED: Final = frozenset({b"accept", b"accept-charset", b"accept-encoding", b"accept-language"})

# What is safe to say again, and what clients read of an answer: its content, what it made, whom to ask about.
_GIVEN: Final = frozenset(
    {
        *(b"content-type", b"content-encoding", b"content-language", b"content-location"),
        *(b"content-disposition", b"content-md5", b"content-digest", b"digest", b"repr-digest"),
        *(b"cache-control", b"date", b"etag", b"expires", b"last-modified", b"location", b"pragma", b"vary"),
        *(b"idempotency-key", b"stripe-version", b"x-amz-version-id", b"x-goog-generation"),
        *(b"request-id", b"x-request-id", b"x-correlation-id", b"x-amz-request-id", b"x-amzn-requestid"),
        *(b"x-github-request-id", b"x-ms-request-id"),
    }
)


def asker_of(agent: Agent, request: Target, recognised: Recognised) -> bytes | None:
    """What seals and opens the answer to this request; None where none may be kept."""
    keys = recognised.keys
    if not keys or not keys[0].keep or request.method == "HEAD":
        return None
    credentials, chosen_by = list[bytes](), list[bytes]()
    for name, value in recognised.headers:
        low = name.lower()
        if low.decode("ascii") in recognised.secret_headers:
            credentials += [low, value]
        elif low in _NEGOTIATED:
            chosen_by += [low, value]
    if not credentials and recognised.principal is None:
        return None
    # The principal is in the flight's name: it may be a token in a body or query.
    same = flight_name(agent, request.destination, recognised).encode("utf-8", "surrogatepass")
    return framed(_ASKER, [same, framed(b"", credentials), framed(b"", chosen_by)])


def keep(
    receipt_id: str, asker: bytes, head: ResponseHead, body: bytes, draw: Callable[[int], bytes]
) -> KeptAnswer | None:
    """The answer to the PERMIT `receipt_id`, sealed. It came whole. None: it is not one to keep."""
    if not 200 <= head.status < 300 or len(body) > MAX_ANSWER_BYTES:
        return None
    said = {
        "status": head.status,
        "reason": head.reason.decode("latin-1"),
        "headers": [
            [name.decode("latin-1"), value.decode("latin-1")]
            for name, value in head.headers
            if name.lower() in _GIVEN
        ],
    }
    first = json.dumps(said, separators=(",", ":")).encode("ascii")
    if len(first) > _MAX_HEAD_BYTES:
        return None
    # JSON never holds a line feed of its own, so the first one ends the head.
    return seal_answer(receipt_id, first + b"\n" + body, asker, draw)


def given_again(receipt_id: str, kept: KeptAnswer, asker: bytes) -> tuple[ResponseHead, bytes] | None:
    """The answer to the PERMIT `receipt_id`; None where it does not open for this asker."""
    try:
        first, _, body = open_answer(receipt_id, kept, asker).partition(b"\n")
        said = json.loads(first)
        status, reason = int(said["status"]), said["reason"].encode("latin-1")
        headers: Headers = tuple(
            (name.encode("latin-1"), value.encode("latin-1")) for name, value in said["headers"]
        )
    except (SealError, ValueError, KeyError, TypeError, AttributeError):
        return None  # the refusal needs nothing of it
    return ResponseHead(status=status, reason=reason, headers=headers), body
