"""adapters/netlink.py against the kernel that the tests run on."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from holdgate.adapters.netlink import owner_uid


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_nl1_the_owner_of_a_connected_socket_and_of_nothing_else(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        server = socket.create_server((host, 0), family=family)
    except OSError:
        pytest.skip(f"no {host} here")
    with server:
        ours = server.getsockname()[:2]
        agent = socket.create_connection(ours)
        peer = agent.getsockname()[:2]
        assert owner_uid(peer, ours) == os.geteuid()
        assert owner_uid(peer, (host, 1)) is None, "another destination"
        assert owner_uid((host, 1), ours) is None, "another source"
        # The same port with only a listener on it is not a connection of anybody's.
        assert owner_uid(ours, (host, 9)) is None
        agent.close()
        assert owner_uid(peer, ours) is None, "gone"
    assert owner_uid(("not an address", 1), ours) is None


def test_nl1_ipv4_over_an_ipv6_socket_has_an_owner_too() -> None:
    """Java's sockets; and a listener on `::` says the same of an IPv4 client."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as agent,
    ):
        port = server.getsockname()[1]
        agent.connect(("::ffff:127.0.0.1", port))
        mine = agent.getsockname()[1]
        for host in ("127.0.0.1", "::ffff:127.0.0.1"):
            assert owner_uid((host, mine), (host, port)) == os.geteuid()
            assert owner_uid((host, mine), (host, 1)) is None
        with socket.create_connection(("127.0.0.1", port)) as plain:
            there = plain.getsockname()[1]
            assert owner_uid(("::ffff:127.0.0.1", there), ("::ffff:127.0.0.1", port)) == os.geteuid()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
def test_nl1_the_owner_is_the_user_behind_the_socket() -> None:
    script = "import encodings.idna, os, socket, sys; os.setuid(65534)\n"
    script += "s = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\ninput()"
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        other = subprocess.Popen(
            [sys.executable, "-c", script, str(server.getsockname()[1])],
            stdin=subprocess.PIPE,
        )
        accepted, peer = server.accept()
        with accepted:
            assert owner_uid(peer, server.getsockname()) == 65534
        other.communicate(b"\n", timeout=60)
