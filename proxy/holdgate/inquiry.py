"""What became of a permit in doubt: the question that its map writes, and what the vendor's answer shows.

    recorded permit, map -> Question -> (sent through the proxy like any request) -> Seen

The question is a read of the vendor's own API. It is built from what was recorded and from nothing else, and
whoever asks brings the credential: none is kept. Only that something happened can be seen. That a list does
not have it never proves that it did not happen: lists lag behind, have pages, and a request may still be
on its way.

Invariants (tests/test_inquiry.py has one test named after each):
  IQ1  see() is total: whatever the answer is, one of Seen.
  IQ2  EXECUTED needs a whole JSON answer with status 200, and exactly one item in it that has everything
       `where` says and was made not long before the (first) permit or later. Nothing else settles anything.
  IQ3  Nothing is asked where the answer could not be certain: no rule in the map, a batch, or a permit
       without the key (or condition) that `by` names.
  IQ4  What is asked is the read that the map names, at the permit's own destination, or it is not asked:
       no recorded value can add a header, a parameter or a path segment that makes it another one.
  IQ5  An echoed key is compared by its hash in the receipt. The key itself is nowhere kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final
from urllib.parse import quote, unquote

from .content.mediatype import parse_media_type
from .content.strictjson import JsonValue, Number, parse_json
from .errors import HoldgateError, InputError
from .explain import recognised_input
from .ledger import scoped_key
from .limits import Limits
from .message import Headers, ResponseHead
from .surface.index import SurfaceIndex
from .surface.model import KeySource
from .surface.plan import Operation
from .surface.spec import ReconcileSpec

__all__ = [
    "MAX_ANSWER_BYTES",
    "InquiryError",
    "Question",
    "Seen",
    "is_due",
    "question",
    "request_digest",
    "see",
]

MAX_ANSWER_BYTES: Final = 4 << 20
SKEW_S: Final = 300  # how far the vendor's clock may be behind ours
WITHIN_S: Final = 3600  # after this long nothing of the permit's exchange is under way
_MAX_NODES: Final = 400_000
_DAY_S: Final = 86_400.0
_LINE: Final = re.compile(r"[\x20-\x7e]{1,1024}\Z")
_QUERY_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9:._-]{0,63}\Z")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_HEADERS: Final = {
    "accept": "application/json",
    "accept-encoding": "identity",
    "user-agent": "holdgate-reconcile",
}


class InquiryError(HoldgateError):
    """This permit cannot be asked about; the text says why, without a recorded value in it."""


class Seen(StrEnum):
    """What an answer shows. Only EXECUTED is certain; everything else leaves the outcome unknown."""

    EXECUTED = "executed"
    ABSENT = "the answer does not have it, which proves nothing"
    SEVERAL = "more than one item of the answer fits"
    PART = "the answer is not known to be whole: it may have more pages"
    OTHER = "the answer is not what the map says: another status, type or shape, or cut"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One read to be sent through the proxy, and what to look for in its answer."""

    permit: str  # receipt id
    read: str  # full name of the operation
    scheme: str
    host: str
    port: int
    target: str  # path and query
    headers: tuple[tuple[str, str], ...]
    spec: ReconcileSpec
    known: Mapping[str, Any]  # params.NAME -> recorded value
    since_s: int
    is_key: Callable[[str], bool]  # whether a text is the permit's idempotency key

    @property
    def destination(self) -> str:
        return f"{self.host}:{self.port}"

    def request(self, credentials: Headers) -> bytes:
        """The request as it is sent inside TLS, or in clear to the proxy."""
        plain = self.port == _DEFAULT_PORTS[self.scheme]
        host = self.host if plain else self.destination
        target = self.target if self.scheme == "https" else f"http://{host}{self.target}"
        lines = [f"GET {target} HTTP/1.1", f"Host: {host}", *(f"{n}: {v}" for n, v in self.headers)]
        own = [name + b": " + value for name, value in credentials]
        return b"\r\n".join([*(line.encode("ascii") for line in lines), *own, b"\r\n"])


