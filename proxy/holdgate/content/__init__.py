"""What a body means: named, strict decoders, chosen by the surface map, never by guessing.

Each decoder reads bytes in exactly one way or raises InputError; bytes that two reasonable
readers understand differently are refused, not repaired. They share no state and do no I/O.

    coding.py      gzip, br, zstd: one stream, every byte consumed, output capped
    aws.py         aws-chunked: signed and unsigned chunk framing, checksum trailers
    strictjson.py  JSON without duplicate keys, floats, lone surrogates
    form.py        application/x-www-form-urlencoded: pairs, brackets, flat, aws-query
    xml.py         XML without DTD, comments, CDATA or processing instructions
    multipart.py   multipart/form-data with quoted, unique names
    related.py     multipart/related: metadata in JSON and one medium
    mediatype.py   Content-Type values
    checksum.py    checksums that a request carries about its own body
"""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Decoder"]


class Decoder(StrEnum):
    """The `decode:` names that a surface map may use."""

    NONE = "none"
    JSON = "json"
    FORM = "form"
    XML = "xml"
    MULTIPART = "multipart"
    RELATED = "related"
    OPAQUE = "opaque"
