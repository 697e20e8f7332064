"""audit_fleet.py: the logs of three nodes over a real PostgreSQL, and what tampering with it shows."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import pgserver
from evidence import LOG_KEY, T0, RefundJudge
from holdgate.adapters.postgres_reader import PostgresReader
from holdgate.adapters.sequencer import CHECKPOINT, LOG
from holdgate.adapters.store_ledger import StoreLedger
from holdgate.adapters.tilestore import TileStore
from holdgate.audit_fleet import NO_DIRECTORY, NO_KEYS, NOTHING_KEPT, FleetReport, Kept, audit_fleet
from holdgate.config_store import PostgresStore
from holdgate.errors import Outcome
from holdgate.keys import SigningKey, key_set
from holdgate.ledger import Charge, Finding, OutcomeStatus, Recorded
from pgserver import open_ledger
from test_postgres import until

pytestmark = pytest.mark.slow

NAMES = ("edge-1", "edge-2", "edge-3")
SIGNERS = {name: SigningKey(seed=bytes([number]) * 32) for number, name in enumerate(NAMES, 7)}
METER = "ab" * 32


@dataclass(frozen=True)
class Fleet:
    server: pgserver.Server
    settings: PostgresStore
    folder: Path

    @property
    def database(self) -> str:
        return self.settings.urls[0].rpartition("/")[2].partition("?")[0]

    def sql(self, text: str) -> str:
        return self.server.sql(text, self.database)

    def kept(self) -> dict[str, Kept]:
        return {
            name: Kept(
                receipt_keys=key_set([SIGNERS[name].public]),
                log_keys=key_set([LOG_KEY.public]),
                checkpoint=(self.folder / name / CHECKPOINT).read_bytes(),
                tiles=TileStore(self.folder / name / LOG),
            )
            for name in NAMES
        }

    def audit(self, kept: dict[str, Kept] | None = None) -> FleetReport:
        with PostgresReader(self.folder, self.settings, None) as reader:
            return audit_fleet(reader.fleet_input(), self.kept() if kept is None else kept)


@contextlib.contextmanager
def running(folder: Path, settings: PostgresStore, name: str, **changes: Any) -> Iterator[StoreLedger]:
    (folder / name).mkdir(exist_ok=True)
    given = {"nonce16": lambda: secrets.token_bytes(16), "receipt_key": SIGNERS[name]} | changes
    ledger = open_ledger(folder / name, settings, node=name, origin=f"holdgate.local/{name}", **given)
    try:
        yield ledger
    finally:
        ledger.close()


def refund(name: str, key: str, amount: int = 0, **more: Any) -> RefundJudge:
    def charge(budgets: Any, now_us: int, is_replay: bool) -> tuple[Charge, ...]:
        if not amount or is_replay:
            return ()
        return (Charge(meter=METER, at_us=T0, until_us=T0 + 10**12, amount=amount, count=1),)

    meters = (METER,) if amount else ()
    return RefundJudge(key, node=name, signer=SIGNERS[name], meters=meters, charge=charge, **more)


def ended(ledger: StoreLedger, made: Recorded, status: OutcomeStatus) -> None:
    assert made.entry.outcome is Outcome.PERMIT
    ledger.record_outcome(made.entry.receipt_id, status, 200, delivered=True)


async def live(fleet: Fleet) -> None:
    """A day of a fleet: what one begins another repeats, takes over, or settles."""
    one_, two_, three_ = (running(fleet.folder, fleet.settings, name) for name in NAMES)
    with one_ as one:
        with two_ as two, three_ as three:
            ended(one, await one.record(refund("edge-1", "a", 50)), OutcomeStatus.EXECUTED)
            ended(one, await one.record(refund("edge-1", "b", 70)), OutcomeStatus.NOT_SENT)
            await one.record(refund("edge-1", "flush"))
            ended(two, await two.record(refund("edge-2", "b", 70, conflict="c")), OutcomeStatus.EXECUTED)
            first = await two.record(refund("edge-2", "p", 30, provider=True))
            ended(two, first, OutcomeStatus.UNKNOWN)
            await two.record(refund("edge-2", "flush"))
            again = await three.record(refund("edge-3", "p", 30, provider=True))
            assert again.entry.prior == first.entry.receipt_id
            ended(three, again, OutcomeStatus.EXECUTED)
            await three.record(refund("edge-3", "a", 50))  # already_executed
            dying = await three.record(refund("edge-3", "d", 90, conflict="e"))
            three.close()
            gone = "SELECT count(*) = 0 FROM pg_locks WHERE locktype = 'advisory' AND objid = 3"
            await until(lambda: fleet.sql(gone) == "t")
            await one.reconcile(
                Finding(
                    of=dying.entry.receipt_id,
                    found=OutcomeStatus.NOT_SENT,
                    by="ops",
                    note="",
                    node_stopped=True,
                )
            )
            await two.record(refund("edge-2", "d", 90, conflict="e"))  # left as it is


@pytest.fixture(scope="module")
def server() -> Iterator[pgserver.Server]:
    with pgserver.server() as made:
        yield made


@pytest.fixture
def fleet(server: pgserver.Server, tmp_path: Path) -> Fleet:
    made = Fleet(server, server.database(), tmp_path)
    asyncio.run(live(made))
    return made


def test_a_fleet_whose_nodes_took_over_from_each_other_is_clean(fleet: Fleet) -> None:
    report = fleet.audit()
    assert report.problems == ()
    assert report.permits == 8
    assert [(node.node, node.notes) for node in report.nodes] == [(name, ()) for name in NAMES]
    assert all(node.signed == node.size > 0 for node in report.nodes)


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        pytest.param(
            "UPDATE holdgate.counters SET sum = sum + 1", "not what the permits charged", id="counter"
        ),
        pytest.param("DELETE FROM holdgate.counters", "is missing", id="no counter"),
        pytest.param(
            "UPDATE holdgate.claims SET state = 'failed' WHERE state = 'executed'", "do not say", id="claim"
        ),
        pytest.param(
            "DELETE FROM holdgate.claims WHERE state = 'executed'", "its claim", id="claims that are gone"
        ),
        pytest.param(
            "UPDATE holdgate.permits SET state = 'executed' WHERE state = 'not_sent'"
            " AND node = (SELECT id FROM holdgate.nodes WHERE name = 'edge-3')",
            "not what its outcomes say",
            id="what another node settled",
        ),
        pytest.param(
            "UPDATE holdgate.permits SET lender = '' WHERE lender <> ''",
            "repeats another one than its receipt says",
            id="what another node lent",
        ),
        pytest.param(
            "UPDATE holdgate.claims SET receipt_id = 'rcpt_0' WHERE state = 'executed'",
            "held by no PERMIT",
            id="a holder that nobody recorded",
        ),
    ],
)
def test_af1_what_the_receipts_of_all_nodes_do_not_bear_out_is_found(
    fleet: Fleet, edit: str, text: str
) -> None:
    fleet.sql(edit)
    assert any(text in problem for problem in fleet.audit().problems)


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        pytest.param(
            "UPDATE holdgate.receipts SET jws = set_byte(jws, 99, 65 + get_byte(jws, 99) % 2)"
            " WHERE node = 2 AND idx = 1",
            "edge-2: leaf 1: ",
            id="edited",
        ),
        pytest.param(
            "DELETE FROM holdgate.receipts WHERE node = 1 AND idx ="
            " (SELECT max(idx) FROM holdgate.receipts WHERE node = 1)",
            "edge-1: the ledger's head row is not the end of this log",
            id="removed",
        ),
        pytest.param(
            "UPDATE holdgate.receipts SET node = 1, idx = 100 WHERE node = 2 AND idx = 0",
            "another node's key",
            id="moved to another log",
        ),
        pytest.param(
            "DELETE FROM holdgate.nodes WHERE name = 'edge-3'", "in the log of no node", id="orphaned"
        ),
        pytest.param("UPDATE holdgate.fleet SET iat_us = 5", "the fleet's time", id="the fleet's time"),
    ],
)
def test_af2_an_edited_removed_or_moved_receipt_is_found(fleet: Fleet, edit: str, text: str) -> None:
    fleet.sql(edit)
    assert any(text in problem for problem in fleet.audit().problems), fleet.audit().problems


def test_af2_a_node_that_was_not_in_the_fleets_time_is_found(fleet: Fleet) -> None:
    """Two receipts of one time: whoever wrote the second did not hold the fleet's row."""
    newest = int(fleet.sql("SELECT max(iat_us) FROM holdgate.receipts WHERE node = 2"))
    fleet.sql("UPDATE holdgate.fleet SET iat_us = 0")

    async def late() -> None:
        with running(fleet.folder, fleet.settings, "edge-3", clock_us=lambda: newest) as three:
            await three.record(refund("edge-3", "late"))

    asyncio.run(late())
    assert any("is not later than the fleet's receipt before it" in each for each in fleet.audit().problems)


def test_af3_what_is_not_at_hand_is_said_node_by_node(fleet: Fleet) -> None:
    whole = fleet.kept()
    listed = replace(NOTHING_KEPT, receipt_keys=whole["edge-2"].receipt_keys)
    report = fleet.audit({"edge-1": whole["edge-1"], "edge-2": listed})
    assert report.problems == ()
    said = {node.node: node.notes for node in report.nodes}
    assert said == {"edge-1": (), "edge-2": (NO_DIRECTORY,), "edge-3": (NO_KEYS, NO_DIRECTORY)}
    # Without its keys a false signature is not seen; what it says is compared all the same.
    fleet.sql(
        "UPDATE holdgate.receipts SET jws = set_byte(jws, length(jws) - 9,"
        " 65 + get_byte(jws, length(jws) - 9) % 2) WHERE node IN (2, 3) AND idx = 1"
    )
    found = fleet.audit({"edge-1": whole["edge-1"], "edge-2": listed}).problems
    assert any(each.startswith("edge-2: leaf 1: the signature is wrong") for each in found), found
    assert not any("signature" in each and each.startswith("edge-3") for each in found)
