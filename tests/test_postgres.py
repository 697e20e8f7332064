"""adapters/postgres*.py: the invariants in their docstrings, against a real server that is killed, stopped or
cut off, and with a synchronous standby that goes away and takes over."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import re
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pgserver
from evidence import KEYS, LOG_KEYS, ORIGIN, T0, RefundJudge, ticking
from faultlink import Fault, FaultLink
from holdgate.adapters.postgres_reader import PostgresReader
from holdgate.adapters.store_ledger import StoreLedger
from holdgate.answer import Answer
from holdgate.audit import audit
from holdgate.config_store import PostgresStore
from holdgate.erasure import SHRED, EraseOrder, Erasure
from holdgate.errors import BackendError, ConfigError, Outcome, Reason
from holdgate.ledger import (
    Finding,
    InFlightElsewhere,
    OutcomeStatus,
    ReconcileError,
    Recorded,
    State,
    Verdict,
)
from holdgate.receipt import verify
from holdgate.sealing import KeptAnswer
from pgserver import open_ledger
from surface_requests import index_of
from test_bonds import MAP as BONDS
from test_bonds import make, said_of

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent
WRITER = """\
import asyncio, itertools, random, secrets, sys
sys.path.insert(0, {tests!r})
import pgserver
from evidence import RefundJudge
from holdgate.errors import HoldgateError, Outcome
from holdgate.ledger import OutcomeStatus
from pathlib import Path

async def main(folder, where, database, node, seed):
    settings = pgserver.settings_of(where, database)
    ledger = pgserver.open_ledger(Path(folder), settings, node=node, origin="holdgate.local/" + node,
        nonce16=lambda: secrets.token_bytes(16), clock_us=pgserver.wall_us)
    random.seed(seed)
    print("open", flush=True)
    for _ in range(60):
        keys = [str(random.randrange(12)) for _ in range(4)]
        for done in await asyncio.gather(*(one(ledger, key) for key in keys)):
            if done:
                print(*done, flush=True)
    ledger.close()

async def one(ledger, key):
    try:
        judge = RefundJudge("", source="implicit", digest="sha256:" + key.zfill(64), conflict=key)
        made = await ledger.record(judge)
    except HoldgateError:
        return None
    if made.entry.outcome is not Outcome.PERMIT:
        return None
    await asyncio.sleep(random.random() * 0.01)
    ledger.record_outcome(made.entry.receipt_id, OutcomeStatus.EXECUTED, 200, delivered=True)
    return made.entry.receipt_id, key

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def server() -> Iterator[pgserver.Server]:
    with pgserver.server() as running:
        yield running


@pytest.fixture
def own_server() -> Iterator[pgserver.Server]:
    """One that a test may do to what it likes."""
    with pgserver.server() as running:
        yield running


@contextlib.contextmanager
def opened(folder: Path, settings: PostgresStore, **changes: Any) -> Iterator[StoreLedger]:
    folder.mkdir(exist_ok=True)
    ledger = open_ledger(folder, settings, **({"nonce16": lambda: secrets.token_bytes(16)} | changes))
    try:
        yield ledger
    finally:
        ledger.close()


def node(name: str, **changes: Any) -> dict[str, Any]:
    return {"node": name, "origin": f"holdgate.local/{name}", **changes}


async def refused(ledger: StoreLedger, key: str) -> str:
    """Why a decision cannot be recorded."""
    with pytest.raises(BackendError) as raised:
        await ledger.record(RefundJudge(key))
    assert raised.value.reason is Reason.STORE_UNAVAILABLE
    return raised.value.detail


