"""content/related.py: MR1 and MR2, as tables; the framing is test_content_multipart.py's."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdgate.content.related import parse_related
from holdgate.errors import InputError, Reason

META = b'Content-Type: application/json; charset=UTF-8\r\n\r\n{"name": "a"}'
MEDIA = b"Content-Type: text/csv\r\n\r\na,b\n"


def body(*parts: bytes, end: bytes = b"--X--\r\n") -> bytes:
    return b"".join(b"--X\r\n" + part + b"\r\n" for part in parts) + end


def read(data: bytes) -> object:
    try:
        return parse_related(data, boundary="X")
    except InputError as error:
        return error.reason


def test_mr1_metadata_and_what_identifies_the_medium() -> None:
    digest = hashlib.sha256(b"a,b\n").hexdigest()
    about = {"content_type": "text/csv", "bytes": 4, "sha256": f"sha256:{digest}"}
    found = {"metadata": {"name": "a"}, "media": about}
    assert read(body(META, MEDIA)) == read(body(META, MEDIA, end=b"--X--")) == found
    assert read(body(META, b"MIME-Version: 1.0\r\nContent-Transfer-Encoding: binary\r\n" + MEDIA)) == found


@given(st.binary(max_size=30))
def test_mr1_every_byte_of_the_medium_is_in_its_digest(data: bytes) -> None:
    if b"--X" not in data:
        found = parse_related(body(META, b"Content-Type: a/b\r\n\r\n" + data), boundary="X")
        assert found["media"]["sha256"] == "sha256:" + hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(body(META), id="no medium"),
        pytest.param(body(META, MEDIA, MEDIA), id="two media"),
        pytest.param(body(MEDIA, META), id="the medium first"),
        pytest.param(b"x\r\n" + body(META, MEDIA), id="preamble"),
        pytest.param(body(META, MEDIA) + b"x", id="epilogue"),
        pytest.param(body(META, MEDIA).replace(b"\r\n", b"\n"), id="LF only"),
        pytest.param(body(META.replace(b'"a"', b'"a", "name": "b"'), MEDIA), id="a name twice"),
    ],
)
def test_mr1_what_is_not_two_parts_with_json_first_is_refused(data: bytes) -> None:
    assert read(data) in (Reason.BAD_BODY, Reason.DUPLICATE_PARAMETER)


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Transfer-Encoding: base64",
        b"Content-Transfer-Encoding: quoted-printable",
        b"Content-Encoding: gzip",
        b"Content-Disposition: attachment",
        b"MIME-Version: 1.1",
        b"Content-Length: 3",
    ],
)
def test_mr2_a_header_that_could_change_the_bytes_is_refused(head: bytes) -> None:
    assert read(body(META, head + b"\r\n" + MEDIA)) is Reason.BAD_BODY


def test_mr2_a_part_says_what_it_is() -> None:
    assert read(body(META, b"X: 1\r\n\r\na")) is Reason.BAD_BODY
    assert read(body(b'MIME-Version: 1.0\r\n\r\n{"name": "a"}', MEDIA)) is Reason.BAD_BODY
