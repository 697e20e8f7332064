"""Rules become the numbers that they compare with, and cases become the values that they put beside them.

A limit of 5000 is tested by 4999, 5000 and 5001: whoever writes <= for < changes exactly one of them. Every
comparison of an integer with a literal or a constant counts, but those inside exists() and all(), whose
values depend on the item. What a value can never be (hour 24, size -1) is not asked for.

Invariants (tests/test_policytest_boundary.py):
  T5  A value counts as covered only if some case made the compared expression exactly that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from .cel.closures import EvalFault, Run
from .cel.compile import Compiler
from .cel.model import INT_MAX, INT_MIN, Binary, Node, Quantifier, parts_of
from .cel.parse import parse
from .gate_input import Problem, action_frame, shared_frame
from .policy_model import PolicySet

__all__ = ["Boundaries", "Boundary"]

_COMPARISONS: Final = frozenset(("==", "!=", "<", "<=", ">", ">="))
_DOMAINS: Final[Mapping[str, tuple[int, int]]] = {
    "clock.hour_utc": (0, 23),
    "clock.weekday_utc": (0, 6),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Boundary:
    """One comparison of one rule, and the values beside it that no case had."""

    rule: str
    text: str  # the comparison as it is written
    value: int
    wanted: tuple[int, ...]
    missing: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Watch:
    rule: str
    text: str
    value: int
    wanted: tuple[int, ...]
    run: Run
    seen: set[int]


class Boundaries:
    """Collects what cases show. Make one for a PolicySet, look() at every input, then read report()."""

    def __init__(self, policies: PolicySet, names: Iterable[str]) -> None:
        """`names`: the policies that count."""
        counted = frozenset(names)
        self._policies = policies
        self._watches: dict[str, list[_Watch]] = {}
        for policy in policies.policies:
            if policy.name in counted:
                compiler = Compiler(policy.environment)
                for rule in policy.rules:
                    self._watches[rule.name] = list(_watches(rule.name, rule.program.source, compiler))

    def look(self, inputs: Mapping[str, Any]) -> None:
        shared = shared_frame(self._policies, inputs)
        if isinstance(shared, Problem):
            return
        for action in inputs["actions"]:
            applicable = self._policies.table.get((action["surface"], action["operation"]))
            if applicable is None:
                continue
            frame = action_frame(shared, action, applicable)
            if isinstance(frame, Problem):
                continue
            for watch in (w for rule in applicable.rules for w in self._watches.get(rule.name, ())):
                try:
                    watch.seen.add(watch.run(frame))
                except (EvalFault, LookupError, TypeError):
                    continue  # absent here, and guarded in the rule

    def report(self) -> tuple[Boundary, ...]:
        return tuple(
            Boundary(
                rule=watch.rule,
                text=watch.text,
                value=watch.value,
                wanted=watch.wanted,
                missing=tuple(value for value in watch.wanted if value not in watch.seen),
            )
            for _, watches in sorted(self._watches.items())
            for watch in watches
        )


def _watches(rule: str, source: str, compiler: Compiler) -> Iterator[_Watch]:
    found: set[tuple[str, int]] = set()
    for node in _outside_loops(parse(source)):
        if not isinstance(node, Binary) or node.op not in _COMPARISONS:
            continue
        left, right = compiler.compile(node.left), compiler.compile(node.right)
        if left.constant == right.constant:
            continue
        value, other, side = (
            (left.value, right, node.right) if left.constant else (right.value, left, node.left)
        )
        shown = " ".join(source[side.start : side.end].split())
        if type(value) is not int or (shown, value) in found:
            continue
        found.add((shown, value))
        low, high = _domain(shown)
        yield _Watch(
            rule=rule,
            text=" ".join(source[node.start : node.end].split()),
            value=value,
            wanted=tuple(each for each in (value - 1, value, value + 1) if low <= each <= high),
            run=other.run,
            seen=set(),
        )


def _outside_loops(node: Node) -> Iterator[Node]:
    if isinstance(node, Quantifier):
        return
    yield node
    for part in parts_of(node):
        yield from _outside_loops(part)


def _domain(text: str) -> tuple[int, int]:
    if text.startswith(("size(", "counters.")):
        return 0, INT_MAX
    return _DOMAINS.get(text, (INT_MIN, INT_MAX))
