"""What `verify` says of one receipt: is it what it claims to be, under what its reader trusts?

    JWS, Trust, perhaps a proof -> Finding (ok, or the reason why not)

Pure. Without a proof it is the signature and the statement; with one also that the receipt is in the log, at
an index below the one from which its key was revoked, under a checkpoint that enough witnesses saw.

Invariants (tests/test_verification.py has one test named after each):
  VF1  ok means that receipt.verify() accepted it, and every condition of the Trust was met.
  VF2  With a proof: the log that `iss` names signed a tree that has exactly these bytes at its index.
  VF3  A receipt by a key that was revoked counts only with a proof of an index below the revocation.
  VF4  A quorum is of different witnesses that the Trust names, and is never met without a proof.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import Outcome
from .keys import NEVER, KeySet
from .note import Checkpoint, Verifier, cosigners
from .receipt import ReceiptError, Verified, verify
from .tlog import TlogError
from .tlogproof import Proof, verify_proof

__all__ = ["Finding", "Inclusion", "Trust", "judge"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """What the reader of a receipt trusts, and what is asked of it."""

    keys: KeySet
    log: Verifier | None  # None: no proof can be verified
    witnesses: tuple[Verifier, ...]
    quorum: int  # how many of them must have cosigned
    require_permit: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Inclusion:
    """Where a receipt is in which log."""

    index: int
    checkpoint: Checkpoint
    witnesses: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    reason: str  # "" when everything holds
    statement: Mapping[str, Any] | None  # None when it could not be verified at all
    inclusion: Inclusion | None

    @property
    def ok(self) -> bool:
        return not self.reason


def judge(jws: bytes, trust: Trust, proof: Proof | None) -> Finding:
    """Verify one receipt; what is wrong is found, never raised."""
    try:
        verified = verify(jws, trust.keys)
    except ReceiptError as error:
        return Finding(reason=str(error), statement=None, inclusion=None)
    statement = verified.statement
    try:
        inclusion = None if proof is None else _included(jws, proof, trust, statement)
    except TlogError as error:
        return Finding(reason=str(error), statement=statement, inclusion=None)
    reason = _revoked(verified, trust.keys, inclusion) or _quorum(trust, inclusion)
    if not reason and trust.require_permit:
        reason = _not_a_permit(statement)
    return Finding(reason=reason, statement=statement, inclusion=inclusion)


def _included(jws: bytes, proof: Proof, trust: Trust, statement: Mapping[str, Any]) -> Inclusion:
    if trust.log is None:
        raise TlogError("a proof, and no log key to verify it with")
    checkpoint = verify_proof(proof, jws, trust.log)
    if statement["iss"] != checkpoint.origin:
        raise TlogError("the receipt was issued for another log")
    found = cosigners(proof.checkpoint, trust.witnesses)
    return Inclusion(index=proof.index, checkpoint=checkpoint, witnesses=found)


def _revoked(verified: Verified, keys: KeySet, inclusion: Inclusion | None) -> str:
    limit = keys[verified.kid].revoked_from_index
    if limit == NEVER or (inclusion is not None and inclusion.index < limit):
        return ""
    if inclusion is None:
        return f"its key was revoked: only a proof of an index below {limit} makes it count"
    return f"its key was revoked from index {limit} on, and this is {inclusion.index}"


def _quorum(trust: Trust, inclusion: Inclusion | None) -> str:
    found = 0 if inclusion is None else len(inclusion.witnesses)
    return "" if found >= trust.quorum else f"{found} of {trust.quorum} witnesses cosigned"


def _not_a_permit(said: Mapping[str, Any]) -> str:
    if said["type"] != "decision" or said["outcome"] != Outcome.PERMIT:
        return "a valid receipt, but not of a PERMIT"
    # A decision made over an API is no evidence that a request was held and forwarded.
    return "a PERMIT that was asked for over an API, not of a forwarded request" if "via" in said else ""
