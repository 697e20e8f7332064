"""What would be decided about one captured request, and why. Nothing is sent or recorded.

The same functions as in the pipeline, in the same order; claims are not looked at, because a second look at
the same key is not the same question. A captured request is taken as sent inside TLS to the name in its Host
header, or as plain HTTP when its target is an absolute http:// URL.

Invariants (tests/test_cli.py):
  Z1  explain() is total: a request that cannot be read is a SILENCE with its reason and detail.
  Z2  No credential is in the document, only its fingerprint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from . import gate
from .agents import Agent
from .bundle import Bundle
from .canonical import CanonicalRequest, canonicalise
from .captured import SOURCE, read_captured
from .case import decision_input
from .cel.evaluate import EvalError
from .claims import object_key
from .counters import fill, meters_of, uses_of_all
from .digest import CREDENTIAL_HEADERS, fingerprint
from .errors import InputError, Outcome, Reason
from .facts import state
from .flips import Flip, flips
from .gate import RuleTrace
from .ledger import Budgets, Total
from .limits import Limits
from .message import Message, Origin
from .standing import Prepared, bound_part
from .surface.index import SurfaceIndex
from .surface.model import Action, Recognised

__all__ = ["SOURCE", "Explained", "document", "explain", "plain_value", "recognised_input"]


def nothing_charged(meters: tuple[str, ...]) -> Mapping[str, Total]:
    return dict.fromkeys(meters, Total(sum=0, count=0))


def nothing_prepared(_: str) -> None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """As far as the request came; `detail` is why it came no further."""

    agent: Agent | None = None
    request: CanonicalRequest | None = None
    recognised: Recognised | None = None
    preimage: tuple[bytes, ...] = ()  # the parts of request.digest, in order (proxy/SPEC.md)
    inputs: dict[str, Any] | None = None
    decision: gate.Decision
    trace: tuple[RuleTrace, ...] = ()
    flips: tuple[Flip, ...] = ()  # the smallest changes that would decide otherwise
    detail: str = ""


def explain(
    raw: bytes,
    identify: Callable[[Origin], Agent],
    bundle: Bundle,
    limits: Limits,
    *,
    fleet_key: bytes,
    now_us: int,
    totals: Callable[[tuple[str, ...]], Mapping[str, Total]] = nothing_charged,
    facts: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    prepared: Callable[[str], Prepared | None] = nothing_prepared,
    bound: Mapping[str, Any] | None = None,
) -> Explained:
    """Take one raw HTTP/1.1 request, head and body, through steps 1 to 5.

    `totals` reads the meters of counters; without a ledger nothing has been charged yet. `facts`, by name,
    stand for what providers would have said; `prepared` reads what the ledger knows of an object, or `bound`
    stands for it.
    """
    silence = gate.Decision(outcome=Outcome.SILENCE, reason=Reason.INTERNAL_ERROR, rules=())
    so_far = Explained(decision=silence)
    try:
        message = _message(raw, limits, bundle.index)
        agent = identify(message.origin)
        so_far = replace(so_far, agent=agent)
        request = canonicalise(message)
        so_far = replace(so_far, request=request)
        recognised = bundle.index.recognise(request, fleet_key=fleet_key, body_bytes=limits.body_bytes)
        preimage = bundle.index.preimage(request, body_bytes=limits.body_bytes)
        so_far = replace(so_far, recognised=recognised, preimage=preimage)
        if recognised.require_key:
            raise InputError(Reason.MISSING_IDEMPOTENCY_KEY, "the map says on_missing: require")
    except InputError as error:
        return replace(so_far, decision=replace(silence, reason=error.reason), detail=error.detail)
    inputs = decision_input(agent, request, recognised, now_us)
    _bind(inputs, agent, request, recognised, fleet_key, now_us, prepared, bound)
    facts_of = bundle.policies.facts_of
    state(facts_of, inputs["agent"], inputs["actions"], facts, now_s=now_us // 1_000_000)
    _count(inputs, bundle, fleet_key, now_us, totals)
    return replace(
        so_far,
        inputs=inputs,
        decision=gate.decide(bundle.policies, inputs),
        trace=gate.trace(bundle.policies, inputs),
        flips=flips(bundle.policies, inputs),
    )


def recognised_input(raw: bytes, index: SurfaceIndex, limits: Limits, *, fleet_key: bytes) -> dict[str, Any]:
    """What a raw request contributes to a decision input, for policy tests. Raises InputError."""
    request = canonicalise(_message(raw, limits, index))
    recognised = index.recognise(request, fleet_key=fleet_key, body_bytes=limits.body_bytes)
    nobody = Agent(id="nobody", groups=(), attrs=())
    inputs = decision_input(nobody, request, recognised, 0)
    return {"actions": inputs["actions"], "request": inputs["request"]}


def _message(raw: bytes, limits: Limits, index: SurfaceIndex) -> Message:
    if b"\r\n" not in raw.partition(b"\n\n")[0]:  # a capture that an editor saved with plain line ends
        head, blank, body = raw.partition(b"\n\n")
        raw = head.replace(b"\n", b"\r\n") + (b"\r\n\r\n" if blank else b"") + body
    return read_captured(raw, limits, index)


def document(explained: Explained) -> dict[str, Any]:
    """The JSON form of `holdgate explain --json`."""
    decision, recognised = explained.decision, explained.recognised
    return {
        "request": {
            "canonical": _canonical(explained.request),
            "digest": recognised.digest if recognised else None,
            "preimage": [part.decode("utf-8", "backslashreplace") for part in explained.preimage],
        },
        "actions": [_action(action) for action in recognised.actions] if recognised else [],
        "agent": explained.agent.record() if explained.agent else None,
        "decision": {
            "outcome": decision.outcome.value,
            "reason": decision.reason.value,
            "rules": list(decision.rules),
        }
        | ({"detail": explained.detail} if explained.detail else {}),
        "trace": [_rule(rule) for rule in explained.trace],
        "flips": [_flip(flip) for flip in explained.flips],
        "input": explained.inputs,
    }


def _flip(flip: Flip) -> dict[str, Any]:
    return {
        "outcome": flip.decision.outcome.value,
        "reason": flip.decision.reason.value,
        "rules": list(flip.decision.rules),
        "changes": [
            {"action": each.action, "path": each.path, "from": each.before, "to": each.after}
            for each in flip.changes
        ],
    }


def _canonical(request: CanonicalRequest | None) -> dict[str, Any] | None:
    if request is None:
        return None
    headers = []
    for name, value in request.headers:
        secret = name.lower().decode("latin-1") in CREDENTIAL_HEADERS
        shown = f"(fingerprint {fingerprint(value)})" if secret else value.decode("utf-8", "replace")
        headers.append([name.decode("latin-1"), shown])
    return {
        "method": request.method,
        "scheme": request.scheme,
        "host": request.host,
        "port": request.port,
        "path": list(request.segments),
        "query": None if request.query is None else [list(pair) for pair in request.query],
        "headers": headers,
        "body": {"bytes": len(request.body), "sha256": hashlib.sha256(request.body).hexdigest()},
    }


def _action(action: Action) -> dict[str, Any]:
    return {
        "surface": action.surface,
        "operation": action.operation,
        "effect": action.effect.value,
        "params": {param.name: param.value for param in action.params},
    }


def _rule(rule: RuleTrace) -> dict[str, Any]:
    return {
        "action": rule.action,
        "rule": rule.rule,
        "effect": rule.effect.value,
        **({"shadow": True} if rule.shadow else {}),
        "result": rule.result,
        "conjuncts": [{"text": part.text, "value": plain_value(part.value)} for part in rule.conjuncts],
    }


def plain_value(value: object) -> Any:
    """What a conjunct came to, as JSON."""
    if isinstance(value, EvalError):
        return {"error": value.fault.value, "detail": value.detail}
    return value if isinstance(value, str | int) else str(value)


def _count(
    inputs: dict[str, Any],
    bundle: Bundle,
    fleet_key: bytes,
    now_us: int,
    totals: Callable[[tuple[str, ...]], Mapping[str, Total]],
) -> None:
    """Put the counters into each action."""
    uses = uses_of_all(bundle.policies.counters_of, inputs["agent"], inputs["actions"], secret=fleet_key)
    if uses:
        budgets = Budgets(totals=totals(meters_of(uses)), standing={})
        fill(inputs["actions"], uses, budgets, prior="", now_us=now_us)


def _bind(
    inputs: dict[str, Any],
    agent: Agent,
    request: CanonicalRequest,
    recognised: Recognised,
    fleet_key: bytes,
    now_us: int,
    prepared: Callable[[str], Prepared | None],
    bound: Mapping[str, Any] | None,
) -> None:
    """Put into each action what it acts on: `bound`, else what is known of it."""
    for action, bond in zip(inputs["actions"], recognised.bonds, strict=False):
        part = bound
        if part is None and bond is not None:
            known = prepared(object_key(request.destination, bond.object, fleet_key))
            part = bound_part(known, bond, now_us, agent=agent.id, principal=recognised.principal)
        if part is not None and bond is not None:
            action["bound"] = part
