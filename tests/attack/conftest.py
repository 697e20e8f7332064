"""One `holdgate run` with the maps and policies of this folder, and a recorder for all that is outside."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import pytest

from attack.arena import HERE, Arena, Upstream
from attack.network import network_of_its_own, redirect
from holdgate.demo.instance import Instance

NAMES = ("api.ok.test:443", "web.ok.test:80", "rpc.ok.test:443", "api.denied.test:443", "web.denied.test:80")
AGENTS = """\
  - {id: attacker, match: {source: [127.0.0.1/32]}}
  - {id: badged, match: {source: [127.0.0.2/32], token_sha256: "%s"}}"""
TOKEN = "badge-token"
# Short deadlines and small bounds: what waits or fills up must not make the suite slow.
EXTRA = """\
    "api.wrongcert.test:443": {{address: "127.0.0.1:{tls}", tls: true}}
  resolver: ["127.0.0.1:{dns}"]
limits: {{head_s: 1, body_s: 1, first_byte_s: 1, upstream_total_s: 3, connect_s: 1, hold_s: 5,
  body_bytes: 65536, held_bytes: 4194304, refusals_per_agent_s: 100000}}"""


class Talkative(Instance):
    """`holdgate run --verbose`: what attacks can put into a log line must be seen."""

    def command(self, *words: str) -> list[str]:
        return super().command(*words, *(("--verbose",) if words == ("run",) else ()))


@pytest.fixture(scope="session")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    with open_arena(tmp_path_factory.mktemp("arena")) as made:
        yield made


@pytest.fixture(scope="module")
def redirected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    """An arena in a network of its own, where what is sent to OUTSIDE is redirected to the instance."""
    with network_of_its_own(), open_arena(tmp_path_factory.mktemp("redirected"), transparent=True) as made:
        redirect(made.gate.addresses["transparent"])
        yield made


@contextmanager
def open_arena(folder: Path, *, transparent: bool = False) -> Iterator[Arena]:
    for name in ("surfaces", "policies"):
        shutil.copytree(HERE / name, folder / name)
    with Upstream() as upstream:
        address = f"127.0.0.1:{upstream.port}"
        gate = Talkative(
            folder,
            connect_to=dict.fromkeys(NAMES, address),
            agents=AGENTS % sha256(TOKEN.encode()).hexdigest(),
            extra=EXTRA.format(tls=upstream.tls_port, dns=upstream.dns_port),
            transparent=transparent,
        )
        with gate:
            made = Arena(gate, upstream)
            yield made
            made.reader.close()
