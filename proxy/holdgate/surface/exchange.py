"""One request while it is being recognised: its parts, and its body decoded at most once per decoder.

An Exchange is the only mutable value here; it lives for one call of recognise(). A batch item
that is a request of its own is an Exchange too, with its body already decoded.

Invariants (tests/test_surface_content.py):
  SM13  A body is decoded by the decoder, types and codings that the operation names, or refused.
  SM14  The size on the wire and the decoded size are each at most the operation's `body.max`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

from ..canonical import CanonicalRequest, MediaType
from ..content.aws import decode_aws_chunked
from ..content.coding import decode_coding
from ..content.form import parse_form
from ..content.multipart import Part, boundary_of, parse_multipart
from ..content.related import parse_related
from ..content.strictjson import parse_json
from ..content.xml import parse_xml
from ..errors import InputError, Reason

__all__ = ["BODILESS_METHODS", "BodyPlan", "Exchange", "Given"]

BODILESS_METHODS: Final = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})
_TEXTUAL: Final = frozenset({"form", "xml", "multipart"})
_NONE: Final = ("none",)

type _Syntax = Literal["brackets", "flat", "aws-query"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyPlan:
    """How the body of one operation is read, compiled from its `body` and params."""

    kinds: tuple[str, ...]
    written: bool  # `decode` stands in the operation itself, so it holds for GET and DELETE too
    types: frozenset[str] | None  # None: any
    absent_type: bool  # a missing Content-Type is accepted
    codings: frozenset[str]
    max: int | None  # None: the caller's default
    syntax: str
    repeat: frozenset[str]
    json_fields: frozenset[str]
    optional: bool


@dataclass(frozen=True, slots=True)
class Given:
    """The decoded body of a batch item; `value` is None when the item has none."""

    kind: str
    value: Any


class Exchange:
    __slots__ = (
        "_parsed",
        "body",
        "coding",
        "content",
        "data",
        "default_max",
        "fields",
        "given",
        "host_vars",
        "kind",
        "media",
        "method",
        "pairs",
        "query",
        "raw_segments",
        "references",
        "repeated",
        "segments",
        "slash_escaped",
        "textual",
    )

    def __init__(
        self,
        *,
        method: str,
        segments: tuple[str, ...],
        raw_segments: tuple[str, ...],
        pairs: tuple[tuple[str, str], ...] | None,
        fields: dict[str, str],
        repeated: frozenset[str],
        media: MediaType | None,
        coding: str | None,
        content: bytes,
        host_vars: dict[str, str],
        default_max: int,
        given: Given | None = None,
        references: dict[str, str] | None = None,
    ) -> None:
        """Long because it has that many attributes, each one line."""
        self.method = method
        self.segments = segments
        self.raw_segments = raw_segments
        self.pairs = pairs
        self.fields = fields
        self.repeated = repeated
        self.media = media
        self.coding = coding
        self.content = content
        self.host_vars = host_vars
        self.default_max = default_max
        self.given = given
        self.references = references  # full URL of a batch item -> resource type; None outside batches
        self.slash_escaped = "/" in "".join(segments)
        query: dict[str, list[str]] = {}
        for key, value in pairs or ():
            query.setdefault(key, []).append(value)
        self.query = query
        self._parsed: dict[object, Any] = {}
        # What the last decode() found:
        self.kind = "none"
        self.body: Any = {}
        self.textual = False
        self.data = b""  # the body with its codings off

    @classmethod
    def of(cls, request: CanonicalRequest, host_vars: dict[str, str], default_max: int) -> Exchange:
        return cls(
            method=request.method,
            segments=request.segments,
            raw_segments=request.raw_segments,
            pairs=request.query,
            fields=request.fields,
            repeated=request.repeated,
            media=request.content_type,
            coding=request.content_coding,
            content=request.body,
            host_vars=host_vars,
            default_max=default_max,
        )

    @property
    def essence(self) -> str:
        return "" if self.media is None else self.media.essence

    @property
    def framed_by_aws(self) -> bool:
        """Whether the body was decoded from aws-chunked, so that the headers of that framing are right."""
        return self.coding in self._parsed and (self.coding or "").endswith("aws-chunked")

    def decode(self, plan: BodyPlan) -> None:
        """Set `kind`, `body`, `textual` and `data` as `plan` reads the body. Raises InputError."""
        kinds = plan.kinds
        bodiless = self.method in BODILESS_METHODS
        if bodiless and not plan.written:
            kinds = _NONE
        if self.given is not None:
            self._take_given(self.given, kinds, plan, bodiless)
            return
        if not self.content:
            self._absent(kinds, plan, bodiless)
            return
        if kinds == _NONE:
            raise InputError(Reason.BAD_BODY, "this operation takes no body")
        limit = self.default_max if plan.max is None else plan.max
        if len(self.content) > limit:
            raise InputError(Reason.TOO_LARGE, f"the body is longer than {limit} bytes")
        kind = self._kind(kinds, plan)
        self.data = self._decoded(plan, limit)
        self.kind = kind
        self.textual = kind in _TEXTUAL
        self.body = self._parse(kind, plan)

    def _take_given(self, given: Given, kinds: tuple[str, ...], plan: BodyPlan, bodiless: bool) -> None:
        if given.value is None:
            self._absent(kinds, plan, bodiless)
            return
        if given.kind not in kinds:
            raise InputError(Reason.BAD_BODY, "this operation takes no such body")
        self.kind, self.body, self.textual = given.kind, given.value, given.kind in _TEXTUAL

    def _absent(self, kinds: tuple[str, ...], plan: BodyPlan, bodiless: bool) -> None:
        if not (bodiless or plan.optional or "none" in kinds or "form" in kinds or "opaque" in kinds):
            raise InputError(Reason.BAD_BODY, "a body is expected")
        self.kind, self.body, self.textual, self.data = "none", {}, True, b""

    def _kind(self, kinds: tuple[str, ...], plan: BodyPlan) -> str:
        media = self.media
        if media is None:
            if not plan.absent_type:
                raise InputError(Reason.UNSUPPORTED_CONTENT, "a body without Content-Type")
            return kinds[0]
        if plan.types is not None and media.essence not in plan.types:
            raise InputError(Reason.UNSUPPORTED_CONTENT, f"content type {media.essence!r} is not declared")
        # The charset was judged with the head; other parameters do not change how we read the body.
        if len(kinds) == 1:
            return kinds[0]
        kind = kind_of(media.essence)
        if kind in kinds:
            return kind
        if "opaque" in kinds:
            return "opaque"
        raise InputError(Reason.UNSUPPORTED_CONTENT, f"no decoder for content type {media.essence!r}")

    def _decoded(self, plan: BodyPlan, limit: int) -> bytes:
        coding = self.coding
        # S3 takes the framing off where this says so; Content-Encoding need not name it.
        if coding is None and self.fields.get("x-amz-content-sha256", "").startswith("STREAMING-"):
            coding = "aws-chunked"
        if coding is None:
            return self.content
        codings = coding.split(",")
        for each in codings:
            if each not in plan.codings:
                raise InputError(Reason.UNSUPPORTED_CONTENT, f"content coding {each!r} is not declared")
        data: bytes | None = self._parsed.get(coding)
        if data is None:
            data = self.content
            for each in reversed(codings):  # the last one was applied last
                aws = each == "aws-chunked"
                data = decode_aws_chunked(data, self.fields) if aws else decode_coding(data, each, limit)
            self._parsed[coding] = data
        if len(data) > limit:
            raise InputError(Reason.TOO_LARGE, f"the decoded body is longer than {limit} bytes")
        return data

    def _parse(self, kind: str, plan: BodyPlan) -> Any:
        key = (kind, plan.syntax, plan.repeat, plan.json_fields)
        found = self._parsed.get(key)
        if found is None:
            found = self._parse_now(kind, plan)
            self._parsed[key] = found
        return found

    def _parse_now(self, kind: str, plan: BodyPlan) -> Any:
        match kind:
            case "json":
                value: Any = parse_json(self.data)
                # Whoever takes these fields as JSON in a form takes them as JSON in a string, too.
                for name in plan.json_fields if type(value) is dict else ():
                    if type(value.get(name)) is str:
                        value[name] = json_text(value[name])
                return value
            case "form":
                syntax = cast(_Syntax, plan.syntax)
                tree: dict[str, Any] = parse_form(self.data, syntax=syntax, repeat=plan.repeat)
                for name in plan.json_fields:
                    if name in tree:
                        tree[name] = json_text(tree[name])
                return tree
            case "xml":
                return parse_xml(self.data)
            case "multipart" | "related":
                boundary = boundary_of(() if self.media is None else self.media.params)
                if kind == "related":
                    return parse_related(self.data, boundary=boundary)
                return _record(parse_multipart(self.data, boundary=boundary, repeat=plan.repeat), plan.repeat)
            case _:
                return {}


def json_text(value: Any) -> Any:
    """A text that holds JSON: of a form, a query, or a field of a JSON body that is declared as one."""
    if type(value) is not str:
        raise InputError(Reason.PARAMETER_TYPE, "a field that holds JSON must be one text")
    held = parse_json(value.encode("utf-8"))
    if type(held) is str:  # it may be read once more elsewhere
        raise InputError(Reason.BAD_BODY, "a field that holds JSON holds a text again")
    return held


def kind_of(essence: str) -> str:
    """The decoder that a content type asks for, where a map allows several."""
    if essence == "application/x-www-form-urlencoded":
        return "form"
    if essence.endswith(("/json", "+json")) or essence.startswith("application/x-amz-json-"):
        return "json"
    if essence.endswith(("/xml", "+xml")):
        return "xml"
    return {"multipart/form-data": "multipart", "multipart/related": "related"}.get(essence, "opaque")


def _record(parts: tuple[Part, ...], repeat: frozenset[str]) -> dict[str, Any]:
    """Parts by name: text as text, a file as a record of what identifies it."""
    record: dict[str, Any] = {}
    spelled: dict[str, str] = {}
    for part in parts:
        value: Any
        # Only plain text is text: another type on a part is part of what it means.
        if part.filename is None and (part.content_type or "text/plain").startswith("text/plain"):
            try:
                value = part.data.decode("utf-8")
            except UnicodeDecodeError:
                raise InputError(Reason.BAD_BODY, f"part {part.name!r} is not UTF-8") from None
        else:
            value = {
                "filename": part.filename or "",
                "content_type": part.content_type or "",
                "bytes": len(part.data),
                "sha256": hashlib.sha256(part.data).hexdigest(),
            }
        # `a[]` is a list here as in a form, and `a` beside it a second reading of the name.
        name = part.name.removesuffix("[]") or part.name
        if spelled.setdefault(name, part.name) != part.name:
            raise InputError(Reason.DUPLICATE_PARAMETER, f"part {name!r} is both a value and a list")
        if name != part.name or name in repeat:
            record.setdefault(name, []).append(value)
        elif name in record:
            raise InputError(Reason.DUPLICATE_PARAMETER, f"part {name!r} occurs more than once")
        else:
            record[name] = value
    return record
