"""One strict reader for every YAML file that a person writes: maps, policies, tests, configuration.

YAML 1.1's surprises are errors or plain strings here. Only `true`, `false`, `null` and decimal
integers without leading zeros are not strings (so `NO`, `010`, `12:30`, `1.10` are strings).
Duplicate keys, anchors, aliases, tags, merge keys, non-string keys, several documents, characters that
nobody sees (yamltext.py has the list), and more than 50,000 nodes or 64 levels are ConfigErrors with
file, line and column.

Invariants (tests/test_strictyaml.py):
  Y1  load() returns plain data with a place for every node, or raises ConfigError.
  Y2  No scalar changes meaning because of how YAML 1.1 resolves it.
  Y3  Every place in a scalar's value is found again in the file: folded, quoted and block text included.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from .errors import ConfigError
from .yamlfiles import read_file
from .yamltext import (
    TYPOGRAPHIC_QUOTES,
    Source,
    aligned,
    check_text,
    decoded,
    foreign_letter,
    what_yaml_means,
)

__all__ = ["Node", "load", "load_file"]

_MAX_NODES: Final = 50_000
_MAX_DEPTH: Final = 64
_INT: Final = re.compile(r"(0|-?[1-9][0-9]*)\Z")
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NO_HINTS: Final[Mapping[str, str]] = {}


class Node(NamedTuple):
    """A value and where it stands. `value` is str, int, bool, None, list[Node] or dict[str, Node].

    A tuple, because one is made for every value of every file; `start`, `end` and `key` are offsets
    into the file's text, `key` that of the mapping key whose value this is.
    """

    value: Any
    source: Source
    start: int
    end: int
    key: int

    @property
    def plain_text(self) -> bool:
        """A text without quotes, as opposed to a quoted or a block one."""
        return isinstance(self.value, str) and self.source.text[self.start : self.start + 1] not in "\"'|>"

    @property
    def file(self) -> str:
        return self.source.file

    @property
    def line(self) -> int:  # 1-based
        return self.source.line(self.start)

    def fail(self, message: str) -> ConfigError:
        return self.source.fail(message, self.start)

    def fail_key(self, message: str) -> ConfigError:
        """The error stands at the key rather than at its value."""
        return self.source.fail(message, self.key)

    def fail_at(self, offset: int, message: str) -> ConfigError:
        """The error stands at `offset` of the string that this scalar holds."""
        raw = self.source.text[self.start : self.end]
        return self.source.fail(message, self.start + aligned(raw, self.value, offset))

    def mapping(
        self,
        *,
        required: tuple[str, ...] = (),
        optional: tuple[str, ...] = (),
        what: str = "value",
        hints: Mapping[str, str] = _NO_HINTS,
    ) -> dict[str, Node]:
        """The mapping, with exactly these keys allowed. `hints`: what to write instead of a known mistake."""
        if not isinstance(self.value, dict):
            raise self.fail(f"{what} must be a mapping, not {_kind(self.value)}")
        allowed = required + optional
        for key, node in self.value.items():
            if key not in allowed:
                raise node.fail_key(_unknown_key(key, allowed, what, hints))
        for key in required:
            if key not in self.value:
                raise self.fail(f"{what} needs the key {key!r}")
        return self.value

    def open_mapping(self, what: str = "value") -> dict[str, Node]:
        if not isinstance(self.value, dict):
            raise self.fail(f"{what} must be a mapping, not {_kind(self.value)}")
        return self.value

    def sequence(self, what: str = "value") -> list[Node]:
        if not isinstance(self.value, list):
            raise self.fail(f"{what} must be a list, not {_kind(self.value)}")
        return self.value

    def text(self, what: str = "value") -> str:
        if not isinstance(self.value, str):
            raise self.fail(f"{what} must be a string, not {_kind(self.value)}")
        return self.value

    def integer(self, what: str = "value", *, low: int | None = None, high: int | None = None) -> int:
        if isinstance(self.value, bool) or not isinstance(self.value, int):
            raise self.fail(f"{what} must be an integer, not {_kind(self.value)}")
        if (low is not None and self.value < low) or (high is not None and self.value > high):
            raise self.fail(f"{what} must be between {low} and {high}")
        return self.value

    def boolean(self, what: str = "value") -> bool:
        if not isinstance(self.value, bool):
            raise self.fail(f"{what} must be true or false, not {_kind(self.value)}")
        return self.value

    def choice(
        self, options: tuple[str, ...], what: str = "value", hints: Mapping[str, str] = _NO_HINTS
    ) -> str:
        text = self.text(what)
        if text not in options:
            meant = hints.get(text.lower()) or _close(text, options)
            advice = (f"; did you mean {meant}?" if meant else "") + foreign_letter(text)
            raise self.fail(f"{what} must be one of: {', '.join(options)}; got {text!r}{advice}")
        return text

    def plain(self) -> Any:
        """The value without positions."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value


def _kind(value: Any) -> str:
    match value:
        case dict():
            return "a mapping"
        case list():
            return "a list"
        case None:
            return "nothing (null)"
        case bool():
            return f"the boolean {str(value).lower()}"
        case int():
            return f"the number {value}"
        case _:
            return "a string"


def _close(text: str, options: tuple[str, ...]) -> str:
    found = [
        close for form in (text, text.lower(), text.upper()) for close in get_close_matches(form, options)
    ]
    return repr(str(found[0])) if found else ""


