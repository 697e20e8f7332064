"""Digests of all that cel/, policies and the gate can say, computed under several PYTHONHASHSEEDs.

Run as a script it prints one digest of its own process; test_v4 and test_g3 compare processes.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from holdgate.cel.evaluate import compile_program, explain
from holdgate.cel.model import BOOL, INT, STRING, CelError, Environment, Field, ListOf, MapOf, Record
from holdgate.errors import ConfigError
from holdgate.gate import decide, trace
from holdgate.policy import lint
from policy_fakes import FakeIndex, action, decision_input, load_texts, policy_text, rule

_ENVIRONMENT = Environment(
    roots={
        "i": INT,
        "b": BOOL,
        "li": ListOf(INT),
        "ls": ListOf(STRING),
        "m": MapOf(INT),
        "p": Record({"n": Field(INT), "nn": Field(INT), "o": Field(INT, optional=True)}),
    },
    constants={"codes": ["NO", "SE", "DK"], "limits": {"eur": 5, "usd": 6}},
)
_VALUES: dict[str, Any] = {
    "i": 7,
    "b": True,
    "li": [1, 2, 3],
    "ls": ["NO", "x"],
    "m": {"e": 5},
    "p": {"n": 4},
}
_SOURCES = (
    "ls.exists(x, x in constants.codes) && i / 0 > 1 && p.n > 100",
    '"a" in m || i in [3, 7, 9]',
    "zzz > 1",
    "p.zzz > 1",
    "p.m > 1",
    'li.all(x, ls.exists(y, size(y) < x)) || m["q"] == 1 || constants.limits["eur"] == 5',
)


def _cel() -> list[str]:
    out: list[str] = []
    for source in _SOURCES:
        try:
            program = compile_program(source, _ENVIRONMENT)
        except CelError as error:
            out.append(str(error))
            continue
        frame = program.frame(_VALUES)
        out += [repr(program.evaluate(frame)), repr(explain(program, frame)), repr(sorted(program.paths))]
    return out


def _gate(folder: Path) -> list[str]:
    rules = [
        rule("b", "permit", 'params.amount > 0 && params.currency in ["eur", "usd", "sek"]'),
        rule("a", "permit", "params.live"),
        rule("c", "deny", "params.amount > 5000"),
        rule("e", "review", "params.amount / params.amount > 0"),
    ]
    texts = [
        policy_text("\n".join(rules), name="one", extra="constants: {unused: 1, spare: [a]}"),
        policy_text(rule("z", "permit", "params.amount > 5000"), name="two"),
    ]
    policies = load_texts(folder, *texts)
    out = [repr(policies.names), repr([str(each.message) for each in lint(policies, FakeIndex())])]
    for amount in (0, 1, 6000):
        inputs = decision_input(action(params={"amount": amount, "currency": "eur", "live": True}))
        out += [repr(decide(policies, inputs)), repr(trace(policies, inputs))]
    wrong = decision_input(action(params={"zz": 1, "yy": 2}), action(params={}))
    out += [repr(decide(policies, wrong)), repr(trace(policies, wrong))]
    try:
        load_texts(folder / "bad", policy_text(rule("a", "permit", "params.amont > 1")))
    except ConfigError as error:
        out.append(error.message)
    return out


def own_digests() -> str:
    """Two digests: of expressions, and of policies and decisions."""
    with tempfile.TemporaryDirectory() as folder:
        parts = (_cel(), _gate(Path(folder)))
    return " ".join(hashlib.sha256("\n".join(part).encode()).hexdigest() for part in parts)


@cache
def digests_by_seed() -> dict[str, list[str]]:
    """PYTHONHASHSEED -> the two digests of a fresh process."""
    found = {}
    for seed in ("0", "1", "77"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [sys.executable, __file__], env=environment, capture_output=True, text=True, check=True
        )
        found[seed] = done.stdout.split()
    return found


if __name__ == "__main__":
    print(own_digests())
