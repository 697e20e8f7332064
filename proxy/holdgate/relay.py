"""After the release: one exchange becomes one Answer, one settled outcome, one answer for duplicates too.

Invariants (tests/test_relay.py):
  RY1  A Permit is settled once; unsettled when closed it is unknown if sending had begun, else not_sent.
  RY2  An answer that the upstream cut is cut for the agent: no final chunk, no short body that looks whole.
  RY3  Every answer after a PERMIT carries the decision headers, on every status.
  RY4  A Flight resolves for its followers whatever happens to its leader.
  RY5  An object is named, and an answer kept, with an executed outcome only, from an answer that came whole;
       whatever the answer is, nobody waits for that, and it fails nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from .answer import Answer, DispatchError, Exchange, Stream
from .errors import HoldgateError, Outcome, Reason
from .headers import Verdicts, decision_headers, upstream_headers, upstream_reason
from .ledger import Entry, Ledger, OutcomeStatus, Recorded
from .message import Headers, ResponseHead
from .quick import quick
from .refusal import Refusal, refuse
from .sealing import KeptAnswer
from .standing import Made

__all__ = [
    "Converged",
    "Flight",
    "Permit",
    "Said",
    "answer_again",
    "answer_exchange",
    "failed_exchange",
    "outcome_of",
    "share",
]

log = logging.getLogger("holdgate.relay")

_WHOLE_BYTES: Final = 65_536  # answers up to this size are read whole and written at once
_SHARED_BYTES: Final = 1_048_576  # what is kept of an answer for requests that wait for the same one


class Meter(Protocol):
    def outcome(self, status: str) -> None: ...


class Client(Protocol):
    gone: bool


@dataclass(slots=True)
class Flight:
    """One keyed request in flight; identical ones wait for its answer (None: go and ask yourself)."""

    name: str
    answer: asyncio.Future[Answer | None]


class Converged(HoldgateError):
    """In place of a Recorded: an identical request, which another process held, has this answer."""

    def __init__(self, answer: Answer) -> None:
        super().__init__("an identical request was answered")
        self.answer = answer


def share(flights: dict[str, Flight], flight: Flight | None, answer: Answer | None) -> None:
    """End a flight. Streamed answers cannot be shared as they are; pass None or the collected one."""
    if flight is None:
        return
    if flights.get(flight.name) is flight:
        del flights[flight.name]
    if not flight.answer.done():
        flight.answer.set_result(answer)


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What every answer to this request needs: the receipt, how to show it, and the vendor's error shape."""

    recorded: Recorded
    show: Verdicts
    method: str
    sensitive: bool
    shape: str
    retry_headers: Headers

    def receipt_headers(self, status: str = "") -> Headers:
        return decision_headers(
            self.recorded.entry,
            self.show,
            outcome=Outcome.PERMIT,
            reason=self.recorded.entry.reason,
            sensitive=self.sensitive,
            status=status,
        )


@dataclass(slots=True)
class Permit:
    """The duty that comes with a recorded PERMIT: settle it once, and release whoever waits."""

    ledger: Ledger
    recorded: Recorded
    meter: Meter
    flights: dict[str, Flight]
    flight: Flight | None
    names: Callable[[ResponseHead, bytes], Made | None] | None = None  # the object that an answer speaks of
    keeps: Callable[[ResponseHead, bytes], KeptAnswer | None] | None = None  # the answer, for repeats
    offer: Callable[[str, Answer], None] | None = None  # to identical requests at other nodes
    _sending: bool = False
    _settled: bool = False
    _handed_over: bool = False
    status: OutcomeStatus = OutcomeStatus.NOT_SENT
    _made: Made | None = None
    _kept: KeptAnswer | None = None

    @property
    def reads_answers(self) -> bool:
        return self.names is not None or self.keeps is not None

    def answered(self, head: ResponseHead, body: bytes) -> None:
        """The answer came whole. Never raises."""
        if self._settled:
            return
        try:
            self._made = self.names(head, body) if self.names is not None else None
            self._kept = self.keeps(head, body) if self.keeps is not None else None
        except Exception:  # the answer is the vendor's: it must never cost the agent its own
            log.exception("%s: the answer could not be read", self.recorded.entry.receipt_id)

    def sending(self) -> None:
        """From here on bytes may have left."""
        self._sending = True

    def hand_over(self) -> None:
        """A stream settles it from now on."""
        self._handed_over = True

    def settle(
        self, status: OutcomeStatus, http_status: int, *, delivered: bool, answer: Answer | None = None
    ) -> None:
        if self._settled:
            return
        self._settled = True
        self.status = status
        made, kept = (self._made, self._kept) if status is OutcomeStatus.EXECUTED else (None, None)
        try:
            self._offer(answer)
            self.ledger.record_outcome(
                self.recorded.entry.receipt_id, status, http_status, delivered=delivered, made=made, kept=kept
            )
            self.meter.outcome(status.value)
        finally:  # whoever waits must go on, whatever failed here
            share(self.flights, self.flight, answer)

    def _offer(self, answer: Answer | None) -> None:
        """Before the outcome, which is committed together with it. Never raises."""
        if answer is None or self.offer is None or self.flight is None:
            return
        try:
            self.offer(self.recorded.entry.receipt_id, answer)
        except Exception:  # who waits elsewhere is decided anew; the outcome is not lost for that
            log.exception("%s: its answer could not be shared", self.recorded.entry.receipt_id)

    def close(self) -> None:
        if not self._handed_over:
            self.abandon()

    def abandon(self) -> None:
        status = OutcomeStatus.UNKNOWN if self._sending else OutcomeStatus.NOT_SENT
        self.settle(status, 0, delivered=False)


