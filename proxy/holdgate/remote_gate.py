"""A gate that somebody else runs: what it is asked, and what of its answer counts.

    Asked (agent, request, action) -> body of one question -> answer -> Decision

Three protocols: `holdgate` (POST /v1/decide of another instance, which signs a receipt for exactly this
request), OpenID AuthZEN 1.0 (POST /access/v1/evaluation) and TrigGuard (POST /execute). The last two
decide about actions: of several, all must be permitted.

An answer that is not one says so with RemoteError, and the request is SILENCE. A no is DENY where the
protocol says no, and SILENCE where it says nothing.

Invariants (tests/test_remote_gate.py):
  RG1  PERMIT comes only from an answer that says it in its protocol's own words, with status 200.
  RG2  With the protocol `holdgate`, only from a receipt that a known key, not retired or revoked, signed for
       this agent, this request.digest and this request.wire, and that is still valid.
  RG3  Any bytes with any status are a Decision or a RemoteError; nothing else is raised.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from .agents import Agent
from .canonical import CanonicalRequest
from .config_gate import RemoteProtocol
from .content.strictjson import parse_json
from .errors import HoldgateError, InputError, Outcome, Reason
from .gate import Decision
from .jcs import dumps_input
from .keys import NEVER, KeySet
from .receipt import ReceiptError, verify
from .statement import OUTCOME_OF, parse_us
from .surface.extract import plain
from .surface.model import Action, Recognised

if TYPE_CHECKING:
    from .policy_model import PolicySet

__all__ = [
    "PATHS",
    "Asked",
    "Gatekeeper",
    "Remote",
    "RemoteError",
    "RemoteProtocol",
    "Told",
    "combine",
    "engine",
    "questions",
    "read_answer",
]


PATHS: Final[Mapping[RemoteProtocol, str]] = {
    RemoteProtocol.HOLDGATE: "/v1/decide",
    RemoteProtocol.AUTHZEN: "/access/v1/evaluation",
    RemoteProtocol.TRIGGUARD: "/execute",
}
_MAX_ACTIONS: Final = 32  # questions for one request
# What TrigGuard's artefacts call a no (facts: receipts, 1.2). Any word that is not here is silence.
_TRIGGUARD: Final[Mapping[str, Outcome]] = {
    "PERMIT": Outcome.PERMIT,
    "DENY": Outcome.DENY,
    "BLOCK": Outcome.DENY,
}


class RemoteError(HoldgateError):
    """Not an answer to what was asked; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One held request, as far as a remote gate is told of it."""

    agent: Agent
    request: CanonicalRequest
    recognised: Recognised
    wire: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One answer, and the id under which the gate expects an outcome ("" when it expects none)."""

    decision: Decision
    id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """What a remote gate said of one request: its answers to all questions, as one."""

    decision: Decision
    engine: str
    id: str  # under which it expects the outcome, "" when it expects none

    def answer(self, policies: PolicySet, inputs: Mapping[str, Any]) -> Decision:
        """In the place of gate.decide()."""
        return self.decision


class Gatekeeper(Protocol):
    """Who is asked in place of the policies here; adapters/gate_client.py is one."""

    async def decide(self, asked: Asked) -> Remote:
        """Raises BackendError(GATE_TIMEOUT)."""
        ...

    def recorded(self, remote: Remote, receipt_id: str, outcome: Outcome) -> None:
        """What became of its decision here: the gate is told the outcome of what it permitted."""
        ...

    def unused(self, remote: Remote) -> None:
        """Nothing was recorded here under its decision, so nothing is sent: the gate is told so."""
        ...


def engine(protocol: RemoteProtocol) -> str:
    """What receipts name as the engine: nobody can replay such a decision here."""
    return f"remote/{protocol}"


def questions(protocol: RemoteProtocol, asked: Asked) -> tuple[bytes, ...]:
    """The bodies to post, one per question. Raises RemoteError."""
    if protocol is RemoteProtocol.HOLDGATE:
        return (dumps_input(_whole_request(asked)),)
    if len(asked.recognised.actions) > _MAX_ACTIONS:
        raise RemoteError(f"more than {_MAX_ACTIONS} actions")
    put = _evaluation if protocol is RemoteProtocol.AUTHZEN else _execute
    return tuple(dumps_input(put(asked, action)) for action in asked.recognised.actions)


def _whole_request(asked: Asked) -> dict[str, Any]:
    """What will be sent, so that both sides compute the same two digests."""
    request = asked.request
    authority = request.host if request.port == 443 else f"{request.host}:{request.port}"
    if request.scheme != "https":
        authority = f"{request.host}:{request.port}"
    headers = [[name.decode("latin-1"), value.decode("utf-8")] for name, value in asked.recognised.headers]
    return {
        "agent": asked.agent.id,
        "request": {
            "method": request.method,
            "url": f"{request.scheme}://{authority}{request.raw_target.decode('ascii')}",
            "headers": headers,
            "body_base64": base64.b64encode(request.body).decode(),
        },
    }


