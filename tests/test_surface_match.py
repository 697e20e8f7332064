"""surface/template.py, match.py, host.py, overlap.py: which operation a request is."""

from __future__ import annotations

import random
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdgate.errors import ConfigError, InputError, Reason
from holdgate.surface.index import SurfaceIndex
from holdgate.surface.match import HostTrie, fits_path
from holdgate.surface.spec import SurfaceMap
from holdgate.surface.template import Order, compare, overlap, parse_template
from surface_requests import FORM, JSON, index_of, map_of, recognise, request, shared_index


def spec_of(*paths: str, hosts: str = "[a.test]", extra: str = "") -> str:
    """A map whose operations P0, P1, ... have these paths (and whatever follows `;`)."""
    lines = [f"hosts: {hosts}", extra, "operations:"]
    for number, path in enumerate(paths):
        path, _, rest = path.partition(";")
        names = [
            part[part.index("{") + 1 : part.index("}")].rstrip("+") for part in path.split("/") if "{" in part
        ]
        ignore = ", ".join(f"path.{name}" for name in names)
        lines += [
            f"  - id: P{number}",
            f"    match: {{method: GET, path: '{path}'{rest}}}",
            "    surface: data.read",
            "    effect: read",
            f"    ignore: ['query.*', {ignore}]",
        ]
    return "\n".join(line for line in lines if line)


def operation_of(index: SurfaceIndex, target: str, **more: object) -> str:
    try:
        found = recognise(index, request(target, method="GET", host="a.test", **more))  # type: ignore[arg-type]
    except InputError as error:
        return str(error.reason)
    return found.actions[0].operation


@pytest.mark.parametrize(
    ("paths", "target", "expected"),
    [
        pytest.param(["/a/{x}", "/a/b"], "/a/b", "m0.P1", id="literal beats variable"),
        pytest.param(["/a/{x}", "/a/pre{x}"], "/a/prefix", "m0.P1", id="affix beats variable"),
        pytest.param(["/a/pre{x}", "/a/prefix"], "/a/prefix", "m0.P1", id="literal beats affix"),
        pytest.param(["/a/p{x}", "/a/pre{x}"], "/a/prefix", "m0.P1", id="longer affix beats shorter"),
        pytest.param(["/{x+}", "/a/{x}"], "/a/b", "m0.P1", id="variable beats rest"),
        pytest.param(["/{x+}", "/a/{x}"], "/a/b/c", "m0.P0", id="rest takes many segments"),
        pytest.param(["/{x+}", "/a/{x+}"], "/a/b/c", "m0.P1", id="longer literal beats rest"),
        pytest.param(["/a/{x}"], "/a/", "unknown_operation", id="a variable is not empty"),
        pytest.param(["/{x+}"], "/", "unknown_operation", id="a rest is not empty"),
        pytest.param(["/{x+}"], "/a/", "m0.P0", id="a rest may end in a slash"),
        pytest.param(["/a/x{y}z"], "/a/xz", "unknown_operation", id="an affix variable is not empty"),
        pytest.param(["/a/{x}:cancel", "/a/{x}"], "/a/1:cancel", "m0.P0", id="custom verb"),
        pytest.param(["/a"], "/a/", "unknown_operation", id="a slash more is another path"),
        pytest.param(["/A"], "/a", "unknown_operation", id="paths have case"),
        pytest.param(["/a", "/a; , query: {acl: present}"], "/a?acl", "m0.P1", id="discriminator wins"),
        pytest.param(["/a", "/a; , query: {acl: present}"], "/a", "m0.P0", id="discriminator absent"),
        pytest.param(
            ["/a; , query: {t: '2'}", "/a; , query: {t: present}"],
            "/a?t=2",
            "m0.P0",
            id="literal beats present",
        ),
        pytest.param(
            ["/a; , query: {t: '2'}", "/a; , query: {t: present}"], "/a?t=3", "m0.P1", id="another literal"
        ),
        pytest.param(["/a; , query: {t: absent}"], "/a?t=3", "unknown_operation", id="must be absent"),
        pytest.param(
            ["/a; , query: {p: present}", "/a; , query: {q: present}"],
            "/a?p&q",
            "ambiguous_operation",
            id="two discriminators",
        ),
        pytest.param(
            ["/{x}/b; , query: {q: present}", "/a/{y}"],
            "/a/b?q",
            "m0.P0",
            id="incomparable paths, more discriminators",
        ),
    ],
)
def test_the_most_specific_operation_wins(paths: list[str], target: str, expected: str) -> None:
    assert operation_of(index_of(spec_of(*paths)), target) == expected


