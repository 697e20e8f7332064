"""One agent connection inside the inner door: strict HTTP/1.1 server role as a mitmproxy layer.

Bytes become one Message at a time (http1), each complete Message is held by one blocking hook until the
pipeline has an Answer, and the Answer's bytes go back. CONNECT is answered here, without contact.

Invariants (tests/test_gate_layer.py has one test named after each):
  GL1  A hold that raises, is cancelled or returns nothing answers with a refusal and ends the connection.
  GL2  While a request is held, little of what the agent sends meanwhile is buffered; then reading pauses.
  GL3  A cut answer has no final chunk, and its connection is closed.
  GL4  A connection that sends something that is not HTTP, or nothing, ends with a receipt and no answer.
  GL5  Proxy credentials are the tunnel's, or a plain request's own; never those of another request.

Long because it is the life of one connection, in one piece.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Protocol

from mitmproxy import connection
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context

from ..answer import Answer, Stream
from ..errors import InputError, Reason
from ..http1 import LAST_CHUNK, ServerReader, write_chunk, write_response_head
from ..limits import Limits
from ..message import Listener, Message, Origin, RequestHead

__all__ = [
    "ClientLink",
    "DenyLayer",
    "Door",
    "Expired",
    "GateLayer",
    "Gatekeeper",
    "Held",
    "HoldgateHoldHook",
    "HoldgateRelayHook",
    "Relay",
]

_BUFFER_WHILE_HELD: Final = 65_536
_LINGER_S: Final = 2.0  # how long an agent may take to notice that it was refused in the middle of its upload
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_ESTABLISHED: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"
# Written when even the pipeline gave nothing: no receipt could be made, and it says so.
_LAST_RESORT: Final = (
    b"HTTP/1.1 403 Holdgate SILENCE\r\nHoldgate-Decision: SILENCE;reason=internal_error\r\n"
    b"Content-Type: application/problem+json\r\nContent-Length: 77\r\nConnection: close\r\n\r\n"
    b'{"title":"Holdgate SILENCE","decision":"SILENCE","reason":"internal_error"}\r\n'
)

_LOOKS_LIKE_HTTP: Final = re.compile(rb"(?:\r\n)*[A-Za-z]{3,16}[ \t]|[^\r\n]{0,512}HTTP/")


class ClientLink:
    """The agent's side of one held request: is it still there?"""

    __slots__ = ("_callbacks", "gone")

    def __init__(self) -> None:
        self.gone = False
        self._callbacks: list[Callable[[], object]] = []

    def on_gone(self, callback: Callable[[], object]) -> None:
        if self.gone:
            callback()
        else:
            self._callbacks.append(callback)

    def leave(self) -> None:
        self.gone = True
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()


class Gatekeeper(Protocol):
    """What the door asks the house. Implemented by pipeline.Pipeline."""

    limits: Limits

    def body_limit(self, origin: Origin, head: RequestHead) -> int: ...

    def reserve(self, size_bytes: int) -> None:
        """Account for held bytes (negative: give back). Raises InputError(OVERLOADED)."""
        ...

    def greet(self, origin: Origin) -> None:
        """A tunnel is asked for. Raises InputError only where proxy credentials must be asked for (407), or
        where no request could follow because the CA is constrained to other names."""
        ...

    def unheard(self, sni: str | None) -> InputError:
        """Why an agent that asked for this name may have left before TLS or HTTP was established."""
        ...

    async def handle(self, message: Message, client: ClientLink) -> Answer: ...

    async def refuse(self, origin: Origin, error: InputError, seen: bytes) -> Answer: ...


class Door(Protocol):
    """What a layer needs of the addon that built it."""

    keeper: Gatekeeper
    tunnels: dict[str, Origin]

    def watch(self, gate: GateLayer) -> None: ...
    def forget(self, gate: GateLayer) -> None: ...
    def is_surplus(self, client: connection.Client) -> bool: ...
    def await_speech(self, client: connection.Client) -> None: ...
    def pause(self, client: connection.Client, *, paused: bool) -> None: ...


@dataclass
class Held:
    """One question to the pipeline. `answer` stays None unless a complete Answer came back."""

    ask: Callable[[], Awaitable[Answer]]
    answer: Answer | None = None


