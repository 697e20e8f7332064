"""adapters/ca.py: the interception CA on disk, and the leaves that it signs."""

from __future__ import annotations

import os
import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from holdgate.adapters.ca import CertificateAuthority, LeafMaker, create_ca, load_ca
from holdgate.errors import ConfigError

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return create_ca(tmp_path_factory.mktemp("state"), "edge-1", now=NOW)


def names(certificate: x509.Certificate) -> list[object]:
    return [
        name.value
        for name in certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    ]


def accepts(ca: CertificateAuthority, certificate: x509.Certificate, name: str, when: datetime) -> bool:
    """An independent verifier's word: would a client that trusts the CA take this leaf for `name`?"""
    policy = PolicyBuilder().store(Store([ca.certificate])).time(when.replace(tzinfo=None))
    try:
        policy.build_server_verifier(x509.DNSName(name)).verify(certificate, [])
    except VerificationError:
        return False
    return True


def test_c1_a_ca_is_made_once_and_never_overwritten(tmp_path: Path) -> None:
    first = create_ca(tmp_path, "edge-1")
    with pytest.raises(ConfigError, match="never overwritten"):
        create_ca(tmp_path, "edge-1")
    assert load_ca(tmp_path).certificate == first.certificate
    assert "CN=Holdgate CA edge-1" in first.certificate.subject.rfc4514_string()
    assert [path.name for path in tmp_path.iterdir()] == ["ca"]


def test_c1_only_the_owner_can_read_the_key_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        create_ca(tmp_path, "n")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "ca").iterdir()}
    assert modes == {"ca.key": 0o600, "ca.pem": 0o644}
    assert (tmp_path / "ca").stat().st_mode & 0o077 == 0


