"""gate_input.py and value_types.py: only values of the declared types reach a rule."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdgate.cel.model import INT_MAX, INT_MIN
from holdgate.gate_input import Problem, action_frame, shared_frame
from holdgate.policy import PolicySet
from holdgate.policy_model import ROOTS
from holdgate.surface.model import CelType
from holdgate.value_types import MAX_LIST, MAX_STRING, type_test
from policy_fakes import AGENTS, action, built, decision_input, load_texts, policy_text, rule

OPERATION = "stripe.PostRefunds"
POLICIES = built({OPERATION: [("permit", "params.live")]})


def frame(inputs: Any, policies: PolicySet = POLICIES) -> Any:
    shared = shared_frame(policies, inputs)
    if isinstance(shared, Problem):
        return shared
    return action_frame(shared, inputs["actions"][0], policies.table["payments.refund", OPERATION])


def test_n1_a_frame_holds_the_roots_in_the_order_of_compiled_programs() -> None:
    inputs = decision_input(approvals=[])
    found = frame(inputs)
    program = POLICIES.rules[0].program
    assert program.roots == ROOTS == tuple(sorted(ROOTS))
    parts = {"action": inputs["actions"][0], "params": inputs["actions"][0]["params"]}
    for place, name in enumerate(ROOTS):
        if name == "bound":
            assert found[place] == {"params": {}}  # nothing: conditions ask with has()
        else:
            assert found[place] is parts.get(name, inputs.get(name))
    assert len(found) == len(program.frame({}))


def test_n1_actions_share_the_budget_and_nothing_else() -> None:
    inputs = decision_input(action(), action(host="other.example.com"))
    shared = shared_frame(POLICIES, inputs)
    assert isinstance(shared, list)
    applicable = POLICIES.table["payments.refund", OPERATION]
    first, second = (action_frame(shared, each, applicable) for each in inputs["actions"])
    assert isinstance(first, list) and isinstance(second, list)
    assert first is not second and first[0] is not second[0] and first[-1] is second[-1]


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        ({"v": 3}, "not a record of version 1"),
        ({"agent": {"id": 5, "groups": [], "attrs": {}}}, "agent needs an id and groups"),
        ({"agent": {"id": "a", "groups": ["x", 1], "attrs": {}}}, "agent needs an id and groups"),
        ({"agent": {"id": "a", "groups": []}}, "agent.attrs is not a record"),
        ({"request": {}}, "request needs a digest"),
        ({"clock": []}, "clock is not a record"),
        ({"clock": {"now_s": 1, "hour_utc": "12", "weekday_utc": 1}}, "clock.hour_utc is not int"),
        ({"approvals": None}, "approvals is not a list"),
        ({"approvals": [1]}, "an approval needs expires_s"),
        ({"approvals": [{"expires_s": 1, "id": "a", "role": "r", "approver": "x"}]}, "needs request_digest"),
        ({"actions": [action(effect="x")]}, "action.effect is not one of"),
        ({"actions": [action(host=None)]}, "action.host is not string"),
        ({"actions": [action(principal=7)]}, "action.principal is not string"),
        ({"actions": [action(params=[])]}, "params is not a record"),
        ({"actions": [action(params={})]}, "params.amount is absent"),
        ({"actions": [action(params={"zz": 1})]}, "params.zz is not declared"),
    ],
)
def test_n1_what_is_wrong_is_named(changes: dict[str, Any], detail: str) -> None:
    found = frame(decision_input(**changes))
    assert isinstance(found, Problem) and detail in found.detail


def test_n1_declared_agent_attributes_are_checked_and_others_ignored(tmp_path: Any) -> None:
    when = "has(agent.attrs.tier) && agent.attrs.tier > 1 && params.live"
    policies = load_texts(tmp_path, policy_text(rule("a", "permit", when)), agents=AGENTS)
    for attrs, fits in (
        ({}, True),
        ({"tier": 2, "accounts": ["a"]}, True),
        ({"tier": "2"}, False),
        ({"accounts": "a"}, False),
        ({"color": 1.5}, True),  # not declared, so no condition can name it
    ):
        found = frame(decision_input(agent={"id": "a", "groups": [], "attrs": attrs}), policies)
        assert isinstance(found, list) is fits, attrs


class Text(str):
    """A subclass could bring its own comparison."""


GOOD: dict[CelType, list[Any]] = {
    CelType.INT: [0, INT_MIN, INT_MAX],
    CelType.STRING: ["", "😀", "a" * MAX_STRING],
    CelType.BOOL: [True, False],
    CelType.LIST_STRING: [[], ["a"], ["a"] * MAX_LIST],
    CelType.LIST_INT: [[], [1, INT_MAX], [0] * MAX_LIST],
}
BAD: dict[CelType, list[Any]] = {
    CelType.INT: [True, 1.0, "1", None, [1], INT_MAX + 1, INT_MIN - 1],
    CelType.STRING: [1, None, b"a", "\ud800", "a" * (MAX_STRING + 1), Text("a"), ["a"]],
    CelType.BOOL: [0, 1, "true", None],
    CelType.LIST_STRING: ["a", ("a",), [1], [None], ["a", "\udfff"], ["a"] * (MAX_LIST + 1), {"a": 1}],
    CelType.LIST_INT: [1, [True], ["1"], [1.0], [INT_MAX + 1], [[1]]],
}


@pytest.mark.parametrize("kind", CelType)
def test_n2_values_inside_the_bounds_pass_and_others_do_not(kind: CelType) -> None:
    assert all(type_test(kind)(value) for value in GOOD[kind])
    assert not any(type_test(kind)(value) for value in BAD[kind])


@given(st.text(max_size=5))
def test_n2_a_string_passes_exactly_if_it_can_be_written_as_utf_8(text: str) -> None:
    try:
        text.encode()
        writable = True
    except UnicodeEncodeError:
        writable = False
    assert type_test(CelType.STRING)(text) is writable
