"""`holdgate run --workers 2`: as one process for agents, and no death lets anything through or doubles it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from behind import Bench, Said, agree_on_one_refund, at_once, post
from holdgate.adapters.admin.shapes import decode_jws
from holdgate.adapters.control import ask
from holdgate.adapters.sqlite_reader import SqliteReader
from holdgate.demo.instance import Instance
from holdgate.demo.standins import StandIns

pytestmark = pytest.mark.slow

PARALLEL = 64


@pytest.fixture(scope="module")
def two(vendors: StandIns, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    gate = Instance(tmp_path_factory.mktemp("two"), connect_to=vendors.connect_to(), transparent=True)
    gate.run_words = ("run", "--workers", "2")
    with gate:
        yield gate


def health(gate: Instance) -> dict[str, int]:
    """role -> pid; {} while the gate process does not answer."""
    try:
        with urllib.request.urlopen(f"http://{gate.admin}/healthz", timeout=60) as answer:
            return {row["role"]: row["pid"] for row in json.load(answer)["processes"]}
    except OSError:
        return {}


def until(holds: Callable[[], Any], what: str) -> Any:
    """Wait for what a process does when it does it; the limit is for a machine that is busy."""
    limit = time.monotonic() + 120
    while not (found := holds()):
        assert time.monotonic() < limit, f"never: {what}"
        time.sleep(0.02)
    return found


def whole(gate: Instance) -> dict[str, int]:
    """The pids when every process serves."""

    def serving() -> dict[str, int] | None:
        found = health(gate)
        there = len(found) == 4 and all(pid_of(gate, role) == pid for role, pid in found.items())
        return found if there and ready(gate) else None

    found: dict[str, int] = until(serving, "supervisor, gate and two workers")
    return found


def ready(gate: Instance) -> bool:
    try:
        with urllib.request.urlopen(f"http://{gate.admin}/readyz", timeout=60) as answer:
            return bool(json.load(answer)["ready"])
    except OSError:
        return False


def pid_of(gate: Instance, role: str) -> int:
    try:
        return int((gate.state_dir / "run" / f"{role}.pid").read_text())
    except FileNotFoundError:
        return 0


def statements(gate: Instance) -> list[dict[str, Any]]:
    with SqliteReader(gate.state_dir) as reader:
        return [decode_jws(stored.jws) for stored in reader.export()]


def refund(gate: Instance, vendors: StandIns, key: str, amount: int = 5) -> Said:
    return post(gate, "/v1/refunds", key, payment_intent=vendors.stripe.charged(1000), amount=amount)


def seen(vendors: StandIns) -> int:
    return vendors.counts("stripe").requests


def test_roles_and_pids_are_in_healthz_and_in_files(two: Instance) -> None:
    found = whole(two)
    assert sorted(found) == ["gate", "supervisor", "worker-1", "worker-2"]
    assert found["supervisor"] == two.pid
    assert (ask(two.state_dir, {"ask": "status"}) or {})["pid"] == two.pid


def test_64_identical_refunds_over_two_workers_are_one_at_the_vendor_and_64_answers_agree(
    two: Instance, vendors: StandIns, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole(two)
    intent, before = vendors.stripe.charged(5000), seen(vendors)
    monkeypatch.setattr(vendors.stripe, "delay_s", 3.0)  # so that all come while the first is in flight
    form = {"payment_intent": intent, "amount": 700}
    answers = at_once(PARALLEL, lambda _, all_: post(two, "/v1/refunds", "w-64", together=all_, **form))
    agree_on_one_refund(answers, vendors, intent)
    assert seen(vendors) - before == 1


# --- deaths ---


@pytest.fixture
def slow(vendors: StandIns, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every answer of the vendor takes long enough for something to die meanwhile."""
    monkeypatch.setattr(vendors.stripe, "delay_s", 2.0)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


def in_flight(
    pool: ThreadPoolExecutor, two: Instance, vendors: StandIns, key: str, amount: int = 5
) -> Future[Said]:
    """A refund that the vendor has, and has not answered."""
    before = seen(vendors)
    asked = pool.submit(refund, two, vendors, key, amount)
    until(lambda: seen(vendors) == before + 1, "a refund at the vendor")
    return asked


def history(gate: Instance, key_amount: int) -> list[tuple[str, str]]:
    """What the log says of the refunds of this amount: the permit, then what became of it."""
    said = statements(gate)
    permits = {
        each["id"]
        for each in said
        if each["type"] == "decision"
        and any(action["params"].get("amount") == key_amount for action in each.get("actions", ()))
    }
    found = []
    for each in said:
        if each["id"] in permits:
            found.append((each["type"], each["outcome"]))
        elif each.get("of") in permits:
            found.append((each["type"], each["status"]))
    return found