def _unknown_key(key: str, allowed: tuple[str, ...], what: str, hints: Mapping[str, str]) -> str:
    meant = hints.get(key) or _close(key, allowed)
    advice = f"did you mean {meant}? " if meant else ""
    return f"unknown key {key!r} in {what}; {advice}allowed: {', '.join(allowed)}{foreign_letter(key)}"


def load_file(path: Path, *, excerpts: bool = True, kept: bool = False) -> Node:
    """`excerpts=False` for a file that may hold credentials: its errors do not quote it. `kept`: load()."""
    return load(decoded(read_file(path), str(path)), file=str(path), excerpts=excerpts, kept=kept)


def load(text: str, *, file: str = "<text>", excerpts: bool = True, kept: bool = False) -> Node:
    """Parse exactly one document. Raises ConfigError with file, line and column.

    `kept`: a text of a bundle that was active once. It has decided already, so what is refused only because
    people would misread it is read as it was then: replay asks what it meant, not whether it is well written.
    """
    source = Source(file, text, excerpts)
    if not kept:
        check_text(source)
    reader = _Reader(source, kept)
    try:
        return reader.document()
    except yaml.YAMLError as error:
        marks = [getattr(error, name, None) for name in ("problem_mark", "context_mark")]
        places = [min(mark.index, len(text)) for mark in marks if mark is not None]
        problem = getattr(error, "problem", None) or str(error)
        message, at = what_yaml_means(problem, source, places or [0])
        raise source.fail(f"not YAML: {message}", at) from error


class _Reader:
    """Builds nodes from the parser's events: one pass, no second tree beside ours."""

    def __init__(self, source: Source, kept: bool) -> None:
        self._source = source
        self._misread = "" if kept else TYPOGRAPHIC_QUOTES
        self._events: Iterator[Any] = yaml.parse(source.text, Loader=_Loader)
        self._budget = _MAX_NODES

    def document(self) -> Node:
        next(self._events)  # the stream begins
        if isinstance(next(self._events), yaml.StreamEndEvent):
            raise self._source.fail("exactly one YAML document expected, and this file has none", 0)
        root = self._node(next(self._events), -1, 0)
        next(self._events)  # the document ends
        following = next(self._events)
        if not isinstance(following, yaml.StreamEndEvent):
            message = "exactly one YAML document expected; put what follows this `---` into a file of its own"
            raise self._source.fail(message, following.start_mark.index)
        if root.value is None and root.start == root.end:
            raise self._source.fail("exactly one YAML document expected, and this one is empty", 0)
        return root

    def _node(self, event: Any, key: int, depth: int) -> Node:
        start = event.start_mark.index
        self._budget -= 1
        if self._budget < 0 or depth > _MAX_DEPTH:
            raise self._source.fail("too many values or nested too deeply", start)
        kind = type(event)
        if kind is yaml.AliasEvent:
            message = (
                "aliases (*name) are not allowed: write the value out, or quote a text that begins with *"
            )
            raise self._source.fail(message, start)
        if event.anchor is not None:
            message = "anchors (&name) are not allowed; quote a text that begins with &"
            raise self._source.fail(message, start)
        if event.tag is not None:
            message = (
                "tags (!name) are not allowed; a condition that begins with ! needs quotes, or `>-` before it"
            )
            raise self._source.fail(message, start)
        if kind is yaml.ScalarEvent:
            if not event.value.isascii() and event.implicit[0] and event.value[0] in self._misread:
                # To YAML it would be part of the text.
                raise self._source.fail(f"{event.value[0]} is not a quote of YAML; write \" or '", start)
            return Node(_scalar(event), self._source, start, event.end_mark.index, key)
        end = event.end_mark.index
        if kind is yaml.SequenceStartEvent:
            items: list[Node] = []
            while type(inner := next(self._events)) is not yaml.SequenceEndEvent:
                items.append(self._node(inner, start, depth + 1))
            return Node(items, self._source, start, end, key)
        return Node(self._mapping(depth), self._source, start, end, key)

    def _mapping(self, depth: int) -> dict[str, Node]:
        found: dict[str, Node] = {}
        while type(event := next(self._events)) is not yaml.MappingEndEvent:
            at = event.start_mark.index
            if type(event) is not yaml.ScalarEvent:
                node = self._node(event, at, depth + 1)  # an alias, an anchor or a tag says so itself
                advice = "; `{{...}}` is not expanded here" if isinstance(node.value, dict) else ""
                raise self._source.fail(f"keys must be plain strings{advice}", at)
            if event.anchor is not None or event.tag is not None:
                self._node(event, at, depth + 1)
            name = event.value
            if name == "<<" and event.implicit[0]:
                raise self._source.fail("merge keys (<<) are not allowed: write the values out", at)
            if name in found:
                first = self._source.line(found[name].key)
                raise self._source.fail(f"duplicate key {name!r}; it stands in line {first} already", at)
            found[name] = self._node(next(self._events), at, depth + 1)
        return found


def _scalar(event: Any) -> str | int | bool | None:
    text: str = event.value
    if not event.implicit[0]:  # quoted or block: always a string
        return text
    if text in ("true", "false"):
        return text == "true"
    if text in ("null", "~", ""):
        return None
    if len(text) <= 20 and _INT.match(text):
        return int(text)
    return text
