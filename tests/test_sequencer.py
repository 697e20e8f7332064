"""adapters/sequencer.py: the invariants in its docstring, and a crash at every line of a publication."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evidence import LOG_KEY, ORIGIN, OTHER_KEY, RefundJudge, open_ledger
from holdgate.adapters import durable, sequencer, tilestore
from holdgate.adapters.sequencer import CHECKPOINT, Sequencer, edge_of
from holdgate.adapters.sqlite_schema import unpack
from holdgate.adapters.sqlite_store import SqliteLeaves
from holdgate.adapters.store import StoreLost
from holdgate.errors import BackendError, ConfigError
from holdgate.note import Checkpoint, sign_checkpoint, verify_checkpoint
from holdgate.tiles import Edge, new_tiles
from holdgate.tlog import EMPTY, TlogError, Tree
from holdgate.tlogproof import parse_proof

PUBLISHED, COMMITTED = 250, 515  # the publication in between fills two tiles and starts a third


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory that died with 515 receipts committed and 250 published."""
    state = tmp_path_factory.mktemp("behind")
    asyncio.run(_fill(state, PUBLISHED))
    kept = tmp_path_factory.mktemp("kept") / "log"
    shutil.copytree(state / "log", kept)
    asyncio.run(_fill(state, COMMITTED))
    shutil.rmtree(state / "log")
    shutil.copytree(kept, state / "log")
    return state


async def _fill(state: Path, size: int) -> None:
    ledger = open_ledger(state)
    while ledger.size < size:
        # A key in use makes a SILENCE: no permit, so nothing to recover when it is opened again.
        await ledger.record(RefundJudge("one key"))
        if ledger.size == 1:
            ledger.close()  # the permit becomes unknown
            ledger = open_ledger(state)
    ledger.close()


def _head(state: Path) -> Tree:
    db = sqlite3.connect(f"file:{state / 'ledger.db'}?mode=ro", uri=True)
    size, hashes = db.execute("SELECT size, hashes FROM head").fetchone()
    db.close()
    return unpack(size, hashes)


def _checkpoint(state: Path) -> Checkpoint:
    return verify_checkpoint((state / CHECKPOINT).read_bytes(), ORIGIN, LOG_KEY.public)


def _sequencer(state: Path, **changes: Any) -> Sequencer:
    checkpoint = _checkpoint(state)
    facts: dict[str, Any] = {
        "state_dir": state,
        "origin": ORIGIN,
        "key": LOG_KEY,
        "edge": edge_of(state, checkpoint) or Edge.empty(),
        "signed": checkpoint.size,
        "head": lambda: _head(state),
        "leaves": lambda: SqliteLeaves(state),
        "failed": pytest.fail,
    }
    return Sequencer(**(facts | changes))


def _files(state: Path) -> dict[str, bytes]:
    log = state / "log"
    return {
        str(path.relative_to(log)): path.read_bytes()
        for path in log.rglob("*")
        if path.is_file() and path.suffix != ".new"
    }


@pytest.fixture
def state(behind: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(behind, tmp_path / "state"))


