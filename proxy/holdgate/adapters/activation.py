"""Which signed bundle decides here: the newest that the trust roots signed, and never an older one again.

    folder of bundles --read once--> verified, loaded, tested --kept, then recorded in the log--> active

The high-water mark is the newest `policy_activated` receipt of this node's own log: it is written in the same
transaction as everything else, a log that was rolled back does not open, and no file beside it can be deleted
in order to forget. What was active is kept whole in the state directory, so the folder may be emptied.

The folder is looked at every second; what changed is tried when it stayed the same for two looks. Names that
begin with a dot are ignored: copy there, then rename. The highest revision is tried first, and nothing below
the active one is looked at. Each refusal leaves one receipt, one count and one line in the log.

Invariants (tests/test_activation.py has the table of attacks):
  AC1  Whatever is refused, what was active decides on; at start too, where that is in the state directory.
  AC2  A bundle is active only after it is kept and its receipt is durable; then at once, as a whole.
  AC3  The mark never descends within an epoch of the trust roots, whatever is deleted beside the ledger.
  AC4  New trust roots take the active bundle with them only if their keys signed it: else nothing is active.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from ..bundle import NO_BUNDLE, Bundle
from ..config_bundle import Signed
from ..errors import BackendError, ConfigError
from ..ledger import AdminNote, Noted
from ..manifest import MANIFEST, MAX_MANIFEST_BYTES, SIGNATURES, BundleRejected, Manifest, Refusal
from ..signed_bundle import Mark, RawBundle, check_signed
from ..trust_roots import Roots, current_roots, parse_chain
from .admin.shapes import decode_jws
from .batch import ACTIVATED
from .bundle_folder import read_folder
from .bundle_load import load_signed
from .bundle_store import keep_signed, kept_signed
from .reader import Reader

__all__ = ["Activator", "read_mark", "read_roots"]

log = logging.getLogger("holdgate.bundle")

REJECTED: Final = "policy_rejected"
ADOPTED: Final = "trust_adopted"
NOTHING: Final = "none"  # a fence that no bundle passes
_MAX_TRUST_BYTES: Final = 1 << 20
_FIRST: Final = 2**63  # a folder whose claim cannot be read is tried, and refused, first
_WARN_AT: Final = 0.8  # of a bundle's life


class _Ledger(Protocol):
    async def note(self, note: AdminNote) -> Noted: ...
    def fence(self, digest: str) -> None: ...


class _Meter(Protocol):
    def bundle_rejected(self, reason: Refusal) -> None: ...
    def bundle_active(self, revision: int, ends_s: float) -> None: ...


def read_mark(reader: Reader) -> Mark | None:
    """The node's high-water mark; None: no signed bundle was ever active."""
    stored = reader.newest_admin(ACTIVATED)
    if stored is None:
        return None
    details = decode_jws(stored.jws)["details"]
    return Mark(epoch=details["epoch"], revision=details["revision"], digest=details["digest"])


def read_roots(path: Path, known: tuple[int, str] | None) -> Roots:
    """The roots that a trust file leads to. Raises BundleRejected."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_TRUST_BYTES + 1)
    except OSError as error:
        raise BundleRejected(Refusal.TRUST_UNREADABLE, f"{path}: {error.strerror}") from error
    if len(data) > _MAX_TRUST_BYTES:
        raise BundleRejected(Refusal.TRUST_MALFORMED, f"larger than {_MAX_TRUST_BYTES} bytes")
    return current_roots(parse_chain(data), known)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A folder, and what its manifest claims: only the order in which folders are tried depends on that."""

    path: Path
    print: tuple[Any, ...]  # changes when manifest or signatures do
    epoch: int
    revision: int
    begins_s: int


