"""keys.py and adapters/keyfiles.py: names, documents, and files that only their owner reads."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwk import OKPKey

from evidence import OTHER_KEY, RECEIPT_KEY
from holdgate.adapters.keyfiles import create_keys, load_keys, load_public_keys
from holdgate.errors import ConfigError
from holdgate.keys import (
    KeyDocumentError,
    PublicKey,
    SigningKey,
    b64url,
    jwks,
    parse_jwks,
    trigguard_keys,
    unb64url,
)


def _document(**changes: Any) -> bytes:
    return json.dumps({"keys": [RECEIPT_KEY.public.jwk | changes]}).encode()


# --- base64url ---


@given(st.binary(max_size=40))
def test_base64url_goes_there_and_back(data: bytes) -> None:
    assert b64url(data) == base64.urlsafe_b64encode(data).rstrip(b"=")
    assert unb64url(b64url(data)) == data


@pytest.mark.parametrize("text", [b"QQ==", b"QR", b"Q", b"Q Q", b"QQ\n", b"+/8", b"Q.Q", b"QUJDR"])
def test_base64url_has_one_spelling(text: bytes) -> None:
    with pytest.raises(ValueError, match="base64url"):
        unb64url(text)


# --- signatures ---


def test_signatures_are_those_of_another_implementation() -> None:
    other = Ed25519PrivateKey.from_private_bytes(RECEIPT_KEY.seed)
    assert other.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw) == RECEIPT_KEY.public.raw
    assert RECEIPT_KEY.sign(b"message") == other.sign(b"message")


def test_a_signature_verifies_only_for_its_message_key_and_form() -> None:
    signature = RECEIPT_KEY.sign(b"message")
    assert RECEIPT_KEY.public.verifies(b"message", signature)
    assert not RECEIPT_KEY.public.verifies(b"messagf", signature)
    assert not OTHER_KEY.public.verifies(b"message", signature)
    assert not RECEIPT_KEY.public.verifies(b"message", signature[:-1])
    # The same signature with S + L: accepted by lax verifiers, which makes two receipts out of one.
    group_order = 2**252 + 27742317777372353535851937790883648493
    malleable = int.from_bytes(signature[32:], "little") + group_order
    assert not RECEIPT_KEY.public.verifies(b"message", signature[:32] + malleable.to_bytes(32, "little"))


def test_a_small_order_key_verifies_nothing() -> None:
    assert not PublicKey(raw=bytes([1]) + bytes(31)).verifies(b"m", bytes([1]) + bytes(63))


# --- documents ---


def test_k1_a_kid_is_the_thumbprint_that_others_compute() -> None:
    assert OKPKey.import_key({**RECEIPT_KEY.public.jwk}).thumbprint() == RECEIPT_KEY.kid
    assert parse_jwks(_document(kid=RECEIPT_KEY.kid)).keys() == {RECEIPT_KEY.kid}
    with pytest.raises(KeyDocumentError, match="thumbprint"):
        parse_jwks(_document(kid=OTHER_KEY.kid))


def test_k2_only_ed25519_signature_keys_are_taken() -> None:
    rows = [{"kty": "RSA", "crv": "Ed25519"}, {"kty": "OKP", "crv": "X25519"}, RECEIPT_KEY.public.jwk]
    assert set(parse_jwks(json.dumps({"keys": rows}).encode()).values()) == {RECEIPT_KEY.public}
    for change in ({"alg": "none"}, {"alg": "HS256"}, {"use": "enc"}, {"x": "QQ"}, {"x": 3}, {"kty": "oct"}):
        with pytest.raises(KeyDocumentError):
            parse_jwks(_document(**change))


@pytest.mark.parametrize(
    "document", [b"", b"[]", b"{}", b'{"keys":[]}', b'{"keys":{}}', b'{"keys":[1]}', b"\xff"]
)
def test_k2_a_document_without_keys_is_refused(document: bytes) -> None:
    with pytest.raises(KeyDocumentError):
        parse_jwks(document)


def test_k3_secrets_are_in_no_repr_and_no_document() -> None:
    shown = repr(RECEIPT_KEY) + json.dumps(jwks([RECEIPT_KEY.public]))
    assert RECEIPT_KEY.seed.hex() not in shown
    assert repr(RECEIPT_KEY.seed) not in shown
    assert b64url(RECEIPT_KEY.seed).decode() not in shown


def test_the_trigguard_document_has_pem_keys_that_others_load() -> None:
    document = trigguard_keys("edge-1", [RECEIPT_KEY.public])
    assert document.keys() == {"protocol", "authority", "keys"}
    row = document["keys"][0]
    loaded = load_pem_public_key(row["publicKeyPem"].encode())
    assert isinstance(loaded, Ed25519PublicKey)
    assert loaded.public_bytes(Encoding.Raw, PublicFormat.Raw) == RECEIPT_KEY.public.raw
    assert (row["keyId"], row["algorithm"]) == (RECEIPT_KEY.kid, "Ed25519")


@pytest.mark.parametrize("size", [0, 31, 33])
def test_keys_have_32_bytes(size: int) -> None:
    with pytest.raises(KeyDocumentError):
        PublicKey(raw=bytes(size))
    with pytest.raises(KeyDocumentError):
        SigningKey(seed=bytes(size))


# --- files ---


def test_created_keys_load_and_differ(tmp_path: Path) -> None:
    made = create_keys(tmp_path)
    keys = load_keys(tmp_path)
    assert {path.name for path in made} == {
        *("receipt.key", "log.key", "fleet.key"),
        *("receipts.jwks.json", "log.jwks.json"),
    }
    assert len({keys.receipt.public.raw, keys.log.public.raw, keys.fleet}) == 3
    assert load_public_keys(tmp_path).keys() == {keys.receipt.kid}
    for path in made:
        assert path.stat().st_mode & 0o777 == (0o644 if path.suffix == ".json" else 0o600)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
@pytest.mark.parametrize("name", ["receipt", "log", "fleet"])
def test_f1_a_key_that_others_may_read_is_refused(tmp_path: Path, name: str, mode: int) -> None:
    create_keys(tmp_path)
    path = tmp_path / "keys" / f"{name}.key"
    path.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600") as raised:
        load_keys(tmp_path)
    assert raised.value.file == str(path)


def test_f1_an_empty_missing_or_foreign_key_is_refused(tmp_path: Path) -> None:
    create_keys(tmp_path)
    folder = tmp_path / "keys"
    receipt, log = folder / "receipt.key", folder / "log.key"
    kept = receipt.read_bytes()
    receipt.write_bytes(log.read_bytes())
    with pytest.raises(ConfigError, match="not a receipt key"):
        load_keys(tmp_path)
    for broken in (b"{}", b"[]", b"nonsense", kept.replace(b'"kid": "', b'"kid": "x')):
        receipt.write_bytes(broken)
        with pytest.raises(ConfigError, match="not a receipt key"):
            load_keys(tmp_path)
    receipt.write_bytes(b"")
    with pytest.raises(ConfigError, match="empty"):
        load_keys(tmp_path)
    receipt.unlink()
    with pytest.raises(ConfigError, match="holdgate init"):
        load_keys(tmp_path)
    receipt.mkdir()
    with pytest.raises(ConfigError):
        load_keys(tmp_path)


def test_f1_a_receipt_key_that_is_not_published_is_refused(tmp_path: Path) -> None:
    create_keys(tmp_path)
    (tmp_path / "keys" / "receipts.jwks.json").write_text(json.dumps(jwks([OTHER_KEY.public])))
    with pytest.raises(ConfigError, match="not listed"):
        load_keys(tmp_path)
    (tmp_path / "keys" / "receipts.jwks.json").write_text("{}")
    with pytest.raises(ConfigError):
        load_public_keys(tmp_path)


def test_f2_existing_keys_are_never_overwritten(tmp_path: Path) -> None:
    create_keys(tmp_path)
    before = {path: hashlib.sha256(path.read_bytes()).digest() for path in (tmp_path / "keys").iterdir()}
    assert create_keys(tmp_path) == ()
    (tmp_path / "keys" / "log.key").unlink()
    assert [path.name for path in create_keys(tmp_path)] == ["log.key"]
    after = {path: hashlib.sha256(path.read_bytes()).digest() for path in (tmp_path / "keys").iterdir()}
    assert {path.name for path in before if before[path] != after[path]} == {"log.key"}


def test_f2_a_write_that_fails_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(ConfigError, match="No space"):
        create_keys(tmp_path)
    assert list((tmp_path / "keys").iterdir()) == []


# --- K4 ---


def test_k4_a_key_counts_in_its_range_and_below_its_revocation() -> None:
    key = replace(RECEIPT_KEY.public, first_index=3, end_index=9, revoked_from_index=7)
    counting = [index for index in range(12) if not key.refuses(index)]
    assert counting == [3, 4, 5, 6]
    assert "from index 3 to 8" in key.refuses(2)
    assert parse_jwks(json.dumps(jwks([key])).encode())[key.kid] == key


@pytest.mark.parametrize(
    "wrong",
    [
        {"valid_from_index": 4, "valid_before_index": 4},
        {"valid_from_index": -1},
        {"valid_before_index": "9"},
        {"valid_before_index": True},
        {"revoked_from_index": -1},
    ],
    ids=str,
)
def test_k4_a_range_that_is_none_is_refused(wrong: dict[str, Any]) -> None:
    document = json.dumps({"keys": [RECEIPT_KEY.public.jwk | wrong]}).encode()
    with pytest.raises(KeyDocumentError):
        parse_jwks(document)
