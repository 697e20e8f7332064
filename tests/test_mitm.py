"""mitm.py and engine.py: the engine cannot originate, builds only our layers, and cannot be disarmed."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mitmproxy.proxy.layers as engine_layers
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from mitmproxy import exceptions, hooks, options
from mitmproxy.proxy import mode_servers, server, server_hooks
from mitmproxy.proxy.layers import ClientTLSLayer, modes
from mitmproxy.utils import asyncio_utils
from OpenSSL import crypto

from client_pki import make_ca
from doors import open_door
from holdgate.adapters import mitm
from holdgate.adapters.engine import build_engine
from holdgate.adapters.gate_layer import DenyLayer, GateLayer, Held, HoldgateHoldHook, Relay
from holdgate.adapters.mitm import HOOKS, IGNORED_HOOKS, REQUIRED_OPTIONS, HoldgateAddon, check_options
from holdgate.config import Listen
from holdgate.limits import Limits


def addon(**change: Any) -> Any:
    trips: list[str] = []
    made = HoldgateAddon(keeper=SimpleNamespace(), tls_contexts=lambda host: None, barrier_trip=trips.append)  # type: ignore[arg-type]
    for name, value in change.items():
        setattr(made, name, value)
    return made, trips


def test_m1_every_server_connection_is_refused_and_counted() -> None:
    made, trips = addon()
    data: Any = SimpleNamespace(server=SimpleNamespace(error=None, address=("api.ok.test", 443)))
    made.server_connect(data)
    assert data.server.error
    assert trips == ["server_connect"]


async def test_m1_the_engine_asks_before_it_connects(tmp_path: Path) -> None:
    # A contract with the engine: `error` set by server_connect means that no socket is opened.
    async with open_door(tmp_path) as door:
        contacted = asyncio.Event()
        upstream = await asyncio.start_server(lambda *_: contacted.set(), "127.0.0.1", 0)
        port = upstream.sockets[0].getsockname()[1]
        source = inspect.getsource(server.ConnectionHandler.open_connection)
        assert (
            source.index("ServerConnectHook")
            < source.index("connection.error")
            < source.index("open_connection(\n")
        )
        answer = await door.exchange(
            b"GET http://127.0.0.1:%d/ HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: close\r\n\r\n"
            % (port, port)
        )
        assert answer.startswith(b"HTTP/1.1 200 "), "the keeper of the test permits everything"
        assert not contacted.is_set()
        upstream.close()


def nextlayer(*, data: bytes, stack: list[Any], transport: str = "tcp") -> Any:
    client = SimpleNamespace(
        id="c",
        transport_protocol=transport,
        peername=("127.0.0.1", 1),
        sni=None,
        proxy_mode=None,
        sockname=None,
        tls=False,
    )
    context = SimpleNamespace(
        layers=list(stack),
        client=client,
        server=SimpleNamespace(address=None),
        options=SimpleNamespace(proxy_debug=False),
    )
    return SimpleNamespace(context=context, layer=None, data_client=lambda: data)


def fake(kind: type) -> Any:
    return kind.__new__(kind)


KEEPER = SimpleNamespace(limits=None)


@pytest.mark.parametrize(
    ("data", "stack", "transport", "kind"),
    [
        pytest.param(b"", [modes.HttpProxy], "tcp", GateLayer, id="explicit listener"),
        pytest.param(b"\x16\x03\x01", [modes.TransparentProxy], "tcp", ClientTLSLayer, id="TLS"),
        pytest.param(
            b"\x16\x03\x01", [modes.HttpProxy, GateLayer], "tcp", ClientTLSLayer, id="TLS in CONNECT"
        ),
        pytest.param(b"\x16", [modes.TransparentProxy], "tcp", None, id="wait for more"),
        pytest.param(b"", [modes.TransparentProxy, ClientTLSLayer], "tcp", GateLayer, id="inside TLS"),
        pytest.param(b"\x16\x03\x01", [ClientTLSLayer, GateLayer], "tcp", DenyLayer, id="TLS in TLS"),
        pytest.param(b"SSH-2.0", [modes.TransparentProxy], "tcp", GateLayer, id="other bytes, to be refused"),
        pytest.param(b"\xc0\x00", [modes.TransparentProxy], "udp", DenyLayer, id="UDP"),
    ],
)
def test_m2_only_our_layers_are_built(
    monkeypatch: pytest.MonkeyPatch, data: bytes, stack: list[Any], transport: str, kind: Any
) -> None:
    monkeypatch.setattr(mitm.GateLayer, "__init__", lambda self, *args: None)
    monkeypatch.setattr(mitm.layers.ClientTLSLayer, "__init__", lambda self, *args: None)
    made, _ = addon(keeper=KEEPER)
    asked = nextlayer(data=data, stack=[fake(item) for item in stack], transport=transport)
    monkeypatch.setattr(mitm.layer, "NextLayer", lambda *args, **kwargs: None)
    made.next_layer(asked)
    assert type(asked.layer) is (kind or type(None))


def test_m2_an_error_while_choosing_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    made, _ = addon()
    monkeypatch.setattr(mitm.DenyLayer, "__init__", lambda self, *args: None)
    broken = nextlayer(data=b"", stack=[])
    del broken.data_client, broken.context.client.transport_protocol
    made.next_layer(broken)
    assert type(broken.layer) is DenyLayer


async def test_m2_the_engines_http_and_tcp_layers_are_never_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(self: Any, *args: Any, **kwargs: Any) -> None:
        pytest.fail(f"{type(self).__name__} was built")

    for name in ("HttpLayer", "TCPLayer", "UDPLayer", "DNSLayer", "ServerTLSLayer", "QuicStreamLayer"):
        monkeypatch.setattr(getattr(engine_layers, name), "__init__", never)
    async with open_door(tmp_path) as door:
        for data in (
            b"GET http://a/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
            b"SSH-2.0-x\r\n",
            b"\x00\x01\r\n",
        ):
            await door.exchange(data)


@pytest.mark.parametrize("name", [name for name in REQUIRED_OPTIONS if not name.startswith("emudhra")])
async def test_m3_an_option_that_disarms_the_gate_is_refused(tmp_path: Path, name: str) -> None:
    async with open_door(tmp_path) as door:
        current = getattr(door.engine.options, name)
        wrong: Any = {"connection_strategy": "eager", "stream_large_bodies": "1k"}.get(name)
        if wrong is None:
            wrong = ["x.test"] if isinstance(current, list) or name.endswith("_hosts") else not current
        with pytest.raises(exceptions.OptionsError):
            door.engine.options.update(**{name: wrong})
        assert getattr(door.engine.options, name) == current, "the update was rolled back"


def test_m3_an_engine_that_was_not_armed_does_not_pass() -> None:
    with pytest.raises(exceptions.OptionsError):
        check_options(options.Options())


async def test_m4_hooks_of_connections_are_all_in_a_table(tmp_path: Path) -> None:
    connection_hooks = {
        name
        for name, kind in hooks.all_hooks.items()
        if kind.__module__.startswith(
            (
                "mitmproxy.proxy.server_hooks",
                "mitmproxy.proxy.layer",
                "mitmproxy.proxy.layers.tls",
                "holdgate",
            )
        )
    }
    never = {
        "server_connected", "server_disconnected",  # after a connection that server_connect refused
        "tls_start_server", "tls_established_server", "tls_failed_server",
        "http_connect", "http_connected", "http_connect_error", "http_connect_upstream",
        "request", "requestheaders", "response", "responseheaders", "error",
        "tcp_start", "tcp_message", "tcp_end", "tcp_error",
        "udp_start", "udp_message", "udp_end", "udp_error",
        "websocket_start", "websocket_message", "websocket_end",
        "dns_request", "dns_response", "dns_error", "socks5_auth",
        "quic_start_client", "quic_start_server",
    }  # fmt: skip
    assert connection_hooks <= HOOKS | IGNORED_HOOKS | never
    made, trips = addon()
    await made.dispatch_hook(server_hooks.ServerConnectedHook(SimpleNamespace()))  # type: ignore[arg-type]
    assert trips == ["hook_server_connected"]


async def test_m5_a_connection_is_bounded_also_when_its_owner_cannot_be_asked_for(tmp_path: Path) -> None:
    def broken(*_ends: object) -> int:
        raise RuntimeError("the kernel said something new")

    async with open_door(tmp_path, connections_per_source=1) as door:
        door.addon.owner_uid = broken
        kept = await door.connect()
        kept[1].write(b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n")
        await asyncio.wait_for(kept[0].readline(), 60)
        assert door.addon.sources["127.0.0.1"] == 1 and not door.addon.uids
        kept[1].close()


async def test_m5_a_connection_too_many_is_answered_at_once_and_nothing_of_it_is_read(tmp_path: Path) -> None:
    async with open_door(tmp_path, connections_per_source=2) as door:
        kept = [await door.connect() for _ in range(2)]
        for _, writer in kept:
            writer.write(b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n")
        for reader, _ in kept:
            assert (await asyncio.wait_for(reader.readline(), 60)).startswith(b"HTTP/1.1 200 ")
        answer = await door.exchange(b"GET http://b.test/ HTTP/1.1\r\nHost: b.test\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 503 ") and answer.endswith(b"overloaded")
        assert [message.head.target for message in door.keeper.messages] == [b"http://a.test/"] * 2
        elsewhere = await asyncio.open_connection("127.0.0.1", door.port, local_addr=("127.0.0.2", 0))
        elsewhere[1].write(b"GET http://c.test/ HTTP/1.1\r\nHost: c.test\r\n\r\n")
        assert (await asyncio.wait_for(elsewhere[0].readline(), 60)).startswith(b"HTTP/1.1 200 ")
        for _, writer in kept:
            writer.close()
        while door.addon.sources["127.0.0.1"] > 0:
            await asyncio.sleep(0.01)
        reader, writer = await door.connect()
        writer.write(b"GET http://d.test/ HTTP/1.1\r\nHost: d.test\r\n\r\n")
        assert (await asyncio.wait_for(reader.readline(), 60)).startswith(b"HTTP/1.1 200 ")
        writer.close()
        elsewhere[1].close()
        while door.addon.sources or door.addon.surplus:  # nothing of them is remembered
            await asyncio.sleep(0.01)


class _Whole:
    """An answer of which one piece is there at once."""

    async def next(self) -> bytes:
        return b"more"

    def abandon(self) -> None:
        raise AssertionError("that is the layer's to do")


@pytest.mark.parametrize("reads", [True, False])
async def test_m6_an_agent_that_does_not_read_its_answer_is_cut(reads: bool) -> None:
    made, _ = addon(keeper=SimpleNamespace(limits=Limits(idle_s=30.0 if reads else 0.05)))
    accepted: asyncio.Future[asyncio.StreamWriter] = asyncio.get_running_loop().create_future()
    listener = await asyncio.start_server(lambda _, writer: accepted.set_result(writer), "127.0.0.1", 0)
    reader, agent = await asyncio.open_connection(*listener.sockets[0].getsockname()[:2])
    writer = await accepted
    reading = asyncio.ensure_future(reader.read()) if reads else None
    writer.write(b"x" * 32_000_000)

    made._writer = lambda client: writer
    relay = Relay(_Whole(), SimpleNamespace(id="c"))  # type: ignore[arg-type]
    await made.holdgate_relay(relay)
    assert relay.piece == (b"more" if reads else None)
    assert writer.transport.is_closing() is not reads
    writer.close()
    if reading is not None:
        assert len(await reading) == 32_000_000
    agent.close()
    listener.close()


async def test_en1_the_engine_has_three_addons(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        names = [type(item).__name__ for item in door.engine.addons.chain]
        assert names == ["Proxyserver", "HoldgateAddon", "ErrorCheck"]
        assert door.engine.addons.get("nextlayer") is door.addon


async def test_en2_every_required_option_has_its_value(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        for name, wanted in REQUIRED_OPTIONS.items():
            if name in door.engine.options:
                assert getattr(door.engine.options, name) == wanted, name


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        pytest.param("mitmproxy.addons.proxyserver", True, id="the engine cannot listen"),
        pytest.param("holdgate.worker", False, id="something of ours is tried again"),
        pytest.param("asyncio", False, id="a task of a library's failed"),
    ],
)
async def test_en4_only_an_error_of_the_engine_ends_a_start(tmp_path: Path, name: str, ends: bool) -> None:
    made, _ = addon()
    engine, _ = build_engine(made, Listen(explicit=None, transparent=None), Limits())
    made.on_running = engine.shutdown
    logging.getLogger(name).error("before it listens")
    with pytest.raises(SystemExit) if ends else contextlib.nullcontext():
        await engine.run()


@pytest.mark.parametrize("raises", [False, True], ids=["answers", "raises"])
async def test_no_connection_is_idle_while_its_hook_runs(tmp_path: Path, raises: bool) -> None:
    async def callback() -> None: ...

    watchdog, seen = server.TimeoutWatchdog(20, callback), []

    async def act(hook: hooks.Hook) -> None:
        seen.append((watchdog.blocker, watchdog.can_timeout.is_set()))
        if raises:
            raise ValueError

    async with open_door(tmp_path):  # an engine that was built: its own handler is replaced
        addons = SimpleNamespace(handle_lifecycle=act)
        handler: Any = SimpleNamespace(timeout_watchdog=watchdog, master=SimpleNamespace(addons=addons))
        watchdog.last_activity = 0.0
        with pytest.raises(ValueError) if raises else contextlib.nullcontext():
            await mode_servers.ProxyConnectionHandler.handle_hook(handler, HoldgateHoldHook(Held(callback)))  # type: ignore[arg-type]
    assert seen == [(1, False)] and (watchdog.blocker, watchdog.can_timeout.is_set()) == (0, True)
    assert watchdog.last_activity > 0
    with watchdog.disarm():  # a contract with the engine: it says the same in the same words
        assert (watchdog.blocker, watchdog.can_timeout.is_set()) == (1, False)


async def test_the_engine_describes_no_tasks(tmp_path: Path) -> None:
    async with open_door(tmp_path):
        task = asyncio_utils.create_task(asyncio.sleep(0), name="hook", keep_ref=True, client=("::1", 1))
        assert task.get_name() != "hook" and not hasattr(task, "created")
        assert asyncio_utils.task_repr(task) == task.get_name(), "the engine can still say which one it is"
        await task


def test_en3_no_default_addon_is_imported() -> None:
    code = """
