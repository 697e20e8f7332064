"""A message becomes a canonical request, and that becomes a recognised one."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from fuzz.base import Target, must, split
from fuzz.values import JSON_WORDS, XML_WORDS
from fuzz.wire import HTTP_WORDS, read_requests
from fuzz.wrapped import MULTIPART_WORDS
from holdgate.canonical import CanonicalRequest, canonicalise
from holdgate.errors import InputError
from holdgate.files import packaged
from holdgate.message import Headers, Listener, Message, Origin, RequestHead
from holdgate.surface.index import SurfaceIndex
from holdgate.surface.load import load_maps
from holdgate.surface.model import Effect, Recognised
from whatwg import whatwg_path, whatwg_query

__all__ = ["TARGETS", "arena_index", "arena_requests", "origin_of"]

HERE: Final = Path(__file__).resolve().parent
ARENA: Final = HERE.parent / "attack"
FLEET_KEY: Final = b"fleet key of the tests, 32 bytes"


def origin_of(kind: int, host: str = "api.ok.test") -> Origin:
    """How it came: a tunnel with TLS (0), the explicit listener (1), redirected (2), that with TLS (3)."""
    tls, redirected = kind in (0, 3), kind >= 2
    return Origin(
        listener=Listener.TRANSPARENT if redirected else Listener.EXPLICIT,
        tls=tls,
        source="127.0.0.1",
        source_port=40_000,
        connect=(host, 443) if kind == 0 else None,
        sni=host if tls else None,
        original_port=None if not redirected else 443 if tls else 80,
        proxy_authorization=(),
    )


# --- canonical --------------------------------------------------------------------------------

# What must never be sent on, however it is spelled (RFC 9110 7.6.1).
_NEVER_SENT: Final = re.compile(
    r"(?:host|content-length|transfer-encoding|connection|keep-alive|te|trailer|upgrade|expect|via|forwarded"
    r"|(?:proxy|x-forwarded|tg|x-trigguard|holdgate)-.*)",
    re.DOTALL,
)


def canonical(data: bytes) -> bool:
    """One reading, the URL standard's; what is sent is what came; reading that again changes nothing."""
    steer, rest = split(data, 1)
    head, _, body = rest.partition(b"\n\n")
    lines = head.split(b"\n")
    method, _, target = lines[0].partition(b" ")
    headers: Headers = tuple(
        (name, value) for name, _, value in (line.partition(b": ") for line in lines[1:])
    )
    via = origin_of(steer[0] % 4)
    try:
        request = canonicalise(Message(origin=via, head=_head(method, target, headers), body=body))
    except InputError:
        return False
    _check_path(request)
    _check_headers(request, headers)
    must(request.method == method.decode() and request.body == body, "method or body changed", request, data)
    must(target.endswith(request.raw_target), "the target was rewritten", request.raw_target, target)
    must(
        request.host == "api.ok.test" or steer[0] % 4 in (1, 2),
        "a host that the connection did not name",
        data,
    )
    must(re.fullmatch(r"[a-z0-9.-]+", request.host) is not None, "no host name", request.host)
    prefix = b"http://" + request.destination.encode() if steer[0] % 4 == 1 else b""
    authority = (b"Host", request.destination.encode())
    again = _head(method, prefix + request.raw_target, (authority, *request.headers))
    second = canonicalise(Message(origin=via, head=again, body=body))
    must(second == request, "what would be sent reads differently", second, request)
    return True


def _head(method: bytes, target: bytes, headers: Headers) -> RequestHead:
    return RequestHead(method=method, target=target, headers=headers)


def _check_path(request: CanonicalRequest) -> None:
    raw = request.raw_target.decode("ascii")
    path, mark, query = raw.partition("?")
    must(whatwg_path(path) == list(request.raw_segments), "the URL standard reads another path", raw)
    segments = [unquote_to_bytes(each).decode() for each in request.raw_segments]
    must(segments == list(request.segments), "decoded otherwise", segments, raw)
    flat = "/".join(segments).split("/")
    must(not {".", ".."} & set(flat) and "" not in flat[:-1], "another path when decoded before split", raw)
    must(not re.search(r"[\\;\0-\x1f\x7f-\x9f]", "".join(segments)), "a separator or control", raw)
    must(request.query == (tuple(whatwg_query(query)) if mark else None), "another query", request.query, raw)


def _check_headers(request: CanonicalRequest, came: Headers) -> None:
    rest = iter(came)
    for name, value in request.headers:
        must((name, value) in rest, "a header that did not come, or in another order", name, came)
        folded = re.sub(r"[^a-z0-9]", "-", name.decode().lower())
        must(_NEVER_SENT.fullmatch(folded) is None, "a header that must not be sent", name)
    names = [name.decode().lower() for name, _ in request.headers]
    once = {name for name in names if names.count(name) == 1}
    must(request.fields.keys() == once, "a name that occurs once is in fields", request.fields, names)
    must(request.repeated == set(names) - once, "other repeated names", request.repeated, names)
    decisive = {"content-type", "content-encoding", "authorization", "host"}
    must(not request.repeated & decisive, "a header that decides twice", names)


