"""content/coding.py: Z1 and Z2 over gzip, br and zstd, bombs included."""

from __future__ import annotations

import gzip
import hashlib
import tracemalloc
import zlib
from collections.abc import Callable

import brotli
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from holdgate.content.coding import decode_coding
from holdgate.errors import InputError, Reason

MIB = 1024 * 1024
ENCODE: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "br": brotli.compress,
    "zstd": zstandard.ZstdCompressor(write_checksum=True).compress,
}
CODINGS = st.sampled_from(sorted(ENCODE))


def read(body: bytes, coding: str, limit: int = MIB) -> bytes | Reason:
    try:
        return decode_coding(body, coding, limit)
    except InputError as error:
        return error.reason


@given(CODINGS, st.binary(max_size=3000))
def test_z1_what_was_encoded_comes_back(coding: str, data: bytes) -> None:
    assert read(ENCODE[coding](data), coding) == data


@given(CODINGS, st.binary(max_size=300), st.data())
def test_z1_every_cut_and_every_extra_byte_is_refused(coding: str, data: bytes, draw: st.DataObject) -> None:
    body = ENCODE[coding](data)
    cut = draw.draw(st.integers(0, len(body) - 1))
    assert read(body[:cut], coding) is Reason.BAD_BODY
    extra = draw.draw(st.one_of(st.binary(min_size=1, max_size=4), st.just(body), st.just(b"\0" * 600)))
    assert read(body + extra, coding) is Reason.BAD_BODY


def test_z1_a_zstd_frame_that_ends_at_an_input_step_is_followed_by_nothing() -> None:
    # Input is fed in steps of 512 bytes: the end of one must not hide what comes after it.
    noise = b"".join(hashlib.sha256(bytes([i])).digest() for i in range(16))
    (data, body) = next((noise[:n], e) for n in range(512) if len(e := ENCODE["zstd"](noise[:n])) == 512)
    assert read(body, "zstd") == data
    assert read(body + body, "zstd") is read(body + b"x", "zstd") is Reason.BAD_BODY


@pytest.mark.parametrize(
    ("body", "coding"),
    [
        pytest.param(b'{"amount":1}', "gzip", id="plain under gzip"),
        pytest.param(b'{"amount":1}', "zstd", id="plain under zstd"),
        pytest.param(zlib.compress(b"x"), "gzip", id="zlib under gzip"),
        pytest.param(zlib.compress(b"x", wbits=-15), "gzip", id="raw deflate under gzip"),
        pytest.param(
            b"\x50\x2a\x4d\x18\x01\0\0\0x" + ENCODE["zstd"](b"x"), "zstd", id="skippable frame first"
        ),
        pytest.param(
            ENCODE["zstd"](b"x") + b"\x50\x2a\x4d\x18\x00\0\0\0", "zstd", id="skippable frame after"
        ),
        pytest.param(gzip.compress(b"x")[:-4] + b"\0\0\0\0", "gzip", id="wrong length field"),
        pytest.param(b"", "br", id="empty br"),
    ],
)
def test_z1_other_streams_are_refused(body: bytes, coding: str) -> None:
    assert read(body, coding) is Reason.BAD_BODY


@pytest.mark.parametrize("coding", ["deflate", "x-gzip", "GZIP", "gzip, gzip", "identity", "aws-chunked", ""])
def test_z1_other_codings_are_refused(coding: str) -> None:
    assert read(gzip.compress(b"x"), coding) is Reason.UNSUPPORTED_CONTENT


@pytest.mark.parametrize("coding", sorted(ENCODE))
def test_z2_the_limit_is_exact_to_the_byte(coding: str) -> None:
    body = ENCODE[coding](b"ab" * 500)
    assert read(body, coding, 1000) == b"ab" * 500
    assert read(body, coding, 999) is Reason.TOO_LARGE


@pytest.mark.parametrize("coding", sorted(ENCODE))
def test_z2_a_bomb_is_refused_in_bounded_memory(coding: str) -> None:
    bomb = ENCODE[coding](b"\0" * (64 * MIB))
    assert len(bomb) < 100_000
    tracemalloc.start()
    try:
        assert read(bomb, coding, 64 * MIB) is Reason.TOO_LARGE  # by the ratio
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40 * MIB
    assert read(bomb, coding, MIB) is Reason.TOO_LARGE  # by the limit


def test_z2_a_zstd_window_above_the_standard_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=25, compression_level=1)
    encoder = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    body = encoder.compress(b"x" * 100) + encoder.flush()
    assert zstandard.get_frame_parameters(body).window_size > 8 * MIB
    assert read(body, "zstd") is Reason.BAD_BODY


@given(CODINGS, st.binary(max_size=60))
def test_only_our_errors_leave_the_decoder(coding: str, body: bytes) -> None:
    assert isinstance(read(body, coding), (bytes, Reason))
    magic = {"gzip": b"\x1f\x8b\x08\0", "br": b"", "zstd": b"\x28\xb5\x2f\xfd"}[coding]
    assert isinstance(read(magic + body, coding), (bytes, Reason))
