"""adapters/admin/decisions.py: the decision doors over HTTP, asked by other people's clients."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import socket
import subprocess
import threading
import types
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from evidence import RECEIPT_KEY, permit_statement
from holdgate.adapters.admin.decisions import DecisionDoors
from holdgate.adapters.admin.guard import PRESENTED, Problem
from holdgate.adapters.decider import Decided
from holdgate.config import AdminToken
from holdgate.demo.instance import Instance
from holdgate.errors import BackendError, Outcome, Reason
from holdgate.receipt import sign

SECRETS = {"decider": "s-decider", "other": "s-other", "operator": "s-operator"}


def _token(name: str, rest: str) -> str:
    return f"{name}: {{sha256: {hashlib.sha256(SECRETS[name].encode()).hexdigest()}, {rest}}}"


TOKENS = ", ".join(
    [
        _token("decider", "roles: [decider], agents: [demo-agent]"),
        _token("other", "roles: [decider], agents: [second, third]"),
        _token("operator", "roles: [operator]"),
    ]
)
AGENTS = """\
  - {id: demo-agent, match: {source: [127.0.0.1/32]}}
  - {id: second, match: {source: [127.0.0.2/32]}}
  - {id: third, match: {source: [127.0.0.3/32]}}"""


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        vendor = f"127.0.0.1:{listener.getsockname()[1]}"
        gate = Instance(
            tmp_path_factory.mktemp("gate"), connect_to={"api.stripe.com:443": vendor}, agents=AGENTS
        )
        text = gate.config.read_text()
        line = f"open: [metrics, checkpoint], public_url: https://gate.example.com, tokens: {{{TOKENS}}}"
        gate.config.write_text(text.replace("open: [metrics, checkpoint]", line))
        with gate:
            yield gate
        with pytest.raises(BlockingIOError):  # whatever was asked, nobody was called
            listener.accept()


def ask(
    gate: Instance,
    path: str,
    body: Any,
    *,
    token: str = "decider",  # noqa: S107
    method: str = "POST",
    **headers: str,
) -> tuple[int, dict[str, Any], Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {"Content-Type": "application/json", **{name.replace("_", "-"): v for name, v in headers.items()}}
    if token:
        sent["Authorization"] = f"Bearer {SECRETS.get(token, token)}"
    request = urllib.request.Request(f"http://{gate.admin}{path}", data=data, headers=sent, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            return answer.status, json.load(answer), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, json.load(error), error.headers


def named(amount: int = 500, **more: Any) -> dict[str, Any]:
    action = {"surface": "payments.refund", "operation": "stripe.PostRefunds"}
    return {"action": {**action, "params": {"amount": amount, "reference": "pi_1"}}, **more}


def verify(gate: Instance, jws: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        gate.command("verify", jws, *words), capture_output=True, text=True, timeout=60, check=False
    )


def test_a_named_action_is_decided_and_its_receipt_verifies(gate: Instance) -> None:
    status, told, _ = ask(gate, "/v1/decide", named())
    assert (status, told["decision"], told["reason"]) == (200, "PERMIT", "permit_rule")
    assert verify(gate, told["receipt"]).returncode == 0
    done = verify(gate, told["receipt"], "--require-permit")
    assert done.returncode == 1 and "over an API" in done.stdout + done.stderr


def test_a_whole_request_is_read_as_the_proxy_reads_it(gate: Instance) -> None:
    body = b"amount=200000&payment_intent=pi_1"
    request = {
        "method": "POST",
        "url": "https://api.stripe.com/v1/refunds",
        "headers": [
            ["Authorization", "Bearer sk_test_1"],
            ["Content-Type", "application/x-www-form-urlencoded"],
        ],
        "body_base64": base64.b64encode(body).decode(),
    }
    status, told, _ = ask(gate, "/v1/decide", {"agent": "demo-agent", "request": request})
    assert (status, told["decision"], told["rules"]) == (200, "DENY", ["stripe-refunds/too-large"])
    request["url"] = "https://evil.test/v1/refunds"
    assert ask(gate, "/v1/decide", {"request": request})[1]["reason"] == "unknown_destination"


def test_trigguards_own_client_is_answered(gate: Instance) -> None:
    trigguard = pytest.importorskip("trigguard")
    client = trigguard.client.Client(api_key=SECRETS["decider"], base_url=f"http://{gate.admin}")
    context = {"action": "stripe.PostRefunds", "reference": "pi_1", "idempotencyKey": "tg-1"}
    told = client.execute(surface="payments.refund", signals={"amount": 500}, context=context)
    assert told["decision"] == "PERMIT" and told["surface"] == "payments.refund"
    again = client.execute(surface="payments.refund", signals={"amount": 500}, context=context)
    assert again["execution_id"] == told["execution_id"]
    assert trigguard.verify.verify_receipt_offline(told["receipt"], f"http://{gate.admin}")
    context["idempotencyKey"] = "tg-2"
    with pytest.raises(trigguard.errors.TrigGuardError) as caught:
        client.execute(surface="payments.refund", signals={"amount": 200_000}, context=context)
    assert caught.value.status == 403 and caught.value.body["decision"] == "DENY"


class _Locked:
    """A signer elsewhere: it answers when the test says so, or not at all."""

    def __init__(self) -> None:
        self.may, self.asked, self.fails = threading.Event(), threading.Event(), False
        self.kid, self.public = RECEIPT_KEY.kid, RECEIPT_KEY.public

    def sign(self, message: bytes) -> bytes:
        self.asked.set()
        if self.fails or not self.may.wait(60):
            raise BackendError(Reason.STORE_UNAVAILABLE, "the signer's socket is gone")
        return RECEIPT_KEY.sign(message)


class _Permits:
    async def ask(self, door: str, question: Any, agent: str, name: str) -> Decided:
        said = permit_statement(via=door)
        return Decided(
            outcome=Outcome.PERMIT,
            reason=Reason.PERMIT_RULE,
            rules=(),
            surface="payments.refund",
            id=said["id"],
            jws=sign(said, RECEIPT_KEY),
            repeated=False,
        )


@contextlib.asynccontextmanager
async def _doors(signer: _Locked) -> AsyncIterator[TestClient[web.Request, web.Application]]:
    token = AdminToken(name="d", sha256=bytes(32), roles=("decider",), agents=("bot",))

    @web.middleware
    async def known(request: web.Request, handler: Any) -> web.StreamResponse:
        request[PRESENTED] = token
        try:
            answer: web.StreamResponse = await handler(request)
        except Problem as problem:
            answer = problem.response()
        return answer

    state: Any = types.SimpleNamespace(decider=_Permits(), signer=signer, question_bytes=65_536)
    doors = DecisionDoors(state)
    app = web.Application(middlewares=[known])
    app.router.add_post("/execute", doors.execute)
    app.router.add_post("/v1/decide", doors.decide)
    async with TestClient(TestServer(app)) as client:
        yield client


async def test_others_are_answered_while_an_external_signer_takes_its_time() -> None:
    signer = _Locked()
    async with _doors(signer) as client:
        slow = asyncio.ensure_future(client.post("/execute", json={"surface": "payments.refund"}))
        assert await asyncio.to_thread(signer.asked.wait, 60)
        async with client.post("/v1/decide", json=named()) as quick:
            assert (quick.status, slow.done()) == (200, False)
        signer.may.set()
        async with await slow as answer:
            told = await answer.json()
    assert (answer.status, told["decision"]) == (200, "PERMIT")
    signature = base64.b64decode(told["receipt"]["authoritySignature"])
    assert RECEIPT_KEY.public.verifies(bytes.fromhex(told["receipt"]["receiptHash"]), signature)


async def test_a_permit_is_not_told_without_its_receipt() -> None:
    signer = _Locked()
    signer.fails = True
    async with _doors(signer) as client:
        async with client.post("/execute", json={"surface": "payments.refund"}) as answer:
            told = await answer.json(content_type=None)
    assert (answer.status, told["detail"]) == (503, "The signer does not answer.")
    assert not {"decision", "receipt", "execution_id"} & told.keys() and "PERMIT" not in json.dumps(told)


def test_authzen_answers_200_with_a_boolean(gate: Instance) -> None:
    def evaluation(amount: int) -> dict[str, Any]:
        properties = {"amount": amount, "reference": "pi_1"}
        return {
            "subject": {"type": "agent", "id": "demo-agent"},
            "action": {"name": "stripe.PostRefunds"},
            "resource": {"type": "payments.refund", "id": "pi_1", "properties": properties},
        }

    status, told, headers = ask(gate, "/access/v1/evaluation", evaluation(500), X_Request_ID="r-1")
    assert (status, told["decision"], headers["X-Request-ID"]) == (200, True, "r-1")
    status, told, _ = ask(gate, "/access/v1/evaluation", evaluation(200_000))
    assert (status, told["decision"], told["context"]["reason"]) == (200, False, "deny_rule")
    where = f"http://{gate.admin}/.well-known/authzen-configuration"
    with urllib.request.urlopen(where, timeout=60) as answer:
        metadata = json.load(answer)
    assert metadata["access_evaluation_endpoint"] == "https://gate.example.com/access/v1/evaluation"


def test_an_outcome_is_reported_once_and_by_who_may(gate: Instance) -> None:
    told = ask(gate, "/v1/decide", named())[1]
    report = {"id": told["id"], "status": "executed", "http_status": 200}
    assert ask(gate, "/v1/outcome", report, token="other")[0] == 409
    assert ask(gate, "/v1/outcome", {**report, "status": "reconciled"})[0] == 400
    assert ask(gate, "/v1/outcome", report)[:2] == (200, {"recorded": True})
    assert ask(gate, "/v1/outcome", report)[0] == 409


REFUSED: dict[str, tuple[dict[str, Any], int]] = {
    "no token": ({"token": ""}, 401),
    "an unknown token": ({"token": "s-nobody"}, 401),
    "a token of another role": ({"token": "operator"}, 403),
    "for an agent of others": ({"body": named(agent="second")}, 403),
    "for an agent that does not exist": ({"body": named(agent="root")}, 403),
    "for nobody, by a token of several": ({"token": "other"}, 403),
    "by GET": ({"method": "GET", "body": b""}, 405),
    "as a form": ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
    "in a coding": ({"Content_Encoding": "gzip"}, 415),
    "no JSON": ({"body": b"{"}, 400),
    "a key twice": ({"body": b'{"agent":"demo-agent","agent":"second"}'}, 400),
    "for another host": ({"Host": "evil.test"}, 421),
}


@pytest.mark.parametrize(("change", "status"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("path", ["/v1/decide", "/execute", "/access/v1/evaluation"])
def test_who_may_not_ask_is_refused_before_anything_is_decided(
    gate: Instance, path: str, change: dict[str, Any], status: int
) -> None:
    body = change.get("body", named())
    rest = {name: value for name, value in change.items() if name != "body"}
    if status == 403 and path == "/access/v1/evaluation":
        body = {
            "subject": {"type": "agent", "id": body.get("agent", "demo-agent")},
            "action": {"name": "stripe.PostRefunds"},
            "resource": {"type": "payments.refund", "id": "x"},
        }
    if status == 403 and path == "/execute":
        body = {"surface": "payments.refund", **({"actorId": body["agent"]} if "agent" in body else {})}
    assert ask(gate, path, body, **rest)[0] == status


def test_a_question_that_is_too_long_is_refused_while_it_is_read(gate: Instance, tmp_path: Path) -> None:
    with socket.create_connection(tuple(gate.admin.rsplit(":", 1)), timeout=60) as wire:  # type: ignore[arg-type]
        head = "POST /v1/decide HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        head += f"Authorization: Bearer {SECRETS['decider']}\r\nContent-Length: 999999999999\r\n\r\n"
        wire.sendall(head.encode())
        try:
            for _ in range(2000):
                wire.sendall(b" " * 65_536)
        except OSError:
            pass
        answer = wire.recv(65_536)
    assert b" 413 " in answer.split(b"\r\n")[0]


def test_a_question_that_breaks_off_is_no_failure_of_ours(gate: Instance) -> None:
    before = len(gate.log)
    with socket.create_connection(tuple(gate.admin.rsplit(":", 1)), timeout=60) as wire:  # type: ignore[arg-type]
        head = "POST /v1/decide HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        wire.sendall(
            f"{head}Authorization: Bearer {SECRETS['decider']}\r\nContent-Length: 99\r\n\r\n{{".encode()
        )
        wire.shutdown(socket.SHUT_RDWR)
    assert ask(gate, "/v1/decide", named())[0] == 200
    assert "Traceback" not in gate.log[before:]


def test_what_the_doors_wrote_passes_the_audit(gate: Instance) -> None:
    ask(gate, "/v1/decide", named(idempotency_key="audited"))
    done = subprocess.run(
        gate.command("log", "audit"), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
