"""What a store gives to the ledger's serial step, and what it is given to write: the narrow port.

    begin(work) -> Rows: what is committed; nothing else commits until ...   (batch.py judges)
    commit(Changes): everything or nothing, durable when it returns          (or rollback())

store_ledger.py calls it from one thread. An error that a store raises ends the ledger, because nobody knows
what is on disk, but for two: StoreLost (the store comes back by itself; the group may or may not have been
committed, and none of it is dispatched) and Conflict (nothing was committed: judge the group again).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Protocol, Self

from ..answer import Answer
from ..erasure import Erasure
from ..errors import BackendError, Reason
from ..keys import Signer
from ..ledger import Charge, ClaimRow, OutcomeStatus, State, Total
from ..quick import quick
from ..sealing import KeptAnswer, Sealed
from ..standing import Denial, Made, Prepared
from ..tlog import Tree

__all__ = [
    "FORGET_EVERY",
    "Changes",
    "Conflict",
    "Eraser",
    "Head",
    "KeptRow",
    "Leaves",
    "Node",
    "OutcomeNote",
    "Permit",
    "ReceiptRow",
    "Rows",
    "Store",
    "StoreBroken",
    "StoreLost",
]

FORGET_EVERY: Final = (
    1024  # leaves; what expires is forgotten in strides, so that a commit seldom pays for it
)

# index, id, type, outcome, reason, agent, surface, iat_us, jws: see StoredReceipt
type ReceiptRow = tuple[int, str, str, str, str, str, str, int, bytes]


class StoreLost(BackendError):
    """The store does not answer, and is tried again. What was asked of it may have been done."""

    def __init__(self, detail: str) -> None:
        super().__init__(Reason.STORE_UNAVAILABLE, detail)


class Conflict(Exception):
    """The transaction was undone by the store, because of another one."""


class StoreBroken(Exception):
    """The store is not what this process left, and does not become so again by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """What a ledger signs with, and where time and randomness come from."""

    key: Signer
    origin: str
    name: str
    owner: str  # this process's run: permits of another owner are nobody's
    clock_us: Callable[[], int]
    nonce16: Callable[[], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The end of the log. The next receipt is later than `iat_us`."""

    tree: Tree
    iat_us: int


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Permit:
    index: int
    receipt_id: str
    state: State
    http_status: int
    claims: tuple[str, ...]
    charges: tuple[Charge, ...]  # what it holds of budgets now
    lender: str  # the permit that it repeats and took them over from; "" when none
    away: bool = False  # another node's
    waiting: tuple[str, ...] = ()  # other nodes where identical requests wait for its answer

    def ended(self, state: State, http_status: int) -> Permit:
        """With its outcome: nobody waits for it. Field by field: replace() looks them up each time."""
        return Permit(
            index=self.index,
            receipt_id=self.receipt_id,
            state=state,
            http_status=http_status,
            claims=self.claims,
            charges=self.charges,
            lender=self.lender,
            away=self.away,
        )


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeNote:
    """A queued record_outcome()."""

    receipt_id: str
    status: OutcomeStatus
    http_status: int
    delivered: bool
    made: Made | None = None
    kept: KeptAnswer | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptRow:
    """Where a kept answer is: sealed, under the index of the outcome that it came with."""

    receipt_id: str  # the PERMIT that it answers
    index: int
    expires_us: int  # of the key that lets a repeat have it


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """Everything that one group writes. Claims that are free (ledger.is_free) are to be forgotten; denials,
    prepared objects and kept answers that have expired, and the oldest denials above standing.MAX_DENIALS,
    within FORGET_EVERY leaves."""

    receipts: Sequence[ReceiptRow]  # in log order
    inputs: Sequence[tuple[int, bytes]]  # under the index of their receipt
    sealed: Sequence[tuple[int, Sealed]]
    kept: Sequence[KeptRow]
    erasing: Sequence[tuple[int, Erasure]]
    permits: Mapping[str, Permit]  # as they are now
    charges: Sequence[Charge]  # to add to the counters' rows; amounts may be negative
    claims: Mapping[str, ClaimRow]
    denials: Sequence[
        tuple[int, Denial]
    ]  # with the index of the DENY; each takes the place of its key's last
    prepared: Sequence[Prepared]  # without inputs; each takes the place of its key's last
    answers: Sequence[tuple[Permit, Answer]]  # for the nodes where identical requests wait, until fetched
    head: Head
    unknown: int  # by how much the number of unknown outcomes changes


class Rows(Protocol):
    """The rows that a group starts from, inside its transaction."""

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What these methods raise when the store fails. A judge's own errors are others."""
        ...

    def claim(self, key: str) -> ClaimRow | None: ...

    def permit(self, receipt_id: str) -> Permit | None: ...

    def denial(self, key: str) -> Denial | None: ...

    def prepared(self, key: str) -> Prepared | None:
        """Without its inputs."""
        ...

    def answer(self, receipt_id: str) -> KeptAnswer | None:
        """The kept answer to a PERMIT; None where there is none, or where it was destroyed."""
        ...

    def inputs(self, receipt_id: str) -> bytes | None:
        """The recorded decision input of a receipt; None where there is none, or where it was destroyed."""
        ...

    def total(self, meter: str, now_us: int) -> Total:
        """What stands on the meter at that time."""
        ...

    def deserted(self, receipt_id: str) -> bool:
        """Whether whoever could dispatch this PERMIT, or report its outcome, runs no more."""
        ...


class Eraser(Protocol):
    """Carries out committed orders, a few rows at a time, in the writer thread."""

    @property
    def busy(self) -> bool: ...

    @property
    def pause_s(self) -> float: ...

    def done(self, index: int) -> bool: ...

    def resume(self) -> None: ...

    def start(self, index: int, erasure: Erasure) -> None: ...

    def step(self) -> None: ...


class Leaves(Protocol):
    """A connection of its own to what is committed, for the thread that makes the log's tiles."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def read(self, start: int, end: int) -> Sequence[bytes]:
        """The receipts from index `start` on, at most up to `end`."""
        ...


class Store(Protocol):
    @property
    def head(self) -> Head:
        """The end of the log as of the last begin() or commit()."""
        ...

    @property
    def unknown(self) -> int:
        """How many permits have an outcome that nobody knows."""
        ...

    @property
    def lost(self) -> str:
        """Why nothing can be recorded now; "" when it can, as far as is known."""
        ...

    @property
    def eraser(self) -> Eraser: ...

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What opening may raise beside ConfigError and OSError."""
        ...

    def begin(self, work: Sequence[object]) -> Rows:
        """Open the transaction; `work` is what will be judged, so that rows can be fetched at once."""
        ...

    def commit(self, changes: Changes) -> None: ...

    def rollback(self) -> None: ...

    def heal(self) -> None:
        """Called now and then while `lost`. Raises what is not going to heal."""
        ...

    @property
    def tend_s(self) -> float:
        """How often tend() wants to be called; 0: never."""
        ...

    def tend(self) -> None:
        """Called after every group, and that often while nothing happens. Raises what does not heal."""
        ...

    def stranded(self) -> Sequence[str]:
        """PERMITs that a commit in doubt left and nobody dispatched. Asked inside a transaction."""
        ...

    def orphans(self) -> Sequence[str]:
        """PERMITs of earlier runs of this node that have no outcome. Asked at start."""
        ...

    def ended(self, receipt_ids: Collection[str]) -> Mapping[str, Answer | None]:
        """Those PERMITs of other nodes that have an outcome by now, with the answer that was shared with this
        node. Asked outside transactions; whoever takes an answer has it alone."""
        ...

    def key_events(self) -> Sequence[tuple[int, bytes]]:
        """Index and JWS of every admin receipt about keys, in log order. Asked at start."""
        ...

    def leaves(self) -> Leaves: ...

    def close(self) -> None: ...
