"""verification.py: the invariants in its docstring."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest

from evidence import KEYS, LOG_KEY, ORIGIN, OTHER_KEY, RECEIPT_KEY, T0, permit_statement, receipt_id
from holdgate.errors import Outcome, Reason
from holdgate.keys import PublicKey, SigningKey, key_set
from holdgate.ledger import OutcomeStatus
from holdgate.note import SignatureType, Verifier, sign_checkpoint
from holdgate.receipt import outcome_statement, sign
from holdgate.tlog import EMPTY, inclusion_proof, leaf_hash
from holdgate.tlogproof import Proof
from holdgate.verification import Trust, judge

PERMIT = permit_statement(via="")
REFUSAL = permit_statement(
    outcome=Outcome.DENY, reason=Reason.DENY_RULE, exp_us=0, replay_of="", receipt_id=receipt_id(2)
)
OUTCOME = outcome_statement(
    receipt_id=receipt_id(3),
    issuer=ORIGIN,
    iat_us=T0 + 1,
    node="edge-1",
    of=receipt_id(1),
    status=OutcomeStatus.EXECUTED,
    http_status=200,
)
LEAVES = [sign(said, RECEIPT_KEY) for said in (PERMIT, REFUSAL, OUTCOME)]
LOG = Verifier(name=ORIGIN, type=SignatureType.ED25519, key=LOG_KEY.public)
WITNESS_KEYS = [SigningKey(seed=bytes([number]) * 32) for number in (101, 102)]
WITNESSES = tuple(
    Verifier(name=f"w{number}.example", type=SignatureType.COSIGNATURE, key=key.public)
    for number, key in enumerate(WITNESS_KEYS)
)
TRUST = Trust(keys=KEYS, log=(LOG,), witnesses=(), quorum=0, require_permit=False)


def _note() -> bytes:
    tree = EMPTY
    for leaf in LEAVES:
        tree = tree.append(leaf_hash(leaf))
    return sign_checkpoint(ORIGIN, tree, LOG_KEY)


def _cosigned(note: bytes, *numbers: int) -> bytes:
    text = note[: note.index(b"\n\n") + 1]
    for number in numbers:
        message = b"cosignature/v1\ntime 1790000000\n" + text
        signature = WITNESSES[number].key_id + (1790000000).to_bytes(8) + WITNESS_KEYS[number].sign(message)
        line = base64.b64encode(signature).decode()
        note += f"\u2014 {WITNESSES[number].name} {line}\n".encode()
    return note


def _proof(index: int = 0, note: bytes | None = None) -> Proof:
    path = inclusion_proof([leaf_hash(leaf) for leaf in LEAVES], index)
    return Proof(index=index, path=path, checkpoint=_note() if note is None else note)


def test_vf1_a_receipt_that_meets_everything_is_ok() -> None:
    for index, leaf in enumerate(LEAVES):
        assert judge(leaf, TRUST, None).ok
        found = judge(leaf, TRUST, _proof(index))
        assert found.ok and found.inclusion is not None
        assert (found.inclusion.index, found.inclusion.checkpoint.size) == (index, 3)


def test_vf1_a_receipt_that_is_not_valid_says_nothing() -> None:
    found = judge(LEAVES[0][:-1], TRUST, _proof())
    assert (found.ok, found.statement) == (False, None)
    assert not judge(sign(PERMIT, OTHER_KEY), TRUST, None).ok


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        (REFUSAL, "not of a PERMIT"),
        (OUTCOME, "not of a PERMIT"),
        (permit_statement(), "asked for over an API"),
    ],
    ids=["refusal", "outcome", "via an API"],
)
def test_vf1_require_permit_takes_nothing_else(statement: dict[str, object], reason: str) -> None:
    asked = replace(TRUST, require_permit=True)
    assert judge(sign(PERMIT, RECEIPT_KEY), asked, None).ok
    assert reason in judge(sign(statement, RECEIPT_KEY), asked, None).reason


def test_vf2_a_proof_of_another_receipt_log_or_key_is_refused() -> None:
    assert "not of this receipt" in judge(LEAVES[1], TRUST, _proof(0)).reason
    for log in (replace(LOG, name="other.example"), replace(LOG, key=OTHER_KEY.public)):
        assert not judge(LEAVES[0], replace(TRUST, log=(log,)), _proof()).ok
    assert "no log key" in judge(LEAVES[0], replace(TRUST, log=()), _proof()).reason


def test_vf2_a_receipt_in_a_log_that_it_was_not_issued_for_is_refused() -> None:
    stray = sign(permit_statement(via="", issuer="holdgate.local/edge-2"), RECEIPT_KEY)
    tree = EMPTY.append(leaf_hash(stray))
    proof = Proof(index=0, path=(), checkpoint=sign_checkpoint(ORIGIN, tree, LOG_KEY))
    assert "issued for another log" in judge(stray, TRUST, proof).reason


def test_vf3_a_revoked_key_counts_only_below_its_index() -> None:
    revoked = PublicKey(raw=RECEIPT_KEY.public.raw, revoked_from_index=1)
    trust = replace(TRUST, keys=key_set([revoked]))
    assert judge(LEAVES[0], trust, _proof(0)).ok
    assert "only a proof" in judge(LEAVES[0], trust, None).reason
    assert "revoked from index 1 on, and this is 1" in judge(LEAVES[1], trust, _proof(1)).reason


def test_vf4_a_quorum_is_of_different_witnesses_that_are_trusted() -> None:
    both = replace(TRUST, witnesses=WITNESSES, quorum=2)
    assert judge(LEAVES[0], both, _proof(0, _cosigned(_note(), 0, 1))).ok
    for note in (_note(), _cosigned(_note(), 0), _cosigned(_note(), 0, 0)):
        assert "of 2 witnesses cosigned" in judge(LEAVES[0], both, _proof(0, note)).reason
    assert "0 of 2" in judge(LEAVES[0], both, None).reason
    one = replace(TRUST, witnesses=WITNESSES[:1], quorum=1)
    assert not judge(LEAVES[0], one, _proof(0, _cosigned(_note(), 1))).ok


# --- VF5 ---


def test_vf5_a_receipt_out_of_the_range_of_its_key_needs_no_second_look() -> None:
    ranged = replace(TRUST, keys=key_set([replace(RECEIPT_KEY.public, first_index=1, end_index=2)]))
    assert judge(LEAVES[1], ranged, _proof(1)).ok
    assert "signs from index 1 to 1, and this is 0" in judge(LEAVES[0], ranged, _proof(0)).reason
    assert "signs from index 1 to 1, and this is 2" in judge(LEAVES[2], ranged, _proof(2)).reason
    assert judge(LEAVES[0], ranged, None).ok  # nobody can say where it is


def test_vf5_a_checkpoint_out_of_the_range_of_its_log_key_counts_for_nothing() -> None:
    for key, ok in (
        (replace(LOG_KEY.public, end_index=3), True),
        (replace(LOG_KEY.public, end_index=2), False),
        (replace(LOG_KEY.public, first_index=2), True),
        (replace(LOG_KEY.public, first_index=3), False),
    ):
        trust = replace(TRUST, log=(replace(LOG, key=key),))
        assert judge(LEAVES[0], trust, _proof(0)).ok == ok
