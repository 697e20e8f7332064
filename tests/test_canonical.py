"""canonical.py: C1-C5, target forms and identity as tables, paths against a WHATWG model."""

from __future__ import annotations

import itertools
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdgate.canonical import CanonicalRequest, MediaType, Target, canonicalise, read_target
from holdgate.errors import InputError, Reason
from holdgate.message import Headers, Listener, Message, Origin, RequestHead
from whatwg import whatwg_path, whatwg_query

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"
MALFORMED, MISMATCH = Reason.MALFORMED_REQUEST, Reason.IDENTITY_MISMATCH
UNKNOWN, PATH = Reason.UNKNOWN_DESTINATION, Reason.NON_CANONICAL_PATH
UNSUPPORTED = Reason.UNSUPPORTED_CONTENT


def origin(
    *,
    listener: Listener = Listener.EXPLICIT,
    tls: bool = True,
    connect: tuple[str, int] | None = ("api.ok.test", 443),
    sni: str | None = "api.ok.test",
    original_port: int | None = None,
) -> Origin:
    return Origin(
        listener=listener,
        tls=tls,
        source="127.0.0.1",
        source_port=40000,
        connect=connect,
        sni=sni,
        original_port=original_port,
        proxy_authorization=(),
    )


TUNNEL = origin()
PLAIN = origin(tls=False, connect=None, sni=None)
PLAIN_TUNNEL = origin(tls=False, connect=("api.ok.test", 80), sni=None)
REDIRECTED = origin(listener=Listener.TRANSPARENT, connect=None, original_port=443)
REDIRECTED_PLAIN = origin(listener=Listener.TRANSPARENT, tls=False, connect=None, sni=None, original_port=80)


def message(
    target: bytes = b"/v1/search",
    *headers: tuple[bytes, bytes],
    via: Origin = TUNNEL,
    method: bytes = b"POST",
    host: bytes = b"api.ok.test",
    body: bytes = b"",
) -> Message:
    head = RequestHead(method=method, target=target, headers=((b"Host", host), *headers))
    return Message(origin=via, head=head, body=body)


def read(request: Message) -> CanonicalRequest | Reason:
    try:
        return canonicalise(request)
    except InputError as error:
        return error.reason


def load(path: Path) -> Message:
    head, _, body = path.read_bytes().partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    method, target, _ = first.split(b" ")
    headers: Headers = tuple((n, v.strip()) for n, _, v in (line.partition(b":") for line in lines))
    host = dict(headers)[b"Host"].decode()
    via = origin(connect=(host, 443), sni=host)
    return Message(origin=via, head=RequestHead(method=method, target=target, headers=headers), body=body)


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the captured requests are not beside this checkout")
def test_every_captured_request_is_accepted_and_kept() -> None:
    files = sorted(GOLDEN.glob("*.http"))
    assert len(files) >= 20
    for request in map(load, files):
        result = canonicalise(request)
        assert (result.raw_target, result.body) == (request.head.target, request.body)
        gone = {"host", "connection", "content-length", "transfer-encoding", "expect"}
        kept = [header for header in request.head.headers if header[0].decode().lower() not in gone]
        assert list(result.headers) == kept and not result.repeated


def test_a_refund_is_read() -> None:
    headers = ((b"Authorization", b"Bearer sk"), (b"Content-Type", b"application/x-www-form-urlencoded"))
    result = canonicalise(message(b"/v1/refunds?expand[]=charge", *headers, host=b"API.ok.test:443"))
    assert (result.method, result.scheme, result.host, result.port) == ("POST", "https", "api.ok.test", 443)
    assert (result.segments, result.query) == (("v1", "refunds"), (("expand[]", "charge"),))
    assert result.content_type == MediaType(essence="application/x-www-form-urlencoded", params=())
    assert (result.destination, result.content_coding) == ("api.ok.test:443", None)
    assert result.fields == {
        "authorization": "Bearer sk",
        "content-type": "application/x-www-form-urlencoded",
    }


