"""Agents that are known by a proxy token, or not at all: no fallback, no header that names an agent."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from behind import Bench
from byhand import Answered, dial, get, post, tunnel
from holdgate.demo.instance import Instance
from holdgate.demo.standins import StandIns

SECRET = "wonder/land+1="
STRIPE = "api.stripe.com"
CURL = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


def basic(name: str, token: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{token}".encode()).decode()


@pytest.fixture(scope="module")
def gate(vendors: StandIns, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """127.0.0.1 is `by-source`; `by-token` has a token; `elsewhere` is what the map of sources also holds."""
    digest = hashlib.sha256(SECRET.encode()).hexdigest()
    both = hashlib.sha256(b"from-elsewhere").hexdigest()
    agents = f"""\
  - {{id: by-token, match: {{token_sha256: "{digest}"}}}}
  - {{id: by-both, match: {{token_sha256: "{both}", source: [10.0.0.0/8]}}}}
  - {{id: elsewhere, match: {{source: [10.0.0.0/8]}}}}"""
    folder = tmp_path_factory.mktemp("gate")
    with Instance(folder, connect_to=vendors.connect_to(), agents=agents) as running:
        yield running


@pytest.fixture(scope="module")
def by_source(vendors: StandIns, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """The source address alone names the agent, and one other agent has a token."""
    digest = hashlib.sha256(SECRET.encode()).hexdigest()
    agents = f"""\
  - {{id: by-source, match: {{source: [127.0.0.1/32]}}}}
  - {{id: by-token, match: {{token_sha256: "{digest}", source: [10.0.0.0/8]}}}}"""
    folder = tmp_path_factory.mktemp("by-source")
    with Instance(folder, connect_to=vendors.connect_to(), agents=agents) as running:
        yield running


async def balance(gate: Instance, credentials: str | None, *, extra: str = "") -> Answered:
    """A read that every known agent may do."""
    line = "" if credentials is None else f"Proxy-Authorization: {credentials}\r\n"
    agent = await tunnel(gate, STRIPE, extra=line)
    await agent.send(get("/v1/balance", name=STRIPE, extra=extra))
    answer = await agent.answer()
    agent.cut()
    return answer


def receipt(bench: Bench, answer: Answered) -> dict[str, object]:
    shown = bench.holdgate("receipts", "show", answer.receipt_id, "--json")
    assert shown.returncode == 0, shown.stderr
    found = json.loads(shown.stdout)
    return dict(found.get("receipt", found))


@pytest.mark.parametrize(
    "credentials",
    [
        pytest.param(basic("by-token", SECRET), id="basic"),
        pytest.param(f"Bearer {SECRET}", id="bearer"),
        pytest.param(f"bearer {SECRET}", id="a scheme in lower case"),
    ],
)
async def test_the_token_names_the_agent_in_the_receipt(bench: Bench, credentials: str) -> None:
    answer = await balance(bench.gate, credentials)
    assert answer.status == 200 and answer.decision.startswith("PERMIT;")
    assert receipt(bench, answer)["agent"] == "by-token"


WRONG = [
    pytest.param(basic("by-token", "guess"), id="another token"),
    pytest.param("Bearer guess", id="another bearer"),
    pytest.param(basic("by-source", SECRET), id="a token of another name"),
    pytest.param(basic("by-both", "from-elsewhere"), id="right token, wrong source"),
    pytest.param("Basic !!!", id="not base64"),
    pytest.param("Basic " + base64.b64encode(b"nocolon").decode(), id="no colon"),
    pytest.param(basic("by-token", ""), id="no token"),
    pytest.param("Digest username=by-token", id="another scheme"),
    pytest.param("Negotiate AAAA", id="negotiate"),
    pytest.param("x" * 5000, id="too long"),
    pytest.param("", id="empty"),
]


@pytest.mark.parametrize("credentials", WRONG)
async def test_wrong_credentials_are_nobody(
    gate: Instance, credentials: str, nothing_seen: Callable[[], AbstractContextManager[None]]
) -> None:
    with nothing_seen():
        answer = await balance(gate, credentials)
    assert (answer.status, answer.reason) == (403, "unknown_agent") and answer.receipt_id


@pytest.mark.parametrize("credentials", WRONG)
async def test_wrong_credentials_never_fall_back_to_the_source_address(
    by_source: Instance, credentials: str, nothing_seen: Callable[[], AbstractContextManager[None]]
) -> None:
    assert (await balance(by_source, None)).status == 200
    with nothing_seen():
        answer = await balance(by_source, credentials)
    assert (answer.status, answer.reason) == (403, "unknown_agent")


async def test_two_credentials_are_nobody(
    gate: Instance, nothing_seen: Callable[[], AbstractContextManager[None]]
) -> None:
    with nothing_seen():
        both = f"{basic('by-token', SECRET)}\r\nProxy-Authorization: {basic('by-token', SECRET)}"
        answer = await balance(gate, both)
    assert answer.reason == "unknown_agent"


async def test_connect_without_credentials_is_asked_for_them(
    bench: Bench, nothing_seen: Callable[[], AbstractContextManager[None]]
) -> None:
    with nothing_seen():
        agent = await dial(bench.gate)
        await agent.send(f"CONNECT {STRIPE}:443 HTTP/1.1\r\nHost: {STRIPE}:443\r\n\r\n".encode())
        answer = await agent.answer()
        agent.cut()
    assert answer.status == 407
    assert answer.headers["proxy-authenticate"].startswith("Basic realm=")
    assert answer.decision.startswith("SILENCE;") and answer.reason == "unknown_agent"
    assert receipt(bench, answer)["outcome"] == "SILENCE"


async def test_a_client_that_is_asked_may_answer(bench: Bench) -> None:
    """Clients with credentials in the proxy's URL wait for the 407 before they send them."""
    agent = await dial(bench.gate)
    await agent.send(f"CONNECT {STRIPE}:443 HTTP/1.1\r\nHost: {STRIPE}:443\r\n\r\n".encode())
    assert (await agent.answer()).status == 407
    agent.cut()
    assert (await balance(bench.gate, basic("by-token", SECRET))).status == 200


