"""What breaks around a running instance: disk, store, writer, too many and too large requests, lost agents.

Whatever it is: nothing reaches an upstream without a durable PERMIT, the agent is told, the process lives,
and after the repair the log is clean.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from byhand import MODEL, Answered, Gate, Peer, Port, asked, get, plain, tunnel
from holdgate.adapters.instance import Server
from holdgate.adapters.server import serve
from holdgate.config import load_config
from holdgate.demo.instance import Instance, InstanceError
from holdgate.demo.standins import StandIns

pytestmark = pytest.mark.slow

MIB = 1 << 20
HELD_BYTES = 32 * MIB
CONNECTION_BYTES = 256 << 10  # a reader of 128 KiB, one read of 64 on its way through TLS, and what it became
LOST = 12  # uploads that end early; together more than may be held
STRIPE = "api.stripe.com"


@pytest.fixture(scope="module")
def upstream() -> Iterator[Port]:
    """The model provider, served by each test as it likes. Stripe and the others are stand-ins."""
    port = Port()
    yield port
    port.close()


@pytest.fixture(scope="module")
def gate(upstream: Port, vendors: StandIns, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """One instance with small limits; whatever a test breaks, it repairs."""
    names = vendors.connect_to() | {f"{MODEL}:443": upstream.address}
    limits = f"limits: {{in_flight: 8, held_bytes: {HELD_BYTES}}}"
    with Instance(tmp_path_factory.mktemp("gate"), connect_to=names, extra=limits) as running:
        yield running


@pytest.fixture
def disk_gate(small_disk: Path, upstream: Port, vendors: StandIns) -> Iterator[Instance]:
    """An instance whose state directory is the small disk."""
    names = vendors.connect_to() | {f"{MODEL}:443": upstream.address}
    with Instance(small_disk, connect_to=names) as running:
        yield running


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder for an instance, with a state directory of 120 MiB."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root, to mount a small disk")
    state = tmp_path / "small" / "state"
    state.mkdir(mode=0o700, parents=True)
    words = ["mount", "-t", "tmpfs", "-o", "size=120m,mode=700", "none", str(state)]
    if subprocess.run(words, check=False).returncode != 0:
        pytest.skip("mount is not allowed here")
    yield state.parent
    subprocess.run(["umount", "-l", str(state)], check=True)


def fill(folder: Path, *, leave_bytes: int) -> Path:
    """Use the disk up but for `leave_bytes`."""
    file = folder / "state" / "filler"
    with file.open("wb") as out:
        while True:
            info = os.statvfs(file.parent)
            try:
                os.posix_fallocate(out.fileno(), 0, max(info.f_bavail * info.f_frsize - leave_bytes, 1))
            except OSError as error:  # the log's tiles were written in between: look again
                if error.errno != errno.ENOSPC:
                    raise
            else:
                return file


async def balance(gate: Gate) -> Answered:
    """A request that is permitted whenever anything is."""
    agent = await tunnel(gate, STRIPE)
    await agent.send(get("/v1/balance", name=STRIPE))
    answer = await agent.answer()
    agent.cut()
    return answer


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    deadline = time.monotonic() + 60
    while not await condition():
        assert time.monotonic() < deadline, f"not within a minute: {what}"
        await asyncio.sleep(0.02)


def status_of(gate: Instance, path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://{gate.admin}{path}", timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


async def not_ready(gate: Instance) -> bool:
    return await asyncio.to_thread(status_of, gate, "/readyz") == 503


def is_store_unavailable(answer: Answered) -> bool:
    return (answer.status, answer.reason) == (503, "store_unavailable") and "retry-after" in answer.headers


def receipts(gate: Instance) -> list[dict[str, Any]]:
    done = subprocess.run(gate.command("receipts", "export"), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [json.loads(line)["receipt"] for line in done.stdout.splitlines()]


def permits(gate: Instance) -> list[dict[str, Any]]:
    return [row for row in receipts(gate) if row.get("outcome") == "PERMIT"]


async def outcome(gate: Instance, receipt_id: str) -> dict[str, Any]:
    """The first outcome receipt of a permit; it may come a little after the answer."""
    found: list[dict[str, Any]] = []

    async def look() -> bool:
        rows = await asyncio.to_thread(receipts, gate)
        found[:] = [row for row in rows if row.get("of") == receipt_id]
        return bool(found)

    await until(look, f"an outcome of {receipt_id}")
    return found[0]


def audit_is_clean(gate: Instance) -> bool:
    done = subprocess.run(gate.command("log", "audit"), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return True


def rss_bytes(gate: Instance, name: str = "VmRSS") -> int:
    for line in Path(f"/proc/{gate.pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(name)


@contextmanager
def rss_grows_less_than(gate: Instance, bound_bytes: int) -> Iterator[None]:
    """The peak counts, not only what is left in the end."""
    Path(f"/proc/{gate.pid}/clear_refs").write_text("5")  # the peak starts again from here
    before = rss_bytes(gate)
    yield
    grown = rss_bytes(gate, "VmHWM") - before
    print(f"memory grew by {grown / MIB:.0f} MiB at most, of {bound_bytes / MIB:.0f}")
    assert grown < bound_bytes


# --- the disk ----------------------------------------------------------------------------------------


async def test_a_disk_that_is_nearly_full_is_silence_and_heals_by_itself(
    disk_gate: Instance,
    small_disk: Path,
    nothing_seen: Callable[[], AbstractContextManager[None]],
) -> None:
    gate = disk_gate
    assert (await balance(gate)).status == 200
    filler = fill(small_disk, leave_bytes=32 * MIB)
    with nothing_seen():
        assert is_store_unavailable(await balance(gate))
        assert await not_ready(gate)
        assert is_store_unavailable(await balance(gate))
    assert status_of(gate, "/healthz") == 200
    filler.unlink()
    assert (await balance(gate)).status == 200
    assert status_of(gate, "/readyz") == 200
    gate.stop()
    assert audit_is_clean(gate)


async def test_a_full_disk_is_silence_until_a_restart_that_says_what_is_unknown(
    disk_gate: Instance,
    small_disk: Path,
    upstream: Port,
    nothing_seen: Callable[[], AbstractContextManager[None]],
) -> None:
    gate = disk_gate
    arrived, go = asyncio.Event(), asyncio.Event()

    async def serve(peer: Peer) -> None:
        await peer.request()
        arrived.set()
        await go.wait()
        await peer.send(plain(b"{}"))

    async with upstream.serving(serve):
        agent = await tunnel(gate)
        await agent.send(asked())
        await asyncio.wait_for(arrived.wait(), 60)
        filler = fill(small_disk, leave_bytes=0)
        go.set()
        answer = await agent.answer()
        agent.cut()
    assert answer.status == 200, "what was permitted before is answered"
    await until(lambda: not_ready(gate), "its outcome could not be written")
    with nothing_seen():
        assert is_store_unavailable(await balance(gate))
    gate.stop()
    with pytest.raises(InstanceError, match="exit code 2"):
        gate.start()
    filler.unlink()
    gate.start()
    said = await outcome(gate, answer.receipt_id)
    assert said["status"] in ("unknown", "executed")
    assert (await balance(gate)).status == 200
    gate.stop()
    assert audit_is_clean(gate)


def move(*names: str) -> Callable[[Path], Callable[[], None]]:
    """Take files out of the state directory; what it returns puts them back."""

    def act(state: Path) -> Callable[[], None]:
        away = state.parent / "away"
        away.mkdir(exist_ok=True)
        for name in names:
            (state / name).rename(away / name.replace("/", "_"))

        def repair() -> None:
            for name in names:
                shutil.rmtree(state / name, ignore_errors=True)
                (away / name.replace("/", "_")).rename(state / name)

        return repair

    return act


def replaced(name: str) -> Callable[[Path], Callable[[], None]]:
    def act(state: Path) -> Callable[[], None]:
        repair = move(name)(state)
        (state / name).mkdir()
        return repair

    return act


def blocked(state: Path) -> Callable[[], None]:
    """Nothing can be made in the log's folder under the name that a new checkpoint has first."""
    (state / "log" / "checkpoint.new").mkdir()
    return (state / "log" / "checkpoint.new").rmdir


