"""Two live primaries: a standby was promoted while the old one runs. One action is executed once.

Each gate reaches one of them. The old primary has `synchronous_standby_names`, and its standby has left.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import pgserver
from bank import HOST, Bank, Said, banking, maps, transfer, violations
from faultlink import Fault, FaultLink
from histories import Answer
from holdgate.demo.instance import Instance

pytestmark = pytest.mark.slow

CAP = 10**12
STANDBYS = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"


@dataclass
class Split:
    old: pgserver.Server
    new: pgserver.Server
    link: FaultLink  # of the second gate to the old primary
    gates: list[Instance]
    context: ssl.SSLContext

    def ask(self, gate: int, number: int) -> Said:
        return transfer(self.gates[gate].proxy, self.context, number, second=False, account=f"acct_{number}")


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


@contextmanager
def splits(folder: Path, bank: Bank) -> Iterator[Split]:
    with ExitStack() as stack:
        old = stack.enter_context(pgserver.server())
        new = pgserver.standby_of(old, stack.enter_context(pgserver.folder()))
        new.start()
        stack.callback(new.kill)
        old.sql("ALTER SYSTEM SET synchronous_standby_names = 'FIRST 1 (*)'")
        old.sql("SELECT pg_reload_conf()")
        until(lambda: old.sql(STANDBYS) == "1")
        url = old.database().urls[0]
        until(lambda: new.sql("SELECT count(*) FROM pg_database WHERE datname LIKE 't%\\_%'") != "0")
        link = stack.enter_context(FaultLink(("127.0.0.1", old.port)))
        own = f"127.0.0.1:{old.port}"
        gates = []
        for number, hosts in enumerate((own, f"127.0.0.1:{link.port},127.0.0.1:{new.port}")):
            gates.append(_gate(folder / f"gate{number}", f"gate-{number}", bank, url.replace(own, hosts)))
        key = gates[0].state_dir / "keys" / "fleet.key"
        (gates[1].state_dir / "keys" / "fleet.key").write_bytes(key.read_bytes())
        for gate in gates:
            stack.enter_context(gate)
        authorities = "".join((gate.state_dir / "ca" / "ca.pem").read_text() for gate in gates)
        yield Split(old, new, link, gates, ssl.create_default_context(cadata=authorities))


def _gate(folder: Path, node: str, bank: Bank, url: str) -> Instance:
    gate = Instance(
        folder,
        connect_to={f"{HOST}:443": f"127.0.0.1:{bank.port}"},
        extra=f"store: {{url: '{url}', deadline_ms: 2000}}",
        node=node,
    )
    maps(folder, CAP)
    return gate


def test_an_action_that_the_old_primary_cannot_commit_is_executed_once(tmp_path: Path) -> None:
    with banking() as bank, splits(tmp_path, bank) as split:
        before = [split.ask(0, 1), split.ask(1, 2)]
        assert {said.call.answer for said in before} == {Answer.EXECUTED}
        split.link.fault(Fault.CUT)
        split.new.promote()
        standby = "SELECT pg_is_in_recovery()"
        assert split.old.sql(standby) == split.new.sql(standby) == "f"
        # The same action at both: the old primary writes it and cannot commit, so its gate sends nothing.
        first = split.ask(0, 3)
        bank.settle()
        assert (first.call.answer, len(bank.done)) == (Answer.DOUBT, 2)
        until(lambda: split.ask(1, 3).call.answer in (Answer.EXECUTED, Answer.ALREADY))
        bank.settle()
        assert len(bank.done) == 3
        for number in (1, 3, 4):  # nor does anything else leave by way of the old one, known or new
            assert split.ask(0, number).call.answer is not Answer.EXECUTED
        bank.settle()
        assert sorted(each.key for each in bank.done) == ["key-1", "key-2", "key-3"]
        assert violations_of(bank) == []


def violations_of(bank: Bank) -> list[str]:
    """What the bank's history says alone."""
    return [each for each in violations(bank.done, [], CAP) if "permits" not in each]
