"""How a stored receipt is shown, on the admin API and by `holdgate receipts`: one shape for both.

Every command imports this, so it imports neither the HTTP server nor the ledger.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from ...jcs import JcsError, loads_strict
from ...keys import unb64url

if TYPE_CHECKING:
    from ..reader import StoredReceipt

__all__ = ["decode_jws", "export_row", "parse_since"]


def decode_jws(jws: bytes) -> dict[str, Any]:
    """The statement of a receipt out of our own ledger. It is not verified here: `verify` does that.

    Raises ConfigError where the ledger was edited.
    """
    try:
        jws.decode("ascii")
        statement: dict[str, Any] = loads_strict(unb64url(jws.split(b".")[1]))
    except (ValueError, IndexError, JcsError) as error:
        raise ConfigError(
            "a receipt in the ledger is damaged or was edited: `holdgate log audit` says which"
        ) from error
    return statement


def export_row(stored: StoredReceipt) -> dict[str, Any]:
    statement = decode_jws(stored.jws)
    return {"index": stored.index, "jws": stored.jws.decode("ascii"), "receipt": statement}


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
