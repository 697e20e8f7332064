"""What bodies are wrapped in: multipart, content codings, aws-chunked, the media type. Others read it alike.

A decoder may refuse more than others do; what it accepts, the other reader must read as the same bytes.
"""

from __future__ import annotations

import binascii
import gzip
import hashlib
from base64 import b64encode
from collections.abc import Iterator
from email.message import Message
from typing import Final

import brotli
import zstandard
from werkzeug.sansio.multipart import Data, Epilogue, Field, File, MultipartDecoder, NeedData, Preamble

from fuzz.base import Target, must, split
from holdgate.content.aws import decode_aws_chunked
from holdgate.content.coding import decode_coding
from holdgate.content.mediatype import check_charset, parse_media_type
from holdgate.content.multipart import parse_multipart
from holdgate.errors import InputError

__all__ = ["MULTIPART_WORDS", "TARGETS", "model_parts"]


# --- multipart --------------------------------------------------------------------------------


def multipart(data: bytes) -> bool:
    """The parts that are accepted are the parts that werkzeug (Flask) finds."""
    try:
        ours = parse_multipart(data, boundary="edge", repeat=frozenset({"many"}))
    except InputError:
        return False
    got = [(part.name, part.filename, part.data) for part in ours]
    try:
        theirs = model_parts(data)
    except ValueError as error:
        must(False, "werkzeug refuses it", error, data)
        return False
    must(got == theirs, "werkzeug reads other parts", got, theirs, data)
    names = [part.name for part in ours if part.name != "many"]
    must(len(set(names)) == len(names), "a name twice", names)
    return True


def model_parts(data: bytes, boundary: bytes = b"edge") -> list[tuple[str | None, str | None, bytes]]:
    decoder = MultipartDecoder(boundary)
    decoder.receive_data(data)
    decoder.receive_data(None)
    parts: list[tuple[str | None, str | None, bytes]] = []
    while True:
        event = decoder.next_event()
        if isinstance(event, Field | File):
            parts.append((event.name, event.filename if isinstance(event, File) else None, b""))
        elif isinstance(event, Data):
            name, filename, body = parts[-1]
            parts[-1] = (name, filename, body + event.data)
        elif isinstance(event, Epilogue | NeedData):
            return parts
        elif not isinstance(event, Preamble):
            raise ValueError(f"unexpected {event!r}")


def multipart_seeds() -> Iterator[bytes]:
    one = b'--edge\r\nContent-Disposition: form-data; name="amount"\r\n\r\n5\r\n'
    file = b'--edge\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n'
    file += b"Content-Type: text/plain\r\n\r\n"
    yield one + file + b"\0\xff\r\n\r\nx\r\n--edge--\r\n"
    yield one + b"--edge--"
    yield one * 2 + b"--edge--\r\n"
    yield b'--edge\r\ncontent-disposition:form-data;name="many"\r\n\r\n\r\n' * 2 + b"--edge--\r\n"
    yield b"preamble\r\n" + one + b"--edge--\r\n"
    yield one.replace(b"amount", b"a%22%0amount") + b"--edge--\r\n"


MULTIPART_WORDS: Final = (
    b"--edge", b"--edge--", b"--edge\r\n", b"\r\n", b"\n", b"\r\n\r\n", b'name="amount"', b'; filename="a"',
    b'"', b"name*=utf-8''amount", b'name="many"', b"Content-Type: text/plain\r\n", b"Content-Length: 1\r\n",
    b"%22", b"\\", b"Content-Disposition: form-data; ", b"\xc3\xa9", b"multipart/mixed",
    b"filename*=utf-8''x", b"name*0=\"a\"",
)  # fmt: skip


# --- content codings --------------------------------------------------------------------------

_CODINGS: Final = ("gzip", "br", "zstd")
_CAP: Final = 65_536


def coding(data: bytes) -> bool:
    """What is accepted decompresses to the same bytes in one go; what a compressor makes is accepted."""
    steer, body = split(data, 1)
    name = _CODINGS[steer[0] % 3]
    packed = _packed(name, body)
    must(decode_coding(packed, name, _CAP) == body, "a plain stream does not come back", name, body)
    try:
        ours = decode_coding(body, name, _CAP)
    except InputError:
        return False
    must(ours == _unpacked(name, body), "another reader gets other bytes", name, ours)
    must(len(ours) <= _CAP, "more than allowed", len(ours))
    return True


def _packed(name: str, body: bytes) -> bytes:
    if name == "gzip":
        return gzip.compress(body, compresslevel=1)
    return brotli.compress(body, quality=1) if name == "br" else zstandard.compress(body, level=1)


def _unpacked(name: str, body: bytes) -> bytes:
    if name == "gzip":
        return gzip.decompress(body)
    if name == "br":
        return bytes(brotli.decompress(body))
    return zstandard.ZstdDecompressor().decompress(body, max_output_size=2 * _CAP)


def coding_seeds() -> Iterator[bytes]:
    for number, name in enumerate(_CODINGS):
        for text in (b"", b'{"q":"a"}', b"abc" * 50):
            packed = _packed(name, text)
            yield bytes([number]) + packed
        yield bytes([number]) + packed + packed
    yield b"\2" + zstandard.ZstdCompressor(write_checksum=True).compress(b"abc")


CODING_WORDS: Final = (
    b"\x1f\x8b\x08\0", b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18\1\0\0\0x", b"\3", b"\0\0\xff\xff",
)  # fmt: skip


