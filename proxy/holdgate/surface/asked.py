"""An action that is named instead of sent: surface, operation and parameters in, Recognised out.

For the decision doors that ask about an action without a request (AuthZEN, TrigGuard). Parameters are as
policies see them: the types of cel-strict/1, no text to convert. Nothing of it can be forwarded: there are
no headers, no destination and no wire digest.

Invariants (tests/test_asked.py):
  SM33  Every parameter is declared by the operation and of its type, and no required one is missing.
  SM34  The digest names operation and parameters, and is never that of a request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ..digest import meaning_digest
from ..errors import InputError, Reason
from ..value_types import type_test
from .extract import action_of, plain
from .hiding import hide
from .index import SurfaceIndex
from .model import KeyRule, KeySource, Recognised, Value
from .plan import Operation
from .read import check_value
from .types import canonical_json

__all__ = ["recognise_asked"]

_KEY_TTL_S: Final = 86_400
_DOMAIN: Final = b"asked"  # no method of HTTP that we read, so no request has this first part


def recognise_asked(
    index: SurfaceIndex,
    surface: str,
    operation: str,  # full name; "" where the surface has only one
    params: Mapping[str, Any],
    *,
    key: str,  # the asker's idempotency key, "" when there is none
    fleet_key: bytes,
) -> tuple[Recognised, bytes]:
    """And the one spelling of what was asked: canonical JSON. Raises InputError."""
    op = index.operation(surface, operation)
    plan = op.plan
    values = _values(index, op, surface, params)
    action = action_of(op, values)
    if plan.sensitive:
        action = hide(op, action, fleet_key)
    named = {name: plain(value) for name, value in values.items()}
    meant = canonical_json({"operation": op.name, "params": named}).encode()
    rule = KeyRule(source=KeySource.NATIVE, value=key, ttl_s=_KEY_TTL_S, provider=False)
    recognised = Recognised(
        actions=(action,),
        target=plan.target,
        principal=None,
        keys=(rule,) if key else (),
        require_key=plan.require_key and not key,
        conflict_keys=(),
        digest=meaning_digest([_DOMAIN, meant], key=fleet_key if plan.sensitive else None),
        sensitive=plan.sensitive,
        headers=(),
        secret_headers=frozenset(),
        deadlines=plan.deadlines,
        refusal="problem",
        retry_headers=(),
    )
    return recognised, meant


def _values(index: SurfaceIndex, op: Operation, surface: str, params: Mapping[str, Any]) -> dict[str, Value]:
    schema = index.param_schema(surface, (op.name,))
    found: dict[str, Value] = {}
    plans = {param.name: param for param in op.plan.params}
    for name, value in params.items():
        declared = schema.get(name)
        if declared is None:
            raise InputError(Reason.UNKNOWN_PARAMETER, f"{name!r} is no parameter of {op.name}")
        if not type_test(declared.type)(value):
            raise InputError(Reason.PARAMETER_TYPE, f"{name!r} is not {declared.type}")
        found[name] = tuple(value) if isinstance(value, list) else value
        if name in plans:
            check_value(plans[name], found[name])
    missing = sorted(name for name, declared in schema.items() if not declared.optional and name not in found)
    if missing:
        raise InputError(Reason.MISSING_PARAMETER, f"{missing[0]!r} is missing")
    return found