def outcome_of(http_status: int) -> OutcomeStatus:
    """What an upstream's final status says of the effect."""
    if 200 <= http_status < 300 or http_status == 304:
        return OutcomeStatus.EXECUTED
    if http_status in (408, 409, 425) or http_status >= 500:
        return OutcomeStatus.UNKNOWN
    return OutcomeStatus.FAILED


async def answer_exchange(said: Said, exchange: Exchange, permit: Permit, client: Client) -> Answer:
    """The upstream's answer with our headers. Small ones are read whole; others are streamed."""
    head = exchange.head
    status = outcome_of(head.status)
    if head.status == 407:
        exchange.abandon()
        permit.settle(OutcomeStatus.FAILED, 407, delivered=True)
        return failed_exchange(
            said, DispatchError(OutcomeStatus.FAILED, 502, "upstream asked for proxy credentials")
        )
    headers = upstream_headers(head.headers) + said.receipt_headers()
    bodiless = said.method == "HEAD" or head.status in (204, 304)
    try:
        whole = await exchange.drain(_WHOLE_BYTES)
    except DispatchError as error:
        permit.settle(status, head.status, delivered=False)
        return failed_exchange(said, DispatchError(status, error.http, error.detail))
    if whole is None:
        stream = _Relayed(exchange, permit, status, headers, client)
        permit.hand_over()
        return _answer(head, headers, b"", stream, exchange.length, bodiless=False)
    permit.answered(head, whole)
    length = _announced(head.headers) if bodiless else len(whole)
    answer = _answer(head, headers, whole, None, length, bodiless=bodiless)
    permit.settle(status, head.status, delivered=not client.gone, answer=answer)
    return answer


def _answer(
    head: ResponseHead,
    headers: Headers,
    body: bytes,
    rest: Stream | None,
    length: int | None,
    *,
    bodiless: bool,
) -> Answer:
    return Answer(
        status=head.status,
        reason=upstream_reason(head.reason),
        headers=headers,
        body=body,
        rest=rest,
        length=length,
        bodiless=bodiless,
        close=False,
    )


def answer_again(head: ResponseHead, body: bytes, entry: Entry, show: Verdicts, *, sensitive: bool) -> Answer:
    """A kept answer, under the headers of the decision on the repeat."""
    said = decision_headers(
        entry, show, outcome=entry.outcome, reason=entry.reason, sensitive=sensitive, replay=True
    )
    bodiless = head.status == 204
    length = None if bodiless else len(body)
    return _answer(head, upstream_headers(head.headers) + said, body, None, length, bodiless=bodiless)


def _announced(headers: Headers) -> int | None:
    for name, value in headers:
        if name.lower() == b"content-length":
            return int(value)
    return None


class _Relayed:
    """A streamed answer: pulled by the inner door, collected up to a bound for those who wait."""

    def __init__(
        self, exchange: Exchange, permit: Permit, status: OutcomeStatus, headers: Headers, client: Client
    ) -> None:
        self._exchange, self._permit, self._client = exchange, permit, client
        self._status, self._headers = status, headers
        self._copied = permit.flight is not None or permit.reads_answers
        self._kept: list[bytes] | None = [] if self._copied else None
        self._kept_bytes = 0

    async def next(self) -> bytes:
        try:
            piece = await self._exchange.read()
        except BaseException:
            self._settle(delivered=False)
            raise
        if piece:
            self._keep(piece)
        else:
            if self._kept is not None:
                self._permit.answered(self._exchange.head, b"".join(self._kept))
            self._settle(delivered=not self._client.gone)
        return piece

    def _keep(self, piece: bytes) -> None:
        if self._kept is None:
            return
        self._kept_bytes += len(piece)
        if self._kept_bytes > _SHARED_BYTES:
            self._kept = None
        else:
            self._kept.append(piece)

    def _settle(self, *, delivered: bool) -> None:
        head, answer = self._exchange.head, None
        if delivered and self._kept is not None and self._permit.flight is not None:
            body = b"".join(self._kept)
            answer = _answer(head, self._headers, body, None, len(body), bodiless=False)
        self._permit.settle(self._status, head.status, delivered=delivered, answer=answer)

    def abandon(self) -> None:
        self._exchange.abandon()
        self._settle(delivered=False)


def failed_exchange(said: Said, error: DispatchError) -> Answer:
    """502 or 504 after a PERMIT: the receipt stays PERMIT, and says what is known of the effect."""
    entry = said.recorded.entry
    told = Refusal(
        outcome=Outcome.PERMIT,
        reason=Reason.PERMIT_RULE,
        id=entry.receipt_id,
        status=error.http,
        prior="",
        prior_status=0,
    )
    return refuse(
        told,
        shape=said.shape,
        receipt_headers=said.receipt_headers(status=error.status.value),
        retry_headers=said.retry_headers,
        head=said.method == "HEAD",
        close=False,
    )
