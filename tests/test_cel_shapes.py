"""cel/shapes.py: conditions that differ in plain literals only share a tree, and nothing else does (X7)."""

from __future__ import annotations

import random

import pytest

from holdgate.cel.evaluate import compile_program
from holdgate.cel.model import BOOL, INT, STRING, Environment, Field, ListOf, MapOf, Record
from holdgate.cel.parse import parse
from holdgate.cel.shapes import places, shape


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param("a <= 5", "a <= 700", id="integers"),
        pytest.param('a == "x"', "a == 'y z'", id="quotes of either kind"),
        pytest.param('a in ["x", "y"]', 'a in ["&& ||", "(1)"]', id="signs inside a text"),
        pytest.param("a >= -5", "a >= -999999999999999999", id="minus"),
        pytest.param("a - 5 > 1", "a - 7 > 3", id="difference"),
    ],
)
def test_x7_plain_literals_are_taken_out(first: str, second: str) -> None:
    one, two = shape(first), shape(second)
    assert one is not None and two is not None
    assert one[0] == two[0] and one[1] != two[1]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param("a <= 5", 'a <= "5"', id="type"),
        pytest.param("a <= 5", "a <= -5", id="sign"),
        pytest.param("a <= 0", "a <= 5", id="zero hides a minus"),
        pytest.param("a <= 5", "a  <= 5", id="white space"),
        pytest.param("a in [5]", "a in [5, 5]", id="number of items"),
        pytest.param("a == v5", "a == v6", id="digit of a name"),
        pytest.param("a5 == 1", "a6 == 1", id="digit of a name before"),
        pytest.param("a <= 5", "a <= 1234567890123456789", id="beyond 18 digits"),
        pytest.param("a == true", "a == false", id="booleans"),
    ],
)
def test_x7_what_is_not_a_literal_is_in_the_shape(first: str, second: str) -> None:
    shapes = {found[0] if (found := shape(text)) else text for text in (first, second)}
    assert len(shapes) == 2


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(r'a == "x\"5"', id="escape"),
        pytest.param('a == "é"', id="not ASCII"),
        pytest.param('a == "x', id="open quote"),
        pytest.param("a == 5 // 6", id="comment"),
        pytest.param("a == b", id="no literal"),
        pytest.param("a == \0 && b == 5", id="NUL"),
    ],
)
def test_x7_such_a_text_is_read_as_it_is(text: str) -> None:
    assert shape(text) is None


def test_x7_a_tree_that_does_not_show_the_literals_is_no_model() -> None:
    tree = parse("a <= 5 && b >= (-7)")
    assert places(tree, [5, 7]) == {5: (0, 1), 15: (1, -1)}
    assert places(tree, [5]) is None
    assert places(tree, [5, 8]) is None


_ROOTS = {
    "p": Record({"n": Field(INT), "o": Field(INT, True), "w": Field(STRING), "b": Field(BOOL)}),
    "l": ListOf(STRING),
    "m": MapOf(INT),
}
_FORMS = [
    "p.n <= {i}",
    "(p.n >= ({i}))",
    "p.n > -{i}",
    "!!p.b",
    "{i} - {i} < p.n",
    "has(p.o) && p.o % {i} == {i}",
    "p.w in [{s}, {s}]",
    "l.exists(x, x == {s} && size(x) < {i})",
    "m[{s}] * {i} > {i}",
    "{s}.startsWith(p.w)",
    "(p.b ? {i} : -{i}) < p.n",
    "[{i}, {i}].all(x, x <= p.n)",
    " {i} in [{i}, - {i}] ",
    "{s} in m",
    "p.n / {i} > {i} || p.w == {s}",
]


def test_x7_a_shared_tree_means_what_each_text_means() -> None:
    """Every condition in one environment, where shapes are shared, and alone in one of its own."""
    rng = random.Random(5)
    together = Environment(roots=_ROOTS, constants={})
    frame = {"p": {"n": 3, "o": 7, "w": "a", "b": True}, "l": ["a", "bb"], "m": {"a": 1, "k": 4}}
    texts = ["'a'", '"a"', '"k"', "'bb'", '"a && b"', "'(1 2)'", '""']
    results = set()
    for _ in range(500):
        source = " && ".join(rng.choice(_FORMS) for _ in range(rng.randint(2, 4)))
        while "{i}" in source:
            source = source.replace("{i}", str(rng.choice([0, 1, 2, 3, 4, 7, 30, 10**17])), 1)
        while "{s}" in source:
            source = source.replace("{s}", rng.choice(texts), 1)
        shared, alone = (
            compile_program(source, each) for each in (together, Environment(roots=_ROOTS, constants={}))
        )
        value = shared.evaluate(shared.frame(frame))
        assert value == alone.evaluate(alone.frame(frame)), source
        assert (shared.paths, shared.cost, shared.constant) == (alone.paths, alone.cost, alone.constant), (
            source
        )
        places_of = [[each[:2] for each in program.conjuncts] for program in (shared, alone)]
        assert places_of[0] == places_of[1], source
        results.add(str(value))
    assert len(results) > 3
