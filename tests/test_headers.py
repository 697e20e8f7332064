"""headers.py: what agents are told, and what upstreams may not tell them."""

from __future__ import annotations

import pytest

from holdgate.errors import Outcome, Reason
from holdgate.headers import Verdicts, decision_headers, upstream_headers, upstream_reason
from holdgate.ledger import Entry

SHOW = Verdicts(node="edge-1", full=True, public_url=None)


def entry(**change: object) -> Entry:
    values: dict[str, object] = {
        "receipt_id": "rcpt_01",
        "outcome": Outcome.PERMIT,
        "reason": Reason.PERMIT_RULE,
        "rule": "p/small",
        "surface": "payments.refund",
        "agent": "bot",
        "policy": "sha256:00",
        "iat_us": 1,
        "wire": "",
        "jws": b"a.b.c",
        "bindings": (),
        "inputs": None,
        "prior": "",
        "prior_status": 0,
    }
    return Entry(**(values | change))  # type: ignore[arg-type]


def show(item: Entry | None, verdicts: Verdicts = SHOW, **options: object) -> dict[bytes, bytes]:
    known: dict[str, object] = {"outcome": Outcome.PERMIT, "reason": Reason.PERMIT_RULE, "sensitive": False}
    return dict(decision_headers(item, verdicts, **(known | options)))  # type: ignore[arg-type]


FORGED = [
    b"Holdgate-Decision", b"holdgate-receipt", b"HOLDGATE_DECISION", b"Holdgate_Anything", b"Proxy-Status",
    b"proxy-anything", b"Alt-Svc", b"Connection", b"Keep-Alive", b"Transfer-Encoding", b"Content-Length",
    b"Upgrade", b"TE", b"Trailer", b"TG-Receipt", b"X-TrigGuard-Receipt",
]  # fmt: skip


@pytest.mark.parametrize("name", FORGED, ids=lambda name: name.decode())
def test_h1_nothing_of_ours_or_of_the_hop_survives(name: bytes) -> None:
    kept = upstream_headers(((b"Content-Type", b"a/b"), (name, b"forged"), (b"X-Other", b"1")))
    assert kept == ((b"Content-Type", b"a/b"), (b"X-Other", b"1"))


def test_h1_headers_that_connection_names_are_removed_too() -> None:
    given = ((b"Connection", b"close, X-Hop"), (b"x-hop", b"1"), (b"Link", b'<x>; rel="describedby"'))
    assert upstream_headers(given) == ()


@pytest.mark.parametrize(
    ("said", "kept"),
    [(b"Not Found", b"Not Found"), (b"", b""), (b"Holdgate DENY rcpt_01", b""), (b"x hOLDGATE x", b"")],
)
def test_h1_a_reason_phrase_does_not_speak_for_us(said: bytes, kept: bytes) -> None:
    assert upstream_reason(said) == kept


def test_h2_every_answer_has_one_decision_header() -> None:
    assert show(entry())[b"Holdgate-Decision"] == (
        b'PERMIT;id="rcpt_01";reason=permit_rule;rule="p/small";surface="payments.refund";policy="sha256:00"'
    )
    silent = show(None, outcome=Outcome.SILENCE, reason=Reason.STORE_UNAVAILABLE)
    assert silent[b"Holdgate-Decision"] == b"SILENCE;reason=store_unavailable"
    assert silent[b"Proxy-Status"] == b"edge-1; error=http_request_denied"
    assert show(entry(), status="unknown")[b"Holdgate-Decision"].endswith(b";status=unknown")


def test_h3_no_name_can_add_a_header_or_leave_its_string() -> None:
    value = show(entry(rule='p/"x"\\\r\nEvil: 1\u202e'))[b"Holdgate-Decision"]
    assert b"\r" not in value and b"\n" not in value
    assert b'rule="p/\\"x\\"\\\\??Evil: 1?"' in value


@pytest.mark.parametrize(
    ("item", "verdicts", "sensitive"),
    [
        pytest.param(entry(), Verdicts(node="n", full=False, public_url=None), False, id="reference only"),
        pytest.param(entry(), SHOW, True, id="sensitive operation"),
        pytest.param(entry(jws=b"a" * 3073), SHOW, False, id="above 3 KiB"),
    ],
)
def test_the_full_receipt_is_left_out(item: Entry, verdicts: Verdicts, sensitive: bool) -> None:
    assert b"Holdgate-Receipt" not in show(item, verdicts, sensitive=sensitive)


def test_a_public_url_gives_a_link() -> None:
    link = show(entry(), Verdicts(node="n", full=True, public_url="https://g.test/"))[b"Link"]
    assert link == b'<https://g.test/receipts/rcpt_01>; rel="describedby"'
