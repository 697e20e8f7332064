"""adapters/resolver.py and dnswire.py: which addresses may be dialled, connect_to, the stub resolver."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdgate.adapters.dnswire import AAAA, A, BadAnswer, build_query, parse_answer
from holdgate.adapters.resolver import (
    Address,
    ConnectTo,
    Lookup,
    ResolveError,
    Resolver,
    denied,
    dns_lookup,
    system_lookup,
)
from ports import free_port


def answering(*ips: str) -> Lookup:
    async def lookup(host: str, port: int) -> tuple[str, ...]:
        return ips

    return lookup


async def never(host: str, port: int) -> tuple[str, ...]:
    raise AssertionError("the resolver was asked")


@pytest.mark.parametrize(
    "ip",
    [
        *["0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.254"],
        *["168.63.129.16", "169.254.169.254", "169.254.170.2", "172.16.0.1", "172.31.255.255", "192.0.0.192"],
        *[
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
        ],
        *["239.255.255.250", "240.0.0.1", "255.255.255.255"],
        *[
            "::",
            "::1",
            "::127.0.0.1",
            "::8.8.8.8",
            "::ffff:127.0.0.1",
            "::ffff:8.8.8.8",
            "::ffff:0:127.0.0.1",
        ],
        *["64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b::808:808", "64:ff9b:1::1", "100::1", "2001::1"],
        *[
            "2001:0:53aa:64c:0:0:5601:5601",
            "2001:db8::1",
            "2002:7f00:1::",
            "2002:a9fe:a9fe::",
            "2002:808:808::",
        ],
        *["2606:4700:10::200:5efe:8.8.8.8", "2606:4700:10:0:0:5efe:10.0.0.1", "3fff::1", "4000::1"],
        *["fc00::1", "fd00:ec2::254", "fe80::1", "febf::1", "fec0::1", "ff02::1", "ff0e::1", "fe80::1%eth0"],
    ],
)
def test_addresses_that_are_not_a_public_host_are_denied(ip: str) -> None:
    assert denied(ip_address(ip), ()) is not None


@pytest.mark.parametrize(
    "ip", ["1.1.1.1", "8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00::1"]
)
def test_public_addresses_may_be_dialled(ip: str) -> None:
    assert denied(ip_address(ip), ()) is None


ANYTHING = (ip_network("0.0.0.0/0"), ip_network("::/0"))


@pytest.mark.parametrize("ip", ["0.0.0.0", "0.1.2.3", "::", "224.0.0.1", "255.255.255.255", "ff02::1"])
def test_rs3_multicast_broadcast_and_unspecified_cannot_be_opened(ip: str) -> None:
    assert denied(ip_address(ip), ANYTHING) is not None


def test_rs3_our_own_listeners_cannot_be_opened() -> None:
    own = frozenset({("10.0.0.1", 8443), ("0.0.0.0", 8080)})
    assert denied(ip_address("10.0.0.1"), ANYTHING, own, 8443) == "own listener"
    assert denied(ip_address("10.0.0.1"), ANYTHING, own, 443) is None
    assert denied(ip_address("127.0.0.1"), ANYTHING, own, 8080) == "own listener"
    assert denied(ip_address("::ffff:10.0.0.1"), ANYTHING, own, 8443) == "own listener inside IPv6"
    resolver = Resolver(lookup=never, own=own)
    assert resolver.leads_to_us("192.168.7.7", "192.168.7.7", 8080), (
        "a listener on 0.0.0.0, another local address"
    )
    assert not resolver.leads_to_us("192.168.7.7", "192.168.7.8", 8080)
    assert resolver.leads_to_us("10.9.9.9", "10.0.0.1", 8443)


def test_an_operator_opens_exactly_the_range_that_was_named() -> None:
    allow = (ip_network("10.0.0.0/24"), ip_network("fd00::/8"))
    assert denied(ip_address("10.0.0.9"), allow) is None
    assert denied(ip_address("fd00::9"), allow) is None
    assert denied(ip_address("10.0.1.9"), allow) is not None
    assert denied(ip_address("::ffff:10.0.0.9"), allow) is not None


@pytest.mark.parametrize(
    ("prefix", "inside", "harmless"),
    [
        ("::ffff:0:0/96", "::ffff:10.0.0.1", "::ffff:8.8.8.8"),
        ("64:ff9b::/96", "64:ff9b::10.0.0.1", "64:ff9b::8.8.8.8"),
        ("64:ff9b:1::/48", "64:ff9b:1:0a00:0:100::", "64:ff9b:1:0808:8:800:808:808"),
        ("2002::/16", "2002:a00:1::", "2002:808:808::"),
        ("2001::/32", "2001:0:1:1:0:0:f5ff:fffe", "2001:0:1:1:0:0:f7f7:f7f7"),
        ("2606::/16", "2606::5efe:10.0.0.1", "2606::5efe:8.8.8.8"),
    ],
)
def test_rs2_an_opened_transition_range_still_leads_to_no_denied_ipv4(
    prefix: str, inside: str, harmless: str
) -> None:
    allow = (ip_network(prefix),)
    assert denied(ip_address(harmless), ()) is not None
    assert denied(ip_address(harmless), allow) is None
    assert denied(ip_address(inside), allow) == "private inside IPv6"


@pytest.mark.parametrize(
    "ips",
    [
        pytest.param(("8.8.8.8", "127.0.0.1"), id="public, then loopback"),
        pytest.param(("169.254.169.254", "8.8.8.8"), id="metadata, then public"),
        pytest.param(("2606:4700::1111", "64:ff9b::a9fe:a9fe"), id="public, then metadata through NAT64"),
        pytest.param((), id="no address"),
        pytest.param(("not an address",), id="nonsense"),
    ],
)
async def test_rs1_one_denied_address_refuses_the_whole_answer(ips: tuple[str, ...]) -> None:
    with pytest.raises(ResolveError):
        await Resolver(lookup=answering(*ips)).resolve("api.ok.test", 443)


async def test_addresses_keep_the_resolvers_order_and_get_the_port() -> None:
    resolver = Resolver(lookup=answering("2606:4700::1111", "8.8.8.8"))
    assert await resolver.resolve("api.ok.test", 443) == (
        Address(family=socket.AF_INET6, ip="2606:4700::1111", port=443),
        Address(family=socket.AF_INET, ip="8.8.8.8", port=443),
    )


@pytest.mark.parametrize("literal", ["127.0.0.1", "169.254.169.254", "::ffff:127.0.0.1", "::1"])
async def test_an_ip_literal_is_judged_without_asking(literal: str) -> None:
    with pytest.raises(ResolveError):
        await Resolver(lookup=never).resolve(literal, 443)
    assert (await Resolver(lookup=never).resolve("8.8.8.8", 443))[0].ip == "8.8.8.8"


LOCAL = ConnectTo(ip="127.0.0.1", port=1, tls=False)
OTHER = ConnectTo(ip="127.0.0.1", port=2, tls=True)
DEEP = ConnectTo(ip="10.1.1.1", port=3, tls=True)


@pytest.mark.parametrize(
    ("host", "port", "expected"),
    [
        pytest.param("api.ok.test", 443, LOCAL, id="exact before suffix"),
        pytest.param("b.ok.test", 443, OTHER, id="suffix"),
        pytest.param("a.b.ok.test", 443, OTHER, id="suffix over two labels"),
        pytest.param("a.deep.ok.test", 443, DEEP, id="longest suffix"),
        pytest.param("ok.test", 443, None, id="a suffix does not cover its own name"),
        pytest.param("notok.test", 443, None, id="a suffix begins at a dot"),
        pytest.param("api.ok.test", 80, None, id="another port"),
    ],
)
async def test_rs4_connect_to_names_are_never_resolved(
    host: str, port: int, expected: ConnectTo | None
) -> None:
    table = {"api.ok.test:443": LOCAL, "*.ok.test:443": OTHER, "*.deep.ok.test:443": DEEP}
    resolver = Resolver(lookup=never, connect_to=table)
    assert resolver.pinned(host, port) == expected
    if expected is not None:
        (address,) = await resolver.resolve(host, port)
        assert (address.ip, address.port) == (expected.ip, expected.port)


def test_connect_to_refuses_what_it_cannot_mean() -> None:
    with pytest.raises(ValueError, match="only possible to loopback"):
        ConnectTo(ip="10.0.0.1", port=80, tls=False)
    with pytest.raises(ValueError, match="not a port"):
        ConnectTo(ip="127.0.0.1", port=0, tls=False)
    with pytest.raises(ValueError, match="name:port"):
        Resolver(lookup=never, connect_to={"api.ok.test": LOCAL})
    with pytest.raises(ValueError, match="own listeners"):
        Resolver(lookup=never, own=frozenset({("127.0.0.1", 1)}), connect_to={"api.ok.test:443": LOCAL})


async def test_the_system_resolver_answers_and_fails_with_our_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(host: str, port: int, *, type: int) -> list[tuple[object, ...]]:
        if host != "api.ok.test":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            (2, 1, 6, "", ("8.8.8.8", port)),
            (2, 1, 6, "", ("8.8.8.8", port)),
            (2, 1, 6, "", ("1.1.1.1", port)),
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with ThreadPoolExecutor(1) as executor:
        lookup = system_lookup(executor)
        assert await lookup("api.ok.test", 443) == ("8.8.8.8", "1.1.1.1")
        with pytest.raises(ResolveError, match="not known"):
            await lookup("evil.test", 443)


# The stub resolver.


def encode_name(name: str) -> bytes:
    return b"".join([bytes([len(label)]) + label.encode() for label in name.split(".")]) + b"\0"


def record(owner: bytes, kind: int, data: bytes) -> bytes:
    return owner + struct.pack("!HHIH", kind, 1, 60, len(data)) + data


POINTER = b"\xc0\x0c"  # to the question's name


def reply(query: bytes, *records: bytes, flags: int = 0x8180, ident: int | None = None) -> bytes:
    number = int.from_bytes(query[:2], "big") if ident is None else ident
    return struct.pack("!HHHHHH", number, flags, 1, len(records), 0, 0) + query[12:] + b"".join(records)


QUERY = build_query("Api.ok.test", A, 77)
FOUR = socket.inet_aton("8.8.8.8")


def test_an_answer_gives_its_addresses() -> None:
    six = build_query("api.ok.test", AAAA, 7)
    assert parse_answer(reply(QUERY, record(POINTER, A, FOUR)), QUERY) == ("8.8.8.8",)
    assert parse_answer(reply(six, record(POINTER, AAAA, ip_address("2a00::1").packed)), six) == ("2a00::1",)
    assert parse_answer(reply(QUERY), QUERY) == ()
    assert parse_answer(reply(QUERY, flags=0x8183), QUERY) == (), "NXDOMAIN"


def test_dw2_only_the_name_and_its_aliases_count() -> None:
    alias = record(POINTER, 5, encode_name("edge.cdn.test"))
    assert parse_answer(reply(QUERY, alias, record(encode_name("Edge.CDN.test"), A, FOUR)), QUERY) == (
        "8.8.8.8",
    )
    assert parse_answer(reply(QUERY, record(encode_name("evil.test"), A, FOUR)), QUERY) == ()


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(reply(QUERY, ident=78), id="another id"),
        pytest.param(reply(QUERY, flags=0x0100), id="a query"),
        pytest.param(reply(QUERY, flags=0x8182), id="server failure"),
        pytest.param(reply(build_query("api.ok.test", A, 77)), id="another letter case"),
        pytest.param(reply(build_query("Api.ok.test", AAAA, 77)), id="another type"),
        pytest.param(reply(QUERY, record(POINTER, A, b"123")), id="address of three bytes"),
        pytest.param(reply(QUERY, record(POINTER, A, FOUR))[:-1], id="cut"),
        pytest.param(reply(QUERY, record(b"\xc0\xff", A, FOUR)), id="pointer forwards"),
        pytest.param(reply(QUERY, record(b"\x80", A, FOUR)), id="bad label"),
        pytest.param(b"", id="empty"),
    ],
)
def test_dw1_what_is_not_an_answer_to_our_question_is_refused(answer: bytes) -> None:
    with pytest.raises(BadAnswer):
        parse_answer(answer, QUERY)


@given(st.binary(max_size=80), st.integers(0, 0xFFFF))
def test_dw3_any_bytes_end_in_addresses_or_bad_answer(tail: bytes, records: int) -> None:
    head = struct.pack("!HHHHHH", 77, 0x8180, 1, records, 0, 0)
    for data in (tail, head + QUERY[12:] + tail):
        try:
            for text in parse_answer(data, QUERY):
                ip_address(text)
        except BadAnswer:
            pass


class Server(asyncio.DatagramProtocol):
    def __init__(self, answers: Callable[[bytes], list[bytes]]) -> None:
        self.answers = answers
        self.queries: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: object) -> None:
        self.queries.append(data)
        for answer in self.answers(data):
            self.transport.sendto(answer, addr)  # type: ignore[attr-defined]


@asynccontextmanager
async def dns_server(
    answers: Callable[[bytes], list[bytes]],
) -> AsyncIterator[tuple[Server, tuple[str, int]]]:
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(
        lambda: Server(answers), ("127.0.0.1", free_port())
    )
    try:
        yield server, transport.get_extra_info("sockname")
    finally:
        transport.close()


def honest(query: bytes) -> list[bytes]:
    if query[-4:-2] == struct.pack("!H", A):
        return [reply(query, record(POINTER, A, FOUR))]
    return [reply(query, record(POINTER, AAAA, ip_address("2a00::1").packed))]


async def test_the_stub_resolver_asks_for_both_families() -> None:
    async with dns_server(honest) as (server, address):
        assert await dns_lookup((address,))("api.ok.test", 443) == ("2a00::1", "8.8.8.8")
        assert len(server.queries) == 2


async def test_a_spoofed_datagram_is_ignored_and_the_right_one_awaited() -> None:
    def spoofed_first(query: bytes) -> list[bytes]:
        wrong = bytes([query[0] ^ 1]) + query[1:]
        return [reply(wrong, record(POINTER, A, socket.inet_aton("6.6.6.6"))), *honest(query)]

    async with dns_server(spoofed_first) as (_, address):
        assert await dns_lookup((address,))("api.ok.test", 443) == ("2a00::1", "8.8.8.8")


async def test_a_truncated_answer_is_asked_again_over_tcp() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        query = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
        (answer,) = honest(query)
        writer.write(len(answer).to_bytes(2, "big") + answer)
        writer.close()

    async with dns_server(lambda query: [reply(query, flags=0x8380)]) as (_, address):
        tcp = await asyncio.start_server(serve, *address)
        async with tcp:
            assert await dns_lookup((address,))("api.ok.test", 443) == ("2a00::1", "8.8.8.8")


async def test_the_next_server_is_asked_when_one_is_silent_or_fails_and_then_it_is_an_error() -> None:
    async with (
        dns_server(lambda query: []) as (_, silent),
        dns_server(lambda query: [reply(query, flags=0x8182)]) as (_, failing),
        dns_server(honest) as (_, good),
    ):
        assert await dns_lookup((silent, failing, good), try_s=0.05)("api.ok.test", 1) == (
            "2a00::1",
            "8.8.8.8",
        )
        with pytest.raises(ResolveError, match="no DNS server"):
            await dns_lookup((silent, failing), try_s=0.05)("api.ok.test", 1)
    with pytest.raises(ValueError, match="empty"):
        dns_lookup(())
