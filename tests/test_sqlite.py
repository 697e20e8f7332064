"""adapters/sqlite.py: the invariants in its docstring, faults of disk and thread, and kill -9."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evidence import (
    DIGEST,
    KEYS,
    LOG_KEY,
    LOG_KEYS,
    ORIGIN,
    OTHER_DIGEST,
    OTHER_KEY,
    RECEIPT_KEY,
    T0,
    RefundJudge,
    coverage_details,
    open_ledger,
    ticking,
)
from holdgate.adapters import sequencer, sqlite_open, sqlite_schema, sqlite_store, store_ledger
from holdgate.adapters.batch import Batch
from holdgate.adapters.keyring import Rotation
from holdgate.adapters.sqlite import SqliteLedger, SqliteReader
from holdgate.adapters.store import Conflict
from holdgate.audit import AuditReport, audit
from holdgate.errors import BackendError, ConfigError, InputError, Outcome, Reason
from holdgate.keyhistory import Purpose
from holdgate.keys import key_set
from holdgate.ledger import (
    AdminNote,
    Binding,
    Charge,
    ClaimRow,
    Entry,
    Finding,
    Noted,
    OutcomeStatus,
    Recorded,
    State,
    Superseded,
    Verdict,
)
from holdgate.note import verify_checkpoint, vkey
from holdgate.receipt import verify
from holdgate.statement import StatementError
from holdgate.tlog import EMPTY, leaf_hash

EXECUTED, NOT_SENT, UNKNOWN = OutcomeStatus.EXECUTED, OutcomeStatus.NOT_SENT, OutcomeStatus.UNKNOWN


def _audit(state_dir: Path) -> AuditReport:
    with SqliteReader(state_dir) as reader:
        return audit(reader.audit_input(), origin=ORIGIN, receipt_keys=KEYS, log_keys=LOG_KEYS)


async def _recorded(ledger: SqliteLedger, *judges: RefundJudge) -> list[Recorded]:
    return list(await asyncio.gather(*map(ledger.record, judges)))


async def _settled(ledger: SqliteLedger) -> None:
    """Outcomes are committed before any decision that is queued after them."""
    await ledger.record(RefundJudge("settled"))


class _Broken:
    """A Judge that does what a test needs; `keys` is what it asks for."""

    meters = denials = objects = ()

    def __init__(self, does: Callable[[Entry], Entry], keys: Any = ()) -> None:
        self.keys, self._does, self._good = keys, does, RefundJudge("broken")

    def __call__(self, claims: Mapping[str, ClaimRow], **given: Any) -> Entry:
        return self._does(self._good(claims, **given))


# --- formats ---


async def test_an_older_format_is_brought_up_to_date_when_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = open_ledger(tmp_path)
    await ledger.record(RefundJudge("before"))
    ledger.close()
    newer = (*sqlite_schema.STEPS, "CREATE TABLE later (one INTEGER) STRICT;\n")
    for module in (sqlite_schema, sqlite_open):
        monkeypatch.setattr(module, "STEPS", newer)
        monkeypatch.setattr(module, "VERSION", len(newer))
    ledger = open_ledger(tmp_path)
    await ledger.record(RefundJudge("after"))
    ledger.close()
    with sqlite3.connect(tmp_path / "ledger.db") as db:
        assert db.execute("PRAGMA user_version").fetchone()[0] == len(newer)
        assert db.execute("SELECT count(*) FROM receipts WHERE type = 'decision'").fetchone()[0] == 2
        assert dict(db.execute("SELECT name, sql FROM sqlite_schema")) == sqlite_schema.schema_of_new()


# --- what is recorded ---


async def test_s1_receipts_are_leaves_in_commit_order_under_one_root(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    recorded = await _recorded(ledger, *(RefundJudge(f"key {number}") for number in range(20)))
    assert [item.index for item in recorded] == list(range(20))
    assert ledger.size == 20
    ledger.close()
    tree = EMPTY
    with SqliteReader(tmp_path) as reader:
        for stored, item in zip(reader.export(), recorded, strict=True):
            assert stored.jws == item.entry.jws
            assert verify(stored.jws, KEYS).id == stored.id == item.entry.receipt_id
            tree = tree.append(leaf_hash(stored.jws))
        checkpoint = verify_checkpoint(reader.checkpoint(), ORIGIN, LOG_KEY.public)
    assert (checkpoint.size, checkpoint.root) == (20, tree.root())
    assert (tmp_path / "log" / "key.vkey").read_text() == vkey(ORIGIN, LOG_KEY.public) + "\n"


async def test_a_claim_is_read_from_the_file_once_from_decision_to_outcome(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    read: list[str] = []
    judge = RefundJudge("once")
    ledger._store._db.set_trace_callback(read.append)  # type: ignore[attr-defined]
    (permit,) = await _recorded(ledger, judge)
    ledger.record_outcome(permit.entry.receipt_id, EXECUTED, 200, delivered=True)
    await ledger.note(AdminNote(action="coverage", by="local", details=coverage_details()))
    assert len([each for each in read if each.startswith("SELECT * FROM claims")]) == len(judge.keys) > 0
    # What is in memory is what is in the file: a repeat is told the same before and after a restart.
    verdicts = [(await ledger.record(RefundJudge("once"))).entry.prior]
    ledger.close()
    ledger = open_ledger(tmp_path)
    verdicts.append((await ledger.record(RefundJudge("once"))).entry.prior)
    assert verdicts[0] == verdicts[1] != ""
    ledger.close()


async def test_s1_an_admin_receipt_is_a_leaf_like_the_others(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    note = AdminNote(action="coverage", by="local", details=coverage_details())
    first, noted, _ = await asyncio.gather(
        ledger.record(RefundJudge("a")), ledger.note(note), ledger.record(RefundJudge("b"))
    )
    assert (first.index, noted.index, ledger.size) == (0, 1, 3)
    ledger.record_outcome(first.entry.receipt_id, EXECUTED, 200, delivered=True)
    await _settled(ledger)
    with SqliteReader(tmp_path) as reader:
        stored = reader.newest_admin("coverage")
        assert stored is not None and (stored.id, stored.iat_us) == (noted.receipt_id, noted.iat_us)
        assert verify(stored.jws, KEYS).statement["details"] == coverage_details()
        assert reader.newest_admin("keys.rotate") is None
    ledger.close()
    report = _audit(tmp_path)
    assert (report.problems, report.admin, report.size) == ((), 1, 5)
    open_ledger(tmp_path).close()


async def test_s2_a_note_that_no_receipt_may_make_fails_alone(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    with pytest.raises(StatementError):
        await ledger.note(AdminNote(action="coverage", by="local", details={"closed": True}))
    names = sorted(f"row.number{number}" for number in range(900))
    large = coverage_details(rows={"closed": names}, required=names[:1])
    results = await asyncio.gather(
        ledger.note(AdminNote(action="coverage", by="local", details=large)),
        ledger.record(RefundJudge("a")),
        return_exceptions=True,
    )
    assert isinstance(results[0], BackendError) and "larger than 8192 bytes" in str(results[0])
    assert isinstance(results[1], Recorded) and ledger.size == 1
    ledger.close()


async def test_s1_one_group_judges_serially(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    judges = [RefundJudge("same") for _ in range(10)]
    recorded = await _recorded(ledger, *judges)
    assert [item.entry.outcome for item in recorded].count(Outcome.PERMIT) == 1
    assert [judge.verdict for judge in judges] == [Verdict.FRESH, *[Verdict.IN_FLIGHT] * 9]
    assert {item.entry.prior for item in recorded[1:]} == {recorded[0].entry.receipt_id}
    ledger.close()
    assert _audit(tmp_path).problems == ()


async def test_the_clock_of_the_ledger_only_goes_up(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path, clock_us=iter([T0, T0 - 5_000_000, T0, T0 + 7]).__next__)
    recorded = [await ledger.record(RefundJudge(key)) for key in "abcd"]
    assert [item.entry.iat_us for item in recorded] == [T0, T0 + 1, T0 + 2, T0 + 7]
    ledger.close()
    again = open_ledger(tmp_path, clock_us=lambda: 5)
    with SqliteReader(tmp_path) as reader:
        assert [item.iat_us for item in reader.export(4)] == [T0 + 8, T0 + 9, T0 + 10, T0 + 11]  # unknown x4
    again.close()


@pytest.mark.parametrize(
    ("status", "delivered", "same", "other"),
    [
        (EXECUTED, True, Verdict.ALREADY_EXECUTED, Verdict.REUSED),
        (EXECUTED, False, Verdict.ALREADY_EXECUTED, Verdict.REUSED),
        (NOT_SENT, True, Verdict.SUPERSEDE, Verdict.SUPERSEDE),
        (OutcomeStatus.FAILED, True, Verdict.SUPERSEDE, Verdict.REUSED),
        (UNKNOWN, True, Verdict.OUTCOME_UNKNOWN, Verdict.REUSED),
    ],
)
async def test_the_outcome_decides_what_a_retry_gets(
    tmp_path: Path, status: OutcomeStatus, delivered: bool, same: Verdict, other: Verdict
) -> None:
    ledger = open_ledger(tmp_path)
    first, second = await _recorded(ledger, RefundJudge("a"), RefundJudge("b"))
    for item in (first, second):
        ledger.record_outcome(item.entry.receipt_id, status, 402, delivered=delivered)
    retry, change = RefundJudge("a"), RefundJudge("b", digest=OTHER_DIGEST)
    third, fourth = await _recorded(ledger, retry, change)
    assert (retry.verdict, change.verdict) == (same, other)
    assert (third.entry.prior, third.entry.prior_status) == (first.entry.receipt_id, 402)
    assert fourth.entry.prior == second.entry.receipt_id
    ledger.close()
    assert _audit(tmp_path).problems == ()


async def test_a_provider_replay_goes_out_again_and_a_replay_without_effect_changes_nothing(
    tmp_path: Path,
) -> None:
    ledger = open_ledger(tmp_path)
    (first,) = await _recorded(ledger, RefundJudge("a", provider=True, conflict="charge"))
    ledger.record_outcome(first.entry.receipt_id, UNKNOWN, 0, delivered=False)
    stranger = RefundJudge("b", digest=OTHER_DIGEST, conflict="charge")
    replay = RefundJudge("a", provider=True, conflict="charge")
    _, second = await _recorded(ledger, stranger, replay)
    assert (stranger.verdict, replay.verdict) == (Verdict.CONFLICT, Verdict.REPLAY)
    assert verify(second.entry.jws, KEYS).statement["replay_of"] == first.entry.receipt_id
    ledger.record_outcome(second.entry.receipt_id, NOT_SENT, 0, delivered=False)
    stranger, replay = RefundJudge("c", conflict="charge"), RefundJudge("a", provider=True, conflict="charge")
    await _recorded(ledger, stranger, replay)
    assert (stranger.verdict, replay.verdict) == (Verdict.CONFLICT, Verdict.REPLAY)
    ledger.close()
    assert _audit(tmp_path).problems == ()


@pytest.mark.parametrize("found", [NOT_SENT, OutcomeStatus.FAILED])
@pytest.mark.parametrize("first_ended", [EXECUTED, UNKNOWN])
async def test_a_replay_that_is_found_to_have_had_no_effect_frees_nothing(
    tmp_path: Path, first_ended: OutcomeStatus, found: OutcomeStatus
) -> None:
    """A replay was in doubt too, and only of the replay it is known that nothing happened."""
    ledger = open_ledger(tmp_path)
    first = await ledger.record(RefundJudge("a", provider=True, conflict="charge"))
    ledger.record_outcome(first.entry.receipt_id, first_ended, 200, delivered=True)
    second = await ledger.record(RefundJudge("a", provider=True, conflict="charge"))
    ledger.record_outcome(second.entry.receipt_id, UNKNOWN, 500, delivered=True)
    await ledger.reconcile(_found(second, found))
    other = RefundJudge("a", digest=OTHER_DIGEST)
    again, stranger = RefundJudge("a", provider=True), RefundJudge("b", conflict="charge")
    _, third, _ = await _recorded(ledger, other, again, stranger)
    open_still = first_ended is UNKNOWN
    assert (other.verdict, again.verdict) == (Verdict.REUSED, Verdict.REPLAY)
    assert third.entry.prior == first.entry.receipt_id
    assert stranger.verdict is (Verdict.CONFLICT if open_still else Verdict.FRESH)
    ledger.close()
    assert _audit(tmp_path).problems == ()


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
@pytest.mark.parametrize("acted", [None, 0, 1, 2])
async def test_a_claim_is_free_when_the_last_of_its_dispatches_in_doubt_was_found_without_effect(
    tmp_path: Path, order: tuple[int, int, int], acted: int | None
) -> None:
    """A dispatch and two replays of it, all in doubt; one of them acted, or none did."""
    ledger = open_ledger(tmp_path)
    made = []
    for status in (500, 502, 504):
        made.append(await ledger.record(RefundJudge("a", provider=True, conflict="charge")))
        ledger.record_outcome(made[-1].entry.receipt_id, UNKNOWN, status, delivered=True)
    for place, index in enumerate(order, 1):
        await ledger.reconcile(_found(made[index], EXECUTED if index == acted else NOT_SENT))
        ledger.close()
        assert _audit(tmp_path).problems == ()
        ledger = open_ledger(tmp_path)
        stranger, other = RefundJudge(f"b{place}", conflict="charge"), RefundJudge("a", digest=OTHER_DIGEST)
        for judge in (stranger, other):
            entry = (await ledger.record(judge)).entry
            if entry.outcome is Outcome.PERMIT:
                ledger.record_outcome(entry.receipt_id, NOT_SENT, 0, delivered=False)
        freed = place == 3 and acted is None
        assert other.verdict is (Verdict.SUPERSEDE if freed else Verdict.REUSED)
        if place == 3:
            assert stranger.verdict is Verdict.FRESH
        elif acted not in order[:place]:
            assert stranger.verdict is Verdict.CONFLICT
    ledger.close()
    assert _audit(tmp_path).problems == ()


async def test_the_reader_knows_since_when_a_permit_has_no_effect(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    items = await _recorded(ledger, *(RefundJudge(name) for name in "abcd"))
    names = [each.entry.receipt_id for each in items]
    for name, status in zip(names, (EXECUTED, NOT_SENT, UNKNOWN), strict=False):
        ledger.record_outcome(name, status, 0, delivered=False)
    ledger.close()
    with SqliteReader(tmp_path) as reader:
        outcomes = {verify(each.jws, KEYS).statement.get("of"): each.iat_us for each in reader.export()}
        assert reader.without_effect() == {names[1]: outcomes[names[1]]}


async def test_implicit_and_conflict_claims_are_forgotten_when_nothing_is_open(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    (first,) = await _recorded(ledger, RefundJudge(source="implicit", conflict="charge"))
    duplicate, rival = RefundJudge(source="implicit"), RefundJudge("b", conflict="charge")
    await _recorded(ledger, duplicate, rival)
    assert (duplicate.verdict, rival.verdict) == (Verdict.IN_FLIGHT, Verdict.CONFLICT)
    ledger.record_outcome(first.entry.receipt_id, EXECUTED, 200, delivered=True)
    again, rival = RefundJudge(source="implicit"), RefundJudge("b", conflict="charge")
    (second, third) = await _recorded(ledger, again, rival)
    assert (again.verdict, rival.verdict) == (Verdict.FRESH, Verdict.FRESH)
    for item in (second, third):
        ledger.record_outcome(item.entry.receipt_id, EXECUTED, 200, delivered=True)
    ledger.close()
    with SqliteReader(tmp_path) as reader:
        assert [row.source for row in reader.claims()] == ["native"]
    assert _audit(tmp_path).problems == ()


async def test_a_permit_has_one_outcome_and_unknown_one_reconciliation(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    (first, second) = await _recorded(ledger, RefundJudge("a"), RefundJudge("b"))
    for status in (EXECUTED, EXECUTED, UNKNOWN, OutcomeStatus.RECONCILED):
        ledger.record_outcome(first.entry.receipt_id, status, 200, delivered=True)
    for status in (UNKNOWN, UNKNOWN, EXECUTED, OutcomeStatus.RECONCILED, OutcomeStatus.RECONCILED):
        ledger.record_outcome(second.entry.receipt_id, status, 99999, delivered=True)
    ledger.record_outcome("rcpt_nobody", EXECUTED, 200, delivered=True)
    ledger.close()
    with SqliteReader(tmp_path) as reader:
        said = [verify(item.jws, KEYS).statement for item in reader.export(2)]
    assert [(item["of"], item["status"], item.get("http_status")) for item in said] == [
        (first.entry.receipt_id, "executed", 200),
        (second.entry.receipt_id, "unknown", None),
        (second.entry.receipt_id, "reconciled", None),
    ]
    assert _audit(tmp_path).problems == ()


async def test_an_unknown_permit_of_an_earlier_run_can_be_reconciled(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    (first,) = await _recorded(ledger, RefundJudge("a"))
    ledger.close()
    again = open_ledger(tmp_path)
    again.record_outcome(first.entry.receipt_id, OutcomeStatus.RECONCILED, 200, delivered=True)
    retry = RefundJudge("a")
    await again.record(retry)
    assert retry.verdict is Verdict.ALREADY_EXECUTED
    again.close()
    assert _audit(tmp_path).problems == ()


def _found(recorded: Recorded, found: OutcomeStatus) -> Finding:
    return Finding(of=recorded.entry.receipt_id, found=found, by="local", note="")


# --- what fails ---


def _raise(error: Exception) -> Callable[[Entry], Entry]:
    def does(_: Entry) -> Entry:
        raise error

    return does


def _bound(**changes: Any) -> Callable[[Entry], Entry]:
    good: dict[str, Any] = {
        "key": "k",
        "digest": DIGEST,
        "expires_us": T0,
        "provider": False,
        "source": "native",
    }
    return lambda entry: replace(entry, bindings=(Binding(**(good | changes)),))


_BROKEN = [
    pytest.param(_Broken(_raise(InputError(Reason.TOO_LARGE))), Reason.TOO_LARGE, id="refuses"),
    pytest.param(_Broken(_raise(BackendError(Reason.GATE_TIMEOUT))), Reason.GATE_TIMEOUT, id="gives up"),
    pytest.param(_Broken(_raise(ZeroDivisionError())), Reason.INTERNAL_ERROR, id="has a bug"),
    pytest.param(_Broken(_raise(RecursionError())), Reason.INTERNAL_ERROR, id="runs away"),
    pytest.param(_Broken(lambda _: None), Reason.INTERNAL_ERROR, id="returns nothing"),  # type: ignore[arg-type,return-value]
    pytest.param(_Broken(lambda e: e, keys=None), Reason.INTERNAL_ERROR, id="has no keys"),
    pytest.param(_Broken(lambda e: e, keys=(3,)), Reason.INTERNAL_ERROR, id="has a key that is a number"),
    pytest.param(
        _Broken(lambda e: e, keys=("\ud800",)), Reason.INTERNAL_ERROR, id="has a key that is no text"
    ),
    pytest.param(_Broken(lambda e: replace(e, receipt_id="x")), Reason.INTERNAL_ERROR, id="takes another id"),
    pytest.param(_Broken(lambda e: replace(e, iat_us=1)), Reason.INTERNAL_ERROR, id="takes another time"),
    pytest.param(_Broken(lambda e: replace(e, jws=b"x" * 9000)), Reason.INTERNAL_ERROR, id="is too long"),
    pytest.param(_Broken(lambda e: replace(e, jws="text")), Reason.INTERNAL_ERROR, id="is not bytes"),  # type: ignore[arg-type]
    pytest.param(_Broken(lambda e: replace(e, inputs="text")), Reason.INTERNAL_ERROR, id="has odd inputs"),  # type: ignore[arg-type]
    pytest.param(_Broken(lambda e: replace(e, agent=None)), Reason.INTERNAL_ERROR, id="has no agent"),  # type: ignore[arg-type]
    pytest.param(_Broken(lambda e: replace(e, surface="\ud800")), Reason.INTERNAL_ERROR, id="odd surface"),
    pytest.param(_Broken(_bound(expires_us=2**63)), Reason.INTERNAL_ERROR, id="claims for ever"),
    pytest.param(_Broken(_bound(digest="")), Reason.INTERNAL_ERROR, id="claims for no digest"),
    pytest.param(_Broken(_bound(key=7)), Reason.INTERNAL_ERROR, id="claims a number"),
    pytest.param(_Broken(_bound(source="divine")), Reason.INTERNAL_ERROR, id="claims from nowhere"),
    pytest.param(
        _Broken(lambda e: replace(_bound()(e), outcome=Outcome.DENY)),
        Reason.INTERNAL_ERROR,
        id="binds without a permit",
    ),
]


@pytest.mark.parametrize(("judge", "reason"), _BROKEN)
async def test_s2_a_judge_that_fails_fails_alone(tmp_path: Path, judge: _Broken, reason: Reason) -> None:
    ledger = open_ledger(tmp_path)
    before, failure, after = await asyncio.gather(
        ledger.record(RefundJudge("a")),
        ledger.record(judge),
        ledger.record(RefundJudge("b")),
        return_exceptions=True,
    )
    assert isinstance(failure, InputError | BackendError)
    assert failure.reason is reason
    assert isinstance(before, Recorded) and isinstance(after, Recorded)
    assert (before.index, after.index, ledger.healthy) == (0, 1, True)
    ledger.close()
    assert _audit(tmp_path).problems == ()


async def test_l2_a_judge_that_permits_over_a_held_claim_gets_no_permit(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    (first,) = await _recorded(ledger, RefundJudge("a"))
    held = RefundJudge("a").keys[0]
    for prior in ("", first.entry.receipt_id):
        with pytest.raises(BackendError, match="held"):
            await ledger.record(_Broken(lambda e, prior=prior: replace(_bound(key=held)(e), prior=prior)))  # type: ignore[misc]
    ledger.close()


class _Db:
    """A connection that fails at one statement."""

    def __init__(self, db: sqlite3.Connection, at: str, error: Exception) -> None:
        self._db, self._at, self._error = db, at, error

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        if sql.startswith(self._at):
            raise self._error
        return self._db.execute(sql, *values)

    def executemany(self, sql: str, *values: Any) -> sqlite3.Cursor:
        if sql.startswith(self._at):
            raise self._error
        return self._db.executemany(sql, *values)

    def close(self) -> None:
        self._db.close()


_AT = ["BEGIN", "SELECT", "INSERT INTO receipts", "UPDATE head", "COMMIT"]
_ERRORS = [sqlite3.OperationalError("disk I/O error"), OSError(5, "EIO"), MemoryError()]
# A read fails as sqlite3.Error; anything else during judging is the judge's own.
_FAULTS = [(at, e) for at in _AT for e in _ERRORS if at != "SELECT" or isinstance(e, sqlite3.Error)]


@pytest.mark.parametrize(("at", "error"), _FAULTS, ids=lambda item: str(item) or "MemoryError")
async def test_s3_after_an_error_of_the_store_everything_is_refused(
    tmp_path: Path, at: str, error: Exception
) -> None:
    ledger = open_ledger(tmp_path)
    await ledger.record(RefundJudge("before"))
    ledger._store._db = _Db(ledger._store._db, at, error)  # type: ignore[attr-defined]
    failures = await asyncio.gather(
        *(ledger.record(RefundJudge(f"key {number}")) for number in range(4)), return_exceptions=True
    )
    late = await asyncio.gather(ledger.record(RefundJudge("late")), return_exceptions=True)
    for failure in [*failures, *late]:
        assert isinstance(failure, BackendError) and failure.reason is Reason.STORE_UNAVAILABLE
    assert not ledger.healthy
    stop, published = ledger._sequencer.stop, []

    def stopping(*, publish: bool) -> None:
        published.append(publish)
        stop(publish=publish)

    ledger._sequencer.stop = stopping  # type: ignore[method-assign]
    ledger.close()
    assert published == [False]  # what is on disk is not known: the next start looks, and signs
    open_ledger(tmp_path).close()  # heals by a restart, which audits the tail
    assert _audit(tmp_path).problems == ()


async def test_s3_a_checkpoint_that_cannot_be_written_stops_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = open_ledger(tmp_path)

    def broken(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(sequencer, "replace_file", broken)
    await ledger.record(RefundJudge("a"))
    ledger._thread.join(10)
    with pytest.raises(BackendError, match="Read-only"):
        await ledger.record(RefundJudge("b"))
    ledger.close()


async def test_s3_an_outcome_that_cannot_be_signed_waits_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_ledger, "_DEFERRED_S", 0.01)
    ledger = open_ledger(tmp_path)
    one, two = await _recorded(ledger, RefundJudge("one"), RefundJudge("two"))
    store, tries, undone = ledger._store, [0], [2]
    commit = store.commit

    def unsigned(*_: object) -> None:
        tries[0] += 1
        raise BackendError(Reason.STORE_UNAVAILABLE, "the signer does not answer")

    def undoing(changes: Any) -> None:
        if undone[0]:
            undone[0] -= 1
            store.rollback()  # type: ignore[attr-defined]
            raise Conflict
        commit(changes)

    with monkeypatch.context() as patch:
        patch.setattr(Batch, "outcome", unsigned)
        patch.setattr(store, "commit", undoing)
        patch.setattr(store, "stranded", lambda: [two.entry.receipt_id])
        ledger.record_outcome(one.entry.receipt_id, OutcomeStatus.EXECUTED, 200, delivered=True)
        await _recorded(ledger, RefundJudge("three"))
        while tries[0] < 30:
            await asyncio.sleep(0.01)
        assert undone == [0] and len(ledger._deferred) <= 2
    while ledger._deferred:
        await asyncio.sleep(0.01)
    await _recorded(ledger, RefundJudge("four"))
    ledger.close()
    with SqliteReader(tmp_path) as reader:
        said = [reader.state_of(each.entry.receipt_id) for each in (one, two)]
    assert said == [State.EXECUTED, State.NOT_SENT]


async def test_s3_a_dead_writer_thread_refuses(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    ledger._queue.put(store_ledger._CLOSE)
    ledger._thread.join(10)
    assert not ledger.healthy
    with pytest.raises(BackendError) as raised:
        await ledger.record(RefundJudge("a"))
    assert raised.value.reason is Reason.STORE_UNAVAILABLE
    ledger.close()
    ledger.close()


async def test_a_nearly_full_disk_refuses_decisions_but_still_takes_outcomes(tmp_path: Path) -> None:
    free = [1 << 40]
    ledger = open_ledger(tmp_path, headroom_bytes=1 << 20, free=lambda _: free[0])
    (first,) = await _recorded(ledger, RefundJudge("a"))
    free[0] = 1000
    with pytest.raises(BackendError, match="nearly full"):
        await ledger.record(RefundJudge("b"))
    ledger.record_outcome(first.entry.receipt_id, EXECUTED, 200, delivered=True)
    with pytest.raises(BackendError, match="nearly full"):
        await ledger.record(RefundJudge("b"))
    assert (ledger.size, ledger.healthy) == (2, False)
    free[0] = 1 << 40
    assert ledger.healthy
    assert (await ledger.record(RefundJudge("b"))).index == 2
    ledger.close()
    with pytest.raises(ConfigError, match="MiB free"):
        open_ledger(tmp_path, headroom_bytes=1 << 20, free=lambda _: 0)


@pytest.mark.parametrize("name", ["ledger.db", "ledger.db-wal"])
async def test_s7_nothing_is_recorded_in_a_file_that_was_moved_away(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_store, "_FILES_S", 0.0)
    ledger = open_ledger(tmp_path)
    await ledger.record(RefundJudge("a"))
    (tmp_path / name).rename(tmp_path / "away")
    shutil.copyfile(tmp_path / "away", tmp_path / name)
    # The sequencer may be the one who notices first.
    with pytest.raises(BackendError, match=r"moved or replaced|log: |FileNotFoundError"):
        await ledger.record(RefundJudge("b"))
    assert not ledger.healthy
    (tmp_path / "away").replace(tmp_path / name)
    # The sequencer may be the one who notices first.
    with pytest.raises(BackendError, match=r"moved or replaced|log: |FileNotFoundError"):
        await ledger.record(RefundJudge("c"))
    ledger.close()
    open_ledger(tmp_path).close()
    assert _audit(tmp_path).problems == ()


# --- callers that go away ---


async def test_s6_a_permit_that_nobody_received_becomes_not_sent(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    entered, go = threading.Event(), threading.Event()

    class Slow(RefundJudge):
        def __call__(self, claims: Mapping[str, ClaimRow], **given: Any) -> Entry:
            entered.set()
            go.wait(10)
            return super().__call__(claims, **given)

    task = asyncio.create_task(ledger.record(Slow("a")))
    await asyncio.to_thread(entered.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go.set()
    await _settled(ledger)  # this future is resolved after the abandoned one
    await asyncio.sleep(0)
    retry = RefundJudge("a")
    await ledger.record(retry)
    assert retry.verdict is Verdict.SUPERSEDE
    ledger.close()
    assert _audit(tmp_path).problems == ()


async def test_s6_a_cancellation_in_the_same_turn_as_the_answer_is_not_sent_too(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    task = asyncio.create_task(ledger.record(RefundJudge("a")))
    await asyncio.sleep(0)
    settle = ledger._settle

    def settle_then_cancel(results: Any) -> None:
        settle(results)
        task.cancel()

    ledger._settle = settle_then_cancel  # type: ignore[method-assign]
    other = asyncio.create_task(ledger.record(RefundJudge("b")))
    with pytest.raises(asyncio.CancelledError):
        await task
    ledger._settle = settle  # type: ignore[method-assign]
    await other
    retry = RefundJudge("a")
    await ledger.record(retry)
    assert retry.verdict is Verdict.SUPERSEDE
    ledger.close()


# --- opening ---


def test_s4_a_second_process_is_refused(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    with pytest.raises(ConfigError, match="another process"):
        open_ledger(tmp_path)
    ledger.close()
    open_ledger(tmp_path).close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"node": "edge-2"}, "belongs to node"),
        ({"origin": "holdgate.local/edge-2"}, "of another log"),
        ({"log_key": OTHER_KEY}, "not signed by the log key"),
    ],
)
async def test_s4_another_node_or_log_key_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    ledger = open_ledger(tmp_path)
    await ledger.record(RefundJudge("a"))
    ledger.close()
    with pytest.raises(ConfigError, match=message):
        open_ledger(tmp_path, **changes)
    open_ledger(tmp_path).close()


async def _filled(state_dir: Path, count: int = 3) -> None:
    ledger = open_ledger(state_dir)
    for number in range(count):
        recorded = await ledger.record(RefundJudge(f"{state_dir.name} {number} {ledger.size}"))
        ledger.record_outcome(recorded.entry.receipt_id, EXECUTED, 200, delivered=True)
    ledger.close()


async def test_s4_a_ledger_that_was_restored_from_a_backup_is_refused(tmp_path: Path) -> None:
    state, backup = tmp_path / "state", tmp_path / "backup.db"
    state.mkdir()
    await _filled(state)
    shutil.copy(state / "ledger.db", backup)
    await _filled(state)
    shutil.copy(backup, state / "ledger.db")
    with pytest.raises(ConfigError, match="restored from a backup"):
        open_ledger(state)
    (state / "ledger.db").unlink()
    with pytest.raises(ConfigError, match="restored from a backup"):
        open_ledger(state)


_VANDALISM = {
    "an edited receipt after the checkpoint": "UPDATE receipts SET jws = x'00' WHERE idx = 8",
    "a removed end": "DELETE FROM receipts WHERE idx = 9",
    "a receipt too many": "INSERT INTO receipts SELECT idx + 1, id || 'x', type, outcome, reason, agent,"
    " surface, iat_us, jws FROM receipts WHERE idx = 9",
    "an older end": "UPDATE head SET size = 1, hashes = zeroblob(32)",
    "an end that does not fit": "UPDATE head SET hashes = zeroblob(33)",
    "no end": "DELETE FROM head",
    "a newer format": "PRAGMA user_version = 9",
}


@pytest.mark.parametrize("sql", _VANDALISM.values(), ids=_VANDALISM)
async def test_s4_a_ledger_that_was_edited_is_refused(tmp_path: Path, sql: str) -> None:
    await _filled(tmp_path)
    note = (tmp_path / "log" / "checkpoint").read_bytes()
    await _filled(tmp_path, 2)
    (tmp_path / "log" / "checkpoint").write_bytes(note)  # as if the last checkpoint had not been written yet
    vandal = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
    assert vandal.execute("SELECT max(idx) FROM receipts").fetchone() == (9,)
    vandal.execute(sql)
    vandal.close()
    with pytest.raises(ConfigError):
        open_ledger(tmp_path)


_LOST = {
    "all claims": "DELETE FROM claims",
    "the claims that are in doubt": "DELETE FROM claims WHERE state = 'unknown'",
    "conflict keys": "DELETE FROM claims WHERE source = 'conflict'",
    "a claim from elsewhere": "INSERT INTO claims SELECT 'x', state, digest, receipt_id, http_status,"
    " expires_us, provider, source, b_state, b_receipt, b_status FROM claims LIMIT 1",
    "all permits": "DELETE FROM permits",
    "all counters": "DELETE FROM counters",
}


@pytest.mark.parametrize("sql", _LOST.values(), ids=_LOST)
async def test_s10_a_ledger_that_lost_rows_does_not_open(tmp_path: Path, sql: str) -> None:
    ledger = open_ledger(tmp_path)
    charge = Charge(meter="aa" * 32, at_us=T0 - 1, until_us=T0 * 2, amount=10, count=1)
    spent: dict[str, Any] = {"meters": (charge.meter,), "charge": lambda *_: (charge,)}
    judges = [RefundJudge(key, conflict=f"charge-{key}", **spent) for key in "abc"]
    items = await _recorded(ledger, *judges)
    ledger.record_outcome(items[0].entry.receipt_id, EXECUTED, 200, delivered=True)
    ledger.record_outcome(items[1].entry.receipt_id, UNKNOWN, 0, delivered=False)
    ledger.close()
    open_ledger(tmp_path).close()
    db = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
    assert db.execute(sql).rowcount
    db.close()
    with pytest.raises(ConfigError, match=r"rows and .* were written"):
        open_ledger(tmp_path)


_PLANTED = {
    "a trigger that takes claims back": "CREATE TRIGGER t AFTER UPDATE ON head BEGIN DELETE FROM claims;"
    " UPDATE head SET claims = 0; END",
    "a view that never ends": "ALTER TABLE claims RENAME TO kept; CREATE VIEW claims AS WITH RECURSIVE"
    " r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT kept.* FROM kept, r",
    "a virtual table": "DROP TABLE erasing; CREATE VIRTUAL TABLE erasing USING fts5(idx)",
}


@pytest.mark.parametrize("sql", _PLANTED.values(), ids=_PLANTED)
async def test_s11_a_ledger_in_which_something_was_planted_is_neither_opened_nor_read(
    tmp_path: Path, sql: str
) -> None:
    await _filled(tmp_path)
    db = sqlite3.connect(tmp_path / "ledger.db")
    db.executescript(sql)
    db.close()
    with pytest.raises(ConfigError, match="was edited: there is a"):
        open_ledger(tmp_path)
    with pytest.raises(ConfigError, match="was edited: there is a"):
        SqliteReader(tmp_path)


async def test_s11_a_ledger_with_other_tables_is_not_opened(tmp_path: Path) -> None:
    await _filled(tmp_path)
    db = sqlite3.connect(tmp_path / "ledger.db")
    columns = "key TEXT, idx, digest, policy, receipt_id, rules, expires_us"
    db.executescript(f"DROP TABLE denials; CREATE TABLE denials ({columns})")
    db.close()
    with pytest.raises(ConfigError, match="denials is not declared as it should be"):
        open_ledger(tmp_path)
    with SqliteReader(tmp_path) as reader:
        assert "ledger.db: denials is not declared as it should be" in reader.integrity_problems()


async def test_statistics_and_an_index_of_an_operator_do_not_matter(tmp_path: Path) -> None:
    await _filled(tmp_path)
    db = sqlite3.connect(tmp_path / "ledger.db")
    db.executescript("CREATE INDEX mine ON receipts (agent); ANALYZE")
    db.close()
    open_ledger(tmp_path).close()
    assert _audit(tmp_path).problems == ()


async def test_s4_a_missing_or_forged_checkpoint_is_refused(tmp_path: Path) -> None:
    await _filled(tmp_path)
    path = tmp_path / "log" / "checkpoint"
    note = path.read_bytes()
    path.unlink()
    with pytest.raises(ConfigError, match="checkpoint is missing"):
        open_ledger(tmp_path)
    path.write_bytes(note.replace(b"\n6\n", b"\n5\n"))
    with pytest.raises(ConfigError, match="not signed"):
        open_ledger(tmp_path)
    path.write_bytes(note)
    open_ledger(tmp_path).close()


async def test_a_checkpoint_without_tiles_is_checked_from_the_first_leaf(tmp_path: Path) -> None:
    await _filled(tmp_path)
    shutil.rmtree(tmp_path / "log" / "tile")
    open_ledger(tmp_path).close()
    assert _audit(tmp_path).problems == ()
    shutil.rmtree(tmp_path / "log" / "tile")
    db = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
    db.execute("UPDATE receipts SET jws = x'00' WHERE idx = 0")
    db.close()
    with pytest.raises(ConfigError, match="differs from what its checkpoint signed"):
        open_ledger(tmp_path)


@pytest.mark.parametrize("content", [b"not a database, but long enough to be read as one" * 40])
def test_s4_a_file_that_is_no_ledger_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ledger.db").write_bytes(content)
    with pytest.raises(ConfigError, match="cannot open the ledger"):
        open_ledger(tmp_path)
    with pytest.raises(ConfigError):
        SqliteReader(tmp_path)


def test_s4_a_missing_state_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="state directory"):
        open_ledger(tmp_path / "nowhere")
    with pytest.raises(ConfigError):
        SqliteReader(tmp_path / "nowhere")


# --- checkpoints ---


async def test_a_checkpoint_follows_a_commit_without_another_request(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    await ledger.record(RefundJudge("a"))

    def size() -> int:
        with SqliteReader(tmp_path) as reader:
            return verify_checkpoint(reader.checkpoint(), ORIGIN, LOG_KEY.public).size

    async with asyncio.timeout(60):
        while size() != 1:
            await asyncio.sleep(0.02)
    ledger.close()


# --- reading ---


async def test_the_reader_lists_filters_and_pages_while_the_ledger_runs(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    for key in ("a", "a", "b", "c", "c"):
        await ledger.record(RefundJudge(key))
    with SqliteReader(tmp_path) as reader:
        assert (reader.size, reader.origin) == (5, ORIGIN)
        page = reader.list(limit=2)
        assert [item.index for item in page.receipts] == [4, 3]
        rest = reader.list(limit=10, cursor=page.next)
        assert ([item.index for item in rest.receipts], rest.next) == ([2, 1, 0], None)
        assert [item.index for item in reader.list(outcome="PERMIT").receipts] == [3, 2, 0]
        assert reader.list(agent="nobody").receipts == ()
        assert len(reader.list(agent="refund-bot", surface="payments.refund").receipts) == 5
        third = reader.list().receipts[2]
        assert [item.index for item in reader.list(since_us=third.iat_us).receipts] == [4, 3, 2]
        assert reader.index_since(third.iat_us + 10**12) == 5
        assert [item.index for item in reader.export(1, 2)] == [1, 2]
        assert reader.input(third.id) == b'{"action":"refund"}'
        assert (reader.state_of(third.id), reader.state_of("rcpt_x")) == (State.DISPATCHING, None)
        assert (reader.get("rcpt_x"), reader.input("rcpt_x")) == (None, None)
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            reader._db.execute("DELETE FROM receipts")
    ledger.close()
    with SqliteReader(tmp_path) as reader:
        assert len(tuple(reader.export())) == 5


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE claims SET state = 'lost'",
        "UPDATE permits SET state = 'lost'",
        "UPDATE claims SET state = 'dispatching', b_state = 'lost'",
        "DROP TABLE inputs",
        "UPDATE permits SET charges = 'x'",
        "DELETE FROM head",
    ],
)
async def test_an_audit_of_a_damaged_ledger_says_so(tmp_path: Path, sql: str) -> None:
    await _filled(tmp_path)
    db = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
    db.execute(sql)
    db.close()
    with pytest.raises(ConfigError, match="was edited"):
        _audit(tmp_path)


# --- kill -9 ---


@pytest.mark.slow
def test_s5_kill_9_at_any_point_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    dispatched, state = tmp_path / "dispatched", tmp_path / "state"
    state.mkdir()
    here = Path(__file__).resolve().parent
    chance = random.Random(7)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), *sys.path])}
    for run in range(10):
        child = subprocess.Popen(
            [sys.executable, str(here / "killed_writer.py"), str(state), str(dispatched), str(run)],
            stdout=subprocess.PIPE,
            env=environment,
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        # Anywhere: judging, inserting, in fsync, between two commits, while a checkpoint is written.
        threading.Event().wait(chance.uniform(0.0, 0.25 if run else 0.7))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    assert _audit(state).problems == ()  # readable and clean as the kill left it, too
    ledger = open_ledger(state, clock_us=ticking(T0 * 2))
    with SqliteReader(state) as reader:
        permits = {item.id for item in reader.export() if item.outcome == "PERMIT"}
        ended = {
            said["of"]: said["status"]
            for item in reader.export()
            if (said := verify(item.jws, KEYS).statement)["type"] == "outcome"
        }
        assert reader.permits(State.DISPATCHING) == ()
    ledger.close()
    lines = [line.split("\t") for line in dispatched.read_text().splitlines()]
    assert len(lines) > 50
    assert len({key for key, _ in lines}) == len(lines), "a request was dispatched twice"
    assert {receipt_id for _, receipt_id in lines} <= permits, "dispatched without a durable permit"
    assert set(ended) == permits
    report = _audit(state)
    assert (report.problems, report.permits) == ((), len(permits))


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Any:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ledger-")]


def test_the_keys_of_this_file_are_two_purposes() -> None:
    assert RECEIPT_KEY.kid != LOG_KEY.kid


# --- S9 ---


async def test_s9_another_key_signs_from_the_leaf_after_the_one_that_names_it(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    old = ledger.signer.now
    first, changed, *rest = await asyncio.gather(
        ledger.record(RefundJudge("a", signer=ledger.signer)),
        ledger.change_key(Rotation(purpose=Purpose.RECEIPT, key_id="", by="local")),
        *(ledger.record(RefundJudge(f"b{n}", signer=ledger.signer)) for n in range(3)),
    )
    new = ledger.signer.now
    ledger.close()
    assert (first.index, changed.index, [each.index for each in rest]) == (0, 1, [2, 3, 4])
    with SqliteReader(tmp_path) as reader:
        rows = list(reader.export())
    for row in rows:
        verify(row.jws, key_set([(old if row.index < 2 else new).public]))


# --- fences ---


async def test_s8_after_a_fence_no_permit_under_another_bundle_is_recorded(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    await ledger.record(RefundJudge("a"))
    ledger.fence("sha256:" + "e" * 64)
    with pytest.raises(Superseded):
        await ledger.record(RefundJudge("b"))
    silent = await ledger.record(RefundJudge("a"))  # a refusal is none the worse for its bundle
    assert silent.entry.outcome is Outcome.SILENCE
    ledger.fence("sha256:" + "c" * 64)
    assert (await ledger.record(RefundJudge("b"))).entry.outcome is Outcome.PERMIT
    ledger.close()
    assert _audit(tmp_path).problems == ()


async def test_s8_the_receipt_of_an_activation_is_a_fence_in_its_own_place(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    details = {"digest": "sha256:" + "e" * 64, "name": "p", "epoch": 1, "revision": 1, "trust": 1}
    note = AdminNote(action="policy_activated", by="node", details=details)
    before, noted, after = await asyncio.gather(
        ledger.record(RefundJudge("a")),
        ledger.note(note),
        ledger.record(RefundJudge("b")),
        return_exceptions=True,
    )
    assert isinstance(before, Recorded) and isinstance(noted, Noted)
    assert isinstance(after, Superseded), "one group, one transaction, and still in order"
    ledger.close()


@pytest.mark.parametrize("other", [None, True, object()], ids=["nothing", "yes", "a stranger"])
async def test_what_is_no_result_of_the_writer_answers_nobody(tmp_path: Path, other: Any) -> None:
    """Whoever waits for it is refused at the hold deadline."""
    ledger = open_ledger(tmp_path)
    waiting: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    with pytest.raises(TypeError):
        ledger._settle([(SimpleNamespace(future=waiting), other)])  # type: ignore[list-item]
    assert not waiting.done()
    ledger.close()
