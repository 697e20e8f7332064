"""adapters/keyring.py: the invariants in its docstring; a rotation killed at every step."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from evidence import NODE, ORIGIN, RefundJudge, nonces, ticking
from holdgate.adapters import durable, private_file
from holdgate.adapters.keyfiles import create_keys, load_keys, load_log_keys, load_public_keys
from holdgate.adapters.keyring import KeyRing, Revocation, Rotation
from holdgate.adapters.proofs import key_changes, log_verifier, log_verifiers, prove, read_changes
from holdgate.adapters.sequencer import CHANGES, VKEY
from holdgate.adapters.sqlite import SqliteLedger
from holdgate.adapters.sqlite_reader import SqliteReader
from holdgate.adapters.sqlite_store import SqliteLeaves
from holdgate.adapters.store import StoreLost
from holdgate.audit import AuditReport, audit
from holdgate.errors import BackendError, ConfigError, Outcome, Reason
from holdgate.keyhistory import Purpose, follow
from holdgate.keys import NEVER, SigningKey
from holdgate.ledger import AdminNote
from holdgate.statement import StatementError
from holdgate.tlogproof import parse_proof
from holdgate.verification import Trust, judge

RECEIPT, LOG = Purpose
PURPOSES = pytest.mark.parametrize("purpose", list(Purpose))


def opened(state_dir: Path, **changes: Any) -> SqliteLedger:
    keys = load_keys(state_dir)
    facts: dict[str, Any] = {
        "receipt_key": keys.receipt,
        "log_key": keys.log,
        "origin": ORIGIN,
        "node": NODE,
        "clock_us": ticking(),
        "nonce16": nonces(),
        "linger_s": 0.0,
        "headroom_bytes": 0,
    }
    return SqliteLedger.open(state_dir, **(facts | changes))


async def refund(ledger: SqliteLedger, name: str) -> int:
    return (await ledger.record(RefundJudge(name, signer=ledger.signer))).index


async def rotate(ledger: SqliteLedger, purpose: Purpose) -> int:
    return (await ledger.change_key(Rotation(purpose=purpose, key_id="", by="local"))).index


def audited(state_dir: Path) -> AuditReport:
    with SqliteReader(state_dir) as reader:
        report = audit(
            reader.audit_input(),
            origin=ORIGIN,
            receipt_keys=load_public_keys(state_dir),
            log_keys=load_log_keys(state_dir),
        )
        reader.end_audit()
    return report


@pytest.fixture
def state(tmp_path: Path) -> Path:
    create_keys(tmp_path)
    return tmp_path


async def test_receipts_before_and_after_a_rotation_verify_with_what_was_exported(state: Path) -> None:
    old = load_keys(state).receipt.kid
    ledger = opened(state)
    assert await refund(ledger, "a") == 0
    assert await rotate(ledger, RECEIPT) == 1
    assert await refund(ledger, "b") == 2
    ledger.close()
    keys = load_public_keys(state)
    new = load_keys(state).receipt.kid
    assert (keys[old].first_index, keys[old].end_index) == (0, 2)
    assert (keys[new].first_index, keys[new].end_index) == (2, NEVER)
    trust = Trust(keys=keys, log=log_verifiers(state), witnesses=(), quorum=0, require_permit=False)
    with SqliteReader(state) as reader:
        stored = list(reader.export())
    assert [each.type for each in stored] == ["decision", "admin", "decision", "outcome", "outcome"][
        : len(stored)
    ]
    for each in stored:
        found = judge(each.jws, trust, parse_proof(prove(state, each.index, each.jws)))
        assert found.ok, found.reason
    assert audited(state).problems == ()


async def test_a_log_key_hands_over_and_the_log_itself_leads_to_the_new_one(state: Path) -> None:
    trusted = load_log_keys(state)
    ledger = opened(state)
    first = log_verifier(state / VKEY)
    await refund(ledger, "a")
    await rotate(ledger, LOG)
    await rotate(ledger, LOG)
    await refund(ledger, "b")
    ledger.close()
    found = follow(first, read_changes(key_changes(state)), load_public_keys(state))
    assert {each.key for each in found} == set(load_log_keys(state).values())
    assert found[-1].key.kid == log_verifier(state / VKEY).key.kid not in trusted
    with SqliteReader(state) as reader:
        stored = list(reader.export())[-1]
    proof = parse_proof(prove(state, stored.index, stored.jws))
    trust = Trust(keys=load_public_keys(state), log=(first,), witnesses=(), quorum=0, require_permit=False)
    assert "log key" in judge(stored.jws, trust, proof).reason
    led = Trust(keys=load_public_keys(state), log=found, witnesses=(), quorum=0, require_permit=False)
    assert judge(stored.jws, led, proof).ok
    assert audited(state).problems == ()


async def test_a_revoked_key_keeps_what_it_signed_before(state: Path) -> None:
    old = load_keys(state).receipt.kid
    ledger = opened(state)
    for name in "ab":
        await refund(ledger, name)
    with pytest.raises(ConfigError, match="rotate the active one first"):
        await ledger.change_key(Revocation(kid=old, from_index=1, by="local"))
    await rotate(ledger, RECEIPT)
    await ledger.change_key(Revocation(kid=old, from_index=None, by="local"))
    assert audited(state).problems == ()  # nothing in the log is lost where it was retired
    await ledger.change_key(Revocation(kid=old, from_index=1, by="local"))
    await refund(ledger, "c")
    with pytest.raises(ConfigError, match="earlier index"):
        await ledger.change_key(Revocation(kid=old, from_index=2, by="local"))
    with pytest.raises(ConfigError, match="never had"):
        await ledger.change_key(Revocation(kid="x", from_index=2, by="local"))
    assert ledger.healthy
    ledger.close()
    assert load_public_keys(state)[old].revoked_from_index == 1
    problems = [text for text in audited(state).problems if "revoked" in text]
    assert [text.split(":")[0] for text in problems] == ["leaf 1", "leaf 2"]  # the rotation itself, too


async def test_kr2_a_receipt_about_keys_comes_from_a_change_only(state: Path) -> None:
    ledger = opened(state)
    details = {"purpose": "receipt", "old": "a" * 43, "new": "b" * 43, "x": "c" * 43}
    with pytest.raises(StatementError):
        await ledger.note(AdminNote(action="key_rotate", by="local", details=details))
    key = SigningKey(seed=b"n" * 32).public
    details = {"purpose": "receipt", "old": "a" * 43, "new": key.kid, "x": key.jwk["x"]}
    with pytest.raises(StatementError, match="change of keys only"):
        await ledger.note(AdminNote(action="key_rotate", by="local", details=details))
    assert ledger.size == 0
    ledger.close()


async def test_kr1_a_judge_that_signs_with_another_key_records_nothing(state: Path) -> None:
    ledger = opened(state)
    before = ledger.signer.now
    await rotate(ledger, RECEIPT)
    with pytest.raises(BackendError, match="not signed with the key in use"):
        await ledger.record(RefundJudge("a", signer=before))
    assert (ledger.size, ledger.healthy) == (1, True)
    ledger.close()


async def test_many_rotations_under_load_leave_one_clean_log(state: Path) -> None:
    ledger = opened(state)

    async def agent(name: int) -> None:
        for number in range(12):
            recorded = await ledger.record(RefundJudge(f"{name} {number}", signer=ledger.signer))
            assert recorded.entry.outcome is Outcome.PERMIT

    async def operator() -> None:
        for number in range(6):
            await rotate(ledger, list(Purpose)[number % 2])

    await asyncio.gather(operator(), *(agent(name) for name in range(8)))
    ledger.close()
    assert audited(state).problems == ()
    assert len(load_public_keys(state)) == len(load_log_keys(state)) == 4


async def test_kr3_the_list_names_the_new_key_before_it_signs(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = opened(state)
    seen: list[bool] = []
    real = SigningKey.sign

    def sign(self: SigningKey, message: bytes) -> bytes:
        if self.kid != first:
            seen.append(self.kid in load_public_keys(state) or self.kid in load_log_keys(state))
        return real(self, message)

    first = ledger.signer.kid
    log = load_keys(state).log.kid
    monkeypatch.setattr(SigningKey, "sign", sign)
    await rotate(ledger, RECEIPT)
    await rotate(ledger, LOG)
    await refund(ledger, "a")
    ledger.close()
    assert log in load_log_keys(state)
    assert seen and all(seen)


# --- KR1: killed at any step ---


def _counted(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None]) -> None:
    """Call `act` with the number of the step before everything that changes a file."""
    step = 0

    def before(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal step
            step += 1
            act(step)
            return real(*args, **options)

        return call

    for module, name in ((os, "fsync"), (os, "link"), (Path, "rename"), (Path, "replace"), (Path, "unlink")):
        monkeypatch.setattr(module, name, before(getattr(module, name)))
    assert durable.os is os is private_file.os


def _killed(state: Path, purpose: Purpose, at: int) -> bool:
    """In a child: open, rotate, die before step `at` of the rotation; whether it died."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    code = 1
    try:

        async def run() -> None:
            ledger = opened(state)
            with pytest.MonkeyPatch.context() as patch:
                _counted(patch, lambda step: os._exit(9) if step == at else None)
                await rotate(ledger, purpose)
                os._exit(0)

        asyncio.run(run())
    finally:
        os._exit(code)


