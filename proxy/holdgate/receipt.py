"""Step 6: a decision, or what happened after it, becomes a signed statement; and back, strictly.

    facts -> statement (dict; fields: SPEC.md, Receipt) -> canonical JSON -> JWS compact, Ed25519

`verify` recomputes everything: encoding, canonical form, header, signature, the closed list of
fields, their shapes, and that outcome, reason and fields agree. The shapes are in statement.py.

Invariants (tests/test_receipt.py has one test named after each):
  R1  verify() accepts what sign() made, and nothing that differs from it in any byte.
  R2  A field that is not in the closed list, or a field that the outcome needs and lacks, is invalid.
  R3  Only a PERMIT has `exp`, and only the reason permit_rule goes with PERMIT.
  R4  A receipt is at most 8 KiB; many or large actions become a digest and counts.
  R5  The signature algorithm is the key's, never the header's.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from .digest import framed
from .errors import HoldgateError, Outcome, Reason
from .jcs import SAFE_INT, JcsError, dumps, loads_accepted, loads_sorted, loads_strict
from .keys import KeySet, PublicKey, Signer, b64url, unb64url
from .ledger import Finding, OutcomeStatus
from .statement import StatementError, check_statement, format_us
from .surface.model import Action

__all__ = [
    "MAX_BYTES",
    "TYP",
    "ReceiptError",
    "Verified",
    "actions_digest",
    "admin_statement",
    "answer_digest",
    "decision_statement",
    "input_digest",
    "jws_prefix",
    "new_receipt_id",
    "outcome_statement",
    "read_accepted",
    "read_unsigned",
    "sign",
    "verify",
    "verify_each",
]

TYP: Final = "holdgate-receipt+jws"
MAX_BYTES: Final = 8192
_MAX_ACTIONS: Final = 32
_MAX_ACTIONS_BYTES: Final = 4096  # leaves room for the rest of the statement, base64 and signature
_INPUT: Final = b"holdgate-input-v1"

_CROCKFORD: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS: Final = tuple(a + b for a in _CROCKFORD for b in _CROCKFORD)


class ReceiptError(HoldgateError):
    """Not a valid receipt; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """A receipt that verified: who signed it, and what it says."""

    kid: str
    statement: Mapping[str, Any]

    @property
    def id(self) -> str:
        return str(self.statement["id"])

    @property
    def type(self) -> str:
        return str(self.statement["type"])


def new_receipt_id(now_us: int, nonce16: bytes) -> str:
    """`rcpt_` and a ULID: milliseconds, the microseconds within them, 70 random bits.

    The microseconds make ids of one ledger, whose clock never repeats, ascend strictly.
    """
    millis, micros = divmod(now_us, 1000)
    time = millis << 10 | micros  # 60 bits, in pieces that the interpreter computes with at once
    drawn = int.from_bytes(nonce16[:9]) >> 2
    parts = [_PAIRS[time >> shift & 1023] for shift in (50, 40, 30, 20, 10, 0)]
    parts += [_PAIRS[drawn >> shift & 1023] for shift in (60, 50, 40, 30, 20, 10, 0)]
    return "rcpt_" + "".join(parts)


# --- statements ---


def decision_statement(
    *,
    receipt_id: str,
    issuer: str,
    iat_us: int,
    node: str,
    outcome: Outcome,
    reason: Reason,
    agent: str,  # "" when the caller is not a configured agent
    request: Mapping[str, Any],  # method, target, digest, wire, bytes, commitment: those that are known
    policy: Mapping[str, Any],  # digest, revision, signed: those that are known
    engine: str,
    rules: Sequence[str] = (),
    actions: Sequence[Action] = (),
    destination: str = "",
    idempotency: tuple[str, str] | None = None,  # (source, key hash)
    input_digest: str = "",
    exp_us: int = 0,
    approval: str = "",
    budget: Sequence[str] = (),
    binds: Sequence[str] = (),  # receipts of the PERMITs that made what the actions are about
    replay_of: str = "",
    supersedes: str = "",
    via: str = "",
    count: int = 1,  # refusals that this receipt stands for: see floods.py
) -> dict[str, Any]:
    """The statement of a decision. Empty means unknown and is left out: a receipt has no nulls.

    Long because it is the list of SPEC.md, Receipt, field by field in its order.
    """
    out: dict[str, Any] = {
        "v": 1,
        "type": "decision",
        "id": receipt_id,
        "iss": issuer,
        "iat": format_us(iat_us),
        "node": node,
        "outcome": outcome.value,
        "reason": reason.value,
        "agent": agent,
        "request": request,
        "policy": policy,
        "engine": engine,
    }
    if rules:
        out["rules"] = list(rules)
    if actions:
        _put_actions(out, actions)
    if destination:
        out["destination"] = destination
    if idempotency is not None:
        out["idempotency"] = {"source": idempotency[0], "key_hash": idempotency[1]}
    if input_digest:
        out["input_digest"] = input_digest
    if exp_us:
        out["exp"] = format_us(exp_us)
    if approval:
        out["approval"] = approval
    if budget:
        out["budget"] = list(budget)
    if binds:
        out["binds"] = list(binds)
    if replay_of:
        out["replay_of"] = replay_of
    if supersedes:
        out["supersedes"] = supersedes
    if via:
        out["via"] = via
    if count > 1:
        out["count"] = count
    return out


