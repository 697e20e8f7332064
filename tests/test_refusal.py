"""refusal.py: every vendor shape names the decision and can be read by that vendor's SDK."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import pytest

from holdgate.answer import Answer
from holdgate.errors import REASONS, Outcome, Reason
from holdgate.refusal import SHAPES, Refusal, refuse


def told(reason: Reason = Reason.NO_RULE_MATCHED, **change: object) -> Refusal:
    values: dict[str, object] = {
        "outcome": Outcome.SILENCE,
        "reason": reason,
        "id": "rcpt_01",
        "status": REASONS[reason].status,
        "prior": "",
        "prior_status": 0,
    }
    return Refusal(**(values | change))  # type: ignore[arg-type]


def answer(shape: str, refusal: Refusal, *, head: bool = False) -> Answer:
    return refuse(refusal, shape=shape, receipt_headers=(), retry_headers=(), head=head, close=False)


@pytest.mark.parametrize("shape", SHAPES)
def test_f1_every_shape_names_decision_reason_and_receipt(shape: str) -> None:
    body = answer(shape, told()).body.decode()
    assert "SILENCE" in body and "no_rule_matched" in body and "rcpt_01" in body


@pytest.mark.parametrize("shape", SHAPES)
def test_f2_only_slack_answers_200_and_it_says_not_ok(shape: str) -> None:
    given = answer(shape, told())
    assert (given.status == 200) == (shape == "slack")
    if shape == "slack":
        assert json.loads(given.body)["ok"] is False
        assert answer(shape, told(outcome=Outcome.PERMIT, status=502)).status == 502


@pytest.mark.parametrize("reason", Reason)
def test_f3_retry_after_stands_on_retryable_reasons_only(reason: Reason) -> None:
    names = [name for name, _ in answer("problem", told(reason)).headers]
    assert (b"Retry-After" in names) == REASONS[reason].retryable


@pytest.mark.parametrize("shape", ["aws-xml", "aws-query"])
def test_xml_shapes_are_well_formed_whatever_the_receipt_id(shape: str) -> None:
    assert ET.fromstring(answer(shape, told(id="<&>")).body) is not None  # noqa: S314 - our own output


def test_a_repeat_names_the_first_receipt() -> None:
    body = json.loads(
        answer("problem", told(Reason.ALREADY_EXECUTED, prior="rcpt_00", prior_status=201)).body
    )
    assert (body["first_receipt_id"], body["upstream_status"]) == ("rcpt_00", 201)


def test_head_gets_no_body_but_its_length() -> None:
    given = answer("problem", told(), head=True)
    assert (given.body, given.bodiless) == (b"", True)
    assert given.length


def test_407_asks_for_proxy_credentials() -> None:
    given = answer("slack", told(Reason.UNKNOWN_AGENT, status=407))
    assert (given.status, (b"Proxy-Authenticate", b'Basic realm="holdgate"') in given.headers) == (407, True)
