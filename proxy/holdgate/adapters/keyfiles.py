"""Keys on disk: `state_dir/keys/{receipt,log,fleet}.key`, private, one purpose each.

A key file is a JWK (RFC 8037, RFC 7517) with a `purpose`, so that one cannot be put in another's
place. The public halves of receipt keys are kept beside them for ever (`receipts.jwks.json`):
verifying needs no access to a secret.

Invariants (tests/test_keys.py has one test named after each):
  F1  A key file that others may read, that is empty, or that is for another purpose is a ConfigError.
  F2  create_keys() never overwrites a key, and never leaves half a file behind.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..keys import KeyDocumentError, KeySet, SigningKey, b64url, jwks, key_set, parse_jwks, unb64url
from .private_file import read_private, write_new

__all__ = ["Keys", "create_keys", "load_keys", "load_public_keys"]

_PURPOSES = ("receipt", "log", "fleet")
_PUBLIC = "receipts.jwks.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    receipt: SigningKey
    log: SigningKey
    fleet: bytes = field(repr=False)  # HMAC-SHA-256 key of sensitive digests, shared by a fleet


def create_keys(state_dir: Path) -> tuple[Path, ...]:
    """Make the key files that are missing; returns those made. Raises ConfigError."""
    folder = state_dir / "keys"
    made = []
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for purpose in _PURPOSES:
            path = folder / f"{purpose}.key"
            if not path.exists():
                write_new(path, _encode(purpose, secrets.token_bytes(32)), 0o600)
                made.append(path)
        public = folder / _PUBLIC
        if not public.exists():
            key = _signing_key(folder, "receipt").public
            write_new(public, json.dumps(jwks([key]), indent=2).encode() + b"\n", 0o644)
            made.append(public)
    except OSError as error:
        raise ConfigError(f"cannot write keys: {error}", file=str(folder)) from error
    return tuple(made)


def load_keys(state_dir: Path) -> Keys:
    """The three keys of a node. Raises ConfigError."""
    folder = state_dir / "keys"
    return Keys(
        receipt=_signing_key(folder, "receipt"),
        log=_signing_key(folder, "log"),
        fleet=_secret(folder / "fleet.key", "fleet"),
    )


def load_public_keys(state_dir: Path) -> KeySet:
    """Every receipt key that this node ever signed with. Raises ConfigError."""
    path = state_dir / "keys" / _PUBLIC
    try:
        return parse_jwks(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read: {error.strerror}; run `holdgate init`", file=str(path)) from error
    except KeyDocumentError as error:
        raise ConfigError(str(error), file=str(path)) from error


def _signing_key(folder: Path, purpose: str) -> SigningKey:
    key = SigningKey(seed=_secret(folder / f"{purpose}.key", purpose))
    if purpose == "receipt" and (folder / _PUBLIC).exists():
        known = _listed(folder / _PUBLIC)
        if key.kid not in known:
            raise ConfigError("the receipt key is not listed here", file=str(folder / _PUBLIC))
    return key


def _listed(path: Path) -> KeySet:
    try:
        return key_set(parse_jwks(path.read_bytes()).values())
    except (OSError, KeyDocumentError) as error:
        raise ConfigError(f"not a list of public keys: {error}", file=str(path)) from error


def _secret(path: Path, purpose: str) -> bytes:
    try:
        data = read_private(path, "this key")
    except OSError as error:
        raise ConfigError(
            f"cannot read key: {error.strerror}; run `holdgate init`", file=str(path)
        ) from error
    if not data:
        raise ConfigError("this key file is empty; remove it and run `holdgate init`", file=str(path))
    try:
        return _decode(purpose, json.loads(data))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"not a {purpose} key", file=str(path)) from error


def _encode(purpose: str, secret: bytes) -> bytes:
    text = b64url(secret).decode()
    row: dict[str, str | int] = {"purpose": purpose}
    if purpose == "fleet":
        row |= {"kty": "oct", "k": text}
    else:
        row |= {**SigningKey(seed=secret).public.jwk, "d": text}
    return json.dumps(row, indent=2).encode() + b"\n"


def _decode(purpose: str, row: Mapping[str, Any]) -> bytes:
    if row["purpose"] != purpose:
        raise ValueError("another purpose")
    secret = unb64url(row["k" if purpose == "fleet" else "d"].encode("ascii"))
    if len(secret) != 32 or (purpose != "fleet" and SigningKey(seed=secret).kid != row["kid"]):
        raise ValueError("secret and public half differ")
    return secret
