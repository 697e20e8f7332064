"""Steps 4 to 6 for one held request: claims, gate, signed receipt. Run by the ledger in its serial step.

A Case (case.py: everything known of the request), its Claims (claims.py) and what the ledger read of them
become one Entry. Pure: time, receipt id and claims are arguments. The Entry is not a permit yet: only a store
can make it Recorded.

Invariants (tests/test_adjudicate.py; A9: tests/test_standing.py; A10: tests/test_bonds.py):
  A1  PERMIT only when every claim verdict leaves the way open and the gate said PERMIT.
  A2  A Case with a refusal never reaches the gate.
  A3  Claims are bound on PERMIT only.
  A4  The receipt names request.digest and wire digest of exactly the Case's request.
  A5  A voided Case (its hold deadline passed) is never permitted.
  A6  Of a sensitive operation nothing is kept in clear: its input is sealed, its receipt has a commitment.
  A7  A PERMIT charges every counter of every action, a replay none; the receipt names ids only.
  A8  Under no bundle, or one that has ended, every Case is SILENCE with that reason, refused ones too.
  A9  A repeat of a request that a policy denied is DENY again with the same rules and names the first
      receipt, and the gate is not asked; under another bundle, or by another gate, it is.
  A10  An action that is bound to an object is permitted only with what was decided of that object in the
      input, or where the map says `blind: allow`; one that acts once takes the object with its PERMIT.
  A11  A kept answer is recalled only with already_executed, for the very request that was executed.
  A12  A replay is permitted only so long that it is sent while the vendor, by the map's `ttl`, has the key;
      later a repeat is a new action: decided, charged, and told apart from what the vendor may answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from . import gate
from .bundle import Bundle
from .case import Case, counter_uses, decision_input, request_part
from .claims import PERMIT_USE_BY_US, claims_of
from .counters import budget_ids, budget_part, fill, meters_of
from .errors import Outcome, Reason
from .facts import fill as state_facts
from .gate import Decision
from .jcs import dumps_input
from .keys import Signer
from .ledger import (
    NO_BUDGETS,
    Budgets,
    Charge,
    ClaimRow,
    Entry,
    Judge,
    Verdict,
    appraise,
    is_free,
    told_by,
)
from .policy import PolicySet
from .receipt import decision_statement, input_digest, sign
from .sealing import SALT_BYTES, Kept, Sealed, commitment, seal
from .standing import NOTHING_STANDS, Denial, Standing, Told, repeated
from .surface.model import Recognised

__all__ = ["Adjudication", "Evidence", "Gate", "Judging", "MakeJudge"]

type Gate = Callable[[PolicySet, Mapping[str, Any]], Decision]
type MakeJudge = Callable[[Case, Bundle, Evidence, Gate | None, str], Judging]

_REFUSED: Final[Mapping[Verdict, tuple[Outcome, Reason]]] = {
    Verdict.REUSED: (Outcome.DENY, Reason.IDEMPOTENCY_KEY_REUSED),
    Verdict.IN_FLIGHT: (Outcome.SILENCE, Reason.IN_FLIGHT),
    Verdict.ALREADY_EXECUTED: (Outcome.SILENCE, Reason.ALREADY_EXECUTED),
    Verdict.OUTCOME_UNKNOWN: (Outcome.SILENCE, Reason.OUTCOME_UNKNOWN),
    Verdict.CONFLICT: (Outcome.SILENCE, Reason.CONFLICT),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Who signs, and under which names."""

    signer: Signer  # asked in the ledger's serial step only: another key may sign from the next one on
    issuer: str  # the log's origin
    node: str
    fleet_key: bytes  # keys every hash of something guessable
    draw: Callable[[int], bytes]  # that many random bytes, for what is sealed


class Judging(Judge, Protocol):
    """A Judge of whoever holds the request, and may give it up."""

    @property
    def waiting(self) -> bool:
        """Whether it was, when last heard of, an identical request elsewhere that it waited for."""
        ...

    def void(self) -> None:
        """The hold deadline passed: whatever is judged from now on is SILENCE."""
        ...


