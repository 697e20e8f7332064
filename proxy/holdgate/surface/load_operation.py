"""One entry of `operations`: match, surface, params, explode (YAML nodes) become an OperationSpec.

Invariants (tests/test_surface_load.py):
  SM8  An operation that has a surface has an effect, written out; nothing is inferred from a method.
  SM37  No answer is kept of a read, a stream, a batch, a model's invocation, or a surface about secrets or
      identities; elsewhere only where the operation itself says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from ..strictyaml import Node
from .load_reconcile import load_reconcile
from .load_values import duration, literal, names, one_or_more
from .model import CelType, Effect
from .sources import Source, parse_source
from .spec import (
    AsRequest,
    BindsSpec,
    Discriminator,
    Dispatch,
    ExplodeSpec,
    OperationSpec,
    ParamSpec,
    ProducesSpec,
    Settings,
)
from .types import cel_type

__all__ = ["SETTINGS", "load_operation"]

_ID: Final = re.compile(r"[A-Za-z0-9_$][A-Za-z0-9_.:/$-]*\Z")
_SURFACE: Final = re.compile(r"[a-z][a-z0-9_]*(?:\.[a-z][a-z0-9_]*)*\Z")
_PARAM: Final = re.compile(r"[a-z_][a-z0-9_]*\Z")
_METHOD: Final = re.compile(r"[A-Z]+\Z")
_CEL_WORDS: Final = ("true", "false", "null", "in")
SETTINGS: Final = (
    *("body", "unknown_params", "ignore", "headers", "volatile", "redact"),
    *("in_clear", "sensitive", "idempotency", "deadlines"),
)
_MAX_ITEMS: Final = 10_000
_SECRET_SURFACES: Final = ("secrets.", "identity.")  # their answers are keys, tokens, passwords


def load_operation(
    node: Node, dispatch: Dispatch | None, load_settings: Callable[[dict[str, Node]], Settings]
) -> OperationSpec:
    """Raises ConfigError. Long because an operation has that many keys, each one line."""
    keys = node.mapping(
        required=("id", "match"),
        optional=(
            *("prefer", "surface", "effect", "params", "conflict_key", "explode", "produces", "binds"),
            "reconcile",
            *SETTINGS,
        ),
        what="operation",
    )
    identity = keys["id"].text("id")
    if not _ID.match(identity):
        raise keys["id"].fail(f"id {identity!r}: letters, digits and _ . : / $ -")
    methods, path, target = _match(keys["match"], dispatch)
    surface = keys["surface"].text("surface") if "surface" in keys else None
    if surface is not None and not _SURFACE.match(surface):
        raise keys["surface"].fail(f"surface {surface!r} must look like payments.refund")
    effect = keys["effect"].choice(tuple(Effect), "effect") if "effect" in keys else None
    explode = _explode(keys["explode"]) if "explode" in keys else None
    if surface is not None and effect is None:
        raise node.fail(
            f"operation {identity!r} has a surface but no effect: read, prepare, commit or channel"
        )
    if surface is None and effect is not None and explode is None:
        raise keys["effect"].fail(f"operation {identity!r} has an effect but no surface")
    if surface is not None and explode is not None:
        raise keys["surface"].fail("an exploded operation takes the surfaces of its items: remove `surface`")
    settings = load_settings({key: value for key, value in keys.items() if key in SETTINGS})
    if settings.idempotency is not None and settings.idempotency.keep:
        _check_keep(keys["idempotency"], surface, effect)
    return OperationSpec(
        id=identity,
        line=node.line,
        methods=methods,
        path=path,
        target=target,
        discriminators=_discriminators(keys["match"]),
        prefer=names(keys["prefer"], "prefer") if "prefer" in keys else (),
        surface=surface,
        effect=effect,
        params=_params(keys["params"]) if "params" in keys else (),
        settings=settings,
        conflict_key=_conflict_key(keys["conflict_key"]) if "conflict_key" in keys else (),
        explode=explode,
        produces=_produces(keys["produces"]) if "produces" in keys else None,
        binds=_binds(keys["binds"]) if "binds" in keys else None,
        reconcile=load_reconcile(keys["reconcile"]) if "reconcile" in keys else None,
    )


def _check_keep(node: Node, surface: str | None, effect: str | None) -> None:
    """What may be given again is nobody's key to anything. Raises ConfigError."""
    if surface is None or effect not in (Effect.PREPARE, Effect.COMMIT):
        raise node.fail("response: keep is for a prepare or a commit with a surface of its own")
    if surface.startswith(_SECRET_SURFACES) or surface == "model.invoke":
        raise node.fail(f"response: keep: answers on {surface} can hold secrets, and are never kept")


