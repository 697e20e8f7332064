"""sqlite_erase.py: what is destroyed is in no file of the ledger any more, and nothing else is touched."""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from evidence import KEYS, LOG_KEYS, ORIGIN, T0, RefundJudge, nonces, open_ledger
from holdgate.adapters import sqlite_erase
from holdgate.adapters.sqlite import SqliteLedger, SqliteReader
from holdgate.audit import AuditReport, audit
from holdgate.erasure import RETENTION, SHRED, EraseOrder, Erasure
from holdgate.receipt import verify


def _files(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.glob("ledger.db*")))


def _secrets(folder: Path) -> dict[str, tuple[bytes, bytes]]:
    with SqliteReader(folder) as reader:
        rows = list(reader.export())
        kept = [(row.id, reader.stored(row.id)) for row in rows if row.type == "decision"]
    return {name: (stored.salt, stored.key) for name, stored in kept if stored is not None}


def _audit(folder: Path) -> AuditReport:
    with SqliteReader(folder) as reader:
        report = audit(reader.audit_input(), origin=ORIGIN, receipt_keys=KEYS, log_keys=LOG_KEYS)
        reader.end_audit()
        assert reader.integrity_problems() == ()
    return report


async def _erase(folder: Path, ledger: SqliteLedger, **facts: Any) -> tuple[int, bool]:
    erasure = Erasure(**({"action": SHRED} | facts))
    with SqliteReader(folder) as reader:
        count = reader.count_kept(erasure)
    erased = await ledger.erase(EraseOrder(erasure=erasure, count=count, by="local"))
    return count, erased.out_of_files


async def _record(ledger: SqliteLedger, number: int, *, sealed: bool, data: bytes = b"") -> str:
    inputs = b'{"x":"' + data + b'"}' if data else RefundJudge.__init__.__kwdefaults__["inputs"]
    recorded = await ledger.record(RefundJudge(f"k{number}", sealed=sealed, inputs=inputs))
    return recorded.entry.receipt_id


