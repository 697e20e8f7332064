"""One running instance: what it listens on, and how it is reloaded and stopped. server.py makes it.

Invariants (tests/test_server.py):
  SV2  SIGTERM closes listeners first, lets held requests finish within the hold deadline, then stops.
  SV3  SIGHUP swaps bundle and CA whole, or keeps those that are active.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mitmproxy import master
from mitmproxy.addons import proxyserver

from ..bundle import Bundle
from ..config import Address, Config, Listen
from ..errors import BackendError, ConfigError
from ..pipeline import Pipeline
from .activation import Activator
from .admin.state import AdminServer
from .agent_tls import AgentTls
from .anchoring import Anchors
from .boundary import Boundary
from .ca import CertificateAuthority, LeafMaker, load_ca
from .dns_stub import DnsStub
from .envoy_door import EnvoyDoor
from .exec_door import ExecDoor
from .facts import Facts
from .fitness import bundle_of_files, check_ca
from .metrics import Metrics
from .mitm import HoldgateAddon
from .parts import vouching
from .signer_socket import SignerSocket
from .store_ledger import StoreLedger
from .worker_door import WorkerDoor

__all__ = ["Server"]

log = logging.getLogger("holdgate")

SWEEP_S = 0.25
CATCH_UP_S = 30.0  # for workers to load a bundle
WATCH_S = 1.0  # between two looks at the folder of signed bundles


@dataclass
class Server:
    """A running instance: what it listens on, and how to stop it."""

    config: Config
    pipeline: Pipeline
    ledger: StoreLedger
    metrics: Metrics
    engine: master.Master
    proxy: proxyserver.Proxyserver
    addon: HoldgateAddon
    admin: AdminServer
    agent_tls: AgentTls
    boundary: Boundary
    stub: DnsStub
    door: ExecDoor
    facts: Facts
    handed: tuple[socket.socket, ...]  # the transparent listener, where it is not the engine's
    workers: WorkerDoor | None = None  # where other processes have the doors for agents
    supervisor: int = 0  # its pid, then
    listen: Listen | None = None  # and where they listen
    activator: Activator | None = None  # of signed bundles; None: files
    anchors: Anchors | None = None
    envoy: EnvoyDoor | None = None
    device: SignerSocket | None = None  # where keys are; None: files
    serving: list[asyncio.Server] = field(default_factory=list)
    end_stub: Callable[[], None] = lambda: None
    draining: bool = False
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    reloading: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def explicit(self) -> Address | None:
        return self._bound("regular") if self.listen is None else self.listen.explicit

    @property
    def transparent(self) -> Address | None:
        if self.listen is not None:
            return self.listen.transparent
        return self.config.listen.transparent if self.handed else self._bound("transparent")

    def _bound(self, mode: str) -> Address | None:
        for instance in self.proxy.servers:
            if instance.mode.type_name == mode and instance.listen_addrs:
                host, port, *_ = instance.listen_addrs[0]
                return Address(host=host, port=port)
        return None

    def processes(self) -> tuple[tuple[str, int], ...]:
        """(role, pid) of every process of this instance."""
        if self.workers is None:
            return (("run", os.getpid()),)
        return ("supervisor", self.supervisor), ("gate", os.getpid()), *self.workers.connected

    def status(self) -> dict[str, str | int]:
        """What a command on this host may want to know; `pid` is of the process that ends all."""
        named = {"explicit": self.explicit, "transparent": self.transparent, "admin": self.admin.address}
        bound = {name: str(address) for name, address in named.items() if address is not None}
        pid = self.supervisor or os.getpid()
        return {**bound, "barrier_trips": self.metrics.barrier_trips, "pid": pid}

    async def reload(self) -> Mapping[str, Any]:
        """Load the bundle and the CA again; if either does not load, nothing changes (SV3). What was
        refused. One after the other: what was read first must not become active last."""
        async with self.reloading:
            return await self._reload()

    async def _reload(self) -> Mapping[str, Any]:
        refused: list[str] = []
        try:
            authority = load_ca(self.config.state_dir)
            if self.activator is None:
                await self._reload_files(authority)
            else:
                check_ca(self.config, authority, self.pipeline.bundle)
                refused = [str(error) for error in await self.activator.refresh(again=True)]
        except (ConfigError, BackendError) as error:
            shown = error.shown if isinstance(error, ConfigError) else str(error)  # a log line is one line
            log.error("reload refused, %s stays active: %s", self.pipeline.bundle.digest or "nothing", shown)
            return self._active([str(error)])
        self._vouch(authority)
        if self.workers is not None:
            self.workers.announce()
            # Who asked for it may send a request next: it should be decided under what was activated.
            if not await self.workers.caught_up(CATCH_UP_S):
                log.error("not every worker has the active bundle yet")
        return self._active(refused)

    def _vouch(self, authority: CertificateAuthority) -> None:
        self.pipeline.vouches_for = vouching(authority)
        self.agent_tls.adopt(LeafMaker(authority))
        self.metrics.ca_expiry(authority.not_after.timestamp())
        if self.workers is not None:
            self.workers.ca = authority.fingerprint

    def activate(self, bundle: Bundle) -> None:
        """What is decided from now on is decided under this bundle."""
        self.pipeline.bundle = bundle
        if self.workers is not None:
            self.workers.announce()

    async def _reload_files(self, authority: CertificateAuthority) -> None:
        # In a thread: parsing takes about a second, and agents are being served.
        bundle = await asyncio.to_thread(bundle_of_files, self.config, authority)
        self.ledger.fence(bundle.digest)
        self._vouch(authority)  # first: workers are told both in one
        self.activate(bundle)
        log.info("bundle %s is active", bundle.digest)

    def _active(self, refused: list[str]) -> Mapping[str, Any]:
        bundle = self.pipeline.bundle
        return {"digest": bundle.digest, "revision": bundle.revision, "refused": refused}

    async def watch(self) -> None:
        """Signed bundles appear in a folder; nobody has to say so."""
        while self.activator is not None:
            await asyncio.sleep(WATCH_S)
            try:
                await self.activator.look()
            except Exception:
                log.exception("looking for bundles failed")

    async def drain(self) -> None:
        """Stop accepting, finish what is held, stop."""
        if self.draining:
            return
        self.draining = True
        self.engine.options.update(server=False)
        self.deaf()
        await self.door.hang_up()
        deadline = time.monotonic() + self.config.limits.hold_s + 5
        while (self.pipeline.in_flight or self.addon.busy or self._asked) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        self.engine.shutdown()

    @property
    def _asked(self) -> bool:
        """Whether workers are there: they drain by themselves, and have outcomes to tell until they end."""
        return self.workers is not None and bool(self.workers.connected)

    def deaf(self) -> None:
        """Stop accepting on sockets that were handed over, and from Envoy."""
        for server in self.serving:
            server.close()
        if self.envoy is not None:
            self.envoy.deaf()

    async def sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            try:
                await self.addon.sweep()
                self.metrics.log_size(self.ledger.size)
                if self.device is not None:
                    self.metrics.signer_failures(self.device.failures)
                self.metrics.unknown_open(self.ledger.unknown)
            except Exception:
                log.exception("sweep failed")

    def spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
