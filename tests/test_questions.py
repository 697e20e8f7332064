"""questions.py: three protocols, one Question; and what is none."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdgate.captured import read_captured
from holdgate.errors import InputError
from holdgate.limits import Limits
from holdgate.questions import (
    AUTHZEN,
    DECIDE,
    TRIGGUARD,
    ActionAsked,
    Question,
    QuestionError,
    RequestAsked,
    read,
)


class NoMaps:
    def body_limit(self, host: str, port: int, scheme: str, default: int, cap: int) -> int:
        return default


REFUND = {"surface": "payments.refund", "operation": "stripe.PostRefunds", "params": {"amount": 5}}
ASKED = ActionAsked(
    surface="payments.refund", operation="stripe.PostRefunds", params={"amount": 5}, key="k-1"
)


def put(protocol: str, body: Any) -> Question:
    return read(protocol, json.dumps(body).encode())


SAME = {
    "own": (DECIDE, {"agent": "bot", "action": REFUND, "idempotency_key": "k-1"}),
    "trigguard, as its client sends it": (
        TRIGGUARD,
        {
            "surface": "payments.refund",
            "action": "stripe.PostRefunds",
            "context": {"amount": 5, "idempotencyKey": "k-1"},
            "signals": {},
            "actorId": "bot",
            "subjectDigest": "sha256:00",
        },
    ),
    "trigguard, with signals and an intent": (
        TRIGGUARD,
        {
            "surface": "payments.refund",
            "context": {"action": "stripe.PostRefunds"},
            "signals": {"amount": 5},
            "actor": "bot",
            "intent_id": "k-1",
        },
    ),
    "authzen": (
        AUTHZEN,
        {
            "subject": {"type": "agent", "id": "bot", "properties": {"groups": ["admins"]}},
            "action": {"name": "stripe.PostRefunds"},
            "resource": {"type": "payments.refund", "id": "r", "properties": {"amount": 5}},
            "context": {"idempotency_key": "k-1", "time": "2026-11-22T06:00:00Z"},
        },
    ),
}


@pytest.mark.parametrize(("protocol", "body"), SAME.values(), ids=SAME)
def test_one_action_in_each_protocol_is_one_question(protocol: str, body: Any) -> None:
    assert put(protocol, body) == Question(agent="bot", about=ASKED)


WRONG = {
    "no object": (DECIDE, [], "not a JSON object"),
    "neither request nor action": (DECIDE, {"agent": "bot"}, "either"),
    "request and action": (DECIDE, {"request": {}, "action": REFUND}, "either"),
    "an unknown member": (DECIDE, {"action": REFUND, "allow": True}, "'allow'"),
    "groups for an agent": (DECIDE, {"action": {**REFUND, "groups": ["admins"]}}, "'groups'"),
    "a key that is a number": (DECIDE, {"action": REFUND, "idempotency_key": 5}, "idempotency key"),
    "a key of two lines": (DECIDE, {"action": REFUND, "idempotency_key": "a\nb"}, "idempotency key"),
    "a relative URL": (DECIDE, {"request": {"method": "GET", "url": "/v1"}}, "request.url"),
    "a URL with a fragment": (
        DECIDE,
        {"request": {"method": "GET", "url": "https://a.test/#x"}},
        "request.url",
    ),
    "headers as an object": (
        DECIDE,
        {"request": {"method": "GET", "url": "https://a.test/", "headers": {"A": "b"}}},
        "request.headers",
    ),
    "chunks": (
        DECIDE,
        {
            "request": {
                "method": "GET",
                "url": "https://a.test/",
                "headers": [["transfer-encoding", "chunked"]],
            }
        },
        "Transfer-Encoding",
    ),
    "a body that is no base64": (
        DECIDE,
        {"request": {"method": "POST", "url": "https://a.test/", "body_base64": "*"}},
        "base64",
    ),
    "a parameter said twice": (
        TRIGGUARD,
        {"surface": "s", "context": {"amount": 5}, "signals": {"amount": 6}},
        "'amount'",
    ),
    "two keys": (TRIGGUARD, {"surface": "s", "intent_id": "a", "context": {"idempotencyKey": "b"}}, "two"),
    "an unknown member of trigguard": (TRIGGUARD, {"surface": "s", "force": True}, "'force'"),
    "no surface": (TRIGGUARD, {"context": {}}, "surface"),
    "no subject": (AUTHZEN, {"action": {"name": "x"}, "resource": {"type": "s"}}, "subject"),
    "a subject without id": (
        AUTHZEN,
        {"subject": {"type": "agent", "id": ""}, "action": {"name": "x"}, "resource": {"type": "s"}},
        "subject.id",
    ),
    "a property of both": (
        AUTHZEN,
        {
            "subject": {"type": "agent", "id": "bot"},
            "action": {"name": "x", "properties": {"a": 1}},
            "resource": {"type": "s", "properties": {"a": 2}},
        },
        "'a'",
    ),
}


@pytest.mark.parametrize(("protocol", "body", "says"), WRONG.values(), ids=WRONG)
def test_q1_what_is_no_question_says_why(protocol: str, body: Any, says: str) -> None:
    with pytest.raises(QuestionError) as caught:
        put(protocol, body)
    assert says in str(caught.value)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["agent", "request", "action", "method", "url", "headers", "subject", "context", "id"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.sampled_from([DECIDE, TRIGGUARD, AUTHZEN]), st.one_of(st.binary(max_size=60), _JSON))
def test_q1_any_bytes_are_a_question_or_an_error(protocol: str, body: Any) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        assert isinstance(read(protocol, data), Question)
    except QuestionError as error:
        assert str(error)


def test_q2_a_request_is_spelled_as_its_parts_say() -> None:
    body = base64.b64encode(b"amount=5").decode()
    asked = put(
        DECIDE,
        {
            "request": {
                "method": "POST",
                "url": "https://api.stripe.com/v1/refunds?a=b",
                "headers": [["Content-Type", "application/x-www-form-urlencoded"]],
                "body_base64": body,
            }
        },
    ).about
    assert asked == RequestAsked(
        raw=b"POST /v1/refunds?a=b HTTP/1.1\r\nHost: api.stripe.com\r\n"
        b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 8\r\n\r\namount=5"
    )


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20), st.text(max_size=20))
def test_q2_no_part_brings_a_line_of_its_own(method: str, path: str, name: str, value: str) -> None:
    parts = {"method": method, "url": f"https://a.test/{path}", "headers": [[name, value]]}
    try:
        asked = put(DECIDE, {"request": parts}).about
    except QuestionError:
        return
    assert isinstance(asked, RequestAsked)
    head = asked.raw.partition(b"\r\n\r\n")[0]
    assert len(head.split(b"\r\n")) == 3 and b"\n" not in head.replace(b"\r\n", b"")
    try:
        message = read_captured(asked.raw, Limits(), NoMaps())  # type: ignore[arg-type]
    except InputError:
        return
    assert message.head.method == method.encode() and len(message.head.headers) == 2
