"""`make bench BENCH=--policies`: deciding against Google's CEL, loading against PyYAML's C loader, backtests
(backtests.py) against a bare loop.

All in one run, the two sides in turns, CPU time, the least of all turns: the ratios are what to compare.
README.md beside this file says what the rows are.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # policy_fakes.py

from backtests import RECORDS, Timed, measured_backtests

from holdgate.files import packaged
from holdgate.gate import decide
from holdgate.policy import load_policies
from holdgate.policy_model import ParamSource, PolicySet
from holdgate.surface.index import SurfaceIndex
from holdgate.surface.load import load_maps
from policy_fakes import (
    FLAG,
    INT,
    TEXT,
    FakeIndex,
    action,
    decision_input,
    load_texts,
    optional,
    policy_text,
    required,
    rule,
)

TURNS = 9
RULES, PER_FILE = 500, 10
PARAMS = {
    "amount": required(INT),
    "currency": required(TEXT),
    "live": required(FLAG),
    "account": optional(TEXT),
}


@dataclass(frozen=True)
class Row:
    name: str
    ours_us: float
    theirs_us: float

    @property
    def ratio(self) -> float:
        return self.ours_us / self.theirs_us


def in_turns(name: str, ours: Callable[[], Any], theirs: Callable[[], Any], *, times: int, turns: int) -> Row:
    """CPU time of one call of each, the least of all turns."""

    def timed(call: Callable[[], Any]) -> float:
        begin = time.process_time()
        for _ in range(times):
            call()
        return (time.process_time() - begin) / times

    pairs = [(timed(ours), timed(theirs)) for _ in range(turns)]
    return Row(name, min(one for one, _ in pairs) * 1e6, min(other for _, other in pairs) * 1e6)


# --- decide: 50 rules, of which 5 apply -------------------------------------------------------

CONDITIONS = [
    ("deny", 'params.amount > {k}00000 || params.currency == "x{k}" || clock.hour_utc < 0'),
    (
        "permit",
        "params.live && params.amount > 0 && params.amount <= 5000 && clock.hour_utc >= 6"
        ' && params.currency in ["eur", "usd"] && clock.hour_utc < 20 && agent.id == "refund-bot"'
        ' && approvals.exists(a, a.role == "risk" && a.request_digest == request.digest)',
    ),
    ("permit", 'params.amount <= 10{k} && params.amount > 0 && params.currency == "eur"'),
    ("permit", '"ops" in agent.groups && params.amount <= 500000 && params.amount >= 1'),
    ("review", "params.amount > 5000 && params.amount <= 20000 && params.live"),
]


def deciding_sets(folder: Path, policies: int = 10) -> tuple[PolicySet, dict[str, Any]]:
    """So many policies of 5 rules, each of an operation of its own, and an input for the first of them."""
    operations = {f"op.{number}": PARAMS for number in range(policies)}
    texts = [
        policy_text(
            "\n".join(
                rule(f"r{at}", effect, when.format(k=number + 1))
                for at, (effect, when) in enumerate(CONDITIONS)
            ),
            name=f"p{number}",
            operations=f"[op.{number}]",
        )
        for number in range(policies)
    ]
    made: PolicySet = load_texts(folder, *texts, index=FakeIndex({"payments.refund": operations}))
    approval = {
        "id": "1",
        "role": "risk",
        "approver": "x",
        "request_digest": "sha256:" + "ab" * 32,
        "expires_s": 5,
    }
    return made, decision_input(action(operation="op.0"), approvals=[approval])


def deciding(folder: Path, turns: int) -> Row | None:
    """None where Google's CEL is not installed. Ours checks its input as well, as for each request."""
    try:
        from cel_expr_python import cel
    except ImportError:
        return None
    policies, inputs = deciding_sets(folder)
    given = {name: inputs[name] for name in ("agent", "clock", "request", "approvals")}
    given["params"] = inputs["actions"][0]["params"]
    kind = cel.Type
    record = kind.Map(kind.STRING, kind.DYN)
    names = {**dict.fromkeys(["agent", "clock", "request", "params"], record), "approvals": kind.List(record)}
    env = cel.NewEnv(variables=names)
    programs = [env.compile(when.format(k=1)) for _, when in CONDITIONS]

    def theirs() -> list[Any]:
        activation = env.Activation(given)
        return [program.eval(activation=activation).value() for program in programs]

    return in_turns(
        "decide, 50 rules, 5 apply / Google's CEL",
        lambda: decide(policies, inputs),
        theirs,
        times=500,
        turns=turns,
    )


