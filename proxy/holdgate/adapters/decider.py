"""The decision doors behind HTTP: a question of somebody who forwards by himself becomes a recorded decision.

    Question -> Held (what the proxy would hold) -> Pipeline.ask -> Decided

Nothing is forwarded from here. Whoever asked and was permitted says later what became of it (`outcome`);
who does not, within `settle_s`, leaves it `unknown`. A question repeated under its idempotency key gets the
first answer again while that permit may still be used, as these protocols have it: the second receipt says
why the gate was not asked twice. After that it is answered like any other repeat. Who names its questions
(an instance with a ledger of its own, which would forward under either answer) is told again what it did not
hear, and nothing that another one was told.

Invariants (tests/test_decider.py has one test named after each):
  DD1  Asking never reaches the dispatcher, whatever the answer.
  DD2  Every receipt of a question names its door in `via`.
  DD3  Every PERMIT of a door gets exactly one outcome: the one that was reported, else `unknown`.
  DD4  A repeated question gets the first receipt, and only of the same agent, door, question and name of it.
  DD5  What has an outcome, or a permit that has expired, is not permitted again by a repeated question.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from ..agents import Agent
from ..captured import nowhere, read_captured
from ..claims import PERMIT_USE_BY_US
from ..config import Config
from ..errors import Outcome, Reason
from ..held import Gone, Held
from ..ledger import OutcomeStatus, Recorded
from ..message import Listener, Message, RequestHead
from ..pipeline import Pipeline
from ..questions import ActionAsked, Question, RequestAsked
from ..surface.asked import recognise_asked
from .admin.shapes import decode_jws
from .open_reader import fleet_reader

__all__ = ["Decided", "Decider", "build_decider"]

log = logging.getLogger("holdgate.decider")

_NOWHERE: Final = nowhere(Listener.EXPLICIT)


def build_decider(config: Config, pipeline: Pipeline) -> Decider | None:
    """The doors of an instance; None when no token may ask. Call it in the event loop."""
    if not any(token.agents for token in config.admin.tokens):
        return None

    def stored(receipt_id: str) -> bytes | None:
        with fleet_reader(config) as reader:
            found = reader.get(receipt_id)
        return None if found is None else found.jws

    return Decider(
        pipeline=pipeline,
        agents={rule.agent.id: rule.agent for rule in config.agents},
        stored=lambda receipt_id: asyncio.to_thread(stored, receipt_id),
        later=asyncio.get_running_loop().call_later,
        settle_s=PERMIT_USE_BY_US / 1_000_000 + config.limits.upstream_total_s,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Nowhere:
    """Where a named action would go: nobody said."""

    body: bytes  # what was asked, in one spelling: the commitment of a sensitive operation is over it
    method: str = ""
    host: str = ""
    destination: str = ""
    raw_target: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """What a door answers; `id` and `jws` are empty when no receipt could be written."""

    outcome: Outcome
    reason: Reason
    rules: tuple[str, ...]
    surface: str
    id: str
    jws: bytes
    repeated: bool  # the answer that the same question got before


class _Clock(Protocol):
    def __call__(self, delay: float, callback: Callable[[], None]) -> asyncio.TimerHandle: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Open:
    """A PERMIT whose outcome is to come."""

    agent: str
    name: str
    timer: asyncio.TimerHandle


@dataclass(slots=True, kw_only=True)
class Decider:
    pipeline: Pipeline
    agents: Mapping[str, Agent]
    stored: Callable[[str], Awaitable[bytes | None]]  # a receipt of ours, by id
    later: _Clock  # loop.call_later, or a test's
    settle_s: float
    _open: dict[str, _Open] = field(default_factory=dict)

    async def ask(self, door: str, question: Question, agent: str, name: str = "") -> Decided:
        """Decide for `agent`, who is configured: the caller has checked that it may ask for it. `name`: what
        the asker calls this question."""
        pipeline = self.pipeline
        held = Held(
            _bare(question.about),
            Gone(),
            pipeline.clock(),
            pipeline.bundle,
            agent=self.agents[agent],
            via=door,
        )
        recorded = await pipeline.ask(held, lambda held: self._prepare(held, question.about))
        if recorded is None:
            return _unrecorded()
        entry = recorded.entry
        if entry.outcome is Outcome.PERMIT:
            self._expect_outcome(entry.receipt_id, agent, name)
        elif entry.reason is Reason.IN_FLIGHT and entry.prior:
            jws = await self.stored(entry.prior)
            first = decode_jws(jws) if jws is not None else {}
            if jws is not None and self._is_told(first, name) and _repeats(decode_jws(entry.jws), first):
                return _decided(jws, repeated=True)
        return _decided(entry.jws, repeated=False)

    async def check(self, held: Held, prepare: Callable[[Held], None]) -> Recorded | None:
        """Decide a request that its asker forwards at once: other than by ask(), no permit is told twice."""
        recorded = await self.pipeline.ask(held, prepare)
        if recorded is not None and recorded.entry.outcome is Outcome.PERMIT:
            self._expect_outcome(recorded.entry.receipt_id, recorded.entry.agent)
        return recorded

    def settle(
        self, receipt_id: str, agents: tuple[str, ...], status: OutcomeStatus, http_status: int
    ) -> bool:
        """What became of a PERMIT; False when it waits for no outcome, or is not of these agents."""
        waiting = self._open.get(receipt_id)
        if waiting is None or waiting.agent not in agents:
            return False
        del self._open[receipt_id]
        waiting.timer.cancel()
        self._record(receipt_id, status, http_status)
        return True

    def _is_told(self, first: Mapping[str, Any], name: str) -> bool:
        """Whether an asker of that name may be told this PERMIT again."""
        waiting = self._open.get(first["id"])
        if waiting is None:  # ours: it has ended meanwhile; another node's: its name is not known here
            return name == "" and first["node"] != self.pipeline.evidence.node
        return name == waiting.name

    def _expect_outcome(self, receipt_id: str, agent: str, name: str = "") -> None:
        timer = self.later(self.settle_s, lambda: self._give_up(receipt_id))
        self._open[receipt_id] = _Open(agent=agent, name=name, timer=timer)

    def _give_up(self, receipt_id: str) -> None:
        if self._open.pop(receipt_id, None) is not None:
            self._record(receipt_id, OutcomeStatus.UNKNOWN, 0)

    def _record(self, receipt_id: str, status: OutcomeStatus, http_status: int) -> None:
        self.pipeline.meter.outcome(status.value)
        self.pipeline.ledger.record_outcome(receipt_id, status, http_status, delivered=True)

    def _prepare(self, held: Held, about: RequestAsked | ActionAsked) -> None:
        """What the pipeline would have held. Raises InputError."""
        index, pipeline = held.bundle.index, self.pipeline
        if isinstance(about, RequestAsked):
            held.message = read_captured(about.raw, pipeline.limits, index)
            return
        held.recognised, meant = recognise_asked(
            index,
            about.surface,
            about.operation,
            about.params,
            key=about.key,
            fleet_key=pipeline.evidence.fleet_key,
        )
        held.asked = _Nowhere(body=meant)


def _bare(about: RequestAsked | ActionAsked) -> Message:
    head = RequestHead(method=b"", target=b"", headers=())
    body = about.raw if isinstance(about, RequestAsked) else about.operation.encode("utf-8", "replace")
    return Message(origin=_NOWHERE, head=head, body=body)


def _repeats(second: Mapping[str, Any], first: Mapping[str, Any]) -> bool:
    """Whether two receipts are answers to one question, the first a permit that may still be used."""
    # One spelling of time, so text order is time order; a refusal has no `exp`.
    in_time = second["iat"] < first.get("exp", "")
    return in_time and _asked(second) == _asked(first) and bool(first.get("via"))


def _asked(statement: Mapping[str, Any]) -> tuple[Any, ...]:
    return statement.get("via"), statement["agent"], statement["request"].get("digest")


def _decided(jws: bytes, *, repeated: bool) -> Decided:
    statement = decode_jws(jws)
    actions = statement.get("actions") or statement.get("counts") or [{}]
    return Decided(
        outcome=Outcome(statement["outcome"]),
        reason=Reason(statement["reason"]),
        rules=tuple(statement.get("rules", ())),
        surface=str(actions[0].get("surface", "")),
        id=str(statement["id"]),
        jws=jws,
        repeated=repeated,
    )


def _unrecorded() -> Decided:
    return Decided(
        outcome=Outcome.SILENCE,
        reason=Reason.STORE_UNAVAILABLE,
        rules=(),
        surface="",
        id="",
        jws=b"",
        repeated=False,
    )
