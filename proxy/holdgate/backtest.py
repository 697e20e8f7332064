"""What another bundle would have decided about the recorded decisions: flips, and what they are worth.

    records in log order + old bundles + new bundle -> Report

First every record is decided again under its own bundle: when that does not come out as recorded, nothing
that follows would mean anything, and the backtest ends. Then under the new bundle, twice: *frozen*, with the
counters as they were recorded, and *resimulated*, with counters built from what the new bundle would have
permitted (a tighter rule early in the day leaves room later). What agents would have sent instead cannot be
known.

Invariants (tests/test_backtest.py):
  BT1  A record that is not decided again as it was recorded ends the backtest: NotReplayed, never a report.
  BT2  Each record is counted in exactly one class; what cannot be decided (destroyed, unmapped now, other
       parameters, counters that were not recorded) is undecidable, never a guess.
  BT3  The same records and bundle give the same report, byte for byte, so that its digest can be accepted.
"""

from __future__ import annotations

import hashlib
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from heapq import heappop, heappush
from types import MappingProxyType
from typing import Any, Final

import orjson

from . import gate
from .bundle import Bundle
from .counters import fill, meters_of, uses_of_all
from .errors import HoldgateError, Outcome, Reason
from .gate import Decision
from .jcs import dumps_input
from .ledger import Budgets, Charge, Total
from .pair import Pair
from .policy_model import PolicySet
from .receipt import input_digest
from .replay import Record
from .statement import parse_us

__all__ = ["Change", "NotReplayed", "Report", "backtest"]

_EXAMPLES: Final = 3


class Change(StrEnum):
    SAME = "same"
    NEWLY_PERMITTED = "newly-permitted"
    NEWLY_DENIED = "newly-denied"
    NEWLY_SILENT = "newly-silent"
    UNDECIDABLE = "undecidable"


_FLIPS: Final = {
    Outcome.PERMIT: Change.NEWLY_PERMITTED,
    Outcome.DENY: Change.NEWLY_DENIED,
    Outcome.SILENCE: Change.NEWLY_SILENT,
}


class NotReplayed(HoldgateError):
    """The log and its bundles do not give again what they gave: look at `holdgate replay` first."""


@dataclass(slots=True)
class _Group:
    """Flips of one kind, surface, rule and agent."""

    count: int = 0
    money: Tally[str] = field(default_factory=Tally)  # by currency, in the parameter's own units
    examples: list[tuple[int, int, str]] = field(default_factory=list)  # smallest first

    def add(self, receipt_id: str, inputs: Mapping[str, Any], size: int) -> None:
        self.count += 1
        worth = _money(inputs)
        self.money.update(worth)
        self.examples = sorted([*self.examples, (sum(worth.values()), size, receipt_id)])[:_EXAMPLES]