def outcome_statement(
    *,
    receipt_id: str,
    issuer: str,
    iat_us: int,
    node: str,
    of: str,
    status: OutcomeStatus,
    http_status: int,  # 0 when there was none
    finding: Finding | None = None,  # of `reconciled`
    produced: str = "",  # key of the object that its answer named
    kept: str = "",  # answer_digest() of its answer, as it is kept for repeats
) -> dict[str, Any]:
    """The statement of what happened after the PERMIT `of`."""
    out: dict[str, Any] = {
        "v": 1,
        "type": "outcome",
        "id": receipt_id,
        "iss": issuer,
        "iat": format_us(iat_us),
        "node": node,
        "of": of,
        "status": status.value,
    }
    if http_status:
        out["http_status"] = http_status
    if produced:
        out["produced"] = produced
    if kept:
        out["kept"] = kept
    if finding is not None:
        out |= {"found": finding.found.value, "by": finding.by}
        if finding.note:
            out["note"] = finding.note
    return out


def admin_statement(
    *,
    receipt_id: str,
    issuer: str,
    iat_us: int,
    node: str,
    action: str,
    by: str,  # who did it: `local` for a command on this host
    details: Mapping[str, Any],
) -> dict[str, Any]:
    """The statement of something that an operator did or found out. Raises StatementError."""
    out: dict[str, Any] = {
        "v": 1,
        "type": "admin",
        "id": receipt_id,
        "iss": issuer,
        "iat": format_us(iat_us),
        "node": node,
        "action": action,
        "by": by,
        "details": details,
    }
    check_statement(out)
    return out


def _put_actions(out: dict[str, Any], actions: Sequence[Action]) -> None:
    rows = [_action(action) for action in actions[: _MAX_ACTIONS + 1]]
    if len(rows) <= _MAX_ACTIONS and _is_small(rows):
        out["actions"] = rows
        return
    out["actions_digest"] = actions_digest(actions)
    counts = Counter((a.surface, a.operation, a.effect.value) for a in actions)
    out["counts"] = [
        {"surface": surface, "operation": operation, "effect": effect, "count": count}
        for (surface, operation, effect), count in sorted(counts.items())
    ]


def _is_small(rows: Sequence[Mapping[str, Any]]) -> bool:
    # A cheap upper bound first (six bytes is the longest escape): encoding twice would cost as much as
    # the rest of this module.
    bound = sum(300 + sum(6 * len(str(v)) + len(n) + 4 for n, v in row["params"].items()) for row in rows)
    return bound <= _MAX_ACTIONS_BYTES or len(dumps(rows)) <= _MAX_ACTIONS_BYTES


def actions_digest(actions: Sequence[Action]) -> str:
    """`sha256:` over the canonical list that `actions` would have been."""
    return "sha256:" + hashlib.sha256(dumps([_action(action) for action in actions])).hexdigest()


def _action(action: Action) -> dict[str, Any]:
    params: dict[str, Any] = {p.name: _public(p.public) for p in action.params if p.public is not None}
    params.update(action.absent)
    return {
        "surface": action.surface,
        "operation": action.operation,
        "effect": action.effect.value,
        "params": params,
    }


def _public(value: str | int | bool | tuple[str | int, ...]) -> Any:
    # Integers beyond 2^53-1 are read differently by JSON readers, so they travel as decimal strings.
    if isinstance(value, tuple):
        return [_public(item) for item in value]
    if isinstance(value, int) and not -SAFE_INT <= value <= SAFE_INT:
        return str(value)
    return value


def input_digest(inputs: bytes, salt: bytes = b"") -> str:
    """The digest of a recorded decision input, given by its canonical bytes; salted where it was sealed."""
    if salt:
        return "hmac-sha256:" + hmac.digest(salt, framed(_INPUT, [inputs]), "sha256").hex()
    return "sha256:" + hashlib.sha256(inputs).hexdigest()