def _match(node: Node, dispatch: Dispatch | None) -> tuple[tuple[str, ...], str, str | None]:
    keys = node.mapping(optional=("method", "path", "target", "query", "header", "body"), what="match")
    if dispatch is None:
        if "target" in keys:
            raise keys["target"].fail("match.target needs `dispatch` in spec")
        for name in ("method", "path"):
            if name not in keys:
                raise node.fail(f"match needs {name!r}")
    elif "target" not in keys:
        raise node.fail(
            "match needs `target`: the map has `dispatch` (operations by path belong in another map)"
        )
    methods: tuple[str, ...] = ("POST",)
    if "method" in keys:
        methods = tuple(item.text("method") for item in one_or_more(keys["method"], "method"))
        for method in methods:
            if not _METHOD.match(method):
                raise keys["method"].fail(f"method {method!r} must be upper-case letters")
    path = keys["path"].text("path") if "path" in keys else "/"
    if not path.startswith("/") or any(char in path for char in "?#% \t"):
        raise keys["path"].fail(f"path {path!r} must start with / and have no query, escape or white space")
    return methods, path, keys["target"].text("target") if "target" in keys else None


def _discriminators(match: Node) -> tuple[Discriminator, ...]:
    rows = []
    for kind in ("query", "header", "body"):
        if kind not in match.value:
            continue
        for name, node in match.value[kind].open_mapping(f"match.{kind}").items():
            source = f"{kind}.{name.lower() if kind == 'header' else name}"
            expect = literal(node, f"match.{kind}.{name}")
            try:
                parsed = parse_source(source)
                if expect.startswith("=") and parse_source(expect[1:]).kind != "path":
                    raise ValueError(f"{expect!r} must name a path variable: =path.var")
                if parsed.many:
                    raise ValueError("a list cannot discriminate")
            except ValueError as error:
                raise node.fail(f"match.{kind}: {error}") from None
            rows.append(Discriminator(source=f"{kind}.{parsed.name}", expect=expect))
    return tuple(rows)


def _params(node: Node) -> tuple[ParamSpec, ...]:
    return tuple(_param(name, item) for name, item in sorted(node.open_mapping("params").items()))