def test_c1_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("holdgate.adapters.private_file.os.fsync", full)
    with pytest.raises(ConfigError, match="No space left"):
        create_ca(tmp_path, "n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_c2_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    key = create_ca(tmp_path, "n").path.with_name("ca.key")
    key.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600") as caught:
        load_ca(tmp_path)
    assert caught.value.file == str(key)


@pytest.mark.parametrize("name", ["next.key", "previous.key"])
def test_c2_a_key_of_a_rotation_is_guarded_like_the_one_that_signs(tmp_path: Path, name: str) -> None:
    key = create_ca(tmp_path, "n").path.with_name(name)
    key.write_bytes(b"whatever it holds")
    key.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_ca(tmp_path)


def test_c2_a_missing_ca_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holdgate init"):
        load_ca(tmp_path)


def test_c2_a_pair_that_does_not_match_is_refused(tmp_path: Path) -> None:
    create_ca(tmp_path / "a", "n")
    other = create_ca(tmp_path / "b", "n")
    (tmp_path / "a" / "ca" / "ca.pem").write_bytes(other.pem)
    with pytest.raises(ConfigError, match="does not belong"):
        load_ca(tmp_path / "a")


@pytest.mark.parametrize("name", ["ca.key", "ca.pem"])
def test_c2_a_broken_file_is_refused(tmp_path: Path, name: str) -> None:
    create_ca(tmp_path, "n")
    (tmp_path / "ca" / name).write_bytes(b"-----BEGIN nonsense")
    with pytest.raises(ConfigError, match="not readable PEM"):
        load_ca(tmp_path)


def test_c2_an_expired_ca_is_refused(tmp_path: Path) -> None:
    create_ca(tmp_path, "n", now=NOW)
    with pytest.raises(ConfigError, match="not valid now"):
        load_ca(tmp_path, now=NOW + timedelta(days=3651))


def test_c2_a_certificate_that_is_no_ca_is_refused(tmp_path: Path) -> None:
    made = create_ca(tmp_path, "n", now=NOW)
    builder = x509.CertificateBuilder(
        issuer_name=made.certificate.subject,
        subject_name=made.certificate.subject,
        public_key=made.key.public_key(),
        serial_number=1,
        not_valid_before=NOW,
        not_valid_after=NOW + timedelta(days=9),
    )
    identifier = x509.SubjectKeyIdentifier.from_public_key(made.key.public_key())
    builder = builder.add_extension(identifier, critical=False)
    plain = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    made.path.write_bytes(plain.sign(made.key, hashes.SHA256()).public_bytes(Encoding.PEM))
    with pytest.raises(ConfigError, match="is not a CA"):
        load_ca(tmp_path, now=NOW)


@pytest.mark.parametrize(
    "host", ["api.stripe.com", "xn--bcher-kva.example", "a_b.example.com", "x" * 63 + ".com"]
)
def test_c3_a_leaf_names_exactly_its_host(ca: CertificateAuthority, host: str) -> None:
    leaf = LeafMaker(ca, now=lambda: NOW).leaf(host)
    assert names(leaf.certificate) == [host]
    if "_" not in host:
        assert accepts(ca, leaf.certificate, host, NOW)
    assert not accepts(ca, leaf.certificate, "other.example.com", NOW)


def test_c3_a_name_too_long_for_a_common_name_still_verifies(ca: CertificateAuthority) -> None:
    host = ".".join(["l" * 40] * 3) + ".example.com"
    leaf = LeafMaker(ca, now=lambda: NOW).leaf(host)
    assert list(leaf.certificate.subject) == []
    assert accepts(ca, leaf.certificate, host, NOW)


def test_c3_an_address_becomes_an_address_name(ca: CertificateAuthority) -> None:
    leaf = LeafMaker(ca, now=lambda: NOW).leaf("127.0.0.1")
    assert [str(name) for name in names(leaf.certificate)] == ["127.0.0.1"]


@pytest.mark.parametrize(
    "host",
    ["", "API.stripe.com", "*.stripe.com", "a..b", ".a", "a.", "a b", "a\n", "b\u00fccher.de", "a/b",
     "x" * 64 + ".com", "a." * 127 + "com"],
)  # fmt: skip
def test_c3_what_is_no_host_name_gets_no_leaf(ca: CertificateAuthority, host: str) -> None:
    with pytest.raises(ValueError, match="not a lower-case host name"):
        LeafMaker(ca, now=lambda: NOW).leaf(host)


def test_c4_leaf_keys_are_not_the_ca_s_and_differ_by_process(ca: CertificateAuthority) -> None:
    one, two = LeafMaker(ca, now=lambda: NOW), LeafMaker(ca, now=lambda: NOW)
    keys = {maker.leaf("a.example").key.public_key().public_numbers() for maker in (one, two)}
    assert len(keys | {ca.key.public_key().public_numbers()}) == 3
    assert isinstance(one.leaf("a.example").key.curve, ec.SECP256R1)


def test_c5_a_leaf_is_reused_until_a_day_before_it_ends(ca: CertificateAuthority) -> None:
    clock = [NOW]
    maker = LeafMaker(ca, now=lambda: clock[0])
    first = maker.leaf("a.example")
    clock[0] = NOW + timedelta(days=6)
    assert maker.leaf("a.example") is first
    clock[0] = NOW + timedelta(days=6, seconds=1)
    second = maker.leaf("a.example")
    assert second is not first
    assert accepts(ca, second.certificate, "a.example", NOW + timedelta(days=12))


def test_c5_a_leaf_of_a_time_to_come_is_made_anew(ca: CertificateAuthority) -> None:
    """The clock was days ahead when it was made, and is right again: no client would take it."""
    clock = [NOW + timedelta(days=3)]
    maker = LeafMaker(ca, now=lambda: clock[0])
    early = maker.leaf("a.example")
    clock[0] = NOW
    again = maker.leaf("a.example")
    assert not accepts(ca, early.certificate, "a.example", NOW)
    assert accepts(ca, again.certificate, "a.example", NOW)
    clock[0] = NOW - timedelta(hours=23)  # within what it is dated back by
    assert maker.leaf("a.example") is again


def test_c5_no_leaf_outlives_the_ca(ca: CertificateAuthority) -> None:
    late = ca.certificate.not_valid_after_utc - timedelta(days=3)
    leaf = LeafMaker(ca, now=lambda: late).leaf("a.example")
    assert leaf.certificate.not_valid_after_utc == ca.certificate.not_valid_after_utc


SUBTREES = ("amazonaws.com", "api.stripe.com")


@pytest.fixture(scope="module")
def constrained(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return create_ca(tmp_path_factory.mktemp("state"), "edge-1", names=SUBTREES, now=NOW)


def test_cc1_only_the_given_names_are_permitted_at_root_and_issuer(constrained: CertificateAuthority) -> None:
    assert constrained.permitted == SUBTREES
    assert constrained.certificate != constrained.root
    for certificate in (constrained.certificate, constrained.root):
        extension = certificate.extensions.get_extension_for_class(x509.NameConstraints)
        assert extension.critical
        assert [name.value for name in extension.value.permitted_subtrees or ()] == list(SUBTREES)
        assert [str(name.value) for name in extension.value.excluded_subtrees or ()] == ["0.0.0.0/0", "::/0"]
    assert constrained.certificate.public_key() == constrained.key.public_key()


def test_cc1_the_root_s_key_is_nowhere(tmp_path: Path) -> None:
    made = create_ca(tmp_path, "n", names=SUBTREES)
    keys = [path.read_bytes() for path in (tmp_path / "ca").iterdir() if b"PRIVATE" in path.read_bytes()]
    assert len(keys) == 1
    assert keys[0].count(b"PRIVATE KEY-----") == 2  # its begin and its end: one key
    assert made.root.public_key() != made.key.public_key()


@pytest.mark.parametrize(
    ("host", "believed"),
    [("api.stripe.com", True), ("bucket.s3.eu-west-1.amazonaws.com", True), ("evil.example", False),
     ("api.stripe.com.evil.example", False), ("notapi.stripe.com", False)],
)  # fmt: skip
def test_cc1_a_verifier_believes_leaves_for_permitted_names_only(
    constrained: CertificateAuthority, host: str, believed: bool
) -> None:
    leaf = LeafMaker(constrained, now=lambda: NOW).leaf(host)
    policy = PolicyBuilder().store(Store([constrained.root])).time(NOW.replace(tzinfo=None))
    verifier = policy.build_server_verifier(x509.DNSName(host))
    if believed:
        verifier.verify(leaf.certificate, list(leaf.chain))
    else:
        with pytest.raises(VerificationError):
            verifier.verify(leaf.certificate, list(leaf.chain))
    assert constrained.vouches_for(host) is believed


def test_cc2_a_constrained_ca_without_names_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs a map"):
        create_ca(tmp_path, "n", names=())
    assert list(tmp_path.iterdir()) == []


def test_a_key_file_of_an_earlier_version_still_loads(tmp_path: Path) -> None:
    made = create_ca(tmp_path, "n")
    assert b"CERTIFICATE" not in (tmp_path / "ca" / "ca.key").read_bytes()
    assert (made.certificate, made.chain) == (made.root, ())


def test_the_cache_is_bounded(ca: CertificateAuthority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdgate.adapters.ca._CACHE_SIZE", 2)
    maker = LeafMaker(ca, now=lambda: NOW)
    first = maker.leaf("a.example")
    maker.leaf("b.example")
    maker.leaf("c.example")
    assert maker.leaf("a.example") is not first


def test_the_pem_serves_a_real_handshake(tmp_path: Path) -> None:
    authority = create_ca(tmp_path, "edge-1")
    pem = tmp_path / "leaf.pem"
    pem.write_bytes(LeafMaker(authority).pem("api.stripe.com"))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem)
    near, far = socket.socketpair()

    def serve() -> None:
        with server.wrap_socket(far, server_side=True) as wrapped:
            wrapped.sendall(b"hello")

    thread = threading.Thread(target=serve)
    thread.start()
    client = ssl.create_default_context(cafile=str(authority.path))
    with client.wrap_socket(near, server_hostname="api.stripe.com") as wrapped:
        assert wrapped.recv(5) == b"hello"
    thread.join(5)
