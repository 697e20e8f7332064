"""surface/types.py: one spelling per type, exact numbers, canonical JSON."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdgate.content.strictjson import Number, parse_json
from holdgate.errors import InputError
from holdgate.surface.model import CelType
from holdgate.surface.types import INT64, TYPES, TypeMismatch, canonical_json, cel_type, converter


@pytest.mark.parametrize(
    ("kind", "raw", "textual", "value"),
    [
        pytest.param("int", 5, False, 5, id="JSON integer"),
        pytest.param("int", "5", True, 5, id="integer in a form"),
        pytest.param("int", str(INT64), True, INT64, id="largest integer"),
        pytest.param("minor_units", "-7", True, -7, id="negative minor units"),
        pytest.param("decimal(2)", "10.5", False, 1050, id="decimal is scaled"),
        pytest.param("decimal(2)", Number("10.50"), False, 1050, id="JSON number"),
        pytest.param("decimal(2)", 3, False, 300, id="JSON integer as decimal"),
        pytest.param("decimal(0)", "12", True, 12, id="scale zero"),
        pytest.param("decimal(3)", "-0.001", True, -1, id="small negative"),
        pytest.param("currency", "EUR", True, "eur", id="currency in lower case"),
        pytest.param("bool", True, False, True, id="JSON boolean"),
        pytest.param("bool", "false", True, False, id="boolean in a form"),
        pytest.param("string", "", False, "", id="empty string"),
        pytest.param("list<string>", ["a", "b"], False, ("a", "b"), id="list of strings"),
        pytest.param("list<int>", ["1", "2"], True, (1, 2), id="list of integers in a form"),
        pytest.param("urlencoded", "a%20b%2Fc+d", True, "a b/c+d", id="percent-encoded once"),
        pytest.param(
            "address_list", '"A, B" <X@Ex.org>, y@z.de', True, ("x@ex.org", "y@z.de"), id="addresses"
        ),
        pytest.param("address_list", ["x@y.z"], False, ("x@y.z",), id="a list of addresses"),
        pytest.param("arn", "arn:aws:iam::123:role/x", False, "arn:aws:iam::123:role/x", id="ARN"),
        pytest.param("reference", "Patient/1", False, "Patient/1", id="reference"),
        pytest.param(
            "json", {"b": [1, None], "a": "é"}, False, '{"a":"é","b":[1,null]}', id="canonical JSON"
        ),
        pytest.param(
            "origins",
            ["https://A.example:8443/x?y", "http://b.test", "https://a.example:8443#z", "gs://c/d"],
            False,
            ("https://a.example:8443", "http://b.test", "gs://c"),
            id="where URLs lead, each once",
        ),
        pytest.param(
            "origins",
            [{"url": "DATA:image/png;base64,AAAA", "detail": "low"}, "data:,x", None],
            False,
            ("data:",),
            id="an address in the request, and none",
        ),
        pytest.param("origins", "mailto:a@b.c", False, ("mailto:",), id="one address alone"),
        pytest.param("code", "entered-in-error", False, "entered-in-error", id="code"),
        pytest.param("code", "in progress", False, "in progress", id="code of two words"),
        pytest.param(
            "digest_list",
            ["a"],
            False,
            ("sha256:ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb",),
            id="digests",
        ),
    ],
)
def test_a_value_is_read(kind: str, raw: Any, textual: bool, value: Any) -> None:
    assert converter(kind)(raw, textual) == value


@pytest.mark.parametrize(
    ("kind", "raw", "textual"),
    [
        pytest.param("int", "5", False, id="a JSON string is no integer"),
        pytest.param("int", True, False, id="true is no integer"),
        pytest.param("int", Number("5.0"), False, id="5.0 is no integer"),
        pytest.param("int", "+5", True, id="a plus sign"),
        pytest.param("int", "05", True, id="a leading zero"),
        pytest.param("int", "-0", True, id="negative zero"),
        pytest.param("int", " 5", True, id="white space"),
        pytest.param("int", "5\n", True, id="a line feed"),
        pytest.param("int", "\u0665", True, id="another script's digit"),
        pytest.param("int", "1_0", True, id="an underscore"),
        pytest.param("int", "", True, id="nothing"),
        pytest.param("int", None, False, id="null"),
        pytest.param("decimal(2)", "1.005", True, id="more digits than declared"),
        pytest.param("decimal(2)", Number("1e2"), False, id="an exponent"),
        pytest.param("decimal(2)", "-0.00", True, id="negative zero as decimal"),
        pytest.param("decimal(2)", ".5", True, id="no whole part"),
        pytest.param("decimal(2)", True, False, id="a boolean as decimal"),
        pytest.param("currency", "EURO", True, id="four letters"),
        pytest.param("currency", "€€€", True, id="three signs"),
        pytest.param("bool", "1", True, id="1 is not true"),
        pytest.param("bool", "True", True, id="a capital letter"),
        pytest.param("bool", "true", False, id="a JSON string is no boolean"),
        pytest.param("string", 5, False, id="a number is no string"),
        pytest.param("string", Number("1.5"), False, id="a number with a fraction is no string"),
        pytest.param("list<string>", "a", False, id="a string is no list"),
        pytest.param("list<string>", ["a", 1], False, id="a mixed list"),
        pytest.param("list<string>", [["a"]], False, id="a list in a list"),
        pytest.param("urlencoded", "a%2", True, id="half an escape"),
        pytest.param("urlencoded", "%ff", True, id="an escape that is not UTF-8"),
        pytest.param("urlencoded", "a%00b", True, id="an escaped NUL"),
        pytest.param("address_list", "a@b@c", True, id="two at signs"),
        pytest.param("address_list", "x@y.z, ", True, id="an empty address"),
        pytest.param("address_list", "group: a@b.c;", True, id="a group"),
        pytest.param("address_list", "a@b.c <d@e.f>", True, id="an address as display name"),
        pytest.param("address_list", "a@b.c\nBcc: d@e.f", True, id="a second header"),
        pytest.param("address_list", "x@y.z\r\n", True, id="a line end behind an address"),
        pytest.param("address_list", "A\r\n <x@y.z>", True, id="a folded address"),
        pytest.param("address_list", "\u212aate@y.z", True, id="the Kelvin sign, whose lower case is a k"),
        pytest.param("address_list", " " * 60_000, True, id="white space and no address"),
        pytest.param("address_list", "a " * 30_000 + "<", True, id="a display name and no address"),
        pytest.param("address_list", '"' * 60_000, True, id="quotes and no address"),
        pytest.param("string", "a\0b", False, id="NUL in a string"),
        pytest.param("list<string>", ["a\0"], False, id="NUL in a list"),
        pytest.param("arn", "arn:aws", False, id="half an ARN"),
        pytest.param("reference", "Patient 1", False, id="a space in a reference"),
        pytest.param("digest_list", [1], False, id="a number has no digest"),
        pytest.param("origins", ["x"], False, id="no URL"),
        pytest.param("origins", [""], False, id="an empty URL"),
        pytest.param("origins", ["//a.example/x"], False, id="a URL without scheme"),
        pytest.param("origins", [" https://a.example"], False, id="white space before a URL"),
        pytest.param("origins", ["https:a.example"], False, id="a host without slashes"),
        pytest.param("origins", ["https:/a.example"], False, id="a host behind one slash"),
        pytest.param("origins", ["https:\\\\a.example"], False, id="backslashes"),
        pytest.param("origins", ["https://a.example\\@b.example"], False, id="a backslash behind a host"),
        pytest.param("origins", ["https://u@a.example"], False, id="a user before a host"),
        pytest.param("origins", ["https://a.example\n"], False, id="a line feed behind a host"),
        pytest.param("origins", ["ht\ntps://a.example"], False, id="a line feed in a scheme"),
        pytest.param("origins", ["https://\u00e4.example"], False, id="a host beyond ASCII"),
        pytest.param("origins", [{"href": "https://a.example"}], False, id="a record without url"),
        pytest.param("origins", [{"url": None}], False, id="a record with null as its url"),
        pytest.param("origins", [1], False, id="a number is no URL"),
        pytest.param("origins", [["https://a.example"]], False, id="a list of URLs in a list"),
        pytest.param("code", "entered-in-error ", False, id="white space behind a code"),
        pytest.param("code", " final", False, id="white space before a code"),
        pytest.param("code", "a  b", False, id="two spaces in a code"),
        pytest.param("code", "", False, id="no code"),
        pytest.param("code", "fin\u200bal", False, id="a letter that nobody sees"),
    ],
)
def test_sm4_another_spelling_is_refused(kind: str, raw: Any, textual: bool) -> None:
    with pytest.raises(TypeMismatch):
        converter(kind)(raw, textual)


PYTHON = {
    CelType.INT: lambda v: type(v) is int,
    CelType.STRING: lambda v: type(v) is str,
    CelType.BOOL: lambda v: type(v) is bool,
    CelType.LIST_STRING: lambda v: type(v) is tuple and all(type(i) is str for i in v),
    CelType.LIST_INT: lambda v: type(v) is tuple and all(type(i) is int for i in v),
}
NAMES = [name for name in TYPES if name != "decimal(n)"] + ["decimal(2)", "decimal(18)"]
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=6)
    | st.sampled_from(["1", "-5", "1.5", "true", "eur", "a@b.c", "arn:aws:s3:::b"])
    | st.sampled_from(["1.5", "-0", "1e9"]).map(Number),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(NAMES), ANYTHING, st.booleans())
def test_sm4_a_converter_gives_its_type_or_refuses(kind: str, raw: Any, textual: bool) -> None:
    try:
        value = converter(kind)(raw, textual)
    except TypeMismatch:
        return
    assert PYTHON[cel_type(kind)](value)


@given(st.integers(-(10**19), 10**19), st.integers(0, 4), st.booleans())
def test_sm5_decimals_are_exact(number: int, scale: int, textual: bool) -> None:
    text = format(Decimal(number).scaleb(-scale), "f")
    try:
        assert converter(f"decimal({scale})")(text, textual) == number
    except TypeMismatch:
        assert (
            abs(number) > INT64
            or len(text.partition(".")[0].lstrip("-")) > 19
            or text.startswith("-0.")
            or number == 0
        )


@pytest.mark.parametrize("text", [str(INT64 + 1), str(-INT64 - 2), "9" * 30])
def test_sm5_integers_beyond_64_bits_are_refused(text: str) -> None:
    with pytest.raises(TypeMismatch):
        converter("int")(text, True)
    with pytest.raises(TypeMismatch):
        converter("int")(int(text), False)


@pytest.mark.parametrize("name", ["float", "int32", "decimal", "decimal(19)", "list<bool>", ""])
def test_an_unknown_type_is_named(name: str) -> None:
    with pytest.raises(ValueError, match="is not one of"):
        cel_type(name)


@given(ANYTHING)
def test_canonical_json_is_one_spelling_and_keeps_numbers_apart_from_strings(value: Any) -> None:
    text = canonical_json(value)
    assert canonical_json(parse_json_or(value, text)) == text


def parse_json_or(value: Any, text: str) -> Any:
    try:
        return parse_json(text.encode("utf-8", "surrogatepass"))
    except InputError:  # keys that differ in case only, surrogates, long numbers: not what a decoder yields
        return value


def test_a_number_and_a_string_have_different_canonical_forms() -> None:
    assert canonical_json([Number("1.0")]) == "[1.0]"
    assert canonical_json(["1.0"]) == '["1.0"]'
    assert (
        canonical_json({"b": {"y": Number("2e1"), "x": True}, "a": None})
        == '{"a":null,"b":{"x":true,"y":2e1}}'
    )
    assert json.loads(canonical_json({"é\n": Number("0.5")})) == {"é\n": 0.5}
