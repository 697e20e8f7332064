"""adapters/bundle_folder.py: what is odd about a folder refuses it, before anything in it is believed."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from bundles import bundle, write
from holdgate.adapters import bundle_folder
from holdgate.adapters.bundle_folder import read_folder
from holdgate.manifest import MAX_BYTES, MAX_FILES, MAX_MANIFEST_BYTES, BundleRejected, Refusal


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(bundle(), tmp_path / "b")


def refused(folder: Path) -> Refusal:
    with pytest.raises(BundleRejected) as caught:
        read_folder(folder)
    return caught.value.reason


def test_bf1_a_plain_folder_is_read_whole(folder: Path) -> None:
    assert read_folder(folder) == bundle()


def a_socket(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        os.chdir(folder)
        sock.bind("policies/s")


def sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


def link_the_folder(folder: Path) -> None:
    (folder / "policies").rename(folder.parent / "elsewhere")
    (folder / "policies").symlink_to(folder.parent / "elsewhere")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        pytest.param(lambda f: (f / "policies/x.yaml").symlink_to("/etc/passwd"), "link", id="symlink"),
        pytest.param(
            lambda f: (f / "policies/x.yaml").symlink_to("orders.yaml"), "link", id="symlink inside"
        ),
        pytest.param(link_the_folder, "link", id="symlink for a folder"),
        pytest.param(lambda f: os.link(f / "manifest.json", f.parent / "other"), "link", id="hard link"),
        pytest.param(
            lambda f: os.link(f / "policies/orders.yaml", f / "policies/x"), "link", id="hard link inside"
        ),
        pytest.param(lambda f: os.mkfifo(f / "policies/x.yaml"), "not_a_file", id="pipe"),
        pytest.param(a_socket, "not_a_file", id="socket"),
        pytest.param(
            lambda f: (f / "policies/ORDERS.yaml").write_text(""), "colliding_name", id="case-colliding"
        ),
        pytest.param(
            lambda f: (f / "policies/\u043erders.yaml").write_text(""), "unsafe_path", id="look-alike"
        ),
        pytest.param(
            lambda f: (f / "policies/orders.yaml.").write_text(""), "unsafe_path", id="trailing dot"
        ),
        pytest.param(lambda f: (f / "policies/.x.yaml").write_text(""), "unsafe_path", id="hidden"),
        pytest.param(lambda f: (f / "x.yaml").write_text(""), "unsafe_path", id="beside the folders"),
        pytest.param(lambda f: sparse(f / "policies/x.yaml", MAX_BYTES + 1), "too_large", id="oversized"),
        pytest.param(
            lambda f: sparse(f / "manifest.json", MAX_MANIFEST_BYTES + 1), "too_large", id="manifest"
        ),
        pytest.param(lambda f: (f / "manifest.json").unlink(), "no_manifest", id="no manifest"),
        pytest.param(
            lambda f: (f / ("policies" + "/d" * 12)).mkdir(parents=True), "too_many_files", id="deep"
        ),
    ],
)
def test_bf1_whatever_is_no_plain_file_of_one_name_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], object], reason: str
) -> None:
    monkeypatch.chdir(folder)
    spoil(folder)
    assert refused(folder).value == reason


def test_bf1_a_device_is_refused(folder: Path) -> None:
    try:
        os.mknod(folder / "policies/x.yaml", 0o600 | 0o020000, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("needs root")
    assert refused(folder) is Refusal.NOT_A_FILE


def test_bf1_a_folder_that_is_a_link_or_not_there_is_refused(folder: Path) -> None:
    (folder.parent / "l").symlink_to(folder)
    assert refused(folder.parent / "l") is Refusal.UNREADABLE
    assert refused(folder.parent / "gone") is Refusal.UNREADABLE


def test_bf2_too_many_files_are_not_read_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_folder, "MAX_FILES", 3)
    assert refused(folder) is Refusal.TOO_MANY_FILES
    assert MAX_FILES == 4096


@pytest.mark.parametrize("how", ["longer", "shorter", "same length"])
def test_bf3_a_file_that_changes_while_it_is_read_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    target = folder / "policies/orders.yaml"
    size = target.stat().st_size
    really, asked = os.fstat, 0

    def fstat(descriptor: int) -> os.stat_result:
        nonlocal asked
        info = really(descriptor)
        if info.st_ino == target.stat().st_ino and not asked:
            asked += 1
            with target.open("r+b") as file:  # between the look and the read
                file.truncate({"longer": size + 9, "shorter": size - 9, "same length": size}[how])
                file.write(b"#")
        return info

    monkeypatch.setattr(bundle_folder.os, "fstat", fstat)
    assert refused(folder) is Refusal.CHANGED_WHILE_READ
