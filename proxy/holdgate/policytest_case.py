"""One PolicyTest document becomes cases with complete decision inputs, or a ConfigError.

Every case is the defaults, then `with` on top (records are merged, anything else replaces, null
removes), then one value of the matrix. What is left out gets a fixed value, printed in
policies/README.md, never one of today.

Invariants: T1 of policytest.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any, Final

from .counters import Counter
from .errors import Outcome, Reason
from .gate import Decision
from .ledger import Total
from .policy import envelope
from .policy_model import ParamSource, PolicySet
from .strictyaml import Node
from .value_types import is_int

__all__ = ["Expectation", "TestCase", "clock_fields", "read_suite"]

_NOW: Final = "2026-01-05T12:00:00Z"  # a Monday at noon
_DIGEST: Final = "sha256:" + "0" * 64
_PARTS: Final = ("agent", "params", "clock", "action", "approvals", "request", "counters")
_COUNTER: Final = ("sum", "count")
_AGENT: Final = ("id", "groups", "attrs")
_ACTION: Final = ("surface", "operation", "effect", "host", "principal")
_CLOCK: Final = ("now", "hour_utc", "weekday_utc")
_APPROVAL: Final = ("id", "role", "approver", "request_digest", "expires_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    outcome: Outcome
    reason: Reason | None  # None: not checked
    rules: frozenset[str] | None  # full names; None: not checked

    def accepts(self, decision: Decision) -> bool:
        return (
            decision.outcome is self.outcome
            and (self.reason is None or decision.reason is self.reason)
            and (self.rules is None or frozenset(decision.rules) == self.rules)
        )

    def __str__(self) -> str:
        parts = [str(self.outcome)]
        if self.reason is not None:
            parts.append(str(self.reason))
        if self.rules is not None:
            parts.append(f"[{', '.join(sorted(self.rules))}]")
        return " ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class TestCase:
    name: str
    file: str
    line: int
    inputs: dict[str, Any]  # complete, but for the actions when request_file is set
    counters: Mapping[str, Total]  # by counter; what is not named stands at 0
    request_file: str | None  # relative to the test file
    expect: Expectation

    __test__ = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _About:
    """What `spec.policy` or `spec.surface` stands for."""

    prefix: str
    surface: str
    operations: tuple[str, ...]
    rules: frozenset[str]  # full names that an expectation may use
    policy: str | None
    counters: Mapping[str, Counter]


def clock_fields(now: datetime) -> dict[str, int]:
    """The clock of a decision input. Sunday is 0, as in CEL."""
    utc = now.astimezone(UTC)
    return {
        "now_s": int(utc.timestamp()),
        "hour_utc": utc.hour,
        "weekday_utc": utc.isoweekday() % 7,
    }


def read_suite(root: Node, policies: PolicySet, index: ParamSource) -> tuple[TestCase, ...]:
    """All cases of one document. Raises ConfigError."""
    _, _, spec_node = envelope(root)
    spec = spec_node.mapping(required=("cases",), optional=("policy", "surface", "defaults"), what="spec")
    about = _about(spec_node, spec, policies, index)
    defaults = _parts(spec["defaults"], "defaults") if "defaults" in spec else {}
    items = spec["cases"].sequence("spec.cases")
    if not items:
        raise spec["cases"].fail("spec.cases is empty")
    return tuple(case for item in items for case in _cases(item, about, defaults))


def _about(node: Node, spec: Mapping[str, Node], policies: PolicySet, index: ParamSource) -> _About:
    if ("policy" in spec) == ("surface" in spec):
        raise node.fail("spec needs either `policy` or `surface`")
    if "policy" in spec:
        wanted = spec["policy"].text("policy")
        policy = next((each for each in policies.policies if each.name == wanted), None)
        if policy is None:
            known = ", ".join(each.name for each in policies.policies)
            raise spec["policy"].fail(f"no policy is named {wanted!r}; there are: {known}")
        surface, operations, prefix = policy.surface, policy.operations, policy.name
    else:
        surface = prefix = spec["surface"].text("surface")
        if surface not in index.surfaces():
            raise spec["surface"].fail(f"no surface map has the surface {surface!r}")
        operations = index.operations(surface)
    return _About(
        prefix=prefix,
        surface=surface,
        operations=tuple(operations),
        rules=frozenset(policies.names),
        policy=prefix if "policy" in spec else None,
        counters={counter.name: counter for counter in policies.counters},
    )


# --- cases ------------------------------------------------------------------------------------


def _cases(node: Node, about: _About, defaults: dict[str, Any]) -> Iterator[TestCase]:
    case = node.mapping(
        required=("name",),
        optional=("with", "matrix", "request_file", "expect", "expect_each"),
        what="a case",
    )
    title = f"{about.prefix}/{case['name'].text('name')}"
    changes = _parts(case["with"], "with") if "with" in case else {}
    request_file = case["request_file"].text("request_file") if "request_file" in case else None
    if request_file is not None and not {"params", "action", "request"}.isdisjoint(changes):
        raise node.fail(f"{title}: with request_file, params, action and request come from the file")
    base = _merge(defaults, changes)
    variants = _variants(case["matrix"], base) if "matrix" in case else [("", base)]
    expectations = _expectations(node, case, about, len(variants))
    for (label, parts), expect in zip(variants, expectations, strict=True):
        yield TestCase(
            name=f"{title}{label}",
            file=node.file,
            line=node.line,
            inputs=_inputs(parts, node, about, from_file=request_file is not None),
            counters=_counters(parts.get("counters", {}), node, about),
            request_file=request_file,
            expect=expect,
        )


def _variants(node: Node, base: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    matrix = node.open_mapping("matrix")
    if len(matrix) != 1:
        raise node.fail("matrix takes one path, such as params.amount: [1, 2]")
    ((path, values),) = matrix.items()
    keys = path.split(".")
    if len(keys) < 2 or keys[0] not in _PARTS:
        raise node.fail(
            f"matrix: {path!r} is not a path into a case; write params.<name>, agent.id, clock.now ..."
        )
    found = []
    for item in values.sequence("the matrix values"):
        change = item.plain()
        shown = (
            "absent" if change is None else str(change).lower() if isinstance(change, bool) else str(change)
        )
        for key in reversed(keys):
            change = {key: change}
        _check_parts(change, item, "matrix")
        found.append((f"[{shown}]", _merge(base, change)))
    if not found:
        raise node.fail("matrix has no values")
    return found


def _expectations(node: Node, case: Mapping[str, Node], about: _About, count: int) -> list[Expectation]:
    if ("expect" in case) == ("expect_each" in case):
        raise node.fail("a case needs `expect`, or `expect_each` with a matrix")
    if "expect" in case:
        return [_expectation(case["expect"], about)] * count
    if "matrix" not in case:
        raise case["expect_each"].fail("expect_each needs a matrix")
    items = case["expect_each"].sequence("expect_each")
    if len(items) != count:
        raise case["expect_each"].fail(f"expect_each has {len(items)} entries for {count} matrix values")
    return [_expectation(item, about) for item in items]


def _expectation(node: Node, about: _About) -> Expectation:
    """`PERMIT`, or {outcome, reason, rules}."""
    if isinstance(node.value, str):
        return Expectation(outcome=_outcome(node), reason=None, rules=None)
    parts = node.mapping(required=("outcome",), optional=("reason", "rules"), what="expect")
    reason = Reason(parts["reason"].choice(tuple(Reason), "reason")) if "reason" in parts else None
    rules: frozenset[str] | None = None
    if "rules" in parts:
        rules = frozenset(_rule_name(item, about) for item in parts["rules"].sequence("rules"))
    return Expectation(outcome=_outcome(parts["outcome"]), reason=reason, rules=rules)


def _outcome(node: Node) -> Outcome:
    return Outcome(node.choice(tuple(Outcome), "outcome"))


def _rule_name(node: Node, about: _About) -> str:
    text = node.text("a rule")
    full = f"{about.policy}/{text}" if about.policy and "/" not in text else text
    if full not in about.rules:
        raise node.fail(f"no rule is named {full!r}")
    return full


# --- inputs -----------------------------------------------------------------------------------


def _parts(node: Node, what: str) -> dict[str, Any]:
    node.mapping(optional=_PARTS, what=what)
    plain: dict[str, Any] = node.plain()
    _check_parts(plain, node, what)
    return plain


def _check_parts(parts: Mapping[str, Any], node: Node, what: str) -> None:
    """Known keys only: a misspelt one would leave the case testing something else."""
    for part, allowed in (
        ("agent", _AGENT),
        ("action", _ACTION),
        ("clock", _CLOCK),
        ("request", ("digest",)),
        ("counters", None),
    ):
        record = parts.get(part, {})
        if not isinstance(record, dict):
            raise node.fail(f"{what}.{part} must be a mapping")
        for key in record:
            if allowed is not None and key not in allowed:
                raise node.fail(f"{what}.{part}: unknown key {key!r}; allowed: {', '.join(allowed)}")
    if not isinstance(parts.get("params", {}), dict):
        raise node.fail(f"{what}.params must be a mapping")
    approvals = parts.get("approvals", [])
    if not isinstance(approvals, list) or not all(isinstance(each, dict) for each in approvals):
        raise node.fail(f"{what}.approvals must be a list of mappings")
    for key in (key for each in approvals for key in each):
        if key not in _APPROVAL:
            raise node.fail(f"{what}.approvals: unknown key {key!r}; allowed: {', '.join(_APPROVAL)}")


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Records are merged, everything else replaces, null removes."""
    merged = dict(base)
    for key, value in changes.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict):
            before = merged.get(key)
            merged[key] = _merge(before if isinstance(before, dict) else {}, value)
        else:
            merged[key] = value
    return merged


