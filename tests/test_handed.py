"""adapters/handed.py: sockets as systemd hands them over, and what is not taken. The lab: test_tproxy.py."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from holdgate.adapters import handed
from holdgate.adapters.engine import serves
from holdgate.config import Address, NetworkMode
from holdgate.errors import ConfigError
from ports import free_port

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for a transparent socket")
PLACE = 200  # where the descriptors go: pytest's own are below


def config(port: int = 0, mode: NetworkMode = NetworkMode.TPROXY) -> Any:
    listen = SimpleNamespace(transparent=Address(host="0.0.0.0", port=port))
    return SimpleNamespace(path=Path("holdgate.yaml"), listen=listen, network_mode=mode)


def opened(host: str, port: int = 0, *, transparent: bool = True, listens: bool = True) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    if transparent:
        sock.setsockopt(*handed._OPTION[family], 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind((host, port))
    if listens:
        sock.listen()
    return sock


type Take = Callable[..., tuple[socket.socket, ...]]


@pytest.fixture
def take(monkeypatch: pytest.MonkeyPatch) -> Iterator[Take]:
    """take(), as if this process had been started with these sockets, and without the right."""
    monkeypatch.setattr(handed, "FIRST", PLACE)
    monkeypatch.setattr(handed, "_has_net_admin", lambda: False)
    taken: list[socket.socket] = []

    def started_with(*sockets: socket.socket, port: int, names: str | None = None, **other: str) -> Any:
        for number, sock in enumerate(sockets):
            os.dup2(sock.fileno(), PLACE + number)
            sock.close()
        said = ":".join([handed.NAME] * len(sockets)) if names is None else names
        environment = {
            "LISTEN_PID": str(os.getpid()),
            "LISTEN_FDS": str(len(sockets)),
            "LISTEN_FDNAMES": said,
        }
        environment |= other
        try:
            taken.extend(handed.take(config(port), environment))
        finally:
            assert not environment, "the variables are for nobody else"
        return tuple(taken)

    yield started_with
    for sock in taken:
        sock.close()


@needs_root
def test_hs1_the_listener_and_its_twin_are_taken_and_not_inherited(take: Take) -> None:
    port = free_port()
    sockets = take(opened("0.0.0.0", port), opened("::", port), port=port)
    assert [sock.getsockname()[:2] for sock in sockets] == [("0.0.0.0", port), ("::", port)]
    assert not any(os.get_inheritable(sock.fileno()) for sock in sockets)


@needs_root
@pytest.mark.parametrize(
    ("make", "names", "said"),
    [
        pytest.param(lambda: opened("0.0.0.0", transparent=False), None, "Transparent=yes", id="plain"),
        pytest.param(lambda: opened("0.0.0.0", listens=False), None, "does not listen", id="not listening"),
        pytest.param(lambda: opened("127.0.0.1"), None, "is bound to 127.0.0.1", id="another address"),
        pytest.param(lambda: opened("::"), None, "was not handed over", id="IPv6 alone"),
        pytest.param(lambda: opened("0.0.0.0"), "web", "FileDescriptorName=transparent", id="another name"),
        pytest.param(lambda: opened("0.0.0.0"), "a:b", "FileDescriptorName=transparent", id="two names"),
        pytest.param(
            lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), None, "is no TCP socket", id="Unix"
        ),
        pytest.param(
            lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM), None, "is no TCP socket", id="UDP"
        ),
    ],
)
def test_hs1_what_is_not_the_listener_is_refused(
    take: Take, make: Callable[[], socket.socket], names: str | None, said: str
) -> None:
    sock = make()
    port = 1 if sock.family == socket.AF_UNIX else sock.getsockname()[1]
    with pytest.raises(ConfigError, match=said):
        take(sock, port=port, names=names)


@needs_root
def test_hs1_a_socket_for_both_families_is_refused(take: Take) -> None:
    six = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    six.setsockopt(*handed._OPTION[socket.AF_INET6], 1)
    six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    six.bind(("::", 0))
    six.listen()
    with pytest.raises(ConfigError, match="BindIPv6Only=ipv6-only"):
        take(six, port=six.getsockname()[1])


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"LISTEN_PID": "1"}, id="for another process"),
        pytest.param({"LISTEN_FDS": "0"}, id="none"),
        pytest.param({"LISTEN_FDS": "many"}, id="no number"),
    ],
)
def test_hs1_without_a_socket_there_is_no_start(take: Take, other: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"hand 0\.0\.0\.0:8443 over by a socket unit"):
        take(port=8443, **other)


def test_hs1_sockets_for_another_mode_are_refused() -> None:
    environment = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
    with pytest.raises(ConfigError, match="is not tproxy"):
        handed.take(config(8443, NetworkMode.REDIRECT), environment)
    assert handed.take(config(8443, NetworkMode.REDIRECT), {}) == ()


@pytest.mark.parametrize(("permitted", "refused"), [("1000", True), ("0fff", False), ("1ffffffffff", True)])
def test_hs2_who_could_change_the_rules_takes_no_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, permitted: str, refused: bool
) -> None:
    status = tmp_path / "status"
    status.write_text(f"CapInh:\t0000\nCapPrm:\t{permitted}\nCapEff:\t0000\n")
    assert handed._has_net_admin(status) is refused
    status.write_text("Name:\tholdgate\n")
    assert handed._has_net_admin(status), "what cannot be read is not known to be gone"
    monkeypatch.setattr(handed, "_has_net_admin", lambda: True)
    with pytest.raises(ConfigError, match="must not have CAP_NET_ADMIN"):
        handed.take(config(8443), {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"})


class Redirected:
    """Of an accepted socket, what destination() asks."""

    def __init__(self, *name: Any) -> None:
        self.name = name

    def getsockname(self) -> tuple[Any, ...]:
        return self.name

    def getsockopt(self, *_: object) -> bytes:
        raise OSError("no such connection is tracked")


LISTENER = Address(host="0.0.0.0", port=8443)


def test_hs3_the_destination_is_the_local_address_or_what_conntrack_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def of(*name: Any) -> tuple[str, int]:
        return handed.destination(Redirected(*name), LISTENER)  # type: ignore[arg-type]

    assert of("203.0.113.9", 443) == ("203.0.113.9", 443)
    assert of("2001:db8::9", 8443, 0, 0) == ("2001:db8::9", 8443)
    assert of("127.0.0.1", 443) == ("127.0.0.1", 443)
    monkeypatch.setattr(handed.platform, "original_addr", lambda sock: ("198.51.100.1", 443))
    assert of("127.0.0.1", 8443) == of("::1", 8443, 0, 0) == ("198.51.100.1", 443)
    monkeypatch.undo()
    with pytest.raises(OSError, match="tracked"):
        of("127.0.0.1", 8443)
    monkeypatch.setattr(handed.platform, "original_addr", None)
    with pytest.raises(OSError, match="redirects nothing"):
        of("127.0.0.1", 8443)


def test_hs3_a_connection_to_nowhere_known_is_closed_and_never_met(tmp_path: Path) -> None:
    def nowhere(_: object) -> tuple[str, int]:
        raise OSError("no such connection is tracked")

    async def run() -> bytes:
        from mitmproxy import master, options
        from mitmproxy.addons import proxyserver

        engine, proxy = master.Master(options.Options()), proxyserver.Proxyserver()
        engine.addons.add(proxy)
        serve = serves(engine, proxy, "transparent", pytest.fail, nowhere)
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            said = await asyncio.wait_for(reader.read(), 60)
            writer.close()
        return said

    try:
        assert asyncio.run(run()) == b""
    except ConnectionResetError:
        pass  # closed with our bytes unread


@needs_root
def test_the_privileged_step_opens_what_is_taken(take: Take) -> None:
    port = free_port()
    sockets = handed.open_transparent(config(port))
    assert len(take(*sockets, port=port)) == len(sockets) >= 1
    assert handed.open_transparent(config(port, NetworkMode.REDIRECT)) == ()
    with pytest.raises(ConfigError, match="Address already in use"):
        handed.open_transparent(config(port))
