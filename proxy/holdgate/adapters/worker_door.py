"""Where the proxy workers of one instance ask its gate process: a Unix socket in the state directory.

    ask frame -> Case -> facts -> Adjudication in the ledger's serial step -> durable -> recorded frame

This is what one process does between its steps 3 and 8, for requests that another process holds. The judge
is the same, and the ledger, keys, facts and active bundle are this process's. What a worker recognised under
another bundle than the active one is sent back, to be recognised again.

A worker is believed what it says of a request, as the same code is believed in one process: whoever may open
the socket (mode 0600 in a directory of mode 0700, peer's user checked) could read the keys.

Invariants (tests/test_worker_door.py has one test named after each):
  WD1  A PERMIT is told only after it is durable, and only under the bundle that recognised the request.
  WD2  When a worker's connection ends, its open permits are `unknown` at once, with receipts; what it still
       waited for is abandoned, and not_sent where it was permitted.
  WD3  A permit that its worker will never use is not_sent: its question was withdrawn, or it cannot be told.
  WD4  Identical requests of several workers share one dispatch and one answer, as within one process.
  WD5  An outcome of a permit that was made `unknown` meanwhile reconciles it; of others it changes nothing.
  WD6  A frame that is not as agreed, or a peer of another user, ends that connection and nothing else.
  WD7  Of a permit that a worker says it still has, nobody finds out that nothing happened.

Long because it is the other end of gate_line.py, with the same order to keep.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Protocol, cast

from .. import __version__
from ..adjudicate import Adjudication, Evidence
from ..agents import Agent
from ..answer import Answer
from ..bundle import Bundle
from ..case import Case, flight_name, questions
from ..errors import BackendError, ConfigError, HoldgateError, Outcome, Reason
from ..facts import Found, Lookup
from ..gate import ENGINE, TimedGate
from ..ledger import (
    FINDINGS,
    Finding,
    InFlightElsewhere,
    Judge,
    Noted,
    OutcomeStatus,
    ReconcileError,
    Recorded,
    Superseded,
)
from ..relay import Converged
from ..sealing import KeptAnswer
from ..standing import Made
from ..worker_protocol import (
    Frame,
    FrameReader,
    Kind,
    Told,
    ToldOutcome,
    WireError,
    encode,
    plain_answer,
    plain_kept,
    read_answer,
    read_case,
    read_outcome,
    read_told,
)
from .gate_line import PLACE, peer_of, short_name
from .metrics import Metrics

__all__ = ["WorkerDoor"]

log = logging.getLogger("holdgate.workers")

_ROLE: Final = re.compile(r"worker-[1-9][0-9]{0,3}\Z")
_HELLO_S: Final = 5.0
_LATE: Final = "told by its worker when this gate process had made it unknown"
_KEPT_BUNDLES: Final = 3


class _Ledger(Protocol):
    async def record(self, judge: Judge) -> Recorded: ...
    async def reconcile(self, finding: Finding) -> Noted: ...
    async def first(self, receipt_id: str) -> Answer | None: ...
    def offer(self, receipt_id: str, answer: Answer) -> None: ...
    def record_outcome(
        self,
        receipt_id: str,
        status: OutcomeStatus,
        http_status: int,
        *,
        delivered: bool,
        made: Made | None = None,
        kept: KeptAnswer | None = None,
    ) -> None: ...


class _Pipeline(Protocol):
    """The gate process's own, as far as asks need it: what is active now."""

    @property
    def bundle(self) -> Bundle: ...
    @property
    def evidence(self) -> Evidence: ...
    @property
    def clock(self) -> Callable[[], float]: ...
    @property
    def facts(self) -> Callable[[Iterable[Lookup]], Awaitable[Mapping[Lookup, Found]]]: ...


@dataclass(slots=True)
class _Flight:
    owner: _Line
    ended: asyncio.Future[tuple[Mapping[str, Any], bytes]]  # the answer, ({}, b"") for none


