"""Pairs of operations of one map that some request would match without a winner: found at compile time.

Operations of different maps on one host may overlap; a request that both match is
ambiguous_operation when it comes.

Invariant (tests/test_surface_match.py):
  SM25  A pair that no request could tell apart is a ConfigError, unless `prefer` decides it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from ..errors import ConfigError
from .match import beats
from .plan import MapRuntime, Operation
from .template import LITERAL, Template, overlap

__all__ = ["check_overlaps"]

_SMALL: Final = 16

type _Row = tuple[Operation, Template]


def check_overlaps(one_map: MapRuntime) -> None:
    """Raises ConfigError on the first pair, in the order of the file."""
    operations = one_map.operations()
    _check_prefer(one_map, operations)
    for group in _groups(operations):
        for index, two in enumerate(group):
            for one in group[:index]:
                _check_pair(one, two)


def _check_prefer(one_map: MapRuntime, operations: list[Operation]) -> None:
    known = set(one_map.ids)
    for operation in operations:
        for name in operation.spec.prefer:
            if name not in known and "." not in name:
                raise operation.fail(f"prefer names {name!r}, which is not an operation of this map")


def _groups(operations: list[Operation]) -> Iterator[list[Operation]]:
    """Operations that could match one request: same target, or paths alike as far as they are literal."""
    by_target: dict[str, list[Operation]] = defaultdict(list)
    paths: list[_Row] = []
    for operation in operations:
        if operation.spec.target is not None:
            by_target[operation.spec.target].append(operation)
        else:
            paths.extend((operation, template) for template in operation.templates)
    yield from by_target.values()
    for rows in _split(paths, 0):
        yield [operation for operation, _ in rows]


def _split(rows: list[_Row], index: int) -> Iterator[list[_Row]]:
    """Smaller lists such that every pair that can overlap is in one of them."""
    if len(rows) <= _SMALL or all(index >= len(template) for _, template in rows):
        yield rows
        return
    literal: dict[str, list[_Row]] = defaultdict(list)
    loose: list[_Row] = []
    for row in rows:
        segment = row[1][index] if index < len(row[1]) else None
        if segment is not None and segment.rank == LITERAL:
            literal[segment.prefix].append(row)
        else:
            loose.append(row)
    for group in literal.values():
        yield from _split(loose + group, index + 1)
    if not literal:
        yield from _split(loose, index + 1)


def _check_pair(one: Operation, two: Operation) -> None:
    if one is two or not set(one.spec.methods) & set(two.spec.methods):
        return
    if one.facts != two.facts or not _paths_overlap(one.templates, two.templates):
        # Different discriminators: a request that satisfies both is refused when it comes.
        return
    if beats(one, two) or beats(two, one):
        return
    if not (_assigned(one) or _assigned(two)):
        return  # refused either way
    raise ConfigError(
        f"operations {one.spec.id!r} (line {one.spec.line}) and {two.spec.id!r} match the same requests and"
        f" neither is more specific: add a discriminator, or `prefer: [{one.spec.id}]` on the one that wins",
        file=two.map.head.file,
        line=two.spec.line,
    )


def _assigned(operation: Operation) -> bool:
    return operation.spec.surface is not None or operation.spec.explode is not None


def _paths_overlap(left: tuple[Template, ...], right: tuple[Template, ...]) -> bool:
    return any(overlap(one, two) for one in left for two in right)
