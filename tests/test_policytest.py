"""policytest*.py: cases run through the real gate, bad files are errors, coverage, report formats."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from holdgate.errors import ConfigError, InputError, Reason
from holdgate.policy import PolicySet, lint, load_policies
from holdgate.policytest import TestReport, run_tests
from holdgate.policytest_case import clock_fields
from holdgate.policytest_report import to_json, to_junit, to_text
from holdgate.surface.model import CelType
from policy_fakes import FakeIndex, action, load_texts, optional, policy_text, required, rule

DATA = Path(__file__).parent / "data" / "policies"
RULES = "\n".join(
    [
        rule("small", "permit", "params.amount > 0 && params.amount <= 5000"),
        rule("live", "deny", "!params.live"),
    ]
)


def suite_text(cases: str, about: str = "policy: p", defaults: str = "") -> str:
    lines = ["apiVersion: holdgate/v1", "kind: PolicyTest", "metadata: {name: t}", "spec:", f"  {about}"]
    lines += [f"  defaults: {defaults}"] if defaults else []
    return "\n".join([*lines, "  cases:", *(f"    {line}" for line in cases.splitlines())]) + "\n"


GOOD = "{params: {amount: 100, currency: eur, live: true}}"


def policies(folder: Path) -> PolicySet:
    return load_texts(folder, policy_text(RULES))


def run(folder: Path, text: str, recognise: Any = None) -> TestReport:
    loaded = policies(folder)
    (folder / "p_test.yaml").write_text(text, encoding="utf-8")
    return run_tests([folder], loaded, FakeIndex(), recognise)


def error_of(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        run(folder, text)
    assert caught.value.file.endswith("p_test.yaml") and caught.value.line > 0
    return caught.value.message


# --- the sample -------------------------------------------------------------------------------


def test_the_sample_passes_with_full_coverage() -> None:
    report = run_tests([DATA], load_policies([DATA], FakeIndex()), FakeIndex())
    assert report.failed == () and report.uncovered == () and report.ok
    names = [result.name for result in report.results]
    assert names[:3] == [
        "refunds/small refund in hours",
        "refunds/night wins over permit",
        "refunds/test mode at night",
    ]
    assert "refunds/amounts[5001]" in names and "refunds/account[absent]" in names
    assert len(names) == 17


def test_a_changed_policy_fails_its_tests(tmp_path: Path) -> None:
    for path in DATA.iterdir():
        text = path.read_text(encoding="utf-8").replace("params.amount > 0 &&", "params.amount >= 0 &&")
        (tmp_path / path.name).write_text(text, encoding="utf-8")
    report = run_tests([tmp_path], load_policies([tmp_path], FakeIndex()), FakeIndex())
    assert [(each.name, each.expected, each.got) for each in report.failed] == [
        ("refunds/amounts[0]", "SILENCE", "PERMIT permit_rule [refunds/small-refund]")
    ]
    assert not report.ok
    assert any("permit refunds/small-refund: true" in line for line in report.failed[0].explanation)


# --- cases ------------------------------------------------------------------------------------


def test_merging_replaces_scalars_and_removes_with_null(tmp_path: Path) -> None:
    cases = """\
- name: default
  expect: PERMIT
- name: replaced
  with: {params: {amount: 6000}}
  expect: {outcome: SILENCE, reason: no_rule_matched, rules: []}
- name: removed
  with: {params: {live: null}}
  expect: {outcome: SILENCE, reason: rule_error}
"""
    assert run(tmp_path, suite_text(cases, defaults=GOOD)).failed == ()


def test_a_case_is_decided_by_all_policies_not_by_one(tmp_path: Path) -> None:
    loaded = load_texts(
        tmp_path,
        policy_text(rule("a", "permit", "params.live")),
        policy_text(rule("no", "deny", "params.amount == 100"), name="q"),
    )
    text = suite_text("- {name: c, expect: {outcome: DENY, rules: [q/no]}}", defaults=GOOD)
    (tmp_path / "p_test.yaml").write_text(text, encoding="utf-8")
    assert run_tests([tmp_path], loaded, FakeIndex()).failed == ()


def test_a_surface_can_be_tested_with_the_operation_in_the_case(tmp_path: Path) -> None:
    cases = """\
