"""Where `holdgate exec` hands in the listening sockets of an agent's network namespace.

A Unix socket of sequential packets in `state_dir/run`, one JSON object a packet:

    exec -> {"agent": "refund-bot"}      or null: the only agent there is
    run  -> {"agent": "refund-bot", "ports": [80, 443], "explicit": 8080}    or {"error": "..."}
    exec -> {"sockets": ["transparent", "transparent", "explicit", "dns", "dns_tcp"]} and as many descriptors
    run  -> {"serving": true}            or {"error": "..."}

Then the connection is a lifeline: while it is open those sockets are served, and what comes in through them
is that agent. A socket belongs to the namespace in which it was made, so nothing else ever has to lead there.

Invariants (tests/test_exec_door.py has one test named after each):
  ED1  Only a process of our own uid or root, and of our user namespace, is heard: an agent of `exec` is not.
  ED2  Sockets are served as the agent that the lifeline named, and no longer than the lifeline.
  ED3  A packet that is not as above ends that lifeline, and nothing else.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from ..errors import ConfigError

__all__ = ["DOOR", "KINDS", "ExecDoor", "door_address", "pack", "unpack"]

log = logging.getLogger("holdgate.exec")

DOOR: Final = Path("run") / "exec.sock"  # below state_dir
KINDS: Final = frozenset({"transparent", "explicit", "dns", "dns_tcp"})
MAX_SOCKETS: Final = 128
_PACKET: Final = 16_384
_HELLO_S: Final = 10.0

type Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class NotAsAgreed(Exception):
    """A packet that the protocol above does not have."""


def pack(**values: object) -> bytes:
    return json.dumps(values, ensure_ascii=True).encode()


def unpack(data: bytes) -> dict[str, Any]:
    """Raises NotAsAgreed."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise NotAsAgreed("not JSON") from None
    if not isinstance(value, dict):
        raise NotAsAgreed("not an object")
    return value


def door_address(directory_fd: int) -> str:
    """The door's address seen from an open state_dir: so a path of any length fits into 108 bytes."""
    return f"/proc/self/fd/{directory_fd}/{DOOR}"


