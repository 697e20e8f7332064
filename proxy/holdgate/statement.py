"""What a receipt may say: the closed list of fields, their shapes, and what must go with what.

A table per type (name -> shape), then the few rules between fields. Whatever is not listed here is
invalid, so a verifier never skips a field that it does not understand. SPEC.md (Receipt) has the same list
for other verifiers; tests/test_receipt.py tampers with every field.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final

from .errors import HoldgateError, Outcome, Reason
from .keys import KeyDocumentError, PublicKey, unb64url
from .ledger import FINDINGS, Finding, OutcomeStatus
from .shapes import PLANS, Record, Shape, ShapeError, Text, has, is_bool, is_count, is_params, list_of, one_of
from .surface.model import Effect, KeySource

__all__ = [
    "OUTCOME_OF",
    "StatementError",
    "check_admin",
    "check_statement",
    "format_us",
    "parse_us",
]


class StatementError(HoldgateError):
    """A statement that no receipt may make."""


# --- time: RFC 3339 UTC with microseconds, one spelling ---

_EPOCH: Final = datetime(1970, 1, 1)  # noqa: DTZ001  (naive UTC: isoformat then has no offset to cut off)
_MINUTE: Final = re.compile(r"\d{4}-\d\d-\d\dT(?:[01]\d|2[0-3]):[0-5]\d:", re.ASCII).fullmatch


def format_us(epoch_us: int) -> str:
    """The RFC 3339 text of an instant."""
    second, micros = divmod(epoch_us, 1_000_000)
    return f"{_second(second)}.{micros:06d}Z"


@lru_cache(maxsize=64)
def _second(epoch_s: int) -> str:
    return (_EPOCH + timedelta(seconds=epoch_s)).isoformat()


@lru_cache(maxsize=1024)  # a verifier asks, and soon after it whoever asked the verifier
def parse_us(text: str) -> int:
    """The instant that format_us() wrote. Raises ValueError."""
    micros = text[20:26]
    if len(text) != 27 or text[26] != "Z" or not (micros.isascii() and micros.isdigit()):
        raise ValueError(_NO_INSTANT)
    second = _SECONDS.get(text[17:20])
    if second is None:
        raise ValueError(_NO_INSTANT)
    return _parse_minute(text[:17]) + second + int(micros)


_NO_INSTANT: Final = "not an RFC 3339 time in UTC with microseconds"
_SECONDS: Final = {f"{second:02d}.": second * 1_000_000 for second in range(60)}  # in microseconds


@lru_cache(maxsize=64)  # the receipts of one minute come one after the other
def _parse_minute(text: str) -> int:
    """Microseconds at the start of a minute, whose text ends with the colon."""
    if not _MINUTE(text):
        raise ValueError(_NO_INSTANT)
    # Read as UTC: the text has no offset any more.
    delta = datetime.fromisoformat(text + "00+00:00") - datetime(1970, 1, 1, tzinfo=UTC)
    return delta // timedelta(microseconds=1)


# --- shapes ---


def _is_instant(value: Any) -> bool:
    try:
        return isinstance(value, str) and parse_us(value) >= 0
    except ValueError:
        return False


# Names are shown on terminals: no control characters.
_is_text: Final = Text(r"[^\x00-\x1f\x7f]{1,1024}")
_id: Final = Text(r"rcpt_[0-7][0-9A-HJKMNP-TV-Z]{25}")
_sha256: Final = Text(r"sha256:[0-9a-f]{64}")
_digest: Final = Text(r"(?:hmac-)?sha256:[0-9a-f]{64}")
_commitment: Final = Text(r"hmac-sha256:[0-9a-f]{64}")
_kid: Final = Text(r"[A-Za-z0-9_-]{43}")
_token: Final = Text(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}")
_destination: Final = Text(r"[^\s/@\x00-\x1f\x7f]{1,255}:[0-9]{1,5}")
_effect: Final = one_of(*Effect)

_ACTION: Final[Mapping[str, Shape]] = {"surface": _is_text, "operation": _is_text, "effect": _effect}
_REQUEST: Final[Mapping[str, Shape]] = {
    "method": _token,
    "target": _is_text,
    "digest": _digest,
    "wire": _digest,
    "bytes": is_count,
}
_POLICY: Final[Mapping[str, Shape]] = {"digest": _sha256, "revision": is_count, "signed": is_bool}

_COMMON: Final[Mapping[str, Shape]] = {
    "v": lambda value: type(value) is int and value == 1,
    "id": _id,
    "iss": _is_text,
    "iat": _is_instant,
    "node": _is_text,
}
_DECISION: Final[Mapping[str, Shape]] = {
    **_COMMON,
    "type": one_of("decision"),
    "outcome": one_of(*Outcome),
    "reason": one_of(*Reason),
    "agent": Text(r"[^\x00-\x1f\x7f]{0,1024}"),
    "request": Record({}, {**_REQUEST, "commitment": _commitment}),
    "policy": Record({}, _POLICY),
    "engine": _is_text,
}
_DECISION_OPTIONAL: Final[Mapping[str, Shape]] = {
    "rules": list_of(_is_text),
    "actions": list_of(Record({**_ACTION, "params": is_params})),
    "actions_digest": _sha256,
    "count": lambda value: is_count(value) and value >= 2,
    "counts": list_of(Record({**_ACTION, "count": is_count})),
    "destination": _destination,
    "idempotency": Record({"source": one_of(*KeySource), "key_hash": Text("[0-9a-f]{64}")}),
    "input_digest": _digest,
    "exp": _is_instant,
    "approval": _is_text,
    "binds": list_of(_id),
    "budget": list_of(_is_text),
    "replay_of": _id,
    "supersedes": _id,
    "via": _token,
}
_OUTCOME: Final[Mapping[str, Shape]] = {
    **_COMMON,
    "type": one_of("outcome"),
    "of": _id,
    "status": one_of(*OutcomeStatus),
}
_OUTCOME_OPTIONAL: Final[Mapping[str, Shape]] = {
    "http_status": lambda value: type(value) is int and 100 <= value <= 599,
    "produced": Text("[0-9a-f]{64}"),
    "kept": Text("sha256:[0-9a-f]{64}"),
    "found": one_of(*FINDINGS),
    "by": _is_text,
    "note": Text(r"[^\x00-\x1f\x7f]{1,256}"),
}
_RECONCILED_ONLY: Final = frozenset({"found", "by", "note"})
_EXECUTED_ONLY: Final = frozenset({"produced", "kept"})
# What an operator's action may say about itself, by action: a new action is a new row here and in SPEC.md.
_code: Final = Text(r"[a-z0-9_.]{1,48}")
_names: Final = list_of(_code)
_ADMIN_DETAILS: Final[Mapping[str, Shape]] = {
    "coverage": Record(
        {
            "run": Text("[0-9a-f]{32}"),
            "closed": is_bool,
            "rows": Record({}, dict.fromkeys(("closed", "not_applicable", "open", "unproven"), _names)),
            "report": _sha256,
            "netns": is_count,
            "uid": is_count,
        },
        {"required": _names, "agent": _is_text, "rules": _sha256},
    ),
    "key_rotate": Record({"purpose": one_of("receipt", "log"), "old": _kid, "new": _kid, "x": _kid}),
    "key_revoke": Record({"purpose": one_of("receipt", "log"), "kid": _kid, "from_index": is_count}),
    # The newest of these is the node's high-water mark: no lower revision is taken after it.
    "policy_activated": Record(
        {"digest": _sha256, "name": _is_text, "epoch": is_count, "revision": is_count, "trust": is_count},
        {"previous": _sha256},
    ),
    "policy_rejected": Record({"reason": _code, "source": _is_text}, {"digest": _sha256}),
    "trust_adopted": Record({"version": is_count, "epoch": is_count, "digest": _sha256}),
    "shred": Record(
        {"count": is_count},
        {"ids": list_of(_id), "agent": _is_text, "surface": _is_text, "before": _is_instant},
    ),
    "disclose": Record({"of": _id}),
    "retention": Record({"count": is_count, "before": _is_instant}),
}
_ADMIN: Final[Mapping[str, Shape]] = {
    **_COMMON,
    "type": one_of("admin"),
    "action": one_of(*_ADMIN_DETAILS),
    "by": _is_text,
    "details": lambda value: isinstance(value, dict),
}
# type -> the shapes of its fields
_TYPES: Final = {
    kind: Record(required, optional)
    for kind, required, optional in (
        ("decision", _DECISION, _DECISION_OPTIONAL),
        ("outcome", _OUTCOME, _OUTCOME_OPTIONAL),
        ("admin", _ADMIN, {}),
    )
}

# --- rules between fields ---

# Every reason belongs to one outcome; those not named are SILENCE's.
_EXPLICIT: Final = {
    Reason.PERMIT_RULE: Outcome.PERMIT,
    Reason.DENY_RULE: Outcome.DENY,
    Reason.APPROVAL_REJECTED: Outcome.DENY,
    Reason.IDEMPOTENCY_KEY_REUSED: Outcome.DENY,
}
OUTCOME_OF: Final[Mapping[Reason, Outcome]] = MappingProxyType(
    {reason: _EXPLICIT.get(reason, Outcome.SILENCE) for reason in Reason}
)
# Reasons that only a gate that ran can give: its input must be named.
_GATE_RAN: Final = frozenset(
    {Reason.PERMIT_RULE, Reason.DENY_RULE, Reason.NO_RULE_MATCHED, Reason.RULE_ERROR, Reason.APPROVAL_PENDING}
)
_PERMIT_NEEDS: Final = ("exp", "input_digest", "rules")
# Of a permit that a decision door gave for an action, without a request to look at.
_ASKED_NEEDS: Final = ("target", "digest", "bytes")


def check_statement(statement: Any) -> None:
    """Raise StatementError unless this is a statement that Holdgate makes."""
    kind = statement.get("type") if isinstance(statement, dict) else None
    if not isinstance(kind, str) or kind not in _TYPES:
        raise StatementError("not a decision, outcome or admin statement")
    record = _TYPES[kind]
    try:
        plan = record.plan(tuple(statement))
    except ShapeError as error:
        raise StatementError(str(error)) from error
    if not has(plan.accepts, statement):
        raise StatementError(f"the field {record.wrong(statement)} does not have its shape")
    if kind == "decision":
        _check_decision(statement)
    elif kind == "admin":
        check_admin(statement["action"], statement["by"], statement["details"])
    elif statement["of"] == statement["id"]:
        raise StatementError("an outcome cannot be its own")
    elif statement["status"] != OutcomeStatus.RECONCILED and not _RECONCILED_ONLY.isdisjoint(statement):
        raise StatementError("only a reconciled outcome says what was found")
    elif statement["status"] != OutcomeStatus.EXECUTED and not _EXECUTED_ONLY.isdisjoint(statement):
        raise StatementError("only what was executed has produced something, or an answer to keep")


def check_finding(finding: Finding) -> None:
    """Raise StatementError unless an outcome receipt may say this."""
    said = {"found": finding.found.value, "by": finding.by} | ({"note": finding.note} if finding.note else {})
    for name, value in said.items():
        if not has(_OUTCOME_OPTIONAL[name], value):
            raise StatementError(f"{name} is not what a reconciled outcome may say")


def check_admin(action: str, by: str, details: Mapping[str, Any]) -> None:
    """Raise StatementError unless an admin receipt may say this."""
    if action not in _ADMIN_DETAILS or not has(_is_text, by):
        raise StatementError("not an action that has admin receipts, or nobody who did it")
    if not has(_ADMIN_DETAILS[action], details):
        raise StatementError(f"the details are not those of {action}")
    if action == "coverage":
        _check_coverage(details)
    elif action == "key_rotate":
        _check_rotation(details)
    elif action in ("shred", "retention"):
        _check_erasure(details)


def _check_rotation(details: Mapping[str, Any]) -> None:
    try:
        new = PublicKey(raw=unb64url(details["x"].encode()))
    except (ValueError, KeyDocumentError) as error:
        raise StatementError("x is no public key") from error
    if details["new"] != new.kid or details["old"] == new.kid:
        raise StatementError("the new key is not the one that it names, or the old one")


def _check_coverage(details: Mapping[str, Any]) -> None:
    """A summary that says "closed" must follow from its own rows."""
    rows: Mapping[str, list[str]] = details["rows"]
    ids = [name for names in rows.values() for name in names]
    if len(ids) != len(set(ids)) or any(names != sorted(names) for names in rows.values()):
        raise StatementError("a row is there twice, or the rows are not sorted")
    required = details.get("required", [])
    if required != sorted(set(required)) or not set(required) <= set(ids):
        raise StatementError("the required rows are not sorted, or not among the rows")
    settled = {*rows.get("closed", ()), *rows.get("not_applicable", ())}
    if details["closed"] != (bool(rows.get("closed")) and set(required) <= settled):
        raise StatementError("`closed` is not what the rows say")


def _check_erasure(details: Mapping[str, Any]) -> None:
    """What was destroyed is named by ids or by a filter, and it was something."""
    ids = details.get("ids")
    if bool(ids) == bool(details.keys() & {"agent", "surface", "before"}):
        raise StatementError("an erasure names receipts or a filter, and not both")
    if ids is not None and ids != sorted(set(ids)):
        raise StatementError("the ids are not sorted")
    if details["count"] < 1 or (ids is not None and details["count"] > len(ids)):
        raise StatementError("`count` is not a number of receipts that this can have destroyed")


def _check_decision(statement: Mapping[str, Any]) -> None:
    broken = _broken_rule(
        statement["outcome"],
        statement["reason"],
        tuple(statement),
        tuple(statement["request"]),
        tuple(statement["policy"]),
    )
    if broken:
        raise StatementError(broken)
    if statement["id"] in (statement.get("replay_of"), statement.get("supersedes")):
        raise StatementError("a receipt cannot point to itself")
    if "binds" in statement:
        _check_binds(statement)
    if "exp" in statement:  # of a PERMIT, as the rules have it
        if not statement["agent"]:
            raise StatementError("a PERMIT without agent")
        if statement["exp"] <= statement["iat"]:  # one spelling, so text order is time order
            raise StatementError("the permit expired before it was made")


def _check_binds(statement: Mapping[str, Any]) -> None:
    binds = statement["binds"]
    if binds != sorted(set(binds)) or "input_digest" not in statement:
        raise StatementError("binds is not sorted, or nothing was decided")
    if statement["id"] in binds:
        raise StatementError("a receipt cannot be bound to itself")


type _Names = tuple[str, ...]


@lru_cache(maxsize=PLANS)
def _broken_rule(outcome: str, reason: str, names: _Names, request: _Names, policy: _Names) -> str:
    """Which rule between fields is broken that needs no more than their names; "" for none."""
    found, why = Outcome(outcome), Reason(reason)
    if OUTCOME_OF[why] is not found:
        return f"the reason {why} does not go with {found}"
    repeats = why is Reason.DENY_RULE and "replay_of" in names  # a denial that stuck: nobody was asked
    if repeats and "input_digest" in names:
        return "a repeated DENY with an input_digest"
    if why in _GATE_RAN and "input_digest" not in names and not repeats:
        return f"{why} without input_digest"
    if why is Reason.DENY_RULE and "rules" not in names:
        return "deny_rule without rules"
    if ("actions_digest" in names) != ("counts" in names):
        return "actions_digest and counts go together"
    if "actions" in names and "counts" in names:
        return "actions and counts exclude each other"
    if "replay_of" in names and "supersedes" in names:
        return "replay_of and supersedes exclude each other"
    if "count" in names and (found is not Outcome.SILENCE or "input_digest" in names):
        return "count stands for requests that were refused unseen by the gate"
    if found is Outcome.PERMIT:
        return _missing_of_permit(names, request, policy)
    return "only a PERMIT has exp" if "exp" in names else ""


def _missing_of_permit(names: _Names, request: _Names, policy: _Names) -> str:
    missing = [name for name in _PERMIT_NEEDS if name not in names]
    asked = "via" in names and "destination" not in names
    if not asked and "destination" not in names:
        missing.append("destination")
    needed = _ASKED_NEEDS if asked else _REQUEST
    missing += [f"request.{name}" for name in needed if name not in request]
    missing += [f"policy.{name}" for name in _POLICY if name not in policy]
    if "actions" not in names and "counts" not in names:
        missing.append("actions")
    return f"a PERMIT without {', '.join(missing)}" if missing else ""
