"""sealing.py: what is kept of sensitive operations, and the values that stand for it in receipts."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_decrypt

from holdgate.receipt import input_digest
from holdgate.sealing import (
    Kept,
    KeptAnswer,
    SealError,
    Stored,
    commitment,
    never_kept,
    open_answer,
    open_sealed,
    seal,
    seal_answer,
)

SALT = bytes(range(16))
KEPT = Kept(target=b"/fhir/R4/Patient?name=Doe", inputs=b'{"v":1}')


def spoil(damage: str, data: bytearray, key: bytearray) -> None:
    match damage:
        case "key":
            key[31] ^= 1
        case "nonce":
            data[0] ^= 1
        case "text":
            data[24] ^= 1
        case "tag":
            data[-1] ^= 1
        case "cut":
            del data[-1]
        case "empty":
            data.clear()
        case _:
            raise ValueError(damage)


@given(
    target=st.binary(min_size=1).filter(lambda b: b"\n" not in b), inputs=st.none() | st.binary(min_size=1)
)
def test_pv1_what_was_sealed_opens(target: bytes, inputs: bytes | None) -> None:
    kept = Kept(target=target, inputs=inputs)
    sealed = seal("rcpt_1", kept, SALT, secrets.token_bytes)
    assert open_sealed("rcpt_1", sealed.data, sealed.key) == kept


@pytest.mark.parametrize("damage", ["receipt", "key", "nonce", "text", "tag", "cut", "empty"])
def test_pv1_and_with_nothing_else(damage: str) -> None:
    sealed = seal("rcpt_1", KEPT, SALT, secrets.token_bytes)
    data, key = bytearray(sealed.data), bytearray(sealed.key)
    receipt = "rcpt_2" if damage == "receipt" else "rcpt_1"
    if damage != "receipt":
        spoil(damage, data, key)
    with pytest.raises(SealError):
        open_sealed(receipt, bytes(data), bytes(key))


def test_pv1_it_is_xchacha20_poly1305_as_specified() -> None:
    sealed = seal("rcpt_1", KEPT, SALT, secrets.token_bytes)
    text = crypto_aead_xchacha20poly1305_ietf_decrypt(
        sealed.data[24:], b"rcpt_1", sealed.data[:24], sealed.key
    )
    assert text == b'/fhir/R4/Patient?name=Doe\n{"v":1}'


def test_pv2_keys_and_nonces_are_drawn_anew() -> None:
    made = [seal("rcpt_1", KEPT, secrets.token_bytes(16), secrets.token_bytes) for _ in range(50)]
    for values in ([s.key for s in made], [s.data[:24] for s in made], [s.salt for s in made]):
        assert len(set(values)) == 50
    assert "salt" not in repr(made[0]) and made[0].key.hex() not in repr(made[0])


def test_pv2_of_answers_too() -> None:
    made = [seal_answer("rcpt_1", b"x", b"asker", secrets.token_bytes) for _ in range(50)]
    for values in ([s.key for s in made], [s.data[:24] for s in made], [s.data[24:] for s in made]):
        assert len(set(values)) == 50
    assert made[0].key.hex() not in repr(made[0])


@given(answer=st.binary(), asker=st.binary())
def test_pv4_a_kept_answer_opens_for_its_asker(answer: bytes, asker: bytes) -> None:
    kept = seal_answer("rcpt_1", answer, asker, secrets.token_bytes)
    assert open_answer("rcpt_1", kept, asker) == answer


@pytest.mark.parametrize(
    "damage", ["receipt", "asker", "key", "nonce", "text", "tag", "cut", "empty", "sealed"]
)
def test_pv4_and_for_nobody_else(damage: str) -> None:
    kept = seal_answer("rcpt_1", b"the answer", b"asker", secrets.token_bytes)
    receipt, asker, data, key = "rcpt_1", b"asker", bytearray(kept.data), bytearray(kept.key)
    match damage:
        case "receipt":
            receipt = "rcpt_2"
        case "asker":
            asker = b"another"
        case "sealed":  # as an input is: the key as it is stored opens nothing
            data = bytearray(seal("rcpt_1", KEPT, SALT, lambda size: bytes(kept.key[:size])).data)
        case _:
            spoil(damage, data, key)
    with pytest.raises(SealError):
        open_answer(receipt, KeptAnswer(key=bytes(key), data=bytes(data)), asker)


def test_pv4_it_is_xchacha20_poly1305_under_a_key_derived_as_specified() -> None:
    kept = seal_answer("rcpt_1", b"the answer", b"asker", secrets.token_bytes)
    parts = (len(part).to_bytes(8, "big") + part for part in (b"rcpt_1", b"asker"))
    key = hmac.digest(kept.key, b"holdgate-answer-v1" + b"".join(parts), "sha256")
    text = crypto_aead_xchacha20poly1305_ietf_decrypt(kept.data[24:], b"rcpt_1", kept.data[:24], key)
    assert text == b"the answer"


def test_pv3_values_are_keyed_by_the_salt() -> None:
    body = hashlib.sha256(b"{}").digest()
    parts = [b"PUT", b"fhir.example.org:443", b"/fhir/R4/Patient/1", body]
    preimage = b"holdgate-commitment-v1" + b"".join(len(p).to_bytes(8, "big") + p for p in parts)
    facts = {"method": "PUT", "destination": "fhir.example.org:443", "target": parts[2], "body_sha256": body}
    said = commitment(SALT, **facts)  # type: ignore[arg-type]
    assert said == "hmac-sha256:" + hmac.new(SALT, preimage, "sha256").hexdigest()
    assert said != commitment(SALT[::-1], **facts)  # type: ignore[arg-type]
    preimage = b"holdgate-input-v1" + (7).to_bytes(8, "big") + b'{"v":1}'
    assert input_digest(b'{"v":1}', SALT) == "hmac-sha256:" + hmac.new(SALT, preimage, "sha256").hexdigest()


def test_destroyed_secrets_open_nothing() -> None:
    sealed = seal("rcpt_1", KEPT, SALT, secrets.token_bytes)
    whole = Stored(data=sealed.data, salt=SALT, key=sealed.key)
    assert whole.open("rcpt_1") == KEPT and whole.has_salt and whole.has_key
    for data in (None, sealed.data):
        gone = Stored(data=data, salt=SALT, key=bytes(32))
        assert gone.open("rcpt_1") is None and not gone.has_key
    assert not Stored(data=None, salt=bytes(16), key=bytes(32)).has_salt


def test_what_an_older_version_did_not_keep() -> None:
    keyed, plain = "hmac-sha256:00", "sha256:00"
    assert never_kept({"request": {"digest": keyed}, "input_digest": plain})
    assert not never_kept({"request": {"digest": keyed}, "input_digest": keyed})
    assert not never_kept({"request": {"digest": plain}, "input_digest": plain})


# --- vectors: what is stored is what the program writes, and what SPEC.md alone comes to ---

VECTORS = Path(__file__).parent / "vectors"
sys.path.insert(0, str(VECTORS))
import regenerate_sealing  # noqa: E402  (a script beside its vectors, not a module)


def _stored(name: str) -> dict[str, dict[str, str]]:
    rows: dict[str, dict[str, str]] = json.loads((VECTORS / "sealing" / name).read_text())
    return rows


def _preimage(domain: bytes, *parts: bytes) -> bytes:
    return domain + b"".join(len(part).to_bytes(8, "big") + part for part in parts)


def test_the_vectors_are_what_the_program_writes() -> None:
    stored = {path.name: path.read_text() for path in (VECTORS / "sealing").iterdir()}
    assert stored == regenerate_sealing.files()


@pytest.mark.parametrize("row", _stored("requests.json").values(), ids=_stored("requests.json"))
def test_a_program_that_read_the_specification_comes_to_the_same(row: dict[str, str]) -> None:
    salt, sealed = bytes.fromhex(row["salt"]), bytes.fromhex(row["sealed"])
    body = hashlib.sha256(bytes.fromhex(row["body"])).digest()
    parts = (row["method"].encode(), row["destination"].encode(), row["target"].encode(), body)
    text = hmac.new(salt, _preimage(b"holdgate-commitment-v1", *parts), "sha256").hexdigest()
    assert row["commitment"] == "hmac-sha256:" + text
    if row["inputs"]:
        text = hmac.new(salt, _preimage(b"holdgate-input-v1", row["inputs"].encode()), "sha256").hexdigest()
        assert row["input_digest"] == "hmac-sha256:" + text
    opened = crypto_aead_xchacha20poly1305_ietf_decrypt(
        sealed[24:], row["receipt"].encode(), sealed[:24], bytes.fromhex(row["key"])
    )
    assert opened == row["target"].encode() + b"\n" + row["inputs"].encode()


@pytest.mark.parametrize("row", _stored("params.json").values(), ids=_stored("params.json"))
def test_a_keyed_parameter_is_as_specified(row: dict[str, str]) -> None:
    parts = (row["map"].encode(), row["parameter"].encode(), row["value"].encode())
    text = hmac.new(
        bytes.fromhex(row["fleet_key"]), _preimage(b"holdgate-param-v1", *parts), "sha256"
    ).hexdigest()
    assert row["public"] == "hmac-sha256:" + text
