"""adapters/worker_door.py: what a worker asks is judged and recorded here as in one process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from holdgate import gate
from holdgate.adapters import worker_door
from holdgate.adapters.gate_line import PLACE, Petition
from holdgate.answer import Answer
from holdgate.errors import BackendError, Outcome, Reason
from holdgate.ledger import Finding, InFlightElsewhere, OutcomeStatus, ReconcileError, Superseded
from holdgate.recall import MAX_KEPT_BYTES
from holdgate.relay import Converged, Flight
from holdgate.sealing import KeptAnswer
from holdgate.worker_protocol import FrameReader, Kind, WireError, encode, plain_case
from test_adjudicate import BUNDLE, PERMIT, case
from workers import Gate, keyed, petition, running, until, worker

OTHER = replace(BUNDLE, digest="sha256:" + "77" * 32)
ANSWER = Answer(
    status=200, reason=b"OK", headers=(), body=b"done", rest=None, length=4, bodiless=False, close=False
)


@pytest.fixture(autouse=True)
def permits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "decide", lambda policies, inputs: PERMIT)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[Gate]:
    async with running(tmp_path) as made:
        yield made


class Raw:
    """A worker that says whatever a test wants."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer, self.frames = reader, writer, FrameReader()

    @classmethod
    async def connect(cls, house: Gate, role: str = "worker-9") -> Raw:
        raw = cls(*await asyncio.open_unix_connection(house.folder / PLACE))
        if role:
            raw.writer.write(encode(Kind.HELLO, build="0.1.0", role=role))
            assert (await raw.next()).kind is Kind.WELCOME
        return raw

    async def next(self) -> Any:
        async with asyncio.timeout(60):
            while True:
                data = await self.reader.read(65_536)
                if not data:
                    return None
                if found := self.frames.feed(data):
                    return found[0]

    async def ended(self) -> bool:
        try:
            return await self.next() is None
        except ConnectionError:
            return True

    def ask(self, given: Any, n: int = 1) -> None:
        self.writer.write(encode(Kind.ASK, n=n, bundle=BUNDLE.digest, case=plain_case(given), told=[]))


# --- WD1 ---


async def test_wd1_a_permit_is_told_when_it_is_durable(house: Gate) -> None:
    async with worker(house.folder) as one:
        recorded = await one.record(keyed(1))
        assert (recorded.entry.outcome, recorded.durable) == (Outcome.PERMIT, True)
        assert house.statements()[recorded.index]["id"] == recorded.entry.receipt_id
        one.line.record_outcome(recorded.entry.receipt_id, OutcomeStatus.EXECUTED, 200, delivered=True)
        await until(lambda: house.said() == [("decision", "PERMIT"), ("outcome", "executed")])


async def test_wd1_what_was_recognised_under_another_bundle_is_sent_back(house: Gate) -> None:
    raw = await Raw.connect(house)
    house.pipeline.bundle = OTHER
    raw.ask(keyed(1))
    assert (await raw.next()).kind is Kind.SUPERSEDED
    assert house.said() == []


async def test_wd1_a_refusal_names_the_bundle_under_which_it_was_refused(house: Gate) -> None:
    async with worker(house.folder) as one:
        house.pipeline.bundle = OTHER
        house.door.announce()
        recorded = await one.record(replace(keyed(1), refusal=Reason.UNKNOWN_PARAMETER))
        assert (recorded.entry.reason, recorded.entry.policy) == (Reason.UNKNOWN_PARAMETER, BUNDLE.digest)


async def test_wd1_a_broken_store_is_store_unavailable(house: Gate) -> None:
    async with worker(house.folder) as one:
        house.ledger._log_failed("broken by the test")
        with pytest.raises(BackendError) as caught:
            await one.record(keyed(1))
        assert caught.value.reason is Reason.STORE_UNAVAILABLE


