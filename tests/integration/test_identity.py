"""Who an agent is, end to end: client certificates inside the intercepted TLS, and every way to pretend.

All agents of these tests have one source address: what tells them apart is a certificate or a token.
"""

from __future__ import annotations

import asyncio
import shutil
import ssl
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import pytest

from behind import Bench
from byhand import Answered, Peer, dial, get, post
from client_pki import DAY, NOW, Issued, issue, make_ca, uri
from holdgate.adapters.admin.shapes import decode_jws
from holdgate.adapters.sqlite_reader import SqliteReader
from holdgate.demo.instance import Instance
from holdgate.demo.standins import StandIns

pytestmark = pytest.mark.slow

STRIPE = "api.stripe.com"
CURL = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
SPIFFE = "spiffe://example.org"
CA = make_ca("agents")
MIDDLE = make_ca("middle", CA)


def svid(path: str, ca: Issued = CA, **changes: object) -> Issued:
    return issue(ca, [uri(f"{SPIFFE}/{path}")], **changes)  # type: ignore[arg-type]


@dataclass
class Agents:
    folder: Path

    def context(self, gate: Instance, shown: Issued | None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(gate.state_dir / "ca" / "ca.pem"))
        if shown is not None:
            context.load_cert_chain(*shown.files(self.folder, "shown"))
        return context


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Agents:
    folder = tmp_path_factory.mktemp("certificates")
    CA.files(folder, "agents")
    return Agents(folder)


