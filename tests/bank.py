"""A vendor that forgives nothing: a bank that executes whatever reaches it, and a checker of its history.

Many agents' threads send few keys, each with two bodies, about few accounts, under one budget. The checker
knows only what the bank executed, what the receipts say and what agents were told.
"""

from __future__ import annotations

import asyncio
import http.client
import itertools
import json
import random
import shutil
import ssl
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from histories import Answer, Call, is_linearizable

__all__ = ["HOST", "Bank", "Executed", "Said", "banking", "maps", "sagas", "transfer", "violations"]

HOST = "api.bank.test"
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
POLICY = """\
apiVersion: holdgate/v1
kind: Policy
metadata: {name: bank, owner: tests@example.com}
spec:
  surface: bank.transfer
  operations: [bank.Transfer]
  counters:
    transfers_day: {key: [agent.id], window: 24h, measure: sum(params.amount)}
  rules:
  - id: within-the-day
    effect: permit
    when: counters.transfers_day.sum + params.amount <= CAP
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
        end = time.monotonic() + 60
        while self.open:
            assert time.monotonic() < end, "the bank is stuck"
            time.sleep(0.01)


@contextmanager
def banking() -> Iterator[Bank]:
    bank, loop, ready = Bank(), asyncio.new_event_loop(), threading.Event()

    async def start() -> web.AppRunner:
        app = web.Application()
        app.router.add_post("/v1/transfers", bank.serve)
        runner = web.AppRunner(app, shutdown_timeout=1.0)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        bank.port = runner.addresses[0][1]
        return runner

    def run() -> None:
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(start())
        loop.call_soon(ready.set)
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


def maps(folder: Path, cap: int) -> None:
    """The bank's map and policy alone: few files start fast. `cap` is what one agent may move in a day."""
    for part, text in (("surfaces", MAP), ("policies", POLICY.replace("CAP", str(cap)))):
        shutil.rmtree(folder / part)
        (folder / part).mkdir()
        (folder / part / "bank.yaml").write_text(text)


@dataclass(frozen=True)
class Said:
    """What one agent was told; `receipt` tells answers that were shared."""

    key: str
    receipt: str
    call: Call


def transfer(proxy: str, context: ssl.SSLContext, number: int, *, second: bool, account: str) -> Said:
    """One agent's request: key `number`, with one of its two bodies."""
    amount = 1_000_000 + number * 10 + second
    body = json.dumps({"amount": amount, "account": account})
    headers = {
        "Authorization": "Bearer agent",
        "Content-Type": "application/json",
        "Idempotency-Key": f"key-{number}",
    }
    host, _, port = proxy.partition(":")
    connection = http.client.HTTPSConnection(host, int(port), context=context, timeout=60)
    connection.set_tunnel(HOST, 443)
    began, receipt, answer = time.monotonic(), "", Answer.DOUBT
    try:
        connection.connect()
    except (OSError, http.client.HTTPException):
        return Said(f"key-{number}", "", Call(began, time.monotonic(), amount, Answer.NOTHING))
    try:
        connection.request("POST", "/v1/transfers", body=body, headers=headers)
        response = connection.getresponse()
        response.read()
        decision = response.headers.get("Holdgate-Decision", "")
        receipt, answer = decision.partition('id="')[2].partition('"')[0], _answer(response.status, decision)
    except (OSError, http.client.HTTPException):
        pass
    finally:
        connection.close()
    return Said(f"key-{number}", receipt, Call(began, time.monotonic(), amount, answer))


def _answer(status: int, decision: str) -> Answer:
    if decision.startswith("PERMIT"):
        return Answer.EXECUTED if status == 200 else Answer.DOUBT
    for answer in (Answer.ALREADY, Answer.REUSED, Answer.PENDING):
        if f"reason={answer}" in decision:
            return answer
    if "reason=outcome_unknown" in decision:
        return Answer.PENDING
    # What could not be recorded, or came too late, may have held the key for a moment.
    return Answer.NOTHING if "reason=conflict" in decision or decision.startswith("DENY") else Answer.DOUBT


def violations(executed: list[Executed], receipts: list[dict[str, Any]], cap: int) -> list[str]:
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
    if sum(each.amount for each in executed) > cap:
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


def sagas(executed: list[Executed], said: Sequence[Said]) -> list[str]:
    """Keys whose answers no order of events explains."""
    done = {each.amount for each in executed}
    calls: dict[str, list[Call]] = defaultdict(list)
    shared: set[str] = set()
    for each in sorted(said, key=lambda each: each.call.began):
        call = each.call
        if call.answer is Answer.EXECUTED and each.receipt in shared:
            # It waited for the first and shares its answer.
            call = Call(call.began, call.ended, call.body, Answer.ALREADY)
        shared.add(each.receipt)
        calls[each.key].append(call)
    return [f"{key}: {found}" for key, found in calls.items() if not is_linearizable(found, done)]
