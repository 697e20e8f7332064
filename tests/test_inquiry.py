"""inquiry.py: what is asked about a permit in doubt, and what an answer proves."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdgate.files import packaged
from holdgate.inquiry import (
    MAX_ANSWER_BYTES,
    SKEW_S,
    InquiryError,
    Question,
    Seen,
    is_due,
    question,
    request_digest,
    see,
)
from holdgate.ledger import scoped_key
from holdgate.limits import Limits
from holdgate.message import Headers, ResponseHead
from holdgate.surface.index import SurfaceIndex
from holdgate.surface.load import load_maps
from surface_requests import FLEET_KEY, index_of

SURFACES = packaged("surfaces")
JSON: Headers = ((b"Content-Type", b"application/json"),)
NOW_S = 1_800_000_000
SCOPE = ("payer", "api.stripe.com:443", "payments.refund", "sha256:acct")
OWN = """\
hosts: [a.test, {host: plain.test, scheme: http, port: 8080}, {host: both.test, port: 9000},
  {host: both.test, scheme: http, port: 9000}]
operations:
  - id: Make
    match: {method: POST, path: '/things/{kind}'}
    surface: data.write
    effect: commit
    params:
      kind: {from: path.kind, type: string, required: true}
      absent: {from: header.if-absent, type: string}
      live: {from: header.x-live, type: bool}
      tenant: {from: header.x-tenant, type: string}
    reconcile:
      read: List
      by: params.absent
      with: {path.kind: params.kind, query: params.absent, query.live: params.live,
        header.x-tenant: params.tenant}
      at: made.at
      where: {params.kind: kind, params.live: [live, alive]}
  - id: List
    match: {method: GET, path: '/things/{kind}'}
    surface: data.read
    effect: read
    params:
      kind: {from: path.kind, type: string, required: true, encoded_slash: true}
      tenant: {from: header.x-tenant, type: string}
    ignore: [query.*]
  - id: Other
    match: {method: GET, path: '/things/{kind}/{id}'}
    surface: data.read
    effect: read
    ignore: [path.kind, path.id]
"""


OWN_INDEX = index_of(OWN)


@pytest.fixture(scope="module")
def stripe() -> SurfaceIndex:
    return SurfaceIndex.compile(load_maps([SURFACES / "stripe"]))


def permit(
    params: dict[str, Any] | None = None, *, key: str = "k-1", source: str = "native", **more: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Receipt and recorded input of a refund."""
    statement: dict[str, Any] = {
        "id": "rcpt_1",
        "agent": SCOPE[0],
        "destination": SCOPE[1],
        "idempotency": {"source": source, "key_hash": scoped_key(source, *SCOPE, key, secret=FLEET_KEY)},
    }
    action = {
        "surface": SCOPE[2],
        "operation": "stripe.PostRefunds",
        "principal": SCOPE[3],
        "params": {"amount": 700, "reference": "pi_1"} if params is None else params,
    }
    return statement | more, {"actions": [action], "clock": {"now_s": NOW_S}}


def put(index: SurfaceIndex, *args: Any, first_s: int = NOW_S, **kwargs: Any) -> Question:
    return question(*permit(*args, **kwargs), index, first_s=first_s, fleet_key=FLEET_KEY)


def event(key: str | None = "k-1", amount: object = 700, **changes: Any) -> dict[str, Any]:
    refund = {"id": "re_1", "object": "refund", "amount": amount, "payment_intent": "pi_1", "charge": "ch_1"}
    request = {"id": "req_1", "idempotency_key": key}
    return {
        "type": "refund.created",
        "created": NOW_S + 1,
        "data": {"object": refund},
        "request": request,
    } | changes


def listed(*events: Any, **changes: Any) -> bytes:
    return json.dumps({"object": "list", "has_more": False, "data": list(events)} | changes).encode()


def seen(asked: Question, body: bytes, headers: Headers = JSON, status: int = 200) -> Seen:
    return see(asked, ResponseHead(status=status, reason=b"", headers=headers), body)