class Adjudication:
    """One Judge (ledger.py) for one Case under one bundle."""

    __slots__ = (
        "_bundle",
        "_case",
        "_claims",
        "_decide",
        "_engine",
        "_evidence",
        "_uses",
        "_void",
        "denials",
        "keys",
        "meters",
        "objects",
    )

    def __init__(
        self,
        case: Case,
        bundle: Bundle,
        evidence: Evidence,
        decide: Gate | None = None,
        engine: str = gate.ENGINE,
    ) -> None:
        """`decide` is the gate, of callers that measure it or have asked another one; `engine` names it."""
        self._case, self._bundle, self._evidence = case, bundle, evidence
        self._decide, self._engine = decide or gate.decide, engine
        self._void = False
        self._claims = claims_of(case, evidence.fleet_key)
        # Counters belong to the policies here: where another gate decides they have nothing to say.
        counting = case.refusal is None and engine == gate.ENGINE
        self._uses = counter_uses(case, bundle, evidence.fleet_key) if counting else ()
        self.keys, self.objects = self._claims.keys, self._claims.objects
        self.meters = meters_of(self._uses)
        # Another gate's policies may change while the bundle here stays the same: its denials do not stick.
        own = self._claims.own if engine == gate.ENGINE else None
        self.denials = () if own is None else (own.key,)

    @property
    def waiting(self) -> bool:
        return False

    def void(self) -> None:
        """The hold deadline passed: whatever is judged from now on is SILENCE."""
        self._void = True

    def __call__(
        self,
        claims: Mapping[str, ClaimRow],
        *,
        now_us: int,
        receipt_id: str,
        budgets: Budgets = NO_BUDGETS,
        standing: Standing = NOTHING_STANDS,
    ) -> Entry:
        refusal = self._refusal(now_us)
        if refusal is not None:
            return self._entry(now_us, receipt_id, Outcome.SILENCE, refusal)
        agent, request, recognised = self._case.agent, self._case.request, self._case.recognised
        if agent is None or request is None or recognised is None:
            return self._entry(now_us, receipt_id, Outcome.SILENCE, Reason.INTERNAL_ERROR)
        digest, at_stake = recognised.digest, self._claims.at_stake(claims, standing, now_us)
        appraised = appraise(claims, at_stake, digest=digest, now_us=now_us)
        if appraised[0] in _REFUSED:
            return self._stopped(now_us, receipt_id, recognised, claims, *appraised)
        if recognised.require_key:
            return self._entry(now_us, receipt_id, Outcome.SILENCE, Reason.MISSING_IDEMPOTENCY_KEY)
        for key in self.denials:
            denial = repeated(standing, key, digest=digest, policy=self._bundle.digest, now_us=now_us)
            if denial is not None:
                return self._denied_again(now_us, receipt_id, denial)
        inputs = decision_input(agent, request, recognised, now_us)
        taken = self._claims.bind(
            inputs["actions"], claims, standing, now_us, all_needed=self._engine != gate.ENGINE
        )
        if taken is None:  # another gate would not know: it is asked nothing that is bound to nothing
            return self._entry(now_us, receipt_id, Outcome.SILENCE, Reason.INPUT_UNAVAILABLE)
        return self._decided(now_us, receipt_id, inputs, taken, claims, budgets, *appraised)

    def _refusal(self, now_us: int) -> Reason | None:
        """What was refused before anybody looks at its claims."""
        gap = self._bundle.gap(now_us)
        if gap is not None:  # asked here, by the ledger's clock, which no request can turn back
            return gap
        return Reason.GATE_TIMEOUT if self._void else self._case.refusal

    def _stopped(
        self,
        now_us: int,
        receipt_id: str,
        recognised: Recognised,
        claims: Mapping[str, ClaimRow],
        verdict: Verdict,
        prior: str,
        prior_status: int,
    ) -> Entry:
        """By what is claimed already."""
        twin = self._is_twin(claims, prior)
        if verdict is Verdict.CONFLICT:  # with whose request is nobody else's business
            prior, prior_status = "", 0
        keeps = bool(recognised.keys) and recognised.keys[0].keep
        return self._entry(
            *(now_us, receipt_id, *_REFUSED[verdict]),
            prior=prior,
            prior_status=prior_status,
            waits=twin and verdict is Verdict.IN_FLIGHT,
            recalls=twin and keeps and verdict is Verdict.ALREADY_EXECUTED,
        )

    def _decided(
        self,
        now_us: int,
        receipt_id: str,
        inputs: dict[str, Any],
        taken: frozenset[str],
        claims: Mapping[str, ClaimRow],
        budgets: Budgets,
        verdict: Verdict,
        prior: str,
        prior_status: int,
    ) -> Entry:
        """By the gate, on an input that facts and counters are put into here."""
        if verdict is Verdict.REPLAY:  # the vendor does nothing anew, so what is free stays free
            taken = frozenset(key for key in taken if key in claims and not is_free(claims[key]))
        first = prior if verdict is Verdict.REPLAY else ""
        if self._engine == gate.ENGINE:  # like counters
            facts_of, known = self._bundle.policies.facts_of, self._case.facts
            state_facts(facts_of, inputs["agent"], inputs["actions"], known, now_s=now_us // 1_000_000)
        charges = self._charged(inputs, budgets, first, now_us)
        decision = self._decide(self._bundle.policies, inputs)
        permitted = decision.outcome is Outcome.PERMIT
        if permitted and self._void:
            return self._entry(now_us, receipt_id, Outcome.SILENCE, Reason.GATE_TIMEOUT)
        would = gate.shadow_part(self._bundle.policies, inputs)
        if would:  # beside the input that it was asked with: signed with it, and out of agents' sight
            inputs["shadow"] = would
        return self._entry(
            *(now_us, receipt_id, decision.outcome, decision.reason),
            rules=decision.rules,
            inputs=dumps_input(inputs),
            prior=prior if permitted else "",
            prior_status=prior_status,
            replay=first != "",
            charges=charges if permitted else (),
            would=would.get("outcome", ""),
            objects=_receipts_of(inputs["actions"]),
            taken=taken,
            told=told_by(claims, self.keys, verdict, digest=inputs["request"]["digest"]),
        )

    def _is_twin(self, claims: Mapping[str, ClaimRow], first: str) -> bool:
        """Whether the PERMIT `first` was for an identical request. Who asks at a door is told at once."""
        case, own = self._case, self._claims.own
        if case.via or case.recognised is None or own is None:
            return False
        row = claims.get(own.key)
        return row is not None and (row.receipt_id, row.digest) == (first, case.recognised.digest)

    def _denied_again(self, now_us: int, receipt_id: str, denial: Denial) -> Entry:
        return self._entry(
            now_us,
            receipt_id,
            Outcome.DENY,
            Reason.DENY_RULE,
            rules=denial.rules,
            prior=denial.receipt_id,
            replay=True,
        )

    def _denial(
        self, outcome: Outcome, rules: tuple[str, ...], now_us: int, receipt_id: str
    ) -> Denial | None:
        """What a decision of the gate leaves for repeats."""
        own = self._claims.own
        if outcome is not Outcome.DENY or not self.denials or own is None:
            return None
        return Denial(
            key=own.key,
            digest=own.digest,
            policy=self._bundle.digest,
            receipt_id=receipt_id,
            rules=rules,
            expires_us=now_us + own.denied_s * 1_000_000,
        )

    def _charged(
        self, inputs: dict[str, Any], budgets: Budgets, repeated: str, now_us: int
    ) -> tuple[Charge, ...]:
        """Put the counters into the input; what a PERMIT charges is recorded there too."""
        if not self._uses:
            return ()
        charges = fill(inputs["actions"], self._uses, budgets, prior=repeated, now_us=now_us)
        if charges:
            inputs["budget"] = budget_part(charges)
        return charges

    def _entry(
        self,
        now_us: int,
        receipt_id: str,
        outcome: Outcome,
        reason: Reason,
        *,
        rules: tuple[str, ...] = (),
        inputs: bytes | None = None,
        prior: str = "",
        prior_status: int = 0,
        replay: bool = False,
        charges: tuple[Charge, ...] = (),
        would: str = "",
        objects: tuple[str, ...] = (),
        taken: frozenset[str] = frozenset(),
        told: Told = Told.NEW,
        waits: bool = False,
        recalls: bool = False,
    ) -> Entry:
        """Step 6. Long because a receipt and an Entry have that many parts, one a line."""
        case, evidence, bundle = self._case, self._evidence, self._bundle
        recognised = case.recognised
        permit = outcome is Outcome.PERMIT
        agent = case.agent.id if case.agent else ""
        sealed, committed = self._sealed(receipt_id, inputs)
        statement = decision_statement(
            receipt_id=receipt_id,
            issuer=evidence.issuer,
            iat_us=now_us,
            node=evidence.node,
            outcome=outcome,
            reason=reason,
            rules=rules,
            agent=agent,
            actions=recognised.actions if recognised else (),
            destination=case.request.destination if case.request else "",
            request=request_part(case) | committed,
            idempotency=self._claims.idempotency,
            policy=bundle.statement,
            engine=self._engine if inputs is not None else gate.ENGINE,
            input_digest="" if inputs is None else input_digest(inputs, sealed.salt if sealed else b""),
            exp_us=now_us + PERMIT_USE_BY_US if permit else 0,
            replay_of=prior if replay else "",
            supersedes=prior if permit and not replay else "",
            budget=budget_ids(charges),
            binds=objects,
            via=case.via,
            count=case.count if outcome is Outcome.SILENCE and inputs is None else 1,
        )
        return Entry(
            receipt_id=receipt_id,
            outcome=outcome,
            reason=reason,
            rule=rules[0] if rules else "",
            surface=recognised.actions[0].surface if recognised else "",
            agent=agent,
            policy=bundle.digest,
            iat_us=now_us,
            wire=case.wire,
            jws=sign(statement, evidence.signer),
            bindings=self._claims.bindings(taken, now_us) if permit else (),
            inputs=inputs if sealed is None else None,
            prior=prior,
            prior_status=prior_status,
            charges=charges,
            sealed=sealed,
            would=would,
            denial=self._denial(outcome, rules, now_us, receipt_id) if inputs is not None else None,
            produces=permit and recognised is not None and _produces(recognised, objects),
            told=told,
            waits=waits,
            recalls=recalls,
        )

    def _sealed(self, receipt_id: str, inputs: bytes | None) -> tuple[Sealed | None, dict[str, str]]:
        """What is kept of a sensitive operation, and the part of the receipt that commits to it."""
        request, recognised, draw = self._case.request, self._case.recognised, self._evidence.draw
        if request is None or recognised is None or not recognised.sensitive:
            return None, {}
        salt = draw(SALT_BYTES)
        committed = commitment(
            salt,
            method=request.method,
            destination=request.destination,
            target=request.raw_target,
            body_sha256=self._case.body_sha256 or hashlib.sha256(request.body).digest(),
        )
        kept = Kept(target=request.raw_target, inputs=inputs)
        return seal(receipt_id, kept, salt, draw), {"commitment": committed}


def _produces(recognised: Recognised, objects: tuple[str, ...]) -> bool:
    """Whether the answer may make an object known. What was done to an object that is not known itself says
    too little about it: a changed amount is there, the currency is not."""
    return recognised.produces is not None and (bool(objects) or not any(recognised.bonds))


def _receipts_of(actions: list[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(sorted({action["bound"]["receipt"] for action in actions if "bound" in action}))
