"""What a decision leaves standing for later ones: denials that stick, and objects that were prepared.

A DENY is a policy's explicit no, and a repeat of the request is told the same no, without a second look: the
same key (idempotency key, natural key, else the request itself) and digest, under the same bundle. SILENCE
decides nothing and never sticks. A denial lasts as long as its key does; where a commit has no key of its
own, a repeat may be a new intention, so only `KEYLESS_S`: long enough for a retry loop.

An object that a permitted request made (a payment intent, a plan) is known by what the vendor's answer named.
A later request that acts on it (confirm, apply) carries only that name; what the object is, is what the first
decision was about: its recorded parameters. An operation that changes the object is bound to it too, takes it
(`once`: a claim of ledger.py) and makes it anew: what is known is the newest decision over the older ones.
There is one row for an object, whoever asks: two agents, or two credentials, may be of one account, whose
vendor answers a repeated key to both. With a row each, one could change what the other confirms.

Stores keep these rows beside the claims and write them in the decision's or outcome's own transaction. They
may forget any denial: then the policy is asked again. An object they forget only when it has expired, not
before its key has: else a repeated old answer could make it known as it was (ST5).

Invariants (tests/test_standing.py; ST3 to ST6: tests/test_bonds.py):
  ST1  A denial repeats for the same key, request digest and bundle only, and only until it expires.
  ST2  A denial never makes a PERMIT, and nothing but a DENY by a policy here leaves one.
  ST3  What is bound is what the gate decided when the object was made, read from that decision's own input;
       expired, destroyed, unreadable, or made by another operation than the map says: nothing is bound.
  ST4  An object is known only after an executed PERMIT for the same agent, destination and principal;
       where the map says that the id is a right by itself (`principal: any`), for the same agent.
  ST5  A repeated answer never makes an object anew that somebody acted on: only whoever took it can.
  ST6  What one agent or credential makes or changes, no other confirms on what it knows itself; nor is it
       told of what the other did.
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
    "is_anothers",
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


def bound_part(
    found: Prepared | None, bond: Bond, now_us: int, *, agent: str, principal: str | None
) -> dict[str, Any] | None:
    """What a decision input says of the object that its action is about (ST3), where the object is theirs."""
    if found is None or now_us >= found.expires_us:
        return None
    made = _made(found)
    if made is None or made[0] != (agent, made[0][1] if bond.any_principal else principal):
        return None
    action = made[1]
    try:
        before = action["bound"]["params"] if "bound" in action else {}
        params = {**before, **action["params"]}
        operation = action["operation"]
    except (KeyError, TypeError):
        return None
    if operation not in bond.to:
        return None
    return {"operation": operation, "receipt": found.receipt_id, "params": params}


def is_anothers(found: Prepared | None, now_us: int, *, agent: str, principal: str | None) -> bool:
    """Whether it was another agent or credential that made or changed the object last."""
    if found is None or now_us >= found.expires_us:
        return False
    made = _made(found)
    return made is not None and made[0] != (agent, principal)


def _made(found: Prepared) -> tuple[tuple[str, str | None], dict[str, Any]] | None:
    """((agent, principal), action) of the decision about it; None where that cannot be read."""
    if found.inputs is None:
        return None
    try:
        inputs = loads_input_strict(found.inputs)
        (action,) = inputs["actions"]
        return (inputs["agent"]["id"], action.get("principal")), action
    except (JcsError, AttributeError, KeyError, TypeError, ValueError):
        return None
