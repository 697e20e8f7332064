"""adapters/dispatch.py, exchange.py, pool.py: one attempt, one outcome, against scripted upstreams."""

from __future__ import annotations

import ast
import asyncio
import datetime
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import cache
from ipaddress import ip_network
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.factories import HOST, make_canonical, make_recognised, make_release

import holdgate
from holdgate.adapters import dispatch as dispatch_module
from holdgate.adapters.dispatch import HttpDispatcher, tls_context
from holdgate.adapters.exchange import UpstreamExchange
from holdgate.adapters.pool import MAX_IDLE_PER_KEY, UNREAD_BYTES, Pool, Wire
from holdgate.adapters.resolver import Address, ConnectTo, Resolver
from holdgate.answer import DispatchError
from holdgate.http1 import ServerReader
from holdgate.ledger import OutcomeStatus
from holdgate.limits import Limits
from holdgate.release import Release
from holdgate.surface.model import Deadlines

NOT_SENT, UNKNOWN = OutcomeStatus.NOT_SENT, OutcomeStatus.UNKNOWN
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
NOW_US = 1_000_000_000_000_000
LIMITS = Limits()
cached_tls = cache(tls_context)
type Script = Callable[[Peer], Awaitable[None]]


class Peer:
    """The upstream's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def request(self) -> bytes:
        """Raw bytes of the next complete request; b"" when the connection ended instead."""
        parser, raw, begun = ServerReader(LIMITS), b"", False
        while data := await self.reader.read(65536):
            raw += data
            parser.feed(data)
            if not begun and parser.head() is not None:
                parser.begin_body(100_000_000)
                begun = True
            if begun and parser.body() is not None:
                return raw
        return b""

    async def ended(self) -> bool:
        """True when the other side closed, in whatever way, without another byte."""
        try:
            return await self.reader.read(1) == b""
        except ConnectionError:
            return True


class Upstream:
    """A listener that runs `script` on each connection and keeps what it saw."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.connections = 0
        self.requests: list[bytes] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self.script(Peer(reader, writer))
        except ConnectionError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def upstream(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[Upstream]:
    served = Upstream(script)
    server = await asyncio.start_server(served.serve, "127.0.0.1", 0, ssl=tls)
    served.port = server.sockets[0].getsockname()[1]
    try:
        yield served
    finally:
        server.close()


def answers(*pieces: bytes, then: Script | None = None) -> Script:
    """Read one request, send the pieces, run `then` or close."""

    async def script(peer: Peer) -> None:
        await peer.request()
        for piece in pieces:
            peer.writer.write(piece)
            await peer.writer.drain()
        if then is not None:
            await then(peer)

    return script


async def serve_forever(peer: Peer) -> None:
    while await peer.request():
        peer.writer.write(OK)


async def hold_open(peer: Peer) -> None:
    await peer.ended()


@asynccontextmanager
async def dispatcher(
    served: Upstream | int,
    *,
    tls: bool = False,
    ca_file: str | None = None,
    limits: Limits = LIMITS,
    clock_us: Callable[[], int] = lambda: NOW_US,
    resolver: Resolver | None = None,
    events: list[str] | None = None,
) -> AsyncIterator[HttpDispatcher]:
    port = served if isinstance(served, int) else served.port
    target = ConnectTo(ip="127.0.0.1", port=port, tls=tls)
    door = HttpDispatcher(
        resolver=resolver or Resolver(lookup=never, connect_to={f"{HOST}:443": target, "*.test:443": target}),
        limits=limits,
        clock_us=clock_us,
        public_tls=cached_tls(None),
        private_tls=cached_tls(ca_file),
        on_event=None if events is None else events.append,
    )
    try:
        yield door
    finally:
        await door.close()


async def never(host: str, port: int) -> tuple[str, ...]:
    raise AssertionError("the resolver was asked")


async def body_of(exchange: object) -> bytes:
    assert isinstance(exchange, UpstreamExchange)
    body = b""
    while piece := await exchange.read():
        body += piece
    return body


def with_deadlines(**seconds: float) -> Release:
    request = make_canonical()
    deadlines = Deadlines(
        connect_s=seconds.get("connect_s"),
        first_byte_s=seconds.get("first_byte_s"),
        total_s=seconds.get("total_s"),
    )
    return make_release(request, make_recognised(request, deadlines=deadlines))


async def test_exactly_the_released_bytes_are_sent_and_the_answer_comes_back() -> None:
    seen: list[bytes] = []

    async def script(peer: Peer) -> None:
        seen.append(await peer.request())
        peer.writer.write(b"HTTP/1.1 201 Made\r\nX-A: 1\r\nContent-Length: 2\r\n\r\nok")
        await hold_open(peer)

    request = make_canonical(
        raw_target=b"/p?", headers=((b"X-b", b"1"), (b"X-B", b"caf\xc3\xa9"), (b"Authorization", b"Bearer k"))
    )
    async with upstream(script) as served, dispatcher(served) as door:
        exchange = await door.dispatch(make_release(request))
        assert (exchange.head.status, exchange.head.reason, exchange.length) == (201, b"Made", 2)
        assert exchange.head.headers == ((b"X-A", b"1"), (b"Content-Length", b"2"))
        assert await body_of(exchange) == b"ok"
    assert seen == [
        b"POST /p? HTTP/1.1\r\nHost: api.ok.test\r\nX-b: 1\r\nX-B: caf\xc3\xa9\r\n"
        b'Authorization: Bearer k\r\nContent-Length: 14\r\n\r\n{"amount":100}'
    ]


# DP1: nothing is sent.


def altered() -> Release:
    release = make_release()
    object.__setattr__(release.request, "body", b'{"amount":999}')
    return release


def framed(*headers: tuple[bytes, bytes]) -> Release:
    request = make_canonical()
    return make_release(request, make_recognised(request, headers=headers))


HOST_HEADER, LENGTH = (b"Host", b"api.ok.test"), (b"Content-Length", b"14")


@pytest.mark.parametrize(
    "release",
    [
        pytest.param(make_release(expires_us=NOW_US - 1), id="expired"),
        pytest.param(altered(), id="wire digest mismatch"),
        pytest.param(framed(LENGTH), id="no Host"),
        pytest.param(framed(HOST_HEADER, HOST_HEADER, LENGTH), id="two Hosts"),
        pytest.param(framed(HOST_HEADER), id="body without Content-Length"),
        pytest.param(framed(HOST_HEADER, (b"Content-Length", b"13")), id="wrong Content-Length"),
        pytest.param(framed(HOST_HEADER, LENGTH, LENGTH), id="two Content-Lengths"),
        pytest.param(framed(HOST_HEADER, LENGTH, (b"Transfer-Encoding", b"chunked")), id="Transfer-Encoding"),
        pytest.param(framed(HOST_HEADER, LENGTH, (b"connection", b"x")), id="Connection"),
        pytest.param(framed(HOST_HEADER, LENGTH, (b"Upgrade", b"x")), id="Upgrade"),
        pytest.param(framed(HOST_HEADER, LENGTH, (b"Expect", b"100-continue")), id="Expect"),
        pytest.param(framed(HOST_HEADER, LENGTH, (b"Proxy-Authorization", b"x")), id="Proxy-Authorization"),
        pytest.param(framed(HOST_HEADER, LENGTH, (b"Authorization", b"NTLM TlRM")), id="NTLM"),
        pytest.param(framed(HOST_HEADER, LENGTH, (b"authorization", b"negotiate x")), id="Negotiate"),
        pytest.param(framed(HOST_HEADER, LENGTH, (b"X", b"a\r\nY: b")), id="line break in a header"),
        pytest.param(framed(HOST_HEADER, LENGTH, (b"X Y", b"a")), id="space in a header name"),
    ],
)
async def test_dp1_a_bad_release_sends_nothing(release: Release) -> None:
    events: list[str] = []
    async with upstream(serve_forever) as served, dispatcher(served, events=events) as door:
        with pytest.raises(DispatchError) as caught:
            await door.dispatch(release)
        assert (caught.value.status, caught.value.http) == (NOT_SENT, 502)
        assert events == ["refused"]
        await (await door.dispatch(make_release())).read()  # the door still works
        assert served.connections == 1


async def test_dp1_a_permit_that_expires_while_connecting_sends_nothing() -> None:
    times = iter([NOW_US, NOW_US + 2])
    seen: list[bytes] = []

    async def script(peer: Peer) -> None:
        seen.append(await peer.reader.read())

    async with upstream(script) as served, dispatcher(served, clock_us=lambda: next(times)) as door:
        with pytest.raises(DispatchError, match="expired") as caught:
            await door.dispatch(make_release(expires_us=NOW_US + 1))
        assert caught.value.status is NOT_SENT
    assert b"".join(seen) == b""


async def test_a_permit_may_be_used_until_its_last_microsecond() -> None:
    async with upstream(serve_forever) as served, dispatcher(served) as door:
        assert await body_of(await door.dispatch(make_release(expires_us=NOW_US))) == b"ok"


# DP5: what an upstream can do wrong.

HEAD = b"HTTP/1.1 200 OK\r\n"
SLOW = {"first_byte_s": 0.05}
FAILURES = [
    pytest.param(answers(), {}, 502, id="close before the head"),
    pytest.param(answers(b"HTTP/1.1 200 OK\r\nX"), {}, 502, id="half a head"),
    pytest.param(
        answers(HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n"), {}, 502, id="CL and TE"
    ),
    pytest.param(answers(HEAD + b"X: a\r\n b\r\n\r\n"), {}, 502, id="obs-fold"),
    pytest.param(answers(b"nonsense\r\n", then=hold_open), {}, 502, id="bad status line"),
    pytest.param(answers(b"HTTP/1.0 200 OK\r\n\r\n"), {}, 502, id="HTTP/1.0"),
    pytest.param(
        answers(b"HTTP/1.1 101 S\r\nUpgrade: x\r\n\r\n", then=hold_open), {}, 502, id="unsolicited 101"
    ),
    pytest.param(answers(b"HTTP/1.1 100 C\r\n\r\n" * 9 + OK), {}, 502, id="nine times 100"),
    pytest.param(answers(HEAD + b"X: " + b"a" * 70_000, then=hold_open), {}, 502, id="oversized head"),
    pytest.param(answers(then=hold_open), SLOW, 504, id="no head in time"),
    pytest.param(
        answers(b"HTTP/1.1 200 OK\r\nX: ", then=hold_open), SLOW, 504, id="head not complete in time"
    ),
    pytest.param(
        answers(b"HTTP/1.1 100 C\r\n\r\n", then=hold_open), SLOW, 504, id="100 does not stop the clock"
    ),
    pytest.param(answers(then=hold_open), {"total_s": 0.05}, 504, id="total deadline before the head"),
]


@pytest.mark.parametrize(("script", "deadlines", "http"), FAILURES)
async def test_dp5_after_the_first_byte_a_failure_is_unknown(
    script: Script, deadlines: dict[str, float], http: int
) -> None:
    async with upstream(script) as served, dispatcher(served) as door:
        with pytest.raises(DispatchError) as caught:
            await door.dispatch(with_deadlines(**deadlines))
        assert (caught.value.status, caught.value.http) == (UNKNOWN, http)
        assert served.connections == 1, "never a second attempt"


async def test_limits_are_the_deadlines_when_the_operation_has_none() -> None:
    limits = Limits(first_byte_s=0.05)
    async with upstream(answers(then=hold_open)) as served, dispatcher(served, limits=limits) as door:
        with pytest.raises(DispatchError) as caught:
            await door.dispatch(make_release())
        assert caught.value.http == 504


CUTS = [
    pytest.param(
        answers(HEAD + b"Content-Length: 9\r\n\r\nhello"), {}, 502, id="close in the middle of the body"
    ),
    pytest.param(
        answers(HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"), {}, 502, id="no last chunk"
    ),
    pytest.param(
        answers(HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhelloXX", then=hold_open),
        {},
        502,
        id="bad chunk",
    ),
    pytest.param(
        answers(HEAD + b"Content-Length: 9\r\n\r\nhello", then=hold_open),
        {"total_s": 0.2},
        504,
        id="total deadline",
    ),
]


@pytest.mark.parametrize(("script", "deadlines", "http"), CUTS)
async def test_x1_a_cut_body_raises_now_and_later(
    script: Script, deadlines: dict[str, float], http: int
) -> None:
    async with upstream(script) as served, dispatcher(served) as door:
        exchange = await door.dispatch(with_deadlines(**deadlines))
        assert exchange.head.status == 200
        with pytest.raises(DispatchError) as caught:
            await body_of(exchange)
        assert (caught.value.status, caught.value.http) == (UNKNOWN, http)
        with pytest.raises(DispatchError):
            await exchange.read()
        with pytest.raises(DispatchError):
            await exchange.drain(1000)


async def test_x1_a_reset_does_not_end_a_body_without_length() -> None:
    async def reset(peer: Peer) -> None:
        sock = peer.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        peer.writer.transport.abort()

    async with upstream(answers(HEAD + b"\r\nhello", then=reset)) as served, dispatcher(served) as door:
        with pytest.raises(DispatchError):
            await body_of(await door.dispatch(make_release()))


async def test_a_body_without_length_ends_with_an_orderly_close() -> None:
    async with upstream(answers(HEAD + b"\r\nhello")) as served, dispatcher(served) as door:
        assert await body_of(await door.dispatch(make_release())) == b"hello"
        assert await body_of(await door.dispatch(make_release())) == b"hello"
        assert served.connections == 2


async def test_dp2_the_request_is_written_once_also_when_the_pooled_connection_dies_under_it() -> None:
    received: list[bytes] = []

    async def script(peer: Peer) -> None:
        received.append(await peer.request())
        peer.writer.write(OK)
        received.append(await peer.request())  # and then close without an answer

    async with upstream(script) as served, dispatcher(served) as door:
        await body_of(await door.dispatch(make_release()))
        with pytest.raises(DispatchError) as caught:
            await door.dispatch(make_release())
        assert caught.value.status is UNKNOWN
        assert served.connections == 1
    assert len(received) == 2 and received[0] == received[1]


async def test_redirects_are_answers() -> None:
    script = answers(
        b"HTTP/1.1 307 T\r\nLocation: http://evil.test/\r\nContent-Length: 0\r\n\r\n", then=hold_open
    )
    async with upstream(script) as served, dispatcher(served) as door:
        exchange = await door.dispatch(make_release())
        assert exchange.head.status == 307
        assert served.connections == 1


# DP5: what can go wrong before the first byte.


async def test_dp5_a_refused_connection_sent_nothing() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))  # bound, not listening: connecting is refused
        async with dispatcher(sock.getsockname()[1]) as door:
            with pytest.raises(DispatchError) as caught:
                await door.dispatch(make_release())
            assert (caught.value.status, caught.value.http) == (NOT_SENT, 502)


async def test_dp5_the_connect_deadline_covers_dns_and_gives_504() -> None:
    async def hang(host: str, port: int) -> tuple[str, ...]:
        await asyncio.Event().wait()
        return ()

    async with dispatcher(1, resolver=Resolver(lookup=hang)) as door:
        with pytest.raises(DispatchError) as caught:
            await door.dispatch(with_deadlines(connect_s=0.02))
        assert (caught.value.status, caught.value.http) == (NOT_SENT, 504)


@pytest.mark.parametrize("ip", ["127.0.0.1", "169.254.169.254"])
async def test_dp3_a_denied_address_is_never_dialled(ip: str) -> None:
    async def rebinding(host: str, port: int) -> tuple[str, ...]:
        return ("8.8.8.8", ip)

    async with dispatcher(1, resolver=Resolver(lookup=rebinding)) as door:
        with pytest.raises(DispatchError, match="must not be dialled") as caught:
            await door.dispatch(make_release())
        assert (caught.value.status, caught.value.http) == (NOT_SENT, 502)


async def test_dp3_a_socket_that_ends_elsewhere_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    connect_one = dispatch_module._connect_one

    async with upstream(serve_forever) as served:

        async def astray(loop: asyncio.AbstractEventLoop, address: Address) -> socket.socket:
            return await connect_one(loop, replace(address, port=served.port))

        monkeypatch.setattr(dispatch_module, "_connect_one", astray)
        async with dispatcher(served.port + 1 if served.port < 65535 else 1) as door:
            with pytest.raises(DispatchError, match="was not resolved") as caught:
                await door.dispatch(make_release())
            assert caught.value.status is NOT_SENT


async def test_dp3_a_connection_to_one_of_our_own_listeners_is_closed() -> None:
    async with upstream(serve_forever) as served:
        allow = (ip_network("127.0.0.0/8"),)

        async def lookup(host: str, port: int) -> tuple[str, ...]:
            return ("127.0.0.1",)

        resolver = Resolver(lookup=lookup, allow=allow, own=frozenset({("127.0.0.1", served.port)}))
        request = make_canonical(scheme="http", port=served.port)
        async with dispatcher(served, resolver=resolver) as door:
            with pytest.raises(DispatchError, match="own listener"):
                await door.dispatch(make_release(request))
        assert served.connections == 0


async def test_an_upstream_that_speaks_before_the_request_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check = HttpDispatcher._check_time

    def late(self: HttpDispatcher, release: Release, wire: Wire | None) -> None:
        if wire is not None:
            wire.data_received(b"HTTP/1.1 200 OK\r\n")
        check(self, release, wire)

    monkeypatch.setattr(HttpDispatcher, "_check_time", late)
    async with upstream(serve_forever) as served, dispatcher(served) as door:
        with pytest.raises(DispatchError) as caught:
            await door.dispatch(make_release())
        assert (caught.value.status, caught.value.http) == (NOT_SENT, 502)


async def test_the_next_address_is_tried_when_one_refuses_or_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    connect_one = dispatch_module._connect_one
    tried: list[str] = []
    cancelled: list[str] = []

    async def connect(loop: asyncio.AbstractEventLoop, address: Address) -> socket.socket:
        tried.append(address.ip)
        if address.ip == "127.0.0.2":
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(address.ip)
                raise
        if address.family == socket.AF_INET6:
            raise ConnectionRefusedError
        return await connect_one(loop, address)

    async def lookup(host: str, port: int) -> tuple[str, ...]:
        return ("127.0.0.2", "127.0.0.1", "fd00::1", "fd00::2")

    monkeypatch.setattr(dispatch_module, "_connect_one", connect)
    monkeypatch.setattr(dispatch_module, "EYEBALL_DELAY_S", 0.01)
    allow = (ip_network("127.0.0.0/8"), ip_network("fd00::/8"))
    async with upstream(serve_forever) as served:
        request = make_canonical(scheme="http", port=served.port)
        async with dispatcher(served, resolver=Resolver(lookup=lookup, allow=allow)) as door:
            assert await body_of(await door.dispatch(make_release(request))) == b"ok"
            assert served.connections == 1
        assert tried == ["127.0.0.2", "fd00::1", "127.0.0.1"], "families alternate"
        assert cancelled == ["127.0.0.2"]


async def test_when_every_address_fails_nothing_was_sent() -> None:
    async def lookup(host: str, port: int) -> tuple[str, ...]:
        return ("127.0.0.1", "127.0.0.2")

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        request = make_canonical(scheme="http", port=sock.getsockname()[1])
        resolver = Resolver(lookup=lookup, allow=(ip_network("127.0.0.0/8"),))
        async with dispatcher(1, resolver=resolver) as door:
            with pytest.raises(DispatchError) as caught:
                await door.dispatch(make_release(request))
            assert (caught.value.status, caught.value.http) == (NOT_SENT, 502)


# TLS.


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[ssl.SSLContext, str]]:
    """Makes a server context for a name, and the file of the CA that signed its certificate."""
    folder = tmp_path_factory.mktemp("pki")
    now = datetime.datetime.now(datetime.UTC)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")])

    def build(subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(ca_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )

    ca = build(ca_name, ca_key).add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    ca_file = folder / "ca.pem"
    ca_file.write_bytes(ca.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def serve(name: str) -> tuple[ssl.SSLContext, str]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])  # must not count
        leaf = build(subject, key)
        if name:
            leaf = leaf.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        pem = folder / f"{name}.pem"
        pem.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + leaf.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        return context, str(ca_file)

    return serve


type Pki = Callable[[str], tuple[ssl.SSLContext, str]]


async def test_tls_is_verified_for_the_surface_host_and_connections_are_reused(pki: Pki) -> None:
    context, ca_file = pki(HOST)
    names: list[str | None] = []
    context.sni_callback = lambda _sock, name, _context: names.append(name)
    async with (
        upstream(serve_forever, context) as served,
        dispatcher(served, tls=True, ca_file=ca_file) as door,
    ):
        for _ in range(3):
            assert await body_of(await door.dispatch(make_release())) == b"ok"
        assert served.connections == 1
    assert names == [HOST]


@pytest.mark.parametrize(
    ("name", "trusted"),
    [
        pytest.param("other.test", True, id="another name in the certificate, ours only as common name"),
        pytest.param("", True, id="only a common name"),
        pytest.param("*.test", True, id="wildcard over two labels"),
        pytest.param(HOST, False, id="a CA that is not trusted"),
    ],
)
async def test_dp5_a_certificate_that_does_not_verify_sends_nothing(
    pki: Pki, name: str, trusted: bool
) -> None:
    context, ca_file = pki(name)
    seen: list[bytes] = []

    async def script(peer: Peer) -> None:
        seen.append(await peer.reader.read())

    async with (
        upstream(script, context) as served,
        dispatcher(served, tls=True, ca_file=ca_file if trusted else None) as door,
    ):
        with pytest.raises(DispatchError, match="certificate verify failed") as caught:
            await door.dispatch(make_release())
        assert (caught.value.status, caught.value.http) == (NOT_SENT, 502)
    assert b"".join(seen) == b""


async def test_the_extra_ca_is_trusted_only_for_names_in_connect_to(pki: Pki) -> None:
    context, ca_file = pki(HOST)

    async def lookup(host: str, port: int) -> tuple[str, ...]:
        return ("127.0.0.1",)

    resolver = Resolver(lookup=lookup, allow=(ip_network("127.0.0.0/8"),))
    async with upstream(serve_forever, context) as served:
        request = make_canonical(port=served.port)
        async with dispatcher(served, resolver=resolver, ca_file=ca_file) as door:
            with pytest.raises(DispatchError, match="certificate verify failed"):
                await door.dispatch(make_release(request))


async def test_an_upstream_without_tls_gets_no_plain_request(pki: Pki) -> None:
    seen: list[bytes] = []

    async def script(peer: Peer) -> None:
        seen.append(await peer.reader.read(65536))
        peer.writer.write(OK)

    async with upstream(script) as served, dispatcher(served, tls=True) as door:
        with pytest.raises(DispatchError) as caught:
            await door.dispatch(make_release())
        assert caught.value.status is NOT_SENT
    assert seen[0][:1] == b"\x16", "a TLS ClientHello"
    assert b"POST" not in seen[0]


async def test_x1_a_truncated_tls_stream_does_not_end_a_body_without_length(pki: Pki) -> None:
    context, ca_file = pki(HOST)

    async def cut(peer: Peer) -> None:
        # FIN without close_notify: what an attacker on the path can do.
        raw = peer.writer.transport._ssl_protocol._transport  # type: ignore[attr-defined]
        raw.get_extra_info("socket")._sock.shutdown(socket.SHUT_WR)

    async with (
        upstream(answers(HEAD + b"\r\nhello", then=cut), context) as served,
        dispatcher(served, tls=True, ca_file=ca_file) as door,
    ):
        with pytest.raises(DispatchError):
            await body_of(await door.dispatch(make_release()))


async def test_a_body_without_length_may_end_with_close_notify(pki: Pki) -> None:
    context, ca_file = pki(HOST)
    async with (
        upstream(answers(HEAD + b"\r\nhello"), context) as served,
        dispatcher(served, tls=True, ca_file=ca_file) as door,
    ):
        assert await body_of(await door.dispatch(make_release())) == b"hello"


def test_tls_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "no such file"))
    context = tls_context()
    assert context.verify_mode is ssl.CERT_REQUIRED and context.check_hostname
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.keylog_filename is None
    assert context.cert_store_stats()["x509_ca"] > 50


