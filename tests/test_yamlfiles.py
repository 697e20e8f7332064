"""yamlfiles.py: no file of a folder is left out in silence, and nothing but a plain file is read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from holdgate.errors import ConfigError
from holdgate.yamlfiles import MAX_FILE_BYTES, read_file, yaml_files


def _write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("a: b\n")


def test_yf1_every_file_below_a_folder_is_found_once(tmp_path: Path) -> None:
    for name in ("b.yaml", "a/deep/c.yaml", "a/.hidden.yaml", ".git/d.yaml", "a.yaml/e.yaml"):
        _write(tmp_path / name)
    (tmp_path / "README.md").write_text("words")
    (tmp_path / "link.yaml").symlink_to("b.yaml")
    found = [path.relative_to(tmp_path).as_posix() for path in yaml_files(tmp_path)]
    assert found == [".git/d.yaml", "a/.hidden.yaml", "a/deep/c.yaml", "a.yaml/e.yaml", "b.yaml", "link.yaml"]


def test_yf1_a_mounted_config_map_has_its_files_once(tmp_path: Path) -> None:
    _write(tmp_path / "..2026_11_22_16_00_00.1" / "a.yaml")
    (tmp_path / "..data").symlink_to("..2026_11_22_16_00_00.1")
    (tmp_path / "a.yaml").symlink_to("..data/a.yaml")
    assert yaml_files(tmp_path) == [tmp_path / "a.yaml"]
    assert read_file(tmp_path / "a.yaml") == b"a: b\n"


def test_yf1_nothing_is_left_out_for_the_dots_of_its_name(tmp_path: Path) -> None:
    for name in ("..old/deny.yaml", "real.txt"):
        _write(tmp_path / name)
    (tmp_path / "..deny.yaml").symlink_to("real.txt")
    (tmp_path / "..data").write_text("a file of that name is no mount")
    assert {path.name for path in yaml_files(tmp_path)} == {"deny.yaml", "..deny.yaml"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: (root / "more").symlink_to(root.parent), "a link to a folder is not followed"),
        (lambda root: _write(root / "a.yml"), "name it"),
        (lambda root: _write(root / "deny.YAML"), "name it"),
    ],
    ids=["a linked folder", "another ending", "the ending in capitals"],
)
def test_yf1_what_would_not_be_read_is_said(
    tmp_path: Path, make: Callable[[Path], None], message: str
) -> None:
    make(tmp_path)
    with pytest.raises(ConfigError, match=message):
        yaml_files(tmp_path)


def test_yf1_a_folder_that_cannot_be_listed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user who may not read it; root may read everything."""
    (tmp_path / "closed").mkdir()
    listed = os.scandir

    def scandir(path: Path) -> object:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ConfigError, match=r"closed: cannot read: Permission denied"):
        yaml_files(tmp_path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "cannot read"),
        (lambda path: path.symlink_to("nowhere"), "cannot read"),
        (lambda path: path.symlink_to(path.name), "cannot read"),
        (lambda path: path.symlink_to("/dev/zero"), "not a plain file"),
        (lambda path: os.mkfifo(path), "not a plain file"),
        (lambda path: path.mkdir(), "not a plain file"),
        (lambda path: path.write_bytes(b"#" * (MAX_FILE_BYTES + 1)), "longer than"),
    ],
    ids=["nothing", "dangling", "a loop", "a device", "a pipe", "a folder", "too long"],
)
def test_yf2_what_is_no_plain_file_is_refused_at_once(
    tmp_path: Path, make: Callable[[Path], object], message: str
) -> None:
    path = tmp_path / "x.yaml"
    make(path)
    with pytest.raises(ConfigError, match=message):
        read_file(path)


def test_yf2_a_file_of_exactly_the_most_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"#" * MAX_FILE_BYTES)
    assert len(read_file(path)) == MAX_FILE_BYTES
