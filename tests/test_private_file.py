"""adapters/private_file.py: secrets that only their owner can read, whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from holdgate.adapters.private_file import read_private, write_new
from holdgate.errors import ConfigError


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o611])
def test_pf1_a_secret_that_others_may_touch_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "a.key"
    path.write_bytes(b"secret")
    path.chmod(mode)
    with pytest.raises(ConfigError, match="others can read the key"):
        read_private(path, "the key")


def test_pf1_a_secret_is_a_plain_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="others can read"):
        read_private(Path("/dev/null"), "the key")
    with pytest.raises(FileNotFoundError):
        read_private(tmp_path / "missing", "the key")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can open what another user owns")
def test_pf1_a_secret_of_another_user_is_refused_unless_the_folder_is_theirs_too(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    path.write_bytes(b"secret")
    path.chmod(0o600)
    os.chown(path, 4711, 4711)
    with pytest.raises(ConfigError, match="belongs to the user 4711"):
        read_private(path, "the key")
    os.chown(tmp_path, 4711, 4711)  # a service's own user keeps its state; root may run commands on it
    assert read_private(path, "the key") == b"secret"


def test_pf2_nothing_is_overwritten_and_the_mode_is_exact(tmp_path: Path) -> None:
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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_pf2_what_root_makes_belongs_to_the_owner_of_the_folder(tmp_path: Path) -> None:
    os.chown(tmp_path, 4711, 4712)
    write_new(tmp_path / "a.key", b"secret", 0o600)
    made = (tmp_path / "a.key").stat()
    assert (made.st_uid, made.st_gid, made.st_mode & 0o777) == (4711, 4712, 0o600)


def test_pf2_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("holdgate.adapters.private_file.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_new(tmp_path / "a", b"data", 0o600)
    assert list(tmp_path.iterdir()) == []
