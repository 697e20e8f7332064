"""siem.py: the invariants in its docstring, over every valid vector and over hostile names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from evidence import RECEIPT_KEY, REFUND, permit_statement
from holdgate.receipt import sign
from holdgate.siem import FORMATS, Row, otlp_request

VECTORS = sorted((Path(__file__).parent / "vectors" / "receipts" / "valid").glob("*.json"))


def _row(path: Path) -> Row:
    vector = json.loads(path.read_text())
    return Row(index=7, jws=vector["jws"].encode(), statement=vector["statement"])


def _hostile(text: str) -> Row:
    said = permit_statement(agent=text, rules=(text,), actions=(REFUND,))
    return Row(index=7, jws=sign(permit_statement(), RECEIPT_KEY), statement=said | {"node": "edge-1"})


def fields_of(line: str) -> dict[str, str]:
    """A CEF reader: seven pipes, then name=value up to the next name=."""
    *head, extension = re.split(r"(?<!\\)\|", line, maxsplit=7)
    assert len(head) == 7 and head[0] == "CEF:0"
    parts = re.split(r"(?:^| )([A-Za-z0-9]+)(?<!\\)=", extension)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_si1_every_form_of_a_receipt_is_one_line_with_its_id(path: Path) -> None:
    row = _row(path)
    for name, form in FORMATS.items():
        line = form(row)
        assert "\n" not in line and line.isprintable(), name
        assert row.statement["id"] in line and row.said in line, name
    assert json.loads(FORMATS["jsonl"](row)) == {
        "index": 7,
        "jws": row.jws.decode(),
        "receipt": row.statement,
    }


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_si1_ocsf_says_allowed_only_of_a_permit(path: Path) -> None:
    row = _row(path)
    event = json.loads(FORMATS["ocsf"](row))
    assert (event["class_uid"], event["type_uid"], event["metadata"]["sequence"]) == (6003, 600399, 7)
    allowed = row.statement.get("outcome") == "PERMIT"
    expected = (1, 1) if allowed else (2, 2)
    if row.statement["type"] == "decision":
        assert (event["action_id"], event["disposition_id"]) == expected
        assert event["status_detail"] == row.statement["reason"]
    else:
        assert "action_id" not in event
    assert event["unmapped"]["receipt"] == row.statement


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_si1_cef_is_read_back(path: Path) -> None:
    row = _row(path)
    fields = fields_of(FORMATS["cef"](row))
    assert (fields["externalId"], fields["cn1"], fields["act"]) == (row.statement["id"], "7", row.said)
    assert fields["rt"].isdigit() and len(fields["rt"]) == 13


def test_si1_otlp_is_one_message_for_many_rows() -> None:
    rows = [_row(path) for path in VECTORS]
    (resource,) = json.loads(otlp_request(rows))["resourceLogs"]
    records = resource["scopeLogs"][0]["logRecords"]
    assert [record["body"]["stringValue"] for record in records] == [row.jws.decode() for row in rows]
    for record, row in zip(records, rows, strict=True):
        said = {item["key"]: item["value"] for item in record["attributes"]}
        assert said["holdgate.receipt.id"] == {"stringValue": row.statement["id"]}
        assert said["holdgate.log.index"] == {"intValue": "7"}
        assert record["eventName"] == f"holdgate.{row.statement['type']}"
    assert json.loads(otlp_request([]))["resourceLogs"][0]["scopeLogs"][0]["logRecords"] == []


@pytest.mark.parametrize(
    "text",
    [
        "a|b",
        "a=b",
        "a\\",
        "a\\|",
        "a act=PERMIT",
        "a\u2028CEF:0|x",
        "a\x85b",
        "\u00e4 \u6f22",
        "x|y=z\\ cn1=9",
    ],
)
def test_si2_no_name_ends_a_field_or_a_line(text: str) -> None:
    row = _hostile(text)
    plain: dict[str, Any] = fields_of(FORMATS["cef"](_hostile("plain")))
    line = FORMATS["cef"](row)
    assert len(line.splitlines()) == 1
    fields = fields_of(line)
    assert fields.keys() == plain.keys()
    assert {name: value for name, value in fields.items() if name != "suser"} == {
        name: value for name, value in plain.items() if name != "suser"
    }
    for name in ("jsonl", "ocsf", "otlp"):
        assert len(FORMATS[name](row).splitlines()) == 1
