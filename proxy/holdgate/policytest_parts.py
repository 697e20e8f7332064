"""The parts of a test case (agent, params, clock ...) become plain data, each value of its declared type.

What the surface maps would refuse, or what no condition can name, is an error with its place here: a case
with a misspelt parameter would test something else than its name says. `null` anywhere removes a value.

Invariants: T1 of policytest.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any, Final

from .cel.model import INT_MAX
from .counters import Counter
from .facts import AS_OF, Fact
from .policy_constants import not_a_number
from .strictyaml import Node
from .surface.model import CelType, Effect, ParamSchema
from .value_types import type_test

__all__ = ["PARTS", "Scope", "clock_fields", "merged", "moment", "read_parts", "read_path"]

_HINTS: Final = {
    **dict.fromkeys(["parameters", "args", "input", "body"], "'params'"),
    **dict.fromkeys(["principal", "user", "subject", "caller"], "'agent'"),
    **dict.fromkeys(["time", "now"], "'clock'"),
    **dict.fromkeys(["approval", "approved"], "'approvals'"),
    **dict.fromkeys(["operation", "surface", "resource", "host"], "'action: {...}' around it"),
}
_CLOCK_HINTS: Final = {
    "hour": "'hour_utc'",
    "weekday": "'weekday_utc'",
    "day": "'weekday_utc'",
    "time": "'now'",
}
_AGENT_HINTS: Final = {
    **dict.fromkeys(["attributes", "attr"], "'attrs'"),
    **dict.fromkeys(["roles", "role", "group"], "'groups'"),
    "name": "'id'",
}
_NOW: Final = "2026-01-05T12:00:00Z"  # a Monday at noon


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What the values of a suite's cases may be."""

    surface: str
    operations: tuple[str, ...]
    params: Mapping[str, frozenset[CelType]]  # of every operation; more than one type: operations disagree
    attrs: Mapping[str, ParamSchema]
    counters: Mapping[str, Counter]  # of all policies
    facts: Mapping[str, Fact]
    bound: Mapping[str, ParamSchema]  # of what the operations are bound to


def read_parts(node: Node, what: str, scope: Scope) -> dict[str, Any]:
    """The plain data below `defaults` or `with`. Raises ConfigError."""
    for part, value in node.mapping(optional=PARTS, what=what, hints=_HINTS).items():
        if value.value is not None:
            _CHECKS[part](value, f"{what}.{part}", scope)
    plain: dict[str, Any] = node.plain()
    return plain


