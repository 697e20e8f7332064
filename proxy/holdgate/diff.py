"""Two bundles side by side: what was edited, and which decisions are found to differ because of it.

The structure is compared by name: policies, rules by id (their conditions in normal form, so white space and
comments vanish), constants, counters, fields of the maps. What it means is tried out: both bundles decide
inputs made from every literal in the rules of either (just below it, it, just above it; there and absent;
each string and another one), combined as far as a bound allows. A flip that is found is real, and is shown
with the smallest input that has it. That none was found does not say that there is none: equivalence is never
claimed.

Invariants (tests/test_diff.py):
  DF1  Every flip that is shown is one: its example, decided by both, gives what is said.
  DF2  White space, comments, file names and the order of rules and files are no difference.
  DF3  The same two bundles give the same result, byte for byte.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from itertools import combinations
from typing import Any, Final

from . import gate
from .bundle import Bundle
from .cel.model import BOOL, INT, INT_MAX, INT_MIN, STRING, Constant, Literal
from .cel.parse import parse
from .cel.unparse import unparse
from .diff_inputs import Choice, Shape, build_input, rest_of, variants
from .errors import Outcome
from .policy_model import Policy, Rule, cel_type
from .surface.model import ParamSchema

__all__ = ["Difference", "Edit", "Flip", "diff"]

_MAX_INPUTS: Final = 4000  # of one operation
_MAX_LITERALS: Final = 40
_RANK: Final = {Outcome.DENY: 0, Outcome.SILENCE: 1, Outcome.PERMIT: 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """Something that is written otherwise; "" on the side where it is not there."""

    what: str
    old: str
    new: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """Inputs of one operation that are decided otherwise, and the smallest of them."""

    operation: str
    surface: str
    old: str  # outcome and reason
    new: str
    rules: tuple[str, ...]  # that decide, on the side where there are some
    count: int  # among the inputs that were tried
    example: Mapping[str, Any]  # what of the input is not at rest


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    old: str  # digests
    new: str
    edits: tuple[Edit, ...]
    flips: tuple[Flip, ...]
    inputs: int  # that were tried
    untried: tuple[str, ...]  # operations that are decided on facts or earlier requests: nothing to make up
    loosens: bool
    tightens: bool
    newly_permitted: bool

    @property
    def verdict(self) -> str:
        both = {(True, True): "both", (True, False): "loosens", (False, True): "tightens"}
        return both.get((self.loosens, self.tightens), "no difference found")

    def document(self) -> dict[str, Any]:
        return {
            "old": self.old,
            "new": self.new,
            "verdict": self.verdict,
            "edits": [asdict(each) for each in self.edits],
            "inputs": self.inputs,
            "untried": list(self.untried),
            "flips": [asdict(each) for each in self.flips],
        }


def diff(old: Bundle, new: Bundle) -> Difference:
    """Compare them. Bounded: at most `_MAX_INPUTS` decisions of each for an operation."""
    found: list[Flip] = []
    untried: list[str] = []
    tried = 0
    loosens = tightens = newly = False
    for surface, operation in sorted({*old.policies.table, *new.policies.table}):
        if _reads(old, surface, operation) == _reads(new, surface, operation):
            continue  # the same conditions over the same values: there is nothing to try
        if any(_beyond(bundle, surface, operation) for bundle in (old, new)):
            untried.append(operation)
            continue
        shape = _shape(old, new, surface, operation)
        flips: dict[tuple[Outcome, str, Outcome, str], list[tuple[Choice, ...]]] = {}
        for chosen in shape.inputs(_MAX_INPUTS):
            tried += 1
            before, after = (_decided(each, shape, chosen) for each in (old, new))
            if before.outcome is not after.outcome:
                key = before.outcome, before.reason.value, after.outcome, after.reason.value
                flips.setdefault(key, []).append(chosen)
        for (was, _, now, _), examples in flips.items():
            loosens |= _RANK[now] > _RANK[was]
            tightens |= _RANK[now] < _RANK[was]
            newly |= now is Outcome.PERMIT
            found.append(_flip(old, new, shape, examples))
    return Difference(
        old=old.digest,
        new=new.digest,
        edits=tuple(_edits(old, new)),
        flips=tuple(sorted(found, key=lambda flip: (flip.surface, flip.operation, flip.old, flip.new))),
        inputs=tried,
        untried=tuple(untried),
        loosens=loosens,
        tightens=tightens,
        newly_permitted=newly,
    )


# --- what it means ---


def _decided(bundle: Bundle, shape: Shape, chosen: Sequence[Choice]) -> gate.Decision:
    schema = _schema(bundle, shape.surface, shape.operation)
    return gate.decide(bundle.policies, build_input(shape, chosen, schema))


def _flip(old: Bundle, new: Bundle, shape: Shape, examples: Sequence[tuple[Choice, ...]]) -> Flip:
    """The example with the fewest values that are not at rest, made smaller still while it flips alike."""
    chosen = min(examples, key=lambda each: _size(rest_of(shape, each)))
    before, after = (_decided(each, shape, chosen) for each in (old, new))
    for number, choices in enumerate(shape.choices):
        smaller = (*chosen[:number], choices[0], *chosen[number + 1 :])
        again = tuple(_decided(each, shape, smaller) for each in (old, new))
        if [each.outcome for each in again] == [before.outcome, after.outcome]:
            chosen, before, after = smaller, *again
    return Flip(
        operation=shape.operation,
        surface=shape.surface,
        old=f"{before.outcome.value} {before.reason.value}",
        new=f"{after.outcome.value} {after.reason.value}",
        rules=tuple(after.rules or before.rules),
        count=len(examples),
        example=rest_of(shape, chosen),
    )


def _size(values: Mapping[str, Any]) -> tuple[int, int, str]:
    numbers = (value for value in values.values() if type(value) is int)
    return len(values), sum(map(abs, numbers)), str(values)


def _reads(bundle: Bundle, surface: str, operation: str) -> Any:
    """Everything that a decision about this operation depends on."""
    rules = [
        (rule.name, rule.effect, unparse(parse(rule.program.source), policy.environment), policy.constants)
        for policy in bundle.policies.policies
        if policy.surface == surface and operation in policy.operations and not policy.shadow
        for rule in policy.rules
    ]
    counters = [
        (c.name, c.key, c.window_s, c.measure) for c in bundle.policies.counters_of(surface, operation)
    ]
    schema, attrs = dict(_schema(bundle, surface, operation)), dict(bundle.policies.agent_attrs)
    beyond = _beyond(bundle, surface, operation)
    return sorted(rules, key=lambda row: row[0]), counters, beyond, schema, attrs


def _beyond(bundle: Bundle, surface: str, operation: str) -> list[Any]:
    """What decides beside the request: facts, and the object that it is bound to."""
    applicable = bundle.policies.table.get((surface, operation))
    if applicable is None:
        return []
    facts: list[Any] = [replace(each, file="", line=0) for each in applicable.facts]
    return facts + ([(dict(applicable.bound), applicable.needs_bound)] if applicable.bound else [])


def _schema(bundle: Bundle, surface: str, operation: str) -> Mapping[str, ParamSchema]:
    applicable = bundle.policies.table.get((surface, operation))
    if applicable is not None:
        return applicable.params
    if operation in bundle.index.operations(surface):
        return bundle.index.param_schema(surface, (operation,))
    return {}


def _readable(
    params: Mapping[str, ParamSchema],
    attrs: Mapping[str, ParamSchema],
    counters: Sequence[str],
    paths: Collection[str],
) -> dict[str, tuple[Any, bool]]:
    """The type of each value that a condition may look at, and whether it may be absent."""
    known: dict[str, tuple[Any, bool]] = {
        "action.principal": (STRING, True),
        "agent.id": (STRING, False),
        "clock.now_s": (INT, False),
        "clock.hour_utc": (INT, False),
        "clock.weekday_utc": (INT, False),
    }
    known |= {f"params.{name}": (cel_type(each.type), each.optional) for name, each in params.items()}
    known |= {f"agent.attrs.{name}": (cel_type(each.type), True) for name, each in attrs.items()}
    known |= {
        f"counters.{name}.{what}": (INT, False)
        for name in counters
        for what in ("sum", "count")
        if any(path.startswith(f"counters.{name}") for path in paths)
    }
    return known


def _shape(old: Bundle, new: Bundle, surface: str, operation: str) -> Shape:
    """Every value that a rule of either side may look at, and what to try for it."""
    rules = [
        (policy, rule)
        for bundle in (old, new)
        for policy in bundle.policies.policies
        if policy.surface == surface and operation in policy.operations
        for rule in policy.rules
    ]
    literals = _literals(rules)
    paths = {path for _, rule in rules for path in rule.program.paths}
    params = dict(_schema(old, surface, operation)) | dict(_schema(new, surface, operation))
    attrs = dict(old.policies.agent_attrs) | dict(new.policies.agent_attrs)
    counters = sorted({counter.name for policy, _ in rules for counter in policy.counters})
    known = _readable(params, attrs, counters, paths)
    named: list[tuple[str, tuple[Choice, ...]]] = []
    for path, (kind, optional) in sorted(known.items()):
        is_read = path in paths or path.startswith("counters.")
        if is_read:
            named.append((path, variants(kind, optional, literals, path)))
        elif path.startswith("params.") and not optional:
            named.append((path, variants(kind, optional, {}, path)[:1]))
    if "agent.groups" in paths:
        named.append(("agent.groups", ((), *((text,) for text in literals.get(STRING, ())))))
    if any(path.startswith("approvals") for path in paths) or _speaks_of_approvals(rules):
        roles = [text for text in literals.get(STRING, ()) if isinstance(text, str)]
        named.append(("approvals", ("", *(roles or ["a role"]))))
    return Shape(
        surface=surface,
        operation=operation,
        effect=next((e.value for b in (old, new) for e in sorted(b.index.effects(surface))), "commit"),
        paths=tuple(path for path, _ in named),
        choices=tuple(choices for _, choices in named),
        counters=tuple(counters),
    )


def _speaks_of_approvals(rules: Sequence[tuple[Policy, Rule]]) -> bool:
    return any("approvals" in rule.when for _, rule in rules)


def _literals(rules: Sequence[tuple[Policy, Rule]]) -> dict[Any, tuple[Any, ...]]:
    """What the conditions compare with: whole numbers, their sums and differences, and strings."""
    found: set[Constant] = set()
    for policy, rule in rules:
        found.update(_in(parse(unparse(parse(rule.program.source), policy.environment))))
        for value in policy.constants.values():
            items = (
                value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
            )
            found.update(item for item in items if isinstance(item, str | int))
    numbers = sorted({n for n in found if isinstance(n, int) and not isinstance(n, bool)})[:_MAX_LITERALS]
    if len(numbers) <= _MAX_LITERALS // 4:  # `a + b <= limit` turns where neither of its literals stands
        numbers = sorted({*numbers, *(abs(a - b) for a, b in combinations(numbers, 2))})
    texts = sorted({text for text in found if isinstance(text, str)})[:_MAX_LITERALS]
    near = sorted({min(max(n + d, INT_MIN), INT_MAX) for n in numbers for d in (-1, 0, 1)})
    return {INT: tuple(near), STRING: tuple(texts), BOOL: ()}


def _scalars(value: Constant) -> Iterator[str | int]:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    return (item for item in items if isinstance(item, str | int))


def _in(node: Any) -> Iterator[Constant]:
    if isinstance(node, Literal):
        yield node.value
    elif isinstance(node, tuple):
        for item in node:
            yield from _in(item)
    elif is_dataclass(node):
        for each in fields(node):
            yield from _in(getattr(node, each.name))


# --- what is written ---


def _edits(old: Bundle, new: Bundle) -> Iterator[Edit]:
    yield from _changed("", _written(old), _written(new))


def _changed(prefix: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Edit]:
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        path = f"{prefix} {name}".strip()
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _changed(path, before, after)
        else:
            yield Edit(what=path, old=_shown(before), new=_shown(after))


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_shown(item)}" for name, item in sorted(value.items()))
    return value if isinstance(value, str) else repr(value)


def _written(bundle: Bundle) -> dict[str, Any]:
    policies = {f"policy {policy.name}": _policy(policy) for policy in bundle.policies.policies}
    attrs = {f"agent.attrs.{n}": f"{s.type}" for n, s in bundle.policies.agent_attrs.items()}
    maps = {f"map {row['head']['name']}": _map(row) for row in bundle.index.to_lock()["maps"]}
    return policies | attrs | maps


def _policy(policy: Policy) -> dict[str, Any]:
    rules = {
        f"rule {rule.name.partition('/')[2]}": {
            "effect": rule.effect.value,
            "when": unparse(parse(rule.program.source), policy.environment),
            "reason": rule.reason or "",
        }
        for rule in policy.rules
    }
    constants = {f"constant {name}": repr(value) for name, value in policy.constants.items()}
    counters = {
        f"counter {each.name}": {
            "key": " ".join(each.key),
            "window_s": each.window_s,
            "measure": each.measure,
        }
        for each in policy.counters
    }
    head = {
        "owner": policy.owner,
        "surface": policy.surface,
        "operations": " ".join(policy.operations),
        "shadow": policy.shadow,
    }
    return head | rules | constants | counters


def _map(row: Mapping[str, Any]) -> dict[str, Any]:
    head = {name: value for name, value in row["head"].items() if name not in ("file", "operations", "name")}
    return {name: _tree(value) for name, value in head.items()} | {
        f"operation {name}": _tree(spec) for name, spec in row["operations"].items()
    }


def _tree(value: Any) -> Any:
    """Lists of named things become mappings, so that one that moved is not an edit; lines are none either."""
    if isinstance(value, dict):
        return {str(name): _tree(item) for name, item in value.items() if name != "line"}
    if isinstance(value, list):
        if value and all(isinstance(item, dict) and "name" in item for item in value):
            return {item["name"]: _tree(item) for item in value}
        return [_tree(item) for item in value]
    return value
