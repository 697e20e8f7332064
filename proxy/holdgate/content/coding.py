"""A Content-Encoding is undone: one stream, all of it, and no more output than allowed.

Output is produced in bounded steps, so what a small body expands to never exists in memory
before it is refused.

Invariants (tests/test_content_coding.py):
  Z1  Every input byte belongs to the one stream: no second member, no trailing byte, no
      truncation; a byte that another reader could see differently refuses the body.
  Z2  The output is at most `limit_bytes`, and at most `ratio` times the input where that is
      more than a small floor.
"""

from __future__ import annotations

import zlib
from typing import Final

import brotli  # type: ignore[import-untyped]
import zstandard

from ..errors import InputError, Reason

__all__ = ["decode_coding"]

# Short repetitive bodies expand a lot and harm nobody.
_RATIO_FLOOR_BYTES: Final = 65_536
_STEP_BYTES: Final = 65_536
# RFC 9659: what every zstd reader must support, and no more.
_ZSTD_WINDOW_BYTES: Final = 8 * 1024 * 1024
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
# 4 bytes can make a block of 128 KiB: this many at once make at most 16 MiB.
_ZSTD_INPUT_BYTES: Final = 512


def decode_coding(body: bytes, coding: str, limit_bytes: int, ratio: int = 100) -> bytes:
    """Return the decoded body of `gzip`, `br` or `zstd`. Raises InputError."""
    cap = min(limit_bytes, max(ratio * len(body), _RATIO_FLOOR_BYTES))
    try:
        match coding:
            case "gzip":
                return _gzip(body, cap)
            case "br":
                return _brotli(body, cap)
            case "zstd":
                return _zstd(body, cap)
            case _:
                raise InputError(Reason.UNSUPPORTED_CONTENT, f"content coding {coding!r}")
    except (zlib.error, brotli.error, zstandard.ZstdError) as error:
        raise InputError(Reason.BAD_BODY, f"not a {coding} stream: {error}") from None


def _gzip(body: bytes, cap: int) -> bytes:
    stream = zlib.decompressobj(wbits=31)  # 31: gzip framing only, checksum and length checked
    out = stream.decompress(body, cap + 1)
    if len(out) > cap:
        raise _too_large(cap)
    if not stream.eof or stream.unused_data:
        raise InputError(Reason.BAD_BODY, "gzip body is cut, or goes on after its end")
    return out


def _brotli(body: bytes, cap: int) -> bytes:
    stream = brotli.Decompressor()
    out = bytearray(stream.process(body, output_buffer_limit=_STEP_BYTES))
    while not stream.is_finished():
        if len(out) > cap:
            raise _too_large(cap)
        if stream.can_accept_more_data():
            raise InputError(Reason.BAD_BODY, "br body is cut")
        out += stream.process(b"", output_buffer_limit=_STEP_BYTES)
    if len(out) > cap:
        raise _too_large(cap)
    return bytes(out)


def _zstd(body: bytes, cap: int) -> bytes:
    # Skippable frames have other magic numbers: their content is seen by nobody, so not here.
    if not body.startswith(_ZSTD_MAGIC) or zstandard.get_frame_parameters(body).dict_id:
        raise InputError(Reason.BAD_BODY, "zstd body is not one plain frame")
    stream = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES).decompressobj()
    out = bytearray()
    view = memoryview(body)
    for start in range(0, len(body), _ZSTD_INPUT_BYTES):
        if stream.eof:
            raise InputError(Reason.BAD_BODY, "zstd body goes on after its end")
        out += stream.decompress(view[start : start + _ZSTD_INPUT_BYTES])
        if len(out) > cap:
            raise _too_large(cap)
    if not stream.eof or stream.unused_data:
        raise InputError(Reason.BAD_BODY, "zstd body is cut, or goes on after its end")
    return bytes(out)


def _too_large(cap: int) -> InputError:
    return InputError(Reason.TOO_LARGE, f"the body expands to more than {cap} bytes")
