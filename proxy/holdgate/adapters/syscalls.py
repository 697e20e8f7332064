"""The Linux calls that `holdgate exec` needs and the standard library does not have: mount, prctl, capset.

Each raises OSError like the calls of `os`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path
from typing import Final

__all__ = [
    "bind",
    "die_with_parent",
    "drop_capabilities",
    "limit_capabilities",
    "make_read_only",
    "mount_proc",
    "private_mounts",
    "tmpfs",
]

_libc: Final = ctypes.CDLL(None, use_errno=True)

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_REMOUNT, _MS_BIND, _MS_REC, _MS_SLAVE = 32, 4096, 16384, 1 << 19
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 24, 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_SIGKILL: Final = 9
_CAPABILITY_VERSION_3: Final = 0x20080522
# statvfs(3) flag -> mount(2) flag: a mount from outside keeps these, or the kernel refuses the change.
_KEPT: Final = {2: _MS_NOSUID, 4: _MS_NODEV, 8: _MS_NOEXEC, 1024: 1024, 2048: 2048, 4096: 1 << 21}


def _check(result: int) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    encoded = (os.fsencode(source), os.fsencode(target), kind.encode() or None)
    _check(_libc.mount(*encoded, ctypes.c_ulong(flags), data.encode() or None))


def private_mounts() -> None:
    """What is mounted from here on stays in this mount namespace."""
    _mount("none", "/", "", _MS_REC | _MS_SLAVE)


def tmpfs(target: Path) -> None:
    _mount("tmpfs", str(target), "tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, "mode=0755,size=64m")


def mount_proc() -> None:
    _mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)


def bind(source: Path, target: Path, *, read_only: bool = True) -> None:
    """Put `source` in the place of `target`."""
    _mount(str(source), str(target), "", _MS_BIND)
    if read_only:
        make_read_only(target)


def make_read_only(mounted: Path) -> None:
    """What is mounted there, as seen in this mount namespace."""
    now = os.statvfs(mounted).f_flag
    kept = sum(flag for seen, flag in _KEPT.items() if now & seen)
    _mount("none", str(mounted), "", _MS_BIND | _MS_REMOUNT | _MS_RDONLY | kept)


def die_with_parent() -> None:
    """SIGKILL when the parent ends, however it ends; but not when it has ended already."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0))


def limit_capabilities() -> None:
    """From here on execve gives nothing, to uid 0 neither. Before the uid changes: this needs a right."""
    for number in range(_last_capability() + 1):
        with contextlib.suppress(OSError):  # no CAP_SETPCAP: then no_new_privs alone must do
            _check(_libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0))
    _check(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))


def drop_capabilities() -> None:
    """No capability now, and no set-user-ID program or file capability changes that."""
    head = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(head, (ctypes.c_uint32 * 6)()))
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def _last_capability() -> int:
    return int(Path("/proc/sys/kernel/cap_last_cap").read_bytes())
