"""A child process of test_sqlite.py: permits and "dispatches" to a file until it is killed.

    python killed_writer.py STATE_DIR DISPATCHED ROUND

A line in DISPATCHED stands for a request that reached the vendor.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

from evidence import RefundJudge, open_ledger
from holdgate.errors import Outcome
from holdgate.ledger import OutcomeStatus


async def main(state_dir: Path, dispatched: Path, run: str) -> None:
    ledger = open_ledger(
        state_dir, clock_us=lambda: time.time_ns() // 1000, nonce16=lambda: os.urandom(16), linger_s=0.001
    )
    vendor = os.open(dispatched, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    async def agent(name: int) -> None:
        for number in range(1_000_000):
            # Half of the keys are shared by all agents, so that duplicates race for them.
            key = f"{run} shared {number}" if name % 2 else f"{run} {name} {number}"
            recorded = await ledger.record(RefundJudge(key, conflict=f"{run} {number % 7} {name}"))
            if recorded.entry.outcome is not Outcome.PERMIT:
                continue
            os.write(vendor, f"{key}\t{recorded.entry.receipt_id}\n".encode())
            if number % 5:
                status = OutcomeStatus.EXECUTED if number % 3 else OutcomeStatus.UNKNOWN
                ledger.record_outcome(recorded.entry.receipt_id, status, 200, delivered=True)

    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.gather(*(agent(name) for name in range(8)))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
