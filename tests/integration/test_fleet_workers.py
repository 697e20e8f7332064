"""A fleet of two over PostgreSQL, one of them with `--workers 2`: one gate for agents all the same.

Retries meet across nodes and workers, an object that one node made is acted on at the other by what was
decided about it, and a worker that dies leaves what the other node then settles.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

import pgserver
from behind import READ_EVENTS, Bench, Said, post
from holdgate.demo.instance import Instance
from holdgate.demo.standins import StandIns

pytestmark = pytest.mark.slow

PARALLEL = 32


@pytest.fixture(scope="module")
def pair(vendors: StandIns, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Instance]]:
    """A node of four processes, and one of one."""
    with pgserver.server() as server:
        extra = f"store: {{url: '{server.database().urls[0]}', deadline_ms: 5000}}"
        there = vendors.connect_to()
        stripe = {name: address for name, address in there.items() if "stripe" in name}
        gates = [
            Instance(tmp_path_factory.mktemp(name), connect_to=stripe, extra=extra, node=name)
            for name in ("many", "single")
        ]
        many, single = gates
        for gate in gates:  # few maps start fast
            for folder in (gate.folder / "surfaces").iterdir():
                if folder.is_dir() and folder.name != "stripe":
                    shutil.rmtree(folder)
            for file in (gate.folder / "policies").glob("*.yaml"):
                if not file.name.startswith("stripe"):
                    file.unlink()
            (gate.folder / "policies" / "event_reads.yaml").write_text(READ_EVENTS)
        many.run_words = ("run", "--workers", "2")
        key = many.state_dir / "keys" / "fleet.key"
        (single.state_dir / "keys" / "fleet.key").write_bytes(key.read_bytes())
        try:
            for gate in gates:
                gate.start()
            whole(many)
            yield gates
        finally:
            for gate in gates:
                gate.kill()


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def pids(gate: Instance) -> dict[str, int]:
    """role -> pid, when all serve; else {}."""
    try:
        with urllib.request.urlopen(f"http://{gate.admin}/readyz", timeout=60):
            pass
        with urllib.request.urlopen(f"http://{gate.admin}/healthz", timeout=60) as answer:
            return {row["role"]: row["pid"] for row in json.load(answer)["processes"]}
    except OSError:
        return {}


def whole(gate: Instance) -> dict[str, int]:
    until(lambda: len(pids(gate)) == 4)
    return pids(gate)


def seen(vendors: StandIns) -> int:
    return vendors.counts("stripe").requests


@pytest.mark.parametrize("leads", [0, 1], ids=["a worker leads", "the single process leads"])
def test_identical_refunds_over_workers_and_nodes_reach_the_vendor_once_and_all_answers_agree(
    pair: list[Instance], vendors: StandIns, monkeypatch: pytest.MonkeyPatch, leads: int
) -> None:
    intent, before, together = vendors.stripe.charged(5000), seen(vendors), Barrier(PARALLEL)
    form = {"payment_intent": intent, "amount": 70}
    with monkeypatch.context() as slow, ThreadPoolExecutor(PARALLEL + 1) as pool:
        slow.setattr(vendors.stripe, "delay_s", 10.0)
        first = pool.submit(post, pair[leads], "/v1/refunds", f"same-{leads}", **form)
        until(lambda: seen(vendors) == before + 1)
        asked = [
            pool.submit(post, pair[n % 2], "/v1/refunds", f"same-{leads}", together=together, **form)
            for n in range(PARALLEL)
        ]
        said = {_told(each.result()) for each in (first, *asked)}
    assert len(said) == 1, said
    assert seen(vendors) == before + 1


def _told(said: Said) -> tuple[int, str, str, bytes]:
    return said.status, said.decision, said.receipt, said.body


@pytest.mark.parametrize(("makes", "confirms"), [(0, 1), (1, 0)], ids=["workers, single", "single, workers"])
def test_what_one_node_made_is_confirmed_at_the_other_by_what_was_decided(
    pair: list[Instance], vendors: StandIns, makes: int, confirms: int
) -> None:
    before = seen(vendors)
    made = post(pair[makes], "/v1/payment_intents", amount=1500, currency="usd", customer="cus_1")
    assert made.decision == "PERMIT", made
    intent = json.loads(made.body)["id"]
    done: list[Said] = []

    def confirmed() -> bool:
        # The outcome of the first step may be a commit behind its answer: SILENCE, and nothing was sent.
        done.append(post(pair[confirms], f"/v1/payment_intents/{intent}/confirm"))
        if done[-1].decision == "PERMIT":
            return True
        assert (done[-1].reason, seen(vendors)) == ("input_unavailable", before + 1)
        return False

    until(confirmed)
    assert (done[-1].status, seen(vendors)) == (200, before + 2)
    shown = Bench(pair[makes], vendors, pair[makes].folder).holdgate("receipts", "show", done[-1].receipt)
    assert made.receipt in shown.stdout, "it is bound to what the other node decided"


def test_what_nobody_of_the_fleet_made_is_confirmed_nowhere(pair: list[Instance], vendors: StandIns) -> None:
    foreign = vendors.stripe._intent({"amount": "100", "currency": "usd"})["id"]
    before = seen(vendors)
    for gate in pair:
        said = post(gate, f"/v1/payment_intents/{foreign}/confirm")
        assert (said.decision, said.reason) == ("SILENCE", "input_unavailable")
    assert seen(vendors) == before


def test_a_worker_that_dies_leaves_unknown_and_who_waits_at_the_other_node_hears_of_it(
    pair: list[Instance], vendors: StandIns, monkeypatch: pytest.MonkeyPatch
) -> None:
    many, single = pair
    intent, before = vendors.stripe.charged(1000), seen(vendors)
    form = {"payment_intent": intent, "amount": 5}
    with monkeypatch.context() as slow, ThreadPoolExecutor(2) as pool:
        slow.setattr(vendors.stripe, "delay_s", 20.0)
        dying = pool.submit(post, many, "/v1/refunds", "dies", **form)
        until(lambda: seen(vendors) == before + 1)
        waits = pool.submit(post, single, "/v1/refunds", "dies", **form)
        for role, pid in whole(many).items():
            if role.startswith("worker"):
                os.kill(pid, signal.SIGKILL)
        assert dying.exception() is not None
        # Unknown, and the vendor answers repeats of a key from its own store: forwarded as a replay.
        said = waits.result()
    assert (said.status, said.decision) == (200, "PERMIT")
    shown = Bench(single, vendors, single.folder).holdgate("receipts", "show", said.receipt)
    assert "replay_of" in shown.stdout
    refunds = vendors.stripe.of_kind("refund")
    assert [each["amount"] for each in refunds if each["payment_intent"] == intent] == [5]
    whole(many)


@pytest.mark.parametrize("asks", [0, 1], ids=["through workers", "through the other node"])
def test_a_vendor_is_asked_through_any_node_about_what_a_worker_left_in_doubt(
    pair: list[Instance], vendors: StandIns, asks: int
) -> None:
    many, single = pair
    bench = Bench(pair[asks], vendors, pair[asks].folder)
    file = bench.folder / "reconciler.yaml"
    file.write_text("hosts: {api.stripe.com: {authorization: Bearer rk_read}}\n")
    file.chmod(0o600)
    words = ("reconcile", "ask", "--credentials", str(file), "--proxy", pair[asks].proxy, "--json")
    bench.holdgate(*words)  # what earlier tests left
    intent = vendors.stripe.charged(1000)
    vendors.stripe.cuts = "after"
    try:
        said = post(many, "/v1/refunds", f"cut-{asks}", payment_intent=intent, amount=7)
    finally:
        vendors.stripe.cuts = ""
    assert (said.status, said.decision) == (502, "PERMIT")
    asked: list[dict[str, str]] = []

    def settled() -> bool:
        # The outcome may be a commit behind the answer: nothing is in doubt yet.
        asked.extend(json.loads(bench.holdgate(*words).stdout or "[]"))
        return bool(asked)

    until(settled)
    assert [(each["of"], each["status"]) for each in asked] == [(said.receipt, "reconciled")], asked
    assert bench.holdgate("reconcile", "list").stdout.count("rcpt_") == 0
    again = post(single, "/v1/refunds", payment_intent=intent, amount=8)
    assert (again.status, again.decision) == (200, "PERMIT"), "the claim on the intent is free"


def test_the_logs_of_both_are_clean_together(pair: list[Instance], vendors: StandIns) -> None:
    many, single = pair
    bench = Bench(many, vendors, many.folder)
    done = bench.holdgate("log", "audit", "--fleet", f"--state=single={single.state_dir}")
    assert (done.returncode, "note" in done.stdout) == (0, False), done.stdout + done.stderr
    replay = bench.holdgate("replay")
    assert replay.returncode == 0, replay.stdout + replay.stderr
