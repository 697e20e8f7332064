"""The inner door: mitmproxy terminates agents' connections here, and can originate none.

Bytes from an agent become RequestHead and body (http1, strict server role), one Message at a time;
each complete Message is held by one blocking hook until the pipeline has an Answer; the Answer's bytes go
back. mitmproxy's HttpLayer is never built and `server_connect` always refuses, so nothing in this half
can reach an upstream, whatever is skipped, raises, hangs or is cancelled.

What may carry a request, and what we do (a layer or hook outside these tables fails a test):
    TLS record, first on the connection or after CONNECT   -> ClientTLSLayer, then GateLayer
    plain bytes on the explicit listener                   -> GateLayer (CONNECT, absolute-form)
    plain bytes on the transparent listener                -> GateLayer (origin-form, http surfaces)
    TLS inside TLS, plain bytes after CONNECT, UDP, QUIC   -> GateLayer that refuses, or DenyLayer

Invariants (tests/test_mitm.py has one test named after each):
  M1  server_connect refuses every server connection, and counts it as a barrier trip.
  M2  next_layer builds only ClientTLSLayer, GateLayer or DenyLayer; whatever it raises ends in DenyLayer.
  M3  Engine options that would disarm the gate are refused at start and on every update.
  M4  Every hook that a connection can fire is in HOOKS or IGNORED_HOOKS; another one is a barrier trip.
  M5  A connection beyond limits.connections_per_source is answered 503, or closed, and nothing of it is read.
  M6  A piece of an answer that its agent does not take within limits.idle_s cuts the answer: who does not
      read keeps no permit open, nor what it holds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from mitmproxy import connection, ctx, exceptions, hooks, options, tls
from mitmproxy.proxy import layer, layers, mode_servers, mode_specs, server_hooks
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import modes
from OpenSSL import SSL, crypto

from ..answer import DispatchError
from ..errors import InputError, Reason
from ..message import Listener, Origin
from .gate_layer import DenyLayer, Expired, Gatekeeper, GateLayer, Held, Relay

__all__ = ["HOOKS", "IGNORED_HOOKS", "REQUIRED_OPTIONS", "HoldgateAddon", "check_options"]

type End = tuple[str, int]  # IP address, port

log = logging.getLogger("holdgate.mitm")

# Options of the engine that would open a way round the gate (facts: bypass rule 7). Asserted on every update.
REQUIRED_OPTIONS: Final[dict[str, Any]] = {
    "connection_strategy": "lazy",
    "stream_large_bodies": None,
    "validate_inbound_headers": True,
    "ssl_insecure": False,
    "upstream_cert": False,
    "http2": False,
    "http3": False,
    "rawtcp": False,
    "websocket": False,
    "ignore_hosts": [],
    "allow_hosts": [],
    "tcp_hosts": [],
    "udp_hosts": [],
    "emudhra": False,
    "emudhra_old": False,
}


# Every hook that a connection can fire: those we act on, and those that change nothing.
HOOKS: Final = frozenset(
    {
        "next_layer",
        "client_connected",
        "client_disconnected",
        "server_connect",
        "tls_start_client",
        "tls_established_client",
        "tls_failed_client",
        "holdgate_hold",
        "holdgate_relay",
    }
)
IGNORED_HOOKS: Final = frozenset({"tls_clienthello", "server_connect_error"})


@dataclass
class HoldgateAddon:
    """The only addon that decides about layers, connections and TLS. Registered as `nextlayer`."""

    keeper: Gatekeeper
    tls_contexts: Callable[[str], Any]  # host -> pyOpenSSL SSL.Context with our leaf for it
    barrier_trip: Callable[[str], None]
    connections: dict[str, mode_servers.ProxyConnectionHandler] = field(default_factory=dict)
    tunnels: dict[str, Origin] = field(default_factory=dict)
    chains: dict[str, tuple[bytes, ...]] = field(default_factory=dict)  # client id -> its certificates, DER
    layers: set[GateLayer] = field(default_factory=set)
    waiting: dict[connection.Client, float] = field(default_factory=dict)
    ending: set[asyncio.Task[None]] = field(default_factory=set)  # of those that waited too long
    sources: Counter[str] = field(default_factory=Counter)
    surplus: set[str] = field(default_factory=set)
    vouched: dict[str, str] = field(default_factory=dict)  # client id -> agent id: connections from `exec`
    uids: dict[str, int] = field(default_factory=dict)  # client id -> who owns the agent's socket
    owner_uid: Callable[[End, End], int | None] | None = None  # None: no agent is known by its user
    name: str = "nextlayer"
    armed: bool = False  # options are being set before anything listens
    on_running: Callable[[], None] = lambda: None

    async def dispatch_hook(self, event: hooks.Hook) -> None:
        """Replaces the engine's dispatcher for connection events: one table, and exceptions refuse."""
        act = getattr(self, event.name, None) if event.name in HOOKS else None
        if act is None:
            if event.name not in IGNORED_HOOKS:
                self.barrier_trip(f"hook_{event.name}")
            return
        result = act(*event.args())
        if result is not None:
            await result

    # -- layers ---------------------------------------------------------------------------------

    def next_layer(self, nextlayer: layer.NextLayer) -> None:
        try:
            chosen = self._choose(nextlayer)
        except Exception:
            log.exception("next_layer failed")
            chosen = DenyLayer
        if chosen is not None:
            nextlayer.layer = chosen(nextlayer.context)

    def _choose(self, nextlayer: layer.NextLayer) -> Callable[[Context], layer.Layer] | None:
        context = nextlayer.context
        top = context.layers[-1] if context.layers else None
        if context.client.transport_protocol != "tcp":
            return DenyLayer
        if isinstance(top, modes.HttpProxy):
            return self._gate
        if isinstance(top, layers.ClientTLSLayer):
            return self._gate
        data = nextlayer.data_client()
        if len(data) < 3 and data == b"\x16\x03"[: len(data)]:
            return None
        if data[:2] == b"\x16\x03":
            if any(isinstance(seen, layers.ClientTLSLayer) for seen in context.layers):
                return DenyLayer
            return self._tls_layer
        return self._gate

    @staticmethod
    def _tls_layer(context: Context) -> layer.Layer:
        outer = layers.ClientTLSLayer(context)
        outer.child_layer = layer.NextLayer(context, ask_on_start=True)
        return outer

    def _gate(self, context: Context) -> GateLayer:
        inside_tls = any(isinstance(seen, layers.ClientTLSLayer) for seen in context.layers)
        return GateLayer(context, self, self._origin(context.client, tls=inside_tls))

    def _origin(self, client: connection.Client, *, tls: bool) -> Origin:
        tunnel = self.tunnels.get(client.id)
        transparent = isinstance(client.proxy_mode, mode_specs.TransparentMode)
        return Origin(
            listener=Listener.TRANSPARENT if transparent else Listener.EXPLICIT,
            tls=tls,
            source=_source(client),
            source_port=client.peername[1] if client.peername else 0,
            connect=tunnel.connect if tunnel else None,
            sni=client.sni if tls else None,
            original_port=client.sockname[1] if transparent and client.sockname else None,
            proxy_authorization=tunnel.proxy_authorization if tunnel else (),
            client_chain=self.chains.get(client.id, ()) if tls else (),
            uid=self.uids.get(client.id),
            vouched=self.vouched.get(client.id),
        )

    # -- TLS towards the agent -------------------------------------------------------------------

    def tls_start_client(self, data: tls.TlsData) -> None:
        client = data.context.client
        tunnel = self.tunnels.get(client.id)
        name = client.sni or (tunnel.connect[0] if tunnel and tunnel.connect else "")
        try:
            context = self.tls_contexts(name.lower())
        except ValueError:  # no name, or one that no certificate can hold: a leaf that names nobody
            context = self.tls_contexts("unnamed.invalid")
        data.ssl_conn = SSL.Connection(context)
        data.ssl_conn.set_accept_state()

    def tls_established_client(self, data: tls.TlsData) -> None:
        # Not from the engine's list: that leaves out what it cannot parse, and a certificate that cannot be
        # parsed must not look like none (client_certs.py, CC2).
        client_id = data.context.client.id
        self.chains[client_id] = (b"unreadable",)
        try:
            session = data.ssl_conn
            if session is None or (own := session.get_peer_certificate()) is None:
                del self.chains[client_id]
                return
            shown = (own, *(session.get_peer_cert_chain() or ()))
            der = tuple(crypto.dump_certificate(crypto.FILETYPE_ASN1, each) for each in shown)
            self.chains[client_id] = der
        except Exception:
            log.exception("a client certificate could not be read")

    def tls_failed_client(self, data: tls.TlsData) -> None:
        # The operator's main signal that an agent does not trust our CA.
        log.warning("TLS with the agent failed: sni=%r error=%r", data.conn.sni, data.conn.error)

    # -- connections -----------------------------------------------------------------------------

    def client_connected(self, client: connection.Client) -> None:
        # Bounds first: whatever the kernel's answer does, this connection is counted and has its deadline.
        source = self._source_of(client)
        self.sources[source] += 1
        if self.sources[source] > self.keeper.limits.connections_per_source:
            self.surplus.add(client.id)
        if isinstance(client.proxy_mode, mode_specs.TransparentMode):
            self.await_speech(client)
        if self.owner_uid is not None and client.id not in self.vouched:
            # Now, while the agent's socket is there to be asked about.
            uid = self.owner_uid(client.peername[:2], client.sockname[:2])
            if uid is not None:
                self.uids[client.id] = uid

    def server_connect(self, data: server_hooks.ServerConnectionHookData) -> None:
        data.server.error = "refused: nothing leaves this way"
        self.barrier_trip("server_connect")

    def client_disconnected(self, client: connection.Client) -> Awaitable[object] | None:
        # Left in a tunnel or on the transparent listener before TLS or HTTP: no layer of ours saw the end.
        left = None
        if self.waiting.pop(client, None) is not None:
            left = self.keeper.refuse(self._origin(client, tls=False), self.keeper.unheard(client.sni), b"")
        self.tunnels.pop(client.id, None)
        self.surplus.discard(client.id)
        source = self._source_of(client)
        self.sources[source] -= 1
        if self.sources[source] <= 0:
            del self.sources[source]
        self.chains.pop(client.id, None)
        self.vouched.pop(client.id, None)
        self.uids.pop(client.id, None)
        for gate in [gate for gate in self.layers if gate.context.client is client]:
            gate.link.leave()
            self.layers.discard(gate)
            gate.release_memory()
        # The engine leaves the socket open when our close and the agent's meet (its handler is cancelled
        # between the two): the agent would wait for an end that never comes.
        writer = self._writer(client)
        if writer is not None:
            writer.close()
        return left

    def _source_of(self, client: connection.Client) -> str:
        """An address; or an agent of `exec`, whose namespaces all have the same one."""
        vouched = self.vouched.get(client.id)
        return _source(client) if vouched is None else f"exec {vouched}"

    def watch(self, gate: GateLayer) -> None:
        self.waiting.pop(gate.context.client, None)
        self.layers.add(gate)

    def forget(self, gate: GateLayer) -> None:
        self.layers.discard(gate)

    def is_surplus(self, client: connection.Client) -> bool:
        """Whether this is one connection too many from where it comes."""
        return client.id in self.surplus

    @property
    def busy(self) -> bool:
        """Whether an agent still waits for an answer, or for bytes of one that were not sent yet."""
        if any(gate.busy for gate in self.layers):
            return True
        writers = [self._writer(handler.client) for handler in self.connections.values()]
        return any(w is not None and w.transport.get_write_buffer_size() > 0 for w in writers)

    def _writer(self, client: connection.Client) -> asyncio.StreamWriter | None:
        handler = self.connections.get(client.id)
        io = handler.transports.get(client) if handler is not None else None
        return io.writer if io is not None and isinstance(io.writer, asyncio.StreamWriter) else None

    def pause(self, client: connection.Client, *, paused: bool) -> None:
        writer = self._writer(client)
        transport = writer.transport if writer is not None else None
        if not isinstance(transport, asyncio.Transport) or transport.is_closing():
            return
        if paused and transport.is_reading():
            transport.pause_reading()
        elif not paused and not transport.is_reading():
            transport.resume_reading()

    async def sweep(self) -> None:
        """Wake every connection whose deadline has passed. Called about four times a second."""
        now = time.monotonic()
        for gate in [gate for gate in self.layers if gate.deadline is not None and gate.deadline <= now]:
            gate.deadline = None
            handler = self.connections.get(gate.context.client.id)
            if handler is not None and gate.child is None:
                await handler.server_event(Expired())
        for client, deadline in list(self.waiting.items()):
            if deadline <= now:
                del self.waiting[client]
                # Not awaited: in a flood its receipt takes a second, and others have deadlines, too.
                task = asyncio.ensure_future(self._never_spoke(client))
                self.ending.add(task)
                task.add_done_callback(self.ending.discard)

    async def _never_spoke(self, client: connection.Client) -> None:
        """A connection or tunnel on which neither TLS nor HTTP was established in time."""
        client_id = client.id
        error = InputError(Reason.UNSUPPORTED_PROTOCOL, "neither TLS nor HTTP within the head deadline")
        await self.keeper.refuse(self._origin(client, tls=False), error, b"")
        handler = self.connections.get(client_id)
        if handler is not None:
            await handler.on_timeout()

    def await_speech(self, client: connection.Client) -> None:
        self.waiting[client] = time.monotonic() + self.keeper.limits.head_s

    # -- hooks -----------------------------------------------------------------------------------

    async def holdgate_hold(self, held: Held) -> None:
        try:
            held.answer = await held.ask()
        except BaseException as error:
            log.error("a held request was refused without an answer: %r", error)
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise

    async def holdgate_relay(self, relay: Relay) -> None:
        try:
            piece = await relay.stream.next()
            writer = self._writer(relay.client)
            if writer is not None:
                await self._taken(writer)
            relay.piece = piece
        except (DispatchError, OSError) as error:
            log.info("an answer was cut: %s", error)
        except BaseException as error:
            log.error("relaying failed: %r", error)
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise

    async def _taken(self, writer: asyncio.StreamWriter) -> None:
        """Until the agent has taken what waits for it, or most of it. Raises OSError."""
        try:
            async with asyncio.timeout(self.keeper.limits.idle_s):
                await writer.drain()
        except TimeoutError:
            writer.transport.abort()  # closing would wait for the agent, too
            raise OSError("the agent did not take it") from None

    def configure(self, updated: set[str]) -> None:
        if self.armed:
            check_options(ctx.options)

    def running(self) -> None:
        self.on_running()


def _source(client: connection.Client) -> str:
    return client.peername[0] if client.peername else ""


def check_options(opts: options.Options) -> None:
    """M3. Raises OptionsError, which the engine treats as fatal at start and as a refused update later."""
    for name, wanted in REQUIRED_OPTIONS.items():
        if name not in opts:
            continue
        actual = getattr(opts, name)
        if (list(actual) if isinstance(wanted, list) else actual) != wanted:
            raise exceptions.OptionsError(f"option {name} must be {wanted!r}: it would disarm the gate")
