"""Step 9's carrier: what goes back to the agent, and what an upstream exchange looks like.

The pipeline returns an Answer; the intercepting adapter writes it. `rest` is pulled one piece at
a time, so memory stays bounded and the agent's pace slows the upstream down (back-pressure).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from .errors import HoldgateError
from .ledger import OutcomeStatus
from .message import Headers, ResponseHead
from .quick import quick
from .release import Release

__all__ = ["Answer", "DispatchError", "Dispatcher", "Exchange", "Stream"]


class Stream(Protocol):
    """The rest of a body, pulled by the adapter that writes to the agent."""

    async def next(self) -> bytes:
        """The next piece, b"" at the end. Raises DispatchError when the upstream's answer was cut."""
        ...

    def abandon(self) -> None:
        """The agent is gone. Idempotent; never blocks."""
        ...


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    status: int
    reason: bytes
    headers: Headers  # without Content-Length, Transfer-Encoding and Connection: the writer adds them
    body: bytes  # the whole body, or its first piece when `rest` is set
    rest: Stream | None
    length: (
        int | None
    )  # total body length when known (Content-Length), None: chunked. HEAD/204/304: see `bodiless`
    bodiless: bool  # HEAD, 204, 304: headers only; a known `length` is still announced
    close: bool  # close the agent's connection afterwards


class Exchange(Protocol):
    """One upstream exchange after its response head arrived."""

    head: ResponseHead  # final status, headers as received
    length: int | None  # announced body length; None: until the last chunk, or the close

    async def read(self) -> bytes:
        """The next piece of the body, b"" at its end. Raises DispatchError(UNKNOWN) on a cut."""
        ...

    async def drain(self, limit_bytes: int) -> bytes | None:
        """The rest of the body when it is at most `limit_bytes` and already arriving; None: too long."""
        ...

    def abandon(self) -> None:
        """Close the upstream connection; it is never reused. Idempotent."""
        ...


class DispatchError(HoldgateError):
    """The exchange failed. `status`: what is known of the effect; `http`: what the agent gets (502, 504)."""

    def __init__(self, status: OutcomeStatus, http: int, detail: str) -> None:
        self.status, self.http, self.detail = status, http, detail
        super().__init__(f"{status}: {detail}")


class Dispatcher(Protocol):
    """The outer door. One attempt, one outcome, no retry, no redirect."""

    async def dispatch(self, release: Release) -> Exchange: ...

    async def close(self) -> None: ...
