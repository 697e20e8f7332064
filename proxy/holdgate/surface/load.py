"""Surface map files (YAML) become SurfaceMaps, or a ConfigError that names file, line and remedy.

This module reads the envelope, hosts and settings; load_operation.py reads operations. Both check
shape and spelling; what needs the whole map (conflicts, references between operations) is checked
by index.py.

Invariant (tests/test_surface_load.py):
  SM6  Every key of the format has exactly one place; anything else is a ConfigError with its line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from ..content import Decoder
from ..errors import ConfigError
from ..strictyaml import Node, load_file
from ..yamlfiles import yaml_files
from .load_operation import SETTINGS, load_operation
from .load_values import duration, names, one_or_more, size
from .sources import parse_pattern, parse_source
from .spec import (
    BodySpec,
    DeadlineSpec,
    Dispatch,
    HostPattern,
    IdempotencySpec,
    PrincipalSpec,
    Settings,
    SurfaceMap,
)

__all__ = ["load_map", "load_maps", "load_settings"]

_KINDS: Final = ("SurfaceMap", "Policy", "PolicyTest", "Bundle")
_REFUSALS: Final = (
    *("problem", "stripe", "aws-json", "aws-xml", "aws-query", "gcp", "azure", "fhir", "kubernetes"),
    *("slack", "twilio", "sendgrid", "github", "graphql", "git"),
)
_PRINCIPALS: Final = ("bearer", "basic-user", "sigv4-access-key", "raw")
_CODINGS: Final = ("gzip", "br", "zstd", "aws-chunked")
_MAP_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]*\Z")
_LABEL: Final = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?|\{[a-z_][a-z0-9_]*\})\Z")
_BASE: Final = re.compile(r"(?:/[^/{}?#\s]+)+\Z")
_HEADER: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+\Z")
_MEDIA: Final = re.compile(r"[a-z0-9!#$&^_.+-]+/[a-z0-9!#$&^_.+-]+\Z")


def load_maps(paths: Sequence[Path], *, kept: bool = False) -> tuple[SurfaceMap, ...]:
    """Read every map in `paths`; a directory is searched for *.yaml. Raises ConfigError."""
    found: dict[str, SurfaceMap] = {}
    for path in paths:
        files = yaml_files(path) if path.is_dir() else [path]
        before = len(found)
        for file in files:
            loaded = load_map(load_file(file, kept=kept), required=path is file)
            if loaded is None:
                continue
            if loaded.name in found:
                other = found[loaded.name].file
                raise ConfigError(
                    f"a surface map named {loaded.name!r} exists already: {other}", file=str(file)
                )
            found[loaded.name] = loaded
        if len(found) == before:
            raise ConfigError("no surface map here: write a file with `kind: SurfaceMap`", file=str(path))
    return tuple(found.values())


def load_map(document: Node, *, required: bool = True) -> SurfaceMap | None:
    """One document. None when it is of another kind and not `required`. Raises ConfigError."""
    envelope = document.mapping(required=("apiVersion", "kind", "metadata", "spec"), what="the document")
    envelope["apiVersion"].choice(("holdgate/v1",), "apiVersion")
    if envelope["kind"].choice(_KINDS, "kind") != "SurfaceMap":
        if required:
            raise envelope["kind"].fail("kind must be SurfaceMap here")
        return None
    metadata = envelope["metadata"].mapping(required=("name",), optional=("owner",), what="metadata")
    name = metadata["name"].text("metadata.name")
    if not _MAP_NAME.match(name):
        raise metadata["name"].fail("metadata.name must be lower-case letters, digits, dots, dashes")
    return _spec(name, metadata["owner"].text("owner") if "owner" in metadata else "", envelope["spec"])


def _spec(name: str, owner: str, node: Node) -> SurfaceMap:
    """Long because a map has that many keys, each one line."""
    spec = node.mapping(
        required=("hosts", "operations"),
        optional=(
            *("base", "refusal", "retry_headers", "principal", "credential_slot", "dispatch", "defaults"),
        ),
        what="spec",
    )
    base = spec["base"].text("base") if "base" in spec else ""
    if base and not _BASE.match(base):
        raise spec["base"].fail("base must look like /v1 (no variable, no slash at the end)")
    dispatch = _dispatch(spec["dispatch"]) if "dispatch" in spec else None
    operations = [
        load_operation(item, dispatch, load_settings) for item in spec["operations"].sequence("operations")
    ]
    if not operations:
        raise spec["operations"].fail("operations must not be empty")
    seen: dict[str, int] = {}
    for operation in operations:
        if operation.id in seen:
            raise ConfigError(
                f"operation {operation.id!r} exists already on line {seen[operation.id]}",
                file=node.file,
                line=operation.line,
            )
        seen[operation.id] = operation.line
    defaults = _defaults(spec["defaults"]) if "defaults" in spec else Settings()
    known = {param.name for operation in operations for param in operation.params}
    for shown, _ in defaults.in_clear:
        if shown not in known:
            raise spec["defaults"].fail(f"in_clear: no operation has a parameter {shown!r}")
    return SurfaceMap(
        name=name,
        owner=owner,
        file=node.file,
        hosts=tuple(_host(item) for item in one_or_more(spec["hosts"], "hosts")),
        base=base,
        refusal=spec["refusal"].choice(_REFUSALS, "refusal") if "refusal" in spec else "problem",
        retry_headers=_retry_headers(spec["retry_headers"]) if "retry_headers" in spec else (),
        principal=_principal(spec["principal"]) if "principal" in spec else None,
        credential_slot=_credential_slot(spec["credential_slot"]) if "credential_slot" in spec else None,
        dispatch=dispatch,
        defaults=defaults,
        operations=tuple(operations),
    )


def _host(node: Node) -> HostPattern:
    if isinstance(node.value, str):
        return HostPattern(host=_host_name(node))
    keys = node.mapping(required=("host",), optional=("scheme", "port"), what="host")
    scheme = keys["scheme"].choice(("http", "https"), "scheme") if "scheme" in keys else "https"
    default = 443 if scheme == "https" else 80
    port = keys["port"].integer("port", low=1, high=65_535) if "port" in keys else default
    return HostPattern(host=_host_name(keys["host"]), scheme=scheme, port=port)


def _host_name(node: Node) -> str:
    text = node.text("host")
    labels = text.split(".")
    if not all(_LABEL.match(label) for label in labels):
        raise node.fail(
            f"host {text!r}: lower-case labels, or {{var}} for exactly one label; the port is a key"
        )
    if labels[-1].startswith("{"):
        raise node.fail(f"host {text!r}: the last label must be written out")
    variables = [label for label in labels if label.startswith("{")]
    if len(set(variables)) != len(variables):
        raise node.fail(f"host {text!r}: a variable occurs twice")
    return text


def header_name(node: Node, what: str) -> str:
    text = node.text(what)
    if not _HEADER.match(text):
        raise node.fail(f"{what}: {text!r} is not a header name")
    return text.lower()


def _declared_header(node: Node) -> str:
    """A name, or a family of names with one `*` at its end and enough before it to name a vendor."""
    name = header_name(node, "headers")
    if "*" in name and (name.index("*") != len(name) - 1 or len(name) < 4 or not name.startswith("x-")):
        raise node.fail(f"headers: {name!r}: `*` may only end a family such as x-amz-meta-*")
    return name


def _retry_headers(node: Node) -> tuple[tuple[str, str], ...]:
    rows = []
    for name, value in node.open_mapping("retry_headers").items():
        text = value.text(f"retry_headers.{name} (write it in quotes)")
        if not _HEADER.match(name) or not text.isascii() or not text.isprintable():
            raise value.fail("retry_headers needs header names and printable ASCII values")
        rows.append((name, text))
    return tuple(rows)


def _principal(node: Node) -> PrincipalSpec:
    keys = node.mapping(required=("from", "as"), what="principal")
    forms = tuple(
        item.choice(_PRINCIPALS, "principal.as") for item in one_or_more(keys["as"], "principal.as")
    )
    return PrincipalSpec(sources=sources(keys["from"], "principal.from"), forms=forms)


def sources(node: Node, what: str) -> tuple[str, ...]:
    return tuple(_checked(item, what, parse_source) for item in one_or_more(node, what))


def _checked(node: Node, what: str, parse: Callable[[str], Any]) -> str:
    text = node.text(what)
    try:
        parse(text)
    except ValueError as error:
        raise node.fail(f"{what}: {error}") from None
    return text


def _credential_slot(node: Node) -> str:
    return header_name(
        node.mapping(required=("header",), what="credential_slot")["header"], "credential_slot"
    )


def _dispatch(node: Node) -> Dispatch:
    keys = node.mapping(optional=("header", "form"), what="dispatch")
    if len(keys) != 1:
        raise node.fail("dispatch needs either `header: NAME` or `form: FIELD`")
    if "header" in keys:
        return Dispatch(header=header_name(keys["header"], "dispatch.header"))
    return Dispatch(form=keys["form"].text("dispatch.form"))


def _defaults(node: Node) -> Settings:
    keys = node.mapping(optional=SETTINGS, what="defaults")
    settings = load_settings(keys)
    if settings.idempotency is not None and settings.idempotency.keep:
        raise keys["idempotency"].fail("response: keep is written on each operation that wants it")
    return settings


def load_settings(keys: dict[str, Node]) -> Settings:
    """The keys of `keys` that are settings. Raises ConfigError."""
    unknown = (
        keys["unknown_params"].choice(("silence", "pass_body"), "unknown_params")
        if "unknown_params" in keys
        else None
    )
    headers = keys["headers"].sequence("headers") if "headers" in keys else []
    return Settings(
        body=_body(keys["body"]) if "body" in keys else BodySpec(),
        unknown_params=unknown,
        ignore=_patterns(keys, "ignore"),
        headers=tuple(_declared_header(item) for item in headers),
        volatile=_patterns(keys, "volatile"),
        redact=_patterns(keys, "redact"),
        in_clear=_in_clear(keys["in_clear"]) if "in_clear" in keys else (),
        sensitive=keys["sensitive"].boolean("sensitive") if "sensitive" in keys else None,
        idempotency=_idempotency(keys["idempotency"]) if "idempotency" in keys else None,
        deadlines=_deadlines(keys["deadlines"]) if "deadlines" in keys else DeadlineSpec(),
    )


def _patterns(keys: dict[str, Node], what: str) -> tuple[str, ...]:
    if what not in keys:
        return ()
    return tuple(_checked(item, what, parse_pattern) for item in keys[what].sequence(what))


def _in_clear(node: Node) -> tuple[tuple[str, tuple[str, ...]], ...]:
    rows: list[tuple[str, tuple[str, ...]]] = []
    for name, item in node.open_mapping("in_clear").items():
        if item.value is True:
            rows.append((name, ()))
        elif isinstance(item.value, list) and item.value:
            rows.append((name, names(item, f"in_clear.{name}")))
        else:
            raise item.fail(f"in_clear.{name} is `true`, or a list of the values that receipts may show")
    return tuple(rows)


def _body(node: Node) -> BodySpec:
    """Long because `body` has that many keys, each one line."""
    keys = node.mapping(
        optional=(
            *(
                "decode",
                "syntax",
                "content_types",
                "content_codings",
                "max",
                "json_in_form",
                "merge",
                "optional",
            ),
        ),
        what="body",
    )
    decode = None
    if "decode" in keys:
        options = tuple(Decoder)
        decode = tuple(item.choice(options, "decode") for item in one_or_more(keys["decode"], "decode"))
        if len(set(decode)) != len(decode) or ("none" in decode and len(decode) > 1):
            raise keys["decode"].fail("decode: each decoder once, and `none` alone")
    syntaxes = ("brackets", "flat", "aws-query")
    merge = None
    if "merge" in keys:
        if names(keys["merge"], "merge") not in (("query", "body"), ("body", "query")):
            raise keys["merge"].fail("merge must be [query, body]")
        merge = True
    codings = keys["content_codings"].sequence("content_codings") if "content_codings" in keys else None
    return BodySpec(
        decode=decode,
        syntax=keys["syntax"].choice(syntaxes, "syntax") if "syntax" in keys else None,
        content_types=_content_types(keys["content_types"]) if "content_types" in keys else None,
        content_codings=None
        if codings is None
        else tuple(c.choice(_CODINGS, "content_codings") for c in codings),
        max=size(keys["max"], "body.max") if "max" in keys else None,
        json_in_form=names(keys["json_in_form"], "json_in_form") if "json_in_form" in keys else (),
        merge=merge,
        optional=keys["optional"].boolean("optional") if "optional" in keys else None,
    )


def _content_types(node: Node) -> tuple[str, ...]:
    types = names(node, "content_types")
    for item in types:
        if item != "absent" and not _MEDIA.match(item):
            raise node.fail(f"content_types: {item!r} is not a lower-case type/subtype, nor `absent`")
    return types


def _idempotency(node: Node) -> IdempotencySpec:
    keys = node.mapping(
        optional=("from", "ttl", "provider", "natural", "window", "on_missing", "response"),
        what="idempotency",
    )
    if "from" not in keys and "natural" not in keys and "on_missing" not in keys:
        raise node.fail("idempotency needs `from`, `natural` or `on_missing`")
    found = sources(keys["from"], "idempotency.from") if "from" in keys else ()
    if any(parse_source(item).kind not in ("header", "body") for item in found):
        raise keys["from"].fail("idempotency.from must be header.NAME or body.FIELD")
    keep = "response" in keys and keys["response"].choice(("status_only", "keep"), "response") == "keep"
    if keep and "from" not in keys and "natural" not in keys:
        raise keys["response"].fail("response: keep needs a key: `from` or `natural`")
    if keep and "provider" in keys and keys["provider"].value is True:
        raise keys["response"].fail("response: keep: with provider: true the vendor answers repeats itself")
    missing = keys["on_missing"].choice(("allow", "require"), "on_missing") if "on_missing" in keys else ""
    return IdempotencySpec(
        sources=found,
        ttl_s=duration(keys["ttl"], "ttl") if "ttl" in keys else 86_400,
        provider=keys["provider"].boolean("provider") if "provider" in keys else False,
        natural=names(keys["natural"], "natural") if "natural" in keys else (),
        window_s=duration(keys["window"], "window") if "window" in keys else None,
        require=missing == "require",
        keep=keep,
    )


def _deadlines(node: Node) -> DeadlineSpec:
    keys = node.mapping(optional=("connect", "first_byte", "total"), what="deadlines")
    seconds = {name: duration(value, f"deadlines.{name}") for name, value in keys.items()}
    return DeadlineSpec(
        connect_s=seconds.get("connect"), first_byte_s=seconds.get("first_byte"), total_s=seconds.get("total")
    )