def test_header_discriminators_read_the_type_without_parameters() -> None:
    index = index_of(spec_of("/a; , header: {content-type: application/json}"))
    headers = {"Content-Type": "application/json; charset=utf-8"}
    assert operation_of(index, "/a", headers=headers) == "m0.P0"


@pytest.mark.parametrize("body", [b"confirm=true&amount=5", b"amount=5&confirm=true"])
def test_body_discriminators_choose_between_two_effects(body: bytes) -> None:
    index = shared_index()
    assert (
        recognise(index, request("/v1/charges", headers=FORM, body=body)).actions[0].operation == "pay.Charge"
    )
    plain = request("/v1/charges", headers=FORM, body=b"amount=5")
    assert recognise(index, plain).actions[0].operation == "pay.Prepare"


def test_a_body_discriminator_can_equal_a_path_variable() -> None:
    index = shared_index()
    good = request("/fhir/R4/Patient", host="ehr.test", headers=JSON, body=b'{"resourceType":"Patient"}')
    assert recognise(index, good).actions[0].operation == "ehr.create"
    other = request("/fhir/R4/Patient", host="ehr.test", headers=JSON, body=b'{"resourceType":"Binary"}')
    with pytest.raises(InputError) as caught:
        recognise(index, other)
    assert caught.value.reason is Reason.UNKNOWN_OPERATION


SEGMENT = st.sampled_from(["a", "b", "{v}", "a{v}", "{v}b"])


def path_of(parts: list[str], rest: bool) -> str:
    named = [part.replace("v", f"v{index}") for index, part in enumerate(parts)]
    return "/" + "/".join([*named, "{r+}"] if rest else named)


PATHS = st.builds(path_of, st.lists(SEGMENT, min_size=1, max_size=3), st.booleans())
CONCRETE = st.lists(st.sampled_from(["a", "b", "ab", "aab", "c"]), min_size=1, max_size=4)


def matches(path: str, parts: list[str]) -> bool:
    """An oracle without tries: one segment after the other."""
    template = path[1:].split("/")
    if template[-1] == "{r+}":
        template = template[:-1]
        if len(parts) <= len(template):
            return False
        parts = parts[: len(template)]
    if len(template) != len(parts):
        return False
    for wanted, part in zip(template, parts, strict=True):
        before, brace, after = wanted.partition("{")
        after = after.partition("}")[2]
        if not brace:
            if wanted != part:
                return False
        elif not (part.startswith(before) and part.endswith(after) and len(part) > len(before) + len(after)):
            return False
    return True


@given(st.lists(PATHS, min_size=1, max_size=4, unique=True), CONCRETE)
def test_sm9_variables_take_one_whole_segment(paths: list[str], parts: list[str]) -> None:
    for path in paths:
        assert fits_path(parse_template(path), parts) == matches(path, parts)


@given(PATHS, PATHS)
def test_sm10_specificity_is_antisymmetric(left: str, right: str) -> None:
    there, back = (
        compare(parse_template(left), parse_template(right)),
        compare(parse_template(right), parse_template(left)),
    )
    mirror = {
        Order.MORE: Order.LESS,
        Order.LESS: Order.MORE,
        Order.EQUAL: Order.EQUAL,
        Order.NONE: Order.NONE,
    }
    assert back is mirror[there]


@given(PATHS, PATHS, CONCRETE)
def test_sm10_overlap_is_seen_whenever_one_path_matches_both(left: str, right: str, parts: list[str]) -> None:
    if matches(left, parts) and matches(right, parts):
        assert overlap(parse_template(left), parse_template(right))


@pytest.mark.parametrize("path", ["/a//b", "/./a", "/{x}{y}", "/{x+}/a", "/a{x+}", "/{x", "/{x}/{x}", "/{}"])
def test_a_bad_template_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_template(path)


@given(st.lists(PATHS, min_size=1, max_size=4, unique=True), CONCRETE, st.randoms(use_true_random=False))
def test_sm11_the_order_of_operations_does_not_count(
    paths: list[str], parts: list[str], rng: random.Random
) -> None:
    try:
        first = index_of(spec_of(*paths))
    except ConfigError:
        return
    shuffled = paths[:]
    rng.shuffle(shuffled)
    second = index_of(spec_of(*shuffled))
    target = "/" + "/".join(parts)
    one, two = operation_of(first, target), operation_of(second, target)
    if one.startswith("m0."):
        assert paths[int(one[4:])] == shuffled[int(two[4:])]
    else:
        assert one == two