# --- aws-chunked ------------------------------------------------------------------------------

_AWS: Final = (
    "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
    "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
    "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER",
    "UNSIGNED-PAYLOAD",
)
_SUMS: Final = {
    "x-amz-checksum-crc32": lambda data: binascii.crc32(data).to_bytes(4, "big"),
    "x-amz-checksum-sha1": lambda data: hashlib.sha1(data, usedforsecurity=False).digest(),
    "x-amz-checksum-sha256": lambda data: hashlib.sha256(data).digest(),
}


def aws_chunked(data: bytes) -> bool:
    """The data is what the sizes say, as long as declared; the named checksum is its own; nothing is left."""
    steer, rest = split(data, 1)
    length, _, rest = rest.partition(b"\n")
    trailer, _, body = rest.partition(b"\n")
    headers = {
        "x-amz-content-sha256": _AWS[steer[0] % 4],
        "x-amz-decoded-content-length": length.decode("latin-1"),
    }
    if trailer:
        headers["x-amz-trailer"] = trailer.decode("latin-1")
    try:
        ours = decode_aws_chunked(body, headers)
    except InputError:
        return False
    theirs, lines = _model_aws(body)
    must(ours == theirs and str(len(ours)) == length.decode(), "another reading", ours, theirs, body)
    must(len(lines) == (1 if trailer else 0) + (1 if trailer and steer[0] % 4 == 2 else 0), "trailers", lines)
    name = trailer.decode().lower()
    if name in _SUMS:
        must(lines[0] == f"{name}:{b64encode(_SUMS[name](theirs)).decode()}".encode(), "checksum", lines)
    return True


def _model_aws(body: bytes) -> tuple[bytes, list[bytes]]:
    out = b""
    while True:
        line, _, body = body.partition(b"\r\n")
        size = int(line.partition(b";")[0], 16)
        if size == 0:
            return out, body.removesuffix(b"\r\n").split(b"\r\n")[:-1]
        out, body = out + body[:size], body[size + 2 :]


def aws_seeds() -> Iterator[bytes]:
    crc = b"x-amz-checksum-crc32:" + b64encode(binascii.crc32(b"hello").to_bytes(4, "big"))
    yield b"\x005\nx-amz-checksum-crc32\n5\r\nhello\r\n0\r\n" + crc + b"\r\n\r\n"
    signed = b";chunk-signature=" + b"a" * 64 + b"\r\n"
    yield b"\x015\n\n5" + signed + b"hello\r\n0" + signed + b"\r\n"
    signature = b"\r\nx-amz-trailer-signature:" + b"b" * 64
    yield b"\x025\nx-amz-checksum-crc32\n5" + signed + b"hello\r\n0" + signed + crc + signature + b"\r\n\r\n"
    yield b"\x035\n\n5\r\nhello\r\n0\r\n\r\n"


AWS_WORDS: Final = (
    b"\r\n", b"0\r\n", b"5\r\nhello\r\n", b";chunk-signature=", b"x-amz-checksum-sha256:", b"\n", b"05",
)  # fmt: skip


# --- media types ------------------------------------------------------------------------------


def media_type(data: bytes) -> bool:
    """The type, the charset and the boundary are those that the standard library's email parser sees."""
    try:
        value = data.decode("utf-8")
        essence, params = parse_media_type(value)
    except (UnicodeDecodeError, InputError):
        return False
    other = Message()
    other["content-type"] = value
    must(other.get_content_type() == essence, "another type", other.get_content_type(), essence, value)
    ours = dict(params)
    must(len(ours) == len(params) and all(name == name.lower() for name in ours), "names", params)
    for name in ("charset", "boundary"):
        theirs = other.get_param(name)  # str, None, or a triple where RFC 2231 was used
        must(theirs == ours.get(name), f"another {name}", theirs, ours.get(name), value)
    charset = ours.get("charset", "utf-8").lower()
    must(charset in ("utf-8", "utf8", "us-ascii", "iso-8859-1"), "charset", ours)
    try:  # a body that is not ASCII is read as UTF-8, or under a charset that says so
        check_charset(params, "\u00e9".encode())
    except InputError:
        must(charset in ("us-ascii", "iso-8859-1"), "refused", ours)
    else:
        must(charset in ("utf-8", "utf8"), "a body in another charset", ours)
    return True


def media_seeds() -> Iterator[bytes]:
    yield b"application/json"
    yield b"Application/JSON; charset=UTF-8"
    yield b'multipart/form-data; boundary="--edge x";charset=us-ascii'
    yield b"text/plain ; format=flowed; delsp=yes"
    yield b"text/plain; charset=utf-16"
    yield b"text/plain; charset=utf-8; charset=utf-8"


MEDIA_WORDS: Final = (
    b"; charset=utf-8", b"; charset=utf-7", b'="', b'"', b"boundary=", b";", b" ", b"\t", b"*=", b"*0=",
    b"*0*=utf-16''", b"utf-8''utf-16", b"charset*", b"\\", b"(a)", b",", b"\xc3\xa9",
)  # fmt: skip


TARGETS: Final = {
    "multipart": Target(run=multipart, seeds=multipart_seeds, words=MULTIPART_WORDS, runs=400),
    "coding": Target(run=coding, seeds=coding_seeds, words=CODING_WORDS),
    "aws_chunked": Target(run=aws_chunked, seeds=aws_seeds, words=AWS_WORDS),
    "media_type": Target(run=media_type, seeds=media_seeds, words=MEDIA_WORDS),
}
