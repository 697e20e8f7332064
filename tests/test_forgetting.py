"""forgetting.py: orders to destroy, counted, receipted and repeated by age."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from evidence import KEYS, T0, RefundJudge, open_ledger
from holdgate.adapters.forgetting import RETENTION_EVERY_S, Forgetter
from holdgate.adapters.sqlite import SqliteLedger, SqliteReader
from holdgate.erasure import RETENTION, SHRED, EraseOrder, Erasure
from holdgate.receipt import verify

DAY_US = 86_400_000_000
EVERYTHING = Erasure(action=SHRED, agent="refund-bot")


async def _filled(folder: Path, count: int = 6) -> SqliteLedger:
    ledger = open_ledger(folder)
    for number in range(count):
        await ledger.record(RefundJudge(f"k{number}", sealed=number % 2 == 0))
    return ledger


async def test_fg1_what_was_destroyed_is_not_destroyed_again(tmp_path: Path) -> None:
    ledger = await _filled(tmp_path)
    forgetter = Forgetter(lambda: SqliteReader(tmp_path), ledger)
    first = await forgetter.forget(EVERYTHING, by="local")
    size = ledger.size
    again = await forgetter.forget(EVERYTHING, by="local")
    assert (first.count, first.out_of_files, again.count, again.receipt_id) == (6, True, 0, "")
    assert ledger.size == size
    with SqliteReader(tmp_path) as reader:
        stored = reader.get(first.receipt_id)
    assert stored is not None
    said = verify(stored.jws, KEYS).statement
    assert (said["action"], said["by"], said["details"]) == (
        SHRED,
        "local",
        {"agent": "refund-bot", "count": 6},
    )
    ledger.close()


async def test_fg2_orders_at_the_same_time_share_nothing(tmp_path: Path) -> None:
    ledger = await _filled(tmp_path)
    forgetter = Forgetter(lambda: SqliteReader(tmp_path), ledger)
    counts = [
        one.count for one in await asyncio.gather(*(forgetter.forget(EVERYTHING, by="x") for _ in range(5)))
    ]
    assert sorted(counts) == [0, 0, 0, 0, 6]
    ledger.close()


async def test_fg4_a_clock_that_was_set_forward_destroys_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = await _filled(tmp_path)
    with SqliteReader(tmp_path) as reader:
        third = list(reader.export())[3].iat_us
    forgetter = Forgetter(lambda: SqliteReader(tmp_path), ledger)
    time_us = third  # nothing is that old
    kept: list[int] = []

    async def pause(seconds: float) -> None:
        nonlocal time_us
        with SqliteReader(tmp_path) as reader:
            kept.append(reader.count_kept(Erasure(action=RETENTION, before_us=T0 + DAY_US)))
        # An hour later: a year ahead, right again, and a day ahead at most.
        time_us = third + [365 * DAY_US, 2, 30 * DAY_US][len(kept) - 1] if len(kept) < 4 else 0
        if len(kept) == 4:
            raise asyncio.CancelledError

    # The machine has run as long as the clock says, but for the year.
    def uptime_us() -> int:
        return 30 * DAY_US if time_us == third + 30 * DAY_US else 0

    with pytest.raises(asyncio.CancelledError):
        await forgetter.retain(30, lambda: time_us, pause, uptime_us)
    assert kept == [6, 6, 6, 3]
    assert caplog.text.count("set forward") == 1
    ledger.close()


async def test_fg3_retention_takes_what_is_old_enough_and_goes_on_after_a_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = await _filled(tmp_path)
    fails = iter([True, False, False])

    class Sometimes:
        async def erase(self, order: EraseOrder) -> object:
            if next(fails):
                raise OSError("disk")
            return await ledger.erase(order)

    forgetter = Forgetter(lambda: SqliteReader(tmp_path), Sometimes())  # type: ignore[arg-type]
    with SqliteReader(tmp_path) as reader:
        third = list(reader.export())[3].iat_us
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            raise asyncio.CancelledError

    with caplog.at_level(logging.INFO), pytest.raises(asyncio.CancelledError):
        await forgetter.retain(30, lambda: third + 30 * DAY_US, pause)
    assert pauses == [RETENTION_EVERY_S] * 3
    assert "retention failed" in caplog.text and "inputs of 3 decisions destroyed" in caplog.text
    with SqliteReader(tmp_path) as reader:
        assert reader.count_kept(Erasure(action=RETENTION, before_us=T0 + DAY_US)) == 3
        assert [row.type for row in reader.export()].count("admin") == 1
    ledger.close()


async def test_fg3_a_clock_that_cannot_be_read_at_first_is_a_run_that_failed(tmp_path: Path) -> None:
    ledger = await _filled(tmp_path)
    with SqliteReader(tmp_path) as reader:
        third = list(reader.export())[3].iat_us
    said: Iterator[int | OSError] = iter([OSError("no clock"), third + 30 * DAY_US])
    pauses: list[float] = []

    def clock_us() -> int:
        if isinstance(now := next(said), OSError):
            raise now
        return now

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            raise asyncio.CancelledError

    forgetter = Forgetter(lambda: SqliteReader(tmp_path), ledger)
    with pytest.raises(asyncio.CancelledError):
        await forgetter.retain(30, clock_us, pause)
    with SqliteReader(tmp_path) as reader:
        assert [row.type for row in reader.export()].count("admin") == 1
    ledger.close()