async def until(holds: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        await asyncio.sleep(0.02)


def problems(folder: Path, settings: PostgresStore, name: str = "edge-1") -> tuple[str, ...]:
    with PostgresReader(folder, settings, name) as reader:
        origin = ORIGIN if name == "edge-1" else f"holdgate.local/{name}"
        report = audit(reader.audit_input(), origin=origin, receipt_keys=KEYS, log_keys=LOG_KEYS)
    # RefundJudge writes as edge-1, wherever it is asked.
    return tuple(each for each in report.problems if name == "edge-1" or "issued for another log" not in each)


# --- PL1: durability ---


@contextlib.contextmanager
def switched(server: pgserver.Server, name: str, value: str) -> Iterator[None]:
    """A setting of the running server, for a while."""
    before = server.sql(f"SHOW {name}")
    try:
        server.sql(f"ALTER SYSTEM SET {name} = {value}")
        _reload(server, name, value)
        yield
    finally:
        server.sql(f"ALTER SYSTEM RESET {name}")
        _reload(server, name, before)


def _reload(server: pgserver.Server, name: str, value: str) -> None:
    server.sql("SELECT pg_reload_conf()")
    end = time.monotonic() + 60
    while server.sql(f"SHOW {name}") != value:
        assert time.monotonic() < end, f"{name} did not become {value}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fsync", "off"),
        ("full_page_writes", "off"),
        ("synchronous_commit", "off"),
        ("synchronous_commit", "local"),
    ],
)
def test_pl1_a_server_that_can_lose_a_commit_is_refused_at_start(
    server: pgserver.Server, tmp_path: Path, name: str, value: str
) -> None:
    settings = server.database()
    refusal = pytest.raises(ConfigError, match=f"{name} is {value}")
    with switched(server, name, value), refusal, opened(tmp_path, settings):
        pass


def test_pl1_without_a_synchronous_standby_that_is_required_nothing_starts(
    server: pgserver.Server, tmp_path: Path
) -> None:
    settings = server.database(require_sync=True)
    with pytest.raises(ConfigError, match="synchronous_standby_names is empty"), opened(tmp_path, settings):
        pass


def says(server: pgserver.Server, database: str, version: str) -> None:
    """What that database answers to SELECT version()."""
    server.sql(
        f"CREATE FUNCTION public.version() RETURNS text LANGUAGE sql AS $$ SELECT '{version}' $$", database
    )
    server.sql(f"ALTER DATABASE {database} SET search_path = public, pg_catalog", database)


@pytest.mark.parametrize(
    ("version", "refusal"),
    [
        ("CockroachDB CCL v26.1.0 (x86_64-pc-linux-gnu)", "write `store: {url: ..., engine: cockroachdb}`"),
        ("PostgreSQL 11.2-YB-2.20.1.0-b0 on x86_64", "no PostgreSQL but 'PostgreSQL 11.2-YB"),
    ],
    ids=["CockroachDB", "YugabyteDB"],
)
def test_pl1_what_only_speaks_the_protocol_is_refused_by_name(
    server: pgserver.Server, tmp_path: Path, version: str, refusal: str
) -> None:
    settings = server.database()
    name = settings.urls[0].rpartition("/")[2].partition("?")[0]
    says(server, name, version)
    with pytest.raises(ConfigError, match=re.escape(refusal)), opened(tmp_path, settings):
        pass
    assert server.sql("SELECT count(*) FROM pg_namespace WHERE nspname = 'holdgate'", name) == "0"


async def test_pl1_fsync_that_is_switched_off_later_is_noticed_and_heals(
    server: pgserver.Server, tmp_path: Path
) -> None:
    with opened(tmp_path, server.database()) as ledger:
        await ledger.record(RefundJudge("before"))
        with switched(server, "fsync", "off"):
            assert "fsync is off" in await refused(ledger, "off")
            assert not ledger.healthy
        await until(lambda: ledger.healthy)
        assert (await ledger.record(RefundJudge("off"))).entry.outcome is Outcome.PERMIT


# --- PL2, PG3: a server that does not answer ---


async def test_pl2_a_server_that_hangs_is_not_waited_for_and_it_heals(
    own_server: pgserver.Server, tmp_path: Path
) -> None:
    settings = replace(own_server.database(), deadline_ms=500)
    with opened(tmp_path, settings) as ledger:
        await ledger.record(RefundJudge("before"))
        own_server.signal(signal.SIGSTOP)
        try:
            assert "did not answer within 500 ms" in await asyncio.wait_for(refused(ledger, "a"), 60)
            await asyncio.wait_for(refused(ledger, "b"), 60)
            assert not ledger.healthy
        finally:
            own_server.signal(signal.SIGCONT)
        await until(lambda: ledger.healthy)
        judge = RefundJudge("a")
        await ledger.record(judge)
        assert judge.verdict in (Verdict.FRESH, Verdict.SUPERSEDE)
    assert problems(tmp_path, settings) == ()


