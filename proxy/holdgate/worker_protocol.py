"""What a proxy worker and its gate process say to each other: a Case in, its receipt out, on one socket.

    frame = 4 bytes length of head, 4 bytes length of tail (big endian), head, tail
    head  = canonical JSON, an object of one of the kinds in _SHAPES; tail = bytes that it speaks of

    worker -> gate: hello, ready, ask, withdraw, offer, outcome, end, figures
    gate -> worker: welcome and active (which bundle, which CA); recorded, superseded, refused, waiting or
                    converged (answers to an ask)

Both ends are one program of one version; strictness is for what is cut, mixed up or late. A Case travels
without its body: what the receipt says of it (digests, parameters) is computed where the bytes are. The gate
judges the Case under its own active bundle, and only if that is the one that recognised it.

The worker does not verify the signature of the answer, which costs as much as making it: the socket is in a
directory of mode 0700 and its peer's user is checked, and who could answer there could read the key. It does
check that the receipt is of exactly what was asked.

Invariants (tests/test_worker_protocol.py has one test named after each):
  WP1  Any bytes, in any pieces, are frames of these kinds or a WireError; no frame beyond the bounds is kept.
  WP2  A Case comes out as it went in: the same Entry is made of it, byte for byte.
  WP3  An answer is a Recorded only for exactly the case that was asked: agent, request.digest, wire digest
       and destination; a PERMIT only in words, under the bundle asked, of what was not refused already.

Long because what one end writes stands beside what the other end reads.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import orjson

from .agents import Agent
from .answer import Answer
from .case import Case, Target
from .errors import HoldgateError, Outcome, Reason
from .gate import Decision
from .jcs import JcsError, loads_accepted
from .keys import unb64url
from .ledger import Entry, OutcomeStatus, Recorded
from .message import Headers
from .recall import MAX_KEPT_BYTES
from .sealing import KEY_BYTES, KeptAnswer
from .standing import Made
from .standing import Told as Worth
from .statement import OUTCOME_OF, parse_us
from .surface.model import (
    Action,
    Bond,
    Deadlines,
    Effect,
    KeyRule,
    KeySource,
    Param,
    Produces,
    Recognised,
    Value,
)

__all__ = [
    "MAX_HEAD",
    "MAX_TAIL",
    "Frame",
    "FrameReader",
    "Kind",
    "Told",
    "ToldOutcome",
    "WireError",
    "encode",
    "plain_answer",
    "plain_case",
    "plain_kept",
    "plain_made",
    "plain_told",
    "read_answer",
    "read_case",
    "read_kept",
    "read_outcome",
    "read_recorded",
    "read_told",
]

MAX_HEAD: Final = 16 << 20  # a batch of some ten thousand actions
MAX_TAIL: Final = 2 << 20  # an answer that identical requests share has 1 MiB at most
_LENGTHS: Final = struct.Struct("!II")
_OBJECT: Final = re.compile(r"[0-9a-f]{64}\Z")
_SCALARS: Final = frozenset({str, int, bool})
_NO_DEADLINES: Final = Deadlines(connect_s=None, first_byte_s=None, total_s=None)
_NO_POLICY: Final = frozenset({Reason.POLICY_UNAVAILABLE, Reason.POLICY_EXPIRED})


class WireError(HoldgateError):
    """Not a frame, or not an answer to what was asked. The connection ends, and with it all that it holds."""


class Kind(StrEnum):
    HELLO = "hello"
    READY = "ready"
    OPEN = "open"
    ASK = "ask"
    WITHDRAW = "withdraw"
    OUTCOME = "outcome"
    OFFER = "offer"
    END = "end"
    FIGURES = "figures"
    WELCOME = "welcome"
    ACTIVE = "active"
    RECORDED = "recorded"
    SUPERSEDED = "superseded"
    REFUSED = "refused"
    WAITING = "waiting"
    CONVERGED = "converged"


# The members of each kind, beside its name. `n` numbers the questions of one connection.
_SHAPES: Final[Mapping[Kind, Mapping[str, type]]] = {
    Kind.HELLO: {"build": str, "role": str},
    Kind.READY: {"bundle": str},
    Kind.OPEN: {"ids": list},  # PERMITs of an earlier connection that it still has
    Kind.ASK: {"n": int, "bundle": str, "case": dict, "told": list},
    Kind.WITHDRAW: {"n": int},
    Kind.OUTCOME: {  # tail: a kept answer
        **{"id": str, "status": str, "http_status": int, "delivered": bool, "made": list}
    },
    Kind.OFFER: {"id": str, "answer": dict},  # tail: the body; before the outcome of that receipt
    Kind.END: {"flight": str, "answer": dict},  # tail: the body; answer {}: there is none to share
    Kind.FIGURES: {"figures": dict},
    Kind.WELCOME: {"bundle": str, "ca": str},
    Kind.ACTIVE: {"bundle": str, "ca": str},
    Kind.RECORDED: {  # tail: the JWS, then the kept answer that it recalls, of so many bytes
        **{"n": int, "index": int, "prior": str, "prior_status": int, "would": str},
        **{"produces": bool, "worth": str, "answer": int},
    },
    Kind.SUPERSEDED: {"n": int},
    Kind.REFUSED: {"n": int, "reason": str, "detail": str},
    Kind.WAITING: {"n": int},
    Kind.CONVERGED: {"n": int, "answer": dict},  # tail: the body
}
_WITH_TAIL: Final = frozenset({Kind.OFFER, Kind.OUTCOME, Kind.END, Kind.RECORDED, Kind.CONVERGED})


@dataclass(frozen=True, slots=True)
class Frame:
    kind: Kind
    head: Mapping[str, Any]  # exactly the members of its kind, with their types
    tail: bytes


def encode(kind: Kind, tail: bytes = b"", **head: object) -> bytes:
    """One frame. Raises WireError for what has no form or is too large."""
    try:
        data = orjson.dumps({"t": kind.value, **head}, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError as error:
        raise WireError(f"{kind}: {error}") from error
    if len(data) > MAX_HEAD or len(tail) > MAX_TAIL:
        raise WireError(f"{kind}: too large")
    return _LENGTHS.pack(len(data), len(tail)) + data + tail


class FrameReader:
    """Bytes of one direction of one connection in, frames out. After a WireError it is of no use."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are complete now. Raises WireError."""
        kept = self._kept
        kept += data
        frames, at = [], 0
        while len(kept) - at >= _LENGTHS.size:
            head_len, tail_len = _LENGTHS.unpack_from(kept, at)
            if not 0 < head_len <= MAX_HEAD or tail_len > MAX_TAIL:
                raise WireError("a frame beyond the bounds")
            begin = at + _LENGTHS.size
            end = begin + head_len + tail_len
            if len(kept) < end:
                break
            frames.append(_frame(bytes(kept[begin : begin + head_len]), bytes(kept[begin + head_len : end])))
            at = end
        del kept[:at]
        return frames


