"""The inner door on a loopback port with a keeper of the test's, for test_mitm.py and test_gate_layer.py."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from holdgate.adapters.agent_tls import AgentTls
from holdgate.adapters.ca import LeafMaker, create_ca
from holdgate.adapters.engine import build_engine
from holdgate.adapters.mitm import HoldgateAddon
from holdgate.answer import Answer
from holdgate.config import Address, Listen
from holdgate.errors import InputError, Reason
from holdgate.limits import Limits
from holdgate.message import Message, Origin, RequestHead


def ok(body: bytes = b"fine", **change: Any) -> Answer:
    values: dict[str, Any] = {
        "status": 200,
        "reason": b"OK",
        "headers": (),
        "body": body,
        "rest": None,
        "length": len(body),
        "bodiless": False,
        "close": False,
    }
    return Answer(**(values | change))


@dataclass
class FakeKeeper:
    """Notes what arrived and answers as told."""

    limits: Limits
    answer: Callable[[Message, Any], Any] | None = None
    messages: list[Message] = field(default_factory=list)
    refused: list[tuple[Origin, InputError, bytes]] = field(default_factory=list)
    reserved: int = 0
    peak: int = 0
    links: list[Any] = field(default_factory=list)

    def body_limit(self, origin: Origin, head: RequestHead) -> int:
        return self.limits.body_bytes

    def reserve(self, size_bytes: int) -> None:
        self.reserved += size_bytes
        self.peak = max(self.peak, self.reserved)

    def greet(self, origin: Origin) -> None:
        return None

    async def handle(self, message: Message, client: Any) -> Any:
        self.messages.append(message)
        self.links.append(client)
        if self.answer is not None:
            given = self.answer(message, client)
            return await given if asyncio.iscoroutine(given) else given
        return ok()

    def unheard(self, sni: str | None) -> InputError:
        return InputError(Reason.UNSUPPORTED_PROTOCOL, f"closed, {sni}")

    async def refuse(self, origin: Origin, error: InputError, seen: bytes) -> Answer:
        self.refused.append((origin, error, seen))
        return ok(error.reason.value.encode(), status=error.status, close=True)


@dataclass
class Door:
    keeper: FakeKeeper
    addon: HoldgateAddon
    engine: Any
    proxy: Any
    port: int
    ca: Path
    trips: list[str]

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def exchange(self, data: bytes) -> bytes:
        """Send bytes, read until the door closes the connection."""
        reader, writer = await self.connect()
        writer.write(data)
        answer = await asyncio.wait_for(reader.read(), 60)
        writer.close()
        return answer


@contextlib.asynccontextmanager
async def open_door(folder: Path, **limits: Any) -> AsyncIterator[Door]:
    trips: list[str] = []
    keeper = FakeKeeper(Limits(**limits))
    authority = create_ca(folder, "test")
    addon = HoldgateAddon(
        keeper=keeper, tls_contexts=AgentTls(LeafMaker(authority)), barrier_trip=trips.append
    )
    listen = Listen(explicit=Address(host="127.0.0.1", port=0), transparent=None)
    engine, proxy = build_engine(addon, listen, keeper.limits)
    running = asyncio.Event()
    addon.on_running = running.set
    task = asyncio.ensure_future(engine.run())
    await asyncio.wait_for(running.wait(), 60)
    port = proxy.listen_addrs()[0][1]
    try:
        yield Door(keeper, addon, engine, proxy, port, authority.path, trips)
    finally:
        engine.shutdown()
        await asyncio.wait_for(task, 60)
