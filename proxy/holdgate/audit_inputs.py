"""Whether what is kept beside the receipts is what they name, and what is missing was destroyed by order.

Pure; read by audit.py, receipt by receipt, and asked for the rest at the end.

Invariants (tests/test_audit.py has one test named after each; AI4: tests/test_kept_answers.py):
  AI1  An input, key or salt that is missing is a problem, unless a later shred or retention covers it.
  AI2  A sealed input that does not open, or that is not what its receipt names, is a problem.
  AI3  What a retention receipt says was destroyed and is still there is a problem.
  AI4  A kept answer that is not the one that its outcome names is a problem, and so is one that a later shred
       or retention covers and that can still be opened.

That an answer is not there is none: it is forgotten when its key expires, and no receipt says when that is.
It cannot see whether a commitment is right: that needs the request (`holdgate receipts disclose`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from .audit_rows import LogRecord
from .erasure import RETENTION, SHRED, Erasure
from .receipt import answer_digest, input_digest
from .sealing import SealError, never_kept
from .statement import parse_us

__all__ = ["Decided", "InputAudit"]

_ACTIONS: Final = (SHRED, RETENTION)


type Decided = tuple[int, str, str, str, int]  # index, id, agent, surface, iat_us of a decision
type _Missing = tuple[int, str, str, str, int, bool]  # index, id, agent, surface, iat_us, the salt too


class InputAudit:
    """`problem` is told what is wrong, with the leaf and the receipt."""

    def __init__(self, problem: Callable[[str], None]) -> None:
        self._problem = problem
        self._missing: list[_Missing] = []
        self._oldest_us: int | None = None  # of what is still there
        self._by_id: dict[str, int] = {}  # shredded by name -> index of the receipt that says so
        self._filters: list[tuple[int, Erasure]] = []
        self._answers: list[tuple[int, Decided]] = []  # that can be opened: leaf of the outcome, the PERMIT
        self._before_us = 0  # of the furthest retention
        self.kept = self.destroyed = 0

    def decision(self, index: int, record: LogRecord, statement: Mapping[str, Any]) -> bytes | None:
        """The recorded input, opened where it was sealed; None where there is none."""
        digest, found = statement.get("input_digest", ""), record.inputs
        if digest.startswith("hmac-") or (not digest and "commitment" in statement["request"]):
            found = self._sealed(index, record, digest)
        elif digest and not never_kept(statement):
            self._clear(index, record, digest)
        elif record.inputs is not None:
            self._at(index, record, "the recorded input is not the one that was decided")
        if record.inputs is not None and record.sealed is not None:
            self._at(index, record, "an input in clear beside a sealed one")
        return found

    def answer(self, index: int, record: LogRecord, digest: str, permit: Decided) -> None:
        """What is kept of the answer to a PERMIT, beside its outcome."""
        stored = record.sealed
        if stored is None or not stored.has_key:
            return
        self._answers.append((index, permit))
        if stored.data is not None and answer_digest(stored.data) != digest:
            self._at(index, record, "the kept answer is not the one that came")

    def erasure(self, index: int, statement: Mapping[str, Any]) -> None:
        """An admin receipt: the ones that speak of erasures are remembered."""
        if statement["action"] not in _ACTIONS:
            return
        order = Erasure.of(statement["action"], statement["details"])
        if order.ids:
            self._by_id.update(dict.fromkeys(order.ids, index))
        elif order.action == RETENTION:
            # Not later than its own receipt, so what it covers comes before it in the log.
            self._before_us = max(self._before_us, min(order.before_us, parse_us(statement["iat"])))
        else:
            self._filters.append((index, order))

    def end(self) -> None:
        """Account for what is missing."""
        for index, receipt_id, agent, surface, iat_us, salt in self._missing:
            if self._is_covered(index, receipt_id, agent, surface, iat_us, salt):
                self.destroyed += 1
            else:
                what = "salt" if salt else "input"
                why = "is missing, and no receipt says that it was destroyed"
                self._problem(f"leaf {index}: its {what} {why} ({receipt_id})")
        for index, (_, receipt_id, agent, surface, iat_us) in self._answers:
            # An answer that came after the order is none of its business, so its own leaf is what counts.
            if iat_us < self._before_us or self._is_covered(index, receipt_id, agent, surface, iat_us, True):
                why = "is still there, and a receipt says that it was destroyed"
                self._problem(f"leaf {index}: the kept answer {why} ({receipt_id})")
        if self._oldest_us is not None and self._oldest_us < self._before_us:
            self._problem("an input is still there that a retention receipt says was destroyed")

    def _is_covered(
        self, index: int, receipt_id: str, agent: str, surface: str, iat_us: int, salt: bool
    ) -> bool:
        if not salt and iat_us < self._before_us:
            return True
        if self._by_id.get(receipt_id, -1) > index:
            return True
        return any(
            at > index and order.covers(receipt_id, agent, surface, iat_us) for at, order in self._filters
        )

    def _clear(self, index: int, record: LogRecord, digest: str) -> None:
        if record.inputs is None:
            self._gone(index, record, salt=False)
            return
        self._there(record)
        if digest != input_digest(record.inputs):
            self._at(index, record, "the recorded input is not the one that was decided")

    def _sealed(self, index: int, record: LogRecord, digest: str) -> bytes | None:
        stored = record.sealed
        if stored is None or not stored.has_salt:
            self._gone(index, record, salt=True)
            if stored is not None and stored.has_key:
                self._at(index, record, "its salt is gone, and its key is not")
            return None
        try:
            kept = stored.open(record.id)
        except SealError:
            self._at(index, record, "the sealed input does not open")
            return None
        if kept is None:
            self._gone(index, record, salt=False)
            return None
        self._there(record)
        if digest != (input_digest(kept.inputs, stored.salt) if kept.inputs is not None else ""):
            self._at(index, record, "the recorded input is not the one that was decided")
        return kept.inputs

    def _there(self, record: LogRecord) -> None:
        self.kept += 1
        if self._oldest_us is None:
            self._oldest_us = record.iat_us

    def _gone(self, index: int, record: LogRecord, *, salt: bool) -> None:
        self._missing.append((index, record.id, record.agent, record.surface, record.iat_us, salt))

    def _at(self, index: int, record: LogRecord, text: str) -> None:
        self._problem(f"leaf {index}: {text} ({record.id})")
