"""adapters/trust.py: variables, bundles and vendors' own files, with real packages' bundles in a copy."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import ssl
import subprocess
from pathlib import Path

import certifi
import pytest
from cryptography.hazmat.primitives.serialization import pkcs12

from holdgate.adapters.ca import CertificateAuthority, create_ca
from holdgate.adapters.trust import (
    Change,
    env_lines,
    install,
    java_store_path,
    trust_env,
    uninstall,
    write_bundle,
    write_java_store,
)
from holdgate.errors import ConfigError

CERTIFICATE = b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return create_ca(tmp_path_factory.mktemp("state"), "edge-1")


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """A venv with the bundles that stripe, botocore and certifi ship, and a fixture that is no bundle."""
    site = tmp_path / "venv" / "lib" / "python3.12" / "site-packages"
    for package, inside in (
        ("stripe", "data/ca-certificates.crt"),
        ("botocore", "cacert.pem"),
        ("certifi", "cacert.pem"),
    ):
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            pytest.skip(f"{package} is not installed")
        target = site / package / inside
        target.parent.mkdir(parents=True)
        shutil.copyfile(Path(spec.origin).parent / inside, target)
    (site / "moto").mkdir()
    (site / "moto" / "ca.crt").write_bytes(CERTIFICATE)
    return tmp_path / "venv"


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def trusted(bundle: Path, ca: CertificateAuthority) -> bool:
    """What OpenSSL, not we, reads out of the bundle."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cafile=str(bundle))
    return ssl.PEM_cert_to_DER_cert(ca.pem.decode()) in context.get_ca_certs(binary_form=True)


def test_b1_a_venv_s_bundles_trust_our_ca_and_are_given_back_unchanged(
    venv: Path, ca: CertificateAuthority
) -> None:
    before = contents(venv)
    first = install([venv], ca.pem)
    assert [touched.change for touched in first] == [Change.ADDED] * 3
    assert all(trusted(touched.path, ca) for touched in first)
    once = contents(venv)
    second = install([venv, venv], ca.pem)
    assert [touched.change for touched in second] == [Change.UNCHANGED] * 3
    assert contents(venv) == once
    assert [touched.change for touched in uninstall([venv], ca.pem)] == [Change.REMOVED] * 3
    assert contents(venv) == before
    assert [touched.change for touched in uninstall([venv], ca.pem)] == [Change.UNCHANGED] * 3


@pytest.mark.parametrize("end", [b"", b"\n", b"\n\n", b"\n# comment", b"\r\n"])
def test_b1_a_file_comes_back_byte_for_byte_whatever_its_end(
    tmp_path: Path, ca: CertificateAuthority, end: bytes
) -> None:
    bundle = tmp_path / "roots.pem"
    bundle.write_bytes(ca.pem.rstrip() + end)
    install([bundle], ca.pem)
    assert bundle.read_bytes().count(b"-----BEGIN CERTIFICATE-----") == 2
    assert trusted(bundle, ca)
    uninstall([bundle], ca.pem)
    assert bundle.read_bytes() == ca.pem.rstrip() + end


def test_b1_two_cas_live_side_by_side(tmp_path: Path, ca: CertificateAuthority) -> None:
    other = create_ca(tmp_path / "other", "edge-2")
    bundle = tmp_path / "roots.pem"
    bundle.write_bytes(Path(certifi.where()).read_bytes())
    install([bundle], ca.pem)
    install([bundle], other.pem)
    uninstall([bundle], ca.pem)
    assert (trusted(bundle, ca), trusted(bundle, other)) == (False, True)


def test_b2_mode_links_and_cache_copies_survive(tmp_path: Path, ca: CertificateAuthority) -> None:
    bundle, cached, link = tmp_path / "cacert.pem", tmp_path / "cached.pem", tmp_path / "link.pem"
    bundle.write_bytes(CERTIFICATE)
    bundle.chmod(0o640)
    os.link(bundle, cached)
    link.symlink_to(bundle)
    install([link], ca.pem)
    assert bundle.stat().st_mode & 0o7777 == 0o640
    assert link.is_symlink()
    assert ca.pem in bundle.read_bytes()
    assert cached.read_bytes() == CERTIFICATE  # the package cache's copy
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cacert.pem", "cached.pem", "link.pem"]


