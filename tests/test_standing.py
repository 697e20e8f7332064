"""standing.py, and what it does in the judge, the store, the log and the pipeline: denials that stick."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evidence import KEYS, LOG_KEYS, NODE, ORIGIN, RECEIPT_KEY, T0, RefundJudge, open_ledger
from fakes import NO_POLICIES
from holdgate.adapters import sqlite_store
from holdgate.adapters.sqlite import SqliteLedger
from holdgate.adapters.sqlite_reader import SqliteReader
from holdgate.adapters.sqlite_schema import DB_NAME, connect_reader
from holdgate.adjudicate import Adjudication, Evidence
from holdgate.agents import Agent
from holdgate.audit import audit
from holdgate.bundle import NEVER_US, Bundle
from holdgate.case import Case
from holdgate.errors import BackendError, Outcome, Reason
from holdgate.gate import Decision
from holdgate.ledger import ClaimRow, Entry, State
from holdgate.policy_model import PolicySet
from holdgate.receipt import new_receipt_id, verify
from holdgate.standing import KEYLESS_S, Denial, Standing, repeated
from holdgate.statement import StatementError, check_statement
from holdgate.surface.model import KeyRule, KeySource
from shop import FORM, Said, Shop
from surface_requests import index_of
from test_pipeline import NATIVE, REQUEST, recognised

NOTHING: Any = None
DENY = Decision(outcome=Outcome.DENY, reason=Reason.DENY_RULE, rules=("p/never", "p/not-at-night"))
PERMIT = Decision(outcome=Outcome.PERMIT, reason=Reason.PERMIT_RULE, rules=("p/r",))
SILENCE = Decision(outcome=Outcome.SILENCE, reason=Reason.NO_RULE_MATCHED, rules=())
IMPLICIT = KeyRule(source=KeySource.IMPLICIT, value="sha256:" + "ab" * 32, ttl_s=86_400, provider=False)
HOUR_US = 3_600_000_000

# --- the rule ---

texts = st.sampled_from(["a", "b"])
times = st.integers(min_value=0, max_value=3)
denials = st.builds(
    Denial,
    key=texts,
    digest=texts,
    policy=texts,
    receipt_id=texts,
    rules=st.just(("p/d",)),
    expires_us=times,
)


@given(held=st.lists(denials, max_size=2), key=texts, digest=texts, policy=texts, now_us=times)
def test_st1_a_denial_repeats_for_its_own_request_and_bundle_until_it_expires(
    held: list[Denial], key: str, digest: str, policy: str, now_us: int
) -> None:
    standing = Standing(denials={one.key: one for one in held}, prepared={})
    found = repeated(standing, key, digest=digest, policy=policy, now_us=now_us)
    one = standing.denials.get(key)
    expected = one is not None and one.digest == digest and one.policy == policy and now_us < one.expires_us
    assert found == (one if expected else None)


# --- the judge ---


class Asked:
    """A gate that says what it is told, and counts."""

    def __init__(self, *decisions: Decision) -> None:
        self.decisions, self.count = list(decisions), 0

    def __call__(self, policies: PolicySet, inputs: Any) -> Decision:
        self.count += 1
        return self.decisions.pop(0) if len(self.decisions) > 1 else self.decisions[0]


def bundle(digest: str = "00") -> Bundle:
    return Bundle(
        digest="sha256:" + digest * 32,
        revision=3,
        signed=False,
        ends_us=NEVER_US,
        index=NOTHING,
        policies=NO_POLICIES,
    )


def judge(
    gate: Asked,
    *,
    key: KeyRule | None = NATIVE,
    agent: str = "bot",
    digest: str = "",
    under: str = "00",
    engine: str = "",
) -> Adjudication:
    found = recognised(key=key)
    case = Case(
        agent=Agent(id=agent, groups=(), attrs=()),
        request=REQUEST,
        recognised=replace(found, digest=digest) if digest else found,
        wire="sha256:" + "ee" * 32,
        raw_digest="",
        raw_bytes=2,
        refusal=None,
    )
    evidence = Evidence(signer=RECEIPT_KEY, issuer=ORIGIN, node=NODE, fleet_key=b"f" * 32, draw=bytes)
    return Adjudication(case, bundle(under), evidence, gate, **({"engine": engine} if engine else {}))


def decide(judging: Adjudication, standing: Standing, now_us: int = T0) -> Entry:
    receipt_id = new_receipt_id(now_us, b"n" * 16)
    return judging({}, now_us=now_us, receipt_id=receipt_id, standing=standing)


def denied(key: KeyRule = NATIVE) -> tuple[Entry, Standing]:
    entry = decide(judge(Asked(DENY), key=key), Standing(denials={}, prepared={}))
    assert entry.denial is not None
    return entry, Standing(denials={entry.denial.key: entry.denial}, prepared={})


def test_a9_a_repeat_names_the_first_denial_and_asks_nobody() -> None:
    first, standing = denied()
    gate = Asked(PERMIT)
    again = decide(judge(gate), standing, T0 + 1)
    said = verify(again.jws, KEYS).statement
    assert (again.outcome, again.reason, gate.count) == (Outcome.DENY, Reason.DENY_RULE, 0)
    assert (said["replay_of"], said["rules"]) == (first.receipt_id, ["p/never", "p/not-at-night"])
    assert "input_digest" not in said and again.inputs is None
    assert (again.prior, again.bindings, again.denial) == (first.receipt_id, (), None)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"under": "01"}, id="another bundle"),
        pytest.param({"agent": "other"}, id="another agent"),
        pytest.param({"digest": "sha256:" + "cd" * 32}, id="another request"),
        pytest.param({"key": replace(NATIVE, value="key-2")}, id="another key: another intention"),
        pytest.param({"engine": "authzen/1.0"}, id="another gate, whose policies we do not know"),
    ],
)
def test_a9_anything_else_is_decided_anew(change: dict[str, Any]) -> None:
    _, standing = denied()
    gate = Asked(PERMIT)
    assert decide(judge(gate, **change), standing).outcome is Outcome.PERMIT
    assert gate.count == 1


@pytest.mark.parametrize(
    ("key", "lasts_s"),
    [
        pytest.param(NATIVE, NATIVE.ttl_s, id="as long as the key"),
        pytest.param(IMPLICIT, KEYLESS_S, id="without a key for a retry loop"),
    ],
)
def test_a9_a_denial_ends_with_its_key(key: KeyRule, lasts_s: int) -> None:
    _, standing = denied(key)
    until = T0 + lasts_s * 1_000_000
    assert decide(judge(Asked(PERMIT), key=key), standing, until - 1).outcome is Outcome.DENY
    assert decide(judge(Asked(PERMIT), key=key), standing, until).outcome is Outcome.PERMIT


@pytest.mark.parametrize(
    ("judging", "outcome"),
    [
        pytest.param(judge(Asked(SILENCE)), Outcome.SILENCE, id="silence"),
        pytest.param(judge(Asked(PERMIT)), Outcome.PERMIT, id="permit"),
        pytest.param(judge(Asked(DENY), key=None), Outcome.DENY, id="what has no key: a read"),
        pytest.param(judge(Asked(DENY), engine="trigguard/1"), Outcome.DENY, id="another gate"),
    ],
)
def test_st2_only_a_denial_by_a_policy_here_leaves_one(judging: Adjudication, outcome: Outcome) -> None:
    entry = decide(judging, Standing(denials={}, prepared={}))
    assert (entry.outcome, entry.denial) == (outcome, None)


def test_st2_a_key_that_is_held_leaves_none() -> None:
    judging = judge(Asked(DENY))
    row = ClaimRow(
        key=judging.keys[0],
        state=State.DISPATCHING,
        digest="sha256:" + "cd" * 32,
        receipt_id="rcpt_x",
        http_status=0,
        expires_us=T0 + 9,
        provider=False,
        source="native",
    )
    entry = judging({row.key: row}, now_us=T0, receipt_id=new_receipt_id(T0, b"n" * 16))
    assert (entry.reason, entry.denial) == (Reason.IDEMPOTENCY_KEY_REUSED, None)


# --- what a receipt may say ---


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        pytest.param({}, "", id="as it is made"),
        pytest.param(
            {"input_digest": "sha256:" + "0" * 64}, "a repeated DENY with", id="a repeat that was decided"
        ),
        pytest.param({"replay_of": None}, "without input_digest", id="a denial that nobody decided"),
    ],
)
def test_a_receipt_of_a_repeat_has_no_input(changes: dict[str, Any], fault: str) -> None:
    _, standing = denied()
    said = dict(verify(decide(judge(Asked(PERMIT)), standing, T0 + 1).jws, KEYS).statement)
    said = {name: value for name, value in (said | changes).items() if value is not None}
    if not fault:
        check_statement(said)
        return
    with pytest.raises(StatementError, match=fault):
        check_statement(said)


# --- the store ---


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SqliteLedger]:
    ledger = open_ledger(tmp_path)
    yield ledger
    ledger.close()


async def test_a_denial_is_durable_with_its_receipt(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    first = await ledger.record(judge(Asked(DENY)))
    same_group = await ledger.record(judge(Asked(PERMIT)))
    ledger.close()
    ledger = open_ledger(tmp_path)
    after = await ledger.record(judge(Asked(PERMIT)))
    elsewhere = await ledger.record(judge(Asked(PERMIT), under="01"))
    ledger.close()
    assert [one.entry.outcome for one in (first, same_group, after)] == [Outcome.DENY] * 3
    assert {one.entry.prior for one in (same_group, after)} == {first.entry.receipt_id}
    assert elsewhere.entry.outcome is Outcome.PERMIT
    with SqliteReader(tmp_path) as reader:
        report = audit(reader.audit_input(), origin=ORIGIN, receipt_keys=KEYS, log_keys=LOG_KEYS)
    assert report.problems == ()


async def test_the_store_keeps_a_denial_of_nothing_but_this_deny(ledger: SqliteLedger) -> None:
    entry, _ = denied()

    class Lying(RefundJudge):
        def __call__(self, claims: Any, **given: Any) -> Entry:
            return replace(super().__call__(claims, **given), denial=entry.denial)

    with pytest.raises(BackendError, match="only a DENY sticks"):
        await ledger.record(Lying("a"))
    assert ledger.size == 0


async def test_denials_are_forgotten_when_they_are_too_many(
    ledger: SqliteLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_store, "MAX_DENIALS", 2)
    monkeypatch.setattr(sqlite_store, "FORGET_EVERY", 5)
    keys = [replace(NATIVE, value=f"k{number}") for number in range(5)]
    for key in keys:
        await ledger.record(judge(Asked(DENY), key=key))
    found = [(await ledger.record(judge(Asked(SILENCE), key=key))).entry.outcome for key in keys]
    assert found == [Outcome.SILENCE] * 3 + [Outcome.DENY] * 2


async def test_denials_are_forgotten_when_they_have_expired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_store, "FORGET_EVERY", 2)
    now = [T0]
    ledger = open_ledger(tmp_path, clock_us=lambda: now[0])
    await ledger.record(judge(Asked(DENY)))
    now[0] += HOUR_US
    await ledger.record(RefundJudge("a"))
    await ledger.record(RefundJudge("b"))
    ledger.close()
    with contextlib.closing(connect_reader(tmp_path / DB_NAME)) as db:
        assert db.execute("SELECT count(*) FROM denials").fetchone() == (0,)


# --- the log ---


@pytest.mark.parametrize(
    ("change", "text"),
    [
        pytest.param("", "", id="as it is"),
        pytest.param("first", "which is no earlier DENY", id="the first was another agent's"),
    ],
)
async def test_a11_a_repeat_is_of_an_earlier_denial_of_the_same_request(
    tmp_path: Path, change: str, text: str
) -> None:
    ledger = open_ledger(tmp_path)
    other = await ledger.record(judge(Asked(DENY), agent="other" if change else "bot"))
    judging = judge(Asked(PERMIT))
    lie = Standing(
        prepared={},
        denials={
            judging.denials[0]: Denial(
                key=judging.denials[0],
                digest=recognised().digest,
                policy=bundle().digest,
                receipt_id=other.entry.receipt_id,
                rules=DENY.rules,
                expires_us=T0 + HOUR_US,
            )
        },
    )

    class Repeating:
        keys, meters, denials, objects = judging.keys, (), (), ()

        def __call__(self, claims: Any, *, standing: Standing, **given: Any) -> Entry:
            return judging(claims, standing=lie, **given)

    await ledger.record(Repeating())
    ledger.close()
    with SqliteReader(tmp_path) as reader:
        found = audit(reader.audit_input(), origin=ORIGIN, receipt_keys=KEYS, log_keys=LOG_KEYS).problems
    assert bool(found) == bool(text) and all(text in problem for problem in found)


# --- the pipeline, at the recorder ---

MAP = """\
hosts: [api.pay.test]
defaults: {body: {decode: form}, idempotency: {from: header.idempotency-key, ttl: 24h}}
operations:
  - id: Refund
    match: {method: POST, path: /refunds}
    surface: payments.refund
    effect: commit
    params: {amount: {from: body.amount, type: int, required: true, material: true}}
  - id: Look
    match: {method: GET, path: /refunds}
    surface: payments.read
    effect: read
