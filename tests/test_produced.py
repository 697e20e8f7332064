"""produced.py: the id that an answer names, or nothing."""

from __future__ import annotations

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdgate.message import Headers, ResponseHead
from holdgate.produced import MAX_ANSWER_BYTES, object_id
from holdgate.surface.model import Produces

JSON: Headers = ((b"Content-Type", b"application/json; charset=utf-8"),)
XML: Headers = ((b"content-type", b"text/xml"),)


HERE = "up.test:443"
WEEK = 604_800


def read(body: bytes, headers: Headers = JSON, *, status: int = 200, path: str = "id") -> str | None:
    produces = Produces(map="m", path=tuple(path.split(".")), ttl_s=WEEK)
    return object_id(ResponseHead(status=status, reason=b"", headers=headers), body, produces, HERE)


def located(
    *urls: bytes, status: int = 200, destination: str = HERE, form: str = "url_query.upload_id"
) -> str | None:
    head = ResponseHead(status=status, reason=b"", headers=tuple((b"Location", url) for url in urls))
    produces = Produces(map="m", path=(), ttl_s=WEEK, header="location", form=form)
    return object_id(head, b"", produces, destination)


@pytest.mark.parametrize(
    ("body", "headers", "path", "found"),
    [
        pytest.param(b'{"id":"pi_1"}', JSON, "id", "pi_1", id="JSON"),
        pytest.param(b'{"data":{"id":"run-1"}}', JSON, "data.id", "run-1", id="deeper"),
        pytest.param(b'{"id":42}', JSON, "id", "42", id="a number"),
        pytest.param(
            b'{"id":"a"}', ((b"content-type", b"application/vnd.api+json"),), "id", "a", id="a kind of JSON"
        ),
        pytest.param(
            gzip.compress(b'{"id":"pi_1"}'), (*JSON, (b"Content-Encoding", b"gzip")), "id", "pi_1", id="gzip"
        ),
        pytest.param(b"<R><S><Id>arn:1</Id></S></R>", XML, "R.S.Id", "arn:1", id="XML"),
        pytest.param(
            b'<?xml version="1.0" encoding="UTF-8"?>\n<R xmlns="urn:x"><Id>u</Id></R>',
            XML,
            "R.Id",
            "u",
            id="ns",
        ),
    ],
)
def test_an_answer_names_its_object(body: bytes, headers: Headers, path: str, found: str) -> None:
    assert read(body, headers, path=path) == found


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        pytest.param(b'{"id":"a"}', JSON, 302, id="no success"),
        pytest.param(b'{"id":"a"}', JSON, 304, id="an answer without a body of its own"),
        pytest.param(b'{"id":"a"}', (), 200, id="no type"),
        pytest.param(b'{"id":"a"}', (*JSON, *JSON), 200, id="two types"),
        pytest.param(b'{"id":"a"}', ((b"Content-Type", b"text/plain"),), 200, id="another type"),
        pytest.param(b'{"id":"a"}', ((b"Content-Type", b"\xff"),), 200, id="a type that is none"),
        pytest.param(b'{"id":"a"}', (*JSON, (b"Content-Encoding", b"deflate")), 200, id="another coding"),
        pytest.param(b'{"id":"a"}', (*JSON, (b"Content-Encoding", b"gzip")), 200, id="not that coding"),
        pytest.param(
            gzip.compress(b'{"id":"a","x":"' + b"y" * MAX_ANSWER_BYTES + b'"}'),
            (*JSON, (b"Content-Encoding", b"gzip")),
            200,
            id="too large without its coding",
        ),
        pytest.param(b'{"id":"a"}' + b" " * MAX_ANSWER_BYTES, JSON, 200, id="too large"),
        pytest.param(b'{"id":"a","id":"b"}', JSON, 200, id="a name twice"),
        pytest.param(b'{"id":"a"', JSON, 200, id="cut"),
        pytest.param(b'["a"]', JSON, 200, id="a list"),
        pytest.param(b'{"id":["a"]}', JSON, 200, id="a list of ids"),
        pytest.param(b'{"id":{"id":"a"}}', JSON, 200, id="a record"),
        pytest.param(b'{"id":null}', JSON, 200, id="null"),
        pytest.param(b'{"id":true}', JSON, 200, id="true"),
        pytest.param(b'{"id":1.5}', JSON, 200, id="a fraction"),
        pytest.param(b'{"id":""}', JSON, 200, id="empty"),
        pytest.param(b'{"id":"a b"}', JSON, 200, id="with a space"),
        pytest.param('{"id":"é"}'.encode(), JSON, 200, id="not ASCII"),
        pytest.param(b'{"id":"' + b"a" * 1025 + b'"}', JSON, 200, id="too long"),
        pytest.param(b"<id>a</id><id>b</id>", XML, 200, id="no XML"),
        pytest.param(b"<r><id>a</id><id>b</id></r>", XML, 200, id="XML with two"),
    ],
)
def test_pd2_what_is_not_plain_names_nothing(body: bytes, headers: Headers, status: int) -> None:
    assert read(body, headers, status=status) is None
    assert read(body, headers, status=status, path="r.id") is None