@pytest.mark.parametrize(
    "sabotage",
    [
        pytest.param(replaced("ledger.db"), id="the database is a directory"),
        pytest.param(move("ledger.db"), id="the database is gone"),
        pytest.param(move("ledger.db", "ledger.db-wal", "ledger.db-shm"), id="all of it is gone"),
        pytest.param(move("log"), id="the log's folder is gone"),
        pytest.param(blocked, id="a checkpoint cannot be written"),
    ],
)
async def test_a_state_directory_that_breaks_is_silence_until_it_was_repaired(
    gate: Instance,
    nothing_seen: Callable[[], AbstractContextManager[None]],
    sabotage: Callable[[Path], Callable[[], None]],
) -> None:
    assert (await balance(gate)).status == 200
    repair = sabotage(gate.state_dir)

    async def noticed() -> bool:
        await balance(gate)
        return await not_ready(gate)

    # What is permitted until then is durable: a moved file is noticed within 20 ms, a log that cannot be
    # written when the next checkpoint is due.
    await until(noticed, "the store was found to be broken")
    with nothing_seen():
        assert is_store_unavailable(await balance(gate))
        assert is_store_unavailable(await balance(gate))
    assert await not_ready(gate)
    assert status_of(gate, "/healthz") == 200
    gate.stop()
    repair()
    assert audit_is_clean(gate)
    gate.start()
    assert (await balance(gate)).status == 200


