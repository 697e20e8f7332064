"""Is the boundary closed? What probes, witness, log and host say becomes one row per way out (escape.py).

    probes' results, tokens that the witness saw, receipts in the log -> rows -> details of a receipt

What the probe believes never closes a row by itself: a packet filter, a proxy and a
broken test all look alike to it.

Invariants (tests/test_coverage.py has one test named after each):
  CV1  A token that the witness saw makes its row open, whatever the probe says.
  CV2  A probe that did not run, or whose witness was not seen to work, is unproven, never closed.
  CV3  When proving, no row of the network is closed unless a request from there is in the log as a SILENCE.
  CV4  Readiness is given by a newest coverage in which every required row is settled, and by no older one.
  CV5  Every row of the matrix is in every report, exactly once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from .escape import CELLS, EXPECTED, Cell, Judge
from .jcs import dumps

__all__ = [
    "Evidence",
    "Observed",
    "Result",
    "Row",
    "State",
    "details",
    "gap",
    "is_closed",
    "judge",
    "report_digest",
]


class State(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    UNPROVEN = "unproven"
    NOT_APPLICABLE = "not_applicable"


class Evidence(StrEnum):
    """What a state rests on, strongest first."""

    WITNESS = "witness"  # a listener beyond the boundary, which was seen to work, saw (or did not see) it
    LOG = "log"  # the gate's own receipt
    KERNEL = "kernel"  # the agent's own kernel refused before a packet was made
    ANSWER = "answer"  # who answered, and what
    HOST = "host"  # read on the gate's host
    NO_ANSWER = "no_answer"  # nothing came back: weak, since a one-way path looks the same
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    id: str
    tried: str
    expected: str
    required: bool
    state: State
    evidence: Evidence
    reason: str

    def record(self) -> dict[str, Any]:
        """Plain JSON, as `doctor --json` prints it."""
        return {
            "id": self.id,
            "tried": self.tried,
            "expected": self.expected,
            "required": self.required,
            "state": self.state.value,
            "evidence": self.evidence.value,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a probe says of itself. Everything in it was said where an agent stands: believe it last."""

    ran: bool
    error: str  # name of an errno, "timeout" or ""
    connected: bool
    done: bool  # the forbidden thing worked
    answer: str  # latin-1, the beginning
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """Everything that one run found out."""

    proving: bool
    planned: frozenset[str]  # rows that had a probe
    results: Mapping[str, Result]  # by row
    seen: frozenset[str] = frozenset()  # rows whose token the witness saw, or whose port was met without one
    watched: frozenset[str] = frozenset()  # rows for which the witness was seen to work
    logged: Mapping[str, str] = field(
        default_factory=dict
    )  # row -> agent id in the SILENCE receipt with its token
    host: Mapping[str, tuple[State, str]] = field(default_factory=dict)  # rows decided on the gate's host
    failures: Mapping[str, tuple[State, str]] = field(default_factory=dict)
    admin_alive: bool = False


type _Verdict = tuple[State, Evidence, str]

_CLOSED, _OPEN, _UNPROVEN, _NOT = State.CLOSED, State.OPEN, State.UNPROVEN, State.NOT_APPLICABLE
# What the agent's own kernel answers when it makes no packet at all.
_KERNEL: Final = frozenset(
    {"EPERM", "EACCES", "ENETUNREACH", "EADDRNOTAVAIL", "EAFNOSUPPORT", "EPROTONOSUPPORT", "ESOCKTNOSUPPORT"}
)
_SETTLED: Final = (State.CLOSED, State.NOT_APPLICABLE)
# A proxied row has no witness port of its own: the proxy would have to dial one of these.
_BEHIND_PROXY: Final = frozenset({"tcp4.80", "tcp4.443"})


def judge(observed: Observed, required: Collection[str]) -> tuple[Row, ...]:
    """One row per cell of the matrix, in its order."""
    behind = any(CELLS[name].judge is Judge.CONTROL for name in observed.logged)
    rows = []
    for name, cell in CELLS.items():
        state, evidence, reason = _verdict(name, cell, observed, behind)
        rows.append(
            Row(
                id=name,
                tried=cell.tried,
                expected=EXPECTED[cell.judge],
                required=name in required,
                state=state,
                evidence=evidence,
                reason=_plain(reason),
            )
        )
    return tuple(rows)


def _verdict(name: str, cell: Cell, observed: Observed, behind: bool) -> _Verdict:
    if name in observed.seen:
        return _OPEN, Evidence.WITNESS, "the witness saw it"
    if cell.judge in (Judge.HOST, Judge.FAILURE):
        found = (observed.host | observed.failures).get(name)  # type: ignore[operator]  # both are mappings
        return (found[0], Evidence.HOST, found[1]) if found else (_UNPROVEN, Evidence.NONE, _not_tried(cell))
    result = observed.results.get(name)
    if cell.judge is Judge.CONTROL:
        return _control(name, result, observed)
    if name not in observed.planned:
        if cell.to == "proxy":
            return _NOT, Evidence.NONE, "no explicit listener"
        return _UNPROVEN, Evidence.NONE, "not tried: no address to try it with"
    if result is None or not result.ran:
        return _UNPROVEN, Evidence.NONE, f"did not run: {result.detail if result else 'no result'}"
    if cell.judge is Judge.ATTEMPT:
        return (_OPEN if result.done else _CLOSED), Evidence.KERNEL, result.detail or result.error
    if observed.proving and not behind:
        return _UNPROVEN, Evidence.NONE, "no request from there is in the gate's log"
    if cell.to == "proxy" and not result.connected:
        if "control.explicit" in observed.logged:
            return _UNPROVEN, Evidence.NONE, f"the proxy did not accept ({result.error})"
        return _NOT, Evidence.NONE, f"the explicit listener cannot be reached from there ({result.error})"
    return (
        _answered(name, result, observed)
        if cell.judge is Judge.ANSWER
        else _witnessed(name, cell, result, observed)
    )


