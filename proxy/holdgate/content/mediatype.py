"""A Content-Type value becomes (essence, parameters), or is refused.

RFC 9110 8.3.1 without its leniencies: no empty parameters, no parameter twice, no backslash
escapes inside quotes, no `*` in a name (readers disagree about each of them: with RFC 2231,
`charset*=utf-16''x` and `charset*0=` are a charset, without it they are unknown names).

Invariants (tests/test_content_mediatype.py):
  MT1  No parameter occurs twice, in any notation, and every name is in lower case.
  MT2  A charset is UTF-8 or absent, or the bytes are ASCII: no other reading of them is possible.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from ..errors import InputError, Reason

__all__ = ["check_charset", "parse_media_type"]

type Params = tuple[tuple[str, str], ...]

_TCHARS: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_ESSENCE: Final = re.compile(f"{_TCHARS}/{_TCHARS}")
_PARAM: Final = re.compile(rf'[ \t]*;[ \t]*({_TCHARS})=(?:({_TCHARS})|"([^"\\\x00-\x1f\x7f]*)")')
# `utf8` is what Java and Python programs write; every reader of it means UTF-8 (WHATWG Encoding 4.2).
_UTF8: Final = frozenset({"utf-8", "utf8"})
# These agree with UTF-8 on ASCII and on nothing else. ISO-8859-1 is Apache HttpClient's default for text.
_ASCII: Final = frozenset({"us-ascii", "iso-8859-1"})
_HIGH_ESCAPE: Final = re.compile(rb"%[89A-Fa-f]")
_MAX_CHARS: Final = 512


@lru_cache(maxsize=512)
def parse_media_type(value: str) -> tuple[str, Params]:
    """Return lower-case `type/subtype` and the parameters in order. Raises InputError."""
    # The bound also keeps what the cache holds small: refused values are never cached.
    essence = _ESSENCE.match(value) if len(value) <= _MAX_CHARS else None
    if essence is None:
        raise InputError(Reason.MALFORMED_REQUEST, "Content-Type is not a media type")
    params: dict[str, str] = {}
    position = essence.end()
    while position < len(value):
        param = _PARAM.match(value, position)
        if param is None:
            raise InputError(Reason.MALFORMED_REQUEST, "Content-Type has a malformed parameter")
        name = param[1].lower()
        if "*" in name:
            # To Django, for one, `boundary*=` and `charset*0=` replace `boundary=` and `charset=`.
            raise InputError(Reason.MALFORMED_REQUEST, "Content-Type has a parameter in RFC 2231 form")
        if name in params:
            raise InputError(Reason.MALFORMED_REQUEST, f"Content-Type names {name!r} twice")
        params[name] = param[2] if param[2] is not None else param[3]
        position = param.end()
    charset = params.get("charset")
    if charset is not None and charset.lower() not in _UTF8 | _ASCII:
        raise InputError(Reason.UNSUPPORTED_CONTENT, f"charset {charset!r} is not UTF-8")
    return essence[0].lower(), tuple(params.items())


def check_charset(params: Params, data: bytes) -> None:
    """Raises InputError where `data` would be read differently under its charset than as UTF-8."""
    charset = dict(params).get("charset", "").lower()
    # A form's escapes are read in the charset too: `%E9` is one character here and another there.
    if charset in _ASCII and not (data.isascii() and _HIGH_ESCAPE.search(data) is None):
        raise InputError(Reason.UNSUPPORTED_CONTENT, f"charset {charset} over bytes that are not ASCII")
