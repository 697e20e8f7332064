"""JSON bytes become one value, or are refused: stricter than RFC 8259 allows readers to be.

The work is done by the C scanner of the standard library, fenced in: bounds are checked on the
bytes before it runs, and its hooks refuse what it would accept silently.

Invariants (tests/test_content_strictjson.py):
  J1  No record has two keys that are equal, or equal without regard to case, at any depth.
  J2  A number is never rounded: an integer is an int, anything else a Number with its lexeme.
  J3  Text is UTF-8 without a byte order mark, and no string holds a lone surrogate.
  J4  Nesting, the number of values and the digits of an integer are bounded before use.
"""

from __future__ import annotations

import json
from typing import Final, NoReturn

from ..errors import InputError, Reason

__all__ = ["JsonValue", "Number", "parse_json"]


class Number(str):
    """A JSON number with a fraction, an exponent or a negative zero, as it was written.

    Ask for it before asking for `str`: it is one.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"Number({str(self)!r})"


type JsonValue = bool | int | Number | str | list[JsonValue] | dict[str, JsonValue] | None

_MAX_INT_DIGITS: Final = 40
_MAX_NUMBER_CHARS: Final = 1000
# Both kinds of bracket become one kind, commas and quotes stay, everything else goes.
_TO_ROUND: Final = bytes.maketrans(b"[]{}", b"()()")
_NOT_STRUCTURE: Final = bytes(set(range(256)) - set(b'[]{},"'))


def parse_json(data: bytes, *, max_depth: int = 32, max_nodes: int = 100_000) -> JsonValue:
    """Return the one reading of `data`. Raises InputError."""
    opening = data.count(b"[") + data.count(b"{")
    # Both counts are too high where strings hold brackets or commas, never too low.
    if opening > max_depth or (len(data) > max_nodes and opening + data.count(b",") >= max_nodes):
        _check_structure(data, max_depth, max_nodes)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(Reason.BAD_BODY, "JSON is not UTF-8") from None
    if text.startswith("\ufeff"):
        raise InputError(Reason.BAD_BODY, "JSON starts with a byte order mark")
    try:
        value: JsonValue = _DECODER.decode(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(Reason.BAD_BODY, f"not JSON: {error}") from None
    # Raw surrogates are no UTF-8; only escapes can make one.
    if b"\\u" in data:
        _check_surrogates(value)
    return value


def _check_structure(data: bytes, max_depth: int, max_nodes: int) -> None:
    """Bound depth and values of what may not be JSON at all; the scanner judges the rest."""
    if b"\\" in data:
        # First escaped backslashes, then escaped quotes: what is left of quotes delimits strings.
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    # Two quotes with no structure between them are an empty string or join two strings: either
    # way nothing changes sides. Every second part of the rest is outside of strings.
    shape = data.translate(_TO_ROUND, _NOT_STRUCTURE).replace(b'""', b"")
    if b'"' in shape:
        shape = b"".join(shape.split(b'"')[::2])
    if shape.count(b"(") + shape.count(b",") >= max_nodes:
        raise InputError(Reason.TOO_LARGE, f"JSON has more than {max_nodes} values")
    shape = shape.replace(b",", b"")
    # Each pass removes exactly the innermost level: bytes.replace does not look back.
    for _ in range(max_depth):
        if not shape:
            return
        shape = shape.replace(b"()", b"")
    if shape:
        raise InputError(Reason.BAD_BODY, f"JSON nests deeper than {max_depth}, or brackets do not match")


def _check_surrogates(value: JsonValue) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (UnicodeEncodeError, RecursionError):
        raise InputError(Reason.BAD_BODY, "JSON has a lone surrogate") from None


def _record(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    record = dict(pairs)
    count = len(pairs)
    # Go's encoding/json, for one, takes {"Amount": ...} for "amount", and the last one wins.
    if count > 1 and len({key.casefold() for key in record}) != count:
        raise InputError(Reason.DUPLICATE_PARAMETER, "a JSON record has a key twice (letter case ignored)")
    return record


def _integer(lexeme: str) -> int | Number:
    if len(lexeme) > _MAX_INT_DIGITS and len(lexeme.lstrip("-")) > _MAX_INT_DIGITS:
        raise InputError(Reason.BAD_BODY, f"a JSON integer has more than {_MAX_INT_DIGITS} digits")
    return Number(lexeme) if lexeme == "-0" else int(lexeme)


def _number(lexeme: str) -> Number:
    if len(lexeme) > _MAX_NUMBER_CHARS:
        raise InputError(Reason.BAD_BODY, f"a JSON number has more than {_MAX_NUMBER_CHARS} characters")
    return Number(lexeme)


def _constant(name: str) -> NoReturn:
    raise InputError(Reason.BAD_BODY, f"{name} is not JSON")


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_record, parse_int=_integer, parse_float=_number, parse_constant=_constant
)