async def test_pg3_a_commit_whose_answer_was_lost_is_settled_as_not_sent(
    server: pgserver.Server, tmp_path: Path
) -> None:
    settings = server.database()
    with FaultLink(("127.0.0.1", server.port)) as link:
        database = settings.urls[0].rpartition("/")[2].partition("?")[0]
        through = pgserver.settings_of(f"127.0.0.1:{link.port}", database, deadline_ms=1500)
        with opened(tmp_path, through) as ledger:
            store: Any = ledger._store
            commit = store._commit

            async def deaf_at_the_end(conn: Any, changes: Any) -> None:
                execute = conn.execute

                async def ask(sql: str, *values: Any) -> Any:
                    if sql == "COMMIT":
                        link.fault(Fault.DEAF)  # it arrives; its answer does not
                    return await execute(sql, *values)

                await commit(_Through(conn, ask), changes)

            store._commit = deaf_at_the_end
            assert "did not answer" in await refused(ledger, "doubtful")
            store._commit = commit
            assert not ledger.healthy
            link.fault(Fault.NONE)
            await until(lambda: ledger.healthy)
            assert server.sql("SELECT state FROM holdgate.permits", database) == "dispatching"
            again = RefundJudge("doubtful")
            made = await ledger.record(again)
            assert (again.verdict, made.entry.outcome) == (Verdict.SUPERSEDE, Outcome.PERMIT)
            with PostgresReader(tmp_path, settings, "edge-1") as reader:
                assert reader.state_of(made.entry.prior) is State.NOT_SENT
    assert problems(tmp_path, settings) == ()


async def test_pl2_a_node_that_vanishes_in_the_middle_of_a_group_holds_the_others_up_for_a_deadline_only(
    server: pgserver.Server, tmp_path: Path
) -> None:
    settings = server.database()
    database = settings.urls[0].rpartition("/")[2].partition("?")[0]
    with FaultLink(("127.0.0.1", server.port)) as link:
        through = pgserver.settings_of(f"127.0.0.1:{link.port}", database, deadline_ms=1000)
        with (
            opened(tmp_path / "1", through) as gone,
            opened(tmp_path / "2", settings, **node("edge-2")) as other,
        ):
            store: Any = gone._store
            commit = store._commit

            async def cut_off(conn: Any, changes: Any) -> None:
                link.fault(Fault.STALLED)  # it holds the fleet's row, and is never heard of again
                await commit(conn, changes)

            store._commit = cut_off
            lost = asyncio.create_task(refused(gone, "same"))
            await until(lambda: bool(gone._store.lost) or link_is_stalled(link))
            # Its deadline is 5 s; the server ends the other's transaction after 1 s.
            judge = RefundJudge("same")
            made = await other.record(judge)
            assert (judge.verdict, made.entry.outcome) == (Verdict.FRESH, Outcome.PERMIT)
            await lost
            store._commit = commit
            link.fault(Fault.NONE)
            await until(lambda: gone.healthy)
            late = RefundJudge("same")
            await gone.record(late)
            assert late.verdict is Verdict.IN_FLIGHT


def link_is_stalled(link: FaultLink) -> bool:
    return link._fault is Fault.STALLED


class _Through:
    def __init__(self, conn: Any, execute: Any) -> None:
        self._conn, self.execute = conn, execute

    def __getattr__(self, name: str) -> Any:
        return getattr(self._conn, name)


async def test_pl2_a_connection_that_died_while_nobody_used_it_is_no_reason_to_refuse(
    server: pgserver.Server, tmp_path: Path
) -> None:
    with opened(tmp_path, server.database()) as ledger:
        await ledger.record(RefundJudge("a"))
        mine = "FROM pg_stat_activity WHERE application_name = 'holdgate edge-1'"
        server.sql(f"SELECT pg_terminate_backend(pid) {mine}")
        assert (await ledger.record(RefundJudge("b"))).entry.outcome is Outcome.PERMIT


