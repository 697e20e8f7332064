"""facts.py: questions, and answers as they stand in the decision input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from holdgate.facts import (
    Fact,
    Form,
    Found,
    Lookup,
    fill,
    is_fact,
    lookups_of,
    lookups_of_all,
    readable,
    state,
)
from holdgate.surface.model import CelType, ParamSchema

NOW = 1_800_000_000
AGENT = {"id": "triage", "groups": ["icu"], "attrs": {"ward": 7}}


def schema(kind: str, *, optional: bool = False) -> ParamSchema:
    return ParamSchema(type=CelType(kind), optional=optional)


def fact(
    name: str = "panel", key: tuple[str, ...] = ("agent.id", "params.patient"), **fields: ParamSchema
) -> Fact:
    return Fact(
        name=name,
        provider="ehr",
        key=key,
        fields=fields or {"member": schema("bool")},
        file="p.yaml",
        line=1,
    )


def action(**params: Any) -> dict[str, Any]:
    return {"surface": "ehr.write", "operation": "fhir.create", "params": params}


def found(values: Mapping[str, Any], form: Form = Form.JSON, age_s: int = 0, max_age_s: int = 0) -> Found:
    return Found(values=values, form=form, read_s=NOW - age_s, max_age_s=max_age_s, source="http")


def record(answer: Found | None, about: Fact) -> Any:
    """What stands in the input of an action about patient 1."""
    actions = [action(patient="1")]
    answers = {} if answer is None else {Lookup("ehr", ("triage", "1")): answer}
    fill(lambda *_: (about,), AGENT, actions, answers, now_s=NOW)
    assert readable(actions[0], (about,)) is (about.name in actions[0]["facts"])
    return actions[0]["facts"].get(about.name)


@pytest.mark.parametrize(
    ("values", "form", "expected"),
    [
        pytest.param({"member": True}, Form.JSON, True, id="bool"),
        pytest.param({"member": "true"}, Form.JSON, None, id="a string is no bool in JSON"),
        pytest.param({"member": 1}, Form.JSON, None, id="an int is no bool in JSON"),
        pytest.param({"member": "true"}, Form.TEXT, True, id="true in CSV"),
        pytest.param({"member": "True"}, Form.TEXT, None, id="another spelling in CSV"),
        pytest.param({"member": 1}, Form.SQL, True, id="1 in SQL"),
        pytest.param({"member": 2}, Form.SQL, None, id="2 in SQL"),
        pytest.param({"member": None}, Form.SQL, None, id="NULL"),
        pytest.param({}, Form.JSON, None, id="absent"),
    ],
)
def test_fa1_a_value_of_another_type_leaves_the_fact_out(
    values: dict[str, Any], form: Form, expected: bool | None
) -> None:
    got = record(found(values, form), fact())
    assert got == (None if expected is None else {"member": expected, "as_of_s": NOW, "source": "http"})


def test_fa1_only_declared_fields_are_recorded_and_optional_ones_may_be_absent() -> None:
    about = fact(role=schema("string", optional=True), beds=schema("int"), codes=schema("list<string>"))
    got = record(found({"beds": 3, "codes": ["a"], "diagnosis": "secret", "role": None}), about)
    assert got == {"beds": 3, "codes": ["a"], "as_of_s": NOW, "source": "http"}
    assert record(found({"beds": "3", "codes": ["a"]}), about) is None
    assert record(found({"beds": "-3", "codes": ["a"]}, Form.TEXT), about) is not None
    for lexeme in ("03", "1_0", " 3", "3.0", "٣", "9223372036854775808"):
        assert record(found({"beds": lexeme, "codes": ["a"]}, Form.TEXT), about) is None, lexeme


@pytest.mark.parametrize("wrong", [None, 3, [], {}, {"member": True}, {"member": True, "as_of_s": -1}])
def test_fa1_a_record_of_another_shape_is_not_readable(wrong: Any) -> None:
    """Whoever made the input: the gate looks again."""
    assert not is_fact(fact(), wrong)
    assert not readable({"facts": {"panel": wrong}}, (fact(),))
    assert not readable({"facts": wrong}, (fact(),))


def test_fa2_what_was_not_found_or_is_too_old_is_left_out() -> None:
    assert record(None, fact()) is None
    assert record(found({"member": True}, age_s=900, max_age_s=900), fact()) is not None
    assert record(found({"member": True}, age_s=901, max_age_s=900), fact()) is None
    assert record(found({"member": True}, age_s=901), fact()) is not None, "no limit is declared"
    assert record(found({"member": True}, age_s=-301), fact()) is None, "from the future"


def test_fa2_the_time_is_the_sources_own_where_it_says_one() -> None:
    stated = {"member": True, "as_of_s": NOW - 60}
    assert record(found(stated), fact())["as_of_s"] == NOW - 60
    assert record(found(stated | {"as_of_s": NOW - 901}, max_age_s=900), fact()) is None
    assert record(found(stated | {"as_of_s": "yesterday"}), fact()) is None
    asking = fact(member=schema("bool"), as_of_s=schema("int"))
    assert record(found(stated), asking)["as_of_s"] == NOW - 60
    assert record(found({"member": True}), asking) is None, "declared, so the source has to say it"


@pytest.mark.parametrize(
    ("path", "params", "part"),
    [
        pytest.param("params.p", {"p": "a b"}, "a b", id="text"),
        pytest.param("params.p", {"p": -5}, "-5", id="int"),
        pytest.param("params.p", {"p": True}, "true", id="bool"),
        pytest.param("agent.attrs.ward", {}, "7", id="attribute"),
        pytest.param("action.operation", {}, "fhir.create", id="operation"),
        pytest.param("params.p", {}, None, id="absent"),
        pytest.param("params.p", {"p": ""}, None, id="empty"),
        pytest.param("params.p", {"p": "x" * 513}, None, id="long"),
        pytest.param("params.p", {"p": ["a"]}, None, id="list"),
        pytest.param("agent.groups", {}, None, id="groups"),
        pytest.param("params.p.q", {"p": "a"}, None, id="below a text"),
    ],
)
def test_fa3_a_key_that_is_not_whole_asks_nobody(path: str, params: dict[str, Any], part: str | None) -> None:
    asked = lookups_of([fact(key=("agent.id", path))], AGENT, action(**params))
    assert asked == ({} if part is None else {"panel": Lookup("ehr", ("triage", part))})


def test_fa4_equal_questions_are_asked_once() -> None:
    facts = (fact("a"), fact("b"), fact("c", key=("params.patient",)))
    actions = [action(patient="1"), action(patient="1"), action(patient="2")]
    asked = lookups_of_all(lambda *_: facts, AGENT, actions)
    assert sorted(asked) == sorted(
        [Lookup("ehr", (*agent, patient)) for agent in ((), ("triage",)) for patient in ("1", "2")]
    )
    assert lookups_of_all(lambda *_: (), AGENT, actions) == ()


def test_stated_facts_stand_for_answers_where_there_is_a_key() -> None:
    actions = [action(patient="1"), action()]
    state(lambda *_: (fact(), fact("other")), AGENT, actions, {"panel": {"member": False}}, now_s=NOW)
    assert actions[0]["facts"] == {"panel": {"member": False, "as_of_s": NOW, "source": "stated"}}
    assert actions[1]["facts"] == {}
