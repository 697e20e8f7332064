"""For each type that a parameter can have, the test that a value really is of it.

`type(x) is` and not isinstance: True is no integer here, and no subclass can bring its own `==`.

Invariants (tests/test_gate_input.py):
  N2  A value that passes is inside the bounds of cel-strict/1: int64, 64 Ki characters, 1000 items.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Any, Final

from .cel.model import INT_MAX, INT_MIN, MAX_LIST, MAX_STRING
from .surface.model import CelType

__all__ = ["MAX_LIST", "MAX_STRING", "ValueTest", "is_int", "is_string", "is_strings", "type_test"]

type ValueTest = Callable[[Any], bool]


def is_int(value: Any) -> bool:
    return type(value) is int and INT_MIN <= value <= INT_MAX


def is_string(value: Any) -> bool:
    if type(value) is not str or len(value) > MAX_STRING:
        return False
    # Half a surrogate pair is not a character: it could not be written into the record.
    return value.isascii() or not any("\ud800" <= char <= "\udfff" for char in value)


def is_bool(value: Any) -> bool:
    return type(value) is bool


def is_strings(value: Any) -> bool:
    return type(value) is list and len(value) <= MAX_LIST and all(map(is_string, value))


def is_ints(value: Any) -> bool:
    return type(value) is list and len(value) <= MAX_LIST and all(map(is_int, value))


_TESTS: Final = MappingProxyType(
    {
        CelType.INT: is_int,
        CelType.STRING: is_string,
        CelType.BOOL: is_bool,
        CelType.LIST_STRING: is_strings,
        CelType.LIST_INT: is_ints,
    }
)


def type_test(kind: CelType) -> ValueTest:
    return _TESTS[kind]
