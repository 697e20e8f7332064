"""The door of the running process for commands on its own host: a Unix socket in the state directory.

Only the process that owns the ledger may write it, so `holdgate doctor --prove` hands its result over here.
The socket is in a directory of mode 0700 beside the keys: whoever can open it could sign receipts anyway, and
an agent, which can read none of it, can neither write a coverage nor keep one from being written.

    one JSON line -> one JSON line back
    {"ask": "status"} | {"ask": "reload"} | {"ask": "note", "action": ..., "details": {...}}
    {"ask": "reconcile", "of": receipt id, "found": "executed|failed|not_sent", "note": ...,
     "node_stopped": true where it is known}
    {"ask": "forget", "ids": [...], "agent": ..., "surface": ..., "before_us": ...}
    {"ask": "rotate", "purpose": ..., "key_id": ...} | {"ask": "revoke", "kid": ..., "from_index": ...}

Invariants (tests/test_control.py has one test named after each):
  CT1  Nobody but root and the user of the process is answered, whatever the file modes say.
  CT2  Whatever cannot be read, is too large or too slow ends with an error and writes nothing.
  CT3  The answer to a note comes after its receipt is durable; that to a change of keys after the change.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Protocol

from ..erasure import RETENTION, SHRED, Erasure
from ..errors import BackendError, ConfigError, HoldgateError, Reason
from ..keyhistory import Purpose
from ..ledger import AdminNote, Finding, Noted, OutcomeStatus
from .forgetting import Forgotten
from .keyring import KeyChange, Revocation, Rotation

__all__ = ["ControlServer", "Refused", "ask"]

log = logging.getLogger("holdgate.control")

_PLACE: Final = Path("run") / "control.sock"
_MAX_BYTES: Final = 65_536
_DEADLINE_S: Final = 10.0
_LONG_S: Final = 600.0  # a large erasure
_RELOAD_S: Final = 120.0  # a bundle is compiled, and its tests are run
_WAITS: Final = {"reload": _RELOAD_S, "forget": _LONG_S}


class _Ledger(Protocol):
    async def note(self, note: AdminNote) -> Noted: ...
    async def reconcile(self, finding: Finding) -> Noted: ...
    async def change_key(self, change: KeyChange) -> Noted: ...


class Refused(BackendError):
    """The running process said no, and why: nothing need be wrong with its store."""

    def __str__(self) -> str:
        return self.detail


class ControlServer:
    """`noted` is called with every note that became a receipt, `reconciled` at every finding that did."""

    def __init__(
        self,
        state_dir: Path,
        *,
        ledger: _Ledger,
        status: Callable[[], Mapping[str, Any]],
        noted: Callable[[AdminNote, Noted], None],
        reconciled: Callable[[], None],
        forget: Callable[[Erasure], Awaitable[Forgotten]],
        reload: Callable[[], Awaitable[Mapping[str, Any]]] | None = None,
        check: Callable[[Finding], None] | None = None,
    ) -> None:
        """`check` raises ReconcileError for a finding that cannot be true yet."""
        self._reload, self._check = reload, check
        self._dir, self._ledger, self._status, self._noted = state_dir, ledger, status, noted
        self._forget, self._reconciled = forget, reconciled
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen. The ledger's lock is held, so a socket that is there is nobody's. Raises ConfigError."""
        path = self._dir / _PLACE
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            path.unlink(missing_ok=True)
            with _short(path) as name:
                sock.bind(name)
            path.chmod(0o600)
            self._server = await asyncio.start_unix_server(self._serve, sock=sock, limit=_MAX_BYTES)
        except OSError as error:
            sock.close()
            raise ConfigError(f"cannot make the control socket: {error}", file=str(path)) from error

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            (self._dir / _PLACE).unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_DEADLINE_S) as deadline:
                answer = await self._answer(reader, writer.get_extra_info("socket"), deadline)
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        except (OSError, TimeoutError) as error:
            log.warning("control: %r", error)
        finally:
            writer.close()

    async def _answer(
        self, reader: asyncio.StreamReader, sock: Any, deadline: asyncio.Timeout
    ) -> Mapping[str, Any]:
        try:
            line = await reader.readline()  # read first: closing on unread bytes would reset the answer
            _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if not _may_ask(uid):
                log.warning("control: refused uid %d", uid)
                return {"error": "not yours"}
            asked = json.loads(line)
            match asked["ask"]:
                case "status":
                    return {"pid": os.getpid(), **self._status()}
                case "forget":
                    # What was ordered is carried out whether or not anybody still waits for the answer.
                    deadline.reschedule(asyncio.get_running_loop().time() + _LONG_S)
                    return asdict(await self._forget(_erasure(asked)))
                case "reload" if self._reload is not None:
                    deadline.reschedule(asyncio.get_running_loop().time() + _RELOAD_S)
                    return await self._reload()
                case "note" if asked["action"] not in (SHRED, RETENTION):
                    note = AdminNote(action=asked["action"], by="local", details=asked["details"])
                    noted = await self._ledger.note(note)
                    self._noted(note, noted)
                    return {"id": noted.receipt_id, "index": noted.index}
                case "reconcile":
                    noted = await self._reconcile(_finding(asked))
                    return {"id": noted.receipt_id, "index": noted.index}
                case "rotate" | "revoke":
                    noted = await self._ledger.change_key(_change(asked))
                    log.warning("keys: %s, leaf %d", asked["ask"], noted.index)
                    return {"id": noted.receipt_id, "index": noted.index}
        except HoldgateError as error:
            return {"error": str(error)}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            return {"error": f"not a question: {type(error).__name__}"}
        return {"error": "not a question"}

    async def _reconcile(self, finding: Finding) -> Noted:
        if self._check is not None:
            self._check(finding)
        noted = await self._ledger.reconcile(finding)
        self._reconciled()
        return noted


