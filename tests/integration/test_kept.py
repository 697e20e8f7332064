"""`response: keep` at the recorder: a retry gets the first answer, nobody else does, the vendor sees none."""

from __future__ import annotations

import base64
import http.client
import json
import shutil
import sqlite3
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from behind import Bench, read_all
from holdgate.adapters.admin.shapes import decode_jws
from holdgate.adapters.sqlite_reader import SqliteReader
from holdgate.demo.instance import Instance
from holdgate.demo.standins import StandIns
from needles import found_in

OLD = "  - id: PostRefunds\n"
# In place of the defaults, where the vendor itself answers repeats.
KEEP = OLD + "    idempotency: {from: header.idempotency-key, ttl: 24h, response: keep}\n"


def instance(folder: Path, vendors: StandIns) -> Instance:
    made = Instance(folder, connect_to=vendors.connect_to())
    (file,) = (folder / "surfaces").rglob("stripe*.yaml")
    text = file.read_text()
    assert text.count(OLD) == 1
    file.write_text(text.replace(OLD, KEEP))
    return made


@pytest.fixture(scope="module")
def gate(vendors: StandIns, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """An instance that keeps the answers to refunds."""
    with instance(tmp_path_factory.mktemp("kept"), vendors) as running:
        yield running


@dataclass(frozen=True)
class Got:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def decision(self) -> str:
        return self.headers["holdgate-decision"]

    @property
    def receipt(self) -> str:
        return self.decision.partition('id="')[2].partition('"')[0]


def refund(gate: Instance, key: str, credential: str = "Bearer sk_test_demo", **form: Any) -> Got:
    """As behind.post(), with any credential, and all headers of the answer."""
    context = ssl.create_default_context(cafile=str(gate.state_dir / "ca" / "ca.pem"))
    host, _, port = gate.proxy.partition(":")
    connection = http.client.HTTPSConnection(host, int(port), context=context, timeout=50)
    connection.set_tunnel("api.stripe.com", 443)
    headers = {"Authorization": credential, "Content-Type": "application/x-www-form-urlencoded"}
    with closing(connection):
        connection.request("POST", "/v1/refunds", urlencode(form), headers | {"Idempotency-Key": key})
        answer = connection.getresponse()
        said = {name.lower(): value for name, value in answer.headers.items()}
        return Got(answer.status, said, answer.read())


def seen(vendors: StandIns) -> int:
    return vendors.counts("stripe").requests


def holdgate(gate: Instance, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(gate.command(*words), capture_output=True, text=True, timeout=120, check=False)


def test_a_retry_gets_the_first_answer_and_the_vendor_sees_nothing(gate: Instance, vendors: StandIns) -> None:
    intent, before = vendors.stripe.charged(1000), seen(vendors)
    first = refund(gate, "k-1", payment_intent=intent, amount=5)
    assert (first.status, first.decision.partition(";")[0]) == (200, "PERMIT")
    for _ in range(3):
        again = refund(gate, "k-1", payment_intent=intent, amount=5)
        assert (again.status, again.body) == (200, first.body)
        assert again.headers["request-id"] == first.headers["request-id"]
        assert again.decision.startswith("SILENCE;") and "reason=already_executed" in again.decision
        assert again.decision.endswith(f';first="{first.receipt}";replay')
        assert "proxy-status" not in again.headers
    assert seen(vendors) - before == 1
    with SqliteReader(gate.state_dir) as reader:
        stored = reader.get(again.receipt)
        assert stored is not None
        said = decode_jws(stored.jws)
    assert (said["outcome"], said["reason"]) == ("SILENCE", "already_executed")
    assert again.headers["holdgate-receipt"].encode() == stored.jws


def test_an_unmodified_client_that_asks_again_has_its_refund(
    gate: Instance, vendors: StandIns, tmp_path: Path
) -> None:
    stripe = pytest.importorskip("stripe")
    # stripe-python ignores every CA variable: `trust --install` puts our CA into (a copy of) its bundle.
    shutil.copytree(Path(stripe.__file__).parent, tmp_path / "stripe")
    assert holdgate(gate, "trust", "--install", str(tmp_path)).returncode == 0
    intent, before = vendors.stripe.charged(1000), seen(vendors)
    script = f"""
        import stripe
        stripe.api_key = "sk_test_demo"
        for _ in range(2):
            made = stripe.Refund.create(payment_intent={intent!r}, amount=7, idempotency_key="sdk-1")
            print(made.id, made.amount, made.last_response.headers["Holdgate-Decision"].split(";")[0])
    """
    agent = Bench(gate, vendors, gate.folder)
    one, two = agent.agent(script, env={"PYTHONPATH": str(tmp_path)}).splitlines()
    assert one.split()[:2] == two.split()[:2]
    assert (one.split()[2], two.split()[2]) == ("PERMIT", "SILENCE")
    assert seen(vendors) - before == 1


def test_another_credential_or_content_gets_no_answer(gate: Instance, vendors: StandIns) -> None:
    intent, before = vendors.stripe.charged(1000), seen(vendors)
    first = refund(gate, "k-2", payment_intent=intent, amount=5)
    identity = json.loads(first.body)["id"].encode()
    # The same secret key in the form of a user name: the same account, and another credential.
    basic = "Basic " + base64.b64encode(b"sk_test_demo:").decode()
    other = refund(gate, "k-2", basic, payment_intent=intent, amount=5)
    assert (other.status, identity in other.body, "replay" in other.decision) == (409, False, False)
    assert first.receipt.encode() in other.body
    other = refund(gate, "k-2", "Bearer sk_test_other", payment_intent=intent, amount=6)
    assert identity not in other.body  # another account: a key of its own, so a refund of its own
    reused = refund(gate, "k-2", payment_intent=intent, amount=7)
    assert (reused.status, identity in reused.body) == (422, False)
    assert seen(vendors) - before == 2


def test_what_is_kept_is_in_no_file_in_clear(gate: Instance, vendors: StandIns) -> None:
    intent = vendors.stripe.charged(1000)
    token = "Bearer sk_test_kept_needle_7f31"
    first = refund(gate, "k-3", token, payment_intent=intent, amount=5)
    assert refund(gate, "k-3", token, payment_intent=intent, amount=5).body == first.body
    needles = (first.body.decode(), token, token.removeprefix("Bearer "))
    files = {str(path): data for path, data in read_all(gate.state_dir).items()}
    assert any(path.endswith("ledger.db-wal") for path in files)
    assert found_in(files | {"log": gate.log.encode()}, needles) == []
    assert ("answer", needles[0], "plain") in found_in({"answer": first.body}, needles)


def test_after_a_shred_there_is_no_answer_and_the_log_is_clean(gate: Instance, vendors: StandIns) -> None:
    intent, before = vendors.stripe.charged(1000), seen(vendors)
    first = refund(gate, "k-4", payment_intent=intent, amount=5)
    assert refund(gate, "k-4", payment_intent=intent, amount=5).status == 200
    assert holdgate(gate, "receipts", "shred", first.receipt, "--yes").returncode == 0
    gone = refund(gate, "k-4", payment_intent=intent, amount=5)
    assert (gone.status, "replay" in gone.decision) == (409, False)
    assert first.receipt.encode() in gone.body and json.loads(first.body)["id"].encode() not in gone.body
    audited = holdgate(gate, "log", "audit")
    assert audited.returncode == 0, audited.stdout + audited.stderr
    assert seen(vendors) - before == 1


def test_an_edited_answer_is_a_finding_and_is_given_to_nobody(vendors: StandIns, tmp_path: Path) -> None:
    gate = instance(tmp_path, vendors)
    intent, before = vendors.stripe.charged(1000), seen(vendors)
    with gate:
        first = refund(gate, "k-5", payment_intent=intent, amount=5)
        assert refund(gate, "k-5", payment_intent=intent, amount=5).body == first.body
    with sqlite3.connect(gate.state_dir / "ledger.db") as db:
        ((data,),) = db.execute("SELECT e.data FROM sealed e JOIN answers a ON a.idx = e.idx").fetchall()
        db.execute("UPDATE sealed SET data = ?", (data[:40] + bytes([data[40] ^ 1]) + data[41:],))
    with gate:
        again = refund(gate, "k-5", payment_intent=intent, amount=5)
        assert (again.status, json.loads(first.body)["id"].encode() in again.body) == (409, False)
        audited = holdgate(gate, "log", "audit")
        assert audited.returncode == 1
        assert "the kept answer is not the one that came" in audited.stdout + audited.stderr
    assert seen(vendors) - before == 1


@pytest.mark.slow
def test_workers_give_each_others_answers(vendors: StandIns, tmp_path: Path) -> None:
    gate = instance(tmp_path, vendors)
    gate.run_words = ("run", "--workers", "2")
    intent, before = vendors.stripe.charged(1000), seen(vendors)
    with gate:
        first = refund(gate, "k-6", payment_intent=intent, amount=5)
        again = [refund(gate, "k-6", payment_intent=intent, amount=5) for _ in range(12)]
    assert {(each.status, each.body) for each in again} == {(200, first.body)}
    assert all(each.decision.endswith(f';first="{first.receipt}";replay') for each in again)
    assert seen(vendors) - before == 1
