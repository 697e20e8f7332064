"""OER v1 tokens: the vendor's seven vectors, and the negative that they lack, a signed DENY.

    b64url(payload) "." b64url(Ed25519 over the payload's bytes)

Holdgate issues no such token and takes none for a decision; both are tests here. `refusal` is the strict
verifier of proxy/SPEC.md, for whoever has to read one. The vectors are made again from their published
parameters, and the digest of the whole file shows that they are the vendor's, byte for byte.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from itertools import permutations
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evidence import KEYS, OTHER_KEY, RECEIPT_KEY, T0, permit_statement
from holdgate.content.strictjson import parse_json
from holdgate.errors import HoldgateError, Outcome, Reason
from holdgate.jcs import dumps
from holdgate.keys import PublicKey, Signer, SigningKey, b64url, unb64url
from holdgate.receipt import sign
from holdgate.remote_gate import RemoteError, RemoteProtocol, read_answer
from test_remote_gate import ASKED

# Parameters of the vendor's gen-oer-fixtures, and what its file and key are (facts: receipts, 1.4).
SEED: Final = hashlib.sha256(b"trigguard-oer-conformance-v1-fixed-seed").digest()
FILE: Final = "0def38d73b0cddf228ce116ed3ecc5c5b67cdbdf6bbfd99f54eb9a927efcb283"
PUBLIC: Final = "4e41194afd58ba6cecf835a63412a8fce35b96b131515a4bb25e1d56719bcd95"
ISSUER: Final = SigningKey(seed=SEED)
ACTION: Final = b'{"amount":100,"currency":"USD"}'
SURFACE: Final = "fin.transfer"
NOW: Final = 2_000_001_000

_FIELDS: Final[Mapping[str, type]] = {
    "ahsh": str,
    "ctx": str,
    "dcsn": str,
    "exp": int,
    "iat": int,
    "pid": str,
    "rid": str,
    "sid": str,
    "v": int,
}
_PAYLOAD: Final[Mapping[str, Any]] = {
    "ahsh": hashlib.sha256(ACTION).hexdigest(),
    "ctx": "oer_conf",
    "dcsn": "PERMIT",
    "exp": 4_000_000_000,
    "iat": 2_000_000_000,
    "pid": hashlib.sha256(b"pid-placeholder").hexdigest(),
    "rid": "conf_vec_1",
    "sid": SURFACE,
    "v": 1,
}


# --- the strict verifier ---


def refusal(token: str, action: bytes, surface: str, key: PublicKey, now: int) -> str:
    """Why this token does not authorise this action; "" when it does.

    `dcsn` comes last: who is told "not a PERMIT" knows that everything else held.
    """
    try:
        said = _payload(token, key)
        meant = hashlib.sha256(dumps(parse_json(action))).hexdigest()
    except (ValueError, HoldgateError) as error:
        return str(error)
    wrong = {
        "another version": said["v"] != 1,
        "not a time in which it counts": not said["iat"] <= now < said["exp"],
        "another surface": said["sid"] != surface,
        "another action": said["ahsh"] != meant,
        "not a PERMIT": said["dcsn"] != "PERMIT",
    }
    return next((reason for reason, is_so in wrong.items() if is_so), "")


def _payload(token: str, key: PublicKey) -> dict[str, Any]:
    """Raises ValueError, HoldgateError."""
    parts = token.encode("utf-8", "replace").split(b".")
    if len(parts) != 2:
        raise ValueError("not two parts")
    payload, signature = (unb64url(part) for part in parts)
    if not key.verifies(payload, signature):
        raise ValueError("the signature is wrong")
    said = parse_json(payload)
    if not isinstance(said, dict) or {name: type(value) for name, value in said.items()} != _FIELDS:
        raise ValueError("not the nine fields")
    return said


# --- vectors ---


def token(key: Signer = ISSUER, *, without: str = "", **changes: Any) -> str:
    rows = {name: value for name, value in {**_PAYLOAD, **changes}.items() if name != without}
    return wire(json.dumps(rows, separators=(",", ":")).encode(), key)


def wire(payload: bytes, key: Signer = ISSUER) -> str:
    return (b64url(payload) + b"." + b64url(key.sign(payload))).decode()


def _damaged() -> str:
    payload, _, signature = token().partition(".")
    raw = unb64url(signature.encode())
    return payload + "." + b64url(bytes([raw[0] ^ 0xFF]) + raw[1:]).decode()


# name -> token, surface asked for, now, why it is refused
VECTORS: Final[dict[str, tuple[str, str, int, str]]] = {
    "valid_receipt": (token(), SURFACE, NOW, ""),
    "invalid_signature": (_damaged(), SURFACE, NOW, "the signature is wrong"),
    "expired_receipt": (
        token(exp=2_000_000_100, rid="conf_vec_expired"),
        SURFACE,
        2_000_000_200,
        "not a time in which it counts",
    ),
    "surface_mismatch": (token(), "other.surface", NOW, "another surface"),
    "action_hash_mismatch": (token(ahsh="0" * 64, rid="conf_vec_ahsh"), SURFACE, NOW, "another action"),
    "action_hash_case_mismatch": (
        token(ahsh=_PAYLOAD["ahsh"].upper(), rid="conf_vec_ahsh_case"),
        SURFACE,
        NOW,
        "another action",
    ),
    "unknown_protocol_version": (token(v=2, rid="conf_vec_v2"), SURFACE, NOW, "another version"),
}


def test_the_vectors_are_the_vendors_byte_for_byte() -> None:
    rows = [
        {
            "name": name,
            "expected": "FAIL" if why else "PASS",
            "receipt": text,
            "expected_surface": surface,
            "now_unix": now,
        }
        for name, (text, surface, now, why) in VECTORS.items()
    ]
    document = {
        "suite": "OER-1",
        "description": "Deterministic OER v1 conformance vectors (Ed25519 seed fixed in gen-oer-fixtures).",
        "public_key_hex": ISSUER.public.raw.hex(),
        "action_json_b64": base64.b64encode(ACTION).decode(),
        "vectors": rows,
    }
    assert ISSUER.public.raw.hex() == PUBLIC
    assert hashlib.sha256(json.dumps(document, indent=2, sort_keys=True).encode()).hexdigest() == FILE


@pytest.mark.parametrize(("text", "surface", "now", "why"), VECTORS.values(), ids=VECTORS)
def test_a_vector_is_refused_for_what_is_wrong_with_it(text: str, surface: str, now: int, why: str) -> None:
    assert refusal(text, ACTION, surface, ISSUER.public, now) == why


UNDECIDED: dict[str, tuple[str, str]] = {
    "DENY": (token(dcsn="DENY"), "not a PERMIT"),
    "BLOCK": (token(dcsn="BLOCK"), "not a PERMIT"),
    "SILENCE": (token(dcsn="SILENCE"), "not a PERMIT"),
    "ESCALATE": (token(dcsn="ESCALATE"), "not a PERMIT"),
    "an unknown word": (token(dcsn="ALLOW"), "not a PERMIT"),
    "lower case": (token(dcsn="permit"), "not a PERMIT"),
    "a blank behind it": (token(dcsn="PERMIT "), "not a PERMIT"),
    "empty": (token(dcsn=""), "not a PERMIT"),
    "absent": (token(without="dcsn"), "not the nine fields"),
    "null": (token(dcsn=None), "not the nine fields"),
    "true": (token(dcsn=True), "not the nine fields"),
    "a list of it": (token(dcsn=["PERMIT"]), "not the nine fields"),
}


@pytest.mark.parametrize(("text", "why"), UNDECIDED.values(), ids=UNDECIDED)
def test_a_signed_token_that_says_no_permit_does_not_authorise(text: str, why: str) -> None:
    # The vendor's verifier never reads `dcsn`: everything that it does read is as in valid_receipt.
    assert refusal(text, ACTION, SURFACE, ISSUER.public, NOW) == why


def _twice() -> str:
    payload = json.dumps({**_PAYLOAD, "dcsn": "DENY"}, separators=(",", ":"))
    return wire((payload[:-1] + ',"dcsn":"PERMIT"}').encode())


DAMAGED: dict[str, str] = {
    "of another key": token(OTHER_KEY),
    "a decision twice": _twice(),
    "a tenth field": token(more="x"),
    "version true": token(v=True),
    "version 1.0": token(v=1.0),
    "exp as text": token(exp="4000000000"),
    "exp beyond what an integer holds": token(exp=1e300),
    "from the future": token(iat=NOW + 1),
    "expiring now": token(exp=NOW),
    "a list": wire(b"[]"),
    "no JSON": wire(b"PERMIT"),
    "padded": token() + "==",
    "three parts": token() + ".x",
    "one part": token().partition(".")[0],
    "empty": "",
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_what_is_no_token_of_this_issuer_does_not_authorise(text: str) -> None:
    assert refusal(text, ACTION, SURFACE, ISSUER.public, NOW)


@given(st.integers(0, len(token()) - 1), st.characters(min_codepoint=33, max_codepoint=126))
def test_no_other_character_anywhere_leaves_it_valid(at: int, put: str) -> None:
    changed = token()[:at] + put + token()[at + 1 :]
    assert (refusal(changed, ACTION, SURFACE, ISSUER.public, NOW) == "") == (changed == token())


# --- the product ---

_NO: Final[dict[str, Any]] = {"exp_us": 0, "replay_of": "", "via": "", "idempotency": None}
RECEIPTS: Final[dict[str, dict[str, Any]]] = {
    "permit": permit_statement(via=""),
    "deny": permit_statement(outcome=Outcome.DENY, reason=Reason.DENY_RULE, **_NO),
    "silence": permit_statement(outcome=Outcome.SILENCE, reason=Reason.NO_RULE_MATCHED, rules=(), **_NO),
}


@pytest.mark.parametrize("name", RECEIPTS)
def test_no_part_of_a_receipt_is_a_token(name: str) -> None:
    # A receipt has `"v":1` as a token has: only what is signed keeps its payload from being one.
    parts = sign(RECEIPTS[name], RECEIPT_KEY).decode().split(".")
    for pair in permutations(parts, 2):
        key = RECEIPT_KEY.public
        assert refusal(".".join(pair), ACTION, SURFACE, key, NOW) == "the signature is wrong"
        payload, signature = (unb64url(part.encode()) for part in pair)
        assert not key.verifies(payload, signature)  # what every OER verifier asks


TOKENS = {"a valid one": token(RECEIPT_KEY), "a signed DENY": token(RECEIPT_KEY, dcsn="DENY")}


@pytest.mark.parametrize("text", TOKENS.values(), ids=TOKENS)
@pytest.mark.parametrize("protocol", RemoteProtocol)
def test_a_remote_gate_cannot_permit_with_a_token(protocol: RemoteProtocol, text: str) -> None:
    # Signed with a key that the gate's document names, and still no word of a decision.
    body = json.dumps({"receipt": text, "surface": "payments.refund"}).encode()
    with pytest.raises(RemoteError):
        read_answer(protocol, 200, body, ASKED, KEYS, now_us=T0)
