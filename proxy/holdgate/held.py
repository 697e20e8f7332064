"""How far one held request has come: what each step of the pipeline has found out so far.

Nothing here decides or permits; a Held that stays as it was made is a refusal.

Invariants (tests/test_pipeline.py):
  HE1  A request is recognised, decided and answered under exactly one bundle: the one that was active when it
       arrived; or, when that was superseded before its PERMIT was recorded, all of it again under the next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from .agents import Agent
from .bundle import Bundle
from .canonical import CanonicalRequest
from .case import Case, Target, flight_name
from .digest import raw_digest
from .errors import BackendError, Reason
from .message import Message, Origin, RequestHead
from .surface.model import Recognised

__all__ = ["Client", "Gone", "Held", "claimed_host"]

RENEWALS: Final = 3  # three activations within one request: something is wrong


class Client(Protocol):
    """The agent's side of a held request."""

    gone: bool

    def on_gone(self, callback: Callable[[], object]) -> None: ...


class Gone:
    """The client of bytes that never became a request: nobody waits for a release."""

    gone = True

    def on_gone(self, callback: Callable[[], object]) -> None:
        callback()


@dataclass(slots=True)
class Held:
    """How far one request has come. Nothing here permits anything."""

    message: Message
    client: Client
    arrived: float
    bundle: Bundle  # taken once: a reload in between changes nothing, or begins the request again
    agent: Agent | None = None
    request: CanonicalRequest | None = None
    asked: Target | None = None  # in place of a request: an action that a decision door was asked about
    recognised: Recognised | None = None
    wire: str = ""
    body_sha256: bytes = b""  # of a sensitive operation: its commitment is made in the store's serial step
    waiting: bool = False  # for the answer of an identical request
    renewed: int = 0  # times that it was begun again
    via: str = ""  # the decision door that asks; "": a request of an agent

    def renew(self, bundle: Bundle) -> bool:
        """Begin again under another bundle; False when that was done often enough."""
        if self.renewed >= RENEWALS:
            return False
        self.bundle, self.request, self.recognised, self.wire, self.body_sha256 = bundle, None, None, "", b""
        self.renewed += 1
        return True

    @property
    def who(self) -> str:
        """The agent, or where somebody who is none calls from."""
        return self.agent.id if isinstance(self.agent, Agent) else f"[{self.message.origin.source}]"

    def case(self, refusal: Reason | None, fleet_key: bytes, *, count: int = 1) -> Case:
        """What is known so far, for the judge."""
        raw = ""
        if self.recognised is None:
            raw = raw_digest(_head_bytes(self.message.head), self.message.body, key=fleet_key)
        return Case(
            agent=self.agent,
            request=self.request or self.asked,
            recognised=self.recognised,
            wire=self.wire,
            raw_digest=raw,
            raw_bytes=len(self.message.body),
            refusal=refusal,
            count=count,
            via=self.via,
            body_sha256=self.body_sha256,
        )

    @property
    def flight_name(self) -> str:
        """Requests of one name are the same action by the same agent with the same credential."""
        agent, recognised, request = self.agent, self.recognised, self.request
        if agent is None or recognised is None or request is None:
            raise BackendError(Reason.INTERNAL_ERROR, "not recognised")
        return flight_name(agent, request.destination, recognised)


def claimed_host(origin: Origin, head: RequestHead) -> tuple[str, int]:
    """The host a request claims, for limits and error shapes only; nothing is decided on it."""
    claimed = next((value for name, value in head.headers if name.lower() == b"host"), b"")
    if not claimed and origin.sni:
        claimed = origin.sni.encode("ascii", "replace")
    host, _, port = claimed.decode("latin-1").lower().partition(":")
    default = 443 if origin.tls else 80
    return host, int(port) if port.isdecimal() and len(port) < 6 else default


def _head_bytes(head: RequestHead) -> bytes:
    lines = [head.method + b" " + head.target, *(name + b": " + value for name, value in head.headers)]
    return b"\r\n".join(lines)
