"""The ledger over a store: one writer thread, group commit.

    record(judge) --queue--> writer thread: begin, judge, sign ... commit (durable) --> futures

The thread commits whatever queued while the last commit ran; nobody waits for company. Outcomes
alone wait up to `linger_s` for a decision to share its commit with, since nobody waits for them: what a
crash in that time costs is an outcome that is known (then it is `unknown`), never a permit.
Tiles and checkpoint follow a commit within a second, in a thread of their own (sequencer.py).
What is particular to a database is behind store.py. Long because it is one class for two threads: they are
read together or not at all.

Invariants (tests/test_sqlite.py has one test named after each):
  S1  A future gets its Recorded only after the commit that holds it returned, in leaf order.
  S2  A judge that raises fails its own request only.
  S3  After any error of the store or the file system nothing is written or recorded any more, but where the
      store says that it comes back: then nothing of that group, and nothing until it is back.
  S5  When open() returns, no permit of an earlier run is dispatching.
  S6  A permit whose caller went away before it could dispatch becomes not_sent.
  S8  After a fence, or the receipt of an activation, no PERMIT under another bundle is recorded.
  S9  Another key signs from the leaf after the one that names it, and only by way of rotate().
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, TypedDict, Unpack

from ..answer import Answer
from ..erasure import EraseOrder
from ..errors import BackendError, ConfigError, HoldgateError, Outcome, Reason
from ..keyhistory import ACTIONS
from ..keys import PublicKey, Signer
from ..ledger import AdminNote, Finding, Judge, Noted, OutcomeStatus, Recorded
from ..note import vkey
from ..quick import quick
from ..sealing import KeptAnswer
from ..standing import Made
from ..statement import StatementError, check_admin, check_finding
from ..tiles import Edge
from ..tlog import TlogError, Tree
from .batch import ACTIVATED, Batch, Fence, Written
from .durable import replace_file
from .keyfiles import Device
from .keyring import ActiveSigner, KeyChange, KeyRing, Revocation, Rotation
from .log_tail import free_bytes, lock_directory
from .sequencer import LOG, VKEY, Sequencer
from .store import Conflict, Node, OutcomeNote, Store, StoreBroken, StoreLost

__all__ = ["Erased", "Given", "Prepared", "StoreLedger"]

_GROUP: Final = 512  # bounds how long the first of a group waits for the last to be judged
_DEFERRED_S: Final = 1.0  # between two tries at an outcome whose signature could not be had
_LOOK_S: Final = 0.1  # between two looks for the end of another node's PERMIT, while somebody waits for it
_TRIES: Final = 3  # of one group, when the store undid its transaction because of another one
_CLOSE: Final = object()
_KEY_CHANGES: Final = (Rotation, Revocation)  # of KeyChange
_CLOSED: Final = "the ledger is closed"

type _Result = tuple[_Pending | _Wait, Recorded | Noted | _Ended | HoldgateError]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Wait:
    """For the end of another node's PERMIT."""

    receipt_id: str
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]  # of _Ended


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ended:
    answer: Answer | None


_DONE: Final = (Recorded, Noted, _Ended)  # anything else is nobody's result


@quick
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Pending:
    work: Judge | AdminNote | EraseOrder | KeyChange | Finding
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]  # of Recorded for a Judge, of Noted for a note


@dataclass(frozen=True, slots=True, kw_only=True)
class Erased:
    """An erasure that is carried out."""

    noted: Noted
    out_of_files: bool  # False: a reader still holds older versions of the pages, in the write-ahead log


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """An open store whose log is the one that was signed."""

    store: Store
    edge: Edge  # of the tiles that the checkpoint signed; empty when they are lost
    signed: int  # leaves under the checkpoint


class _Needed(TypedDict):
    receipt_key: Signer
    log_key: Signer
    origin: str
    node: str
    clock_us: Callable[[], int]
    nonce16: Callable[[], bytes]


class Given(_Needed, total=False):
    """Arguments of open()."""

    linger_s: float
    headroom_bytes: int
    free: Callable[[Path], int]
    device: Device | None


