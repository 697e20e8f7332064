"""trigguard.py: what its view says, and that its hash and signature are as others compute them.

Their own verifier reads it in tests/interop/test_trigguard.py.
"""

from __future__ import annotations

import base64
import hashlib

import pytest
import rfc8785

from evidence import RECEIPT_KEY, REFUND, permit_statement
from holdgate.errors import Outcome, Reason
from holdgate.receipt import ReceiptError
from holdgate.trigguard import trigguard_view


def test_the_view_hashes_and_verifies_as_its_verifiers_do() -> None:
    view = trigguard_view(permit_statement(), RECEIPT_KEY)
    unsigned = {key: item for key, item in view.items() if key not in ("receiptHash", "authoritySignature")}
    assert view["receiptHash"] == hashlib.sha256(rfc8785.dumps(unsigned)).hexdigest()
    signature = base64.b64decode(view["authoritySignature"], validate=True)
    assert RECEIPT_KEY.public.verifies(bytes.fromhex(view["receiptHash"]), signature)
    assert (view["decision"], view["enforcement"], view["surface"]) == ("PERMIT", "EXECUTED", REFUND.surface)
    assert view["authorityKeyId"] == RECEIPT_KEY.kid


@pytest.mark.parametrize("outcome", [Outcome.DENY, Outcome.SILENCE])
def test_the_view_of_a_refusal_says_blocked(outcome: Outcome) -> None:
    reason = Reason.DENY_RULE if outcome is Outcome.DENY else Reason.NO_RULE_MATCHED
    view = trigguard_view(permit_statement(outcome=outcome, reason=reason), RECEIPT_KEY)
    assert (view["decision"], view["enforcement"]) == (outcome, "BLOCKED")


def test_the_view_is_of_decisions_only() -> None:
    with pytest.raises(ReceiptError):
        trigguard_view({"type": "outcome"}, RECEIPT_KEY)