@pytest.mark.parametrize(
    ("body", "result"),
    [
        pytest.param(listed(event()), Seen.EXECUTED, id="its own key"),
        pytest.param(listed(event("k-2"), event(), event("k-3")), Seen.EXECUTED, id="among equal refunds"),
        pytest.param(listed(event("k-2")), Seen.ABSENT, id="an equal refund under another key"),
        pytest.param(listed(event(None)), Seen.ABSENT, id="an equal refund without a key"),
        pytest.param(listed(event(" k-1")), Seen.ABSENT, id="a key that is not quite it"),
        pytest.param(listed(event(key=["k-1"])), Seen.ABSENT, id="a list of the key"),
        pytest.param(listed(event(request="req_1")), Seen.ABSENT, id="an old event, whose request is a text"),
        pytest.param(listed(event(request=None)), Seen.ABSENT, id="an automatic event"),
        pytest.param(listed(event(amount=701)), Seen.ABSENT, id="another amount"),
        pytest.param(listed(event(amount="700")), Seen.ABSENT, id="an amount that is a text"),
        pytest.param(listed(event(amount=True)), Seen.ABSENT, id="an amount that is a truth"),
        pytest.param(
            listed(event()).replace(b": 700", b": 700.0"), Seen.ABSENT, id="an amount with a fraction"
        ),
        pytest.param(listed(event(type="refund.updated")), Seen.ABSENT, id="another event of it"),
        pytest.param(listed(event(created=NOW_S - SKEW_S)), Seen.EXECUTED, id="a clock that is behind"),
        pytest.param(
            listed(event(created=NOW_S - SKEW_S - 1)), Seen.ABSENT, id="an earlier use of the same key"
        ),
        pytest.param(listed(event(created="soon")), Seen.ABSENT, id="no time"),
        pytest.param(listed(event(created=None)), Seen.ABSENT, id="nothing for a time"),
        pytest.param(listed(), Seen.ABSENT, id="nothing"),
        pytest.param(listed(event(), event()), Seen.SEVERAL, id="twice"),
        pytest.param(listed(event(), has_more=True), Seen.PART, id="more pages, although it is there"),
        pytest.param(listed(event(), has_more=None), Seen.PART, id="it does not say"),
        pytest.param(listed(event(), has_more=0), Seen.PART, id="a 0 is not false"),
        pytest.param(listed(event(), data={"0": event()}), Seen.OTHER, id="no list"),
        pytest.param(b'{"error": {"type": "api_error"}}', Seen.OTHER, id="an error of the vendor"),
        pytest.param(listed(event())[:-1], Seen.OTHER, id="cut"),
        pytest.param(listed(event()) + b"{}", Seen.OTHER, id="two answers"),
        pytest.param(b'{"data": [], "data": []}', Seen.OTHER, id="a field twice"),
        pytest.param(b"[]", Seen.OTHER, id="a list at the top"),
        pytest.param(b"", Seen.OTHER, id="empty"),
        pytest.param(listed(event(pad="x" * MAX_ANSWER_BYTES)), Seen.OTHER, id="too large"),
        pytest.param(listed(1, "k-1", None, [event()]), Seen.ABSENT, id="items of other shapes"),
    ],
)
def test_iq2_only_one_item_with_everything_is_executed(
    stripe: SurfaceIndex, body: bytes, result: Seen
) -> None:
    assert seen(put(stripe), body) is result


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param(JSON, 201, id="another success"),
        pytest.param(JSON, 401, id="a refusal"),
        pytest.param(JSON, 500, id="an error"),
        pytest.param((), 200, id="no type"),
        pytest.param((*JSON, *JSON), 200, id="two types"),
        pytest.param(((b"content-type", b"text/html"),), 200, id="a page"),
        pytest.param(((b"content-type", b"\xff"),), 200, id="a type that is none"),
        pytest.param((*JSON, (b"Content-Encoding", b"gzip")), 200, id="a coding"),
    ],
)
def test_iq2_an_answer_that_is_not_a_json_success_proves_nothing(
    stripe: SurfaceIndex, headers: Headers, status: int
) -> None:
    assert seen(put(stripe), listed(event()), headers, status) is Seen.OTHER


def test_iq2_what_repeats_an_earlier_permit_is_found_since_that_one(stripe: SurfaceIndex) -> None:
    early = listed(event(created=NOW_S - 7200))
    assert seen(put(stripe), early) is Seen.ABSENT
    assert seen(put(stripe, first_s=NOW_S - 7200), early) is Seen.EXECUTED


