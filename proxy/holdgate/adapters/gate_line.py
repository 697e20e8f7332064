"""The worker's end: the Ledger of a process that has none. It asks the gate process and believes nobody else.

    record(petition) -> ask frame -> the gate judges, signs, commits -> recorded frame -> Recorded

The connection is made again whenever it is lost; meanwhile every record() raises STORE_UNAVAILABLE, so that
everything is refused. Outcomes are kept until a gate that lives has had them for ten seconds, and are told
again on a new connection: the gate that was restarted has made those permits `unknown`, and reconciles them.

Invariants (tests/test_gate_line.py has one test named after each):
  GL1  Without a gate, or when its connection ends before the answer, record() raises STORE_UNAVAILABLE.
  GL2  Whatever the gate says that is not as agreed ends the connection: a cut, oversized or unknown frame, an
       answer to another question, a receipt of something else.
  GL3  A question that is given up is withdrawn, also when its PERMIT is on the way: nobody will use it.
  GL4  An outcome reaches the gate that lives now, or the next one, however the connection ends.
  GL5  Superseded comes only after this process has the gate's bundle, so beginning again makes sense.
  GL6  Only a peer of our own user is believed to be the gate.
  GL7  A new gate hears of every PERMIT that an earlier one told, and that is still under way here.

Long because one connection carries questions, outcomes and what is told again after it was lost: the order of
these is what the invariants are about.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

from .. import __version__
from ..adjudicate import Evidence, Gate
from ..answer import Answer
from ..bundle import Bundle
from ..case import Case
from ..errors import BackendError, ConfigError, Outcome, Reason
from ..gate import ENGINE
from ..ledger import NO_BUDGETS, Budgets, ClaimRow, Entry, Judge, OutcomeStatus, Recorded, Superseded
from ..relay import Converged, Flight
from ..sealing import KeptAnswer
from ..standing import NOTHING_STANDS, Made, Standing
from ..worker_protocol import (
    Frame,
    FrameReader,
    Kind,
    Told,
    WireError,
    encode,
    plain_answer,
    plain_case,
    plain_kept,
    plain_made,
    plain_told,
    read_answer,
    read_recorded,
)

__all__ = ["PLACE", "GateLine", "Petition", "SharedFlights", "peer_of", "short_name"]

log = logging.getLogger("holdgate.worker")

PLACE: Final = Path("run") / "gate.sock"  # below state_dir
_AGAIN_S: Final = (0.05, 0.1, 0.2, 0.5, 1.0)  # between two tries to connect
_TOLD_S: Final = 10.0  # an outcome that the gate has had for so long is durable, or never will be
_HELLO_S: Final = 5.0
_SOON_S: Final = 0.002


class Petition:
    """A Judge that cannot judge: it says what is asked of the gate process. A MakeJudge of the pipeline."""

    __slots__ = ("bundle", "case", "told", "waiting")

    keys: tuple[str, ...] = ()
    meters: tuple[str, ...] = ()
    denials: tuple[str, ...] = ()
    objects: tuple[str, ...] = ()

    def __init__(
        self, case: Case, bundle: Bundle, evidence: Evidence, decide: Gate | None, engine: str
    ) -> None:
        """`decide` is called only where `engine` is another gate's, which has answered by then."""
        self.case, self.bundle, self.waiting = case, bundle.digest, False
        self.told: Told | None = None
        if engine != ENGINE and decide is not None:
            self.told = Told(decision=decide(bundle.policies, {}), engine=engine)

    def void(self) -> None:
        """Nothing to do: who gives a petition up withdraws it (GL3)."""

    def __call__(
        self,
        claims: Mapping[str, ClaimRow],
        *,
        now_us: int,
        receipt_id: str,
        budgets: Budgets = NO_BUDGETS,
        standing: Standing = NOTHING_STANDS,
    ) -> Entry:
        raise BackendError(Reason.INTERNAL_ERROR, "a worker judges nothing")


