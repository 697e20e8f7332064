"""Two policy sets decide one recorded input; what they have in common is checked and evaluated once.

    old and new policies + input -> what gate.decide() says under each
    the same + other counters    -> what the new ones say then

For comparing bundles over many records. Where both read the same parameters and attributes, the frame of an
operation is made once, a rule that stands in both is evaluated once, and what comes out of the same rules is
one object, made once. With other counters only the conjuncts that read counters are evaluated again.

Invariants (tests/test_pair.py):
  PR1  Both decisions are those of gate.decide(), whatever the policies and the input.
  PR2  One object comes back twice exactly where no action has rules that differ.
  PR3  With other counters, the new decision is that of gate.decide() over the input with these counters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from . import gate
from .cel.closures import Compiled, logic
from .cel.evaluate import Budget, Frame
from .facts import readable
from .gate import Decision
from .gate_input import action_frame, readable_counters, shared_frame
from .policy_model import ROOTS, Applicable, PolicySet, Rule, RuleEffect

__all__ = ["Both", "Heard", "Pair"]

_FAILED: Final = 1
# Where gate.conclude() takes the names of the rules that deny, failed, permit, want a review.
_PLACES: Final = {RuleEffect.DENY: 0, RuleEffect.PERMIT: 2, RuleEffect.REVIEW: 3}
_COUNTERS: Final = ROOTS.index("counters")
_STEPS: Final = re.compile(r"\b(?:exists|all)\b").search  # what takes steps of a Budget


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Both:
    """The old and the new decision. Equal only to itself: a key for what is made of it."""

    old: Decision
    new: Decision


class _Bits(NamedTuple):
    """Conjuncts of a rule, and what they add to the mask of an evaluation."""

    run: Callable[[Frame], Any]
    is_true: int
    failed: int


class _Said(NamedTuple):
    """What a mask means for one rule."""

    parts: tuple[_Bits, ...]  # all of them true: it is
    rule: str
    place: int  # among the lists of gate.conclude()
    in_old: bool
    in_new: bool

    def outcome(self, mask: int) -> int | None:
        """The list of gate.conclude() that it belongs in; None where it is false: one part is enough."""
        place = self.place
        for _, is_true, failed in self.parts:
            if mask & failed:
                place = _FAILED
            elif not mask & is_true:
                return None
        return place


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What both say about one operation, whose values they read alike."""

    old: Applicable
    new: Applicable
    parts: tuple[_Bits, ...]  # of all rules, each once
    counting: tuple[_Bits, ...]  # those of the new one that read counters
    uncounted: int  # the bits of all others
    sighted: tuple[_Bits, ...]  # those that count where what the new one needs beside them cannot be read
    said: tuple[_Said, ...]
    is_same: bool  # every rule is in both, and what else decides is too
    is_alike: bool  # what decides beside the rules is
    # What came out before: by the mask, and by whether the rest could be read.
    known: dict[tuple[int, bool, bool], Both] = field(default_factory=dict)
    known_again: dict[tuple[int, bool], Both] = field(default_factory=dict)

    def heard(self, frame: Frame, action: Mapping[str, Any]) -> Heard:
        first = _readable(self.old, action)
        second = first if self.is_alike else _readable(self.new, action)
        return Heard(self, frame, _evaluated(self.parts if second else self.sighted, frame, 0), first, second)

    def both(self, key: tuple[int, bool, bool], action: Mapping[str, Any]) -> Both:
        mask = key[0]
        found = self.known.get(key)
        if found is None:
            found = self.known[key] = self._concluded(mask, action)
        return found

    def new_again(self, mask: int, action: Mapping[str, Any]) -> Both:
        key = mask, _readable(self.new, action)
        found = self.known_again.get(key)
        if found is None:
            found = self.known_again[key] = self._concluded(mask, action)
        return found

    def _concluded(self, mask: int, action: Mapping[str, Any]) -> Both:
        old: tuple[list[str], ...] = ([], [], [], [])
        new: tuple[list[str], ...] = ([], [], [], [])
        for each in self.said:
            place = each.outcome(mask)
            if place is not None:
                if each.in_old:
                    old[place].append(each.rule)
                if each.in_new:
                    new[place].append(each.rule)
        decision = gate.conclude(action, self.old, *old)
        return Both(old=decision, new=decision if self.is_same else gate.conclude(action, self.new, *new))


