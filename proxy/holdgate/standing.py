"""What a decision leaves standing for later ones: so far, denials that stick.

A DENY is a policy's explicit no, and a repeat of the request is told the same no, without a second look: the
same key (idempotency key, natural key, else the request itself) and digest, under the same bundle. SILENCE
decides nothing and never sticks. A denial lasts as long as its key does; where a commit has no key of its
own, a repeat may be a new intention, so only `KEYLESS_S`: long enough for a retry loop.

Stores keep these rows beside the claims and write them in the decision's own transaction. They may forget any
of them: then the policy is asked again. That bounds the table (`MAX_DENIALS`), whatever agents send.

Invariants (tests/test_standing.py):
  ST1  A denial repeats for the same key, request digest and bundle only, and only until it expires.
  ST2  A denial never makes a PERMIT, and nothing but a DENY by a policy here leaves one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["KEYLESS_S", "MAX_DENIALS", "NOTHING_STANDS", "Denial", "Standing", "repeated"]

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What a Judge is told that stands from earlier decisions."""

    denials: Mapping[str, Denial]  # by key, of those that the judge asked for


NOTHING_STANDS: Final = Standing(denials={})


def repeated(standing: Standing, key: str, *, digest: str, policy: str, now_us: int) -> Denial | None:
    """The denial that a request of this key repeats; None when there is none, or none that still stands."""
    denial = standing.denials.get(key)
    if denial is None or (denial.digest, denial.policy) != (digest, policy) or now_us >= denial.expires_us:
        return None
    return denial
