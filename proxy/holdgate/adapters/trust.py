"""How clients come to trust our CA: variables, a bundle, and the stores that systems and libraries have.

Most clients take a variable (`trust_env`); some read only the file in their own package (stripe, for one), so
`install` appends our certificates there, between marker lines that `uninstall` finds again. `ca_pem` is one
certificate, or two while a rotation lasts; `retired` are those of rotations that are over.

Invariants (tests/test_trust.py):
  B1  install() twice is install() once, and uninstall() gives back the bytes that were there before, also
      after rotations in between.
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
from .durable import sync_folder

__all__ = [
    "Change",
    "Touched",
    "env_lines",
    "install",
    "java_store_path",
    "publish",
    "trust_env",
    "uninstall",
    "with_ca",
    "write_bundle",
    "write_java_store",
    "write_roots",
]

_BEGIN_CERTIFICATE: Final = b"-----BEGIN CERTIFICATE-----"
_PEM: Final = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n", re.DOTALL)
# What packages call their own bundle: certifi, pip, botocore and requests (cacert.pem), stripe in every
# language (ca-certificates.crt), httplib2 (cacerts.txt), grpc (roots.pem), others.
_BUNDLE_NAMES: Final = frozenset(
    {"cacert.pem", "cacerts.pem", "cacerts.txt", "ca-certificates.crt", "ca-bundle.crt", "roots.pem"}
)
_JAVA_STORES: Final = ("lib/security/cacerts", "jre/lib/security/cacerts")
# Folders from which a system makes its own store, below its root, and the tool that does it (Debian, Ubuntu,
# Alpine; Fedora, RHEL; Arch).
_ANCHORS: Final = {
    "usr/local/share/ca-certificates": ("update-ca-certificates",),
    "etc/pki/ca-trust/source/anchors": ("update-ca-trust", "extract"),
    "etc/ca-certificates/trust-source/anchors": ("update-ca-trust",),
}
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


type Certificates = tuple[x509.Certificate, ...]


class Change(StrEnum):
    ADDED = "added"
    REMOVED = "removed"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True, kw_only=True)
class Touched:
    """One trust store that was looked at."""

    path: Path
    change: Change


def write_roots(folder: Path, ca_pem: bytes) -> None:
    """What `folder` gives to clients: ca.pem (ours alone), bundle.pem and bundle.p12 (public roots too)."""
    own = b"".join(one.public_bytes(Encoding.PEM) for one in _certificates(ca_pem))
    # Ours first: a crash leaves the others older, never something that nobody signs with.
    _replace(folder / "ca.pem", own, mode=0o644)
    write_bundle(folder / "bundle.pem", own)
    write_java_store(java_store_path(folder / "bundle.pem"), own)


def publish(folder: Path, ca_pem: bytes) -> dict[str, str]:
    """A folder that agents may read: the files of write_roots(), and `env`, NAME="VALUE" lines for them.

    systemd (EnvironmentFile=), Compose (env_file:) and a shell (`set -a; . env`) read `env` alike.
    """
    if re.search(r'["$`\\\s]', str(folder.absolute())):  # each of the three quotes these in its own way
        raise ConfigError("write a path without spaces, quotes, `$` and backslashes", file=str(folder))
    try:
        if not folder.is_dir():
            folder.mkdir(parents=True)
            folder.chmod(0o755)  # the umask of a service takes these bits away
        write_roots(folder, ca_pem)
        env = trust_env(folder / "bundle.pem", folder / "ca.pem")
        lines = "".join(f'{name}="{value}"\n' for name, value in env.items())
        _replace(folder / "env", lines.encode(), mode=0o644)
    except OSError as error:
        raise ConfigError(f"cannot write: {error.strerror}", file=str(error.filename or folder)) from error
    return env


def trust_env(bundle: Path, ca: Path) -> dict[str, str]:
    """Variables for clients. `bundle` is from write_bundle(), `ca` our certificates alone."""
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
    # certifi's file may itself have been through install(): with_ca() does not add the CA twice.
    _replace(path, with_ca(Path(certifi.where()).read_bytes(), ca_pem), mode=0o644)


def with_ca(bundle: bytes, ca_pem: bytes) -> bytes:
    """A PEM bundle as install() would leave it."""
    return _with(bundle, _certificates(ca_pem), ())


def java_store_path(bundle: Path) -> Path:
    """Where trust_env() looks for the Java store that belongs to this bundle."""
    return bundle.with_suffix(".p12")


def write_java_store(path: Path, ca_pem: bytes) -> None:
    """Public roots and our CA as a PKCS #12 trust store that Java reads."""
    own = _certificates(ca_pem)
    entries = [pkcs12.PKCS12Certificate(root, f"root-{i}".encode()) for i, root in enumerate(_public_roots())]
    entries += [pkcs12.PKCS12Certificate(one, _alias(one).encode()) for one in own]
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


def install(paths: Iterable[Path], ca_pem: bytes, *, retired: bytes = b"") -> tuple[Touched, ...]:
    """Add our CA to every path, and take out retired ones.

    A path is a PEM bundle, a folder with such bundles (a venv), a Java root, or the folder from which a
    system makes its own store (the machine's own store is then made again).
    """
    own = _certificates(ca_pem)
    old = tuple(one for one in _certificates(retired) if one not in own) if retired else ()
    return tuple(_change(store, own, old) for store in _stores(paths))


def uninstall(paths: Iterable[Path], ca_pem: bytes, *, retired: bytes = b"") -> tuple[Touched, ...]:
    """Undo install() for the same paths."""
    own = _certificates(ca_pem) + (_certificates(retired) if retired else ())
    return tuple(_change(store, (), own) for store in _stores(paths))


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
    if str(path.resolve()).endswith(tuple("/" + anchors for anchors in _ANCHORS)):
        return [path.resolve()]
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