def _evaluation(asked: Asked, action: Action) -> dict[str, Any]:
    return {
        "subject": {"type": "agent", "id": asked.agent.id, "properties": asked.agent.record()},
        "action": {"name": action.operation, "properties": {"effect": action.effect.value}},
        "resource": {"type": action.surface, "id": asked.recognised.digest, "properties": _params(action)},
        "context": {"destination": asked.request.destination, "request_digest": asked.recognised.digest},
    }


def _execute(asked: Asked, action: Action) -> dict[str, Any]:
    return {
        "surface": action.surface,
        "action": action.operation,
        "actorId": asked.agent.id,
        "context": _params(action),
        "signals": {},
        "subjectDigest": asked.recognised.digest,
    }


def _params(action: Action) -> dict[str, Any]:
    return {param.name: plain(param.value) for param in action.params}


# --- answers ---


def read_answer(
    protocol: RemoteProtocol, status: int, body: bytes, asked: Asked, keys: KeySet, *, now_us: int
) -> Told:
    """Raises RemoteError."""
    try:
        value = parse_json(body)
    except InputError as error:
        raise RemoteError(f"status {status}, and {error.detail}") from None
    if not isinstance(value, dict):
        raise RemoteError(f"status {status}, and no JSON object")
    if protocol is RemoteProtocol.HOLDGATE:
        return _of_receipt(status, value, asked, keys, now_us)
    if protocol is RemoteProtocol.AUTHZEN:
        return Told(decision=_of_authzen(status, value))
    return Told(decision=_of_trigguard(status, value, asked))


def _of_authzen(status: int, answer: Mapping[str, Any]) -> Decision:
    decision = answer.get("decision")
    if status != 200 or type(decision) is not bool:
        raise RemoteError(f"status {status} without a decision")
    return _decision(Outcome.PERMIT if decision else Outcome.DENY, RemoteProtocol.AUTHZEN)


def _of_trigguard(status: int, answer: Mapping[str, Any], asked: Asked) -> Decision:
    word = answer.get("decision")
    if not isinstance(word, str) or status not in (200, 403):
        raise RemoteError(f"status {status} without a decision")
    outcome = _TRIGGUARD.get(word, Outcome.SILENCE)
    surfaces = {action.surface for action in asked.recognised.actions}
    if outcome is Outcome.PERMIT and (status != 200 or answer.get("surface", "") not in surfaces):
        raise RemoteError("a PERMIT of another status or surface")
    if outcome is Outcome.PERMIT and answer.get("enforcement") == "BLOCKED":
        raise RemoteError("a PERMIT that says BLOCKED")
    return _decision(outcome, RemoteProtocol.TRIGGUARD)


def _of_receipt(status: int, answer: Mapping[str, Any], asked: Asked, keys: KeySet, now_us: int) -> Told:
    receipt = answer.get("receipt")
    if status != 200 or not isinstance(receipt, str):
        raise RemoteError(f"status {status} without a receipt")
    try:
        verified = verify(receipt.encode("utf-8", "replace"), keys)
    except ReceiptError as error:
        raise RemoteError(f"the receipt is invalid: {error}") from None
    said, key = verified.statement, keys[verified.kid]
    # A gate answers with the key that it has in use. Another one's receipt counts only where the log places
    # it, and an answer comes without a proof.
    if (key.end_index, key.revoked_from_index) != (NEVER, NEVER):
        raise RemoteError("the receipt is by a key that was retired or revoked")
    if said["type"] != "decision":
        raise RemoteError("the receipt is not of a decision")
    outcome, reason = Outcome(said["outcome"]), Reason(said["reason"])
    if outcome is Outcome.PERMIT:
        _check_receipt(said, asked, now_us)
    rules = tuple(said.get("rules", ())) if outcome is not Outcome.SILENCE else ()
    return Told(decision=Decision(outcome=outcome, reason=reason, rules=rules), id=str(said["id"]))


def _check_receipt(said: Mapping[str, Any], asked: Asked, now_us: int) -> None:
    request = said["request"]
    if (request.get("digest"), request.get("wire")) != (asked.recognised.digest, asked.wire):
        raise RemoteError(
            "the receipt is of another request; with sensitive operations: of another fleet key"
        )
    if said["agent"] != asked.agent.id or said.get("destination") != asked.request.destination:
        raise RemoteError("the receipt is of another agent or destination")
    if parse_us(said["exp"]) <= now_us:
        raise RemoteError("the receipt has expired: an old answer, or a clock that runs ahead")


def _decision(outcome: Outcome, protocol: RemoteProtocol) -> Decision:
    if outcome is Outcome.SILENCE:
        return Decision(outcome=outcome, reason=Reason.NO_RULE_MATCHED, rules=())
    reason = Reason.PERMIT_RULE if outcome is Outcome.PERMIT else Reason.DENY_RULE
    return Decision(outcome=outcome, reason=reason, rules=(engine(protocol),))


def combine(decisions: Sequence[Decision]) -> Decision:
    """One for all actions of a request, as the embedded gate has it."""
    for outcome in (Outcome.DENY, Outcome.SILENCE):
        for decision in decisions:
            if decision.outcome is outcome:
                return decision
    if not decisions or any(OUTCOME_OF[decision.reason] is not Outcome.PERMIT for decision in decisions):
        return Decision(outcome=Outcome.SILENCE, reason=Reason.INTERNAL_ERROR, rules=())
    return decisions[0]
