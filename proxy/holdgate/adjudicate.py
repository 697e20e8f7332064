"""Steps 4 to 6 for one held request: claims, gate, signed receipt. Run by the ledger in its serial step.

A Case (everything known of the request) and the claims that the ledger read become one Entry. Pure: time,
receipt id and claims are arguments. The Entry is not a permit yet: only a store can make it Recorded.

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
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final, Protocol, TypedDict

from . import gate
from .agents import Agent
from .bundle import Bundle
from .counters import Use, budget_ids, budget_part, fill, meters_of, uses_of_all
from .errors import Outcome, Reason
from .facts import Found, Lookup, lookups_of_all
from .facts import fill as state_facts
from .gate import Decision
from .jcs import dumps_input
from .keys import Signer
from .ledger import (
    CONFLICT_SOURCE,
    NO_BUDGETS,
    ONCE_SOURCE,
    Binding,
    Budgets,
    Charge,
    ClaimRow,
    Entry,
    Judge,
    Verdict,
    appraise,
    is_free,
    op_key,
    scoped_key,
    told_by,
)
from .policy import PolicySet
from .receipt import decision_statement, input_digest, sign
from .sealing import SALT_BYTES, Kept, Sealed, commitment, seal
from .standing import KEYLESS_S, NOTHING_STANDS, Denial, Standing, Told, bound_part, is_anothers, repeated
from .surface.model import Action, Bond, KeySource, Recognised

__all__ = [
    "Adjudication",
    "Case",
    "Evidence",
    "Judging",
    "MakeJudge",
    "Target",
    "TimedGate",
    "decision_input",
    "flight_name",
    "object_key",
    "questions",
]

type Gate = Callable[[PolicySet, Mapping[str, Any]], Decision]
type MakeJudge = Callable[[Case, Bundle, Evidence, Gate | None, str], Judging]

PERMIT_USE_BY_US: Final = 30_000_000
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


class Target(Protocol):
    """Where a request would go, as far as a receipt and the gate are told: a CanonicalRequest is one."""

    @property
    def method(self) -> str: ...
    @property
    def host(self) -> str: ...
    @property
    def destination(self) -> str: ...
    @property
    def raw_target(self) -> bytes: ...
    @property
    def body(self) -> bytes: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is known of one request when it is judged. Later steps may not have been reached."""

    agent: Agent | None
    request: Target | None
    recognised: Recognised | None
    wire: str  # "" when not recognised
    raw_digest: str  # digest of what arrived, for requests that could not be read
    raw_bytes: int
    refusal: Reason | None  # set: record this SILENCE and ask nobody
    count: int = 1  # refusals like this one that the receipt stands for
    via: str = ""  # the decision door that asked; "": a request that the proxy holds
    body_sha256: bytes = b""  # of a sensitive operation, where it was computed off the serial step
    facts: Mapping[Lookup, Found] = MappingProxyType({})  # what providers answered, before the serial step


def flight_name(agent: Agent, destination: str, recognised: Recognised) -> str:
    """Requests of one name are the same action by the same agent with the same credential. It has a key."""
    key = recognised.keys[0]
    parts = (agent.id, destination, recognised.principal or "", key.source.value, key.value)
    return "\0".join((*parts, recognised.digest))


class Judging(Judge, Protocol):
    """A Judge of whoever holds the request, and may give it up."""

    @property
    def waiting(self) -> bool:
        """Whether it was, when last heard of, an identical request elsewhere that it waited for."""
        ...

    def void(self) -> None:
        """The hold deadline passed: whatever is judged from now on is SILENCE."""
        ...


