"""What two policy sets say about one operation becomes one Plan: what they have in common stands in it once.

    the rules of old and new that apply to an operation -> Plan
    Plan + a mask of what its parts said                -> Both decisions

A part is some conjuncts of a rule; && has no order. Of two rules of one name, what they have in common is one
part, and what only one of them has is another, behind it: where the first is false, so are both rules.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from . import gate
from .cel.closures import Compiled, logic
from .cel.evaluate import Frame
from .facts import readable as readable_facts
from .gate import Decision
from .gate_input import readable_counters
from .policy_model import Applicable, PolicySet, Rule, RuleEffect

__all__ = ["NEW_READABLE", "OLD_READABLE", "Bits", "Both", "Plan", "plan_of", "readable"]

_FAILED: Final = 1
# Where gate.conclude() takes the names of the rules that deny, failed, permit, want a review.
_PLACES: Final = {RuleEffect.DENY: 0, RuleEffect.PERMIT: 2, RuleEffect.REVIEW: 3}
# The first bits of a mask: what old and new policies need beside their rules can be read.
OLD_READABLE: Final = 1
NEW_READABLE: Final = 2
_FIRST: Final = 4  # of the rules'. Those for failed are above all others: without, masks are small integers
_STEPS: Final = re.compile(r"\b(?:exists|all)\b").search  # what takes steps of a Budget


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Both:
    """The old and the new decision. Equal only to itself: a key for what is made of it."""

    old: Decision
    new: Decision


class Bits(NamedTuple):
    """Conjuncts of a rule, and what they add to the mask of an evaluation."""

    run: Callable[[Frame], Any]
    is_true: int
    failed: int
    behind: tuple[Bits, ...]  # of the same rule: asked unless this is false, and the rule with it


class _Recount(NamedTuple):
    """Conjuncts that read counters, to be evaluated again with others."""

    run: Callable[[Frame], Any]
    is_true: int
    failed: int
    before: int  # the bits of what it stands behind, 0 for nothing: without any, its rule is false


class _Said(NamedTuple):
    """What a mask means for one rule."""

    parts: tuple[tuple[int, int], ...]  # bits for true and failed; all of them true: the rule is
    rule: str
    place: int  # among the lists of gate.conclude()
    in_old: bool
    in_new: bool

    def outcome(self, mask: int) -> int | None:
        """The list of gate.conclude() that it belongs in; None where it is false: one part is enough."""
        place = self.place
        for is_true, failed in self.parts:
            if mask & failed:
                place = _FAILED
            elif not mask & is_true:
                return None
        return place


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What both say about one operation, whose values they read alike."""

    old: Applicable
    new: Applicable
    parts: tuple[Bits, ...]  # of all rules, each once
    sighted: tuple[Bits, ...]  # those that count where what the new one needs beside them cannot be read
    counting: tuple[_Recount, ...]  # those of the new one that read counters
    uncounted: int  # the bits of all others
    said: tuple[_Said, ...]
    is_same: bool  # every rule is in both, and what else decides is too
    is_alike: bool  # what decides beside the rules is
    # Nothing beside the rules decides: there is nothing to read.
    old_is_plain: bool
    new_is_plain: bool
    # What came out before, by the mask.
    known: dict[int, Both] = field(default_factory=dict)
    known_again: dict[int, Both] = field(default_factory=dict)

    def both(self, mask: int, action: Mapping[str, Any]) -> Both:
        found = self.known.get(mask)
        if found is None:
            found = self.known[mask] = self._concluded(mask, action)
        return found

    def new_again(self, mask: int, action: Mapping[str, Any]) -> Both:
        found = self.known_again.get(mask)
        if found is None:
            found = self.known_again[mask] = self._concluded(mask, action)
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


def readable(applicable: Applicable, action: Mapping[str, Any]) -> bool:
    if applicable.counters and not readable_counters(action, applicable):
        return False
    if applicable.needs_bound and "bound" not in action:
        return False
    return not applicable.facts or readable_facts(action, applicable.facts)


