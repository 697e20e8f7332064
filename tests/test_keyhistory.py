"""keyhistory.py: the invariants in its docstring."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evidence import KEYS, LOG_KEY, NODE, ORIGIN, OTHER_KEY, RECEIPT_KEY, T0, receipt_id
from holdgate.keyhistory import KeyHistory, KeyHistoryError, Purpose, follow
from holdgate.keys import PublicKey, SigningKey, b64url, key_set
from holdgate.note import SignatureType, Verifier, sign_checkpoint
from holdgate.receipt import admin_statement, sign
from holdgate.tlog import EMPTY, TlogError, inclusion_proof, leaf_hash
from holdgate.tlogproof import Proof

FRESH = [SigningKey(seed=bytes([number]) * 32) for number in range(200, 206)]
LOG = Verifier(name=ORIGIN, type=SignatureType.ED25519, key=LOG_KEY.public)


def rotation(old: PublicKey, new: PublicKey, purpose: Purpose = Purpose.RECEIPT) -> dict[str, Any]:
    return {"purpose": purpose.value, "old": old.kid, "new": new.kid, "x": b64url(new.raw).decode()}


def revocation(key: PublicKey, index: int, purpose: Purpose = Purpose.RECEIPT) -> dict[str, Any]:
    return {"purpose": purpose.value, "kid": key.kid, "from_index": index}


def begin() -> KeyHistory:
    return KeyHistory.begin(RECEIPT_KEY.public, LOG_KEY.public)


@given(st.lists(st.tuples(st.sampled_from(list(Purpose)), st.integers(1, 5)), max_size=5))
def test_kh1_one_receipt_key_counts_at_every_index(changes: list[tuple[Purpose, int]]) -> None:
    history, index = begin(), 0
    handed_over = set()
    for number, (purpose, gap) in enumerate(changes):
        index += gap
        old = history.keys(purpose)[history.active(purpose)]
        history = history.after(index, "key_rotate", rotation(old, FRESH[number].public, purpose))
        handed_over |= {index} if purpose is Purpose.LOG else set()
    for at in range(index + 3):
        counting = [key for key in history.keys(Purpose.RECEIPT).values() if not key.refuses(at)]
        assert len(counting) == 1
        logs = [key for key in history.keys(Purpose.LOG).values() if not key.refuses(at)]
        assert len(logs) == (2 if at in handed_over else 1)
    assert not history.keys(Purpose.RECEIPT)[history.active(Purpose.RECEIPT)].refuses(index + 3)


def test_kh2_a_rotation_of_another_key_or_back_to_one_is_refused() -> None:
    with pytest.raises(KeyHistoryError, match="not the key in use"):
        begin().after(3, "key_rotate", rotation(OTHER_KEY.public, FRESH[0].public))
    once = begin().after(3, "key_rotate", rotation(RECEIPT_KEY.public, FRESH[0].public))
    with pytest.raises(KeyHistoryError, match="in use before"):
        once.after(4, "key_rotate", rotation(FRESH[0].public, RECEIPT_KEY.public))
    with pytest.raises(KeyHistoryError, match="not the key in use"):
        once.after(4, "key_rotate", rotation(RECEIPT_KEY.public, FRESH[1].public))


def test_kh3_what_is_revoked_is_retired_and_stays_revoked() -> None:
    once = begin().after(3, "key_rotate", rotation(RECEIPT_KEY.public, FRESH[0].public))
    gone = once.after(9, "key_revoke", revocation(RECEIPT_KEY.public, 2))
    assert gone.keys(Purpose.RECEIPT)[RECEIPT_KEY.kid].revoked_from_index == 2
    assert gone.keys(Purpose.RECEIPT)[RECEIPT_KEY.kid].refuses(2)
    assert not gone.keys(Purpose.RECEIPT)[RECEIPT_KEY.kid].refuses(1)
    for history, details in (
        (once, revocation(FRESH[0].public, 2)),  # the active key
        (once, revocation(OTHER_KEY.public, 2)),  # nobody's
        (once, revocation(RECEIPT_KEY.public, 10)),  # ahead of its own receipt
        (gone, revocation(RECEIPT_KEY.public, 3)),  # later than the first revocation
    ):
        with pytest.raises(KeyHistoryError):
            history.after(9, "key_revoke", details)


def test_other_receipts_change_nothing() -> None:
    assert begin().after(0, "coverage", {}) == begin()


# --- KH4 ---


def _leaf(details: dict[str, Any], **changes: Any) -> bytes:
    facts: dict[str, Any] = {
        "receipt_id": receipt_id(1),
        "issuer": ORIGIN,
        "iat_us": T0,
        "node": NODE,
        "action": "key_rotate",
        "by": "local",
        "details": details,
    }
    return sign(admin_statement(**(facts | changes)), RECEIPT_KEY)


def _change(leaf: bytes, *signers: SigningKey, before: int = 2, behind: int = 0) -> Proof:
    leaves = [b"leaf %d" % number for number in range(before)]
    leaves += [leaf, *(b"behind %d" % number for number in range(behind))]
    tree = EMPTY
    for item in leaves:
        tree = tree.append(leaf_hash(item))
    return Proof(
        index=before,
        path=inclusion_proof([leaf_hash(item) for item in leaves], before),
        checkpoint=sign_checkpoint(ORIGIN, tree, *signers),
        extra=leaf,
    )


def test_kh4_the_log_leads_from_its_first_key_to_its_newest() -> None:
    first = _change(_leaf(rotation(LOG_KEY.public, FRESH[0].public, Purpose.LOG)), LOG_KEY, FRESH[0])
    second = _change(
        _leaf(rotation(FRESH[0].public, FRESH[1].public, Purpose.LOG)), FRESH[0], FRESH[1], before=6
    )
    found = follow(LOG, [first, second], KEYS)
    assert [(each.key.kid, each.key.first_index, each.key.end_index) for each in found[:2]] == [
        (LOG_KEY.kid, 0, 3),
        (FRESH[0].kid, 2, 7),
    ]
    assert (found[2].key.kid, found[2].key.first_index) == (FRESH[1].kid, 6)
    # Whoever trusts a later key needs nothing of what came before.
    later = replace(LOG, key=FRESH[0].public)
    assert [each.key.kid for each in follow(later, [first, second], KEYS)] == [FRESH[0].kid, FRESH[1].kid]


_STEP = rotation(LOG_KEY.public, FRESH[0].public, Purpose.LOG)
_BAD = {
    "only the old key signed": _change(_leaf(_STEP), LOG_KEY),
    "only the new key signed": _change(_leaf(_STEP), FRESH[0]),
    "a stranger signed for the new key": _change(_leaf(_STEP), LOG_KEY, OTHER_KEY),
    "a later tree": _change(_leaf(_STEP), LOG_KEY, FRESH[0], behind=1),
    "not the leaf of the proof": replace(
        _change(_leaf(_STEP), LOG_KEY, FRESH[0]), extra=_leaf(_STEP, receipt_id=receipt_id(2))
    ),
    "a receipt key's change": _change(_leaf(rotation(LOG_KEY.public, FRESH[0].public)), LOG_KEY, FRESH[0]),
    "another log's change": _change(_leaf(_STEP, issuer="holdgate.local/other"), LOG_KEY, FRESH[0]),
    "no receipt": replace(_change(_leaf(_STEP), LOG_KEY, FRESH[0]), extra=b""),
}


@pytest.mark.parametrize("change", _BAD.values(), ids=_BAD)
def test_kh4_a_change_that_proves_nothing_is_refused(change: Proof) -> None:
    with pytest.raises(TlogError):
        follow(LOG, [change], KEYS)


def test_kh4_a_change_by_a_receipt_key_out_of_its_range_is_refused() -> None:
    change = _change(_leaf(_STEP), LOG_KEY, FRESH[0])
    for key in (
        replace(RECEIPT_KEY.public, first_index=3),
        replace(RECEIPT_KEY.public, end_index=2),
        replace(RECEIPT_KEY.public, revoked_from_index=1),
    ):
        with pytest.raises(TlogError, match="not a change"):
            follow(LOG, [change], key_set([key]))
