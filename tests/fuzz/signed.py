"""What is signed and read back: canonical JSON, receipts, key documents, checkpoints and proofs."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

import rfc8785

from evidence import KEYS, LOG_KEY, ORIGIN, RECEIPT_KEY
from fuzz.base import Target, must, split
from holdgate.cli.receipt_lines import jws_of
from holdgate.jcs import JcsError, dumps_input, loads_input_strict, loads_strict
from holdgate.keys import KeyDocumentError, b64url, jwks, parse_jwks, unb64url
from holdgate.note import sign_checkpoint, verify_checkpoint
from holdgate.receipt import TYP, ReceiptError, sign, verify
from holdgate.tlog import (
    EMPTY,
    TlogError,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    verify_consistency,
    verify_inclusion,
)

__all__ = ["TARGETS"]

RECEIPTS: Final = Path(__file__).resolve().parents[1] / "vectors" / "receipts"


def canonical_json(data: bytes) -> bool:
    """What is accepted is, byte for byte, what an independent RFC 8785 encoder makes of the value."""
    try:
        value = loads_input_strict(data)
    except JcsError:
        must(not _accepts(data), "a receipt's profile accepts what the wider one refuses", data)
        return False
    must(dumps_input(value) == data, "encoded again it is another text", data)
    if isinstance(value, dict | list) and not any(len(part) > 15 for part in _digits(data)):
        must(rfc8785.dumps(value) == data, "not RFC 8785", data)
    must(json.loads(data) == value, "another value", data)
    return True


def _accepts(data: bytes) -> bool:
    try:
        loads_strict(data)
    except JcsError:
        return False
    return True


def _digits(data: bytes) -> list[bytes]:
    """Runs of digits: RFC 8785 has no integers above 2^53, our inputs have."""
    return bytes(octet if 0x30 <= octet <= 0x39 else 0x20 for octet in data).split()


def canonical_seeds() -> Iterator[bytes]:
    yield b'{"a":[1,-2,true,"\\u001f\xc3\xa9"],"b":{"c":"x"}}'
    yield b'{"b":1,"a":2}'
    yield b'[{"k":9007199254740991},"\\"\\\\\\n"]'
    yield b'{"a":1.0}'
    for path in sorted((RECEIPTS / "valid").glob("*.json")):
        yield unb64url(json.loads(path.read_bytes())["jws"].encode().split(b".")[1])


# --- receipts ---------------------------------------------------------------------------------


def receipt(data: bytes) -> bool:
    """Only ReceiptError. What verifies is what signing its statement gives, to the last byte.

    An odd first byte: the rest is a payload, signed here, so that what follows the signature is tested.
    """
    steer, rest = split(data, 1)
    jws = rest
    if steer[0] & 1:
        kid = RECEIPT_KEY.kid
        header = b64url(json.dumps({"alg": "EdDSA", "kid": kid, "typ": TYP}, separators=(",", ":")).encode())
        signed = header + b"." + b64url(rest)
        jws = signed + b"." + b64url(RECEIPT_KEY.sign(signed))
    else:
        jws = jws_of(rest.strip())
    try:
        found = verify(jws, KEYS)
    except ReceiptError as error:
        must(bool(str(error)), "refused without a reason", jws)
        return False
    must(sign(found.statement, RECEIPT_KEY) == jws, "another text of the same statement verifies", jws)
    must(found.type in ("decision", "outcome", "approval", "admin"), "an unknown type", found)
    permit = found.statement.get("outcome") == "PERMIT"
    must(permit == ("exp" in found.statement), "only a PERMIT has an expiry", found)
    return True


def receipt_seeds() -> Iterator[bytes]:
    for path in sorted(RECEIPTS.glob("*/*.json")):
        jws = json.loads(path.read_bytes())["jws"].encode()
        if len(jws) < 4000:
            yield b"\0" + jws
            yield b"\0" + json.dumps({"index": 1, "jws": jws.decode()}).encode()
            try:
                yield b"\1" + unb64url(jws.split(b".")[1])
            except (ValueError, IndexError):
                continue


RECEIPT_WORDS: Final = (
    b'"outcome":"PERMIT"', b'"outcome":"DENY"', b'"exp":"2026-01-01T00:00:00.000000Z"', b'"v":1', b"null",
    b"-1", b"1.0", b'"reason":"permit_rule"', b'"rules":[]', b"{}", b"[]", b".", b"=", b"\\ud800",
    b'"jws":', b"9007199254740992", b"sha256:", b'"type":"outcome"', b"\\u0000",
)  # fmt: skip


def key_document(data: bytes) -> bool:
    """Only KeyDocumentError; and the set that is read publishes itself again under the same names."""
    try:
        found = parse_jwks(data)
    except KeyDocumentError:
        return False
    must(parse_jwks(json.dumps(jwks(found.values())).encode()) == found, "another set", found)
    for kid, key in found.items():
        text = f'{{"crv":"Ed25519","kty":"OKP","x":"{b64url(key.raw).decode()}"}}'
        must(kid == b64url(hashlib.sha256(text.encode()).digest()).decode(), "not its thumbprint", kid)
    return True


def key_seeds() -> Iterator[bytes]:
    yield (RECEIPTS / "keys.jwks.json").read_bytes()
    yield json.dumps(jwks(KEYS.values())).encode()
    yield json.dumps({"keys": [{"kty": "RSA", "n": "AQAB", "e": "AQAB"}, RECEIPT_KEY.public.jwk]}).encode()
    yield b'{"keys":[]}'


KEY_WORDS: Final = (
    b'"kty":"OKP"', b'"kty":"EC"', b'"crv":"X25519"', b'"alg":"none"', b'"use":"enc"', b'"kid":null',
    b'"x":1', b"null", b"[]", b"{}", b'"x":"\\u00e9"', b"[[[[", b"=",
)  # fmt: skip


# --- the log ----------------------------------------------------------------------------------


def checkpoint(data: bytes) -> bool:
    """Only TlogError. What verifies has our origin's text, canonical, under our signature.

    An odd first byte: the text up to the empty line is signed here, so that its form is what is tested.
    """
    steer, note = split(data, 1)
    if steer[0] & 1:
        text, _, rest = note.partition(b"\n\n")
        key_id = base64.b64decode(_note(3).split(b" ")[-1])[:4]
        signature = base64.b64encode(key_id + LOG_KEY.sign(text + b"\n"))
        note = text + b"\n\n\xe2\x80\x94 " + ORIGIN.encode() + b" " + signature + b"\n" + rest
    try:
        found = verify_checkpoint(note, ORIGIN, LOG_KEY.public)
    except TlogError:
        return False
    lines = [found.origin, str(found.size), base64.b64encode(found.root).decode(), "", ""]
    must(note.startswith("\n".join(lines).encode()), "another text than was read", found, note)
    must(len(found.root) == 32 and found.origin == ORIGIN, "no root, or another log", found)
    return True


@cache
def _note(size: int) -> bytes:
    tree = EMPTY
    for hashed in _leaves(size):
        tree = tree.append(hashed)
    return sign_checkpoint(ORIGIN, tree, LOG_KEY)


@cache
def _leaves(size: int) -> tuple[bytes, ...]:
    return tuple(leaf_hash(b"leaf %d" % number) for number in range(size))


def checkpoint_seeds() -> Iterator[bytes]:
    for size in (0, 1, 5):
        yield b"\0" + _note(size)
        yield b"\1" + _note(size).partition(b"\n\n")[0] + b"\n\n"
    yield b"\0" + _note(3) + b"\xe2\x80\x94 witness.test AAAAAAAAAAA=\n"


NOTE_WORDS: Final = (
    b"\n", b"\n\n", b"\xe2\x80\x94 ", ORIGIN.encode(), b"=", b"+", b" ", b"0", b"\xc3\xa9", b"\r", b"-1",
    b"AAAAAAAA",
)  # fmt: skip


def proof(data: bytes) -> bool:
    """A proof verifies for its own leaf, index, sizes and roots; with anything changed it does not."""
    steer, path = split(data, 4)
    size = 1 + steer[0] % 40
    index, older = steer[1] % size, 1 + steer[2] % size
    leaves = _leaves(size)
    items = [path[at : at + 32] for at in range(0, len(path), 32)]
    given = verify_inclusion(leaves[index], index, size, items, _root(size))
    right = inclusion_proof(leaves, index)
    must(given == (tuple(items) == right), "a proof of another path", size, index, items)
    must(
        verify_inclusion(leaves[index], index, size, right, _root(size)),
        "the proof does not verify",
        size,
        index,
    )
    other = leaves[(index + 1) % size] if size > 1 else leaf_hash(b"other")
    must(not verify_inclusion(other, index, size, right, _root(size)), "another leaf verifies", size, index)
    grown = consistency_proof(leaves, older)
    must(verify_consistency(older, _root(older), size, _root(size), grown), "not consistent", older, size)
    given = verify_consistency(older, _root(older), size, _root(size), items)
    must(given == (tuple(items) == grown), "another consistency proof", older, size, items)
    wrong = hashlib.sha256(path).digest()
    must(not verify_consistency(older, wrong, size, _root(size), grown), "another history", older, size)
    return tuple(items) in (right, grown)


@cache
def _root(size: int) -> bytes:
    tree = EMPTY
    for hashed in _leaves(size):
        tree = tree.append(hashed)
    return tree.root()


def proof_seeds() -> Iterator[bytes]:
    for size, index, older in ((1, 0, 1), (2, 1, 1), (7, 4, 3), (8, 7, 4), (33, 32, 20)):
        steer = bytes([size - 1, index, older - 1, 0])
        yield steer + b"".join(inclusion_proof(_leaves(size), index))
        yield steer + b"".join(consistency_proof(_leaves(size), older))


TARGETS: Final = {
    "canonical_json": Target(
        run=canonical_json, seeds=canonical_seeds, words=(b'"a":', b"\\u00e9", b"1e2", b"null", b" ")
    ),
    "receipt": Target(run=receipt, seeds=receipt_seeds, words=RECEIPT_WORDS, runs=400),
    "key_document": Target(run=key_document, seeds=key_seeds, words=KEY_WORDS),
    "checkpoint": Target(run=checkpoint, seeds=checkpoint_seeds, words=NOTE_WORDS, runs=400),
    "proof": Target(run=proof, seeds=proof_seeds),
}