async def test_a_server_that_is_killed_under_load_loses_nothing_and_everything_heals(
    own_server: pgserver.Server, tmp_path: Path
) -> None:
    settings = own_server.database()
    acknowledged: list[Recorded] = []
    with opened(tmp_path, settings) as ledger:
        for round_ in range(3):
            load = [asyncio.create_task(ledger.record(RefundJudge(f"{round_} {n}"))) for n in range(80)]
            await asyncio.sleep(random.random() * 0.05)
            own_server.kill()
            for done in await asyncio.gather(*load, return_exceptions=True):
                assert isinstance(done, Recorded | BackendError)
                if isinstance(done, Recorded):
                    acknowledged.append(done)
            await refused(ledger, "down")
            own_server.start()
            await until(lambda: ledger.healthy)
        await ledger.record(RefundJudge("last"))
        with PostgresReader(tmp_path, settings, "edge-1") as reader:
            for done in acknowledged:
                stored = reader.get(done.entry.receipt_id)
                assert stored is not None and (stored.index, stored.jws) == (done.index, done.entry.jws)
    assert problems(tmp_path, settings) == ()


# --- PG6: waiting for another node ---

ANSWER = Answer(
    status=200,
    reason=b"OK",
    headers=((b"Holdgate-Decision", b"PERMIT"),),
    body=b"re_1",
    rest=None,
    length=4,
    bodiless=False,
    close=False,
)


class Twin(RefundJudge):
    """A refund that waits for the one under the same key."""

    def __call__(self, *words: Any, **more: Any) -> Any:
        entry = super().__call__(*words, **more)
        return replace(entry, waits=self.verdict is Verdict.IN_FLIGHT)


async def waiting(ledger: StoreLedger, key: str) -> asyncio.Future[Answer | None]:
    """The wait of a request whose twin is in flight at another node."""
    size = ledger.size
    with pytest.raises(InFlightElsewhere) as found:
        await ledger.record(Twin(key))
    assert ledger.size == size, "nothing is recorded of it"
    wait = asyncio.ensure_future(ledger.first(found.value.receipt_id))
    await asyncio.sleep(0)
    return wait


@contextlib.contextmanager
def fleet_of(folder: Path, settings: PostgresStore, names: str) -> Iterator[list[StoreLedger]]:
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(opened(folder / name, settings, **(node(f"edge-{name}") if i else {})))
            for i, name in enumerate(names.split())
        ]


def executed(ledger: StoreLedger, of: Recorded) -> None:
    ledger.record_outcome(of.entry.receipt_id, OutcomeStatus.EXECUTED, 200, delivered=True)


async def test_pg6_who_waits_at_other_nodes_gets_the_answer_with_the_end(
    server: pgserver.Server, tmp_path: Path
) -> None:
    settings = server.database()
    name = settings.urls[0].rpartition("/")[2].partition("?")[0]
    with fleet_of(tmp_path, settings, "1 2 3") as (one, two, three):
        made = await one.record(Twin("same"))
        own = await one.record(Twin("same"))  # its own node's flights are the pipeline's
        assert own.entry.reason is Reason.IN_FLIGHT
        waits = [await waiting(ledger, "same") for ledger in (two, two, three)]
        await two.record(RefundJudge("meanwhile"))  # waiting holds nobody up
        assert not any(wait.done() for wait in waits)
        one.offer(made.entry.receipt_id, ANSWER)
        executed(one, made)
        assert await asyncio.gather(*waits) == [ANSWER] * 3
        later = await three.record(Twin("same"))
        assert (later.entry.reason, later.entry.prior) == (Reason.ALREADY_EXECUTED, made.entry.receipt_id)
        assert server.sql("SELECT count(*) FROM holdgate.twins", name) == "0", "fetched, and gone"
        assert one._offers == {}
    for folder in "1 2 3".split():
        assert problems(tmp_path / folder, settings, f"edge-{folder}") == ()


async def test_pg6_an_answer_that_nobody_waits_for_is_not_written(
    server: pgserver.Server, tmp_path: Path
) -> None:
    settings = server.database()
    name = settings.urls[0].rpartition("/")[2].partition("?")[0]
    with fleet_of(tmp_path, settings, "1 2") as (one, two):
        made = await one.record(Twin("same"))
        one.offer(made.entry.receipt_id, ANSWER)
        executed(one, made)
        await one.record(RefundJudge("flush"))
        assert server.sql("SELECT count(*) FROM holdgate.twins", name) == "0"
        assert one._offers == {}
        assert (await two.record(Twin("same"))).entry.reason is Reason.ALREADY_EXECUTED