def _change(store: Path, add: Certificates, drop: Certificates) -> Touched:
    try:
        if store.is_dir():
            return _change_anchors(store, add, drop)
        if store.name == "cacerts":
            return _change_java(store, add, drop)
        return _change_pem(store, add, drop)
    except OSError as error:
        raise ConfigError(f"cannot change: {error.strerror}", file=str(store)) from error


def _change_pem(store: Path, add: Certificates, drop: Certificates) -> Touched:
    before = store.read_bytes()
    if _BEGIN_CERTIFICATE not in before:
        raise ConfigError("not a PEM bundle: there is no certificate in it", file=str(store))
    after = _with(before, add, drop)
    if after != before:
        _replace(store, after, mode=store.stat().st_mode & 0o7777)
    return _touched(store, changed=after != before, added=bool(add))


def _change_anchors(folder: Path, add: Certificates, drop: Certificates) -> Touched:
    """One file per certificate, as update-ca-certificates and update-ca-trust want it."""
    changed = False
    for certificate in drop:
        path = folder / f"{_alias(certificate)}.crt"
        changed |= path.is_file()
        path.unlink(missing_ok=True)
    for certificate in add:
        path, pem = folder / f"{_alias(certificate)}.crt", certificate.public_bytes(Encoding.PEM)
        if not path.is_file() or path.read_bytes() != pem:
            _replace(path, pem, mode=0o644)
            changed = True
    # An image's folder is given to the image's own tool later; the machine's own is done now. It is also done
    # when nothing changed: an earlier run may have ended in between.
    tool = next((tool for anchors, tool in _ANCHORS.items() if folder == Path("/" + anchors)), None)
    if tool is not None:
        _run(tool, folder)
    return _touched(folder, changed=changed, added=bool(add))


def _change_java(store: Path, add: Certificates, drop: Certificates) -> Touched:
    """Through keytool, since a Java store may be in a form that only Java writes."""
    beside = store.parents[2] / "bin" / "keytool"
    tool = str(beside) if beside.is_file() else shutil.which("keytool")
    if tool is None:
        raise ConfigError("a Java trust store needs `keytool`, which is not on PATH", file=str(store))
    changed = False
    with tempfile.TemporaryDirectory() as folder:
        # keytool rewrites its file in place: let it work on a copy, and put that in place in one step.
        copy, pem = Path(folder) / "cacerts", Path(folder) / "ca.pem"
        shutil.copyfile(store, copy)
        copy.chmod(0o600)
        for certificate in (*drop, *add):
            alias, wanted = _alias(certificate), certificate in add
            if (_keytool(tool, copy, "-list", "-alias", alias).returncode == 0) is wanted:
                continue
            pem.write_bytes(certificate.public_bytes(Encoding.PEM))
            command = ["-importcert", "-noprompt", "-file", str(pem)] if wanted else ["-delete"]
            done = _keytool(tool, copy, *command, "-alias", alias)
            if done.returncode != 0:
                text = (done.stdout + done.stderr).strip().splitlines()
                raise ConfigError(f"keytool failed: {text[0] if text else done.returncode}", file=str(store))
            changed = True
        if changed:
            _replace(store, copy.read_bytes(), mode=store.stat().st_mode & 0o7777)
    return _touched(store, changed=changed, added=bool(add))


def _touched(store: Path, *, changed: bool, added: bool) -> Touched:
    change = Change.UNCHANGED if not changed else Change.ADDED if added else Change.REMOVED
    return Touched(path=store, change=change)


def _run(tool: tuple[str, ...], folder: Path) -> None:
    """The tool that makes a system's own store from the folder."""
    program = shutil.which(tool[0])
    if program is None:
        raise ConfigError(f"this system's store needs `{tool[0]}`, which is not on PATH", file=str(folder))
    try:
        done = subprocess.run(  # noqa: S603
            [program, *tool[1:]], capture_output=True, text=True, timeout=120, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"{tool[0]} did not end within 120 s", file=str(folder)) from error
    if done.returncode != 0:
        text = done.stderr.strip() or str(done.returncode)
        raise ConfigError(f"{tool[0]} failed: {text}", file=str(folder))


def _keytool(tool: str, store: Path, *command: str) -> subprocess.CompletedProcess[str]:
    line = [tool, *command, "-keystore", str(store), "-storepass", _STORE_PASSWORD]
    try:
        return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise ConfigError("keytool did not answer within 60 s", file=str(store)) from error


def _certificates(ca_pem: bytes) -> Certificates:
    try:
        found = x509.load_pem_x509_certificates(ca_pem)
    except ValueError as error:
        raise ConfigError("our CA is not a PEM certificate") from error
    return tuple(dict.fromkeys(found))


def _fingerprint(certificate: x509.Certificate) -> str:
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()


def _alias(certificate: x509.Certificate) -> str:
    return f"holdgate-{_fingerprint(certificate)[:16]}"


def _with(bundle: bytes, add: Certificates, drop: Certificates) -> bytes:
    """A PEM bundle with these certificates of ours and without those; what is not ours stays as it is."""
    for certificate in drop:
        for block in _blocks(certificate):
            bundle = bundle.replace(block, b"", 1)
    for certificate in add:
        if not any(block in bundle for block in _blocks(certificate)):
            bundle = _appended(bundle, certificate)
    return bundle


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
    """Write beside `path` under a name that nobody can guess, keep its owner, rename over it, durably."""
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
        sync_folder(path.parent)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
