"""A process that holds keys and signs: the other end of signer_socket.py, small enough to read at once.

Its keys are PEM files in one folder (`openssl genpkey -algorithm ed25519 -out FOLDER/ID.pem`), private. Run
it as a user of its own: who asks must be root, that user, or one that it was told to serve.

Invariants (tests/test_signer_socket.py):
  SG1  Nobody is answered but the users that are served, whatever the mode of the socket.
  SG2  A key file that others may read, or a name that is no plain name, signs nothing.
  SG3  Only a socket that nobody serves is replaced: no other file (a key, by a slip), and no running signer.
"""

from __future__ import annotations

import json
import os
import re
import socket
import socketserver
import stat
import struct
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from ..errors import ConfigError, HoldgateError
from ..keys import b64url, unb64url
from .private_file import read_private

__all__ = ["SignerServer"]

_MAX_BYTES: Final = 65_536
_WRONG: Final = (HoldgateError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
_KEY_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z").match


class SignerServer(socketserver.ThreadingUnixStreamServer):
    """serve_forever() answers; a socket that nobody listens on any more is replaced."""

    daemon_threads = True

    def __init__(self, path: Path, folder: Path, users: frozenset[int]) -> None:
        self.folder, self.users = folder, users | {0, os.geteuid()}
        if not folder.is_dir():
            raise ConfigError("no such folder", file=str(folder))
        try:
            _take_away(path)
            super().__init__(str(path), _Answers)
        except OSError as error:
            raise ConfigError(f"cannot listen: {error.strerror or error}", file=str(path)) from error
        path.chmod(0o666 if users else 0o600)  # the peer's user is what is checked

    def key(self, key_id: str) -> Ed25519PrivateKey:
        """Read each time: a key that is taken away signs nothing more. Raises HoldgateError, OSError."""
        if not _KEY_ID(key_id):
            raise ConfigError("not the name of a key")
        key = load_pem_private_key(read_private(self.folder / f"{key_id}.pem", "this key"), None)
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError("not an Ed25519 key")
        return key


def _take_away(path: Path) -> None:
    """SG3. Raises ConfigError, OSError."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigError("cannot listen: something else has this name", file=str(path))
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        path.unlink()
        return
    raise ConfigError("cannot listen: another signer serves it", file=str(path))


class _Answers(socketserver.StreamRequestHandler):
    server: SignerServer

    def handle(self) -> None:
        credentials = self.request.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        if struct.unpack("3i", credentials)[1] not in self.server.users:
            return
        while line := self.rfile.readline(_MAX_BYTES):
            try:
                answer = self._answer(json.loads(line))
            except _WRONG as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            try:
                self.wfile.write(json.dumps(answer).encode() + b"\n")
            except OSError:  # nobody waits for it any more
                return

    def _answer(self, asked: dict[str, str]) -> dict[str, str]:
        key = self.server.key(asked["key_id"])
        if asked["ask"] == "public":
            raw = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
            return {"x": b64url(raw).decode()}
        if asked["ask"] == "sign":
            return {"signature": b64url(key.sign(unb64url(asked["message"].encode("ascii")))).decode()}
        return {"error": "not a question"}
