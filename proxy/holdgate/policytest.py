"""Files of `kind: PolicyTest` become a report: which cases hold, and which rules they never exercised.

A case describes one decision input; it is decided by the same gate.decide() and the same whole set of
policies as a live request, so a case shows what would really happen. Format: policies/README.md.

Invariants (tests/test_policytest.py):
  T1  A case that says nothing about the outcome, or names an unknown key, rule or operation, is a
      ConfigError, never a passing case.
  T2  A report is `ok` only if at least one case ran and every case passed.
  T3  A rule counts as covered only if one case made it true and another made it false.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .counters import fill, uses_of_all
from .errors import InputError, Outcome
from .facts import state
from .gate import Decision, decide, trace
from .ledger import Budgets, Total
from .policy_document import envelope, policy_files
from .policy_model import ParamSource, PolicySet
from .policytest_boundary import Boundaries, Boundary
from .policytest_case import Expectation, TestCase, read_suite
from .strictyaml import Node, load_file

__all__ = ["CaseResult", "Coverage", "RecogniseFile", "TestReport", "run_tests"]

type RecogniseFile = Callable[[Path], Mapping[str, Any]]
"""A raw HTTP request in a file -> {"actions": [...], "request": {"digest": ...}}, or InputError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    name: str  # "policy/case" or "policy/case[value]"
    file: str
    line: int
    passed: bool
    expected: str
    got: str
    explanation: tuple[str, ...]  # of a failed case: what each rule said


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    rule: str
    seen_true: bool
    seen_false: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TestReport:
    results: tuple[CaseResult, ...]
    coverage: tuple[Coverage, ...]  # by name: every rule of the policies that count
    boundaries: tuple[Boundary, ...]  # of the same rules

    __test__ = False  # not a test class, whatever pytest thinks of the name

    @property
    def failed(self) -> tuple[CaseResult, ...]:
        return tuple(result for result in self.results if not result.passed)

    @property
    def uncovered(self) -> tuple[Coverage, ...]:
        return tuple(each for each in self.coverage if not (each.seen_true and each.seen_false))

    @property
    def rule_percent(self) -> int:
        """Of every rule's two halves, true and false, how many some case reached; rounded down."""
        return _percent(
            sum(each.seen_true + each.seen_false for each in self.coverage), 2 * len(self.coverage)
        )

    @property
    def boundary_percent(self) -> int:
        wanted = sum(len(each.wanted) for each in self.boundaries)
        return _percent(wanted - sum(len(each.missing) for each in self.boundaries), wanted)

    @property
    def ok(self) -> bool:
        return bool(self.results) and not self.failed


def run_tests(
    paths: Sequence[Path],
    policies: PolicySet,
    index: ParamSource,
    recognise_file: RecogniseFile | None = None,
    *,
    chosen: Callable[[str], bool] = lambda name: True,
    every_policy: bool = True,
) -> TestReport:
    """Run every PolicyTest under `paths`. Raises ConfigError for a test file that is not valid.

    `chosen` picks cases by name. Coverage is of every policy, or of those that the suites speak of.
    """
    cases = [case for case in _read(paths, policies, index) if chosen(case.name)]
    counted = {policy.name for policy in policies.policies}
    if not every_policy:
        counted &= {name for case in cases for name in case.policies}
    seen: dict[str, set[str]] = {name: set() for name in policies.names}
    boundaries = Boundaries(policies, counted)
    results = [_run(case, policies, recognise_file, seen, boundaries) for case in cases]
    coverage = tuple(
        Coverage(rule=name, seen_true="true" in found, seen_false="false" in found)
        for name, found in sorted(seen.items())
        if name.partition("/")[0] in counted
    )
    return TestReport(results=tuple(results), coverage=coverage, boundaries=boundaries.report())


def _read(paths: Sequence[Path], policies: PolicySet, index: ParamSource) -> Iterator[TestCase]:
    first: dict[str, TestCase] = {}
    for path in policy_files(paths):
        root = load_file(path)
        if envelope(root)[0] != "PolicyTest":
            continue
        for case in read_suite(root, policies, index):
            if case.name in first:
                other = f"{first[case.name].file}:{first[case.name].line}"
                raise case.place.fail(f"a case named {case.name!r} exists already: {other}")
            first[case.name] = case
            yield case


