"""The plan of one operation: its spec and the map's defaults become tables, mistakes become errors.

Invariant (tests/test_surface_plan.py):
  SM15  A map that names a parameter, variable, operation or field that cannot exist is a ConfigError.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ..fields import is_inert
from .exchange import BODILESS_METHODS, BodyPlan
from .model import Effect, Produces
from .plan import MapRuntime, Operation, Plan
from .read import ParamPlan, compile_param, reader_of
from .reconcilable import check_reconcile
from .settings import Effective, effective
from .sources import DEEP, Cover, Pattern, Source, base_of, parse_pattern, parse_source
from .spec import ParamSpec
from .types import cel_type

__all__ = ["check_between", "compile_plan"]

_ALWAYS_SILENT: Final = frozenset({"content-type", "content-encoding"})
_FROM_ENCLOSING: Final = frozenset({"header", "query", "path"})
# Parts of a SigV4 signature: a retry signs again, and means the same.
_SIGNING: Final = frozenset({"x-amz-date", "x-amz-content-sha256", "x-amz-security-token"})
_SIGV4: Final = "sigv4-access-key"
_KEYED: Final = frozenset({"query", "body", "args"})


def compile_plan(op: Operation) -> Plan:
    """Every table of the plan. Long because a plan has that many parts, each one line."""
    spec, head = op.spec, op.map.head
    use = effective(spec, head.defaults)
    ignored = _parsed(op, use.ignore)
    volatile = _parsed(op, use.volatile)
    redacted = _parsed(op, use.redact)
    body = _body_plan(op, use)
    params = tuple(
        _param(op, param, body, use, redacted) for param in sorted(spec.params, key=lambda param: param.name)
    )
    reads = [source for param in params for source in param.sources]
    tests = [parse_source(row.source) for row in spec.discriminators]
    keys = [parse_source(s) for s in use.idempotency.sources]
    principals = op.map.principal_sources
    read_keys = frozenset(_key_of(s) for s in (*reads, *tests) if s.kind in _KEYED and s.path[:1] != (DEEP,))
    inherited = _item_sources(op)
    selectors = tests + keys + principals + _dispatch_sources(op) + inherited
    if any(DEEP in source.path for source in selectors):
        raise op.fail("`**` is for parameters: what identifies a request stands in one place")
    declared = {param.name for param in params}
    _check_names(op, "idempotency.natural", use.idempotency.natural, declared)
    _check_conflicts(op, declared)
    _check_binds(op, use.sensitive)
    check_reconcile(op, sensitive=use.sensitive, has_native_key=bool(keys))
    _check_names(op, "in_clear", [name for name, _ in spec.settings.in_clear], declared)
    _check_variables(op, reads + inherited, ignored)
    queries = _query_rules(params, selectors, ignored + volatile)
    explicit = {s.name for s in reads + tests + inherited if s.kind == "header"}
    if head.dispatch is not None and head.dispatch.header is not None:
        explicit.add(head.dispatch.header)
    # An inert header has no meaning just because a map lists it; a parameter of that name has.
    families = [name for name in use.headers if name.endswith("*")]
    single = [name for name in use.headers if not name.endswith("*")]
    listed = {name for name in (*single, *_names("header", ignored)) if not is_inert(name)}
    known = explicit | listed
    key_headers = {s.name for s in keys if s.kind == "header"}
    sigv4 = head.principal is not None and _SIGV4 in head.principal.forms
    silent = _ALWAYS_SILENT | key_headers | _names("header", volatile) | (_SIGNING if sigv4 else set())
    silent |= {s.name for s in principals if s.kind == "header"}
    if not principals:  # where the map names a credential, another one beside it has to be named, too
        silent |= {"authorization"}
    silent |= {head.credential_slot} if head.credential_slot else set()
    digested = known - op.map.credentials - (silent - explicit) - _names("header", volatile)
    drop, drop_query = _digest_drop(keys, principals, volatile, reads + tests)
    effect = Effect(spec.effect) if spec.effect is not None else Effect.COMMIT
    return Plan(
        effect=effect,
        body=body,
        params=params,
        cover=None if use.pass_body else _cover(reads + selectors, ignored + volatile, op),
        single_query=queries.single,
        free_query=queries.free,
        query_prefixes=queries.prefixes,
        any_query=queries.everything,
        merged=use.merge,
        read_keys=read_keys,
        read_names=frozenset(base_of(key).casefold() for key in read_keys),
        presigned=sigv4,
        digest_headers=frozenset(digested),
        header_prefixes=tuple(sorted({name[:-1] for name in families})),
        silent_headers=frozenset(silent | (known & op.map.credentials)),
        digest_drop=drop,
        digest_drop_query=drop_query,
        slashless=_slashless(op),
        principal=tuple((reader_of(s, op.path_value), s.kind == "header") for s in principals),
        principal_forms=head.principal.forms if head.principal else (),
        key_sources=tuple(reader_of(s, op.path_value) for s in keys),
        natural=use.idempotency.natural,
        ttl_s=use.idempotency.ttl_s,
        window_s=use.idempotency.window_s or use.idempotency.ttl_s,
        provider=use.idempotency.provider,
        keep=use.idempotency.keep,
        require_key=use.idempotency.require,
        conflict=spec.conflict_key,
        produces=_produces(op, use.idempotency.ttl_s),
        sensitive=use.sensitive,
        secret_headers=op.map.credentials,
        deadlines=use.deadlines,
        target=spec.target if spec.target is not None else head.base + spec.path,
    )


def _key_of(source: Source) -> str:
    """The name at the top of the query or body."""
    return str(source.path[0]) if source.path else source.name.removesuffix(".*")


def _parsed(op: Operation, texts: Sequence[str]) -> list[Pattern]:
    return [parse_pattern(text) for text in texts]


def _names(kind: str, patterns: Iterable[Pattern]) -> set[str]:
    return {pattern.name for pattern in patterns if pattern.kind == kind and not pattern.deep}


def _check_names(op: Operation, what: str, wanted: Sequence[str], declared: set[str]) -> None:
    for name in wanted:
        if name not in declared:
            raise op.fail(f"{what} names {name!r}, which is not a parameter")


def _check_conflicts(op: Operation, declared: set[str]) -> None:
    types = {param.name: cel_type(param.type) for param in op.spec.params}
    for key, names in op.spec.conflict_key:
        _check_names(op, "conflict_key", names, declared)
        if len(names) > 1 and any(types[name].startswith("list<") for name in names):
            raise op.fail(f"conflict_key {key!r}: a list stands alone, it makes one key per item")


def _produces(op: Operation, key_ttl_s: int) -> Produces | None:
    spec = op.spec.produces
    if spec is None:
        return None
    if op.spec.effect not in (Effect.PREPARE, Effect.COMMIT):
        raise op.fail("only a prepare or a commit that is no batch produces an object")
    if spec.ttl_s < key_ttl_s:  # else a late replay could make an old decision known again
        raise op.fail("produces.ttl must be at least as long as idempotency.ttl")
    source = parse_source(spec.id)
    header = source.name if source.kind == "header" else ""
    path = tuple([part for part in source.path if isinstance(part, str)])
    return Produces(
        map=op.map.head.name, path=path, ttl_s=spec.ttl_s, header=header, form=spec.form, host=spec.host
    )


def _check_binds(op: Operation, sensitive: bool) -> None:
    spec = op.spec.binds
    if spec is None:
        return
    if op.spec.effect not in (Effect.PREPARE, Effect.COMMIT):
        raise op.fail("binds: only a prepare or a commit of its own surface is bound to an earlier one")
    by = next((param for param in op.spec.params if param.name == spec.by), None)
    if by is None or not by.required or cel_type(by.type) not in ("string", "int"):
        raise op.fail(f"binds.by: {spec.by!r} must be a required parameter that is one text or number")
    if spec.any_principal and spec.once:  # a claim on an object is of whoever made it
        raise op.fail("binds: what takes an object (`once`) needs the principal that made it")
    if not spec.map:
        _check_makers(op, op.map, sensitive)


def check_between(maps: Mapping[str, MapRuntime]) -> None:
    """What binds to operations of another map. Raises ConfigError."""
    for one in maps.values():
        for op in one.operations():
            spec = op.spec.binds
            if spec is not None and spec.map:
                if spec.map not in maps:
                    raise op.fail(f"binds.map: there is no map {spec.map!r}")
                _check_makers(op, maps[spec.map], op.plan.sensitive)


def _check_makers(op: Operation, makers: MapRuntime, sensitive: bool) -> None:
    spec = op.spec.binds
    hosts = {pattern.host for pattern in op.map.head.hosts}
    for identity in spec.to if spec else ():
        made = makers.operation(identity).spec if identity in makers.packed else None
        if made is None or made.produces is None:
            whose = "this map" if makers is op.map else f"the map {makers.head.name!r}"
            raise op.fail(f"binds.to: {identity!r} is no operation of {whose} with `produces`")
        if (made.produces.host or makers is not op.map) and made.produces.host not in hosts:
            raise op.fail(f"binds.to: what {identity!r} produces is no object at a host of this map")
        if effective(made, makers.head.defaults).sensitive and not sensitive:
            raise op.fail(f"binds.to: {identity!r} is sensitive, and so must be what its parameters get into")
    if spec is not None and spec.parallel:
        # What changes or takes an object must never be open together with what acts on it.
        for other in [*op.map.operations(), *makers.operations()]:
            taken = other.spec.binds
            if taken is None or not taken.once or (taken.map or other.map.head.name) != makers.head.name:
                continue
            if not set(spec.to).isdisjoint(taken.to):
                raise op.fail(f"binds.parallel: {other.name!r} takes such an object (`once`)")


def _check_variables(op: Operation, reads: Sequence[Source], ignored: Sequence[Pattern]) -> None:
    if op.spec.surface is None and op.spec.explode is None:
        return
    used = {s.name for s in reads if s.kind == "path"} | _names("path", ignored)
    used |= {row.expect[6:] for row in op.spec.discriminators if row.expect.startswith("=path.")}
    for name in op.variables:
        if name not in used:
            raise op.fail(
                f"path variable {{{name}}} is neither a parameter nor ignored (`ignore: [path.{name}]`)"
            )


def _body_plan(op: Operation, use: Effective) -> BodyPlan:
    repeat = set()
    for param in op.spec.params:
        for source in (parse_source(text) for text in param.sources) if param.repeat else ():
            if source.kind in ("body", "args"):
                if len(source.path) != 1:
                    raise op.fail(f"parameter {param.name!r}: only a top-level form field can `repeat`")
                repeat.add(source.name)
    return BodyPlan(
        kinds=use.decode,
        written=use.decode_written,
        types=use.content_types,
        absent_type=use.absent_type,
        codings=frozenset(use.content_codings),
        max=use.max,
        syntax=use.syntax,
        repeat=frozenset(repeat),
        json_fields=frozenset(use.json_in_form),
        optional=use.optional,
    )


def _param(
    op: Operation, param: ParamSpec, body: BodyPlan, use: Effective, redacted: Sequence[Pattern]
) -> ParamPlan:
    sources = [parse_source(text) for text in param.sources]
    bodiless = not body.written and BODILESS_METHODS.issuperset(op.spec.methods)
    for source, text in zip(sources, param.sources, strict=True):
        where = f"parameter {param.name!r}: {text}"
        if source.kind == "path" and source.name not in op.variables:
            raise op.fail(f"{where} is not in the path {op.spec.path!r}")
        if source.kind == "host" and source.name not in op.map.host_variables:
            raise op.fail(f"{where} is in no host of the map")
        if source.kind == "args" and not use.merge:
            raise op.fail(f"{where} needs `body: {{merge: [query, body]}}`")
        if source.kind == "header" and source.name in op.map.credentials:
            raise op.fail(f"{where} is a credential: it cannot be a parameter")
        if source.kind in ("body", "raw") and (body.kinds == ("none",) or bodiless):
            raise op.fail(
                f"{where} is never there: the operation has no body (write `body: {{decode: ...}}`)"
            )
        if source.kind == "body" and not use.sensitive and any(_within(source, p) for p in redacted):
            raise op.fail(
                f"{where} is redacted, but parameters are in the recorded input:"
                " drop the parameter, or mark the operation `sensitive`"
            )
    if param.encoded_slash and not any(source.kind == "path" for source in sources):
        raise op.fail(f"parameter {param.name!r}: encoded_slash is for path variables")
    hidden = any(_within(source, pattern) for source in sources for pattern in redacted)
    in_clear = use.in_clear.get(param.name)
    if hidden or not param.material or param.digest_only:
        if any(name == param.name for name, _ in op.spec.settings.in_clear):
            raise op.fail(f"in_clear: {param.name!r} is not material, or redacted, or digest_only")
        in_clear = None
    return compile_param(
        param, sources, op.path_value, json_fields=body.json_fields, hidden=hidden, in_clear=in_clear
    )


def _within(source: Source, pattern: Pattern) -> bool:
    """The source reads what the pattern names, or a part of it, or a whole around it."""
    if pattern.kind not in (source.kind, "args" if source.kind == "body" else source.kind):
        return False
    above = source.path[: source.path.index(DEEP)] if DEEP in source.path else source.path
    shared = min(len(above), len(pattern.path))
    if source.kind == "body":
        return source.path[:shared] == pattern.path[:shared]
    return source.name == pattern.name


def _dispatch_sources(op: Operation) -> list[Source]:
    dispatch = op.map.head.dispatch
    return (
        [] if dispatch is None or dispatch.form is None else [Source("body", dispatch.form, (dispatch.form,))]
    )


def _item_sources(op: Operation) -> list[Source]:
    """What the items' parameters are read from in the enclosing request."""
    explode = op.spec.explode
    if explode is None or explode.request is not None:
        return []
    ids = [explode.operation] if explode.operation else [target for _, target in explode.one_of]
    found: list[Source] = []
    for identity in ids:
        try:
            item = op.map.operation(identity or "")
        except KeyError:
            raise op.fail(f"explode names {identity!r}, which is not an operation of this map") from None
        if item.spec.surface is None or item.spec.explode is not None:
            raise op.fail(f"explode names {identity!r}, which has no surface of its own")
        named = {name for name, _ in explode.item}
        for param in item.spec.params:
            if param.name not in named:
                found.extend(
                    s for s in map(parse_source, param.sources) if s.kind in ("header", "query", "path")
                )
        for name in named - {param.name for param in item.spec.params}:
            raise op.fail(f"explode.item names {name!r}, which is not a parameter of {identity!r}")
    return found