# --- C1 -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [b"/", b"/p?", b"/a/", b"/a/b%20c%2Bd.txt", b"/a%2fb%3A?x=%2f&y=a+b", b"/$batch(1)*,'=!~@:&"],
)
def test_c1_the_target_and_the_body_are_the_bytes_that_arrived(target: bytes) -> None:
    result = canonicalise(message(target, body=b"\x00\xff"))
    assert (result.raw_target, result.body) == (target, b"\x00\xff")


def test_c1_absolute_form_loses_only_scheme_and_authority() -> None:
    result = canonicalise(message(b"http://API.ok.test:80/a%2Fb?", via=PLAIN))
    assert (result.raw_target, result.query, result.destination) == (b"/a%2Fb?", (), "api.ok.test:80")


# --- C2 -------------------------------------------------------------------------------------

NAMES = ["api.ok.test", "API.OK.test", "evil.test", None]


def _agree(*names: str | None) -> bool:
    return None not in names and len({name.lower() for name in names if name is not None}) == 1


@pytest.mark.parametrize("host", [name for name in NAMES if name])
@pytest.mark.parametrize("sni", NAMES)
def test_c2_names_agree_inside_tls(host: str, sni: str | None) -> None:
    for target, port, host_port in itertools.product(NAMES, (443, 8443), ("", ":443", ":8443")):
        connect = None if target is None else (target, port)
        request = message(host=(host + host_port).encode(), via=origin(connect=connect, sni=sni))
        same_port = port == (8443 if host_port == ":8443" else 443)
        expected = _agree(host, sni, target) and same_port
        result = read(request)
        assert isinstance(result, CanonicalRequest) if expected else result is MISMATCH


@pytest.mark.parametrize("tls", [True, False])
@pytest.mark.parametrize("sni", NAMES)
def test_c2_the_original_port_and_sni_agree_when_redirected(tls: bool, sni: str | None) -> None:
    ports: list[int | None] = [80, 443, 8443, None]
    for original, suffix, host in itertools.product(ports, ("", ":80", ":443", ":8443"), NAMES[:3]):
        via = origin(
            listener=Listener.TRANSPARENT,
            tls=tls,
            connect=None,
            sni=sni if tls else None,
            original_port=original,
        )
        port = int(suffix[1:]) if suffix else 443 if tls else 80
        expected = port == original and (not tls or _agree(sni, host))
        result = read(message(host=f"{host}{suffix}".encode(), via=via))
        assert isinstance(result, CanonicalRequest) if expected else result is MISMATCH


@pytest.mark.parametrize(
    ("target", "host", "expected"),
    [
        pytest.param(b"http://api.ok.test/a", b"evil.test", MISMATCH, id="target against Host"),
        pytest.param(b"http://evil.test/a", b"api.ok.test", MISMATCH, id="Host against target"),
        pytest.param(b"http://api.ok.test:80/a", b"api.ok.test", "api.ok.test:80", id="default port written"),
        pytest.param(b"http://api.ok.test:81/a", b"api.ok.test:81", "api.ok.test:81", id="other port"),
        pytest.param(b"http://api.ok.test:81/a", b"api.ok.test", MISMATCH, id="port differs"),
        pytest.param(b"http://API.ok.test/a", b"api.OK.test", "api.ok.test:80", id="letter case"),
    ],
)
def test_c2_absolute_form_and_host_agree(target: bytes, host: bytes, expected: object) -> None:
    result = read(message(target, host=host, via=PLAIN))
    assert (result.destination if isinstance(result, CanonicalRequest) else result) == expected


def test_c2_a_plain_tunnel_is_held_to_its_connect_target() -> None:
    result = read(message(via=PLAIN_TUNNEL))
    assert isinstance(result, CanonicalRequest) and (result.scheme, result.port) == ("http", 80)
    assert read(message(via=origin(tls=False, sni=None))) is MISMATCH  # CONNECT :443, then no TLS
    assert read(message(via=PLAIN_TUNNEL, host=b"evil.test")) is MISMATCH


