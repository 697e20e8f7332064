"""The permit rule of the attack maps and policies, said again with other people's parsers.

Written from attack/surfaces and attack/policies, not from the product: a request that is forwarded and is not
permitted here is a finding, whoever is wrong.
"""

from __future__ import annotations

import gzip
import json
import re
from typing import Any, Final
from urllib.parse import unquote_to_bytes
from xml.etree import ElementTree

import brotli
import zstandard

from fuzz.values import model_pairs
from fuzz.wrapped import model_parts

__all__ = ["is_permitted", "parts_of"]


def parts_of(request: bytes) -> tuple[bytes, bytes, list[tuple[bytes, bytes]], bytes]:
    """Method, target, headers and body of a request as it is forwarded."""
    head, _, body = request.partition(b"\r\n\r\n")
    line, *rows = head.split(b"\r\n")
    method, target, _ = line.split(b" ")
    return method, target, [row.partition(b": ")[::2] for row in rows], body


def is_permitted(request: bytes, tls: bool) -> bool:
    """Whether a rule of attack/policies permits this request, by other parsers than the product's."""
    method, target, rows, body = parts_of(request)
    headers = {name.lower(): value for name, value in rows}
    host = headers[b"host"].partition(b":")[0]
    path, _, query = target.partition(b"?")
    if b"%2f" not in path.lower():  # escaped, it is part of a segment
        path = unquote_to_bytes(path)
    media = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if host == b"rpc.ok.test" and tls:
        read = method == b"POST" and path == b"/" and headers.get(b"x-amz-target") == b"Rpc.Read"
        return read and media in _JSON and _has(_json(body), {"q": str})
    if host not in (b"api.ok.test", b"web.ok.test"):
        return False
    asked = model_pairs(query)
    if asked is None:
        return False
    route = (method, path)
    if method in (b"GET", b"HEAD") and re.fullmatch(rb"/v1/items/[^/]+", path, re.DOTALL):
        return not body and not asked
    if route == (b"GET", b"/v1/search"):
        return not body and [key for key, _ in asked] == ["q"]
    if route == (b"POST", b"/v1/merged"):
        return _small_form([*asked, *(model_pairs(body) or [])], {"amount"}) and (not body or media == _FORM)
    judge = _BODIES.get(path)
    if method != b"POST" or judge is None or asked:
        return False
    return judge(media, headers, body)


_FORM: Final = b"application/x-www-form-urlencoded"
_JSON: Final = (b"application/json", b"application/x-amz-json-1.0", b"application/x-amz-json-1.1")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key.casefold() for key, _ in pairs}) < len(pairs):
        raise ValueError("a key twice")
    return dict(pairs)


def _json(body: bytes) -> Any:
    try:
        return json.loads(body.decode(), object_pairs_hook=_once)
    except (ValueError, RecursionError):
        return None


def _has(value: Any, needed: dict[str, type], extra: dict[str, type] | None = None) -> bool:
    """A record with all of `needed`, perhaps some of `extra`, and nothing else."""
    allowed = needed | (extra or {})
    return (
        isinstance(value, dict)
        and needed.keys() <= value.keys() <= allowed.keys()
        and all(
            type(value[key]) is allowed[key] or (value[key] is None and key in (extra or {})) for key in value
        )
    )


def _small(text: str) -> bool:
    return re.fullmatch(r"[1-9][0-9]{0,3}", text) is not None and int(text) <= 1000


def _small_form(pairs: list[tuple[str, str]], names: set[str]) -> bool:
    found = dict(pairs)
    return len(found) == len(pairs) and set(found) <= names and _small(found.get("amount", ""))


def _search(media: bytes, headers: dict[bytes, bytes], body: bytes) -> bool:
    coding = headers.get(b"content-encoding", b"identity")
    unpack: dict[bytes, Any] = {
        b"identity": lambda data: data,
        b"gzip": gzip.decompress,
        b"br": brotli.decompress,
        b"zstd": lambda data: zstandard.ZstdDecompressor().decompress(data, max_output_size=1 << 20),
    }
    return (
        media in _JSON and coding in unpack and _has(_json(unpack[coding](body)), {"q": str}, {"limit": int})
    )


def _charge(media: bytes, headers: dict[bytes, bytes], body: bytes) -> bool:
    pairs = model_pairs(body)
    return (
        media == _FORM and pairs is not None and _small_form(pairs, {"amount", "recipient", "card[number]"})
    )


def _transfer(media: bytes, headers: dict[bytes, bytes], body: bytes) -> bool:
    value = _json(body)
    return (
        media in _JSON and _has(value, {"amount": int}, {"recipient": str}) and 1 <= value["amount"] <= 1000
    )


def _invoice(media: bytes, headers: dict[bytes, bytes], body: bytes) -> bool:
    try:
        root = ElementTree.fromstring(body)  # noqa: S314 - the other reader
    except (ElementTree.ParseError, ValueError):
        return False
    shape = [element.tag for element in root.iter()] == ["invoice", "amount"]
    plain = shape and not root.attrib and not root[0].attrib and media in (b"application/xml", b"text/xml")
    return plain and _small(root[0].text or "")


def _file(media: bytes, headers: dict[bytes, bytes], body: bytes) -> bool:
    boundary = re.search(rb';[ \t]*boundary="?([^";]+)"?', headers.get(b"content-type", b""), re.IGNORECASE)
    if boundary is None or media != b"multipart/form-data":
        return False
    parts = model_parts(body, boundary[1])
    amounts = [(filename, data) for name, filename, data in parts if name == "amount"]
    names = [name for name, _, _ in parts]
    return amounts == [(None, b"5")] and set(names) <= {"amount", "file"} and len(set(names)) == len(names)


_BODIES: Final = {
    b"/v1/search": _search,
    b"/v1/charges": _charge,
    b"/v1/transfers": _transfer,
    b"/v1/invoices": _invoice,
    b"/v1/files": _file,
}
