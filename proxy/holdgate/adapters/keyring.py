"""The keys that sign now, the files behind them, and their change: one step at a time, each repeatable.

    <purpose>.next.key made -> leaf committed, signed by the old key -> (a log key: hand-over checkpoint)
    -> lists of public keys -> <purpose>.next.key renamed to <purpose>.key -> the new key signs

What the log says decides: the rename follows the leaf, so at every start the files are brought to what the
log says (settle()), whatever a crash left. A prepared key without a leaf never signed anything and is
deleted; a leaf whose key is not there refuses to start. The private half of a retired key goes with the
rename: nothing needs it, and whoever found it could sign. Its public half stays in the lists for ever.

Invariants (tests/test_keyring.py has one test named after each):
  KR1  Killed at any step of a change, the next start completes it or undoes it, and exactly one key signs.
  KR2  A key that the log does not name, or whose private half is lost, starts nothing.
  KR3  Nothing signed by a new key is given out before the list of public keys names it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from ..errors import BackendError, ConfigError, Reason
from ..keyhistory import REVOKE, ROTATE, KeyHistory, KeyHistoryError, Purpose
from ..keys import KeySet, PublicKey, Signer, SigningKey, b64url, key_set
from ..ledger import AdminNote
from ..receipt import ReceiptError, verify
from .durable import sync_folder
from .keyfiles import Device, encode_key, list_keys, listed_keys, load_signer
from .private_file import write_new

__all__ = ["ActiveSigner", "KeyChange", "KeyRing", "Revocation", "Rotation"]

_TRIAL: Final = b"holdgate: a key that can sign\n"


class ActiveSigner:
    """The key that signs now. The ledger's writer changes it, between two receipts."""

    __slots__ = ("now",)

    def __init__(self, key: Signer) -> None:
        self.now = key

    @property
    def public(self) -> PublicKey:
        return self.now.public

    @property
    def kid(self) -> str:
        return self.now.kid

    def sign(self, message: bytes) -> bytes:
        return self.now.sign(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """Wanted: another key. `key_id` names one that the signer process holds; "" makes one in a file."""

    purpose: Purpose
    key_id: str
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """Wanted: what `kid` signed counts no more from an index on; None: from where it was retired."""

    kid: str
    from_index: int | None
    by: str


type KeyChange = Rotation | Revocation


type _Event = tuple[int, str, Mapping[str, Any]]  # index, action, details


class HandsOver(Protocol):
    def hand_over(self, key: Signer, index: int) -> None:
        """Sign the tree that ends with leaf `index` with both keys, and from then on with `key`."""
        ...


class KeyRing:
    """Used by one thread at a time: whoever opens the ledger, then its writer."""

    def __init__(self, state_dir: Path, receipt: Signer, log: Signer, device: Device | None) -> None:
        self._folder, self._device = state_dir / "keys", device
        self.signers: Mapping[Purpose, ActiveSigner] = {
            Purpose.RECEIPT: ActiveSigner(receipt),
            Purpose.LOG: ActiveSigner(log),
        }
        self._history = KeyHistory.begin(receipt.public, log.public)
        self._change: tuple[AdminNote, Purpose, Signer | None] | None = None  # planned, not in the log yet

    @property
    def receipt(self) -> ActiveSigner:
        return self.signers[Purpose.RECEIPT]

    @property
    def log(self) -> ActiveSigner:
        return self.signers[Purpose.LOG]

    @property
    def failing(self) -> bool:
        return self._device is not None and self._device.failing

    # --- start ---

    def settle(self, events: Sequence[tuple[int, bytes]], sequencer: HandsOver) -> None:
        """Bring files and signers to what the log says; `events` are its receipts about keys (index, JWS).
        Raises ConfigError, OSError, TlogError."""
        rotated = self._read(events)
        for purpose, signer in self.signers.items():
            wanted, waiting = self._history.active(purpose), self._next(purpose)
            if signer.kid != wanted:
                coming = load_signer(waiting, purpose, self._device) if waiting.exists() else None
                if coming is None or coming.kid != wanted:
                    raise ConfigError(
                        f"the log says that {wanted} is the {purpose} key, and this is {signer.kid}: put the"
                        " right key file back. If it is lost, start a new node name with an empty state"
                        " directory",
                        file=str(self._folder / f"{purpose}.key"),
                    )
                self._complete(purpose, coming, rotated[purpose], sequencer)
            elif waiting.exists():
                waiting.unlink()  # the log never heard of it
                sync_folder(self._folder)
        if self._folder.is_dir():
            self._list()

    def _read(self, leaves: Sequence[tuple[int, bytes]]) -> Mapping[Purpose, int]:
        """Fold the log's receipts about keys; returns the index of each purpose's last rotation."""
        known = {purpose: self._listed(purpose) for purpose in Purpose}
        rotated: dict[Purpose, int] = {}
        try:
            events: list[_Event] = [
                (index, said["action"], said["details"])
                for index, jws in leaves
                for said in [verify(jws, known[Purpose.RECEIPT]).statement]
            ]
            history = KeyHistory.begin(*(self._first(purpose, known[purpose], events) for purpose in Purpose))
            for index, action, said in events:
                history = history.after(index, action, said)
                if action == ROTATE:
                    rotated[Purpose(said["purpose"])] = index
        except (ReceiptError, KeyHistoryError, KeyError) as error:
            raise ConfigError(f"the log's receipts about keys: {error}", file=str(self._folder)) from error
        self._history = history
        return rotated

    def _first(self, purpose: Purpose, known: KeySet, events: Iterable[_Event]) -> PublicKey:
        """The key that the log began with. Raises KeyError."""
        olds = (said["old"] for _, what, said in events if what == ROTATE and said["purpose"] == purpose)
        return known[next(olds, self.signers[purpose].kid)]

    # --- change: plan(), then the leaf, then finish(); or discard() ---

    def plan(self, change: KeyChange, index: int) -> AdminNote:
        """The receipt of a change, to be written at `index`. Raises ConfigError, BackendError."""
        try:
            note, purpose, coming = (
                self._plan_rotation(change) if isinstance(change, Rotation) else self._plan_revocation(change)
            )
            self._history.after(index, note.action, note.details)
        except KeyHistoryError as error:
            raise ConfigError(str(error)) from error
        except OSError as error:
            raise BackendError(Reason.STORE_UNAVAILABLE, f"the new key cannot be written: {error}") from error
        self._change = note, purpose, coming
        return note

    def _plan_rotation(self, change: Rotation) -> tuple[AdminNote, Purpose, Signer]:
        purpose, path = change.purpose, self._next(change.purpose)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        path.unlink(missing_ok=True)  # of a change that was refused
        coming: Signer
        if change.key_id:
            if self._device is None:
                raise ConfigError("no signer process is configured (`signer` in holdgate.yaml)")
            coming = self._device.signer(change.key_id, None)
            coming.sign(_TRIAL)  # what cannot sign is not named as the key
            write_new(path, encode_key(purpose, coming.public, key_id=change.key_id), 0o600)
        else:
            coming = SigningKey(seed=secrets.token_bytes(32))
            write_new(path, encode_key(purpose, coming.public, secret=coming.seed), 0o600)
        new, x = coming.kid, b64url(coming.public.raw).decode()
        details = {"purpose": purpose.value, "old": self.signers[purpose].kid, "new": new, "x": x}
        return AdminNote(action=ROTATE, by=change.by, details=details), purpose, coming

    def _plan_revocation(self, change: Revocation) -> tuple[AdminNote, Purpose, None]:
        purpose = next((each for each in Purpose if change.kid in self._history.keys(each)), None)
        if purpose is None:
            raise KeyHistoryError(f"this log never had a key {change.kid}")
        from_index = change.from_index
        if from_index is None:
            from_index = self._history.keys(purpose)[change.kid].end_index
        details = {"purpose": purpose.value, "kid": change.kid, "from_index": from_index}
        return AdminNote(action=REVOKE, by=change.by, details=details), purpose, None

    def discard(self) -> None:
        """The planned change has no leaf, and will have none. Idempotent. Raises OSError."""
        if self._change is not None:
            self._next(self._change[1]).unlink(missing_ok=True)
            self._change = None

    def finish(self, index: int, sequencer: HandsOver) -> None:
        """The leaf of the planned change is durable at `index`. Raises OSError, TlogError: then nothing may
        be recorded any more, and the next start finishes it."""
        if self._change is None:
            return
        note, purpose, coming = self._change
        self._history = self._history.after(index, note.action, note.details)
        if coming is None:
            self._list()
        else:
            self._complete(purpose, coming, index, sequencer)
        self._change = None

    def _complete(self, purpose: Purpose, coming: Signer, index: int, sequencer: HandsOver) -> None:
        self._list()
        if purpose is Purpose.LOG:
            sequencer.hand_over(coming, index)
        self._next(purpose).rename(self._folder / f"{purpose}.key")  # the old private half is gone
        sync_folder(self._folder)
        self.signers[purpose].now = coming

    # --- public halves ---

    def _next(self, purpose: Purpose) -> Path:
        return self._folder / f"{purpose}.next.key"

    def _listed(self, purpose: Purpose) -> KeySet:
        return key_set([*listed_keys(self._folder, purpose).values(), self.signers[purpose].public])

    def _list(self) -> None:
        for purpose in Purpose:
            # What was listed once stays, also what the log does not know.
            known = {**listed_keys(self._folder, purpose), **self._history.keys(purpose)}
            list_keys(self._folder, purpose, known.values())
