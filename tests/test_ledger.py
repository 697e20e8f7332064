"""ledger.py: the transition table, row by row, and what it promises over every store (SQLite here)."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
from collections.abc import Callable
from dataclasses import fields, replace
from itertools import permutations
from pathlib import Path

import pytest

from evidence import DAY_US, DIGEST, KEYS, OTHER_DIGEST, T0, RefundJudge, open_ledger
from holdgate.adapters.sqlite import SqliteLedger, SqliteReader
from holdgate.adapters.store import Permit
from holdgate.errors import BackendError, Outcome, Reason
from holdgate.ledger import (
    ARRIVALS,
    CONFLICT_SOURCE,
    DISPATCHABLE,
    FINDINGS,
    MAX_DOUBTS,
    OUTCOMES,
    Arrival,
    Binding,
    Charge,
    ClaimRow,
    Event,
    Left,
    OutcomeStatus,
    State,
    Verdict,
    appraise,
    attempt,
    bind,
    combine,
    is_free,
    may_bind,
    op_key,
    settle,
    settle_claim,
    settle_row,
)
from holdgate.receipt import verify

A, D, E, U, F, N, X = State
FIRST = Left(state=E, receipt_id="rcpt_first", http_status=200)
V = Verdict


def row(state: State, **changes: object) -> ClaimRow:
    facts: dict[str, object] = {
        "key": "k",
        "state": state,
        "digest": DIGEST,
        "receipt_id": "rcpt_first",
        "http_status": 200,
        "expires_us": T0 + DAY_US,
        "provider": False,
        "source": "native",
    }
    return ClaimRow(**(facts | changes))  # type: ignore[arg-type]


def test_an_outcome_carries_every_other_field_of_a_claim_and_a_permit() -> None:
    claim = {
        "key": "k", "state": D, "digest": DIGEST, "receipt_id": "rcpt_second", "http_status": 0,
        "expires_us": T0, "provider": True, "source": "native", "before": (FIRST,),
    }  # fmt: skip
    assert claim.keys() == {each.name for each in fields(ClaimRow)}  # a new one goes along, too
    held = ClaimRow(**claim)  # type: ignore[arg-type]
    after = settle_row(held, OutcomeStatus.EXECUTED, 201, delivered=True)
    assert after == replace(held, state=E, http_status=201, before=())
    after = settle_row(held, OutcomeStatus.NOT_SENT, 0, delivered=False)
    assert after == replace(held, state=E, receipt_id="rcpt_first", http_status=200, before=())
    charge = Charge(meter="m", at_us=T0, until_us=T0 + 1, amount=5, count=1)
    permit = {
        "index": 7, "receipt_id": "rcpt_first", "state": D, "http_status": 0, "claims": ("k",),
        "charges": (charge,), "lender": "rcpt_lender", "away": True, "waiting": ("node",),
    }  # fmt: skip
    assert permit.keys() == {each.name for each in fields(Permit)}
    open_ = Permit(**permit)  # type: ignore[arg-type]
    assert open_.ended(E, 200) == replace(open_, state=E, http_status=200, waiting=())


def binding(**changes: object) -> Binding:
    facts: dict[str, object] = {
        "key": "k",
        "digest": DIGEST,
        "expires_us": T0 + 2 * DAY_US,
        "provider": False,
        "source": "native",
    }
    return Binding(**(facts | changes))  # type: ignore[arg-type]


# --- the table ---


def test_l1_every_state_and_event_has_a_row() -> None:
    assert set(ARRIVALS) == set(itertools.product(State, Arrival))
    assert set(OUTCOMES) == set(itertools.product(State, Event))


# What becomes of a repeat, as a person would write it down: source, provider, digest, late, verdict by state.
_WORDS = {
    "-": V.FRESH,
    "flight": V.IN_FLIGHT,
    "done": V.ALREADY_EXECUTED,
    "replay": V.REPLAY,
    "again": V.SUPERSEDE,
    "reused": V.REUSED,
    "open": V.OUTCOME_UNKNOWN,
    "clash": V.CONFLICT,
}
_BY_HAND = [
    #                                       absent flight executed undelivered failed not_sent unknown
    ("native", False, DIGEST, False,        "- flight done done again again open"),
    ("natural", False, DIGEST, False,       "- flight done done again again open"),
    ("native", True, DIGEST, False,         "- flight replay replay again again replay"),
    ("native", False, OTHER_DIGEST, False,  "- reused reused reused reused again reused"),
    ("native", True, OTHER_DIGEST, False,   "- reused reused reused reused again reused"),
    ("native", False, DIGEST, True,         "- flight - - - - open"),
    ("native", True, DIGEST, True,          "- flight - - - - open"),
    ("native", True, OTHER_DIGEST, True,    "- flight - - - - open"),
    ("implicit", False, DIGEST, False,      "- flight - done - - open"),
    ("implicit", False, DIGEST, True,       "- flight - - - - open"),
    (CONFLICT_SOURCE, False, DIGEST, False, "- clash - - - - clash"),
    (CONFLICT_SOURCE, False, OTHER_DIGEST, True, "- clash - - - - clash"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "provider", "digest", "late", "verdicts"), _BY_HAND)
def test_an_attempt_gets_what_the_contract_says(
    source: str, provider: bool, digest: str, late: bool, verdicts: str
) -> None:
    now = T0 + DAY_US if late else T0 + DAY_US - 1
    for state, word in zip(State, verdicts.split(), strict=True):
        verdict = _WORDS[word]
        held = row(state, provider=provider, source=source)
        found = attempt(held, digest=digest, now_us=now, source=source)
        assert found == ((verdict, "rcpt_first", 200) if verdict is not V.FRESH else (V.FRESH, "", 0)), state


def test_an_attempt_on_nothing_is_fresh() -> None:
    assert attempt(None, digest=DIGEST, now_us=T0, source="native") == (V.FRESH, "", 0)


@pytest.mark.parametrize("who", Arrival)
def test_l2_what_is_in_flight_or_unknown_never_goes_out_again(who: Arrival) -> None:
    assert ARRIVALS[D, who] not in DISPATCHABLE
    if who is Arrival.SAME_PROVIDER:
        assert ARRIVALS[X, who] is V.REPLAY
    else:
        assert ARRIVALS[X, who] not in DISPATCHABLE


@pytest.mark.parametrize("state", [D, E, U, F, X])
def test_l3_another_digest_is_a_reused_key_until_it_expires(state: State) -> None:
    assert ARRIVALS[state, Arrival.OTHER] is V.REUSED
    assert ARRIVALS[N, Arrival.OTHER] is V.SUPERSEDE


_STATUS = OutcomeStatus
_SETTLED = [
    (D, _STATUS.EXECUTED, True, E),
    (D, _STATUS.EXECUTED, False, U),
    (D, _STATUS.NOT_SENT, True, N),
    (D, _STATUS.FAILED, False, F),
    (D, _STATUS.UNKNOWN, True, X),
    (D, _STATUS.RECONCILED, True, D),
    (X, _STATUS.RECONCILED, True, U),
    (X, _STATUS.EXECUTED, True, X),
    (X, _STATUS.NOT_SENT, True, X),
    (E, _STATUS.NOT_SENT, True, E),
    (U, _STATUS.UNKNOWN, True, U),
    (F, _STATUS.EXECUTED, True, F),
    (N, _STATUS.UNKNOWN, True, N),
    (A, _STATUS.EXECUTED, True, A),
]


@pytest.mark.parametrize(("state", "status", "delivered", "after"), _SETTLED)
def test_a_permit_has_one_outcome_and_unknown_one_reconciliation(
    state: State, status: OutcomeStatus, delivered: bool, after: State
) -> None:
    assert settle(state, status, delivered) is after
    assert settle_row(row(state), status, 201, delivered=delivered).state is after


@pytest.mark.parametrize(
    ("found", "after"),
    [(_STATUS.EXECUTED, U), (_STATUS.FAILED, F), (_STATUS.NOT_SENT, N)],
    ids=["it happened", "the vendor refused it", "it never arrived"],
)
def test_a_finding_frees_what_that_outcome_would_have_freed(found: OutcomeStatus, after: State) -> None:
    assert set(FINDINGS) == {_STATUS.EXECUTED, _STATUS.FAILED, _STATUS.NOT_SENT}
    assert settle(X, _STATUS.RECONCILED, False, found) is after
    assert settle(after, _STATUS.RECONCILED, False, _STATUS.NOT_SENT) is after  # once
    for source in ("native", "natural", "implicit", CONFLICT_SOURCE):
        settled = settle_row(row(X, source=source), _STATUS.RECONCILED, 0, delivered=False, found=found)
        verdict = attempt(settled, digest=DIGEST, now_us=T0, source=source)[0]
        repeats = source != CONFLICT_SOURCE and found is _STATUS.EXECUTED
        assert (verdict is V.ALREADY_EXECUTED) == repeats
        assert repeats or verdict in DISPATCHABLE


# --- several claims of one request ---


def test_the_strictest_claim_answers() -> None:
    ladder = [
        V.REUSED,
        V.CONFLICT,
        V.OUTCOME_UNKNOWN,
        V.IN_FLIGHT,
        V.ALREADY_EXECUTED,
        V.REPLAY,
        V.SUPERSEDE,
        V.FRESH,
    ]
    assert set(ladder) == set(Verdict)
    for first, second in itertools.product(ladder, ladder):
        expected = min(first, second, key=ladder.index)
        assert combine([(first, "a", 1), (second, "b", 2)])[0] is expected
    assert combine([]) == (V.FRESH, "", 0)


def _appraise(*rows: ClaimRow, digest: str = DIGEST) -> tuple[Verdict, str, int]:
    wanted = [(item.key, item.source) for item in rows]
    forward = appraise({item.key: item for item in rows}, wanted, digest=digest, now_us=T0)
    backward = appraise({item.key: item for item in rows}, wanted[::-1], digest=digest, now_us=T0)
    assert forward == backward
    return forward


def test_a_replay_does_not_meet_its_own_natural_and_conflict_keys() -> None:
    native = row(X, provider=True)
    natural = row(X, key="n", source="natural")
    conflict = row(X, key="c", source=CONFLICT_SOURCE)
    assert _appraise(native, natural, conflict) == (V.REPLAY, "rcpt_first", 200)
    foreign = replace(conflict, receipt_id="rcpt_other")
    assert _appraise(native, natural, foreign)[:2] == (V.CONFLICT, "rcpt_other")
    assert _appraise(native, replace(natural, receipt_id="rcpt_other"))[0] is V.OUTCOME_UNKNOWN


def test_a_duplicate_in_flight_is_in_flight_and_not_a_conflict_with_itself() -> None:
    native, conflict = row(D), row(D, key="c", source=CONFLICT_SOURCE)
    assert _appraise(native, conflict) == (V.IN_FLIGHT, "rcpt_first", 200)
    assert _appraise(conflict)[0] is V.CONFLICT


def test_claims_that_nobody_holds_leave_the_way_open() -> None:
    assert appraise({}, [("a", "native"), ("b", CONFLICT_SOURCE)], digest=DIGEST, now_us=T0) == (
        V.FRESH,
        "",
        0,
    )


# --- binding and settling ---


def test_a_permit_binds_its_claims_as_dispatching() -> None:
    bound = bind(None, binding(), receipt_id="rcpt_new", now_us=T0)
    assert (bound.state, bound.receipt_id, bound.expires_us) == (D, "rcpt_new", T0 + 2 * DAY_US)
    assert bound.before == ()


@pytest.mark.parametrize("state", [E, U, X])
def test_a_replay_keeps_the_first_window_and_what_it_replaced(state: State) -> None:
    bound = bind(row(state, provider=True), binding(provider=True), receipt_id="rcpt_new", now_us=T0)
    assert bound.expires_us == T0 + DAY_US
    assert bound.before == (replace(FIRST, state=state),)
    for status in (_STATUS.NOT_SENT, _STATUS.FAILED):
        back = settle_row(bound, status, 429, delivered=True)
        assert (back.state, back.receipt_id, back.http_status, back.before) == (
            state,
            "rcpt_first",
            200,
            (),
        )
    assert settle_row(bound, _STATUS.EXECUTED, 200, delivered=True).state is E
    assert settle_row(bound, _STATUS.UNKNOWN, 0, delivered=True).state is X


def test_an_unknown_claim_is_remembered_even_when_it_is_late() -> None:
    late = row(X, source=CONFLICT_SOURCE, expires_us=T0)
    assert bind(late, binding(source=CONFLICT_SOURCE), receipt_id="new", now_us=T0 + 1).before == (
        replace(FIRST, state=X),
    )


@pytest.mark.parametrize("state", [F, N])
def test_a_superseding_permit_starts_a_new_window(state: State) -> None:
    bound = bind(row(state), binding(), receipt_id="rcpt_new", now_us=T0)
    assert (bound.before, bound.expires_us) == ((), T0 + 2 * DAY_US)


def test_the_first_dispatch_can_be_reconciled_while_its_replay_is_under_way() -> None:
    bound = bind(row(X, provider=True), binding(provider=True), receipt_id="rcpt_new", now_us=T0)
    after = settle_claim(bound, "rcpt_first", _STATUS.RECONCILED, 200, delivered=True)
    assert (after.state, after.before) == (D, (replace(FIRST, state=U),))
    assert settle_claim(bound, "rcpt_else", _STATUS.RECONCILED, 200, delivered=True) == bound
    assert settle_claim(bound, "rcpt_new", _STATUS.UNKNOWN, 0, delivered=True).state is X


@pytest.mark.parametrize("nothing", [_STATUS.NOT_SENT, _STATUS.FAILED])
@pytest.mark.parametrize("first", [E, U, X])
def test_l7_a_replay_without_effect_leaves_what_those_before_it_left(
    first: State, nothing: OutcomeStatus
) -> None:
    """The replay was in doubt first; a finding about it is not one about the dispatch that it repeated."""
    held = bind(row(first, provider=True), binding(provider=True), receipt_id="rcpt_new", now_us=T0)
    held = settle_claim(held, "rcpt_new", _STATUS.UNKNOWN, 500, delivered=True)
    assert held.state is X
    held = settle_claim(held, "rcpt_new", _STATUS.RECONCILED, 0, delivered=False, found=nothing)
    assert (held.state, held.receipt_id, held.http_status, held.before) == (first, "rcpt_first", 200, ())


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("acted", [None, 0, 1, 2])
def test_l7_of_several_in_doubt_each_is_found_out_about(order: tuple[int, ...], acted: int | None) -> None:
    held, names = row(X, provider=True), ("rcpt_first", "rcpt_second", "rcpt_third")
    for name in names[1:]:
        held = bind(held, binding(provider=True), receipt_id=name, now_us=T0)
        held = settle_claim(held, name, _STATUS.UNKNOWN, 500, delivered=True)
    for done, index in enumerate(order, 1):
        found = _STATUS.EXECUTED if index == acted else _STATUS.NOT_SENT
        held = settle_claim(held, names[index], _STATUS.RECONCILED, 0, delivered=False, found=found)
        left = set(order[done:])
        if acted is None or acted in left:
            assert held.state is (X if left else N)
    assert held.state is (N if acted is None else U)
    if acted is not None:
        assert held.receipt_id == names[acted]


def test_a_key_with_too_many_dispatches_in_doubt_gets_no_further_one() -> None:
    """What is not found out about yet has to be remembered, and an agent may repeat itself for ever."""
    held = row(X, provider=True)
    for number in range(1, MAX_DOUBTS):
        assert attempt(held, digest=DIGEST, now_us=T0, source="native")[0] is V.REPLAY
        held = bind(held, binding(provider=True), receipt_id=f"rcpt_{number}", now_us=T0)
        held = settle_claim(held, f"rcpt_{number}", _STATUS.UNKNOWN, 500, delivered=True)
    assert attempt(held, digest=DIGEST, now_us=T0, source="native")[0] is V.OUTCOME_UNKNOWN
    last = held.receipt_id
    held = settle_claim(held, last, _STATUS.RECONCILED, 0, delivered=False, found=_STATUS.NOT_SENT)
    assert attempt(held, digest=DIGEST, now_us=T0, source="native")[0] is V.REPLAY


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("source", ["native", "natural", "implicit", CONFLICT_SOURCE])
@pytest.mark.parametrize("prior", ["", "rcpt_first", "rcpt_else"])
def test_l2_a_store_lets_no_permit_take_a_claim_that_is_held(state: State, source: str, prior: str) -> None:
    held = row(state, source=source)
    lawful = may_bind(held, binding(source=source), prior=prior, now_us=T0)
    if state is D:
        assert not lawful
    elif state is X:
        assert lawful == (prior == "rcpt_first")
    elif state in (E, U) and source in ("native", "natural"):
        assert lawful == (prior == "rcpt_first")
    elif state in (A, F, N):
        assert lawful


def test_l2_a_replay_names_the_receipt_that_it_repeats() -> None:
    held = row(E, provider=True)
    assert may_bind(held, binding(provider=True), prior="rcpt_first", now_us=T0)
    assert not may_bind(held, binding(provider=True), prior="rcpt_else", now_us=T0)
    assert not may_bind(held, binding(provider=True), prior="", now_us=T0)
    assert may_bind(None, binding(), prior="", now_us=T0)


@pytest.mark.parametrize("source", ["native", "natural", "implicit", CONFLICT_SOURCE])
@pytest.mark.parametrize("state", State)
def test_a_row_is_free_only_if_it_obstructs_nobody(state: State, source: str) -> None:
    held = row(state, source=source)
    obstructs = attempt(held, digest=DIGEST, now_us=T0, source=source)[0] is not V.FRESH
    if is_free(held):
        assert not obstructs
    if source in ("native", "natural"):
        assert not is_free(held)


# --- names of claims ---


def test_op_keys_differ_whenever_a_part_does() -> None:
    keys = {
        op_key("a", "b"),
        op_key("ab"),
        op_key("a", "b", ""),
        op_key("", "a", "b"),
        op_key("a", "b", secret=b"s"),
        op_key("b", "a"),
    }
    assert len(keys) == 6
    assert all(len(key) == 64 and set(key) <= set("0123456789abcdef") for key in keys)
    assert op_key("a", "b", secret=b"s") != op_key("a", "b", secret=b"t")


# --- over every store ---


@pytest.fixture(params=[open_ledger], ids=["sqlite"])
def store(request: pytest.FixtureRequest) -> Callable[..., SqliteLedger]:
    opened: Callable[..., SqliteLedger] = request.param
    return opened


async def test_l4_what_record_returned_is_already_durable(
    store: Callable[..., SqliteLedger], tmp_path: Path
) -> None:
    ledger = store(tmp_path)
    recorded = await ledger.record(RefundJudge("key"))
    # Another connection sees committed rows only.
    with SqliteReader(tmp_path) as reader:
        stored = reader.get(recorded.entry.receipt_id)
        assert stored is not None and stored.jws == recorded.entry.jws
        assert reader.permits(State.DISPATCHING)[0].receipt_id == recorded.entry.receipt_id
    assert (recorded.durable, recorded.index, recorded.entry.outcome) == (True, 0, Outcome.PERMIT)
    ledger.close()


async def test_l5_after_a_write_error_nothing_is_recorded_any_more(
    store: Callable[..., SqliteLedger], tmp_path: Path
) -> None:
    ledger = store(tmp_path)
    await ledger.record(RefundJudge("first"))
    vandal = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
    vandal.execute("DROP TABLE inputs")
    for number in range(3):
        with pytest.raises(BackendError) as raised:
            await ledger.record(RefundJudge(f"key {number}"))
        assert raised.value.reason is Reason.STORE_UNAVAILABLE
    vandal.close()
    assert not ledger.healthy
    assert ledger.size == 1
    ledger.close()


async def test_l6_after_a_crash_what_was_dispatching_is_unknown_and_says_so(
    store: Callable[..., SqliteLedger], tmp_path: Path
) -> None:
    ledger = store(tmp_path)
    first, second = await asyncio.gather(*(ledger.record(RefundJudge(key)) for key in "ab"))
    ledger.record_outcome(second.entry.receipt_id, OutcomeStatus.EXECUTED, 200, delivered=True)
    ledger.close()  # as after a crash: the first permit has no outcome
    again = store(tmp_path)
    with SqliteReader(tmp_path) as reader:
        assert reader.permits(State.DISPATCHING) == ()
        assert [permit.receipt_id for permit in reader.permits(State.UNKNOWN)] == [first.entry.receipt_id]
        said = [verify(item.jws, KEYS).statement for item in reader.export()]
    assert [item.get("status") for item in said] == [None, None, "executed", "unknown"]
    assert said[-1]["of"] == first.entry.receipt_id
    judge = RefundJudge("a")
    await again.record(judge)
    assert judge.verdict is Verdict.OUTCOME_UNKNOWN
    again.close()
