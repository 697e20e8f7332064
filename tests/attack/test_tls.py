"""ClientHellos that come late, in pieces, with odd names, with an encrypted one inside, or not at all."""

from __future__ import annotations

import ssl
import struct
from collections.abc import Callable, Iterator
from typing import Final

import pytest
from OpenSSL import SSL

from attack.arena import Agent, Arena, read_response, until

pytestmark = pytest.mark.slow

GET: Final = b"GET /v1/search?q=a HTTP/1.1\r\nHost: api.ok.test\r\n\r\n"


class Peer:
    """A TLS client whose records are sent by hand."""

    def __init__(self, agent: Agent, name: bytes | None) -> None:
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_verify(SSL.VERIFY_NONE, lambda *_: True)
        self.agent, self.tls = agent, SSL.Connection(context, None)
        if name is not None:
            self.tls.set_tlsext_host_name(name)
        self.tls.set_connect_state()

    def flight(self) -> bytes:
        """What the client has to say now."""
        try:
            self.tls.do_handshake()
        except SSL.WantReadError:
            pass
        return self.pending()

    def pending(self) -> bytes:
        try:
            return self.tls.bio_read(65536)
        except SSL.WantReadError:
            return b""

    def finish(self, first: bytes) -> None:
        """The handshake, from its first flight on. Raises SSL.Error when the server ends it."""
        self.agent.send(first)
        while True:
            data = self.agent.sock.recv(65536)
            if not data:
                raise SSL.Error("closed")
            self.tls.bio_write(data)
            try:
                self.tls.do_handshake()
            except SSL.WantReadError:
                continue
            self.agent.send(self.pending())
            return

    def ask(self, request: bytes) -> dict[str, str]:
        self.tls.sendall(request)
        self.agent.send(self.pending())
        answer = b""
        while (got := read_response(answer, head=False, closed=False)) is None:
            self.tls.bio_write(self.agent.sock.recv(65536))
            try:
                answer += self.tls.recv(65536)
            except SSL.WantReadError:
                continue
        return got[0].decision


def tunnel(arena: Arena) -> Agent:
    agent = Agent(arena)
    assert agent.connect("api.ok.test:443").startswith(b"HTTP/1.1 200 ")
    return agent


def by_octets(hello: bytes) -> Iterator[bytes]:
    return (hello[at : at + 1] for at in range(len(hello)))


def by_records(hello: bytes) -> Iterator[bytes]:
    """RFC 8446 5.1: a handshake message may be split over records."""
    version, message = hello[1:3], hello[5:]
    for at in range(0, len(message), 50):
        piece = message[at : at + 50]
        yield b"\x16" + version + struct.pack(">H", len(piece)) + piece


@pytest.mark.parametrize("cut", [by_octets, by_records])
def test_a_hello_in_pieces_is_one_hello(arena: Arena, cut: Callable[[bytes], Iterator[bytes]]) -> None:
    """Large hellos (post-quantum keys) come in several segments; none of them is a reason to refuse."""
    with tunnel(arena) as agent:
        peer = Peer(agent, b"api.ok.test")
        *first, last = cut(peer.flight())
        for piece in first:
            agent.send(piece)
        peer.finish(last)
        assert peer.ask(GET)["outcome"] == "PERMIT"


NAMES: Final = {
    "another name": b"evil.test",
    "a dot at the end": b"api.ok.test.",
    "a dot before": b".api.ok.test",
    "a suffix": b"api.ok.test.evil.test",
    "an address": b"127.0.0.1",
    "a wildcard": b"*.ok.test",
    "an underscore": b"api_ok.test",
    "a space": b"api.ok.test ",
    "a slash": b"api.ok.test/",
    "a line end": b"api.ok.test\r\nHost: evil.test",
    "a byte above 127": b"api.ok.t\xe9st",
    "punycode of nothing": b"xn--.ok.test",
    "255 letters": b"a" * 255,
    "none at all": None,
}


@pytest.mark.parametrize("name", [pytest.param(value, id=key) for key, value in NAMES.items()])
def test_a_name_that_is_not_the_hosts_is_no_permit(arena: Arena, name: bytes | None) -> None:
    since, mark = arena.size(), arena.upstream.mark()
    with tunnel(arena) as agent:
        peer = Peer(agent, name)
        try:
            peer.finish(peer.flight())
        except SSL.Error:
            pass  # no handshake, no request
        else:
            assert peer.ask(GET)["reason"] in ("identity_mismatch", "malformed_request")
    until(lambda: len(arena.decisions(since)) == 1)
    assert arena.decisions(since)[0][0].statement["outcome"] == "SILENCE"
    assert arena.upstream.since(mark) == [] and len(arena.upstream.queries) == mark.queries
    arena.still_serves("tls")


