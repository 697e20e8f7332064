"""flips.py: the smallest changes of an input that decide otherwise, each decided again (FL1, FL2)."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from holdgate.errors import Outcome
from holdgate.flips import _changed, flips
from holdgate.gate import decide
from policy_fakes import action, built, decision_input, load_texts, policy_text, rule
from test_properties import OPERATION, inputs, policy


def found(folder: Path, *rules: str, extra: str = "", **params: Any) -> list[str]:
    policies = load_texts(folder, policy_text("\n".join(rules), extra=extra))
    given = {"amount": 100, "currency": "eur", "live": True, **params}
    values = {name: value for name, value in given.items() if value is not None}
    seen = flips(policies, decision_input(action(params=values)))
    return [f"{each.decision.outcome}: {' and '.join(map(str, each.changes))}" for each in seen]


@pytest.mark.parametrize(
    ("when", "params", "expected"),
    [
        pytest.param("params.amount <= 50", {}, "PERMIT: params.amount were 50 (is 100)", id="limit"),
        pytest.param(
            "params.amount < constants.cap", {}, "PERMIT: params.amount were 59 (is 100)", id="constant"
        ),
        pytest.param("params.amount + 5 < 50", {}, "PERMIT: params.amount were 44 (is 100)", id="sum"),
        pytest.param(
            "1000 - params.amount < 50", {}, "PERMIT: params.amount were 951 (is 100)", id="difference"
        ),
        pytest.param(
            "params.amount <= 100", {}, "SILENCE: params.amount were 101 (is 100)", id="PERMIT lost"
        ),
        pytest.param(
            "params.currency == 'usd'", {}, "PERMIT: params.currency were 'usd' (is 'eur')", id="text"
        ),
        pytest.param(
            "params.currency in ['chf']", {}, "PERMIT: params.currency were 'chf' (is 'eur')", id="member"
        ),
        pytest.param("!params.live", {}, "PERMIT: params.live were False (is True)", id="flag"),
        pytest.param(
            "!has(params.account)",
            {"account": "a"},
            "PERMIT: params.account were absent",
            id="must be absent",
        ),
        pytest.param(
            "has(params.account) && params.account == 'a'",
            {},
            "PERMIT: params.account were 'a' (is absent)",
            id="must be there",
        ),
        pytest.param(
            "params.currency.startsWith('x-')",
            {},
            "PERMIT: params.currency were 'x-' (is 'eur')",
            id="prefix",
        ),
        pytest.param(
            "'ops' in agent.groups && params.live",
            {},
            "PERMIT: agent.groups were ['payments', 'ops'] (is ['payments'])",
            id="group",
        ),
        pytest.param(
            "clock.hour_utc < 9 && params.live", {}, "PERMIT: clock.hour_utc were 8 (is 12)", id="hour"
        ),
    ],
)
def test_fl1_the_nearest_change_is_found(
    tmp_path: Path, when: str, params: dict[str, Any], expected: str
) -> None:
    assert found(tmp_path, rule("a", "permit", when), extra="constants: {cap: 60}", **params)[0] == expected


def test_fl1_an_approval_that_is_missing(tmp_path: Path) -> None:
    when = "params.live && approvals.exists(a, a.role == 'risk' && a.request_digest == request.digest)"
    (only,) = found(tmp_path, rule("a", "permit", when))
    assert only.startswith("PERMIT: approvals were [{") and "'role': 'risk'" in only


def test_fl2_two_changes_where_one_is_not_enough(tmp_path: Path) -> None:
    seen = found(tmp_path, rule("a", "permit", "params.amount <= 50 && params.currency == 'usd'"))
    assert seen[0] == "PERMIT: params.amount were 50 (is 100) and params.currency were 'usd' (is 'eur')"


def test_fl2_a_deny_and_a_limit_are_both_in_the_way(tmp_path: Path) -> None:
    rules = [rule("a", "permit", "params.amount <= 50"), rule("b", "deny", "params.live")]
    seen = found(tmp_path, *rules)
    assert "SILENCE: params.live were False (is True)" in seen
    assert "PERMIT: params.amount were 50 (is 100) and params.live were False (is True)" in seen


def test_what_no_change_helps_is_said_by_an_empty_list(tmp_path: Path) -> None:
    assert found(tmp_path, rule("a", "permit", "params.live && action.host == 'other'")) == []
    assert flips(load_texts(tmp_path / "b", policy_text(rule("a", "permit", "params.live"))), {}) == ()


def test_fl1_every_flip_is_what_the_changed_input_gives() -> None:
    rng = random.Random(9)
    permits = 0
    for _ in range(20):
        policies = built({OPERATION: policy(rng)})
        given = inputs(rng)
        now = decide(policies, given).outcome
        for flip in flips(policies, given):
            changed: Any = given
            for change in flip.changes:
                changed = _changed(changed, change)
                if len(flip.changes) == 2:  # FL2
                    assert decide(policies, _changed(given, change)).outcome is not flip.decision.outcome
            decision = decide(policies, changed)
            assert decision == flip.decision and decision.outcome is not now
            permits += decision.outcome is Outcome.PERMIT
    assert permits > 3
