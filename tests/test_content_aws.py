"""content/aws.py: A1-A3 over signed and unsigned aws-chunked bodies, and what boto3 sends."""

from __future__ import annotations

import base64
import hashlib
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdgate.content.aws import decode_aws_chunked
from holdgate.errors import InputError, Reason

BAD = Reason.BAD_BODY
UNSIGNED = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
SIGNED = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
SIGNATURE = b";chunk-signature=" + b"0f" * 32
# As boto3 1.44 put it on the wire (tests/ of the maps have the whole request).
BOTO3 = b"5\r\nhello\r\n0\r\nx-amz-checksum-crc32:NhCmhg==\r\n\r\n"


def headers(
    length: int, form: str = UNSIGNED, trailer: str | None = "x-amz-checksum-crc32"
) -> dict[str, str]:
    result = {"x-amz-content-sha256": form, "x-amz-decoded-content-length": str(length)}
    return result if trailer is None else {**result, "x-amz-trailer": trailer}


def read(body: bytes, fields: dict[str, str]) -> bytes | Reason:
    try:
        return decode_aws_chunked(body, fields)
    except InputError as error:
        return error.reason


def encode(chunks: list[bytes], *, signed: bool, trailer: bytes) -> bytes:
    signature = SIGNATURE if signed else b""
    lines = [b"%x%s\r\n%s\r\n" % (len(chunk), signature, chunk) for chunk in chunks]
    return b"".join(lines) + b"0" + signature + b"\r\n" + trailer + b"\r\n"


def crc32(data: bytes) -> bytes:
    return b"x-amz-checksum-crc32:" + base64.b64encode(zlib.crc32(data).to_bytes(4, "big")) + b"\r\n"


def test_what_boto3_sends_is_read() -> None:
    assert read(BOTO3, headers(5)) == b"hello"


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=4), st.sampled_from(["unsigned", "signed", "both"])
)
def test_a1_chunks_are_joined_in_every_form(chunks: list[bytes], form: str) -> None:
    data = b"".join(chunks)
    if form == "unsigned":
        body, fields = encode(chunks, signed=False, trailer=crc32(data)), headers(len(data))
    elif form == "signed":
        body, fields = encode(chunks, signed=True, trailer=b""), headers(len(data), SIGNED, None)
    else:
        trailer = crc32(data) + b"x-amz-trailer-signature:" + b"ab" * 32 + b"\r\n"
        body, fields = encode(chunks, signed=True, trailer=trailer), headers(len(data), SIGNED + "-TRAILER")
    assert read(body, fields) == data


@given(st.integers(0, len(BOTO3) - 1), st.sampled_from([b"", b"\0", b"5", b"\r\n", b";"]), st.booleans())
def test_a1_no_byte_can_be_changed_added_or_removed_unseen(at: int, piece: bytes, insert: bool) -> None:
    changed = BOTO3[:at] + piece + BOTO3[at if insert else at + 1 :]
    if changed != BOTO3:
        assert read(changed, headers(5)) is BAD


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(BOTO3 + b"x", id="bytes after the end"),
        pytest.param(BOTO3 + BOTO3, id="two bodies"),
        pytest.param(BOTO3.replace(b"\r\n", b"\n"), id="LF only"),
        pytest.param(b"05" + BOTO3[1:], id="leading zero"),
        pytest.param(b"0x5" + BOTO3[1:], id="0x"),
        pytest.param(b"5;a=b" + BOTO3[1:], id="unknown extension"),
        pytest.param(b"5" + SIGNATURE + BOTO3[1:], id="signature on an unsigned chunk"),
        pytest.param(b"fffffffff\r\n", id="huge size"),
        pytest.param(b"ffffffff\r\nx\r\n", id="size beyond the body"),
    ],
)
def test_a1_other_framing_is_refused(body: bytes) -> None:
    assert read(body, headers(5)) is BAD


def test_a1_signed_forms_need_their_signatures() -> None:
    assert read(BOTO3, headers(5, SIGNED + "-TRAILER")) is BAD
    unsigned_trailer = encode([b"hello"], signed=True, trailer=crc32(b"hello"))
    assert read(unsigned_trailer, headers(5, SIGNED + "-TRAILER")) is BAD


@pytest.mark.parametrize("length", ["4", "6", "05", "+5", "5 ", "", "\u0665", "5_0"])
def test_a2_the_decoded_length_must_match(length: str) -> None:
    assert read(BOTO3, {**headers(5), "x-amz-decoded-content-length": length}) is BAD


def test_a2_the_decoded_length_must_be_there() -> None:
    fields = headers(5)
    del fields["x-amz-decoded-content-length"]
    assert read(BOTO3, fields) is BAD


@pytest.mark.parametrize(
    ("name", "checksum", "ok"),
    [
        ("x-amz-checksum-crc32", zlib.crc32(b"hello").to_bytes(4, "big"), True),
        ("x-amz-checksum-crc32", zlib.crc32(b"hellO").to_bytes(4, "big"), False),
        ("x-amz-checksum-sha1", hashlib.sha1(b"hello", usedforsecurity=False).digest(), True),
        ("x-amz-checksum-sha256", hashlib.sha256(b"hello").digest(), True),
        ("x-amz-checksum-sha256", hashlib.sha256(b"hellO").digest(), False),
        ("x-amz-checksum-crc32c", b"1234", True),
        ("x-amz-checksum-crc32c", b"12345", False),
        ("x-amz-checksum-crc64nvme", b"12345678", True),
        ("x-amz-checksum-md5", b"1234", False),
        ("x-amz-acl", b"1234", False),
    ],
)
def test_a3_checksums_are_verified_where_the_standard_library_can(
    name: str, checksum: bytes, ok: bool
) -> None:
    trailer = name.encode() + b":" + base64.b64encode(checksum) + b"\r\n"
    body = encode([b"hello"], signed=False, trailer=trailer)
    assert read(body, headers(5, trailer=name)) == (b"hello" if ok else BAD)


@pytest.mark.parametrize(
    "trailer",
    [
        pytest.param(b"", id="missing"),
        pytest.param(crc32(b"hello") * 2, id="twice"),
        pytest.param(crc32(b"hello") + b"x-amz-acl:public-read\r\n", id="one more"),
        pytest.param(b"x-amz-checksum-sha1:NhCmhg==\r\n", id="another one"),
        pytest.param(b"x-amz-checksum-crc32:NhCmhh==\r\n", id="base64 with loose bits"),
        pytest.param(b"x-amz-checksum-crc32:NhCmhg=\r\n", id="base64 without padding"),
        pytest.param(b"x-amz-checksum-crc32: NhCmhg==\r\n", id="with a space"),
    ],
)
def test_a3_exactly_the_named_trailer(trailer: bytes) -> None:
    assert read(encode([b"hello"], signed=False, trailer=trailer), headers(5)) is BAD


def test_a3_the_trailer_must_be_announced() -> None:
    assert read(BOTO3, headers(5, trailer=None)) is BAD
    assert read(BOTO3, headers(5, trailer="x-amz-checksum-crc32,x-amz-acl")) is BAD
    assert read(BOTO3, headers(5, SIGNED)) is BAD


@pytest.mark.parametrize(
    "form", ["", "UNSIGNED-PAYLOAD", "e3b0c442", "STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD"]
)
def test_a1_an_unknown_form_is_refused(form: str) -> None:
    assert read(BOTO3, headers(5, form)) is Reason.UNSUPPORTED_CONTENT
