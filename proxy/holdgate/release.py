"""Step 8: the only value that dispatch accepts.

Invariants (tests/test_release.py):
  D1  A Release can be made only from a Recorded PERMIT.
  D2  verify() recomputes the wire digest of what is about to be sent; what differs from the receipt raises.
"""

from __future__ import annotations

from dataclasses import dataclass

from .canonical import CanonicalRequest
from .digest import wire_digest
from .errors import BackendError, InputError, Outcome, Reason
from .ledger import Recorded
from .quick import quick
from .surface.model import Recognised

__all__ = ["Release"]


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A permitted, durably recorded request, ready to be sent once."""

    recorded: Recorded
    agent: str
    request: CanonicalRequest
    recognised: Recognised
    wire_key: bytes | None  # fleet key when the operation is sensitive
    expires_us: int  # epoch microseconds: later than this nothing is sent

    def __post_init__(self) -> None:
        entry = self.recorded.entry
        if entry.outcome is not Outcome.PERMIT or not self.recorded.durable:
            raise BackendError(Reason.INTERNAL_ERROR, "a Release needs a recorded PERMIT")

    def verify(self) -> None:
        """Raise unless what would be sent now is what the receipt speaks of."""
        actual = wire_digest(
            self.request.method,
            self.request.raw_target,
            self.recognised.headers,
            self.request.body,
            secret_headers=self.recognised.secret_headers,
            key=self.wire_key,
        )
        if actual != self.recorded.entry.wire:
            raise InputError(Reason.INTERNAL_ERROR, "the request differs from its receipt")
