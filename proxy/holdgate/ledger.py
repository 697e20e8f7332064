"""Step 7: one commit point. Claims, decision, receipt: one durable transaction.

This module is pure: the transition table of a claim, and the Protocol that a store implements.
A claim is the exclusive hold of a key (idempotency key, conflict key) by one decision.

    ARRIVALS: (state of the claim, who arrives)    -> what the newcomer may do
    OUTCOMES: (state of the claim, what happened)  -> next state

A newcomer that is permitted binds its claims (`bind`): dispatching, until `settle_row`. What it charges to
budgets stands as long as its permit may have had an effect (counters.py). Long because types, table and the
functions over it are read together or not at all.

Invariants (tests/test_ledger.py; L4 to L6 run over every store):
  L1  The table is total: every (state, event) has a row.
  L2  A claim that is dispatching, or unknown and not provider-idempotent, never permits a second dispatch.
  L3  Another digest under a held key is DENY idempotency_key_reused, except after not_sent.
  L4  Nothing is dispatched before record() returned: `Recorded.durable` is set by the store alone.
  L5  After any write error the store is poisoned: every later record() raises until restart.
  L6  After a crash every dispatching row of a dead owner is unknown, with a receipt that says so.
  L7  A replay without effect, found out whenever, leaves what those before it left: executed, or in doubt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, Protocol

from .digest import framed
from .errors import BackendError, HoldgateError, Outcome, Reason
from .quick import quick
from .sealing import KeptAnswer, Sealed
from .standing import NOTHING_STANDS, Denial, Made, Prepared, Standing, Told

__all__ = [
    "ARRIVALS",
    "CONFLICT_SOURCE",
    "DISPATCHABLE",
    "FINDINGS",
    "MAX_DOUBTS",
    "NO_BUDGETS",
    "ONCE_SOURCE",
    "OUTCOMES",
    "RELEASING",
    "SOURCES",
    "AdminNote",
    "Arrival",
    "Attempt",
    "Binding",
    "Budgets",
    "Charge",
    "ClaimRow",
    "Entry",
    "Event",
    "Finding",
    "InFlightElsewhere",
    "Judge",
    "Ledger",
    "Left",
    "Noted",
    "OutcomeStatus",
    "ReconcileError",
    "Recorded",
    "State",
    "Superseded",
    "Total",
    "Verdict",
    "appraise",
    "attempt",
    "bind",
    "combine",
    "is_free",
    "may_bind",
    "op_key",
    "remade",
    "scoped_key",
    "settle",
    "settle_claim",
    "settle_row",
    "told_by",
]

CONFLICT_SOURCE: Final = "conflict"
ONCE_SOURCE: Final = "once"  # the key names an object; no time frees it, and it is dropped when made anew


class State(StrEnum):
    """State of one claim; a missing row is ABSENT."""

    ABSENT = "absent"
    DISPATCHING = "dispatching"
    EXECUTED = "executed"
    UNDELIVERED = "undelivered"  # executed, but its answer did not reach the agent
    FAILED = "failed"
    NOT_SENT = "not_sent"
    UNKNOWN = "unknown"


class OutcomeStatus(StrEnum):
    """What happened after a PERMIT."""

    EXECUTED = "executed"
    NOT_SENT = "not_sent"
    FAILED = "failed"
    UNKNOWN = "unknown"
    RECONCILED = "reconciled"


class Verdict(StrEnum):
    """What a claim allows the newcomer to ask the gate for. No member permits by itself."""

    FRESH = "fresh"  # nothing holds the key
    SUPERSEDE = "supersede"  # an earlier permit ended without effect; the new receipt names it
    REPLAY = "replay"  # the vendor answers from its own store; the new receipt names the first
    REUSED = "reused"  # DENY idempotency_key_reused
    IN_FLIGHT = "in_flight"
    ALREADY_EXECUTED = "already_executed"
    OUTCOME_UNKNOWN = "outcome_unknown"
    CONFLICT = "conflict"


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """How an earlier dispatch under a key ended, as far as is known."""

    state: State
    receipt_id: str
    http_status: int


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRow:
    """The stored state of one key."""

    key: str  # opaque, 64 hex digits: hash over scope and value
    state: State
    digest: str  # request.digest that bound it
    receipt_id: str  # the PERMIT that holds or held it
    http_status: int  # upstream status, 0 when none
    expires_us: int
    provider: bool
    source: str  # one of SOURCES
    # What a replay took over; the last of it stands again when the replay had no effect of its own. One that
    # ended, or all that are in doubt, newest last.
    before: tuple[Left, ...] = ()


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """A claim to write together with a PERMIT."""

    key: str
    digest: str
    expires_us: int
    provider: bool
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """What one PERMIT adds to one meter (counters.py). It counts while now < until_us, unless released."""

    meter: str  # opaque, 64 hex digits: hash over counter and key
    at_us: int  # start of its bucket
    until_us: int
    amount: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """What stands on one meter now."""

    sum: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Budgets:
    """What a Judge is told of its meters. One that is not in `totals` could not be read."""

    totals: Mapping[str, Total]
    standing: Mapping[str, tuple[Charge, ...]]  # receipt that holds one of the judge's claims -> its charges


NO_BUDGETS: Final = Budgets(totals=MappingProxyType({}), standing=MappingProxyType({}))


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What one decision writes: the receipt, and the claims that it binds (only on PERMIT)."""

    receipt_id: str
    outcome: Outcome
    reason: Reason
    rule: str  # first deciding rule, "" when none
    surface: str  # "" when unknown
    agent: str
    policy: str  # bundle digest
    iat_us: int
    wire: str  # wire digest, "" when unknown
    jws: bytes
    bindings: tuple[Binding, ...]
    inputs: bytes | None  # canonical decision input in clear; None: the gate did not run, or it is sealed
    prior: str  # receipt that this one points to (supersedes, replay_of, first), "" when none
    prior_status: int  # upstream status of that prior receipt, 0 when none
    charges: tuple[Charge, ...] = ()  # what a PERMIT reserves; released with its outcome (RELEASING)
    sealed: Sealed | None = None  # of a sensitive operation: what is kept under a key of its own
    denial: Denial | None = None  # what a DENY leaves for repeats of its request
    produces: bool = False  # of a PERMIT: the vendor's answer names an object that later requests act on
    told: Told = Told.NEW  # what its answer will be worth
    waits: bool = False  # refused as in flight; if the first is at another node, its answer is waited for
    would: str = ""  # outcome if shadow policies counted, for the figures; "": none applies
    recalls: bool = False  # a repeat that may be given the answer to `prior`, if the store kept it


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """An Entry that is durable. Only stores make one."""

    entry: Entry
    index: int  # leaf index in the log
    durable: bool
    answer: KeptAnswer | None = None  # the kept answer to `entry.prior`, of an entry that recalls


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminNote:
    """Something that an operator did or found out, to be written into the log."""

    action: str  # one of those that statement.py knows
    by: str
    details: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What became of a permit whose outcome is `unknown`, as somebody found out."""

    of: str
    found: OutcomeStatus  # one of FINDINGS
    by: str
    note: str  # for the log; "" when there is nothing to say
    node_stopped: bool = False  # whoever says so knows that the permit's node does not run any more


class ReconcileError(HoldgateError):
    """There is no such permit, or its outcome is not unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Noted:
    """An AdminNote or a Finding that is durable. Only stores make one."""

    receipt_id: str
    iat_us: int
    index: int