def canonical_seeds() -> Iterator[bytes]:
    host = b"\nHost: api.ok.test"
    yield b"\0POST /v1/search?q=a%20b&c" + host + b"\nContent-Type: application/json; charset=utf-8\n\n{}"
    yield b"\1GET http://api.ok.test/v1/items/%C3%A9 HTTP" + host + b"\n\n"
    yield b"\1GET http://api.ok.test/v1/items/a%2Fb?x=1" + host + b":80\nX-A: 1\nx-a: 2\n\n"
    yield b"\2DELETE /v1/items/a:b@c=d" + host + b"\nAuthorization: Bearer x\nVia: y\nConnection: close\n\n"
    yield b"\3GET /a/b/" + host + b"\nContent-Encoding: gzip\nHoldgate_Decision: PERMIT\n\nabc"
    yield b"\0GET /v1/../v2" + host + b"\n\n"
    yield b"\0GET /v1/%2e%2e/v2" + host + b"\nX-HTTP-Method-Override: DELETE\n\n"
    yield b"\0POST /a" + host + b"\nHost: evil.test\nContent-Type: text/plain\n\n"


CANONICAL_WORDS: Final = (
    b"/", b"//", b"/.", b"/..", b"%2e", b"%2E%2e", b"%2f", b"%5c", b"\\", b"%252e", b"%00", b"%0a", b";",
    b"%3b", b"?", b"#", b"&", b"=", b"%u002e", b"\xc3\xa9", b"%C3%A9", b"%c0%ae", b"\nHost: ", b"http://",
    b":80", b":443", b"@", b"\nConnection: ", b"\nContent-Type: ", b"\nX-Forwarded-For: a", b"\nProxy-X: a",
    b"\nTG-Y: b", b"\ncontent_length: 1", b"\nX_Method_Override: GET", b"\nTransfer-Encoding: chunked",
    b"\nAuthorization: NTLM a", b"\nExpect: x", b"*",
)  # fmt: skip


# --- surfaces ---------------------------------------------------------------------------------


def _maps(*paths: Path) -> tuple[SurfaceIndex, SurfaceIndex]:
    """The index of maps, and the one that comes back from its lock as JSON."""
    index = SurfaceIndex.compile(load_maps(list(paths)))
    return index, SurfaceIndex.from_lock(json.loads(json.dumps(index.to_lock())))


@cache
def arena_index() -> SurfaceIndex:
    return _maps(ARENA / "surfaces")[0]


@cache
def _both(kind: str) -> tuple[SurfaceIndex, SurfaceIndex]:
    places = {
        "shipped": packaged("surfaces"),
        "attack": ARENA / "surfaces",
        "tests": HERE.parent / "data" / "maps",
    }
    return _maps(places[kind])


_KINDS: Final = ("shipped", "attack", "tests")


def _recognised(index: SurfaceIndex, request: CanonicalRequest) -> Recognised | str:
    try:
        return index.recognise(request, fleet_key=FLEET_KEY)
    except InputError as error:
        return error.reason.value


def surface(data: bytes) -> bool:
    """Only InputError; the lock recognises alike; the digest is the preimage's, and tells meanings apart."""
    steer, raw = split(data, 3)
    index, from_lock = _both(_KINDS[steer[0] % 3])
    request = _canonical(raw)
    if request is None:
        return False
    found = _recognised(index, request)
    must(_recognised(from_lock, request) == found, "the lock recognises another action", found, raw)
    if isinstance(found, str):
        return False
    must(len(found.actions) > 0, "no action", raw)
    _check_digest(found, index.preimage(request))
    _check_sent(found, request)
    for action in found.actions:
        names = [param.name for param in action.params]
        must(names == sorted(set(names)), "parameters not sorted or not unique", names)
        must(action.effect in Effect and bool(action.surface), "no effect or surface", action)
    twin = _canonical(_twin(raw, steer[1], steer[2]))
    other = None if twin is None else _recognised(index, twin)
    if isinstance(other, Recognised) and other.digest == found.digest:
        must(other.actions == found.actions, "two actions with one digest", other.actions, found.actions, raw)
        must(other.principal == found.principal, "two principals with one digest", raw)
    return True


def _canonical(raw: bytes) -> CanonicalRequest | None:
    read, refusal = read_requests([raw])
    if len(read) != 1 or refusal is not None:
        return None
    head, body, _ = read[0]
    host = next((value for name, value in head.headers if name.lower() == b"host"), b"")
    name = host.partition(b":")[0].decode("latin-1")
    try:
        return canonicalise(Message(origin=origin_of(0, name), head=head, body=body))
    except InputError:
        return None


def _twin(raw: bytes, at: int, octet: int) -> bytes:
    """The same request with one of its last 256 bytes replaced."""
    place = len(raw) - 1 - at % max(1, len(raw))
    return raw[: max(0, place)] + bytes([octet]) + raw[max(0, place) + 1 :]


