"""content/strictjson.py: JSONTestSuite and own vectors, then the invariants J1-J4 as properties."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdgate.content.strictjson import Number, parse_json
from holdgate.errors import InputError, Reason

VECTORS = Path(__file__).parent / "vectors" / "json"
SUITE = Path(__file__).resolve().parents[2] / "shared" / "vectors" / "JSONTestSuite" / "test_parsing"

# Files that RFC 8259 lets a reader accept and that we refuse, with the reason why.
REFUSED_ON_PURPOSE = {
    "y_object_duplicated_key.json": "duplicate keys: readers take the first or the last",
    "y_object_duplicated_key_and_value.json": "duplicate keys, whatever the values",
}
# Files where a reader may do either, and we accept: the lexeme is kept, nothing is rounded.
ACCEPTED_ON_PURPOSE = {
    "i_number_double_huge_neg_exp.json",
    "i_number_huge_exp.json",
    "i_number_neg_int_huge_exp.json",
    "i_number_pos_double_huge_exp.json",
    "i_number_real_neg_overflow.json",
    "i_number_real_pos_overflow.json",
    "i_number_real_underflow.json",
    "i_number_too_big_neg_int.json",
    "i_number_too_big_pos_int.json",
}


def refusal(data: bytes, **bounds: int) -> Reason | None:
    try:
        parse_json(data, **bounds)
    except InputError as error:
        return error.reason
    return None


@pytest.mark.skipif(not SUITE.is_dir(), reason="JSONTestSuite is not beside this checkout")
def test_agrees_with_json_test_suite_but_for_a_named_list() -> None:
    files = sorted(SUITE.glob("*.json"))
    accepted = {file.name for file in files if refusal(file.read_bytes()) is None}
    mandatory = {file.name for file in files if file.name.startswith("y_")}
    assert len(mandatory) == 95
    assert accepted == (mandatory - REFUSED_ON_PURPOSE.keys()) | ACCEPTED_ON_PURPOSE


@pytest.mark.parametrize("path", sorted((VECTORS / "valid").glob("*.json")), ids=lambda path: path.stem)
def test_valid_vectors_read_as_the_standard_library_reads_them(path: Path) -> None:
    data = path.read_bytes()
    assert parse_json(data) == json.loads(data, parse_float=str, parse_int=_lexeme_of_negative_zero)


def _lexeme_of_negative_zero(lexeme: str) -> int | str:
    return lexeme if lexeme == "-0" else int(lexeme)


@pytest.mark.parametrize("path", sorted((VECTORS / "invalid").glob("*.json")), ids=lambda path: path.stem)
def test_invalid_vectors_are_refused(path: Path) -> None:
    expected = Reason.DUPLICATE_PARAMETER if path.stem.startswith("duplicate") else Reason.BAD_BODY
    assert refusal(path.read_bytes()) is expected


KEYS = st.sampled_from(["a", "A", "b", "\u017f", "s", "S", "ss", "ß"])
TREES = st.recursive(
    st.one_of(
        st.integers(-(10**39), 10**39), st.booleans(), st.none(), st.text(st.characters(codec="utf-8"))
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)


def _has_twins(tree: Any) -> bool:
    if isinstance(tree, list):
        return any(map(_has_twins, tree))
    if isinstance(tree, dict):
        upper = [key.upper() for key in tree]
        return len(set(upper)) != len(upper) or any(map(_has_twins, tree.values()))
    return False


@given(TREES, st.booleans())
def test_j1_a_tree_comes_back_unless_a_record_has_twins(tree: Any, escape: bool) -> None:
    data = json.dumps(tree, ensure_ascii=escape).encode()
    if _has_twins(tree):
        assert refusal(data) is Reason.DUPLICATE_PARAMETER
    else:
        assert parse_json(data) == tree


@given(st.lists(st.tuples(st.sampled_from(['"a"', '"\\u0061"', '"b"']), st.integers(0, 2)), max_size=4))
def test_j1_equal_keys_are_refused_however_they_are_written(pairs: list[tuple[str, int]]) -> None:
    data = "{" + ",".join(f"{key}:{value}" for key, value in pairs) + "}"
    names = [json.loads(key) for key, _ in pairs]
    twice = len(set(names)) != len(names)
    assert refusal(data.encode()) is (Reason.DUPLICATE_PARAMETER if twice else None)


@given(st.from_regex(r"\A-?(0|[1-9][0-9]{0,12})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,5})?\Z"))
def test_j2_a_number_keeps_its_lexeme_or_is_an_exact_int(lexeme: str) -> None:
    value = parse_json(lexeme.encode())
    assert not isinstance(value, float)
    if isinstance(value, Number):
        assert str(value) == lexeme and (lexeme == "-0" or not lexeme.lstrip("-").isdigit())
    else:
        assert isinstance(value, int) and str(value) == lexeme


def test_j2_a_number_says_what_it_is() -> None:
    assert repr(parse_json(b"1.50")) == "Number('1.50')"
    assert not math.isinf(float("1e308")) and parse_json(b"1e400") == Number("1e400")


@given(st.lists(st.sampled_from(["a", "\\", '"', "u", "\\ud83d", "\\ude00", "\ud800", "é"]), max_size=8))
def test_j3_no_accepted_string_holds_a_surrogate(pieces: list[str]) -> None:
    data = f'["{"".join(pieces)}"]'.encode("utf-8", "surrogatepass")
    try:
        value = parse_json(data)
    except InputError as error:
        assert error.reason is Reason.BAD_BODY
        return
    assert json.dumps(value, ensure_ascii=False).encode("utf-8")
    assert value == json.loads(data.decode("utf-8"))


def _depth(tree: Any) -> int:
    if isinstance(tree, dict):
        tree = list(tree.values())
    return 1 + max(map(_depth, tree), default=0) if isinstance(tree, list) else 0


SHAPES = st.recursive(
    st.sampled_from(['"', "\\", '\\"[', "[[", "{,", "", "]"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["[", "\\", "k"]), inner, max_size=2)
    ),
    max_leaves=30,
)


@given(SHAPES, st.integers(1, 4))
def test_j4_depth_is_counted_outside_strings_exactly(tree: Any, bound: int) -> None:
    expected = Reason.BAD_BODY if _depth(tree) > bound else None
    assert refusal(json.dumps(tree).encode(), max_depth=bound) is expected


def _values(tree: Any) -> int:
    children = list(tree.values()) if isinstance(tree, dict) else tree if isinstance(tree, list) else []
    return 1 + sum(map(_values, children))


@given(SHAPES, st.integers(1, 12))
def test_j4_values_are_counted_outside_strings(tree: Any, bound: int) -> None:
    data = json.dumps(tree).encode()
    counted = 1 + data_opens_and_commas(tree)
    assert counted >= _values(tree)
    reason = refusal(data, max_nodes=bound)
    assert reason is (Reason.TOO_LARGE if counted > bound and len(data) > bound else None)


def data_opens_and_commas(tree: Any) -> int:
    """One for each container, and one for each child after the first: the documented bound."""
    children = list(tree.values()) if isinstance(tree, dict) else tree if isinstance(tree, list) else None
    if children is None:
        return 0
    return 1 + max(len(children) - 1, 0) + sum(map(data_opens_and_commas, children))


@pytest.mark.parametrize("data", [b"[" * 90_000, b'{"":' * 90_000, b'[{"":' * 40_000], ids=len)
def test_j4_deep_nesting_never_reaches_the_recursion_limit(data: bytes) -> None:
    assert refusal(data) is Reason.BAD_BODY
    # Even with the bound out of the way the scanner's own limit becomes our error.
    assert refusal(data, max_depth=10**6, max_nodes=10**7) is Reason.BAD_BODY


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"[-" + b"9" * 40 + b"]", None, id="40 digits and a sign"),
        pytest.param(b"[-" + b"9" * 41 + b"]", Reason.BAD_BODY, id="41 digits"),
        pytest.param(b"[" + b"9" * 100_000 + b"]", Reason.BAD_BODY, id="100,000 digits"),
        pytest.param(b"[0." + b"1" * 998 + b"]", None, id="number of 1000 characters"),
        pytest.param(b"[0." + b"1" * 999 + b"]", Reason.BAD_BODY, id="number of 1001 characters"),
    ],
)
def test_j4_digits_are_bounded(data: bytes, reason: Reason | None) -> None:
    assert refusal(data) is reason


@given(
    st.lists(
        st.sampled_from([b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"1", b"-", b"e", b"\xff", b"u"])
    )
)
def test_only_our_errors_leave_the_parser(pieces: list[bytes]) -> None:
    assert refusal(b"".join(pieces)) in {None, Reason.BAD_BODY, Reason.DUPLICATE_PARAMETER}
