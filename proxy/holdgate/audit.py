"""Re-verification of a whole log: records, tiles, claims and a checkpoint become a list of problems.

Pure: it reads iterators once, in order, and trusts nothing in them but the public keys that it is
given. It sees everything from leaf 0, so it does not rely on what the ledger remembered of the tree.
A problem names the leaf and its receipt, so that one can look at it. Each part has a module: audit_tiles.py,
audit_keys.py, audit_inputs.py, audit_budgets.py, and audit_permits.py for permits, claims and objects.

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
answer, whether an answer was delivered, which run made a permit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import batched
from typing import Any, Final

from .audit_inputs import InputAudit
from .audit_keys import KeyAudit
from .audit_permits import Facts, PermitAudit
from .audit_rows import CounterRow, HeadRow, LogRecord
from .audit_tiles import StoredTiles, TileAudit
from .keys import KeySet
from .ledger import ClaimRow
from .note import Checkpoint, verify_log
from .receipt import ReceiptError, Verified, verify_each
from .standing import Prepared
from .statement import parse_us
from .tlog import TlogError

__all__ = [
    "STEP",
    "AuditInput",
    "AuditReport",
    "Auditor",
    "Checked",
    "Verifying",
    "audit",
    "verified_here",
]

STEP: Final = 256  # leaves between two calls of `progress`


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
    auditor.permits.claims(given.claims)
    auditor.permits.prepared(given.prepared)
    if not given.is_shared:
        auditor.permits.counters(given.counters, given.head.iat_us)
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
        self._name, self._facts = name, facts or Facts()
        self.permits = PermitAudit(self._facts, self.problem, is_shared=is_shared, name=name)
        self._keys = KeyAudit(keys, log_keys, self.problem) if keys and log_keys else None
        self._receipt_keys, self._log_keys = keys, log_keys
        self._tiles = TileAudit(tiles, self.problem)
        self.edge = self._tiles.edge
        self._origin = origin
        self._inputs = InputAudit(self.problem)
        self._checkpoints: list[Checkpoint] = []  # to compare with, the smallest last
        self._outcomes = self._admin = self._iat_us = 0

    def problem(self, text: str) -> None:
        self._facts.problem(self._name + text)

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
            inputs = self._inputs.decision(index, record, statement)
            self.permits.decision(index, record, statement, inputs)
        else:
            what = statement.get("status") or statement.get("action", "")
            self._columns(record, statement, "", what, "")
            self._after(index, record, statement)

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

    def _head(self, row: HeadRow) -> None:
        tree = self.edge.tree
        if row != HeadRow(
            origin=self._origin, size=tree.size, iat_us=self._iat_us, hashes=b"".join(tree.hashes)
        ):
            self.problem("the ledger's head row is not the end of this log")

    def _after(self, index: int, record: LogRecord, statement: Mapping[str, Any]) -> None:
        """Anything but a decision."""
        kept = record.sealed is not None and "kept" not in statement
        if record.permit is not None or record.inputs is not None or kept:
            self._at(record, f"{statement['type']} receipt with a permit or input beside it")
        if statement["type"] == "outcome":
            self._outcomes += 1
            decided = self.permits.outcome(index, record, statement)
            if decided is not None and record.sealed is not None and "kept" in statement:
                self._inputs.answer(index, record, statement["kept"], decided)
        else:
            self._admin += 1
            self._inputs.erasure(index, statement)