import sys
import holdgate.adapters.server, holdgate.adapters.worker
addons = {name.split(".")[2] for name in sys.modules if name.startswith("mitmproxy.addons.")}
print(*sorted(addons), *sorted({"flask", "ldap3", "werkzeug"} & sys.modules.keys()))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["errorcheck", "proxyserver", "termlog"]


# --- client certificates (client_certs.py, CC2) ---


def test_what_a_client_shows_is_kept_as_it_was_shown() -> None:
    made, _ = addon()
    shown = make_ca("agents").certificate
    one = crypto.X509.from_cryptography(shown)
    for own, chain, count in ((None, None, 0), (one, None, 1), (one, [one], 2)):
        session = SimpleNamespace(get_peer_certificate=lambda: own, get_peer_cert_chain=lambda: chain)  # noqa: B023
        made.tls_established_client(tls_data(session))
        kept = made.chains.get("client 1", ())
        assert kept == (shown.public_bytes(Encoding.DER),) * count


@pytest.mark.parametrize("broken", ["get_peer_certificate", "get_peer_cert_chain", "what it gives"])
def test_a_certificate_that_cannot_be_read_is_not_taken_for_none(broken: str) -> None:
    def fails() -> Any:
        raise ValueError

    good = crypto.X509.from_cryptography(make_ca("agents").certificate)
    parts: dict[str, Any] = {"get_peer_certificate": lambda: good, "get_peer_cert_chain": lambda: [object()]}
    made, _ = addon()
    made.tls_established_client(tls_data(SimpleNamespace(**(parts | {broken: fails}))))
    assert made.chains["client 1"] == (b"unreadable",)


def tls_data(session: Any) -> Any:
    return SimpleNamespace(context=SimpleNamespace(client=SimpleNamespace(id="client 1")), ssl_conn=session)
