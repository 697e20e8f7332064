"""adapters/facts.py and fact_sources.py: files, SQLite and HTTP, when all is well and otherwise."""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdgate.adapters import facts as adapter
from holdgate.adapters.fact_sources import MAX_ANSWER, SourceError, read_table
from holdgate.adapters.facts import CONCURRENT, Facts, build_facts
from holdgate.adapters.fitness import check_facts
from holdgate.config_facts import FileSource, Provider, read_facts
from holdgate.errors import ConfigError
from holdgate.facts import Form, Found, Lookup
from holdgate.strictyaml import load

NOW = 1_800_000_000
KEY = ("triage", "p1")


def providers(folder: Path, text: str) -> tuple[Provider, ...]:
    return read_facts(load(text, file=str(folder / "holdgate.yaml")), folder)


def facts(folder: Path, text: str, **more: Any) -> Facts:
    return build_facts(providers(folder, text), now_s=lambda: NOW, **more)


async def one(asked: Facts, *key: str, provider: str = "ehr") -> Found | None:
    lookup = Lookup(provider, key)
    return (await asked.fetch([lookup])).get(lookup)


# --- files ---

CSV = "agent,patient,member\ntriage,p1,true\ntriage,p2,\n"
TABLES = {
    "panel.csv": CSV,
    "panel.json": '[{"agent":"triage","patient":"p1","member":true}, {"agent":"triage","patient":"p2"}]',
    "panel.yaml": "- {agent: triage, patient: p1, member: true}\n- {agent: triage, patient: p2}\n",
}


@pytest.mark.parametrize("name", TABLES)
async def test_a_table_answers_by_its_key(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(TABLES[name])
    os.utime(tmp_path / name, (NOW - 60, NOW - 60))
    asked = facts(tmp_path, f"ehr: {{file: {{path: {name}, key: [agent, patient]}}, max_age_s: 900}}")
    found = await one(asked, *KEY)
    assert found is not None
    assert found.values == {"member": "true" if name.endswith("csv") else True}
    assert (found.read_s, found.max_age_s) == (NOW - 60, 900)
    assert re.fullmatch(r"file sha256:[0-9a-f]{64}", found.source)
    empty = await one(asked, "triage", "p2")
    assert empty is not None and empty.values == {}
    assert await one(asked, "triage", "p3") is None
    assert await one(asked, "p1", "triage") is None


async def test_fs1_a_changed_table_is_read_again_and_a_broken_one_has_no_rows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "panel.csv"
    path.write_text(CSV)
    asked = facts(tmp_path, "ehr: {file: {path: panel.csv, key: [agent, patient]}}")
    assert (found := await one(asked, *KEY)) is not None and found.values == {"member": "true"}
    path.write_text(CSV.replace("true", "false"))
    assert (found := await one(asked, *KEY)) is not None and found.values == {"member": "false"}
    path.write_text(CSV + "triage,p1,true\n")
    assert await one(asked, *KEY) is None and await one(asked, *KEY) is None
    assert caplog.text.count("row 3 has the key of row 1") == 1, "said once"
    path.unlink()
    assert await one(asked, *KEY) is None
    path.write_text(CSV)
    assert await one(asked, *KEY) is not None


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        pytest.param("t.csv", "", "first line must name every column", id="no header"),
        pytest.param("t.csv", "agent,agent\nx,y\n", "each once", id="a column twice"),
        pytest.param("t.csv", "agent,patient\nx\n", "line 2 has 1 cells", id="a cell too few"),
        pytest.param("t.csv", 'agent,patient\nx,"y"z\n', "is not CSV", id="a broken quote"),
        pytest.param("t.csv", "agent,member\nx,true\n", "lacks patient", id="no key column"),
        pytest.param("t.csv", "agent,patient\nx,\n", "row 1 lacks patient", id="an empty key"),
        pytest.param("t.json", "{}", "not a list of records", id="no list"),
        pytest.param("t.json", "[1]", "not a list of records", id="no record"),
        pytest.param("t.json", '[{"a":1,"a":2}]', "", id="a name twice"),
        pytest.param("t.yaml", "a: &x 1", "", id="an anchor"),
        pytest.param("t.json", "\ufeff[]", "", id="a byte order mark"),
    ],
)
def test_fs1_a_table_that_does_not_load_refuses_the_start(
    tmp_path: Path, name: str, text: str, said: str
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as raised:
        facts(tmp_path, f"ehr: {{file: {{path: {name}, key: [agent, patient]}}}}")
    assert said in str(raised.value) and raised.value.file.endswith(name)


def test_fs1_a_table_that_is_missing_or_too_large_refuses_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "ehr: {file: {path: t.csv, key: [agent, patient]}}"
    with pytest.raises(ConfigError, match="No such file"):
        facts(tmp_path, text)
    monkeypatch.setattr("holdgate.adapters.fact_sources.MAX_TABLE", 10)
    (tmp_path / "t.csv").write_text(CSV)
    with pytest.raises(ConfigError, match="larger than"):
        facts(tmp_path, text)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.tuples(st.text("ab,\"'; \n", min_size=1), st.text("1é", min_size=1)), st.booleans(), max_size=5
    )
)
def test_fs1_every_row_of_a_table_is_found_under_its_own_key_only(rows: dict[tuple[str, str], bool]) -> None:
    import csv
    import io

    text = io.StringIO(newline="")
    csv.writer(text).writerows([("a", "p", "m"), *((*key, str(m).lower()) for key, m in rows.items())])
    read = read_table(FileSource(path=Path("t.csv"), key=("a", "p")), text.getvalue().encode())
    assert read == {key: {"m": str(m).lower()} for key, m in rows.items()}