class SharedFlights(dict[str, Flight]):
    """The pipeline's flights, of whose ends the gate process hears: identical requests may wait elsewhere."""

    def __init__(self, line: GateLine) -> None:
        super().__init__()
        self._line = line

    def __setitem__(self, name: str, flight: Flight) -> None:
        super().__setitem__(name, flight)
        flight.answer.add_done_callback(lambda answer: self._line.flight_ended(name, answer))


@dataclass(slots=True)
class _Asked:
    petition: Petition
    future: asyncio.Future[Recorded]


@dataclass(slots=True)
class _Outcome:
    frame: bytes
    told_s: float | None = None  # when it was written to a connection; None: to none that lives


@dataclass(slots=True, kw_only=True)
class GateLine:
    """Implements ledger.Ledger. `adopt(bundle, ca)` makes what the gate named active here, or raises
    ConfigError."""

    state_dir: Path
    role: str
    adopt: Callable[[str, str], Awaitable[None]]
    clock: Callable[[], float]  # monotonic seconds
    pause: Callable[[float], Awaitable[object]] = asyncio.sleep
    adopted: asyncio.Event = field(default_factory=asyncio.Event)  # this process decides under a bundle
    bundle: str = ""  # that one
    accepting: bool = False  # whether agents' connections are accepted here
    _wanted: tuple[str, str] | None = None  # what the gate named last
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _link: _Link | None = None
    _asked: dict[int, _Asked] = field(default_factory=dict)
    _last: int = 0  # number of the last question, over all connections
    _outcomes: deque[_Outcome] = field(default_factory=deque)
    _open: set[str] = field(default_factory=set)  # PERMITs that were told here and have no outcome yet
    _figures: dict[str, Any] | None = None
    _adopting: asyncio.Task[None] | None = None
    _closing: bool = False

    # -- Ledger -----------------------------------------------------------------------------------

    async def record(self, judge: Judge) -> Recorded:
        if not isinstance(judge, Petition):
            raise BackendError(Reason.INTERNAL_ERROR, "not a petition")
        link = self._link
        if link is None or not link.welcomed:
            raise BackendError(Reason.STORE_UNAVAILABLE, "the gate process is not there")
        n = self._last = self._last + 1
        try:
            frame = encode(
                Kind.ASK, n=n, bundle=judge.bundle, case=plain_case(judge.case), told=plain_told(judge.told)
            )
        except WireError as error:
            raise ValueError(str(error)) from error
        asked = self._asked[n] = _Asked(judge, asyncio.get_running_loop().create_future())
        link.write(frame)
        try:
            recorded = await asked.future
        except asyncio.CancelledError:
            self._write(encode(Kind.WITHDRAW, n=n))
            raise
        except Superseded:
            await self._renewed(judge.bundle)
            raise
        finally:
            self._asked.pop(n, None)
        if recorded.entry.outcome is Outcome.PERMIT:
            self._open.add(recorded.entry.receipt_id)
        return recorded

    def record_outcome(
        self,
        receipt_id: str,
        status: OutcomeStatus,
        http_status: int,
        *,
        delivered: bool,
        made: Made | None = None,
        kept: KeptAnswer | None = None,
    ) -> None:
        def frame_with(tail: bytes) -> bytes:
            return encode(
                Kind.OUTCOME,
                tail,
                id=receipt_id,
                status=status.value,
                http_status=http_status,
                delivered=delivered,
                made=plain_made(made),
            )

        self._open.discard(receipt_id)
        # What may have to be told again is told without the answer: a gate that was restarted keeps none.
        frame = frame_with(b"")
        now = self.clock()
        while self._outcomes and (told := self._outcomes[0].told_s) is not None and now - told > _TOLD_S:
            self._outcomes.popleft()
        outcome = _Outcome(frame)
        self._outcomes.append(outcome)
        if self._write_soon(frame_with(plain_kept(kept)) if kept else frame):
            outcome.told_s = now

    def offer(self, receipt_id: str, answer: Answer) -> None:
        """Identical requests at other nodes may have this answer."""
        head, tail = plain_answer(answer)
        with contextlib.suppress(WireError):  # too large to share: who waits asks for himself
            self._write_soon(encode(Kind.OFFER, tail, id=receipt_id, answer=head))

    # -- what else the worker says -----------------------------------------------------------------

    def flight_ended(self, name: str, answer: asyncio.Future[Any]) -> None:
        shared = None if answer.cancelled() or answer.exception() is not None else answer.result()
        head, tail = plain_answer(shared)
        with contextlib.suppress(WireError):  # too large to share: who waits asks for himself
            self._write_soon(encode(Kind.END, tail, flight=name, answer=head))
            return
        self._write_soon(encode(Kind.END, flight=name, answer={}))

    def report(self, figures: dict[str, Any]) -> None:
        """What this process counts; nothing is written when nothing changed."""
        if figures != self._figures and self._write(encode(Kind.FIGURES, figures=figures)):
            self._figures = figures

    def accept(self) -> None:
        """From now on agents' connections are accepted here."""
        self.accepting = True
        self._say_ready()

    # -- the connection ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Connect, and again whenever that ends, until cancelled."""
        waits = iter(_AGAIN_S)
        while True:
            link = await self._connect()
            if link is not None:
                welcomed = await link.run()
                self._lost()
                if welcomed:
                    waits = iter(_AGAIN_S)
                if not self._closing:
                    log.error(
                        "%s: the gate process is gone: everything is refused until it is back", self.role
                    )
            await self.pause(next(waits, _AGAIN_S[-1]))

    async def _connect(self) -> _Link | None:
        loop = asyncio.get_running_loop()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            with short_name(self.state_dir / PLACE) as name:
                await loop.sock_connect(sock, name)
            _, uid = peer_of(sock)
            if uid != os.geteuid():
                raise PermissionError(f"the gate's socket belongs to uid {uid}")
            link = _Link(self)
            await loop.create_unix_connection(lambda: link, sock=sock)
        except OSError as error:
            log.debug("%s: no gate process: %s", self.role, error)
            sock.close()
            return None
        self._link = link
        link.write(encode(Kind.HELLO, build=__version__, role=self.role))
        return link

    def _lost(self) -> None:
        self._link, self._figures = None, None
        failure = BackendError(Reason.STORE_UNAVAILABLE, "the gate process is gone")
        for asked in list(self._asked.values()):
            if not asked.future.done():
                asked.future.set_exception(failure)
        lost_at = self.clock()
        for outcome in self._outcomes:
            if outcome.told_s is not None and lost_at - outcome.told_s <= _TOLD_S:
                outcome.told_s = None

    def _write(self, frame: bytes) -> bool:
        link = self._link
        if link is None or not link.welcomed:
            return False
        link.write(frame)
        return True

    def _write_soon(self, frame: bytes) -> bool:
        """With the next question, or a little later: nobody waits for this."""
        link = self._link
        if link is None or not link.welcomed:
            return False
        link.write_soon(frame)
        return True

    async def close(self) -> None:
        """Let the gate read everything that was said, and end."""
        self._closing = True
        link = self._link
        if link is not None:
            link.finish()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(link.ended), _HELLO_S)

    # -- what the gate says --------------------------------------------------------------------------

    def hear(self, frame: Frame) -> None:
        """Raises WireError."""
        match frame.kind:
            case Kind.WELCOME | Kind.ACTIVE:
                self._told_active(frame.head["bundle"], frame.head["ca"])
            case Kind.RECORDED | Kind.SUPERSEDED | Kind.REFUSED | Kind.CONVERGED:
                self._answered(frame)
            case Kind.WAITING:
                if (asked := self._asked.get(frame.head["n"])) is not None:
                    asked.petition.waiting = True
            case _:
                raise WireError(f"{frame.kind}: not for a worker")

    def welcomed(self) -> None:
        """The gate took us: what it may have missed is told again, and what is still under way."""
        now = self.clock()
        if self._open:
            self._write(encode(Kind.OPEN, ids=sorted(self._open)))
        for outcome in self._outcomes:
            if outcome.told_s is None and self._write(outcome.frame):
                outcome.told_s = now

    def _answered(self, frame: Frame) -> None:
        asked = self._asked.get(frame.head["n"])
        if not 0 < frame.head["n"] <= self._last:
            raise WireError("an answer to a question that nobody asked")
        if asked is None or asked.future.done():
            return  # it was withdrawn: whatever this says is void, and the gate has heard so
        petition, future = asked.petition, asked.future
        match frame.kind:
            case Kind.RECORDED:
                future.set_result(read_recorded(frame, petition.case, petition.bundle))
            case Kind.SUPERSEDED:
                future.set_exception(Superseded())
            case Kind.CONVERGED:
                answer = read_answer(frame.head["answer"], frame.tail)
                if answer is None:
                    raise WireError("converged on nothing")
                future.set_exception(Converged(answer))
            case _:
                reason = frame.head["reason"]
                if reason not in _REASONS:
                    raise WireError("refused for no known reason")
                future.set_exception(BackendError(Reason(reason), frame.head["detail"]))

    # -- the bundle ----------------------------------------------------------------------------------

    def _told_active(self, bundle: str, ca: str) -> None:
        self._wanted = bundle, ca
        if self._adopting is None or self._adopting.done():
            self._adopting = asyncio.ensure_future(self._adopt())

    async def _adopt(self) -> None:
        """Until what the gate named last is active here; tried again while it is not."""
        done: tuple[str, str] | None = None
        while done != self._wanted and self._wanted is not None:
            wanted = self._wanted
            try:
                await self.adopt(*wanted)
            except ConfigError as error:
                log.error("%s: bundle %s: %s; trying again", self.role, wanted[0] or "none", error)
                await self.pause(1.0)
                continue
            done, self.bundle = wanted, wanted[0]
            self.adopted.set()
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()
        self._say_ready()

    def _say_ready(self) -> None:
        if self.accepting:
            self._write(encode(Kind.READY, bundle=self.bundle))

    async def _renewed(self, old: str) -> None:
        """Until this process has another bundle than `old`. The hold deadline bounds it."""
        while self.bundle == old and self._wanted is not None and self._wanted[0] != old:
            await self._changed.wait()


