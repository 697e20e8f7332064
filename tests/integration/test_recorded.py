"""Recorded requests of real clients (tests/data/clients), sent through a running instance byte for byte.

Each is PERMIT, and what arrives upstream is what was sent, without what belongs to one connection only. Those
that are refused by design stand in refused.yaml with the reason, and reach nobody.
"""

from __future__ import annotations

import http.client
import shutil
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from holdgate.demo.instance import Instance
from holdgate.strictyaml import load_file
from rawserver import RawRequest, RawServer, parse
from recordings import CLIENTS, RECORDED, content, name_of

pytestmark = pytest.mark.slow

REFUSED: dict[str, dict[str, str]] = load_file(CLIENTS / "refused.yaml").plain()["refused"]
# What is between two neighbours on the wire, and not part of the message.
HOP_BY_HOP = {
    b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"expect", b"upgrade",
    b"http2-settings", b"content-length", b"host",
}  # fmt: skip
PLAIN = "api.example.org"  # also without TLS
POLICY = """\
apiVersion: holdgate/v1
kind: Policy
metadata: {{name: {name}, owner: tests@example.com}}
spec:
  surface: generic.{name}
  rules: [{{id: all, effect: permit, when: always, unsafe_allow_all: true}}]
"""


@pytest.fixture(scope="module")
def upstream() -> Iterator[RawServer]:
    with RawServer() as running:
        yield running


@pytest.fixture(scope="module")
def gate(upstream: RawServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    hosts = {parse_host(path) for path in RECORDED}
    names = {f"{host}:443": upstream.address for host in hosts if host} | {f"{PLAIN}:80": upstream.address}
    instance = Instance(tmp_path_factory.mktemp("gate"), connect_to=names)
    for folder in ("surfaces", "policies"):
        shutil.rmtree(instance.folder / folder)
        (instance.folder / folder).mkdir()
    for map_file in CLIENTS.glob("*map.yaml"):
        shutil.copy(map_file, instance.folder / "surfaces")
    for name in ("read", "commit"):
        (instance.folder / "policies" / f"{name}.yaml").write_text(POLICY.format(name=name))
    with instance:
        yield instance


def parse_host(path: Path) -> str:
    for line in content(path).split(b"\r\n\r\n")[0].split(b"\r\n"):
        if line.lower().startswith(b"host:"):
            return line[5:].strip().decode()
    return ""


def replay(gate: Instance, raw: bytes, host: str, *, tls: bool) -> tuple[int, str]:
    """Send the bytes in a tunnel of their own, or to the listener in absolute-form; status and decision."""
    address, _, port = gate.proxy.rpartition(":")
    with socket.create_connection((address, int(port)), timeout=60) as plain:
        stream: Any = tunnelled(gate, plain, host) if tls else plain
        stream.sendall(raw if tls else raw.replace(b" /", b" http://" + host.encode() + b"/", 1))
        answer = http.client.HTTPResponse(stream, method=raw.partition(b" ")[0].decode())
        answer.begin()
        answer.read()
        return answer.status, answer.getheader("Holdgate-Decision", "")


def tunnelled(gate: Instance, plain: socket.socket, host: str) -> ssl.SSLSocket:
    plain.sendall(f"CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443\r\n\r\n".encode())
    opened = b""
    while not opened.endswith(b"\r\n\r\n"):
        opened += plain.recv(1)
    assert opened.startswith(b"HTTP/1.1 200"), opened
    context = ssl.create_default_context(cafile=str(gate.state_dir / "ca" / "ca.pem"))
    return context.wrap_socket(plain, server_hostname=host)


def end_to_end(request: RawRequest) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in request.headers if name.lower() not in HOP_BY_HOP]


def test_at_least_thirty_clients_are_recorded() -> None:
    assert len({path.parent.name for path in RECORDED}) >= 30
    assert sum(path.stat().st_size for path in RECORDED) < 1_000_000
    assert REFUSED.keys() <= {name_of(path) for path in RECORDED}


@pytest.mark.parametrize("path", RECORDED, ids=name_of)
def test_a_recorded_request_is_permitted_and_arrives_as_it_was_sent(
    gate: Instance, upstream: RawServer, path: Path
) -> None:
    raw, name, before = content(path), name_of(path), len(upstream.requests)
    connections = upstream.connections
    host = parse_host(path) or PLAIN
    status, decision = replay(gate, raw, host, tls=not name.endswith(".plain"))
    if name in REFUSED:
        assert f"reason={REFUSED[name]['reason']}" in decision, (status, decision)
        assert (len(upstream.requests), upstream.connections) == (before, connections)
        return
    assert status == 200 and decision.startswith("PERMIT;"), (status, decision)
    (got,) = upstream.requests[before:]
    sent = parse(raw)
    assert (got.method, got.target, got.body) == (sent.method, sent.target, sent.body)
    assert end_to_end(got) == end_to_end(sent)
    assert got.header(b"host") == sent.header(b"host")
    assert got.header(b"content-length") == (
        b"%d" % len(sent.body) if sent.body else got.header(b"content-length")
    )
    assert not got.header(b"transfer-encoding")
