"""From the head of a request to the one operation it can be: host trie, path trie, dispatch table.

Everything that matches is collected; nothing depends on the order in which maps were written.
The winner must beat every other match: by path, then by discriminators, then by `prefer`.

Invariants (tests/test_surface_match.py):
  SM11  The order of maps, operations and hosts does not change what is recognised.
  SM12  Two matches of which neither beats the other are ambiguous_operation, never a choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from ..errors import InputError, Reason
from .exchange import Exchange
from .plan import MapRuntime, Operation
from .sources import MISSING
from .template import LITERAL, REST, VARIABLE, Order, Template, compare, fits

__all__ = ["HostTrie", "PathTrie", "Reference", "beats", "fits_path", "satisfied", "unique"]

_ANY_LABEL: Final = ""  # no host label is empty


class HostTrie[T]:
    """Hosts and host templates of one scheme and port, by label from the right."""

    __slots__ = ("_root",)

    def __init__(self) -> None:
        self._root: dict[str, dict[str, object] | list[T]] = {}

    def add(self, host: str, item: T) -> None:
        node: dict = self._root  # type: ignore[type-arg]
        for label in reversed(host.split(".")):
            node = node.setdefault(_ANY_LABEL if label.startswith("{") else label, {})
        node.setdefault(None, []).append(item)

    def find(self, host: str) -> list[T]:
        """Items of the most specific patterns that match `host`: literal labels beat variables."""
        labels = host.split(".")
        labels.reverse()
        found: list[tuple[tuple[bool, ...], list[T]]] = []
        self._walk(self._root, labels, 0, (), found)
        best = [row for row in found if not any(_dominates(other[0], row[0]) for other in found)]
        return [item for _, items in best for item in items]

    def _walk(
        self,
        node: dict,  # type: ignore[type-arg]
        labels: Sequence[str],
        index: int,
        shape: tuple[bool, ...],
        found: list[tuple[tuple[bool, ...], list[T]]],
    ) -> None:
        if index == len(labels):
            if None in node:
                found.append((shape, node[None]))
            return
        for key, literal in ((labels[index], True), (_ANY_LABEL, False)):
            child = node.get(key)
            if child is not None:
                self._walk(child, labels, index + 1, (*shape, literal), found)


def _dominates(left: tuple[bool, ...], right: tuple[bool, ...]) -> bool:
    return left != right and all(a >= b for a, b in zip(left, right, strict=True))


_NO_LITERALS: Final[Mapping[str, Any]] = MappingProxyType({})

type Reference = tuple[MapRuntime, str]


class _Node:
    __slots__ = ("affixes", "here", "literals", "rest", "variable")

    def __init__(self) -> None:
        # Most nodes are leaves: empty parts are shared, not allocated.
        self.literals: Mapping[str, _Node] = _NO_LITERALS
        self.affixes: tuple[tuple[str, str, _Node], ...] = ()
        self.variable: _Node | None = None
        self.here: tuple[Reference, ...] = ()
        self.rest: tuple[Reference, ...] = ()

    def literal(self, text: str) -> _Node:
        child = self.literals.get(text)
        if child is None:
            child = _Node()
            if isinstance(self.literals, dict):
                self.literals[text] = child
            else:
                self.literals = {text: child}
        return child

    def other(self, rank: int, prefix: str, suffix: str) -> _Node:
        if rank == VARIABLE:
            self.variable = self.variable or _Node()
            return self.variable
        for known_prefix, known_suffix, child in self.affixes:
            if (known_prefix, known_suffix) == (prefix, suffix):
                return child
        child = _Node()
        self.affixes = (*self.affixes, (prefix, suffix, child))
        return child


class PathTrie:
    """Every operation of one method, by path template. Holds names: most operations are never used."""

    __slots__ = ("_root",)

    def __init__(self) -> None:
        self._root = _Node()

    def add(self, template: Template, operation: Reference) -> None:
        node = self._root
        for segment in template:
            if segment.rank == REST:
                node.rest = (*node.rest, operation)
                return
            if segment.rank == LITERAL:
                node = node.literal(segment.prefix)
            else:
                node = node.other(segment.rank, segment.prefix, segment.suffix)
        node.here = (*node.here, operation)

    def find(self, segments: Sequence[str]) -> list[Operation]:
        """Every operation whose template matches these decoded segments."""
        found: list[Reference] = []
        stack = [(self._root, 0)]
        last = len(segments)
        while stack:
            node, index = stack.pop()
            if index == last:
                found.extend(node.here)
                continue
            text = segments[index]
            if node.rest and (text or index < last - 1):
                found.extend(node.rest)
            child = node.literals.get(text)
            if child is not None:
                stack.append((child, index + 1))
            if text:
                if node.variable is not None:
                    stack.append((node.variable, index + 1))
                for prefix, suffix, affixed in node.affixes:
                    if fits(text, prefix, suffix):
                        stack.append((affixed, index + 1))
        return [one.operation(identity) for one, identity in found]


def fits_path(template: Template, segments: Sequence[str]) -> bool:
    """Whether one template matches; for operations that a dispatch table found."""
    trie_length = len(template)
    if template[-1].rank == REST:
        if len(segments) < trie_length or not any(segments[trie_length - 1 :]):
            return False
        template = template[:-1]
    elif len(segments) != trie_length:
        return False
    for segment, text in zip(template, segments, strict=False):
        if segment.rank == LITERAL:
            if text != segment.prefix:
                return False
        elif not fits(text, segment.prefix, segment.suffix):
            return False
    return True


def satisfied(operations: Iterable[Operation], exchange: Exchange) -> list[Operation]:
    """Those whose discriminators hold. Bodies are decoded only for those that are left and need it."""
    left = [op for op in operations if _all_hold(op, op.head_tests, exchange)]
    if not any(op.body_tests for op in left):
        return left
    return [op for op in left if not op.body_tests or _body_holds(op, exchange)]


def _all_hold(
    operation: Operation, tests: Sequence[tuple[Callable[[Exchange], object], str]], exchange: Exchange
) -> bool:
    for read, expect in tests:
        value = read(exchange)
        if expect == "present":
            if value is MISSING:
                return False
        elif expect == "absent":
            if value is not MISSING:
                return False
        elif value is MISSING or _text(value) != _expected(operation, expect, exchange):
            return False
    return True


def _body_holds(operation: Operation, exchange: Exchange) -> bool:
    exchange.decode(operation.plan.body)
    return _all_hold(operation, operation.body_tests, exchange)


def _expected(operation: Operation, expect: str, exchange: Exchange) -> str | None:
    if not expect.startswith("="):
        return expect
    return operation.path_value(expect[6:], exchange)  # "=path.NAME"


def _text(value: object) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, (str, int)) else None


def unique(operations: Sequence[Operation]) -> Operation:
    """The operation that beats all others. Raises InputError."""
    if len(operations) == 1:
        return operations[0]
    if not operations:
        raise InputError(Reason.UNKNOWN_OPERATION, "no operation of the surface map matches")
    for one in operations:
        if all(other is one or beats(one, other) for other in operations):
            return one
    known = ", ".join(sorted(op.name for op in operations))
    raise InputError(Reason.AMBIGUOUS_OPERATION, f"more than one operation matches: {known}")


def beats(one: Operation, two: Operation) -> bool:
    """Path first, then discriminators, then `prefer`; nothing else, and no order of files."""
    order = compare(one.template, two.template)
    if order is Order.MORE or order is Order.LESS:
        return order is Order.MORE
    if one.facts != two.facts:
        if one.facts > two.facts:
            return True
        if one.facts < two.facts:
            return False
    return two.name in one.prefer and one.name not in two.prefer
