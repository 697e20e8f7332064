"""The small grammar of `from`, `ignore`, `volatile` and `redact`: names become typed paths.

    body.card.number   body.items[].id   query.created[gte]   header.x-y   path.id   args.channel
    body.messages.**.image_url           (sources only: wherever it stands below, in records and lists)
    body.metadata.*    query.*           (patterns only)
    query.expand.*                       (as a source: all of `expand`, `expand[0]`, `expand[]`, `expand.x`)

A `Cover` is a tree of declared body fields: it says which fields of a decoded body nobody declared,
and it cuts out the volatile ones. `dig` reads one path.

Invariants (tests/test_surface_sources.py):
  SM2  A field of a decoded body is covered by a declaration that names it, or first_uncovered() names it.
  SM3  dig() never skips a value: a path that meets a value of another shape is an error, not an absence.
       Below `**` it is a search: every place that has the path is found, at whatever depth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

__all__ = [
    "DEEP",
    "EACH",
    "MISSING",
    "Cover",
    "Path",
    "Pattern",
    "ShapeError",
    "Source",
    "base_of",
    "dig",
    "parse_pattern",
    "parse_source",
]


class _Marker:
    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


EACH: Final = _Marker("[]")  # in a path: every item of the list
DEEP: Final = _Marker("**")  # in a path: every record below that has what follows
MISSING: Final = _Marker("MISSING")

type Path = tuple[str | _Marker, ...]

_KINDS: Final = ("path", "host", "query", "header", "body", "args", "raw", "const")
_PATTERN_KINDS: Final = ("path", "host", "query", "header", "body", "args")


class ShapeError(ValueError):
    """A value on the way is not the record or list that the path expects."""


@dataclass(frozen=True, slots=True)
class Source:
    kind: str  # one of _KINDS
    name: str  # what stands after the first dot
    path: Path  # for body and args; () is the whole body

    @property
    def many(self) -> bool:
        """It reads a list of values, of which there may be any number."""
        return EACH in self.path or DEEP in self.path


@dataclass(frozen=True, slots=True)
class Pattern:
    kind: str
    name: str  # without ".*"; "" with deep: everything of that kind
    path: Path
    deep: bool


def base_of(key: str) -> str:
    """The name of a query or form key without modifier or index: `_include:iterate`, `expand[0]`."""
    return key.partition(":")[0].partition("[")[0]


def parse_source(text: str) -> Source:
    """Read one `from` entry. Raises ValueError that says what is allowed."""
    kind, _, name = text.partition(".")
    if kind.endswith("[]") or text == "body":
        kind, name = "body", text[4:]
        return Source(kind, name, _path(name, text))
    if kind not in _KINDS or not name:
        raise ValueError(f"{text!r} is not a source: write one of {', '.join(k + '.NAME' for k in _KINDS)}")
    if kind == "raw" and name not in ("sha256", "bytes"):
        raise ValueError(f"{text!r}: raw has only raw.sha256 and raw.bytes")
    if kind == "body" and f".{name}".count(".**.") == 1:
        above, _, below = f".{name}".partition(".**.")
        if "[" in below or "*" in below:
            raise ValueError(f"{text!r} is not a source: after ** stand names separated by dots")
        upper = _path(above, text) if above else ()
        return Source(kind, name, (*upper, DEEP, *_path("." + below, text)))
    if kind != "const" and "*" in (name.removesuffix(".*") if kind == "query" else name):
        raise ValueError(f"{text!r} is not a source: only query.NAME.* and body.**.NAME stand for several")
    if kind == "header":
        name = name.lower()
    return Source(kind, name, _path("." + name, text) if kind in ("body", "args") else ())


def parse_pattern(text: str) -> Pattern:
    """Read one entry of `ignore`, `volatile` or `redact`. Raises ValueError."""
    deep = text.endswith(".*")
    stem = text[:-2] if deep else text
    kind = stem.partition(".")[0].partition("[")[0]
    if kind not in _PATTERN_KINDS or (not deep and stem == kind):
        raise ValueError(
            f"{text!r} is not a field: write one of {', '.join(k + '.NAME' for k in _PATTERN_KINDS)}"
        )
    rest = stem[len(kind) :]
    if deep and kind in ("path", "host", "header"):
        raise ValueError(f"{text!r}: {kind} fields are named one by one")
    name = rest[1:] if rest.startswith(".") else rest
    if kind == "header":
        name = name.lower()
    return Pattern(kind, name, _path(rest, text) if kind in ("body", "args") else (), deep)


def _path(rest: str, text: str) -> Path:
    """`.a[].b` -> ("a", EACH, "b")."""
    steps: list[str | _Marker] = []
    for index, part in enumerate(rest.split(".")):
        each = 0
        while part.endswith("[]"):
            part, each = part[:-2], each + 1
        if (not part and index > 0) or "[" in part or "]" in part or "*" in part:
            raise ValueError(f"{text!r} is not a path: names separated by dots, `[]` after a list")
        if part:
            steps.append(part)
        steps.extend([EACH] * each)
    return tuple(steps)


def dig(value: Any, path: Path, wrap: bool = False) -> Any:
    """The value at `path`, MISSING when a record on the way lacks it.

    With EACH the result is a flat list; with `wrap` (XML) a single value counts as a list of one.
    With DEEP it is a list of what was found, in the order of the body, MISSING when nothing was.
    """
    for index, step in enumerate(path):
        if step is EACH:
            return _dig_each(value, path[index + 1 :], wrap)
        if step is DEEP:
            return _search(value, path[index + 1 :]) or MISSING
        if type(value) is not dict:
            raise ShapeError(f"a record is expected above {step}")
        value = value.get(step, MISSING)
        if value is MISSING:
            return MISSING
    return value


def _dig_each(value: Any, rest: Path, wrap: bool) -> list[Any]:
    if type(value) is not list:
        if not wrap:
            raise ShapeError("a list is expected")
        value = [value]
    found: list[Any] = []
    for item in value:
        got = dig(item, rest, wrap)
        if got is MISSING:
            continue
        if EACH in rest or DEEP in rest:
            found.extend(got)
        else:
            found.append(got)
    return found


def _search(value: Any, names: Path) -> list[Any]:
    """Every value at `names` in a record at or below `value`, those inside of one that was found too."""
    found = []
    left = [value]
    while left:
        node = left.pop()
        if type(node) is dict:
            got: Any = node
            for name in names:
                got = got.get(name, MISSING) if type(got) is dict else MISSING
            if got is not MISSING:
                found.append(got)
            node = list(node.values())
        if type(node) is list:
            left.extend([child for child in reversed(node) if type(child) is dict or type(child) is list])
    return found


class Cover:
    """A node of the tree of declared fields. Built at compile time, then only read."""

    __slots__ = ("children", "deep", "each", "scalar")

    def __init__(self) -> None:
        self.deep = False  # everything here and below
        self.scalar = False  # a scalar, or a list of scalars
        self.each: Cover | None = None
        self.children: dict[str | _Marker, Cover] = {}

    def __bool__(self) -> bool:
        return self.deep or self.scalar or self.each is not None or bool(self.children)

    def add(self, path: Path, *, deep: bool) -> None:
        node = self
        for step in path:
            if step is EACH:
                node.each = node.each or Cover()
                node = node.each
            else:
                node = node.children.setdefault(step, Cover())
        if deep:
            node.deep = True
        else:
            node.scalar = True

    def first_uncovered(self, value: Any, xml: bool = False) -> str | None:
        """Path of the first undeclared field below `value`, None when everything is declared."""
        if self.deep:
            return None
        if type(value) is dict:
            return self._uncovered_record(value, xml)
        if type(value) is list:
            return self._uncovered_list(value, xml)
        return None if self.scalar else "(value)"

    def _uncovered_record(self, value: dict[str, Any], xml: bool) -> str | None:
        children = self.children
        for key, item in value.items():
            child = children.get(key)
            if child is None:
                if xml and key == "@ns":  # structure, not a field; it is part of the digest
                    continue
                return key
            if child.deep:
                continue
            inner = child.first_uncovered(item, xml)
            if inner is not None:
                return key if inner == "(value)" else f"{key}.{inner}"
        return None

    def _uncovered_list(self, value: list[Any], xml: bool) -> str | None:
        each = self.each
        for item in value:
            if each is not None:
                inner = each.first_uncovered(item, xml)
                if inner is not None:
                    return f"[].{inner}"
            elif not self.scalar or type(item) is dict or type(item) is list:
                return "(value)"
        return None

    def without(self, value: Any) -> Any:
        """`value` without everything this tree covers; shares what it keeps."""
        if type(value) is dict:
            children = self.children
            out = {}
            for key, item in value.items():
                child = children.get(key)
                if child is None:
                    out[key] = item
                elif not (child.deep or child.scalar):
                    out[key] = child.without(item)
            return out
        if type(value) is list and self.each is not None:
            each = self.each
            return [] if each.deep or each.scalar else [each.without(item) for item in value]
        return value
