"""TrigGuard's conformance cases, by their names: decision records, and decisions about a grant and its key.

What their cases say is here in our words. A record is what a remote gate may answer, and what our own view
must look like. A grant is a signed permission with an end, by a key with a status: here, the receipt with
which a remote gate permits. Where they say DENY for something that no policy was asked about, it is SILENCE
here (proxy/SPEC.md): no case that they do not permit is permitted.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from evidence import RECEIPT_KEY, T0, permit_statement
from holdgate.errors import InputError, Outcome, Reason
from holdgate.files import packaged
from holdgate.keys import KeySet, PublicKey, key_set
from holdgate.receipt import sign
from holdgate.remote_gate import RemoteError, RemoteProtocol, read_answer
from holdgate.surface.asked import recognise_asked
from holdgate.surface.index import SurfaceIndex
from holdgate.surface.load import load_maps
from holdgate.surface.model import Action, Effect
from holdgate.trigguard import trigguard_view
from test_remote_gate import ASKED

# --- decision records: permit-basic, deny-basic, silence-basic, escalate-basic ---

RECORDS: dict[str, tuple[dict[str, str], Outcome]] = {
    "permit-basic": (
        {"decision": "PERMIT", "enforcement": "EXECUTED", "reason_code": "NO_POLICY_VIOLATION"},
        Outcome.PERMIT,
    ),
    "deny-basic": (
        {"decision": "DENY", "enforcement": "BLOCKED", "reason_code": "HIGH_RISK_SPEND"},
        Outcome.DENY,
    ),
    "silence-basic": (
        {"decision": "SILENCE", "enforcement": "BLOCKED", "reason_code": "MISSING_AUTHORIZATION"},
        Outcome.SILENCE,
    ),
    "escalate-basic": (  # of their version 0.2.0: a fourth word, and not yet a permission
        {"decision": "ESCALATE", "enforcement": "BLOCKED", "reason_code": "ESCALATION_REQUIRED"},
        Outcome.SILENCE,
    ),
}


def told(protocol: RemoteProtocol, body: Any, keys: KeySet | None = None) -> Outcome:
    data = json.dumps(body).encode()
    return read_answer(protocol, 200, data, ASKED, keys or {}, now_us=T0).decision.outcome


@pytest.mark.parametrize(("record", "outcome"), RECORDS.values(), ids=RECORDS)
def test_a_record_as_the_answer_of_a_remote_gate(record: dict[str, str], outcome: Outcome) -> None:
    record = {**record, "timestamp": "2026-01-01T00:00:00.000Z"}
    assert told(RemoteProtocol.TRIGGUARD, {**record, "surface": "payments.refund"}) is outcome


def test_a_permit_record_that_names_no_surface_is_nobodys_permit() -> None:
    with pytest.raises(RemoteError, match="surface"):
        told(RemoteProtocol.TRIGGUARD, RECORDS["permit-basic"][0])


def test_a_record_that_contradicts_itself_is_no_permit() -> None:
    record = {"decision": "PERMIT", "enforcement": "BLOCKED", "surface": "payments.refund"}
    with pytest.raises(RemoteError, match="BLOCKED"):
        told(RemoteProtocol.TRIGGUARD, record)


_NO: dict[str, Any] = {"exp_us": 0, "replay_of": "", "via": "", "idempotency": None}
STATEMENTS = {
    "permit-basic": permit_statement(via=""),
    "deny-basic": permit_statement(outcome=Outcome.DENY, reason=Reason.DENY_RULE, **_NO),
    "silence-basic": permit_statement(
        outcome=Outcome.SILENCE, reason=Reason.NO_RULE_MATCHED, rules=(), **_NO
    ),
}


@pytest.mark.parametrize("name", STATEMENTS)
def test_our_view_has_the_words_of_the_record(name: str) -> None:
    record, view = RECORDS[name][0], trigguard_view(STATEMENTS[name], RECEIPT_KEY)
    assert (view["decision"], view["enforcement"]) == (record["decision"], record["enforcement"])
    assert view["reasonCode"] and view["timestamp"].endswith("Z")


# --- a grant and its key ---

HOUR_US = 3_600_000_000
ACTIVE = PublicKey(raw=RECEIPT_KEY.public.raw)
EXPIRED = PublicKey(raw=RECEIPT_KEY.public.raw, end_index=7)
REVOKED = PublicKey(raw=RECEIPT_KEY.public.raw, revoked_from_index=7)
TRANSFER, SEARCH, EXEC = "trigguard.spend.transfer", "trigguard.retrieval.search", "trigguard.code.exec"


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    surface: str
    key: PublicKey = ACTIVE
    ends_us: int = T0 + HOUR_US


CASES: dict[str, tuple[Grant | None, str]] = {  # "" is permitted, else why not
    "permit_transfer": (Grant(surface=TRANSFER), ""),
    "permit_data_read": (Grant(surface=SEARCH), ""),
    "permit_attested_surface": (Grant(surface=TRANSFER), ""),
    "deny_no_grant": (None, "without a receipt"),
    "deny_expired_grant": (Grant(surface=TRANSFER, ends_us=T0 - HOUR_US), "expired"),
    "deny_expired_key": (Grant(surface=EXEC, key=EXPIRED), "retired or revoked"),
    "deny_revoked_key": (Grant(surface=TRANSFER, key=REVOKED), "retired or revoked"),
}


def granted(grant: Grant) -> dict[str, Any]:
    action = Action(surface=grant.surface, operation="acme.Do", effect=Effect.COMMIT, params=())
    began_us = min(T0, grant.ends_us - HOUR_US)
    said = permit_statement(actions=(action,), iat_us=began_us, exp_us=grant.ends_us)
    return {"decision": "PERMIT", "receipt": sign(said, RECEIPT_KEY).decode()}


@pytest.mark.parametrize(("grant", "why"), CASES.values(), ids=CASES)
def test_a_grant_and_its_key(grant: Grant | None, why: str) -> None:
    body = {"decision": "PERMIT"} if grant is None else granted(grant)
    keys = key_set([ACTIVE if grant is None else grant.key])
    if not why:
        assert told(RemoteProtocol.HOLDGATE, body, keys) is Outcome.PERMIT
        return
    with pytest.raises(RemoteError, match=why):
        told(RemoteProtocol.HOLDGATE, body, keys)


def test_deny_unknown_surface_is_silence_here() -> None:
    index = SurfaceIndex.compile(load_maps([packaged("surfaces")]))
    with pytest.raises(InputError) as caught:
        recognise_asked(index, "unknown.fake.surface", "fake", {}, key="", fleet_key=bytes(32))
    assert caught.value.reason is Reason.UNKNOWN_OPERATION


def test_an_attested_surface_is_a_request_digest_here() -> None:
    # Their case only carries `surface_hash`; what a receipt is bound to is compared.
    said = permit_statement(request={**permit_statement()["request"], "digest": "sha256:" + "9" * 64})
    body = {"receipt": sign(said, RECEIPT_KEY).decode()}
    with pytest.raises(RemoteError, match="another request"):
        told(RemoteProtocol.HOLDGATE, body, key_set([ACTIVE]))
