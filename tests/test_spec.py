"""proxy/SPEC.md: its formulas, written down once more without the code that they describe."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from evidence import LOG_KEY, ORIGIN, RECEIPT_KEY, REFUND, permit_statement
from holdgate.digest import fingerprint, raw_digest, wire_digest
from holdgate.ledger import op_key
from holdgate.note import sign_checkpoint, vkey
from holdgate.receipt import actions_digest, input_digest, sign
from holdgate.tlog import EMPTY, leaf_hash


def framed(domain: bytes, *parts: bytes) -> bytes:
    return domain + b"".join(len(part).to_bytes(8, "big") + part for part in parts)


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def unpadded(text: bytes) -> bytes:
    return base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))


def test_digests_of_a_request() -> None:
    headers = ((b"Host", b"a.example"), (b"Authorization", b"Bearer s"), (b"Content-Length", b"2"))
    secret = hashlib.sha256(framed(b"holdgate-credential-v1", b"Bearer s")).hexdigest()[:32]
    assert fingerprint(b"Bearer s") == secret
    parts = (b"POST", b"/p?", b"Host", b"a.example", b"Authorization", secret.encode())
    preimage = framed(b"holdgate-wire-v1", *parts, b"Content-Length", b"2", b"{}")
    assert wire_digest("POST", b"/p?", headers, b"{}") == sha256(preimage)
    raw = framed(b"holdgate-raw-v1", b"GET /", b"x")
    assert raw_digest(b"GET /", b"x", key=b"k") == "hmac-sha256:" + hmac.new(b"k", raw, "sha256").hexdigest()


def test_claim_keys() -> None:
    scope = ("native", "refund-bot", "api.stripe.com:443", "payments.refund", "f" * 32, "key-1")
    preimage = framed(b"holdgate-claim-v1", *(part.encode() for part in scope))
    expected = hashlib.blake2b(preimage, key=b"f" * 32, digest_size=32).hexdigest()
    assert op_key(*scope, secret=b"f" * 32) == expected


def test_the_jws_of_a_receipt() -> None:
    statement = permit_statement()
    header, payload, signature = sign(statement, RECEIPT_KEY).split(b".")
    point = base64.urlsafe_b64encode(RECEIPT_KEY.public.raw).rstrip(b"=").decode()
    jwk = f'{{"crv":"Ed25519","kty":"OKP","x":"{point}"}}'.encode()
    kid = base64.urlsafe_b64encode(hashlib.sha256(jwk).digest()).rstrip(b"=").decode()
    assert unpadded(header).decode() == f'{{"alg":"EdDSA","kid":"{kid}","typ":"holdgate-receipt+jws"}}'
    canonical = json.dumps(statement, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert unpadded(payload) == canonical.encode()
    assert RECEIPT_KEY.public.verifies(header + b"." + payload, unpadded(signature))


def test_digests_in_a_receipt() -> None:
    assert input_digest(b'{"v":1}') == sha256(b'{"v":1}')
    rows = permit_statement()["actions"]
    assert actions_digest([REFUND]) == sha256(
        json.dumps(rows, sort_keys=True, separators=(",", ":")).encode()
    )


def test_the_log_and_its_checkpoint() -> None:
    leaves = [b"one", b"two", b"three"]
    one, two, three = (hashlib.sha256(b"\x00" + leaf).digest() for leaf in leaves)
    root = hashlib.sha256(b"\x01" + hashlib.sha256(b"\x01" + one + two).digest() + three).digest()
    tree = EMPTY
    for leaf in leaves:
        tree = tree.append(leaf_hash(leaf))
    assert tree.root() == root
    text = f"{ORIGIN}\n3\n{base64.b64encode(root).decode()}\n".encode()
    public = b"\x01" + LOG_KEY.public.raw
    key_id = hashlib.sha256(ORIGIN.encode() + b"\n" + public).digest()[:4]
    signature = base64.b64encode(key_id + LOG_KEY.sign(text)).decode()
    assert (
        sign_checkpoint(ORIGIN, tree, LOG_KEY).decode() == f"{text.decode()}\n\u2014 {ORIGIN} {signature}\n"
    )
    assert vkey(ORIGIN, LOG_KEY.public) == f"{ORIGIN}+{key_id.hex()}+{base64.b64encode(public).decode()}"


# --- the program under "Verify by hand", run as it stands there ---

ROOT = Path(__file__).resolve().parents[1]
VECTORS = ROOT / "tests/vectors"
# What a short program lets pass and `holdgate verify` does not: other spellings of a proof, and witnesses.
BEYOND = {
    "base64-without-padding",
    "cosignature-of-another-checkpoint",
    "cosignature-with-a-changed-byte",
    "index-with-a-leading-zero",
    "quorum-not-met",
}


def by_hand(folder: Path, jws: str, proof: str, vkey: str, keys: str) -> subprocess.CompletedProcess[str]:
    page = (ROOT / "proxy/SPEC.md").read_text(encoding="utf-8")
    program = page.partition("\n## Verify by hand\n")[2].partition("```python\n")[2].partition("\n```")[0]
    files = {"by_hand.py": program, "jws": jws, "keys": keys, "vkey": vkey, "proof": proof}
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    command = [sys.executable, "-I", *files]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=60)


def log_vectors() -> Iterator[tuple[str, bool]]:
    for path in sorted((VECTORS / "log").glob("*/*.json")):
        if path.stem not in BEYOND:
            yield f"{path.parent.name}/{path.stem}", path.parent.name == "valid"


@pytest.mark.checkout
@pytest.mark.parametrize(("name", "is_valid"), list(log_vectors()), ids=[name for name, _ in log_vectors()])
def test_the_program_by_hand_takes_what_is_valid_and_nothing_else(
    tmp_path: Path, name: str, is_valid: bool
) -> None:
    vector = json.loads((VECTORS / f"log/{name}.json").read_text())
    keys = (VECTORS / "receipts/keys.jwks.json").read_text()
    done = by_hand(tmp_path, vector["jws"], vector["proof"], vector["vkey"], keys)
    assert (done.returncode == 0) is is_valid, done.stderr


@pytest.mark.checkout
def test_the_program_by_hand_takes_no_receipt_whose_key_or_bytes_changed(tmp_path: Path) -> None:
    vector = json.loads((VECTORS / "log/valid/leaf-4-of-7.json").read_text())
    keys = (VECTORS / "receipts/keys.jwks.json").read_text()
    header, payload, signature = vector["jws"].split(".")
    for jws in (f"{header}.{payload}.{signature[::-1]}", f"{header}.{payload[:-4]}AAAA.{signature}"):
        done = by_hand(tmp_path, jws, vector["proof"], vector["vkey"], keys)
        assert done.returncode == 1
    document = json.loads(keys)
    for key in document["keys"]:
        key["revoked_from_index"] = 4
    done = by_hand(tmp_path, vector["jws"], vector["proof"], vector["vkey"], json.dumps(document))
    assert "after the key's time" in done.stderr