async def test_plain_requests_without_credentials_are_asked_for_them(
    bench: Bench, nothing_seen: Callable[[], AbstractContextManager[None]]
) -> None:
    with nothing_seen():
        agent = await dial(bench.gate)
        await agent.send(f"GET http://{STRIPE}/v1/balance HTTP/1.1\r\nHost: {STRIPE}\r\n\r\n".encode())
        answer = await agent.answer()
        agent.cut()
    assert answer.status == 407 and "proxy-authenticate" in answer.headers
    assert answer.reason == "unknown_agent" and answer.receipt_id


async def test_plain_requests_prove_their_agent_themselves(bench: Bench) -> None:
    agent = await dial(bench.gate)
    line = f"Proxy-Authorization: {basic('by-token', SECRET)}\r\n"
    target = f"GET http://{STRIPE}/v1/balance HTTP/1.1\r\nHost: {STRIPE}\r\n"
    await agent.send(f"{target}{line}\r\n".encode())
    known = await agent.answer()
    assert known.reason == "unknown_destination", "known agent; only the https surface is mapped"
    assert receipt(bench, known)["agent"] == "by-token"
    # Credentials are of a request, not of a connection: the next one has none.
    await agent.send(f"{target}\r\n".encode())
    assert (await agent.answer()).status == 407
    agent.cut()


async def test_a_wrong_token_on_a_plain_request_is_nobody(by_source: Instance) -> None:
    agent = await dial(by_source)
    line = f"Proxy-Authorization: {basic('by-token', 'guess')}\r\n"
    await agent.send(f"GET http://{STRIPE}/v1/balance HTTP/1.1\r\nHost: {STRIPE}\r\n{line}\r\n".encode())
    answer = await agent.answer()
    agent.cut()
    assert (answer.status, answer.reason) == (403, "unknown_agent")


