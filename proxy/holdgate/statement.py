"""What a receipt may say: the closed list of fields, their shapes, and what must go with what.

A table per type (name -> shape), then the few rules between fields. Whatever is not listed here is
invalid, so a verifier never skips a field that it does not understand. The rules are CONTRACT 8's
and 12's; tests/test_receipt.py tampers with every field.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final

from .errors import HoldgateError, Outcome, Reason
from .keys import KeyDocumentError, PublicKey, unb64url
from .ledger import FINDINGS, Finding, OutcomeStatus
from .surface.model import Effect, KeySource

__all__ = [
    "OUTCOME_OF",
    "StatementError",
    "check_admin",
    "check_statement",
    "format_us",
    "parse_us",
]

type _Shape = Callable[[Any], object]


class StatementError(HoldgateError):
    """A statement that no receipt may make."""


# --- time: RFC 3339 UTC with microseconds, one spelling ---

_EPOCH: Final = datetime(1970, 1, 1)  # noqa: DTZ001  (naive UTC: isoformat then has no offset to cut off)
_INSTANT: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\.(\d{6})Z\Z", re.ASCII).match


def format_us(epoch_us: int) -> str:
    """The RFC 3339 text of an instant."""
    second, micros = divmod(epoch_us, 1_000_000)
    return f"{_second(second)}.{micros:06d}Z"


@lru_cache(maxsize=64)
def _second(epoch_s: int) -> str:
    return (_EPOCH + timedelta(seconds=epoch_s)).isoformat()


def parse_us(text: str) -> int:
    """The instant that format_us() wrote. Raises ValueError."""
    found = _INSTANT(text)
    if not found:
        raise ValueError("not an RFC 3339 time in UTC with microseconds")
    return _parse_second(found[1]) * 1_000_000 + int(found[2])


@lru_cache(maxsize=64)  # the receipts of one second come one after the other
def _parse_second(text: str) -> int:
    # Read as UTC: the text has no offset any more.
    delta = datetime.fromisoformat(text + "+00:00") - datetime(1970, 1, 1, tzinfo=UTC)
    return delta // timedelta(seconds=1)


# --- shapes ---


def _matches(pattern: str) -> _Shape:
    match = re.compile(pattern + r"\Z").match
    return lambda value: isinstance(value, str) and match(value)


# Names are shown on terminals: no control characters.
_is_text: Final = _matches(r"[^\x00-\x1f\x7f]{1,1024}")


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_instant(value: Any) -> bool:
    try:
        return isinstance(value, str) and parse_us(value) >= 0
    except ValueError:
        return False


def _one_of(*values: str) -> _Shape:
    allowed = frozenset(values)
    return lambda value: isinstance(value, str) and value in allowed


def _list_of(shape: _Shape) -> _Shape:
    return lambda value: isinstance(value, list) and value and all(map(shape, value))


def _record(required: Mapping[str, _Shape], optional: Mapping[str, _Shape] | None = None) -> _Shape:
    shapes = {**required, **(optional or {})}

    def shape(value: Any) -> bool:
        if not isinstance(value, dict) or not value.keys() >= required.keys():
            return False
        for name, item in value.items():
            if name not in shapes or not shapes[name](item):
                return False
        return True

    return shape


def _is_params(value: Any) -> bool:
    # Names and nesting are already those of canonical JSON; here only: scalars and flat lists.
    if not isinstance(value, dict):
        return False
    flat = [item for v in value.values() for item in (v if isinstance(v, list) else (v,))]
    return all(isinstance(item, str | int) for item in flat)


_id: Final = _matches(r"rcpt_[0-7][0-9A-HJKMNP-TV-Z]{25}")
_sha256: Final = _matches(r"sha256:[0-9a-f]{64}")
_digest: Final = _matches(r"(?:hmac-)?sha256:[0-9a-f]{64}")
_commitment: Final = _matches(r"hmac-sha256:[0-9a-f]{64}")
_kid: Final = _matches(r"[A-Za-z0-9_-]{43}")
_token: Final = _matches(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}")
_destination: Final = _matches(r"[^\s/@]{1,255}:[0-9]{1,5}")
_effect: Final = _one_of(*Effect)

_ACTION: Final = {"surface": _is_text, "operation": _is_text, "effect": _effect}
_REQUEST: Final[Mapping[str, _Shape]] = {
    "method": _token,
    "target": _is_text,
    "digest": _digest,
    "wire": _digest,
    "bytes": _is_count,
}
_POLICY: Final[Mapping[str, _Shape]] = {"digest": _sha256, "revision": _is_count, "signed": _is_bool}

_COMMON: Final[Mapping[str, _Shape]] = {
    "v": lambda value: type(value) is int and value == 1,
    "id": _id,
    "iss": _is_text,
    "iat": _is_instant,
    "node": _is_text,
}
_DECISION: Final[Mapping[str, _Shape]] = {
    **_COMMON,
    "type": _one_of("decision"),
    "outcome": _one_of(*Outcome),
    "reason": _one_of(*Reason),
    "agent": lambda value: value == "" or _is_text(value),
    "request": _record({}, {**_REQUEST, "commitment": _commitment}),
    "policy": _record({}, _POLICY),
    "engine": _is_text,
}
_DECISION_OPTIONAL: Final[Mapping[str, _Shape]] = {
    "rules": _list_of(_is_text),
    "actions": _list_of(_record({**_ACTION, "params": _is_params})),
    "actions_digest": _sha256,
    "count": lambda value: type(value) is int and value >= 2,
    "counts": _list_of(_record({**_ACTION, "count": _is_count})),
    "destination": _destination,
    "idempotency": _record({"source": _one_of(*KeySource), "key_hash": _matches("[0-9a-f]{64}")}),
    "input_digest": _digest,
    "exp": _is_instant,
    "approval": _is_text,
    "binds": _list_of(_id),
    "budget": _list_of(_is_text),
    "replay_of": _id,
    "supersedes": _id,
    "via": _token,
}
_OUTCOME: Final[Mapping[str, _Shape]] = {
    **_COMMON,
    "type": _one_of("outcome"),
    "of": _id,
    "status": _one_of(*OutcomeStatus),
}
_OUTCOME_OPTIONAL: Final[Mapping[str, _Shape]] = {
    "http_status": lambda value: type(value) is int and 100 <= value <= 599,
    "produced": _matches("[0-9a-f]{64}"),
    "found": _one_of(*FINDINGS),
    "by": _is_text,
    "note": lambda value: _is_text(value) and len(value) <= 256,
}
_RECONCILED_ONLY: Final = frozenset({"found", "by", "note"})
# What an operator's action may say about itself, by action: a new action is a new row here and in SPEC.md.
_code: Final = _matches(r"[a-z0-9_.]{1,48}")
_names: Final = _list_of(_code)
_ADMIN_DETAILS: Final[Mapping[str, _Shape]] = {
    "coverage": _record(
        {
            "run": _matches("[0-9a-f]{32}"),
            "closed": _is_bool,
            "rows": _record({}, dict.fromkeys(("closed", "not_applicable", "open", "unproven"), _names)),
            "report": _sha256,
            "netns": _is_count,
            "uid": _is_count,
        },
        {"required": _names, "agent": _is_text, "rules": _sha256},
    ),
    "key_rotate": _record({"purpose": _one_of("receipt", "log"), "old": _kid, "new": _kid, "x": _kid}),
    "key_revoke": _record({"purpose": _one_of("receipt", "log"), "kid": _kid, "from_index": _is_count}),
    # The newest of these is the node's high-water mark: no lower revision is taken after it.
    "policy_activated": _record(
        {"digest": _sha256, "name": _is_text, "epoch": _is_count, "revision": _is_count, "trust": _is_count},
        {"previous": _sha256},
    ),
    "policy_rejected": _record({"reason": _code, "source": _is_text}, {"digest": _sha256}),
    "trust_adopted": _record({"version": _is_count, "epoch": _is_count, "digest": _sha256}),
    "shred": _record(
        {"count": _is_count},
        {"ids": _list_of(_id), "agent": _is_text, "surface": _is_text, "before": _is_instant},
    ),
    "retention": _record({"count": _is_count, "before": _is_instant}),
}
_ADMIN: Final[Mapping[str, _Shape]] = {
    **_COMMON,
    "type": _one_of("admin"),
    "action": _one_of(*_ADMIN_DETAILS),
    "by": _is_text,
    "details": lambda value: isinstance(value, dict),
}
# type -> the fields that must be there, and the shape of every field that may be
_TYPES: Final = {
    kind: (frozenset(required), {**required, **optional})
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
    required, shapes = _TYPES[kind]
    if not statement.keys() >= required:
        missing = min(required - statement.keys())
        raise StatementError(f"the field {missing} is missing")
    for name, value in statement.items():
        shape = shapes.get(name)
        if shape is None:
            raise StatementError(f"the field {name} is not known")
        if not shape(value):
            raise StatementError(f"the field {name} does not have its shape")
    if kind == "decision":
        _check_decision(statement)
    elif kind == "admin":
        check_admin(statement["action"], statement["by"], statement["details"])
    elif statement["of"] == statement["id"]:
        raise StatementError("an outcome cannot be its own")
    elif statement["status"] != OutcomeStatus.RECONCILED and not _RECONCILED_ONLY.isdisjoint(statement):
        raise StatementError("only a reconciled outcome says what was found")
    elif "produced" in statement and statement["status"] != OutcomeStatus.EXECUTED:
        raise StatementError("only what was executed has produced something")


def check_finding(finding: Finding) -> None:
    """Raise StatementError unless an outcome receipt may say this."""
    said = {"found": finding.found.value, "by": finding.by} | ({"note": finding.note} if finding.note else {})
    for name, value in said.items():
        if not _OUTCOME_OPTIONAL[name](value):
            raise StatementError(f"{name} is not what a reconciled outcome may say")


def check_admin(action: str, by: str, details: Mapping[str, Any]) -> None:
    """Raise StatementError unless an admin receipt may say this."""
    if action not in _ADMIN_DETAILS or not _is_text(by):
        raise StatementError("not an action that has admin receipts, or nobody who did it")
    if not _ADMIN_DETAILS[action](details):
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
    outcome, reason = Outcome(statement["outcome"]), Reason(statement["reason"])
    if OUTCOME_OF[reason] is not outcome:
        raise StatementError(f"the reason {reason} does not go with {outcome}")
    repeats = reason is Reason.DENY_RULE and "replay_of" in statement  # a denial that stuck: nobody was asked
    if repeats and "input_digest" in statement:
        raise StatementError("a repeated DENY with an input_digest")
    if reason in _GATE_RAN and "input_digest" not in statement and not repeats:
        raise StatementError(f"{reason} without input_digest")
    if reason is Reason.DENY_RULE and "rules" not in statement:
        raise StatementError("deny_rule without rules")
    if ("actions_digest" in statement) != ("counts" in statement):
        raise StatementError("actions_digest and counts go together")
    if "actions" in statement and "counts" in statement:
        raise StatementError("actions and counts exclude each other")
    if "replay_of" in statement and "supersedes" in statement:
        raise StatementError("replay_of and supersedes exclude each other")
    if "count" in statement and (outcome is not Outcome.SILENCE or "input_digest" in statement):
        raise StatementError("count stands for requests that were refused unseen by the gate")
    binds = statement.get("binds", [])
    if binds != sorted(set(binds)) or (binds and "input_digest" not in statement):
        raise StatementError("binds is not sorted, or nothing was decided")
    if statement["id"] in (statement.get("replay_of"), statement.get("supersedes"), *binds):
        raise StatementError("a receipt cannot point to itself")
    if outcome is Outcome.PERMIT:
        _check_permit(statement)
    elif "exp" in statement:
        raise StatementError("only a PERMIT has exp")


def _check_permit(statement: Mapping[str, Any]) -> None:
    missing = [name for name in _PERMIT_NEEDS if name not in statement]
    asked = "via" in statement and "destination" not in statement
    if not asked and "destination" not in statement:
        missing.append("destination")
    needed = _ASKED_NEEDS if asked else _REQUEST
    missing += [f"request.{name}" for name in needed if name not in statement["request"]]
    missing += [f"policy.{name}" for name in _POLICY if name not in statement["policy"]]
    if "actions" not in statement and "counts" not in statement:
        missing.append("actions")
    if not statement["agent"]:
        missing.append("agent")
    if missing:
        raise StatementError(f"a PERMIT without {', '.join(missing)}")
    if statement["exp"] <= statement["iat"]:  # one spelling, so text order is time order
        raise StatementError("the permit expired before it was made")
