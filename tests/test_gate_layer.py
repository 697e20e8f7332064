"""gate_layer.py: one connection inside the inner door, with real sockets and a keeper of the test's."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import pytest

from doors import Door, ok, open_door
from holdgate.answer import DispatchError
from holdgate.errors import InputError, Reason
from holdgate.ledger import OutcomeStatus

GET = b"GET http://api.ok.test/a HTTP/1.1\r\nHost: api.ok.test\r\n\r\n"
CLOSE = b"GET http://api.ok.test/a HTTP/1.1\r\nHost: api.ok.test\r\nConnection: close\r\n\r\n"
CONNECT = b"CONNECT api.ok.test:443 HTTP/1.1\r\nHost: api.ok.test:443\r\n\r\n"


async def tls_through(door: Door, sni: str | None = "api.ok.test", **options: Any) -> Any:
    """A TLS session inside a CONNECT tunnel."""
    reader, writer = await door.connect()
    writer.write(CONNECT)
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    context = ssl.create_default_context(cafile=str(door.ca))
    context.check_hostname = sni is not None
    await writer.start_tls(context, server_hostname=sni, **options)
    return reader, writer


async def test_a_plain_request_is_held_and_answered(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        answer = await door.exchange(CLOSE)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n") and answer.endswith(b"\r\n\r\nfine")
        assert door.keeper.messages[0].head.target == b"http://api.ok.test/a"
        assert door.trips == []


async def test_a_request_inside_connect_and_tls_shows_what_the_connection_proves(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        reader, writer = await tls_through(door)
        for _ in range(3):
            writer.write(b"POST /b HTTP/1.1\r\nHost: api.ok.test\r\nContent-Length: 3\r\n\r\nabc")
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"Content-Length: 4" in head
            assert await reader.readexactly(4) == b"fine"
        origin = door.keeper.messages[2].origin
        assert (origin.connect, origin.sni, origin.tls) == (("api.ok.test", 443), "api.ok.test", True)
        assert door.keeper.messages[0].body == b"abc"
        assert len(door.keeper.messages) == 3
        writer.close()


async def test_only_http11_is_offered_inside_tls(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        reader, writer = await door.connect()
        writer.write(CONNECT)
        await reader.readuntil(b"\r\n\r\n")
        context = ssl.create_default_context(cafile=str(door.ca))
        context.set_alpn_protocols(["h2", "http/1.1"])
        await writer.start_tls(context, server_hostname="api.ok.test")
        assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
        writer.close()


async def _raise() -> None:
    raise RuntimeError("broken")


async def _cancelled() -> None:
    raise asyncio.CancelledError


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(lambda *_: _raise(), id="raises"),
        pytest.param(lambda *_: _cancelled(), id="is cancelled"),
        pytest.param(lambda *_: None, id="returns nothing"),
    ],
)
async def test_gl1_a_hold_without_an_answer_is_refused(tmp_path: Path, fault: Any) -> None:
    async with open_door(tmp_path) as door:
        door.keeper.answer = fault
        answer = await door.exchange(GET)
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert b"Holdgate-Decision: SILENCE;reason=internal_error\r\n" in answer
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"Content-Length: %d\r\n" % len(body) in head + b"\r\n"
        door.keeper.answer = None
        assert (await door.exchange(CLOSE)).startswith(b"HTTP/1.1 200 ")


async def test_gl2_what_is_sent_meanwhile_is_not_read_without_bound(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        release = asyncio.Event()

        async def hold(*_: Any) -> Any:
            await release.wait()
            return ok()

        door.keeper.answer = hold
        reader, writer = await door.connect()
        writer.write(GET)
        sent = 0
        filler = b"x" * 65_536
        # The kernel's buffers take some megabytes; if the door read on, this loop would never block.
        with pytest.raises(TimeoutError):
            while sent < 64 * 1024 * 1024:
                writer.write(filler)
                sent += len(filler)
                await asyncio.wait_for(writer.drain(), 0.5)
        gate = next(iter(door.addon.layers))
        assert gate.queued < 1_000_000
        release.set()
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        writer.close()


async def test_gl2_reading_goes_on_when_the_answer_was_relayed(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        relaying, paused = asyncio.Event(), asyncio.Event()

        class Slow(Pieces):
            async def next(self) -> bytes:
                relaying.set()
                await paused.wait()
                return await super().next()

        door.keeper.answer = lambda *_: ok(b"", rest=Slow(b"one"), length=None)
        reader, writer = await door.connect()
        writer.write(GET)
        await asyncio.wait_for(relaying.wait(), 60)
        gate = next(iter(door.addon.layers))
        body = b"x" * 500_000  # of the next request, while this one is answered
        writer.write(
            b"POST http://a/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 500000\r\n\r\n"
            + body
        )
        while not gate.paused:
            await asyncio.sleep(0.01)
        door.keeper.answer = None
        paused.set()
        answer = await asyncio.wait_for(reader.read(), 60)
        assert answer.count(b"HTTP/1.1 200 OK") == 2
        assert door.keeper.messages[1].body == body
        writer.close()


class Pieces:
    def __init__(self, *pieces: bytes, cut: bool = False) -> None:
        self.pieces, self.cut, self.abandoned = list(pieces), cut, False

    async def next(self) -> bytes:
        if self.pieces:
            return self.pieces.pop(0)
        if self.cut:
            raise DispatchError(OutcomeStatus.EXECUTED, 502, "cut")
        return b""

    def abandon(self) -> None:
        self.abandoned = True


async def test_a_streamed_answer_is_relayed_piece_by_piece(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        stream = Pieces(b"one", b"two")
        door.keeper.answer = lambda *_: ok(b"", rest=stream, length=None)
        answer = await door.exchange(CLOSE)
        assert b"Transfer-Encoding: chunked\r\n" in answer
        assert answer.endswith(b"\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")


async def test_gl3_a_cut_answer_is_cut_for_the_agent(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        stream = Pieces(b"one", cut=True)
        door.keeper.answer = lambda *_: ok(b"", rest=stream, length=None)
        answer = await door.exchange(GET)
        assert answer.endswith(b"\r\n\r\n3\r\none\r\n")
        assert stream.abandoned


@pytest.mark.parametrize(
    ("data", "inside"),
    [
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n", False, id="ssh"),
        pytest.param(b"\x16\x03\x01\x00\x05hello", False, id="tls to the explicit port"),
        pytest.param(b"\x00\x01\x02\x03\r\n\r\n", False, id="binary"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n", True, id="ssh in a tunnel"),
        pytest.param(b"EHLO x\r\n", True, id="smtp in a tunnel"),
        pytest.param(GET, True, id="plain http in a tunnel"),
    ],
)
async def test_gl4_what_is_not_http_ends_with_a_receipt_and_no_answer(
    tmp_path: Path, data: bytes, inside: bool
) -> None:
    async with open_door(tmp_path) as door:
        reader, writer = await door.connect()
        if inside:
            writer.write(CONNECT)
            await reader.readuntil(b"\r\n\r\n")
        writer.write(data)
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), 60) == b""
        assert [row[1].reason for row in door.keeper.refused] == [Reason.UNSUPPORTED_PROTOCOL]
        assert door.keeper.messages == []
        writer.close()


async def test_gl4_a_connection_that_says_nothing_leaves_a_receipt(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        _, writer = await tls_through(door)
        writer.close()
        while not door.keeper.refused:
            await asyncio.sleep(0.01)
        assert door.keeper.refused[0][0].sni == "api.ok.test"


@pytest.mark.parametrize(
    ("data", "status", "reason"),
    [
        pytest.param(b"GET /\r\n\r\n", 400, b"malformed_request", id="HTTP/0.9"),
        pytest.param(
            b"GET http://a/ HTTP/1.0\r\nHost: a\r\n\r\n", 400, b"unsupported_protocol", id="HTTP/1.0"
        ),
        pytest.param(CONNECT.replace(b"443 ", b"0443 "), 400, b"malformed_request", id="CONNECT port"),
        pytest.param(
            CONNECT.replace(b"Host: api", b"Host: other"), 421, b"identity_mismatch", id="CONNECT host"
        ),
        pytest.param(
            b"POST http://a/ HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\nExpect: 100-continue\r\n\r\n",
            413,
            b"too_large",
            id="too large before 100-continue",
        ),
    ],
)
async def test_what_cannot_be_read_is_answered_and_closed(
    tmp_path: Path, data: bytes, status: int, reason: bytes
) -> None:
    async with open_door(tmp_path) as door:
        answer = await door.exchange(data)
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert answer.endswith(reason)
        assert door.keeper.messages == []


async def test_expect_is_answered_by_us(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        reader, writer = await door.connect()
        writer.write(
            CLOSE.replace(b"GET", b"POST").replace(
                b"\r\n\r\n", b"\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
            )
        )
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"ab")
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
        assert door.keeper.messages[0].body == b"ab"
        writer.close()


async def test_pipelined_requests_are_served_one_by_one(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        running = 0

        async def one_at_a_time(*_: Any) -> Any:
            nonlocal running
            running += 1
            assert running == 1
            await asyncio.sleep(0)
            running -= 1
            return ok()

        door.keeper.answer = one_at_a_time
        answer = await door.exchange(GET + GET + CLOSE)
        assert answer.count(b"HTTP/1.1 200 OK") == 3


@pytest.mark.parametrize(
    "part", [b"GET http://a", GET[:-2], GET.replace(b"\r\n\r\n", b"\r\nContent-Length: 9\r\n\r\n12")]
)
async def test_slow_heads_and_bodies_end_at_their_deadline(tmp_path: Path, part: bytes) -> None:
    async with open_door(tmp_path, head_s=0.05, body_s=0.05) as door:
        reader, writer = await door.connect()
        writer.write(part)
        while not door.keeper.refused:
            await door.addon.sweep()
            await asyncio.sleep(0.01)
        assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
        writer.close()


async def test_a_tunnel_without_a_handshake_ends_at_the_head_deadline(tmp_path: Path) -> None:
    async with open_door(tmp_path, head_s=0.05) as door:
        reader, writer = await door.connect()
        writer.write(CONNECT)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"\x16\x03\x01")
        while not door.keeper.refused:
            await door.addon.sweep()
            await asyncio.sleep(0.01)
        assert await reader.read() == b""
        assert door.keeper.refused[0][1].reason is Reason.UNSUPPORTED_PROTOCOL
        writer.close()


async def test_held_bytes_are_given_back(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        head = b"POST http://a/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n"
        reader, writer = await door.connect()
        writer.write(head + b"x" * 1000)
        await reader.readuntil(b"\r\n\r\n")
        assert (door.keeper.reserved, door.keeper.peak) == (0, 1000)
        writer.write(head + b"x" * 10)
        writer.close()
        while not door.keeper.refused:
            await asyncio.sleep(0.01)
        assert door.keeper.reserved == 0


async def test_the_pipeline_hears_that_its_agent_left(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        left = asyncio.Event()

        async def wait(_: Any, client: Any) -> Any:
            client.on_gone(left.set)
            await left.wait()
            return ok()

        door.keeper.answer = wait
        _, writer = await door.connect()
        writer.write(GET)
        while not door.keeper.links:
            await asyncio.sleep(0.01)
        writer.close()
        await asyncio.wait_for(left.wait(), 60)


async def test_what_an_agent_sent_before_it_left_is_not_waited_for_either(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        go_on, gone = asyncio.Event(), []

        async def wait(_: Any, client: Any) -> Any:
            gone.append(client.gone)
            if len(gone) == 1:
                client.on_gone(go_on.set)
                await go_on.wait()
            return ok()

        door.keeper.answer = wait
        _, writer = await door.connect()
        writer.write(GET + GET)
        while not gone:
            await asyncio.sleep(0.01)
        writer.close()
        while len(gone) < 2:
            await asyncio.sleep(0.01)
        assert gone == [False, True]


async def test_a_tunnel_that_was_asked_for_before_its_agent_left_is_not_remembered(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        go_on = asyncio.Event()

        async def wait(*_: Any) -> Any:
            await go_on.wait()
            return ok()

        door.keeper.answer = wait
        _, writer = await door.connect()
        writer.write(GET + CONNECT)
        while not door.keeper.links:
            await asyncio.sleep(0.01)
        (handler,) = door.addon.connections.values()
        await handler.on_timeout()  # as when a write to the agent fails
        while door.addon.connections:
            await asyncio.sleep(0.01)
        go_on.set()
        while not door.keeper.refused:
            await asyncio.sleep(0.01)
        assert (door.addon.tunnels, door.addon.waiting, door.keeper.reserved) == ({}, {}, 0)
        assert door.keeper.refused[0][1].reason is Reason.UNSUPPORTED_PROTOCOL
        writer.close()


async def test_silent_connections_do_not_hold_up_the_deadlines_of_others(tmp_path: Path) -> None:
    async with open_door(tmp_path, head_s=0.05) as door:
        refuse, go_on = door.keeper.refuse, asyncio.Event()

        async def slow(*what: Any) -> Any:  # the receipt of a flood comes a second later
            answer = await refuse(*what)
            await go_on.wait()
            return answer

        door.keeper.refuse = slow  # type: ignore[method-assign]
        silent = [await door.connect() for _ in range(3)]
        for reader, writer in silent:
            writer.write(CONNECT)
            await reader.readuntil(b"\r\n\r\n")
        while len(door.keeper.refused) < len(silent):
            await asyncio.wait_for(door.addon.sweep(), 60)
            await asyncio.sleep(0.01)
        go_on.set()
        for reader, writer in silent:
            assert await reader.read() == b""
            writer.close()


@pytest.mark.parametrize(
    ("head", "status"),
    [
        pytest.param(b"CONNECT api.ok.test:443 HTTP/1.0\r\n\r\n", 200, id="as Python 3.11 writes it"),
        pytest.param(
            b"CONNECT api.ok.test:443 HTTP/1.0\r\nHost: api.ok.test:443\r\n\r\n", 200, id="with Host"
        ),
        pytest.param(b"CONNECT api.ok.test:443 HTTP/1.0\r\nHost: evil.test\r\n\r\n", 421, id="another Host"),
        pytest.param(b"CONNECT api.ok.test:443 HTTP/1.0\r\nHost:\r\n\r\n", 400, id="an empty Host"),
        pytest.param(b"CONNECT api.ok.test:443 HTTP/1.1\r\n\r\n", 400, id="1.1 needs Host"),
        pytest.param(b"CONNECT api.ok.test:443 HTTP/0.9\r\n\r\n", 400, id="0.9"),
        pytest.param(
            b"GET http://api.ok.test/ HTTP/1.0\r\nHost: api.ok.test\r\n\r\n", 400, id="1.0 for others"
        ),
    ],
)
async def test_connect_alone_may_be_http10(tmp_path: Path, head: bytes, status: int) -> None:
    async with open_door(tmp_path) as door:
        reader, writer = await door.connect()
        writer.write(head)
        assert (await reader.readline()).startswith(b"HTTP/1.1 %d " % status)
        writer.close()


async def test_proxy_credentials_are_asked_for_before_the_tunnel(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:

        def greet(origin: Any) -> None:
            if not origin.proxy_authorization:
                raise InputError(Reason.UNKNOWN_AGENT, "no credentials", status=407)

        door.keeper.greet = greet  # type: ignore[method-assign]
        assert (await door.exchange(CONNECT)).startswith(b"HTTP/1.1 407 ")
        reader, writer = await door.connect()
        writer.write(CONNECT.replace(b"\r\n\r\n", b"\r\nProxy-Authorization: Basic eDp5\r\n\r\n"))
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        writer.close()


async def test_gl5_a_plain_request_brings_its_own_proxy_credentials(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        reader, writer = await door.connect()
        for line in (b"Proxy-Authorization: Bearer one\r\n", b""):
            writer.write(GET.removesuffix(b"\r\n") + line + b"\r\n")
            await reader.readuntil(b"fine")
        writer.close()
        seen = [message.origin.proxy_authorization for message in door.keeper.messages]
        assert seen == [(b"Bearer one",), ()]


async def test_gl5_inside_a_tunnel_only_the_tunnels_proxy_credentials_count(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        reader, writer = await tls_through(door)
        writer.write(b"GET /a HTTP/1.1\r\nHost: api.ok.test\r\nProxy-Authorization: Bearer inside\r\n\r\n")
        await reader.readuntil(b"fine")
        writer.close()
        assert door.keeper.messages[0].origin.proxy_authorization == ()


async def test_a_body_that_is_too_much_with_its_last_byte_is_answered_too(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        reserve = door.keeper.reserve

        def full(size_bytes: int) -> None:
            if size_bytes > 1000:
                raise InputError(Reason.OVERLOADED, "by the test")
            reserve(size_bytes)

        door.keeper.reserve = full  # type: ignore[method-assign]
        head = b"POST http://api.ok.test/a HTTP/1.1\r\nHost: api.ok.test\r\nContent-Length: 2000\r\n\r\n"
        answer = await door.exchange(head + b"x" * 2000)
        assert answer.startswith(b"HTTP/1.1 503 ") and door.keeper.messages == []
        [(_, error, seen)] = door.keeper.refused
        assert error.reason is Reason.OVERLOADED and seen.startswith(head)


async def test_an_agent_that_is_refused_in_its_upload_can_read_why(tmp_path: Path) -> None:
    async with open_door(tmp_path, body_bytes=1000) as door:
        reader, writer = await door.connect()
        writer.write(
            b"POST http://api.ok.test/a HTTP/1.1\r\nHost: api.ok.test\r\nContent-Length: 4000000\r\n\r\n"
        )
        for _ in range(40):  # nothing is read meanwhile, as simple clients do
            writer.write(b"x" * 100_000)
            await asyncio.wait_for(writer.drain(), 60)
        answer = await asyncio.wait_for(reader.read(), 60)
        writer.close()
        assert answer.startswith(b"HTTP/1.1 413 ")
