"""Facts: what a policy asks others about a request, before it is decided. Pure: no source is spoken to here.

    Fact (policy file) + one action -> Lookup (provider, key)      before the providers are asked
    Lookup -> Found (values, as_of_s, source), or nothing          by adapters/facts.py, under a deadline
    Found + types of the policies   -> values in the decision input

What is in the input decides: a replay asks nobody.

Invariants (tests/test_facts.py has one test named after each):
  FA1  A value of another type than declared, a field too few, or no time: the whole fact is left out.
  FA2  What was not found, came late or is older than allowed is left out of the input; it is never a default.
  FA3  A key with an absent, empty, long or composite value asks nobody.
  FA4  Equal lookups of one request are asked once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, NamedTuple

from .surface.model import CelType, ParamSchema
from .value_types import is_int, is_string, type_test

__all__ = [
    "AS_OF",
    "MAX_FACTS",
    "Fact",
    "FactsOf",
    "Form",
    "Found",
    "Lookup",
    "fill",
    "is_fact",
    "lookups_of",
    "lookups_of_all",
    "readable",
    "record_of",
    "state",
]

AS_OF: Final = "as_of_s"  # every fact has it: since when, in seconds since the epoch
MAX_KEY: Final = 512  # characters of one part of a key
MAX_FACTS: Final = 16  # that one action may need
AHEAD_S: Final = 300  # how far another machine's clock may be ahead of ours
_INTEGER: Final = re.compile(r"-?(0|[1-9][0-9]{0,18})\Z")

type FactsOf = Callable[[str, str], tuple[Fact, ...]]  # PolicySet.facts_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One entry of `spec.facts`, with the types that its provider is declared to have."""

    name: str
    provider: str
    key: tuple[str, ...]  # paths into agent, action and params
    fields: Mapping[str, ParamSchema]  # AS_OF among them: then the source has to say it
    file: str
    line: int

    def same_as(self, other: Fact) -> bool:
        return (self.provider, self.key) == (other.provider, other.key)


class Lookup(NamedTuple):
    """One question to one provider."""

    provider: str
    key: tuple[str, ...]


class Form(StrEnum):
    """How a source writes values."""

    JSON = "json"  # with their types
    TEXT = "text"  # cells: true, false, digits, text
    SQL = "sql"  # true is 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A provider's answer, as it was read. Its types are checked later, against the policies."""

    values: Mapping[str, Any]
    form: Form
    read_s: int  # since when it is so, where the values do not say
    max_age_s: int  # 0: any age will do
    source: str  # which kind of source, and which version of it where it has one


def lookups_of(
    facts: Iterable[Fact], agent: Mapping[str, Any], action: Mapping[str, Any]
) -> dict[str, Lookup]:
    """By fact. `agent` and `action` as they stand in a decision input; what has no key is not in it (FA3)."""
    roots = {"agent": agent, "action": action, "params": action["params"]}
    keys = {fact.name: (fact.provider, tuple(_part(path, roots) for path in fact.key)) for fact in facts}
    return {
        name: Lookup(provider, tuple(part for part in key if part is not None))
        for name, (provider, key) in keys.items()
        if None not in key
    }


def lookups_of_all(
    facts_of: FactsOf,
    agent: Mapping[str, Any],
    actions: Iterable[Mapping[str, Any]],
) -> tuple[Lookup, ...]:
    """Every question that a request leads to, each once (FA4)."""
    found: dict[Lookup, None] = {}
    for action in actions:
        facts = facts_of(action["surface"], action["operation"])
        found |= dict.fromkeys(lookups_of(facts, agent, action).values()) if facts else {}
    return tuple(found)


def _part(path: str, roots: Mapping[str, Any]) -> str | None:
    value: Any = roots
    for name in path.split("."):
        value = value.get(name) if type(value) is dict else None
    if type(value) is bool:
        return "true" if value else "false"
    if type(value) is int:
        return str(value)
    return value if is_string(value) and 0 < len(value) <= MAX_KEY else None


def fill(
    facts_of: FactsOf,
    agent: Mapping[str, Any],
    actions: Sequence[dict[str, Any]],
    found: Mapping[Lookup, Found],
    *,
    now_s: int,
) -> None:
    """Write each action's facts into the input. One that is left out makes the gate say input_unavailable."""
    _fill(facts_of, agent, actions, lambda fact, lookup: found.get(lookup), now_s)


def state(
    facts_of: FactsOf,
    agent: Mapping[str, Any],
    actions: Sequence[dict[str, Any]],
    stated: Mapping[str, Mapping[str, Any]],
    *,
    now_s: int,
) -> None:
    """Facts by name as somebody states them, for tests and explanations; what is not stated is missing."""

    def said(fact: Fact, _: Lookup) -> Found | None:
        if fact.name not in stated:
            return None
        return Found(values=stated[fact.name], form=Form.JSON, read_s=now_s, max_age_s=0, source="stated")

    _fill(facts_of, agent, actions, said, now_s)


def _fill(
    facts_of: FactsOf,
    agent: Mapping[str, Any],
    actions: Sequence[dict[str, Any]],
    answer_to: Callable[[Fact, Lookup], Found | None],
    now_s: int,
) -> None:
    for action in actions:
        facts = facts_of(action["surface"], action["operation"])
        if not facts:
            continue
        asked = lookups_of(facts, agent, action)
        values = action["facts"] = {}
        for fact in facts:
            answer = answer_to(fact, asked[fact.name]) if fact.name in asked else None
            if answer is not None and (record := record_of(fact, answer, now_s)) is not None:
                values[fact.name] = record


def record_of(fact: Fact, answer: Found, now_s: int) -> dict[str, Any] | None:
    """What the input says: the declared fields, since when, from where. None where that is not to be had."""
    record = {
        name: _plain(schema.type, answer.values[name], answer.form)
        for name, schema in fact.fields.items()
        if answer.values.get(name) is not None
    }
    stated = answer.values.get(AS_OF)
    if stated is None and AS_OF not in fact.fields:
        stated = answer.read_s
    record[AS_OF] = _plain(CelType.INT, stated, answer.form)
    record["source"] = answer.source
    if not is_fact(fact, record):
        return None
    age_s = now_s - record[AS_OF]
    return None if age_s < -AHEAD_S or (answer.max_age_s and age_s > answer.max_age_s) else record


def _plain(kind: CelType, value: Any, form: Form) -> Any:
    """The value that is written there; whatever is not of the type stays what it is, and is refused."""
    if form is Form.SQL and kind is CelType.BOOL and type(value) is int:
        return {0: False, 1: True}.get(value)
    if form is Form.TEXT and type(value) is str:
        if kind is CelType.BOOL:
            return {"false": False, "true": True}.get(value)
        if kind is CelType.INT:
            return int(value) if _INTEGER.match(value) else None
    return value


def is_fact(fact: Fact, record: Any) -> bool:
    """Whether a record of an input is of the declared types (FA1)."""
    if type(record) is not dict or not is_int(record.get(AS_OF)) or record[AS_OF] < 0:
        return False
    return all(
        type_test(schema.type)(record[name]) if name in record else schema.optional
        for name, schema in fact.fields.items()
    )


def readable(action: Mapping[str, Any], facts: Iterable[Fact]) -> bool:
    """Whether every fact that the policies of this action declare is in its input."""
    values = action.get("facts")
    return type(values) is dict and all(is_fact(fact, values.get(fact.name)) for fact in facts)
