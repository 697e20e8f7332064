"""gate.py: the decision table against an oracle of its own, the invariants, and mutants that must die."""

from __future__ import annotations

import itertools
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hash_order import digests_by_seed
from holdgate import gate
from holdgate.cel.evaluate import EvalError
from holdgate.errors import Outcome, Reason
from holdgate.gate import Decision, decide, shadow, shadow_part, trace
from holdgate.policy import PolicySet
from policy_fakes import action, built, decision_input, load_texts, policy_text, rule

A, B, UNMAPPED = "stripe.PostRefunds", "stripe.PostChargesRefund", "stripe.PostPayouts"
PARAMS = {A: {"amount": 4200, "currency": "eur", "live": True}, B: {"amount": 4200, "currency": "eur"}}

# Conditions whose result for PARAMS is known without asking the code under test.
CONDITIONS = {
    "true": "params.amount == 4200",
    "false": "params.amount > 4200",
    "error": "params.amount / 0 > 1",
}
EFFECTS = ("permit", "deny", "review")
KINDS = tuple(itertools.product(EFFECTS, CONDITIONS))  # (effect, result): nine kinds of rule

type Kinds = Sequence[tuple[str, str]]
type Decide = Callable[[PolicySet, Mapping[str, Any]], Decision]


def one(operation: str, **changes: Any) -> dict[str, Any]:
    return action(operation=operation, params=PARAMS.get(operation, {}), **changes)


def policies_of(rules: Mapping[str, Kinds]) -> PolicySet:
    return built(
        {op: [(effect, CONDITIONS[result]) for effect, result in kinds] for op, kinds in rules.items()}
    )


# --- the oracle: the decision table, written down once more ----------------------------------------


def expected_of_action(kinds: Kinds) -> tuple[str, str]:
    if ("deny", "true") in kinds:
        return "DENY", "deny_rule"
    if any(result == "error" for _, result in kinds):
        return "SILENCE", "rule_error"
    if ("permit", "true") in kinds:
        return "PERMIT", "permit_rule"
    if ("review", "true") in kinds:
        return "SILENCE", "approval_pending"
    return "SILENCE", "no_rule_matched"


def expected_rules(policy: str, kinds: Kinds, reason: str) -> list[str]:
    deciding = {
        "deny_rule": lambda kind: kind == ("deny", "true"),
        "rule_error": lambda kind: kind[1] == "error",
        "permit_rule": lambda kind: kind == ("permit", "true"),
        "approval_pending": lambda kind: kind == ("review", "true"),
        "no_rule_matched": lambda kind: False,
    }[reason]
    return [f"{policy}/r{place}" for place, kind in enumerate(kinds) if deciding(kind)]


def expected(each: Sequence[tuple[str, str]]) -> tuple[str, str]:
    outcomes = [outcome for outcome, _ in each]
    if "DENY" in outcomes:
        return "DENY", "deny_rule"
    if "SILENCE" in outcomes:
        reasons = [reason for outcome, reason in each if outcome == "SILENCE"]
        order = ["rule_error", "no_rule_matched", "approval_pending"]
        return "SILENCE", min(reasons, key=order.index)
    return "PERMIT", "permit_rule"


# --- batteries: each yields a line for every case that is wrong ---------------------------------


def wrong_for_one_action(decide: Decide) -> Iterator[str]:
    """Every multiset of up to three rules out of the nine kinds."""
    for size in range(4):
        for kinds in itertools.combinations_with_replacement(KINDS, size):
            got = decide(
                policies_of({A: kinds} if kinds else {B: [("deny", "true")]}), decision_input(one(A))
            )
            outcome, reason = expected_of_action(kinds)
            wanted = (outcome, reason, expected_rules("p0", kinds, reason))
            if (got.outcome, got.reason, list(got.rules)) != wanted:
                yield f"{kinds}: {got}, not {wanted}"


def wrong_for_several_actions(decide: Decide) -> Iterator[str]:
    """Two operations with one rule each, and one without any, in every order."""
    for first, second in itertools.product(KINDS, repeat=2):
        policies = policies_of({A: [first], B: [second]})
        each = {A: expected_of_action([first]), B: expected_of_action([second])}
        each[UNMAPPED] = ("SILENCE", "no_rule_matched")
        for operations in ((A, B), (B, A), (A, A, B), (A, UNMAPPED), (UNMAPPED, B, A)):
            got = decide(policies, decision_input(*(one(operation) for operation in operations)))
            wanted = expected([each[operation] for operation in operations])
            if (got.outcome, got.reason) != wanted:
                yield f"{first} {second} {operations}: {got}, not {wanted}"


