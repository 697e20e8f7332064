"""Decision inputs made up for `holdgate diff`: for every value that rules look at, a few worth trying.

A Shape is a list of paths with choices; the first choice of each is the value at rest (the smallest). All
combinations are tried while they are few; else every value alone, every pair of values, and a fixed
pseudo-random sample of the rest.

Invariants (tests/test_diff.py):
  DI1  inputs() gives at most `limit` inputs, each once, the same ones every time, the one at rest first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice, product
from math import prod
from typing import Any, Final

from .cel.model import BOOL, INT, STRING, ListOf
from .policy_model import cel_type
from .surface.model import ParamSchema
from .value_types import type_test

__all__ = ["ABSENT", "Choice", "Shape", "build_input", "rest_of", "variants"]

type Choice = Any


class _Absent:
    def __repr__(self) -> str:
        return "absent"


ABSENT: Final = _Absent()
_OTHER: Final = "another"
_DIGEST: Final = "sha256:" + "0" * 64
_NOW_S: Final = 1_767_614_400  # a Monday, noon
_ALONE: Final[Mapping[str, Sequence[Choice]]] = {
    "clock.now_s": (_NOW_S,),
    "clock.hour_utc": tuple(range(24)),
    "clock.weekday_utc": tuple(range(7)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The inputs of one operation."""

    surface: str
    operation: str
    effect: str
    paths: tuple[str, ...]
    choices: tuple[tuple[Choice, ...], ...]  # by path; the first one is at rest
    counters: tuple[str, ...]

    def inputs(self, limit: int) -> Iterator[tuple[Choice, ...]]:
        seen: set[str] = set()
        for chosen in self._tried(limit):
            name = repr(chosen)
            if name not in seen:
                seen.add(name)
                yield chosen
                if len(seen) >= limit:
                    return

    def _tried(self, limit: int) -> Iterator[tuple[Choice, ...]]:
        if prod(len(each) for each in self.choices) <= limit:
            yield from product(*self.choices)
            return
        rest = tuple(each[0] for each in self.choices)
        yield rest
        for size in (1, 2):
            for places in combinations(range(len(rest)), size):
                for values in product(*(self.choices[place] for place in places)):
                    yield self._with(rest, places, values)
        yield from islice(self._sample(), limit * 4)

    def _sample(self) -> Iterator[tuple[Choice, ...]]:
        state = 1
        while True:
            chosen = []
            for each in self.choices:
                state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
                chosen.append(each[(state >> 33) % len(each)])
            yield tuple(chosen)

    @staticmethod
    def _with(
        rest: tuple[Choice, ...], places: Sequence[int], values: Sequence[Choice]
    ) -> tuple[Choice, ...]:
        changed = list(rest)
        for place, value in zip(places, values, strict=True):
            changed[place] = value
        return tuple(changed)


def variants(
    kind: Any, optional: bool, literals: Mapping[Any, Sequence[Choice]], path: str
) -> tuple[Choice, ...]:
    """What to try for one value; the first is at rest."""
    first = [ABSENT] if optional else []
    if path in _ALONE and literals:
        near = [n for n in literals.get(INT, ()) if path == "clock.now_s" and n > 10**9]
        return (*_ALONE[path], *near)
    values: list[Choice]
    if kind == BOOL:
        values = [False, True]
    elif kind == INT:
        values = [0, *[n for n in literals.get(INT, ()) if n != 0]]
        if path.startswith(("counters.", "clock.")):
            values = [n for n in values if n >= 0]
        values.sort(key=lambda number: (abs(number), number))
    elif kind == STRING:
        values = [_OTHER, *literals.get(STRING, ()), *([""] if literals else ())]
    elif isinstance(kind, ListOf):
        items = variants(kind.item, False, literals, path)
        values = [(), *((item,) for item in items), *((items[0], item) for item in items[1:3])]
    else:
        values = [_OTHER]
    return (*first, *values)


def build_input(shape: Shape, chosen: Sequence[Choice], schema: Mapping[str, ParamSchema]) -> dict[str, Any]:
    """The decision input, with the parameters that this side's maps have."""
    values = dict(zip(shape.paths, chosen, strict=True))
    action: dict[str, Any] = {
        "surface": shape.surface,
        "operation": shape.operation,
        "effect": shape.effect,
        "host": "api.example.com",
        "params": _params(values, schema),
    }
    if values.get("action.principal", ABSENT) is not ABSENT:
        action["principal"] = values["action.principal"]
    if shape.counters:
        action["counters"] = {
            name: {what: values.get(f"counters.{name}.{what}", 0) for what in ("sum", "count")}
            for name in shape.counters
        }
    return {
        "v": 1,
        "agent": {
            "id": values.get("agent.id", _OTHER),
            "groups": list(values.get("agent.groups", ())),
            "attrs": _attrs(values),
        },
        "actions": [action],
        "request": {"digest": _DIGEST},
        "clock": {
            "now_s": values.get("clock.now_s", _NOW_S),
            "hour_utc": values.get("clock.hour_utc", 12),
            "weekday_utc": values.get("clock.weekday_utc", 1),
        },
        "approvals": _approvals(values.get("approvals", "")),
    }


def _params(values: Mapping[str, Any], schema: Mapping[str, ParamSchema]) -> dict[str, Any]:
    params = {}
    for name, each in schema.items():
        value = values.get(f"params.{name}", ABSENT)
        if value is ABSENT and not each.optional:
            value = variants(cel_type(each.type), False, {}, "")[0]
        if value is not ABSENT:
            plain = list(value) if isinstance(value, tuple) else value
            if not type_test(each.type)(plain):  # the other side's maps have another type for it
                plain = variants(cel_type(each.type), False, {}, "")[0]
                plain = list(plain) if isinstance(plain, tuple) else plain
            params[name] = plain
    return params


def _attrs(values: Mapping[str, Choice]) -> dict[str, Any]:
    found = {}
    for path, value in values.items():
        if path.startswith("agent.attrs.") and value is not ABSENT:
            found[path.removeprefix("agent.attrs.")] = list(value) if isinstance(value, tuple) else value
    return found


def _approvals(role: str) -> list[dict[str, Any]]:
    if not role:
        return []
    return [
        {
            "id": "a1",
            "role": role,
            "approver": "somebody",
            "request_digest": _DIGEST,
            "expires_s": _NOW_S + 600,
        }
    ]


def rest_of(shape: Shape, chosen: Sequence[Choice]) -> dict[str, Any]:
    """What of it is not at rest: the part worth showing."""
    return {
        path: repr(value) if value is ABSENT else list(value) if isinstance(value, tuple) else value
        for path, value, choices in zip(shape.paths, chosen, shape.choices, strict=True)
        if value != choices[0]
        or (len(choices) > 1 and choices[0] is not ABSENT and path.startswith("params."))
    }