# --- SQLite ---

SQL = (
    "ehr: {sql: {sqlite: panel.db, key: [agent, patient],"
    ' query: "SELECT member, since AS as_of_s FROM panel WHERE agent = :agent AND patient = :patient"}}'
)


@pytest.fixture
def panel(tmp_path: Path) -> Path:
    with sqlite3.connect(tmp_path / "panel.db") as db:
        db.execute("CREATE TABLE panel(agent TEXT, patient TEXT, member INTEGER, since INTEGER)")
        rows = [("triage", "p1", 1, NOW - 5), ("triage", "p2", 1, 1), ("triage", "p2", 0, 1)]
        db.executemany("INSERT INTO panel VALUES(?, ?, ?, ?)", rows)
    db.close()
    return tmp_path


async def test_a_row_of_sqlite_answers(panel: Path) -> None:
    found = await one(facts(panel, SQL), *KEY)
    assert found is not None
    assert found.values == {"member": 1, "as_of_s": NOW - 5}
    assert (found.form, found.source, found.read_s) == (Form.SQL, "sqlite", NOW)
    assert await one(facts(panel, SQL), "triage", "p2") is None, "two rows"
    assert await one(facts(panel, SQL), "triage", "p3") is None, "no row"


INJECTIONS = ["p1' OR '1'='1", "p1'; DROP TABLE panel; --", "%", "_", 'p1"', "p1\0", "p1 ", ":patient", "P1"]


@pytest.mark.parametrize("name", INJECTIONS)
async def test_fp2_a_key_is_only_a_value_in_sql(panel: Path, name: str) -> None:
    asked = facts(panel, SQL)
    assert await one(asked, "triage", name) is None
    assert await one(asked, *KEY) is not None


@pytest.mark.parametrize(
    "query",
    [
        pytest.param("SELECT 1 WHERE :a = :b; SELECT 2", id="two statements"),
        pytest.param("SELECT nothing FROM panel WHERE :a = :b", id="no such column"),
        pytest.param("SELECT load_extension(:a) WHERE :b = 1", id="an extension"),
    ],
)
def test_fs2_a_query_that_is_not_one_select_refuses_the_start(panel: Path, query: str) -> None:
    with pytest.raises(ConfigError, match="the query does not work"):
        facts(panel, f'ehr: {{sql: {{sqlite: panel.db, key: [a, b], query: "{query}"}}}}')


async def test_fs2_a_statement_that_outlives_the_deadline_is_stopped(panel: Path) -> None:
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT max(x) FROM n"
    # One SELECT to the reader; the recursion is inside.
    query = f"SELECT * FROM ({endless}) WHERE :a = :a"  # noqa: S608
    asked = facts(panel, f'ehr: {{deadline_ms: 50, sql: {{sqlite: panel.db, key: [a], query: "{query}"}}}}')
    loop = asyncio.get_running_loop()
    started = loop.time()
    assert await one(asked, "x") is None
    await loop.shutdown_default_executor()  # waits for the thread, which would run for ever
    assert loop.time() - started < 5


