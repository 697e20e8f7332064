"""Bodies that become values: JSON, forms and XML, each against another reader of the same bytes.

A decoder may refuse more than others do; what it accepts, the other reader must read as the same value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote_to_bytes
from xml.etree import ElementTree

from fuzz.base import Target, must, split
from holdgate.content.form import parse_form, parse_pairs
from holdgate.content.strictjson import Number, parse_json
from holdgate.content.xml import parse_xml
from holdgate.errors import InputError

__all__ = ["FORM_WORDS", "JSON_WORDS", "TARGETS", "XML_WORDS", "model_pairs"]

VECTORS: Final = Path(__file__).resolve().parents[1] / "vectors"


# --- JSON -------------------------------------------------------------------------------------


class _Lexeme(str):
    __slots__ = ()


class _Flawed(ValueError):
    """Our own reading of the rules says no."""


def json_(data: bytes) -> bool:
    """Accepted exactly when the rules, said again with the standard library, accept; with the same value."""
    try:
        theirs = _model_json(data)
    except (ValueError, RecursionError) as error:
        theirs, flaw = None, error
    else:
        flaw = None
    try:
        ours = parse_json(data)
    except InputError as error:
        must(flaw is not None, "refused without a reason", error, data)
        return False
    must(flaw is None, "accepted, but", flaw, data)
    must(_same(ours, theirs), "the standard library reads another value", ours, theirs, data)
    return True


def _model_json(data: bytes) -> Any:
    text = data.decode("utf-8")
    value = json.loads(
        text,
        object_pairs_hook=_model_record,
        parse_int=_model_int,
        parse_float=_model_float,
        parse_constant=_model_constant,
    )
    json.dumps(value, ensure_ascii=False).encode("utf-8")  # a lone surrogate has no UTF-8
    if _depth(value) > 32:
        raise _Flawed("deeper than 32")
    return value


def _model_record(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key.casefold() for key, _ in pairs}) < len(pairs):
        raise _Flawed("a key twice")
    return dict(pairs)


def _model_int(text: str) -> Any:
    if len(text.removeprefix("-")) > 40:
        raise _Flawed("more than 40 digits")
    return _Lexeme(text) if text == "-0" else int(text)


def _model_float(text: str) -> Any:
    if len(text) > 1000:
        raise _Flawed("a long number")
    return _Lexeme(text)


def _model_constant(text: str) -> Any:
    raise _Flawed(text)


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(_depth, inner), default=0)


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, Number) or isinstance(theirs, _Lexeme):
        return isinstance(ours, Number) and isinstance(theirs, _Lexeme) and str(ours) == str(theirs)
    if type(ours) is not type(theirs):
        return False
    if isinstance(ours, dict):
        return list(ours) == list(theirs) and all(_same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list):
        return len(ours) == len(theirs) and all(map(_same, ours, theirs))
    return bool(ours == theirs)


def json_seeds() -> Iterator[bytes]:
    for path in sorted((VECTORS / "json").rglob("*.json")):
        yield path.read_bytes()
    yield b'{"q":"a","limit":5,"tags":["x",{"y":[1.50,-0,1e3,true,null]}],"u":"\\u00e9\\ud83d\\ude00"}'


JSON_WORDS: Final = (
    b'{"amount":5}', b'"amount"', b'"\\u0061mount"', b'"Amount"', b"\\ud800", b"\\udc00", b"NaN",
    b"-Infinity", b"1e400", b"-0", b"true", b"null", b"[[[[", b"]]]]", b"{}", b"\xef\xbb\xbf", b"\\\\",
    b'\\"', b",", b":", b"9" * 40, b"\xc5\xbf", b"\xc4\xb1", b"\xe2\x84\xaa",
)  # fmt: skip


# --- forms ------------------------------------------------------------------------------------

_SYNTAXES: Final = ("flat", "brackets", "aws-query")
_FORM_BYTES: Final = frozenset(range(0x20, 0x7F)) - frozenset(b";%")


def form(data: bytes) -> bool:
    """The pairs are those of our own second reading; a tree has every value once, under its first name."""
    steer, body = split(data, 1)
    pairs = model_pairs(body)
    try:
        ours = parse_pairs(body)
    except InputError as error:
        must(pairs is None, "refused without a reason", error, body)
        return False
    must(ours == pairs, "another splitting", ours, pairs, body)
    syntax = _SYNTAXES[steer[0] % 3]
    try:
        tree = parse_form(body, syntax=syntax)
    except InputError:
        once = len({key for key, _ in ours}) == len(ours)
        must(syntax != "flat" or not once, "flat and unique, but refused", body)
        return False
    must(sorted(_leaves(tree)) == sorted(value for _, value in ours), "values lost or doubled", tree, body)
    if syntax == "flat":
        must(tree == dict(ours) and len(tree) == len(ours), "not the pairs", tree, body)
    else:
        stop = "[" if syntax == "brackets" else "."
        must(list(tree) == list(dict.fromkeys(key.split(stop)[0] for key, _ in ours)), "names", tree, body)
    return True


def model_pairs(body: bytes) -> list[tuple[str, str]] | None:
    if not body:
        return []
    if not frozenset(re.sub(rb"%[0-9A-Fa-f]{2}", b"", body)) <= _FORM_BYTES or body.count(b"&") >= 2000:
        return None
    pairs = []
    for piece in body.split(b"&"):
        key, value = (unquote_to_bytes(part.replace(b"+", b" ")) for part in piece.partition(b"=")[::2])
        try:
            pairs.append((key.decode(), value.decode()))
        except UnicodeDecodeError:
            return None
        if not key or re.search("[\0-\x1f\x7f-\x9f]", pairs[-1][0]) or b"\0" in value:
            return None
    return pairs


def _leaves(tree: Any) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    else:
        for item in tree.values() if isinstance(tree, dict) else tree:
            yield from _leaves(item)


def form_seeds() -> Iterator[bytes]:
    yield b"\0amount=5&recipient=a%20b&note=a+b%C3%A9&bare"
    yield b"\1amount=5&card[number]=42&items[0][price]=p_1&items[1][price]=p%5F2&expand[]=a&expand[]=b"
    yield b"\2Action=RunInstances&Tag.1.Key=a&Tag.1.Value=b&Filter.member.1.Name=x&Filter.member.2.Name=y"
    yield b"\1a[b]=1&a=2"
    yield b"\0a=1;b=2"
    yield b"\2a.0=1&a.b=2"


FORM_WORDS: Final = (
    b"amount=", b"&", b"=", b"+", b"%5B", b"%5D", b"[0]", b"[]", b"[1]", b"[a]", b".1.", b".member.1",
    b".2", b";", b"%00", b"%61", b"%C3%A9", b"%ff", b"%", b"[00]", b"&amount=5",
)  # fmt: skip


# --- XML --------------------------------------------------------------------------------------


def xml(data: bytes) -> bool:
    """What is accepted is what ElementTree reads, and has no markup that hides or changes text."""
    try:
        ours = parse_xml(data)
    except InputError:
        return False
    try:
        root = ElementTree.fromstring(data)  # noqa: S314 - the other reader
    except (ElementTree.ParseError, ValueError) as error:
        must(False, "ElementTree refuses it", error, data)
        return False
    theirs = _model_element(root, None)
    must(ours == {theirs[0]: theirs[1]}, "ElementTree reads another document", ours, theirs, data)
    must(b"<!" not in data and data.count(b"<?") <= 1, "hidden markup", data)
    return True


def _model_element(element: Any, outer: str | None) -> tuple[str, Any]:
    space, _, name = element.tag.rpartition("}")
    space = space.removeprefix("{")
    content: dict[str, Any] = {"@ns": space} if outer is None and space else {}
    content |= {f"@{key}": value for key, value in element.attrib.items()}
    text = (element.text or "") + "".join(child.tail or "" for child in element)
    for child in element:
        key, value = _model_element(child, space)
        if key in content:
            earlier = content[key]
            content[key] = [*earlier, value] if isinstance(earlier, list) else [earlier, value]
        else:
            content[key] = value
    if len(element) == 0 and text:
        content["#text"] = text
    plain = len(element) == 0 and not element.attrib and "@ns" not in content
    return (name if outer in (None, space) else f"{{{space}}}{name}"), (text if plain else content)


def xml_seeds() -> Iterator[bytes]:
    yield b'<Delete xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Object><Key>a</Key></Object></Delete>'
    yield b'<?xml version="1.0" encoding="UTF-8"?>\n<a>\n <b x="1">t</b><b/>\n <c> &lt;&#xD; </c>\n</a>\n'
    yield b'<p:a xmlns:p="u" xmlns:q="v" q:x="1"><q:b>\xc3\xa9</q:b><p:c/><p:c/></p:a>'
    yield b"<invoice><amount>5</amount></invoice>"
    yield b"<a><!-- --><b>1</b>text</a>"
    yield b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'


XML_WORDS: Final = (
    b"<a>", b"</a>", b"<b/>", b'xmlns="u"', b'xmlns:p="u"', b"p:", b' x="1"', b"&amp;", b"&#10;", b"&#x41;",
    b"<!--", b"-->", b"<![CDATA[", b"]]>", b"<?x?>", b'<?xml version="1.0"?>', b"<amount>5</amount>",
    b"xml:lang", b"&b;",
)  # fmt: skip


TARGETS: Final = {
    "json": Target(run=json_, seeds=json_seeds, words=JSON_WORDS, runs=700),
    "form": Target(run=form, seeds=form_seeds, words=FORM_WORDS, runs=500),
    "xml": Target(run=xml, seeds=xml_seeds, words=XML_WORDS, runs=500),
}
