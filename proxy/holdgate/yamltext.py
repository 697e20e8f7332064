"""The text of a YAML file: places in it, characters that have no business there, and plain words for errors.

A policy is read by people before it is trusted, so what they cannot see is refused: byte order marks,
carriage returns, zero-width and direction-changing characters, control characters. In a double-quoted
text they can be written as escapes ("\\u200d"), where everybody sees them.

Invariants (tests/test_strictyaml.py):
  Y4  A text that passes check_text() holds no character that changes how it reads without being seen.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator
from itertools import islice
from typing import Final

from .errors import ConfigError

__all__ = ["TYPOGRAPHIC_QUOTES", "Source", "aligned", "character", "check_text", "decoded", "what_yaml_means"]

_WIDTH: Final = 100  # characters of a line that an excerpt shows

# C0 and C1 controls but tab and newline; soft hyphen, Arabic letter mark, Hangul and Khmer fillers,
# zero-width characters, direction marks, overrides and isolates, line separators, joiners, variation
# selectors, annotations, tags, surrogates.
_HIDDEN: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    "\u2028-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff\U000e0000-\U000e0fff\ud800-\udfff]"
)
_FIRST_WORDS: Final = {
    "\r": "this line ends with a carriage return (CRLF, from Windows): save the file with plain LF line ends",
    "\ufeff": "a byte order mark (U+FEFF): save the file as UTF-8 without BOM",
}
TYPOGRAPHIC_QUOTES: Final = "\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u00ab\u00bb"


class Source:
    """One file's name and text, shared by all nodes of it. `excerpts`: whether errors may quote the text."""

    __slots__ = ("_lines", "excerpts", "file", "text")

    def __init__(self, file: str, text: str, excerpts: bool = True) -> None:
        self.file, self.text, self.excerpts = file, text, excerpts
        self._lines: list[int] = []  # where each line after the first begins; made when it is asked for

    def line(self, at: int) -> int:
        if not self._lines:
            self._lines = [found.end() for found in re.finditer("\n", self.text)] or [len(self.text) + 1]
        return bisect_right(self._lines, at) + 1

    def fail(self, message: str, at: int) -> ConfigError:
        """An error at offset `at`, with the line and a caret below it."""
        begin = self.text.rfind("\n", 0, at) + 1
        end = self.text.find("\n", begin)
        line = self.text[begin : end if end >= 0 else len(self.text)]
        column = at - begin
        cut = max(0, column - _WIDTH * 6 // 10)
        # What a terminal would act on, or not show at all, must not stand in the message either.
        shown = _HIDDEN.sub("\ufffd", line[cut : cut + _WIDTH]).replace("\t", " ")
        excerpt = f"    {shown}\n    {' ' * (column - cut)}^" if self.excerpts else ""
        return ConfigError(message, file=self.file, line=self.line(at), column=column + 1, excerpt=excerpt)


def decoded(data: bytes, file: str) -> str:
    """The text of a file. Raises ConfigError for anything but UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            message, line = "this is UTF-16; save the file as UTF-8", 1
        else:
            line = data.count(b"\n", 0, error.start) + 1
            message = f"not UTF-8: the byte 0x{data[error.start]:02x}; save the file as UTF-8"
        raise ConfigError(message, file=file, line=line) from error


def check_text(source: Source) -> None:
    """Raises ConfigError at the first character that nobody sees."""
    found = _HIDDEN.search(source.text)
    if found is None:
        return
    char = found[0]
    message = _FIRST_WORDS.get(char)
    if char == "\r" and source.text[found.end() : found.end() + 1] != "\n":
        message = None
    if message is None:
        message = f"{character(char)} cannot be seen: remove it"
    elif char == "\ufeff" and found.start() > 0:
        message = "a byte order mark (U+FEFF) inside the text: remove it"
    raise source.fail(message, found.start())


def character(char: str) -> str:
    """A character by number and name: what looks alike is told apart."""
    name = unicodedata.name(char, "a control character")
    return f"U+{ord(char):04X} ({name})"


def foreign_letter(text: str) -> str:
    """For an error about a name that is not known: which letter of it only looks like a plain one."""
    strange = next((char for char in text if not char.isascii()), "")
    return f"; {strange!r} in it is {character(strange)}" if strange else ""


# --- places -----------------------------------------------------------------------------------

_ESCAPES: Final = {"x": 2, "u": 4, "U": 8}
_BLANKS: Final = ("n", "t", " ", "\n", "r", "_", "N", "L", "P", "v", "f", "\t")


def aligned(raw: str, value: str, offset: int) -> int:
    """Where character `offset` of a scalar's `value` stands in `raw`, its text in the file.

    Only white space differs between the two, apart from quotes' own escapes, so the characters that
    are not white space are counted off against each other.
    """
    wanted = sum(not char.isspace() for char in value[:offset])
    if offset >= len(value) or value[offset].isspace():  # behind the last character that shows
        return next(islice((end for _, end in _visible(raw)), max(0, wanted - 1), None), 0)
    return next(islice((start for start, _ in _visible(raw)), wanted, None), len(raw))


def _visible(raw: str) -> Iterator[tuple[int, int]]:
    """Start and end of every character of a scalar's text that is not white space."""
    quote = raw[:1] if raw[:1] in ("'", '"') else ""
    at = raw.find("\n") + 1 if raw[:1] in ("|", ">") else len(quote)
    while at < len(raw):
        width, shows = 1, not raw[at].isspace()
        if quote == '"' and raw[at] == "\\":
            sign = raw[at + 1 : at + 2]
            width = 2 + _ESCAPES.get(sign, 0)
            # What an escape stands for may be white space: \n, \t, "\ ", or a folded line's end.
            shows = sign not in _BLANKS
            if sign in _ESCAPES:
                shows = not chr(int(raw[at + 2 : at + width], 16)).isspace()
        elif quote == "'" and raw[at : at + 2] == "''":
            width = 2
        if shows:
            yield at, at + width
        at += width


# --- what libyaml says, in other words --------------------------------------------------------

_ADVICE: Final = {
    "mapping values are not allowed in this context": (
        "a second `: ` in one line; a text that holds a colon and a space needs quotes (a condition: "
        "`>-` and a new line), and keys of one mapping stand below each other at the same indentation"
    ),
    "could not find expected ':'": "expected `key: value`; is the colon missing, or the space after it?",
    "did not find expected key": (
        "the indentation does not fit the lines above, or a value goes on after its closing quote or "
        "bracket; a condition that begins with a quote or a bracket needs `>-` and a new line"
    ),
    "did not find expected '-' indicator": (
        "the indentation does not fit the list above; every item begins with `- `"
    ),
    "did not find expected <document start>": (
        "the indentation does not fit the lines above, or something stands before the first key"
    ),
    "did not find expected ',' or '}'": (
        "a `{` without its `}`, or a comma is missing between two entries; between braces a text that holds "
        'a bracket or a comma needs quotes (`"body.items[]"`)'
    ),
    "did not find expected ',' or ']'": "a `[` without its `]`, or a comma is missing between two items",
    "block sequence entries are not allowed in this context": "a list item (`- `) cannot begin in this line",
    "found unexpected end of stream": "a quote without its closing quote",
    "found unknown escape character": 'this escape is not known in "..."; use single quotes, or `>-`',
    "found unexpected ':'": "a colon that YAML cannot place; quote the text",
    "found character that cannot start any token": "a text cannot begin with this character; quote it",
    "while scanning a plain scalar": "this text needs quotes",
}


_OPEN: Final = (
    "found unexpected end of stream",
    "did not find expected ',' or ']'",
    "did not find expected ',' or '}'",
)
# A condition that YAML takes for something else, because of the sign that it begins with.
_CONDITION: Final = re.compile(r"[ \t]*(?:- )?when:[ \t]+(?=[!&*|>@%`\"'\[{])")


def what_yaml_means(problem: str, source: Source, places: list[int]) -> tuple[str, int]:
    """libyaml's `problem` in words that say what to write, and where. `places`: noticed, and begun."""
    text, at = source.text, places[0]
    if problem in _OPEN:
        # What is open is missed at the end of the file only; what matters is where it was opened.
        at = places[-1]
    begin = text.rfind("\n", 0, at) + 1
    indent = text[begin : begin + len(text[begin:]) - len(text[begin:].lstrip(" \t"))]
    if "\t" in indent:
        return "a tab in the indentation; use spaces", begin + indent.index("\t")
    if text[at : at + 1] == "\t":
        return "a tab here; use spaces", at
    condition = _CONDITION.match(text, begin)
    if condition and condition.end() <= at:
        sign = text[condition.end()]
        return f"a condition that begins with {sign} needs `>-` and a new line", condition.end()
    return _ADVICE.get(problem, problem), at
