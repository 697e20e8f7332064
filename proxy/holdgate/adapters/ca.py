"""The interception CA on disk, and a leaf per host name made from it.

    state_dir/ca/ca.key        0600: the key that signs leaves, and its issuer certificate where it has one
    state_dir/ca/ca.pem        every certificate that agents are to trust: one, or two while a rotation lasts
    state_dir/ca/next.key      0600: published in ca.pem, not signing yet        (ca_rotation.py)
    state_dir/ca/previous.key  0600: signed before, still in ca.pem              (ca_rotation.py)

Which of the certificates signs is decided by ca.key alone, so that one rename switches key and certificate
together. Whoever holds ca.key can impersonate every site (every permitted one, when it is constrained) to the
agents that trust ca.pem; so it is readable by its owner only, and it signs leaves but is never a leaf's own.

Invariants (tests/test_ca.py):
  C1  create_ca() never overwrites, and leaves either a complete CA or none.
  C2  load_ca() refuses a key that others can read, a pair that does not match, and what is expired or no CA.
  C3  A leaf names exactly the host that was asked for, and nothing else.
  C4  Leaf keys are made per process and are not the CA's.
  C5  A leaf that would expire within a day, or is of a time to come, is made anew: in a process that runs for
      years, and after the clock was set back.
"""

from __future__ import annotations

import ipaddress
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cachetools import LRUCache
from cryptography import x509
from cryptography.exceptions import InvalidSignature
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
from ..subtrees import covers
from .ca_certificate import BACKDATE, key_usage, make_ca, permitted_names
from .durable import sync_folder
from .private_file import read_private, write_new

__all__ = ["CertificateAuthority", "KeyPair", "Leaf", "LeafMaker", "create_ca", "key_pair", "load_ca"]

type KeyPair = tuple[ec.EllipticCurvePrivateKey, x509.Certificate, x509.Certificate]  # key, issuer, root

_LEAF_LIFE: Final = timedelta(days=7)
_RENEW_BEFORE: Final = timedelta(days=1)
_CACHE_SIZE: Final = 1024
_HOST: Final = re.compile(r"(?!.{254})[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_]([a-z0-9_-]{0,62}))*\Z")
_MAX_COMMON_NAME: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateAuthority:
    """The CA that signs now."""

    certificate: x509.Certificate  # of `key`: the issuer of leaves
    root: x509.Certificate  # what agents trust: the same one, or the issuer's
    key: ec.EllipticCurvePrivateKey
    pem: bytes  # every certificate that agents are to trust
    path: Path  # of ca.pem

    @property
    def not_after(self) -> datetime:
        return min(self.certificate.not_valid_after_utc, self.root.not_valid_after_utc)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the issuer of leaves, hex."""
        return self.certificate.fingerprint(hashes.SHA256()).hex()

    @property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """What a server sends after the leaf: agents have the root."""
        return () if self.certificate == self.root else (self.certificate,)

    @property
    def permitted(self) -> tuple[str, ...] | None:
        """The DNS subtrees it may vouch for; None: every name."""
        return permitted_names(self.certificate)

    def vouches_for(self, host: str) -> bool:
        """Whether agents would accept a leaf for this lower-case host name."""
        return self.permitted is None or covers(self.permitted, host)


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """A certificate for one host, its key, and what stands between it and the root."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    chain: tuple[x509.Certificate, ...]
    not_before: datetime
    not_after: datetime


def create_ca(
    state_dir: Path, node: str, *, names: Sequence[str] | None = None, now: datetime | None = None
) -> CertificateAuthority:
    """Make `state_dir/ca/`, constrained to the DNS subtrees `names`. ConfigError if there is one already."""
    target = state_dir / "ca"
    if target.exists():
        raise ConfigError("there is a CA already; it is never overwritten", file=str(target))
    moment = now or datetime.now(UTC)
    made = make_ca(node, names, moment)
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Written beside its place and renamed: a crash leaves no half of a CA.
    work = Path(tempfile.mkdtemp(prefix=".ca-", dir=state_dir))
    try:
        write_new(work / "ca.key", made.key_pem, 0o600)
        write_new(work / "ca.pem", made.root_pem, 0o644)
        work.rename(target)
        sync_folder(state_dir)
    except OSError as error:
        shutil.rmtree(work, ignore_errors=True)
        raise ConfigError(f"cannot write the CA: {error.strerror}", file=str(target)) from error
    return load_ca(state_dir, now=moment)


