"""coverage.py: how what was observed becomes rows, a receipt, and readiness."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdgate.coverage import (
    Evidence,
    Observed,
    Result,
    Row,
    State,
    details,
    gap,
    is_closed,
    judge,
    report_digest,
)
from holdgate.escape import CELLS, MATRIX, NETWORK, REQUIRED, Judge
from holdgate.statement import check_admin

RUN = "0123456789abcdef" * 2
SILENT = Result(ran=True, error="timeout", connected=False, done=False, answer="", detail="")
REFUSED = "HTTP/1.1 403 x\r\nHoldgate-Decision: SILENCE;reason=unknown_destination\r\n\r\n"
CONNECTED = replace(SILENT, connected=True, error="")
HOST = {name: (State.CLOSED, "fine") for name, cell in CELLS.items() if cell.judge is Judge.HOST}


def observed(**changes: Any) -> Observed:
    """A run in which everything went as it should."""
    facts: dict[str, Any] = {
        "proving": True,
        "planned": frozenset(MATRIX),
        "results": dict.fromkeys(MATRIX, CONNECTED),
        "watched": frozenset(NETWORK),
        "logged": {"control.explicit": "bot"},
        "host": HOST,
        "admin_alive": True,
    }
    return Observed(**(facts | changes))


def rows(required: frozenset[str] = REQUIRED, **changes: Any) -> dict[str, Row]:
    return {row.id: row for row in judge(observed(**changes), required)}


def test_a_run_in_which_nothing_gets_out_is_closed() -> None:
    found = rows()
    assert {found[name].state for name in REQUIRED} == {State.CLOSED}
    assert is_closed(list(found.values()))
    assert found["failure.killed"].state is State.UNPROVEN and not found["failure.killed"].required


@pytest.mark.parametrize("name", [name for name in MATRIX if CELLS[name].judge is Judge.WITNESS])
@pytest.mark.parametrize(
    "says", [SILENT, CONNECTED, replace(SILENT, ran=False), replace(SILENT, error="EPERM"), None]
)
def test_cv1_what_the_witness_saw_is_open_whatever_the_probe_says(name: str, says: Result | None) -> None:
    results = {key: SILENT for key in MATRIX} | ({name: says} if says else {})
    if says is None:
        del results[name]
    found = rows(results=results, seen=frozenset({name}))
    assert (found[name].state, found[name].evidence) == (State.OPEN, Evidence.WITNESS)
    assert not is_closed(list(found.values()))


@given(st.sampled_from(MATRIX), st.sampled_from(["no result", "did not run"]))
def test_cv2_a_probe_that_did_not_run_is_unproven(name: str, how: str) -> None:
    if CELLS[name].judge in (Judge.HOST, Judge.FAILURE):
        return
    results = dict.fromkeys(MATRIX, CONNECTED)
    if how == "no result":
        del results[name]
    else:
        results[name] = replace(CONNECTED, ran=False, detail="broke")
    logged = {} if CELLS[name].judge is Judge.CONTROL else {"control.redirect": "bot"}
    assert rows(results=results, logged=logged)[name].state is State.UNPROVEN


@pytest.mark.parametrize("name", NETWORK)
def test_cv2_a_witness_that_was_not_seen_to_work_closes_nothing(name: str) -> None:
    found = rows(watched=frozenset(NETWORK) - {name})
    assert found[name].state is State.UNPROVEN
    assert not is_closed(list(found.values()))
    # What the agent's own kernel refuses needs no witness.
    refused = rows(watched=frozenset(), results=dict.fromkeys(MATRIX, replace(SILENT, error="EPERM")))
    assert (refused[name].state, refused[name].evidence) == (State.CLOSED, Evidence.KERNEL)


@pytest.mark.parametrize("missing", ["tcp4.80", "tcp4.443"])
def test_cv2_what_goes_through_the_proxy_needs_the_witness_behind_it(missing: str) -> None:
    found = rows(watched=frozenset(NETWORK) - {missing})
    through = [name for name, cell in CELLS.items() if cell.to == "proxy" and cell.judge is Judge.WITNESS]
    assert {found[name].state for name in through} == {State.UNPROVEN}


def test_cv2_a_proxy_that_did_not_accept_is_unproven_where_it_is_the_way() -> None:
    results = dict.fromkeys(MATRIX, CONNECTED) | {"proxy.connect": SILENT, "proxy.admin": SILENT}
    assert rows(results=results)["proxy.connect"].state is State.UNPROVEN
    assert rows(results=results)["proxy.admin"].state is State.UNPROVEN
    elsewhere = rows(results=results, logged={"control.redirect": "bot"})
    assert elsewhere["proxy.connect"].state is State.NOT_APPLICABLE


def test_cv3_without_a_request_in_the_log_nothing_of_the_network_is_closed() -> None:
    found = rows(logged={})
    network = {row.state for name, row in found.items() if CELLS[name].judge in (Judge.WITNESS, Judge.ANSWER)}
    assert network == {State.UNPROVEN}
    assert {found[name].state for name in ("control.explicit", "control.redirect")} == {State.UNPROVEN}
    # Not even what the kernel refuses: a place without any network proves nothing about this gate.
    alone = rows(logged={}, results=dict.fromkeys(MATRIX, replace(SILENT, error="ENETUNREACH")))
    assert alone["tcp4.443"].state is State.UNPROVEN


def answered(text: str) -> dict[str, Result]:
    return dict.fromkeys(MATRIX, replace(CONNECTED, answer=text))


@pytest.mark.parametrize(
    "name", ["metadata.v4", "admin.direct", "proxy.admin", "proxy.self", "proxy.metadata"]
)
def test_an_answer_of_somebody_else_is_open_and_the_gates_refusal_is_closed(name: str) -> None:
    assert rows(results=answered(REFUSED))[name].state is State.CLOSED
    for text in (
        "HTTP/1.1 200 OK\r\n\r\n{}",
        "x",
        "HTTP/1.1 200 OK\r\n\r\n\r\nHoldgate-Decision: SILENCE\r\n\r\n",
    ):
        assert rows(results=answered(text))[name].state is State.OPEN
    permit = REFUSED.replace("SILENCE", "PERMIT")
    assert rows(results=answered(permit))[name].state is State.OPEN


def test_an_admin_api_that_is_down_proves_nothing() -> None:
    assert rows(admin_alive=False)["admin.direct"].state is State.UNPROVEN


@pytest.mark.parametrize("name", [name for name in MATRIX if CELLS[name].judge is Judge.ATTEMPT])
def test_what_worked_is_open(name: str) -> None:
    results = dict.fromkeys(MATRIX, CONNECTED) | {
        name: replace(CONNECTED, done=True, detail="\x1b[31mdid it\n")
    }
    found = rows(results=results)[name]
    assert (found.state, found.reason) == (State.OPEN, "?[31mdid it?")


def test_a_run_that_closed_nothing_is_not_closed() -> None:
    nothing = [replace(row, state=State.NOT_APPLICABLE, required=False) for row in rows().values()]
    assert not is_closed(nothing)
    check_admin("coverage", "local", details(RUN, nothing, netns=1, uid=2))


def test_without_a_witness_silence_is_called_weak_and_a_connection_unknown() -> None:
    facts: dict[str, Any] = {"proving": False, "watched": frozenset(), "logged": {}}
    silent = rows(**facts, results=dict.fromkeys(MATRIX, SILENT))
    assert (silent["tcp4.22"].state, silent["tcp4.22"].evidence) == (State.CLOSED, Evidence.NO_ANSWER)
    connected = rows(**facts)
    assert connected["tcp4.22"].state is State.UNPROVEN
    assert rows(**facts, results=answered(REFUSED))["direct.http"].evidence is Evidence.ANSWER
    assert rows(**facts, results=answered("pong"))["udp4.53"].state is State.OPEN


@given(st.sets(st.sampled_from(MATRIX)), st.sets(st.sampled_from(MATRIX)), st.booleans())
def test_cv5_every_report_has_every_row_once_and_becomes_a_valid_receipt(
    required: set[str], seen: set[str], control: bool
) -> None:
    found = judge(
        observed(seen=frozenset(seen), logged={"control.redirect": ""} if control else {}), required
    )
    assert [row.id for row in found] == list(MATRIX)
    said = details(RUN, found, netns=1, uid=2, agent="bot")
    check_admin("coverage", "local", said)
    assert said["closed"] == is_closed(found)
    assert sorted(name for names in said["rows"].values() for name in names) == sorted(MATRIX)
    assert said["report"] == report_digest(found)
    assert said["closed"] == (not gap((5, said), required, now_us=5, max_age_s=1)) or not required


def covered(**changes: State) -> dict[str, Any]:
    found = [replace(row, state=changes.get(row.id.replace(".", "_"), row.state)) for row in rows().values()]
    return details(RUN, found, netns=1, uid=2)


@pytest.mark.parametrize(
    ("found", "now_us", "text"),
    [
        pytest.param(None, 0, "never proven", id="none at all"),
        pytest.param((10, covered()), 10 + 60_000_000, "", id="up to the last second"),
        pytest.param((10, covered()), 11 + 60_000_000, "older than 60 s", id="too old"),
        pytest.param((10, covered(tcp4_22=State.OPEN)), 10, "not closed: tcp4.22", id="open"),
        pytest.param((10, covered(tcp4_22=State.UNPROVEN)), 10, "not closed: tcp4.22", id="unproven"),
        pytest.param((10, covered(tcp4_22=State.NOT_APPLICABLE)), 10, "", id="not applicable"),
        pytest.param((10, covered(tcp6_22=State.OPEN)), 10, "", id="another row is not asked for"),
    ],
)
def test_cv4_readiness_wants_every_required_row_and_a_fresh_proof(found: Any, now_us: int, text: str) -> None:
    said = gap(found, {"tcp4.22", "udp4.53"}, now_us=now_us, max_age_s=60)
    assert (text in said) if text else said == ""
    assert gap(found, (), now_us=now_us, max_age_s=60) == ""