def wrong_for_bad_input(decide: Decide) -> Iterator[str]:
    """Inputs that are not what the map declares, under policies that would permit them."""
    policies = policies_of({A: [("permit", "true")]})
    for name, inputs, reason in bad_inputs():
        got = decide(policies, inputs)
        if (got.outcome, got.reason, got.rules) != ("SILENCE", reason, ()):
            yield f"{name}: {got}, not {reason}"
    crash = decide(None, decision_input(one(A)))  # type: ignore[arg-type]
    if (crash.outcome, crash.reason) != ("SILENCE", "internal_error"):
        yield f"a crash inside: {crash}"


def bad_inputs() -> Iterator[tuple[str, Any, str]]:
    def params(**changes: Any) -> dict[str, Any]:
        return decision_input(one(A) | {"params": {**PARAMS[A], **changes}})

    yield "text for int", params(amount="4200"), "rule_error"
    yield "float for int", params(amount=4200.0), "rule_error"
    yield "bool for int", params(amount=True), "rule_error"
    yield "int for bool", params(live=1), "rule_error"
    yield "too large int", params(amount=2**63), "rule_error"
    yield "null", params(currency=None), "rule_error"
    yield "undeclared parameter", params(surprise=1), "rule_error"
    yield "list of mixed", params(tags=["a", 1]), "rule_error"
    yield (
        "absent parameter",
        decision_input(one(A) | {"params": {"amount": 4200, "live": True}}),
        "rule_error",
    )
    yield "no params", decision_input({k: v for k, v in one(A).items() if k != "params"}), "rule_error"
    yield "one bad action of two", decision_input(one(A), one(A) | {"params": {}}), "rule_error"
    yield "null principal", decision_input(one(A, principal=None)), "rule_error"
    yield "unknown effect", decision_input(one(A, effect="destroy")), "rule_error"
    yield "no actions", {**decision_input(), "actions": []}, "no_rule_matched"
    yield "actions is a record", {**decision_input(), "actions": {"0": one(A)}}, "no_rule_matched"
    yield "action is no record", {**decision_input(), "actions": ["x"]}, "no_rule_matched"
    yield "unknown surface", decision_input(one(A, surface="payments.payout")), "no_rule_matched"
    yield "unknown operation", decision_input(one(UNMAPPED)), "no_rule_matched"
    yield "list as a surface", decision_input(one(A, surface=["payments.refund"])), "no_rule_matched"
    for key in ("v", "agent", "request", "clock", "approvals"):
        yield f"no {key}", {k: v for k, v in decision_input(one(A)).items() if k != key}, "rule_error"
    yield "version 2", decision_input(one(A), v=2), "rule_error"
    yield "version true", decision_input(one(A), v=True), "rule_error"
    yield (
        "float clock",
        decision_input(one(A), clock={"now_s": 1.5, "hour_utc": 1, "weekday_utc": 1}),
        "rule_error",
    )
    yield "half an approval", decision_input(one(A), approvals=[{"id": "x"}]), "rule_error"
    yield "not a record", [], "rule_error"
    yield "nothing", None, "rule_error"


BATTERIES = (wrong_for_one_action, wrong_for_several_actions, wrong_for_bad_input)


@pytest.mark.parametrize("battery", BATTERIES)
def test_table(battery: Callable[[Decide], Iterator[str]]) -> None:
    assert list(battery(decide)) == []


# --- mutants ----------------------------------------------------------------------------------

PERMITTED = "_decision(Outcome.PERMIT, Reason.PERMIT_RULE, [])"
DENIED = "    if denied:\n        return _decision("
FAILED = "    if failed:\n"
LOOP = "for rule in rules:\n        value"
REVIEW = "_decision(Outcome.SILENCE, Reason.APPROVAL_PENDING"
ALL_DENIED = "    if denied:\n        return _joined"
REASONS = "    for reason in _SILENCES:"
ANY = (
    "    good = [each for each in decisions if each.outcome is Outcome.PERMIT]\n"
    "    if good:\n        return _joined(good)\n"
)
CHECKED = "    if isinstance(frame, Problem):\n        return _silence(Reason.RULE_ERROR)\n"
UNCHECKED = "    frame = shared.copy()\n    frame[0], frame[4] = action, action['params']\n"
NO_RULES = "    if applicable is None:\n        return "
CRASH = "        return _silence(Reason.INTERNAL_ERROR)\n\n\ndef shadow("

