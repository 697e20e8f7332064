"""Two-step commits: what acts on a prepared object is decided on what was decided when it was made."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evidence import KEYS, LOG_KEYS, NODE, ORIGIN, RECEIPT_KEY, T0, open_ledger
from fakes import NO_POLICIES
from holdgate.adapters import sqlite_store
from holdgate.adapters.sqlite_reader import SqliteReader
from holdgate.adapters.sqlite_schema import DB_NAME, connect_reader
from holdgate.adapters.store_ledger import StoreLedger
from holdgate.adjudicate import Adjudication, Evidence
from holdgate.agents import Agent
from holdgate.answer import DispatchError
from holdgate.audit import audit
from holdgate.bundle import NEVER_US, Bundle
from holdgate.case import Case
from holdgate.diff import diff
from holdgate.erasure import EraseOrder, Erasure
from holdgate.errors import ConfigError, Outcome, Reason
from holdgate.explain import explain
from holdgate.gate import Decision, decide
from holdgate.jcs import dumps_input
from holdgate.keys import key_set
from holdgate.ledger import Entry, Finding, OutcomeStatus
from holdgate.limits import Limits
from holdgate.message import Headers
from holdgate.pair import Pair
from holdgate.policy import load_policies
from holdgate.policy_model import PolicySet
from holdgate.policytest import TestReport, run_tests
from holdgate.receipt import new_receipt_id, verify
from holdgate.replay import Record, replay
from holdgate.standing import Made, Prepared, Standing, Told
from holdgate.surface.index import SurfaceIndex
from holdgate.surface.model import Bond
from shop import FORM, Said, Shop, permit_all
from surface_requests import index_of, recognise, request

MAP = """\
hosts: [api.pay.test]
principal: {from: header.authorization, as: bearer}
defaults: {body: {decode: form}, idempotency: {from: header.idempotency-key, ttl: 24h, provider: true}}
operations:
  - id: Create
    match: {method: POST, path: /intents}
    surface: payments.charge
    effect: prepare
    produces: {id: body.id}
    params:
      amount: {from: body.amount, type: int, required: true, material: true}
      currency: {from: body.currency, type: currency, required: true, material: true}
  - id: Update
    match: {method: POST, path: "/intents/{id}"}
    surface: payments.charge
    effect: prepare
    binds: {to: [Create, Update], by: params.intent, once: true}
    produces: {id: body.id}
    params:
      intent: {from: path.id, type: string, required: true, material: true}
      amount: {from: body.amount, type: int, material: true}
  - id: Confirm
    match: {method: POST, path: "/intents/{id}/confirm"}
    surface: payments.charge
    effect: commit
    binds: {to: [Create, Update], by: params.intent}
    params: {intent: {from: path.id, type: string, required: true, material: true}}
  - id: Capture
    match: {method: POST, path: "/intents/{id}/capture"}
    surface: payments.charge
    effect: commit
    binds: {to: [Create, Update], by: params.intent, once: true}
    params: {intent: {from: path.id, type: string, required: true, material: true}}
  - id: Look
    match: {method: POST, path: "/intents/{id}/look"}
    surface: payments.charge
    effect: prepare
    binds: {to: [Create, Update], by: params.intent, blind: allow}
    params: {intent: {from: path.id, type: string, required: true, material: true}}
  - id: Other
    match: {method: POST, path: /others}
    surface: payments.charge
    effect: prepare
    produces: {id: body.id}
    params: {amount: {from: body.amount, type: int, required: true, material: true}}
"""
POLICY = """\
apiVersion: holdgate/v1
kind: Policy
metadata: {name: charges, owner: risk@example.com}
spec:
  surface: payments.charge
  constants: {bound: [m0.Confirm, m0.Capture], making: [m0.Create, m0.Update, m0.Other], largest: 5000}
  rules:
  - id: make
    effect: permit
    when: action.operation in constants.making && has(params.amount) && params.amount <= 100000
  - id: small
    effect: permit
    when: >-
      action.operation in constants.bound && has(bound.params.amount) && bound.params.amount >= 1
      && bound.params.amount <= constants.largest
      && has(bound.params.currency) && bound.params.currency == "eur"
  - {id: look, effect: permit, when: action.operation == "m0.Look" && !has(bound.params.amount)}
  - {id: never, effect: deny, when: has(bound.params.amount) && bound.params.amount == 666, reason: never}
