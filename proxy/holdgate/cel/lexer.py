"""Source text of one expression becomes tokens, or a CelError that names what is not supported.

CEL's tokens, fewer of them. What CEL has and cel-strict/1 leaves out (floats, bytes, comments ...)
is recognised here, so that the message says so instead of "syntax error".

Invariants (tests/test_cel_lexer.py):
  X1  tokens() returns tokens that cover the source but for white space, or raises CelError.
  X2  A string token's value is what CEL reads from the same literal.
"""

from __future__ import annotations

import re
import unicodedata
from enum import StrEnum
from functools import partial
from itertools import accumulate
from operator import itemgetter, sub
from typing import Final, NamedTuple

from ..yamltext import TYPOGRAPHIC_QUOTES, character
from .foreign import ALIKE, SIGNS
from .model import INT_MAX, MAX_SOURCE, CelError

__all__ = ["RESERVED", "Token", "TokenKind", "tokens", "unexpected"]


class TokenKind(StrEnum):
    INT = "integer"
    STRING = "string"
    NAME = "name"
    OP = "operator"
    END = "end of expression"


class Token(NamedTuple):
    kind: TokenKind
    text: str  # of a STRING: the value, escapes resolved
    start: int
    end: int


# Words that CEL keeps for itself; `in`, `true` and `false` are handled by the parser.
RESERVED: Final = frozenset(
    (
        "as break const continue else for function if import let loop "
        "namespace null package return var void while"
    ).split()
)

_TOKEN: Final = re.compile(
    r"""
    [ \t\n\r]*
    (?:
      (?P<comment>//)
    | (?P<float>[0-9]+(?:\.[0-9]+(?:[eE][+-]?[0-9]+)?|[eE][+-]?[0-9]+)|\.[0-9]+)
    | (?P<hex>0[xX][0-9a-fA-F]*)
    | (?P<int>[0-9]+)(?P<suffix>[A-Za-z_0-9]*)
    | (?P<prefixed>[rRbB]{1,2})(?=["'])
    | (?P<triple>\"{3}|'{3})
    | (?P<string>"(?:[^"\\\n\r]|\\.)*"|'(?:[^'\\\n\r]|\\.)*')
    | (?P<name>[A-Za-z_][A-Za-z_0-9]*)
    | (?P<op>&&|\|\||==|!=|<=|>=|[!<>+\-*/%()\[\].,?:])
    | (?P<end>\Z)
    )
    """,
    re.VERBOSE,
)
_KINDS: Final = {"name": TokenKind.NAME, "op": TokenKind.OP, "end": TokenKind.END}
_NOT_SUPPORTED: Final = {
    "comment": (
        "comments are not in cel-strict/1; use YAML's #"
        " (in folded YAML text a comment would swallow the rest of the rule)"
    ),
    "float": (
        "floating-point numbers are not in cel-strict/1; use integers (money in minor units: 50.00 is 5000)"
    ),
    "hex": "hexadecimal numbers are not in cel-strict/1; write it in decimal",
    "prefixed": 'raw strings and bytes (r"...", b"...") are not in cel-strict/1',
    "triple": "triple-quoted strings are not in cel-strict/1",
}
_ESCAPES: Final = {"\\": "\\", '"': '"', "'": "'", "n": "\n", "r": "\r", "t": "\t"}


# What nearly every expression consists of. Anything else, and whatever could be taken for something else
# (comments, fractions, prefixed and triple quotes, large numbers), is left to the slower reader below.
_PLAIN: Final = re.compile(
    r"""
    [ \t\n\r]*+
    (?: [A-Za-z_][A-Za-z_0-9]*+(?!["'])
      | (?:0|[1-9][0-9]{0,17}+)(?![A-Za-z_0-9.])
      | (?:"[^"\\\n\r]*+"|'[^'\\\n\r]*+')(?!["'])
      | (?:&&|\|\||==|!=|<=|>=|[!<>+\-*%()\[\],?:]|/(?!/)|\.(?![0-9])) )
    """,
    re.VERBOSE,
)
_OPERATORS: Final = {text: text for text in "&& || == != <= >= ! < > + - * / % ( ) [ ] . , ? :".split()}
_KIND_OF: Final = {
    **dict.fromkeys("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_", TokenKind.NAME),
    **dict.fromkeys("0123456789", TokenKind.INT),
    **dict.fromkeys("\"'", TokenKind.STRING),
    **{text[0]: TokenKind.OP for text in _OPERATORS},
}
_first: Final = itemgetter(0)
_token: Final = partial(tuple.__new__, Token)


def tokens(source: str) -> list[Token]:
    """All tokens, then one END token. Raises CelError."""
    if len(source) > MAX_SOURCE:
        raise CelError(f"longer than {MAX_SOURCE} characters; write several rules", source, MAX_SOURCE)
    # A bundle has tens of thousands of tokens: no step of this is a loop in Python.
    pieces = _PLAIN.findall(source)
    ends = list(accumulate(map(len, pieces)))
    length = ends[-1] if ends else 0
    if source[length:].strip(" \t\n\r") or "".join(pieces) != source[:length] or not source.isascii():
        return _tokens(source)
    texts = [piece.strip(" \t\n\r") for piece in pieces]
    kinds = list(map(_KIND_OF.__getitem__, map(_first, texts)))
    starts = map(sub, ends, map(len, texts))
    values = texts if not {'"', "'"} & set(map(_first, texts)) else _unquoted(texts)
    found: list[Token] = list(map(_token, zip(kinds, values, starts, ends, strict=True)))
    found.append(Token(TokenKind.END, "", len(source), len(source)))
    return found


