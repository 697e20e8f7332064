"""Three gates over one PostgreSQL, and everything between them fails: killed gates and servers, cut links.

The load and the checker are those of test_race_harness.py (bank.py): agents' threads send few keys, each
with two bodies, to any of the gates. Once a round something fails under them and is mended. In between
somebody asks the bank about what is in doubt. HOLDGATE_HARNESS_SECONDS=3600 is the long form, by hand.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import pgserver
from bank import HOST, Bank, Said, banking, maps, sagas, transfer, violations
from behind import Bench
from faultlink import Fault, FaultLink
from holdgate.adapters.control import ask
from holdgate.demo.instance import Instance
from holdgate.errors import BackendError

pytestmark = pytest.mark.slow

SECONDS = float(os.environ.get("HOLDGATE_HARNESS_SECONDS", "0"))  # 0: every fault once
GATES, CLIENTS, KEYS, ACCOUNTS, ROUND_S = 3, 8, 40, 12, 1.5
CAP = 10**12  # never reached: budgets are test_postgres.py's
DEADLINE_MS = 800
# Every claim looks free: what a lost check of the table would do.
PLANTED = """\
import holdgate.ledger as ledger
ledger.attempt = lambda row, **_: (ledger.Verdict.FRESH, "", 0)
"""


@dataclass
class Fleet:
    """Gates that share a database, each over a link of its own."""

    server: pgserver.Server
    gates: list[Instance]
    links: list[FaultLink]
    context: ssl.SSLContext
    said: list[Said] = field(default_factory=list)
    happened: Counter[str] = field(default_factory=Counter)


def _kill_gate(fleet: Fleet, rng: random.Random) -> Callable[[], None]:
    gate = rng.choice(fleet.gates)
    gate.kill()
    return gate.start


def _kill_server(fleet: Fleet, rng: random.Random) -> Callable[[], None]:
    fleet.server.kill()
    return fleet.server.start


def _pause_server(fleet: Fleet, rng: random.Random) -> Callable[[], None]:
    fleet.server.signal(signal.SIGSTOP)
    return lambda: fleet.server.signal(signal.SIGCONT)


def _link(fault: Fault) -> Callable[[Fleet, random.Random], Callable[[], None]]:
    def fail(fleet: Fleet, rng: random.Random) -> Callable[[], None]:
        link = rng.choice(fleet.links)
        link.fault(fault)
        return lambda: link.fault(Fault.NONE)

    return fail


# What fails under load, and what mends it.
FAULTS: dict[str, Callable[[Fleet, random.Random], Callable[[], None]]] = {
    "a gate is killed": _kill_gate,
    "the server is killed": _kill_server,
    "the server hangs": _pause_server,
    "a link is cut": _link(Fault.CUT),
    "a link hangs": _link(Fault.STALLED),
    "commits arrive, their answers do not": _link(Fault.DEAF),
}


@contextmanager
def fleets(folder: Path, bank: Bank) -> Iterator[Fleet]:
    with ExitStack() as stack:
        server = stack.enter_context(pgserver.server())
        url = server.database().urls[0]
        links = [stack.enter_context(FaultLink(("127.0.0.1", server.port))) for _ in range(GATES)]
        urls = [url.replace(f":{server.port}/", f":{link.port}/") for link in links]
        gates = [_gate(folder / f"gate{i}", f"gate-{i}", bank, url) for i, url in enumerate(urls)]
        for gate in gates[1:]:  # one fleet key, or they would not know each other's claims
            key = gates[0].state_dir / "keys" / "fleet.key"
            (gate.state_dir / "keys" / "fleet.key").write_bytes(key.read_bytes())
        for gate in gates:
            stack.enter_context(gate)
        authorities = "".join((gate.state_dir / "ca" / "ca.pem").read_text() for gate in gates)
        yield Fleet(server, gates, links, ssl.create_default_context(cadata=authorities))


def _gate(folder: Path, node: str, bank: Bank, url: str) -> Instance:
    gate = Instance(
        folder,
        connect_to={f"{HOST}:443": f"127.0.0.1:{bank.port}"},
        extra=f"store: {{url: '{url}', deadline_ms: {DEADLINE_MS}, engine: {pgserver.engine_now()}}}",
        node=node,
    )
    maps(folder, CAP)
    return gate


def round_of(fleet: Fleet, number: int, fault: str) -> list[Said]:
    """Agents send to any gate; something fails in the middle of it, and is mended while they go on."""
    over = threading.Event()

    def agent(who: int) -> list[Said]:
        rng, said = random.Random(number * 100 + who), []
        while not over.is_set():
            key = number * KEYS + rng.randrange(KEYS)
            account, second = f"acct_{key % ACCOUNTS}", rng.random() < 0.5
            proxy = rng.choice(fleet.gates).proxy  # another one after each start
            said.append(transfer(proxy, fleet.context, key, second=second, account=account))
        return said

    rng = random.Random(number)
    with ThreadPoolExecutor(CLIENTS) as pool:
        agents = [pool.submit(agent, who) for who in range(CLIENTS)]
        try:
            time.sleep(rng.uniform(0.2, 0.6))
            mend = FAULTS[fault](fleet, rng)
            time.sleep(rng.uniform(0.05, 2 * DEADLINE_MS / 1000))
            mend()
            time.sleep(ROUND_S / 2)
        finally:  # or the agents would never end
            over.set()
        said = [one for each in agents for one in each.result()]
    fleet.said += said
    fleet.happened[fault] += 1
    return said


def reconcile(fleet: Fleet, bank: Bank) -> None:
    """Ask the bank about every permit in doubt, of whichever gate, and say so through another one."""
    bank.settle()
    happened = {each.amount for each in bank.done}
    lister, teller = fleet.gates[0], fleet.gates[-1]
    deadline = time.monotonic() + 60
    while doubtful := _listed(lister):
        for permit in doubtful:
            found = "executed" if permit["actions"][0]["params"]["amount"] in happened else "not_sent"
            try:
                ask(teller.state_dir, {"ask": "reconcile", "of": permit["id"], "found": found, "note": ""})
            except BackendError as error:  # a gate that was cut off, and is about to tell by itself
                told = "may still be sending" in error.detail or "not unknown" in error.detail
                assert told and time.monotonic() < deadline, error


def _listed(gate: Instance) -> list[dict[str, Any]]:
    listed = Bench(gate, None, gate.folder).holdgate("reconcile", "list", "--json")  # type: ignore[arg-type]
    assert listed.returncode == 0, listed.stderr
    found: list[dict[str, Any]] = json.loads(listed.stdout)
    return found


def run(folder: Path, faults: Iterator[str]) -> tuple[list[str], Bank, Fleet]:
    """What is wrong after a round of each fault."""
    with banking() as bank:
        with fleets(folder, bank) as fleet:
            for number, fault in enumerate(faults):
                before = len(bank.done)
                said = round_of(fleet, number, fault)
                reconcile(fleet, bank)
                wrong = sagas(bank.done[before:], said)  # keys are a round's own
                print(f"{number} {fault}: {len(bank.done)} executions, {len(fleet.said)} answers", *wrong)
                if wrong:
                    break
            for gate in fleet.gates:
                gate.stop()
            bank.settle()
            benches = [Bench(gate, None, gate.folder) for gate in fleet.gates]  # type: ignore[arg-type]
            exported = benches[0].holdgate("receipts", "export")  # the whole store
            audits = [bench.holdgate("log", "audit") for bench in benches]
    rows = [json.loads(line)["receipt"] for line in exported.stdout.splitlines()]
    found = violations(bank.done, rows, CAP) + sagas(bank.done, fleet.said)
    found += [audit.stdout + audit.stderr for audit in audits if audit.returncode]
    return found, bank, fleet


def _for(seconds: float) -> Iterator[str]:
    """Every fault once; then faults at random until the time is over."""
    yield from FAULTS
    rng, end = random.Random(0), time.monotonic() + seconds
    while time.monotonic() < end:
        yield rng.choice(list(FAULTS))


def test_a_fleet_behaves_as_one_gate_whatever_fails(tmp_path: Path) -> None:
    found, bank, fleet = run(tmp_path, _for(SECONDS))
    told = Counter(said.call.answer.value for said in fleet.said)
    print(f"{fleet.happened.total()} rounds, {len(bank.done)} executions, answers {dict(told)}")
    assert found == []
    assert len(bank.done) > 5, "the storm reached the bank"
    assert set(fleet.happened) == set(FAULTS)


def test_a_planted_bug_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = tmp_path / "planted"
    planted.mkdir()
    (planted / "sitecustomize.py").write_text(PLANTED)
    monkeypatch.setenv("PYTHONPATH", f"{planted}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    found, *_ = run(tmp_path / "fleet", itertools.repeat("a link is cut", 10))  # ends when it is caught
    assert any("was executed" in each for each in found), found
