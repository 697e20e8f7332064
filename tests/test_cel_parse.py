"""cel/parse.py and cel/unparse.py: CEL's grammar, bounded depth, messages with advice, normal form."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdgate.cel.model import MAX_DEPTH, CelError, Environment, Literal, Logic
from holdgate.cel.parse import parse
from holdgate.cel.unparse import unparse

NOTHING = Environment(roots={}, constants={})


def normal(source: str) -> str:
    return unparse(parse(source), NOTHING)


# Words and signs of the language, so that many texts parse and many nearly do.
WORDS = st.sampled_from(
    """a b.c 1 - "s" true ( ) [ ] ! && || == < in + * ? : has( size( .exists(x, .contains( , . null if
    -9223372036854775808""".split()
)


@given(st.lists(WORDS, max_size=14).map(" ".join))
def test_x3_a_bounded_tree_or_a_cel_error_from_words(source: str) -> None:
    try:
        assert parse(source).depth <= MAX_DEPTH
    except CelError as error:
        assert error.message and 0 <= error.offset <= len(source)


@pytest.mark.slow
@given(st.text(max_size=60))
def test_x3_a_bounded_tree_or_a_cel_error_from_any_text(source: str) -> None:
    try:
        assert parse(source).depth <= MAX_DEPTH
    except CelError as error:
        assert error.message and 0 <= error.offset <= len(source)


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("(" * 2000 + "a" + ")" * 2000, id="parentheses"),
        pytest.param("!(" * 1300 + "a" + ")" * 1300, id="negations"),
        pytest.param("a" + ".b" * 2000, id="fields"),
        pytest.param(" + ".join(["a"] * 1000), id="sum"),
        pytest.param("[" * 2000 + "1" + "]" * 2000, id="lists"),
        pytest.param("a[" * 1300 + "1" + "]" * 1300, id="indices"),
        pytest.param("a ? b : " * 500 + "c", id="conditionals"),
        pytest.param("size(" * 600 + "a" + ")" * 600, id="calls"),
        pytest.param("a.exists(x, " * 300 + "b" + ")" * 300, id="loops"),
    ],
)
def test_x3_deep_sources_are_refused_by_their_depth(source: str) -> None:
    with pytest.raises(CelError, match="nested deeper than 32 levels"):
        parse(source)


def test_x3_long_chains_of_conditions_stay_shallow() -> None:
    node = parse(" && ".join(["a"] * 800))
    assert isinstance(node, Logic) and len(node.parts) == 800 and node.depth == 2


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        pytest.param("a || b && c", "(a || (b && c))", id="and binds tighter than or"),
        pytest.param("!a && b", "((!a) && b)", id="not binds tighter than and"),
        pytest.param("!!a", "a", id="two nots"),
        pytest.param("a + b * c - d", "((a + (b * c)) - d)", id="products first, left to right"),
        pytest.param("a - b - c", "((a - b) - c)", id="minus is left associative"),
        pytest.param("a < b == c", "((a < b) == c)", id="relations share one level"),
        pytest.param("a + 1 < b * 2", "((a + 1) < (b * 2))", id="sums inside relations"),
        pytest.param("-a.b", "(-a.b)", id="minus applies after the field"),
        pytest.param("-5 % 3", "((-5) % 3)", id="minus is part of the number"),
        pytest.param("a -1", "(a - 1)", id="minus between operands"),
        pytest.param("a - -1", "(a - (-1))", id="minus and negative number"),
        pytest.param("a ? b : c ? d : e", "(a ? b : (c ? d : e))", id="else is right associative"),
        pytest.param("a || b ? c : d", "((a || b) ? c : d)", id="or binds tighter than ?:"),
        pytest.param("x in [1, 2,]", "(x in [1, 2])", id="comma at the end"),
        pytest.param("m['k']", 'm["k"]', id="map key"),
        pytest.param("has(a.b) && size(c) > 1", "(has(a.b) && (size(c) > 1))", id="functions"),
        pytest.param("a.exists(x, x == 'q')", 'a.exists(x, (x == "q"))', id="loop"),
        pytest.param("a.b . contains ( 'x' )", 'a.b.contains("x")', id="white space"),
        pytest.param("-9223372036854775808", "(-9223372036854775808)", id="smallest integer"),
    ],
)
def test_x4_trees_are_those_of_cel(source: str, expected: str) -> None:
    assert normal(source) == expected
    # X5: the normal form parses to the same thing.
    assert normal(expected) == expected


def test_x4_minus_before_a_number_is_part_of_it() -> None:
    node = parse("-9223372036854775808")
    assert isinstance(node, Literal) and node.value == -(2**63)


def test_x5_constants_are_written_out_but_maps_are_named() -> None:
    constants = Environment(roots={}, constants={"n": -5, "s": 'a"b', "l": ["x"], "m": {"k": 1}})
    source = 'constants.n + 1 > 0 && constants.s in constants.l && constants.m["k"] == 2'
    text = unparse(parse(source), constants)
    assert text == '((((-5) + 1) > 0) && ("a\\"b" in ["x"]) && (constants.m["k"] == 2))'
    assert unparse(parse(text), constants) == text


@pytest.mark.parametrize(
    ("source", "place", "words"),
    [
        pytest.param(
            "size(a,) == 1", "1:8", "no argument of size() behind it", id="comma at the end of a call"
        ),
        pytest.param("", "1:1", "write `always`", id="empty"),
        pytest.param("a and b", "1:3", "did you mean '&&'", id="and"),
        pytest.param("a or b", "1:3", "did you mean '||'", id="or"),
        pytest.param("not a", "1:1", "did you mean '!'", id="not"),
        pytest.param("True", "1:1", "did you mean 'true'", id="True"),
        pytest.param("a == null", "1:6", "has(x.y)", id="null"),
        pytest.param("const.x", "1:1", "did you mean 'constants'", id="const"),
        pytest.param("if", "1:1", "reserved word", id="reserved"),
        pytest.param("a.matches('x')", "1:3", "regular expressions", id="matches"),
        pytest.param("a.map(x, x)", "1:3", "map() is not", id="map"),
        pytest.param("timestamp('x') > a", "1:1", "clock.now_s", id="timestamp"),
        pytest.param("now() > 1", "1:1", "clock.now_s", id="now"),
        pytest.param("int(a) > 1", "1:1", "conversions", id="int"),
        pytest.param("a.size() > 1", "1:3", "write size(x)", id="size as a method"),
        pytest.param("contains(a, b)", "1:1", "is a method: write x.contains(y)", id="method as a function"),
        pytest.param("a.startswith('x')", "1:3", "did you mean startsWith", id="misspelt function"),
        pytest.param("frobnicate(a)", "1:1", "there are has, size", id="unknown function"),
        pytest.param("has(a)", "1:5", "has() takes a field", id="has of a name"),
        pytest.param("a.exists(b.c, true)", "1:10", "new variable name", id="loop variable"),
        pytest.param("a.exists(x)", "1:9", "takes 2 arguments, found 1", id="too few arguments"),
        pytest.param("size(a, b)", "1:5", "takes 1 argument, found 2", id="too many arguments"),
        pytest.param("a ? b ? c : d : e", "1:7", "expected ':'", id="bare ?: inside ?:"),
        pytest.param("(a && b", "1:8", "expected ')'", id="open parenthesis"),
        pytest.param("a == ", "1:6", "expected a value, found the end", id="missing operand"),
        pytest.param("a b", "1:3", "expected an operator or the end, found 'b'", id="two names"),
        pytest.param("a.'b'", "1:3", "expected a field name", id="string as a field"),
        pytest.param("a.?b", "1:3", "optional values", id="optional field"),
        pytest.param("[]", "1:1", "empty list", id="empty list"),
        pytest.param("--a", "1:2", "two minus signs", id="two minus signs"),
        pytest.param(".a", "1:1", "do not start with '.'", id="leading dot"),
        pytest.param("9223372036854775808", "1:1", "64 bits", id="integer too large"),
        pytest.param("a &&\n  b ==", "2:7", "expected a value", id="line two"),
    ],
)
def test_messages_name_the_place_and_what_to_write(source: str, place: str, words: str) -> None:
    with pytest.raises(CelError) as caught:
        parse(source)
    assert str(caught.value).startswith(f"{place}: "), str(caught.value)
    assert words in str(caught.value)
