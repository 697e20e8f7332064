"""Keys on disk: `state_dir/keys/{receipt,log,fleet}.key`, private, one purpose each.

A key file is a JWK (RFC 8037, RFC 7517) with a `purpose`, so that one cannot be put in another's place. It
holds the secret (`d`), or names a key that a signer process holds (`key_id`). The public halves of every
receipt and log key are kept beside them for ever (`receipts.jwks.json`, `log.jwks.json`), with the indices
of the log that each is valid for: verifying needs no access to a secret. How keys change: keyring.py.

Invariants (tests/test_keys.py has one test named after each):
  F1  A key file that others may read, that is empty, or that is for another purpose is a ConfigError.
  F2  create_keys() never overwrites a key, and never leaves half a file behind.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from ..errors import ConfigError
from ..keyhistory import Purpose
from ..keys import (
    KeyDocumentError,
    KeySet,
    PublicKey,
    Signer,
    SigningKey,
    b64url,
    jwks,
    key_set,
    parse_jwks,
    unb64url,
)
from .durable import replace_file
from .private_file import read_private, write_new
from .sqlite_schema import DB_NAME

__all__ = [
    "Device",
    "Keys",
    "create_keys",
    "encode_key",
    "list_keys",
    "list_problems",
    "listed_keys",
    "load_fleet_key",
    "load_keys",
    "load_log_keys",
    "load_public_keys",
    "load_signer",
]

_FLEET: Final = "fleet"
_LOST: Final = (
    "missing, and the claims of the ledger beside it are named under it: with a new key, what was done once"
    " could be done again. Restore it from a backup, or begin with an empty state directory"
)
_LISTS: Final = {Purpose.RECEIPT: "receipts.jwks.json", Purpose.LOG: "log.jwks.json"}


class Device(Protocol):
    """Where keys are that this process does not hold."""

    @property
    def failing(self) -> bool:
        """Whether it could not be asked just now."""
        ...

    def signer(self, key_id: str, public: PublicKey | None) -> Signer:
        """The key of this name; None asks the device which one it is. Raises BackendError."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    receipt: Signer
    log: Signer
    fleet: bytes = field(repr=False)  # HMAC-SHA-256 key of sensitive digests, shared by a fleet


def create_keys(state_dir: Path) -> tuple[Path, ...]:
    """Make the key files that are missing; returns those made. Raises ConfigError."""
    folder = state_dir / "keys"
    made = []
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for purpose in (*Purpose, _FLEET):
            path = folder / f"{purpose}.key"
            if not path.exists():
                if purpose == _FLEET and (state_dir / DB_NAME).exists():
                    raise ConfigError(_LOST, file=str(path))
                write_new(path, _new_key(purpose), 0o600)
                made.append(path)
        for purpose, name in _LISTS.items():
            path = folder / name
            if not path.exists():
                key = load_signer(folder / f"{purpose}.key", purpose, None).public
                write_new(path, _document([key]), 0o644)
                made.append(path)
    except OSError as error:
        raise ConfigError(f"cannot write keys: {error}", file=str(folder)) from error
    return tuple(made)


def load_keys(state_dir: Path, device: Device | None = None) -> Keys:
    """The three keys of a node. Raises ConfigError."""
    folder = state_dir / "keys"
    receipt = load_signer(folder / "receipt.key", Purpose.RECEIPT, device)
    if (folder / _LISTS[Purpose.RECEIPT]).exists() and receipt.kid not in listed_keys(
        folder, Purpose.RECEIPT
    ):
        raise ConfigError("the receipt key is not listed here", file=str(folder / _LISTS[Purpose.RECEIPT]))
    return Keys(
        receipt=receipt,
        log=load_signer(folder / "log.key", Purpose.LOG, device),
        fleet=load_fleet_key(state_dir),
    )


def load_fleet_key(state_dir: Path) -> bytes:
    """The key of sensitive digests. Raises ConfigError."""
    return _secret(state_dir / "keys" / "fleet.key", _FLEET, "k")


def load_signer(path: Path, purpose: Purpose, device: Device | None) -> Signer:
    """The signing key of a key file. Raises ConfigError."""
    row = _read(path, purpose)
    if "key_id" not in row:
        return SigningKey(seed=_secret(path, purpose, "d"))
    if device is None:
        raise ConfigError(
            "this key is held by a signer process: write where it listens (`signer: {socket: PATH}`)",
            file=str(path),
        )
    try:
        return device.signer(row["key_id"], PublicKey(raw=unb64url(row["x"].encode("ascii"))))
    except (ValueError, KeyError, AttributeError, KeyDocumentError) as error:
        raise ConfigError(f"not a {purpose} key", file=str(path)) from error


