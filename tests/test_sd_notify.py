"""adapters/sd_notify.py: one datagram to systemd, or nothing."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from holdgate.adapters.sd_notify import notify


@pytest.mark.parametrize("abstract", [False, True], ids=["a path", "an abstract name"])
def test_sd1_the_state_arrives_where_systemd_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool
) -> None:
    name = f"@holdgate-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + name[1:] if abstract else name)
        systemd.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        notify("READY=1")
        assert systemd.recv(64) == b"READY=1"


@pytest.mark.parametrize("name", ["", "/nonexistent/notify", "x" * 200, "nul"])
def test_sd1_no_listener_is_no_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    notify("READY=1")
    assert bool(caplog.records) is bool(name)
