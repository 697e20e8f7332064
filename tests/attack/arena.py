"""What the attacks meet: a recorder below HTTP, agents that send raw bytes, and the ledger read from outside.

Nothing here uses the product's parsers: what is right is said by the cases, or by `strict.py`.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from holdgate.adapters.keyfiles import load_public_keys
from holdgate.adapters.sqlite_reader import SqliteReader
from holdgate.demo.instance import Instance
from holdgate.receipt import Verified, verify

WAIT_S: Final = 30.0
OK: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"
HOSTS: Final = {
    "tls": "api.ok.test",
    "plain": "web.ok.test",
    "redirected": "api.ok.test",
    "redirected plain": "web.ok.test",
}
TLS_PATHS: Final = ("tls", "redirected")
OUTSIDE: Final = "198.51.100.7"  # RFC 5737: nobody is there, so what arrives was redirected
HERE: Final = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Reply:
    """What the upstream says to one request, and what it does afterwards: stay, close or reset."""

    data: bytes = OK
    then: str = "stay"
    delay_s: float = 0.0


@dataclass(frozen=True)
class Mark:
    connections: int
    received: int
    requests: int
    queries: int


class _Wire(asyncio.Protocol):
    """One accepted connection: counts every byte, cuts requests by Content-Length alone, answers."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.number = 0
        self.buffer = b""
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.upstream.connections += 1
        self.number = self.upstream.connections

    def data_received(self, data: bytes) -> None:
        self.upstream.received += len(data)
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            length = re.search(rb"\r\nContent-Length: ([0-9]+)\r\n", self.buffer[: end + 2])
            size = end + 4 + (int(length[1]) if length else 0)
            if len(self.buffer) < size:
                return
            request, self.buffer = self.buffer[:size], self.buffer[size:]
            self.upstream.requests.append((self.number, request))
            reply = self.upstream.replies.get(request.split(b" ", 2)[1], Reply())
            asyncio.get_running_loop().call_later(reply.delay_s, self._answer, reply)

    def _answer(self, reply: Reply) -> None:
        assert self.transport is not None
        self.transport.write(reply.data)
        if reply.then == "close":
            self.transport.close()
        elif reply.then == "reset":
            raw = self.transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()


class _Names(asyncio.DatagramProtocol):
    """A DNS server that notes every question and answers A from `addresses`."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.DatagramTransport)
        self.transport = transport

    def datagram_received(self, data: bytes, peer: tuple[str | Any, int]) -> None:
        labels, at = [], 12
        while data[at]:
            labels.append(data[at + 1 : at + 1 + data[at]].decode("latin-1"))
            at += 1 + data[at]
        name, kind = ".".join(labels).lower(), data[at + 1 : at + 3]
        self.upstream.queries.append(name)
        found = self.upstream.addresses.get(name, []) if kind == b"\0\1" else []
        rows = b"".join(b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4" + socket.inet_aton(ip) for ip in found)
        counts = struct.pack(">HHHHH", 0x8180, 1, len(found), 0, 0)
        assert self.transport is not None
        self.transport.sendto(data[:2] + counts + data[12 : at + 5] + rows, peer)


class _Secure(asyncio.Protocol):
    """A TLS server that nobody should believe: what it reads inside TLS must stay empty."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream

    def data_received(self, data: bytes) -> None:
        self.upstream.tls_received += data


