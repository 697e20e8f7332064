"""The sequencer: committed receipts become tiles, and then a signed checkpoint, in a thread of its own.

    head (what is durable) -> read the new leaves -> tiles, fsync -> checkpoint, fsync, rename -> prune

It follows the writer and never holds it up: it reads through a connection of its own and is told nothing
but that something was committed. Whatever goes wrong ends the ledger (`failed`): a log that can no longer
be signed is no log, and receipts promise to be in it. A crash between any two steps leaves tiles ahead of
the checkpoint; the next start makes the same ones again.

Invariants (tests/test_sequencer.py has one test named after each):
  SQ1  A checkpoint is published only after every tile of its tree is durable.
  SQ2  Nothing is signed that is not larger than the last signed tree and does not begin with it; the same
       tree again only to hand over to another key.
  SQ3  A checkpoint that is not the one written last is never overwritten.
  SQ4  Killed at any step, the next start gets to the same log.
  SQ5  A log key hands over with one checkpoint that both sign; the proof of it is kept in `log/changes/`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ..errors import BackendError, ConfigError
from ..keys import Signer
from ..note import Checkpoint, sign_checkpoint, vkey
from ..tiles import Edge, Tile, inclusion_from_tiles, new_tiles
from ..tlog import TlogError, Tree
from ..tlogproof import Proof, format_proof
from .durable import replace_file
from .store import Leaves, StoreLost
from .tilestore import TileMissing, TileStore

__all__ = ["CHANGES", "CHECKPOINT", "LOG", "VKEY", "Sequencer", "edge_of"]

LOG: Final = Path("log")
CHECKPOINT: Final = LOG / "checkpoint"
VKEY: Final = LOG / "key.vkey"
CHANGES: Final = LOG / "changes"
_INTERVAL_S: Final = 0.5  # between two checkpoints: half of what we promise
_PROMISED_S: Final = 60.0  # a receipt that is in no checkpoint after that is a fault (SPEC.md)
_STUCK_S: Final = 10.0  # after this long a publication does not end any more, as far as anybody can tell
_CHUNK: Final = 64  # leaves at once: under a millisecond of the interpreter, and no long read of SQLite's
_PAUSE_S: Final = 0.001  # between two chunks, while others have work: the event loop comes first
_BUFFERED: Final = 64  # full tiles in memory before they are written


def edge_of(state_dir: Path, checkpoint: Checkpoint) -> Edge | None:
    """The right edge of the tiles under `checkpoint`; None when they are not there. Raises ConfigError."""
    store = TileStore(state_dir / LOG)
    try:
        edge = Edge.restore(checkpoint.size, store.read)
    except TileMissing:
        return None
    except (TlogError, OSError) as error:
        raise ConfigError(f"the log's tiles are damaged: {error}", file=str(state_dir / LOG)) from error
    if edge.tree.root() != checkpoint.root:
        raise ConfigError(
            "the log's tiles differ from what its checkpoint signed. Move log/tile away to have it made"
            " again from the ledger, and find out who changed it",
            file=str(state_dir / LOG),
        )
    return edge


class Sequencer:
    """Make one with the edge of the published tiles, call publish() once, then start().

    `edge` is the tree that the last checkpoint signed, or empty when its tiles are lost: they are made again.
    `signed` is the size of that checkpoint's tree, 0 when there is none. `head` is asked for the tree over
    everything that is durable; it begins with the signed one (log_tail.py has compared them). `leaves` opens
    a connection to what is committed.
    """

    def __init__(
        self,
        *,
        state_dir: Path,
        origin: str,
        key: Signer,
        edge: Edge,
        signed: int,
        head: Callable[[], Tree],
        leaves: Callable[[], Leaves],
        failed: Callable[[str], None],
    ) -> None:
        self._state_dir, self._origin, self._key = state_dir, origin, key
        self._edge, self._head, self._leaves, self._failed = edge, head, leaves, failed
        self._tiles = TileStore(state_dir / LOG)
        self._filled: list[tuple[Tile, bytes]] = []  # not on disk yet; kept where reading breaks off
        self._note = _read(state_dir / CHECKPOINT)
        self._signed = signed
        self._lock = threading.Lock()  # one publication at a time
        self._late_since = 0.0  # monotonic: the first of the failures since the last publication
        self._busy_since = 0.0  # monotonic: when the publication under way began
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._abandon = False
        self._thread = threading.Thread(target=self._run, name="ledger-sequencer", daemon=True)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def stuck(self) -> bool:
        """A publication that does not end: a disk that hangs raises nothing."""
        since = self._busy_since
        return since != 0.0 and time.monotonic() - since > _STUCK_S

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Something was committed. Costs the caller nothing worth measuring."""
        self._wake.set()

    def stop(self, *, publish: bool) -> None:
        """End the thread; publish what is left first, unless what is on disk is in doubt. Idempotent."""
        self._abandon = self._abandon or not publish
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._wake.wait()
                self._wake.clear()
                if self._abandon:
                    return
                self._try()
                self._stop.wait(_INTERVAL_S)
            if not self._abandon:
                self.publish()
        except BaseException as error:  # noqa: BLE001  (whatever it is, the log can no longer be trusted to follow)
            self._failed(f"log: {type(error).__name__}: {error}")

    def _try(self) -> None:
        """publish(); a signer that does not answer is asked again, until what was promised is overdue."""
        self._busy_since = time.monotonic()
        try:
            self.publish()
            self._late_since = 0.0
        except StoreLost:
            self._wake.set()  # nothing is recorded meanwhile, and what was is read when it is back
        except BackendError:
            now = time.monotonic()
            self._late_since = self._late_since or now
            if now - self._late_since > _PROMISED_S:
                raise
            self._wake.set()
        self._busy_since = 0.0

    def publish(self) -> None:
        """Bring tiles and checkpoint up to what is committed. Raises TlogError, OSError, the store's own."""
        with self._lock:
            self._publish(None)

    def hand_over(self, key: Signer, index: int) -> None:
        """Publish the tree that ends with leaf `index`, signed by the log key and by `key`, which is the log
        key from then on. Nothing may be committed meanwhile. Repeatable. Raises as publish() does."""
        with self._lock:
            if self._head().size != index + 1:
                raise TlogError(f"the log went on after leaf {index}, which names another log key")
            self._publish(key)
            self._keep_change(index)
            replace_file(self._state_dir / VKEY, vkey(self._origin, key.public).encode() + b"\n")
            self._key = key

    def _keep_change(self, index: int) -> None:
        """Keep what leads from the old key to the new one: the leaf, and its proof under both."""
        with self._leaves() as leaves:
            leaf = leaves.read(index, index + 1)[0]
        path = inclusion_from_tiles(index, index + 1, self._tiles.read)
        proof = Proof(index=index, path=path, checkpoint=self._note or b"", extra=leaf)
        folder = self._state_dir / CHANGES
        folder.mkdir(mode=0o755, exist_ok=True)
        replace_file(folder / f"{index:019d}.tlog-proof", format_proof(proof))

    def _publish(self, coming: Signer | None) -> None:
        # Behind the edge where an earlier try broke off, behind what was signed where tiles were lost.
        head, start = self._head(), min(self._edge.size, self._signed)
        if head.size < self._signed:
            raise TlogError(f"{self._signed} receipts were signed, and the ledger has {head.size}")
        if head.size == self._edge.size == self._signed and self._note is not None and coming is None:
            return
        with self._leaves() as leaves:
            self._extend(leaves, head.size)
        if self._edge.tree != head:
            raise TlogError(f"the first {head.size} receipts on disk are not those that were committed")
        self._tiles.write(self._edge.partials())
        if head.size > self._signed or self._note is None or coming is not None:
            self._sign(head, coming)
        self._tiles.prune(new_tiles(start, head.size))

    def _extend(self, leaves: Leaves, size: int) -> None:
        while (at := self._edge.size) < size:
            found = leaves.read(at, min(size, at + _CHUNK))
            if not found:
                raise TlogError(f"receipt {at} is missing in the ledger")
            for jws in found:
                self._filled.extend(self._edge.append(jws))
            if len(self._filled) >= _BUFFERED:
                self._write_filled()
            if self.alive:
                time.sleep(_PAUSE_S)
        self._write_filled()

    def _write_filled(self) -> None:
        self._tiles.write(self._filled)
        self._filled = []

    def _sign(self, head: Tree, coming: Signer | None) -> None:
        path = self._state_dir / CHECKPOINT
        if _read(path) != self._note:
            raise TlogError("the checkpoint on disk is not the one written last")
        note = sign_checkpoint(self._origin, head, self._key, *([coming] if coming else []))
        replace_file(path, note)
        self._note, self._signed = note, head.size


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