def _values(policies: PolicySet, applicable: Applicable) -> Any:
    """What an input is checked against before a rule sees it."""
    return dict(applicable.params), dict(applicable.bound), dict(policies.agent_attrs)


def _beside(applicable: Applicable) -> Any:
    """What decides beside the rules."""
    counters = [(each.name, each.measure) for each in applicable.counters]
    facts = [replace(each, file="", line=0) for each in applicable.facts]
    return counters, facts, applicable.needs_bound


def _is_plain(applicable: Applicable) -> bool:
    return not (applicable.counters or applicable.needs_bound or applicable.facts)


type _Text = tuple[Any, ...]
type _Conjunct = tuple[str, str]  # its text, and the constants that it names with their values


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Written:
    """One rule, and what its conjuncts are."""

    rule: Rule
    in_old: bool
    in_new: bool
    conjuncts: Mapping[_Conjunct, Callable[[Frame], Any]] | None  # None: one, because loops take steps


def _texts(policies: PolicySet, applicable: Applicable) -> dict[_Text, tuple[Rule, list[Any]]]:
    """The rules by all that makes up what they say: the constants that they name, too; and these."""
    constants = {policy.name: sorted(policy.constants.items()) for policy in policies.policies}
    found = {}
    for rule in applicable.rules:
        named = _named(constants[rule.name.partition("/")[0]], rule.when)
        found[rule.name, rule.effect, rule.when, repr(named)] = rule, named
    return found


def _named(constants: list[Any], text: str) -> list[Any]:
    # A constant whose name is not in the text is not read, however the text comes to its values.
    return [each for each in constants if each[0] in text]


def _written(olds: Mapping[_Text, Any], news: Mapping[_Text, Any]) -> dict[str, list[_Written]]:
    """By name, as the gate goes through them: a rule that both have as it is, or what each of them has."""
    found: dict[str, list[_Written]] = {}
    for text, (rule, named) in sorted({**olds, **news}.items(), key=lambda each: each[1][0].name):
        program, conjuncts = rule.program, None
        if not _STEPS(rule.when):
            texts = [(program.source[start:end], run) for start, end, run in program.conjuncts]
            conjuncts = {(each, repr(_named(named, each))): run for each, run in texts}
        one = _Written(rule=rule, in_old=text in olds, in_new=text in news, conjuncts=conjuncts)
        found.setdefault(rule.name, []).append(one)
    return found


@dataclass(slots=True)
class _Part:
    """One Bits in the making."""

    run: Callable[[Frame], Any]
    bit: int
    is_counting: bool
    is_needed: bool  # where what the new one needs beside its rules cannot be read, too
    in_new: bool
    before: int = 0  # the bit of what it stands behind
    behind: list[_Part] = field(default_factory=list)

    def bits(self, above: int, *, sighted: bool) -> Bits:
        """`above`: how far its bit for failed is above the one for true."""
        behind = [each.bits(above, sighted=sighted) for each in self.behind if each.is_needed or not sighted]
        return Bits(self.run, self.bit, self.bit << above, tuple(behind))