def _frame(data: bytes, tail: bytes) -> Frame:
    try:
        head = orjson.loads(data)
        canonical = orjson.dumps(head, option=orjson.OPT_SORT_KEYS) == data
    except (orjson.JSONDecodeError, orjson.JSONEncodeError, RecursionError) as error:
        raise WireError(f"not JSON: {error}") from error
    name = head.pop("t", None) if isinstance(head, dict) else None
    if not canonical or not isinstance(name, str) or name not in _SHAPES:
        raise WireError("not a frame of any kind")
    kind = Kind(name)
    shape = _SHAPES[kind]
    if head.keys() != shape.keys() or any(type(head[name]) is not shape[name] for name in shape):
        raise WireError(f"{kind}: not its members")
    if tail and kind not in _WITH_TAIL:
        raise WireError(f"{kind}: a tail that it does not have")
    return Frame(kind, head, tail)


# --- a case ---


@dataclass(frozen=True, slots=True, kw_only=True)
class _Elsewhere:
    """The Target of a case whose request is with a worker."""

    method: str
    host: str
    destination: str
    raw_target: bytes
    body: bytes = b""  # what is committed to is its hash, which came with the case


def plain_case(case: Case) -> dict[str, Any]:
    """The JSON form. `body_sha256` is computed by then where the operation is sensitive."""
    return {
        "agent": case.agent.id if case.agent is not None else "",
        "request": [] if case.request is None else _plain_target(case.request),
        "recognised": {} if case.recognised is None else _plain_recognised(case.recognised),
        "wire": case.wire,
        "raw_digest": case.raw_digest,
        "raw_bytes": case.raw_bytes,
        "refusal": case.refusal.value if case.refusal is not None else "",
        "count": case.count,
        "body_sha256": case.body_sha256.hex(),
    }


