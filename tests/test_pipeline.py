"""pipeline.py: the invariants in its docstring, and the fault matrix over every step."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from fakes import NO_POLICIES, FakeClient, FakeMeter, FakeUpstream, MemoryLedger
from holdgate import gate
from holdgate.adjudicate import Adjudication, Evidence
from holdgate.agents import Agent
from holdgate.answer import Answer, DispatchError
from holdgate.bundle import NEVER_US, Bundle
from holdgate.canonical import CanonicalRequest
from holdgate.errors import BackendError, InputError, Outcome, Reason
from holdgate.gate import Decision
from holdgate.headers import Verdicts
from holdgate.held import RENEWALS
from holdgate.keys import SigningKey, key_set
from holdgate.ledger import InFlightElsewhere, OutcomeStatus, Superseded
from holdgate.limits import Limits
from holdgate.message import Listener, Message, Origin, RequestHead
from holdgate.pipeline import LARGE_BODY_BYTES, Holds, Pipeline
from holdgate.receipt import verify
from holdgate.relay import Converged
from holdgate.release import Release
from holdgate.remote_gate import Remote
from holdgate.surface.model import Action, Deadlines, Effect, KeyRule, KeySource, Param, Recognised

ORIGIN = Origin(
    listener=Listener.EXPLICIT,
    tls=True,
    source="127.0.0.1",
    source_port=40000,
    connect=("api.ok.test", 443),
    sni="api.ok.test",
    original_port=None,
    proxy_authorization=(),
)
HEADERS = ((b"Host", b"api.ok.test"), (b"Content-Length", b"2"))
MESSAGE = Message(
    origin=ORIGIN,
    head=RequestHead(method=b"POST", target=b"/v1/refunds", headers=HEADERS),
    body=b"{}",
)
REQUEST = CanonicalRequest(
    method="POST",
    scheme="https",
    host="api.ok.test",
    port=443,
    raw_target=b"/v1/refunds",
    segments=("v1", "refunds"),
    raw_segments=("v1", "refunds"),
    query=None,
    headers=(),
    fields={},
    repeated=frozenset(),
    content_type=None,
    content_coding=None,
    body=b"{}",
)


def recognised(effect: Effect = Effect.COMMIT, key: KeyRule | None = None) -> Recognised:
    action = Action(
        surface="payments.refund",
        operation="ok.Refund",
        effect=effect,
        params=(Param(name="amount", value=100, public=100),),
    )
    return Recognised(
        actions=(action,),
        target="/v1/refunds",
        principal=None,
        keys=(key,) if key else (),
        require_key=False,
        conflict_keys=(),
        digest="sha256:" + "ab" * 32,
        sensitive=False,
        headers=HEADERS,
        secret_headers=frozenset(),
        deadlines=Deadlines(connect_s=None, first_byte_s=None, total_s=None),
        refusal="stripe",
        retry_headers=((b"Stripe-Should-Retry", b"false"),),
    )


NATIVE = KeyRule(source=KeySource.NATIVE, value="key-1", ttl_s=60, provider=False)
PROVIDER = KeyRule(source=KeySource.NATIVE, value="key-1", ttl_s=60, provider=True)


class FakeIndex:
    def __init__(self, result: Recognised) -> None:
        self.result = result

    def recognise(self, request: CanonicalRequest, *, fleet_key: bytes, body_bytes: int) -> Recognised:
        return self.result

    def refusal(self, host: str, port: int, scheme: str) -> tuple[str, Any]:
        return "problem", ()

    def body_limit(self, host: str, port: int, scheme: str, default: int, cap: int) -> int:
        return default


class House:
    """A pipeline with fakes around it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, result: Recognised, **limits: Any) -> None:
        self.ledger, self.upstream, self.meter = MemoryLedger(), FakeUpstream(), FakeMeter()
        self.decision = Decision(outcome=Outcome.PERMIT, reason=Reason.PERMIT_RULE, rules=("p/r",))
        self.index = FakeIndex(result)
        monkeypatch.setattr(gate, "decide", lambda policies, inputs: self.decision)
        bundle = Bundle(
            digest="sha256:" + "00" * 32,
            revision=0,
            signed=False,
            ends_us=NEVER_US,
            index=self.index,  # type: ignore[arg-type]
            policies=NO_POLICIES,
        )
        self.pipeline = Pipeline(
            bundle=bundle,
            identify=lambda origin: Agent(id="bot", groups=(), attrs=()),
            ledger=self.ledger,
            dispatcher=self.upstream,
            evidence=Evidence(
                signer=SigningKey(seed=b"s" * 32),
                issuer="test/log",
                node="n1",
                fleet_key=b"f" * 32,
                draw=secrets.token_bytes,
            ),
            show=Verdicts(node="n1", full=True, public_url=None),
            limits=Limits(**limits),
            meter=self.meter,
            clock=lambda: 0.0,
            canonicalise=lambda message: REQUEST,
        )

    async def ask(self, client: FakeClient | None = None) -> Answer:
        return await asyncio.wait_for(self.pipeline.handle(MESSAGE, client or FakeClient()), 60)


def header(answer: Answer, name: bytes) -> bytes:
    values = [value for key, value in answer.headers if key.lower() == name]
    assert len(values) == 1, (name, answer.headers)
    return values[0]


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> House:
    return House(monkeypatch, recognised())


