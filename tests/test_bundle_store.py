"""adapters/bundle_store.py: what is kept is what was active, and an edited copy is no bundle."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from holdgate.adapters.bundle_store import keep_bundle, load_kept
from holdgate.bundle import Bundle, bundle_digest, load_bundle
from holdgate.errors import ConfigError
from test_replay import MAP, POLICY


@pytest.fixture
def roots(tmp_path: Path) -> tuple[list[Path], list[Path]]:
    """Maps in two folders, one of them nested; policies as one file."""
    for name in ("one", "two/deep"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "one" / "map.yaml").write_text(MAP)
    other = MAP.replace("name: pay", "name: pay2").replace("api.pay.test", "api2.pay.test")
    (tmp_path / "two" / "deep" / "map.yaml").write_text(other.replace("\n", "  \n"))
    (tmp_path / "policy.yaml").write_text(POLICY)
    return [tmp_path / "one", tmp_path / "two"], [tmp_path / "policy.yaml"]


def keep(state: Path, roots: tuple[list[Path], list[Path]]) -> Bundle:
    bundle = load_bundle(*roots)
    keep_bundle(state, bundle, surfaces=roots[0], policies=roots[1])
    return bundle


def test_bs1_what_is_kept_is_the_bundle_whatever_becomes_of_its_files(
    tmp_path: Path, roots: tuple[list[Path], list[Path]]
) -> None:
    bundle = keep(tmp_path, roots)
    for path in (*roots[0], *roots[1]):
        path.rename(path.with_name("gone-" + path.name))
    kept = load_kept(tmp_path, bundle.digest)
    assert kept.digest == bundle.digest
    assert kept.index.is_mapped("api2.pay.test", 443, "https")
    (file,) = (tmp_path / "bundles").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "bundles").stat().st_mode & 0o777 == 0o700


def test_bs1_sources_that_changed_meanwhile_are_not_kept(
    tmp_path: Path, roots: tuple[list[Path], list[Path]]
) -> None:
    bundle = load_bundle(*roots)
    roots[1][0].write_text(POLICY.replace("100", "101"))
    with pytest.raises(ConfigError, match="changed while they were read"):
        keep_bundle(tmp_path, bundle, surfaces=roots[0], policies=roots[1])
    assert not (tmp_path / "bundles").exists()


def test_bs1_a_place_that_cannot_be_written_is_an_error(
    tmp_path: Path, roots: tuple[list[Path], list[Path]]
) -> None:
    (tmp_path / "bundles").write_text("not a folder")
    with pytest.raises(ConfigError, match="cannot be kept"):
        keep(tmp_path, roots)


def test_bs2_an_edited_or_missing_file_is_no_bundle(
    tmp_path: Path, roots: tuple[list[Path], list[Path]]
) -> None:
    bundle = keep(tmp_path, roots)
    (file,) = (tmp_path / "bundles").iterdir()
    whole = file.read_text()
    name = next(iter(json.loads(whole)["policies"][0]))
    for text, said in (
        (whole.replace("<= 100", "<= 900"), "was changed"),
        (whole[:-1], "cannot be read"),
        ("[]", "not a kept bundle"),
        (whole.replace(f'"{name}"', '"../../policy.yaml"'), "not a kept bundle"),
        (whole.replace(f'"{name}"', '"/tmp/policy.yaml"'), "not a kept bundle"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=said):
            load_kept(tmp_path, bundle.digest)
    file.unlink()
    with pytest.raises(ConfigError, match="no bundle"):
        load_kept(tmp_path, bundle.digest)


@pytest.mark.parametrize(
    ("written", "before"),
    [
        pytest.param(lambda text: text.replace("\n", "\r\n"), "carriage return", id="CRLF"),
        pytest.param(lambda text: "\ufeff" + text, "byte order mark", id="BOM"),
        pytest.param(lambda text: text + "# a\u200bb\n", "U\\+200B", id="zero width"),
    ],
)
def test_bs3_what_decided_once_is_read_as_it_was(
    tmp_path: Path,
    roots: tuple[list[Path], list[Path]],
    written: Callable[[str], str],
    before: str,
) -> None:
    """Kept by a version that did not refuse such characters yet."""
    clean = load_bundle(*roots)
    for path in (roots[1][0], roots[0][0] / "map.yaml"):
        path.write_text(written(path.read_text()), newline="")
    with pytest.raises(ConfigError, match=before):
        load_bundle(*roots)
    digest = bundle_digest(*roots)
    keep_bundle(tmp_path, replace(clean, digest=digest), surfaces=roots[0], policies=roots[1])
    kept = load_kept(tmp_path, digest)
    assert kept.digest == digest
    assert [rule.when for rule in kept.policies.rules] == [rule.when for rule in clean.policies.rules]
