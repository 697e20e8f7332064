"""adapters/doctor/host.py: what can be read on the gate's own host."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evidence import open_ledger
from holdgate.adapters.doctor import host
from holdgate.adapters.doctor.host import look, rules_digest
from holdgate.cli import main
from holdgate.config import Address, Config, NetworkMode, load_config
from holdgate.coverage import State

NOW_US = 1_790_000_000_000_000
NOBODY = 65534


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("host") / "gate"
    assert main(["init", str(folder)]) == 0
    config = load_config(folder / "holdgate.yaml")
    open_ledger(config.state_dir, origin=config.issuer, node=config.node).close()
    return folder


@pytest.fixture
def config(made: Path, tmp_path: Path) -> Config:
    shutil.copytree(made, tmp_path / "gate")
    return load_config(tmp_path / "gate" / "holdgate.yaml")


def found(config: Config, uid: int = NOBODY, **changes: Any) -> dict[str, State]:
    facts: dict[str, Any] = {
        "clock_us": lambda: NOW_US,
        "status": {"barrier_trips": 0},
        "command": lambda words: "table inet holdgate {}",
    }
    return {name: finding[0] for name, finding in look(config, uid, **(facts | changes)).items()}


def test_a_host_as_it_should_be(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "free_bytes", lambda path: 1 << 40)
    monkeypatch.setattr(host, "_FORWARDING", ())
    assert set(found(config).values()) == {State.CLOSED}


def _wide(config: Config) -> None:
    config.state_dir.chmod(0o755)


def _readable(config: Config) -> None:
    (config.state_dir / "ca" / "ca.key").chmod(0o644)


@pytest.mark.parametrize("spoil", [_wide, _readable], ids=["the directory", "the CA's key"])
def test_secrets_that_others_may_read_are_open(config: Config, spoil: Callable[[Config], None]) -> None:
    assert found(config)["gate.secrets"] is State.CLOSED
    spoil(config)
    assert found(config)["gate.secrets"] is State.OPEN


def test_an_agent_with_the_user_of_the_keys_is_open(config: Config) -> None:
    assert found(config, uid=os.geteuid())["gate.secrets"] is State.OPEN


@pytest.mark.parametrize(
    ("listen", "state"),
    [("127.0.0.1", State.CLOSED), ("10.0.0.1", State.CLOSED), ("0.0.0.0", State.OPEN), ("::", State.OPEN)],
)
def test_an_admin_listener_on_every_address_is_open(config: Config, listen: str, state: State) -> None:
    there = replace(config, admin=replace(config.admin, listen=Address(host=listen, port=9090)))
    assert found(there)["gate.admin_address"] is state


def test_a_clock_that_was_never_set_or_is_behind_the_log_is_open(config: Config) -> None:
    assert found(config, clock_us=lambda: 0)["gate.clock"] is State.OPEN


def test_dh1_what_cannot_be_looked_at_is_unproven(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(path: Path) -> int:
        raise OSError

    monkeypatch.setattr(host, "free_bytes", gone)
    (config.state_dir / "ca" / "ca.key").unlink()
    (config.state_dir / "ledger.db").unlink()
    states = found(config, status=None, command=lambda words: None)
    states.pop("gate.admin_address"), states.pop("gate.forwarding")
    assert set(states.values()) == {State.UNPROVEN}
    assert rules_digest(lambda words: None) == ""


def test_forwarding_is_never_called_closed_while_it_is_on(
    config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "on").write_text("1\n")
    monkeypatch.setattr(host, "_FORWARDING", (str(tmp_path / "on"),))
    assert found(config)["gate.forwarding"] is State.UNPROVEN


def test_trips_and_little_space_are_open(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "free_bytes", lambda path: 100 << 20)
    states = found(config, status={"barrier_trips": 1})
    assert states["gate.disk"] is states["gate.barriers"] is State.OPEN


def test_rules_that_divert_without_a_route_are_unproven(config: Config) -> None:
    diverting = replace(config, network_mode=NetworkMode.TPROXY)
    assert found(diverting)["gate.rules"] is State.UNPROVEN
    routed = found(diverting, command=lambda words: "18503: from all fwmark 0x48474154 lookup 18503")
    assert routed["gate.rules"] is State.CLOSED
