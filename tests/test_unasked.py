"""adapters/unasked.py: a server that answers once more than it was asked, towards every client of ours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from holdgate.adapters.fact_sources import HttpAnswers, SourceError
from holdgate.adapters.gate_client import GateClient
from holdgate.config_facts import HttpSource
from holdgate.config_gate import RemoteGate
from holdgate.config_values import Address
from holdgate.errors import BackendError, Outcome
from holdgate.remote_gate import RemoteProtocol
from test_remote_gate import ASKED


@dataclass(slots=True)
class Server:
    """Answers every question with `says`, and can say more."""

    port: int = 0
    says: bytes = b""
    connections: list[asyncio.StreamWriter] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.append(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                _, found, length = head.partition(b"content-length: ")
                await reader.readexactly(int(length.partition(b"\r\n")[0]) if found else 0)
                writer.write(framed(self.says))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


def framed(body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


@asynccontextmanager
async def server_that_says(body: bytes) -> AsyncIterator[Server]:
    server = Server(says=body)
    async with await asyncio.start_server(server.serve, "127.0.0.1", 0) as running:
        server.port = running.sockets[0].getsockname()[1]
        yield server
        for each in server.connections:
            each.close()


async def arrived(session: object) -> None:
    """Until what the server said last is here, on the one idle connection of the session."""
    ((idle,),) = session.connector._conns.values()  # type: ignore[attr-defined]
    async with asyncio.timeout(60):
        while not idle[0].should_close:
            await asyncio.sleep(0)


async def test_ua1_a_gate_that_answers_twice_permits_nothing_that_it_was_not_asked_about() -> None:
    async with server_that_says(b'{"decision": false}') as server:
        config = RemoteGate(
            url=f"http://127.0.0.1:{server.port}",
            protocol=RemoteProtocol.AUTHZEN,
            timeout_ms=60_000,
            token_file=None,
            ca_file=None,
            client_cert=None,
            client_key=None,
            keys_file=None,
        )
        client = GateClient.open(config, lambda: 0)
        try:
            assert (await client.decide(ASKED)).decision.outcome is Outcome.DENY
            server.connections[0].write(framed(b'{"decision": true}'))
            await arrived(client.session)
            with pytest.raises(BackendError, match="before the question"):
                await client.decide(ASKED)
            assert (await client.decide(ASKED)).decision.outcome is Outcome.DENY
            assert len(server.connections) == 2
        finally:
            await client.close()


async def test_ua1_a_fact_of_another_key_is_none() -> None:
    async with server_that_says(b'{"owner": "a"}') as server:
        source = HttpSource(
            url="http://owners.test/owner",
            key=("id",),
            host="owners.test",
            address=Address(host="127.0.0.1", port=server.port),
            tls=False,
            ca_file=None,
            token_file=None,
        )
        answers = HttpAnswers(source, 60, lambda: 0)
        try:
            assert (await answers.read(("a",), deadline_s=60)).values == {"owner": "a"}
            server.says = b'{"owner": "b"}'
            server.connections[0].write(framed(b'{"owner": "a"}'))
            await arrived(answers._session)
            with pytest.raises(SourceError, match="before the question"):
                await answers.read(("b",), deadline_s=60)
            assert (await answers.read(("b",), deadline_s=60)).values == {"owner": "b"}
        finally:
            await answers.close()
