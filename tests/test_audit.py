"""audit.py: the invariants in its docstring; every kind of tampering is found, and a clean log is clean."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from evidence import (
    DIGEST,
    INPUT,
    KEYS,
    LOG_KEY,
    LOG_KEYS,
    NODE,
    ORIGIN,
    OTHER_DIGEST,
    OTHER_KEY,
    RECEIPT_KEY,
    T0,
    RefundJudge,
    coverage_statement,
    open_ledger,
    permit_statement,
    receipt_id,
)
from holdgate.adapters.sqlite import SqliteReader
from holdgate.audit import AuditInput, AuditReport, audit
from holdgate.audit_rows import CounterRow, HeadRow, LogRecord, PermitRow
from holdgate.errors import Outcome, Reason
from holdgate.keys import PublicKey, SigningKey, key_set
from holdgate.ledger import ClaimRow, OutcomeStatus, State
from holdgate.note import sign_checkpoint, verify_checkpoint
from holdgate.receipt import input_digest, outcome_statement, sign
from holdgate.sealing import Kept, Stored, seal
from holdgate.statement import format_us, parse_us
from holdgate.tiles import Edge, Tile
from holdgate.tlog import EMPTY, Tree, leaf_hash

EXECUTED, NOT_SENT, FAILED, UNKNOWN, RECONCILED = OutcomeStatus


class Tiles:
    """StoredTiles in memory."""

    def __init__(self, stored: Mapping[Tile, bytes]) -> None:
        self._stored = stored

    def widths(self, level: int, index: int) -> tuple[int, ...]:
        return tuple(tile.width for tile in self._stored if (tile.level, tile.index) == (level, index))

    def exact(self, tile: Tile) -> bytes:
        return self._stored[tile]


def tiles_of(records: Iterable[LogRecord]) -> dict[Tile, bytes]:
    edge, tiles = Edge.empty(), {}
    for record in records:
        tiles |= dict(edge.append(record.jws))
    return tiles | dict(edge.partials())


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    records: tuple[LogRecord, ...]
    claims: tuple[ClaimRow, ...]
    checkpoint: bytes
    # None: those that the records make, as a sequencer would have written them again
    stored: Mapping[Tile, bytes] | None = None
    head: HeadRow | None = None
    counters: tuple[CounterRow, ...] = ()

    def _honest_head(self) -> HeadRow:
        tree, last = _tree(self.records), self.records[-1].iat_us if self.records else 0
        return HeadRow(origin=ORIGIN, size=tree.size, iat_us=last, hashes=b"".join(tree.hashes))

    def audit(self, **changes: Any) -> AuditReport:
        given = AuditInput(
            checkpoint=self.checkpoint,
            tiles=Tiles(tiles_of(self.records) if self.stored is None else self.stored),
            head=self.head or self._honest_head(),
            records=iter(self.records),
            claims=iter(self.claims),
            counters=iter(self.counters),
        )
        facts: dict[str, Any] = {
            "origin": ORIGIN,
            "receipt_keys": KEYS,
            "log_keys": LOG_KEYS,
        }
        return audit(given, **(facts | changes))

    def edit(self, index: int, **changes: Any) -> Log:
        rows = list(self.records)
        rows[index] = replace(rows[index], **changes)
        return replace(self, records=tuple(rows))


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    """Ten leaves: permits with every outcome, a refusal, a replay, a supersession."""
    return asyncio.run(_make(tmp_path_factory.mktemp("audit")))


async def _make(state_dir: Path) -> Log:
    ledger = open_ledger(state_dir)
    permits = [await ledger.record(RefundJudge(key, provider=key == "c")) for key in "abcd"]
    for permit, status in zip(permits, (EXECUTED, FAILED, UNKNOWN), strict=False):
        ledger.record_outcome(permit.entry.receipt_id, status, 200, delivered=True)
    await ledger.record(RefundJudge("a"))  # refused
    await ledger.record(RefundJudge("b"))  # supersedes
    await ledger.record(RefundJudge("c", provider=True, conflict="thing"))  # replays
    ledger.close()
    with SqliteReader(state_dir) as reader:
        given = reader.audit_input()
        found = Log(records=tuple(given.records), claims=tuple(given.claims), checkpoint=given.checkpoint)
        reader.end_audit()
    return found


def test_a_clean_log_is_clean(log: Log) -> None:
    report = log.audit()
    assert report.problems == ()
    assert report.is_clean
    assert (report.size, report.signed, report.permits, report.outcomes, report.inputs) == (10, 10, 6, 3, 6)
    checkpoint = verify_checkpoint(log.checkpoint, ORIGIN, LOG_KEY.public)
    assert report.root == checkpoint.root.hex()


def _finds(log: Log, text: str, **changes: Any) -> None:
    report = log.audit(**changes)
    assert not report.is_clean
    assert any(text in problem for problem in report.problems), report.problems


# --- A1 ---


@pytest.mark.parametrize("index", range(10))
def test_a1_an_edited_or_removed_or_doubled_receipt_is_found(log: Log, index: int) -> None:
    rows = log.records
    forged = sign(permit_statement(receipt_id=rows[index].id, agent="mallory"), RECEIPT_KEY)
    _finds(log.edit(index, jws=forged), "not those that were signed")
    _finds(log.edit(index, jws=rows[index].jws.replace(b".", b".A", 1)), "not those that were signed")
    removed = replace(log, records=rows[:index] + rows[index + 1 :])
    _finds(removed, "the log ends at 9" if index == 9 else "missing")
    closed_up = tuple(replace(row, index=number) for number, row in enumerate(removed.records))
    _finds(replace(log, records=closed_up), "leaves were signed")
    twice = (*rows[: index + 1], *rows[index:])
    doubled = tuple(replace(row, index=number) for number, row in enumerate(twice))
    _finds(replace(log, records=doubled), "not later than the leaf before it")


def test_a1_reordered_receipts_are_found(log: Log) -> None:
    rows = list(log.records)
    rows[0], rows[1] = replace(rows[1], index=0), replace(rows[0], index=1)
    _finds(replace(log, records=tuple(rows)), "not those that were signed")


@pytest.mark.parametrize("kept", [0, 1, 9])
def test_a1_a_removed_end_is_found(log: Log, kept: int) -> None:
    _finds(replace(log, records=log.records[:kept]), f"the log ends at {kept}, but 10 leaves were signed")


def test_a1_a_running_log_may_be_ahead_of_its_checkpoint(log: Log) -> None:
    older = sign_checkpoint(ORIGIN, _tree(log.records[:6]), LOG_KEY)
    report = replace(log, checkpoint=older).audit()
    assert (report.problems, report.size, report.signed) == ((), 10, 6)


def test_a1_a_roll_back_of_ledger_and_checkpoint_shows_against_an_earlier_checkpoint(log: Log) -> None:
    earlier = verify_checkpoint(log.checkpoint, ORIGIN, LOG_KEY.public)
    rolled = replace(
        log, records=log.records[:8], checkpoint=sign_checkpoint(ORIGIN, _tree(log.records[:8]), LOG_KEY)
    )
    _finds(rolled, "the log ends at 8, but 10 leaves were signed", earlier=[earlier])
    assert log.audit(earlier=[earlier]).is_clean


def test_a1_a_checkpoint_of_another_key_or_log_is_found(log: Log) -> None:
    other = replace(log, checkpoint=sign_checkpoint(ORIGIN, _tree(log.records), OTHER_KEY))
    _finds(other, "checkpoint: the checkpoint is not signed by the log key")
    _finds(log, "checkpoint: the checkpoint is of another log", origin="holdgate.local/edge-2")
    _finds(replace(log, checkpoint=b""), "checkpoint: not a checkpoint")


@pytest.mark.parametrize(
    "changes",
    [{"id": receipt_id(9)}, {"type": "outcome"}, {"outcome": "DENY"}, {"reason": "deny_rule"}, {"agent": "x"},
     {"surface": "payments.payout"}, {"iat_us": 1}],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_a1_a_column_that_lies_about_its_receipt_is_found(log: Log, changes: dict[str, Any]) -> None:
    _finds(log.edit(0, **changes), f"leaf 0: the ledger's {next(iter(changes))} is not the receipt's")


# --- A2: logs that were written by somebody who has the keys ---


def _tree(records: tuple[LogRecord, ...]) -> Tree:
    tree = EMPTY
    for record in records:
        tree = tree.append(leaf_hash(record.jws))
    return tree


def _record(
    index: int, statement: dict[str, Any], key: SigningKey = RECEIPT_KEY, **changes: Any
) -> LogRecord:
    decision = statement["type"] == "decision"
    facts: dict[str, Any] = {
        "index": index,
        "id": statement["id"],
        "type": statement["type"],
        "outcome": statement["outcome"] if decision else "",
        "reason": statement.get("reason") or statement.get("status") or statement.get("action"),
        "agent": statement["agent"] if decision else "",
        "surface": "payments.refund" if decision else "",
        "iat_us": parse_us(statement["iat"]),
        "jws": sign(statement, key),
        "inputs": INPUT if "input_digest" in statement else None,
        "sealed": None,
        "permit": None,
    }
    return LogRecord(**(facts | changes))


def _row(index: int, state: State, http_status: int = 0, claims: tuple[str, ...] = ()) -> PermitRow:
    return PermitRow(
        id=receipt_id(index), state=state, http_status=http_status, claims=claims, charges=(), lender=""
    )


def _permit(index: int, state: State, **changes: Any) -> LogRecord:
    facts: dict[str, Any] = {
        "receipt_id": receipt_id(index),
        "iat_us": T0 + index,
        "exp_us": T0 + 10**9,
        "replay_of": "",
        "idempotency": None,
        "budget": (),
    }
    key = facts.get("idempotency") or changes.get("idempotency")
    row = _row(index, state, 0 if state is State.DISPATCHING else 200, (key[1],) if key else ())
    return _record(index, permit_statement(**(facts | changes)), permit=row)


def _outcome(index: int, of: int, status: OutcomeStatus) -> LogRecord:
    statement = outcome_statement(
        receipt_id=receipt_id(index),
        issuer=ORIGIN,
        iat_us=T0 + index,
        node=NODE,
        of=receipt_id(of),
        status=status,
        http_status=200,
    )
    return _record(index, statement)


def _log(*records: LogRecord, claims: tuple[ClaimRow, ...] = ()) -> Log:
    return Log(records=records, claims=claims, checkpoint=sign_checkpoint(ORIGIN, _tree(records), LOG_KEY))


def test_a2_one_outcome_and_unknown_then_reconciled_is_clean() -> None:
    assert _log(_permit(0, State.EXECUTED), _outcome(1, 0, EXECUTED)).audit().problems == ()
    both = _log(_permit(0, State.EXECUTED), _outcome(1, 0, UNKNOWN), _outcome(2, 0, RECONCILED))
    assert both.audit().problems == ()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (EXECUTED, EXECUTED),
        (EXECUTED, UNKNOWN),
        (NOT_SENT, EXECUTED),
        (UNKNOWN, EXECUTED),
        (UNKNOWN, UNKNOWN),
    ],
)
def test_a2_a_second_outcome_is_found(first: OutcomeStatus, second: OutcomeStatus) -> None:
    _finds(
        _log(_permit(0, State.EXECUTED), _outcome(1, 0, first), _outcome(2, 0, second)),
        f"leaf 2: {second} cannot follow {first} of leaf 0",
    )


def test_a2_reconciled_without_unknown_is_found() -> None:
    _finds(_log(_permit(0, State.EXECUTED), _outcome(1, 0, RECONCILED)), "cannot follow a PERMIT")


def test_a2_an_outcome_without_an_earlier_permit_is_found() -> None:
    _finds(_log(_outcome(0, 1, EXECUTED), _permit(1, State.DISPATCHING)), "leaf 0: the outcome of no earlier")
    refusal = permit_statement(
        outcome=Outcome.DENY,
        reason=Reason.DENY_RULE,
        receipt_id=receipt_id(0),
        exp_us=0,
        replay_of="",
    )
    _finds(_log(_record(0, refusal), _outcome(1, 0, EXECUTED)), "leaf 1: the outcome of no earlier PERMIT")
    _finds(_log(_record(0, refusal, permit=_row(0, State.EXECUTED))), "disagree whether this is a permit")


def test_a2_a_permit_state_that_the_outcomes_do_not_say_is_found() -> None:
    _finds(_log(_permit(0, State.EXECUTED)), "permit state is not what its outcomes say")
    _finds(_log(_permit(0, State.NOT_SENT), _outcome(1, 0, UNKNOWN)), "permit state is not")
    forgotten = _permit(0, State.DISPATCHING)
    _finds(_log(replace(forgotten, permit=None)), "disagree whether this is a permit")


def test_a2_an_outcome_or_admin_receipt_with_an_input_is_found() -> None:
    odd = replace(_outcome(1, 0, EXECUTED), inputs=b"{}")
    _finds(_log(_permit(0, State.EXECUTED), odd), "outcome receipt with a permit or input beside it")
    note = _record(0, coverage_statement(receipt_id=receipt_id(0)))
    assert _log(note).audit().problems == ()
    _finds(_log(replace(note, inputs=b"{}")), "admin receipt with a permit or input beside it")
    _finds(_log(replace(note, reason="keys.rotate")), "the ledger's reason is not the receipt's")


def test_a1_a_receipt_for_another_log_or_by_another_key_is_found() -> None:
    _finds(_log(_permit(0, State.DISPATCHING, issuer="holdgate.local/edge-2")), "issued for another log")
    foreign = _record(0, permit_statement(), OTHER_KEY, permit=_row(1, State.DISPATCHING))
    _finds(_log(foreign), "leaf 0: signed with a key that is not in the key set")


# --- A3 ---


def test_a3_an_edited_input_is_found(log: Log) -> None:
    _finds(log.edit(0, inputs=b'{"action":"payout"}'), "leaf 0: the recorded input is not the one")
    refused = next(row for row in log.records if row.outcome == "SILENCE")
    _finds(log.edit(refused.index, inputs=b"{}"), "the recorded input is not the one")
    assert input_digest(b"{}").startswith("sha256:")


# --- AI1 to AI3: what is missing, and what was destroyed by order ---


def _forgotten(index: int, action: str, **details: Any) -> LogRecord:
    statement = coverage_statement(
        receipt_id=receipt_id(index), iat_us=T0 + index, action=action, details={"count": 1, **details}
    )
    return _record(index, statement)


@pytest.mark.parametrize(
    ("said", "problems"),
    [
        pytest.param({}, 1, id="nobody ordered it"),
        pytest.param({"action": "shred", "ids": [receipt_id(0)]}, 0, id="shredded by id"),
        pytest.param({"action": "shred", "ids": [receipt_id(7)]}, 1, id="another one was shredded"),
        pytest.param({"action": "shred", "agent": "refund-bot"}, 0, id="shredded by agent"),
        pytest.param({"action": "shred", "agent": "triage"}, 1, id="another agent's were shredded"),
        pytest.param(
            {"action": "shred", "surface": "payments.refund", "before": format_us(T0 + 1)},
            0,
            id="by a filter",
        ),
        pytest.param({"action": "shred", "before": format_us(T0)}, 1, id="not before that time"),
        pytest.param({"action": "retention", "before": format_us(T0 + 1)}, 0, id="retention"),
        pytest.param({"action": "retention", "before": format_us(T0)}, 1, id="not old enough"),
    ],
)
def test_ai1_a_missing_input_needs_a_receipt_that_covers_it(said: dict[str, Any], problems: int) -> None:
    permit = replace(_permit(0, State.DISPATCHING), inputs=None)
    report = _log(permit, *([_forgotten(1, **said)] if said else [])).audit()
    assert len(report.problems) == problems, report.problems
    assert report.destroyed == 1 - problems
    if problems:
        assert "leaf 0: its input is missing" in report.problems[0]


def test_ai1_an_order_does_not_cover_what_came_after_it() -> None:
    shred = _forgotten(0, "shred", agent="refund-bot")
    _finds(_log(shred, replace(_permit(1, State.DISPATCHING), inputs=None)), "leaf 1: its input is missing")


def _sealed_permit(**changes: Any) -> LogRecord:
    salt = b"s" * 16
    sealed = seal(receipt_id(0), Kept(target=b"/x", inputs=INPUT), salt, secrets.token_bytes)
    record = _permit(0, State.DISPATCHING, input_digest=input_digest(INPUT, salt))
    facts: dict[str, Any] = {"data": sealed.data, "salt": salt, "key": sealed.key}
    return replace(record, inputs=None, sealed=Stored(**(facts | changes)))


_DESTROYED: dict[str, Any] = {"data": None, "salt": bytes(16), "key": bytes(32)}


def test_ai1_a_missing_salt_is_covered_by_shred_and_not_by_retention() -> None:
    assert _log(_sealed_permit()).audit().problems == ()
    gone = _sealed_permit(**_DESTROYED)
    assert _log(gone, _forgotten(1, "shred", ids=[receipt_id(0)])).audit().is_clean
    _finds(_log(gone, _forgotten(1, "retention", before=format_us(T0 + 1))), "its salt is missing")
    _finds(_log(replace(gone, sealed=None)), "leaf 0: its salt is missing")
    without_key = _sealed_permit(data=None, key=bytes(32))
    assert _log(without_key, _forgotten(1, "retention", before=format_us(T0 + 1))).audit().is_clean
    _finds(_log(without_key), "leaf 0: its input is missing")


def test_ai2_a_sealed_input_that_is_not_its_receipts_is_found() -> None:
    _finds(_log(_sealed_permit(key=b"k" * 32)), "leaf 0: the sealed input does not open")
    _finds(_log(_sealed_permit(salt=b"t" * 16)), "leaf 0: the recorded input is not the one that was decided")
    _finds(_log(_sealed_permit(data=b"")), "leaf 0: the sealed input does not open")
    _finds(_log(_sealed_permit(salt=bytes(16))), "leaf 0: its salt is gone, and its key is not")
    _finds(_log(replace(_sealed_permit(), inputs=INPUT)), "an input in clear beside a sealed one")


def test_ai3_what_retention_did_not_destroy_is_found() -> None:
    retention = _forgotten(1, "retention", before=format_us(T0 + 1))
    _finds(_log(_permit(0, State.DISPATCHING), retention), "an input is still there that a retention receipt")
    later = _forgotten(1, "retention", before=format_us(T0))
    assert _log(_permit(0, State.DISPATCHING), later).audit().is_clean


# --- A4 ---

_CLAIM_EDITS: list[tuple[str, Callable[[ClaimRow], ClaimRow], str]] = [
    ("freed", lambda row: replace(row, state=State.NOT_SENT), "which leaf"),
    ("for another request", lambda row: replace(row, digest=OTHER_DIGEST), "not for the request of leaf"),
    ("held by nobody", lambda row: replace(row, receipt_id=receipt_id(3)), "held by no PERMIT"),
    ("under another key", lambda row: replace(row, key="f" * 64), "is missing"),
]


@pytest.mark.parametrize(("edit", "text"), [pytest.param(e, t, id=i) for i, e, t in _CLAIM_EDITS])
@pytest.mark.parametrize("source", ["native", "conflict"])
def test_a4_an_edited_claim_is_found(
    log: Log, source: str, edit: Callable[[ClaimRow], ClaimRow], text: str
) -> None:
    for row in log.claims:
        if row.source == source and not (source == "conflict" and text == "is missing"):
            edited = tuple(edit(item) if item == row else item for item in log.claims)
            _finds(replace(log, claims=edited), text)


def test_a4_a_removed_claim_is_found(log: Log) -> None:
    native = [row for row in log.claims if row.source == "native"]
    assert len(native) == 4
    for row in native:
        _finds(replace(log, claims=tuple(item for item in log.claims if item != row)), "is missing")


def test_a4_a_removed_conflict_claim_of_a_permit_in_doubt_is_found(log: Log) -> None:
    (row,) = (row for row in log.claims if row.source == "conflict")
    assert row.state is State.DISPATCHING
    text = f"its claim {row.key[:16]} is missing ({row.receipt_id})"
    _finds(replace(log, claims=tuple(item for item in log.claims if item != row)), text)


def test_a4_what_a_replay_took_over_and_gave_free_is_not_missed() -> None:
    first, unknown = _permit(0, State.UNKNOWN, idempotency=_KEY), _outcome(1, 0, UNKNOWN)
    assert first.permit is not None
    held = replace(first.permit, claims=(_KEY[1], "c" * 64))
    replay = _permit(2, State.EXECUTED, idempotency=_KEY, replay_of=receipt_id(0))
    done = replace(_claim(2, State.EXECUTED), http_status=200)
    records = (replace(first, permit=held), unknown, replay, _outcome(3, 2, EXECUTED))
    assert _log(*records, claims=(done,)).audit().problems == ()


def test_a4_a_claim_that_went_back_to_an_earlier_permit_is_found(log: Log) -> None:
    superseded = next(row for row in log.records if row.reason == "failed")
    assert superseded is not None
    newest = next(row for row in log.claims if row.receipt_id == log.records[8].id)
    older = replace(newest, receipt_id=log.records[1].id, state=State.FAILED)
    _finds(
        replace(log, claims=tuple(older if item == newest else item for item in log.claims)),
        "a later PERMIT holds it",
    )


# --- A5 ---

_KEY = ("native", "e" * 64)


def _claim(holder: int, state: State) -> ClaimRow:
    return ClaimRow(
        key=_KEY[1],
        state=state,
        digest=DIGEST,
        receipt_id=receipt_id(holder),
        http_status=0,
        expires_us=0,
        provider=True,
        source="native",
    )


def test_a5_two_permits_in_doubt_under_one_key_are_found() -> None:
    first, second = (_permit(index, State.DISPATCHING, idempotency=_KEY) for index in (0, 1))
    _finds(
        _log(first, second, claims=(_claim(1, State.DISPATCHING),)),
        "leaf 1: a second PERMIT under a key that leaf 0 still holds",
    )
    replay = _permit(1, State.DISPATCHING, idempotency=_KEY, replay_of=receipt_id(0))
    _finds(_log(first, replay, claims=(_claim(1, State.DISPATCHING),)), "a second PERMIT under a key")


def test_a5_a_replay_of_an_unknown_is_clean_and_anything_else_is_not() -> None:
    first, unknown = _permit(0, State.UNKNOWN, idempotency=_KEY), _outcome(1, 0, UNKNOWN)
    claims = (_claim(2, State.DISPATCHING),)
    replay = _permit(2, State.DISPATCHING, idempotency=_KEY, replay_of=receipt_id(0))
    assert _log(first, unknown, replay, claims=claims).audit().problems == ()
    blind = _permit(2, State.DISPATCHING, idempotency=_KEY)
    _finds(_log(first, unknown, blind, claims=claims), "leaf 2: a second PERMIT under a key")


# --- the rows beside the receipts ---

_ROW_EDITS: list[tuple[str, dict[str, Any], str]] = [
    ("state", {"state": State.NOT_SENT}, "permit state is not"),
    ("id", {"id": receipt_id(99)}, "permit id is not"),
    ("http_status", {"http_status": 201}, "permit http_status is not"),
    ("claims", {"claims": ()}, "permit claims are not"),
]


@pytest.mark.parametrize(("changes", "text"), [pytest.param(c, t, id=i) for i, c, t in _ROW_EDITS])
def test_a4_a_permit_row_that_lies_is_found(log: Log, changes: dict[str, Any], text: str) -> None:
    for record in log.records:
        if record.permit is not None:
            _finds(log.edit(record.index, permit=replace(record.permit, **changes)), record.id)
            _finds(log.edit(record.index, permit=replace(record.permit, **changes)), text)


@pytest.mark.parametrize("source", ["natural", "conflict", "oative"])
def test_a4_a_claim_with_another_source_is_found(log: Log, source: str) -> None:
    for row in log.claims:
        if row.source == "native":
            edited = tuple(replace(item, source=source) if item == row else item for item in log.claims)
            _finds(replace(log, claims=edited), "its source is not that of leaf")


def test_a4_a_claim_with_another_status_is_found(log: Log) -> None:
    for row in log.claims:
        edited = tuple(replace(item, http_status=299) if item == row else item for item in log.claims)
        _finds(replace(log, claims=edited), "http_status is not that of leaf")


@pytest.mark.parametrize(
    "changes",
    [{"size": 9}, {"iat_us": 1}, {"hashes": bytes(64)}, {"origin": "other"}],
    ids=lambda c: next(iter(c)),
)
def test_a1_a_head_row_that_lies_is_found(log: Log, changes: dict[str, Any]) -> None:
    _finds(replace(log, head=replace(log._honest_head(), **changes)), "head row is not the end of this log")


# --- A6: tiles ---


def _long() -> Log:
    """300 leaves: one full tile, two levels. Not one of them is a permit, so nothing else is beside them."""
    facts = {"reason": Reason.NO_RULE_MATCHED, "rules": (), "exp_us": 0, "replay_of": "", "idempotency": None}
    rows = []
    for number in range(300):
        said = permit_statement(
            outcome=Outcome.SILENCE, receipt_id=receipt_id(number), iat_us=T0 + number, **facts
        )
        rows.append(_record(number, said))
    return _log(*rows)


@pytest.fixture(scope="module")
def long() -> Log:
    found = _long()
    assert found.audit().problems == ()
    return found


def test_a6_a_missing_tile_is_found(long: Log) -> None:
    tiles = tiles_of(long.records)
    assert len(tiles) == 5
    for gone in tiles:
        kept = {tile: data for tile, data in tiles.items() if tile != gone}
        _finds(replace(long, stored=kept), "is missing")


def test_a6_a_changed_hash_or_entry_names_its_receipt(long: Log) -> None:
    tiles = tiles_of(long.records)
    for tile, data in tiles.items():
        for place in (17, tile.width - 1) if tile.level < 1 else (0,):
            leaf = tile.index * 256 + place
            at = 32 * place if tile.level >= 0 else data.index(long.records[leaf].jws)
            changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
            named = "the hash of leaves 0 to 255" if tile.level == 1 else f"leaf {leaf} ({receipt_id(leaf)})"
            _finds(replace(long, stored=tiles | {tile: changed}), named)


def test_a6_a_tile_that_is_too_long_or_too_short_is_found(long: Log) -> None:
    tiles = tiles_of(long.records)
    for tile, data in tiles.items():
        for changed in (data[:-1], data + data[:32]):
            _finds(replace(long, stored=tiles | {tile: changed}), tile.path)


def test_a6_an_old_width_beside_a_tile_is_compared_too(long: Log) -> None:
    tiles = tiles_of(long.records)
    old = Tile(level=0, index=0, width=3)
    first = tiles[old.full][:96]
    assert replace(long, stored=tiles | {old: first}).audit().problems == ()
    _finds(replace(long, stored=tiles | {old: bytes(96)}), "tile/0/000.p/3 is not what the receipts make")


def test_a6_tiles_ahead_of_the_checkpoint_are_compared_and_not_needed(long: Log) -> None:
    older = sign_checkpoint(ORIGIN, _tree(long.records[:40]), LOG_KEY)
    running = replace(long, checkpoint=older)
    assert running.audit().problems == ()
    few = replace(running, stored=tiles_of(long.records[:40]))
    assert few.audit().problems == ()
    wrong = tiles_of(long.records) | {Tile(level=0, index=1, width=44): bytes(32 * 44)}
    _finds(replace(running, stored=wrong), "tile/0/001.p/44 is not what the receipts make: leaf 256")


# --- A7: keys that were revoked ---


@pytest.mark.parametrize(("revoked_from", "found"), [(10, 0), (4, 6), (0, 10)])
def test_a7_a_revoked_key_counts_below_its_index_only(log: Log, revoked_from: int, found: int) -> None:
    key = PublicKey(raw=RECEIPT_KEY.public.raw, revoked_from_index=revoked_from)
    problems = [text for text in log.audit(receipt_keys=key_set([key])).problems if "revoked" in text]
    assert len(problems) == found
    assert not found or problems[0].startswith(f"leaf {revoked_from}: its key was revoked")


# --- A8 ---


def _flips(log: Log, step: int) -> Iterable[tuple[str, Log]]:
    """Logs with one bit of one byte changed, and the id of the receipt that is hit, where it is one."""
    stored = tiles_of(log.records)
    as_stored = replace(log, stored=stored)
    for record in log.records:
        for at in range(0, len(record.jws), step):
            data = bytearray(record.jws)
            data[at] ^= 1 << at % 8
            yield record.id, as_stored.edit(record.index, jws=bytes(data))
        for name in ("id", "type", "outcome", "reason", "agent", "surface"):
            text = getattr(record, name)
            for at in range(0, len(text), max(1, step // 40)):
                changed = text[:at] + chr(ord(text[at]) ^ 1) + text[at + 1 :]
                yield "" if name == "id" else record.id, as_stored.edit(record.index, **{name: changed})
        yield record.id, as_stored.edit(record.index, iat_us=record.iat_us ^ 1)
    for tile, data in stored.items():
        for at in range(0, len(data), step):
            changed = data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]
            yield "", replace(log, stored=stored | {tile: changed})
    for at in range(len(log.checkpoint)):
        note = bytearray(log.checkpoint)
        note[at] ^= 1 << at % 8
        yield "", replace(as_stored, checkpoint=bytes(note))


def _every_flip_is_found(log: Log, step: int) -> int:
    count = 0
    for named, changed in _flips(log, step):
        assert any(named in text for text in changed.audit().problems)
        count += 1
    return count


def test_a8_a_single_changed_byte_is_found_and_named(log: Log) -> None:
    assert _every_flip_is_found(log, step=211) > 400


@pytest.mark.slow
def test_a8_any_single_changed_byte_is_found_and_named(log: Log) -> None:
    assert _every_flip_is_found(log, step=7) > 4000


def test_progress_is_told_while_leaves_are_read(long: Log) -> None:
    told: list[int] = []
    long.audit(progress=told.append)
    assert told == [256]


def test_a_flood_of_problems_is_bounded(log: Log) -> None:
    rows = tuple(replace(log.records[0], index=number, jws=b"x") for number in range(2000))
    assert len(replace(log, records=rows).audit().problems) == 1000


# --- A10: which key signs where ---


def _with_keys(*signers: SigningKey, revoke: int | None = None) -> Log:
    """One coverage by each signer, and between two of them the rotation, signed by the earlier one."""
    rows: list[LogRecord] = []

    def put(signer: SigningKey, **changes: Any) -> None:
        index, iat = len(rows), T0 + len(rows) * 1000
        said = coverage_statement(receipt_id=receipt_id(index), iat_us=iat, **changes)
        rows.append(
            LogRecord(
                index=index,
                id=receipt_id(index),
                type="admin",
                outcome="",
                reason=said["action"],
                agent="",
                surface="",
                iat_us=iat,
                jws=sign(said, signer),
                inputs=None,
                sealed=None,
                permit=None,
            )
        )

    for number, signer in enumerate(signers):
        if number:
            old, new = signers[number - 1], signer.public
            x = new.jwk["x"]
            details = {"purpose": "receipt", "old": old.kid, "new": new.kid, "x": x}
            put(old, action="key_rotate", details=details)
        put(signer)
    if revoke is not None:
        details = {"purpose": "receipt", "kid": signers[0].kid, "from_index": revoke}
        put(signers[-1], action="key_revoke", details=details)
    return Log(records=tuple(rows), claims=(), checkpoint=sign_checkpoint(ORIGIN, _tree(rows), LOG_KEY))


_BOTH = key_set([RECEIPT_KEY.public, OTHER_KEY.public])


def test_a10_a_log_whose_receipts_name_its_keys_is_clean() -> None:
    rotated = _with_keys(RECEIPT_KEY, OTHER_KEY)
    assert rotated.audit(receipt_keys=_BOTH).problems == ()
    first, second = replace(RECEIPT_KEY.public, end_index=2), replace(OTHER_KEY.public, first_index=2)
    assert rotated.audit(receipt_keys=key_set([first, second])).problems == ()


def test_a10_a_receipt_by_a_key_that_does_not_sign_there_is_found() -> None:
    rotated = _with_keys(RECEIPT_KEY, OTHER_KEY)
    keys = {"receipt_keys": _BOTH}
    text = "not signed with the key that the log names for this leaf"
    late = coverage_statement(receipt_id=receipt_id(2), iat_us=T0 + 2000)
    _finds(rotated.edit(2, jws=sign(late, RECEIPT_KEY)), f"leaf 2: {text}", **keys)
    early = coverage_statement(receipt_id=receipt_id(0), iat_us=T0)
    _finds(rotated.edit(0, jws=sign(early, OTHER_KEY)), f"leaf 1: {text}", **keys)
    unknown = replace(rotated, records=tuple(row for row in rotated.records if row.index != 1))
    _finds(unknown, text, **keys)


def test_a10_a_list_that_says_otherwise_than_the_log_is_found() -> None:
    rotated = _with_keys(RECEIPT_KEY, OTHER_KEY, revoke=2)
    old, new = RECEIPT_KEY.public, replace(OTHER_KEY.public, first_index=2)
    told = replace(old, end_index=2, revoked_from_index=2)
    assert rotated.audit(receipt_keys=key_set([told, new])).problems == ()
    stranger = SigningKey(seed=b"x" * 32).public
    for keys, text in (
        ((old, new), "disagree on its revocation"),
        ((replace(told, end_index=3), new), "disagree where it signs"),
        ((told, replace(new, first_index=1)), "disagree where it signs"),
        ((told, new, stranger), "the log does not introduce it"),
        ((told,), "is not listed"),
    ):
        _finds(rotated, text, receipt_keys=key_set(keys))
    _finds(
        rotated,
        "does not introduce it",
        receipt_keys=key_set([told, new]),
        log_keys=key_set([*LOG_KEYS.values(), stranger]),
    )
