"""What serves forced agents besides the engine's own listeners: the stub resolver, the door for `exec`, and
sockets that were handed over.

Invariants (tests/test_forced.py has one test named after each):
  FO1  A name that no map has is counted, and leaves a SILENCE receipt with the reason unknown_destination.
  FO2  Holdgate does not start as a user who is an agent, nor with keys that belong to one.
"""

from __future__ import annotations

import asyncio
import os
import socket
from functools import partial

from mitmproxy import master
from mitmproxy.addons import proxyserver
from mitmproxy.connection import Client

from ..config import Address, Config
from ..errors import ConfigError, InputError, Reason
from ..message import Listener, Origin
from ..pipeline import Pipeline
from .dns_stub import DnsStub
from .engine import Serve, serves
from .exec_door import ExecDoor
from .handed import destination
from .metrics import Metrics
from .mitm import HoldgateAddon
from .netlink import owner_uid

__all__ = ["build_door", "build_stub", "know_users", "serve_handed"]


def build_stub(pipeline: Pipeline, metrics: Metrics) -> DnsStub:
    async def report(source: tuple[str, int], name: str, query: bytes) -> None:
        origin = Origin(
            listener=Listener.TRANSPARENT,
            tls=False,
            source=source[0],
            source_port=source[1],
            connect=None,
            sni=None,
            original_port=53,
            proxy_authorization=(),
        )
        await pipeline.refuse(origin, InputError(Reason.UNKNOWN_DESTINATION, f"DNS: {name}"), query)

    # Through the pipeline at each question: a reload changes what is mapped.
    return DnsStub(lambda name: pipeline.bundle.index.names(name), metrics.unmapped, report)


def build_door(
    config: Config,
    pipeline: Pipeline,
    stub: DnsStub,
    addon: HoldgateAddon,
    engine: tuple[master.Master, proxyserver.Proxyserver],
) -> ExecDoor:
    def serve(kind: str, agent: str) -> Serve:
        if kind == "dns_tcp":
            return stub.serve_tcp
        mode = "regular" if kind == "explicit" else "transparent"
        return serves(*engine, mode, partial(_vouch, addon, agent))

    def ports() -> tuple[int, ...]:
        return tuple(sorted({80, 443} | {pattern.port for pattern in pipeline.bundle.index.hosts()}))

    return ExecDoor(
        state_dir=config.state_dir,
        agents=tuple(rule.agent.id for rule in config.agents),
        explicit_port=config.listen.explicit.port if config.listen.explicit is not None else 0,
        ports=ports,
        serve=serve,
        dns_udp=stub.serve_udp,
        end_udp=stub.end_udp,
    )


async def serve_handed(
    sockets: tuple[socket.socket, ...],
    listener: Address | None,
    engine: tuple[master.Master, proxyserver.Proxyserver],
) -> list[asyncio.Server]:
    """Accept on the transparent sockets of mode tproxy."""
    if listener is None:
        return []
    serve = serves(*engine, "transparent", lambda client: None, partial(destination, listener=listener))
    return [await asyncio.start_server(serve, sock=sock) for sock in sockets]


def _vouch(addon: HoldgateAddon, agent: str, client: Client) -> None:
    addon.vouched[client.id] = agent


def know_users(config: Config, addon: HoldgateAddon) -> None:
    """Ask the kernel who owns an agent's socket, where an agent is known by its user. Raises ConfigError."""
    users = {uid for rule in config.agents for uid in rule.users}
    if os.geteuid() in users:
        message = f"uid {os.geteuid()} is an agent: run Holdgate as a user whose traffic is not forced"
        raise ConfigError(message, file=str(config.path))
    owner = config.state_dir.stat().st_uid
    if owner in users:
        message = f"the state directory belongs to uid {owner}, who is an agent and could sign as Holdgate"
        raise ConfigError(message, file=str(config.state_dir))
    if users:
        addon.owner_uid = owner_uid
