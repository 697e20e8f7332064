"""Generated tampering with what changes keys and what was destroyed: audit or verify catches every change.

One ledger in which both keys were rotated, a receipt key was revoked, an input was shredded and others were
too old; then every byte and every field of the receipts about that, of the lists of keys, and of log/changes.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from evidence import NODE, ORIGIN, T0, RefundJudge, nonces, ticking
from holdgate.adapters.forgetting import Forgetter
from holdgate.adapters.keyfiles import create_keys, list_problems, load_keys, load_log_keys, load_public_keys
from holdgate.adapters.keyring import Revocation, Rotation
from holdgate.adapters.proofs import change_problems, key_changes, log_verifiers, prove, read_changes
from holdgate.adapters.sequencer import CHANGES, VKEY
from holdgate.adapters.sqlite import SqliteLedger
from holdgate.adapters.sqlite_reader import SqliteReader
from holdgate.adapters.tilestore import TileStore
from holdgate.audit import AuditInput, AuditReport, audit
from holdgate.audit_rows import LogRecord
from holdgate.erasure import RETENTION, SHRED, Erasure
from holdgate.errors import ConfigError, HoldgateError
from holdgate.jcs import dumps
from holdgate.keyhistory import Purpose, follow
from holdgate.keys import KeyDocumentError, KeySet, b64url, jwks, parse_jwks, unb64url
from holdgate.note import SignatureType, Verifier
from holdgate.tlogproof import parse_proof
from holdgate.verification import Trust, judge

ACTIONS = ("key_rotate", "key_revoke", "shred", "retention")
LISTS = ("receipts.jwks.json", "log.jwks.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """The ledger's evidence, read once."""

    state: Path
    records: tuple[LogRecord, ...]
    given: AuditInput  # with iterators that were read: see audit()
    receipt_keys: KeySet
    log_keys: KeySet

    def audit(self, records: tuple[LogRecord, ...], **changes: KeySet) -> AuditReport:
        given = AuditInput(
            checkpoint=self.given.checkpoint,
            tiles=TileStore(self.state / "log"),
            head=self.given.head,
            records=iter(records),
            claims=self.given.claims,
            counters=self.given.counters,
        )
        keys = {"receipt_keys": self.receipt_keys, "log_keys": self.log_keys} | changes
        return audit(given, origin=ORIGIN, **keys)

    @property
    def admin(self) -> tuple[LogRecord, ...]:
        return tuple(record for record in self.records if record.type == "admin")


async def _make(state: Path) -> None:
    create_keys(state)
    keys = load_keys(state)
    ledger = SqliteLedger.open(
        state,
        receipt_key=keys.receipt,
        log_key=keys.log,
        origin=ORIGIN,
        node=NODE,
        clock_us=ticking(),
        nonce16=nonces(),
        linger_s=0.0,
        headroom_bytes=0,
    )

    async def refund(name: str) -> str:
        judge = RefundJudge(name, signer=ledger.signer, sealed=True)
        return (await ledger.record(judge)).entry.receipt_id

    first = keys.receipt.kid
    ids = [await refund("a"), await refund("b")]
    await ledger.change_key(Rotation(purpose=Purpose.RECEIPT, key_id="", by="local"))
    await refund("c")
    await ledger.change_key(Rotation(purpose=Purpose.LOG, key_id="", by="local"))
    await ledger.change_key(Revocation(kid=first, from_index=None, by="local"))
    forgetter = Forgetter(lambda: SqliteReader(state), ledger)
    await forgetter.forget(Erasure(action=SHRED, ids=frozenset(ids[:1])), by="local")
    await forgetter.forget(Erasure(action=RETENTION, before_us=T0 + 10**9), by="local")
    ledger.close()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    state = tmp_path_factory.mktemp("tampering")
    asyncio.run(_make(state))
    with SqliteReader(state) as reader:
        given = reader.audit_input()
        records = tuple(given.records)
        given = AuditInput(
            checkpoint=given.checkpoint,
            tiles=given.tiles,
            head=given.head,
            records=(),
            claims=tuple(given.claims),
            counters=tuple(given.counters),
        )
        reader.end_audit()
    return Kept(
        state=state,
        records=records,
        given=given,
        receipt_keys=load_public_keys(state),
        log_keys=load_log_keys(state),
    )


def test_what_was_not_tampered_with_is_clean(kept: Kept) -> None:
    assert kept.audit(kept.records).problems == ()
    assert _published(kept) == ()
    assert {record.reason for record in kept.admin} == set(ACTIONS)
    assert len(kept.receipt_keys) == len(kept.log_keys) == 2


def _flips(data: bytes, bits: tuple[int, ...] = tuple(range(8))) -> Iterator[bytes]:
    """`data` with one bit changed, for every byte and each of `bits`."""
    for at in range(len(data)):
        for bit in bits:
            yield data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


# --- receipts about keys and erasures ---


def test_verify_catches_every_changed_byte_of_an_admin_receipt(kept: Kept) -> None:
    log = log_verifiers(kept.state)
    trust = Trust(keys=kept.receipt_keys, log=log, witnesses=(), quorum=0, require_permit=False)
    count = 0
    for record in kept.admin:
        proof = parse_proof(prove(kept.state, record.index, record.jws))
        assert judge(record.jws, trust, proof).ok
        for changed in _flips(record.jws, (record.index % 8, 5)):
            assert not judge(changed, trust, proof).ok
            count += 1
    assert count > 5000