class _Parts:
    """The parts of all rules of an operation: what two rules of one name have in common is one part.

    The conjuncts that read counters are apart from the others, and what is the one rule's alone is apart from
    what is the other's; && has no order. A conjunct that fails for what is no EvalFault could make a
    difference: a counter that cannot be read, and then nothing but a deny rule that is true counts.
    """

    def __init__(self) -> None:
        self.roots: list[_Part] = []
        self.all: list[_Part] = []
        self.said: list[tuple[_Written, list[_Part]]] = []

    def add(self, rules: list[_Written]) -> None:
        """All rules of one name: one, or the old and the new one."""
        if len(rules) == 2 and all(each.conjuncts is not None for each in rules):
            self._add(rules)
        else:
            for each in rules:
                self._add([each])

    def _add(self, rules: list[_Written]) -> None:
        held: dict[tuple[bool, bool, bool], list[Callable[[Frame], Any]]] = {}
        for each in rules:
            if each.conjuncts is None:
                program = each.rule.program
                is_counting = any(path.startswith("counters.") for path in program.paths)
                held[is_counting, each.in_old, each.in_new] = [program.run]
                continue
            for key, run in each.conjuncts.items():
                is_shared = all(key in (other.conjuncts or ()) for other in rules) and len(rules) == 2
                if is_shared and each is not rules[0]:
                    continue
                owners = (True, True) if is_shared else (each.in_old, each.in_new)
                held.setdefault(("counters" in key[0], *owners), []).append(run)
        made: dict[tuple[bool, bool, bool], _Part] = {}
        # What both have first, and what reads counters last: the others decide whether it is asked at all.
        for of in sorted(held, key=lambda each: (each[0], -sum(each[1:]))):
            made[of] = self._part(of, held[of], rules, made)
        for each in rules:
            mine = [
                part for key, part in made.items() if (key[1] and each.in_old) or (key[2] and each.in_new)
            ]
            self.said.append((each, mine))

    def _part(
        self,
        key: tuple[bool, bool, bool],
        runs: list[Callable[[Frame], Any]],
        rules: list[_Written],
        made: Mapping[tuple[bool, bool, bool], _Part],
    ) -> _Part:
        is_counting, in_old, in_new = key
        run = runs[0] if len(runs) == 1 else logic(True, [Compiled(each) for each in runs]).run
        # Where counters are missing, what cannot deny and takes no steps from what can is not asked.
        may_deny = any(each.rule.effect is RuleEffect.DENY or each.conjuncts is None for each in rules)
        is_needed = not is_counting or in_old or may_deny
        part = _Part(run, _FIRST << len(self.all), is_counting, is_needed, in_new)
        self.all.append(part)
        parent = (made.get((False, in_old, in_new)) if is_counting else None) or made.get((False, True, True))
        if parent is None:
            self.roots.append(part)
        else:
            parent.behind.append(part)
            part.before = parent.bit
        return part


def plan_of(old: PolicySet, new: PolicySet, key: tuple[str, str]) -> Plan | None:
    """None where they do not read its values alike, or where one of them has no rule for it."""
    mine, other = old.table.get(key), new.table.get(key)
    # Nowhere in one of them: whether it is mapped at all is another question.
    if mine is None or other is None or _values(old, mine) != _values(new, other):
        return None
    return _planned(mine, _texts(old, mine), other, _texts(new, other))


def _planned(old: Applicable, olds: dict[_Text, Any], new: Applicable, news: dict[_Text, Any]) -> Plan:
    parts = _Parts()
    for rules in _written(olds, news).values():
        parts.add(rules)
    above = len(parts.all)
    counting = [part for part in parts.all if part.is_counting and part.in_new]
    is_alike = _beside(old) == _beside(new)
    return Plan(
        old=old,
        new=new,
        parts=tuple(part.bits(above, sighted=False) for part in parts.roots),
        sighted=tuple(part.bits(above, sighted=True) for part in parts.roots if part.is_needed),
        counting=tuple(
            _Recount(part.run, part.bit, part.bit << above, part.before | part.before << above)
            for part in counting
        ),
        uncounted=~sum((part.bit | part.bit << above for part in counting), start=NEW_READABLE),
        said=tuple(
            _Said(
                tuple((part.bit, part.bit << above) for part in mine),
                each.rule.name,
                _PLACES[each.rule.effect],
                each.in_old,
                each.in_new,
            )
            for each, mine in parts.said
        ),
        is_same=is_alike and olds.keys() == news.keys(),
        is_alike=is_alike,
        old_is_plain=_is_plain(old),
        new_is_plain=_is_plain(new),
    )
