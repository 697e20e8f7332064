"""The product on one page: one held request, nine steps, and only a Release reaches the network.

    message -> canonical -> surface -> claim -> gate -> receipt -> record -> release -> headers

`Pipeline.handle` is the only async story. Every step is a field, so that a test can make any of them
raise, hang, be cancelled or return nonsense; whatever happens before the Release ends in a refusal with a
receipt, and whatever happens after it leaves exactly one outcome receipt.

Invariants (tests/test_pipeline.py has one test named after each):
  P1  No dispatch without a Release, and no Release without a Recorded PERMIT for exactly this request.
  P2  A step that raises, hangs, is cancelled or returns nonsense: nothing leaves, the agent is answered.
  P3  A PERMIT that comes after the hold deadline is void: its outcome is not_sent.
  P4  Every PERMIT is settled exactly once, whatever the exchange does.
  P5  Identical requests in flight share one dispatch, one receipt and one answer.
  P6  An identical request that is in flight at another node is waited for: its answer is shared, or, where it
      has none, this one is decided again; at the hold deadline it is `in_flight`.
  P7  A kept answer goes only to a repeat that was recorded as already_executed and has the credential of the
      first request; nothing leaves, and nobody shares it.
  P8  The hold deadline of a request comes in time, whichever others began, ended or expired before it.

Long because the nine steps, and the refusal that each of them may end in, are read together.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from .adjudicate import Adjudication, Evidence, MakeJudge
from .agents import Agent
from .answer import Answer, Dispatcher, DispatchError, Exchange
from .bundle import Bundle
from .canonical import CanonicalRequest, canonicalise
from .case import questions
from .claims import object_key
from .digest import wire_digest
from .errors import REASONS, BackendError, InputError, Outcome, Reason, loggable
from .facts import Found, Lookup
from .floods import FLOOD_S, Flood, Floods
from .gate import ENGINE, TimedGate
from .headers import Verdicts, decision_headers
from .held import Client, Gone, Held, claimed_host
from .ledger import InFlightElsewhere, Ledger, OutcomeStatus, Recorded, Superseded
from .limits import Limits
from .message import Headers, Message, Origin, RequestHead, ResponseHead
from .produced import object_id
from .recall import asker_of, given_again, keep
from .receipt import ReceiptError
from .refusal import Refusal, refuse
from .relay import Converged, Flight, Permit, Said, answer_again, answer_exchange, failed_exchange, share
from .release import Release
from .remote_gate import Asked, Gatekeeper, Remote
from .sealing import KeptAnswer
from .standing import Made
from .surface.model import Effect, Recognised

__all__ = ["Client", "Meter", "Pipeline"]

log = logging.getLogger("holdgate.pipeline")

# What a refusal may cost after something already went wrong: a stuck store must not hold the agent too.
REFUSAL_RECORD_S = 2.0
# What is larger is read in a thread: a batch of 1,000 keys in 31 KB takes 40 ms, and 20 are the budget.
LARGE_BODY_BYTES = 16_384
LARGE_READS = 1  # at once; decoding holds the interpreter anyway
_NO_POLICY = frozenset({Reason.POLICY_UNAVAILABLE, Reason.POLICY_EXPIRED})


class Meter(Protocol):
    """Where figures go; see adapters/metrics.py."""

    def decision(self, surface: str, outcome: str, reason: str) -> None: ...
    def shadow(self, surface: str, outcome: str, would: str) -> None: ...
    def hold(self, seconds: float) -> None: ...
    def commit(self, seconds: float) -> None: ...
    def decide(self, seconds: float) -> None: ...
    def upstream(self, seconds: float) -> None: ...
    def outcome(self, status: str) -> None: ...
    def unmapped(self, host: str) -> None: ...
    def in_flight(self, change: int) -> None: ...


async def no_provider(_: Iterable[Lookup]) -> Mapping[Lookup, Found]:
    return {}


class Holds:
    """Deadlines that are equally far off: what began first ends first, so one timer is enough for all."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._open: dict[asyncio.Timeout, float] = {}  # when each ends, the next one first
        self._timer: tuple[asyncio.AbstractEventLoop, asyncio.TimerHandle] | None = None

    def begin(self, deadline: asyncio.Timeout) -> None:
        """`deadline` is entered, and has no end of its own."""
        loop = asyncio.get_running_loop()
        self._open[deadline] = ends = loop.time() + self._seconds
        if self._timer is None or self._timer[0] is not loop:
            self._arm(loop, ends)

    def end(self, deadline: asyncio.Timeout) -> None:
        self._open.pop(deadline, None)

    def _arm(self, loop: asyncio.AbstractEventLoop, ends: float) -> None:
        self._timer = loop, loop.call_at(ends, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        while self._open:
            deadline, ends = next(iter(self._open.items()))
            if ends > loop.time():
                self._arm(loop, ends)
                return
            del self._open[deadline]
            deadline.reschedule(ends)  # that is past: it comes in the next turn of the loop


@dataclass(slots=True, kw_only=True)
class Pipeline:
    bundle: Bundle
    identify: Callable[[Origin], Agent]
    ledger: Ledger
    dispatcher: Dispatcher
    evidence: Evidence
    show: Verdicts
    limits: Limits
    meter: Meter
    clock: Callable[[], float]  # monotonic seconds
    gatekeeper: Gatekeeper | None = None  # asked in place of the policies here
    judge: MakeJudge = Adjudication  # what the ledger is given; a worker's is judged in the gate process
    canonicalise: Callable[[Message], CanonicalRequest] = canonicalise
    facts: Callable[[Iterable[Lookup]], Awaitable[Mapping[Lookup, Found]]] = no_provider
    offer: Callable[[str, Answer], None] | None = None  # an answer, to identical requests at other nodes
    first: Callable[[str], Awaitable[Answer | None]] | None = None  # that one's, when it is at another node
    pause: Callable[[float], Awaitable[object]] = asyncio.sleep
    vouches_for: Callable[[str], bool] | None = None  # the hosts of a constrained CA; None: of any
    held_bytes: int = 0
    in_flight: int = 0
    flights: dict[str, Flight] = field(default_factory=dict)
    floods: Floods[asyncio.Future[Recorded | None]] = field(init=False)
    holds: Holds = field(init=False)
    # Reading takes several times a body's own memory, which held_bytes does not count.
    large_reads: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(LARGE_READS))

    def __post_init__(self) -> None:
        self.floods = Floods(self.limits.refusals_per_agent_s)
        self.holds = Holds(self.limits.hold_s)

    # -- what the inner door asks -----------------------------------------------------------------

    def body_limit(self, origin: Origin, head: RequestHead) -> int:
        """Largest body worth reading: the map's for this host, else the default."""
        host, port = claimed_host(origin, head)
        scheme = "https" if origin.tls else "http"
        return self.bundle.index.body_limit(
            host, port, scheme, default=self.limits.body_bytes, cap=self.limits.body_bytes_max
        )

    def reserve(self, size_bytes: int) -> None:
        if size_bytes > 0 and self.held_bytes + size_bytes > self.limits.held_bytes:
            raise InputError(Reason.OVERLOADED, "limits.held_bytes")
        self.held_bytes += size_bytes

    def greet(self, origin: Origin) -> None:
        """Ask for proxy credentials while they can be given; every other verdict waits for the request.

        But under a constrained CA no request can follow for a name that the agent will not believe.
        """
        try:
            self.identify(origin)
        except InputError as error:
            if error.status == 407:
                raise
        if self.vouches_for is None or origin.connect is None:
            return
        host, port = origin.connect[0].lower(), origin.connect[1]
        if not (self.vouches_for(host) and self.bundle.index.is_mapped(host, port, "https")):
            raise self._beyond_the_ca(host)

    def unheard(self, sni: str | None) -> InputError:
        """Why an agent may have left before TLS was established, as far as that can be told."""
        if self.vouches_for is not None and sni and not self.vouches_for(sni.lower()):
            return self._beyond_the_ca(sni.lower())
        return InputError(Reason.UNSUPPORTED_PROTOCOL, "closed before TLS or HTTP was established")

    def _beyond_the_ca(self, host: str) -> InputError:
        self.meter.unmapped(host[:253])  # longer ones are no names
        return InputError(Reason.UNKNOWN_DESTINATION, f"the CA is constrained, and not to {host}")

    async def handle(self, message: Message, client: Client) -> Answer:
        """Hold one request, and answer it. Never raises but for cancellation of the whole process."""
        held = Held(message, client, self.clock(), self.bundle)
        try:
            return await self._counted(held)
        except InputError as error:
            return await self._refuse(held, error.reason, error.detail, status=error.status)
        except BackendError as error:
            return await self._refuse(held, error.reason, error.detail)
        except TimeoutError:
            reason = Reason.IN_FLIGHT if held.waiting else Reason.GATE_TIMEOUT
            return await self._refuse(held, reason, "hold deadline")
        except asyncio.CancelledError:
            return await self._refuse(held, Reason.INTERNAL_ERROR, "cancelled")
        except Exception as error:
            log.exception("internal error")
            return await self._refuse(held, Reason.INTERNAL_ERROR, repr(error))

    async def refuse(self, origin: Origin, error: InputError, seen: bytes) -> Answer:
        """Answer bytes that are not one readable message."""
        head = RequestHead(method=b"", target=b"", headers=())
        held = Held(Message(origin=origin, head=head, body=seen), Gone(), self.clock(), self.bundle)
        return await self._refuse(held, error.reason, error.detail, status=error.status, close=True)

    async def ask(self, held: Held, prepare: Callable[[Held], None]) -> Recorded | None:
        """Steps 1 to 7 for a decision door: nothing is forwarded. None: no receipt could be written.

        `prepare` puts the request into `held`, or what is recognised in place of one; it raises InputError.
        """
        self.in_flight += 1
        self.meter.in_flight(1)
        try:
            return await self._asked(held, prepare)
        finally:
            self.in_flight -= 1
            self.meter.in_flight(-1)

    async def _asked(self, held: Held, prepare: Callable[[Held], None]) -> Recorded | None:
        try:
            async with asyncio.timeout(self.limits.hold_s):
                if self.in_flight > self.limits.in_flight:
                    raise InputError(Reason.OVERLOADED, "limits.in_flight")
                while True:
                    prepare(held)
                    if held.recognised is None:
                        await self._read_aside(held)
                    try:
                        return await self._decide(held)
                    except Superseded:
                        await self._renew(held)
        except (InputError, BackendError) as error:
            reason, detail = error.reason, error.detail
        except TimeoutError:
            reason, detail = Reason.GATE_TIMEOUT, "hold deadline"
        except Exception as error:
            log.exception("internal error")
            reason, detail = Reason.INTERNAL_ERROR, repr(error)
        log.info("SILENCE %s via %s: %.300s", reason.value, held.via, detail)
        recorded = await self._receipt_of(held, reason)
        self.meter.decision(
            "", Outcome.SILENCE.value, (reason if recorded else Reason.STORE_UNAVAILABLE).value
        )
        return recorded

    async def _counted(self, held: Held) -> Answer:
        """In flight until it is answered, but not while a refusal waits for the receipt of a flood."""
        self.in_flight += 1
        self.meter.in_flight(1)
        try:
            return await self._held(held)
        finally:
            self.in_flight -= 1
            self.meter.in_flight(-1)

    # -- the nine steps ---------------------------------------------------------------------------

    async def _held(self, held: Held) -> Answer:
        async with asyncio.timeout(None) as deadline:
            self.holds.begin(deadline)
            try:
                flight, found = await self._decided(held)
            finally:
                self.holds.end(deadline)
        if not isinstance(found, Recorded):
            return found
        recorded = found
        if recorded.entry.outcome is not Outcome.PERMIT:
            again = self._again(held, recorded)
            answer = again or self.refusal(held, recorded, recorded.entry.reason)
            # Whoever waits may have another credential: he asks himself.
            share(self.flights, flight, None if again else answer)
            return answer
        # From here on a PERMIT exists: every path below settles it.
        permit = Permit(
            *(self.ledger, recorded, self.meter, self.flights, flight),
            names=self._naming(held, recorded),
            keeps=self._keeping(held, recorded),
            offer=self.offer,
        )
        try:
            return await self._forward(held, recorded, permit)
        finally:
            permit.close()

    def _naming(self, held: Held, recorded: Recorded) -> Callable[[ResponseHead, bytes], Made | None] | None:
        """How to read which object the vendor's answer names; None where it makes none."""
        request, recognised = held.request, held.recognised
        produces = recognised.produces if recognised is not None and recorded.entry.produces else None
        if request is None or produces is None:
            return None

        def named(head: ResponseHead, body: bytes) -> Made | None:
            destination = produces.destination(request.destination)
            identity = object_id(head, body, produces, destination)
            if identity is None:
                log.info("%s: its answer names no object", recorded.entry.receipt_id)
                return None
            name = produces.object(identity)
            key = object_key(destination, name, self.evidence.fleet_key)
            return Made(key=key, ttl_us=produces.ttl_s * 1_000_000, told=recorded.entry.told)

        return named

    def _keeping(
        self, held: Held, recorded: Recorded
    ) -> Callable[[ResponseHead, bytes], KeptAnswer | None] | None:
        """How to keep the vendor's answer for repeats; None where its map keeps none."""
        asker = _asker(held)
        if asker is None:
            return None
        return lambda head, body: keep(recorded.entry.receipt_id, asker, head, body, self.evidence.draw)

    def _again(self, held: Held, recorded: Recorded) -> Answer | None:
        """The kept answer to the request that this one repeats; None where it is not for this asker."""
        entry = recorded.entry
        if recorded.answer is None or entry.reason is not Reason.ALREADY_EXECUTED:
            return None
        asker = _asker(held)
        found = given_again(entry.prior, recorded.answer, asker) if asker is not None else None
        if found is None:
            log.info("%s: the answer that is kept of %s is not for it", entry.receipt_id, entry.prior)
            return None
        sensitive = held.recognised is not None and held.recognised.sensitive
        return answer_again(*found, entry, self.show, sensitive=sensitive)

    async def _decided(self, held: Held) -> tuple[Flight | None, Recorded | Answer]:
        """Steps 1 to 7, again when another bundle became active meanwhile; or an identical one's answer."""
        while True:
            flight, shared = await self._recognise(held)
            if shared is not None:
                return None, shared
            try:
                return flight, await self._decide_or_wait(held)
            except Converged as elsewhere:
                share(self.flights, flight, elsewhere.answer)
                return None, elsewhere.answer
            except BaseException as error:
                share(self.flights, flight, None)
                if not isinstance(error, Superseded):
                    raise
                await self._renew(held)

    async def _decide_or_wait(self, held: Held) -> Recorded:
        """Steps 4 to 7. While an identical request is in flight at another node it is waited for. Raises
        Converged with its answer; where it has none to share, this one goes on by itself."""
        while True:
            try:
                return await self._decide(held)
            except InFlightElsewhere as elsewhere:
                if self.first is None:
                    raise
                held.waiting = True
                answer = await self.first(elsewhere.receipt_id)
                held.waiting = False
                if answer is not None:
                    raise Converged(answer) from None

    async def _renew(self, held: Held) -> None:
        """Another bundle became active: begin again under it. Raises Superseded when that was done often."""
        await asyncio.sleep(0)  # the activation's own task comes first: it was recorded first
        if not held.renew(self.bundle):
            raise Superseded

    async def _recognise(self, held: Held) -> tuple[Flight | None, Answer | None]:
        """Steps 1 to 3, and joining an identical request that is in flight."""
        if self.in_flight > self.limits.in_flight:
            raise InputError(Reason.OVERLOADED, "limits.in_flight")
        held.agent = self.identify(held.message.origin)
        await self._read_aside(held)
        if held.recognised is None or not held.recognised.keys:
            return None, None
        name = held.flight_name
        while (flight := self.flights.get(name)) is not None:
            held.waiting = True
            shared = await asyncio.shield(flight.answer)
            held.waiting = False
            if shared is not None:
                return None, shared
        flight = self.flights[name] = Flight(name, asyncio.get_running_loop().create_future())
        return flight, None

    async def _read_aside(self, held: Held) -> None:
        """Steps 2 and 3, in a thread when that would hold up the others."""
        if len(held.message.body) > LARGE_BODY_BYTES:
            async with self.large_reads:
                await asyncio.to_thread(self._read, held)
        else:
            self._read(held)

    def _read(self, held: Held) -> None:
        held.request = self.canonicalise(held.message)
        held.recognised = held.bundle.index.recognise(
            held.request, fleet_key=self.evidence.fleet_key, body_bytes=self.limits.body_bytes
        )
        held.wire = wire_digest(
            held.request.method,
            held.request.raw_target,
            held.recognised.headers,
            held.request.body,
            secret_headers=held.recognised.secret_headers,
            key=self.evidence.fleet_key if held.recognised.sensitive else None,
        )
        if held.recognised.sensitive:
            held.body_sha256 = hashlib.sha256(held.request.body).digest()

    async def _decide(self, held: Held) -> Recorded:
        """Steps 4 to 7. A decision that the deadline overtakes is void, whenever it arrives."""
        case, started = held.case(None, self.evidence.fleet_key), self.clock()
        timed = TimedGate(self.clock, self.limits.decide_ms / 1000)
        remote = await self._asked_elsewhere(held)
        if remote is None:
            if asked := questions(case, held.bundle):
                case = replace(case, facts=await self.facts(asked))
            judge = self.judge(case, held.bundle, self.evidence, timed, ENGINE)
        else:
            timed.seconds = self.clock() - started
            judge = self.judge(case, held.bundle, self.evidence, remote.answer, remote.engine)
        started = self.clock()
        try:
            recorded = await self.ledger.record(judge)
        except BaseException:
            judge.void()
            held.waiting = judge.waiting
            if remote is not None and self.gatekeeper is not None:
                self.gatekeeper.unused(remote)
            raise
        self.meter.commit(self.clock() - started)
        self.meter.decide(timed.seconds)
        if not isinstance(recorded, Recorded):
            raise BackendError(Reason.INTERNAL_ERROR, "the store returned no record")
        entry = recorded.entry
        if remote is not None and self.gatekeeper is not None:
            self.gatekeeper.recorded(remote, entry.receipt_id, entry.outcome)
        self.meter.decision(entry.surface, entry.outcome.value, entry.reason.value)
        if entry.would:
            self.meter.shadow(entry.surface, entry.outcome.value, entry.would)
        self.meter.hold(self.clock() - held.arrived)
        return recorded

    async def _asked_elsewhere(self, held: Held) -> Remote | None:
        """The decision of the remote gate; None: the policies here decide."""
        if self.gatekeeper is None:
            return None
        if held.agent is None or held.request is None or held.recognised is None:
            raise BackendError(Reason.INTERNAL_ERROR, "a remote gate is asked about requests only")
        asked = Asked(agent=held.agent, request=held.request, recognised=held.recognised, wire=held.wire)
        return await self.gatekeeper.decide(asked)

    def release(self, held: Held, recorded: Recorded) -> Release:
        """Step 8. Raises unless this is a recorded PERMIT for exactly this request."""
        if held.agent is None or held.request is None or held.recognised is None:
            raise BackendError(Reason.INTERNAL_ERROR, "permitted what was not recognised")
        return Release(
            recorded=recorded,
            agent=held.agent.id,
            request=held.request,
            recognised=held.recognised,
            wire_key=self.evidence.fleet_key if held.recognised.sensitive else None,
            expires_us=recorded.entry.iat_us + 30_000_000,
        )

    async def _forward(self, held: Held, recorded: Recorded, permit: Permit) -> Answer:
        """Dispatch once; whatever happens is an outcome, and the agent's answer carries the receipt."""
        shape, retry = self._shape(held)
        said = Said(
            recorded=recorded,
            show=self.show,
            method=held.message.head.method.decode("ascii", "replace"),
            sensitive=held.recognised is not None and held.recognised.sensitive,
            shape=shape,
            retry_headers=retry,
        )
        try:
            release = self.release(held, recorded)
            if held.client.gone:
                raise DispatchError(OutcomeStatus.NOT_SENT, 502, "the agent left before the release")
            started = self.clock()
            permit.sending()
            exchange = await self._dispatch(held, release)
            self.meter.upstream(self.clock() - started)
            return await answer_exchange(said, exchange, permit, held.client)
        except DispatchError as error:
            permit.settle(error.status, 0, delivered=False)
            log.info("%s %s", recorded.entry.receipt_id, error)
            return failed_exchange(said, error)
        except (Exception, asyncio.CancelledError) as error:
            log.exception("%s: the exchange failed", recorded.entry.receipt_id)
            permit.abandon()
            return failed_exchange(said, DispatchError(permit.status, 502, repr(error)))

    async def _dispatch(self, held: Held, release: Release) -> Exchange:
        reading = all(action.effect is Effect.READ for action in release.recognised.actions)
        if not reading:  # a commit runs on when its agent leaves: its outcome must be learnt
            return await self.dispatcher.dispatch(release)
        task = asyncio.ensure_future(self.dispatcher.dispatch(release))
        held.client.on_gone(task.cancel)
        try:
            return await task
        except asyncio.CancelledError:
            raise DispatchError(OutcomeStatus.UNKNOWN, 502, "the agent left while reading") from None

    # -- refusals ---------------------------------------------------------------------------------

    async def _refuse(
        self, held: Held, reason: Reason, detail: str, *, status: int | None = None, close: bool = False
    ) -> Answer:
        """Record a SILENCE and answer it; without a store the answer says so and has no receipt id."""
        log.info("SILENCE %s: %s", reason.value, loggable(detail))
        if reason is Reason.UNKNOWN_DESTINATION and held.request is not None:
            self.meter.unmapped(held.request.host)
        recorded = await self._receipt_of(held, reason)
        if recorded is None:
            reason, status = Reason.STORE_UNAVAILABLE, None
        elif recorded.entry.reason in _NO_POLICY:  # that comes before anything about the request
            reason, status = recorded.entry.reason, None
        self.meter.decision("", Outcome.SILENCE.value, reason.value)
        return self.refusal(held, recorded, reason, status=status, close=close)

    async def _receipt_of(self, held: Held, reason: Reason) -> Recorded | None:
        """A refusal's own receipt; in a flood, one that counts it."""
        if self.floods.admit(held.who, self.clock()):
            return await self._record_refusal(held, reason)
        flood = self.floods.join(held.who, reason)
        if flood.shared is None:
            flood.shared = asyncio.ensure_future(self._record_flood(held, flood))
        try:
            return await asyncio.shield(flood.shared)
        except asyncio.CancelledError:  # the process is ending: there is no receipt any more
            return None

    async def _record_flood(
        self, held: Held, flood: Flood[asyncio.Future[Recorded | None]]
    ) -> Recorded | None:
        try:
            await self.pause(FLOOD_S)
        finally:
            count = self.floods.close(flood)
        return await self._record_refusal(held, flood.reason, count=count)

    async def _record_refusal(self, held: Held, reason: Reason, *, count: int = 1) -> Recorded | None:
        """A receipt for a refusal; with what is known of the request, or, if that is broken, without."""
        bare = Held(held.message, held.client, held.arrived, held.bundle, via=held.via)
        try:
            async with asyncio.timeout(REFUSAL_RECORD_S):
                for known in (held, bare):
                    try:
                        case = known.case(reason, self.evidence.fleet_key, count=count)
                        judge = self.judge(case, held.bundle, self.evidence, None, ENGINE)
                        recorded = await self.ledger.record(judge)
                    except (AttributeError, TypeError, ValueError, ReceiptError):
                        log.exception("a receipt could not be built")
                    else:
                        return recorded if isinstance(recorded, Recorded) else None
        except (BackendError, InputError, TimeoutError) as error:
            log.error("a refusal could not be recorded: %s", error)
        except (Exception, asyncio.CancelledError):
            log.exception("a refusal could not be recorded")
        return None

    def refusal(
        self,
        held: Held,
        recorded: Recorded | None,
        reason: Reason,
        *,
        status: int | None = None,
        close: bool = False,
    ) -> Answer:
        entry = recorded.entry if recorded else None
        outcome = entry.outcome if entry else Outcome.SILENCE
        told = Refusal(
            outcome=outcome,
            reason=reason,
            id=entry.receipt_id if entry else "",
            status=status or REASONS[reason].status,
            prior=entry.prior if entry else "",
            prior_status=entry.prior_status if entry else 0,
        )
        shape, retry = self._shape(held)
        sensitive = isinstance(held.recognised, Recognised) and held.recognised.sensitive
        return refuse(
            told,
            shape=shape,
            receipt_headers=decision_headers(
                entry, self.show, outcome=outcome, reason=reason, sensitive=sensitive
            ),
            retry_headers=retry,
            head=held.message.head.method == b"HEAD",
            close=close,
        )

    def _shape(self, held: Held) -> tuple[str, Headers]:
        """The vendor's error shape: known for its hosts even when the operation is not."""
        if isinstance(held.recognised, Recognised):
            return held.recognised.refusal, held.recognised.retry_headers
        origin = held.message.origin
        host, port = claimed_host(origin, held.message.head)
        return held.bundle.index.refusal(host, port, "https" if origin.tls else "http")


def _asker(held: Held) -> bytes | None:
    if held.agent is None or held.request is None or held.recognised is None:
        return None
    return asker_of(held.agent, held.request, held.recognised)