def _wrong_identity() -> ssl.SSLContext:
    """A server context with a self-signed certificate for another name."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "other.test")])
    now = datetime.now(UTC)
    day, serial = timedelta(days=1), x509.random_serial_number()
    made = x509.CertificateBuilder(name, name, key.public_key(), serial, now - day, now + day)
    certificate = made.sign(key, hashes.SHA256())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as file:
        file.write(certificate.public_bytes(serialization.Encoding.PEM))
        file.write(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        file.flush()
        context.load_cert_chain(file.name)
    return context


class Upstream:
    """Everything that is outside: a TCP recorder, and the only DNS server there is."""

    def __init__(self) -> None:
        self.connections = self.received = 0
        self.requests: list[tuple[int, bytes]] = []
        self.queries: list[str] = []
        self.replies: dict[bytes, Reply] = {}
        self.addresses: dict[str, list[str]] = {}
        self.port = self.dns_port = self.tls_port = 0
        self.tls_received = b""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=60)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=60)

    async def _start(self) -> None:
        server = await self._loop.create_server(lambda: _Wire(self), "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        transport, _ = await self._loop.create_datagram_endpoint(
            lambda: _Names(self), local_addr=("127.0.0.1", 0)
        )
        self.dns_port = transport.get_extra_info("sockname")[1]
        secure = await self._loop.create_server(lambda: _Secure(self), "127.0.0.1", 0, ssl=_wrong_identity())
        self.tls_port = secure.sockets[0].getsockname()[1]

    def mark(self) -> Mark:
        return Mark(self.connections, self.received, len(self.requests), len(self.queries))

    def since(self, mark: Mark) -> list[bytes]:
        """Requests since then; fails when there was a connection or a byte that is none of theirs."""
        new = self.requests[mark.requests :]
        assert self.received - mark.received == sum(len(request) for _, request in new), "stray bytes"
        opened = self.connections - mark.connections
        assert opened == len({number for number, _ in new if number > mark.connections}), "stray connection"
        return [request for _, request in new]


@dataclass(frozen=True)
class Response:
    status: int
    reason: bytes
    headers: list[tuple[str, str]]
    body: bytes
    complete: bool

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]

    @property
    def decision(self) -> dict[str, str]:
        """The one Holdgate-Decision, as {"outcome": ..., "reason": ..., "id": ...}."""
        (text,) = self.all("holdgate-decision")
        outcome, *rest = text.split(";")
        return {"outcome": outcome} | {
            key: value.strip('"') for key, _, value in (part.partition("=") for part in rest)
        }


@dataclass
class Seen:
    """What came back on one agent connection."""

    responses: list[Response] = field(default_factory=list)
    data: bytes = b""
    closed: bool = False

    @property
    def only(self) -> Response:
        (response,) = self.responses
        return response


def read_response(data: bytes, *, head: bool, closed: bool) -> tuple[Response, bytes] | None:
    """One response off the front of `data`, None while it is incomplete."""
    top, mark, rest = data.partition(b"\r\n\r\n")
    if not mark:
        return None
    lines = top.split(b"\r\n")
    version, status, reason = lines[0].split(b" ", 2)
    assert version == b"HTTP/1.1", data[:200]
    pairs = [line.decode("latin-1").split(": ", 1) for line in lines[1:]]
    headers = [(name, value) for name, value in pairs]
    names = {name.lower(): value for name, value in headers}
    assert len([name for name, _ in headers if name.lower() == "content-length"]) <= 1, top
    assert not ("content-length" in names and "transfer-encoding" in names), top
    code = int(status)
    if head or code in (204, 304):
        return Response(code, reason, headers, b"", True), rest
    if "transfer-encoding" in names:
        body, left, done = _dechunk(rest)
    else:
        size = int(names["content-length"])
        body, left, done = rest[:size], rest[size:], len(rest) >= size
    if not done and not closed:
        return None
    return Response(code, reason, headers, body, done), left


def _dechunk(data: bytes) -> tuple[bytes, bytes, bool]:
    body = b""
    while (line := data.partition(b"\r\n"))[1]:
        size = int(line[0], 16)
        if size == 0 and line[2][:2] == b"\r\n":
            return body, line[2][2:], True
        if len(line[2]) < size + 2:
            break
        body, data = body + line[2][:size], line[2][size + 2 :]
    return body, data, False


class Agent:
    """One raw connection to the proxy, or to an address outside whose traffic is redirected to it."""

    def __init__(self, arena: Arena, *, source: str = "127.0.0.1", to: tuple[str, int] | None = None) -> None:
        self.arena = arena
        host, _, port = arena.gate.proxy.rpartition(":")
        self.sock: socket.socket = socket.create_connection(
            to or (host, int(port)), timeout=WAIT_S, source_address=(source, 0)
        )
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""

    def connect(self, authority: str, headers: bytes = b"") -> bytes:
        """CONNECT; the first bytes of the answer."""
        name = authority.encode("latin-1")
        self.sock.sendall(b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (name, name, headers))
        answer = b""
        while b"\r\n\r\n" not in answer and (more := self.sock.recv(65536)):
            answer += more
        return answer

    def start_tls(self, name: str | None, *, verify: bool = True) -> None:
        context = self.arena.tls if verify else self.arena.tls_unchecked
        self.sock = context.wrap_socket(self.sock, server_hostname=name)

    def send(self, data: bytes) -> None:
        try:
            self.sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
            pass  # refused before everything was sent: the answer is what counts

    def end(self) -> None:
        """No more from here: a TCP half-close below TLS, which is what a broken client does."""
        try:
            socket.socket.shutdown(self.sock, socket.SHUT_WR)
        except OSError:
            pass

    def _more(self, deadline: float) -> bool | None:
        """True: bytes came; False: the end; None: the deadline."""
        left = deadline - time.monotonic()
        if left <= 0:
            return None
        self.sock.settimeout(left)
        try:
            data = self.sock.recv(65536)
        except (TimeoutError, ssl.SSLWantReadError):
            return None
        except OSError:
            return False
        self.buffer += data
        return bool(data)

    def receive(self, *, count: int = 1, head: bool = False, patience_s: float = WAIT_S) -> Seen:
        """Up to `count` responses, or what came until the end. After `patience_s` of nothing, half-close."""
        seen, deadline, ended = Seen(), time.monotonic() + patience_s, False
        while len(seen.responses) < count:
            got = read_response(self.buffer, head=head, closed=seen.closed)
            if got is not None:
                seen.responses.append(got[0])
                self.buffer = got[1]
                continue
            if seen.closed:
                break
            more = self._more(deadline)
            if more is None and not ended:
                self.end()
                ended, deadline = True, time.monotonic() + WAIT_S
            elif more is None:
                raise AssertionError(f"neither answered nor closed: {self.buffer[:200]!r}")
            elif not more:
                seen.closed = True
        seen.data = self.buffer
        return seen

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sock.close()


def until(happened: Callable[[], object]) -> None:
    """What nobody tells us of (a log line, a receipt of a connection that was closed) within a minute."""
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Arena:
    """The instance, what is outside of it, and its ledger."""

    def __init__(self, gate: Instance, upstream: Upstream) -> None:
        self.gate, self.upstream = gate, upstream
        authority = gate.state_dir / "ca" / "ca.pem"
        self.tls = ssl.create_default_context(cafile=str(authority))
        self.tls_unchecked = ssl.create_default_context(cafile=str(authority))
        self.tls_unchecked.check_hostname = False
        self.tls_unchecked.verify_mode = ssl.CERT_NONE
        self.keys = load_public_keys(gate.state_dir)
        self.reader = SqliteReader(gate.state_dir)
        self.turn = 0

    def agent(self, path: str, host: str = "", *, source: str = "127.0.0.1") -> Agent:
        """A connection that is ready for a request on this path."""
        ports = {"redirected": 443, "redirected plain": 80}
        agent = Agent(self, source=source, to=(OUTSIDE, ports[path]) if path in ports else None)
        name = host or HOSTS[path]
        if path == "tls":
            assert agent.connect(f"{name}:443").startswith(b"HTTP/1.1 200 ")
        if path in TLS_PATHS:
            agent.start_tls(name)
        return agent

    def ask(self, path: str, data: bytes, *, head: bool = False, patience_s: float = WAIT_S) -> Seen:
        with self.agent(path) as agent:
            agent.send(data)
            return agent.receive(head=head, patience_s=patience_s)

    def size(self) -> int:
        return self.reader.size

    def decisions(self, since: int) -> list[tuple[Verified, bytes]]:
        """Every decision receipt since then, oldest first, verified."""
        # The outcome of a decision may be committed between these two: more than there were.
        page = self.reader.list(limit=self.reader.size - since + 50)
        rows = [row for row in reversed(page.receipts) if row.index >= since and row.type == "decision"]
        return [(verify(row.jws, self.keys), row.jws) for row in rows]

    def outcome_of(self, receipt_id: str) -> dict[str, Any]:
        """The outcome receipt of a permit; it may follow the answer, so wait for it a little."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            for row in self.reader.list(limit=20).receipts:
                if row.type == "outcome":
                    statement = verify(row.jws, self.keys).statement
                    if statement["of"] == receipt_id:
                        return dict(statement)
        raise AssertionError(f"no outcome receipt of {receipt_id}")

    def normal(self, path: str) -> tuple[bytes, bytes]:
        """A request that is always permitted, never the same: (what to send, what must arrive)."""
        self.turn += 1
        body = b'{"q": "normal %d"}' % self.turn
        host = HOSTS[path].encode()
        at = b"http://" + host if path == "plain" else b""
        rest = b"Host: %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
            host,
            len(body),
            body,
        )
        return b"POST %b/v1/search HTTP/1.1\r\n" % at + rest, b"POST /v1/search HTTP/1.1\r\n" + rest

    def still_serves(self, path: str) -> bytes:
        """The next normal request, on a new connection, is permitted and answered; what arrived of it."""
        sent, arrives = self.normal(path)
        response = self.ask(path, sent).only
        assert (response.status, response.body) == (200, b"ok")
        assert response.decision["outcome"] == "PERMIT"
        return arrives

    def check_receipt(self, since: int, response: Response | None) -> Verified:
        """Exactly one decision since then; it verifies and says what the answer says."""
        found = self.decisions(since)
        assert len(found) == 1, [(v.statement["outcome"], v.statement["reason"]) for v, _ in found]
        verified, jws = found[0]
        if response is not None:
            told = response.decision
            assert told["id"] == verified.id
            assert told["outcome"] == verified.statement["outcome"]
            assert told["reason"] == verified.statement["reason"]
            assert told["policy"] == verified.statement["policy"]["digest"]
            assert response.all("holdgate-receipt") == [jws.decode()]
        return verified
