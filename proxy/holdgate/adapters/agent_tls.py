"""TLS towards agents: one server context per host name, around the leaf that our CA made for that name.

Invariants (tests/test_agent_tls.py):
  AT1  ALPN selects http/1.1 only, and nothing older than TLS 1.2 is spoken.
  AT2  A context is renewed with its leaf, and the number of contexts is bounded.
  AT3  After adopt() every handshake gets a leaf of the new CA; connections that are open stay open.
  AT4  A client certificate is asked for only when issuers are given. Then none is demanded, any is let
       through the handshake to be judged later (client_certs.py), and no session is resumed without one.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from cachetools import LRUCache
from cryptography import x509
from OpenSSL import SSL, crypto

from .ca import Leaf, LeafMaker

__all__ = ["AgentTls"]

log = logging.getLogger("holdgate.tls")

_CONTEXTS = 1024
_SHOWN_PROTOCOLS = 8


class AgentTls:
    """Callable: lower-case host name -> SSL.Context. Contexts are shared, so clients can resume sessions."""

    def __init__(self, leaves: LeafMaker, issuers: Sequence[x509.Certificate] = ()) -> None:
        self._leaves, self._issuers = leaves, issuers
        self._contexts: LRUCache[str, tuple[Leaf, SSL.Context]] = LRUCache(_CONTEXTS)

    def adopt(self, leaves: LeafMaker) -> None:
        """Use another CA from the next handshake on."""
        self._leaves = leaves

    def __call__(self, host: str) -> SSL.Context:
        """Raises ValueError for what is not a host name."""
        leaf = self._leaves.leaf(host)
        kept = self._contexts.get(host)
        if kept is None or kept[0] is not leaf:
            kept = self._contexts[host] = leaf, _server_context(leaf, self._issuers)
        return kept[1]


def _server_context(leaf: Leaf, issuers: Sequence[x509.Certificate]) -> SSL.Context:
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
    context.set_session_id(b"holdgate")  # OpenSSL wants one before it resumes sessions
    context.set_alpn_select_callback(_select_alpn)
    context.use_certificate(leaf.certificate)
    for above in leaf.chain:
        context.add_extra_chain_cert(above)
    context.use_privatekey(leaf.key)
    if issuers:
        context.set_verify(SSL.VERIFY_PEER, lambda *_: True)
        context.set_client_ca_list([crypto.X509.from_cryptography(each).get_subject() for each in issuers])
        # A resumed session remembers the certificate but not its chain.
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_options(SSL.OP_NO_TICKET)
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
