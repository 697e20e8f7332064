"""The words of cel-strict/1: types, syntax tree, environment and the error of a bad expression.

Plain frozen values without behaviour that decides anything; parse.py makes the tree, check.py
types it, evaluate.py turns it into closures. Values at run time are int, str, bool, list and dict.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, assert_never

from ..errors import HoldgateError

__all__ = [
    "BOOL",
    "INT",
    "INT_MAX",
    "INT_MIN",
    "MAX_COMPREHENSIONS",
    "MAX_DEPTH",
    "MAX_ITERATIONS",
    "MAX_SOURCE",
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
]

PROFILE: Final = "cel-strict/1"
MAX_SOURCE: Final = 4096  # characters of one expression
MAX_DEPTH: Final = 32  # nesting of one expression
MAX_COMPREHENSIONS: Final = 2  # exists/all inside exists/all
MAX_ITERATIONS: Final = 1000  # steps of exists/all in one decision, all rules together
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What an expression may name: inputs with their types, and constants with their values."""

    roots: Mapping[str, Type]
    constants: Mapping[str, Constant]

    def slots(self) -> dict[str, int]:
        """Where each root stands in a frame: sorted, so the layout does not depend on who built it."""
        return {name: index for index, name in enumerate(sorted(self.roots))}


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
# recursion of every later step, whatever shape the source has.


@dataclass(frozen=True, slots=True, kw_only=True)
class _Base:
    start: int
    end: int
    depth: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Literal(_Base):
    value: bool | int | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ident(_Base):
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Select(_Base):
    operand: Node
    field: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Has(_Base):
    target: Select


@dataclass(frozen=True, slots=True, kw_only=True)
class Index(_Base):
    operand: Node
    key: Node


@dataclass(frozen=True, slots=True, kw_only=True)
class ListLiteral(_Base):
    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unary(_Base):
    op: str  # "!" | "-"
    operand: Node


@dataclass(frozen=True, slots=True, kw_only=True)
class Binary(_Base):
    op: str  # == != < <= > >= in + - * / %
    left: Node
    right: Node


@dataclass(frozen=True, slots=True, kw_only=True)
class Logic(_Base):
    op: str  # "&&" | "||"
    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditional(_Base):
    test: Node
    then: Node
    other: Node


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(_Base):
    function: str  # size | startsWith | endsWith | contains
    args: tuple[Node, ...]  # the receiver first


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantifier(_Base):
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
