"""`holdgate run`: configuration in, a serving process out. The only place where the parts meet.

With several workers (supervisor.py) this is the gate process: everything but the doors for agents, which are
the workers' (worker.py), and the door where those ask (worker_door.py).

Order of start: keys, bundle, ledger (recovered and audited), outer door, admin API, and the listeners last,
so that nothing is accepted before everything that refuses is in place.

Invariants (tests/test_server.py):
  SV1  Whatever fails at start raises ConfigError before any agents' listener accepts.
"""

from __future__ import annotations

import asyncio
import gc
import math
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from mitmproxy import exceptions

from ..adjudicate import Evidence
from ..bundle import NO_BUNDLE, Bundle
from ..config import Config, Listen
from ..config_bundle import Signed
from ..errors import ConfigError
from ..gate import ENGINE
from ..ledger import OutcomeStatus
from ..pipeline import Pipeline
from ..remote_gate import engine as engine_of
from .activation import Activator
from .admin.state import AdminServer
from .agent_tls import AgentTls
from .anchoring import STAMPING, Anchors
from .boundary import Boundary
from .ca import LeafMaker, load_ca
from .client_certs import Identity
from .control import ControlServer
from .decider import build_decider
from .engine import build_engine
from .envoy_door import build_envoy_door
from .facts import Facts, build_facts
from .fitness import bundle_of_files, check_fits
from .forced import build_door, build_stub, know_users, serve_handed
from .forgetting import Forgetter
from .gate_client import GateClient
from .handed import take
from .instance import Server
from .keyfiles import Keys
from .metrics import Metrics
from .mitm import HoldgateAddon
from .open_ledger import clock_us, open_ledger
from .open_reader import open_reader
from .parts import ask_elsewhere, build_dispatcher, limit_process, listen_dns, verdicts, vouching
from .store_ledger import StoreLedger
from .worker_door import WorkerDoor

__all__ = ["serve"]


async def serve(
    config: Config, *, ready: Callable[[Server], None] | None = None, supervisor: int = 0
) -> None:
    """Run until stopped. Raises ConfigError when the instance cannot start.

    `supervisor`: the pid of the one that started this as the gate process; workers listen for agents.
    """
    listen = config.listen
    if supervisor:
        config = replace(config, listen=Listen(explicit=None, transparent=None))
    server = await _build(config)
    if supervisor:
        server.supervisor, server.listen = supervisor, listen
        server.workers = _worker_door(server)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: server.spawn(server.drain()))
    loop.add_signal_handler(signal.SIGHUP, lambda: server.spawn(server.reload()))
    forgetter = Forgetter(partial(open_reader, config), server.ledger)
    server.addon.on_running = partial(_running, server, forgetter, ready)
    control = ControlServer(
        config.state_dir,
        ledger=server.ledger,
        status=server.status,
        noted=server.boundary.noted,
        reconciled=partial(server.metrics.outcome, OutcomeStatus.RECONCILED.value),
        forget=partial(forgetter.forget, by="local"),
        reload=server.reload,
        check=None if server.workers is None else server.workers.check,
    )
    gc.collect()
    gc.freeze()  # maps and policies live as long as the process: no collection needs to walk them
    try:
        await _open(server, control)
        if not server.draining:  # run() would forget that the engine was told to stop
            await server.engine.run()
    except SystemExit:  # the engine's way to end a start that failed; it has logged why
        raise ConfigError("cannot listen; the lines above say why", file=str(config.path)) from None
    finally:
        await _close(server, control)


def _running(server: Server, forgetter: Forgetter, ready: Callable[[Server], None] | None) -> None:
    """Every listener accepts."""
    server.spawn(server.sweep())
    if server.anchors is not None:
        server.anchors.start()
    if (days := server.config.retention.inputs_days) is not None:
        server.spawn(forgetter.retain(days, clock_us))
    server.spawn(server.watch())
    server.admin.ready = True
    if ready is not None:
        ready(server)


async def _open(server: Server, control: ControlServer) -> None:
    """The doors, those of agents last; the engine opens its own when it runs."""
    config = server.config
    await server.admin.start(shared=server.workers is not None)
    if server.envoy is not None:
        await server.envoy.start()
    await control.start()
    if server.workers is not None:
        await server.workers.start()
    server.end_stub = await listen_dns(config, server.stub)
    if config.listen.all:  # `holdgate gate` has no agents
        server.door.open()
    server.serving = await serve_handed(
        server.handed, config.listen.transparent, (server.engine, server.proxy)
    )


async def _close(server: Server, control: ControlServer) -> None:
    """What accepts first, the ledger last; also where a start failed half-way."""
    server.admin.ready = False
    server.end_stub()
    server.deaf()
    if server.envoy is not None:
        await server.envoy.stop()
    if server.anchors is not None:
        server.anchors.stop()
    await server.door.hang_up()
    for task in list(server.tasks):
        task.cancel()
    await control.stop()
    if server.workers is not None:
        await server.workers.stop()
    await server.pipeline.dispatcher.close()
    await server.facts.close()
    if isinstance(server.pipeline.gatekeeper, GateClient):
        await server.pipeline.gatekeeper.close()
    await server.admin.stop()
    await asyncio.to_thread(server.ledger.close)


