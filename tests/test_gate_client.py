"""adapters/gate_client.py: a remote gate that answers, is late, is wrong, is gone; and two instances."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from behind import Bench
from evidence import T0
from fakes import MemoryLedger
from holdgate.adapters.gate_client import GateClient, ReportingLedger
from holdgate.config_gate import RemoteGate
from holdgate.demo.instance import Instance, InstanceError
from holdgate.demo.standins import StandIns
from holdgate.errors import BackendError, Outcome, Reason
from holdgate.gate import Decision
from holdgate.ledger import OutcomeStatus
from holdgate.remote_gate import Remote, RemoteProtocol
from ports import free_port
from test_remote_gate import ASKED

type Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def gate_that(handler: Handler, **changes: Any) -> AsyncIterator[GateClient]:
    """A client of a gate whose every answer is `handler`'s."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    config = RemoteGate(
        url=f"http://127.0.0.1:{runner.addresses[0][1]}",
        protocol=RemoteProtocol.AUTHZEN,
        timeout_ms=2000,
        token_file=None,
        ca_file=None,
        client_cert=None,
        client_key=None,
        keys_file=None,
    )
    client = GateClient.open(replace(config, **changes), lambda: T0)
    try:
        yield client
    finally:
        await client.close()
        await runner.cleanup()


async def says_yes(request: web.Request) -> web.StreamResponse:
    return web.json_response({"decision": True})


