"""replay.py: decisions that come out the same, and everything that must not be called so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdgate import gate
from holdgate.adapters.bundle_store import keep_bundle, load_kept
from holdgate.bundle import Bundle, load_bundle
from holdgate.errors import Outcome, Reason
from holdgate.jcs import dumps_input
from holdgate.policy_model import PolicySet
from holdgate.receipt import input_digest
from holdgate.replay import Record, Replayed, Verdict, replay

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
    params: {amount: {from: body.amount, type: int, required: true, material: true}}
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


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "map.yaml").write_text(MAP)
    (folder / "policy.yaml").write_text(POLICY)
    return load_bundle([folder / "map.yaml"], [folder / "policy.yaml"])


def inputs(amount: int) -> dict[str, Any]:
    action = {
        "surface": "payments.refund",
        "operation": "pay.refund",
        "effect": "commit",
        "host": "api.pay.test",
        "params": {"amount": amount},
    }
    return {
        "v": 1,
        "agent": {"id": "bot", "groups": [], "attrs": {}},
        "actions": [action],
        "request": {"digest": "sha256:" + "ab" * 32},
        "clock": {"now_s": 1_790_000_000, "hour_utc": 7, "weekday_utc": 2},
        "approvals": [],
    }


def record(bundle: Bundle, amount: int, **change: Any) -> Record:
    value = inputs(amount)
    decision = gate.decide(bundle.policies, value)
    data = dumps_input(value)
    statement = {
        "id": f"rcpt_{amount}",
        "outcome": decision.outcome.value,
        "reason": decision.reason.value,
        "engine": gate.ENGINE,
        "policy": {"digest": bundle.digest},
        "request": {"digest": "sha256:" + "ab" * 32},
        "input_digest": input_digest(data),
    }
    if decision.rules:
        statement["rules"] = list(decision.rules)
    stored = change.pop("inputs", data)
    return Record(statement={k: v for k, v in (statement | change).items() if v is not None}, inputs=stored)


def one(bundle: Bundle, made: Record, kept: Mapping[str, PolicySet] | None = None) -> Replayed:
    known = {bundle.digest: bundle.policies} if kept is None else kept
    (result,) = replay([made], lambda digest: known.get(digest))
    return result


@given(amount=st.integers(-(2**63), 2**63 - 1))
def test_rp1_what_was_decided_is_decided_again(bundle: Bundle, amount: int) -> None:
    result = one(bundle, record(bundle, amount))
    assert result.verdict is Verdict.IDENTICAL and result.now == result.recorded


def test_rp1_what_shadow_policies_said_is_part_of_it(tmp_path: Path) -> None:
    shadow = POLICY.replace("name: refunds", "name: later").replace("spec:", "spec:\n  shadow: true")
    for name, text in {"map.yaml": MAP, "policy.yaml": POLICY, "shadow.yaml": shadow}.items():
        (tmp_path / name).write_text(text.replace("<= 100", "<= 500") if name == "shadow.yaml" else text)
    both = load_bundle([tmp_path / "map.yaml"], [tmp_path / "policy.yaml", tmp_path / "shadow.yaml"])
    would = {"outcome": "PERMIT", "reason": "permit_rule", "rules": ["later/small"]}
    value = inputs(400) | {"shadow": would}
    assert gate.shadow_part(both.policies, value) == would
    for said, verdict in (
        (value, Verdict.IDENTICAL),
        (value | {"shadow": would | {"rules": ["later/never"]}}, Verdict.DIFFERENT),
        (inputs(400), Verdict.DIFFERENT),
    ):
        data = dumps_input(said)
        assert one(both, record(both, 400, inputs=data, input_digest=input_digest(data))).verdict is verdict


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"outcome": "PERMIT", "reason": "permit_rule"}, id="another outcome"),
        pytest.param({"reason": "rule_error"}, id="another reason"),
        pytest.param({"rules": ["refunds/small"]}, id="rules that decided nothing"),
    ],
)
def test_rp1_a_receipt_that_says_something_else_is_different(bundle: Bundle, change: dict[str, Any]) -> None:
    made = record(bundle, 500)
    assert made.statement["reason"] == Reason.NO_RULE_MATCHED.value
    result = one(bundle, record(bundle, 500, **change))
    assert result.verdict is Verdict.DIFFERENT
    assert json.loads(result.now)["outcome"] == Outcome.SILENCE.value


def test_rp1_another_policy_shows(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "map.yaml").write_text(MAP)
    (tmp_path / "policy.yaml").write_text(POLICY.replace("<= 100", "<= 600"))
    other = load_bundle([tmp_path / "map.yaml"], [tmp_path / "policy.yaml"])
    result = one(bundle, record(bundle, 500), {bundle.digest: other.policies})
    assert result.verdict is Verdict.DIFFERENT and "permit_rule" in result.now


@pytest.mark.parametrize(
    "stored",
    [
        pytest.param(dumps_input(inputs(501)), id="of another request"),
        pytest.param(dumps_input(inputs(500)) + b" ", id="with a space"),
        pytest.param(b"", id="empty"),
    ],
)
def test_rp2_an_input_that_was_not_decided_is_different(bundle: Bundle, stored: bytes) -> None:
    assert one(bundle, record(bundle, 500, inputs=stored)).verdict is Verdict.DIFFERENT


def test_rp2_an_input_in_another_spelling_is_different_even_where_the_digest_agrees(bundle: Bundle) -> None:
    spelt = json.dumps(inputs(50), indent=1).encode()
    made = record(bundle, 50, inputs=spelt, input_digest=input_digest(spelt))
    assert one(bundle, made).verdict is Verdict.DIFFERENT


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param({"input_digest": None, "inputs": None}, Verdict.NOT_ASKED, id="refused before the gate"),
        pytest.param(
            {"inputs": None, "request": {"digest": "hmac-sha256:" + "ab" * 32}},
            Verdict.NOT_KEPT,
            id="a sensitive operation of an older version",
        ),
        pytest.param({"inputs": None}, Verdict.UNDECIDABLE, id="destroyed"),
        pytest.param({"reason": "gate_timeout", "outcome": "SILENCE"}, Verdict.TOO_LATE, id="too late"),
        pytest.param({"engine": "cel-strict/0"}, Verdict.NO_BUNDLE, id="another engine"),
        pytest.param({"policy": {"digest": "sha256:" + "00" * 32}}, Verdict.NO_BUNDLE, id="no bundle"),
    ],
)
def test_rp3_what_cannot_be_decided_again_is_counted_apart(
    bundle: Bundle, change: dict[str, Any], expected: Verdict
) -> None:
    assert one(bundle, record(bundle, 50, **change)).verdict is expected


def test_rp4_a_sealed_input_is_decided_again_until_it_is_destroyed(bundle: Bundle) -> None:
    salt, request = b"s" * 16, {"digest": "hmac-sha256:" + "ab" * 32}
    data = dumps_input(inputs(50))
    made = record(bundle, 50, request=request, input_digest=input_digest(data, salt))
    assert one(bundle, made._replace(salt=salt)).verdict is Verdict.IDENTICAL
    assert one(bundle, made._replace(salt=b"t" * 16)).verdict is Verdict.DIFFERENT
    assert one(bundle, made._replace(salt=salt, inputs=b"")).verdict is Verdict.DIFFERENT
    assert one(bundle, made._replace(salt=salt, inputs=None)).verdict is Verdict.UNDECIDABLE


# --- after upgrades ---

CORPUS = Path(__file__).parent / "data" / "replay"


def test_what_earlier_versions_recorded_comes_out_the_same() -> None:
    # Written once, under five bundles of files and a signed one, and never again: a version that decides one
    # of these otherwise breaks every log that there is.
    rows = [json.loads(line) for line in (CORPUS / "decisions.jsonl").read_text().splitlines()]
    records = [Record(statement=row["statement"], inputs=row["input"].encode()) for row in rows]
    results = list(replay(records, lambda digest: load_kept(CORPUS, digest).policies))
    assert [each for each in results if each.verdict is not Verdict.IDENTICAL] == []
    assert {row["statement"]["reason"] for row in rows} >= {
        *("permit_rule", "deny_rule", "no_rule_matched", "rule_error", "input_unavailable")
    }
    assert len(rows) == 132 and len({row["statement"]["policy"]["digest"] for row in rows}) == 6


def test_a_log_replays_over_changes_of_policies_and_maps(tmp_path: Path) -> None:
    (tmp_path / "map.yaml").write_text(MAP)
    (tmp_path / "policy.yaml").write_text(POLICY)
    roots = [tmp_path / "map.yaml"], [tmp_path / "policy.yaml"]
    records = []
    for policy, surfaces in (
        (POLICY, MAP),
        (POLICY.replace("<= 100", "<= 900"), MAP),
        (POLICY.replace("<= 100", "<= 900"), MAP + "# edited\n"),
        (POLICY, MAP.replace("type: int", "type: decimal(2)")),
    ):
        (tmp_path / "policy.yaml").write_text(policy)
        (tmp_path / "map.yaml").write_text(surfaces)
        loaded = load_bundle(*roots)
        keep_bundle(tmp_path, loaded, surfaces=roots[0], policies=roots[1])
        records += [record(loaded, amount) for amount in (1, 100, 101, 900, 1001)]
    (tmp_path / "policy.yaml").unlink()
    results = list(replay(records, lambda digest: load_kept(tmp_path, digest).policies))
    assert [each.verdict for each in results] == [Verdict.IDENTICAL] * 20
    assert len({each.recorded for each in results}) == 3
