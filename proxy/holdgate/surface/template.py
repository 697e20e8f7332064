"""Path templates: literal, `pre{var}post` and `{var}` segments, and a last `{var+}` for the rest.

Templates are compared segment by segment: literal > affix > variable > rest. Two templates can also
be incomparable; then match.py needs another reason to prefer one.

Invariants (tests/test_surface_match.py):
  SM9  A variable is never empty and, but for `{var+}`, is exactly one segment.
  SM10  compare() is antisymmetric, and greater only when at least as specific in every segment.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum
from functools import lru_cache
from typing import Final, NamedTuple

__all__ = [
    "LITERAL",
    "REST",
    "VARIABLE",
    "Order",
    "Segment",
    "Template",
    "compare",
    "overlap",
    "parse_template",
]

REST: Final = 0
VARIABLE: Final = 1
AFFIX: Final = 2
LITERAL: Final = 3

_PART: Final = re.compile(r"([^{}]*)\{([a-z_A-Z][A-Za-z0-9_]*)(\+?)\}([^{}]*)\Z")


class Segment(NamedTuple):
    rank: int
    prefix: str  # of an affix; the text of a literal
    suffix: str
    variable: str  # "" for a literal


type Template = tuple[Segment, ...]


class Order(Enum):
    MORE = 1  # the left one is more specific
    EQUAL = 0
    LESS = -1
    NONE = None  # neither


def parse_template(path: str) -> Template:
    """Read `/customers/{id}`. Raises ValueError that says what is wrong."""
    parts = path[1:].split("/")
    found: list[Segment] = []
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        if "{" not in part and "}" not in part:
            if not last and not part:
                raise ValueError(f"path {path!r} has an empty segment")
            found.append(_literal(part))
            continue
        match = _PART.match(part)
        if match is None:
            raise ValueError(f"path {path!r}: one variable in a segment, written {{name}} or {{name+}}")
        prefix, name, rest, suffix = match.groups()
        if rest and (not last or prefix or suffix):
            raise ValueError(f"path {path!r}: {{{name}+}} must be the whole last segment")
        rank = REST if rest else AFFIX if prefix or suffix else VARIABLE
        found.append(Segment(rank, prefix, suffix, name))
    if "{" in path:
        variables = [segment.variable for segment in found if segment.variable]
        if len(set(variables)) != len(variables):
            raise ValueError(f"path {path!r}: a variable occurs twice")
    return tuple(found)


@lru_cache(maxsize=65_536)  # parts come from maps, never from requests; the same ones come often
def _literal(part: str) -> Segment:
    if part in (".", ".."):
        raise ValueError(f"path segment {part!r} is a dot segment")
    return Segment(LITERAL, part, "", "")


def compare(left: Template, right: Template) -> Order:
    """Which of two templates that can match one path is more specific."""
    more = less = False
    for index in range(max(len(left), len(right))):
        order = _compare_segment(_at(left, index), _at(right, index))
        if order is Order.NONE:
            return Order.NONE
        more = more or order is Order.MORE
        less = less or order is Order.LESS
    if more and less:
        return Order.NONE
    return Order.MORE if more else Order.LESS if less else Order.EQUAL


def _at(template: Template, index: int) -> Segment:
    # `{rest+}` stands for every further segment.
    return template[index] if index < len(template) else template[-1]


def _compare_segment(left: Segment, right: Segment) -> Order:
    if left.rank != right.rank:
        return Order.MORE if left.rank > right.rank else Order.LESS
    if left.rank != AFFIX or (left.prefix, left.suffix) == (right.prefix, right.suffix):
        return Order.EQUAL
    if left.prefix.startswith(right.prefix) and left.suffix.endswith(right.suffix):
        return Order.MORE
    if right.prefix.startswith(left.prefix) and right.suffix.endswith(left.suffix):
        return Order.LESS
    return Order.NONE


def overlap(left: Template, right: Template) -> bool:
    """Whether some path matches both."""
    for one, two in zip(left, right, strict=False):
        if one.rank == REST or two.rank == REST:
            # One non-empty segment more is enough for the rest, and a lone "" is not.
            return _fills_rest(left, right) and _fills_rest(right, left)
        if not _overlap_segment(one, two):
            return False
    return len(left) == len(right)


def _fills_rest(template: Template, other: Template) -> bool:
    """`template` can supply what the `{rest+}` of `other`, if it has one, needs."""
    if other[-1].rank != REST or template[-1].rank == REST:
        return True
    tail: Iterable[Segment] = template[len(other) - 1 :]
    return any(segment != Segment(LITERAL, "", "", "") for segment in tail)


def _overlap_segment(one: Segment, two: Segment) -> bool:
    if one.rank == LITERAL and two.rank == LITERAL:
        return one.prefix == two.prefix
    if one.rank == LITERAL or two.rank == LITERAL:
        text, segment = (one.prefix, two) if one.rank == LITERAL else (two.prefix, one)
        return fits(text, segment.prefix, segment.suffix)
    prefixes = one.prefix.startswith(two.prefix) or two.prefix.startswith(one.prefix)
    return prefixes and (one.suffix.endswith(two.suffix) or two.suffix.endswith(one.suffix))


def fits(text: str, prefix: str, suffix: str) -> bool:
    """`text` is prefix, at least one character, suffix."""
    return len(text) > len(prefix) + len(suffix) and text.startswith(prefix) and text.endswith(suffix)