class Judge(Protocol):
    """Steps 4 to 6 for one held request, run by the store inside its serial step: pure, quick."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Claims to read before judging."""
        ...

    @property
    def meters(self) -> tuple[str, ...]:
        """Meters to read before judging."""
        ...

    @property
    def denials(self) -> tuple[str, ...]:
        """Keys of denials to read before judging."""
        ...

    @property
    def objects(self) -> tuple[str, ...]:
        """Keys of prepared objects to read before judging, with their inputs."""
        ...

    def __call__(
        self,
        claims: Mapping[str, ClaimRow],
        *,
        now_us: int,
        receipt_id: str,
        budgets: Budgets = NO_BUDGETS,
        standing: Standing = NOTHING_STANDS,
    ) -> Entry: ...


class Superseded(BackendError):
    """Another bundle became active before this PERMIT was recorded: decide again under that one."""

    def __init__(self) -> None:
        super().__init__(Reason.POLICY_UNAVAILABLE, "decided under a bundle that is not active any more")


class InFlightElsewhere(BackendError):
    """An identical request is in flight at another node. Nothing was recorded: wait for that one's end, and
    decide again."""

    def __init__(self, receipt_id: str) -> None:
        super().__init__(Reason.IN_FLIGHT, f"{receipt_id} of another node is in flight")
        self.receipt_id = receipt_id


