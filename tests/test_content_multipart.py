"""content/multipart.py: MP1-MP4, and bodies as requests and httpx write them."""

from __future__ import annotations

import httpx
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from holdgate.content.mediatype import parse_media_type
from holdgate.content.multipart import Part, boundary_of, parse_multipart
from holdgate.errors import InputError, Reason

BAD = Reason.BAD_BODY
A = b'Content-Disposition: form-data; name="a"\r\n\r\n1'
B = b'Content-Disposition: form-data; name="b"\r\n\r\n2'


def body(*parts: bytes, end: bytes = b"--X--\r\n") -> bytes:
    return b"".join(b"--X\r\n" + part + b"\r\n" for part in parts) + end


def read(data: bytes, boundary: str = "X") -> tuple[Part, ...] | Reason:
    try:
        return parse_multipart(data, boundary=boundary)
    except InputError as error:
        return error.reason


def test_what_requests_and_httpx_write_is_read() -> None:
    files = {"file": ("a.txt", b"\r\n--x\0", "text/plain")}
    r = requests.Request("POST", "http://h.test/", files=files, data={"purpose": "x"}).prepare()
    h = httpx.Request("POST", "http://h.test/", files=files, data={"purpose": "x"})
    assert isinstance(r.body, bytes)
    for content_type, data in ((r.headers["Content-Type"], r.body), (h.headers["content-type"], h.read())):
        boundary = boundary_of(parse_media_type(content_type)[1])
        assert parse_multipart(data, boundary=boundary) == (
            Part(name="purpose", filename=None, content_type=None, data=b"x"),
            Part(name="file", filename="a.txt", content_type="text/plain", data=b"\r\n--x\0"),
        )


def test_boundary_must_be_named() -> None:
    with pytest.raises(InputError):
        boundary_of((("charset", "utf-8"),))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"--X--\r\n", id="no part"),
        pytest.param(b"hello\r\n" + body(A), id="preamble"),
        pytest.param(body(A) + b"more", id="epilogue"),
        pytest.param(body(A, end=b""), id="no end"),
        pytest.param(body(A, end=b"--X--\n"), id="LF at the end"),
        pytest.param(body(A).replace(b"\r\n", b"\n"), id="LF only"),
        pytest.param(body(A, b"--X\r\n" + B), id="delimiter twice"),
        pytest.param(body(A + b"\n--X\r\n" + B), id="delimiter after a bare LF"),
        pytest.param(body(A + b" --X "), id="delimiter inside data"),
        pytest.param(b"--X \r\n" + A + b"\r\n--X--", id="padding after the delimiter"),
        pytest.param(body(A + b"\r\n--XY\r\n" + B), id="delimiter with a longer name"),
        pytest.param(body(b""), id="part without headers"),
        pytest.param(body(b"\r\n\r\n1"), id="part with an empty head"),
        pytest.param(body(b"a: " + b"b" * 5000 + b"\r\n\r\n1"), id="head too large"),
    ],
)
def test_mp1_framing_has_one_reading(data: bytes) -> None:
    assert read(data) is BAD


@pytest.mark.parametrize("boundary", ["", "a b", "x" * 71, "ä", 'a"', "a\r\n"])
def test_mp1_a_malformed_boundary_is_refused(boundary: str) -> None:
    assert read(body(A), boundary) is BAD


def test_mp1_either_end_of_the_last_line_is_read() -> None:
    assert read(body(A, end=b"--X--")) == read(body(A)) != BAD
    assert read(body(A, end=b"--X--\r\n\r\n")) == read(body(A)), "form-data-encoder (got) writes it so"


def test_mp2_names_are_unique_unless_the_caller_says_so() -> None:
    twice = body(A, A)
    assert read(twice) is Reason.DUPLICATE_PARAMETER
    assert [part.name for part in parse_multipart(twice, boundary="X", repeat=frozenset({"a"}))] == ["a", "a"]
    listed = body(A.replace(b'"a"', b'"a[]"'), A.replace(b'"a"', b'"a[]"'))
    assert [part.name for part in parse_multipart(listed, boundary="X")] == ["a[]", "a[]"]


