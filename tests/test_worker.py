"""adapters/worker.py: one proxy process behind a gate process that a test plays."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fakes import MemoryLedger
from holdgate.adapters.bundle_store import keep_bundle
from holdgate.adapters.ca import load_ca
from holdgate.adapters.gate_line import PLACE
from holdgate.adapters.supervisor import Part, divided
from holdgate.adapters.worker import Worker
from holdgate.adjudicate import Adjudication
from holdgate.bundle import NO_BUNDLE, load_bundle
from holdgate.config import load_config
from holdgate.demo.instance import Instance
from holdgate.errors import ConfigError
from holdgate.limits import Limits
from holdgate.worker_protocol import Frame, FrameReader, Kind, encode, read_case
from ports import free_port
from test_adjudicate import BUNDLE, EVIDENCE
from test_gate_line import recorded
from workers import until

DIGEST = "sha256:" + "55" * 32


class PlayedGate:
    """Listens where the gate process would, and says what a test says."""

    def __init__(self) -> None:
        self.heard: list[Frame] = []
        self.writer: asyncio.StreamWriter | None = None
        self.ended = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        frames, self.writer = FrameReader(), writer
        while data := await reader.read(65_536):
            self.heard += frames.feed(data)
        writer.close()
        self.ended.set()

    def say(self, frame: bytes) -> None:
        assert self.writer is not None
        self.writer.write(frame)

    async def hears(self, kind: Kind) -> Frame:
        await until(lambda: any(frame.kind is kind for frame in self.heard))
        return next(frame for frame in self.heard if frame.kind is kind)


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Instance:
    return Instance(tmp_path_factory.mktemp("worker"), connect_to={"api.stripe.com:443": "127.0.0.1:9"})


@asynccontextmanager
async def started(
    complete: Instance, stderr: int | None = None
) -> AsyncIterator[tuple[asyncio.subprocess.Process, PlayedGate, int]]:
    """A worker of this machine's, its gate and its port."""
    port, gate = free_port(), PlayedGate()
    run = complete.state_dir / "run"
    run.mkdir(exist_ok=True)
    (complete.state_dir / PLACE).unlink(missing_ok=True)
    server = await asyncio.start_unix_server(gate.serve, complete.state_dir / PLACE)
    part = Part(
        role="worker-1",
        workers=2,
        supervisor=os.getpid(),
        explicit_port=port,
        transparent_port=0,
        admin_port=9090,
        handed=(),
    )
    words = ["-m", "holdgate", "run", "-c", str(complete.config), "--part", str(part)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *words, stdout=asyncio.subprocess.PIPE, stderr=stderr
    )
    try:
        yield process, gate, port
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        server.close()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def kept(complete: Instance) -> tuple[str, str]:
    """The names of the bundle and the CA of this instance."""
    roots = {"surfaces": [complete.folder / "surfaces"], "policies": [complete.folder / "policies"]}
    bundle = load_bundle(**roots)
    keep_bundle(complete.state_dir, bundle, **roots)
    return bundle.digest, load_ca(complete.state_dir).fingerprint


async def test_wk1_nothing_listens_before_the_named_bundle_is_here(complete: Instance) -> None:
    bundle, ca = kept(complete)
    async with started(complete, stderr=asyncio.subprocess.PIPE) as (process, gate, port):
        assert process.stderr is not None
        assert (await gate.hears(Kind.HELLO)).head["role"] == "worker-1"
        assert not listens(port)
        gate.say(encode(Kind.WELCOME, bundle=DIGEST, ca=ca))  # one that was never kept
        await asyncio.wait_for(process.stderr.readuntil(b"was kept here; trying again"), 60)
        gate.say(encode(Kind.ACTIVE, bundle=bundle, ca="another"))
        await asyncio.wait_for(process.stderr.readuntil(b"not the CA that the gate process has"), 60)
        assert not listens(port)
        gate.say(encode(Kind.ACTIVE, bundle=bundle, ca=ca))
        assert (await gate.hears(Kind.READY)).head["bundle"] == bundle
        assert listens(port)


