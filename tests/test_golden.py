"""Decisions of every released profile, replayed: the same input gives the same bytes (data/golden/*.jsonl).

A corpus is written once, when its profile is released, and never again: a difference here means that the
meaning of recorded decisions has changed, and that needs a new profile number, not a new corpus.
`python tests/test_golden.py PROFILE` writes the corpus of a profile that has none yet.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from holdgate.cel.evaluate import EvalError, compile_program
from holdgate.cel.model import BOOL, INT, PROFILE, STRING, Environment, Field, ListOf, MapOf, Record
from holdgate.gate import ENGINE, decide, trace
from policy_fakes import built

GOLDEN = Path(__file__).parent / "data" / "golden"
OPERATION = "stripe.PostRefunds"
RELEASED = {"cel-strict/1": "d888c08e"}

ENVIRONMENT = Environment(
    roots={
        "i": INT,
        "j": INT,
        "s": STRING,
        "t": STRING,
        "b": BOOL,
        "li": ListOf(INT),
        "ls": ListOf(STRING),
        "m": MapOf(INT),
        "p": Record(
            {"n": Field(INT), "o": Field(INT, True), "w": Field(STRING, True), "f": Field(BOOL, True)}
        ),
        "rs": ListOf(Record({"id": Field(STRING), "e": Field(INT)})),
    },
    constants={},
)


def corpus(profile: str) -> Path:
    return GOLDEN / f"{profile.replace('/', '-')}.jsonl"


def outcome(row: dict[str, Any]) -> dict[str, Any]:
    """What a row of the corpus gives now."""
    if "expression" in row:
        program = compile_program(row["expression"], ENVIRONMENT)
        value = program.evaluate(program.frame(row["values"]))
        return {"error": value.fault} if isinstance(value, EvalError) else {"value": value}
    policies = built({OPERATION: [tuple(rule) for rule in row["rules"]]})
    decision = decide(policies, row["input"])
    return {
        "outcome": decision.outcome,
        "reason": decision.reason,
        "rules": list(decision.rules),
        "trace": [[each.rule, each.result] for each in trace(policies, row["input"])],
    }


def line(row: dict[str, Any]) -> str:
    return json.dumps(row, sort_keys=True, ensure_ascii=True, separators=(",", ":")) + "\n"


@pytest.mark.parametrize("profile", sorted(RELEASED))
def test_every_released_profile_decides_as_it_did(profile: str) -> None:
    assert profile == ENGINE == PROFILE, "an older profile needs its own evaluator here"
    text = corpus(profile).read_text(encoding="ascii")
    assert hashlib.sha256(text.encode()).hexdigest()[:8] == RELEASED[profile], "a corpus is never changed"
    rows = [json.loads(each) for each in text.splitlines()]
    assert len(rows) >= 600
    seen = set()
    for row in rows:
        expected = row.pop("gives")
        given = outcome(row)
        assert line({"gives": given}) == line({"gives": expected}), row
        seen.add(given.get("reason") or given.get("error") or type(given["value"]).__name__)
    assert {"permit_rule", "deny_rule", "rule_error", "approval_pending", "no_rule_matched"} <= seen
    assert {"overflow", "division_by_zero", "missing", "bool"} <= seen


def _rows() -> list[dict[str, Any]]:
    from test_cel_differential import Generator, values
    from test_properties import inputs, policy

    rng = random.Random(20261122)
    rows: list[dict[str, Any]] = []
    while len(rows) < 350:
        expression = Generator(rng).condition(4)
        try:
            compile_program(expression, ENVIRONMENT)
        except ValueError:
            raise
        except Exception:  # noqa: BLE001, S112 - the generator also draws what is refused
            continue
        if len(expression) < 200:
            rows.append({"expression": expression, "values": values(rng)})
    rows.extend({"rules": policy(rng), "input": inputs(rng)} for _ in range(250))
    return rows


if __name__ == "__main__":
    target = corpus(sys.argv[1])
    if target.exists():
        sys.exit(f"{target} exists: a corpus is written once")
    target.parent.mkdir(exist_ok=True)
    written = "".join(line(row | {"gives": outcome(row)}) for row in _rows())
    target.write_text(written, encoding="ascii")
    print(len(written), hashlib.sha256(written.encode()).hexdigest()[:8])
