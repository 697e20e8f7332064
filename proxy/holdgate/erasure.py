"""What an order to destroy recorded inputs covers, and the admin receipt that says so.

    Erasure (ids, or a filter) <-> details of an admin receipt; (receipt) -> covered or not

The receipt is durable before the first byte is destroyed, so what is missing is always accounted for.
`shred` takes input, key and salt; `retention` input and key, so that a commitment can still be disclosed.

Invariants (tests/test_erasure.py has one test named after each):
  ER1  An erasure read back from its own details covers exactly what it covered before.
  ER2  An erasure without ids names at least one of agent, surface and time: nothing is destroyed by omission.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from .errors import HoldgateError
from .statement import check_admin, format_us, parse_us

__all__ = ["MAX_IDS", "RETENTION", "SHRED", "EraseOrder", "Erasure", "ErasureError"]

SHRED: Final = "shred"
RETENTION: Final = "retention"
MAX_IDS: Final = 100  # of one admin receipt, which has at most 8 KiB


class ErasureError(HoldgateError):
    """Not an order that can be carried out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """`ids`, or every decision that agrees with all of the other terms; "" and 0 do not filter."""

    action: str
    ids: frozenset[str] = frozenset()
    agent: str = ""
    surface: str = ""
    before_us: int = 0

    def __post_init__(self) -> None:
        filters = bool(self.agent or self.surface or self.before_us)
        if bool(self.ids) == filters:
            raise ErasureError("name receipts, or an agent, a surface or a time; not both, not neither")
        if len(self.ids) > MAX_IDS:
            raise ErasureError(f"at most {MAX_IDS} receipts at a time")
        if self.action == RETENTION and (self.ids or self.agent or self.surface):
            raise ErasureError("retention goes by time alone")

    @property
    def takes_salt(self) -> bool:
        return self.action == SHRED

    def covers(self, receipt_id: str, agent: str, surface: str, iat_us: int) -> bool:
        if self.ids:
            return receipt_id in self.ids
        return (
            self.agent in ("", agent)
            and self.surface in ("", surface)
            and (not self.before_us or iat_us < self.before_us)
        )

    def details(self, count: int) -> dict[str, Any]:
        """What the admin receipt says. Raises StatementError."""
        said: dict[str, Any] = {"count": count}
        if self.ids:
            said["ids"] = sorted(self.ids)
        if self.agent:
            said["agent"] = self.agent
        if self.surface:
            said["surface"] = self.surface
        if self.before_us:
            said["before"] = format_us(self.before_us)
        check_admin(self.action, "local", said)
        return said

    @classmethod
    def of(cls, action: str, details: Mapping[str, Any]) -> Erasure:
        """The order that an admin receipt speaks of; its details have been checked. Raises ErasureError."""
        return cls(
            action=action,
            ids=frozenset(details.get("ids", ())),
            agent=details.get("agent", ""),
            surface=details.get("surface", ""),
            before_us=parse_us(details["before"]) if "before" in details else 0,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EraseOrder:
    """An erasure to carry out, and how many receipts it will take something from."""

    erasure: Erasure
    count: int
    by: str