def _readable(applicable: Applicable, action: Mapping[str, Any]) -> bool:
    if applicable.counters and not readable_counters(action, applicable):
        return False
    if applicable.needs_bound and "bound" not in action:
        return False
    return not applicable.facts or readable(action, applicable.facts)


def _evaluated(parts: tuple[_Bits, ...], frame: Frame, mask: int) -> int:
    """`mask`, and what these add to it: a bit for true, another for what is no truth value."""
    for run, is_true, failed in parts:
        try:
            value = run(frame)
        except Exception:  # noqa: BLE001 - as Program.evaluate() has it: whatever it is, it is no decision
            mask |= failed
        else:
            if value is not False:
                mask |= is_true if value is True else failed
    return mask


class Heard(NamedTuple):
    """What the rules said about one action."""

    plan: _Plan
    frame: Frame
    mask: int
    # Whether the rest that decides could be read, for the old one and the new one.
    old_readable: bool
    new_readable: bool


class Pair:
    def __init__(self, old: PolicySet, new: PolicySet) -> None:
        self._old, self._new = old, new
        self._plans: dict[tuple[str, str], _Plan | None] = {}

    def decide(self, inputs: Mapping[str, Any]) -> tuple[Both, Heard | None]:
        """Both decisions; and, of one action that both read alike, what recounted() goes on from."""
        actions = inputs["actions"]
        shared = shared_frame(self._old, inputs)
        if type(shared) is not list or not actions:
            return self._apart(inputs), None
        if len(actions) == 1:
            one = self._hear(shared, actions[0])
            if one is None or shared[-1].left <= 0:
                return self._apart(inputs), None
            return one.plan.both(one[2:], actions[0]), one
        found = []
        for action in actions:
            heard = self._hear(shared, action)
            if heard is None:
                return self._apart(inputs), None
            found.append(heard.plan.both(heard[2:], action))
        return (_combined(found) if shared[-1].left > 0 else self._apart(inputs)), None

    @staticmethod
    def recounted(heard: Heard, action: Mapping[str, Any]) -> Both | None:
        """What was heard, with other counters, of which only the new decision counts; None: ask the gate."""
        plan, frame, mask, _, _ = heard
        frame[_COUNTERS], frame[-1] = action["counters"], Budget()
        mask = _evaluated(plan.counting, frame, mask & plan.uncounted)
        return plan.new_again(mask, action) if frame[-1].left > 0 else None

    def _hear(self, shared: Frame, action: dict[str, Any]) -> Heard | None:
        """All rules of both; None where they cannot be asked together, or where the input is not theirs."""
        key = action["surface"], action["operation"]
        plan = self._plans[key] if key in self._plans else self._made(key)
        frame = None if plan is None else action_frame(shared, action, plan.old)
        if plan is None or type(frame) is not list:
            return None
        return plan.heard(frame, action)

    def _apart(self, inputs: Mapping[str, Any]) -> Both:
        """By the gate itself: what it cannot decide, or not together, is its to say."""
        old = gate.decide(self._old, inputs)
        plans = [self._plans.get((each["surface"], each["operation"])) for each in inputs["actions"]]
        # The gate is a pure function of what it reads: where that is the same, so is what it says.
        is_same = all(plan is not None and plan.is_same for plan in plans)
        return Both(old=old, new=old if is_same else gate.decide(self._new, inputs))

    def _made(self, key: tuple[str, str]) -> _Plan | None:
        old, new = self._old.table.get(key), self._new.table.get(key)
        # Nowhere in one of them: whether it is mapped at all is another question.
        if old is not None and new is not None and _values(self._old, old) == _values(self._new, new):
            self._plans[key] = _planned(old, _texts(self._old, old), new, _texts(self._new, new))
        else:
            self._plans[key] = None
        return self._plans[key]


