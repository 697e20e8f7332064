"""surface/sources.py: names of fields, the tree of declared fields, reading by path."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdgate.surface.sources import (
    DEEP,
    EACH,
    MISSING,
    Cover,
    ShapeError,
    dig,
    parse_pattern,
    parse_source,
)


@pytest.mark.parametrize(
    ("text", "kind", "name", "path"),
    [
        pytest.param("path.id", "path", "id", (), id="path variable"),
        pytest.param("header.Stripe-Account", "header", "stripe-account", (), id="header in lower case"),
        pytest.param("query.created[gte]", "query", "created[gte]", (), id="query key with brackets"),
        pytest.param("query.a.b", "query", "a.b", (), id="query key with a dot"),
        pytest.param("query.a.*", "query", "a.*", (), id="all query keys of a name"),
        pytest.param("body.a.b", "body", "a.b", ("a", "b"), id="nested field"),
        pytest.param("body.a[].b", "body", "a[].b", ("a", EACH, "b"), id="field of every item"),
        pytest.param("body.a[][]", "body", "a[][]", ("a", EACH, EACH), id="list of lists"),
        pytest.param("body", "body", "", (), id="whole body"),
        pytest.param("body[].x", "body", "[].x", (EACH, "x"), id="body that is a list"),
        pytest.param("body.a[].**.b.c", "body", "a[].**.b.c", ("a", EACH, DEEP, "b", "c"), id="a search"),
        pytest.param("body.**.b", "body", "**.b", (DEEP, "b"), id="a search of the whole body"),
        pytest.param("const.a b", "const", "a b", (), id="constant"),
    ],
)
def test_a_source_is_read(text: str, kind: str, name: str, path: tuple[Any, ...]) -> None:
    source = parse_source(text)
    assert (source.kind, source.name, source.path) == (kind, name, path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "amount",
        "body.",
        "cookie.x",
        "body.a..b",
        "body.a[b]",
        "raw.md5",
        "body.*",
        "query.*",
        "query.a*",
        "header.a.*",
        "query.**.a",
        "body.a.**",
        "body.**.a[]",
        "body.**.a.**.b",
        "body.**.*",
    ],
)
def test_what_is_no_source_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_source(text)


@pytest.mark.parametrize(
    "text", ["body", "*", "path.*", "header.*", "header.x.*", "raw.bytes", "const.x", "amount"]
)
def test_what_is_no_pattern_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_pattern(text)


def cover_of(*texts: str) -> Cover:
    cover = Cover()
    for text in texts:
        pattern = parse_pattern(text)
        cover.add(pattern.path, deep=pattern.deep)
    return cover


@pytest.mark.parametrize(
    ("declared", "value", "left"),
    [
        pytest.param(["body.a"], {"a": 1}, None, id="a scalar by its name"),
        pytest.param(["body.a"], {"a": ["x", "y"]}, None, id="a list of scalars by its name"),
        pytest.param(["body.a"], {"a": {"b": 1}}, "a.b", id="a record needs a star"),
        pytest.param(["body.a"], {"a": [{"b": 1}]}, "a", id="a list of records needs a star"),
        pytest.param(["body.a.*"], {"a": {"b": [{"c": 1}]}}, None, id="a star covers everything below"),
        pytest.param(["body.*"], {"x": 1, "y": {}}, None, id="everything"),
        pytest.param(["body.a.b"], {"a": {"b": 1, "c": 2}}, "a.c", id="a sibling is not covered"),
        pytest.param(["body.a.b"], {"a": 1}, "a", id="a scalar in place of a record"),
        pytest.param(["body.a[].b"], {"a": [{"b": 1}, {"c": 1}]}, "a.[].c", id="a field of one item"),
        pytest.param(["body.a"], {"A": 1}, "A", id="another spelling"),
        pytest.param(["body.a"], {}, None, id="nothing there"),
        pytest.param(["body.a"], {"a": {}}, None, id="an empty record holds nothing"),
        pytest.param([], {"@ns": "u"}, "@ns", id="a namespace outside XML"),
    ],
)
def test_sm2_every_field_is_declared_or_named(declared: list[str], value: Any, left: str | None) -> None:
    assert cover_of(*declared).first_uncovered(value) == left


def test_sm2_an_xml_namespace_needs_no_declaration() -> None:
    assert cover_of("body.a").first_uncovered({"@ns": "u", "a": "x"}, True) is None


SCALARS = st.sampled_from([1, "x", True, None])
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
)
RECORDS = st.dictionaries(st.sampled_from("ab"), TREES, max_size=2)
PATTERNS = st.lists(
    st.sampled_from(["body.a", "body.b", "body.a.*", "body.a.b", "body.a[].a", "body.b.a.*", "body.a[].b.*"]),
    max_size=4,
)


def leaves(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Paths of scalars, list positions written as []; an oracle that does not use Cover."""
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in leaves(item, (*path, key))]
    if isinstance(value, list):
        return [leaf for item in value for leaf in leaves(item, (*path, "[]"))]
    return [path]


