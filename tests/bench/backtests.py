"""Backtests for `make bench BENCH=--policies`: a ledger of refunds, decided again under other policies.

CPU time of one record, the sides in turns, medians of all turns:
    ours     what `holdgate backtest` does: read the rows of the ledger, decode receipt and input, compare the
             input's digest and its own bundle's decision, decide under the new one (frozen, resimulated)
    records  a bare loop over the same records, in memory already: decode the JSON of receipt and input
             (orjson, as ours does), decide the input once, under one bundle
    inputs   the same over the inputs alone: no receipt is looked at
    stdlib   as `inputs`, with json.loads
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from holdgate.adapters.sqlite_reader import SqliteReader
from holdgate.adapters.sqlite_schema import DB_NAME, PUT_PERMIT, PUT_RECEIPT, STEPS, VERSION, charges_text
from holdgate.adjudicate import Adjudication, Evidence
from holdgate.agents import Agent
from holdgate.backtest_report import Report
from holdgate.bundle import Bundle, load_bundle
from holdgate.case import Case
from holdgate.cli.backtest import backtest_of
from holdgate.counters import Book
from holdgate.digest import wire_digest
from holdgate.errors import Outcome
from holdgate.files import packaged
from holdgate.gate import decide
from holdgate.keys import SigningKey, unb64url
from holdgate.policy_model import PolicySet
from holdgate.receipt import new_receipt_id
from surface_requests import FLEET_KEY, FORM, request

__all__ = ["BACKTESTS", "Timed", "bare_loops", "bundle_of", "made_ledger", "measured_backtests", "ours"]

RECORDS = 2000
NOW_US = 1_790_000_000_000_000
POLICY = """\
apiVersion: holdgate/v1
kind: Policy
metadata: {{name: refunds, owner: payments-risk@example.com}}
spec:
  surface: payments.refund
  constants: {{small: {small}, never_above: 100000}}{counters}
  rules:
  - id: small-refund
    effect: permit
    when: >-
      has(params.amount) && params.amount >= 1 && params.amount <= constants.small{cap}
      && params.reference != "" && !has(params.account) && !has(params.context)
  - id: too-large
    effect: deny
    when: has(params.amount) && params.amount > constants.never_above
    reason: refunds above 1000.00 are not delegated to agents
"""
MORE = """\
  - id: nobody
    effect: deny
    when: params.reference == "ch_{n}" || clock.hour_utc < 0
    reason: this charge is under dispute
  - id: ops
    effect: permit
    when: '"ops{n}" in agent.groups && has(params.amount) && params.amount <= 500000'
  - id: ask
    effect: review
    when: has(params.amount) && params.amount > {n} && params.amount <= 20000 && clock.hour_utc >= 6
