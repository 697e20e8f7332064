"""Every known bypass is a case here, or is tried by a test that exists, or says why it cannot be."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from attack.arena import HERE

TESTS: Final = HERE.parent
LIST: Final = TESTS.parent.parent / "shared" / "cases" / "bypass.yaml"
ID: Final = re.compile(r"BYP-[A-Z0-9]+-[0-9]+")


def elsewhere() -> dict[str, dict[str, Any]]:
    with (HERE / "elsewhere.yaml").open(encoding="utf-8") as file:
        rows: dict[str, dict[str, Any]] = yaml.safe_load(file)
    return rows


def cases() -> set[str]:
    return set(ID.findall((HERE / "cases.yaml").read_text(encoding="utf-8")))


@cache
def functions(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("name", elsewhere())
def test_what_is_tried_elsewhere_is(name: str) -> None:
    row = elsewhere()[name]
    assert ID.fullmatch(name) and row and row.keys() <= {"by", "cannot"}
    assert name not in cases(), "one place is enough"
    for node in row.get("by", []):
        file, _, function = node.partition("::")
        assert function.startswith("test_") and function in functions(TESTS / file), node


@pytest.mark.skipif(not LIST.exists(), reason="the list of known bypasses is not here")
def test_every_known_bypass_has_its_place() -> None:
    with LIST.open(encoding="utf-8") as file:
        known = {row["id"] for row in yaml.safe_load(file)["cases"]}
    assert known - cases() - elsewhere().keys() == set()