"""
JSON: Headers = ((b"Content-Type", b"application/json"),)


@pytest.fixture(scope="module")
def index() -> SurfaceIndex:
    return index_of(MAP)


@pytest.fixture
def shop(index: SurfaceIndex, tmp_path: Path) -> Shop:
    (tmp_path / "charges.yaml").write_text(POLICY)
    shop = Shop(index, tmp_path)
    shop.upstream.body = b'{"id":"pi_1","object":"payment_intent"}'
    return shop


async def ask(
    shop: Shop, path: str, *, key: str = "", agent: str = "10.0.0.1", credential: str = "sk", **form: object
) -> Said:
    headers = {"Authorization": f"Bearer {credential}"} | ({"Idempotency-Key": key} if key else {})
    body = "&".join(f"{name}={value}" for name, value in form.items()).encode()
    if body:
        headers["Content-Type"] = FORM
    return await shop.ask(path, body, host="api.pay.test", agent=agent, headers=headers)


async def create(shop: Shop, amount: int = 1000, currency: str = "eur", **more: Any) -> Said:
    return await ask(shop, "/intents", amount=amount, currency=currency, **more)


async def confirm(shop: Shop, intent: str = "pi_1", **more: Any) -> Said:
    return await ask(shop, f"/intents/{intent}/confirm", **more)


def statement(shop: Shop, receipt_id: str) -> Any:
    keys = key_set([shop.pipeline.evidence.signer.public])
    (entry,) = [entry for entry in shop.ledger.entries if entry.receipt_id == receipt_id]
    return verify(entry.jws, keys).statement


async def test_a_confirm_is_decided_on_what_was_created(shop: Shop) -> None:
    made = await create(shop, 1000)
    done = await confirm(shop)
    assert (made.outcome, done.outcome) == ("PERMIT", "PERMIT")
    assert shop.sent == [b"/intents", b"/intents/pi_1/confirm"]
    assert statement(shop, done.receipt)["binds"] == [made.receipt]
    assert (
        b'"bound":{"operation":"m0.Create","params":{"amount":1000,"currency":"eur"}'
        in shop.ledger.last.inputs
    )


@pytest.mark.parametrize(
    ("amount", "currency", "outcome", "reason"),
    [
        pytest.param(5000, "eur", "PERMIT", "permit_rule", id="at the limit"),
        pytest.param(5001, "eur", "SILENCE", "no_rule_matched", id="above it"),
        pytest.param(5000, "usd", "SILENCE", "no_rule_matched", id="another currency"),
        pytest.param(666, "eur", "DENY", "deny_rule", id="denied"),
    ],
)
async def test_the_amount_of_the_prepare_decides(
    shop: Shop, amount: int, currency: str, outcome: str, reason: str
) -> None:
    await create(shop, amount, currency)
    done = await confirm(shop)
    assert (done.outcome, done.reason) == (outcome, reason)
    assert len(shop.sent) == (2 if outcome == "PERMIT" else 1)


@pytest.mark.parametrize(
    "ask_for",
    [
        pytest.param({"intent": "pi_2"}, id="an object that nobody made here"),
        pytest.param({"agent": "10.0.0.2"}, id="another agent's object"),
        pytest.param({"credential": "sk_other"}, id="made with another credential"),
    ],
)
async def test_g8_without_a_prepare_of_its_own_nothing_leaves(shop: Shop, ask_for: dict[str, str]) -> None:
    await create(shop)
    done = await confirm(shop, **ask_for)
    assert (done.status, done.outcome, done.reason) == (403, "SILENCE", "input_unavailable")
    assert shop.sent == [b"/intents"]
    assert (await confirm(shop)).outcome == "PERMIT"


@pytest.mark.parametrize(
    "upstream",
    [
        pytest.param({"status": 402}, id="the prepare failed"),
        pytest.param({"status": 500}, id="the prepare may have failed"),
        pytest.param({"error": DispatchError(OutcomeStatus.NOT_SENT, 502, "test")}, id="it was not sent"),
        pytest.param({"cut": True}, id="its answer was cut"),
        pytest.param({"body": b'{"object":"x"}'}, id="its answer names nothing"),
        pytest.param({"body": b'{"id":"pi_1","id":"pi_1"}'}, id="its answer names something twice"),
        pytest.param({"body": b"<id>pi_1</id>"}, id="its answer is not what it says"),
        pytest.param({"headers": ((b"Content-Type", b"text/html"),)}, id="its answer is of another type"),
        pytest.param({"body": b'{"id":"pi_1","x":"' + b"y" * 65_536 + b'"}'}, id="its answer is too large"),
    ],
)
async def test_st4_only_an_executed_prepare_whose_answer_names_it_makes_an_object_known(
    shop: Shop, upstream: dict[str, Any]
) -> None:
    before = {name: getattr(shop.upstream, name) for name in upstream}
    for name, value in upstream.items():
        setattr(shop.upstream, name, value)
    await create(shop)
    for name, value in before.items():
        setattr(shop.upstream, name, value)
    sent = len(shop.sent)
    assert (await confirm(shop)).reason == "input_unavailable"
    assert len(shop.sent) == sent


async def test_a_streamed_answer_names_the_object_too(shop: Shop) -> None:
    shop.upstream.chunked = True
    await create(shop)
    shop.upstream.chunked = False
    assert (await confirm(shop)).outcome == "PERMIT"


async def test_an_object_expires(shop: Shop) -> None:
    await create(shop)
    shop.ledger.now_us += 604_800_000_000
    assert (await confirm(shop)).reason == "input_unavailable"
    assert shop.sent == [b"/intents"]


async def test_st3_an_object_made_by_another_operation_is_not_what_the_map_says(shop: Shop) -> None:
    assert (await ask(shop, "/others", amount=5)).outcome == "PERMIT"
    assert (await confirm(shop)).reason == "input_unavailable"


async def test_an_update_is_decided_over_what_was_there(shop: Shop) -> None:
    await create(shop, 1000)
    changed = await ask(shop, "/intents/pi_1", amount=9000)
    assert changed.outcome == "PERMIT"
    done = await confirm(shop)
    assert (done.outcome, done.reason) == ("SILENCE", "no_rule_matched")
    await ask(shop, "/intents/pi_1", amount=2000)
    done = await confirm(shop)
    assert done.outcome == "PERMIT"  # the currency is still that of the create
    assert b'"params":{"amount":2000,"currency":"eur","intent":"pi_1"}' in shop.ledger.last.inputs


@pytest.mark.parametrize(
    ("upstream", "reason"),
    [
        pytest.param({"status": 500}, "conflict", id="nobody knows"),
        pytest.param({"body": b"{}"}, "already_executed", id="its answer names nothing"),
        pytest.param({"status": 402}, "permit_rule", id="the vendor refused it"),
        pytest.param(
            {"error": DispatchError(OutcomeStatus.NOT_SENT, 502, "test")}, "permit_rule", id="it was not sent"
        ),
    ],
)
async def test_an_update_that_may_have_changed_it_unbinds_and_one_that_did_not_does_not(
    shop: Shop, upstream: dict[str, Any], reason: str
) -> None:
    await create(shop, 1000)
    before = {name: getattr(shop.upstream, name) for name in upstream}
    for name, value in upstream.items():
        setattr(shop.upstream, name, value)
    await ask(shop, "/intents/pi_1", amount=9000)
    for name, value in before.items():
        setattr(shop.upstream, name, value)
    sent = len(shop.sent)
    assert (await confirm(shop)).reason == reason
    assert len(shop.sent) == sent + (reason == "permit_rule")


async def test_what_is_being_changed_is_not_confirmed_meanwhile(shop: Shop) -> None:
    await create(shop, 1000)
    shop.upstream.gate = asyncio.Event()
    update = asyncio.create_task(ask(shop, "/intents/pi_1", amount=9000))
    while len(shop.sent) < 2:
        await asyncio.sleep(0)
    assert (await confirm(shop)).reason == "conflict"
    shop.upstream.gate.set()
    await update
    assert (await confirm(shop)).reason == "no_rule_matched"
    assert shop.sent == [b"/intents", b"/intents/pi_1"]


async def test_what_is_being_confirmed_is_not_changed_meanwhile(shop: Shop) -> None:
    await create(shop, 1000)
    shop.upstream.gate = asyncio.Event()
    task = asyncio.create_task(confirm(shop))
    while len(shop.sent) < 2:
        await asyncio.sleep(0)
    assert (await ask(shop, "/intents/pi_1", amount=9000)).reason == "conflict"
    shop.upstream.gate.set()
    assert (await task).outcome == "PERMIT"


async def test_a10_what_may_be_done_once_is_done_once(shop: Shop) -> None:
    await create(shop)
    first = await ask(shop, "/intents/pi_1/capture", key="a")
    again = await ask(shop, "/intents/pi_1/capture", key="b")
    assert (first.outcome, again.status, again.reason) == ("PERMIT", 409, "already_executed")
    assert first.receipt.encode() in again.body
    replay = await ask(shop, "/intents/pi_1/capture", key="a")  # the vendor's own store answers this one
    assert statement(shop, replay.receipt)["replay_of"] == first.receipt
    assert len(shop.sent) == 3
    assert (await ask(shop, "/intents/pi_1/capture", key="c")).reason == "already_executed"


async def test_what_had_no_effect_gives_the_object_back(shop: Shop) -> None:
    await create(shop)
    shop.upstream.status = 402
    assert (await ask(shop, "/intents/pi_1/capture", key="a")).status == 402
    shop.upstream.status = 200
    assert (await ask(shop, "/intents/pi_1/capture", key="b")).outcome == "PERMIT"


async def test_st5_a_repeated_create_does_not_give_back_what_was_taken(shop: Shop) -> None:
    await create(shop, key="k")
    await ask(shop, "/intents/pi_1/capture")
    assert statement(shop, (await create(shop, key="k")).receipt)["replay_of"]
    assert (await ask(shop, "/intents/pi_1/capture", key="x")).reason == "already_executed"


async def test_st5_a_repeated_create_does_not_take_back_an_update(shop: Shop) -> None:
    await create(shop, 1000, key="k")
    await ask(shop, "/intents/pi_1", amount=9000)
    assert statement(shop, (await create(shop, 1000, key="k")).receipt)["replay_of"]
    assert (await confirm(shop)).reason == "no_rule_matched"


async def test_st5_a_repeated_update_does_not_take_back_a_later_one(shop: Shop) -> None:
    await create(shop, 1000)
    await ask(shop, "/intents/pi_1", amount=2000, key="u")
    await ask(shop, "/intents/pi_1", amount=9000, key="v")
    assert statement(shop, (await ask(shop, "/intents/pi_1", amount=2000, key="u")).receipt)["replay_of"]
    assert (await confirm(shop)).reason == "no_rule_matched"


async def test_st5_a_repeat_that_could_not_be_read_does_not_either_when_it_is_repeated(shop: Shop) -> None:
    await create(shop, 1000)
    await ask(shop, "/intents/pi_1", amount=2000, key="u")
    await ask(shop, "/intents/pi_1", amount=9000, key="v")
    readable, shop.upstream.body = shop.upstream.body, b"{}"
    await ask(shop, "/intents/pi_1", amount=2000, key="u")
    shop.upstream.body = readable
    await ask(shop, "/intents/pi_1", amount=2000, key="u")
    assert (await confirm(shop)).reason == "no_rule_matched"  # 9000, not 2000


async def test_st5_what_may_be_an_old_answer_unbinds(shop: Shop) -> None:
    """The key's window is over. Some vendors remember a key longer than they say."""
    await create(shop, 1000)
    await ask(shop, "/intents/pi_1", amount=2000, key="u")
    await ask(shop, "/intents/pi_1", amount=3000, key="v")
    shop.ledger.now_us += 25 * 3_600_000_000
    late = await ask(shop, "/intents/pi_1", amount=2000, key="u")
    assert "replay_of" not in statement(shop, late.receipt)
    assert (await confirm(shop)).reason == "already_executed"


