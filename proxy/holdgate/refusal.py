"""What a refused agent reads: the vendor's own error shape, or RFC 9457 problem+json.

The unmodified SDK must raise its own clean exception, carrying our reason and receipt id, and must not retry
where a retry cannot help. No shape but slack uses a 2xx status (Slack's SDKs retry anything else).
Agents see only the reason's public sentence: no thresholds, no near misses, no other agents' data.

Invariants (tests/test_refusal.py):
  F1  Every shape names decision, reason and receipt id in its body.
  F2  No shape but slack answers 2xx, and slack's body says ok: false.
  F3  Retry-After stands exactly on the retryable reasons.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final
from xml.sax.saxutils import escape

from .answer import Answer
from .errors import REASONS, Outcome, Reason
from .message import Headers

__all__ = ["SHAPES", "Refusal", "refuse"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """One refused request, as far as an agent may know it. `id` is "" when no receipt could be written."""

    outcome: Outcome
    reason: Reason
    id: str
    status: int
    prior: str  # first receipt, for already_executed and the like; "" when none
    prior_status: int

    @property
    def text(self) -> str:
        upstream = f", upstream status {self.prior_status}" if self.prior_status else ""
        first = f" First receipt: {self.prior}{upstream}." if self.prior else ""
        said = f"Holdgate {self.outcome.value} ({self.reason.value}): {REASONS[self.reason].text}"
        return f"{said} Receipt {self.id or 'none'}.{first}"


type _Shape = Callable[[Refusal], tuple[bytes, bytes, Headers]]


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _problem(r: Refusal) -> tuple[bytes, bytes, Headers]:
    body = {
        "type": f"urn:holdgate:reason:{r.reason.value}",
        "title": f"Holdgate {r.outcome.value}",
        "status": r.status,
        "detail": r.text,
        "decision": r.outcome.value,
        "reason": r.reason.value,
        "receipt_id": r.id,
        "retryable": REASONS[r.reason].retryable,
    }
    if r.prior:
        body["first_receipt_id"] = r.prior
    if r.prior_status:
        body["upstream_status"] = r.prior_status
    return b"application/problem+json", _json(body), ()


def _stripe(r: Refusal) -> tuple[bytes, bytes, Headers]:
    kind = "idempotency_error" if r.reason is Reason.IDEMPOTENCY_KEY_REUSED else "invalid_request_error"
    error = {"type": kind, "code": f"holdgate_{r.reason.value}", "message": r.text}
    error |= {"decision": r.outcome.value, "receipt_id": r.id}
    return b"application/json", _json({"error": error}), ((b"Request-Id", r.id.encode() or b"none"),)


def _aws_code(r: Refusal) -> str:
    # AccessDenied* is never retried by SDKs; the throttling name is what they do back off for.
    return "ServiceUnavailable" if REASONS[r.reason].retryable else "AccessDeniedException"


def _aws_json(r: Refusal) -> tuple[bytes, bytes, Headers]:
    code = _aws_code(r)
    body = {"__type": code, "message": r.text, "Message": r.text}
    return (
        b"application/x-amz-json-1.0",
        _json(body),
        ((b"x-amzn-ErrorType", code.encode()), (b"x-amzn-RequestId", r.id.encode() or b"none")),
    )


def _aws_xml(r: Refusal) -> tuple[bytes, bytes, Headers]:
    code = "ServiceUnavailable" if REASONS[r.reason].retryable else "AccessDenied"
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{code}</Code><Message>{escape(r.text)}</Message>"
        f"<RequestId>{escape(r.id)}</RequestId></Error>"
    )
    return b"application/xml", body.encode(), ((b"x-amz-request-id", r.id.encode() or b"none"),)


def _aws_query(r: Refusal) -> tuple[bytes, bytes, Headers]:
    code = "ServiceUnavailable" if REASONS[r.reason].retryable else "AccessDenied"
    body = (
        f"<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>{escape(r.text)}</Message></Error>"
        f"<RequestId>{escape(r.id)}</RequestId></ErrorResponse>"
    )
    return b"text/xml", body.encode(), ()


def _gcp(r: Refusal) -> tuple[bytes, bytes, Headers]:
    details = [
        {
            "reason": r.reason.value,
            "domain": "holdgate",
            "metadata": {"receipt_id": r.id, "decision": r.outcome.value},
        }
    ]
    error = {"code": r.status, "message": r.text, "status": "PERMISSION_DENIED", "errors": details}
    return b"application/json", _json({"error": error}), ()


def _azure(r: Refusal) -> tuple[bytes, bytes, Headers]:
    error = {"code": f"Holdgate_{r.reason.value}", "message": r.text}
    return b"application/json", _json({"error": error}), ((b"x-ms-error-code", error["code"].encode()),)


def _fhir(r: Refusal) -> tuple[bytes, bytes, Headers]:
    issue = {
        "severity": "error",
        "code": "forbidden",
        "details": {"text": r.reason.value},
        "diagnostics": r.text,
    }
    return b"application/fhir+json", _json({"resourceType": "OperationOutcome", "issue": [issue]}), ()


def _kubernetes(r: Refusal) -> tuple[bytes, bytes, Headers]:
    body: dict[str, object] = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
    body |= {"message": r.text, "reason": "Forbidden", "code": r.status}
    return b"application/json", _json(body), ()


def _slack(r: Refusal) -> tuple[bytes, bytes, Headers]:
    body = {"ok": False, "error": f"holdgate_{r.reason.value}", "detail": r.text}
    body |= {"decision": r.outcome.value, "receipt_id": r.id}
    return b"application/json; charset=utf-8", _json(body), ()


def _twilio(r: Refusal) -> tuple[bytes, bytes, Headers]:
    body = {"code": 20003, "message": r.text, "more_info": "", "status": r.status}
    return b"application/json", _json(body), ()


def _sendgrid(r: Refusal) -> tuple[bytes, bytes, Headers]:
    return (
        b"application/json",
        _json({"errors": [{"message": r.text, "field": None, "help": r.reason.value}]}),
        (),
    )


def _github(r: Refusal) -> tuple[bytes, bytes, Headers]:
    return (
        b"application/json",
        _json({"message": r.text, "documentation_url": "", "status": str(r.status)}),
        (),
    )


def _graphql(r: Refusal) -> tuple[bytes, bytes, Headers]:
    extensions = {"code": r.reason.value, "decision": r.outcome.value, "receipt_id": r.id}
    return (
        b"application/json",
        _json({"data": None, "errors": [{"message": r.text, "extensions": extensions}]}),
        (),
    )


def _git(r: Refusal) -> tuple[bytes, bytes, Headers]:
    return b"text/plain; charset=utf-8", r.text.encode() + b"\n", ()


SHAPES: Final = MappingProxyType(
    {
        "problem": _problem,
        "stripe": _stripe,
        "aws-json": _aws_json,
        "aws-xml": _aws_xml,
        "aws-query": _aws_query,
        "gcp": _gcp,
        "azure": _azure,
        "fhir": _fhir,
        "kubernetes": _kubernetes,
        "slack": _slack,
        "twilio": _twilio,
        "sendgrid": _sendgrid,
        "github": _github,
        "graphql": _graphql,
        "git": _git,
    }
)


def refuse(
    refusal: Refusal, *, shape: str, receipt_headers: Headers, retry_headers: Headers, head: bool, close: bool
) -> Answer:
    """The answer to a refused request. `head`: the method was HEAD, so no body follows."""
    content_type, body, extra = SHAPES.get(shape, _problem)(refusal)
    told_by_slack = shape == "slack" and refusal.status != 407 and refusal.outcome is not Outcome.PERMIT
    status = 200 if told_by_slack else refusal.status
    headers = [(b"Content-Type", content_type), (b"Cache-Control", b"no-store"), *extra, *retry_headers]
    if REASONS[refusal.reason].retryable:
        headers.append((b"Retry-After", b"1"))
    if refusal.status == 407:
        headers.append((b"Proxy-Authenticate", b'Basic realm="holdgate"'))
    name = refusal.id or "no-receipt"
    return Answer(
        status=status,
        reason=f"Holdgate {refusal.outcome.value} {name}".encode("ascii"),
        headers=(*headers, *receipt_headers),
        body=b"" if head else body,
        rest=None,
        length=len(body),
        bodiless=head,
        close=close,
    )
