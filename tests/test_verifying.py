"""adapters/verifying.py: the invariants in its docstring."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from evidence import KEYS, RefundJudge, open_ledger
from holdgate.adapters import verifying
from holdgate.adapters.sqlite_reader import SqliteReader
from holdgate.adapters.verifying import VerifyingError, spread, verifying_for
from holdgate.audit import Checked, verified_here
from holdgate.audit_rows import LogRecord
from holdgate.receipt import ReceiptError, Verified


@pytest.fixture
async def records(tmp_path: Path) -> list[LogRecord]:
    """Some more than a batch, one of which is not valid."""
    ledger = open_ledger(tmp_path)
    for number in range(5):
        await ledger.record(RefundJudge(f"k{number}"))
    ledger.close()
    with SqliteReader(tmp_path) as reader:
        found = list(reader.audit_input().records)
        reader.end_audit()
    many = found * 130
    many[300] = replace(many[300], jws=many[300].jws[:-5] + b"AAAAA")
    many[301] = replace(many[301], jws=b"x.y")
    return many


def _told(checked: Iterator[Checked]) -> list[tuple[LogRecord, object]]:
    return [(record, str(found) if isinstance(found, ReceiptError) else found) for record, found in checked]


@pytest.mark.parametrize("workers", [1, 2])
async def test_vp1_processes_say_what_one_says(records: list[LogRecord], workers: int) -> None:
    here, there = _told(verified_here(records, KEYS)), _told(spread(workers)(iter(records), KEYS))
    assert here == there
    assert [number for number, (_, found) in enumerate(there) if not isinstance(found, Verified)] == [
        300,
        301,
    ]


async def test_vp1_a_small_log_or_one_core_needs_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert verifying_for(5_000) is verified_here
    monkeypatch.setattr(verifying.os, "sched_getaffinity", lambda _: {0})
    assert verifying_for(10**9) is verified_here
    monkeypatch.setattr(verifying.os, "sched_getaffinity", lambda _: {0, 1})
    assert verifying_for(10**9) is not verified_here


def _dies(*_: object) -> None:
    os._exit(1)


async def test_vp2_a_worker_that_dies_is_an_error(
    records: list[LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "_start", _dies)
    with pytest.raises(VerifyingError, match="ended"):
        list(spread(1)(iter(records), KEYS))
