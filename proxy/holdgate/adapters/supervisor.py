"""`holdgate run --workers N`: starts one gate process and N workers, and starts again whichever ends.

    supervisor -> gate process (ledger, log, keys, admin API) <-Unix socket- worker-1 ... worker-N (agents)

It serves nobody and decides nothing. It keeps the ports: bound alone first, so that two instances never share
one, then shared with the workers' listeners. What started is announced when everything is ready, once.

Invariants (tests/test_supervisor.py has one test named after each):
  SU1  Nothing is announced as ready before the gate process and every worker said so.
  SU2  A process that ends is started again, later each time; one that ends before all were ready ends all.
  SU3  SIGTERM stops the workers first and the gate process last, so that outcomes are recorded.
  SU4  The supervisor's end, however it ends, ends every process that it started.
  SU5  `state_dir/run/ROLE.pid` names each process while it serves, and no process that has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final, Literal, Protocol, Self

from ..backoff import Backoff
from ..config import Address, Config, Listen
from ..errors import ConfigError
from ..limits import Limits
from ..network_rules import twin
from .durable import replace_file

__all__ = ["GATE", "Child", "Part", "Supervisor", "divided", "programs", "reserve"]

log = logging.getLogger("holdgate")

GATE: Final = "gate"
SUPERVISOR: Final = "supervisor"
_RUN: Final = "run"  # folder below state_dir
_STOP_S: Final = 15.0  # beyond the hold deadline, until what does not stop is killed


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Which of the processes one is: what the supervisor tells it on its command line."""

    role: str  # "gate", or "worker-1" to "worker-N"
    workers: int
    supervisor: int  # pid
    explicit_port: int  # 0: off
    transparent_port: int  # 0: off
    admin_port: int
    handed: tuple[int, ...]  # descriptors of transparent listeners that were opened with a right

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ConfigError."""
        try:
            value = json.loads(text)
            return cls(**{**value, "handed": tuple(value["handed"])})
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"--part is for processes that the supervisor starts: {error!r}") from error

    def __str__(self) -> str:
        return json.dumps(asdict(self))

    def bound(self, config: Config) -> Config:
        """With the ports that the kernel chose, where it was asked to."""
        explicit, transparent = config.listen.explicit, config.listen.transparent
        listen = Listen(
            explicit=Address(host=explicit.host, port=self.explicit_port) if explicit else None,
            transparent=Address(host=transparent.host, port=self.transparent_port) if transparent else None,
            dns=config.listen.dns,
        )
        admin = Address(host=config.admin.listen.host, port=self.admin_port)
        return replace(config, listen=listen, admin=replace(config.admin, listen=admin))


class Child(Protocol):
    """One process that was started."""

    @property
    def pid(self) -> int: ...
    async def line(self) -> str:
        """The next line that it says; "" when it says nothing more."""
        ...

    async def wait(self) -> int:
        """Its exit code; negative: the signal that ended it."""
        ...

    def send_signal(self, number: int) -> None: ...


@dataclass(slots=True)
class _Member:
    role: str
    child: Child | None = None
    told: dict[str, str] = field(default_factory=dict)  # listener -> address, as it announced
    ready: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True, kw_only=True)
class Supervisor:
    """`spawn(role)` starts one process; `announce` is called once, with the listeners, when all are ready."""

    state_dir: Path
    workers: int
    hold_s: float
    spawn: Callable[[str], Awaitable[Child]]
    announce: Callable[[Mapping[str, str]], None]
    clock: Callable[[], float]
    pause: Callable[[float], Awaitable[object]] = asyncio.sleep
    backoff: Callable[[], Backoff] = Backoff
    _members: dict[str, _Member] = field(default_factory=dict)
    _complete: bool = False  # all were ready once
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _ending: set[str] = field(default_factory=set)  # roles that were told to stop
    _failed: int = 0

    async def run(self) -> int:
        """Until it is stopped, or a process ends before all were ready; the exit code."""
        keepers = [asyncio.ensure_future(self._keep(GATE))]
        stop = asyncio.create_task(self._stopping.wait())
        try:
            if await self._ready(GATE, stop):
                self._note(SUPERVISOR, os.getpid())  # the gate process has the ledger, so we are alone
                roles = [f"worker-{number}" for number in range(1, self.workers + 1)]
                keepers += [asyncio.ensure_future(self._keep(role)) for role in roles]
                if all([await self._ready(role, stop) for role in roles]):
                    self._complete = True
                    self.announce(self._told())
            await stop
        finally:
            await self._end(keepers)
        return self._failed

    def stop(self) -> None:
        self._stopping.set()

    def reload(self) -> None:
        """The gate process reloads; it tells the workers."""
        self._signal(GATE, signal.SIGHUP)

    async def _ready(self, role: str, stop: asyncio.Task[Literal[True]]) -> bool:
        await asyncio.sleep(0)  # its keeper makes it known
        ready = asyncio.create_task(self._member(role).ready.wait())
        await asyncio.wait([ready, stop], return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        return not stop.done()

    def _member(self, role: str) -> _Member:
        return self._members.setdefault(role, _Member(role))

    def _told(self) -> dict[str, str]:
        told: dict[str, str] = {}
        for member in self._members.values():
            told |= member.told
        return told

    # -- one process -----------------------------------------------------------------------------------

    async def _keep(self, role: str) -> None:
        """Have it run."""
        member, backoff = self._member(role), self.backoff()
        while not self._stopping.is_set():
            backoff.started(self.clock())
            code = await self._once(member)
            if self._stopping.is_set():
                return
            if not self._complete:
                log.error("%s ended before all were ready", role)
                self._failed = code if code > 0 else 1
                self.stop()
                return
            wait_s = backoff.ended(self.clock())
            log.error("%s ended (%s): started again in %.1f s", role, _how(code), wait_s)
            await self.pause(wait_s)

    async def _once(self, member: _Member) -> int:
        try:
            child = member.child = await self.spawn(member.role)
        except OSError as error:
            log.error("%s cannot be started: %s", member.role, error)
            return 1
        if member.role in self._ending:  # it was told while it was being started
            self._signal(member.role, signal.SIGTERM)
        try:
            while line := await child.line():
                name, _, rest = line.strip().partition(" ")
                if name == "ready":
                    self._note(member.role, child.pid)
                    member.ready.set()
                    continue
                member.told[name] = rest
            return await child.wait()
        finally:
            self._forget(member.role)
            member.child = None

    def _signal(self, role: str, number: int) -> None:
        member = self._members.get(role)
        if member is not None and member.child is not None:
            with contextlib.suppress(ProcessLookupError):
                member.child.send_signal(number)

    # -- the end -----------------------------------------------------------------------------------------

    async def _end(self, keepers: list[asyncio.Task[None]]) -> None:
        """SU3."""
        self._stopping.set()
        gate, workers = keepers[0], keepers[1:]
        await self._told_to_stop(workers, [role for role in self._members if role != GATE])
        await self._told_to_stop([gate], [GATE])
        self._forget(SUPERVISOR)

    async def _told_to_stop(self, keepers: list[asyncio.Task[None]], roles: list[str]) -> None:
        if not keepers:
            return
        self._ending.update(roles)
        for role in roles:
            self._signal(role, signal.SIGTERM)
        _, late = await asyncio.wait(keepers, timeout=self.hold_s + _STOP_S)
        for role in roles if late else ():
            self._signal(role, signal.SIGKILL)
        for keeper in late:
            keeper.cancel()  # one that waits to start again, or waits for what was killed

    # -- files -------------------------------------------------------------------------------------------

    def _note(self, role: str, pid: int) -> None:
        try:
            path = self.state_dir / _RUN / f"{role}.pid"
            path.parent.mkdir(mode=0o700, exist_ok=True)
            replace_file(path, f"{pid}\n".encode())
        except OSError as error:
            log.error("%s.pid cannot be written: %s", role, error)

    def _forget(self, role: str) -> None:
        with contextlib.suppress(OSError):
            (self.state_dir / _RUN / f"{role}.pid").unlink(missing_ok=True)


def _how(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


# --- real processes ---


class _Program:
    def __init__(self, process: Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    async def line(self) -> str:
        stream = self._process.stdout
        return "" if stream is None else (await stream.readline()).decode("utf-8", "replace")

    async def wait(self) -> int:
        return await self._process.wait()

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)


def programs(
    config: Config,
    workers: int,
    ports: Mapping[str, int],
    handed: tuple[socket.socket, ...],
    words: tuple[str, ...],
) -> Callable[[str], Awaitable[Child]]:
    """How each process is started: this program again, told which part it is. `words`: more options."""

    async def spawn(role: str) -> Child:
        descriptors = () if role == GATE else tuple(sock.fileno() for sock in handed)
        part = Part(
            role=role,
            workers=workers,
            supervisor=os.getpid(),
            explicit_port=ports.get("explicit", 0),
            transparent_port=ports.get("transparent", 0),
            admin_port=ports["admin"],
            handed=descriptors,
        )
        command = [sys.executable, "-P", "-m", "holdgate", "run", "-c", str(config.path)]
        process = await asyncio.create_subprocess_exec(
            *command,
            *words,
            "--part",
            str(part),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=descriptors,
            env={name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"},
        )
        return _Program(process)

    return spawn


def divided(config: Config, workers: int) -> Limits:
    """What one of so many may use. Raises ConfigError."""
    try:
        return config.limits.divided(workers)
    except ValueError as error:
        raise ConfigError(str(error), file=str(config.path)) from error


def reserve(config: Config, *, handed: bool) -> tuple[dict[str, int], list[socket.socket]]:
    """The ports of all listeners, and what keeps them. Raises ConfigError when one is taken.

    They are bound without SO_REUSEPORT, which fails where anybody listens; with it set afterwards the
    workers, of the same user, may bind them too. Nothing ever arrives at a socket that does not listen.
    """
    ports: dict[str, int] = {}
    kept: list[socket.socket] = []
    wanted = {
        "explicit": config.listen.explicit,
        "transparent": config.listen.transparent,
        "admin": config.admin.listen,
    }
    for name, address in wanted.items():
        if address is None:
            continue
        ports[name] = address.port
        if name == "transparent" and handed:
            continue
        kept.append(_bind(name, address, config))
        ports[name] = kept[-1].getsockname()[1]
        other = twin(address) if name == "transparent" else None
        if other is not None:
            with contextlib.suppress(ConfigError):  # no IPv6 here: the workers look again
                kept.append(_bind(name, other, config))
    return ports, kept


def _bind(name: str, address: Address, config: Config) -> socket.socket:
    try:
        try:
            sock = _bound(address, again=False)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            # By what is left of old connections only: a listener, or what another instance keeps, is in the
            # way of this too.
            sock = _bound(address, again=True)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except OSError as error:
        where = "admin.listen" if name == "admin" else f"listen.{name}"
        raise ConfigError(f"{where}: {address}: {error.strerror}", file=str(config.path)) from error
    return sock


def _bound(address: Address, *, again: bool) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if address.ip.version == 6 else socket.AF_INET)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, again)
        if address.ip.version == 6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address.host, address.port))
    except OSError:
        sock.close()
        raise
    return sock
