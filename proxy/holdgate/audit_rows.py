"""What a store hands to an audit: rows as they are stored, nothing of them believed yet.

Claims and objects come as ledger.ClaimRow and standing.Prepared.
"""

from __future__ import annotations

from dataclasses import dataclass

from .ledger import Charge, State
from .sealing import Stored

__all__ = ["CounterRow", "HeadRow", "LogRecord", "PermitRow"]


# PermitRow and LogRecord are not frozen: a log has a million, and freezing costs more than reading the row.
@dataclass(slots=True, kw_only=True)
class PermitRow:
    """What the store keeps of one permit."""

    id: str
    state: State
    http_status: int
    claims: tuple[str, ...]
    charges: tuple[Charge, ...]
    lender: str


@dataclass(slots=True, kw_only=True)
class LogRecord:
    """One row of the log as it is stored: the receipt, and what the store keeps beside it."""

    index: int
    id: str
    type: str
    outcome: str
    reason: str
    agent: str
    surface: str
    iat_us: int
    jws: bytes
    inputs: bytes | None  # in clear
    sealed: Stored | None
    permit: PermitRow | None  # None when the store has no permit here
    node: str = ""  # whose log it is in; "" where there is one log


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadRow:
    """What the store keeps of the end of the log."""

    origin: str
    size: int
    iat_us: int
    hashes: bytes  # of Tree.hashes


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterRow:
    """What the store keeps of one bucket of one meter."""

    meter: str
    at_us: int
    until_us: int
    sum: int
    count: int