@dataclass(slots=True, kw_only=True)
class WorkerDoor:
    """`engine` is what decides: this program's, or the one that the workers ask (`gate:`)."""

    state_dir: Path
    pipeline: _Pipeline
    ledger: _Ledger
    agents: Mapping[str, Agent]
    metrics: Metrics
    decide_s: float
    engine: str = ENGINE
    ca: str = ""  # fingerprint of the CA that workers should use
    _bundles: dict[str, Bundle] = field(default_factory=dict)  # those that were active last, by digest
    _lines: set[_Line] = field(default_factory=set)
    _flights: dict[str, _Flight] = field(default_factory=dict)
    _work: set[asyncio.Task[None]] = field(default_factory=set)
    _server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen. The ledger's lock is held, so a socket that is there is nobody's. Raises ConfigError."""
        path = self.state_dir / PLACE
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            path.unlink(missing_ok=True)
            with short_name(path) as name:
                sock.bind(name)
            path.chmod(0o600)
            loop = asyncio.get_running_loop()
            self._server = await loop.create_unix_server(lambda: _Line(self), sock=sock)
        except OSError as error:
            sock.close()
            raise ConfigError(f"cannot make the workers' socket: {error}", file=str(path)) from error

    async def stop(self) -> None:
        """End every connection; what was open is settled (WD2)."""
        if self._server is not None:
            self._server.close()
            (self.state_dir / PLACE).unlink(missing_ok=True)
        for line in list(self._lines):
            line.end("the gate process stops")
        await asyncio.gather(*self._work, return_exceptions=True)

    # -- what the instance asks ----------------------------------------------------------------------

    @property
    def connected(self) -> tuple[tuple[str, int], ...]:
        """(role, pid) of each worker."""
        return tuple(sorted((line.role, line.pid) for line in self._lines if line.role))

    def check(self, finding: Finding) -> None:
        """Raises ReconcileError where that cannot be known yet: a worker outlived the gate process, or its
        connection, and may still be sending."""
        having = next((line for line in self._lines if finding.of in line.has), None)
        if having is not None and finding.found is not OutcomeStatus.EXECUTED:
            raise ReconcileError(f"{having.role} still has {finding.of}, and will tell what became of it")

    @property
    def accepting(self) -> int:
        """How many workers accept requests under the active bundle."""
        active = self.pipeline.bundle.digest
        return sum(line.accepts == active for line in self._lines)

    def gap(self) -> str:
        """Why no request can be decided; "" when some can."""
        return "" if self.accepting else "no worker accepts requests"

    def announce(self) -> None:
        """Another bundle or CA is active. Call it in the step in which that happens."""
        for line in self._lines:
            if line.role:
                line.write(encode(Kind.ACTIVE, bundle=self.pipeline.bundle.digest, ca=self.ca))
        self._remember()

    async def caught_up(self, within_s: float) -> bool:
        """Until every worker that accepts requests does so under the active bundle; False: not in time."""
        try:
            async with asyncio.timeout(within_s):
                while any(line.accepts not in (None, self.pipeline.bundle.digest) for line in self._lines):
                    await asyncio.sleep(0.02)
        except TimeoutError:
            return False
        return True

    def _remember(self) -> None:
        bundle = self.pipeline.bundle
        self._bundles[bundle.digest] = self._bundles.pop(bundle.digest, bundle)
        while len(self._bundles) > _KEPT_BUNDLES:
            del self._bundles[next(iter(self._bundles))]

    # -- one connection --------------------------------------------------------------------------------

    def came(self, line: _Line) -> None:
        self._lines.add(line)

    def welcome(self, line: _Line) -> None:
        self._remember()
        line.write(encode(Kind.WELCOME, bundle=self.pipeline.bundle.digest, ca=self.ca))
        log.info("%s is here, pid %d", line.role, line.pid)

    def left(self, line: _Line) -> None:
        """WD2."""
        self._lines.discard(line)
        for receipt_id in line.permits:
            self.ledger.record_outcome(receipt_id, OutcomeStatus.UNKNOWN, 0, delivered=False)
            self.metrics.outcome(OutcomeStatus.UNKNOWN.value)
        for task in line.asks.values():
            task.cancel()
        for name in [name for name, flight in self._flights.items() if flight.owner is line]:
            self._end_flight(name, {}, b"")
        self.metrics.worker_ended(line.name)
        if line.role:
            level = logging.WARNING if line.permits else logging.INFO
            log.log(level, "%s is gone, %d of its permits are unknown now", line.role, len(line.permits))

    def hear(self, line: _Line, frame: Frame) -> None:
        """Raises WireError."""
        match frame.kind:
            case Kind.ASK:
                self._ask(line, frame)
            case Kind.WITHDRAW:
                self._withdraw(line, frame.head["n"])
            case Kind.OFFER:
                answer = read_answer(frame.head["answer"], frame.tail)
                if answer is not None and frame.head["id"] in line.permits:
                    self.ledger.offer(frame.head["id"], answer)
            case Kind.OUTCOME:
                self._outcome(line, read_outcome(frame))
            case Kind.END:
                flight = self._flights.get(frame.head["flight"])
                if flight is not None and flight.owner is line:
                    self._end_flight(frame.head["flight"], frame.head["answer"], frame.tail)
            case Kind.FIGURES:
                try:
                    self.metrics.of_worker(line.name, frame.head["figures"])
                except ValueError as error:
                    raise WireError(str(error)) from error
            case Kind.READY:
                line.accepts = frame.head["bundle"]
            case Kind.OPEN:
                line.has = set(map(str, frame.head["ids"]))
            case _:
                raise WireError(f"{frame.kind}: not for the gate")

    # -- questions ---------------------------------------------------------------------------------------

    def _ask(self, line: _Line, frame: Frame) -> None:
        n = frame.head["n"]
        if n <= line.last:
            raise WireError("a question that was asked already")
        line.last = n
        case, told = read_case(frame.head["case"], self.agents), read_told(frame.head["told"])
        if case.refusal is None and (told.engine if told else ENGINE) != self.engine:
            raise WireError(f"decided by something else than {self.engine}")
        # Begun at once, not in the next turn of the loop: its first step is to queue for the ledger.
        loop = asyncio.get_running_loop()
        work = self._answer(line, n, case, frame.head["bundle"], told)
        task = asyncio.Task(work, loop=loop, eager_start=True)
        if not task.done():
            line.asks[n] = task
            self._work.add(task)
            task.add_done_callback(self._work.discard)

    async def _answer(self, line: _Line, n: int, case: Case, bundle: str, told: Told | None) -> None:
        """One question, however it ends. Cancelled when it is withdrawn or its worker is gone."""
        try:
            answer = await self._decided(line, n, case, bundle, told)
        except Superseded:
            await asyncio.sleep(0)  # the activation's own task comes first: it was recorded first
            answer = encode(Kind.SUPERSEDED, n=n)
        except BackendError as error:
            answer = encode(Kind.REFUSED, n=n, reason=error.reason.value, detail=error.detail)
        except Exception as error:
            log.exception("internal error")
            answer = encode(Kind.REFUSED, n=n, reason=Reason.INTERNAL_ERROR.value, detail=repr(error))
        finally:
            line.asks.pop(n, None)
        line.write(answer)

    async def _decided(self, line: _Line, n: int, case: Case, bundle: str, told: Told | None) -> bytes:
        shared = await self._elsewhere(line, n, case)
        if shared is not None:
            head, tail = shared
            return encode(Kind.CONVERGED, tail, n=n, answer=head)
        try:
            recorded = await self._record_or_wait(line, n, case, bundle, told)
        except Converged as elsewhere:
            head, tail = plain_answer(elsewhere.answer)
            return encode(Kind.CONVERGED, tail, n=n, answer=head)
        entry = recorded.entry
        if entry.outcome is Outcome.PERMIT:
            line.permits[entry.receipt_id] = n
        try:
            again = plain_kept(recorded.answer)  # opened by the worker, which has the request
            return encode(
                Kind.RECORDED,
                entry.jws + again,
                n=n,
                index=recorded.index,
                prior=entry.prior,
                prior_status=entry.prior_status,
                would=entry.would,
                produces=entry.produces,
                worth=entry.told.value,
                answer=len(again),
            )
        except Exception:
            self._unused(line, entry.receipt_id)
            raise

    async def _record_or_wait(
        self, line: _Line, n: int, case: Case, bundle: str, told: Told | None
    ) -> Recorded:
        """As Pipeline._decide_or_wait. The worker hears that it waits: its deadline then says `in_flight`."""
        while True:
            try:
                return await self._record(case, bundle, told)
            except InFlightElsewhere as elsewhere:
                line.write(encode(Kind.WAITING, n=n))
                answer = await self.ledger.first(elsewhere.receipt_id)
                if answer is not None:
                    raise Converged(answer) from None

    async def _elsewhere(self, line: _Line, n: int, case: Case) -> tuple[Mapping[str, Any], bytes] | None:
        """The answer of an identical request that another worker holds; None: this one goes first now."""
        if case.refusal is not None or case.agent is None or case.request is None:
            return None
        if case.recognised is None or not case.recognised.keys:
            return None
        name = flight_name(case.agent, case.request.destination, case.recognised)
        while (flight := self._flights.get(name)) is not None and flight.owner is not line:
            line.write(encode(Kind.WAITING, n=n))
            head, tail = await asyncio.shield(flight.ended)
            if head:
                return head, tail
        self._flights[name] = _Flight(line, asyncio.get_running_loop().create_future())
        return None

    def _end_flight(self, name: str, head: Mapping[str, Any], tail: bytes) -> None:
        flight = self._flights.pop(name)
        if not flight.ended.done():
            flight.ended.set_result((head, tail))

    async def _record(self, case: Case, digest: str, told: Told | None) -> Recorded:
        bundle = self.pipeline.bundle
        if case.refusal is not None:  # says under which bundle it was refused, where that is remembered
            bundle = self._bundles.get(digest, bundle)
        elif bundle.digest != digest:
            raise Superseded
        evidence = self.pipeline.evidence
        timed = TimedGate(self.pipeline.clock, self.decide_s)
        if told is not None:
            judge = Adjudication(case, bundle, evidence, lambda *_: told.decision, told.engine)
        else:
            if case.refusal is None and (asked := questions(case, bundle)):
                case = replace(case, facts=await self.pipeline.facts(asked))
            judge = Adjudication(case, bundle, evidence, timed)
        started = self.pipeline.clock()
        try:
            recorded = await self.ledger.record(judge)
        except BaseException:
            judge.void()
            raise
        if case.refusal is None:
            self.metrics.commit(self.pipeline.clock() - started)
            self.metrics.decide(timed.seconds)
        return recorded

    def _withdraw(self, line: _Line, n: int) -> None:
        """WD3. A task that is cancelled leaves a permit to the ledger, which settles it (ledger.py)."""
        if (task := line.asks.get(n)) is not None:
            task.cancel()
            return
        receipt_id = next((permit for permit, number in line.permits.items() if number == n), "")
        self._unused(line, receipt_id)

    def _unused(self, line: _Line, receipt_id: str) -> None:
        """WD3. Of a receipt that is no open permit of this line, nothing is to be said."""
        if line.permits.pop(receipt_id, None) is not None:
            self.ledger.record_outcome(receipt_id, OutcomeStatus.NOT_SENT, 0, delivered=False)
            self.metrics.outcome(OutcomeStatus.NOT_SENT.value)

    # -- outcomes ----------------------------------------------------------------------------------------

    def _outcome(self, line: _Line, told: ToldOutcome) -> None:
        line.has.discard(told.receipt_id)
        if line.permits.pop(told.receipt_id, None) is not None:
            self.ledger.record_outcome(
                *(told.receipt_id, told.status, told.http_status),
                delivered=told.delivered,
                made=told.made,
                kept=told.kept,
            )
        elif told.status in FINDINGS:
            task = asyncio.ensure_future(self._reconcile(line.role, told.receipt_id, told.status))
            self._work.add(task)
            task.add_done_callback(self._work.discard)

    async def _reconcile(self, role: str, receipt_id: str, status: OutcomeStatus) -> None:
        """WD5. The permit is one of an earlier gate process, or of a connection that was lost."""
        try:
            await self.ledger.reconcile(Finding(of=receipt_id, found=status, by=role, note=_LATE))
            log.warning("%s: %s after all, said %s", receipt_id, status, role)
        except HoldgateError as error:  # mostly: it is not unknown, because it arrived the first time
            log.debug("%s: not reconciled: %s", receipt_id, error)


class _Line(asyncio.Protocol):
    """One connection of one worker."""

    def __init__(self, door: WorkerDoor) -> None:
        self._door, self._reader = door, FrameReader()
        self._transport: asyncio.Transport | None = None
        self._hello: asyncio.TimerHandle | None = None
        self.role, self.pid = "", 0
        self.accepts: str | None = None  # the bundle under which it accepts requests; None: it does not yet
        self._said: list[bytes] = []
        self.last = 0  # number of its last question
        self.asks: dict[int, asyncio.Task[None]] = {}
        self.permits: dict[str, int] = {}  # receipt whose outcome is to come -> number of the question
        self.has: set[str] = set()  # receipts of an earlier connection's, whose outcome is to come

    @property
    def name(self) -> str:
        """Of this process, over all its connections."""
        return f"{self.role} {self.pid}"

    def write(self, frame: bytes) -> None:
        """Together with what else is said in this turn of the loop: a group of commits has many answers."""
        self._said.append(frame)
        if len(self._said) == 1:
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        said, self._said = self._said, []
        if self._transport is not None:
            self._transport.write(b"".join(said))

    def end(self, why: str) -> None:
        log.info("%s: %s", self.role or "somebody", why)
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._door.came(self)
        self.pid, uid = peer_of(transport.get_extra_info("socket"))
        if uid != os.geteuid():
            self.end(f"refused uid {uid}")
            return
        self._hello = asyncio.get_running_loop().call_later(_HELLO_S, self._mute)

    def _mute(self) -> None:
        if not self.role:
            self.end("no hello")

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._reader.feed(data):
                if self.role:
                    self._door.hear(self, frame)
                else:
                    self._greet(frame)
        except WireError as error:
            log.error("%s said what it may not: %s", self.role or "somebody", error)
            self.end("not as agreed")

    def _greet(self, frame: Frame) -> None:
        if frame.kind is not Kind.HELLO or not _ROLE.match(frame.head["role"]):
            raise WireError("no hello of a worker")
        if frame.head["build"] != __version__:
            raise WireError(f"a worker of version {frame.head['build']}, and this is {__version__}")
        self.role = frame.head["role"]
        self._door.welcome(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._hello is not None:
            self._hello.cancel()
        self._door.left(self)
