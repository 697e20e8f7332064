"""All surface maps as one value: what is mapped, which operation a request is, what policies may assume.

recognise() is step 3 of a request: a CanonicalRequest becomes Recognised, or is refused.

A compiled index goes into a JSON lock and comes back. Tries are built per host and plans per
operation on first use; that cache is the only thing that changes after construction.

Invariants (tests/test_surface_index.py, tests/test_surface_lock.py):
  SM28  recognise() returns a Recognised with at least one action, or raises InputError, nothing else.
  SM29  An index from its lock recognises exactly what the index from the maps does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from ..canonical import CanonicalRequest
from ..errors import ConfigError, InputError, Reason
from ..limits import Limits
from ..message import Headers
from .compile import check_between, compile_plan
from .exchange import Exchange
from .explode import Item, explode
from .extract import action_of, evaluate, principal_of
from .hiding import hide
from .host import Host
from .keys import bond, conflict_keys, idempotency
from .match import HostTrie
from .meaning import request_digest, request_preimage
from .model import Action, Bond, Effect, ParamSchema, Recognised, Value
from .overlap import check_overlaps
from .plan import MapRuntime, Operation
from .schema import bound_schema, param_schema
from .settings import effective
from .spec import HostPattern, SurfaceMap, pack, unpack

__all__ = ["SurfaceIndex"]

_LOCK_VERSION: Final = 2
# The heaviest effect of a batch decides what key it needs.
_BY_WEIGHT: Final = (Effect.COMMIT, Effect.PREPARE, Effect.CHANNEL)
_MAX_BOUND: Final = 32
_BODY_METHODS: Final = frozenset({"POST", "PUT", "PATCH"})
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_MAX_HOSTS: Final = 4096  # remembered host names; templates make their number unbounded
_BODY_BYTES: Final = Limits().body_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """One map in the index, with what is asked of it without touching its operations."""

    runtime: MapRuntime
    surfaces: Mapping[str, Sequence[str]]  # surface -> operation ids
    body_max: int  # largest body.max of its operations, 0 when none has one
    body_default: bool  # some operation has none


class SurfaceIndex:
    __slots__ = (
        "_by_map",
        "_by_surface",
        "_entries",
        "_hosts",
        "_limits",
        "_lock",
        "_named",
        "_names",
        "_surfaces",
        "_tries",
    )

    def __init__(self, entries: Sequence[_Entry], lock: Mapping[str, Any]) -> None:
        self._entries = tuple(entries)
        self._by_map = {entry.runtime.head.name: entry for entry in entries}
        self._by_surface: dict[str, list[_Entry]] = {}
        for entry in entries:
            for surface in entry.surfaces:
                self._by_surface.setdefault(surface, []).append(entry)
        self._surfaces = frozenset(self._by_surface)
        self._named: dict[str, dict[str, Operation]] = {}
        self._lock = lock
        self._tries: dict[tuple[str, int], HostTrie[tuple[int, str]]] = {}
        for number, entry in enumerate(self._entries):
            for pattern in entry.runtime.head.hosts:
                trie = self._tries.setdefault((pattern.scheme, pattern.port), HostTrie())
                trie.add(pattern.host, (number, pattern.host))
        self._hosts: dict[tuple[int, ...], Host] = {}
        self._limits: dict[tuple[str, int, str], tuple[int, bool]] = {}
        self._names: dict[tuple[str, str, int], tuple[Host, dict[MapRuntime, dict[str, str]]]] = {}

    # -- making one ----------------------------------------------------------------------------

    @classmethod
    def compile(cls, maps: Sequence[SurfaceMap]) -> SurfaceIndex:
        """Check everything that can be checked before a request comes. Raises ConfigError."""
        index = cls.from_lock(_lock(maps))
        for entry in index._entries:
            for operation in entry.runtime.operations():
                _ = operation.plan
            check_overlaps(entry.runtime)
        check_between({name: entry.runtime for name, entry in index._by_map.items()})
        return index

    @classmethod
    def from_lock(cls, lock: Mapping[str, Any]) -> SurfaceIndex:
        """The index of a lock that to_lock() made. Raises ConfigError on another version."""
        if lock.get("version") != _LOCK_VERSION:
            raise ConfigError("the surface lock has another version: compile the maps again")
        entries = []
        for row in lock["maps"]:
            head = unpack(SurfaceMap, {**row["head"], "operations": []})
            entries.append(
                _Entry(
                    runtime=MapRuntime(head, row["operations"], compile_plan),
                    surfaces=row["surfaces"],
                    body_max=row["body_max"],
                    body_default=row["body_default"],
                )
            )
        return cls(entries, lock)

    def to_lock(self) -> dict[str, Any]:
        """Plain JSON data; equal maps make equal locks."""
        return dict(self._lock)

    # -- a request -----------------------------------------------------------------------------

    def recognise(
        self, request: CanonicalRequest, *, fleet_key: bytes, body_bytes: int = _BODY_BYTES
    ) -> Recognised:
        """`body_bytes` bounds the body where an operation has no `body.max`. Raises InputError.

        Long because Recognised has that many parts, one a line.
        """
        host, op, exchange = self._matched(request, body_bytes)
        if op.spec.surface is None and op.spec.explode is None:
            raise InputError(Reason.UNASSIGNED_OPERATION, f"operation {op.name} has no surface")
        values, headers = evaluate(op, exchange)
        plan = op.plan
        if op.spec.explode is None:
            actions: tuple[Action, ...] = (action_of(op, values),)
            made_by: tuple[Operation, ...] = (op,)
            effect, sensitive, conflicts = plan.effect, plan.sensitive, conflict_keys(op, values)
            bonds: tuple[Bond | None, ...] = (bond(op, values),)
        else:
            items = explode(op, exchange, host.match)
            actions = tuple([item.action for item in items])
            made_by = tuple([item.operation for item in items])
            bonds = tuple([bond(item.operation, item.values) for item in items])
            if len(bonds) - bonds.count(None) > _MAX_BOUND:  # a receipt names what each is bound to
                raise InputError(Reason.BATCH_REFUSED, f"more than {_MAX_BOUND} items act on earlier objects")
            effect = _heaviest(actions)
            sensitive = plan.sensitive or any(item.operation.plan.sensitive for item in items)
            conflicts = _conflicts(op, values, items)
        principal = principal_of(plan, exchange)
        key = fleet_key if sensitive else None
        if key is not None:
            actions = tuple([hide(by, action, key) for by, action in zip(made_by, actions, strict=True)])
        digest = request_digest(request, plan, exchange, headers, principal, key)
        keys, require_key = idempotency(op, exchange, values, effect, digest)
        return Recognised(
            actions=actions,
            target=plan.target,
            principal=principal,
            keys=keys,
            require_key=require_key,
            conflict_keys=tuple(conflicts),
            digest=digest,
            sensitive=sensitive,
            headers=_sent(request),
            secret_headers=plan.secret_headers,
            deadlines=plan.deadlines,
            refusal=op.map.head.refusal,
            bonds=bonds if any(bonds) else (),
            produces=plan.produces,
            retry_headers=op.map.retry_headers,
        )

    def preimage(self, request: CanonicalRequest, *, body_bytes: int = _BODY_BYTES) -> tuple[bytes, ...]:
        """What `request.digest` is the hash of, part by part (explain shows it). Raises InputError."""
        _, op, exchange = self._matched(request, body_bytes)
        _, headers = evaluate(op, exchange)
        principal = principal_of(op.plan, exchange)
        return tuple(request_preimage(request, op.plan, exchange, headers, principal))

    def _matched(self, request: CanonicalRequest, body_bytes: int) -> tuple[Host, Operation, Exchange]:
        found = self._find(request.host, request.port, request.scheme)
        if found is None:
            raise InputError(Reason.UNKNOWN_DESTINATION, f"{request.destination} is in no surface map")
        host, variables = found
        exchange = Exchange.of(request, {}, body_bytes)
        op = host.match(exchange)
        exchange.host_vars = variables[op.map]
        return host, op, exchange

    def _find(
        self, host: str, port: int, scheme: str
    ) -> tuple[Host, dict[MapRuntime, dict[str, str]]] | None:
        name = (host, scheme, port)
        found = self._names.get(name)
        if found is not None:
            return found
        trie = self._tries.get((scheme, port))
        rows = trie.find(host) if trie is not None else []
        if not rows:
            return None
        variables: dict[MapRuntime, dict[str, str]] = {}
        for number, pattern in rows:
            bound = _variables(pattern, host)
            runtime = self._entries[number].runtime
            if variables.setdefault(runtime, bound) != bound:
                raise InputError(Reason.AMBIGUOUS_OPERATION, f"host {host!r} can be read in two ways")
        numbers = tuple(sorted({number for number, _ in rows}))
        at = self._hosts.get(numbers)
        if at is None:
            at = self._hosts[numbers] = Host([self._entries[number].runtime for number in numbers])
        if len(self._names) >= _MAX_HOSTS:
            self._names.clear()
        self._names[name] = (at, variables)
        return at, variables

    # -- questions about hosts -------------------------------------------------------------------

    def _entries_of(self, host: str, port: int, scheme: str) -> list[_Entry]:
        trie = self._tries.get((scheme, port))
        numbers = sorted({number for number, _ in trie.find(host)}) if trie is not None else []
        return [self._entries[number] for number in numbers]

    def is_mapped(self, host: str, port: int, scheme: str) -> bool:
        return bool(self._entries_of(host, port, scheme))

    def body_limit(self, host: str, port: int, scheme: str, default: int, cap: int) -> int:
        """How long a body to this host may be at most, whichever operation it is."""
        known = self._limits.get((host, port, scheme))
        if known is None:
            if len(self._limits) >= _MAX_HOSTS:
                self._limits.clear()
            entries = self._entries_of(host, port, scheme)
            largest = max([entry.body_max for entry in entries], default=0)
            known = largest, not entries or any(entry.body_default for entry in entries)
            if len(host) <= 253:  # longer ones are no names; agents choose them freely
                self._limits[host, port, scheme] = known
        limit = max(known[0], default) if known[1] else known[0]
        return min(limit or default, cap)

    def refusal(self, host: str, port: int, scheme: str) -> tuple[str, Headers]:
        """Shape of refusals and headers to add, for requests to this host that were not recognised."""
        for entry in self._entries_of(host, port, scheme):
            return entry.runtime.head.refusal, entry.runtime.retry_headers
        return "problem", ()

    def names(self, host: str) -> bool:
        """Whether any map names this host, whichever port and scheme: what a name server may answer."""
        return any(trie.find(host) for trie in self._tries.values())

    def hosts(self) -> tuple[HostPattern, ...]:
        """Every mapped host pattern, sorted."""
        patterns = {pattern for entry in self._entries for pattern in entry.runtime.head.hosts}
        return tuple(sorted(patterns, key=lambda pattern: (pattern.host, pattern.scheme, pattern.port)))

    # -- questions of policies ---------------------------------------------------------------------

    def surfaces(self) -> frozenset[str]:
        return self._surfaces

    def operations(self, surface: str) -> tuple[str, ...]:
        """Full names of the operations of a surface, sorted."""
        return tuple(sorted(operation.name for operation in self._operations(surface)))

    def operation(self, surface: str, name: str) -> Operation:
        """The operation of this full name; "": the only one of the surface. Raises InputError."""
        found = self._operations(surface)
        if name:
            found = [operation for operation in found if operation.name == name]
        if len(found) != 1:
            what = (
                f"{name!r} on {surface!r}"
                if name
                else f"one of the {len(found)} on {surface!r} must be named"
            )
            raise InputError(Reason.UNKNOWN_OPERATION, what)
        return found[0]

    def effects(self, surface: str, operation: str | None = None) -> frozenset[Effect]:
        """Of all operations of the surface, or of one."""
        chosen = (op for op in self._operations(surface) if operation in (None, op.name))
        return frozenset(Effect(op.spec.effect) for op in chosen if op.spec.effect)

    def bound_schema(
        self, surface: str, operations: tuple[str, ...] | None
    ) -> tuple[Mapping[str, ParamSchema], bool]:
        """Parameters of what these operations act on, and whether one of them is not permitted without."""
        known = self._by_name(surface)
        chosen = [known[name] for name in (known if operations is None else operations)]
        schema = bound_schema(chosen, lambda name: self._by_map[name].runtime)
        return schema, any(map(_needs_bond, chosen))

    def _by_name(self, surface: str) -> dict[str, Operation]:
        known = self._named.get(surface)
        if known is None:
            known = self._named[surface] = {op.name: op for op in self._operations(surface)}
        return known

    def _operations(self, surface: str) -> list[Operation]:
        return [
            entry.runtime.operation(identity)
            for entry in self._by_surface.get(surface, ())
            for identity in entry.surfaces[surface]
        ]

    def param_schema(self, surface: str, operations: tuple[str, ...] | None) -> Mapping[str, ParamSchema]:
        """Parameters that a policy may read; operations None means all of the surface. Raises ConfigError."""
        known = self._by_name(surface)
        if not known:
            raise ConfigError(
                f"no operation has the surface {surface!r}; there are: {', '.join(sorted(self.surfaces()))}"
            )
        for name in operations or ():
            if name not in known:
                raise ConfigError(f"operation {name!r} does not have the surface {surface!r}")
        chosen = sorted(known) if operations is None else sorted(set(operations))
        return param_schema([known[name] for name in chosen])


def _needs_bond(operation: Operation) -> bool:
    return operation.spec.binds is not None and not operation.spec.binds.blind


def _variables(pattern: str, host: str) -> dict[str, str]:
    pairs = zip(pattern.split("."), host.split("."), strict=True)
    return {label[1:-1]: text for label, text in pairs if label.startswith("{")}


def _heaviest(actions: Sequence[Action]) -> Effect:
    effects = {action.effect for action in actions}
    return next((one for one in _BY_WEIGHT if one in effects), Effect.READ)


def _conflicts(op: Operation, values: dict[str, Value], items: Sequence[Item]) -> list[str]:
    found = {key for item in items for key in conflict_keys(item.operation, item.values)}
    return sorted(found.union(conflict_keys(op, values)))


def _sent(request: CanonicalRequest) -> Headers:
    """What will be sent, in order: Host, the canonical headers, Content-Length."""
    host = request.host
    if request.port != _DEFAULT_PORTS.get(request.scheme):
        host = f"{host}:{request.port}"
    first = ((b"Host", host.encode("ascii")),)
    if request.body or request.method in _BODY_METHODS:
        return (*first, *request.headers, (b"Content-Length", b"%d" % len(request.body)))
    return first + request.headers


def _lock(maps: Sequence[SurfaceMap]) -> dict[str, Any]:
    names = [one.name for one in maps]
    if len(set(names)) != len(names):
        raise ConfigError("two surface maps have the same name")
    rows = []
    for one in sorted(maps, key=lambda each: each.name):
        surfaces: dict[str, list[str]] = {}
        limits = []
        for spec in one.operations:
            limits.append(effective(spec, one.defaults).max)
            if spec.surface is not None:
                surfaces.setdefault(spec.surface, []).append(spec.id)
        rows.append(
            {
                "head": pack(replace(one, operations=())),
                "surfaces": surfaces,
                "body_max": max((limit for limit in limits if limit is not None), default=0),
                "body_default": None in limits,
                "operations": {spec.id: pack(spec) for spec in one.operations},
            }
        )
    return {"version": _LOCK_VERSION, "maps": rows}
