"""claims.py: what a request claims, and whom a claim binds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from holdgate.agents import Agent
from holdgate.case import Case
from holdgate.claims import NO_CLAIMS, Claims, claims_of
from holdgate.errors import Reason
from holdgate.jcs import dumps_input
from holdgate.ledger import ClaimRow, State
from holdgate.standing import Prepared, Standing
from holdgate.surface.model import Bond, KeySource
from test_pipeline import NATIVE, REQUEST, recognised

SECRET = b"f" * 32
BOND = Bond(object="ok:pi_1", to=("ok.Create",), once=True, blind=False)


def claims(agent: str = "bot", host: str = "api.ok.test", **change: Any) -> Claims:
    known = replace(recognised(key=NATIVE), conflict_keys=("ch_1",), bonds=(BOND,))
    case = Case(
        agent=Agent(id=agent, groups=(), attrs=()),
        request=replace(REQUEST, host=host),
        recognised=replace(known, **change),
        wire="sha256:" + "ee" * 32,
        raw_digest="",
        raw_bytes=2,
        refusal=None,
    )
    return claims_of(case, SECRET)


def surface(name: str) -> dict[str, Any]:
    return {"actions": tuple(replace(action, surface=name) for action in recognised().actions)}


OTHERS = [
    pytest.param(claims(agent="other"), id="agent"),
    pytest.param(claims(host="api.other.test"), id="destination"),
    pytest.param(claims(**surface("payments.payout")), id="surface"),
    pytest.param(claims(principal="acct_2"), id="credential"),
    pytest.param(claims(keys=(replace(NATIVE, source=KeySource.NATURAL),)), id="kind"),
    pytest.param(claims(keys=(replace(NATIVE, value="key-2"),)), id="value"),
]


@pytest.mark.parametrize("other", OTHERS)
def test_cl1_a_key_is_of_its_scope(other: Claims) -> None:
    own = claims()
    assert own.own is not None and other.own is not None
    assert own.own == claims().own
    assert own.own.key != other.own.key


@pytest.mark.parametrize("other", [each for each in OTHERS if each.id != "destination"])
def test_cl2_things_are_claimed_whoever_asks(other: Claims) -> None:
    assert claims().keys[1:] == other.keys[1:]
    assert claims().objects == other.objects


def test_cl2_things_of_another_destination_are_others() -> None:
    assert not {*claims().keys} & {*claims(host="api.other.test").keys}


@pytest.mark.parametrize("maker", ["bot", "other"])
def test_cl3_only_what_is_ones_own_object_stops_one(maker: str) -> None:
    own = claims()
    (key,) = own.objects
    row = ClaimRow(
        key=key,
        state=State.EXECUTED,
        digest=recognised().digest,
        receipt_id="rcpt_1",
        http_status=200,
        expires_us=100,
        provider=False,
        source="once",
    )
    action = {"operation": "ok.Create", "params": {"amount": 1}}
    made = dumps_input({"actions": [action], "agent": {"id": maker}})
    standing = Standing(
        denials={}, prepared={key: Prepared(key=key, receipt_id="rcpt_1", expires_us=100, inputs=made)}
    )
    stake = [key for key, _ in own.at_stake({key: row}, standing, 50)]
    assert (key in stake) == (maker == "bot")
    actions: list[dict[str, Any]] = [{}]
    taken = own.bind(actions, {key: row}, standing, 50, all_needed=False)
    assert ("bound" in actions[0]) == (maker == "bot")
    assert taken == (frozenset([key]) if maker == "bot" else frozenset())


def test_what_is_refused_claims_nothing() -> None:
    case = Case(
        agent=None,
        request=REQUEST,
        recognised=recognised(key=NATIVE),
        wire="",
        raw_digest="",
        raw_bytes=2,
        refusal=Reason.UNKNOWN_AGENT,
    )
    assert claims_of(case, SECRET) is NO_CLAIMS
