"""What can be read on the gate's own host, without an agent: files, clock, disk, addresses, packet filter.

Invariants (tests/test_doctor_host.py has one test named after each):
  DH1  What cannot be looked at is unproven; only what was found safe is closed.
"""

from __future__ import annotations

import hashlib
import stat
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from ...config import Config, NetworkMode
from ...coverage import State
from ...errors import ConfigError
from ...network_rules import LOCAL_ROUTE
from ..log_tail import free_bytes
from ..open_reader import open_reader

__all__ = ["look", "rules_digest", "secret_files"]

_HEADROOM_BYTES: Final = 64 << 20  # below it the ledger refuses
_DISK_BYTES: Final = 512 << 20
_EARLIEST_US: Final = 1_767_225_600_000_000  # 2026-01-01: a clock before it was never set
_TABLE: Final = ("nft", "list", "table", "inet", "holdgate")
_IP_RULES: Final = ("ip", "rule", "list")
_FORWARDING: Final = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding")

type Finding = tuple[State, str]


def secret_files(state_dir: Path) -> tuple[str, ...]:
    """What no agent may read: every key that is there, those that must be, and the ledger."""
    must = {state_dir / name for name in ("ca/ca.key", "keys/receipt.key", "keys/log.key", "keys/fleet.key")}
    there = {path for folder in ("ca", "keys") for path in (state_dir / folder).glob("*.key")}
    return tuple(str(path.absolute()) for path in (*sorted(must | there), state_dir / "ledger.db"))


def look(
    config: Config,
    agent_uid: int,
    *,
    clock_us: Callable[[], int],
    status: Mapping[str, Any] | None,
    command: Callable[[tuple[str, ...]], str | None] | None = None,
) -> dict[str, Finding]:
    """The rows `gate.*`. `status` is the running process's, None when none runs."""
    run = command or run_command
    return {
        "gate.secrets": _secrets(config.state_dir, agent_uid),
        "gate.admin_address": _admin(config),
        "gate.clock": _clock(config, clock_us),
        "gate.disk": _disk(config.state_dir),
        "gate.barriers": _barriers(status),
        "gate.rules": _rules(config, run),
        "gate.forwarding": _forwarding(),
    }


def _secrets(state_dir: Path, agent_uid: int) -> Finding:
    try:
        folder = state_dir.stat()
        if stat.S_IMODE(folder.st_mode) & 0o077:
            return State.OPEN, f"{state_dir} has mode {stat.S_IMODE(folder.st_mode):o}, not 700"
        for path in secret_files(state_dir):
            if path.endswith("ledger.db") and not Path(path).exists():
                continue
            info = Path(path).stat()
            if stat.S_IMODE(info.st_mode) & 0o077:
                return State.OPEN, f"{path} has mode {stat.S_IMODE(info.st_mode):o}, not 600"
            if info.st_uid != folder.st_uid:
                return State.OPEN, f"{path} and its state directory belong to different users"
    except OSError as error:
        return State.UNPROVEN, f"cannot look: {error}"
    if folder.st_uid == agent_uid:
        return State.OPEN, f"the agent has the same user as the keys (uid {folder.st_uid})"
    return State.CLOSED, f"0700 and 0600, uid {folder.st_uid}"


def _admin(config: Config) -> Finding:
    address = config.admin.listen
    if address.ip.is_unspecified:
        return State.OPEN, f"{address} listens on the agents' side too: name one address"
    if address.ip.is_loopback:
        return State.CLOSED, f"{address} is loopback"
    return State.CLOSED, f"{address}: one address; admin.direct says whether agents reach it"


def _clock(config: Config, clock_us: Callable[[], int]) -> Finding:
    if clock_us() < _EARLIEST_US:
        return State.OPEN, "the clock was never set"
    try:
        with open_reader(config) as reader:
            newest = next(iter(reader.list(limit=1).receipts), None)
    except ConfigError as error:
        return State.UNPROVEN, f"cannot look: {error}"
    if newest is not None and newest.iat_us > clock_us():
        return State.OPEN, "the clock is behind the newest receipt"
    return State.CLOSED, "not behind the newest receipt"


def _disk(state_dir: Path) -> Finding:
    try:
        free = free_bytes(state_dir)
    except OSError as error:
        return State.UNPROVEN, f"cannot look: {error}"
    said = f"{free >> 20} MiB free; below {_HEADROOM_BYTES >> 20} MiB everything is refused"
    return (State.OPEN if free < _DISK_BYTES else State.CLOSED), said


def _barriers(status: Mapping[str, Any] | None) -> Finding:
    if status is None or "barrier_trips" not in status:
        return State.UNPROVEN, "`holdgate run` does not run"
    trips = status["barrier_trips"]
    return (State.OPEN if trips else State.CLOSED), f"{trips} since it was started"


def _rules(config: Config, run: Callable[[tuple[str, ...]], str | None]) -> Finding:
    listed = run(_TABLE)
    if listed is None:
        return (
            State.UNPROVEN,
            "no table `inet holdgate`, or nft cannot be asked: is the boundary elsewhere?",
        )
    if config.network_mode is NetworkMode.TPROXY and str(LOCAL_ROUTE) not in (run(_IP_RULES) or ""):
        return State.UNPROVEN, "the rules divert, and nothing routes what they divert: `holdgate network up`"
    return State.CLOSED, f"{len(listed.splitlines())} lines are loaded"


def _forwarding() -> Finding:
    on = []
    for name in _FORWARDING:
        try:
            if Path("/proc/sys", name).read_text().strip() != "0":
                on.append(name.replace("/", "."))
        except OSError:
            continue
    if on:
        return State.UNPROVEN, f"{', '.join(on)} is on: only the packet filter is in the way"
    return State.CLOSED, "this host forwards no packets"


def rules_digest(command: Callable[[tuple[str, ...]], str | None] | None = None) -> str:
    """`sha256:` over `nft -s list ruleset`; "" when it cannot be read."""
    listed = (command or run_command)(("nft", "-s", "list", "ruleset"))
    return "" if listed is None else "sha256:" + hashlib.sha256(listed.encode()).hexdigest()


def run_command(words: tuple[str, ...]) -> str | None:
    """Its standard output; None when it is not there, fails or hangs."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=10, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
