"""kill -9 in the middle of a load: nothing executed without a durable PERMIT, nothing executed twice."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from behind import Bench
from holdgate.demo.instance import Instance
from holdgate.demo.standins import StandIns

pytestmark = pytest.mark.slow

KEYS = 150
KILLS = 3


def refund(gate: Instance, intent: str, number: int) -> int:
    """One agent's call: HTTP status, 0 when the proxy was gone."""
    context = ssl.create_default_context(cafile=str(gate.state_dir / "ca" / "ca.pem"))
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({"https": f"http://{gate.proxy}"}),
        urllib.request.HTTPSHandler(context=context),
    )
    request = urllib.request.Request(
        "https://api.stripe.com/v1/refunds",
        data=f"payment_intent={intent}&amount={number}".encode(),
        headers={"Authorization": "Bearer sk_test_demo", "Idempotency-Key": f"crash-{number}"},
    )
    try:
        with opener.open(request, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def test_kill_9_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    with StandIns() as vendors:
        intents = [vendors.stripe.charged(1000) for _ in range(KEYS)]
        gate = Instance(tmp_path, connect_to=vendors.connect_to())
        for round_ in range(KILLS):
            gate.start()
            killed = threading.Timer(0.8 + 0.3 * round_, gate.kill)
            killed.start()
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda number: refund(gate, intents[number], number), range(1, KEYS)))
            killed.join()
        gate.start()  # recovers: every permit in doubt is `unknown` before it is ready
        with ThreadPoolExecutor(4) as pool:
            again = list(pool.map(lambda number: refund(gate, intents[number], number), range(1, KEYS)))
        gate.stop()
        bench = Bench(gate, vendors, tmp_path)
        audit = bench.holdgate("log", "audit")
        assert audit.returncode == 0, audit.stdout + audit.stderr
        executed = [thing["amount"] for thing in vendors.stripe.of_kind("refund")]
        rows = [json.loads(line) for line in bench.holdgate("receipts", "export").stdout.splitlines()]
        permits = [row["receipt"] for row in rows if row["receipt"].get("outcome") == "PERMIT"]
        permitted = {permit["actions"][0]["params"]["amount"] for permit in permits}
        assert len(executed) == len(set(executed)), "nothing was executed twice"
        assert set(executed) <= permitted, "nothing was executed without a durable permit"
        assert set(again) == {200}, "the vendor answers a repeated key from its own store"
        outcomes = {row["receipt"]["of"] for row in rows if row["receipt"]["type"] == "outcome"}
        assert {permit["id"] for permit in permits} <= outcomes, "every permit has its outcome"
        _a_stranger_verifies(bench, [row["receipt"]["id"] for row in rows], tmp_path)


def _a_stranger_verifies(bench: Bench, ids: list[str], folder: Path) -> None:
    """The log folder that the killed instance left, read by the JavaScript of tests/interop."""
    if shutil.which("node") is None:
        return
    keys = folder / "keys.json"
    keys.write_text(bench.holdgate("keys", "export").stdout)
    some = [ids[0], ids[len(ids) // 2], ids[-1]]
    proofs = {receipt_id: bench.holdgate("log", "prove", receipt_id).stdout for receipt_id in some}
    verifier = Path(__file__).resolve().parents[1] / "interop" / "verify.mjs"
    words = ["node", str(verifier), str(bench.gate.state_dir / "log"), str(keys)]
    done = subprocess.run(words, input=json.dumps(proofs), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert (counts["size"], counts["proofs"]) == (len(ids), 3)
