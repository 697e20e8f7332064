"""backoff.py: how long a process that ends is left alone."""

from __future__ import annotations

from holdgate.backoff import Backoff


def waits(backoff: Backoff, ran_s: list[float]) -> list[float]:
    """What is waited after each run of so many seconds."""
    found, now = [], 0.0
    for each in ran_s:
        backoff.started(now)
        now += each
        found.append(backoff.ended(now))
        now += found[-1]
    return found


def test_bo1_each_end_soon_after_a_start_doubles_the_wait_up_to_the_most() -> None:
    assert waits(Backoff(first_s=1, most_s=5), [0.0] * 5) == [1, 2, 4, 5, 5]


def test_bo1_the_first_end_is_answered_soon_however_short_the_run_was() -> None:
    assert waits(Backoff(), [0.001]) == [0.1]


def test_bo2_a_process_that_ran_long_begins_again() -> None:
    assert waits(Backoff(first_s=1, settled_s=60), [1, 59.9, 60, 1]) == [1, 2, 1, 2]
