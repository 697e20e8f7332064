"""Parameter types: a decoded value becomes exactly one int, str, bool or tuple, or is refused.

Vendors read `"100"`, `100.0`, `1e2` and `100` in different ways, so each type has one spelling.
`textual` says that the source can only hold text (form, query, header, path, XML): then, and only
then, numbers and booleans are read from text.

Invariants (tests/test_surface_types.py):
  SM4  A converter returns a value of its CelType or raises TypeMismatch; nothing is rounded or guessed.
  SM5  Integers are int64, decimals are scaled exactly; more digits than declared are refused.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from json.encoder import encode_basestring
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from ..content.strictjson import Number
from .model import CelType, Value

__all__ = [
    "INT64",
    "JSON_SAFE",
    "TYPES",
    "Converter",
    "TypeMismatch",
    "canonical_json",
    "cel_type",
    "converter",
    "sha256_text",
]

INT64: Final = (1 << 63) - 1
JSON_SAFE: Final = (1 << 53) - 1  # larger integers lose digits in JSON readers (RFC 7493)

type Converter = Callable[[Any, bool], Value]


class TypeMismatch(ValueError):
    """The value does not have the declared type. The text never contains the value."""


_INTEGER: Final = re.compile(r"(?:0|-?[1-9][0-9]{0,18})\Z")
_DECIMAL: Final = re.compile(r"(-?)(0|[1-9][0-9]{0,18})(?:\.([0-9]{1,18}))?\Z")
_CURRENCY: Final = re.compile(r"[A-Za-z]{3}\Z")
_ARN: Final = re.compile(r"arn:[a-z0-9-]+:[a-z0-9-]*:[a-z0-9-]*:[0-9a-z-]*:[\x21-\x7e]+\Z")
_REFERENCE: Final = re.compile(r"[\x21-\x7e]{1,512}\Z")
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_CODE: Final = re.compile(r"[\x21-\x7e]+(?: [\x21-\x7e]+)*\Z")
# Behind the host a path, a query, a fragment or nothing: no user, no backslash that some read as a slash.
_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*+):(?://([A-Za-z0-9.-]+(?::[0-9]+)?)(?![^/?#])|(?!//))")
_ALWAYS_HOSTED: Final = frozenset({"http", "https", "ws", "wss", "ftp", "file"})
# One address: `local@domain`, alone or in angle brackets after a display name. Comments, groups,
# routes and quoted local parts are refused: two mailers read them differently. So are line ends, and
# letters beyond ASCII in an address: the lower case of some is an ASCII letter, of another mailbox.
_SPEC: Final = r"([!#-'*+\-./0-9=?A-Z\[\]^-~]+@[A-Za-z0-9.-]+)"
_ADDRESS: Final = re.compile(rf'(?:"[^"\\\r\n]*+"|[^"<>@,:;()\\\r\n]*+)[ \t]*+<{_SPEC}>|{_SPEC}')


def canonical_json(value: Any) -> str:
    """Sorted keys, no white space, numbers as they were written, no escape that JSON does not demand."""
    # Not json.dumps: it would quote a Number, and then 1.0 and "1.0" would have one digest.
    kind = type(value)
    if kind is str:
        return encode_basestring(value)
    if kind is dict:
        rows = [f"{encode_basestring(key)}:{canonical_json(value[key])}" for key in sorted(value)]
        return "{" + ",".join(rows) + "}"
    if kind is list:
        return "[" + ",".join([canonical_json(item) for item in value]) + "]"
    if kind is int or kind is Number:
        return str(value)
    if kind is bool:
        return "true" if value else "false"
    if value is None:
        return "null"
    raise TypeError(f"{kind.__name__} is no JSON value")


def sha256_text(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode("utf-8")).hexdigest()


def _int(value: Any, textual: bool) -> int:
    if type(value) is int:
        number = value
    elif textual and type(value) is str and _INTEGER.match(value):
        number = int(value)
    else:
        raise TypeMismatch("an integer is expected")
    if not -INT64 - 1 <= number <= INT64:
        raise TypeMismatch("the integer does not fit in 64 bits")
    return number


def _decimal(scale: int) -> Converter:
    def convert(value: Any, textual: bool) -> int:
        if type(value) not in (int, str, Number):
            raise TypeMismatch("a decimal number is expected")
        found = _DECIMAL.match(str(value))
        if found is None:
            raise TypeMismatch("a decimal number without exponent is expected")
        sign, whole, fraction = found[1], found[2], found[3] or ""
        if len(fraction) > scale:
            raise TypeMismatch(f"at most {scale} digits after the point are expected")
        number = int(whole + fraction.ljust(scale, "0"))
        if sign and number == 0:
            raise TypeMismatch("negative zero")
        if number > INT64:
            raise TypeMismatch("the scaled number does not fit in 64 bits")
        return -number if sign else number

    return convert


def _string(value: Any, textual: bool) -> str:
    # NUL ends a text for readers written in C; forms, paths and headers with one are refused before.
    if type(value) is not str or "\0" in value:
        raise TypeMismatch("a string without NUL is expected")
    return value


def _bool(value: Any, textual: bool) -> bool:
    if type(value) is bool:
        return value
    if textual and type(value) is str and value in ("true", "false"):
        return value == "true"
    raise TypeMismatch("true or false is expected")


def _currency(value: Any, textual: bool) -> str:
    if type(value) is not str or not _CURRENCY.match(value):
        raise TypeMismatch("three letters are expected")
    return value.lower()


def _list_string(value: Any, textual: bool) -> tuple[str, ...]:
    if type(value) is not list:
        raise TypeMismatch("a list of strings is expected")
    return tuple([_string(item, textual) for item in value])


def _list_int(value: Any, textual: bool) -> tuple[int, ...]:
    if type(value) is not list:
        raise TypeMismatch("a list of integers is expected")
    return tuple([_int(item, textual) for item in value])


def _urlencoded(value: Any, textual: bool) -> str:
    if type(value) is not str or _BAD_ESCAPE.search(value):
        raise TypeMismatch("percent-encoded text is expected")
    try:
        return _string(unquote_to_bytes(value).decode("utf-8"), textual)
    except UnicodeDecodeError:
        raise TypeMismatch("percent-encoded UTF-8 is expected") from None


def _address_list(value: Any, textual: bool) -> tuple[str, ...]:
    if type(value) is str:
        value = _split_addresses(value)
    if type(value) is not list or not value:
        raise TypeMismatch("mail addresses are expected")
    out = []
    for item in value:
        found = _ADDRESS.fullmatch(item.strip(" \t")) if type(item) is str else None
        if found is None:
            raise TypeMismatch("a mail address has a form that mailers read differently")
        out.append((found[1] or found[2]).lower())
    return tuple(out)


def _split_addresses(text: str) -> list[str]:
    """Split at commas outside quotes; the address grammar then refuses what is left over."""
    parts, start, quoted = [], 0, False
    for index, char in enumerate(text):
        if char == '"':
            quoted = not quoted
        elif char == "," and not quoted:
            parts.append(text[start:index])
            start = index + 1
    parts.append(text[start:])
    return parts


def _matching(pattern: re.Pattern[str], what: str) -> Converter:
    def convert(value: Any, textual: bool) -> str:
        if type(value) is not str or not pattern.match(value):
            raise TypeMismatch(f"{what} is expected")
        return value

    return convert


def _json(value: Any, textual: bool) -> str:
    return canonical_json(value)


def _origins(value: Any, textual: bool) -> tuple[str, ...]:
    """Where URLs lead, each place once: `https://a.example:8443`, `data:`. A record is its `url`."""
    found: dict[str, None] = {}
    for item in value if type(value) is list else [value]:
        url = item.get("url") if type(item) is dict else item
        if url is not None or type(item) is dict:
            found[_origin(url)] = None
    return tuple(found)


def _origin(url: Any) -> str:
    parts = _URL.match(url) if type(url) is str else None
    if parts is None:
        raise TypeMismatch("a URL is expected, or a record with one as its `url`")
    scheme, host = parts[1].lower(), parts[2]
    if host is not None:
        return f"{scheme}://{host.lower()}"
    if scheme in _ALWAYS_HOSTED:  # browsers and their like read `https:/a.example` as a host too
        raise TypeMismatch("a URL has another form than scheme://host/path")
    return f"{scheme}:"


def _digest_list(value: Any, textual: bool) -> tuple[str, ...]:
    items = value if type(value) is list else [value]
    out = []
    for item in items:
        if type(item) is str:
            out.append(sha256_text(item))
        elif type(item) is dict and type(item.get("sha256")) is str:  # a file part of a multipart body
            out.append("sha256:" + item["sha256"])
        else:
            raise TypeMismatch("texts or files are expected")
    return tuple(out)


_FIXED: Final[dict[str, tuple[CelType, Converter]]] = {
    "int": (CelType.INT, _int),
    "minor_units": (CelType.INT, _int),
    "currency": (CelType.STRING, _currency),
    "string": (CelType.STRING, _string),
    "bool": (CelType.BOOL, _bool),
    "list<string>": (CelType.LIST_STRING, _list_string),
    "list<int>": (CelType.LIST_INT, _list_int),
    "urlencoded": (CelType.STRING, _urlencoded),
    "address_list": (CelType.LIST_STRING, _address_list),
    "arn": (CelType.STRING, _matching(_ARN, "an ARN")),
    "reference": (CelType.STRING, _matching(_REFERENCE, "a reference without white space")),
    "json": (CelType.STRING, _json),
    "digest_list": (CelType.LIST_STRING, _digest_list),
    "origins": (CelType.LIST_STRING, _origins),
    "code": (CelType.STRING, _matching(_CODE, "a code without white space around it")),
}
_SCALED: Final = re.compile(r"decimal\(([0-9]|1[0-8])\)\Z")

TYPES: Final = (*_FIXED, "decimal(n)")


def _row(name: str) -> tuple[CelType, Converter]:
    row = _FIXED.get(name)
    if row is not None:
        return row
    scaled = _SCALED.match(name)
    if scaled is None:
        raise ValueError(f"type {name!r} is not one of: {', '.join(TYPES)}")
    return CelType.INT, _decimal(int(scaled[1]))


def cel_type(name: str) -> CelType:
    """The cel-strict/1 type of a parameter type. Raises ValueError on an unknown one."""
    return _row(name)[0]


def converter(name: str) -> Converter:
    """The function that reads a decoded value as this type. Raises ValueError on an unknown type."""
    return _row(name)[1]
