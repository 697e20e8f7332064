"""surface/exchange.py: which decoder reads a body, and how much of it."""

from __future__ import annotations

import base64
import gzip
import hashlib
import zlib

import pytest

from holdgate.canonical import CanonicalRequest
from holdgate.errors import InputError, Reason
from surface_requests import FORM, JSON, index_of, params, recognise, request, shared_index

INDEX = shared_index()


def reason_of(canonical: CanonicalRequest) -> Reason | None:
    try:
        recognise(INDEX, canonical)
    except InputError as error:
        return error.reason
    return None


GOOD = b"charge=ch_1"


@pytest.mark.parametrize(
    ("headers", "body", "expected"),
    [
        pytest.param(FORM, GOOD, None, id="as declared"),
        pytest.param(
            {"Content-Type": "application/x-www-form-urlencoded; charset=UTF-8"}, GOOD, None, id="UTF-8"
        ),
        pytest.param(
            {"Content-Type": "application/json"}, GOOD, Reason.UNSUPPORTED_CONTENT, id="another type"
        ),
        pytest.param({}, GOOD, Reason.UNSUPPORTED_CONTENT, id="no type"),
        pytest.param({**FORM, "Content-Encoding": "gzip"}, gzip.compress(GOOD), None, id="declared coding"),
        pytest.param({**FORM, "Content-Encoding": "gzip"}, GOOD, Reason.BAD_BODY, id="not really gzip"),
        pytest.param(
            {**FORM, "Content-Encoding": "br"}, GOOD, Reason.UNSUPPORTED_CONTENT, id="undeclared coding"
        ),
        pytest.param(FORM, b"", Reason.MISSING_PARAMETER, id="an empty form is an empty record"),
        pytest.param(FORM, b"=x", Reason.BAD_BODY, id="not a form"),
    ],
)
def test_sm13_a_body_is_read_as_declared_or_refused(
    headers: dict[str, str], body: bytes, expected: Reason | None
) -> None:
    assert reason_of(request("/v1/refunds", headers=headers, body=body)) == expected


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_sm13_get_and_delete_take_no_body_unless_the_operation_says_so(method: str) -> None:
    host, target = ("api.pay.test", "/v1/refunds") if method == "GET" else ("b.store.test", "/k")
    assert reason_of(request(target, method=method, host=host)) is None
    assert reason_of(request(target, method=method, host=host, headers=FORM, body=b"a=b")) == Reason.BAD_BODY


def test_sm13_json_needs_a_body_unless_it_is_optional() -> None:
    rpc = {"Content-Type": "application/x-amz-json-1.0", "X-Amz-Target": "T.Put"}
    assert reason_of(request("/", host="rpc.eu.cloud.test", headers=rpc)) == Reason.BAD_BODY
    assert reason_of(request("/api/const", host="chat.test")) is None
    assert reason_of(request("/api/const", host="chat.test", headers=JSON, body=b"")) is None


def test_sm13_one_of_several_decoders_is_chosen_by_type() -> None:
    as_json = request(
        "/api/chat.post", host="chat.test", headers=JSON, body=b'{"channel":"C","blocks":[{"a":1.50}]}'
    )
    as_form = request(
        "/api/chat.post", host="chat.test", headers=FORM, body=b"channel=C&blocks=%5B%7B%22a%22:1.50%7D%5D"
    )
    as_query = request(
        "/api/chat.post?channel=C&blocks=%5B%7B%22a%22:1.50%7D%5D", method="GET", host="chat.test"
    )
    found = [params(recognise(INDEX, canonical)) for canonical in (as_json, as_form, as_query)]
    assert found == [{"channel": "C", "blocks": '[{"a":1.50}]'}] * 3
    text = request("/api/chat.post", host="chat.test", headers={"Content-Type": "text/plain"}, body=b"x")
    assert reason_of(text) == Reason.UNSUPPORTED_CONTENT