# The pool.


async def test_dp4_a_connection_is_reused_after_an_exact_exchange() -> None:
    events: list[str] = []
    async with upstream(serve_forever) as served, dispatcher(served, events=events) as door:
        for _ in range(3):
            assert await body_of(await door.dispatch(make_release())) == b"ok"
        assert served.connections == 1
    assert events == ["connect", "reuse", "reuse"]


async def test_p2_connections_are_not_shared_between_agents_principals_hosts_or_generations() -> None:
    async with upstream(serve_forever) as served, dispatcher(served) as door:
        request = make_canonical()
        other_host = make_canonical(host="api.other.test")
        releases = [
            make_release(),
            make_release(agent="other-bot"),
            make_release(request, make_recognised(request, principal="e" * 32)),
            make_release(request, make_recognised(request, principal=None)),
            make_release(other_host),
        ]
        for release in releases:
            await body_of(await door.dispatch(release))
        assert served.connections == 5
        await body_of(await door.dispatch(make_release()))
        assert served.connections == 5
        door.renew(1)
        await body_of(await door.dispatch(make_release()))
        assert served.connections == 6


async def test_an_exchange_of_an_old_generation_does_not_return_to_the_pool() -> None:
    more, closed = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        peer.writer.write(HEAD + b"Content-Length: 6\r\n\r\none")
        await more.wait()
        peer.writer.write(b"two")
        await peer.ended()
        closed.set()

    async with upstream(script) as served, dispatcher(served) as door:
        exchange = await door.dispatch(make_release())
        door.renew(1)
        more.set()
        assert await body_of(exchange) == b"onetwo"
        async with asyncio.timeout(60):
            await closed.wait()


