"""adapters/doctor/: probes and witness as processes on loopback, and what one run makes of them."""

from __future__ import annotations

import ast
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from holdgate.adapters.doctor import probe as probe_script
from holdgate.adapters.doctor import prover
from holdgate.adapters.doctor.prover import HERE, UNKNOWN_UID, Options, Run, _try, _Witness
from holdgate.cli import main
from holdgate.coverage import State
from holdgate.errors import ConfigError
from holdgate.escape import CELLS, NETWORK, REQUIRED, Judge, Probe, Targets, token_of
from ports import free_port

RUN = "0123456789abcdef" * 2
HALF = '{"netns": 1, "uid": 0, "results": {"tcp4.22": {"ran": 1}}}'
NOWHERE = Targets(
    witness4="", witness6="", proxy="", admin="", transparent=False, files=(), sockets=(), pid=0
)  # fmt: skip


def the_probe(kind: str, **changes: Any) -> Probe:
    facts = {
        "id": "tcp4.22",
        "kind": kind,
        "host": "127.0.0.1",
        "port": 0,
        "proto": 0,
        "send": (),
        "args": (),
    }
    return Probe(**(facts | changes))


@pytest.fixture
def config(tmp_path: Path) -> Any:
    """As much of a configuration as a run needs: where the log would be."""
    return SimpleNamespace(state_dir=tmp_path, store=None)


def options(**changes: Any) -> Options:
    facts: dict[str, Any] = {
        "proving": True, "probe_at": HERE, "witness_at": (), "witnesses": (), "targets": NOWHERE,
        "timeout_s": 0.5,
    }  # fmt: skip
    return Options(**(facts | changes))


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(("/no/such/command",), id="a command that is not there"),
        pytest.param(("false",), id="one that fails"),
        pytest.param(("cat",), id="one that prints something else"),
        pytest.param((sys.executable, "-c", "print('{}')"), id="one that answers nonsense"),
        pytest.param((sys.executable, "-c", "print('[' * 100000)"), id="one that answers too deep"),
        pytest.param(
            (sys.executable, "-c", 'print(\'{"netns": 1, "uid": 0, "results": {"tcp4.22": {"ran": 1}}}\')'),
            id="half a result",
        ),
    ],
)
def test_dr1_a_place_that_makes_no_sense_leaves_its_rows_unproven(
    config: Any, command: tuple[str, ...]
) -> None:
    report = Run(config, options(probe_at=command), REQUIRED).examine(lambda uid: {})
    assert {row.state for row in report.rows} <= {State.UNPROVEN, State.NOT_APPLICABLE}
    assert (report.netns, report.uid, report.agent) == (0, UNKNOWN_UID, "")


