"""Answers that are kept for repeats, in every store: written, found, forgotten, destroyed, audited.

test_stores.py runs these over PostgreSQL too.
"""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from evidence import DAY_US, KEYS, LOG_KEYS, ORIGIN, OTHER_DIGEST, T0, RefundJudge, open_ledger, ticking
from holdgate.adapters.sqlite import SqliteReader
from holdgate.adapters.store import FORGET_EVERY
from holdgate.audit import AuditReport, audit
from holdgate.erasure import RETENTION, SHRED, EraseOrder, Erasure
from holdgate.ledger import OutcomeStatus, Recorded, Verdict
from holdgate.recall import MAX_KEPT_BYTES
from holdgate.receipt import answer_digest, verify
from holdgate.sealing import KeptAnswer

EXECUTED = OutcomeStatus.EXECUTED
KEPT = KeptAnswer(key=b"k" * 32, data=b"what is sealed")


def report_of(folder: Path) -> AuditReport:
    with SqliteReader(folder) as reader:
        report = audit(reader.audit_input(), origin=ORIGIN, receipt_keys=KEYS, log_keys=LOG_KEYS)
        reader.end_audit()
        return report


async def ask(ledger: Any, value: str = "key", **facts: Any) -> Recorded:
    recorded: Recorded = await ledger.record(RefundJudge(value, **({"keeps": True} | facts)))
    return recorded


async def executed(ledger: Any, value: str = "key", kept: KeptAnswer | None = KEPT, **facts: Any) -> str:
    first = await ask(ledger, value, **facts)
    ledger.record_outcome(first.entry.receipt_id, EXECUTED, 201, delivered=True, kept=kept)
    return first.entry.receipt_id


async def erase(folder: Path, ledger: Any, **facts: Any) -> int:
    erasure = Erasure(**({"action": SHRED} | facts))
    with SqliteReader(folder) as reader:
        count = reader.count_kept(erasure)
    if count:
        await ledger.erase(EraseOrder(erasure=erasure, count=count, by="local"))
        while ledger._eraser.busy:
            await asyncio.sleep(0.01)
    return count