def test_iq2_a_truth_is_no_number(stripe: SurfaceIndex) -> None:
    asked = put(stripe, {"reference": "pi_1", "amount": 1})
    assert seen(asked, listed(event(amount=True))) is Seen.ABSENT
    assert seen(asked, listed(event(amount=1))) is Seen.EXECUTED


def test_iq2_a_full_refund_is_found_by_its_key_whatever_was_left(stripe: SurfaceIndex) -> None:
    asked = put(stripe, {"reference": "ch_1"})
    assert seen(asked, listed(event(amount=123))) is Seen.EXECUTED
    assert seen(asked, listed(event("k-2", amount=123))) is Seen.ABSENT


LEAVES = st.none() | st.booleans() | st.integers(-2, 800) | st.floats() | st.sampled_from(["k-1", "pi_1", ""])
NAMES = st.sampled_from(
    ["data", "has_more", "object", "created", "request", "type", "idempotency_key", "amount"]
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=12,
)
HEADS = st.lists(
    st.tuples(
        st.sampled_from([b"content-type", b"content-encoding", b"x"]),
        st.sampled_from([b"application/json", b"text/plain", b"", b"\xe9", b"gzip", b"a/b;c"]),
    ),
    max_size=3,
)


@settings(deadline=None)
@given(
    st.binary(max_size=60) | VALUES.map(lambda v: json.dumps(v).encode()), HEADS, st.sampled_from([200, 404])
)
def test_iq1_any_answer_is_one_of_seen(
    stripe: SurfaceIndex, body: bytes, headers: list[tuple[bytes, bytes]], status: int
) -> None:
    assert seen(put(stripe), body, tuple(headers), status) in (Seen.OTHER, Seen.PART, Seen.ABSENT)


EVENTS = st.lists(
    st.builds(
        event,
        key=st.sampled_from(["k-1", "k-2", None]),
        amount=st.sampled_from([700, 701]),
        created=st.sampled_from([NOW_S + 5, NOW_S - 9999]),
        type=st.sampled_from(["refund.created", "refund.failed"]),
    ),
    max_size=4,
)


@settings(deadline=None)
@given(EVENTS, st.booleans())
def test_iq2_executed_is_exactly_one_that_fits_of_a_whole_list(
    stripe: SurfaceIndex, events: list[Any], more: bool
) -> None:
    fits = [
        each
        for each in events
        if each["request"]["idempotency_key"] == "k-1"
        and each["data"]["object"]["amount"] == 700
        and each["created"] > NOW_S
        and each["type"] == "refund.created"
    ]
    found = seen(put(stripe), listed(*events, has_more=more))
    assert (found is Seen.EXECUTED) == (len(fits) == 1 and not more)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        pytest.param({"source": "implicit"}, "no idempotency key", id="no key"),
        pytest.param({"source": "natural"}, "no idempotency key", id="a key of ours alone"),
        pytest.param({"idempotency": {}}, "no idempotency key", id="a receipt without a key"),
        pytest.param({"destination": "api.stripe.com:8443"}, "as one scheme", id="a port no map has"),
    ],
)
def test_iq3_what_could_not_be_certain_is_not_asked(
    stripe: SurfaceIndex, change: dict[str, Any], why: str
) -> None:
    with pytest.raises(InquiryError, match=why):
        put(stripe, **change)


def test_iq3_batches_and_operations_without_a_rule_are_not_asked(stripe: SurfaceIndex) -> None:
    statement, inputs = permit()
    (action,) = inputs["actions"]
    for actions, why in (
        ([action, action], "a batch"),
        ([action | {"operation": "stripe.PostGone"}], "no map knows"),
        (
            [action | {"operation": "stripe.PostRefundsRefundCancel", "surface": "payments.cancel"}],
            "how to ask",
        ),
    ):
        with pytest.raises(InquiryError, match=why):
            question(statement, inputs | {"actions": actions}, stripe, first_s=NOW_S, fleet_key=FLEET_KEY)


def own(params: dict[str, Any], destination: str = "a.test:443") -> Question:
    statement = {"id": "rcpt_1", "agent": "a", "destination": destination}
    action = {"surface": "data.write", "operation": "m0.Make", "params": params}
    inputs = {"actions": [action], "clock": {"now_s": NOW_S}}
    return question(statement, inputs, OWN_INDEX, first_s=NOW_S, fleet_key=FLEET_KEY)


