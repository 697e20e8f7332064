"""The listener that Envoy's `ext_authz` filter asks: one check per agent's request, one answer each.

    connection -> head -> token -> body -> Pipeline.ask (steps 1 to 7) -> Release -> 200
                                                                       \\-> anything else -> 4xx

A listener of its own: whatever path an agent asked for is a check here, and there is no other endpoint that
could answer 200 for it. Nothing is forwarded from here. Envoy reports no outcome by itself: what nobody
reports (`/v1/outcome`) is `unknown` after a while. What Envoy did not wait for it never forwards: `not_sent`.

Invariants (tests/test_envoy_door.py has one test named after each):
  XD1  Whatever bytes arrive: without a recorded PERMIT for exactly this request no 200 is written.
  XD2  Without a token of the role decider nothing is read, recorded or decided; the agent must be one of its.
  XD3  Every check with a token leaves a receipt that says `via: ext_authz`, refused and unreadable ones too.
  XD4  A request repeated under its key while the first may be under way is refused: no permit is told twice.
  XD5  A PERMIT that Envoy did not wait for is not_sent; one that it was told is never that by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from ..answer import Answer
from ..captured import nowhere
from ..config import Address, AdminToken, Config
from ..config_ext_authz import ExtAuthz, MutualTls
from ..errors import ConfigError, InputError, Outcome, Reason
from ..ext_authz import VIA, admitted, asked, origin_of, presented, presented_in, turned_away
from ..headers import decision_headers
from ..held import Gone, Held
from ..http1 import ServerReader, write_response_head
from ..ledger import OutcomeStatus, Recorded
from ..message import Headers, Listener, Message, RequestHead
from .decider import Decider

__all__ = ["EnvoyDoor", "build_envoy_door"]

log = logging.getLogger("holdgate.ext_authz")

# What Envoy adds to the head that an agent sent.
_MORE_BYTES: Final = 4096
_MORE_HEADERS: Final = 24
_FORBIDDEN: Final = b'{"title":"Forbidden","status":403,"detail":"The gate takes no checks from here."}\r\n'
_NOBODY: Final = (
    b"HTTP/1.1 403 Forbidden\r\nContent-Type: application/problem+json\r\nContent-Length: %d\r\n"
    b"Connection: close\r\n\r\n%b" % (len(_FORBIDDEN), _FORBIDDEN)
)
_NO_HEAD: Final = RequestHead(method=b"", target=b"", headers=())
_SOMEWHERE: Final = nowhere(Listener.TRANSPARENT)


@dataclass(slots=True, kw_only=True)
class _Check:
    """One check, as far as it was read. `error`: why it cannot become a request."""

    head: RequestHead = _NO_HEAD
    body: bytes = b""
    error: InputError | None = None
    reserved: int = 0


class _Stranger(Exception):
    """Who asks has no token."""


@dataclass(slots=True, kw_only=True)
class EnvoyDoor:
    config: ExtAuthz
    decider: Decider
    tokens: Sequence[AdminToken]
    _server: asyncio.Server | None = None
    _ending: bool = False
    _open: dict[asyncio.StreamWriter, asyncio.StreamReader] = field(default_factory=dict)

    @property
    def address(self) -> Address | None:
        """Where it listens; None before start()."""
        if self._server is None or not self._server.sockets:
            return None
        host, port, *_ = self._server.sockets[0].getsockname()
        return Address(host=host, port=port)

    async def start(self) -> None:
        """Listen. Raises ConfigError."""
        where, tls = self.config.listen, self.config.tls
        try:
            context = None if tls is None else _context(tls)
            self._server = await asyncio.start_server(self._serve, where.host, where.port, ssl=context)
        except ssl.SSLError as error:
            raise ConfigError(f"ext_authz.tls: {error}") from error
        except OSError as error:
            raise ConfigError(f"ext_authz.listen {where}: {error.strerror or error}") from error

    def deaf(self) -> None:
        """Stop accepting; who is still there gets one more answer, and is hung up on."""
        self._ending = True
        if self._server is not None:
            self._server.close()

    async def stop(self) -> None:
        """Stop listening, and hang up on whoever is still there."""
        self.deaf()
        for writer in list(self._open):
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open[writer] = reader
        try:
            await self._converse(reader, writer)
        except _Stranger:
            log.warning(
                "a check without a token of the role decider, from %s", writer.get_extra_info("peername")
            )
            with contextlib.suppress(OSError):
                writer.write(_NOBODY)
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            log.debug("a connection ended: %r", error)
        except Exception:  # the edge of this door: no answer, so Envoy refuses
            log.exception("a check failed")
        finally:
            del self._open[writer]
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        limits = self.decider.pipeline.limits
        wire = ServerReader(
            replace(
                limits,
                header_bytes=limits.header_bytes + _MORE_BYTES,
                headers=limits.headers + _MORE_HEADERS,
            )
        )
        while True:
            if not wire.pending:
                async with asyncio.timeout(limits.idle_s):
                    first = await reader.read(65_536)
                if not first:
                    return
                wire.feed(first)
            check = _Check()
            try:
                async with asyncio.timeout(limits.body_s):
                    token = await self._read(wire, reader, check)
                answer = await self._answer(check, token, reader)
            finally:
                self.decider.pipeline.reserve(-check.reserved)
            if answer is None:
                return
            answer = replace(answer, close=answer.close or self._ending)
            writer.write(_written(answer, head=check.head.method == b"HEAD"))
            await writer.drain()
            if answer.close:
                return

    # -- reading ----------------------------------------------------------------------------------

    async def _read(self, wire: ServerReader, reader: asyncio.StreamReader, check: _Check) -> AdminToken:
        """Read one check into `check`. Raises _Stranger before anything of a body is read."""
        pipeline = self.decider.pipeline
        try:
            while (head := wire.head()) is None:
                await _more(wire, reader)
        except (
            InputError
        ) as error:  # Envoy lets more pass than we do: then its token is in there all the same
            check.body, check.error = wire.seen, error
            return self._known(presented_in(wire.seen))
        token = self._known(presented(head))
        check.head = head
        try:
            limit = pipeline.body_limit(_SOMEWHERE, head)
            wire.begin_body(limit)
            size = wire.content_length or 0
            pipeline.reserve(size)
            check.reserved = size
            while (body := wire.body()) is None:
                await _more(wire, reader)
            if wire.chunked:
                raise InputError(Reason.MALFORMED_REQUEST, "a check whose body has no length")
            check.body = body
        except InputError as error:
            check.error = error
        return token

    def _known(self, presented: bytes) -> AdminToken:
        """The token's entry; every one is compared, in constant time."""
        digest = hashlib.sha256(presented).digest()
        found = [each for each in self.tokens if hmac.compare_digest(each.sha256, digest) and each.agents]
        if not presented or not found:
            raise _Stranger
        return found[0]

    # -- answering --------------------------------------------------------------------------------

    async def _answer(self, check: _Check, token: AdminToken, reader: asyncio.StreamReader) -> Answer | None:
        """What Envoy is told; None: it does not listen any more."""
        pipeline = self.decider.pipeline
        held, error = _held(check, pipeline.clock(), self.decider)

        def prepare(held: Held) -> None:
            if error is not None:
                raise error
            held.agent = pipeline.identify(held.message.origin)
            if held.agent.id not in token.agents:
                raise InputError(
                    Reason.UNKNOWN_AGENT, f"the token {token.name} may not ask for {held.agent.id}"
                )

        recorded = await self.decider.check(held, prepare)
        if recorded is None or recorded.entry.outcome is not Outcome.PERMIT:
            reason = Reason.STORE_UNAVAILABLE if recorded is None else recorded.entry.reason
            answer = turned_away(pipeline.refusal(held, recorded, reason))
            return replace(answer, close=check.error is not None)
        permitted: Answer | None = None
        try:
            if not (reader.at_eof() or reader.exception()):
                permitted = self._permitted(held, recorded)
        finally:
            if permitted is None:  # nothing is written, so nothing is forwarded
                self.decider.settle(recorded.entry.receipt_id, token.agents, OutcomeStatus.NOT_SENT, 0)
        return permitted

    def _permitted(self, held: Held, recorded: Recorded) -> Answer:
        pipeline = self.decider.pipeline
        receipt: Headers = decision_headers(
            recorded.entry,
            pipeline.show,
            outcome=Outcome.PERMIT,
            reason=recorded.entry.reason,
            sensitive=held.recognised is not None and held.recognised.sensitive,
        )
        return admitted(pipeline.release(held, recorded), held.message.head.headers, receipt)


