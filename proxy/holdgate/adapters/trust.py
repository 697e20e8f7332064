"""How clients come to trust our CA: variables, a bundle, and the bundles that libraries carry themselves.

Most clients take a variable (`trust_env`); some read only the file in their own package (stripe, for one), so
`install` appends our certificate there, between two marker lines that `uninstall` finds again.

Invariants (tests/test_trust.py):
  B1  install() twice is install() once, and uninstall() gives back the bytes that were there before.
  B2  A bundle is replaced in one step with its mode kept: a reader sees the old file or the new one, and a
      hard link to it elsewhere (package caches) keeps the old bytes.
  B3  A path where nothing can be done is a ConfigError, never silence.
  B4  What is written holds public certificates only.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

import certifi
from cryptography import x509
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, pkcs12

from ..errors import ConfigError

__all__ = [
    "Change",
    "Touched",
    "env_lines",
    "install",
    "java_store_path",
    "trust_env",
    "uninstall",
    "with_ca",
    "write_bundle",
    "write_java_store",
]

_BEGIN_CERTIFICATE: Final = b"-----BEGIN CERTIFICATE-----"
_PEM: Final = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n", re.DOTALL)
# What packages call their own bundle: certifi, pip, botocore and requests (cacert.pem), stripe in every
# language (ca-certificates.crt), httplib2 (cacerts.txt), grpc (roots.pem), others.
_BUNDLE_NAMES: Final = frozenset(
    {"cacert.pem", "cacerts.pem", "cacerts.txt", "ca-certificates.crt", "ca-bundle.crt", "roots.pem"}
)
_JAVA_STORES: Final = ("lib/security/cacerts", "jre/lib/security/cacerts")
_STORE_PASSWORD: Final = "changeit"  # noqa: S105 - Java's well-known one; a trust store holds no secret

# Variables that *replace* a client's roots get the bundle; those that add to them get our CA alone.
_BUNDLE_VARIABLES: Final = (
    "AWS_CA_BUNDLE",
    "CARGO_HTTP_CAINFO",
    "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "HTTPLIB2_CA_CERTS",
    "PIP_CERT",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_FILE",
)
_CA_VARIABLES: Final = ("DENO_CERT", "NODE_EXTRA_CA_CERTS")


class Change(StrEnum):
    ADDED = "added"
    REMOVED = "removed"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True, kw_only=True)
class Touched:
    """One trust store that was looked at."""

    path: Path
    change: Change


def trust_env(bundle: Path, ca: Path) -> dict[str, str]:
    """Variables for clients. `bundle` is from write_bundle(), `ca` our certificate alone."""
    env = dict.fromkeys(_BUNDLE_VARIABLES, str(bundle.absolute()))
    env |= dict.fromkeys(_CA_VARIABLES, str(ca.absolute()))
    store = java_store_path(bundle).absolute()
    if store.is_file():
        env["JAVA_TOOL_OPTIONS"] = (
            f"-Djavax.net.ssl.trustStore={store} -Djavax.net.ssl.trustStoreType=PKCS12"
            f" -Djavax.net.ssl.trustStorePassword={_STORE_PASSWORD}"
        )
    return dict(sorted(env.items()))


def env_lines(env: Mapping[str, str]) -> str:
    """`export NAME=VALUE` lines for a POSIX shell."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in env.items())


def write_bundle(path: Path, ca_pem: bytes) -> None:
    """Public roots (certifi's) and our CA, as one PEM file."""
    roots = Path(certifi.where()).read_bytes()
    # certifi's file may itself have been through install(): with_ca() does not add the CA twice.
    _replace(path, with_ca(roots, ca_pem), mode=0o644)


def java_store_path(bundle: Path) -> Path:
    """Where trust_env() looks for the Java store that belongs to this bundle."""
    return bundle.with_suffix(".p12")


def write_java_store(path: Path, ca_pem: bytes) -> None:
    """Public roots and our CA as a PKCS #12 trust store that Java reads."""
    certificate = _certificate(ca_pem)
    entries = [pkcs12.PKCS12Certificate(root, f"root-{i}".encode()) for i, root in enumerate(_public_roots())]
    entries.append(pkcs12.PKCS12Certificate(certificate, b"holdgate"))
    encryption = BestAvailableEncryption(_STORE_PASSWORD.encode())
    _replace(path, pkcs12.serialize_java_truststore(entries, encryption), mode=0o644)


def _public_roots() -> list[x509.Certificate]:
    roots: list[x509.Certificate] = []
    with warnings.catch_warnings():
        # Some old roots break a rule of RFC 5280 (serial number 0): Java can do without those.
        warnings.simplefilter("error")
        for pem in _PEM.findall(Path(certifi.where()).read_bytes()):
            try:
                roots.append(x509.load_pem_x509_certificate(pem))
            except (ValueError, Warning):
                continue
    return roots


def with_ca(bundle: bytes, ca_pem: bytes) -> bytes:
    """A PEM bundle as install() would leave it."""
    certificate = _certificate(ca_pem)
    known = any(block in bundle for block in _blocks(certificate))
    return bundle if known else _appended(bundle, certificate)


def install(paths: Iterable[Path], ca_pem: bytes) -> tuple[Touched, ...]:
    """Add our CA to every path: a PEM bundle, a folder with such bundles (a venv), or a Java root."""
    certificate = _certificate(ca_pem)
    return tuple(_change(store, certificate, add=True) for store in _stores(paths))


