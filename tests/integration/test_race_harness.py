"""kill -9 under contended load, against a vendor that forgives nothing: it executes whatever reaches it.

Many agents' threads send few keys, each with two bodies, about few accounts, under one budget; the gate is
killed 30 to 150 ms after it is ready, again and again. In between somebody asks the vendor and reconciles.
A checker that knows only the vendor's history and the receipts says what went wrong. The same load against
a ledger with a planted bug must be caught. HOLDGATE_HARNESS_ROUNDS=400 is the long form, by hand.
"""

from __future__ import annotations

import asyncio
import http.client
import itertools
import json
import os
import random
import shutil
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from behind import Bench
from holdgate.adapters.admin.shapes import decode_jws
from holdgate.adapters.control import ask
from holdgate.adapters.sqlite_reader import SqliteReader
from holdgate.demo.instance import Instance
from holdgate.ledger import State

pytestmark = pytest.mark.slow

ROUNDS = int(os.environ.get("HOLDGATE_HARNESS_ROUNDS", "4"))
HOST, CLIENTS = "api.bank.test", 8
KEYS, ACCOUNTS = 40, 12  # keys of one round
CAP = 12_000_000 * ROUNDS  # about a dozen transfers a round

MAP = """\
apiVersion: holdgate/v1
kind: SurfaceMap
metadata: {name: bank, owner: tests@example.com}
spec:
  hosts: [api.bank.test]
  base: /v1
  principal: {from: header.authorization, as: bearer}
  defaults:
    body: {decode: json, content_types: [application/json]}
    idempotency: {from: header.idempotency-key, ttl: 24h, provider: false}
  operations:
  - id: Transfer
    match: {method: POST, path: /transfers}
    surface: bank.transfer
    effect: commit
    params:
      amount: {from: body.amount, type: int, min: 1, required: true, material: true}
      account: {from: body.account, type: string, required: true, material: true}
    conflict_key: [params.account]
"""
POLICY = f"""\
apiVersion: holdgate/v1
kind: Policy
metadata: {{name: bank, owner: tests@example.com}}
spec:
  surface: bank.transfer
  operations: [bank.Transfer]
  counters:
    transfers_day: {{key: [agent.id], window: 24h, measure: sum(params.amount)}}
  rules:
  - id: within-the-day
    effect: permit
    when: counters.transfers_day.sum + params.amount <= {CAP}
"""
# Every claim looks free: what a lost check of the table would do.
PLANTED = """\
import holdgate.ledger as ledger
ledger.attempt = lambda row, **_: (ledger.Verdict.FRESH, "", 0)
"""


@dataclass(frozen=True)
class Executed:
    key: str
    amount: int  # tells key and body
    account: str
    began: float
    ended: float


@dataclass
class Bank:
    """Executes every request that arrives, after a moment, whether or not anybody waits for the answer."""

    port: int = 0
    done: list[Executed] = field(default_factory=list)
    open: int = 0
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.open += 1
        task = asyncio.ensure_future(self._execute(request.headers["Idempotency-Key"], body))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        await asyncio.shield(task)
        return web.json_response({"ok": True})

    async def _execute(self, key: str, body: dict[str, Any]) -> None:
        began = time.time()
        await asyncio.sleep(random.uniform(0.0, 0.02))
        self.done.append(Executed(key, body["amount"], body["account"], began, time.time()))
        self.open -= 1

    def settle(self) -> None:
        end = time.monotonic() + 10
        while self.open:
            assert time.monotonic() < end, "the bank is stuck"
            time.sleep(0.01)


