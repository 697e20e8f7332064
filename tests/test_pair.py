"""pair.py: two policy sets over one input say what the gate says about each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdgate import gate
from holdgate.bundle import Bundle
from holdgate.errors import Reason
from holdgate.pair import Pair
from test_backtest import CAPPED, MAP, POLICY, load

MORE = POLICY + "  - {id: odd, effect: review, when: params.amount / (params.amount - 7) == 1}\n"
SEVERAL = """
apiVersion: holdgate/v1
kind: Policy
metadata: {name: refunds, owner: a@example.com}
spec:
  surface: payments.refund
  rules:
  - {id: small, effect: permit, when: "params.amount <= 100 && params.currency == 'eur' && params.amount > 0"}
  - id: never
    effect: deny
    reason: too much
    when: params.amount > 1000 && 7 / (params.amount - 7) != 3 && agent.id != "x"
"""
COUNTED = "  counters: {day: {key: [agent.id], window: 24h, measure: sum(params.amount)}}\n"
# Every policy against every other one: what they read alike, what is theirs alone, and loops.
POLICIES = {
    "plain": (POLICY, MAP),
    "another limit": (POLICY.replace("<= 100", "<= 60"), MAP),
    "another effect": (POLICY.replace("small, effect: permit", "small, effect: review"), MAP),
    "one rule more, which may fail": (MORE, MAP),
    "a constant": (
        POLICY.replace("  rules:", "  constants: {most: 100}\n  rules:").replace(
            "<= 100", "<= constants.most"
        ),
        MAP,
    ),
    "the constant, larger": (
        POLICY.replace("  rules:", "  constants: {most: 200}\n  rules:").replace(
            "<= 100", "<= constants.most"
        ),
        MAP,
    ),
    "a counter": (CAPPED, MAP),
    "a counter that denies": (
        CAPPED
        + "  - {id: spent, effect: deny, reason: r, when: 'counters.day.sum > 9 && params.amount > 7'}\n",
        MAP,
    ),
    "several conditions": (SEVERAL, MAP),
    "several, others": (
        SEVERAL.replace("<= 100", "<= 60").replace("1000", "900").replace("!= 3", "!= 4"),
        MAP,
    ),
    "several, a counter that fails": (
        SEVERAL.replace("  rules:", COUNTED + "  rules:").replace(
            "== 'eur'", "== 'eur' && counters.day.sum / (params.amount - 60) < 2"
        ),
        MAP,
    ),
    "a loop": (
        POLICY.replace(
            "params.amount <= 100", "'params.amount <= 100 && !agent.groups.exists(g, g == \"barred\")'"
        ),
        MAP,
    ),
    "another operation": (POLICY, MAP.replace("id: refund", "id: give_back")),
    "another parameter": (POLICY, MAP.replace("currency: {from: body.currency", "money: {from: body.money")),
    "another type": (POLICY, MAP.replace("body.currency, type: string", "body.currency, type: int")),
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("pairs")
    return {name: load(folder / name, *each) for name, each in POLICIES.items()}


def action(amount: Any, counted: Any = None) -> dict[str, Any]:
    made: dict[str, Any] = {
        "surface": "payments.refund",
        "operation": "pay.refund",
        "effect": "commit",
        "host": "api.pay.test",
        "params": {"amount": amount, "currency": "eur"},
    }
    return made if counted is None else made | {"counters": {"day": {"sum": counted, "count": 1}}}


def asked(actions: list[dict[str, Any]], groups: list[str]) -> dict[str, Any]:
    return {
        "v": 1,
        "agent": {"id": "bot", "groups": groups, "attrs": {}},
        "actions": actions,
        "request": {"digest": "sha256:" + "ab" * 32},
        "clock": {"now_s": 1_790_000_000, "hour_utc": 7, "weekday_utc": 2},
        "approvals": [],
    }


amounts = st.sampled_from([0, 7, 60, 61, 100, 101, 150, 201, 1000, 1001, -1, "7", True])
actions = st.builds(action, amounts, st.sampled_from([None, 0, 149, 151, "1"]))
inputs = st.builds(
    asked, st.lists(actions, max_size=3), st.sampled_from([[], ["barred"], ["x"] * 400 + ["barred"]])
)


@pytest.fixture(scope="module")
def pairs(bundles: dict[str, Bundle]) -> dict[tuple[str, str], Pair]:
    return {
        (old, new): Pair(bundles[old].policies, bundles[new].policies) for old in bundles for new in bundles
    }


@given(said=inputs)
@settings(max_examples=60, deadline=None)  # 225 pairs each
def test_pr1_both_decisions_are_the_gates(
    bundles: dict[str, Bundle], pairs: dict[tuple[str, str], Pair], said: dict[str, Any]
) -> None:
    alone = {name: gate.decide(each.policies, said) for name, each in bundles.items()}
    for (old, new), pair in pairs.items():
        both, _ = pair.decide(said)
        assert (both.old, both.new) == (alone[old], alone[new]), (old, new)


@given(said=inputs, counted=st.sampled_from([{}, {"day": {"sum": 0, "count": 0}}, {"day": {"sum": 149}}]))
@settings(max_examples=40, deadline=None)
def test_pr3_other_counters_are_decided_as_by_the_gate(
    bundles: dict[str, Bundle],
    pairs: dict[tuple[str, str], Pair],
    said: dict[str, Any],
    counted: dict[str, Any],
) -> None:
    if len(said["actions"]) != 1:
        return
    action = {**said["actions"][0], "counters": counted}
    alone = {
        name: gate.decide(each.policies, {**said, "actions": [action]}) for name, each in bundles.items()
    }
    for (old, new), pair in pairs.items():
        _, heard = pair.decide(said)
        both = None if heard is None else Pair.recounted(heard, action)
        assert both is None or both.new == alone[new], (old, new)


def test_pr3_the_steps_of_all_loops_come_from_one_budget(tmp_path: Path) -> None:
    """A loop that is reached only with the other counters, behind one that left it too few steps."""
    looping = CAPPED + (
        "  - {id: a, effect: review, when: 'agent.groups.exists(g, g == \"barred\")'}\n"
        "  - {id: b, effect: review, when: 'counters.day.sum < 9 && agent.groups.all(g, g != \"z\")'}\n"
    )
    policies = load(tmp_path / "x", looping).policies
    said = asked([action(50, 100)], ["x"] * 600)
    pair = Pair(policies, policies)
    _, heard = pair.decide(said)
    assert heard is not None
    other = {**said["actions"][0], "counters": {"day": {"sum": 0, "count": 0}}}
    alone = gate.decide(policies, {**said, "actions": [other]})
    assert alone.rules == ("refunds/b",) and alone.reason is Reason.RULE_ERROR
    both = Pair.recounted(heard, other)
    assert both is None or both.new == alone


def test_pr3_rules_without_counters_are_not_evaluated_again(bundles: dict[str, Bundle]) -> None:
    said = asked([action(50, 100)], [])
    pair = Pair(bundles["plain"].policies, bundles["a counter"].policies)
    _, heard = pair.decide(said)
    assert heard is not None and len(heard.plan.parts) == 3 and len(heard.plan.counting) == 1
    # Nor at all where they are missing: nothing but a deny rule could count then.
    assert len(heard.plan.sighted) == 2


def test_what_two_rules_have_in_common_is_one_part_and_the_rest_is_behind_it(
    bundles: dict[str, Bundle],
) -> None:
    pair = Pair(bundles["several conditions"].policies, bundles["several, others"].policies)
    _, heard = pair.decide(asked([action(7)], []))
    assert heard is not None
    assert [len(part.behind) for part in heard.plan.parts] == [2, 2]
    # Both can be read; the first rule is true for both; the second is false in what is each one's own.
    assert heard.mask.bit_count() == 2 + 3 + 1


def test_pr2_one_object_where_no_rule_differs(bundles: dict[str, Bundle]) -> None:
    said = asked([action(50)], [])
    for old in bundles:
        both, _ = Pair(bundles[old].policies, bundles["plain"].policies).decide(said)
        assert (both.old is both.new) == (old == "plain"), old
