"""One instance through everything that touches evidence; then strangers verify it from what was handed out.

    mixed load (permits, refusals, silences, sensitive operations, retries, the TrigGuard door), a kill -9 in
    each of three runs, the receipt key rotated, the log key rotated, the old receipt key revoked, an input
    shredded -> exports in a folder -> PyJWT, joserfc, openssl, Node, Go, trigguard, our `verify` elsewhere

The tools are given the exports, the public folder `log/` and nothing else of the instance.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from joserfc import jws as joserfc_jws
from joserfc.jwk import KeySet as JoserfcKeys

from holdgate.cli import main
from holdgate.demo.instance import Instance
from holdgate.demo.standins import StandIns

pytestmark = pytest.mark.slow

HERE = Path(__file__).resolve().parent
JOSE = os.environ.get("HOLDGATE_JOSE", "")
DECIDER = "s-decider"
CALLS = 90
FHIR = "https://fhir.example.org/fhir/R4/Observation"


@dataclass
class Lab:
    gate: Instance
    vendors: StandIns
    handed: Path
    intents: list[str] = field(default_factory=list)
    views: list[dict[str, Any]] = field(default_factory=list)  # what TrigGuard's door answered

    def holdgate(self, *words: str) -> str:
        """A command in this process: starting a Python for each would take longer than all of them."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([*words, "-c", str(self.gate.config)])
        assert code == 0, (words, out.getvalue()[-2000:], err.getvalue()[-2000:])
        return out.getvalue()

    def _send(self, url: str, data: bytes, headers: dict[str, str], *, proxied: bool = True) -> bytes:
        """What was answered; b"" when the instance was gone."""
        trust = ssl.create_default_context(cafile=str(self.gate.state_dir / "ca" / "ca.pem"))
        proxy = {"https": f"http://{self.gate.proxy}"} if proxied else {}
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler(proxy), urllib.request.HTTPSHandler(context=trust)
        )
        try:
            with opener.open(urllib.request.Request(url, data, headers), timeout=60) as answer:  # noqa: S310
                return bytes(answer.read())
        except (OSError, ValueError):  # refused, or killed in the middle
            return b""

    def call(self, number: int) -> None:
        """One call of a mixed load of six kinds; every tenth is an earlier one once more."""
        number -= 9 if number % 10 == 9 else 0
        key = {"Authorization": "Bearer sk_test_1", "Idempotency-Key": f"lab-{number}"}
        refund = "https://api.stripe.com/v1/refunds"
        match number % 6:
            case 0 | 1:
                self._send(refund, f"payment_intent={self.intents[number]}&amount={number + 1}".encode(), key)
            case 2:  # denied by a rule
                self._send(refund, b"payment_intent=pi_1&amount=900000", key)
            case 3:  # nobody decided
                self._send("https://unmapped.example.org/x", b"{}", {})
            case 4:  # sensitive
                kind = {"Content-Type": "application/fhir+json", "If-None-Exist": f"identifier={number}"}
                seen = {"subject": {"reference": f"Patient/{number}"}, "code": {"text": "x"}}
                body = {"resourceType": "Observation", "status": "final", **seen}
                self._send(FHIR, json.dumps(body).encode(), kind)
            case _:
                self._execute(number)

    def _execute(self, number: int) -> None:
        asked = {
            "surface": "payments.refund",
            "signals": {"amount": 500},
            "context": {
                "action": "stripe.PostRefunds",
                "reference": "pi_1",
                "idempotencyKey": f"tg-{number}",
            },
        }
        said = self._send(
            f"http://{self.gate.admin}/execute",
            json.dumps(asked).encode(),
            {"Authorization": f"Bearer {DECIDER}", "Content-Type": "application/json"},
            proxied=False,
        )
        if said:
            self.views.append(json.loads(said)["receipt"])

    def load(self, first: int, *, kill_after_s: float = 0.0) -> None:
        with ThreadPoolExecutor(8) as pool:
            done = pool.map(self.call, range(first, first + CALLS))
            if kill_after_s:
                killer = threading.Timer(kill_after_s, self.gate.kill)
                killer.start()
                killer.join()
            list(done)

    def some_id(self, *, sensitive: bool) -> str:
        for line in self.holdgate("receipts", "export").splitlines():
            said = json.loads(line)["receipt"]
            is_sensitive = "commitment" in said.get("request", {})
            if said.get("outcome") == "PERMIT" and is_sensitive == sensitive and "via" not in said:
                return str(said["id"])
        raise AssertionError("no such permit")


