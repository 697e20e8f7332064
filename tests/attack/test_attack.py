"""Every case of cases.yaml against a running instance: what the agent reads, the ledger says, and arrived."""

from __future__ import annotations

import time
from typing import Any

import pytest

from attack.arena import OUTSIDE, Agent, Arena, Response, Seen
from attack.cases import TWINS, Case, Expected, load

pytestmark = pytest.mark.slow

HEADERS = "".join(f"X-{number}: a\\r\\n" for number in range(101))


def open_path(arena: Arena, case: Case, places: dict[str, str]) -> Agent:
    if case.path in TWINS.values():
        port = int(case.connect.rpartition(":")[2]) if case.path == "redirected" else 80
        agent = Agent(arena, source=case.source, to=(OUTSIDE, port))
        if case.path == "redirected":
            agent.start_tls(case.sni, verify=False)
        return agent
    agent = Agent(arena, source=case.source)
    if case.path in ("tls", "tunnel"):
        answer = agent.connect(case.bytes_of(case.connect, places).decode())
        if not answer.startswith(b"HTTP/1.1 200 "):
            agent.buffer = answer  # CONNECT itself is refused; nothing more to say
            return agent
    if case.path == "tls":
        agent.start_tls(case.sni, verify=False)
    return agent


def attack(arena: Arena, case: Case, places: dict[str, str]) -> Seen:
    with open_path(arena, case, places) as agent:
        agent.send(case.bytes_of(case.send, places))
        if case.ends:
            agent.end()
        return agent.receive(count=len(case.expected), head=case.head)


def check_answer(response: Response, expected: Expected) -> None:
    told = response.decision
    assert told["outcome"] == expected.outcome, told
    assert expected.reasons & {told["reason"], "*"}, told
    assert expected.statuses & {str(response.status), "*"}, (response.status, told)
    if expected.outcome != "PERMIT":
        assert response.status >= 400
        assert response.all("proxy-status")
        assert (response.status == 503) == bool(response.all("retry-after"))


def named(cases: list[Case]) -> list[Any]:
    return [pytest.param(case, id=f"{case.id} [{case.path}]") for case in cases]


@pytest.mark.parametrize("case", named(load()))
def test_case(arena: Arena, case: Case) -> None:
    try_case(arena, case)


def try_case(arena: Arena, case: Case) -> None:
    places = {
        "HEADERS": HEADERS,
        "admin": arena.gate.admin,
        "admin_port": arena.gate.admin.rpartition(":")[2],
        "proxy": arena.gate.proxy,
    }
    since, mark = arena.size(), arena.upstream.mark()
    seen = attack(arena, case, places)
    arrived = [] if case.upstream is None else [case.bytes_of(case.upstream, places)]

    assert arena.upstream.since(mark) == arrived
    assert len(arena.upstream.queries) == mark.queries, "a name was looked up"
    closed_is_enough = all("closed" in one.statuses or "*" in one.statuses for one in case.expected)
    if not seen.responses:
        assert closed_is_enough and seen.closed, seen
    else:
        assert len(seen.responses) == len(case.expected)
    assert seen.data == b"", "bytes behind the answer"
    for response, expected in zip(seen.responses, case.expected, strict=False):
        check_answer(response, expected)
    check_receipts(arena, case, since, seen)
    follow = arena.still_serves(follow_path(arena, case))
    assert arena.upstream.since(mark) == [*arrived, follow]


def follow_path(arena: Arena, case: Case) -> str:
    """Where the next request goes: mostly without TLS, which is quicker."""
    if case.path in TWINS.values():
        return "redirected" if case.path == "redirected" and arena.turn % 4 == 0 else "redirected plain"
    return "tls" if case.path in ("tls", "tunnel") and arena.turn % 4 == 0 else "plain"


def check_receipts(arena: Arena, case: Case, since: int, seen: Seen) -> None:
    """One verified receipt for each decision, saying what the answer said."""
    found = arena.decisions(since)
    deadline = time.monotonic() + 60
    # Nobody told us when: the connection was closed.
    while len(found) < len(case.expected) and time.monotonic() < deadline:
        found = arena.decisions(since)
    assert [receipt.statement["outcome"] for receipt, _ in found] == [one.outcome for one in case.expected]
    for (receipt, _), expected in zip(found, case.expected, strict=True):
        assert expected.reasons & {receipt.statement["reason"], "*"}
        if case.agent:
            assert receipt.statement["agent"] == case.agent
        assert receipt.statement["agent"] in ("", "attacker" if case.source == "127.0.0.1" else "badged")
    for response, (receipt, jws) in zip(seen.responses, found, strict=False):
        assert response.decision["id"] == receipt.id
        assert response.decision["reason"] == receipt.statement["reason"]
        assert response.all("holdgate-receipt") == [jws.decode()]