def test_dr1_a_place_that_hangs_is_given_up(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def timed_out(self: Any, **_: Any) -> Any:
        if not self.returncode:
            monkeypatch.undo()
        raise subprocess.TimeoutExpired("x", 1)

    monkeypatch.setattr(subprocess.Popen, "communicate", timed_out)
    assert _try(("sleep", "60"), [the_probe("caps")], 0.1)["results"] == {}


def test_a_probe_says_what_happened_and_a_broken_one_has_not_run() -> None:
    with socket.create_server(("127.0.0.1", 0)) as served:
        port = served.getsockname()[1]
        probes = [
            the_probe("tcp", id="tcp4.22", port=port, send=("hello",)),
            the_probe("tcp", id="tcp4.25", port=1),
            the_probe("tcp", id="tcp4.53", host="no address", port=1),
            the_probe("ptrace", id="local.ptrace", args=("0",)),
            the_probe("files", id="local.secrets", args=(__file__, "/no/such/file")),
            the_probe("no such kind", id="tcp4.80"),
        ]
        said = _try(HERE, probes, 0.5)
    found = said["results"]
    assert (said["uid"], said["netns"]) == (os.getuid(), Path("/proc/self/ns/net").stat().st_ino)
    assert (found["tcp4.22"].connected, found["tcp4.25"].connected) == (True, False)
    assert found["tcp4.25"].error == "ECONNREFUSED"
    assert (found["local.secrets"].done, __file__ in found["local.secrets"].detail) == (True, True)
    assert [found[name].ran for name in ("local.ptrace", "tcp4.80")] == [False, False]


@pytest.mark.parametrize("kind", sorted(probe_script.PROBES))
def test_every_kind_of_probe_ends_and_says_so(kind: str) -> None:
    given = the_probe(kind, port=9, proto=136 if kind == "ip" else 1, send=("x",), args=("1",))
    found = _try(HERE, [given], 0.2)["results"]
    assert set(found) == {"tcp4.22"} and found["tcp4.22"].ran


@pytest.mark.checkout
@pytest.mark.parametrize("script", ["probe.py", "witness.py"])
def test_what_is_sent_elsewhere_needs_nothing_but_an_older_python(script: str) -> None:
    path = Path(prover.__file__).with_name(script)
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {module.partition(".")[0] for module in modules} <= sys.stdlib_module_names


@pytest.fixture
def witness(monkeypatch: pytest.MonkeyPatch) -> Callable[[], _Witness]:
    """Witnesses on loopback, on ports that are free."""
    made: list[_Witness] = []

    def start() -> _Witness:
        found = _Witness.start(HERE, {"127.0.0.1"}, seconds=60.0)
        made.append(found)
        return found

    moved = {port: free_port() for port in sorted({CELLS[name].port for name in NETWORK})}
    cells = {name: _moved(cell, moved.get(cell.port, 0)) for name, cell in CELLS.items()}
    for module in (prover, sys.modules["holdgate.escape"]):
        monkeypatch.setattr(module, "CELLS", cells)
    yield start  # type: ignore[misc]
    for each in made:
        each.stop()


def _moved(cell: Any, port: int) -> Any:
    return replace(cell, port=port) if cell.port and cell.to == "witness" else cell


def test_an_open_path_is_seen_by_the_witness(config: Any, witness: Callable[[], _Witness]) -> None:
    targets = replace(NOWHERE, witness4="127.0.0.1")
    run = Run(config, options(targets=targets, witness_at=HERE, witnesses=("127.0.0.1",)), REQUIRED)
    rows = {row.id: row for row in run.examine(lambda uid: {"gate.disk": (State.CLOSED, "fine")}).rows}
    for name in (
        "tcp4.22",
        "tcp4.443",
        "udp4.53",
        "udp4.443",
        "direct.http",
        "direct.tls",
        "direct.websocket",
    ):
        assert rows[name].state is State.OPEN, rows[name]
    assert rows["tcp6.22"].state is State.UNPROVEN  # there is no address to try it with
    assert (rows["gate.disk"].state, rows["gate.clock"].state) == (State.CLOSED, State.UNPROVEN)


def test_dr2_a_witness_that_died_has_watched_nothing(
    config: Any, witness: Callable[[], _Witness], monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = replace(NOWHERE, witness4="127.0.0.1")
    run = Run(config, options(targets=targets, witness_at=HERE, witnesses=("127.0.0.1",)), REQUIRED)
    real = prover._try

    def try_then_kill(command: Any, probes: Any, timeout_s: float) -> Any:
        found = real(command, probes, timeout_s)
        if len(probes) > len(NETWORK) // 2 and run._witness is not None and not run._witness.bare:
            run._witness.process.kill()
            run._witness.process.wait()
        return found

    monkeypatch.setattr(prover, "_try", try_then_kill)
    monkeypatch.setattr(run, "_logged", lambda since: {"control.redirect": "bot"})
    rows = {row.id: row for row in run.examine(lambda uid: {}).rows}
    witnessed = {rows[name].state for name in NETWORK if CELLS[name].judge is Judge.WITNESS}
    assert State.CLOSED not in witnessed and run.leaks() is None


def test_a_witness_that_does_not_start_is_the_operators_mistake(
    config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(
        config,
        options(
            targets=replace(NOWHERE, witness4="127.0.0.1"), witness_at=("false",), witnesses=("127.0.0.1",)
        ),
        REQUIRED,
    )
    prover_start = prover._START_S
    try:
        prover._START_S = 0.3  # type: ignore[misc]
        with pytest.raises(ConfigError, match="witness did not start"):
            run.examine(lambda uid: {})
    finally:
        prover._START_S = prover_start  # type: ignore[misc]


def test_tokens_of_another_run_are_not_ours() -> None:
    watch = _Witness(process=None)  # type: ignore[arg-type]
    watch.tokens = {token_of(RUN, "tcp4.22"), token_of("f" * 32, "tcp4.25")}
    assert watch.rows(RUN) == {"tcp4.22"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(("--witness", "203.0.113.9"), "go together", id="a witness that nobody starts"),
        pytest.param(("--witness-at", "true"), "go together", id="a witness without an address"),
        pytest.param(("--witness", "a.example"), "does not appear to be", id="a name"),
        pytest.param(
            ("--witness", "1.1.1.1,2.2.2.2", "--witness-at", "true"), "each family", id="two of one"
        ),
        pytest.param(("--probe-at", ""), "a command is needed", id="no command"),
        pytest.param(("--probe-at", "x 'y"), "invalid", id="half a command"),
        pytest.param(("--proxy", "localhost"), "HOST:PORT", id="no port"),
        pytest.param(("--timeout", "nan"), "seconds", id="no number"),
        pytest.param(("--timeout", "0"), "seconds", id="no time"),
        pytest.param(("--with-restarts", "true"), "does not run", id="nothing to kill"),
    ],
)
def test_a_wrong_call_is_a_usage_error(
    words: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", str(tmp_path / "gate")]) == 0
    at = () if "--probe-at" in words else ("--probe-at", "false")
    config = str(tmp_path / "gate" / "holdgate.yaml")
    code = main(["doctor", "-c", config, "--timeout", "0.1", *at, *words])
    assert (code, message in capsys.readouterr().err) == (2, True)


def test_without_a_running_process_the_result_is_written_by_the_command_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", str(tmp_path / "gate")]) == 0
    config = str(tmp_path / "gate" / "holdgate.yaml")
    capsys.readouterr()
    assert main(["doctor", "--prove", "-c", config, "--timeout", "0.1", "--probe-at", "false"]) == 1
    shown = capsys.readouterr().out
    assert "NOT CLOSED" in shown and "receipt rcpt_" in shown
    assert main(["receipts", "list", "-c", config, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["receipts"]
    assert (row["receipt"]["type"], row["receipt"]["details"]["closed"]) == ("admin", False)
    assert main(["log", "audit", "-c", config]) == 0