class TimedGate:
    """The gate under its deadline. The store calls it in its own thread; the figure is read afterwards.

    Evaluation is bounded by the language (budgets), so a slow decision is made and then voided, not cut.
    """

    __slots__ = ("_clock", "_limit_s", "seconds")

    def __init__(self, clock: Callable[[], float], limit_s: float) -> None:
        self._clock, self._limit_s, self.seconds = clock, limit_s, 0.0

    def __call__(self, policies: PolicySet, inputs: Mapping[str, Any]) -> Decision:
        started = self._clock()
        decision = gate.decide(policies, inputs)
        self.seconds = self._clock() - started
        if self.seconds > self._limit_s:
            return Decision(outcome=Outcome.SILENCE, reason=Reason.GATE_TIMEOUT, rules=())
        return decision


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
        self._claims = () if case.refusal else _claims(case, evidence.fleet_key)
        # Counters belong to the policies here: where another gate decides they have nothing to say.
        counting = case.refusal is None and engine == gate.ENGINE
        self._uses = _uses(case, bundle, evidence.fleet_key) if counting else ()
        self.keys = tuple(claim.key for claim in self._claims)
        self.meters = meters_of(self._uses)
        # Another gate's policies may change while the bundle here stays the same: its denials do not stick.
        own = self._claims[:1] if engine == gate.ENGINE and case.recognised and case.recognised.keys else ()
        self.denials = tuple(claim.key for claim in own)
        self.objects = tuple(dict.fromkeys(claim.key for claim in self._claims if claim.bond is not None))

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
        case = self._case
        gap = self._bundle.gap(now_us)
        if gap is not None:  # asked here, by the ledger's clock, which no request can turn back
            return self._entry(now_us, receipt_id, Outcome.SILENCE, gap)
        if self._void:
            return self._entry(now_us, receipt_id, Outcome.SILENCE, Reason.GATE_TIMEOUT)
        if case.refusal is not None:
            return self._entry(now_us, receipt_id, Outcome.SILENCE, case.refusal)
        if case.agent is None or case.request is None or case.recognised is None:
            return self._entry(now_us, receipt_id, Outcome.SILENCE, Reason.INTERNAL_ERROR)
        digest = case.recognised.digest
        verdict, prior, prior_status = appraise(
            claims,
            [
                (claim.key, claim.source)
                for claim in self._claims
                if not self._others(claim, claims, standing, now_us)
            ],
            digest=digest,
            now_us=now_us,
        )
        refused = _REFUSED.get(verdict)
        if refused is not None:
            twin = self._is_twin(claims, prior)
            if verdict is Verdict.CONFLICT:  # with whose request is nobody else's business
                prior, prior_status = "", 0
            keeps = bool(case.recognised.keys) and case.recognised.keys[0].keep
            return self._entry(
                *(now_us, receipt_id, *refused),
                prior=prior,
                prior_status=prior_status,
                waits=twin and verdict is Verdict.IN_FLIGHT,
                recalls=twin and keeps and verdict is Verdict.ALREADY_EXECUTED,
            )
        if case.recognised.require_key:
            return self._entry(now_us, receipt_id, Outcome.SILENCE, Reason.MISSING_IDEMPOTENCY_KEY)
        for key in self.denials:
            denial = repeated(standing, key, digest=digest, policy=self._bundle.digest, now_us=now_us)
            if denial is not None:
                return self._denied_again(now_us, receipt_id, denial)
        inputs = decision_input(case.agent, case.request, case.recognised, now_us)
        taken = self._bound(inputs["actions"], claims, standing, now_us)
        if taken is None:  # another gate would not know: it is asked nothing that is bound to nothing
            return self._entry(now_us, receipt_id, Outcome.SILENCE, Reason.INPUT_UNAVAILABLE)
        if verdict is Verdict.REPLAY:  # the vendor does nothing anew, so what is free stays free
            taken = frozenset(key for key in taken if key in claims and not is_free(claims[key]))
        first = prior if verdict is Verdict.REPLAY else ""
        if self._engine == gate.ENGINE:  # like counters
            facts_of = self._bundle.policies.facts_of
            state_facts(facts_of, inputs["agent"], inputs["actions"], case.facts, now_s=now_us // 1_000_000)
        charges = self._charged(inputs, budgets, first, now_us)
        decision = self._decide(self._bundle.policies, inputs)
        permitted = decision.outcome is Outcome.PERMIT and not self._void
        if decision.outcome is Outcome.PERMIT and not permitted:
            return self._entry(now_us, receipt_id, Outcome.SILENCE, Reason.GATE_TIMEOUT)
        would = gate.shadow_part(self._bundle.policies, inputs)
        if would:  # beside the input that it was asked with: signed with it, and out of agents' sight
            inputs["shadow"] = would
        return self._entry(
            now_us,
            receipt_id,
            decision.outcome,
            decision.reason,
            rules=decision.rules,
            inputs=dumps_input(inputs),
            prior=prior if permitted else "",
            prior_status=prior_status,
            replay=first != "",
            charges=charges if permitted else (),
            would=would.get("outcome", ""),
            objects=_receipts_of(inputs["actions"]),
            taken=taken,
            told=told_by(claims, self.keys, verdict, digest=digest),
        )

    def _is_twin(self, claims: Mapping[str, ClaimRow], first: str) -> bool:
        """Whether the PERMIT `first` was for an identical request. Who asks at a door is told at once."""
        case = self._case
        if case.via or case.recognised is None or not case.recognised.keys:
            return False
        row = claims.get(self._claims[0].key)
        return row is not None and (row.receipt_id, row.digest) == (first, case.recognised.digest)

    def _others(self, claim: _Claim, claims: Mapping[str, ClaimRow], standing: Standing, now_us: int) -> bool:
        """Whether this is the claim on an object of somebody else: nothing to tell this one about. What is
        open between the two is a conflict all the same (surface/keys.py)."""
        if claim.bond is None or claim.key not in claims:
            return False
        return is_anothers(standing.prepared.get(claim.key), now_us, **self._who)

    def _bound(
        self,
        actions: list[dict[str, Any]],
        claims: Mapping[str, ClaimRow],
        standing: Standing,
        now_us: int,
    ) -> frozenset[str] | None:
        """Put into each action what it is bound to. The keys of objects that a PERMIT takes.

        None: an action lacks its object, and it is not the gate here that will say so.
        """
        recognised, taken = self._case.recognised, set()
        for claim in self._claims:
            bond, found = claim.bond, standing.prepared.get(claim.key)
            if bond is None or recognised is None:
                continue
            part = bound_part(found, bond, now_us, **self._who)
            if part is None:
                if not bond.blind and self._engine != gate.ENGINE:
                    return None
                # Acted on blindly: whoever knows the object does not know it any more.
                if (
                    bond.once
                    and found is not None
                    and (claim.key not in claims or is_free(claims[claim.key]))
                ):
                    taken.add(claim.key)
                continue
            for action, own in zip(actions, recognised.bonds, strict=True):
                if own == bond:
                    action["bound"] = part
            if bond.once:
                taken.add(claim.key)
        return frozenset(taken)

    @property
    def _who(self) -> _Who:
        case = self._case
        principal = case.recognised.principal if case.recognised is not None else None
        return {"agent": case.agent.id if case.agent is not None else "", "principal": principal}

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
        if outcome is not Outcome.DENY or not self.denials or self._case.recognised is None:
            return None
        claim = self._claims[0]
        ttl_s = KEYLESS_S if claim.source == KeySource.IMPLICIT else claim.ttl_s
        return Denial(
            key=claim.key,
            digest=self._case.recognised.digest,
            policy=self._bundle.digest,
            receipt_id=receipt_id,
            rules=rules,
            expires_us=now_us + ttl_s * 1_000_000,
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
            request=_request_part(case) | committed,
            idempotency=self._idempotency_part(),
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
            bindings=self._bindings(taken, now_us) if permit else (),
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

    def _bindings(self, taken: frozenset[str], now_us: int) -> tuple[Binding, ...]:
        held = (claim for claim in self._claims if claim.bond is None or claim.key in taken)
        return tuple(claim.binding(now_us) for claim in held)

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

    def _idempotency_part(self) -> tuple[str, str] | None:
        for claim in self._claims:
            if claim.source not in (CONFLICT_SOURCE, ONCE_SOURCE):
                return claim.source, claim.key
        return None


class _Who(TypedDict):
    agent: str
    principal: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Claim:
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


_CONFLICT_TTL_S: Final = 86_400
_ONCE_TTL_S: Final = 366 * 86_400  # no time frees it; longer than any key, so that a replay knows its own


def _claims(case: Case, fleet_key: bytes) -> tuple[_Claim, ...]:
    """The keys of this request, hashed over their scope: agent, destination, surface, principal."""
    recognised, request, agent = case.recognised, case.request, case.agent
    if recognised is None or request is None or agent is None:
        return ()
    scope = (agent.id, request.destination, recognised.actions[0].surface, recognised.principal or "")
    keys = [
        _Claim(
            key=scoped_key(rule.source.value, *scope, rule.value, secret=fleet_key),
            digest=recognised.digest,
            source=rule.source.value,
            ttl_s=rule.ttl_s,
            provider=rule.provider,
        )
        for rule in recognised.keys
    ]
    # A conflict key is about the thing acted on, so it binds every agent: destination and value only.
    conflicts = [
        _Claim(
            key=op_key(CONFLICT_SOURCE, request.destination, value, secret=fleet_key),
            digest=recognised.digest,
            source=CONFLICT_SOURCE,
            ttl_s=_CONFLICT_TTL_S,
            provider=False,
        )
        for value in recognised.conflict_keys
    ]
    objects = [
        _Claim(
            key=object_key(request, bond.object, fleet_key),
            digest=recognised.digest,
            source=ONCE_SOURCE,
            ttl_s=_ONCE_TTL_S,
            provider=False,
            bond=bond,
        )
        for bond in dict.fromkeys(recognised.bonds)
        if bond is not None
    ]
    return (*keys, *conflicts, *objects)


def object_key(request: Target, name: str, fleet_key: bytes) -> str:
    """The stored name of an object: one row, whoever asks (ST6). Whose it is, its decision says (ST4)."""
    return op_key("object", request.destination, name, secret=fleet_key)


def _produces(recognised: Recognised, objects: tuple[str, ...]) -> bool:
    """Whether the answer may make an object known. What was done to an object that is not known itself says
    too little about it: a changed amount is there, the currency is not."""
    return recognised.produces is not None and (bool(objects) or not any(recognised.bonds))


def _receipts_of(actions: list[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(sorted({action["bound"]["receipt"] for action in actions if "bound" in action}))


def _uses(case: Case, bundle: Bundle, fleet_key: bytes) -> tuple[tuple[Use, ...], ...]:
    recognised, request, agent = case.recognised, case.request, case.agent
    if recognised is None or request is None or agent is None:
        return ()
    counters_of = bundle.policies.counters_of
    if not any(counters_of(action.surface, action.operation) for action in recognised.actions):
        return ()
    actions = [_action_part(action, request, recognised) for action in recognised.actions]
    return uses_of_all(counters_of, _agent_part(agent), actions, secret=fleet_key)


def questions(case: Case, bundle: Bundle) -> tuple[Lookup, ...]:
    """What the policies want to know of others about this request."""
    recognised, request, agent = case.recognised, case.request, case.agent
    facts_of = bundle.policies.facts_of
    if recognised is None or request is None or agent is None:
        return ()
    if not any(facts_of(action.surface, action.operation) for action in recognised.actions):
        return ()
    actions = [_action_part(action, request, recognised) for action in recognised.actions]
    return lookups_of_all(facts_of, _agent_part(agent), actions)


def _request_part(case: Case) -> dict[str, Any]:
    part: dict[str, Any] = {"digest": case.raw_digest, "bytes": case.raw_bytes}
    if case.request is not None and case.request.method:
        part |= {"method": case.request.method}
    if case.recognised is not None:
        part |= {"target": case.recognised.target, "digest": case.recognised.digest}
    if case.wire:
        part["wire"] = case.wire
    return part


def decision_input(agent: Agent, request: Target, recognised: Recognised, now_us: int) -> dict[str, Any]:
    """The gate's whole input: canonical JSON types only (facts that vary are all in here)."""
    now_s = now_us // 1_000_000
    clock = datetime.fromtimestamp(now_s, UTC)
    return {
        "v": 1,
        "agent": _agent_part(agent),
        "actions": [_action_part(action, request, recognised) for action in recognised.actions],
        "request": {"digest": recognised.digest},
        "clock": {"now_s": now_s, "hour_utc": clock.hour, "weekday_utc": clock.isoweekday() % 7},
        "approvals": [],
    }


def _agent_part(agent: Agent) -> dict[str, Any]:
    return {"id": agent.id, "groups": list(agent.groups), "attrs": _plain(dict(agent.attrs))}


def _action_part(action: Action, request: Target, recognised: Recognised) -> dict[str, Any]:
    part: dict[str, Any] = {
        "surface": action.surface,
        "operation": action.operation,
        "effect": action.effect.value,
        "host": request.host,
        "params": {param.name: _plain(param.value) for param in action.params},
    }
    if recognised.principal is not None:
        part["principal"] = recognised.principal
    return part


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
