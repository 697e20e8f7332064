"""mitmproxy, embedded: its listeners and TLS sessions, our one addon, and nothing else of it.

`DumpMaster` would load 31 addons, some of which forward by themselves (replay, map-remote, onboarding). Here
there are three: the listeners, HoldgateAddon, and the check that ends a start at which the engine logged
an error.

Invariants (tests/test_mitm.py):
  EN1  The engine's addons are exactly these three, and HoldgateAddon answers to the name `nextlayer`.
  EN2  Every option of REQUIRED_OPTIONS has its required value before anything listens.
  EN3  None of the addons that forward by themselves is even imported (adapters/__init__.py).
  EN4  Only an error that the engine logged ends a start: what is tried again does not.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from mitmproxy import master, options
from mitmproxy.addons import errorcheck, proxyserver
from mitmproxy.connection import Client
from mitmproxy.proxy import commands, mode_servers
from mitmproxy.utils import asyncio_utils

from ..config import Address, Listen
from ..limits import Limits
from ..network_rules import twin
from .mitm import REQUIRED_OPTIONS, HoldgateAddon

__all__ = ["build_engine", "serves"]

log = logging.getLogger("holdgate.engine")

type End = tuple[str, int]  # IP address, port
type Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def build_engine(
    addon: HoldgateAddon, listen: Listen, limits: Limits, *, handed: bool = False, shared: bool = False
) -> tuple[master.Master, proxyserver.Proxyserver]:
    """An engine that is ready to run(), in the running event loop.

    `handed`: the transparent listener was opened by somebody else, and is not the engine's. `shared`: other
    processes listen at the same ports, and the kernel gives each its part of the connections.
    """
    if shared:
        mode_servers.AsyncioServerInstance.listen = _listen_shared  # type: ignore[method-assign, assignment]
    modes = []
    if listen.explicit is not None:
        modes.append(_mode("regular", listen.explicit))
    if listen.transparent is not None and not handed:
        modes.append(_mode("transparent", listen.transparent))
        other = twin(listen.transparent)  # where redirected IPv6 arrives
        if other is not None and _can_bind(other):
            modes.append(_mode("transparent", other))
    engine = master.Master(options.Options(), with_termlog=False)
    proxy = proxyserver.Proxyserver()
    check = errorcheck.ErrorCheck(repeat_errors_on_stderr=True)
    check.logger.addFilter(logging.Filter("mitmproxy"))  # ours raise, or are dealt with where they are logged
    engine.addons.add(proxy, addon, check)
    # The engine's own dispatcher swallows exceptions and walks every addon; ours does neither.
    engine.addons.handle_lifecycle = addon.dispatch_hook  # type: ignore[method-assign]
    mode_servers.ProxyConnectionHandler.handle_hook = _handle_hook  # type: ignore[method-assign, assignment]
    # It would look at its environment and format a name for the task of every hook.
    asyncio_utils.set_task_debug_info = _unnamed
    addon.connections = proxy.connections  # type: ignore[assignment]
    engine.options.update(
        **{name: value for name, value in REQUIRED_OPTIONS.items() if name in engine.options}
    )
    addon.armed = True
    # The engine's own inactivity limit is only a net below our deadlines.
    longest_s = max(limits.idle_s, limits.head_s, limits.body_s)
    engine.options.update(mode=modes, tcp_timeout=int(longest_s) + 30)
    return engine, proxy


async def _handle_hook(handler: mode_servers.ProxyConnectionHandler, hook: commands.StartHook) -> None:
    """In the place of the engine's own, for the same: no connection is idle while one of its hooks runs."""
    watchdog = handler.timeout_watchdog
    watchdog.can_timeout.clear()
    watchdog.blocker += 1
    try:
        await handler.master.addons.handle_lifecycle(hook)
    finally:
        watchdog.blocker -= 1
        if watchdog.blocker == 0:
            watchdog.register_activity()
            watchdog.can_timeout.set()


def _unnamed(*_: object, **__: object) -> None:
    """In the place of the engine's own: nobody here asks a task for its name."""


def serves(
    engine: master.Master,
    proxy: proxyserver.Proxyserver,
    mode: str,
    meet: Callable[[Client], None],
    destination: Callable[[socket.socket], End] = lambda sock: sock.getsockname()[:2],
) -> Serve:
    """A callback for asyncio.start_server: like a listener of the engine's, for sockets that we were given.

    `mode` is "regular" or "transparent"; for the latter `destination` says what the agent connected to: the
    local address, where nothing redirected it. An OSError there ends the connection. `meet` sees each client
    before anything else does.
    """
    instance: mode_servers.ServerInstance[Any] = mode_servers.ServerInstance.make(
        f"{mode}@127.0.0.1:1", proxy
    )  # never started: not its address

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handler = mode_servers.ProxyConnectionHandler(engine, reader, writer, engine.options, instance.mode)
        context = handler.layer.context
        handler.layer = instance.make_top_layer(context)
        try:
            context.client.sockname = destination(writer.get_extra_info("socket"))
        except OSError as error:
            log.error("the original destination is not known: %s", error)
            writer.close()
            return
        if mode == "transparent":  # what the engine's own listener does; nothing is ever connected to it
            context.server.address = context.client.sockname
        meet(context.client)
        with proxy.register_connection(context.client.id, handler):
            await handler.handle_client()

    return serve


async def _listen_shared(instance: Any, host: str, port: int) -> list[asyncio.Server]:
    """In the place of the engine's own, which has no such option. Only TCP is ever listened for."""
    return [await asyncio.start_server(instance.handle_stream, host, port, reuse_port=True, backlog=1024)]


def _mode(name: str, address: Address) -> str:
    return f"{name}@{address.host}:{address.port}"  # the engine takes an IPv6 address without brackets


def _can_bind(address: Address) -> bool:
    """False where this machine has no IPv6, or not that address. A port that is taken fails later, aloud."""
    try:
        with socket.create_server((address.host, 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False