@contextmanager
def banking() -> Iterator[Bank]:
    bank, loop, ready = Bank(), asyncio.new_event_loop(), threading.Event()

    async def start() -> web.AppRunner:
        app = web.Application()
        app.router.add_post("/v1/transfers", bank.serve)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        bank.port = runner.addresses[0][1]
        ready.set()
        return runner

    def run() -> None:
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(start())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(10)
    try:
        yield bank
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def transfer(gate: Instance, context: ssl.SSLContext, rng: random.Random, round_: int) -> None:
    """One agent's request; whatever comes back, or nothing."""
    number = round_ * KEYS + rng.randrange(KEYS)
    amount = 1_000_000 + number * 10 + rng.randrange(2)  # two bodies under one key
    body = json.dumps({"amount": amount, "account": f"acct_{number % ACCOUNTS}"})
    headers = {
        "Authorization": "Bearer agent",
        "Content-Type": "application/json",
        "Idempotency-Key": f"key-{number}",
    }
    host, _, port = gate.proxy.partition(":")
    connection = http.client.HTTPSConnection(host, int(port), context=context, timeout=10)
    connection.set_tunnel(HOST, 443)
    try:
        connection.request("POST", "/v1/transfers", body=body, headers=headers)
        connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        pass
    finally:
        connection.close()


def storm(gate: Instance, bank: Bank, seed: int) -> None:
    """Agents send until the gate, which is killed under them, is gone."""
    context = ssl.create_default_context(cafile=str(gate.state_dir / "ca" / "ca.pem"))
    killed = threading.Event()

    def agent(number: int) -> None:
        rng = random.Random(seed * 100 + number)
        while not killed.is_set():
            transfer(gate, context, rng, seed)

    with ThreadPoolExecutor(CLIENTS) as pool:
        for number in range(CLIENTS):
            pool.submit(agent, number)
        # Agents need the first moments to connect; then the kill can fall anywhere in an exchange.
        time.sleep(0.25 + random.Random(seed).uniform(0.03, 0.15))
        gate.kill()
        killed.set()


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


def violations(executed: list[Executed], receipts: list[dict[str, Any]]) -> list[str]:
    """What the bank's history and the receipts say together, without knowing how it is done."""
    found = []
    for key, times in Counter(each.key for each in executed).items():
        if times > 1:
            found.append(f"{key} was executed {times} times")
    ordered = sorted(executed, key=lambda each: (each.account, each.began))
    for one, two in itertools.pairwise(ordered):
        if one.account == two.account and two.began < one.ended:
            found.append(f"two transfers of {one.account} at once")
    permits = [each for each in receipts if each.get("outcome") == "PERMIT"]
    permitted = Counter(each["actions"][0]["params"]["amount"] for each in permits)
    for amount, times in Counter(each.amount for each in executed).items():
        if permitted[amount] < times:
            found.append(f"{amount} was executed {times} times under {permitted[amount]} permits")
    if sum(each.amount for each in executed) > CAP:
        found.append("the budget is exceeded")
    outcomes: dict[str, list[str]] = {}
    for each in receipts:
        if each["type"] == "outcome":
            outcomes.setdefault(each["of"], []).append(each["status"])
    for permit in permits:
        if outcomes.get(permit["id"]) not in (
            *(["executed"], ["not_sent"], ["failed"]),
            ["unknown", "reconciled"],
        ):
            found.append(f"{permit['id']} ended as {outcomes.get(permit['id'])}")
    return found


def run(folder: Path, rounds: int) -> tuple[list[str], int, int, str]:
    """(violations, executions, permits that were in doubt, what the audit says)."""
    with banking() as bank:
        gate = Instance(folder, connect_to={f"{HOST}:443": f"127.0.0.1:{bank.port}"})
        for part, name, text in (("surfaces", "bank", MAP), ("policies", "bank", POLICY)):
            shutil.rmtree(folder / part)  # few files start fast
            (folder / part).mkdir()
            (folder / part / f"{name}.yaml").write_text(text)
        bench, doubtful = Bench(gate, None, folder), 0  # type: ignore[arg-type]  # no vendors but the bank
        gate.start()
        for number in range(rounds):
            storm(gate, bank, number)
            gate.start()  # every permit of the dead process is `unknown` before this returns
            doubtful += reconcile(gate, bank)
        gate.stop()
        bank.settle()
        rows = [
            json.loads(line)["receipt"] for line in bench.holdgate("receipts", "export").stdout.splitlines()
        ]
        audit = bench.holdgate("log", "audit")
        return violations(bank.done, rows), len(bank.done), doubtful, audit.stdout if audit.returncode else ""


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
