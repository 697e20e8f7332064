"""`holdgate exec`, the process outside of the namespace: it starts the keeper, hands the namespace's sockets
to `holdgate run`, and then only waits, forwards signals, and hands them in again when `run` was restarted.

Invariants (tests/integration/test_exec.py has one test named after each):
  XR1  The command starts only when `holdgate run` serves its namespace; otherwise it does not start.
  XR2  The exit code is the command's own, or 128 and the signal that ended it.
  XR3  While `holdgate run` is away the command has no network; when it is back it has the proxy again.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..config import Config
from ..errors import ConfigError
from .exec_door import DOOR, MAX_SOCKETS, NotAsAgreed, door_address, pack, unpack
from .exec_namespace import FAILED, SERVING, Plan, exit_code, keeper, leave
from .exec_trust import bundles_of, client_environment, overlays, public_files

__all__ = ["run_inside"]

_SAID_S: Final = 10.0
_TICK_S: Final = 0.25
_TTY: Final = 0x80  # si_code SI_KERNEL: from the terminal, which has told the command as well
_FORWARDED: Final = frozenset(
    {*(signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT), *(signal.SIGUSR1, signal.SIGUSR2)}
)
ROOTS_PLACE: Final = Path("/run/holdgate")


@dataclass
class Lifeline:
    """The connection to `holdgate run` on which this namespace's life depends."""

    state_dir: Path
    agent: str | None
    peer: socket.socket | None = None

    def knock(self) -> dict[str, Any]:
        """Ask to be served. Raises ConfigError."""
        try:
            directory = os.open(self.state_dir, os.O_PATH | os.O_DIRECTORY)
            try:
                self.peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                self.peer.settimeout(_SAID_S)
                self.peer.connect(door_address(directory))
            finally:
                os.close(directory)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            self.cut()
            raise ConfigError(
                "`holdgate run` is not running with this configuration: start it first",
                file=str(self.state_dir),
            ) from error
        except OSError as error:
            self.cut()
            raise ConfigError(f"{error.strerror}: {self.state_dir / DOOR}") from error
        return self._say(pack(agent=self.agent))

    def hand_over(self, kinds: list[str], descriptors: list[int]) -> None:
        """Raises ConfigError."""
        self._say(pack(sockets=kinds), descriptors)
        if self.peer is not None:
            self.peer.setblocking(False)

    def _say(self, packet: bytes, descriptors: list[int] | None = None) -> dict[str, Any]:
        if self.peer is None:
            raise ConfigError("not connected to `holdgate run`")
        try:
            with contextlib.suppress(BrokenPipeError):  # refused already: it has said why
                socket.send_fds(self.peer, [packet], descriptors or [])
            said = unpack(self.peer.recv(16_384))
        except (OSError, NotAsAgreed) as error:
            self.cut()
            raise ConfigError("`holdgate run` did not answer; its log may say why") from error
        if "error" in said:
            self.cut()
            raise ConfigError(str(said["error"]))
        return said

    def is_cut(self) -> bool:
        if self.peer is None:
            return True
        try:
            return not self.peer.recv(16)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def cut(self) -> None:
        if self.peer is not None:
            self.peer.close()
            self.peer = None


def run_inside(
    config: Config, command: tuple[str, ...], *, agent: str | None, user: str | None, trust: tuple[Path, ...]
) -> int:
    """Run a command as an agent; returns its exit code. Raises ConfigError before anything was started."""
    lifeline = Lifeline(config.state_dir, agent)
    said = lifeline.knock()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED | {signal.SIGCHLD})
    try:
        plan = _plan(config, command, said, user=user, trust=trust, mask=frozenset(map(int, mask)))
        return _run(plan, lifeline)
    finally:
        lifeline.cut()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _plan(
    config: Config,
    command: tuple[str, ...],
    said: Mapping[str, Any],
    *,
    user: str | None,
    trust: tuple[Path, ...],
    mask: frozenset[int],
) -> Plan:
    account = _account(user, config)
    place = config.state_dir
    if os.geteuid() == 0:  # a folder that every user can reach; what is in it exists in the namespace only
        place = ROOTS_PLACE
        place.mkdir(mode=0o755, parents=True, exist_ok=True)
    files = public_files(config.state_dir)
    environment = client_environment(os.environ, config.state_dir, place)
    if account is not None:
        environment |= {"HOME": account.pw_dir, "USER": account.pw_name, "LOGNAME": account.pw_name}
    bundles = [*bundles_of(command[0], environment), *trust]
    return Plan(
        command=command,
        environment=environment,
        user=account,
        ports=tuple(said["ports"]),
        explicit_port=said["explicit"],
        state_dir=config.state_dir,
        place=place,
        files=files,
        overlays=overlays(bundles, files["ca/ca.pem"]),
        read_only=(config.path, *config.surfaces, *config.policies, *config.bundle.paths),
        signal_mask=mask,
    )


def _account(user: str | None, config: Config) -> pwd.struct_passwd | None:
    if user is None:
        return None
    if os.geteuid() != 0:
        raise ConfigError("--user needs root; without it the command runs as you")
    try:
        account = pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
    except KeyError:
        raise ConfigError(f"--user: this machine has no user {user!r}") from None
    if account.pw_uid in (0, config.state_dir.stat().st_uid):
        raise ConfigError(
            f"--user {user}: that is root, or whom Holdgate runs as; give the agent its own user"
        )
    return account


def _run(plan: Plan, lifeline: Lifeline) -> int:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if child == 0:
        ours.close()
        lifeline.cut()  # the agent's ancestors do not hold the door
        leave(lambda: keeper(plan, theirs))
    theirs.close()
    with ours:
        kinds, descriptors, _, _ = socket.recv_fds(ours, 4096, MAX_SOCKETS)
        try:
            if not kinds:  # the keeper has said why
                return FAILED
            lifeline.hand_over(kinds.decode().split(), descriptors)
            ours.send(SERVING)
            return _wait(child, ours, lifeline, kinds.decode().split(), descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
            ours.close()  # the end of the namespace, if it has not ended by itself
            _reap(child)


def _wait(
    child: int, init: socket.socket, lifeline: Lifeline, kinds: list[str], descriptors: list[int]
) -> int:
    while True:
        got = signal.sigtimedwait(_FORWARDED | {signal.SIGCHLD}, _TICK_S)
        if got is not None and got.si_signo in _FORWARDED:
            if got.si_code != _TTY:
                _tell(init, got.si_signo)
            continue
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return exit_code(status)
        if lifeline.is_cut():
            lifeline.cut()
            _again(lifeline, kinds, descriptors)


def _again(lifeline: Lifeline, kinds: list[str], descriptors: list[int]) -> None:
    """The sockets are still ours: connections wait in them, unanswered, until somebody serves them."""
    try:
        lifeline.knock()
        lifeline.hand_over(kinds, descriptors)
    except ConfigError:
        lifeline.cut()


def _tell(init: socket.socket, number: int) -> None:
    try:
        init.send(str(number).encode())
    except OSError:  # ended in this moment
        return


def _reap(child: int) -> None:
    try:
        os.waitpid(child, 0)
    except ChildProcessError:
        return
