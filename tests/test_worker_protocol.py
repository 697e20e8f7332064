"""worker_protocol.py: any bytes are frames or a refusal, a case survives the way, an answer is checked."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import MemoryLedger
from holdgate import gate
from holdgate.adjudicate import Adjudication
from holdgate.answer import Answer
from holdgate.case import Case
from holdgate.errors import Outcome, Reason
from holdgate.gate import Decision
from holdgate.keys import b64url
from holdgate.ledger import OutcomeStatus, Recorded
from holdgate.recall import MAX_KEPT_BYTES
from holdgate.receipt import new_receipt_id
from holdgate.sealing import KeptAnswer
from holdgate.standing import Made
from holdgate.standing import Told as Worth
from holdgate.surface.model import Action, Bond, Effect, KeyRule, KeySource, Param, Produces
from holdgate.worker_protocol import (
    MAX_HEAD,
    MAX_TAIL,
    Frame,
    FrameReader,
    Kind,
    Told,
    ToldOutcome,
    WireError,
    encode,
    plain_answer,
    plain_case,
    plain_kept,
    plain_made,
    plain_told,
    read_answer,
    read_case,
    read_kept,
    read_outcome,
    read_recorded,
    read_told,
)
from test_adjudicate import AGENT, BUNDLE, DENY, EVIDENCE, NOW, PERMIT, case, recognised
from test_pipeline import NATIVE, PROVIDER, REQUEST

AGENTS = {AGENT.id: AGENT}
FRAMES = [
    encode(Kind.HELLO, build="0.1.0", role="worker-1"),
    encode(Kind.WELCOME, bundle="sha256:00", ca="aa"),
    encode(Kind.ASK, n=1, bundle="sha256:00", case=plain_case(case()), told=[]),
    encode(Kind.WITHDRAW, n=1),
    encode(Kind.OPEN, ids=["rcpt_1", "rcpt_2"]),
    encode(Kind.OUTCOME, id="rcpt_1", status="executed", http_status=200, delivered=True, made=[]),
    encode(
        Kind.OUTCOME,
        id="rcpt_1",
        status="executed",
        http_status=200,
        delivered=True,
        made=plain_made(Made(key="a" * 64, ttl_us=5, told=Worth.OLD)),
    ),
    encode(Kind.END, b"body", flight="a\0b", answer={"status": 200}),
    encode(
        *(Kind.OUTCOME, b"k" * 32 + b"sealed"),
        **{"id": "rcpt_1", "status": "executed", "http_status": 200, "delivered": True, "made": []},
    ),
    encode(
        *(Kind.RECORDED, b"jws"),
        **{"n": 1, "index": 0, "prior": "", "prior_status": 0, "would": "", "produces": True},
        **{"worth": "new", "answer": 0},
    ),
    encode(Kind.REFUSED, n=1, reason="overloaded", detail="x"),
]


def kinds(frames: list[Frame]) -> list[Kind]:
    return [frame.kind for frame in frames]


# --- WP1 ---


@given(st.lists(st.integers(1, 40), max_size=60))
def test_wp1_frames_come_out_whole_however_the_bytes_are_cut(sizes: list[int]) -> None:
    data, reader, found = b"".join(FRAMES), FrameReader(), []
    for size in sizes:
        found += reader.feed(data[:size])
        data = data[size:]
    found += reader.feed(data)
    whole = FrameReader().feed(b"".join(FRAMES))
    assert found == whole and len(whole) == len(FRAMES)


@given(st.binary(max_size=200) | st.lists(st.sampled_from(FRAMES)).map(b"".join), st.data())
def test_wp1_any_bytes_are_frames_or_a_wire_error(data: bytes, more: st.DataObject) -> None:
    if data:  # one byte of something valid changed is the interesting case
        at = more.draw(st.integers(0, len(data) - 1))
        data = data[:at] + bytes([more.draw(st.integers(0, 255))]) + data[at + 1 :]
    try:
        for frame in FrameReader().feed(data):
            if frame.kind is Kind.ASK:
                read_case(frame.head["case"], AGENTS)
                read_told(frame.head["told"])
            if frame.kind is Kind.OUTCOME:
                read_outcome(frame)
            if frame.kind in (Kind.END, Kind.CONVERGED):
                read_answer(frame.head["answer"], frame.tail)
            if frame.kind is Kind.RECORDED:
                read_recorded(frame, case(), BUNDLE.digest)
    except WireError:
        pass


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(sorted(plain_case(case()))), json_values)
def test_wp1_a_case_with_another_member_is_a_case_or_a_wire_error(name: str, value: Any) -> None:
    plain = json.loads(json.dumps(plain_case(case()))) | {name: value}
    try:
        assert isinstance(read_case(plain, AGENTS), Case)
    except WireError:
        pass


@given(
    json_values,
    st.sampled_from(
        ["actions", "keys", "principal", "digest", "conflict_keys", "sensitive", "bonds", "produces"]
    ),
)
def test_wp1_a_recognised_with_another_member_too(value: Any, name: str) -> None:
    plain = json.loads(json.dumps(plain_case(case())))
    plain["recognised"][name] = value
    try:
        assert isinstance(read_case(plain, AGENTS), Case)
    except WireError:
        pass


@given(json_values)
def test_wp1_what_a_remote_gate_said_is_read_or_refused(value: Any) -> None:
    try:
        assert isinstance(read_told([value] if not isinstance(value, list) else value), Told | None)
    except WireError:
        pass


def lengths(head: int, tail: int) -> bytes:
    return head.to_bytes(4, "big") + tail.to_bytes(4, "big")


def framed(head: bytes, tail: bytes = b"") -> bytes:
    return lengths(len(head), len(tail)) + head + tail


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(lengths(0, 0), id="no head"),
        pytest.param(lengths(MAX_HEAD + 1, 0), id="a head beyond the bound"),
        pytest.param(lengths(2, MAX_TAIL + 1), id="a tail beyond the bound"),
        pytest.param(framed(b"[]"), id="a list"),
        pytest.param(framed(b"{"), id="half of an object"),
        pytest.param(framed(b'{"t":"permit"}'), id="no kind"),
        pytest.param(framed(b'{"t":["ask"]}'), id="a kind that is a list"),
        pytest.param(framed(b'{"n":1,"t":"waiting","t":"waiting"}'), id="a member twice"),
        pytest.param(framed(b'{ "n":1,"t":"waiting"}'), id="another spelling"),
        pytest.param(framed(b'{"n":true,"t":"waiting"}'), id="a flag for a number"),
        pytest.param(framed(b'{"n":1.0,"t":"waiting"}'), id="a float for a number"),
        pytest.param(framed(b'{"n":1,"x":1,"t":"waiting"}'), id="one member more"),
        pytest.param(framed(b'{"t":"waiting"}'), id="one member less"),
        pytest.param(framed(b'{"n":1,"t":"waiting"}', b"x"), id="a tail where there is none"),
    ],
)
def test_wp1_table_of_what_is_no_frame(data: bytes) -> None:
    with pytest.raises(WireError):
        FrameReader().feed(data)


def test_wp1_what_is_cut_within_a_frame_is_none() -> None:
    reader = FrameReader()
    assert reader.feed(FRAMES[0][:-1]) == []
    assert reader.feed(b"") == []


def test_wp1_what_is_too_large_is_not_written() -> None:
    with pytest.raises(WireError, match="too large"):
        encode(Kind.END, bytes(MAX_TAIL + 1), flight="f", answer={})
    with pytest.raises(WireError):
        encode(Kind.WITHDRAW, n=2**64)


# --- WP2 ---


def entry_of(given: Case) -> Any:
    """The Entry that is made of a case, with the randomness of sealing held still."""
    evidence = replace(EVIDENCE, draw=lambda size: b"d" * size)
    return Adjudication(given, BUNDLE, evidence)({}, now_us=NOW, receipt_id=new_receipt_id(NOW, b"n" * 16))


def there_and_back(given: Case) -> Case:
    frame = encode(Kind.ASK, n=1, bundle="b", case=plain_case(given), told=[])
    return read_case(FrameReader().feed(frame)[0].head["case"], AGENTS)


PARAMS = (
    Param(name="amount", value=100, public=100),
    Param(name="big", value=2**63 - 1, public=str(2**63 - 1)),
    Param(name="flag", value=True, public=True),
    Param(name="ids", value=("a", "ü"), public=("a", "ü")),
    Param(name="note", value="secret", public=None),
    Param(name="numbers", value=(1, 2), public=(1, 2)),
)
ACTION = Action(
    surface="payments.refund",
    operation="ok.Refund",
    effect=Effect.COMMIT,
    params=PARAMS,
    absent=(("currency", "account default"),),
)
NATURAL = KeyRule(source=KeySource.NATURAL, value="n", ttl_s=5, provider=False)
MANY = replace(
    recognised(key=PROVIDER),
    actions=(ACTION, ACTION),
    principal="p",
    keys=(PROVIDER, NATURAL),
    conflict_keys=("stripe:ch_1",),
)
BOND = Bond(object="ok:pi_1", to=("ok.Make", "ok.Change"), once=True, blind=False)
ANYBODYS = replace(BOND, once=False, any_principal=True)
MADE = Produces(map="ok", path=("data", "id"), ttl_s=5)
LOCATED = replace(MADE, path=(), header="location", form="url_query.x", host="h.test")
CASES = {
    "a keyed refund": case(),
    "no key, no principal": case(recognised=recognised()),
    "every type of parameter, several keys": case(recognised=MANY),
    "a required key that is missing": case(recognised=replace(MANY, keys=(), require_key=True)),
    "sensitive": case(recognised=replace(MANY, sensitive=True), body_sha256=b"h" * 32),
    "a refusal of what was recognised": case(refusal=Reason.IN_FLIGHT),
    "a refusal of what could not be read": case(
        agent=None, request=None, recognised=None, wire="", raw_digest="sha256:" + "1" * 64, raw_bytes=7,
        refusal=Reason.MALFORMED_REQUEST,
    ),
    "what acts on an object and makes it anew": case(
        recognised=replace(MANY, bonds=(BOND, None), produces=MADE)
    ),
    "what acts on an object with any credential": case(recognised=replace(MANY, bonds=(ANYBODYS, None))),
    "what makes an object": case(recognised=replace(MANY, produces=MADE)),
    "what makes an object that a URL in a header names": case(
        recognised=replace(MANY, produces=LOCATED)
    ),
    "what keeps its answer": case(recognised=replace(MANY, keys=(replace(NATURAL, keep=True),))),
    "a flood": case(agent=AGENT, recognised=None, wire="", raw_digest="sha256:" + "1" * 64,
                    refusal=Reason.UNKNOWN_DESTINATION, count=41),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_wp2_the_same_entry_is_made_of_a_case_on_both_sides(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "decide", lambda policies, inputs: PERMIT)
    given = CASES[name]
    if given.recognised is not None and given.recognised.sensitive:
        assert entry_of(given).sealed is not None
    assert entry_of(there_and_back(given)) == entry_of(given)


def test_wp2_where_an_answer_names_its_object_comes_out_as_it_went_in() -> None:
    for made in (MADE, LOCATED):
        assert there_and_back(case(recognised=replace(MANY, produces=made))).recognised == replace(
            there_and_back(case(recognised=MANY)).recognised, produces=made
        )
    for bond in (BOND, ANYBODYS):
        found = there_and_back(case(recognised=replace(MANY, bonds=(bond, None)))).recognised
        assert found is not None and found.bonds == (bond, None)


def test_wp2_an_agent_is_the_one_that_the_gate_process_knows() -> None:
    assert there_and_back(case()).agent is AGENT
    with pytest.raises(WireError):
        read_case(plain_case(case(agent=replace(AGENT, id="other"))), AGENTS)


def test_wp2_the_body_does_not_travel() -> None:
    given = case(request=replace(REQUEST, body=b"the body"))
    assert b"the body" not in encode(Kind.ASK, n=1, bundle="b", case=plain_case(given), told=[])


def test_wp2_what_another_gate_said_comes_out_as_it_went_in() -> None:
    for told in (None, Told(decision=PERMIT, engine="remote/authzen"), Told(decision=DENY, engine="x")):
        assert read_told(json.loads(json.dumps(plain_told(told)))) == told


@pytest.mark.parametrize("made", [None, Made(key="a" * 64, ttl_us=5, told=Worth.EITHER)])
def test_wp2_an_object_that_was_made_comes_out_as_it_went_in(made: Made | None) -> None:
    data = encode(
        Kind.OUTCOME, id="r", status="executed", http_status=200, delivered=True, made=plain_made(made)
    )
    (frame,) = FrameReader().feed(data)
    assert read_outcome(frame) == ToldOutcome(
        receipt_id="r",
        status=OutcomeStatus.EXECUTED,
        http_status=200,
        delivered=True,
        made=made,
        kept=None,
    )


KEPT = KeptAnswer(key=b"k" * 32, data=b"sealed")


@pytest.mark.parametrize("kept", [None, KEPT])
def test_wp2_a_kept_answer_comes_out_as_it_went_in(kept: KeptAnswer | None) -> None:
    assert read_kept(plain_kept(kept)) == kept


@pytest.mark.parametrize(
    "tail",
    [
        pytest.param(b"k" * 32, id="a key alone"),
        pytest.param(b"k" * 32 + bytes(MAX_KEPT_BYTES + 1), id="beyond the bound"),
    ],
)
def test_wp1_a_kept_answer_that_is_none_is_refused(tail: bytes) -> None:
    with pytest.raises(WireError):
        read_kept(tail)


@pytest.mark.parametrize(
    "row",
    [["a"], ["a" * 63, 5, "new"], ["a" * 64, 0, "new"], ["a" * 64, 5, "perhaps"], ["a" * 64, "5", "new"]],
)
def test_wp1_an_object_that_is_none_is_refused(row: list[Any]) -> None:
    data = encode(Kind.OUTCOME, id="r", status="executed", http_status=200, delivered=True, made=row)
    (frame,) = FrameReader().feed(data)
    with pytest.raises(WireError):
        read_outcome(frame)


def test_wp2_an_answer_comes_out_as_it_went_in() -> None:
    answer = Answer(
        status=200,
        reason=b"OK",
        headers=((b"X-A", b"\xe9"), (b"Holdgate-Decision", b"PERMIT")),
        body=b"\x00body",
        rest=None,
        length=5,
        bodiless=False,
        close=True,
    )
    assert read_answer(*plain_answer(answer)) == answer
    assert read_answer(*plain_answer(replace(answer, length=None))) == replace(answer, length=None)
    assert read_answer(*plain_answer(None)) is None


# --- WP3 ---


async def recorded(given: Case, decision: Decision, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    monkeypatch.setattr(gate, "decide", lambda policies, inputs: decision)
    return await MemoryLedger().record(Adjudication(given, BUNDLE, EVIDENCE))


def frame_of(made: Recorded, **change: Any) -> Frame:
    head = {"n": 1, "index": made.index, "prior": "", "prior_status": 0, "would": ""}
    head |= {"produces": made.entry.produces, "worth": made.entry.told.value, "answer": 0}
    tail = change.pop("jws", made.entry.jws) + change.pop("again", b"")
    data = encode(Kind.RECORDED, tail, **(head | change))
    return FrameReader().feed(data)[0]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("decision", [PERMIT, DENY], ids=["permit", "deny"])
async def test_wp3_what_was_recorded_is_told(
    name: str, decision: Decision, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = CASES[name]
    made = await recorded(given, decision, monkeypatch)
    told = read_recorded(frame_of(made), given, BUNDLE.digest)
    kept = ("receipt_id", "outcome", "reason", "rule", "surface", "agent", "policy", "iat_us", "wire", "jws")
    assert [getattr(told.entry, each) for each in kept] == [getattr(made.entry, each) for each in kept]
    assert (told.index, told.durable) == (made.index, True)


OTHER = "sha256:" + "99" * 32
ASKED: dict[str, tuple[Case, str]] = {
    "another wire digest": (case(wire=OTHER), BUNDLE.digest),
    "another request digest": (case(recognised=replace(MANY, digest=OTHER)), BUNDLE.digest),
    "another agent": (case(agent=replace(AGENT, id="other")), BUNDLE.digest),
    "another destination": (
        case(request=replace(REQUEST, host="api.other.test")),
        BUNDLE.digest,
    ),
    "another bundle": (case(), OTHER),
    "a refusal": (case(refusal=Reason.OVERLOADED), BUNDLE.digest),
    "something that was not recognised": (case(recognised=None, raw_digest=OTHER), BUNDLE.digest),
}


@pytest.mark.parametrize("name", ASKED)
async def test_wp3_a_permit_for_something_else_is_no_answer(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await recorded(case(), PERMIT, monkeypatch)
    with pytest.raises(WireError):
        read_recorded(frame_of(made), *ASKED[name])


def spoiled(made: Recorded, **change: Any) -> bytes:
    head, payload, signature = made.entry.jws.split(b".")
    statement = json.loads(base64.urlsafe_b64decode(payload + b"=" * (-len(payload) % 4)))
    statement = {**statement, **change}
    data = json.dumps(statement, sort_keys=True, separators=(",", ":")).encode()
    return b".".join([head, b64url(data), signature])


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"outcome": "permit"}, id="PERMIT in another spelling"),
        pytest.param({"outcome": True}, id="a flag"),
        pytest.param({"outcome": "DENY"}, id="an outcome that its reason does not go with"),
        pytest.param({"reason": "deny_rule"}, id="a reason that its outcome does not go with"),
        pytest.param({"reason": "because"}, id="no known reason"),
        pytest.param({"type": "outcome"}, id="no decision"),
        pytest.param({"via": "decide"}, id="asked at a decision door"),
        pytest.param({"policy": {}}, id="under no bundle"),
        pytest.param({"iat": "yesterday"}, id="no time"),
        pytest.param({"id": 1}, id="no id"),
        pytest.param({"request": []}, id="of no request"),
        pytest.param({"rules": [1]}, id="rules that are none"),
    ],
)
async def test_wp3_a_receipt_that_says_something_else_is_no_answer(
    change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await recorded(case(), PERMIT, monkeypatch)
    read_recorded(frame_of(made, jws=spoiled(made)), case(), BUNDLE.digest)
    with pytest.raises(WireError):
        read_recorded(frame_of(made, jws=spoiled(made, **change)), case(), BUNDLE.digest)


@given(st.binary(max_size=60) | st.binary(max_size=40).map(lambda data: b"a." + b64url(data) + b".b"))
def test_wp3_any_other_bytes_are_no_answer(data: bytes) -> None:
    head = {"n": 1, "index": 0, "prior": "", "prior_status": 0, "would": "", "answer": 0}
    frame = Frame(Kind.RECORDED, head, data)
    with pytest.raises(WireError):
        read_recorded(frame, case(), BUNDLE.digest)


async def test_wp3_a_kept_answer_is_told_with_a_repeat_of_what_was_executed_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    again = plain_kept(KEPT)
    repeat = case(refusal=Reason.ALREADY_EXECUTED)
    made = await recorded(repeat, PERMIT, monkeypatch)
    told = read_recorded(frame_of(made, again=again, answer=len(again)), repeat, BUNDLE.digest)
    assert (told.answer, told.entry.jws) == (KEPT, made.entry.jws)
    assert read_recorded(frame_of(made), repeat, BUNDLE.digest).answer is None
    for size in (-1, len(made.entry.jws) + len(again) + 1):
        with pytest.raises(WireError):
            read_recorded(frame_of(made, again=again, answer=size), repeat, BUNDLE.digest)
    made = await recorded(case(), PERMIT, monkeypatch)
    with pytest.raises(WireError):
        read_recorded(frame_of(made, again=again, answer=len(again)), case(), BUNDLE.digest)


async def test_wp3_a_silence_never_becomes_a_permit(monkeypatch: pytest.MonkeyPatch) -> None:
    given = case(recognised=recognised(key=NATIVE), refusal=Reason.GATE_TIMEOUT)
    made = await recorded(given, PERMIT, monkeypatch)
    assert made.entry.outcome is Outcome.SILENCE
    assert read_recorded(frame_of(made), given, BUNDLE.digest).entry.outcome is Outcome.SILENCE
