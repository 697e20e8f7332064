"""A whole pipeline in memory: real maps, real policies, real judge; the upstream and the store are fakes.

Agents are told apart by source address. `Shop.ask` sends one request and gives what the agent sees; what
reached the vendor is in `shop.upstream.seen`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fakes import FakeClient, FakeMeter, FakeUpstream, MemoryLedger
from holdgate.adjudicate import Evidence
from holdgate.agents import Agent
from holdgate.answer import Answer
from holdgate.bundle import NEVER_US, Bundle
from holdgate.headers import Verdicts
from holdgate.keys import SigningKey
from holdgate.limits import Limits
from holdgate.message import Headers, Listener, Message, Origin, RequestHead
from holdgate.pipeline import Pipeline
from holdgate.policy import load_policies
from holdgate.surface.index import SurfaceIndex

FORM = "application/x-www-form-urlencoded"


@dataclass(frozen=True, kw_only=True)
class Said:
    """What an agent is told."""

    status: int
    outcome: str
    reason: str
    receipt: str
    body: bytes


def permit_all(index: SurfaceIndex, folder: Path, surfaces: Sequence[str]) -> Path:
    """Policies that permit every operation of these surfaces."""
    for surface in surfaces:
        name = surface.replace(".", "-").replace("_", "-")
        (folder / f"{name}.yaml").write_text(
            f"apiVersion: holdgate/v1\nkind: Policy\nmetadata: {{name: {name}, owner: t@example.com}}\n"
            f"spec:\n  surface: {surface}\n  rules:\n"
            "  - {id: all, effect: permit, when: always, unsafe_allow_all: true}\n"
        )
    return folder


class Shop:
    def __init__(self, index: SurfaceIndex, policies: Path, *, digest: str = "00") -> None:
        self.ledger, self.upstream, self.meter = MemoryLedger(), FakeUpstream(), FakeMeter()
        self.index, self.folder = index, policies
        self.pipeline = Pipeline(
            bundle=self.bundle(digest),
            identify=lambda origin: Agent(id=f"bot-{origin.source}", groups=(), attrs=()),
            ledger=self.ledger,
            dispatcher=self.upstream,
            evidence=Evidence(
                signer=SigningKey(seed=b"s" * 32),
                issuer="test/log",
                node="n1",
                fleet_key=b"f" * 32,
                draw=secrets.token_bytes,
            ),
            show=Verdicts(node="n1", full=True, public_url=None),
            limits=Limits(),
            meter=self.meter,
            clock=lambda: 0.0,
        )

    def bundle(self, digest: str) -> Bundle:
        return Bundle(
            digest="sha256:" + digest * 32,
            revision=0,
            signed=False,
            ends_us=NEVER_US,
            index=self.index,
            policies=load_policies([self.folder], self.index),
        )

    async def ask(
        self,
        target: str,
        body: bytes = b"",
        *,
        method: str = "POST",
        host: str,
        agent: str = "10.0.0.1",
        headers: Mapping[str, str] | None = None,
    ) -> Said:
        answer = await asyncio.wait_for(
            self.pipeline.handle(message(target, body, method, host, agent, headers or {}), FakeClient()), 20
        )
        if answer.rest is not None:
            while await answer.rest.next():
                pass
        return said(answer)

    @property
    def sent(self) -> list[bytes]:
        """Targets of what reached the vendor, in order."""
        return [release.request.raw_target for release in self.upstream.seen]


def message(
    target: str, body: bytes, method: str, host: str, agent: str, headers: Mapping[str, str]
) -> Message:
    own: Headers = tuple((name.encode(), value.encode()) for name, value in headers.items())
    if body:
        own = (*own, (b"Content-Length", b"%d" % len(body)))
    origin = Origin(
        listener=Listener.EXPLICIT,
        tls=True,
        source=agent,
        source_port=50_000,
        connect=(host, 443),
        sni=host,
        original_port=None,
        proxy_authorization=(),
    )
    head = RequestHead(
        method=method.encode(), target=target.encode(), headers=((b"Host", host.encode()), *own)
    )
    return Message(origin=origin, head=head, body=body)


def said(answer: Answer) -> Said:
    fields: dict[str, Any] = {}
    (decision,) = [value for name, value in answer.headers if name.lower() == b"holdgate-decision"]
    word, *parts = decision.decode().split(";")
    for part in parts:
        name, _, value = part.partition("=")
        fields[name] = value.strip('"')
    return Said(
        status=answer.status,
        outcome=word,
        reason=fields["reason"],
        receipt=fields.get("id", ""),
        body=answer.body,
    )