class Ledger(Protocol):
    """A durable, ordered store of receipts and claims.

    `record` returns only after the entry is durable (fsync'd). Calls are serialised: the claims
    that a Judge reads are those left by every earlier entry, committed or in the same group.
    `now_us` never runs behind the last entry's. Raises BackendError(STORE_UNAVAILABLE) when the
    entry is not, or may not be, durable; the caller must then treat the request as refused. A PERMIT
    under a bundle that was superseded by then raises Superseded, and nothing of it is recorded. In a fleet
    an entry that `waits` raises InFlightElsewhere where the first is another node's.
    A PERMIT whose caller was cancelled while it waited is settled as not_sent by the store.
    The totals of a Judge's meters are read in the same step, and what a PERMIT charges is in its commit;
    a PERMIT whose `prior` still holds charges takes those over instead (counters.Book is the model).
    """

    async def record(self, judge: Judge) -> Recorded: ...

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
        """Queue the outcome receipt of a PERMIT; it shares the next commit. Idempotent per permit.

        `made`: the object that its answer named. `kept`: its answer, for repeats; as long as its key holds.
        What is recorded after this call knows both.
        """
        ...


# --- the table ---


class Arrival(StrEnum):
    """Who asks for a claim. "Late" means after `expires_us`."""

    SAME = "same"  # the same digest under a native or natural key
    SAME_PROVIDER = "same_provider"  # and the vendor answers repeats of this key from its own store
    SAME_LATE = "same_late"
    OTHER = "other"  # another digest under the same key
    OTHER_LATE = "other_late"
    IMPLICIT = "implicit"  # no key: the digest itself
    IMPLICIT_LATE = "implicit_late"
    CONFLICT = "conflict"  # a conflict key, under another receipt
    ONCE = "once"  # an object that can be acted on once, under another receipt


class Event(StrEnum):
    """What became of a dispatch."""

    EXECUTED = "executed"
    UNDELIVERED = "undelivered"
    FAILED = "failed"
    NOT_SENT = "not_sent"
    UNKNOWN = "unknown"
    RECONCILED = "reconciled"  # found executed
    RECONCILED_FAILED = "reconciled_failed"
    RECONCILED_NOT_SENT = "reconciled_not_sent"


# What somebody who looked found out about an `unknown` outcome. The answer never reached the agent, so an
# action that was executed counts as undelivered: its repeat is told, not sent again.
FINDINGS: Final[Mapping[OutcomeStatus, Event]] = MappingProxyType(
    {
        OutcomeStatus.EXECUTED: Event.RECONCILED,
        OutcomeStatus.FAILED: Event.RECONCILED_FAILED,
        OutcomeStatus.NOT_SENT: Event.RECONCILED_NOT_SENT,
    }
)

_A, _D, _E, _U, _F, _N, _X = (
    State.ABSENT,
    State.DISPATCHING,
    State.EXECUTED,
    State.UNDELIVERED,
    State.FAILED,
    State.NOT_SENT,
    State.UNKNOWN,
)
_FRESH, _SUPERSEDE, _REPLAY, _REUSED = Verdict.FRESH, Verdict.SUPERSEDE, Verdict.REPLAY, Verdict.REUSED
_FLIGHT, _DONE, _OPEN, _CLASH = (
    Verdict.IN_FLIGHT,
    Verdict.ALREADY_EXECUTED,
    Verdict.OUTCOME_UNKNOWN,
    Verdict.CONFLICT,
)
_STATES: Final = (_A, _D, _E, _U, _F, _N, _X)