"""
COUNTERS = "\n  counters: {day: {key: [agent.id], window: 24h, measure: sum(params.amount)}}"


def policy(small: int = 10_000, cap: int = 0, n: int = 0) -> str:
    """`cap`: counted, with this limit a day; `n`: five rules, three of which say `n`."""
    counted = f" && counters.day.sum + params.amount <= {cap}" if cap else ""
    text = POLICY.format(small=small, counters=COUNTERS if cap else "", cap=counted)
    return text + (MORE.format(n=n) if n else "")


# name: the policy that decided, and the one to try
BACKTESTS = {
    "2 rules, none differs": (policy(), policy() + "# same\n"),
    "2 rules, one differs": (policy(), policy().replace("params.amount >= 1 ", "params.amount >= 2000 ")),
    "5 rules, all differ": (policy(n=1), policy(12_000, n=2)),
    "5 rules, other counter limit": (policy(cap=5_000_000, n=1), policy(cap=4_000_000, n=1)),
    "5 rules, all differ, counters": (policy(cap=5_000_000, n=1), policy(12_000, cap=4_000_000, n=2)),
    "5 rules, counters in the new one only": (policy(n=1), policy(cap=4_000_000, n=1)),
}


@dataclass(frozen=True)
class Timed:
    name: str
    ours_us: float
    theirs_us: float
    ratio: float  # ours to theirs, turn by turn: 2.0 is half the rate


def bundle_of(folder: Path, text: str) -> Bundle:
    folder.mkdir(parents=True)
    (folder / "refunds.yaml").write_text(text)
    return load_bundle([packaged("surfaces") / "stripe"], [folder])


def made_ledger(folder: Path, bundle: Bundle, records: int = RECORDS) -> None:
    """A ledger of refunds decided and signed under `bundle`, as the proxy writes them."""
    evidence = Evidence(
        signer=SigningKey(seed=b"s" * 32), issuer="bench/log", node="n1", fleet_key=FLEET_KEY, draw=bytes
    )
    book = Book()
    with contextlib.closing(sqlite3.connect(folder / DB_NAME)) as db:
        for step in STEPS:
            db.executescript(step)
        db.execute(f"PRAGMA user_version = {VERSION}")
        for number in range(records):
            now_us = NOW_US + number * 7_000_000
            judge = Adjudication(refund(bundle, number), bundle, evidence)
            budgets = book.budgets(judge.meters, now_us)
            receipt_id = new_receipt_id(now_us, number.to_bytes(16))
            entry = judge({}, now_us=now_us, receipt_id=receipt_id, budgets=budgets)
            said = entry.outcome.value, entry.reason.value, entry.agent, entry.surface, now_us, entry.jws
            db.execute(PUT_RECEIPT, (2 * number, receipt_id, "decision", *said))
            db.execute("INSERT INTO inputs VALUES (?,?)", (2 * number, entry.inputs))
            if entry.outcome is Outcome.PERMIT:
                book.permit(receipt_id, entry.charges)
                charges = charges_text(entry.charges)
                db.execute(PUT_PERMIT, (2 * number, receipt_id, "executed", "", 200, "", charges, ""))
                ended = "outcome", "", "executed", entry.agent, entry.surface, now_us, entry.jws
                db.execute(PUT_RECEIPT, (2 * number + 1, f"{receipt_id}o", *ended))
        db.execute(
            "INSERT INTO head (one, origin, node, size, iat_us, hashes) VALUES (1, ?, 'n1', ?, ?, x'')",
            ("bench/log", 2 * records, now_us),
        )
        db.commit()


def refund(bundle: Bundle, number: int) -> Case:
    headers = FORM | {"Authorization": "Bearer sk_test_x", "Idempotency-Key": f"k{number}"}
    body = f"charge=ch_{number}&amount={1 + number * 7919 % 15_000}&reason=requested_by_customer".encode()
    asked = request("/v1/refunds", host="api.stripe.com", headers=headers, body=body)
    seen = bundle.index.recognise(asked, fleet_key=FLEET_KEY, body_bytes=len(body))
    wire = wire_digest("POST", asked.raw_target, seen.headers, body, secret_headers=seen.secret_headers)
    return Case(
        agent=Agent(id=f"bot-{number % 20}", groups=("payments",), attrs=()),
        request=asked,
        recognised=seen,
        wire=wire,
        raw_digest="",
        raw_bytes=len(body),
        refusal=None,
    )


def ours(folder: Path, old: Bundle, new: Bundle) -> Report:
    with SqliteReader(folder) as reader:
        return backtest_of(reader, {old.digest: old.policies}.get, new)


def bare_loops(folder: Path, policies: PolicySet) -> dict[str, Callable[[], None]]:
    with SqliteReader(folder) as reader:
        kept = [(jws, inputs) for jws, inputs, _ in reader.decisions() if inputs is not None]

    def records() -> None:
        for jws, inputs in kept:
            orjson.loads(unb64url(jws.split(b".")[1]))
            decide(policies, orjson.loads(inputs))

    def inputs_alone(parse: Callable[[bytes], Any]) -> Callable[[], None]:
        def loop() -> None:
            for _, inputs in kept:
                decide(policies, parse(inputs))

        return loop

    return {"records": records, "inputs": inputs_alone(orjson.loads), "stdlib": inputs_alone(json.loads)}


def measured_backtests(work: Path, turns: int, records: int = RECORDS) -> list[Timed]:
    found = []
    for number, (name, (before, after)) in enumerate(BACKTESTS.items()):
        folder = work / f"backtest{number}"
        old, new = bundle_of(folder / "old", before), bundle_of(folder / "new", after)
        made_ledger(folder, old, records)
        loops = bare_loops(folder, old.policies)
        spent = [
            (_cpu_us(lambda: ours(folder, old, new)), [_cpu_us(each) for each in loops.values()])  # noqa: B023
            for _ in range(turns)
        ]
        mine = statistics.median(one for one, _ in spent) / records
        for at, what in enumerate(loops):
            theirs = statistics.median(others[at] for _, others in spent) / records
            ratio = statistics.median(one / others[at] for one, others in spent)
            found.append(Timed(f"backtest, {name} / bare, {what}", mine, theirs, ratio))
    return found


def _cpu_us(call: Callable[[], object]) -> float:
    begin = time.process_time()
    call()
    return (time.process_time() - begin) * 1e6
