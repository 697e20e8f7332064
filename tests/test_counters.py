"""counters.py: windows, what a request reads and charges, and the Book against brute force."""

from __future__ import annotations

import unittest
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from evidence import T0
from holdgate.counters import (
    Book,
    Charged,
    Counter,
    Meters,
    bucket,
    budget_ids,
    budget_part,
    charges_of_part,
    fill,
    meters_of,
    uses_of,
)
from holdgate.ledger import NO_BUDGETS, Budgets, Charge, State, Total

DAY_S = 86_400
SECOND = 1_000_000


def counter(**changes: Any) -> Counter:
    facts: dict[str, Any] = {
        "name": "day",
        "key": ("agent.id", "params.currency"),
        "window_s": DAY_S,
        "measure": "amount",
        "file": "p.yaml",
        "line": 1,
    }
    return Counter(**(facts | changes))


def action(**params: Any) -> dict[str, Any]:
    return {"surface": "s", "operation": "o", "effect": "commit", "host": "h", "params": params}


AGENT = {"id": "bot", "groups": [], "attrs": {"tier": 2}}


# --- BU1 ---


@given(window_s=st.integers(1, 400 * DAY_S), now_us=st.integers(0, 2**52))
def test_bu1_a_charge_counts_for_a_window_and_at_most_one_bucket_more(window_s: int, now_us: int) -> None:
    at_us, until_us = bucket(window_s, now_us)
    grain = until_us - at_us - window_s * SECOND
    assert at_us <= now_us < at_us + grain
    assert now_us + window_s * SECOND < until_us <= now_us + window_s * SECOND + grain
    assert grain == SECOND * max(1, -(-window_s // 288))


LIMIT, WINDOW_S = 100, 300


class Spending(RuleBasedStateMachine):
    """One budget of 100 in 300 s. What may have been spent is kept outside of the Book, exactly."""

    permits = Bundle("permits")

    @initialize()
    def start(self) -> None:
        self.now_us, self.made = T0, 0
        self.book = Book()
        self.at: dict[str, tuple[int, int]] = {}  # first permit -> (when, amount)
        self.state: dict[str, State] = {}
        self.first: dict[str, str] = {}  # replay -> the first permit of its chain

    @rule(target=permits, amount=st.integers(0, 60))
    def spend(self, amount: int) -> str:
        self.made += 1
        name = f"r{self.made}"
        total = self.book.budgets(["m"], self.now_us).totals["m"]
        if total.sum + amount > LIMIT:
            return ""
        at_us, until_us = bucket(WINDOW_S, self.now_us)
        self.book.permit(name, (Charge(meter="m", at_us=at_us, until_us=until_us, amount=amount, count=1),))
        self.at[name], self.state[name] = (self.now_us, amount), State.DISPATCHING
        return name

    @rule(target=permits, prior=permits)
    def replay(self, prior: str) -> str:
        if (
            self.state.get(prior) not in (State.EXECUTED, State.UNKNOWN)
            or not self.book.holders[prior].charges
        ):
            return prior
        self.made += 1
        name = f"r{self.made}"
        standing = self.book.budgets(["m"], self.now_us, [prior]).standing[prior]
        self.book.permit(name, (), prior)
        assert self.book.holders[name].charges == standing
        self.first[name] = self.first.get(prior, prior)
        self.state[name] = State.DISPATCHING
        return name

    @rule(
        name=permits,
        state=st.sampled_from([State.EXECUTED, State.FAILED, State.NOT_SENT, State.UNKNOWN]),
    )
    def end(self, name: str, state: State) -> None:
        if self.state.get(name) is State.DISPATCHING or (
            self.state.get(name) is State.UNKNOWN and state is not State.UNKNOWN
        ):
            self.state[name] = state
            self.book.settle(name, state)

    @rule(seconds=st.sampled_from([0, 1, 2, 100, 299, 300, 302]))
    def wait(self, seconds: int) -> None:
        self.now_us += seconds * SECOND + 1

    def _may_have_acted(self, first: str) -> bool:
        chain = [first, *(name for name, root in self.first.items() if root == first)]
        return any(self.state[name] not in (State.FAILED, State.NOT_SENT) for name in chain)

    @invariant()
    def what_may_have_been_spent_in_a_window_is_within_the_limit(self) -> None:
        spent = [(at, amount) for name, (at, amount) in self.at.items() if self._may_have_acted(name)]
        for start, _ in spent:
            inside = sum(amount for at, amount in spent if start <= at < start + WINDOW_S * SECOND)
            assert inside <= LIMIT

    @invariant()
    def the_book_holds_each_charge_once(self) -> None:
        held = sum(charge.amount for holder in self.book.holders.values() for charge in holder.charges)
        assert held == sum(amount for name, (_, amount) in self.at.items() if self._may_have_acted(name))


TestBU1BU5Spending = Spending.TestCase
TestBU1BU5Spending.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_bu5_a_charge_is_released_only_without_effect_is_the_machine_above() -> None:
    assert issubclass(TestBU1BU5Spending, unittest.TestCase)
    assert TestBU1BU5Spending.settings.max_examples


# --- BU2 to BU4 ---


def filled(
    counters: list[Counter],
    actions: list[dict[str, Any]],
    sums: dict[str, int],
    *,
    prior: str = "",
    standing: dict[str, tuple[Charge, ...]] | None = None,
) -> tuple[list[dict[str, Any]], tuple[Charge, ...]]:
    """Counters by name stand at these sums, one action each."""
    uses = [uses_of(counters, AGENT, each, secret=b"k") for each in actions]
    totals = {
        use.meter: Total(sum=sums[use.counter.name], count=1)
        for mine in uses
        for use in mine
        if use.counter.name in sums and use.meter
    }
    budgets = Budgets(totals=totals, standing=standing or {})
    charges = fill(actions, uses, budgets, prior=prior, now_us=T0)
    return [each.get("counters", {}) for each in actions], charges


def test_bu2_actions_of_one_request_see_what_those_before_them_charge() -> None:
    actions = [
        action(amount=10, currency="eur"),
        action(amount=20, currency="usd"),
        action(amount=5, currency="eur"),
    ]
    seen, charges = filled([counter()], actions, {"day": 100})
    assert [value["day"] for value in seen] == [
        {"sum": 100, "count": 1},
        {"sum": 100, "count": 1},
        {"sum": 110, "count": 2},
    ]
    assert sorted((charge.amount, charge.count) for charge in charges) == [(15, 2), (20, 1)]


@pytest.mark.parametrize(
    ("params", "changes"),
    [
        pytest.param({"currency": "eur"}, {}, id="nothing to measure"),
        pytest.param({"amount": 1}, {}, id="no value for the key"),
        pytest.param({"amount": -1, "currency": "eur"}, {}, id="a negative amount"),
        pytest.param({"amount": True, "currency": "eur"}, {}, id="not a number"),
        pytest.param({"amount": 2**63 - 100, "currency": "eur"}, {}, id="beyond int64"),
        pytest.param({"amount": 1, "currency": ["eur"]}, {}, id="a list as key"),
        pytest.param({"amount": 1, "currency": "eur"}, {"key": ("agent.attrs.x",)}, id="no such attribute"),
        pytest.param({"amount": 1, "currency": "eur"}, {"name": "other"}, id="the store did not read it"),
    ],
)
def test_bu3_what_cannot_be_read_or_measured_is_left_out(
    params: dict[str, Any], changes: dict[str, Any]
) -> None:
    seen, charges = filled([counter(**changes)], [action(**params)], {"day": 100})
    assert (seen, charges) == ([{}], ())


def test_bu3_a_counter_of_actions_has_no_sum_and_an_empty_key_is_one_for_all() -> None:
    counts = counter(measure="", key=())
    seen, charges = filled([counts], [action(), action(amount=3)], {"day": 0})
    assert [value["day"] for value in seen] == [{"count": 1}, {"count": 2}]
    assert [(charge.amount, charge.count) for charge in charges] == [(0, 2)]


def test_bu4_a_replay_is_judged_without_its_own_charge_and_charges_nothing() -> None:
    mine = uses_of([counter()], AGENT, action(amount=40, currency="eur"), secret=b"k")
    at_us, until_us = bucket(DAY_S, T0)
    own = Charge(meter=mine[0].meter, at_us=at_us, until_us=until_us, amount=40, count=1)
    wanted = [action(amount=40, currency="eur")]
    seen, charges = filled([counter()], wanted, {"day": 90}, prior="r1", standing={"r1": (own,)})
    assert (seen, charges) == ([{"day": {"sum": 50, "count": 0}}], ())
    gone = Charge(meter=own.meter, at_us=0, until_us=T0, amount=40, count=1)
    seen, _ = filled([counter()], wanted, {"day": 90}, prior="r1", standing={"r1": (gone,)})
    assert seen == [{"day": {"sum": 90, "count": 1}}]


@pytest.mark.parametrize(
    "other",
    [
        counter(name="week"),
        counter(window_s=3600),
        counter(measure=""),
        counter(key=("agent.id",)),
        counter(key=("params.currency", "agent.id")),
    ],
    ids=["name", "window", "measure", "key", "order of the key"],
)
def test_another_definition_is_another_meter(other: Counter) -> None:
    one, two = uses_of([counter(), other], AGENT, action(amount=1, currency="eur"), secret=b"k")
    assert one.meter != two.meter
    assert meters_of([[one, two], [one]]) == (one.meter, two.meter)


def test_a_key_of_another_type_is_another_meter() -> None:
    by = [counter(key=("params.currency",))]
    found = {uses_of(by, AGENT, action(amount=1, currency=value), secret=None)[0].meter for value in ("1", 1)}
    assert len(found) == 2


def test_receipts_name_ids_and_the_record_has_the_charges() -> None:
    at_us, until_us = bucket(DAY_S, T0)
    charges = tuple(
        Charge(meter=f"{n:064x}", at_us=at_us, until_us=until_us, amount=n, count=1) for n in range(17)
    )
    assert budget_ids(charges[:2]) == ("0" * 64, "0" * 63 + "1")
    assert budget_ids(()) == ()
    assert [each[:7] for each in budget_ids(charges)] == ["sha256:"]
    assert charges_of_part(budget_part(charges)) == charges
    assert Book().budgets([], T0) is NO_BUDGETS


# --- Meters: what a backtest adds up ---


ASKED = st.tuples(
    st.integers(0, 400),  # seconds since the one before
    st.lists(st.tuples(st.integers(-1, 3), st.sampled_from([1, True, "1", None])), min_size=1, max_size=3),
    st.booleans(),  # permitted
    st.sampled_from([None, 1, 100]),  # without effect after so many seconds
)


@given(st.lists(ASKED, max_size=25))
@settings(max_examples=150, deadline=None)
def test_meters_say_what_a_store_says(requests: list[Any]) -> None:
    """Batches over three counters, permits and their release, against fill() over the Book."""
    counters = (
        counter(name="a", key=("params.who",), window_s=300, measure="amount"),
        counter(name="b", key=(), window_s=600, measure=""),
        counter(name="c", key=("agent.id",), window_s=300, measure="amount"),
    )
    book, meters, now_us = Book(), Meters(), T0
    gauges = meters.gauges(counters)
    ending: list[tuple[int, str]] = []
    for number, (later, parts, permitted, ends) in enumerate(requests):
        now_us += later * SECOND
        for at_us, done in [each for each in ending if each[0] <= now_us]:
            book.settle(done, State.FAILED)
            ending.remove((at_us, done))
        actions = [action(amount=amount, **({} if who is None else {"who": who})) for amount, who in parts]
        uses = [uses_of(counters, AGENT, each, secret=None) for each in actions]
        charged: list[Charged] = []
        found = [Meters.counted(gauges, AGENT, each, now_us, charged) for each in actions]
        charges = fill(actions, uses, book.budgets(meters_of(uses), now_us), prior="", now_us=now_us)
        assert [each["counters"] for each in actions] == found
        if permitted:
            free_us = None if ends is None else now_us + ends * SECOND
            Meters.charge(charged, now_us, free_us)
            book.permit(f"r{number}", charges)
            if free_us is not None:
                ending.append((free_us, f"r{number}"))