# Time frees only what is settled: what is in flight or unknown stays held however late it gets, since
# a vendor that has forgotten its key would execute the second request (Stripe and AWS prune after 24 h).
_ROWS: Final[Mapping[Arrival, tuple[Verdict, ...]]] = {
    #                        absent  dispatching executed undelivered failed    not_sent    unknown
    Arrival.SAME:           (_FRESH, _FLIGHT,    _DONE,   _DONE,      _SUPERSEDE, _SUPERSEDE, _OPEN),
    Arrival.SAME_PROVIDER:  (_FRESH, _FLIGHT,    _REPLAY, _REPLAY,    _SUPERSEDE, _SUPERSEDE, _REPLAY),
    Arrival.SAME_LATE:      (_FRESH, _FLIGHT,    _FRESH,  _FRESH,     _FRESH,     _FRESH,     _OPEN),
    Arrival.OTHER:          (_FRESH, _REUSED,    _REUSED, _REUSED,    _REUSED,    _SUPERSEDE, _REUSED),
    Arrival.OTHER_LATE:     (_FRESH, _FLIGHT,    _FRESH,  _FRESH,     _FRESH,     _FRESH,     _OPEN),
    Arrival.IMPLICIT:       (_FRESH, _FLIGHT,    _FRESH,  _DONE,      _FRESH,     _FRESH,     _OPEN),
    Arrival.IMPLICIT_LATE:  (_FRESH, _FLIGHT,    _FRESH,  _FRESH,     _FRESH,     _FRESH,     _OPEN),
    Arrival.CONFLICT:       (_FRESH, _CLASH,     _FRESH,  _FRESH,     _FRESH,     _FRESH,     _CLASH),
    Arrival.ONCE:           (_FRESH, _CLASH,     _DONE,   _DONE,      _FRESH,     _FRESH,     _CLASH),
}  # fmt: skip

ARRIVALS: Final[Mapping[tuple[State, Arrival], Verdict]] = MappingProxyType(
    {(state, who): row[i] for who, row in _ROWS.items() for i, state in enumerate(_STATES)}
)

# A permit has one outcome; only `unknown` may later be reconciled, once.
OUTCOMES: Final[Mapping[tuple[State, Event], State]] = MappingProxyType(
    {
        **{(state, event): state for state in _STATES for event in Event},
        **{(_D, event): State(event.value) for event in Event if event not in FINDINGS.values()},
        (_X, Event.RECONCILED): _U,
        (_X, Event.RECONCILED_FAILED): _F,
        (_X, Event.RECONCILED_NOT_SENT): _N,
    }
)

_EVENT_OF: Final = {status: Event(status.value) for status in OutcomeStatus}

# (source, state) of the claims that obstruct nobody any more, at any time.
_FREE: Final = frozenset(
    (source, state)
    for source, who in (
        (CONFLICT_SOURCE, Arrival.CONFLICT),
        (ONCE_SOURCE, Arrival.ONCE),
        ("implicit", Arrival.IMPLICIT),
    )
    for state in _STATES
    if ARRIVALS[state, who] is _FRESH
)

# A key with so many dispatches in doubt gets no further one until somebody found out about them.
MAX_DOUBTS: Final = 64

# States of a permit in which nothing happened at the vendor: its charges are released.
RELEASING: Final = frozenset({_F, _N})

# The verdicts that let a request go on to the gate.
DISPATCHABLE: Final = frozenset({Verdict.FRESH, Verdict.SUPERSEDE, Verdict.REPLAY})

# Strictest first. A mix is answered by its strictest member.
_STRICTNESS: Final = {
    verdict: rank
    for rank, verdict in enumerate((_REUSED, _CLASH, _OPEN, _FLIGHT, _DONE, _REPLAY, _SUPERSEDE, _FRESH))
}

_SOURCE_RANK: Final = {"native": 0, "natural": 1, "implicit": 2, CONFLICT_SOURCE: 3, ONCE_SOURCE: 3}
SOURCES: Final = frozenset(_SOURCE_RANK)

# Verdict, and the receipt that it points to with that receipt's upstream status ("" and 0: none).
type Attempt = tuple[Verdict, str, int]


_CLAIM: Final = b"holdgate-claim-v1"


def op_key(*parts: str, secret: bytes | None = None) -> str:
    """The stored name of a claim: a hash over its scope and value, 64 hex digits.

    Keys can name people ("refund-mrs-smith"), so pass the fleet key as `secret` wherever there is one.
    """
    preimage = framed(_CLAIM, [part.encode("utf-8", "surrogatepass") for part in parts])
    # BLAKE2b has a keyed mode of its own (RFC 7693): one pass, a quarter of HMAC's cost.
    return hashlib.blake2b(preimage, key=secret or b"", digest_size=32).hexdigest()


