"""The inside of `holdgate exec`: namespaces around one command, from which only its connections get out.

Three processes, each killed when the one before it ends:

    outside  (exec_run.py)   waits, forwards signals, keeps the lifeline to `holdgate run`
    keeper   new network, mount and user namespace; makes the listening sockets and hands them out
    init     process 1 of a new PID namespace; waits for the command, and takes everything with it
    command  no capability, no_new_privs

The network namespace has a loopback device and no other. All addresses of both IP versions are local there
(AnyIP), so whatever the command connects to ends at the listening sockets on the mapped ports, or is refused
by its own kernel; the local address of an accepted connection is where it was meant to go.

Invariants (tests/integration/test_exec.py has one test named after each):
  XN1  The namespace has no device but loopback, so that even its root could not send a packet out.
  XN2  The command has no capability and can gain none.
  XN3  When the keeper, the init or the outside process is killed, no process of the namespace is left.
  XN4  state_dir is hidden from the command; configuration, maps and policies are read-only to it.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import select
import signal
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from . import syscalls
from .dns_stub import bind_udp
from .netlink import every_address_is_local, loopback_up

__all__ = ["FAILED", "SERVING", "Plan", "exit_code", "keeper", "leave"]

NOT_FOUND, NOT_RUNNABLE = 127, 126  # as a shell says it
FAILED: Final = 2  # no namespace, so no command: said on standard error
SERVING: Final = b"serving"

# Ways to ask something outside to look up a name, or to act: sockets that are files.
_HIDDEN_SOCKETS: Final = (
    "/run/systemd/resolve/io.systemd.Resolve",
    "/run/nscd/socket",
    "/var/run/nscd/socket",
    "/run/avahi-daemon/socket",
    "/run/dbus/system_bus_socket",
    "/run/docker.sock",
    "/run/containerd/containerd.sock",
    "/run/podman/podman.sock",
    "/run/crio/crio.sock",
)
_RESOLV_CONF: Final = b"# holdgate exec: answers mapped names only\nnameserver 127.0.0.1\noptions edns0\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that is known before the first process is made."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    user: pwd.struct_passwd | None  # None: stay who we are, in a user namespace
    ports: tuple[int, ...]
    explicit_port: int  # 0: none
    state_dir: Path  # hidden
    place: Path  # an existing folder; becomes a private one with `files` in it
    files: Mapping[str, bytes]  # below `place`
    overlays: Mapping[Path, bytes]  # existing file -> what the command sees there
    read_only: tuple[Path, ...]
    signal_mask: frozenset[int]  # of whoever called us


def keeper(plan: Plan, outside: socket.socket) -> int:
    """What the first child does, until the command has ended; returns the exit code."""
    syscalls.die_with_parent()
    _unshare(plan.user)
    loopback_up()
    every_address_is_local(socket.AF_INET)
    with contextlib.suppress(OSError):  # a kernel without IPv6: then there is none to close
        every_address_is_local(socket.AF_INET6)
    _no_echo()
    kinds, sockets = _listeners(plan)
    socket.send_fds(outside, [" ".join(kinds).encode()], [sock.fileno() for sock in sockets])
    for sock in sockets:
        sock.close()
    if outside.recv(16) != SERVING:  # only now is there somebody to ask, so the command comes last
        return FAILED
    _mounts(plan)
    init = os.fork()
    if init == 0:
        leave(lambda: _init(plan, outside))
    outside.close()
    _, status = os.waitpid(init, 0)
    return exit_code(status)


def leave(work: Callable[[], int]) -> NoReturn:
    """The end of a forked process: its exit code is what `work` returns, and nobody's clean-up runs twice."""
    code = FAILED
    try:
        code = work()
    except OSError as error:
        _complain(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
    except BaseException as error:  # noqa: BLE001  nobody above would say it
        _complain(repr(error))
    finally:
        os._exit(code)


def exit_code(status: int) -> int:
    """As a shell says it: 128 and the signal for a process that was killed."""
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _complain(text: str) -> None:
    os.write(2, f"holdgate exec: {text}\n".encode(errors="replace"))


def _unshare(user: pwd.struct_passwd | None) -> None:
    flags = os.CLONE_NEWNET | os.CLONE_NEWNS | os.CLONE_NEWPID | os.CLONE_NEWIPC
    uid, gid = os.geteuid(), os.getegid()
    if user is not None:
        os.unshare(flags)
        return
    try:
        os.unshare(flags | os.CLONE_NEWUSER)
    except OSError as error:
        if uid != 0:
            said = "this kernel lets only root make namespaces (user_namespaces(7)); run as root with --user"
            raise OSError(error.errno, said) from error
        os.unshare(flags)  # root where user namespaces are switched off
        return
    # Ourselves under our own name, and nobody else (user_namespaces(7)).
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        Path("/proc/self", name).write_bytes(text.encode())


def _no_echo() -> None:
    """Every address is local, so the kernel would answer pings: that would look like a way out."""
    for name in ("ipv4/icmp_echo_ignore_all", "ipv6/icmp/echo_ignore_all"):
        with contextlib.suppress(OSError):
            Path("/proc/sys/net", name).write_bytes(b"1")


def _listeners(plan: Plan) -> tuple[list[str], list[socket.socket]]:
    kinds: list[str] = []
    sockets: list[socket.socket] = []
    hosts = ("0.0.0.0", "::")  # noqa: S104  in a namespace that nobody can reach
    for host in hosts:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            loopback = bind_udp(host, 53)
        except OSError:
            if family == socket.AF_INET6:
                continue
            raise
        kinds.append("dns")
        sockets.append(loopback)
        wanted = [("transparent", port) for port in plan.ports if port != 53] + [("dns_tcp", 53)]
        for kind, port in wanted:
            kinds.append(kind)
            sockets.append(socket.create_server((host, port), family=family, backlog=128))
    if plan.explicit_port and plan.explicit_port not in plan.ports:
        kinds.append("explicit")
        sockets.append(socket.create_server(("127.0.0.1", plan.explicit_port), backlog=128))
    return kinds, sockets


def _mounts(plan: Plan) -> None:
    syscalls.private_mounts()
    contents: dict[Path, bytes] = dict(plan.overlays)
    resolv = Path("/etc/resolv.conf")
    if resolv.exists():  # where it is not, the C library asks 127.0.0.1 by itself
        contents[resolv.resolve()] = _RESOLV_CONF
    for path in plan.read_only:
        syscalls.bind(path, path)
    if plan.place != plan.state_dir:
        syscalls.tmpfs(plan.state_dir)
    syscalls.tmpfs(plan.place)
    for name, data in plan.files.items():
        _write(plan.place / name, data)
    for number, (target, data) in enumerate(contents.items()):
        source = plan.place / "overlays" / str(number)
        _write(source, data)
        try:
            syscalls.bind(source, target)
        except OSError as error:
            _complain(f"{target} is seen as it is: {error.strerror}")
    for name in _HIDDEN_SOCKETS:
        with contextlib.suppress(OSError):
            if Path(name).exists():
                syscalls.bind(Path(os.devnull), Path(name), read_only=False)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    path.write_bytes(data)
    path.chmod(0o644)


def _init(plan: Plan, outside: socket.socket) -> int:
    """Process 1: when it ends, the kernel kills whatever else is left in the namespace."""
    syscalls.die_with_parent()
    with contextlib.suppress(OSError):  # inside some containers: then /proc stays the one of outside
        syscalls.mount_proc()
    _kernel_settings_are_read_only()
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    command = os.fork()
    if command == 0:
        leave(lambda: _command(plan))
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    while True:
        # Every end is reaped: orphans of the command become children of process 1.
        while (ended := _ended()) is not None:
            if ended[0] == command:
                return exit_code(ended[1])
        ready, _, _ = select.select([woken, outside.fileno()], [], [])
        if woken in ready:
            os.read(woken, 4096)
        if outside.fileno() in ready:
            number = outside.recv(16)
            if not number:  # the outside process is gone
                return FAILED
            with contextlib.suppress(ProcessLookupError):
                os.kill(command, int(number))


def _kernel_settings_are_read_only() -> None:
    """Uid 0 may write there even without a capability, and core_pattern names a program that runs outside."""
    for name in ("/proc/sys", "/proc/sysrq-trigger"):
        with contextlib.suppress(OSError):
            syscalls.bind(Path(name), Path(name))
    with contextlib.suppress(OSError):
        syscalls.make_read_only(Path("/sys"))


def _ended() -> tuple[int, int] | None:
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (pid, status) if pid else None


def _command(plan: Plan) -> int:
    syscalls.limit_capabilities()
    if plan.user is not None:
        os.initgroups(plan.user.pw_name, plan.user.pw_gid)
        os.setresgid(plan.user.pw_gid, plan.user.pw_gid, plan.user.pw_gid)
        os.setresuid(plan.user.pw_uid, plan.user.pw_uid, plan.user.pw_uid)
    syscalls.drop_capabilities()
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores these
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, plan.signal_mask)
    try:
        os.execvpe(plan.command[0], plan.command, plan.environment)  # noqa: S606
    except OSError as error:
        _complain(f"{plan.command[0]}: {error.strerror}")
        return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_RUNNABLE