# name -> (text of gate.py, what it becomes)
MUTANTS = {
    "permit beats deny": (DENIED, DENIED.replace("denied:", "denied and not permitted:")),
    "deny skipped on error": (DENIED, DENIED.replace("denied:", "denied and not failed:")),
    "error ignored": (FAILED, "    if False:\n"),
    "error only counts without a permit": (FAILED, "    if failed and not permitted:\n"),
    "error read as false": ("        if value is False:\n", "        if value is not True:\n"),
    "error read as true": ("        if value is not True:  #", "        if value is None:  #"),
    "review permits": (REVIEW, REVIEW.replace("SILENCE", "PERMIT")),
    "review counts as permit": ("reviewed.append(", "permitted.append("),
    "deny counts as permit": ("denied.append(", "permitted.append("),
    "only the first rule counts": (LOOP, LOOP.replace("rules:", "rules[:1]:")),
    "the first action decides": ("    if len(decisions) == 1:", "    if decisions:"),
    "any action may permit": (REASONS, ANY + REASONS),
    "every action must be denied": (
        ALL_DENIED,
        ALL_DENIED.replace("denied:", "len(denied) >= len(decisions):"),
    ),
    "unchecked parameters": (CHECKED, UNCHECKED),
    "unknown operation permits": (f"{NO_RULES}_silence(Reason.NO_RULE_MATCHED)", NO_RULES + PERMITTED),
    "a crash permits": (CRASH, CRASH.replace("_silence(Reason.INTERNAL_ERROR)", PERMITTED)),
    "no actions is a crash": ("type(actions) is not list or not actions", "type(actions) is not list"),
}


def module_from(source: str) -> types.ModuleType:
    module = types.ModuleType("holdgate.gate_mutant")
    module.__package__ = "holdgate"
    sys.modules[module.__name__] = module  # dataclasses look their module up
    try:
        exec(compile(source, "gate_mutant.py", "exec"), module.__dict__)  # noqa: S102 - our own source
    finally:
        del sys.modules[module.__name__]
    return module


def failures_of(source: str) -> int:
    mutant = module_from(source)
    return sum(1 for battery in BATTERIES for _ in battery(mutant.decide))


def test_the_unchanged_source_passes_as_a_module_of_its_own() -> None:
    assert failures_of(Path(gate.__file__).read_text(encoding="utf-8")) == 0


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_die(name: str) -> None:
    source = Path(gate.__file__).read_text(encoding="utf-8")
    before, after = MUTANTS[name]
    assert source.count(before) == 1, "the mutant's place moved; adapt the mutant"
    assert failures_of(source.replace(before, after)) > 0


# --- invariants -------------------------------------------------------------------------------

kinds_lists = st.lists(st.sampled_from(KINDS), max_size=6)
texts = st.sampled_from(["", "a", "😀", "\ud800"])
junk = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["v", "id", "a"]), inner),
    max_leaves=6,
)
paths = st.sampled_from(
    [(key,) for key in decision_input()]
    + [("agent", key) for key in ("id", "groups", "attrs")]
    + [("clock", "now_s"), ("request", "digest"), ("actions", 0)]
    + [("actions", 0, key) for key in (*action(), "principal")]
    + [("actions", 0, "params", key) for key in (*PARAMS[A], "account", "tags", "zz")]
)


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    if isinstance(value, list):
        return [
            replaced(item, path[1:], new) if place == path[0] else item for place, item in enumerate(value)
        ]
    return {**value, path[0]: replaced(value.get(path[0]), path[1:], new)}


@given(junk)
def test_g1_any_value_gets_a_decision(inputs: Any) -> None:
    got = decide(policies_of({A: [("permit", "true")]}), inputs)
    assert got.outcome is Outcome.SILENCE and got.reason in set(Reason)
    assert isinstance(trace(policies_of({A: [("permit", "true")]}), inputs), tuple)


