"""What is asked at a decision door: JSON of three protocols in, one Question out.

    POST /v1/decide             {"agent", "request": {"method", "url", "headers", "body_base64"}}
                                {"agent", "action": {"surface", "operation", "params"}, "idempotency_key"}
    POST /execute               TrigGuard: {"surface", "action", "context", "signals", "actorId", ...}
    POST /access/v1/evaluation  OpenID AuthZEN 1.0: {"subject", "action", "resource", "context"}

Everything that an asker says of an action is a parameter, and parameters that the map does not declare are
refused later; nothing that could matter is dropped. Who the agent is comes from the configuration: groups
and attributes that an asker claims for it are not read.

Invariants (tests/test_questions.py):
  Q1  Bytes become a Question or a QuestionError; nothing else is raised.
  Q2  A request becomes exactly the bytes that its parts spell: no part can bring a line of its own.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from .content.strictjson import Number, parse_json
from .errors import HoldgateError, InputError

__all__ = [
    "AUTHZEN",
    "DECIDE",
    "QUESTION_ID",
    "TRIGGUARD",
    "ActionAsked",
    "Question",
    "QuestionError",
    "RequestAsked",
    "read",
]

# The names of the doors, as receipts have them in `via`.
DECIDE: Final = "decide"
TRIGGUARD: Final = "execute"
AUTHZEN: Final = "evaluation"

# A header: who sends it is told an earlier answer again only under the same id.
QUESTION_ID: Final = "Holdgate-Question"

_URL: Final = re.compile(r"(https?)://([^/?#\s]+)(/[^#\s]*)?\Z")
_KEY: Final = re.compile(r"[\x20-\x7e]{1,255}\Z")
_KEY_NAMES: Final = ("idempotency_key", "idempotencyKey", "intent_id")
_EVIDENCE: Final = frozenset({"subjectDigest", "sessionId", "actor", "actorId"})


class QuestionError(HoldgateError):
    """Not a question of this protocol; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestAsked:
    """A whole HTTP/1.1 request, as bytes."""

    raw: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionAsked:
    """One action; `operation` may be "" where the surface has only one."""

    surface: str
    operation: str
    params: Mapping[str, Any]
    key: str  # idempotency key, "" when there is none


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    agent: str  # "": the asker speaks for one agent only
    about: RequestAsked | ActionAsked


def read(protocol: str, body: bytes) -> Question:
    """Raises QuestionError."""
    try:
        value = parse_json(body)
    except InputError as error:
        raise QuestionError(error.detail) from None
    return _READERS[protocol](_record(value, "the body"))


# --- holdgate ---


def _decide(body: Mapping[str, Any]) -> Question:
    _known(body, {"agent", "request", "action", "idempotency_key"}, "the body")
    if ("request" in body) == ("action" in body):
        raise QuestionError("the body has either `request` or `action`")
    agent = _text(body.get("agent", ""), "agent")
    if "request" in body:
        if "idempotency_key" in body:
            raise QuestionError("a request brings its own idempotency key")
        return Question(agent=agent, about=_request(_record(body["request"], "request")))
    action = _record(body["action"], "action")
    _known(action, {"surface", "operation", "params"}, "action")
    about = ActionAsked(
        surface=_text(action.get("surface"), "action.surface"),
        operation=_text(action.get("operation", ""), "action.operation"),
        params=_params(action.get("params", {}), "action.params"),
        key=_key(body, {}),
    )
    return Question(agent=agent, about=about)