async def test_wd1_a_judge_that_raises_fails_its_own_question(
    house: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decide(policies: Any, inputs: Any) -> Any:
        raise ValueError("a bug")

    async with worker(house.folder) as one:
        with monkeypatch.context() as broken:
            broken.setattr(gate, "decide", decide)
            with pytest.raises(BackendError) as caught:
                await one.record(keyed(1))
        assert caught.value.reason is Reason.INTERNAL_ERROR
        assert (await one.record(keyed(2))).entry.outcome is Outcome.PERMIT


# --- WD2, WD3 ---


async def test_wd2_the_end_of_a_worker_makes_its_permits_unknown_at_once(house: Gate) -> None:
    async with worker(house.folder) as one:
        recorded = await one.record(keyed(1))
    await until(lambda: house.said() == [("decision", "PERMIT"), ("outcome", "unknown")])
    assert house.statements()[1]["of"] == recorded.entry.receipt_id
    assert house.door.connected == ()


async def test_wd2_what_it_waited_for_is_not_sent(house: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    held = asyncio.Event()
    record = house.ledger.record

    async def slow(judge: Any) -> Any:
        recorded = await record(judge)  # it is durable, and its worker does not know
        held.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            house.ledger._abandon(recorded)  # what SqliteLedger does when the two meet
            raise

    monkeypatch.setattr(house.ledger, "record", slow)
    raw = await Raw.connect(house)
    raw.ask(keyed(1))
    await held.wait()
    raw.writer.close()
    await until(lambda: house.said() == [("decision", "PERMIT"), ("outcome", "not_sent")])


async def test_wd2_other_workers_go_on(house: Gate) -> None:
    async with worker(house.folder, "worker-2") as two:
        async with worker(house.folder, "worker-1") as one:
            await one.record(keyed(1))
        await until(lambda: len(house.said()) == 2)
        assert (await two.record(keyed(2))).entry.outcome is Outcome.PERMIT
        assert [role for role, _ in house.door.connected] == ["worker-2"]
        assert house.door.connected[0][1] == os.getpid()


async def test_wd3_a_withdrawn_question_that_was_permitted_is_not_sent(house: Gate) -> None:
    raw = await Raw.connect(house)
    raw.ask(keyed(1))
    assert (await raw.next()).kind is Kind.RECORDED
    raw.writer.write(encode(Kind.WITHDRAW, n=1))
    await until(lambda: house.said() == [("decision", "PERMIT"), ("outcome", "not_sent")])
    raw.writer.write(encode(Kind.WITHDRAW, n=1) + encode(Kind.WITHDRAW, n=5))
    raw.ask(keyed(1), n=2)
    assert (await raw.next()).kind is Kind.RECORDED  # the key is free again, and nothing was settled twice
    assert house.said()[2:] == [("decision", "PERMIT")]
    raw.writer.close()
    await until(lambda: house.said()[2:] == [("decision", "PERMIT"), ("outcome", "unknown")])


async def test_wd3_a_withdrawn_question_that_still_waited_is_not_decided(house: Gate) -> None:
    async with worker(house.folder, "worker-1") as one, worker(house.folder, "worker-2") as two:
        await one.record(keyed(1))
        asked = petition(keyed(1))
        waits = asyncio.ensure_future(two.line.record(asked))
        await until(lambda: asked.waiting)
        waits.cancel()
        await until(lambda: not any(line.asks for line in house.door._lines))
        one.line.flight_ended(name_of(keyed(1)), ended(None))
        await until(lambda: not house.door._flights)
        assert (await two.record(keyed(2))).entry.outcome is Outcome.PERMIT
        assert house.said() == [("decision", "PERMIT")] * 2


async def test_wd3_a_permit_that_cannot_be_told_is_not_sent(
    house: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_form(kind: Kind, tail: bytes = b"", **head: Any) -> bytes:
        if kind is Kind.RECORDED:
            raise WireError("recorded: too large")
        return encode(kind, tail, **head)

    async with worker(house.folder) as one:
        with monkeypatch.context() as broken:
            broken.setattr(worker_door, "encode", no_form)
            with pytest.raises(BackendError) as caught:
                await one.record(keyed(1))
        assert caught.value.reason is Reason.INTERNAL_ERROR  # without a PERMIT, nothing is sent
        await until(lambda: house.said() == [("decision", "PERMIT"), ("outcome", "not_sent")])
        assert (await one.record(keyed(1))).entry.outcome is Outcome.PERMIT  # the key is free again
    await until(lambda: house.said()[2:] == [("decision", "PERMIT"), ("outcome", "unknown")])


# --- WD4 ---


def flight(one: Any) -> Flight:
    return Flight("", asyncio.get_running_loop().create_future())


def name_of(given: Any) -> str:
    from holdgate.case import flight_name

    return flight_name(given.agent, given.request.destination, given.recognised)


def ended(answer: Answer | None) -> asyncio.Future[Any]:
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    future.set_result(answer)
    return future


async def test_wd4_identical_requests_of_two_workers_share_one_answer(house: Gate) -> None:
    async with worker(house.folder, "worker-1") as one, worker(house.folder, "worker-2") as two:
        first = await one.record(keyed(1))
        asked = petition(keyed(1))
        waits = asyncio.ensure_future(two.line.record(asked))
        await until(lambda: asked.waiting)
        assert len(house.said()) == 1
        one.line.record_outcome(first.entry.receipt_id, OutcomeStatus.EXECUTED, 200, delivered=True)
        one.line.flight_ended(name_of(keyed(1)), ended(ANSWER))
        with pytest.raises(Converged) as shared:
            await waits
        assert shared.value.answer == ANSWER
        assert [what for what, _ in house.said()].count("decision") == 1


async def test_wd4_who_gives_up_waiting_takes_the_answer_from_nobody(house: Gate) -> None:
    async with (
        worker(house.folder, "worker-1") as one,
        worker(house.folder, "worker-2") as two,
        worker(house.folder, "worker-3") as three,
    ):
        await one.record(keyed(1))
        asked = [petition(keyed(1)) for _ in range(2)]
        gives_up = asyncio.ensure_future(two.line.record(asked[0]))
        waits = asyncio.ensure_future(three.line.record(asked[1]))
        await until(lambda: all(each.waiting for each in asked))
        gives_up.cancel()
        await until(lambda: sum(len(line.asks) for line in house.door._lines) == 1)
        one.line.flight_ended(name_of(keyed(1)), ended(ANSWER))
        with pytest.raises(Converged) as shared:
            await asyncio.wait_for(waits, 60)
        assert shared.value.answer == ANSWER


async def test_wd4_without_an_answer_to_share_it_asks_for_itself(house: Gate) -> None:
    async with worker(house.folder, "worker-1") as one, worker(house.folder, "worker-2") as two:
        first = await one.record(keyed(1))
        waits = asyncio.ensure_future(two.record(keyed(1)))
        await until(lambda: house.door._flights)
        one.line.record_outcome(first.entry.receipt_id, OutcomeStatus.EXECUTED, 200, delivered=True)
        one.line.flight_ended(name_of(keyed(1)), ended(None))
        told = await waits
        assert (told.entry.reason, told.entry.prior) == (Reason.ALREADY_EXECUTED, first.entry.receipt_id)
        assert told.entry.prior_status == 200


async def test_wd4_the_death_of_the_first_is_no_answer_and_frees_nothing(house: Gate) -> None:
    async with worker(house.folder, "worker-2") as two:
        async with worker(house.folder, "worker-1") as one:
            await one.record(keyed(1))
            waits = asyncio.ensure_future(two.record(keyed(1)))
            await until(lambda: house.door._flights)
        assert (await waits).entry.reason is Reason.OUTCOME_UNKNOWN


async def test_wd4_only_who_holds_a_flight_ends_it(house: Gate) -> None:
    async with worker(house.folder, "worker-1") as one, worker(house.folder, "worker-2") as two:
        await one.record(keyed(1))
        two.line.flight_ended(name_of(keyed(1)), ended(ANSWER))
        assert (await two.record(keyed(2))).entry.outcome is Outcome.PERMIT  # it was heard before this
        assert name_of(keyed(1)) in house.door._flights


async def test_wd4_another_key_does_not_wait(house: Gate) -> None:
    async with worker(house.folder, "worker-1") as one, worker(house.folder, "worker-2") as two:
        await one.record(keyed(1))
        assert (await two.record(keyed(2))).entry.outcome is Outcome.PERMIT


async def test_wd4_an_identical_request_at_another_node_is_waited_for(
    house: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended, record = asyncio.Event(), house.ledger.record
    answers = [ANSWER, None]

    async def elsewhere(judge: Any) -> Any:
        if ended.is_set():
            return await record(judge)
        raise InFlightElsewhere("rcpt_of_another_node")

    async def first(receipt_id: str) -> Answer | None:
        await ended.wait()
        return answers.pop(0) if receipt_id == "rcpt_of_another_node" else None

    monkeypatch.setattr(house.ledger, "record", elsewhere)
    monkeypatch.setattr(house.ledger, "first", first)
    async with worker(house.folder) as one:
        asked, other = petition(keyed(1)), petition(keyed(2))
        waits = [asyncio.ensure_future(one.line.record(each)) for each in (asked, other)]
        await until(lambda: asked.waiting and other.waiting)
        ended.set()
        with pytest.raises(Converged) as shared:
            await waits[0]
        assert shared.value.answer == ANSWER
        assert (await waits[1]).entry.outcome is Outcome.PERMIT  # that one shared nothing


async def test_wd4_a_worker_offers_the_answers_to_its_own_permits_only(
    house: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered: list[tuple[str, Answer]] = []
    monkeypatch.setattr(house.ledger, "offer", lambda *words: offered.append(words))
    async with worker(house.folder, "worker-1") as one, worker(house.folder, "worker-2") as two:
        first = (await one.record(keyed(1))).entry.receipt_id
        two.line.offer(first, ANSWER)
        await two.record(keyed(2))  # it was heard before this
        assert offered == []
        one.line.offer(first, ANSWER)
        one.line.record_outcome(first, OutcomeStatus.EXECUTED, 200, delivered=True)
        await until(lambda: ("outcome", "executed") in house.said())
        assert offered == [(first, ANSWER)]


# --- WD5 ---


async def test_wd5_an_outcome_that_comes_after_all_reconciles(tmp_path: Path) -> None:
    async with worker(tmp_path, wait=False) as one:
        async with running(tmp_path):
            await one.line.adopted.wait()
            recorded = await one.record(keyed(1))
            kept = recorded.entry.receipt_id
        one.line.record_outcome(kept, OutcomeStatus.EXECUTED, 200, delivered=True)  # nobody hears this
        async with running(tmp_path) as again:
            wanted = [("decision", "PERMIT"), ("outcome", "unknown"), ("outcome", "reconciled")]
            await until(lambda: again.said() == wanted)
            assert again.statements()[2]["found"] == "executed"
            assert again.statements()[2]["by"] == "worker-1"


async def test_wd7_nobody_finds_out_that_nothing_happened_while_a_worker_still_has_the_permit(
    tmp_path: Path,
) -> None:
    """The gate process was restarted, and the exchange of a worker that was not goes on."""
    async with worker(tmp_path, wait=False) as one:
        async with running(tmp_path):
            await one.line.adopted.wait()
            kept = (await one.record(keyed(1))).entry.receipt_id
            done = (await one.record(keyed(2))).entry.receipt_id
            one.line.record_outcome(done, OutcomeStatus.NOT_SENT, 0, delivered=False)
        async with running(tmp_path) as again:
            await until(lambda: any(line.has for line in again.door._lines))
            assert [line.has for line in again.door._lines if line.has] == [{kept}]
            for found in (OutcomeStatus.NOT_SENT, OutcomeStatus.FAILED):
                with pytest.raises(ReconcileError, match="worker-1 still has"):
                    again.door.check(Finding(of=kept, found=found, by="local", note=""))
            again.door.check(Finding(of=kept, found=OutcomeStatus.EXECUTED, by="local", note=""))
            one.line.record_outcome(kept, OutcomeStatus.UNKNOWN, 502, delivered=True)
            await until(lambda: not any(line.has for line in again.door._lines))
            again.door.check(Finding(of=kept, found=OutcomeStatus.NOT_SENT, by="local", note=""))


@pytest.mark.parametrize("status", [OutcomeStatus.EXECUTED, OutcomeStatus.NOT_SENT, OutcomeStatus.UNKNOWN])
async def test_wd5_an_outcome_of_anything_else_changes_nothing(house: Gate, status: OutcomeStatus) -> None:
    async with worker(house.folder, "worker-1") as one, worker(house.folder, "worker-2") as two:
        recorded = await one.record(keyed(1))
        # Of another worker's permit, and of none at all.
        two.line.record_outcome(recorded.entry.receipt_id, status, 200, delivered=True)
        two.line.record_outcome("rcpt_none", status, 200, delivered=True)
        await two.record(keyed(2))
        await asyncio.gather(*house.door._work)
        assert ("outcome", status.value) not in house.said()
        assert ("outcome", "reconciled") not in house.said()


# --- WD6 ---


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(b"\xff" * 8, id="no frame"),
        pytest.param(encode(Kind.WITHDRAW, n=1), id="no hello first"),
        pytest.param(encode(Kind.HELLO, build="0.1.0", role="gate"), id="no worker"),
        pytest.param(encode(Kind.HELLO, build="9.9.9", role="worker-1"), id="another version"),
    ],
)
async def test_wd6_who_does_not_say_hello_is_cut(house: Gate, said: bytes) -> None:
    raw = await Raw.connect(house, role="")
    raw.writer.write(said)
    assert await raw.ended()
    assert house.door.connected == ()


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(encode(Kind.WAITING, n=1), id="for the gate to say"),
        pytest.param(encode(Kind.ASK, n=1, bundle="b", case={}, told=[]), id="no case"),
        pytest.param(encode(Kind.ASK, n=0, bundle="b", case=plain_case(case()), told=[]), id="no number"),
        pytest.param(
            encode(
                Kind.ASK,
                n=1,
                bundle="b",
                case=plain_case(case()),
                told=["remote/authzen", "PERMIT", "permit_rule", []],
            ),
            id="decided by a gate that is not configured",
        ),
        pytest.param(encode(Kind.FIGURES, figures={"decisions": 1}), id="no figures"),
        pytest.param(
            encode(Kind.OUTCOME, id="r", status="maybe", http_status=1, delivered=True, made=[]),
            id="no outcome",
        ),
    ],
)
async def test_wd6_what_is_not_as_agreed_ends_that_connection_and_nothing_else(
    house: Gate, said: bytes
) -> None:
    async with worker(house.folder) as one:
        raw = await Raw.connect(house)
        raw.writer.write(said)
        assert await raw.ended()
        assert (await one.record(keyed(1))).entry.outcome is Outcome.PERMIT
        assert len([each for each in house.said() if each[0] == "decision"]) == 1


async def test_wd6_where_another_gate_decides_nothing_is_decided_without_it(tmp_path: Path) -> None:
    async with running(tmp_path, engine="remote/authzen") as house:
        raw = await Raw.connect(house)
        raw.ask(keyed(1))
        assert await raw.ended()
        assert house.said() == []
        async with worker(tmp_path) as one:
            asked = Petition(keyed(2), BUNDLE, None, lambda *_: PERMIT, "remote/authzen")  # type: ignore[arg-type]
            recorded = await one.line.record(asked)
            assert house.statements()[recorded.index]["engine"] == "remote/authzen"


async def test_wd6_a_peer_of_another_user_is_cut(house: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_door, "peer_of", lambda sock: (1, os.geteuid() + 1))
    raw = await Raw.connect(house, role="")
    raw.writer.write(encode(Kind.HELLO, build="0.1.0", role="worker-1"))
    assert await raw.ended()


async def test_wd6_a_number_is_asked_once(house: Gate) -> None:
    raw = await Raw.connect(house)
    raw.ask(keyed(1))
    assert (await raw.next()).kind is Kind.RECORDED
    raw.ask(keyed(2))
    assert await raw.ended()
    await until(lambda: house.said() == [("decision", "PERMIT"), ("outcome", "unknown")])


# --- the bundle, and who is there ---


async def test_a_worker_is_told_the_bundle_and_accepts_under_it(house: Gate) -> None:
    async with worker(house.folder) as one:
        assert one.adopted == [(BUNDLE.digest, "ca-1")]
        assert house.door.gap() == "no worker accepts requests"
        one.line.accept()
        await until(lambda: house.door.gap() == "")
        house.pipeline.bundle, house.door.ca = OTHER, "ca-2"
        house.door.announce()
        await until(lambda: one.adopted[1:] == [(OTHER.digest, "ca-2")])
        await until(lambda: house.door.gap() == "")


async def test_an_activation_can_wait_until_every_worker_has_the_bundle(house: Gate) -> None:
    async with worker(house.folder) as one:
        one.line.accept()
        await until(lambda: house.door.accepting == 1)
        loading = asyncio.Event()

        async def adopt(bundle: str, ca: str) -> None:
            await loading.wait()

        one.line.adopt = adopt
        house.pipeline.bundle = OTHER
        house.door.announce()
        assert not await house.door.caught_up(0.05)
        loading.set()
        assert await house.door.caught_up(20)
        assert house.door.accepting == 1


async def test_a_request_of_the_old_bundle_begins_again_when_the_worker_has_the_new_one(house: Gate) -> None:
    async with worker(house.folder) as one:
        house.pipeline.bundle = OTHER
        house.door.announce()
        with pytest.raises(Superseded):
            await one.record(keyed(1))
        assert one.line.bundle == OTHER.digest
        assert (await one.record(keyed(1), OTHER)).entry.policy == OTHER.digest


async def test_figures_of_workers_are_added_and_outlive_them(house: Gate) -> None:
    async with worker(house.folder) as one:
        from holdgate.adapters.metrics import Metrics

        counted = Metrics()
        counted.decision("payments.refund", "PERMIT", "permit_rule")
        counted.barrier("server_connect")
        one.line.report(counted.figures())
        await until(lambda: house.door.metrics.barrier_trips == 1)
    await until(lambda: house.door.connected == ())
    assert house.door.metrics.barrier_trips == 1
    assert b'reason="permit_rule",surface="payments.refund"} 1.0' in house.door.metrics.render()


# --- kept answers ---


async def test_wd4_an_answer_that_one_worker_had_kept_is_told_to_another(house: Gate) -> None:
    kept = KeptAnswer(key=b"k" * 32, data=bytes(MAX_KEPT_BYTES))
    given = keyed(1)
    assert given.recognised is not None
    keeping = replace(given.recognised, keys=(replace(given.recognised.keys[0], keep=True),))
    given = replace(given, recognised=keeping)
    async with worker(house.folder) as one, worker(house.folder, role="worker-2") as two:
        first = await one.record(given)
        one.line.record_outcome(
            first.entry.receipt_id, OutcomeStatus.EXECUTED, 200, delivered=True, kept=kept
        )
        await until(lambda: house.said() == [("decision", "PERMIT"), ("outcome", "executed")])
        one.line.flight_ended(name_of(given), ended(None))
        again = await asyncio.wait_for(two.record(given), 60)
        assert (again.answer, again.entry.prior) == (kept, first.entry.receipt_id)
        assert again.entry.reason is Reason.ALREADY_EXECUTED
        assert (await one.record(keyed(2))).answer is None