def test_iq3_what_is_by_a_condition_needs_the_condition() -> None:
    with pytest.raises(InquiryError, match="by which the vendor allows one effect only"):
        own({"kind": "a"})


def test_iq4_the_question_is_the_read_at_the_permits_own_destination(stripe: SurfaceIndex) -> None:
    asked = put(stripe, {"reference": "pi_1", "account": "acct_7"})
    raw = asked.request(((b"authorization", b"Bearer rk"),))
    assert raw.split(b"\r\n") == [
        b"GET /v1/events?type=refund.created&limit=100"
        b"&created%%5Bgte%%5D=%d&created%%5Blte%%5D=%d HTTP/1.1" % (NOW_S - 300, NOW_S + 3600),
        b"Host: api.stripe.com",
        b"accept: application/json",
        b"accept-encoding: identity",
        b"user-agent: holdgate-reconcile",
        b"stripe-account: acct_7",
        b"authorization: Bearer rk",
        b"",
        b"",
    ]
    assert request_digest(asked, raw, stripe, Limits(), fleet_key=FLEET_KEY).startswith("sha256:")
    assert (asked.read, asked.destination) == ("stripe.GetEvents", "api.stripe.com:443")


def test_iq4_hosts_without_tls_are_asked_without() -> None:
    raw = own({"kind": "a", "absent": "x=1"}, "plain.test:8080").request(())
    assert raw.startswith(b"GET http://plain.test:8080/things/a?x=1 HTTP/1.1\r\nHost: plain.test:8080\r\n")
    with pytest.raises(InquiryError, match="as one scheme"):
        own({"kind": "a", "absent": "x=1"}, "both.test:9000")


@pytest.mark.parametrize(
    ("text", "query"),
    [
        pytest.param("identifier=urn:a|7", "identifier=urn%3Aa%7C7", id="plain"),
        pytest.param("identifier=urn%3Aa%7C7", "identifier=urn%3Aa%7C7", id="escaped"),
        pytest.param("a:exact=1&b=%26c%3D2", "a:exact=1&b=%26c%3D2", id="an escaped separator"),
        pytest.param("", None, id="nothing"),
        pytest.param("?a=1", None, id="a question mark"),
        pytest.param("a", None, id="no value"),
        pytest.param("a=", None, id="an empty value"),
        pytest.param("a=1&", None, id="an empty pair"),
        pytest.param("a=b+c", None, id="a plus, which is a space to some"),
        pytest.param("a=%ff", None, id="no UTF-8"),
        pytest.param("_include=*", None, id="a control parameter"),
        pytest.param("a b=1", None, id="a space in a name"),
    ],
)
def test_iq4_a_recorded_query_has_one_reading_or_is_not_asked(text: str, query: str | None) -> None:
    if query is None:
        with pytest.raises(InquiryError, match="cannot be read in one way"):
            own({"kind": "a", "absent": text})
    else:
        assert own({"kind": "a", "absent": text}).target == f"/things/a?{query}"


HOSTILE = st.text(st.sampled_from("a/.%?#&= \r\n:\x00é\\"), min_size=1, max_size=6)


@settings(deadline=None, max_examples=300)
@given(kind=HOSTILE, tenant=HOSTILE, value=HOSTILE, live=st.booleans())
def test_iq4_no_recorded_value_makes_it_another_request(
    kind: str, tenant: str, value: str, live: bool
) -> None:
    try:
        asked = own({"kind": kind, "absent": f"x={value}", "tenant": tenant, "live": live})
        raw = asked.request(((b"authorization", b"Bearer rk"),))
        request_digest(asked, raw, OWN_INDEX, Limits(), fleet_key=FLEET_KEY)
    except InquiryError:
        return
    # What was not refused has the lines that it was built with, and is the read that the map names.
    lines = raw.split(b"\r\n")
    assert len(lines) == 9 and lines[7:] == [b"", b""]
    assert raw.count(b"\r") == raw.count(b"\n") == 8
    path, _, query = asked.target.partition("?")
    assert path.count("/") == 2
    assert query.count("&") - value.count("&") <= 1
    assert f"live={'true' if live else 'false'}" in query