@given(
    body=st.one_of(st.binary(max_size=60), st.sampled_from([b'{"id":"x"}', b"<id>x</id>", b"[[[["])),
    kind=st.sampled_from([b"application/json", b"text/xml", b"", b"a/b", b"\xff", b"application/json; q"]),
    coding=st.sampled_from([b"", b"gzip", b"br", b"zstd", b"x", b"\xff"]),
    status=st.sampled_from([200, 204, 500]),
    path=st.sampled_from(["id", "a.b"]),
)
def test_pd1_object_id_is_total(body: bytes, kind: bytes, coding: bytes, status: int, path: str) -> None:
    headers = tuple((n, v) for n, v in ((b"content-type", kind), (b"content-encoding", coding)) if v)
    found = read(body, headers, status=status, path=path)
    assert found is None or (1 <= len(found) <= 1024 and found.isascii() and found.isprintable())


@pytest.mark.parametrize(
    ("url", "found"),
    [
        pytest.param(b"https://up.test/u?uploadType=resumable&upload_id=X-_1", "X-_1", id="plain"),
        pytest.param(b"https://up.test/u?upload_id=" + b"a" * 1024, "a" * 1024, id="a long one"),
        pytest.param(b"HTTPS://UP.test:443/u?upload_id=X", "X", id="the port, capitals"),
        pytest.param(b"https://up.test/u?upload_id=a%2Bb%3D%3d", "a+b==", id="escaped: as it will be read"),
        pytest.param(b"https://up.test/u?upload%5fid=X", "X", id="an escaped name is the name"),
        pytest.param(b"https://up.test/u?name=upload_id&upload_id=X", "X", id="a value is no name"),
    ],
)
def test_a_url_names_its_object(url: bytes, found: str) -> None:
    assert located(url) == found


