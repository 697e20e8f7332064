"""`spec.rules` of a policy becomes typed Rules, or a ConfigError with file, line and what to write.

Invariants (tests/test_policy.py):
  O3  A permit rule that no input can make false needs `unsafe_allow_all: true`, written out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from . import policy_words
from .cel.evaluate import EvalError, Program, compile_program
from .cel.model import BOOL, CelError, Environment
from .policy_document import name
from .policy_model import Rule, RuleEffect
from .strictyaml import Node

__all__ = ["rules_of"]

_EFFECTS: Final = tuple(RuleEffect)
_WHEN: Final = {
    list: "one text, not a list; join the conditions with && or ||",
    dict: "one text, not a mapping; join the conditions with && or ||",
    bool: "a condition; for a rule without one, write `when: always`",
}


def rules_of(node: Node, policy: str, names: Environment) -> Iterator[Rule]:
    """Each rule of the policy of this name. Raises ConfigError."""
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
    program = _condition(when, rule_id, names)
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


def _condition(when: Node, rule_id: str, names: Environment) -> Program:
    if not isinstance(when.value, str):
        raise when.fail(f"rule {rule_id}: `when` must be {_WHEN.get(type(when.value), _WHEN[bool])}")
    source = "true" if when.value.strip() == "always" else when.value
    try:
        program = compile_program(source, names, expect=BOOL)
    except CelError as error:
        raise when.fail_at(error.offset, f"rule {rule_id}: {error.message}") from error
    if isinstance(program.constant, EvalError):
        raise when.fail(f"rule {rule_id}: this condition always fails ({program.constant})")
    return program