def test_host_names_have_no_case(arena: Arena) -> None:
    with tunnel(arena) as agent:
        peer = Peer(agent, b"API.ok.TEST")
        peer.finish(peer.flight())
        assert peer.ask(GET)["outcome"] == "PERMIT"


def with_extension(hello: bytes, number: int, value: bytes) -> bytes:
    """The hello with one extension more. Nobody can finish this handshake: its transcript is another."""
    body = hello[9:]
    at = 34
    at += 1 + body[at]  # session id
    at += 2 + int.from_bytes(body[at : at + 2])  # cipher suites
    at += 1 + body[at]  # compression
    extensions = body[at + 2 :] + struct.pack(">HH", number, len(value)) + value
    message = body[:at] + struct.pack(">H", len(extensions)) + extensions
    handshake = b"\x01" + len(message).to_bytes(3) + message
    return hello[:3] + struct.pack(">H", len(handshake)) + handshake


HELLOS: Final = {
    # An encrypted inner hello (draft-ietf-tls-esni): ours is the only key, so the outer name is all there is.
    "BYP-TLS-09 an encrypted hello inside": lambda hello: with_extension(hello, 0xFE0D, b"\0" + b"\1" * 120),
    "a second server name": lambda hello: with_extension(hello, 0, b"\0\x0c\0\0\x09evil.test"),
    "half a hello": lambda hello: hello[: len(hello) // 2],
    "a hello twice": lambda hello: hello + hello,
    "a length that says more": lambda hello: hello[:5] + b"\x01\xff\xff\xff" + hello[9:],
    "SSL 2": lambda _hello: b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10" + b"\1" * 37,
    "an alert": lambda _hello: b"\x15\x03\x01\x00\x02\x02\x28",
    "data before a handshake": lambda _hello: b"\x17\x03\x03\x00\x05hello",
    "65535 bytes announced": lambda _hello: b"\x16\x03\x01\xff\xff\x01" + b"\0" * 100,
    "an empty record": lambda _hello: b"\x16\x03\x01\x00\x00",
}


@pytest.mark.parametrize("change", [pytest.param(value, id=key) for key, value in HELLOS.items()])
def test_a_hello_that_leads_nowhere_leaves_a_receipt(arena: Arena, change: Callable[[bytes], bytes]) -> None:
    since, mark = arena.size(), arena.upstream.mark()
    with tunnel(arena) as agent:
        agent.send(change(Peer(agent, b"api.ok.test").flight()))
        agent.end()
        while agent.sock.recv(65536):
            pass
    until(lambda: len(arena.decisions(since)) == 1)
    told = arena.decisions(since)[0][0].statement
    assert (told["outcome"], told["reason"]) == ("SILENCE", "unsupported_protocol")
    assert arena.upstream.since(mark) == [] and len(arena.upstream.queries) == mark.queries
    arena.still_serves("plain")


def test_a_hello_that_never_ends_meets_the_head_deadline(arena: Arena) -> None:
    since = arena.size()
    with tunnel(arena) as agent:
        hello = Peer(agent, b"api.ok.test").flight()
        for piece in by_octets(hello[:-1]):  # each piece is progress, and none of it moves the deadline
            agent.send(piece)
        assert agent.receive().closed
    until(lambda: len(arena.decisions(since)) == 1)
    assert arena.decisions(since)[0][0].statement["reason"] == "unsupported_protocol"


def test_tls_inside_tls_is_closed(arena: Arena) -> None:
    since, mark = arena.size(), arena.upstream.mark()
    with arena.agent("tls") as agent:
        agent.send(Peer(agent, b"evil.test").flight())
        assert agent.receive().closed
    until(lambda: len(arena.decisions(since)) == 1)
    assert arena.decisions(since)[0][0].statement["reason"] == "unsupported_protocol"
    assert arena.upstream.since(mark) == []


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1], ids=lambda v: v.name)
def test_old_tls_is_not_spoken(arena: Arena, version: ssl.TLSVersion) -> None:
    context = ssl.create_default_context(cafile=str(arena.gate.state_dir / "ca" / "ca.pem"))
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    since = arena.size()
    with tunnel(arena) as agent, pytest.raises((ssl.SSLError, ConnectionError)):
        context.wrap_socket(agent.sock, server_hostname="api.ok.test")
    until(lambda: len(arena.decisions(since)) == 1)
