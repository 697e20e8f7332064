"""A gate process and workers in one event loop, over a real socket and a real ledger."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from evidence import open_ledger
from holdgate import gate
from holdgate.adapters.admin.shapes import decode_jws
from holdgate.adapters.gate_line import GateLine, Petition
from holdgate.adapters.metrics import Metrics
from holdgate.adapters.sqlite import SqliteLedger
from holdgate.adapters.worker_door import WorkerDoor
from holdgate.adjudicate import Evidence
from holdgate.bundle import Bundle
from holdgate.case import Case
from holdgate.facts import Found, Lookup
from holdgate.surface.model import KeyRule, KeySource
from test_adjudicate import AGENT, BUNDLE, case, recognised


@dataclass
class GatePipeline:
    """What the door needs of the gate process's pipeline."""

    bundle: Bundle
    evidence: Evidence
    asked: list[Lookup] = field(default_factory=list)

    def clock(self) -> float:
        return 0.0

    async def facts(self, lookups: Any) -> Mapping[Lookup, Found]:
        self.asked += lookups
        return {}


@dataclass
class Gate:
    """The gate process's half."""

    folder: Path
    ledger: SqliteLedger
    door: WorkerDoor
    pipeline: GatePipeline

    def said(self) -> list[tuple[str, str]]:
        """(type, outcome or status) of every receipt, once everything queued is durable."""
        return [(s["type"], str(s.get("outcome") or s.get("status"))) for s in self.statements()]

    def statements(self) -> list[dict[str, Any]]:
        from holdgate.adapters.sqlite_reader import SqliteReader

        with SqliteReader(self.folder) as reader:
            return [decode_jws(stored.jws) for stored in reader.export()]


def start_gate(folder: Path, bundle: Bundle = BUNDLE, **change: Any) -> Gate:
    (folder / "run").mkdir(mode=0o700, exist_ok=True)
    nonce = secrets.token_bytes(1)[0] << 64  # receipts of two runs differ
    numbers = iter(range(nonce, nonce + 1_000_000))
    ledger = open_ledger(folder, nonce16=lambda: next(numbers).to_bytes(16, "little"))
    pipeline = GatePipeline(
        bundle,
        Evidence(
            signer=ledger.signer, issuer="test/log", node="n1", fleet_key=b"f" * 32, draw=secrets.token_bytes
        ),
    )
    values: dict[str, Any] = {
        "state_dir": folder,
        "pipeline": pipeline,
        "ledger": ledger,
        "agents": {AGENT.id: AGENT},
        "metrics": Metrics(),
        "decide_s": 1.0,
        "ca": "ca-1",
    }
    return Gate(folder, ledger, WorkerDoor(**(values | change)), pipeline)


@asynccontextmanager
async def running(folder: Path, **change: Any) -> AsyncIterator[Gate]:
    made = start_gate(folder, **change)
    await made.door.start()
    try:
        yield made
    finally:
        await made.door.stop()
        await asyncio.to_thread(made.ledger.close)


@dataclass
class Worker:
    """A worker's half: its line, and the bundles that it was told to use."""

    line: GateLine
    adopted: list[tuple[str, str]]
    task: asyncio.Task[None]

    async def record(self, given: Case, bundle: Bundle = BUNDLE) -> Any:
        return await self.line.record(petition(given, bundle))

    async def end(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


def petition(given: Case, bundle: Bundle = BUNDLE) -> Petition:
    nothing: Any = None
    return Petition(given, bundle, nothing, None, gate.ENGINE)


async def quick(_: float) -> None:
    await asyncio.sleep(0.001)


@asynccontextmanager
async def worker(folder: Path, role: str = "worker-1", *, wait: bool = True) -> AsyncIterator[Worker]:
    adopted: list[tuple[str, str]] = []

    async def adopt(bundle: str, ca: str) -> None:
        adopted.append((bundle, ca))

    line = GateLine(state_dir=folder, role=role, adopt=adopt, clock=lambda: 0.0, pause=quick)
    made = Worker(line, adopted, asyncio.ensure_future(line.run()))
    try:
        if wait:
            await asyncio.wait_for(line.adopted.wait(), 60)
        yield made
    finally:
        await made.end()


def keyed(number: int) -> Case:
    """A refund of its own key and digest."""
    rule = KeyRule(source=KeySource.NATIVE, value=f"key-{number}", ttl_s=60, provider=False)
    return case(recognised=replace(recognised(key=rule), digest=f"sha256:{number:064x}"))


async def until(holds: Any) -> None:
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.002)
