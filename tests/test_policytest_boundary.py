"""policytest_boundary.py: which values beside a limit the cases had (T5)."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdgate.policytest_boundary import Boundaries
from policy_fakes import action, decision_input, load_texts, policy_text, rule


def missing(folder: Path, when: str, *amounts: int, extra: str = "") -> dict[str, tuple[int, ...]]:
    policies = load_texts(folder, policy_text(rule("a", "permit", when), extra=extra))
    boundaries = Boundaries(policies, ["p"])
    for amount in amounts:
        params = {"amount": amount, "currency": "eur", "live": True}
        boundaries.look(decision_input(action(params=params)))
    return {each.text: each.missing for each in boundaries.report()}


@pytest.mark.parametrize(
    ("when", "amounts", "expected"),
    [
        pytest.param("params.amount <= 50", [], {"params.amount <= 50": (49, 50, 51)}, id="no case"),
        pytest.param("params.amount <= 50", [49, 50, 51], {"params.amount <= 50": ()}, id="all three"),
        pytest.param("50 > params.amount", [50], {"50 > params.amount": (49, 51)}, id="the other way round"),
        pytest.param("params.amount + 1 == 50", [49], {"params.amount + 1 == 50": (49, 51)}, id="a sum"),
        pytest.param(
            "params.live || params.amount > 1 * 5", [4, 5, 6], {"params.amount > 1 * 5": ()}, id="in an or"
        ),
        pytest.param(
            "clock.hour_utc < 23 && params.live", [1], {"clock.hour_utc < 23": (22, 23)}, id="hours end at 23"
        ),
        pytest.param(
            "size(params.currency) > 0", [1], {"size(params.currency) > 0": (0, 1)}, id="sizes begin at 0"
        ),
        pytest.param(
            "has(params.tags) && size(params.tags) == 1 && params.live",
            [1],
            {"size(params.tags) == 1": (0, 1, 2)},
            id="absent",
        ),
        pytest.param("approvals.exists(a, a.expires_s > 5) && params.live", [1], {}, id="not inside loops"),
        pytest.param("params.currency == 'eur'", [1], {}, id="texts have none"),
        pytest.param("params.amount == clock.now_s", [1], {}, id="no literal"),
    ],
)
def test_t5_values_beside_a_limit(
    tmp_path: Path, when: str, amounts: list[int], expected: dict[str, tuple[int, ...]]
) -> None:
    assert missing(tmp_path, when, *amounts) == expected


def test_t5_constants_are_limits_too(tmp_path: Path) -> None:
    found = missing(tmp_path, "params.amount < constants.cap", 9, 10, extra="constants: {cap: 10}")
    assert found == {"params.amount < constants.cap": (11,)}


def test_inputs_that_cannot_be_judged_show_nothing(tmp_path: Path) -> None:
    policies = load_texts(tmp_path, policy_text(rule("a", "permit", "params.amount <= 5")))
    boundaries = Boundaries(policies, ["p"])
    boundaries.look({})
    boundaries.look(decision_input(action(params={"amount": "5"})))
    boundaries.look(decision_input(action(operation="none")))
    assert boundaries.report()[0].missing == (4, 5, 6)
    assert Boundaries(policies, []).report() == ()
