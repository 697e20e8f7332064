"""remote_gate.py: what a remote gate is asked, and which of its answers count."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evidence import KEYS, OTHER_KEY, RECEIPT_KEY, T0, permit_statement
from factories import make_canonical, make_recognised
from holdgate.agents import Agent
from holdgate.errors import Outcome, Reason
from holdgate.gate import Decision
from holdgate.keys import PublicKey, key_set
from holdgate.questions import ActionAsked, RequestAsked, read
from holdgate.receipt import sign
from holdgate.remote_gate import (
    Asked,
    RemoteError,
    RemoteProtocol,
    Told,
    combine,
    engine,
    questions,
    read_answer,
)
from holdgate.surface.model import Action, Effect, Param

HOLDGATE, AUTHZEN, TRIGGUARD = RemoteProtocol.HOLDGATE, RemoteProtocol.AUTHZEN, RemoteProtocol.TRIGGUARD
REQUEST = make_canonical(host="api.stripe.com")
ACTION = Action(
    surface="payments.refund",
    operation="stripe.PostRefunds",
    effect=Effect.COMMIT,
    params=(Param(name="amount", value=5, public=5),),
)
STATED = permit_statement()["request"]
ASKED = Asked(
    agent=Agent(id="refund-bot", groups=("payments",), attrs=()),
    request=REQUEST,
    recognised=replace(make_recognised(REQUEST), actions=(ACTION,), digest=STATED["digest"]),
    wire=STATED["wire"],
)


def answer(protocol: RemoteProtocol, status: int, body: Any, now_us: int = T0) -> Told:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_answer(protocol, status, data, ASKED, KEYS, now_us=now_us)


def receipt(key: Any = RECEIPT_KEY, **changes: Any) -> dict[str, Any]:
    return {"receipt": sign(permit_statement(**changes), key).decode()}


# --- questions ---


@pytest.mark.parametrize(("protocol", "door"), [(AUTHZEN, "evaluation"), (TRIGGUARD, "execute")])
def test_another_holdgate_understands_the_question_about_an_action(
    protocol: RemoteProtocol, door: str
) -> None:
    (body,) = questions(protocol, ASKED)
    asked = read(door, body)
    assert asked.agent == "refund-bot" and isinstance(asked.about, ActionAsked)
    assert (asked.about.surface, asked.about.operation) == ("payments.refund", "stripe.PostRefunds")
    assert asked.about.params["amount"] == 5


def test_another_holdgate_gets_the_very_bytes_that_will_be_sent() -> None:
    (body,) = questions(HOLDGATE, ASKED)
    about = read("decide", body).about
    assert isinstance(about, RequestAsked)
    head, _, sent = about.raw.partition(b"\r\n\r\n")
    lines = [name + b": " + value for name, value in ASKED.recognised.headers]
    assert head.split(b"\r\n") == [b"POST /v1/refunds HTTP/1.1", *lines]
    assert sent == REQUEST.body


def test_one_question_for_each_action_and_not_too_many() -> None:
    two = replace(ASKED, recognised=replace(ASKED.recognised, actions=(ACTION, ACTION)))
    assert len(questions(AUTHZEN, two)) == 2 and len(questions(HOLDGATE, two)) == 1
    many = replace(ASKED, recognised=replace(ASKED.recognised, actions=(ACTION,) * 33))
    with pytest.raises(RemoteError):
        questions(TRIGGUARD, many)


# --- answers ---

PERMITS = {"decision": "PERMIT", "surface": "payments.refund"}
SAYS: dict[str, tuple[RemoteProtocol, int, Any, Outcome]] = {
    "authzen true": (AUTHZEN, 200, {"decision": True}, Outcome.PERMIT),
    "authzen false": (AUTHZEN, 200, {"decision": False, "context": {"reason": "no"}}, Outcome.DENY),
    "trigguard permit": (TRIGGUARD, 200, PERMITS, Outcome.PERMIT),
    "trigguard deny": (TRIGGUARD, 403, {"decision": "DENY"}, Outcome.DENY),
    "trigguard block": (TRIGGUARD, 200, {"decision": "BLOCK"}, Outcome.DENY),
    "trigguard silence": (TRIGGUARD, 200, {"decision": "SILENCE"}, Outcome.SILENCE),
    "trigguard escalate": (TRIGGUARD, 200, {"decision": "ESCALATE"}, Outcome.SILENCE),
    "trigguard permit in lower case": (TRIGGUARD, 200, {"decision": "permit"}, Outcome.SILENCE),
    "holdgate permit": (HOLDGATE, 200, receipt(), Outcome.PERMIT),
    "holdgate deny": (
        HOLDGATE,
        200,
        receipt(outcome=Outcome.DENY, reason=Reason.DENY_RULE, exp_us=0, replay_of=""),
        Outcome.DENY,
    ),
    "holdgate silence": (
        HOLDGATE,
        200,
        receipt(outcome=Outcome.SILENCE, reason=Reason.NO_RULE_MATCHED, rules=(), exp_us=0),
        Outcome.SILENCE,
    ),
}


@pytest.mark.parametrize(("protocol", "status", "body", "outcome"), SAYS.values(), ids=SAYS)
def test_an_answer_is_a_decision(protocol: RemoteProtocol, status: int, body: Any, outcome: Outcome) -> None:
    assert answer(protocol, status, body).decision.outcome is outcome


NOTHING: dict[str, tuple[RemoteProtocol, int, Any]] = {
    "authzen without decision": (AUTHZEN, 200, {}),
    "authzen with a word": (AUTHZEN, 200, {"decision": "true"}),
    "authzen with one": (AUTHZEN, 200, {"decision": 1}),
    "authzen true with 403": (AUTHZEN, 403, {"decision": True}),
    "authzen true with 201": (AUTHZEN, 201, {"decision": True}),
    "authzen a list": (AUTHZEN, 200, [True]),
    "authzen a decision twice": (AUTHZEN, 200, b'{"decision":false,"decision":true}'),
    "trigguard permit with 403": (TRIGGUARD, 403, {"decision": "PERMIT", "surface": "payments.refund"}),
    "trigguard permit of another surface": (TRIGGUARD, 200, {"decision": "PERMIT", "surface": "ehr.write"}),
    "trigguard permit without surface": (TRIGGUARD, 200, {"decision": "PERMIT"}),
    "trigguard with 500": (TRIGGUARD, 500, {"decision": "DENY"}),
    "trigguard without decision": (TRIGGUARD, 200, {"error": "x"}),
    "holdgate without receipt": (HOLDGATE, 200, {"decision": "PERMIT"}),
    "holdgate with 503": (HOLDGATE, 503, receipt()),
    "no JSON": (AUTHZEN, 200, b"<html>"),
}


@pytest.mark.parametrize(("protocol", "status", "body"), NOTHING.values(), ids=NOTHING)
def test_rg1_what_does_not_say_permit_in_the_protocols_words_is_none(
    protocol: RemoteProtocol, status: int, body: Any
) -> None:
    with pytest.raises(RemoteError):
        answer(protocol, status, body)


NAMED = {"target": "/x", "digest": STATED["digest"], "bytes": 0}
FORGED: dict[str, dict[str, Any]] = {
    "another digest": {"request": {**STATED, "digest": "sha256:" + "9" * 64}},
    "another wire": {"request": {**STATED, "wire": "sha256:" + "9" * 64}},
    "another agent": {"agent": "somebody"},
    "another destination": {"destination": "evil.test:443"},
    "a named action": {
        "destination": "",
        "request": {"target": "/x", "digest": STATED["digest"], "bytes": 0},
    },
    "an old one": {"iat_us": T0 - 60_000_000, "exp_us": T0 - 30_000_000},
}


@pytest.mark.parametrize("changes", FORGED.values(), ids=FORGED)
def test_rg2_a_receipt_of_something_else_is_no_permit(changes: dict[str, Any]) -> None:
    with pytest.raises(RemoteError):
        answer(HOLDGATE, 200, receipt(**changes))


def test_rg2_a_receipt_of_an_unknown_key_is_none() -> None:
    with pytest.raises(RemoteError, match="key"):
        answer(HOLDGATE, 200, receipt(OTHER_KEY))


GONE: dict[str, dict[str, int]] = {
    "retired": {"end_index": 7},
    "revoked": {"revoked_from_index": 7},
    "retired, then revoked": {"end_index": 7, "revoked_from_index": 5},
}


@pytest.mark.parametrize("limits", GONE.values(), ids=GONE)
def test_rg2_a_receipt_of_a_key_that_signs_no_more_is_none(limits: dict[str, int]) -> None:
    # Whoever found a lost key could otherwise answer for the gate for as long as its document names the key.
    keys = key_set([PublicKey(raw=RECEIPT_KEY.public.raw, **limits), OTHER_KEY.public])
    with pytest.raises(RemoteError, match="retired or revoked"):
        read_answer(HOLDGATE, 200, json.dumps(receipt()).encode(), ASKED, keys, now_us=T0)
    new = json.dumps(receipt(OTHER_KEY)).encode()
    assert read_answer(HOLDGATE, 200, new, ASKED, keys, now_us=T0).decision.outcome is Outcome.PERMIT


def test_rg2_a_receipt_is_good_until_it_expires() -> None:
    assert answer(HOLDGATE, 200, receipt(), T0 + 29_999_999).id == permit_statement()["id"]
    with pytest.raises(RemoteError, match="expired"):
        answer(HOLDGATE, 200, receipt(), T0 + 30_000_000)


_WORDS = st.sampled_from(["decision", "receipt", "surface", "PERMIT", "payments.refund", "DENY", ""])
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | _WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_WORDS, inner, max_size=4),
    max_leaves=10,
)


@given(st.sampled_from(list(RemoteProtocol)), st.integers(100, 599), st.one_of(st.binary(max_size=60), _JSON))
def test_rg3_any_answer_is_a_decision_or_an_error(protocol: RemoteProtocol, status: int, body: Any) -> None:
    try:
        told = answer(protocol, status, body)
    except RemoteError as error:
        assert str(error)
        return
    if told.decision.outcome is Outcome.PERMIT:
        assert status == 200 and body["decision"] in (True, "PERMIT")


YES = Decision(outcome=Outcome.PERMIT, reason=Reason.PERMIT_RULE, rules=("r",))
NO = Decision(outcome=Outcome.DENY, reason=Reason.DENY_RULE, rules=("r",))
MUTE = Decision(outcome=Outcome.SILENCE, reason=Reason.NO_RULE_MATCHED, rules=())
MIXES = {
    "all yes": ((YES, YES), Outcome.PERMIT),
    "a no among yes": ((YES, NO), Outcome.DENY),
    "a no after nothing": ((MUTE, NO), Outcome.DENY),
    "nothing said of one": ((YES, MUTE), Outcome.SILENCE),
    "nobody asked": ((), Outcome.SILENCE),
}


@pytest.mark.parametrize(("decisions", "outcome"), MIXES.values(), ids=MIXES)
def test_several_actions_are_permitted_together_or_not_at_all(
    decisions: tuple[Decision, ...], outcome: Outcome
) -> None:
    assert combine(decisions).outcome is outcome


def test_receipts_name_the_engine() -> None:
    assert [engine(each) for each in RemoteProtocol] == [
        "remote/holdgate",
        "remote/authzen",
        "remote/trigguard",
    ]