@pytest.fixture(scope="module")
def gate(vendors: StandIns, agents: Agents, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """Two agents by certificate, two by token, and one by an address that nobody here has."""
    ca = agents.folder / "agents.pem"
    rows = f"""\
  - {{id: refunds, match: {{client_cert: {{ca_file: {ca}, san: "spiffe://example.org/refunds"}}}}}}
  - {{id: reader, match: {{source: [127.0.0.0/8], client_cert: {{ca_file: {ca}, san: "{SPIFFE}/reader"}}}}}}
  - {{id: away, match: {{source: [10.0.0.0/8], client_cert: {{ca_file: {ca}, san: "{SPIFFE}/away"}}}}}}
  - {{id: by-token, match: {{token_sha256: "{sha256(b"one").hexdigest()}"}}}}
  - {{id: by-other, match: {{token_sha256: "{sha256(b"two").hexdigest()}"}}}}
  - {{id: elsewhere, match: {{source: [10.1.2.3/32]}}}}"""
    with Instance(tmp_path_factory.mktemp("gate"), connect_to=vendors.connect_to(), agents=rows) as running:
        yield running


@pytest.fixture(scope="module")
def by_source(
    vendors: StandIns, agents: Agents, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Instance]:
    """127.0.0.1 is an agent without any proof; another one has a certificate."""
    ca = agents.folder / "agents.pem"
    rows = f"""\
  - {{id: local, match: {{source: [127.0.0.1/32]}}}}
  - {{id: away, match: {{source: [10.0.0.0/8], client_cert: {{ca_file: {ca}, san: "{SPIFFE}/away"}}}}}}"""
    folder = tmp_path_factory.mktemp("by-source")
    with Instance(folder, connect_to=vendors.connect_to(), agents=rows) as running:
        yield running


async def opened(gate: Instance, agents: Agents, shown: Issued | None, token: str = "") -> Peer:
    peer = await dial(gate)
    line = f"Proxy-Authorization: Bearer {token}\r\n" if token else ""
    await peer.send(f"CONNECT {STRIPE}:443 HTTP/1.1\r\nHost: {STRIPE}:443\r\n{line}\r\n".encode())
    first, _ = await peer.head()
    assert first.split()[1] == "200", first
    context = agents.context(gate, shown)
    await asyncio.wait_for(peer.writer.start_tls(context, server_hostname=STRIPE), 60)
    return peer


async def balance(
    gate: Instance, agents: Agents, shown: Issued | None, token: str = "", extra: str = ""
) -> Answered:
    peer = await opened(gate, agents, shown, token)
    await peer.send(get("/v1/balance", name=STRIPE, extra=extra))
    answer = await peer.answer()
    peer.cut()
    return answer


def receipt(bench: Bench, answer: Answered) -> dict[str, object]:
    with SqliteReader(bench.gate.state_dir) as reader:
        stored = reader.get(answer.receipt_id)
    assert stored is not None
    return decode_jws(stored.jws)


@pytest.mark.parametrize("name", ["refunds", "reader"])
async def test_the_certificate_names_the_agent_in_the_receipt(
    bench: Bench, agents: Agents, name: str
) -> None:
    for shown in (svid(name), svid(name, MIDDLE)):
        answer = await balance(bench.gate, agents, shown)
        assert answer.status == 200 and answer.decision.startswith("PERMIT;"), answer
        assert receipt(bench, answer)["agent"] == name


BAD = {
    "no certificate": None,
    "another CA of that name": svid("refunds", make_ca("agents")),
    "expired": svid("refunds", start=NOW - 2 * DAY, end=NOW - DAY),
    "not yet valid": svid("refunds", start=NOW + DAY, end=NOW + 2 * DAY),
    "without the CA in between": replace(svid("refunds", MIDDLE), between=()),
    "of nobody": svid("nobody"),
    "right name, wrong source": svid("away"),
    "two names": issue(CA, [uri("spiffe://example.org/refunds"), uri("spiffe://example.org/reader")]),
}


@pytest.mark.parametrize("what", BAD)
async def test_anything_less_is_refused_with_a_receipt_and_nothing_leaves(
    bench: Bench, agents: Agents, what: str, nothing_seen: Callable[[], AbstractContextManager[None]]
) -> None:
    with nothing_seen():
        answer = await balance(bench.gate, agents, BAD[what])
    assert (answer.status, answer.reason) == (403, "unknown_agent")
    assert receipt(bench, answer)["agent"] == ""


@pytest.mark.parametrize("what", [what for what in BAD if BAD[what]])
async def test_a_bad_certificate_never_falls_back_to_address_or_token(
    gate: Instance, by_source: Instance, agents: Agents, what: str,
    nothing_seen: Callable[[], AbstractContextManager[None]],
) -> None:  # fmt: skip
    assert (await balance(by_source, agents, None)).status == 200
    assert (await balance(gate, agents, None, token="one")).status == 200
    with nothing_seen():
        for there, token in ((by_source, ""), (gate, "one")):
            answer = await balance(there, agents, BAD[what], token)
            assert (answer.status, answer.reason) == (403, "unknown_agent"), there


async def test_a_good_certificate_and_the_token_of_another_is_nobody(
    gate: Instance, agents: Agents, nothing_seen: Callable[[], AbstractContextManager[None]]
) -> None:
    with nothing_seen():
        answer = await balance(gate, agents, svid("refunds"), token="one")
    assert (answer.status, answer.reason) == (403, "unknown_agent")


@CURL
def test_curl_with_a_certificate(bench: Bench, agents: Agents) -> None:
    path, key = svid("refunds", MIDDLE).files(agents.folder, "curl")
    words = ("curl", "-sS", "-i", f"https://{STRIPE}/v1/balance", "-H", "Authorization: Bearer sk_1")
    done = bench.run(*words, "--cert", str(path), "--key", str(key))
    assert "HTTP/1.1 200 OK" in done.stdout and "Holdgate-Decision: PERMIT;" in done.stdout, done
    none = bench.run(*words)
    assert "HTTP/1.1 403 Holdgate SILENCE rcpt_" in none.stdout and "unknown_agent" in none.stdout, none


def test_python_clients_with_a_certificate(bench: Bench, agents: Agents) -> None:
    path, key = svid("reader").files(agents.folder, "python")
    said = bench.agent(
        f"""
        import httpx, requests, ssl
        url, headers = "https://{STRIPE}/v1/balance", {{"Authorization": "Bearer sk_1"}}
        pair = ({str(path)!r}, {str(key)!r})
        with requests.Session() as session:  # two connections: no TLS session is resumed
            session.headers["Connection"] = "close"
            for _ in range(2):
                print(session.get(url, headers=headers, cert=pair, timeout=60).status_code)
        context = ssl.create_default_context(cafile={str(bench.gate.state_dir / "ca" / "ca.pem")!r})
        context.load_cert_chain(*pair)
        print(httpx.get(url, headers=headers, verify=context, timeout=60).status_code)
        """
    )
    assert said.split() == ["200", "200", "200"]


async def test_the_certificate_never_reaches_the_upstream(
    bench: Bench, agents: Agents, vendors: StandIns
) -> None:
    assert (await balance(bench.gate, agents, svid("refunds"))).status == 200
    _, _, headers, body = vendors.recorders["stripe"].requests[-1]
    assert "spiffe" not in str(headers).lower() + repr(body)


# --- pretending ---

PRETENDED = [
    "X-Forwarded-For: 10.1.2.3", "x-forwarded-for: 10.1.2.3", "X_Forwarded_For: 10.1.2.3",
    "Forwarded: for=10.1.2.3", "X-Real-IP: 10.1.2.3", "True-Client-IP: 10.1.2.3", "Via: 1.1 elsewhere",
    "X-Forwarded-Client-Cert: URI=spiffe://example.org/refunds", "X-SSL-Client-Verify: SUCCESS",
    "X-Agent-Id: refunds", "Holdgate-Agent: refunds", "HOLDGATE_AGENT: refunds", "From: refunds",
    "Proxy-Authorization: Bearer two", "PROXY-AUTHORIZATION: Bearer two", "Proxy_Authorization: Bearer two",
]  # fmt: skip


@pytest.mark.parametrize("line", PRETENDED)
async def test_a_header_in_the_tunnel_makes_nobody_somebody_else(
    bench: Bench, agents: Agents, line: str, nothing_seen: Callable[[], AbstractContextManager[None]]
) -> None:
    with nothing_seen():
        nobody = await balance(bench.gate, agents, None, extra=f"{line}\r\n")
    assert nobody.status in (400, 403) and receipt(bench, nobody)["agent"] == ""
    known = await balance(bench.gate, agents, None, token="one", extra=f"{line}\r\n")
    assert receipt(bench, known)["agent"] in ("by-token", "")  # or the line is malformed for everybody


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b"PROXY TCP4 10.1.2.3 127.0.0.1 40000 443\r\n", id="version 1"),
        pytest.param(b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x0a\1\2\3\x7f\0\0\1\x9c\x40\1\xbb", id="version 2"),
    ],
)
async def test_a_proxy_protocol_line_changes_no_address(
    bench: Bench, line: bytes, nothing_seen: Callable[[], AbstractContextManager[None]]
) -> None:
    with nothing_seen():
        peer = await dial(bench.gate)
        await peer.send(line + f"GET http://{STRIPE}/v1/balance HTTP/1.1\r\nHost: {STRIPE}\r\n\r\n".encode())
        said = await asyncio.wait_for(peer.reader.read(), 60)
    assert b"200 OK" not in said and b"PERMIT" not in said
    with SqliteReader(bench.gate.state_dir) as reader:
        (newest,) = reader.list(limit=1).receipts
    assert (newest.outcome, newest.agent) == ("SILENCE", "")