def test_c2_only_ascii_is_folded() -> None:
    kelvin = "api.o\u212a.test"
    assert kelvin.lower() == "api.ok.test"
    assert read(message(via=origin(sni=kelvin))) is MISMATCH
    assert read(message(via=origin(connect=(kelvin, 443)))) is MISMATCH
    assert read(message(via=origin(connect=("api.ok.test.", 443)))) is MISMATCH


def test_c2_connect_does_not_exist_on_the_transparent_listener() -> None:
    via = origin(listener=Listener.TRANSPARENT, original_port=443)
    assert read(message(via=via)) is MISMATCH


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        (b"", MALFORMED),
        (b"api.ok.test.", MALFORMED),
        (b"api..test", MALFORMED),
        (b".test", MALFORMED),
        (b"-a.test", MALFORMED),
        (b"a-.test", MALFORMED),
        (b"a_b.test", MALFORMED),
        (b"a" * 64 + b".test", MALFORMED),
        (b".".join([b"a" * 63] * 4) + b".test", MALFORMED),
        (b"user@api.ok.test", MALFORMED),
        (b"api.ok.test:", MALFORMED),
        (b"api.ok.test:0", MALFORMED),
        (b"api.ok.test:00443", MALFORMED),
        (b"api.ok.test:65536", MALFORMED),
        (b"api.ok.test:99999", MALFORMED),
        (b"api.ok.test:4\xd9\xa43", MALFORMED),
        (b"api.ok.test:443:443", MALFORMED),
        (b"api.ok.test,evil.test", MALFORMED),
        (b"api.ok.test evil.test", MALFORMED),
        ("ⓞk.test".encode(), MALFORMED),
        ("ok。test".encode(), MALFORMED),
        (b"%61pi.ok.test", MALFORMED),
        (b"::1", MALFORMED),
        (b"[api.ok.test]", MALFORMED),
        (b"[fe80::1%25eth0]", MALFORMED),
        (b"[::1", MALFORMED),
        (b"[1.2.3.4]", MALFORMED),
        (b"[::1]", UNKNOWN),
        (b"[::ffff:127.0.0.1]:443", UNKNOWN),
        (b"[64:ff9b::a9fe:a9fe]", UNKNOWN),
        (b"127.0.0.1", UNKNOWN),
        (b"127.0.0.1:443", UNKNOWN),
        (b"2130706433", UNKNOWN),
        (b"0x7f000001", UNKNOWN),
        (b"0X7F.1", UNKNOWN),
        (b"0177.0.0.1", UNKNOWN),
        (b"127.1", UNKNOWN),
        (b"0", UNKNOWN),
        (b"0x", UNKNOWN),
        (b"a.0x7f", UNKNOWN),
    ],
)
def test_c2_a_host_that_is_no_plain_name_is_refused(host: bytes, reason: Reason) -> None:
    # Refused by itself: the tunnel agrees with it as far as that can be.
    name = host.decode("utf-8", "replace").partition(":")[0].lower()
    assert read(message(host=host, via=origin(connect=(name, 443), sni=name))) is reason


@pytest.mark.parametrize(
    "name", ["xn--bcher-kva.test", "a", "localhost", "a.b-c.d0", "1.2.3.4.a", "a" * 63 + ".x"]
)
def test_c2_plain_names_are_accepted(name: str) -> None:
    result = read(message(host=name.encode(), via=origin(connect=(name, 443), sni=name)))
    assert isinstance(result, CanonicalRequest) and result.host == name


# --- target form ----------------------------------------------------------------------------


@pytest.mark.parametrize("via", [TUNNEL, PLAIN_TUNNEL, REDIRECTED, REDIRECTED_PLAIN])
def test_inside_tls_or_a_tunnel_or_redirected_the_target_is_origin_form(via: Origin) -> None:
    assert isinstance(read(message(via=via)), CanonicalRequest)
    for target in (
        b"http://api.ok.test/v1/search",
        b"https://api.ok.test/",
        b"*",
        b"",
        b"v1",
        b"api.ok.test:443",
    ):
        assert read(message(target, via=via)) is MALFORMED


