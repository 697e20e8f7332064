"""Sources become functions that read one value from an Exchange; params become plans of them.

Invariant (tests/test_surface_extract.py):
  SM17  A parameter has the value of exactly one source, and two sources at once are refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError, Reason
from .exchange import Exchange, json_text
from .model import CelType, Value
from .sources import MISSING, ShapeError, Source, dig
from .spec import ParamSpec
from .types import Converter, cel_type, converter

__all__ = ["ParamPlan", "Reader", "Tests", "check_value", "compile_param", "read_param", "reader_of", "typed"]

type Reader = Callable[[Exchange], Any]
type PathValue = Callable[[str, Exchange], str]  # of a variable of the operation's path
type Tests = tuple[tuple[Reader, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ParamPlan:
    name: str
    sources: tuple[Source, ...]
    readers: tuple[tuple[Reader, bool | None], ...]  # textual: yes, no, None: as the body is
    convert: Converter
    listed: bool
    required: bool
    material: bool
    digest_only: bool
    hidden: bool  # redacted: never in a receipt
    in_clear: frozenset[str] | None  # of a sensitive operation: values that a receipt shows; empty: any
    absent_means: str | None
    repeat: bool
    reference: bool
    bounds: tuple[int | None, int | None, int | None] | None  # min, max, max_length
    values: frozenset[str] | None


def compile_param(
    param: ParamSpec,
    sources: Sequence[Source],
    path_value: PathValue,
    *,
    json_fields: frozenset[str],
    hidden: bool,
    in_clear: frozenset[str] | None,
) -> ParamPlan:
    bounds = (param.min, param.max, param.max_length)
    kind = cel_type(param.type)
    return ParamPlan(
        name=param.name,
        sources=tuple(sources),
        readers=tuple(_readers(param, sources, path_value, json_fields)),
        convert=converter(param.type),
        listed=kind in (CelType.LIST_STRING, CelType.LIST_INT),
        required=param.required,
        material=param.material,
        digest_only=param.digest_only,
        hidden=hidden,
        in_clear=in_clear,
        absent_means=param.absent_means,
        repeat=param.repeat,
        reference=param.type == "reference",
        bounds=None if bounds == (None, None, None) else bounds,
        values=None if param.values is None else frozenset(param.values),
    )


def _readers(
    param: ParamSpec, sources: Sequence[Source], path_value: PathValue, json_fields: frozenset[str]
) -> list[tuple[Reader, bool | None]]:
    """How each source is read, and whether what it gives is text; None: as the body says."""
    readers: list[tuple[Reader, bool | None]] = []
    for source in sources:
        if source.kind == "args":
            json_field = source.name in json_fields
            query = _query(source.name, param.repeat)
            readers.append((_json_query(query), False) if json_field else (query, True))
            readers.append((_body(source), False if json_field else None))
        elif source.kind == "query":
            readers.append((_query(source.name, param.repeat), True))
        elif source.kind == "body":
            json_field = bool(json_fields) and source.name.partition(".")[0].partition("[")[0] in json_fields
            readers.append((_body(source), False if json_field else None))
        elif source.kind == "raw":
            readers.append((_raw(source.name), False))
        else:
            readers.append((reader_of(source, path_value), True))
    return readers


def reader_of(source: Source, path_value: PathValue) -> Reader:
    """The reader of one source outside of params, or of a plain one inside."""
    name = source.name
    match source.kind:
        case "header":
            return lambda exchange: exchange.fields.get(name, MISSING)
        case "query":
            return _query(name, False)
        case "body" | "args":
            return _body(source)
        case "host":
            return lambda exchange: exchange.host_vars.get(name, MISSING)
        case "path":
            return lambda exchange: path_value(name, exchange)
        case "const":
            return lambda exchange: name
        case _:
            return _raw(name)


def _family(stem: str) -> Reader:
    """All values of `stem`, `stem[...]` and `stem.x`, in the order of their keys."""
    prefixes = (f"{stem}[", f"{stem}.")

    def read(exchange: Exchange) -> Any:
        query = exchange.query
        found = [value for key in query if key == stem or key.startswith(prefixes) for value in query[key]]
        return found or MISSING

    return read


def _query(name: str, repeat: bool) -> Reader:
    if name.endswith(".*"):
        return _family(name[:-2])

    def read(exchange: Exchange) -> Any:
        values = exchange.query.get(name)
        if values is None:
            return MISSING
        if repeat:
            return values
        if len(values) > 1:
            raise InputError(Reason.DUPLICATE_PARAMETER, f"query key {name!r} occurs more than once")
        return values[0]

    return read


def _json_query(read: Reader) -> Reader:
    def read_json(exchange: Exchange) -> Any:
        value = read(exchange)
        return value if value is MISSING else json_text(value)

    return read_json


def _body(source: Source) -> Reader:
    path, text = source.path, source.name
    if len(path) == 1 and isinstance(path[0], str):
        # The common case, without a loop.
        key = path[0]

        def read_top(exchange: Exchange) -> Any:
            body = exchange.body
            if type(body) is not dict:
                raise InputError(Reason.PARAMETER_TYPE, "the body is not a record")
            return body.get(key, MISSING)

        return read_top

    def read(exchange: Exchange) -> Any:
        try:
            return dig(exchange.body, path, exchange.kind == "xml")
        except ShapeError as error:
            raise InputError(Reason.PARAMETER_TYPE, f"body.{text}: {error}") from None

    return read


def _raw(name: str) -> Reader:
    if name == "bytes":
        return lambda exchange: len(exchange.data)
    return lambda exchange: "sha256:" + hashlib.sha256(exchange.data).hexdigest()


def read_param(param: ParamPlan, exchange: Exchange) -> Value | None:
    """The typed value, None when absent. Raises InputError."""
    found = MISSING
    textual: bool | None = None
    for read, text in param.readers:
        value = read(exchange)
        if value is MISSING:
            continue
        if found is not MISSING:
            raise InputError(Reason.DUPLICATE_PARAMETER, f"parameter {param.name!r} comes from two places")
        found, textual = value, text
    if found is MISSING:
        if param.required:
            raise InputError(Reason.MISSING_PARAMETER, f"parameter {param.name!r} is required")
        return None
    return typed(param, found, exchange.textual if textual is None else textual, exchange)


def typed(param: ParamPlan, found: Any, textual: bool, exchange: Exchange) -> Value:
    """Convert and check one raw value. Raises InputError(PARAMETER_TYPE)."""
    # XML cannot tell a list of one from a value.
    if param.listed and exchange.kind == "xml" and type(found) is not list:
        found = [found]
    try:
        value = param.convert(found, textual)
    except ValueError as error:
        raise InputError(Reason.PARAMETER_TYPE, f"parameter {param.name!r}: {error}") from None
    if exchange.references is not None:
        value = _resolved(param, value, exchange.references)
    if param.bounds is not None or param.values is not None:
        check_value(param, value)
    return value


def check_value(param: ParamPlan, value: Value) -> None:
    """The bounds and the listed values of a parameter. Raises InputError(PARAMETER_TYPE)."""
    if param.bounds is not None:
        _check_bounds(param, value, param.bounds)
    if param.values is not None:
        for item in value if type(value) is tuple else (value,):
            text = str(item).lower() if type(item) is bool else str(item)
            if text not in param.values:
                raise InputError(Reason.PARAMETER_TYPE, f"parameter {param.name!r} is not one of its values")


def _check_bounds(param: ParamPlan, value: Value, bounds: tuple[int | None, int | None, int | None]) -> None:
    low, high, longest = bounds
    for item in value if type(value) is tuple else (value,):
        if type(item) is int and ((low is not None and item < low) or (high is not None and item > high)):
            raise InputError(Reason.PARAMETER_TYPE, f"parameter {param.name!r} is out of its bounds")
        if type(item) is str and longest is not None and len(item) > longest:
            raise InputError(Reason.PARAMETER_TYPE, f"parameter {param.name!r} is too long")


def _resolved(param: ParamPlan, value: Value, references: dict[str, str]) -> Value:
    """`urn:uuid:x` of another item of the batch becomes `Patient/urn:uuid:x`: a policy sees the type."""
    if type(value) is tuple:
        return tuple([_resolved(param, item, references) for item in value])
    if type(value) is not str or not value.startswith("urn:"):
        return value
    kind = references.get(value)
    if kind is None:
        if param.reference:
            raise InputError(Reason.BATCH_REFUSED, f"parameter {param.name!r} names no item of the batch")
        return value
    return f"{kind}/{value}"
