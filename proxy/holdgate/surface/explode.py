"""A batch becomes the actions of its items; the whole request is forwarded only if all are permitted.

Three forms (surfaces/README.md): items of one operation, items that name their operation, items
that are requests of their own. No form nests.

Invariants (tests/test_surface_explode.py):
  SM26  Every item becomes exactly one action with a surface, or the whole request is refused.
  SM27  Every field of an item is read, declared or refused; its URL cannot leave the map's base.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from ..canonical import read_target
from ..errors import InputError, Reason
from .exchange import Exchange, Given
from .extract import action_of, check_body, evaluate
from .match import satisfied
from .model import Action, Value
from .plan import Operation
from .read import ParamPlan, read_param, reader_of, typed
from .sources import EACH, MISSING, Cover, Path, ShapeError, dig, parse_pattern, parse_source
from .spec import AsRequest, ExplodeSpec

__all__ = ["Item", "explode"]

# The URL of an item: relative, no scheme, no authority, no fragment, no dot segment.
_URL: Final = re.compile(r"(?!/)(?![A-Za-z][A-Za-z0-9+.-]*:)[\x21-\x7e]{1,4096}\Z")
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})
_ENCLOSING: Final = frozenset({"host", "query", "header", "const"})
_NO_FIELDS: Final[frozenset[str]] = frozenset()

type Recognise = Callable[[Exchange], Operation]


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    operation: Operation
    action: Action
    values: dict[str, Value]


def explode(op: Operation, exchange: Exchange, recognise: Recognise) -> tuple[Item, ...]:
    """`exchange` was evaluated for `op`. `recognise` finds the operation of an item. Raises InputError."""
    spec = op.spec.explode
    if spec is None:
        raise InputError(Reason.BATCH_REFUSED, f"operation {op.name} is not a batch")
    over = parse_source(spec.over).path
    items = _items(exchange, over, spec.max)
    cover = _item_cover(op, over, spec)
    references = _references(items, spec.request) if spec.request else None
    found = []
    for number, item in enumerate(items, 1):
        try:
            if spec.operation is not None:
                found.append(_one_operation(op, spec, exchange, item, cover))
            elif spec.request is not None:
                found.append(
                    _as_request(op, spec.request, exchange, item, cover, references or {}, recognise)
                )
            else:
                found.append(_one_of(op, spec, exchange, item))
        except InputError as error:
            raise InputError(error.reason, f"item {number}: {error.detail}") from None
    return tuple(found)


def _items(exchange: Exchange, over: Path, most: int) -> Sequence[Any]:
    try:
        items = dig(exchange.body, over)
    except ShapeError as error:
        raise InputError(Reason.BATCH_REFUSED, f"the batch has another shape: {error}") from None
    if exchange.kind == "xml" and items is not MISSING and type(items) is not list:
        items = [items]
    if type(items) is not list or not items:
        raise InputError(Reason.BATCH_REFUSED, "a batch without items")
    if len(items) > most:
        raise InputError(Reason.BATCH_REFUSED, f"a batch of more than {most} items")
    return items


def _item_cover(op: Operation, over: Path, spec: ExplodeSpec) -> Cover:
    """Fields of one item that are read or declared. Small, so it is built per request."""
    cover = Cover()
    for _, text in spec.item:
        cover.add(_item_path(text), deep=True)
    if spec.request is not None:
        request = spec.request
        texts = [request.method, request.url, "fullUrl", *(path for _, path in request.headers)]
        for text in texts if request.body is None else [*texts, request.body]:
            cover.add(_item_path(text), deep=True)
    inside = (*over, EACH)
    for text in (*op.map.head.defaults.ignore, *op.spec.settings.ignore):
        pattern = parse_pattern(text)
        if pattern.kind == "body" and pattern.path[: len(inside)] == inside:
            cover.add(pattern.path[len(inside) :], deep=pattern.deep)
    return cover


@lru_cache(maxsize=1024)  # texts come from maps, never from requests
def _item_path(text: str) -> Path:
    return () if text == "." else parse_source(f"body.{text}").path


def _check_cover(cover: Cover, item: Any, exchange: Exchange) -> None:
    field = cover.first_uncovered(item, exchange.kind == "xml")
    if field is not None:
        raise InputError(Reason.UNKNOWN_PARAMETER, f"field {field!r} is not in the surface map")


def _dig(item: Any, text: str) -> Any:
    try:
        return dig(item, _item_path(text))
    except ShapeError as error:
        raise InputError(Reason.BATCH_REFUSED, f"{text}: {error}") from None


# -- form 1: every item is the same operation ------------------------------------------------------


def _one_operation(op: Operation, spec: ExplodeSpec, exchange: Exchange, item: Any, cover: Cover) -> Item:
    _check_cover(cover, item, exchange)
    target = op.map.operation(spec.operation or "")
    paths = dict(spec.item)
    values = {}
    for param in target.plan.params:
        path = paths.get(param.name)
        value = _enclosing(op, param, exchange) if path is None else _item_param(param, path, exchange, item)
        if value is not None:
            values[param.name] = value
        elif param.required:
            raise InputError(Reason.MISSING_PARAMETER, f"parameter {param.name!r} is required")
    return Item(operation=target, action=action_of(target, values), values=values)


def _item_param(param: ParamPlan, path: str, exchange: Exchange, item: Any) -> Value | None:
    found = _dig(item, path)
    return None if found is MISSING else typed(param, found, exchange.textual, exchange)


def _enclosing(op: Operation, param: ParamPlan, exchange: Exchange) -> Value | None:
    """From the enclosing request, but for its body: that is the batch, not the item."""
    found: Any = MISSING
    for source in param.sources:
        if source.kind == "path" and source.name in op.variables:
            value: Any = op.path_value(source.name, exchange)
        elif source.kind in _ENCLOSING:
            value = reader_of(source, op.path_value)(exchange)
        else:
            continue
        if value is MISSING:
            continue
        if found is not MISSING:
            raise InputError(Reason.DUPLICATE_PARAMETER, f"parameter {param.name!r} comes from two places")
        found = value
    return None if found is MISSING else typed(param, found, True, exchange)


# -- form 2: an item names its operation and holds the body of it ----------------------------------


def _one_of(op: Operation, spec: ExplodeSpec, exchange: Exchange, item: Any) -> Item:
    if type(item) is not dict or len(item) != 1:
        raise InputError(Reason.BATCH_REFUSED, "an item is not a record with exactly one key")
    ((name, body),) = item.items()
    identity = dict(spec.one_of).get(name)
    if identity is None:
        raise InputError(Reason.BATCH_REFUSED, f"an item {name!r} is not in the surface map")
    target = op.map.operation(identity)
    inner = _inside(exchange, Given(exchange.kind, body), exchange.references)
    inner.decode(target.plan.body)
    if not satisfied([target], inner):
        raise InputError(Reason.BATCH_REFUSED, f"an item {name!r} is another operation than {target.name}")
    check_body(target.plan, inner)
    values = {}
    for param in target.plan.params:
        value = read_param(param, inner)
        if value is not None:
            values[param.name] = value
    return Item(operation=target, action=action_of(target, values), values=values)


def _inside(exchange: Exchange, given: Given, references: dict[str, str] | None) -> Exchange:
    return Exchange(
        method=exchange.method,
        segments=exchange.segments,
        raw_segments=exchange.raw_segments,
        pairs=exchange.pairs,
        fields=exchange.fields,
        repeated=_NO_FIELDS,
        media=None,
        coding=None,
        content=b"",
        host_vars=exchange.host_vars,
        default_max=exchange.default_max,
        given=given,
        references=references,
    )


# -- form 3: an item is a request of its own --------------------------------------------------------


def _references(items: Sequence[Any], request: AsRequest) -> dict[str, str]:
    """`fullUrl` of every item that has one -> type of the resource that the item carries."""
    found: dict[str, str] = {}
    seen: set[str] = set()
    for item in items:
        url = item.get("fullUrl") if type(item) is dict else None
        if url is None:
            continue
        if type(url) is not str or url in seen:
            raise InputError(Reason.BATCH_REFUSED, "a fullUrl is no text, or stands at two items")
        seen.add(url)
        kind = _dig(item, f"{request.body}.resourceType") if request.body else MISSING
        if type(kind) is str:
            found[url] = kind
    return found


def _as_request(
    op: Operation,
    request: AsRequest,
    exchange: Exchange,
    item: Any,
    cover: Cover,
    references: dict[str, str],
    recognise: Recognise,
) -> Item:
    _check_cover(cover, item, exchange)
    method, url = _dig(item, request.method), _dig(item, request.url)
    if type(method) is not str or method not in _METHODS:
        raise InputError(Reason.BATCH_REFUSED, "the method of an item")
    body = _dig(item, request.body) if request.body is not None else MISSING
    inner = _sub_request(op, method, url, exchange)
    inner.fields = _fields(item, request)
    inner.given = Given(exchange.kind, None if body is MISSING else body)
    inner.references = references
    target = recognise(inner)
    if target.map is not op.map or target.spec.explode is not None:
        raise InputError(
            Reason.BATCH_REFUSED, f"an item is {target.name}: another map, or a batch in a batch"
        )
    values, _ = evaluate(target, inner)
    return Item(operation=target, action=action_of(target, values), values=values)


def _sub_request(op: Operation, method: str, url: Any, exchange: Exchange) -> Exchange:
    if type(url) is not str or not _URL.match(url):
        raise InputError(Reason.BATCH_REFUSED, "the URL of an item is not relative to the base")
    path, mark, query = url.partition("?")
    # FHIR tokens are written `system|code`, and a server reads the bar as if it were escaped.
    raw = f"{op.map.head.base}/{path}{mark}{query.replace('|', '%7C')}"
    try:
        target = read_target(raw.encode("ascii"))
    except InputError as error:
        raise InputError(Reason.BATCH_REFUSED, f"the URL of an item: {error.detail}") from None
    return Exchange(
        method=method,
        segments=target.segments,
        raw_segments=target.raw_segments,
        pairs=target.query,
        fields={},
        repeated=_NO_FIELDS,
        media=None,
        coding=None,
        content=b"",
        host_vars=exchange.host_vars,
        default_max=exchange.default_max,
    )


def _fields(item: Any, request: AsRequest) -> dict[str, str]:
    fields = {}
    for name, path in request.headers:
        value = _dig(item, path)
        if value is MISSING:
            continue
        if type(value) is not str:
            raise InputError(Reason.BATCH_REFUSED, f"{path} is not a text")
        fields[name] = value
    return fields