# --- the writer thread: an instance in this process, so that a test can get at it ------------------------


@dataclass(frozen=True)
class Inside:
    made: Instance
    server: Server
    proxy: str
    state_dir: Path

    @property
    def not_ready(self) -> str:
        return self.server.admin.not_ready()


@asynccontextmanager
async def inside(folder: Path, vendors: StandIns, **limits: object) -> AsyncIterator[Inside]:
    rows = ", ".join(f"{name}: {value}" for name, value in limits.items())
    made = Instance(folder, connect_to=vendors.connect_to(), extra=f"limits: {{{rows}}}" if rows else "")
    ready: asyncio.Future[Server] = asyncio.get_running_loop().create_future()
    umask = os.umask(0o077)
    task = asyncio.ensure_future(serve(load_config(made.config), ready=ready.set_result))
    try:
        server = await asyncio.wait_for(ready, 60)
        yield Inside(made=made, server=server, proxy=str(server.explicit), state_dir=made.state_dir)
        await server.drain()
        await asyncio.wait_for(task, 60)
    finally:
        os.umask(umask)
        task.cancel()


class Signer:
    """The real key, and whatever the test does first: it runs in the writer thread, inside a commit."""

    def __init__(self, real: Any, act: Callable[[], None]) -> None:
        self._real, self._act = real, act

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def sign(self, *arguments: Any) -> Any:
        self._act()
        return self._real.sign(*arguments)


def when_signing(server: Server, act: Callable[[], None]) -> None:
    evidence = server.pipeline.evidence
    signer: Any = Signer(evidence.signer, act)
    server.pipeline.evidence = replace(evidence, signer=signer)


def none(_value: object) -> None:
    return None


async def said(value: object) -> bool:
    return bool(value)


def die() -> None:
    raise SystemExit("killed by the test")


async def test_a_writer_thread_that_dies_is_silence_from_then_on(
    tmp_path: Path, vendors: StandIns, nothing_seen: Callable[[], AbstractContextManager[None]]
) -> None:
    async with inside(tmp_path, vendors) as gate:
        assert (await balance(gate)).status == 200 and gate.not_ready == ""
        real = gate.server.pipeline.evidence
        when_signing(gate.server, die)
        with nothing_seen():
            assert is_store_unavailable(await balance(gate))
            gate.server.pipeline.evidence = real  # no use: what is on disk is not known any more
            answers = await asyncio.gather(*(balance(gate) for _ in range(5)))
            assert all(is_store_unavailable(answer) for answer in answers)
        assert gate.not_ready
    async with inside(tmp_path, vendors) as gate:
        assert (await balance(gate)).status == 200


async def test_a_judge_that_raises_fails_its_own_request_only(
    tmp_path: Path, vendors: StandIns, nothing_seen: Callable[[], AbstractContextManager[None]]
) -> None:
    def fail() -> None:
        raise RuntimeError("by the test")

    async with inside(tmp_path, vendors) as gate:
        real = gate.server.pipeline.evidence
        when_signing(gate.server, fail)
        with nothing_seen():
            assert (await balance(gate)).status in (403, 503)
        gate.server.pipeline.evidence = real
        assert (await balance(gate)).status == 200 and gate.not_ready == ""


