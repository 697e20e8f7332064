"""adapters/postgres_dialect.py and postgres_server.py: `engine: cockroachdb`, all of it but the server.

No CockroachDB was to be had: what runs here runs over a PostgreSQL at SERIALIZABLE, with leases and without a
statement that CockroachDB lacks. The suites of the other engine run too, but for what LEFT_OUT says. With
HOLDGATE_TEST_COCKROACH=postgresql://root@127.0.0.1:26257/defaultdb?sslmode=disable they run over a real one.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest

import pgserver
import test_budgets
import test_kept_answers
import test_ledger
import test_postgres
import test_sqlite
import test_stores
from evidence import T0, RefundJudge
from holdgate.adapters import postgres_dialect, postgres_link, postgres_sql, postgres_write
from holdgate.adapters.postgres_reader import PostgresReader
from holdgate.adapters.postgres_schema import STEPS, TABLES, VERSION, repeatable
from holdgate.adapters.postgres_server import CockroachServer, PostgresServer, server_of
from holdgate.adapters.sequencer import CHECKPOINT
from holdgate.adapters.store import Conflict
from holdgate.adapters.store_ledger import StoreLedger
from holdgate.audit_fleet import audit_fleet
from holdgate.erasure import RETENTION, SHRED, EraseOrder, Erasure
from holdgate.errors import ConfigError, Outcome
from holdgate.ledger import (
    AdminNote,
    Charge,
    Finding,
    OutcomeStatus,
    ReconcileError,
    Recorded,
    State,
    Verdict,
)
from holdgate.sealing import KeptAnswer
from surface_requests import index_of
from test_bonds import MAP as BONDS
from test_bonds import make
from test_postgres import (
    ANSWER,
    WRITER,
    Twin,
    _Through,
    executed,
    fleet_of,
    node,
    opened,
    own_server,
    problems,
    refused,
    says,
    until,
    waiting,
)
from test_standing import DENY, PERMIT, Asked
from test_standing import judge as sticking

pytestmark = pytest.mark.slow

REAL = os.environ.get("HOLDGATE_TEST_COCKROACH", "")
needs_postgres = pytest.mark.skipif(bool(REAL), reason="changes a PostgreSQL from outside")
_TIME = "time: what it shows does not depend on the engine"
# Of the suites of test_stores.py and test_postgres.py.
LEFT_OUT = {
    "test_pl1_a_server_that_can_lose_a_commit_is_refused_at_start": "PostgreSQL's own checks",
    "test_pl1_without_a_synchronous_standby_that_is_required_nothing_starts": "PostgreSQL's own checks",
    "test_pl1_what_only_speaks_the_protocol_is_refused_by_name": "here is test_pc1_...",
    "test_pl1_fsync_that_is_switched_off_later_is_noticed_and_heals": "PostgreSQL's own checks",
    "test_a_standby_that_goes_away_stops_permits_and_takes_over_without_a_second_one": "there are none",
    "test_pg2_a_second_process_as_the_same_node_does_not_start": "here is test_pd1_...",
    "test_pl2_a_server_that_hangs_is_not_waited_for_and_it_heals": "the lease's renewal notices it first",
    "test_a_server_that_is_killed_under_load_loses_nothing_and_everything_heals": _TIME,
    "test_pg6_a_wait_survives_the_first_nodes_death_and_the_servers": _TIME,
    "test_pl2_a_node_that_vanishes_in_the_middle_of_a_group_holds_the_others_up_for_a_deadline_only": _TIME,
    "test_the_store_is_the_book": _TIME,
}
_SUITES = (test_stores, test_postgres)
globals().update(
    {
        name: test
        for suite in _SUITES
        for name, test in vars(suite).items()
        if name.startswith("test_") and callable(test) and name not in LEFT_OUT
    }
)
__all__ = ["own_server"]


@pytest.fixture(scope="module")
def server() -> Iterator[pgserver.Server | pgserver.Cockroach]:
    if REAL:
        yield pgserver.Cockroach(REAL)
        return
    with pgserver.server() as running:
        yield running


@pytest.fixture(autouse=True)
def engine(server: pgserver.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever settings a test makes, in its own process or another one."""
    monkeypatch.setenv("HOLDGATE_TEST_ENGINE", "cockroachdb")
    fleets = pgserver.Fleets(server)
    for module in (test_sqlite, test_budgets, test_kept_answers, test_ledger):
        monkeypatch.setattr(module, "open_ledger", fleets.open_ledger)
        monkeypatch.setattr(module, "SqliteReader", fleets.reader)


