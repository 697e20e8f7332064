"""A surface map as it was written, typed: what load.py makes and index.py compiles.

Everything is frozen and plain (strings, numbers, tuples), so that a map goes into the compiled
lock and comes back equal. `None` and empty tuples in `Settings` and its parts mean "not written
here": plan.py merges an operation's settings with the map's defaults.

Invariant (tests/test_surface_lock.py):
  SM1  unpack(pack(x)) == x for every value of this module, through JSON too.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import Any, Final, cast

__all__ = [
    "AsRequest",
    "BindsSpec",
    "BodySpec",
    "DeadlineSpec",
    "Discriminator",
    "Dispatch",
    "ExplodeSpec",
    "HostPattern",
    "IdempotencySpec",
    "OperationSpec",
    "ParamSpec",
    "PrincipalSpec",
    "ProducesSpec",
    "ReconcileSpec",
    "Settings",
    "SurfaceMap",
    "pack",
    "unpack",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPattern:
    """One origin: host labels (`{var}` is one label), scheme, port."""

    host: str
    scheme: str = "https"
    port: int = 443


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispatch:
    """Where an RPC-style API names its operation: a header, or a form field."""

    header: str | None = None
    form: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PrincipalSpec:
    sources: tuple[str, ...]
    forms: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BodySpec:
    decode: tuple[str, ...] | None = None
    syntax: str | None = None
    content_types: tuple[str, ...] | None = None
    content_codings: tuple[str, ...] | None = None
    max: int | None = None
    json_in_form: tuple[str, ...] = ()
    merge: bool | None = None
    optional: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class IdempotencySpec:
    sources: tuple[str, ...] = ()
    ttl_s: int = 86_400
    provider: bool = False
    natural: tuple[str, ...] = ()
    window_s: int | None = None
    require: bool = False
    keep: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlineSpec:
    connect_s: int | None = None
    first_byte_s: int | None = None
    total_s: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What `defaults` and every operation can say."""

    body: BodySpec = BodySpec()
    unknown_params: str | None = None
    ignore: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    volatile: tuple[str, ...] = ()
    redact: tuple[str, ...] = ()
    in_clear: tuple[tuple[str, tuple[str, ...]], ...] = ()  # parameter, its values; (): any value
    sensitive: bool | None = None
    idempotency: IdempotencySpec | None = None
    deadlines: DeadlineSpec = DeadlineSpec()


@dataclass(frozen=True, slots=True, kw_only=True)
class ParamSpec:
    name: str
    sources: tuple[str, ...]
    type: str
    required: bool = False
    material: bool = False
    digest_only: bool = False
    absent_means: str | None = None
    repeat: bool = False
    encoded_slash: bool = False
    min: int | None = None
    max: int | None = None
    max_length: int | None = None
    values: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Discriminator:
    """`source` must be present, absent, or have this text; `=path.var` compares with a path variable."""

    source: str
    expect: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AsRequest:
    """Paths inside one batch item of the parts of a request."""

    method: str
    url: str
    body: str | None = None
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplodeSpec:
    """How a batch is taken apart; exactly one of the three forms is set."""

    over: str
    max: int
    operation: str | None = None  # form 1, written `as:`
    item: tuple[tuple[str, str], ...] = ()
    one_of: tuple[tuple[str, str], ...] = ()  # form 2
    request: AsRequest | None = None  # form 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ProducesSpec:
    """Where the vendor's answer says which object the operation made, and how long that may be acted on."""

    id: str  # a source: of the body, or a header
    ttl_s: int = 604_800
    form: str = (
        ""  # written `as: url_query.NAME` or `url_last_segment`: the part of the URL that stands there
    )
    host: str = ""  # at which it is an object, where that is another one