def _erasure(asked: Mapping[str, Any]) -> Erasure:
    """Raises ErasureError, TypeError, ValueError."""
    texts = {name: asked.get(name, "") for name in ("agent", "surface")}
    ids, before_us = asked.get("ids", []), asked.get("before_us", 0)
    if type(ids) is not list or type(before_us) is not int:
        raise TypeError("not an order")
    if not all(isinstance(item, str) for item in (*texts.values(), *ids)):
        raise TypeError("not an order")
    return Erasure(action=SHRED, ids=frozenset(ids), before_us=before_us, **texts)


def _finding(asked: Mapping[str, Any]) -> Finding:
    return Finding(
        of=asked["of"],
        found=OutcomeStatus(asked["found"]),
        by="local",
        note=asked["note"],
        node_stopped=asked.get("node_stopped", False) is True,
    )


def _change(asked: Mapping[str, Any]) -> KeyChange:
    """Raises ValueError, KeyError."""
    if asked["ask"] == "rotate":
        return Rotation(purpose=Purpose(asked["purpose"]), key_id=_text(asked["key_id"]), by="local")
    from_index = asked["from_index"]
    if from_index is not None and (type(from_index) is not int or from_index < 0):
        raise ValueError("from_index is an index")
    return Revocation(kid=_text(asked["kid"]), from_index=from_index, by="local")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a text is needed")
    return value


def _may_ask(uid: int) -> bool:
    return uid in (0, os.geteuid())


def ask(state_dir: Path, question: Mapping[str, Any]) -> dict[str, Any] | None:
    """Ask the running process; None when none runs. Raises BackendError when it refuses, OSError."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(_WAITS.get(question.get("ask", ""), _DEADLINE_S) * 2)
            with _short(state_dir / _PLACE) as name:
                sock.connect(name)
            sock.sendall(json.dumps(question).encode() + b"\n")
            with sock.makefile("rb") as file:
                answer: dict[str, Any] = json.loads(file.readline(_MAX_BYTES) or b'{"error": "no answer"}')
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    if "error" in answer:
        raise Refused(Reason.STORE_UNAVAILABLE, f"the running process refused: {answer['error']}")
    return answer


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    # The name of a Unix socket has at most 107 bytes, and a state directory may lie deeper.
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
