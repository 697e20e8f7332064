"""Counters: what a policy adds up over a window of time, and what each PERMIT charges to it.

    Counter (policy file) + one action -> Use (meter id, amount)     before the store is asked
    Use + totals of the store          -> values in the decision input, charges of a PERMIT

A charge at time t goes into the bucket that t falls in, and counts until that bucket has been over for a
whole window: never shorter than the window, at most one bucket (1/288 of it) longer. So a total depends on
the charges and the time alone, and whoever has the log gets the same one.

Invariants (tests/test_counters.py):
  BU1  In no interval of a window's length do charges that stand exceed what the conditions allowed.
  BU2  Actions of one request see what the actions before them charge.
  BU3  What cannot be read or measured (absent, negative, beyond int64) is left out of the input: never 0.
  BU4  A replay is judged without the charge of the request that it repeats, and charges nothing.
  BU5  Only not_sent and failed release a charge; a replay without effect gives it back to the first permit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any, Final, NamedTuple

from .cel.model import INT_MAX
from .ledger import NO_BUDGETS, RELEASING, Budgets, Charge, State, Total, op_key

__all__ = [
    "BUCKETS",
    "Book",
    "Charged",
    "Counter",
    "Meters",
    "Use",
    "bucket",
    "budget_ids",
    "budget_part",
    "charges_of_part",
    "fill",
    "meters_of",
    "uses_of",
    "uses_of_all",
]

BUCKETS: Final = 288  # of one window: 24 h in steps of 5 min
_MAX_IDS: Final = 16  # more are one digest: a receipt is at most 8 KiB
_SECOND_US: Final = 1_000_000
_ROOTS: Final = ("agent", "action", "params")  # of a key


@dataclass(frozen=True, slots=True, kw_only=True)
class Counter:
    """One entry of `spec.counters`."""

    name: str
    key: tuple[str, ...]  # paths into agent, action and params; (): one counter for everything
    window_s: int
    measure: str  # the parameter that is added up; "": actions are counted only
    file: str
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What one action has to do with one counter."""

    counter: Counter
    meter: str  # "" when a value of the key is absent
    amount: int | None  # None when it cannot be measured; 0 when actions are counted only


