"""adapters/decider.py: questions become recorded decisions, and nothing is ever forwarded."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from desks import KEY, Desk, Timers
from fakes import FakeUpstream, MemoryLedger
from holdgate.adapters.admin.shapes import decode_jws
from holdgate.errors import Outcome, Reason
from holdgate.keys import key_set
from holdgate.ledger import OutcomeStatus
from holdgate.limits import Limits
from holdgate.questions import ActionAsked, Question, RequestAsked
from holdgate.receipt import verify


@pytest.fixture(scope="module")
def shared() -> Desk:
    return Desk()


@pytest.fixture
def desk(shared: Desk) -> Desk:
    shared.ledger, shared.upstream, shared.timers = MemoryLedger(), FakeUpstream(), Timers()
    shared.pipeline.ledger, shared.pipeline.dispatcher = shared.ledger, shared.upstream
    shared.decider._open.clear()
    shared.decider.later = shared.timers
    return shared


def refund(amount: int = 500, key: str = "", **more: Any) -> ActionAsked:
    params = {"amount": amount, "reference": "pi_1", **more}
    return ActionAsked(surface="payments.refund", operation="stripe.PostRefunds", params=params, key=key)


def sent(amount: int = 500) -> RequestAsked:
    body = b"amount=%d&payment_intent=pi_1" % amount
    head = b"POST /v1/refunds HTTP/1.1\r\nHost: api.stripe.com\r\nAuthorization: Bearer sk_test_1\r\n"
    head += b"Idempotency-Key: k-9\r\nContent-Type: application/x-www-form-urlencoded\r\n"
    return RequestAsked(raw=head + b"Content-Length: %d\r\n\r\n" % len(body) + body)


ANSWERS: dict[str, tuple[ActionAsked | RequestAsked, Outcome, Reason]] = {
    "a small refund": (refund(), Outcome.PERMIT, Reason.PERMIT_RULE),
    "a refund too large": (refund(200_000), Outcome.DENY, Reason.DENY_RULE),
    "a refund that no rule has": (refund(account="acct_1"), Outcome.SILENCE, Reason.NO_RULE_MATCHED),
    "a parameter that nobody declared": (refund(fee=1), Outcome.SILENCE, Reason.UNKNOWN_PARAMETER),
    "a request with a small refund": (sent(), Outcome.PERMIT, Reason.PERMIT_RULE),
    "a request with a refund too large": (sent(200_000), Outcome.DENY, Reason.DENY_RULE),
    "a request to nowhere": (
        RequestAsked(raw=b"GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n"),
        Outcome.SILENCE,
        Reason.UNKNOWN_DESTINATION,
    ),
    "bytes that are no request": (RequestAsked(raw=b"\0\0"), Outcome.SILENCE, Reason.MALFORMED_REQUEST),
}


@pytest.mark.parametrize(("about", "outcome", "reason"), ANSWERS.values(), ids=ANSWERS)
async def test_dd1_a_question_is_decided_and_nothing_is_forwarded(
    desk: Desk, about: ActionAsked | RequestAsked, outcome: Outcome, reason: Reason
) -> None:
    decided = await desk.ask(about)
    assert (decided.outcome, decided.reason) == (outcome, reason)
    assert desk.upstream.seen == []


@pytest.mark.parametrize(("about", "outcome"), [row[:2] for row in ANSWERS.values()], ids=ANSWERS)
async def test_dd2_every_receipt_names_its_door_and_passes_for_no_dispatched_request(
    desk: Desk, about: ActionAsked | RequestAsked, outcome: Outcome
) -> None:
    decided = await desk.ask(about)
    said = verify(decided.jws, key_set([KEY.public])).statement
    assert (said["via"], said["agent"], said["id"]) == ("execute", "bot", decided.id)
    assert said["outcome"] == outcome.value


async def test_dd3_a_reported_outcome_settles_the_permit_once(desk: Desk) -> None:
    decided = await desk.ask(refund())
    assert not desk.decider.settle(decided.id, ("other",), OutcomeStatus.EXECUTED, 200)
    assert desk.decider.settle(decided.id, ("other", "bot"), OutcomeStatus.EXECUTED, 200)
    assert not desk.decider.settle(decided.id, ("bot",), OutcomeStatus.NOT_SENT, 0)
    desk.timers.fire()
    assert [row[:3] for row in desk.ledger.outcomes] == [(decided.id, OutcomeStatus.EXECUTED, 200)]


async def test_dd3_what_nobody_reports_is_unknown(desk: Desk) -> None:
    decided = await desk.ask(refund())
    assert [timer.delay for timer in desk.timers.waiting] == [30]
    desk.timers.fire()
    assert [row[:2] for row in desk.ledger.outcomes] == [(decided.id, OutcomeStatus.UNKNOWN)]
    assert not desk.decider.settle(decided.id, ("bot",), OutcomeStatus.EXECUTED, 200)


async def test_dd3_a_refusal_waits_for_no_outcome(desk: Desk) -> None:
    await desk.ask(refund(200_000))
    assert desk.timers.waiting == []


async def test_dd4_the_same_question_gets_the_first_receipt_again(desk: Desk) -> None:
    first = await desk.ask(refund(key="k-1"))
    again = await desk.ask(refund(key="k-1"))
    assert (again.outcome, again.id, again.jws, again.repeated) == (Outcome.PERMIT, first.id, first.jws, True)
    assert decode_jws(desk.ledger.last.jws)["reason"] == "in_flight"


async def test_dd4_who_names_its_questions_gets_its_own_answer_again_and_no_other(desk: Desk) -> None:
    """Another instance with a ledger of its own would send under that answer what the first one sends."""
    question = Question(agent="bot", about=refund(key="k-1"))
    first = await desk.decider.ask("execute", question, "bot", "of the one")
    for name in ("of the other", ""):
        other = await desk.decider.ask("execute", question, "bot", name)
        assert (other.outcome, other.reason, other.repeated) == (Outcome.SILENCE, Reason.IN_FLIGHT, False)
        assert other.id != first.id
    again = await desk.decider.ask("execute", question, "bot", "of the one")
    assert (again.outcome, again.id, again.repeated) == (Outcome.PERMIT, first.id, True)


async def test_dd4_who_did_not_name_its_question_told_nobody_who_does(desk: Desk) -> None:
    first = await desk.ask(refund(key="k-1"))
    question = Question(agent="bot", about=refund(key="k-1"))
    other = await desk.decider.ask("execute", question, "bot", "a name")
    assert (other.outcome, other.repeated) == (Outcome.SILENCE, False) and other.id != first.id


ENDS = {
    "executed": (OutcomeStatus.EXECUTED, Reason.ALREADY_EXECUTED),
    "unknown": (OutcomeStatus.UNKNOWN, Reason.OUTCOME_UNKNOWN),
}


@pytest.mark.parametrize(("status", "reason"), ENDS.values(), ids=ENDS)
async def test_dd5_what_has_ended_is_not_permitted_again(
    desk: Desk, status: OutcomeStatus, reason: Reason
) -> None:
    first = await desk.ask(refund(key="k-1"))
    assert desk.decider.settle(first.id, ("bot",), status, 0)
    again = await desk.ask(refund(key="k-1"))
    assert (again.outcome, again.reason, again.repeated) == (Outcome.SILENCE, reason, False)


async def test_dd5_what_ends_while_the_first_receipt_is_read_is_not_permitted_again(desk: Desk) -> None:
    first = await desk.ask(refund(key="k-1"))
    read = desk.decider.stored

    async def slow(receipt_id: str) -> bytes | None:
        assert desk.decider.settle(receipt_id, ("bot",), OutcomeStatus.EXECUTED, 200)
        return await read(receipt_id)

    desk.decider.stored = slow
    again = await desk.ask(refund(key="k-1"))
    assert (again.outcome, again.reason, again.repeated) == (Outcome.SILENCE, Reason.IN_FLIGHT, False)
    assert again.id != first.id


async def test_dd5_a_permit_that_expired_is_not_given_again(desk: Desk) -> None:
    await desk.ask(refund(key="k-1"))
    desk.ledger.now_us += 30_000_001
    again = await desk.ask(refund(key="k-1"))
    assert (again.outcome, again.reason, again.repeated) == (Outcome.SILENCE, Reason.IN_FLIGHT, False)


OTHERS: dict[str, tuple[ActionAsked, str, str, Reason]] = {
    "another amount": (refund(501, key="k-1"), "bot", "execute", Reason.IDEMPOTENCY_KEY_REUSED),
    "another agent": (refund(key="k-1"), "other", "execute", Reason.PERMIT_RULE),
    "another door": (refund(key="k-1"), "bot", "evaluation", Reason.IN_FLIGHT),
    "another key": (refund(key="k-2"), "bot", "execute", Reason.PERMIT_RULE),
}


@pytest.mark.parametrize(("about", "agent", "door", "reason"), OTHERS.values(), ids=OTHERS)
async def test_dd4_another_question_never_gets_the_first_answer(
    desk: Desk, about: ActionAsked, agent: str, door: str, reason: Reason
) -> None:
    first = await desk.ask(refund(key="k-1"))
    second = await desk.ask(about, agent, door)
    assert second.reason is reason and second.id != first.id and not second.repeated


async def test_questions_count_as_in_flight_and_are_limited(desk: Desk) -> None:
    held = asyncio.Event()
    desk.ledger.before = held.wait
    desk.pipeline.limits = Limits(in_flight=1)
    first = asyncio.ensure_future(desk.ask(refund()))
    await asyncio.sleep(0)
    second = asyncio.ensure_future(desk.ask(refund()))
    await asyncio.sleep(0)
    assert desk.pipeline.in_flight == 2
    held.set()
    assert [(await each).reason for each in (first, second)] == [Reason.PERMIT_RULE, Reason.OVERLOADED]
    assert desk.pipeline.in_flight == 0
    desk.pipeline.limits = Limits()


async def test_without_a_store_the_answer_is_silence_without_a_receipt(desk: Desk) -> None:
    desk.ledger.broken = True
    decided = await desk.ask(refund())
    assert (decided.outcome, decided.reason, decided.id) == (Outcome.SILENCE, Reason.STORE_UNAVAILABLE, "")


async def test_a_caller_that_leaves_has_no_permit(desk: Desk) -> None:
    desk.ledger.after = lambda: asyncio.sleep(3600)
    task = asyncio.ensure_future(desk.ask(refund()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [row[1] for row in desk.ledger.outcomes] == [OutcomeStatus.NOT_SENT]