def _combined(found: list[Both]) -> Both:
    old = gate.combine([each.old for each in found])
    is_same = all(each.new is each.old for each in found)
    return Both(old=old, new=old if is_same else gate.combine([each.new for each in found]))


def _values(policies: PolicySet, applicable: Applicable) -> Any:
    """What an input is checked against before a rule sees it."""
    return dict(applicable.params), dict(applicable.bound), dict(policies.agent_attrs)


def _beside(applicable: Applicable) -> Any:
    """What decides beside the rules."""
    counters = [(each.name, each.measure) for each in applicable.counters]
    facts = [replace(each, file="", line=0) for each in applicable.facts]
    return counters, facts, applicable.needs_bound


type _Text = tuple[Any, ...]


def _texts(policies: PolicySet, applicable: Applicable) -> dict[_Text, Rule]:
    """The rules by all that makes up what they say: the constants that they name, too."""
    constants = {policy.name: sorted(policy.constants.items()) for policy in policies.policies}
    found: dict[_Text, Rule] = {}
    for rule in applicable.rules:
        # A constant whose name is not in the text is not read, however the text comes to its values.
        named = [each for each in constants[rule.name.partition("/")[0]] if each[0] in rule.when]
        found[rule.name, rule.effect, rule.when, repr(named)] = rule
    return found


def _parts(rule: Rule, text: _Text) -> Iterator[tuple[_Text, Callable[[Frame], Any], bool]]:
    """What to evaluate of it: its conjuncts that read counters apart from the others, as && has no order.

    One that fails for what is no EvalFault could make a difference: a counter that cannot be read, and then
    nothing but a deny rule that is true counts.
    """
    program, when = rule.program, rule.program.source
    if _STEPS(when):
        yield text, program.run, any(path.startswith("counters.") for path in program.paths)
        return
    for is_counting in (False, True):
        mine = [each for each in program.conjuncts if ("counters" in when[each[0] : each[1]]) is is_counting]
        if mine:
            runs = [Compiled(run) for _, _, run in mine]
            run = runs[0].run if len(runs) == 1 else logic(True, runs).run
            yield (rule.name, *[when[start:end] for start, end, _ in mine], text[-1]), run, is_counting


def _planned(old: Applicable, olds: dict[_Text, Rule], new: Applicable, news: dict[_Text, Rule]) -> _Plan:
    parts: dict[_Text, _Bits] = {}
    counting: dict[_Text, _Bits] = {}
    sighted: dict[_Text, _Bits] = {}
    said = []
    is_alike = _beside(old) == _beside(new)
    # By name, as the gate goes through them.
    for text, rule in sorted((olds | news).items(), key=lambda each: each[1].name):
        mine = []
        for key, run, is_counting in _parts(rule, text):
            bits = parts.setdefault(key, _Bits(run, 1 << 2 * len(parts), 2 << 2 * len(parts)))
            mine.append(bits)
            if is_counting and text in news:
                counting[key] = bits
            # Where counters are missing, what cannot deny and takes no steps from what can is not asked.
            if not is_counting or text in olds or rule.effect is RuleEffect.DENY or _STEPS(rule.when):
                sighted[key] = bits
        said.append(_Said(tuple(mine), rule.name, _PLACES[rule.effect], text in olds, text in news))
    return _Plan(
        old=old,
        new=new,
        parts=tuple(parts.values()),
        counting=tuple(counting.values()),
        uncounted=~sum(bits.is_true | bits.failed for bits in counting.values()),
        sighted=tuple(sighted.values()),
        said=tuple(said),
        is_same=is_alike and olds.keys() == news.keys(),
        is_alike=is_alike,
    )