@pytest.mark.parametrize("status", [OutcomeStatus.NOT_SENT, OutcomeStatus.UNKNOWN, OutcomeStatus.EXECUTED])
async def test_pg6_where_nothing_is_shared_the_end_is_told_and_it_decides_again(
    server: pgserver.Server, tmp_path: Path, status: OutcomeStatus
) -> None:
    with fleet_of(tmp_path, server.database(), "1 2") as (one, two):
        made = await one.record(Twin("same"))
        wait = await waiting(two, "same")
        one.record_outcome(made.entry.receipt_id, status, 0, delivered=False)
        assert await wait is None
        again = (await two.record(Twin("same"))).entry
        assert (again.outcome is Outcome.PERMIT) == (status is OutcomeStatus.NOT_SENT)


async def test_pg6_a_wait_survives_the_first_nodes_death_and_the_servers(
    own_server: pgserver.Server, tmp_path: Path
) -> None:
    settings = replace(own_server.database(), deadline_ms=1500)
    with opened(tmp_path / "2", settings, **node("edge-2")) as two:
        with opened(tmp_path / "1", settings) as one:
            await one.record(Twin("same"))
            wait = await waiting(two, "same")
        own_server.kill()
        await refused(two, "nothing is recorded now")
        own_server.start()
        await until(lambda: two.healthy)
        assert not wait.done()
        with opened(tmp_path / "1", settings):  # it makes its permit unknown
            assert await wait is None
        assert (await two.record(Twin("same"))).entry.reason is Reason.OUTCOME_UNKNOWN


async def test_pg6_whoever_gives_up_or_closes_leaves_nothing_behind(
    server: pgserver.Server, tmp_path: Path
) -> None:
    settings = server.database()
    name = settings.urls[0].rpartition("/")[2].partition("?")[0]
    with fleet_of(tmp_path, settings, "1 2") as (one, two):
        made = await one.record(Twin("same"))
        gone = await waiting(two, "same")
        gone.cancel()
        wait = await waiting(two, "same")
        two.close()
        with pytest.raises(BackendError) as told:
            await wait
        assert told.value.reason is Reason.STORE_UNAVAILABLE
        with pytest.raises(BackendError):
            await two.first(made.entry.receipt_id)
        assert problems(tmp_path / "2", settings, "edge-2") == (), "its head row has not moved"
        one.offer(made.entry.receipt_id, ANSWER)
        executed(one, made)
        await one.record(RefundJudge("flush"))
        assert server.sql("SELECT count(*) FROM holdgate.twins", name) == "1"
        assert b"re_1".hex() not in server.sql("SELECT data FROM holdgate.twins", name), "sealed"
        with opened(tmp_path / "2", settings, **node("edge-2")):
            assert server.sql("SELECT count(*) FROM holdgate.twins", name) == "0"


# --- PG1, PG2: a fleet ---


@pytest.mark.parametrize("sensitive", [False, True], ids=["in clear", "sealed"])
async def test_an_object_that_one_node_made_is_known_to_the_others(
    server: pgserver.Server, tmp_path: Path, sensitive: bool
) -> None:
    settings, index = server.database(), index_of(BONDS)
    with (
        opened(tmp_path / "a", settings) as one,
        opened(tmp_path / "b", settings, **node("edge-2")) as two,
    ):
        await make(one, index, sensitive=sensitive)
        await one.record(RefundJudge("written"))  # the outcome is, before this
        found = await said_of(two, index, "capture")
        assert found.outcome is Outcome.PERMIT
        assert b'"amount":1000,"currency":"eur"' in (found.inputs or b"")
        two.record_outcome(found.receipt_id, OutcomeStatus.EXECUTED, 200, delivered=True)
        await two.record(RefundJudge("settled"))
        assert (await said_of(one, index, "capture", key="x")).reason is Reason.ALREADY_EXECUTED
    for folder, name in (("a", "edge-1"), ("b", "edge-2")):
        assert problems(tmp_path / folder, settings, name) == ()