def read_path(path: list[str], node: Node, what: str, scope: Scope) -> dict[str, Any]:
    """The plain data of one value at `path`, such as params.amount of a matrix."""
    for key in reversed(path):
        node = node._replace(value={key: node})
    return read_parts(node, what, scope)


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Records are merged, everything else replaces, null removes."""
    found = dict(base)
    for key, value in changes.items():
        if value is None:
            found.pop(key, None)
        elif isinstance(value, dict):
            before = found.get(key)
            found[key] = merged(before if isinstance(before, dict) else {}, value)
        else:
            found[key] = value
    return found


def clock_fields(now: datetime) -> dict[str, int]:
    """The clock of a decision input. Sunday is 0, as in CEL."""
    utc = now.astimezone(UTC)
    return {
        "now_s": int(utc.timestamp()),
        "hour_utc": utc.hour,
        "weekday_utc": utc.isoweekday() % 7,
    }


def moment(clock: Mapping[str, Any]) -> dict[str, int]:
    """The clock of a case, whose parts have been read."""
    now = datetime.fromisoformat(clock.get("now", _NOW))
    return {**clock_fields(now), **{key: value for key, value in clock.items() if key != "now"}}


# --- one check for each part ------------------------------------------------------------------


def _agent(node: Node, what: str, scope: Scope) -> None:
    parts = node.mapping(optional=("id", "groups", "attrs"), what=what, hints=_AGENT_HINTS)
    _each(parts, what, {"id": _text, "groups": _texts})
    if "attrs" in parts and parts["attrs"].value is not None:
        for name, value in parts["attrs"].open_mapping(f"{what}.attrs").items():
            schema = scope.attrs.get(name)
            if schema is None:
                known = _known(name, scope.attrs, "declare it in a file of kind: Bundle")
                raise value.fail_key(f"{what}: agents have no attribute {name!r}; {known}")
            _typed(value, f"agent.attrs.{name}", frozenset({schema.type}))


def _params(node: Node, what: str, scope: Scope) -> None:
    for name, value in node.open_mapping(what).items():
        types = scope.params.get(name)
        if types is None:
            known = _known(name, scope.params, "it has none")
            raise value.fail_key(f"{what}: {scope.surface} has no parameter {name!r}; {known}")
        _typed(value, f"params.{name}", types)


def _clock(node: Node, what: str, _scope: Scope) -> None:
    parts = node.mapping(optional=("now", "now_s", "hour_utc", "weekday_utc"), what=what, hints=_CLOCK_HINTS)
    for name, high in (("now_s", 2**62), ("hour_utc", 23), ("weekday_utc", 6)):
        if name in parts and parts[name].value is not None:
            parts[name].integer(f"{what}.{name}", low=0, high=high)
    now = parts.get("now")
    if now is None or now.value is None:
        return
    text = now.text(f"{what}.now")
    try:
        zone = datetime.fromisoformat(text).tzinfo
    except ValueError:
        raise now.fail(f"clock.now must be a time such as {_NOW}, found {text!r}") from None
    if zone is None:
        raise now.fail(f"clock.now needs a zone: {text}Z")


def _action(node: Node, what: str, scope: Scope) -> None:
    parts = node.mapping(optional=("surface", "operation", "effect", "host", "principal"), what=what)
    _each(parts, what, {name: _text for name in ("surface", "operation", "host", "principal")})
    if "effect" in parts and parts["effect"].value is not None:
        parts["effect"].choice(tuple(Effect), f"{what}.effect")
    operation = parts.get("operation")
    if operation is not None and "surface" not in parts and operation.value not in (None, *scope.operations):
        known = _known(operation.value, scope.operations, "none")
        raise operation.fail(f"the operation {operation.value!r} is not covered here; {known}")


def _approvals(node: Node, what: str, _scope: Scope) -> None:
    if not isinstance(node.value, list) or not all(isinstance(item.value, dict) for item in node.value):
        raise node.fail(f"{what} must be a list of mappings, such as [{{role: payments-risk}}]")
    for item in node.value:
        parts = item.mapping(
            optional=("id", "role", "approver", "request_digest", "expires_s"),
            what="an approval",
            hints={"by": "'approver'", "name": "'approver'", "expires": "'expires_s'", "group": "'role'"},
        )
        _each(parts, "approvals", {key: _text for key in ("id", "role", "approver", "request_digest")})
        if "expires_s" in parts:
            parts["expires_s"].integer("approvals.expires_s")


def _request(node: Node, what: str, _scope: Scope) -> None:
    _each(node.mapping(optional=("digest",), what=what), what, {"digest": _text})


def _counters(node: Node, what: str, scope: Scope) -> None:
    for name, value in node.open_mapping(what).items():
        counter = scope.counters.get(name)
        if counter is None:
            known = _known(name, scope.counters, "none is declared")
            raise value.fail_key(f"{what}: no policy has the counter {name!r}; {known}")
        if value.value is None:
            continue
        parts = value.mapping(optional=("sum", "count"), what=f"counters.{name}")
        if "sum" in parts and not counter.measure:
            raise parts["sum"].fail_key(f"counters.{name} measures count: it has no sum")
        for key, number in parts.items():
            if number.value is not None:
                number.integer(f"counters.{name}.{key}", low=0, high=INT_MAX)


def _facts(node: Node, what: str, scope: Scope) -> None:
    for name, value in node.open_mapping(what).items():
        fact = scope.facts.get(name)
        if fact is None:
            known = _known(name, scope.facts, "none is declared")
            raise value.fail_key(f"{what}: no policy has the fact {name!r}; {known}")
        if value.value is None:
            continue
        fields = {AS_OF: CelType.INT} | {key: schema.type for key, schema in fact.fields.items()}
        for key, item in value.open_mapping(f"facts.{name}").items():
            if key not in fields:
                raise item.fail_key(
                    f"facts.{name} has no field {key!r}; {_known(key, fields, 'it has none')}"
                )
            _typed(item, f"facts.{name}.{key}", frozenset({fields[key]}))


def _bound(node: Node, what: str, scope: Scope) -> None:
    parts = node.mapping(optional=("operation", "params"), what=what)
    _each(parts, what, {"operation": _text})
    if "params" in parts and parts["params"].value is not None:
        for name, value in parts["params"].open_mapping(f"{what}.params").items():
            schema = scope.bound.get(name)
            if schema is None:
                known = _known(name, scope.bound, "no operation here is bound to another")
                raise value.fail_key(f"{what}: what is bound has no parameter {name!r}; {known}")
            _typed(value, f"bound.params.{name}", frozenset({schema.type}))


_CHECKS: Final[Mapping[str, Callable[[Node, str, Scope], None]]] = {
    "agent": _agent,
    "params": _params,
    "clock": _clock,
    "action": _action,
    "approvals": _approvals,
    "request": _request,
    "counters": _counters,
    "facts": _facts,
    "bound": _bound,
}
PARTS: Final = tuple(_CHECKS)


# --- values -----------------------------------------------------------------------------------


def _each(parts: Mapping[str, Node], what: str, checks: Mapping[str, Callable[[Node, str], None]]) -> None:
    for name, check in checks.items():
        if name in parts and parts[name].value is not None:
            check(parts[name], f"{what}.{name}")


def _text(node: Node, what: str) -> None:
    node.text(what)


def _texts(node: Node, what: str) -> None:
    for item in node.sequence(what):
        item.text(what)


def _typed(node: Node, what: str, types: frozenset[CelType]) -> None:
    value = node.plain()
    if value is None or any(type_test(each)(value) for each in types):
        return
    if CelType.STRING not in types:
        not_a_number(node, what)
    advice = "; quote it" if CelType.STRING in types and isinstance(value, int) else ""
    raise node.fail(
        f"{what} is {' or '.join(sorted(types))}, and this value is not (or is too large){advice}"
    )


def _known(name: str, names: Any, none: str) -> str:
    close = get_close_matches(name, list(names), n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"there are: {', '.join(sorted(names))}" if names else none
