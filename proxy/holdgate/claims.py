"""What one request claims: its keys and the objects that it acts on, by the names that stores keep.

    Case -> Claims; asked with the rows that the store has of them, in the ledger's serial step

A key is hashed with its scope, so that nobody's claim is another's. What may be open once, or acted on
once, is hashed with the destination alone: it binds every agent.

Invariants (tests/test_claims.py):
  CL1  A key of another agent, destination, surface, credential or kind is another claim.
  CL2  A conflict key and an object are one claim each, whoever asks.
  CL3  The claim on an object that another agent or credential made last stops nobody, and is not told of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from .case import Case, Target
from .ledger import CONFLICT_SOURCE, ONCE_SOURCE, Binding, ClaimRow, is_free, op_key, scoped_key
from .quick import quick
from .standing import KEYLESS_S, Standing, bound_part, is_anothers
from .surface.model import Bond, KeySource, Recognised

__all__ = ["NO_CLAIMS", "PERMIT_USE_BY_US", "Claim", "Claims", "claims_of", "object_key"]

PERMIT_USE_BY_US: Final = 30_000_000  # after its decision
_CONFLICT_TTL_S: Final = 86_400
_ONCE_TTL_S: Final = 366 * 86_400  # no time frees it; longer than any key, so that a replay knows its own


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    key: str
    digest: str
    source: str
    ttl_s: int
    provider: bool
    bond: Bond | None = None  # of a claim on an object

    def binding(self, now_us: int) -> Binding:
        # A PERMIT is used up to that much later, and the vendor counts from when the first one arrived.
        early_us = min(PERMIT_USE_BY_US, self.ttl_s * 1_000_000) if self.provider else 0
        return Binding(
            key=self.key,
            digest=self.digest,
            expires_us=now_us + self.ttl_s * 1_000_000 - early_us,
            provider=self.provider,
            source=self.source,
        )

    @property
    def denied_s(self) -> int:
        """How long a denial of it stands."""
        return KEYLESS_S if self.source == KeySource.IMPLICIT else self.ttl_s


class Claims:
    """All of one request's. `own` is that of the request itself: its idempotency key, else its content."""

    __slots__ = ("_agent", "_all", "_bonds", "_principal", "keys", "objects", "own")

    def __init__(
        self,
        found: tuple[Claim, ...],
        *,
        own: Claim | None,
        agent: str,
        principal: str | None,
        bonds: tuple[Bond | None, ...],
    ) -> None:
        self._all, self.own, self._agent, self._principal, self._bonds = found, own, agent, principal, bonds
        self.keys = tuple([claim.key for claim in found])
        self.objects = tuple(dict.fromkeys([claim.key for claim in found if claim.bond is not None]))

    def at_stake(
        self, rows: Mapping[str, ClaimRow], standing: Standing, now_us: int
    ) -> list[tuple[str, str]]:
        """Key and source of those that can stop the request: not of an object that is somebody else's. What
        is open between the two is a conflict all the same (surface/keys.py)."""
        return [
            (claim.key, claim.source)
            for claim in self._all
            if claim.bond is None
            or claim.key not in rows
            or not is_anothers(
                standing.prepared.get(claim.key), now_us, agent=self._agent, principal=self._principal
            )
        ]

    def bind(
        self,
        actions: list[dict[str, Any]],
        rows: Mapping[str, ClaimRow],
        standing: Standing,
        now_us: int,
        *,
        all_needed: bool,
    ) -> frozenset[str] | None:
        """Put into each action what it is bound to. The keys of objects that a PERMIT takes.

        None: an action lacks its object, where `all_needed`: it is not the gate here that would say so.
        """
        taken = set()
        for claim in self._all:
            bond, found = claim.bond, standing.prepared.get(claim.key)
            if bond is None:
                continue
            part = bound_part(found, bond, now_us, agent=self._agent, principal=self._principal)
            if part is None:
                if all_needed and not bond.blind:
                    return None
                # Acted on blindly: whoever knows the object does not know it any more.
                free = claim.key not in rows or is_free(rows[claim.key])
                if bond.once and found is not None and free:
                    taken.add(claim.key)
                continue
            for action, own in zip(actions, self._bonds, strict=True):
                if own == bond:
                    action["bound"] = part
            if bond.once:
                taken.add(claim.key)
        return frozenset(taken)

    def bindings(self, taken: frozenset[str], now_us: int) -> tuple[Binding, ...]:
        """What a PERMIT holds: every key, and the objects that it takes."""
        held = (claim for claim in self._all if claim.bond is None or claim.key in taken)
        return tuple([claim.binding(now_us) for claim in held])

    @property
    def idempotency(self) -> tuple[str, str] | None:
        """What a receipt says of its key: source and hash."""
        for claim in self._all:
            if claim.source not in (CONFLICT_SOURCE, ONCE_SOURCE):
                return claim.source, claim.key
        return None


NO_CLAIMS: Final = Claims((), own=None, agent="", principal=None, bonds=())


def claims_of(case: Case, fleet_key: bytes) -> Claims:
    """Of a request that was recognised and not refused; none of any other."""
    recognised, request, agent = case.recognised, case.request, case.agent
    if case.refusal is not None or recognised is None or request is None or agent is None:
        return NO_CLAIMS
    scope = (agent.id, request.destination, recognised.actions[0].surface, recognised.principal or "")
    keys = [
        Claim(
            key=scoped_key(rule.source.value, *scope, rule.value, secret=fleet_key),
            digest=recognised.digest,
            source=rule.source.value,
            ttl_s=rule.ttl_s,
            provider=rule.provider,
        )
        for rule in recognised.keys
    ]
    return Claims(
        (*keys, *_things(recognised, request, fleet_key)),
        own=keys[0] if keys else None,
        agent=agent.id,
        principal=recognised.principal,
        bonds=recognised.bonds,
    )


def _things(recognised: Recognised, request: Target, fleet_key: bytes) -> list[Claim]:
    """About what is acted on, so that they bind every agent: destination and value only."""
    conflicts = [
        Claim(
            key=op_key(CONFLICT_SOURCE, request.destination, value, secret=fleet_key),
            digest=recognised.digest,
            source=CONFLICT_SOURCE,
            ttl_s=_CONFLICT_TTL_S,
            provider=False,
        )
        for value in recognised.conflict_keys
    ]
    objects = [
        Claim(
            key=object_key(request.destination, bond.object, fleet_key),
            digest=recognised.digest,
            source=ONCE_SOURCE,
            ttl_s=_ONCE_TTL_S,
            provider=False,
            bond=bond,
        )
        for bond in dict.fromkeys(recognised.bonds)
        if bond is not None
    ]
    return [*conflicts, *objects]


def object_key(destination: str, name: str, fleet_key: bytes) -> str:
    """The stored name of an object: one row, whoever asks (ST6). Whose it is, its decision says (ST4)."""
    return op_key("object", destination, name, secret=fleet_key)
