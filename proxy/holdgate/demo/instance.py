"""A real `holdgate run` in a process of its own, in a folder of its own, on free loopback ports.

with Instance(folder, connect_to=vendors.connect_to()) as gate:
    subprocess.run([...], env=gate.client_env())
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from ..adapters.starter import copy_starters, make_state
from ..adapters.trust import trust_env
from ..errors import HoldgateError

__all__ = ["Instance", "InstanceError"]

_START_S: Final = 90.0
_STOP_S: Final = 20.0
_CONFIG: Final = """\
version: 1
node: {node}
state_dir: ./state
listen: {{explicit: 127.0.0.1:0, transparent: {transparent}}}
admin: {{listen: 127.0.0.1:0, open: [metrics, checkpoint]}}
surfaces: [./surfaces]
policies: [./policies]
agents:
{agents}
upstream:
  connect_to:
{connect_to}
{extra}
"""
_AGENTS: Final = "  - {id: demo-agent, match: {source: [127.0.0.1/32]}}"


class InstanceError(HoldgateError):
    """The instance did not start; the message ends with its log."""


def _free_address() -> str:
    # The proxy engine does not take port 0 for two listeners. Below 32768, where Linux begins to hand out
    # numbers by itself: one that was let go there may be the next connection's own. start() says so when it
    # is taken all the same.
    while True:
        port = 10_240 + secrets.randbelow(32_768 - 10_240)
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return f"127.0.0.1:{port}"


class Instance:
    """`start`, `stop` and `kill` may be called any number of times; the state stays in the folder."""

    def __init__(
        self,
        folder: Path,
        *,
        connect_to: Mapping[str, str],
        agents: str = _AGENTS,
        extra: str = "",
        transparent: bool = False,
        node: str = "demo",
    ) -> None:
        self.folder = folder
        self.config = folder / "holdgate.yaml"
        self.state_dir = folder / "state"
        self.addresses: dict[str, str] = {}
        self.run_words: tuple[str, ...] = ("run",)
        self._process: subprocess.Popen[str] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        copy_starters(folder)
        make_state(self.state_dir, node)
        rows = [
            f"    {json.dumps(name)}: {{address: {json.dumps(address)}, tls: false}}"
            for name, address in connect_to.items()
        ]
        self.config.write_text(
            _CONFIG.format(
                node=node,
                transparent=_free_address() if transparent else "null",
                agents=agents,
                connect_to="\n".join(rows),
                extra=extra,
            ),
            encoding="utf-8",
        )

    @property
    def proxy(self) -> str:
        return self.addresses["explicit"]

    @property
    def admin(self) -> str:
        return self.addresses["admin"]

    @property
    def pid(self) -> int:
        if self._process is None:
            raise InstanceError("the instance is not running")
        return self._process.pid

    @property
    def log(self) -> str:
        """What the instance wrote to standard error, over all its runs."""
        return (self.folder / "run.log").read_text(encoding="utf-8", errors="replace")

    def command(self, *words: str) -> list[str]:
        """The command line of one `holdgate` command for this instance."""
        return [sys.executable, "-m", "holdgate", *words, "-c", str(self.config)]

    def client_env(self) -> dict[str, str]:
        """What an agent's process needs: the proxy, and variables that make clients trust the CA."""
        authority = self.state_dir / "ca"
        proxy = f"http://{self.proxy}"
        named = {name: proxy for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy")}
        kept = {name: value for name, value in os.environ.items() if name.upper() != "NO_PROXY"}
        return kept | named | trust_env(authority / "bundle.pem", authority / "ca.pem")

    def start(self) -> None:
        """Start, and return when it accepts requests. Raises InstanceError."""
        with (self.folder / "run.log").open("ab") as log:
            process = subprocess.Popen(  # noqa: S603
                self.command(*self.run_words),
                stdout=subprocess.PIPE,
                stderr=log,
                stdin=subprocess.DEVNULL,
                text=True,
            )
        self._process = process
        overdue = threading.Timer(_START_S, process.kill)
        overdue.start()
        try:
            for line in process.stdout or ():
                name, _, address = line.strip().partition(" ")
                if name == "ready":
                    return
                self.addresses[name] = address
        finally:
            overdue.cancel()
        process.wait()
        raise InstanceError(
            f"`holdgate run` did not start (exit code {process.returncode}):\n{self.log[-4000:]}"
        )

    def stop(self) -> int:
        """SIGTERM, and wait until it has drained; the exit code."""
        return self._end(signal.SIGTERM)

    def kill(self) -> int:
        """SIGKILL: as if the machine had lost power."""
        return self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(number)
        try:
            return process.wait(timeout=_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()
        finally:
            if process.stdout is not None:
                process.stdout.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
