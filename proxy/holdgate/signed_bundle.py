"""Is this, as it was read, a bundle that this node may decide with? The checks that need no file and no
clock.

Everything is in memory when it is looked at, and what was looked at is what is loaded: nothing is read twice.
The order is that of facts and cost: signatures come before anything inside is believed, and what only a
loaded bundle can show (does it compile, do its tests hold) comes after, in adapters/bundle_load.py.

Invariants (tests/test_signed_bundle.py has the table of attacks):
  SB1  check_signed() returns a Manifest only if enough different trusted keys signed exactly these bytes, and
       the files are exactly those that it names.
  SB2  A revision is taken once: a lower one, or the same one with other content, is refused. The bundle that
       the mark names is the exception: it was taken already.
  SB3  That a signature is needed comes from the caller, never from what is in the folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from .gate import ENGINE
from .manifest import (
    MANIFEST,
    SIGNATURES,
    TYPE,
    BundleRejected,
    FileEntry,
    Manifest,
    Refusal,
    count_signers,
    manifest_digest,
    parse_manifest,
    parse_signatures,
)
from .trust_roots import Roots

__all__ = ["Mark", "RawBundle", "check_files", "check_signed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RawBundle:
    """What was in a bundle's folder: every file, by its path in there."""

    name: str  # of the folder; for people
    manifest: bytes
    signatures: bytes | None  # None: there was no such file
    files: Mapping[str, bytes]  # but those two

    @property
    def digest(self) -> str:
        return manifest_digest(self.manifest)

    @staticmethod
    def of(name: str, found: Mapping[str, bytes]) -> RawBundle:
        """Raises BundleRejected."""
        if MANIFEST not in found:
            raise BundleRejected(Refusal.NO_MANIFEST, name)
        files = {path: data for path, data in found.items() if path not in (MANIFEST, SIGNATURES)}
        return RawBundle(
            name=name,
            manifest=found[MANIFEST],
            signatures=found.get(SIGNATURES),
            files=MappingProxyType(files),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """The highest revision that this node ever took: its high-water mark."""

    epoch: int
    revision: int
    digest: str


def check_signed(raw: RawBundle, roots: Roots, *, now_s: int, mark: Mark | None) -> Manifest:
    """Raises BundleRejected with the first reason, in the order of `Refusal`."""
    if raw.signatures is None:
        raise BundleRejected(Refusal.UNSIGNED, "there is no manifest.sig.json")
    signatures = parse_signatures(raw.signatures)
    signers = count_signers(TYPE, raw.manifest, signatures, roots.keys)
    if not signers:
        raise BundleRejected(Refusal.UNKNOWN_KEY, "no signature is by a key of the trust roots")
    if len(signers) < roots.threshold:
        raise BundleRejected(Refusal.BELOW_THRESHOLD, f"{len(signers)} of {roots.threshold} keys")
    manifest = parse_manifest(raw.manifest)
    check_files(raw, manifest)
    if mark is None or raw.digest != mark.digest:
        _check_window(manifest, now_s)
        _check_revision(manifest, roots, mark)
    if manifest.profile != ENGINE:
        detail = f"made for {manifest.profile}; this version decides with {ENGINE}"
        raise BundleRejected(Refusal.WRONG_PROFILE, detail)
    return manifest


def check_files(raw: RawBundle, manifest: Manifest) -> None:
    """The files are those of the manifest, byte for byte. Raises BundleRejected."""
    named = {entry.path: entry for entry in manifest.files}
    if extra := sorted(raw.files.keys() - named.keys()):
        raise BundleRejected(Refusal.EXTRA_FILE, extra[0])
    if missing := sorted(named.keys() - raw.files.keys()):
        raise BundleRejected(Refusal.MISSING_FILE, missing[0])
    for path, entry in named.items():
        if FileEntry.of(path, raw.files[path]) != entry:
            raise BundleRejected(Refusal.HASH_MISMATCH, path)


def _check_window(manifest: Manifest, now_s: int) -> None:
    if now_s < manifest.not_before_s:
        raise BundleRejected(Refusal.NOT_YET_VALID, f"valid from {manifest.not_before_s}, it is {now_s}")
    if now_s >= manifest.not_after_s:
        raise BundleRejected(Refusal.EXPIRED, f"valid until {manifest.not_after_s}, it is {now_s}")


def _check_revision(manifest: Manifest, roots: Roots, mark: Mark | None) -> None:
    if manifest.epoch != roots.epoch:
        raise BundleRejected(Refusal.WRONG_EPOCH, f"epoch {manifest.epoch}; the roots say {roots.epoch}")
    if mark is None or (manifest.epoch, manifest.revision) > (mark.epoch, mark.revision):
        return
    if (manifest.epoch, manifest.revision) == (mark.epoch, mark.revision):
        raise BundleRejected(Refusal.REVISION_REUSED, f"revision {mark.revision} was {mark.digest}")
    detail = f"revision {manifest.revision}; this node has taken {mark.revision}"
    raise BundleRejected(Refusal.REVISION_TOO_LOW, detail)
