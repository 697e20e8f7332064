"""What policies may read of operations: their parameters, and those of the objects that they act on.

Invariants (tests/test_surface_index.py):
  SM30  A parameter has one type for all operations of a surface, or a policy of it is a ConfigError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter

from ..errors import ConfigError
from .model import ParamSchema
from .plan import MapRuntime, Operation
from .spec import ParamSpec
from .types import cel_type

__all__ = ["bound_schema", "param_schema"]


def param_schema(operations: Sequence[Operation]) -> Mapping[str, ParamSchema]:
    """The parameters of at least one operation, all of one surface. Raises ConfigError."""
    if len(operations) == 1:  # nothing can disagree
        params = sorted(operations[0].spec.params, key=attrgetter("name"))
        return {p.name: ParamSchema(type=cel_type(p.type), optional=_optional(p)) for p in params}
    schema: dict[str, ParamSchema] = {}
    first: dict[str, str] = {}
    times: dict[str, int] = {}
    for operation in operations:
        for param in operation.spec.params:
            kind, optional = cel_type(param.type), _optional(param)
            have = schema.get(param.name)
            if have is not None and have.type is not kind:
                raise ConfigError(
                    f"parameter {param.name!r} of surface {operation.spec.surface!r} is {have.type} in"
                    f" {first[param.name]} and {kind} in {operation.name}: name the operations in the policy,"
                    " or make the types equal"
                )
            times[param.name] = times.get(param.name, 0) + 1
            first.setdefault(param.name, operation.name)
            either = optional or (have is not None and have.optional)
            schema[param.name] = ParamSchema(type=kind, optional=either)
    return {
        name: row if times[name] == len(operations) else replace(row, optional=True)
        for name, row in sorted(schema.items())
    }


def bound_schema(
    operations: Iterable[Operation], maps: Callable[[str], MapRuntime]
) -> Mapping[str, ParamSchema]:
    """The parameters of what these are bound to.

    All are optional: which of several operations made the object is known only when it is used. One that
    two of those declare with different types is left out.
    """
    found: dict[str, ParamSchema | None] = {}
    for op in operations:
        binds = op.spec.binds
        if binds is None:
            continue
        makers = maps(binds.map) if binds.map else op.map
        for identity in binds.to:
            for param in makers.operation(identity).spec.params:
                schema = ParamSchema(type=cel_type(param.type), optional=True)
                found[param.name] = schema if found.get(param.name, schema) == schema else None
    return {name: schema for name, schema in sorted(found.items()) if schema is not None}


def _optional(param: ParamSpec) -> bool:
    return not (param.required or param.sources[0].startswith("const."))