async def test_a_permitted_request_is_dispatched_once_and_carries_its_receipt(house: House) -> None:
    answer = await house.ask()
    assert (answer.status, answer.body) == (200, b'{"ok":true}')
    assert header(answer, b"holdgate-decision").startswith(b'PERMIT;id="rcpt_')
    assert header(answer, b"holdgate-receipt") == house.ledger.last.jws
    assert len(house.upstream.seen) == 1
    assert house.ledger.outcomes == [(house.ledger.last.receipt_id, OutcomeStatus.EXECUTED, 200, True)]


async def test_p1_no_dispatch_without_a_recorded_permit(house: House) -> None:
    house.decision = Decision(outcome=Outcome.DENY, reason=Reason.DENY_RULE, rules=("p/d",))
    answer = await house.ask()
    assert (answer.status, house.upstream.seen) == (403, [])
    assert header(answer, b"holdgate-decision").startswith(b"DENY;")
    assert header(answer, b"stripe-should-retry") == b"false"
    with pytest.raises(BackendError):
        Release(
            recorded=SimpleNamespace(entry=house.ledger.last, durable=True),  # type: ignore[arg-type]
            agent="bot",
            request=REQUEST,
            recognised=recognised(),
            wire_key=None,
            expires_us=0,
        )


async def _hang() -> Any:
    await asyncio.Event().wait()


def _raising(error: BaseException) -> Callable[..., Any]:
    def act(*args: Any, **kwargs: Any) -> Any:
        raise error

    return act


FAULTS = {
    "raises": _raising(RuntimeError("broken")),
    "raises a timeout": _raising(TimeoutError()),
    "is cancelled": _raising(asyncio.CancelledError()),
    "returns None": lambda *args, **kwargs: None,
    "returns True": lambda *args, **kwargs: True,
    "returns a string": lambda *args, **kwargs: "PERMIT",
}


def _break(house: House, monkeypatch: pytest.MonkeyPatch, step: str, fault: Callable[..., Any]) -> None:
    if step == "identify":
        house.pipeline.identify = fault
    elif step == "canonicalise":
        house.pipeline.canonicalise = fault
    elif step == "recognise":
        house.index.recognise = fault  # type: ignore[method-assign]
    elif step == "gate":
        monkeypatch.setattr(gate, "decide", fault)
    elif step == "record":

        async def record(judge: Any) -> Any:
            return fault(judge)

        house.ledger.record = record  # type: ignore[assignment]
    elif step == "release":
        monkeypatch.setattr("holdgate.pipeline.Release", fault)
    elif step == "wire digest":
        monkeypatch.setattr("holdgate.release.wire_digest", fault)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    "step", ["identify", "canonicalise", "recognise", "gate", "record", "release", "wire digest"]
)
async def test_p2_a_broken_step_lets_nothing_out(
    house: House, monkeypatch: pytest.MonkeyPatch, step: str, fault: str
) -> None:
    with monkeypatch.context() as patch:
        record = house.ledger.record
        identify, canonicalise = house.pipeline.identify, house.pipeline.canonicalise
        recognise = house.index.recognise
        _break(house, patch, step, FAULTS[fault])
        answer = await house.ask()
    if step == "release" and not fault.startswith(("raises", "is cancelled")):
        # What the constructor returns is not a Release: the outer door refuses it (test_dispatch.py).
        return
    assert house.upstream.seen == []
    assert answer.status in (403, 502, 503)
    assert header(answer, b"holdgate-decision")
    if step != "record":
        assert b'id="rcpt_' in header(answer, b"holdgate-decision"), "a receipt could still be written"
    house.ledger.record = record  # type: ignore[method-assign]
    house.pipeline.identify, house.pipeline.canonicalise = identify, canonicalise
    house.index.recognise = recognise  # type: ignore[method-assign]
    assert (await house.ask()).status == 200, "the next request works"


async def test_p2_a_step_that_hangs_ends_at_the_hold_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(monkeypatch, recognised(), hold_s=0.05)
    stuck = asyncio.Event()

    async def once() -> None:
        if not stuck.is_set():
            stuck.set()
            await _hang()

    house.ledger.before = once
    answer = await house.ask()
    assert (answer.status, house.upstream.seen) == (503, [])
    assert header(answer, b"holdgate-decision").startswith(b"SILENCE;")
    assert b"gate_timeout" in header(answer, b"holdgate-decision")
    assert (await house.ask()).status == 200


