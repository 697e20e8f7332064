"""Why a request was refused, and whose turn it is to act.

A decision is a value; an exception means that we could not decide. Three families, by who
must act: the operator (`ConfigError`, only at start, exit 2), the sender of the request
(`InputError`, becomes SILENCE) and whoever runs the store, keys or clock (`BackendError`,
becomes SILENCE and an alarm).

Invariants (tests/test_errors.py):
  E1  Every Reason has exactly one row: status, public text, whether a retry can help.
  E2  No row's status is a success or a redirect, and only retryable rows are 503.
  E3  loggable() leaves nothing that a request quoted, but names that are a map's own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

__all__ = [
    "REASONS",
    "BackendError",
    "ConfigError",
    "HoldgateError",
    "InputError",
    "Outcome",
    "Reason",
    "ReasonRow",
    "loggable",
]


class Outcome(StrEnum):
    """What the gate says. No member is falsy and nothing defaults to one."""

    PERMIT = "PERMIT"
    DENY = "DENY"
    SILENCE = "SILENCE"


class Reason(StrEnum):
    """Stable codes (closed list): they stand in receipts, metrics and response headers."""

    PERMIT_RULE = "permit_rule"
    DENY_RULE = "deny_rule"
    NO_RULE_MATCHED = "no_rule_matched"
    RULE_ERROR = "rule_error"
    APPROVAL_PENDING = "approval_pending"
    APPROVAL_REJECTED = "approval_rejected"
    UNKNOWN_DESTINATION = "unknown_destination"
    UNKNOWN_OPERATION = "unknown_operation"
    UNASSIGNED_OPERATION = "unassigned_operation"
    AMBIGUOUS_OPERATION = "ambiguous_operation"
    UNKNOWN_AGENT = "unknown_agent"
    MALFORMED_REQUEST = "malformed_request"
    NON_CANONICAL_PATH = "non_canonical_path"
    UNSUPPORTED_PROTOCOL = "unsupported_protocol"
    UNSUPPORTED_CONTENT = "unsupported_content"
    BAD_BODY = "bad_body"
    DUPLICATE_PARAMETER = "duplicate_parameter"
    UNKNOWN_PARAMETER = "unknown_parameter"
    MISSING_PARAMETER = "missing_parameter"
    PARAMETER_TYPE = "parameter_type"
    TOO_LARGE = "too_large"
    BATCH_REFUSED = "batch_refused"
    IDENTITY_MISMATCH = "identity_mismatch"
    MISSING_IDEMPOTENCY_KEY = "missing_idempotency_key"
    IDEMPOTENCY_KEY_REUSED = "idempotency_key_reused"
    IN_FLIGHT = "in_flight"
    CONFLICT = "conflict"
    ALREADY_EXECUTED = "already_executed"
    OUTCOME_UNKNOWN = "outcome_unknown"
    INPUT_UNAVAILABLE = "input_unavailable"
    POLICY_UNAVAILABLE = "policy_unavailable"
    POLICY_EXPIRED = "policy_expired"
    STORE_UNAVAILABLE = "store_unavailable"
    GATE_TIMEOUT = "gate_timeout"
    OVERLOADED = "overloaded"
    PERMIT_EXPIRED = "permit_expired"
    INTERNAL_ERROR = "internal_error"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasonRow:
    """What an agent is told: HTTP status, one public sentence, and whether to try again."""

    status: int
    text: str
    retryable: bool


def _row(status: int, text: str, retryable: bool = False) -> ReasonRow:
    return ReasonRow(status=status, text=text, retryable=retryable)


# permit_rule has a row only so that the table is total; 500 there would be our own bug.
REASONS: Final = MappingProxyType(
    {
        Reason.PERMIT_RULE: _row(500, "The request was permitted but could not be forwarded."),
        Reason.DENY_RULE: _row(403, "A policy denies this action."),
        Reason.NO_RULE_MATCHED: _row(403, "No policy rule permits this action."),
        Reason.RULE_ERROR: _row(403, "A policy rule could not be evaluated."),
        Reason.APPROVAL_PENDING: _row(403, "This action waits for a human approval."),
        Reason.APPROVAL_REJECTED: _row(403, "A human rejected this action."),
        Reason.UNKNOWN_DESTINATION: _row(403, "This destination is not in any surface map."),
        Reason.UNKNOWN_OPERATION: _row(403, "This operation is not in the surface map."),
        Reason.UNASSIGNED_OPERATION: _row(403, "This operation has no surface assigned."),
        Reason.AMBIGUOUS_OPERATION: _row(403, "This request matches more than one operation."),
        Reason.UNKNOWN_AGENT: _row(403, "The caller is not a configured agent."),
        Reason.MALFORMED_REQUEST: _row(400, "The request is malformed or ambiguous."),
        Reason.NON_CANONICAL_PATH: _row(400, "The path can be read in more than one way."),
        Reason.UNSUPPORTED_PROTOCOL: _row(400, "This protocol is not carried."),
        Reason.UNSUPPORTED_CONTENT: _row(403, "This content type or coding is not accepted."),
        Reason.BAD_BODY: _row(400, "The body does not decode under its content type."),
        Reason.DUPLICATE_PARAMETER: _row(400, "A parameter occurs more than once."),
        Reason.UNKNOWN_PARAMETER: _row(403, "A parameter or header is not in the surface map."),
        Reason.MISSING_PARAMETER: _row(403, "A required parameter is missing."),
        Reason.PARAMETER_TYPE: _row(403, "A parameter does not have its declared type."),
        Reason.TOO_LARGE: _row(413, "The request is larger than allowed here."),
        Reason.BATCH_REFUSED: _row(403, "This batch cannot be taken apart and decided."),
        Reason.IDENTITY_MISMATCH: _row(421, "SNI, Host, CONNECT target and port disagree."),
        Reason.MISSING_IDEMPOTENCY_KEY: _row(403, "This action needs an idempotency key."),
        Reason.IDEMPOTENCY_KEY_REUSED: _row(422, "The idempotency key was used with another request."),
        Reason.IN_FLIGHT: _row(409, "The same action is in flight."),
        Reason.CONFLICT: _row(409, "A conflicting action holds the same claim."),
        Reason.ALREADY_EXECUTED: _row(409, "This action was already executed."),
        Reason.OUTCOME_UNKNOWN: _row(409, "The outcome of this action is not known yet."),
        Reason.INPUT_UNAVAILABLE: _row(403, "An input of the decision is not available."),
        Reason.POLICY_UNAVAILABLE: _row(403, "No policy is active."),
        Reason.POLICY_EXPIRED: _row(403, "The active policy has expired."),
        Reason.STORE_UNAVAILABLE: _row(503, "The decision could not be recorded.", True),
        Reason.GATE_TIMEOUT: _row(503, "The decision was not made in time.", True),
        Reason.OVERLOADED: _row(503, "Too many requests are held.", True),
        Reason.PERMIT_EXPIRED: _row(403, "The permit expired before it was used."),
        Reason.INTERNAL_ERROR: _row(403, "The request could not be decided."),
    }
)


class HoldgateError(Exception):
    """Root of every error that we raise on purpose."""


class ConfigError(HoldgateError):
    """The operator must act: bad configuration, map or policy. Shown as `file:line:column: message`.

    `excerpt`: the line and a caret below it, for people; two lines that follow the message.
    """

    def __init__(
        self, message: str, *, file: str = "", line: int = 0, column: int = 0, excerpt: str = ""
    ) -> None:
        self.message, self.file, self.line, self.column, self.excerpt = message, file, line, column, excerpt
        place = ":".join(str(part) for part in (file, line, column) if part)
        shown = f"{place}: {message}" if file else message
        self.shown = shown  # in one line, and without a word of the file: what logs and receipts may hold
        super().__init__(f"{shown}\n{excerpt}" if excerpt else shown)


class InputError(HoldgateError):
    """The request cannot be decided as it is: SILENCE with `reason`.

    `detail` is for operators (log, explain), never for agents. `status` overrides the
    table's HTTP status where one reason has several (431 and 413 are both too_large, 408
    is a head or body deadline).
    """

    def __init__(self, reason: Reason, detail: str = "", *, status: int | None = None) -> None:
        self.reason, self.detail = reason, detail
        self.status = REASONS[reason].status if status is None else status
        super().__init__(f"{reason}: {detail}" if detail else str(reason))


class BackendError(HoldgateError):
    """Store, key or clock failed: SILENCE with `reason`, and an alarm."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}" if detail else str(reason))


# What repr() made of a text. A parameter or path variable is named by the map; every other name by the agent.
_QUOTED: Final = re.compile(r"""(parameter |variable )?('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")""")


def loggable(detail: str) -> str:
    """A detail without what the request said: an agent may have put a patient where a name belongs.

    `holdgate explain` shows it in full, to whoever has the request.
    """
    return _QUOTED.sub(lambda found: found[0] if found[1] else "'...'", detail)[:300]
