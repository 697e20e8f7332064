"""Client certificates for tests: CAs, leaves with any names, and everything that may be wrong with one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)
SPIFFE = "spiffe://example.org/agents/refunds"


def uri(text: str) -> x509.GeneralName:
    return x509.UniformResourceIdentifier(text)


def dns(text: str) -> x509.GeneralName:
    return x509.DNSName(text)


@dataclass(frozen=True, kw_only=True)
class Issued:
    """A certificate, its key, and the certificates that lead to its root (without the root)."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    between: tuple[x509.Certificate, ...] = ()

    @property
    def chain(self) -> tuple[bytes, ...]:
        return tuple(
            each.public_bytes(serialization.Encoding.DER) for each in (self.certificate, *self.between)
        )

    def files(self, folder: Path, name: str) -> tuple[Path, Path]:
        pem = serialization.Encoding.PEM
        path, key = folder / f"{name}.pem", folder / f"{name}.key"
        path.write_bytes(b"".join(each.public_bytes(pem) for each in (self.certificate, *self.between)))
        form = serialization.PrivateFormat.PKCS8
        key.write_bytes(self.key.private_bytes(pem, form, serialization.NoEncryption()))
        return path, key


def make_ca(name: str, under: Issued | None = None) -> Issued:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = _builder(
        subject, under.certificate.subject if under else subject, key, NOW - DAY, NOW + 365 * DAY
    )
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
    builder = builder.add_extension(usage, True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
    signer = under.key if under else key
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False
    )
    made = builder.sign(signer, hashes.SHA256())
    return Issued(
        certificate=made, key=key, between=(made, *(under.between if under else ())) if under else ()
    )


def issue(
    ca: Issued,
    names: Sequence[x509.GeneralName] = (),
    *,
    start: datetime = NOW - DAY,
    end: datetime = NOW + DAY,
    usages: Sequence[x509.ObjectIdentifier] = (ExtendedKeyUsageOID.CLIENT_AUTH,),
    common_name: str = "",
    is_ca: bool = False,
) -> Issued:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else [])
    builder = _builder(subject, ca.certificate.subject, key, start, end)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), not common_name)
    if usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), False)
    if is_ca:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key()), False
    )
    return Issued(certificate=builder.sign(ca.key, hashes.SHA256()), key=key, between=ca.between)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
    )
