"""Policy files become one PolicySet, or a ConfigError with file, line and what to write.

Format: policies/README.md. Of the files found, `kind: Policy` is compiled, `kind: Bundle` declares the
agents' attributes, `kind: PolicyTest` is left to policytest.py. What stands under `spec` is read by
policy_constants.py, policy_counters.py, policy_facts.py and policy_rules.py. Every condition is parsed and
typed against the surface maps, so a policy that loads cannot meet an unknown name or a wrong type.

Invariants (tests/test_policy.py):
  O2  Every file either loads completely or is a ConfigError; no rule, key or file is skipped silently.
  O4  Full rule names ("policy/rule") are unique in a PolicySet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from . import policy_words
from .cel.model import MAX_STEPS
from .counters import Counter
from .errors import ConfigError
from .heap import building
from .policy_constants import constants_of
from .policy_counters import MAX_COUNTERS, counters_of
from .policy_document import KINDS, check_identifier, envelope, known, policy_files
from .policy_facts import Providers, facts_of, provider_fields, unique_facts
from .policy_lint import Finding, lint
from .policy_model import (
    MAX_RULES,
    Applicable,
    ParamSource,
    Policy,
    PolicySet,
    Rule,
    RuleEffect,
    environment,
    policy_set,
)
from .policy_rules import rules_of
from .strictyaml import Node, load_file
from .surface.model import CelType, ParamSchema

__all__ = [
    "Finding",
    "ParamSource",
    "Policy",
    "PolicySet",
    "Rule",
    "RuleEffect",
    "lint",
    "load_policies",
]


@building()
def load_policies(paths: Sequence[Path], index: ParamSource, *, kept: bool = False) -> PolicySet:
    """Load every policy under `paths` (files, or folders with *.yaml). `kept`: strictyaml.load().
    Raises ConfigError."""
    by_kind: dict[str, list[Node]] = {kind: [] for kind in KINDS}
    for path in policy_files(paths):
        root = load_file(path, kept=kept)
        kind = envelope(root)[0]
        if kind != "PolicyTest" and path.name.endswith("_test.yaml"):
            # The bundle digest leaves *_test.yaml out, so nothing that decides may hide there.
            raise root.fail(f"a file named *_test.yaml holds tests, not kind: {kind}; rename it")
        by_kind[kind].append(root)
    attrs, providers = _declared(by_kind["Bundle"])
    seen: dict[str, Node] = {}
    shared: _Shared = {}
    policies = []
    for root in by_kind["Policy"]:
        policy = _policy(root, index, attrs, providers, shared, kept)
        if policy.name in seen:
            first = seen[policy.name]
            raise root.fail(f"a policy named {policy.name!r} exists already: {first.file}:{first.line}")
        seen[policy.name] = root
        policies.append(policy)
    if not policies:
        shown = ", ".join(str(path) for path in paths) or "no path was given"
        raise ConfigError(f"no policy found in: {shown}; without one nothing is ever permitted")
    _unique_counters(policies)
    unique_facts([fact for policy in policies for fact in policy.facts])
    deciding = [root.file for root in (*by_kind["Policy"], *by_kind["Bundle"])]
    loaded = policy_set(policies, index, attrs, deciding)
    for (surface, operation), applicable in loaded.table.items():
        _check_bounds(surface, operation, applicable)
    return loaded


def _check_bounds(surface: str, operation: str, applicable: Applicable) -> None:
    """How many rules one action may meet, and what they may take. Raises ConfigError."""
    place = f"to {operation} on {surface}"
    rules = applicable.with_shadow or applicable.rules
    if len(rules) > MAX_RULES:
        last = rules[-1]
        message = f"{len(rules)} rules apply {place}; at most {MAX_RULES} may"
        raise ConfigError(message, file=last.file, line=last.line)
    if len(applicable.counters) > MAX_COUNTERS:
        counter = applicable.counters[-1]
        message = f"{len(applicable.counters)} counters apply {place}; at most {MAX_COUNTERS} may"
        raise ConfigError(message, file=counter.file, line=counter.line)
    worst = applicable.cost.worst
    if worst > MAX_STEPS:
        dearest = max(applicable.rules, key=lambda rule: rule.program.cost.worst)
        message = (
            f"rule {dearest.name}: rules that apply {place} take up to {worst} steps; at most {MAX_STEPS} "
            f"may ({dearest.program.cost.worst} are this rule's); use shorter conditions and lists"
        )
        raise ConfigError(message, file=dearest.file, line=dearest.line)


def _unique_counters(policies: Sequence[Policy]) -> None:
    """One namespace for all policies: the record of a decision names counters by their name alone."""
    seen: dict[str, Counter] = {}
    for counter in (each for policy in policies for each in policy.counters):
        first = seen.setdefault(counter.name, counter)
        if first is not counter:
            message = f"a counter named {counter.name!r} exists already: {first.file}:{first.line}"
            raise ConfigError(f"{message}; give this one another name", file=counter.file, line=counter.line)


# --- kind: Bundle (agents.yaml) ---------------------------------------------------------------


def _declared(roots: Sequence[Node]) -> tuple[dict[str, ParamSchema], dict[str, dict[str, ParamSchema]]]:
    """Agents' attributes, and the fields of each provider of facts."""
    attrs: dict[str, ParamSchema] = {}
    providers: dict[str, dict[str, ParamSchema]] = {}
    for root in roots:
        _, _, spec = envelope(root)
        parts = spec.mapping(
            optional=("agent_attrs", "facts"), what="spec of a Bundle", hints=policy_words.BUNDLE_SPEC
        )
        if not parts:
            raise spec.fail("spec of a Bundle is empty: write `agent_attrs` or `facts`")
        if "agent_attrs" in parts:
            _agent_attrs(parts["agent_attrs"], attrs)
        for key, node in parts["facts"].open_mapping("facts").items() if "facts" in parts else ():
            if key in providers:
                raise node.fail_key(f"facts: {key!r} is declared twice")
            providers[key] = provider_fields(key, node, _attr)
    return attrs, providers


