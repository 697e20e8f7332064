"""A recorded input becomes frames that rules can be evaluated on, or the text of what is wrong with it.

The pipeline builds the input and the surface map has typed its parameters already. All of it is
checked again here, because a decision must not depend on who called: replay, tests and remote
callers hand in inputs too, and the evaluator relies on every value having its declared type.
Keys that no condition can name are ignored; parameters are not: one that the map does not
declare means that policy and map disagree about the request. A counter or a fact may be missing:
then it could not be read when the input was made, and the gate says so.

Invariants (tests/test_gate_input.py):
  N1  A frame holds values of the declared types only; anything else is a Problem.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from .cel.evaluate import Budget, Frame
from .cel.model import INT_MAX, INT_MIN
from .policy_model import ROOTS, Applicable, PolicySet
from .surface.model import Effect
from .value_types import MAX_LIST, ValueTest, is_int, is_string, is_strings

__all__ = ["Problem", "action_frame", "readable_counters", "shared_frame"]

_EFFECTS: Final = frozenset(effect.value for effect in Effect)
_APPROVAL_TEXTS: Final = ("id", "role", "approver", "request_digest")
_ACTION: Final = ROOTS.index("action")
_BOUND: Final = ROOTS.index("bound")
_UNBOUND: Final[Mapping[str, Any]] = {"params": {}}  # conditions ask with has()
_COUNTERS: Final = ROOTS.index("counters")
_FACTS: Final = ROOTS.index("facts")
_PARAMS: Final = ROOTS.index("params")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """The input is not what the surface map and the policies were written for. For operators."""

    detail: str


def shared_frame(policies: PolicySet, inputs: Any) -> Frame | Problem:
    """Check everything but the actions; the frame lacks the two slots that actions differ in."""
    if type(inputs) is not dict or type(inputs.get("v")) is not int or inputs["v"] != 1:
        return Problem(detail="the input is not a record of version 1")
    agent, request, clock = inputs.get("agent"), inputs.get("request"), inputs.get("clock")
    approvals = inputs.get("approvals")
    wrong = _wrong_agent(agent, policies.attr_tests) or _wrong_context(request, clock, approvals)
    if wrong is not None:
        return Problem(detail=wrong)
    return [None, agent, approvals, None, clock, None, None, None, request, None, None, Budget()]


def action_frame(shared: Frame, action: dict[str, Any], applicable: Applicable) -> Frame | Problem:
    """The frame of one action, on the budget of the whole decision."""
    params = action.get("params")
    bound = action.get("bound", _UNBOUND)
    wrong = _wrong_action(action) or _wrong_params(params, applicable) or _wrong_bound(bound, applicable)
    if wrong is not None:
        return Problem(detail=wrong)
    frame = shared.copy()
    frame[_ACTION] = action
    frame[_BOUND] = bound
    frame[_COUNTERS] = action.get("counters")
    frame[_FACTS] = action.get("facts")
    frame[_PARAMS] = params
    return frame


def readable_counters(action: Mapping[str, Any], applicable: Applicable) -> bool:
    """Whether every counter that this action charges is in the input, and can take it without overflow."""
    values = action.get("counters")
    if type(values) is not dict:
        return not applicable.counters
    for counter in applicable.counters:
        value = values.get(counter.name)
        if type(value) is not dict:
            return False
        # is_int(), written out: this is asked of every record, and of some three times.
        count = value.get("count")
        if type(count) is not int or not INT_MIN <= count <= INT_MAX:
            return False
        if counter.measure:
            total, amount = value.get("sum"), action["params"].get(counter.measure)
            if type(total) is not int or type(amount) is not int:
                return False
            if not (INT_MIN <= total <= INT_MAX and 0 <= amount <= INT_MAX - max(0, total)):
                return False
    return True


def _wrong_bound(bound: Any, applicable: Applicable) -> str | None:
    if bound is _UNBOUND:
        return None
    params = bound.get("params") if type(bound) is dict else None
    if type(params) is not dict or not is_string(bound.get("operation")):
        return "bound needs an operation and parameters"
    for name, fits in applicable.bound_tests.items():
        # Others of its parameters cannot be named by a condition.
        if name in params and not fits(params[name]):
            return f"bound.params.{name} does not have its declared type, or is too large"
    return None


def _wrong_agent(agent: Any, tests: Mapping[str, ValueTest]) -> str | None:
    if type(agent) is not dict or not is_string(agent.get("id")) or not is_strings(agent.get("groups")):
        return "agent needs an id and groups"
    attrs = agent.get("attrs")
    if type(attrs) is not dict:
        return "agent.attrs is not a record"
    for name, value in attrs.items():
        fits = tests.get(name)
        # An attribute that no Bundle declares cannot be named by a condition.
        if fits is not None and not fits(value):
            return f"agent.attrs.{name} does not have its declared type, or is too large"
    return None


def _wrong_context(request: Any, clock: Any, approvals: Any) -> str | None:
    if type(request) is not dict or not is_string(request.get("digest")):
        return "request needs a digest"
    if type(clock) is not dict:
        return "clock is not a record"
    for name in ("now_s", "hour_utc", "weekday_utc"):
        if not is_int(clock.get(name)):
            return f"clock.{name} is not int"
    if type(approvals) is not list or len(approvals) > MAX_LIST:
        return "approvals is not a list"
    for approval in approvals:
        if type(approval) is not dict or not is_int(approval.get("expires_s")):
            return "an approval needs expires_s"
        for name in _APPROVAL_TEXTS:
            if not is_string(approval.get(name)):
                return f"an approval needs {name}"
    return None


def _wrong_action(action: Mapping[str, Any]) -> str | None:
    effect = action.get("effect")
    if type(effect) is not str or effect not in _EFFECTS:
        return "action.effect is not one of read, prepare, commit, channel"
    if not is_string(action.get("host")):
        return "action.host is not string"
    if "principal" in action and not is_string(action["principal"]):
        return "action.principal is not string"
    return None


def _wrong_params(params: Any, applicable: Applicable) -> str | None:
    if type(params) is not dict:
        return "params is not a record"
    tests = applicable.tests
    for name, value in params.items():
        fits = tests.get(name)
        if fits is None:
            return f"params.{name} is not declared by the surface map"
        if not fits(value):
            return f"params.{name} is not {applicable.params[name].type}, or is too large"
    if not applicable.required <= params.keys():
        return f"params.{min(applicable.required - params.keys())} is absent"
    return None