@dataclass
class ExecDoor:
    """`serve(kind, agent)` gives the callback for TCP connections; UDP sockets go to `dns_udp`."""

    state_dir: Path
    agents: tuple[str, ...]
    explicit_port: int
    ports: Callable[[], tuple[int, ...]]
    serve: Callable[[str, str], Serve]
    dns_udp: Callable[[socket.socket], None]
    end_udp: Callable[[socket.socket], None]
    listener: socket.socket | None = None
    lifelines: set[asyncio.Task[None]] = field(default_factory=set)

    def open(self) -> None:
        """Raises ConfigError."""
        path = self.state_dir / DOOR
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            path.unlink(missing_ok=True)  # of a process that was killed: the ledger's lock says we are alone
            directory = os.open(self.state_dir, os.O_PATH | os.O_DIRECTORY)
            try:
                self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                self.listener.bind(door_address(directory))
            finally:
                os.close(directory)
            path.chmod(0o600)
            self.listener.listen(16)
        except OSError as error:
            raise ConfigError(f"the door for `holdgate exec`: {error.strerror}", file=str(path)) from error
        self.listener.setblocking(False)
        asyncio.get_running_loop().add_reader(self.listener, self._knock)

    def close(self) -> None:
        """No new lifelines; those that are there end with the process."""
        if self.listener is not None:
            asyncio.get_running_loop().remove_reader(self.listener)
            self.listener.close()
            self.listener = None
            (self.state_dir / DOOR).unlink(missing_ok=True)

    async def hang_up(self) -> None:
        """Stop serving every namespace."""
        self.close()
        for task in list(self.lifelines):
            task.cancel()
        await asyncio.gather(*self.lifelines, return_exceptions=True)

    def _knock(self) -> None:
        if self.listener is None:
            return
        try:
            peer, _ = self.listener.accept()
        except OSError:
            return
        peer.setblocking(False)
        task = asyncio.ensure_future(self._lifeline(peer))
        self.lifelines.add(task)
        task.add_done_callback(self.lifelines.discard)

    async def _lifeline(self, peer: socket.socket) -> None:
        ends: list[Callable[[], object]] = []
        try:
            async with asyncio.timeout(_HELLO_S):
                hello = await _words(peer)  # read first: closing on unread bytes would reset the answer
                check_peer(peer)
                agent = self._agent(unpack(hello).get("agent"))
                peer.send(pack(agent=agent, ports=self.ports(), explicit=self.explicit_port))
                data, descriptors = await _packet(peer)
                ends += await self._adopt(agent, unpack(data).get("sockets"), descriptors)
            peer.send(pack(serving=True))
            log.info("exec: serving a namespace of %s", agent)
            while await _words(peer):  # nothing more is said; the end is what we wait for
                pass
        except (NotAsAgreed, OSError, TimeoutError) as error:
            log.warning("exec: refused or cut: %s", error)
            _try_to_say(peer, str(error))
        finally:
            for end in ends:
                end()
            peer.close()

    def _agent(self, asked: object) -> str:
        if asked is None and len(self.agents) == 1:
            return self.agents[0]
        if asked is None:
            raise NotAsAgreed(f"there are several agents, say which: --agent {'|'.join(self.agents)}")
        if asked not in self.agents:
            raise NotAsAgreed(
                f"no agent {asked!r} in the running configuration; there is {', '.join(self.agents)}"
            )
        return str(asked)

    async def _adopt(self, agent: str, kinds: object, descriptors: list[int]) -> list[Callable[[], object]]:
        """Serve the sockets; returns what ends that."""
        sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors]
        ends: list[Callable[[], object]] = []
        try:
            if (
                not isinstance(kinds, list)
                or len(kinds) != len(sockets)
                or not KINDS.issuperset(map(str, kinds))
            ):
                raise NotAsAgreed("sockets and their kinds do not agree")
            for kind, sock in zip(kinds, sockets, strict=True):
                if kind == "dns":
                    self.dns_udp(sock)
                    ends.append(partial(self.end_udp, sock))
                else:
                    server = await asyncio.start_server(self.serve(kind, agent), sock=sock)
                    ends.append(server.close)
        except BaseException:
            for end in ends:
                end()
            for sock in sockets:
                sock.close()
            raise
        return ends


def check_peer(peer: socket.socket) -> None:
    """ED1. Raises NotAsAgreed."""
    pid, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid not in (0, os.geteuid()):
        raise NotAsAgreed(f"uid {uid} is neither root nor the user that `holdgate run` runs as")
    try:
        same = os.stat(f"/proc/{pid}/ns/user").st_ino == os.stat("/proc/self/ns/user").st_ino
    except PermissionError:
        same = uid == 0  # only root's namespaces can be hidden from us
    except OSError as error:
        raise NotAsAgreed("gone already") from error
    if not same:
        raise NotAsAgreed("from another user namespace: `holdgate exec` does not work inside itself")


async def _packet(peer: socket.socket) -> tuple[bytes, list[int]]:
    """The next packet with its descriptors; (b"", []) at the end. Raises OSError, NotAsAgreed."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            data, descriptors, flags, _ = socket.recv_fds(peer, _PACKET, MAX_SOCKETS)
        except BlockingIOError:
            readable = loop.create_future()
            loop.add_reader(peer, _set, readable)
            try:
                await readable
            finally:
                loop.remove_reader(peer)
            continue
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            for descriptor in descriptors:
                os.close(descriptor)
            raise NotAsAgreed("a packet that is too long")
        return data, descriptors


async def _words(peer: socket.socket) -> bytes:
    """The next packet where no descriptor is expected: those that came are closed."""
    data, descriptors = await _packet(peer)
    for descriptor in descriptors:
        os.close(descriptor)
    return data


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _try_to_say(peer: socket.socket, error: str) -> None:
    try:
        peer.send(pack(error=error))
    except OSError:
        log.debug("exec: nobody there to be told")