async def test_se1_no_file_holds_what_was_shredded(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    ids = await asyncio.gather(*(_record(ledger, n, sealed=n % 2 == 0) for n in range(600)))
    before = _secrets(tmp_path)
    files = _files(tmp_path)
    assert len(before) == 300 and all(key in files and salt in files for salt, key in before.values())
    doomed = ids[100:200]
    assert await _erase(tmp_path, ledger, ids=frozenset(doomed)) == (100, True)
    files = _files(tmp_path)
    for name, (salt, key) in before.items():
        assert (key in files, salt in files) == ((name not in doomed),) * 2
    ledger.close()
    report = _audit(tmp_path)
    assert (report.problems, report.inputs, report.destroyed) == ((), 500, 100)
    assert all(key not in _files(tmp_path) for name, (_, key) in before.items() if name in doomed)


async def test_se1_inputs_in_clear_and_large_ones_are_gone_too(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    needles = [secrets.token_hex(20).encode() for _ in range(40)]
    ids = []
    for number, needle in enumerate(needles):
        # Some spill to overflow pages. Their digest is not the receipt's, which does not matter here.
        data = needle * (1 if number % 2 else 200)
        ids.append(await _record(ledger, number, sealed=False, data=data))
    assert all(needle in _files(tmp_path) for needle in needles)
    assert (await _erase(tmp_path, ledger, ids=frozenset(ids[5:30])))[1]
    files = _files(tmp_path)
    assert [needle in files for needle in needles] == [not 5 <= n < 30 for n in range(40)]
    ledger.close()


async def test_se1_retention_takes_input_and_key_and_leaves_the_salt(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    for number in range(1200):
        await _record(ledger, number, sealed=number % 3 == 0)
    before = _secrets(tmp_path)
    with SqliteReader(tmp_path) as reader:
        rows = list(reader.export())
    cut = rows[700].iat_us
    old = {row.id for row in rows if row.iat_us < cut}
    count, _ = await _erase(tmp_path, ledger, action=RETENTION, before_us=cut)
    assert count == 700
    files = _files(tmp_path)
    for name, (salt, key) in before.items():
        assert key in files if name not in old else key not in files
        assert salt in files
    ledger.close()
    report = _audit(tmp_path)
    assert (report.problems, report.inputs, report.destroyed) == ((), 500, 700)
    with SqliteReader(tmp_path) as reader:
        admin = reader.newest_admin(RETENTION)
    assert admin is not None and verify(admin.jws, KEYS).statement["details"]["count"] == 700


async def test_se1_a_reader_in_a_snapshot_delays_it_and_does_not_hold_up_decisions(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    doomed = await _record(ledger, 1, sealed=True)
    (salt, key) = _secrets(tmp_path)[doomed]
    with sqlite3.connect(f"file:{tmp_path}/ledger.db?mode=ro", uri=True, isolation_level=None) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM head").fetchone()
        task = asyncio.create_task(_erase(tmp_path, ledger, ids=frozenset({doomed})))
        for number in range(2, 20):
            await asyncio.wait_for(_record(ledger, number, sealed=True), 20)
        assert not task.done() and key in _files(tmp_path)
        reader.execute("COMMIT")
    assert await asyncio.wait_for(task, 60) == (1, True)
    assert key not in _files(tmp_path) and salt not in _files(tmp_path)
    ledger.close()


async def test_se1_it_gives_up_on_a_reader_that_stays_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_erase, "_PATIENCE_S", 0.2)
    ledger = open_ledger(tmp_path)
    doomed = await _record(ledger, 1, sealed=True)
    with sqlite3.connect(f"file:{tmp_path}/ledger.db?mode=ro", uri=True, isolation_level=None) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM head").fetchone()
        assert await _erase(tmp_path, ledger, ids=frozenset({doomed})) == (1, False)
    with SqliteReader(tmp_path) as again:
        stored = again.stored(doomed)
        assert stored is not None and not stored.has_key and not stored.has_salt
    ledger.close()


async def test_se2_what_a_crash_interrupted_the_next_open_finishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = open_ledger(tmp_path)
    ids = [await _record(ledger, number, sealed=True) for number in range(30)]
    before = _secrets(tmp_path)
    monkeypatch.setattr(sqlite_erase, "_WINDOW", 10)
    steps = iter(range(100))

    def crash(self: sqlite_erase.SqliteEraser) -> None:
        if next(steps) == 2:
            raise OSError("killed")
        real(self)

    real = sqlite_erase.SqliteEraser._erase_window
    monkeypatch.setattr(sqlite_erase.SqliteEraser, "_erase_window", crash)
    await _erase(tmp_path, ledger, agent="refund-bot")
    ledger.close()
    left = [name for name in ids if any(_secrets(tmp_path)[name][1])]
    assert left == ids[20:]
    monkeypatch.setattr(sqlite_erase.SqliteEraser, "_erase_window", real)
    again = open_ledger(tmp_path, nonce16=nonces(), clock_us=iter(range(T0 + 10**9, T0 + 2 * 10**9)).__next__)
    await again.record(RefundJudge("wake"))
    while again._eraser.busy:
        await asyncio.sleep(0.01)
    files = _files(tmp_path)
    assert all(key not in files for _, key in before.values())
    again.close()
    report = _audit(tmp_path)
    assert (report.problems, report.destroyed, report.admin) == ((), 30, 1)


async def test_se3_what_is_not_covered_is_untouched(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    sealed = [await _record(ledger, number, sealed=number < 5) for number in range(10)]
    with SqliteReader(tmp_path) as reader:
        before = {name: reader.input(name) for name in sealed}
    assert all(before.values())
    assert (await _erase(tmp_path, ledger, ids=frozenset({sealed[2], sealed[7]})))[0] == 2
    assert (await _erase(tmp_path, ledger, surface="payments.refund", before_us=T0 + 1))[0] <= 1
    with SqliteReader(tmp_path) as reader:
        after = {name: reader.input(name) for name in sealed}
        assert reader.count_kept(Erasure(action=SHRED, ids=frozenset({sealed[2], sealed[7]}))) == 0
    gone = {name for name in sealed if after[name] is None}
    assert {sealed[2], sealed[7]} <= gone and len(gone) <= 3
    assert all(after[name] == before[name] for name in sealed if name not in gone)
    ledger.close()