async def test_a_retry_tells_what_became_of_an_update_in_doubt(shop: Shop) -> None:
    await create(shop, 1000)
    shop.upstream.error = DispatchError(OutcomeStatus.UNKNOWN, 502, "reset by the test")
    assert (await ask(shop, "/intents/pi_1", amount=2000, key="u")).status == 502
    shop.upstream.error = None
    assert (await confirm(shop)).reason == "conflict"
    assert (await ask(shop, "/intents/pi_1", amount=2000, key="u")).outcome == "PERMIT"
    assert (await confirm(shop)).outcome == "PERMIT"
    assert b'"amount":2000,"currency":"eur"' in shop.ledger.last.inputs


async def test_a_retry_makes_an_object_known_whose_first_answer_was_lost(shop: Shop) -> None:
    shop.upstream.error = DispatchError(OutcomeStatus.UNKNOWN, 502, "reset by the test")
    await create(shop, key="k")
    shop.upstream.error = None
    assert (await confirm(shop)).reason == "input_unavailable"
    await create(shop, key="k")
    assert (await confirm(shop)).outcome == "PERMIT"


async def test_a_map_may_allow_deciding_blind(shop: Shop) -> None:
    assert (await ask(shop, "/intents/pi_9/look")).outcome == "PERMIT"
    await create(shop)
    assert (
        await ask(shop, "/intents/pi_1/look")
    ).reason == "no_rule_matched"  # it is known, and the policy sees it


# --- the store ---


def judge(
    index: SurfaceIndex, target: str, body: bytes = b"", *, key: str = "", sensitive: bool = False
) -> Adjudication:
    headers = {"Authorization": "Bearer sk"} | ({"Content-Type": FORM} if body else {})
    asked = request(target, headers=headers | ({"Idempotency-Key": key} if key else {}), body=body)
    recognised = replace(recognise(index, asked), sensitive=sensitive)
    case = Case(
        agent=Agent(id="bot", groups=(), attrs=()),
        request=asked,
        recognised=recognised,
        wire="sha256:" + "ee" * 32,
        raw_digest="",
        raw_bytes=len(body),
        refusal=None,
    )
    bundle = Bundle(
        digest="sha256:" + "00" * 32,
        revision=0,
        signed=False,
        ends_us=NEVER_US,
        index=index,
        policies=NO_POLICIES,
    )
    evidence = Evidence(
        signer=RECEIPT_KEY, issuer=ORIGIN, node=NODE, fleet_key=b"f" * 32, draw=secrets.token_bytes
    )
    return Adjudication(case, bundle, evidence, known_or_new)


