"""HTTP by hand: agents and upstreams that send, hold back and cut what no library would let them."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

PATIENCE_S = 20.0
MODEL = "api.openai.com"

type Serve = Callable[["Peer"], Awaitable[None]]


class Gate(Protocol):
    """A running proxy: demo.instance.Instance, or one in the test's own process."""

    @property
    def state_dir(self) -> Path: ...

    @property
    def proxy(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer as the agent read it. `whole` is False when the body was cut."""

    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool

    @property
    def decision(self) -> str:
        return self.headers.get("holdgate-decision", "")

    @property
    def reason(self) -> str:
        found = re.search(r"reason=([a-z_]+)", self.decision)
        return found[1] if found else ""

    @property
    def receipt_id(self) -> str:
        found = re.search(r'id="(rcpt_[^"]+)"', self.decision)
        return found[1] if found else ""


class Peer:
    """One connection, either end of it. Every wait has an end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await asyncio.wait_for(self.writer.drain(), PATIENCE_S)

    async def line(self) -> bytes:
        return await asyncio.wait_for(self.reader.readuntil(b"\r\n"), PATIENCE_S)

    async def head(self) -> tuple[str, dict[str, str]]:
        """First line and headers, names in lower case."""
        raw = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
        first, *lines = raw.decode("latin-1").split("\r\n")[:-2]
        pairs = (line.partition(":") for line in lines)
        return first, {name.lower(): value.strip() for name, _, value in pairs}

    async def exactly(self, size: int) -> bytes:
        return await asyncio.wait_for(self.reader.readexactly(size), PATIENCE_S)

    async def chunk(self) -> bytes:
        """One chunk of a chunked body; b"" is the last one."""
        size = int(await self.line(), 16)
        data = await self.exactly(size + 2)
        return data[:-2]

    async def request(self) -> tuple[str, dict[str, str], bytes]:
        """One whole request with a Content-Length."""
        first, headers = await self.head()
        return first, headers, await self.exactly(int(headers.get("content-length", "0")))

    async def answer(self) -> Answered:
        first, headers = await self.head()
        body, whole = b"", True
        try:
            if headers.get("transfer-encoding") == "chunked":
                while piece := await self.chunk():
                    body += piece
            else:
                body = await self.exactly(int(headers.get("content-length", "0")))
        except asyncio.IncompleteReadError as cut:
            body, whole = body + cut.partial, False
        return Answered(int(first.split()[1]), headers, body, whole)

    async def ended(self) -> bool:
        """Whether the other side closed without sending anything more."""
        try:
            return await asyncio.wait_for(self.reader.read(1), PATIENCE_S) == b""
        except (ConnectionError, ssl.SSLError):
            return True

    def cut(self) -> None:
        """End the connection at once, as a killed process would."""
        self.writer.transport.abort()


@lru_cache
def trusting(ca: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(ca))


async def dial(gate: Gate) -> Peer:
    host, _, port = gate.proxy.rpartition(":")
    return Peer(*await asyncio.open_connection(host, int(port)))


async def tunnel(gate: Gate, name: str = MODEL, *, extra: str = "") -> Peer:
    """CONNECT, and TLS inside it, trusting the proxy's CA."""
    peer = await dial(gate)
    await peer.send(f"CONNECT {name}:443 HTTP/1.1\r\nHost: {name}:443\r\n{extra}\r\n".encode())
    first, _ = await peer.head()
    assert first.split()[1] == "200", first
    context = trusting(gate.state_dir / "ca" / "ca.pem")
    await asyncio.wait_for(peer.writer.start_tls(context, server_hostname=name), PATIENCE_S)
    return peer


def post(path: str, body: bytes, *, name: str = MODEL, extra: str = "") -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {name}\r\nAuthorization: Bearer sk_by_hand\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
    )
    return head.encode() + body


def get(path: str, *, name: str = MODEL, extra: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {name}\r\nAuthorization: Bearer sk_by_hand\r\n{extra}\r\n".encode()


def asked(size: int = 0) -> bytes:
    """A permitted call of the model provider, `size` bytes larger than it needs to be."""
    return post("/v1/chat/completions", b'{"model":"gpt-4.1","messages":[],"user":"' + b"u" * size + b'"}')


def plain(body: bytes, *, status: str = "200 OK", extra: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{extra}\r\n".encode() + body


class Port:
    """A loopback port that stays ours, so that a proxy can be told of it before anybody serves there."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.number: int = self._socket.getsockname()[1]
        self.accepted = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.number}"

    def close(self) -> None:
        self._socket.close()

    @contextlib.asynccontextmanager
    async def serving(self, serve: Serve) -> AsyncIterator[None]:
        """`serve` is run for each connection, and may end it as it likes."""
        running: set[asyncio.Task[None]] = set()
        failed: list[BaseException] = []

        async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            if task is not None:
                running.add(task)
                task.add_done_callback(running.discard)
            self.accepted += 1
            try:
                await serve(Peer(reader, writer))
            except (ConnectionError, asyncio.IncompleteReadError):
                pass  # the proxy ended it, which is what many tests are about
            except Exception as error:  # noqa: BLE001 - shown below: a task of its own would hide it
                failed.append(error)
            finally:
                writer.close()

        server = await asyncio.start_server(one, sock=self._socket.dup(), limit=1 << 20)
        try:
            yield
        finally:
            server.close()
            for task in list(running):
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        assert not failed, failed