async def test_credentials_inside_the_tunnel_prove_nothing(
    bench: Bench, nothing_seen: Callable[[], AbstractContextManager[None]]
) -> None:
    with nothing_seen():
        answer = await balance(
            bench.gate, "Bearer guess", extra=f"Proxy-Authorization: {basic('by-token', SECRET)}\r\n"
        )
    assert answer.reason == "unknown_agent"


async def test_the_token_and_headers_that_name_an_agent_never_reach_the_upstream(
    bench: Bench, vendors: StandIns
) -> None:
    named = (
        "X-Agent-Id: somebody-else\r\nProxy-Authorization: Bearer inside\r\nProxy-Connection: keep-alive\r\n"
    )
    answer = await balance(bench.gate, basic("by-token", SECRET), extra=named)
    assert answer.status == 200, answer
    assert receipt(bench, answer)["agent"] == "by-token"
    sent = {name.lower(): value for name, value in vendors.recorders["stripe"].requests[-1][2].items()}
    assert not [name for name in sent if name.startswith("proxy-")]
    assert SECRET not in str(sent) and "inside" not in str(sent)
    assert "x-agent-id" not in sent


async def test_a_header_that_names_an_agent_does_not_change_who_it_is(bench: Bench) -> None:
    body = b"payment_intent=pi_1&amount=900000"
    agent = await tunnel(bench.gate, STRIPE, extra=f"Proxy-Authorization: {basic('by-token', SECRET)}\r\n")
    for extra in ("X-Agent-Id: by-both\r\n", "X-Forwarded-For: 10.1.2.3\r\n", "Holdgate-Agent: by-both\r\n"):
        request = post("/v1/refunds", body, name=STRIPE, extra=extra)
        await agent.send(request.replace(b"application/json", b"application/x-www-form-urlencoded"))
        answer = await agent.answer()
        assert answer.status == 403
        assert receipt(bench, answer)["agent"] == "by-token"
    agent.cut()


@CURL
def test_curl_with_credentials_in_the_proxy_variable(bench: Bench) -> None:
    token = SECRET.replace("/", "%2F").replace("+", "%2B").replace("=", "%3D")
    proxy = {name: f"http://by-token:{token}@{bench.gate.proxy}" for name in ("HTTPS_PROXY", "https_proxy")}
    done = bench.run(
        "curl", "-sS", "-i", f"https://{STRIPE}/v1/balance", "-H", "Authorization: Bearer sk_1", env=proxy
    )
    assert "HTTP/1.1 200 OK" in done.stdout, done.stdout + done.stderr
    assert "Holdgate-Decision: PERMIT;" in done.stdout
    wrong = {name: value.replace(token, "guess") for name, value in proxy.items()}
    done = bench.run("curl", "-sS", "-i", f"https://{STRIPE}/v1/balance", env=wrong)
    assert "HTTP/1.1 403 Holdgate SILENCE rcpt_" in done.stdout and "unknown_agent" in done.stdout
    none = bench.run("curl", "-sS", "-i", f"https://{STRIPE}/v1/balance")
    assert none.returncode != 0 and "407" in none.stdout + none.stderr


def test_python_clients_with_credentials_in_the_proxy_variable(bench: Bench) -> None:
    token = SECRET.replace("/", "%2F").replace("+", "%2B").replace("=", "%3D")
    proxy = {name: f"http://by-token:{token}@{bench.gate.proxy}" for name in ("HTTPS_PROXY", "https_proxy")}
    said = bench.agent(
        """
        import httpx, requests, urllib.request
        url, headers = "https://api.stripe.com/v1/balance", {"Authorization": "Bearer sk_1"}
        print(requests.get(url, headers=headers, timeout=60).status_code)
        print(httpx.get(url, headers=headers, timeout=60).status_code)
        print(urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60).status)
        """,
        env=proxy,
    )
    assert said.split() == ["200", "200", "200"]


def test_the_token_is_nowhere_in_the_state_or_the_log(bench: Bench) -> None:
    encoded = base64.b64encode(f"by-token:{SECRET}".encode())
    logs = {file: file.read_bytes() for file in bench.folder.rglob("*.log")}
    for file, data in (logs | bench.state_files()).items():
        assert SECRET.encode() not in data and encoded not in data, file