def test_iq4_a_request_that_would_be_recognised_otherwise_is_not_sent(stripe: SurfaceIndex) -> None:
    asked = put(stripe)
    for wrong, why in (
        (asked.request(()).replace(b"/v1/events?", b"/v1/refunds?"), "something else"),
        (asked.request(()).replace(b"api.stripe.com", b"api.other.test"), "unknown_destination"),
        (b"", "malformed"),
    ):
        with pytest.raises(InquiryError, match=why):
            request_digest(asked, wrong, stripe, Limits(), fleet_key=FLEET_KEY)


def test_iq5_the_key_is_known_by_its_hash_alone(stripe: SurfaceIndex) -> None:
    asked = put(stripe, key="order-1042")
    assert asked.is_key("order-1042") and not asked.is_key("order-1043")
    assert b"order-1042" not in asked.request(()) and "order-1042" not in repr(asked)
    statement, inputs = permit(key="order-1042")
    for other in (statement | {"agent": "else"}, statement | {"idempotency": {"source": "native"}}):
        stranger = question(other, inputs, stripe, first_s=NOW_S, fleet_key=FLEET_KEY)
        assert not stranger.is_key("order-1042")


@pytest.mark.parametrize(
    ("text", "result"),
    [
        pytest.param("2027-01-15T08:00:00Z", Seen.EXECUTED, id="RFC 3339"),
        pytest.param("2027-01-15T09:00:00.125+01:00", Seen.EXECUTED, id="with an offset"),
        pytest.param("2027-01-15T07:00:00Z", Seen.ABSENT, id="an hour before"),
        pytest.param("2027-01-15T08:00:00", Seen.ABSENT, id="nobody knows where"),
        pytest.param("yesterday", Seen.ABSENT, id="no time"),
    ],
)
def test_times_are_seconds_or_rfc_3339(text: str, result: Seen) -> None:
    asked = own({"kind": "a", "absent": "x=1", "live": True})
    assert seen(asked, json.dumps({"kind": "a", "alive": True, "made": {"at": text}}).encode()) is result


def test_a_permit_that_stays_in_doubt_is_asked_about_less_and_less_often() -> None:
    asked, last = [0.0], 0.0
    for now_s in range(60, 5 * 86_400, 60):
        if is_due(0.0, last, float(now_s)):
            last = float(now_s)
            asked.append(last)
    assert asked[:6] == [0, 60, 120, 240, 480, 960]
    assert {later - earlier for earlier, later in pairwise(asked[-3:])} == {86_400}


# One executed action of each operation of Stripe's map that has a rule, as its event names it.
STRIPE: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "PostRefunds": (
        {"amount": 700, "reference": "ch_1"},
        "refund.created",
        {"amount": 700, "charge": "ch_1", "payment_intent": "pi_1"},
    ),
    "PostTransfers": (
        {"amount": 5, "currency": "eur", "destination": "acct_1"},
        "transfer.created",
        {"amount": 5, "currency": "eur", "destination": "acct_1"},
    ),
    "PostPayouts": (
        {"amount": 5, "currency": "eur"},
        "payout.created",
        {"amount": 5, "currency": "eur", "destination": "ba_1"},
    ),
    "PostPaymentIntents": (
        {"amount": 5, "currency": "eur", "customer": "cus_1"},
        "payment_intent.succeeded",
        {"amount": 5, "currency": "eur", "id": "pi_1"},
    ),
    "PostPaymentIntentsIntentConfirm": (
        {"payment_intent": "pi_1"},
        "payment_intent.succeeded",
        {"amount": 5, "id": "pi_1"},
    ),
    "PostPaymentIntentsIntentCapture": (
        {"payment_intent": "pi_1", "amount": 3},
        "payment_intent.succeeded",
        {"amount": 5, "amount_received": 3, "id": "pi_1"},
    ),
    "PostPaymentIntentsIntentCancel": (
        {"id": "pi_1", "object": "payment_intent"},
        "payment_intent.canceled",
        {"id": "pi_1"},
    ),
    "PostCharges": ({"amount": 5, "currency": "eur"}, "charge.succeeded", {"amount": 5, "currency": "eur"}),
}


