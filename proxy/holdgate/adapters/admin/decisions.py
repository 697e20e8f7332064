"""The decision doors over HTTP: own protocol, TrigGuard's and OpenID AuthZEN's, behind one Decider.

    body -> questions.read -> may this token ask for that agent? -> Decider -> the protocol's own answer

AuthZEN answers 200 to every evaluation. TrigGuard's SDK takes whatever is not 2xx for an exception, so a
DENY and a SILENCE are 403 there and cannot be mistaken. The own protocol answers 200 with the decision in
the body, and 503 where no receipt could be written. TrigGuard's answer has a receipt of its own form, which
is signed for it: where the signer does not answer, the answer is a 503 without any decision word, also where
a PERMIT is recorded. It stays recorded: asked again with the same key, it is the same one.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final, Protocol

from aiohttp import web
from aiohttp.web_protocol import RequestPayloadError

from ...config import AdminToken
from ...content.strictjson import parse_json
from ...errors import REASONS, BackendError, InputError, Outcome
from ...keys import Signer
from ...ledger import OutcomeStatus
from ...questions import AUTHZEN, DECIDE, QUESTION_ID, TRIGGUARD, QuestionError, read
from ...trigguard import trigguard_view
from ..decider import Decided, Decider
from .answers import json_answer
from .guard import PRESENTED, Problem
from .shapes import decode_jws

__all__ = ["DecisionDoors", "Doorkeeper"]

_REQUEST_ID: Final = re.compile(r"[\x21-\x7e]{1,128}\Z")
_BODY_S: Final = 30.0
_LARGE: Final = 16_384  # bytes of JSON that are read in a thread
_REPORTABLE: Final = {
    status.value: status
    for status in (
        OutcomeStatus.EXECUTED,
        OutcomeStatus.FAILED,
        OutcomeStatus.NOT_SENT,
        OutcomeStatus.UNKNOWN,
    )
}


class Doorkeeper(Protocol):
    """One running instance, as far as the doors need it."""

    @property
    def decider(self) -> Decider | None: ...
    @property
    def signer(self) -> Signer: ...
    @property
    def public_url(self) -> str | None: ...
    @property
    def question_bytes(self) -> int:
        """The largest body of a question."""
        ...


class DecisionDoors:
    def __init__(self, state: Doorkeeper) -> None:
        self._state = state

    async def decide(self, request: web.Request) -> web.Response:
        decided = await self._ask(request, DECIDE)
        body = _told(decided) | {"decision": decided.outcome.value}
        return json_answer(
            body, HTTPStatus.OK if decided.id else HTTPStatus.SERVICE_UNAVAILABLE, _echo(request)
        )

    async def execute(self, request: web.Request) -> web.Response:
        decided = await self._ask(request, TRIGGUARD)
        body: dict[str, Any] = {
            "decision": decided.outcome.value,
            "reason": decided.reason.value,
            "message": REASONS[decided.reason].text,
            "surface": decided.surface,
            "request_id": request.headers.get("X-Request-Id", "") or decided.id,
        }
        if decided.id:
            body["execution_id"] = body["decision_id"] = decided.id
            body["receipt"] = await self._view(decided.jws)
        permitted = decided.outcome is Outcome.PERMIT
        status = (
            HTTPStatus.OK
            if permitted
            else HTTPStatus.FORBIDDEN
            if decided.id
            else HTTPStatus.SERVICE_UNAVAILABLE
        )
        return json_answer(
            body, status, {"X-Request-Id": str(body["request_id"])} if body["request_id"] else {}
        )

    async def _view(self, jws: bytes) -> dict[str, Any]:
        # In a thread: the key may be with an external signer, and this loop holds agents' requests.
        try:
            return await asyncio.to_thread(trigguard_view, decode_jws(jws), self._state.signer)
        except BackendError as error:
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, "The signer does not answer.") from error

    async def evaluation(self, request: web.Request) -> web.Response:
        decided = await self._ask(request, AUTHZEN)
        body = {"decision": decided.outcome is Outcome.PERMIT, "context": _told(decided)}
        return json_answer(body, HTTPStatus.OK, _echo(request))

    async def authzen(self, request: web.Request) -> web.Response:
        """Policy decision point metadata (AuthZEN 1.0, section 9)."""
        url = self._state.public_url
        if url is None or self._state.decider is None:
            raise Problem(HTTPStatus.NOT_FOUND, "admin.public_url is not set.")
        where = f"{url}/access/v1/evaluation"
        return json_answer({"policy_decision_point": url, "access_evaluation_endpoint": where})

    async def outcome(self, request: web.Request) -> web.Response:
        """What became of a permitted action: {"id", "status", "http_status"}."""
        decider, token = self._decider(request)
        try:
            body = parse_json(await _body(request, self._state.question_bytes))
        except InputError as error:
            raise Problem(HTTPStatus.BAD_REQUEST, f"{error.detail}.") from None
        if not isinstance(body, dict) or body.keys() - {"id", "status", "http_status"}:
            raise Problem(HTTPStatus.BAD_REQUEST, "The body is an object with id, status and http_status.")
        status, code = body.get("status"), body.get("http_status", 0)
        if type(status) is not str or status not in _REPORTABLE:
            raise Problem(HTTPStatus.BAD_REQUEST, f"status is one of: {', '.join(_REPORTABLE)}.")
        if type(code) is not int or (code and not 100 <= code <= 599):
            raise Problem(HTTPStatus.BAD_REQUEST, "http_status is 100 to 599, or left out.")
        if not decider.settle(str(body.get("id", "")), token.agents, _REPORTABLE[status], code):
            raise Problem(HTTPStatus.CONFLICT, "No permit of this id waits for an outcome from this token.")
        return json_answer({"recorded": True})

    async def _ask(self, request: web.Request, door: str) -> Decided:
        decider, token = self._decider(request)
        body = await _body(request, self._state.question_bytes)
        try:
            question = await asyncio.to_thread(read, door, body) if len(body) > _LARGE else read(door, body)
        except QuestionError as error:
            raise Problem(HTTPStatus.BAD_REQUEST, f"{error}.") from None
        agent = question.agent or (token.agents[0] if len(token.agents) == 1 else "")
        if agent not in token.agents:
            # One answer for unknown agents and for those of others: nobody learns who exists.
            raise Problem(HTTPStatus.FORBIDDEN, "This token may not ask for that agent.")
        return await decider.ask(door, question, agent, request.headers.get(QUESTION_ID, ""))

    def _decider(self, request: web.Request) -> tuple[Decider, AdminToken]:
        decider, token = self._state.decider, request.get(PRESENTED)
        if decider is None or not isinstance(token, AdminToken):
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, "Decisions are not made here now.")
        return decider, token


async def _body(request: web.Request, most: int) -> bytes:
    if request.content_type != "application/json":
        raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Send application/json.")
    if "Content-Encoding" in request.headers:
        raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Send the body in no coding.")
    data = bytearray()
    try:
        async with asyncio.timeout(_BODY_S):
            async for chunk in request.content.iter_chunked(65_536):
                data += chunk
                if len(data) > most:
                    raise Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"At most {most} bytes.")
    except TimeoutError:
        raise Problem(HTTPStatus.REQUEST_TIMEOUT, f"The body did not come within {_BODY_S:g} s.") from None
    except (RequestPayloadError, OSError):
        raise Problem(HTTPStatus.BAD_REQUEST, "The body broke off.") from None
    return bytes(data)


def _told(decided: Decided) -> dict[str, Any]:
    told: dict[str, Any] = {"outcome": decided.outcome.value, "reason": decided.reason.value}
    if decided.id:
        told |= {"id": decided.id, "receipt": decided.jws.decode("ascii")}
    if decided.rules:
        told["rules"] = list(decided.rules)
    if decided.surface:
        told["surface"] = decided.surface
    if decided.repeated:
        told["repeated"] = True
    if decided.outcome is not Outcome.PERMIT:
        told["retryable"] = REASONS[decided.reason].retryable
    return told


def _echo(request: web.Request) -> Mapping[str, str]:
    """AuthZEN 1.0, 10.1.4: the asker's request id comes back."""
    name = request.headers.get("X-Request-ID", "")
    return {"X-Request-ID": name} if _REQUEST_ID.match(name) else {}
