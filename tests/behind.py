"""A real `holdgate run` in front of stand-in vendors that count what reached them."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

from holdgate.demo.instance import Instance
from holdgate.demo.recorder import Counts
from holdgate.demo.standins import StandIns


@dataclass
class Bench:
    """The instance, the vendors, and agents as processes of their own that were not changed for us."""

    gate: Instance
    vendors: StandIns
    folder: Path

    def agent(self, script: str, *, env: dict[str, str] | None = None) -> str:
        """Run a Python agent behind the proxy; what it printed."""
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)],
            env=self.gate.client_env() | (env or {}),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    def run(self, *words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words,
            env=self.gate.client_env() | (env or {}),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def holdgate(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.gate.command(*words), capture_output=True, text=True, timeout=60, check=False
        )

    def state_files(self) -> list[Path]:
        keys = {"keys", "ca"}
        found = [path for path in self.gate.state_dir.rglob("*") if path.is_file()]
        return [path for path in found if not keys & set(path.relative_to(self.gate.state_dir).parts)]

    def counts(self) -> dict[str, Counts]:
        return {name: self.vendors.counts(name) for name in self.vendors.recorders}
