"""In-memory stand-ins for the Protocols: a ledger, an upstream, a client, a meter. They decide nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from holdgate.answer import DispatchError
from holdgate.counters import Book
from holdgate.errors import BackendError, HoldgateError, Outcome, Reason
from holdgate.ledger import (
    ClaimRow,
    Judge,
    OutcomeStatus,
    Recorded,
    State,
    bind,
    remade,
    settle,
    settle_claim,
    settle_row,
)
from holdgate.message import Headers, ResponseHead
from holdgate.policy_model import PolicySet
from holdgate.receipt import new_receipt_id
from holdgate.release import Release
from holdgate.sealing import KeptAnswer, open_sealed
from holdgate.standing import Denial, Made, Prepared, Standing

NO_POLICIES = PolicySet(
    policies=(), agent_attrs={}, attr_tests={}, table={}, files=()
)  # whoever uses it has a gate of its own


class MemoryLedger:
    """Serial, durable as long as the test runs. `before` is awaited in front of every record."""

    def __init__(self) -> None:
        self.entries: list[Any] = []
        self.outcomes: list[tuple[str, OutcomeStatus, int, bool]] = []
        self.claims: dict[str, ClaimRow] = {}
        self.book = Book()
        self.denials: dict[str, Denial] = {}
        self.prepared: dict[str, Prepared] = {}
        self.answers: dict[str, KeptAnswer] = {}
        self.now_us = 1_790_000_000_000_000
        self.before: Callable[[], Any] | None = None
        self.after: Callable[[], Any] | None = None
        self.broken = False

    async def record(self, judge: Judge) -> Recorded:
        if self.before is not None:
            await self.before()
        if self.broken:
            raise BackendError(Reason.STORE_UNAVAILABLE, "broken by the test")
        self.now_us += 1
        receipt_id = new_receipt_id(self.now_us, len(self.entries).to_bytes(16, "big"))
        priors = {row.receipt_id for row in self.claims.values()}
        budgets = self.book.budgets(judge.meters, self.now_us, priors)
        entry = judge(
            self.claims,
            now_us=self.now_us,
            receipt_id=receipt_id,
            budgets=budgets,
            standing=Standing(denials=self.denials, prepared=self._known()),
        )
        if entry.denial is not None:
            self.denials[entry.denial.key] = entry.denial
        if entry.outcome is Outcome.PERMIT:
            self.book.permit(receipt_id, entry.charges, entry.prior)
        for binding in entry.bindings:
            row = self.claims.get(binding.key)
            self.claims[binding.key] = bind(row, binding, receipt_id=receipt_id, now_us=self.now_us)
        self.entries.append(entry)
        try:
            if self.after is not None:
                await self.after()
        except asyncio.CancelledError:
            if entry.outcome is Outcome.PERMIT:
                self.record_outcome(receipt_id, OutcomeStatus.NOT_SENT, 0, delivered=False)
            raise
        answer = self.answers.get(entry.prior) if entry.recalls else None
        return Recorded(entry=entry, index=len(self.entries) - 1, durable=True, answer=answer)

    def _known(self) -> dict[str, Prepared]:
        inputs = {entry.receipt_id: _input_of(entry) for entry in self.entries}
        return {k: replace(one, inputs=inputs[one.receipt_id]) for k, one in self.prepared.items()}

    def record_outcome(
        self,
        receipt_id: str,
        status: OutcomeStatus,
        http_status: int,
        *,
        delivered: bool,
        made: Made | None = None,
        kept: KeptAnswer | None = None,
    ) -> None:
        if kept is not None and status is OutcomeStatus.EXECUTED:
            self.answers[receipt_id] = kept
        self.outcomes.append((receipt_id, status, http_status, delivered))
        before = self.claims.get(made.key) if made else None
        with contextlib.suppress(KeyError):  # some tests settle what they never recorded
            self.book.settle(receipt_id, settle(State.DISPATCHING, status, delivered))
        for key, row in list(self.claims.items()):
            if row.receipt_id == receipt_id:
                self.claims[key] = settle_row(row, status, http_status, delivered=delivered)
        if made is not None and status is OutcomeStatus.EXECUTED:
            is_known, free = remade(before, self.prepared.get(made.key), receipt_id, made, self.now_us)
            if is_known:
                self.prepared[made.key] = Prepared(
                    key=made.key, receipt_id=receipt_id, expires_us=self.now_us + made.ttl_us
                )
            if free is not None:
                self.claims[made.key] = free

    def reconcile(self, receipt_id: str, found: OutcomeStatus) -> None:
        """Somebody looked what became of an unknown outcome."""
        for key, row in list(self.claims.items()):
            self.claims[key] = settle_claim(
                row, receipt_id, OutcomeStatus.RECONCILED, 0, delivered=False, found=found
            )

    @property
    def last(self) -> Any:
        return self.entries[-1]


def _input_of(entry: Any) -> bytes | None:
    sealed = entry.sealed
    if sealed is None:
        return entry.inputs  # type: ignore[no-any-return]
    return open_sealed(entry.receipt_id, sealed.data, sealed.key).inputs


@dataclass
class FakeExchange:
    head: ResponseHead
    length: int | None
    pieces: list[bytes]
    cut: bool = False
    abandoned: bool = False

    async def read(self) -> bytes:
        if self.pieces:
            return self.pieces.pop(0)
        if self.cut:
            raise DispatchError(OutcomeStatus.UNKNOWN, 502, "cut by the test")
        return b""

    async def drain(self, limit_bytes: int) -> bytes | None:
        if self.length is None:
            return None
        if self.cut:
            raise DispatchError(OutcomeStatus.UNKNOWN, 502, "cut by the test")
        pieces, self.pieces = self.pieces, []
        return b"".join(pieces)

    def abandon(self) -> None:
        self.abandoned = True


@dataclass
class FakeUpstream:
    """Counts what is dispatched: the assertion that matters is `seen == []`."""

    status: int = 200
    body: bytes = b'{"ok":true}'
    headers: Headers = ((b"Content-Type", b"application/json"),)
    chunked: bool = False
    cut: bool = False
    error: BaseException | None = None
    gate: asyncio.Event | None = None
    seen: list[Release] = field(default_factory=list)
    exchanges: list[FakeExchange] = field(default_factory=list)

    async def dispatch(self, release: Release) -> FakeExchange:
        try:
            release.verify()  # as the outer door does, before anything is sent
        except HoldgateError as error:
            raise DispatchError(OutcomeStatus.NOT_SENT, 502, str(error)) from None
        self.seen.append(release)
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        exchange = FakeExchange(
            head=ResponseHead(status=self.status, reason=b"OK", headers=self.headers),
            length=None if self.chunked else len(self.body),
            pieces=[self.body] if self.body else [],
            cut=self.cut,
        )
        self.exchanges.append(exchange)
        return exchange

    async def close(self) -> None:
        return None


class FakeClient:
    def __init__(self) -> None:
        self.gone = False
        self._callbacks: list[Callable[[], object]] = []

    def on_gone(self, callback: Callable[[], object]) -> None:
        self._callbacks.append(callback)

    def leave(self) -> None:
        self.gone = True
        for callback in self._callbacks:
            callback()


class FakeMeter:
    """Counts calls by name."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        def note(*args: Any) -> None:
            self.calls.append((name, args))

        return note


def permitted(entry: Any) -> bool:
    return bool(entry.outcome is Outcome.PERMIT)


__all__ = [
    "FakeClient",
    "FakeExchange",
    "FakeMeter",
    "FakeUpstream",
    "MemoryLedger",
    "permitted",
]
