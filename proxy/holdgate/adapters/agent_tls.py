"""TLS towards agents: one server context per host name, around the leaf that our CA made for that name.

Invariants (tests/test_agent_tls.py):
  AT1  ALPN selects http/1.1 only, and nothing older than TLS 1.2 is spoken.
  AT2  A context is renewed with its leaf, and the number of contexts is bounded.
  AT3  After adopt() every handshake gets a leaf of the new CA; connections that are open stay open.
"""

from __future__ import annotations

import logging
from typing import Any

from cachetools import LRUCache
from OpenSSL import SSL

from .ca import Leaf, LeafMaker

__all__ = ["AgentTls"]

log = logging.getLogger("holdgate.tls")

_CONTEXTS = 1024
_SHOWN_PROTOCOLS = 8


class AgentTls:
    """Callable: lower-case host name -> SSL.Context. Contexts are shared, so clients can resume sessions."""

    def __init__(self, leaves: LeafMaker) -> None:
        self._leaves = leaves
        self._contexts: LRUCache[str, tuple[Leaf, SSL.Context]] = LRUCache(_CONTEXTS)

    def adopt(self, leaves: LeafMaker) -> None:
        """Use another CA from the next handshake on."""
        self._leaves = leaves

    def __call__(self, host: str) -> SSL.Context:
        """Raises ValueError for what is not a host name."""
        leaf = self._leaves.leaf(host)
        kept = self._contexts.get(host)
        if kept is None or kept[0] is not leaf:
            kept = self._contexts[host] = leaf, _server_context(leaf)
        return kept[1]


def _server_context(leaf: Leaf) -> SSL.Context:
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
    context.set_session_id(b"holdgate")  # OpenSSL wants one before it resumes sessions
    context.set_alpn_select_callback(_select_alpn)
    context.use_certificate(leaf.certificate)
    for above in leaf.chain:
        context.add_extra_chain_cert(above)
    context.use_privatekey(leaf.key)
    return context


def _select_alpn(connection: SSL.Connection, offered: list[bytes]) -> Any:
    if b"http/1.1" in offered:
        return b"http/1.1"
    # Without an overlap the handshake goes on without ALPN; what then is not HTTP/1.1 is refused where the
    # refusal gets a receipt. A client that wants HTTP/2 only gives up here, so the log says what to look for.
    log.warning(
        "an agent offers no http/1.1 for %r, only %r: HTTP/2 is not spoken here",
        connection.get_servername(),
        offered[:_SHOWN_PROTOCOLS],
    )
    return SSL.NO_OVERLAPPING_PROTOCOLS