def known_or_new(policies: PolicySet, inputs: Any) -> Decision:
    (action,) = inputs["actions"]
    if action["operation"] in ("m0.Create", "m0.Other") or "bound" in action:
        return Decision(outcome=Outcome.PERMIT, reason=Reason.PERMIT_RULE, rules=("p/r",))
    return Decision(outcome=Outcome.SILENCE, reason=Reason.INPUT_UNAVAILABLE, rules=())


CREATE = b"amount=1000&currency=eur"


def made_of(index: SurfaceIndex) -> Made:
    """What the pipeline tells the ledger when the answer names pi_1."""
    (key,) = judge(index, "/intents/pi_1/confirm").objects
    return Made(key=key, ttl_us=604_800_000_000, told=Told.NEW)


async def make(ledger: StoreLedger, index: SurfaceIndex, **how: Any) -> str:
    judging = judge(index, "/intents", CREATE, **how)
    receipt = (await ledger.record(judging)).entry.receipt_id
    ledger.record_outcome(receipt, OutcomeStatus.EXECUTED, 200, delivered=True, made=made_of(index))
    return receipt


async def said_of(ledger: StoreLedger, index: SurfaceIndex, step: str = "confirm", **how: Any) -> Entry:
    return (await ledger.record(judge(index, f"/intents/pi_1/{step}", **how))).entry


def problems(folder: Path) -> tuple[str, ...]:
    with SqliteReader(folder) as reader:
        return audit(reader.audit_input(), origin=ORIGIN, receipt_keys=KEYS, log_keys=LOG_KEYS).problems


@pytest.mark.parametrize("sensitive", [False, True], ids=["in clear", "sealed"])
async def test_an_object_is_durable_with_its_outcome(
    tmp_path: Path, index: SurfaceIndex, sensitive: bool
) -> None:
    ledger = open_ledger(tmp_path)
    receipt = await make(ledger, index, sensitive=sensitive)
    at_once = await said_of(ledger, index, key="a")
    ledger.close()
    ledger = open_ledger(tmp_path)
    after = await said_of(ledger, index, key="b")
    ledger.close()
    assert [one.outcome for one in (at_once, after)] == [Outcome.PERMIT, Outcome.SILENCE]  # one at a time
    ledger = open_ledger(tmp_path)
    await ledger.reconcile(Finding(of=at_once.receipt_id, found=OutcomeStatus.FAILED, by="local", note=""))
    again = await said_of(ledger, index, key="c")
    ledger.close()
    assert again.outcome is Outcome.PERMIT
    assert verify(again.jws, KEYS).statement["binds"] == [receipt]
    assert again.inputs is not None and b'"amount":1000,"currency":"eur"' in again.inputs
    assert problems(tmp_path) == ()


async def test_a10_an_object_is_taken_once_and_across_restarts(tmp_path: Path, index: SurfaceIndex) -> None:
    ledger = open_ledger(tmp_path)
    await make(ledger, index)
    first = await said_of(ledger, index, "capture", key="a")
    ledger.record_outcome(first.receipt_id, OutcomeStatus.EXECUTED, 200, delivered=True)
    ledger.close()
    ledger = open_ledger(tmp_path)
    second = await said_of(ledger, index, "capture", key="b")
    ledger.close()
    assert (first.outcome, second.reason, second.prior) == (
        Outcome.PERMIT,
        Reason.ALREADY_EXECUTED,
        first.receipt_id,
    )
    assert problems(tmp_path) == ()


def test_a10_another_gate_is_not_asked_about_what_is_bound_to_nothing(index: SurfaceIndex) -> None:
    def asked(*_: Any) -> Decision:
        raise AssertionError("asked")

    here = judge(index, "/intents/pi_1/confirm")
    there = Adjudication(here._case, here._bundle, here._evidence, asked, "remote/authzen")
    entry = there({}, now_us=T0, receipt_id=new_receipt_id(T0, b"n" * 16))
    assert (entry.outcome, entry.reason) == (Outcome.SILENCE, Reason.INPUT_UNAVAILABLE)


async def test_st3_what_was_destroyed_binds_nothing(tmp_path: Path, index: SurfaceIndex) -> None:
    ledger = open_ledger(tmp_path)
    receipt = await make(ledger, index, sensitive=True)
    await ledger.record(judge(index, "/others", b"amount=1"))
    order = EraseOrder(erasure=Erasure(action="shred", ids=frozenset({receipt})), by="local", count=1)
    await ledger.erase(order)
    found = await said_of(ledger, index)
    ledger.close()
    assert (found.outcome, found.reason) == (Outcome.SILENCE, Reason.INPUT_UNAVAILABLE)


async def test_objects_are_forgotten_when_they_have_expired(
    tmp_path: Path, index: SurfaceIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_store, "FORGET_EVERY", 2)
    now = [T0]
    ledger = open_ledger(tmp_path, clock_us=lambda: now[0])
    await make(ledger, index)
    await ledger.record(judge(index, "/others", b"amount=9"))  # the outcome is written before this
    now[0] += 604_800_000_000 + 1_000
    for number in range(3):
        await ledger.record(judge(index, "/others", b"amount=%d" % number))
    ledger.close()
    with contextlib.closing(connect_reader(tmp_path / DB_NAME)) as db:
        assert db.execute("SELECT count(*) FROM prepared").fetchone() == (0,)


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        pytest.param(
            "UPDATE prepared SET receipt_id = (SELECT id FROM receipts LIMIT 1)", "did not make", id="maker"
        ),
        pytest.param("UPDATE prepared SET key = '" + "a" * 64 + "'", "did not make it", id="object"),
    ],
)
async def test_a12_an_object_that_no_outcome_bears_out_is_a_problem(
    tmp_path: Path, index: SurfaceIndex, edit: str, text: str
) -> None:
    ledger = open_ledger(tmp_path)
    await ledger.record(judge(index, "/others", b"amount=1"))
    await make(ledger, index)
    await said_of(ledger, index)
    ledger.close()
    with contextlib.closing(sqlite3.connect(tmp_path / DB_NAME)) as db:
        db.execute(edit)
        db.commit()
    (problem,) = problems(tmp_path)
    assert text in problem