async def test_a_store_that_hangs_is_silence_at_the_hold_deadline_and_its_late_permit_is_void(
    tmp_path: Path, vendors: StandIns, nothing_seen: Callable[[], AbstractContextManager[None]]
) -> None:
    free = threading.Event()
    async with inside(tmp_path, vendors, hold_s=1) as gate:
        real = gate.server.pipeline.evidence
        when_signing(gate.server, lambda: none(free.wait(20)))
        with nothing_seen():
            started = time.monotonic()
            answer = await balance(gate)
            assert time.monotonic() - started < 5
            assert answer.status == 503 and answer.reason in ("store_unavailable", "gate_timeout")
            gate.server.pipeline.evidence = real
            free.set()
            refused = await tunnel(gate, "unknown.example.net")  # is recorded behind what hung
            await refused.send(get("/", name="unknown.example.net"))
            assert (await refused.answer()).reason == "unknown_destination"
            refused.cut()
        assert (await balance(gate)).status == 200 and gate.not_ready == ""
    rows = receipts(gate.made)
    made = [row["id"] for row in rows if row.get("outcome") == "PERMIT"]
    outcomes = {row["of"]: row["status"] for row in rows if row["type"] == "outcome"}
    assert [outcomes[each] for each in made] in (["executed"], ["not_sent", "executed"])
    assert audit_is_clean(gate.made)


async def test_an_agent_that_leaves_before_the_release_gets_nothing_sent(
    tmp_path: Path, vendors: StandIns, nothing_seen: Callable[[], AbstractContextManager[None]]
) -> None:
    signing, free = threading.Event(), threading.Event()
    async with inside(tmp_path, vendors) as gate:
        real = gate.server.pipeline.evidence

        def wait() -> None:
            signing.set()
            free.wait(20)

        when_signing(gate.server, wait)
        with nothing_seen():
            agent = await tunnel(gate, STRIPE)
            await agent.send(get("/v1/balance", name=STRIPE))
            assert await asyncio.to_thread(signing.wait, 20)
            agent.cut()
            layers = gate.server.addon.layers
            await until(lambda: said(all(each.link.gone for each in layers)), "the proxy noticed")
            gate.server.pipeline.evidence = real
            free.set()
            await until(lambda: said(gate.server.pipeline.in_flight == 0), "the hold ended")
        assert (await balance(gate)).status == 200
    rows = receipts(gate.made)
    made = [row["id"] for row in rows if row.get("outcome") == "PERMIT"]
    outcomes = {row["of"]: row["status"] for row in rows if row["type"] == "outcome"}
    assert [outcomes[each] for each in made] == ["not_sent", "executed"]


# --- too many, too large, too slow ------------------------------------------------------------------------


async def test_more_requests_than_the_limit_are_refused_and_those_below_it_served(
    gate: Instance, upstream: Port
) -> None:
    go = asyncio.Event()
    answers: list[Answered] = []

    async def serve(peer: Peer) -> None:
        await peer.request()
        await go.wait()
        await peer.send(plain(b"{}"))

    async def call() -> None:
        agent = await tunnel(gate)
        await agent.send(asked())
        answers.append(await agent.answer())
        agent.cut()
        if len(answers) == 192:
            go.set()

    before = upstream.accepted
    async with upstream.serving(serve):
        await asyncio.wait_for(asyncio.gather(*(call() for _ in range(200))), 60)
        assert upstream.accepted - before == 8
        refused, served = answers[:192], answers[192:]
        assert {(answer.status, answer.reason) for answer in refused} == {(503, "overloaded")}
        assert all(answer.receipt_id and "retry-after" in answer.headers for answer in refused)
        assert {answer.status for answer in served} == {200}
        await call()
    assert answers[-1].status == 200
    assert status_of(gate, "/readyz") == 200