@dataclass(slots=True)
class _Tally:
    """One of the two ways to decide again."""

    classes: Tally[Change] = field(default_factory=Tally)
    undecidable: Tally[str] = field(default_factory=Tally)
    groups: dict[tuple[Change, str, str, str], _Group] = field(default_factory=dict)

    def add(self, record: Record, inputs: Mapping[str, Any], old: Decision, new: Decision | str) -> None:
        if isinstance(new, str):
            self.classes[Change.UNDECIDABLE] += 1
            self.undecidable[new] += 1
            return
        if new.outcome is old.outcome:
            self.classes[Change.SAME] += 1
            return
        change = _FLIPS[new.outcome]
        self.classes[change] += 1
        rule = (new.rules or old.rules or ("",))[0]
        surface = inputs["actions"][0]["surface"] if inputs["actions"] else ""
        key = change, surface, rule, inputs["agent"]["id"]
        group = self.groups.get(key)
        if group is None:
            group = self.groups[key] = _Group()
        group.add(record.statement["id"], inputs, len(record.inputs or b""))

    def document(self) -> dict[str, Any]:
        rows = [
            {
                "change": change.value,
                "surface": surface,
                "rule": rule,
                "agent": agent,
                "count": group.count,
                "money": dict(sorted(group.money.items())),
                "examples": [receipt_id for _, _, receipt_id in group.examples],
            }
            for (change, surface, rule, agent), group in sorted(self.groups.items())
        ]
        return {
            "counts": {change.value: self.classes[change] for change in Change},
            "undecidable": dict(sorted(self.undecidable.items())),
            "flips": rows,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    records: int  # decisions that were read
    replayed: int  # of which the gate was asked, and said the same again
    not_asked: int  # refused before the gate
    frozen: Mapping[str, Any]
    resimulated: Mapping[str, Any]
    bundle: str

    def document(self) -> dict[str, Any]:
        return {
            "bundle": self.bundle,
            "records": self.records,
            "replayed": self.replayed,
            "not_asked": self.not_asked,
            "frozen": self.frozen,
            "resimulated": self.resimulated,
        }

    @property
    def digest(self) -> str:
        return (
            "sha256:" + hashlib.sha256(b"holdgate-backtest-v1\n" + dumps_input(self.document())).hexdigest()
        )

    def count(self, change: Change) -> int:
        """The larger of the two counts."""
        return max(int(each["counts"][change.value]) for each in (self.frozen, self.resimulated))


def backtest(
    records: Iterable[Record],
    policies_of: Callable[[str], PolicySet | None],
    new: Bundle,
    *,
    without_effect: Mapping[str, int] = MappingProxyType({}),
    progress: Callable[[int], None] = lambda _: None,
) -> Report:
    """`without_effect`: permits that ended not_sent or failed, and since when (us) they charge nothing."""
    frozen, simulated = _Tally(), _Tally()
    meters = _Meters()
    pairs: dict[str, Pair] = {}
    counting = any(each.counters for each in new.policies.table.values())
    seen = replayed = not_asked = 0
    for record in records:
        seen += 1
        if not seen & 255:
            progress(seen)
        said = record.statement
        if "input_digest" not in said:
            not_asked += 1
            continue
        inputs, policies = _read(record, policies_of)
        if policies is None:
            nothing = {"actions": [], "agent": {"id": ""}}
            for each in (frozen, simulated):
                each.add(record, nothing, _SILENT, str(inputs))
            continue
        digest = said["policy"]["digest"]
        pair = pairs.get(digest)
        if pair is None:
            pair = pairs[digest] = Pair(policies, new.policies)
        old, decided = pair.decide(inputs)
        _check_same(said, old)
        replayed += 1
        now = old if decided is old else _judged(new, inputs, decided)
        frozen.add(record, inputs, old, now)
        if counting:
            again = _resimulated(new, inputs, said, meters, now, free_us=without_effect.get(said["id"]))
            simulated.add(record, inputs, old, again)
    found = frozen.document()
    return Report(
        records=seen,
        replayed=replayed,
        not_asked=not_asked,
        frozen=found,
        resimulated=simulated.document() if counting else found,
        bundle=new.digest,
    )


_SILENT: Final = Decision(outcome=Outcome.SILENCE, reason=Reason.INTERNAL_ERROR, rules=())


def _read(record: Record, policies_of: Callable[[str], PolicySet | None]) -> tuple[Any, PolicySet | None]:
    """Input and policies of its time; or why it cannot be decided again, and nothing. BT1."""
    said = record.statement
    if record.inputs is None:
        return "the input was destroyed or not kept", None
    if said["reason"] == Reason.GATE_TIMEOUT.value:
        return "decided too late", None
    if input_digest(record.inputs, record.salt) != said["input_digest"]:
        raise NotReplayed(f"{said['id']}: the stored input is not the one that was decided")
    policies = policies_of(said["policy"]["digest"]) if said["engine"] == gate.ENGINE else None
    if policies is None:
        raise NotReplayed(f"{said['id']}: its bundle {said['policy']['digest']} is not here")
    return orjson.loads(record.inputs), policies  # its digest is signed: its spelling is not in question


def _check_same(said: Mapping[str, Any], old: Decision) -> None:
    """BT1."""
    if (old.outcome, old.reason, list(old.rules)) != (said["outcome"], said["reason"], said.get("rules", [])):
        raise NotReplayed(f"{said['id']}: recorded {said['outcome']} {said['reason']}, now {old.outcome}")


def _judged(new: Bundle, inputs: Mapping[str, Any], decision: Decision) -> Decision | str:
    """The new decision, or why it is none."""
    if decision.rules or decision.reason is Reason.NO_RULE_MATCHED:
        if decision.reason is Reason.NO_RULE_MATCHED and not _mapped(new, inputs):
            return "an operation that the new maps do not have"
        return decision
    if decision.reason is Reason.INPUT_UNAVAILABLE:
        return "a counter, fact or prepared object that was not recorded"
    # An error without a rule is one of the input: other parameters, types or attributes than recorded.
    return "the recorded input is not what the new maps and policies read"


def _mapped(new: Bundle, inputs: Mapping[str, Any]) -> bool:
    known = new.policies.table
    for action in inputs["actions"]:
        if (action["surface"], action["operation"]) not in known:
            if action["operation"] not in new.index.operations(action["surface"]):
                return False
    return True


# --- counters, built again ---


class _Meters:
    """Totals of meters over ascending time."""

    def __init__(self) -> None:
        self._totals: dict[str, list[int]] = {}
        # What is taken off again, the earliest first; the number keeps equal times apart.
        self._ends: dict[str, list[tuple[int, int, Charge]]] = {}
        self._number = 0

    def total(self, meter: str, now_us: int) -> Total:
        ends, total = self._ends.get(meter), self._totals.get(meter, [0, 0])
        while ends and ends[0][0] <= now_us:
            _, _, over = heappop(ends)
            total[0] -= over.amount
            total[1] -= over.count
        return Total(sum=total[0], count=total[1])

    def charge(self, charges: Iterable[Charge], free_us: int | None) -> None:
        """`free_us`: when it ended without effect, if it did."""
        for each in charges:
            until_us = each.until_us if free_us is None else min(each.until_us, free_us)
            self._number += 1
            heappush(self._ends.setdefault(each.meter, []), (until_us, self._number, each))
            total = self._totals.setdefault(each.meter, [0, 0])
            total[0] += each.amount
            total[1] += each.count


def _resimulated(
    new: Bundle,
    inputs: dict[str, Any],
    said: Mapping[str, Any],
    meters: _Meters,
    frozen: Decision | str,
    *,
    free_us: int | None,
) -> Decision | str:
    policies = new.policies
    if not any(policies.counters_of(each["surface"], each["operation"]) for each in inputs["actions"]):
        return frozen  # no counter of the new bundle has a say
    actions = [{**action} for action in inputs["actions"]]
    uses = uses_of_all(policies.counters_of, inputs["agent"], actions, secret=None)
    now_us = parse_us(said["iat"])
    totals = {meter: meters.total(meter, now_us) for meter in meters_of(uses)}
    charges = fill(actions, uses, Budgets(totals=totals, standing={}), prior="", now_us=now_us)
    if actions == inputs["actions"]:
        decision = frozen  # the counters are what was recorded
    else:
        again = {**inputs, "actions": actions}
        decision = _judged(new, again, gate.decide(new.policies, again))
    # A replay of a permitted request charges nothing; what had no effect gives its charge back.
    if isinstance(decision, Decision) and decision.outcome is Outcome.PERMIT and "replay_of" not in said:
        meters.charge(charges, free_us)
    return decision


def _money(inputs: Mapping[str, Any]) -> Tally[str]:
    """Amounts by currency: the parameters of these names that maps of payments have."""
    worth: Tally[str] = Tally()
    for action in inputs["actions"]:
        params = action["params"]
        amount, currency = params.get("amount"), params.get("currency")
        if type(amount) is int:
            worth[currency if isinstance(currency, str) else ""] += amount
    return worth
