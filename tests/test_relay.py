"""relay.py: one exchange becomes one answer, one outcome, and one answer for those who wait."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace
from typing import Any

import pytest

from fakes import FakeExchange, FakeMeter, MemoryLedger
from holdgate.answer import Answer, DispatchError
from holdgate.headers import Verdicts
from holdgate.ledger import OutcomeStatus, Recorded
from holdgate.message import ResponseHead
from holdgate.relay import Flight, Permit, Said, answer_exchange, outcome_of, share
from holdgate.standing import Made, Told
from test_headers import entry

SHOW = Verdicts(node="n1", full=False, public_url=None)


def said(method: str = "POST") -> Said:
    recorded = Recorded(entry=entry(), index=0, durable=True)
    return Said(
        recorded=recorded, show=SHOW, method=method, sensitive=False, shape="problem", retry_headers=()
    )


def permit(flight: Flight | None = None) -> Permit:
    flights = {flight.name: flight} if flight else {}
    return Permit(MemoryLedger(), said().recorded, FakeMeter(), flights, flight)  # type: ignore[arg-type]


def outcomes(made: Permit) -> list[Any]:
    return [(row[1].value, row[2], row[3]) for row in made.ledger.outcomes]  # type: ignore[attr-defined]


async def run(made: Permit, exchange: FakeExchange, method: str = "POST") -> Answer:
    return await answer_exchange(said(method), exchange, made, SimpleNamespace(gone=False))


def exchange(status: int = 200, body: bytes = b"x", length: int | None = 1, **change: Any) -> FakeExchange:
    headers = change.pop("headers", ())
    head = ResponseHead(status=status, reason=b"R", headers=headers)
    return FakeExchange(head=head, length=length, pieces=[body] if body else [], **change)


@pytest.mark.parametrize(("began", "expected"), [(False, "not_sent"), (True, "unknown")])
def test_ry1_an_unsettled_permit_closes_by_how_far_it_came(began: bool, expected: str) -> None:
    made = permit()
    if began:
        made.sending()
    made.close()
    made.close()
    made.settle(OutcomeStatus.EXECUTED, 200, delivered=True)
    assert outcomes(made) == [(expected, 0, False)]


async def test_ry2_a_body_that_was_cut_is_not_passed_on_as_whole() -> None:
    made = permit()
    answer = await run(made, exchange(cut=True, length=10))
    assert (answer.status, outcomes(made)) == (502, [("executed", 200, False)])


async def test_ry2_a_stream_that_was_cut_raises_for_the_door() -> None:
    made = permit()
    answer = await run(made, exchange(length=None, cut=True))
    assert answer.rest is not None
    assert await answer.rest.next() == b"x"
    with pytest.raises(DispatchError):
        await answer.rest.next()
    assert outcomes(made) == [("executed", 200, False)]


@pytest.mark.parametrize("status", [200, 204, 301, 304, 404, 500])
async def test_ry3_every_status_carries_the_receipt(status: int) -> None:
    answer = await run(permit(), exchange(status, body=b"" if status in (204, 304) else b"x"))
    assert [name for name, _ in answer.headers].count(b"Holdgate-Decision") == 1
    assert answer.bodiless == (status in (204, 304))


async def test_a_head_answer_announces_the_length_without_a_body() -> None:
    headers = ((b"Content-Length", b"5"),)
    answer = await run(permit(), exchange(body=b"", length=0, headers=headers), "HEAD")
    assert (answer.bodiless, answer.length, answer.body) == (True, 5, b"")


async def test_ry4_a_flight_resolves_whatever_happens() -> None:
    flight = Flight("f", asyncio.get_running_loop().create_future())
    made = permit(flight)
    made.ledger.record_outcome = lambda *args, **kwargs: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        made.settle(OutcomeStatus.EXECUTED, 200, delivered=True)
    assert (flight.answer.result(), made.flights) == (None, {})
    share({}, flight, None)
    share({}, None, None)


async def test_an_answer_that_cannot_be_offered_to_other_nodes_costs_no_outcome() -> None:
    flight = Flight("f", asyncio.get_running_loop().create_future())
    made = permit(flight)
    made.offer = lambda *_: 1 / 0  # type: ignore[assignment, return-value]
    answer = Answer(
        status=200, reason=b"OK", headers=(), body=b"", rest=None, length=0, bodiless=False, close=False
    )
    made.settle(OutcomeStatus.EXECUTED, 200, delivered=True, answer=answer)
    assert outcomes(made) == [("executed", 200, True)]
    assert flight.answer.result() is answer


@pytest.mark.parametrize(
    ("status", "outcome"),
    [(200, "executed"), (299, "executed"), (304, "executed"), (302, "failed"), (400, "failed"),
     (404, "failed"), (408, "unknown"), (409, "unknown"), (425, "unknown"), (429, "failed"),
     (500, "unknown"), (503, "unknown")],
)  # fmt: skip
def test_what_a_status_says_of_the_effect(status: int, outcome: str) -> None:
    assert outcome_of(status).value == outcome


@pytest.mark.parametrize(
    ("status", "how", "told"),
    [
        pytest.param(200, {}, True, id="whole"),
        pytest.param(200, {"length": None}, True, id="streamed"),
        pytest.param(200, {"length": 10, "cut": True}, False, id="cut"),
        pytest.param(200, {"length": None, "cut": True}, False, id="cut in the stream"),
        pytest.param(402, {}, False, id="failed"),
        pytest.param(500, {}, False, id="unknown"),
    ],
)
async def test_ry5_an_object_is_named_with_an_executed_outcome_from_a_whole_answer(
    status: int, how: dict[str, Any], told: bool
) -> None:
    made = Made(key="a" * 64, ttl_us=1, told=Told.NEW)
    permitted = permit()
    permitted.names = lambda head, body: made
    given: list[Any] = []
    permitted.ledger.record_outcome = lambda *args, made, **kwargs: given.append(made)  # type: ignore[method-assign]
    answer = await run(permitted, exchange(status, **how))
    with contextlib.suppress(DispatchError):
        while answer.rest is not None and await answer.rest.next():
            pass
    assert given == [made if told else None]


@pytest.mark.parametrize("length", [1, None], ids=["whole", "streamed"])
async def test_ry5_an_answer_that_cannot_be_read_costs_the_agent_nothing(length: int | None) -> None:
    permitted = permit()
    permitted.names = lambda head, body: 1 / 0  # type: ignore[assignment,return-value]
    answer = await run(permitted, exchange(length=length))
    while answer.rest is not None and await answer.rest.next():
        pass
    assert (answer.status, outcomes(permitted)) == (200, [("executed", 200, True)])
