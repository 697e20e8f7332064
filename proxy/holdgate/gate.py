"""Step 5: the gate. One bundle of policies and one recorded input in, one decision out.

Pure: no clock (TimedGate is handed one), no randomness, no files, no network. Everything that varies is in
the input, so a decision replays from its record alone.

Decision table (for authors: policies/README.md), per action; every rule is evaluated, order never matters:
    any deny rule true            -> DENY     deny_rule
    else a counter, a fact or what it is bound to is missing -> SILENCE input_unavailable
    else any applicable rule error -> SILENCE rule_error
    else any permit rule true     -> PERMIT   permit_rule
    else any review rule true     -> SILENCE  approval_pending
    else                          -> SILENCE  no_rule_matched
Several actions: any DENY -> DENY; else any SILENCE -> SILENCE; else PERMIT.

A value that is not of its declared type counts as an error of every rule that applies. Several
silent actions give the reason that an approval can change least.

Invariants (tests/test_gate.py; G5 in tests/test_policy_counters.py, G6 in tests/test_policy_facts.py; G8 in
tests/test_bonds.py):
  G1  decide() is total: every input gets a Decision, none raises.
  G2  PERMIT means every action has a permit rule that is true and no deny rule that is true.
  G3  The order of rules, policies and files does not change the decision.
  G4  Adding a deny rule never adds a PERMIT.
  G5  PERMIT means every counter that an action charges was read, and can take it.
  G6  PERMIT means every fact that a policy of the action declares is in the input, with its types.
  G7  A shadow policy changes no decision, whatever it says, and shadow() says what it would have changed.
  G8  PERMIT means that what was decided of the object is in the input of every action that needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from .cel.evaluate import Budget, Conjunct, EvalError, Fault, Frame, explain
from .errors import Outcome, Reason
from .facts import readable
from .gate_input import Problem, action_frame, readable_counters, shared_frame
from .policy_model import RuleEffect
from .quick import quick

if TYPE_CHECKING:
    from .policy_model import Applicable, PolicySet, Rule

__all__ = [
    "ENGINE",
    "Decision",
    "RuleTrace",
    "TimedGate",
    "combine",
    "conclude",
    "decide",
    "shadow",
    "shadow_part",
    "trace",
]

ENGINE = "cel-strict/1"

# Which reason speaks for several silent actions: the one furthest from a PERMIT first.
_SILENCES: Final = (
    Reason.RULE_ERROR,
    Reason.INPUT_UNAVAILABLE,
    Reason.NO_RULE_MATCHED,
    Reason.APPROVAL_PENDING,
)


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    outcome: Outcome
    reason: Reason
    rules: tuple[str, ...]  # deciding rules, "policy/rule", first deciding one first


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleTrace:
    """What one rule said about one action, for `explain` and tests. Never shown to agents."""

    action: int  # position in the input's `actions`
    rule: str
    effect: RuleEffect
    result: str  # "true" | "false" | "error"
    conjuncts: tuple[Conjunct, ...]
    shadow: bool  # of a shadow policy: it did not count


def decide(policies: PolicySet, inputs: Mapping[str, Any]) -> Decision:
    """Decide one recorded input (`inputs` is the decoded canonical JSON)."""
    try:
        return _decide(policies, inputs)
    except Exception:  # noqa: BLE001 - G1: our own mistake must end as SILENCE in every caller
        return _silence(Reason.INTERNAL_ERROR)


def shadow(policies: PolicySet, inputs: Mapping[str, Any]) -> Decision | None:
    """What would be decided if shadow policies counted; None where none applies. On a budget of its own."""
    try:
        if not policies.has_shadow or not any(_has_shadow(policies, each) for each in inputs["actions"]):
            return None
        return _decide(policies, inputs, with_shadow=True)
    except Exception:  # noqa: BLE001 - whatever is wrong with a shadow, the decision stands
        return None


def shadow_part(policies: PolicySet, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What is recorded of it, beside the input that it was asked with; {} where no shadow policy applies."""
    would = shadow(policies, inputs)
    if would is None:
        return {}
    return {"outcome": would.outcome.value, "reason": would.reason.value, "rules": list(would.rules)}


def _has_shadow(policies: PolicySet, action: Any) -> bool:
    applicable = _applicable(policies, action)
    return applicable is not None and bool(applicable.with_shadow)


def _decide(policies: PolicySet, inputs: Mapping[str, Any], *, with_shadow: bool = False) -> Decision:
    shared = shared_frame(policies, inputs)
    if isinstance(shared, Problem):
        return _silence(Reason.RULE_ERROR)
    actions = inputs.get("actions")
    if type(actions) is not list or not actions:
        return _silence(Reason.NO_RULE_MATCHED)
    return combine([_decide_action(policies, shared, action, with_shadow) for action in actions])


def _decide_action(policies: PolicySet, shared: Frame, action: Any, with_shadow: bool) -> Decision:
    applicable = _applicable(policies, action)
    if applicable is None:
        return _silence(Reason.NO_RULE_MATCHED)
    frame = action_frame(shared, action, applicable)
    if isinstance(frame, Problem):
        return _silence(Reason.RULE_ERROR)
    denied: list[str] = []
    failed: list[str] = []
    permitted: list[str] = []
    reviewed: list[str] = []
    rules = applicable.with_shadow or applicable.rules if with_shadow else applicable.rules
    for rule in rules:
        value = rule.program.evaluate(frame)
        if value is False:
            continue
        if value is not True:  # an error is not "does not apply": it is counted, whatever the effect
            failed.append(rule.name)
        elif rule.effect is RuleEffect.DENY:
            denied.append(rule.name)
        elif rule.effect is RuleEffect.PERMIT:
            permitted.append(rule.name)
        else:
            reviewed.append(rule.name)
    return conclude(action, applicable, denied, failed, permitted, reviewed)