@pytest.mark.parametrize(
    "target",
    [
        b"/v1/search",
        b"https://api.ok.test/",
        b"HTTP://api.ok.test/",
        b"ftp://api.ok.test/",
        b"http://api.ok.test",
        b"http://api.ok.test?x",
        b"http:///a",
        b"http:/api.ok.test/",
        b"http://api.ok.test@evil.test/",
        b"http://evil.test\\@api.ok.test/",
        b"http://evil.test#@api.ok.test/",
        b"http://api.ok.test?@evil.test/",
        b"http://api.ok.test:00080/",
        b"*",
        b"",
    ],
)
def test_on_the_explicit_listener_the_target_is_plain_http_absolute_form(target: bytes) -> None:
    assert isinstance(read(message(b"http://api.ok.test/v1/search", via=PLAIN)), CanonicalRequest)
    assert read(message(target, via=PLAIN)) is MALFORMED


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        (b"get", MALFORMED),
        (b"Post", MALFORMED),
        (b"", MALFORMED),
        (b"GE\0T", MALFORMED),
        (b'G=":<>(e),[T];?', MALFORMED),
        (b"GET ", MALFORMED),
        (b"GET\n", MALFORMED),
        (b"A" * 33, MALFORMED),
        (b"TRACE", Reason.UNSUPPORTED_PROTOCOL),
        (b"CONNECT", Reason.UNSUPPORTED_PROTOCOL),
        (b"PRI", Reason.UNSUPPORTED_PROTOCOL),
    ],
)
def test_methods_that_refuse(method: bytes, reason: Reason) -> None:
    assert read(message(method=method)) is reason
    assert isinstance(read(message(method=b"VERSION-CONTROL")), CanonicalRequest)


# --- C3: paths and queries --------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "//v1//payouts /v1//payouts /v1/payouts// // /. /.. /v1/search/../payouts /v1/./x",
        "/v1/search/%2e%2e/payouts /.%2e /%2E. /%2e /a/.. /a/%2e%2e/ /%2e%2e%2fa",
        "/v1/%252e%252e/payouts /a%25%32%66b /%255c /%25252e /%2570ayouts /%2500 /%25u002e",
        "/a;b=c /a%3bb /%5c /a\\b /v1/%zz /%u002e /% /%2 /%00 /%0a /a%0d%0a /%7f /%c2%85",
        "/a%2f..%2fb /%2f /a%2F /a%2f%2fb /a%2f.",
        '/a"b /<a> /a`b /{a} /a^b',
        "/é /%ff /%c0%ae%c0%ae /%ed%a0%80",
    ],
)
def test_c3_paths_with_two_readings_are_refused(path: str) -> None:
    for target in path.split(" "):
        assert read(message(target.encode())) is PATH, target


@pytest.mark.parametrize("target", [b"/a b", b"/a\tb", b"/a\n", b"/a\x00", b"/a\r"])
def test_c3_raw_white_space_and_controls_are_refused(target: bytes) -> None:
    assert read(message(target)) is PATH


@pytest.mark.parametrize(
    ("target", "segments"),
    [
        (b"/", ("",)),
        (b"/a/", ("a", "")),
        (b"/.well-known/jwks.json", (".well-known", "jwks.json")),
        (b"/...", ("...",)),
        (b"/v1/payouts%20", ("v1", "payouts ")),
        (b"/v1/pay%EF%BD%8Futs", ("v1", "pay\uff4futs")),
        (b"/projects/group%2Fproj", ("projects", "group/proj")),
        (b"/@scope%2fpkg", ("@scope/pkg",)),
        (b"/a%25b/100%25", ("a%b", "100%")),
        (b"/ts=00%253A00", ("ts=00%3A00",)),
        (b"/%7Ba%7D%3F%23", ("{a}?#",)),
        (b"/users('id')/$value", ("users('id')", "$value")),
        (b"/docs/[id]/a|b", ("docs", "[id]", "a|b")),
    ],
)
def test_c3_segments_are_decoded_exactly_once(target: bytes, segments: tuple[str, ...]) -> None:
    result = canonicalise(message(target))
    assert result.segments == segments
    assert "/" + "/".join(result.raw_segments) == target.decode()


