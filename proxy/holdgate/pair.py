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

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from . import gate
from .cel.evaluate import Frame
from .gate_input import action_frame, shared_frame
from .pair_plan import NEW_READABLE, OLD_READABLE, Bits, Both, Plan, plan_of, readable
from .policy_model import ROOTS, PolicySet

__all__ = ["Both", "Heard", "Pair"]

_COUNTERS: Final = ROOTS.index("counters")


def _evaluated(parts: tuple[Bits, ...], frame: Frame, mask: int) -> int:
    """`mask`, and what these add to it: one bit for true, another for what is no truth value."""
    for run, is_true, failed, behind in parts:
        try:
            value = run(frame)
        except Exception:  # noqa: BLE001 - as Program.evaluate() has it: whatever it is, it is no decision
            mask |= failed
        else:
            if value is False:
                continue
            mask |= is_true if value is True else failed
        if behind:
            mask = _evaluated(behind, frame, mask)
    return mask


class Heard(NamedTuple):
    """What the rules said about one action."""

    plan: Plan
    frame: Frame
    # Whether what decides beside the rules could be read, and what each part of them said: _evaluated().
    mask: int


class Pair:
    def __init__(self, old: PolicySet, new: PolicySet) -> None:
        self._old, self._new = old, new
        self._plans: dict[tuple[str, str], Plan | None] = {}

    def decide(self, inputs: Mapping[str, Any]) -> tuple[Both, Heard | None]:
        """Both decisions; and, of one action that both read alike, what recounted() goes on from."""
        actions = inputs["actions"]
        shared = shared_frame(self._old, inputs)
        if type(shared) is not list or not actions:
            return self._apart(inputs), None
        found = []
        for action in actions:
            heard = self._hear(shared, action)
            if heard is None:
                return self._apart(inputs), None
            plan, _, mask = heard
            found.append(plan.known.get(mask) or plan.both(mask, action))
        if shared[-1].left <= 0:
            return self._apart(inputs), None
        return (found[0], heard) if len(found) == 1 else (_combined(found), None)

    @staticmethod
    def recounted(heard: Heard, action: Mapping[str, Any]) -> Both | None:
        """What was heard, with other counters, of which only the new decision counts; None: ask the gate.

        The budget goes on: what is left is less than what the gate would have left, never more.
        """
        plan, frame, mask = heard
        frame[_COUNTERS] = action["counters"]
        mask &= plan.uncounted
        if plan.new_is_plain or readable(plan.new, action):
            mask |= NEW_READABLE
        for run, is_true, failed, before in plan.counting:
            if before and not mask & before:
                continue
            try:
                value = run(frame)
            except Exception:  # noqa: BLE001 - as in _evaluated()
                mask |= failed
            else:
                if value is not False:
                    mask |= is_true if value is True else failed
        if frame[-1].left <= 0:
            return None
        return plan.known_again.get(mask) or plan.new_again(mask, action)

    def _hear(self, shared: Frame, action: dict[str, Any]) -> Heard | None:
        """All rules of both; None where they cannot be asked together, or where the input is not theirs."""
        key = action["surface"], action["operation"]
        plan = self._plans[key] if key in self._plans else self._planned(key)
        frame = None if plan is None else action_frame(shared, action, plan.old)
        if plan is None or type(frame) is not list:
            return None
        mask = OLD_READABLE if plan.old_is_plain or readable(plan.old, action) else 0
        parts = plan.parts
        if mask if plan.is_alike else plan.new_is_plain or readable(plan.new, action):
            mask |= NEW_READABLE
        else:
            parts = plan.sighted
        return Heard(plan, frame, _evaluated(parts, frame, mask))

    def _planned(self, key: tuple[str, str]) -> Plan | None:
        found = self._plans[key] = plan_of(self._old, self._new, key)
        return found

    def _apart(self, inputs: Mapping[str, Any]) -> Both:
        """By the gate itself: what it cannot decide, or not together, is its to say."""
        old = gate.decide(self._old, inputs)
        plans = [self._plans.get((each["surface"], each["operation"])) for each in inputs["actions"]]
        # The gate is a pure function of what it reads: where that is the same, so is what it says.
        is_same = all(plan is not None and plan.is_same for plan in plans)
        return Both(old=old, new=old if is_same else gate.decide(self._new, inputs))


def _combined(found: list[Both]) -> Both:
    old = gate.combine([each.old for each in found])
    is_same = all(each.new is each.old for each in found)
    return Both(old=old, new=old if is_same else gate.combine([each.new for each in found]))
