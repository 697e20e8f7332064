"""Bodies of recorded requests through the decoder that their type asks for."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdgate.content.coding import decode_coding
from holdgate.content.form import parse_form
from holdgate.content.mediatype import parse_media_type
from holdgate.content.multipart import boundary_of, parse_multipart
from holdgate.content.related import parse_related
from holdgate.content.strictjson import parse_json
from holdgate.content.xml import parse_xml
from holdgate.errors import InputError
from holdgate.surface.exchange import kind_of
from rawserver import parse
from recordings import RECORDED, content, name_of

QUOTE = "a quote in a file name: some servers undo its escape and some do not (MP3)"
TWICE = "a name twice: a map that means it says `repeat: true`"
NO_FORM = "a file under curl's and urllib's default type, which is a form: a map says `decode: opaque`"
LF = "lines end in LF alone (MR1)"
REFUSED = {
    "axios/post_multipart": QUOTE,
    "curl/post_multipart_quote": QUOTE,
    "got/post_multipart": QUOTE,
    "httpx/post_multipart": QUOTE,
    "node-fetch/post_multipart": QUOTE,
    "node-fetch-builtin/post_multipart": QUOTE,
    "urllib3/post_multipart": QUOTE,
    "go/post_form": TWICE,
    "perl-lwp/post_form": TWICE,
    "requests/post_form": TWICE,
    "superagent/post_form": TWICE,
    "curl/post_chunked": NO_FORM,
    "slack_sdk/upload.2": NO_FORM,
    "google-api-python-client/drive_upload": LF,
}
READERS = {
    "json": lambda data, _: parse_json(data),
    "form": lambda data, _: parse_form(data, syntax="brackets"),
    "xml": lambda data, _: parse_xml(data),
    "multipart": lambda data, params: parse_multipart(data, boundary=boundary_of(params)),
    "related": lambda data, params: parse_related(data, boundary=boundary_of(params)),
}


def kind_and_body(path: Path) -> tuple[str, bytes, tuple[tuple[str, str], ...]]:
    request = parse(content(path))
    declared = request.header(b"content-type").decode()
    if not request.body or not declared:
        return "none", b"", ()
    essence, params = parse_media_type(declared)
    coding = request.header(b"content-encoding")
    data = decode_coding(request.body, "gzip", 8 << 20) if coding == b"gzip" else request.body
    return kind_of(essence), data, params


TYPED = [path for path in RECORDED if kind_and_body(path)[0] in READERS]


def test_there_are_bodies_of_every_kind() -> None:
    assert {kind_and_body(path)[0] for path in TYPED} == READERS.keys()
    assert {name_of(path) for path in TYPED} >= REFUSED.keys()


@pytest.mark.parametrize("path", TYPED, ids=name_of)
def test_a_recorded_body_is_read_unless_two_readers_would_differ(path: Path) -> None:
    kind, data, params = kind_and_body(path)
    if name_of(path) in REFUSED:
        with pytest.raises(InputError):
            READERS[kind](data, params)
    else:
        READERS[kind](data, params)
