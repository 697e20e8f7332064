"""A syntax tree becomes a typed expression, or a CelError: nothing about types is left to run time.

Every name, operator and function has one static type. A field that may be absent needs a has()
that dominates it: we track which fields are known to be present when an expression is true and
when it is false, through `!`, `&&`, `||` and `?:`.

Invariants (tests/test_cel_check.py):
  U1  An expression that passes never meets a value of another type than the one it was checked for.
  U2  A field that may be absent is read only where has() of it is known to be true.
  U3  What passes here passes CEL's own checker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final, NamedTuple

from .foreign import NAMES
from .model import (
    BOOL,
    INT,
    MAX_COMPREHENSIONS,
    STRING,
    Binary,
    Call,
    CelError,
    Conditional,
    Environment,
    Field,
    Has,
    Ident,
    Index,
    ListLiteral,
    ListOf,
    Literal,
    Logic,
    MapOf,
    Node,
    Quantifier,
    Record,
    Scalar,
    Select,
    Type,
    Unary,
)

__all__ = ["Checked", "check", "path_of"]

_NOTHING: Final[frozenset[str]] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    type: Type
    paths: frozenset[str]  # every input and constant that is named: "params.amount", "approvals"
    if_true: frozenset[str]  # fields that are present when the expression is true


class _Result(NamedTuple):
    """A type, and the fields that are present if the expression is true, and if it is false."""

    type: Type
    if_true: frozenset[str] = _NOTHING
    if_false: frozenset[str] = _NOTHING


def check(node: Node, environment: Environment, source: str, present: frozenset[str] = _NOTHING) -> Checked:
    """Type `node` against `environment`. Raises CelError. `present`: fields that are known to be there."""
    checker = _Checker(environment, source)
    result = checker.check(node, present)
    if isinstance(result.type, Record):
        raise checker.fail(node, "this is a record; name one of its fields")
    return Checked(type=result.type, paths=frozenset(checker.paths), if_true=result.if_true)


def path_of(node: Node) -> str | None:
    """`a.b.c` of a chain of field names, or None for anything else."""
    if isinstance(node, Ident):
        return node.name
    if isinstance(node, Select):
        before = path_of(node.operand)
        return None if before is None else f"{before}.{node.field}"
    return None


_LITERALS: Final = {bool: _Result(BOOL), int: _Result(INT), str: _Result(STRING)}
_BOOL_RESULT: Final = _LITERALS[bool]
_INT_RESULT: Final = _LITERALS[int]


class _Checker:
    def __init__(self, environment: Environment, source: str) -> None:
        self._source = source
        self._roots = environment.types
        self._variables: dict[str, Type] = {}
        self.paths: set[str] = set()

    def fail(self, node: Node, message: str) -> CelError:
        return CelError(message, self._source, node.start)

    def check(self, node: Node, present: frozenset[str]) -> _Result:
        """`present`: fields known to be there when this node's value matters."""
        return _CHECKS[type(node)](self, node, present)

    def _literal(self, node: Literal, _present: frozenset[str]) -> _Result:
        return _LITERALS[type(node.value)]

    def _want(self, node: Node, present: frozenset[str], want: Type, what: str) -> _Result:
        result = self.check(node, present)
        if result.type != want:
            raise self.fail(node, f"{what} needs {want}, found {result.type}{_hint(want, result.type)}")
        return result

    # --- names ---

    def _name(self, node: Ident | Select, present: frozenset[str]) -> _Result:
        if isinstance(node, Ident):
            kind = self._variables.get(node.name) or self._roots.get(node.name)
            if kind is None:
                raise self.fail(node, self._unknown_name(node.name))
            if node.name in self._roots and not isinstance(kind, Record):
                self.paths.add(node.name)
            return _Result(kind)
        field, path = self._field(node, present)
        if field.optional and path not in present:
            # `present` holds paths only, so an optional field of anything without a path stays refused.
            shown = path or node.field
            raise self.fail(
                node, f"{shown} may be absent; guard it: has({shown}) && ... (to its left, or around it)"
            )
        return _Result(field.type)

    def _field(self, node: Select, present: frozenset[str]) -> tuple[Field, str | None]:
        owner = self.check(node.operand, present).type
        if isinstance(owner, MapOf):
            raise self.fail(node, f'a map is read with ["{node.field}"], not with .{node.field}')
        if not isinstance(owner, Record):
            raise self.fail(node, _no_fields(owner, path_of(node.operand), node.field))
        path = path_of(node)
        field = owner.fields.get(node.field)
        if field is None:
            advice = NAMES.get(path or "")
            raise CelError(
                f"there is no {path}; {advice}"
                if advice
                else _unknown_field(node.field, path_of(node.operand), owner),
                self._source,
                node.end - len(node.field) if self._source[node.end - 1] != ")" else node.start,
            )
        if path is not None and path.split(".", 1)[0] not in self._variables:
            self.paths.add(path)
        return field, path

    def _unknown_name(self, name: str) -> str:
        names = [*self._roots, *self._variables]
        if name in NAMES:
            return f"unknown name {name!r}; {NAMES[name]}"
        for root, kind in self._roots.items():
            if isinstance(kind, Record) and name in kind.fields:
                return f"unknown name {name!r}; did you mean '{root}.{name}'?"
        close = get_close_matches(name, names, n=1)
        if close:
            return f"unknown name {name!r}; did you mean {close[0]!r}?"
        return f"unknown name {name!r}; there are {_listed(names)}"

    def _has(self, node: Has, present: frozenset[str]) -> _Result:
        _, path = self._field(node.target, present)
        return _Result(BOOL, if_true=_NOTHING if path is None else frozenset({path}))

    def _index(self, node: Index, present: frozenset[str]) -> _Result:
        owner = self.check(node.operand, present).type
        if isinstance(owner, ListOf):
            raise self.fail(node, "lists have no [...] in cel-strict/1; use `in`, exists() or all()")
        if not isinstance(owner, MapOf):
            path = path_of(node.operand) if isinstance(owner, Record) else None
            key = node.key.value if isinstance(node.key, Literal) else None
            advice = f"; write {path}.{key}" if path and isinstance(key, str) else ""
            raise self.fail(node, f"{owner} cannot be read with [...]; only maps can{advice}")
        self._want(node.key, present, STRING, "the key of a map")
        return _Result(owner.value)

    # --- values ---

    def _list(self, node: ListLiteral, present: frozenset[str]) -> _Result:
        first: Type | None = None
        for item in node.items:
            kind = self.check(item, present).type
            if not isinstance(kind, Scalar):
                raise self.fail(item, f"lists hold integers, strings or booleans, found {kind}")
            if first is not None and kind != first:
                raise self.fail(item, f"this list mixes {first} and {kind}{_hint(first, kind)}")
            first = kind
        if first is None:
            raise self.fail(node, "an empty list has no type; lists need at least one item")
        return _Result(ListOf(first))

    def _unary(self, node: Unary, present: frozenset[str]) -> _Result:
        if node.op == "-":
            self._want(node.operand, present, INT, "-")
            return _INT_RESULT
        inner = self._want(node.operand, present, BOOL, "!")
        return _Result(BOOL, if_true=inner.if_false, if_false=inner.if_true)

    def _binary(self, node: Binary, present: frozenset[str]) -> _Result:
        left = self.check(node.left, present).type
        right = self.check(node.right, present).type
        op = node.op
        if op in ("+", "-", "*", "/", "%"):
            if op == "+" and left == right and left != INT:
                raise self.fail(node, f"+ joins integers only, not {left}")
            for side, kind in ((node.left, left), (node.right, right)):
                if kind != INT:
                    raise self.fail(side, f"{op} needs int, found {kind}{_hint(INT, kind)}")
            return _INT_RESULT
        if op == "in":
            self._check_in(node, left, right)
        elif left != right:
            chained = isinstance(node.left, Binary) and left == BOOL and right in (INT, STRING)
            advice = " (write a < b && b < c)" if chained else _hint(left, right)
            raise self.fail(node, f"{op} compares values of one type, found {left} and {right}{advice}")
        elif op in ("==", "!="):
            if not isinstance(left, Scalar | ListOf):
                raise self.fail(node, f"{op} cannot compare {left}; compare single fields")
        elif left not in (INT, STRING):
            raise self.fail(node, f"{op} orders integers or strings, found {left}")
        return _BOOL_RESULT

    def _check_in(self, node: Binary, left: Type, right: Type) -> None:
        if isinstance(right, MapOf):
            wanted: Type = STRING
        elif isinstance(right, ListOf):
            wanted = right.item
        else:
            advice = "; for part of a string use x.contains(y)" if right == STRING else ""
            raise self.fail(node.right, f"`in` needs a list or a map on its right, found {right}{advice}")
        if left != wanted or isinstance(left, Record):
            raise self.fail(
                node.left, f"`in` looks for {wanted} in {right}, found {left}{_hint(wanted, left)}"
            )

    # --- conditions ---

    def _logic(self, node: Logic, present: frozenset[str]) -> _Result:
        """`&&` hands on what is present when the left side is true, `||` when it is false.

        The other way round only what both sides promise holds: CEL lets `error && false` be false,
        so one side alone proves nothing.
        """
        conjunction = node.op == "&&"
        gathered, common = _NOTHING, None
        for part in node.parts:
            result = self._want(part, present | gathered, BOOL, node.op)
            handed, shared = (
                (result.if_true, result.if_false) if conjunction else (result.if_false, result.if_true)
            )
            gathered |= handed
            common = shared if common is None else common & shared
        common = common or _NOTHING
        return (
            _Result(BOOL, if_true=gathered, if_false=common)
            if conjunction
            else _Result(BOOL, if_true=common, if_false=gathered)
        )

    def _conditional(self, node: Conditional, present: frozenset[str]) -> _Result:
        test = self._want(node.test, present, BOOL, "the condition of ?:")
        then = self.check(node.then, present | test.if_true)
        other = self.check(node.other, present | test.if_false)
        if then.type != other.type or isinstance(then.type, Record):
            found = f"found {then.type} and {other.type}{_hint(then.type, other.type)}"
            raise self.fail(node, f"both sides of ?: must have one type, {found}")
        return _Result(
            then.type,
            if_true=(test.if_true | then.if_true) & (test.if_false | other.if_true),
            if_false=(test.if_true | then.if_false) & (test.if_false | other.if_false),
        )

    # --- functions ---

    def _call(self, node: Call, present: frozenset[str]) -> _Result:
        if node.function == "size":
            kind = self.check(node.args[0], present).type
            if kind != STRING and not isinstance(kind, ListOf | MapOf):
                raise self.fail(node.args[0], f"size() needs a string, list or map, found {kind}")
            return _INT_RESULT
        receiver = self.check(node.args[0], present).type
        if node.function == "contains" and isinstance(receiver, ListOf):
            raise self.fail(node, "for a list write `item in list`; contains() is for strings")
        for arg in node.args:
            self._want(arg, present, STRING, f"{node.function}()")
        return _BOOL_RESULT

    def _quantifier(self, node: Quantifier, present: frozenset[str]) -> _Result:
        over = self.check(node.over, present).type
        if isinstance(over, MapOf):
            raise self.fail(
                node.over, "there is no iteration over a map in cel-strict/1 (its order is not defined)"
            )
        if not isinstance(over, ListOf):
            raise self.fail(node.over, f"{node.function}() needs a list, found {over}")
        if node.variable in self._variables or node.variable in self._roots:
            raise self.fail(node, f"{node.variable!r} has a meaning already; choose another variable name")
        if len(self._variables) >= MAX_COMPREHENSIONS:
            raise self.fail(node, f"exists() and all() nest at most {MAX_COMPREHENSIONS} deep")
        self._variables[node.variable] = over.item
        self._want(node.predicate, present, BOOL, f"the condition of {node.function}()")
        del self._variables[node.variable]
        return _BOOL_RESULT


