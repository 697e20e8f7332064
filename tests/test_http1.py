"""http1.py with its client role and grammar: the strict wire by cases, random bytes and splits."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdgate.errors import InputError, Reason
from holdgate.http1 import (
    LAST_CHUNK,
    ClientReader,
    ServerReader,
    WireError,
    write_chunk,
    write_request,
    write_response_head,
)
from holdgate.limits import Limits
from holdgate.message import RequestHead

LIMITS = Limits(header_bytes=2000, headers=10)
BODY_LIMIT = 50
HOST = b"Host: api.ok.test\r\n"
MALFORMED, PROTOCOL, LARGE = Reason.MALFORMED_REQUEST, Reason.UNSUPPORTED_PROTOCOL, Reason.TOO_LARGE


def post(headers: bytes, body: bytes = b"") -> bytes:
    return b"POST /v1/search HTTP/1.1\r\n" + HOST + headers + b"\r\n" + body


def read_all(pieces: Iterable[bytes]) -> tuple[list[tuple[RequestHead, bytes]], tuple[Reason, int] | None]:
    """Complete messages, then the refusal if there is one. The end of input ends the connection."""
    reader = ServerReader(LIMITS)
    messages: list[tuple[RequestHead, bytes]] = []
    begun = None
    try:
        for piece in pieces:
            reader.feed(piece)
            while True:
                if begun is None:
                    begun = reader.head()
                    if begun is None:
                        break
                    reader.begin_body(BODY_LIMIT)
                body = reader.body()
                if body is None:
                    break
                messages.append((begun, body))
                begun = None
        reader.eof()
    except InputError as error:
        return messages, (error.reason, error.status)
    return messages, None


def refusal(data: bytes) -> tuple[Reason, int] | None:
    return read_all([data])[1]


def cut(data: bytes, places: Iterable[int]) -> Iterator[bytes]:
    ends = [*sorted({place % (len(data) + 1) for place in places}), len(data)]
    start = 0
    for end in ends:
        yield data[start:end]
        start = end


def test_a_whole_request_is_read_as_it_is() -> None:
    messages, error = read_all(
        [post(b"X-A:  two words\t \r\nx-a: \xc3\xa9\r\nContent-Length: 3\r\n", b"abc")]
    )
    assert error is None
    ((head, body),) = messages
    assert (head.method, head.target, body) == (b"POST", b"/v1/search", b"abc")
    assert head.headers == (
        (b"Host", b"api.ok.test"),
        (b"X-A", b"two words"),
        (b"x-a", b"\xc3\xa9"),
        (b"Content-Length", b"3"),
    )


ACCEPTED = [
    pytest.param(post(b""), b"", id="no body headers, empty body"),
    pytest.param(post(b"Content-Length: 3\r\n", b"abc"), b"abc", id="content-length"),
    pytest.param(post(b"content-length:3\r\n", b"abc"), b"abc", id="no space after the colon"),
    pytest.param(post(b"Content-Length: \t 3 \t\r\n", b"abc"), b"abc", id="tabs and spaces around a value"),
    pytest.param(post(b"Transfer-Encoding: chunked\r\n", b"3\r\nabc\r\n0\r\n\r\n"), b"abc", id="chunked"),
    pytest.param(post(b"Transfer-Encoding: CHUNKED\r\n", b"0\r\n\r\n"), b"", id="chunked in capitals, empty"),
    pytest.param(
        post(b"Transfer-Encoding: chunked\r\n", b"A\r\n0123456789\r\n00000001\r\nz\r\n00\r\n\r\n"),
        b"0123456789z",
        id="chunk sizes with capitals and leading zeros",
    ),
    pytest.param(b"\r\n" + post(b""), b"", id="one empty line before the request line"),
    pytest.param(post(b"X:\r\nY: \r\n"), b"", id="empty values"),
    pytest.param(post(b"X: a:b: c  d\r\n"), b"", id="colons and spaces inside a value"),
    pytest.param(post(b"Connection: Keep-Alive, TE\r\nTE: trailers\r\n"), b"", id="known connection options"),
    pytest.param(post(b"Connection: upgrade\r\n"), b"", id="connection upgrade without Upgrade"),
    pytest.param(
        post(b"Expect: 100-Continue\r\nContent-Length: 1\r\n", b"a"), b"a", id="expect 100-continue"
    ),
    pytest.param(b"CONNECT api.ok.test:443 HTTP/1.1\r\n" + HOST + b"\r\n", b"", id="CONNECT"),
    pytest.param(b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", b"", id="asterisk form: judged later"),
    pytest.param(
        b"GET http://api.ok.test/a HTTP/1.1\r\n" + HOST + b"\r\n", b"", id="absolute form: judged later"
    ),
    pytest.param(b"M" * 32 + b" / HTTP/1.1\r\n" + HOST + b"\r\n", b"", id="method of 32 characters"),
    pytest.param(post(b"".join(b"X-%d: 1\r\n" % n for n in range(9))), b"", id="as many headers as allowed"),
    pytest.param(post(b"Content-Length: 50\r\n", b"x" * 50), b"x" * 50, id="body of exactly the limit"),
]


@pytest.mark.parametrize(("data", "body"), ACCEPTED)
def test_accepted(data: bytes, body: bytes) -> None:
    messages, error = read_all([data])
    assert error is None
    assert [got for _, got in messages] == [body]


CHUNKED = b"Transfer-Encoding: chunked\r\n"
FRAMING = [
    pytest.param(CHUNKED + b"Content-Length: 4\r\n", b"0\r\n\r\n", id="TE then CL"),
    pytest.param(b"Content-Length: 4\r\n" + CHUNKED, b"0\r\n\r\n", id="CL then TE"),
    pytest.param(b"Content-Length: 3\r\nContent-Length: 3\r\n", b"abc", id="CL twice, equal"),
    pytest.param(b"Content-Length: 3\r\nContent-Length: 4\r\n", b"abcd", id="CL twice, different"),
    pytest.param(b"Content-Length: 3, 3\r\n", b"abc", id="CL as a list"),
    pytest.param(b"Content-Length: +3\r\n", b"abc", id="CL with plus"),
    pytest.param(b"Content-Length: -3\r\n", b"abc", id="CL negative"),
    pytest.param(b"Content-Length: 1_0\r\n", b"0123456789", id="CL with underscore"),
    pytest.param(b"Content-Length: 0x3\r\n", b"abc", id="CL hexadecimal"),
    pytest.param(b"Content-Length: 3.0\r\n", b"abc", id="CL decimal point"),
    pytest.param(b"Content-Length: \xd9\xa3\r\n", b"abc", id="CL in Arabic digits"),
    pytest.param(b"Content-Length: 3 3\r\n", b"abc", id="CL two numbers"),
    pytest.param(b"Content-Length:\r\n", b"", id="CL empty"),
    pytest.param(b"Content-Length: " + b"0" * 20 + b"\r\n", b"", id="CL of 20 digits"),
    pytest.param(b"Content-Length:\x0b3\r\n", b"abc", id="CL after a vertical tab"),
    pytest.param(b"Content-Length:\x0c3\r\n", b"abc", id="CL after a form feed"),
    pytest.param(b"Content-Length:\x853\r\n", b"abc", id="CL after a NEL byte"),
    pytest.param(b"Content-Length : 3\r\n", b"abc", id="space before the colon"),
    pytest.param(b"Content-Length\t: 3\r\n", b"abc", id="tab before the colon"),
    pytest.param(b"Content_Length: 3\r\n", b"abc", id="CL with an underscore in its name"),
    pytest.param(b"Transfer_Encoding: chunked\r\n", b"0\r\n\r\n", id="TE with an underscore in its name"),
    pytest.param(b"Content-Length: 10\r\n", b"abc", id="body cut by the end of input"),
    pytest.param(b"Transfer-Encoding: x\r\n", b"", id="TE unknown"),
    pytest.param(b"Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n", id="TE xchunked"),
    pytest.param(b"Transfer-Encoding: chunked;foo\r\n", b"0\r\n\r\n", id="TE with a parameter"),
    pytest.param(b'Transfer-Encoding: "chunked"\r\n', b"0\r\n\r\n", id="TE quoted"),
    pytest.param(b"Transfer-Encoding: ,chunked\r\n", b"0\r\n\r\n", id="TE with an empty element"),
    pytest.param(b"Transfer-Encoding: gzip, chunked\r\n", b"3\r\nabc\r\n0\r\n\r\n", id="TE gzip, chunked"),
    pytest.param(b"Transfer-Encoding: identity\r\n", b"", id="TE identity"),
    pytest.param(b"Transfer-Encoding:\r\n", b"", id="TE empty"),
    pytest.param(CHUNKED + CHUNKED, b"0\r\n\r\n", id="TE twice"),
    pytest.param(CHUNKED, b"3;a=b\r\nabc\r\n0\r\n\r\n", id="chunk extension"),
    pytest.param(CHUNKED, b'3;a="\r\n"\r\nabc\r\n0\r\n\r\n', id="chunk extension with quoted CRLF"),
    pytest.param(CHUNKED, b"3;a\nb\r\nabc\r\n0\r\n\r\n", id="chunk extension with bare LF"),
    pytest.param(CHUNKED, b"3 \r\nabc\r\n0\r\n\r\n", id="space after the chunk size"),
    pytest.param(CHUNKED, b" 3\r\nabc\r\n0\r\n\r\n", id="space before the chunk size"),
    pytest.param(CHUNKED, b"0x3\r\nabc\r\n0\r\n\r\n", id="chunk size with 0x"),
    pytest.param(CHUNKED, b"+3\r\nabc\r\n0\r\n\r\n", id="chunk size with plus"),
    pytest.param(CHUNKED, b"-1\r\nabc\r\n0\r\n\r\n", id="chunk size negative"),
    pytest.param(CHUNKED, b"\r\nabc\r\n0\r\n\r\n", id="chunk size empty"),
    pytest.param(CHUNKED, b"000000003\r\nabc\r\n0\r\n\r\n", id="chunk size of nine digits"),
    pytest.param(CHUNKED, b"3\nabc\r\n0\r\n\r\n", id="chunk size ends with bare LF"),
    pytest.param(CHUNKED, b"3\r\nabcXX0\r\n\r\n", id="chunk data followed by XX"),
    pytest.param(CHUNKED, b"3\r\nabc\n0\r\n\r\n", id="chunk data followed by bare LF"),
    pytest.param(CHUNKED, b"3\r\nabc0\r\n\r\n", id="chunk data followed by nothing"),
    pytest.param(CHUNKED, b"3\r\nabc\r\n0\r\nX-T: 1\r\n\r\n", id="trailer"),
    pytest.param(CHUNKED, b"3\r\nabc\r\n0\r\n", id="cut before the last CRLF"),
    pytest.param(CHUNKED, b"0\r\n\n", id="last chunk ends with bare LF"),
]


@pytest.mark.parametrize(("headers", "body"), FRAMING)
def test_h1_two_ways_to_frame_are_refused(headers: bytes, body: bytes) -> None:
    messages, error = read_all([post(headers, body)])
    assert messages == []
    assert error == (MALFORMED, 400)


def line(text: bytes) -> bytes:
    return text + b"\r\n" + HOST + b"\r\n"


SYNTAX = [
    pytest.param(post(b"X: 1\rTransfer-Encoding: chunked\r\n"), MALFORMED, id="bare CR in a value"),
    pytest.param(post(b"X: 1\nY: 2\r\n"), MALFORMED, id="bare LF in a value"),
    pytest.param(b"GET / HTTP/1.1\nHost: a\n\n", MALFORMED, id="bare LF everywhere"),
    pytest.param(post(b"X: a\x00b\r\n"), MALFORMED, id="NUL in a value"),
    pytest.param(b"GET / HTTP/1.1\r\nHost: good.test\x00.evil.test\r\n\r\n", MALFORMED, id="NUL in Host"),
    pytest.param(post(b"X: a\x7fb\r\n"), MALFORMED, id="DEL in a value"),
    pytest.param(post(b"X: a\x1bb\r\n"), MALFORMED, id="escape in a value"),
    pytest.param(post(b"X: \xff\r\n"), MALFORMED, id="value that is not UTF-8"),
    pytest.param(post(b"X: \xc3\r\nY: \xa9\r\n"), MALFORMED, id="UTF-8 character cut by a line end"),
    pytest.param(post(b"X: a\xc2\x85b\r\n"), MALFORMED, id="C1 control in UTF-8"),
    pytest.param(post(b"X: a\r\n b\r\n"), MALFORMED, id="obs-fold with space"),
    pytest.param(post(b"X: a\r\n\tb\r\n"), MALFORMED, id="obs-fold with tab"),
    pytest.param(b"GET / HTTP/1.1\r\n Host: a\r\nHost: b\r\n\r\n", MALFORMED, id="folded first header"),
    pytest.param(post(b"X Y: 1\r\n"), MALFORMED, id="space in a name"),
    pytest.param(post(b"X\xc3\xa9: 1\r\n"), MALFORMED, id="name that is not ASCII"),
    pytest.param(post(b": 1\r\n"), MALFORMED, id="empty name"),
    pytest.param(post(b"no colon\r\n"), MALFORMED, id="line without colon"),
    pytest.param(post(b"X(Y): 1\r\n"), MALFORMED, id="name with parentheses"),
    pytest.param(line(b"GET / HTTP/1.0"), PROTOCOL, id="HTTP/1.0"),
    pytest.param(
        b"POST / HTTP/1.0\r\n" + HOST + CHUNKED + b"\r\n0\r\n\r\n", PROTOCOL, id="HTTP/1.0 with chunked"
    ),
    pytest.param(line(b"GET / HTTP/1.2"), PROTOCOL, id="HTTP/1.2"),
    pytest.param(line(b"GET / HTTP/9.9"), PROTOCOL, id="HTTP/9.9"),
    pytest.param(line(b"GET / HTTP/2.0"), PROTOCOL, id="HTTP/2.0 as text"),
    pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", PROTOCOL, id="HTTP/2 preface"),
    pytest.param(line(b"GET / HTTP/1.10"), PROTOCOL, id="HTTP/1.10"),
    pytest.param(line(b"GET / HTTP/01.1"), PROTOCOL, id="HTTP/01.1"),
    pytest.param(line(b"GET / http/1.1"), MALFORMED, id="version in small letters"),
    pytest.param(line(b"GET / HTTP/1.1 "), MALFORMED, id="space after the version"),
    pytest.param(line(b"GET / HTTP/1.1 x"), MALFORMED, id="word after the version"),
    pytest.param(line(b"GET /a b HTTP/1.1"), MALFORMED, id="space in the target"),
    pytest.param(b"GET /v1/search\r\n\r\n", MALFORMED, id="HTTP/0.9"),
    pytest.param(line(b'G=":<>(e),[T];?" / HTTP/1.1'), MALFORMED, id="method that is not a token"),
    pytest.param(line(b"GE\x00T / HTTP/1.1"), MALFORMED, id="NUL in the method"),
    pytest.param(line(b"M" * 33 + b" / HTTP/1.1"), MALFORMED, id="method of 33 characters"),
    pytest.param(line(b"GET  / HTTP/1.1"), MALFORMED, id="two spaces"),
    pytest.param(line(b"GET\t/ HTTP/1.1"), MALFORMED, id="tab as separator"),
    pytest.param(line(b"GET\x0b/ HTTP/1.1"), MALFORMED, id="vertical tab as separator"),
    pytest.param(line(b"GET\r/ HTTP/1.1"), MALFORMED, id="CR as separator"),
    pytest.param(line(b" GET / HTTP/1.1"), MALFORMED, id="space before the method"),
    pytest.param(line(b"GET /a#b HTTP/1.1"), MALFORMED, id="fragment"),
    pytest.param(line(b"GET /\xc3\xa9 HTTP/1.1"), MALFORMED, id="target that is not ASCII"),
    pytest.param(line(b"GET /\x7f HTTP/1.1"), MALFORMED, id="DEL in the target"),
    pytest.param(line(b"GET  HTTP/1.1"), MALFORMED, id="no target"),
    pytest.param(b"\r\n\r\n" + post(b""), MALFORMED, id="two empty lines before the request line"),
    pytest.param(b"\n" + post(b""), MALFORMED, id="bare LF before the request line"),
    pytest.param(b"GET / HTTP/1.1\r\n\r\n", MALFORMED, id="no headers at all, so no Host"),
    pytest.param(b"GET / HTTP/1.1\r\nX: 1\r\n\r\n", MALFORMED, id="Host missing"),
    pytest.param(b"GET / HTTP/1.1\r\nHost:\r\n\r\n", MALFORMED, id="Host empty"),
    pytest.param(b"GET / HTTP/1.1\r\nHost: \t\r\n\r\n", MALFORMED, id="Host of white space"),
    pytest.param(post(b"Host: evil.test\r\n"), MALFORMED, id="Host twice"),
    pytest.param(post(b"host: api.ok.test\r\n"), MALFORMED, id="Host twice, equal"),
    pytest.param(post(b"Expect: 200-ok\r\n"), MALFORMED, id="unknown expectation"),
    pytest.param(post(b"Expect: 100-continue, x\r\n"), MALFORMED, id="expectation list"),
    pytest.param(post(b"Expect: 100-continue\r\nExpect: 100-continue\r\n"), MALFORMED, id="Expect twice"),
    pytest.param(post(b"Connection: Content-Length\r\n"), MALFORMED, id="Connection names Content-Length"),
    pytest.param(
        post(b"Connection: close, Authorization\r\n"), MALFORMED, id="Connection names Authorization"
    ),
    pytest.param(post(b"Connection: Idempotency-Key\r\n"), MALFORMED, id="Connection names the key"),
    pytest.param(post(b"Connection: close\r\nConnection: X\r\n"), MALFORMED, id="second Connection names X"),
    pytest.param(post(b"Connection:\r\n"), MALFORMED, id="Connection empty"),
    pytest.param(post(b"Connection: Upgrade\r\nUpgrade: websocket\r\n"), PROTOCOL, id="websocket upgrade"),
    pytest.param(post(b"Upgrade: foo\r\n"), PROTOCOL, id="Upgrade without Connection"),
    pytest.param(post(b"HTTP2-Settings: AAMAAABk\r\n"), PROTOCOL, id="h2c settings"),
    pytest.param(b"\x16\x03\x01\x02\x00\x01\x00", MALFORMED, id="TLS ClientHello"),
    pytest.param(b"SSH-2.0-OpenSSH_9.6\r\n", MALFORMED, id="SSH banner"),
]


@pytest.mark.parametrize(("data", "reason"), SYNTAX)
def test_h1_what_is_not_the_grammar_is_refused(data: bytes, reason: Reason) -> None:
    messages, error = read_all([data])
    assert messages == []
    assert error == (reason, 400)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x16", id="first byte of a TLS record"),
        pytest.param(b"GET / HTTP/1.1\nH", id="bare LF"),
        pytest.param(b"SSH-2.0-OpenSSH_9.6\r\n", id="SSH banner"),
        pytest.param(b"get it\x00", id="NUL"),
        pytest.param(b"A" * 33, id="a method that does not end"),
        pytest.param(b"GET / HTTP/1.0\r\n", id="version, before the headers"),
        pytest.param(b"GET / HTTP/1.1\r\nX : 1\r\n", id="a bad header, before the end of the head"),
        pytest.param(b"\r\n\r\n", id="empty lines only"),
    ],
)
def test_hopeless_input_is_refused_at_once_without_waiting_for_the_end_of_the_head(data: bytes) -> None:
    reader = ServerReader(LIMITS)
    reader.feed(data)
    with pytest.raises(InputError):
        reader.head()


LIMIT_CASES = [
    pytest.param(b"GET /" + b"a" * 3000, 431, id="request line without end"),
    pytest.param(post(b"X: " + b"a" * 3000 + b"\r\n"), 431, id="one long header"),
    pytest.param(post(b"".join(b"X-%d: 1\r\n" % n for n in range(10))), 431, id="one header too many"),
    pytest.param(post(b"Content-Length: 51\r\n"), 413, id="announced body too long"),
    pytest.param(post(b"Content-Length: " + b"9" * 19 + b"\r\n"), 413, id="announced body of 19 digits"),
    pytest.param(post(CHUNKED, b"33\r\n"), 413, id="announced chunk too long"),
    pytest.param(post(CHUNKED, b"FFFFFFFF\r\n"), 413, id="huge announced chunk"),
    pytest.param(post(CHUNKED, b"19\r\n" + b"x" * 25 + b"\r\n1A\r\n"), 413, id="chunks too long together"),
]


@pytest.mark.parametrize(("data", "status"), LIMIT_CASES)
def test_h3_what_exceeds_a_limit_is_refused_before_it_is_read(data: bytes, status: int) -> None:
    assert read_all([data]) == ([], (LARGE, status))


def test_hg1_a_head_is_accepted_up_to_exactly_its_limits() -> None:
    room = LIMITS.header_bytes - len(post(b"X: \r\n"))
    assert refusal(post(b"X: " + b"a" * room + b"\r\n")) is None
    assert refusal(post(b"X: " + b"a" * (room + 1) + b"\r\n")) == (LARGE, 431)


CASES = [case.values[0] for case in [*ACCEPTED, *SYNTAX, *LIMIT_CASES]] + [
    post(case.values[0], case.values[1]) for case in FRAMING
]


@pytest.mark.parametrize("data", CASES)
def test_hg2_every_case_gives_the_same_result_byte_by_byte(data: bytes) -> None:
    drip = [data[at : at + 1] for at in range(len(data))]
    assert read_all(drip) == read_all([data])


# A narrow alphabet of pieces, so that random input is often nearly right.
PIECES = st.sampled_from(
    [
        *[
            b"GET / HTTP/1.1\r\n",
            b"POST /v1/search HTTP/1.1\r\n",
            b"GET / HTTP/1.0\r\n",
            HOST,
            b"\r\n",
            b"\r",
            b"\n",
        ],
        *[
            b"Content-Length: 3\r\n",
            b"Content-Length: 60\r\n",
            CHUNKED,
            b"abc",
            b"3\r\nabc\r\n",
            b"0\r\n\r\n",
        ],
        *[
            b"0\r\n",
            b"X: ",
            b"a" * 700,
            b" ",
            b":",
            b"\x00",
            b"\xc3\xa9",
            b"\xff",
            b"Expect: 100-continue\r\n",
        ],
        *[
            b"Connection: close\r\n",
            b"Upgrade: x\r\n",
            b"X-1: 1\r\n" * 6,
            post(b""),
            post(CHUNKED, b"0\r\n\r\n"),
        ],
    ]
)
MESSY = st.lists(PIECES, max_size=12).map(b"".join) | st.binary(max_size=60)


@settings(max_examples=400, deadline=None)
@given(MESSY, st.lists(st.integers(0, 10_000), max_size=8))
def test_h2_any_bytes_give_messages_or_input_errors_and_the_split_does_not_matter(
    data: bytes, places: list[int]
) -> None:
    assert read_all(cut(data, places)) == read_all([data])


def test_h2_an_error_is_raised_for_ever() -> None:
    reader = ServerReader(LIMITS)
    reader.feed(b"nonsense\r\n")
    for _ in range(2):
        with pytest.raises(InputError):
            reader.head()
    reader.feed(post(b""))
    with pytest.raises(InputError):
        reader.head()
    with pytest.raises(InputError):
        reader.body()
    with pytest.raises(InputError):
        reader.eof()
    assert reader.buffered_bytes == 0


@pytest.mark.parametrize("end", range(1, len(post(b"Content-Length: 3\r\n", b"abc"))))
def test_h4_an_incomplete_message_is_never_a_message(end: int) -> None:
    data = post(b"Content-Length: 3\r\n", b"abc")[:end]
    assert read_all([data]) == ([], (MALFORMED, 400))


@pytest.mark.parametrize("data", [b"", b"\r\n", post(b""), post(b"") + b"\r\n"])
def test_eof_between_messages_is_not_an_error(data: bytes) -> None:
    assert read_all([data])[1] is None


def test_pipelined_requests_are_served_one_by_one_and_their_bytes_kept() -> None:
    reader = ServerReader(LIMITS)
    second = post(CHUNKED, b"3\r\nabc\r\n0\r\n\r\n")
    reader.feed(post(b"Content-Length: 2\r\n", b"hi") + second[:60])
    assert reader.head() is not None
    reader.begin_body(BODY_LIMIT)
    assert reader.body() == b"hi"
    assert reader.pending
    assert reader.seen == second[:60]
    reader.feed(second[60:])
    head = reader.head()
    assert head is not None and reader.chunked and reader.content_length is None
    reader.begin_body(BODY_LIMIT)
    assert reader.body() == b"abc"
    assert not reader.pending and reader.seen == b"" and reader.buffered_bytes == 0


def test_facts_of_the_head() -> None:
    reader = ServerReader(LIMITS)
    reader.feed(post(b"Expect: 100-continue\r\nContent-Length: 2\r\nConnection: Close\r\n"))
    reader.head()
    assert (reader.content_length, reader.chunked) == (2, False)
    assert reader.expects_continue and reader.wants_close
    reader.begin_body(BODY_LIMIT)
    assert reader.body() is None
    reader.feed(b"hi" + post(b"Expect: 100-continue\r\n"))
    assert reader.body() == b"hi"
    reader.head()
    assert not reader.expects_continue and not reader.wants_close, "no body to wait for, no close"


def test_the_body_is_refused_unless_begun_with_a_limit() -> None:
    reader = ServerReader(LIMITS)
    with pytest.raises(RuntimeError):
        reader.begin_body(BODY_LIMIT)
    reader.feed(post(b"Content-Length: 2\r\n", b"hi"))
    reader.head()
    with pytest.raises(RuntimeError):
        reader.body()


def test_seen_keeps_the_beginning_of_a_refused_message_up_to_64_kib() -> None:
    reader = ServerReader(Limits())
    reader.feed(b"GET / HTTP/1.1\r\nX: ")
    for _ in range(20):
        reader.feed(b"a" * 9999)
    with pytest.raises(InputError):
        reader.head()
    assert reader.seen.startswith(b"GET / HTTP/1.1\r\nX: aaa")
    assert len(reader.seen) == 65_536


def drip_seconds(length: int) -> float:
    reader = ServerReader(Limits(header_bytes=1_000_000))
    start = time.process_time()
    reader.feed(b"GET / HTTP/1.1\r\nX: ")
    for _ in range(length):
        reader.feed(b"a")
        reader.head()
    return time.process_time() - start


def test_hg3_dripped_input_costs_linear_work() -> None:
    # Sixteen times the input: quadratic work would cost 256 times as much.
    small = min(drip_seconds(2_000) for _ in range(3))
    large = min(drip_seconds(32_000) for _ in range(2))
    assert large < small * 80


# The client role.


def answer(
    *pieces: bytes, method: str = "POST", eof: bool = False
) -> tuple[int, bytes, int | None, bool, bool]:
    """(status, body, length, done, reusable) after all pieces."""
    reader = ClientReader(method, LIMITS)
    body = b""
    for piece in pieces:
        reader.feed(piece)
        if reader.head() is not None:
            body += reader.read()
    if eof:
        reader.eof()
    head = reader.head()
    return (0 if head is None else head.status), body, reader.length, reader.done, reader.reusable


OK = b"HTTP/1.1 200 OK\r\n"


ANSWERS: list[tuple[str, str, bytes, tuple[int, bytes, int | None, bool, bool]]] = [
    ("content-length", "POST", OK + b"Content-Length: 2\r\n\r\nhi", (200, b"hi", 2, True, True)),
    ("no reason", "GET", b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", (200, b"", 0, True, True)),
    (
        "chunked, in any case",
        "POST",
        OK + b"Transfer-Encoding: Chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
        (200, b"hi", None, True, True),
    ),
    (
        "chunk extensions and trailers are dropped",
        "POST",
        OK + CHUNKED + b"\r\n2;x=1\r\nhi\r\n0;y\r\nX-T: 1\r\nY: 2\r\n\r\n",
        (200, b"hi", None, True, True),
    ),
    ("HEAD", "HEAD", OK + b"Content-Length: 9\r\n\r\n", (200, b"", 9, True, True)),
    ("HEAD, chunked announced", "HEAD", OK + CHUNKED + b"\r\n", (200, b"", None, True, True)),
    ("204", "POST", b"HTTP/1.1 204 No\r\n\r\n", (204, b"", None, True, True)),
    ("304 with length", "GET", b"HTTP/1.1 304 N\r\nContent-Length: 7\r\n\r\n", (304, b"", 7, True, True)),
    (
        "connection close",
        "POST",
        OK + b"Content-Length: 2\r\nConnection: x, Close\r\n\r\nhi",
        (200, b"hi", 2, True, False),
    ),
    (
        "a second answer after the body is never read",
        "POST",
        OK + b"Content-Length: 2\r\n\r\nhiHTTP/1.1 200 OK\r\n",
        (200, b"hi", 2, True, False),
    ),
    ("body until close", "POST", OK + b"\r\nhello", (200, b"hello", None, False, False)),
    (
        "100 and 103 are dropped",
        "POST",
        b"HTTP/1.1 100 C\r\n\r\nHTTP/1.1 103 E\r\nLink: x\r\n\r\n" + OK + b"Content-Length: 0\r\n\r\n",
        (200, b"", 0, True, True),
    ),
    (
        "Latin-1 in an upstream's header",
        "POST",
        OK + b"X: caf\xe9\r\nContent-Length: 0\r\n\r\n",
        (200, b"", 0, True, True),
    ),
]


@pytest.mark.parametrize(
    ("data", "method", "expected"),
    [pytest.param(data, method, expected, id=name) for name, method, data, expected in ANSWERS],
)
def test_responses(data: bytes, method: str, expected: tuple[int, bytes, int | None, bool, bool]) -> None:
    assert answer(data, method=method) == expected
    assert answer(*[data[at : at + 1] for at in range(len(data))], method=method) == expected


BAD_ANSWERS = [
    pytest.param(OK + b"Content-Length: 2\r\n" + CHUNKED + b"\r\n", id="CL and TE"),
    pytest.param(OK + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nhi", id="CL twice"),
    pytest.param(OK + b"Content-Length: 2, 2\r\n\r\nhi", id="CL list"),
    pytest.param(OK + b"Content-Length: -2\r\n\r\nhi", id="CL negative"),
    pytest.param(OK + b"Content-Length:\r\n\r\nhi", id="CL empty"),
    pytest.param(OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n", id="TE gzip, chunked"),
    pytest.param(OK + b"Transfer-Encoding: xchunked\r\n\r\n", id="TE xchunked"),
    pytest.param(OK + CHUNKED + CHUNKED + b"\r\n", id="TE twice"),
    pytest.param(OK + b"X: a\r\n b\r\n\r\n", id="obs-fold"),
    pytest.param(b"HTTP/1.1 200 OK\nContent-Length: 0\n\n", id="bare LF"),
    pytest.param(OK + b"X: a\x00\r\n\r\n", id="NUL in a value"),
    pytest.param(OK + b"X: a\rb\r\n\r\n", id="bare CR in a value"),
    pytest.param(OK + b"X : a\r\n\r\n", id="space before the colon"),
    pytest.param(b"HTTP/1.0 200 OK\r\n\r\n", id="HTTP/1.0"),
    pytest.param(b"HTTP/2 200\r\n\r\n", id="HTTP/2 as text"),
    pytest.param(b"HTTP/1.1 600 X\r\n\r\n", id="status 600"),
    pytest.param(b"HTTP/1.1 099 X\r\n\r\n", id="status 099"),
    pytest.param(b"HTTP/1.1 20 X\r\n\r\n", id="status of two digits"),
    pytest.param(b"HTTP/1.1  200 OK\r\n\r\n", id="two spaces"),
    pytest.param(b"ICY 200 OK\r\n\r\n", id="another protocol"),
    pytest.param(b"\r\n" + OK + b"\r\n", id="empty line before the status line"),
    pytest.param(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: foo\r\n\r\n", id="101"),
    pytest.param(b"HTTP/1.1 102 Processing\r\n\r\n", id="102"),
    pytest.param(b"HTTP/1.1 100 Continue\r\nContent-Length: 2\r\n\r\nhi", id="100 with a body"),
    pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" * 9, id="nine times 100"),
    pytest.param(b"HTTP/1.1 204 No\r\nContent-Length: 2\r\n\r\nhi", id="204 with a body"),
    pytest.param(OK + b"X: " + b"a" * 2000, id="head without end"),
    pytest.param(OK + b"X: 1\r\n" * 11 + b"\r\n", id="too many headers"),
    pytest.param(OK + CHUNKED + b"\r\n2\r\nhiXX", id="chunk followed by XX"),
    pytest.param(OK + CHUNKED + b"\r\n2 \r\nhi", id="space after a chunk size"),
    pytest.param(OK + CHUNKED + b"\r\n0\r\nno colon\r\n\r\n", id="malformed trailer"),
    pytest.param(OK + CHUNKED + b"\r\n0\r\nContent-Length: 5\r\n\r\n", id="a length in the trailers"),
    pytest.param(OK + CHUNKED + b"\r\n0\r\nA: b\r\ntransfer-encoding:x\r\n\r\n", id="a coding in them"),
    pytest.param(OK + CHUNKED + b"\r\n0\r\nX: " + b"a" * 2100, id="trailer without end"),
    pytest.param(OK + CHUNKED + b"\r\n0\r\n" + b"X: 1\r\n" * 400, id="too many trailers"),
]


@pytest.mark.parametrize("data", BAD_ANSWERS)
def test_hc4_bad_responses_are_wire_errors_however_they_are_split(data: bytes) -> None:
    with pytest.raises(WireError):
        answer(data)
    with pytest.raises(WireError):
        answer(*[data[at : at + 1] for at in range(len(data))])


def test_hc1_only_a_final_answer_is_returned() -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\n"
    assert answer(interim * 8 + OK + b"Content-Length: 0\r\n\r\n")[0] == 200
    with pytest.raises(WireError):
        answer(interim * 9 + OK + b"Content-Length: 0\r\n\r\n")
    with pytest.raises(WireError):
        answer(b"HTTP/1.1 101 X\r\n\r\n" + OK + b"Content-Length: 0\r\n\r\n")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(OK + b"Content-Length: 3\r\n\r\nhi", id="content-length"),
        pytest.param(OK + CHUNKED + b"\r\n2\r\nhi\r\n", id="chunked, before the last chunk"),
        pytest.param(OK + CHUNKED + b"\r\n2\r\nhi\r\n0\r\n", id="chunked, before the last line"),
        pytest.param(OK + b"X: 1\r\n", id="head"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n", id="only an interim answer"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_hc3_a_cut_answer_is_not_complete(data: bytes) -> None:
    *_, done, reusable = answer(data)
    assert not done and not reusable
    with pytest.raises(WireError):
        answer(data, eof=True)


def test_a_body_without_length_ends_with_the_connection() -> None:
    assert answer(OK + b"\r\nhello", eof=True) == (200, b"hello", None, True, False)


def test_hc2_an_answer_that_ended_with_the_connection_is_not_reusable() -> None:
    assert answer(OK + b"Content-Length: 2\r\n\r\nhi", eof=True) == (200, b"hi", 2, True, False)
    assert answer(OK + b"Content-Length: 2\r\n\r\nhi", b"x")[4] is False


ANSWER_PIECES = st.sampled_from(
    [
        *[
            OK,
            b"HTTP/1.1 100 C\r\n\r\n",
            b"Content-Length: 2\r\n",
            CHUNKED,
            b"\r\n",
            b"hi",
            b"2\r\nhi\r\n",
            b"0\r\n",
        ],
        *[b"X: 1\r\n", b"\n", b"\x00", b"a" * 900, b";e", OK + CHUNKED + b"\r\n"],
    ]
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(ANSWER_PIECES, max_size=12).map(b"".join) | st.binary(max_size=60),
    st.lists(st.integers(0, 10_000), max_size=6),
)
def test_hg2_the_split_of_a_response_does_not_matter(data: bytes, places: list[int]) -> None:
    def outcome(pieces: Iterable[bytes]) -> object:
        try:
            return answer(*pieces)
        except WireError:
            return "refused"

    assert outcome(cut(data, places)) == outcome([data])


# The writers.


def test_writers_write_exactly_their_parts() -> None:
    headers = ((b"Host", b"api.ok.test"), (b"X-B", b"1"), (b"X-b", b"caf\xc3\xa9"), (b"Content-Length", b"2"))
    data = write_request("POST", b"/p?", headers, b"hi")
    assert data == (
        b"POST /p? HTTP/1.1\r\nHost: api.ok.test\r\nX-B: 1\r\nX-b: caf\xc3\xa9\r\nContent-Length: 2\r\n\r\nhi"
    )
    ((head, body),) = read_all([data])[0]
    assert (head.headers, body) == (headers, b"hi")
    assert write_response_head(403, b"Holdgate DENY", ((b"A", b"b"),)) == (
        b"HTTP/1.1 403 Holdgate DENY\r\nA: b\r\n\r\n"
    )
    assert write_response_head(204, b"", ()) == b"HTTP/1.1 204 \r\n\r\n"
    chunks = write_chunk(b"a" * 26) + LAST_CHUNK
    assert answer(OK + CHUNKED + b"\r\n" + chunks)[1] == b"a" * 26


@pytest.mark.parametrize("bad", [b"\r", b"\n", b"\r\n", b"\x00", b"\x7f", b"\r\nX: 1"])
def test_h5_writers_refuse_control_characters_in_any_part(bad: bytes) -> None:
    good = ((b"Host", b"a"),)
    for headers in (((b"Ho" + bad, b"a"),), ((b"Host", b"a" + bad),), (*good, (b"X", bad))):
        with pytest.raises(ValueError):
            write_request("GET", b"/", headers, b"")
        with pytest.raises(ValueError):
            write_response_head(200, b"OK", headers)
    for method, target in (("GET" + bad.decode(), b"/"), ("GET", b"/" + bad)):
        with pytest.raises(ValueError):
            write_request(method, target, good, b"")
    with pytest.raises(ValueError):
        write_response_head(200, b"OK" + bad, good)


@pytest.mark.parametrize(
    ("method", "target", "headers"),
    [
        ("", b"/", ()), ("G T", b"/", ()), ("M" * 33, b"/", ()), ("GET", b"", ()), ("GET", b"/a b", ()),
        ("GET", b"/#x", ()), ("GET", b"/", ((b"", b"x"),)), ("GET", b"/", ((b"a b", b"x"),)),
        ("GET", b"/", ((b"a:", b"x"),)), ("GET", b"/", ((b"a\xc3\xa9", b"x"),)),
    ],
)  # fmt: skip
def test_h5_writers_refuse_what_is_not_a_request(
    method: str, target: bytes, headers: tuple[tuple[bytes, bytes], ...]
) -> None:
    with pytest.raises(ValueError):
        write_request(method, target, headers, b"")


def test_h5_an_empty_chunk_is_refused_because_it_would_end_the_body() -> None:
    with pytest.raises(ValueError):
        write_chunk(b"")
    with pytest.raises(ValueError):
        write_response_head(99, b"", ())