class Activator:
    """`activate` is called with every bundle that becomes active. Use it in one event loop."""

    def __init__(
        self,
        mode: Signed,
        state_dir: Path,
        *,
        read: Callable[[], Reader],
        ledger: _Ledger,
        meter: _Meter,
        clock_us: Callable[[], int],
        fits: Callable[[Bundle], None],
        activate: Callable[[Bundle], None] = lambda _: None,
    ) -> None:
        self.bundle: Bundle = NO_BUNDLE
        self.activate = activate
        self._mode, self._dir, self._read = mode, state_dir, read
        self._ledger, self._meter, self._clock_us, self._fits = ledger, meter, clock_us, fits
        self._lock = asyncio.Lock()
        self._raw: RawBundle | None = None
        self._manifest: Manifest | None = None
        self._mark: Mark | None = None
        self._known: tuple[int, str] | None = None  # version and digest of the roots
        self._roots: Roots | None = None
        self._told: set[tuple[str, tuple[Any, ...], Refusal]] = set()
        self._judged: set[tuple[str, tuple[Any, ...]]] = set()
        self._acted: tuple[Any, ...] | None = None
        self._pending: tuple[Any, ...] | None = None
        self._due_s = _FIRST
        self._warned = ""

    # -- when ---------------------------------------------------------------------------------------

    async def start(self) -> Bundle:
        """What was active before, and whatever is newer. Raises ConfigError without trust roots."""
        with self._read() as reader:
            self._mark = read_mark(reader)
            trust = reader.newest_admin(ADOPTED)
        if trust is not None:
            details = decode_jws(trust.jws)["details"]
            self._known = details["version"], details["digest"]
        await self._adopt_roots()
        if self._roots is None:
            raise ConfigError("no trust roots, so no bundle can be believed", file=str(self._mode.trust))
        if self._mark is not None:
            await self._restore(self._mark)
        await self.refresh()
        return self.bundle

    async def look(self) -> None:
        """Called every second: act on what changed and then stayed the same."""
        self._warn()
        seen = await asyncio.to_thread(self._seen)
        if seen == self._acted and self._now_s() < self._due_s:
            return
        if seen not in (self._pending, self._acted):
            self._pending = seen
            return
        await self.refresh()

    async def refresh(self, *, again: bool = False) -> tuple[BundleRejected, ...]:
        """Take the trust file and the newest bundle. `again`: what was refused before, too. What was
        refused."""
        async with self._lock:
            if again:
                self._judged.clear()
                self._told.clear()
            self._acted = await asyncio.to_thread(self._seen)
            refused = await self._adopt_roots()
            return (*refused, *await self._take_newest())

    # -- trust roots --------------------------------------------------------------------------------

    async def _adopt_roots(self) -> tuple[BundleRejected, ...]:
        try:
            roots = await asyncio.to_thread(read_roots, self._mode.trust, self._known)
        except BundleRejected as error:
            await self._reject(error, self._mode.trust.name, _print_of(self._mode.trust), "")
            return (error,)
        if (roots.version, roots.digest) != self._known:
            details = {"version": roots.version, "epoch": roots.epoch, "digest": roots.digest}
            await self._ledger.note(AdminNote(action=ADOPTED, by="node", details=details))
            self._known = roots.version, roots.digest
            self._judged.clear()
            log.info("trust roots version %d, epoch %d", roots.version, roots.epoch)
        changed = self._roots is not None and self._roots.digest != roots.digest
        self._roots = roots
        if changed and self._raw is not None:
            await self._recheck(self._raw)
        return ()

    async def _recheck(self, raw: RawBundle) -> None:
        """The roots changed under the active bundle."""
        try:
            self._check(raw)
        except BundleRejected as error:
            self._ledger.fence(NOTHING)
            self._use(NO_BUNDLE, None, None)
            await self._reject(error, raw.name, (), raw.digest)

    # -- bundles ------------------------------------------------------------------------------------

    async def _restore(self, mark: Mark) -> None:
        """What was active when the process ended; verified again, because roots and files may be others
        now."""
        try:
            raw = await asyncio.to_thread(kept_signed, self._dir, mark.digest)
            bundle, manifest = await asyncio.to_thread(self._verified, raw)
        except ConfigError as error:
            await self._reject(BundleRejected(Refusal.UNREADABLE, error.shown), "state_dir", (), mark.digest)
        except BundleRejected as error:
            await self._reject(error, "state_dir", (), mark.digest)
        else:
            self._ledger.fence(bundle.digest)
            self._use(bundle, raw, manifest)

    async def _take_newest(self) -> tuple[BundleRejected, ...]:
        refused = []
        self._due_s = _FIRST
        for candidate in await asyncio.to_thread(self._candidates):
            name = candidate.path.name
            if (name, candidate.print) in self._judged:
                continue
            if (name, candidate.print, Refusal.NOT_YET_VALID) in self._told:
                if candidate.begins_s > self._now_s():
                    self._due_s = min(self._due_s, candidate.begins_s)
                    continue
            digest = ""
            try:
                raw = await asyncio.to_thread(read_folder, candidate.path)
                digest = raw.digest
                if digest == self.bundle.digest:
                    break
                bundle, manifest = await asyncio.to_thread(self._verified, raw)
            except BundleRejected as error:
                refused.append(error)
                if error.reason is Refusal.NOT_YET_VALID:
                    self._due_s = min(self._due_s, candidate.begins_s)
                else:
                    self._judged.add((name, candidate.print))
                await self._reject(error, name, candidate.print, digest)
            else:
                await self._take(raw, bundle, manifest)
                break
        return tuple(refused)

    def _check(self, raw: RawBundle) -> Manifest:
        if self._roots is None:
            raise BundleRejected(Refusal.TRUST_UNREADABLE, "no trust roots")
        return check_signed(raw, self._roots, now_s=self._now_s(), mark=self._mark)

    def _verified(self, raw: RawBundle) -> tuple[Bundle, Manifest]:
        manifest = self._check(raw)
        tested = self._mark is not None and raw.digest == self._mark.digest
        # What was active before an upgrade decides after it: AC1. Its digest is that of our own log.
        bundle = load_signed(raw, manifest, tested=tested, kept=tested)
        try:
            self._fits(bundle)
        except ConfigError as error:
            raise BundleRejected(Refusal.DOES_NOT_FIT, error.shown) from error
        return bundle, manifest

    async def _take(self, raw: RawBundle, bundle: Bundle, manifest: Manifest) -> None:
        """Keep, record, swap. Raises ConfigError or BackendError, and then nothing has changed."""
        await asyncio.to_thread(keep_signed, self._dir, raw)
        mark = Mark(epoch=manifest.epoch, revision=manifest.revision, digest=raw.digest)
        if mark == self._mark:
            self._ledger.fence(raw.digest)
        else:
            details = {
                "digest": raw.digest,
                "name": manifest.name,
                "epoch": manifest.epoch,
                "revision": manifest.revision,
                "trust": self._roots.version if self._roots else 0,
            }
            if self._mark is not None:
                details["previous"] = self._mark.digest
            await self._ledger.note(AdminNote(action=ACTIVATED, by="node", details=details))
        # No await from here on: requests that were decided in between are begun again under this one.
        self._mark = mark
        self._use(bundle, raw, manifest)
        log.info("bundle %s, revision %d, is active", bundle.digest, bundle.revision)

    def _use(self, bundle: Bundle, raw: RawBundle | None, manifest: Manifest | None) -> None:
        self.bundle, self._raw, self._manifest = bundle, raw, manifest
        self._meter.bundle_active(bundle.revision, bundle.ends_us / 1_000_000)
        self.activate(bundle)

    async def _reject(self, error: BundleRejected, source: str, seen: tuple[Any, ...], digest: str) -> None:
        if (source, seen, error.reason) in self._told:
            return
        self._told.add((source, seen, error.reason))
        self._meter.bundle_rejected(error.reason)
        stays = f"{self.bundle.digest} stays active" if self.bundle.digest else "no bundle is active"
        log.error("bundle refused: %s: %s; %s", source, error, stays)
        details: dict[str, Any] = {"reason": error.reason.value, "source": _printable(source)}
        if digest:
            details["digest"] = digest
        try:
            await self._ledger.note(AdminNote(action=REJECTED, by="node", details=details))
        except BackendError as failed:
            log.error("the refusal of a bundle could not be recorded: %s", failed)

    def _warn(self) -> None:
        manifest = self._manifest
        if manifest is None or self._warned == self.bundle.digest:
            return
        left = manifest.not_after_s - self._now_s()
        if left < (1 - _WARN_AT) * (manifest.not_after_s - manifest.not_before_s):
            self._warned = self.bundle.digest
            log.warning("the active bundle ends in %d hours, and everything is refused then", left // 3600)

    def _now_s(self) -> int:
        return self._clock_us() // 1_000_000

    # -- the folder ---------------------------------------------------------------------------------

    def _candidates(self) -> list[_Candidate]:
        """The folders, the highest claim first."""
        found = []
        try:
            entries = list(os.scandir(self._mode.folder))
        except OSError:
            return []
        for entry in entries:
            if not entry.name.startswith(".") and not entry.is_file(follow_symlinks=False):
                path = Path(entry.path)
                claim = _claim(path)
                found.append(
                    _Candidate(
                        path,
                        (_print_of(path), _print_of(path / MANIFEST), _print_of(path / SIGNATURES)),
                        epoch=claim.get("epoch", _FIRST),
                        revision=claim.get("revision", _FIRST),
                        begins_s=claim.get("not_before_s", 0),
                    )
                )
        return sorted(found, key=lambda each: (-each.epoch, -each.revision, each.path.name))

    def _seen(self) -> tuple[Any, ...]:
        prints = [(each.path.name, each.print) for each in self._candidates()]
        return _print_of(self._mode.trust), tuple(sorted(prints))


def _claim(folder: Path) -> Mapping[str, int]:
    try:
        # Not a link, not a pipe: what stands there was not verified yet.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with os.fdopen(os.open(folder / MANIFEST, flags), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return {}
            value = json.loads(file.read(MAX_MANIFEST_BYTES + 1))
        names = ("epoch", "revision", "not_before_s")
        return {name: value[name] for name in names if type(value[name]) is int}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def _print_of(path: Path) -> tuple[Any, ...]:
    try:
        info = path.stat(follow_symlinks=False)
    except OSError:
        return ()
    return info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns


def _printable(text: str) -> str:
    return "".join(c if " " <= c <= "~" else "?" for c in text)[:200] or "?"
