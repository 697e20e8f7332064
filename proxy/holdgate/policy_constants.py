"""`spec.constants` of a policy becomes plain values, or a ConfigError with file, line and what to write.

What people mean to be worked out, or to be a number (50.00, 10 EUR, 1_000), is refused: a constant is never
silently a text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from .cel.model import INT_MAX, INT_MIN, Constant, type_of_constant
from .policy_document import check_identifier
from .strictyaml import Node

__all__ = ["constants_of", "not_a_number"]

_LIKE_A_NUMBER: Final = re.compile(
    r"[-+]?(?:[0-9][0-9_,]*(?:\.[0-9]*)?|\.[0-9]+|0[xob][0-9a-fA-F]+)(?:[eE][-+]?[0-9]+)?\Z"
)
_MONEY: Final = re.compile(
    r"(?:[$\u20ac\u00a3\u00a5]|EUR|USD|GBP|CHF|JPY) ?[0-9][0-9.,]*\Z"
    r"|[0-9][0-9.,]* ?(?:[$\u20ac\u00a3\u00a5]|EUR|USD|GBP|CHF|JPY)\Z",
    re.IGNORECASE,
)
_COMPUTED: Final = re.compile(r"[0-9]+(?: +[-+*/] +| *\* *)[0-9]|constants\.|\$\{|[-+]?\.(?:inf|nan)\Z", re.I)


def constants_of(node: Node | None, *, kept: bool) -> dict[str, Constant]:
    """`kept`: strictyaml.load(). Raises ConfigError."""
    found: dict[str, Constant] = {}
    if node is None:
        return found
    for key, item in node.open_mapping("spec.constants").items():
        what = f"constants.{key}"
        check_identifier(key, item, what)
        value = item.plain()
        for scalar in _scalars(item):
            not_a_number(scalar, what)
            if not kept:
                _not_computed(scalar, what)
        try:
            type_of_constant(value)
        except (ValueError, TypeError, AttributeError) as error:
            raise item.fail(
                f"{what} {error if isinstance(error, ValueError) else 'must not be null'}"
            ) from error
        for number in _numbers(value):
            if not INT_MIN <= number <= INT_MAX:
                raise item.fail(f"{what} does not fit into 64 bits")
        found[key] = value
    return found


def _scalars(node: Node) -> Iterator[Node]:
    """Every value of a tree that is neither a list nor a mapping."""
    inner = node.value.values() if isinstance(node.value, dict) else node.value
    if isinstance(inner, str | int | None):
        yield node
    else:
        for item in inner:
            yield from _scalars(item)


def not_a_number(node: Node, what: str) -> None:
    """A text without quotes that looks like a number is a mistake: 50.00, 010, 1_000. Raises ConfigError."""
    if node.plain_text and _LIKE_A_NUMBER.match(node.value):
        message = f"{what}: {node.value} is a text here; write an integer (money in minor units), or quote it"
        raise node.fail(message)


def _not_computed(node: Node, what: str) -> None:
    """A text without quotes that is meant to be worked out, or an amount with its currency."""
    if node.plain_text and _COMPUTED.match(node.value):
        message = f"{what}: {node.value} is a text here, constants are not computed"
        raise node.fail(f"{message}; write the value, or quote it")
    if node.plain_text and _MONEY.match(node.value):
        message = f"{what}: {node.value} is a text here"
        raise node.fail(f"{message}; write an integer in the minor unit (50.00 is 5000), or quote it")


def _numbers(value: Constant) -> Iterator[int]:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    return (item for item in items if isinstance(item, int))