async def says_nothing_in_time(request: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def goes_elsewhere(request: web.Request) -> web.StreamResponse:
    if request.path == "/yes":
        return web.json_response({"decision": True})
    return web.Response(status=307, headers={"Location": "/yes"})


async def says_too_much(request: web.Request) -> web.StreamResponse:
    return web.Response(body=b'{"decision": true, "x": "' + b"y" * 70_000 + b'"}')


async def hangs_up(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.close()
    raise AssertionError


async def test_an_answer_is_the_decision_and_names_the_engine() -> None:
    async with gate_that(says_yes) as client:
        remote = await client.decide(ASKED)
    assert (remote.decision.outcome, remote.engine) == (Outcome.PERMIT, "remote/authzen")


WRONG: dict[str, tuple[Handler, dict[str, Any]]] = {
    "no answer in time": (says_nothing_in_time, {"timeout_ms": 50}),
    "a redirect": (goes_elsewhere, {}),
    "too long an answer": (says_too_much, {}),
    "a connection that is closed": (hangs_up, {}),
    "nobody there": (says_yes, {"url": "http://127.0.0.1:9"}),
    "TLS where there is none": (says_yes, {"url": "https://127.0.0.1:9"}),
    "an answer of another protocol": (says_yes, {"protocol": RemoteProtocol.TRIGGUARD}),
}


@pytest.mark.parametrize(("handler", "changes"), WRONG.values(), ids=WRONG)
async def test_gc1_what_is_no_answer_is_a_timeout(handler: Handler, changes: dict[str, Any]) -> None:
    async with gate_that(handler, **changes) as client:
        with pytest.raises(BackendError) as caught:
            await client.decide(ASKED)
    assert caught.value.reason is Reason.GATE_TIMEOUT


PERMIT = Remote(
    decision=Decision(outcome=Outcome.PERMIT, reason=Reason.PERMIT_RULE, rules=("p/r",)),
    engine="remote/holdgate",
    id="rcpt_theirs",
)


class Outcomes(MemoryLedger):
    """Keeps what it is told, of permits that it never saw."""

    def record_outcome(
        self,
        receipt_id: str,
        status: OutcomeStatus,
        http_status: int,
        *,
        delivered: bool,
        made: Any = None,
        kept: Any = None,
    ) -> None:
        self.outcomes.append((receipt_id, status, http_status, delivered))


async def test_gc2_an_outcome_is_reported_once() -> None:
    told: list[dict[str, Any]] = []

    async def listens(request: web.Request) -> web.StreamResponse:
        told.append(await request.json())
        return web.json_response({"recorded": True})

    async with gate_that(listens) as client:
        ledger = ReportingLedger(ledger=Outcomes(), client=client)
        client.recorded(PERMIT, "rcpt_ours", Outcome.PERMIT)
        for _ in range(2):
            ledger.record_outcome("rcpt_ours", OutcomeStatus.EXECUTED, 200, delivered=True)
        ledger.record_outcome("rcpt_of_nobody", OutcomeStatus.EXECUTED, 200, delivered=True)
    assert told == [{"id": "rcpt_theirs", "status": "executed", "http_status": 200}]


async def test_gc2_what_a_claim_here_refused_was_not_sent() -> None:
    told: list[dict[str, Any]] = []

    async def listens(request: web.Request) -> web.StreamResponse:
        told.append(await request.json())
        return web.json_response({"recorded": True})

    async with gate_that(listens) as client:
        client.recorded(PERMIT, "rcpt_ours", Outcome.SILENCE)
    assert told == [{"id": "rcpt_theirs", "status": "not_sent"}]


async def test_gc2_a_permit_under_which_nothing_was_recorded_was_not_sent() -> None:
    told: list[dict[str, Any]] = []

    async def listens(request: web.Request) -> web.StreamResponse:
        told.append(await request.json())
        return web.json_response({"recorded": True})

    async with gate_that(listens) as client:
        client.unused(replace(PERMIT, decision=replace(PERMIT.decision, outcome=Outcome.DENY)))
        client.unused(replace(PERMIT, id=""))  # of a protocol that knows no outcomes
        client.unused(PERMIT)
    assert told == [{"id": "rcpt_theirs", "status": "not_sent"}]


async def test_gc2_a_gate_that_is_gone_changes_nothing_here() -> None:
    async with gate_that(says_yes, url="http://127.0.0.1:9") as client:
        ledger = Outcomes()
        client.recorded(PERMIT, "rcpt_ours", Outcome.PERMIT)
        ReportingLedger(ledger=ledger, client=client).record_outcome(
            "rcpt_ours", OutcomeStatus.FAILED, 402, delivered=True
        )
    assert ledger.outcomes == [("rcpt_ours", OutcomeStatus.FAILED, 402, True)]


async def test_gc3_a_question_keeps_its_name_until_it_is_answered() -> None:
    names: list[str] = []

    async def listens(request: web.Request) -> web.StreamResponse:
        names.append(request.headers["Holdgate-Question"])
        says = [says_too_much, hangs_up, says_yes, says_yes][len(names) - 1]
        return await says(request)

    async with gate_that(listens) as client, gate_that(says_yes) as other:
        for _ in range(2):
            with pytest.raises(BackendError):
                await client.decide(ASKED)
        for _ in range(2):
            await client.decide(ASKED)
        assert client.lost == other.lost == {}
    assert names[0] == names[1] == names[2] != names[3]
    assert all(len(name) == 32 for name in names)


async def test_gc3_a_question_that_was_given_up_keeps_its_name_too_and_not_too_many_do() -> None:
    asked = asyncio.Event()

    async def waits(request: web.Request) -> web.StreamResponse:
        asked.set()
        return await says_nothing_in_time(request)

    async with gate_that(waits, timeout_ms=60_000) as client:
        task = asyncio.ensure_future(client.decide(ASKED))
        async with asyncio.timeout(60):
            await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        (name,) = client.lost.values()
        client._lose({b"%d" % number: str(number) for number in range(1024)})
        assert len(client.lost) == 1024 and name not in client.lost.values()


# --- two instances: one decides, one holds and forwards ---

TOKEN = "s-decider"
REFUND = """
    import urllib.error, urllib.request
    request = urllib.request.Request(
        "https://api.stripe.com/v1/refunds",
        data=b"payment_intent=%s&amount=%d",
        headers={"Authorization": "Bearer sk_test_1", "Idempotency-Key": "%s",
                 "Content-Type": "application/x-www-form-urlencoded"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            print(answer.status, answer.headers["Holdgate-Decision"])
    except urllib.error.HTTPError as error:
        print(error.code, error.headers["Holdgate-Decision"])
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    folder = tmp_path_factory.mktemp("pair")
    with StandIns() as vendors:
        decider = Instance(folder / "decider", connect_to=vendors.connect_to())
        decider.run_words = ("gate",)
        digest = hashlib.sha256(TOKEN.encode()).hexdigest()
        tokens = f"tokens: {{proxy: {{sha256: {digest}, roles: [decider], agents: [demo-agent]}}}}"
        # It is stopped and comes back at the same place.
        admin = f"admin: {{listen: 127.0.0.1:{free_port()}"
        text = decider.config.read_text().replace("admin: {listen: 127.0.0.1:0", admin)
        decider.config.write_text(text.replace("open: [metrics", f"{tokens}, open: [metrics"))
        with decider:
            done = subprocess.run(
                decider.command("keys", "export"), capture_output=True, check=True, timeout=60
            )
            (folder / "keys.json").write_bytes(done.stdout)
            (folder / "token").write_text(TOKEN)
            gate = f"gate: {{url: 'http://{decider.admin}', protocol: holdgate, timeout_ms: 5000,"
            gate += f" token_file: '{folder}/token', keys_file: '{folder}/keys.json'}}"
            proxy = Instance(folder / "proxy", connect_to=vendors.connect_to(), extra=gate)
            # What the proxy's own policies would say does not count: only the gate permits.
            for path in (folder / "proxy/policies").glob("stripe_refunds*.yaml"):
                path.unlink()
            with proxy:
                yield SimpleNamespace(
                    decider=decider,
                    gate=gate,
                    proxy=proxy,
                    vendors=vendors,
                    bench=Bench(proxy, vendors, proxy.folder),
                    intent=vendors.stripe.charged(500_000),
                )


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def receipts(instance: Instance) -> list[dict[str, Any]]:
    words = instance.command("receipts", "export")
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    return [json.loads(line)["receipt"] for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_a_request_goes_out_when_the_other_instance_permits_and_it_learns_the_outcome(
    pair: SimpleNamespace,
) -> None:
    before = pair.vendors.counts("stripe")
    told = pair.bench.agent(REFUND % (pair.intent, 500, "k-1"))
    assert told.startswith("200 PERMIT") and "stripe-refunds/small-refund" in told
    assert (pair.vendors.counts("stripe") - before).requests == 1
    ours = [each for each in receipts(pair.proxy) if each["type"] == "decision"][-1]
    theirs = [each for each in receipts(pair.decider) if each["type"] == "decision"][-1]
    assert ours["engine"] == "remote/holdgate" and theirs["via"] == "decide"
    assert ours["request"]["wire"] == theirs["request"]["wire"]
    pair.decider.stop()  # it drains: what it was told is written
    outcomes = {each["of"]: each["status"] for each in receipts(pair.decider) if each["type"] == "outcome"}
    pair.decider.start()
    assert outcomes[theirs["id"]] == "executed"


@pytest.mark.slow
def test_two_instances_that_ask_one_gate_do_not_send_one_request_twice(
    pair: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has a ledger of its own: what the gate permitted to the one is no permit for the other."""
    other = Instance(
        pair.proxy.folder.parent / "second", connect_to=pair.vendors.connect_to(), extra=pair.gate
    )
    before = pair.vendors.counts("stripe").requests
    monkeypatch.setattr(pair.vendors.stripe, "delay_s", 15.0)
    with other, ThreadPoolExecutor(1) as pool:
        bench = Bench(other, pair.vendors, other.folder)
        first = pool.submit(pair.bench.agent, REFUND % (pair.intent, 500, "k-once"))
        until(lambda: pair.vendors.counts("stripe").requests > before)
        told = bench.agent(REFUND % (pair.intent, 500, "k-once"))
        assert told.startswith("409 SILENCE") and "reason=in_flight" in told
        assert first.result().startswith("200 PERMIT")
    assert pair.vendors.counts("stripe").requests == before + 1


@pytest.mark.slow
def test_both_logs_pass_the_audit_and_replay_says_who_decided(pair: SimpleNamespace) -> None:
    for instance in (pair.proxy, pair.decider):
        done = subprocess.run(instance.command("log", "audit"), capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout
    done = subprocess.run(
        pair.proxy.command("replay"), capture_output=True, text=True, timeout=60, check=False
    )
    assert "remote/holdgate" in done.stdout + done.stderr


@pytest.mark.slow
def test_the_gate_alone_listens_for_askers_and_for_nobody_else(pair: SimpleNamespace) -> None:
    assert pair.decider.addresses.keys() == {"admin"}
    assert not (pair.decider.state_dir / "run/exec.sock").exists()


def test_a_gate_that_nobody_may_ask_does_not_start(tmp_path: Path) -> None:
    nobody = Instance(tmp_path / "gate", connect_to={})
    nobody.run_words = ("gate",)
    with pytest.raises(InstanceError, match="nobody may ask"):
        nobody.start()


@pytest.mark.slow
def test_nothing_goes_out_when_the_other_instance_denies(pair: SimpleNamespace) -> None:
    before = pair.vendors.counts("stripe")
    assert pair.bench.agent(REFUND % (pair.intent, 200_000, "k-2")).startswith("403 DENY")
    assert (pair.vendors.counts("stripe") - before).nothing


@pytest.mark.slow
def test_nothing_goes_out_when_the_other_instance_is_gone(pair: SimpleNamespace) -> None:
    before = pair.vendors.counts("stripe")
    pair.decider.kill()
    try:
        told = pair.bench.agent(REFUND % (pair.intent, 500, "k-3"))
    finally:
        pair.decider.start()
    assert told.startswith("503 SILENCE") and "gate_timeout" in told
    assert (pair.vendors.counts("stripe") - before).nothing
