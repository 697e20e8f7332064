"""adapters/dns_stub.py: real sockets on loopback; what comes back, to whom, and what is noted on the way."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from holdgate.adapters.dns_stub import RECEIPTS_PER_S, DnsStub, bind_udp
from holdgate.adapters.dnswire import A, build_query, parse_answer
from holdgate.config import Address
from ports import free_port


@dataclass
class Noted:
    now: float = 0.0
    counted: list[str] = field(default_factory=list)
    reported: list[tuple[str, str]] = field(default_factory=list)

    async def report(self, source: tuple[str, int], name: str, query: bytes) -> None:
        self.reported.append((source[0], name))

    def stub(self) -> DnsStub:
        return DnsStub({"a.b"}.__contains__, self.counted.append, self.report, clock=lambda: self.now)


@pytest.fixture
def noted() -> Noted:
    return Noted()


@pytest.fixture
def client() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        yield sock


async def test_ds1_an_answer_comes_from_the_address_that_was_asked(
    noted: Noted, client: socket.socket
) -> None:
    loop = asyncio.get_running_loop()
    stub = noted.stub()
    server = bind_udp("0.0.0.0", 0)
    port = server.getsockname()[1]
    stub.serve_udp(server)
    try:
        query = build_query("a.b", A, 9)
        for asked in ("127.0.0.2", "127.0.0.3"):
            client.sendto(b"not a question", (asked, port))
            client.sendto(query, (asked, port))
            async with asyncio.timeout(60):
                data, source = await loop.sock_recvfrom(client, 1024)
            assert source == (asked, port), "the answer to what was malformed would have come first"
            assert parse_answer(data, query) == ("198.51.100.1",)
    finally:
        stub.end_udp(server)
    assert noted.counted == [] and noted.reported == []


async def test_ds2_receipts_are_one_per_name_and_bounded_in_all(noted: Noted) -> None:
    stub = noted.stub()
    for number in range(3 * RECEIPTS_PER_S):
        for _ in range(2):
            assert stub.reply(build_query(f"x{number}.c", A, 1), ("10.0.0.1", 5)) is not None
    await asyncio.gather(*stub.tasks)
    assert noted.reported == [("10.0.0.1", f"x{number}.c") for number in range(RECEIPTS_PER_S)]
    assert len(noted.counted) == 6 * RECEIPTS_PER_S, "every question is counted"
    noted.now = 1.0
    stub.reply(build_query("x0.c", A, 1), ("10.0.0.2", 5))
    stub.reply(build_query("x0.c", A, 1), ("10.0.0.1", 5))
    await asyncio.gather(*stub.tasks)
    assert noted.reported[RECEIPTS_PER_S:] == [("10.0.0.2", "x0.c")], "another source, not the same again"


async def test_ds3_a_tcp_connection_answers_and_ends(noted: Noted) -> None:
    stub = noted.stub()
    server = await asyncio.start_server(stub.serve_tcp, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    query = build_query("a.b", A, 3)
    framed = struct.pack("!H", len(query)) + query
    try:
        async with asyncio.timeout(60):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(framed * 2 + b"\x00\x02hi")
            for _ in range(2):
                size = int.from_bytes(await reader.readexactly(2), "big")
                assert parse_answer(await reader.readexactly(size), query) == ("198.51.100.1",)
            assert await reader.read() == b"", "the malformed one ended it"
            writer.close()
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(framed * 40)
            answers = await reader.read()
            assert len(answers) == 16 * (2 + len(query) + 16), "and so does the last one that is answered"
            writer.close()
    except ConnectionResetError:
        pytest.fail("ended by a reset before the answers were read")
    finally:
        server.close()


async def test_it_listens_on_the_ipv6_twin_too(noted: Noted, client: socket.socket) -> None:
    stub = noted.stub()
    port = free_port()
    end = await stub.listen(Address(host="127.0.0.1", port=port))
    try:
        query = build_query("a.b", A, 9)
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as six:
            six.setblocking(False)
            try:
                six.sendto(query, ("::1", port))
            except OSError:
                pytest.skip("this machine has no IPv6")
            async with asyncio.timeout(60):
                data, _ = await loop.sock_recvfrom(six, 1024)
        assert parse_answer(data, query) == ("198.51.100.1",)
    finally:
        end()
