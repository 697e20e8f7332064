"""The rules of network_rules.py in this machine's kernel, through `nft`. One table, `inet holdgate`, of the
network namespace that the command runs in; nothing else is read or changed.

Invariants (tests/integration/test_network.py has one test named after each):
  NW1  apply() leaves the whole rules, or what was there before, or, where nothing was, no network for agents.
  NW2  is_loaded() is true only while the table is exactly what rendering gives now.
  NW3  close() leaves agents without network; only remove() opens.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ..config import Config
from ..errors import ConfigError
from ..network_rules import TABLE, Boundary, Uids, boundary_of, render, render_closed

__all__ = ["apply", "boundary", "close", "is_loaded", "is_there", "remove", "subordinate_uids"]

_LIST: Final = ("-s", "-n", "list", "table", "inet", TABLE)


def boundary(config: Config) -> Boundary:
    """What this configuration wants enforced on this machine. Raises ConfigError."""
    try:
        owner = config.state_dir.stat().st_uid
    except OSError as error:
        raise ConfigError(f"state_dir: {error.strerror}", file=str(config.state_dir)) from error
    return boundary_of(config, proxy_uid=owner, subordinate=subordinate_uids())


def subordinate_uids(path: Path = Path("/etc/subuid")) -> Mapping[int, tuple[Uids, ...]]:
    """uid -> ranges of uids that its user may take on in a user namespace (subuid(5))."""
    ranges: dict[int, tuple[Uids, ...]] = {}
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return ranges
    for line in lines:
        name, _, rest = line.partition(":")
        first, _, count = rest.partition(":")
        if not (first.isdigit() and count.isdigit() and int(count)):
            continue
        try:
            uid = int(name) if name.isdigit() else pwd.getpwnam(name).pw_uid
        except KeyError:
            continue
        ranges[uid] = (*ranges.get(uid, ()), (int(first), int(first) + int(count) - 1))
    return ranges


def apply(wanted: Boundary) -> None:
    """Load the rules in one transaction. Raises ConfigError when they are not in force (NW1)."""
    before = is_there()
    if not before:
        _nft("-f", "-", script=render_closed(wanted))
    try:
        _nft("-f", "-", script=render(wanted))
    except ConfigError as error:
        left = "the rules that were there before are in force" if before else "agents have no network"
        raise ConfigError(f"{error}; {left}") from error


def close(wanted: Boundary) -> None:
    """Agents without any network, until apply() or remove()."""
    _nft("-f", "-", script=render_closed(wanted))


def remove() -> None:
    """Take the table away: from here on agents reach whatever this machine reaches."""
    _nft("-f", "-", script=f"add table inet {TABLE}\ndelete table inet {TABLE}\n")


def is_there() -> bool:
    """Whether the table is loaded, whatever is in it."""
    return _listed() is not None


def is_loaded(script: str) -> bool:
    """Whether the table is what `script` makes of an empty namespace (NW2)."""
    found = _listed()
    return found is not None and found == _listed_after(script)


def _listed() -> str | None:
    _nft("list", "tables")  # a failure here is about nft or rights; after it, only about the table
    done = _run([_tool(), *_LIST])
    return done.stdout if done.returncode == 0 else None


def _listed_after(script: str) -> str:
    """nft's own listing of a script, from a network namespace that exists for this one question: what a
    listing looks like depends on the version of nft and of the kernel."""
    flags = os.CLONE_NEWNET | (0 if os.geteuid() == 0 else os.CLONE_NEWUSER)
    tool = _tool()
    done = subprocess.run(  # noqa: S603
        ["/bin/sh", "-c", '"$0" -f - && "$0" "$@"', tool, *_LIST],
        input=script,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        preexec_fn=lambda: os.unshare(flags),
    )
    if done.returncode != 0:
        raise ConfigError(f"nft cannot load the rules even into an empty namespace: {done.stderr.strip()}")
    return done.stdout


def _nft(*words: str, script: str = "") -> str:
    done = _run([_tool(), *words], script)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        raise ConfigError(f"nft refused: {lines[0] if lines else f'exit code {done.returncode}'}")
    return done.stdout


def _run(command: list[str], script: str = "") -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(  # noqa: S603
            command, input=script, capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"nft could not be run: {error}") from error


def _tool() -> str:
    # sbin is not on every user's PATH.
    found = shutil.which("nft") or shutil.which("nft", path="/usr/sbin:/sbin:/usr/local/sbin")
    if found is None:
        raise ConfigError("`nft` is not installed: apt-get install nftables (or your system's package of it)")
    return found
