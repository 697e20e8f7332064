"""diff.py and diff_inputs.py: what is written and decided otherwise, and never a claim that nothing is."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from holdgate.bundle import Bundle
from holdgate.cli import main
from holdgate.diff import Difference, diff
from holdgate.diff_inputs import Shape
from test_backtest import CAPPED, MAP, POLICY, load


def compare(tmp_path: Path, new: str, old: str = POLICY, surfaces: str = MAP) -> Difference:
    return diff(load(tmp_path / "a", old), load(tmp_path / "b", new, surfaces))


@pytest.mark.parametrize(
    ("new", "verdict", "flips"),
    [
        pytest.param(
            POLICY.replace("<= 100", "<= 500"),
            "loosens",
            [("SILENCE no_rule_matched", "PERMIT permit_rule", {"params.amount": 101})],
            id="a higher limit",
        ),
        pytest.param(
            POLICY.replace("<= 100", "<= 40"),
            "tightens",
            [("PERMIT permit_rule", "SILENCE no_rule_matched", {"params.amount": 41})],
            id="a lower limit",
        ),
        pytest.param(
            POLICY.replace("<= 100", "< 100"),
            "tightens",
            [("PERMIT permit_rule", "SILENCE no_rule_matched", {"params.amount": 100})],
            id="off by one",
        ),
        pytest.param(
            POLICY.replace("> 1000", "> 700").replace("<= 100", "<= 101"),
            "both",
            [
                ("SILENCE no_rule_matched", "DENY deny_rule", {"params.amount": 701}),
                ("SILENCE no_rule_matched", "PERMIT permit_rule", {"params.amount": 101}),
            ],
            id="both ways",
        ),
        pytest.param(
            POLICY.replace("params.amount <= 100", 'params.amount <= 100 && params.currency == "eur"'),
            "tightens",
            [("PERMIT permit_rule", "SILENCE no_rule_matched", {"params.currency": "another"})],
            id="a further condition",
        ),
        pytest.param(
            POLICY.replace(
                "- {id: small, effect: permit, when: params.amount <= 100}",
                '- {id: small, effect: permit, when: params.amount <= 100 || "vip" in agent.groups}',
            ),
            "loosens",
            [],
            id="a group that may more",
        ),
    ],
)
def test_df1_what_changes_is_found_with_its_smallest_example(
    tmp_path: Path, new: str, verdict: str, flips: list[tuple[str, str, dict[str, object]]]
) -> None:
    found = compare(tmp_path, new)
    assert found.verdict == verdict
    said = [(flip.old, flip.new, {k: v for k, v in flip.example.items()}) for flip in found.flips]
    for (old, after, example), (was, now, values) in zip(flips, said, strict=False):
        assert (was, now) == (old, after)
        assert example.items() <= values.items() or all(values.get(k, v) == v for k, v in example.items())
    assert len(said) >= len(flips)
    assert found.newly_permitted == any(flip.new.startswith("PERMIT") for flip in found.flips)


def test_df1_a_counter_s_cap_turns_where_no_literal_stands(tmp_path: Path) -> None:
    found = compare(tmp_path, CAPPED.replace("<= 150", "<= 200"), old=CAPPED)
    assert found.verdict == "loosens"
    (flip,) = found.flips
    assert 150 < flip.example.get("counters.day.sum", 0) + flip.example.get("params.amount", 0) <= 200


def test_df1_an_approval_that_is_not_needed_any_more_is_found(tmp_path: Path) -> None:
    needed = 'params.amount <= 100 && approvals.exists(a, a.role == "risk")'
    old = POLICY.replace("when: params.amount <= 100", f"when: '{needed}'")
    assert compare(tmp_path, POLICY, old=old).verdict == "loosens"


def test_df1_an_operation_that_only_one_side_has_is_compared_with_silence(tmp_path: Path) -> None:
    found = compare(
        tmp_path, POLICY.replace("refunds", "give"), surfaces=MAP.replace("id: refund", "id: give_back")
    )
    assert found.verdict == "both"
    assert {flip.operation for flip in found.flips} == {"pay.refund", "pay.give_back"}


def test_df2_spelling_is_no_difference(tmp_path: Path) -> None:
    spelt = (
        POLICY.replace("params.amount <= 100", "( params.amount  <=  100 )")
        .replace("metadata:", "# words\nmetadata:")
        .replace("  - {id: small, effect: permit, when: ( params.amount  <=  100 )}\n", "")
        + "  - {id: small, effect: permit, when: ( params.amount  <=  100 )}\n"
    )
    found = compare(tmp_path, spelt)
    assert (found.edits, found.flips, found.verdict) == ((), (), "no difference found")


@pytest.mark.parametrize(
    ("new", "surfaces", "what"),
    [
        pytest.param(
            POLICY.replace("<= 100", "<= 9"), MAP, "policy refunds rule small when", id="a condition"
        ),
        pytest.param(
            POLICY.replace("too much", "far"), MAP, "policy refunds rule never reason", id="a reason"
        ),
        pytest.param(
            POLICY.replace("id: never", "id: no"), MAP, "policy refunds rule never", id="a rule's id"
        ),
        pytest.param(POLICY.replace("a@", "b@"), MAP, "policy refunds owner", id="an owner"),
        pytest.param(CAPPED, MAP, "policy refunds counter day", id="a counter"),
        pytest.param(
            POLICY.replace("spec:", "spec:\n  shadow: true"), MAP, "policy refunds shadow", id="shadow"
        ),
        pytest.param(
            POLICY, MAP.replace("path: /refunds", "path: /back"), "map pay operation refund path", id="a path"
        ),
        pytest.param(POLICY, MAP.replace("api.pay", "api2.pay"), "map pay hosts", id="a host"),
        pytest.param(
            POLICY,
            MAP.replace("body.currency, type: string, required: true", "body.currency, type: string"),
            "map pay operation refund params currency required",
            id="a parameter",
        ),
    ],
)
def test_df2_an_edit_is_named(tmp_path: Path, new: str, surfaces: str, what: str) -> None:
    found = compare(tmp_path, new, surfaces=surfaces)
    assert what in [edit.what for edit in found.edits]


def test_df3_the_same_bundles_give_the_same_result(tmp_path: Path) -> None:
    old: Bundle = load(tmp_path / "a")
    new: Bundle = load(tmp_path / "b", CAPPED)
    first, second = diff(old, new), diff(old, new)
    assert json.dumps(first.document()) == json.dumps(second.document())
    assert asdict(first) == asdict(second)


def test_di1_inputs_are_bounded_different_and_begin_at_rest() -> None:
    shape = Shape(
        surface="s",
        operation="o",
        effect="commit",
        paths=tuple(f"params.p{n}" for n in range(8)),
        choices=(tuple(range(7)),) * 8,
        counters=(),
    )
    tried = list(shape.inputs(2000))
    assert len(tried) == 2000 == len(set(tried))
    assert tried[0] == (0,) * 8
    assert tried == list(shape.inputs(2000))
    assert len(list(shape.inputs(10))) == 10


def test_the_command_says_the_verdict_and_fails_when_it_is_asked_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, policy in (("a", POLICY), ("b", POLICY.replace("<= 100", "<= 500"))):
        for kind, text in (("surfaces", MAP), ("policies", policy)):
            (tmp_path / name / kind).mkdir(parents=True)
            (tmp_path / name / kind / "x.yaml").write_text(text)
    words = ["diff", str(tmp_path / "a"), str(tmp_path / "b")]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "params.amount = 101" in said and said.endswith("inputs tried: loosens\n")
    assert main([*words, "--fail-on", "newly-permitted"]) == 1
    capsys.readouterr()
    assert main(["diff", words[2], words[1], "--fail-on", "newly-permitted", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "tightens"