def _held(check: _Check, now: float, decider: Decider) -> tuple[Held, InputError | None]:
    """What is held, and why it cannot be decided; a check that says too little is held as what it is."""
    origin, head, error = _SOMEWHERE, check.head, check.error
    try:
        head = asked(check.head)
        origin = origin_of(check.head)
    except InputError as flaw:
        error = error or flaw
    message = Message(origin=origin, head=head, body=check.body)
    return Held(message, Gone(), now, decider.pipeline.bundle, via=VIA), error


def build_envoy_door(config: Config, decider: Decider | None) -> EnvoyDoor | None:
    """The door of an instance; None when its configuration has none."""
    if config.ext_authz is None or decider is None:
        return None
    return EnvoyDoor(config=config.ext_authz, decider=decider, tokens=config.admin.tokens)


async def _more(wire: ServerReader, reader: asyncio.StreamReader) -> None:
    data = await reader.read(65_536)
    if not data:
        raise asyncio.IncompleteReadError(b"", None)
    wire.feed(data)


def _written(answer: Answer, *, head: bool) -> bytes:
    headers = [*answer.headers, (b"Content-Length", b"%d" % len(answer.body))]
    if answer.close:
        headers.append((b"Connection", b"close"))
    # A check keeps the agent's method: the answer to a HEAD has no body.
    return write_response_head(answer.status, answer.reason, tuple(headers)) + (b"" if head else answer.body)


def _context(tls: MutualTls) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(tls.cert_file, tls.key_file)
    context.load_verify_locations(tls.client_ca_file)
    context.verify_mode = ssl.CERT_REQUIRED
    return context
