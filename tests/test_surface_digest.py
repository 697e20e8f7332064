"""surface/meaning.py: what changes request.digest and what does not; the preimage of proxy/SPEC.md."""

from __future__ import annotations

import gzip
import hashlib
import hmac
import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdgate.canonical import CanonicalRequest
from holdgate.digest import fingerprint
from surface_requests import FLEET_KEY, FORM, JSON, index_of, recognise, request, shared_index

INDEX = shared_index()


def digest(
    target: str = "/v1/refunds", body: bytes = b"charge=ch&amount=5&metadata[a]=1", **more: Any
) -> str:
    headers = {**FORM, **more.pop("headers", {})}
    return recognise(INDEX, request(target, headers=headers, body=body, **more)).digest


def framed(domain: bytes, *parts: bytes) -> bytes:
    return domain + b"".join(len(part).to_bytes(8, "big") + part for part in parts)


def test_the_preimage_is_the_one_in_the_specification() -> None:
    headers = {**FORM, "Authorization": "Bearer sk", "Pay-Version": "3", "Pay-Account": "a", "Accept": "*/*"}
    found = recognise(INDEX, request("/v1/refunds?expand[]=x", headers=headers, body=b"charge=ch&amount=5"))
    preimage = framed(
        b"holdgate-request-v1",
        b"POST https api.pay.test:443 /v1/refunds",
        b"pay-account:a\npay-version:3",
        b"application/x-www-form-urlencoded",
        b"form",
        b'{"amount":"5","charge":"ch"}',
        fingerprint(b"sk").encode(),
        b"",
        b"expand[]",
        b"x",
    )
    assert found.digest == "sha256:" + hashlib.sha256(preimage).hexdigest()


def test_a_sensitive_operation_is_digested_under_the_fleet_key() -> None:
    found = recognise(INDEX, request("/v1/secrets", headers=FORM, body=b"card[last4]=1"))
    preimage = framed(
        b"holdgate-request-v1",
        b"POST https api.pay.test:443 /v1/secrets",
        b"",
        b"application/x-www-form-urlencoded",
        b"form",
        b'{"card":{"last4":"1"}}',
        b"",
    )
    assert (
        found.sensitive
        and found.digest == "hmac-sha256:" + hmac.new(FLEET_KEY, preimage, "sha256").hexdigest()
    )


@pytest.mark.parametrize(
    "same",
    [
        pytest.param({"body": b"metadata[a]=1&amount=5&charge=ch"}, id="order of a form"),
        pytest.param({"body": b"charge=%63h&amount=5&metadata%5Ba%5D=1"}, id="escapes"),
        pytest.param(
            {"headers": {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}}, id="charset"
        ),
        pytest.param({"headers": {"Accept": "x", "Traceparent": "y"}}, id="inert headers"),
        pytest.param({"headers": {"User-Agent": "x"}}, id="an inert header that the map lists"),
        pytest.param({"headers": {"Idempotency-Key": "k"}}, id="the key"),
        pytest.param({"headers": {"Pay-Secret": "k"}}, id="a credential"),
        pytest.param({"headers": {"Pay-Attempt": "2"}}, id="a volatile header"),
        pytest.param({"target": "/v1/refunds"}, id="nothing"),
    ],
)
def test_sm23_equal_meaning_has_one_digest(same: dict[str, Any]) -> None:
    assert digest(**same) == digest()


def test_sm23_a_coding_does_not_count() -> None:
    body = b"charge=ch&amount=5&metadata[a]=1"
    assert digest(body=gzip.compress(body), headers={"Content-Encoding": "gzip"}) == digest()


def test_sm23_a_volatile_query_key_and_a_new_signature_do_not_count() -> None:
    one, two = (
        recognise(INDEX, request(f"/v1/refunds?expand[]=a{more}", method="GET")) for more in ("", "&nonce=1")
    )
    assert one.digest == two.digest
    headers = {"Content-Type": "application/x-amz-json-1.0", "X-Amz-Target": "T.Put"}
    digests = set()
    for second in "12":
        signature = (
            f"AWS4-HMAC-SHA256 Credential=AKID/2026/eu/s/aws4_request, SignedHeaders=host, Signature={second}"
        )
        signed = {**headers, "X-Amz-Date": f"20261121T00000{second}Z", "Authorization": signature}
        canonical = request("/", host="rpc.eu.cloud.test", headers=signed, body=b'{"Table":"t"}')
        digests.add(recognise(INDEX, canonical).digest)
    assert len(digests) == 1


