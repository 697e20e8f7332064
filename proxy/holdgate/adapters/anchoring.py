"""Others see the log: checkpoints go to C2SP witnesses and to a time-stamp authority, in a thread of its own.

    checkpoint on disk -> add-checkpoint (c2sp.org/tlog-witness) -> cosignature, verified
                                                               -> log/checkpoint.cosigned
    checkpoint on disk -> RFC 3161 query -> stamp, verified    -> log/timestamps/<size>.{checkpoint,tsr}

It reads what the sequencer published and writes beside it: no decision waits for it or hears of it. It dials
nothing but the URLs of the configuration, takes no proxy from the environment, follows no redirect, and reads
64 KiB at most, each within a deadline.

Invariants (tests/test_anchoring.py has one test named after each):
  AN1  A cosignature is kept only if it verifies, over exactly the checkpoint that it stands below.
  AN2  A witness that is late, wrong or gone costs a failure that is counted, and nothing else.
  AN3  A witness that is ahead is caught up with (409); one that knows another history is named, and counted.
  AN4  A time stamp is kept only if it verifies, and never replaced.
"""

from __future__ import annotations

import http.client
import logging
import re
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from ..config_log import Anchoring, TimeStamping, Witness
from ..errors import HoldgateError
from ..note import Checkpoint, cosigners, verify_log
from ..tiles import consistency_from_tiles
from ..tlog import TlogError
from ..tlogproof import format_consistency
from .durable import replace_file
from .keyfiles import load_log_keys
from .sequencer import CHECKPOINT, LOG
from .tilestore import TileStore
from .timestamps import query, stamped_at

__all__ = ["COSIGNED", "STAMPING", "STAMPS", "Anchors"]

log = logging.getLogger("holdgate.anchors")

COSIGNED: Final = LOG / "checkpoint.cosigned"
STAMPS: Final = LOG / "timestamps"
STAMPING: Final = "timestamp"  # its name among the witnesses' names in the metric
_DEADLINE_S: Final = 10.0
_MAX_BYTES: Final = 65_536
_SIZE: Final = re.compile(rb"(0|[1-9][0-9]{0,18})\n?\Z").match


class _Refused(HoldgateError):
    """An answer that gave nothing."""


