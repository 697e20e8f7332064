"""What `verify` says of one receipt: is it what it claims to be, under what its reader trusts?

    JWS, Trust, perhaps a proof -> Finding (ok, or the reason why not)

Pure. Without a proof it is the signature and the statement; with one also that the receipt is in the log, at
an index at which its key was in use and not revoked, under a checkpoint that enough witnesses saw.

Invariants (tests/test_verification.py has one test named after each):
  VF1  ok means that receipt.verify() accepted it, and every condition of the Trust was met.
  VF2  With a proof: the log that `iss` names signed a tree that has exactly these bytes at its index.
  VF3  A receipt by a key that was revoked counts only with a proof of an index below the revocation.
  VF5  With a proof, a receipt outside the range of its key is refused, and so is a checkpoint of a size for
       which its log key was not there. Without a proof a range is not looked at.
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
    log: tuple[Verifier, ...]  # the keys of one log, one after the other; empty: no proof can be verified
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
    reason = _out_of_range(verified, trust.keys, inclusion) or _quorum(trust, inclusion)
    if not reason and trust.require_permit:
        reason = _not_a_permit(statement)
    return Finding(reason=reason, statement=statement, inclusion=inclusion)


def _included(jws: bytes, proof: Proof, trust: Trust, statement: Mapping[str, Any]) -> Inclusion:
    if not trust.log:
        raise TlogError("a proof, and no log key to verify it with")
    checkpoint = verify_proof(proof, jws, *trust.log)
    if statement["iss"] != checkpoint.origin:
        raise TlogError("the receipt was issued for another log")
    found = cosigners(proof.checkpoint, trust.witnesses)
    return Inclusion(index=proof.index, checkpoint=checkpoint, witnesses=found)


def _out_of_range(verified: Verified, keys: KeySet, inclusion: Inclusion | None) -> str:
    key = keys[verified.kid]
    if inclusion is not None:
        return key.refuses(inclusion.index)
    # A key that was retired and not lost cannot have signed anything later: nobody has it.
    limit = key.revoked_from_index
    return (
        ""
        if limit == NEVER
        else f"its key was revoked: only a proof of an index below {limit} makes it count"
    )


def _quorum(trust: Trust, inclusion: Inclusion | None) -> str:
    found = 0 if inclusion is None else len(inclusion.witnesses)
    return "" if found >= trust.quorum else f"{found} of {trust.quorum} witnesses cosigned"


def _not_a_permit(said: Mapping[str, Any]) -> str:
    if said["type"] != "decision" or said["outcome"] != Outcome.PERMIT:
        return "a valid receipt, but not of a PERMIT"
    # A decision made over an API is no evidence that a request was held and forwarded.
    return "a PERMIT that was asked for over an API, not of a forwarded request" if "via" in said else ""
