"""surface/index.py: recognising as a whole, what policies may assume, headers that are sent."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdgate.canonical import CanonicalRequest, MediaType
from holdgate.errors import ConfigError, InputError
from holdgate.surface.index import SurfaceIndex
from holdgate.surface.model import CelType, Effect, ParamSchema
from surface_requests import FLEET_KEY, FORM, JSON, index_of, map_of, recognise, request, shared_index

INDEX = shared_index()

SOURCES = st.sampled_from(
    [
        "query.a",
        "query.b",
        "header.x-a",
        "body.a",
        "body.b.c",
        "body.l[]",
        "body.l[].a",
        "path.x",
        "host.h",
        "args.a",
        "const.a",
        "raw.sha256",
        "raw.bytes",
    ]
)
TYPES = st.sampled_from(
    ["int", "string", "bool", "list<string>", "json", "decimal(2)", "currency", "digest_list", "reference"]
)
PATTERNS = st.sampled_from(
    ["query.*", "query.a", "body.*", "body.b.*", "body.a", "path.x", "header.x-b", "body.l[].a", "args.a"]
)


@st.composite
def operations(draw: st.DrawFn) -> dict[str, Any]:
    path = draw(st.sampled_from(["/a", "/{x}", "/a/{x}", "/p{x}", "/{x+}", "/"]))
    match: dict[str, Any] = {"method": draw(st.sampled_from(["GET", "POST", ["GET", "POST"]])), "path": path}
    if draw(st.booleans()):
        match["query"] = {"a": draw(st.sampled_from(["present", "absent", "1"]))}
    if draw(st.booleans()):
        match["body"] = {"a": draw(st.sampled_from(["present", "absent", "1"]))}
    operation: dict[str, Any] = {"match": match, "ignore": draw(st.lists(PATTERNS, max_size=3))}
    if draw(st.integers(0, 9)):
        operation |= {"surface": "data.write", "effect": draw(st.sampled_from(["read", "prepare", "commit"]))}
    kinds = st.sampled_from(["json", "form", "xml", "multipart", "opaque", "none", ["json", "form"]])
    operation["body"] = {
        "decode": draw(kinds),
        "content_types": ["application/json", "application/x-www-form-urlencoded", "absent"],
        "optional": draw(st.booleans()),
        "merge": ["query", "body"],
        "content_codings": ["gzip"],
    }
    operation["params"] = draw(
        st.dictionaries(
            st.sampled_from(["p", "q"]),
            st.fixed_dictionaries(
                {"from": st.lists(SOURCES, min_size=1, max_size=2, unique=True), "type": TYPES},
                optional={"required": st.booleans(), "material": st.booleans()},
            ),
            max_size=2,
        )
    )
    return operation


@st.composite
def maps(draw: st.DrawFn) -> str:
    found = draw(st.lists(operations(), min_size=1, max_size=4))
    rows = [{"id": f"P{number}", **operation} for number, operation in enumerate(found)]
    return json.dumps({"hosts": ["{h}.a.test"], "unknown": None, "operations": rows}).replace(
        '"unknown": null, ', ""
    )


@st.composite
def requests(draw: st.DrawFn) -> CanonicalRequest:
    segments = tuple(
        draw(st.lists(st.sampled_from(["a", "b", "px", "p", "a/b", "é"]), min_size=1, max_size=3))
    )
    body = draw(
        st.sampled_from(
            [
                b"",
                b"{}",
                b'{"a":1}',
                b'{"a":"1","b":{"c":[]},"l":["x",{"a":null}]}',
                b"a=1",
                b"a=1&b[c]=2",
                b"[]",
                b"null",
                b"<a/>",
                b"\xff",
                b'{"a":1.50}',
            ]
        )
    )
    media = draw(
        st.sampled_from(
            [
                None,
                "application/json",
                "application/x-www-form-urlencoded",
                "text/plain",
                "multipart/form-data",
            ]
        )
    )
    query = draw(
        st.none()
        | st.lists(
            st.tuples(st.sampled_from(["a", "b", "z", ""]), st.sampled_from(["1", "", "x\n"])), max_size=3
        )
    )
    fields = draw(
        st.dictionaries(
            st.sampled_from(["x-a", "x-b", "accept", "cookie", "authorization"]),
            st.sampled_from(["1", "", "Bearer x"]),
            max_size=3,
        )
    )
    return CanonicalRequest(
        method=draw(st.sampled_from(["GET", "POST", "PURGE"])),
        scheme="https",
        host=draw(st.sampled_from(["x.a.test", "a.test"])),
        port=443,
        raw_target=b"/",
        segments=segments,
        raw_segments=segments,
        query=None if query is None else tuple(query),
        headers=(),
        fields=fields,
        repeated=frozenset(draw(st.sets(st.sampled_from(["x-c", "via"]), max_size=1))),
        content_type=None if media is None else MediaType(essence=media, params=()),
        content_coding=draw(st.sampled_from([None, None, None, "gzip", "br"])),
        body=body,
    )


@pytest.mark.slow
@settings(max_examples=300)
@given(maps(), st.lists(requests(), min_size=1, max_size=4))
def test_sm28_any_map_and_any_request_give_an_action_or_an_input_error(
    spec: str, several: list[CanonicalRequest]
) -> None:
    try:
        index = index_of(spec)
    except ConfigError:
        return
    again = SurfaceIndex.from_lock(json.loads(json.dumps(index.to_lock())))
    for canonical in several:
        try:
            found = index.recognise(canonical, fleet_key=FLEET_KEY)
        except InputError as error:
            with pytest.raises(InputError) as caught:
                again.recognise(canonical, fleet_key=FLEET_KEY)
            assert (caught.value.reason, caught.value.detail) == (error.reason, error.detail)
            continue
        assert found.actions and all(action.surface for action in found.actions)
        assert again.recognise(canonical, fleet_key=FLEET_KEY) == found


def test_sm32_plans_compiled_on_first_use_are_the_same() -> None:
    canonical = request("/v1/refunds", headers=FORM, body=b"charge=a")
    lazy = SurfaceIndex.from_lock(INDEX.to_lock())
    assert recognise(lazy, canonical) == recognise(INDEX, canonical) == recognise(lazy, canonical)


def two_types(first: str, second: str, operation: str = "") -> SurfaceIndex:
    return index_of(
        "hosts: [a.test]\noperations:\n"
        f"  - {{id: A, match: {{method: GET, path: /a}}, surface: s.x, effect: read,"
        f" params: {{p: {{from: query.p, {first}}}}}}}\n"
        f"  - {{id: B, match: {{method: GET, path: /b}}, surface: s.x, effect: commit,"
        f" params: {{p: {{from: query.p, {second}}}, q: {{from: const.q, type: string}}}}}}\n" + operation
    )


@pytest.mark.parametrize(
    ("first", "second", "chosen", "expected"),
    [
        pytest.param(
            "type: int, required: true",
            "type: minor_units, required: true",
            None,
            {"p": (CelType.INT, False), "q": (CelType.STRING, True)},
            id="required in all",
        ),
        pytest.param(
            "type: int, required: true",
            "type: int",
            None,
            {"p": (CelType.INT, True), "q": (CelType.STRING, True)},
            id="required in one",
        ),
        pytest.param(
            "type: int",
            "type: string, required: true",
            ("m0.B",),
            {"p": (CelType.STRING, False), "q": (CelType.STRING, False)},
            id="one operation",
        ),
    ],
)
def test_sm30_a_parameter_has_one_type(
    first: str, second: str, chosen: tuple[str, ...] | None, expected: dict[str, tuple[CelType, bool]]
) -> None:
    schema = two_types(first, second).param_schema("s.x", chosen)
    assert schema == {
        name: ParamSchema(type=kind, optional=optional) for name, (kind, optional) in expected.items()
    }


def test_sm30_two_types_name_both_operations() -> None:
    index = two_types("type: int", "type: string")
    with pytest.raises(ConfigError, match=r"'p' of surface 's\.x' is int in m0\.A and string in m0\.B"):
        index.param_schema("s.x", None)


@pytest.mark.parametrize(
    ("surface", "chosen", "message"),
    [
        pytest.param("s.y", None, "no operation has the surface", id="unknown surface"),
        pytest.param("s.x", ("m0.C",), "does not have the surface", id="operation of another surface"),
    ],
)
def test_a_policy_of_nothing_is_an_error(surface: str, chosen: tuple[str, ...] | None, message: str) -> None:
    other = "  - {id: C, match: {method: GET, path: /c}, surface: s.z, effect: read}"
    with pytest.raises(ConfigError, match=message):
        two_types("type: int", "type: int", other).param_schema(surface, chosen)


def test_surfaces_operations_and_effects_are_listed() -> None:
    index = two_types("type: int", "type: int")
    assert index.surfaces() == {"s.x"}
    assert index.operations("s.x") == ("m0.A", "m0.B")
    assert index.effects("s.x") == {Effect.READ, Effect.COMMIT}
    assert index.operations("s.y") == () and index.effects("s.y") == frozenset()
    assert [(host.host, host.scheme, host.port) for host in index.hosts()] == [("a.test", "https", 443)]


def test_refusals_have_the_shape_of_the_map() -> None:
    assert INDEX.refusal("api.pay.test", 443, "https") == ("stripe", ((b"Pay-Should-Retry", b"false"),))
    assert INDEX.refusal("other.test", 443, "https") == ("problem", ())
    found = recognise(INDEX, request("/v1/refunds", headers=FORM, body=b"charge=a"))
    assert (found.refusal, found.retry_headers) == INDEX.refusal("api.pay.test", 443, "https")
    assert (found.deadlines.connect_s, found.deadlines.first_byte_s, found.deadlines.total_s) == (
        None,
        60,
        600,
    )


@pytest.mark.parametrize(
    ("method", "body", "length"),
    [
        pytest.param("POST", b"charge=a", b"8", id="a body"),
        pytest.param("POST", b"", b"0", id="a POST without body"),
        pytest.param("GET", b"", None, id="a GET"),
    ],
)
def test_host_first_then_what_came_then_the_length(method: str, body: bytes, length: bytes | None) -> None:
    target, host = ("/v1/refunds", "api.pay.test") if body or method == "GET" else ("/api/const", "chat.test")
    headers = {"Accept": "x", **FORM} if body else {"Accept": "x"}
    found = recognise(INDEX, request(target, method=method, host=host, headers=headers, body=body))
    assert found.headers[0] == (b"Host", host.encode())
    assert found.headers[1] == (b"Accept", b"x")
    lengths = [value for name, value in found.headers if name == b"Content-Length"]
    assert lengths == ([] if length is None else [length])
    assert length is None or found.headers[-1][0] == b"Content-Length"


def test_two_maps_of_one_name_are_an_error() -> None:
    one = map_of("hosts: [a.test]\noperations:\n  - {id: A, match: {method: GET, path: /a}}")
    with pytest.raises(ConfigError, match="the same name"):
        SurfaceIndex.compile([one, one])


def test_many_host_names_are_not_remembered_for_ever() -> None:
    index = SurfaceIndex.compile(
        [
            map_of(
                "hosts: ['{h}.a.test']\noperations:\n  - {id: A, match: {method: GET, path: /a},"
                " surface: s.x, effect: read}"
            )
        ]
    )
    for number in range(4200):
        recognise(index, request("/a", method="GET", host=f"h{number}.a.test"))
    assert len(index._names) <= 4096


def test_json_headers_are_never_confused() -> None:
    found = recognise(INDEX, request("/v1/model", headers=JSON, body=b"{}"))
    assert found.actions[0].operation == "pay.Model"
