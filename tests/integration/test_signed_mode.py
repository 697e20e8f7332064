"""Signed policies on a running instance: taken, refused, rolled back, raced with requests, and ended."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from holdgate.adapters.admin.shapes import decode_jws
from holdgate.adapters.sqlite_reader import SqliteReader
from holdgate.cli import main
from holdgate.demo.instance import Instance
from holdgate.demo.standins import StandIns

requests = pytest.importorskip("requests")
pytestmark = pytest.mark.slow

_WITHIN_S = 15
_POLICY = """\
apiVersion: holdgate/v1
kind: Policy
metadata: {{name: refunds, owner: payments@example.com}}
spec:
  surface: payments.refund
  rules:
  - id: small
    effect: permit
    when: has(params.amount) && params.amount >= 1 && params.amount <= {most}
  - {{id: large, effect: deny, reason: too large, when: has(params.amount) && params.amount > {most}}}
"""
_TEST = """\
apiVersion: holdgate/v1
kind: PolicyTest
metadata: {{name: refunds}}
spec:
  policy: refunds
  defaults: {{params: {{reference: pi_1}}}}
  cases:
  - {{name: small, with: {{params: {{amount: {most}}}}}, expect: PERMIT}}
"""


def holdgate(*words: object) -> tuple[int, str]:
    """A command, in this process; its exit code and what it printed."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = main([str(word) for word in words])
    return code, said.getvalue()


@dataclass
class Node:
    gate: Instance
    intents: tuple[str, ...]  # payments to refund; two refunds of one at the same time are a conflict
    keys: tuple[Path, ...]
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def bundles(self) -> Path:
        return self.gate.folder / "bundles"

    def command(self, *words: object) -> tuple[int, dict[str, Any]]:
        code, said = holdgate(*words, "-c", self.gate.config, "--json")
        return code, json.loads(said)

    def built(self, name: str, most: int, *words: object) -> Path:
        """A bundle that permits refunds up to `most`, signed by two of three."""
        policies = self.gate.folder / "policies"
        (policies / "refunds.yaml").write_text(_POLICY.format(most=most))
        (policies / "refunds_test.yaml").write_text(_TEST.format(most=most))
        out = self.gate.folder / name
        assert self.command("bundle", "build", "--warn", "--out", out, *words)[0] == 0
        assert holdgate("bundle", "sign", out, "--key", self.keys[0], "--key", self.keys[2])[0] == 0
        return out

    def activated(self, folder: Path) -> str:
        code, said = self.command("bundle", "activate", folder)
        assert (code, said["active"], said["refused"]) == (0, True, [])
        return str(said["digest"])

    def refund(self, amount: int, intent: int = 0) -> dict[str, Any]:
        """Ask for a refund as an agent; the receipt that came with the answer."""
        answer = requests.post(
            "https://api.stripe.com/v1/refunds",
            data={"payment_intent": self.intents[intent], "amount": amount},
            headers={"Authorization": "Bearer sk_test_1", "Idempotency-Key": f"refund-{next(self.numbers)}"},
            proxies={"https": f"http://{self.gate.proxy}"},
            verify=str(self.gate.state_dir / "ca" / "bundle.pem"),
            timeout=60,
        )
        said = decode_jws(answer.headers["Holdgate-Receipt"].encode())
        assert (answer.status_code == 200) == (said["outcome"] == "PERMIT")
        return said

    def reload(self) -> None:
        os.kill(self.gate.pid, signal.SIGHUP)

    def refused(self, digest: str) -> str:
        """The reason in the admin receipt about a bundle that was not taken."""

        def newest() -> Any:
            with SqliteReader(self.gate.state_dir) as reader:
                stored = reader.newest_admin("policy_rejected")
            details = {} if stored is None else decode_jws(stored.jws)["details"]
            return details["reason"] if details.get("digest") == digest else None

        return str(until(newest))

    def metric(self, line: str) -> bool:
        with contextlib.closing(requests.get(f"http://{self.gate.admin}/metrics", timeout=60)) as answer:
            return line in answer.text.splitlines()


def until(found: Callable[[], Any]) -> Any:
    """The first true answer."""
    deadline = time.monotonic() + _WITHIN_S
    while not (value := found()):
        assert time.monotonic() < deadline, "it did not come"
    return value


def digest_of(folder: Path) -> str:
    _, said = holdgate("bundle", "verify", folder, "--trust", folder.parent / "trust.json", "--json")
    return str(json.loads(said)["digest"])


