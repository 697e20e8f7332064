"""All stand-in vendors of one run, on free loopback ports, in a thread of their own.

    with StandIns() as vendors:
        vendors.ports["stripe"], vendors.counts("stripe"), vendors.stripe.objects

They speak plain HTTP on 127.0.0.1 only; the proxy reaches them by `connect_to: {address, tls: false}`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable
from types import TracebackType
from typing import Self

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from .fhir_api import FhirApi
from .model_api import ModelApi
from .recorder import Counts, Recorder, tap
from .s3_api import S3Api
from .slack_api import SlackApi
from .stripe_api import StripeApi

__all__ = ["StandIns"]

_LOOPBACK = "127.0.0.1"
# The names under which the starter maps know these vendors.
_NAMES = {
    "api.stripe.com": "stripe",
    "*.s3.eu-central-1.amazonaws.com": "s3",
    "s3.eu-central-1.amazonaws.com": "s3",
    "slack.com": "slack",
    "www.slack.com": "slack",
    "fhir.example.org": "fhir",
    "api.openai.com": "model",
    "api.anthropic.com": "model",
}


class StandIns:
    """Context manager: starts on enter, closes every connection on exit."""

    def __init__(self, *, fhir_base: str = "/fhir/R4") -> None:
        self.stripe = StripeApi()
        self.s3 = S3Api()
        self.slack = SlackApi()
        self.fhir = FhirApi(fhir_base)
        self.model = ModelApi()
        self._apps = {
            "stripe": self.stripe.app(),
            "s3": self.s3.app(),
            "slack": self.slack.app(),
            "fhir": self.fhir.app(),
            "model": self.model.app(),
        }
        self.recorders = {name: Recorder() for name in self._apps}
        self.ports: dict[str, int] = {}
        self._loop = asyncio.new_event_loop()
        self._runners: list[web.AppRunner] = []
        self._servers: list[asyncio.Server] = []
        self._thread = threading.Thread(target=self._loop.run_forever, name="stand-ins", daemon=True)

    def counts(self, vendor: str) -> Counts:
        return self.recorders[vendor].counts

    def address(self, vendor: str) -> str:
        return f"{_LOOPBACK}:{self.ports[vendor]}"

    def connect_to(self) -> dict[str, str]:
        """`upstream.connect_to` of a proxy in front of these vendors: `name:port` -> address."""
        return {f"{name}:443": self.address(vendor) for name, vendor in _NAMES.items()}

    def __enter__(self) -> Self:
        self._thread.start()
        self._await(self._start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._await(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()

    def _await(self, work: Awaitable[None]) -> None:
        async def run() -> None:
            await work

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(timeout=20)

    async def _start(self) -> None:
        for name, app in self._apps.items():
            recorder = self.recorders[name]
            app.middlewares.append(_recording(recorder))
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            self._runners.append(runner)
            if runner.server is None:
                raise RuntimeError("the HTTP server did not start")
            server = await self._loop.create_server(tap(runner.server, recorder), _LOOPBACK, 0)
            self._servers.append(server)
            self.ports[name] = server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        for server in self._servers:
            server.close()
        for runner in self._runners:
            await runner.cleanup()


def _recording(recorder: Recorder) -> Middleware:
    @web.middleware
    async def record(request: web.Request, handler: Handler) -> web.StreamResponse:
        body = await request.read()
        recorder.requests.append((request.method, request.path_qs, dict(request.headers), body))
        return await handler(request)

    return record
