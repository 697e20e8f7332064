"""What the receipts say of permits, denials and objects, and the store's rows held against it.

    decisions and outcomes in the order of time -> Facts -> what the rows of the store must be -> problems

Pure, part of audit.py (its invariants A2, A4, A5, A11 and A12).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from .audit_budgets import BudgetAudit
from .audit_inputs import Decided
from .audit_rows import CounterRow, LogRecord, PermitRow
from .errors import Outcome, Reason
from .ledger import RELEASING, SOURCES, ClaimRow, OutcomeStatus, State
from .standing import Prepared

__all__ = ["Facts", "PermitAudit"]

_MAX_PROBLEMS: Final = 1000
_STATES_AFTER: Final[Mapping[OutcomeStatus | None, frozenset[State]]] = {
    None: frozenset({State.DISPATCHING}),
    OutcomeStatus.EXECUTED: frozenset({State.EXECUTED, State.UNDELIVERED}),
    OutcomeStatus.NOT_SENT: frozenset({State.NOT_SENT}),
    OutcomeStatus.FAILED: frozenset({State.FAILED}),
    OutcomeStatus.UNKNOWN: frozenset({State.UNKNOWN}),
    OutcomeStatus.RECONCILED: frozenset({State.EXECUTED, State.UNDELIVERED}),  # found executed
}


@dataclass(slots=True, kw_only=True)
class _Permit:
    """What the receipts so far say of one PERMIT."""

    name: str  # of its leaf, for problems
    id: str
    digest: str
    status: OutcomeStatus | None
    http_status: int
    key_hash: str
    source: str
    row: PermitRow | None
    decision: Decided
    found: OutcomeStatus = OutcomeStatus.EXECUTED  # by whoever reconciled it

    @property
    def is_open(self) -> bool:
        return self.status in (None, OutcomeStatus.UNKNOWN)

    @property
    def states(self) -> frozenset[State]:
        """What the store may say of it, and of a claim that it holds."""
        is_reconciled = self.status is OutcomeStatus.RECONCILED and self.found is not OutcomeStatus.EXECUTED
        return _STATES_AFTER[self.found if is_reconciled else self.status]

    @property
    def without_effect(self) -> bool:
        return self.states <= RELEASING


@dataclass(slots=True, kw_only=True)
class Facts:
    """What the receipts say together: of one log, or of all logs of a fleet in the order of time."""

    permits: dict[str, _Permit] = field(default_factory=dict)
    denied: dict[str, int] = field(default_factory=dict)  # DENY by the gate -> what a repeat has in common
    produced: dict[str, str] = field(default_factory=dict)  # PERMIT -> key of the object its answer named
    by_key: dict[str, str] = field(default_factory=dict)  # key hash -> the newest PERMIT under it
    budgets: BudgetAudit = field(default_factory=BudgetAudit)
    problems: list[str] = field(default_factory=list)

    def problem(self, text: str) -> None:
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(text)


class PermitAudit:
    """Told of the decisions and outcomes of a log, then of the store's rows. `name`: of the log."""

    def __init__(
        self, facts: Facts, problem: Callable[[str], None], *, is_shared: bool = False, name: str = ""
    ) -> None:
        self._facts, self._problem, self._is_shared, self._name = facts, problem, is_shared, name
        self._names: dict[str, str] = {}  # agents and surfaces

    def _at(self, index: int, record: LogRecord, text: str) -> None:
        self._problem(f"leaf {index}: {text} ({record.id})")

    def decision(
        self, index: int, record: LogRecord, statement: Mapping[str, Any], inputs: bytes | None
    ) -> None:
        """`inputs`: what was recorded, in clear, as far as it can be read."""
        is_permit = statement["outcome"] == Outcome.PERMIT
        for bound in statement.get("binds", ()):
            elsewhere = self._is_shared and bound not in self._facts.permits  # in another node's log
            if bound not in self._facts.produced and not elsewhere:
                self._at(index, record, f"it is bound to {bound}, which made nothing that is known")
        if is_permit != (record.permit is not None):
            self._at(index, record, "the ledger and the receipt disagree whether this is a permit")
        if not is_permit:
            self._denial(index, record, statement)
            return
        key = statement.get("idempotency", {"key_hash": "", "source": ""})
        permit = _Permit(
            name=f"{self._name}leaf {record.index}",
            id=statement["id"],
            digest=statement["request"]["digest"],
            status=None,
            http_status=0,
            key_hash=key["key_hash"],
            source=key["source"],
            row=record.permit,
            decision=self._decided(record),
        )
        first = self._facts.permits.get(self._facts.by_key.get(permit.key_hash, ""))
        if first is not None and first.is_open and not self._settled_elsewhere(first):
            if first.status is None or "replay_of" not in statement:
                self._at(index, record, f"a second PERMIT under a key that {first.name} still holds")
        if permit.key_hash:
            self._facts.by_key[permit.key_hash] = permit.id
        self._facts.permits[permit.id] = permit
        charged = None if record.permit is None else (record.permit.charges, record.permit.lender)
        self._facts.budgets.permit(permit.name, statement, charged, inputs)

    def _decided(self, record: LogRecord) -> Decided:
        """A log has a million permits and a few agents: their names are held once."""
        agent = self._names.setdefault(record.agent, record.agent)
        surface = self._names.setdefault(record.surface, record.surface)
        return record.index, record.id, agent, surface, record.iat_us

    def _denial(self, index: int, record: LogRecord, statement: Mapping[str, Any]) -> None:
        if statement["reason"] != Reason.DENY_RULE:
            return
        request, key = statement["request"], statement.get("idempotency", {})
        common = (
            statement["agent"],
            request.get("digest"),
            key.get("key_hash"),
            statement["policy"]["digest"],
        )
        known = hash((*common, *statement["rules"]))
        first = statement.get("replay_of")
        if first is None:
            self._facts.denied[statement["id"]] = known
        elif self._facts.denied.get(first, known if self._is_shared else None) != known:
            self._at(index, record, f"it repeats {first}, which is no earlier DENY of this request")

    def outcome(self, index: int, record: LogRecord, statement: Mapping[str, Any]) -> Decided | None:
        """The decision that it is the outcome of, where that is in this log."""
        permit = self._facts.permits.get(statement["of"])
        if permit is None and self._is_shared:
            return None  # of another node's PERMIT, which that node could not settle
        if permit is None:
            self._at(index, record, "the outcome of no earlier PERMIT")
            return None
        status = OutcomeStatus(statement["status"])
        is_reconciled = status is OutcomeStatus.RECONCILED
        if (permit.status is OutcomeStatus.UNKNOWN) != is_reconciled or (permit.status and not is_reconciled):
            before = permit.status or "a PERMIT"
            self._at(index, record, f"{status} cannot follow {before} of {permit.name}")
        if "produced" in statement:
            self._facts.produced[permit.id] = statement["produced"]
        if is_reconciled:
            permit.found = OutcomeStatus(statement.get("found", OutcomeStatus.EXECUTED))
        permit.status = status
        self._facts.budgets.outcome(permit.id, permit.without_effect)
        permit.http_status = statement.get("http_status", 0)
        return permit.decision

    def claims(self, rows: Iterable[ClaimRow]) -> None:
        """Compare the claims, and the permits' rows, with what the receipts add up to."""
        for permit in self._facts.permits.values():
            if permit.row is not None:
                self._permit_row(permit, permit.row)
        held = set()
        for row in rows:
            held.add(row.key)
            self._claim(row)
        if not self._is_shared:
            self._held(held)
        for key, receipt_id in self._facts.by_key.items():
            permit = self._facts.permits[receipt_id]
            missing = key not in held and (permit.is_open or permit.source != "implicit")
            if missing and not self._is_shared:
                self._problem(f"{permit.name}: its claim {key[:16]} is missing ({permit.id})")

    def _held(self, held: Collection[str]) -> None:
        """Whatever a permit in doubt holds: conflict keys and objects are in no receipt, but in its row."""
        newest = self._facts.by_key
        for permit in self._facts.permits.values():
            # What one that was repeated held went over to the repeat.
            if not permit.is_open or newest.get(permit.key_hash, permit.id) != permit.id:
                continue
            for key in permit.row.claims if permit.row is not None else ():
                if key not in held and key != permit.key_hash:
                    self._problem(f"{permit.name}: its claim {key[:16]} is missing ({permit.id})")

    def prepared(self, rows: Iterable[Prepared]) -> None:
        """Compare the objects with what the outcomes named."""
        for row in rows:
            if self._facts.produced.get(row.receipt_id) != row.key:
                self._problem(f"object {row.key[:16]}: {row.receipt_id} did not make it")

    def counters(self, rows: Iterable[CounterRow], now_us: int) -> None:
        """Compare the counters with what the permits charged. `now_us`: of the newest receipt."""
        for text in self._facts.budgets.problems(rows, now_us):
            self._problem(text)

    def _permit_row(self, permit: _Permit, row: PermitRow) -> None:
        name = f"{permit.name}: the ledger's permit"
        elsewhere = self._settled_elsewhere(permit)
        if row.state not in permit.states and not elsewhere:
            self._problem(f"{name} state is not what its outcomes say ({permit.id})")
        if row.id != permit.id:
            self._problem(f"{name} id is not the receipt's ({permit.id})")
        if row.http_status != permit.http_status and not elsewhere:
            self._problem(f"{name} http_status is not its outcome's ({permit.id})")
        if permit.key_hash and permit.key_hash not in row.claims:
            self._problem(f"{name} claims are not what it held ({permit.id})")

    def _claim(self, row: ClaimRow) -> None:
        name = f"claim {row.key[:16]}"
        permit = self._facts.permits.get(row.receipt_id)
        if permit is None:
            self._problem(f"{name}: held by no PERMIT of this log")
            return
        if row.digest != permit.digest:
            self._problem(f"{name}: not for the request of {permit.name}")
        elsewhere = self._settled_elsewhere(permit)
        if row.state not in permit.states and not elsewhere:
            self._problem(f"{name}: {row.state}, which {permit.name} and its outcome do not say")
        if row.source == permit.source and permit.key_hash and row.key != permit.key_hash:
            self._problem(f"{name}: not the key of {permit.name}")
        if row.source not in SOURCES or (row.key == permit.key_hash and row.source != permit.source):
            self._problem(f"{name}: its source is not that of {permit.name}")
        if permit.row is not None and row.key not in permit.row.claims:
            self._problem(f"{name}: not among what {permit.name} holds")
        if row.http_status != permit.http_status and not elsewhere:
            self._problem(f"{name}: http_status is not that of {permit.name}'s outcome")
        newest = self._facts.by_key.get(row.key)
        if newest not in (None, row.receipt_id) and not self._fell_back(row, newest):
            self._problem(f"{name}: a later PERMIT holds it")

    def _settled_elsewhere(self, permit: _Permit) -> bool:
        """Whether another node wrote the outcome that this log lacks: of a PERMIT that died with its node."""
        if not self._is_shared or permit.row is None or not permit.is_open:
            return False
        return permit.row.state not in (State.DISPATCHING, State.UNKNOWN)

    def _fell_back(self, row: ClaimRow, newest: str | None) -> bool:
        """Whether the newest PERMIT was a replay without effect, so that the first one stands again."""
        later = self._facts.permits[newest] if newest else None
        return later is not None and later.without_effect and later.digest == row.digest