@pytest.fixture(scope="module")
def wanted(behind: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the log when nothing went wrong."""
    state = Path(shutil.copytree(behind, tmp_path_factory.mktemp("wanted") / "state"))
    _sequencer(state).publish()
    return _files(state)


def test_the_log_has_the_tiles_of_its_checkpoint_and_no_others(wanted: dict[str, bytes]) -> None:
    tiles = {name for name in wanted if name.startswith("tile/")}
    assert tiles == {tile.path for tile in new_tiles(0, COMMITTED)}


# --- SQ1 ---


def test_sq1_the_checkpoint_comes_after_its_tiles(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced: list[str] = []
    real = durable.replace_files

    def recording(files: Any) -> None:
        rows = list(files)
        real(rows)
        replaced.extend(str(path.relative_to(state / "log")) for path, _ in rows)

    monkeypatch.setattr(tilestore, "replace_files", recording)

    def checkpoint(path: Path, data: bytes) -> None:
        durable_now = set(replaced)
        assert {tile.path for tile in new_tiles(PUBLISHED, COMMITTED)} <= durable_now
        real([(path, data)])
        replaced.append("checkpoint")

    monkeypatch.setattr(sequencer, "replace_file", checkpoint)
    _sequencer(state).publish()
    assert replaced[-1] == "checkpoint"
    assert _checkpoint(state).size == COMMITTED


@pytest.mark.parametrize("reads", [1, 2, 3, 4])
def test_sq1_a_store_that_was_lost_while_leaves_were_read_costs_no_tile(
    state: Path, wanted: dict[str, bytes], reads: int
) -> None:
    lost_after = [reads]

    class Losing(SqliteLeaves):
        def read(self, start: int, end: int) -> Sequence[bytes]:
            lost_after[0] -= 1
            if lost_after[0] == -1:
                raise StoreLost("gone for a while")
            return super().read(start, end)

    following = _sequencer(state, leaves=lambda: Losing(state))
    with pytest.raises(StoreLost):
        following.publish()
    assert _checkpoint(state).size == PUBLISHED
    following.publish()
    assert _files(state) == wanted


# --- SQ2 ---


def test_sq2_a_smaller_tree_is_not_signed(state: Path) -> None:
    _sequencer(state).publish()
    note = (state / CHECKPOINT).read_bytes()
    smaller = Edge.empty().tree
    with pytest.raises(TlogError, match="515 receipts were signed, and the ledger has 0"):
        _sequencer(state, head=lambda: smaller).publish()
    assert (state / CHECKPOINT).read_bytes() == note


_EDITS = {
    "an edited receipt": "UPDATE receipts SET jws = CAST(jws || x'41' AS BLOB) WHERE idx = 300",
    "a removed receipt": "DELETE FROM receipts WHERE idx = 300",
    "a removed end": "DELETE FROM receipts WHERE idx > 400",
    "two receipts exchanged": "UPDATE receipts SET jws = (SELECT r.jws FROM receipts r"
    " WHERE r.idx = 701 - receipts.idx) WHERE idx IN (350, 351)",
}


@pytest.mark.parametrize("sql", _EDITS.values(), ids=_EDITS)
def test_sq2_a_tree_that_the_receipts_do_not_make_is_not_signed(state: Path, sql: str) -> None:
    note, head = (state / CHECKPOINT).read_bytes(), _head(state)
    db = sqlite3.connect(state / "ledger.db", isolation_level=None)
    db.execute(sql)
    db.close()
    with pytest.raises(TlogError):
        _sequencer(state, head=lambda: head).publish()
    assert (state / CHECKPOINT).read_bytes() == note


def test_sq2_nothing_new_signs_nothing(state: Path) -> None:
    following = _sequencer(state)
    following.publish()
    before = (state / CHECKPOINT).stat().st_mtime_ns
    following.publish()
    assert (state / CHECKPOINT).stat().st_mtime_ns == before


# --- SQ3 ---


@pytest.mark.parametrize("size", [PUBLISHED - 1, COMMITTED + 1], ids=["an older one", "a newer one"])
def test_sq3_a_checkpoint_that_somebody_else_wrote_stops_the_log(state: Path, size: int) -> None:
    following = _sequencer(state)
    other = sign_checkpoint(ORIGIN, Tree(size=size, hashes=(bytes(32),) * size.bit_count()), LOG_KEY)
    (state / CHECKPOINT).write_bytes(other)
    with pytest.raises(TlogError, match="not the one written last"):
        following.publish()
    (state / CHECKPOINT).unlink()
    with pytest.raises(TlogError, match="not the one written last"):
        following.publish()
    assert not (state / CHECKPOINT).exists()


async def test_sq3_it_stops_the_ledger_too(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    (tmp_path / CHECKPOINT).write_bytes(sign_checkpoint(ORIGIN, EMPTY, OTHER_KEY))
    await ledger.record(RefundJudge("a"))
    ledger._thread.join(10)
    assert not ledger.healthy
    with pytest.raises(BackendError, match="not the one written last"):
        await ledger.record(RefundJudge("b"))
    ledger.close()
    with pytest.raises(ConfigError, match="not signed by the log key"):
        open_ledger(tmp_path)


# --- SQ4 ---


class Killed(BaseException):
    pass


_MODULES = frozenset(module.__file__ for module in (durable, sequencer, tilestore))


def _killed_at(line: int, work: Callable[[], None]) -> bool:
    """Run `work`, dying at the `line`-th line that it executes in the log's modules; whether it got there."""
    left = line

    def trace(frame: Any, event: str, _: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in _MODULES:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                raise Killed
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except Killed:
        return True
    finally:
        sys.settrace(before)
    return False


def _crash_everywhere(behind: Path, tmp_path: Path, wanted: dict[str, bytes], step: int) -> int:
    line = crashes = 0
    while True:
        line += step
        state = Path(shutil.copytree(behind, tmp_path / str(line)))
        killed = _killed_at(line, _sequencer(state).publish)
        assert _checkpoint(state).size in (PUBLISHED, COMMITTED)
        _sequencer(state).publish()
        found = _files(state)
        # An old width may be left of a crash between checkpoint and pruning; everything else is the same.
        assert {name: found[name] for name in wanted} == wanted
        assert all(".p/" in name for name in found.keys() - wanted.keys())
        shutil.rmtree(state)
        if not killed:
            return crashes
        crashes += 1


def test_sq4_killed_at_many_lines_the_next_start_gets_to_the_same_log(
    behind: Path, tmp_path: Path, wanted: dict[str, bytes]
) -> None:
    assert _crash_everywhere(behind, tmp_path, wanted, step=61) > 4


@pytest.mark.slow
def test_sq4_killed_at_every_few_lines_the_next_start_gets_to_the_same_log(
    behind: Path, tmp_path: Path, wanted: dict[str, bytes]
) -> None:
    assert _crash_everywhere(behind, tmp_path, wanted, step=7) > 40


@pytest.mark.parametrize("lost", ["tile", "tile/0", "tile/entries/000.p", "tile/0/000.p/250"])
def test_sq4_lost_tiles_are_made_again(state: Path, wanted: dict[str, bytes], lost: str) -> None:
    path = state / "log" / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert edge_of(state, _checkpoint(state)) is None
    _sequencer(state).publish()
    assert _files(state) == wanted


@pytest.mark.parametrize("name", ["tile/0/000.p/250", "tile/entries/000.p/250"])
@pytest.mark.parametrize("position", [0, 700, -1])
def test_sq4_a_start_with_an_edited_tile_is_refused(state: Path, name: str, position: int) -> None:
    path = state / "log" / name
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
    with pytest.raises(ConfigError, match="tiles"):
        edge_of(state, _checkpoint(state))
    with pytest.raises(ConfigError, match="tiles"):
        open_ledger(state)


# --- SQ5 ---


def test_sq5_a_hand_over_is_one_checkpoint_that_both_keys_sign(state: Path) -> None:
    following = _sequencer(state)
    with pytest.raises(TlogError, match="went on after leaf 513"):
        following.hand_over(OTHER_KEY, COMMITTED - 2)
    for _ in range(2):  # as after a crash
        following.hand_over(OTHER_KEY, COMMITTED - 1)
        note = (state / CHECKPOINT).read_bytes()
        for key in (LOG_KEY, OTHER_KEY):
            assert verify_checkpoint(note, ORIGIN, key.public).size == COMMITTED
        kept = list((state / "log/changes").iterdir())
        proof = parse_proof(kept[0].read_bytes())
        assert len(kept) == 1 and (proof.index, proof.checkpoint) == (COMMITTED - 1, note)
        following = _sequencer(state)
        following.publish()


async def test_a_publication_that_does_not_end_is_not_healthy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = open_ledger(tmp_path)
    begun, go_on = threading.Event(), threading.Event()
    published = Sequencer.publish

    def hangs(self: Sequencer) -> None:
        begun.set()
        go_on.wait(20)
        published(self)

    monkeypatch.setattr(Sequencer, "publish", hangs)
    await ledger.record(RefundJudge("one"))
    assert await asyncio.to_thread(begun.wait, 20)
    assert ledger.healthy
    now = time.monotonic()
    with monkeypatch.context() as later:
        later.setattr(sequencer, "time", SimpleNamespace(monotonic=lambda: now + 11, sleep=time.sleep))
        assert not ledger.healthy
    go_on.set()
    await asyncio.to_thread(ledger.close)
