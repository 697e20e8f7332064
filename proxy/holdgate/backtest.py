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

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import batched
from typing import Any, Final

import orjson

from . import gate
from .backtest_report import Account, Change, Report
from .bundle import Bundle
from .counters import Charged, Meters
from .errors import HoldgateError, Outcome, Reason
from .gate import Decision
from .pair import Both, Heard, Pair
from .policy_model import PolicySet
from .receipt import input_digest
from .replay import Record
from .statement import parse_us

__all__ = ["NotReplayed", "backtest"]

_FLIPS: Final = {
    Outcome.PERMIT: Change.NEWLY_PERMITTED,
    Outcome.DENY: Change.NEWLY_DENIED,
    Outcome.SILENCE: Change.NEWLY_SILENT,
}


class NotReplayed(HoldgateError):
    """The log and its bundles do not give again what they gave: look at `holdgate replay` first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Verdict:
    """What two decisions come to; made once for all records of which the same is said."""

    both: Both
    # The old one, as receipts have it.
    outcome: str
    reason: str
    rules: list[str]
    # The new one: PERMIT of the action or not, the kind of change, and the rule that speaks for it.
    permits: bool
    change: Change
    rule: str
    why: str  # it is undecidable, else ""


def backtest(
    records: Iterable[Record],
    policies_of: Callable[[str], PolicySet | None],
    new: Bundle,
    *,
    without_effect: Callable[[], Mapping[str, int]] = dict,
    progress: Callable[[int], None] = lambda _: None,
) -> Report:
    """`without_effect`: permits that ended not_sent or failed, and since when (us) they charge nothing; asked
    where there are counters to build again. Raises NotReplayed."""
    frozen, simulated = Account(), Account()
    again = _Again(new, without_effect()) if _counts(new) else None
    olds = _Olds(policies_of, new)
    seen = replayed = not_asked = 0
    # Step by step over a few records each, not record by record: what a step runs stays near the processor.
    for some in batched(records, _TOGETHER):
        seen += len(some)
        progress(seen)
        asked = [record for record in some if "input_digest" in record.statement]
        not_asked += len(some) - len(asked)
        whole, whys, broken = _whole(asked)
        for account in (frozen, simulated):
            account.undecidable.update(whys)
        # The digest of an input is signed: its spelling is not in question.
        inputs = [orjson.loads(record.inputs or b"") for record in whole]
        judged = [olds.judged(record.statement, each) for record, each in zip(whole, inputs, strict=True)]
        if broken is not None:
            raise broken
        replayed += len(judged)
        for record, each, (old, verdict, heard) in zip(whole, inputs, judged, strict=True):
            _tell(frozen, verdict, record, each)
            if again is not None:
                _tell(simulated, again.judged(old, verdict, heard, each, record.statement), record, each)
    found = frozen.document()
    return Report(
        records=seen,
        replayed=replayed,
        not_asked=not_asked,
        frozen=found,
        resimulated=found if again is None else simulated.document(),
        bundle=new.digest,
    )


def _counts(bundle: Bundle) -> bool:
    return any(each.counters for each in bundle.policies.table.values())


def _tell(account: Account, verdict: _Verdict, record: Record, inputs: Mapping[str, Any]) -> None:
    if verdict.change is Change.SAME:  # by far the most
        account.same += 1
    elif verdict.change is Change.UNDECIDABLE:
        account.undecidable[verdict.why] += 1
    else:
        account.flip(verdict.change, verdict.rule, record, inputs)


def _whole(records: Iterable[Record]) -> tuple[list[Record], list[str], NotReplayed | None]:
    """The records that can be decided again; why others cannot; and the first that ends it, which is the last
    one looked at: what is wrong with those before it is said first."""
    whole: list[Record] = []
    whys: list[str] = []
    for record in records:
        try:
            why = _undecidable(record)
        except NotReplayed as error:
            return whole, whys, error
        if why:
            whys.append(why)
        else:
            whole.append(record)
    return whole, whys, None


_TOGETHER: Final = 64  # records: some 10 KB each once they are decoded
_NO_RULES: Final[list[str]] = []
_TOO_LATE: Final = Reason.GATE_TIMEOUT.value


def _undecidable(record: Record) -> str:
    """Why it cannot be decided again, or "". Raises NotReplayed for what is not what was decided. BT1."""
    said = record.statement
    if record.inputs is None:
        return "the input was destroyed or not kept"
    if said["reason"] == _TOO_LATE:
        return "decided too late"
    if input_digest(record.inputs, record.salt) != said["input_digest"]:
        raise NotReplayed(f"{said['id']}: the stored input is not the one that was decided")
    if said["engine"] != gate.ENGINE:
        raise NotReplayed(f"{said['id']}: decided by {said['engine']}, which is not here")
    return ""


class _Olds:
    """The bundles of the log."""

    def __init__(self, policies_of: Callable[[str], PolicySet | None], new: Bundle) -> None:
        self._policies_of, self._new = policies_of, new
        self._known: dict[str, _Old] = {}

    def judged(
        self, said: Mapping[str, Any], inputs: Mapping[str, Any]
    ) -> tuple[_Old, _Verdict, Heard | None]:
        """A record under its own bundle and the new one. Raises NotReplayed. BT1."""
        digest = said["policy"]["digest"]
        old = self._known.get(digest)
        if old is None:
            old = self._known[digest] = _Old(said, self._policies_of, self._new)
        verdict, heard = old.judged(inputs)
        if (
            said["outcome"] != verdict.outcome
            or said["reason"] != verdict.reason
            or said.get("rules", _NO_RULES) != verdict.rules
        ):
            outcome = f"recorded {said['outcome']} {said['reason']}, now {verdict.outcome}"
            raise NotReplayed(f"{said['id']}: {outcome}")
        return old, verdict, heard


class _Old:
    """One bundle of the log, beside the new one."""

    def __init__(
        self, said: Mapping[str, Any], policies_of: Callable[[str], PolicySet | None], new: Bundle
    ) -> None:
        """`said` is the first that names it. Raises NotReplayed."""
        digest = said["policy"]["digest"]
        policies = policies_of(digest)
        if policies is None:
            raise NotReplayed(f"{said['id']}: its bundle {digest} is not here")
        self._new = new
        self._pair = Pair(policies, new.policies)
        self._known: dict[Both, _Verdict] = {}
        self._known_again: dict[tuple[Both, Both], _Verdict] = {}

    def judged(self, inputs: Mapping[str, Any]) -> tuple[_Verdict, Heard | None]:
        both, heard = self._pair.decide(inputs)
        verdict = self._known.get(both)
        if verdict is None:
            verdict = _verdict(self._new, inputs, both)
            if heard is not None:  # else it is an object of this record alone
                self._known[both] = verdict
        return verdict, heard

    def judged_again(self, verdict: _Verdict, heard: Heard | None, inputs: Mapping[str, Any]) -> _Verdict:
        """The same decided with other counters, which stand in `inputs` now."""
        both = None if heard is None else Pair.recounted(heard, inputs["actions"][0])
        if both is not None:
            known = self._known_again.get((verdict.both, both))
            if known is None:
                made = Both(old=verdict.both.old, new=both.new)
                known = self._known_again[verdict.both, both] = _verdict(self._new, inputs, made)
            return known
        now = gate.decide(self._new.policies, inputs)
        return _verdict(self._new, inputs, Both(old=verdict.both.old, new=now))


def _verdict(new: Bundle, inputs: Mapping[str, Any], both: Both) -> _Verdict:
    old, now = both.old, both.new
    why = "" if now is old else _no_decision(new, inputs, now)
    change = Change.SAME if now.outcome is old.outcome else _FLIPS[now.outcome]
    return _Verdict(
        both=both,
        outcome=old.outcome.value,
        reason=old.reason.value,
        rules=list(old.rules),
        permits=now.outcome is Outcome.PERMIT and not why,
        change=Change.UNDECIDABLE if why else change,
        rule=(now.rules or old.rules or ("",))[0],
        why=why,
    )


def _no_decision(new: Bundle, inputs: Mapping[str, Any], decision: Decision) -> str:
    """Why the new decision is none; "" where it is one."""
    if decision.reason is Reason.NO_RULE_MATCHED:
        return "" if _mapped(new, inputs) else "an operation that the new maps do not have"
    if decision.rules:
        return ""
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


class _Again:
    """Counters built again from what the new bundle permits, record by record."""

    def __init__(self, new: Bundle, without_effect: Mapping[str, int]) -> None:
        self._without_effect, meters = without_effect, Meters()
        table = new.policies.table
        self._gauges = {of: meters.gauges(each.counters) for of, each in table.items() if each.counters}

    def judged(
        self,
        old: _Old,
        verdict: _Verdict,
        heard: Heard | None,
        inputs: dict[str, Any],
        said: Mapping[str, Any],
    ) -> _Verdict:
        """`verdict` is of the counters that were recorded; the others are written over them in `inputs`."""
        charged: list[Charged] = []
        now_us = 0
        changed = False
        for action in inputs["actions"]:
            gauges = self._gauges.get((action["surface"], action["operation"]))
            if gauges is not None:
                now_us = parse_us(said["iat"])
                found = Meters.counted(gauges, inputs["agent"], action, now_us, charged)
                if found != action.get("counters"):
                    action["counters"] = found  # what was recorded was judged already
                    changed = True
        if changed:
            verdict = old.judged_again(verdict, heard, inputs)
        # A replay of a permitted request charges nothing; what had no effect gives its charge back.
        if charged and verdict.permits and "replay_of" not in said:
            Meters.charge(charged, now_us, self._without_effect.get(said["id"]))
        return verdict
