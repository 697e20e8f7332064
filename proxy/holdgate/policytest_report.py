"""A TestReport becomes text for people, JSON, or JUnit XML.

Invariants (tests/test_policytest.py):
  T4  The same report gives the same bytes, and both machine formats name every case that ran.
"""

from __future__ import annotations

import json
import re
from html import escape

from .policytest import TestReport

__all__ = ["to_json", "to_junit", "to_text"]

# Characters that XML 1.0 cannot carry, not even escaped.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_text(report: TestReport) -> str:
    """Failed cases with what each rule said, rules without coverage, and one line of counts."""
    lines: list[str] = []
    for result in report.failed:
        lines.append(f"FAIL {result.name}  ({result.file}:{result.line})")
        lines.append(f"     expected {result.expected}")
        lines.append(f"     got      {result.got}")
        lines.extend(f"       {line}" for line in result.explanation)
    for each in report.uncovered:
        missing = [word for word, seen in (("true", each.seen_true), ("false", each.seen_false)) if not seen]
        lines.append(f"not covered: {each.rule} was never {' or '.join(missing)}")
    for boundary in (each for each in report.boundaries if each.missing):
        values = ", ".join(str(value) for value in boundary.missing)
        lines.append(f"boundary not covered: {boundary.rule}: {boundary.text}: no case at {values}")
    covered = len(report.coverage) - len(report.uncovered)
    passed = len(report.results) - len(report.failed)
    lines.append(
        f"{passed} of {len(report.results)} cases passed; {covered} of {len(report.coverage)} rules covered "
        f"({report.rule_percent} %), boundaries {report.boundary_percent} %"
    )
    return "\n".join(lines) + "\n"


def to_json(report: TestReport) -> str:
    data = {
        "ok": report.ok,
        "cases": [
            {
                "name": result.name,
                "file": result.file,
                "line": result.line,
                "passed": result.passed,
                "expected": result.expected,
                "got": result.got,
                "explanation": list(result.explanation),
            }
            for result in report.results
        ],
        "coverage": [
            {"rule": each.rule, "true": each.seen_true, "false": each.seen_false} for each in report.coverage
        ],
        "boundaries": [
            {
                "rule": each.rule,
                "comparison": each.text,
                "value": each.value,
                "wanted": list(each.wanted),
                "missing": list(each.missing),
            }
            for each in report.boundaries
        ],
        "summary": {
            "cases": len(report.results),
            "failed": len(report.failed),
            "rule_coverage_percent": report.rule_percent,
            "boundary_coverage_percent": report.boundary_percent,
        },
    }
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def to_junit(report: TestReport) -> str:
    counts = f'tests="{len(report.results)}" failures="{len(report.failed)}" errors="0"'
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', f'<testsuite name="holdgate" {counts}>']
    for result in report.results:
        policy, _, _ = result.name.partition("/")
        head = f'  <testcase classname="{_xml(policy)}" name="{_xml(result.name)}" file="{_xml(result.file)}"'
        if result.passed:
            lines.append(f"{head}/>")
            continue
        message = _xml(f"expected {result.expected}, got {result.got}")
        detail = _xml("\n".join((f"{result.file}:{result.line}", *result.explanation)))
        lines += [f"{head}>", f'    <failure message="{message}">{detail}</failure>', "  </testcase>"]
    return "\n".join([*lines, "</testsuite>", ""])


def _xml(text: str) -> str:
    return escape(_NOT_XML.sub("\ufffd", text))