store = test_stores.store


def database_of(settings: Any) -> str:
    return str(settings.urls[0].rpartition("/")[2].partition("?")[0])


def test_what_is_left_out_is_there_and_the_rest_runs_with_this_engine(server: Any, tmp_path: Path) -> None:
    assert all(any(hasattr(suite, name) for suite in _SUITES) for name in LEFT_OUT)
    with opened(tmp_path, server.database()) as ledger:
        assert ledger._store._dialect.name == "cockroachdb"  # type: ignore[attr-defined]


# --- PD1: who runs as a node ---

LEASE_S = 3.0
SHORT = f"""\
import holdgate.adapters.postgres_dialect as dialect
dialect._Cockroach.lease_s = lambda self, deadline_s: {LEASE_S}
"""


@pytest.fixture
def short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deadline that is long, since this machine is shared, and a lease that can be waited for."""
    monkeypatch.setattr(postgres_dialect._Cockroach, "lease_s", lambda self, deadline_s: LEASE_S)


def test_a_lease_is_longer_than_two_groups_and_a_renewal() -> None:
    for deadline_s in (0.05, 1.0, 30.0):
        lease_s = postgres_dialect.dialect_of("cockroachdb").lease_s(deadline_s)
        assert lease_s > lease_s / 5 + 2 * deadline_s + 1
        assert postgres_dialect.dialect_of("cockroachdb").patience_s > lease_s
    assert postgres_dialect.dialect_of("postgresql").lease_s(1.0) == 0


def killed(folder: Path, server: Any, settings: Any, name: str) -> None:
    """A process that is killed -9 as this node, with permits in flight."""
    words = [str(folder), f"127.0.0.1:{server.port}", database_of(settings), name, "1"]
    script = WRITER.format(tests=str(Path(__file__).parent)).replace("random.random() * 0.01", "3600")
    script = f"{SHORT}\n{script}"
    command = [sys.executable, "-c", script, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "open\n"
        permits = "SELECT count(*) FROM holdgate.permits WHERE state = 'dispatching'"
        while server.sql(permits, database_of(settings)) == "0":
            assert process.poll() is None
        process.kill()


def test_pd1_a_node_that_was_killed_starts_again_by_itself_and_its_permits_are_unknown(
    server: Any, tmp_path: Path, short_leases: None
) -> None:
    settings = server.database()
    (tmp_path / "1").mkdir()
    killed(tmp_path / "1", server, settings, "edge-1")
    with PostgresReader(tmp_path / "1", settings, None) as reader:
        assert reader.deserted() == []  # its lease runs
    with opened(tmp_path / "1", settings, clock_us=pgserver.wall_us):
        with PostgresReader(tmp_path / "1", settings, None) as reader:
            assert (reader.deserted(), reader.permits(State.DISPATCHING)) == ([], ())
            assert reader.permits(State.UNKNOWN)
    assert problems(tmp_path / "1", settings) == ()


def test_pd1_a_node_that_lives_is_not_replaced_and_one_that_closed_is_at_once(
    server: Any, tmp_path: Path, short_leases: None
) -> None:
    settings = server.database()
    lease = "SELECT lease_us FROM holdgate.nodes"
    with opened(tmp_path / "1", settings):
        first = server.sql(lease, database_of(settings))
        with pytest.raises(ConfigError, match="another process runs as node edge-1"):
            with opened(tmp_path / "2", settings):
                pass
        assert int(server.sql(lease, database_of(settings))) > int(first) > 0
    assert server.sql(lease, database_of(settings)) == "0"


def test_pd1_nodes_that_start_at_once_make_one_set_of_tables(server: Any, tmp_path: Path) -> None:
    settings, failed = server.database(), list[BaseException]()

    def start(number: int) -> None:
        try:
            with opened(tmp_path / str(number), settings, **node(f"edge-{number}")):
                pass
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    threads = [threading.Thread(target=start, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert server.sql("SELECT version FROM holdgate.fleet", database_of(settings)) == str(VERSION)
    assert server.sql("SELECT count(*) FROM holdgate.nodes", database_of(settings)) == "3"


# --- PD2: a lease that ran out ---


async def test_pd2_a_node_that_is_paused_is_gone_for_others_but_nothing_is_sent_twice(
    server: Any, tmp_path: Path, short_leases: None
) -> None:
    settings = server.database()
    with fleet_of(tmp_path, settings, "1 2") as (one, two):
        made = await one.record(RefundJudge("a", conflict="c"))
        paused, one._store.tend = one._store.tend, lambda: None  # type: ignore[method-assign]
        with PostgresReader(tmp_path, settings, None) as reader:
            assert reader.deserted() == []
            await until(lambda: [each.id for each in reader.deserted()] == [made.entry.receipt_id])
        for _ in range(2):  # its permit holds what it held
            again = RefundJudge("a", conflict="c")
            assert (await two.record(again)).entry.outcome is not Outcome.PERMIT
            assert again.verdict is Verdict.IN_FLIGHT
        finding = Finding(of=made.entry.receipt_id, found=OutcomeStatus.EXECUTED, by="local", note="")
        with pytest.raises(ReconcileError, match="may still be sending"):
            await two.reconcile(finding)  # a person has to say that it was stopped
        await two.reconcile(replace(finding, node_stopped=True))  # and says so wrongly
        one._store.tend = paused  # type: ignore[method-assign]
        one.record_outcome(made.entry.receipt_id, OutcomeStatus.NOT_SENT, 0, delivered=False)
        await one.record(RefundJudge("flush"))  # it goes on
        later = RefundJudge("a", conflict="c")
        assert (await two.record(later)).entry.outcome is not Outcome.PERMIT
        assert later.verdict is Verdict.ALREADY_EXECUTED
    for folder, name in (("1", "edge-1"), ("2", "edge-2")):
        assert problems(tmp_path / folder, settings, name) == ()


async def test_pd2_whoever_took_the_place_of_a_paused_node_has_it_and_the_paused_one_ends(
    server: Any, tmp_path: Path, short_leases: None
) -> None:
    settings = server.database()
    with opened(tmp_path / "1", settings) as paused:
        made = await paused.record(RefundJudge("a"))
        await until((tmp_path / "1" / CHECKPOINT).exists)
        paused._store.tend = lambda: None  # type: ignore[method-assign]
        shutil.copytree(tmp_path / "1", tmp_path / "2")  # another machine's: its lock is not this one's
        with opened(tmp_path / "2", settings) as other:
            assert "taken over node edge-1" in await refused(paused, "b")
            known = RefundJudge("a")
            await other.record(known)
            assert known.verdict is Verdict.OUTCOME_UNKNOWN
            with PostgresReader(tmp_path / "2", settings, None) as reader:
                assert reader.state_of(made.entry.receipt_id) is State.UNKNOWN


async def test_pd2_a_node_that_was_replaced_notices_it_while_nothing_happens(
    server: Any, tmp_path: Path, short_leases: None
) -> None:
    settings = server.database()
    with opened(tmp_path, settings) as ledger:
        server.sql("UPDATE holdgate.nodes SET owner = 'somebody else'", database_of(settings))
        await until(lambda: not ledger.healthy)


# --- PD3, and databases of earlier formats ---


def test_pd3_nodes_of_one_database_have_one_engine(server: Any, tmp_path: Path) -> None:
    settings = server.database()
    with opened(tmp_path / "1", settings):
        pass
    other = replace(settings, engine="postgresql")
    with pytest.raises(ConfigError, match="engine: cockroachdb"):
        with opened(tmp_path / "1", other):
            pass
    with pytest.raises(ConfigError, match="engine: cockroachdb"):
        PostgresReader(tmp_path, other, None)


@needs_postgres
def test_pd3_a_database_of_an_earlier_format_is_brought_up_to_date_and_is_postgresqls(
    server: Any, tmp_path: Path
) -> None:
    settings = server.database(engine="postgresql")
    server.sql("CREATE SCHEMA holdgate", database_of(settings))
    for step in STEPS[:4]:
        server.sql(step, database_of(settings))
    server.sql("UPDATE holdgate.fleet SET version = 4, key_mark = 'x'", database_of(settings))
    for engine, refusal in (("cockroachdb", r"fleet\.key is not"), ("postgresql", r"fleet\.key is not")):
        with pytest.raises(ConfigError, match=refusal):
            with opened(tmp_path, replace(settings, engine=engine)):
                pass
    found = server.sql("SELECT version, engine FROM holdgate.fleet", database_of(settings))
    assert found == f"{VERSION}|postgresql"
    server.sql("UPDATE holdgate.fleet SET key_mark = ''", database_of(settings))
    with opened(tmp_path, settings):
        assert server.sql("SELECT lease_us FROM holdgate.nodes", database_of(settings)) == "0"


def test_every_statement_of_every_step_can_be_done_again() -> None:
    for step in STEPS:
        for statement in repeatable(step):
            assert " IF NOT EXISTS " in statement or statement.endswith("ON CONFLICT DO NOTHING")
            assert "UNLOGGED" not in statement
    with pytest.raises(ValueError, match="not known to be repeatable"):
        repeatable("UPDATE holdgate.fleet SET version = version + 1")


# --- COMMIT that fails ---


async def _ending(ledger: StoreLedger, monkeypatch: pytest.MonkeyPatch, error: Exception, sent: bool) -> None:
    """The next COMMIT is answered by this."""
    store: Any = ledger._store
    commit = store._commit

    async def fails(conn: Any, changes: Any) -> None:
        store._commit = commit
        execute = conn.execute

        async def ask(sql: str, *values: Any) -> Any:
            if sql != "COMMIT":
                return await execute(sql, *values)
            if sent:
                await execute(sql)
            raise error

        await commit(_Through(conn, ask), changes)

    monkeypatch.setattr(store, "_commit", fails)


async def test_pg3_a_commit_that_was_undone_is_judged_again_and_one_that_nobody_knows_of_is_not(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = server.database()
    with opened(tmp_path, settings) as ledger:
        await _ending(ledger, monkeypatch, asyncpg.SerializationError("restart transaction"), False)
        judge = RefundJudge("undone")
        made = await ledger.record(judge)
        assert (judge.verdict, made.entry.outcome) == (Verdict.FRESH, Outcome.PERMIT)
        unknown = asyncpg.StatementCompletionUnknownError("result is ambiguous")
        await _ending(ledger, monkeypatch, unknown, True)
        assert "result is ambiguous" in await refused(ledger, "doubtful")
        await until(lambda: ledger.healthy)
        again = RefundJudge("doubtful")
        later = await ledger.record(again)
        assert (again.verdict, later.entry.outcome) == (Verdict.SUPERSEDE, Outcome.PERMIT)
        with PostgresReader(tmp_path, settings, "edge-1") as reader:
            assert reader.state_of(later.entry.prior) is State.NOT_SENT
    assert problems(tmp_path, settings) == ()


async def test_pg3_a_doubt_outlives_a_commit_that_was_undone(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = server.database()
    with opened(tmp_path, settings) as ledger:
        unknown = asyncpg.StatementCompletionUnknownError("result is ambiguous")
        await _ending(ledger, monkeypatch, unknown, True)
        assert "result is ambiguous" in await refused(ledger, "doubtful")
        await until(lambda: ledger.healthy)
        await _ending(ledger, monkeypatch, asyncpg.SerializationError("restart transaction"), False)
        again = RefundJudge("doubtful")
        later = await ledger.record(again)
        assert (again.verdict, later.entry.outcome) == (Verdict.SUPERSEDE, Outcome.PERMIT)
        with PostgresReader(tmp_path, settings, "edge-1") as reader:
            assert reader.state_of(later.entry.prior) is State.NOT_SENT
    assert problems(tmp_path, settings) == ()


async def test_pg3_while_a_commit_is_in_doubt_nothing_is_read_before_what_it_wrote_is_over(
    server: Any, tmp_path: Path
) -> None:
    """The former transaction is still there, and its lock of the fleet's row is not: it can be lost."""
    settings = server.database(deadline_ms=1500)
    with opened(tmp_path, settings) as ledger:
        await ledger.record(RefundJudge("a"))
        former = await asyncpg.connect(settings.urls[0])
        await former.execute("BEGIN; UPDATE holdgate.nodes SET size = size WHERE id = 1")
        ledger._store._in_doubt = True  # type: ignore[attr-defined]
        assert await refused(ledger, "b")
        await until(lambda: ledger._store._failures > 2)  # type: ignore[attr-defined]
        assert not ledger.healthy
        await former.execute("ROLLBACK")
        await former.close()
        await until(lambda: ledger.healthy)
        assert (await ledger.record(RefundJudge("b"))).entry.outcome is Outcome.PERMIT