@dataclass(frozen=True, slots=True, kw_only=True)
class BindsSpec:
    """What an operation on an object that was made before is tied to."""

    to: tuple[str, ...]  # ids of operations that make it
    by: str  # the parameter that names the object
    once: bool = False
    blind: bool = False
    parallel: bool = False  # several may act on the object at once: chunks, and the question how far they got
    map: str = ""  # whose operations; "": of this map
    any_principal: bool = False  # written `principal: any`: whatever the credential, or without one


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconcileSpec:
    """Which read of the same map shows that an operation was executed, and by what it is recognised there.

    `request`, `whole` and `where` begin with what is known of the permit: `params.NAME`, `const.TEXT`, `key`,
    `time.from`, `time.until`; paths in the answer are names joined by dots.
    """

    read: str  # id of the read
    by: str  # "key": the vendor names our idempotency key; else the parameter that allows one effect only
    request: tuple[tuple[str, str], ...]  # part of the read's request, and where its value comes from
    at: str  # path in an item of when it was made
    where: tuple[tuple[str, tuple[str, ...]], ...]  # what is known, and the paths of which one must equal it
    whole: tuple[tuple[str, str], ...] = ()  # the same of the answer itself: that it is complete
    each: str = ""  # path of the list of items; "": the answer is the only item


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationSpec:
    id: str
    line: int
    methods: tuple[str, ...]
    path: str
    target: str | None = None
    discriminators: tuple[Discriminator, ...] = ()
    prefer: tuple[str, ...] = ()
    surface: str | None = None
    effect: str | None = None
    params: tuple[ParamSpec, ...] = ()
    settings: Settings = Settings()
    # What at most one open request may be about: a name, and the parameters that together say which one.
    conflict_key: tuple[tuple[str, tuple[str, ...]], ...] = ()
    explode: ExplodeSpec | None = None
    produces: ProducesSpec | None = None
    binds: BindsSpec | None = None
    reconcile: ReconcileSpec | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SurfaceMap:
    """One YAML document of kind SurfaceMap."""

    name: str
    owner: str
    file: str
    hosts: tuple[HostPattern, ...]
    base: str  # "" or "/v1"
    refusal: str
    retry_headers: tuple[tuple[str, str], ...]
    principal: PrincipalSpec | None
    credential_slot: str | None
    dispatch: Dispatch | None
    defaults: Settings
    operations: tuple[OperationSpec, ...]


_NESTED: Final[Mapping[type, Mapping[str, type]]] = {
    SurfaceMap: {
        "hosts": HostPattern,
        "principal": PrincipalSpec,
        "dispatch": Dispatch,
        "defaults": Settings,
        "operations": OperationSpec,
    },
    OperationSpec: {
        "discriminators": Discriminator,
        "params": ParamSpec,
        "settings": Settings,
        "explode": ExplodeSpec,
        "produces": ProducesSpec,
        "binds": BindsSpec,
        "reconcile": ReconcileSpec,
    },
    Settings: {"body": BodySpec, "idempotency": IdempotencySpec, "deadlines": DeadlineSpec},
    ExplodeSpec: {"request": AsRequest},
}


@cache
def _defaults(cls: Any) -> tuple[tuple[str, Any], ...]:
    return tuple((field.name, field.default) for field in fields(cls))


def pack(value: Any) -> Any:
    """Plain JSON data for a value of this module; fields at their default are left out."""
    cls = type(value)
    if cls is tuple:
        return [pack(item) for item in value]
    if cls in (str, int, bool) or value is None:
        return value
    out = {}
    for name, default in _defaults(cast(Hashable, cls)):
        item = getattr(value, name)
        if default is MISSING or item != default:
            out[name] = pack(item)
    return out


def unpack[T](cls: type[T], data: Mapping[str, Any]) -> T:
    """The value that `pack` turned into `data`. Raises TypeError or ValueError on anything else."""
    nested: Mapping[str, type] = _NESTED.get(cls, {})
    arguments: dict[str, Any] = {}
    for name, item in data.items():
        inner = nested.get(name)
        if inner is None or item is None:
            arguments[name] = _tuples(item)
        elif type(item) is list:
            arguments[name] = tuple(unpack(inner, one) for one in item)
        else:
            arguments[name] = unpack(inner, item)
    return cls(**arguments)


def _tuples(item: Any) -> Any:
    return tuple(_tuples(one) for one in item) if type(item) is list else item
