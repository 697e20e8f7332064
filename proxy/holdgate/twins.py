"""The answer to one request on its way to identical ones that wait at other nodes of a fleet.

    seal(Answer, receipt, node) -> bytes for that node in the shared store -> open_sealed() there -> Answer

Inside one process identical requests share an answer by reference; between nodes it goes through the
database, for as long as it takes to be fetched. Whoever reads the database must not read answers, so they are
sealed under a key that is derived from the fleet's. Which requests are identical is not decided here.

Invariants (tests/test_twins.py has one test named after each):
  TW1  What seal() made opens under its own fleet key, for its own receipt and node, and with nothing else.
  TW2  An answer comes out as it went in; one that is still arriving, or too large, is not sealed at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Final

from nacl import bindings
from nacl.exceptions import CryptoError

from .answer import Answer
from .errors import HoldgateError
from .worker_protocol import WireError, plain_answer, read_answer

__all__ = ["TwinError", "open_sealed", "seal"]

_NONCE_BYTES: Final = 24
_MAX_BYTES: Final = 1 << 20  # of a body, as relay.py keeps for those who wait in its own process
_PERSON: Final = b"holdgate-twin-v1"


class TwinError(HoldgateError):
    """Sealed bytes that do not open: edited, or of another key, receipt or node."""


def seal(
    answer: Answer, receipt_id: str, node: str, fleet_key: bytes, draw: Callable[[int], bytes]
) -> bytes | None:
    """The answer to the PERMIT `receipt_id`, for `node` alone. `draw` gives that many random bytes.
    None: it is none that can be shared."""
    head, body = plain_answer(answer)
    if not head or len(body) > _MAX_BYTES:
        return None
    nonce = draw(_NONCE_BYTES)
    # JSON never holds a line feed of its own, so the first one ends the head.
    text = json.dumps(head, separators=(",", ":")).encode("ascii") + b"\n" + body
    return nonce + bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(
        text, _about(receipt_id, node), nonce, _key(fleet_key)
    )


def open_sealed(data: bytes, receipt_id: str, node: str, fleet_key: bytes) -> Answer:
    """Raises TwinError."""
    nonce, body = data[:_NONCE_BYTES], data[_NONCE_BYTES:]
    try:
        text = bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(
            body, _about(receipt_id, node), nonce, _key(fleet_key)
        )
        head, _, rest = text.partition(b"\n")
        answer = read_answer(json.loads(head), rest)
    except (CryptoError, ValueError, TypeError, WireError) as error:
        raise TwinError(f"{receipt_id}: the shared answer does not open") from error
    if answer is None:
        raise TwinError(f"{receipt_id}: no answer was shared")
    return answer


def _about(receipt_id: str, node: str) -> bytes:
    return f"{receipt_id}\0{node}".encode()


def _key(fleet_key: bytes) -> bytes:
    return hashlib.blake2b(key=fleet_key, person=_PERSON, digest_size=32).digest()
