"""Defaults and an operation's own settings become what holds for the operation.

Invariant (tests/test_surface_plan.py):
  SM16  Lists add up, single values replace, `body` and `deadlines` merge key by key; an own `decode`
      takes no content type, syntax or JSON field from the defaults.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .model import Deadlines
from .spec import BodySpec, IdempotencySpec, OperationSpec, Settings

__all__ = ["Effective", "effective"]

_TYPES: Final = {
    "none": (),
    "json": ("application/json",),
    "form": ("application/x-www-form-urlencoded",),
    "xml": ("application/xml", "text/xml"),
    "multipart": ("multipart/form-data",),
    "related": ("multipart/related",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Effective:
    decode: tuple[str, ...]
    decode_written: bool
    syntax: str
    content_types: frozenset[str] | None  # None: any
    absent_type: bool
    content_codings: tuple[str, ...]
    max: int | None
    json_in_form: tuple[str, ...]
    merge: bool
    optional: bool
    pass_body: bool
    ignore: tuple[str, ...]
    headers: tuple[str, ...]
    volatile: tuple[str, ...]
    redact: tuple[str, ...]
    in_clear: dict[str, frozenset[str]]  # parameter -> values that a receipt may show; empty: any
    sensitive: bool
    idempotency: IdempotencySpec
    deadlines: Deadlines


def effective(spec: OperationSpec, defaults: Settings) -> Effective:
    own = spec.settings
    body = _body(own.body, defaults.body)
    decode = body.decode or ("none",)
    types = _content_types(decode, body.content_types)
    deadlines, fallback = own.deadlines, defaults.deadlines
    return Effective(
        decode=decode,
        decode_written=own.body.decode is not None,
        syntax=body.syntax or "flat",
        content_types=None if types is None else types - {"absent"},
        absent_type=types is None or "absent" in types,
        content_codings=body.content_codings or (),
        max=body.max,
        json_in_form=body.json_in_form,
        merge=bool(body.merge),
        optional=bool(body.optional),
        pass_body=_first(own.unknown_params, defaults.unknown_params, "silence") == "pass_body",
        ignore=defaults.ignore + own.ignore,
        headers=defaults.headers + own.headers,
        volatile=defaults.volatile + own.volatile,
        redact=defaults.redact + own.redact,
        in_clear={name: frozenset(values) for name, values in (*defaults.in_clear, *own.in_clear)},
        sensitive=_first(own.sensitive, defaults.sensitive, False),
        idempotency=_first(own.idempotency, defaults.idempotency, IdempotencySpec()),
        deadlines=Deadlines(
            connect_s=_first(deadlines.connect_s, fallback.connect_s, None),
            first_byte_s=_first(deadlines.first_byte_s, fallback.first_byte_s, None),
            total_s=_first(deadlines.total_s, fallback.total_s, None),
        ),
    )


def _first[T](own: T | None, default: T | None, otherwise: T) -> T:
    return own if own is not None else default if default is not None else otherwise


def _body(own: BodySpec, defaults: BodySpec) -> BodySpec:
    # Types and syntax belong to a decoder: another decoder does not take them over.
    decoder = own if own.decode is not None else defaults
    return BodySpec(
        decode=decoder.decode,
        syntax=_first(own.syntax, decoder.syntax, None),
        content_types=_first(own.content_types, decoder.content_types, None),
        content_codings=_first(own.content_codings, defaults.content_codings, None),
        max=_first(own.max, defaults.max, None),
        json_in_form=own.json_in_form or decoder.json_in_form,
        merge=_first(own.merge, defaults.merge, None),
        optional=_first(own.optional, defaults.optional, None),
    )


def _content_types(decode: tuple[str, ...], written: tuple[str, ...] | None) -> frozenset[str] | None:
    if written is not None:
        return frozenset(written)
    if "opaque" in decode:
        return None
    return frozenset(name for kind in decode for name in _TYPES[kind])
