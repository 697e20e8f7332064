"""An operation as it is executed: everything that does not depend on the request is computed once.

`Operation` is light and holds what matching needs; its `plan` (what extraction needs) is compiled
on first use, so that a lock with many thousand operations loads quickly. index.py compiles all of
them at once when maps are read from YAML, so that mistakes are found at start.

Invariant (tests/test_surface_index.py):
  SM32  Compiling on first use and compiling at start give the same plans.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..digest import CREDENTIAL_HEADERS
from ..errors import ConfigError
from ..message import Headers
from .exchange import BodyPlan, Exchange
from .model import Deadlines, Effect, Produces
from .read import ParamPlan, Reader, Tests, reader_of
from .sources import MISSING, Cover, parse_source
from .spec import OperationSpec, SurfaceMap, unpack
from .template import LITERAL, REST, Segment, Template, parse_template

__all__ = ["MapRuntime", "Operation", "Plan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What extraction, digest and keys need of one operation."""

    effect: Effect
    body: BodyPlan
    params: tuple[ParamPlan, ...]
    cover: Cover | None  # None: undeclared body fields are allowed
    single_query: frozenset[str]
    free_query: frozenset[str]
    query_prefixes: tuple[str, ...]
    any_query: bool
    merged: bool  # arguments may stand in the query or in the body
    read_keys: frozenset[str]  # of query and body, that parameters are read from and operations told apart by
    read_names: frozenset[str]  # those without modifier and index, case folded
    presigned: bool  # SigV4: credentials in the query are refused
    digest_headers: frozenset[str]
    header_prefixes: tuple[str, ...]  # of headers that a map declares as a family: x-amz-meta-*
    silent_headers: frozenset[str]
    digest_drop: Cover | None  # body fields that are left out of the digest
    digest_drop_query: frozenset[str]
    slashless: tuple[str, ...]  # path variables that must not contain an escaped slash
    principal: tuple[tuple[Reader, bool], ...]  # reader, and whether it reads a header
    principal_forms: tuple[str, ...]
    key_sources: tuple[Reader, ...]
    natural: tuple[str, ...]
    ttl_s: int
    window_s: int
    provider: bool
    keep: bool
    require_key: bool
    conflict: tuple[tuple[str, tuple[str, ...]], ...]
    produces: Produces | None
    sensitive: bool
    secret_headers: frozenset[str]
    deadlines: Deadlines
    target: str


class MapRuntime:
    """One map: its head, and its operations made on demand from their packed form."""

    __slots__ = (
        "_base",
        "_operations",
        "compile_plan",
        "credentials",
        "head",
        "host_variables",
        "packed",
        "principal_sources",
        "retry_headers",
    )

    def __init__(
        self,
        head: SurfaceMap,
        packed: Mapping[str, Mapping[str, Any]],
        compile_plan: Callable[[Operation], Plan],
    ) -> None:
        self.compile_plan = compile_plan
        self.head = head  # without `operations`: they are in `packed`
        self.packed = packed
        self._operations: dict[str, Operation] = {}
        labels = {label for pattern in head.hosts for label in pattern.host.split(".")}
        self.host_variables = frozenset(label[1:-1] for label in labels if label.startswith("{"))
        self._base = tuple(Segment(LITERAL, part, "", "") for part in head.base.split("/")[1:])
        slot = {head.credential_slot} if head.credential_slot else set()
        self.principal_sources = [parse_source(s) for s in head.principal.sources] if head.principal else []
        principal_headers = {source.name for source in self.principal_sources if source.kind == "header"}
        self.credentials = frozenset(slot | principal_headers | CREDENTIAL_HEADERS)
        self.retry_headers: Headers = tuple((n.encode(), v.encode()) for n, v in head.retry_headers)

    @property
    def ids(self) -> Iterable[str]:
        return self.packed.keys()

    def templates(self, path: str) -> tuple[Template, ...]:
        """`path` under the base. Raises ValueError."""
        if path == "/" and self._base:
            return (self._base + parse_template(path), self._base)
        return (self._base + parse_template(path),)

    def operation(self, identity: str) -> Operation:
        """Raises KeyError when the map has none of that id."""
        found = self._operations.get(identity)
        if found is None:
            found = Operation(self, unpack(OperationSpec, self.packed[identity]))
            self._operations[identity] = found
        return found

    def operations(self) -> list[Operation]:
        return [self.operation(identity) for identity in self.packed]


class Operation:
    __slots__ = (
        "_plan",
        "_positions",
        "body_tests",
        "facts",
        "head_tests",
        "map",
        "name",
        "prefer",
        "spec",
        "template",
        "templates",
    )

    def __init__(self, owner: MapRuntime, spec: OperationSpec) -> None:
        self.map = owner
        self.spec = spec
        self.name = f"{owner.head.name}.{spec.id}"
        self._plan: Plan | None = None
        self.templates = self._templates()
        self.template = self.templates[0]
        self._positions = {s.variable: (i, s) for i, s in enumerate(self.template) if s.variable}
        self.prefer = frozenset(
            p if "." in p and p not in owner.ids else f"{owner.head.name}.{p}" for p in spec.prefer
        )
        self.head_tests, self.body_tests, self.facts = self._tests()

    def fail(self, message: str) -> ConfigError:
        return ConfigError(
            f"operation {self.spec.id!r}: {message}", file=self.map.head.file, line=self.spec.line
        )

    def _templates(self) -> tuple[Template, ...]:
        try:
            return self.map.templates(self.spec.path)
        except ValueError as error:
            raise self.fail(str(error)) from None

    def _tests(self) -> tuple[Tests, Tests, frozenset[tuple[str, str]]]:
        head: list[tuple[Reader, str]] = []
        body: list[tuple[Reader, str]] = []
        facts: set[tuple[str, str]] = set()
        for row in self.spec.discriminators:
            source = parse_source(row.source)
            # The parameters of a media type do not discriminate.
            media = source.kind == "header" and source.name == "content-type"
            read = _read_essence if media else reader_of(source, self.path_value)
            (body if source.kind == "body" else head).append((read, row.expect))
            facts.add((row.source, row.expect))
            if row.expect not in ("present", "absent"):
                facts.add((row.source, "present"))
            if row.expect.startswith("=path.") and row.expect[6:] not in self._positions:
                raise self.fail(f"{row.expect!r} names a variable that the path does not have")
        return tuple(head), tuple(body), frozenset(facts)

    def path_value(self, name: str, exchange: Exchange) -> str:
        """Value of a path variable, decoded; the template has matched."""
        index, segment = self._positions[name]
        if segment.rank == REST:
            return "/".join(exchange.segments[index:])
        text = exchange.segments[index]
        return text[len(segment.prefix) : len(text) - len(segment.suffix)]

    def raw_path(self, name: str, exchange: Exchange) -> tuple[str, ...]:
        """The decoded segments that a variable spans."""
        index, segment = self._positions[name]
        return exchange.segments[index:] if segment.rank == REST else exchange.segments[index : index + 1]

    @property
    def variables(self) -> Iterable[str]:
        return self._positions.keys()

    @property
    def plan(self) -> Plan:
        if self._plan is None:
            self._plan = self.map.compile_plan(self)
        return self._plan


def _read_essence(exchange: Exchange) -> Any:
    return exchange.essence or MISSING
