"""`make bench BENCH=--audit`: `holdgate log audit` against bare Ed25519 verification of the same receipts.

    requests -> the real pipeline and ledger, a stand-in vendor -> a log -> audited, and verified bare

One process, one core, CPU time, the two in turns, a few hundred receipts each; the median of the runs.
README.md beside this file says what the rows are.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # fakes.py, evidence.py

from evidence import coverage_details
from fakes import FakeClient, FakeMeter, FakeUpstream
from holdgate.adapters.keyfiles import create_keys, load_keys, load_log_keys, load_public_keys
from holdgate.adapters.sqlite import SqliteLedger
from holdgate.adapters.sqlite_reader import SqliteReader
from holdgate.adjudicate import Evidence
from holdgate.agents import Agent
from holdgate.answer import DispatchError
from holdgate.audit import audit
from holdgate.bundle import NEVER_US, Bundle
from holdgate.captured import read_captured
from holdgate.files import packaged
from holdgate.headers import Verdicts
from holdgate.keys import KeySet, unb64url
from holdgate.ledger import AdminNote, OutcomeStatus
from holdgate.limits import Limits
from holdgate.pipeline import Pipeline
from holdgate.policy import load_policies
from holdgate.release import Release
from holdgate.surface.index import SurfaceIndex
from holdgate.surface.load import load_maps

RECEIPTS, TURNS = 20_000, 5
ORIGIN, NODE = "holdgate.local/bench-1", "bench-1"
AGENTS = tuple(Agent(id=name, groups=("bench",), attrs=()) for name in ("refund-bot", "triage", "courier"))
AT_ONCE = 64


# --- the log ------------------------------------------------------------------------------------


def _refund(number: int, amount: int) -> bytes:
    body = b"amount=%d&payment_intent=pi_%012d&metadata[order]=6735-%d" % (amount, number, number)
    return _post(
        b"api.stripe.com", b"/v1/refunds", b"application/x-www-form-urlencoded", body, b"order-%d" % number
    )


def _observation(number: int) -> bytes:
    """Of a sensitive operation: its input is sealed, and digests are keyed."""
    body = b'{"resourceType":"Observation","status":"final","subject":{"reference":"Patient/p%d"}' % number
    body += b',"code":{"text":"pulse"},"valueQuantity":{"value":%d}}' % (60 + number % 40)
    return _post(b"fhir.example.org", b"/fhir/R4/Observation", b"application/fhir+json", body)


def _message(number: int) -> bytes:
    body = b'{"channel":"C%08d","text":"order %d is on its way"}' % (number % 50, number)
    return _post(b"slack.com", b"/api/chat.postMessage", b"application/json; charset=utf-8", body)


def _post(host: bytes, path: bytes, kind: bytes, body: bytes, key: bytes = b"") -> bytes:
    head = b"POST %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer xoxb-test\r\n" % (path, host)
    head += b"Content-Type: %s\r\nContent-Length: %d\r\n" % (kind, len(body))
    return head + (b"Idempotency-Key: %s\r\n" % key if key else b"") + b"\r\n" + body


def _read(number: int) -> bytes:
    head = b"GET /v1/charges/ch_%012d HTTP/1.1\r\nHost: api.stripe.com\r\n" % number
    return head + b"Authorization: Bearer sk_test\r\n\r\n"


def _nowhere(number: int) -> bytes:
    return b"GET /%d HTTP/1.1\r\nHost: files.example.net\r\n\r\n" % number


# What agents send, and how often out of 20; most is small and permitted, as in any log that is long.
MIX: tuple[tuple[int, Callable[[int], bytes]], ...] = (
    (9, lambda number: _refund(number, 100 + number % 9_000)),
    (1, lambda number: _refund(number, 200_000)),  # DENY
    (1, lambda number: _refund(number, 20_000 + number % 70_000)),  # SILENCE: no rule
    (2, _observation),
    (3, _message),
    (3, _read),
    (1, _nowhere),  # SILENCE: no such destination
)


class _Vendor(FakeUpstream):
    """Answers 200; every 40th 402, and every 90th not at all."""

    def __init__(self) -> None:
        super().__init__()
        self._count = itertools.count(1)

    async def dispatch(self, release: Release) -> object:  # type: ignore[override]
        number = next(self._count)
        self.seen.clear()
        self.exchanges.clear()
        self.status = 200 if number % 40 else 402
        self.error = None if number % 90 else DispatchError(OutcomeStatus.UNKNOWN, 0, "no answer")
        return await super().dispatch(release)


def write_log(state: Path, receipts: int = RECEIPTS) -> None:
    """A state directory with about so many receipts."""
    asyncio.run(_write(state, receipts))


async def _write(state: Path, receipts: int) -> None:
    create_keys(state)
    keys = load_keys(state)
    ledger = SqliteLedger.open(
        state,
        receipt_key=keys.receipt,
        log_key=keys.log,
        origin=ORIGIN,
        node=NODE,
        clock_us=lambda: time.time_ns() // 1000,
        nonce16=lambda: secrets.token_bytes(16),
    )
    pipeline = _pipeline(ledger, keys.fleet)
    kinds = [make for share, make in MIX for _ in range(share)]
    at_once = asyncio.Semaphore(AT_ONCE)

    async def send(number: int) -> None:
        async with at_once:
            raw = kinds[number % len(kinds)](number)
            message = read_captured(raw, pipeline.limits, pipeline.bundle.index)
            await pipeline.handle(message, FakeClient())

    per_request = 1.8  # about: every PERMIT has an outcome
    for begin in range(0, int(receipts / per_request), 400):
        async with asyncio.TaskGroup() as group:
            for number in range(begin, begin + 400):
                group.create_task(send(number))
        details = coverage_details()
        await ledger.note(AdminNote(action="coverage", by="local", details=details))
    ledger.close()


def _pipeline(ledger: SqliteLedger, fleet_key: bytes) -> Pipeline:
    index = SurfaceIndex.compile(load_maps([packaged("surfaces")]))
    policies = [
        path for path in sorted(packaged("policies").glob("*.yaml")) if not path.stem.endswith("_test")
    ]
    agents = itertools.cycle(AGENTS)
    return Pipeline(
        bundle=Bundle(
            ends_us=NEVER_US,
            digest="sha256:" + "5a" * 32,
            revision=7,
            signed=True,
            index=index,
            policies=load_policies(policies, index),
        ),
        identify=lambda _: next(agents),
        ledger=ledger,
        dispatcher=_Vendor(),  # type: ignore[arg-type]  # it answers, and reaches nobody
        evidence=Evidence(
            signer=ledger.signer, issuer=ORIGIN, node=NODE, fleet_key=fleet_key, draw=secrets.token_bytes
        ),
        show=Verdicts(node=NODE, full=True, public_url=None),
        limits=Limits(refusals_per_agent_s=10**6),
        meter=FakeMeter(),
        clock=time.monotonic,
    )


# --- the two that are compared -------------------------------------------------------------------


type Signed = tuple[bytes, bytes]  # signing input, signature


def read_signed(state: Path) -> list[Signed]:
    """Every signing input and its signature, in memory."""
    with SqliteReader(state) as reader:
        split = [stored.jws.rpartition(b".") for stored in reader.export()]
    return [(said, unb64url(signature)) for said, _, signature in split]


def verified_bare(signed: Sequence[Signed], keys: KeySet) -> None:
    (key,) = keys.values()
    for said, signature in signed:
        assert key.verifies(said, signature)


@dataclass(frozen=True, slots=True)
class Row:
    receipts: int
    bytes: float  # of a receipt, on average
    audit_us: float
    bare_us: float

    @property
    def ratio(self) -> float:
        return self.bare_us / self.audit_us


def turn(state: Path, signed: Sequence[Signed], receipt_keys: KeySet) -> Row:
    """One audit, as `holdgate log audit` does it with one core, but for SQLite's own check of its file.

    Whenever it has audited some hundred receipts, those are verified bare: what else the machine does
    slows both. The time of each is added up apart.
    """
    clock, spent, bare, done = time.process_time, 0.0, 0.0, 0
    gc.collect()
    gc.disable()  # as the command does

    def between(size: int) -> None:
        nonlocal spent, bare, done, begin
        end = clock()
        verified_bare(signed[done:size], receipt_keys)
        spent, bare, done, begin = spent + end - begin, bare + clock() - end, size, clock()

    begin = clock()
    with SqliteReader(state) as reader:
        report = audit(
            reader.audit_input(),
            origin=ORIGIN,
            receipt_keys=receipt_keys,
            log_keys=load_log_keys(state),
            progress=between,
        )
        reader.end_audit()
    spent += clock() - begin
    gc.enable()
    if not report.is_clean or report.size != len(signed):
        raise SystemExit("the log that was written is not clean")
    size = sum(len(said) + 87 for said, _ in signed) / len(signed)
    return Row(report.size, size, spent / report.size * 1e6, bare / done * 1e6)


def measured(work: Path, receipts: int = RECEIPTS, turns: int = TURNS) -> Row:
    """The turn whose ratio is the median; one turn before them warms up."""
    state = work / "state"
    state.mkdir(mode=0o700)
    write_log(state, receipts)
    signed, keys = read_signed(state), load_public_keys(state)
    rows = [turn(state, signed, keys) for _ in range(turns + 1)][1:]
    return sorted(rows, key=lambda row: row.ratio)[len(rows) // 2]


def main(receipts: int = RECEIPTS, turns: int = TURNS) -> int:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory(prefix="holdgate-bench-") as folder:
        row = measured(Path(folder), receipts, turns)
    print(
        f"{row.receipts} receipts of {row.bytes:.0f} bytes, CPU time of each on one core, median of {turns}"
    )
    print(f"{'log audit':<28} {row.audit_us:>8.1f} us")
    print(f"{'bare Ed25519 verification':<28} {row.bare_us:>8.1f} us")
    print(f"{'rate of the audit to bare':<28} {row.ratio:>8.2f}     (the aim is 0.5)")
    return 0
