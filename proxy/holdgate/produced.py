"""Which object a vendor's answer says was made: read from the relayed copy, strictly, or not at all.

    response head, whole body, where it stands -> id | None

It stands in the body or in a header, and may be a part of a URL there: then that is read as the target of the
later request will be, by the same reader, so that the two are equal or not whatever they are escaped with.

What cannot be read in exactly one way names nothing: then nothing is recorded, and a later request about the
object is SILENCE. The agent's answer is not touched, and never waits for this.

Invariants (tests/test_produced.py):
  PD1  object_id() is total: whatever the answer is, an id of 1 to 1024 printable ASCII characters, or None.
  PD2  An answer that is not a success, cut, too large, of another type or coding, or ambiguous names nothing.
  PD3  A URL names its id only if it is an absolute https one of the destination that was asked, or of the
       host that the map names, without user or fragment, in canonical form, with the parameter exactly once;
       or without a query, for its last segment.
"""

from __future__ import annotations

import re
from typing import Any, Final

from .canonical import read_target
from .content.coding import decode_coding
from .content.mediatype import parse_media_type
from .content.strictjson import Number, parse_json
from .content.xml import parse_xml
from .errors import InputError
from .message import ResponseHead
from .surface.model import Produces

__all__ = ["MAX_ANSWER_BYTES", "object_id"]

MAX_ANSWER_BYTES: Final = 65_536  # as relayed, and again with its coding off: parsed on the event loop
_ID: Final = re.compile(r"[\x21-\x7e]{1,1024}\Z")
_URL: Final = re.compile(r"https://([a-z0-9.-]+)(?::([0-9]{1,5}))?(/[\x21-\x7e]*)\Z", re.IGNORECASE)
_JSON: Final = frozenset({"application/json", "application/x-amz-json-1.0", "application/x-amz-json-1.1"})
_XML: Final = frozenset({"application/xml", "text/xml"})
_MAX_NODES: Final = 10_000


def object_id(head: ResponseHead, body: bytes, produces: Produces, destination: str) -> str | None:
    """The id in an answer that came whole, of an object at `destination`. None: none to be relied on."""
    if not 200 <= head.status < 300 or len(body) > MAX_ANSWER_BYTES:
        return None
    try:
        value = _stated(head, body, produces)
        if produces.form:
            value = _of_url(value, produces.form, destination)
    except (InputError, ValueError):
        return None
    if type(value) is int:
        return str(value)
    # A number that is no integer is a str of its own kind (strictjson.Number): it is no name.
    found = type(value) is str and not isinstance(value, Number) and _ID.match(value)
    return value if found else None


def _stated(head: ResponseHead, body: bytes, produces: Produces) -> Any:
    """What stands where the map says. Raises InputError, ValueError."""
    if produces.header:
        return _only(head, produces.header.encode())
    value = _decoded(head, body)
    for name in produces.path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _of_url(url: Any, form: str, destination: str) -> str:
    """The only parameter of that name in its query, or the last segment. Raises InputError, ValueError."""
    found = _URL.match(url) if type(url) is str else None
    if found is None:
        raise ValueError("no absolute https URL")
    host, port, text = found.groups()
    if f"{host.lower()}:{int(port or 443)}" != destination:
        raise ValueError("a URL of another host")
    target = read_target(text.encode())
    if form == "url_last_segment":
        if target.query is not None:
            raise ValueError("a query behind the id")
        return target.segments[-1]
    name = form.removeprefix("url_query.")
    (value,) = [value for key, value in target.query or () if key == name]
    return value


def _decoded(head: ResponseHead, body: bytes) -> Any:
    """Raises InputError, ValueError."""
    essence = parse_media_type(_only(head, b"content-type"))[0]
    coding = _only(head, b"content-encoding").strip().lower()
    if coding not in ("", "identity"):
        body = decode_coding(body, coding, MAX_ANSWER_BYTES)
    if essence in _JSON or essence.endswith("+json"):
        return parse_json(body, max_nodes=_MAX_NODES)
    if essence in _XML:
        return parse_xml(body, max_nodes=_MAX_NODES)
    raise ValueError("a body of another type names nothing")


def _only(head: ResponseHead, name: bytes) -> str:
    values = [value for key, value in head.headers if key.lower() == name]
    if len(values) > 1:
        raise ValueError("a header that is there twice")
    return values[0].decode("ascii") if values else ""
