"""hiding.py: what receipts say of the parameters of sensitive operations."""

from __future__ import annotations

import hmac
import json

import pytest

from holdgate.errors import ConfigError
from holdgate.surface.index import SurfaceIndex
from holdgate.surface.model import Action
from surface_requests import FLEET_KEY, JSON, map_of, request

SPEC = """
hosts: [ehr.test]
defaults:
  sensitive: {sensitive}
  body: {{decode: json}}
  in_clear: {{kind: [Patient, Observation], urgent: true, tags: [a, b]}}
operations:
- id: put
  match: {{method: PUT, path: "/{{kind}}/{{id}}"}}
  surface: ehr.write
  effect: commit
  {own}
  redact: [body.ssn]
  params:
    kind: {{from: path.kind, type: string, required: true, material: true}}
    id: {{from: path.id, type: string, required: true, material: true}}
    dose: {{from: body.dose, type: int, material: true}}
    note: {{from: body.note, type: string, material: true, digest_only: true}}
    ssn: {{from: body.ssn, type: string, material: true}}
    tags: {{from: body.tags, type: list<string>, material: true}}
    urgent: {{from: body.urgent, type: bool, material: true}}
    internal: {{from: body.internal, type: string}}
- id: batch
  match: {{method: POST, path: /}}
  explode: {{over: body.entry, max: 9, as_request: {{method: m, url: u, body: b}}}}
"""


def action(target: str, body: object, *, sensitive: str = "true", own: str = "", name: str = "ehr") -> Action:
    index = SurfaceIndex.compile([map_of(SPEC.format(sensitive=sensitive, own=own), name=name)])
    data = json.dumps(body).encode()
    method = "POST" if target == "/" else "PUT"
    found = index.recognise(
        request(target, method=method, host="ehr.test", headers=JSON, body=data), fleet_key=FLEET_KEY
    )
    return found.actions[0]


def public(found: Action) -> dict[str, object]:
    return {param.name: param.public for param in found.params}


def keyed(name: str, text: str, map_name: str = "ehr") -> str:
    parts = [map_name.encode(), name.encode(), text.encode()]
    preimage = b"holdgate-param-v1" + b"".join(len(p).to_bytes(8, "big") + p for p in parts)
    return "hmac-sha256:" + hmac.new(FLEET_KEY, preimage, "sha256").hexdigest()


BODY = {"dose": 5, "note": "n", "ssn": "1", "tags": ["a", "b"], "urgent": True, "internal": "x"}


def test_sm35_what_the_map_does_not_show_is_keyed() -> None:
    assert public(action("/Patient/mrn-1", BODY)) == {
        "kind": "Patient",
        "id": keyed("id", "mrn-1"),
        "dose": keyed("dose", "5"),
        "note": keyed("note", "n"),
        "ssn": None,
        "tags": ("a", "b"),
        "urgent": True,
        "internal": None,
    }


@pytest.mark.parametrize(
    ("target", "body", "name", "expected"),
    [
        pytest.param("/Jane/1", {}, "kind", keyed("kind", "Jane"), id="a value that is not listed"),
        pytest.param(
            "/Patient/1", {"tags": ["a", "Jane"]}, "tags", keyed("tags", '["a","Jane"]'), id="in a list"
        ),
        pytest.param(
            "/",
            {"entry": [{"m": "PUT", "u": "Jane/7", "b": {}}]},
            "id",
            keyed("id", "7"),
            id="an item of a batch",
        ),
    ],
)
def test_sm35_values_that_are_not_listed_are_keyed(
    target: str, body: object, name: str, expected: str
) -> None:
    assert public(action(target, body))[name] == expected


def test_sm35_equal_values_stay_equal_within_a_map_and_a_parameter() -> None:
    first, second = action("/Patient/1", {"dose": 1}), action("/Observation/1", {"dose": 2})
    assert public(first)["id"] == public(second)["id"] != public(first)["dose"]
    assert (
        public(action("/Patient/1", {}, name="other"))["id"]
        == keyed("id", "1", "other")
        != public(first)["id"]
    )


def test_sm35_an_operation_may_show_more() -> None:
    assert public(action("/Patient/1", {}, own="in_clear: {id: true}"))["id"] == "1"
    assert public(action("/Jane/1", {}, own="in_clear: {kind: true}"))["kind"] == "Jane"


def test_sm36_policies_and_keys_see_the_values() -> None:
    found = action("/Patient/1", BODY)
    read = {"kind": "Patient", "id": "1"} | BODY | {"tags": ("a", "b")}
    assert {param.name: param.value for param in found.params} == read


@pytest.mark.parametrize(
    ("own", "message"),
    [
        pytest.param("in_clear: {nothing: true}", "nothing", id="no such parameter"),
        pytest.param("in_clear: {note: true}", "digest_only", id="digest_only"),
        pytest.param("in_clear: {internal: true}", "not material", id="not in receipts"),
        pytest.param("in_clear: {ssn: true}", "redacted", id="redacted"),
        pytest.param("in_clear: {id: []}", "a list of the values", id="an empty list"),
        pytest.param("in_clear: {id: false}", "a list of the values", id="false"),
        pytest.param("in_clear: [id]", "in_clear", id="not a mapping"),
    ],
)
def test_what_is_shown_must_be_there_to_be_shown(own: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        action("/Patient/1", {}, own=own)


def test_defaults_show_parameters_of_some_operation() -> None:
    with pytest.raises(ConfigError, match="no operation has a parameter 'kynd'"):
        map_of(SPEC.format(sensitive="true", own="").replace("kind: [", "kynd: ["))