class Undone:
    """A connection whose first statements are undone."""

    def __init__(self, times: int) -> None:
        self.times, self.sent = times, list[str]()

    async def execute(self, statement: str) -> None:
        self.sent.append(statement)
        if self.times and statement != "ROLLBACK":
            self.times -= 1
            raise asyncpg.SerializationError("could not serialize access due to concurrent update")


def test_pg1_who_waits_for_the_row_behind_many_is_not_refused(server: Any, tmp_path: Path) -> None:
    with opened(tmp_path, server.database()) as ledger:
        conn = Undone(5)
        asyncio.run(ledger._store._lock(conn))  # type: ignore[attr-defined]
    begin = f"BEGIN ISOLATION LEVEL SERIALIZABLE; {postgres_sql.LOCK}"
    assert conn.sent == [begin, "ROLLBACK"] * 5 + [begin]


async def test_pe2_an_erasure_that_the_database_undoes_is_done_again(server: Any, tmp_path: Path) -> None:
    with opened(tmp_path, server.database()) as ledger:
        made = await ledger.record(RefundJudge("a", sealed=True))
        eraser: Any = ledger._eraser
        erase, undone = eraser._erase, [2]

        async def unlucky(*words: Any) -> None:
            await erase(*words)
            if undone[0]:
                undone[0] -= 1
                raise asyncpg.SerializationError("restart transaction")

        eraser._erase = unlucky
        erasure = Erasure(action=SHRED, ids=frozenset({made.entry.receipt_id}))
        await ledger.erase(EraseOrder(erasure=erasure, count=1, by="local"))
        assert (undone, eraser.busy) == ([0], False)
        assert (await ledger.record(RefundJudge("b"))).entry.outcome is Outcome.PERMIT