async def test_p2_a_decision_made_too_late_is_no_permit(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(monkeypatch, recognised(), decide_ms=1)
    now = [0.0]

    def slow(policies: Any, inputs: Any) -> Decision:
        now[0] += 0.002
        return house.decision

    monkeypatch.setattr(gate, "decide", slow)
    house.pipeline.clock = lambda: now[0]
    answer = await house.ask()
    assert (answer.status, house.upstream.seen) == (503, [])
    assert b"gate_timeout" in header(answer, b"holdgate-decision")
    statement = verify(house.ledger.last.jws, key_set([SigningKey(seed=b"s" * 32).public])).statement
    assert (statement["outcome"], statement["reason"]) == ("SILENCE", "gate_timeout")


async def test_p2_a_broken_store_answers_without_a_receipt(house: House) -> None:
    house.ledger.broken = True
    answer = await house.ask()
    assert (answer.status, house.upstream.seen) == (503, [])
    assert header(answer, b"holdgate-decision") == b"SILENCE;reason=store_unavailable"
    assert header(answer, b"retry-after") == b"1"


async def test_p3_a_permit_after_the_hold_deadline_is_void(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(monkeypatch, recognised(), hold_s=0.05)
    judged = asyncio.Event()

    async def slow_commit() -> None:
        if not judged.is_set():
            judged.set()
            await _hang()

    house.ledger.after = slow_commit
    answer = await house.ask()
    late = house.ledger.entries[0]
    assert late.outcome is Outcome.PERMIT
    assert answer.status == 503
    assert house.upstream.seen == []
    assert house.ledger.outcomes == [(late.receipt_id, OutcomeStatus.NOT_SENT, 0, False)]


async def test_p3_what_a_late_store_still_judges_is_void(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(monkeypatch, recognised(), hold_s=0.05)
    record, judges = house.ledger.record, list[Any]()

    async def slow(judge: Any) -> Any:
        judges.append(judge)
        return await (_hang() if len(judges) == 1 else record(judge))

    house.ledger.record = slow  # type: ignore[method-assign]
    assert (await house.ask()).status == 503
    entry = judges[0]({}, now_us=1_700_000_000_000_000, receipt_id=house.ledger.last.receipt_id)
    assert (entry.outcome, entry.reason) == (Outcome.SILENCE, Reason.GATE_TIMEOUT)


@pytest.mark.parametrize(
    ("change", "status", "outcome"),
    [
        pytest.param(
            {"error": DispatchError(OutcomeStatus.NOT_SENT, 502, "x")}, 502, "not_sent", id="refused"
        ),
        pytest.param(
            {"error": DispatchError(OutcomeStatus.UNKNOWN, 504, "x")}, 504, "unknown", id="deadline"
        ),
        pytest.param({"error": RuntimeError("bug")}, 502, "unknown", id="our own bug while sending"),
        pytest.param({"error": asyncio.CancelledError()}, 502, "unknown", id="cancelled while sending"),
        pytest.param({"status": 201}, 201, "executed", id="created"),
        pytest.param({"status": 304, "body": b""}, 304, "executed", id="not modified"),
        pytest.param({"status": 302}, 302, "failed", id="redirect is not followed"),
        pytest.param({"status": 404}, 404, "failed", id="client error"),
        pytest.param({"status": 409}, 409, "unknown", id="vendor conflict"),
        pytest.param({"status": 503}, 503, "unknown", id="server error"),
        pytest.param({"status": 407}, 502, "failed", id="proxy credentials asked"),
        pytest.param({"cut": True}, 502, "executed", id="cut in the body"),
    ],
)
async def test_p4_every_permit_is_settled_once(
    house: House, change: dict[str, Any], status: int, outcome: str
) -> None:
    for name, value in change.items():
        setattr(house.upstream, name, value)
    answer = await house.ask()
    assert answer.status == status
    said = header(answer, b"holdgate-decision")
    assert said.startswith(b"PERMIT;")
    assert [row[1].value for row in house.ledger.outcomes] == [outcome]
    if "error" in change:  # what the agent is told of the effect is what is recorded
        assert said.endswith(f";status={outcome}".encode())


async def test_p4_a_permit_whose_release_cannot_even_begin_is_not_sent(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape, broken = Pipeline._shape, [True]

    def once(self: Pipeline, held: Any) -> Any:
        if broken:
            broken.pop()
            raise RuntimeError("bug")
        return shape(self, held)

    monkeypatch.setattr(Pipeline, "_shape", once)
    answer = await house.ask()
    assert (answer.status, house.upstream.seen) == (403, [])
    assert [row[1] for row in house.ledger.outcomes] == [OutcomeStatus.NOT_SENT]


async def test_p4_a_streamed_answer_is_settled_at_its_end(house: House) -> None:
    house.upstream.chunked = True
    answer = await house.ask()
    assert answer.rest is not None
    assert house.ledger.outcomes == []
    assert [await answer.rest.next(), await answer.rest.next()] == [b'{"ok":true}', b""]
    assert [row[1:] for row in house.ledger.outcomes] == [(OutcomeStatus.EXECUTED, 200, True)]


async def test_p4_an_abandoned_stream_is_settled_as_undelivered(house: House) -> None:
    house.upstream.chunked = True
    answer = await house.ask()
    assert answer.rest is not None
    answer.rest.abandon()
    answer.rest.abandon()
    assert [row[1:] for row in house.ledger.outcomes] == [(OutcomeStatus.EXECUTED, 200, False)]
    assert house.upstream.exchanges[0].abandoned


async def test_an_agent_that_left_before_the_release_is_not_served(house: House) -> None:
    client = FakeClient()
    client.gone = True
    answer = await house.ask(client)
    assert (answer.status, house.upstream.seen) == (502, [])
    assert [row[1] for row in house.ledger.outcomes] == [OutcomeStatus.NOT_SENT]


async def test_a_read_is_cancelled_when_its_agent_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(monkeypatch, recognised(Effect.READ))
    house.upstream.gate = asyncio.Event()
    client = FakeClient()
    task = asyncio.ensure_future(house.ask(client))
    while not house.upstream.seen:
        await asyncio.sleep(0)
    client.leave()
    assert (await task).status == 502
    assert [row[1] for row in house.ledger.outcomes] == [OutcomeStatus.UNKNOWN]


async def test_a_commit_runs_on_when_its_agent_leaves(house: House) -> None:
    house.upstream.gate = asyncio.Event()
    client = FakeClient()
    task = asyncio.ensure_future(house.ask(client))
    while not house.upstream.seen:
        await asyncio.sleep(0)
    client.leave()
    house.upstream.gate.set()
    assert (await task).status == 200
    assert [row[1:] for row in house.ledger.outcomes] == [(OutcomeStatus.EXECUTED, 200, False)]


async def test_p5_identical_requests_in_flight_share_one_dispatch(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(monkeypatch, recognised(key=NATIVE))
    house.upstream.gate = asyncio.Event()
    tasks = [asyncio.ensure_future(house.ask()) for _ in range(50)]
    while not house.upstream.seen:
        await asyncio.sleep(0)
    house.upstream.gate.set()
    answers = await asyncio.gather(*tasks)
    assert len(house.upstream.seen) == 1
    assert {header(answer, b"holdgate-decision") for answer in answers} == {
        header(answers[0], b"holdgate-decision")
    }
    assert {answer.body for answer in answers} == {b'{"ok":true}'}
    assert len(house.ledger.entries) == 1
    assert house.pipeline.flights == {}


async def test_p5_streamed_answers_are_shared_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(monkeypatch, recognised(key=NATIVE))
    house.upstream.chunked = True
    first = await house.ask()
    second = asyncio.ensure_future(house.ask())
    for _ in range(5):  # let it find the flight
        await asyncio.sleep(0)
    assert first.rest is not None
    while await first.rest.next():
        pass
    answer = await second
    assert (answer.body, answer.rest, len(house.upstream.seen)) == (b'{"ok":true}', None, 1)


async def test_p5_who_gives_up_waiting_takes_the_answer_from_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(monkeypatch, recognised(key=NATIVE))
    house.upstream.chunked = True
    first = await house.ask()
    waiting = [asyncio.ensure_future(house.pipeline.handle(MESSAGE, FakeClient())) for _ in range(2)]
    for _ in range(5):  # let them find the flight
        await asyncio.sleep(0)
    waiting[0].cancel()
    assert (await waiting[0]).status == 403
    assert first.rest is not None
    while await first.rest.next():
        pass
    answer = await asyncio.wait_for(waiting[1], 60)
    assert (answer.status, answer.body, len(house.upstream.seen)) == (200, b'{"ok":true}', 1)


async def test_p5_who_waits_longer_than_the_hold_deadline_hears_in_flight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house = House(monkeypatch, recognised(key=NATIVE), hold_s=0.05)
    house.upstream.chunked = True
    first = await house.ask()  # its stream is not pulled, so its flight does not end
    second = await house.ask()
    assert (second.status, len(house.upstream.seen)) == (409, 1)
    assert b"reason=in_flight" in header(second, b"holdgate-decision")
    assert first.rest is not None
    first.rest.abandon()


@pytest.mark.parametrize(
    ("key", "status", "dispatches"),
    [
        pytest.param(NATIVE, 409, 1, id="not repeated where the vendor does not"),
        pytest.param(PROVIDER, 200, 2, id="replayed where the vendor answers from its own store"),
    ],
)
async def test_a_retry_after_the_end(
    monkeypatch: pytest.MonkeyPatch, key: KeyRule, status: int, dispatches: int
) -> None:
    house = House(monkeypatch, recognised(key=key))
    await house.ask()
    again = await house.ask()
    assert (again.status, len(house.upstream.seen)) == (status, dispatches)


KEEPING = replace(NATIVE, keep=True)


def keeping(credential: bytes = b"Bearer one", **change: Any) -> Recognised:
    headers = (*HEADERS, (b"Authorization", credential))
    return replace(
        recognised(key=KEEPING), headers=headers, secret_headers=frozenset({"authorization"}), **change
    )


@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "streamed"])
async def test_p7_a_repeat_gets_the_kept_answer_and_nothing_leaves(
    monkeypatch: pytest.MonkeyPatch, chunked: bool
) -> None:
    house = House(monkeypatch, keeping())
    house.upstream.headers += ((b"Set-Cookie", b"s=1"), (b"Request-Id", b"req_1"))
    house.upstream.chunked = chunked
    first = await house.ask()
    while first.rest is not None and await first.rest.next():
        pass
    again = await house.ask()
    assert (again.status, again.reason, again.body) == (200, b"OK", house.upstream.body)
    assert (again.length, again.rest, again.bodiless) == (len(house.upstream.body), None, False)
    assert header(again, b"content-type") == b"application/json"
    assert header(again, b"request-id") == b"req_1"
    assert not [name for name, _ in again.headers if name.lower() in (b"set-cookie", b"proxy-status")]
    entry = house.ledger.last
    said = header(again, b"holdgate-decision")
    assert said.startswith(b'SILENCE;id="' + entry.receipt_id.encode() + b'";reason=already_executed;')
    assert said.endswith(b';first="' + house.ledger.entries[0].receipt_id.encode() + b'";replay')
    assert (entry.reason, entry.prior) == (Reason.ALREADY_EXECUTED, house.ledger.entries[0].receipt_id)
    assert len(house.upstream.seen) == 1
    assert [row[1] for row in house.ledger.outcomes] == [OutcomeStatus.EXECUTED]


@pytest.mark.parametrize(
    "repeat",
    [
        pytest.param(keeping(b"Bearer two"), id="another credential"),
        pytest.param(replace(keeping(), headers=HEADERS), id="no credential"),
        pytest.param(replace(keeping(), keys=(NATIVE,)), id="under a map that keeps none any more"),
        pytest.param(
            replace(keeping(), headers=(*keeping().headers, (b"Accept-Encoding", b"br"))),
            id="who reads other codings",
        ),
    ],
)
async def test_p7_who_is_not_the_first_asker_gets_the_refusal(
    monkeypatch: pytest.MonkeyPatch, repeat: Recognised
) -> None:
    house = House(monkeypatch, keeping())
    await house.ask()
    house.index.result = repeat
    again = await house.ask()
    assert (again.status, len(house.upstream.seen)) == (409, 1)
    assert house.upstream.body not in again.body
    said = header(again, b"holdgate-decision")
    assert b"reason=already_executed" in said and b"replay" not in said
    assert house.ledger.entries[0].receipt_id.encode() in again.body


async def test_p7_who_waits_with_another_credential_never_shares_a_kept_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house = House(monkeypatch, keeping())
    await house.ask()
    release = asyncio.Event()
    house.ledger.before = release.wait
    leader = asyncio.ensure_future(house.ask())
    await asyncio.sleep(0)
    house.index.result = keeping(b"Bearer two")
    follower = asyncio.ensure_future(house.ask())
    await asyncio.sleep(0)
    release.set()
    answers = await asyncio.gather(leader, follower)
    assert [answer.status for answer in answers] == [200, 409]
    assert len(house.upstream.seen) == 1 and len(house.ledger.entries) == 3


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"status": 404}, id="a 4xx"),
        pytest.param({"status": 304}, id="a 304"),
        pytest.param({"body": bytes(65_537)}, id="a large one"),
        pytest.param({"body": bytes(65_537), "chunked": True}, id="a long stream"),
    ],
)
async def test_p7_what_is_not_kept_is_status_only(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    house = House(monkeypatch, keeping())
    for name, value in change.items():
        setattr(house.upstream, name, value)
    first = await house.ask()
    while first.rest is not None and await first.rest.next():
        pass
    assert house.ledger.answers == {}


async def test_p7_a_stream_that_was_cut_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(monkeypatch, keeping())
    house.upstream.chunked = house.upstream.cut = True
    first = await house.ask()
    assert first.rest is not None
    with pytest.raises(DispatchError):
        while await first.rest.next():
            pass
    assert house.ledger.answers == {}


async def test_p7_an_edited_answer_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(monkeypatch, keeping())
    await house.ask()
    ((first, kept),) = house.ledger.answers.items()
    house.ledger.answers[first] = replace(kept, data=kept.data[:-1] + bytes([kept.data[-1] ^ 1]))
    assert (await house.ask()).status == 409


async def test_p7_an_answer_without_a_body_is_given_again_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(monkeypatch, keeping())
    house.upstream.status, house.upstream.body = 204, b""
    await house.ask()
    again = await house.ask()
    assert (again.status, again.body, again.bodiless, again.length) == (204, b"", True, None)


async def test_p7_of_a_sensitive_operation_the_receipt_stays_out_of_the_headers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house = House(monkeypatch, keeping(sensitive=True))
    await house.ask()
    again = await house.ask()
    assert again.status == 200
    assert not [name for name, _ in again.headers if name.lower() == b"holdgate-receipt"]


async def test_the_same_key_with_another_body_is_denied(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(monkeypatch, recognised(key=PROVIDER))
    await house.ask()
    house.index.result = replace(recognised(key=PROVIDER), digest="sha256:" + "cd" * 32)
    answer = await house.ask()
    assert (answer.status, len(house.upstream.seen)) == (422, 1)
    assert header(answer, b"holdgate-decision").startswith(b"DENY;")


async def test_a_refused_leader_does_not_wedge_its_followers(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(monkeypatch, recognised(key=NATIVE))
    house.ledger.broken = True
    answers = await asyncio.gather(*(house.ask() for _ in range(5)))
    assert {answer.status for answer in answers} == {503}
    assert house.pipeline.flights == {}


def raiser(error: Exception) -> Callable[[Message], CanonicalRequest]:
    def canonicalise(_message: Message) -> CanonicalRequest:
        raise error

    return canonicalise


def statement(jws: bytes) -> dict[str, Any]:
    return dict(verify(jws, key_set([SigningKey(seed=b"s" * 32).public])).statement)


async def test_a_large_body_is_read_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(monkeypatch, recognised())
    here, seen = threading.get_ident(), []

    def canonicalise(message: Message) -> CanonicalRequest:
        seen.append((len(message.body), threading.get_ident() == here))
        return REQUEST

    house.pipeline.canonicalise = canonicalise
    for size in (LARGE_BODY_BYTES, LARGE_BODY_BYTES + 1):
        await house.pipeline.handle(replace(MESSAGE, body=b"a" * size), FakeClient())
    assert seen == [(LARGE_BODY_BYTES, True), (LARGE_BODY_BYTES + 1, False)]


async def test_a_flood_of_refusals_shares_one_counted_receipt_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house = House(monkeypatch, recognised(), refusals_per_agent_s=2)
    house.pipeline.canonicalise = raiser(InputError(Reason.UNKNOWN_DESTINATION, "nowhere"))
    second = asyncio.Event()
    waited: list[float] = []

    async def pause(seconds: float) -> None:
        waited.append(seconds)
        await second.wait()

    house.pipeline.pause = pause
    asks = [asyncio.ensure_future(house.ask()) for _ in range(12)]
    async with asyncio.timeout(60):
        while not waited or sum(ask.done() for ask in asks) < 2 or house.pipeline.in_flight:
            await asyncio.sleep(0)
    assert sum(ask.done() for ask in asks) == 2, "those beyond the rate wait for their receipt"
    assert house.pipeline.in_flight == 0, "and are in nobody's way meanwhile"
    second.set()
    answers = await asyncio.gather(*asks)
    assert waited == [1.0]
    assert {answer.status for answer in answers} == {403}
    rows = [statement(entry.jws) for entry in house.ledger.entries]
    assert [row.get("count", 1) for row in rows] == [1, 1, 10]
    assert {row["reason"] for row in rows} == {"unknown_destination"}
    told = Counter(header(answer, b"holdgate-receipt") for answer in answers)
    ids = {statement(jws)["id"]: count for jws, count in told.items()}
    assert ids == {row["id"]: row.get("count", 1) for row in rows}
    assert house.upstream.seen == []


async def test_a_flood_that_cannot_be_recorded_is_answered_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house = House(monkeypatch, recognised(), refusals_per_agent_s=1)
    house.pipeline.canonicalise = raiser(InputError(Reason.UNKNOWN_DESTINATION, "nowhere"))
    house.pipeline.pause = lambda _seconds: asyncio.sleep(0)
    house.ledger.broken = True
    answers = await asyncio.gather(*(house.ask() for _ in range(5)))
    assert {answer.status for answer in answers} == {503}
    assert len(house.pipeline.floods) <= 1, "nothing stays open"


async def test_a_permit_and_a_policys_no_are_never_part_of_a_flood(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(monkeypatch, recognised(Effect.READ), refusals_per_agent_s=1)
    for outcome, reason in ((Outcome.DENY, Reason.DENY_RULE), (Outcome.PERMIT, Reason.PERMIT_RULE)):
        house.decision = Decision(outcome=outcome, reason=reason, rules=("p/r",))
        for _ in range(3):
            await house.ask()
    assert len(house.ledger.entries) == 6
    assert all("count" not in statement(entry.jws) for entry in house.ledger.entries)


async def test_more_requests_than_in_flight_are_overloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(monkeypatch, recognised(), in_flight=2)
    house.upstream.gate = asyncio.Event()
    tasks = [asyncio.ensure_future(house.ask()) for _ in range(5)]
    while len(house.upstream.seen) < 2:
        await asyncio.sleep(0)
    house.upstream.gate.set()
    statuses = sorted(answer.status for answer in await asyncio.gather(*tasks))
    assert statuses == [200, 200, 503, 503, 503]
    assert (await house.ask()).status == 200


def test_held_bytes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(monkeypatch, recognised(), held_bytes=100, body_bytes=1)
    house.pipeline.reserve(60)
    with pytest.raises(InputError) as caught:
        house.pipeline.reserve(60)
    assert caught.value.reason is Reason.OVERLOADED
    house.pipeline.reserve(-60)
    house.pipeline.reserve(60)


@pytest.mark.parametrize(
    ("vouched", "mapped", "refused"),
    [
        pytest.param(None, False, False, id="any CA: the verdict waits for the request"),
        pytest.param(True, True, False, id="a constrained CA, and a name that it covers"),
        pytest.param(True, False, True, id="covered, and in no map"),
        pytest.param(False, True, True, id="mapped, and not covered"),
    ],
)
def test_a_tunnel_to_a_name_that_agents_would_not_believe_is_refused_itself(
    house: House, vouched: bool | None, mapped: bool, refused: bool
) -> None:
    asked: list[object] = []
    house.pipeline.vouches_for = None if vouched is None else lambda host: asked.append(host) or bool(vouched)
    house.pipeline.bundle.index.is_mapped = lambda *of: asked.append(of) or mapped  # type: ignore[method-assign]
    tunnel = replace(ORIGIN, connect=("API.ok.test", 443))
    if refused:
        with pytest.raises(InputError) as caught:
            house.pipeline.greet(tunnel)
        assert caught.value.reason is Reason.UNKNOWN_DESTINATION
        assert ("unmapped", ("api.ok.test",)) in house.meter.calls
    else:
        house.pipeline.greet(tunnel)
    assert set(asked) <= {"api.ok.test", ("api.ok.test", 443, "https")}


@pytest.mark.parametrize(
    ("vouched", "sni", "reason"),
    [
        pytest.param(None, "evil.example", Reason.UNSUPPORTED_PROTOCOL, id="any CA"),
        pytest.param(False, "Evil.Example", Reason.UNKNOWN_DESTINATION, id="a name beyond a constrained CA"),
        pytest.param(True, "api.ok.test", Reason.UNSUPPORTED_PROTOCOL, id="a name that it covers"),
        pytest.param(False, None, Reason.UNSUPPORTED_PROTOCOL, id="no name at all"),
    ],
)
def test_an_agent_that_left_before_tls_is_told_from_one_that_could_not_believe_us(
    house: House, vouched: bool | None, sni: str | None, reason: Reason
) -> None:
    house.pipeline.vouches_for = None if vouched is None else lambda host: bool(vouched)
    assert house.pipeline.unheard(sni).reason is reason
    beyond = reason is Reason.UNKNOWN_DESTINATION
    assert (("unmapped", ("evil.example",)) in house.meter.calls) is beyond


async def test_bytes_that_are_no_message_get_a_receipt_and_a_closing_answer(house: House) -> None:
    answer = await house.pipeline.refuse(ORIGIN, InputError(Reason.MALFORMED_REQUEST, "x", status=408), b"GE")
    assert (answer.status, answer.close) == (408, True)
    assert house.ledger.last.reason is Reason.MALFORMED_REQUEST


async def test_he1_a_reload_in_between_changes_nothing_for_a_held_request(house: House) -> None:
    first = house.pipeline.bundle

    async def reload() -> None:
        house.pipeline.bundle = replace_digest(first)

    house.ledger.before = reload
    await house.ask()
    assert house.ledger.last.policy == first.digest
    await house.ask()
    assert house.ledger.last.policy != first.digest


def replace_digest(bundle: Any) -> Any:
    return dataclasses.replace(bundle, digest="sha256:" + "11" * 32)


async def test_he1_a_superseded_request_begins_again_under_the_active_bundle(house: House) -> None:
    second = replace_digest(house.pipeline.bundle)
    refused = fence(house, second.digest)

    async def reload() -> None:
        house.pipeline.bundle = second

    house.ledger.before = reload
    answer = await house.ask()
    assert (answer.status, house.ledger.last.policy, len(refused)) == (200, second.digest, 1)
    assert len(house.upstream.seen) == 1


async def test_he1_what_is_superseded_again_and_again_is_silence(house: House) -> None:
    refused = fence(house, "sha256:" + "99" * 32)
    answer = await house.ask()
    assert (answer.status, house.upstream.seen, len(refused)) == (403, [], 1 + RENEWALS)
    assert house.ledger.last.reason is Reason.POLICY_UNAVAILABLE


async def test_a_remote_permit_under_which_nothing_was_recorded_is_given_back(house: House) -> None:
    said: list[tuple[str, str]] = []
    house.pipeline.gatekeeper = Asked(house.decision, said)
    fence(house, "sha256:" + "99" * 32)
    assert (await house.ask()).status == 403
    assert said == [("unused", f"their-{n}") for n in range(1 + RENEWALS)]
    assert house.upstream.seen == []


class Asked:
    """A remote gate that always permits, and hears what became of that."""

    def __init__(self, decision: Decision, said: list[tuple[str, str]]) -> None:
        self.decision, self.said, self.asked = decision, said, 0

    async def decide(self, asked: Any) -> Remote:
        self.asked += 1
        return Remote(decision=self.decision, engine="remote/holdgate", id=f"their-{self.asked - 1}")

    def recorded(self, remote: Remote, receipt_id: str, outcome: Outcome) -> None:
        self.said.append(("recorded", remote.id))

    def unused(self, remote: Remote) -> None:
        self.said.append(("unused", remote.id))


def fence(house: House, digest: str) -> list[str]:
    """The store takes no PERMIT of another bundle any more; returns those that it refused."""
    refused: list[str] = []
    really = house.ledger.record

    class Fenced:
        def __init__(self, judge: Any) -> None:
            self._judge, self.keys, self.meters = judge, judge.keys, judge.meters

        def __call__(self, *args: Any, **named: Any) -> Any:
            entry = self._judge(*args, **named)
            if entry.outcome is Outcome.PERMIT and entry.policy != digest:
                refused.append(entry.policy)
                raise Superseded
            return entry

    async def record(judge: Any) -> Any:
        return await really(Fenced(judge))

    house.ledger.record = record  # type: ignore[method-assign]
    return refused


# --- a ledger that is asked by several processes ---


async def test_p5_a_request_that_another_process_holds_shares_its_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house = House(monkeypatch, recognised(key=NATIVE))
    elsewhere = Answer(
        status=201, reason=b"Created", headers=(), body=b"x", rest=None, length=1, bodiless=False, close=False
    )

    async def record(judge: Any) -> Any:
        raise Converged(elsewhere)

    house.pipeline.ledger = SimpleNamespace(record=record)  # type: ignore[assignment]
    assert await house.ask() is elsewhere
    assert house.upstream.seen == []
    assert house.pipeline.flights == {}


@pytest.mark.parametrize(("waiting", "reason"), [(True, b"in_flight"), (False, b"gate_timeout")])
async def test_p3_who_waits_for_another_process_until_the_deadline_is_told_so(
    monkeypatch: pytest.MonkeyPatch, waiting: bool, reason: bytes
) -> None:
    house = House(monkeypatch, recognised(key=NATIVE), hold_s=0.02)

    class Waiting(Adjudication):
        @property
        def waiting(self) -> bool:
            return waiting

    memory = house.ledger
    calls: list[Any] = []

    async def record(judge: Any) -> Any:
        calls.append(judge)
        if len(calls) == 1:
            await asyncio.sleep(3600)
        return await memory.record(judge)

    house.pipeline.judge = Waiting
    house.pipeline.ledger = SimpleNamespace(record=record)  # type: ignore[assignment]
    answer = await house.ask()
    assert b"reason=" + reason in header(answer, b"holdgate-decision")
    assert house.upstream.seen == []


# --- P6: the first of them is at another node ---


ELSEWHERE = Answer(
    status=201, reason=b"Created", headers=(), body=b"x", rest=None, length=1, bodiless=False, close=False
)


class Away:
    """A ledger whose first records find an identical request in flight at another node."""

    def __init__(self, house: House, times: int) -> None:
        self._ledger, self._left, self.asked = house.ledger, times, list[str]()
        house.pipeline.ledger = self  # type: ignore[assignment]

    async def record(self, judge: Any) -> Any:
        if self._left:
            self._left -= 1
            raise InFlightElsewhere(f"rcpt_{self._left}")
        return await self._ledger.record(judge)

    def record_outcome(self, *words: Any, **more: Any) -> None:
        self._ledger.record_outcome(*words, **more)


async def test_p6_the_answer_of_a_request_at_another_node_is_shared_by_all_who_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house = House(monkeypatch, recognised(key=NATIVE))
    away, ended = Away(house, 1), asyncio.Event()

    async def first(receipt_id: str) -> Answer | None:
        away.asked.append(receipt_id)
        await ended.wait()
        return ELSEWHERE

    house.pipeline.first = first
    tasks = [asyncio.ensure_future(house.ask()) for _ in range(5)]
    while not away.asked:
        await asyncio.sleep(0)
    ended.set()
    assert await asyncio.gather(*tasks) == [ELSEWHERE] * 5
    assert (away.asked, house.upstream.seen, house.ledger.entries) == (["rcpt_0"], [], [])
    assert house.pipeline.flights == {}


async def test_p6_without_an_answer_to_share_it_is_decided_again(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(monkeypatch, recognised(key=NATIVE))
    away = Away(house, 2)

    async def first(receipt_id: str) -> Answer | None:
        away.asked.append(receipt_id)
        return None

    house.pipeline.first = first
    assert (await house.ask()).status == 200
    assert (away.asked, len(house.upstream.seen)) == (["rcpt_1", "rcpt_0"], 1)


@pytest.mark.parametrize("waits", [True, False], ids=["to its deadline", "not at all"])
async def test_p6_who_waits_in_vain_hears_in_flight(monkeypatch: pytest.MonkeyPatch, waits: bool) -> None:
    house = House(monkeypatch, recognised(key=NATIVE), hold_s=0.05)
    Away(house, 1)

    async def first(receipt_id: str) -> Answer | None:
        await asyncio.Event().wait()
        return None

    house.pipeline.first = first if waits else None
    answer = await house.ask()
    assert (answer.status, house.upstream.seen, house.pipeline.flights) == (409, [], {})
    assert b"reason=in_flight" in header(answer, b"holdgate-decision")


async def test_p6_a_store_that_ends_meanwhile_is_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(monkeypatch, recognised(key=NATIVE))
    Away(house, 1)

    async def first(receipt_id: str) -> Answer | None:
        raise BackendError(Reason.STORE_UNAVAILABLE, "the ledger is closed")

    house.pipeline.first = first
    answer = await house.ask()
    assert (answer.status, house.upstream.seen, house.pipeline.flights) == (503, [], {})


async def test_p6_a_keyed_answer_is_offered_to_other_nodes_before_its_outcome(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house = House(monkeypatch, recognised(key=NATIVE))
    offered: list[tuple[str, Answer, int]] = []
    house.pipeline.offer = lambda receipt, answer: offered.append(
        (receipt, answer, len(house.ledger.outcomes))
    )
    answer = await house.ask()
    assert offered == [(house.ledger.last.receipt_id, answer, 0)]
    house.index.result = recognised()  # without a key nobody else can be waiting
    await house.ask()
    assert len(offered) == 1


# --- the hold deadline of many ---


async def _held(holds: Holds, work: Callable[[], Awaitable[None]]) -> str:
    try:
        async with asyncio.timeout(None) as deadline:
            holds.begin(deadline)
            try:
                await work()
            finally:
                holds.end(deadline)
    except TimeoutError:
        return "deadline"
    except ValueError:
        return "raised"
    return "done"


async def _at_once() -> None: ...


async def _raises() -> None:
    raise ValueError


async def test_p8_a_hold_deadline_comes_whatever_others_do() -> None:
    holds, loop = Holds(0.25), asyncio.get_running_loop()
    began = loop.time()
    works = [_at_once, _hang, _raises, _hang, _at_once, _hang]
    tasks = [asyncio.create_task(_held(holds, work)) for work in works]
    left = asyncio.create_task(_held(holds, _hang))
    await asyncio.wait(tasks, timeout=60, return_when=asyncio.FIRST_COMPLETED)
    left.cancel()
    assert await asyncio.wait_for(asyncio.gather(*tasks), 60) == [
        "done",
        "deadline",
        "raised",
        "deadline",
        "done",
        "deadline",
    ]
    assert 0.25 <= loop.time() - began < 5
    with pytest.raises(asyncio.CancelledError):  # cancelled is not overdue
        await left
    assert await asyncio.wait_for(_held(holds, _hang), 60) == "deadline", (
        "one that begins when no other is held"
    )
    holds = Holds(0.05)
    assert await _held(holds, _at_once) == "done"
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.02):
            await _hang()
    began = loop.time()
    assert await asyncio.wait_for(_held(holds, _hang), 60) == "deadline", (
        "one that is not over when it is asked"
    )
    assert loop.time() - began >= 0.05
    nested = _held(holds, lambda: _and_then(holds))
    assert await asyncio.wait_for(nested, 60) == "deadline", "and one that began before another"


async def _and_then(holds: Holds) -> None:
    await _held(holds, _hang)
    await _hang()


def test_p8_a_hold_deadline_comes_in_another_event_loop() -> None:
    holds = Holds(0.05)
    assert asyncio.run(_held(holds, _at_once)) == "done"
    assert asyncio.run(asyncio.wait_for(_held(holds, _hang), 60)) == "deadline"
