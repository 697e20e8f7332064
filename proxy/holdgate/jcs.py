"""Canonical JSON (RFC 8785) of a safe subset: a value becomes exactly one byte string, and back.

Two profiles. *Receipts*: object keys `[a-z0-9_]+`, integers up to 2^53-1, because other people's
JSON readers must see the same numbers. *Inputs* (recorded decision inputs): any key without
surrogates below U+10000, int64 integers, because only our own gate reads them again.
Neither has floats, null or lone surrogates. On this subset orjson's sorted output is byte for byte
RFC 8785 (tested against an independent encoder), at a tenth of the standard library's cost.

Invariants (tests/test_jcs.py has one test named after each):
  J1  dumps() is RFC 8785 on everything that it accepts.
  J2  What could read differently elsewhere is refused: floats, null, big integers, odd keys, surrogates.
  J3  loads_strict() accepts a byte string only if dumps() of its value gives those bytes again.
  J4  loads_sorted() accepts what loads_strict() accepts; beyond it, only values that dumps() refuses.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import orjson

from .errors import HoldgateError

__all__ = [
    "SAFE_INT",
    "JcsError",
    "dumps",
    "dumps_input",
    "is_receipt_name",
    "loads_accepted",
    "loads_input_strict",
    "loads_sorted",
    "loads_strict",
]

SAFE_INT: Final = 2**53 - 1
_INT64_MIN: Final = -(2**63)
_INT64_MAX: Final = 2**63 - 1
_NAMES: Final = 1024  # objects have the same few sets of names over and over: which passed is remembered
_RECEIPT_KEY: Final = re.compile(r"[a-z0-9_]+\Z").match
# UTF-16 order (RFC 8785) and code point order (Python) agree as long as no key has an astral character.
_INPUT_KEY: Final = re.compile("[\u0000-\ud7ff\ue000-\uffff]*\\Z").match


type _AreNames = Callable[[tuple[object, ...]], bool]


class JcsError(HoldgateError):
    """The value or the bytes are outside the safe subset."""


def dumps(value: object) -> bytes:
    """The canonical bytes of a receipt's value. Raises JcsError."""
    return _dumps(value, _are_receipt_names, -SAFE_INT, SAFE_INT)


def dumps_input(value: object) -> bytes:
    """The canonical bytes of a decision input: wider keys, int64. Raises JcsError."""
    return _dumps(value, _are_input_names, _INT64_MIN, _INT64_MAX)


def loads_strict(data: bytes) -> Any:
    """The value of canonical receipt bytes. Raises JcsError for any other spelling of it."""
    value = _loads(data)
    if dumps(value) != data:
        raise JcsError("not canonical JSON")
    return value


def loads_sorted(data: bytes) -> Any:
    """The value of the one spelling that sorted names and no white space give. Raises JcsError.

    For a caller that checks every part of the value against shapes that lie in the profile: what passes
    both is what loads_strict() accepts, without a walk of its own.
    """
    value = _loads(data)
    try:
        spelled = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError as error:
        raise JcsError(f"no canonical form (nested too deeply): {error}") from error
    if spelled != data:
        raise JcsError("not canonical JSON")
    return value


def is_receipt_name(name: str) -> bool:
    """Whether an object of the receipts' profile may have this key."""
    return _are_receipt_names((name,))


@lru_cache(maxsize=_NAMES)
def _are_receipt_names(names: tuple[object, ...]) -> bool:
    return all(isinstance(name, str) and _RECEIPT_KEY(name) for name in names)


@lru_cache(maxsize=_NAMES)
def _are_input_names(names: tuple[object, ...]) -> bool:
    return all(isinstance(name, str) and _INPUT_KEY(name) for name in names)


def loads_accepted(data: bytes) -> Any:
    """The value of bytes that loads_strict() accepted before; nothing is looked at again."""
    return _loads(data)


def loads_input_strict(data: bytes) -> Any:
    """The value of a canonical decision input. Raises JcsError for any other spelling of it."""
    value = _loads(data)
    if dumps_input(value) != data:
        raise JcsError("not canonical JSON")
    return value


def _dumps(value: object, are_names: _AreNames, low: int, high: int) -> bytes:
    try:
        _check(value, are_names, low, high)
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError as error:
        raise JcsError(f"no canonical form (a lone surrogate, or nested too deeply): {error}") from error
    except RecursionError as error:
        raise JcsError("nested too deeply") from error


def _check(value: object, are_names: _AreNames, low: int, high: int) -> None:
    # The encoder itself would take floats, null and any key, so the walk comes first.
    kind = type(value)
    if kind is bool or kind is str:
        return
    if kind is dict:
        if not are_names(tuple(value)):  # type: ignore[arg-type]  # dict by the line above
            key = next(key for key in value if not are_names((key,)))  # type: ignore[attr-defined]
            raise JcsError(f"object key {key!r} is not allowed")
        for item in value.values():  # type: ignore[attr-defined]
            inner = type(item)
            if inner is not str and not (inner is int and low <= item <= high):
                _check(item, are_names, low, high)
    elif kind is list or kind is tuple:
        for item in value:  # type: ignore[attr-defined]
            if type(item) is not str:
                _check(item, are_names, low, high)
    elif isinstance(value, int):
        if not low <= value <= high:
            raise JcsError("an integer is out of range")
    elif not isinstance(value, str):  # StrEnum members pass here
        raise JcsError(f"{kind.__name__} has no canonical form")


def _loads(data: bytes) -> Any:
    # Floats, null, big integers and repeated keys pass here; the comparison with dumps() refuses them.
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise JcsError("not JSON") from error