async def test_a_group_that_is_undone_while_it_is_judged_keeps_its_first_deadline(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path, server.database()) as ledger:
        store: Any = ledger._store
        store.tend = lambda: None  # the writer thread's, and this test uses its connection
        rows = store.begin(())
        first = store._until

        def undone(*_: object) -> None:
            store._link.drop()
            raise Conflict

        with monkeypatch.context() as unlucky:
            unlucky.setattr(store._link, "call", undone)
            with pytest.raises(Conflict):
                rows.claim("f" * 64)
        store.begin(())
        assert store._until == first
        store.rollback()


@needs_postgres
async def test_pg1_a_group_that_waited_for_the_row_reads_what_its_last_holder_wrote(
    server: Any, tmp_path: Path
) -> None:
    """Its snapshot is older than that: it must not be used."""
    settings = server.database()
    with fleet_of(tmp_path, settings, "1 2") as (one, two):
        store: Any = one._store
        commit, inside, judge = store._commit, asyncio.Event(), RefundJudge("same")
        loop = asyncio.get_running_loop()
        go = threading.Event()

        async def slow(conn: Any, changes: Any) -> None:
            loop.call_soon_threadsafe(inside.set)
            await asyncio.to_thread(go.wait, 10)
            await commit(conn, changes)

        store._commit = slow
        first = asyncio.create_task(one.record(RefundJudge("same")))
        await inside.wait()
        second = asyncio.create_task(two.record(judge))
        waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = '{}'"
        await until(lambda: server.sql(waits.format(database_of(settings))) == "1")
        go.set()
        store._commit = commit
        assert (await first).entry.outcome is Outcome.PERMIT
        assert (await second).entry.outcome is not Outcome.PERMIT
        assert judge.verdict is Verdict.IN_FLIGHT