async def run_twice(
    script: Script,
    between: Callable[[Upstream], Awaitable[None]] | None = None,
    limits: Limits = LIMITS,
) -> tuple[Upstream, bytes]:
    """Two exchanges of one agent; the second one's body and the upstream that served both."""
    async with upstream(script) as served, dispatcher(served, limits=limits) as door:
        await body_of(await door.dispatch(make_release()))
        if between is not None:
            await between(served)
        body = await body_of(await door.dispatch(make_release()))
    return served, body


FORGED = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"


async def test_dp4_a_byte_after_the_body_is_never_the_next_answer() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        peer.writer.write(OK + FORGED)
        await hold_open(peer)

    served, body = await run_twice(script)
    assert body == b"ok"
    assert served.connections == 2


async def test_p1_a_byte_on_an_idle_connection_closes_it() -> None:
    closed: list[bool] = []
    speak = asyncio.Event()
    spoken = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        peer.writer.write(OK)
        await speak.wait()
        if not spoken.is_set():
            peer.writer.write(FORGED)
            spoken.set()
            closed.append(await peer.ended())

    async def between(served: Upstream) -> None:
        speak.set()
        await spoken.wait()
        async with asyncio.timeout(60):  # before anybody asks for it again
            while not closed:
                await asyncio.sleep(0)

    served, body = await run_twice(script, between, replace(LIMITS, idle_s=600))
    assert body == b"ok"
    assert served.connections == 2
    assert closed == [True]


