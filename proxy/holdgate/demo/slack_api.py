"""A stand-in for Slack's Web API: messages in channels, JSON or form requests, `ok` in every answer."""

from __future__ import annotations

import itertools
import json
from typing import Any
from urllib.parse import parse_qsl

from aiohttp import web

__all__ = ["SlackApi"]

type Json = dict[str, Any]

_CHANNELS = ({"id": "C0000000001", "name": "general"}, {"id": "C0000000002", "name": "support"})


class SlackApi:
    """`messages` holds every message that exists, in order."""

    def __init__(self) -> None:
        self.messages: list[Json] = []
        self._numbers = itertools.count(1)

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_route("*", "/api/{method}", self._serve)
        return app

    async def _serve(self, request: web.Request) -> web.Response:
        body = await request.read()
        if "json" in request.headers.get("Content-Type", ""):
            args = json.loads(body or b"{}")
        else:
            args = dict(parse_qsl(body.decode("utf-8"))) | dict(request.query)
        if not request.headers.get("Authorization", "").startswith("Bearer xox") and "token" not in args:
            return web.json_response({"ok": False, "error": "not_authed"})
        return web.json_response(self._run(request.match_info["method"], args))

    def _run(self, method: str, args: Json) -> Json:
        match method:
            case "auth.test" | "api.test":
                return {"ok": True, "team": "Stand-in", "user": "agent", "user_id": "U0000000001"}
            case "conversations.list":
                return {"ok": True, "channels": list(_CHANNELS), "response_metadata": {"next_cursor": ""}}
            case "conversations.history":
                found = [m for m in self.messages if m["channel"] == args.get("channel")]
                return {"ok": True, "messages": found, "has_more": False}
            case "chat.postMessage":
                if not args.get("channel"):
                    return {"ok": False, "error": "channel_not_found"}
                stamp = f"17000000{next(self._numbers):02d}.000100"
                message = {"channel": args["channel"], "text": args.get("text", ""), "ts": stamp}
                self.messages.append(message)
                return {"ok": True, "channel": args["channel"], "ts": stamp, "message": message}
            case "chat.update" | "chat.delete":
                return self._change(method, args)
            case _:
                return {"ok": False, "error": "unknown_method"}

    def _change(self, method: str, args: Json) -> Json:
        for message in self.messages:
            if (message["channel"], message["ts"]) == (args.get("channel"), args.get("ts")):
                if method == "chat.delete":
                    self.messages.remove(message)
                else:
                    message["text"] = args.get("text", "")
                return {"ok": True, "channel": message["channel"], "ts": message["ts"]}
        return {"ok": False, "error": "message_not_found"}
