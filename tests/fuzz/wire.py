"""The wire: both roles of HTTP/1.1 against h11, proxy credentials, and answers of a DNS server."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, Final

import h11

from attack.cases import load, load_answers
from fuzz.base import Target, must, pieces, split
from holdgate.adapters.dnswire import AAAA, A, BadAnswer, build_query, parse_answer
from holdgate.agents import Agent, AgentRule, identify
from holdgate.errors import InputError
from holdgate.http1 import ClientReader, ServerReader, WireError
from holdgate.limits import Limits
from holdgate.message import Listener, Origin, RequestHead

__all__ = ["CLIENT_WORDS", "HTTP_WORDS", "TARGETS", "attacks", "read_requests"]

LIMITS: Final = Limits(header_bytes=4096, headers=20)
BODY_LIMIT: Final = 2000
_BIG: Final = 1 << 20

type Read = list[tuple[RequestHead, bytes, int]]  # head, body, and the offset at which the message ended


# --- requests ---------------------------------------------------------------------------------


def read_requests(parts: Iterable[bytes]) -> tuple[Read, tuple[str, int] | None]:
    """What the server role reads, as the door drives it: messages, then the refusal if there is one."""
    reader = ServerReader(LIMITS)
    found: Read = []
    head, fed = None, 0
    try:
        for part in parts:
            reader.feed(part)
            fed += len(part)
            while True:
                if head is None:
                    head = reader.head()
                    if head is None:
                        break
                    if (
                        head.method == b"CONNECT"
                    ):  # what follows belongs to the tunnel; the door refuses a body
                        if not reader.content_length and not reader.chunked:
                            found.append((head, b"", fed - reader.buffered_bytes))
                        return found, None
                    reader.begin_body(BODY_LIMIT)
                body = reader.body()
                if body is None:
                    break
                found.append((head, body, fed - reader.buffered_bytes))
                head = None
                if reader.wants_close:
                    return found, None
        reader.eof()
    except InputError as error:
        return found, (error.reason.value, error.status)
    return found, None


def http1_server(data: bytes) -> bool:
    """However the bytes are cut, one result; and h11 reads every accepted request alike, to the same byte."""
    seed, stream = split(data, 2)
    found, refusal = whole = read_requests([stream])
    must(read_requests(pieces(stream, seed)) == whole, "the cuts change the result", whole, stream)
    start = 0
    for head, body, end in found:
        ours = (head.method, head.target, _folded(head.headers), body)
        theirs = _h11_request(stream[start:end])
        must(ours == theirs, "h11 reads another request", ours, theirs, stream)
        start = end
    return bool(found) and refusal is None


def _folded(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    pairs = [(bytes(name).lower(), bytes(value)) for name, value in headers]
    return [(name, value.lower() if name == b"transfer-encoding" else value) for name, value in pairs]


def _h11_request(raw: bytes) -> tuple[bytes, bytes, list[tuple[bytes, bytes]], bytes] | str:
    """One whole request and nothing else, or the words of what h11 made of it."""
    peer = h11.Connection(h11.SERVER, max_incomplete_event_size=_BIG)
    peer.receive_data(raw.removeprefix(b"\r\n"))  # RFC 9112 2.2: one empty line before it is no part of it
    try:
        request = peer.next_event()
        if not isinstance(request, h11.Request):
            return f"no request: {request!r}"
        body = b""
        while isinstance(event := peer.next_event(), h11.Data):
            body += event.data
    except h11.RemoteProtocolError as error:
        return f"refused: {error}"
    if not isinstance(event, h11.EndOfMessage) or peer.trailing_data[0]:
        return f"ends elsewhere: {event!r} {peer.trailing_data[0]!r}"
    return request.method, request.target, _folded(request.headers), body


POST: Final = b"POST /v1/search HTTP/1.1\r\nHost: api.ok.test\r\n"


@cache
def attacks(path: str) -> tuple[bytes, ...]:
    """What the attack suite sends on one path (tls, plain), but for the large ones."""
    sent = [case.bytes_of(case.send, {}) for case in load() if case.path == path]
    return tuple(dict.fromkeys(data for data in sent if len(data) < 1500))


def server_seeds() -> Iterator[bytes]:
    yield from (b"\5\5" + data for data in attacks("plain"))
    yield b"\0\0" + b"GET /v1/search?q=a HTTP/1.1\r\nHost: api.ok.test\r\nUser-Agent: one\r\n\r\n"
    yield b"\0\1" + POST + b'Content-Length: 9\r\n\r\n{"q":"a"}'
    yield b"\1\0" + POST + b'Transfer-Encoding: chunked\r\n\r\n4\r\n{"q"\r\n05\r\n:"a"}\r\n0\r\n\r\n'
    yield (
        b"\2\2\r\n" + POST + b"Content-Length: 1\r\nConnection: keep-alive, te\r\n\r\na\r\n" + POST + b"\r\n"
    )
    yield b"\3\3" + POST + b"Expect: 100-continue\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc"
    yield b"\4\4CONNECT api.ok.test:443 HTTP/1.0\r\n\r\n\x16\3\1"
    yield b"\0\5" + POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    yield b"\0\6GET http://web.ok.test/ HTTP/1.1\r\nHost:\t web.ok.test \r\nX: \xc3\xa9 a\tb\r\n\r\n"


HTTP_WORDS: Final = (
    b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"\r\n ", b"\t", b" ", b"\0", b"\x0b", b"\x85", b"\xc2\x85",
    b"\xc2\xa0", b"Content-Length: 3\r\n", b"Content-Length: ", b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: ", b"chunked", b"identity", b"Connection: close\r\n", b"Connection: ",
    b"Expect: 100-continue\r\n", b"Host: ", b"Upgrade: h2c\r\n", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0",
    b"0\r\n\r\n", b"3\r\nabc\r\n", b";x=y", b"+3", b"0x3", b"003", b"3,3", b"-1", b"GET ", b"HEAD ",
    b"CONNECT ", b"X: y\r\n", b"Content_Length: 3\r\n",
)  # fmt: skip


# --- responses --------------------------------------------------------------------------------

_METHODS: Final = ("GET", "HEAD", "POST")


def read_response(method: str, parts: Iterable[bytes]) -> tuple[Any, bytes, bool, bool] | None:
    """(head, body, complete, reusable) as the outer door drives the client role; None: a WireError."""
    reader = ClientReader(method, LIMITS)
    body = b""
    try:
        for part in parts:
            reader.feed(part)
            if reader.head() is not None:
                body += reader.read()
        reusable = reader.reusable
        if not reader.done:
            reader.eof()
    except WireError:
        return None
    return reader.head(), body, reader.done, reusable


def http1_client(data: bytes) -> bool:
    """One result however the bytes are cut, and h11 reads a complete answer alike."""
    seed, stream = split(data, 3)
    method = _METHODS[seed[2] % len(_METHODS)]
    read = read_response(method, [stream])
    cut = read_response(method, pieces(stream, seed[:2]))
    must(read == cut, "the cuts change the result", read, cut, stream)
    if read is None:
        return False
    head, body, done, _ = read
    must(done, "neither complete nor an error at the end of the connection", stream)
    theirs = _h11_response(method, stream)
    ours = (head.status, head.reason.strip(b"\t "), _folded(head.headers), body)
    must(ours == theirs, "h11 reads another answer", ours, theirs, stream)
    return True


def _h11_response(method: str, raw: bytes) -> tuple[int, bytes, list[tuple[bytes, bytes]], bytes] | str:
    peer = h11.Connection(h11.CLIENT, max_incomplete_event_size=_BIG)
    peer.send(h11.Request(method=method, target="/", headers=[("Host", "api.ok.test")]))
    peer.send(h11.EndOfMessage())
    peer.receive_data(raw)
    peer.receive_data(b"")
    try:
        while isinstance(answer := peer.next_event(), h11.InformationalResponse):
            pass
        if not isinstance(answer, h11.Response):
            return f"no answer: {answer!r}"
        body = b""
        while isinstance(event := peer.next_event(), h11.Data):
            body += event.data
    except h11.RemoteProtocolError as error:
        return f"refused: {error}"
    if not isinstance(event, h11.EndOfMessage):
        return f"does not end: {event!r}"
    return answer.status_code, bytes(answer.reason).strip(b"\t "), _folded(answer.headers), body


def client_seeds() -> Iterator[bytes]:
    ok = b"HTTP/1.1 200 OK\r\n"
    yield b"\0\0\0" + ok + b"Content-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"
    yield b"\0\1\0" + ok + b"Transfer-Encoding: chunked\r\n\r\n2;x=y\r\nok\r\n0\r\nX-Trailer: 1\r\n\r\n"
    yield (
        b"\0\2\2HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
        + ok
        + b"\r\nrest"
    )
    yield b"\0\3\1" + ok + b"Content-Length: 9\r\n\r\n"
    yield b"\0\4\0HTTP/1.1 304 Not Modified\r\nETag: a\r\n\r\n"
    yield b"\0\5\0HTTP/1.1 204\r\nConnection: close\r\n\r\n"
    yield b"\0\6\0HTTP/1.1 101 Switching Protocols\r\nUpgrade: foo\r\n\r\n"
    yield from (b"\1\6\0" + each.reply.data for each in load_answers() if len(each.reply.data) < 1500)


CLIENT_WORDS: Final = (
    *HTTP_WORDS, b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 \r\n\r\n", b" 204 ", b" 304 ", b" 199 ",
)  # fmt: skip


# --- proxy credentials ------------------------------------------------------------------------


def _rule(name: str, digest: str, *sources: str) -> AgentRule:
    return AgentRule(
        agent=Agent(id=name, groups=(), attrs=()),
        sources=tuple(ipaddress.ip_network(source) for source in sources),
        token_sha256=bytes.fromhex(digest),
    )


# SHA-256 of b"badge".
_BADGE: Final = "8805cdea2b197df5fd555dc359a7f5beed2e6d65de498ce3df3de94d78e1e262"
_RULES: Final = (_rule("badged", _BADGE), _rule("local", "", "127.0.0.0/8"))


def credentials(data: bytes) -> bool:
    """Whoever is identified as the owner of a token has shown that token, in one of its two spellings."""
    steer, value = split(data, 1)
    origin = Origin(
        listener=Listener.EXPLICIT,
        tls=False,
        source="127.0.0.1" if steer[0] & 1 else "192.0.2.1",
        source_port=1,
        connect=None,
        sni=None,
        original_port=None,
        proxy_authorization=tuple(value.split(b"\n")) if value else (),
    )
    try:
        agent = identify(origin, _RULES)
    except InputError:
        return False
    if agent.id == "badged":
        must(not steer[0] & 1, "two rules match and one was taken", value)
        scheme, _, rest = value.partition(b" ")
        told = (scheme.lower(), rest.strip(b" \t"))
        must(told in ((b"bearer", b"badge"), (b"basic", b"YmFkZ2VkOmJhZGdl")), "another token", value)
    else:
        must(bool(steer[0] & 1) and not value, "known by its address, not from there or with a token", value)
    return True


def credential_seeds() -> Iterator[bytes]:
    yield b"\0Bearer badge"
    yield b"\0Basic YmFkZ2VkOmJhZGdl"
    yield b"\1"
    yield b"\1Bearer badge"
    yield b"\0Basic YmFkZ2U="
    yield b"\0Bearer badge\nBearer badge"


# --- DNS --------------------------------------------------------------------------------------


def dns(data: bytes) -> bool:
    """Only BadAnswer; and the addresses are those that a second reader finds for the asked name."""
    steer, answer = split(data, 1)
    kind = AAAA if steer[0] & 1 else A
    query = build_query("Api.Ok.test", kind, 0x1234)
    try:
        addresses = parse_answer(answer, query)
    except BadAnswer:
        return False
    must(answer[:2] == query[:2] and bool(answer[2] & 0x80), "not an answer to our question", answer)
    if answer[3] & 0x0F == 3:
        must(addresses == (), "addresses of a name that does not exist", answer)
        return True
    must(answer[12 : len(query)] == query[12:], "answers another question", answer)
    theirs = _model_addresses(answer, len(query), kind)
    must(addresses == theirs, "other addresses", addresses, theirs, answer)
    return True


def _model_addresses(answer: bytes, at: int, kind: int) -> tuple[str, ...]:
    found: list[tuple[str, str]] = []
    aliases: dict[str, str] = {}
    for _ in range(min(64, int.from_bytes(answer[6:8], "big"))):
        owner, at = _model_name(answer, at)
        this, klass = int.from_bytes(answer[at : at + 2], "big"), answer[at + 2 : at + 4]
        end = at + 10 + int.from_bytes(answer[at + 8 : at + 10], "big")
        if klass == b"\0\1" and this == 5:
            aliases[owner] = _model_name(answer, at + 10)[0]
        elif klass == b"\0\1" and this == kind:
            found.append((owner, str(ipaddress.ip_address(answer[at + 10 : end]))))
        at = end
    names = ["api.ok.test"]
    while names[-1] in aliases and len(names) < 9:
        names.append(aliases[names[-1]])
    return tuple(address for owner, address in found if owner in names)


def _model_name(message: bytes, at: int) -> tuple[str, int]:
    size = message[at]
    if size == 0:
        return "", at + 1
    if size >= 0xC0:
        return _model_name(message, (size & 0x3F) << 8 | message[at + 1])[0], at + 2
    label = message[at + 1 : at + 1 + size].decode("latin-1").translate(_LOWER)
    rest, end = _model_name(message, at + 1 + size)
    return (f"{label}.{rest}" if rest else label), end


_LOWER: Final = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")


def dns_seeds() -> Iterator[bytes]:
    for steer, kind, rdata in (
        (b"\0", A, b"\x5d\xb8\xd8\x22"),
        (b"\1", AAAA, b"\x26\x06" + bytes(13) + b"\1"),
    ):
        question = build_query("Api.Ok.test", kind, 0x1234)[12:]
        fixed = kind.to_bytes(2, "big") + b"\0\1\0\0\0\x3c" + len(rdata).to_bytes(2, "big") + rdata
        own = b"\xc0\x0c" + fixed
        yield steer + b"\x12\x34\x81\x80\0\1\0\1\0\0\0\0" + question + own
        alias = b"\xc0\x0c\0\5\0\1\0\0\0\x3c\0\6\3cdn\xc0\x13"
        there = b"\3cdn\xc0\x13" + fixed
        yield steer + b"\x12\x34\x81\x80\0\1\0\3\0\0\0\0" + question + alias + there + own
        stranger = b"\4evil\xc0\x13" + fixed
        yield steer + b"\x12\x34\x81\x80\0\1\0\2\0\0\0\0" + question + stranger + own
        yield steer + b"\x12\x34\x81\x83\0\1\0\0\0\0\0\0" + question


TARGETS: Final = {
    "http1_server": Target(run=http1_server, seeds=server_seeds, words=HTTP_WORDS, runs=1000),
    "http1_client": Target(run=http1_client, seeds=client_seeds, words=CLIENT_WORDS, runs=400),
    "credentials": Target(
        run=credentials, seeds=credential_seeds, words=(b"Basic ", b"Bearer ", b"\n", b"=")
    ),
    "dns": Target(run=dns, seeds=dns_seeds, words=(b"\xc0\x0c", b"\0\5", b"\0\1", b"\3cdn")),
}