def _plain_target(request: Target) -> list[str]:
    return [request.method, request.host, request.destination, request.raw_target.decode("latin-1")]


def _plain_recognised(recognised: Recognised) -> dict[str, Any]:
    """Without what only sending needs: headers, deadlines, error shapes."""
    return {
        "actions": [
            [
                action.surface,
                action.operation,
                action.effect.value,
                [[param.name, param.value, param.public] for param in action.params],
                action.absent,
            ]
            for action in recognised.actions
        ],
        "target": recognised.target,
        "principal": recognised.principal,
        "keys": [[k.source.value, k.value, k.ttl_s, k.provider, k.keep] for k in recognised.keys],
        "require_key": recognised.require_key,
        "conflict_keys": recognised.conflict_keys,
        "digest": recognised.digest,
        "sensitive": recognised.sensitive,
        "bonds": [_plain_bond(bond) for bond in recognised.bonds],
        "produces": _plain_produces(recognised.produces),
    }


def _plain_bond(bond: Bond | None) -> list[Any]:
    return [] if bond is None else [bond.object, bond.to, bond.once, bond.blind, bond.any_principal]


def _plain_produces(produces: Produces | None) -> list[Any]:
    if produces is None:
        return []
    return [*(produces.map, produces.path, produces.ttl_s), produces.header, produces.form, produces.host]


def read_case(plain: Mapping[str, Any], agents: Mapping[str, Agent]) -> Case:
    """The Case. Groups and attributes of its agent are those of `agents`. Raises WireError."""
    try:
        return _case(plain, agents)
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise WireError(f"not a case: {error!r}") from error


def _case(plain: Mapping[str, Any], agents: Mapping[str, Agent]) -> Case:
    agent, refusal = _text(plain, "agent"), _text(plain, "refusal")
    return Case(
        agent=agents[agent] if agent else None,
        request=_read_target(plain["request"]) if plain["request"] else None,
        recognised=_read_recognised(plain["recognised"]) if plain["recognised"] else None,
        wire=_text(plain, "wire"),
        raw_digest=_text(plain, "raw_digest"),
        raw_bytes=_number(plain, "raw_bytes"),
        refusal=Reason(refusal) if refusal else None,
        count=_number(plain, "count"),
        body_sha256=bytes.fromhex(_text(plain, "body_sha256")),
    )


def _read_target(plain: Any) -> Target:
    method, host, destination, target = _texts(plain)
    return _Elsewhere(method=method, host=host, destination=destination, raw_target=target.encode("latin-1"))


def _read_recognised(plain: Mapping[str, Any]) -> Recognised:
    principal = plain["principal"]
    return Recognised(
        actions=tuple(_read_action(row) for row in plain["actions"]),
        target=_text(plain, "target"),
        principal=None if principal is None else _text(plain, "principal"),
        keys=tuple(_read_key(row) for row in plain["keys"]),
        require_key=_flag(plain["require_key"]),
        conflict_keys=tuple(_texts(plain["conflict_keys"])),
        digest=_text(plain, "digest"),
        sensitive=_flag(plain["sensitive"]),
        headers=(),
        secret_headers=frozenset(),
        deadlines=_NO_DEADLINES,
        refusal="",
        retry_headers=(),
        bonds=tuple([_read_bond(row) if row else None for row in plain["bonds"]]),
        produces=_read_produces(plain["produces"]) if plain["produces"] else None,
    )


def _read_bond(row: Any) -> Bond:
    name, to, once, blind, any_principal = row
    return Bond(
        object=_is_text(name),
        to=tuple(_texts(to)),
        once=_flag(once),
        blind=_flag(blind),
        any_principal=_flag(any_principal),
    )


def _read_produces(row: Any) -> Produces:
    name, path, ttl_s, header, form, host = row
    if type(ttl_s) is not int:
        raise TypeError("ttl")
    return Produces(
        map=_is_text(name),
        path=tuple(_texts(path)),
        ttl_s=ttl_s,
        header=_is_text(header),
        form=_is_text(form),
        host=_is_text(host),
    )