def _param(name: str, node: Node) -> ParamSpec:
    """Long because a parameter has that many keys, each one line."""
    keys = node.mapping(
        required=("from", "type"),
        optional=(
            *("required", "material", "digest_only", "absent_means", "repeat", "encoded_slash"),
            *("min", "max", "max_length", "values"),
        ),
        what=f"parameter {name!r}",
    )
    if not _PARAM.match(name) or name in _CEL_WORDS:
        raise node.fail(
            f"parameter {name!r}: lower-case letters, digits and _; not one of {', '.join(_CEL_WORDS)}"
        )
    flags = {
        key: keys[key].boolean(f"{name}.{key}")
        for key in ("required", "material", "digest_only", "repeat", "encoded_slash")
        if key in keys
    }
    bounds: dict[str, int] = {
        key: keys[key].integer(f"{name}.{key}") for key in ("min", "max") if key in keys
    }
    if "max_length" in keys:
        bounds["max_length"] = keys["max_length"].integer(f"{name}.max_length", low=1, high=1 << 30)
    kind = keys["type"].text("type")
    try:
        cel = cel_type(kind)
    except ValueError as error:
        raise keys["type"].fail(f"parameter {name!r}: {error}") from None
    items = one_or_more(keys["from"], f"{name}.from")
    found = tuple(item.text("from") for item in items)
    parsed = [_source(name, item) for item in items]
    _check_param(name, node, keys, parsed, cel)
    values = keys["values"].sequence(f"{name}.values") if "values" in keys else None
    return ParamSpec(
        name=name,
        sources=found,
        type=kind,
        absent_means=keys["absent_means"].text("absent_means") if "absent_means" in keys else None,
        values=None if values is None else tuple(literal(item, f"{name}.values") for item in values),
        **flags,
        min=bounds.get("min"),
        max=bounds.get("max"),
        max_length=bounds.get("max_length"),
    )


def _source(param: str, node: Node) -> Source:
    try:
        return parse_source(node.value)
    except ValueError as error:
        raise node.fail(f"parameter {param!r}: {error}") from None


def _check_param(name: str, node: Node, keys: dict[str, Node], parsed: list[Source], cel: CelType) -> None:
    """What a parameter's keys say together. Raises ConfigError."""
    if any(source.many for source in parsed) and not (
        cel.startswith("list<") or keys["type"].value == "json"
    ):
        raise keys["type"].fail(
            f"parameter {name!r} reads a list (`[]`, `**`): type it list<string>, list<int>, origins or json"
        )
    if any(item.kind == "query" and item.name.endswith(".*") for item in parsed) and not (
        cel.startswith("list<") and _is_set(keys, "repeat")
    ):
        raise keys["from"].fail(f"parameter {name!r} reads several keys: a list type, and `repeat: true`")
    if _is_set(keys, "repeat") and not cel.startswith("list<"):
        raise keys["type"].fail(f"parameter {name!r} repeats: type it list<string> or list<int>")
    if cel not in ("int", "list<int>") and ("min" in keys or "max" in keys):
        raise node.fail(f"parameter {name!r}: min and max are for integers; max_length is for text")
    if len(parsed) > 1 and any(item.kind == "const" for item in parsed):
        raise keys["from"].fail(f"parameter {name!r}: a constant is the only source")
    if _is_set(keys, "required") and "absent_means" in keys:
        raise node.fail(f"parameter {name!r} is required: it is never absent")


def _is_set(keys: dict[str, Node], flag: str) -> bool:
    return flag in keys and keys[flag].value is True


def _conflict_key(node: Node) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """`[params.charge]`, or names of things: `{intent: params.id, object: [params.bucket, params.key]}`."""
    if isinstance(node.value, list):
        return tuple((name, (name,)) for name in _param_names(node, names(node, "conflict_key")))
    rows = []
    for name, item in node.open_mapping("conflict_key").items():
        if not _PARAM.match(name):
            raise item.fail_key(f"conflict_key: {name!r}: lower-case letters, digits and _")
        texts = tuple(each.text("conflict_key") for each in one_or_more(item, f"conflict_key.{name}"))
        rows.append((name, _param_names(item, texts)))
    if not rows:
        raise node.fail("conflict_key must not be empty")
    return tuple(rows)


def _param_names(node: Node, texts: tuple[str, ...]) -> tuple[str, ...]:
    for item in texts:
        if not item.startswith("params.") or not _PARAM.match(item[7:]):
            raise node.fail(f"{item!r} must be params.NAME")
    if len(set(texts)) != len(texts):
        raise node.fail("a parameter occurs twice")
    return tuple(item[7:] for item in texts)


