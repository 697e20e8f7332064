"""The text of a condition becomes its shape and its literals: `a <= 5` and `a <= 7` have one shape.

Rules of a bundle differ in their numbers and texts more than in anything else, and the tree, the types and
the cost of a condition do not depend on these. So one tree serves all conditions of a shape, each with its
own literals. Only plain literals are taken out: decimal integers that fit whatever stands before them, and
ASCII strings without escapes. Whatever else a text holds is part of its shape, or it has none.

Invariants (tests/test_cel_shapes.py):
  X7  Two texts of one shape that parse have one tree, but for the values of the literals taken out.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from typing import Final, NamedTuple

from .model import Literal, Node, parts_of

__all__ = ["Shape", "Value", "literals_of", "places", "shape", "without"]

type Value = int | str

# 18 digits fit into 64 bits with either sign. No digit of a name, a fraction or a suffixed number, and no
# zero, which would not show whether a minus belongs to it.
_LITERAL: Final = re.compile(
    r"""("[^"\\\n\r]*+"|'[^'\\\n\r]*+'|(?<![A-Za-z_0-9.])[1-9][0-9]{0,17}+(?![A-Za-z_0-9.]))"""
)
_STRAY: Final = re.compile(r"[\"'\\]|//")


class Shape(NamedTuple):
    shape: str
    values: list[Value]  # of the literals
    lengths: list[int]  # of their texts


def shape(text: str) -> Shape | None:
    """None for a text that is read as it is."""
    if not text.isascii():
        return None
    pieces = _LITERAL.split(text)
    literals = pieces[1::2]
    around = "\0".join(pieces[::2])
    if not literals or around.count("\0") != len(literals) or _STRAY.search(around):
        return None
    values: list[Value] = [part[1:-1] if part[0] in "\"'" else int(part) for part in literals]
    kinds = "".join(["s" if type(value) is str else "i" for value in values])
    return Shape(around + kinds, values, [len(part) for part in literals])


def literals_of(text: str) -> Iterator[re.Match[str]]:
    """Where the literals of a text that has a shape stand."""
    return _LITERAL.finditer(text)


def places(node: Node, values: list[Value]) -> dict[int, tuple[int, int]] | None:
    """Where in the tree of a text the literals of its shape stand: by offset, which one and with what sign.

    None when the tree does not show them all.
    """
    found = sorted(_literals(node), key=lambda literal: literal.start)
    if len(found) != len(values):
        return None
    known: dict[int, tuple[int, int]] = {}
    for number, (literal, value) in enumerate(zip(found, values, strict=True)):
        if literal.value == value:
            known[literal.start] = (number, 1)
        elif isinstance(value, int) and literal.value == -value:
            known[literal.start] = (number, -1)
        else:
            return None
    return known


def without(node: Node, offsets: Container[int]) -> list[Node]:
    """The largest parts of a tree in which no literal stands at one of these offsets."""
    if not any(literal.start in offsets for literal in _literals(node)):
        return [node]
    return [found for part in parts_of(node) for found in without(part, offsets)]


def _literals(node: Node) -> list[Literal]:
    if isinstance(node, Literal):
        return [] if isinstance(node.value, bool) or node.value == 0 else [node]
    return [literal for part in parts_of(node) for literal in _literals(part)]
