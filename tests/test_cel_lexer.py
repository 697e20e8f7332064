"""cel/lexer.py: tokens cover the source, strings read as CEL reads them, what is left out is named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdgate.cel.lexer import TokenKind, tokens
from holdgate.cel.model import MAX_SOURCE, CelError

# Narrow: characters that begin, end or break tokens.
SOURCES = st.text(alphabet="ab_09 \t\n\"'\\.,()[]!=<>&|?:+-*/%ur{`😀", max_size=30)


@given(SOURCES)
def test_x1_tokens_cover_the_source_or_a_cel_error_is_raised(source: str) -> None:
    try:
        found = tokens(source)
    except CelError as error:
        assert error.line >= 1 and error.column >= 1 and 0 <= error.offset <= len(source)
        return
    at = 0
    for token in found:
        assert source[at : token.start].strip(" \t\n\r") == ""
        at = token.end
    assert at == len(source) and found[-1].kind is TokenKind.END


@pytest.mark.parametrize(
    ("source", "value"),
    [
        pytest.param('"a"', "a", id="double quotes"),
        pytest.param("'a'", "a", id="single quotes"),
        pytest.param(r"'it\'s'", "it's", id="escaped quote"),
        pytest.param(r'"a\\\"\n\r\tb"', 'a\\"\n\r\tb', id="every escape"),
        pytest.param('"😀e\u0301"', "😀e\u0301", id="astral and combining, not normalised"),
        pytest.param('"// # no comment"', "// # no comment", id="comment signs inside"),
    ],
)
def test_x2_string_values(source: str, value: str) -> None:
    assert [(t.kind, t.text) for t in tokens(source)][:1] == [(TokenKind.STRING, value)]


def test_x2_google_cel_reads_the_same_strings() -> None:
    cel = pytest.importorskip("cel_expr_python.cel", reason="cel-expr-python (the oracle) is not installed")
    env = cel.NewEnv(variables={})
    for source in (r'"a\\b"', r"'\"'", r'"\'"', r'"\n\r\t"', '"😀"', "'a\tb'"):
        assert env.compile(source).eval().value() == tokens(source)[0].text


@pytest.mark.parametrize(
    ("source", "place", "words"),
    [
        pytest.param("a // b", "1:3", "comments are not in cel-strict/1", id="comment"),
        pytest.param("a > 1.5", "1:5", "floating-point", id="float"),
        pytest.param("a > 1e3", "1:5", "floating-point", id="exponent"),
        pytest.param("a > 0x1F", "1:5", "hexadecimal", id="hexadecimal"),
        pytest.param("a > 5u", "1:5", "unsigned", id="unsigned"),
        pytest.param("a > 5x", "1:6", "unexpected 'x' after a number", id="letter after number"),
        pytest.param("a > 007", "1:5", "leading zeros", id="leading zero"),
        pytest.param('r"a"', "1:1", "raw strings", id="raw string"),
        pytest.param("b'a'", "1:1", "bytes", id="bytes"),
        pytest.param('a == """x"""', "1:6", "triple-quoted", id="triple quotes"),
        pytest.param('a == "x', "1:6", "no closing quote", id="unclosed"),
        pytest.param('a == "x\ny"', "1:6", "no closing quote", id="newline in a string"),
        pytest.param(r'"\x41"', "1:2", r"\x is not in cel-strict/1", id="hex escape"),
        pytest.param(r'"\u0041"', "1:2", r"\u is not", id="unicode escape"),
        pytest.param("a & b", "1:3", "did you mean '&&'", id="single and"),
        pytest.param("a | b", "1:3", "did you mean '||'", id="single or"),
        pytest.param("a = b", "1:3", "did you mean '=='", id="single equals"),
        pytest.param("{'a': 1}", "1:1", "map and message literals", id="map literal"),
        pytest.param("a.`b`", "1:3", "quoted identifiers", id="quoted identifier"),
        pytest.param("a\n  # b", "2:3", "comments do not stand inside", id="position in line two"),
        pytest.param("99999999999999999999", "1:1", "64 bits", id="too large"),
        pytest.param('"\ud800"', "1:1", "surrogate", id="half a surrogate pair"),
        pytest.param("a" * (MAX_SOURCE + 1), f"1:{MAX_SOURCE + 1}", "longer than 4096", id="too long"),
    ],
)
def test_what_is_left_out_is_named_with_its_place(source: str, place: str, words: str) -> None:
    with pytest.raises(CelError) as caught:
        tokens(source)
    assert str(caught.value).startswith(f"{place}: ") and words in str(caught.value)