def busy_worker(gate: Instance) -> int:
    """The worker that has the one connection of an agent."""
    port = int(gate.proxy.rpartition(":")[2])
    for role in ("worker-1", "worker-2"):
        pid = pid_of(gate, role)
        links = {os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir() if each.is_symlink()}
        if any(f"socket:[{inode}]" in links for inode in connections(port)):
            return pid
    return 0


def connections(port: int) -> list[str]:
    """The inodes of the established connections to this local port."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [row[9] for row in rows if row[3] == "01" and int(row[1].partition(":")[2], 16) == port]


def test_a_killed_worker_leaves_unknown_at_once_is_restarted_and_nothing_doubles(
    two: Instance, vendors: StandIns, slow: None, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = whole(two)
    intent = vendors.stripe.charged(1000)
    asked = pool.submit(post, two, "/v1/refunds", "dead-worker", payment_intent=intent, amount=11)
    victim = until(lambda: busy_worker(two), "a dispatch")
    until(lambda: history(two, 11), "its permit")
    seen_before = seen(vendors)
    os.kill(victim, signal.SIGKILL)
    with pytest.raises(OSError):
        asked.result()
    until(lambda: history(two, 11) == [("decision", "PERMIT"), ("outcome", "unknown")], "unknown")
    after = whole(two)
    changed = {role for role in before if before[role] != after[role]}
    assert {before[role] for role in changed} == {victim}
    monkeypatch.setattr(vendors.stripe, "delay_s", 0.0)
    again = post(two, "/v1/refunds", "dead-worker", payment_intent=intent, amount=11)
    assert (again.status, again.decision) == (200, "PERMIT")  # the vendor's own answer to a repeat
    assert len([r for r in vendors.stripe.of_kind("refund") if r["payment_intent"] == intent]) == 1
    assert seen(vendors) <= seen_before + 2


def test_without_the_gate_process_everything_is_silence_and_it_heals(
    two: Instance, vendors: StandIns, slow: None, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = whole(two)
    asked = in_flight(pool, two, vendors, "gate-dies", amount=12)
    seen_before = seen(vendors)
    os.kill(before["gate"], signal.SIGKILL)
    refused = refund(two, vendors, "meanwhile", amount=13)
    assert (refused.status, refused.decision, refused.reason) == (503, "SILENCE", "store_unavailable")
    assert seen(vendors) == seen_before
    assert asked.result().status == 200  # it was permitted, and its exchange goes on
    after = whole(two)
    assert {role for role in before if before[role] != after[role]} == {"gate"}
    monkeypatch.setattr(vendors.stripe, "delay_s", 0.0)
    until(
        lambda: (
            history(two, 12) == [("decision", "PERMIT"), ("outcome", "unknown"), ("outcome", "reconciled")]
        ),
        "the worker's outcome, after all",
    )
    assert history(two, 13) == []
    assert refund(two, vendors, "later", amount=14).status == 200


def test_while_a_worker_still_sends_nobody_finds_out_that_nothing_happened(
    two: Instance, vendors: StandIns, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate process alone died, and its successor knows only that the permit is in doubt."""
    before = whole(two)
    monkeypatch.setattr(vendors.stripe, "delay_s", 20.0)
    asked = in_flight(pool, two, vendors, "still-sent", amount=17)
    os.kill(before["gate"], signal.SIGKILL)
    until(lambda: history(two, 17) == [("decision", "PERMIT"), ("outcome", "unknown")], "unknown")
    after = whole(two)
    assert {role for role in before if before[role] != after[role]} == {"gate"}
    permit = [each["id"] for each in statements(two) if each.get("outcome") == "PERMIT"][-1]
    words = two.command("reconcile", "resolve", permit, "--status", "not_sent")
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and f"still has {permit}" in done.stderr
    assert asked.result().status == 200
    wanted = [("decision", "PERMIT"), ("outcome", "unknown"), ("outcome", "reconciled")]
    until(lambda: history(two, 17) == wanted, "the worker's outcome, after all")


def test_a_request_that_waits_for_the_gate_when_it_is_killed_is_silence(
    two: Instance, vendors: StandIns, pool: ThreadPoolExecutor
) -> None:
    before, seen_before = whole(two), seen(vendors)
    os.kill(before["gate"], signal.SIGSTOP)
    asked = [pool.submit(refund, two, vendors, f"held-{n}", 15) for n in range(4)]
    port = int(two.proxy.rpartition(":")[2])
    until(lambda: len(connections(port)) >= 4, "four connections")
    os.kill(before["gate"], signal.SIGKILL)
    for each in asked:
        said = each.result()
        assert (said.status, said.decision, said.reason) == (503, "SILENCE", "store_unavailable")
    assert seen(vendors) == seen_before
    whole(two)
    assert {what for what in history(two, 15)} <= {("decision", "PERMIT"), ("outcome", "unknown")}