async def test_pg1_nodes_see_each_others_claims_and_time_only_goes_up(
    server: pgserver.Server, tmp_path: Path
) -> None:
    settings = server.database()
    with (
        opened(tmp_path / "1", settings) as one,
        opened(tmp_path / "2", settings, **node("edge-2", clock_us=ticking(T0 - 1_000_000))) as two,
    ):
        judges = [RefundJudge("same", conflict="c") for _ in range(20)]
        made = await asyncio.gather(
            *(
                ledger.record(judge)
                for judge, ledger in zip(judges, itertools.cycle((one, two)), strict=False)
            )
        )
        assert Counter(item.entry.outcome for item in made)[Outcome.PERMIT] == 1
        assert Counter(judge.verdict for judge in judges) == {Verdict.FRESH: 1, Verdict.IN_FLIGHT: 19}
        times = [item.entry.iat_us for item in made]
        assert len(set(times)) == 20
        (permit,) = [item for item in made if item.entry.outcome is Outcome.PERMIT]
        owner = one if permit is made[0] or made.index(permit) % 2 == 0 else two
        owner.record_outcome(permit.entry.receipt_id, OutcomeStatus.EXECUTED, 200, delivered=True)
        await owner.record(RefundJudge("flush"))
        later = RefundJudge("same")
        await (two if owner is one else one).record(later)
        assert later.verdict is Verdict.ALREADY_EXECUTED
    assert problems(tmp_path / "1", settings) == problems(tmp_path / "2", settings, "edge-2") == ()


def test_pg1_three_processes_with_conflicting_requests_never_hold_one_thing_twice(
    server: pgserver.Server, tmp_path: Path
) -> None:
    settings = server.database()
    database = settings.urls[0].rpartition("/")[2].partition("?")[0]
    where = f"127.0.0.1:{server.port}"
    script, running = WRITER.format(tests=str(ROOT)), []
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        words = [str(tmp_path / str(number)), where, database, f"edge-{number}", str(number)]
        command = [sys.executable, "-c", script, *words]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    said = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    things = dict(line.split() for text in said for line in text.splitlines() if line != "open")
    assert len(things) > 100
    with PostgresReader(tmp_path, settings, None) as reader:
        receipts = reader.list(limit=100_000).receipts[::-1]
    assert [each.iat_us for each in receipts] == sorted({each.iat_us for each in receipts})
    # In the order of the fleet's time: what one PERMIT holds is let go, by its outcome, before the next.
    held: dict[str, str] = {}
    for each in receipts:
        statement = verify(each.jws, KEYS).statement
        if each.outcome == "PERMIT":
            assert things[each.id] not in held
            held[things[each.id]] = each.id
        elif each.type == "outcome":
            assert held.pop(things[statement["of"]]) == statement["of"]
    assert held == {}
    for number in range(3):
        assert problems(tmp_path / str(number), settings, f"edge-{number}") == ()


async def test_pg2_a_node_that_was_replaced_writes_nothing_any_more(
    server: pgserver.Server, tmp_path: Path
) -> None:
    settings = server.database()
    database = settings.urls[0].rpartition("/")[2].partition("?")[0]
    with opened(tmp_path, settings) as ledger:
        await ledger.record(RefundJudge("a"))
        server.sql("UPDATE holdgate.nodes SET owner = 'somebody else'", database)
        for _ in range(2):
            assert "taken over node edge-1" in await refused(ledger, "b")
        assert not ledger.healthy
    assert server.sql("SELECT count(*) FROM holdgate.receipts", database) == "1"


def test_pg2_a_second_process_as_the_same_node_does_not_start(
    server: pgserver.Server, tmp_path: Path
) -> None:
    settings = server.database()
    with opened(tmp_path / "1", settings):
        with pytest.raises(ConfigError, match="another process runs as node edge-1"):
            with opened(tmp_path / "2", settings):
                pass


def test_a_node_with_another_fleet_key_does_not_start(server: pgserver.Server, tmp_path: Path) -> None:
    settings = server.database()
    with opened(tmp_path / "1", settings):
        with pytest.raises(ConfigError, match=r"fleet\.key is not that of the nodes"):
            with opened(tmp_path / "2", settings, **node("edge-2", fleet_key=bytes(31) + b"1")):
                pass


