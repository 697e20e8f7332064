"""The transparent listener of mode tproxy: opened by somebody privileged, handed over as systemd does it.

    socket unit (Transparent=yes), or `holdgate run --user NAME` started as root
        -> LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES, descriptors from 3 on (sd_listen_fds(3))
        -> `holdgate run`, which has no CAP_NET_ADMIN and accepts

IP_TRANSPARENT is what needs the right, once, before the socket is bound. Accepted sockets inherit it, so the
process that reads agents' bytes needs no right at all. Their local address is the original destination.

Invariants (tests/test_handed.py has one test named after each):
  HS1  take() returns listening TCP sockets that are transparent and bound to listen.transparent or its IPv6
       twin, IPv4 among them, or raises; nothing else that was handed over is used.
  HS2  A process that still has CAP_NET_ADMIN does not take them.
  HS3  Whose destination cannot be known is not served.
"""

from __future__ import annotations

import os
import pwd
import re
import socket
import sys
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Final

from mitmproxy import platform

from ..config import Address, Config, NetworkMode
from ..errors import ConfigError
from ..network_rules import twin
from . import syscalls

__all__ = ["NAME", "become", "destination", "open_transparent", "take"]

NAME: Final = "transparent"  # FileDescriptorName= of the socket unit
FIRST: Final = 3  # SD_LISTEN_FDS_START
_IP_TRANSPARENT, _IPV6_TRANSPARENT = 19, 75  # linux/in.h, linux/in6.h
_OPTION: Final = {
    socket.AF_INET: (socket.IPPROTO_IP, _IP_TRANSPARENT),
    socket.AF_INET6: (socket.IPPROTO_IPV6, _IPV6_TRANSPARENT),
}
_CAP_NET_ADMIN: Final = 12
_HOW: Final = "by a socket unit with Transparent=yes, or start `holdgate run --user NAME` as root"

type End = tuple[str, int]  # IP address, port


def take(config: Config, environment: MutableMapping[str, str] = os.environ) -> tuple[socket.socket, ...]:
    """The sockets that this process was started with. Raises ConfigError."""
    names = _names(environment)
    wanted = config.listen.transparent
    if config.network_mode is not NetworkMode.TPROXY or wanted is None:
        if names:
            raise ConfigError(
                "sockets were handed over, and network.mode is not tproxy", file=str(config.path)
            )
        return ()
    if not names:
        raise ConfigError(f"network.mode is tproxy: hand {wanted} over {_HOW}", file=str(config.path))
    if _has_net_admin():
        raise ConfigError(
            "network.mode is tproxy: what reads agents' bytes must not have CAP_NET_ADMIN",
            file=str(config.path),
        )
    sockets = [socket.socket(fileno=FIRST + place) for place in range(len(names))]
    for name, sock in zip(names, sockets, strict=True):
        os.set_inheritable(sock.fileno(), False)
        _check(name, sock, wanted, config)
    bound = [_bound(sock) for sock in sockets]
    if wanted not in bound or len(set(bound)) != len(bound):
        raise ConfigError(f"{wanted} was not handed over, or a socket twice", file=str(config.path))
    return tuple(sockets)


def _names(environment: MutableMapping[str, str]) -> list[str]:
    """Of the descriptors that were handed over; the variables are not for whom this process starts."""
    pid, count, names = (environment.pop(f"LISTEN_{word}", "") for word in ("PID", "FDS", "FDNAMES"))
    if pid != str(os.getpid()) or not count.isdigit() or not int(count):
        return []
    found = names.split(":") if names else []
    return found if len(found) == int(count) else [""] * int(count)


def _check(name: str, sock: socket.socket, wanted: Address, config: Config) -> None:
    """HS1. Raises ConfigError."""
    faults = {
        f"is called {name!r}; write FileDescriptorName={NAME}": name != NAME,
        "is no TCP socket": sock.family not in _OPTION or sock.type != socket.SOCK_STREAM,
    }
    if not any(faults.values()):
        bound = _bound(sock)
        level, option = _OPTION[sock.family]
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        both = sock.family == socket.AF_INET6 and not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        faults = {
            f"is bound to {bound}, and listen.transparent is {wanted}": bound not in (wanted, twin(wanted)),
            "does not listen": not listens,
            "is not transparent: write Transparent=yes": not sock.getsockopt(level, option),
            "takes IPv4 too: write BindIPv6Only=ipv6-only": both,
        }
    for fault, found in faults.items():
        if found:
            raise ConfigError(f"a socket that was handed over {fault}", file=str(config.path))


def _bound(sock: socket.socket) -> Address:
    host, port, *_ = sock.getsockname()
    return Address(host=host, port=port)


def _has_net_admin(status: Path = Path("/proc/self/status")) -> bool:
    permitted = re.search(
        r"^CapPrm:\s*([0-9a-f]+)$", status.read_text(encoding="ascii", errors="replace"), re.M
    )
    return permitted is None or bool(int(permitted[1], 16) >> _CAP_NET_ADMIN & 1)


def destination(sock: socket.socket, listener: Address) -> End:
    """What the agent connected to. Raises OSError.

    The local address of a diverted connection. Users of this machine are redirected, to the listener on
    loopback; then conntrack knows it.
    """
    host, port, *_ = sock.getsockname()
    if port == listener.port and host in ("127.0.0.1", "::1"):
        if platform.original_addr is None:
            raise OSError("this platform redirects nothing")
        return platform.original_addr(sock)
    return host, port


# --- the privileged step ---


def open_transparent(config: Config) -> tuple[socket.socket, ...]:
    """The listener and its IPv6 twin, for take(). Needs CAP_NET_ADMIN. Raises ConfigError."""
    wanted = config.listen.transparent
    if config.network_mode is not NetworkMode.TPROXY or wanted is None:
        return ()
    other = twin(wanted) if Path("/proc/net/if_inet6").exists() else None
    return tuple(_open(address, config) for address in (wanted, other) if address is not None)


def _open(address: Address, config: Config) -> socket.socket:
    family = socket.AF_INET6 if address.ip.version == 6 else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(*_OPTION[family], 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address.host, address.port))
        sock.listen(1024)
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"listen.transparent: {address}: {error.strerror}", file=str(config.path)
        ) from error
    return sock


def become(
    account: pwd.struct_passwd,
    sockets: tuple[socket.socket, ...],
    command: list[str],
    execute: Callable[[str, list[str], dict[str, str]], object] = os.execve,
) -> None:
    """Give up every right, and be `command` with these sockets. Raises OSError, or does not return."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LISTEN_")}
    if sockets:
        environment |= {
            "LISTEN_PID": str(os.getpid()),
            "LISTEN_FDS": str(len(sockets)),
            "LISTEN_FDNAMES": ":".join(NAME for _ in sockets),
        }
    syscalls.limit_capabilities()
    os.initgroups(account.pw_name, account.pw_gid)
    os.setresgid(account.pw_gid, account.pw_gid, account.pw_gid)
    os.setresuid(account.pw_uid, account.pw_uid, account.pw_uid)
    syscalls.drop_capabilities()
    _place(sockets)
    execute(sys.executable, command, environment)


def _place(sockets: tuple[socket.socket, ...]) -> None:
    """At the numbers where they are looked for. Copies first: one may stand where another goes."""
    high = [os.dup2(sock.fileno(), 100 + place, inheritable=False) for place, sock in enumerate(sockets)]
    for place, number in enumerate(high):
        os.dup2(number, FIRST + place, inheritable=True)
