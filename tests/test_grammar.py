"""policies/README.md and the parser are one language: what its grammar derives parses, and the reverse."""

from __future__ import annotations

import random
import re
from functools import cache
from pathlib import Path

import pytest

from holdgate.cel import model
from holdgate.cel.closures import Fault
from holdgate.cel.lexer import RESERVED, Token, TokenKind, tokens
from holdgate.cel.model import CelError
from holdgate.cel.parse import parse
from holdgate.policy_model import MAX_RULES
from holdgate.strictyaml import load_file

README = Path(__file__).parents[1] / "policies" / "README.md"
pytestmark = pytest.mark.checkout

type Expr = tuple[str, object]  # ("seq" | "alt", [Expr]) | ("opt" | "rep", Expr) | ("text" | "rule", str)


@cache
def page() -> str:
    return README.read_text(encoding="utf-8")


@cache
def grammar() -> dict[str, Expr]:
    text = next(block for block in re.findall(r"```ebnf\n(.*?)```", page(), re.DOTALL))
    return {
        name: _read(re.findall(r'"[^"]+"|[A-Za-z]+|[\[\]{}()|]', body), [0])
        for name, body in re.findall(r"(\w+)\s*=\s*(.*?)\s;", text, re.DOTALL)
    }


def _read(words: list[str], at: list[int]) -> Expr:
    choices: list[Expr] = []
    parts: list[Expr] = []
    while at[0] < len(words) and words[at[0]] not in ("]", "}", ")"):
        word = words[at[0]]
        at[0] += 1
        if word == "|":
            choices.append(("seq", parts))
            parts = []
        elif word in ("[", "{", "("):
            inner = _read(words, at)
            at[0] += 1
            parts.append({"[": ("opt", inner), "{": ("rep", inner), "(": inner}[word])
        else:
            parts.append(("text", word[1:-1]) if word[0] == '"' else ("rule", word))
    return ("alt", [*choices, ("seq", parts)])


# --- from the grammar to the parser -----------------------------------------------------------


def sentence(rng: random.Random, node: Expr, fuel: int) -> list[str]:
    kind, value = node
    if kind == "text":
        return [str(value)]
    if kind == "rule":
        if value == "NAME":
            return [rng.choice(["a", "b", "params", "x1", "_y", "contains", "size_"])]
        if value == "FIELD":
            return [rng.choice(["a", "amount", "package", "has", "x1"])]
        if value == "INTEGER":
            return [rng.choice(["0", "7", "9223372036854775807"])]
        if value == "STRING":
            return [rng.choice(['"a"', "'b'", r'"\"\n"', '"(&& ?"'])]
        return sentence(rng, grammar()[str(value)], fuel - 1)
    assert isinstance(value, list | tuple)
    if kind == "seq":
        return [word for part in value for word in sentence(rng, part, fuel)]
    if kind == "alt":
        # Without fuel the first choice that ends: literals and names stand first in `primary`.
        return sentence(rng, rng.choice(value if fuel > 0 else value[:1]), fuel)
    times = rng.choice([0, 0, 1] if kind == "opt" else [0, 0, 0, 1, 2]) if fuel > 0 else 0
    return [word for _ in range(times) for word in sentence(rng, value, fuel - 3)]  # type: ignore[arg-type]


@pytest.mark.slow
def test_every_sentence_of_the_grammar_parses() -> None:
    rng = random.Random(1)
    lengths = []
    for _ in range(600):
        words = sentence(rng, ("rule", "expr"), 26)
        source = rng.choice([" ", "\n "]).join(words)
        if len(source) > model.MAX_SOURCE:
            continue
        try:
            parse(source)
        except CelError as error:
            assert "nested deeper" in error.message or "parentheses here" in error.message, (
                source,
                str(error),
            )
            continue
        lengths.append(len(words))
    assert len(lengths) > 400 and max(lengths) > 30


