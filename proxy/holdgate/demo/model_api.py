"""A stand-in model provider: OpenAI's chat completions and Anthropic's messages, plain or as events.

The answer is fixed. A streamed answer is written one event at a time, so a relay that gathers before it
forwards is noticed: `between` is awaited before each event but the first.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

__all__ = ["ModelApi"]

type Json = dict[str, Any]

_WORDS = ("Refund ", "looks ", "fine.")


async def _no_wait() -> None:
    await asyncio.sleep(0)


class ModelApi:
    """`between` may be replaced by a test that wants to hold the stream."""

    def __init__(self) -> None:
        self.between: Callable[[], Awaitable[None]] = _no_wait

    def app(self) -> web.Application:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/v1/chat/completions", self._openai)
        app.router.add_post("/v1/messages", self._anthropic)
        app.router.add_get("/v1/models", self._models)
        return app

    async def _models(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"object": "list", "data": [{"id": "stand-in-1", "object": "model"}]})

    async def _openai(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        common: Json = {"id": "chatcmpl-1", "created": 1700000000, "model": asked.get("model", "")}
        if asked.get("stream"):
            events = [
                ("", common | {"object": "chat.completion.chunk", "choices": [_delta(word)]})
                for word in _WORDS
            ]
            return await self._stream(request, events, b"data: [DONE]\n\n")
        message = {"role": "assistant", "content": "".join(_WORDS)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}
        return web.json_response(common | {"object": "chat.completion", "choices": [choice], "usage": usage})

    async def _anthropic(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        message: Json = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": asked.get("model", ""),
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": 1, "output_tokens": 3},
        }
        if asked.get("stream"):
            return await self._stream(request, _anthropic_events(message), b"")
        content = [{"type": "text", "text": "".join(_WORDS)}]
        return web.json_response(message | {"content": content, "stop_reason": "end_turn"})

    async def _stream(
        self, request: web.Request, events: list[tuple[str, Json]], last: bytes
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for number, (name, data) in enumerate(events):
            if number:
                await self.between()
            head = f"event: {name}\n" if name else ""
            await response.write(f"{head}data: {json.dumps(data)}\n\n".encode())
        await response.write_eof(last)
        return response


def _delta(word: str) -> Json:
    return {"index": 0, "delta": {"role": "assistant", "content": word}, "finish_reason": None}


def _anthropic_events(message: Json) -> list[tuple[str, Json]]:
    block = {"type": "text", "text": ""}
    events: list[Json] = [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": block},
    ]
    for word in _WORDS:
        delta = {"type": "text_delta", "text": word}
        events.append({"type": "content_block_delta", "index": 0, "delta": delta})
    stop = {"stop_reason": "end_turn", "stop_sequence": None}
    events += [
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": stop, "usage": {"output_tokens": 3}},
        {"type": "message_stop"},
    ]
    return [(event["type"], event) for event in events]