def question(
    statement: Mapping[str, Any],
    inputs: Mapping[str, Any],
    index: SurfaceIndex,
    *,
    first_s: int,
    fleet_key: bytes,
) -> Question:
    """What to ask about a permit: its receipt, its recorded input, and when (seconds) the first of those that
    it repeats was decided, which the vendor answers for all of them. Raises InquiryError.
    """
    actions = inputs["actions"]
    if len(actions) != 1:
        raise InquiryError("a batch cannot be asked about as one")
    action = actions[0]
    known = {f"params.{name}": value for name, value in action["params"].items()}
    key = statement.get("idempotency", {})
    op, spec = _how(index, action, known, key)
    host, _, port = str(statement["destination"]).rpartition(":")
    read = op.map.operation(spec.read)
    since_s = first_s - SKEW_S
    values = known | {"time.from": since_s, "time.until": int(inputs["clock"]["now_s"]) + WITHIN_S}
    scope = (statement["agent"], statement["destination"], action["surface"], action.get("principal", ""))

    def is_key(text: str) -> bool:
        hashed = scoped_key(KeySource.NATIVE, *scope, text, secret=fleet_key)
        return hashed == str(key.get("key_hash", ""))

    return Question(
        permit=statement["id"],
        read=read.name,
        scheme=_scheme(op, int(port)),
        host=host,
        port=int(port),
        target=_target(read, spec, values),
        headers=_headers(spec, values),
        spec=spec,
        known=known,
        since_s=since_s,
        is_key=is_key,
    )


def _how(
    index: SurfaceIndex, action: Mapping[str, Any], known: Mapping[str, Any], key: Mapping[str, str]
) -> tuple[Operation, ReconcileSpec]:
    """The operation, and how its map says that one asks about it. Raises InquiryError."""
    try:
        op = index.operation(action["surface"], action["operation"])
    except InputError:
        raise InquiryError(f"no map knows {action['operation']} any more") from None
    spec = op.spec.reconcile
    if spec is None:
        raise InquiryError(f"the map of {op.name} does not say how to ask (`reconcile:`)")
    if spec.by == "key" and key.get("source") != KeySource.NATIVE:
        raise InquiryError("it carried no idempotency key that the vendor could name")
    if spec.by != "key" and spec.by not in known:
        raise InquiryError(f"it did not have {spec.by}, by which the vendor allows one effect only")
    return op, spec


def _scheme(op: Operation, port: int) -> str:
    schemes = {pattern.scheme for pattern in op.map.head.hosts if pattern.port == port}
    if len(schemes) != 1:
        raise InquiryError(f"the map of {op.name} does not have port {port} as one scheme")
    return schemes.pop()


def _value(source: str, values: Mapping[str, Any]) -> str | None:
    """None: the parameter was not there."""
    value = source.removeprefix("const.") if source.startswith("const.") else values.get(source)
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str | int | None):
        raise InquiryError(f"{source} is not one value")
    return None if value is None else str(value)


def _target(read: Operation, spec: ReconcileSpec, values: Mapping[str, Any]) -> str:
    path = read.map.head.base + read.spec.path
    pairs: list[str] = []
    for part, source in spec.request:
        value = _value(source, values)
        kind, _, name = part.partition(".")
        if kind == "path":
            if value is None:
                raise InquiryError(f"{source} is not there, and {read.name} needs it in its path")
            path = path.replace(f"{{{name}}}", quote(value, safe="")).replace(
                f"{{{name}+}}", quote(value, safe="/")
            )
        elif kind == "query" and value is not None:
            pairs += [f"{quote(name, safe='')}={quote(value, safe='')}"] if name else _whole_query(value)
    return path + ("?" + "&".join(pairs) if pairs else "")


def _whole_query(text: str) -> list[str]:
    """The pairs of a recorded query, each decoded and encoded again, so that it has one reading."""
    pairs = []
    for pair in text.split("&"):
        name, equals, value = pair.partition("=")
        try:
            value = unquote(value, errors="strict")
        except UnicodeDecodeError:
            equals = ""
        if not equals or not value or "+" in pair or not _QUERY_NAME.match(name):
            raise InquiryError("what it was conditional on cannot be read in one way")
        pairs.append(f"{quote(name, safe=':')}={quote(value, safe='')}")
    return pairs


