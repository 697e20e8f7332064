"""What tests read of an instance that runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from behind import read_all


def test_a_file_that_is_replaced_while_the_folder_is_read_is_read_as_what_replaced_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "000.p").mkdir()
    partial, wider = tmp_path / "000.p/55", tmp_path / "000.p/60"
    partial.write_bytes(b"55 hashes")
    (tmp_path / "checkpoint").write_bytes(b"55")
    read = Path.read_bytes

    def read_late(path: Path) -> bytes:
        if path == partial:
            wider.write_bytes(b"60 hashes")
            partial.unlink()
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", read_late)
    assert read_all(tmp_path) == {tmp_path / "checkpoint": b"55", wider: b"60 hashes"}


def test_a_folder_that_never_keeps_still_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one").write_bytes(b"1")

    def gone(path: Path) -> bytes:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_bytes", gone)
    with pytest.raises(AssertionError, match="did not keep still"):
        read_all(tmp_path)
