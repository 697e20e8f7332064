"""One PolicyTest document becomes cases with complete decision inputs, or a ConfigError.

Every case is the defaults, then `with` on top (records are merged, anything else replaces, null
removes), then one value of the matrix. What is left out gets a fixed value, printed in
policies/README.md, never one of today.

Invariants: T1 of policytest.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from . import policy_words
from .errors import Outcome, Reason
from .gate import Decision
from .ledger import Total
from .policy_document import envelope, known
from .policy_model import ParamSource, Policy, PolicySet, RuleEffect
from .policytest_parts import PARTS, Scope, clock_fields, merged, moment, read_parts, read_path
from .statement import OUTCOME_OF
from .strictyaml import Node
from .surface.model import CelType, ParamSchema

__all__ = ["Expectation", "TestCase", "clock_fields", "read_suite"]

_DIGEST: Final = "sha256:" + "0" * 64
# What the gate itself can say; a request_file may also be refused by its surface map.
_GATE_REASONS: Final = (
    Reason.PERMIT_RULE,
    Reason.DENY_RULE,
    Reason.APPROVAL_PENDING,
    Reason.RULE_ERROR,
    Reason.INPUT_UNAVAILABLE,
    Reason.NO_RULE_MATCHED,
)


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
    place: Node  # of its name
    inputs: dict[str, Any]  # complete, but for the actions when request_file is set
    counters: Mapping[str, Total]  # by counter; what is not named stands at 0
    facts: Mapping[str, Mapping[str, Any]]  # by fact; what is not named could not be had
    bound: Mapping[str, Any] | None  # what the actions are bound to; None: nothing
    request_file: Node | None  # a path relative to the test file
    expect: Expectation
    policies: frozenset[str]  # that the suite speaks of

    __test__ = False

    @property
    def file(self) -> str:
        return self.place.file

    @property
    def line(self) -> int:
        return self.place.line


@dataclass(frozen=True, slots=True, kw_only=True)
class _About:
    """What `spec.policy` or `spec.surface` stands for."""

    prefix: str
    scope: Scope
    schemas: Mapping[str, Mapping[str, ParamSchema]]  # by operation
    rules: Mapping[str, RuleEffect]  # full names that an expectation may use
    policy: str | None
    policies: frozenset[str]


def read_suite(root: Node, policies: PolicySet, index: ParamSource) -> tuple[TestCase, ...]:
    """All cases of one document. Raises ConfigError."""
    _, _, spec_node = envelope(root)
    spec = spec_node.mapping(
        required=("cases",),
        optional=("policy", "surface", "defaults"),
        what="spec",
        hints=policy_words.SUITE,
    )
    about = _about(spec_node, spec, policies, index)
    defaults = read_parts(spec["defaults"], "defaults", about.scope) if "defaults" in spec else {}
    items = spec["cases"].sequence("spec.cases")
    if not items:
        raise spec["cases"].fail("spec.cases is empty")
    found: list[TestCase] = []
    titles: dict[str, int] = {}
    for item in items:
        cases = list(_cases(item, about, defaults))
        title, place = cases[0].name.partition("[")[0], cases[0].place
        if title in titles:
            raise place.fail(f"a case named {title!r} exists already in line {titles[title]}")
        titles[title] = place.line
        found.extend(cases)
    return tuple(found)


def _about(node: Node, spec: Mapping[str, Node], policies: PolicySet, index: ParamSource) -> _About:
    if ("policy" in spec) == ("surface" in spec):
        raise node.fail("spec needs either `policy` or `surface`")
    policy: Policy | None = None
    if "policy" in spec:
        names = {each.name: each for each in policies.policies}
        policy = names[known(spec["policy"], frozenset(names), "no policy is named")]
    surface = (
        policy.surface
        if policy is not None
        else known(spec["surface"], index.surfaces(), "no surface map has the surface")
    )
    operations = index.operations(surface) if policy is None else policy.operations
    spoken = [each for each in policies.policies if each.surface == surface]
    schemas = {operation: index.param_schema(surface, (operation,)) for operation in operations}
    return _About(
        prefix=surface if policy is None else policy.name,
        scope=Scope(
            surface=surface,
            operations=tuple(operations),
            params=_types(schemas.values()),
            attrs=policies.agent_attrs,
            counters={counter.name: counter for counter in policies.counters},
            facts={fact.name: fact for fact in policies.facts},
            bound=index.bound_schema(surface, tuple(operations))[0],
        ),
        schemas=schemas,
        rules={rule.name: rule.effect for each in spoken for rule in each.rules},
        policy=None if policy is None else policy.name,
        policies=frozenset({policy.name} if policy is not None else {each.name for each in spoken}),
    )


def _types(schemas: Iterable[Mapping[str, ParamSchema]]) -> dict[str, frozenset[CelType]]:
    found: dict[str, frozenset[CelType]] = {}
    for schema in schemas:
        for name, each in schema.items():
            found[name] = found.get(name, frozenset()) | {each.type}
    return found


# --- cases ------------------------------------------------------------------------------------


def _cases(node: Node, about: _About, defaults: dict[str, Any]) -> Iterator[TestCase]:
    case = node.mapping(
        required=("name",),
        optional=("with", "matrix", "request_file", "expect", "expect_each"),
        what="a case",
        hints=policy_words.CASE,
    )
    title = f"{about.prefix}/{case['name'].text('name')}"
    changes = read_parts(case["with"], "with", about.scope) if "with" in case else {}
    request_file = case.get("request_file")
    if request_file is not None:
        for part in ("params", "action", "request"):
            if part in changes:
                message = f"{title}: with request_file, params, action and request come from the file"
                raise case["with"].value[part].fail_key(message)
        _check_file(request_file)
    base = merged(defaults, changes)
    variants = _variants(case["matrix"], base, about.scope) if "matrix" in case else [("", base)]
    expectations = _expectations(node, case, about, len(variants))
    for (label, parts), expect in zip(variants, expectations, strict=True):
        yield TestCase(
            name=f"{title}{label}",
            place=case["name"],
            inputs=_inputs(parts, case["name"], about, from_file=request_file is not None),
            counters=_totals(parts.get("counters", {})),
            facts=parts.get("facts", {}),
            bound=_bound(parts["bound"]) if "bound" in parts else None,
            request_file=request_file,
            expect=expect,
            policies=about.policies,
        )


def _check_file(node: Node) -> None:
    path = Path(node.file).parent / node.text("request_file")
    if not path.is_file():
        raise node.fail(f"no such file: {path} (request_file is relative to the test file)")


def _variants(node: Node, base: dict[str, Any], scope: Scope) -> list[tuple[str, dict[str, Any]]]:
    matrix = node.open_mapping("matrix")
    if len(matrix) != 1:
        raise node.fail(
            "matrix takes one path, such as params.amount: [1, 2]; write another case for the other"
        )
    ((path, values),) = matrix.items()
    keys = path.split(".")
    if len(keys) < 2 or keys[0] not in PARTS:
        raise values.fail_key(
            f"matrix: {path!r} is not a path into a case; write params.<name>, agent.id, clock.now ..."
        )
    found = []
    for item in values.sequence("the matrix values"):
        change = item.plain()
        shown = (
            "absent" if change is None else str(change).lower() if isinstance(change, bool) else str(change)
        )
        found.append((f"[{shown}]", merged(base, read_path(keys, item, "matrix", scope))))
    if not found:
        raise values.fail("matrix has no values")
    return found


def _expectations(node: Node, case: Mapping[str, Node], about: _About, count: int) -> list[Expectation]:
    if ("expect" in case) == ("expect_each" in case):
        raise node.fail("a case needs `expect`, or `expect_each` with a matrix")
    if "expect" in case:
        return [_expectation(case["expect"], about, from_file="request_file" in case)] * count
    if "matrix" not in case:
        raise case["expect_each"].fail("expect_each needs a matrix")
    items = case["expect_each"].sequence("expect_each")
    if len(items) != count:
        raise case["expect_each"].fail(f"expect_each has {len(items)} entries for {count} matrix values")
    return [_expectation(item, about, from_file="request_file" in case) for item in items]


def _expectation(node: Node, about: _About, *, from_file: bool) -> Expectation:
    """`PERMIT`, or {outcome, reason, rules}. What can never come true is an error."""
    if isinstance(node.value, str):
        return Expectation(outcome=_outcome(node), reason=None, rules=None)
    parts = node.mapping(
        required=("outcome",),
        optional=("reason", "rules"),
        what="expect",
        hints={"decision": "'outcome'", "effect": "'outcome'", "rule": "'rules'", "reason_code": "'reason'"},
    )
    outcome = _outcome(parts["outcome"])
    reason = _reason(parts["reason"], outcome, from_file=from_file) if "reason" in parts else None
    rules: frozenset[str] | None = None
    if "rules" in parts:
        rules = frozenset(
            _rule_name(item, about, outcome, reason) for item in parts["rules"].sequence("rules")
        )
        if not rules and outcome is not Outcome.SILENCE:
            raise parts["rules"].fail(
                f"{outcome.value} has at least one rule that decides; name it, or leave rules out"
            )
    return Expectation(outcome=outcome, reason=reason, rules=rules)


def _outcome(node: Node) -> Outcome:
    return Outcome(node.choice(tuple(Outcome), "outcome", policy_words.OUTCOMES))


def _reason(node: Node, outcome: Outcome, *, from_file: bool) -> Reason:
    reason = Reason(node.choice(tuple(Reason), "reason"))
    if not (from_file or reason in _GATE_REASONS):
        listed = ", ".join(_GATE_REASONS)
        raise node.fail(f"the gate never answers {reason.value}; it answers one of: {listed}")
    always = OUTCOME_OF[reason]
    if outcome is not always:
        raise node.fail(f"{reason.value} is {always.value}, so this cannot come true")
    return reason


def _rule_name(node: Node, about: _About, outcome: Outcome, reason: Reason | None) -> str:
    text = node.text("a rule")
    full = f"{about.policy}/{text}" if about.policy and "/" not in text else text
    effect = about.rules.get(full)
    if effect is None:
        own = {name.removeprefix(f"{about.policy}/"): name for name in about.rules}
        close = get_close_matches(text, own, n=1)
        advice = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(sorted(own))}"
        raise node.fail(f"no rule of {about.scope.surface} is named {full!r}; {advice}")
    decides = {Outcome.PERMIT: RuleEffect.PERMIT, Outcome.DENY: RuleEffect.DENY}.get(outcome)
    if reason is Reason.APPROVAL_PENDING:
        decides = RuleEffect.REVIEW
    if decides is not None and effect is not decides:
        raise node.fail(f"{full} is a {effect.value} rule, so it never decides {outcome.value}")
    if reason is Reason.NO_RULE_MATCHED:
        raise node.fail("no_rule_matched has no rule that decides; leave rules out")
    return full


# --- inputs -----------------------------------------------------------------------------------


def _inputs(parts: Mapping[str, Any], node: Node, about: _About, *, from_file: bool) -> dict[str, Any]:
    agent, clock = parts.get("agent", {}), moment(parts.get("clock", {}))
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


def _totals(parts: Mapping[str, Any]) -> dict[str, Total]:
    return {
        name: Total(sum=value.get("sum", 0), count=value.get("count", 0)) for name, value in parts.items()
    }


def _bound(given: Mapping[str, Any]) -> dict[str, Any]:
    """As the proxy records it; which receipt it was is not a question for a policy."""
    return {"operation": given.get("operation", ""), "params": dict(given.get("params", {}))}


def _action(parts: Mapping[str, Any], node: Node, about: _About) -> dict[str, Any]:
    given, params = parts.get("action", {}), parts.get("params", {})
    operation = given.get("operation")
    if operation is None:
        if len(about.scope.operations) != 1:
            listed = ", ".join(about.scope.operations)
            raise node.fail(f"action.operation is needed, because {about.prefix} covers several: {listed}")
        operation = about.scope.operations[0]
    schema = about.schemas.get(operation)
    if schema is not None and not params.keys() <= schema.keys():
        name = min(params.keys() - schema.keys())
        raise node.fail(
            f"{operation} has no parameter {name!r}; remove it from this case, or with {name}: null"
        )
    return {
        "surface": about.scope.surface,
        "effect": "commit",
        "host": "api.example.com",
        **given,
        "operation": operation,
        "params": dict(params),
    }