@dataclass
class Relay:
    """One more piece of a streamed answer. `piece` stays None (cut) unless it arrived."""

    stream: Stream
    client: connection.Client
    piece: bytes | None = None


# args(): the engine's own looks the fields of a hook up at every call.


@dataclass
class HoldgateHoldHook(commands.StartHook):
    held: Held

    def args(self) -> list[Any]:
        return [self.held]


@dataclass
class HoldgateRelayHook(commands.StartHook):
    relay: Relay

    def args(self) -> list[Any]:
        return [self.relay]


@dataclass
class Expired(events.Event):
    """The sweeper found that a connection's deadline has passed."""


class DenyLayer(layer.Layer):
    """Ends the connection. Everything that is not TLS or HTTP ends here."""

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, events.Start):
            yield commands.CloseConnection(self.context.client)


class GateLayer(layer.Layer):
    """Strict HTTP/1.1 server role for one connection (or one tunnel inside it)."""

    def __init__(self, context: Context, door: Door, origin: Origin) -> None:
        super().__init__(context)
        self.door, self.origin = door, origin
        self.reader = ServerReader(door.keeper.limits)
        self.child: layer.Layer | None = None
        self.head: RequestHead | None = None
        self.link = ClientLink()
        self.deadline: float | None = None
        self.served = 0
        self.reserved = 0
        self.queued = 0
        self.paused = False  # the agent is not read from
        self.holding = False  # the pipeline has a message of ours
        self.busy = False  # a message is held, or its answer is being written
        self.lingering = False
        self.finished = False

    # The seam of back-pressure: while a hook is pending, events pass here before they are queued.
    def handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if self.child is not None and self._paused is None:  # a tunnel: nothing is held or read here any more
            return self.child.handle_event(event)
        if self._paused is not None:
            if isinstance(event, events.DataReceived):
                self.queued += len(event.data)
                if self.queued > _BUFFER_WHILE_HELD:
                    self.paused = True
                    self.door.pause(self.context.client, paused=True)
            elif isinstance(event, events.ConnectionClosed):
                self.link.leave()
        return super().handle_event(event)

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if self.child is not None:
            yield from self.child.handle_event(event)
        elif isinstance(event, events.Start):
            self.door.watch(self)
            self._arm(self.door.keeper.limits.head_s)
            if self.door.is_surplus(self.context.client):
                error = InputError(Reason.OVERLOADED, "limits.connections_per_source")
                yield from self._turn_away(error, b"")
        elif self.finished:
            if self.lingering and isinstance(event, Expired | events.ConnectionClosed):
                yield from self._finish()
        elif isinstance(event, events.DataReceived):
            self.queued = 0
            self.reader.feed(event.data)
            yield from self._serve()
        elif isinstance(event, Expired):
            yield from self._expired()
        elif isinstance(event, events.ConnectionClosed):
            yield from self._closed()

    def _resume(self) -> None:
        if self.paused:
            self.paused = False
            self.door.pause(self.context.client, paused=False)

    def _arm(self, seconds: float | None) -> None:
        self.deadline = None if seconds is None else time.monotonic() + seconds

    def _serve(self) -> layer.CommandGenerator[None]:
        """Serve every complete message that is buffered, one after the other."""
        while not self.finished and self.child is None:
            try:
                message = yield from self._next_message()
            except InputError as error:
                yield from self._refuse(error)
                return
            if message is None:
                return
            hold = self._hold(message)
            del message  # see _hold
            yield from hold

    def _next_message(self) -> Generator[commands.Command, Any, Message | None]:
        limits = self.door.keeper.limits
        reader = self.reader
        if self.head is None:
            self.head = reader.head()
            if self.head is None:
                if reader.pending:
                    self._arm_once(limits.head_s)
                return None
            if self.origin.connect is not None and not self.origin.tls:
                raise InputError(Reason.UNSUPPORTED_PROTOCOL, "plain HTTP inside a CONNECT tunnel")
            if self.head.method == b"CONNECT":
                yield from self._connect(self.head)
                return None
            reader.begin_body(self.door.keeper.body_limit(self.origin, self.head))
            self._arm(limits.body_s)
            if reader.expects_continue and not reader.pending:
                yield commands.SendData(self.context.client, _CONTINUE)
        self._account(reader.buffered_bytes)  # before body(): a refusal needs what was seen of the message
        body = reader.body()
        if body is None:
            return None
        head, self.head = self.head, None
        return Message(origin=self._origin_of(head), head=head, body=body)

    def _origin_of(self, head: RequestHead) -> Origin:
        """A plain request on the explicit listener speaks to a proxy, so its credentials are for us."""
        if self.origin.tls or self.origin.listener is not Listener.EXPLICIT:
            return self.origin
        return replace(self.origin, proxy_authorization=_proxy_credentials(head))

    def _arm_once(self, seconds: float) -> None:
        # The head deadline runs from the head's first byte; later bytes do not extend it.
        if self.served and self.deadline is not None and self.deadline > time.monotonic() + seconds:
            self._arm(seconds)

    def release_memory(self) -> None:
        """Nothing that was read is needed any more. What is given back must really be free."""
        if self.holding:
            return  # the pipeline has the message: _hold() gives back, even when the agent is gone
        self.reader.discard()
        self._account(0)

    def _account(self, held_bytes: int) -> None:
        self.door.keeper.reserve(held_bytes - self.reserved)
        self.reserved = held_bytes

    def _hold(self, message: Message) -> layer.CommandGenerator[None]:
        self._arm(None)
        self.served += 1
        closing = self.reader.wants_close
        gone, link = self.link.gone, ClientLink()
        self.link = link
        if gone:  # it sent this one, too, before it left
            link.leave()
        held = Held(partial(self.door.keeper.handle, message, link))
        self.holding = self.busy = True
        yield HoldgateHoldHook(held)
        self.holding = False
        answer = held.answer
        # The answer may be relayed for minutes: its request's body must not stay in memory so long.
        del message, held
        self._account(0)
        self._resume()
        yield from self._answer(answer, close=closing)
        self._resume()  # more may have come while it was relayed
        self.busy = False
        self._arm(self.door.keeper.limits.idle_s)

    def _refuse(self, error: InputError) -> layer.CommandGenerator[None]:
        """A message that cannot be read: one receipt, one answer, and the connection ends."""
        seen = self.reader.seen
        if (self.origin.connect is not None and not self.origin.tls) or (
            self.served == 0 and self.head is None and not _LOOKS_LIKE_HTTP.match(seen)
        ):
            yield from self._silent(error.detail, seen)
        else:
            yield from self._turn_away(error, seen)

    def _turn_away(self, error: InputError, seen: bytes) -> layer.CommandGenerator[None]:
        self._arm(None)
        self.release_memory()
        held = Held(lambda: self.door.keeper.refuse(self.origin, error, seen))
        yield HoldgateHoldHook(held)
        # The agent may still be sending. Closing now would reset the connection, and our answer with it.
        self.lingering = not self.link.gone
        self._resume()
        yield from self._answer(held.answer, close=True)

    def _answer(self, answer: Answer | None, *, close: bool) -> layer.CommandGenerator[None]:
        client = self.context.client
        if answer is None:
            yield commands.SendData(client, _LAST_RESORT)
            yield from self._finish()
            return
        close = close or answer.close
        chunked = answer.length is None and not answer.bodiless
        data = _response_bytes(answer, close=close, chunked=chunked)
        yield commands.SendData(client, data)
        if answer.rest is not None:
            complete = yield from self._relay(answer.rest, chunked=chunked)
            close = close or not complete
        if close:
            yield from self._finish()

    def _relay(self, stream: Stream, *, chunked: bool) -> Any:
        """Pull pieces until the end; False when the answer was cut (then no final chunk is sent)."""
        client = self.context.client
        while True:
            if self.link.gone:
                stream.abandon()
                return False
            relay = Relay(stream, client)
            yield HoldgateRelayHook(relay)
            if relay.piece is None:
                stream.abandon()
                return False
            if relay.piece == b"":
                if chunked:
                    yield commands.SendData(client, LAST_CHUNK)
                return True
            yield commands.SendData(client, write_chunk(relay.piece) if chunked else relay.piece)

    def _connect(self, head: RequestHead) -> layer.CommandGenerator[None]:
        """CONNECT is answered without any contact; what follows must be TLS, and is judged there."""
        target = _authority(head.target)
        if (
            self.origin.tls
            or self.origin.connect is not None
            or self.origin.listener is not Listener.EXPLICIT
        ):
            raise InputError(Reason.UNSUPPORTED_PROTOCOL, "CONNECT is not accepted here")
        if self.reader.content_length or self.reader.chunked:
            raise InputError(Reason.MALFORMED_REQUEST, "CONNECT with a body")
        hosts = [value for name, value in head.headers if name.lower() == b"host"]
        if hosts and [value.lower() for value in hosts] not in (
            [head.target.lower()],
            [head.target.rpartition(b":")[0].lower()],
        ):
            raise InputError(Reason.IDENTITY_MISMATCH, "CONNECT target and Host differ")
        if self.link.gone:  # the addon would remember the tunnel of a connection that it has forgotten
            raise InputError(Reason.UNSUPPORTED_PROTOCOL, "closed before TLS or HTTP was established")
        tunnel = _with_connect(self.origin, target, head)
        self.door.keeper.greet(tunnel)
        self.origin = tunnel
        rest = self.reader.take_rest()
        self.head = None
        self._arm(None)
        self.door.forget(self)
        self.door.await_speech(self.context.client)
        yield commands.SendData(self.context.client, _ESTABLISHED)
        self.door.tunnels[self.context.client.id] = self.origin
        self.child = layer.NextLayer(self.context)
        yield from self.child.handle_event(events.Start())
        if rest:
            yield from self.child.handle_event(events.DataReceived(self.context.client, rest))

    def _expired(self) -> layer.CommandGenerator[None]:
        if self.reader.pending or self.head is not None:
            part = "body" if self.head is not None else "head"
            yield from self._refuse(InputError(Reason.MALFORMED_REQUEST, f"{part} deadline", status=408))
        elif self.served == 0:
            yield from self._silent("no request within the head deadline")
        else:
            yield from self._finish()

    def _closed(self) -> layer.CommandGenerator[None]:
        self.link.leave()
        try:
            self.reader.eof()
        except InputError as error:
            yield from self._refuse(error)
            return
        if self.served == 0:
            yield from self._silent("closed without a request")
        else:
            yield from self._finish()

    def _silent(self, detail: str, seen: bytes = b"") -> layer.CommandGenerator[None]:
        """Not HTTP, so there is no answer to give; but what reached us leaves a receipt."""
        self._arm(None)
        error = InputError(Reason.UNSUPPORTED_PROTOCOL, detail)
        yield HoldgateHoldHook(Held(lambda: self.door.keeper.refuse(self.origin, error, seen)))
        yield from self._finish()

    def _finish(self) -> layer.CommandGenerator[None]:
        client = self.context.client
        self.release_memory()
        if self.lingering and not self.finished:
            self.finished = True
            self._arm(_LINGER_S)
            yield commands.CloseTcpConnection(client, half_close=True)
            return
        self.finished, self.lingering = True, False
        self._arm(None)
        self.door.forget(self)
        yield commands.CloseConnection(client)


