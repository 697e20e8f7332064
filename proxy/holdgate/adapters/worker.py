"""One of several proxy workers: the doors for agents and the outer door, with a gate process in between.

    supervisor --starts--> worker: listeners -> pipeline -> gate_line.py -> [gate process] -> dispatch

It has no ledger, no receipt key, no admin API and no way to decide. Bundle and CA are those that the gate
process names, read from the state directory where that one keeps them; before it has named any, nothing
listens. The first worker also has what there can be only one of: the door of `holdgate exec` and the stub
resolver.

Invariants (tests/test_worker.py has one test named after each):
  WK1  Nothing listens before the gate process has named a bundle and this process has that one.
  WK2  A bundle or CA other than the named one is not used; a request is recognised under one bundle whole.
  WK3  SIGTERM closes listeners first, lets held requests finish, tells their outcomes, then ends.
  WK4  All workers together hold, have in flight and refuse one by one no more than the limits say.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any

from mitmproxy import exceptions, master
from mitmproxy.addons import proxyserver

from ..adjudicate import Evidence
from ..bundle import NO_BUNDLE
from ..config import Address, Config
from ..errors import ConfigError
from ..keys import PublicKey
from ..pipeline import Pipeline
from .agent_tls import AgentTls
from .bundle_store import load_kept
from .ca import LeafMaker, load_ca
from .client_certs import Identity
from .dns_stub import DnsStub
from .engine import build_engine
from .exec_door import ExecDoor
from .forced import build_door, build_stub, know_users, serve_handed
from .gate_client import GateClient
from .gate_line import GateLine, Petition, SharedFlights
from .instance import SWEEP_S
from .keyfiles import load_fleet_key
from .metrics import Metrics
from .mitm import HoldgateAddon
from .parts import ask_elsewhere, build_dispatcher, limit_process, listen_dns, verdicts, vouching
from .supervisor import divided

__all__ = ["Worker", "serve_worker"]

log = logging.getLogger("holdgate")


class _NoKey:
    """In the place of a receipt key: a worker signs nothing."""

    @property
    def public(self) -> PublicKey:
        raise NotImplementedError("a worker has no receipt key")

    @property
    def kid(self) -> str:
        raise NotImplementedError("a worker has no receipt key")

    def sign(self, message: bytes) -> bytes:
        raise NotImplementedError("a worker has no receipt key")


@dataclass(slots=True, kw_only=True)
class Worker:
    config: Config
    pipeline: Pipeline
    line: GateLine
    metrics: Metrics
    engine: master.Master
    proxy: proxyserver.Proxyserver
    addon: HoldgateAddon
    agent_tls: AgentTls
    stub: DnsStub
    door: ExecDoor
    handed: tuple[socket.socket, ...]
    serving: list[asyncio.Server] = field(default_factory=list)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def adopt(self, digest: str, ca: str) -> None:
        """Use the bundle and the CA of these names. Raises ConfigError, and uses those that it has (WK2)."""
        authority = load_ca(self.config.state_dir)
        if authority.fingerprint != ca:
            raise ConfigError("not the CA that the gate process has", file=str(authority.path))
        bundle = self.pipeline.bundle
        if digest != bundle.digest:
            # In a thread: parsing takes about a second, and agents are being served.
            bundle = (
                await asyncio.to_thread(load_kept, self.config.state_dir, digest) if digest else NO_BUNDLE
            )
        self.pipeline.bundle = bundle
        self.pipeline.vouches_for = vouching(authority)
        self.agent_tls.adopt(LeafMaker(authority))

    async def drain(self) -> None:
        """Stop accepting, finish what is held, stop."""
        if self.stopping.is_set():
            return
        self.stopping.set()
        self.engine.options.update(server=False)
        self.deaf()
        await self.door.hang_up()
        deadline = time.monotonic() + self.config.limits.hold_s + 5
        while (self.pipeline.in_flight or self.addon.busy) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        self.engine.shutdown()

    def deaf(self) -> None:
        for server in self.serving:
            server.close()

    async def sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            try:
                await self.addon.sweep()
                self.line.report(self.metrics.figures())
            except Exception:
                log.exception("sweep failed")

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    @property
    def bound(self) -> dict[str, Address]:
        """What it listens on."""
        found = {}
        for name, mode in (("explicit", "regular"), ("transparent", "transparent")):
            for instance in self.proxy.servers:
                if instance.mode.type_name == mode and instance.listen_addrs and name not in found:
                    host, port, *_ = instance.listen_addrs[0]
                    found[name] = Address(host=host, port=port)
        if self.handed and self.config.listen.transparent is not None:
            found["transparent"] = self.config.listen.transparent
        return found


async def serve_worker(
    config: Config,
    role: str,
    workers: int,
    *,
    handed: tuple[socket.socket, ...] = (),
    ready: Callable[[Worker], None] | None = None,
) -> None:
    """Run until stopped. Raises ConfigError when it cannot start.

    `role`: worker-1 to worker-N; `workers`: N. `handed`: the transparent listeners of mode tproxy.
    Long because what is begun here ends here, in one `finally`.
    """
    worker = _build(config, role, workers, handed)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: worker.spawn(worker.drain()))
    loop.add_signal_handler(signal.SIGHUP, lambda: None)  # the gate process reloads, and says so

    def running() -> None:
        worker.spawn(worker.sweep())
        worker.line.accept()
        if ready is not None:
            ready(worker)

    worker.addon.on_running = running
    line = asyncio.ensure_future(worker.line.run())
    end_stub: Callable[[], None] = lambda: None  # noqa: E731
    try:
        if not await _adopted(worker):
            return
        gc.collect()
        gc.freeze()
        if role == "worker-1":
            end_stub = await listen_dns(worker.config, worker.stub)
            worker.door.open()
        worker.serving = await serve_handed(handed, config.listen.transparent, (worker.engine, worker.proxy))
        if not worker.stopping.is_set():  # run() would forget that the engine was told to stop
            await worker.engine.run()
    except SystemExit:  # the engine's way to end a start that failed; it has logged why
        raise ConfigError("cannot listen; the lines above say why", file=str(config.path)) from None
    finally:
        end_stub()
        worker.deaf()
        if role == "worker-1":
            await worker.door.hang_up()
        worker.line.report(worker.metrics.figures())
        await worker.line.close()
        for task in (line, *worker.tasks):
            task.cancel()
        await worker.pipeline.dispatcher.close()
        if isinstance(worker.pipeline.gatekeeper, GateClient):
            await worker.pipeline.gatekeeper.close()


async def _adopted(worker: Worker) -> bool:
    """Wait for the first bundle; False when the process is to stop before there is one."""
    waits = [asyncio.ensure_future(each.wait()) for each in (worker.line.adopted, worker.stopping)]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    return not worker.stopping.is_set()


def _build(config: Config, role: str, workers: int, handed: tuple[socket.socket, ...]) -> Worker:
    """Long because a pipeline and a Worker have that many parts, each one line."""
    os.umask(0o077)
    limit_process()
    config = replace(config, limits=divided(config, workers))
    authority = load_ca(config.state_dir)
    identity, metrics = Identity(config.agents), Metrics()

    async def adopt(digest: str, ca: str) -> None:
        await worker.adopt(digest, ca)

    line = GateLine(state_dir=config.state_dir, role=role, adopt=adopt, clock=time.monotonic)
    pipeline = Pipeline(
        bundle=NO_BUNDLE,
        identify=identity,
        ledger=line,
        dispatcher=build_dispatcher(config),
        evidence=Evidence(
            signer=_NoKey(),
            issuer=config.issuer,
            node=config.node,
            fleet_key=load_fleet_key(config.state_dir),
            draw=secrets.token_bytes,
        ),
        show=verdicts(config),
        limits=config.limits,
        meter=metrics,
        clock=time.monotonic,
        judge=Petition,
        offer=line.offer if config.store is not None else None,
        flights=SharedFlights(line),
    )
    ask_elsewhere(config, pipeline)
    agent_tls = AgentTls(LeafMaker(authority), identity.issuers)
    addon = HoldgateAddon(keeper=pipeline, tls_contexts=agent_tls, barrier_trip=metrics.barrier)
    know_users(config, addon)
    try:
        engine, proxy = build_engine(addon, config.listen, config.limits, handed=bool(handed), shared=True)
    except exceptions.OptionsError as error:
        raise ConfigError(f"listen: {error}", file=str(config.path)) from error
    stub = build_stub(pipeline, metrics)
    worker = Worker(
        config=config,
        pipeline=pipeline,
        line=line,
        metrics=metrics,
        engine=engine,
        proxy=proxy,
        addon=addon,
        agent_tls=agent_tls,
        stub=stub,
        door=build_door(config, pipeline, stub, addon, (engine, proxy)),
        handed=handed,
    )
    return worker
