"""What is kept of a decision on a sensitive operation: sealed under its own key, so that it can be destroyed.

    salt, key, nonce (random) + target, input  ->  Sealed(salt, key, data)  ->  back, or never again

`data` is XChaCha20-Poly1305 under `key`, with the receipt's id as associated data. The store keeps salt and
key in a table of their own; overwriting them leaves a receipt that still verifies and says nothing more.
A receipt has two values under `salt`: `request.commitment`, and receipt.py's `input_digest` (proxy/SPEC.md).

    key, nonce (random) + answer, who asked for what  ->  KeptAnswer(key, data)  ->  for that asker, or never

A kept answer (recall.py) is sealed under a key that is derived from the one that the store keeps and from the
request with its credential: whoever has the ledger, and not the agent's credential, cannot open it.

Invariants (tests/test_sealing.py has one test named after each):
  PV1  What seal() made opens with its own key under its own receipt id, and with nothing else.
  PV2  No two seals share a salt, key or nonce: all of them are drawn anew.
  PV3  Without the salt neither commitment nor input digest can be computed from the values they stand for.
  PV4  A kept answer opens under its own receipt id for the asker that it was sealed for, and for nobody else.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from nacl import bindings
from nacl.exceptions import CryptoError

from .digest import framed
from .errors import HoldgateError

__all__ = [
    "KEY_BYTES",
    "SALT_BYTES",
    "Kept",
    "KeptAnswer",
    "SealError",
    "Sealed",
    "Stored",
    "commitment",
    "never_kept",
    "open_answer",
    "open_sealed",
    "seal",
    "seal_answer",
]

SALT_BYTES: Final = 16
KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 24
_COMMITMENT: Final = b"holdgate-commitment-v1"
_ANSWER: Final = b"holdgate-answer-v1"


class SealError(HoldgateError):
    """Sealed bytes that do not open: damaged, edited, or under another key or receipt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """What the store keeps beside the receipt of a sensitive operation."""

    salt: bytes = field(repr=False)
    key: bytes = field(repr=False)
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What sealed bytes hold."""

    target: bytes = field(repr=False)  # path and query as they were sent
    inputs: bytes | None = field(repr=False)  # canonical decision input; None: the gate did not run


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptAnswer:
    """An answer as the store keeps it. Without its asker it is noise."""

    key: bytes = field(repr=False)
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """The sealed side of one receipt as the store has it now. Overwritten secrets are zeros."""

    data: bytes | None
    salt: bytes = field(repr=False)
    key: bytes = field(repr=False)

    @property
    def has_salt(self) -> bool:
        return any(self.salt)

    @property
    def has_key(self) -> bool:
        return any(self.key)

    def open(self, receipt_id: str) -> Kept | None:
        """What is kept; None when it was destroyed. Raises SealError."""
        if self.data is None or not self.has_key:
            return None
        return open_sealed(receipt_id, self.data, self.key)


def seal(receipt_id: str, kept: Kept, salt: bytes, draw: Callable[[int], bytes]) -> Sealed:
    """Seal under a fresh key. `draw` gives that many random bytes."""
    key, nonce = draw(KEY_BYTES), draw(_NONCE_BYTES)
    # A target never holds a line feed (http1_grammar.py), so the first one ends it.
    text = kept.target + b"\n" + (kept.inputs or b"")
    body = bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(text, receipt_id.encode(), nonce, key)
    return Sealed(salt=salt, key=key, data=nonce + body)


def open_sealed(receipt_id: str, data: bytes, key: bytes) -> Kept:
    """What was sealed. Raises SealError."""
    nonce, body = data[:_NONCE_BYTES], data[_NONCE_BYTES:]
    try:
        text = bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(body, receipt_id.encode(), nonce, key)
    except (CryptoError, ValueError, TypeError) as error:
        raise SealError("the sealed input does not open") from error
    target, _, inputs = text.partition(b"\n")
    return Kept(target=target, inputs=inputs or None)


def seal_answer(receipt_id: str, answer: bytes, asker: bytes, draw: Callable[[int], bytes]) -> KeptAnswer:
    """Seal the answer to the PERMIT `receipt_id` for `asker`: its request and credential, in one spelling."""
    key, nonce = draw(KEY_BYTES), draw(_NONCE_BYTES)
    body = bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(
        answer, receipt_id.encode(), nonce, _derived(key, receipt_id, asker)
    )
    return KeptAnswer(key=key, data=nonce + body)


def open_answer(receipt_id: str, kept: KeptAnswer, asker: bytes) -> bytes:
    """What was sealed for this asker. Raises SealError."""
    nonce, body = kept.data[:_NONCE_BYTES], kept.data[_NONCE_BYTES:]
    key = _derived(kept.key, receipt_id, asker)
    try:
        return bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(body, receipt_id.encode(), nonce, key)
    except (CryptoError, ValueError, TypeError) as error:
        raise SealError("the kept answer does not open for this asker") from error


def _derived(key: bytes, receipt_id: str, asker: bytes) -> bytes:
    return hmac.digest(key, framed(_ANSWER, [receipt_id.encode(), asker]), "sha256")


def commitment(salt: bytes, *, method: str, destination: str, target: bytes, body_sha256: bytes) -> str:
    """`request.commitment`: what the request was, for whoever is given the salt."""
    parts = [method.encode("ascii"), destination.encode(), target, body_sha256]
    return "hmac-sha256:" + hmac.digest(salt, framed(_COMMITMENT, parts), "sha256").hex()


def never_kept(statement: Mapping[str, Any]) -> bool:
    """Whether a decision was recorded without its input: sensitive, and before inputs were sealed."""
    digest = statement["request"].get("digest", "")
    return bool(digest.startswith("hmac-") and not statement["input_digest"].startswith("hmac-"))