async def test_fs2_the_database_is_never_written(panel: Path) -> None:
    before = {path.name for path in panel.iterdir()}
    await one(facts(panel, SQL), *KEY)
    assert {path.name for path in panel.iterdir()} == before
    (panel / "panel.db").unlink()
    with pytest.raises(ConfigError, match="unable to open"):
        facts(panel, SQL)
    assert not (panel / "panel.db").exists()


# --- HTTP ---

type Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def served(handler: Handler) -> AsyncIterator[int]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
    finally:
        await runner.cleanup()


def http(port: int, more: str = "", host: str = "127.0.0.1") -> str:
    return f'ehr: {{{more} http: {{url: "http://{host}:{port}/v1/panel", key: [agent, patient]}}}}'


async def test_an_answer_over_http(tmp_path: Path) -> None:
    seen: list[Mapping[str, str]] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append({"path": request.path_qs, **request.headers})
        return web.json_response({"member": True, "note": "x"})

    (tmp_path / "token").write_text("s3cret\n")
    async with served(handler) as port:
        text = f'ehr: {{http: {{url: "http://panel.test/v1", address: "127.0.0.1:{port}", key: [agent],'
        asked = facts(tmp_path, text + " token_file: token}}")
        found = await one(asked, "triage")
        await asked.close()
    assert found is not None and found.values == {"member": True, "note": "x"}
    assert (found.form, found.read_s, found.source) == (Form.JSON, NOW, "http")
    assert seen[0]["path"] == "/v1?agent=triage" and seen[0]["Host"] == "panel.test"
    assert seen[0]["Authorization"] == "Bearer s3cret"


@pytest.mark.parametrize(
    "name", [*INJECTIONS, "a&agent=admin", "../../admin", "#", "?x=1", "a\r\nX: y", "é", "+"]
)
async def test_fp2_a_key_is_only_a_parameter_over_http(tmp_path: Path, name: str) -> None:
    seen: list[tuple[str, list[tuple[str, str]]]] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append((request.path, list(request.query.items())))
        return web.json_response({})

    async with served(handler) as port:
        asked = facts(tmp_path, http(port))
        await one(asked, "triage", name)
        await asked.close()
    assert seen == [("/v1/panel", [("agent", "triage"), ("patient", name)])]


def answering(status: int, body: bytes, **headers: str) -> Handler:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(status=status, body=body, headers=headers)

    return handler


@pytest.mark.parametrize(
    "handler",
    [
        pytest.param(answering(404, b"{}"), id="not found"),
        pytest.param(answering(500, b"{}"), id="an error"),
        pytest.param(answering(204, b""), id="no content"),
        pytest.param(answering(302, b"{}", Location="/v1/other"), id="a redirect"),
        pytest.param(answering(200, b"member"), id="not JSON"),
        pytest.param(answering(200, b"[]"), id="no object"),
        pytest.param(answering(200, b'{"a":1,"a":2}'), id="a name twice"),
        pytest.param(answering(200, b'"' + b"x" * MAX_ANSWER + b'"'), id="too large"),
    ],
)
async def test_fs3_what_is_not_one_json_object_is_no_answer(tmp_path: Path, handler: Handler) -> None:
    calls = 0

    async def counted(request: web.Request) -> web.StreamResponse:
        nonlocal calls
        calls += 1
        return await handler(request)

    async with served(counted) as port:
        asked = facts(tmp_path, http(port))
        assert await one(asked, *KEY) is None
        await asked.close()
    assert calls == 1, "and it is not asked again, here or elsewhere"


async def test_fs3_proxy_variables_and_cookies_are_nothing_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str | None] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Cookie"))
        answer = web.json_response({"n": len(seen)})
        answer.set_cookie("a", "b")
        return answer

    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    async with served(handler) as port:
        asked = facts(tmp_path, http(port))
        for _ in range(2):
            assert await one(asked, *KEY) is not None
        await asked.close()
    assert seen == [None, None]


# --- all of them ---


