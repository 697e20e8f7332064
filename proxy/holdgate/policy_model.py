"""What a set of policies is once it is loaded: frozen, typed, and indexed by surface and operation.

`ParamSource` is what policies need from the surface maps; the surface index implements it.

Invariants (tests/test_policy.py):
  O1  A PolicySet's rules for one surface and operation are sorted by full name, so the order of
      files, policies and rules in them is not visible.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Protocol

from .cel.cost import Cost, total
from .cel.evaluate import Program
from .cel.model import BOOL, INT, STRING, Constant, Environment, Field, ListOf, Record, Type
from .counters import Counter
from .facts import AS_OF, Fact
from .surface.model import CelType, Effect, ParamSchema
from .value_types import ValueTest, type_test

__all__ = [
    "MAX_RULES",
    "ROOTS",
    "Applicable",
    "ParamSource",
    "Policy",
    "PolicySet",
    "Rule",
    "RuleEffect",
    "cel_type",
    "environment",
    "policy_set",
]

MAX_RULES: Final = 256  # rules that apply to one surface and operation

_CEL_TYPES: Final[Mapping[CelType, Type]] = MappingProxyType(
    {
        CelType.INT: INT,
        CelType.STRING: STRING,
        CelType.BOOL: BOOL,
        CelType.LIST_STRING: ListOf(STRING),
        CelType.LIST_INT: ListOf(INT),
    }
)

_ACTION: Final = Record(
    {
        "operation": Field(STRING),
        "effect": Field(STRING),
        "host": Field(STRING),
        "principal": Field(STRING, optional=True),
    }
)
_APPROVAL: Final = Record(
    {
        "id": Field(STRING),
        "role": Field(STRING),
        "approver": Field(STRING),
        "request_digest": Field(STRING),
        "expires_s": Field(INT),
    }
)
_CLOCK: Final = Record({"now_s": Field(INT), "hour_utc": Field(INT), "weekday_utc": Field(INT)})
_COUNT: Final = Record({"count": Field(INT)})
_SUM: Final = Record({"sum": Field(INT), "count": Field(INT)})
_REQUEST: Final = Record({"digest": Field(STRING)})

# The inputs that a condition may name, in the order in which they stand in a frame.
ROOTS: Final = (
    *("action", "agent", "approvals", "bound", "clock", "counters", "facts", "params", "request"),
)


class ParamSource(Protocol):
    """What the surface maps say about surfaces, operations and parameters."""

    def surfaces(self) -> frozenset[str]:
        """Every surface that at least one operation has."""
        ...

    def operations(self, surface: str) -> tuple[str, ...]:
        """Full names of the operations of `surface`, such as `stripe.PostRefunds`."""
        ...

    def effects(self, surface: str, operation: str | None = None) -> frozenset[Effect]:
        """What the operations of `surface`, or one of them, do: only `read`, or more."""
        ...

    def bound_schema(
        self, surface: str, operations: tuple[str, ...] | None
    ) -> tuple[Mapping[str, ParamSchema], bool]:
        """Parameters, all optional, of what these operations are bound to; whether one of them is not
        permitted without it."""
        ...

    def param_schema(self, surface: str, operations: tuple[str, ...] | None) -> Mapping[str, ParamSchema]:
        """Parameters of these operations (None: all of the surface). One that some operation lacks
        or may leave out is optional. Raises ConfigError when two operations disagree on a type."""
        ...


class RuleEffect(StrEnum):
    PERMIT = "permit"
    DENY = "deny"
    REVIEW = "review"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    name: str  # "policy/rule"
    effect: RuleEffect
    when: str  # as written
    reason: str | None  # why, for the people who read a refusal; deny rules always have one
    unsafe_allow_all: bool
    program: Program
    file: str
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    name: str
    owner: str
    surface: str
    operations: tuple[str, ...]  # all of the surface's when the file lists none
    constants: Mapping[str, Constant]
    counters: tuple[Counter, ...]  # by name
    facts: tuple[Fact, ...]  # by name
    environment: Environment  # that its conditions were checked against
    rules: tuple[Rule, ...]  # in the file's order
    shadow: bool  # evaluated and recorded, never counted
    file: str
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Applicable:
    """Everything that speaks about one operation of one surface."""

    params: Mapping[str, ParamSchema]  # of exactly this operation
    tests: Mapping[str, ValueTest]  # by name: is this value of the declared type
    required: frozenset[str]
    rules: tuple[Rule, ...]  # sorted by name
    counters: tuple[Counter, ...]  # that every permitted action charges, sorted by name
    facts: tuple[Fact, ...]  # without which nothing is permitted, sorted by name
    bound: Mapping[str, ParamSchema]  # parameters of what the operation is bound to
    bound_tests: Mapping[str, ValueTest]
    needs_bound: bool  # nothing is permitted without it
    with_shadow: tuple[Rule, ...] = ()  # these rules and those of shadow policies; (): there are none

    @property
    def cost(self) -> Cost:
        """Of one action, in the worst case."""
        return total(rule.program.cost for rule in self.rules)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySet:
    """All policies of one bundle. Make one with policy_set() or load_policies()."""

    policies: tuple[Policy, ...]  # sorted by name
    agent_attrs: Mapping[str, ParamSchema]
    attr_tests: Mapping[str, ValueTest]
    table: Mapping[tuple[str, str], Applicable]  # (surface, operation) -> rules; absent: none apply
    files: tuple[str, ...]  # every file that can change a decision, sorted; tests are not in it
    has_shadow: bool = False

    @property
    def rules(self) -> tuple[Rule, ...]:
        return tuple(sorted((r for p in self.policies for r in p.rules), key=lambda rule: rule.name))

    @property
    def names(self) -> tuple[str, ...]:
        """Full names of all rules, sorted."""
        return tuple(rule.name for rule in self.rules)

    @property
    def counters(self) -> tuple[Counter, ...]:
        return tuple(counter for policy in self.policies for counter in policy.counters)

    @property
    def facts(self) -> tuple[Fact, ...]:
        return tuple(fact for policy in self.policies for fact in policy.facts)

    def facts_of(self, surface: str, operation: str) -> tuple[Fact, ...]:
        """What has to be asked about an action before it is decided."""
        applicable = self.table.get((surface, operation))
        return () if applicable is None else applicable.facts

    def counters_of(self, surface: str, operation: str) -> tuple[Counter, ...]:
        """What an action charges when it is permitted."""
        applicable = self.table.get((surface, operation))
        return () if applicable is None else applicable.counters

    def rule(self, name: str) -> Rule | None:
        return next((rule for rule in self.rules if rule.name == name), None)


def cel_type(kind: CelType) -> Type:
    return _CEL_TYPES[kind]


def environment(
    params: Mapping[str, ParamSchema],
    agent_attrs: Mapping[str, ParamSchema],
    constants: Mapping[str, Constant],
    counters: Iterable[Counter] = (),
    facts: Iterable[Fact] = (),
    bound: Mapping[str, ParamSchema] = MappingProxyType({}),
    *,
    shared: dict[object, object] | None = None,
) -> Environment:
    """The names that conditions may use, with their types.

    `shared`: one for all policies with these parameters and attributes, so that what several of them say is
    compiled once.
    """
    attrs = Record(_fields(agent_attrs))
    agent = Record({"id": Field(STRING), "groups": Field(ListOf(STRING)), "attrs": Field(attrs)})
    roots: dict[str, Type] = {
        "action": _ACTION,
        "agent": agent,
        "approvals": ListOf(_APPROVAL),
        "bound": Record({"operation": Field(STRING, optional=True), "params": Field(Record(_fields(bound)))}),
        "clock": _CLOCK,
        "counters": Record({c.name: Field(_SUM if c.measure else _COUNT) for c in counters}),
        "facts": Record({f.name: Field(Record(_fields(f.fields) | {AS_OF: Field(INT)})) for f in facts}),
        "params": Record(_fields(params)),
        "request": _REQUEST,
    }
    return Environment(roots=roots, constants=constants, shared={} if shared is None else shared)


def _fields(schemas: Mapping[str, ParamSchema]) -> dict[str, Field]:
    return {name: Field(_CEL_TYPES[schema.type], schema.optional) for name, schema in schemas.items()}


def _tests(schemas: Mapping[str, ParamSchema]) -> Mapping[str, ValueTest]:
    # A plain dict: a proxy would cost every parameter of every request.
    return {name: type_test(schema.type) for name, schema in schemas.items()}


def policy_set(
    policies: Iterable[Policy],
    index: ParamSource,
    agent_attrs: Mapping[str, ParamSchema],
    files: Iterable[str],
) -> PolicySet:
    """Pool the rules of `policies` by surface and operation."""
    ordered = tuple(sorted(policies, key=lambda policy: policy.name))
    speaking: dict[tuple[str, str], list[Policy]] = {}
    for policy in ordered:
        for operation in policy.operations:
            speaking.setdefault((policy.surface, operation), []).append(policy)
    table = {key: _applicable(index, *key, those) for key, those in speaking.items()}
    return PolicySet(
        policies=ordered,
        agent_attrs=MappingProxyType(dict(agent_attrs)),
        attr_tests=_tests(agent_attrs),
        table=MappingProxyType(table),
        files=tuple(sorted(files)),
        has_shadow=any(policy.shadow for policy in ordered),
    )


def _applicable(index: ParamSource, surface: str, operation: str, policies: Sequence[Policy]) -> Applicable:
    """All that `policies` say of one operation."""
    params = index.param_schema(surface, (operation,))
    bound, needs_bound = index.bound_schema(surface, (operation,))
    rules = [rule for policy in policies if not policy.shadow for rule in policy.rules]
    shadows = [rule for policy in policies if policy.shadow for rule in policy.rules]
    counters = [counter for policy in policies for counter in policy.counters]
    facts = {fact.name: fact for policy in policies for fact in policy.facts}  # policies may share one
    return Applicable(
        params=MappingProxyType(dict(params)),
        tests=_tests(params),
        required=frozenset(name for name, schema in params.items() if not schema.optional),
        rules=_sorted(rules),
        counters=tuple(sorted(counters, key=lambda counter: counter.name)),
        facts=tuple(fact for _, fact in sorted(facts.items())),
        bound=MappingProxyType(dict(bound)),
        bound_tests=_tests(bound),
        needs_bound=needs_bound,
        with_shadow=_sorted([*rules, *shadows]) if shadows else (),
    )


def _sorted(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    return tuple(sorted(rules, key=lambda rule: rule.name))
