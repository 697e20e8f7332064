"""What a surface map says (compiled), and what a recognised request is.

`Action` and `Recognised` are what the rest of Holdgate sees; nothing vendor-specific goes
further. Parameter values are `int | str | bool | tuple` of those: the types of cel-strict/1.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ..message import Headers
from ..quick import quick

__all__ = [
    "Action",
    "Bond",
    "CelType",
    "Deadlines",
    "Effect",
    "KeyRule",
    "KeySource",
    "Param",
    "ParamSchema",
    "Produces",
    "Recognised",
    "Value",
]

type Value = int | str | bool | tuple[Value, ...]


class Effect(StrEnum):
    READ = "read"
    PREPARE = "prepare"
    COMMIT = "commit"
    CHANNEL = "channel"


class CelType(StrEnum):
    """The types of cel-strict/1 that a parameter can have."""

    INT = "int"
    STRING = "string"
    BOOL = "bool"
    LIST_STRING = "list<string>"
    LIST_INT = "list<int>"


@dataclass(frozen=True, slots=True, kw_only=True)
class ParamSchema:
    """What policies may assume of a parameter. Optional ones need `has()`."""

    type: CelType
    optional: bool


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Param:
    """One decoded parameter. `public` is its form in receipts; None: left out of receipts."""

    name: str
    value: Value
    public: str | int | bool | tuple[str | int, ...] | None


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """One recognised operation of one request."""

    surface: str  # "payments.refund"
    operation: str  # "stripe.PostRefunds"
    effect: Effect
    params: tuple[Param, ...]  # sorted by name, names unique; absent optional ones are absent
    absent: tuple[
        tuple[str, str], ...
    ] = ()  # (name, text) of absent params that have `absent_means`: receipts only


class KeySource(StrEnum):
    NATIVE = "native"  # the vendor's own key: header or field named by the map
    NATURAL = "natural"  # material parameters that the map declares to identify the action
    IMPLICIT = "implicit"  # none: the request digest itself, while in flight, unknown or undelivered


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRule:
    """The idempotency key of this request, if the map and the request give one."""

    source: KeySource
    value: (
        str  # the raw key (never leaves this process; receipts carry its hash); IMPLICIT: the request digest
    )
    ttl_s: int
    provider: bool  # the vendor answers a repeated key from its own store
    keep: bool = False  # the answer is kept for repeats (`response: keep`)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bond:
    """The object that an action is about, and what must have made it for the action to be decided."""

    object: str  # "stripe:pi_1": the map's name, and the id
    to: tuple[str, ...]  # full names of the operations that may have made it
    once: bool  # the action takes the bond: no other may be permitted on it, unless this one has no effect
    blind: bool  # the map allows deciding without one
    any_principal: bool = False  # the id is a right by itself: the same agent is enough


@dataclass(frozen=True, slots=True, kw_only=True)
class Produces:
    """Where the vendor's answer names the object that the request made."""

    map: str
    path: tuple[str, ...]  # in the decoded body; with `header`: nothing
    ttl_s: int
    header: str = ""  # of the answer, lower case: the id stands there, not in the body
    form: str = ""  # what stands there is a URL: `url_query.NAME` or `url_last_segment` of it is the id
    host: str = (
        ""  # the object is one at this host, and a URL is of it; else at the destination that was asked
    )

    def destination(self, asked: str) -> str:
        return f"{self.host}:443" if self.host else asked

    def object(self, identity: str) -> str:
        return f"{self.map}:{identity}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    connect_s: float | None
    first_byte_s: float | None
    total_s: float | None  # None: limits.upstream_total_s


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Recognised:
    """Step 3's result: everything that later steps need to know about the request."""

    actions: tuple[Action, ...]  # at least one
    target: str  # the operation's path template or RPC target, for receipts; no identifiers of data subjects
    principal: str | None  # fingerprint of the credential the map names
    keys: tuple[KeyRule, ...]  # () for reads, prepare without a key, model.invoke
    require_key: bool  # map says on_missing: require and no native or natural key came
    conflict_keys: tuple[str, ...]  # resolved values of `conflict_key`, namespaced by the map
    digest: str  # request.digest, "sha256:..." or "hmac-sha256:..." when sensitive
    sensitive: bool
    headers: Headers  # what will be sent, Host and Content-Length included, in sending order
    secret_headers: frozenset[str]
    deadlines: Deadlines
    refusal: str  # the map's refusal shape
    bonds: tuple[Bond | None, ...] = ()  # per action; the gate refuses an action that needs one and has none
    produces: Produces | None = None  # the operation makes an object that later ones may be bound to
    retry_headers: Headers  # e.g. Stripe-Should-Retry: false, added to refusals