def operations_with_a_rule(index: SurfaceIndex) -> set[str]:
    names = [(surface, name) for surface in index.surfaces() for name in index.operations(surface)]
    return {name for surface, name in names if index.operation(surface, name).spec.reconcile is not None}


def test_every_rule_of_stripes_map_is_tried_here(stripe: SurfaceIndex) -> None:
    assert operations_with_a_rule(stripe) == {f"stripe.{name}" for name in STRIPE}


@pytest.mark.parametrize("name", STRIPE)
def test_each_rule_of_stripes_map_finds_its_own_event_and_no_other(stripe: SurfaceIndex, name: str) -> None:
    params, kind, thing = STRIPE[name]
    surface = next(each for each in stripe.surfaces() if f"stripe.{name}" in stripe.operations(each))
    scope = (SCOPE[0], SCOPE[1], surface, SCOPE[3])
    key_hash = scoped_key("native", *scope, "k-1", secret=FLEET_KEY)
    statement, inputs = permit(params, idempotency={"source": "native", "key_hash": key_hash})
    action = inputs["actions"][0] | {"operation": f"stripe.{name}", "surface": surface}
    inputs = inputs | {"actions": [action]}
    asked = question(statement, inputs, stripe, first_s=NOW_S, fleet_key=FLEET_KEY)
    raw = asked.request(((b"authorization", b"Bearer rk"),))
    assert f"type={kind}&limit=100&".encode() in raw
    assert request_digest(asked, raw, stripe, Limits(), fleet_key=FLEET_KEY)
    own_event = event(type=kind, data={"object": thing})
    assert seen(asked, listed(event("k-2", type=kind, data={"object": thing}), own_event)) is Seen.EXECUTED
    others = [event("k-2", type=kind, data={"object": thing}), own_event | {"type": "other.created"}]
    for path, value in thing.items():
        changed = value + 1 if isinstance(value, int) else f"{value}x"
        if path in params or params.get("payment_intent", params.get("id")) == value:
            others.append(own_event | {"data": {"object": thing | {path: changed}}})
    if name == "PostPaymentIntentsIntentCapture":  # the event has what was authorised beside what was taken
        others = others[:2]
    assert seen(asked, listed(*others)) is Seen.ABSENT


def test_a_conditional_create_is_searched_for_under_its_condition() -> None:
    index = SurfaceIndex.compile(load_maps([SURFACES / "fhir-r4"]))
    assert operations_with_a_rule(index) == {"fhir.r4.create"}
    params = {"resource_type": "Task", "if_none_exist": "identifier=urn:a|7"}
    action = {"surface": "ehr.write", "operation": "fhir.r4.create", "params": params}
    statement = {"id": "rcpt_1", "agent": "a", "destination": "fhir.example.org:443"}
    inputs = {"actions": [action], "clock": {"now_s": NOW_S}}
    asked = question(statement, inputs, index, first_s=NOW_S, fleet_key=FLEET_KEY)
    assert asked.target == "/fhir/R4/Task?identifier=urn%3Aa%7C7&_total=accurate"
    raw = asked.request(((b"authorization", b"Bearer x"),))
    assert request_digest(asked, raw, index, Limits(), fleet_key=FLEET_KEY).startswith("hmac-sha256:")

    def bundle(total: object, *found: tuple[str, str]) -> Seen:
        entry = [{"resource": {"resourceType": kind, "meta": {"lastUpdated": at}}} for kind, at in found]
        body = {"resourceType": "Bundle", "type": "searchset", "total": total, "entry": entry}
        return seen(asked, json.dumps(body).encode(), ((b"content-type", b"application/fhir+json"),))

    now, before = "2027-01-15T08:00:01Z", "2027-01-14T08:00:00Z"
    assert bundle(1, ("Task", now)) is Seen.EXECUTED
    assert bundle(1, ("Task", now), ("OperationOutcome", now)) is Seen.EXECUTED
    assert bundle(1, ("Task", before)) is Seen.ABSENT
    assert bundle(0) is Seen.PART
    assert bundle(2, ("Task", now)) is Seen.PART
    assert bundle(None, ("Task", now)) is Seen.PART
    assert bundle(1, ("Patient", now)) is Seen.ABSENT