def conclude(
    action: Mapping[str, Any],
    applicable: Applicable,
    denied: list[str],
    failed: list[str],
    permitted: list[str],
    reviewed: list[str],
) -> Decision:
    """The decision table over the rules of one action that were not false; `failed` ones of any effect."""
    if denied:
        return _decision(Outcome.DENY, Reason.DENY_RULE, denied)
    if applicable.counters and not readable_counters(action, applicable):
        return _silence(Reason.INPUT_UNAVAILABLE)
    if applicable.needs_bound and "bound" not in action:
        return _silence(Reason.INPUT_UNAVAILABLE)
    if applicable.facts and not readable(action, applicable.facts):
        return _silence(Reason.INPUT_UNAVAILABLE)
    if failed:
        return _decision(Outcome.SILENCE, Reason.RULE_ERROR, failed)
    if permitted:
        return _decision(Outcome.PERMIT, Reason.PERMIT_RULE, permitted)
    if reviewed:
        return _decision(Outcome.SILENCE, Reason.APPROVAL_PENDING, reviewed)
    return _silence(Reason.NO_RULE_MATCHED)


def _applicable(policies: PolicySet, action: Any) -> Applicable | None:
    if type(action) is not dict:
        return None
    surface, operation = action.get("surface"), action.get("operation")
    if type(surface) is not str or type(operation) is not str:
        return None
    return policies.table.get((surface, operation))


def combine(decisions: Sequence[Decision]) -> Decision:
    """One decision for all actions of a request: it is forwarded as a whole or not at all."""
    if len(decisions) == 1:
        return decisions[0]
    denied = [each for each in decisions if each.outcome is Outcome.DENY]
    if denied:
        return _joined(denied)
    for reason in _SILENCES:
        silent = [each for each in decisions if each.reason is reason]
        if silent:
            return _joined(silent)
    if all(each.outcome is Outcome.PERMIT for each in decisions):
        return _joined(decisions)
    return _silence(Reason.INTERNAL_ERROR)


def _joined(decisions: Sequence[Decision]) -> Decision:
    rules = {name for each in decisions for name in each.rules}
    return _decision(decisions[0].outcome, decisions[0].reason, sorted(rules))


def _decision(outcome: Outcome, reason: Reason, rules: list[str]) -> Decision:
    return Decision(outcome=outcome, reason=reason, rules=tuple(rules))


def _silence(reason: Reason) -> Decision:
    return Decision(outcome=Outcome.SILENCE, reason=reason, rules=())


def trace(policies: PolicySet, inputs: Mapping[str, Any]) -> tuple[RuleTrace, ...]:
    """Every applicable rule with its result and conjuncts, action by action, rules by name.

    A rule's result is exactly what decide() used: same order, same budget. The conjuncts are
    evaluated once more, one by one, on a budget of their own.
    """
    shared = shared_frame(policies, inputs)
    actions = inputs.get("actions") if isinstance(inputs, Mapping) else None
    found: list[RuleTrace] = []
    for number, action in enumerate(actions if isinstance(actions, list) else []):
        applicable = _applicable(policies, action)
        if applicable is None:
            continue
        frame = shared if isinstance(shared, Problem) else action_frame(shared, action, applicable)
        apart = frame if isinstance(frame, Problem) else [*frame[:-1], Budget()]
        counted = {rule.name for rule in applicable.rules}
        shadows = [rule for rule in applicable.with_shadow if rule.name not in counted]
        for rule in (*applicable.rules, *shadows):
            is_shadow = rule.name not in counted
            result, conjuncts = _examined(rule, apart if is_shadow else frame)
            found.append(
                RuleTrace(
                    action=number,
                    rule=rule.name,
                    effect=rule.effect,
                    result=result,
                    conjuncts=conjuncts,
                    shadow=is_shadow,
                )
            )
    return tuple(found)


def _examined(rule: Rule, frame: Frame | Problem) -> tuple[str, tuple[Conjunct, ...]]:
    if isinstance(frame, Problem):
        wrong = EvalError(fault=Fault.INPUT, detail=frame.detail)
        return "error", (Conjunct(text="input", value=wrong),)
    value = rule.program.evaluate(frame)
    result = "true" if value is True else "false" if value is False else "error"
    return result, explain(rule.program, [*frame[:-1], Budget()])


class TimedGate:
    """The gate under its deadline. The store calls it in its own thread; the figure is read afterwards.

    Evaluation is bounded by the language (budgets), so a slow decision is made and then voided, not cut.
    """

    __slots__ = ("_clock", "_limit_s", "seconds")

    def __init__(self, clock: Callable[[], float], limit_s: float) -> None:
        self._clock, self._limit_s, self.seconds = clock, limit_s, 0.0

    def __call__(self, policies: PolicySet, inputs: Mapping[str, Any]) -> Decision:
        started = self._clock()
        decision = decide(policies, inputs)
        self.seconds = self._clock() - started
        if self.seconds > self._limit_s:
            return Decision(outcome=Outcome.SILENCE, reason=Reason.GATE_TIMEOUT, rules=())
        return decision