def scoped_key(
    source: str, agent: str, destination: str, surface: str, principal: str, value: str, *, secret: bytes
) -> str:
    """The stored name of an idempotency key, as receipts carry it."""
    return op_key(source, agent, destination, surface, principal, value, secret=secret)


def attempt(row: ClaimRow | None, *, digest: str, now_us: int, source: str) -> Attempt:
    """What the state of one claim allows a newcomer; `source` is one of SOURCES."""
    if row is None:
        return _FRESH, "", 0
    verdict = ARRIVALS[row.state, _arrival(row, digest, now_us, source)]
    if verdict is _FRESH:
        return _FRESH, "", 0
    return verdict, row.receipt_id, row.http_status


def _arrival(row: ClaimRow, digest: str, now_us: int, source: str) -> Arrival:
    if source == CONFLICT_SOURCE:
        return Arrival.CONFLICT
    if source == ONCE_SOURCE:
        return Arrival.ONCE
    late = now_us >= row.expires_us
    if source == "implicit":
        return Arrival.IMPLICIT_LATE if late else Arrival.IMPLICIT
    if row.digest != digest:
        return Arrival.OTHER_LATE if late else Arrival.OTHER
    if late:
        return Arrival.SAME_LATE
    return Arrival.SAME_PROVIDER if row.provider and len(row.before) < MAX_DOUBTS - 1 else Arrival.SAME


def combine(attempts: Iterable[Attempt]) -> Attempt:
    """The strictest of several attempts; FRESH when there is none."""
    return min(attempts, key=lambda item: _STRICTNESS[item[0]], default=(_FRESH, "", 0))


def appraise(
    claims: Mapping[str, ClaimRow], wanted: Iterable[tuple[str, str]], *, digest: str, now_us: int
) -> Attempt:
    """What all claims of one request together allow it.

    `wanted` is (claim key, source). Once a key says that this request repeats receipt R, the request's
    other claims that R holds are its own and are no obstacle: a provider replay must not meet its own
    natural or conflict key. So the native key is asked first, and conflict keys last.
    """
    found: Attempt = (_FRESH, "", 0)
    for key, source in sorted(wanted, key=lambda item: _SOURCE_RANK[item[1]]):
        row = claims.get(key)
        if row is None or (found[1] and row.receipt_id == found[1]):
            continue
        found = combine((found, attempt(row, digest=digest, now_us=now_us, source=source)))
    return found


def told_by(claims: Mapping[str, ClaimRow], keys: Iterable[str], verdict: Verdict, *, digest: str) -> Told:
    """What the answer to a PERMIT under these claims will be worth (standing.Told)."""
    if verdict is _REPLAY:
        return Told.OLD
    rows = (claims.get(key) for key in keys)
    done = (row for row in rows if row is not None and row.provider and row.state in (_E, _U))
    return Told.EITHER if any(row.digest == digest for row in done) else Told.NEW


def may_bind(row: ClaimRow | None, binding: Binding, *, prior: str, now_us: int) -> bool:
    """Whether a PERMIT that points to `prior` may take this claim: the store's own check of L2 and L3."""
    verdict, holder, _ = attempt(row, digest=binding.digest, now_us=now_us, source=binding.source)
    if verdict in DISPATCHABLE:
        return verdict is not _REPLAY or holder == prior
    return row is not None and row.state is not _D and row.receipt_id == prior != ""


def bind(row: ClaimRow | None, binding: Binding, *, receipt_id: str, now_us: int) -> ClaimRow:
    """The claim as a PERMIT leaves it: dispatching.

    A replay keeps the first window, because that is when the vendor's own clock started.
    """
    before: tuple[Left, ...] = ()
    expires_us = binding.expires_us
    if row is not None and (row.state is _X or _is_repeat(row, binding, now_us)):
        before = _taken_over(row)
        expires_us = min(expires_us, row.expires_us)
    return ClaimRow(
        key=binding.key,
        state=_D,
        digest=binding.digest,
        receipt_id=receipt_id,
        http_status=0,
        expires_us=expires_us,
        provider=binding.provider,
        source=binding.source,
        before=before,
    )