def _check_digest(found: Recognised, parts: tuple[bytes, ...]) -> None:
    framed = b"holdgate-request-v1" + b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    plain = f"sha256:{hashlib.sha256(framed).hexdigest()}"
    keyed = f"hmac-sha256:{hmac.new(FLEET_KEY, framed, 'sha256').hexdigest()}"
    must(found.digest == (keyed if found.sensitive else plain), "not the digest of its preimage", parts)


def _check_sent(found: Recognised, request: CanonicalRequest) -> None:
    own = [(name, value) for name, value in found.headers if name.lower() not in (b"host", b"content-length")]
    must(own == list(request.headers), "other headers are sent than were read", own, request.headers)
    fixed = {name.lower(): value for name, value in found.headers}
    must(fixed[b"host"].partition(b":")[0] == request.host.encode(), "another host", fixed)
    must(fixed.get(b"content-length", b"0") == b"%d" % len(request.body), "another length", fixed)


def surface_seeds() -> Iterator[bytes]:
    for path in sorted(packaged("surfaces").glob("*/examples/*.http")):
        if path.stat().st_size < 3000:
            yield b"\0\5a" + path.read_bytes()
    yield from (b"\1\7b" + data for _, data in arena_requests() if b"Host: web.ok.test" not in data)
    for target, media, body in _OWN:
        head = b"POST %b HTTP/1.1\r\nHost: %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n%b"
        host, _, path = target.partition(b"/")
        yield b"\2\3c" + head % (b"/" + path, host, media, len(body), body)


_OWN: Final = (
    (b"api.pay.test/v1/refunds", b"application/x-www-form-urlencoded", b"charge=ch_1&amount=5"),
    (b"chat.test/api/chat.postMessage", b"application/json", b'{"channel":"C1","text":"a"}'),
)


def arena_requests() -> Iterator[tuple[int, bytes]]:
    """One request for every operation of the attack maps, permitted or denied, with how it comes."""

    def post(path: str, media: str, body: bytes, host: str = "api.ok.test", extra: str = "") -> bytes:
        at = "http://web.ok.test" if host == "web.ok.test" else ""
        return (
            f"POST {at}{path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {media}\r\n{extra}"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode() + body

    form = "application/x-www-form-urlencoded"
    part = b'--edge\r\nContent-Disposition: form-data; name="amount"\r\n\r\n5\r\n--edge--\r\n'
    yield 0, post("/v1/search", "application/json", b'{"q":"a","limit":3}')
    yield 1, post("/v1/search", "application/json", b'{"q":"a"}', "web.ok.test")
    yield 0, b"GET /v1/search?q=a HTTP/1.1\r\nHost: api.ok.test\r\n\r\n"
    yield 1, b"HEAD http://web.ok.test/v1/items/a%20b HTTP/1.1\r\nHost: web.ok.test\r\n\r\n"
    yield 0, b"DELETE /v1/items/a HTTP/1.1\r\nHost: api.ok.test\r\n\r\n"
    yield 1, post("/v1/payouts", form, b"amount=5", "web.ok.test")
    yield (
        0,
        post("/v1/charges", form, b"amount=5&recipient=b&card[number]=42", extra="Idempotency-Key: a\r\n"),
    )
    yield 1, post("/v1/charges", form, b"amount=1001", "web.ok.test", "Authorization: Bearer t\r\n")
    yield 0, post("/v1/transfers", "application/json", b'{"amount":5,"recipient":"b"}')
    yield 0, post("/v1/invoices", "application/xml", b"<invoice><amount>5</amount></invoice>")
    yield 1, post("/v1/files", "multipart/form-data; boundary=edge", part, "web.ok.test")
    yield 0, post("/v1/merged?amount=5", form, b"")
    yield 0, post("/v1/merged", form, b"amount=5")
    yield 0, post("/v1/unassigned", "application/json", b"{}")
    yield 0, post("/", "application/json", b'{"q":"a"}', "rpc.ok.test", "X-Amz-Target: Rpc.Read\r\n")
    yield 0, post("/", "application/json", b'{"amount":5}', "rpc.ok.test", "X-Amz-Target: Rpc.Pay\r\n")
    yield (
        0,
        b"POST /v1/search HTTP/1.1\r\nHost: api.ok.test\r\nContent-Type: application/json\r\n"
        + (b'Transfer-Encoding: chunked\r\n\r\n9\r\n{"q":"a"}\r\n0\r\n\r\n'),
    )


TARGETS: Final[dict[str, Any]] = {
    "canonical": Target(run=canonical, seeds=canonical_seeds, words=CANONICAL_WORDS, runs=500),
    "surface": Target(
        run=surface,
        seeds=surface_seeds,
        words=(*HTTP_WORDS[:12], *JSON_WORDS, *XML_WORDS[:6], *MULTIPART_WORDS[:6], *CANONICAL_WORDS[:12]),
        runs=450,
    ),
}
