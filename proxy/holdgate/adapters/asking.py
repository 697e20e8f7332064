"""Sends one read to the running proxy, as an agent of its own, and gives back what came with which receipt.

For `holdgate reconcile ask` alone, in a process of its own: the proxy recognises, decides, records and
forwards this read like anybody's. Nothing here can reach a vendor. The credential is the operator's, from a
file that is read for this command and kept nowhere.

Invariants (tests/test_asking.py has one test named after each):
  AK1  An answer counts only with exactly one `Holdgate-Decision`, a PERMIT without a failed status.
  AK2  A credential is sent only for the host that the file writes it for, inside TLS that shows this
       instance's CA; in clear only to a proxy on this machine, for hosts that the map has without TLS.
  AK3  A cut, oversize or badly framed answer is an AskError, and so is every failure of the connection.
  AK4  A file of credentials that others can read, or that cannot stand in headers, is a ConfigError that
       quotes nothing of it.
"""

from __future__ import annotations

import base64
import re
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from ..errors import ConfigError, HoldgateError
from ..http1_client import ClientReader, WireError
from ..inquiry import MAX_ANSWER_BYTES, Question
from ..limits import Limits
from ..message import Headers, ResponseHead
from ..strictyaml import Node, load
from .private_file import read_private

__all__ = ["Answer", "AskError", "Credentials", "ask_proxy", "load_credentials", "request_of"]

_DEADLINE_S: Final = 75.0  # longer than the proxy holds a request
_CHUNK: Final = 65_536
_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,63}\Z")
_VALUE: Final = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,8190}[\x21-\x7e])?\Z")
_DECISION: Final = re.compile(
    rb'(PERMIT|DENY|SILENCE);id="(rcpt_[0-9A-Za-z]{1,40})";reason=([a-z_]+)(?:;([\x20-\x7e]*))?\Z'
)
_FRAMING: Final = frozenset({"host", "content-length", "transfer-encoding", "connection"})


class AskError(HoldgateError):
    """There is no answer to go by; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What the operator gave for this command."""

    token: bytes  # NAME:TOKEN towards the proxy; b"": known by address or user
    source: str  # the address to ask from; "": any
    hosts: Mapping[str, Headers]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A whole answer to a read that was permitted and forwarded."""

    receipt: str
    head: ResponseHead
    body: bytes


def load_credentials(path: Path) -> Credentials:
    """`{proxy_token: NAME:TOKEN, source: IP, hosts: {HOST: {header: value}}}`. Raises ConfigError."""
    try:
        text = read_private(path, "the credentials").decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"cannot read: {why}", file=str(path)) from None
    # excerpts=False: an error must not quote a secret.
    node = load(text, file=str(path), excerpts=False)
    keys = node.mapping(
        required=("hosts",), optional=("proxy_token", "source"), what="the file of credentials"
    )
    token = _value(keys["proxy_token"], "proxy_token") if "proxy_token" in keys else b""
    if token and b":" not in token:
        raise keys["proxy_token"].fail("proxy_token is NAME:TOKEN")
    return Credentials(
        token=token,
        source=_source(keys["source"]) if "source" in keys else "",
        hosts={name: _headers(item) for name, item in keys["hosts"].open_mapping("hosts").items()},
    )


def _source(node: Node) -> str:
    try:
        return str(ip_address(node.text("source")))
    except ValueError:
        raise node.fail("source is an IP address of this machine") from None


def _headers(node: Node) -> Headers:
    rows = []
    for name, item in node.open_mapping("the headers of a host").items():
        if not _NAME.match(name) or name in _FRAMING:
            raise item.fail_key("a header is written in lower-case letters, digits and dashes")
        rows.append((name.encode(), _value(item, "a header's value")))
    return tuple(rows)


def _value(node: Node, what: str) -> bytes:
    text = node.text(what)
    if not _VALUE.match(text):
        raise node.fail(f"{what} must be printable ASCII without space around it")
    return text.encode()


def ask_proxy(proxy: tuple[str, int], asked: Question, who: Credentials, *, ca_file: Path) -> Answer:
    """Send the request of `asked` to the proxy's explicit listener. Raises AskError."""
    raw = request_of(asked, who)
    source = (who.source, 0) if who.source else None
    try:
        with socket.create_connection(proxy, timeout=_DEADLINE_S, source_address=source) as connection:
            own = b""
            if who.token:
                own = b"Proxy-Authorization: Basic " + base64.b64encode(who.token) + b"\r\n"
            if asked.scheme == "https":
                _tunnel(connection, asked.destination.encode("ascii"), own)
                context = ssl.create_default_context(cafile=str(ca_file))
                context.set_alpn_protocols(["http/1.1"])
                with context.wrap_socket(connection, server_hostname=asked.host) as inner:
                    return _exchange(inner, raw)
            if not ip_address(connection.getpeername()[0]).is_loopback:
                raise AskError(f"{asked.destination} is without TLS: only a proxy on this machine is asked")
            first, _, rest = raw.partition(b"\r\n")
            return _exchange(connection, first + b"\r\n" + own + rest)
    except (OSError, WireError) as error:
        raise AskError(f"no whole answer from the proxy: {error}") from error


def request_of(asked: Question, who: Credentials) -> bytes:
    """What is sent: the question, with the credential for its host. Raises AskError."""
    credential = who.hosts.get(asked.host)
    if credential is None:
        raise AskError(f"the file has no credential for {asked.host}")
    return asked.request(credential)


def _tunnel(connection: socket.socket, destination: bytes, own: bytes) -> None:
    connection.sendall(b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (destination, destination, own))
    reader = ClientReader("CONNECT", Limits())
    head = _head(connection, reader)
    if head.status != 200:
        _permitted(head)
        raise AskError(f"the proxy answered CONNECT with {head.status}")
    if reader.buffered_bytes:
        raise AskError("bytes before TLS began")


def _exchange(connection: socket.socket, raw: bytes) -> Answer:
    connection.sendall(raw)
    reader = ClientReader("GET", Limits())
    head = _head(connection, reader)
    receipt = _permitted(head)
    body = bytearray()
    while True:
        body += reader.read()
        if len(body) > MAX_ANSWER_BYTES:
            raise AskError(f"an answer of more than {MAX_ANSWER_BYTES} bytes")
        if reader.done:
            return Answer(receipt=receipt, head=head, body=bytes(body))
        data = connection.recv(_CHUNK)
        if data:
            reader.feed(data)
        else:
            reader.eof()


def _head(connection: socket.socket, reader: ClientReader) -> ResponseHead:
    while (head := reader.head()) is None:
        data = connection.recv(_CHUNK)
        if not data:
            reader.eof()
        reader.feed(data)
    return head


def _permitted(head: ResponseHead) -> str:
    """The receipt of the PERMIT under which this was forwarded. Raises AskError."""
    values = [value for name, value in head.headers if name.lower() == b"holdgate-decision"]
    if len(values) != 1:
        raise AskError("an answer without exactly one decision: is this the proxy of this instance?")
    found = _DECISION.match(values[0])
    if found is None:
        raise AskError("the proxy could not record a decision")
    outcome, receipt, reason = (part.decode("ascii") for part in found.group(1, 2, 3))
    if outcome != "PERMIT":
        raise AskError(f"the read was refused: {outcome} {reason}, {receipt}")
    if any(part.startswith(b"status=") for part in (found[4] or b"").split(b";")):
        raise AskError(f"the read was permitted and failed, {receipt}")
    return receipt
