"""Ed25519 keys: a seed becomes a signer with a stable name, and documents that publish its public half.

The name (`kid`) is the RFC 7638 thumbprint, so a key cannot be published under another key's name. A JWK
may have three members of ours, which say where in the log its signatures count (keyhistory.py):
`valid_from_index`, `valid_before_index`, `revoked_from_index`.
One key per purpose: receipts, log checkpoints. Files are in adapters/keyfiles.py.

Invariants (tests/test_keys.py has one test named after each):
  K1  A kid is the thumbprint of its key; a document that says otherwise is refused.
  K2  Only OKP/Ed25519 keys come out of a JWKS, whatever `alg` says.
  K3  No repr or document holds a secret.
  K4  What a key signed counts from its first index, below its last and below its revocation, never beyond.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Protocol

from nacl import bindings
from nacl.exceptions import CryptoError

from .errors import HoldgateError

__all__ = [
    "NEVER",
    "KeyDocumentError",
    "KeySet",
    "PublicKey",
    "Signer",
    "SigningKey",
    "b64url",
    "jwks",
    "key_set",
    "parse_jwks",
    "trigguard_keys",
    "unb64url",
]

NEVER: Final = 2**63  # above every index of a log

# kid -> key. A plain mapping: key sets are merged, filtered and looked up, nothing else.
type KeySet = Mapping[str, PublicKey]

_TO_URL: Final = bytes.maketrans(b"+/", b"-_")
_FROM_URL: Final = bytes.maketrans(b"-_+/=", b"+/!!!")  # other alphabets become no base64 at all
_PADDING: Final = (b"", b"", b"==", b"=")
_LAST: Final = (b"", b"", b"AQgw", b"AEIMQUYcgkosw048")  # by length modulo 4
_SPKI_ED25519: Final = bytes.fromhex("302a300506032b6570032100")  # RFC 8410: all of it but the key


class KeyDocumentError(HoldgateError):
    """A key or key document is not what it must be."""


def b64url(data: bytes) -> bytes:
    """Base64url without padding (RFC 7515)."""
    return binascii.b2a_base64(data, newline=False).rstrip(b"=").translate(_TO_URL)


def unb64url(text: bytes) -> bytes:
    """Strict inverse of b64url: no padding, no white space, no stray trailing bits. Raises ValueError."""
    rest = len(text) % 4
    # The last character may hold bits that a reader drops: they must be 0.
    if rest == 1 or (rest and text[-1] not in _LAST[rest]):
        raise ValueError("not canonical base64url")
    # What is text inside has hardly ever a character in which the alphabets differ.
    if b"-" in text or b"_" in text or b"+" in text or b"/" in text or b"=" in text:
        text = text.translate(_FROM_URL)
    try:
        return binascii.a2b_base64(text + _PADDING[rest] if rest else text, strict_mode=True)
    except binascii.Error as error:
        raise ValueError("not base64url") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicKey:
    raw: bytes
    # Where in the log its signatures count: the log says which key was in use where, not the time that a
    # receipt claims.
    first_index: int = 0
    end_index: int = NEVER  # the first one that is another key's
    revoked_from_index: int = NEVER  # it was lost: what it signed from here on counts no more
    kid: str = field(init=False)

    def __post_init__(self) -> None:
        if len(self.raw) != 32:
            raise KeyDocumentError("an Ed25519 public key has 32 bytes")
        if not 0 <= self.first_index < self.end_index <= NEVER or not 0 <= self.revoked_from_index <= NEVER:
            raise KeyDocumentError("where a key is valid is not a range of the log's indices")
        object.__setattr__(self, "kid", _thumbprint(self.raw))

    def verifies(self, message: bytes, signature: bytes) -> bool:
        """Whether `signature` is this key's over `message` (malleable forms and weak keys are not)."""
        if len(signature) != 64:
            return False
        try:
            bindings.crypto_sign_open(signature + message, self.raw)
        except (CryptoError, ValueError):
            return False
        return True

    def refuses(self, index: int) -> str:
        """Why its signature does not count at this index of the log; "" when it does."""
        if index >= self.revoked_from_index:
            return f"its key was revoked from index {self.revoked_from_index} on, and this is {index}"
        if not self.first_index <= index < self.end_index:
            last = "" if self.end_index == NEVER else f" to {self.end_index - 1}"
            return f"its key signs from index {self.first_index}{last}, and this is {index}"
        return ""

    @property
    def jwk(self) -> dict[str, str | int]:
        x = b64url(self.raw).decode()
        row: dict[str, str | int] = {
            "alg": "EdDSA",
            "crv": "Ed25519",
            "kid": self.kid,
            "kty": "OKP",
            "use": "sig",
            "x": x,
        }
        for name, value, default in (
            ("valid_from_index", self.first_index, 0),
            ("valid_before_index", self.end_index, NEVER),
            ("revoked_from_index", self.revoked_from_index, NEVER),
        ):
            if value != default:
                row[name] = value
        return row

    @property
    def pem(self) -> str:
        body = base64.b64encode(_SPKI_ED25519 + self.raw).decode()
        return f"-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n"


