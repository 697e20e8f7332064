"""Exactly once, at the recorder: parallel identical requests, one budget, one thing acted on."""

from __future__ import annotations

import http.client
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from behind import Bench, Said, agree_on_one_refund, at_once, give_budget, post
from holdgate.adapters.sqlite_reader import SqliteReader
from holdgate.demo.instance import Instance
from holdgate.demo.standins import StandIns

PARALLEL = 64


@pytest.fixture(scope="module")
def budgeted(vendors: StandIns, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """Refunds of at most 1000 a day and agent."""
    gate = Instance(tmp_path_factory.mktemp("budget"), connect_to=vendors.connect_to())
    give_budget(gate, 1000)
    with gate:
        yield gate


def test_64_identical_refunds_reach_the_vendor_once_and_64_answers_agree(
    gate: Instance, vendors: StandIns, monkeypatch: pytest.MonkeyPatch
) -> None:
    intent = vendors.stripe.charged(5000)
    before = vendors.counts("stripe").requests
    monkeypatch.setattr(vendors.stripe, "delay_s", 3.0)  # so that all come while the first is in flight
    form = {"payment_intent": intent, "amount": 700}
    answers = at_once(PARALLEL, lambda _, all_: post(gate, "/v1/refunds", "same-64", together=all_, **form))
    agree_on_one_refund(answers, vendors, intent)
    assert vendors.counts("stripe").requests - before == 1


def test_two_refunds_of_one_charge_are_never_open_at_once(
    gate: Instance, vendors: StandIns, monkeypatch: pytest.MonkeyPatch
) -> None:
    intent = vendors.stripe.charged(5000)

    def refund(n: int, together: Barrier) -> Said:
        form = {"payment_intent": intent, "amount": 10 + n}
        return post(gate, "/v1/refunds", f"c-{n}", together=together, **form)

    with monkeypatch.context() as slow:
        slow.setattr(vendors.stripe, "delay_s", 2.0)
        answers = Counter((each.status, each.reason) for each in at_once(8, refund))
    assert answers == {(200, "permit_rule"): 1, (409, "conflict"): 7}
    after = post(gate, "/v1/refunds", "c-after", payment_intent=intent, amount=9)
    assert (after.status, after.decision) == (200, "PERMIT")


def test_a_budget_holds_under_parallel_refunds(budgeted: Instance, vendors: StandIns) -> None:
    intents = [vendors.stripe.charged(1000) for _ in range(PARALLEL)]
    with ThreadPoolExecutor(PARALLEL) as pool:
        asked = [
            pool.submit(post, budgeted, "/v1/refunds", f"b-{n}", payment_intent=intent, amount=90)
            for n, intent in enumerate(intents)
        ]
        answers = [each.result() for each in asked]
    assert Counter(each.decision for each in answers) == {"PERMIT": 11, "SILENCE": 53}
    made = [each for each in vendors.stripe.of_kind("refund") if each["payment_intent"] in intents]
    assert sum(each["amount"] for each in made) == 990
    # A refund that Stripe refuses gives its reservation back.
    for _ in range(3):
        assert post(budgeted, "/v1/refunds", payment_intent="pi_none", amount=10).status == 404
    assert post(budgeted, "/v1/refunds", "last", payment_intent=intents[-1], amount=10).decision == "PERMIT"
    assert post(budgeted, "/v1/refunds", payment_intent=intents[-1], amount=1).decision == "SILENCE"
    # And a repeat under the vendor's key is not charged again.
    repeated = post(budgeted, "/v1/refunds", "last", payment_intent=intents[-1], amount=10)
    assert (repeated.status, repeated.decision) == (200, "PERMIT")


def test_the_budget_replays_and_passes_the_audit(
    budgeted: Instance, vendors: StandIns, tmp_path: Path
) -> None:
    bench = Bench(budgeted, vendors, tmp_path)
    audit = bench.holdgate("log", "audit")
    assert audit.returncode == 0, audit.stdout + audit.stderr
    replay = bench.holdgate("replay")
    assert replay.returncode == 0, replay.stdout + replay.stderr
    rows = [json.loads(line)["receipt"] for line in bench.holdgate("receipts", "export").stdout.splitlines()]
    charged = [row for row in rows if "budget" in row]
    assert charged
    assert {len(row["budget"]) for row in charged} == {1}
    assert not [row for row in charged if "replay_of" in row]


def test_a_crash_leaves_unknown_and_an_operator_settles_it_live_and_offline(
    vendors: StandIns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Instance(tmp_path / "gate", connect_to=vendors.connect_to())
    bench = Bench(gate, vendors, tmp_path)
    first, second = vendors.stripe.charged(1000), vendors.stripe.charged(1000)
    with gate, monkeypatch.context() as slow, ThreadPoolExecutor(2) as pool:
        slow.setattr(vendors.stripe, "delay_s", 5.0)
        asked = [
            pool.submit(post, gate, "/v1/refunds", payment_intent=intent, amount=5)
            for intent in (first, second)
        ]
        _until(lambda: _permits(gate) == 2)
        gate.kill()
        assert all(isinstance(each.exception(), OSError | http.client.HTTPException) for each in asked)
    with gate:
        waiting = json.loads(bench.holdgate("reconcile", "list", "--json").stdout)
        assert [each["actions"][0]["params"]["amount"] for each in waiting] == [5, 5]
        held = post(gate, "/v1/refunds", payment_intent=first, amount=5)
        assert (held.status, held.reason) == (409, "outcome_unknown")
        live = bench.holdgate("reconcile", "resolve", _of(waiting, first), "--status", "not_sent")
        assert live.returncode == 0, live.stderr
        again = bench.holdgate("reconcile", "resolve", _of(waiting, first), "--status", "executed")
        assert (again.returncode, "is not_sent, not unknown" in again.stderr) == (1, True)
        assert post(gate, "/v1/refunds", payment_intent=first, amount=5).decision == "PERMIT"
    offline = bench.holdgate("reconcile", "resolve", _of(waiting, second), "--status", "executed")
    assert offline.returncode == 0, offline.stderr
    assert bench.holdgate("reconcile", "list", "--json").stdout.strip() == "[]"
    audit = bench.holdgate("log", "audit")
    assert audit.returncode == 0, audit.stdout + audit.stderr
    with gate:
        told = post(gate, "/v1/refunds", payment_intent=second, amount=5)
        assert (told.status, told.reason) == (409, "already_executed")


def _permits(gate: Instance) -> int:
    with SqliteReader(gate.state_dir) as reader:
        return len(reader.list(outcome="PERMIT").receipts)


def _of(waiting: list[Any], intent: str) -> str:
    found = [each["id"] for each in waiting if each["actions"][0]["params"]["reference"] == intent]
    return str(found[0])


def _until(holds: Callable[[], bool], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen"


def test_a_confirmation_is_tied_to_what_was_created_here(gate: Instance, vendors: StandIns) -> None:
    foreign = vendors.stripe._intent({"amount": "100", "currency": "usd"})["id"]
    before = vendors.counts("stripe").requests
    blind = post(gate, f"/v1/payment_intents/{foreign}/confirm")
    assert (blind.status, blind.decision, blind.reason) == (403, "SILENCE", "input_unavailable")
    assert vendors.counts("stripe").requests == before

    form = {"currency": "usd", "customer": "cus_1"}
    made = post(gate, "/v1/payment_intents", amount=1500, **form)
    assert made.decision == "PERMIT", made
    intent = json.loads(made.body)["id"]
    raised = post(gate, f"/v1/payment_intents/{intent}", amount=400_000, **form)
    assert (raised.decision, raised.reason) == ("SILENCE", "no_rule_matched")
    done = post(gate, f"/v1/payment_intents/{intent}/confirm")
    assert (done.status, done.decision) == (200, "PERMIT"), done
    with SqliteReader(gate.state_dir) as ledger:
        inputs = json.loads(ledger.input(done.receipt) or b"{}")
    assert inputs["actions"][0]["bound"]["receipt"] == made.receipt
    assert inputs["actions"][0]["bound"]["params"]["amount"] == 1500
    assert vendors.counts("stripe").requests - before == 2


def test_a_denied_refund_that_is_repeated_names_the_first(gate: Instance, vendors: StandIns) -> None:
    before = vendors.counts("stripe").requests
    first = post(gate, "/v1/payment_intents", "deny-1", amount=900_000, currency="usd", customer="cus_1")
    again = post(gate, "/v1/payment_intents", "deny-1", amount=900_000, currency="usd", customer="cus_1")
    assert {(each.status, each.decision, each.reason) for each in (first, again)} == {
        (403, "DENY", "deny_rule")
    }
    assert first.receipt.encode() in again.body and first.receipt != again.receipt
    assert vendors.counts("stripe").requests == before