def test_sm11_the_order_of_maps_and_hosts_does_not_count() -> None:
    maps = [
        map_of(spec_of("/a", hosts='["{x}.a.test", b.a.test]'), name="one"),
        map_of(spec_of("/b", hosts='["b.a.test"]'), name="two"),
        map_of(spec_of("/a", hosts='["{y}.{x}.test"]'), name="three"),
    ]
    seen = set()
    for order in permutations(maps):
        index = SurfaceIndex.compile(order)
        seen.add(
            tuple(
                recognise(index, request(target, method="GET", host=host)).actions[0].operation
                for host, target in [
                    ("b.a.test", "/a"),
                    ("b.a.test", "/b"),
                    ("c.a.test", "/a"),
                    ("c.d.test", "/a"),
                ]
            )
        )
    assert seen == {("one.P0", "two.P0", "one.P0", "three.P0")}


@given(st.lists(PATHS, min_size=2, max_size=2, unique=True), CONCRETE)
def test_sm12_a_match_that_does_not_beat_the_others_is_never_chosen(
    paths: list[str], parts: list[str]
) -> None:
    # One map per path: their overlap is not an error of either.
    index = index_of(spec_of(paths[0]), spec_of(paths[1]))
    found = operation_of(index, "/" + "/".join(parts))
    hits = [matches(path, parts) for path in paths]
    if sum(hits) == 0:
        assert found == "unknown_operation"
    elif sum(hits) == 1:
        assert found == f"m{hits.index(True)}.P0"
    else:
        order = compare(parse_template(paths[0]), parse_template(paths[1]))
        expected = {Order.MORE: "m0.P0", Order.LESS: "m1.P0"}.get(order, "ambiguous_operation")
        assert found == expected


def test_sm12_the_same_operation_in_two_maps_is_ambiguous() -> None:
    assert operation_of(index_of(spec_of("/a"), spec_of("/a")), "/a") == "ambiguous_operation"


@pytest.mark.parametrize(
    "paths",
    [
        pytest.param(["/a/{x}", "/a/{y}"], id="one shape"),
        pytest.param(["/a/{x}", "/{y}/b"], id="neither more specific"),
        pytest.param(["/a{x}", "/{x}b"], id="affixes that cross"),
        pytest.param(["/a; , query: {q: present}", "/a; , query: {q: present}"], id="one discriminator"),
        pytest.param([*(f"/a/b{n}/{{x}}" for n in range(40)), "/a/{y}/c"], id="one among many"),
    ],
)
def test_sm25_a_pair_that_cannot_be_told_apart_is_an_error(paths: list[str]) -> None:
    with pytest.raises(ConfigError, match="neither is more specific"):
        index_of(spec_of(*paths))


@pytest.mark.parametrize(
    "paths",
    [
        pytest.param(["/a/{x}", "/a/b"], id="one more specific"),
        pytest.param(["/a/{x}", "/b/{x}"], id="no overlap"),
        pytest.param(["/a; , query: {q: '1'}", "/a; , query: {q: '2'}"], id="different literals"),
        pytest.param(["/{x}:start", "/{x}:stop"], id="different suffixes"),
    ],
)
def test_sm25_pairs_that_can_be_told_apart_are_not(paths: list[str]) -> None:
    assert index_of(spec_of(*paths)).surfaces() == {"data.read"}


def test_sm25_prefer_decides() -> None:
    spec = spec_of("/a/{x}", "/{y}/b").replace("  - id: P0\n", "  - id: P0\n    prefer: [P1]\n")
    assert operation_of(index_of(spec), "/a/b") == "m0.P0"
    with pytest.raises(ConfigError, match="prefer names 'P7'"):
        index_of(spec.replace("[P1]", "[P7]"))


def test_sm25_two_operations_without_a_surface_may_overlap() -> None:
    spec = "hosts: [a.test]\noperations:\n"
    spec += "  - {id: A, match: {method: GET, path: '/{x}'}}\n  - {id: B, match: {method: GET, path: '/{y}'}}"
    assert operation_of(index_of(spec), "/a") == "ambiguous_operation"


def rpc(**changes: str) -> dict[str, str]:
    return {"Content-Type": "application/x-amz-json-1.0", "X-Amz-Target": "T.Put", **changes}


RPC = "rpc.eu.cloud.test"


@pytest.mark.parametrize(
    ("target", "method", "headers", "expected"),
    [
        pytest.param("/", "POST", rpc(), "cloud.rpc.Put", id="by its name"),
        pytest.param("/", "POST", rpc(**{"X-Amz-Target": "T.Other"}), "unknown_operation", id="another name"),
        pytest.param("/x", "POST", rpc(), "unknown_operation", id="another path"),
        pytest.param("/", "PUT", rpc(), "unknown_operation", id="another method"),
        pytest.param(
            "/", "POST", {"Content-Type": "application/x-amz-json-1.0"}, "unknown_operation", id="no name"
        ),
    ],
)
def test_sm31_an_rpc_operation_is_found_by_its_name(
    target: str, method: str, headers: dict[str, str], expected: str
) -> None:
    canonical = request(target, method=method, host=RPC, headers=headers, body=b'{"Table":"t"}')
    try:
        found = recognise(shared_index(), canonical).actions[0].operation
    except InputError as error:
        found = str(error.reason)
    assert found == expected


