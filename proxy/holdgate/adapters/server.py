"""`holdgate run`: configuration in, a serving process out. The only place where the parts meet.

With several workers (supervisor.py) this is the gate process: everything but the doors for agents, which are
the workers' (worker.py), and the door where those ask (worker_door.py).

Order of start: keys, bundle, ledger (recovered and audited), outer door, admin API, and the listeners last,
so that nothing is accepted before everything that refuses is in place.

Invariants (tests/test_server.py):
  SV1  Whatever fails at start raises ConfigError before any agents' listener accepts.
  SV2  SIGTERM closes listeners first, lets held requests finish within the hold deadline, then stops.
  SV3  SIGHUP swaps bundle and CA whole, or keeps those that are active.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import os
import resource
import secrets
import signal
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from mitmproxy import exceptions, master
from mitmproxy.addons import proxyserver

from ..adjudicate import Evidence
from ..bundle import NO_BUNDLE, Bundle, load_bundle
from ..config import Address, Config, Listen, ReceiptsHeader
from ..config_bundle import Signed
from ..errors import BackendError, ConfigError
from ..gate import ENGINE
from ..headers import Verdicts
from ..network_rules import twin
from ..pipeline import Pipeline
from ..remote_gate import engine as engine_of
from .activation import Activator
from .admin.state import AdminServer
from .agent_tls import AgentTls
from .anchoring import STAMPING, Anchors
from .boundary import Boundary
from .bundle_store import keep_bundle
from .ca import CertificateAuthority, LeafMaker, load_ca
from .client_certs import Identity
from .control import ControlServer
from .decider import build_decider
from .dispatch import HttpDispatcher, tls_context
from .dns_stub import DnsStub
from .engine import build_engine
from .envoy_door import EnvoyDoor, build_envoy_door
from .exec_door import ExecDoor
from .facts import Facts, build_facts
from .fitness import check_ca, check_connect_to, check_facts
from .forced import build_door, build_stub, know_users, serve_handed
from .forgetting import Forgetter
from .gate_client import GateClient, ReportingLedger
from .handed import take
from .keyfiles import Keys
from .metrics import Metrics
from .mitm import HoldgateAddon
from .open_ledger import clock_us, open_ledger
from .open_reader import open_reader
from .resolver import ConnectTo, Resolver, dns_lookup, system_lookup
from .signer_socket import SignerSocket
from .store_ledger import StoreLedger
from .worker_door import WorkerDoor

__all__ = [
    "Server",
    "ask_elsewhere",
    "build_dispatcher",
    "check_ca",
    "check_connect_to",
    "limit_process",
    "listen_dns",
    "serve",
    "verdicts",
    "vouching",
]

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
    draining: bool = False
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

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
        refused."""
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
        bundle = await asyncio.to_thread(load_bundle, self.config.surfaces, self.config.policies)
        check_connect_to(self.config, bundle)
        check_facts(self.config, bundle)
        check_ca(self.config, authority, bundle)
        await asyncio.to_thread(_keep, self.config, bundle)
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

    def running() -> None:
        server.spawn(server.sweep())
        if server.anchors is not None:
            server.anchors.start()
        if config.retention.inputs_days is not None:
            server.spawn(forgetter.retain(config.retention.inputs_days, clock_us))
        server.spawn(server.watch())
        server.admin.ready = True
        if ready is not None:
            ready(server)

    server.addon.on_running = running
    control = ControlServer(
        config.state_dir,
        ledger=server.ledger,
        status=server.status,
        noted=server.boundary.noted,
        forget=partial(forgetter.forget, by="local"),
        reload=server.reload,
    )
    gc.collect()
    gc.freeze()  # maps and policies live as long as the process: no collection needs to walk them
    end_stub: Callable[[], None] = lambda: None  # noqa: E731
    try:
        await server.admin.start(shared=server.workers is not None)
        if server.envoy is not None:
            await server.envoy.start()
        await control.start()
        if server.workers is not None:
            await server.workers.start()
        end_stub = await listen_dns(config, server.stub)
        if config.listen.all:  # `holdgate gate` has no agents
            server.door.open()
        server.serving = await serve_handed(
            server.handed, config.listen.transparent, (server.engine, server.proxy)
        )
        await server.engine.run()
    except SystemExit:  # the engine's way to end a start that failed; it has logged why
        raise ConfigError("cannot listen; the lines above say why", file=str(config.path)) from None
    finally:
        server.admin.ready = False
        end_stub()
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


