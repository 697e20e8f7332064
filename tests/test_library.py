"""policies/LIBRARY.md: each policy loads with the maps in the box, is clean, and passes its test."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from holdgate.files import packaged
from holdgate.policy import lint, load_policies
from holdgate.policytest import run_tests
from holdgate.surface.index import SurfaceIndex
from holdgate.surface.load import load_maps

BLOCK = re.compile(r"^```yaml\n# policies/([\w.]+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILES = dict(BLOCK.findall((packaged("policies") / "LIBRARY.md").read_text(encoding="utf-8")))
DECLARED = {name for name in FILES if "\nkind: Bundle\n" in FILES[name]}
NAMES = sorted(n.removesuffix(".yaml") for n in FILES if not n.endswith("_test.yaml") and n not in DECLARED)


@cache
def maps() -> SurfaceIndex:
    return SurfaceIndex.compile(load_maps([packaged("surfaces")]))


def test_every_policy_has_a_test() -> None:
    assert len(NAMES) >= 7
    assert {f"{name}_test.yaml" for name in NAMES} | {
        f"{name}.yaml" for name in NAMES
    } == FILES.keys() - DECLARED


@pytest.mark.parametrize("name", NAMES)
def test_a_policy_to_copy_loads_and_does_what_its_test_says(name: str, tmp_path: Path) -> None:
    for file in (f"{name}.yaml", f"{name}_test.yaml", *DECLARED):
        (tmp_path / file).write_text(FILES[file])
    policies = load_policies([tmp_path], maps())
    # The other operations of a surface have policies of their own, or none on purpose.
    found = [str(one) for one in lint(policies, maps()) if "ends in SILENCE" not in str(one)]
    assert found == []
    report = run_tests([tmp_path], policies, maps())
    assert report.results and report.failed == ()
