"""agent_tls.py: what a TLS client of the inner door can negotiate."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from OpenSSL import SSL

from client_pki import SPIFFE, issue, make_ca, uri
from holdgate.adapters.agent_tls import AgentTls
from holdgate.adapters.ca import LeafMaker, create_ca


def handshake(server_context: SSL.Context, client_context: ssl.SSLContext, host: str) -> ssl.SSLObject:
    """A handshake in memory; raises what the client raises."""
    return handshake_of(SSL.Connection(server_context), client_context, host)


def handshake_of(
    server: SSL.Connection, client_context: ssl.SSLContext, host: str, session: ssl.SSLSession | None = None
) -> ssl.SSLObject:
    server.set_accept_state()
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server, server_hostname=host, session=session)
    ended = False
    for _ in range(10):
        client_ended = False
        try:
            client.do_handshake()
            client_ended = True
        except ssl.SSLWantReadError:
            pass
        if to_server.pending:
            server.bio_write(to_server.read())
        try:
            server.do_handshake()
            ended = True
        except SSL.WantReadError:
            pass
        if client_ended and ended:
            return client
        try:
            to_client.write(server.bio_read(65535))
        except SSL.WantReadError:
            pass
    raise AssertionError("the handshake did not end")


@pytest.fixture
def made(tmp_path: Path) -> tuple[AgentTls, Path]:
    authority = create_ca(tmp_path, "test")
    return AgentTls(LeafMaker(authority)), authority.path


def client(ca: Path, *alpn: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(ca))
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [(("h2", "http/1.1"), "http/1.1"), (("http/1.1",), "http/1.1"), (("h2",), None), ((), None)],
    ids=["both", "http/1.1", "h2 alone", "none"],
)
def test_at1_only_http11_is_selected(
    made: tuple[AgentTls, Path], offered: tuple[str, ...], chosen: str | None
) -> None:
    tls, ca = made
    assert (
        handshake(tls("api.ok.test"), client(ca, *offered), "api.ok.test").selected_alpn_protocol() == chosen
    )


def test_at1_the_leaf_is_for_exactly_that_name(made: tuple[AgentTls, Path]) -> None:
    tls, ca = made
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tls("api.ok.test"), client(ca), "other.test")
    with pytest.raises(ValueError, match="host name"):
        tls("not a host")


def test_at2_a_context_is_kept_until_its_leaf_is_renewed(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    clock = [now]
    tls = AgentTls(LeafMaker(create_ca(tmp_path, "test"), now=lambda: clock[0]))
    first = tls("api.ok.test")
    assert tls("api.ok.test") is first
    clock[0] = now + timedelta(days=6, hours=12)
    assert tls("api.ok.test") is not first


def test_at3_the_next_handshake_after_adopt_has_the_new_ca(tmp_path: Path) -> None:
    old, new = create_ca(tmp_path / "old", "test"), create_ca(tmp_path / "new", "test")
    tls = AgentTls(LeafMaker(old))
    open_one = handshake(tls("api.ok.test"), client(old.path), "api.ok.test")
    tls.adopt(LeafMaker(new))
    handshake(tls("api.ok.test"), client(new.path), "api.ok.test")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tls("api.ok.test"), client(old.path), "api.ok.test")
    assert open_one.version() == "TLSv1.3"


@pytest.mark.parametrize(
    ("host", "problem"),
    [("api.ok.test", None), ("a.api.ok.test", None), ("evil.example", "permitted subtree")],
)
def test_a_constrained_ca_is_believed_for_its_names_only(
    tmp_path: Path, host: str, problem: str | None
) -> None:
    authority = create_ca(tmp_path, "test", names=("api.ok.test",))
    tls = AgentTls(LeafMaker(authority))
    if problem is None:
        handshake(tls(host), client(authority.path), host)
    else:
        with pytest.raises(ssl.SSLCertVerificationError, match=problem):
            handshake(tls(host), client(authority.path), host)


@pytest.mark.parametrize("asked", [True, False], ids=["with issuers", "without"])
def test_at4_a_client_certificate_is_asked_for_only_when_issuers_are_given(
    tmp_path: Path, asked: bool
) -> None:
    ca = make_ca("agents")
    authority = create_ca(tmp_path, "test")
    tls = AgentTls(LeafMaker(authority), [ca.certificate] if asked else [])
    for shown in (issue(ca, [uri(SPIFFE)]), issue(make_ca("others"), [uri(SPIFFE)]), None):
        context = client(authority.path)
        if shown is not None:
            context.load_cert_chain(*shown.files(tmp_path, "shown"))
        server = SSL.Connection(tls("api.ok.test"))
        finished = handshake_of(server, context, "api.ok.test")
        found = server.get_peer_certificate()
        if asked and shown is not None:
            assert found is not None and found.to_cryptography() == shown.certificate
        else:
            assert found is None
        assert finished.session_reused is False


def test_at4_no_session_is_resumed_where_certificates_are_asked_for(tmp_path: Path) -> None:
    ca = make_ca("agents")
    authority = create_ca(tmp_path, "test")
    for issuers, resumed in (([], True), ([ca.certificate], False)):
        context = tls_context = AgentTls(LeafMaker(authority), issuers)("api.ok.test")
        clients = client(authority.path)
        clients.maximum_version = ssl.TLSVersion.TLSv1_2  # the session is there when the handshake ends
        first = handshake_of(SSL.Connection(tls_context), clients, "api.ok.test")
        second = handshake_of(SSL.Connection(context), clients, "api.ok.test", session=first.session)
        assert second.session_reused is resumed
