"""A syntax tree becomes the most that its evaluation can take, before any request is seen.

One step is the evaluation of one node; looking through a text or a list counts as more. Loops share one
budget of MAX_ITERATIONS in a decision (closures.Budget), so the worst case spends it where a turn costs most.

Invariants (tests/test_properties.py):
  W1  No evaluation takes more turns of exists/all than the bound says, nor more steps.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from .model import (
    MAX_ITERATIONS,
    MAX_LIST,
    MAX_STRING,
    Binary,
    Call,
    Environment,
    Ident,
    ListLiteral,
    Node,
    Quantifier,
    Select,
    parts_of,
)

__all__ = ["NOTHING", "Cost", "cost_of", "total"]

_TEXT: Final = MAX_STRING // 1024  # looking through the longest text
_LIST: Final = MAX_LIST // 16  # looking through the longest list


class Cost(NamedTuple):
    steps: int  # outside of loops
    turns: tuple[tuple[int, int], ...]  # of every loop: (steps of one turn, how many turns at most)

    @property
    def iterations(self) -> int:
        """Turns of all loops, as if there were no budget."""
        return sum(count for _, count in self.turns)

    @property
    def worst(self) -> int:
        """Steps, with the budget spent on the dearest turns."""
        left, found = MAX_ITERATIONS, self.steps
        for steps, count in sorted(self.turns, reverse=True):
            spent = min(left, count)
            found += steps * spent
            left -= spent
        return found


NOTHING: Final = Cost(0, ())


def total(costs: Iterable[Cost]) -> Cost:
    found = list(costs)
    return Cost(sum(each.steps for each in found), tuple(turn for each in found for turn in each.turns))


def cost_of(node: Node, environment: Environment) -> Cost:
    """The cost of `node`, which check() has accepted."""
    turns: list[tuple[int, int]] = []
    return Cost(_steps(node, environment, 1, turns), tuple(turns))


def _steps(node: Node, environment: Environment, times: int, turns: list[tuple[int, int]]) -> int:
    if isinstance(node, Quantifier):
        count = times * _length(node.over, environment)
        # A loop inside this one adds its own turns; what one turn takes is without them.
        turns.append((_steps(node.predicate, environment, count, turns) + 1, count))
        return 1 + _steps(node.over, environment, times, turns)
    found = 1
    for part in parts_of(node):
        found += _steps(part, environment, times, turns)
    if isinstance(node, Call):
        found += 0 if node.function == "size" else _TEXT
    elif isinstance(node, Binary) and node.op == "in" and not isinstance(node.right, ListLiteral):
        # A constant is a set; anything else is looked through.
        found += 0 if _is_constant(node.right) else _LIST
    return found


def _length(over: Node, environment: Environment) -> int:
    if isinstance(over, ListLiteral):
        return len(over.items)
    if _is_constant(over) and isinstance(over, Select):
        value = environment.constants[over.field]
        return len(value) if isinstance(value, list) else MAX_LIST
    return MAX_LIST


def _is_constant(node: Node) -> bool:
    return isinstance(node, Select) and isinstance(node.operand, Ident) and node.operand.name == "constants"