def _lived(folder: Path, vendors: StandIns) -> Lab:
    """The instance after its three lives, stopped; and what it handed out, in `handed`."""
    gate = Instance(folder / "gate", connect_to=vendors.connect_to())
    token = hashlib.sha256(DECIDER.encode()).hexdigest()
    tokens = f"tokens: {{d: {{sha256: {token}, roles: [decider], agents: [demo-agent]}}}}"
    text = gate.config.read_text()
    gate.config.write_text(text.replace("open: [metrics", f"{tokens}, open: [metrics"))
    lab = Lab(gate=gate, vendors=vendors, handed=folder / "handed")
    lab.intents = [vendors.stripe.charged(10_000) for _ in range(5 * CALLS)]
    lab.handed.mkdir()
    gate.start()
    (lab.handed / "first.vkey").write_text(lab.holdgate("keys", "export", "--format", "vkey"))
    lab.load(0)
    lab.load(CALLS, kill_after_s=0.4)
    gate.start()
    (lab.handed / "earlier.checkpoint").write_text(lab.holdgate("log", "checkpoint"))
    old = next(row["kid"] for row in json.loads(lab.holdgate("keys", "list", "--json")))
    lab.holdgate("keys", "rotate", "receipt")
    lab.load(2 * CALLS, kill_after_s=0.4)
    gate.start()
    lab.holdgate("keys", "rotate", "log")
    lab.holdgate("keys", "revoke", old)
    lab.holdgate("receipts", "shred", lab.some_id(sensitive=True))
    lab.load(3 * CALLS, kill_after_s=0.4)
    gate.start()
    lab.load(4 * CALLS)
    assert gate.stop() == 0
    for name, words in {
        "keys.json": ("keys", "export"),
        "keys.pem": ("keys", "export", "--format", "pem"),
        "trigguard.json": ("keys", "export", "--format", "trigguard"),
        "log.vkey": ("keys", "export", "--format", "vkey"),
        "changes": ("keys", "export", "--format", "changes"),
        "receipts.jws": ("receipts", "export", "--raw"),
    }.items():
        (lab.handed / name).write_text(lab.holdgate(*words))
    shutil.copytree(gate.state_dir / "log", lab.handed / "log")
    return lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    with StandIns() as vendors:
        return _lived(tmp_path_factory.mktemp("lab"), vendors)


@pytest.fixture(scope="module")
def receipts(lab: Lab) -> list[str]:
    return (lab.handed / "receipts.jws").read_text().splitlines()


@pytest.fixture(scope="module")
def proofs(lab: Lab, receipts: list[str]) -> dict[int, str]:
    """By index: the first and last of each kind, and some between."""
    said = [_said(token) for token in receipts]
    kinds = [(row["type"], row.get("action", row.get("outcome", row.get("status")))) for row in said]
    ends = {kinds.index(kind) for kind in kinds} | {
        len(kinds) - 1 - kinds[::-1].index(kind) for kind in kinds
    }
    wanted = sorted(ends | set(range(0, len(said), 40)))
    return {index: lab.holdgate("log", "prove", said[index]["id"]) for index in wanted}