def test_sm23_volatile_body_fields_do_not_count() -> None:
    index = index_of(
        "hosts: [a.test]\noperations:\n  - {id: A, match: {method: POST, path: /a},"
        " surface: data.write, effect: commit,"
        " body: {decode: json}, volatile: [body.at, 'body.items[].at', body.trace.*],"
        " ignore: ['body.items[].id']}"
    )

    def of(body: str) -> str:
        return recognise(index, request("/a", host="a.test", headers=JSON, body=body.encode())).digest

    assert of('{"at":1,"items":[{"id":1,"at":2}],"trace":{"x":1}}') == of(
        '{"items":[{"at":3,"id":1}],"at":9}'
    )
    assert of('{"items":[{"id":1}]}') != of('{"items":[{"id":2}]}')


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"body": b"charge=ch&amount=6&metadata[a]=1"}, id="a value"),
        pytest.param({"body": b"charge=ch&amount=5&metadata[a]=2"}, id="an ignored value"),
        pytest.param({"body": b"charge=ch&amount=5"}, id="a field less"),
        pytest.param({"body": b"payment=ch&amount=5&metadata[a]=1"}, id="another source"),
        pytest.param({"target": "/v1/refunds?expand[]=a"}, id="an ignored query key"),
        pytest.param({"target": "/v1/refunds?"}, id="an empty query"),
        pytest.param({"headers": {"Pay-Version": "2"}}, id="a listed header"),
        pytest.param({"headers": {"Pay-Account": "2"}}, id="a parameter's header"),
        pytest.param({"headers": {"Authorization": "Bearer x"}}, id="another principal"),
    ],
)
def test_sm24_another_meaning_has_another_digest(other: dict[str, Any]) -> None:
    assert digest(**other) != digest()


def get(target: str, **more: Any) -> CanonicalRequest:
    return request(target, method="GET", host="b.store.test", **more)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        pytest.param(get("/a"), get("/b"), id="path"),
        pytest.param(get("/a"), request("/a", method="GET", host="c.store.test"), id="host"),
        pytest.param(
            get("/a"), request("/a", method="GET", host="b.store.test", scheme="http", port=8080), id="origin"
        ),
        pytest.param(get("/a%2Fb"), get("/a/b"), id="escaped slash"),
        pytest.param(get("/?list-type=2&a=1&a=2"), get("/?list-type=2&a=2&a=1"), id="order of one key"),
        pytest.param(get("/?list-type=2&a=b"), get("/?list-type=2&a&b"), id="pairs"),
    ],
)
def test_sm24_every_part_of_the_target_counts(one: CanonicalRequest, two: CanonicalRequest) -> None:
    assert recognise(INDEX, one).digest != recognise(INDEX, two).digest


def test_sm24_an_opaque_body_counts() -> None:
    found = {
        recognise(INDEX, request("/k", method="PUT", host="b.store.test", body=body)).digest
        for body in (b"", b"a", b"b")
    }
    assert len(found) == 3


NAMES = st.text("abc", min_size=1, max_size=2)
BODIES = st.dictionaries(
    NAMES,
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-5, 5)
        | st.sampled_from(["", "1", "1.0", "é", "\n"])
        | st.sampled_from([0.5, 1.0]),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=2),
    ),
    max_size=3,
)


def shuffled(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict):
        items = list(value.items())
        rng.shuffle(items)
        return {key: shuffled(item, rng) for key, item in items}
    return [shuffled(item, rng) for item in value] if isinstance(value, list) else value


def model_digest(value: Any, **style: Any) -> str:
    body = json.dumps(value, **style).encode()
    return recognise(INDEX, request("/v1/model", headers=JSON, body=body)).digest


@given(BODIES, st.randoms(use_true_random=False))
def test_sm23_spelling_of_json_does_not_count(value: dict[str, Any], rng: random.Random) -> None:
    assert model_digest(value) == model_digest(shuffled(value, rng), indent=2, ensure_ascii=False)


@given(BODIES, BODIES)
def test_sm24_two_json_bodies_have_two_digests(one: dict[str, Any], two: dict[str, Any]) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(two, sort_keys=True)
    assert (model_digest(one) == model_digest(two)) == same