# --- loading ----------------------------------------------------------------------------------

BUNDLES = {
    "short": 'has(params.amount) && params.amount <= {n} && agent.id == "bot-{f}"',
    "long, half of it repeated": (
        "has(params.amount) && params.amount >= 1 && params.amount <= constants.small + {r}"
        ' && params.reference != "x{f}" && !has(params.account) && !has(params.context)'
        ' && agent.id == "bot-{f}" && clock.hour_utc < 20'
        ' && approvals.exists(a, a.role == "risk" && a.request_digest == request.digest)'
    ),
    "long, nothing repeated": (
        "has(params.amount) && params.amount >= {n} && params.amount <= constants.small + {n}"
        ' && params.reference != "x{n}" && !("g{n}" in agent.groups) && agent.id == "bot-{n}"'
        " && clock.hour_utc < {n} && clock.now_s >= 1{n}"
        ' && approvals.exists(a, a.role == "risk{n}" && a.request_digest == request.digest)'
    ),
}
HEAD = """\
apiVersion: holdgate/v1
kind: Policy
metadata: {{name: p{f}, owner: payments-risk@example.com}}
spec:
  surface: payments.refund
  operations: [{operation}]
  constants: {{small: 5000}}
  rules:
"""
RULE = "  - id: r{r}\n    effect: {effect}\n    when: >-\n      {when}\n    reason: this is why {n}\n"


def written(folder: Path, when: str, operations: tuple[str, ...]) -> list[Path]:
    """500 rules in files of 10, spread over the operations: at most 256 may apply to one."""
    folder.mkdir()
    for f in range(RULES // PER_FILE):
        text = HEAD.format(f=f, operation=operations[f % len(operations)])
        for r in range(PER_FILE):
            n = 1 + f * PER_FILE + r
            effect = "permit" if r % 5 else "deny"
            text += RULE.format(r=r, n=n, effect=effect, when=when.format(f=f, r=r, n=n))
        (folder / f"p{f}.yaml").write_text(text)
    return sorted(folder.iterdir())


def loading(name: str, files: list[Path], index: ParamSource, turns: int) -> Row:
    def theirs() -> None:
        for file in files:
            yaml.load(file.read_bytes(), Loader=yaml.CSafeLoader)

    return in_turns(
        f"load, {name} / PyYAML C", lambda: load_policies(files, index), theirs, times=1, turns=turns
    )


REFUND = {
    "amount": optional(INT),
    "reference": required(TEXT),
    "account": optional(TEXT),
    "context": optional(TEXT),
}


def measured(work: Path, turns: int = TURNS, records: int = RECORDS) -> list[Row | Timed]:
    found = deciding(work / "decide", turns)
    rows: list[Row | Timed] = [] if found is None else [found]
    refunds = FakeIndex({"payments.refund": {f"pay.Refund{number}": REFUND for number in range(5)}})
    for number, (name, when) in enumerate(BUNDLES.items()):
        files = written(work / str(number), when, refunds.operations("payments.refund"))
        rows.append(loading(f"{RULES} rules, {name}", files, refunds, turns))
    shipped = [
        path for path in sorted(packaged("policies").rglob("*.yaml")) if not path.name.endswith("_test.yaml")
    ]
    maps = SurfaceIndex.compile(load_maps([packaged("surfaces")]))
    rows.append(loading("the shipped policies", shipped, maps, turns))
    return [*rows, *measured_backtests(work, turns, records)]


def main(turns: int = TURNS) -> int:
    with tempfile.TemporaryDirectory(prefix="holdgate-bench-") as folder:
        rows = measured(Path(folder), turns)
    print(f"{'what / what it is compared with':<68} {'ours us':>10} {'theirs us':>10} {'ratio':>6}")
    for row in rows:
        print(f"{row.name:<68} {row.ours_us:>10.1f} {row.theirs_us:>10.1f} {row.ratio:>6.2f}")
    return 0
