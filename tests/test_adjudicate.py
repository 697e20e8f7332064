"""adjudicate.py: claims, gate and receipt of one case, without a store."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from fakes import NO_POLICIES
from holdgate import gate
from holdgate.adjudicate import Adjudication, Evidence
from holdgate.agents import Agent
from holdgate.bundle import NEVER_US, NO_BUNDLE, Bundle
from holdgate.case import Case, decision_input
from holdgate.claims import PERMIT_USE_BY_US
from holdgate.counters import Counter
from holdgate.errors import Outcome, Reason
from holdgate.gate import Decision
from holdgate.jcs import dumps_input
from holdgate.keys import SigningKey, key_set
from holdgate.ledger import NO_BUDGETS, Budgets, ClaimRow, Entry, State, Total
from holdgate.receipt import input_digest, new_receipt_id, verify
from holdgate.sealing import commitment, open_sealed
from holdgate.surface.model import KeyRule, KeySource
from test_pipeline import NATIVE, PROVIDER, REQUEST, recognised

KEY = SigningKey(seed=b"s" * 32)
EVIDENCE = Evidence(signer=KEY, issuer="test/log", node="n1", fleet_key=b"f" * 32, draw=secrets.token_bytes)
AGENT = Agent(id="bot", groups=("payments",), attrs=(("accounts", ("a", "b")),))
NOTHING: Any = None
BUNDLE = Bundle(
    digest="sha256:" + "00" * 32,
    revision=3,
    signed=False,
    ends_us=NEVER_US,
    index=NOTHING,
    policies=NO_POLICIES,
)
NOW = 1_790_000_000_000_000
PERMIT = Decision(outcome=Outcome.PERMIT, reason=Reason.PERMIT_RULE, rules=("p/a", "p/b"))
DENY = Decision(outcome=Outcome.DENY, reason=Reason.DENY_RULE, rules=("p/d",))


def case(**change: Any) -> Case:
    values: dict[str, Any] = {
        "agent": AGENT,
        "request": REQUEST,
        "recognised": recognised(key=NATIVE),
        "wire": "sha256:" + "ee" * 32,
        "raw_digest": "",
        "raw_bytes": 2,
        "refusal": None,
    }
    return Case(**(values | change))


def judge(given: Case, claims: dict[str, ClaimRow] | None = None, *, void: bool = False) -> Entry:
    adjudication = Adjudication(given, BUNDLE, EVIDENCE)
    if void:
        adjudication.void()
    return adjudication(claims or {}, now_us=NOW, receipt_id=new_receipt_id(NOW, b"n" * 16))


def held(state: State, *, digest: str = "", provider: bool = False) -> dict[str, ClaimRow]:
    key = Adjudication(case(), BUNDLE, EVIDENCE).keys[0]
    row = ClaimRow(
        key=key,
        state=state,
        digest=digest or recognised().digest,
        receipt_id=new_receipt_id(NOW - 1, b"o" * 16),
        http_status=201,
        expires_us=NOW + 1_000_000,
        provider=provider,
        source="native",
    )
    return {key: row}


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Any:
    asked: list[Any] = []

    def use(decision: Decision) -> list[Any]:
        def decide(policies: Any, inputs: Any) -> Decision:
            asked.append(inputs)
            return decision

        monkeypatch.setattr(gate, "decide", decide)
        return asked

    return use


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("decision", [PERMIT, DENY], ids=["permit", "deny"])
@pytest.mark.parametrize("provider", [False, True], ids=["plain", "provider"])
def test_a1_permit_needs_open_claims_and_the_gate(
    says: Any, state: State, decision: Decision, provider: bool
) -> None:
    says(decision)
    rule = PROVIDER if provider else NATIVE
    claims = {} if state is State.ABSENT else held(state, provider=provider)
    entry = judge(case(recognised=recognised(key=rule)), claims)
    again = provider and state in (State.EXECUTED, State.UNDELIVERED, State.UNKNOWN)
    open_ = again or state in (State.ABSENT, State.FAILED, State.NOT_SENT)
    assert (entry.outcome is Outcome.PERMIT) == (open_ and decision is PERMIT)
    if not open_:
        assert entry.prior == next(iter(claims.values())).receipt_id


def test_a1_another_body_under_the_key_is_denied(says: Any) -> None:
    says(PERMIT)
    entry = judge(case(), held(State.EXECUTED, digest="sha256:" + "cd" * 32))
    assert (entry.outcome, entry.reason) == (Outcome.DENY, Reason.IDEMPOTENCY_KEY_REUSED)


def test_a1_a_required_key_that_is_missing_is_silence(says: Any) -> None:
    asked = says(PERMIT)
    entry = judge(case(recognised=replace(recognised(), require_key=True)))
    assert (entry.reason, asked) == (Reason.MISSING_IDEMPOTENCY_KEY, [])


@pytest.mark.parametrize("missing", ["agent", "request", "recognised"])
def test_a2_what_was_refused_or_not_recognised_never_reaches_the_gate(says: Any, missing: str) -> None:
    asked = says(PERMIT)
    assert judge(case(refusal=Reason.UNKNOWN_OPERATION)).outcome is Outcome.SILENCE
    assert judge(case(**{missing: None}, raw_digest="sha256:" + "11" * 32)).outcome is Outcome.SILENCE
    assert asked == []


@pytest.mark.parametrize(
    ("keep", "row", "recalls"),
    [
        pytest.param(True, {}, True, id="the same request again"),
        pytest.param(False, {}, False, id="a map that keeps nothing"),
        pytest.param(True, {"state": State.UNDELIVERED}, True, id="an answer that did not arrive"),
        pytest.param(True, {"state": State.UNKNOWN}, False, id="an outcome that is not known"),
        pytest.param(True, {"digest": "sha256:" + "cd" * 32}, False, id="another request under its key"),
    ],
)
def test_a11_only_a_repeat_of_what_was_executed_recalls_its_answer(
    says: Any, keep: bool, row: dict[str, Any], recalls: bool
) -> None:
    asked = says(PERMIT)
    given = case(recognised=recognised(key=replace(NATIVE, keep=keep)))
    claims = {key: replace(claim, **row) for key, claim in held(State.EXECUTED).items()}
    found = judge(given, claims)
    assert (found.recalls, found.outcome is Outcome.PERMIT, asked) == (recalls, False, [])
    assert not judge(replace(given, via="decide"), claims).recalls  # a door has nobody to give it to
    assert not judge(replace(given, refusal=Reason.OVERLOADED), claims).recalls


def test_a3_claims_are_bound_on_permit_only(says: Any) -> None:
    says(DENY)
    assert judge(case()).bindings == ()
    says(PERMIT)
    bindings = judge(case(recognised=replace(recognised(key=NATIVE), conflict_keys=("ch_1",)))).bindings
    assert [binding.source for binding in bindings] == ["native", "conflict"]


def test_a4_the_receipt_names_exactly_this_request(says: Any) -> None:
    asked = says(PERMIT)
    entry = judge(case())
    statement = verify(entry.jws, key_set([KEY.public])).statement
    assert statement["request"] == {
        "method": "POST",
        "target": "/v1/refunds",
        "digest": recognised().digest,
        "wire": "sha256:" + "ee" * 32,
        "bytes": 2,
    }
    assert statement["destination"] == "api.ok.test:443"
    assert entry.inputs == dumps_input(asked[0])
    assert statement["input_digest"] == input_digest(dumps_input(asked[0]))
    assert entry.wire == "sha256:" + "ee" * 32


def test_a4_every_refusal_has_a_receipt_that_verifies_however_far_it_came() -> None:
    for change in ({"wire": ""}, {"recognised": None}, {"recognised": None, "request": None, "agent": None}):
        digest = "sha256:" + "11" * 32
        entry = judge(case(refusal=Reason.GATE_TIMEOUT, raw_digest=digest, **change))  # type: ignore[arg-type]
        assert verify(entry.jws, key_set([KEY.public])).statement["reason"] == "gate_timeout"


def test_a5_a_void_case_is_never_permitted(says: Any) -> None:
    says(PERMIT)
    assert judge(case(), void=True).reason is Reason.GATE_TIMEOUT


def test_a5_nor_one_that_is_voided_while_the_gate_is_asked() -> None:
    def late(*_: Any) -> Decision:
        asked.void()
        return PERMIT

    asked = Adjudication(case(), BUNDLE, EVIDENCE, late)
    entry = asked({}, now_us=NOW, receipt_id=new_receipt_id(NOW, b"n" * 16))
    assert (entry.outcome, entry.reason) == (Outcome.SILENCE, Reason.GATE_TIMEOUT)


@pytest.mark.parametrize(
    ("bundle", "reason"),
    [
        pytest.param(NO_BUNDLE, Reason.POLICY_UNAVAILABLE, id="no bundle"),
        pytest.param(replace(BUNDLE, ends_us=NOW), Reason.POLICY_EXPIRED, id="ended this very instant"),
        pytest.param(replace(BUNDLE, ends_us=NOW + 1), None, id="the last one"),
    ],
)
@pytest.mark.parametrize("refusal", [None, Reason.UNKNOWN_DESTINATION])
def test_a8_without_a_bundle_that_lasts_everything_is_silence(
    says: Any, bundle: Bundle, reason: Reason | None, refusal: Reason | None
) -> None:
    says(PERMIT)
    made = Adjudication(case(refusal=refusal), bundle, EVIDENCE)
    entry = made({}, now_us=NOW, receipt_id=new_receipt_id(NOW, b"n" * 16))
    assert entry.reason is (reason or refusal or Reason.PERMIT_RULE)
    statement = verify(entry.jws, key_set([KEY.public])).statement
    assert statement["policy"] == ({} if bundle is NO_BUNDLE else bundle.statement)


COUNTED: Any = {
    ("payments.refund", "ok.Refund"): Counter(
        name="day", key=("agent.id",), window_s=3600, measure="amount", file="p", line=1
    )
}


def counting(claims: dict[str, ClaimRow], budgets: Budgets, key: KeyRule) -> tuple[Adjudication, Entry]:
    """A batch of two refunds of 100, under a policy that adds them up."""
    policies: Any = SimpleNamespace(
        counters_of=lambda *action: (COUNTED[action],), facts_of=lambda *action: ()
    )
    bundle = replace(BUNDLE, policies=policies)
    batch = recognised(key=key)
    judge = Adjudication(case(recognised=replace(batch, actions=batch.actions * 2)), bundle, EVIDENCE)
    totals = dict.fromkeys(judge.meters, Total(sum=7, count=1)) if budgets is NO_BUDGETS else budgets.totals
    given = Budgets(totals=totals, standing=budgets.standing)
    return judge, judge(claims, now_us=NOW, receipt_id=new_receipt_id(NOW, b"n" * 16), budgets=given)


def test_a7_a_permit_charges_every_action_and_the_receipt_names_ids_only(says: Any) -> None:
    asked = says(PERMIT)
    adjudication, entry = counting({}, NO_BUDGETS, NATIVE)
    assert [(charge.meter, charge.amount, charge.count) for charge in entry.charges] == [
        (adjudication.meters[0], 200, 2)
    ]
    assert [each["counters"]["day"]["sum"] for each in asked[0]["actions"]] == [7, 107]
    statement = verify(entry.jws, key_set([KEY.public])).statement
    assert statement["budget"] == list(adjudication.meters)
    says(DENY)
    _, denied = counting({}, NO_BUDGETS, NATIVE)
    assert denied.charges == ()
    assert "budget" not in verify(denied.jws, key_set([KEY.public])).statement


def test_a7_a_replay_charges_nothing(says: Any) -> None:
    asked = says(PERMIT)
    claims = held(State.UNKNOWN, provider=True)
    first = next(iter(claims.values())).receipt_id
    _, entry = counting({}, NO_BUDGETS, PROVIDER)
    told = Budgets(
        totals={charge.meter: Total(sum=207, count=3) for charge in entry.charges},
        standing={first: entry.charges},
    )
    _, again = counting(claims, told, PROVIDER)
    assert (again.outcome, again.charges, again.prior) == (Outcome.PERMIT, (), first)
    assert asked[1]["actions"][0]["counters"]["day"] == {"sum": 7, "count": 1}
    assert "budget" not in asked[1]


def test_a6_of_a_sensitive_operation_nothing_is_kept_in_clear(says: Any) -> None:
    asked = says(PERMIT)
    entry = judge(case(recognised=replace(recognised(), sensitive=True)))
    assert entry.inputs is None and entry.sealed is not None
    kept = open_sealed(entry.receipt_id, entry.sealed.data, entry.sealed.key)
    assert kept.inputs == dumps_input(asked[0]) and kept.target == b"/v1/refunds"
    statement = verify(entry.jws, key_set([KEY.public])).statement
    assert statement["input_digest"] == input_digest(kept.inputs, entry.sealed.salt)
    request = case().request
    assert request is not None
    assert statement["request"]["commitment"] == commitment(
        entry.sealed.salt,
        method="POST",
        destination="api.ok.test:443",
        target=kept.target,
        body_sha256=hashlib.sha256(request.body).digest(),
    )


def test_a6_a_refusal_of_a_sensitive_operation_has_a_commitment_too() -> None:
    entry = judge(case(recognised=replace(recognised(), sensitive=True), refusal=Reason.GATE_TIMEOUT))
    assert entry.sealed is not None
    assert open_sealed(entry.receipt_id, entry.sealed.data, entry.sealed.key).inputs is None
    assert "commitment" in verify(entry.jws, key_set([KEY.public])).statement["request"]


def test_a_key_of_one_agent_is_not_anothers() -> None:
    keys = {
        Adjudication(case(agent=replace(AGENT, id=name)), BUNDLE, EVIDENCE).keys for name in ("bot", "other")
    }
    assert len(keys) == 2


def test_the_input_holds_everything_that_varies() -> None:
    inputs = decision_input(AGENT, REQUEST, recognised(), 1_795_295_315_000_000)
    assert inputs["clock"] == {"now_s": 1795295315, "hour_utc": 21, "weekday_utc": 6}
    assert inputs["agent"] == {"id": "bot", "groups": ["payments"], "attrs": {"accounts": ["a", "b"]}}
    assert inputs["actions"][0]["params"] == {"amount": 100}


# --- who would rather wait than hear `in_flight` ---


def test_only_an_identical_request_that_the_proxy_holds_waits_for_the_first(says: Any) -> None:
    says(PERMIT)
    first = held(State.DISPATCHING)
    assert judge(case(), first).waits
    assert not judge(case(via="v1"), first).waits  # a door is told at once
    assert not judge(case(), held(State.UNKNOWN)).waits
    late = {key: replace(row, expires_us=NOW - 1) for key, row in first.items()}
    assert judge(case(), late).waits
    other = {key: replace(row, digest="sha256:" + "cd" * 32) for key, row in late.items()}
    assert (judge(case(), other).reason, judge(case(), other).waits) == (Reason.IN_FLIGHT, False)


def test_a_request_with_another_native_key_does_not_wait_for_its_natural_twin(says: Any) -> None:
    says(PERMIT)
    natural = KeyRule(source=KeySource.NATURAL, value="order-1", ttl_s=60, provider=False)
    given = case(recognised=replace(recognised(), keys=(NATIVE, natural)))
    name = Adjudication(given, BUNDLE, EVIDENCE).keys[1]
    row = replace(next(iter(held(State.DISPATCHING).values())), key=name, source="natural")
    entry = judge(given, {name: row})
    assert (entry.reason, entry.waits) == (Reason.IN_FLIGHT, False)


def test_a12_the_last_replay_is_sent_while_the_vendor_still_has_the_key(says: Any) -> None:
    says(PERMIT)
    ends = {}
    for provider in (True, False):
        key = replace(NATIVE, ttl_s=86_400, provider=provider)
        (bound,) = judge(case(recognised=recognised(key=key))).bindings
        ends[provider] = bound.expires_us
    day_us = 86_400 * 1_000_000
    latest_permit = ends[True] - 1  # that would be a replay
    assert latest_permit + PERMIT_USE_BY_US < NOW + day_us
    assert ends == {True: NOW + day_us - PERMIT_USE_BY_US, False: NOW + day_us}
