"""What every test may rely on: `checkout` tests are skipped where only tests/ is there (installed wheel)."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if (ROOT / "proxy" / "holdgate").is_dir():
        return
    skip = pytest.mark.skip(reason="needs the source tree, and only tests/ is here")
    for item in items:
        if "checkout" in item.keywords:
            item.add_marker(skip)