# --- PC1, PC2: what the server is ---

VERSION_SAID = "CockroachDB CCL v26.1.0 (x86_64-pc-linux-gnu)"


def test_pc1_a_cockroachdb_is_used_only_where_the_configuration_says_so() -> None:
    assert "engine: cockroachdb" in str(server_of(VERSION_SAID, "postgresql"))
    assert isinstance(server_of(VERSION_SAID, "cockroachdb"), CockroachServer)
    for engine in ("postgresql", "cockroachdb"):
        assert isinstance(server_of("PostgreSQL 15.14 on x86_64", engine), PostgresServer)
        for other in ("PostgreSQL 11.2-YB-2.20.1.0-b0 on x86_64", "CrateDB 5.9", "cockroachdb", ""):
            assert "no PostgreSQL but" in str(server_of(other, engine))


class Says:
    """A connection whose server answers so; anything else it does not know."""

    def __init__(self, **answers: Any) -> None:
        self._answers = {"SELECT current_database": [("hold",)], **SOUND, **answers}

    async def fetch(self, statement: str) -> Any:
        (found,) = [rows for begins, rows in self._answers.items() if statement.startswith(begins)] or [None]
        if found is None or isinstance(found, Exception):
            raise found or asyncpg.UndefinedObjectError(f"unknown: {statement}")
        return found


