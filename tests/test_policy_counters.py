"""policy_counters.py: what a policy may count, and what its author is told otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdgate.errors import ConfigError, Outcome, Reason
from holdgate.gate import decide
from holdgate.policy import lint
from policy_fakes import FakeIndex, action, decision_input, load_texts, policy_text, rule

GOOD = "{key: [agent.id, params.currency], window: 24h, measure: sum(params.amount)}"
CAP = "counters.day.sum + params.amount <= 100"


def text(counters: str, when: str = CAP, **changes: str) -> str:
    return policy_text(rule("cap", "permit", when), extra=f"counters: {{{counters}}}", **changes)


def test_o7_a_counter_has_its_key_measure_and_window(tmp_path: Path) -> None:
    loaded = load_texts(tmp_path, text(f"day: {GOOD}"))
    (counter,) = loaded.counters_of("payments.refund", "stripe.PostRefunds")
    assert (counter.name, counter.key, counter.window_s, counter.measure) == (
        "day",
        ("agent.id", "params.currency"),
        86_400,
        "amount",
    )
    assert loaded.counters_of("payments.refund", "stripe.PostChargesRefund") == ()


@pytest.mark.parametrize(
    ("counters", "when", "message"),
    [
        ("day: {key: [agent.nme], window: 1h, measure: count}", "true", "day.key: there is no agent.nme"),
        ("day: {key: [params.curency], window: 1h, measure: count}", "true", "mean params.currency?"),
        ("day: {key: [agent.attrs.team], window: 1h, measure: count}", "true", "no agent.attrs.team"),
        (
            "day: {key: [agent.groups], window: 1h, measure: count}",
            "true",
            "a key needs a string, int or bool",
        ),
        ("day: {key: [clock.now_s], window: 1h, measure: count}", "true", "'clock.now_s' cannot be a key"),
        ("day: {key: [params.amount, params.amount], window: 1h, measure: count}", "true", "twice"),
        ("day: {key: [], window: 24, measure: count}", "true", "a number and a unit, such as 15m"),
        ("day: {key: [], window: 0h, measure: count}", "true", "a number and a unit"),
        ("day: {key: [], window: 401d, measure: count}", "true", "longer than 400d"),
        ("day: {key: [], window: 1h, measure: max(params.amount)}", "true", "`count` or `sum(params.NAME)`"),
        ("day: {key: [], window: 1h, measure: sum(params.currency)}", "true", "is string; only an int"),
        ("day: {key: [], window: 1h, measure: sum(params.amont)}", "true", "did you mean params.amount?"),
        ("day: {key: [], window: 1h, measure: count}", "counters.day.sum < 5", "no field 'sum'"),
        (f"day: {GOOD}", "counters.dya.sum < 5", "dya"),
        ("day: {key: [], window: 1h}", "true", "measure"),
        ("", "true", "spec.counters is empty"),
        ("da y: {key: [], window: 1h, measure: count}", "true", "not a name that a condition can use"),
    ],
)
def test_o7_a_bad_counter_is_an_error_with_place_and_advice(
    tmp_path: Path, counters: str, when: str, message: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        load_texts(tmp_path, text(counters, when))
    assert message in str(raised.value)
    assert raised.value.file.endswith("policy_0.yaml")
    assert raised.value.line > 0


def test_o7_names_of_counters_are_one_namespace(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a counter named 'day' exists already"):
        load_texts(tmp_path, text(f"day: {GOOD}"), text(f"day: {GOOD}", name="q"))


def test_o7_at_most_sixteen_counters_apply_to_an_action(tmp_path: Path) -> None:
    nine = [", ".join(f"{name}{n}: {GOOD}" for n in range(9)) for name in "ab"]
    with pytest.raises(ConfigError, match="18 counters apply to"):
        load_texts(tmp_path, text(nine[0], "params.live"), text(nine[1], "params.live", name="q"))


def test_o5_an_unused_counter_is_a_finding(tmp_path: Path) -> None:
    loaded = load_texts(tmp_path, text(f"day: {GOOD}", "params.live"))
    assert any("the counter 'day' is not used" in each.message for each in lint(loaded, FakeIndex()))
    used = load_texts(tmp_path / "used", text(f"day: {GOOD}"))
    assert not any("counter" in each.message for each in lint(used, FakeIndex()))


DENY = rule("no-gbp", "deny", 'params.currency == "gbp"')


@pytest.mark.parametrize(
    ("counters", "outcome", "reason"),
    [
        pytest.param({"day": {"sum": 58, "count": 1}}, Outcome.PERMIT, Reason.PERMIT_RULE, id="in budget"),
        pytest.param({"day": {"sum": 59, "count": 1}}, Outcome.SILENCE, Reason.NO_RULE_MATCHED, id="over it"),
        pytest.param({}, Outcome.SILENCE, Reason.INPUT_UNAVAILABLE, id="not read"),
        pytest.param(None, Outcome.SILENCE, Reason.INPUT_UNAVAILABLE, id="no counters at all"),
        pytest.param({"day": {"count": 1}}, Outcome.SILENCE, Reason.INPUT_UNAVAILABLE, id="no sum"),
        pytest.param({"day": {"sum": "1", "count": 1}}, Outcome.SILENCE, Reason.INPUT_UNAVAILABLE, id="text"),
        pytest.param(
            {"day": {"sum": 2**63 - 1, "count": 1}}, Outcome.SILENCE, Reason.INPUT_UNAVAILABLE, id="overflow"
        ),
    ],
)
def test_g5_a_permit_means_that_every_counter_was_read(
    tmp_path: Path, counters: object, outcome: Outcome, reason: Reason
) -> None:
    # The second policy permits whatever the counter says; without a counter there is no permit all the same.
    rules = "\n".join((rule("cap", "permit", CAP), DENY))
    loaded = load_texts(tmp_path, policy_text(rules, extra=f"counters: {{day: {GOOD}}}"))
    params = {"amount": 42, "currency": "eur", "live": True}
    acting = action(params=params) | ({} if counters is None else {"counters": counters})
    decision = decide(loaded, decision_input(acting))
    assert (decision.outcome, decision.reason) == (outcome, reason)
    pounds = acting | {"params": params | {"currency": "gbp"}}
    assert decide(loaded, decision_input(pounds)).outcome is Outcome.DENY


def test_g5_a_rule_of_another_policy_does_not_spend_what_cannot_be_counted(tmp_path: Path) -> None:
    other = policy_text(rule("all", "permit", "params.live"), name="q")
    loaded = load_texts(tmp_path, text(f"day: {GOOD}"), other)
    decision = decide(loaded, decision_input(action(counters={})))
    assert (decision.outcome, decision.reason) == (Outcome.SILENCE, Reason.INPUT_UNAVAILABLE)
    counted = action(counters={"day": {"sum": 0, "count": 0}})
    assert decide(loaded, decision_input(counted)).outcome is Outcome.PERMIT
