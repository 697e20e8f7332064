"""adapters/boundary.py: readiness of a running process, from the coverage receipts in its log."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from evidence import T0, coverage_details, open_ledger
from holdgate.adapters.boundary import Boundary
from holdgate.config_doctor import Doctor
from holdgate.ledger import AdminNote

ROWS = frozenset({"tcp4.22", "tcp6.22"})


def boundary(folder: Path, required: frozenset[str] = ROWS, max_age_s: int = 60) -> Boundary:
    config: Any = SimpleNamespace(
        state_dir=folder, store=None, doctor=Doctor(required=required, max_age_s=max_age_s)
    )
    return Boundary.read(config)


async def test_bd1_not_ready_until_proven_and_again_when_it_opens_or_grows_old(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    found = boundary(tmp_path)
    assert "never proven" in found.gap(T0)
    closed = AdminNote(action="coverage", by="local", details=coverage_details())
    noted = await ledger.note(closed)
    found.noted(closed, noted)
    assert found.gap(noted.iat_us + 60_000_000) == ""
    assert "older than 60 s" in found.gap(noted.iat_us + 60_000_001)
    # A process that starts now reads the same from the log.
    assert boundary(tmp_path).gap(noted.iat_us) == ""
    rows = {"open": ["tcp4.22"], "not_applicable": ["tcp6.22"]}
    opened = replace(closed, details=coverage_details(rows=rows, closed=False))
    noted = await ledger.note(opened)
    found.noted(opened, noted)
    for each in (found, boundary(tmp_path)):
        assert each.gap(noted.iat_us) == "the boundary is not closed: tcp4.22"
    ledger.close()


async def test_bd1_a_coverage_of_fewer_rows_does_not_settle_what_is_asked_now(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    noted = await ledger.note(AdminNote(action="coverage", by="local", details=coverage_details()))
    more = boundary(tmp_path, required=ROWS | {"proxy.admin", "icmp4"})
    assert more.gap(noted.iat_us) == "the boundary is not closed: icmp4, proxy.admin"
    ledger.close()


async def test_bd2_without_required_rows_coverage_changes_nothing(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    found = boundary(tmp_path, required=frozenset())
    assert found.gap(T0) == ""
    opened = AdminNote(
        action="coverage",
        by="local",
        details=coverage_details(rows={"open": ["tcp4.22"]}, closed=False, required=["tcp4.22"]),
    )
    found.noted(opened, await ledger.note(opened))
    assert found.gap(T0) == ""
    ledger.close()