async def test_large_bodies_together_are_bounded_and_the_rest_is_refused(
    gate: Instance, upstream: Port
) -> None:
    go = asyncio.Event()
    answers: list[Answered] = []
    data = asked(5 * MIB)

    async def serve(peer: Peer) -> None:
        await peer.head()
        await go.wait()  # nothing of the body is read meanwhile
        peer.cut()

    async def call() -> None:
        agent = await tunnel(gate)
        sending = asyncio.ensure_future(agent.send(data))
        answers.append(await agent.answer())  # a refusal comes while the body is still on its way
        sending.cancel()
        agent.cut()
        if len(answers) == 58:  # six bodies fit
            go.set()

    async with upstream.serving(serve):
        with rss_grows_less_than(gate, HELD_BYTES + 80 * MIB):
            await asyncio.wait_for(asyncio.gather(*(call() for _ in range(64))), 60)
    told = [(answer.status, answer.reason) for answer in answers]
    assert told.count((503, "overloaded")) == 58 and told.count((502, "permit_rule")) == 6
    assert all(answer.receipt_id for answer in answers)
    async with upstream.serving(answering):
        agent = await tunnel(gate)
        await agent.send(data)
        assert (await agent.answer()).status == 200, "what was held is given back"
        agent.cut()


async def test_a_thousand_bodies_of_a_megabyte_are_bounded_too(
    upstream: Port, vendors: StandIns, tmp_path: Path
) -> None:
    """None of them is ever complete: they are what an agent can hold here without being asked anything."""
    names = vendors.connect_to() | {f"{MODEL}:443": upstream.address}
    limits = f"limits: {{in_flight: 2000, held_bytes: {HELD_BYTES}, body_s: 60, refusals_per_agent_s: 5}}"
    before, data = upstream.accepted, asked(MIB)[:-1]
    agents: list[Peer] = []

    async def call(gate: Instance) -> Answered | None:
        agent = await tunnel(gate)
        agents.append(agent)
        sending = asyncio.ensure_future(agent.send(data))
        answer = asyncio.ensure_future(agent.answer())
        await asyncio.wait([sending, answer], return_when=asyncio.FIRST_COMPLETED)
        if sending.done() and not answer.done():
            await asyncio.wait([answer], timeout=5)  # a refusal in a flood takes a second
        if answer.done():
            sending.cancel()
            return answer.result()
        answer.cancel()
        return None

    with Instance(tmp_path, connect_to=names, extra=limits) as gate:
        with rss_grows_less_than(gate, HELD_BYTES + 80 * MIB + 1000 * CONNECTION_BYTES):
            at_once = asyncio.Semaphore(200)

            async def turn() -> Answered | None:
                async with at_once:
                    return await call(gate)

            told = await asyncio.wait_for(asyncio.gather(*(turn() for _ in range(1000))), 120)
        refused = [answer for answer in told if answer is not None]
        assert {(answer.status, answer.reason) for answer in refused} == {(503, "overloaded")}
        assert len(refused) >= 1000 - HELD_BYTES // (MIB - 1) and all(answer.receipt_id for answer in refused)
        for agent in agents:
            agent.cut()
        await until(lambda: serves(gate), "memory was given back")
        counted = [row.get("count", 1) for row in receipts(gate) if row.get("reason") == "overloaded"]
        assert sum(counted) >= len(refused) and len(counted) < len(refused) / 2
        assert audit_is_clean(gate)
    assert upstream.accepted == before


async def serves(gate: Instance) -> bool:
    return (await balance(gate)).status == 200


async def test_a_stream_does_not_keep_its_request_in_memory(gate: Instance, upstream: Port) -> None:
    data = asked(5 * MIB)

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        assert await peer.ended()

    async with upstream.serving(serve):
        with rss_grows_less_than(gate, 80 * MIB):
            agents = []
            for _ in range(24):  # 120 MiB of requests, whose answers all go on
                agents.append(await tunnel(gate))
                await agents[-1].send(data)
                first, _ = await agents[-1].head()
                assert first == "HTTP/1.1 200 OK" and await agents[-1].chunk() == b"data: 1\n\n"
        for agent in agents:
            agent.cut()