async def _build(config: Config) -> Server:
    os.umask(0o077)
    limit_process()
    handed = take(config)
    authority = load_ca(config.state_dir)
    facts = build_facts(config.facts)
    bundle = NO_BUNDLE if isinstance(config.bundle, Signed) else bundle_of_files(config, authority)
    metrics = Metrics()
    metrics.ca_expiry(authority.not_after.timestamp())
    opened = open_ledger(config)
    ledger = opened.ledger
    try:
        identity = Identity(config.agents)
        activator = None
        if isinstance(config.bundle, Signed):
            activator = _activator(config, config.bundle, ledger, metrics)
            bundle = await activator.start()
        else:
            metrics.bundle_active(bundle.revision, math.inf)
        pipeline = _pipeline(config, bundle, ledger, opened.keys, metrics, identity)
        ask_elsewhere(config, pipeline)
        pipeline.vouches_for = vouching(authority)
        pipeline.facts = facts.fetch
        agent_tls = AgentTls(LeafMaker(authority), identity.issuers)
        server = _around(config, pipeline, ledger, metrics, agent_tls, facts, handed)
        server.activator, server.device = activator, opened.device
        if activator is not None:
            activator.activate = server.activate
        server.anchors = _anchors(config, metrics)
        server.envoy = build_envoy_door(config, server.admin.decider)
        return server
    except BaseException:
        ledger.close()
        raise


def _activator(config: Config, mode: Signed, ledger: StoreLedger, metrics: Metrics) -> Activator:
    def fits(bundle: Bundle) -> None:
        check_fits(config, load_ca(config.state_dir), bundle)

    return Activator(
        mode,
        config.state_dir,
        read=partial(open_reader, config),
        ledger=ledger,
        meter=metrics,
        clock_us=clock_us,
        fits=fits,
    )


def _around(
    config: Config,
    pipeline: Pipeline,
    ledger: StoreLedger,
    metrics: Metrics,
    agent_tls: AgentTls,
    facts: Facts,
    handed: tuple[socket.socket, ...],
) -> Server:
    """The doors of the pipeline: inner door, admin API, resolver and `exec`.

    Long because a Server has that many parts, each one line.
    """
    addon = HoldgateAddon(keeper=pipeline, tls_contexts=agent_tls, barrier_trip=metrics.barrier)
    know_users(config, addon)
    try:
        engine, proxy = build_engine(addon, config.listen, config.limits, handed=bool(handed))
    except exceptions.OptionsError as error:
        raise ConfigError(f"listen: {error}", file=str(config.path)) from error
    boundary = Boundary.read(config)
    stub = build_stub(pipeline, metrics)
    admin = AdminServer(
        config,
        ledger=ledger,
        metrics=metrics,
        pipeline=pipeline,
        boundary=lambda: boundary.gap(clock_us()),
        decider=build_decider(config, pipeline),
    )
    return Server(
        config=config,
        pipeline=pipeline,
        ledger=ledger,
        metrics=metrics,
        engine=engine,
        proxy=proxy,
        addon=addon,
        admin=admin,
        agent_tls=agent_tls,
        boundary=boundary,
        stub=stub,
        facts=facts,
        handed=handed,
        door=build_door(config, pipeline, stub, addon, (engine, proxy)),
    )


def _worker_door(server: Server) -> WorkerDoor:
    """Where workers ask, once it is started; the admin API then speaks for all processes."""
    config, admin = server.config, server.admin
    door = WorkerDoor(
        state_dir=config.state_dir,
        pipeline=server.pipeline,
        ledger=server.ledger,
        agents={rule.agent.id: rule.agent for rule in config.agents},
        metrics=server.metrics,
        decide_s=config.limits.decide_ms / 1000,
        engine=ENGINE if config.gate is None else engine_of(config.gate.protocol),
        ca=load_ca(config.state_dir).fingerprint,
    )
    admin.processes, admin.listening = server.processes, door.gap
    return door


def _anchors(config: Config, metrics: Metrics) -> Anchors:
    names = [witness.verifier.name for witness in config.anchoring.witnesses]
    metrics.anchors([*names, *([STAMPING] if config.anchoring.timestamp else [])])
    return Anchors(config.state_dir, config.issuer, config.anchoring, failed=metrics.anchor_failed)


def _pipeline(
    config: Config, bundle: Bundle, ledger: StoreLedger, keys: Keys, metrics: Metrics, identity: Identity
) -> Pipeline:
    return Pipeline(
        bundle=bundle,
        identify=identity,
        ledger=ledger,
        dispatcher=build_dispatcher(config),
        evidence=Evidence(
            signer=ledger.signer,
            issuer=config.issuer,
            node=config.node,
            fleet_key=keys.fleet,
            draw=secrets.token_bytes,
        ),
        show=verdicts(config),
        limits=config.limits,
        meter=metrics,
        clock=time.monotonic,
        offer=ledger.offer if config.store is not None else None,
        first=ledger.first,
    )