_REASONS: Final = frozenset(reason.value for reason in Reason)


class _Link(asyncio.Protocol):
    """One connection to the gate."""

    def __init__(self, line: GateLine) -> None:
        self._line, self._reader = line, FrameReader()
        self._transport: asyncio.Transport | None = None
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._soon: list[bytes] = []
        self._later: asyncio.TimerHandle | None = None

    @property
    def welcomed(self) -> bool:
        return self._greeted.done()

    async def run(self) -> bool:
        """Until it ends; whether the gate ever welcomed us."""
        await asyncio.wait([self.ended, self._greeted], timeout=_HELLO_S, return_when=asyncio.FIRST_COMPLETED)
        try:
            if self.welcomed:
                await asyncio.shield(self.ended)
        finally:
            self.abort()
        return self.welcomed

    def write(self, frame: bytes) -> None:
        """At once, after whatever was to be written soon."""
        if self._later is not None:
            self._later.cancel()
            self._later = None
            frame, self._soon = b"".join([*self._soon, frame]), []
        if self._transport is not None:
            self._transport.write(frame)

    def write_soon(self, frame: bytes) -> None:
        self._soon.append(frame)
        if self._later is None:
            self._later = asyncio.get_running_loop().call_later(_SOON_S, self.write, b"")

    def finish(self) -> None:
        self.write(b"")
        if self._transport is not None and self._transport.can_write_eof():
            self._transport.write_eof()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._reader.feed(data):
                if not self.welcomed:
                    if frame.kind is not Kind.WELCOME:
                        raise WireError("the gate did not welcome us")
                    self._greeted.set_result(None)
                    self._line.welcomed()
                self._line.hear(frame)
        except WireError as error:
            log.error("the gate said what it may not: %s", error)
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


def peer_of(sock: Any) -> tuple[int, int]:
    """(pid, uid) of the process at the other end of a Unix socket."""
    pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid


@contextlib.contextmanager
def short_name(path: Path) -> Iterator[str]:
    """The name of a Unix socket has at most 107 bytes, and a state directory may lie deeper."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