def _response_bytes(answer: Answer, *, close: bool, chunked: bool) -> bytes:
    headers = list(answer.headers)
    if answer.length is not None:
        headers.append((b"Content-Length", b"%d" % answer.length))
    elif chunked:
        headers.append((b"Transfer-Encoding", b"chunked"))
    if close:
        headers.append((b"Connection", b"close"))
    data = write_response_head(answer.status, answer.reason, tuple(headers))
    if answer.body and not answer.bodiless:
        data += write_chunk(answer.body) if chunked else answer.body
    if chunked and answer.rest is None:
        data += LAST_CHUNK
    return data


def _authority(target: bytes) -> tuple[str, int]:
    """`host:port` of a CONNECT target. Its meaning is judged with the request inside."""
    host, colon, port = target.rpartition(b":")
    if not colon or not host or not port.isdigit() or not port.isascii() or len(port) > 5:
        raise InputError(Reason.MALFORMED_REQUEST, "CONNECT target is not host:port")
    if port.startswith(b"0") or int(port) > 65535 or b"@" in host or b"/" in host:
        raise InputError(Reason.MALFORMED_REQUEST, "CONNECT target is not host:port")
    return host.decode("ascii", "replace"), int(port)


def _with_connect(origin: Origin, target: tuple[str, int], head: RequestHead) -> Origin:
    return replace(origin, connect=target, proxy_authorization=_proxy_credentials(head))


def _proxy_credentials(head: RequestHead) -> tuple[bytes, ...]:
    return tuple(value for name, value in head.headers if name.lower() == b"proxy-authorization")
