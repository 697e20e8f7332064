"""content/mediatype.py: MT1, MT2 and the grammar, as tables and one property."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdgate.content.mediatype import check_charset, parse_media_type
from holdgate.errors import InputError, Reason

MALFORMED, UNSUPPORTED = Reason.MALFORMED_REQUEST, Reason.UNSUPPORTED_CONTENT


def read(value: str) -> object:
    try:
        return parse_media_type(value)
    except InputError as error:
        return error.reason


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("application/json", ("application/json", ())),
        ("application/json;charset=utf-8", ("application/json", (("charset", "utf-8"),))),
        ("Text/XML ; Charset=UTF-8", ("text/xml", (("charset", "UTF-8"),))),
        ('a/b; charset="utf-8"; v=1', ("a/b", (("charset", "utf-8"), ("v", "1")))),
        ("application/json; charset=utf8", ("application/json", (("charset", "utf8"),))),
        ("application/fhir+json; fhirVersion=4.0", ("application/fhir+json", (("fhirversion", "4.0"),))),
    ],
)
def test_values_that_real_clients_send(value: str, expected: object) -> None:
    assert read(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        "",
        "json",
        "a/",
        "/b",
        "a/b;",
        "a/b;;c=d",
        "a/b; c",
        "a/b; c=",
        "a/b; c =d",
        "a/b, c/d",
        'a/b; c="d',
        "a/b x",
        'a/b; c="\\"',
        "a/b; c=d e",
        " a/b",
        "a/b ",
        "a/b\n",
        "ä/b",
        "a/" + "b" * 600,
        "a/b; charset*=utf-8''utf-16",
        "a/b; charset*0=utf; charset*1=-16",
        "multipart/form-data; boundary=a; boundary*=utf-8''b",
    ],
)
def test_malformed_values_are_refused(value: str) -> None:
    assert read(value) is MALFORMED


@pytest.mark.parametrize("value", ["a/b; charset=utf-8; charset=utf-7", "a/b; boundary=x; Boundary=y"])
def test_mt1_a_parameter_occurs_once(value: str) -> None:
    assert read(value) is MALFORMED


@pytest.mark.parametrize("spelled", ["charset*=utf-16''x", "charset*0=utf-", "boundary*0*=x", "a*=b"])
def test_mt2_a_charset_or_boundary_has_no_second_spelling(spelled: str) -> None:
    # RFC 2231: Python's email parser, for one, takes these for `charset` and `boundary`.
    assert read(f"a/b; {spelled}") is MALFORMED


@pytest.mark.parametrize("charset", ["utf-7", "utf-16", "iso-8859-15", "windows-1252", '""', "utf-8x"])
def test_mt2_another_charset_is_refused(charset: str) -> None:
    assert read(f"application/json; charset={charset}") is UNSUPPORTED


@given(st.lists(st.sampled_from(["a", "/", ";", "=", '"', " ", "charset", "utf-8", ",", "\\", "é", "A"])))
def test_mt1_accepted_names_are_unique_and_lower_case(pieces: list[str]) -> None:
    result = read("".join(pieces))
    if isinstance(result, tuple):
        names = [name for name, _ in result[1]]
        assert names == sorted(set(names), key=names.index) and all(name == name.lower() for name in names)
    else:
        assert result in (MALFORMED, UNSUPPORTED)


def test_mt2_a_charset_that_agrees_with_utf_8_on_ascii_only_is_for_ascii_only() -> None:
    for charset in ("us-ascii", "ISO-8859-1"):
        params = (("charset", charset),)
        check_charset(params, b'{"a": "%20"}')
        for data in ("é".encode(), b"a=%E9", b"a=%c3%a9"):
            with pytest.raises(InputError):
                check_charset(params, data)
    for charset in ("utf-8", "UTF8"):
        check_charset((("charset", charset),), "é%E9".encode())