class StoreLedger:
    """Implements ledger.Ledger over any store.Store. Make one with open_sqlite() or open_postgres()."""

    def __init__(
        self,
        *,
        prepared: Prepared,
        state_dir: Path,
        lock: int,
        node: Node,
        keys: KeyRing,
        linger_s: float,
        headroom_bytes: int,
        free: Callable[[Path], int],
    ) -> None:
        self._store, self._dir, self._lock, self._node = prepared.store, state_dir, lock, node
        self._keys, self._linger_s, self._headroom_bytes, self._free = keys, linger_s, headroom_bytes, free
        self._queue: queue.SimpleQueue[_Pending | OutcomeNote | object] = queue.SimpleQueue()
        self._active = ""  # the bundle that PERMITs need: see fence()
        self._deferred: list[OutcomeNote] = []  # not written so far: tried again, or unknown at restart
        self._offers: dict[str, Answer] = {}  # by receipt: to share if its outcome is waited for elsewhere
        self._waits: list[_Wait] = []
        self._look_at = 0.0  # monotonic: for their ends
        self._dead = ""  # why nothing is recorded any more
        self._is_full = False  # found so at the last commit
        self._doubt: int | None = None  # the log's size before a commit that must not have happened unnoticed
        self._eraser = prepared.store.eraser
        self._thread = threading.Thread(target=self._run, name="ledger-writer", daemon=True)
        self._sequencer = Sequencer(
            state_dir=state_dir,
            origin=node.origin,
            key=keys.log.now,
            edge=prepared.edge,
            signed=prepared.signed,
            head=self._tree,
            leaves=prepared.store.leaves,
            failed=self._log_failed,
        )

    @classmethod
    def open_over(
        cls,
        state_dir: Path,
        prepare: Callable[[Node, PublicKey], Prepared],
        *,
        linger_s: float = 0.010,
        headroom_bytes: int = 64 << 20,
        free: Callable[[Path], int] = free_bytes,
        device: Device | None = None,
        **given: Unpack[_Needed],
    ) -> Self:
        """Open the store with `prepare`, which has audited the log's tail, and close what a crash left open.
        Raises ConfigError; BackendError when a signature is needed now and cannot be had.

        Long because what was opened is let go of where a later step fails.
        """
        keys = KeyRing(state_dir, given["receipt_key"], given["log_key"], device)
        where = Node(
            key=keys.receipt,
            origin=given["origin"],
            name=given["node"],
            owner=given["nonce16"]().hex(),
            clock_us=given["clock_us"],
            nonce16=given["nonce16"],
        )
        lock = lock_directory(state_dir)
        prepared: Prepared | None = None
        try:
            if free(state_dir) < headroom_bytes:
                raise ConfigError(f"less than {headroom_bytes >> 20} MiB free", file=str(state_dir))
            (state_dir / LOG).mkdir(mode=0o755, exist_ok=True)
            prepared = prepare(where, given["log_key"].public)
            ledger = cls(
                prepared=prepared,
                state_dir=state_dir,
                lock=lock,
                node=where,
                keys=keys,
                linger_s=linger_s,
                headroom_bytes=headroom_bytes,
                free=free,
            )
            ledger._begin_log()
        except BaseException as error:
            if prepared is not None:
                prepared.store.close()
            os.close(lock)
            failures = prepared.store.errors if prepared else ()
            if isinstance(error, (OSError, TlogError, *failures)):
                raise ConfigError(f"cannot open the ledger: {error}", file=str(state_dir)) from error
            raise
        ledger._thread.start()
        ledger._sequencer.start()
        return ledger

    @property
    def signer(self) -> ActiveSigner:
        """The receipt key in use. A judge signs with it, in the serial step."""
        return self._keys.receipt

    @property
    def size(self) -> int:
        """How many receipts are durable."""
        return self._store.head.tree.size

    @property
    def unknown(self) -> int:
        """How many permits have an outcome that nobody knows."""
        return self._store.unknown

    @property
    def healthy(self) -> bool:
        """Whether a decision could be recorded now. The disk is asked again only when it was found full; a
        signer process counts as gone for some seconds after it failed."""
        return (
            self._alive
            and not self._store.lost
            and not self._sequencer.stuck
            and not (self._is_full and self._nearly_full())
            and not self._keys.failing
        )

    @property
    def _alive(self) -> bool:
        return not self._dead and self._thread.is_alive()

    def _nearly_full(self) -> bool:
        try:
            return self._free(self._dir) < self._headroom_bytes
        except OSError:
            return True

    async def record(self, judge: Judge) -> Recorded:
        recorded: Recorded = await self._ask(judge)
        return recorded

    async def note(self, note: AdminNote) -> Noted:
        """Write an admin receipt; durable when it returns. Raises StatementError before anything is queued
        when no receipt may say this, BackendError as record() does."""
        check_admin(note.action, note.by, note.details)
        if note.action in ACTIONS:
            raise StatementError("a receipt about keys is written by a change of keys only")
        noted: Noted = await self._ask(note)
        return noted

    async def reconcile(self, finding: Finding) -> Noted:
        """Write what was found out about an unknown outcome; its keys and budgets follow. Raises
        StatementError before anything is queued, ReconcileError when that permit's outcome is not unknown."""
        check_finding(finding)
        noted: Noted = await self._ask(finding)
        return noted

    async def change_key(self, change: KeyChange) -> Noted:
        """Rotate or revoke a key. When it returns, the change is in the log, and has been made. Raises
        ConfigError for a change that cannot be, BackendError as record() does."""
        noted: Noted = await self._ask(change)
        return noted

    async def erase(self, order: EraseOrder) -> Erased:
        """Write the order's receipt, and destroy what it covers. Raises as note() does.

        Cancelling it, or a crash, stops the waiting only: what is ordered is destroyed.
        """
        noted: Noted = await self._ask(order)
        while not self._eraser.done(noted.index) and self._eraser.busy and self._alive:
            await asyncio.sleep(0.01)
        return Erased(noted=noted, out_of_files=self._eraser.done(noted.index))

    async def first(self, receipt_id: str) -> Answer | None:
        """Wait until the PERMIT of another node has an outcome: the answer that it shares with identical
        requests; None: it has none to share. Raises BackendError when the ledger ends."""
        loop = asyncio.get_running_loop()
        wait = _Wait(receipt_id=receipt_id, loop=loop, future=loop.create_future())
        ended: _Ended = await self._queued(wait)
        return ended.answer

    def offer(self, receipt_id: str, answer: Answer) -> None:
        """Identical requests at other nodes may have this answer. Called before record_outcome()."""
        self._offers[receipt_id] = answer

    async def _ask(self, work: Judge | AdminNote | EraseOrder | KeyChange | Finding) -> Any:
        loop = asyncio.get_running_loop()
        return await self._queued(_Pending(work=work, loop=loop, future=loop.create_future()))

    async def _queued(self, pending: _Pending | _Wait) -> Any:
        self._queue.put(pending)
        # Asked after the put: a writer that died before it never answers, one that dies later does.
        if not self._alive:
            pending.future.cancel()
            raise BackendError(Reason.STORE_UNAVAILABLE, self._dead or "the writer thread is gone")
        try:
            return await pending.future
        except asyncio.CancelledError:
            # The result may have come in the same turn as the cancellation; nobody will dispatch it.
            if pending.future.done() and not pending.future.cancelled() and not pending.future.exception():
                self._abandon(pending.future.result())
            raise

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
        self._queue.put(
            OutcomeNote(
                receipt_id=receipt_id,
                status=status,
                http_status=http_status,
                delivered=delivered,
                made=made,
                kept=kept,
            )
        )

    def fence(self, digest: str) -> None:
        """Queue a Fence: what is recorded after it is no PERMIT under another bundle. An admin receipt that a
        signed bundle was activated is one too, in its own transaction."""
        self._queue.put(Fence(digest=digest))

    def close(self) -> None:
        """Commit what is queued, sign the last checkpoint, let go of the directory. Idempotent."""
        if self._lock < 0:
            return
        self._queue.put(_CLOSE)
        if self._thread.is_alive():
            self._thread.join()
        # After an error nobody knows what is on disk: then the next start looks, and signs.
        self._sequencer.stop(publish=self._dead == _CLOSED)
        self._store.close()
        os.close(self._lock)
        self._lock = -1

    # --- loop side ---

    def _abandon(self, recorded: Recorded | Noted | _Ended) -> None:
        if isinstance(recorded, Recorded) and recorded.entry.outcome is Outcome.PERMIT:
            self.record_outcome(recorded.entry.receipt_id, OutcomeStatus.NOT_SENT, 0, delivered=False)

    def _settle(self, results: Iterable[_Result]) -> None:
        for pending, result in results:
            if isinstance(result, _DONE):
                if pending.future.cancelled():
                    self._abandon(result)
                elif not pending.future.done():
                    pending.future.set_result(result)
            elif not pending.future.done():
                pending.future.set_exception(result)

    # --- writer thread ---

    def _run(self) -> None:
        try:
            self._serve()
            self._dead = self._dead or _CLOSED
        except BaseException as error:  # noqa: BLE001  (whatever it is, what is on disk is not known now)
            self._dead = f"{type(error).__name__}: {error}"
        finally:
            self._refuse_queue()

    def _serve(self) -> None:
        while True:
            first = self._next()
            late, self._deferred = self._deferred, []
            group = late if first is None else late + self._drain(first)
            closing = _CLOSE in group
            self._waits += [item for item in group if isinstance(item, _Wait)]
            if work := [item for item in group if item is not _CLOSE and not isinstance(item, _Wait)]:
                self._commit(work)
            if self._store.lost:
                self._store.heal()
            else:
                with contextlib.suppress(StoreLost):
                    self._store.tend()
                    self._look()
                    self._eraser.step()
            if closing:
                return

    def _next(self) -> object | None:
        """What is queued; None when there is something else to do and nobody waits."""
        pauses = [self._store.tend_s] if self._store.tend_s else []
        if self._eraser.busy:
            pauses.append(self._eraser.pause_s)
        elif self._deferred or self._store.lost:
            pauses.append(_DEFERRED_S)
        if self._waits:
            pauses.append(_LOOK_S)
        try:
            return self._queue.get(timeout=min(pauses, default=None))
        except queue.Empty:
            return None

    def _look(self) -> None:
        """Tell those who wait for PERMITs of other nodes which of them have ended."""
        now = time.monotonic()
        if not self._waits or now < self._look_at:
            return
        self._look_at = now + _LOOK_S
        self._waits = waits = [each for each in self._waits if not each.future.done()]
        ended = self._store.ended({each.receipt_id for each in waits}) if waits else {}
        self._waits = [each for each in waits if each.receipt_id not in ended]
        told = [each for each in waits if each.receipt_id in ended]
        self._deliver([(each, _Ended(answer=ended[each.receipt_id])) for each in told])

    def _drain(self, first: object) -> list[object]:
        group = [first]
        if isinstance(first, OutcomeNote) and self._linger_s:
            until = time.monotonic() + self._linger_s
            with contextlib.suppress(queue.Empty):
                while isinstance(group[-1], OutcomeNote) and len(group) < _GROUP:
                    group.append(self._queue.get(timeout=max(0.0, until - time.monotonic())))
        with contextlib.suppress(queue.Empty):
            while len(group) < _GROUP and not _changes_key(group[-1]):
                group.append(self._queue.get_nowait())
        return group

    def _commit(self, group: list[object]) -> None:
        pending = [item for item in group if isinstance(item, _Pending)]
        try:
            results = self._commit_group(group)
        except StoreLost as error:
            self._lose(group)
            results = [(item, error) for item in pending]
        except BaseException as error:
            # Not known whether it is durable. No second try of an fsync: the thread ends, see _run.
            detail = f"{type(error).__name__}: {error}"
            self._dead = detail
            failure = BackendError(Reason.STORE_UNAVAILABLE, detail)
            self._deliver([(item, failure) for item in pending])
            raise
        self._deliver(results)

    def _lose(self, group: list[object]) -> None:
        """The store is away, and whether it has the group is not known. Nothing of it is dispatched."""
        self._deferred += [item for item in group if isinstance(item, OutcomeNote)]
        for item in group:
            if isinstance(item, Fence):
                self._active = item.digest
        if any(isinstance(item, _Pending) and _needs_a_sequel(item.work) for item in group):
            self._doubt = self.size

    def _commit_group(self, group: list[object]) -> list[_Result]:
        for _ in range(_TRIES):
            with contextlib.suppress(Conflict):
                return self._try_group(group)
        raise StoreLost(f"{_TRIES} transactions in a row were undone because of others")

    def _try_group(self, group: list[object]) -> list[_Result]:
        is_full = self._is_full = self._nearly_full()
        refused: list[_Result] = []
        worked: list[tuple[_Pending, Written]] = []
        rows = self._store.begin(group)
        if self._doubt not in (None, self.size):
            raise OSError("a change of keys, bundle or inputs was committed while the store was lost")
        self._doubt = None
        batch = Batch(rows, self._node, self._store.head, self._active, self._offers)
        stranded = [_outcome_of(each, OutcomeStatus.NOT_SENT) for each in self._store.stranded()]
        unsigned = [note for note in stranded if not self._outcome(batch, note)]
        for item in group:
            if isinstance(item, OutcomeNote):
                if not self._outcome(batch, item):
                    unsigned.append(item)
            elif isinstance(item, Fence):
                batch.active = item.digest
            elif isinstance(item, _Pending):
                # What is left of the disk is for outcomes: they were promised.
                verdict = _full() if is_full else self._attempt(batch, item.work)
                if isinstance(verdict, HoldgateError):
                    refused.append((item, verdict))
                else:
                    worked.append((item, verdict))
        if batch.is_empty:
            self._store.rollback()
            self._active, self._deferred = batch.active, list(dict.fromkeys(unsigned))
            self._forget_offers(group)
            return refused
        self._store.commit(batch.changes())
        self._deferred = list(dict.fromkeys(unsigned))  # what is stranded is told again until it is written
        self._forget_offers(group)
        self._advance(batch)
        try:
            self._keys.finish(batch.size - 1, self._sequencer)
        except StoreLost as error:  # not for a later try: the log must not go on before it is done
            raise StoreBroken(f"a change of keys is not completed: {error.detail}") from error
        return [(item, _durable(written)) for item, written in worked] + refused

    def _forget_offers(self, group: list[object]) -> None:
        """Of outcomes that are durable now."""
        for item in group:
            if isinstance(item, OutcomeNote) and item not in self._deferred:
                self._offers.pop(item.receipt_id, None)

    def _outcome(self, batch: Batch, note: OutcomeNote) -> bool:
        """False: its signature could not be had."""
        try:
            batch.outcome(note)
        except StoreLost:
            raise
        except BackendError:
            return False
        return True

    def _attempt(
        self, batch: Batch, work: Judge | AdminNote | EraseOrder | KeyChange | Finding
    ) -> Written | HoldgateError:
        if not isinstance(work, _KEY_CHANGES):
            return batch.attempt(work)
        # The last of its group, so that every other receipt of the group is the old key's.
        try:
            written = batch.attempt(self._keys.plan(work, batch.size))
        except HoldgateError as error:
            written = error
        if isinstance(written, HoldgateError):
            self._keys.discard()
        return written

    def _advance(self, batch: Batch) -> None:
        self._active = batch.active
        self._sequencer.wake()
        for index, erasure in batch.erasing:
            self._eraser.start(index, erasure)

    def _deliver(self, results: list[_Result]) -> None:
        # One wake-up per event loop and group, however many requests it answers.
        loops: dict[asyncio.AbstractEventLoop, list[_Result]] = {}
        for result in results:
            loops.setdefault(result[0].loop, []).append(result)
        for loop, mine in loops.items():
            # A loop that is closed has nobody left who could dispatch; the next open() says unknown.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._settle, mine)

    def _refuse_queue(self) -> None:
        failure = BackendError(Reason.STORE_UNAVAILABLE, self._dead)
        left: list[_Result] = [(each, failure) for each in self._waits]
        with contextlib.suppress(queue.Empty):
            while True:
                item = self._queue.get_nowait()
                if isinstance(item, _Pending | _Wait):
                    left.append((item, failure))
        self._deliver(left)

    # --- sequencer thread ---

    def _tree(self) -> Tree:
        return self._store.head.tree

    def _log_failed(self, detail: str) -> None:
        self._dead = self._dead or detail
        self._queue.put(_CLOSE)

    # --- before the thread starts ---

    def _begin_log(self) -> None:
        """Bring the keys to what the log says, and give every permit of a dead owner its `unknown` receipt:
        it may have been dispatched."""
        self._keys.settle(self._store.key_events(), self._sequencer)
        log_vkey = vkey(self._node.origin, self._keys.log.public)
        replace_file(self._dir / VKEY, log_vkey.encode() + b"\n")
        orphans = self._store.orphans()
        if orphans:
            self._commit_group([_outcome_of(receipt_id, OutcomeStatus.UNKNOWN) for receipt_id in orphans])
        if self._deferred:
            raise BackendError(Reason.STORE_UNAVAILABLE, "the signer does not answer, and outcomes are open")
        self._sequencer.publish()
        self._eraser.resume()


def _changes_key(item: object) -> bool:
    return isinstance(item, _Pending) and isinstance(item.work, _KEY_CHANGES)


def _needs_a_sequel(work: object) -> bool:
    """Whether something follows its commit here: a commit that nobody saw must not go without it."""
    is_activation = isinstance(work, AdminNote) and work.action == ACTIVATED
    return is_activation or isinstance(work, Rotation | Revocation | EraseOrder)


def _outcome_of(receipt_id: str, status: OutcomeStatus) -> OutcomeNote:
    return OutcomeNote(receipt_id=receipt_id, status=status, http_status=0, delivered=False)


def _durable(written: Written) -> Recorded | Noted:
    """Called after the COMMIT."""
    if isinstance(written, Noted):
        return written
    entry, index, answer = written
    return Recorded(entry=entry, index=index, durable=True, answer=answer)


def _full() -> HoldgateError:
    return BackendError(Reason.STORE_UNAVAILABLE, "the disk of the state directory is nearly full")
