"""A decider over the shipped maps and policies, for test_decider.py and test_envoy_door.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from fakes import FakeMeter, FakeUpstream, MemoryLedger
from holdgate.adapters.decider import Decided, Decider
from holdgate.adjudicate import Evidence
from holdgate.agents import Agent
from holdgate.bundle import NEVER_US, Bundle
from holdgate.files import packaged
from holdgate.headers import Verdicts
from holdgate.keys import SigningKey
from holdgate.limits import Limits
from holdgate.pipeline import Pipeline
from holdgate.policy import load_policies
from holdgate.questions import ActionAsked, Question, RequestAsked
from holdgate.surface.index import SurfaceIndex
from holdgate.surface.load import load_maps

KEY = SigningKey(seed=b"s" * 32)
BOT, OTHER = Agent(id="bot", groups=(), attrs=()), Agent(id="other", groups=(), attrs=())


class Timers:
    """call_later of a test: nothing happens until it says so."""

    def __init__(self) -> None:
        self.waiting: list[Any] = []

    def __call__(self, delay: float, callback: Any) -> Any:
        timer = SimpleNamespace(delay=delay, callback=callback, cancel=lambda: self.waiting.remove(timer))
        self.waiting.append(timer)
        return timer

    def fire(self) -> None:
        for timer in list(self.waiting):
            self.waiting.remove(timer)
            timer.callback()


class Desk:
    """A decider over the shipped maps and policies, with a ledger in memory and no network."""

    def __init__(self) -> None:
        index = SurfaceIndex.compile(
            load_maps([packaged("surfaces") / "stripe", packaged("surfaces") / "slack"])
        )
        self.ledger, self.upstream, self.timers = MemoryLedger(), FakeUpstream(), Timers()
        bundle = Bundle(
            ends_us=NEVER_US,
            digest="sha256:" + "00" * 32,
            revision=0,
            signed=False,
            index=index,
            policies=load_policies([packaged("policies") / "stripe_refunds.yaml"], index),
        )
        self.pipeline = Pipeline(
            bundle=bundle,
            identify=lambda origin: BOT,
            ledger=self.ledger,
            dispatcher=self.upstream,
            evidence=Evidence(signer=KEY, issuer="test/log", node="n1", fleet_key=b"f" * 32, draw=bytes),
            show=Verdicts(node="n1", full=True, public_url=None),
            limits=Limits(),
            meter=FakeMeter(),
            clock=lambda: 0.0,
        )
        self.decider = Decider(
            pipeline=self.pipeline,
            agents={"bot": BOT, "other": OTHER},
            stored=self.stored,
            later=self.timers,
            settle_s=30,
        )

    async def stored(self, receipt_id: str) -> bytes | None:
        return next((entry.jws for entry in self.ledger.entries if entry.receipt_id == receipt_id), None)

    async def ask(
        self, about: ActionAsked | RequestAsked, agent: str = "bot", door: str = "execute"
    ) -> Decided:
        return await self.decider.ask(door, Question(agent=agent, about=about), agent)