# As the documentation shows them (decisions/0013); nobody has seen them on a wire.
ZONE = (
    "ALTER RANGE default CONFIGURE ZONE USING\n\trange_min_bytes = 134217728,\n\tnum_replicas = {},\n\tx = 1"
)
FSYNC = "SHOW CLUSTER SETTING kv.raft_log.disable_synchronization_unsafe"
DATABASE = 'SHOW ZONE CONFIGURATION FROM DATABASE "hold"'
TABLE = "SHOW ZONE CONFIGURATION FROM TABLE"
RANGES = "SHOW RANGES FROM TABLE"
SOUND = {
    FSYNC: [(False,)],
    DATABASE: [{"target": "RANGE default", "raw_config_sql": ZONE.format(3)}],
    TABLE: [{"target": "RANGE default", "raw_config_sql": ZONE.format(3)}],
    RANGES: [{"voting_replicas": [1, 2, 3]}, {"voting_replicas": [1, 2, 3]}],
}
DENIED = asyncpg.InsufficientPrivilegeError("only users with VIEWCLUSTERSETTING")


@pytest.mark.parametrize(
    ("answers", "sync", "problem"),
    [
        pytest.param({}, True, "", id="all is well"),
        pytest.param({FSYNC: [("false",)]}, True, "", id="as text"),
        pytest.param({FSYNC: [(True,)]}, False, "is True: what was committed can be lost", id="no fsync"),
        pytest.param({FSYNC: DENIED}, False, "GRANT SYSTEM VIEWCLUSTERSETTING", id="no privilege"),
        pytest.param({FSYNC: []}, False, "cannot be read", id="no answer"),
        pytest.param({DATABASE: DENIED}, False, 'DATABASE "hold" cannot be read', id="no zone to see"),
        pytest.param(
            {DATABASE: [{"raw_config_sql": None}]}, False, "names no num_replicas", id="a zone of nothing"
        ),
        pytest.param(
            {DATABASE: [{"raw_config_sql": ZONE.format(1)}]},
            True,
            "num_replicas = 1: it needs 3",
            id="one copy",
        ),
        pytest.param({DATABASE: [{"raw_config_sql": ZONE.format(1)}]}, False, "", id="one copy, as wished"),
        pytest.param(
            {TABLE: [{"raw_config_sql": ZONE.format(1)}]}, True, 'TABLE holdgate."fleet" has', id="of a table"
        ),
        pytest.param({RANGES: [{"voting_replicas": [1]}]}, True, "has 1 voting replicas", id="a single node"),
        pytest.param({RANGES: []}, True, "has 0 voting replicas", id="no ranges"),
        pytest.param({RANGES: DENIED}, True, "GRANT ZONECONFIG", id="no ranges to see"),
        pytest.param({RANGES: [{"other": 1}]}, True, "cannot be read", id="another column"),
        pytest.param({RANGES: DENIED}, False, "", id="ranges that nobody asks for"),
    ],
)
async def test_pc2_a_cockroachdb_that_could_lose_a_commit_is_refused(
    answers: dict[str, Any], sync: bool, problem: str
) -> None:
    found = CockroachServer()
    conn = Says(**answers)
    said = await found.look(conn, require_sync=sync) or await found.look_at_tables(
        conn, TABLES, require_sync=sync
    )
    assert (problem in said) and bool(said) == bool(problem), said


