"""A decision in TrigGuard's receipt form, for its verifiers: SPEC.md, "TrigGuard view"."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Any

from .errors import Outcome
from .jcs import dumps_input
from .keys import Signer
from .receipt import ReceiptError

__all__ = ["trigguard_view"]


def trigguard_view(statement: Mapping[str, Any], key: Signer) -> dict[str, Any]:
    """The view of a decision's statement, signed over `receiptHash`. Raises ReceiptError for another one.

    `receiptHash` is SHA-256 of the canonical JSON of the view without its two signature fields. Its
    verifiers do not recompute that hash, so a valid view proves less than the receipt it is made from.
    """
    if statement["type"] != "decision":
        raise ReceiptError("only a decision has a TrigGuard view")
    actions = statement.get("actions") or statement.get("counts") or [{}]
    executed = "EXECUTED" if statement["outcome"] == Outcome.PERMIT else "BLOCKED"
    view: dict[str, Any] = {
        "executionId": statement["id"],
        "surface": actions[0].get("surface", ""),
        "decision": statement["outcome"],
        "reasonCode": statement["reason"],
        "enforcement": executed,
        "timestamp": statement["iat"],
        "actorId": statement["agent"],
        "requestHash": statement["request"].get("digest", ""),
        "policyFingerprint": statement["policy"].get("digest", ""),
        "authorityKeyId": key.kid,
    }
    digest = hashlib.sha256(dumps_input(view)).digest()
    signature = base64.b64encode(key.sign(digest)).decode()
    return view | {"receiptHash": digest.hex(), "authoritySignature": signature}
