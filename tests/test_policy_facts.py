"""policy_facts.py: what a policy may ask, what its author is told, and what the gate makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from holdgate.errors import ConfigError, Outcome, Reason
from holdgate.gate import decide
from holdgate.policy import PolicySet, lint
from policy_fakes import AGENTS, FakeIndex, action, decision_input, load_texts, policy_text, rule

BUNDLE = """\
apiVersion: holdgate/v1
kind: Bundle
metadata: {name: facts}
spec:
  facts:
    ledger: {open: bool, limit: int, owner: {type: string, optional: true}}
"""
GOOD = "{provider: ledger, key: [agent.id, params.currency]}"
OPEN = "facts.account.open && params.amount <= facts.account.limit"
RECORD = {"open": True, "limit": 100, "as_of_s": 1, "source": "file"}


def text(facts: str = f"account: {GOOD}", when: str = OPEN, **changes: str) -> str:
    return policy_text(rule("cap", "permit", when), extra=f"facts: {{{facts}}}", **changes)


def loaded(folder: Path, *texts: str, bundle: str = BUNDLE) -> PolicySet:
    return load_texts(folder, *texts, bundle)


def test_o8_a_fact_has_its_provider_key_and_types(tmp_path: Path) -> None:
    (fact,) = loaded(tmp_path, text()).facts_of("payments.refund", "stripe.PostRefunds")
    assert (fact.name, fact.provider, fact.key) == ("account", "ledger", ("agent.id", "params.currency"))
    assert {name: (str(each.type), each.optional) for name, each in fact.fields.items()} == {
        "open": ("bool", False),
        "limit": ("int", False),
        "owner": ("string", True),
    }


@pytest.mark.parametrize(
    ("facts", "when", "message"),
    [
        ("a: {provider: leger, key: [agent.id]}", "true", "did you mean 'ledger'?"),
        ("a: {provider: x, key: [agent.id]}", "true", "there are: ledger"),
        ("a: {provider: ledger, key: [agent.nme]}", "true", "there is no agent.nme"),
        ("a: {provider: ledger, key: [params.curency]}", "true", "did you mean params.currency?"),
        ("a: {provider: ledger, key: [agent.groups]}", "true", "a key needs a string, int or bool"),
        ("a: {provider: ledger, key: [clock.now_s]}", "true", "'clock.now_s' cannot be a key"),
        ("a: {provider: ledger, key: []}", "true", "a.key is empty"),
        ("a: {provider: ledger}", "true", "needs the key 'key'"),
        ("a: {provider: ledger, key: [agent.id], window: 1h}", "true", "unknown key 'window'"),
        ("a-b: {provider: ledger, key: [agent.id]}", "true", "not a name that a condition can use"),
        ("", "true", "spec.facts is empty"),
        (f"account: {GOOD}", "facts.account.opne", "opne"),
        (f"account: {GOOD}", "facts.acount.open", "acount"),
        (f"account: {GOOD}", "facts.account.limit == '1'", "int"),
        (f"account: {GOOD}", "facts.account.owner == 'x'", "has("),
        (f"account: {GOOD}", "facts.account.source == 'file'", "source"),
    ],
)
def test_o8_a_bad_fact_is_an_error_with_place_and_advice(
    tmp_path: Path, facts: str, when: str, message: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        loaded(tmp_path, text(facts, when))
    assert message in str(raised.value)
    assert raised.value.file.endswith("policy_0.yaml") and raised.value.line > 0


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ("facts: {Ledger: {open: bool}}", "lower-case letters"),
        ("facts: {ledger: {}}", "ledger has no field"),
        ("facts: {ledger: {open: boolean}}", "must be one of"),
        ("facts: {ledger: {source: string}}", "'source' is not a name that a fact's field can have"),
        ("facts: {ledger: {as_of_s: string}}", "it must be int, not optional"),
        ("facts: {ledger: {as_of_s: {type: int, optional: true}}}", "it must be int, not optional"),
        ("fact: {ledger: {open: bool}}", "unknown key 'fact'"),
        ("{}", "spec of a Bundle is empty"),
    ],
)
def test_o8_a_bad_declaration_of_a_provider_is_an_error(tmp_path: Path, declared: str, message: str) -> None:
    bundle = BUNDLE.partition("spec:")[0] + f"spec: {{{declared}}}\n".replace("{{}}", "{}")
    with pytest.raises(ConfigError) as raised:
        loaded(tmp_path, text(), bundle=bundle)
    assert message in str(raised.value)


def test_o8_a_provider_is_declared_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'ledger' is declared twice"):
        loaded(tmp_path, text(), BUNDLE.replace("name: facts", "name: more"))


def test_o8_policies_may_share_a_fact_and_not_its_name(tmp_path: Path) -> None:
    both = loaded(tmp_path / "a", text(), text(name="q", when="!facts.account.open && params.amount > 0"))
    assert len(both.facts_of("payments.refund", "stripe.PostRefunds")) == 1
    other = "account: {provider: ledger, key: [agent.id]}"
    with pytest.raises(ConfigError, match="a fact named 'account' asks something else"):
        loaded(tmp_path / "b", text(), text(other, name="q"))


def test_attributes_and_facts_may_be_declared_together(tmp_path: Path) -> None:
    both = AGENTS.rstrip("\n") + "\n  facts: {ledger: {open: bool, limit: int}}\n"
    assert load_texts(tmp_path, text(), agents=both).agent_attrs


def asked(policies: PolicySet, facts: Any, amount: int = 50) -> tuple[Outcome, Reason]:
    one = action(params={"amount": amount, "currency": "eur", "live": True})
    if facts is not None:
        one["facts"] = facts
    decision = decide(policies, decision_input(one))
    return decision.outcome, decision.reason


UNAVAILABLE = (Outcome.SILENCE, Reason.INPUT_UNAVAILABLE)


@pytest.mark.parametrize(
    ("facts", "amount", "expected"),
    [
        pytest.param({"account": RECORD}, 50, (Outcome.PERMIT, Reason.PERMIT_RULE), id="as declared"),
        pytest.param({"account": RECORD}, 101, (Outcome.SILENCE, Reason.NO_RULE_MATCHED), id="above it"),
        pytest.param(None, 50, UNAVAILABLE, id="nobody was asked"),
        pytest.param({}, 50, UNAVAILABLE, id="missing"),
        pytest.param({"account": None}, 50, UNAVAILABLE, id="null"),
        pytest.param({"account": RECORD | {"open": "true"}}, 50, UNAVAILABLE, id="another type"),
        pytest.param({"account": RECORD | {"limit": 2**63}}, 50, UNAVAILABLE, id="beyond int64"),
        pytest.param({"account": {"open": True, "as_of_s": 1}}, 50, UNAVAILABLE, id="a field too few"),
        pytest.param({"account": {"open": True, "limit": 100}}, 50, UNAVAILABLE, id="no time"),
        pytest.param([RECORD], 50, UNAVAILABLE, id="a list"),
    ],
)
def test_g6_permit_means_every_declared_fact_is_there_with_its_types(
    tmp_path: Path, facts: Any, amount: int, expected: tuple[Outcome, Reason]
) -> None:
    assert asked(loaded(tmp_path, text()), facts, amount) == expected


def test_g6_a_rule_that_does_not_look_at_the_fact_permits_nothing_without_it(tmp_path: Path) -> None:
    """It could be a deny rule that would have looked; a deny that needs no fact still is one."""
    rules = [rule("any", "permit", "params.amount > 0"), rule("cap", "deny", OPEN)]
    policies = loaded(tmp_path, policy_text("\n".join(rules), extra=f"facts: {{account: {GOOD}}}"))
    assert asked(policies, {}) == UNAVAILABLE
    assert asked(policies, {"account": RECORD})[0] is Outcome.DENY
    assert asked(policies, {"account": RECORD | {"open": False}})[0] is Outcome.PERMIT
    big = rule("big", "deny", "params.amount > 10")
    policies = loaded(
        tmp_path / "b", policy_text("\n".join([*rules, big]), extra=f"facts: {{account: {GOOD}}}")
    )
    assert asked(policies, {})[0] is Outcome.DENY


def test_a_fact_that_no_rule_reads_is_a_finding(tmp_path: Path) -> None:
    policies = loaded(tmp_path, text(when="params.amount > 0"))
    assert "the fact 'account' is not used" in " ".join(each.message for each in lint(policies, FakeIndex()))