async def test_pc2_the_setting_has_two_names_and_a_broken_connection_is_no_answer() -> None:
    newer = {FSYNC: asyncpg.UndefinedObjectError("unknown setting")}
    newer["SHOW CLUSTER SETTING kv.raft_log.synchronization.unsafe.disabled"] = [(False,)]  # type: ignore[assignment]
    assert await CockroachServer().look(Says(**newer), require_sync=True) == ""
    for name in (FSYNC, DATABASE):
        with pytest.raises(asyncpg.AdminShutdownError):
            gone = {name: asyncpg.AdminShutdownError("draining")}
            await CockroachServer().look(Says(**gone), require_sync=True)
    assert await CockroachServer().look(Says(**{FSYNC: DENIED}), require_sync=True, writes=False) == ""


@needs_postgres
def test_pc1_whoever_starts_on_one_is_told_what_nobody_tried(
    server: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CockroachServer, "look", _fine)
    monkeypatch.setattr(CockroachServer, "look_at_tables", _fine)
    settings = server.database()
    says(server, database_of(settings), VERSION_SAID)
    with caplog.at_level(logging.WARNING), opened(tmp_path, settings):
        (told,) = [each.getMessage() for each in caplog.records if each.name == "holdgate.postgres"]
    assert "have not run it on a CockroachDB" in told and "HOLDGATE_TEST_COCKROACH" in told


async def _fine(*_: object, **__: object) -> str:
    return ""


# --- what is sent ---

LACKS = {
    "advisory": "locks nothing there (cockroachdb/cockroach#13546)",
    "pg_locks": "has no session's locks",
    "unlogged": "not a kind of table",
    "tcp_": "no settings of a session",
    "synchronous": "no setting that means anything",
    "fsync": "a setting of the cluster, with another name",
    "pg_is_in_recovery": "says nothing of a cluster",
    "repeatable read": "another level is used, or an error",
    "read committed": "what is read under it is not what PG1 says",
    "listen": "not implemented (#41522)",
    "savepoint": "not needed, and retries differ",
    "lock table": "not implemented",
    " using ": "joins in writes: not in all versions",
    "crdb_internal": "closed in newer versions",
    "create function": "not in all versions",
    "to_regclass": "not in all versions",
}


