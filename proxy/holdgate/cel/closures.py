"""The closures that expressions are made of: each factory turns compiled parts into one more.

A frame is a list: one slot for each root of the environment, two for the variables of exists/all,
and one for the Budget. Parts without inputs are computed once, when the expression is compiled. An
error is the exception EvalFault, because the path without errors is the hot one.

Invariants: V1 to V4 of evaluate.py.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from operator import eq, ge, gt, le, lt, ne
from typing import Any, Final, NamedTuple

from .model import INT_MAX, INT_MIN, MAX_ITERATIONS

__all__ = [
    "ARITHMETIC",
    "CALLS",
    "COMPARE",
    "Budget",
    "Compiled",
    "EvalFault",
    "Fault",
    "Frame",
    "Run",
    "choose",
    "compare",
    "compare_field",
    "constant_value",
    "folded",
    "is_in",
    "load_field",
    "load_index",
    "load_root_field",
    "load_slot",
    "logic",
    "make_list",
    "minus",
    "negation",
    "quantified",
]

type Frame = list[Any]
type Run = Callable[[Frame], Any]

COMPARE: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "==": eq,
    "!=": ne,
    "<": lt,
    "<=": le,
    ">": gt,
    ">=": ge,
}


class Fault(StrEnum):
    OVERFLOW = "overflow"
    DIVISION_BY_ZERO = "division_by_zero"
    MISSING = "missing"
    BUDGET = "budget_exceeded"
    INPUT = "input"  # a value was not of the declared type; gate.py finds it before evaluation
    INTERNAL = "internal"


class EvalFault(Exception):
    def __init__(self, fault: Fault, detail: str) -> None:
        self.fault, self.detail = fault, detail


class Budget:
    """Steps of exists/all that are left: one Budget for each decision, shared by all its rules."""

    __slots__ = ("left",)

    def __init__(self, steps: int = MAX_ITERATIONS) -> None:
        self.left = steps


class Compiled(NamedTuple):
    run: Run
    constant: bool = False
    value: Any = None  # when constant
    field: tuple[int, str, str] | None = None  # when it is `root.field`: slot, field, root


def constant_value(value: Any) -> Compiled:
    return Compiled(lambda _frame: value, constant=True, value=value)


def folded(make: Callable[..., Run], *parts: Compiled) -> Compiled:
    """The operation `make` on `parts`; computed now when no part has an input."""
    run = make(*parts)
    for part in parts:
        if not part.constant:
            return Compiled(run)
    try:
        return constant_value(run([]))
    except EvalFault:
        return Compiled(run)  # fails each time it is reached, as it should


# --- loads ------------------------------------------------------------------------------------


def _missing(name: str) -> EvalFault:
    return EvalFault(Fault.MISSING, f"{name} is absent")


def load_slot(slot: int) -> Run:
    return lambda frame: frame[slot]


def load_root_field(slot: int, field: str, root: str) -> Run:
    def run(frame: Frame) -> Any:
        try:
            return frame[slot][field]
        except KeyError:
            raise _missing(f"{root}.{field}") from None

    return run


def load_field(record: Run, field: str) -> Run:
    def run(frame: Frame) -> Any:
        value = record(frame)
        try:
            return value[field]
        except KeyError:
            raise _missing(field) from None

    return run


def load_index(owner: Compiled, key: Compiled) -> Run:
    load, find = owner.run, key.run

    def run(frame: Frame) -> Any:
        table, name = load(frame), find(frame)
        try:
            return table[name]
        except KeyError:
            raise _missing(f"the key {name!r}") from None

    return run


def make_list(items: list[Compiled]) -> Compiled:
    if all(item.constant for item in items):
        return constant_value([item.value for item in items])
    runs = [item.run for item in items]
    return Compiled(lambda frame: [run(frame) for run in runs])


# --- operators --------------------------------------------------------------------------------


def negation(operand: Compiled) -> Run:
    run = operand.run
    return lambda frame: not run(frame)


def minus(operand: Compiled) -> Run:
    run = operand.run
    return lambda frame: _int64(-run(frame))


def _int64(value: int) -> int:
    if INT_MIN <= value <= INT_MAX:
        return value
    raise EvalFault(Fault.OVERFLOW, "the result does not fit into 64 bits")


def compare(op: Callable[[Any, Any], Any], left: Compiled, right: Compiled) -> Run:
    a, b = left.run, right.run
    if right.constant:
        value = right.value
        return lambda frame: op(a(frame), value)
    return lambda frame: op(a(frame), b(frame))


def compare_field(op: Callable[[Any, Any], Any], place: tuple[int, str, str], value: Any) -> Run:
    """`params.amount <= 5000`: the most frequent condition, without the cost of two more closures."""
    slot, field, root = place

    def run(frame: Frame) -> Any:
        try:
            return op(frame[slot][field], value)
        except KeyError:
            raise _missing(f"{root}.{field}") from None

    return run


def is_in(item: Compiled, owner: Compiled) -> Run:
    find, load = item.run, owner.run
    if owner.constant:
        # Keys of a map or items of a list; one scalar type, so set membership is equality.
        members = frozenset(owner.value)
        return lambda frame: find(frame) in members
    return lambda frame: find(frame) in load(frame)


def _add(left: Compiled, right: Compiled) -> Run:
    a, b = left.run, right.run
    return lambda frame: _int64(a(frame) + b(frame))


def _subtract(left: Compiled, right: Compiled) -> Run:
    a, b = left.run, right.run
    return lambda frame: _int64(a(frame) - b(frame))


def _multiply(left: Compiled, right: Compiled) -> Run:
    a, b = left.run, right.run
    return lambda frame: _int64(a(frame) * b(frame))


def _quotient(dividend: int, divisor: int) -> int:
    """Towards zero, as in CEL. -2^63 by -1 overflows, for the remainder too."""
    if divisor == 0:
        raise EvalFault(Fault.DIVISION_BY_ZERO, "division by zero")
    magnitude = abs(dividend) // abs(divisor)
    return _int64(magnitude if (dividend < 0) == (divisor < 0) else -magnitude)


def _divide(left: Compiled, right: Compiled) -> Run:
    a, b = left.run, right.run
    return lambda frame: _quotient(a(frame), b(frame))


def _remainder(left: Compiled, right: Compiled) -> Run:
    a, b = left.run, right.run

    def run(frame: Frame) -> int:
        dividend, divisor = a(frame), b(frame)
        return int(dividend - divisor * _quotient(dividend, divisor))

    return run


ARITHMETIC: Final = {"+": _add, "-": _subtract, "*": _multiply, "/": _divide, "%": _remainder}


def logic(conjunction: bool, parts: list[Compiled]) -> Compiled:
    """All parts joined by && (`conjunction`) or by ||."""
    if any(part.constant and part.value is not conjunction for part in parts):
        return constant_value(not conjunction)  # one such part settles it, whatever the others do
    if all(part.constant for part in parts):
        return constant_value(conjunction)
    runs = tuple(part.run for part in parts)
    return Compiled(_conjunction(runs) if conjunction else _disjunction(runs))


def _conjunction(runs: tuple[Run, ...]) -> Run:
    def run(frame: Frame) -> bool:
        # Kept as plain values: an exception in a local variable would be a reference cycle.
        first: tuple[Fault, str] | None = None
        for part in runs:
            try:
                if not part(frame):
                    return False
            except EvalFault as error:  # a later false still settles it
                first = first or (error.fault, error.detail)
        if first is not None:
            raise EvalFault(*first)
        return True

    return run


def _disjunction(runs: tuple[Run, ...]) -> Run:
    def run(frame: Frame) -> bool:
        # Kept as plain values: an exception in a local variable would be a reference cycle.
        first: tuple[Fault, str] | None = None
        for part in runs:
            try:
                if part(frame):
                    return True
            except EvalFault as error:  # a later true still settles it
                first = first or (error.fault, error.detail)
        if first is not None:
            raise EvalFault(*first)
        return False

    return run


def choose(test: Compiled, then: Compiled, other: Compiled) -> Run:
    check, yes, no = test.run, then.run, other.run
    return lambda frame: yes(frame) if check(frame) else no(frame)


def quantified(exists: bool, over: Run, predicate: Run, slot: int, budget_slot: int) -> Run:
    """exists() stops at the first true, all() at the first false; errors before that do not count."""

    def run(frame: Frame) -> bool:
        # Kept as plain values: an exception in a local variable would be a reference cycle.
        first: tuple[Fault, str] | None = None
        budget: Budget = frame[budget_slot]
        for item in over(frame):
            if budget.left <= 0:
                raise EvalFault(Fault.BUDGET, f"more than {MAX_ITERATIONS} steps of exists/all")
            budget.left -= 1
            frame[slot] = item
            try:
                held: bool = predicate(frame)
                if held is exists:
                    return held
            except EvalFault as error:
                first = first or (error.fault, error.detail)
        if first is not None:
            raise EvalFault(*first)
        return not exists

    return run


# --- functions --------------------------------------------------------------------------------


def _size(value: Compiled) -> Run:
    run = value.run
    return lambda frame: len(run(frame))


def _starts(text: Compiled, start: Compiled) -> Run:
    a, b = text.run, start.run
    return lambda frame: a(frame).startswith(b(frame))


def _ends(text: Compiled, end: Compiled) -> Run:
    a, b = text.run, end.run
    return lambda frame: a(frame).endswith(b(frame))


def _contains(text: Compiled, part: Compiled) -> Run:
    a, b = text.run, part.run
    return lambda frame: b(frame) in a(frame)


CALLS: Final[dict[str, Callable[..., Run]]] = {
    "size": _size,
    "startsWith": _starts,
    "endsWith": _ends,
    "contains": _contains,
}
