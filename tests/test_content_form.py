"""content/form.py: FM1-FM4, the three key syntaxes, and a round trip with urllib's encoder."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote_plus, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdgate.content.form import Syntax, parse_form, parse_pairs
from holdgate.errors import InputError, Reason

BAD, TWICE = Reason.BAD_BODY, Reason.DUPLICATE_PARAMETER


def read(data: bytes, syntax: Syntax = "brackets", **options: Any) -> Any:
    """The tree, or the reason why there is none."""
    try:
        return parse_form(data, syntax=syntax, **options)
    except InputError as error:
        return error.reason


@pytest.mark.parametrize(
    ("syntax", "data", "expected"),
    [
        pytest.param("brackets", b"", {}, id="empty body"),
        pytest.param(
            "brackets", b"a=1&b[c]=2&b[d][e]=3", {"a": "1", "b": {"c": "2", "d": {"e": "3"}}}, id="records"
        ),
        pytest.param("brackets", b"t[0]=card&t[1]=link", {"t": ["card", "link"]}, id="indexed list"),
        pytest.param("brackets", b"t[]=a&t[]=a", {"t": ["a", "a"]}, id="appended list"),
        pytest.param(
            "brackets",
            b"i[0][price]=p&i[0][n]=1&i[1][price]=q",
            {"i": [{"price": "p", "n": "1"}, {"price": "q"}]},
            id="list of records",
        ),
        pytest.param("brackets", b"a%5Bb%5D=1", {"a": {"b": "1"}}, id="escaped brackets are brackets"),
        pytest.param("brackets", b"a=x%3D1=2", {"a": "x=1=2"}, id="first equals sign splits"),
        pytest.param("brackets", b"a", {"a": ""}, id="bare key"),
        pytest.param("flat", b"a[b]=1&a.c=2", {"a[b]": "1", "a.c": "2"}, id="flat keys are names"),
        pytest.param(
            "aws-query",
            b"Action=X&Name.member.1=a&Name.member.2=b",
            {"Action": "X", "Name": ["a", "b"]},
            id="member list",
        ),
        pytest.param(
            "aws-query",
            b"Filter.1.Name=n&Filter.1.Value.1=v&Filter.1.Value.2=w&Filter.2.Name=m",
            {"Filter": [{"Name": "n", "Value": ["v", "w"]}, {"Name": "m"}]},
            id="flattened lists",
        ),
        pytest.param("aws-query", b"A.entry.1.key=k", {"A": {"entry": [{"key": "k"}]}}, id="map entries"),
        pytest.param("aws-query", b"A.member=k", {"A": {"member": "k"}}, id="member that is a name"),
        pytest.param("aws-query", b"A[0]=k", {"A[0]": "k"}, id="brackets are no syntax there"),
    ],
)
def test_trees(syntax: Syntax, data: bytes, expected: object) -> None:
    assert read(data, syntax) == expected


@pytest.mark.parametrize(
    ("syntax", "data", "reason"),
    [
        pytest.param("flat", b"amount=100&amount=999999", TWICE, id="same key"),
        pytest.param("flat", b"%61mount=9&amount=1", TWICE, id="same key after decoding"),
        pytest.param("brackets", b"a[b]=1&a[b]=2", TWICE, id="same nested key"),
        pytest.param("brackets", b"a[b]=1&a%5bb%5d=2", TWICE, id="same nested key, escaped"),
        pytest.param("brackets", b"a=1&a[b]=2", TWICE, id="value, then record"),
        pytest.param("brackets", b"a[b]=2&a=1", TWICE, id="record, then value"),
        pytest.param("brackets", b"a[0]=1&a[0]=2", TWICE, id="same index"),
        pytest.param("aws-query", b"A.1=1&A.1=2", TWICE, id="same dotted index"),
        pytest.param("brackets", b"a[]=1&a[0]=2", BAD, id="two kinds of list"),
        pytest.param("brackets", b"a[]=1&a[b]=2", BAD, id="list and record"),
        pytest.param("brackets", b"a[b]=1&a[]=2", BAD, id="record and list"),
        pytest.param("aws-query", b"A.member.1=1&A.2=2", BAD, id="wrapped and flattened list"),
        pytest.param("brackets", b"a[][b]=1", BAD, id="append before the end"),
        pytest.param("brackets", b"a[b=1", BAD, id="open bracket"),
        pytest.param("brackets", b"a]b[=1", BAD, id="wrong order"),
        pytest.param("brackets", b"a[b]c=1", BAD, id="text after brackets"),
        pytest.param("brackets", b"[a]=1", BAD, id="no name"),
        pytest.param("brackets", b"a[[b]]=1", BAD, id="nested brackets"),
        pytest.param("brackets", b"a[01]=1", BAD, id="index with leading zero"),
        pytest.param("aws-query", b"A..B=1", BAD, id="empty step"),
        pytest.param("aws-query", b"A.0=1", BAD, id="lists start at one"),
        pytest.param("aws-query", b"1.A=1", BAD, id="list at the top"),
        pytest.param("brackets", b"a" + b"[b]" * 16 + b"=1", BAD, id="too deep"),
        pytest.param("aws-query", b"a" + b".b" * 16 + b"=1", BAD, id="too deep, dotted"),
    ],
)
def test_fm1_a_key_is_read_once_and_as_one_kind(syntax: Syntax, data: bytes, reason: Reason) -> None:
    assert read(data, syntax) is reason


def test_fm1_repeat_names_what_may_occur_several_times() -> None:
    data = b"to=a&to=b&subject=x"
    assert read(data, "flat", repeat=frozenset({"to"})) == {"to": ["a", "b"], "subject": "x"}
    assert read(b"to=a", "flat", repeat=frozenset({"to"})) == {"to": ["a"]}
    assert read(data, "flat", repeat=frozenset({"subject"})) is TWICE
    # The repeated name cannot also be spelt as a list or record.
    assert read(b"to=a&to[0]=b", "brackets", repeat=frozenset({"to"})) is BAD


@given(st.lists(st.integers(0, 3), max_size=5))
def test_fm2_lists_are_dense_and_in_order(indexes: list[int]) -> None:
    data = "&".join(f"a[{index}]=v{index}" for index in indexes).encode()
    if indexes == list(range(len(indexes))):
        assert read(data) == ({"a": [f"v{index}" for index in indexes]} if indexes else {})
    else:
        assert read(data) in (BAD, TWICE)


@pytest.mark.parametrize(
    "data",
    [
        b"a=1;b=2",
        b"a=1&&b=2",
        b"&a=1",
        b"a=1&",
        b"=1",
        b"a=%",
        b"a=%4",
        b"a=%zz",
        b"a=%u0061",
        b"a=\xc3\xa9",
        b"a=%ff",
        b"a=%c0%af",
        b"a=%ed%a0%80",
        b"a=1\r\n",
        b"a=1\n",
        b"a=%00",
        b"a%0a=1",
        b"a\t=1",
    ],
)
def test_fm3_bytes_that_readers_differ_about_are_refused(data: bytes) -> None:
    with pytest.raises(InputError) as caught:
        parse_pairs(data)
    assert caught.value.reason is BAD


def test_fm3_plus_and_escapes_are_decoded_once() -> None:
    assert parse_pairs(b"a=b+c&d=b%2bc&e=b%20c&f=%252e&g=x%0D%0Ay") == [
        ("a", "b c"),
        ("d", "b+c"),
        ("e", "b c"),
        ("f", "%2e"),
        ("g", "x\r\ny"),
    ]


@given(
    st.lists(
        st.tuples(st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1), st.text()), max_size=5
    )
)
def test_fm3_what_urlencode_writes_is_read_back(pairs: list[tuple[str, str]]) -> None:
    pairs = [(key, value.replace("\0", "").encode("utf-8", "ignore").decode()) for key, value in pairs]
    assert parse_pairs(urlencode(pairs).encode()) == pairs


@given(
    st.recursive(
        st.sampled_from(["", "1", "a b"]),
        lambda inner: (
            st.lists(inner, min_size=1, max_size=3)
            | st.dictionaries(st.sampled_from(["k", "n", "é"]), inner, min_size=1, max_size=3)
        ),
        max_leaves=8,
    )
)
def test_fm1_a_tree_written_with_brackets_is_read_back(tree: Any) -> None:
    def write(prefix: str, node: Any) -> list[str]:
        if isinstance(node, str):
            return [f"{prefix}={quote_plus(node)}"]
        steps = enumerate(node) if isinstance(node, list) else [(quote_plus(k), v) for k, v in node.items()]
        return [line for step, child in steps for line in write(f"{prefix}[{step}]", child)]

    assert read("&".join(write("root", tree)).encode()) == {"root": tree}


def test_fm4_the_number_of_keys_is_bounded_before_splitting() -> None:
    assert len(parse_pairs(b"&".join([b"a"] * 2000))) == 2000
    with pytest.raises(InputError) as caught:
        parse_pairs(b"&".join([b"a"] * 2001))
    assert caught.value.reason is Reason.TOO_LARGE


@given(
    st.lists(
        st.sampled_from(
            [b"a", b"b", b"[", b"]", b"=", b"&", b"0", b"1", b".", b"member", b"%", b"5B", b"\xff", b"+"]
        )
    ),
    st.sampled_from(["brackets", "flat", "aws-query"]),
)
def test_only_our_errors_leave_the_parser(pieces: list[bytes], syntax: Syntax) -> None:
    assert isinstance(read(b"".join(pieces), syntax), (dict, Reason))
