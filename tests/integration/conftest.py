"""A running instance in front of stand-in vendors, for every test in this folder.

`vendors` and `gate` live as long as a test module: what a test counts, it counts as a difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from behind import Bench
from holdgate.demo.instance import Instance
from holdgate.demo.standins import StandIns


@pytest.fixture(scope="module")
def vendors() -> Iterator[StandIns]:
    with StandIns() as running:
        yield running


@pytest.fixture(scope="module")
def gate(vendors: StandIns, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """`holdgate run` with the starter maps and policies; 127.0.0.1 is the agent `demo-agent`."""
    folder = tmp_path_factory.mktemp("gate")
    with Instance(folder, connect_to=vendors.connect_to(), transparent=True) as running:
        yield running


@pytest.fixture(scope="module")
def bench(gate: Instance, vendors: StandIns) -> Bench:
    return Bench(gate, vendors, gate.folder)


@pytest.fixture
def nothing_seen(vendors: StandIns) -> Callable[[], AbstractContextManager[None]]:
    """`with nothing_seen(): ...` fails when any vendor saw a connection or a byte meanwhile."""

    @contextmanager
    def watch() -> Iterator[None]:
        before = {name: vendors.counts(name) for name in vendors.ports}
        yield
        seen = {name: vendors.counts(name) - before[name] for name in vendors.ports}
        assert all(counts.nothing for counts in seen.values()), seen

    return watch
