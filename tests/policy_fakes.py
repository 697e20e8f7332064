"""A small stand-in for the surface index, and short ways to make policy sets and inputs for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from holdgate.cel.evaluate import Program, compile_program
from holdgate.cel.model import BOOL
from holdgate.errors import ConfigError
from holdgate.policy import Policy, PolicySet, Rule, RuleEffect, load_policies
from holdgate.policy_model import environment, policy_set
from holdgate.surface.model import CelType, Effect, ParamSchema

INT, TEXT, FLAG = CelType.INT, CelType.STRING, CelType.BOOL


def required(kind: CelType) -> ParamSchema:
    return ParamSchema(type=kind, optional=False)


def optional(kind: CelType) -> ParamSchema:
    return ParamSchema(type=kind, optional=True)


SCHEMAS: dict[str, dict[str, dict[str, ParamSchema]]] = {
    "payments.refund": {
        "stripe.PostRefunds": {
            "amount": required(INT),
            "currency": required(TEXT),
            "live": required(FLAG),
            "account": optional(TEXT),
            "tags": optional(CelType.LIST_STRING),
        },
        "stripe.PostChargesRefund": {"amount": required(INT), "currency": required(TEXT)},
    },
    "data.read": {"aws.s3.GetObject": {"bucket": required(TEXT)}},
    "data.delete": {"aws.s3.DeleteObject": {"bucket": required(TEXT), "key": required(TEXT)}},
}


class FakeIndex:
    """ParamSource over a dict: surface -> operation -> parameter -> schema."""

    def __init__(self, schemas: Mapping[str, Mapping[str, Mapping[str, ParamSchema]]] = SCHEMAS) -> None:
        self._schemas = schemas

    def surfaces(self) -> frozenset[str]:
        return frozenset(self._schemas)

    def operations(self, surface: str) -> tuple[str, ...]:
        return tuple(sorted(self._schemas[surface]))

    def effects(self, surface: str, operation: str | None = None) -> frozenset[Effect]:
        return frozenset({Effect.READ if surface.endswith(".read") else Effect.COMMIT})

    def bound_schema(
        self, surface: str, operations: tuple[str, ...] | None
    ) -> tuple[Mapping[str, ParamSchema], bool]:
        return {}, False

    def param_schema(self, surface: str, operations: tuple[str, ...] | None) -> Mapping[str, ParamSchema]:
        chosen = [self._schemas[surface][name] for name in operations or self.operations(surface)]
        merged: dict[str, ParamSchema] = {}
        for name in sorted({name for schema in chosen for name in schema}):
            found = [schema[name] for schema in chosen if name in schema]
            if len({each.type for each in found}) > 1:
                raise ConfigError(f"{name} has two types")
            everywhere = len(found) == len(chosen) and not any(each.optional for each in found)
            merged[name] = ParamSchema(type=found[0].type, optional=not everywhere)
        return merged


AGENTS = """\
apiVersion: holdgate/v1
kind: Bundle
metadata: {name: agents, owner: ops@example.com}
spec:
  agent_attrs: {accounts: list<string>, tier: {type: int, optional: true}}
"""


def policy_text(
    rules: str,
    *,
    name: str = "p",
    surface: str = "payments.refund",
    operations: str | None = "[stripe.PostRefunds]",
    extra: str = "",
) -> str:
    """A policy file; `rules` is indented by six here, `extra` lines by two."""
    lines = [
        "apiVersion: holdgate/v1",
        "kind: Policy",
        f"metadata: {{name: {name}, owner: ops@example.com}}",
        "spec:",
        f"  surface: {surface}",
        *([f"  operations: {operations}"] if operations else []),
        *(f"  {line}" for line in extra.splitlines()),
        "  rules:",
        *(f"    {line}" for line in rules.splitlines()),
    ]
    return "\n".join(lines) + "\n"


def rule(rule_id: str, effect: str, when: str, more: str = "") -> str:
    """One rule in flow style; a deny gets a reason, an unconditional permit says so."""
    if effect == "deny":
        more += ", reason: because"
    if effect == "permit" and when in ("always", "true"):
        more += ", unsafe_allow_all: true"
    quoted = "'" + when.replace("'", "''") + "'"
    return f"- {{id: {rule_id}, effect: {effect}, when: {quoted}{more}}}"


def load_texts(folder: Path, *texts: str, agents: str | None = AGENTS, index: Any = None) -> PolicySet:
    """Write the texts as files of `folder` and load it."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(texts):
        (folder / f"policy_{number}.yaml").write_text(text, encoding="utf-8")
    if agents is not None:
        (folder / "agents.yaml").write_text(agents, encoding="utf-8")
    return load_policies([folder], index or FakeIndex())


@cache
def _program(when: str, operation: str) -> Program:
    names = environment(SCHEMAS["payments.refund"][operation], {}, {})
    return compile_program(when, names, expect=BOOL)


def built(rules: Mapping[str, Sequence[tuple[str, str]]], policy: str = "p", prefix: str = "r") -> PolicySet:
    """A policy set without files: operation -> [(effect, condition)]. Rules are named r0, r1, ..."""
    policies = []
    for number, (operation, pairs) in enumerate(sorted(rules.items())):
        name = f"{policy}{number}"
        made = tuple(
            Rule(
                name=f"{name}/{prefix}{place}",
                effect=RuleEffect(effect),
                when=when,
                reason=None,
                unsafe_allow_all=False,
                program=_program(when, operation),
                file="x.yaml",
                line=1,
            )
            for place, (effect, when) in enumerate(pairs)
        )
        policies.append(
            Policy(
                name=name,
                owner="ops",
                surface="payments.refund",
                operations=(operation,),
                constants={},
                counters=(),
                facts=(),
                environment=environment(SCHEMAS["payments.refund"][operation], {}, {}),
                rules=made,
                shadow=False,
                file="x.yaml",
                line=1,
            )
        )
    return policy_set(policies, FakeIndex(), {}, [])


def action(**changes: Any) -> dict[str, Any]:
    return {
        "surface": "payments.refund",
        "operation": "stripe.PostRefunds",
        "effect": "commit",
        "host": "api.stripe.com",
        "params": {"amount": 4200, "currency": "eur", "live": True},
        **changes,
    }


def decision_input(*actions: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "v": 1,
        "agent": {"id": "refund-bot", "groups": ["payments"], "attrs": {"accounts": ["acct_1"]}},
        "actions": list(actions) or [action()],
        "request": {"digest": "sha256:" + "ab" * 32},
        "clock": {"now_s": 1_795_262_400, "hour_utc": 12, "weekday_utc": 6},
        "approvals": [],
        **changes,
    }
