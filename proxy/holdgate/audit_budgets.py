"""Re-verification of budgets: receipts, recorded inputs and permits' rows against the counters' rows.

Which permit charged, took over, gave back or released is worked out from the receipts alone. The amounts are
in the recorded input, and in the permit's row; where both are kept they must agree.

Invariant: A9 of audit.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .audit_rows import CounterRow
from .counters import budget_ids, charges_of_part
from .jcs import JcsError, loads_input_strict
from .ledger import Charge

__all__ = ["BudgetAudit"]


@dataclass(slots=True)
class _Holder:
    name: str  # for problems
    source: str  # the receipt that made the charges that it holds; "": it holds none
    lender: str
    released: bool
    row: tuple[tuple[Charge, ...], str] | None


class BudgetAudit:
    """Told of every PERMIT and outcome in the order of time; then asked for problems. `name`: of a leaf."""

    def __init__(self) -> None:
        self._holders: dict[str, _Holder] = {}
        self._ids: dict[str, tuple[str, ...]] = {}  # receipt -> its `budget`
        self._inputs: dict[str, tuple[Charge, ...]] = {}
        self._found: list[str] = []

    def permit(
        self,
        name: str,
        statement: Mapping[str, Any],
        row: tuple[tuple[Charge, ...], str] | None,
        inputs: bytes | None,
    ) -> None:
        receipt = statement["id"]
        source, lender = "", ""
        if "budget" in statement:
            source, self._ids[receipt] = receipt, tuple(statement["budget"])
        if inputs is not None and not self._record(receipt, inputs):
            self._found.append(f"{name}: its budget is not what the recorded input says ({receipt})")
        first = self._holders.get(statement.get("replay_of", ""))
        if first is not None and first.source and not source:
            source, lender, first.source = first.source, statement["replay_of"], ""
        if source or (row is not None and (row[0] or row[1])):
            self._holders[receipt] = _Holder(name, source, lender, False, row)

    def _record(self, receipt: str, inputs: bytes) -> bool:
        """Keep the charges of a recorded input; whether they are those that the receipt names."""
        ids = self._ids.get(receipt, ())
        if b'"budget"' not in inputs:
            return not ids
        try:
            part = loads_input_strict(inputs).get("budget", [])
            charges = charges_of_part(part)
        except (JcsError, KeyError, TypeError, ValueError, AttributeError):
            return False
        if charges:
            self._inputs[receipt] = charges
        return budget_ids(charges) == ids

    def outcome(self, receipt: str, without_effect: bool) -> None:
        holder = self._holders.get(receipt)
        if holder is None or not without_effect:
            return
        holder.released = True
        lender = self._holders.get(holder.lender)
        while lender is not None and lender.released:
            lender = self._holders.get(lender.lender)
        if lender is not None and holder.source:
            lender.source = holder.source
        holder.source = ""

    def problems(self, rows: Iterable[CounterRow], now_us: int) -> Iterator[str]:
        """`now_us` is the time of the last receipt: buckets that ended before may be gone."""
        yield from self._found
        expected: dict[tuple[str, int, int], tuple[int, int]] = {}
        for receipt, holder in self._holders.items():
            if holder.row is None:
                continue  # that there is no row is another problem
            charges, lender = holder.row
            text = self._holding(holder, charges, lender)
            if text:
                yield f"{holder.name}: the ledger's permit {text} ({receipt})"
            for charge in charges:
                key = (charge.meter, charge.at_us, charge.until_us)
                before = expected.get(key, (0, 0))
                expected[key] = (before[0] + charge.amount, before[1] + charge.count)
        for row in rows:
            wanted = expected.pop((row.meter, row.at_us, row.until_us), None)
            if row.until_us > now_us and wanted != (row.sum, row.count):
                yield f"counter {row.meter[:16]}: not what the permits charged from {row.at_us} on"
        for meter, at_us, until_us in expected:
            if until_us > now_us:
                yield f"counter {meter[:16]}: what the permits charged from {at_us} on is missing"

    def _holding(self, holder: _Holder, charges: tuple[Charge, ...], lender: str) -> str:
        if lender != holder.lender:
            return "repeats another one than its receipt says"
        if bool(charges) != bool(holder.source):
            return "holds charges that its receipts do not say" if charges else "has lost its charges"
        if holder.source and budget_ids(charges) != self._ids.get(holder.source):
            return "holds charges of other meters than its receipt names"
        recorded = self._inputs.get(holder.source)
        if holder.source and recorded is not None and recorded != charges:
            return "holds charges that differ from the recorded input"
        return ""