def answer_digest(data: bytes) -> str:
    """What an outcome says of the answer that is kept with it: the digest of its sealed bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


# --- JWS ---


@lru_cache(maxsize=16)
def jws_prefix(kid: str) -> bytes:
    """What every receipt begins with that this key signed: its header, and the dot."""
    return b64url(dumps({"alg": "EdDSA", "kid": kid, "typ": TYP})) + b"."


def sign(statement: Mapping[str, Any], key: Signer) -> bytes:
    """The receipt of a statement. Raises ReceiptError when it is too large or not canonical."""
    try:
        signed = jws_prefix(key.kid) + b64url(dumps(statement))
    except JcsError as error:
        raise ReceiptError(f"the statement has no canonical form: {error}") from error
    if len(signed) + 87 > MAX_BYTES:  # "." and 86 characters of signature
        raise ReceiptError(f"the receipt would be larger than {MAX_BYTES} bytes")
    return signed + b"." + b64url(key.sign(signed))


def verify(jws: bytes, keys: KeySet) -> Verified:
    """The statement of a valid receipt, everything recomputed. Raises ReceiptError with the reason."""
    (found,) = verify_each((jws,), keys)
    if isinstance(found, ReceiptError):
        raise found
    return found


def verify_each(batch: Sequence[bytes], keys: KeySet) -> list[Verified | ReceiptError]:
    """What verify() says of each."""
    # All are read, then all signatures verified, then all statements checked: in turns the code and tables of
    # one push those of the others out of the core's caches, and an audit takes a fifth longer.
    read = [_read(jws, keys) for jws in batch]
    signed = [each if isinstance(each, ReceiptError) else _signed(*each) for each in read]
    return [each if isinstance(each, ReceiptError) else _checked(*each) for each in signed]


def _read(jws: bytes, keys: KeySet) -> tuple[PublicKey, bytes, bytes, Any] | ReceiptError:
    """Key, signing input, signature and value."""
    parsed = _parsed(jws)
    if isinstance(parsed, ReceiptError):
        return parsed
    key = keys.get(parsed[0])
    if key is None:
        return ReceiptError("signed with a key that is not in the key set")
    return key, *parsed[1:]


def _parsed(jws: bytes) -> tuple[str, bytes, bytes, Any] | ReceiptError:
    """Key id, signing input, signature and value."""
    if len(jws) > MAX_BYTES:
        return ReceiptError(f"larger than {MAX_BYTES} bytes")
    parts = jws.split(b".")
    if len(parts) != 3:
        return ReceiptError("not a compact JWS: it has three parts")
    try:
        kid = _kid_of(parts[0])
        payload, signature = unb64url(parts[1]), unb64url(parts[2])
        value = loads_sorted(payload)  # what check_statement() accepts of these is in the profile
    except ReceiptError as error:
        return error
    except (ValueError, JcsError) as error:
        return ReceiptError(str(error))
    return kid, jws[: len(parts[0]) + 1 + len(parts[1])], signature, value


def _signed(key: PublicKey, message: bytes, signature: bytes, value: Any) -> tuple[str, Any] | ReceiptError:
    """Who said what: the value, now that its signature is verified."""
    if not key.verifies(message, signature):
        return ReceiptError("the signature is wrong")
    return key.kid, value


def _checked(kid: str, value: Any) -> Verified | ReceiptError:
    try:
        check_statement(value)
    except StatementError as error:
        try:
            dumps(value)  # what has no canonical form at all is told so
        except JcsError as why:
            return ReceiptError(str(why))
        return ReceiptError(str(error))
    return Verified(kid=kid, statement=value)


def read_accepted(jws: bytes) -> Verified:
    """What verify() said of a JWS that it accepted in another process. Nothing is verified here."""
    header, payload, _ = jws.split(b".")
    return Verified(kid=_kid_of(header), statement=loads_accepted(unb64url(payload)))


def read_unsigned(jws: bytes) -> Verified | ReceiptError:
    """What a receipt says whose key is not at hand. Its form is checked, its signature is not."""
    read = _parsed(jws)
    return read if isinstance(read, ReceiptError) else _checked(read[0], read[3])


@lru_cache(maxsize=64)  # a log has a handful of headers and a million receipts
def _kid_of(encoded: bytes) -> str:
    """The key that a JWS header names. Raises ReceiptError, ValueError, JcsError."""
    header = loads_strict(unb64url(encoded))
    if not isinstance(header, dict) or header.keys() != {"alg", "kid", "typ"} or header["typ"] != TYP:
        raise ReceiptError("the header is not a receipt's")
    if header["alg"] not in ("EdDSA", "Ed25519"):
        raise ReceiptError("the algorithm is not EdDSA")
    if not isinstance(header["kid"], str):
        raise ReceiptError("the header names no key")
    return header["kid"]