# --- public halves ---


def load_public_keys(state_dir: Path) -> KeySet:
    """Every receipt key that this node ever signed with. Raises ConfigError."""
    return _load_list(state_dir, Purpose.RECEIPT)


def load_log_keys(state_dir: Path) -> KeySet:
    """Every log key that this node ever signed with. Raises ConfigError."""
    if not (state_dir / "keys" / _LISTS[Purpose.LOG]).exists():  # made by a version that had no such list
        return key_set([load_signer(state_dir / "keys" / "log.key", Purpose.LOG, None).public])
    return _load_list(state_dir, Purpose.LOG)


def listed_keys(folder: Path, purpose: Purpose) -> KeySet:
    """The list of public keys of a purpose; empty when there is none. Raises ConfigError."""
    path = folder / _LISTS[purpose]
    try:
        return parse_jwks(path.read_bytes())
    except FileNotFoundError:
        return key_set([])
    except (OSError, KeyDocumentError) as error:
        raise ConfigError(f"not a list of public keys: {error}", file=str(path)) from error


def list_keys(folder: Path, purpose: Purpose, keys: Iterable[PublicKey]) -> None:
    """Write the list, where it would be another one. Raises OSError."""
    path, document = folder / _LISTS[purpose], _document(keys)
    if not path.exists() or path.read_bytes() != document:
        replace_file(path, document)


def list_problems(state_dir: Path) -> tuple[str, ...]:
    """Which lists are not as they were written, be it in a byte that changes nothing. Raises ConfigError."""
    found = []
    for purpose, name in _LISTS.items():
        path = state_dir / "keys" / name
        if path.exists() and path.read_bytes() != _document(_load_list(state_dir, purpose).values()):
            found.append(f"keys/{name} is not as it was written")
    return tuple(found)


def _document(keys: Iterable[PublicKey]) -> bytes:
    return json.dumps(jwks(keys), indent=2).encode() + b"\n"


def _load_list(state_dir: Path, purpose: Purpose) -> KeySet:
    path = state_dir / "keys" / _LISTS[purpose]
    try:
        return parse_jwks(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read: {error.strerror}; run `holdgate init`", file=str(path)) from error
    except KeyDocumentError as error:
        raise ConfigError(str(error), file=str(path)) from error


# --- private files ---


def encode_key(purpose: Purpose, public: PublicKey, *, secret: bytes = b"", key_id: str = "") -> bytes:
    """The content of a key file: with the secret, or with the name that a signer process knows it by."""
    held = {"key_id": key_id} if key_id else {"d": b64url(secret).decode()}
    return json.dumps({"purpose": purpose.value, **public.jwk, **held}, indent=2).encode() + b"\n"


def _new_key(purpose: str) -> bytes:
    secret = secrets.token_bytes(32)
    if purpose == _FLEET:
        row = {"purpose": purpose, "kty": "oct", "k": b64url(secret).decode()}
        return json.dumps(row, indent=2).encode() + b"\n"
    return encode_key(Purpose(purpose), SigningKey(seed=secret).public, secret=secret)


def _read(path: Path, purpose: str) -> Mapping[str, Any]:
    try:
        data = read_private(path, "this key")
    except OSError as error:
        raise ConfigError(
            f"cannot read key: {error.strerror}; run `holdgate init`", file=str(path)
        ) from error
    if not data:
        raise ConfigError("this key file is empty; remove it and run `holdgate init`", file=str(path))
    try:
        row = json.loads(data)
        if not isinstance(row, dict) or row["purpose"] != purpose:
            raise ValueError("another purpose")
    except (ValueError, KeyError) as error:
        raise ConfigError(f"not a {purpose} key", file=str(path)) from error
    return row


def _secret(path: Path, purpose: str, member: str) -> bytes:
    row = _read(path, purpose)
    try:
        secret = unb64url(row[member].encode("ascii"))
        if len(secret) != 32 or (purpose != _FLEET and SigningKey(seed=secret).kid != row["kid"]):
            raise ValueError("secret and public half differ")
    except (ValueError, KeyError, AttributeError) as error:
        raise ConfigError(f"not a {purpose} key", file=str(path)) from error
    return secret
