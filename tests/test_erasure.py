"""erasure.py: what an order covers, and what its receipt says."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evidence import T0, coverage_statement, receipt_id
from holdgate.erasure import MAX_IDS, RETENTION, SHRED, Erasure, ErasureError
from holdgate.statement import StatementError, check_admin, check_statement

AGENTS, SURFACES = st.sampled_from(["", "a", "b"]), st.sampled_from(["", "ehr.read", "ehr.write"])
ORDERS = st.one_of(
    st.builds(
        Erasure,
        action=st.just(SHRED),
        ids=st.frozensets(st.integers(0, 9).map(receipt_id), min_size=1),
    ),
    st.tuples(AGENTS, SURFACES, st.sampled_from([0, T0, T0 + 5]))
    .filter(any)
    .map(lambda t: Erasure(action=SHRED, agent=t[0], surface=t[1], before_us=t[2])),
    st.builds(Erasure, action=st.just(RETENTION), before_us=st.integers(T0, T0 + 9)),
)


@given(
    order=ORDERS, number=st.integers(0, 9), agent=AGENTS, surface=SURFACES, at=st.integers(T0 - 2, T0 + 12)
)
def test_er1_an_order_read_back_covers_what_it_covered(
    order: Erasure, number: int, agent: str, surface: str, at: int
) -> None:
    said = order.details(1)
    check_statement(coverage_statement(action=order.action, details=said))
    assert Erasure.of(order.action, said) == order
    covered = order.covers(receipt_id(number), agent, surface, at)
    terms = [
        not order.ids or receipt_id(number) in order.ids,
        not order.agent or order.agent == agent,
        not order.surface or order.surface == surface,
        not order.before_us or at < order.before_us,
    ]
    assert covered == all(terms)


@pytest.mark.parametrize(
    "facts",
    [
        pytest.param({}, id="nothing named"),
        pytest.param({"ids": frozenset({receipt_id(1)}), "agent": "a"}, id="ids and a filter"),
        pytest.param({"ids": frozenset(map(receipt_id, range(MAX_IDS + 1)))}, id="too many ids"),
        pytest.param({"action": RETENTION, "agent": "a"}, id="retention by agent"),
        pytest.param({"action": RETENTION}, id="retention without a time"),
    ],
)
def test_er2_nothing_is_destroyed_by_omission(facts: dict[str, Any]) -> None:
    with pytest.raises(ErasureError):
        Erasure(**({"action": SHRED} | facts))


@pytest.mark.parametrize(
    ("action", "details"),
    [
        pytest.param(SHRED, {"count": 1}, id="no filter"),
        pytest.param(SHRED, {"count": 0, "agent": "a"}, id="nothing destroyed"),
        pytest.param(SHRED, {"count": 2, "ids": [receipt_id(1)]}, id="more than named"),
        pytest.param(SHRED, {"count": 1, "ids": [receipt_id(2), receipt_id(1)]}, id="not sorted"),
        pytest.param(SHRED, {"count": 1, "ids": [receipt_id(1)], "agent": "a"}, id="both"),
        pytest.param(SHRED, {"count": 1, "before": "2026-11-22"}, id="not an instant"),
        pytest.param(RETENTION, {"count": 1}, id="retention without a time"),
        pytest.param(RETENTION, {"count": 1, "before": "x", "agent": "a"}, id="retention by agent"),
    ],
)
def test_a_receipt_says_only_what_can_have_happened(action: str, details: dict[str, Any]) -> None:
    with pytest.raises(StatementError):
        check_admin(action, "local", details)
