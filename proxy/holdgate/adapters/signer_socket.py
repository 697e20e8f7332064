"""Keys that another process holds: what is to be signed goes over a Unix socket, the signature comes back.

The shape of PKCS#11 and of key services: this process never sees a private key. One JSON line each way, at
most 64 KiB, one answer per question, over a connection that stays open:

    {"ask": "public", "key_id": ID}                          -> {"x": public key, base64url}
    {"ask": "sign", "key_id": ID, "message": base64url}      -> {"signature": 64 bytes, base64url}
                                                             -> {"error": TEXT}

`holdgate signer` (signer_server.py) is a small one that answers this.

Invariants (tests/test_signer_socket.py has one test named after each):
  SS1  A signature that is not this key's over exactly these bytes is never returned.
  SS2  No answer takes longer than the deadline, and after a failure nobody waits for a second.
  SS3  After a failure the connection is closed: a late answer is never taken for another question's.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from ..errors import BackendError, Reason
from ..keys import KeyDocumentError, PublicKey, b64url, unb64url

__all__ = ["SignerSocket"]

_MAX_BYTES: Final = 65_536
_PAUSE_S: Final = 1.0  # after a failure: hundreds of held requests must not each wait for the deadline
_RECENT_S: Final = 5.0


class SignerSocket:
    """Implements keyfiles.Device. May be used by several threads; one question at a time."""

    def __init__(self, path: Path, timeout_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._timeout_s, self._clock = path, timeout_s, clock
        self._lock = threading.Lock()
        self._sock: socket.socket | None = None
        self._failed_at = float("-inf")
        self.failures = 0

    @property
    def failing(self) -> bool:
        """Whether it failed just now, and has not answered since."""
        return self._clock() - self._failed_at < _RECENT_S

    def signer(self, key_id: str, public: PublicKey | None) -> _Held:
        if public is None:
            try:
                public = PublicKey(raw=self._ask("public", "x", {"key_id": key_id}))
            except KeyDocumentError as error:
                raise self._failure(str(error)) from error
        return _Held(self, key_id, public)

    def sign(self, key_id: str, message: bytes, public: PublicKey) -> bytes:
        signature = self._ask("sign", "signature", {"key_id": key_id, "message": b64url(message).decode()})
        if not public.verifies(message, signature):
            raise self._failure("it gave a signature that is not this key's")
        self._failed_at = float("-inf")
        return signature

    def _ask(self, what: str, member: str, question: Mapping[str, str]) -> bytes:
        if self._clock() - self._failed_at < _PAUSE_S:
            raise BackendError(Reason.STORE_UNAVAILABLE, "the signer failed a moment ago")
        until = self._clock() + self._timeout_s
        if not self._lock.acquire(timeout=self._timeout_s):
            raise BackendError(Reason.STORE_UNAVAILABLE, "the signer is busy")
        try:
            answer = json.loads(self._exchange(json.dumps({"ask": what, **question}).encode() + b"\n", until))
            if "error" in answer:
                raise ValueError(f"it says: {answer['error']}")
            return unb64url(answer[member].encode("ascii"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise self._failure(f"{type(error).__name__}: {error}") from error
        finally:
            self._lock.release()

    def _exchange(self, line: bytes, until: float) -> bytes:
        """One line there and one back. Raises OSError."""
        if self._sock is None:
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._sock.settimeout(self._left(until))
            self._sock.connect(str(self._path))
        self._sock.settimeout(self._left(until))
        self._sock.sendall(line)
        found = b""
        while not found.endswith(b"\n"):
            self._sock.settimeout(self._left(until))
            data = self._sock.recv(_MAX_BYTES)
            found += data
            if not data or len(found) > _MAX_BYTES:
                raise ConnectionError("it closed the connection, or its answer has no end")
        return found

    def _left(self, until: float) -> float:
        left = until - self._clock()
        if left <= 0:
            raise TimeoutError("it did not answer in time")
        return left

    def _failure(self, detail: str) -> BackendError:
        self.failures += 1
        self._failed_at = self._clock()
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        return BackendError(Reason.STORE_UNAVAILABLE, f"the signer at {self._path}: {detail}")


class _Held:
    """A Signer: one key of the other process, known by its public half."""

    __slots__ = ("_device", "_key_id", "public")

    def __init__(self, device: SignerSocket, key_id: str, public: PublicKey) -> None:
        self._device, self._key_id, self.public = device, key_id, public

    @property
    def kid(self) -> str:
        return self.public.kid

    def sign(self, message: bytes) -> bytes:
        return self._device.sign(self._key_id, message, self.public)
