"""policy.py, policy_model.py, policy_lint.py: files become a PolicySet, or an error with place and advice."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from holdgate.errors import ConfigError, Outcome
from holdgate.gate import decide
from holdgate.policy import PolicySet, RuleEffect, lint, load_policies
from holdgate.policy_document import policy_files
from holdgate.policy_model import MAX_RULES
from holdgate.surface.model import CelType
from policy_fakes import (
    AGENTS,
    SCHEMAS,
    FakeIndex,
    decision_input,
    load_texts,
    optional,
    policy_text,
    required,
    rule,
)

DATA = Path(__file__).parent / "data" / "policies"
REFUNDS_ONLY = FakeIndex(
    {"payments.refund": {"stripe.PostRefunds": SCHEMAS["payments.refund"]["stripe.PostRefunds"]}}
)
PERMIT = rule("small", "permit", "params.amount > 0 && params.amount <= 5000")


def error_of(folder: Path, *texts: str, **options: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_texts(folder, *texts, **options)
    return caught.value


def findings(folder: Path, *texts: str, **options: Any) -> list[str]:
    found = lint(load_texts(folder, *texts, **options), REFUNDS_ONLY)
    assert all(each.file and each.line > 0 for each in found)
    return [each.message for each in found]


# --- loading ----------------------------------------------------------------------------------


def test_the_sample_loads_and_decides() -> None:
    policies = load_policies([DATA], FakeIndex())
    assert policies.names == (
        "refunds/approved-refund",
        "refunds/foreign-account",
        "refunds/large-refund",
        "refunds/office-hours",
        "refunds/small-refund",
    )
    assert [Path(file).name for file in policies.files] == ["agents.yaml", "refunds.yaml"]
    assert decide(policies, decision_input()).outcome is Outcome.PERMIT
    found = policies.rule("refunds/office-hours")
    assert found is not None and found.effect is RuleEffect.DENY
    assert found.reason == "live refunds only from 06:00 to 20:00 UTC"
    assert found.file.endswith("refunds.yaml") and found.line == 13


def test_o1_the_order_of_files_policies_and_rules_is_not_visible(tmp_path: Path) -> None:
    rules = {
        "one": [rule("b", "permit", "params.live"), rule("a", "deny", "params.amount > 1")],
        "two": [rule("c", "permit", "params.amount > 2")],
    }
    tables = set()
    for number, names in enumerate(itertools.permutations(rules)):
        for place, flip in enumerate((False, True)):
            texts = [
                policy_text("\n".join(reversed(rules[name]) if flip else rules[name]), name=name)
                for name in names
            ]
            policies = load_texts(tmp_path / f"{number}{place}", *texts)
            table = {key: [each.name for each in value.rules] for key, value in policies.table.items()}
            tables.add(repr((policies.names, sorted(table.items()))))
    assert len(tables) == 1


def test_rules_of_several_policies_are_pooled_by_operation(tmp_path: Path) -> None:
    policies = load_texts(
        tmp_path,
        policy_text(PERMIT, name="all", operations=None),
        policy_text(rule("live", "deny", "!params.live"), name="one"),
    )
    names = {key[1]: [each.name for each in value.rules] for key, value in policies.table.items()}
    assert names == {
        "stripe.PostRefunds": ["all/small", "one/live"],
        "stripe.PostChargesRefund": ["all/small"],
    }


def test_a_parameter_that_some_operation_lacks_needs_has(tmp_path: Path) -> None:
    error = error_of(tmp_path, policy_text(rule("a", "permit", "params.live"), operations=None))
    assert "params.live may be absent; guard it: has(params.live)" in error.message
    guarded = rule("a", "permit", "has(params.live) && params.live")
    load_texts(tmp_path / "guarded", policy_text(guarded, operations=None))


def test_bundle_attributes_are_typed_and_can_be_optional(tmp_path: Path) -> None:
    load_texts(
        tmp_path / "a", policy_text(rule("a", "permit", "'acct_1' in agent.attrs.accounts && params.live"))
    )
    error = error_of(tmp_path / "b", policy_text(rule("a", "permit", "agent.attrs.tier > 1")))
    assert "agent.attrs.tier may be absent" in error.message
    error = error_of(tmp_path / "c", policy_text(rule("a", "permit", "agent.attrs.tier > 1")), agents=None)
    assert "agent.attrs has no field 'tier'; none is declared" in error.message


def test_constants_of_every_kind_can_be_used(tmp_path: Path) -> None:
    extra = (
        "constants:\n  cap: 5000\n  on: true\n  word: NO\n  words: [NO, SE]\n"
        "  numbers: [1, 2]\n  caps: {eur: 5000, usd: 6000}"
    )
    when = (
        "constants.on && params.amount <= constants.cap && !(params.currency in constants.words)"
        " && params.currency != constants.word && !(params.amount in constants.numbers)"
        ' && params.currency in constants.caps && params.amount <= constants.caps["eur"]'
    )
    policies = load_texts(tmp_path, policy_text(rule("a", "permit", when), extra=extra))
    assert decide(policies, decision_input()).outcome is Outcome.PERMIT


TEXTS = {
    "a date": "2026-01-01",
    "yes": "yes",
    "on": "on",
    "off": "off",
    "Norway": "No",
    "sexagesimal": "12:30",
    "a time": "2026-01-01T10:00:00Z",
}
NO_NUMBERS = {
    "octal": "010",
    "hexadecimal": "0x1F",
    "an exponent": "1e3",
    "a version": "1.10",
    "grouped": "1_000",
}


def with_word(word: str) -> str:
    """A policy with this word, unquoted, as a constant."""
    return policy_text(
        rule("a", "permit", "params.currency != constants.c"), extra=f"constants: {{c: {word}}}"
    )


@pytest.mark.parametrize("word", TEXTS.values(), ids=TEXTS)
def test_o2_what_yaml_1_1_takes_for_dates_and_truth_values_is_text(tmp_path: Path, word: str) -> None:
    assert load_texts(tmp_path, with_word(word)).policies[0].constants == {"c": word}


@pytest.mark.parametrize("word", NO_NUMBERS.values(), ids=NO_NUMBERS)
def test_o2_what_yaml_1_1_takes_for_other_numbers_is_an_error_until_it_is_quoted(
    tmp_path: Path, word: str
) -> None:
    error = error_of(tmp_path / "plain", with_word(word))
    assert f"constants.c: {word} is a text here" in error.message and error.line > 0
    made = load_texts(tmp_path / "quoted", with_word(f"'{word}'"))
    assert made.policies[0].constants == {"c": word}


@pytest.mark.parametrize("word", ["2026-01-01", "yes", "No", "010", "1_000", "1.10", "1e3"])
def test_o2_ids_and_reasons_are_the_words_as_they_are_written(tmp_path: Path, word: str) -> None:
    text = policy_text(rule(word, "deny", "params.amount > 5")).replace("because", word)
    (made,) = load_texts(tmp_path, text).rules
    assert (made.name, made.reason) == (f"p/{word}", word)


def test_o2_folders_are_read_completely_and_tests_left_alone(tmp_path: Path) -> None:
    load_texts(tmp_path / "deep" / "er", policy_text(PERMIT, name="deep"))
    (tmp_path / "top.yaml").write_text(policy_text(PERMIT, name="top"), encoding="utf-8")
    test = "apiVersion: holdgate/v1\nkind: PolicyTest\nmetadata: {name: t}\nspec: {}\n"
    (tmp_path / "top_test.yaml").write_text(test, encoding="utf-8")
    (tmp_path / "README.md").write_text("no policy", encoding="utf-8")
    policies = load_policies([tmp_path, tmp_path / "top.yaml"], FakeIndex())
    assert policies.names == ("deep/small", "top/small")
    assert len(policy_files([tmp_path, tmp_path / "top.yaml"])) == 4
    assert not any("_test" in file for file in policies.files)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("p.yml", policy_text(PERMIT), "name it *.yaml"),
        ("p_test.yaml", policy_text(PERMIT), "holds tests, not kind: Policy"),
        ("p.yaml", policy_text(PERMIT).replace("kind: Policy", "kind: SurfaceMap"), "must be one of: Policy"),
        ("p.yaml", policy_text(PERMIT).replace("holdgate/v1", "v1"), "apiVersion must be holdgate/v1"),
        ("p.yaml", policy_text(PERMIT) + "extra: 1\n", "unknown key 'extra'"),
        ("p.yaml", policy_text(PERMIT).replace(", owner: ops@example.com", ""), "needs the key 'owner'"),
        ("p.yaml", policy_text(PERMIT).replace("name: p", "name: a b"), "metadata.name must be 1-64 letters"),
        ("p.yaml", "rules: [", "not YAML"),
    ],
)
def test_o2_files_that_are_not_ours_are_errors(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_policies([tmp_path], FakeIndex())
    assert words in caught.value.message and caught.value.file.endswith(name)


def test_o2_no_policy_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no policy found in"):
        load_policies([tmp_path], FakeIndex())
    with pytest.raises(ConfigError, match="no such file or folder"):
        load_policies([tmp_path / "absent"], FakeIndex())


def bad(name: str, words: str, rules: str = PERMIT, **options: str) -> Any:
    return pytest.param(rules, options, words, id=name)


@pytest.mark.parametrize(
    ("rules", "options", "words"),
    [
        bad("no condition", "a rule needs the key 'when'", "- {id: a, effect: permit}"),
        bad("unknown effect", "permit, deny, review", "- {id: a, effect: allow, when: always}"),
        bad("slash in an id", "id must be 1-64", "- {id: a/b, effect: permit, when: params.live}"),
        bad("YAML true", "write `when: always`", "- {id: a, effect: permit, when: true}"),
        bad("unknown key in a rule", "key 'then'", "- {id: a, effect: permit, when: params.live, then: 1}"),
        bad("deny without a reason", "needs a `reason`", "- {id: a, effect: deny, when: params.live}"),
        bad("no rules", "spec.rules is empty", "[]"),
        bad("misspelt", "did you mean 'params.amount'", rule("a", "permit", "params.amout > 1")),
        bad("a number as condition", "must be bool, found int", rule("a", "permit", "params.amount")),
        bad("always fails", "always fails (division_by_zero", rule("a", "permit", "1 / 0 > 1")),
        bad("surface", "did you mean 'payments.refund'", surface="payments.refnd"),
        bad("operation", "did you mean 'stripe.PostRefunds'", operations="[stripe.PostRefund]"),
        bad("no operation", "operations is empty", operations="[]"),
        bad("operation twice", "twice", operations="[stripe.PostRefunds, stripe.PostRefunds]"),
        bad("counters", "counters.a must be a mapping", extra="counters: {a: 1}"),
        bad("facts", "facts.a must be a mapping", extra="facts: {a: 1}"),
        bad(
            "shadow",
            "a shadow policy has no counters or facts",
            extra="shadow: true\ncounters: {n: {key: [agent.id], window: 1h, measure: count}}",
        ),
        bad("unknown key in spec", "unknown key 'actions'", extra="actions: [x]"),
        bad("null constant", "constants.a must not be null", extra="constants: {a: null}"),
        bad("empty list", "constants.a needs at least one item", extra="constants: {a: []}"),
        bad("mixed list", "mixes items", extra="constants: {a: [1, b]}"),
        bad("constant name", "not a name that a condition can use", extra="constants: {a-b: 1}"),
        bad("large constant", "64 bits", extra="constants: {a: 9223372036854775808}"),
    ],
)
def test_o2_bad_policies_are_errors_with_place_and_advice(
    tmp_path: Path, rules: str, options: dict[str, str], words: str
) -> None:
    error = error_of(tmp_path, policy_text(rules, **options))
    assert words in error.message, error.message
    assert error.file.endswith("policy_0.yaml") and error.line > 1


def test_o2_errors_in_conditions_show_the_place_with_a_caret(tmp_path: Path) -> None:
    error = error_of(tmp_path, policy_text(rule("a", "permit", "params.live && params.amout > 1")))
    message = "params has no field 'amout'; did you mean 'params.amount'?"
    assert str(error).splitlines() == [
        f"{tmp_path}/policy_0.yaml:8:60: rule a: {message}",
        "        - {id: a, effect: permit, when: 'params.live && params.amout > 1'}",
        "                                                               ^",
    ]


def test_o2_shadow_false_is_allowed(tmp_path: Path) -> None:
    assert load_texts(tmp_path, policy_text(PERMIT, extra="shadow: false")).names == ("p/small",)


@pytest.mark.parametrize(
    ("agents", "words"),
    [
        (AGENTS.replace("list<string>", "list<double>"), "agent_attrs.accounts must be one of: int, string"),
        (AGENTS.replace("accounts", "my-accounts"), "'my-accounts' is not a name"),
        (AGENTS.replace("agent_attrs", "attributes"), "unknown key 'attributes'"),
        (AGENTS.replace("optional: true", "optional: yes"), "must be true or false"),
    ],
)
def test_o2_bad_bundles_are_errors(tmp_path: Path, agents: str, words: str) -> None:
    assert words in error_of(tmp_path, policy_text(PERMIT), agents=agents).message


def test_o2_an_attribute_declared_in_two_files_is_an_error(tmp_path: Path) -> None:
    error = error_of(tmp_path, policy_text(PERMIT), AGENTS)
    assert "'accounts' is declared twice" in error.message


def test_o2_operations_that_disagree_on_a_type_are_an_error(tmp_path: Path) -> None:
    index = FakeIndex(
        {"s.write": {"m.a": {"x": required(CelType.INT)}, "m.b": {"x": optional(CelType.STRING)}}}
    )
    text = policy_text(rule("a", "permit", "has(params.x)"), surface="s.write", operations=None)
    assert "the parameters of s.write do not agree" in error_of(tmp_path, text, index=index).message


def test_o2_more_rules_than_the_limit_are_an_error(tmp_path: Path) -> None:
    rules = "\n".join(rule(f"r{n}", "permit", f"params.amount == {n}") for n in range(MAX_RULES + 1))
    assert f"{MAX_RULES + 1} rules apply" in error_of(tmp_path, policy_text(rules)).message


@pytest.mark.parametrize("when", ["always", "true", "1 == 1", "params.live || true", "[1].exists(x, x == 1)"])
def test_o3_a_permit_without_a_condition_must_say_so(tmp_path: Path, when: str) -> None:
    bare = f"- {{id: a, effect: permit, when: '{when}'}}"
    assert "unsafe_allow_all: true" in error_of(tmp_path / "bare", policy_text(bare)).message
    said = f"- {{id: a, effect: permit, when: '{when}', unsafe_allow_all: true}}"
    assert load_texts(tmp_path / "said", policy_text(said)).rules[0].unsafe_allow_all
    denied = f"- {{id: a, effect: permit, when: '{when}', unsafe_allow_all: false}}"
    error_of(tmp_path / "false", policy_text(denied))


def test_o3_unsafe_allow_all_elsewhere_is_an_error(tmp_path: Path) -> None:
    for number, (effect, when) in enumerate(
        (("permit", "params.live"), ("deny", "always"), ("review", "always"))
    ):
        text = f"- {{id: a, effect: {effect}, when: '{when}', reason: r, unsafe_allow_all: true}}"
        assert "remove it here" in error_of(tmp_path / str(number), policy_text(text)).message


def test_o4_full_rule_names_are_unique(tmp_path: Path) -> None:
    twice = "\n".join([PERMIT, rule("small", "deny", "params.live")])
    assert "rule 'small' exists already in line 8" in error_of(tmp_path / "a", policy_text(twice)).message
    error = error_of(tmp_path / "b", policy_text(PERMIT), policy_text(PERMIT))
    assert "a policy named 'p' exists already" in error.message


# --- lint -------------------------------------------------------------------------------------


def test_o5_a_good_policy_has_no_findings() -> None:
    policies = load_policies([DATA], FakeIndex())
    assert lint(policies, REFUNDS_ONLY) == ()


@pytest.mark.parametrize(
    ("rules", "extra", "words"),
    [
        (rule("a", "permit", "agent.id == 'x'"), "", "permits without looking at any parameter"),
        (rule("a", "permit", "params.live && false"), "", "can never be true"),
        (PERMIT, "constants: {cap: 1}", "the constant 'cap' is not used"),
        (
            "\n".join([rule("a", "permit", "params.live"), rule("b", "deny", "(params.live)")]),
            "",
            "rule p/a: never decides: p/b denies under the same condition",
        ),
    ],
)
def test_o5_findings(tmp_path: Path, rules: str, extra: str, words: str) -> None:
    (message,) = findings(tmp_path, policy_text(rules, extra=extra))
    assert words in message


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        pytest.param(
            [rule("a", "permit", "params.amount <= 50")],
            "rule p/a: bounds params.amount from above only; add `params.amount >= 1`",
            id="no lower bound",
        ),
        pytest.param(
            [rule("a", "permit", "50 > params.amount && params.live")],
            "from above only",
            id="the other way round",
        ),
        pytest.param(
            [rule("a", "review", "params.amount > 50")],
            "an approval would release nothing",
            id="review alone",
        ),
    ],
)
def test_o5_findings_about_amounts_and_reviews(tmp_path: Path, rules: list[str], words: str) -> None:
    (message,) = findings(tmp_path, policy_text("\n".join(rules)))
    assert words in message


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ('params.amount >= 1 && params.currency == "${currency}"', "there are no placeholders"),
        ('params.amount >= 1 && params.currency == "{{ currency }}"', "there are no placeholders"),
        ("params.amount >= 1 && clock.now_s < 2026-11-12", "2026-11-12 is a subtraction, not a date"),
    ],
)
def test_o5_what_was_meant_to_be_expanded_is_found(tmp_path: Path, condition: str, words: str) -> None:
    text = policy_text(rule("a", "permit", condition))
    found = lint(load_texts(tmp_path, text), FakeIndex())
    assert [each for each in found if words in each.message], found


def test_o2_a_constant_that_looks_computed_is_read_as_it_was_where_it_decided(tmp_path: Path) -> None:
    text = policy_text(rule("a", "permit", "params.currency == constants.c"), extra="constants: {c: 50 EUR}")
    file = tmp_path / "p.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match="minor unit"):
        load_policies([file], FakeIndex())
    (policy,) = load_policies([file], FakeIndex(), kept=True).policies
    assert policy.constants == {"c": "50 EUR"}


def test_o5_a_review_that_an_approval_releases_is_fine(tmp_path: Path) -> None:
    approved = (
        "params.amount > 50 && approvals.exists(a, a.role == 'r' && a.request_digest == request.digest)"
    )
    rules = [rule("a", "review", "params.amount > 50"), rule("b", "permit", approved)]
    assert findings(tmp_path, policy_text("\n".join(rules))) == []


def test_o5_a_listed_operation_that_no_rule_can_release(tmp_path: Path) -> None:
    listed = "[stripe.PostRefunds, stripe.PostChargesRefund]"
    wider = FakeIndex({"payments.refund": {**SCHEMAS["payments.refund"], "stripe.Other": {}}})
    text = policy_text(rule("a", "permit", "has(params.live) && params.live"), operations=listed)
    found = [each.message for each in lint(load_texts(tmp_path, text, index=wider), wider)]
    assert found[0].startswith("no policy of payments.refund speaks of: stripe.Other")
    assert "p/a: is never true for stripe.PostChargesRefund, which has no params.live" in found[1]


def test_o5_a_surface_without_a_policy_is_found_unless_it_only_reads(tmp_path: Path) -> None:
    found = lint(load_texts(tmp_path, policy_text(PERMIT)), FakeIndex())
    assert [each.message.split(";")[0] for each in found] == [
        "no policy of payments.refund speaks of: stripe.PostChargesRefund",
        "no policy speaks of: data.delete",
    ]


def test_o5_permits_without_parameters_are_fine_on_read_surfaces(tmp_path: Path) -> None:
    text = policy_text(rule("a", "permit", "agent.id == 'x'"), surface="data.read", operations=None)
    assert findings(tmp_path, text, policy_text(PERMIT, name="q")) == []


def test_o5_an_unconditional_permit_that_says_so_is_not_found_again(tmp_path: Path) -> None:
    assert findings(tmp_path, policy_text(rule("a", "permit", "always"))) == []


def test_o5_a_deny_of_another_operation_shadows_nothing(tmp_path: Path) -> None:
    both = "params.amount > 1"
    texts = [
        policy_text(rule("a", "permit", both), name="one"),
        policy_text(rule("b", "deny", both), name="two", operations="[stripe.PostChargesRefund]"),
    ]
    assert findings(tmp_path, *texts) == []


def test_o5_findings_are_sorted_and_repeatable(tmp_path: Path) -> None:
    rules = "\n".join(rule(f"r{n}", "permit", "agent.id == 'x'") for n in range(5))
    policies: PolicySet = load_texts(tmp_path, policy_text(rules, extra="constants: {a: 1, b: 2}"))
    first, second = lint(policies, FakeIndex()), lint(policies, FakeIndex())
    assert first == second == tuple(sorted(first)) and len(first) == 9
