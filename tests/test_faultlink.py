"""tests/faultlink.py fails as it says, and only then."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from faultlink import Fault, FaultLink


@pytest.fixture
def echo() -> Iterator[tuple[int, list[bytes]]]:
    """A server that notes what arrives and says it again."""
    arrived: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    peer, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=one, args=(peer,), daemon=True).start()

        def one(peer: socket.socket) -> None:
            with peer, contextlib.suppress(ConnectionResetError):
                while data := peer.recv(100):
                    arrived.append(data)
                    peer.sendall(data)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1], arrived
        server.shutdown(socket.SHUT_RDWR)


def test_each_fault_is_what_it_says(echo: tuple[int, list[bytes]]) -> None:
    port, arrived = echo
    with FaultLink(("127.0.0.1", port)) as link:
        with socket.create_connection(("127.0.0.1", link.port)) as client:
            client.settimeout(60)
            client.sendall(b"one")
            assert client.recv(9) == b"one"
            link.fault(Fault.STALLED)
            client.sendall(b"two")
            client.settimeout(0.2)
            with pytest.raises(TimeoutError):
                client.recv(9)
            assert arrived == [b"one"]
            client.settimeout(60)
            link.fault(Fault.NONE)
            assert client.recv(9) == b"two"
            link.fault(Fault.DEAF)
            client.sendall(b"three")
            client.settimeout(0.2)
            with pytest.raises(TimeoutError):
                client.recv(9)
            assert arrived == [b"one", b"two", b"three"], "it arrived; only the answer was lost"
            client.settimeout(60)
            link.fault(Fault.CUT)
            with pytest.raises(ConnectionResetError):
                client.recv(9)
        with socket.create_connection(("127.0.0.1", link.port)) as late, pytest.raises(ConnectionResetError):
            late.settimeout(60)
            late.recv(9)
        link.fault(Fault.NONE)
        with socket.create_connection(("127.0.0.1", link.port)) as again:
            again.settimeout(60)
            again.sendall(b"four")
            assert again.recv(9) == b"four"
        assert link.carried == 2
