"""Refusals beyond an agent's rate: those of one reason share one counted receipt a second.

A refusal within the rate has a receipt of its own. One beyond it joins the open flood of its agent and
reason, or opens one; whoever opens it records it a second later, and all of them are answered with that
receipt. So a flood costs one commit a second, and whoever makes it waits for each answer.

Invariants (tests/test_floods.py):
  FL1  Up to `limit` refusals of one agent in one second have receipts of their own.
  FL2  A refusal beyond that is counted in exactly one flood, and a flood that was closed counts no more.
  FL3  What is remembered ends with its second: nothing grows with the number of agents over time.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from .errors import Reason

__all__ = ["FLOOD_S", "Flood", "Floods"]

FLOOD_S = 1.0


@dataclass(slots=True)
class Flood[Shared]:
    """The refusals that one receipt will stand for, and what those who wait for it share."""

    who: str
    reason: Reason
    count: int
    shared: Shared | None = None


class Floods[Shared]:
    """`who` is the agent's id, or the address of somebody who is none."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._second = -1
        self._counts: Counter[str] = Counter()
        self._open: dict[tuple[str, Reason], Flood[Shared]] = {}

    def admit(self, who: str, now_s: float) -> bool:
        """Whether this refusal is within the rate of `limit` a second."""
        second = int(now_s)
        if second != self._second:
            self._second = second
            self._counts.clear()
        self._counts[who] += 1
        return self._counts[who] <= self._limit

    def join(self, who: str, reason: Reason) -> Flood[Shared]:
        """The flood that counts this refusal, opened if none was."""
        flood = self._open.get((who, reason))
        if flood is None:
            flood = self._open[who, reason] = Flood(who=who, reason=reason, count=0)
        flood.count += 1
        return flood

    def close(self, flood: Flood[Shared]) -> int:
        """No more are counted. How many were."""
        self._open.pop((flood.who, flood.reason), None)
        return flood.count

    def __len__(self) -> int:
        """How much is remembered."""
        return len(self._counts) + len(self._open)