class Signer(Protocol):
    """A key that signs: in this process (SigningKey), or held by another one (adapters/signer_socket.py)."""

    @property
    def public(self) -> PublicKey: ...

    @property
    def kid(self) -> str: ...

    def sign(self, message: bytes) -> bytes:
        """The 64-byte Ed25519 signature. Raises BackendError when it cannot be had now."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKey:
    seed: bytes = field(repr=False)
    public: PublicKey = field(init=False)
    _secret: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.seed) != 32:
            raise KeyDocumentError("an Ed25519 seed has 32 bytes")
        raw, secret = bindings.crypto_sign_seed_keypair(self.seed)
        object.__setattr__(self, "public", PublicKey(raw=raw))
        object.__setattr__(self, "_secret", secret)

    @property
    def kid(self) -> str:
        return self.public.kid

    def sign(self, message: bytes) -> bytes:
        """The 64-byte signature. Deterministic (RFC 8032)."""
        return bindings.crypto_sign(message, self._secret)[:64]


def _thumbprint(raw: bytes) -> str:
    preimage = b'{"crv":"Ed25519","kty":"OKP","x":"' + b64url(raw) + b'"}'
    return b64url(hashlib.sha256(preimage).digest()).decode()


def key_set(keys: Iterable[PublicKey]) -> KeySet:
    return MappingProxyType({key.kid: key for key in keys})


def jwks(keys: Iterable[PublicKey]) -> dict[str, Any]:
    """The JWK Set (RFC 7517) that publishes `keys`."""
    return {"keys": [key.jwk for key in keys]}


def trigguard_keys(authority: str, keys: Iterable[PublicKey]) -> dict[str, Any]:
    """The TrigGuard key document, `/.well-known/trigguard/keys.json`."""
    rows = [
        {"keyId": key.kid, "algorithm": "Ed25519", "publicKeyPem": key.pem, "status": _status(key)}
        for key in keys
    ]
    return {"protocol": "TrigGuard", "authority": authority, "keys": rows}


def _status(key: PublicKey) -> str:
    if key.revoked_from_index != NEVER:
        return "revoked"
    return "active" if key.end_index == NEVER else "retired"


def parse_jwks(document: bytes) -> KeySet:
    """The Ed25519 keys of a JWK Set; other key types are skipped. Raises KeyDocumentError."""
    try:
        rows = json.loads(document)["keys"]
        keys = [_parse_jwk(row) for row in rows if row["kty"] == "OKP" and row["crv"] == "Ed25519"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise KeyDocumentError("not a JWK Set") from error
    if not keys:
        raise KeyDocumentError("the JWK Set has no Ed25519 key")
    return key_set(keys)


def _parse_jwk(row: Mapping[str, Any]) -> PublicKey:
    if row.get("alg", "EdDSA") not in ("EdDSA", "Ed25519") or row.get("use", "sig") != "sig":
        raise KeyDocumentError("an Ed25519 key that is not for EdDSA signatures")
    first, end = row.get("valid_from_index", 0), row.get("valid_before_index", NEVER)
    revoked = row.get("revoked_from_index", NEVER)
    if not all(type(value) is int for value in (first, end, revoked)):
        raise KeyDocumentError("revoked_from_index and valid_..._index are indices of the log")
    key = PublicKey(
        raw=unb64url(row["x"].encode("ascii")), first_index=first, end_index=end, revoked_from_index=revoked
    )
    if row.get("kid", key.kid) != key.kid:
        raise KeyDocumentError("a kid is not the thumbprint of its key")
    return key