async def test_a12_a_decision_that_is_bound_to_what_made_nothing_is_a_problem(
    tmp_path: Path, index: SurfaceIndex
) -> None:
    ledger = open_ledger(tmp_path)
    other = (await ledger.record(judge(index, "/others", b"amount=1"))).entry
    lying = judge(index, "/intents/pi_1/confirm")
    (key,) = lying.objects
    (made,) = (json.loads(other.inputs or b"")["actions"],)
    action = made[0] | {"operation": "m0.Create", "params": {"amount": 1, "currency": "eur"}}
    inputs = dumps_input({"agent": {"id": other.agent}, "actions": [action]})
    lie = Prepared(key=key, receipt_id=other.receipt_id, expires_us=T0 * 2, inputs=inputs)

    class Lying:
        keys, meters, denials, objects = lying.keys, (), (), ()

        def __call__(self, claims: Any, *, standing: Standing, **given: Any) -> Entry:
            return lying(claims, standing=Standing(denials={}, prepared={key: lie}), **given)

    assert (await ledger.record(Lying())).entry.outcome is Outcome.PERMIT
    ledger.close()
    (problem,) = problems(tmp_path)
    assert "which made nothing that is known" in problem


# --- the maps ---

OP = """\
hosts: [a.test]
operations:
  - {id: Make, match: {method: POST, path: /m}, surface: x.make, effect: prepare, produces: {id: body.id}%s}
  - id: Use
    match: {method: POST, path: "/u/{id}"}
    surface: x.use
    effect: commit
    params: {id: {from: path.id, type: string, required: true}, o: {from: query.o, type: string}}
    binds: {to: Make, by: params.id}
"""


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        pytest.param(OP % "" + "    produces: {id: query.x}\n", "path of one text", id="an id in a query"),
        pytest.param(
            OP % "" + "    produces: {id: body.id, as: url}\n", "must be url_query", id="an unknown decoder"
        ),
        pytest.param(
            OP % "" + "    produces: {id: body.id, as: url_query.}\n",
            "must be url_query",
            id="a decoder of nothing",
        ),
        pytest.param(
            (OP % "").replace("by: params.id", "by: params.id, once: true, parallel: true"),
            "takes such an object",
            id="once, and several at once",
        ),
        pytest.param(
            OP % "" + "    produces: {id: 'body.a[].id'}\n", "path of one text", id="an id in a list"
        ),
        pytest.param(
            OP % "" + "    produces: {id: body.id, ttl: 1h}\n", "at least as long", id="a short ttl"
        ),
        pytest.param(
            (OP % "").replace("to: Make", "to: Nobody"), "no operation of this map", id="to nothing"
        ),
        pytest.param((OP % "").replace("to: Make", "to: Use"), "with `produces`", id="to what makes nothing"),
        pytest.param((OP % "").replace("by: params.id", "by: params.o"), "required parameter", id="optional"),
        pytest.param((OP % "").replace("by: params.id", "by: id"), "must be params.NAME", id="by nothing"),
        pytest.param((OP % "").replace("effect: commit", "effect: read"), "only a prepare", id="a read"),
        pytest.param(
            (OP % "").replace("effect: prepare", "effect: read"), "only a prepare", id="a read makes"
        ),
        pytest.param(OP % ", sensitive: true", "so must be", id="what is sensitive stays so"),
        pytest.param((OP % "").replace("by: params.id", "by: params.id, blind: yes"), "allow", id="blind"),
    ],
)
def test_a_map_that_binds_wrongly_is_refused(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        index_of(spec)


def test_a_lock_keeps_what_is_bound(index: SurfaceIndex) -> None:
    again = SurfaceIndex.from_lock(json.loads(json.dumps(index.to_lock())))
    asked = request("/intents/pi_1/capture", headers={"Authorization": "Bearer sk"})
    assert recognise(again, asked) == recognise(index, asked)
    assert recognise(again, asked).bonds[0] == Bond(
        object="m0:pi_1", to=("m0.Create", "m0.Update"), once=True, blind=False
    )
    assert recognise(index, asked).conflict_keys == ("m0:bound=m0:pi_1",)


# --- an upload address that is a right by itself ---

UPLOADS = """\
hosts: [up.test]
principal: {from: header.authorization, as: bearer}
operations:
  - id: Start
    match: {method: POST, path: "/b/{bucket}"}
    surface: data.write
    effect: prepare
    produces: {id: header.location, as: url_query.upload_id}
    params: {bucket: {from: path.bucket, type: string, required: true, material: true}}
  - id: Continue
    match: {method: PUT, path: "/b/{bucket}"}
    surface: data.write
    effect: commit
    binds: {to: Start, by: params.upload_id, parallel: true}
    body: {decode: opaque}
    params:
      bucket: {from: path.bucket, type: string, required: true, material: true}
      upload_id: {from: query.upload_id, type: string, required: true, material: true, digest_only: true}
      range: {from: header.content-range, type: string, material: true}
    headers: [content-range]
"""


@pytest.fixture
def uploads(tmp_path: Path) -> Shop:
    index = index_of(UPLOADS)
    shop = Shop(index, permit_all(index, tmp_path, ["data.write"]))
    shop.upstream.headers = ((b"Location", b"https://up.test/b/mine?upload_id=s%2B1%3D"),)
    return shop


async def put(shop: Shop, upload: str, part: str, *, agent: str = "10.0.0.1", credential: str = "sk") -> Said:
    headers = {
        "Authorization": f"Bearer {credential}",
        "Content-Type": "application/octet-stream",
        "Content-Range": f"bytes {part}",
    }
    target = f"/b/mine?upload_id={upload}"
    return await shop.ask(target, b"data", method="PUT", host="up.test", agent=agent, headers=headers)


async def start(shop: Shop) -> Said:
    return await shop.ask("/b/mine", host="up.test", headers={"Authorization": "Bearer sk"})


async def test_an_upload_goes_only_to_the_address_that_the_agent_was_given(uploads: Shop) -> None:
    before = await put(uploads, "s%2B1%3D", "0-3/8")
    assert (before.reason, uploads.sent) == ("input_unavailable", [])
    made = await start(uploads)
    for foreign in ("theirs", "s%252B1%253D", "S%2B1%3D", "s%2B1"):
        assert (await put(uploads, foreign, "0-3/8")).reason == "input_unavailable"
    assert (await put(uploads, "s%2B1%3D", "0-3/8", agent="10.0.0.2")).reason == "input_unavailable"
    assert (await put(uploads, "s%2B1%3D", "0-3/8", credential="other")).reason == "input_unavailable"
    assert uploads.sent == [b"/b/mine"]
    first = await put(uploads, "s%2B1%3D", "0-3/8")
    assert (first.outcome, statement(uploads, first.receipt)["binds"]) == ("PERMIT", [made.receipt])


async def test_every_chunk_of_an_upload_is_bound_and_none_waits_for_another(uploads: Shop) -> None:
    await start(uploads)
    uploads.upstream.status = 308
    for part in ("0-3/12", "4-7/12"):
        assert (await put(uploads, "s%2B1%3D", part)).outcome == "PERMIT"
    uploads.upstream.error = DispatchError(OutcomeStatus.UNKNOWN, 502, "reset by the test")
    lost = await put(uploads, "s%2B1%3D", "8-11/12")
    assert (lost.status, len(uploads.sent)) == (502, 4)
    uploads.upstream.error = None
    # The answer was lost: how far did it get?
    assert (await put(uploads, "s%2B1%3D", "*/12")).outcome == "PERMIT"


async def test_an_upload_that_was_answered_with_another_host_is_not_known(uploads: Shop) -> None:
    uploads.upstream.headers = ((b"Location", b"https://evil.test/b/mine?upload_id=s1"),)
    await start(uploads)
    assert (await put(uploads, "s1", "0-3/8")).reason == "input_unavailable"


def test_a_lock_keeps_where_an_address_stands() -> None:
    index = index_of(UPLOADS)
    again = SurfaceIndex.from_lock(json.loads(json.dumps(index.to_lock())))
    asked = request("/b/mine", host="up.test", headers={"Authorization": "Bearer sk"})
    found = recognise(again, asked).produces
    assert found == recognise(index, asked).produces
    assert found is not None
    assert (found.header, found.form) == ("location", "url_query.upload_id")


ADDRESSES = """\
hosts: [api.talk.test]
principal: {from: header.authorization, as: bearer}
defaults: {body: {decode: form}}
operations:
  - id: Place
    match: {method: POST, path: /place}
    surface: talk.send
    effect: prepare
    produces: {id: body.url, as: url_last_segment, host: files.talk.test}
    params: {size: {from: body.size, type: int, required: true, material: true}}
  - id: Plain
    match: {method: POST, path: /plain}
    surface: talk.send
    effect: prepare
    produces: {id: body.url}
"""
FILES = """\
hosts: [files.talk.test]
principal: {from: header.authorization, as: bearer}
operations:
  - id: Upload
    match: {method: POST, path: "/upload/{upload}"}
    surface: talk.send
    effect: prepare
    binds: {map: m0, to: Place, by: params.upload, principal: any, parallel: true}
    body: {decode: opaque}
    params: {upload: {from: path.upload, type: string, required: true, material: true, digest_only: true}}
"""


async def send(shop: Shop, upload: str, *, agent: str = "10.0.0.1", credential: str = "") -> Said:
    headers = {"Authorization": f"Bearer {credential}"} if credential else {}
    return await shop.ask(f"/upload/{upload}", b"data", host="files.talk.test", agent=agent, headers=headers)


async def place(shop: Shop, url: str) -> Said:
    shop.upstream.body = json.dumps({"ok": True, "url": url}).encode()
    headers = {"Authorization": "Bearer sk", "Content-Type": FORM}
    return await shop.ask("/place", b"size=4", host="api.talk.test", headers=headers)


async def test_an_address_at_another_host_is_known_there_to_the_agent_that_was_given_it(
    tmp_path: Path,
) -> None:
    index = index_of(ADDRESSES, FILES)
    shop = Shop(index, permit_all(index, tmp_path, ["talk.send"]))
    assert ((await send(shop, "a1")).reason, shop.sent) == ("input_unavailable", [])
    for elsewhere in ("https://api.talk.test/upload/a1", "https://files.talk.test/upload/a1?b", "a1"):
        await place(shop, elsewhere)
        assert (await send(shop, "a1")).reason == "input_unavailable"
    made = await place(shop, "https://files.talk.test/upload/a1")
    assert (await send(shop, "theirs")).reason == "input_unavailable"
    assert (await send(shop, "a1", agent="10.0.0.2")).reason == "input_unavailable"
    assert set(shop.sent) == {b"/place"}
    for credential in ("", "sk", "sk2"):  # the address is the right: some clients send nothing beside it
        done = await send(shop, "a1", credential=credential)
        assert (done.outcome, statement(shop, done.receipt)["binds"]) == ("PERMIT", [made.receipt])


def test_policies_read_what_another_map_made() -> None:
    index = index_of(ADDRESSES, FILES)
    again = SurfaceIndex.from_lock(json.loads(json.dumps(index.to_lock())))
    for one in (index, again):
        schema, needed = one.bound_schema("talk.send", ("m1.Upload",))
        assert (list(schema), needed) == (["size"], True)


@pytest.mark.parametrize(
    ("one", "two", "message"),
    [
        pytest.param(ADDRESSES, FILES.replace("map: m0", "map: m7"), "no map 'm7'", id="no such map"),
        pytest.param(
            ADDRESSES, FILES.replace("to: Place", "to: No"), "of the map 'm0'", id="no such operation"
        ),
        pytest.param(
            ADDRESSES, FILES.replace("to: Place", "to: Plain"), "at a host of", id="no object there"
        ),
        pytest.param(
            ADDRESSES.replace("host: files.talk.test}", "host: evil.test}"),
            FILES,
            "at a host of",
            id="elsewhere",
        ),
        pytest.param(
            ADDRESSES.replace("params: {size", "sensitive: true\n    params: {size"),
            FILES,
            "so must be",
            id="open",
        ),
        pytest.param(
            ADDRESSES, FILES.replace("parallel:", "once:"), "needs the principal", id="once for any"
        ),
    ],
)
def test_a_map_that_binds_to_another_wrongly_is_refused(one: str, two: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        index_of(one, two)


# --- batches ---

BATCH = """\
hosts: [api.pay.test]
defaults: {body: {decode: json}}
operations:
  - {id: Make, match: {method: POST, path: /m}, surface: x.make, effect: prepare, produces: {id: body.id}}
  - id: Use
    match: {method: POST, path: /u}
    surface: x.use
    effect: commit
    params: {id: {from: body.id, type: string, required: true, material: true}}
    binds: {to: Make, by: params.id, once: true}
  - id: UseAll
    match: {method: POST, path: /all}
    explode: {over: body.ids, max: 100, as: Use, item: {id: id}}
"""


async def used(shop: Shop, path: str, body: object) -> Said:
    headers = {"Content-Type": "application/json"}
    return await shop.ask(path, json.dumps(body).encode(), host="api.pay.test", headers=headers)


async def test_every_action_of_a_batch_is_bound_to_its_own_object(tmp_path: Path) -> None:
    index = index_of(BATCH)
    shop = Shop(index, permit_all(index, tmp_path, ["x.make", "x.use"]))
    made = []
    for name in ("a", "b"):
        shop.upstream.body = b'{"id":"%s"}' % name.encode()
        made.append((await used(shop, "/m", {})).receipt)
    unknown = await used(shop, "/all", {"ids": [{"id": "a"}, {"id": "c"}]})
    assert (unknown.reason, len(shop.sent)) == ("input_unavailable", 2)
    both = await used(shop, "/all", {"ids": [{"id": "a"}, {"id": "b"}]})
    assert (both.outcome, statement(shop, both.receipt)["binds"]) == ("PERMIT", sorted(made))
    again = await used(shop, "/u", {"id": "b"})
    assert (again.reason, len(shop.sent)) == ("already_executed", 3)
    many = await used(shop, "/all", {"ids": [{"id": f"x{number}"} for number in range(33)]})
    assert many.reason == "batch_refused"


# --- policies, their tests, explain, diff ---

SUITE = """\
apiVersion: holdgate/v1
kind: PolicyTest
metadata: {name: charges-test}
spec:
  policy: charges
  defaults: {action: {operation: m0.Confirm}, params: {intent: pi_1}, bound: {params: {currency: eur}}}
  cases:
  - name: amounts
    matrix: {bound.params.amount: [0, 1, 5000, 5001]}
    expect_each: [SILENCE, PERMIT, PERMIT, SILENCE]
  - {name: nothing, with: {bound: null}, expect: {outcome: SILENCE, reason: input_unavailable}}
  - {name: never, with: {bound: {params: {amount: 666}}}, expect: {outcome: DENY, rules: [never]}}
  - name: what is not bound sees nothing of it
    with: {action: {operation: m0.Other}, params: {intent: null, amount: 5}, bound: {params: {amount: 666}}}
    expect: {outcome: PERMIT, rules: [make]}
"""


def suite(tmp_path: Path, index: SurfaceIndex, text: str) -> TestReport:
    (tmp_path / "charges.yaml").write_text(POLICY)
    (tmp_path / "charges_test.yaml").write_text(text)
    return run_tests([tmp_path], load_policies([tmp_path], index), index)


def test_a_policys_tests_say_what_an_action_is_bound_to(tmp_path: Path, index: SurfaceIndex) -> None:
    report = suite(tmp_path, index, SUITE)
    assert [(result.name, result.got) for result in report.failed] == []
    assert len(report.results) == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(("currency: eur", "curency: eur"), "did you mean 'currency'", id="a misspelt parameter"),
        pytest.param(("currency: eur", "currency: [eur]"), "bound.params.currency is string", id="a type"),
        pytest.param(("bound: {params", "bound: {parameters"), "unknown key", id="a misspelt part"),
    ],
)
def test_what_an_action_cannot_be_bound_to_is_an_error(
    tmp_path: Path, index: SurfaceIndex, change: tuple[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        suite(tmp_path, index, SUITE.replace(*change))


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        pytest.param("bound.params.amount > 5", "guard it: has\\(bound.params.amount\\)", id="unguarded"),
        pytest.param("has(bound.params.amont)", "did you mean 'bound.params.amount'", id="misspelt"),
        pytest.param(
            'has(bound.params.amount) && bound.params.amount == "5"', "without quotes", id="another type"
        ),
    ],
)
def test_conditions_over_what_is_bound_are_typed(
    tmp_path: Path, index: SurfaceIndex, condition: str, message: str
) -> None:
    (tmp_path / "charges.yaml").write_text(
        POLICY.replace('action.operation == "m0.Look" && !has(bound.params.amount)', f"'{condition}'")
    )
    with pytest.raises(ConfigError, match=message):
        load_policies([tmp_path], index)


