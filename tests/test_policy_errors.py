"""Wrong files of every kind: each is refused, and the message names the place and what to write (O6, O7)."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdgate import policy_words
from holdgate.errors import ConfigError
from holdgate.policy import load_policies
from holdgate.policytest import run_tests
from holdgate.surface.index import SurfaceIndex
from holdgate.surface.load import load_maps
from policy_fakes import FakeIndex
from wrong_files import BUNDLE, BUNDLES, MAP, MAPS, POLICIES, POLICY, SUITE, SUITES, Wrong


def spoiled(good: str, wrong: Wrong) -> tuple[str, tuple[int, int] | None]:
    """The wrong text, and the place that the mark in it stands for."""
    if wrong.old:
        assert good.count(wrong.old) >= 1, wrong.name
        text = good.replace(wrong.old, wrong.new, 1)
    else:
        text = wrong.new
    at = text.find("¦")
    if at < 0:
        return text, None
    before = text[:at]
    return text.replace("¦", ""), (before.count("\n") + 1, at - before.rfind("\n"))


def _load(folder: Path, policy: str = POLICY, suite: str | None = None, bundle: str | None = None) -> None:
    (folder / "refunds.yaml").write_text(policy, encoding="utf-8", newline="")
    if bundle is not None:
        (folder / "agents.yaml").write_text(bundle, encoding="utf-8", newline="")
    policies = load_policies([folder], FakeIndex())
    if suite is not None:
        (folder / "refunds_test.yaml").write_text(suite, encoding="utf-8", newline="")
        report = run_tests([folder], policies, FakeIndex())
        assert report.ok, report.failed


def _refused(wrong: Wrong, place: tuple[int, int] | None, error: ConfigError, file: str) -> None:
    shown = str(error)
    assert error.file.endswith(file), shown
    assert wrong.says in error.message, shown
    assert error.line >= 1 and error.column >= 1, shown
    if place is not None:
        assert (error.line, error.column) == place, shown
    assert shown.startswith(f"{error.file}:{error.line}:{error.column}: "), shown
    assert shown.splitlines()[-1].strip() == "^", shown


def test_the_good_files_load(tmp_path: Path) -> None:
    _load(tmp_path, suite=SUITE, bundle=BUNDLE)
    (tmp_path / "shop.yaml").write_text(MAP)
    SurfaceIndex.compile(load_maps([tmp_path / "shop.yaml"]))


@pytest.mark.parametrize("wrong", POLICIES, ids=lambda wrong: wrong.name)
def test_wrong_policies_name_the_place_and_the_fix(tmp_path: Path, wrong: Wrong) -> None:
    text, place = spoiled(POLICY, wrong)
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, text)
    _refused(wrong, place, caught.value, "refunds.yaml")


@pytest.mark.parametrize("wrong", BUNDLES, ids=lambda wrong: wrong.name)
def test_wrong_bundles_name_the_place_and_the_fix(tmp_path: Path, wrong: Wrong) -> None:
    text, place = spoiled(BUNDLE, wrong)
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, bundle=text)
    _refused(wrong, place, caught.value, "agents.yaml")


@pytest.mark.parametrize("wrong", SUITES, ids=lambda wrong: wrong.name)
def test_wrong_tests_name_the_place_and_the_fix(tmp_path: Path, wrong: Wrong) -> None:
    text, place = spoiled(SUITE, wrong)
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, suite=text)
    _refused(wrong, place, caught.value, "refunds_test.yaml")


@pytest.mark.parametrize("wrong", MAPS, ids=lambda wrong: wrong.name)
def test_wrong_maps_name_the_place_and_the_fix(tmp_path: Path, wrong: Wrong) -> None:
    text, place = spoiled(MAP, wrong)
    (tmp_path / "shop.yaml").write_text(text, encoding="utf-8", newline="")
    with pytest.raises(ConfigError) as caught:
        SurfaceIndex.compile(load_maps([tmp_path / "shop.yaml"]))
    _refused(wrong, place, caught.value, "shop.yaml")


def test_o6_hints_are_for_words_that_the_format_does_not_have() -> None:
    known = {
        "DOCUMENT": {"apiVersion", "kind", "metadata", "spec"},
        "METADATA": {"name", "owner"},
        "SPEC": {"surface", "rules", "operations", "constants", "counters", "facts", "shadow"},
        "RULE": {"id", "effect", "when", "reason", "unsafe_allow_all"},
        "EFFECTS": {"permit", "deny"},
        "KINDS": {"Policy", "PolicyTest", "Bundle"},
        "OUTCOMES": {"PERMIT", "DENY", "SILENCE"},
        "BUNDLE_SPEC": {"agent_attrs"},
        "SUITE": {"policy", "surface", "defaults", "cases"},
        "CASE": {"name", "with", "matrix", "request_file", "expect", "expect_each"},
    }
    assert set(known) == set(policy_words.__all__)
    for table, words in known.items():
        assert words.isdisjoint(getattr(policy_words, table)), table