@dataclass(frozen=True, slots=True)
class _Queries:
    single: frozenset[str]
    free: frozenset[str]
    prefixes: tuple[str, ...]
    everything: bool


def _query_rules(
    params: Sequence[ParamPlan], selectors: Sequence[Source], patterns: Sequence[Pattern]
) -> _Queries:
    single: set[str] = set()
    free: set[str] = set()
    prefixes: list[str] = []
    everything = False
    for param in params:
        names = {s.name for s in param.sources if s.kind in ("query", "args")}
        families = [name[:-2] for name in sorted(names) if name.endswith(".*")]
        (free if param.repeat else single).update(names - {f"{stem}.*" for stem in families})
        free.update(families)
        prefixes += [f"{stem}{mark}" for stem in families for mark in "[."]
    single |= {s.name for s in selectors if s.kind == "query"}
    for pattern in patterns:
        if pattern.kind not in ("query", "args"):
            continue
        if not pattern.deep:
            free.add(pattern.name)
        elif pattern.name:
            free.add(pattern.name)
            prefixes += [f"{pattern.name}[", f"{pattern.name}."]
        else:
            everything = True
    return _Queries(frozenset(single), frozenset(free - single), tuple(prefixes), everything)


def _cover(sources: Sequence[Source], patterns: Sequence[Pattern], op: Operation) -> Cover:
    cover = Cover()
    for source in sources:
        # A search declares nothing: whatever it goes through is declared by what names it.
        if source.kind in ("body", "args") and DEEP not in source.path:
            # Deep: what the parameter's type does not accept is refused by the type.
            cover.add(source.path, deep=True)
    for pattern in patterns:
        if pattern.kind in ("body", "args"):
            cover.add(pattern.path, deep=pattern.deep)
    if op.spec.explode is not None:
        # explode.py accounts for every field of every item.
        cover.add(parse_source(op.spec.explode.over).path, deep=True)
    return cover


def _digest_drop(
    keys: Sequence[Source], principals: Sequence[Source], volatile: Sequence[Pattern], meant: Sequence[Source]
) -> tuple[Cover | None, frozenset[str]]:
    """What `request.digest` leaves out: the key itself, credentials, volatile fields."""
    drop, queries = Cover(), _names("query", volatile)
    for source in keys:
        if source.kind == "body" and source not in meant:
            drop.add(source.path, deep=True)
    for source in principals:
        if source.kind == "body":
            drop.add(source.path, deep=True)
        elif source.kind == "query":
            queries.add(source.name)
    for pattern in volatile:
        if pattern.kind == "body":
            drop.add(pattern.path, deep=True)
    return (drop if drop else None), frozenset(queries)


def _slashless(op: Operation) -> tuple[str, ...]:
    allowed = {s.name for p in op.spec.params if p.encoded_slash for s in map(parse_source, p.sources)}
    return tuple(name for name in op.variables if name not in allowed)
