"""Policy files become one PolicySet, or a ConfigError with file, line and what to write.

Format: policies/README.md. Of the files found, `kind: Policy` is compiled, `kind: Bundle` declares the
agents' attributes, `kind: PolicyTest` is left to policytest.py. Every condition is parsed and typed
against the surface maps here, so a policy that loads cannot meet an unknown name or a wrong type.

Invariants (tests/test_policy.py):
  O2  Every file either loads completely or is a ConfigError; no rule, key or file is skipped silently.
  O3  A permit rule that no input can make false needs `unsafe_allow_all: true`, written out.
  O4  Full rule names ("policy/rule") are unique in a PolicySet.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Final

from . import policy_words
from .cel.evaluate import EvalError, compile_program
from .cel.model import BOOL, INT_MAX, INT_MIN, MAX_STEPS, CelError, Constant, Environment, type_of_constant
from .counters import Counter
from .errors import ConfigError
from .heap import building
from .policy_counters import MAX_COUNTERS, counters_of
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
from .strictyaml import Node, load_file
from .surface.model import CelType, ParamSchema
from .yamlfiles import yaml_files
from .yamltext import foreign_letter

__all__ = [
    "API_VERSION",
    "Finding",
    "ParamSource",
    "Policy",
    "PolicySet",
    "Rule",
    "RuleEffect",
    "envelope",
    "known",
    "lint",
    "load_policies",
    "not_a_number",
    "policy_files",
]

API_VERSION: Final = "holdgate/v1"
_KINDS: Final = ("Policy", "PolicyTest", "Bundle")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_FIELD: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}\Z")
_LIKE_A_NUMBER: Final = re.compile(
    r"[-+]?(?:[0-9][0-9_,]*(?:\.[0-9]*)?|\.[0-9]+|0[xob][0-9a-fA-F]+)(?:[eE][-+]?[0-9]+)?\Z"
)
_NAMES: Final = "letters, digits and _, not beginning with a digit"


@building()
def load_policies(paths: Sequence[Path], index: ParamSource, *, kept: bool = False) -> PolicySet:
    """Load every policy under `paths` (files, or folders with *.yaml). `kept`: strictyaml.load().
    Raises ConfigError."""
    by_kind: dict[str, list[Node]] = {kind: [] for kind in _KINDS}
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


def policy_files(paths: Sequence[Path]) -> tuple[Path, ...]:
    """The YAML files under `paths`, sorted, each once. Raises ConfigError for a path that is missing."""
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            found |= dict.fromkeys(yaml_files(path))
        elif path.is_file():
            found[path] = None
        else:
            raise ConfigError("no such file or folder", file=str(path))
    return tuple(sorted(found))


def envelope(root: Node) -> tuple[str, dict[str, Node], Node]:
    """(kind, metadata, spec) of one document of ours. Raises ConfigError."""
    top = root.mapping(
        required=("apiVersion", "kind", "metadata", "spec"), what="the document", hints=policy_words.DOCUMENT
    )
    if top["apiVersion"].text("apiVersion") != API_VERSION:
        raise top["apiVersion"].fail(f"apiVersion must be {API_VERSION}")
    kind = top["kind"].choice(_KINDS, "kind (in a policies folder)", policy_words.KINDS)
    metadata = top["metadata"].mapping(
        required=("name",), optional=("owner",), what="metadata", hints=policy_words.METADATA
    )
    name(metadata["name"], "metadata.name")
    return kind, metadata, top["spec"]


def name(node: Node, what: str) -> str:
    """A name that can stand in a header and a receipt. Raises ConfigError."""
    text = node.text(what)
    if not _NAME.match(text):
        raise node.fail(
            f"{what} must be 1-64 letters, digits, '.', '_' or '-', starting with a letter or digit"
        )
    return text


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
        if not _FIELD.match(key):
            raise node.fail_key(f"agent_attrs: {key!r} is not a name that a condition can use: {_NAMES}")
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
    surface = known(spec["surface"], index.surfaces(), "no surface map has the surface")
    listed = _operations(spec.get("operations"), surface, index)
    try:
        params = index.param_schema(surface, listed)
    except ConfigError as error:
        place = spec.get("operations", spec["surface"])
        raise place.fail(
            f"the parameters of {surface} do not agree: {error}; list `operations` that do"
        ) from error
    constants = _constants(spec.get("constants"), kept)
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
        rules=tuple(_rules(spec["rules"], policy_name, names)),
        shadow=shadow,
        file=root.file,
        line=root.line,
    )


def known(node: Node, names: frozenset[str], says: str) -> str:
    """The text, which must be one of `names`. Raises ConfigError: `says`, the text, what is close to it."""
    text = node.text("a name")
    if text not in names:
        close = get_close_matches(text, sorted(names), n=1)
        advice = (
            f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(sorted(names)) or 'none'}"
        )
        raise node.fail(f"{says} {text!r}; {advice}{foreign_letter(text)}")
    return text


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


def _constants(node: Node | None, kept: bool) -> dict[str, Constant]:
    found: dict[str, Constant] = {}
    if node is None:
        return found
    for key, item in node.open_mapping("spec.constants").items():
        what = f"constants.{key}"
        if not _FIELD.match(key):
            raise item.fail_key(f"{what}: {key!r} is not a name that a condition can use: {_NAMES}")
        value = item.plain()
        for scalar in scalars(item):
            not_a_number(scalar, what)
            if not kept:
                _not_computed(scalar, what)
        try:
            type_of_constant(value)
        except (ValueError, TypeError, AttributeError) as error:
            raise item.fail(
                f"{what} {error if isinstance(error, ValueError) else 'must not be null'}"
            ) from error
        for number in _numbers(value):
            if not INT_MIN <= number <= INT_MAX:
                raise item.fail(f"{what} does not fit into 64 bits")
        found[key] = value
    return found


def scalars(node: Node) -> Iterator[Node]:
    """Every value of a tree that is neither a list nor a mapping."""
    inner = node.value.values() if isinstance(node.value, dict) else node.value
    if isinstance(inner, str | int | None):
        yield node
    else:
        for item in inner:
            yield from scalars(item)


def not_a_number(node: Node, what: str) -> None:
    """A text without quotes that looks like a number is a mistake: 50.00, 010, 1_000. Raises ConfigError."""
    if node.plain_text and _LIKE_A_NUMBER.match(node.value):
        message = f"{what}: {node.value} is a text here; write an integer (money in minor units), or quote it"
        raise node.fail(message)


_MONEY: Final = re.compile(
    r"(?:[$\u20ac\u00a3\u00a5]|EUR|USD|GBP|CHF|JPY) ?[0-9][0-9.,]*\Z"
    r"|[0-9][0-9.,]* ?(?:[$\u20ac\u00a3\u00a5]|EUR|USD|GBP|CHF|JPY)\Z",
    re.IGNORECASE,
)
_COMPUTED: Final = re.compile(r"[0-9]+(?: +[-+*/] +| *\* *)[0-9]|constants\.|\$\{|[-+]?\.(?:inf|nan)\Z", re.I)


def _not_computed(node: Node, what: str) -> None:
    """A text without quotes that is meant to be worked out, or an amount with its currency."""
    if node.plain_text and _COMPUTED.match(node.value):
        message = f"{what}: {node.value} is a text here, constants are not computed"
        raise node.fail(f"{message}; write the value, or quote it")
    if node.plain_text and _MONEY.match(node.value):
        message = f"{what}: {node.value} is a text here"
        raise node.fail(f"{message}; write an integer in the minor unit (50.00 is 5000), or quote it")


def _numbers(value: Constant) -> Iterator[int]:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    return (item for item in items if isinstance(item, int))


def _rules(node: Node, policy: str, names: Environment) -> Iterator[Rule]:
    items = node.sequence("spec.rules")
    if not items:
        raise node.fail("spec.rules is empty; a policy needs at least one rule")
    seen: dict[str, int] = {}
    for item in items:
        rule = _rule(item, policy, names)
        if rule.name in seen:
            message = f"rule {rule.name.split('/')[1]!r} exists already in line {seen[rule.name]}"
            raise item.value["id"].fail(message)
        seen[rule.name] = item.line
        yield rule


_EFFECTS: Final = tuple(RuleEffect)
_WHEN: Final = {
    list: "one text, not a list; join the conditions with && or ||",
    dict: "one text, not a mapping; join the conditions with && or ||",
    bool: "a condition; for a rule without one, write `when: always`",
}


def _rule(node: Node, policy: str, names: Environment) -> Rule:
    parts = node.mapping(
        required=("id", "effect", "when"),
        optional=("reason", "unsafe_allow_all"),
        what="a rule",
        hints=policy_words.RULE,
    )
    rule_id = name(parts["id"], "id")
    effect = RuleEffect(parts["effect"].choice(_EFFECTS, "effect", policy_words.EFFECTS))
    when = parts["when"]
    if not isinstance(when.value, str):
        raise when.fail(f"rule {rule_id}: `when` must be {_WHEN.get(type(when.value), _WHEN[bool])}")
    source = "true" if when.value.strip() == "always" else when.value
    try:
        program = compile_program(source, names, expect=BOOL)
    except CelError as error:
        raise when.fail_at(error.offset, f"rule {rule_id}: {error.message}") from error
    if isinstance(program.constant, EvalError):
        raise when.fail(f"rule {rule_id}: this condition always fails ({program.constant})")
    if effect is RuleEffect.DENY and "reason" not in parts:
        raise node.fail(f"rule {rule_id}: a deny rule needs a `reason`: one sentence for people")
    if "reason" in parts and not parts["reason"].text("reason").strip():
        raise parts["reason"].fail(f"rule {rule_id}: the reason is empty; write one sentence for people")
    unsafe = "unsafe_allow_all" in parts and parts["unsafe_allow_all"].boolean("unsafe_allow_all")
    if effect is RuleEffect.PERMIT and program.constant is True and not unsafe:
        raise when.fail(
            f"rule {rule_id}: this permits every request of the surface; "
            "write a condition, or say `unsafe_allow_all: true` as well"
        )
    if unsafe and (effect is not RuleEffect.PERMIT or program.constant is not True):
        message = "unsafe_allow_all belongs to a permit rule with `when: always`; remove it here"
        raise parts["unsafe_allow_all"].fail(f"rule {rule_id}: {message}")
    return Rule(
        name=f"{policy}/{rule_id}",
        effect=effect,
        when=when.value,
        reason=parts["reason"].text("reason") if "reason" in parts else None,
        unsafe_allow_all=unsafe,
        program=program,
        file=node.file,
        line=node.line,
    )