@pytest.mark.parametrize(
    ("query", "pairs"),
    [
        (b"", ()),
        (b"delete", (("delete", ""),)),
        (b"a=1&a=2", (("a", "1"), ("a", "2"))),
        (b"%61=b+c%2B", (("a", "b c+"),)),
        (b"a[b][]=1&c=d=e", (("a[b][]", "1"), ("c", "d=e"))),
        (b"u=http://h/?x", (("u", "http://h/?x"),)),
        (b"x-id=PutObject&q=%0A", (("x-id", "PutObject"), ("q", "\n"))),
        (b'f={"a":[1]}&p=x|y^z`<>', (("f", '{"a":[1]}'), ("p", "x|y^z`<>"))),
    ],
)
def test_c3_query_pairs_are_decoded_in_order(query: bytes, pairs: object) -> None:
    assert canonicalise(message(b"/a?" + query)).query == pairs
    assert canonicalise(message(b"/a")).query is None


@pytest.mark.parametrize(
    "query",
    [
        b"a=1&&b",
        b"&a",
        b"a&",
        b"=1",
        b"a=1;b=2",
        b"a=%",
        b"a=%zz",
        b"a=%ff",
        b"a=%00",
        b"%0a=1",
        b"a=b c",
        b"a=\\",
        b"a=\xc3\xa9",
        b"a#b",
        b"#",
    ],
)
def test_c3_queries_with_two_readings_are_refused(query: bytes) -> None:
    assert read(message(b"/a?" + query)) is MALFORMED


def test_c3_the_number_of_query_pairs_is_bounded() -> None:
    assert isinstance(read(message(b"/a?" + b"&".join([b"a"] * 1000))), CanonicalRequest)
    assert read(message(b"/a?" + b"&".join([b"a"] * 1001))) is Reason.TOO_LARGE


PIECES = [
    "/",
    "a",
    ".",
    "..",
    "%2e",
    "%2E",
    "%2f",
    "%5C",
    "\\",
    ";",
    "%",
    "%25",
    "2e",
    " ",
    "\t",
    "é",
    "%C3%A9",
]
PIECES += ["?", "&", "=", "+", "[", "]", "'", "{", '"', "<", "^", "`", "|", "%0a", "%00", "%41"]


@pytest.mark.slow
@settings(max_examples=400)
@given(st.lists(st.sampled_from(PIECES), max_size=9).map("".join))
def test_c3_what_is_accepted_reads_the_same_in_a_whatwg_parser(rest: str) -> None:
    try:
        target = read_target(b"/" + rest.encode())
    except InputError:
        return
    path, mark, query = f"/{rest}".partition("?")
    assert whatwg_path(path) == list(target.raw_segments)
    assert [unquote_to_bytes(raw).decode() for raw in target.raw_segments] == list(target.segments)
    assert target.query == (tuple(whatwg_query(query)) if mark else None)
    # A server that decodes before it splits finds no dot or empty segment either.
    again = "/".join(target.segments).split("/")
    assert not {".", ".."} & set(again) and "" not in again[:-1]


@given(
    st.lists(
        st.sampled_from(["a", "b c", "é", "x/y", "100%", "%41", "{", "a.b", ";", "\n"]),
        min_size=1,
        max_size=4,
    )
)
def test_c3_a_quoted_path_is_read_back(segments: list[str]) -> None:
    raw = "/" + "/".join("".join(f"%{b:02X}" for b in segment.encode()) for segment in segments)
    try:
        target = read_target(raw.encode())
    except InputError as error:
        assert error.reason is PATH and {";", "\n", "%41"} & set(segments)
    else:
        assert target == Target(segments=tuple(segments), raw_segments=tuple(raw[1:].split("/")), query=None)


# --- C4, C5 and the description of the body -----------------------------------------------------