def _request(parts: Mapping[str, Any]) -> RequestAsked:
    _known(parts, {"method", "url", "headers", "body_base64"}, "request")
    method = _line(parts.get("method"), "request.method")
    found = _URL.match(_text(parts.get("url"), "request.url"))
    if found is None:
        raise QuestionError("request.url is not http(s)://host[:port]/path")
    scheme, authority, target = found[1], found[2], found[3] or "/"
    body = _bytes(parts.get("body_base64", ""))
    rows = parts.get("headers", [])
    if not isinstance(rows, list):
        raise QuestionError("request.headers is a list of [name, value]")
    headers = [_header(row) for row in rows]
    names = {name.lower() for name, _ in headers}
    if "transfer-encoding" in names:
        raise QuestionError("request.headers: the body comes whole, so Transfer-Encoding has no place")
    first = [] if "host" in names else [("Host", authority)]
    last = [("Content-Length", str(len(body)))] if body and "content-length" not in names else []
    # Inside TLS the proxy reads a path, outside a whole URL: so it is spelled here too.
    target = target if scheme == "https" else f"http://{authority}{target}"
    lines = [f"{_line(method, 'request.method')} {_line(target, 'request.url')} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in (*first, *headers, *last)]
    return RequestAsked(raw="\r\n".join([*lines, "", ""]).encode() + body)


def _header(row: Any) -> tuple[str, str]:
    if not isinstance(row, list) or len(row) != 2:
        raise QuestionError("request.headers is a list of [name, value]")
    return _line(row[0], "a header's name"), _line(row[1], "a header's value")


def _bytes(value: Any) -> bytes:
    try:
        return base64.b64decode(_text(value, "request.body_base64"), validate=True)
    except (binascii.Error, ValueError):
        raise QuestionError("request.body_base64 is not base64") from None


# --- TrigGuard ---


def _execute(body: Mapping[str, Any]) -> Question:
    """Parameters are the members of `context` and of `signals`; the vendor's SDK has no `action` to set."""
    _known(body, {"surface", "action", "context", "signals", *_EVIDENCE, *_KEY_NAMES}, "the body")
    context = dict(_params(body.get("context") or {}, "context"))
    key = _key(body, context)
    for name in _KEY_NAMES:
        context.pop(name, None)
    action = body["action"] if "action" in body else context.pop("action", "")
    signals = _params(body.get("signals") or {}, "signals")
    if context.keys() & signals.keys():
        raise QuestionError(f"{min(context.keys() & signals.keys())!r} is in context and in signals")
    about = ActionAsked(
        surface=_text(body.get("surface"), "surface"),
        operation=_text(action, "action"),
        params=context | dict(signals),
        key=key,
    )
    return Question(agent=_text(body.get("actorId") or body.get("actor") or "", "actorId"), about=about)


# --- AuthZEN ---


def _evaluation(body: Mapping[str, Any]) -> Question:
    """subject.id is the agent, action.name the operation, resource.type the surface.

    Members that the specification does not name are allowed by it; so is a context, which may hold a key.
    """
    subject = _record(body.get("subject"), "subject")
    action = _record(body.get("action"), "action")
    resource = _record(body.get("resource"), "resource")
    context = _record(body.get("context", {}), "context")
    mine = _params(action.get("properties", {}), "action.properties")
    theirs = _params(resource.get("properties", {}), "resource.properties")
    if mine.keys() & theirs.keys():
        raise QuestionError(f"{min(mine.keys() & theirs.keys())!r} is a property of action and of resource")
    _text(subject.get("type"), "subject.type")
    about = ActionAsked(
        surface=_text(resource.get("type"), "resource.type"),
        operation=_text(action.get("name"), "action.name"),
        params={**mine, **theirs},
        key=_key({}, context),
    )
    agent = _text(subject.get("id"), "subject.id")
    if not agent:
        raise QuestionError("subject.id is empty")
    return Question(agent=agent, about=about)


_READERS: Final[Mapping[str, Callable[[Mapping[str, Any]], Question]]] = {
    DECIDE: _decide,
    TRIGGUARD: _execute,
    AUTHZEN: _evaluation,
}


# --- parts ---


def _record(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise QuestionError(f"{what} is not a JSON object")
    return value


def _known(record: Mapping[str, Any], names: set[str], what: str) -> None:
    unknown = sorted(record.keys() - names)
    if unknown:
        raise QuestionError(f"{what} has a member that is not known: {unknown[0]!r}")


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or isinstance(value, Number):
        raise QuestionError(f"{what} is not a text")
    return value


def _line(value: Any, what: str) -> str:
    text = _text(value, what)
    if "\r" in text or "\n" in text or "\0" in text:
        raise QuestionError(f"{what} is more than a line")
    return text


def _params(value: Any, what: str) -> Mapping[str, Any]:
    return _record(value, what)


def _key(body: Mapping[str, Any], context: Mapping[str, Any]) -> str:
    """The one idempotency key, under whichever name."""
    given = [
        record[name] for record in (body, context) for name in _KEY_NAMES if record.get(name) is not None
    ]
    if not given:
        return ""
    if any(value != given[0] for value in given):
        raise QuestionError("two idempotency keys")
    if not _KEY.match(_text(given[0], "the idempotency key")):
        raise QuestionError("the idempotency key is not 1 to 255 printable ASCII characters")
    return str(given[0])
