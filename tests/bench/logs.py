"""`make bench BENCH="--log 1000000"`: what a log of so many receipts costs to append, keep and prove from.

    permits and their outcomes -> the real ledger (signed, durable) -> a state directory -> proofs of some

Appending is CPU time of the whole process a receipt, in tenths of the log: it must stay flat. A proof is
found and made as `holdgate log prove ID` does, in this process: one look-up in the ledger, the tiles, and
the verification that comes before it is given out. README.md beside this file says what the rows are.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # evidence.py

from evidence import RefundJudge, open_ledger
from holdgate.adapters.proofs import prove
from holdgate.adapters.sqlite import SqliteLedger, SqliteReader
from holdgate.ledger import OutcomeStatus

AT_ONCE, PROOFS, TENTHS = 128, 500, 10


@dataclass(frozen=True, slots=True)
class Log:
    size: int
    append_us: tuple[float, ...]  # CPU of one receipt, in each tenth
    disk: float  # bytes of a receipt, of all files
    tiles: float  # of these in tiles
    wall_ms: tuple[float, float]  # of a proof: median, 95th percentile
    cpu_ms: tuple[float, float]


async def append(ledger: SqliteLedger, permits: range) -> float:
    """CPU microseconds of one receipt."""
    begin, before = time.process_time(), ledger.size
    for first in range(permits.start, permits.stop, AT_ONCE):
        some = range(first, min(first + AT_ONCE, permits.stop))
        for recorded in await asyncio.gather(*(ledger.record(RefundJudge(f"key {n}")) for n in some)):
            ledger.record_outcome(recorded.entry.receipt_id, OutcomeStatus.EXECUTED, 200, delivered=True)
    return (time.process_time() - begin) / max(1, ledger.size - before) * 1e6


async def write(state: Path, receipts: int) -> tuple[float, ...]:
    ledger, tenth = open_ledger(state), receipts // 2 // TENTHS
    spent = [await append(ledger, range(number * tenth, (number + 1) * tenth)) for number in range(TENTHS)]
    ledger.close()  # commits the last outcomes and signs the checkpoint
    return tuple(spent)


def proved(state: Path, size: int) -> tuple[list[float], list[float]]:
    """Wall and CPU milliseconds of proofs of receipts drawn at random."""
    wall, cpu = [], []
    with SqliteReader(state) as reader:
        ids = [stored.id for stored in reader.export()]
        for receipt_id in random.Random(0).choices(ids, k=PROOFS):
            began, spent = time.perf_counter(), time.process_time()
            stored = reader.get(receipt_id)
            assert stored is not None
            prove(state, stored.index, stored.jws)  # verified before it is given out
            wall.append((time.perf_counter() - began) * 1e3)
            cpu.append((time.process_time() - spent) * 1e3)
    assert len(ids) == size
    return wall, cpu


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def _middle_and_end(values: list[float]) -> tuple[float, float]:
    return statistics.median(values), statistics.quantiles(values, n=20)[-1]


def measured(state: Path, receipts: int) -> Log:
    state.mkdir(mode=0o700)
    append_us = asyncio.run(write(state, receipts))
    with SqliteReader(state) as reader:
        size = reader.size
    wall, cpu = proved(state, size)
    return Log(
        size,
        append_us,
        disk=_bytes(state) / size,
        tiles=_bytes(state / "log") / size,
        wall_ms=_middle_and_end(wall),
        cpu_ms=_middle_and_end(cpu),
    )


def main(receipts: int) -> int:
    with tempfile.TemporaryDirectory(prefix="holdgate-bench-") as folder:
        log = measured(Path(folder) / "state", receipts)
    print(f"{log.size} receipts; {PROOFS} proofs")
    print("append, CPU us a receipt, by tenths  ", *(f"{spent:.0f}" for spent in log.append_us))
    print(f"disk, bytes a receipt                 {log.disk:.0f}, of which tiles {log.tiles:.0f}")
    print("proof, wall ms, median and p95        {:.2f} {:.2f}     (the aim is 5)".format(*log.wall_ms))
    print("proof, CPU ms, median and p95         {:.2f} {:.2f}".format(*log.cpu_ms))
    return 0
