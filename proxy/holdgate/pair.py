"""Two policy sets decide one recorded input; what they have in common is checked and evaluated once.

    old and new policies + input -> what gate.decide() says under each

For comparing bundles over many records. Where both read the same values of an operation (parameters,
attributes, counters, facts), its frame is made once, and a rule that stands in both is evaluated once.

Invariants (tests/test_pair.py):
  PR1  Both decisions are those of gate.decide(), whatever the policies and the input.
  PR2  One object comes back twice exactly where no action has rules that differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from . import gate
from .cel.evaluate import Frame
from .gate import Decision
from .gate_input import Problem, action_frame, shared_frame
from .policy_model import Applicable, PolicySet, Rule, RuleEffect

__all__ = ["Pair"]

# What gate.conclude() takes: names of the rules that deny, failed, permit, want a review.
type _Heard = tuple[list[str], list[str], list[str], list[str]]

_FAILED: Final = 1
_PLACES: Final = {RuleEffect.DENY: 0, RuleEffect.PERMIT: 2, RuleEffect.REVIEW: 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What both say about one operation, whose values they read alike."""

    old: Applicable
    new: Applicable
    # Each rule once: name, evaluate, its place in _Heard when true, is it an old one, is it a new one.
    rules: tuple[tuple[str, Callable[[Frame], Any], int, bool, bool], ...]
    is_same: bool  # every rule is in both


class Pair:
    def __init__(self, old: PolicySet, new: PolicySet) -> None:
        self._old, self._new = old, new
        self._plans: dict[tuple[str, str], _Plan | None] = {}

    def decide(self, inputs: Mapping[str, Any]) -> tuple[Decision, Decision]:
        """The old and the new decision."""
        plans = [self._plan(action["surface"], action["operation"]) for action in inputs["actions"]]
        if all(plan is not None and plan.is_same for plan in plans):
            # The gate is a pure function of what it reads: where that is the same, so is what it says.
            same = gate.decide(self._old, inputs)
            return same, same
        both = self._together(inputs, plans)
        return both or (gate.decide(self._old, inputs), gate.decide(self._new, inputs))

    def _together(
        self, inputs: Mapping[str, Any], plans: list[_Plan | None]
    ) -> tuple[Decision, Decision] | None:
        """None: each has to be asked on its own, or what is wrong with the input is the gate's to say."""
        shared = shared_frame(self._old, inputs)
        if isinstance(shared, Problem):
            return None
        olds, news = [], []
        for action, plan in zip(inputs["actions"], plans, strict=True):
            frame = None if plan is None else action_frame(shared, action, plan.old)
            if plan is None or frame is None or isinstance(frame, Problem):
                return None
            old: _Heard = ([], [], [], [])
            new: _Heard = ([], [], [], [])
            for rule, run, place, in_old, in_new in plan.rules:
                value = run(frame)
                if value is False:
                    continue
                if value is not True:
                    place = _FAILED
                if in_old:
                    old[place].append(rule)
                if in_new:
                    new[place].append(rule)
            olds.append(gate.conclude(action, plan.old, *old))
            news.append(gate.conclude(action, plan.new, *new))
        return gate.combine(olds), gate.combine(news)

    def _plan(self, surface: str, operation: str) -> _Plan | None:
        key = surface, operation
        if key not in self._plans:
            self._plans[key] = self._made(key)
        return self._plans[key]

    def _made(self, key: tuple[str, str]) -> _Plan | None:
        old, new = self._old.table.get(key), self._new.table.get(key)
        # Nowhere in one of them: whether it is mapped at all is another question.
        if old is None or new is None or _values(self._old, old) != _values(self._new, new):
            return None
        olds, news = _texts(self._old, old), _texts(self._new, new)
        rules = [(rule, True, text in news) for text, rule in olds.items()]
        rules += [(rule, False, True) for text, rule in news.items() if text not in olds]
        is_same = all(in_old and in_new for _, in_old, in_new in rules)
        # The rules of one decision share a budget of turns, which what the other bundle adds must not spend.
        if not is_same and any(rule.program.cost.turns for rule, _, _ in rules):
            return None
        plan = [
            (rule.name, rule.program.evaluate, _PLACES[rule.effect], in_old, in_new)
            for rule, in_old, in_new in sorted(rules, key=lambda each: each[0].name)
        ]
        return _Plan(old=old, new=new, rules=tuple(plan), is_same=is_same)


def _values(policies: PolicySet, applicable: Applicable) -> Any:
    """What its rules may read, and which of it has to be there."""
    counters = [(each.name, each.key, each.window_s, each.measure) for each in applicable.counters]
    facts = [replace(each, file="", line=0) for each in applicable.facts]
    bound = dict(applicable.bound), applicable.needs_bound
    return counters, facts, bound, dict(applicable.params), dict(policies.agent_attrs)


def _texts(policies: PolicySet, applicable: Applicable) -> dict[tuple[Any, ...], Rule]:
    """The rules by all that makes up what they say."""
    constants = {policy.name: repr(sorted(policy.constants.items())) for policy in policies.policies}
    return {
        (rule.name, rule.effect, rule.when, constants[rule.name.partition("/")[0]]): rule
        for rule in applicable.rules
    }
