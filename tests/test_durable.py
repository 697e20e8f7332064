"""adapters/durable.py: secrets that only their owner can read, files that are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from holdgate.adapters.durable import read_private, replace_file, write_new
from holdgate.errors import ConfigError


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o611])
def test_du1_a_secret_that_others_may_touch_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "a.key"
    path.write_bytes(b"secret")
    path.chmod(mode)
    with pytest.raises(ConfigError, match="others can read the key"):
        read_private(path, "the key")


def test_du1_a_secret_is_a_plain_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="others can read"):
        read_private(Path("/dev/null"), "the key")
    with pytest.raises(FileNotFoundError):
        read_private(tmp_path / "missing", "the key")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can open what another user owns")
def test_du1_a_secret_of_another_user_is_refused_unless_the_folder_is_theirs_too(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    path.write_bytes(b"secret")
    path.chmod(0o600)
    os.chown(path, 4711, 4711)
    with pytest.raises(ConfigError, match="belongs to the user 4711"):
        read_private(path, "the key")
    os.chown(tmp_path, 4711, 4711)  # a service's own user keeps its state; root may run commands on it
    assert read_private(path, "the key") == b"secret"


def test_du2_nothing_is_overwritten_and_the_mode_is_exact(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    before = os.umask(0)
    try:
        write_new(path, b"one", 0o600)
    finally:
        os.umask(before)
    with pytest.raises(FileExistsError):
        write_new(path, b"two", 0o600)
    assert (path.read_bytes(), path.stat().st_mode & 0o7777) == (b"one", 0o600)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("write", [write_new, replace_file])
def test_du2_a_write_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: object
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("holdgate.adapters.durable.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "a", b"data", mode=0o600)  # type: ignore[operator]
    assert list(tmp_path.iterdir()) == []


def test_du2_an_open_reader_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with path.open("rb") as reader:
        replace_file(path, b"new", mode=0o644)
        assert (reader.read(), path.read_bytes()) == (b"old", b"new")
