"""What a decision leaves standing for later ones: denials that stick, and objects that were prepared.

A DENY is a policy's explicit no, and a repeat of the request is told the same no, without a second look: the
same key (idempotency key, natural key, else the request itself) and digest, under the same bundle. SILENCE
decides nothing and never sticks. A denial lasts as long as its key does; where a commit has no key of its
own, a repeat may be a new intention, so only `KEYLESS_S`: long enough for a retry loop.

An object that a permitted request made (a payment intent, a plan) is known by what the vendor's answer named.
A later request that acts on it (confirm, apply) carries only that name; what the object is, is what the first
decision was about: its recorded parameters. An operation that changes the object is bound to it too, takes it
(`once`: a claim of ledger.py) and makes it anew: what is known is the newest decision over the older ones.

Stores keep these rows beside the claims and write them in the decision's or outcome's own transaction. They
may forget any of them: then the policy is asked again, or the object is unknown (SILENCE).

Invariants (tests/test_standing.py; ST3 to ST5: tests/test_bonds.py):
  ST1  A denial repeats for the same key, request digest and bundle only, and only until it expires.
  ST2  A denial never makes a PERMIT, and nothing but a DENY by a policy here leaves one.
  ST3  What is bound is what the gate decided when the object was made, read from that decision's own input;
       expired, destroyed, unreadable, or made by another operation than the map says: nothing is bound.
  ST4  An object is known only after an executed PERMIT for the same agent, destination and principal.
  ST5  A repeated answer never makes an object anew that somebody acted on: only whoever took it can.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from .jcs import JcsError, loads_input_strict
from .surface.model import Bond

__all__ = [
    "KEYLESS_S",
    "MAX_DENIALS",
    "NOTHING_STANDS",
    "Denial",
    "Made",
    "Prepared",
    "Standing",
    "Told",
    "bound_part",
    "repeated",
]

KEYLESS_S: Final = 600
MAX_DENIALS: Final = 65_536  # rows; the oldest are forgotten first


@dataclass(frozen=True, slots=True, kw_only=True)
class Denial:
    """One DENY of a policy, as a store keeps it."""

    key: str  # opaque, 64 hex digits: the claim key of the request (ledger.op_key)
    digest: str  # request.digest
    policy: str  # bundle digest
    receipt_id: str
    rules: tuple[str, ...]  # full names, as in the receipt
    expires_us: int


class Told(StrEnum):
    """Whether the vendor's answer to a PERMIT says what it did just now, as far as its key tells."""

    NEW = "new"
    OLD = "old"  # a replay: the answer that it gave the first time
    EITHER = "either"  # the key's window is over: it may have forgotten the key, or not


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What record_outcome() is told of the object that the vendor's answer named."""

    key: str  # opaque, 64 hex digits: hash over scope and name of the object
    ttl_us: int  # how long it may be acted on
    told: Told


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """One object, as a store keeps it: which PERMIT's answer named it."""

    key: str
    receipt_id: str
    expires_us: int
    inputs: bytes | None = None  # that PERMIT's recorded decision input; None: destroyed, or not asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What a Judge is told that stands from earlier decisions, of what it asked for, by key."""

    denials: Mapping[str, Denial]
    prepared: Mapping[str, Prepared]  # with their inputs


NOTHING_STANDS: Final = Standing(denials={}, prepared={})


def repeated(standing: Standing, key: str, *, digest: str, policy: str, now_us: int) -> Denial | None:
    """The denial that a request of this key repeats; None when there is none, or none that still stands."""
    denial = standing.denials.get(key)
    if denial is None or (denial.digest, denial.policy) != (digest, policy) or now_us >= denial.expires_us:
        return None
    return denial


def bound_part(found: Prepared | None, bond: Bond, now_us: int) -> dict[str, Any] | None:
    """What a decision input says of the object that its action is about (ST3)."""
    if found is None or found.inputs is None or now_us >= found.expires_us:
        return None
    try:
        inputs = loads_input_strict(found.inputs)
        (action,) = inputs["actions"]
        before = action["bound"]["params"] if "bound" in action else {}
        params = {**before, **action["params"]}
        operation = action["operation"]
    except (JcsError, KeyError, TypeError, ValueError):
        return None
    if operation not in bond.to:
        return None
    return {"operation": operation, "receipt": found.receipt_id, "params": params}
