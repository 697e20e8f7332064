"""The operations of one host: every map that names it, as dispatch tables and path tries.

Invariant (tests/test_surface_match.py):
  SM31  A request that names its operation by header or form field is matched by that name only.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import InputError, Reason
from .exchange import BodyPlan, Exchange
from .match import PathTrie, Reference, fits_path, satisfied, unique
from .plan import MapRuntime, Operation
from .settings import effective
from .spec import OperationSpec

__all__ = ["Host"]

type _Targets = dict[str, list[Reference]]


class Host:
    __slots__ = ("_forms", "_headers", "_tries")

    def __init__(self, maps: Sequence[MapRuntime]) -> None:
        self._tries: dict[str, PathTrie] = {}
        self._headers: list[tuple[str, _Targets]] = []
        self._forms: list[tuple[str, BodyPlan, _Targets]] = []
        for one in maps:
            dispatch = one.head.dispatch
            if dispatch is None:
                self._add_paths(one)
                continue
            targets: _Targets = {}
            for identity, packed in one.packed.items():
                targets.setdefault(packed["target"], []).append((one, identity))
            if dispatch.header is not None:
                self._headers.append((dispatch.header, targets))
            elif dispatch.form is not None:
                self._forms.append((dispatch.form, _form_plan(one), targets))

    def _add_paths(self, one: MapRuntime) -> None:
        for identity, packed in one.packed.items():
            templates = one.templates(packed["path"])
            for method in packed["methods"]:
                trie = self._tries.get(method)
                if trie is None:
                    trie = self._tries[method] = PathTrie()
                for template in templates:
                    trie.add(template, (one, identity))

    def match(self, exchange: Exchange) -> Operation:
        """The one operation that this request is. Raises InputError."""
        named = self._named(exchange)
        if named is None:
            trie = self._tries.get(exchange.method)
            found = trie.find(exchange.segments) if trie is not None else []
        else:
            found = [
                op
                for op in named
                if exchange.method in op.spec.methods
                and any(fits_path(template, exchange.segments) for template in op.templates)
            ]
        if len(found) > 1 or (found and (found[0].head_tests or found[0].body_tests)):
            found = satisfied(found, exchange)
        return unique(found)

    def _named(self, exchange: Exchange) -> list[Operation] | None:
        """Operations of the name that the request gives; None when it gives none."""
        found: list[Operation] | None = None
        for header, targets in self._headers:
            if header in exchange.repeated:
                raise InputError(Reason.DUPLICATE_PARAMETER, f"header {header!r} occurs more than once")
            name = exchange.fields.get(header)
            if name is not None:
                found = (found or []) + _operations(targets, name)
        for field, plan, targets in self._forms:
            if exchange.essence != "application/x-www-form-urlencoded" or not exchange.content:
                continue
            exchange.decode(plan)
            name = exchange.body.get(field)
            if type(name) is str:
                found = (found or []) + _operations(targets, name)
        return found


def _operations(targets: _Targets, name: str) -> list[Operation]:
    return [one.operation(identity) for one, identity in targets.get(name, ())]


def _form_plan(one: MapRuntime) -> BodyPlan:
    """The map's defaults, as far as they say how to read a form."""
    probe = OperationSpec(id="dispatch", line=0, methods=("POST",), path="/")
    use = effective(probe, one.head.defaults)
    return BodyPlan(
        kinds=("form",),
        written=False,
        types=None,
        absent_type=False,
        codings=frozenset(use.content_codings),
        max=use.max,
        syntax=use.syntax,
        repeat=frozenset(),
        json_fields=frozenset(use.json_in_form),
        optional=True,
    )
