"""What an upstream may not do to an agent: forged, broken and hostile answers to a permitted request."""

from __future__ import annotations

import pytest

from attack.arena import Arena
from attack.cases import Forged, load_answers

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("path", ["tls", "plain"])
@pytest.mark.parametrize("forged", [pytest.param(one, id=one.id) for one in load_answers()])
def test_answer(arena: Arena, forged: Forged, path: str) -> None:
    arena.turn += 1
    target = b"/v1/items/%d" % arena.turn
    host = b"web.ok.test" if path == "plain" else b"api.ok.test"
    at = b"http://" + host if path == "plain" else b""
    arena.upstream.replies[target] = forged.reply
    since, mark = arena.size(), arena.upstream.mark()

    ask = b"%b %b%b HTTP/1.1\r\nHost: %b\r\n\r\n"
    method = forged.method.encode()
    with arena.agent(path) as agent:
        agent.send(ask % (method, at, target, host))
        seen = agent.receive(head=method == b"HEAD")

    response = seen.only
    assert str(response.status) in forged.statuses, response
    assert response.decision["outcome"] == "PERMIT"  # exactly one, and ours
    assert seen.data == b""
    if forged.cut:
        assert response.status == 502 or not response.complete, "a cut answer looks whole"
    elif forged.body is not None:
        assert response.body == forged.body.encode()
    for name in forged.without:
        assert response.all(name) == []
    if response.status in (502, 504):
        assert response.decision["status"] == forged.outcome
        assert b"evil" not in response.body
    else:  # some clients print nothing but this phrase
        assert b"Holdgate" not in response.reason
    receipt = arena.check_receipt(since, response)
    assert arena.outcome_of(receipt.id)["status"] == forged.outcome
    arrived = ask % (method, b"", target, host)
    follow = arena.still_serves(path)
    assert arena.upstream.since(mark) == [arrived, follow], "sent again, or something else was sent"
