"""surface/explode.py: the three forms of a batch, and everything that refuses one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from holdgate.canonical import CanonicalRequest
from holdgate.errors import InputError, Reason
from holdgate.surface.model import Effect, KeySource, Recognised
from surface_requests import recognise, request, shared_index

INDEX = shared_index()


def reason_of(canonical: CanonicalRequest) -> Reason | None:
    try:
        recognise(INDEX, canonical)
    except InputError as error:
        return error.reason
    return None


def actions(found: Recognised) -> list[tuple[str, dict[str, Any]]]:
    return [
        (action.operation, {param.name: param.value for param in action.params}) for action in found.actions
    ]


# -- items of one operation


def delete_many(items: str, **headers: str) -> CanonicalRequest:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    body = f'<Delete xmlns="u">{items}<Quiet>true</Quiet></Delete>'.encode()
    return request("/?delete", host="b.store.test", headers=fields, body=body)


def test_sm26_items_of_one_operation_become_its_actions() -> None:
    items = "<Object><Key>a/b</Key></Object><Object><Key>c</Key><Version>7</Version><ETag>x</ETag></Object>"
    found = recognise(INDEX, delete_many(items, X_Owner="me"))
    assert actions(found) == [
        ("store.Delete", {"bucket": "b", "key": "a/b", "owner": "me"}),
        ("store.Delete", {"bucket": "b", "key": "c", "owner": "me", "version": "7"}),
    ]
    assert found.target == "/" and {action.effect for action in found.actions} == {Effect.COMMIT}
    assert found.keys[0].source is KeySource.IMPLICIT


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        pytest.param("<Object><Key>a</Key></Object>", None, id="one"),
        pytest.param("", Reason.BATCH_REFUSED, id="none"),
        pytest.param("<Object><Key>a</Key></Object>" * 4, Reason.BATCH_REFUSED, id="too many"),
        pytest.param(
            "<Object><Version>1</Version></Object>",
            Reason.MISSING_PARAMETER,
            id="a required parameter is missing",
        ),
        pytest.param(
            "<Object><Key>a</Key><Key>b</Key></Object>", Reason.PARAMETER_TYPE, id="two keys in an item"
        ),
        pytest.param(
            "<Object><Key>a</Key><Size>1</Size></Object>",
            Reason.UNKNOWN_PARAMETER,
            id="an unknown field in an item",
        ),
        pytest.param("<Object>a</Object>", Reason.UNKNOWN_PARAMETER, id="an item that is a text"),
        pytest.param(
            "<Object><Key>a</Key></Object><Other>1</Other>",
            Reason.UNKNOWN_PARAMETER,
            id="an unknown field beside",
        ),
    ],
)
def test_sm27_every_field_of_an_item_counts(items: str, expected: Reason | None) -> None:
    assert reason_of(delete_many(items)) == expected


# -- items that name their operation


def transact(*items: Any, **more: Any) -> CanonicalRequest:
    headers = {"Content-Type": "application/x-amz-json-1.0", "X-Amz-Target": "T.Transact"}
    body = json.dumps({"Items": list(items), **more}).encode()
    return request("/", host="rpc.eu.cloud.test", headers=headers, body=body)


PUT = {"Put": {"Table": "t", "Item": {"a": {"S": "1"}}}}


def test_sm26_named_items_become_their_actions() -> None:
    found = recognise(INDEX, transact(PUT, {"Delete": {"Table": "prod"}}, Token="k"))
    assert actions(found) == [("cloud.rpc.Put", {"table": "t"}), ("cloud.rpc.Delete", {"table": "prod"})]
    assert found.keys[0].source is KeySource.NATIVE and found.keys[0].value == "k"
    assert found.sensitive and found.digest.startswith("hmac-sha256:")
    assert found.conflict_keys == ("cloud.rpc:table=t",)
    assert found.target == "T.Transact"


@pytest.mark.parametrize(
    ("canonical", "expected"),
    [
        pytest.param(transact(), Reason.BATCH_REFUSED, id="no items"),
        pytest.param(transact(PUT, PUT, PUT, PUT), Reason.BATCH_REFUSED, id="too many"),
        pytest.param(transact({"Update": {"Table": "t"}}), Reason.BATCH_REFUSED, id="an unknown name"),
        pytest.param(transact({**PUT, "Delete": {"Table": "t"}}), Reason.BATCH_REFUSED, id="two names"),
        pytest.param(transact({}), Reason.BATCH_REFUSED, id="no name"),
        pytest.param(transact("Put"), Reason.BATCH_REFUSED, id="a text"),
        pytest.param(transact({"Put": None}), Reason.BAD_BODY, id="null as an item"),
        pytest.param(
            transact({"Put": {"Item": {}}}), Reason.MISSING_PARAMETER, id="a required parameter is missing"
        ),
        pytest.param(
            transact({"Put": {"Table": "t", "Acl": "x"}}), Reason.UNKNOWN_PARAMETER, id="an unknown field"
        ),
        pytest.param(transact({"Put": ["t"]}), Reason.UNKNOWN_PARAMETER, id="a list as an item"),
        pytest.param(transact(PUT, Other=1), Reason.UNKNOWN_PARAMETER, id="an unknown field beside"),
    ],
)
def test_sm27_a_named_item_is_checked_like_a_request(canonical: CanonicalRequest, expected: Reason) -> None:
    assert reason_of(canonical) == expected


@pytest.mark.parametrize("items", ["{}", "null", '"x"', "5"])
def test_sm26_a_batch_is_a_list(items: str) -> None:
    headers = {"Content-Type": "application/x-amz-json-1.0", "X-Amz-Target": "T.Transact"}
    canonical = request(
        "/", host="rpc.eu.cloud.test", headers=headers, body=b'{"Items":' + items.encode() + b"}"
    )
    assert reason_of(canonical) == Reason.BATCH_REFUSED


# -- items that are requests


def entry(
    method: str, url: str, resource: Any = None, full: str | None = None, **more: Any
) -> dict[str, Any]:
    found: dict[str, Any] = {"request": {"method": method, "url": url, **more}}
    if resource is not None:
        found["resource"] = resource
    if full is not None:
        found["fullUrl"] = full
    return found


def bundle(*entries: Any, **more: Any) -> CanonicalRequest:
    body = {"resourceType": "Bundle", "type": "transaction", "entry": list(entries), **more}
    headers = {"Content-Type": "application/fhir+json"}
    return request("/fhir/R4", host="ehr.test", headers=headers, body=json.dumps(body).encode())


PATIENT = {"resourceType": "Patient", "name": [{"family": "Zd"}]}


def observation(reference: str) -> dict[str, Any]:
    return {"resourceType": "Observation", "subject": {"reference": reference}}


def test_sm26_items_that_are_requests_are_recognised_as_such() -> None:
    found = recognise(
        INDEX,
        bundle(
            entry("POST", "Patient", PATIENT, full="urn:uuid:1", ifNoneExist="identifier=x"),
            entry("POST", "Observation", observation("urn:uuid:1"), full="urn:uuid:2"),
            entry("PUT", "Patient/7", {**PATIENT, "id": "7"}, ifMatch='W/"1"'),
            entry("GET", "Patient?identifier=urn:sys|1"),
        ),
    )
    assert actions(found) == [
        ("ehr.create", {"resource_type": "Patient"}),
        ("ehr.create", {"resource_type": "Observation", "patient": "Patient/urn:uuid:1"}),
        ("ehr.update", {"resource_type": "Patient", "resource_id": "7"}),
        ("ehr.search", {"resource_type": "Patient"}),
    ]
    assert found.sensitive and found.target == "/fhir/R4/"


@pytest.mark.parametrize(
    ("canonical", "expected"),
    [
        pytest.param(bundle(), Reason.BATCH_REFUSED, id="no entries"),
        pytest.param(bundle(*[entry("POST", "Patient", PATIENT)] * 5), Reason.BATCH_REFUSED, id="too many"),
        pytest.param(
            bundle(entry("DELETE", "Patient/1")),
            Reason.UNASSIGNED_OPERATION,
            id="an operation without surface",
        ),
        pytest.param(
            bundle(entry("POST", "Nothing/1/2/3", PATIENT)),
            Reason.UNKNOWN_OPERATION,
            id="an unknown operation",
        ),
        pytest.param(
            bundle(entry("POST", "Observation", PATIENT)),
            Reason.UNKNOWN_OPERATION,
            id="another type than the URL's",
        ),
        pytest.param(bundle(entry("POST", "Patient")), Reason.BAD_BODY, id="no resource"),
        pytest.param(
            bundle(entry("GET", "Patient/1", PATIENT)), Reason.BAD_BODY, id="a read with a resource"
        ),
        pytest.param(
            bundle(entry("post", "Patient", PATIENT)), Reason.BATCH_REFUSED, id="method in lower case"
        ),
        pytest.param(bundle(entry("CONNECT", "Patient", PATIENT)), Reason.BATCH_REFUSED, id="a tunnel"),
        pytest.param(
            bundle(entry("POST", "Observation", observation("urn:uuid:9"))),
            Reason.BATCH_REFUSED,
            id="a reference to nobody",
        ),
        pytest.param(
            bundle(
                entry("GET", "Patient/1", full="urn:uuid:1"), entry("GET", "Patient/2", full="urn:uuid:1")
            ),
            Reason.BATCH_REFUSED,
            id="a full URL twice",
        ),
        pytest.param(
            bundle(entry("GET", "Patient/1", full="x", extra=1)),
            Reason.UNKNOWN_PARAMETER,
            id="an unknown field of a request",
        ),
        pytest.param(
            bundle({**entry("GET", "Patient/1"), "link": []}),
            Reason.UNKNOWN_PARAMETER,
            id="an unknown field of an entry",
        ),
        pytest.param(
            bundle({**entry("GET", "Patient/1"), "search": {"mode": "x"}}),
            None,
            id="a declared field of an entry",
        ),
        pytest.param(
            bundle(entry("POST", "Patient", PATIENT, ifMatch="x")),
            Reason.UNKNOWN_PARAMETER,
            id="a header that the operation does not take",
        ),
        pytest.param(
            bundle(entry("PUT", "Patient/7", {**PATIENT, "id": "7"}, ifMatch=5)),
            Reason.BATCH_REFUSED,
            id="a header that is no text",
        ),
        pytest.param(bundle("GET Patient"), Reason.UNKNOWN_PARAMETER, id="a text"),
        pytest.param(
            bundle(entry("GET", "Patient/1"), total=3), Reason.UNKNOWN_PARAMETER, id="an unknown field beside"
        ),
        pytest.param(
            bundle(entry("GET", "Patient/1"), type="batch"),
            Reason.PARAMETER_TYPE,
            id="a batch that is no transaction",
        ),
        pytest.param(
            bundle(entry("POST", "", {"resourceType": "Bundle"})),
            Reason.BATCH_REFUSED,
            id="a batch in a batch",
        ),
    ],
)
def test_sm26_one_bad_item_refuses_the_batch(canonical: CanonicalRequest, expected: Reason | None) -> None:
    assert reason_of(canonical) == expected


@pytest.mark.parametrize(
    "url",
    [
        "/fhir/R4/Patient/1",
        "//evil.test/Patient",
        "https://ehr.test/fhir/R4/Patient/1",
        "../admin",
        "Patient/../admin",
        "Patient/%2e%2e/admin",
        "Patient//1",
        "Patient/1#x",
        "Patient\\1",
        "Patient/1\n",
        "Pa tient",
        "Patient/%zz",
        "Patient/1;x=y",
        "urn:uuid:1",
        "javascript:x",
        5,
        None,
    ],
)
def test_sm27_a_url_stays_below_the_base(url: Any) -> None:
    assert reason_of(bundle(entry("GET", url))) == Reason.BATCH_REFUSED