@given(RECORDS, PATTERNS)
def test_sm2_a_covered_body_has_no_leaf_outside_the_patterns(
    body: dict[str, Any], patterns: list[str]
) -> None:
    if cover_of(*patterns).first_uncovered(body) is not None:
        return
    for leaf in leaves(body):
        text = "body." + ".".join(leaf).replace(".[]", "[]")
        stem = text.removesuffix("[]")
        deep = [pattern[:-2] for pattern in patterns if pattern.endswith(".*")]
        assert (
            text in patterns
            or stem in patterns
            or any(text == start or text.startswith((start + ".", start + "[")) for start in deep)
        )


@given(RECORDS, PATTERNS)
def test_cutting_out_covered_fields_leaves_nothing_of_them(body: dict[str, Any], patterns: list[str]) -> None:
    deep = [text if text.endswith(".*") else text + ".*" for text in patterns]
    cover = cover_of(*deep)
    assert cover.without(cover.without(body)) == cover.without(body)
    for text in deep:
        path = parse_pattern(text).path
        if EACH not in path:
            try:
                assert dig(cover.without(body), path) is MISSING
            except ShapeError:
                continue


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        pytest.param(("a", "b"), {"a": {"b": 1}}, 1, id="nested"),
        pytest.param(("a", "b"), {"a": {}}, MISSING, id="absent"),
        pytest.param(("a", EACH, "b"), {"a": [{"b": 1}, {}, {"b": 2}]}, [1, 2], id="items that have it"),
        pytest.param(("a", EACH, "b", EACH), {"a": [{"b": [1]}, {"b": [2, 3]}]}, [1, 2, 3], id="flat"),
        pytest.param((), {"a": 1}, {"a": 1}, id="the whole"),
    ],
)
def test_a_path_is_read(path: tuple[Any, ...], value: Any, expected: Any) -> None:
    assert dig(value, path) == expected


@pytest.mark.parametrize(
    ("path", "value"),
    [
        pytest.param(("a", "b"), {"a": [{"b": 1}]}, id="a list where a record is expected"),
        pytest.param(("a", "b"), {"a": None}, id="null where a record is expected"),
        pytest.param(("a", EACH), {"a": {"b": 1}}, id="a record where a list is expected"),
        pytest.param(("a",), [1], id="a list as the whole body"),
    ],
)
def test_sm3_another_shape_is_an_error_and_no_absence(path: tuple[Any, ...], value: Any) -> None:
    with pytest.raises(ShapeError):
        dig(value, path)


def test_sm3_one_xml_element_is_a_list_of_one() -> None:
    assert dig({"a": {"b": "x"}}, ("a", EACH, "b"), True) == ["x"]


def places(value: Any, names: tuple[str, ...]) -> list[Any]:
    """Every value at `names` of any record in `value`; an oracle that recurses, in no order."""
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    found = [got for child in inner for got in places(child, names)]
    node: Any = value
    for name in names:
        if not isinstance(node, dict) or name not in node:
            return found
        node = node[name]
    return [*found, node]


@given(TREES, st.sampled_from([("a",), ("b",), ("a", "b"), ("a", "a")]))
def test_sm3_a_search_finds_every_place_at_any_depth(value: Any, names: tuple[str, ...]) -> None:
    got = dig({"top": value}, ("top", DEEP, *names))
    expected = places(value, names)
    assert sorted(map(repr, [] if got is MISSING else got)) == sorted(map(repr, expected))


def test_sm3_a_search_has_the_order_of_the_body() -> None:
    body = {"a": [{"x": 1}, {"b": {"x": {"x": 2}}}, {"x": 3}], "x": 0}
    assert dig(body, (DEEP, "x")) == [0, 1, {"x": 2}, 2, 3]
    assert dig(body, ("a", EACH, DEEP, "x")) == [1, {"x": 2}, 2, 3]
