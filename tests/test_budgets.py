"""Budgets in a store: reserved with the PERMIT, settled by the outcome, exact under concurrency, audited.

The model of what must stand is counters.Book; these tests run the same events through a real store.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evidence import KEYS, LOG_KEYS, ORIGIN, T0, RefundJudge, open_ledger
from holdgate.adapters.sqlite import SqliteLedger, SqliteReader
from holdgate.audit import AuditReport, audit
from holdgate.counters import Book, bucket
from holdgate.errors import BackendError, Outcome, Reason
from holdgate.ledger import Budgets, Charge, Finding, OutcomeStatus, ReconcileError, State, Total
from holdgate.receipt import verify
from holdgate.statement import StatementError

METER, OTHER = "a" * 64, "b" * 64
LIMIT = 100
WINDOW_S = 3600
ENDS = [OutcomeStatus.EXECUTED, OutcomeStatus.NOT_SENT, OutcomeStatus.FAILED, OutcomeStatus.UNKNOWN]


def spend(
    key: str = "", amount: int = 10, *, meter: str = METER, limit: int = LIMIT, **changes: Any
) -> RefundJudge:
    """A judge that permits up to the limit, as a condition would."""

    def charge(budgets: Budgets, now_us: int, is_replay: bool) -> tuple[Charge, ...] | None:
        if is_replay:
            return ()
        total = budgets.totals[meter]
        if total.sum + amount > limit:
            return None
        at_us, until_us = bucket(WINDOW_S, now_us)
        return (Charge(meter=meter, at_us=at_us, until_us=until_us, amount=amount, count=1),)

    return RefundJudge(key, meters=(meter,), charge=charge, **changes)


async def total(ledger: SqliteLedger, meter: str = METER) -> Total:
    """What a newcomer would be told."""
    found: list[Total] = []

    def look(budgets: Budgets, now_us: int, is_replay: bool) -> None:
        found.append(budgets.totals[meter])

    await ledger.record(RefundJudge(meters=(meter,), charge=look))
    return found[0]


def report(state_dir: Path) -> AuditReport:
    with SqliteReader(state_dir) as reader:
        return audit(reader.audit_input(), origin=ORIGIN, receipt_keys=KEYS, log_keys=LOG_KEYS)


async def test_in_flight_reservations_count_and_the_limit_is_exact_under_concurrency(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    many = await asyncio.gather(*(ledger.record(spend(f"k{n}", 7)) for n in range(64)))
    assert sum(each.entry.outcome is Outcome.PERMIT for each in many) == LIMIT // 7
    assert await total(ledger) == Total(sum=98, count=14)
    assert await total(ledger, OTHER) == Total(sum=0, count=0)
    ledger.close()
    assert report(tmp_path).problems == ()


@pytest.mark.parametrize(
    ("status", "left"),
    [
        pytest.param(OutcomeStatus.EXECUTED, 10, id="executed keeps"),
        pytest.param(OutcomeStatus.UNKNOWN, 10, id="unknown keeps"),
        pytest.param(OutcomeStatus.NOT_SENT, 0, id="not_sent releases"),
        pytest.param(OutcomeStatus.FAILED, 0, id="failed releases"),
    ],
)
async def test_the_outcome_settles_the_reservation_once(
    tmp_path: Path, status: OutcomeStatus, left: int
) -> None:
    ledger = open_ledger(tmp_path)
    permit = await ledger.record(spend("a"))
    for _ in range(2):
        ledger.record_outcome(permit.entry.receipt_id, status, 200, delivered=True)
    assert (await total(ledger)).sum == left
    ledger.close()
    assert report(tmp_path).problems == ()


async def test_a_replay_takes_the_reservation_over_and_gives_it_back(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    first = await ledger.record(spend("a", 60, provider=True))
    ledger.record_outcome(first.entry.receipt_id, OutcomeStatus.UNKNOWN, 0, delivered=False)
    second = await ledger.record(spend("a", 60, provider=True))
    assert (second.entry.outcome, second.entry.prior) == (Outcome.PERMIT, first.entry.receipt_id)
    assert await total(ledger) == Total(sum=60, count=1)
    ledger.record_outcome(second.entry.receipt_id, OutcomeStatus.NOT_SENT, 0, delivered=False)
    assert await total(ledger) == Total(sum=60, count=1)
    third = await ledger.record(spend("a", 60, provider=True))
    ledger.record_outcome(third.entry.receipt_id, OutcomeStatus.EXECUTED, 200, delivered=True)
    ledger.record_outcome(first.entry.receipt_id, OutcomeStatus.RECONCILED, 0, delivered=True)
    assert await total(ledger) == Total(sum=60, count=1)
    ledger.close()
    assert report(tmp_path).problems == ()


async def test_a_replay_that_was_found_to_have_had_no_effect_lends_nothing_away(tmp_path: Path) -> None:
    """What was charged for the first one, which was executed, went over to two replays without effect."""
    ledger = open_ledger(tmp_path)
    made = [await ledger.record(spend("a", 60, provider=True))]
    ledger.record_outcome(made[0].entry.receipt_id, OutcomeStatus.EXECUTED, 200, delivered=True)
    made.append(await ledger.record(spend("a", 60, provider=True)))
    ledger.record_outcome(made[1].entry.receipt_id, OutcomeStatus.UNKNOWN, 0, delivered=False)
    made.append(await ledger.record(spend("a", 60, provider=True)))
    found = Finding(of=made[1].entry.receipt_id, found=OutcomeStatus.NOT_SENT, by="local", note="")
    await ledger.reconcile(found)
    ledger.record_outcome(made[2].entry.receipt_id, OutcomeStatus.NOT_SENT, 0, delivered=False)
    assert await total(ledger) == Total(sum=60, count=1)
    ledger.close()
    assert report(tmp_path).problems == ()


@pytest.mark.parametrize(
    ("found", "left"),
    [(OutcomeStatus.EXECUTED, 60), (OutcomeStatus.FAILED, 0), (OutcomeStatus.NOT_SENT, 0)],
)
async def test_a_finding_settles_keys_and_budget(tmp_path: Path, found: OutcomeStatus, left: int) -> None:
    ledger = open_ledger(tmp_path)
    first = (await ledger.record(spend("a", 60, conflict="ch_1"))).entry
    ledger.record_outcome(first.receipt_id, OutcomeStatus.UNKNOWN, 0, delivered=False)
    held = RefundJudge("b", conflict="ch_1")
    assert (await ledger.record(held)).entry.reason is Reason.CONFLICT
    assert ledger.unknown == 1
    noted = await ledger.reconcile(Finding(of=first.receipt_id, found=found, by="local", note="asked them"))
    assert ledger.unknown == 0
    assert (await total(ledger)).sum == left
    assert (await ledger.record(RefundJudge("b", conflict="ch_1"))).entry.outcome is Outcome.PERMIT
    again = (await ledger.record(spend("a", 10))).entry
    assert again.outcome is (Outcome.PERMIT if left == 0 else Outcome.SILENCE)
    assert again.prior == first.receipt_id
    with pytest.raises(ReconcileError, match="not unknown"):
        await ledger.reconcile(Finding(of=first.receipt_id, found=found, by="local", note=""))
    with pytest.raises(ReconcileError, match="no PERMIT has the id"):
        await ledger.reconcile(Finding(of="rcpt_x", found=found, by="local", note=""))
    with pytest.raises(StatementError):
        await ledger.reconcile(Finding(of=first.receipt_id, found=found, by="local", note="x" * 257))
    ledger.close()
    assert report(tmp_path).problems == ()
    with SqliteReader(tmp_path) as reader:
        stored = reader.get(noted.receipt_id)
        assert stored is not None and stored.index == noted.index
        said = verify(stored.jws, KEYS).statement
        assert (said["of"], said["status"], said["found"], said["note"]) == (
            first.receipt_id,
            "reconciled",
            found.value,
            "asked them",
        )


async def test_a_crash_keeps_what_may_have_been_spent(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    await ledger.record(spend("a", 30))
    ledger.close()
    ledger = open_ledger(tmp_path)
    assert await total(ledger) == Total(sum=30, count=1)
    ledger.close()
    assert report(tmp_path).problems == ()


async def test_a_bucket_that_is_over_counts_no_more_and_is_forgotten(tmp_path: Path) -> None:
    now = [T0]
    ledger = open_ledger(tmp_path, clock_us=lambda: now[0])
    permit = await ledger.record(spend("a", 100))
    now[0] = permit.entry.charges[0].until_us - 2
    assert (await ledger.record(spend("b", 1))).entry.outcome is Outcome.SILENCE
    now[0] += 2
    assert (await ledger.record(spend("c", 1))).entry.outcome is Outcome.PERMIT
    ledger.record_outcome(permit.entry.receipt_id, OutcomeStatus.NOT_SENT, 0, delivered=False)
    assert await total(ledger) == Total(sum=1, count=1)
    ledger.close()
    with SqliteReader(tmp_path) as reader:
        assert [row.sum for row in reader.counters()] == [1]
    assert report(tmp_path).problems == ()


@pytest.mark.parametrize(
    "charge",
    [
        pytest.param({"amount": -1}, id="negative"),
        pytest.param({"count": 0}, id="nothing counted"),
        pytest.param({"until_us": 5}, id="over already"),
        pytest.param({"at_us": 2**62}, id="in the future"),
        pytest.param({"amount": 2**63 - 1}, id="beyond 64 bits"),
        pytest.param({"meter": ""}, id="no meter"),
    ],
)
async def test_a_judge_that_charges_nonsense_gets_no_permit(tmp_path: Path, charge: dict[str, Any]) -> None:
    ledger = open_ledger(tmp_path)
    await ledger.record(spend("first", 10))
    facts = {"meter": METER, "at_us": T0, "until_us": T0 + 10**9, "amount": 1, "count": 1} | charge
    bad = RefundJudge("a", meters=(METER,), charge=lambda *_: (Charge(**facts),))
    # An empty meter has no receipt id to stand under, so the statement is refused already.
    with pytest.raises(BackendError):
        await ledger.record(bad)
    assert (await total(ledger)).sum == 10
    ledger.close()


async def test_a_judge_that_charges_a_replay_again_gets_no_permit(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    first = await ledger.record(spend("a", provider=True))
    ledger.record_outcome(first.entry.receipt_id, OutcomeStatus.UNKNOWN, 0, delivered=False)
    again = RefundJudge("a", provider=True, meters=(METER,), charge=lambda *_: first.entry.charges)
    with pytest.raises(BackendError, match="charged twice"):
        await ledger.record(again)
    ledger.close()


# --- the store and the Book agree, whatever happens ---

_EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("spend"), st.integers(0, 3), st.integers(0, 60)),
        st.tuples(st.just("end"), st.integers(0, 8), st.sampled_from(ENDS)),
        st.tuples(st.just("wait"), st.sampled_from([1, 13, 1800, 3600]), st.just(0)),
        st.tuples(st.just("reopen"), st.just(0), st.just(0)),
    ),
    max_size=25,
)


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=_EVENTS)
def test_the_store_is_the_book(tmp_path_factory: pytest.TempPathFactory, events: list[Any]) -> None:
    asyncio.run(_same(tmp_path_factory.mktemp("book"), events))


async def _same(state_dir: Path, events: list[Any]) -> None:
    now, book = [T0], Book()
    clock = lambda: now[0]  # noqa: E731
    ledger = open_ledger(state_dir, clock_us=clock)
    states: dict[str, State] = {}
    for what, which, value in events:
        now[0] += 1000
        if what == "spend":
            permit = (await ledger.record(spend(f"k{which}", value, provider=True))).entry
            if permit.outcome is Outcome.PERMIT:
                now[0] = max(now[0], permit.iat_us)
                replays = permit.prior if not permit.charges else ""
                book.permit(permit.receipt_id, permit.charges, replays)
                states[permit.receipt_id] = State.DISPATCHING
        elif what == "wait":
            now[0] += which * 1_000_000
        elif what == "reopen":
            ledger.close()
            ledger = open_ledger(state_dir, clock_us=clock)
            for name in [name for name, state in states.items() if state is State.DISPATCHING]:
                states[name] = State.UNKNOWN
                book.settle(name, State.UNKNOWN)
        elif which < len(states):
            name = list(states)[which]
            if states[name] is State.DISPATCHING:
                states[name] = State(value.value)
                ledger.record_outcome(name, value, 200, delivered=True)
                book.settle(name, states[name])
        stands = book.budgets([METER], now[0] + 100).totals[METER]
        assert stands.sum <= LIMIT
        assert await total(ledger) == stands
    ledger.close()
    assert report(state_dir).problems == ()


# --- A9 ---


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("UPDATE counters SET sum = sum + 1", "not what the permits charged"),
        ("UPDATE counters SET count = 9", "not what the permits charged"),
        ("UPDATE counters SET until_us = until_us + 1", "not what the permits charged"),
        ("UPDATE counters SET id = 'c' || substr(id, 2)", "not what the permits charged"),
        ("DELETE FROM counters", "is missing"),
        ("UPDATE permits SET charges = '' WHERE charges != ''", "has lost its charges"),
        ("UPDATE permits SET charges = replace(charges, ':10:', ':11:')", "not what the permits charged"),
        ("UPDATE permits SET charges = replace(charges, 'aa:', 'ab:')", "other meters than"),
        ("UPDATE permits SET lender = 'rcpt_x' WHERE charges != ''", "repeats another one"),
        (
            "UPDATE permits SET charges = 'x:0:9:1:1' WHERE charges = ''",
            "holds charges that its receipts do not",
        ),
    ],
)
async def test_a9_an_edited_counter_or_charge_is_found(tmp_path: Path, sql: str, message: str) -> None:
    ledger = open_ledger(tmp_path)
    await ledger.record(spend("a"))
    released = await ledger.record(spend("b"))
    ledger.record_outcome(released.entry.receipt_id, OutcomeStatus.NOT_SENT, 0, delivered=False)
    await ledger.record(spend("c", meter=OTHER, amount=3))
    ledger.close()
    assert report(tmp_path).problems == ()
    with contextlib.closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as db:
        db.execute(sql)
    problems = report(tmp_path).problems
    assert any(message in problem for problem in problems), problems


async def test_a9_a_charge_and_its_counter_edited_alike_differ_from_the_recorded_input(
    tmp_path: Path,
) -> None:
    ledger = open_ledger(tmp_path)
    await ledger.record(spend("a"))
    ledger.close()
    assert report(tmp_path).problems == ()
    with contextlib.closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as db:
        db.execute("UPDATE permits SET charges = replace(charges, ':10:', ':1:')")
        db.execute("UPDATE counters SET sum = 1")
    assert any("differ from the recorded input" in problem for problem in report(tmp_path).problems)
