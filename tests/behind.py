"""A real `holdgate run` in front of stand-in vendors that count what reached them."""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
import subprocess
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier
from urllib.parse import urlencode

from holdgate.demo.instance import Instance
from holdgate.demo.recorder import Counts
from holdgate.demo.standins import StandIns

# The starter policies let only the agent `reconciler` read events.
READ_EVENTS = """\
apiVersion: holdgate/v1
kind: Policy
metadata: {name: event-reads, owner: payments-risk@example.com}
spec:
  surface: payments.read
  operations: [stripe.GetEvents]
  rules:
  - {id: another-agent, effect: permit, when: agent.id == "demo-agent" && params.object == "event"}
"""


@dataclass
class Bench:
    """The instance, the vendors, and agents as processes of their own that were not changed for us."""

    gate: Instance
    vendors: StandIns
    folder: Path

    def agent(self, script: str, *, env: dict[str, str] | None = None) -> str:
        """Run a Python agent behind the proxy; what it printed."""
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)],
            env=self.gate.client_env() | (env or {}),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    def run(self, *words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words,
            env=self.gate.client_env() | (env or {}),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def holdgate(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.gate.command(*words), capture_output=True, text=True, timeout=60, check=False
        )

    def state_files(self) -> dict[Path, bytes]:
        """All that the instance keeps, but its keys."""
        found = read_all(self.gate.state_dir)
        keys = [self.gate.state_dir / name for name in ("keys", "ca")]
        return {path: data for path, data in found.items() if not any(map(path.is_relative_to, keys))}

    def counts(self) -> dict[str, Counts]:
        return {name: self.vendors.counts(name) for name in self.vendors.recorders}


@dataclass(frozen=True)
class Said:
    status: int
    decision: str
    reason: str
    receipt: str
    policy: str
    body: bytes


def read_all(folder: Path) -> dict[Path, bytes]:
    """Every file below a folder, and its bytes, all of one look, though somebody is writing there.

    The log's writer puts a wider tile beside a partial one and then removes that: when a file was listed and
    is gone before it is read, look again.
    """
    for _ in range(100):
        with contextlib.suppress(FileNotFoundError):
            return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    raise AssertionError(f"{folder} did not keep still for as long as it takes to read it, a hundred times")


def post(
    gate: Instance, path: str, key: str = "", *, together: Barrier | None = None, **form: object
) -> Said:
    """One request of an agent, on a connection of its own; sent when all are connected."""
    context = ssl.create_default_context(cafile=str(gate.state_dir / "ca" / "ca.pem"))
    host, _, port = gate.proxy.partition(":")
    connection = http.client.HTTPSConnection(host, int(port), context=context, timeout=50)
    connection.set_tunnel("api.stripe.com", 443)
    headers = {"Authorization": "Bearer sk_test_demo", "Content-Type": "application/x-www-form-urlencoded"}
    if key:
        headers["Idempotency-Key"] = key
    try:
        connection.connect()
        if together is not None:
            together.wait(60)
        connection.request("POST", path, body=urlencode(form), headers=headers)
        answer = connection.getresponse()
        word, _, rest = answer.headers["Holdgate-Decision"].partition(";")
        said = dict(part.partition("=")[::2] for part in rest.split(";"))
        return Said(
            answer.status,
            word,
            said["reason"],
            said.get("id", "").strip('"'),
            said.get("policy", ""),
            answer.read(),
        )
    finally:
        connection.close()


def at_once(count: int, ask: Callable[[int, Barrier], Said]) -> list[Said]:
    """That many agents: `ask` is told which one it is, and what to wait at until all are connected."""
    together = Barrier(count)
    with ThreadPoolExecutor(count) as pool:
        return [each.result() for each in [pool.submit(ask, number, together) for number in range(count)]]


BUDGET = """\
apiVersion: holdgate/v1
kind: Policy
metadata: {name: refund-budget, owner: payments-risk@example.com}
spec:
  surface: payments.refund
  constants: {day_cap: DAY_CAP}
  counters:
    agent_refunds_day: {key: [agent.id], window: 24h, measure: sum(params.amount)}
  rules:
  - id: within-the-day
    effect: permit
    when: >-
      has(params.amount) && params.amount > 0
      && counters.agent_refunds_day.sum + params.amount <= constants.day_cap
"""


def give_budget(gate: Instance, day_cap: int) -> None:
    """Refunds of at most that much a day and agent, in place of the starter's policies for refunds."""
    for file in (gate.folder / "policies").glob("stripe_refunds*.yaml"):
        file.unlink()
    (gate.folder / "policies" / "refund_budget.yaml").write_text(BUDGET.replace("DAY_CAP", str(day_cap)))


def agree_on_one_refund(answers: list[Said], vendors: StandIns, intent: str) -> None:
    """All were told of the one refund that the vendor made, under one receipt."""
    made = [each for each in vendors.stripe.of_kind("refund") if each["payment_intent"] == intent]
    assert len(made) == 1
    assert {(each.status, each.decision) for each in answers} == {(200, "PERMIT")}
    assert {json.loads(each.body)["id"] for each in answers} == {made[0]["id"]}
    assert len({each.receipt for each in answers}) == 1
