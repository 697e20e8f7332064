"""The certificates of the interception CA: made here, and looked at here.

Without constraints there is one self-signed certificate. With them there are two: a root, which agents trust
and whose key is forgotten as soon as it has signed once, and an issuer below it, which signs the leaves. Both
carry the constraints, because Java ignores those of a trust anchor (tried with OpenJDK 17; OpenSSL, Go and
Node heed them in either place).

Invariants (tests/test_ca.py):
  CC1  A constrained CA permits the given DNS subtrees and excludes every IP address, critically, at issuer
       and root.
  CC2  A constrained CA that would permit every name cannot be made.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from ..errors import ConfigError

__all__ = ["BACKDATE", "NewCa", "key_usage", "make_ca", "permitted_names"]

BACKDATE: Final = timedelta(days=1)  # for clients whose clock is behind ours
_CA_LIFE: Final = timedelta(days=3650)
_EVERY_ADDRESS: Final = tuple(x509.IPAddress(ipaddress.ip_network(block)) for block in ("0.0.0.0/0", "::/0"))


@dataclass(frozen=True, slots=True, kw_only=True)
class NewCa:
    """A CA that was just made. `root` is what agents trust; `issuer` is the same one, or signed by it."""

    key: ec.EllipticCurvePrivateKey
    issuer: x509.Certificate
    root: x509.Certificate

    @property
    def key_pem(self) -> bytes:
        """What the key file holds: the key, and the issuer where agents do not have it already."""
        private = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return private if self.issuer == self.root else private + self.issuer.public_bytes(Encoding.PEM)

    @property
    def root_pem(self) -> bytes:
        return self.root.public_bytes(Encoding.PEM)


def make_ca(node: str, names: Sequence[str] | None, now: datetime) -> NewCa:
    """A new CA; `names` are the DNS subtrees it is constrained to, None for no constraints."""
    # A name of its own for each CA: where two roots have one name, some clients try only the first.
    mark = secrets.token_hex(4)
    title = _name(f"Holdgate CA {node}", mark)
    if names is None:
        key = ec.generate_private_key(ec.SECP256R1())
        root = _certificate(title, key, None, now=now, below=0, constraints=None)
        return NewCa(key=key, issuer=root, root=root)
    if not names:
        raise ConfigError(
            "`ca.constrain` needs a map with an https host: there is none to constrain the CA to"
        )
    constraints = x509.NameConstraints(
        permitted_subtrees=[x509.DNSName(name) for name in names], excluded_subtrees=list(_EVERY_ADDRESS)
    )
    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root = _certificate(title, root_key, None, now=now, below=1, constraints=constraints)
    below = _name(f"Holdgate issuer {node}", mark)
    issuer = _certificate(below, key, (root, root_key), now=now, below=0, constraints=constraints)
    return NewCa(key=key, issuer=issuer, root=root)


def permitted_names(certificate: x509.Certificate) -> tuple[str, ...] | None:
    """The DNS subtrees that a CA is constrained to, sorted; None for a CA without constraints."""
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.NameConstraints).value
    except x509.ExtensionNotFound:
        return None
    permitted = constraints.permitted_subtrees or ()
    return tuple(sorted(str(name.value) for name in permitted if isinstance(name, x509.DNSName)))


def _name(common: str, mark: str) -> x509.Name:
    common_name = x509.NameAttribute(NameOID.COMMON_NAME, common)
    return x509.Name([common_name, x509.NameAttribute(NameOID.SERIAL_NUMBER, mark)])


def _certificate(
    name: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    signer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None,
    *,
    now: datetime,
    below: int,
    constraints: x509.NameConstraints | None,
) -> x509.Certificate:
    """One CA certificate, self-signed where `signer` is None. `below`: how many CAs may stand under it."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(signer[0].subject if signer else name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + _CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=below), critical=True)
        .add_extension(key_usage(key_cert_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if constraints is not None:
        builder = builder.add_extension(constraints, critical=True)
    if signer is not None:
        above = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer[1].public_key())
        builder = builder.add_extension(above, critical=False)
    return builder.sign(signer[1] if signer else key, hashes.SHA256())


def key_usage(*, digital_signature: bool = False, key_cert_sign: bool = False) -> x509.KeyUsage:
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