class Recorder(asyncpg.Connection):  # type: ignore[misc]
    """A connection that writes down what is sent, with the row limit of its Execute message."""

    sent: list[tuple[str, int, bool]] = []  # noqa: RUF012  (a test's own)

    async def _execute(self, query: str, args: Any, limit: int, *rest: Any, **more: Any) -> Any:
        self.sent.append((query, limit, self.is_in_transaction()))
        return await super()._execute(query, args, limit, *rest, **more)

    async def execute(self, query: str, *args: Any, **more: Any) -> Any:
        if not args:
            self.sent.append((query, 0, self.is_in_transaction()))
        return await super().execute(query, *args, **more)

    def cursor(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("a portal with a row limit")

    prepare = cursor


METER = "ab" * 32
TRUST = {"version": 1, "epoch": 1, "digest": "sha256:" + "a" * 64}


async def everything(tmp_path: Path, settings: Any) -> None:
    """All that a fleet does with its store."""
    kept = KeptAnswer(key=b"k" * 32, data=b"sealed")
    with fleet_of(tmp_path, settings, "1 2") as (one, two):
        made = await one.record(Twin("same"))
        wait = await waiting(two, "same")
        one.offer(made.entry.receipt_id, ANSWER)
        executed(one, made)
        assert await wait == ANSWER
        first = await one.record(RefundJudge("kept", keeps=True, sealed=True))
        one.record_outcome(first.entry.receipt_id, OutcomeStatus.EXECUTED, 200, delivered=True, kept=kept)
        await one.record(RefundJudge("settled"))
        assert (await two.record(RefundJudge("kept", keeps=True))).answer == kept
        await one.record(sticking(Asked(DENY)))
        assert (await two.record(sticking(Asked(PERMIT)))).entry.outcome is Outcome.DENY
        await make(one, index_of(BONDS))
        spends = Charge(meter=METER, at_us=T0, until_us=T0 + 10**12, amount=5, count=1)
        await one.record(RefundJudge("spends", meters=(METER,), charge=lambda *_: (spends,)))
        await one.note(AdminNote(action="trust_adopted", by="local", details=TRUST))
        for erasure in (
            Erasure(action=SHRED, ids=frozenset({first.entry.receipt_id})),
            Erasure(action=RETENTION, before_us=1),
        ):
            await one.erase(EraseOrder(erasure=erasure, count=1, by="local"))
        left: Recorded = await two.record(RefundJudge("left", conflict="c"))
        two.close()
        finding = Finding(of=left.entry.receipt_id, found=OutcomeStatus.NOT_SENT, by="local", note="")
        await one.reconcile(replace(finding, node_stopped=True))
        store: Any = one._store
        store._in_doubt = True
        await one.record(RefundJudge("after a doubt"))
        store.tend = lambda: None  # the writer thread's, and this test uses its connection
        rows = store.begin(())
        rows.prepared("f" * 64)
        rows.inputs(first.entry.receipt_id)
        rows.denial("f" * 64)
        rows.total("m", 0)
        store.rollback()
    with PostgresReader(tmp_path, settings, None) as reader:
        assert reader.deserted() and audit_fleet(reader.fleet_input(), {}).nodes
        reader.end_audit()
        reader.list(agent="a", surface="s", outcome="PERMIT", since_us=1)
        reader.totals(("m",), 0)
        reader.count_kept(Erasure(action=SHRED, ids=frozenset({left.entry.receipt_id})))
    with PostgresReader(tmp_path, settings, "edge-1") as reader:
        for each in (reader.export(), reader.decisions(), reader.retired_keys(), reader.claims()):
            list(each)
        reader.newest_admin("trust_adopted")
        reader.without_effect()
        reader.prepared("x")


async def test_nothing_is_sent_that_cockroachdb_lacks(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = list[tuple[str, int, bool]]()
    monkeypatch.setattr(Recorder, "sent", sent)
    monkeypatch.setattr(
        postgres_link.asyncpg, "connect", functools.partial(asyncpg.connect, connection_class=Recorder)
    )
    monkeypatch.setattr(postgres_write, "FORGET_EVERY", 1)
    if not REAL:  # what says that it is one: no check of PostgreSQL's is sent
        monkeypatch.setattr(CockroachServer, "look", _fine)
        monkeypatch.setattr(CockroachServer, "look_at_tables", _fine)
        monkeypatch.setattr(postgres_link, "server_of", lambda version, engine: CockroachServer())
    await everything(tmp_path, server.database())
    texts = {text for text, _, _ in sent}
    for word, reason in LACKS.items():
        assert [text for text in texts if word in text.lower()] == [], f"{word}: {reason}"
    assert [text for text, limit, _ in sent if limit] == [], "a row limit leaves a portal open (#40195)"
    ddl = re.compile(r"CREATE|ALTER|DROP")
    assert [text for text, _, inside in sent if inside and ddl.match(text)] == [], (
        "committed before it (#42061)"
    )
    for text in texts:
        parts = re.split(r"\bw_\w+ AS \(", text)
        assert all("RETURNING" in part for part in parts[1:]), "a WITH part that returns nothing"
        written = re.findall(r"(?:INSERT INTO|UPDATE|DELETE FROM) (holdgate\.\w+)", text)
        assert len(written) == len(set(written)), "a table is written twice in a statement (#70731)"
        assert not (text.startswith("DECLARE") and "$" in text), "no parameters there (#82565)"
    mine = [getattr(postgres_sql, name) for name in postgres_sql.__all__ if name.isupper()]
    wanted = {text for each in mine for text in ((each,) if isinstance(each, str) else each)}
    wanted -= {postgres_sql.NOW_US, postgres_sql.HEAD, postgres_sql.LOCK, postgres_sql.PERMITS}
    assert wanted - texts == set(), "statements that this test did not see"
    for part in (postgres_sql.HEAD % "", postgres_sql.LOCK, postgres_sql.PERMITS, "DECLARE", "FETCH FORWARD"):
        assert any(part in text for text in texts), part