def test_b2_a_failed_write_leaves_the_old_file(
    tmp_path: Path, ca: CertificateAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "cacert.pem"
    bundle.write_bytes(CERTIFICATE)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("holdgate.adapters.trust.os.fsync", full)
    with pytest.raises(ConfigError, match="No space left"):
        install([bundle], ca.pem)
    assert contents(tmp_path) == {bundle: CERTIFICATE}


def test_b3_nothing_to_do_is_an_error(tmp_path: Path, ca: CertificateAuthority) -> None:
    (tmp_path / "note.pem").write_text("no certificate here")
    for path, message in (
        (tmp_path / "nope", "no such file or folder"),
        (tmp_path, "no trust store in this folder"),
        (tmp_path / "note.pem", "not a PEM bundle"),
    ):
        with pytest.raises(ConfigError, match=message):
            install([path], ca.pem)


def test_b3_a_bad_path_stops_before_anything_is_changed(tmp_path: Path, ca: CertificateAuthority) -> None:
    bundle = tmp_path / "cacert.pem"
    bundle.write_bytes(CERTIFICATE)
    with pytest.raises(ConfigError, match="no such file"):
        install([bundle, tmp_path / "nope"], ca.pem)
    assert bundle.read_bytes() == CERTIFICATE


def test_b3_a_java_root_without_keytool_says_so(
    tmp_path: Path, ca: CertificateAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "lib" / "security" / "cacerts"
    store.parent.mkdir(parents=True)
    store.write_bytes(b"\xfe\xed\xfe\xed")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="keytool"):
        install([tmp_path], ca.pem)
    assert store.read_bytes() == b"\xfe\xed\xfe\xed"


@pytest.mark.skipif(shutil.which("keytool") is None, reason="no Java here")
def test_a_java_root_gets_and_loses_our_ca(tmp_path: Path, ca: CertificateAuthority) -> None:
    store = tmp_path / "lib" / "security" / "cacerts"
    store.parent.mkdir(parents=True)
    write_java_store(store, create_ca(tmp_path / "other", "edge-2").pem)
    assert [touched.change for touched in install([tmp_path], ca.pem)] == [Change.ADDED]
    assert [touched.change for touched in install([tmp_path], ca.pem)] == [Change.UNCHANGED]
    loaded = pkcs12.load_pkcs12(store.read_bytes(), b"changeit")
    assert ca.certificate in [entry.certificate for entry in loaded.additional_certs]
    assert [touched.change for touched in uninstall([tmp_path], ca.pem)] == [Change.REMOVED]


def test_b4_no_private_key_is_ever_written(tmp_path: Path, ca: CertificateAuthority) -> None:
    bundle = tmp_path / "bundle.pem"
    key = ca.path.with_name("ca.key").read_bytes()
    for given in (key, b"", b"nonsense"):
        with pytest.raises(ConfigError, match="not a PEM certificate"):
            write_bundle(bundle, given)
    write_bundle(bundle, ca.pem + key)  # whatever stands beside the certificate stays out
    assert b"PRIVATE KEY" not in bundle.read_bytes()


def test_the_bundle_is_public_roots_and_our_ca(tmp_path: Path, ca: CertificateAuthority) -> None:
    bundle = tmp_path / "bundle.pem"
    write_bundle(bundle, ca.pem)
    assert trusted(bundle, ca)
    assert bundle.read_bytes().startswith(Path(certifi.where()).read_bytes())
    assert bundle.stat().st_mode & 0o777 == 0o644


def test_the_variables_are_what_a_shell_reads(tmp_path: Path, ca: CertificateAuthority) -> None:
    bundle = tmp_path / "with space" / "bundle.pem"
    bundle.parent.mkdir()
    write_bundle(bundle, ca.pem)
    env = trust_env(bundle, ca.path)
    assert env["SSL_CERT_FILE"] == env["REQUESTS_CA_BUNDLE"] == env["AWS_CA_BUNDLE"] == str(bundle)
    assert env["NODE_EXTRA_CA_CERTS"] == str(ca.path)  # this one adds to the roots
    assert "JAVA_TOOL_OPTIONS" not in env
    write_java_store(java_store_path(bundle), ca.pem)
    env = trust_env(bundle, ca.path)
    assert str(java_store_path(bundle)) in env["JAVA_TOOL_OPTIONS"]
    script = env_lines(env) + 'printf \'%s|%s\' "$SSL_CERT_FILE" "$JAVA_TOOL_OPTIONS"'
    shell = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert shell.stdout == f"{env['SSL_CERT_FILE']}|{env['JAVA_TOOL_OPTIONS']}"
    assert all(shlex.split(line)[0] == "export" for line in env_lines(env).splitlines())


def test_the_java_store_holds_public_roots_and_our_ca(tmp_path: Path, ca: CertificateAuthority) -> None:
    store = tmp_path / "bundle.p12"
    write_java_store(store, ca.pem)
    loaded = pkcs12.load_pkcs12(store.read_bytes(), b"changeit")
    certificates = [entry.certificate for entry in loaded.additional_certs]
    assert loaded.key is None
    assert ca.certificate in certificates
    assert len(certificates) > 50
