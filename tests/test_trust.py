"""adapters/trust.py: variables, bundles and vendors' own files, with real packages' bundles in a copy."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import ssl
import subprocess
import sys
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
    publish,
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


def test_b1_a_rotation_leaves_no_trace_either(venv: Path, ca: CertificateAuthority, tmp_path: Path) -> None:
    other = create_ca(tmp_path / "other", "edge-1")
    before = contents(venv)
    install([venv], ca.pem)
    install([venv], ca.pem + other.pem)
    for bundle in contents(venv):
        if bundle.name != "ca.crt":
            assert (trusted(bundle, ca), trusted(bundle, other)) == (True, True)
    assert {one.change for one in install([venv], other.pem, retired=ca.pem)} == {Change.ADDED}
    for bundle in contents(venv):
        if bundle.name != "ca.crt":
            assert (trusted(bundle, ca), trusted(bundle, other)) == (False, True)
    assert {one.change for one in install([venv], other.pem, retired=ca.pem)} == {Change.UNCHANGED}
    uninstall([venv], other.pem, retired=ca.pem)
    assert contents(venv) == before


def test_b1_the_folder_of_an_image_s_system_store_gets_and_loses_one_file_per_ca(
    tmp_path: Path, ca: CertificateAuthority
) -> None:
    other = create_ca(tmp_path / "other", "edge-2")
    folder = tmp_path / "rootfs/usr/local/share/ca-certificates"
    folder.mkdir(parents=True)
    (folder / "company.crt").write_bytes(CERTIFICATE)
    assert [one.change for one in install([folder], ca.pem + other.pem)] == [Change.ADDED]
    assert {path.read_bytes() for path in folder.glob("holdgate-*.crt")} == {ca.pem, other.pem}
    assert [one.change for one in install([folder], other.pem, retired=ca.pem)] == [Change.ADDED]
    assert [path.read_bytes() for path in folder.glob("holdgate-*.crt")] == [other.pem]
    assert [one.change for one in uninstall([folder], other.pem)] == [Change.REMOVED]
    assert contents(folder) == {folder / "company.crt": CERTIFICATE}


_SYSTEM = """
set -e
mount --bind "$1/anchors" /usr/local/share/ca-certificates
mount --bind "$1/certs" /etc/ssl/certs
"$2" -m holdgate trust --ca "$1/ca.pem" --install /usr/local/share/ca-certificates
openssl verify -CAfile /etc/ssl/certs/ca-certificates.crt "$1/ca.pem"
"$2" -m holdgate trust --ca "$1/ca.pem" --uninstall /usr/local/share/ca-certificates
! openssl verify -CAfile /etc/ssl/certs/ca-certificates.crt "$1/ca.pem"
"""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="a mount namespace needs root")
@pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in ("update-ca-certificates", "unshare", "openssl"))
    or not Path("/usr/local/share/ca-certificates").is_dir(),
    reason="no Debian system store here",
)
def test_b1_a_system_s_own_store_is_made_again(tmp_path: Path, ca: CertificateAuthority) -> None:
    for name in ("anchors", "certs"):  # in a mount namespace of its own: this machine's store stays as it is
        (tmp_path / name).mkdir()
    (tmp_path / "ca.pem").write_bytes(ca.pem)
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", _SYSTEM, "sh", str(tmp_path), sys.executable],
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare failed" in done.stderr:
        pytest.skip("no mount namespaces here")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[:2] == [
        "added /usr/local/share/ca-certificates",
        f"{tmp_path}/ca.pem: OK",
    ]


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


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("keytool") is None, reason="no Java here")
def test_a_java_root_gets_and_loses_our_ca(tmp_path: Path, ca: CertificateAuthority) -> None:
    """A copy of the store of this machine's Java, or one like it, through a rotation."""
    store = tmp_path / "lib" / "security" / "cacerts"
    store.parent.mkdir(parents=True)
    java = Path(shutil.which("java") or "/").resolve().parents[-1 if shutil.which("java") is None else 1]
    other = create_ca(tmp_path / "other", "edge-2")
    if (java / "lib/security/cacerts").is_file():
        shutil.copyfile(java / "lib/security/cacerts", store)
    else:
        write_java_store(store, create_ca(tmp_path / "third", "edge-3").pem)
    before = java_certificates(store)
    assert [touched.change for touched in install([tmp_path], ca.pem + other.pem)] == [Change.ADDED]
    assert java_certificates(store) == before + 2
    assert [touched.change for touched in install([tmp_path], other.pem, retired=ca.pem)] == [Change.ADDED]
    assert [touched.change for touched in install([tmp_path], other.pem)] == [Change.UNCHANGED]
    assert java_certificates(store) == before + 1
    assert [touched.change for touched in uninstall([tmp_path], other.pem)] == [Change.REMOVED]
    assert java_certificates(store) == before


def java_certificates(store: Path) -> int:
    """How many entries Java, not we, sees in a store."""
    listed = subprocess.run(
        ["keytool", "-J-Duser.language=en", "-list", "-keystore", str(store), "-storepass", "changeit"],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(listed.stdout.partition("Your keystore contains ")[2].split()[0])


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


def test_what_is_published_can_be_read_by_others_and_sourced(
    tmp_path: Path, ca: CertificateAuthority
) -> None:
    before = os.umask(0o077)
    try:
        env = publish(tmp_path / "trust", ca.pem)
    finally:
        os.umask(before)
    folder = tmp_path / "trust"
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert modes == dict.fromkeys(("ca.pem", "bundle.pem", "bundle.p12", "env"), 0o644)
    assert folder.stat().st_mode & 0o777 == 0o755
    script = "set -a; . ./env; unset PWD; env"
    shell = subprocess.run(
        ["sh", "-c", script],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/bin:/usr/bin"},
    )
    seen = dict(line.split("=", 1) for line in shell.stdout.splitlines())
    assert env.items() <= seen.items()
    assert env["NODE_EXTRA_CA_CERTS"] == str(folder / "ca.pem")
    assert b"PRIVATE" not in b"".join(contents(folder).values())


@pytest.mark.parametrize("name", ["with space", 'quo"te', "dol$lar", "back\\slash"])
def test_a_published_folder_has_a_name_that_systemd_compose_and_shells_read_alike(
    tmp_path: Path, ca: CertificateAuthority, name: str
) -> None:
    with pytest.raises(ConfigError, match="without spaces"):
        publish(tmp_path / name, ca.pem)
    assert not (tmp_path / name).exists()


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
