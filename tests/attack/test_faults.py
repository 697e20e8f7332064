"""Attacks beyond one request: keys, races, deadlines, memory, names, reloads, and what is left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from attack.arena import Agent, Arena, Reply, Response, until
from behind import read_all

FORM = b"application/x-www-form-urlencoded"
HOST = b"Host: web.ok.test\r\n"
SEARCH = b"POST http://web.ok.test/v1/search HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
SECRETS = ("sk_live_0123456789", "cookie-0123456789", "4242424242424242", "query-secret-0123", "badge-token")


def charge(key: bytes, body: bytes, host: bytes = b"web.ok.test") -> bytes:
    head = b"POST http://%b/v1/charges HTTP/1.1\r\nHost: %b\r\nIdempotency-Key: %b\r\n" % (host, host, key)
    typed = head + b"Authorization: Bearer a\r\nContent-Type: %b\r\n" % FORM
    return typed + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


def get(target: bytes, host: bytes = b"web.ok.test", headers: bytes = b"") -> bytes:
    return b"GET http://%b%b HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (host, target, host, headers)


def posted(target: bytes, media: bytes, body: bytes) -> bytes:
    head = b"POST http://web.ok.test%b HTTP/1.1\r\n" % target + HOST + b"Content-Type: %b\r\n" % media
    return head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


def ask_tls(arena: Arena, host: str, target: str) -> Response:
    with arena.agent("tls", host) as agent:
        agent.send(f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        return agent.receive().only


# --- keys -------------------------------------------------------------------------------------------------


def test_dec10_many_at_once_with_one_key_execute_once(arena: Arena) -> None:
    arena.upstream.replies[b"/v1/charges"] = Reply(delay_s=0.1)
    since, mark = arena.size(), arena.upstream.mark()
    with ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(lambda _: arena.ask("plain", charge(b"k-10", b"amount=5")).only, range(30)))
    del arena.upstream.replies[b"/v1/charges"]
    assert len(arena.upstream.since(mark)) == 1
    shared = [answer for answer in answers if answer.status == 200]
    late = [answer for answer in answers if answer.status != 200]  # came after it had ended
    assert shared and len({answer.decision["id"] for answer in shared}) == 1
    assert {answer.decision["reason"] for answer in late} <= {"already_executed"}
    permits = [receipt for receipt, _ in arena.decisions(since) if receipt.statement["outcome"] == "PERMIT"]
    assert len(permits) == 1


def test_dec12_a_key_is_bound_to_its_request(arena: Arena) -> None:
    mark = arena.upstream.mark()
    assert arena.ask("plain", charge(b"k-12", b"amount=5")).only.status == 200
    again = arena.ask("plain", charge(b"k-12", b"amount=5")).only
    assert (again.status, again.decision["reason"]) == (409, "already_executed")
    other = arena.ask("plain", charge(b"k-12", b"amount=6")).only
    assert (other.status, other.decision["outcome"]) == (422, "DENY")
    assert other.decision["reason"] == "idempotency_key_reused"
    spelled = arena.ask("plain", charge(b"k-12", b"%61mount=5")).only
    assert spelled.decision["reason"] == "already_executed", "another spelling is the same request"
    assert len(arena.upstream.since(mark)) == 1


def test_rel06_a_key_moves_nothing_to_another_host(arena: Arena) -> None:
    assert arena.ask("plain", charge(b"k-06", b"amount=5")).only.status == 200
    mark = arena.upstream.mark()
    moved = arena.ask("plain", charge(b"k-06", b"amount=5", b"web.denied.test")).only
    assert moved.decision["outcome"] == "SILENCE" and moved.status == 403
    assert arena.upstream.since(mark) == []


def test_dec18_an_old_permit_is_no_authority(arena: Arena) -> None:
    """A real receipt of a real PERMIT, sent with a request that is denied and with one that is permitted."""
    (jws,) = arena.ask("plain", get(b"/v1/search?q=a")).only.all("holdgate-receipt")
    headers = f"Holdgate-Receipt: {jws}\r\nholdgate-decision: PERMIT\r\n".encode()
    mark = arena.upstream.mark()
    payout = charge(b"k-18", b"amount=5").replace(b"/v1/charges", b"/v1/payouts")
    denied = arena.ask("plain", payout.replace(b"Idempotency-Key", headers + b"Idempotency-Key")).only
    assert denied.decision["outcome"] == "DENY"
    assert arena.upstream.since(mark) == []
    assert arena.ask("plain", get(b"/v1/search?q=a", headers=headers)).only.status == 200
    assert arena.upstream.since(mark) == [b"GET /v1/search?q=a HTTP/1.1\r\nHost: web.ok.test\r\n\r\n"]


# --- names and addresses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "addresses",
    [
        pytest.param([], id="no address"),
        pytest.param(["127.0.0.1"], id="loopback"),
        pytest.param(["169.254.169.254"], id="metadata"),
        pytest.param(["10.0.0.1", "192.168.0.1"], id="private"),
        pytest.param(["0.0.0.0"], id="this host"),
        pytest.param(["100.64.0.1"], id="carrier"),
        pytest.param(["224.0.0.1"], id="multicast"),
    ],
)
def test_net09_a_mapped_name_that_leads_inside(arena: Arena, addresses: list[str]) -> None:
    arena.upstream.addresses["api.drift.test"] = addresses
    since, mark = arena.size(), arena.upstream.mark()
    response = ask_tls(arena, "api.drift.test", "/v1/search?q=a")
    assert response.status in (502, 504)
    assert response.decision["outcome"] == "PERMIT" and response.decision["status"] == "not_sent"
    receipt = arena.check_receipt(since, response)
    assert arena.outcome_of(receipt.id)["status"] == "not_sent"
    assert arena.upstream.since(mark) == []
    assert set(arena.upstream.queries[mark.queries :]) <= {"api.drift.test"}


def test_net07_a_name_is_asked_for_only_after_a_permit(arena: Arena) -> None:
    mark = arena.upstream.mark()
    for host, target in (
        ("api.drift.test", "/v1/nothing"),
        ("a.b.evil.test", "/"),
        ("api.drift.test.evil.test", "/"),
    ):
        assert ask_tls(arena, host, target).decision["outcome"] == "SILENCE"
    assert arena.upstream.queries[mark.queries :] == []


def test_tls19_an_upstream_that_is_somebody_else_gets_no_byte(arena: Arena) -> None:
    response = ask_tls(arena, "api.wrongcert.test", "/v1/search?q=a")
    assert (response.status, response.decision["status"]) == (502, "not_sent")
    assert arena.upstream.tls_received == b""


# --- deadlines and bounds ---------------------------------------------------------------------------------


def test_lim01_bytes_that_drip_do_not_move_the_deadline(arena: Arena) -> None:
    since, mark = arena.size(), arena.upstream.mark()
    with arena.agent("plain") as agent:
        agent.send(b"GET http://web.ok.test/v1/search?q=a HTTP/1.1\r\nHost: web.ok.test\r\nX: ")
        started = time.monotonic()
        while time.monotonic() - started < 5:
            agent.send(b"a")
            if agent._more(time.monotonic() + 0.1) is not None:
                break
        response = agent.receive().only
    assert response.status == 408 and time.monotonic() - started < 3
    arena.check_receipt(since, response)
    assert arena.upstream.since(mark) == []


def test_lim05_held_memory_is_bounded_and_refuses_the_new(arena: Arena) -> None:
    """80 unfinished bodies of 60 kB against limits.held_bytes of 4 MiB."""
    mark = arena.upstream.mark()
    agents = [Agent(arena) for _ in range(80)]
    for agent in agents:
        agent.send(SEARCH + b"Content-Length: 65000\r\n\r\n" + b"a" * 60_000)
    answers = [agent.receive().only for agent in agents]
    for agent in agents:
        agent.sock.close()
    refused = [answer for answer in answers if answer.decision["reason"] == "overloaded"]
    assert {answer.status for answer in answers} == {503, 408} and refused
    assert all(answer.all("retry-after") for answer in refused)
    assert arena.upstream.since(mark) == []
    arena.still_serves("plain")


def test_expect_is_answered_here_and_not_sent_on(arena: Arena) -> None:
    mark = arena.upstream.mark()
    with arena.agent("plain") as agent:
        agent.send(SEARCH + b"Expect: 100-continue\r\nContent-Length: 9\r\n\r\n")
        assert agent.sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert arena.upstream.since(mark) == [], "the body decides"
        agent.send(b'{"q":"a"}')
        assert agent.receive().only.status == 200
    arrived = SEARCH.replace(b"http://web.ok.test", b"") + b'Content-Length: 9\r\n\r\n{"q":"a"}'
    assert arena.upstream.since(mark) == [arrived]


def test_an_agent_that_leaves_a_held_commit_changes_nothing(arena: Arena) -> None:
    """Sent and reset at once: either nothing was sent on, or exactly the one request."""
    mark = arena.upstream.mark()
    sent = [charge(b"k-gone-%d" % number, b"amount=5") for number in range(20)]
    for data in sent:
        agent = Agent(arena)
        agent.send(data)
        agent.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        agent.sock.close()
    arena.still_serves("plain")
    arrived = arena.upstream.since(mark)[:-1]
    assert len(set(arrived)) == len(arrived)
    possible = {data.replace(b"http://web.ok.test", b"") for data in sent}
    assert all(
        sorted(data.split(b"\r\n")) in [sorted(one.split(b"\r\n")) for one in possible] for data in arrived
    )


# --- the policy in force ----------------------------------------------------------------------------------


def test_dec07_a_reload_is_whole_or_nothing(arena: Arena) -> None:
    policy = arena.gate.folder / "policies" / "reads.yaml"
    before = policy.read_text()
    first = arena.ask("plain", get(b"/v1/search?q=a")).only.decision
    log_at = len(arena.gate.log)
    policy.write_text(before[: len(before) // 2])  # half a file
    os.kill(arena.gate.pid, signal.SIGHUP)
    until(lambda: "reload refused" in arena.gate.log[log_at:])
    assert arena.ask("plain", get(b"/v1/search?q=a")).only.decision["policy"] == first["policy"]
    try:
        policy.write_text(
            before.replace(
                "effect: permit, when: always, unsafe_allow_all: true",
                "effect: deny, when: always, reason: no",
            )
        )
        os.kill(arena.gate.pid, signal.SIGHUP)
        until(lambda: "is active" in arena.gate.log[log_at:])
        mark = arena.upstream.mark()
        second = arena.ask("plain", get(b"/v1/search?q=a")).only.decision
        assert second["outcome"] == "DENY" and second["policy"] != first["policy"]
        assert arena.upstream.since(mark) == []
    finally:
        log_at = len(arena.gate.log)
        policy.write_text(before)
        os.kill(arena.gate.pid, signal.SIGHUP)
        until(lambda: "is active" in arena.gate.log[log_at:])
    assert arena.ask("plain", get(b"/v1/search?q=a")).only.decision["policy"] == first["policy"]


# --- the admin plane, and what is left behind -------------------------------------------------------------


@pytest.mark.parametrize("path", ["/holds/x/approve", "/v1/decide", "/execute", "/receipts", "/reload", "/"])
def test_adm02_a_cross_site_form_does_nothing(arena: Arena, path: str) -> None:
    request = urllib.request.Request(
        f"http://{arena.gate.admin}{path}",
        data=b"a=b",
        headers={"Content-Type": "text/plain", "Origin": "http://evil.test"},
        method="POST",
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=60)  # noqa: S310
    assert refused.value.code in (401, 403, 404, 405)


def test_rcp12_no_secret_is_left_anywhere(arena: Arena) -> None:
    card = b"amount=5&card%5Bnumber%5D=4242424242424242"
    headers = b"Authorization: Bearer sk_live_0123456789\r\nCookie: a=cookie-0123456789\r\n"
    data = charge(b"k-secret", card).replace(b"Authorization: Bearer a\r\n", headers)
    answers = [
        arena.ask("plain", data).only,
        arena.ask("plain", get(b"/v1/search?q=a", headers=headers)).only,
        arena.ask("plain", get(b"/v1/nothing?q=query-secret-0123", headers=headers)).only,
        arena.ask("plain", data.replace(b"amount=5", b"amount=x")).only,
        arena.ask(
            "plain", get(b"/v1/search?q=a", headers=b"Proxy-Authorization: Bearer badge-token\r\n")
        ).only,
    ]
    assert [answer.decision["outcome"] for answer in answers][1:] == [
        "PERMIT",
        "SILENCE",
        "SILENCE",
        "SILENCE",
    ]
    metrics = urllib.request.urlopen(f"http://{arena.gate.admin}/metrics", timeout=60).read()
    files = read_all(arena.gate.state_dir).items()
    kept = [data for path, data in files if path.parent.name not in ("keys", "ca")]
    texts = [metrics, arena.gate.log.encode(), *kept]
    texts += [json.dumps(answer.headers).encode() + answer.body for answer in answers if answer.status != 200]
    for secret in SECRETS:
        assert not [text[:60] for text in texts if secret.encode() in text], secret


def test_idh14_the_log_is_one_clean_line_per_event(arena: Arena) -> None:
    for target in (b"/v1/items/%0a%1b%5b31m", b"/v1/items/%E2%80%AE%22,%22x", b"/<script>", b"/v1/items/%7D"):
        arena.ask("plain", get(target, headers=b'User-Agent: \xe2\x80\xae"}<script>\r\n'))
    keys = [
        "a\\nINFO forged",
        "a\\u001b[31m",
        "\\u202eevil",
        "a\\u2028b",
        "a\\u0085b",
        "\\ud83d\\ude00",
        "a" * 5000,
    ]
    for key in keys:
        for body in (
            f'{{"amount":1,"{key}":1}}',
            f'{{"amount":1,"recipient":{{"{key}":1}}}}',
            f'{{"{key}":1,"{key}":1}}',
        ):
            arena.ask("plain", posted(b"/v1/transfers", b"application/json", body.encode()))
    for part in (
        b'name="a\xe2\x80\xae"',
        b'name="\xc2\x85"',
        b'name="amount"; filename="\x1b"',
        b'name="\t"',
    ):
        body = b"--e\r\nContent-Disposition: form-data; %b\r\n\r\n5\r\n--e--\r\n" % part
        arena.ask("plain", posted(b"/v1/files", b"multipart/form-data; boundary=e", body))
    for field in (b"a%0aINFO=1", b"a%e2%80%ae=1", b"a%1b=1"):
        arena.ask("plain", posted(b"/v1/charges", FORM, b"amount=1&" + field))
    for media in (b"a\xe2\x80\xae/b", b'text/x; a="\xe2\x80\xae"', b"text/plain; charset=\xe2\x80\xae"):
        arena.ask("plain", posted(b"/v1/transfers", media, b"{}"))
    arena.ask("plain", b"GET http://web.ok.test/\x1b[31m\xe2\x80\xae HTTP/1.1\r\nHost: web.ok.test\r\n\r\n")
    with arena.agent("plain") as agent:
        agent.connect("\x1b]0;evil.test:443")
    log = arena.gate.log
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e]", log)
    odd = [
        line for line in log.splitlines() if not re.match(r"[0-9]{4}-[0-9-]+ [0-9:,]+ [A-Z]+ [a-z._]+ ", line)
    ]
    assert odd == []
    assert max(map(len, log.splitlines())) < 2000
    assert "Traceback" not in log


def test_lim17_adm08_labels_are_bounded_and_say_nothing_of_requests(arena: Arena) -> None:
    for number in range(60):
        arena.ask("plain", get(b"/secret-path", b"h%d.evil.test" % number))
    long = "a" * 60
    for number in range(5):
        arena.ask("plain", get(b"/", f"{long}.{long}.{long}.x{number}.test".encode()))
    metrics = urllib.request.urlopen(f"http://{arena.gate.admin}/metrics", timeout=60).read().decode()
    assert "secret-path" not in metrics and "amount" not in metrics
    assert len(re.findall(r"^holdgate_unmapped_total\{", metrics, re.M)) <= 101
    assert re.search(r"^holdgate_barrier_trips_total\{.*\} [1-9]", metrics, re.M) is None


def test_after_everything_the_receipts_still_verify(arena: Arena) -> None:
    receipts = arena.decisions(max(0, arena.size() - 500))
    assert len(receipts) > 100
    assert {receipt.statement["node"] for receipt, _ in receipts} == {"demo"}
