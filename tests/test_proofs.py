"""adapters/proofs.py: proofs out of a state directory, and what happens when it is not what it was."""

from __future__ import annotations

import asyncio
import base64
import shutil
from pathlib import Path

import pytest

from evidence import LOG_KEY, ORIGIN, RefundJudge, open_ledger
from holdgate.adapters.proofs import NotCovered, log_verifier, prove, prove_consistency
from holdgate.adapters.sqlite_reader import SqliteReader
from holdgate.errors import ConfigError
from holdgate.note import sign_checkpoint, verify_checkpoint
from holdgate.tlog import EMPTY, TlogError, verify_consistency
from holdgate.tlogproof import parse_proof, verify_proof

SIZES = (3, 260)  # the first checkpoint, and the one after it


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A state directory with 260 receipts, and the checkpoint of its first 3."""
    state = tmp_path_factory.mktemp("proofs")
    notes = [asyncio.run(_grow(state, size)) for size in SIZES]
    return state, notes[0]


async def _grow(state: Path, size: int) -> bytes:
    ledger = open_ledger(state)
    while ledger.size < size:
        await ledger.record(RefundJudge(conflict="thing"))
    ledger.close()
    return (state / "log" / "checkpoint").read_bytes()


def _leaf(state: Path, index: int) -> bytes:
    with SqliteReader(state) as reader:
        return next(reader.export(index, 1)).jws


@pytest.mark.parametrize("index", [0, 1, 255, 256, 259])
def test_pf1_a_proof_from_disk_verifies(kept: tuple[Path, bytes], index: int) -> None:
    state, _ = kept
    leaf = _leaf(state, index)
    proof = parse_proof(prove(state, index, leaf))
    assert proof.index == index
    assert verify_proof(proof, leaf, log_verifier(state / "log" / "key.vkey")).size >= SIZES[1]


@pytest.mark.parametrize("name", ["tile/0/000", "tile/0/001.p/*", "tile/1/000.p/1", "key.vkey", "checkpoint"])
def test_pf1_damage_gives_no_proof(kept: tuple[Path, bytes], tmp_path: Path, name: str) -> None:
    state = Path(shutil.copytree(kept[0], tmp_path / "state"))
    leaf = _leaf(state, 258)
    for path in (state / "log").glob(name):
        data = bytearray(path.read_bytes())
        data[20] ^= 1
        path.write_bytes(data)
    with pytest.raises(ConfigError):
        # Leaf 1 needs the hashes of level 0's second tile, leaf 258 those of level 1 and its own.
        prove(state, 258, leaf)
        prove(state, 1, _leaf(state, 1))
    for path in (state / "log").glob(name):
        path.unlink()
    with pytest.raises(ConfigError):
        prove(state, 258, leaf)
        prove(state, 1, _leaf(state, 1))


def test_pf1_no_proof_of_another_leaf_or_of_one_to_come(kept: tuple[Path, bytes]) -> None:
    state, _ = kept
    with pytest.raises(ConfigError, match="not of this receipt"):
        prove(state, 5, _leaf(state, 6))
    with pytest.raises(NotCovered):
        prove(state, 10_000, b"")


def test_consistency_with_an_earlier_checkpoint_is_proved(kept: tuple[Path, bytes]) -> None:
    state, earlier = kept
    old = verify_checkpoint(earlier, ORIGIN, LOG_KEY.public)
    head, _, note = prove_consistency(state, earlier).partition(b"\n\n")
    lines = head.decode().split("\n")
    assert lines[0] == f"old {old.size}"
    new = verify_checkpoint(note, ORIGIN, LOG_KEY.public)
    path = [base64.b64decode(line) for line in lines[1:]]
    assert verify_consistency(old.size, old.root, new.size, new.root, path)
    assert prove_consistency(state, sign_checkpoint(ORIGIN, EMPTY, LOG_KEY)).startswith(b"old 0\n\n")


async def test_two_forks_of_one_backup_are_told_apart(tmp_path: Path) -> None:
    state, backup = tmp_path / "state", tmp_path / "backup"
    state.mkdir()
    await _grow(state, 5)
    shutil.copytree(state, backup)  # everything, checkpoint included: neither of the two can know
    for number, folder in enumerate((state, backup)):
        ledger = open_ledger(folder)
        await ledger.record(RefundJudge(f"fork {number}"))
        await ledger.record(RefundJudge(f"more {number}"))
        ledger.close()
    notes = [(folder / "log" / "checkpoint").read_bytes() for folder in (state, backup)]
    for folder, other in ((state, notes[1]), (backup, notes[0])):
        with pytest.raises(TlogError, match="does not begin with"):
            prove_consistency(folder, other)
    with pytest.raises(TlogError, match="were signed earlier"):
        ledger = open_ledger(state)
        await ledger.record(RefundJudge("longer"))
        ledger.close()
        prove_consistency(backup, (state / "log" / "checkpoint").read_bytes())
