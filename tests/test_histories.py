"""tests/histories.py: honest histories are explained, and each way of being wrong is not."""

from __future__ import annotations

import pytest

from histories import Answer, Call, is_linearizable

A, B = 1, 2
DONE, DOUBT, NOTHING, ALREADY, PENDING, REUSED = Answer


@pytest.mark.parametrize(
    ("calls", "executed"),
    [
        pytest.param([], [], id="no call"),
        pytest.param([Call(0, 1, A, DONE), Call(2, 3, A, ALREADY), Call(2, 3, B, REUSED)], [A], id="repeats"),
        pytest.param(
            [Call(0, 9, A, DONE), Call(1, 2, A, PENDING)], [A], id="a repeat meets the first in flight"
        ),
        pytest.param([Call(5, 9, A, DONE), Call(0, 6, B, REUSED)], [A], id="two bodies at once"),
        pytest.param([Call(0, 1, A, DOUBT), Call(2, 3, A, PENDING)], [], id="lost, then in doubt"),
        pytest.param([Call(0, 1, A, DOUBT), Call(2, 3, A, ALREADY)], [A], id="lost, and it was executed"),
        pytest.param(
            [Call(0, 1, A, DOUBT), Call(2, 3, B, REUSED), Call(4, 5, B, DONE)], [B], id="found not sent"
        ),
        pytest.param([Call(0, 1, A, DOUBT), Call(2, 3, B, DONE)], [B], id="lost before it was recorded"),
        pytest.param([Call(0, 1, A, NOTHING), Call(2, 3, A, DONE)], [A], id="refused, then permitted"),
        pytest.param(
            [Call(0, 1, A, DOUBT), Call(5, 6, A, DONE)], [A], id="lost, and its second was executed"
        ),
    ],
)
def test_what_one_order_explains(calls: list[Call], executed: list[int]) -> None:
    assert is_linearizable(calls, executed)


@pytest.mark.parametrize(
    ("calls", "executed"),
    [
        pytest.param([Call(0, 1, A, DONE), Call(2, 3, A, DONE)], [A], id="executed twice"),
        pytest.param([Call(0, 9, A, DONE), Call(1, 8, B, DONE)], [A, B], id="two bodies executed"),
        pytest.param([Call(0, 1, A, ALREADY)], [], id="already executed, by nobody"),
        pytest.param([Call(0, 1, B, REUSED), Call(2, 3, A, DONE)], [A], id="reused before the first began"),
        pytest.param([Call(0, 1, A, DONE), Call(2, 3, B, ALREADY)], [A], id="another body's execution"),
        pytest.param([Call(0, 1, A, DONE), Call(2, 3, A, REUSED)], [A], id="its own key is another's"),
        pytest.param([Call(0, 1, A, DOUBT), Call(2, 3, A, REUSED)], [A], id="nobody else ever held it"),
        pytest.param(
            [Call(0, 1, A, DOUBT), Call(2, 3, A, PENDING), Call(4, 5, B, DONE)],
            [A, B],
            id="freed although it was executed",
        ),
    ],
)
def test_what_no_order_explains(calls: list[Call], executed: list[int]) -> None:
    assert not is_linearizable(calls, executed)