# One method for each kind of node; the names of the kinds are those of model.Node.
_CHECKS: Final[Mapping[type, Callable[[_Checker, Any, frozenset[str]], _Result]]] = {
    Literal: _Checker._literal,
    Ident: _Checker._name,
    Select: _Checker._name,
    Has: _Checker._has,
    Index: _Checker._index,
    ListLiteral: _Checker._list,
    Unary: _Checker._unary,
    Binary: _Checker._binary,
    Logic: _Checker._logic,
    Conditional: _Checker._conditional,
    Call: _Checker._call,
    Quantifier: _Checker._quantifier,
}


def _hint(wanted: Type, found: Type) -> str:
    if (wanted, found) in ((BOOL, STRING), (STRING, BOOL)):
        return " (the booleans are true and false; yes, no, on and off are texts)"
    if (wanted, found) in ((INT, STRING), (STRING, INT)):
        return ' (numbers are written without quotes, strings with: 5000, "eur")'
    return ""


def _no_fields(owner: Type, path: str | None, field: str) -> str:
    if field in ("length", "size", "len", "count"):
        return f"{owner} has no fields; write size({path or '...'})"
    if isinstance(owner, ListOf):
        advice = NAMES.get(f"{path}.{field}") or f"write {path or 'x'}.exists(v, v.{field} ...)"
        return f"{owner} has no fields, so no .{field}; {advice}"
    return f"{owner} has no fields, so no .{field}"


# Where fields are declared that no map gives.
_DECLARED: Final = {
    "agent.attrs": ": write it into `agent_attrs` of a `kind: Bundle` file (policies/agents.yaml)",
    "counters": ": write it into spec.counters of this policy",
    "facts": ": write it into spec.facts of this policy",
    "constants": ": write it into spec.constants of this policy",
}


def _unknown_field(field: str, owner_path: str | None, owner: Record) -> str:
    owner_text = owner_path or "this record"
    close = get_close_matches(field, owner.fields, n=1)
    if close:
        full = f"{owner_path}.{close[0]}" if owner_path else close[0]
        return f"{owner_text} has no field {field!r}; did you mean {full!r}?"
    if not owner.fields:
        where = _DECLARED.get(owner_path or "", "")
        return f"{owner_text} has no field {field!r}; none is declared{where}"
    return f"{owner_text} has no field {field!r}; there are {_listed(owner.fields)}"


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:12]) + (", ..." if len(ordered) > 12 else "")