async def test_wk3_sigterm_closes_listeners_first_and_lets_held_requests_finish(complete: Instance) -> None:
    bundle, ca = kept(complete)
    async with started(complete) as (process, gate, port):
        await gate.hears(Kind.HELLO)
        gate.say(encode(Kind.WELCOME, bundle=bundle, ca=ca))
        await gate.hears(Kind.READY)
        # A request is held: its question is with the gate, which does not answer yet.
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET http://nowhere.test/ HTTP/1.1\r\nHost: nowhere.test\r\n\r\n")
        asked = await gate.hears(Kind.ASK)
        assert (asked.head["bundle"], asked.head["case"]["refusal"]) == (bundle, "unknown_destination")
        process.send_signal(signal.SIGTERM)
        await until(lambda: not listens(port))
        assert process.returncode is None
        agents = {rule.agent.id: rule.agent for rule in load_config(complete.config).agents}
        case = read_case(asked.head["case"], agents)
        made = await MemoryLedger().record(Adjudication(case, BUNDLE, EVIDENCE))
        gate.say(recorded(made.entry.jws, asked.head["n"]))
        answer = await asyncio.wait_for(reader.read(), 60)
        assert (
            answer.startswith(b"HTTP/1.1 403 Holdgate SILENCE") and made.entry.receipt_id.encode() in answer
        )
        assert await asyncio.wait_for(process.wait(), 60) == 0
        await gate.ended.wait()
        writer.close()


def half_a_worker(folder: Path) -> Any:
    """What Worker.adopt() changes."""
    adopted: list[Any] = []
    return SimpleNamespace(
        config=SimpleNamespace(state_dir=folder),
        pipeline=SimpleNamespace(bundle=NO_BUNDLE, vouches_for="as before"),
        agent_tls=SimpleNamespace(adopt=adopted.append),
        adopted=adopted,
    )


async def test_wk2_bundle_and_ca_are_taken_together_or_not_at_all(complete: Instance) -> None:
    bundle, ca = kept(complete)
    half = half_a_worker(complete.state_dir)
    for digest, fingerprint in ((bundle, "another"), (DIGEST, ca)):
        with pytest.raises(ConfigError):
            await Worker.adopt(half, digest, fingerprint)
        assert (half.pipeline.bundle, half.pipeline.vouches_for, half.adopted) == (
            NO_BUNDLE,
            "as before",
            [],
        )
    await Worker.adopt(half, bundle, ca)
    assert half.pipeline.bundle.digest == bundle
    assert (half.pipeline.vouches_for, len(half.adopted)) == (None, 1)
    await Worker.adopt(half, "", ca)  # the gate has none: everything is refused
    assert half.pipeline.bundle is NO_BUNDLE


async def test_wk2_a_kept_bundle_that_was_edited_is_not_used(complete: Instance) -> None:
    bundle, ca = kept(complete)
    path = complete.state_dir / "bundles" / f"{bundle.removeprefix('sha256:')}.json"
    whole = path.read_text()
    path.write_text(whole.replace("payments.refund", "payments.refunds", 1))
    half = half_a_worker(complete.state_dir)
    with pytest.raises(ConfigError, match="was changed"):
        await Worker.adopt(half, bundle, ca)
    assert half.pipeline.bundle is NO_BUNDLE
    path.write_text(whole)


@pytest.mark.parametrize("workers", [2, 3, 4])
def test_wk4_what_all_may_use_together_is_what_one_may(complete: Instance, workers: int) -> None:
    config = load_config(complete.config)
    whole, each = config.limits, divided(config, workers)
    for name in ("held_bytes", "in_flight", "connections_per_source", "refusals_per_agent_s"):
        assert 0 < getattr(each, name) * workers <= getattr(whole, name)
    changed = {
        name: getattr(whole, name)
        for name in ("held_bytes", "in_flight", "connections_per_source", "refusals_per_agent_s")
    }
    assert replace(each, **changed) == whole


def test_wk4_a_limit_below_the_number_of_workers_is_one_each() -> None:
    assert Limits(refusals_per_agent_s=1).divided(4).refusals_per_agent_s == 1