@pytest.mark.parametrize(
    "url",
    [
        pytest.param(b"https://evil.test/u?upload_id=X", id="another host"),
        pytest.param(b"https://up.test.evil.test/u?upload_id=X", id="a host that begins so"),
        pytest.param(b"https://up.test:8443/u?upload_id=X", id="another port"),
        pytest.param(b"https://up.test:/u?upload_id=X", id="an empty port"),
        pytest.param(b"https://up.test./u?upload_id=X", id="a host with a dot"),
        pytest.param(b"https://me@up.test/u?upload_id=X", id="user"),
        pytest.param(b"https://up.test:443@evil.test/u?upload_id=X", id="the host as user"),
        pytest.param(b"https://evil.test\\@up.test/u?upload_id=X", id="a backslash"),
        pytest.param(b"https://up.test\\u?upload_id=X", id="a backslash for a slash"),
        pytest.param(b"http://up.test/u?upload_id=X", id="http"),
        pytest.param(b"//up.test/u?upload_id=X", id="no scheme"),
        pytest.param(b"/u?upload_id=X", id="relative"),
        pytest.param(b"https://up.test?upload_id=X", id="no path"),
        pytest.param(b"https://up.test/u?upload_id=X#f", id="a fragment"),
        pytest.param(b"https://up.test/u#?upload_id=X", id="in the fragment"),
        pytest.param(b"https://up.test/u?upload_id=X&upload_id=X", id="twice"),
        pytest.param(b"https://up.test/u?upload_id=X&upload%5Fid=Y", id="twice, once escaped"),
        pytest.param(b"https://up.test/u?Upload_Id=X", id="another name"),
        pytest.param(b"https://up.test/u?upload_id", id="no value"),
        pytest.param(b"https://up.test/u?upload_id=", id="an empty value"),
        pytest.param(b"https://up.test/u", id="no query"),
        pytest.param(b"https://up.test/u?upload_id=X%", id="a bad escape"),
        pytest.param(b"https://up.test/u?upload_id=X%00", id="NUL"),
        pytest.param(b"https://up.test/u?upload_id=a+b", id="a space"),
        pytest.param(b"https://up.test/u?upload_id=%C3%A9", id="not ASCII"),
        pytest.param(b"https://up.test/\xc3\xa9?upload_id=X", id="bytes"),
        pytest.param(b"https://up.test/u?upload_id=X ", id="a space behind"),
        pytest.param(b"https://up.test/a//b?upload_id=X", id="no canonical path"),
        pytest.param(b"https://up.test/a/../b?upload_id=X", id="dots"),
        pytest.param(b"https://up.test/u?upload_id=" + b"a" * 1025, id="too long"),
        pytest.param(b"X", id="no URL"),
        pytest.param(b"", id="empty"),
    ],
)
def test_pd3_a_url_that_is_not_plain_names_nothing(url: bytes) -> None:
    assert located(b"https://up.test/u?upload_id=X") == "X"
    assert located(url) is None


def test_pd3_an_answer_without_one_such_header_names_nothing() -> None:
    url = b"https://up.test/u?upload_id=X"
    assert located() is None
    assert located(url, url) is None
    assert located(url, status=308) is None
    assert located(url, destination="up.test:8443") is None


def test_a_url_in_a_body_and_an_id_in_a_header() -> None:
    head = ResponseHead(status=200, reason=b"", headers=(*JSON, (b"X-Id", b"x1")))
    inside = Produces(map="m", path=("url",), ttl_s=WEEK, form="url_query.t")
    assert object_id(head, b'{"url":"https://up.test/u?t=1"}', inside, HERE) == "1"
    assert object_id(head, b'{"url":7}', inside, HERE) is None
    assert object_id(head, b"{", Produces(map="m", path=(), ttl_s=WEEK, header="x-id"), HERE) == "x1"


@given(
    url=st.one_of(
        st.binary(max_size=80), st.from_regex(rb"https://up\.test(:443)?/[ -~]{0,40}", fullmatch=True)
    )
)
def test_pd1_a_url_is_an_id_or_none(url: bytes) -> None:
    found = located(url)
    assert found is None or (1 <= len(found) <= 1024 and found.isascii() and found.isprintable())


@pytest.mark.parametrize(
    ("url", "found"),
    [
        pytest.param("https://up.test/upload/v1/CwAB", "CwAB", id="plain"),
        pytest.param("https://up.test/upload/a%3Db", "a=b", id="escaped: as it will be read"),
        pytest.param("https://up.test/upload/", None, id="an empty one"),
        pytest.param("https://up.test/upload/x?y=1", None, id="a query behind it"),
        pytest.param("https://up.test/upload/x?", None, id="an empty query"),
        pytest.param("https://up.test/upload/a%2Fb%00", None, id="NUL"),
        pytest.param("https://up.test/upload/..", None, id="dots"),
        pytest.param("https://evil.test/upload/x", None, id="another host"),
    ],
)
def test_pd3_the_last_segment_of_a_url(url: str, found: str | None) -> None:
    assert located(url.encode(), form="url_last_segment") == found
