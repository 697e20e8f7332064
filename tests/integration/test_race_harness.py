"""kill -9 under contended load, against a vendor that forgives nothing: it executes whatever reaches it.

Many agents' threads send few keys, each with two bodies, about few accounts, under one budget; the gate is
killed 30 to 150 ms after it is ready, again and again. In between somebody asks the vendor and reconciles.
A checker that knows only the vendor's history, the receipts and what agents were told says what went wrong
(bank.py). The same load against a ledger with a planted bug must be caught. HOLDGATE_HARNESS_ROUNDS=400 is
the long form, by hand.
"""

from __future__ import annotations

import json
import os
import random
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bank import HOST, Bank, Said, banking, maps, sagas, transfer, violations
from behind import Bench
from holdgate.adapters.admin.shapes import decode_jws
from holdgate.adapters.control import ask
from holdgate.adapters.sqlite_reader import SqliteReader
from holdgate.demo.instance import Instance
from holdgate.ledger import State

pytestmark = pytest.mark.slow

ROUNDS = int(os.environ.get("HOLDGATE_HARNESS_ROUNDS", "4"))
CLIENTS, KEYS, ACCOUNTS = 8, 40, 12  # keys of one round
CAP = 12_000_000 * ROUNDS  # about a dozen transfers a round

# Every claim looks free: what a lost check of the table would do.
PLANTED = """\
import holdgate.ledger as ledger
ledger.attempt = lambda row, **_: (ledger.Verdict.FRESH, "", 0)
"""


def storm(gate: Instance, seed: int) -> list[Said]:
    """Agents send until the gate, which is killed under them, is gone; what they were told."""
    context = ssl.create_default_context(cafile=str(gate.state_dir / "ca" / "ca.pem"))
    killed, proxy = threading.Event(), gate.proxy

    def agent(number: int) -> list[Said]:
        rng, said = random.Random(seed * 100 + number), []
        while not killed.is_set():
            key = seed * KEYS + rng.randrange(KEYS)
            account = f"acct_{key % ACCOUNTS}"
            said.append(transfer(proxy, context, key, second=rng.random() < 0.5, account=account))
        return said

    with ThreadPoolExecutor(CLIENTS) as pool:
        agents = [pool.submit(agent, number) for number in range(CLIENTS)]
        # Agents need the first moments to connect; then the kill can fall anywhere in an exchange.
        time.sleep(0.25 + random.Random(seed).uniform(0.03, 0.15))
        gate.kill()
        killed.set()
        return [said for each in agents for said in each.result()]


def reconcile(gate: Instance, bank: Bank) -> int:
    """Ask the bank about every permit in doubt, and say so through the door that the command uses."""
    bank.settle()
    happened = {each.amount for each in bank.done}
    with SqliteReader(gate.state_dir) as reader:
        waiting = [reader.get(permit.receipt_id) for permit in reader.permits(State.UNKNOWN)]
    for stored in waiting:
        assert stored is not None
        amount = decode_jws(stored.jws)["actions"][0]["params"]["amount"]
        found = "executed" if amount in happened else "not_sent"
        ask(gate.state_dir, {"ask": "reconcile", "of": stored.id, "found": found, "note": ""})
    return len(waiting)


def run(folder: Path, rounds: int) -> tuple[list[str], int, int, str]:
    """(violations, executions, permits that were in doubt, what the audit says)."""
    said: list[Said] = []
    with banking() as bank:
        gate = Instance(folder, connect_to={f"{HOST}:443": f"127.0.0.1:{bank.port}"})
        maps(folder, CAP)
        bench, doubtful = Bench(gate, None, folder), 0  # type: ignore[arg-type]  # no vendors but the bank
        gate.start()
        for number in range(rounds):
            said += storm(gate, number)
            gate.start()  # every permit of the dead process is `unknown` before this returns
            doubtful += reconcile(gate, bank)
        gate.stop()
        bank.settle()
        exported = bench.holdgate("receipts", "export").stdout.splitlines()
        audit = bench.holdgate("log", "audit")
    found = violations(bank.done, [json.loads(line)["receipt"] for line in exported], CAP)
    return found + sagas(bank.done, said), len(bank.done), doubtful, audit.stdout if audit.returncode else ""


def test_kill_9_under_contention_doubles_nothing_and_keeps_every_promise(tmp_path: Path) -> None:
    found, executed, doubtful, audit = run(tmp_path, ROUNDS)
    print(f"{ROUNDS} kills, {executed} executions, {doubtful} reconciled")
    assert found == []
    assert audit == ""
    assert executed > 5, "the storm reached the bank"


def test_a_planted_bug_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = tmp_path / "planted"
    planted.mkdir()
    (planted / "sitecustomize.py").write_text(PLANTED)
    monkeypatch.setenv("PYTHONPATH", f"{planted}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    found, *_ = run(tmp_path / "gate", 1)
    assert any("was executed" in each for each in found), found
