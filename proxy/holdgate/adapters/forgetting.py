"""Orders to destroy recorded inputs, counted by a reader, then handed to the ledger: by a command, or by age.

    Erasure -> how many decisions it takes something from -> admin receipt -> destroyed

Invariants (tests/test_forgetting.py has one test named after each):
  FG1  An order that takes nothing from anything leaves no receipt: doing it again changes nothing.
  FG2  One order after the other: the count of a receipt is what its own order destroyed.
  FG3  Retention never ends because one run of it failed.
  FG4  On a clock that was set forward while it ran, by more than a day, retention destroys nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol

from ..erasure import RETENTION, EraseOrder, Erasure
from .reader import Reader
from .store_ledger import Erased

__all__ = ["RETENTION_EVERY_S", "Forgetter", "Forgotten"]

log = logging.getLogger("holdgate.forgetting")

RETENTION_EVERY_S: Final = 3600.0
_DAY_US: Final = 86_400_000_000


def _uptime_us() -> int:
    """Nobody sets it; where there is such a clock (Linux), it goes on while the machine sleeps."""
    return time.clock_gettime_ns(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)) // 1000


class _Ledger(Protocol):
    async def erase(self, order: EraseOrder) -> Erased: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgotten:
    """What became of one order."""

    count: int  # decisions that it took something from
    receipt_id: str  # "" when there was nothing to take
    out_of_files: bool


class Forgetter:
    def __init__(self, read: Callable[[], Reader], ledger: _Ledger) -> None:
        self._read, self._ledger = read, ledger
        self._one = asyncio.Lock()

    async def forget(self, erasure: Erasure, *, by: str) -> Forgotten:
        """Carry out one order. Raises as the ledger's note() does."""
        async with self._one:
            count = await asyncio.to_thread(self._count, erasure)
            if not count:
                return Forgotten(count=0, receipt_id="", out_of_files=True)
            erased = await self._ledger.erase(EraseOrder(erasure=erasure, count=count, by=by))
        return Forgotten(count=count, receipt_id=erased.noted.receipt_id, out_of_files=erased.out_of_files)

    def _count(self, erasure: Erasure) -> int:
        with self._read() as reader:
            return reader.count_kept(erasure)

    async def retain(
        self,
        days: int,
        clock_us: Callable[[], int],
        pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
        uptime_us: Callable[[], int] = _uptime_us,
    ) -> None:
        """Destroy what is older than `days`, now and every hour, until cancelled."""
        boot_us: int | None = None  # by the earliest of the clock's opinions
        while True:
            try:
                now_us = clock_us()
                said_us = now_us - uptime_us()
                boot_us = said_us if boot_us is None else min(boot_us, said_us)
                if said_us - boot_us > _DAY_US:  # what is destroyed does not come back with the right time
                    log.error("retention: the clock was set forward; nothing is destroyed until it is right")
                else:
                    await self._retain(max(1, now_us - days * _DAY_US))
            except Exception:
                log.exception("retention failed; it is tried again in an hour")
            await pause(RETENTION_EVERY_S)

    async def _retain(self, before_us: int) -> None:
        done = await self.forget(Erasure(action=RETENTION, before_us=before_us), by="retention")
        if done.count:
            log.info("retention: inputs of %d decisions destroyed, %s", done.count, done.receipt_id)
