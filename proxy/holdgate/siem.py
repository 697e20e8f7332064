"""Receipts in the words of other people's log systems: one row of the log becomes one line.

    jsonl  {"index", "jws", "receipt"}, complete and verifiable; the others are extracts that name the receipt
    ocsf   OCSF API Activity (class 6003) with the security_control profile
    cef    ArcSight Common Event Format, version 0
    otlp   OpenTelemetry LogsData in OTLP's JSON encoding

Pure. Delivery is at least once (adapters/exporting.py): receivers drop what they have by the receipt's id,
which every form carries.

Invariants (tests/test_siem.py has one test named after each):
  SI1  Every form of every valid receipt is one line, and carries its id, log index and outcome or status.
  SI2  No value can end a field or line of CEF or syslog, or start another one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from . import __version__
from .errors import Outcome
from .statement import parse_us

__all__ = ["FORMATS", "Row", "otlp_request"]

_OCSF_VERSION: Final = "1.3.0"
_API_ACTIVITY: Final = 6003
_OTHER: Final = 99


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One leaf of the log."""

    index: int
    jws: bytes
    statement: Mapping[str, Any]

    @property
    def said(self) -> str:
        """The outcome of a decision, the status of an outcome, the action of an operator."""
        found = self.statement.get("outcome") or self.statement.get("status") or self.statement.get("action")
        return str(found or "")

    @property
    def reason(self) -> str:
        return str(self.statement.get("reason", ""))

    @property
    def action(self) -> Mapping[str, Any]:
        """The first action of a decision; of many, the first of their counts."""
        rows: Sequence[Mapping[str, Any]] = (
            self.statement.get("actions") or self.statement.get("counts") or ()
        )
        return rows[0] if rows else {}

    @property
    def is_refused(self) -> bool:
        return self.statement.get("outcome") in (Outcome.DENY, Outcome.SILENCE)


def _jsonl(row: Row) -> str:
    return _json({"index": row.index, "jws": row.jws.decode("ascii"), "receipt": row.statement})


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


# --- OCSF ---


def _ocsf(row: Row) -> str:
    said, host = row.statement, _destination(row)
    out: dict[str, Any] = {
        "category_uid": _API_ACTIVITY // 1000,
        "class_uid": _API_ACTIVITY,
        "activity_id": _OTHER,
        "type_uid": _API_ACTIVITY * 100 + _OTHER,
        "time": parse_us(said["iat"]) // 1000,
        "severity_id": 2 if row.is_refused else 1,
        "status_id": 2 if row.is_refused else 1,
        "status_detail": row.reason or row.said,
        "metadata": {
            "version": _OCSF_VERSION,
            "uid": said["id"],
            "correlation_uid": said.get("of", said["id"]),
            "log_name": said["iss"],
            "sequence": row.index,
            "profiles": ["security_control"],
            "product": {"name": "Holdgate", "vendor_name": "Holdgate", "version": __version__},
        },
        "actor": {"user": {"uid": said.get("agent", ""), "type_id": 3}},
        "api": {"operation": row.action.get("operation", said["type"]), "service": {"name": host[0]}},
        "src_endpoint": {"name": said["node"]},
        "dst_endpoint": {"hostname": host[0], "port": host[1]},
        "unmapped": {"receipt": said},
    }
    if said["type"] == "decision":
        # 1 Allowed, 2 Denied; 1 Allowed, 2 Blocked
        out |= (
            {"action_id": 2, "disposition_id": 2} if row.is_refused else {"action_id": 1, "disposition_id": 1}
        )
    return _json(out)


def _destination(row: Row) -> tuple[str, int]:
    host, _, port = row.statement.get("destination", "").rpartition(":")
    return host, int(port or 0)


# --- CEF ---


def _cef(row: Row) -> str:
    said, host = row.statement, _destination(row)
    surface = row.action.get("surface", "")
    head = (
        "CEF:0",
        "Holdgate",
        "Holdgate",
        __version__,
        row.reason or row.said,
        f"{said['type']} {row.said} {surface}".rstrip(),
        "5" if row.is_refused else "3",
    )
    fields = {
        "rt": parse_us(said["iat"]) // 1000,
        "externalId": said["id"],
        "act": row.said,
        "reason": row.reason,
        "suser": said.get("agent", ""),
        "dvchost": said["node"],
        "dhost": host[0],
        "dpt": host[1] or "",
        "requestMethod": said.get("request", {}).get("method", ""),
        "cs1Label": "operation",
        "cs1": row.action.get("operation", ""),
        "cs2Label": "log",
        "cs2": said["iss"],
        "cs3Label": "of",
        "cs3": said.get("of", ""),
        "cn1Label": "logIndex",
        "cn1": row.index,
    }
    filled = " ".join(f"{name}={_cef_value(str(value))}" for name, value in fields.items() if value != "")
    return "|".join([head[0], *map(_cef_head, head[1:]), filled])


_CONTROLS: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def _cef_head(text: str) -> str:
    return _CONTROLS.sub(" ", text).replace("\\", "\\\\").replace("|", "\\|")


def _cef_value(text: str) -> str:
    return _CONTROLS.sub(" ", text).replace("\\", "\\\\").replace("=", "\\=")


# --- OTLP ---


def _otlp(row: Row) -> str:
    return otlp_request([row])


def otlp_request(rows: Sequence[Row]) -> str:
    """One LogsData message (opentelemetry-proto, logs/v1) with all `rows`, which are of one node."""
    node = rows[0].statement["node"] if rows else ""
    resource = {"service.name": "holdgate", "service.instance.id": node, "service.version": __version__}
    scope = {"scope": {"name": "holdgate"}, "logRecords": [_log_record(row) for row in rows]}
    return _json(
        {"resourceLogs": [{"resource": {"attributes": _attributes(resource)}, "scopeLogs": [scope]}]}
    )


def _log_record(row: Row) -> dict[str, Any]:
    said = row.statement
    attributes = {
        "holdgate.receipt.id": said["id"],
        "holdgate.receipt.of": said.get("of", ""),
        "holdgate.log.origin": said["iss"],
        "holdgate.log.index": row.index,
        "holdgate.outcome": row.said,
        "holdgate.reason": row.reason,
        "holdgate.agent": said.get("agent", ""),
        "holdgate.surface": row.action.get("surface", ""),
        "holdgate.operation": row.action.get("operation", ""),
        "server.address": _destination(row)[0],
        "server.port": _destination(row)[1] or "",
    }
    nanos = str(parse_us(said["iat"]) * 1000)
    return {
        "timeUnixNano": nanos,
        "observedTimeUnixNano": nanos,
        "severityNumber": 13 if row.is_refused else 9,
        "severityText": "WARN" if row.is_refused else "INFO",
        "eventName": f"holdgate.{said['type']}",
        "body": {"stringValue": row.jws.decode("ascii")},
        "attributes": _attributes(attributes),
    }


def _attributes(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"key": key, "value": {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value}}
        for key, value in values.items()
        if value != ""
    ]


FORMATS: Final[Mapping[str, Callable[[Row], str]]] = {
    "jsonl": _jsonl,
    "ocsf": _ocsf,
    "cef": _cef,
    "otlp": _otlp,
}