async def test_explain_reads_what_the_ledger_knows(tmp_path: Path, index: SurfaceIndex) -> None:
    (tmp_path / "charges.yaml").write_text(POLICY)
    bundle = Shop(index, tmp_path).bundle("00")
    folder = tmp_path / "state"
    folder.mkdir(0o700)
    ledger = open_ledger(folder)
    await make(ledger, index)
    ledger.close()
    raw = b"POST /intents/pi_1/confirm HTTP/1.1\r\nHost: api.pay.test\r\nAuthorization: Bearer sk\r\n\r\n"

    def explained(**how: Any) -> Any:
        given = {"fleet_key": b"f" * 32, "now_us": T0 + 1} | how
        return explain(raw, lambda origin: Agent(id="bot", groups=(), attrs=()), bundle, Limits(), **given)

    with SqliteReader(folder) as reader:
        found = explained(prepared=reader.prepared)
    assert found.decision.reason is Reason.PERMIT_RULE
    assert found.inputs["actions"][0]["bound"]["params"] == {"amount": 1000, "currency": "eur"}
    assert explained().decision.reason is Reason.INPUT_UNAVAILABLE
    large = {"operation": "m0.Create", "params": {"amount": 9000, "currency": "eur"}}
    assert explained(bound=large).decision.reason is Reason.NO_RULE_MATCHED


