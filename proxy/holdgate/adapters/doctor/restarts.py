"""The rows `failure.*`: the proxy is killed and started again while the agent's place tries to get out.

Invariants (tests/integration/test_doctor_lab.py):
  FR1  failure.restart is closed only after the new process answered and a whole round ended after that.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ...config import Config
from ...coverage import State
from ...errors import ConfigError
from ..control import ask
from .prover import Run

__all__ = ["fail_and_restart"]

_START_S: Final = 60.0
_NOTHING_SHOWN: Final = (State.UNPROVEN, "no witness, or the probes did not run")

type _Finding = tuple[State, str]


def fail_and_restart(config: Config, command: Sequence[str], run: Run) -> dict[str, _Finding]:
    """SIGKILL for `holdgate run`, then `command` to start it. Raises ConfigError when none runs."""
    status = ask(config.state_dir, {"ask": "status"})
    if status is None:
        raise ConfigError("--with-restarts: `holdgate run` does not run")
    pid = int(status["pid"])
    os.kill(pid, signal.SIGKILL)
    while Path(f"/proc/{pid}/fd/0").exists():  # a zombie that nobody waits for has no files any more
        time.sleep(0.02)
    killed = _finding([run.leaks()])
    try:
        # It outlives this command, so it keeps none of its files: whoever reads them would wait for ever.
        quiet = subprocess.DEVNULL
        subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)  # noqa: S603
    except OSError as error:
        raise ConfigError(f"--with-restarts: cannot run {command[0]}: {error.strerror}") from error
    rounds = []
    until = time.monotonic() + _START_S
    while ask(config.state_dir, {"ask": "status"}) is None:
        if time.monotonic() > until:
            return {"failure.killed": killed, "failure.restart": (State.UNPROVEN, "it did not start again")}
        rounds.append(run.leaks())
    return {"failure.killed": killed, "failure.restart": _finding([*rounds, run.leaks()])}


def _finding(rounds: Sequence[frozenset[str] | None]) -> _Finding:
    seen = sorted(frozenset[str]().union(*(found for found in rounds if found)))
    if seen:
        return State.OPEN, f"the witness saw {', '.join(seen)}"
    if None in rounds:
        return _NOTHING_SHOWN
    return State.CLOSED, f"nothing arrived in {len(rounds)} rounds"