def _unquoted(texts: list[str]) -> list[str]:
    return [text[1:-1] if text[0] in "\"'" else text for text in texts]


def _tokens(source: str) -> list[Token]:
    """The same for any text, with the reasons why something is no token. Raises CelError."""
    found: list[Token] = []
    at = 0
    while True:
        match = _TOKEN.match(source, at)
        if match is None:
            at += len(source) - at - len(source[at:].lstrip(" \t\n\r"))
            message, at = unexpected(source, at)
            raise CelError(message, source, at)
        group, at = match.lastgroup or "", match.end()
        kind = _KINDS.get(group)
        if kind is not None:
            found.append(Token(kind, match[group], match.start(group), at))
            if kind is TokenKind.END:
                return found
        elif group == "suffix":
            found.append(_integer(source, match))
        elif group == "string":
            start = match.start(group)
            found.append(Token(TokenKind.STRING, _unescape(source, start, at), start, at))
        else:
            raise CelError(_NOT_SUPPORTED[group], source, match.start(group))


def unexpected(source: str, at: int) -> tuple[str, int]:
    """What to say of a sign at `at` that no token begins with or no grammar expects there, and where."""
    char = source[at]
    if char in "\"'":
        return "this string has no closing quote on its line", at
    for sign, advice in SIGNS:
        begin = source.find(sign, max(0, at - len(sign) + 1), at + len(sign))
        if begin >= 0:
            return advice, begin
    if char in TYPOGRAPHIC_QUOTES:
        return f"{char} is a typographic quote; write \" or '", at
    if char == "\u00a0":
        return "a no-break space (U+00A0); write a plain space", at
    if char.isascii():
        return f"unexpected character {char!r}", at
    # Full-width forms and the like have a plain one; a letter of another alphabet has none.
    plain = ALIKE.get(char) or unicodedata.normalize("NFKC", char)
    if plain == "€" or unicodedata.category(char) == "Sc":
        advice = "; amounts are integers in the currency's minor unit (50.00 is 5000), without a sign"
    else:
        advice = f"; did you mean {plain!r}?" if plain.isascii() else "; write it with plain letters"
    return f"unexpected character {char!r}, {character(char)}{advice}", at


_DATE: Final = re.compile(r"[0-9]{4}-(?:[0-9]{1,2}-)?\Z")
_CLOCK: Final = "use clock.now_s (seconds since 1970), clock.hour_utc, clock.weekday_utc"
_THOUSANDS: Final = re.compile(r"[0-9],\Z")
_UNITS: Final = {
    "k": "with its zeros: 5k is 5000",
    "K": "with its zeros: 5k is 5000",
    "s": "alone, in seconds",
    "m": "in seconds",
    "h": "in seconds",
    "d": "in seconds",
}


def _integer(source: str, match: re.Match[str]) -> Token:
    digits, suffix, at = match.group("int"), match.group("suffix"), match.start("int")
    if suffix in ("u", "U"):
        raise CelError("unsigned integers are not in cel-strict/1; write it without the u", source, at)
    if suffix.startswith("_"):
        raise CelError("numbers have no _ between digits; write them together", source, match.start("suffix"))
    if suffix in _UNITS:
        message = f"numbers have no units; write this one {_UNITS[suffix]}"
        raise CelError(message, source, match.start("suffix"))
    if suffix:
        raise CelError(f"unexpected {suffix!r} after a number", source, match.start("suffix"))
    if len(digits) > 1 and digits[0] == "0":
        if _DATE.search(source[:at]):
            raise CelError(f"there are no dates; {_CLOCK}", source, at)
        if len(digits) == 3 and _THOUSANDS.search(source[:at]):
            message = "numbers have no comma between thousands; write the digits together"
            raise CelError(message, source, at - 1)
        raise CelError(f"integers have no leading zeros; write {digits.lstrip('0') or '0'}", source, at)
    # The largest magnitude is that of -2^63; the parser knows whether a minus stands before it.
    if int(digits) > INT_MAX + 1:
        raise CelError("this integer does not fit into 64 bits", source, at)
    return Token(TokenKind.INT, digits, at, match.end())


def _unescape(source: str, start: int, end: int) -> str:
    body = source[start + 1 : end - 1]
    if not body.isascii() and any("\ud800" <= char <= "\udfff" for char in body):
        raise CelError("this string holds half of a surrogate pair", source, start)
    if "\\" not in body:
        return body
    parts: list[str] = []
    at = 0
    while at < len(body):
        char = body[at]
        if char == "\\":
            at += 1
            char = _ESCAPES.get(body[at], "")
            if not char:
                message = f"the escape \\{body[at]} is not in cel-strict/1; use \\\\ \\\" \\' \\n \\r \\t"
                raise CelError(message, source, start + at)
        parts.append(char)
        at += 1
    return "".join(parts)