@given(paths, junk)
def test_g1_damaged_inputs_get_a_decision(path: tuple[Any, ...], value: Any) -> None:
    inputs = replaced(decision_input(one(A)), path, value)
    policies = policies_of({A: [("permit", "true"), ("deny", "false")]})
    got = decide(policies, inputs)
    assert isinstance(got, Decision)
    results = [(each.effect, each.result) for each in trace(policies, inputs)]
    assert (got.outcome is Outcome.PERMIT) == (results == [("permit", "true"), ("deny", "false")])


@given(kinds_lists, kinds_lists, st.lists(st.sampled_from([A, B, UNMAPPED]), min_size=1, max_size=4))
def test_g2_permit_needs_a_true_permit_and_no_true_deny_for_every_action(
    of_a: Kinds, of_b: Kinds, operations: list[str]
) -> None:
    policies = policies_of({A: of_a, B: of_b})
    got = decide(policies, decision_input(*(one(operation) for operation in operations)))
    kinds = {A: of_a, B: of_b, UNMAPPED: []}
    fine = all(
        ("permit", "true") in kinds[each]
        and ("deny", "true") not in kinds[each]
        and not any(result == "error" for _, result in kinds[each])
        for each in operations
    )
    assert (got.outcome is Outcome.PERMIT) == fine
    assert (got.outcome, got.reason) == expected([expected_of_action(kinds[each]) for each in operations])


@given(st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 2)), min_size=1, max_size=5), st.randoms())
def test_g3_order_and_files_do_not_matter(tmp_path_factory: Any, numbered: Any, rng: Any) -> None:
    # The same named rules, written in another order and spread over files in another order.
    rules = [(f"r{place}", f"p{policy}", kind) for place, (kind, policy) in enumerate(numbered)]

    def load(ordered: Sequence[tuple[str, str, tuple[str, str]]]) -> PolicySet:
        by_policy: dict[str, list[str]] = {}
        for rule_id, policy, (effect, result) in ordered:
            by_policy.setdefault(policy, []).append(rule(rule_id, effect, CONDITIONS[result]))
        texts = [policy_text("\n".join(lines), name=name) for name, lines in by_policy.items()]
        return load_texts(tmp_path_factory.mktemp("g3"), *texts)

    shuffled = list(rules)
    rng.shuffle(shuffled)
    first, second = load(rules), load(shuffled)
    inputs = decision_input(one(A))
    assert decide(first, inputs) == decide(second, inputs)
    assert trace(first, inputs) == trace(second, inputs)


@given(kinds_lists, st.lists(st.sampled_from([A, B]), min_size=2, max_size=3), st.randoms())
def test_g3_the_order_of_actions_does_not_matter(kinds: Kinds, operations: list[str], rng: Any) -> None:
    policies = policies_of({A: kinds, B: [("permit", "true")]})
    shuffled = list(operations)
    rng.shuffle(shuffled)
    first = decide(policies, decision_input(*(one(each) for each in operations)))
    assert first == decide(policies, decision_input(*(one(each) for each in shuffled)))


def test_g3_no_decision_depends_on_hash_order() -> None:
    found = digests_by_seed()
    assert len(found) == 3 and len({second for _, second in found.values()}) == 1


@given(kinds_lists, st.sampled_from(sorted(CONDITIONS)))
def test_g4_a_further_deny_rule_never_adds_a_permit(kinds: Kinds, result: str) -> None:
    before = decide(policies_of({A: kinds}), decision_input(one(A))) if kinds else None
    after = decide(policies_of({A: [*kinds, ("deny", result)]}), decision_input(one(A)))
    if before is None or before.outcome is not Outcome.PERMIT:
        assert after.outcome is not Outcome.PERMIT
    if result == "true":
        assert after.outcome is Outcome.DENY


def test_g4_a_deny_rule_that_uses_up_the_budget_never_adds_a_permit() -> None:
    loop = "params.tags.exists(t, t == 'x') || params.tags.all(t, size(t) > 0)"
    guarded = f"has(params.tags) && ({loop})"
    wasteful = "has(params.tags) && params.tags.all(t, params.tags.exists(u, u == 'none'))"
    inputs = decision_input(one(A) | {"params": {**PARAMS[A], "tags": ["a"] * 40}})
    without = built({A: [("permit", guarded)]})
    with_deny = built({A: [("deny", wasteful), ("deny", f"{wasteful} "), ("permit", guarded)]})
    assert decide(without, inputs).outcome is Outcome.PERMIT
    many = decision_input(*([inputs["actions"][0]] * 30))
    assert decide(without, many).reason is Reason.RULE_ERROR  # 30 actions x 80 steps: one budget for all
    assert decide(with_deny, many).outcome is Outcome.SILENCE


