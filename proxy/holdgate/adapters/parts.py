"""Parts of a process that serves agents, made alike in `holdgate run` and in each of its workers."""

from __future__ import annotations

import resource
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ..config import Config, ReceiptsHeader
from ..errors import ConfigError
from ..headers import Verdicts
from ..network_rules import twin
from ..pipeline import Pipeline
from .ca import CertificateAuthority
from .dispatch import HttpDispatcher, tls_context
from .dns_stub import DnsStub
from .gate_client import GateClient, ReportingLedger
from .open_ledger import clock_us
from .resolver import ConnectTo, Resolver, dns_lookup, system_lookup

__all__ = ["ask_elsewhere", "build_dispatcher", "limit_process", "listen_dns", "verdicts", "vouching"]


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


def ask_elsewhere(config: Config, pipeline: Pipeline) -> None:
    """Where `gate:` names one, it decides in place of the policies here. Raises ConfigError."""
    if config.gate is not None:
        client = GateClient.open(config.gate, clock_us)
        pipeline.gatekeeper = client
        pipeline.ledger = ReportingLedger(ledger=pipeline.ledger, client=client)


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
