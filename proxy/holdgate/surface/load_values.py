"""Scalars of a surface map: sizes, durations, names, one value or a list of them.

Invariant (tests/test_surface_load.py):
  SM7  A size or duration is a number and a unit; a bare number, zero or another unit is refused.
"""

from __future__ import annotations

import re
from typing import Final

from ..strictyaml import Node

__all__ = ["duration", "literal", "names", "one_or_more", "size"]

_SIZE: Final = re.compile(r"([1-9][0-9]{0,9})(B|KiB|MiB|GiB)\Z")
_DURATION: Final = re.compile(r"([1-9][0-9]{0,8})(s|m|h|d)\Z")
_BYTES: Final = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def size(node: Node, what: str) -> int:
    found = _SIZE.match(node.value) if isinstance(node.value, str) else None
    if found is None:
        raise node.fail(f"{what} must be a size such as 256KiB, 8MiB or 1GiB")
    return int(found[1]) * _BYTES[found[2]]


def duration(node: Node, what: str) -> int:
    found = _DURATION.match(node.value) if isinstance(node.value, str) else None
    if found is None:
        raise node.fail(f"{what} must be a duration such as 30s, 10m or 24h")
    return int(found[1]) * _SECONDS[found[2]]


def one_or_more(node: Node, what: str) -> list[Node]:
    """The items of a list, or the value itself as a list of one."""
    items = node.value if isinstance(node.value, list) else [node]
    if not items:
        raise node.fail(f"{what} must not be an empty list")
    return items


def names(node: Node, what: str) -> tuple[str, ...]:
    found = tuple(item.text(what) for item in node.sequence(what))
    if len(set(found)) != len(found):
        raise node.fail(f"{what}: an entry occurs twice")
    return found


def literal(node: Node, what: str) -> str:
    """A string, integer or boolean in its text form (`true`, `2`)."""
    if isinstance(node.value, bool):
        return "true" if node.value else "false"
    if isinstance(node.value, int):
        return str(node.value)
    return node.text(what)
