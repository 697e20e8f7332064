"""Who is asking: the facts of one connection and the configured rules in, one Agent out.

An agent is known by its source address, its proxy token, the user that its socket belongs to, or several of
them; or because `holdgate exec` started it. Never by a header that it can set inside the tunnel (`Origin`
holds none). A client certificate is looked at by adapters/client_certs.py, which says what it proves.

Invariants (tests/test_agents.py, tests/test_client_certs.py):
  A1  identify() returns an Agent only when exactly one rule matches; otherwise InputError unknown_agent.
  A2  Credentials that do not match are never ignored: there is no falling back to the source address.
  A3  407 is asked for only when no credentials came, a rule wants some, and the client speaks to a proxy.
  A4  An IPv4 source written as an IPv4-mapped IPv6 address is the same source.
  A5  Every token rule is compared, in constant time, whichever matches first.
  A6  A connection vouched for by `holdgate exec` is that agent or nobody, whatever else would match.
  A7  A rule with users covers a connection only when the kernel says that one of them owns it.
  A8  A connection that showed a client certificate is the agent whose rule that certificate satisfies, or
      nobody: there is no falling back to its source address or token.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from typing import Final

from .errors import InputError, Reason
from .message import Listener, Origin

__all__ = ["Agent", "AgentRule", "AttrValue", "Attrs", "CertificateRule", "Network", "identify"]

type Network = IPv4Network | IPv6Network
type AttrValue = str | int | bool | tuple[str, ...] | tuple[int, ...]
type Attrs = tuple[tuple[str, AttrValue], ...]  # sorted by name, names unique

_MAX_CREDENTIAL_BYTES: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """The authenticated caller. `attrs` is pairs sorted by name; `record()` is its plain form."""

    id: str
    groups: tuple[str, ...]
    attrs: Attrs

    def record(self) -> dict[str, object]:
        """What the gate's input holds: plain JSON values, new at every call."""
        attrs = {name: list(value) if isinstance(value, tuple) else value for name, value in self.attrs}
        return {"id": self.id, "groups": list(self.groups), "attrs": attrs}


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateRule:
    """What a client certificate must prove: an issuer of this file, and exactly this name."""

    ca_file: Path
    san: str  # a SPIFFE id (spiffe://...), or a DNS name


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRule:
    """One entry of `agents:`. What it looks at is ANDed; it looks at something."""

    agent: Agent
    sources: tuple[Network, ...]  # (): this rule does not look at the source, so it has a token
    token_sha256: bytes  # b"": this rule does not look at tokens
    certificate: CertificateRule | None = None  # None: this rule does not look at client certificates
    users: tuple[int, ...] = ()  # uids; (): this rule does not look at who owns the agent's socket
    # `sources` as (version, network, mask): asked at every request, and ipaddress is slow at it.
    blocks: frozenset[tuple[int, int, int]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not (self.sources or self.token_sha256 or self.users or self.certificate):
            raise ValueError(f"agent {self.agent.id}: a rule that looks at nothing would match everybody")
        if self.token_sha256 and len(self.token_sha256) != 32:
            raise ValueError(f"agent {self.agent.id}: token_sha256 is not 32 bytes")
        blocks = ((net.version, int(net.network_address), int(net.netmask)) for net in self.sources)
        object.__setattr__(self, "blocks", frozenset(blocks))


def identify(
    origin: Origin, rules: tuple[AgentRule, ...], proven: frozenset[CertificateRule] | None = None
) -> Agent:
    """The one agent that this connection proves to be. Raises InputError(UNKNOWN_AGENT).

    `proven`: what its client certificate satisfies; None when it showed none.
    """
    known = proven or frozenset()
    if proven is not None and not any(rule.certificate in known for rule in rules):
        raise InputError(Reason.UNKNOWN_AGENT, "the client certificate is no agent's")
    certified = tuple([rule for rule in rules if rule.certificate is None or rule.certificate in known])
    agent = _identify(origin, certified, rules)
    if proven is not None and not any(rule.agent is agent and rule.certificate for rule in rules):
        raise InputError(Reason.UNKNOWN_AGENT, "the client certificate is another agent's")
    return agent


def _identify(origin: Origin, rules: tuple[AgentRule, ...], configured: tuple[AgentRule, ...]) -> Agent:
    credentials = origin.proxy_authorization
    if len(credentials) > 1:
        raise InputError(Reason.UNKNOWN_AGENT, "several Proxy-Authorization headers")
    source = _address(origin.source)
    if origin.vouched is not None:
        return _vouched(origin.vouched, credentials, configured)
    rules = tuple([rule for rule in rules if not rule.users or origin.uid in rule.users])
    if credentials:
        matching = _by_token(credentials[0], source, rules)
    else:
        matching = [rule for rule in rules if not rule.token_sha256 and _covers(rule, source)]
    if len(matching) == 1:
        return matching[0].agent
    if matching:
        names = ", ".join(rule.agent.id for rule in matching)
        raise InputError(Reason.UNKNOWN_AGENT, f"matches several agents: {names}")
    if not credentials and _may_ask(origin, configured):
        raise InputError(Reason.UNKNOWN_AGENT, "no Proxy-Authorization", status=407)
    raise InputError(Reason.UNKNOWN_AGENT, f"no agent matches source {origin.source}")


def _may_ask(origin: Origin, rules: tuple[AgentRule, ...]) -> bool:
    """Whether proxy credentials could help, so that 407 is the answer."""
    # A transparent client does not know that there is a proxy: 407 would mean nothing to it.
    if origin.listener is not Listener.EXPLICIT or not any(rule.token_sha256 for rule in rules):
        return False
    # Who asks for a tunnel may show a certificate inside it, and inside it 407 is nobody's answer.
    by_certificate = any(rule.certificate and not rule.token_sha256 for rule in rules)
    return not by_certificate or (origin.connect is None and not origin.tls)


def _vouched(name: str, credentials: tuple[bytes, ...], rules: tuple[AgentRule, ...]) -> Agent:
    """The agent that `holdgate exec` started. The operator said who it is: its entry's match is not asked."""
    for rule in rules:
        if rule.agent.id == name and not credentials:
            return rule.agent
    why = "with proxy credentials" if credentials else "and no agent has this id"
    raise InputError(Reason.UNKNOWN_AGENT, f"started by holdgate exec as {name}, {why}")


def _by_token(credential: bytes, source: tuple[int, int], rules: tuple[AgentRule, ...]) -> list[AgentRule]:
    """Rules that match when credentials came. At least one must own the token (A2)."""
    name, token = _credential(credential)
    digest = hashlib.sha256(token).digest()
    owners: list[AgentRule] = []
    for rule in rules:
        # An empty digest never equals 32 bytes, so every rule takes the same path.
        is_token = hmac.compare_digest(rule.token_sha256, digest)
        is_named = name is None or hmac.compare_digest(rule.agent.id.encode(), name)
        if is_token and is_named and _covers(rule, source):
            owners.append(rule)
    if not owners:
        raise InputError(Reason.UNKNOWN_AGENT, "Proxy-Authorization matches no agent")
    return owners + [rule for rule in rules if not rule.token_sha256 and _covers(rule, source)]


def _covers(rule: AgentRule, source: tuple[int, int]) -> bool:
    if not rule.sources:
        return True
    version, number = source
    for block_version, network, mask in rule.blocks:
        if block_version == version and number & mask == network:
            return True
    return False


@lru_cache(maxsize=4096)
def _address(text: str) -> tuple[int, int]:
    """(version, number) of an IP address; an IPv4-mapped one is the IPv4 address (A4)."""
    try:
        address = ip_address(text)
    except ValueError:
        raise InputError(Reason.UNKNOWN_AGENT, f"source is not an IP address: {text!r}") from None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.version, int(address)


def _credential(value: bytes) -> tuple[bytes | None, bytes]:
    """`Basic base64(id:token)` -> (id, token); `Bearer token` -> (None, token)."""
    scheme, space, rest = value.partition(b" ")
    rest = rest.strip(b" \t")
    if not space or not rest or len(value) > _MAX_CREDENTIAL_BYTES:
        raise InputError(Reason.UNKNOWN_AGENT, "Proxy-Authorization is empty or too long")
    match scheme.lower():
        case b"bearer":
            name, token = None, rest
        case b"basic":
            name, token = _basic(rest)
        case _:
            raise InputError(Reason.UNKNOWN_AGENT, "Proxy-Authorization is neither Basic nor Bearer")
    try:
        token.decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(Reason.UNKNOWN_AGENT, "Proxy-Authorization is not UTF-8") from None
    if not token:
        raise InputError(Reason.UNKNOWN_AGENT, "Proxy-Authorization has no token")
    return name, token


def _basic(encoded: bytes) -> tuple[bytes, bytes]:
    try:
        decoded = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        decoded = b""
    # Python reads `YQ===` and stray trailing bits too: one credential has one spelling.
    if base64.b64encode(decoded) != encoded:
        raise InputError(Reason.UNKNOWN_AGENT, "Proxy-Authorization is not base64")
    name, colon, token = decoded.partition(b":")
    if not colon:
        raise InputError(Reason.UNKNOWN_AGENT, "Proxy-Authorization is not id:token")
    return name, token