BYTES = st.lists(
    st.sampled_from(
        [b"/", b"a", b"%2e", b"http://", b"api.ok.test", b":", b"443", b"?", b"\xff", b"\0", b" "]
    )
).map(b"".join)
HEADER_NAMES = st.sampled_from(
    [b"Host", b"Content-Type", b"Connection", b"Accept", b"X Y", b"\xff", b"TE", b"Expect"]
)


@given(
    st.builds(
        Message,
        origin=st.sampled_from([TUNNEL, PLAIN, PLAIN_TUNNEL, REDIRECTED, REDIRECTED_PLAIN, origin(sni=None)]),
        head=st.builds(
            RequestHead,
            method=st.sampled_from([b"GET", b"POST", b"get", b"\xff", b""]),
            target=BYTES,
            headers=st.lists(st.tuples(HEADER_NAMES, BYTES | st.just(b"api.ok.test"))).map(tuple),
        ),
        body=st.binary(max_size=5),
    )
)
def test_c4_every_message_gets_a_reading_or_our_error(request: Message) -> None:
    result = read(request)
    assert isinstance(result, (CanonicalRequest, Reason))
    if isinstance(result, CanonicalRequest):
        assert request.head.target.endswith(result.raw_target) and result.body == request.body


def test_c5_nothing_between_us_and_the_agent_is_sent_on() -> None:
    names = """
        Connection Keep-Alive Proxy-Connection Proxy-Authorization TE Trailer Transfer-Encoding Upgrade
        Expect Content-Length Via Forwarded X-Forwarded-For X-Real-IP True-Client-IP X-Original-URL
        X-Rewrite-URL X-Agent-Id X-Forwarded-User TG-Id X-TrigGuard-Key Holdgate-Decision
        HOLDGATE_RECEIPT holdgate-x
    """
    special = {"Connection": b"keep-alive", "Expect": b"100-continue"}
    headers = [(name.encode(), special.get(name, b"x")) for name in names.split()]
    result = canonicalise(message(b"/", *headers, (b"Idempotency-Key", b"k")))
    assert result.headers == ((b"Idempotency-Key", b"k"),)
    assert result.fields == {"idempotency-key": "k"}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        (b"Content-Encoding", b"gzip", "gzip"),
        (b"Content-Encoding", b"aws-chunked", "aws-chunked"),
        (b"Content-Encoding", b"identity", None),
        (b"Content-Encoding", b"gzip,aws-chunked", "gzip,aws-chunked"),
        (b"Content-Encoding", b"zstd, aws-chunked", "zstd,aws-chunked"),
        (b"Content-Encoding", b"GZIP", UNSUPPORTED),
        (b"Content-Encoding", b"x-gzip", UNSUPPORTED),
        (b"Content-Encoding", b"deflate", UNSUPPORTED),
        (b"Content-Encoding", b"gzip, gzip", UNSUPPORTED),
        (b"Content-Encoding", b"aws-chunked,gzip", UNSUPPORTED),
        (b"Content-Encoding", b"", UNSUPPORTED),
        (b"Content-Type", b"application/json; charset=utf-7", UNSUPPORTED),
        (b"Content-Type", b"json", MALFORMED),
    ],
)
def test_codings_and_types(name: bytes, value: bytes, expected: object) -> None:
    result = read(message(b"/", (name, value)))
    assert (result.content_coding if isinstance(result, CanonicalRequest) else result) == expected


def test_us_ascii_means_ascii() -> None:
    for charset in (b"US-ASCII", b"ISO-8859-1"):
        header = (b"Content-Type", b"text/plain; charset=" + charset)
        assert isinstance(read(message(b"/", header, body=b"abc")), CanonicalRequest)
        assert read(message(b"/", header, body=b"\xc3\xa9")) is UNSUPPORTED
        # In a form the escapes are characters of the charset too.
        assert isinstance(read(message(b"/", header, body=b"a=%20%7E")), CanonicalRequest)
        assert read(message(b"/", header, body=b"a=%C3%A9")) is UNSUPPORTED
