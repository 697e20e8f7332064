"""adapters/forced.py: the stub resolver's receipts in a real instance, and a start that must not happen."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace
from urllib.request import urlopen

import pytest

from holdgate.adapters import forced
from holdgate.adapters.dnswire import A, build_query, parse_answer
from holdgate.demo.instance import Instance, _free_address
from holdgate.errors import ConfigError


@pytest.mark.slow
def test_fo1_a_name_that_no_map_has_is_counted_and_leaves_a_receipt(tmp_path: Path) -> None:
    gate = Instance(tmp_path, connect_to={})
    address = _free_address()
    text = gate.config.read_text()
    gate.config.write_text(re.sub(r"transparent: null", f"transparent: null, dns: '{address}'", text))
    host, _, port = address.partition(":")
    with gate, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as agent:
        agent.settimeout(60)
        agent.connect((host, int(port)))

        def ask(name: str) -> tuple[str, ...]:
            query = build_query(name, A, 1)
            agent.send(query)
            return parse_answer(agent.recv(512), query)

        assert ask("api.stripe.com") == ("198.51.100.1",)
        assert ask("secret.evil.test") == ask("secret.evil.test") == ()
        with urlopen(f"http://{gate.admin}/metrics") as page:
            metrics = page.read().decode()
        assert 'holdgate_unmapped_total{host="secret.evil.test"} 2.0' in metrics
        done = subprocess.run(
            gate.command("receipts", "list", "--json"), capture_output=True, text=True, timeout=60, check=True
        )
    assert done.stdout.count('"unknown_destination"') == 1
    assert json.loads(done.stdout)


def test_fo2_holdgate_does_not_start_as_an_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agents = [SimpleNamespace(users=(64_001, 64_002))]
    config = SimpleNamespace(path="holdgate.yaml", state_dir=tmp_path, agents=agents)
    addon = SimpleNamespace(owner_uid=None)
    monkeypatch.setattr(forced.os, "geteuid", lambda: 64_002)
    with pytest.raises(ConfigError, match="uid 64002 is an agent"):
        forced.know_users(config, addon)
    monkeypatch.setattr(forced.os, "geteuid", lambda: 7)
    forced.know_users(config, addon)
    assert addon.owner_uid is not None


def test_fo2_holdgate_does_not_start_with_the_keys_of_an_agent(tmp_path: Path) -> None:
    owner = tmp_path.stat().st_uid
    config = SimpleNamespace(
        path="holdgate.yaml", state_dir=tmp_path, agents=[SimpleNamespace(users=(owner,))]
    )
    with pytest.raises(ConfigError, match="is an agent"):
        forced.know_users(config, SimpleNamespace(owner_uid=None))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a folder away")
def test_fo2_a_state_directory_of_an_agent_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, 64_002, 64_002)
    config = SimpleNamespace(
        path="holdgate.yaml", state_dir=tmp_path, agents=[SimpleNamespace(users=(64_002,))]
    )
    addon = SimpleNamespace(owner_uid=None)
    with pytest.raises(ConfigError, match="could sign as Holdgate"):
        forced.know_users(config, addon)
    assert addon.owner_uid is None
