"""application/x-www-form-urlencoded becomes pairs, or a tree of the vendor's key syntax.

Three key syntaxes: `flat` (every key is a name), `brackets` (Stripe, PHP, Rack: `a[b][0]=`)
and `aws-query` (dotted: `Tags.member.1.Key=`; the word `member` before a number is AWS's
wrapper for a list and is left out, so the tree has the API's own names).

Invariants (tests/test_content_form.py):
  FM1  No key is read twice: an equal key after decoding, or a scalar that is also a container,
       is duplicate_parameter; only names in `repeat` (and `[]` lists) may occur several times.
  FM2  Lists are dense and in order (0, 1, ... or 1, 2, ...): no reader can order them otherwise.
  FM3  Every byte is read: pairs split on `&` only, and a raw `;`, a control byte, a non-ASCII
       byte, a bad escape or an empty key refuses the form.
  FM4  The number of keys is bounded before anything is split.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal
from urllib.parse import unquote_to_bytes

from ..errors import InputError, Reason

__all__ = ["FormValue", "Syntax", "parse_form", "parse_pairs", "split_pairs"]

type FormValue = str | list[FormValue] | dict[str, FormValue]
type Syntax = Literal["brackets", "flat", "aws-query"]
type Step = str | _At
type Path = list[Step]
type _Node = str | _Record | _List

_MAX_KEYS: Final = 2000
_MAX_DEPTH: Final = 16
# Printable ASCII without `;` (some servers split on it) and `%` outside an escape.
_FORM: Final = re.compile(
    rb"[\x20-\x24\x26-\x3a\x3c-\x7e]*(?:%[0-9A-Fa-f]{2}[\x20-\x24\x26-\x3a\x3c-\x7e]*)*"
)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_BRACKETS: Final = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")


def parse_pairs(data: bytes) -> list[tuple[str, str]]:
    """Return the decoded pairs in order; `+` is a space, a bare key has the value "". Raises InputError."""
    return split_pairs(data, grammar=_FORM, max_pairs=_MAX_KEYS, reason=Reason.BAD_BODY)


def parse_form(data: bytes, *, syntax: Syntax, repeat: frozenset[str] = frozenset()) -> dict[str, FormValue]:
    """Return the form as a tree. Keys in `repeat` always become a list. Raises InputError."""
    pairs = parse_pairs(data)
    path_of = _PATHS[syntax]
    root = _Record()
    for key, value in pairs:
        if key in repeat:
            _put(root, [key, _APPEND], value)
        elif path_of is None:
            _put(root, [key], value)
        else:
            _put(root, path_of(key), value)
    return root.tree()


def split_pairs(
    data: bytes, *, grammar: re.Pattern[bytes], max_pairs: int, reason: Reason
) -> list[tuple[str, str]]:
    """Split and decode `key=value&...` whose bytes match `grammar`. Raises InputError."""
    if not data:
        return []
    if data.count(b"&") >= max_pairs:
        raise InputError(Reason.TOO_LARGE, f"more than {max_pairs} keys")
    if grammar.fullmatch(data) is None:
        raise InputError(reason, "a byte that is not allowed, or a bad percent escape")
    text = data.decode("ascii")
    escaped = "%" in text or "+" in text
    pairs: list[tuple[str, str]] = []
    for piece in text.split("&"):
        key, _, value = piece.partition("=")
        if escaped:
            key, value = _unescape(key, reason), _unescape(value, reason)
            if _CONTROL.search(key) is not None or "\0" in value:
                raise InputError(reason, "a control character in a key, or NUL in a value")
        if not key:
            raise InputError(reason, "an empty pair or key")
        pairs.append((key, value))
    return pairs


def _unescape(text: str, reason: Reason) -> str:
    if "+" in text:
        text = text.replace("+", " ")
    if "%" not in text:
        return text
    try:
        return unquote_to_bytes(text).decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(reason, "an escaped value is not UTF-8") from None


@dataclass(frozen=True, slots=True)
class _At:
    """A step into a list: which spelling of list, and the position from 0 (None: append)."""

    kind: str
    position: int | None


class _Record:
    """A record under construction; its children are scalars, records or lists."""

    __slots__ = ("children",)

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}

    def get(self, step: Step) -> _Node | None:
        if isinstance(step, _At):
            raise InputError(Reason.BAD_BODY, "a key is used as a record and as a list")
        return self.children.get(step)

    def add(self, step: Step, child: _Node) -> None:
        if isinstance(step, _At):
            raise InputError(Reason.BAD_BODY, "a key is used as a record and as a list")
        self.children[step] = child

    def tree(self) -> dict[str, FormValue]:
        return {
            key: child if isinstance(child, str) else child.tree() for key, child in self.children.items()
        }


class _List:
    """A list under construction, of one spelling: `a[]`, `a[0]`, `a.1` or `a.member.1`."""

    __slots__ = ("items", "kind")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.items: list[_Node] = []

    def get(self, step: Step) -> _Node | None:
        position = self._position(step)
        return self.items[position] if position < len(self.items) else None

    def add(self, step: Step, child: _Node) -> None:
        if self._position(step) != len(self.items):
            raise InputError(Reason.BAD_BODY, "list indexes are not dense and in order")
        self.items.append(child)

    def tree(self) -> list[FormValue]:
        return [item if isinstance(item, str) else item.tree() for item in self.items]

    def _position(self, step: Step) -> int:
        if not isinstance(step, _At) or step.kind != self.kind:
            raise InputError(Reason.BAD_BODY, "a key is used as two kinds of list, or as a record")
        return len(self.items) if step.position is None else step.position


def _put(root: _Record, path: Path, value: str) -> None:
    if len(path) > _MAX_DEPTH:
        raise InputError(Reason.BAD_BODY, "form keys nest too deeply")
    node: _Record | _List = root
    for step, following in pairwise(path):
        child = node.get(step)
        if child is None:
            child = _List(following.kind) if isinstance(following, _At) else _Record()
            node.add(step, child)
        elif isinstance(child, str):
            raise InputError(Reason.DUPLICATE_PARAMETER, "a key is both a value and a container")
        node = child
    if node.get(path[-1]) is not None:
        raise InputError(Reason.DUPLICATE_PARAMETER, f"{path[-1]!r} occurs more than once")
    node.add(path[-1], value)


def _index(text: str) -> int | None:
    """The number that `text` is, or None where it is a name."""
    if not (text.isascii() and text.isdecimal()):
        return None
    if len(text) > 5 or (text[0] == "0" and text != "0"):
        raise InputError(Reason.BAD_BODY, f"{text[:8]!r} is neither a list index nor a name")
    return int(text)


def _bracket_path(key: str) -> Path:
    if "[" not in key and "]" not in key:  # most keys; what the expression would say of them
        return [key]
    whole = _BRACKETS.fullmatch(key)
    if whole is None:
        raise InputError(Reason.BAD_BODY, "brackets of a key do not match")
    path: Path = [whole[1]]
    if not whole[2]:
        return path
    for part in whole[2][1:-1].split("]["):
        last = path[-1]
        if isinstance(last, _At) and last.position is None:
            # Rack starts a new record when a field repeats, PHP at every pair.
            raise InputError(Reason.BAD_BODY, "[] before the end of a key")
        if part:
            index = _index(part)
            path.append(part if index is None else _At("[n]", index))
        else:
            path.append(_APPEND)
    return path


def _dotted_path(key: str) -> Path:
    path: Path = []
    wrapped = False
    steps = key.split(".")
    for step, following in zip(steps, [*steps[1:], ""], strict=True):
        index = _index(step)
        if index is not None:
            if index == 0:
                raise InputError(Reason.BAD_BODY, "lists are numbered from 1")
            path.append(_At(".member.n" if wrapped else ".n", index - 1))
        elif not step:
            raise InputError(Reason.BAD_BODY, "a key has an empty step")
        elif step == "member" and path and _index(following) is not None:
            wrapped = True
            continue
        else:
            path.append(step)
        wrapped = False
    return path


_APPEND: Final = _At("[]", None)
_PATHS: Final[dict[str, Callable[[str], Path] | None]] = {
    "flat": None,
    "brackets": _bracket_path,
    "aws-query": _dotted_path,
}
