"""A stand-in for the part of Stripe's API that moves money: stateful, with Stripe's idempotency rules.

Payment intents, refunds, transfers, payouts, customers, and the events of what was made, with the key of the
request that made it. A refund beyond what was charged fails as at Stripe;
a repeated Idempotency-Key answers from the first call (`Idempotent-Replayed: true`), and the same key with
other parameters is an idempotency_error.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import time
from typing import Any
from urllib.parse import parse_qsl

from aiohttp import web

__all__ = ["StripeApi"]

type Json = dict[str, Any]


# What an object is when its request was executed, and the event that says so.
_EVENTS = {
    ("refund", "succeeded"): "refund.created",
    ("transfer", ""): "transfer.created",
    ("payout", ""): "payout.created",
    ("payment_intent", "succeeded"): "payment_intent.succeeded",
}


class _Problem(Exception):
    def __init__(self, status: int, code: str, message: str, kind: str = "invalid_request_error") -> None:
        self.status = status
        self.body: Json = {"error": {"type": kind, "code": code, "message": message}}


class StripeApi:
    """State of one account. `objects` maps id to object, in order of creation."""

    def __init__(self) -> None:
        self.objects: dict[str, Json] = {}
        self._numbers = itertools.count(1)
        self._keys: dict[str, tuple[str, int, Json]] = {}
        self.events: list[Json] = []  # oldest first
        self.delay_s = 0.0  # how long every answer takes
        self.cuts = ""  # "before": the next POST is lost on its way; "after": its answer is

    def charged(self, amount: int) -> str:
        """Make a payment intent that succeeded, without a request; its id."""
        identifier: str = self._intent({"amount": str(amount), "currency": "usd", "confirm": "true"})["id"]
        return identifier

    def of_kind(self, kind: str) -> list[Json]:
        return [thing for thing in self.objects.values() if thing["object"] == kind]

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_route("*", "/v1/{path:.+}", self._serve)
        return app

    async def _serve(self, request: web.Request) -> web.Response:
        body = await request.read()
        await asyncio.sleep(self.delay_s)
        parts = request.match_info["path"].split("/")
        key = request.headers.get("Idempotency-Key") if request.method == "POST" else None
        cuts = self.cuts if request.method == "POST" else ""
        if cuts == "before" and request.transport is not None:
            request.transport.abort()
            return web.Response()
        seen = hashlib.sha256(request.path_qs.encode() + b"\0" + body).hexdigest()
        headers = {"Request-Id": f"req_{next(self._numbers)}", "Stripe-Version": "2024-06-20"}
        if key is not None and key in self._keys:
            first, status, answer = self._keys[key]
            if first != seen:
                text = "Keys for idempotent requests can only be used with the same parameters."
                problem = _Problem(400, "idempotency_key_in_use", text, "idempotency_error")
                return web.json_response(problem.body, status=400, headers=headers)
            return web.json_response(answer, status=status, headers=headers | {"Idempotent-Replayed": "true"})
        try:
            if not request.headers.get("Authorization", "").startswith(("Bearer sk_", "Bearer rk_")):
                raise _Problem(401, "api_key_missing", "You did not provide an API key.")
            form = dict(parse_qsl(body.decode("utf-8"), keep_blank_values=True))
            asked = form if request.method == "POST" else dict(request.query)
            status, answer = 200, self._run(request.method, parts, asked)
            if request.method == "POST":
                self._note(answer, key)
        except _Problem as problem:
            status, answer = problem.status, problem.body
        if key is not None and status < 500:
            self._keys[key] = (seen, status, answer)
        if cuts and request.transport is not None:
            request.transport.abort()
        return web.json_response(answer, status=status, headers=headers)

    def _run(self, method: str, parts: list[str], form: dict[str, str]) -> Json:
        match method, parts:
            case "GET", ["events"]:
                return self._listed(form)
            case "GET", [kind]:
                data = [o for o in self.objects.values() if f"{o['object']}s" == kind]
                return {"object": "list", "url": f"/v1/{kind}", "has_more": False, "data": data}
            case "GET", [_, identifier]:
                return self._find(identifier)
            case "POST", ["payment_intents"]:
                return self._intent(form)
            case "POST", ["payment_intents", identifier, ("confirm" | "capture" | "cancel") as step]:
                intent = self._find(identifier)
                intent["status"] = "canceled" if step == "cancel" else "succeeded"
                return intent
            case "POST", ["refunds"]:
                return self._refund(form)
            case "POST", [("transfers" | "payouts" | "customers") as kind]:
                amount = {"amount": self._amount(form)} if kind != "customers" else {}
                return self._add(kind[:2], kind[:-1], form | amount)
            case _:
                raise _Problem(
                    404, "resource_missing", f"Unrecognized request URL ({method}: /v1/{'/'.join(parts)})."
                )

    def _note(self, thing: Json, key: str | None) -> None:
        name = _EVENTS.get((thing["object"], thing.get("status", "")))
        if name is not None:
            self.events.append(
                {
                    "id": f"evt_{next(self._numbers):06d}",
                    "object": "event",
                    "type": name,
                    "created": int(time.time()),
                    "data": {"object": dict(thing)},
                    "request": {"id": f"req_{next(self._numbers)}", "idempotency_key": key},
                }
            )

    def _listed(self, query: dict[str, str]) -> Json:
        """Newest first, at most `limit`."""
        low, high = int(query.get("created[gte]", "0")), int(query.get("created[lte]", str(2**40)))
        data = [
            event
            for event in reversed(self.events)
            if query.get("type", event["type"]) == event["type"] and low <= event["created"] <= high
        ]
        limit = int(query.get("limit", "10"))
        return {"object": "list", "url": "/v1/events", "has_more": len(data) > limit, "data": data[:limit]}

    def _intent(self, form: dict[str, str]) -> Json:
        status = "succeeded" if form.get("confirm") == "true" else "requires_confirmation"
        fields: Json = {
            "amount": self._amount(form),
            "currency": form.get("currency", "usd"),
            "status": status,
        }
        return self._add("pi", "payment_intent", fields)

    def _refund(self, form: dict[str, str]) -> Json:
        intent = self._find(form.get("payment_intent") or form.get("charge", ""))
        done = sum(r["amount"] for r in self.of_kind("refund") if r["payment_intent"] == intent["id"])
        amount = self._amount(form) if "amount" in form else intent["amount"] - done
        if amount > intent["amount"] - done:
            raise _Problem(400, "charge_already_refunded", "Refund amount is greater than unrefunded amount.")
        fields: Json = {"amount": amount, "payment_intent": intent["id"], "status": "succeeded"}
        return self._add("re", "refund", fields)

    def _amount(self, form: dict[str, str]) -> int:
        text = form.get("amount", "")
        if not (text.isascii() and text.isdigit() and int(text) > 0):
            raise _Problem(400, "parameter_invalid_integer", f"Invalid integer: {text}")
        return int(text)

    def _find(self, identifier: str) -> Json:
        if identifier not in self.objects:
            raise _Problem(404, "resource_missing", f"No such object: '{identifier}'")
        return self.objects[identifier]

    def _add(self, prefix: str, kind: str, fields: Json) -> Json:
        identifier = f"{prefix}_{next(self._numbers):06d}"
        thing: Json = {"id": identifier, "object": kind, "livemode": False, "created": 1700000000, **fields}
        self.objects[identifier] = thing
        return thing
