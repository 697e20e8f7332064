"""Three real instances over one PostgreSQL behave as one: one refund at the vendor, one budget.

What an agent does at one node is known at the others; a node that dies leaves `unknown`, which another
settles; a database that dies stops all of them, and all of them go on when it is back.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

import pgserver
from behind import Said, at_once, give_budget, post
from holdgate.audit_fleet import NO_DIRECTORY
from holdgate.cli import fleet_audit, main
from holdgate.demo.instance import Instance
from holdgate.demo.standins import StandIns

pytestmark = pytest.mark.slow

NODES = ("edge-1", "edge-2", "edge-3")
PARALLEL = 64


def refund(gate: Instance, key: str, together: Barrier | None = None, **form: object) -> Said:
    return post(gate, "/v1/refunds", key, together=together, **form)


def command(gate: Instance, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(gate.command(*words), capture_output=True, text=True, timeout=120, check=False)


def ready(gate: Instance) -> int:
    try:
        with urllib.request.urlopen(f"http://{gate.admin}/readyz", timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def store_of(gate: Instance) -> str:
    """Its `store:`, URL first."""
    (line,) = [line for line in gate.config.read_text().splitlines() if line.startswith("store:")]
    return line.split("'")[1]


def until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def server() -> Iterator[pgserver.Server]:
    with pgserver.server() as running:
        yield running


@pytest.fixture(scope="module")
def fleet(
    server: pgserver.Server, vendors: StandIns, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Instance]]:
    settings = server.database()
    store = f"store: {{url: '{settings.urls[0]}', deadline_ms: 5000, engine: {settings.engine}}}"
    gates: list[Instance] = []
    for node in NODES:
        gate = Instance(
            tmp_path_factory.mktemp(node), connect_to=vendors.connect_to(), extra=store, node=node
        )
        give_budget(gate, 2000)
        gates.append(gate)
    # One fleet has one fleet key: claims are named under it.
    key = gates[0].state_dir / "keys" / "fleet.key"
    for gate in gates[1:]:
        (gate.state_dir / "keys" / "fleet.key").write_bytes(key.read_bytes())
    try:
        for gate in gates:
            gate.start()
        yield gates
    finally:
        for gate in gates:
            gate.kill()


def made(vendors: StandIns, intent: str) -> list[int]:
    return [each["amount"] for each in vendors.stripe.of_kind("refund") if each["payment_intent"] == intent]


def test_64_identical_refunds_at_three_nodes_reach_the_vendor_once(
    fleet: list[Instance], vendors: StandIns, monkeypatch: pytest.MonkeyPatch
) -> None:
    intent = vendors.stripe.charged(5000)
    before = vendors.counts("stripe").requests
    monkeypatch.setattr(vendors.stripe, "delay_s", 12.0)  # all come while the first is in flight
    form = {"payment_intent": intent, "amount": 70}
    said = at_once(PARALLEL, lambda n, together: refund(fleet[n % 3], "same-64", together, **form))
    answers = {(one.status, one.reason, said.count(one)) for one in said}
    assert made(vendors, intent) == [70]
    assert vendors.counts("stripe").requests - before == 1
    assert answers == {(200, "permit_rule", 64)}, "one answer under one receipt, whichever node was asked"


def test_one_charge_has_one_open_refund_wherever_it_is_asked_for(
    fleet: list[Instance], vendors: StandIns, monkeypatch: pytest.MonkeyPatch
) -> None:
    intent = vendors.stripe.charged(5000)

    def ask(n: int, together: Barrier) -> Said:
        return refund(fleet[n % 3], f"c-{n}", together, payment_intent=intent, amount=11 + n)

    with monkeypatch.context() as slow:
        slow.setattr(vendors.stripe, "delay_s", 8.0)
        answers = Counter((each.status, each.reason) for each in at_once(9, ask))
    assert answers == {(200, "permit_rule"): 1, (409, "conflict"): 8}
    assert len(made(vendors, intent)) == 1


def test_a_key_is_known_at_every_node(fleet: list[Instance], vendors: StandIns) -> None:
    intent = vendors.stripe.charged(5000)
    assert refund(fleet[0], "known", payment_intent=intent, amount=30).decision == "PERMIT"
    other = refund(fleet[1], "known", payment_intent=intent, amount=31)
    assert (other.status, other.decision, other.reason) == (422, "DENY", "idempotency_key_reused")
    assert made(vendors, intent) == [30]


def test_the_budget_is_the_fleets(fleet: list[Instance], vendors: StandIns) -> None:
    intents = [vendors.stripe.charged(1000) for _ in range(45)]
    before = sum(each["amount"] for each in vendors.stripe.of_kind("refund"))
    with ThreadPoolExecutor(15) as pool:
        asked = [
            pool.submit(refund, fleet[n % 3], f"b-{n}", payment_intent=intent, amount=90)
            for n, intent in enumerate(intents)
        ]
        answers = Counter(each.result().decision for each in asked)
    total = sum(each["amount"] for each in vendors.stripe.of_kind("refund"))
    assert answers["PERMIT"] == (2000 - before) // 90
    assert 2000 - 90 < total <= 2000


def test_a_node_that_dies_is_settled_by_another_and_then_by_itself(
    fleet: list[Instance], server: pgserver.Server, vendors: StandIns, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, three = fleet
    intent = vendors.stripe.charged(1000)
    with monkeypatch.context() as slow, ThreadPoolExecutor(1) as pool:
        slow.setattr(vendors.stripe, "delay_s", 20.0)
        asked = pool.submit(refund, three, "dies", payment_intent=intent, amount=1)
        name = store_of(one).rpartition("/")[2].partition("?")[0]
        count = "SELECT count(*) FROM holdgate.permits WHERE state = 'dispatching'"
        until(lambda: asked.done() or server.sql(count, name) == "1")
        assert not asked.done(), asked.result()
        three.kill()
        assert isinstance(asked.exception(), OSError | http.client.HTTPException)
    assert refund(one, "other", payment_intent=intent, amount=1).reason == "conflict"
    found: list[dict[str, str]] = []

    def listed() -> bool:
        waiting = json.loads(command(one, "reconcile", "list", "--json").stdout)
        found[:] = [each for each in waiting if each["node"] == "edge-3"]
        return bool(found)

    until(listed)  # at once, or when its lease is over
    (mine,) = found
    cut_off = command(two, "reconcile", "resolve", mine["id"], "--status", "executed")
    assert (cut_off.returncode, "--node-stopped" in cut_off.stderr) == (1, True)
    done = command(two, "reconcile", "resolve", mine["id"], "--status", "executed", "--node-stopped")
    assert done.returncode == 0, done.stderr
    three.start()
    for gate in fleet:
        audit = command(gate, "log", "audit")
        assert audit.returncode == 0, audit.stdout + audit.stderr
    given = (f"--state=edge-3={three.state_dir}", f"--keys=edge-1=http://{one.admin}/.well-known/jwks.json")
    whole = command(two, "log", "audit", "--fleet", *given, "--json")
    assert whole.returncode == 0, whole.stdout + whole.stderr
    notes = {node["node"]: node["notes"] for node in json.loads(whole.stdout)["nodes"]}
    assert notes == {"edge-1": [NO_DIRECTORY], "edge-2": [], "edge-3": []}
    assert "no keys of it" in command(two, "log", "audit", "--fleet").stdout
    wrong = command(two, "log", "audit", "--fleet", f"--state=edge-1={three.state_dir}")
    assert (wrong.returncode, "not in the key set" in wrong.stdout) == (1, True)
    assert command(two, "log", "audit", "--fleet", "--state=nobody=/tmp").returncode == 2


@pytest.mark.parametrize(
    ("step", "purpose"),
    [("_checkpoint", "receipt"), ("load_public_keys", "receipt"), ("load_log_keys", "log")],
)
def test_an_audit_of_all_at_the_moment_of_a_rotation_is_clean(
    fleet: list[Instance],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    step: str,
    purpose: str,
) -> None:
    """Whatever was read before, and whatever after: it is read again until it is of one moment."""
    one, two, _ = fleet
    real = getattr(fleet_audit, step)
    changed: list[subprocess.CompletedProcess[str]] = []

    def meanwhile(*given: object) -> object:
        found = real(*given)
        if not changed:
            changed.append(command(two, "keys", "rotate", purpose))
        return found

    monkeypatch.setattr(fleet_audit, step, meanwhile)
    keys = f"--keys=edge-1=http://{one.admin}/.well-known/jwks.json"
    code = main(["log", "audit", "--fleet", keys, "-c", str(two.config)])
    assert changed[0].returncode == 0, changed[0].stderr
    said = capsys.readouterr().out
    assert (code, "PROBLEM" in said) == (0, False), said


def test_the_commands_see_the_whole_store(fleet: list[Instance]) -> None:
    rows = [
        json.loads(line)["receipt"] for line in command(fleet[0], "receipts", "export").stdout.splitlines()
    ]
    assert {row["node"] for row in rows} == set(NODES)
    only = command(fleet[0], "receipts", "export", "--node", "edge-2").stdout.splitlines()
    assert {json.loads(line)["receipt"]["node"] for line in only} == {"edge-2"}
    newest = json.loads(command(fleet[1], "receipts", "list", "--limit", "500", "--json").stdout)["receipts"]
    assert len({row["receipt"]["node"] for row in newest}) == 3
    times = [row["receipt"]["iat"] for row in newest]
    assert times == sorted(times, reverse=True)
    for words in (("replay",), ("receipts", "show", rows[0]["id"])):
        done = command(fleet[2], *words)
        assert done.returncode == 0, done.stdout + done.stderr
    assert command(fleet[0], "receipts", "list", "--node", "nobody").returncode == 2


def test_when_the_database_dies_nothing_goes_out_and_it_heals(
    fleet: list[Instance], server: pgserver.Server, vendors: StandIns
) -> None:
    intent = vendors.stripe.charged(1000)
    before = vendors.counts("stripe").requests
    server.kill()
    for number, gate in enumerate(fleet):
        said = refund(gate, f"down-{number}", payment_intent=intent, amount=1)
        assert (said.status, said.decision, said.reason) == (503, "SILENCE", "store_unavailable")
        assert ready(gate) == 503
    assert vendors.counts("stripe").requests == before
    server.start()
    for gate in fleet:
        until(lambda gate=gate: ready(gate) == 200)  # type: ignore[misc]
    # The budget is spent or nearly so: what matters is that there is a decision again.
    assert refund(fleet[0], "again", payment_intent=intent, amount=5000).reason == "no_rule_matched"


def test_a_second_instance_of_a_node_and_a_stranger_do_not_start(
    fleet: list[Instance], vendors: StandIns, tmp_path: Path
) -> None:
    extra = next(line for line in fleet[0].config.read_text().splitlines() if line.startswith("store:"))
    twin = Instance(tmp_path / "twin", connect_to=vendors.connect_to(), extra=extra, node="edge-1")
    (twin.state_dir / "keys" / "fleet.key").write_bytes(
        (fleet[0].state_dir / "keys" / "fleet.key").read_bytes()
    )
    done = command(twin, "run")
    assert (done.returncode, "another process runs as node edge-1" in done.stderr) == (2, True), done.stderr
    stranger = Instance(tmp_path / "other", connect_to=vendors.connect_to(), extra=extra, node="edge-9")
    done = command(stranger, "run")
    assert (done.returncode, "fleet.key is not that of the nodes" in done.stderr) == (2, True), done.stderr