def bucket(window_s: int, now_us: int) -> tuple[int, int]:
    """(start of the bucket that `now_us` is in, the moment from which a charge in it does not count)."""
    grain_us = max(1, -(-window_s // BUCKETS)) * _SECOND_US
    at_us = now_us - now_us % grain_us
    return at_us, at_us + grain_us + window_s * _SECOND_US


def uses_of(
    counters: Iterable[Counter],
    agent: Mapping[str, Any],
    action: Mapping[str, Any],
    *,
    secret: bytes | None,
) -> tuple[Use, ...]:
    """`agent` and `action` as they stand in a decision input."""
    return tuple(
        Use(
            counter=counter,
            meter=_meter(counter, {"agent": agent, "action": action, "params": action["params"]}, secret),
            amount=_measured(counter, action["params"]),
        )
        for counter in counters
    )


def uses_of_all(
    counters_of: Callable[[str, str], tuple[Counter, ...]],
    agent: Mapping[str, Any],
    actions: Iterable[Mapping[str, Any]],
    *,
    secret: bytes | None,
) -> tuple[tuple[Use, ...], ...]:
    """Action by action; () when no action has a counter. `counters_of` is PolicySet.counters_of."""
    found = tuple(
        uses_of(counters, agent, action, secret=secret)
        if (counters := counters_of(action["surface"], action["operation"]))
        else ()
        for action in actions
    )
    return found if any(found) else ()


def meters_of(uses: Iterable[Iterable[Use]]) -> tuple[str, ...]:
    """The meters to read, each once."""
    return tuple(dict.fromkeys(use.meter for mine in uses for use in mine if use.meter))


def _meter(counter: Counter, roots: Mapping[str, Any], secret: bytes | None) -> str:
    values = _key_values(_paths(counter), roots)
    if values is None:
        return ""
    parts = [f"{kind.__name__}:{value}" for kind, value in values]
    # Another window or measure is another counter: its buckets would not be comparable.
    return op_key("counter", counter.name, str(counter.window_s), counter.measure, *parts, secret=secret)


def _paths(counter: Counter) -> tuple[list[str], ...]:
    return tuple(path.split(".") for path in counter.key)


def _key_values(
    paths: Iterable[Sequence[str]], roots: Mapping[str, Any]
) -> tuple[tuple[type, str | int], ...] | None:
    """With their types: 1 and true are not one key. None when a value is absent."""
    found = []
    for path in paths:
        value: Any = roots
        for name in path:
            value = value.get(name) if type(value) is dict else None
        kind = type(value)
        if kind is not str and kind is not int and kind is not bool:
            return None
        found.append((kind, value))
    return tuple(found)


def _measured(counter: Counter, params: Mapping[str, Any]) -> int | None:
    if not counter.measure:
        return 0
    value = params.get(counter.measure)
    return value if type(value) is int and 0 <= value <= INT_MAX else None


def fill(
    actions: Sequence[dict[str, Any]],
    uses: Sequence[Sequence[Use]],
    budgets: Budgets,
    *,
    prior: str,
    now_us: int,
) -> tuple[Charge, ...]:
    """Write each action's counters into the input, and return what a PERMIT charges.

    `prior` is the receipt that this request replays, "" when none: what that one charged is not counted
    here (BU4). A counter that is left out makes the gate say input_unavailable.
    """
    totals = dict(budgets.totals)
    for charge in budgets.standing.get(prior, ()) if prior else ():
        before = totals.get(charge.meter)
        if before is not None and now_us < charge.until_us:
            totals[charge.meter] = Total(sum=before.sum - charge.amount, count=before.count - charge.count)
    charges: dict[tuple[str, int], Charge] = {}
    for action, mine in zip(actions, uses, strict=True):
        if not mine:
            continue
        values = action["counters"] = {}
        for use in mine:
            total = totals.get(use.meter)
            if total is None or use.amount is None or total.sum + use.amount > INT_MAX:
                continue
            values[use.counter.name] = {"count": total.count} | (
                {"sum": total.sum} if use.counter.measure else {}
            )
            totals[use.meter] = Total(sum=total.sum + use.amount, count=total.count + 1)
            _add(charges, use, use.amount, now_us)
    return () if prior else tuple(charges.values())


def _add(charges: dict[tuple[str, int], Charge], use: Use, amount: int, now_us: int) -> None:
    at_us, until_us = bucket(use.counter.window_s, now_us)
    before = charges.get((use.meter, at_us))
    charges[use.meter, at_us] = Charge(
        meter=use.meter,
        at_us=at_us,
        until_us=until_us,
        amount=amount + (before.amount if before else 0),
        count=1 + (before.count if before else 0),
    )


def budget_ids(charges: Iterable[Charge]) -> tuple[str, ...]:
    """What a receipt says of them: opaque ids, no names and no amounts."""
    ids = sorted({charge.meter for charge in charges})
    if len(ids) <= _MAX_IDS:
        return tuple(ids)
    return ("sha256:" + hashlib.sha256("\n".join(ids).encode()).hexdigest(),)


def budget_part(charges: Iterable[Charge]) -> list[dict[str, Any]]:
    """The charges as they are recorded in the decision input: what `log audit` compares the ledger with."""
    return [
        {"id": c.meter, "at_us": c.at_us, "until_us": c.until_us, "amount": c.amount, "count": c.count}
        for c in charges
    ]


def charges_of_part(part: Any) -> tuple[Charge, ...]:
    """The other way round. Raises KeyError, TypeError or ValueError for what is not such a part."""
    return tuple(
        Charge(meter=c["id"], at_us=c["at_us"], until_us=c["until_us"], amount=c["amount"], count=c["count"])
        for c in part
    )


type _Values = tuple[str | tuple[type, int], ...]


class _Gauge(NamedTuple):
    name: str
    measure: str
    paths: tuple[tuple[int, tuple[str, ...]], ...]  # its key: the root of each, and the names from there
    meters: dict[_Values, _Standing]
    grain_us: int  # of bucket()
    window_us: int


# What one PERMIT adds, which counts once: to what, how much, and bucket()'s two.
type Charged = tuple[_Standing, int, int, int]


@dataclass(slots=True)
class _Standing:
    """What one meter stands at, and what is taken off again, the earliest first."""

    sum: int = 0
    count: int = 0
    ends: list[tuple[int, int]] = field(default_factory=list)

    def at(self, now_us: int) -> None:
        while self.ends and self.ends[0][0] <= now_us:
            self.sum -= heappop(self.ends)[1]
            self.count -= 1


class Meters:
    """Budgets over many requests in the order of their times: what uses_of() and fill() say over a store.

    For simulation (backtest.py): nothing is written, nothing has an id, and what has ended is forgotten.
    """

    def __init__(self) -> None:
        self._standing: dict[tuple[str, int, str], dict[_Values, _Standing]] = {}

    def gauges(self, counters: tuple[Counter, ...]) -> list[_Gauge]:
        """For counted(). Counters of one meaning share their totals, whatever operations they are of."""
        found = []
        for counter in counters:
            meaning = counter.name, counter.window_s, counter.measure
            paths = tuple((_ROOTS.index(root), tuple(names)) for root, *names in _paths(counter))
            meters = self._standing.setdefault(meaning, {})
            at_us, until_us = bucket(counter.window_s, 0)
            window_us = counter.window_s * _SECOND_US
            grain_us = until_us - at_us - window_us
            found.append(_Gauge(counter.name, counter.measure, paths, meters, grain_us, window_us))
        return found

    @staticmethod
    def counted(
        gauges: Iterable[_Gauge],
        agent: Mapping[str, Any],
        action: Mapping[str, Any],
        now_us: int,
        charged: list[Charged],
    ) -> dict[str, Any]:
        """The counters of one action, behind what `charged` holds already; what it charges goes there.

        Long because a backtest asks this of every record: a call costs as much as a step of it.
        """
        found: dict[str, Any] = {}
        params = action["params"]
        roots = agent, action, params
        for name, measure, paths, meters, grain_us, window_us in gauges:
            # _measured() and _key_values(), written out: this is asked of every record.
            amount = params.get(measure) if measure else 0
            if type(amount) is not int or not 0 <= amount <= INT_MAX:
                continue
            values = []
            for root, names in paths:
                value: Any = roots[root]
                for each in names:
                    value = value.get(each) if type(value) is dict else None
                kind = type(value)
                if kind is str:
                    values.append(value)
                elif kind is int or kind is bool:
                    values.append((kind, value))
                else:
                    break
            if len(values) < len(paths):
                continue
            key = tuple(values)
            standing = meters.get(key)
            if standing is None:
                standing = meters[key] = _Standing()
            if standing.ends and standing.ends[0][0] <= now_us:
                standing.at(now_us)
            total, count = standing.sum, standing.count
            for other, before, _, _ in charged:
                if other is standing:
                    total, count = total + before, count + 1
            if total + amount <= INT_MAX:
                found[name] = {"count": count, "sum": total} if measure else {"count": count}
                charged.append((standing, amount, grain_us, window_us))
        return found

    @staticmethod
    def charge(charged: Iterable[Charged], now_us: int, free_us: int | None) -> None:
        """`free_us`: when it ended without effect, if it did."""
        for standing, amount, grain_us, window_us in charged:
            until_us = now_us - now_us % grain_us + grain_us + window_us
            heappush(standing.ends, (until_us if free_us is None else min(until_us, free_us), amount))
            standing.sum += amount
            standing.count += 1


@dataclass(slots=True)
class _Holder:
    charges: tuple[Charge, ...]
    lender: str
    state: State = State.DISPATCHING


@dataclass(slots=True)
class Book:
    """Budgets in memory: what stores do in tables, for simulation (backtest) and as their model in tests."""

    holders: dict[str, _Holder] = field(default_factory=dict)

    def budgets(self, meters: Iterable[str], now_us: int, priors: Iterable[str] = ()) -> Budgets:
        """What a judge that asks for `meters` is given; `priors` hold the claims that it asked for."""
        wanted = {meter: Total(sum=0, count=0) for meter in meters}
        if not wanted:
            return NO_BUDGETS
        for holder in self.holders.values():
            for charge in holder.charges:
                before = wanted.get(charge.meter)
                if before is not None and now_us < charge.until_us:
                    wanted[charge.meter] = Total(
                        sum=before.sum + charge.amount, count=before.count + charge.count
                    )
        standing = {prior: self.holders[prior].charges for prior in priors if prior in self.holders}
        return Budgets(totals=wanted, standing=standing)

    def permit(self, receipt_id: str, charges: tuple[Charge, ...], prior: str = "") -> None:
        """A PERMIT; what `prior`, which it repeats, still holds goes over to it."""
        lender = self.holders.get(prior)
        if lender is not None and lender.charges:
            charges, lender.charges = lender.charges, ()
            self.holders[receipt_id] = _Holder(charges, prior)
        else:
            self.holders[receipt_id] = _Holder(charges, "")

    def settle(self, receipt_id: str, state: State) -> None:
        """The permit's next state."""
        holder = self.holders[receipt_id]
        holder.state = state
        if state not in RELEASING:
            return
        lender = self.holders.get(holder.lender)
        while lender is not None and lender.state in RELEASING:
            lender = self.holders.get(lender.lender)
        if lender is not None:
            lender.charges = holder.charges
        holder.charges = ()