async def _prepared(state: Path) -> None:
    ledger = opened(state)
    await refund(ledger, "a")
    ledger.close()


@PURPOSES
@pytest.mark.slow
def test_kr1_killed_at_any_step_one_key_signs_and_the_log_is_clean(tmp_path: Path, purpose: Purpose) -> None:
    first = tmp_path / "first"
    create_keys(first)
    asyncio.run(_prepared(first))
    old = {RECEIPT: load_keys(first).receipt.kid, LOG: load_keys(first).log.kid}[purpose]
    ends = set()
    for at in range(1, 100):
        state = Path(shutil.copytree(first, tmp_path / str(at)))
        killed = _killed(state, purpose, at)

        async def after(state: Path = state) -> str:
            ledger = opened(state)  # never an instance that cannot start
            await refund(ledger, "b")
            await rotate(ledger, purpose)
            await refund(ledger, "c")
            ledger.close()
            keys = load_keys(state)
            return {RECEIPT: keys.receipt.kid, LOG: keys.log.kid}[purpose]

        now = asyncio.run(after())
        report = audited(state)
        assert report.problems == (), at
        listed = {RECEIPT: load_public_keys, LOG: load_log_keys}[purpose](state)
        active = [key.kid for key in listed.values() if key.end_index == NEVER]
        assert active == [now] and old in listed
        assert not (state / "keys" / f"{purpose}.next.key").exists()
        done = len(listed) == 3  # the killed one counts, and so does the one after it
        ends.add(done)
        shutil.rmtree(state)
        if not killed:
            break
    assert ends == {True, False} and at > 8


