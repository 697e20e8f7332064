"""tests/bench: both load generators count right answers only and stop in time; ratios are to bare."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "bench"))  # a folder of scripts, not a package

import audits
import backtests
import logs
import policies
import run
import subjects


@pytest.fixture(params=["C", "Python"])
def stage(request: pytest.FixtureRequest, tmp_path: Path):
    load = [sys.executable, str(subjects.HERE / "load.py")]
    if request.param == "C":
        load, kind = subjects.build_load(tmp_path)
        if kind != "C":
            pytest.skip("no C compiler with OpenSSL's headers")
    stage = subjects.Stage(work=tmp_path, load=load)
    stage.start_upstream()
    yield stage
    stage.stop(list(stage.processes))


@pytest.mark.parametrize("mode", ["keepalive", "fresh"])
def test_a_load_is_bounded_and_every_id_is_used_once(stage: subjects.Stage, mode: str) -> None:
    command = [
        *stage.load,
        "client",
        "0",
        f"api.stripe.com:{stage.upstream_port}",
        "4",
        "20000",  # ms; the 20 end it long before
        "20",
        mode,
        "7",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    result = json.loads(done.stdout)
    # The bound is looked at before a request begins, so those under way may come on top.
    assert 20 <= result["requests"] <= 24
    assert (result["errors"], result["last_status"]) == (0, 200)
    assert result["next_id"] == 7 + result["requests"]


def test_the_direct_subject_gives_a_row(stage: subjects.Stage) -> None:
    bench = run.Bench(stage, 1000)
    row = bench.measure("direct", subjects.direct(stage), run.Scenario("c1", 1, "keepalive"))
    assert row.requests > 0
    assert (row.errors, row.cpu_ms, row.rss_mib) == (0, 0.0, 0.0)
    assert row.p50_ms <= row.p99_ms


def test_a_proxy_that_refuses_is_not_a_fast_proxy(stage: subjects.Stage) -> None:
    # The upstream speaks TLS: as a "proxy" it answers CONNECT with nonsense, so nothing may count as done.
    command = [
        *stage.load,
        "client",
        str(stage.upstream_port),
        "api.stripe.com:443",
        "2",
        "10000",  # ms; the 50 end it long before, on an idle machine or a busy one
        "50",
        "fresh",
        "1",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    result = json.loads(done.stdout)
    assert result["requests"] == 0
    assert result["errors"] >= 50


def test_cpu_and_memory_of_a_process_tree_are_seen() -> None:
    script = (
        "import subprocess, sys; subprocess.run([sys.executable, '-c', 'sum(range(3 * 10**7)); input()'])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script + "; input()"], stdin=subprocess.PIPE, text=True
    ) as process:
        while run.cpu_s([process.pid]) < 0.05:
            assert process.poll() is None
        assert run.rss_mib([process.pid]) > 5
        process.kill()
    assert run.cpu_s([process.pid]) == 0


def row(subject: str, rps: float, cpu_ms: float) -> run.Row:
    return run.Row(
        subject=subject, scenario="c1", requests=10, errors=1, rps=rps, p50_ms=1, p99_ms=2, p999_ms=3,
        cpu_ms=cpu_ms, rss_mib=100,
    )  # fmt: skip


def test_ratios_are_to_bare_mitmdump_and_medians_over_repetitions() -> None:
    rows = [
        row("bare", 100, 1.0),
        row("holdgate", 900, 0.2),
        row("holdgate", 500, 0.25),
        row("holdgate", 1, 9),
    ]
    medians = run.median_rows(rows)
    assert [(each.subject, each.rps, each.cpu_ms, each.errors) for each in medians] == [
        ("bare", 100, 1.0, 1),
        ("holdgate", 500, 0.25, 3),
    ]
    assert run.table(medians).splitlines()[-1].split()[2:4] == ["500", "5.00"]
    assert "0.25" in run.table(medians).splitlines()[-1].split()


@pytest.mark.parametrize(
    "arguments",
    [["--seconds", "31"], ["--seconds", "0"], ["--reps", "0"], ["--subjects", "nginx"], ["--loads", "c9999"]],
)
def test_a_load_without_bound_cannot_be_asked_for(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run.options(arguments)
    assert caught.value.code == 2


@pytest.mark.slow
def test_policies_are_measured_beside_what_they_are_compared_with(tmp_path: Path) -> None:
    rows = policies.measured(tmp_path, turns=1, records=20)
    assert len(rows) >= 4 + 3 * len(backtests.BACKTESTS)
    assert all(row.ours_us > 0 and row.theirs_us > 0 for row in rows)


def test_the_audit_is_measured_beside_bare_verification_of_the_same_receipts(tmp_path: Path) -> None:
    row = audits.measured(tmp_path, receipts=700, turns=1)
    assert row.receipts > 600
    assert row.audit_us > row.bare_us > 0  # an audit verifies every signature, and more


def test_a_log_of_any_size_is_appended_kept_and_proved_from(tmp_path: Path) -> None:
    log = logs.measured(tmp_path / "state", 600)
    assert log.size >= 600  # permits and outcomes, and whatever the instance itself says
    assert len(log.append_us) == logs.TENTHS
    assert min(*log.append_us, *log.wall_ms, *log.cpu_ms) > 0
    assert log.disk > log.tiles > 0
