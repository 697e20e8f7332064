"""adapters/supervisor.py: what is started, when it is started again, and how it ends; time is a test's."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from holdgate.adapters.supervisor import GATE, Part, Supervisor, divided, reserve
from holdgate.backoff import Backoff
from holdgate.cli import main
from holdgate.config import Address
from holdgate.errors import ConfigError
from holdgate.limits import Limits
from workers import until


class FakeChild:
    """A process that says and does what a test wants."""

    def __init__(self, house: House, role: str, pid: int) -> None:
        self.house, self.role, self.pid = house, role, pid
        self.lines: asyncio.Queue[str] = asyncio.Queue()
        self.code: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.signals: list[int] = []
        self.stubborn = False

    def says(self, *lines: str) -> None:
        for line in lines:
            self.lines.put_nowait(line + "\n")

    def ends(self, code: int) -> None:
        if not self.code.done():
            self.code.set_result(code)
            self.lines.put_nowait("")

    async def line(self) -> str:
        return await self.lines.get()

    async def wait(self) -> int:
        return await self.code

    def send_signal(self, number: int) -> None:
        self.signals.append(number)
        self.house.signalled.append((self.role, number))
        if number == signal.SIGKILL or (number == signal.SIGTERM and not self.stubborn):
            self.ends(0 if number == signal.SIGTERM else -9)


class House:
    def __init__(self, folder: Path, workers: int = 2) -> None:
        self.started: list[FakeChild] = []
        self.signalled: list[tuple[str, int]] = []
        self.announced: list[Mapping[str, str]] = []
        self.waited: list[float] = []
        self.now = 0.0
        self.folder = folder
        self.supervisor = Supervisor(
            state_dir=folder,
            workers=workers,
            hold_s=0.0,
            spawn=self.spawn,
            announce=self.announced.append,
            clock=lambda: self.now,
            pause=self.pause,
            backoff=lambda: Backoff(first_s=1, most_s=4, settled_s=60),
        )
        self.task = asyncio.ensure_future(self.supervisor.run())

    async def spawn(self, role: str) -> FakeChild:
        self.started.append(FakeChild(self, role, 1000 + len(self.started)))
        return self.started[-1]

    async def pause(self, seconds: float) -> None:
        self.waited.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)

    async def child(self, role: str, number: int = 0) -> FakeChild:
        """The one of this role that was started as this number."""

        def found() -> list[FakeChild]:
            return [each for each in self.started if each.role == role]

        await until(lambda: len(found()) > number)
        return found()[number]

    async def complete(self) -> dict[str, FakeChild]:
        """All started and ready."""
        gate = await self.child(GATE)
        gate.says("admin 127.0.0.1:9", "ready")
        workers = [await self.child(f"worker-{n}") for n in (1, 2)]
        for each in workers:
            each.says("explicit 127.0.0.1:8", "ready")
        await until(lambda: self.announced)
        return {each.role: each for each in (gate, *workers)}

    def files(self) -> dict[str, int]:
        return {path.stem: int(path.read_text()) for path in (self.folder / "run").glob("*.pid")}


# --- SU1 ---


async def test_su1_ready_is_said_once_when_all_are(tmp_path: Path) -> None:
    house = House(tmp_path)
    gate = await house.child(GATE)
    await asyncio.sleep(0.01)
    assert [each.role for each in house.started] == [GATE]  # a gate that refuses to start is told of once
    gate.says("admin 127.0.0.1:9", "ready")
    one, two = await house.child("worker-1"), await house.child("worker-2")
    one.says("explicit 127.0.0.1:8", "ready")
    two.says("explicit 127.0.0.1:8")
    await asyncio.sleep(0.01)
    assert house.announced == []
    two.says("ready")
    await until(lambda: house.announced)
    assert house.announced == [{"admin": "127.0.0.1:9", "explicit": "127.0.0.1:8"}]
    two.ends(-9)
    (await house.child("worker-2", 1)).says("ready")
    await until(lambda: house.files().get("worker-2", 0) == house.started[-1].pid)
    assert len(house.announced) == 1
    house.supervisor.stop()
    assert await house.task == 0


# --- SU2 ---


@pytest.mark.parametrize("role", [GATE, "worker-1"])
async def test_su2_what_ends_is_started_again_later_each_time(tmp_path: Path, role: str) -> None:
    house = House(tmp_path)
    await house.complete()
    for number, wait in enumerate([1, 2, 4, 4]):
        (await house.child(role, number)).ends(1)
        await house.child(role, number + 1)
        assert house.waited[-1] == wait
    again = await house.child(role, 4)
    house.now += 60
    again.ends(-9)
    await house.child(role, 5)
    assert house.waited[-1] == 1
    assert [each.role for each in house.started].count(role) == 6
    assert len(house.started) == 3 + 5  # the others went on
    house.supervisor.stop()
    assert await house.task == 0


@pytest.mark.parametrize(
    ("role", "code", "told"),
    [
        pytest.param(GATE, 2, 2, id="a configuration that the gate process refuses"),
        pytest.param("worker-2", 2, 2, id="one that a worker refuses"),
        pytest.param("worker-1", -9, 1, id="a worker that was killed"),
        pytest.param(GATE, 0, 1, id="an end without a word"),
    ],
)
async def test_su2_what_ends_before_all_were_ready_ends_all(
    tmp_path: Path, role: str, code: int, told: int
) -> None:
    house = House(tmp_path)
    gate = await house.child(GATE)
    if role != GATE:
        gate.says("ready")
    (await house.child(role)).ends(code)
    assert await house.task == told
    assert house.announced == []
    assert all(each.code.done() for each in house.started)


async def test_su2_a_process_that_cannot_be_started_is_tried_again(tmp_path: Path) -> None:
    house = House(tmp_path)
    children = await house.complete()
    spawn, failed = house.spawn, []

    async def no_memory(role: str) -> FakeChild:
        if len(failed) < 2:
            failed.append(role)
            raise OSError(12, "Cannot allocate memory")
        return await spawn(role)

    house.supervisor.spawn = no_memory
    children["worker-1"].ends(-9)
    await house.child("worker-1", 1)
    assert failed == ["worker-1"] * 2
    house.supervisor.stop()
    await house.task


# --- SU3 ---


async def test_su3_workers_end_before_the_gate_process(tmp_path: Path) -> None:
    house = House(tmp_path)
    children = await house.complete()
    children["worker-2"].stubborn = True  # it drains
    house.supervisor.stop()
    await until(lambda: children["worker-1"].code.done())
    assert children[GATE].signals == []
    children["worker-2"].ends(0)
    assert await house.task == 0
    assert house.signalled[-1] == (GATE, signal.SIGTERM)


async def test_su3_what_does_not_end_in_time_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdgate.adapters.supervisor._STOP_S", 0.02)
    house = House(tmp_path)
    children = await house.complete()
    for child in children.values():
        child.stubborn = True
    house.supervisor.stop()
    assert await house.task == 0
    for child in children.values():
        assert child.signals[-1] == signal.SIGKILL


async def test_su3_nothing_is_started_again_while_it_stops(tmp_path: Path) -> None:
    house = House(tmp_path)
    children = await house.complete()
    children["worker-2"].stubborn = True
    house.supervisor.stop()
    await until(lambda: children["worker-1"].code.done())
    children[GATE].ends(-9)
    await asyncio.sleep(0.01)
    children["worker-2"].ends(0)
    assert await house.task == 0
    assert len(house.started) == 3


@pytest.mark.parametrize("role", [GATE, "worker-1"])
async def test_su3_what_was_being_started_when_all_were_told_to_stop_is_told_too(
    tmp_path: Path, role: str
) -> None:
    house = House(tmp_path)
    children = await house.complete()
    spawn, starting, go_on = house.spawn, asyncio.Event(), asyncio.Event()

    async def slow(which: str) -> FakeChild:
        starting.set()
        await go_on.wait()
        return await spawn(which)

    house.supervisor.spawn = slow
    children[role].ends(-9)
    await starting.wait()
    house.supervisor.stop()
    await until(lambda: all(each.code.done() for each in children.values() if each.role != GATE))
    go_on.set()
    assert await house.task == 0
    assert (await house.child(role, 1)).signals == [signal.SIGTERM]


async def test_sighup_is_for_the_gate_process(tmp_path: Path) -> None:
    house = House(tmp_path)
    children = await house.complete()
    house.supervisor.reload()
    assert house.signalled == [(GATE, signal.SIGHUP)]
    assert children["worker-1"].signals == []
    house.supervisor.stop()
    await house.task


# --- SU4 ---

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", '''
import time
from holdgate.adapters.syscalls import die_with_parent
die_with_parent()
print("tied", flush=True)
time.sleep(600)
'''], stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid, flush=True)
input()
"""


