"""backtest.py and its command: flips, money, counters built again, and nothing that is a guess."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from holdgate import gate
from holdgate.backtest import NotReplayed, backtest
from holdgate.backtest_report import Change, Report
from holdgate.bundle import Bundle, load_bundle
from holdgate.cli import backtest as command
from holdgate.cli import main
from holdgate.jcs import dumps, dumps_input
from holdgate.keys import b64url
from holdgate.receipt import input_digest
from holdgate.replay import Record
from holdgate.statement import format_us, parse_us

MAP = """
apiVersion: holdgate/v1
kind: SurfaceMap
metadata: {name: pay, owner: a@example.com}
spec:
  hosts: [api.pay.test]
  operations:
  - id: refund
    match: {method: POST, path: /refunds}
    surface: payments.refund
    effect: commit
    body: {decode: json}
    params:
      amount: {from: body.amount, type: int, required: true, material: true}
      currency: {from: body.currency, type: string, required: true, material: true}
"""
POLICY = """
apiVersion: holdgate/v1
kind: Policy
metadata: {name: refunds, owner: a@example.com}
spec:
  surface: payments.refund
  rules:
  - {id: small, effect: permit, when: params.amount <= 100}
  - {id: never, effect: deny, reason: too much, when: params.amount > 1000}
"""
CAPPED = POLICY.replace(
    "  rules:",
    "  counters: {day: {key: [agent.id], window: 24h, measure: sum(params.amount)}}\n  rules:",
).replace("params.amount <= 100", "counters.day.sum + params.amount <= 150")
T0 = 1_790_000_000_000_000


def load(folder: Path, policy: str = POLICY, surfaces: str = MAP) -> Bundle:
    folder.mkdir()
    (folder / "map.yaml").write_text(surfaces)
    (folder / "policy.yaml").write_text(policy)
    return load_bundle([folder / "map.yaml"], [folder / "policy.yaml"])


@pytest.fixture
def old(tmp_path: Path) -> Bundle:
    return load(tmp_path / "old")


def record(bundle: Bundle, amount: int, *, number: int = 0, agent: str = "bot", **change: Any) -> Record:
    action = {
        "surface": "payments.refund",
        "operation": "pay.refund",
        "effect": "commit",
        "host": "api.pay.test",
        "params": {"amount": amount, "currency": "eur"},
    }
    inputs = {
        "v": 1,
        "agent": {"id": agent, "groups": [], "attrs": {}},
        "actions": [action],
        "request": {"digest": "sha256:" + "ab" * 32},
        "clock": {"now_s": T0 // 1_000_000 + number, "hour_utc": 7, "weekday_utc": 2},
        "approvals": [],
    }
    decision = gate.decide(bundle.policies, inputs)
    data = dumps_input(inputs)
    statement = {
        "id": f"rcpt_{number}",
        "iat": format_us(T0 + number * 1_000_000),
        "outcome": decision.outcome.value,
        "reason": decision.reason.value,
        "engine": gate.ENGINE,
        "policy": {"digest": bundle.digest},
        "input_digest": input_digest(data),
    } | ({"rules": list(decision.rules)} if decision.rules else {})
    kept = change.pop("inputs", data)
    said = {name: value for name, value in (statement | change).items() if value is not None}
    return Record(statement=said, inputs=kept)


def run(records: Iterable[Record], old: Bundle, new: Bundle, **named: Any) -> Report:
    return backtest(records, {old.digest: old.policies}.get, new, **named)


def amounts(old: Bundle, *values: int) -> list[Record]:
    return [record(old, amount, number=number) for number, amount in enumerate(values)]


def test_flips_are_grouped_with_their_money_and_smallest_examples(tmp_path: Path, old: Bundle) -> None:
    new = load(tmp_path / "new", POLICY.replace("<= 100", "<= 500").replace("> 1000", "> 700"))
    report = run(amounts(old, 50, 450, 150, 300, 200, 600, 800, 2000), old, new)
    assert report.frozen["counts"] == {
        "same": 3,
        "newly-permitted": 4,
        "newly-denied": 1,
        "newly-silent": 0,
        "undecidable": 0,
    }
    denied, permitted = report.frozen["flips"]
    assert permitted == {
        "change": "newly-permitted",
        "surface": "payments.refund",
        "rule": "refunds/small",
        "agent": "bot",
        "count": 4,
        "money": {"eur": 1100},
        "examples": ["rcpt_2", "rcpt_4", "rcpt_3"],
    }
    assert (denied["change"], denied["rule"], denied["money"]) == (
        "newly-denied",
        "refunds/never",
        {"eur": 800},
    )
    assert report.count(Change.NEWLY_PERMITTED) == 4
    assert report.resimulated == report.frozen


def test_what_becomes_silent_names_the_rule_that_permitted(tmp_path: Path, old: Bundle) -> None:
    new = load(tmp_path / "new", POLICY.replace("<= 100", "<= 10"))
    (row,) = run(amounts(old, 5, 50), old, new).frozen["flips"]
    assert (row["change"], row["rule"], row["count"]) == ("newly-silent", "refunds/small", 1)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"outcome": "DENY"}, id="another outcome"),
        pytest.param({"rules": ["refunds/other"]}, id="another rule"),
        pytest.param({"inputs": b"{}"}, id="another input"),
        pytest.param({"engine": "cel-strict/9"}, id="an engine that is not here"),
        pytest.param({"policy": {"digest": "sha256:00"}}, id="a bundle that is not here"),
    ],
)
def test_bt1_a_record_that_does_not_replay_ends_it(old: Bundle, change: dict[str, Any]) -> None:
    with pytest.raises(NotReplayed, match="rcpt_0"):
        run([record(old, 50, **change)], old, old)


def test_bt1_the_first_of_the_log_is_named(old: Bundle) -> None:
    """Whatever is wrong with those behind it, and whichever step finds it."""
    otherwise, damaged = {"outcome": "DENY"}, {"inputs": b"{}"}
    for first, second in ((otherwise, damaged), (damaged, otherwise)):
        logged = [record(old, 50), record(old, 50, number=1, **first), record(old, 50, number=2, **second)]
        with pytest.raises(NotReplayed, match="rcpt_1"):
            run(logged, old, old)


def test_bt3_many_records_are_counted_as_few_are(tmp_path: Path, old: Bundle) -> None:
    """More than are looked at together, against one record at a time."""
    new = load(tmp_path / "new", POLICY.replace("<= 100", "<= 500"))
    logged = amounts(old, *(each * 7 % 601 for each in range(150)))
    shown: list[int] = []
    report = run(logged, old, new, progress=shown.append)
    alone = [run([each], old, new) for each in logged]
    assert shown[-1] == report.records == report.replayed == 150
    for change in Change:
        assert report.count(change) == sum(each.count(change) for each in alone)


OTHER_PARAMS = MAP.replace("currency: {from: body.currency", "money: {from: body.currency")
OTHER_TYPE = MAP.replace("body.currency, type: string", "body.currency, type: int")
OTHER_NAME = MAP.replace("id: refund", "id: give_back")


@pytest.mark.parametrize(
    ("surfaces", "policy", "change", "why"),
    [
        pytest.param(MAP, POLICY, {"inputs": None}, "destroyed", id="no input"),
        pytest.param(
            MAP,
            POLICY,
            {"outcome": "SILENCE", "reason": "gate_timeout", "rules": None},
            "too late",
            id="too late",
        ),
        pytest.param(OTHER_PARAMS, POLICY, {}, "not what the new maps", id="a parameter of another name"),
        pytest.param(OTHER_TYPE, POLICY, {}, "not what the new maps", id="a parameter of another type"),
        pytest.param(OTHER_NAME, POLICY, {}, "do not have", id="an operation that is gone"),
    ],
)
def test_bt2_what_cannot_be_decided_is_undecidable(
    tmp_path: Path, old: Bundle, surfaces: str, policy: str, change: dict[str, Any], why: str
) -> None:
    report = run([record(old, 50, **change)], old, load(tmp_path / "new", policy, surfaces))
    assert report.frozen["counts"]["undecidable"] == 1
    (reason,) = report.frozen["undecidable"]
    assert why in reason
    assert sum(report.frozen["counts"].values()) == 1


def test_bt2_refusals_before_the_gate_are_not_asked(old: Bundle) -> None:
    report = run([record(old, 50, input_digest=None)], old, old)
    assert (report.records, report.replayed, report.not_asked) == (1, 0, 1)


def test_bt2_new_counters_are_undecidable_frozen_and_built_again_resimulated(
    tmp_path: Path, old: Bundle
) -> None:
    new = load(tmp_path / "new", CAPPED)
    report = run(amounts(old, 100, 60, 50, 100), old, new)
    assert report.frozen["counts"]["undecidable"] == 4
    # 100, then 60 is too much, 50 fits, and 100 does not any more.
    assert report.resimulated["counts"] == {
        "same": 2,
        "newly-permitted": 0,
        "newly-denied": 0,
        "newly-silent": 2,
        "undecidable": 0,
    }


def test_bt2_what_had_no_effect_is_not_charged_and_windows_end(tmp_path: Path, old: Bundle) -> None:
    new = load(tmp_path / "new", CAPPED)
    records = amounts(old, 100, 100)
    assert run(records, old, new).resimulated["counts"]["newly-silent"] == 1
    free = run(records, old, new, without_effect=lambda: {"rcpt_0": T0 + 1_000_000})
    assert free.resimulated["counts"]["same"] == 2
    # Until it has ended, it counts.
    late = run(records, old, new, without_effect=lambda: {"rcpt_0": T0 + 1_000_001})
    assert late.resimulated["counts"]["newly-silent"] == 1
    # It ends once: neither before nor after its window is it taken off a second time.
    gone = [records[0], record(old, 100, number=1), record(old, 100, number=90_000)]
    gone += [record(old, 100, number=90_001)]
    said = run(gone, old, new, without_effect=lambda: {"rcpt_0": T0 + 500_000}).resimulated["counts"]
    assert (said["same"], said["newly-silent"]) == (3, 1)
    later = [records[0], record(old, 100, number=90_000)]
    assert run(later, old, new).resimulated["counts"]["same"] == 2
    others = [records[0], record(old, 100, number=1, agent="other")]
    assert run(others, old, new).resimulated["counts"]["same"] == 2
    replayed = [record(old, 100), record(old, 50, number=1, replay_of="rcpt_0"), record(old, 50, number=2)]
    assert run(replayed, old, new).resimulated["counts"]["same"] == 3


def test_bt3_the_same_records_give_the_same_digest(tmp_path: Path, old: Bundle) -> None:
    new = load(tmp_path / "new", POLICY.replace("<= 100", "<= 500"))
    records = amounts(old, 50, 450, 150)
    first = run(records, old, new)
    assert first.digest == run(records, old, new).digest
    assert first.digest != run(records[:2], old, new).digest
    assert first.digest != replace(first, bundle="sha256:other").digest
    json.dumps(first.document())


# --- the command ---


class Ledger:
    """What the command reads of one: records in log order."""

    def __init__(self, records: list[Record]) -> None:
        self._records = records
        self.size = len(records)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def index_since(self, since_us: int) -> int:
        return sum(parse_us(each.statement["iat"]) < since_us for each in self._records)

    def decisions(self, first: int, *, until: int) -> Iterable[tuple[bytes, bytes | None, bytes]]:
        for each in self._records[first:until]:
            yield b"e30." + b64url(dumps(dict(each.statement))) + b".AA", each.inputs, each.salt

    def without_effect(self) -> dict[str, int]:
        return {}


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A node that permitted 50, was silent about 450 and, a day later, about 500; the folder of it."""
    for name, policy in (
        ("same", POLICY),
        ("wider", POLICY.replace("<= 100", "<= 500")),
        ("tighter", POLICY.replace("<= 100", "<= 10")),
    ):
        for kind, text in (("surfaces", MAP), ("policies", policy)):
            (tmp_path / name / kind).mkdir(parents=True)
            (tmp_path / name / kind / "x.yaml").write_text(text)
    (tmp_path / "holdgate.yaml").write_text(
        "version: 1\nnode: test\nstate_dir: ./state\nlisten: {explicit: 127.0.0.1:0}\n"
        "surfaces: [./same/surfaces]\npolicies: [./same/policies]\n"
        "agents:\n  - {id: bot, match: {source: [127.0.0.1/32]}}\n"
    )
    return tmp_path


