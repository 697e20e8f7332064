"""The TrigGuard view: its vendor's own verifier accepts it, and what that verifier does not look at.

`trigguard` is the vendor's SDK from the package index; skipped where it is not installed. Its verifier checks
the signature over `receiptHash` and does not compute that hash again: so a view proves less than the receipt.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from evidence import DIGEST, KEYS, ORIGIN, OTHER_KEY, RECEIPT_KEY, permit_statement
from holdgate.errors import Outcome, Reason
from holdgate.keys import trigguard_keys
from holdgate.receipt import sign
from holdgate.trigguard import trigguard_view
from holdgate.verification import Trust, judge

trigguard = pytest.importorskip("trigguard", reason="the trigguard SDK is not installed")

_REFUSED: dict[str, Any] = {"exp_us": 0, "replay_of": "", "via": "", "idempotency": None}
STATEMENTS = {
    "permit": permit_statement(via=""),
    "deny": permit_statement(outcome=Outcome.DENY, reason=Reason.DENY_RULE, **_REFUSED),
    "silence": permit_statement(outcome=Outcome.SILENCE, reason=Reason.NO_RULE_MATCHED, rules=(), **_REFUSED),
    "silence, unreadable": permit_statement(
        outcome=Outcome.SILENCE,
        reason=Reason.MALFORMED_REQUEST,
        agent="",
        rules=(),
        actions=(),
        destination="",
        input_digest="",
        request={"digest": DIGEST, "bytes": 1},
        **_REFUSED,
    ),
}
DOCUMENT = json.loads(json.dumps(trigguard_keys(ORIGIN, KEYS.values())))


def view(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(trigguard_view(STATEMENTS[name], RECEIPT_KEY)))
    return found


def recomputed(said: dict[str, Any]) -> str:
    """`receiptHash` as proxy/SPEC.md says it, without our encoder."""
    rest = {name: value for name, value in said.items() if name not in ("receiptHash", "authoritySignature")}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("name", STATEMENTS)
def test_the_vendors_verifier_accepts_every_view(name: str) -> None:
    result = trigguard.verify_receipt_signature_detailed(view(name), DOCUMENT)
    assert (result.ok, result.reason) == (True, None)
    assert recomputed(view(name)) == view(name)["receiptHash"]


@pytest.mark.parametrize("name", STATEMENTS)
def test_the_words_are_those_of_its_decision_records(name: str) -> None:
    # The pairs of its conformance cases permit-basic, deny-basic and silence-basic.
    said = view(name)
    pairs = {"PERMIT": "EXECUTED", "DENY": "BLOCKED", "SILENCE": "BLOCKED"}
    assert said["enforcement"] == pairs[said["decision"]]
    assert said["decision"] == STATEMENTS[name]["outcome"]
    assert said["timestamp"].endswith("Z")


@pytest.mark.parametrize("field", [*view("permit"), "anything else"])
def test_what_the_vendors_verifier_reads_over_a_recomputed_hash_finds(field: str) -> None:
    changed = view("deny") | {field: "PERMIT" if field == "decision" else "x" * 64}
    seen = trigguard.verify_receipt_signature_detailed(changed, DOCUMENT).ok
    # Only the hash, the signature and the key's name are looked at by the vendor's verifier.
    assert seen == (field not in ("receiptHash", "authoritySignature", "authorityKeyId"))
    assert not seen or recomputed(changed) != changed["receiptHash"]


def test_a_key_that_is_not_published_is_refused() -> None:
    strange = trigguard_view(STATEMENTS["permit"], OTHER_KEY)
    assert trigguard.verify_receipt_signature_detailed(strange, DOCUMENT).reason == "missing-signing-key"
    claimed = strange | {"authorityKeyId": RECEIPT_KEY.kid}
    assert trigguard.verify_receipt_signature_detailed(claimed, DOCUMENT).reason == "signature-invalid"


@pytest.mark.parametrize("name", [name for name in STATEMENTS if name != "permit"])
def test_a_valid_refusal_authorises_nothing(name: str) -> None:
    # The vendor's verifiers say "ok" to a signed DENY: validity is not permission.
    assert trigguard.verify_receipt_signature(view(name), DOCUMENT)
    asked = Trust(keys=KEYS, log=(), witnesses=(), quorum=0, require_permit=True)
    refusal = sign(STATEMENTS[name], RECEIPT_KEY)
    assert judge(refusal, asked, None).reason == "a valid receipt, but not of a PERMIT"
    assert judge(sign(STATEMENTS["permit"], RECEIPT_KEY), asked, None).ok