@pytest.fixture(scope="module")
def node(vendors: StandIns, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """It runs; nothing is active yet."""
    folder = tmp_path_factory.mktemp("signed")
    stripe = {name: to for name, to in vendors.connect_to().items() if name.startswith("api.stripe.com")}
    extra = "bundle: {mode: signed, trust: ./trust.json, dir: ./bundles}"
    gate = Instance(folder, connect_to=stripe, extra=extra)
    for name in ("surfaces", "policies"):
        for path in (folder / name).iterdir():
            if path.name != "stripe":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    keys = tuple(folder / f"{who}.key" for who in ("alice", "bob", "carol"))
    for key in keys:
        assert holdgate("bundle", "keygen", key)[0] == 0
    public = [word for key in keys for word in ("--key", f"{key}.pub")]
    assert holdgate("bundle", "trust", folder / "trust.json", *public, "--threshold", 2)[0] == 0
    (folder / "bundles").mkdir()
    with gate:
        yield Node(gate, tuple(vendors.stripe.charged(10**8) for _ in range(3)), keys)


def decided(said: dict[str, Any]) -> tuple[str, str, str, bool]:
    return said["outcome"], said["reason"], said["policy"]["digest"], said["policy"]["signed"]


def test_nothing_is_permitted_before_a_bundle_is_active(node: Node) -> None:
    said = node.refund(100)
    assert (said["outcome"], said["reason"]) == ("SILENCE", "policy_unavailable")


def test_what_two_of_three_signed_decides_and_receipts_say_so(node: Node) -> None:
    folder = node.built("first", 1000)
    one = node.gate.folder / "one-signature"
    shutil.copytree(folder, one)
    (one / "manifest.sig.json").unlink()
    assert holdgate("bundle", "sign", one, "--key", node.keys[1])[0] == 0
    code, said = node.command("bundle", "activate", one)
    assert (code, said["reason"]) == (1, "below_threshold")
    digest = node.activated(folder)
    assert decided(node.refund(100)) == ("PERMIT", "permit_rule", digest, True)
    assert decided(node.refund(1001)) == ("DENY", "deny_rule", digest, True)


def test_a_tampered_and_an_older_bundle_are_refused_and_the_last_good_one_decides(node: Node) -> None:
    older = node.built("older", 2000)
    node.activated(older)
    last = node.built("last", 3000)
    digest = node.activated(last)
    tampered = node.built("tampered", 4000)
    claimed = digest_of(tampered)
    policy = tampered / "policies" / "refunds.yaml"
    policy.write_text(policy.read_text().replace("4000", "9999"))
    assert node.command("bundle", "activate", tampered)[0] == 1
    # Past the command: the folder is there, as somebody who can write it would have it.
    shutil.copytree(tampered, node.bundles / "tampered")
    node.reload()
    assert node.refused(claimed) == "hash_mismatch"
    assert decided(node.refund(2500)) == ("PERMIT", "permit_rule", digest, True)
    assert decided(node.refund(3500)) == ("DENY", "deny_rule", digest, True)

    shutil.rmtree(node.bundles)
    node.bundles.mkdir()
    shutil.copytree(older, node.bundles / "zzz")
    node.reload()
    assert node.refused(digest_of(older)) == "revision_too_low"
    assert decided(node.refund(2501)) == ("PERMIT", "permit_rule", digest, True)
    assert node.metric('holdgate_bundle_rejected_total{reason="revision_too_low"} 1.0')


def test_a_rollback_is_the_old_content_with_a_higher_revision(node: Node) -> None:
    good = node.activated(node.built("good", 500))
    bad = node.activated(node.built("bad", 50))
    denied = node.refund(101)
    assert decided(denied) == ("DENY", "deny_rule", bad, True)
    back = node.gate.folder / "back"
    keys = [word for key in node.keys[:2] for word in ("--key", key)]
    code, said = node.command("bundle", "rollback", "--to", good, "--out", back, *keys)
    assert (code, said["to"], said["revision"]) == (0, good, denied["policy"]["revision"] + 1)
    digest = node.activated(back)
    permitted = node.refund(102)
    assert decided(permitted) == ("PERMIT", "permit_rule", digest, True)
    assert permitted["policy"]["revision"] == said["revision"] and digest != good


def test_requests_that_race_with_a_reload_are_each_decided_under_one_bundle(node: Node) -> None:
    wide = node.activated(node.built("wide", 100_000))
    narrow_folder = node.built("narrow", 10)
    narrow = digest_of(narrow_folder)
    seen: list[dict[str, Any]] = []
    swapped = threading.Event()

    def agent(intent: int) -> None:
        for number in range(200):
            seen.append(node.refund(1000 + number, intent))
            if number >= 10 and swapped.is_set() and seen[-1]["policy"]["digest"] == narrow:
                return

    agents = [threading.Thread(target=agent, args=(intent,)) for intent in range(3)]
    for each in agents:
        each.start()
    until(lambda: len(seen) > 5)
    shutil.copytree(narrow_folder, node.bundles / ".narrow")
    (node.bundles / ".narrow").rename(node.bundles / "narrow")
    node.reload()
    swapped.set()
    for each in agents:
        each.join()
    assert {decided(said) for said in seen} == {
        ("PERMIT", "permit_rule", wide, True),
        ("DENY", "deny_rule", narrow, True),
    }
    # Nothing goes back: in log order, one bundle and then the other.
    in_order = [said["policy"]["digest"] for said in sorted(seen, key=lambda said: said["iat"])]
    assert in_order == sorted(in_order, key=lambda digest: digest == narrow)


def test_a_bundle_that_ends_while_it_is_active_decides_nothing_more(node: Node) -> None:
    begins = datetime.now(UTC) - timedelta(days=1) + timedelta(seconds=8)
    folder = node.built("short", 1000, "--days", 1, "--not-before", begins.isoformat())
    digest = node.activated(folder)
    assert decided(node.refund(103)) == ("PERMIT", "permit_rule", digest, True)
    ended = until(lambda: (said := node.refund(104))["outcome"] == "SILENCE" and said)
    assert decided(ended) == ("SILENCE", "policy_expired", digest, True)
    assert decided(node.refund(1001)) == ("SILENCE", "policy_expired", digest, True), (
        "nothing is denied either"
    )
    # The next one is taken, and decides again.
    assert decided(node.refund(105))[0] == "SILENCE"
    after = node.activated(node.built("after", 1000))
    assert decided(node.refund(106)) == ("PERMIT", "permit_rule", after, True)