@PURPOSES
@pytest.mark.slow
async def test_kr1_an_error_at_any_step_stops_the_ledger_and_the_next_start_completes(
    tmp_path: Path, purpose: Purpose, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = 0
    for at in range(1, 26):
        state = tmp_path / str(at)
        create_keys(state)
        ledger = opened(state)
        await refund(ledger, "a")

        def fail(step: int, at: int = at) -> None:
            if step == at:
                raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            _counted(patch, fail)
            try:
                await rotate(ledger, purpose)
            except BackendError:
                failures += 1
        if ledger.healthy:  # before the leaf: refused, and nothing has changed
            await refund(ledger, "b")
        else:
            with pytest.raises(BackendError) as raised:
                await refund(ledger, "b")
            assert raised.value.reason is Reason.STORE_UNAVAILABLE
        ledger.close()
        again = opened(state)
        await refund(again, "c")
        again.close()
        assert audited(state).problems == (), at
        shutil.rmtree(state)
    assert failures > 4


async def test_kr1_a_store_that_is_lost_after_the_leaf_stops_the_ledger_and_the_next_start_completes(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: Any) -> Any:
        raise StoreLost("gone for a while")

    ledger = opened(state)
    old, index = load_keys(state).log.kid, await refund(ledger, "a")
    with monkeypatch.context() as patch:
        patch.setattr(SqliteLeaves, "read", lost)
        with pytest.raises(BackendError):
            await rotate(ledger, LOG)
    with pytest.raises(BackendError):  # with the change in the log, and not made
        await refund(ledger, "b")
    ledger.close()
    again = opened(state)
    assert await refund(again, "c") > index
    again.close()
    assert load_keys(state).log.kid != old
    assert audited(state).problems == ()


# --- KR2 ---


@PURPOSES
async def test_kr2_a_lost_key_starts_nothing(state: Path, purpose: Purpose, tmp_path: Path) -> None:
    ledger = opened(state)
    await refund(ledger, "a")
    kept = (state / "keys" / f"{purpose}.key").read_bytes()
    await rotate(ledger, purpose)
    ledger.close()
    path = state / "keys" / f"{purpose}.key"
    new = path.read_bytes()
    for wrong in (kept, json.dumps(json.loads(kept)).encode()):
        path.write_bytes(wrong)
        with pytest.raises(ConfigError, match=r"put the right key file back|not signed by the log key|range"):
            opened(state)
    path.write_bytes(new)
    opened(state).close()
    (state / "keys" / f"{purpose}.next.key").write_bytes(kept)  # what the log never heard of goes
    opened(state).close()
    assert not (state / "keys" / f"{purpose}.next.key").exists()


async def test_kr2_a_log_that_went_on_after_an_unfinished_hand_over_is_refused(state: Path) -> None:
    ledger = opened(state)
    with suppress(BackendError), pytest.MonkeyPatch.context() as patch:
        patch.setattr(KeyRing, "finish", lambda *_: None)  # as no version of ours does
        await rotate(ledger, LOG)
        await refund(ledger, "b")
    ledger.close()
    with pytest.raises(ConfigError, match="went on after leaf 0"):
        opened(state)


def test_the_private_half_of_a_retired_key_is_gone(state: Path) -> None:
    secret = json.loads((state / "keys" / "receipt.key").read_text())["d"].encode()

    async def run() -> None:
        ledger = opened(state)
        await rotate(ledger, RECEIPT)
        ledger.close()

    asyncio.run(run())
    found = [path for path in state.rglob("*") if path.is_file() and secret in path.read_bytes()]
    assert found == []
    assert (state / "keys" / "receipt.key").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in (state / CHANGES).glob("*")) == []