def _agent_attrs(attrs: Node, declared: dict[str, ParamSchema]) -> None:
    for key, node in attrs.open_mapping("agent_attrs").items():
        check_identifier(key, node, "agent_attrs")
        if key in declared:
            raise node.fail_key(f"agent_attrs: {key!r} is declared twice")
        declared[key] = _attr(node, f"agent_attrs.{key}")


def _attr(node: Node, what: str) -> ParamSchema:
    kinds = tuple(CelType)
    if isinstance(node.value, dict):
        parts = node.mapping(required=("type",), optional=("optional",), what=what)
        kind = parts["type"].choice(kinds, f"{what}.type")
        optional = "optional" in parts and parts["optional"].boolean(f"{what}.optional")
        return ParamSchema(type=CelType(kind), optional=optional)
    return ParamSchema(type=CelType(node.choice(kinds, what)), optional=False)


# --- kind: Policy -----------------------------------------------------------------------------


type _Shared = dict[tuple[str, tuple[str, ...] | None], dict[object, object]]


def _policy(
    root: Node,
    index: ParamSource,
    attrs: Mapping[str, ParamSchema],
    providers: Providers,
    shared: _Shared,
    kept: bool,
) -> Policy:
    metadata, spec, shadow = _parts(root)
    surface = known(spec["surface"], index.surfaces(), "no surface map has the surface")
    listed = _operations(spec.get("operations"), surface, index)
    params = _params(spec, surface, listed, index)
    constants = constants_of(spec.get("constants"), kept=kept)
    same = shared.setdefault((surface, listed), {})
    bound, _ = index.bound_schema(surface, listed)
    names = environment(params, attrs, constants, bound=bound, shared=same)
    counters = counters_of(spec.get("counters"), names)
    facts = facts_of(spec.get("facts"), names, providers)
    if counters or facts:
        names = environment(params, attrs, constants, counters, facts, bound, shared=same)
    policy_name = metadata["name"].text("metadata.name")
    return Policy(
        name=policy_name,
        owner=metadata["owner"].text("metadata.owner"),
        surface=surface,
        operations=tuple(sorted(index.operations(surface) if listed is None else listed)),
        constants=constants,
        counters=counters,
        facts=facts,
        environment=names,
        rules=tuple(rules_of(spec["rules"], policy_name, names)),
        shadow=shadow,
        file=root.file,
        line=root.line,
    )


def _parts(root: Node) -> tuple[dict[str, Node], dict[str, Node], bool]:
    """metadata, spec, and whether it only shadows."""
    _, metadata, spec_node = envelope(root)
    if "owner" not in metadata:
        raise metadata["name"].fail_key("metadata needs the key 'owner': who answers for this policy")
    spec = spec_node.mapping(
        required=("surface", "rules"),
        optional=("operations", "constants", "counters", "facts", "shadow"),
        what="spec",
        hints=policy_words.SPEC,
    )
    shadow = "shadow" in spec and spec["shadow"].boolean("spec.shadow")
    if shadow and ("counters" in spec or "facts" in spec):
        # Nothing would be charged to its counters, and nobody may wait for, or be refused for, its facts.
        message = "a shadow policy has no counters or facts: try them with `holdgate backtest`"
        raise spec["shadow"].fail_key(message)
    return metadata, spec, shadow


def _params(
    spec: Mapping[str, Node], surface: str, listed: tuple[str, ...] | None, index: ParamSource
) -> Mapping[str, ParamSchema]:
    try:
        return index.param_schema(surface, listed)
    except ConfigError as error:
        place = spec.get("operations", spec["surface"])
        message = f"the parameters of {surface} do not agree: {error}; list `operations` that do"
        raise place.fail(message) from error


def _operations(node: Node | None, surface: str, index: ParamSource) -> tuple[str, ...] | None:
    """The listed operations; None: all of the surface. An empty list is not "all": it is an error."""
    if node is None:
        return None
    operations = frozenset(index.operations(surface))
    found: list[str] = []
    for item in node.sequence("spec.operations"):
        if isinstance(item.value, str) and "*" in item.value:
            raise item.fail("there are no patterns; leave `operations` out to mean every one of the surface")
        operation = known(item, operations, f"no surface map has on {surface} the operation")
        if operation in found:
            raise item.fail(f"spec.operations lists {operation} twice")
        found.append(operation)
    if not found:
        raise node.fail("spec.operations is empty; leave it out to mean every operation of the surface")
    return tuple(found)
