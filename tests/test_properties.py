"""Random policies and inputs: the gate decides what an independent evaluator decides, in any order.

The evaluator (naive_cel.py) shares the parser with the gate and nothing else.
"""

# ruff: noqa: E501 - a list of conditions
from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest

from holdgate.cel.check import check
from holdgate.cel.closures import Budget
from holdgate.cel.cost import cost_of
from holdgate.cel.evaluate import compile_program
from holdgate.cel.model import CelError
from holdgate.cel.parse import parse
from holdgate.errors import Outcome
from holdgate.gate import decide
from holdgate.policy_model import environment
from naive_cel import Failed, Naive, decided
from policy_fakes import SCHEMAS, action, built, decision_input

OPERATION = "stripe.PostRefunds"
NAMES = environment(SCHEMAS["payments.refund"][OPERATION], {}, {})
CONDITIONS = [
    "params.amount > 0", "params.amount <= 50", "params.amount == 7", "params.amount + 9223372036854775800 > 0",
    "100 / params.amount > 1", "params.currency in ['eur', 'usd']", "params.currency == 'eur'", "params.live",
    "!params.live", "has(params.account)", "has(params.account) && params.account == 'a'",
    "!has(params.account) || params.account.startsWith('a')", "has(params.tags) && 'x' in params.tags",
    "has(params.tags) && params.tags.exists(t, t == params.currency)", "clock.hour_utc < 12", "agent.id == 'bot'",
    "has(params.tags) && params.tags.all(t, size(t) == params.amount - 6)", "'ops' in agent.groups",
    "approvals.exists(a, a.role == 'risk' && a.request_digest == request.digest)", "size(approvals) > 0",
    "params.live ? params.amount < 9 : params.amount > 9", "params.amount % 2 == 0", "-params.amount < -5",
]  # fmt: skip


def condition(rng: random.Random) -> str:
    parts = [rng.choice(CONDITIONS) for _ in range(rng.choice([1, 1, 2, 2, 3]))]
    text = parts[0]
    for part in parts[1:]:
        text = f"({text}) {rng.choice(['&&', '||'])} ({part})"
    return f"!({text})" if rng.random() < 0.15 else text


def policy(rng: random.Random) -> list[tuple[str, str]]:
    effects = ["permit", "permit", "permit", "deny", "review"]
    return [(rng.choice(effects), condition(rng)) for _ in range(rng.randrange(1, 7))]


def inputs(rng: random.Random) -> dict[str, Any]:
    params: dict[str, Any] = {
        "amount": rng.choice([0, 1, 6, 7, 8, 50, 51, -5]),
        "currency": rng.choice(["eur", "usd", "x"]),
        "live": rng.random() < 0.5,
    }
    params |= {"account": rng.choice(["a", "ab", "b"])} if rng.random() < 0.5 else {}
    params |= (
        {"tags": [rng.choice(["x", "eur"]) for _ in range(rng.randrange(3))]} if rng.random() < 0.5 else {}
    )
    digest = "sha256:" + "ab" * 32
    approval = {"id": "1", "role": rng.choice(["risk", "ops"]), "approver": "p", "expires_s": 9}
    approvals = [approval | {"request_digest": rng.choice([digest, "other"])}] if rng.random() < 0.4 else []
    return decision_input(
        action(params=params),
        agent={"id": rng.choice(["bot", "b"]), "groups": rng.choice([[], ["ops"]]), "attrs": {}},
        clock={"now_s": 5, "hour_utc": rng.choice([11, 12]), "weekday_utc": 1},
        approvals=approvals,
    )


def roots(given: dict[str, Any]) -> dict[str, Any]:
    one = given["actions"][0]
    return {name: given[name] for name in ("agent", "clock", "request", "approvals")} | {
        "action": one,
        "params": one["params"],
        "constants": {},
        "counters": {},
    }


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_decision_is_that_of_an_independent_evaluator(seed: int) -> None:
    rng = random.Random(seed)
    met: set[str] = set()
    for _ in range(150):
        rules = policy(rng)
        loaded = built({OPERATION: rules})
        trees = [(effect, parse(when)) for effect, when in rules]
        for _ in range(8):
            given = inputs(rng)
            decision = decide(loaded, given)
            assert (decision.outcome, decision.reason) == decided(trees, roots(given)), (rules, given)
            met.add(decision.reason)
    assert met == {"permit_rule", "deny_rule", "rule_error", "approval_pending", "no_rule_matched"}


def test_the_order_of_rules_never_matters() -> None:
    rng = random.Random(4)
    for _ in range(100):
        rules = policy(rng)
        given = inputs(rng)
        decisions = set()
        for _ in range(4):
            rng.shuffle(rules)
            decision = decide(built({OPERATION: rules}), given)
            decisions.add((decision.outcome, decision.reason, len(decision.rules)))
        assert len(decisions) == 1, (rules, given)


def test_adding_a_deny_never_adds_a_permit() -> None:
    rng = random.Random(5)
    lost = 0
    for _ in range(150):
        rules = policy(rng)
        grown = [*rules, ("deny", condition(rng))]
        for _ in range(6):
            given = inputs(rng)
            before, after = (decide(built({OPERATION: each}), given).outcome for each in (rules, grown))
            assert after is not Outcome.PERMIT or before is Outcome.PERMIT, (grown, given)
            lost += before is Outcome.PERMIT and after is not Outcome.PERMIT
    assert lost > 20  # the rules that were added did matter


def test_w1_no_evaluation_takes_more_than_the_bound_says() -> None:
    rng = random.Random(6)
    for _ in range(400):
        when = condition(rng)
        try:
            check(parse(when), NAMES, when)
        except CelError:
            continue
        cost = cost_of(parse(when), NAMES)
        program = compile_program(when, NAMES)
        assert program.cost.worst <= cost.worst  # a chain of conjuncts costs no more in parts
        for _ in range(5):
            given = roots(inputs(rng))
            naive = Naive(given)
            try:
                naive.value(parse(when))
            except Failed:
                pass
            assert naive.turns <= cost.iterations and naive.steps <= cost.worst, when
            budget = Budget()
            program.evaluate(program.frame(given, budget))
            assert Budget().left - budget.left <= cost.iterations


def test_bounds_grow_with_loops_lists_and_texts() -> None:
    sources = [
        "params.live",
        "params.live && params.amount > 1",
        "['a', 'b'].exists(t, t == params.currency)",
        "params.currency.contains('x')",
        "has(params.tags) && 'x' in params.tags && params.currency.contains('x')",
        "has(params.tags) && params.tags.exists(t, t == 'x')",
        "has(params.tags) && params.tags.exists(t, t == 'x' || t == 'y')",
        "has(params.tags) && params.tags.exists(t, params.tags.exists(u, t == u || t.contains(u)))",
    ]
    costs = [cost_of(parse(source), NAMES) for source in sources]
    assert all(one.worst < two.worst for one, two in pairwise(costs)), [cost.worst for cost in costs]
    assert costs[2].iterations == 2 and costs[5].iterations == 1000 and costs[7].iterations == 1_001_000