@pytest.mark.parametrize("value", ["[1", "%5B1,%5D", ""])
def test_sm13_json_in_a_form_is_strict_json(value: str) -> None:
    body = f"channel=C&blocks={value}".encode()
    assert reason_of(request("/api/chat.post", host="chat.test", headers=FORM, body=body)) == Reason.BAD_BODY


def test_sm13_json_in_a_string_of_a_json_body_is_what_it_holds() -> None:
    """A vendor that takes such a field as JSON in a form takes it as a string in JSON as well."""
    body = rb'{"channel":"C","blocks":"[{\"b\": \"\\u003c!here\", \"a\" : 1.50}]"}'
    found = recognise(INDEX, request("/api/chat.post", host="chat.test", headers=JSON, body=body))
    assert params(found) == {"channel": "C", "blocks": '[{"a":1.50,"b":"<!here"}]'}


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (JSON, rb'{"channel":"C","blocks":"[1"}'),
        (JSON, rb'{"channel":"C","blocks":"\"[]\""}'),
        (FORM, b"channel=C&blocks=%22[]%22"),
    ],
    ids=["not JSON", "a text in a text", "a text in a form"],
)
def test_sm13_json_in_a_string_is_strict_and_not_a_string_again(headers: dict[str, str], body: bytes) -> None:
    assert (
        reason_of(request("/api/chat.post", host="chat.test", headers=headers, body=body)) == Reason.BAD_BODY
    )


def test_sm13_a_charset_other_than_utf_8_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        headers = {"Content-Type": "application/json; charset=utf-16"}
        recognise(INDEX, request("/api/chat.post", host="chat.test", headers=headers, body=b"{}"))
    assert caught.value.reason is Reason.UNSUPPORTED_CONTENT


def test_sm13_xml_without_a_type_is_read_where_the_map_says_absent() -> None:
    body = b'<Delete xmlns="u"><Object><Key>k</Key></Object></Delete>'
    assert reason_of(request("/?delete", host="b.store.test", body=body)) is None
    headers = {"Content-Type": "text/xml"}
    assert (
        reason_of(request("/?delete", host="b.store.test", headers=headers, body=body))
        == Reason.UNSUPPORTED_CONTENT
    )


def test_sm13_an_opaque_body_is_known_by_digest_and_size() -> None:
    found = recognise(INDEX, request("/a/b", method="PUT", host="b.store.test", body=b"hello"))
    digest = "sha256:" + hashlib.sha256(b"hello").hexdigest()
    assert params(found) == {"bucket": "b", "key": "a/b", "size": 5, "sha": digest}
    empty = params(recognise(INDEX, request("/a", method="PUT", host="b.store.test")))
    assert (empty["size"], empty["sha"]) == (0, "sha256:" + hashlib.sha256(b"").hexdigest())


@pytest.mark.parametrize(
    "said", [True, False], ids=["said by Content-Encoding", "said by the payload hash alone"]
)
def test_sm13_aws_chunked_is_decoded_before_it_is_measured(said: bool) -> None:
    headers = ({"Content-Encoding": "aws-chunked"} if said else {}) | {
        "X-Amz-Content-SHA256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
        "X-Amz-Trailer": "x-amz-checksum-crc32",
        "X-Amz-Decoded-Content-Length": "5",
    }
    body = b"5\r\nhello\r\n0\r\nx-amz-checksum-crc32:NhCmhg==\r\n\r\n"
    found = params(
        recognise(INDEX, request("/k", method="PUT", host="b.store.test", headers=headers, body=body))
    )
    assert (found["size"], found["sha"]) == (5, "sha256:" + hashlib.sha256(b"hello").hexdigest())


def part(name: str, data: str, *, file: str | None = None, kind: str | None = None) -> str:
    disposition = f'form-data; name="{name}"' + (f'; filename="{file}"' if file else "")
    typed = f"Content-Type: {kind}\r\n" if kind else ""
    return f"--B\r\nContent-Disposition: {disposition}\r\n{typed}\r\n{data}\r\n"


