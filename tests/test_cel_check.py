"""cel/check.py: static types, guards of optional fields, and messages that say what to write."""

from __future__ import annotations

import random
from typing import Any

import pytest

from holdgate.cel.check import check
from holdgate.cel.evaluate import EvalError, Fault, compile_program
from holdgate.cel.model import (
    BOOL,
    INT,
    STRING,
    CelError,
    Environment,
    Field,
    ListOf,
    MapOf,
    Record,
    type_of_constant,
)
from holdgate.cel.parse import parse

ENVIRONMENT = Environment(
    roots={
        "params": Record(
            {
                "amount": Field(INT),
                "currency": Field(STRING),
                "live": Field(BOOL),
                "memo": Field(STRING, optional=True),
                "fee": Field(INT, optional=True),
                "tags": Field(ListOf(STRING)),
            }
        ),
        "agent": Record({"id": Field(STRING), "attrs": Field(Record({"level": Field(INT)}))}),
        "approvals": ListOf(Record({"role": Field(STRING), "note": Field(STRING, optional=True)})),
    },
    constants={"cap": 5000, "caps": {"eur": 1, "usd": 2}, "names": ["a", "b"]},
)


def typed(source: str) -> str:
    return str(check(parse(source), ENVIRONMENT, source).type)


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("params.amount + constants.cap", "int"),
        ("params.live ? params.currency : 'x'", "string"),
        ("params.tags", "list<string>"),
        ("constants.caps", "map<string,int>"),
        ("constants.caps[params.currency] < 3", "bool"),
        ("params.currency in constants.caps", "bool"),
        ("agent.attrs.level > 1", "bool"),
        ("approvals.exists(a, a.role == 'x')", "bool"),
        ("params.tags.all(t, constants.names.exists(n, n == t))", "bool"),
        ("params.tags == ['a']", "bool"),
        ("size(params.currency) == size(params.tags)", "bool"),
    ],
)
def test_types_of_expressions(source: str, kind: str) -> None:
    assert typed(source) == kind


@pytest.mark.parametrize(
    ("source", "place", "words"),
    [
        pytest.param("params.amout > 1", "1:8", "did you mean 'params.amount'", id="misspelt field"),
        pytest.param("parms.amount > 1", "1:1", "did you mean 'params'", id="misspelt root"),
        pytest.param("amount > 1", "1:1", "did you mean 'params.amount'", id="forgotten root"),
        pytest.param("zzz > 1", "1:1", "there are agent, approvals, constants, params", id="unknown root"),
        pytest.param("params.amount > '5'", "1:1", "numbers are written without quotes", id="int and string"),
        pytest.param("params.currency == 5", "1:1", "found string and int", id="string and int"),
        pytest.param("params.amount && params.live", "1:1", "&& needs bool, found int", id="int as bool"),
        pytest.param("!params.amount", "1:2", "! needs bool", id="not of int"),
        pytest.param("-params.currency", "1:2", "- needs int", id="minus of string"),
        pytest.param("params.currency + 'x'", "1:1", "+ joins integers only", id="joined strings"),
        pytest.param("params.tags + ['x']", "1:1", "+ joins integers only", id="joined lists"),
        pytest.param("params.live < true", "1:1", "orders integers or strings", id="order of bools"),
        pytest.param("params == params", "1:1", "cannot compare record", id="records"),
        pytest.param("params >= 5", "1:1", "found record and int", id="record and int"),
        pytest.param("constants.caps == constants.caps", "1:1", "cannot compare map", id="maps"),
        pytest.param("params.amount in params.tags", "1:1", "`in` looks for string", id="in with other type"),
        pytest.param("'a' in params.currency", "1:8", "x.contains(y)", id="in a string"),
        pytest.param("params.tags.contains('a')", "1:1", "`item in list`", id="contains of a list"),
        pytest.param("params.tags[0] == 'a'", "1:1", "lists have no [...]", id="list index"),
        pytest.param("constants.caps.eur > 1", "1:1", '["eur"]', id="field of a map"),
        pytest.param("constants.caps[1] > 1", "1:16", "the key of a map needs string", id="map key type"),
        pytest.param("params.amount.x == 1", "1:1", "int has no fields", id="field of an int"),
        pytest.param("params.amount['x'] == 1", "1:1", "only maps can", id="key of an int"),
        pytest.param("[1, 'a'] == [1]", "1:5", "mixes int and string", id="mixed list"),
        pytest.param("[[1]] == [[1]]", "1:2", "lists hold integers", id="list of lists"),
        pytest.param("params.live ? 1 : 'a'", "1:1", "both sides of ?:", id="two types of ?:"),
        pytest.param("params.amount ? 1 : 2", "1:1", "the condition of ?: needs bool", id="int condition"),
        pytest.param("params.amount.startsWith('a')", "1:1", "startsWith() needs string", id="method of int"),
        pytest.param("size(params.amount) > 1", "1:6", "size() needs", id="size of int"),
        pytest.param("constants.caps.exists(k, true)", "1:1", "no iteration over a map", id="map loop"),
        pytest.param("params.amount.all(x, true)", "1:1", "all() needs a list", id="loop over an int"),
        pytest.param("params.tags.all(t, size(t))", "1:20", "needs bool, found int", id="loop of ints"),
        pytest.param("params.tags.all(params, true)", "1:1", "choose another variable", id="hidden root"),
        pytest.param(
            "params.tags.all(t, params.tags.all(t, true))",
            "1:20",
            "choose another variable",
            id="hidden variable",
        ),
        pytest.param(
            "params.tags.all(a, params.tags.all(b, params.tags.all(c, true)))",
            "1:39",
            "at most 2 deep",
            id="3 loops",
        ),
        pytest.param("params", "1:1", "name one of its fields", id="whole record"),
        pytest.param("has(constants.caps.eur)", "1:5", '["eur"]', id="has of a map"),
    ],
)
def test_u1_type_errors_name_the_place_and_the_way_out(source: str, place: str, words: str) -> None:
    with pytest.raises(CelError) as caught:
        check(parse(source), ENVIRONMENT, source)
    assert str(caught.value).startswith(f"{place}: "), str(caught.value)
    assert words in str(caught.value)


