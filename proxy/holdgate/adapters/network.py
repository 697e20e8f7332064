"""The rules of network_rules.py in this machine's kernel, through `nft`: one table, `inet holdgate`, of the
network namespace that the command runs in. With mode tproxy also a route for diverted packets, through `ip`.
Nothing else is read or changed.

The route is there before the rules that need it, and goes after them. Without it a diverted packet is routed
like any other, and the filter drops it.

Invariants (tests/integration/test_network.py has one test named after each):
  NW1  apply() leaves the whole rules, or what was there before, or, where nothing was, no network for agents.
  NW2  is_loaded() is true only while the table is exactly what rendering gives now; is_routed() only while
       diverted packets are delivered here.
  NW3  close() leaves agents without network; only remove() opens.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ..config import Config
from ..errors import ConfigError
from ..network_rules import (
    FROM_HERE,
    LOCAL_ROUTE,
    MARK,
    TABLE,
    Boundary,
    Uids,
    boundary_of,
    render,
    render_closed,
    routing,
)

__all__ = ["apply", "boundary", "close", "is_loaded", "is_routed", "is_there", "remove", "subordinate_uids"]

_SBIN: Final = "/usr/sbin:/sbin:/usr/local/sbin:/usr/bin:/bin"
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
        if wanted.diverts:
            _add_routes()
        _nft("-f", "-", script=render(wanted))
    except ConfigError as error:
        left = "the rules that were there before are in force" if before else "agents have no network"
        raise ConfigError(f"{error}; {left}") from error
    if not wanted.diverts:
        _remove_routes()


def close(wanted: Boundary) -> None:
    """Agents without any network, until apply() or remove()."""
    _nft("-f", "-", script=render_closed(wanted))


def remove() -> None:
    """Take the table away: from here on agents reach whatever this machine reaches."""
    _nft("-f", "-", script=f"add table inet {TABLE}\ndelete table inet {TABLE}\n")
    _remove_routes()


def is_there() -> bool:
    """Whether the table is loaded, whatever is in it."""
    return _listed() is not None


def is_loaded(script: str) -> bool:
    """Whether the table is what `script` makes of an empty namespace (NW2)."""
    found = _listed()
    return found is not None and found == _listed_after(script)


def is_routed() -> bool:
    """Whether diverted packets of every family of this machine are delivered here (NW2)."""
    return all(_rules_of(f) == [FROM_HERE, LOCAL_ROUTE] and _is_local(f) for f in _families())


def _add_routes() -> None:
    for family in _families():
        route, *rules = routing(family=family)
        _ip(*route.split())
        if _rules_of(family) != [FROM_HERE, LOCAL_ROUTE]:  # not otherwise: without them connections are cut
            _remove_rules(family)
            for rule in rules:
                _ip(*rule.split())


def _remove_routes() -> None:
    if shutil.which("ip", path=_SBIN) is None:  # then nothing was added
        return
    for family in _families():
        _remove_rules(family)
        if _is_local(family):
            _ip(f"-{family}", "route", "flush", "table", str(LOCAL_ROUTE))


def _remove_rules(family: int) -> None:
    for preference in _rules_of(family):
        _ip(f"-{family}", "rule", "del", "preference", str(preference), "fwmark", f"{MARK:#x}")


def _families() -> tuple[int, ...]:
    return (4, 6) if Path("/proc/net/if_inet6").exists() else (4,)


def _rules_of(family: int) -> list[int]:
    """The preferences of the rules that are ours."""
    listed = json.loads(_ip("-j", f"-{family}", "rule", "list") or "[]")
    ours = {(FROM_HERE, "lo", "main"), (LOCAL_ROUTE, None, str(LOCAL_ROUTE))}
    return [
        row["priority"]
        for row in listed
        if row.get("fwmark") == f"{MARK:#x}" and (row["priority"], row.get("iif"), row.get("table")) in ours
    ]


def _is_local(family: int) -> bool:
    done = _run([_ip_tool(), "-j", f"-{family}", "route", "list", "table", str(LOCAL_ROUTE)])
    if done.returncode != 0:  # no such table was ever made
        return False
    listed = json.loads(done.stdout or "[]")
    return [(row.get("type"), row["dst"], row.get("dev")) for row in listed] == [("local", "default", "lo")]


def _ip_tool() -> str:
    tool = shutil.which("ip", path=_SBIN)
    if tool is None:
        raise ConfigError("`ip` is not installed, and mode tproxy needs a route: apt-get install iproute2")
    return tool


def _ip(*words: str) -> str:
    done = _run([_ip_tool(), *words])
    if done.returncode != 0:
        raise ConfigError(f"ip {' '.join(words)}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout


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
        raise ConfigError(f"{Path(command[0]).name} could not be run: {error}") from error


def _tool() -> str:
    # sbin is not on every user's PATH.
    found = shutil.which("nft") or shutil.which("nft", path=_SBIN)
    if found is None:
        raise ConfigError("`nft` is not installed: apt-get install nftables (or your system's package of it)")
    return found
