"""content/xml.py: X1-X5, a table of refused documents, and a round trip over generated trees."""

from __future__ import annotations

from typing import Any
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdgate.content.xml import parse_xml
from holdgate.errors import InputError, Reason

S3 = "http://s3.amazonaws.com/doc/2006-03-01/"


def reason(data: bytes, **bounds: int) -> Reason | None:
    try:
        parse_xml(data, **bounds)
    except InputError as error:
        return error.reason
    return None


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(
            f'<Delete xmlns="{S3}"><Object><Key>copy</Key></Object>'.encode()
            + b"<Object><Key>mp</Key></Object></Delete>",
            {"Delete": {"@ns": S3, "Object": [{"Key": "copy"}, {"Key": "mp"}]}},
            id="DeleteObjects as boto3 sends it",
        ),
        pytest.param(
            b'<?xml version="1.0" encoding="UTF-8"?>\n<a>\n  <b>1</b>\n  <c> x </c>\n</a>\n',
            {"a": {"b": "1", "c": " x "}},
            id="declaration and indentation",
        ),
        pytest.param(
            b"<a>&lt;&amp;&#xD;&#10;</a>", {"a": "<&\r\n"}, id="predefined and character references"
        ),
        pytest.param(b"<a/>", {"a": ""}, id="empty root"),
        pytest.param(b'<a x="1">t</a>', {"a": {"@x": "1", "#text": "t"}}, id="attribute and text"),
        pytest.param(b"<a><b/><c/><b>2</b></a>", {"a": {"b": ["", "2"], "c": ""}}, id="interleaved"),
    ],
)
def test_documents(data: bytes, expected: object) -> None:
    assert parse_xml(data) == expected


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', id="entity declaration"),
        pytest.param(b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>', id="external DTD"),
        pytest.param(b"<a>1<!-- -->00</a>", id="comment inside a value"),
        pytest.param(b"<a><![CDATA[1]]></a>", id="CDATA"),
        pytest.param(b'<a xmlns:p="u}v"><p:b/></a>', id="brace in a namespace"),
        pytest.param(b"<a><?php x?></a>", id="processing instruction"),
        pytest.param(b"<?php x?><a/>", id="processing instruction first"),
        pytest.param(b"<a/><?x?>", id="processing instruction last"),
        pytest.param(b"<a>&nbsp;</a>", id="unknown entity"),
        pytest.param(b"<a>&#0;</a>", id="NUL reference"),
    ],
)
def test_x1_only_elements_attributes_and_text(data: bytes) -> None:
    assert reason(data) is Reason.BAD_BODY


@pytest.mark.parametrize(
    "data",
    [
        pytest.param('<?xml version="1.0" encoding="utf-16"?><a/>'.encode("utf-16"), id="UTF-16 bytes"),
        pytest.param(b'<?xml version="1.0" encoding="utf-16"?><a/>', id="declared UTF-16"),
        pytest.param(b'<?xml version="1.0" encoding="utf-7"?><a/>', id="declared UTF-7"),
        pytest.param(b'<?xml version="1.0" encoding="iso-8859-1"?><a/>', id="declared Latin-1"),
        pytest.param(b'<?xml version="1.1"?><a/>', id="XML 1.1"),
        pytest.param(b"\xef\xbb\xbf<a/>", id="byte order mark"),
        pytest.param("<a>1</a>".encode("utf-16-le"), id="UTF-16 without saying so"),
        pytest.param('<!DOCTYPE a [<!ENTITY b "1">]><a>&b;</a>'.encode("utf-16-le"), id="entity in UTF-16"),
        pytest.param("<a>1<!-- -->00</a>".encode("utf-16-le"), id="comment in UTF-16"),
        pytest.param("<a/>".encode("utf-32-le"), id="UTF-32"),
        pytest.param(b"<a>\0</a>", id="NUL"),
        pytest.param(b"<a>\xe9</a>", id="not UTF-8"),
        pytest.param(b" <a/>", id="leading white space"),
        pytest.param(b"", id="empty"),
    ],
)
def test_x2_the_encoding_is_utf8(data: bytes) -> None:
    assert reason(data) is Reason.BAD_BODY


def test_x3_another_namespace_is_another_name() -> None:
    assert parse_xml(b'<a xmlns="u"><b>1</b></a>') == parse_xml(b'<p:a xmlns:p="u"><p:b>1</p:b></p:a>')
    assert parse_xml(b'<a xmlns="u"><b xmlns="v"><c/></b><b xmlns="">x</b></a>') == {
        "a": {"@ns": "u", "{v}b": {"c": ""}, "{}b": "x"}
    }
    assert parse_xml(b'<a xmlns:x="u"><b x:t="1"/></a>') == {"a": {"b": {"@{u}t": "1"}}}
    assert reason(b'<a ns="u"/>') is Reason.BAD_BODY  # would pass for a namespace
    assert reason(b"<p:a/>") is Reason.BAD_BODY


def test_x4_text_beside_elements_is_refused() -> None:
    assert reason(b"<a>1<b/>00</a>") is Reason.BAD_BODY
    assert reason(b"<a>\xc2\xa0<b/></a>") is Reason.BAD_BODY
    assert parse_xml(b"<a>\r\n\t <b/></a>") == {"a": {"b": ""}}


def test_x5_depth_and_elements_are_bounded() -> None:
    assert reason(b"<a>" * 32 + b"</a>" * 32) is None
    assert reason(b"<a>" * 33 + b"</a>" * 33) is Reason.BAD_BODY
    assert reason(b"<a>" * 100_000, max_nodes=10**6) is Reason.BAD_BODY
    assert reason(b"<a>" + b"<b/>" * 30 + b"</a>", max_nodes=10) is Reason.TOO_LARGE


@pytest.mark.parametrize(
    "document",
    [
        pytest.param('<a xmlns="{uri}"><b/></a>', id="of elements"),
        pytest.param('<a xmlns:p="{uri}"><b p:c=""/></a>', id="of attributes"),
        pytest.param('<a><b xmlns="{uri}"/></a>', id="further down"),
    ],
)
def test_x5_a_namespace_is_bounded(document: str) -> None:
    """It is part of every name below it: 64 KiB of those took a second, 1 MiB minutes."""
    assert reason(document.format(uri="u" * 1024).encode()) is None
    assert reason(document.format(uri="u" * 1025).encode()) is Reason.BAD_BODY


NAMES = st.sampled_from(["Key", "Object", "x-y"])
TEXT = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="\ufffe\uffff"),
    max_size=5,
)
TREES = st.recursive(
    TEXT,
    lambda inner: st.dictionaries(NAMES, inner | st.lists(inner, min_size=2, max_size=3), min_size=1),
    max_leaves=8,
)


@given(NAMES, TREES)
def test_a_written_tree_is_read_back(name: str, tree: Any) -> None:
    def write(name: str, node: Any) -> str:
        if isinstance(node, list):
            return "".join(write(name, item) for item in node)
        inner = escape(node) if isinstance(node, str) else "".join(write(k, v) for k, v in node.items())
        return f"<{name}>{inner}</{name}>"

    assert parse_xml(write(name, tree).encode()) == {name: tree}


@given(
    st.lists(
        st.sampled_from(
            [
                b"<a",
                b"<b>",
                b"</a>",
                b"</b>",
                b"/>",
                b">",
                b"x=",
                b'"1"',
                b"&lt;",
                b"t",
                b"<!--",
                b"\xff",
                b"xmlns=",
            ]
        )
    )
)
def test_only_our_errors_leave_the_parser(pieces: list[bytes]) -> None:
    assert reason(b"".join(pieces)) in {None, Reason.BAD_BODY}
