"""How a stored receipt is shown, on the admin API and by `holdgate receipts`: one shape for both.

Every command imports this, so it imports neither the HTTP server nor the ledger.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ...jcs import loads_strict
from ...keys import unb64url

if TYPE_CHECKING:
    from ..reader import StoredReceipt

__all__ = ["decode_jws", "export_row", "parse_since"]


def decode_jws(jws: bytes) -> dict[str, Any]:
    """The statement of a receipt out of our own ledger. It is not verified here: `verify` does that."""
    statement: dict[str, Any] = loads_strict(unb64url(jws.split(b".")[1]))
    return statement


def export_row(stored: StoredReceipt) -> dict[str, Any]:
    return {"index": stored.index, "jws": stored.jws.decode("ascii"), "receipt": decode_jws(stored.jws)}


def parse_since(text: str) -> int:
    """An RFC 3339 time with an offset, in microseconds since the epoch. Raises ValueError."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("write a time such as 2026-11-21T08:00:00Z") from None
    if moment.tzinfo is None:
        raise ValueError("the time needs an offset, such as Z")
    delta = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return max(0, (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds)