@pytest.mark.parametrize(
    "head",
    [b"Connection: close\r\nContent-Length: 2\r\n\r\nok", b"Content-Length: 2\r\n\r\nok"],
    ids=["announced", "not announced"],
)
async def test_a_connection_that_the_upstream_closes_is_not_used_again(head: bytes) -> None:
    gone = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        peer.writer.write(HEAD + head)
        peer.writer.close()
        gone.set()

    async def between(served: Upstream) -> None:
        await gone.wait()

    served, body = await run_twice(script, between)
    assert (body, served.connections) == (b"ok", 2)


@pytest.mark.parametrize("what", [b"x", b""], ids=["byte", "end"])
async def test_dp4_what_only_the_kernel_has_seen_yet_makes_a_connection_stale(what: bytes) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        loop = asyncio.get_running_loop()
        wire = Wire(loop, lambda _: None)
        await loop.create_connection(lambda: wire, sock=ours)
        pool = Pool(loop, 60.0)
        key = ("agent", None, "https", HOST, 443, 0)
        pool.put(key, wire)
        assert pool.take(key) is wire
        pool.put(key, wire)
        # No await from here on, so the event loop cannot have noticed.
        theirs.sendall(what) if what else theirs.shutdown(socket.SHUT_WR)
        assert pool.take(key) is None
        assert wire.transport is not None and wire.transport.is_closing()


