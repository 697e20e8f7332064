"""Is what agents saw of one key explained by one order of events? A check in the manner of Wing and Gong.

An agent's call is an interval with an answer. The calls of one idempotency key are linearizable when each can
be given a moment within its interval, so that a key that is held by at most one body at a time explains all
answers. Nothing here knows how a gate works; the model is the contract's "Retries" for a key whose vendor
does not answer repeats itself (`provider: false`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Answer", "Call", "is_linearizable"]


class Answer(StrEnum):
    EXECUTED = "executed"  # the vendor's answer came through
    DOUBT = "doubt"  # connection lost, or an answer that says `unknown`: it may have been sent
    NOTHING = "nothing"  # refused for a reason that says nothing of this key, or `not_sent`
    ALREADY = "already_executed"
    PENDING = "in_flight"  # or outcome_unknown
    REUSED = "idempotency_key_reused"


@dataclass(frozen=True, slots=True)
class Call:
    began: float
    ended: float
    body: int
    answer: Answer


# Who holds the key: a body, and whether an agent was told that it was executed. None: nobody.
type _Held = tuple[int, bool] | None


def is_linearizable(calls: Sequence[Call], executed: Collection[int]) -> bool:
    """`executed` are the bodies that the vendor executed: their key is never free again."""
    ends = [math.inf if call.answer is Answer.DOUBT else call.ended for call in calls]
    everything = (1 << len(calls)) - 1
    seen: set[tuple[int, _Held]] = set()
    stack: list[tuple[int, _Held]] = [(0, None)]
    while stack:
        done, held = stack.pop()
        if done == everything:
            return True
        if (done, held) in seen:
            continue
        seen.add((done, held))
        if held is not None and not held[1] and held[0] not in executed:
            stack.append((done, None))  # somebody found out that it was not sent
        waiting = [i for i in range(len(calls)) if not done >> i & 1]
        first_end = min(ends[i] for i in waiting)
        for i in waiting:
            if calls[i].began <= first_end:
                stack += [(done | 1 << i, after) for after in _step(calls[i], held)]
    return False


def _step(call: Call, held: _Held) -> list[_Held]:
    """What the key may be after the call; nothing: this answer is not possible now."""
    same, other = held is not None and held[0] == call.body, held is not None and held[0] != call.body
    match call.answer:
        case Answer.EXECUTED:
            return [(call.body, True)] if held is None else []
        case Answer.DOUBT:
            return [held, (call.body, False)] if held is None else [held]
        case Answer.NOTHING:
            return [held]
        case Answer.ALREADY | Answer.PENDING:
            return [held] if same else []
        case Answer.REUSED:
            return [held] if other else []
