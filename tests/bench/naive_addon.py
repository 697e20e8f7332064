"""Loaded by mitmdump: what a user would write. It asks an HTTP gate, by aiohttp, about every request."""

from __future__ import annotations

import os

import aiohttp
from mitmproxy import http


class AskGate:
    def __init__(self) -> None:
        self.session: aiohttp.ClientSession | None = None

    async def request(self, flow: http.HTTPFlow) -> None:
        if self.session is None:
            self.session = aiohttp.ClientSession()
        question = {
            "method": flow.request.method,
            "host": flow.request.host,
            "path": flow.request.path,
            "body": flow.request.get_text(),
        }
        async with self.session.post(os.environ["BENCH_GATE"], json=question) as answer:
            verdict = await answer.json()
        if verdict["decision"] != "PERMIT":
            flow.response = http.Response.make(403, b"refused")


addons = [AskGate()]