def _said(token: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    return found


def _kid(token: str) -> str:
    return str(json.loads(base64.urlsafe_b64decode(token.split(".")[0] + "=="))["kid"])


def test_the_load_was_mixed_and_the_log_is_clean(lab: Lab, receipts: list[str]) -> None:
    said = [_said(token) for token in receipts]
    assert {row["action"] for row in said if row["type"] == "admin"} == {"key_rotate", "key_revoke", "shred"}
    assert {row.get("outcome") for row in said} == {"PERMIT", "DENY", "SILENCE", None}
    assert {"executed", "unknown"} <= {row["status"] for row in said if row["type"] == "outcome"}
    assert any("commitment" in row.get("request", {}) for row in said)
    assert any("replay_of" in row or row.get("reason") == "already_executed" for row in said)
    assert len({_kid(token) for token in receipts}) == 2
    checkpoint = str(lab.handed / "earlier.checkpoint")
    audited = lab.holdgate("log", "audit", "--since-checkpoint", checkpoint)
    assert re.search(r", 1 destroyed by order\nclean\n\Z", audited), audited


def test_pyjwt_joserfc_and_openssl_accept_what_was_handed_out(
    lab: Lab, receipts: list[str], tmp_path: Path
) -> None:
    jwt = pytest.importorskip("jwt", reason="PyJWT is not installed")
    document = json.loads((lab.handed / "keys.json").read_text())
    keys = {row["kid"]: jwt.PyJWK(row) for row in document["keys"]}
    others, plain = JoserfcKeys.import_key_set(document), jwt.PyJWS()
    for token in receipts:
        assert json.loads(plain.decode(token, keys[_kid(token)], algorithms=["EdDSA"])) == _said(token)
        assert joserfc_jws.deserialize_compact(token, others, algorithms=["EdDSA"]).payload
    pems = re.findall(r"-+BEGIN.+?END PUBLIC KEY-+\n", (lab.handed / "keys.pem").read_text(), re.DOTALL)
    for token in (receipts[0], receipts[-1]):
        signed, _, signature = token.rpartition(".")
        (tmp_path / "signed").write_text(signed)
        (tmp_path / "signature").write_bytes(base64.urlsafe_b64decode(signature + "=="))
        codes = []
        for pem in pems:
            (tmp_path / "key.pem").write_text(pem)
            words = [
                "openssl",
                "pkeyutl",
                "-verify",
                "-pubin",
                "-inkey",
                "key.pem",
                "-rawin",
                "-in",
                "signed",
            ]
            done = subprocess.run([*words, "-sigfile", "signature"], cwd=tmp_path, capture_output=True)
            codes.append(done.returncode)
        assert sorted(codes) == [0, 1], "exactly one of the two keys signed it"


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_node_accepts_log_receipts_and_proofs(lab: Lab, receipts: list[str], proofs: dict[int, str]) -> None:
    given = json.dumps({_said(receipts[index])["id"]: text for index, text in proofs.items()})
    words = ["node", str(HERE / "verify.mjs"), str(lab.handed / "log"), str(lab.handed / "keys.json")]
    for more in ([], [JOSE]) if JOSE else ([],):
        done = subprocess.run([*words, *more], input=given, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        counts = json.loads(done.stdout)
        assert (counts["size"], counts["proofs"], counts["admin"]) == (len(receipts), len(proofs), 4)


def test_go_accepts_the_log_and_that_it_grew_from_its_change_of_key(
    lab: Lab, receipts: list[str], proofs: dict[int, str], go: Path, tmp_path: Path
) -> None:
    # The note of the change is signed by both keys, so Go opens it with the new one alone.
    (tmp_path / "change").write_text((lab.handed / "changes").read_text().split("\n\n", 1)[1])
    words = [str(go), str(lab.handed / "log"), str(tmp_path / "change")]
    done = subprocess.run(words, input=json.dumps(proofs), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["size"], found["proofs"]) == (len(receipts), len(proofs)) and found["earlier"]


def test_the_vendors_verifier_accepts_the_views_under_both_keys(lab: Lab) -> None:
    trigguard = pytest.importorskip("trigguard", reason="the trigguard SDK is not installed")
    document = json.loads((lab.handed / "trigguard.json").read_text())
    for view in lab.views:
        assert trigguard.verify_receipt_signature_detailed(view, document).ok
    assert len({view["authorityKeyId"] for view in lab.views}) == 2


def test_verify_needs_the_handed_files_and_an_empty_folder(
    lab: Lab, receipts: list[str], proofs: dict[int, str], tmp_path: Path
) -> None:
    """From the log key of the first day on; the receipts of the revoked key count by their proofs."""
    common = ["--keys", "keys.json", "--log-key", "first.vkey", "--log-changes", "changes"]
    for name in ("keys.json", "first.vkey", "changes"):
        shutil.copy(lab.handed / name, tmp_path)
    with contextlib.chdir(tmp_path):
        for index, proof in proofs.items():
            Path("one.jws").write_text(receipts[index])
            Path("one.tlog-proof").write_text(proof)
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                code = main(["verify", *common, "--proof", "one.tlog-proof", "one.jws"])
            assert code == 0 and f"leaf {index} of {len(receipts)}" in out.getvalue(), out.getvalue()
    (tmp_path / "one.jws").write_text(receipts[0])
    words = [sys.executable, "-m", "holdgate", "verify", *common, "one.jws"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "its key was revoked" in done.stdout
