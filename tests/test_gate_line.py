"""adapters/gate_line.py: what a worker believes of what calls itself its gate process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fakes import MemoryLedger
from holdgate import gate
from holdgate.adapters import gate_line
from holdgate.adapters.gate_line import PLACE
from holdgate.adjudicate import Adjudication
from holdgate.errors import BackendError, ConfigError, Outcome, Reason
from holdgate.ledger import OutcomeStatus, Superseded
from holdgate.sealing import KeptAnswer
from holdgate.worker_protocol import Frame, FrameReader, Kind, encode, read_outcome
from test_adjudicate import BUNDLE, EVIDENCE, PERMIT, case
from workers import keyed, petition, until, worker

WELCOME = encode(Kind.WELCOME, bundle=BUNDLE.digest, ca="ca-1")


@dataclass
class Scripted:
    """A gate process that answers each frame as a test says."""

    answer: Callable[[Frame], Awaitable[bytes | None]]
    heard: list[Frame] = field(default_factory=list)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        frames = FrameReader()
        self.writers.append(writer)
        while data := await reader.read(65_536):
            for frame in frames.feed(data):
                self.heard.append(frame)
                if frame.kind is Kind.HELLO:
                    writer.write(WELCOME)
                elif (said := await self.answer(frame)) is not None:
                    writer.write(said)
                else:
                    writer.close()
                    return

    def of(self, kind: Kind) -> list[Frame]:
        return [frame for frame in self.heard if frame.kind is kind]


@asynccontextmanager
async def scripted(
    folder: Path, answer: Callable[[Frame], Awaitable[bytes | None]]
) -> AsyncIterator[Scripted]:
    (folder / "run").mkdir(exist_ok=True)
    (folder / PLACE).unlink(missing_ok=True)
    made = Scripted(answer)
    server = await asyncio.start_unix_server(made.serve, folder / PLACE)
    try:
        yield made
    finally:
        server.close()
        for writer in made.writers:
            writer.close()


async def says_nothing(frame: Frame) -> bytes | None:
    return b""


async def hangs_up(frame: Frame) -> bytes | None:
    return None


def permit_of(number: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[Frame], Awaitable[bytes]]:
    """Answers every question with the PERMIT of the case of this number."""
    monkeypatch.setattr(gate, "decide", lambda policies, inputs: PERMIT)

    async def answer(frame: Frame) -> bytes:
        made = await MemoryLedger().record(Adjudication(keyed(number), BUNDLE, EVIDENCE))
        return recorded(made.entry.jws, frame.head["n"])

    return answer


def recorded(jws: bytes, n: int) -> bytes:
    return encode(
        *(Kind.RECORDED, jws),
        **{"n": n, "index": 0, "prior": "", "prior_status": 0, "would": "", "produces": False},
        **{"worth": "new", "answer": 0},
    )


async def refused(asked: Awaitable[Any]) -> Reason:
    with pytest.raises(BackendError) as caught:
        await asyncio.wait_for(asked, 60)
    return caught.value.reason


# --- GL1 ---


async def test_gl1_without_a_gate_everything_is_refused(tmp_path: Path) -> None:
    async with worker(tmp_path, wait=False) as one:
        assert await refused(one.record(keyed(1))) is Reason.STORE_UNAVAILABLE


async def test_gl1_a_connection_that_ends_before_the_answer_is_a_refusal_and_it_heals(tmp_path: Path) -> None:
    async with scripted(tmp_path, hangs_up):
        async with worker(tmp_path) as one:
            assert await refused(one.record(keyed(1))) is Reason.STORE_UNAVAILABLE
            await until(lambda: len(one.adopted) >= 2)  # it is welcomed again


async def test_gl1_only_a_petition_is_asked(tmp_path: Path) -> None:
    async with scripted(tmp_path, says_nothing) as house, worker(tmp_path) as one:
        judge = Adjudication(keyed(1), BUNDLE, EVIDENCE)
        assert await refused(one.line.record(judge)) is Reason.INTERNAL_ERROR
        assert house.of(Kind.ASK) == []


def test_gl1_a_petition_judges_nothing() -> None:
    with pytest.raises(BackendError):
        petition(keyed(1))({}, now_us=1, receipt_id="rcpt_1")


# --- GL2 ---


async def test_gl2_a_permit_of_exactly_this_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scripted(tmp_path, permit_of(1, monkeypatch)), worker(tmp_path) as one:
        assert (await one.record(keyed(1))).entry.outcome is Outcome.PERMIT


async def test_gl2_a_permit_of_another_request_ends_the_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scripted(tmp_path, permit_of(1, monkeypatch)), worker(tmp_path) as one:
        assert await refused(one.record(keyed(2))) is Reason.STORE_UNAVAILABLE
        await until(lambda: len(one.adopted) >= 2)


WRONG: dict[str, bytes] = {
    "no frame": b"\x00" * 8,
    "a frame beyond the bounds": b"\xff" * 8,
    "a question": encode(Kind.WITHDRAW, n=1),
    "a number that nobody asked": encode(Kind.SUPERSEDED, n=2),
    "no number": encode(Kind.SUPERSEDED, n=0),
    "a receipt that is none": recorded(b"a.b.c", 1),
    "converged on nothing": encode(Kind.CONVERGED, n=1, answer={}),
    "converged on half an answer": encode(Kind.CONVERGED, n=1, answer={"status": 200}),
    "no known reason": encode(Kind.REFUSED, n=1, reason="because", detail=""),
}


@pytest.mark.parametrize("name", WRONG)
async def test_gl2_whatever_is_not_as_agreed_ends_the_connection(tmp_path: Path, name: str) -> None:
    async def answer(frame: Frame) -> bytes | None:
        return WRONG[name] if frame.kind is Kind.ASK else b""

    async with scripted(tmp_path, answer), worker(tmp_path) as one:
        assert await refused(one.record(keyed(1))) is Reason.STORE_UNAVAILABLE


async def test_gl2_an_answer_that_is_cut_is_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    permit = permit_of(1, monkeypatch)
    house: Scripted | None = None

    async def answer(frame: Frame) -> bytes | None:
        whole = await permit(frame)
        assert house is not None
        house.writers[-1].write(whole[:-1])
        return None

    async with scripted(tmp_path, answer) as made, worker(tmp_path) as one:
        house = made
        assert await refused(one.record(keyed(1))) is Reason.STORE_UNAVAILABLE


async def test_gl2_a_late_answer_is_not_an_answer_to_the_next_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    permit, late = permit_of(1, monkeypatch), []

    async def answer(frame: Frame) -> bytes | None:
        if frame.kind is not Kind.ASK:
            return b""
        late.append(await permit(frame))
        return late[0] if len(late) == 2 else b""

    async with scripted(tmp_path, answer), worker(tmp_path) as one:
        given_up = asyncio.ensure_future(one.record(keyed(1)))
        await until(lambda: late)
        given_up.cancel()
        waits = asyncio.ensure_future(one.record(keyed(1)))
        await until(lambda: len(late) == 2)
        await asyncio.sleep(0.02)
        assert not waits.done()
        waits.cancel()


@pytest.mark.parametrize("first", [b"", b"\x00" * 8, encode(Kind.ACTIVE, bundle="b", ca="c")])
async def test_gl2_who_does_not_welcome_is_not_the_gate(
    tmp_path: Path, first: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate_line, "_HELLO_S", 0.02)
    (tmp_path / "run").mkdir()
    tried = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tried.append(writer)
        writer.write(first)

    server = await asyncio.start_unix_server(serve, tmp_path / PLACE)
    async with worker(tmp_path, wait=False) as one:
        await until(lambda: len(tried) >= 2)
        assert await refused(one.record(keyed(1))) is Reason.STORE_UNAVAILABLE
    server.close()
    for writer in tried:
        writer.close()


async def test_gl2_a_refusal_keeps_its_reason(tmp_path: Path) -> None:
    async def answer(frame: Frame) -> bytes | None:
        return encode(Kind.REFUSED, n=frame.head["n"], reason="store_unavailable", detail="full")

    async with scripted(tmp_path, answer), worker(tmp_path) as one:
        assert await refused(one.record(keyed(1))) is Reason.STORE_UNAVAILABLE


# --- GL3 ---


async def test_gl3_what_is_given_up_is_withdrawn(tmp_path: Path) -> None:
    async with scripted(tmp_path, says_nothing) as house, worker(tmp_path) as one:
        asked = asyncio.ensure_future(one.record(keyed(1)))
        await until(lambda: house.of(Kind.ASK))
        asked.cancel()
        await until(lambda: house.of(Kind.WITHDRAW))
        assert house.of(Kind.WITHDRAW)[0].head == {"n": house.of(Kind.ASK)[0].head["n"]}


async def test_gl3_also_when_its_permit_came_in_the_same_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scripted(tmp_path, permit_of(1, monkeypatch)) as house, worker(tmp_path) as one:
        heard = gate_line.GateLine._answered

        def and_cancel(line: gate_line.GateLine, frame: Frame) -> None:
            heard(line, frame)
            asked.cancel()

        monkeypatch.setattr(gate_line.GateLine, "_answered", and_cancel)
        asked = asyncio.ensure_future(one.record(keyed(1)))
        with pytest.raises(asyncio.CancelledError):
            await asked
        await until(lambda: house.of(Kind.WITHDRAW))


# --- GL4 ---


async def test_gl4_an_outcome_is_told_to_the_next_gate_too(tmp_path: Path) -> None:
    async with worker(tmp_path, wait=False) as one:
        async with scripted(tmp_path, says_nothing) as first:
            await one.line.adopted.wait()
            one.line.record_outcome("rcpt_1", OutcomeStatus.EXECUTED, 200, delivered=True)
            await until(lambda: first.of(Kind.OUTCOME))
        await until(lambda: one.line._link is None)
        one.line.record_outcome("rcpt_2", OutcomeStatus.FAILED, 400, delivered=True)
        async with scripted(tmp_path, says_nothing) as second:
            await until(lambda: len(second.of(Kind.OUTCOME)) == 2)
            assert [each.head["id"] for each in second.of(Kind.OUTCOME)] == ["rcpt_1", "rcpt_2"]


async def test_gl4_what_is_told_again_is_told_without_the_answer_to_keep(tmp_path: Path) -> None:
    async with worker(tmp_path, wait=False) as one:
        async with scripted(tmp_path, says_nothing) as first:
            await one.line.adopted.wait()
            kept = KeptAnswer(key=b"k" * 32, data=b"sealed")
            one.line.record_outcome("rcpt_1", OutcomeStatus.EXECUTED, 200, delivered=True, kept=kept)
            await until(lambda: first.of(Kind.OUTCOME))
            assert read_outcome(first.of(Kind.OUTCOME)[0]).kept == kept
        await until(lambda: one.line._link is None)
        async with scripted(tmp_path, says_nothing) as second:
            await until(lambda: second.of(Kind.OUTCOME))
            assert read_outcome(second.of(Kind.OUTCOME)[0]).kept is None


async def test_gl4_what_a_gate_has_had_for_long_is_forgotten(tmp_path: Path) -> None:
    async with scripted(tmp_path, says_nothing), worker(tmp_path) as one:
        now = 0.0
        one.line.clock = lambda: now
        for number in range(50):
            now += 1.0
            one.line.record_outcome(f"rcpt_{number}", OutcomeStatus.EXECUTED, 200, delivered=True)
        assert len(one.line._outcomes) == 11


# --- GL7 ---


async def test_gl7_a_new_gate_hears_what_is_still_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with worker(tmp_path, wait=False) as one:
        async with scripted(tmp_path, permit_of(1, monkeypatch)):
            await one.line.adopted.wait()
            permit = (await one.record(keyed(1))).entry.receipt_id
        await until(lambda: one.line._link is None)
        async with scripted(tmp_path, says_nothing) as second:
            await until(lambda: second.of(Kind.OPEN))
            assert [each.head["ids"] for each in second.of(Kind.OPEN)] == [[permit]]
            one.line.record_outcome(permit, OutcomeStatus.EXECUTED, 200, delivered=True)
            await until(lambda: second.of(Kind.OUTCOME))
        await until(lambda: one.line._link is None)
        async with scripted(tmp_path, says_nothing) as third:
            await until(lambda: third.of(Kind.OUTCOME))
            assert third.of(Kind.OPEN) == []


# --- GL5 ---


async def test_gl5_superseded_comes_when_the_new_bundle_is_here(tmp_path: Path) -> None:
    async def answer(frame: Frame) -> bytes | None:
        return encode(Kind.SUPERSEDED, n=frame.head["n"]) if frame.kind is Kind.ASK else b""

    async with scripted(tmp_path, answer) as house, worker(tmp_path) as one:
        loading = asyncio.Event()

        async def adopt(bundle: str, ca: str) -> None:
            await loading.wait()

        one.line.adopt = adopt
        house.writers[-1].write(encode(Kind.ACTIVE, bundle="sha256:next", ca="ca-1"))
        await until(lambda: one.line._wanted == ("sha256:next", "ca-1"))
        asked = asyncio.ensure_future(one.record(keyed(1)))
        await until(lambda: house.of(Kind.ASK))
        await asyncio.sleep(0.02)
        assert not asked.done()
        loading.set()
        with pytest.raises(Superseded):
            await asked
        assert one.line.bundle == "sha256:next"


async def test_gl5_a_bundle_that_cannot_be_had_is_tried_again(tmp_path: Path) -> None:
    async with scripted(tmp_path, says_nothing) as house, worker(tmp_path) as one:
        tries = []

        async def adopt(bundle: str, ca: str) -> None:
            tries.append(bundle)
            if len(tries) < 3:
                raise ConfigError("not yet")

        one.line.adopt = adopt
        one.line.accept()
        house.writers[-1].write(encode(Kind.ACTIVE, bundle="sha256:next", ca="ca-1"))
        await until(lambda: [each.head["bundle"] for each in house.of(Kind.READY)][-1:] == ["sha256:next"])
        assert tries == ["sha256:next"] * 3


# --- GL6 ---


async def test_gl6_a_socket_of_another_user_is_not_the_gates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []

    def other(sock: Any) -> tuple[int, int]:
        looked.append(sock)
        return 1, os.geteuid() + 1

    monkeypatch.setattr(gate_line, "peer_of", other)
    async with scripted(tmp_path, says_nothing) as house, worker(tmp_path, wait=False) as one:
        await until(lambda: len(looked) >= 2)
        assert await refused(one.record(case())) is Reason.STORE_UNAVAILABLE
        assert house.heard == []