# --- shadow policies -----------------------------------------------------------------------------


@pytest.mark.parametrize("live", KINDS, ids=" ".join)
def test_g7_a_shadow_policy_changes_nothing_and_says_what_it_would_have(
    tmp_path: Path, live: tuple[str, str]
) -> None:
    real = policy_text(rule("r", live[0], CONDITIONS[live[1]]))
    alone = load_texts(tmp_path / "alone", real)
    inputs = decision_input(one(A))
    assert shadow(alone, inputs) is None and shadow_part(alone, inputs) == {}
    for effect, result in KINDS:
        text = policy_text(rule("s", effect, CONDITIONS[result]), name="q", extra="shadow: true")
        both = load_texts(tmp_path / f"{effect}-{result}", real, text)
        assert decide(both, inputs) == decide(alone, inputs)
        would = shadow(both, inputs)
        assert would is not None
        assert (would.outcome, would.reason) == expected_of_action([live, (effect, result)])
        assert [(each.rule, each.shadow) for each in trace(both, inputs)] == [("p/r", False), ("q/s", True)]


def test_g7_a_surface_that_only_a_shadow_speaks_of_stays_silent(tmp_path: Path) -> None:
    text = policy_text(rule("s", "permit", "params.amount == 4200"), extra="shadow: true")
    policies, inputs = load_texts(tmp_path, text), decision_input(one(A))
    assert decide(policies, inputs).reason is Reason.NO_RULE_MATCHED
    assert shadow_part(policies, inputs) == {
        "outcome": "PERMIT",
        "reason": "permit_rule",
        "rules": ["p/s"],
    }
    assert shadow(policies, decision_input(one(B))) is None
    assert shadow(policies, {"actions": 1}) is None


def test_g7_a_shadow_that_uses_up_its_budget_uses_nobody_elses(tmp_path: Path) -> None:
    wasteful = "has(params.tags) && params.tags.all(t, params.tags.exists(u, u == 'none'))"
    inputs = decision_input(one(A) | {"params": {**PARAMS[A], "tags": ["a"] * 40}})
    real = policy_text(rule("r", "permit", "params.amount == 4200"))
    spoilt = policy_text(
        "\n".join(rule(f"s{n}", "deny", wasteful + " " * n) for n in range(40)),
        name="a",
        extra="shadow: true",
    )
    both = load_texts(tmp_path, real, spoilt)
    assert decide(both, inputs).outcome is Outcome.PERMIT


# --- trace ------------------------------------------------------------------------------------


def test_trace_shows_every_rule_with_its_conjuncts() -> None:
    policies = built(
        {
            A: [
                ("permit", "params.live && params.amount < 100"),
                ("deny", "has(params.account) && params.amount / 0 > 1"),
            ]
        }
    )
    permit, deny = trace(policies, decision_input(one(A)))
    assert (permit.action, permit.rule, permit.effect, permit.result) == (0, "p0/r0", "permit", "false")
    assert [(c.text, c.value) for c in permit.conjuncts] == [
        ("params.live", True),
        ("params.amount < 100", False),
    ]
    # False as a whole, although one part fails alone.
    assert deny.result == "false" and isinstance(deny.conjuncts[1].value, EvalError)


def test_trace_of_a_bad_input_says_what_is_wrong_with_it() -> None:
    policies = policies_of({A: [("permit", "true")]})
    (only,) = trace(policies, decision_input(one(A) | {"params": {**PARAMS[A], "amount": "1"}}))
    assert only.result == "error"
    assert str(only.conjuncts[0].value) == "input: params.amount is not int, or is too large"


@given(kinds_lists)
def test_trace_agrees_with_the_decision(kinds: Kinds) -> None:
    policies = policies_of({A: kinds or [("permit", "false")]})
    found = trace(policies, decision_input(one(A)))
    assert [(each.effect, each.result) for each in found] == list(kinds or [("permit", "false")])
