"""One strict reader for every YAML file that a person writes: maps, policies, tests, configuration.

YAML 1.1's surprises are errors or plain strings here. Only `true`, `false`, `null` and decimal
integers without leading zeros are not strings (so `NO`, `010`, `12:30`, `1.10` are strings).
Duplicate keys, anchors, aliases, tags, merge keys, non-string keys, several documents, byte order
marks inside, and more than 50,000 nodes or 64 levels are ConfigErrors with file and line.

Invariants (tests/test_strictyaml.py):
  Y1  load() returns plain data with a line for every node, or raises ConfigError.
  Y2  No scalar changes meaning because of how YAML 1.1 resolves it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from .errors import ConfigError

__all__ = ["Node", "load", "load_file"]

_MAX_NODES: Final = 50_000
_MAX_DEPTH: Final = 64
_INT: Final = re.compile(r"(0|-?[1-9][0-9]*)\Z")
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class Node:
    """A value and where it stands. `value` is str, int, bool, None, list[Node] or dict[str, Node]."""

    value: Any
    file: str
    line: int  # 1-based

    def fail(self, message: str) -> ConfigError:
        return ConfigError(message, file=self.file, line=self.line)

    def mapping(
        self, *, required: tuple[str, ...] = (), optional: tuple[str, ...] = (), what: str = "value"
    ) -> dict[str, Node]:
        """The mapping, with exactly these keys allowed. An unknown key is an error that lists them."""
        if not isinstance(self.value, dict):
            raise self.fail(f"{what} must be a mapping")
        allowed = required + optional
        for key, node in self.value.items():
            if key not in allowed:
                raise node.fail(f"unknown key {key!r} in {what}; allowed: {', '.join(allowed)}")
        for key in required:
            if key not in self.value:
                raise self.fail(f"{what} needs the key {key!r}")
        return self.value

    def open_mapping(self, what: str = "value") -> dict[str, Node]:
        if not isinstance(self.value, dict):
            raise self.fail(f"{what} must be a mapping")
        return self.value

    def sequence(self, what: str = "value") -> list[Node]:
        if not isinstance(self.value, list):
            raise self.fail(f"{what} must be a list")
        return self.value

    def text(self, what: str = "value") -> str:
        if not isinstance(self.value, str):
            raise self.fail(f"{what} must be a string")
        return self.value

    def integer(self, what: str = "value", *, low: int | None = None, high: int | None = None) -> int:
        if isinstance(self.value, bool) or not isinstance(self.value, int):
            raise self.fail(f"{what} must be an integer")
        if (low is not None and self.value < low) or (high is not None and self.value > high):
            raise self.fail(f"{what} must be between {low} and {high}")
        return self.value

    def boolean(self, what: str = "value") -> bool:
        if not isinstance(self.value, bool):
            raise self.fail(f"{what} must be true or false")
        return self.value

    def choice(self, options: tuple[str, ...], what: str = "value") -> str:
        text = self.text(what)
        if text not in options:
            raise self.fail(f"{what} must be one of: {', '.join(options)}; got {text!r}")
        return text

    def plain(self) -> Any:
        """The value without positions."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value


def load_file(path: Path) -> Node:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read: {error}", file=str(path)) from error
    return load(text, file=str(path))


def load(text: str, *, file: str = "<text>") -> Node:
    """Parse exactly one document. Raises ConfigError with file and line."""
    # Invisible, and to libyaml white space: at the beginning of a line it would put the line a level deeper.
    if (at := text.find("\ufeff", 1)) > 0:
        line = text.count("\n", 0, at) + 1
        raise ConfigError("a byte order mark (U+FEFF) inside the text: remove it", file=file, line=line)
    try:
        for event in yaml.parse(text, Loader=_Loader):
            _check_event(event, file)
        documents = list(yaml.compose_all(text, Loader=_Loader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"not YAML: {problem}", file=file, line=mark.line + 1 if mark else 1) from error
    except RecursionError:
        raise ConfigError("nested too deeply", file=file, line=1) from None
    if len(documents) != 1 or documents[0] is None:
        raise ConfigError("exactly one YAML document expected", file=file, line=1)
    return _convert(documents[0], file, iter(range(_MAX_NODES)), 0)


def _check_event(event: Any, file: str) -> None:
    line = event.start_mark.line + 1
    if isinstance(event, yaml.AliasEvent):
        raise ConfigError("aliases (*name) are not allowed: write the value out", file=file, line=line)
    if getattr(event, "anchor", None):
        raise ConfigError("anchors (&name) are not allowed", file=file, line=line)
    if getattr(event, "tag", None):
        raise ConfigError("tags (!name) are not allowed", file=file, line=line)


def _convert(node: Any, file: str, budget: Iterator[int], depth: int) -> Node:
    line = node.start_mark.line + 1
    if next(budget, None) is None or depth > _MAX_DEPTH:
        raise ConfigError("too many values or nested too deeply", file=file, line=line)
    if isinstance(node, yaml.ScalarNode):
        return Node(_scalar(node), file, line)
    if isinstance(node, yaml.SequenceNode):
        return Node([_convert(item, file, budget, depth + 1) for item in node.value], file, line)
    mapping: dict[str, Node] = {}
    for key, value in node.value:
        key_line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError("keys must be plain strings", file=file, line=key_line)
        if key.value == "<<" and not key.style:
            raise ConfigError("merge keys (<<) are not allowed", file=file, line=key_line)
        if key.value in mapping:
            raise ConfigError(f"duplicate key {key.value!r}", file=file, line=key_line)
        mapping[key.value] = _convert(value, file, budget, depth + 1)
    return Node(mapping, file, line)


def _scalar(node: Any) -> str | int | bool | None:
    text: str = node.value
    if node.style:  # quoted or block: always a string (plain is None, and "" from the C loader)
        return text
    if text in ("true", "false"):
        return text == "true"
    if text in ("null", "~", ""):
        return None
    if len(text) <= 20 and _INT.match(text):
        return int(text)
    return text
