"""Whether the `reconcile` of an operation fits its map: the read is there, takes what is asked, hides it too.

Invariant (tests/test_surface_plan.py):
  SM38  A `reconcile` that asks anything but a GET of effect `read` of its own map, with parts that this read
        takes, or that compares what the operation does not have, is a ConfigError.
"""

from __future__ import annotations

from ..digest import CREDENTIAL_HEADERS
from .model import Effect
from .plan import Operation, Plan
from .spec import ReconcileSpec
from .types import cel_type

__all__ = ["check_reconcile"]


def check_reconcile(op: Operation, *, sensitive: bool, has_native_key: bool) -> None:
    """Raises ConfigError."""
    spec = op.spec.reconcile
    if spec is None:
        return
    if op.spec.effect not in (Effect.PREPARE, Effect.COMMIT):
        raise op.fail("reconcile: only a prepare or a commit that is no batch can be asked about")
    _check_known(op, spec, has_native_key)
    read = _read(op, spec)
    if sensitive and not read.plan.sensitive:
        raise op.fail(f"reconcile.read: parameters get into {spec.read!r}, so it must be sensitive too")
    _check_request(op, spec, read)


def _check_known(op: Operation, spec: ReconcileSpec, has_native_key: bool) -> None:
    if spec.by == "key" and not has_native_key:
        raise op.fail("reconcile.by: `key` needs `idempotency: {from: ...}`")
    identified = [known for known, _ in spec.where] + [source for _, source in spec.request]
    if (spec.by == "key") != ("key" in identified) or spec.by not in identified:
        raise op.fail(f"reconcile.by: {spec.by!r} must be used in `where` or `with`, and `key` only by `key`")
    types = {param.name: cel_type(param.type) for param in op.spec.params}
    for known in (*identified, *(known for known, _ in spec.whole)):
        if not known.startswith("params."):
            continue
        name = known.removeprefix("params.")
        if name not in types:
            raise op.fail(f"reconcile names {name!r}, which is not a parameter")
        if types[name].startswith("list<"):
            raise op.fail(f"reconcile names {name!r}, which is a list: only one value can be compared")


def _read(op: Operation, spec: ReconcileSpec) -> Operation:
    if spec.read not in op.map.packed:
        raise op.fail(f"reconcile.read: {spec.read!r} is no operation of this map")
    read = op.map.operation(spec.read)
    plain = read.spec.target is None and read.spec.explode is None and "GET" in read.spec.methods
    if read.spec.effect != Effect.READ or not plain:
        raise op.fail(f"reconcile.read: {spec.read!r} is not a GET with the effect read")
    return read


def _check_request(op: Operation, spec: ReconcileSpec, read: Operation) -> None:
    filled = set()
    for part, _ in spec.request:
        kind, _, name = part.partition(".")
        where = f"reconcile.with: {part!r}"
        if kind == "path":
            filled.add(name)
        elif kind == "header" and name in op.map.credentials | CREDENTIAL_HEADERS:
            raise op.fail(f"{where} is a credential: who asks brings it")
        elif kind == "query" and name and not _takes(read.plan, name):
            raise op.fail(f"{where} is nothing that {spec.read!r} takes")
    if filled != set(read.variables):
        raise op.fail(f"reconcile.with: {spec.read!r} has the path variables {sorted(read.variables)}")


def _takes(plan: Plan, name: str) -> bool:
    return (
        plan.any_query
        or name in plan.single_query | plan.free_query
        or any(name.startswith(prefix) for prefix in plan.query_prefixes)
    )
