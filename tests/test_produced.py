"""produced.py: the id that an answer names, or nothing."""

from __future__ import annotations

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdgate.message import Headers, ResponseHead
from holdgate.produced import MAX_ANSWER_BYTES, object_id

JSON: Headers = ((b"Content-Type", b"application/json; charset=utf-8"),)
XML: Headers = ((b"content-type", b"text/xml"),)


def read(body: bytes, headers: Headers = JSON, *, status: int = 200, path: str = "id") -> str | None:
    return object_id(ResponseHead(status=status, reason=b"", headers=headers), body, tuple(path.split(".")))


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
        pytest.param(b'{"id":"' + b"a" * 256 + b'"}', JSON, 200, id="too long"),
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
    assert found is None or (1 <= len(found) <= 255 and found.isascii() and found.isprintable())