def test_the_supervisors_death_ends_all_and_the_next_start_is_clean(
    two: Instance, vendors: StandIns, slow: None, pool: ThreadPoolExecutor, bench_two: Bench
) -> None:
    before = whole(two)
    asked = in_flight(pool, two, vendors, "all-die", amount=16)
    two.kill()
    until(lambda: not any(alive(pid) for pid in before.values()), "the end of all")
    with pytest.raises(OSError):
        asked.result()
    two.start()
    assert history(two, 16) == [("decision", "PERMIT"), ("outcome", "unknown")]
    done = bench_two.holdgate("log", "audit")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "clean"), done.stdout


@pytest.fixture
def bench_two(two: Instance, vendors: StandIns) -> Bench:
    return Bench(two, vendors, two.folder)


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def test_random_deaths_under_load_double_nothing(
    two: Instance, vendors: StandIns, bench_two: Bench, pool: ThreadPoolExecutor
) -> None:
    """Each key is retried until it is answered 200. The vendor forgets no key, and neither do we."""
    whole(two)
    intents = {f"r-{n}": vendors.stripe.charged(1000) for n in range(16)}
    counts: Counter[str] = Counter()

    def agent(keys: list[str]) -> None:
        for key in keys:
            until(lambda key=key: answered(key), f"an answer to {key}: {counts}")

    def answered(key: str) -> bool:
        try:
            said = post(two, "/v1/refunds", key, payment_intent=intents[key], amount=17)
        except (OSError, http.client.HTTPException):
            counts["cut"] += 1
            return False
        counts[said.reason] += 1
        return said.status == 200

    names = list(intents)
    agents = [pool.submit(agent, names[part::4]) for part in range(4)]
    victims = ["worker-1", "gate", "worker-2"]
    while victims and not all(each.done() for each in agents):
        time.sleep(0.3)
        if (pid := pid_of(two, victims[-1])) and alive(pid):
            os.kill(pid, signal.SIGKILL)
            victims.pop()
    for each in agents:
        each.result()
    made = Counter(each["payment_intent"] for each in vendors.stripe.of_kind("refund"))
    assert {made[intent] for intent in intents.values()} == {1}
    whole(two)
    done = bench_two.holdgate("log", "audit")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "clean"), done.stdout
    permitted = [each for each in statements(two) if each.get("outcome") == "PERMIT"]
    assert seen(vendors) <= len(permitted)


# --- reload and end ---


def test_sighup_reloads_and_every_request_is_decided_under_exactly_one_bundle(
    two: Instance, vendors: StandIns, pool: ThreadPoolExecutor
) -> None:
    whole(two)
    old = refund(two, vendors, "before-reload", 18).policy
    policy = two.folder / "policies" / "stripe_refunds.yaml"
    policy.write_text(policy.read_text() + "\n# another digest\n")
    os.kill(two.pid, signal.SIGHUP)
    said: list[Said] = []

    def is_new() -> bool:
        said.extend(
            each.result()
            for each in [pool.submit(refund, two, vendors, f"reload-{len(said)}-{n}", 18) for n in range(4)]
        )
        return all(each.policy != old for each in said[-4:])

    until(is_new, "the new bundle in both workers")
    assert {(each.status, each.decision) for each in said} == {(200, "PERMIT")}
    assert len({each.policy for each in said} - {old}) == 1


def test_a_second_instance_on_the_port_does_not_start(two: Instance, tmp_path: Path) -> None:
    whole(two)
    other = Instance(tmp_path / "other", connect_to={"api.stripe.com:443": "127.0.0.1:9"})
    text = other.config.read_text()
    other.config.write_text(text.replace("explicit: 127.0.0.1:0", f"explicit: {two.proxy}"))
    other.run_words = ("run", "--workers", "2")
    with pytest.raises(Exception, match="Address already in use"):
        other.start()


def test_sigterm_drains(two: Instance, vendors: StandIns, slow: None, pool: ThreadPoolExecutor) -> None:
    before = whole(two)
    asked = in_flight(pool, two, vendors, "drained", amount=19)
    assert two.stop() == 0
    assert asked.result().status == 200
    assert not any(alive(pid) for pid in before.values())
    assert list((two.state_dir / "run").glob("*.pid")) == []
    assert history(two, 19) == [("decision", "PERMIT"), ("outcome", "executed")]