async def test_an_agent_that_does_not_read_costs_little_memory(gate: Instance, upstream: Port) -> None:
    piece, sent, ended = b"x" * 65_536, 0, asyncio.Event()

    async def serve(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (200 * MIB))
        try:
            while sent < 200 * MIB:
                peer.writer.write(piece)
                await peer.writer.drain()
                sent += len(piece)
        finally:
            ended.set()

    async def stalled() -> bool:
        before = sent
        await asyncio.sleep(0.3)
        return 0 < before == sent

    async with upstream.serving(serve):
        with rss_grows_less_than(gate, 60 * MIB):
            agent = await tunnel(gate)
            agent.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await agent.send(asked())
            await until(stalled, "the upstream was paused")
            assert sent < 60 * MIB
            others = await asyncio.gather(*(balance(gate) for _ in range(5)))
            assert {answer.status for answer in others} == {200}
            agent.cut()
            await asyncio.wait_for(ended.wait(), 60)
    assert (await balance(gate)).status == 200


# --- agents that leave ----------------------------------------------------------------------------------


async def answering(peer: Peer) -> None:
    await peer.request()
    await peer.send(plain(b"{}"))


async def test_an_agent_that_leaves_in_its_upload_leaves_a_receipt_and_no_memory(
    gate: Instance, upstream: Port
) -> None:
    before = upstream.accepted
    for _ in range(LOST):
        agent = await tunnel(gate)
        await agent.send(asked(5 * MIB)[: 3 * MIB])
        agent.cut()
    async with upstream.serving(answering):
        assert upstream.accepted == before

        async def fits() -> bool:
            agent = await tunnel(gate)
            await agent.send(asked(5 * MIB))
            answer = await agent.answer()
            agent.cut()
            return answer.status == 200

        await until(fits, "what the lost uploads held was given back")

    async def noted() -> bool:
        rows = await asyncio.to_thread(receipts, gate)
        lost = [row for row in rows if row.get("reason") == "malformed_request"]
        return len(lost) == LOST

    await until(noted, "each lost upload has its receipt")


@pytest.mark.parametrize(
    ("name", "request_bytes", "status"),
    [
        pytest.param(MODEL, asked(), "executed", id="a call that acts runs on"),
        pytest.param(MODEL, get("/v1/models"), "unknown", id="a read is given up"),
    ],
)
async def test_an_agent_that_leaves_while_its_request_is_on_its_way(
    gate: Instance, upstream: Port, name: str, request_bytes: bytes, status: str
) -> None:
    arrived, go = asyncio.Event(), asyncio.Event()

    async def serve(peer: Peer) -> None:
        await peer.request()
        arrived.set()
        if status == "unknown":
            assert await peer.ended()
        else:
            await go.wait()
            await peer.send(plain(b"{}"))

    async with upstream.serving(serve):
        agent = await tunnel(gate, name)
        await agent.send(request_bytes)
        await asyncio.wait_for(arrived.wait(), 60)
        agent.cut()
        if status == "executed":
            await until(lambda: gone_from(gate), "the proxy noticed")
        go.set()
        permit = (await asyncio.to_thread(permits, gate))[-1]
        assert (await outcome(gate, permit["id"]))["status"] == status
    assert (await balance(gate)).status == 200


async def gone_from(gate: Instance) -> bool:
    """Whether the kernel holds no connection of an agent to the proxy any more."""
    port = f":{int(gate.proxy.rpartition(':')[2]):04X} "
    rows = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return not [row for row in rows if port in row.split(" st ")[0][:40] and " 01 " in row]


async def test_an_agent_that_leaves_while_it_is_answered_ends_the_stream(
    gate: Instance, upstream: Port
) -> None:
    ended = asyncio.Event()

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        try:
            while True:
                await peer.send(b"data: 1\n\n")
                await asyncio.sleep(0.01)
        finally:
            ended.set()

    async with upstream.serving(serve):
        agent = await tunnel(gate)
        await agent.send(asked())
        await agent.head()
        assert await agent.chunk() == b"data: 1\n\n"
        agent.cut()
        await asyncio.wait_for(ended.wait(), 60)
    permit = (await asyncio.to_thread(permits, gate))[-1]
    assert (await outcome(gate, permit["id"]))["status"] == "executed"
    assert (await balance(gate)).status == 200


def test_after_all_of_this_the_log_is_clean(gate: Instance) -> None:
    assert gate.stop() == 0
    assert audit_is_clean(gate)
