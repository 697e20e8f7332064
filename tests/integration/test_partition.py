"""A node that is cut off from the database, in network namespaces: packets vanish, and nobody is told.

    two gates -- h0 10.79.1.1 -- veth -- d0 10.79.1.2 and .3 -- PostgreSQL in a namespace of its own

Each gate dials an address of its own, so that a rule in the database's namespace can cut off one of them:
neither end sees a reset, as when a switch dies. faultlink.py does the same to what a process sees; here the
kernels' own time-outs are tried, the server's for a client that holds the fleet's row among them.
"""

from __future__ import annotations

import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import pgserver
from behind import Bench, Said, post
from holdgate.demo.instance import Instance
from holdgate.demo.standins import StandIns
from netlab import ip, needs_lab

pytestmark = [pytest.mark.slow, needs_lab]

HERE, ADDRESSES = "10.79.1.1", ("10.79.1.2", "10.79.1.3")
DEADLINE_MS = 1500
CUT = """
table inet cut {{
  chain arriving {{ type filter hook input priority 0; ip daddr {address} drop; }}
  chain leaving {{ type filter hook output priority 0; ip saddr {address} drop; }}
}}
"""


@contextmanager
def namespace() -> Iterator[str]:
    """One that is wired to ours, with two addresses."""
    name, device = f"hgdb{os.getpid() % 100_000}", f"h{os.getpid() % 100_000}"
    ip("netns", "add", name)
    try:
        ip("link", "add", device, "type", "veth", "peer", "name", "d0", "netns", name)
        ip("addr", "add", f"{HERE}/24", "dev", device)
        ip("link", "set", device, "up")
        for address in ADDRESSES:
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "d0")
        for inner in ("lo", "d0"):
            ip("-n", name, "link", "set", inner, "up")
        yield name
    finally:
        ip("netns", "del", name)  # and with it the wire


def nft(netns: str, rules: str) -> None:
    subprocess.run(["ip", "netns", "exec", netns, "nft", "-f", "-"], input=rules, text=True, check=True)


@contextmanager
def cut_off(netns: str, address: str) -> Iterator[None]:
    nft(netns, CUT.format(address=address))
    try:
        yield
    finally:
        nft(netns, "delete table inet cut\n")


def refund(gate: Instance, key: str, intent: str, amount: int) -> Said:
    return post(gate, "/v1/refunds", key, payment_intent=intent, amount=amount)


def is_ready(gate: Instance) -> bool:
    try:
        with urllib.request.urlopen(f"http://{gate.admin}/readyz", timeout=60):
            return True
    except urllib.error.HTTPError as error:
        assert error.code == 503
        return False


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)


@pytest.fixture
def lab(vendors: StandIns, tmp_path: Path) -> Iterator[tuple[str, Instance, Instance]]:
    """The namespace, the gate that will be cut off, and one that will not."""
    pgserver.need_postgres()
    with ExitStack() as stack:
        netns = stack.enter_context(namespace())
        server = pgserver.make(stack.enter_context(pgserver.folder()))
        server.netns = netns
        with (server.data / "pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {HERE}/32 trust\n")
        stack.callback(server.kill)
        server.start()
        database = server.database().urls[0].rpartition("/")[2]
        gates = []
        for number, address in enumerate(ADDRESSES):
            url = f"postgresql://holdgate@{address}:{server.port}/{database}"
            gates.append(
                Instance(
                    tmp_path / f"gate{number}",
                    connect_to=vendors.connect_to(),
                    extra=f"store: {{url: '{url}', deadline_ms: {DEADLINE_MS}}}",
                    node=f"gate-{number}",
                )
            )
        key = gates[0].state_dir / "keys" / "fleet.key"
        (gates[1].state_dir / "keys" / "fleet.key").write_bytes(key.read_bytes())
        for gate in gates:
            stack.enter_context(gate)
        yield netns, gates[0], gates[1]


def test_a_node_that_is_cut_off_is_silent_and_the_others_go_on(
    lab: tuple[str, Instance, Instance], vendors: StandIns
) -> None:
    netns, lost, kept = lab
    intents = [vendors.stripe.charged(5000) for _ in range(4)]  # one open refund each at a time
    assert refund(lost, "before", intents[0], 1).decision == "PERMIT"
    with cut_off(netns, ADDRESSES[0]), ThreadPoolExecutor(4) as pool:
        before = vendors.counts("stripe").requests
        asked = [pool.submit(refund, lost, f"cut-{n}", intent, 2) for n, intent in enumerate(intents)]
        answers = {(each.result().decision, each.result().reason) for each in asked}
        assert answers == {("SILENCE", "store_unavailable")}
        assert vendors.counts("stripe").requests == before, "the vendor saw nothing"
        assert not is_ready(lost)
        # If the lost node held the fleet's row, the server's own clocks let go of it.
        until(lambda: refund(kept, "goes-on", intents[1], 3).status == 200)
        again = refund(kept, "before", intents[0], 9)
        assert (again.decision, again.reason) == ("DENY", "idempotency_key_reused")
    until(lambda: is_ready(lost))
    again = refund(lost, "goes-on", intents[1], 4)
    assert (again.decision, again.reason) == ("DENY", "idempotency_key_reused")
    assert refund(lost, "after", intents[2], 5).decision == "PERMIT"
    assert [each["amount"] for each in vendors.stripe.of_kind("refund")[-3:]] == [1, 3, 5]
    audit = Bench(kept, vendors, kept.folder).holdgate("log", "audit", "--fleet")
    assert audit.returncode == 0, audit.stdout + audit.stderr
