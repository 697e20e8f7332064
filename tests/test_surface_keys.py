"""surface/keys.py: idempotency keys and conflict keys."""

from __future__ import annotations

import json

import pytest

from holdgate.errors import InputError, Reason
from holdgate.surface.model import KeyRule, KeySource, Recognised
from surface_requests import FLEET_KEY, FORM, JSON, index_of, recognise, request, shared_index

INDEX = shared_index()


def refund(key: str | None = None, body: bytes = b"charge=ch_1") -> Recognised:
    headers = FORM if key is None else {**FORM, "Idempotency-Key": key}
    return recognise(INDEX, request("/v1/refunds", headers=headers, body=body))


def transfer(body: bytes) -> Recognised:
    return recognise(INDEX, request("/v1/transfers", headers=FORM, body=body))


def test_sm21_a_native_key_is_taken_as_it_is() -> None:
    found = refund("k 1")
    assert found.keys == (KeyRule(source=KeySource.NATIVE, value="k 1", ttl_s=12 * 3600, provider=True),)
    assert not found.require_key


def test_sm21_without_a_key_a_commit_has_its_digest() -> None:
    found = refund()
    assert found.keys == (
        KeyRule(source=KeySource.IMPLICIT, value=found.digest, ttl_s=86_400, provider=False),
    )


def test_sm21_a_natural_key_is_the_operation_and_its_parameters() -> None:
    (key,) = transfer(b"to=bob&amount=5").keys
    assert (key.source, key.ttl_s, key.provider) == (KeySource.NATURAL, 300, False)
    assert json.loads(key.value) == ["pay.Transfer", {"amount": 5, "to": "bob"}]
    assert transfer(b"amount=5&to=bob").keys == (key,)
    assert transfer(b"to=bob").keys != (key,)


def test_sm21_a_missing_key_is_demanded_where_the_map_says_so() -> None:
    found = transfer(b"")
    assert found.require_key and found.keys[0].source is KeySource.IMPLICIT
    assert not transfer(b"to=bob").require_key


@pytest.mark.parametrize(
    ("target", "method", "headers", "body"),
    [
        pytest.param("/v1/refunds", "GET", {"Idempotency-Key": "k"}, b"", id="a read with a key"),
        pytest.param("/v1/charges", "POST", FORM, b"amount=1", id="a prepare without a key"),
        pytest.param(
            "/v1/model", "POST", {**JSON, "Idempotency-Key": "k"}, b"{}", id="a model call with a key"
        ),
    ],
)
def test_sm21_reads_prepares_and_model_calls_have_none(
    target: str, method: str, headers: dict[str, str], body: bytes
) -> None:
    assert recognise(INDEX, request(target, method=method, headers=headers, body=body)).keys == ()


def test_sm21_a_prepare_may_bring_its_own_key() -> None:
    headers = {**FORM, "Idempotency-Key": "k"}
    (key,) = recognise(INDEX, request("/v1/charges", headers=headers, body=b"amount=1")).keys
    assert (key.source, key.value) == (KeySource.NATIVE, "k")


def test_sm21_a_native_key_wins_over_a_natural_one() -> None:
    index = index_of(
        "hosts: [a.test]\noperations:\n  - {id: A, match: {method: POST, path: /a},"
        " surface: data.write, effect: commit,"
        " idempotency: {from: header.k, natural: [x]}, params: {x: {from: query.x, type: string}}}"
    )
    one = index.recognise(request("/a?x=1", host="a.test", headers={"K": "v"}), fleet_key=FLEET_KEY)
    two = index.recognise(request("/a?x=1", host="a.test"), fleet_key=FLEET_KEY)
    assert [key.source for key in (*one.keys, *two.keys)] == [KeySource.NATIVE, KeySource.NATURAL]


@pytest.mark.parametrize(
    "key",
    [
        pytest.param("", id="empty"),
        pytest.param("k" * 256, id="256 characters"),
        pytest.param("ké", id="not ASCII"),
    ],
)
def test_sm22_a_key_that_cannot_be_kept_as_it_is_refuses_the_request(key: str) -> None:
    with pytest.raises(InputError) as caught:
        refund(key)
    assert caught.value.reason is Reason.PARAMETER_TYPE
    assert refund("k" * 255).keys[0].value == "k" * 255


@pytest.mark.parametrize("token", ["5", "null", '["a"]', '"a\\u0000"'])
def test_sm22_a_key_in_a_body_is_a_text(token: str) -> None:
    headers = {"Content-Type": "application/x-amz-json-1.0", "X-Amz-Target": "T.Transact"}
    body = f'{{"Token":{token},"Items":[{{"Put":{{"Table":"t"}}}}]}}'.encode()
    with pytest.raises(InputError) as caught:
        recognise(INDEX, request("/", host="rpc.eu.cloud.test", headers=headers, body=body))
    assert caught.value.reason is Reason.PARAMETER_TYPE


def test_two_keys_are_refused() -> None:
    index = index_of(
        "hosts: [a.test]\noperations:\n  - {id: A, match: {method: POST, path: /a},"
        " surface: data.write, effect: commit,"
        " idempotency: {from: [header.k, header.l]}}"
    )
    assert recognise(index, request("/a", host="a.test", headers={"L": "v"})).keys[0].value == "v"
    with pytest.raises(InputError) as caught:
        recognise(index, request("/a", host="a.test", headers={"K": "v", "L": "v"}))
    assert caught.value.reason is Reason.DUPLICATE_PARAMETER


def test_conflict_keys_are_values_under_the_maps_name() -> None:
    assert refund().conflict_keys == ("pay:reference=ch_1",)
    assert recognise(INDEX, request("/v1/refunds", method="GET")).conflict_keys == ()


@pytest.mark.parametrize(
    ("declared", "target", "keys"),
    [
        pytest.param("[params.a]", "/x?a=1", ("m0:a=1",), id="a parameter under its own name"),
        pytest.param("{thing: params.a}", "/x?a=1", ("m0:thing=1",), id="under the name of a thing"),
        pytest.param("{thing: params.l}", "/x?l=1&l=2", ("m0:thing=1", "m0:thing=2"), id="a key per item"),
        pytest.param("{o: [params.a, params.b]}", "/x?a=1&b=2", ('m0:o={"a":"1","b":"2"}',), id="several"),
        pytest.param("{o: [params.a, params.b]}", "/x?b=2", ('m0:o={"b":"2"}',), id="several, one there"),
        pytest.param("{o: [params.a, params.b]}", "/x", (), id="none there"),
        pytest.param("{o: params.a, p: params.b}", "/x?a=1&b=2", ("m0:o=1", "m0:p=2"), id="two things"),
    ],
)
def test_conflict_keys_may_name_the_thing(declared: str, target: str, keys: tuple[str, ...]) -> None:
    index = index_of(
        "hosts: [a.test]\noperations:\n  - {id: A, match: {method: POST, path: /x}, surface: data.write,"
        f" effect: commit, conflict_key: {declared}, params: {{a: {{from: query.a, type: string}},"
        " b: {from: query.b, type: string}, l: {from: query.l, type: list<string>, repeat: true}}}"
    )
    assert recognise(index, request(target, host="a.test")).conflict_keys == keys
