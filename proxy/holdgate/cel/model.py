"""The words of cel-strict/1: types, syntax tree, environment and the error of a bad expression.

Plain frozen values without behaviour that decides anything; parse.py makes the tree, check.py
types it, evaluate.py turns it into closures. Values at run time are int, str, bool, list and dict.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple, assert_never

from ..errors import HoldgateError

__all__ = [
    "BOOL",
    "INT",
    "INT_MAX",
    "INT_MIN",
    "MAX_COMPREHENSIONS",
    "MAX_DEPTH",
    "MAX_ITERATIONS",
    "MAX_LIST",
    "MAX_SOURCE",
    "MAX_STEPS",
    "MAX_STRING",
    "PER_POLICY",
    "PROFILE",
    "STRING",
    "Binary",
    "Call",
    "CelError",
    "Conditional",
    "Constant",
    "Environment",
    "Field",
    "Has",
    "Ident",
    "Index",
    "ListLiteral",
    "ListOf",
    "Literal",
    "Logic",
    "MapOf",
    "Node",
    "Quantifier",
    "Record",
    "Scalar",
    "Select",
    "Type",
    "Unary",
    "parts_of",
    "type_of_constant",
]

PROFILE: Final = "cel-strict/1"
MAX_SOURCE: Final = 4096  # characters of one expression
MAX_DEPTH: Final = 32  # nesting of one expression
MAX_COMPREHENSIONS: Final = 2  # exists/all inside exists/all
MAX_ITERATIONS: Final = 1000  # steps of exists/all in one decision, all rules together
MAX_LIST: Final = 1000  # items of one list
# Slack takes texts of 40,000 characters, EC2 user data of 21,848.
MAX_STRING: Final = 65_536  # characters of one string
MAX_STEPS: Final = 250_000  # worst case of all rules of one operation, see cost.py
INT_MIN: Final = -(2**63)
INT_MAX: Final = 2**63 - 1

type Constant = bool | int | str | list[bool | int | str] | dict[str, bool | int | str]


# --- types ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scalar:
    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class ListOf:
    item: Type

    def __str__(self) -> str:
        return f"list<{self.item}>"


@dataclass(frozen=True, slots=True)
class MapOf:
    """Keys are strings. Read with m["key"] and "key" in m; there is no iteration over a map."""

    value: Type

    def __str__(self) -> str:
        return f"map<string,{self.value}>"


@dataclass(frozen=True, slots=True)
class Field:
    type: Type
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """A value with known fields, such as `params`. Cannot be compared or passed on as a whole."""

    fields: Mapping[str, Field]

    def __str__(self) -> str:
        return "record"


type Type = Scalar | ListOf | MapOf | Record

BOOL: Final = Scalar("bool")
INT: Final = Scalar("int")
STRING: Final = Scalar("string")


def type_of_constant(value: Constant) -> Type:
    """The type of a policy's constant. Raises ValueError with what is wrong."""
    if isinstance(value, bool):
        return BOOL
    if isinstance(value, int):
        return INT
    if isinstance(value, str):
        return STRING
    items = list(value.values()) if isinstance(value, dict) else value
    types = {type_of_constant(item) for item in items}
    if len(types) != 1:
        raise ValueError("needs at least one item" if not types else "mixes items of different types")
    item = types.pop()
    if not isinstance(item, Scalar):
        raise ValueError("may hold integers, strings and booleans only")
    return MapOf(item) if isinstance(value, dict) else ListOf(item)


# The roots in which two policies of the same operations may differ.
PER_POLICY: Final = ("constants", "counters", "facts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What an expression may name: inputs with their types, and constants with their values."""

    roots: Mapping[str, Type]
    constants: Mapping[str, Constant]
    # Made once for all expressions of a policy: the roots with the types of the constants, and where each
    # root stands in a frame. Sorted, so that the layout does not depend on who built it.
    types: Mapping[str, Type] = field(init=False)
    slots: Mapping[str, int] = field(init=False)
    # Conjuncts that have been compiled already, by text; filled by evaluate.py, never part of a meaning. The
    # first is of this environment, the second of all that differ from it in PER_POLICY only.
    own: dict[object, object] = field(default_factory=dict, init=False, repr=False, compare=False)
    shared: dict[object, object] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        constants = {name: Field(type_of_constant(value)) for name, value in self.constants.items()}
        object.__setattr__(self, "types", {**self.roots, "constants": Record(constants)})
        object.__setattr__(self, "slots", {name: index for index, name in enumerate(sorted(self.roots))})


# --- errors -----------------------------------------------------------------------------------


class CelError(HoldgateError):
    """The expression is not acceptable at `offset` of its source."""

    def __init__(self, message: str, source: str, offset: int) -> None:
        self.message, self.offset = message, offset
        before = source[:offset]
        self.line = before.count("\n") + 1
        self.column = offset - (before.rfind("\n") + 1) + 1
        super().__init__(f"{self.line}:{self.column}: {message}")


# --- syntax tree ------------------------------------------------------------------------------
# `start` and `end` are offsets into the source, `depth` is 1 + the deepest child: it bounds the
# recursion of every later step, whatever shape the source has. Tuples, because a bundle has tens of
# thousands of them.


class Literal(NamedTuple):
    start: int
    end: int
    depth: int
    value: bool | int | str


class Ident(NamedTuple):
    start: int
    end: int
    depth: int
    name: str


class Select(NamedTuple):
    start: int
    end: int
    depth: int
    operand: Node
    field: str


class Has(NamedTuple):
    start: int
    end: int
    depth: int
    target: Select


class Index(NamedTuple):
    start: int
    end: int
    depth: int
    operand: Node
    key: Node


class ListLiteral(NamedTuple):
    start: int
    end: int
    depth: int
    items: tuple[Node, ...]


class Unary(NamedTuple):
    start: int
    end: int
    depth: int
    op: str  # "!" | "-"
    operand: Node


class Binary(NamedTuple):
    start: int
    end: int
    depth: int
    op: str  # == != < <= > >= in + - * / %
    left: Node
    right: Node


class Logic(NamedTuple):
    start: int
    end: int
    depth: int
    op: str  # "&&" | "||"
    parts: tuple[Node, ...]


class Conditional(NamedTuple):
    start: int
    end: int
    depth: int
    test: Node
    then: Node
    other: Node


class Call(NamedTuple):
    start: int
    end: int
    depth: int
    function: str  # size | startsWith | endsWith | contains
    args: tuple[Node, ...]  # the receiver first


class Quantifier(NamedTuple):
    start: int
    end: int
    depth: int
    function: str  # exists | all
    over: Node
    variable: str
    predicate: Node


type Node = (
    Literal
    | Ident
    | Select
    | Has
    | Index
    | ListLiteral
    | Unary
    | Binary
    | Logic
    | Conditional
    | Call
    | Quantifier
)


def parts_of(node: Node) -> tuple[Node, ...]:
    """The nodes right below `node`, in the order of the source."""
    match node:
        case Literal() | Ident():
            return ()
        case Select(operand=operand) | Unary(operand=operand):
            return (operand,)
        case Has(target=target):
            return (target,)
        case Index(operand=operand, key=key):
            return (operand, key)
        case ListLiteral(items=parts) | Logic(parts=parts) | Call(args=parts):
            return parts
        case Binary(left=left, right=right):
            return (left, right)
        case Conditional(test=test, then=then, other=other):
            return (test, then, other)
        case Quantifier(over=over, predicate=predicate):
            return (over, predicate)
        case _:
            assert_never(node)