# --- from the parser to the grammar -----------------------------------------------------------


def derived(source: str) -> bool:
    """Whether the printed grammar derives `source`: all ends of every rule at every place."""
    found = tokens(source)

    def matches(word: str, token: Token) -> bool:
        if word == "NAME":
            return token.kind is TokenKind.NAME and token.text not in {
                *RESERVED,
                "in",
                "true",
                "false",
                "null",
            }
        if word == "FIELD":
            return token.kind is TokenKind.NAME and token.text not in ("in", "true", "false", "null")
        if word == "INTEGER":
            return token.kind is TokenKind.INT
        return token.kind is TokenKind.STRING

    @cache
    def rule(name: str, at: int) -> frozenset[int]:
        if name.isupper():
            return frozenset({at + 1}) if matches(name, found[at]) else frozenset()
        return ends(grammar()[name], at)

    def ends(node: Expr, at: int) -> frozenset[int]:
        kind, value = node
        if kind == "text":
            token = found[at]
            same = token.kind in (TokenKind.OP, TokenKind.NAME) and token.text == value
            return frozenset({at + 1}) if same else frozenset()
        if kind == "rule":
            return rule(str(value), at)
        if kind == "opt":
            return frozenset({at}) | ends(value, at)  # type: ignore[arg-type]
        if kind == "alt":
            return frozenset().union(*(ends(part, at) for part in value))  # type: ignore[attr-defined]
        if kind == "seq":
            here = frozenset({at})
            for part in value:  # type: ignore[attr-defined]
                here = frozenset().union(*(ends(part, place) for place in here))
            return here
        reached, new = frozenset({at}), frozenset({at})
        while new:
            new = frozenset().union(*(ends(value, place) for place in new)) - reached  # type: ignore[arg-type]
            reached |= new
        return reached

    return len(found) - 1 in rule("expr", 0)


WORDS = (
    'a b.c 1 - -2 "s" true ( ) [ ] ! && || == < in + * ? : has( size( .exists(x, .contains( , '
    '.startsWith("q") '
    "has(a.b) size(c) a.all(v, v) [1, 2] x.y not in"
).split(" ")


def test_everything_that_parses_is_in_the_grammar() -> None:
    rng = random.Random(2)
    parsed = 0
    for number in range(15_000):
        source = " ".join(rng.choice(WORDS) for _ in range(1 + number % 9))
        try:
            parse(source)
        except CelError:
            continue
        parsed += 1
        assert derived(source), source
    assert parsed > 200


def test_the_conditions_that_are_shipped_are_in_the_grammar() -> None:
    seen = 0
    for path in README.parent.glob("*.yaml"):
        spec = load_file(path).value["spec"].value
        for rule in spec["rules"].value if "rules" in spec else ():
            when = rule.value["when"].value
            assert when == "always" or derived(when), when
            seen += 1
    assert seen > 40


# --- bounds and errors ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "bound"),
    [
        ("characters of a condition", model.MAX_SOURCE),
        ("levels of nesting", model.MAX_DEPTH),
        ("loops inside each other", model.MAX_COMPREHENSIONS),
        ("turns of all loops in one decision", model.MAX_ITERATIONS),
        ("steps of all rules of one operation", model.MAX_STEPS),
        ("rules of one operation", MAX_RULES),
        ("characters of a string", model.MAX_STRING),
        ("items of a list", model.MAX_LIST),
    ],
)
def test_the_bounds_that_are_printed_are_those_of_the_code(what: str, bound: int) -> None:
    assert re.search(rf"^\| {what} \| {bound:,} \|", page(), re.MULTILINE), what


def test_every_fault_of_evaluation_is_in_the_table_of_errors() -> None:
    printed = set(re.findall(r"^\| `(\w+)` \|", page().split("### Errors")[1], re.MULTILINE))
    assert printed == {fault.value for fault in Fault}
    assert f"`{model.PROFILE}`" in page()
