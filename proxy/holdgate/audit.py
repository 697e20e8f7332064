"""Re-verification of a whole log: records, tiles, claims and a checkpoint become a list of problems.

Pure: it reads iterators once, in order, and trusts nothing in them but the public keys that it is
given. It sees everything from leaf 0, so it does not rely on what the ledger remembered of the tree.
A problem names the leaf and its receipt, so that one can look at it.

Invariants (one test named after each: tests/test_audit.py; A9: tests/test_budgets.py; A11:
tests/test_standing.py; A12: tests/test_bonds.py; A13: tests/test_kept_answers.py):
  A1  An edited, removed, inserted or reordered receipt is a problem, the removed tail included.
  A2  Every PERMIT has at most one outcome, or unknown and then reconciled; every outcome has its PERMIT.
  A3  A recorded input that is not the one its receipt names is a problem (audit_inputs.py says more).
  A4  A claim that the receipts do not bear out, or that is missing, is a problem.
  A5  Two PERMITs that were in doubt under one key at once are a problem, unless the second is a replay.
  A6  A tile that is missing, or that is not what the leaves make, is a problem that names leaf and receipt.
  A7  A receipt by a key that was revoked at or below its index is a problem.
  A8  Any single byte changed in a receipt, its row, a tile or the checkpoint is a problem.
  A9  A counter's row that the permits' charges do not add up to is a problem, and so is a charge that its
      receipt or recorded input does not bear out.
  A10  A receipt by another key than the one that the log itself names for its index is a problem, and so is
      a list of keys that says otherwise than the log.
  A11  A DENY that says it repeats another one is a problem unless that is an earlier DENY by the gate of the
      same request, agent, rules and bundle.
  A12  A decision that is bound to a receipt whose executed outcome names no object is a problem, and so is an
      object that the ledger knows and that no such outcome bears out.
  A13  A kept answer that is not the one that its outcome names is a problem (audit_inputs.py says more).

It does not see: a roll-back of ledger and checkpoint together (keep an earlier checkpoint elsewhere
and pass it as `earlier`), and what is in no receipt: when a claim expires, what was charged where an
input was destroyed, whether a provider repeats its
answer, which run made a permit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import batched
from typing import Any, Final

from .audit_budgets import BudgetAudit, CounterRow
from .audit_inputs import Decided, InputAudit
from .audit_keys import KeyAudit
from .audit_tiles import StoredTiles, TileAudit
from .errors import Outcome, Reason
from .keys import KeySet
from .ledger import RELEASING, SOURCES, Charge, ClaimRow, OutcomeStatus, State
from .note import Checkpoint, verify_log
from .receipt import ReceiptError, Verified, verify_each
from .sealing import Stored
from .standing import Prepared
from .statement import parse_us
from .tlog import TlogError

__all__ = [
    "STEP",
    "AuditInput",
    "AuditReport",
    "Auditor",
    "Checked",
    "CounterRow",
    "Facts",
    "HeadRow",
    "LogRecord",
    "PermitRow",
    "Verifying",
    "audit",
    "verified_here",
]

_MAX_PROBLEMS: Final = 1000
STEP: Final = 256  # leaves between two calls of `progress`


# These two are not frozen: a log has a million of them, and freezing costs more than reading the row.
@dataclass(slots=True, kw_only=True)
class PermitRow:
    """What the store keeps of one permit."""

    id: str
    state: State
    http_status: int
    claims: tuple[str, ...]
    charges: tuple[Charge, ...]
    lender: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadRow:
    """What the store keeps of the end of the log."""

    origin: str
    size: int
    iat_us: int
    hashes: bytes  # of Tree.hashes


@dataclass(slots=True, kw_only=True)
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
    inputs: bytes | None  # in clear
    sealed: Stored | None
    permit: PermitRow | None  # None when the store has no permit here
    node: str = ""  # whose log it is in; "" where there is one log


type Checked = tuple[LogRecord, Verified | ReceiptError]  # what verify() says of the record's JWS
type Verifying = Callable[[Iterable[LogRecord], KeySet], Iterator[Checked]]  # record for record, in order


def verified_here(records: Iterable[LogRecord], keys: KeySet) -> Iterator[Checked]:
    """In this process."""
    for batch in batched(records, STEP):
        yield from zip(batch, verify_each([record.jws for record in batch], keys), strict=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditInput:
    checkpoint: bytes  # signed note
    tiles: StoredTiles
    head: HeadRow
    records: Iterable[LogRecord]
    claims: Iterable[ClaimRow]  # read after `records`
    counters: Iterable[CounterRow]  # read after `records`
    # Other nodes have claims and counters in the same store, and may have settled what this one left open.
    # Then `claims` are those of this log's PERMITs, and the counters are not compared.
    is_shared: bool = False
    prepared: Iterable[Prepared] = ()  # read after `records`; those that PERMITs of this log made


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    size: int  # leaves read
    signed: int  # of which the checkpoint covers
    root: str  # hex root over all leaves read
    permits: int
    outcomes: int
    admin: int
    inputs: int  # recorded inputs that were checked
    destroyed: int  # inputs and salts that are gone by order: shred, retention
    problems: tuple[str, ...]  # empty: the log is clean

    @property
    def is_clean(self) -> bool:
        return not self.problems


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


def audit(
    given: AuditInput,
    *,
    origin: str,
    receipt_keys: KeySet,
    log_keys: KeySet,
    earlier: Iterable[Checkpoint] = (),
    progress: Callable[[int], None] = lambda _: None,
    verifying: Verifying = verified_here,
) -> AuditReport:
    """Verify everything; problems are found, never raised. `progress` is told how many leaves were read."""
    auditor = Auditor(origin, receipt_keys, log_keys, given.tiles, is_shared=given.is_shared)
    auditor.signed(given.checkpoint, earlier)
    for record, found in verifying(given.records, receipt_keys):
        auditor.leaf(record, found)
        if not auditor.edge.size % STEP:
            progress(auditor.edge.size)
    auditor.end(given.head)
    auditor.claims(given.claims)
    auditor.prepared(given.prepared)
    if not given.is_shared:
        auditor.counters(given.counters, given.head.iat_us)
    return auditor.report()


class Auditor:
    """Reads one log, leaf by leaf. The logs of a fleet share `facts`, and have names (audit_fleet.py)."""

    def __init__(
        self,
        origin: str,
        keys: KeySet,
        log_keys: KeySet,
        tiles: StoredTiles,
        *,
        is_shared: bool,
        facts: Facts | None = None,
        name: str = "",
    ) -> None:
        """Without `keys` nothing is said about them, without `log_keys` nothing about where they sign."""
        self._is_shared, self._name = is_shared, name
        self._facts = facts or Facts()
        self._keys = KeyAudit(keys, log_keys, self.problem) if keys and log_keys else None
        self._receipt_keys, self._log_keys = keys, log_keys
        self._tiles = TileAudit(tiles, self.problem)
        self.edge = self._tiles.edge
        self._origin = origin
        self._names: dict[str, str] = {}  # agents and surfaces
        self._inputs = InputAudit(self.problem)
        self._checkpoints: list[Checkpoint] = []  # to compare with, the smallest last
        self._outcomes = self._admin = self._iat_us = 0

    def problem(self, text: str) -> None:
        if len(self._facts.problems) < _MAX_PROBLEMS:
            self._facts.problems.append(self._name + text)

    def _at(self, record: LogRecord, text: str) -> None:
        self.problem(f"leaf {self.edge.size - 1}: {text} ({record.id})")

    def report(self) -> AuditReport:
        return AuditReport(
            size=self.edge.size,
            signed=self._tiles.signed,
            root=self.edge.tree.root().hex(),
            permits=len(self._facts.permits),
            outcomes=self._outcomes,
            admin=self._admin,
            inputs=self._inputs.kept,
            destroyed=self._inputs.destroyed,
            problems=tuple(self._facts.problems),
        )

    def signed(self, note: bytes, earlier: Iterable[Checkpoint] = ()) -> None:
        """Before the first leaf: the checkpoint, and others that the log must agree with."""
        self._checkpoints += earlier
        try:
            checkpoint = verify_log(note, self._origin, self._log_keys)
            self._checkpoints.append(checkpoint)
            self._tiles.signed = checkpoint.size
        except TlogError as error:
            self.problem(f"checkpoint: {error}")
        self._checkpoints.sort(key=lambda each: each.size, reverse=True)

    def end(self, row: HeadRow) -> None:
        """All leaves were read."""
        self._compare()
        self._tiles.end()
        for left in self._checkpoints:
            self.problem(f"the log ends at {self.edge.size}, but {left.size} leaves were signed")
        if self._keys is not None:
            self._keys.end()
        self._head(row)
        self._inputs.end()

    def _compare(self) -> None:
        """Compare with every checkpoint of this size, and forget it."""
        while self._checkpoints and self._checkpoints[-1].size == self.edge.size:
            checkpoint = self._checkpoints.pop()
            if checkpoint.root != self.edge.tree.root():
                self.problem(f"the first {checkpoint.size} leaves are not those that were signed")

    def leaf(self, record: LogRecord, found: Verified | ReceiptError) -> None:
        self._compare()
        index = self.edge.size
        self._tiles.append(record.jws, record.id)
        if record.index != index:
            self._at(record, f"missing, the next one is {record.index}")
        if isinstance(found, ReceiptError):
            self._at(record, str(found))
            return
        if self._receipt_keys and (refusal := self._refusal(index, found)):
            self._at(record, refusal)
        statement = found.statement
        if statement["type"] == "decision":
            self._columns(record, statement, statement["outcome"], statement["reason"], statement["agent"])
            self._decision(record, statement)
        else:
            what = statement.get("status") or statement.get("action", "")
            self._columns(record, statement, "", what, "")
            self._after(record, statement)

    def _refusal(self, index: int, found: Verified) -> str:
        """Why a receipt does not count, as far as keys are concerned; "" when it does."""
        key = self._receipt_keys.get(found.kid)
        if key is None:
            return "signed with another node's key"
        return key.refuses(index) if self._keys is None else self._keys.leaf(index, found)

    def _columns(
        self, record: LogRecord, statement: Mapping[str, Any], outcome: str, reason: str, agent: str
    ) -> None:
        iat_us = parse_us(statement["iat"])
        said = (statement["id"], statement["type"], outcome, reason, agent, iat_us)
        kept = (record.id, record.type, record.outcome, record.reason, record.agent, record.iat_us)
        if said != kept:
            names = ("id", "type", "outcome", "reason", "agent", "iat_us")
            for name, one, other in zip(names, said, kept, strict=True):
                if one != other:
                    self._at(record, f"the ledger's {name} is not the receipt's")
        rows = statement.get("actions", ())[:1] or statement.get("counts", ())
        if record.surface not in ([row["surface"] for row in rows] or ("",)):
            self._at(record, "the ledger's surface is not the receipt's")
        if statement["iss"] != self._origin:
            self._at(record, "issued for another log")
        if iat_us <= self._iat_us:
            self._at(record, "not later than the leaf before it")
        self._iat_us = iat_us

    def counters(self, rows: Iterable[CounterRow], now_us: int) -> None:
        """Compare the counters with what the permits charged. `now_us`: of the newest receipt."""
        for text in self._facts.budgets.problems(rows, now_us):
            self.problem(text)

    def _head(self, row: HeadRow) -> None:
        tree = self.edge.tree
        if row != HeadRow(
            origin=self._origin, size=tree.size, iat_us=self._iat_us, hashes=b"".join(tree.hashes)
        ):
            self.problem("the ledger's head row is not the end of this log")

    # --- decisions, outcomes, claims ---

    def _decision(self, record: LogRecord, statement: Mapping[str, Any]) -> None:
        inputs = self._inputs.decision(self.edge.size - 1, record, statement)
        is_permit = statement["outcome"] == Outcome.PERMIT
        for bound in statement.get("binds", ()):
            elsewhere = self._is_shared and bound not in self._facts.permits  # in another node's log
            if bound not in self._facts.produced and not elsewhere:
                self._at(record, f"it is bound to {bound}, which made nothing that is known")
        if is_permit != (record.permit is not None):
            self._at(record, "the ledger and the receipt disagree whether this is a permit")
        if not is_permit:
            self._denial(record, statement)
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
                self._at(record, f"a second PERMIT under a key that {first.name} still holds")
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

    def _denial(self, record: LogRecord, statement: Mapping[str, Any]) -> None:
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
            self._at(record, f"it repeats {first}, which is no earlier DENY of this request")

    def _after(self, record: LogRecord, statement: Mapping[str, Any]) -> None:
        """Anything but a decision."""
        kept = record.sealed is not None and "kept" not in statement
        if record.permit is not None or record.inputs is not None or kept:
            self._at(record, f"{statement['type']} receipt with a permit or input beside it")
        if statement["type"] == "outcome":
            self._outcome(record, statement)
        else:
            self._admin += 1
            self._inputs.erasure(self.edge.size - 1, statement)

    def _outcome(self, record: LogRecord, statement: Mapping[str, Any]) -> None:
        self._outcomes += 1
        permit = self._facts.permits.get(statement["of"])
        if permit is None and self._is_shared:
            return  # of another node's PERMIT, which that node could not settle
        if permit is None:
            self._at(record, "the outcome of no earlier PERMIT")
            return
        if record.sealed is not None and "kept" in statement:
            self._inputs.answer(self.edge.size - 1, record, statement["kept"], permit.decision)
        status = OutcomeStatus(statement["status"])
        is_reconciled = status is OutcomeStatus.RECONCILED
        if (permit.status is OutcomeStatus.UNKNOWN) != is_reconciled or (permit.status and not is_reconciled):
            before = permit.status or "a PERMIT"
            self._at(record, f"{status} cannot follow {before} of {permit.name}")
        if "produced" in statement:
            self._facts.produced[permit.id] = statement["produced"]
        if is_reconciled:
            permit.found = OutcomeStatus(statement.get("found", OutcomeStatus.EXECUTED))
        permit.status = status
        self._facts.budgets.outcome(permit.id, permit.without_effect)
        permit.http_status = statement.get("http_status", 0)

    def claims(self, rows: Iterable[ClaimRow]) -> None:
        """Compare the claims, and the permits' rows, with what the receipts add up to."""
        for permit in self._facts.permits.values():
            if permit.row is not None:
                self._permit_row(permit, permit.row)
        held = set()
        for row in rows:
            held.add(row.key)
            self._claim(row)
        for key, receipt_id in self._facts.by_key.items():
            permit = self._facts.permits[receipt_id]
            missing = key not in held and (permit.is_open or permit.source != "implicit")
            if missing and not self._is_shared:
                self.problem(f"{permit.name}: its claim {key[:16]} is missing ({permit.id})")

    def prepared(self, rows: Iterable[Prepared]) -> None:
        for row in rows:
            if self._facts.produced.get(row.receipt_id) != row.key:
                self.problem(f"object {row.key[:16]}: {row.receipt_id} did not make it")

    def _permit_row(self, permit: _Permit, row: PermitRow) -> None:
        name = f"{permit.name}: the ledger's permit"
        elsewhere = self._settled_elsewhere(permit)
        if row.state not in permit.states and not elsewhere:
            self.problem(f"{name} state is not what its outcomes say ({permit.id})")
        if row.id != permit.id:
            self.problem(f"{name} id is not the receipt's ({permit.id})")
        if row.http_status != permit.http_status and not elsewhere:
            self.problem(f"{name} http_status is not its outcome's ({permit.id})")
        if permit.key_hash and permit.key_hash not in row.claims:
            self.problem(f"{name} claims are not what it held ({permit.id})")

    def _claim(self, row: ClaimRow) -> None:
        name = f"claim {row.key[:16]}"
        permit = self._facts.permits.get(row.receipt_id)
        if permit is None:
            self.problem(f"{name}: held by no PERMIT of this log")
            return
        if row.digest != permit.digest:
            self.problem(f"{name}: not for the request of {permit.name}")
        elsewhere = self._settled_elsewhere(permit)
        if row.state not in permit.states and not elsewhere:
            self.problem(f"{name}: {row.state}, which {permit.name} and its outcome do not say")
        if row.source == permit.source and permit.key_hash and row.key != permit.key_hash:
            self.problem(f"{name}: not the key of {permit.name}")
        if row.source not in SOURCES or (row.key == permit.key_hash and row.source != permit.source):
            self.problem(f"{name}: its source is not that of {permit.name}")
        if permit.row is not None and row.key not in permit.row.claims:
            self.problem(f"{name}: not among what {permit.name} holds")
        if row.http_status != permit.http_status and not elsewhere:
            self.problem(f"{name}: http_status is not that of {permit.name}'s outcome")
        newest = self._facts.by_key.get(row.key)
        if newest not in (None, row.receipt_id) and not self._fell_back(row, newest):
            self.problem(f"{name}: a later PERMIT holds it")

    def _settled_elsewhere(self, permit: _Permit) -> bool:
        """Whether another node wrote the outcome that this log lacks: of a PERMIT that died with its node."""
        if not self._is_shared or permit.row is None or not permit.is_open:
            return False
        return permit.row.state not in (State.DISPATCHING, State.UNKNOWN)

    def _fell_back(self, row: ClaimRow, newest: str | None) -> bool:
        """Whether the newest PERMIT was a replay without effect, so that the first one stands again."""
        later = self._facts.permits[newest] if newest else None
        return later is not None and later.without_effect and later.digest == row.digest


_STATES_AFTER: Final[Mapping[OutcomeStatus | None, frozenset[State]]] = {
    None: frozenset({State.DISPATCHING}),
    OutcomeStatus.EXECUTED: frozenset({State.EXECUTED, State.UNDELIVERED}),
    OutcomeStatus.NOT_SENT: frozenset({State.NOT_SENT}),
    OutcomeStatus.FAILED: frozenset({State.FAILED}),
    OutcomeStatus.UNKNOWN: frozenset({State.UNKNOWN}),
    OutcomeStatus.RECONCILED: frozenset({State.EXECUTED, State.UNDELIVERED}),  # found executed
}
