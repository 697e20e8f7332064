"""The interception CA: a key and certificate in `state_dir/ca/`, and a leaf per host name made from it.

Whoever holds `ca.key` can impersonate every site to the agents that trust `ca.pem`; so it is readable by its
owner only, and it signs leaves but is never a leaf's own key.

Invariants (tests/test_ca.py):
  C1  create_ca() never overwrites, and leaves either a complete CA or none.
  C2  load_ca() refuses a key that others can read, a pair that does not match, and what is expired or no CA.
  C3  A leaf names exactly the host that was asked for, and nothing else.
  C4  Leaf keys are made per process and are not the CA's.
  C5  A leaf that would expire within a day is made anew, also in a process that runs for years.
"""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cachetools import LRUCache
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ..errors import ConfigError

__all__ = ["CertificateAuthority", "Leaf", "LeafMaker", "create_ca", "load_ca"]

_CA_LIFE: Final = timedelta(days=3650)
_LEAF_LIFE: Final = timedelta(days=30)
_BACKDATE: Final = timedelta(days=1)  # for clients whose clock is behind ours
_RENEW_BEFORE: Final = timedelta(days=1)
_CACHE_SIZE: Final = 1024
_HOST: Final = re.compile(r"(?!.{254})[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_]([a-z0-9_-]{0,62}))*\Z")
_MAX_COMMON_NAME: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateAuthority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    pem: bytes  # the certificate alone: what clients are given
    path: Path  # of ca.pem


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """A certificate for one host and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    not_after: datetime


def create_ca(state_dir: Path, node: str, *, now: datetime | None = None) -> CertificateAuthority:
    """Make `state_dir/ca/{ca.key,ca.pem}`. Raises ConfigError if there is one already."""
    target = state_dir / "ca"
    if target.exists():
        raise ConfigError("there is a CA already; it is never overwritten", file=str(target))
    moment = now or datetime.now(UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _ca_certificate(key, node, moment)
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Written beside its place and renamed: a crash leaves no half of a CA.
    work = Path(tempfile.mkdtemp(prefix=".ca-", dir=state_dir))
    try:
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        _write(work / "ca.key", private, 0o600)
        _write(work / "ca.pem", certificate.public_bytes(Encoding.PEM), 0o644)
        work.rename(target)
    except OSError as error:
        shutil.rmtree(work, ignore_errors=True)
        raise ConfigError(f"cannot write the CA: {error.strerror}", file=str(target)) from error
    return load_ca(state_dir, now=moment)


def load_ca(state_dir: Path, *, now: datetime | None = None) -> CertificateAuthority:
    """Read and check the CA. Raises ConfigError that says what to do."""
    folder = state_dir / "ca"
    key_path, pem_path = folder / "ca.key", folder / "ca.pem"
    try:
        key_bytes, pem = _read_private(key_path), pem_path.read_bytes()
    except FileNotFoundError as error:
        raise ConfigError("missing; `holdgate init` makes the CA", file=str(error.filename)) from error
    except OSError as error:
        raise ConfigError(f"cannot read: {error.strerror}", file=str(error.filename)) from error
    try:
        key = load_pem_private_key(key_bytes, password=None)
        certificate = x509.load_pem_x509_certificate(pem)
    except (ValueError, TypeError) as error:
        raise ConfigError("the CA's key or certificate is not readable PEM", file=str(folder)) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ConfigError("does not belong to ca.key (an elliptic curve key is expected)", file=str(pem_path))
    _check_ca(certificate, pem_path, now or datetime.now(UTC))
    own = certificate.public_bytes(Encoding.PEM)
    return CertificateAuthority(certificate=certificate, key=key, pem=own, path=pem_path)


class LeafMaker:
    """Leaves by host name, made on first use (well under 1 ms) and kept, least recently used out first."""

    def __init__(self, ca: CertificateAuthority, *, now: Callable[[], datetime] | None = None) -> None:
        self._ca = ca
        self._now = now or (lambda: datetime.now(UTC))
        # One key for all leaves of this process: it never leaves memory, and making one per host would
        # only cost time.
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._leaves: LRUCache[str, Leaf] = LRUCache(_CACHE_SIZE)
        self._lock = threading.Lock()
        self._subject_key = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        issuer_key = ca.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        self._authority_key = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_key)

    def leaf(self, host: str) -> Leaf:
        """The leaf for a lower-case host name (or IP address). Raises ValueError for anything else."""
        now = self._now()
        with self._lock:
            leaf = self._leaves.get(host)
            if leaf is None or leaf.not_after - now < _RENEW_BEFORE:
                leaf = self._leaves[host] = self._make(host, now)
            return leaf

    def pem(self, host: str) -> bytes:
        """The leaf's key, the leaf and the CA's certificate, as one PEM text."""
        leaf = self.leaf(host)
        private = leaf.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return private + leaf.certificate.public_bytes(Encoding.PEM) + self._ca.pem

    def _make(self, host: str, now: datetime) -> Leaf:
        name = _general_name(host)
        # A common name longer than 64 is not allowed; without a subject the SAN must be critical.
        common = [x509.NameAttribute(NameOID.COMMON_NAME, host)] if len(host) <= _MAX_COMMON_NAME else []
        not_after = min(now + _LEAF_LIFE, self._ca.certificate.not_valid_after_utc)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name(common))
            .issuer_name(self._ca.certificate.subject)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BACKDATE)
            .not_valid_after(not_after)
            .add_extension(x509.SubjectAlternativeName([name]), critical=not common)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(self._subject_key, critical=False)
            .add_extension(self._authority_key, critical=False)
            .sign(self._ca.key, hashes.SHA256())
        )
        return Leaf(certificate=certificate, key=self._key, not_after=not_after)


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not _HOST.match(host):
        raise ValueError(f"not a lower-case host name: {host!r}")
    return x509.DNSName(host)


def _ca_certificate(key: ec.EllipticCurvePrivateKey, node: str, now: datetime) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Holdgate CA {node}")])
    public = key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + _CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=key_cert_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _check_ca(certificate: x509.Certificate, path: Path, now: datetime) -> None:
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except (x509.ExtensionNotFound, ValueError) as error:
        raise ConfigError("is not a CA certificate with a subject key identifier", file=str(path)) from error
    if not constraints.ca:
        raise ConfigError("is not a CA certificate", file=str(path))
    if not certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc:
        until = certificate.not_valid_after_utc.date()
        raise ConfigError(
            f"the CA is not valid now (it ends {until}); move it away and run `holdgate init`", file=str(path)
        )


def _read_private(path: Path) -> bytes:
    """The file's bytes. The mode is read from the open file, so it is this file's and not a later one's."""
    with path.open("rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if not stat.S_ISREG(mode) or mode & 0o077:
            raise ConfigError(f"others can read the CA key; run: chmod 600 {path}", file=str(path))
        return file.read()


def _write(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)  # the umask may have taken bits away
        file.write(data)
        file.flush()
        os.fsync(descriptor)
