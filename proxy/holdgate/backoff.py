"""When a process that ended is started again: at once the first time, then later each time it ends soon.

Pure: the time is an argument.

Invariants (tests/test_backoff.py has one test named after each):
  BO1  Each end within `settled_s` of a start doubles the wait, from `first_s` up to `most_s`.
  BO2  A process that ran for `settled_s` is started again after `first_s`.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Backoff"]


@dataclass(slots=True, kw_only=True)
class Backoff:
    """Seconds on any clock that does not run backwards."""

    first_s: float = 0.1
    most_s: float = 30.0
    settled_s: float = 60.0
    _wait_s: float = 0.0
    _started_s: float = 0.0

    def started(self, now_s: float) -> None:
        self._started_s = now_s

    def ended(self, now_s: float) -> float:
        """How long to wait before it is started again."""
        again = self._wait_s > 0 and now_s - self._started_s < self.settled_s
        self._wait_s = min(self._wait_s * 2, self.most_s) if again else self.first_s
        return self._wait_s