async def test_a_decision_on_what_is_bound_replays(shop: Shop) -> None:
    await create(shop)
    await confirm(shop)
    await confirm(shop, "pi_2")
    policies = shop.pipeline.bundle.policies
    records = [
        Record(statement=statement(shop, entry.receipt_id), inputs=entry.inputs)
        for entry in shop.ledger.entries
    ]
    assert [found.verdict.value for found in replay(records, lambda _: policies)] == ["identical"] * 3


def test_diff_does_not_try_what_is_bound(tmp_path: Path, index: SurfaceIndex) -> None:
    (tmp_path / "charges.yaml").write_text(POLICY)
    shop = Shop(index, tmp_path)
    (tmp_path / "charges.yaml").write_text(POLICY.replace("largest: 5000", "largest: 6000"))
    found = diff(shop.pipeline.bundle, shop.bundle("01"))
    assert {"m0.Confirm", "m0.Capture"} <= set(found.untried)
    assert "m0.Create" not in found.untried


@pytest.mark.parametrize(
    "bound",
    [
        pytest.param("pi_1", id="a text"),
        pytest.param({"params": {"amount": 5}}, id="no operation"),
        pytest.param({"operation": "m0.Create", "params": []}, id="parameters that are a list"),
        pytest.param({"operation": "m0.Create", "params": {"amount": "5"}}, id="a text for a number"),
        pytest.param({"operation": "m0.Create", "params": {"amount": 2**63}}, id="beyond 64 bits"),
    ],
)
def test_what_is_bound_and_not_of_its_type_fails_every_rule(shop: Shop, bound: Any) -> None:
    action = {
        "surface": "payments.charge",
        "operation": "m0.Confirm",
        "effect": "commit",
        "host": "api.pay.test",
        "params": {"intent": "pi_1"},
        "bound": bound,
    }
    inputs = {
        "v": 1,
        "agent": {"id": "bot", "groups": [], "attrs": {}},
        "actions": [action],
        "request": {"digest": "sha256:" + "0" * 64},
        "clock": {"now_s": 0, "hour_utc": 0, "weekday_utc": 4},
        "approvals": [],
    }
    policies = shop.pipeline.bundle.policies
    assert decide(policies, inputs).reason is Reason.RULE_ERROR
    action["bound"] = {"operation": "m0.Create", "params": {"amount": 5, "currency": "eur", "other": []}}
    assert decide(policies, inputs).reason is Reason.PERMIT_RULE


