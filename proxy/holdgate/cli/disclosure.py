"""`holdgate verify --disclosure`: is this the request that a receipt commits to? Offline."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..sealing import SALT_BYTES, commitment

__all__ = ["Disclosure", "read_disclosure"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Disclosure:
    receipt: str
    salt: bytes = field(repr=False)
    target: str
    body_sha256: bytes

    def problem(self, statement: Mapping[str, Any]) -> str:
        """Why the receipt does not commit to this request; "" when it does."""
        request = statement.get("request", {})
        if statement["id"] != self.receipt:
            return f"the disclosure is of {self.receipt}"
        if "commitment" not in request:
            return "the receipt has no commitment"
        if max(self.target, default="") > "\xff":
            return "the target is not bytes, as a request's is"
        said = commitment(
            self.salt,
            method=request["method"],
            destination=statement["destination"],
            target=self.target.encode("latin-1"),
            body_sha256=self.body_sha256,
        )
        return (
            "" if hmac.compare_digest(said, request["commitment"]) else "the commitment is to another request"
        )


def read_disclosure(path: Path, body: Path | None, target: str | None) -> Disclosure:
    """`target` where the disclosure has none, or to try another one. Raises ConfigError."""
    try:
        data = b"" if body is None else body.read_bytes()
        said = json.loads(path.read_bytes())
        salt = bytes.fromhex(said["salt"])
        known = target if target is not None else said.get("target")
        if len(salt) != SALT_BYTES or not isinstance(said["receipt"], str):
            raise ValueError("no salt")
    except OSError as error:
        raise ConfigError(f"cannot read: {error.strerror}", file=str(error.filename)) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError("not what `holdgate receipts disclose` prints", file=str(path)) from error
    if not isinstance(known, str):
        raise ConfigError("the path and query are not kept any more: write --target", file=str(path))
    return Disclosure(
        receipt=said["receipt"], salt=salt, target=known, body_sha256=hashlib.sha256(data).digest()
    )
