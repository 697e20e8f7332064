"""A syntax tree becomes its normal form: fully parenthesised text with constants written out.

Two expressions with equal normal forms are the same expression, white space, quotes and redundant
parentheses aside. Used to find rules that repeat each other.

Invariants (tests/test_cel_parse.py):
  X5  The normal form parses back to itself, and means the same.
"""

from __future__ import annotations

from typing import assert_never

from .model import (
    Binary,
    Call,
    Conditional,
    Constant,
    Environment,
    Has,
    Ident,
    Index,
    ListLiteral,
    Literal,
    Logic,
    Node,
    Quantifier,
    Select,
    Unary,
)

__all__ = ["unparse"]

_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})


def unparse(node: Node, environment: Environment) -> str:
    """The normal form of `node`, which check() has accepted."""

    def text(node: Node) -> str:
        match node:
            case Literal():
                return _constant(node.value)
            case Ident():
                return node.name
            case Select(operand=Ident(name="constants")) if node.field in environment.constants:
                value = environment.constants[node.field]
                # A map has no literal in the profile; its name stands for it.
                return f"constants.{node.field}" if isinstance(value, dict) else _constant(value)
            case Select():
                return f"{text(node.operand)}.{node.field}"
            case Has():
                return f"has({text(node.target)})"
            case Index():
                return f"{text(node.operand)}[{text(node.key)}]"
            case ListLiteral():
                return f"[{', '.join(map(text, node.items))}]"
            case Unary():
                return f"({node.op}{text(node.operand)})"
            case Binary():
                return f"({text(node.left)} {node.op} {text(node.right)})"
            case Logic():
                return "(" + f" {node.op} ".join(map(text, node.parts)) + ")"
            case Conditional():
                return f"({text(node.test)} ? {text(node.then)} : {text(node.other)})"
            case Call(function="size"):
                return f"size({text(node.args[0])})"
            case Call():
                return f"{text(node.args[0])}.{node.function}({text(node.args[1])})"
            case Quantifier():
                return f"{text(node.over)}.{node.function}({node.variable}, {text(node.predicate)})"
            case _:
                assert_never(node)

    return text(node)


def _constant(value: Constant) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(map(_constant, value))}]"
    if isinstance(value, str):
        return f'"{value.translate(_ESCAPES)}"'
    return f"({value})" if isinstance(value, int) and value < 0 else str(value)