async def test_fp1_what_is_late_down_or_raises_is_not_in_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = asyncio.Event()

    async def handler(_: web.Request) -> web.Response:
        await never.wait()
        return web.Response()

    (tmp_path / "panel.csv").write_text(CSV)
    async with served(handler) as port:
        text = (
            f"good: {{file: {{path: panel.csv, key: [agent, patient]}}}}\n"
            f"{http(port, 'deadline_ms: 30,')}\n"
            f"{http(1, 'deadline_ms: 500,').replace('ehr:', 'down:')}\n"
            f"{http(1).replace('ehr:', 'raises:')}\n"
        )
        asked = facts(tmp_path, text)

        async def broken(*_: object, **__: object) -> Found:
            raise ZeroDivisionError

        monkeypatch.setattr(asked.asked["raises"].source, "read", broken)
        lookups = [Lookup(name, KEY) for name in ("good", "ehr", "down", "raises", "unknown")]
        found = await asked.fetch(lookups)
        never.set()
        await asked.close()
    assert set(found) == {Lookup("good", KEY)}


class Script:
    """A source that counts, and answers when it is told to."""

    def __init__(self, *answers: Found | None) -> None:
        self.answers, self.calls, self.now, self.most = list(answers), 0, 0, 0
        self.go = asyncio.Event()

    async def read(self, key: tuple[str, ...], *, deadline_s: float) -> Found:
        self.calls, self.now = self.calls + 1, self.now + 1
        self.most = max(self.most, self.now)
        try:
            await self.go.wait()
        finally:
            self.now -= 1
        answer = self.answers.pop(0) if self.answers else ANSWER
        if answer is None:
            raise SourceError("no row", of_the_key=True)
        return answer

    async def close(self) -> None:
        pass


ANSWER = Found(values={}, form=Form.JSON, read_s=NOW, max_age_s=0, source="x")


def scripted(monkeypatch: pytest.MonkeyPatch, script: Script, more: str, clock: Callable[[], float]) -> Facts:
    monkeypatch.setattr(adapter, "_source", lambda *_: script)
    return facts(Path("/"), f"ehr: {{{more} http: {{url: 'http://127.0.0.1:1/', key: [a]}}}}", clock=clock)


async def test_fp3_only_what_was_found_is_cached_and_only_as_long_as_declared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    script = Script(None)
    script.go.set()
    asked = scripted(monkeypatch, script, "cache_s: 10,", lambda: now[0])
    assert await one(asked, "x") is None
    assert await one(asked, "x") == ANSWER and script.calls == 2, "what was not found is asked again"
    now[0] = 9.9
    assert await one(asked, "x") == ANSWER and script.calls == 2
    assert await one(asked, "y") == ANSWER and script.calls == 3, "another key is another question"
    now[0] = 10.1
    assert await one(asked, "x") == ANSWER and script.calls == 4
    plain = scripted(monkeypatch, script, "", lambda: now[0])
    await one(plain, "x")
    await one(plain, "x")
    assert script.calls == 6


async def test_fp4_a_provider_is_asked_a_few_questions_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script()
    asked = scripted(monkeypatch, script, "deadline_ms: 10000,", lambda: 0.0)
    task = asyncio.ensure_future(asked.fetch([Lookup("ehr", (str(n),)) for n in range(3 * CONCURRENT)]))
    while script.now < CONCURRENT:
        await asyncio.sleep(0)
    for _ in range(20):
        await asyncio.sleep(0)
    assert script.now == CONCURRENT
    script.go.set()
    assert len(await task) == 3 * CONCURRENT and script.most == CONCURRENT


@pytest.mark.parametrize(
    ("provider", "key", "said"),
    [
        ("ehr", ("agent.id", "params.patient"), ""),
        ("ehr", ("agent.id",), r"has 2 parts \(agent, patient\), and this one 1"),
        ("other", ("agent.id",), "holdgate.yaml has no provider 'other'; there are: ehr"),
    ],
)
def test_every_fact_of_the_policies_has_a_provider(
    tmp_path: Path, provider: str, key: tuple[str, ...], said: str
) -> None:
    fact = SimpleNamespace(name="panel", provider=provider, key=key, file="p.yaml", line=7)
    bundle: Any = SimpleNamespace(policies=SimpleNamespace(facts=(fact,)))
    known: Any = SimpleNamespace(facts=providers(tmp_path, http(1)), path=Path("holdgate.yaml"))
    if not said:
        check_facts(known, bundle)
        return
    with pytest.raises(ConfigError, match=said) as raised:
        check_facts(known, bundle)
    assert (raised.value.file, raised.value.line) == ("p.yaml", 7)