def load_ca(state_dir: Path, *, now: datetime | None = None) -> CertificateAuthority:
    """Read and check the CA. Raises ConfigError that says what to do."""
    folder = state_dir / "ca"
    key_path, pem_path = folder / "ca.key", folder / "ca.pem"
    try:
        for waiting in folder.glob("*.key"):  # a key of a rotation is as much a key as the one that signs
            read_private(waiting, "the CA key")
        secret, pem = read_private(key_path, "the CA key"), pem_path.read_bytes()
    except FileNotFoundError as error:
        raise ConfigError("missing; `holdgate init` makes the CA", file=str(error.filename)) from error
    except OSError as error:
        raise ConfigError(f"cannot read: {error.strerror}", file=str(error.filename)) from error
    pair = key_pair(secret, pem, folder)
    if pair is None:
        raise ConfigError("does not belong to ca.key (an elliptic curve key is expected)", file=str(pem_path))
    key, issuer, root = pair
    _check_ca(issuer, pem_path, now or datetime.now(UTC))
    _check_ca(root, pem_path, now or datetime.now(UTC))
    return CertificateAuthority(certificate=issuer, root=root, key=key, pem=_clean(pem), path=pem_path)


def key_pair(secret: bytes, pem: bytes, folder: Path) -> KeyPair | None:
    """The key in a key file, its certificate, and the trusted certificate above it; None where none is."""
    try:
        key = load_pem_private_key(secret, password=None)
        trusted = x509.load_pem_x509_certificates(pem)
        own = x509.load_pem_x509_certificates(secret) if b"BEGIN CERTIFICATE" in secret else []
    except (ValueError, TypeError) as error:
        raise ConfigError("the CA's key or certificate is not readable PEM", file=str(folder)) from error
    if isinstance(key, ec.EllipticCurvePrivateKey):
        for issuer in (*own, *trusted):
            for root in trusted:
                if issuer.public_key() == key.public_key() and _signed_by(issuer, root):
                    return key, issuer, root
    return None


def _signed_by(issuer: x509.Certificate, root: x509.Certificate) -> bool:
    if issuer == root:
        return True
    try:
        issuer.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _clean(pem: bytes) -> bytes:
    """The certificates alone, whatever else stands in the file."""
    return b"".join(one.public_bytes(Encoding.PEM) for one in x509.load_pem_x509_certificates(pem))


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
            if leaf is None or now < leaf.not_before or leaf.not_after - now < _RENEW_BEFORE:
                leaf = self._leaves[host] = self._make(host, now)
            return leaf

    def pem(self, host: str) -> bytes:
        """The leaf's key, the leaf and what stands above it but the root, as one PEM text."""
        leaf = self.leaf(host)
        private = leaf.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        above = b"".join(one.public_bytes(Encoding.PEM) for one in leaf.chain)
        return private + leaf.certificate.public_bytes(Encoding.PEM) + above

    def _make(self, host: str, now: datetime) -> Leaf:
        name = _general_name(host)
        # A common name longer than 64 is not allowed; without a subject the SAN must be critical.
        common = [x509.NameAttribute(NameOID.COMMON_NAME, host)] if len(host) <= _MAX_COMMON_NAME else []
        not_before, not_after = now - BACKDATE, min(now + _LEAF_LIFE, self._ca.not_after)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name(common))
            .issuer_name(self._ca.certificate.subject)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(not_before)
            .not_valid_after(not_after)
            .add_extension(x509.SubjectAlternativeName([name]), critical=not common)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(key_usage(digital_signature=True), critical=True)
            .add_extension(self._subject_key, critical=False)
            .add_extension(self._authority_key, critical=False)
            .sign(self._ca.key, hashes.SHA256())
        )
        return Leaf(
            certificate=certificate,
            key=self._key,
            chain=self._ca.chain,
            not_before=not_before,
            not_after=not_after,
        )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not _HOST.match(host):
        raise ValueError(f"not a lower-case host name: {host!r}")
    return x509.DNSName(host)


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
            f"the CA is not valid now (it ends {until}); move {path.parent} away and run `holdgate init`",
            file=str(path),
        )
