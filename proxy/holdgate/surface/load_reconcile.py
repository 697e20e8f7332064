"""`reconcile:` of an operation (YAML nodes) becomes a ReconcileSpec: how to ask the vendor what became of it.

Only spelling is checked here; what needs the map (is there such a read, such a parameter) is compile.py's.

Invariant (tests/test_surface_load.py):
  SM39  `reconcile` has a `by`, an `at` and a `where`: an answer is never taken as proof by its looks alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from ..strictyaml import Node
from .load_values import one_or_more
from .spec import ReconcileSpec

__all__ = ["load_reconcile"]

_PARAM: Final = re.compile(r"params\.[a-z_][a-z0-9_]*\Z")
_PATH: Final = re.compile(r"[A-Za-z_@$][A-Za-z0-9_@$:-]*(?:\.[A-Za-z_@$][A-Za-z0-9_@$:-]*)*\Z")
_PART: Final = re.compile(r"(?:path\.[a-z_][a-z0-9_]*|query(?:\.\S+)?|header\.[a-z0-9-]+)\Z")
_TIMES: Final = ("time.from", "time.until")


def load_reconcile(node: Node) -> ReconcileSpec:
    """Raises ConfigError."""
    keys = node.mapping(
        required=("read", "by", "with", "at", "where"), optional=("whole", "each"), what="reconcile"
    )
    by = keys["by"].text("reconcile.by")
    if by != "key" and not _PARAM.match(by):
        raise keys["by"].fail(
            "reconcile.by is `key` (the answer names the idempotency key), or params.NAME (a condition of the"
            " request with which the vendor allows one effect only)"
        )
    return ReconcileSpec(
        read=keys["read"].text("reconcile.read"),
        by=by,
        request=_request(keys["with"]),
        at=_path(keys["at"], "reconcile.at"),
        where=_where(keys["where"]),
        whole=_whole(keys["whole"]) if "whole" in keys else (),
        each=_path(keys["each"], "reconcile.each") if "each" in keys else "",
    )


def _request(node: Node) -> tuple[tuple[str, str], ...]:
    rows = []
    for part, item in node.open_mapping("reconcile.with").items():
        if not _PART.match(part):
            raise item.fail_key(
                f"reconcile.with: {part!r} is not path.NAME, query.NAME, query or header.name"
            )
        source = item.text(f"reconcile.with.{part}")
        if part == "query" and not _PARAM.match(source):
            raise item.fail("reconcile.with.query is the whole query: it can only be params.NAME")
        if not (_is_known(source) or source in _TIMES):
            raise item.fail(
                f"reconcile.with.{part}: {source!r} is not params.NAME, const.TEXT, time.from or time.until"
            )
        rows.append((part, source))
    return tuple(rows)


def _whole(node: Node) -> tuple[tuple[str, str], ...]:
    return tuple(
        (known, _path(item, f"reconcile.whole.{known}"))
        for known, item in _conditions(node, "reconcile.whole", _is_known)
    )


def _where(node: Node) -> tuple[tuple[str, tuple[str, ...]], ...]:
    return tuple(
        (
            known,
            tuple(_path(each, "reconcile.where") for each in one_or_more(item, f"reconcile.where.{known}")),
        )
        for known, item in _conditions(node, "reconcile.where", lambda text: text == "key" or _is_known(text))
    )


def _conditions(node: Node, what: str, is_known: Callable[[str], bool]) -> list[tuple[str, Node]]:
    rows = list(node.open_mapping(what).items())
    if not rows:
        raise node.fail(f"{what} must not be empty")
    for known, item in rows:
        if not is_known(known):
            raise item.fail_key(
                f"{what}: {known!r} is not params.NAME or const.TEXT"
                + (", nor `key`" if what.endswith("where") else "")
            )
    return rows


def _is_known(text: str) -> bool:
    return bool(_PARAM.match(text)) or (text.startswith("const.") and len(text) > 6)


def _path(node: Node, what: str) -> str:
    text = node.text(what)
    if not _PATH.match(text):
        raise node.fail(f"{what}: {text!r} is not a path in the answer: names joined by dots")
    return text
