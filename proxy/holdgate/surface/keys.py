"""Idempotency and conflict keys of a request, as its map declares them.

Native key (the vendor's own), else natural (parameters that identify the action), else for a commit
the request digest itself. Reads and model calls have none: a repeat of one is a new request.

Invariants (tests/test_surface_keys.py):
  SM21  At most one key of a request; a native one wins over a natural one, that over the digest.
  SM22  A key that is not 1 to 255 printable ASCII characters refuses the request: it is never shortened.
"""

from __future__ import annotations

import re
from typing import Final

from ..errors import InputError, Reason
from .exchange import Exchange
from .extract import plain
from .model import Bond, Effect, KeyRule, KeySource, Value
from .plan import Operation
from .sources import MISSING
from .types import canonical_json

__all__ = ["IMPLICIT_TTL_S", "bond", "conflict_keys", "idempotency"]

IMPLICIT_TTL_S: Final = 86_400
_KEYLESS_SURFACE: Final = "model.invoke"
_PRINTABLE: Final = re.compile(r"[\x20-\x7e]{1,255}\Z")


def idempotency(
    op: Operation, exchange: Exchange, values: dict[str, Value], effect: Effect, digest: str
) -> tuple[tuple[KeyRule, ...], bool]:
    """The key of this request, and whether the map demands one that did not come. Raises InputError."""
    plan = op.plan
    native = _native(op, exchange)
    if effect is Effect.READ or effect is Effect.CHANNEL or op.spec.surface == _KEYLESS_SURFACE:
        return (), False
    if native is not None:
        rule = KeyRule(
            source=KeySource.NATIVE, value=native, ttl_s=plan.ttl_s, provider=plan.provider, keep=plan.keep
        )
        return (rule,), False
    natural = _natural(op, values)
    if natural is not None:
        rule = KeyRule(
            source=KeySource.NATURAL, value=natural, ttl_s=plan.window_s, provider=False, keep=plan.keep
        )
        return (rule,), False
    if effect is not Effect.COMMIT:
        return (), plan.require_key
    rule = KeyRule(source=KeySource.IMPLICIT, value=digest, ttl_s=IMPLICIT_TTL_S, provider=False)
    return (rule,), plan.require_key


def _native(op: Operation, exchange: Exchange) -> str | None:
    found: str | None = None
    for read in op.plan.key_sources:
        value = read(exchange)
        if value is MISSING:
            continue
        if found is not None:
            raise InputError(Reason.DUPLICATE_PARAMETER, "an idempotency key in two places")
        if type(value) is not str or not _PRINTABLE.match(value):
            raise InputError(
                Reason.PARAMETER_TYPE, "the idempotency key is not 1 to 255 printable characters"
            )
        found = value
    return found


def _natural(op: Operation, values: dict[str, Value]) -> str | None:
    """Canonical JSON of the operation and the named parameters; absent ones are part of the identity."""
    names = op.plan.natural
    if not any(name in values for name in names):
        return None
    named = {name: plain(values[name]) for name in names if name in values}
    return canonical_json([op.name, named])


def bond(op: Operation, values: dict[str, Value]) -> Bond | None:
    """The object that this operation is bound to. None: it is bound to none."""
    spec = op.spec.binds
    if spec is None:
        return None
    head = spec.map or op.map.head.name
    return Bond(
        object=f"{head}:{values[spec.by]}",
        to=tuple(f"{head}.{identity}" for identity in spec.to),
        once=spec.once,
        blind=spec.blind,
        any_principal=spec.any_principal,
    )


def conflict_keys(op: Operation, values: dict[str, Value]) -> list[str]:
    """What this request is about, for every declared thing of which a parameter is there.

    Of one parameter: its value, a key per item of a list. Of several: canonical JSON of those that are there.
    What is bound to an object is about that object, whether the map says so or not: what changes it and what
    acts on it must never be open together. `parallel` is for objects that nothing changes.
    """
    binds = op.spec.binds
    bound = bond(op, values) if binds is not None and not binds.parallel else None
    found = [f"{op.map.head.name}:bound={bound.object}"] if bound else []
    for key, names in op.plan.conflict:
        prefix = f"{op.map.head.name}:{key}="
        if len(names) == 1:
            value = values.get(names[0])
            items = value if type(value) is tuple else () if value is None else (value,)
            found += [f"{prefix}{item}" for item in items]
        elif any(name in values for name in names):
            found.append(prefix + canonical_json({n: plain(values[n]) for n in names if n in values}))
    return found
