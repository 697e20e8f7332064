"""Receipts verified by several processes, for an audit: the order stays, the rest of the work goes on.

    records -> batches of JWS to the processes -> each record with what receipt.verify() says of its JWS

Verifying is most of an audit. A worker gets receipts and public keys, and gives back why a receipt is not
valid, or nothing; what it accepted is only read here. On one core, or for a small log, there is no worker.

Invariants (tests/test_verifying.py has one test named after each):
  VP1  What comes out is what receipt.verify() says, record for record, in order, however many processes.
  VP2  A worker that dies ends the audit with an error, never with fewer receipts.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import batched
from typing import Final

from ..audit import Checked, Verifying, verified_here
from ..audit_rows import LogRecord
from ..errors import HoldgateError
from ..keys import KeySet, PublicKey, key_set
from ..receipt import ReceiptError, read_accepted, verify_each

__all__ = ["VerifyingError", "spread", "verifying_for"]

_BATCH: Final = 256
_AHEAD: Final = 3  # batches for each worker that wait, or are worked on
_SMALL: Final = 5_000  # receipts that are verified before a process has started
_MOST: Final = 3  # workers; beyond them the process that reads is the slowest

_keys: KeySet = {}  # of a worker


class VerifyingError(HoldgateError):
    """Not every receipt could be verified."""


def verifying_for(size: int) -> Verifying:
    """How a log of this size is verified fastest on this machine."""
    cores = len(os.sched_getaffinity(0))
    return spread(min(cores, _MOST)) if cores > 1 and size > _SMALL else verified_here


def spread(workers: int) -> Verifying:
    """Verify in so many processes."""

    def verifying(records: Iterable[LogRecord], keys: KeySet) -> Iterator[Checked]:
        # Not forked: this process has an open database.
        with ProcessPoolExecutor(
            workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start,
            initargs=([key.raw for key in keys.values()],),
        ) as pool:
            waiting: deque[tuple[tuple[LogRecord, ...], Future[list[str]]]] = deque()
            try:
                for batch in batched(records, _BATCH):
                    waiting.append((batch, pool.submit(_refusals, [record.jws for record in batch])))
                    if len(waiting) > workers * _AHEAD:
                        yield from _checked(*waiting.popleft())
                while waiting:
                    yield from _checked(*waiting.popleft())
            except BrokenProcessPool as error:
                raise VerifyingError("a process that verifies receipts ended") from error

    return verifying


def _checked(batch: Sequence[LogRecord], refusals: Future[list[str]]) -> Iterator[Checked]:
    for record, refusal in zip(batch, refusals.result(), strict=True):
        yield record, ReceiptError(refusal) if refusal else read_accepted(record.jws)


def _start(keys: Sequence[bytes]) -> None:
    global _keys
    gc.disable()  # what is made here has no cycles
    _keys = key_set(PublicKey(raw=raw) for raw in keys)


def _refusals(batch: Sequence[bytes]) -> list[str]:
    """Why each one is not valid; "" for one that is."""
    found = verify_each(batch, _keys)
    return [str(each) or "not valid" if isinstance(each, ReceiptError) else "" for each in found]
