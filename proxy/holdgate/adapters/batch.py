"""One group: held requests and outcomes become the rows to write, inside one open transaction of a store.

Judging is serial: each Judge sees the claims that every earlier item left, committed or in this
group. Nothing is written until all are judged, so a Judge that raises leaves no trace.

Long because it is one transaction: decisions, outcomes, notes and key changes see each other's rows here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from ..answer import Answer
from ..erasure import EraseOrder, Erasure
from ..errors import BackendError, HoldgateError, InputError, Outcome, Reason
from ..ledger import (
    FINDINGS,
    NO_BUDGETS,
    RELEASING,
    SOURCES,
    AdminNote,
    Budgets,
    Charge,
    ClaimRow,
    Entry,
    Finding,
    InFlightElsewhere,
    Judge,
    Noted,
    OutcomeStatus,
    ReconcileError,
    State,
    Superseded,
    Total,
    bind,
    is_free,
    may_bind,
    remade,
    settle,
    settle_claim,
)
from ..recall import MAX_KEPT_BYTES
from ..receipt import (
    MAX_BYTES,
    admin_statement,
    answer_digest,
    jws_prefix,
    new_receipt_id,
    outcome_statement,
    sign,
)
from ..sealing import KEY_BYTES, SALT_BYTES, KeptAnswer, Sealed
from ..standing import Denial, Made, Prepared, Standing
from ..tlog import leaf_hash
from .store import Changes, Head, KeptRow, Node, OutcomeNote, Permit, ReceiptRow, Rows

_INT64: Final = 2**63
_BYTES_OR_NONE: Final = (bytes, type(None))
_SEALED_OR_NONE: Final = (Sealed, type(None))
_KEYED: Final = frozenset({"native", "natural"})
_MAKING: Final = frozenset({State.EXECUTED, State.UNDELIVERED})  # nobody reads an id into another outcome

__all__ = ["ACTIVATED", "Batch", "Fence", "Written"]

ACTIVATED: Final = "policy_activated"

type Written = tuple[Entry, int, KeptAnswer | None] | Noted  # in a transaction that is still open


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """From here on a PERMIT is recorded only if it was decided under the bundle of this digest."""

    digest: str


_UNKNOWN: Final = OutcomeNote(
    receipt_id="", status=OutcomeStatus.UNKNOWN, http_status=0, delivered=False
)  # of whoever died before saying so


class Batch:
    """`active` is the digest that PERMITs need; "" while no fence was ever set. `offers` are answers, by
    receipt: shared if that PERMIT ends in this group and other nodes wait for it."""

    def __init__(
        self,
        rows: Rows,
        node: Node,
        head: Head,
        active: str = "",
        offers: Mapping[str, Answer] = MappingProxyType({}),
    ) -> None:
        self._rows, self._node, self.active, self._offers = rows, node, active, offers
        self._tree, self._iat_us = head.tree, head.iat_us
        self._claims: dict[str, ClaimRow] = {}
        self._receipts: list[ReceiptRow] = []
        self._inputs: list[tuple[int, bytes]] = []
        self._changes: dict[tuple[str, int], Charge] = {}  # to the counters' rows; amounts may be negative
        self._sealed: list[tuple[int, Sealed]] = []
        self._denials: dict[str, tuple[int, Denial]] = {}  # by key, with the index of the DENY
        self._made: dict[str, Prepared] = {}
        self._answers: list[tuple[Permit, Answer]] = []
        self._kept: dict[str, tuple[KeptRow, KeptAnswer]] = {}  # by PERMIT
        self.permits: dict[str, Permit] = {}
        self.unknown = 0  # by how much the number of unknown outcomes changes
        self.erasing: list[tuple[int, Erasure]] = []  # orders, each under the index of its receipt

    @property
    def head(self) -> Head:
        return Head(tree=self._tree, iat_us=self._iat_us)

    @property
    def size(self) -> int:
        """The index of the next leaf."""
        return self._tree.size

    @property
    def is_empty(self) -> bool:
        return not self._receipts and not self.permits

    def attempt(self, work: Judge | AdminNote | EraseOrder | Finding) -> Written | HoldgateError:
        """What the COMMIT will make durable, or why nothing will be. Raises what the store's rows raise."""
        try:
            if isinstance(work, EraseOrder):
                return self.erase(work)
            if isinstance(work, Finding):
                return self.reconcile(work)
            return self.note(work) if isinstance(work, AdminNote) else self.judge(work)
        except self._rows.errors:
            raise
        except (InputError, BackendError, ReconcileError) as error:
            return error
        except Exception as error:  # noqa: BLE001  (a judge is ours, but one bug must not stop the store)
            return BackendError(Reason.INTERNAL_ERROR, f"judge: {type(error).__name__}: {error}")

    def judge(self, judge: Judge) -> tuple[Entry, int, KeptAnswer | None]:
        """The entry that `judge` makes, its leaf index, and the kept answer that it recalls. Whatever is
        raised concerns this request only."""
        claims = {key: row for key in judge.keys if (row := self._claim(_text(key))) is not None}
        now_us = self._now_us()
        receipt_id = new_receipt_id(now_us, self._node.nonce16())
        budgets = self._budgets(judge.meters, claims, now_us) if judge.meters else NO_BUDGETS
        denials = {key: denial for key in judge.denials if (denial := self._denial(_text(key))) is not None}
        standing = Standing(denials=denials, prepared=self._known(judge.objects))
        entry = judge(claims, now_us=now_us, receipt_id=receipt_id, budgets=budgets, standing=standing)
        if entry.outcome is Outcome.PERMIT and self.active not in ("", entry.policy):
            raise Superseded
        bound = self._check(entry, judge.keys, claims, now_us, receipt_id)
        lender = self._check_charges(entry, now_us)
        if entry.waits:
            self._wait_for(entry.prior)
        answer = self._kept_answer(_text(entry.prior)) if entry.recalls else None
        # Past this line nothing raises but the store.
        index = self._append(
            entry.receipt_id,
            ("decision", entry.outcome.value, entry.reason.value, entry.agent, entry.surface),
            now_us,
            entry.jws,
        )
        if entry.inputs is not None:
            self._inputs.append((index, entry.inputs))
        if entry.sealed is not None:
            self._sealed.append((index, entry.sealed))
        if entry.denial is not None:
            self._denials[entry.denial.key] = (index, entry.denial)
        if entry.outcome is Outcome.PERMIT:
            self._claims.update(bound)
            self.permits[receipt_id] = Permit(
                index=index,
                receipt_id=receipt_id,
                state=State.DISPATCHING,
                http_status=0,
                claims=tuple(bound),
                charges=self._taken(entry, lender),
                lender=lender.receipt_id if lender else "",
            )
        return entry, index, answer

    def _kept_answer(self, receipt_id: str) -> KeptAnswer | None:
        pending = self._kept.get(receipt_id)
        return pending[1] if pending is not None else self._rows.answer(receipt_id)

    def _wait_for(self, receipt_id: str) -> None:
        """Raises InFlightElsewhere where that PERMIT is another node's, which is told by its row."""
        first = self._permit(receipt_id)
        if first is None or not first.away:
            return
        if self._node.name not in first.waiting:
            self.permits[receipt_id] = replace(first, waiting=(*first.waiting, self._node.name))
        raise InFlightElsewhere(receipt_id)

    def _known(self, keys: tuple[str, ...]) -> dict[str, Prepared]:
        """Prepared objects, with what was decided about them."""
        found = {key: known for key in keys if (known := self._prepared(_text(key))) is not None}
        # The PERMIT that made it was dispatched, so it was committed before this group.
        return {
            key: replace(known, inputs=self._rows.inputs(known.receipt_id)) for key, known in found.items()
        }

    def _prepared(self, key: str) -> Prepared | None:
        return self._made.get(key) or self._rows.prepared(key)

    def _make(self, made: Made, permit: Permit, row: ClaimRow | None, now_us: int) -> None:
        """The answer to an executed PERMIT named an object. `row`: the claim on it before this outcome."""
        is_known, free = remade(row, self._prepared(made.key), permit.receipt_id, made, now_us)
        if is_known:
            self._made[made.key] = Prepared(
                key=made.key, receipt_id=permit.receipt_id, expires_us=now_us + made.ttl_us
            )
        if free is not None:
            self._claims[made.key] = free

    def _budgets(self, meters: tuple[str, ...], claims: Mapping[str, ClaimRow], now_us: int) -> Budgets:
        held = {row.receipt_id for row in claims.values()}
        permits = {receipt_id: self._permit(receipt_id) for receipt_id in held}
        return Budgets(
            totals={meter: self._total(_text(meter), now_us) for meter in meters},
            standing={receipt_id: permit.charges for receipt_id, permit in permits.items() if permit},
        )

    def _total(self, meter: str, now_us: int) -> Total:
        total = self._rows.total(meter, now_us)
        changes = [c for (name, _), c in self._changes.items() if name == meter and now_us < c.until_us]
        return Total(
            sum=total.sum + sum(change.amount for change in changes),
            count=total.count + sum(change.count for change in changes),
        )

    def _check_charges(self, entry: Entry, now_us: int) -> Permit | None:
        """The permit whose charges a PERMIT takes over. A judge that charges what does not fit gets none."""
        if entry.outcome is not Outcome.PERMIT:
            if entry.charges:
                raise BackendError(Reason.INTERNAL_ERROR, "only a PERMIT charges budgets")
            return None
        for charge in entry.charges:
            fits = 0 <= charge.amount and 0 < charge.count and now_us < charge.until_us < _INT64
            if not _text(charge.meter) or not fits or not 0 <= charge.at_us <= now_us:
                raise BackendError(Reason.INTERNAL_ERROR, "a charge out of range")
            total = self._total(charge.meter, now_us)
            if max(total.sum + charge.amount, total.count + charge.count) >= _INT64:
                raise BackendError(Reason.INTERNAL_ERROR, "a charge beyond 64 bits")
        lender = self._permit(entry.prior) if entry.prior else None
        if lender is None or not lender.charges:
            return None
        if entry.charges:
            raise BackendError(Reason.INTERNAL_ERROR, "a budget that would be charged twice")
        return lender

    def _taken(self, entry: Entry, lender: Permit | None) -> tuple[Charge, ...]:
        if lender is not None:
            self.permits[lender.receipt_id] = replace(lender, charges=())
            return lender.charges
        for charge in entry.charges:
            self._change(charge, 1)
        return entry.charges

    def _change(self, charge: Charge, sign: int) -> None:
        key = (charge.meter, charge.at_us)
        before = self._changes.get(key)
        self._changes[key] = replace(
            charge,
            amount=sign * charge.amount + (before.amount if before else 0),
            count=sign * charge.count + (before.count if before else 0),
        )

    def _release(self, permit: Permit, now_us: int) -> Permit:
        """The permit had no effect: its charges go back to the one that it repeated, or are free."""
        lender = self._permit(permit.lender) if permit.lender else None
        while lender is not None and lender.state in RELEASING:  # found out while its repeat was under way
            lender = self._permit(lender.lender) if lender.lender else None
        if lender is not None:
            self.permits[lender.receipt_id] = replace(lender, charges=permit.charges)
        else:
            for charge in permit.charges:
                if now_us < charge.until_us:  # later its row is gone
                    self._change(charge, -1)
        return replace(permit, charges=())

    def reconcile(self, finding: Finding) -> Noted:
        """What was found out about an unknown outcome. Whatever is raised concerns this finding only."""
        permit = self._permit(_text(finding.of))
        if permit is None:
            raise ReconcileError(f"no PERMIT has the id {finding.of}")
        if permit.state is State.DISPATCHING and self._rows.deserted(finding.of):
            if not finding.node_stopped:
                raise ReconcileError(
                    f"the node of {finding.of} is not connected to the database, and may still be sending:"
                    " stop it, then say so with --node-stopped; or start it again and let it tell"
                )
            self._outcome(permit, replace(_UNKNOWN, receipt_id=finding.of), None)
            permit = self.permits[finding.of]
        if permit.state is not State.UNKNOWN:
            raise ReconcileError(f"the outcome of {finding.of} is {permit.state}, not unknown")
        if finding.found not in FINDINGS:
            raise ReconcileError(f"{finding.found} is nothing that can be found out")
        note = OutcomeNote(
            receipt_id=finding.of, status=OutcomeStatus.RECONCILED, http_status=0, delivered=False
        )
        index = self.head.tree.size
        receipt_id = self._outcome(permit, note, finding)
        return Noted(receipt_id=receipt_id, iat_us=self._iat_us, index=index)

    def outcome(self, note: OutcomeNote) -> None:
        """Write the outcome receipt of a permit; nothing when it already has this or a final one."""
        permit = self._permit(note.receipt_id)
        if permit is not None and settle(permit.state, note.status, note.delivered) is not permit.state:
            self._outcome(permit, note, None)

    def _outcome(self, permit: Permit, note: OutcomeNote, finding: Finding | None) -> str:
        """Long because what an outcome moves (receipt, answer, charges, claims, object) moves at once."""
        found = finding.found if finding else OutcomeStatus.EXECUTED
        state = settle(permit.state, note.status, note.delivered, found)
        http_status = note.http_status if 100 <= note.http_status <= 599 else 0
        now_us = self._now_us()
        made = note.made if state in _MAKING else None
        kept_until_us = self._kept_until(permit) if note.kept and state in _MAKING else 0
        kept = note.kept if kept_until_us > now_us and _is_sealed(note.kept) else None
        before_it = self._claim(_text(made.key)) if made else None
        receipt_id = new_receipt_id(now_us, self._node.nonce16())
        statement = outcome_statement(
            receipt_id=receipt_id,
            issuer=self._node.origin,
            iat_us=now_us,
            node=self._node.name,
            of=note.receipt_id,
            status=note.status,
            http_status=http_status,
            finding=finding,
            produced=made.key if made else "",
            kept=answer_digest(kept.data) if kept else "",
        )
        jws = sign(statement, self._node.key)
        index = self._append(receipt_id, ("outcome", "", note.status.value, "", ""), now_us, jws)
        if kept is not None:
            self._sealed.append((index, Sealed(salt=bytes(SALT_BYTES), key=kept.key, data=kept.data)))
            place = KeptRow(receipt_id=permit.receipt_id, index=index, expires_us=kept_until_us)
            self._kept[permit.receipt_id] = place, kept
        before = permit.state
        if permit.charges and state in RELEASING:
            permit = self._release(permit, now_us)
        self.permits[permit.receipt_id] = permit.ended(state, http_status)
        if permit.waiting and (answer := self._offers.get(permit.receipt_id)) is not None:
            self._answers.append((permit, answer))
        for key in permit.claims:
            row = self._claim(key)
            if row is not None:
                self._claims[key] = settle_claim(
                    row, permit.receipt_id, note.status, http_status, delivered=note.delivered, found=found
                )
        if made is not None:
            self._make(made, permit, before_it, now_us)
        self.unknown += (state is State.UNKNOWN) - (before is State.UNKNOWN)
        return receipt_id

    def _kept_until(self, permit: Permit) -> int:
        """When a repeat under its key gets no answer any more; 0: it holds no key."""
        rows = (self._claim(key) for key in permit.claims)
        held = (row for row in rows if row is not None and row.receipt_id == permit.receipt_id)
        return max((row.expires_us for row in held if row.source in _KEYED), default=0)

    def note(self, note: AdminNote) -> Noted:
        """Write an admin receipt. Whatever is raised concerns this note only."""
        now_us = self._now_us()
        receipt_id = new_receipt_id(now_us, self._node.nonce16())
        statement = admin_statement(
            receipt_id=receipt_id,
            issuer=self._node.origin,
            iat_us=now_us,
            node=self._node.name,
            action=note.action,
            by=note.by,
            details=note.details,
        )
        jws = sign(statement, self._node.key)
        index = self._append(receipt_id, ("admin", "", note.action, "", ""), now_us, jws)
        if note.action == ACTIVATED:
            self.active = note.details["digest"]
        return Noted(receipt_id=receipt_id, iat_us=now_us, index=index)

    def erase(self, order: EraseOrder) -> Noted:
        """Write the receipt of an erasure; it is carried out after the COMMIT."""
        erasure = order.erasure
        noted = self.note(AdminNote(action=erasure.action, by=order.by, details=erasure.details(order.count)))
        self.erasing.append((noted.index, erasure))
        return noted

    def changes(self) -> Changes:
        """What is to be written, all of it or nothing."""
        return Changes(
            receipts=self._receipts,
            inputs=self._inputs,
            sealed=self._sealed,
            kept=tuple(row for row, _ in self._kept.values()),
            erasing=self.erasing,
            permits=self.permits,
            charges=tuple(self._changes.values()),
            claims=self._claims,
            denials=tuple(self._denials.values()),
            prepared=tuple(self._made.values()),
            answers=tuple(self._answers),
            head=self.head,
            unknown=self.unknown,
        )

    def _now_us(self) -> int:
        # Strictly ascending, whatever the clock does: index order is time order.
        return max(self._node.clock_us(), self._iat_us + 1)

    def _claim(self, key: str) -> ClaimRow | None:
        row = self._claims.get(key)
        if row is not None:
            return None if is_free(row) else row
        return self._rows.claim(key)

    def _denial(self, key: str) -> Denial | None:
        pending = self._denials.get(key)
        if pending is not None:
            return pending[1]
        return self._rows.denial(key)

    def _check(
        self,
        entry: Entry,
        keys: tuple[str, ...],
        claims: Mapping[str, ClaimRow],
        now_us: int,
        receipt_id: str,
    ) -> dict[str, ClaimRow]:
        """The claims that the entry binds. A judge that breaks L2 or L3 gets no permit.

        `claims` are the rows there are of `keys`.
        """
        if entry.receipt_id != receipt_id or entry.iat_us != now_us or len(entry.jws) > MAX_BYTES:
            raise BackendError(Reason.INTERNAL_ERROR, "the entry is not for this receipt id and time")
        if entry.outcome is not Outcome.PERMIT and entry.bindings:
            raise BackendError(Reason.INTERNAL_ERROR, "only a PERMIT binds claims")
        if entry.denial is not None:
            _check_denial(entry, entry.denial)
        # What the store could choke on must be this request's failure, not the store's.
        _text(entry.agent), _text(entry.surface)
        if entry.produces and entry.outcome is not Outcome.PERMIT:
            raise BackendError(Reason.INTERNAL_ERROR, "only a PERMIT produces something")
        if not isinstance(entry.jws, bytes) or not isinstance(entry.inputs, _BYTES_OR_NONE):
            raise BackendError(Reason.INTERNAL_ERROR, "the entry's receipt and inputs must be bytes")
        if not entry.jws.startswith(jws_prefix(self._node.key.kid)):
            raise BackendError(Reason.INTERNAL_ERROR, "the entry is not signed with the key in use")
        sealed = entry.sealed
        if not isinstance(sealed, _SEALED_OR_NONE) or (sealed is not None and entry.inputs is not None):
            raise BackendError(Reason.INTERNAL_ERROR, "what is sealed is not kept in clear")
        bound: dict[str, ClaimRow] = {}
        for binding in entry.bindings:
            if not _text(binding.key) or not _text(binding.digest) or binding.source not in SOURCES:
                raise BackendError(Reason.INTERNAL_ERROR, "a claim without key, digest or source")
            if not 0 <= binding.expires_us < _INT64:
                raise BackendError(Reason.INTERNAL_ERROR, "a claim that expires out of range")
            row = claims.get(binding.key) if binding.key in keys else self._claim(binding.key)
            if not may_bind(row, binding, prior=entry.prior, now_us=now_us):
                raise BackendError(Reason.INTERNAL_ERROR, "a PERMIT over a claim that is held")
            bound[binding.key] = bind(row, binding, receipt_id=receipt_id, now_us=now_us)
        return bound

    def _append(
        self, receipt_id: str, columns: tuple[str, str, str, str, str], iat_us: int, jws: bytes
    ) -> int:
        index = self._tree.size
        self._tree = self._tree.append(leaf_hash(jws))
        self._iat_us = iat_us
        self._receipts.append((index, receipt_id, *columns, iat_us, jws))
        return index

    def _permit(self, receipt_id: str) -> Permit | None:
        return self.permits.get(receipt_id) or self._rows.permit(receipt_id)


