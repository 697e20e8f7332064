"""Re-verification of a whole log: records, claims and a checkpoint become a list of problems.

Pure: it reads iterators once, in order, and trusts nothing in them but the public keys that it is
given. It sees everything from leaf 0, so it does not rely on what the ledger remembered of the tree.

Invariants (tests/test_audit.py has one test named after each):
  A1  An edited, removed, inserted or reordered receipt is a problem, the removed tail included.
  A2  Every PERMIT has at most one outcome, or unknown and then reconciled; every outcome has its PERMIT.
  A3  A recorded input that is not the one its receipt names is a problem.
  A4  A claim that the receipts do not bear out, or that is missing, is a problem.
  A5  Two PERMITs that were in doubt under one key at once are a problem, unless the second is a replay.

It does not see: a roll-back of ledger and checkpoint together (keep an earlier checkpoint elsewhere
and pass it as `earlier`), and recorded inputs that were deleted (that is allowed: privacy).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from .errors import Outcome
from .keys import KeySet, PublicKey
from .ledger import ClaimRow, OutcomeStatus, State
from .note import Checkpoint, verify_checkpoint
from .receipt import ReceiptError, input_digest, verify
from .statement import parse_us
from .tlog import EMPTY, TlogError, Tree, leaf_hash

__all__ = ["AuditInput", "AuditReport", "LogRecord", "audit"]

_MAX_PROBLEMS: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRecord:
    """One row of the log as it is stored: the receipt, and what the store keeps beside it."""

    index: int
    id: str
    type: str
    outcome: str
    reason: str
    agent: str
    surface: str
    iat_us: int
    jws: bytes
    inputs: bytes | None
    state: State | None  # of a permit; None when the store has no permit here


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditInput:
    checkpoint: bytes  # signed note
    records: Iterable[LogRecord]
    claims: Iterable[ClaimRow]  # read after `records`


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    size: int  # leaves read
    signed: int  # of which the checkpoint covers
    root: str  # hex root over all leaves read
    permits: int
    outcomes: int
    inputs: int  # recorded inputs that were checked
    problems: tuple[str, ...]  # empty: the log is clean

    @property
    def is_clean(self) -> bool:
        return not self.problems


@dataclass(slots=True, kw_only=True)
class _Permit:
    """What the receipts so far say of one PERMIT."""

    index: int
    digest: str
    status: OutcomeStatus | None
    key_hash: str
    source: str


def audit(
    given: AuditInput,
    *,
    origin: str,
    receipt_keys: KeySet,
    log_key: PublicKey,
    earlier: Checkpoint | None = None,
) -> AuditReport:
    """Verify everything; problems are found, never raised."""
    auditor = _Auditor(origin, receipt_keys)
    checkpoints = [] if earlier is None else [earlier]
    signed = 0
    try:
        checkpoint = verify_checkpoint(given.checkpoint, origin, log_key)
        checkpoints.append(checkpoint)
        signed = checkpoint.size
    except TlogError as error:
        auditor.problem(f"checkpoint: {error}")
    for record in given.records:
        auditor.compare(checkpoints)
        auditor.leaf(record)
    auditor.compare(checkpoints)
    for left in checkpoints:
        auditor.problem(f"the log ends at {auditor.tree.size}, but {left.size} leaves were signed")
    auditor.claims(given.claims)
    return auditor.report(signed)


class _Auditor:
    def __init__(self, origin: str, keys: KeySet) -> None:
        self.tree: Tree = EMPTY
        self._origin, self._keys = origin, keys
        self._problems: list[str] = []
        self._permits: dict[str, _Permit] = {}
        self._by_key: dict[str, str] = {}  # key hash -> the newest PERMIT under it
        self._outcomes = self._inputs = self._iat_us = 0
        self._states: dict[str, State] = {}

    def problem(self, text: str) -> None:
        if len(self._problems) < _MAX_PROBLEMS:
            self._problems.append(text)

    def report(self, signed: int) -> AuditReport:
        return AuditReport(
            size=self.tree.size,
            signed=signed,
            root=self.tree.root().hex(),
            permits=len(self._permits),
            outcomes=self._outcomes,
            inputs=self._inputs,
            problems=tuple(self._problems),
        )

    def compare(self, checkpoints: list[Checkpoint]) -> None:
        """Compare with every checkpoint of this size, and forget it."""
        for checkpoint in [item for item in checkpoints if item.size == self.tree.size]:
            checkpoints.remove(checkpoint)
            if checkpoint.root != self.tree.root():
                self.problem(f"the first {checkpoint.size} leaves are not those that were signed")

    def leaf(self, record: LogRecord) -> None:
        where = f"leaf {self.tree.size}"
        if record.index != self.tree.size:
            self.problem(f"{where}: missing, the next one is {record.index}")
        self.tree = self.tree.append(leaf_hash(record.jws))
        try:
            statement = verify(record.jws, self._keys).statement
        except ReceiptError as error:
            self.problem(f"{where}: {error}")
            return
        self._columns(where, record, statement)
        if statement["type"] == "decision":
            self._decision(where, record, statement)
        else:
            self._outcome(where, statement)
            if record.state is not None or record.inputs is not None:
                self.problem(f"{where}: an outcome with a permit or input beside it")

    def _columns(self, where: str, record: LogRecord, statement: Mapping[str, Any]) -> None:
        is_decision = statement["type"] == "decision"
        said = {
            "id": statement["id"],
            "type": statement["type"],
            "outcome": statement["outcome"] if is_decision else "",
            "reason": statement["reason"] if is_decision else statement["status"],
            "agent": statement["agent"] if is_decision else "",
            "iat_us": parse_us(statement["iat"]),
        }
        for name, value in said.items():
            if getattr(record, name) != value:
                self.problem(f"{where}: the ledger's {name} is not the receipt's")
        surfaces = [row["surface"] for row in statement.get("actions") or statement.get("counts") or ()]
        if record.surface and surfaces and record.surface not in surfaces:
            self.problem(f"{where}: the ledger's surface is not the receipt's")
        if statement["iss"] != self._origin:
            self.problem(f"{where}: issued for another log")
        if said["iat_us"] <= self._iat_us:
            self.problem(f"{where}: not later than the leaf before it")
        self._iat_us = said["iat_us"]

    def _decision(self, where: str, record: LogRecord, statement: Mapping[str, Any]) -> None:
        if record.inputs is not None:
            self._inputs += 1
            if statement.get("input_digest") != input_digest(record.inputs):
                self.problem(f"{where}: the recorded input is not the one that was decided")
        is_permit = statement["outcome"] == Outcome.PERMIT
        if is_permit != (record.state is not None):
            self.problem(f"{where}: the ledger and the receipt disagree whether this is a permit")
        if not is_permit:
            return
        key = statement.get("idempotency", {"key_hash": "", "source": ""})
        permit = _Permit(
            index=record.index,
            digest=statement["request"]["digest"],
            status=None,
            key_hash=key["key_hash"],
            source=key["source"],
        )
        first = self._permits.get(self._by_key.get(permit.key_hash, ""))
        if first is not None and first.status in (None, OutcomeStatus.UNKNOWN):
            if first.status is None or "replay_of" not in statement:
                self.problem(f"{where}: a second PERMIT under a key that leaf {first.index} still holds")
        if permit.key_hash:
            self._by_key[permit.key_hash] = statement["id"]
        self._permits[statement["id"]] = permit
        if record.state is not None:
            self._states[statement["id"]] = record.state

    def _outcome(self, where: str, statement: Mapping[str, Any]) -> None:
        self._outcomes += 1
        permit = self._permits.get(statement["of"])
        if permit is None:
            self.problem(f"{where}: the outcome of no earlier PERMIT")
            return
        status = OutcomeStatus(statement["status"])
        is_reconciled = status is OutcomeStatus.RECONCILED
        if (permit.status is OutcomeStatus.UNKNOWN) != is_reconciled or (permit.status and not is_reconciled):
            self.problem(
                f"{where}: {status} cannot follow {permit.status or 'a PERMIT'} of leaf {permit.index}"
            )
        permit.status = status

    def claims(self, rows: Iterable[ClaimRow]) -> None:
        """Compare the claims, and the permits' states, with what the receipts add up to."""
        for receipt_id, permit in self._permits.items():
            if self._states.get(receipt_id) not in _STATES_AFTER[permit.status]:
                self.problem(f"leaf {permit.index}: the ledger's permit state is not what its outcomes say")
        held = set()
        for row in rows:
            held.add(row.key)
            self._claim(row)
        for key, receipt_id in self._by_key.items():
            permit = self._permits[receipt_id]
            open_now = permit.status in (None, OutcomeStatus.UNKNOWN)
            if key not in held and (open_now or permit.source != "implicit"):
                self.problem(f"leaf {permit.index}: its claim {key[:16]} is missing")

    def _claim(self, row: ClaimRow) -> None:
        name = f"claim {row.key[:16]}"
        permit = self._permits.get(row.receipt_id)
        if permit is None:
            self.problem(f"{name}: held by no PERMIT of this log")
            return
        if row.digest != permit.digest:
            self.problem(f"{name}: not for the request of leaf {permit.index}")
        if row.state not in _STATES_AFTER[permit.status]:
            self.problem(f"{name}: {row.state}, which leaf {permit.index} and its outcome do not say")
        if row.source == permit.source and permit.key_hash and row.key != permit.key_hash:
            self.problem(f"{name}: not the key of leaf {permit.index}")
        newest = self._by_key.get(row.key)
        if newest not in (None, row.receipt_id) and not self._fell_back(row, newest):
            self.problem(f"{name}: a later PERMIT holds it")

    def _fell_back(self, row: ClaimRow, newest: str | None) -> bool:
        """Whether the newest PERMIT was a replay without effect, so that the first one stands again."""
        later = self._permits[newest] if newest else None
        without_effect = (OutcomeStatus.NOT_SENT, OutcomeStatus.FAILED)
        return later is not None and later.status in without_effect and later.digest == row.digest


_STATES_AFTER: Final[Mapping[OutcomeStatus | None, frozenset[State]]] = {
    None: frozenset({State.DISPATCHING}),
    OutcomeStatus.EXECUTED: frozenset({State.EXECUTED, State.UNDELIVERED}),
    OutcomeStatus.NOT_SENT: frozenset({State.NOT_SENT}),
    OutcomeStatus.FAILED: frozenset({State.FAILED}),
    OutcomeStatus.UNKNOWN: frozenset({State.UNKNOWN}),
    OutcomeStatus.RECONCILED: frozenset({State.EXECUTED}),
}
