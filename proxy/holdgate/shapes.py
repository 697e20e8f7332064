"""Shapes of JSON values: is this value one that a receipt may have in this place?

    table (name -> shape) -> Record; Record(value) -> true, or not: false, or a TypeError

An audit comes here a million times, and receipts differ in values, hardly in which fields they have. So what
depends on names alone is worked out once for each list of names, and texts are matched together.

Invariants (tests/test_statement.py has one test named after each):
  SH1  A shape takes no value that is outside the receipts' profile of jcs.py.
  SH2  What is remembered of names, and matching texts together, changes no verdict; it is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from operator import itemgetter
from typing import Any, Final

from .errors import HoldgateError
from .jcs import SAFE_INT, is_receipt_name

__all__ = [
    "PLANS",
    "Record",
    "Shape",
    "ShapeError",
    "Text",
    "has",
    "is_bool",
    "is_count",
    "is_params",
    "list_of",
    "one_of",
]

type Shape = Callable[[Any], object]  # true for what has it; not so: false, or a TypeError

PLANS: Final = 512  # lists of names that are remembered, of each kind


class ShapeError(HoldgateError):
    """Not the names that objects of this kind have."""


@dataclass(frozen=True, slots=True)
class Text:
    """A string that a pattern matches whole. No pattern takes a NUL: see _Plan."""

    pattern: str
    matches: Callable[[str], object] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "matches", re.compile(self.pattern).fullmatch)

    def __call__(self, value: Any) -> object:
        return self.matches(value)


def is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= SAFE_INT


def one_of(*values: str) -> Shape:
    return frozenset(map(str, values)).__contains__


def list_of(shape: Shape) -> Shape:
    return lambda value: isinstance(value, list) and value and all(map(shape, value))


class _Plan:
    """How objects with just these names are checked: all their texts in one match, then the rest.

    The texts are joined with NUL, which none of their patterns takes, so the whole matches exactly where each
    of them does.
    """

    __slots__ = ("_matches", "_others", "_texts")

    def __init__(self, shapes: Sequence[tuple[str, Shape]]) -> None:
        texts = [(name, shape) for name, shape in shapes if isinstance(shape, Text)]
        if len(texts) < 2:  # nothing to join, and itemgetter() of one name gives no tuple
            texts = []
        self._texts = itemgetter(*(name for name, _ in texts)) if texts else None
        self._matches = re.compile("\0".join(f"(?:{shape.pattern})" for _, shape in texts)).fullmatch
        self._others = tuple(each for each in shapes if each not in texts)

    def accepts(self, value: Mapping[str, Any]) -> bool:
        """Raises TypeError where a value is of another type than its shape is for."""
        for name, shape in self._others:
            if not shape(value[name]):
                return False
        return self._texts is None or self._matches("\0".join(self._texts(value))) is not None


class Record:
    """An object with some names that must be there, and some that may."""

    def __init__(self, required: Mapping[str, Shape], optional: Mapping[str, Shape] | None = None) -> None:
        self._required = required.keys()
        self._shapes = {**required, **(optional or {})}
        self.plan = lru_cache(maxsize=PLANS)(self._plan)

    def _plan(self, names: tuple[str, ...]) -> _Plan:
        """Raises ShapeError where objects with these names are none of this kind."""
        if missing := self._required - set(names):
            raise ShapeError(f"the field {min(missing)} is missing")
        for name in names:
            if name not in self._shapes:
                raise ShapeError(f"the field {name} is not known")
        return _Plan([(name, self._shapes[name]) for name in names])

    def __call__(self, value: Any) -> bool:
        if not isinstance(value, dict):
            return False
        try:
            return self.plan(tuple(value)).accepts(value)
        except ShapeError:
            return False

    def wrong(self, value: Mapping[str, Any]) -> str:
        """The name of what does not have its shape; "" where all have."""
        return next((name for name, item in value.items() if not has(self._shapes[name], item)), "")


def has(shape: Shape, value: Any) -> bool:
    try:
        return bool(shape(value))
    except TypeError:
        return False


def is_params(value: Any) -> bool:
    """Scalars and flat lists of them, as canonical JSON of receipts has them."""
    if not isinstance(value, dict) or not _are_names(tuple(value)):
        return False
    for item in value.values():
        if type(item) is not str:
            for each in item if type(item) is list else (item,):
                kind = type(each)
                if kind is not str and kind is not bool and (kind is not int or abs(each) > SAFE_INT):
                    return False
    return True


@lru_cache(maxsize=PLANS)
def _are_names(names: tuple[str, ...]) -> bool:
    return all(map(is_receipt_name, names))