def _read_action(row: Any) -> Action:
    surface, operation, effect, params, absent = row
    return Action(
        surface=_is_text(surface),
        operation=_is_text(operation),
        effect=Effect(effect),
        params=tuple([_read_param(param) for param in params]),
        absent=tuple([(name, text) for name, text in map(_texts, absent)]),
    )


def _read_param(row: Any) -> Param:
    name, value, public = row
    shown: Any = None if public is None else _read_value(public)
    return Param(name=_is_text(name), value=_read_value(value), public=shown)


def _read_value(value: Any) -> Value:
    kind = type(value)
    if kind in _SCALARS:
        found: Value = value
        return found
    if kind is list:
        return tuple([_read_value(item) for item in value])
    raise TypeError("not a value")


def _read_key(row: Any) -> KeyRule:
    source, value, ttl_s, provider, keeps = row
    if type(ttl_s) is not int:
        raise TypeError("ttl")
    return KeyRule(
        source=KeySource(source),
        value=_is_text(value),
        ttl_s=ttl_s,
        provider=_flag(provider),
        keep=_flag(keeps),
    )


def _is_text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError("not a text")
    return value


def _text(record: Mapping[str, Any], name: str) -> str:
    return _is_text(record[name])


def _texts(values: Any) -> list[str]:
    if type(values) is not list:
        raise TypeError("not a list")
    return [_is_text(value) for value in values]


def _number(record: Mapping[str, Any], name: str) -> int:
    value = record[name]
    if type(value) is not int or value < 0:
        raise TypeError(f"{name} is not a count")
    return value


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise TypeError("not a flag")
    return value


# --- what a remote gate said, where `gate:` names one: the worker has asked it ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    decision: Decision
    engine: str


def plain_told(told: Told | None) -> list[Any]:
    if told is None:
        return []
    decision = told.decision
    return [told.engine, decision.outcome.value, decision.reason.value, list(decision.rules)]


def read_told(plain: list[Any]) -> Told | None:
    """Raises WireError."""
    if not plain:
        return None
    try:
        engine, outcome, reason, rules = plain
        decision = Decision(outcome=Outcome(outcome), reason=Reason(reason), rules=tuple(_texts(rules)))
        return Told(decision=decision, engine=_is_text(engine))
    except (ValueError, TypeError) as error:
        raise WireError(f"not a decision: {error!r}") from error


# --- what was recorded ---


def read_recorded(frame: Frame, asked: Case, bundle: str) -> Recorded:
    """The answer to `asked`, which was recognised under the bundle of this digest. Raises WireError.

    Long because every field is checked where it is read.
    """
    head = frame.head
    jws, again = _split(frame)
    try:
        # Its spelling is not checked again: who wrote it has signed it so.
        statement = loads_accepted(unb64url(jws.split(b".")[1]))
        outcome, reason = Outcome(statement["outcome"]), Reason(statement["reason"])
        said = statement["request"]
        destination = statement.get("destination", "")
        answered = (statement["agent"], destination, said["digest"], said.get("wire", ""))
        policy = statement["policy"].get("digest", "")
        rules = statement.get("rules", [])
        recorded = Recorded(
            entry=Entry(
                receipt_id=_text(statement, "id"),
                outcome=outcome,
                reason=reason,
                rule=_is_text(rules[0]) if rules else "",
                surface=asked.recognised.actions[0].surface if asked.recognised else "",
                agent=_text(statement, "agent"),
                policy=_is_text(policy),
                iat_us=parse_us(statement["iat"]),
                wire=asked.wire,
                jws=jws,
                bindings=(),
                inputs=None,
                prior=head["prior"],
                prior_status=head["prior_status"],
                would=head["would"],
                produces=head["produces"],
                told=Worth(head["worth"]),
            ),
            index=head["index"],
            durable=True,
            answer=read_kept(again),
        )
        decides = statement["type"] == "decision" and OUTCOME_OF[reason] is outcome
    except (KeyError, ValueError, TypeError, IndexError, AttributeError, JcsError) as error:
        raise WireError(f"not a receipt: {error!r}") from error
    if not decides or "via" in statement or answered != _wanted(asked):
        raise WireError("a receipt of something else than was asked")
    if outcome is Outcome.PERMIT and (policy != bundle or asked.recognised is None or not asked.wire):
        raise WireError("a PERMIT under another bundle, or of what was not recognised")
    if asked.refusal is not None and reason not in _NO_POLICY | {asked.refusal}:
        raise WireError("another reason than that of the refusal")
    if recorded.answer is not None and reason is not Reason.ALREADY_EXECUTED:
        raise WireError("the answer to another request than one that was executed")
    return recorded


