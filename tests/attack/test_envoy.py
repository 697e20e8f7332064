"""The cases of cases.yaml once more, through the real Envoy that asks `holdgate gate`: nothing that the proxy
refuses reaches the upstream, and what it permits arrives with the same meaning, or not at all."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from attack.arena import HERE, Response, read_response
from attack.cases import Case, load_redirected
from attack.test_attack import HEADERS
from envoys import Envoy, gate_for_envoy, generate, program
from ports import free_port
from rawserver import RawRequest, RawServer, parse

pytestmark = [pytest.mark.slow, pytest.mark.checkout]

LIMITS = """\
limits: {head_s: 1, body_s: 1, first_byte_s: 1, upstream_total_s: 3, connect_s: 1, hold_s: 5,
  body_bytes: 65536}"""
CASES = [
    case
    for case in load_redirected()
    if case.path == "redirected" and case.source == "127.0.0.1" and case.connect.endswith(":443")
]
# Envoy reads these where we refuse to: it has one reading, shows that to the gate, and writes it anew. What
# arrives is the plain request that is written here, and was permitted as that.
SEARCH = (
    b"POST /v1/search HTTP/1.1\r\nHost: api.ok.test\r\nContent-Type: application/json\r\n"
    b'Content-Length: 9\r\n\r\n{"q":"a"}'
)
QUERY = b"GET /v1/search?q=a HTTP/1.1\r\nHost: api.ok.test\r\n\r\n"
LENIENT = {
    "BYP-H1F-23 chunk extension": SEARCH,
    "a chunk size with white space": SEARCH,
    "BYP-H1F-26 chunk data and a bare LF": SEARCH,
    "BYP-H1F-27 a trailer": SEARCH,
    "BYP-H1F-30 two empty lines before the request": QUERY,
    "all lines end in bare LF": QUERY,
    "BYP-H1S-06 a folded header": QUERY.replace(b"\r\n\r\n", b"\r\nX: a b\r\n\r\n"),
    # Taken out before the gate is asked, so it decides without them.
    "BYP-H1S-21 Connection names the length": SEARCH,
    "BYP-H1S-21 Connection names credentials and key": b"POST /v1/charges HTTP/1.1\r\nHost: api.ok.test\r\n"
    b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 8\r\n\r\namount=1",
    "upgrade to cleartext HTTP/2": QUERY,
}
# Permitted by the proxy, refused here.
STRICTER = {
    "BYP-AUT-17 forwarding headers are removed": "a header with an underscore",
    "BYP-DEC-18 forged receipts and decisions": "a header with an underscore",
    "BYP-FRM-11 an escaped space is kept": "the same as the case before it, whose outcome nobody reported",
}
# Envoy sets these itself, or writes them otherwise: what they say is compared by what was read.
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
FRAMING = frozenset({b"content-length", b"transfer-encoding"})


@dataclass
class Lab:
    envoy: Envoy
    vendor: RawServer
    roots: Path

    def send(self, case: Case) -> list[Response]:
        """The answers to this case; fewer when Envoy closed first."""
        context = ssl.create_default_context(cafile=str(self.roots))
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        data, found = b"", []
        # A name that is not mapped is closed before there is anything to read.
        with contextlib.suppress(OSError), socket.create_connection(self.envoy.address, timeout=4) as raw:
            with context.wrap_socket(raw, server_hostname=case.sni) as stream:
                stream.sendall(case.bytes_of(case.send, {"HEADERS": HEADERS, "admin": "127.0.0.1:9090"}))
                while len(found) < len(case.expected):
                    piece = stream.recv(65_536)
                    data = (data + piece).removeprefix(CONTINUE)
                    while (got := read_response(data, head=case.head, closed=not piece)) is not None:
                        found.append(got[0])
                        data = got[1]
                    if not piece:
                        break
        return found


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    if program() is None:
        if os.environ.get("CI") == "true" and platform.machine() == "x86_64":
            pytest.fail("envoy is not installed, and .ci/run should have installed it")
        pytest.skip("envoy is not installed")
    folder = tmp_path_factory.mktemp("attacked")
    for name in ("surfaces", "policies"):
        shutil.copytree(HERE / name, folder / "gate" / name)
    with RawServer() as vendor:
        names = ("api.ok.test:443", "rpc.ok.test:443", "api.denied.test:443")
        gate = gate_for_envoy(folder / "gate", dict.fromkeys(names, vendor.address), extra=LIMITS)
        port = free_port()
        with gate:
            generate(gate, folder / "out", "--listen", f"127.0.0.1:{port}")
            with Envoy(folder / "out" / "envoy.yaml", port) as envoy:
                yield Lab(envoy, vendor, gate.state_dir / "ca" / "ca.pem")


def meaning(request: RawRequest) -> tuple[bytes, bytes, dict[bytes, bytes], bytes]:
    """Method, target, headers (names in lower case, lines of one name joined), body."""
    headers: dict[bytes, bytes] = {}
    for name, value in request.headers:
        low = name.lower()
        if low not in FRAMING:
            headers[low] = headers[low] + b"," + value.strip() if low in headers else value.strip()
    return request.method, request.target, headers, request.body


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in CASES])
def test_case(lab: Lab, case: Case) -> None:
    before, connections = len(lab.vendor.requests), lab.vendor.connections
    answers = lab.send(case)
    arrived = lab.vendor.requests[before:]
    expected = LENIENT.get(case.id)
    if case.upstream is not None:
        expected = case.bytes_of(case.upstream, {"HEADERS": HEADERS})
    if expected is None or case.id in STRICTER:
        assert (arrived, lab.vendor.connections) == ([], connections)
        assert all(each.status >= 400 for each in answers)
    else:
        assert [meaning(each) for each in arrived] == [meaning(parse(expected))]
