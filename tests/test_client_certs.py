"""adapters/client_certs.py: what a client certificate proves, alone and beside source and token."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import datetime, timedelta
from ipaddress import ip_network
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from client_pki import DAY, NOW, SPIFFE, Issued, dns, issue, make_ca, uri
from holdgate.adapters.client_certs import Identity
from holdgate.agents import Agent, AgentRule, CertificateRule
from holdgate.errors import ConfigError, InputError
from holdgate.message import Listener, Origin

CA, OTHER_CA = make_ca("agents"), make_ca("others")
MIDDLE = make_ca("middle", CA)
NAMED = "refund-bot.agents.internal"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cas")
    CA.files(folder, "agents")
    OTHER_CA.files(folder, "others")
    return folder


def rule(
    name: str, *, source: str = "", token: str = "", certificate: CertificateRule | None = None
) -> AgentRule:
    return AgentRule(
        agent=Agent(id=name, groups=(), attrs=()),
        sources=(ip_network(source),) if source else (),
        token_sha256=hashlib.sha256(token.encode()).digest() if token else b"",
        certificate=certificate,
    )


def origin(
    chain: tuple[bytes, ...] = (), *credentials: bytes, source: str = "10.0.0.9", tls: bool = True
) -> Origin:
    return Origin(
        listener=Listener.EXPLICIT,
        tls=tls,
        source=source,
        source_port=40000,
        connect=("api.stripe.com", 443),
        sni="api.stripe.com",
        original_port=None,
        proxy_authorization=credentials,
        client_chain=chain,
    )


def who(identity: Identity, where: Origin) -> str:
    try:
        return identity(where).id
    except InputError as error:
        assert error.reason == "unknown_agent"
        return f"nobody, {error.status}: {error.detail}"


@pytest.fixture
def spiffe(files: Path) -> AgentRule:
    return rule("refunds", certificate=CertificateRule(ca_file=files / "agents.pem", san=SPIFFE))


@pytest.fixture
def named(files: Path) -> AgentRule:
    return rule("named", certificate=CertificateRule(ca_file=files / "agents.pem", san=NAMED))


def test_cc1_a_good_certificate_is_its_agent(spiffe: AgentRule, named: AgentRule) -> None:
    identity = Identity((spiffe, named))
    assert who(identity, origin(issue(CA, [uri(SPIFFE)]).chain)) == "refunds"
    assert who(identity, origin(issue(CA, [uri(SPIFFE), dns("pod-7.example")]).chain)) == "refunds"
    assert who(identity, origin(issue(CA, [dns(NAMED)], common_name="x").chain)) == "named"
    through = issue(MIDDLE, [uri(SPIFFE)])
    assert len(through.chain) == 2 and who(identity, origin(through.chain)) == "refunds"
    assert identity.issuers == (CA.certificate,)


SERVER = ExtendedKeyUsageOID.SERVER_AUTH
FORGED_CA = make_ca("agents")  # the right name, another key
BAD: dict[str, Issued] = {
    "another CA": issue(OTHER_CA, [uri(SPIFFE)]),
    "another key under the CA's name": issue(FORGED_CA, [uri(SPIFFE)]),
    "expired": issue(CA, [uri(SPIFFE)], start=NOW - 2 * DAY, end=NOW - DAY),
    "not yet valid": issue(CA, [uri(SPIFFE)], start=NOW + DAY, end=NOW + 2 * DAY),
    "for servers": issue(CA, [uri(SPIFFE)], usages=[SERVER]),
    "for anything": issue(CA, [uri(SPIFFE)], usages=[ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]),
    "for nothing in particular": issue(CA, [uri(SPIFFE)], usages=[]),
    "a CA's own": issue(CA, [uri(SPIFFE)], is_ca=True),
    "without the CA in between": replace(issue(MIDDLE, [uri(SPIFFE)]), between=()),
    "the name of another": issue(CA, [uri("spiffe://example.org/agents/payouts")]),
    "a longer name": issue(CA, [uri(SPIFFE + "/x")]),
    "another case": issue(CA, [uri(SPIFFE.replace("agents", "Agents"))]),
    "two URIs": issue(CA, [uri(SPIFFE), uri("spiffe://example.org/agents/payouts")]),
    "two URIs, the other one first": issue(CA, [uri("spiffe://example.org/agents/payouts"), uri(SPIFFE)]),
    "the same URI twice": issue(CA, [uri(SPIFFE), uri(SPIFFE)]),
    "the name as a DNS name": issue(CA, [dns("example.org")]),
    "the name in the subject only": issue(CA, [dns("example.org")], common_name=SPIFFE),
    "no name": issue(CA, [], common_name=NAMED),
    "two DNS names": issue(CA, [dns(NAMED), dns("x.example")]),
    "a DNS name and a URI": issue(CA, [dns(NAMED), uri("https://x.example/")]),
    "a wildcard": issue(CA, [dns("*.agents.internal")]),
    "the DNS name in the subject only": issue(CA, [dns("x.example")], common_name=NAMED),
    "a DNS name in upper case": issue(CA, [dns(NAMED.upper())]),
    "an IP address": issue(CA, [x509.IPAddress(ip_network("10.0.0.9/32").network_address)]),
}


@pytest.mark.parametrize("what", BAD)
def test_cc1_anything_less_is_nobody_and_falls_back_to_nothing(
    what: str, spiffe: AgentRule, named: AgentRule
) -> None:
    shown = origin(BAD[what].chain)
    assert who(Identity((spiffe, named)), shown) == "nobody, 403: the client certificate is no agent's"
    local = rule("local", source="10.0.0.0/8")
    token = rule("token", token="s3cret")
    identity = Identity((spiffe, named, local, token))
    for where in (shown, origin(BAD[what].chain, b"Bearer s3cret")):
        assert who(identity, where) == "nobody, 403: the client certificate is no agent's"
    # Without it, the same connection is known: it is the certificate that is not ignored.
    assert who(Identity((local,)), origin()) == "local"


def test_cc1_an_issuer_counts_for_its_own_rule_only(files: Path, spiffe: AgentRule) -> None:
    other = rule(
        "other", certificate=CertificateRule(ca_file=files / "others.pem", san="spiffe://b.example/x")
    )
    identity = Identity((spiffe, other))
    assert who(identity, origin(issue(OTHER_CA, [uri(SPIFFE)]).chain)).startswith("nobody")
    assert who(identity, origin(issue(OTHER_CA, [uri("spiffe://b.example/x")]).chain)) == "other"


@given(st.lists(st.binary(max_size=64), min_size=1, max_size=10))
def test_cc2_bytes_that_are_no_certificate_are_nobody(files: Path, chain: list[bytes]) -> None:
    certificate = CertificateRule(ca_file=files / "agents.pem", san=SPIFFE)
    identity = Identity((rule("refunds", certificate=certificate), rule("local", source="10.0.0.0/8")))
    assert who(identity, origin(tuple(chain))).startswith("nobody")


def test_cc2_an_edited_certificate_is_nobody(spiffe: AgentRule) -> None:
    good = issue(CA, [uri(SPIFFE)]).chain[0]
    identity = Identity((spiffe,))
    for place in range(0, len(good), 7):
        edited = good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :]
        assert who(identity, origin((edited,))).startswith("nobody"), place


def test_cc2_a_chain_of_many_is_nobody(spiffe: AgentRule) -> None:
    good = issue(CA, [uri(SPIFFE)])
    assert who(Identity((spiffe,)), origin(good.chain * 9)).startswith("nobody")


def test_cc3_a_certificate_that_expires_stops_to_count_on_an_open_connection(spiffe: AgentRule) -> None:
    clock = [NOW]

    def now() -> datetime:
        return clock[0]

    identity = Identity((spiffe,), now=now)
    shown = origin(issue(CA, [uri(SPIFFE)], end=NOW + timedelta(minutes=1)).chain)
    assert who(identity, shown) == "refunds"
    clock[0] = NOW + timedelta(seconds=59)
    assert who(identity, shown) == "refunds"
    clock[0] = NOW + timedelta(seconds=66)
    assert who(identity, shown).startswith("nobody")
    early = origin(issue(CA, [uri(SPIFFE)], start=NOW + timedelta(minutes=2)).chain)
    assert who(identity, early).startswith("nobody")
    clock[0] = NOW + timedelta(minutes=3)
    assert who(identity, early) == "refunds"


def test_a8_certificate_source_and_token_are_anded(files: Path) -> None:
    certificate = CertificateRule(ca_file=files / "agents.pem", san=SPIFFE)
    everything = rule("all", source="10.0.0.9/32", token="s3cret", certificate=certificate)
    identity = Identity((everything,))
    good = issue(CA, [uri(SPIFFE)]).chain
    assert who(identity, origin(good, b"Bearer s3cret")) == "all"
    for where in (
        origin(good, b"Bearer wrong"),
        origin(good, b"Bearer s3cret", source="10.0.0.8"),
        origin((), b"Bearer s3cret"),
        origin(),
    ):
        assert who(identity, where).startswith("nobody"), where


def test_a8_a_bad_certificate_is_refused_and_no_token_is_asked_for(files: Path) -> None:
    certificate = CertificateRule(ca_file=files / "agents.pem", san=SPIFFE)
    identity = Identity((rule("both", token="s3cret", certificate=certificate),))
    assert who(identity, origin(BAD["expired"].chain)).startswith("nobody, 403")


def test_a8_a_certificate_of_one_agent_and_the_source_or_token_of_another_is_nobody(
    files: Path, spiffe: AgentRule
) -> None:
    local, token = rule("local", source="10.0.0.0/8"), rule("token", token="s3cret")
    good = issue(CA, [uri(SPIFFE)]).chain
    assert "several" in who(Identity((spiffe, local)), origin(good))
    assert "several" in who(Identity((spiffe, token)), origin(good, b"Bearer s3cret"))
    # A rule that wants a certificate from elsewhere does not hand the connection to the source's agent.
    elsewhere = replace(spiffe, sources=(ip_network("192.0.2.0/24"),))
    elsewhere = rule("away", source="192.0.2.0/24", certificate=elsewhere.certificate)
    assert who(Identity((elsewhere, local)), origin(good)).endswith("another agent's")


def test_a8_no_credentials_are_asked_for_while_a_certificate_may_still_come(spiffe: AgentRule) -> None:
    token = rule("token", token="s3cret")
    opening = origin(tls=False)
    assert who(Identity((spiffe, token)), opening).startswith("nobody, 403")
    assert who(Identity((token,)), opening).startswith("nobody, 407")
    assert who(Identity((spiffe, token)), origin()).startswith("nobody, 403")
    plain = replace(opening, connect=None)
    assert who(Identity((spiffe, token)), plain).startswith("nobody, 407")


def test_a_file_that_holds_no_ca_is_refused_at_start(tmp_path: Path) -> None:
    issue(CA, [uri(SPIFFE)]).files(tmp_path, "leaf")
    (tmp_path / "broken.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    for name in ("leaf", "broken", "missing"):
        certificate = CertificateRule(ca_file=tmp_path / f"{name}.pem", san=SPIFFE)
        with pytest.raises(ConfigError, match=r"client_cert\.ca_file"):
            Identity((rule("x", certificate=certificate),))