def upload(*parts: str) -> CanonicalRequest:
    headers = {"Content-Type": "multipart/form-data; boundary=B"}
    return request(
        "/api/upload", host="chat.test", headers=headers, body=("".join(parts) + "--B--\r\n").encode()
    )


def test_sm13_parts_are_fields_and_files_are_digests() -> None:
    found = params(recognise(INDEX, upload(part("title", "T"), part("file", "data", file="a.txt"))))
    digest = "sha256:" + hashlib.sha256(b"data").hexdigest()
    assert found == {"title": "T", "name": "a.txt", "files": (digest,)}


@pytest.mark.parametrize(
    ("canonical", "expected"),
    [
        pytest.param(
            upload(part("file", "d", file="a"), part("file", "e", file="b")),
            Reason.DUPLICATE_PARAMETER,
            id="twice",
        ),
        pytest.param(
            upload(part("file", "d", file="a"), part("x", "1")), Reason.UNKNOWN_PARAMETER, id="unknown part"
        ),
        pytest.param(upload(part("title", "T")), Reason.MISSING_PARAMETER, id="no file"),
        pytest.param(
            upload(part("title", "{}", kind="application/json"), part("file", "d", file="a")),
            Reason.PARAMETER_TYPE,
            id="a text of another type",
        ),
    ],
)
def test_parts_that_nobody_declared_are_refused(canonical: CanonicalRequest, expected: Reason) -> None:
    assert reason_of(canonical) == expected


@pytest.mark.parametrize(
    ("coded", "size", "expected"),
    [
        pytest.param(False, 4096, None, id="exactly the limit"),
        pytest.param(False, 4097, Reason.TOO_LARGE, id="one byte more"),
        pytest.param(True, 4096, None, id="decoded, exactly the limit"),
        pytest.param(True, 4097, Reason.TOO_LARGE, id="decoded, one byte more"),
    ],
)
def test_sm14_both_sizes_are_bounded(coded: bool, size: int, expected: Reason | None) -> None:
    body = b"charge=" + b"c" * (size - 7)
    headers = {**FORM, "Content-Encoding": "gzip"} if coded else FORM
    canonical = request("/v1/refunds", headers=headers, body=gzip.compress(body) if coded else body)
    assert reason_of(canonical) == expected


def test_sm14_the_callers_bound_holds_where_a_map_has_none() -> None:
    index = index_of(
        "hosts: [a.test]\noperations:\n"
        "  - {id: A, match: {method: POST, path: /a}, surface: data.write, effect: commit,"
        " body: {decode: opaque}}\n"
        "  - {id: B, match: {method: POST, path: /b}, surface: data.write, effect: commit,"
        " body: {decode: opaque, max: 2MiB}}"
    )
    body = b"x" * 2000
    with pytest.raises(InputError) as caught:
        index.recognise(request("/a", host="a.test", body=body), fleet_key=b"k", body_bytes=1999)
    assert caught.value.reason is Reason.TOO_LARGE
    assert index.recognise(request("/b", host="a.test", body=body), fleet_key=b"k", body_bytes=1999).actions
    assert index.body_limit("a.test", 443, "https", 1000, 10_000_000) == 2 * 1024 * 1024
    assert index.body_limit("a.test", 443, "https", 1000, 5000) == 5000
    assert index.body_limit("other.test", 443, "https", 1000, 5000) == 1000
    assert INDEX.body_limit("b.store.test", 443, "https", 1_000_000, 10**9) == 64 * 1024


LISTS = """
hosts: [files.test]
operations:
- id: send
  match: {method: POST, path: /send}
  surface: files.send
  effect: commit
  body: {decode: multipart}
  params: {tags: {from: "body.tag[]", type: list<string>}}
"""


def parts_to(*parts: str) -> CanonicalRequest:
    headers = {"Content-Type": "multipart/form-data; boundary=B"}
    data = ("".join(parts) + "--B--\r\n").encode()
    return request("/send", host="files.test", headers=headers, body=data)


