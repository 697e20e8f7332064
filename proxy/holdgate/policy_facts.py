"""`spec.facts` of policies and Bundles become typed Facts, or a ConfigError with file, line and a fix.

    kind: Bundle   facts: {ehr-panel: {member: bool}}                    what a provider says
    kind: Policy   facts: {panel: {provider: ehr-panel, key: [...]}}     which question a policy asks

Where a provider is stands in holdgate.yaml (config_facts.py): policies load, are tested and replay without.

Invariants (tests/test_policy_facts.py):
  O8  A fact that loads has a provider with declared fields, and a key of known scalar inputs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Final

from .cel.model import Environment
from .errors import ConfigError
from .facts import AS_OF, MAX_FACTS, Fact
from .policy_counters import key_path
from .strictyaml import Node
from .surface.model import CelType, ParamSchema

__all__ = ["Providers", "facts_of", "provider_fields", "unique_facts"]

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}\Z")
_PROVIDER: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}\Z")
_OURS: Final = ("source",)  # in the record beside the fields; conditions cannot name it

type Providers = Mapping[str, Mapping[str, ParamSchema]]


def provider_fields(
    name: str, node: Node, schema: Callable[[Node, str], ParamSchema]
) -> dict[str, ParamSchema]:
    """One provider of a Bundle: the fields of its answers. Raises ConfigError."""
    what = f"facts.{name}"
    if not _PROVIDER.match(name):
        raise node.fail_key(f"{what}: a provider's name is lower-case letters, digits, `-` and `_`")
    fields: dict[str, ParamSchema] = {}
    for key, item in node.open_mapping(what).items():
        if not _NAME.match(key) or key in _OURS:
            raise item.fail_key(f"{what}: {key!r} is not a name that a fact's field can have")
        fields[key] = schema(item, f"{what}.{key}")
    if not fields:
        raise node.fail(f"{what} has no field: write for example {{member: bool}}")
    if fields.get(AS_OF, _AS_OF) != _AS_OF:
        raise node.value[AS_OF].fail(
            f"{what}.{AS_OF} is the time of the answer: it must be int, not optional"
        )
    return fields


_AS_OF: Final = ParamSchema(type=CelType.INT, optional=False)


def facts_of(node: Node | None, names: Environment, providers: Providers) -> tuple[Fact, ...]:
    """`names` is the environment of the policy's conditions, without facts. Raises ConfigError."""
    if node is None:
        return ()
    listed = sorted(node.open_mapping("spec.facts").items())
    found = tuple(_fact(name, item, names, providers) for name, item in listed)
    if not found:
        raise node.fail("spec.facts is empty; leave it out")
    if len(found) > MAX_FACTS:
        raise node.fail(f"spec.facts has {len(found)} facts; at most {MAX_FACTS} may be declared")
    return found


def _fact(name: str, node: Node, names: Environment, providers: Providers) -> Fact:
    what = f"facts.{name}"
    if not _NAME.match(name):
        raise node.fail_key(f"{what}: {name!r} is not a name that a condition can use")
    parts = node.mapping(required=("provider", "key"), what=what)
    provider = parts["provider"].text(f"{what}.provider")
    if provider not in providers:
        near = get_close_matches(provider, providers, n=1)
        there = f"there are: {', '.join(sorted(providers))}" if providers else "none is declared"
        advice = f"did you mean {near[0]!r}?" if near else there
        raise parts["provider"].fail(
            f"{what}: no Bundle declares the fields of the provider {provider!r}; {advice}"
        )
    key = tuple(key_path(item, names, what) for item in parts["key"].sequence(f"{what}.key"))
    if not key:
        raise parts["key"].fail(
            f"{what}.key is empty: name what the answer is about, such as [params.patient]"
        )
    return Fact(
        name=name, provider=provider, key=key, fields=providers[provider], file=node.file, line=node.line
    )


def unique_facts(facts: list[Fact]) -> None:
    """One namespace for all policies: the record of a decision names facts by their name alone."""
    seen: dict[str, Fact] = {}
    for fact in facts:
        first = seen.setdefault(fact.name, fact)
        if not first.same_as(fact):
            message = f"a fact named {fact.name!r} asks something else: {first.file}:{first.line}"
            raise ConfigError(f"{message}; give this one another name", file=fact.file, line=fact.line)
