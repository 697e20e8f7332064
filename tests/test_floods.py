"""floods.py: who is within the rate, who shares a receipt, and what is forgotten."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from holdgate.errors import Reason
from holdgate.floods import Floods

A, B = Reason.UNKNOWN_DESTINATION, Reason.MALFORMED_REQUEST


def test_fl1_the_rate_is_per_agent_and_second() -> None:
    floods: Floods[None] = Floods(2)
    assert [floods.admit("a", 7.0), floods.admit("a", 7.9), floods.admit("a", 7.95)] == [True, True, False]
    assert floods.admit("b", 7.95)
    assert [floods.admit("a", 8.0), floods.admit("a", 8.0), floods.admit("a", 8.9)] == [True, True, False]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from([A, B]), st.booleans())))
def test_fl2_every_refusal_is_counted_once(steps: list[tuple[str, Reason, bool]]) -> None:
    floods: Floods[None] = Floods(0)
    counted, opened = 0, {}
    for who, reason, close in steps:
        flood = floods.join(who, reason)
        assert (flood.who, flood.reason) == (who, reason)
        assert (flood.count == 1) == ((who, reason) not in opened), "the first one opens it"
        opened[who, reason] = flood
        if close:
            counted += floods.close(opened.pop((who, reason)))
    assert counted + sum(map(floods.close, opened.values())) == len(steps)


def test_fl2_a_closed_flood_counts_no_more() -> None:
    floods: Floods[None] = Floods(0)
    first = floods.join("a", A)
    assert floods.close(first) == 1
    assert floods.join("a", A) is not first and first.count == 1


def test_fl3_what_is_remembered_ends_with_its_second() -> None:
    floods: Floods[None] = Floods(1)
    for number in range(1000):
        floods.admit(f"[10.0.0.{number}]", 1.0)
    floods.close(floods.join("a", A))
    assert floods.admit("a", 2.0)
    assert len(floods) == 1
