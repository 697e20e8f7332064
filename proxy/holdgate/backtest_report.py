"""What a backtest found: the same, flips with what they are worth, undecidable; counted, and one document.

    change, rule, record -> Account -> Report

Flips are grouped by surface, rule and agent, with the sums of `amount` per `currency` and small examples.
Its document is the same for the same records and bundle (BT3 of backtest.py).
"""

from __future__ import annotations

import hashlib
from collections import Counter as Tally
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from .jcs import dumps_input
from .replay import Record

__all__ = ["Account", "Change", "Report"]

_EXAMPLES: Final = 3


class Change(StrEnum):
    SAME = "same"
    NEWLY_PERMITTED = "newly-permitted"
    NEWLY_DENIED = "newly-denied"
    NEWLY_SILENT = "newly-silent"
    UNDECIDABLE = "undecidable"


@dataclass(slots=True)
class _Flips:
    """Those of one kind, surface, rule and agent."""

    count: int = 0
    money: Tally[str] = field(default_factory=Tally)  # by currency, in the parameter's own units
    examples: list[tuple[int, int, str]] = field(default_factory=list)  # smallest first

    def add(self, receipt_id: str, inputs: Mapping[str, Any], size: int) -> None:
        self.count += 1
        total = 0
        for currency, amount in _money(inputs):
            self.money[currency] += amount
            total += amount
        example = total, size, receipt_id
        if len(self.examples) < _EXAMPLES or example < self.examples[-1]:
            self.examples = sorted([*self.examples, example])[:_EXAMPLES]


@dataclass(slots=True)
class Account:
    """What one of the two ways to decide again comes to."""

    same: int = 0
    classes: Tally[Change] = field(default_factory=Tally)
    undecidable: Tally[str] = field(default_factory=Tally)
    groups: dict[tuple[Change, str, str, str], _Flips] = field(default_factory=dict)

    def flip(self, change: Change, rule: str, record: Record, inputs: Mapping[str, Any]) -> None:
        """`rule` speaks for the new decision."""
        self.classes[change] += 1
        surface = inputs["actions"][0]["surface"] if inputs["actions"] else ""
        key = change, surface, rule, inputs["agent"]["id"]
        group = self.groups.get(key)
        if group is None:
            group = self.groups[key] = _Flips()
        group.add(record.statement["id"], inputs, len(record.inputs or b""))

    def document(self) -> dict[str, Any]:
        undecidable = sum(self.undecidable.values())
        counts = self.classes + Tally({Change.SAME: self.same, Change.UNDECIDABLE: undecidable})
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
            "counts": {change.value: counts[change] for change in Change},
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


def _money(inputs: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Currency and amount: the parameters of these names that maps of payments have."""
    for action in inputs["actions"]:
        params = action["params"]
        amount, currency = params.get("amount"), params.get("currency")
        if type(amount) is int:
            yield currency if isinstance(currency, str) else "", amount