async def test_pg4_a_database_that_went_back_in_time_ends_the_ledger(
    server: pgserver.Server, tmp_path: Path
) -> None:
    settings = server.database()
    database = settings.urls[0].rpartition("/")[2].partition("?")[0]
    with opened(tmp_path / "1", settings) as one, opened(tmp_path / "2", settings, **node("edge-2")) as two:
        await one.record(RefundJudge("a"))
        await two.record(RefundJudge("b"))
        await one.record(RefundJudge("c"))
        server.sql("UPDATE holdgate.fleet SET iat_us = iat_us - 1", database)
        assert "lost what it had committed" in await refused(one, "d")
        server.sql("UPDATE holdgate.fleet SET iat_us = iat_us + 5", database)
        assert (await two.record(RefundJudge("e"))).entry.outcome is Outcome.PERMIT
        assert not one.healthy
    with pytest.raises(ConfigError, match="restored from a backup"):
        server.sql("DELETE FROM holdgate.receipts WHERE node = 1", database)
        server.sql("UPDATE holdgate.nodes SET size = 0, hashes = '' WHERE id = 1", database)
        with opened(tmp_path / "1", settings):
            pass


async def test_pg5_a_node_whose_clock_is_wrong_records_nothing(
    server: pgserver.Server, tmp_path: Path
) -> None:
    wrong = [0]
    clock = lambda: pgserver.wall_us() + wrong[0]  # noqa: E731
    with opened(tmp_path, server.database(), clock_us=clock, skew_s=5.0) as ledger:
        await ledger.record(RefundJudge("a"))
        wrong[0] = -60_000_000
        assert "clock is -60" in await refused(ledger, "b")
        wrong[0] = 0
        await until(lambda: ledger.healthy)
        await ledger.record(RefundJudge("b"))


# --- permits of a node that is gone ---


async def test_a_permit_of_a_node_that_is_gone_can_be_reconciled_by_another_and_of_a_live_one_not(
    server: pgserver.Server, tmp_path: Path
) -> None:
    settings = server.database()
    finding = Finding(of="", found=OutcomeStatus.NOT_SENT, by="local", note="")
    with opened(tmp_path / "2", settings, **node("edge-2")) as two:
        with opened(tmp_path / "1", settings) as one:
            made = await one.record(RefundJudge("a", conflict="c"))
            finding = replace(finding, of=made.entry.receipt_id)
            with pytest.raises(Exception, match="is dispatching, not unknown"):
                await two.reconcile(finding)
            with PostgresReader(tmp_path, settings, None) as reader:
                assert reader.deserted() == []
        with PostgresReader(tmp_path, settings, None) as reader:
            assert [each.id for each in reader.deserted()] == [made.entry.receipt_id]
        with pytest.raises(ReconcileError, match="may still be sending"):
            await two.reconcile(finding)  # without its lock, but is it stopped, or only cut off?
        await two.reconcile(replace(finding, node_stopped=True))
        again = RefundJudge("a", conflict="c")
        assert (await two.record(again)).entry.outcome is Outcome.PERMIT
        assert again.verdict is Verdict.SUPERSEDE
    with opened(tmp_path / "1", settings):
        pass
    assert problems(tmp_path / "1", settings) == problems(tmp_path / "2", settings, "edge-2") == ()


# --- erasing ---


async def test_an_answer_that_one_node_had_kept_is_told_at_another_until_it_is_shredded(
    server: pgserver.Server, tmp_path: Path
) -> None:
    settings, kept = server.database(), KeptAnswer(key=b"k" * 32, data=b"what is sealed")
    with fleet_of(tmp_path, settings, "1 2") as (one, two):
        first = (await one.record(RefundJudge("a", keeps=True))).entry.receipt_id
        one.record_outcome(first, OutcomeStatus.EXECUTED, 200, delivered=True, kept=kept)
        await one.record(RefundJudge("settled"))
        for _ in range(2):
            again = await two.record(RefundJudge("a", keeps=True))
            assert (again.answer, again.entry.prior) == (kept, first)
        erasure = Erasure(action=SHRED, ids=frozenset({first}))
        await one.erase(EraseOrder(erasure=erasure, count=1, by="local"))
        for ledger in (one, two):
            gone = await ledger.record(RefundJudge("a", keeps=True))
            assert (gone.answer, gone.entry.prior) == (None, first)
    assert problems(tmp_path / "1", settings) == problems(tmp_path / "2", settings, "edge-2") == ()


