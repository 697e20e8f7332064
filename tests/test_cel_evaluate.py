"""cel/evaluate.py, compile.py, closures.py: values, errors as values, budget, traces, hash order."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hash_order import digests_by_seed
from holdgate.cel.closures import EvalFault
from holdgate.cel.evaluate import Budget, EvalError, Fault, _whole, compile_program, explain
from holdgate.cel.model import (
    BOOL,
    INT,
    INT_MAX,
    INT_MIN,
    MAX_ITERATIONS,
    STRING,
    CelError,
    Environment,
    Field,
    ListOf,
    MapOf,
    Record,
)

ENVIRONMENT = Environment(
    roots={
        "i": INT,
        "j": INT,
        "s": STRING,
        "b": BOOL,
        "li": ListOf(INT),
        "ls": ListOf(STRING),
        "m": MapOf(INT),
        "p": Record({"n": Field(INT), "o": Field(INT, optional=True)}),
    },
    constants={"cap": 10, "codes": ["NO", "SE"], "limits": {"eur": 5}},
)
VALUES: dict[str, Any] = {
    "i": 7,
    "j": -2,
    "s": "a😀",
    "b": True,
    "li": [1, 2, 3],
    "ls": ["NO", "x"],
    "m": {"eur": 5},
    "p": {"n": 4},
}


def value(source: str, **changes: Any) -> Any:
    program = compile_program(source, ENVIRONMENT)
    return program.evaluate(program.frame({**VALUES, **changes}))


def fault(source: str, **changes: Any) -> Fault:
    found = value(source, **changes)
    assert isinstance(found, EvalError), found
    return found.fault


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("i / j", -3),
        ("i % j", 1),
        ("-i / 2", -3),
        ("-i % 2", -1),
        ("size(s)", 2),
        ("size(li) + size(m)", 4),
        ('m["eur"]', 5),
        ("b ? i : j", 7),
        ('"eur" in m', True),
        ("2 in li", True),
        ("s in constants.codes", False),
        ('"NO" in constants.codes', True),
        ('constants.limits["eur"] == 5', True),
        ("i in [j, 7]", True),
        ("li == [1, 2, 3]", True),
        ("ls.exists(x, x in constants.codes)", True),
        ("ls.all(x, x in constants.codes)", False),
        ("li.all(x, ls.exists(y, size(y) <= x))", True),
        ("has(p.o)", False),
        ("has(constants.cap)", True),
        ('s.startsWith("a") && s.endsWith("😀") && s.contains("")', True),
        ("li.exists(x, false)", False),
    ],
)
def test_v1_values(source: str, expected: object) -> None:
    found = value(source)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("source", "changes", "expected"),
    [
        pytest.param("i + 1", {"i": INT_MAX}, Fault.OVERFLOW, id="sum"),
        pytest.param("i - 1", {"i": INT_MIN}, Fault.OVERFLOW, id="difference"),
        pytest.param("i * 2", {"i": 2**62}, Fault.OVERFLOW, id="product"),
        pytest.param("-i", {"i": INT_MIN}, Fault.OVERFLOW, id="negation"),
        pytest.param("i / -1", {"i": INT_MIN}, Fault.OVERFLOW, id="quotient"),
        pytest.param("i % -1", {"i": INT_MIN}, Fault.OVERFLOW, id="remainder, as in CEL"),
        pytest.param("i / 0", {}, Fault.DIVISION_BY_ZERO, id="division by zero"),
        pytest.param("i % 0", {}, Fault.DIVISION_BY_ZERO, id="remainder by zero"),
        pytest.param('m["usd"]', {}, Fault.MISSING, id="absent key"),
        pytest.param("p.n > 1", {"p": {}}, Fault.MISSING, id="absent field"),
        pytest.param("li.exists(x, i / (x - 1) > 99)", {}, Fault.DIVISION_BY_ZERO, id="in a loop"),
        pytest.param("i / 0 > 1 && b", {}, Fault.DIVISION_BY_ZERO, id="and with true"),
        pytest.param("i / 0 > 1 || !b", {}, Fault.DIVISION_BY_ZERO, id="or with false"),
        pytest.param("(i / 0 > 1 ? 1 : 2) == 1", {}, Fault.DIVISION_BY_ZERO, id="condition of ?:"),
        pytest.param("i > 1", {"i": "x"}, Fault.INTERNAL, id="a value of another type"),
        pytest.param("p.n > 1", {"p": None}, Fault.INTERNAL, id="no record at all"),
    ],
)
def test_v1_errors_are_values(source: str, changes: dict[str, Any], expected: Fault) -> None:
    assert fault(source, **changes) is expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("i / 0 > 1 || b", True),
        ("b || i / 0 > 1", True),
        ("i / 0 > 1 && !b", False),
        ("!b && i / 0 > 1", False),
        ("i / 0 > 1 && b && !b", False),
        ("li.exists(x, 6 / (x - 1) > 5)", True),
        ("li.all(x, 6 / (x - 1) > 5)", False),
        ("b ? true : i / 0 > 1", True),
    ],
)
def test_v2_errors_are_absorbed_in_either_order(source: str, expected: bool) -> None:
    assert value(source) is expected


def test_v2_a_rule_is_evaluated_whole_and_not_conjunct_by_conjunct() -> None:
    source = 'm["usd"] > 1 && i > 100'
    program = compile_program(source, ENVIRONMENT)
    frame = program.frame(VALUES)
    assert program.evaluate(frame) is False
    first, second = explain(program, frame)
    assert isinstance(first.value, EvalError) and second.value is False


@given(
    st.sampled_from([INT_MIN, INT_MIN + 1, -1, 0, 1, INT_MAX]),
    st.sampled_from([INT_MIN, -1, 0, 1, 3, INT_MAX]),
)
def test_v1_arithmetic_stays_in_int64_or_fails(left: int, right: int) -> None:
    for op in "+-*/%":
        found = value(f"i {op} j", i=left, j=right)
        exact = {"+": left + right, "-": left - right, "*": left * right}.get(op)
        if isinstance(found, EvalError):
            assert exact is None or not INT_MIN <= exact <= INT_MAX
        else:
            assert INT_MIN <= found <= INT_MAX and (exact is None or found == exact)
        if op in "/%" and right == 0:
            assert isinstance(found, EvalError)


def test_v3_the_budget_ends_at_exactly_the_limit() -> None:
    program = compile_program("li.all(x, x == 0)", ENVIRONMENT)
    assert program.evaluate(program.frame({"li": [0] * MAX_ITERATIONS})) is True
    over = program.evaluate(program.frame({"li": [0] * (MAX_ITERATIONS + 1)}))
    assert isinstance(over, EvalError) and over.fault is Fault.BUDGET


def test_v3_programs_share_one_budget_and_inner_loops_count() -> None:
    program, budget = compile_program("li.all(x, ls.all(y, true))", ENVIRONMENT), Budget(12)
    values = {"li": [1, 2, 3], "ls": ["a", "b"]}
    assert program.evaluate(program.frame(values, budget)) is True
    assert budget.left == 12 - 3 - 3 * 2
    assert isinstance(program.evaluate(program.frame(values, budget)), EvalError)
    assert budget.left == 0


def test_v3_an_exhausted_budget_is_an_error_and_not_a_false() -> None:
    source = "!li.exists(x, x > 5)"
    program = compile_program(source, ENVIRONMENT)
    found = program.evaluate(program.frame({"li": [1]}, Budget(0)))
    assert isinstance(found, EvalError) and found.fault is Fault.BUDGET


def test_v3_after_the_limit_no_further_step_runs() -> None:
    # 3 x 1000 nested steps: the inner loops run out, and nothing makes the outer ones go on for free.
    program = compile_program("li.exists(x, li.exists(y, false))", ENVIRONMENT)
    budget = Budget()
    assert isinstance(program.evaluate(program.frame({"li": list(range(1000))}, budget)), EvalError)
    assert budget.left == 0


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("true", True),
        ("1 + 1 == 2", True),
        ("b || true", True),
        ("false && b", False),
        ("constants.cap > 5", True),
        ("[1].exists(x, x == 1)", True),
        ('"NO" in constants.codes', True),
        ("b || !b", None),
        ("i > 5", None),
    ],
)
def test_constant_conditions_are_found(source: str, expected: bool | None) -> None:
    assert compile_program(source, ENVIRONMENT).constant is expected


def test_a_condition_that_always_fails_is_found() -> None:
    constant = compile_program("1 / 0 == 1", ENVIRONMENT).constant
    assert isinstance(constant, EvalError) and constant.fault is Fault.DIVISION_BY_ZERO


def test_the_expected_type_is_checked() -> None:
    with pytest.raises(CelError, match="the whole expression must be bool, found int"):
        compile_program("i + 1", ENVIRONMENT, expect=BOOL)


def test_explain_shows_each_conjunct_as_it_is_written() -> None:
    program = compile_program('i > 1 &&\n  (b || s == "x") && p.n > 100', ENVIRONMENT)
    found = explain(program, program.frame(VALUES))
    assert [(c.text, c.value) for c in found] == [
        ("i > 1", True),
        ('(b || s == "x")', True),
        ("p.n > 100", False),
    ]


def test_explain_of_one_condition_is_one_conjunct() -> None:
    program = compile_program("b || i > 1 && s == 'x'", ENVIRONMENT)
    assert [c.text for c in explain(program, program.frame(VALUES))] == ["b || i > 1 && s == 'x'"]


def test_v4_no_result_depends_on_hash_order() -> None:
    found = digests_by_seed()
    assert len(found) == 3 and len({first for first, _ in found.values()}) == 1


def test_conjuncts_that_are_compiled_once_mean_what_the_whole_means() -> None:
    names = Environment(
        roots={
            "params": Record({"a": Field(INT), "m": Field(STRING, optional=True), "b": Field(BOOL)}),
            "l": ListOf(INT),
        },
        constants={"cap": 5},
    )
    parts = [
        "params.a > 1", "has(params.m)", "params.m == 'x'", "!has(params.m)", "params.b",
        "(params.b || params.a < 0)", "params.a + 9223372036854775807 > 0", "params.a <= constants.cap",
        "l.exists(x, x == 1 && params.b)", "true", "size('&& ( ?') == 6", "[1, 2] == [params.a, 2]",
        "params.b || params.a < 0", "params.b ? true : false", "", "1 / params.a == 1",
    ]  # fmt: skip
    rng = random.Random(11)
    compared = 0
    for _ in range(1500):
        source = " && ".join(rng.choice(parts) for _ in range(rng.randrange(1, 5)))
        try:
            program = compile_program(source, names)
        except CelError as error:
            with pytest.raises(CelError) as caught:
                _whole(source, names)
            assert (caught.value.message, caught.value.offset) == (error.message, error.offset)
            continue
        whole = _whole(source, names)
        assert program.paths == whole[0].paths, source
        assert [(start, end) for start, end, _ in program.conjuncts] == [(p.start, p.end) for p in whole], (
            source
        )
        values: dict[str, Any] = {
            "l": [1],
            "params": {"a": rng.choice([-1, 0, 1, 2, 6]), "b": rng.random() < 0.5},
        }
        if rng.random() < 0.5:
            values["params"]["m"] = rng.choice("xy")
        frame = program.frame(values)
        separate = [_evaluated(part.compiled.run, frame) for part in whole]
        assert [str(each.value) for each in explain(program, program.frame(values))] == separate, source
        compared += 1
    assert compared > 300


def _evaluated(run: Any, frame: Any) -> str:
    try:
        return str(run(frame))
    except EvalFault as fault:
        return f"{fault.fault}: {fault.detail}"