def test_sm31_a_name_twice_is_refused() -> None:
    headers = tuple((name.encode(), value.encode()) for name, value in rpc().items())
    twice = (*headers, (b"x-amz-target", b"T.Get"))
    with pytest.raises(InputError) as caught:
        recognise(shared_index(), request("/", host=RPC, headers=twice, body=b'{"Table":"t"}'))
    assert caught.value.reason is Reason.DUPLICATE_PARAMETER


def test_sm31_a_request_with_a_name_is_not_matched_by_path() -> None:
    both = index_of(
        "hosts: [a.test]\ndispatch: {header: x-target}\noperations:\n"
        "  - {id: T, match: {method: GET, target: T}, surface: data.read, effect: read}",
        spec_of("/"),
    )
    assert operation_of(both, "/") == "m1.P0"
    assert operation_of(both, "/", headers={"X-Target": "T"}) == "m0.T"
    assert operation_of(both, "/", headers={"X-Target": "Terminate"}) == "unknown_operation"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(b"Action=Run&Version=1&Image.1=a", "cloud.query.Run", id="by form field"),
        pytest.param(b"Action=Stop&Version=1", "unknown_operation", id="another name"),
        pytest.param(b"Version=1", "unknown_operation", id="no name"),
        pytest.param(b"Action=Run&Action=Stop", "duplicate_parameter", id="two names"),
    ],
)
def test_sm31_a_form_can_name_the_operation(body: bytes, expected: str) -> None:
    try:
        found = (
            recognise(shared_index(), request("/", host="query.cloud.test", headers=FORM, body=body))
            .actions[0]
            .operation
        )
    except InputError as error:
        found = str(error.reason)
    assert found == expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        pytest.param("a.b.test", ["exact"], id="exact beats template"),
        pytest.param("x.b.test", ["one"], id="one literal more"),
        pytest.param("a.y.test", ["two"], id="the other literal"),
        pytest.param("x.y.test", ["any"], id="only variables"),
        pytest.param("x.y.z.test", [], id="a variable is one label"),
        pytest.param("test", [], id="too short"),
    ],
)
def test_host_templates_have_an_order(host: str, expected: list[str]) -> None:
    trie: HostTrie[str] = HostTrie()
    for pattern, name in [
        ("a.b.test", "exact"),
        ("{x}.b.test", "one"),
        ("a.{x}.test", "two"),
        ("{x}.{y}.test", "any"),
    ]:
        trie.add(pattern, name)
    assert trie.find(host) == expected


def test_hosts_of_which_neither_is_more_specific_are_both_candidates() -> None:
    maps: list[SurfaceMap] = [
        map_of(spec_of("/a", hosts='["{x}.b.test"]'), name="one"),
        map_of(spec_of("/a", hosts='["a.{x}.test"]'), name="two"),
    ]
    with pytest.raises(InputError) as caught:
        recognise(SurfaceIndex.compile(maps), request("/a", method="GET", host="a.b.test"))
    assert caught.value.reason is Reason.AMBIGUOUS_OPERATION


def test_one_map_that_reads_a_host_in_two_ways_is_ambiguous() -> None:
    index = index_of(spec_of("/a", hosts='["{x}.b.test", "a.{x}.test"]'))
    with pytest.raises(InputError) as caught:
        recognise(index, request("/a", method="GET", host="a.b.test"))
    assert caught.value.reason is Reason.AMBIGUOUS_OPERATION


def test_port_and_scheme_are_part_of_the_origin() -> None:
    index = shared_index()
    assert index.is_mapped("b.store.test", 443, "https")
    assert index.is_mapped("b.store.test", 8080, "http")
    assert not index.is_mapped("b.store.test", 8080, "https")
    assert not index.is_mapped("b.store.test", 80, "http")
    found = recognise(index, request("/k", method="DELETE", host="b.store.test", scheme="http", port=8080))
    assert found.headers[0] == (b"Host", b"b.store.test:8080")


def test_a_base_is_a_path_with_and_without_its_slash() -> None:
    index = index_of(spec_of("/", "/{x}", extra="base: /v1"))
    assert [operation_of(index, path) for path in ("/v1", "/v1/", "/v1/a", "/")] == [
        "m0.P0",
        "m0.P0",
        "m0.P1",
        "unknown_operation",
    ]
