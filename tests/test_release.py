"""release.py: only a recorded PERMIT for exactly this request makes a Release."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from holdgate.digest import wire_digest
from holdgate.errors import BackendError, InputError, Outcome
from holdgate.ledger import Recorded
from holdgate.release import Release
from test_headers import entry
from test_pipeline import REQUEST, recognised

WIRE = wire_digest("POST", b"/v1/refunds", recognised().headers, b"{}", secret_headers=frozenset())


def release(**change: Any) -> Release:
    recorded = Recorded(entry=entry(wire=WIRE), index=0, durable=True)
    values: dict[str, Any] = {
        "recorded": recorded,
        "agent": "bot",
        "request": REQUEST,
        "recognised": recognised(),
        "wire_key": None,
        "expires_us": 1,
    }
    return Release(**(values | change))


def test_d1_a_recorded_permit_makes_a_release() -> None:
    assert release().agent == "bot"


@pytest.mark.parametrize(
    "recorded",
    [
        pytest.param(Recorded(entry=entry(wire=WIRE), index=0, durable=False), id="not durable"),
        pytest.param(
            Recorded(entry=entry(wire=WIRE, outcome=Outcome.DENY), index=0, durable=True), id="deny"
        ),
        pytest.param(
            Recorded(entry=entry(wire=WIRE, outcome=Outcome.SILENCE), index=0, durable=True), id="silence"
        ),
    ],
)
def test_d1_nothing_else_does(recorded: Recorded) -> None:
    with pytest.raises(BackendError):
        release(recorded=recorded)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"request": replace(REQUEST, body=b"[]")}, id="another body"),
        pytest.param({"request": replace(REQUEST, raw_target=b"/v1/payouts")}, id="another target"),
        pytest.param({"request": replace(REQUEST, method="PUT")}, id="another method"),
        pytest.param({"recognised": replace(recognised(), headers=())}, id="other headers"),
        pytest.param({"wire_key": b"k"}, id="another key"),
    ],
)
def test_d2_what_differs_from_the_receipt_is_not_released(change: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        release(**change).verify()