# --- one agent never sees another's ---


async def test_one_key_of_two_agents_is_two_actions_with_their_own_receipts_and_connections(
    bench: Bench, agents: Agents, vendors: StandIns
) -> None:
    intent = vendors.stripe.charged(100000)
    body = f"payment_intent={intent}&amount=100".encode()
    request = post("/v1/refunds", body, name=STRIPE, extra="Idempotency-Key: shared\r\n")
    request = request.replace(b"application/json", b"application/x-www-form-urlencoded")
    request = request.replace(b"sk_by_hand", b"sk_of_this_test")  # whose connections are all new
    before = vendors.counts("stripe")
    answers = []
    for shown, token in ((svid("refunds"), ""), (None, "one"), (None, "two")):
        peer = await opened(bench.gate, agents, shown, token)
        await peer.send(request)
        answers.append(await peer.answer())
        peer.cut()
    receipts = [receipt(bench, answer) for answer in answers]
    assert [said["agent"] for said in receipts] == ["refunds", "by-token", "by-other"]
    assert len({answer.receipt_id for answer in answers}) == 3
    # None of them was answered with, or pointed to, what another one had done: three dispatches of their own.
    assert not [said for said in receipts if {"replay_of", "supersedes"} & said.keys()]
    assert [answer.decision.partition(";")[0] for answer in answers] == ["PERMIT"] * 3
    keys = {said["idempotency"]["key_hash"] for said in receipts}  # type: ignore[index]
    assert len(keys) == 3
    seen = vendors.counts("stripe") - before
    assert (seen.requests, seen.connections) == (3, 3)


async def test_a_refusal_tells_one_agent_nothing_of_another(bench: Bench, agents: Agents) -> None:
    first = await balance(bench.gate, agents, None, token="one")
    for path in (f"/receipts/{first.receipt_id}", "/receipts", "/v1/balance"):
        peer = await dial(bench.gate)
        line = "Proxy-Authorization: Bearer two\r\n"
        await peer.send(
            f"GET http://{bench.gate.admin}{path} HTTP/1.1\r\nHost: {bench.gate.admin}\r\n{line}\r\n".encode()
        )
        answer = await peer.answer()
        peer.cut()
        assert answer.status in (400, 403) and answer.decision.startswith("SILENCE;")
        assert first.receipt_id.encode() not in answer.body and b"by-token" not in answer.body
