"""jcs.py: the invariants in its docstring, against an independent RFC 8785 encoder."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from holdgate.jcs import JcsError, dumps, dumps_input, loads_input_strict, loads_sorted, loads_strict

# Narrow on purpose: controls, quotes, a backslash, separators that JavaScript dislikes, astral letters.
_TEXT = st.text(alphabet=st.sampled_from('a"\\/\x00\x08\x0c\n\r\t\x1f\x7f\u2028é€😀'), max_size=8)
_KEYS = st.text(alphabet="ab_09z", min_size=1, max_size=3)
_INTS = st.integers(min_value=-(2**53) + 1, max_value=2**53 - 1)
_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(_TEXT, _INTS, st.booleans()),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(_KEYS, inner, max_size=5)),
    max_leaves=20,
)


@given(_VALUES)
def test_j1_the_output_is_rfc_8785(value: Any) -> None:
    assert dumps(value) == rfc8785.dumps(value)
    assert dumps_input(value) == rfc8785.dumps(value)
    assert loads_strict(dumps(value)) == value


@given(
    st.dictionaries(st.text(alphabet=st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"])), _INTS)
)
def test_j1_wide_keys_of_inputs_sort_like_rfc_8785(value: dict[str, int]) -> None:
    assert dumps_input(value) == rfc8785.dumps(value)
    assert loads_input_strict(dumps_input(value)) == value


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(1.0, id="float"),
        pytest.param({"a": [1, {"b": 0.5}]}, id="float deep inside"),
        pytest.param(math.nan, id="not a number"),
        pytest.param(None, id="null"),
        pytest.param({"a": None}, id="null in an object"),
        pytest.param([b"x"], id="bytes"),
        pytest.param({1: 2}, id="key that is not text"),
        pytest.param("\ud800", id="lone surrogate"),
        pytest.param(["ok", "\udfff"], id="lone surrogate in a list"),
    ],
)
def test_j2_what_reads_differently_elsewhere_is_refused(value: Any) -> None:
    with pytest.raises(JcsError):
        dumps(value)
    with pytest.raises(JcsError):
        dumps_input(value)


@pytest.mark.parametrize("key", ["", "A", "é", "a-b", "a b", "a\n", "😀"])
def test_j2_receipt_keys_are_lower_snake_ascii(key: str) -> None:
    with pytest.raises(JcsError, match="key"):
        dumps({key: 1})


@pytest.mark.parametrize("key", ["😀", "\ud800"])
def test_j2_input_keys_whose_order_is_not_the_same_everywhere_are_refused(key: str) -> None:
    with pytest.raises(JcsError, match="key"):
        dumps_input({key: 1})


@pytest.mark.parametrize("number", [2**53, -(2**53)])
def test_j2_receipts_stop_where_doubles_stop_counting_and_inputs_at_int64(number: int) -> None:
    with pytest.raises(JcsError, match="range"):
        dumps({"n": number})
    assert dumps_input({"n": number}) == b'{"n":%d}' % number
    assert dumps({"n": number - 1 if number > 0 else number + 1})


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1])
def test_j2_inputs_stop_at_int64(number: int) -> None:
    with pytest.raises(JcsError, match="range"):
        dumps_input([number])


def test_j2_a_value_that_is_too_deep_is_refused_not_a_crash() -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(JcsError):
        dumps(value)
    with pytest.raises(JcsError):
        loads_strict(b"[" * 100_000 + b"]" * 100_000)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b' {"a":1}', id="leading space"),
        pytest.param(b'{"a":1}\n', id="trailing newline"),
        pytest.param(b'{"a": 1}', id="space inside"),
        pytest.param(b'{"b":1,"a":2}', id="unsorted"),
        pytest.param(b'{"a":1,"a":1}', id="duplicate key"),
        pytest.param(b'{"a":1}{}', id="trailing data"),
        pytest.param(b'{"a":-0}', id="minus zero"),
        pytest.param(b'{"a":1.0}', id="float"),
        pytest.param(b'{"a":1e2}', id="exponent"),
        pytest.param(b'{"a":NaN}', id="NaN"),
        pytest.param(b'{"a":null}', id="null"),
        pytest.param(b'"\\u0041"', id="needless escape"),
        pytest.param(b'"\\/"', id="escaped slash"),
        pytest.param(b'"\\ud83d\\ude00"', id="escaped pair"),
        pytest.param(b'"\xff"', id="not UTF-8"),
        pytest.param(b'\xef\xbb\xbf"a"', id="byte order mark"),
        pytest.param(b"", id="nothing"),
        pytest.param(b"9007199254740992", id="2^53"),
        pytest.param(b"1" * 5000, id="more digits than any number needs"),
    ],
)
def test_j3_another_spelling_is_refused(data: bytes) -> None:
    with pytest.raises(JcsError):
        loads_strict(data)


@given(st.binary(max_size=40) | st.text(alphabet='{}[]",:0123456789-.aeE\\u ', max_size=30).map(str.encode))
def test_j3_whatever_loads_is_exactly_what_dumps_writes(data: bytes) -> None:
    try:
        value = loads_strict(data)
    except JcsError:
        return
    assert json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() == data


@given(
    st.recursive(
        st.one_of(_TEXT, _INTS, st.booleans(), st.none(), st.floats(), st.integers(-(2**64), 2**64)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(st.one_of(_KEYS, _TEXT), inner, max_size=3)
        ),
        max_leaves=8,
    ),
    st.booleans(),
)
def test_j4_loads_sorted_is_loads_strict_but_for_values_without_a_canonical_form(
    value: Any, is_spaced: bool
) -> None:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=None if is_spaced else (",", ":"))
    data = text.encode("utf-8")
    try:
        strict = loads_strict(data)
    except JcsError:
        try:
            found = loads_sorted(data)
        except JcsError:
            return
        with pytest.raises(JcsError):
            dumps(found)
    else:
        assert loads_sorted(data) == strict
