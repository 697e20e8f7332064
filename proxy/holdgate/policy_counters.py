"""`spec.counters` of a policy becomes typed Counters, or a ConfigError with file, line and what to write.

Invariants (tests/test_policy_counters.py):
  O7  A counter that loads has a key of known scalar inputs, a measure of a declared int, and a window.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Final

from .cel.model import INT, Environment, Field, ListOf, MapOf, Record, Type
from .counters import Counter
from .strictyaml import Node

__all__ = ["MAX_COUNTERS", "counters_of", "key_path", "read_window"]

MAX_COUNTERS: Final = 16  # that one action may charge
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}\Z")
_WINDOW: Final = re.compile(r"([1-9][0-9]{0,5})([smhd])\Z")
_MEASURE: Final = re.compile(r"sum\(\s*params\.([a-z_][a-z0-9_]*)\s*\)\Z")
_UNITS: Final[Mapping[str, int]] = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_LONGEST_S: Final = 400 * 86_400
# What a counter may be kept by. Clock, approvals and digests change with every request.
_KEY_ROOTS: Final = ("agent", "action", "params")


def counters_of(node: Node | None, names: Environment) -> tuple[Counter, ...]:
    """`names` is the environment of the policy's conditions, without counters. Raises ConfigError."""
    if node is None:
        return ()
    found = [_counter(name, item, names) for name, item in sorted(node.open_mapping("spec.counters").items())]
    if not found:
        raise node.fail("spec.counters is empty; leave it out")
    if len(found) > MAX_COUNTERS:
        raise node.fail(f"spec.counters has {len(found)} counters; at most {MAX_COUNTERS} may be declared")
    return tuple(found)


def _counter(name: str, node: Node, names: Environment) -> Counter:
    what = f"counters.{name}"
    if not _NAME.match(name):
        raise node.fail(f"{what}: {name!r} is not a name that a condition can use")
    parts = node.mapping(required=("key", "window", "measure"), what=what)
    key = tuple(key_path(item, names, what) for item in parts["key"].sequence(f"{what}.key"))
    if len(set(key)) != len(key):
        raise parts["key"].fail(f"{what}.key names an input twice")
    return Counter(
        name=name,
        key=key,
        window_s=read_window(parts["window"], f"{what}.window"),
        measure=_measure(parts["measure"], names, what),
        file=node.file,
        line=node.line,
    )


def read_window(node: Node, what: str) -> int:
    """`90s`, `15m`, `24h`, `30d` in seconds. Raises ConfigError."""
    text = str(node.value)
    match = _WINDOW.match(text)
    if match is None:
        raise node.fail(f"{what} must be a number and a unit, such as 15m, 24h or 30d; found {text!r}")
    seconds = int(match[1]) * _UNITS[match[2]]
    if seconds > _LONGEST_S:
        raise node.fail(f"{what} is longer than {_LONGEST_S // 86_400}d")
    return seconds


def _measure(node: Node, names: Environment, what: str) -> str:
    text = node.text(f"{what}.measure")
    if text == "count":
        return ""
    match = _MEASURE.match(text)
    if match is None:
        raise node.fail(f"{what}.measure must be `count` or `sum(params.NAME)`; found {text!r}")
    kind = _type_of(f"params.{match[1]}", node, names, f"{what}.measure")
    if kind != INT:
        raise node.fail(f"{what}.measure: params.{match[1]} is {kind}; only an int can be added up")
    return match[1]


def key_path(node: Node, names: Environment, what: str) -> str:
    """What a counter or a fact is kept by: a path to one scalar. Raises ConfigError."""
    path = node.text(f"{what}.key")
    if path.split(".")[0] not in _KEY_ROOTS or "." not in path:
        raise node.fail(
            f"{what}.key: {path!r} cannot be a key; use agent.id, agent.attrs.NAME, action.host, "
            "action.operation, action.principal or params.NAME"
        )
    kind = _type_of(path, node, names, f"{what}.key")
    if isinstance(kind, Record | ListOf | MapOf):
        raise node.fail(f"{what}.key: {path} is {kind}; a key needs a string, int or bool")
    return path


def _type_of(path: str, node: Node, names: Environment, what: str) -> Type:
    kind: Type = Record({root: Field(each) for root, each in names.roots.items()})
    walked = ""
    for part in path.split("."):
        field = kind.fields.get(part) if isinstance(kind, Record) else None
        if field is None:
            near = get_close_matches(part, kind.fields, n=1) if isinstance(kind, Record) else []
            advice = f"; did you mean {walked}{near[0]}?" if near else ""
            raise node.fail(f"{what}: there is no {walked}{part}{advice}")
        kind, walked = field.type, f"{walked}{part}."
    return kind