"""
POLICY = """\
apiVersion: holdgate/v1
kind: Policy
metadata: {name: refunds, owner: risk@example.com}
spec:
  surface: payments.refund
  counters: {day: {key: [agent.id], window: 24h, measure: count}}
  rules:
  - {id: too-large, effect: deny, when: params.amount > 100, reason: too large}
  - {id: too-many, effect: deny, when: counters.day.count >= 1, reason: one a day}
  - {id: small, effect: permit, when: params.amount >= 1 && params.amount <= 50}
"""


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    (tmp_path / "refunds.yaml").write_text(POLICY)
    return Shop(index_of(MAP), tmp_path)


async def refund(shop: Shop, amount: int, key: str = "", agent: str = "10.0.0.1") -> Said:
    headers = {"Content-Type": FORM} | ({"Idempotency-Key": key} if key else {})
    body = f"amount={amount}".encode()
    return await shop.ask("/refunds", body, host="api.pay.test", agent=agent, headers=headers)


async def test_a_repeat_of_a_denied_request_is_refused_with_the_first_receipt(shop: Shop) -> None:
    first = await refund(shop, 500, "k")
    again = await refund(shop, 500, "k")
    assert [(one.status, one.outcome, one.reason) for one in (first, again)] == [
        (403, "DENY", "deny_rule")
    ] * 2
    assert again.receipt != first.receipt and first.receipt.encode() in again.body
    assert shop.upstream.seen == []


async def test_a_denial_sticks_when_the_limit_is_free_again_and_a_new_key_is_decided_anew(shop: Shop) -> None:
    assert (await refund(shop, 1, "a")).outcome == "PERMIT"
    assert (await refund(shop, 2, "b")).outcome == "DENY"
    shop.ledger.now_us += 25 * HOUR_US // 2  # the key still lives
    shop.ledger.book = type(shop.ledger.book)()  # the day is over
    assert (await refund(shop, 2, "b")).outcome == "DENY"
    assert (await refund(shop, 2, "c")).outcome == "PERMIT"
    assert len(shop.upstream.seen) == 2


async def test_silence_never_sticks(shop: Shop, tmp_path: Path) -> None:
    assert (await refund(shop, 70, "k")).reason == "no_rule_matched"
    (tmp_path / "refunds.yaml").write_text(POLICY.replace("<= 50", "<= 80"))
    shop.pipeline.bundle = shop.bundle("00")  # even under the same digest, as no real bundle would be
    assert (await refund(shop, 70, "k")).outcome == "PERMIT"


async def test_another_bundle_decides_anew(shop: Shop, tmp_path: Path) -> None:
    assert (await refund(shop, 500, "k")).outcome == "DENY"
    (tmp_path / "refunds.yaml").write_text(POLICY.replace("> 100", "> 1000").replace("<= 50", "<= 800"))
    shop.pipeline.bundle = shop.bundle("01")
    assert (await refund(shop, 500, "k")).outcome == "PERMIT"
    assert len(shop.upstream.seen) == 1


async def test_another_agents_denial_is_its_own(shop: Shop) -> None:
    assert (await refund(shop, 1, "k")).outcome == "PERMIT"
    assert (await refund(shop, 2, "l")).outcome == "DENY"
    assert (await refund(shop, 2, "l", agent="10.0.0.2")).outcome == "PERMIT"