def test_the_command_tells_what_would_change(
    node: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = load_bundle([node / "same/surfaces"], [node / "same/policies"])
    logged = [record(old, 50), record(old, 450, number=1), record(old, 500, number=86_400)]
    monkeypatch.setattr(command, "open_reader", lambda _: Ledger(logged))
    monkeypatch.setattr(command, "policies_of", lambda _: {old.digest: old.policies}.get)

    def told(name: str, *words: str) -> tuple[int, Any]:
        asked = ["backtest", "-c", node / "holdgate.yaml", "--bundle", node / name, "--json", *words]
        code = main([str(word) for word in asked])
        return code, json.loads(capsys.readouterr().out)

    fails = "--fail-on", "newly-permitted"
    code, said = told("wider", *fails)
    assert (code, said["accepted"], said["records"], said["replayed"]) == (1, False, 3, 3)
    assert said["frozen"]["counts"]["newly-permitted"] == 2
    assert said["frozen"]["flips"][0]["money"] == {"eur": 950}
    # What somebody has looked at and wants does not fail; another report does, and so does another bundle.
    accept = "--accept", said["digest"]
    assert told("wider", *fails, *accept)[0] == 0
    assert told("wider", *fails, "--accept", "sha256:00")[0] == 1
    assert told("wider", *fails, *accept, "--since", "1")[0] == 1
    # What is not asked about does not fail either.
    assert told("wider")[0] == told("wider", "--fail-on", "newly-silent")[0] == 0
    assert told("same", *fails, "--fail-on", "newly-silent")[0] == 0
    assert told("tighter", *fails, "--fail-on", "newly-silent")[0] == 1
    # From an index or a time on, and up to one.
    for words, count in (
        (("--since", "1"), 2),
        (("--until", "1"), 1),
        (("--since", "1", "--until", "2"), 1),
        (("--since", format_us(T0 + 1)), 2),
        (("--since", "2026-09-21T14:13:21Z", "--until", "2026-09-22T00:00:00Z"), 1),
        (("--until", format_us(T0)), 0),
    ):
        assert told("same", *words)[1]["records"] == count, words
    assert main([str(w) for w in ("backtest", "-c", node / "holdgate.yaml", "--bundle", node / "wider")]) == 0
    text = capsys.readouterr().out
    assert "3 decisions, 3 replayed identically, 0 not asked" in text
    assert "newly-permitted payments.refund refunds/small bot: 2, 950 eur" in text
    assert text.endswith(f"report {said['digest']}\n")


def test_the_command_compares_nothing_where_the_log_does_not_replay(
    node: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = load_bundle([node / "same/surfaces"], [node / "same/policies"])
    monkeypatch.setattr(command, "open_reader", lambda _: Ledger([record(old, 50, outcome="DENY")]))
    monkeypatch.setattr(command, "policies_of", lambda _: {old.digest: old.policies}.get)
    asked = ["backtest", "-c", str(node / "holdgate.yaml"), "--bundle", str(node / "wider")]
    assert main(asked) == 2
    said = capsys.readouterr()
    assert said.out == "" and "nothing was compared" in said.err
