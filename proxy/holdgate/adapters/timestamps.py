"""RFC 3161: a time-stamp authority says when a checkpoint was there; and its word is verified.

Needs the extra `timestamp` (rfc3161-client). The stamp is over the SHA-256 of the checkpoint's file, so that
`openssl ts -verify -data CHECKPOINT -in STAMP -CAfile ROOTS` says the same.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography import x509

from ..errors import ConfigError, HoldgateError

__all__ = ["StampError", "query", "read_roots", "stamped_at"]


class StampError(HoldgateError):
    """Not a time stamp of these bytes by somebody under these roots."""


def _library() -> Any:
    try:
        import rfc3161_client
    except ImportError:
        raise ConfigError("time stamps need the extra: pip install 'holdgate[timestamp]'") from None
    return rfc3161_client


def query(data: bytes) -> bytes:
    """The DER request for a stamp of `data`, with a nonce. Raises ConfigError."""
    library = _library()
    builder = library.TimestampRequestBuilder().data(data).hash_algorithm(library.HashAlgorithm.SHA256)
    request: bytes = builder.build().as_bytes()
    return request


def read_roots(path: Path) -> list[x509.Certificate]:
    """Raises ConfigError."""
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read roots: {error}", file=str(path)) from error


def stamped_at(answer: bytes, data: bytes, roots: Path) -> datetime:
    """When the authority says that it saw `data`. Raises StampError, ConfigError."""
    library = _library()
    certificates = read_roots(roots)
    try:
        response = library.decode_timestamp_response(answer)
        builder = library.VerifierBuilder(roots=certificates)
        builder.build().verify_message(response, data)
        moment: datetime = response.tst_info.gen_time
    except (ValueError, library.VerificationError) as error:
        raise StampError(f"not a time stamp of this checkpoint: {error}") from error
    return moment
