"""What a client certificate proves, and with it who an agent is.

    DER chain that the client showed (and whose key it has: TLS checked that) -> CertificateRules it satisfies

A certificate is shown inside the TLS that we terminate for the upstream's name: `curl --cert`, requests
`cert=`, boto3 `client_cert`. OpenSSL asks for it and checks the proof of possession; what it is worth is
judged here, per rule, so that a worthless one ends in a refusal with a receipt and not in a handshake error.
It goes nowhere else: the outer door has its own TLS.

Invariants (tests/test_client_certs.py has one test named after each):
  CC1  A rule is satisfied only by a chain to an issuer of its own file, valid now, for client authentication,
       not a CA's, with exactly the rule's name: one URI for a SPIFFE id, else one name in all.
  CC2  Whatever cannot be parsed or verified satisfies nothing, and still counts as shown.
  CC3  A certificate that expires, or is not yet valid, stops to count within a few seconds, on open
       connections too.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cachetools import TTLCache
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from ..agents import Agent, AgentRule, CertificateRule, identify
from ..errors import ConfigError
from ..message import Origin

__all__ = ["Identity"]

_REMEMBER_S: Final = 5.0
_MAX_CHAIN: Final = 8
_NO_TIME: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Identity:
    """Callable: where a request came from -> its Agent. Raises InputError(UNKNOWN_AGENT)."""

    def __init__(
        self, rules: tuple[AgentRule, ...], *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._rules, self._now = rules, now
        wanted = [rule.certificate for rule in rules if rule.certificate is not None]
        self._issuers = {rule.ca_file: _issuers(rule.ca_file) for rule in wanted}
        self._wanted = tuple(wanted)
        self._proven: TTLCache[tuple[bytes, ...], frozenset[CertificateRule]] = TTLCache(
            1024, _REMEMBER_S, timer=lambda: (self._now() - _NO_TIME).total_seconds()
        )

    @property
    def issuers(self) -> tuple[x509.Certificate, ...]:
        """Every configured issuer, to be named when a certificate is asked for; () asks for none."""
        return tuple(issuer for issuers in self._issuers.values() for issuer in issuers)

    def __call__(self, origin: Origin) -> Agent:
        chain = origin.client_chain
        return identify(origin, self._rules, self._prove(chain) if chain else None)

    def _prove(self, chain: tuple[bytes, ...]) -> frozenset[CertificateRule]:
        found = self._proven.get(chain)
        if found is None:
            found = frozenset(rule for rule in self._wanted if self._satisfies(chain, rule))
            self._proven[chain] = found
        return found

    def _satisfies(self, chain: tuple[bytes, ...], rule: CertificateRule) -> bool:
        if len(chain) > _MAX_CHAIN:
            return False
        try:
            leaf, *others = (x509.load_der_x509_certificate(der) for der in chain)
            verifier = PolicyBuilder().store(Store(self._issuers[rule.ca_file])).time(self._now())
            verifier.build_client_verifier().verify(leaf, others)
            # That it is for clients, the policy checks; but one that names no usage at all passes it.
            leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
            names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (VerificationError, ValueError, x509.ExtensionNotFound, x509.DuplicateExtension, TypeError):
            return False
        return _is_named(names, rule.san)


def _is_named(names: x509.SubjectAlternativeName, san: str) -> bool:
    if san.startswith("spiffe://"):
        # An SVID has exactly one URI (X.509-SVID, 2); other kinds of names may stand beside it.
        return names.get_values_for_type(x509.UniformResourceIdentifier) == [san]
    return len(list(names)) == 1 and names.get_values_for_type(x509.DNSName) == [san]


def _issuers(path: Path) -> list[x509.Certificate]:
    try:
        found = x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"client_cert.ca_file: {error}", file=str(path)) from error
    for issuer in found:
        try:
            is_ca = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        except (x509.ExtensionNotFound, ValueError):
            is_ca = False
        if not is_ca:
            subject = issuer.subject.rfc4514_string()
            raise ConfigError(f"client_cert.ca_file: {subject} is not a CA's certificate", file=str(path))
    return found
