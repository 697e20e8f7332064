"""`holdgate reconcile ask`: a vendor's own answer settles what is in doubt, gated like any request."""

from __future__ import annotations

import hashlib
import http.client
import json
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from behind import READ_EVENTS, Bench, post
from holdgate.adapters.admin.shapes import decode_jws
from holdgate.adapters.asking import Answer
from holdgate.adapters.control import ask as control
from holdgate.adapters.sqlite_reader import SqliteReader
from holdgate.cli import main
from holdgate.demo.instance import Instance
from holdgate.demo.standins import StandIns
from holdgate.ledger import State
from holdgate.message import ResponseHead

TOKEN = "correct-horse"
AGENTS = f"""\
  - {{id: demo-agent, match: {{source: [127.0.0.1/32]}}}}
  - id: reconciler
    match: {{source: [127.0.0.9/32], token_sha256: {hashlib.sha256(TOKEN.encode()).hexdigest()}}}
"""
DENY_READS = """\
apiVersion: holdgate/v1
kind: Policy
metadata: {name: no-reads-for-the-reconciler, owner: payments-risk@example.com}
spec:
  surface: payments.read
  rules:
  - {id: not-yours, effect: deny, when: agent.id == "reconciler", reason: Somebody else reads}
"""


@pytest.fixture(scope="module")
def desk(vendors: StandIns, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Agents come from 127.0.0.1; the reconciler from an address and with a token of its own."""
    folder = tmp_path_factory.mktemp("ask")
    with Instance(folder / "gate", connect_to=vendors.connect_to(), agents=AGENTS) as gate:
        yield Bench(gate, vendors, folder)


@pytest.fixture(autouse=True)
def settled(desk: Bench) -> Iterator[None]:
    """Every test begins with nothing in doubt."""
    yield
    for each in in_doubt(desk):
        control(desk.gate.state_dir, {"ask": "reconcile", "of": each["id"], "found": "failed", "note": ""})


def credentials(bench: Bench, *, token: str = TOKEN, host: str = "api.stripe.com") -> Path:
    path = bench.folder / "reconciler.yaml"
    hosts = f"hosts: {{{host}: {{authorization: Bearer rk_read}}}}"
    path.write_text(f"proxy_token: reconciler:{token}\nsource: 127.0.0.9\n{hosts}\n")
    path.chmod(0o600)
    return path


def ask(bench: Bench, *ids: str, file: Path | None = None) -> tuple[int, list[dict[str, str]], str]:
    """The command, in this process: starting another one takes seconds."""
    file = credentials(bench) if file is None else file
    words = ["reconcile", "ask", *ids, "-c", str(bench.gate.config), "--credentials", str(file)]
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as errors:
        code = main([*words, "--proxy", bench.gate.proxy, "--json"])
    assert (code == 2) == bool(errors.getvalue()), errors.getvalue()
    return code, json.loads(out.getvalue() or "[]"), errors.getvalue()


def lost(bench: Bench, cuts: str, key: str, path: str = "/v1/refunds", **form: object) -> None:
    """One request whose answer never came: `before` it reached the vendor's hands, or `after` it was done.

    Returns when its outcome is recorded, which the agent's answer does not wait for.
    """
    before = unknown(bench)
    bench.vendors.stripe.cuts = cuts
    try:
        with suppress(OSError, http.client.HTTPException):
            said = post(bench.gate, path, key, **form)
            assert (said.status, said.decision) == (502, "PERMIT"), said
    finally:
        bench.vendors.stripe.cuts = ""
    end = time.monotonic() + 60
    while unknown(bench) == before:
        assert time.monotonic() < end, "no outcome was recorded"


def unknown(bench: Bench) -> int:
    with SqliteReader(bench.gate.state_dir) as reader:
        return len(reader.permits(State.UNKNOWN))


def in_doubt(bench: Bench) -> list[dict[str, Any]]:
    with SqliteReader(bench.gate.state_dir) as reader:
        return [receipt(bench, permit.receipt_id) for permit in reader.permits(State.UNKNOWN)]


def receipt(bench: Bench, identifier: str) -> dict[str, Any]:
    with SqliteReader(bench.gate.state_dir) as reader:
        stored = reader.get(identifier)
    assert stored is not None
    return dict(decode_jws(stored.jws))


def test_what_the_vendor_did_is_found_and_settled_and_what_never_arrived_stays_unknown(desk: Bench) -> None:
    stripe = desk.vendors.stripe
    done, never = stripe.charged(5000), stripe.charged(5000)
    lost(desk, "after", "k-done", payment_intent=done, amount=700)
    lost(desk, "before", "k-never", payment_intent=never, amount=700)
    # Another refund that is equal but for its key: it must not pass for the one that never arrived.
    stripe._note(stripe._refund({"payment_intent": never, "amount": "700"}), "k-other")
    waiting = {each["actions"][0]["params"]["reference"]: each["id"] for each in in_doubt(desk)}
    assert set(waiting) == {done, never}

    words = ("--credentials", str(credentials(desk)), "--proxy", desk.gate.proxy, "--json")
    done_asking = desk.holdgate("reconcile", "ask", *words)
    assert (done_asking.returncode, done_asking.stderr) == (1, "")
    told = json.loads(done_asking.stdout)
    by = {each["of"]: each for each in told}
    assert by[waiting[done]]["status"] == "reconciled", told
    assert by[waiting[never]]["status"] == "unknown"
    assert "proves nothing" in by[waiting[never]]["because"]
    assert [each["id"] for each in in_doubt(desk)] == [waiting[never]]

    settled = receipt(desk, by[waiting[done]]["receipt"])
    read = by[waiting[done]]["asked"]
    assert (settled["of"], settled["status"], settled["found"]) == (waiting[done], "reconciled", "executed")
    assert settled["note"] == f"asked the vendor: stripe.GetEvents, {read}"
    assert receipt(desk, read)["agent"] == "reconciler"
    assert receipt(desk, read)["actions"][0]["operation"] == "stripe.GetEvents"

    held = post(desk.gate, "/v1/refunds", payment_intent=never, amount=50)
    assert (held.status, held.reason) == (409, "conflict")
    free = post(desk.gate, "/v1/refunds", payment_intent=done, amount=50)
    assert (free.status, free.decision) == (200, "PERMIT")
    audit = desk.holdgate("log", "audit")
    assert audit.returncode == 0, audit.stdout + audit.stderr
    metrics = http.client.HTTPConnection(*_address(desk.gate.admin), timeout=60)
    metrics.request("GET", "/metrics")
    text = metrics.getresponse().read().decode()
    metrics.close()
    assert "holdgate_unknown_open 1.0" in text
    assert 'holdgate_outcomes_total{status="reconciled"} 1.0' in text


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.partition(":")
    return host, int(port)


def test_a_read_that_policy_denies_settles_nothing_and_reaches_nobody(
    desk: Bench,
) -> None:
    intent = desk.vendors.stripe.charged(5000)
    lost(desk, "after", "k-1", payment_intent=intent, amount=700)
    policy = desk.gate.folder / "policies" / "deny_reads.yaml"
    try:
        policy.write_text(DENY_READS)
        control(desk.gate.state_dir, {"ask": "reload"})
        before = desk.counts()
        code, told, _ = ask(desk)
    finally:
        policy.unlink()
        control(desk.gate.state_dir, {"ask": "reload"})
    assert (code, told[0]["status"]) == (1, "unknown")
    assert "DENY deny_rule" in told[0]["because"]
    assert all((seen - before[name]).nothing for name, seen in desk.counts().items())
    assert len(in_doubt(desk)) == 1


def read_events(gate: Instance) -> str:
    """An agent's own read of the same kind; its receipt."""
    context = ssl.create_default_context(cafile=str(gate.state_dir / "ca" / "ca.pem"))
    connection = http.client.HTTPSConnection(*_address(gate.proxy), context=context, timeout=50)
    connection.set_tunnel("api.stripe.com", 443)
    connection.request("GET", "/v1/events?limit=99", headers={"Authorization": "Bearer sk_test_demo"})
    said = connection.getresponse().headers["Holdgate-Decision"]
    connection.close()
    return str(said.split('"')[1])


def test_ac1_an_answer_settles_only_with_the_receipt_of_its_own_read(
    desk: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    intent = desk.vendors.stripe.charged(5000)
    lost(desk, "after", "k-ac1", payment_intent=intent, amount=700)
    (waiting,) = in_doubt(desk)
    words = ["reconcile", "ask", "-c", str(desk.gate.config), "--proxy", desk.gate.proxy]
    words += ["--credentials", str(credentials(desk))]

    policy = desk.gate.folder / "policies" / "event_reads.yaml"
    try:
        policy.write_text(READ_EVENTS)
        control(desk.gate.state_dir, {"ask": "reload"})
        elsewhere = read_events(desk.gate)
    finally:
        policy.unlink()
        control(desk.gate.state_dir, {"ask": "reload"})
    assert receipt(desk, elsewhere)["outcome"] == "PERMIT"

    def proves(receipt_id: str) -> Callable[..., Answer]:
        headers = ((b"content-type", b"application/json"),)
        data = [
            event for event in desk.vendors.stripe.events if event["request"]["idempotency_key"] == "k-ac1"
        ]
        body = json.dumps({"object": "list", "has_more": False, "data": data}).encode()
        head = ResponseHead(status=200, reason=b"OK", headers=headers)
        return lambda *_, **__: Answer(receipt=receipt_id, head=head, body=body)

    refused = post(desk.gate, "/v1/refunds", payment_intent=intent, amount=1)
    assert refused.reason == "conflict"
    for forged in ("rcpt_01K0000000000000000000000", waiting["id"], refused.receipt, elsewhere):
        monkeypatch.setattr("holdgate.cli.ask.ask_proxy", proves(forged))
        assert main(words) == 1
        assert "is not a PERMIT of the read that was asked" in capsys.readouterr().out
    assert [each["id"] for each in in_doubt(desk)] == [waiting["id"]]


def test_nothing_is_asked_without_a_key_a_credential_or_an_identity(desk: Bench) -> None:
    stripe = desk.vendors.stripe
    first = stripe.charged(5000)
    lost(desk, "after", "", payment_intent=first, amount=700)
    before = desk.counts()
    assert "no idempotency key" in ask(desk)[1][0]["because"]
    lost(desk, "after", "k-2", payment_intent=stripe.charged(5000), amount=700)
    sent = desk.counts()
    named = in_doubt(desk)[1]["id"]
    assert "no credential" in ask(desk, named, file=credentials(desk, host="other.example"))[1][0]["because"]
    assert "SILENCE unknown_agent" in ask(desk, named, file=credentials(desk, token="wrong"))[1][0]["because"]
    open_file = credentials(desk)
    open_file.chmod(0o644)
    code, told, errors = ask(desk, named, file=open_file)
    assert (code, told, "others can read" in errors) == (2, [], True)
    assert "rk_read" not in errors
    assert before["stripe"].requests + 1 == sent["stripe"].requests == desk.counts()["stripe"].requests
    code, told, errors = ask(desk, "rcpt_01K0000000000000000000000")
    assert (code, told, "no permit whose outcome is unknown" in errors) == (2, [], True)


def test_a_conditional_create_is_found_by_its_condition(desk: Bench) -> None:
    fhir, before = desk.vendors.fhir, unknown(desk)
    for cuts, number in ((True, "7"), (False, "8")):
        fhir.cuts = cuts
        with suppress(OSError, http.client.HTTPException):
            assert observe(desk.gate, number) == (502 if cuts else 201)
    fhir.cuts = False
    end = time.monotonic() + 60
    while unknown(desk) == before:
        assert time.monotonic() < end, "no outcome was recorded"
    file = credentials(desk, host="fhir.example.org")
    code, told, _ = ask(desk, file=file)
    assert (code, told[0]["status"]) == (0, "reconciled"), told
    settled = receipt(desk, told[0]["receipt"])
    assert settled["note"] == f"asked the vendor: fhir.r4.search, {told[0]['asked']}"
    assert "urn" not in json.dumps(told) + json.dumps(settled)
    sent = [path for method, path, _, _ in desk.vendors.recorders["fhir"].requests if method == "GET"]
    assert sent == ["/fhir/R4/Observation?identifier=urn%3Aa%7C7&_total=accurate"]


def observe(gate: Instance, number: str) -> int:
    """One create that the server may do once."""
    body = {
        "resourceType": "Observation",
        "status": "final",
        "subject": {"reference": "Patient/p1"},
        "identifier": [{"system": "urn:a", "value": number}],
    }
    context = ssl.create_default_context(cafile=str(gate.state_dir / "ca" / "ca.pem"))
    connection = http.client.HTTPSConnection(*_address(gate.proxy), context=context, timeout=50)
    connection.set_tunnel("fhir.example.org", 443)
    headers = {
        "Authorization": "Bearer clinic",
        "Content-Type": "application/fhir+json",
        "If-None-Exist": f"identifier=urn:a|{number}",
    }
    try:
        connection.request("POST", "/fhir/R4/Observation", json.dumps(body), headers)
        return connection.getresponse().status
    finally:
        connection.close()


def test_a_retry_under_the_same_key_is_how_a_request_is_sent_again(desk: Bench) -> None:
    intent = desk.vendors.stripe.charged(5000)
    lost(desk, "after", "k-3", payment_intent=intent, amount=700)
    again = post(desk.gate, "/v1/refunds", "k-3", payment_intent=intent, amount=700)
    assert (again.status, again.decision) == (200, "PERMIT")
    assert (
        len([each for each in desk.vendors.stripe.of_kind("refund") if each["payment_intent"] == intent]) == 1
    )
    assert receipt(desk, again.receipt)["replay_of"] == in_doubt(desk)[0]["id"]
    # The first one is still in doubt; the vendor's event settles it, too.
    code, told, _ = ask(desk)
    assert (code, told[0]["status"]) == (0, "reconciled")
    assert in_doubt(desk) == []
    assert desk.holdgate("log", "audit").returncode == 0
