"""receipt.py and statement.py: the invariants, every field tampered with, and another JWS library."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws as jose
from joserfc.jwk import OKPKey

from evidence import (
    KEYS,
    OTHER_KEY,
    RECEIPT_KEY,
    T0,
    coverage_details,
    coverage_statement,
    permit_statement,
    receipt_id,
)
from holdgate.errors import Outcome, Reason
from holdgate.jcs import JcsError, dumps
from holdgate.keys import b64url, key_set, parse_jwks, unb64url
from holdgate.ledger import OutcomeStatus
from holdgate.receipt import (
    MAX_BYTES,
    TYP,
    ReceiptError,
    actions_digest,
    answer_digest,
    new_receipt_id,
    outcome_statement,
    sign,
    verify,
)
from holdgate.statement import OUTCOME_OF, StatementError, format_us, parse_us
from holdgate.surface.model import Action, Effect, Param

VECTORS = Path(__file__).resolve().parent / "vectors"
GOOD = sign(permit_statement(), RECEIPT_KEY)


def _vectors(kind: str) -> list[Any]:
    paths = sorted((VECTORS / "receipts" / kind).glob("*.json"))
    return [pytest.param(json.loads(path.read_text()), id=path.stem) for path in paths]


def _resigned(statement: Any, **header: Any) -> bytes:
    head = {"alg": "EdDSA", "kid": RECEIPT_KEY.kid, "typ": TYP} | header
    signed = b64url(dumps(head)) + b"." + b64url(dumps(statement))
    return signed + b"." + b64url(RECEIPT_KEY.sign(signed))


# --- vectors ---


@pytest.mark.parametrize("vector", _vectors("valid"))
def test_r1_a_valid_vector_verifies_and_signing_it_again_gives_the_same_bytes(vector: dict[str, Any]) -> None:
    keys = parse_jwks((VECTORS / "receipts" / "keys.jwks.json").read_bytes())
    verified = verify(vector["jws"].encode(), keys)
    assert verified.statement == vector["statement"]
    assert verified.kid == RECEIPT_KEY.kid
    assert (verified.id, verified.type) == (vector["statement"]["id"], vector["statement"]["type"])
    assert sign(vector["statement"], RECEIPT_KEY).decode() == vector["jws"]


@pytest.mark.parametrize("vector", _vectors("invalid"))
def test_r2_an_invalid_vector_is_refused_for_its_reason(vector: dict[str, Any]) -> None:
    with pytest.raises(ReceiptError) as raised:
        verify(vector["jws"].encode(), KEYS)
    assert str(raised.value) == vector["reason"]


def test_the_vectors_are_those_that_the_script_writes() -> None:
    spec = importlib.util.spec_from_file_location("regenerate", VECTORS / "regenerate.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    folder = VECTORS / "receipts"
    stored = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.json")}
    assert stored == script.files()


# --- another library ---


def test_r1_another_jws_library_verifies_it() -> None:
    key = OKPKey.import_key({**RECEIPT_KEY.public.jwk})
    token = jose.deserialize_compact(GOOD.decode(), key, algorithms=["EdDSA"])
    assert token.payload == rfc8785.dumps(permit_statement())
    assert token.headers() == {"alg": "EdDSA", "kid": RECEIPT_KEY.kid, "typ": "holdgate-receipt+jws"}


def test_r5_both_names_of_the_algorithm_are_taken_and_no_other() -> None:
    assert verify(_resigned(permit_statement(), alg="Ed25519"), KEYS).statement == permit_statement()
    for alg in ("none", "HS256", "ES256", "eddsa", ""):
        with pytest.raises(ReceiptError, match="algorithm"):
            verify(_resigned(permit_statement(), alg=alg), KEYS)


# --- tampering ---


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [leaf for key, item in items for leaf in _leaves(item, (*path, key))]
    return [path]


def _changed(value: Any, path: tuple[Any, ...]) -> Any:
    if not path:
        return not value if isinstance(value, bool) else value + (1 if isinstance(value, int) else "x")
    copy = value.copy()
    copy[path[0]] = _changed(value[path[0]], path[1:])
    return copy


@pytest.mark.parametrize("path", _leaves(permit_statement()), ids=lambda path: ".".join(map(str, path)))
def test_r1_no_field_can_change_under_the_signature(path: tuple[Any, ...]) -> None:
    first, _, third = GOOD.split(b".")
    forged = first + b"." + b64url(dumps(_changed(permit_statement(), path))) + b"." + third
    with pytest.raises(ReceiptError, match="signature"):
        verify(forged, KEYS)
    foreign = sign(_changed(permit_statement(), path), OTHER_KEY)
    with pytest.raises(ReceiptError, match="key set"):
        verify(foreign, KEYS)


def test_r1_no_byte_can_change() -> None:
    for position in range(len(GOOD)):
        with pytest.raises(ReceiptError):
            verify(GOOD[:position] + bytes([GOOD[position] ^ 1]) + GOOD[position + 1 :], KEYS)


@given(st.binary(max_size=60) | st.text(alphabet="eyJ.-_A=", max_size=60).map(str.encode))
def test_r1_verify_raises_nothing_but_its_own_error(data: bytes) -> None:
    with pytest.raises(ReceiptError):
        verify(data, KEYS)


_WRONG = [None, True, -1, 0, "", "x", [], {}, [1], ["\n"], {"a": 1}, 2**40]


@pytest.mark.parametrize("name", sorted(permit_statement()))
def test_r2_every_field_has_a_shape_even_under_a_good_signature(name: str) -> None:
    accepted = []
    for wrong in _WRONG:
        with contextlib.suppress(ReceiptError, JcsError):
            verify(_resigned(permit_statement() | {name: wrong}), KEYS)
            accepted.append(wrong)
    # Free text may be "x", and a version, node or engine is any text.
    free = {"agent", "approval", "engine", "iss", "node", "via"}
    assert accepted == (["x"] if name in free else [])


@pytest.mark.parametrize(
    "name", ["nbf", "allowed", "decision", "status", "of", "http_status", "actions_digest"]
)
def test_r2_a_field_that_is_not_in_the_list_is_invalid(name: str) -> None:
    with pytest.raises(ReceiptError, match=r"not known|go together"):
        verify(_resigned(permit_statement() | {name: "sha256:" + "0" * 64}), KEYS)


# --- outcome and reason ---


def _refusal(outcome: Outcome, reason: Reason) -> dict[str, Any]:
    return permit_statement(
        outcome=outcome, reason=reason, exp_us=0, approval="", budget=(), via="", replay_of=""
    )


@pytest.mark.parametrize("reason", Reason)
def test_r3_every_reason_goes_with_exactly_one_outcome(reason: Reason) -> None:
    for outcome in Outcome:
        exp = T0 + 1_000_000 if outcome is Outcome.PERMIT else 0
        jws = _resigned(permit_statement(outcome=outcome, reason=reason, exp_us=exp, replay_of=""))
        if OUTCOME_OF[reason] is outcome:
            assert verify(jws, KEYS).statement["reason"] == reason
        else:
            with pytest.raises(ReceiptError, match="does not go with"):
                verify(jws, KEYS)
    assert (OUTCOME_OF[reason] is Outcome.PERMIT) == (reason is Reason.PERMIT_RULE)


@pytest.mark.parametrize("outcome", [Outcome.DENY, Outcome.SILENCE])
def test_r3_only_a_permit_expires(outcome: Outcome) -> None:
    reason = Reason.DENY_RULE if outcome is Outcome.DENY else Reason.NO_RULE_MATCHED
    statement = _refusal(outcome, reason)
    assert verify(_resigned(statement), KEYS)
    with pytest.raises(ReceiptError, match="only a PERMIT has exp"):
        verify(_resigned(statement | {"exp": format_us(T0 + 1)}), KEYS)


@pytest.mark.parametrize(
    "reason", [Reason.DENY_RULE, Reason.NO_RULE_MATCHED, Reason.RULE_ERROR, Reason.APPROVAL_PENDING]
)
def test_r3_a_reason_that_the_gate_gave_names_its_input(reason: Reason) -> None:
    statement = _refusal(OUTCOME_OF[reason], reason)
    del statement["input_digest"]
    with pytest.raises(ReceiptError, match="input_digest"):
        verify(_resigned(statement), KEYS)


# --- size ---


def _actions(count: int, text: str = "x") -> tuple[Action, ...]:
    params = (Param(name="text", value=text, public=text),)
    action = Action(surface="messaging.send", operation="slack.post", effect=Effect.COMMIT, params=params)
    return (action,) * count


@pytest.mark.parametrize(
    ("actions", "is_listed"),
    [
        pytest.param(_actions(1), True, id="one"),
        pytest.param(_actions(32), True, id="32"),
        pytest.param(_actions(33), False, id="33"),
        pytest.param(_actions(1000), False, id="a thousand"),
        pytest.param(_actions(1, "x" * 3900), True, id="one long"),
        pytest.param(_actions(1, "x" * 4100), False, id="one too long"),
        pytest.param(_actions(1, "\x01" * 700), False, id="one that grows when escaped"),
        pytest.param(_actions(1, "x" * 1_000_000), False, id="a megabyte"),
    ],
)
def test_r4_many_or_large_actions_become_a_digest_and_counts(
    actions: tuple[Action, ...], is_listed: bool
) -> None:
    jws = sign(permit_statement(actions=actions), RECEIPT_KEY)
    statement = verify(jws, KEYS).statement
    assert len(jws) <= MAX_BYTES
    rows: list[Any] = [
        {
            "surface": "messaging.send",
            "operation": "slack.post",
            "effect": "commit",
            "params": {"text": actions[0].params[0].public},
        }
    ] * len(actions)
    assert ("actions" in statement) == is_listed
    if is_listed:
        assert statement["actions"] == rows
    else:
        assert statement["actions_digest"] == "sha256:" + hashlib.sha256(rfc8785.dumps(rows)).hexdigest()
        assert statement["actions_digest"] == actions_digest(actions)
        assert [(row["surface"], row["count"]) for row in statement["counts"]] == [
            ("messaging.send", len(actions))
        ]


def test_r4_a_receipt_that_would_be_larger_is_not_made() -> None:
    rules = ("policy/" + "r" * 1000,) * 8
    with pytest.raises(ReceiptError, match="larger than 8192"):
        sign(permit_statement(rules=rules), RECEIPT_KEY)
    with pytest.raises(ReceiptError, match="larger than 8192"):
        verify(_resigned(permit_statement(rules=rules)), KEYS)


def test_a_parameter_that_is_not_public_is_not_in_the_receipt() -> None:
    statement = permit_statement()
    assert statement["actions"][0]["params"] == {"amount": 500, "currency": "usd"}
    assert b"secret" not in dumps(statement)


def test_absent_parameters_and_big_integers_are_text() -> None:
    params = (
        Param(name="ids", value=(1, 2**60), public=(1, 2**60)),
        Param(name="n", value=2**53, public=2**53),
        Param(name="ok", value=True, public=True),
    )
    action = Action(
        surface="s", operation="o", effect=Effect.READ, params=params, absent=(("amount", "FULL"),)
    )
    row = permit_statement(actions=(action,))["actions"][0]["params"]
    assert row == {"ids": [1, str(2**60)], "n": str(2**53), "ok": True, "amount": "FULL"}
    assert verify(sign(permit_statement(actions=(action,)), RECEIPT_KEY), KEYS)


# --- outcome receipts ---


@pytest.mark.parametrize("status", OutcomeStatus)
def test_an_outcome_receipt_verifies(status: OutcomeStatus) -> None:
    statement = outcome_statement(
        receipt_id=receipt_id(2),
        issuer="holdgate.local/edge-1",
        iat_us=T0,
        node="edge-1",
        of=receipt_id(1),
        status=status,
        http_status=0,
    )
    assert "http_status" not in statement
    assert verify(sign(statement, RECEIPT_KEY), KEYS).statement["status"] == status


@pytest.mark.parametrize("name", ["produced", "kept"])
@pytest.mark.parametrize("status", OutcomeStatus)
def test_r2_only_what_was_executed_made_something_or_has_an_answer_to_keep(
    name: str, status: OutcomeStatus
) -> None:
    value = {"produced": "a" * 64, "kept": answer_digest(b"sealed")}[name]
    statement = outcome_statement(
        receipt_id=receipt_id(2),
        issuer="holdgate.local/edge-1",
        iat_us=T0,
        node="edge-1",
        of=receipt_id(1),
        status=status,
        http_status=200,
        **{name: value},
    )
    if status is OutcomeStatus.EXECUTED:
        assert verify(sign(statement, RECEIPT_KEY), KEYS).statement[name] == value
        for other in ("", value.upper(), value[:-1], value + "a", "md5:" + "a" * 32):
            with pytest.raises(ReceiptError):
                verify(sign(statement | {name: other}, RECEIPT_KEY), KEYS)
    else:
        with pytest.raises(ReceiptError):
            verify(sign(statement, RECEIPT_KEY), KEYS)


# --- admin receipts ---


def test_an_admin_receipt_verifies_and_is_made_only_of_what_it_may_say() -> None:
    found = verify(sign(coverage_statement(), RECEIPT_KEY), KEYS)
    assert (found.type, found.statement["action"], found.statement["by"]) == ("admin", "coverage", "local")
    for changes in ({"action": "bundle.deleted"}, {"by": "a\nb"}, {"details": {"closed": True}}):
        with pytest.raises(StatementError):
            coverage_statement(**changes)


@pytest.mark.parametrize("name", sorted(coverage_details()))
def test_r2_every_detail_of_a_coverage_has_a_shape(name: str) -> None:
    for wrong in ({}, [], "x" * 2000, -1, None):
        with pytest.raises(StatementError):
            coverage_statement(details=coverage_details(**{name: wrong}))


# --- ids and times ---

_INSTANTS = st.integers(min_value=0, max_value=4_000_000_000_000_000)


@given(_INSTANTS, _INSTANTS, st.binary(min_size=16, max_size=16), st.binary(min_size=16, max_size=16))
def test_ids_of_a_later_microsecond_are_greater(a: int, b: int, x: bytes, y: bytes) -> None:
    first, second = new_receipt_id(a, x), new_receipt_id(b, y)
    if a != b:
        assert (first < second) == (a < b)
    else:
        assert (first == second) == (int.from_bytes(x[:9]) >> 2 == int.from_bytes(y[:9]) >> 2)
    statement = permit_statement(receipt_id=first, replay_of="")
    assert verify(sign(statement, RECEIPT_KEY), KEYS).id == first


def test_an_id_is_a_ulid_whose_time_others_read() -> None:
    alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
    number = 0
    for letter in new_receipt_id(T0 + 123_456, bytes(16))[5:]:
        number = number * 32 + alphabet.index(letter)
    assert number >> 80 == (T0 + 123_456) // 1000
    assert number >> 70 & 1023 == 456


@given(_INSTANTS)
def test_times_go_there_and_back(instant: int) -> None:
    text = format_us(instant)
    assert parse_us(text) == instant
    assert len(text) == 27


def test_a_time_is_rfc_3339_utc() -> None:
    assert format_us(0) == "1970-01-01T00:00:00.000000Z"
    assert format_us(1_700_000_000_000_001) == "2023-11-14T22:13:20.000001Z"


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: sign({"a": 1.5}, RECEIPT_KEY), id="float"),
        pytest.param(lambda: sign({"a": None}, RECEIPT_KEY), id="null"),
        pytest.param(lambda: sign({"a": "\ud800"}, RECEIPT_KEY), id="surrogate"),
    ],
)
def test_a_statement_without_canonical_form_is_not_signed(make: Callable[[], bytes]) -> None:
    with pytest.raises(ReceiptError, match="canonical"):
        make()


def test_a_receipt_is_found_by_its_kid_among_many_keys() -> None:
    both = key_set([OTHER_KEY.public, RECEIPT_KEY.public])
    assert verify(GOOD, both).kid == RECEIPT_KEY.kid
    assert json.loads(unb64url(GOOD.split(b".")[0]))["kid"] == RECEIPT_KEY.kid