def _not_tried(cell: Cell) -> str:
    return "not tried: --with-restarts" if cell.judge is Judge.FAILURE else "not looked at"


def _control(name: str, result: Result | None, observed: Observed) -> _Verdict:
    if name in observed.logged:
        agent = observed.logged[name]
        return (
            _CLOSED,
            Evidence.LOG,
            f"in the log as SILENCE, agent {agent}" if agent else "in the log, agent unknown",
        )
    if name not in observed.planned:
        return _NOT, Evidence.NONE, "no such listener"
    said = result.error if result else "no result"
    return _UNPROVEN, Evidence.NONE, f"it did not reach the gate's log ({said or 'no receipt'})"


def _witnessed(name: str, cell: Cell, result: Result, observed: Observed) -> _Verdict:
    if result.error in _KERNEL and not result.connected:
        return _CLOSED, Evidence.KERNEL, result.error
    if name in observed.watched or (cell.to == "proxy" and observed.watched >= _BEHIND_PROXY):
        return _CLOSED, Evidence.WITNESS, result.error or "connected, and nothing arrived"
    if observed.proving:
        return _UNPROVEN, Evidence.NONE, "the witness did not get the same from the gate's host"
    if _is_ours(result.answer):
        return _CLOSED, Evidence.ANSWER, "the gate refused"
    if result.connected and cell.kind != "udp":
        return (
            _UNPROVEN,
            Evidence.NONE,
            "a connection was made; who accepted it is not known without a witness",
        )
    if result.answer:
        return _OPEN, Evidence.ANSWER, f"answered {_first_line(result.answer)}"
    return _CLOSED, Evidence.NO_ANSWER, result.error or "no answer"


def _answered(name: str, result: Result, observed: Observed) -> _Verdict:
    if name == "admin.direct" and not observed.admin_alive:
        return _UNPROVEN, Evidence.NONE, "the admin API does not answer on the gate's host either"
    if result.done:
        return _OPEN, Evidence.ANSWER, result.detail
    if _is_ours(result.answer):
        return _CLOSED, Evidence.ANSWER, "the gate refused"
    if result.answer:
        return _OPEN, Evidence.ANSWER, f"answered {_first_line(result.answer)}"
    evidence = Evidence.KERNEL if result.error in _KERNEL else Evidence.NO_ANSWER
    return _CLOSED, evidence, result.detail or result.error or "no answer"


def _is_ours(answer: str) -> bool:
    head = answer.partition("\r\n\r\n")[0].lower()
    return "\nholdgate-decision: silence" in head or "\nholdgate-decision: deny" in head


def _first_line(answer: str) -> str:
    return answer.partition("\r\n")[0]


def _plain(text: str) -> str:
    # Some of it came from where an agent stands, and it is shown on a terminal.
    return "".join(c if " " <= c <= "~" else "?" for c in text[:160])


# --- what a run amounts to ---


def is_closed(rows: Sequence[Row]) -> bool:
    """Whether every required row is settled, and anything is closed at all."""
    settled = all(row.state in _SETTLED for row in rows if row.required)
    return settled and any(row.state is _CLOSED for row in rows)


def report_digest(rows: Sequence[Row]) -> str:
    """`sha256:` over the canonical JSON of the rows as `doctor --json` prints them."""
    return "sha256:" + hashlib.sha256(dumps([row.record() for row in rows])).hexdigest()


def details(
    run: str, rows: Sequence[Row], *, netns: int, uid: int, agent: str = "", rules: str = ""
) -> dict[str, Any]:
    """What the coverage receipt of a run says; see proxy/SPEC.md."""
    by_state = {state.value: sorted(row.id for row in rows if row.state is state) for state in State}
    out: dict[str, Any] = {
        "run": run,
        "closed": is_closed(rows),
        "rows": {state: names for state, names in by_state.items() if names},
        "report": report_digest(rows),
        "netns": netns,
        "uid": uid,
    }
    optional = {"required": sorted(row.id for row in rows if row.required), "agent": agent, "rules": rules}
    return out | {name: value for name, value in optional.items() if value}


def gap(
    found: tuple[int, Mapping[str, Any]] | None, required: Collection[str], *, now_us: int, max_age_s: int
) -> str:
    """Why the newest coverage (its time and details) does not show a closed boundary; "" when it does."""
    if not required:
        return ""
    if found is None:
        return "the boundary was never proven: run `holdgate doctor --prove`"
    iat_us, said = found
    if now_us - iat_us > max_age_s * 1_000_000:
        return f"the newest proof of the boundary is older than {max_age_s} s: run `holdgate doctor --prove`"
    settled = {name for state in _SETTLED for name in said["rows"].get(state.value, ())}
    missing = sorted(set(required) - settled)
    return f"the boundary is not closed: {', '.join(missing[:5])}" if missing else ""