def _inputs(parts: Mapping[str, Any], node: Node, about: _About, *, from_file: bool) -> dict[str, Any]:
    agent, clock = parts.get("agent", {}), _clock(parts.get("clock", {}), node)
    approvals = [
        {"id": "approval-1", "approver": "approver-1", "expires_s": clock["now_s"] + 3600, **each}
        for each in parts.get("approvals", [])
    ]
    actions = [] if from_file else [_action(parts, node, about)]
    return {
        "v": 1,
        "agent": {"id": "test-agent", "groups": [], "attrs": {}, **agent},
        "actions": actions,
        "request": {"digest": _DIGEST, **parts.get("request", {})},
        "clock": clock,
        "approvals": approvals,
    }


def _counters(given: Mapping[str, Any], node: Node, about: _About) -> dict[str, Total]:
    found = {}
    for name, value in given.items():
        counter = about.counters.get(name)
        if counter is None:
            near = get_close_matches(name, about.counters, n=1)
            known = (
                f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(about.counters) or 'none'}"
            )
            raise node.fail(f"counters: no policy has the counter {name!r}; {known}")
        if not isinstance(value, dict) or not all(is_int(number) for number in value.values()):
            raise node.fail(f"counters.{name} must be a mapping such as {{sum: 100, count: 1}}")
        for key in value:
            if key not in _COUNTER:
                raise node.fail(f"counters.{name}: unknown key {key!r}; allowed: {', '.join(_COUNTER)}")
        if "sum" in value and not counter.measure:
            raise node.fail(f"counters.{name} measures count: it has no sum")
        found[name] = Total(sum=value.get("sum", 0), count=value.get("count", 0))
    return found


def _clock(clock: Mapping[str, Any], node: Node) -> dict[str, int]:
    text = clock.get("now", _NOW)
    try:
        now = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        raise node.fail(f"clock.now must be a time such as {_NOW}, found {text!r}") from None
    if now.tzinfo is None:
        raise node.fail(f"clock.now needs a zone: {text}Z")
    return {**clock_fields(now), **{key: value for key, value in clock.items() if key != "now"}}


def _action(parts: Mapping[str, Any], node: Node, about: _About) -> dict[str, Any]:
    given = parts.get("action", {})
    operation = given.get("operation")
    if operation is None:
        if len(about.operations) != 1:
            listed = ", ".join(about.operations)
            raise node.fail(f"action.operation is needed, because {about.prefix} covers several: {listed}")
        operation = about.operations[0]
    elif "surface" not in given and operation not in about.operations:
        raise node.fail(f"{about.prefix} does not cover the operation {operation!r}")
    return {
        "surface": about.surface,
        "effect": "commit",
        "host": "api.example.com",
        **given,
        "operation": operation,
        "params": dict(parts.get("params", {})),
    }
