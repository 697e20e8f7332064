"""files.py: packaged data is found in the wheel first, then in the checkout, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdgate.errors import ConfigError
from holdgate.files import packaged


def _yaml(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "x.yaml").write_text("a: b\n")
    return folder


def test_f1_the_wheel_comes_before_the_checkout(tmp_path: Path) -> None:
    package = tmp_path / "proxy" / "holdgate"
    _yaml(tmp_path / "surfaces")
    assert packaged("surfaces", package=package) == tmp_path / "surfaces"
    wheel = _yaml(package / "_data" / "surfaces")
    assert packaged("surfaces", package=package) == wheel


def test_f1_an_installed_copy_does_not_take_what_stands_above_it(tmp_path: Path) -> None:
    _yaml(tmp_path / "surfaces")
    with pytest.raises(ConfigError, match="install holdgate again"):
        packaged("surfaces", package=tmp_path / "site-packages" / "holdgate")


def test_f1_a_folder_without_yaml_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "policies").mkdir()
    with pytest.raises(ConfigError, match="packaged policies not found"):
        packaged("policies", package=tmp_path / "proxy" / "holdgate")


def test_f1_the_real_surface_maps_are_found() -> None:
    assert (packaged("surfaces") / "stripe").is_dir()