GUARDED = [
    "has(params.memo) && params.memo == 'x'",
    "!has(params.memo) || params.memo == 'x'",
    "has(params.memo) ? params.memo == 'x' : params.live",
    "!has(params.memo) ? params.live : params.memo == 'x'",
    "params.live && has(params.memo) && params.memo == 'x'",
    "has(params.memo) && has(params.fee) && (params.memo == 'x' || params.fee > 1)",
    "!(has(params.memo) && params.live) || params.memo == 'x'",
    "!(!has(params.memo) || params.live) && params.memo == 'x'",
    "(has(params.memo) && params.live || has(params.memo) && params.amount > 1) && params.memo == 'x'",
    "!(!has(params.memo) && !params.live && false) || params.live",
    "has(params.memo) && params.tags.exists(t, t == params.memo)",
    "params.live ? has(params.memo) && params.memo == 'x' : true",
    "approvals.exists(a, has(a.note) && a.note == 'x')",
]
UNGUARDED = [
    # True by a second look only: the checker does not know that `false` is never true.
    "(has(params.memo) ? params.live : false) && params.memo == 'x'",
    "params.memo == 'x'",
    "params.memo == 'x' && has(params.memo)",
    "has(params.memo) || params.memo == 'x'",
    "!has(params.memo) && params.memo == 'x'",
    "has(params.fee) && params.memo == 'x'",
    "(has(params.memo) || params.live) && params.memo == 'x'",
    "!(has(params.memo) && params.live) && params.memo == 'x'",
    "(has(params.memo) ? params.live : true) && params.memo == 'x'",
    "has(params.memo) ? params.live : params.memo == 'x'",
    "(has(params.memo) && params.live) == true && params.memo == 'x'",
    "params.tags.exists(t, has(params.memo)) && params.memo == 'x'",
    "params.tags.all(t, has(params.memo)) && params.memo == 'x'",
    "has(params.memo) && params.live || params.memo == 'x'",
    "approvals.exists(a, a.note == 'x')",
    "approvals.exists(a, has(a.note)) && approvals.exists(b, b.note == 'x')",
]


@pytest.mark.parametrize("source", GUARDED)
def test_u2_guarded_optional_fields_pass(source: str) -> None:
    assert typed(source) == "bool"


@pytest.mark.parametrize("source", UNGUARDED)
def test_u2_unguarded_optional_fields_are_refused(source: str) -> None:
    with pytest.raises(CelError, match=r"may be absent; guard it: has\("):
        typed(source)


def test_u2_guards_that_pass_never_meet_an_absent_field() -> None:
    rng = random.Random(5)
    programs = [compile_program(source, ENVIRONMENT) for source in GUARDED]
    for _ in range(300):
        params: dict[str, Any] = {
            "amount": rng.choice([0, 2]),
            "currency": "eur",
            "live": rng.random() < 0.5,
            "tags": rng.choice([[], ["x"], ["x", "y"]]),
        }
        params |= {"memo": rng.choice(["x", "y"])} if rng.random() < 0.5 else {}
        params |= {"fee": rng.choice([0, 2])} if rng.random() < 0.5 else {}
        approvals = rng.choice([[], [{"role": "r"}], [{"role": "r", "note": "x"}]])
        for program in programs:
            value = program.evaluate(program.frame({"params": params, "approvals": approvals, "agent": {}}))
            assert isinstance(value, bool), (program.source, params, value)


def test_u2_without_the_checker_the_same_reads_would_fail() -> None:
    # Shows that the test above could fail: the unguarded reads do meet absent fields.
    lax = Environment(roots={"params": Record({"memo": Field(STRING), "live": Field(BOOL)})}, constants={})
    program = compile_program("has(params.memo) || params.memo == 'x'", lax)
    value = program.evaluate(program.frame({"params": {"live": True}}))
    assert isinstance(value, EvalError) and value.fault is Fault.MISSING


def test_paths_list_every_input_and_constant_that_is_named() -> None:
    source = (
        "has(params.memo) && approvals.exists(a, a.role == params.currency) && params.amount < constants.cap"
    )
    paths = check(parse(source), ENVIRONMENT, source).paths
    assert paths == {"params.memo", "approvals", "params.currency", "params.amount", "constants.cap"}


@pytest.mark.parametrize(
    ("value", "kind"),
    [(True, BOOL), (5, INT), ("a", STRING), (["a"], ListOf(STRING)), ({"a": 1}, MapOf(INT))],
)
def test_types_of_constants(value: Any, kind: Any) -> None:
    assert type_of_constant(value) == kind


@pytest.mark.parametrize("value", [[], {}, [1, "a"], {"a": 1, "b": True}, [True, 1], [["a"]], {"a": ["b"]}])
def test_constants_without_one_type_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"item|may hold"):
        type_of_constant(value)


def test_u3_google_cel_accepts_what_passes_here() -> None:
    cel = pytest.importorskip("cel_expr_python.cel", reason="cel-expr-python (the oracle) is not installed")
    kind = cel.Type
    open_map = kind.Map(kind.STRING, kind.DYN)
    env = cel.NewEnv(
        variables={
            "params": open_map,
            "agent": open_map,
            "approvals": kind.List(open_map),
            "constants": open_map,
        }
    )
    for source in GUARDED:
        assert env.compile(source).return_type() in (kind.BOOL, kind.DYN)