async def test_pe1_what_is_shredded_is_in_no_row(server: pgserver.Server, tmp_path: Path) -> None:
    settings = server.database()
    with opened(tmp_path, settings) as ledger:
        made = [await ledger.record(RefundJudge(str(n), sealed=n % 2 == 0)) for n in range(6)]
        doomed = {each.entry.receipt_id for each in made[:4]}
        erasure = Erasure(action=SHRED, ids=frozenset(doomed))
        with PostgresReader(tmp_path, settings, "edge-1") as reader:
            assert reader.count_kept(erasure) == 4
        erased = await ledger.erase(EraseOrder(erasure=erasure, count=4, by="local"))
        assert not erased.out_of_files  # older versions of rows are the database's
        with PostgresReader(tmp_path, settings, "edge-1") as reader:
            assert reader.count_kept(erasure) == 0
            assert [reader.input(each.entry.receipt_id) is None for each in made] == [True] * 4 + [False] * 2
    assert problems(tmp_path, settings) == ()


async def test_pe2_an_erasure_that_a_crash_interrupted_is_finished_by_the_next_open(
    server: pgserver.Server, tmp_path: Path
) -> None:
    settings = server.database()
    database = settings.urls[0].rpartition("/")[2].partition("?")[0]
    with opened(tmp_path, settings) as ledger:
        made = await ledger.record(RefundJudge("a", sealed=True))
        ledger._eraser.step = lambda: None  # type: ignore[method-assign]
        erasure = Erasure(action=SHRED, ids=frozenset({made.entry.receipt_id}))
        task = asyncio.create_task(ledger.erase(EraseOrder(erasure=erasure, count=1, by="local")))
        await until(lambda: server.sql("SELECT count(*) FROM holdgate.erasing", database) == "1")
        task.cancel()
    assert server.sql("SELECT count(*) FROM holdgate.sealed", database) == "1"
    with opened(tmp_path, settings) as ledger:
        await ledger.record(RefundJudge("b"))
        await until(lambda: server.sql("SELECT count(*) FROM holdgate.erasing", database) == "0")
    assert server.sql("SELECT count(*) FROM holdgate.sealed", database) == "0"


# --- a synchronous standby ---


async def test_a_standby_that_goes_away_stops_permits_and_takes_over_without_a_second_one(
    own_server: pgserver.Server, tmp_path: Path
) -> None:
    with pgserver.folder() as place:
        standby = pgserver.standby_of(own_server, place)
        standby.start()
        try:
            own_server.sql("ALTER SYSTEM SET synchronous_standby_names = 'FIRST 1 (*)'")
            own_server.sql("SELECT pg_reload_conf()")
            in_sync = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"
            await until(lambda: own_server.sql(in_sync) == "1")
            first = own_server.database(require_sync=True)
            database = first.urls[0].rpartition("/")[2].partition("?")[0]
            where = f"127.0.0.1:{own_server.port},127.0.0.1:{standby.port}"
            both = pgserver.settings_of(where, database, require_sync=True, deadline_ms=2000)
            with opened(tmp_path, both) as ledger:
                sent = await ledger.record(RefundJudge("sent"))
                lagging = pgserver.settings_of(f"127.0.0.1:{standby.port}", database)
                with pytest.raises(ConfigError, match="is a standby"):
                    PostgresReader(tmp_path, lagging, "edge-1")
                standby.signal(signal.SIGSTOP)
                # Written here, and nowhere else: the COMMIT waits, so nobody is permitted.
                assert "did not answer" in await refused(ledger, "doubtful")
                standby.signal(signal.SIGCONT)
                own_server.kill()
                # The new primary has no standby of its own yet: still nothing, because one is required.
                standby.promote()
                assert await refused(ledger, "sent")
                standby.sql("ALTER SYSTEM SET synchronous_standby_names = ''")
                standby.sql("SELECT pg_reload_conf()")
            alone = replace(both, require_sync=False)
            with opened(tmp_path, alone) as ledger:
                known = RefundJudge("sent")
                assert (await ledger.record(known)).entry.outcome is not Outcome.PERMIT
                assert known.verdict is Verdict.OUTCOME_UNKNOWN
                with PostgresReader(tmp_path, alone, "edge-1") as reader:
                    assert reader.state_of(sent.entry.receipt_id) is State.UNKNOWN
            assert problems(tmp_path, alone) == ()
        finally:
            standby.kill()