def test_audit_catches_a_changed_byte_of_an_admin_receipt_and_names_it(kept: Kept) -> None:
    for record in kept.admin:
        for changed in list(_flips(record.jws, (0,)))[::37]:
            assert any(record.id in text for text in _with(kept, record, changed).problems)


def _with(kept: Kept, record: LogRecord, jws: bytes) -> AuditReport:
    rows = list(kept.records)
    rows[record.index] = replace(record, jws=jws)
    return kept.audit(tuple(rows))


def _changed(value: Any) -> Iterator[Any]:
    """Other values in the place of one, of its kind and of others."""
    if isinstance(value, dict):
        for name in value:
            yield {key: item for key, item in value.items() if key != name}
            for other in _changed(value[name]):
                yield value | {name: other}
        yield value | {"more": "x"}
    elif isinstance(value, list):
        yield value * 2
        yield value[1:]
    elif isinstance(value, bool | int):
        yield from (int(value) + 1, max(int(value) - 1, 0) if value else 2, str(value))
    else:
        swapped = "A" if value[:1] != "A" else "B"
        yield from (swapped + value[1:], value[:-1], value + "0", "", 7)


def test_every_changed_field_of_an_admin_receipt_is_caught_even_with_the_right_header(kept: Kept) -> None:
    """The statement is written anew, canonically; only the signature stays behind."""
    trust = Trust(keys=kept.receipt_keys, log=(), witnesses=(), quorum=0, require_permit=False)
    count = 0
    for record in kept.admin:
        header, payload, signature = record.jws.split(b".")
        statement = json.loads(unb64url(payload))
        for changed in _changed(statement):
            forged = b".".join((header, b64url(dumps(changed)), signature))
            assert not judge(forged, trust, None).ok
            if count % 7 == 0:
                assert not _with(kept, record, forged).is_clean
            count += 1
    assert count > 250


# --- the lists of keys ---


def _published(kept: Kept) -> tuple[str, ...]:
    """What `log audit` says of the published files; a file that cannot be read says it by an error."""
    try:
        keys, log_keys = load_public_keys(kept.state), load_log_keys(kept.state)
        files = (*list_problems(kept.state), *change_problems(kept.state, ORIGIN, keys, log_keys))
    except ConfigError as error:
        return (str(error),)
    return files or kept.audit(kept.records, receipt_keys=keys, log_keys=log_keys).problems


def _is_caught(kept: Kept, path: Path, flips: Iterator[bytes]) -> int:
    data, count = path.read_bytes(), 0
    try:
        for changed in flips:
            path.write_bytes(changed)
            assert _published(kept), changed
            count += 1
    finally:
        path.write_bytes(data)
    assert _published(kept) == ()
    return count


@pytest.mark.parametrize("name", LISTS)
def test_audit_catches_every_changed_byte_of_a_list_of_keys(kept: Kept, name: str) -> None:
    path = kept.state / "keys" / name
    assert _is_caught(kept, path, _flips(path.read_bytes(), (0, 5))) > 700


@pytest.mark.parametrize("purpose", list(Purpose))
def test_audit_catches_every_list_that_says_something_else(kept: Kept, purpose: Purpose) -> None:
    """Each member of each key, ranges and revocation among them, and keys that are missing or there twice."""
    name = f"{purpose}_keys"
    keys: KeySet = getattr(kept, name)
    document = json.loads(json.dumps(jwks(keys.values())))
    told = 0
    for changed in _changed_lists(document["keys"]):
        try:
            other = parse_jwks(json.dumps({"keys": changed}).encode())
        except KeyDocumentError:
            told += 1
            continue
        if other != keys:
            told += 1
            assert not kept.audit(kept.records, **{name: other}).is_clean, changed
    assert told > 50


def _changed_lists(rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    for at, row in enumerate(rows):
        for changed in _changed(row):
            yield [*rows[:at], changed, *rows[at + 1 :]]
        for name in ("valid_from_index", "valid_before_index", "revoked_from_index"):
            for value in range(12):
                yield [*rows[:at], row | {name: value}, *rows[at + 1 :]]
        yield [*rows[:at], *rows[at + 1 :]]
    stranger = json.loads(json.dumps(rows[0])) | {
        "x": base64.urlsafe_b64encode(bytes(range(32))).decode()[:43]
    }
    stranger.pop("kid")
    yield [*rows, stranger]


# --- log/changes and key.vkey ---


def test_pf2_audit_catches_every_changed_byte_of_what_leads_to_the_newest_log_key(kept: Kept) -> None:
    (path,) = (kept.state / CHANGES).iterdir()
    assert _is_caught(kept, path, _flips(path.read_bytes(), (0,))) > 1000
    assert _is_caught(kept, kept.state / VKEY, _flips((kept.state / VKEY).read_bytes(), (0, 3, 5))) > 200


def test_pf2_a_change_that_is_gone_is_a_problem(kept: Kept) -> None:
    (path,) = (kept.state / CHANGES).iterdir()
    assert _is_caught(kept, path, iter((b"", path.read_bytes() * 2))) == 2


def test_verify_with_a_changed_byte_in_the_changes_trusts_no_later_key(kept: Kept) -> None:
    data = key_changes(kept.state)
    oldest = min(kept.log_keys.values(), key=lambda key: key.first_index)
    first = Verifier(name=ORIGIN, type=SignatureType.ED25519, key=oldest)
    assert len(follow(first, read_changes(data), kept.receipt_keys)) == 2
    count = 0
    for changed in _flips(data, (0, 5)):
        try:
            assert len(follow(first, read_changes(changed), kept.receipt_keys)) == 1
        except HoldgateError:
            count += 1
    assert count > 2000
