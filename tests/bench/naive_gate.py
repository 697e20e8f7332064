"""The gate that the naive addon asks: an aiohttp server with one rule. Prints its port."""

from __future__ import annotations

import asyncio
from urllib.parse import parse_qs

from aiohttp import web


async def decide(request: web.Request) -> web.Response:
    question = await request.json()
    amount = int(parse_qs(question["body"])["amount"][0])
    is_small = question["path"] == "/v1/refunds" and amount <= 10_000
    return web.json_response({"decision": "PERMIT" if is_small else "DENY"})


async def main() -> None:
    app = web.Application()
    app.router.add_post("/decide", decide)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