def _produces(node: Node) -> ProducesSpec:
    """`{id: body.id, ttl: 168h}`, `{id: header.location, as: url_query.upload_id}`."""
    keys = node.mapping(required=("id",), optional=("as", "host", "ttl"), what="produces")
    identity = keys["id"].text("produces.id")
    try:
        source = parse_source(identity)
        if source.kind != "header" and (source.kind != "body" or not source.path or source.many):
            raise ValueError(
                "it must be the path of one text in the answer's body, or a header: body.id, header.location"
            )
    except ValueError as error:
        raise keys["id"].fail(f"produces.id: {error}") from None
    given = {"ttl_s": duration(keys["ttl"], "produces.ttl")} if "ttl" in keys else {}
    form = _form(keys["as"]) if "as" in keys else ""
    host = keys["host"].text("produces.host") if "host" in keys else ""
    return ProducesSpec(id=identity, form=form, host=host, **given)


def _form(node: Node) -> str:
    form = node.text("produces.as")
    kind, _, name = form.partition(".")
    if form != "url_last_segment" and (kind != "url_query" or not name or "*" in name):
        raise node.fail("produces.as must be url_query.NAME or url_last_segment")
    return form


def _binds(node: Node) -> BindsSpec:
    """`{to: PostPaymentIntents, by: params.payment_intent, once: true, blind: allow}`."""
    keys = node.mapping(
        required=("to", "by"), optional=("map", "once", "blind", "principal", "parallel"), what="binds"
    )
    to = tuple(item.text("binds.to") for item in one_or_more(keys["to"], "binds.to"))
    (by,) = _param_names(keys["by"], (keys["by"].text("binds.by"),))
    return BindsSpec(
        to=to,
        by=by,
        once="once" in keys and keys["once"].boolean("binds.once"),
        blind="blind" in keys and keys["blind"].choice(("allow", "refuse"), "binds.blind") == "allow",
        map=keys["map"].text("binds.map") if "map" in keys else "",
        any_principal="principal" in keys
        and keys["principal"].choice(("any", "same"), "binds.principal") == "any",
        parallel="parallel" in keys and keys["parallel"].boolean("binds.parallel"),
    )


def _explode(node: Node) -> ExplodeSpec:
    keys = node.mapping(
        required=("over", "max"), optional=("as", "item", "one_of", "as_request"), what="explode"
    )
    if sum(form in keys for form in ("as", "one_of", "as_request")) != 1 or (
        "item" in keys and "as" not in keys
    ):
        raise node.fail("explode needs exactly one of: `as` (with `item`), `one_of`, `as_request`")
    over = keys["over"].text("over")
    try:
        if parse_source(over).kind != "body" or parse_source(over).many or over == "body":
            raise ValueError("it must be the path of a list in the body, without [] and **")
    except ValueError as error:
        raise keys["over"].fail(f"explode.over: {error}") from None
    return ExplodeSpec(
        over=over,
        max=keys["max"].integer("explode.max", low=1, high=_MAX_ITEMS),
        operation=keys["as"].text("explode.as") if "as" in keys else None,
        item=_texts(keys["item"], "item") if "item" in keys else (),
        one_of=_texts(keys["one_of"], "one_of") if "one_of" in keys else (),
        request=_as_request(keys["as_request"]) if "as_request" in keys else None,
    )


def _texts(node: Node, what: str) -> tuple[tuple[str, str], ...]:
    rows = tuple((name, item.text(f"{what}.{name}")) for name, item in node.open_mapping(what).items())
    if not rows:
        raise node.fail(f"{what} must not be empty")
    return rows


def _as_request(node: Node) -> AsRequest:
    keys = node.mapping(required=("method", "url"), optional=("body", "headers"), what="as_request")
    headers = _texts(keys["headers"], "headers") if "headers" in keys else ()
    return AsRequest(
        method=keys["method"].text("method"),
        url=keys["url"].text("url"),
        body=keys["body"].text("body") if "body" in keys else None,
        headers=tuple((name.lower(), path) for name, path in headers),
    )