- name: mapped
  with: {action: {operation: stripe.PostRefunds}}
  expect: PERMIT
- name: no policy for it
  with: {action: {operation: stripe.PostChargesRefund}, params: {live: null}}
  expect: {outcome: SILENCE, reason: no_rule_matched}
"""
    report = run(tmp_path, suite_text(cases, about="surface: payments.refund", defaults=GOOD))
    assert report.failed == () and report.results[0].name == "payments.refund/mapped"


def test_approvals_and_clock_get_fixed_values(tmp_path: Path) -> None:
    when = (
        "params.amount > 0 && approvals.exists(a, a.role == 'r' && a.request_digest == request.digest"
        " && a.expires_s == clock.now_s + 3600) && clock.hour_utc == 12 && clock.weekday_utc == 1"
    )
    loaded = load_texts(tmp_path, policy_text(rule("a", "permit", when)))
    cases = """\
- name: bound to the request
  with: {approvals: [{role: r}]}
  expect: PERMIT
- name: on a Sunday
  with: {approvals: [{role: r}], clock: {now: "2026-01-04T12:00:00Z"}}
  expect: SILENCE
- name: weekday written out
  with: {approvals: [{role: r}], clock: {now: "2026-01-04T12:00:00Z", weekday_utc: 1}}
  expect: PERMIT
"""
    (tmp_path / "p_test.yaml").write_text(suite_text(cases, defaults=GOOD), encoding="utf-8")
    assert run_tests([tmp_path], loaded, FakeIndex()).failed == ()


@pytest.mark.parametrize(
    ("now", "hour", "weekday"),
    [
        ("2026-01-04T23:59:59Z", 23, 0),
        ("2026-01-05T00:00:00Z", 0, 1),
        ("2026-01-05T01:30:00+02:00", 23, 0),
        ("1970-01-01T00:00:00Z", 0, 4),
    ],
)
def test_clock_fields_are_utc_with_sunday_as_zero(now: str, hour: int, weekday: int) -> None:
    fields = clock_fields(datetime.fromisoformat(now))
    assert (fields["hour_utc"], fields["weekday_utc"]) == (hour, weekday)
    assert fields["now_s"] == int(datetime.fromisoformat(now).timestamp())


# --- raw requests -----------------------------------------------------------------------------


def test_request_files_go_through_the_surface_map(tmp_path: Path) -> None:
    def recognise(path: Path) -> dict[str, Any]:
        text = path.read_text(encoding="utf-8")
        if text == "bad":
            raise InputError(Reason.UNKNOWN_OPERATION, "no such path")
        params = {"amount": int(text), "currency": "eur", "live": True}
        return {"actions": [action(params=params)] * 2, "request": {"digest": "sha256:aa"}}

    for name, text in (("one.http", "100"), ("two.http", "6000"), ("three.http", "bad")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    cases = """\