class FakeLoop:
    """Only the clock and timers, moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.at: list[FakeTimer] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when_s: float, call: Callable[[], None]) -> FakeTimer:
        self.at.append(FakeTimer(self, when_s, call))
        return self.at[-1]

    def run_to(self, now: float) -> None:
        self.now = now
        for timer in [timer for timer in self.at if timer.when_s <= now]:
            self.at.remove(timer)
            timer.call()

    def call_later(self, delay: float, call: Callable[[], None]) -> FakeLoop:
        self.timers.append((self.now + delay, call))
        return self

    def cancel(self) -> None:
        self.timers.clear()


class FakeTimer:
    def __init__(self, loop: FakeLoop, when_s: float, call: Callable[[], None]) -> None:
        self.loop, self.when_s, self.call = loop, when_s, call

    def when(self) -> float:
        return self.when_s

    def cancel(self) -> None:
        self.loop.at.remove(self)


def test_a_deadline_counts_only_while_it_is_set_and_an_earlier_one_moves_the_timer() -> None:
    loop = FakeLoop()
    wire = Wire(loop, lambda _: None)  # type: ignore[arg-type]
    wire.arm(10.0)
    wire.arm(60.0)
    assert len(loop.at) == 1, "no second timer for a later deadline"
    loop.run_to(10.0)
    assert not wire.expired
    wire.arm(20.0)
    assert [timer.when_s for timer in loop.at] == [20.0]
    loop.run_to(20.0)
    assert wire.expired
    wire.arm(30.0)
    assert not wire.expired
    wire.disarm()
    loop.run_to(30.0)
    assert not wire.expired and loop.at == []


class FakeWire:
    def __init__(self) -> None:
        self.idle_until_s, self.fresh, self.aborted = 0.0, True, False
        self.on_stray: object = None

    def abort(self) -> None:
        self.aborted = True


def test_idle_connections_are_bounded_and_end_in_time() -> None:
    loop = FakeLoop()
    pool = Pool(loop, 10.0)  # type: ignore[arg-type]
    key = ("agent", None, "https", HOST, 443, 0)
    wires = [FakeWire() for _ in range(MAX_IDLE_PER_KEY + 1)]
    for wire in wires:
        pool.put(key, wire)  # type: ignore[arg-type]
    assert [wire.aborted for wire in wires] == [False] * MAX_IDLE_PER_KEY + [True]
    loop.now = 9.9
    newest = pool.take(key)
    assert newest is wires[-2]  # type: ignore[comparison-overlap]
    loop.now = 10.0
    assert pool.take(key) is None, "too old, though the sweep has not run"
    assert all(wire.aborted for wire in wires if wire is not newest)
    other = FakeWire()
    pool.put(key, other)  # type: ignore[arg-type]
    loop.now = 20.0
    loop.timers[0][1]()
    assert other.aborted, "the sweep closes what nobody asks for"


# Bodies: streaming, back-pressure, drain.


async def test_p3_an_upstream_faster_than_the_agent_is_paused() -> None:
    size = 8_000_000
    script = answers(HEAD + b"Content-Length: %d\r\n\r\n" % size, b"x" * size, then=hold_open)
    async with upstream(script) as served, dispatcher(served) as door:
        exchange = await door.dispatch(make_release())
        assert isinstance(exchange, UpstreamExchange)
        wire = exchange._wire
        transport = wire.transport
        assert transport is not None
        while transport.is_reading():
            await asyncio.sleep(0)
        assert UNREAD_BYTES < exchange._reader.buffered_bytes <= 2 * UNREAD_BYTES
        assert len(await body_of(exchange)) == size
        assert not wire.lost


async def test_the_total_deadline_is_that_of_a_slow_agent_too() -> None:
    script = answers(HEAD + b"Content-Length: 8000000\r\n\r\n", b"x" * 8_000_000, then=hold_open)
    async with upstream(script) as served, dispatcher(served) as door:
        exchange = await door.dispatch(with_deadlines(total_s=0.2))
        assert isinstance(exchange, UpstreamExchange)
        while not exchange._wire.expired:
            await asyncio.sleep(0.01)
        assert await exchange.read(), "what was taken before"
        with pytest.raises(DispatchError, match="the total deadline passed") as caught:
            await exchange.read()
        assert caught.value.http == 504


async def test_pieces_come_as_they_arrive() -> None:
    more = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        peer.writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        await more.wait()
        peer.writer.write(b"3\r\ntwo\r\n0\r\n\r\n")
        await hold_open(peer)

    async with upstream(script) as served, dispatcher(served) as door:
        exchange = await door.dispatch(make_release())
        assert exchange.length is None
        assert await exchange.read() == b"one"
        assert await exchange.drain(1000) is None, "a stream is never waited for"
        more.set()
        assert await exchange.read() == b"two"
        assert await exchange.read() == b""
        assert await exchange.read() == b""


async def test_x3_a_short_answer_frees_its_connection_before_it_is_read() -> None:
    async with upstream(serve_forever) as served, dispatcher(served) as door:
        first = await door.dispatch(make_release())
        second = await door.dispatch(make_release())
        assert served.connections == 1
        assert (await body_of(first), await second.drain(10)) == (b"ok", b"ok")


async def test_a_long_answer_keeps_its_connection_until_it_is_read() -> None:
    more = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        peer.writer.write(HEAD + b"Content-Length: 6\r\n\r\none")
        await more.wait()
        peer.writer.write(b"two")
        await hold_open(peer)

    async with upstream(script) as served, dispatcher(served) as door:
        first = await door.dispatch(make_release())
        second = await door.dispatch(make_release())
        assert served.connections == 2
        more.set()
        assert (await body_of(first), await body_of(second)) == (b"onetwo", b"onetwo")


async def test_x2_drain_returns_a_short_announced_body_even_in_pieces() -> None:
    script = answers(HEAD + b"Content-Length: 6\r\n\r\n", b"one", b"two", then=hold_open)
    async with upstream(script) as served, dispatcher(served) as door:
        exchange = await door.dispatch(make_release())
        assert await exchange.drain(6) == b"onetwo"
        assert await exchange.read() == b""


@pytest.mark.parametrize(
    "framing",
    [b"Content-Length: 6\r\n\r\nonetwo", b"Transfer-Encoding: chunked\r\n\r\n6\r\nonetwo\r\n0\r\n\r\n"],
    ids=["length", "chunked"],
)
async def test_x2_what_drain_refuses_is_still_read_once(framing: bytes) -> None:
    async with upstream(answers(HEAD + framing, then=hold_open)) as served, dispatcher(served) as door:
        exchange = await door.dispatch(make_release())
        assert await exchange.drain(5) is None
        assert await body_of(exchange) == b"onetwo"
        assert await exchange.drain(5) == b""


async def test_drain_of_an_answer_without_a_body() -> None:
    request = make_canonical(method="HEAD", headers=(), body=b"")
    script = answers(HEAD + b"Content-Length: 1000000\r\n\r\n", then=hold_open)
    async with upstream(script) as served, dispatcher(served) as door:
        exchange = await door.dispatch(make_release(request))
        assert (exchange.length, await exchange.drain(10)) == (1_000_000, b"")


async def test_a_large_request_is_sent_to_a_slow_reader() -> None:
    async def script(peer: Peer) -> None:
        await asyncio.sleep(0)
        assert len(await peer.request()) > 9_000_000
        peer.writer.write(OK)
        await hold_open(peer)

    request = make_canonical(body=b"x" * 9_000_000)
    async with upstream(script) as served, dispatcher(served) as door:
        assert await body_of(await door.dispatch(make_release(request))) == b"ok"


async def test_x3_an_early_answer_is_taken_and_its_connection_not_reused() -> None:
    async def script(peer: Peer) -> None:
        await peer.reader.read(10)
        peer.writer.write(b"HTTP/1.1 413 Too large\r\nContent-Length: 0\r\n\r\n")
        await peer.writer.drain()
        peer.reader._transport.pause_reading()  # type: ignore[attr-defined]
        await release_peer.wait()

    release_peer = asyncio.Event()
    request = make_canonical(body=b"x" * 20_000_000)
    async with upstream(script) as served, dispatcher(served) as door:
        exchange = await door.dispatch(make_release(request))
        assert exchange.head.status == 413
        assert isinstance(exchange, UpstreamExchange)
        assert exchange._wire.transport is not None and exchange._wire.transport.is_closing()
        release_peer.set()


async def test_an_upstream_that_does_not_read_meets_the_total_deadline() -> None:
    async def script(peer: Peer) -> None:
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await done.wait()

    done = asyncio.Event()
    request = make_canonical(body=b"x" * 20_000_000)
    deadlines = Deadlines(connect_s=None, first_byte_s=None, total_s=1.0)
    release = make_release(request, make_recognised(request, deadlines=deadlines))
    async with upstream(script) as served, dispatcher(served) as door:
        with pytest.raises(DispatchError) as caught:
            await door.dispatch(release)
        assert (caught.value.status, caught.value.http) == (UNKNOWN, 504)
        done.set()


# DP6: leaving early.


async def test_dp6_an_abandoned_exchange_closes_its_connection() -> None:
    closed: list[bool] = []

    async def watch(peer: Peer) -> None:
        closed.append(await peer.ended())

    script = answers(HEAD + b"Content-Length: 9\r\n\r\nhello", then=watch)
    limits = replace(LIMITS, idle_s=600)  # not because it was idle
    async with upstream(script) as served, dispatcher(served, limits=limits) as door:
        exchange = await door.dispatch(make_release())
        exchange.abandon()
        exchange.abandon()
        with pytest.raises(DispatchError):
            await exchange.read()
        async with asyncio.timeout(60):
            while not closed:
                await asyncio.sleep(0)
    assert closed == [True]


async def test_abandoning_a_finished_exchange_leaves_the_pool_alone() -> None:
    async with upstream(serve_forever) as served, dispatcher(served) as door:
        exchange = await door.dispatch(make_release())
        await body_of(exchange)
        exchange.abandon()
        await body_of(await door.dispatch(make_release()))
        assert served.connections == 1


@pytest.mark.parametrize(
    "first",
    [b"", HEAD, HEAD + b"Content-Length: 9\r\n\r\nhello"],
    ids=["before the head", "in the head", "in the body"],
)
async def test_dp6_cancelling_closes_the_connection(first: bytes) -> None:
    arrived, closed = asyncio.Event(), asyncio.Event()

    async def watch(peer: Peer) -> None:
        arrived.set()
        await peer.ended()
        closed.set()

    async def exchange_all(door: HttpDispatcher) -> None:
        await body_of(await door.dispatch(make_release()))

    async with upstream(answers(first, then=watch)) as served, dispatcher(served) as door:
        task = asyncio.create_task(exchange_all(door))
        await arrived.wait()
        for _ in range(20):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await closed.wait()
        assert served.connections == 1


async def test_close_ends_idle_and_running_exchanges_and_refuses_new_ones() -> None:
    script = answers(HEAD + b"Content-Length: 9\r\n\r\nhello", then=hold_open)
    async with upstream(script) as served, dispatcher(served) as door:
        exchange = await door.dispatch(make_release())
        await exchange.read()
        await door.close()
        with pytest.raises(DispatchError):
            await exchange.read()
        with pytest.raises(DispatchError, match="closed") as caught:
            await door.dispatch(make_release())
        assert caught.value.status is NOT_SENT


# DP7: nothing else leaves.

OPENERS = {
    *{
        "open_connection",
        "create_connection",
        "open_unix_connection",
        "create_unix_connection",
        "sock_connect",
    },
    *{
        "create_datagram_endpoint",
        "connect_ex",
        "ClientSession",
        "urlopen",
        "HTTPConnection",
        "HTTPSConnection",
    },
}
CLIENT_MODULES = {
    "requests",
    "urllib.request",
    "http.client",
    "httpx",
    "urllib3",
    "socketserver",
    "smtplib",
    "ftplib",
    "asyncpg",
}
# Who may open what, and why. Adding a line here is a decision about what can leave the machine.
ALLOWED = {
    "adapters/dispatch.py": {"create_connection", "sock_connect"},  # the outer door
    "adapters/resolver.py": {"create_datagram_endpoint", "open_connection"},  # DNS, only after PERMIT
    # The remote gate of holdgate.yaml, which decides in place of the policies here.
    "adapters/gate_client.py": {"ClientSession"},
    # Providers of facts: addresses of holdgate.yaml alone, before the decision (FS3).
    "adapters/fact_sources.py": {"ClientSession"},
    # Witnesses and time stamps: the URLs of `log:` alone, from a thread of its own.
    "adapters/anchoring.py": {"HTTPConnection", "HTTPSConnection", "http.client"},
    # A worker and its gate process: a Unix socket in the state directory, whose peer's user is checked.
    "adapters/gate_line.py": {"create_unix_connection", "sock_connect"},
    # The database of `store:`, and no other address; the others know asyncpg's errors only.
    "adapters/postgres_link.py": {"asyncpg"},
    **{
        f"adapters/postgres{name}.py": {"asyncpg"}
        for name in ("", "_dialect", "_reader", "_rows", "_server", "_sql", "_store")
    },
    # `holdgate signer`: a process of its own, on a Unix socket.
    "adapters/signer_server.py": {"socketserver"},
    # Tries to get out where an agent stands: sent there by `holdgate doctor`, never imported by `run`.
    "adapters/doctor/probe.py": {"create_connection"},
    # `reconcile ask`: an agent of its own, which speaks to the proxy's listener alone, never part of `run`.
    "adapters/asking.py": {"create_connection"},
    # `receipts export --syslog|--http`: run by an operator, in a process of its own, never by `run`.
    "adapters/exporting.py": {"create_connection", "http.client", "urllib.request"},
    "cli/verify.py": {
        "http.client",
        "urllib.request",
        "urlopen",
    },  # `verify --keys URL`: run by an operator, never while serving
    "demo": {"urllib.request", "urlopen"},  # plays the agent against stand-ins; never part of `run`
}


def openers_in(source: str) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found |= {alias.name for alias in names} & CLIENT_MODULES
            case ast.ImportFrom(module=str(module), names=names):
                full = {f"{module}.{alias.name}" for alias in names} | {module}
                found |= (full & CLIENT_MODULES) | ({alias.name for alias in names} & OPENERS)
            case ast.Attribute(attr=name) | ast.Name(id=name):
                found |= {name} & OPENERS
            case _:
                pass
    return found


def test_dp7_only_the_outer_door_and_dns_open_connections() -> None:
    root = Path(holdgate.__file__).parent
    seen = 0
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        allowed = set().union(
            *[may for prefix, may in ALLOWED.items() if name == prefix or name.startswith(f"{prefix}/")]
        )
        found = openers_in(path.read_text(encoding="utf-8"))
        seen += 1
        assert found <= allowed, f"{name} opens connections: {sorted(found - allowed)}"
    assert seen > 20


def test_dp7_the_search_finds_what_it_is_for() -> None:
    assert openers_in("import asyncio\nasync def f():\n    await asyncio.open_connection('a', 1)") == {
        "open_connection"
    }
    assert openers_in("from asyncio import open_connection as o") == {"open_connection"}
    assert openers_in("import urllib.request") == {"urllib.request"}
    assert openers_in("from urllib import request") == {"urllib.request"}
    assert openers_in("import aiohttp\ns = aiohttp.ClientSession()") == {"ClientSession"}
    assert openers_in("connect = loop.sock_connect") == {"sock_connect"}
