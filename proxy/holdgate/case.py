"""What is known of one request when it is judged, and what others are asked about it.

    Case -> the gate's whole input; lookups of facts; uses of counters; the request's part of a receipt

Pure. A Case is made by held.py (or a decision door) and judged by adjudicate.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Protocol

from .agents import Agent
from .bundle import Bundle
from .counters import Use, uses_of_all
from .errors import Reason
from .facts import Found, Lookup, lookups_of_all
from .quick import quick
from .surface.model import Action, Recognised

__all__ = [
    "Case",
    "Target",
    "counter_uses",
    "decision_input",
    "flight_name",
    "questions",
    "request_part",
]


class Target(Protocol):
    """Where a request would go, as far as a receipt and the gate are told: a CanonicalRequest is one."""

    @property
    def method(self) -> str: ...
    @property
    def host(self) -> str: ...
    @property
    def destination(self) -> str: ...
    @property
    def raw_target(self) -> bytes: ...
    @property
    def body(self) -> bytes: ...


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is known of one request when it is judged. Later steps may not have been reached."""

    agent: Agent | None
    request: Target | None
    recognised: Recognised | None
    wire: str  # "" when not recognised
    raw_digest: str  # digest of what arrived, for requests that could not be read
    raw_bytes: int
    refusal: Reason | None  # set: record this SILENCE and ask nobody
    count: int = 1  # refusals like this one that the receipt stands for
    via: str = ""  # the decision door that asked; "": a request that the proxy holds
    body_sha256: bytes = b""  # of a sensitive operation, where it was computed off the serial step
    facts: Mapping[Lookup, Found] = MappingProxyType({})  # what providers answered, before the serial step


def flight_name(agent: Agent, destination: str, recognised: Recognised) -> str:
    """Requests of one name are the same action by the same agent with the same credential. It has a key."""
    key = recognised.keys[0]
    parts = (agent.id, destination, recognised.principal or "", key.source.value, key.value)
    return "\0".join((*parts, recognised.digest))


def counter_uses(case: Case, bundle: Bundle, fleet_key: bytes) -> tuple[tuple[Use, ...], ...]:
    """The counters that its actions use, action by action."""
    recognised, request, agent = case.recognised, case.request, case.agent
    if recognised is None or request is None or agent is None:
        return ()
    counters_of = bundle.policies.counters_of
    if not any(counters_of(action.surface, action.operation) for action in recognised.actions):
        return ()
    actions = [_action_part(action, request, recognised) for action in recognised.actions]
    return uses_of_all(counters_of, _agent_part(agent), actions, secret=fleet_key)


def questions(case: Case, bundle: Bundle) -> tuple[Lookup, ...]:
    """What the policies want to know of others about this request."""
    recognised, request, agent = case.recognised, case.request, case.agent
    facts_of = bundle.policies.facts_of
    if recognised is None or request is None or agent is None:
        return ()
    if not any(facts_of(action.surface, action.operation) for action in recognised.actions):
        return ()
    actions = [_action_part(action, request, recognised) for action in recognised.actions]
    return lookups_of_all(facts_of, _agent_part(agent), actions)


def request_part(case: Case) -> dict[str, Any]:
    """`request` of its receipt: as much as is known."""
    part: dict[str, Any] = {"digest": case.raw_digest, "bytes": case.raw_bytes}
    if case.request is not None and case.request.method:
        part |= {"method": case.request.method}
    if case.recognised is not None:
        part |= {"target": case.recognised.target, "digest": case.recognised.digest}
    if case.wire:
        part["wire"] = case.wire
    return part


def decision_input(agent: Agent, request: Target, recognised: Recognised, now_us: int) -> dict[str, Any]:
    """The gate's whole input: canonical JSON types only (facts that vary are all in here)."""
    now_s = now_us // 1_000_000
    clock = datetime.fromtimestamp(now_s, UTC)
    return {
        "v": 1,
        "agent": _agent_part(agent),
        "actions": [_action_part(action, request, recognised) for action in recognised.actions],
        "request": {"digest": recognised.digest},
        "clock": {"now_s": now_s, "hour_utc": clock.hour, "weekday_utc": clock.isoweekday() % 7},
        "approvals": [],
    }


def _agent_part(agent: Agent) -> dict[str, Any]:
    return {"id": agent.id, "groups": list(agent.groups), "attrs": _plain(dict(agent.attrs))}


def _action_part(action: Action, request: Target, recognised: Recognised) -> dict[str, Any]:
    part: dict[str, Any] = {
        "surface": action.surface,
        "operation": action.operation,
        "effect": action.effect.value,
        "host": request.host,
        "params": {param.name: _plain(param.value) for param in action.params},
    }
    if recognised.principal is not None:
        part["principal"] = recognised.principal
    return part


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