def _percent(part: int, whole: int) -> int:
    return 100 if whole == 0 else part * 100 // whole


def _run(
    case: TestCase,
    policies: PolicySet,
    recognise_file: RecogniseFile | None,
    seen: dict[str, set[str]],
    boundaries: Boundaries,
) -> CaseResult:
    inputs = case.inputs
    if case.request_file is not None:
        try:
            inputs = {**inputs, **_recognised(case.request_file, recognise_file)}
        except InputError as error:
            # The surface map refused the request, so the gate would never be asked.
            decision = Decision(outcome=Outcome.SILENCE, reason=error.reason, rules=())
            return _judged(case, decision, (f"refused before the gate: {error}",))
    inputs = _with_bound_approvals(inputs)
    inputs["actions"] = [_bound(case, policies, action) for action in inputs["actions"]]
    _count(case, policies, inputs)
    agent, actions, now_s = inputs["agent"], inputs["actions"], inputs["clock"]["now_s"]
    state(policies.facts_of, agent, actions, case.facts, now_s=now_s)
    decision = decide(policies, inputs)
    boundaries.look(inputs)
    lines = []
    for each in trace(policies, inputs):
        seen[each.rule].add(each.result)
        parts = "; ".join(
            f"{conjunct.text} -> {_shown(conjunct.value)}"
            for conjunct in each.conjuncts
            if conjunct.value is not True
        )
        lines.append(f"{each.effect} {each.rule}: {each.result}{f' ({parts})' if parts else ''}")
    return _judged(case, decision, tuple(lines) or ("no rule applies to this operation",))


def _recognised(node: Node, recognise_file: RecogniseFile | None) -> dict[str, Any]:
    if recognise_file is None:
        raise node.fail("request_file needs the surface maps, and none are loaded here")
    fragment = recognise_file(Path(node.file).parent / node.value)
    return {"actions": fragment["actions"], "request": fragment["request"]}


def _count(case: TestCase, policies: PolicySet, inputs: dict[str, Any]) -> None:
    """Counters stand where the case says, for whatever key the request has."""
    actions = inputs["actions"] = [dict(action) for action in inputs["actions"]]
    uses = uses_of_all(policies.counters_of, inputs["agent"], actions, secret=None)
    nothing = Total(sum=0, count=0)
    totals = {use.meter: case.counters.get(use.counter.name, nothing) for mine in uses for use in mine}
    if uses:
        budgets = Budgets(totals={meter: total for meter, total in totals.items() if meter}, standing={})
        fill(actions, uses, budgets, prior="", now_us=inputs["clock"]["now_s"] * 1_000_000)


def _bound(case: TestCase, policies: PolicySet, action: dict[str, Any]) -> dict[str, Any]:
    """What the case says that it is bound to, where the map binds it to something."""
    applicable = policies.table.get((action["surface"], action["operation"]))
    if case.bound is None or applicable is None or not applicable.bound:
        return action
    return {**action, "bound": case.bound}


def _with_bound_approvals(inputs: dict[str, Any]) -> dict[str, Any]:
    """An approval in a case is for this very request unless the case names another digest."""
    digest = inputs["request"]["digest"]
    bound = [{"request_digest": digest, **approval} for approval in inputs["approvals"]]
    return {**inputs, "approvals": bound}


def _judged(case: TestCase, decision: Decision, explanation: tuple[str, ...]) -> CaseResult:
    passed = case.expect.accepts(decision)
    got = Expectation(outcome=decision.outcome, reason=decision.reason, rules=frozenset(decision.rules))
    return CaseResult(
        name=case.name,
        file=case.file,
        line=case.line,
        passed=passed,
        expected=str(case.expect),
        # Show of the actual decision only what the case speaks of; all of it when that differs.
        got=str(got if not passed else replace(got, reason=case.expect.reason, rules=case.expect.rules)),
        explanation=() if passed else explanation,
    )


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