@pytest.mark.parametrize(
    "disposition",
    [
        "form-data; name=a",
        "form-data; name*=utf-8''b; name=\"a\"",
        "form-data; name=\"a\"; name*=utf-8''b",
        'form-data; name="a"; name="b"',
        'form-data; name="a"; filename="x"; filename="y"',
        "form-data; name=\"a\"; filename*=utf-8''x",
        'form-data; filename="x"',
        'form-data; name=""',
        "form-data; name='a'",
        'Form-Data; name="a"',
        'attachment; name="a"',
        'form-data; name="a";',
        'form-data;name="a" ; x=y',
    ],
)
def test_mp2_a_part_has_exactly_one_quoted_name(disposition: str) -> None:
    assert read(body(b"Content-Disposition: " + disposition.encode() + b"\r\n\r\n1")) is BAD


def test_mp2_the_disposition_stands_once() -> None:
    line = b'Content-Disposition: form-data; name="a"\r\n'
    assert read(body(line + line + b"\r\n1")) is BAD
    assert read(body(b"Content-Type: text/plain\r\n\r\n1")) is BAD


@pytest.mark.parametrize("name", ['a\\"b', "a\\\\b", "a%22b", "a%0d%0Ab", "a%0Ab"])
def test_mp3_names_with_an_escape_are_refused(name: str) -> None:
    assert read(body(f'Content-Disposition: form-data; name="{name}"\r\n\r\n1'.encode())) is BAD
    assert read(body(f'Content-Disposition: form-data; name="a"; filename="{name}"\r\n\r\n1'.encode())) is BAD


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("Content-Transfer-Encoding: base64", BAD),
        ("Content-Type: multipart/mixed; boundary=Y", BAD),
        ("Content-Type: message/rfc822", BAD),
        ("Content-Type: text/plain; charset=utf-16", Reason.UNSUPPORTED_CONTENT),
        ("Content-Type: text", Reason.MALFORMED_REQUEST),
        ("X-Other: 1", BAD),
        ("Content-Length: 2", BAD),
        ("Content-Type : text/plain", BAD),
    ],
)
def test_mp4_a_part_is_plain(header: str, reason: Reason) -> None:
    assert read(body(header.encode() + b"\r\n" + A)) is reason


@pytest.mark.parametrize("coding", ["7bit", "8bit", "binary"])
def test_mp4_a_transfer_encoding_that_is_none_changes_nothing(coding: str) -> None:
    assert read(body(f"Content-Transfer-Encoding: {coding}\r\n".encode() + A)) == read(body(A)) != BAD


def test_mp4_charset_parts_are_refused() -> None:
    data = body(b'Content-Disposition: form-data; name="_charset_"\r\n\r\nutf-7', A)
    assert read(data) is Reason.UNSUPPORTED_CONTENT


def test_a_right_content_length_is_accepted() -> None:
    assert read(body(b"Content-Length: 1\r\n" + A)) == read(body(A))


@given(
    st.lists(
        st.tuples(
            st.text(
                st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters='"\\%'),
                min_size=1,
            ).filter(lambda name: name.lower() != "_charset_"),  # refused: MP4
            st.binary().filter(lambda data: b"--BOUNDARY" not in data),
        ),
        min_size=1,
        max_size=4,
        unique_by=lambda part: part[0],
    )
)
def test_written_parts_are_read_back(parts: list[tuple[str, bytes]]) -> None:
    data = b"".join(
        b'--BOUNDARY\r\nContent-Disposition: form-data; name="'
        + name.encode()
        + b'"\r\n\r\n'
        + value
        + b"\r\n"
        for name, value in parts
    )
    result = parse_multipart(data + b"--BOUNDARY--\r\n", boundary="BOUNDARY")
    assert [(part.name, part.data) for part in result] == parts


@given(
    st.lists(
        st.sampled_from([b"--X", b"--", b"\r\n", b"\n", A, b"Content-Disposition", b":", b'"', b"\xff", b";"])
    )
)
def test_only_our_errors_leave_the_parser(pieces: list[bytes]) -> None:
    assert isinstance(read(b"".join(pieces)), (tuple, Reason))


def test_too_many_parts_are_refused_before_they_are_read() -> None:
    assert read(body(*[A] * 1001)) is Reason.TOO_LARGE