async def test_two_bundles_decide_what_is_bound_as_the_gate_does(shop: Shop, tmp_path: Path) -> None:
    for amount in (1000, 6000):
        await create(shop, amount)
        await confirm(shop)
        await confirm(shop, "pi_2")
    old = shop.pipeline.bundle.policies
    (tmp_path / "charges.yaml").write_text(POLICY.replace("largest: 5000", "largest: 6000"))
    new = shop.bundle("01").policies
    pair = Pair(old, new)
    for inputs in [json.loads(entry.inputs) for entry in shop.ledger.entries] * 2:
        both, _ = pair.decide(inputs)
        assert (both.old, both.new) == (decide(old, inputs), decide(new, inputs))


# --- several who hold a credential of one account: the vendor answers a repeated key to any of them ---


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"agent": "10.0.0.2"}, id="another agent"),
        pytest.param({"credential": "sk_other"}, id="another credential"),
    ],
)
async def test_st6_what_others_make_or_change_is_never_confirmed_on_an_older_decision(
    shop: Shop, other: dict[str, str]
) -> None:
    await create(shop, 1000, key="k")
    await create(shop, 1000, key="k", **other)  # the vendor's old answer names pi_1
    changed = await ask(shop, "/intents/pi_1", amount=9000)
    assert changed.outcome == "PERMIT"
    done = await confirm(shop, **other)
    assert (done.outcome, done.reason) == ("SILENCE", "input_unavailable")
    assert (await confirm(shop)).reason == "no_rule_matched"
    assert shop.sent == [b"/intents", b"/intents", b"/intents/pi_1"]


async def test_st6_nobody_is_told_what_another_did_with_its_object(shop: Shop) -> None:
    await create(shop)
    first = await ask(shop, "/intents/pi_1/capture", key="a")
    again = await ask(shop, "/intents/pi_1/capture", key="b", agent="10.0.0.2")
    assert (first.outcome, again.reason, again.status) == ("PERMIT", "input_unavailable", 403)
    assert first.receipt.encode() not in again.body


async def test_st6_an_object_that_another_changed_blindly_is_not_known_any_more(tmp_path: Path) -> None:
    blind = MAP.replace(
        "Create, Update], by: params.intent, once: true}",
        "Create], by: params.intent, once: true, blind: allow}",
        1,
    )
    assert blind != MAP
    index = index_of(blind)
    shop = Shop(index, permit_all(index, tmp_path, ["payments.charge"]))
    shop.upstream.body = b'{"id":"pi_1"}'
    await create(shop, 1000)
    for _ in range(2):
        changed = await ask(shop, "/intents/pi_1", amount=9000, agent="10.0.0.2")
        assert changed.outcome == "PERMIT"
    done = await confirm(shop)
    assert (done.outcome, done.reason) == ("SILENCE", "already_executed")
    assert len(shop.sent) == 3


async def test_st5_a_create_repeated_when_its_key_and_the_object_are_forgotten_here_makes_nothing_known(
    tmp_path: Path,
) -> None:
    index = index_of(MAP.replace("produces: {id: body.id}", "produces: {id: body.id, ttl: 24h}"))
    shop = Shop(index, permit_all(index, tmp_path, ["payments.charge"]))
    shop.upstream.body = b'{"id":"pi_1"}'
    await create(shop, 1000, key="k")
    await ask(shop, "/intents/pi_1", amount=9000)
    shop.ledger.now_us += 86_400_000_000 + 60_000_000
    again = await create(
        shop, 1000, key="k"
    )  # vendors keep keys for at least a day: this may be the old answer
    assert again.outcome == "PERMIT"
    assert (await confirm(shop)).reason == "input_unavailable"
    assert len(shop.sent) == 3