def _split(frame: Frame) -> tuple[bytes, bytes]:
    """The JWS and the kept answer behind it."""
    size, tail = frame.head["answer"], frame.tail
    if not 0 <= size <= len(tail):
        raise WireError("a kept answer that is not there")
    return tail[: len(tail) - size], tail[len(tail) - size :]


def _wanted(case: Case) -> tuple[str, str, str, str]:
    return (
        case.agent.id if case.agent is not None else "",
        case.request.destination if case.request is not None else "",
        case.recognised.digest if case.recognised is not None else case.raw_digest,
        case.wire,
    )


def plain_made(made: Made | None) -> list[Any]:
    """The object that an answer named, beside its outcome."""
    return [] if made is None else [made.key, made.ttl_us, made.told.value]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToldOutcome:
    receipt_id: str
    status: OutcomeStatus
    http_status: int
    delivered: bool
    made: Made | None  # the object that its answer named
    kept: KeptAnswer | None  # its answer, for repeats


def read_outcome(frame: Frame) -> ToldOutcome:
    """Raises WireError."""
    head = frame.head
    try:
        return ToldOutcome(
            receipt_id=head["id"],
            status=OutcomeStatus(head["status"]),
            http_status=head["http_status"],
            delivered=head["delivered"],
            made=_read_made(head["made"]) if head["made"] else None,
            kept=read_kept(frame.tail),
        )
    except (ValueError, TypeError) as error:
        raise WireError(f"not an outcome: {error}") from error


def plain_kept(kept: KeptAnswer | None) -> bytes:
    """A kept answer as (part of) a tail: its key, then what is sealed; nothing for none."""
    return b"" if kept is None else kept.key + kept.data


def read_kept(tail: bytes) -> KeptAnswer | None:
    """Raises WireError."""
    if not tail:
        return None
    if not KEY_BYTES < len(tail) <= KEY_BYTES + MAX_KEPT_BYTES:
        raise WireError("not a kept answer")
    return KeptAnswer(key=tail[:KEY_BYTES], data=tail[KEY_BYTES:])


def _read_made(row: list[Any]) -> Made:
    key, ttl_us, worth = row
    if not _OBJECT.match(_is_text(key)) or type(ttl_us) is not int or not 0 < ttl_us < 1 << 62:
        raise TypeError("not an object")
    return Made(key=key, ttl_us=ttl_us, told=Worth(worth))


# --- an answer that identical requests share ---


def plain_answer(answer: Answer | None) -> tuple[dict[str, Any], bytes]:
    """Head and tail; ({}, b"") for none, one that is still arriving, and one that is too large."""
    if answer is None or answer.rest is not None or len(answer.body) > MAX_TAIL:
        return {}, b""
    return {
        "status": answer.status,
        "reason": answer.reason.decode("latin-1"),
        "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in answer.headers],
        "length": answer.length,
        "bodiless": answer.bodiless,
        "close": answer.close,
    }, answer.body


def read_answer(plain: Mapping[str, Any], body: bytes) -> Answer | None:
    """Raises WireError."""
    if not plain:
        return None
    try:
        length = plain["length"]
        headers: Headers = tuple(
            (name.encode("latin-1"), value.encode("latin-1"))
            for name, value in (_texts(row) for row in plain["headers"])
        )
        return Answer(
            status=_number(plain, "status"),
            reason=_text(plain, "reason").encode("latin-1"),
            headers=headers,
            body=body,
            rest=None,
            length=None if length is None else _number(plain, "length"),
            bodiless=_flag(plain["bodiless"]),
            close=_flag(plain["close"]),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise WireError(f"not an answer: {error!r}") from error