def uninstall(paths: Iterable[Path], ca_pem: bytes) -> tuple[Touched, ...]:
    """Undo install() for the same paths."""
    certificate = _certificate(ca_pem)
    return tuple(_change(store, certificate, add=False) for store in _stores(paths))


def _stores(paths: Iterable[Path]) -> Iterator[Path]:
    """Every trust store behind the paths, each once. All of them are found before one is changed."""
    found: dict[Path, None] = {}
    for path in paths:
        found |= dict.fromkeys(_stores_behind(path))
    yield from found


def _stores_behind(path: Path) -> list[Path]:
    if path.is_file():
        return [path.resolve()]  # through symbolic links: the link stays a link
    if not path.is_dir():
        raise ConfigError("no such file or folder; give a bundle, a venv or a Java root", file=str(path))
    java = [path / name for name in _JAVA_STORES if (path / name).is_file()]
    if java:
        return [store.resolve() for store in java]
    # No symbolic links are followed on the way: a venv links to the system's Python.
    bundles: list[Path] = []
    for folder, _, files in path.walk():
        for name in sorted(_BUNDLE_NAMES.intersection(files)):
            if _BEGIN_CERTIFICATE in (folder / name).read_bytes():
                bundles.append((folder / name).resolve())
    if not bundles:
        known = ", ".join(sorted(_BUNDLE_NAMES))
        raise ConfigError(
            f"no trust store in this folder (looked for {known}, Java's cacerts)", file=str(path)
        )
    return bundles


def _change(store: Path, certificate: x509.Certificate, *, add: bool) -> Touched:
    try:
        if store.name == "cacerts":
            return _change_java(store, certificate, add=add)
        return _change_pem(store, certificate, add=add)
    except OSError as error:
        raise ConfigError(f"cannot change: {error.strerror}", file=str(store)) from error


def _change_pem(store: Path, certificate: x509.Certificate, *, add: bool) -> Touched:
    before = store.read_bytes()
    if _BEGIN_CERTIFICATE not in before:
        raise ConfigError("not a PEM bundle: there is no certificate in it", file=str(store))
    present = [block for block in _blocks(certificate) if block in before]
    if bool(present) is add:
        return Touched(path=store, change=Change.UNCHANGED)
    after = _appended(before, certificate) if add else before.replace(present[0], b"", 1)
    _replace(store, after, mode=store.stat().st_mode & 0o7777)
    return Touched(path=store, change=Change.ADDED if add else Change.REMOVED)


def _change_java(store: Path, certificate: x509.Certificate, *, add: bool) -> Touched:
    """Through keytool, since a Java store may be in a form that only Java writes."""
    beside = store.parents[2] / "bin" / "keytool"
    tool = str(beside) if beside.is_file() else shutil.which("keytool")
    if tool is None:
        raise ConfigError("a Java trust store needs `keytool`, which is not on PATH", file=str(store))
    alias = f"holdgate-{_fingerprint(certificate)[:16]}"
    known = _keytool(tool, store, "-list", "-alias", alias).returncode == 0
    if known is add:
        return Touched(path=store, change=Change.UNCHANGED)
    with tempfile.TemporaryDirectory() as folder:
        # keytool rewrites its file in place: let it work on a copy, and put that in place in one step.
        copy, pem = Path(folder) / "cacerts", Path(folder) / "ca.pem"
        shutil.copyfile(store, copy)
        pem.write_bytes(certificate.public_bytes(Encoding.PEM))
        command = ["-importcert", "-noprompt", "-file", str(pem)] if add else ["-delete"]
        done = _keytool(tool, copy, *command, "-alias", alias)
        if done.returncode != 0:
            text = (done.stdout + done.stderr).strip().splitlines()
            raise ConfigError(f"keytool failed: {text[0] if text else done.returncode}", file=str(store))
        _replace(store, copy.read_bytes(), mode=store.stat().st_mode & 0o7777)
    return Touched(path=store, change=Change.ADDED if add else Change.REMOVED)


def _keytool(tool: str, store: Path, *command: str) -> subprocess.CompletedProcess[str]:
    line = [tool, *command, "-keystore", str(store), "-storepass", _STORE_PASSWORD]
    try:
        return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise ConfigError("keytool did not answer within 60 s", file=str(store)) from error


def _certificate(ca_pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(ca_pem)
    except ValueError as error:
        raise ConfigError("our CA is not a PEM certificate") from error


def _fingerprint(certificate: x509.Certificate) -> str:
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()


def _blocks(certificate: x509.Certificate) -> tuple[bytes, bytes]:
    """What is appended: to a file that ends its last line, and to one that does not (told by the marker,
    so that the line end goes away again with it)."""
    name = _fingerprint(certificate).encode()
    rest = b"\n" + certificate.public_bytes(Encoding.PEM) + b"# holdgate-ca end " + name + b"\n"
    begin = b"# holdgate-ca begin " + name
    return begin + rest, b"\n" + begin + b" (line end added)" + rest


def _appended(bundle: bytes, certificate: x509.Certificate) -> bytes:
    whole, joined = _blocks(certificate)
    return bundle + (whole if bundle.endswith(b"\n") else joined)


def _replace(path: Path, data: bytes, *, mode: int) -> None:
    """Write beside `path`, keep its owner, rename over it."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            if path.exists() and os.geteuid() == 0:
                owner = path.stat()
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
