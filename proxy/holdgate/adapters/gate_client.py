"""Asks a remote gate over HTTP, within a deadline, and reports outcomes to it.

One question, one connection attempt, no redirect, no retry: a question asked twice could be counted twice.
Each has a name of its own, so that no gate takes it for one that somebody else asked, or for an earlier one
whose permit was used; a question whose answer did not come keeps its name.
Whatever goes wrong is BackendError(GATE_TIMEOUT): SILENCE, and worth another try by the agent.

Invariants (tests/test_gate_client.py):
  GC1  No answer within the deadline, no answer at all, a redirect, or too long an answer: BackendError.
  GC2  An outcome is reported once, of what the gate permitted, not_sent where nothing was recorded under its
       permit; that it cannot be told changes nothing here.
  GC3  No two questions have one name, but for one that is asked again because its answer did not come.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Self

import aiohttp

from ..config_gate import RemoteGate
from ..errors import BackendError, ConfigError, Outcome, Reason
from ..keys import KeyDocumentError, KeySet, parse_jwks
from ..ledger import Judge, Ledger, OutcomeStatus, Recorded
from ..questions import QUESTION_ID
from ..remote_gate import PATHS, Asked, Remote, RemoteError, Told, combine, engine, questions, read_answer
from ..sealing import KeptAnswer
from ..standing import Made
from .unasked import OwnAnswer

__all__ = ["GateClient", "ReportingLedger"]

log = logging.getLogger("holdgate.gate")

_MAX_ANSWER: Final = 65_536
_REPORT_S: Final = 5.0
_MAX_LOST: Final = 1024


@dataclass(slots=True, kw_only=True)
class GateClient:
    """Make one with open(), in the event loop."""

    config: RemoteGate
    keys: KeySet
    session: aiohttp.ClientSession
    clock_us: Callable[[], int]
    reports: set[asyncio.Task[None]] = field(default_factory=set)
    permits: dict[str, str] = field(default_factory=dict)  # our receipt -> its
    lost: dict[bytes, str] = field(default_factory=dict)  # names of questions whose answer did not come

    @classmethod
    def open(cls, config: RemoteGate, clock_us: Callable[[], int]) -> Self:
        """Raises ConfigError when a file of `gate:` cannot be used."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        try:
            keys = parse_jwks(config.keys_file.read_bytes()) if config.keys_file is not None else {}
            if config.token_file is not None:
                headers["Authorization"] = f"Bearer {config.token_file.read_text(encoding='ascii').strip()}"
            context = ssl.create_default_context()
            if config.ca_file is not None:
                context.load_verify_locations(config.ca_file)
            if config.client_cert is not None and config.client_key is not None:
                context.load_cert_chain(config.client_cert, config.client_key)
        except (OSError, ValueError, KeyDocumentError) as error:
            raise ConfigError(
                f"gate: {error}", file=str(config.keys_file or config.token_file or "")
            ) from error
        session = aiohttp.ClientSession(
            headers=headers,
            connector=aiohttp.TCPConnector(ssl=context, limit=256),
            timeout=aiohttp.ClientTimeout(total=config.timeout_ms / 1000),
            trust_env=False,  # no proxy variable may lead the question elsewhere
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            request_class=OwnAnswer,
        )
        return cls(config=config, keys=keys, session=session, clock_us=clock_us)

    async def decide(self, asked: Asked) -> Remote:
        """Raises BackendError(GATE_TIMEOUT)."""
        protocol, names = self.config.protocol, dict[bytes, str]()
        try:
            async with asyncio.timeout(self.config.timeout_ms / 1000):
                bodies = questions(protocol, asked)
                names = {body: self.lost.pop(_known(body), "") or secrets.token_hex(16) for body in bodies}
                told = await asyncio.gather(*(self._ask(body, names[body], asked) for body in bodies))
        except asyncio.CancelledError:
            self._lose(names)
            raise
        except (TimeoutError, RemoteError, aiohttp.ClientError, OSError) as error:
            self._lose(names)
            detail = f"{self.config.url}: {str(error) or type(error).__name__}"
            raise BackendError(Reason.GATE_TIMEOUT, detail) from error
        decision = combine([each.decision for each in told])
        return Remote(decision=decision, engine=engine(protocol), id=told[0].id if told else "")

    def _lose(self, names: Mapping[bytes, str]) -> None:
        self.lost |= {_known(body): name for body, name in names.items()}
        while len(self.lost) > _MAX_LOST:
            del self.lost[next(iter(self.lost))]

    async def _ask(self, body: bytes, name: str, asked: Asked) -> Told:
        protocol = self.config.protocol
        url, headers = self.config.url + PATHS[protocol], {QUESTION_ID: name}
        async with self.session.post(url, data=body, headers=headers, allow_redirects=False) as answer:
            data = await _bounded(answer)
            return read_answer(protocol, answer.status, data, asked, self.keys, now_us=self.clock_us())

    def recorded(self, remote: Remote, receipt_id: str, outcome: Outcome) -> None:
        if outcome is not Outcome.PERMIT:  # a claim here refused what it permitted
            self.unused(remote)
        elif _counts(remote):
            self.permits[receipt_id] = remote.id

    def unused(self, remote: Remote) -> None:
        if _counts(remote):
            self._tell(remote.id, OutcomeStatus.NOT_SENT, 0)

    def report(self, receipt_id: str, status: OutcomeStatus, http_status: int) -> None:
        """Tell the gate what became of its permit, in the background; nothing when it gave none."""
        remote_id = self.permits.pop(receipt_id, "")
        if remote_id != "" and status is not OutcomeStatus.RECONCILED:
            self._tell(remote_id, status, http_status)

    def _tell(self, remote_id: str, status: OutcomeStatus, http_status: int) -> None:
        task = asyncio.ensure_future(self._report(remote_id, status, http_status))
        self.reports.add(task)
        task.add_done_callback(self.reports.discard)

    async def _report(self, remote_id: str, status: OutcomeStatus, http_status: int) -> None:
        body: dict[str, str | int] = {"id": remote_id, "status": status.value}
        if http_status:
            body["http_status"] = http_status
        try:
            async with asyncio.timeout(_REPORT_S):
                async with self.session.post(
                    f"{self.config.url}/v1/outcome", json=body, allow_redirects=False
                ) as answer:
                    if answer.status != 200:
                        log.warning("%s: the gate did not take the outcome: %s", remote_id, answer.status)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            # It will say `unknown`; our own log has what happened.
            log.warning("%s: the gate could not be told the outcome: %r", remote_id, error)

    async def close(self) -> None:
        """Wait for the reports that are under way, then let go of the connections."""
        if self.reports:
            await asyncio.wait(self.reports, timeout=_REPORT_S)
        await self.session.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportingLedger:
    """A ledger whose outcomes a remote gate hears of."""

    ledger: Ledger
    client: GateClient

    async def record(self, judge: Judge) -> Recorded:
        return await self.ledger.record(judge)

    def record_outcome(
        self,
        receipt_id: str,
        status: OutcomeStatus,
        http_status: int,
        *,
        delivered: bool,
        made: Made | None = None,
        kept: KeptAnswer | None = None,
    ) -> None:
        self.ledger.record_outcome(receipt_id, status, http_status, delivered=delivered, made=made, kept=kept)
        self.client.report(receipt_id, status, http_status)


def _known(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()


def _counts(remote: Remote) -> bool:
    """Whether the gate expects an outcome."""
    return remote.id != "" and remote.decision.outcome is Outcome.PERMIT


async def _bounded(answer: aiohttp.ClientResponse) -> bytes:
    data = bytearray()
    async for chunk in answer.content.iter_chunked(16_384):
        data += chunk
        if len(data) > _MAX_ANSWER:
            raise RemoteError(f"an answer of more than {_MAX_ANSWER} bytes")
    return bytes(data)
