"""The tools that more than one test here gives its evidence to."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

GO_PATH = Path("/usr/share/gocode")


@pytest.fixture(scope="session")
def go(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """verify.go, compiled against Debian's golang.org/x/mod."""
    if shutil.which("go") is None:
        pytest.skip("go is not installed")
    if not (GO_PATH / "src/golang.org/x/mod/sumdb/tlog").is_dir():
        pytest.skip("golang-golang-x-mod-dev is not installed")
    folder = tmp_path_factory.mktemp("go")
    env = os.environ | {"GO111MODULE": "off", "GOPATH": str(GO_PATH), "GOCACHE": str(folder / "cache")}
    source = Path(__file__).resolve().parent / "verify.go"
    words = ["go", "build", "-o", str(folder / "verify"), str(source)]
    done = subprocess.run(words, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder / "verify"
