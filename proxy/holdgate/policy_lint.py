"""A PolicySet that loads is searched for what is allowed but probably not meant.

What can never be right is a ConfigError of policy.py; what can be right in rare cases is a Finding
here. Findings are errors of `holdgate check` unless it is told to warn only.

Invariants (tests/test_policy.py):
  O5  Every finding names a file, a line and what to do; the same input gives the same list.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .cel.check import path_of
from .cel.model import Binary, Has, Literal, Logic, Node, parts_of
from .cel.parse import parse
from .cel.unparse import unparse
from .policy_model import ParamSource, Policy, PolicySet, Rule, RuleEffect
from .surface.model import Effect

__all__ = ["Finding", "lint"]

_ORDER = frozenset(("<", "<=", ">", ">="))


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Finding:
    file: str
    line: int
    message: str
    column: int = 0  # 0: the line as a whole
    excerpt: str = ""  # the line and a caret, for people

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.file, self.line, self.column) if part)
        return f"{place}: {self.message}" + (f"\n{self.excerpt}" if self.excerpt else "")


def lint(policies: PolicySet, index: ParamSource) -> tuple[Finding, ...]:
    """Everything that looks like a mistake, sorted by place."""
    found: set[Finding] = set()
    for policy in policies.policies:
        found.update(_unused_constants(policy))
        found.update(_unused_counters(policy))
        found.update(_unused_facts(policy))
        if policy.surface in index.surfaces():
            found.update(_unreachable(policy, policies, index))
        for rule in policy.rules:
            found.update(_weak_rule(policy, rule, index))
            found.update(_no_lower_bound(rule))
            found.update(_not_expanded(rule))
    found.update(_shadowed(policies))
    found.update(_unreleased(policies))
    found.update(_uncovered(policies, index))
    found.update(_uncovered_operations(policies, index))
    return tuple(sorted(found))


def _at(rule: Rule, message: str) -> Finding:
    return Finding(file=rule.file, line=rule.line, message=f"rule {rule.name}: {message}")


def _only_reads(surface: str, index: ParamSource) -> bool:
    return index.effects(surface) <= {Effect.READ}


def _unused_constants(policy: Policy) -> Iterator[Finding]:
    used = {path for rule in policy.rules for path in rule.program.paths}
    for name in policy.constants:
        if f"constants.{name}" not in used:
            message = f"policy {policy.name}: the constant {name!r} is not used; remove it or use it"
            yield Finding(file=policy.file, line=policy.line, message=message)


def _unused_counters(policy: Policy) -> Iterator[Finding]:
    used = {path for rule in policy.rules for path in rule.program.paths}
    for counter in policy.counters:
        if used.isdisjoint({f"counters.{counter.name}.sum", f"counters.{counter.name}.count"}):
            message = f"policy {policy.name}: the counter {counter.name!r} is not used; remove it or use it"
            yield Finding(file=counter.file, line=counter.line, message=message)


def _unused_facts(policy: Policy) -> Iterator[Finding]:
    used = {path for rule in policy.rules for path in rule.program.paths}
    for fact in policy.facts:
        if not any(path.startswith(f"facts.{fact.name}.") for path in used):
            message = f"policy {policy.name}: the fact {fact.name!r} is not used; remove it or use it"
            yield Finding(file=fact.file, line=fact.line, message=message)


def _weak_rule(policy: Policy, rule: Rule, index: ParamSource) -> Iterator[Finding]:
    if rule.program.constant is False:
        yield _at(rule, "this condition can never be true; remove the rule")
    elif (
        rule.effect is RuleEffect.PERMIT
        and not rule.unsafe_allow_all
        and not _only_reads(policy.surface, index)
    ):
        if not any(path.startswith("params.") for path in rule.program.paths):
            yield _at(rule, "permits without looking at any parameter of the action; name at least one")


def _no_lower_bound(rule: Rule) -> Iterator[Finding]:
    """A permit that bounds an amount from above only lets zero and less through."""
    if rule.effect is not RuleEffect.PERMIT:
        return
    bounded: dict[str, set[bool]] = {}
    for node in _nodes(parse(rule.program.source)):
        if not isinstance(node, Binary):
            continue
        for side, other, above in (
            (node.left, node.right, ("<", "<=")),
            (node.right, node.left, (">", ">=")),
        ):
            name = path_of(side) or ""
            if (
                node.op in _ORDER
                and "amount" in name
                and name.startswith("params.")
                and path_of(other) != name
            ):
                bounded.setdefault(name, set()).add(node.op in above)
    for name, sides in sorted(bounded.items()):
        if sides == {True}:
            yield _at(rule, f"bounds {name} from above only; add `{name} >= 1`")


_PLACEHOLDER = re.compile(r"\$\{|\{\{|%\{|\$\(|<[A-Z_]+>")
_DATE = re.compile(r"(?<![\w.])[12][0-9]{3}-[0-9]{1,2}-[0-9]{1,2}(?![\w.])")


def _not_expanded(rule: Rule) -> Iterator[Finding]:
    """Texts of templates, and dates without quotes: they load, and mean something else."""
    for node in _nodes(parse(rule.program.source)):
        if isinstance(node, Literal) and isinstance(node.value, str):
            if _PLACEHOLDER.search(node.value):
                yield _at(rule, f"compares with {node.value!r} as it stands: there are no placeholders")
        elif isinstance(node, Binary) and node.op == "-":
            text = rule.program.source[node.start : node.end]
            if _DATE.fullmatch(text):
                message = f"{text} is a subtraction, not a date; use clock.now_s (seconds since 1970)"
                yield _at(rule, message)


def _unreachable(policy: Policy, policies: PolicySet, index: ParamSource) -> Iterator[Finding]:
    """Listed operations that no rule can release, because each needs a parameter that they never have."""
    if len(policy.operations) == len(index.operations(policy.surface)):
        return  # a policy for the whole surface is written for operations that differ
    for operation in policy.operations:
        declared = index.param_schema(policy.surface, (operation,))
        rules = policies.table[policy.surface, operation].rules
        releasing = [rule for rule in rules if rule.effect is not RuleEffect.DENY]
        needed = [_needs(rule) - declared.keys() for rule in releasing]
        if needed and all(needed):
            name = min(needed[0])
            yield _at(
                releasing[0],
                f"is never true for {operation}, which has no params.{name}; nor is any other rule",
            )


def _needs(rule: Rule) -> set[str]:
    """Parameters that must be there for the rule to be true: `has(params.x) && ...`."""
    tree = parse(rule.program.source)
    parts = tree.parts if isinstance(tree, Logic) and tree.op == "&&" else (tree,)
    paths = (path_of(part.target) or "" for part in parts if isinstance(part, Has))
    return {path.removeprefix("params.") for path in paths if path.startswith("params.")}


def _unreleased(policies: PolicySet) -> Iterator[Finding]:
    """Review rules whose approval would change nothing, because no permit rule asks for one."""
    for applicable in policies.table.values():
        permits = (rule for rule in applicable.rules if rule.effect is RuleEffect.PERMIT)
        if any("approvals" in rule.program.paths for rule in permits):
            continue
        for rule in applicable.rules:
            if rule.effect is RuleEffect.REVIEW:
                yield _at(
                    rule,
                    "no permit rule of this operation reads approvals, so an approval would release nothing; "
                    'add one with approvals.exists(a, a.role == "...")',
                )


def _nodes(node: Node) -> Iterator[Node]:
    yield node
    for part in parts_of(node):
        yield from _nodes(part)


def _shadowed(policies: PolicySet) -> Iterator[Finding]:
    """Rules whose condition a deny rule on the same operations repeats: they can never decide."""
    text: dict[str, str] = {}
    for policy in policies.policies:
        for rule in policy.rules:
            normal = unparse(parse(rule.program.source), policy.environment)
            # A map constant is named, not written out, so it means something in its own policy only.
            text[rule.name] = f"{policy.name}:{normal}" if "constants." in normal else normal
    for applicable in policies.table.values():
        denies = {text[rule.name]: rule for rule in applicable.rules if rule.effect is RuleEffect.DENY}
        for rule in applicable.rules:
            deny = denies.get(text[rule.name])
            if deny is not None and rule.effect is not RuleEffect.DENY:
                yield _at(rule, f"never decides: {deny.name} denies under the same condition")


def _uncovered(policies: PolicySet, index: ParamSource) -> Iterator[Finding]:
    covered = {policy.surface for policy in policies.policies if not policy.shadow}
    missing = [name for name in sorted(index.surfaces() - covered) if not _only_reads(name, index)]
    if missing:
        # One finding: the shipped maps have many surfaces, and the list is what matters.
        message = (
            f"no policy speaks of: {', '.join(missing)}; every request to them ends in SILENCE; "
            "write policies, or load fewer maps"
        )
        first = policies.policies[0]
        yield Finding(file=first.file, line=first.line, message=message)


def _uncovered_operations(policies: PolicySet, index: ParamSource) -> Iterator[Finding]:
    """Operations that change something, on a surface that has policies, none of which speaks of them."""
    for surface in sorted({policy.surface for policy in policies.policies} & index.surfaces()):
        missing = [
            name
            for name in index.operations(surface)
            if (surface, name) not in policies.table and not index.effects(surface, name) <= {Effect.READ}
        ]
        if missing:
            first = min(
                (policy for policy in policies.policies if policy.surface == surface), key=lambda p: p.file
            )
            shown = ", ".join(missing[:6]) + (f" and {len(missing) - 6} more" if len(missing) > 6 else "")
            message = f"no policy of {surface} speaks of: {shown}; every request to them ends in SILENCE"
            yield Finding(file=first.file, line=first.line, message=message)
