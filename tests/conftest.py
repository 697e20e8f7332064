"""What every test may rely on: `checkout` tests are skipped where only tests/ is there (installed wheel)."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]

# How long it takes to draw an example says how busy the machine is, and nothing about the code.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # A file is one process's: the long ones first, so that none of them runs alone at the end.
    long = {item.path for item in items if "slow" in item.keywords}
    items.sort(key=lambda item: item.path not in long)
    if (ROOT / "proxy" / "holdgate").is_dir():
        return
    skip = pytest.mark.skip(reason="needs the source tree, and only tests/ is here")
    for item in items:
        if "checkout" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def same_process() -> Iterator[None]:
    """What a test changes of its process ends with it: the order of files is not the same in two runs."""
    umask = os.umask(0o077)
    os.umask(umask)
    levels = {name: logging.getLogger(name).level for name in ("holdgate", "holdgate.pipeline")}
    yield
    os.umask(umask)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