def test_sm13_a_part_with_brackets_is_an_item_of_a_list_as_in_a_form() -> None:
    recognised = recognise(index_of(LISTS), parts_to(part("tag[]", "a"), part("tag[]", "b")))
    assert params(recognised) == {"tags": ("a", "b")}


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param((part("tag[]", "a"), part("tag", "b")), id="then a value"),
        pytest.param((part("tag", ""), part("tag[]", "b")), id="after an empty value"),
    ],
)
def test_sm13_a_part_is_a_value_or_a_list_not_both(parts: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as caught:
        recognise(index_of(LISTS), parts_to(*parts))
    assert caught.value.reason is Reason.DUPLICATE_PARAMETER


STORE = """
hosts: ["{bucket}.s3.test"]
defaults:
  body: {decode: opaque, content_codings: CODINGS, max: 1MiB}
  ignore: [host.bucket]
  headers: [x-amz-content-sha256]
operations:
- id: put
  match: {method: PUT, path: "/{key+}"}
  surface: data.write
  effect: commit
  params:
    key: {from: path.key, type: string}
    size: {from: raw.bytes, type: int}
"""
CHUNKED = {
    "X-Amz-Content-SHA256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
    "X-Amz-Trailer": "x-amz-checksum-crc32",
    "X-Amz-Sdk-Checksum-Algorithm": "CRC32",
}


def framed(data: bytes) -> bytes:
    checksum = base64.b64encode(zlib.crc32(data).to_bytes(4, "big"))
    return b"%x\r\n%s\r\n0\r\nx-amz-checksum-crc32:%s\r\n\r\n" % (len(data), data, checksum)


def stored(headers: dict[str, str], body: bytes, codings: str = "[gzip, aws-chunked]") -> object:
    index = index_of(STORE.replace("CODINGS", codings))
    try:
        asked = request("/k", method="PUT", host="b.s3.test", headers=headers, body=body)
        return params(recognise(index, asked))["size"]
    except InputError as error:
        return error.reason


def test_sm13_what_was_compressed_before_it_was_framed_is_read_in_that_order() -> None:
    data = gzip.compress(b"a,b\n" * 100)
    headers = {
        **CHUNKED,
        "Content-Encoding": "gzip,aws-chunked",
        "X-Amz-Decoded-Content-Length": str(len(data)),
    }
    assert stored(headers, framed(data)) == 400
    assert stored(headers, framed(b"x" * len(data))) is Reason.BAD_BODY
    assert stored(headers, framed(data), codings="[aws-chunked]") is Reason.UNSUPPORTED_CONTENT


def test_headers_that_only_repeat_what_the_body_says_need_no_mention() -> None:
    framing = {**CHUNKED, "Content-Encoding": "aws-chunked", "X-Amz-Decoded-Content-Length": "5"}
    assert stored(framing, framed(b"hello")) == 5
    assert stored({**framing, "X-Amz-Decoded-Content-Length": "6"}, framed(b"hello")) is Reason.BAD_BODY
    assert stored({"Content-MD5": "XUFAKrxLKna5cZ2REBfFkg=="}, b"hello") == 5
    assert stored({"X-Amz-Checksum-Crc32": "NhCmhg=="}, b"hello") == 5


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"Content-MD5": "XUFAKrxLKna5cZ2REBfFkg=="}, id="the MD5 of another body"),
        pytest.param({"X-Amz-Checksum-Crc32": "NhCmhg=="}, id="the CRC of another body"),
        pytest.param({"X-Amz-Checksum-Crc64nvme": "AAAAAAAAAAA="}, id="a checksum that nobody computes here"),
        pytest.param({"X-Amz-Decoded-Content-Length": "6"}, id="framing of a body that has none"),
        pytest.param({"X-Amz-Trailer": "x-amz-checksum-crc32"}, id="a trailer of a body that has none"),
    ],
)
def test_sm18_a_header_that_says_more_than_the_body_is_unknown(headers: dict[str, str]) -> None:
    assert stored(headers, b"other!") is Reason.UNKNOWN_PARAMETER