def limit_process() -> None:
    """As many connections as the system lets us have, and no core file: it would hold keys and requests."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def listen_dns(config: Config, stub: DnsStub) -> Callable[[], None]:
    """Answer redirected questions; returns what ends that. Raises ConfigError."""
    address = config.listen.dns
    if address is None:
        return lambda: None
    try:
        return await stub.listen(address)
    except OSError as error:
        message = f"listen.dns: {address}: {error.strerror}"
        raise ConfigError(message, file=str(config.path)) from error


async def _build(config: Config) -> Server:
    os.umask(0o077)
    limit_process()
    handed = take(config)
    authority = load_ca(config.state_dir)
    facts = build_facts(config.facts)
    bundle = NO_BUNDLE if isinstance(config.bundle, Signed) else _bundle_of_files(config, authority)
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


def _bundle_of_files(config: Config, authority: CertificateAuthority) -> Bundle:
    bundle = load_bundle(config.surfaces, config.policies)
    check_connect_to(config, bundle)
    check_facts(config, bundle)
    check_ca(config, authority, bundle)
    _keep(config, bundle)
    return bundle


def _activator(config: Config, mode: Signed, ledger: StoreLedger, metrics: Metrics) -> Activator:
    def fits(bundle: Bundle) -> None:
        check_connect_to(config, bundle)
        check_facts(config, bundle)
        check_ca(config, load_ca(config.state_dir), bundle)

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
    """The doors of the pipeline: inner door, admin API, resolver and `exec`."""
    addon = HoldgateAddon(keeper=pipeline, tls_contexts=agent_tls, barrier_trip=metrics.barrier)
    know_users(config, addon)
    try:
        engine, proxy = build_engine(addon, config.listen, config.limits, handed=bool(handed))
    except exceptions.OptionsError as error:
        raise ConfigError(f"listen: {error}", file=str(config.path)) from error
    boundary = Boundary.read(config)
    stub = build_stub(pipeline, metrics)
    return Server(
        config=config,
        pipeline=pipeline,
        ledger=ledger,
        metrics=metrics,
        engine=engine,
        proxy=proxy,
        addon=addon,
        admin=AdminServer(
            config,
            ledger=ledger,
            metrics=metrics,
            pipeline=pipeline,
            boundary=lambda: boundary.gap(clock_us()),
            decider=build_decider(config, pipeline),
        ),
        agent_tls=agent_tls,
        boundary=boundary,
        stub=stub,
        facts=facts,
        handed=handed,
        door=build_door(config, pipeline, stub, addon, (engine, proxy)),
    )


def ask_elsewhere(config: Config, pipeline: Pipeline) -> None:
    """Where `gate:` names one, it decides in place of the policies here. Raises ConfigError."""
    if config.gate is not None:
        client = GateClient.open(config.gate, clock_us)
        pipeline.gatekeeper = client
        pipeline.ledger = ReportingLedger(ledger=pipeline.ledger, client=client)


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


def _keep(config: Config, bundle: Bundle) -> None:
    keep_bundle(config.state_dir, bundle, surfaces=config.surfaces, policies=config.policies)


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


def verdicts(config: Config) -> Verdicts:
    """How this instance shows its receipts."""
    return Verdicts(
        node=config.node,
        full=config.receipts_header is ReceiptsHeader.FULL,
        public_url=config.admin.public_url,
    )


def build_dispatcher(config: Config) -> HttpDispatcher:
    """The outer door with its own resolver, roots and pool."""
    upstream = config.upstream
    if upstream.resolver == "system":
        lookup = system_lookup(ThreadPoolExecutor(max_workers=4, thread_name_prefix="resolver"))
    else:
        lookup = dns_lookup(tuple((server.host, server.port) for server in upstream.resolver))
    ours = {*config.listen.all, config.admin.listen, *([config.ext_authz.listen] if config.ext_authz else [])}
    ours |= {other for each in config.listen.all if (other := twin(each)) is not None}
    resolver = Resolver(
        lookup=lookup,
        allow=upstream.allow_private,
        own=frozenset((address.host, address.port) for address in ours),
        connect_to={
            f"{entry.name}:{entry.port}": ConnectTo(
                ip=entry.address.host, port=entry.address.port, tls=entry.tls
            )
            for entry in upstream.connect_to
        },
    )
    try:
        private = tls_context(str(upstream.ca_file) if upstream.ca_file else None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"upstream.ca_file: {error}", file=str(upstream.ca_file)) from error
    return HttpDispatcher(
        resolver=resolver,
        limits=config.limits,
        clock_us=clock_us,
        public_tls=tls_context(),
        private_tls=private,
    )


def vouching(authority: CertificateAuthority) -> Callable[[str], bool] | None:
    return None if authority.permitted is None else authority.vouches_for