def _check_denial(entry: Entry, denial: Denial) -> None:
    """ST2, the store's own look: what would stick is a DENY, this one, and fits into its row."""
    if entry.outcome is not Outcome.DENY or (denial.receipt_id, denial.policy) != (
        entry.receipt_id,
        entry.policy,
    ):
        raise BackendError(Reason.INTERNAL_ERROR, "only a DENY sticks, and for itself")
    texts = (denial.key, denial.digest, *denial.rules)
    if not all(map(_text, texts)) or not denial.rules or any(" " in rule for rule in denial.rules):
        raise BackendError(Reason.INTERNAL_ERROR, "a denial without key, digest or rules")
    if not 0 <= denial.expires_us < _INT64:
        raise BackendError(Reason.INTERNAL_ERROR, "a denial that expires out of range")


def _is_sealed(kept: KeptAnswer | None) -> bool:
    """The store's own look at what it is given: nothing that it could choke on."""
    return isinstance(kept, KeptAnswer) and len(kept.key) == KEY_BYTES and len(kept.data) <= MAX_KEPT_BYTES


def _text(value: str) -> str:
    if not isinstance(value, str):
        raise BackendError(Reason.INTERNAL_ERROR, "the entry has a field that is not text")
    value.encode()  # a lone surrogate raises here
    if "\0" in value:
        raise BackendError(Reason.INTERNAL_ERROR, "the entry has a text that not every store can keep")
    return value