async def test_a_repeat_is_told_the_kept_answer_and_its_own_receipt(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    first = await executed(ledger)
    again = await ask(ledger)
    assert (again.answer, again.entry.prior, again.entry.prior_status) == (KEPT, first, 201)
    assert (await ask(ledger)).answer == KEPT  # as often as it asks
    ledger.close()
    report = report_of(tmp_path)
    assert report.is_clean, report.problems


async def test_its_outcome_names_what_is_kept(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    await executed(ledger)
    await executed(ledger, "other", kept=None)
    await ask(ledger)
    ledger.close()
    with SqliteReader(tmp_path) as reader:
        said = [verify(row.jws, KEYS).statement for row in reader.export() if row.type == "outcome"]
    assert [each.get("kept") for each in said] == [answer_digest(KEPT.data), None]


async def test_it_is_no_input_of_its_outcome(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    await executed(ledger)
    await ask(ledger)
    ledger.close()
    with SqliteReader(tmp_path) as reader:
        (outcome,) = [row.id for row in reader.export() if row.type == "outcome"]
        assert (reader.input(outcome), reader.stored(outcome), reader.decided(outcome)) == (None, None, None)
        assert len(list(reader.decisions())) == 2


async def test_an_outcome_and_the_repeat_of_one_group_know_each_other(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    first = await ask(ledger)
    ledger.record_outcome(first.entry.receipt_id, EXECUTED, 200, delivered=True, kept=KEPT)
    repeats = await asyncio.gather(*(ask(ledger) for _ in range(20)))
    assert {each.answer for each in repeats} == {KEPT}
    ledger.close()


async def test_it_is_there_after_a_restart(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    await executed(ledger)
    ledger.close()
    ledger = open_ledger(tmp_path, clock_us=ticking(T0 + 1_000_000))
    assert (await ask(ledger)).answer == KEPT
    ledger.close()


@pytest.mark.parametrize("delivered", [True, False])
async def test_an_answer_that_did_not_arrive_is_kept_too(tmp_path: Path, delivered: bool) -> None:
    ledger = open_ledger(tmp_path)
    first = await ask(ledger)
    ledger.record_outcome(first.entry.receipt_id, EXECUTED, 200, delivered=delivered, kept=KEPT)
    assert (await ask(ledger)).answer == KEPT
    ledger.close()


async def test_who_is_no_repeat_is_told_nothing(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    await executed(ledger)
    reused = RefundJudge("key", digest=OTHER_DIGEST, keeps=True)
    assert (await ledger.record(reused)).answer is None and reused.verdict is Verdict.REUSED
    assert (await ask(ledger, keeps=False)).answer is None
    assert (await ask(ledger, "other")).answer is None
    ledger.close()


@pytest.mark.parametrize(
    ("status", "facts", "kept"),
    [
        pytest.param(OutcomeStatus.UNKNOWN, {}, KEPT, id="an outcome that is not known"),
        pytest.param(OutcomeStatus.FAILED, {}, KEPT, id="a failure"),
        pytest.param(EXECUTED, {"source": "implicit"}, KEPT, id="a request without a key"),
        pytest.param(EXECUTED, {"conflict": "ch_1", "value": ""}, KEPT, id="a conflict key alone"),
        pytest.param(EXECUTED, {"ttl_us": 1}, KEPT, id="a key that is over already"),
        pytest.param(EXECUTED, {}, KeptAnswer(key=b"k", data=b"x"), id="a key of another size"),
        pytest.param(
            EXECUTED, {}, KeptAnswer(key=b"k" * 32, data=bytes(MAX_KEPT_BYTES + 1)), id="beyond the bound"
        ),
    ],
)
async def test_what_is_not_to_be_kept_is_not(
    tmp_path: Path, status: OutcomeStatus, facts: dict[str, Any], kept: KeptAnswer
) -> None:
    ledger = open_ledger(tmp_path)
    first = await ask(ledger, **facts)
    ledger.record_outcome(first.entry.receipt_id, status, 200, delivered=True, kept=kept)
    await ask(ledger, "later")
    ledger.close()
    with SqliteReader(tmp_path) as reader:
        said = [verify(row.jws, KEYS).statement for row in reader.export() if row.type == "outcome"]
        assert [each["status"] for each in said] == [status]
        assert not [each for each in said if "kept" in each]
        assert not list(reader._rows("SELECT id FROM answers"))
    assert report_of(tmp_path).is_clean


async def test_it_is_forgotten_when_its_key_is_over(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    await executed(ledger, ttl_us=60_000_000)
    await executed(ledger, "longer", ttl_us=DAY_US)
    await ask(ledger, "settled")
    ledger.close()
    ledger = open_ledger(tmp_path, clock_us=ticking(T0 + 120_000_000))
    late = RefundJudge("key", keeps=True, ttl_us=60_000_000)
    assert (await ledger.record(late)).answer is None and late.verdict is Verdict.FRESH
    await asyncio.gather(*(ask(ledger, f"k{n}") for n in range(FORGET_EVERY)))
    assert (await ask(ledger, "longer")).answer == KEPT
    ledger.close()
    with SqliteReader(tmp_path) as reader:
        assert len(list(reader._rows("SELECT id FROM answers"))) == 1
        kept = [bytes(row[0]) for row in reader._rows("SELECT data FROM sealed")]
        keys = [bytes(row[0]) for row in reader._rows("SELECT key FROM secrets")]
    assert kept == [KEPT.data] and sorted(keys) == [bytes(32), KEPT.key]
    assert report_of(tmp_path).is_clean


@pytest.mark.parametrize("how", ["by id", "by agent", "by retention"])
@pytest.mark.parametrize("sealed", [False, True], ids=["in clear", "sensitive"])
async def test_it_is_destroyed_with_the_input_of_its_permit(tmp_path: Path, how: str, sealed: bool) -> None:
    ledger = open_ledger(tmp_path)
    first = await executed(ledger, sealed=sealed)
    other = await executed(ledger, "other") if how == "by id" else ""
    assert (await ask(ledger)).answer == KEPT
    orders: dict[str, dict[str, Any]] = {
        "by id": {"ids": frozenset({first})},
        "by agent": {"agent": "refund-bot"},
        "by retention": {"action": RETENTION, "before_us": T0 + DAY_US},
    }
    assert await erase(tmp_path, ledger, **orders[how]) > 0
    again = await ask(ledger)
    assert (again.answer, again.entry.prior) == (None, first)
    assert (await ask(ledger, "other")).answer == (KEPT if other else None)
    assert await erase(tmp_path, ledger, **orders["by id"]) == (1 if how == "by retention" and sealed else 0)
    ledger.close()
    report = report_of(tmp_path)
    assert report.is_clean, report.problems


async def test_an_answer_that_came_after_the_order_is_kept_and_is_no_finding(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    first = (await ask(ledger)).entry.receipt_id
    assert await erase(tmp_path, ledger, ids=frozenset({first})) == 1
    ledger.record_outcome(first, EXECUTED, 200, delivered=True, kept=KEPT)
    assert (await ask(ledger)).answer == KEPT
    assert await erase(tmp_path, ledger, ids=frozenset({first})) == 1  # and that can be ordered, too
    assert (await ask(ledger)).answer is None
    ledger.close()
    assert report_of(tmp_path).is_clean


# --- what only one database's files can show: not for test_stores.py ---


def edit(folder: Path, sql: str, *values: Any) -> None:
    with sqlite3.connect(folder / "ledger.db") as db:
        db.execute(sql, values)


async def test_a13_ai4_an_edited_answer_is_a_finding(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    await executed(ledger)
    await ask(ledger)
    ledger.close()
    edit(tmp_path, "UPDATE sealed SET data = ?", KEPT.data + b"x")
    (problem,) = report_of(tmp_path).problems
    assert problem.startswith("leaf 1: the kept answer is not the one that came")


async def test_a13_an_answer_that_no_outcome_names_is_a_finding(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    await executed(ledger, kept=None)
    await ask(ledger)
    ledger.close()
    edit(tmp_path, "INSERT INTO sealed VALUES (1, ?)", KEPT.data)
    edit(tmp_path, "INSERT INTO secrets VALUES (1, zeroblob(16), ?)", KEPT.key)
    (problem,) = report_of(tmp_path).problems
    assert problem.startswith("leaf 1: outcome receipt with a permit or input beside it")


async def test_a13_an_answer_that_is_not_there_any_more_is_none(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    await executed(ledger)
    await ask(ledger)
    ledger.close()
    edit(tmp_path, "DELETE FROM sealed")
    assert report_of(tmp_path).is_clean


@pytest.mark.parametrize("how", ["by id", "by agent", "by retention"])
async def test_ai4_an_answer_that_was_not_destroyed_as_ordered_is_a_finding(tmp_path: Path, how: str) -> None:
    ledger = open_ledger(tmp_path)
    first = await executed(ledger)
    await ask(ledger)
    orders: dict[str, dict[str, Any]] = {
        "by id": {"ids": frozenset({first})},
        "by agent": {"agent": "refund-bot"},
        "by retention": {"action": RETENTION, "before_us": T0 + DAY_US},
    }
    await erase(tmp_path, ledger, **orders[how])
    ledger.close()
    edit(tmp_path, "INSERT INTO sealed VALUES (1, ?)", KEPT.data)
    edit(tmp_path, "UPDATE secrets SET key = ? WHERE idx = 1", KEPT.key)
    (problem,) = report_of(tmp_path).problems
    assert problem.startswith("leaf 1: the kept answer is still there")


async def test_se1_no_file_holds_the_key_of_an_answer_that_was_shredded(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    keys = [hashlib.sha256(b"%d" % number).digest() for number in range(300)]
    ids = [
        await executed(ledger, f"k{number}", kept=KeptAnswer(key=key, data=key[::-1] * 60))
        for number, key in enumerate(keys)
    ]
    await ask(ledger)
    erasure = Erasure(action=SHRED, ids=frozenset(ids[100:200]))
    erased = await ledger.erase(EraseOrder(erasure=erasure, count=100, by="local"))
    assert erased.out_of_files
    files = b"".join(path.read_bytes() for path in sorted(tmp_path.glob("ledger.db*")))
    assert [key in files for key in keys] == [not 100 <= n < 200 for n in range(300)]
    ledger.close()
    assert report_of(tmp_path).is_clean