async def test_su4_what_it_started_ends_with_it(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    stat = Path(f"/proc/{pid}/stat")
    await until(lambda: not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z")
    parent.stdout.close()


def part(**change: Any) -> Part:
    values: dict[str, Any] = {
        "role": "worker-1",
        "workers": 2,
        "supervisor": os.getppid(),
        "explicit_port": 8080,
        "transparent_port": 0,
        "admin_port": 9090,
        "handed": (),
    }
    return Part(**(values | change))


def test_su4_a_part_whose_supervisor_has_ended_does_not_start(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    config = tmp_path / "holdgate.yaml"
    assert main(["init", str(tmp_path)]) == 0
    words = ["run", "-c", str(config), "--part", str(part(supervisor=gone.pid))]
    done = subprocess.run([sys.executable, "-m", "holdgate", *words], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, b"")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"role": "gate"}', "1"])
def test_a_part_that_nobody_told_is_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError, match="--part"):
        Part.parse(text)


def test_a_part_comes_out_as_it_went_in() -> None:
    given = part(handed=(3, 4))
    assert Part.parse(str(given)) == given


# --- SU5 ---


async def test_su5_pid_files_name_who_serves(tmp_path: Path) -> None:
    house = House(tmp_path)
    gate = await house.child(GATE)
    assert house.files() == {}
    gate.says("ready")
    one = await house.child("worker-1")
    assert house.files() == {"supervisor": os.getpid(), GATE: gate.pid}
    one.says("ready")
    two = await house.child("worker-2")
    two.says("ready")
    await until(lambda: house.announced)
    pids = {"supervisor": os.getpid(), GATE: gate.pid, "worker-1": one.pid, "worker-2": two.pid}
    assert house.files() == pids
    one.ends(-9)
    again = await house.child("worker-1", 1)
    assert "worker-1" not in house.files()
    again.says("ready")
    await until(lambda: house.files() == pids | {"worker-1": again.pid})
    house.supervisor.stop()
    await house.task
    assert house.files() == {}


# --- ports and limits ---


def config(**listen: Any) -> Any:
    wanted = {"explicit": None, "transparent": None, "dns": None} | listen
    return SimpleNamespace(
        listen=SimpleNamespace(**wanted),
        admin=SimpleNamespace(listen=Address(host="127.0.0.1", port=0)),
        path=Path("holdgate.yaml"),
        limits=Limits(),
    )


def test_ports_are_kept_and_only_by_one_instance() -> None:
    ports, kept = reserve(config(explicit=Address(host="127.0.0.1", port=0)), handed=False)
    assert ports["explicit"] > 0 < ports["admin"]
    taken = config(explicit=Address(host="127.0.0.1", port=ports["explicit"]))
    with pytest.raises(ConfigError, match="Address already in use"):
        reserve(taken, handed=False)
    for sock in kept:
        sock.close()


def test_a_transparent_listener_that_was_handed_over_is_not_bound_again() -> None:
    wanted = Address(host="127.0.0.1", port=8443)
    ports, kept = reserve(config(transparent=wanted), handed=True)
    assert ports["transparent"] == 8443
    assert len(kept) == 1  # admin
    kept[0].close()


def test_limits_that_do_not_divide_are_a_config_error() -> None:
    assert divided(config(), 2).in_flight == 256
    with pytest.raises(ConfigError, match="write at least 671088640"):
        divided(config(), 10)


@pytest.mark.parametrize("count", ["0", "-1", "65", "two", "1.5"])
def test_workers_is_a_small_number(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--workers", count]) == 2
    assert "--workers" in capsys.readouterr().err