def _headers(spec: ReconcileSpec, values: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    headers = dict(_HEADERS)
    for part, source in spec.request:
        value = _value(source, values)
        if part.startswith("header.") and value is not None:
            if not _LINE.match(value) or value != value.strip():
                raise InquiryError(f"{source} cannot stand in a header")
            headers[part.removeprefix("header.")] = value
    return tuple(headers.items())


def request_digest(
    asked: Question, raw: bytes, index: SurfaceIndex, limits: Limits, *, fleet_key: bytes
) -> str:
    """What the receipt of this read will have as its `request.digest`. Raises InquiryError unless the proxy
    would recognise exactly the read that the map names."""
    try:
        found = recognised_input(raw, index, limits, fleet_key=fleet_key)
    except InputError as error:
        raise InquiryError(f"{asked.read} would not be recognised: {error.reason.value}") from None
    names = [action["operation"] for action in found["actions"]]
    if names != [asked.read] or found["actions"][0]["host"] != asked.host:
        raise InquiryError(f"it would be recognised as something else than {asked.read}")
    return str(found["request"]["digest"])


def is_due(first_s: float, last_s: float, now_s: float) -> bool:
    """Whether to ask again about a permit that was first asked about at `first_s` and last at `last_s`: when
    it has waited twice as long, at least daily."""
    return now_s - last_s >= min((now_s - first_s) / 2, _DAY_S)


# --- the answer ---


def see(asked: Question, head: ResponseHead, body: bytes) -> Seen:
    """What a complete answer shows. `body` has its transfer coding off."""
    try:
        answer = _decoded(head, body)
        spec = asked.spec
        items = _at(answer, spec.each) if spec.each else [answer]
        if not isinstance(items, list):
            return Seen.OTHER
        if not all(_equal(asked, known, _at(answer, path)) for known, path in spec.whole):
            return Seen.PART
        found = sum(_fits(asked, item) for item in items)
    except (InputError, ValueError):
        return Seen.OTHER
    return Seen.ABSENT if found == 0 else Seen.EXECUTED if found == 1 else Seen.SEVERAL


def _decoded(head: ResponseHead, body: bytes) -> JsonValue:
    """Raises InputError, ValueError."""
    if head.status != 200 or len(body) > MAX_ANSWER_BYTES:
        raise ValueError("no answer")
    if _only(head, b"content-encoding").strip().lower() not in ("", "identity"):
        raise ValueError("a coding that was not asked for")
    essence = parse_media_type(_only(head, b"content-type"))[0]
    if essence != "application/json" and not essence.endswith("+json"):
        raise ValueError("not JSON")
    return parse_json(body, max_nodes=_MAX_NODES)


def _only(head: ResponseHead, name: bytes) -> str:
    values = [value for key, value in head.headers if key.lower() == name]
    if len(values) > 1:
        raise ValueError("a header that is there twice")
    return values[0].decode("ascii") if values else ""


def _at(value: JsonValue, path: str) -> JsonValue:
    """None where there is nothing, or something else than records on the way."""
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _fits(asked: Question, item: JsonValue) -> bool:
    made_s = _seconds(_at(item, asked.spec.at))
    return (
        made_s is not None
        and made_s >= asked.since_s
        and all(_any_equal(asked, known, item, paths) for known, paths in asked.spec.where)
    )


def _any_equal(asked: Question, known: str, item: JsonValue, paths: Sequence[str]) -> bool:
    # What the request left out is not compared, but what it is recognised by was there (IQ3).
    if known.startswith("params.") and known not in asked.known:
        return True
    return any(_equal(asked, known, _at(item, path)) for path in paths)


def _equal(asked: Question, known: str, value: JsonValue) -> bool:
    if isinstance(value, Number) or not isinstance(value, str | int):
        return False
    if known == "key":
        return isinstance(value, str) and asked.is_key(value)
    if known.startswith("const."):
        return (value if isinstance(value, str) else json.dumps(value)) == known.removeprefix("const.")
    expected = asked.known.get(known)
    return type(value) is type(expected) and value == expected


def _seconds(value: JsonValue) -> int | None:
    """Seconds since the epoch of a number of them, or of an RFC 3339 time."""
    if type(value) is int:
        return value
    if not isinstance(value, str) or isinstance(value, Number):
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    return None if moment.tzinfo is None else int(moment.timestamp())