class Anchors:
    """start() and stop(); `failed` is told the name of whoever gave nothing. round() is one turn."""

    def __init__(
        self, state_dir: Path, origin: str, anchoring: Anchoring, *, failed: Callable[[str], None]
    ) -> None:
        self._dir, self._origin, self._anchoring, self._failed = state_dir, origin, anchoring, failed
        self._seen: dict[str, int] = {}  # witness -> the size that it is known to have
        self._stamped = float("-inf")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log-anchors", daemon=True)

    def start(self) -> None:
        if self._anchoring.witnesses or self._anchoring.timestamp is not None:
            self._thread.start()

    def stop(self) -> None:
        """Does not wait: what is under way is of no consequence."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.round()
            self._stop.wait(self._anchoring.interval_s)

    def round(self) -> None:
        """Ask every witness once, and the authority when it is due."""
        try:
            note = (self._dir / CHECKPOINT).read_bytes()
            checkpoint = verify_log(note, self._origin, load_log_keys(self._dir))
        except FileNotFoundError:
            return
        except (HoldgateError, OSError) as error:
            log.error("anchors: the checkpoint cannot be used: %s", error)
            return
        self._witness(note, checkpoint)
        stamping = self._anchoring.timestamp
        if stamping is not None and time.monotonic() - self._stamped >= stamping.interval_s:
            self._attempt(STAMPING, partial(self._stamp, stamping, note, checkpoint))

    def _attempt(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001  (whatever a stranger answers: counted, never more)
            log.warning("anchors: %s: %s: %s", name, type(error).__name__, error)
            self._failed(name)

    # --- witnesses ---

    def _witness(self, note: bytes, checkpoint: Checkpoint) -> None:
        have = cosigners(self._kept(note), [each.verifier for each in self._anchoring.witnesses])
        for witness in self._anchoring.witnesses:
            if witness.verifier.name in have or not checkpoint.size:
                continue
            self._attempt(witness.verifier.name, partial(self._cosign, witness, note, checkpoint))

    def _cosign(self, witness: Witness, note: bytes, checkpoint: Checkpoint) -> None:
        line = self._ask(witness, note, checkpoint)
        replace_file(self._dir / COSIGNED, self._kept(note) + line)

    def _kept(self, note: bytes) -> bytes:
        """The cosigned note of this checkpoint as far as it is there, or the checkpoint."""
        try:
            kept = (self._dir / COSIGNED).read_bytes()
        except FileNotFoundError:
            return note
        return kept if kept.startswith(note) else note

    def _ask(self, witness: Witness, note: bytes, checkpoint: Checkpoint) -> bytes:
        """The cosignature line of one witness. Raises HoldgateError, OSError."""
        name = witness.verifier.name
        old = min(self._seen.get(name, 0), checkpoint.size)
        for _ in range(2):
            status, answer = self._submit(witness, old, note, checkpoint)
            if status == http.client.CONFLICT and (size := _SIZE(answer)):
                old = int(size[1])
                if old > checkpoint.size:
                    raise _Refused(f"it has seen {old} leaves, and this log has {checkpoint.size}: a FORK")
                continue
            if status == http.client.UNPROCESSABLE_ENTITY:
                raise _Refused("it says that this log does not go on from what it saw before: a FORK")
            if status != http.client.OK:
                raise _Refused(f"status {status}")
            return self._line(witness, note, answer, checkpoint.size)
        raise _Refused("it is elsewhere each time")

    def _submit(self, witness: Witness, old: int, note: bytes, checkpoint: Checkpoint) -> tuple[int, bytes]:
        path: tuple[bytes, ...] = ()
        if 0 < old < checkpoint.size:
            path = consistency_from_tiles(old, checkpoint.size, TileStore(self._dir / LOG).read)
        return post(witness.url + "/add-checkpoint", format_consistency(old, path, note), "text/plain")

    def _line(self, witness: Witness, note: bytes, answer: bytes, size: int) -> bytes:
        for line in answer.splitlines(keepends=True):
            try:
                if cosigners(note + line, [witness.verifier]):
                    self._seen[witness.verifier.name] = size
                    return line
            except TlogError:
                continue  # another key's line, or a wrong one
        raise _Refused("its cosignature does not verify")

    # --- time stamps ---

    def _stamp(self, stamping: TimeStamping, note: bytes, checkpoint: Checkpoint) -> None:
        folder = self._dir / STAMPS
        place = folder / f"{checkpoint.size:019d}.tsr"
        if place.exists():
            return
        status, answer = post(stamping.url, query(note), "application/timestamp-query")
        if status != http.client.OK:
            raise _Refused(f"status {status}")
        moment = stamped_at(answer, note, stamping.ca_file)
        folder.mkdir(mode=0o755, exist_ok=True)
        replace_file(place.with_suffix(".checkpoint"), note)
        replace_file(place, answer)
        self._stamped = time.monotonic()
        log.info("anchors: %d leaves were there at %s", checkpoint.size, moment)


def post(url: str, body: bytes, content_type: str, *, deadline_s: float = _DEADLINE_S) -> tuple[int, bytes]:
    """One request, one answer, nothing else: no redirect, no proxy. Raises OSError, HTTPException."""
    parts = urlsplit(url)
    until = time.monotonic() + deadline_s
    make = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = make(parts.hostname or "", parts.port, timeout=deadline_s)
    try:
        connection.request("POST", parts.path or "/", body, {"Content-Type": content_type})
        answer = connection.getresponse()
        found = b""
        while data := answer.read1(4096):
            found += data
            if len(found) > _MAX_BYTES or time.monotonic() > until:
                raise TimeoutError("its answer has no end")
        return answer.status, found
    finally:
        connection.close()