- {name: one, request_file: one.http, expect: {outcome: PERMIT, rules: [small]}}
- {name: two, request_file: two.http, expect: SILENCE}
- {name: three, request_file: three.http, expect: {outcome: SILENCE, reason: unknown_operation, rules: []}}
"""
    report = run(tmp_path, suite_text(cases, defaults=GOOD), recognise)
    assert report.failed == () and len(report.results) == 3


def test_request_files_without_maps_or_file_are_errors(tmp_path: Path) -> None:
    text = suite_text("- {name: one, request_file: one.http, expect: PERMIT}")
    assert "no such file" in error_of(tmp_path, text)
    (tmp_path / "one.http").write_text("x")
    assert "request_file needs the surface maps" in error_of(tmp_path, text)


# --- T1 to T4 ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (suite_text("- {name: c}"), "a case needs `expect`"),
        (suite_text("- {name: c, expect: {reason: deny_rule}}"), "expect needs the key 'outcome'"),
        (suite_text("- {name: c, expect: ALLOW}"), "outcome must be one of: PERMIT, DENY, SILENCE"),
        (suite_text("- {name: c, expect: {outcome: DENY, reason: nope}}"), "reason must be one of"),
        (suite_text("- {name: c, expect: {outcome: DENY, rules: [nope]}}"), "is named 'p/nope'; there are"),
        (suite_text("- {name: c, expect: PERMIT, expects: DENY}"), "unknown key 'expects'"),
        (suite_text("- {name: c, with: {parms: {}}, expect: PERMIT}"), "unknown key 'parms'"),
        (
            suite_text("- {name: c, with: {agent: {name: x}}, expect: PERMIT}"),
            "unknown key 'name' in with.agent; did you mean 'id'?",
        ),
        (
            suite_text("- {name: c, with: {clock: {hour: 1}}, expect: PERMIT}"),
            "unknown key 'hour' in with.clock",
        ),
        (suite_text("- {name: c, with: {clock: {now: noon}}, expect: PERMIT}"), "clock.now must be a time"),
        (
            suite_text("- {name: c, with: {clock: {now: 2026-01-01T00:00:00}}, expect: PERMIT}"),
            "needs a zone",
        ),
        (suite_text("- {name: c, with: {approvals: [{rol: x}]}, expect: PERMIT}"), "unknown key 'rol'"),
        (suite_text("- {name: c, with: {params: 1}, expect: PERMIT}"), "with.params must be a mapping"),
        (suite_text("- {name: c, expect: PERMIT}\n- {name: c, expect: DENY}"), "a case named 'p/c' exists"),
        (suite_text("- {name: c, matrix: {amount: [1]}, expect: PERMIT}"), "'amount' is not a path"),
        (suite_text("- {name: c, matrix: {agent.nam: [x]}, expect: PERMIT}"), "unknown key 'nam'"),
        (suite_text("- {name: c, matrix: {params.amount: []}, expect: PERMIT}"), "matrix has no values"),
        (suite_text("- {name: c, matrix: {params.a: [1], params.b: [2]}, expect: PERMIT}"), "takes one path"),
        (suite_text("- {name: c, matrix: {params.amount: [1, 2]}, expect_each: [DENY]}"), "1 entries for 2"),
        (suite_text("- {name: c, expect_each: [PERMIT]}"), "expect_each needs a matrix"),
        (
            suite_text("- {name: c, matrix: {params.amount: [1]}, expect: DENY, expect_each: [DENY]}"),
            "needs `expect`",
        ),
        (
            suite_text("- {name: c, with: {action: {operation: x.y}}, expect: PERMIT}"),
            "'x.y' is not covered here; there are: stripe.PostRefunds",
        ),
        (suite_text("- {name: c, request_file: a, with: {params: {}}, expect: DENY}"), "come from the file"),
        (
            suite_text("- {name: c, expect: PERMIT}", about="policy: q"),
            "named 'q'; there are: p",
        ),
        (suite_text("- {name: c, expect: PERMIT}", about="surface: q"), "no surface map has the surface 'q'"),
        (suite_text("- {name: c, expect: PERMIT}", about="owner: q"), "unknown key 'owner'"),
        (suite_text("- {name: c, expect: PERMIT}", about="surface: payments.refund"), "covers several"),
        (suite_text("[]").replace("cases:\n    []", "cases: []"), "spec.cases is empty"),
    ],
)
def test_t1_cases_that_could_pass_by_accident_are_errors(tmp_path: Path, text: str, words: str) -> None:
    message = error_of(tmp_path, text)
    assert words in message, message


def test_t2_no_case_at_all_is_not_ok(tmp_path: Path) -> None:
    report = run_tests([tmp_path], policies(tmp_path), FakeIndex())
    assert report.results == () and not report.ok


@pytest.mark.parametrize(
    ("expect", "passes"),
    [
        ("PERMIT", True),
        ("DENY", False),
        ("SILENCE", False),
        ("{outcome: PERMIT, reason: permit_rule}", True),
        ("{outcome: DENY, reason: deny_rule}", False),
        ("{outcome: PERMIT, rules: [small]}", True),
        ("{outcome: PERMIT, rules: [p/small]}", True),
        ("{outcome: DENY, rules: [live]}", False),
        ("{outcome: SILENCE, rules: []}", False),
    ],
)
def test_t2_everything_that_an_expectation_says_is_compared(
    tmp_path: Path, expect: str, passes: bool
) -> None:
    report = run(tmp_path, suite_text(f"- {{name: c, expect: {expect}}}", defaults=GOOD))
    assert report.ok is passes and (report.failed == ()) is passes


def test_t3_coverage_needs_true_and_false_of_every_rule(tmp_path: Path) -> None:
    def coverage(*cases: str) -> dict[str, tuple[bool, bool]]:
        report = run(tmp_path, suite_text("\n".join(cases), defaults=GOOD))
        return {each.rule: (each.seen_true, each.seen_false) for each in report.coverage}

    one = "- {name: a, expect: PERMIT}"
    assert coverage(one) == {"p/live": (False, True), "p/small": (True, False)}
    wrong = "- {name: b, with: {params: {live: null}}, expect: SILENCE}"
    assert coverage(one, wrong) == {"p/live": (False, True), "p/small": (True, False)}
    more = "- {name: c, with: {params: {amount: 0, live: false}}, expect: DENY}"
    assert coverage(one, more) == {"p/live": (True, True), "p/small": (True, True)}


def test_t4_reports_name_every_case_and_repeat_byte_for_byte(tmp_path: Path) -> None:
    cases = '- {name: \'a <b> & "c"\', expect: PERMIT}\n- {name: "bell \\a", expect: DENY}'
    first = run(tmp_path, suite_text(cases, defaults=GOOD))
    second = run(tmp_path, suite_text(cases, defaults=GOOD))
    for write in (to_text, to_json, to_junit):
        assert write(first) == write(second)
    data = json.loads(to_json(first))
    assert not data["ok"] and [each["name"] for each in data["cases"]] == ['p/a <b> & "c"', "p/bell \a"]
    assert data["cases"][1]["got"] == "PERMIT permit_rule [p/small]"
    assert {"rule": "p/live", "true": False, "false": True} in data["coverage"]
    suite = ElementTree.fromstring(to_junit(first))  # noqa: S314 - our own output
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    assert [each.get("name") for each in suite] == ['p/a <b> & "c"', "p/bell \ufffd"]
    failure = suite[1].find("failure")
    assert failure is not None and "expected DENY, got PERMIT" in (failure.get("message") or "")
    text = to_text(first)
    assert "FAIL p/bell" in text and "1 of 2 cases passed; 0 of 2 rules covered" in text
    assert "not covered: p/live was never true" in text


# --- policies/README.md -----------------------------------------------------------------------


@pytest.mark.checkout
def test_the_examples_of_the_readme_work(tmp_path: Path) -> None:
    readme = Path(__file__).parents[1] / "policies" / "README.md"
    # Those that name their file belong to the chapter on facts: tests/integration/test_facts.py.
    page = readme.read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(?!# policies/(?:facts|ehr)|# holdgate.yaml)(.*?)```", page, re.DOTALL)
    for name, block in zip(("refunds.yaml", "agents.yaml", "refunds_test.yaml"), blocks, strict=True):
        (tmp_path / name).write_text(block, encoding="utf-8")
    params = {"amount": optional(CelType.INT), "reference": required(CelType.STRING)}
    index = FakeIndex({"payments.refund": {"stripe.PostRefunds": params}})
    report = run_tests([tmp_path], load_policies([tmp_path], index), index)
    assert len(report.results) == 6 and report.ok and report.uncovered == ()
    assert lint(load_policies([tmp_path], index), index) == ()