def _taken_over(row: ClaimRow) -> tuple[Left, ...]:
    """What the last dispatch left, and those before it that it does not settle."""
    last = Left(state=row.state, receipt_id=row.receipt_id, http_status=row.http_status)
    if any(left.state in (_E, _U) for left in row.before):
        return row.before  # what came after an execution was a repeat of it
    return (*[left for left in row.before if left.state is _X], last)


def _is_repeat(row: ClaimRow, binding: Binding, now_us: int) -> bool:
    return row.state in (_E, _U) and row.digest == binding.digest and now_us < row.expires_us


def settle(
    state: State, status: OutcomeStatus, delivered: bool, found: OutcomeStatus = OutcomeStatus.EXECUTED
) -> State:
    """The state of a permit, or of a claim that it holds, after its outcome; `found` is of `reconciled`."""
    event = FINDINGS[found] if status is OutcomeStatus.RECONCILED else _EVENT_OF[status]
    if event is Event.EXECUTED and not delivered:
        event = Event.UNDELIVERED
    return OUTCOMES[state, event]


def settle_claim(
    row: ClaimRow,
    receipt_id: str,
    status: OutcomeStatus,
    http_status: int,
    *,
    delivered: bool,
    found: OutcomeStatus = OutcomeStatus.EXECUTED,
) -> ClaimRow:
    """The claim after the outcome of the permit `receipt_id`, which bound it at some time."""
    if row.receipt_id == receipt_id:
        return settle_row(row, status, http_status, delivered=delivered, found=found)
    return replace(row, before=_found(row.before, receipt_id, status, http_status, delivered, found))


def _found(
    before: tuple[Left, ...],
    receipt_id: str,
    status: OutcomeStatus,
    http_status: int,
    delivered: bool,
    found: OutcomeStatus,
) -> tuple[Left, ...]:
    """An earlier dispatch is reconciled while a replay of it is under way, or in doubt too."""
    one = next((left for left in before if left.receipt_id == receipt_id), None)
    state = settle(one.state, status, delivered, found) if one is not None else None
    if one is None or state is None or state is one.state:
        return before
    others = tuple([left for left in before if left is not one])
    if others and state in RELEASING:
        return others
    return (Left(state=state, receipt_id=receipt_id, http_status=http_status),)


def settle_row(
    row: ClaimRow,
    status: OutcomeStatus,
    http_status: int,
    *,
    delivered: bool,
    found: OutcomeStatus = OutcomeStatus.EXECUTED,
) -> ClaimRow:
    """The claim after the outcome of the permit that holds it."""
    state = settle(row.state, status, delivered, found)
    if state is row.state:
        return row
    if row.before and state in RELEASING:
        # The replay changed nothing at the vendor, so what the dispatches before it left still holds.
        last = row.before[-1]
        return _left(row, last.state, last.receipt_id, last.http_status, row.before[:-1])
    return _left(row, state, row.receipt_id, http_status, row.before if state is _X else ())


def _left(
    row: ClaimRow, state: State, receipt_id: str, http_status: int, before: tuple[Left, ...]
) -> ClaimRow:
    """What its last dispatch leaves of a claim. Field by field: replace() looks them up each time."""
    return ClaimRow(
        key=row.key,
        state=state,
        digest=row.digest,
        receipt_id=receipt_id,
        http_status=http_status,
        expires_us=row.expires_us,
        provider=row.provider,
        source=row.source,
        before=before,
    )


def remade(
    row: ClaimRow | None, known: Prepared | None, receipt_id: str, made: Made, now_us: int
) -> tuple[bool, ClaimRow | None]:
    """What an executed PERMIT whose answer names an object does to it: whether its decision is from now on
    what is known of the object, and the claim on the object if that is free again.

    `row` is the claim before this outcome. Who took the object made it anew. A replay did so only if it took
    the object over from the PERMIT that it repeats: otherwise others may have acted on it since, and the
    answer is an old one. Where nobody knows whether it is, nothing becomes known, and what is taken stays so.
    """
    if made.told is Told.EITHER:
        return False, None
    if row is None or row.source != ONCE_SOURCE or is_free(row):
        return known is None or now_us >= known.expires_us, None
    if row.receipt_id != receipt_id:
        return False, None
    return made.told is Told.NEW or bool(row.before), replace(row, state=_N, before=())


def is_free(row: ClaimRow) -> bool:
    """Whether the row obstructs nobody any more, at any time: stores may forget it."""
    return (row.source, row.state) in _FREE
