"""What a signed bundle says it is: a manifest of file hashes, and the signatures over its exact bytes.

    manifest.json      canonical JSON: name, epoch, revision, validity window, profile, files
    manifest.sig.json  signatures over PAE(type, manifest bytes), in the way of DSSE

Nothing here reads a file or a clock. A bundle's digest is the manifest's, which names every byte of every
file, tests included; so one digest in a receipt says under which maps, rules and tests it was decided.

Invariants (tests/test_manifest.py):
  MF1  A manifest has one spelling: parse_manifest() takes the bytes that encode() gives, and no others.
  MF2  A path in it is plain ASCII segments below surfaces/ or policies/, and no two differ in case only.
  MF3  A key counts once, however many signatures name it; a key id selects a key and proves nothing.
  MF4  A signature that names a trusted key and is wrong refuses the whole, whatever else is there.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from .errors import HoldgateError
from .jcs import JcsError, dumps, loads_strict
from .keys import KeySet, SigningKey, b64url, unb64url

__all__ = [
    "MANIFEST",
    "MAX_BYTES",
    "MAX_FILES",
    "MAX_MANIFEST_BYTES",
    "SIGNATURES",
    "TYPE",
    "BundleRejected",
    "FileEntry",
    "Manifest",
    "Refusal",
    "Signature",
    "check_path",
    "check_paths",
    "count_signers",
    "encode_signatures",
    "manifest_digest",
    "pae",
    "parse_manifest",
    "parse_signatures",
    "sign_manifest",
    "signature_rows",
]

MANIFEST: Final = "manifest.json"
SIGNATURES: Final = "manifest.sig.json"
MAX_FILES: Final = 4096
MAX_BYTES: Final = 16 << 20  # of all files together
MAX_MANIFEST_BYTES: Final = 1 << 20
_MAX_SIGNATURES: Final = 64
_MAX_PATH: Final = 200
_SAFE_INT: Final = 2**53 - 1

TYPE: Final = "application/vnd.holdgate.bundle+json"
_DOMAIN: Final = b"holdgate-manifest-v1\n"
_SEGMENT: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\Z", re.ASCII)
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z", re.ASCII)
_SHA256: Final = re.compile(r"[0-9a-f]{64}\Z", re.ASCII)
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}\Z", re.ASCII)
_PROFILE: Final = re.compile(r"[a-z][a-z0-9-]{0,31}/[1-9][0-9]{0,3}\Z", re.ASCII)
_ROOTS: Final = ("surfaces", "policies")


class Refusal(StrEnum):
    """Why a bundle, or a file of trust roots, was not taken; in the order in which it is looked at."""

    TOO_LARGE = "too_large"
    TOO_MANY_FILES = "too_many_files"
    UNREADABLE = "unreadable"
    LINK = "link"
    NOT_A_FILE = "not_a_file"
    UNSAFE_PATH = "unsafe_path"
    COLLIDING_NAME = "colliding_name"
    CHANGED_WHILE_READ = "changed_while_read"
    NO_MANIFEST = "no_manifest"
    UNSIGNED = "unsigned"
    MALFORMED_SIGNATURES = "malformed_signatures"
    UNKNOWN_KEY = "unknown_key"
    BAD_SIGNATURE = "bad_signature"
    BELOW_THRESHOLD = "below_threshold"
    MALFORMED_MANIFEST = "malformed_manifest"
    EXTRA_FILE = "extra_file"
    MISSING_FILE = "missing_file"
    HASH_MISMATCH = "hash_mismatch"
    NOT_YET_VALID = "not_yet_valid"
    EXPIRED = "expired"
    WRONG_EPOCH = "wrong_epoch"
    REVISION_TOO_LOW = "revision_too_low"
    REVISION_REUSED = "revision_reused"
    WRONG_PROFILE = "wrong_profile"
    DOES_NOT_LOAD = "does_not_load"
    TESTS_FAILED = "tests_failed"
    DOES_NOT_FIT = "does_not_fit"  # this node's configuration names what the bundle does not have
    TRUST_UNREADABLE = "trust_unreadable"
    TRUST_MALFORMED = "trust_malformed"
    TRUST_NOT_SIGNED = "trust_not_signed"
    TRUST_ROLLED_BACK = "trust_rolled_back"


class BundleRejected(HoldgateError):
    """Not a bundle for this node. `detail` is for operators."""

    def __init__(self, reason: Refusal, detail: str = "") -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason.value}: {detail}" if detail else reason.value)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class FileEntry:
    path: str
    size: int
    sha256: str  # hex

    @staticmethod
    def of(path: str, data: bytes) -> FileEntry:
        return FileEntry(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest())


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    name: str
    epoch: int  # of the trust roots that it was made for
    revision: int  # ascending within an epoch
    profile: str  # the engine that decides: "cel-strict/1"
    not_before_s: int
    not_after_s: int  # from this second on it decides nothing any more
    previous: str  # digest of the bundle that it follows, "" for the first; for people, not checked
    files: tuple[FileEntry, ...]  # sorted by path

    def encode(self) -> bytes:
        """The bytes that are signed."""
        rows = [{"path": f.path, "sha256": f.sha256, "size": f.size} for f in self.files]
        value: dict[str, Any] = {
            "v": 1,
            "name": self.name,
            "epoch": self.epoch,
            "revision": self.revision,
            "profile": self.profile,
            "not_before_s": self.not_before_s,
            "not_after_s": self.not_after_s,
            "files": rows,
        }
        return dumps(value | ({"previous": self.previous} if self.previous else {}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    key_id: str
    sig: bytes


def manifest_digest(data: bytes) -> str:
    """The digest of a signed bundle: what receipts name as the policy version."""
    return "sha256:" + hashlib.sha256(_DOMAIN + data).hexdigest()


def pae(kind: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: what is signed says what it is."""
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode("ascii"), len(payload), payload)


# --- manifest ---


def parse_manifest(data: bytes) -> Manifest:
    """Strict. Raises BundleRejected."""
    try:
        value = loads_strict(data)
        keys = {"v", "name", "epoch", "revision", "profile", "not_before_s", "not_after_s", "files"}
        if (
            not isinstance(value, dict)
            or value.keys() - {"previous"} != keys
            or not _is_int(value["v"], 1, 1)
        ):
            raise ValueError("its fields are not those of a manifest of version 1")
        manifest = Manifest(
            name=_text(value, "name", _NAME),
            epoch=_integer(value, "epoch", 1),
            revision=_integer(value, "revision", 1),
            profile=_text(value, "profile", _PROFILE),
            not_before_s=_integer(value, "not_before_s", 0),
            not_after_s=_integer(value, "not_after_s", 1),
            previous=_text(value, "previous", _DIGEST) if "previous" in value else "",
            files=_files(value["files"]),
        )
    except (JcsError, ValueError) as error:
        raise BundleRejected(Refusal.MALFORMED_MANIFEST, str(error)) from None
    if manifest.not_after_s <= manifest.not_before_s:
        raise BundleRejected(Refusal.MALFORMED_MANIFEST, "it ends before it begins")
    check_paths(entry.path for entry in manifest.files)
    if [entry.path for entry in manifest.files] != sorted(entry.path for entry in manifest.files):
        raise BundleRejected(Refusal.MALFORMED_MANIFEST, "its files are not sorted by path")
    return manifest


def _is_int(value: object, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _integer(value: Mapping[str, Any], name: str, low: int) -> int:
    number = value[name]
    if not _is_int(number, low, _SAFE_INT):
        raise ValueError(f"{name} is not a whole number from {low}")
    return int(number)


def _text(value: Mapping[str, Any], name: str, pattern: re.Pattern[str]) -> str:
    text = value[name]
    if not isinstance(text, str) or not pattern.match(text):
        raise ValueError(f"{name} is not what it must be")
    return text


def _files(rows: object) -> tuple[FileEntry, ...]:
    if not isinstance(rows, list) or not 1 <= len(rows) <= MAX_FILES:
        raise ValueError(f"files is not a list of 1 to {MAX_FILES}")
    found = []
    for row in rows:
        if not isinstance(row, dict) or row.keys() != {"path", "sha256", "size"}:
            raise ValueError("a file has path, sha256 and size")
        if not isinstance(row["path"], str):
            raise ValueError("a path is not text")
        size = _integer(row, "size", 0)
        found.append(FileEntry(path=row["path"], size=size, sha256=_text(row, "sha256", _SHA256)))
    if sum(entry.size for entry in found) > MAX_BYTES:
        raise ValueError(f"the files are larger than {MAX_BYTES} bytes")
    return tuple(found)


def check_path(path: str) -> None:
    """Raises BundleRejected for a path that could mean another file here or elsewhere."""
    parts = path.split("/")
    plain = all(_SEGMENT.match(part) and not part.endswith(".") for part in parts)
    if not plain or len(parts) < 2 or parts[0] not in _ROOTS or len(path) > _MAX_PATH:
        raise BundleRejected(Refusal.UNSAFE_PATH, ascii(path[:_MAX_PATH]))


def check_paths(paths: Iterable[str]) -> None:
    """Each path, and that no two could be one on a file system that does not look at case."""
    seen: dict[str, str] = {}
    for path in paths:
        check_path(path)
        parts = path.split("/")
        # Folders too: `policies/A/x` and `policies/a/y` are one folder there.
        for depth in range(1, len(parts) + 1):
            prefix = "/".join(parts[:depth])
            if seen.setdefault(prefix.lower(), prefix) != prefix:
                raise BundleRejected(Refusal.COLLIDING_NAME, f"{seen[prefix.lower()]} and {prefix}")
        if (previous := seen.get("\0" + path.lower())) is not None:
            raise BundleRejected(Refusal.COLLIDING_NAME, f"{previous} twice")
        seen["\0" + path.lower()] = path


# --- signatures ---


def sign_manifest(data: bytes, key: SigningKey) -> Signature:
    return Signature(key_id=key.kid, sig=key.sign(pae(TYPE, data)))


def encode_signatures(signatures: Iterable[Signature]) -> bytes:
    """manifest.sig.json: one signature a key, the latest."""
    latest = {each.key_id: each for each in signatures}
    rows = [{"key_id": key_id, "sig": b64url(latest[key_id].sig).decode()} for key_id in sorted(latest)]
    return dumps({"v": 1, "signatures": rows})


def parse_signatures(data: bytes) -> tuple[Signature, ...]:
    """Raises BundleRejected."""
    try:
        value = loads_strict(data)
        if (
            not isinstance(value, dict)
            or value.keys() != {"v", "signatures"}
            or not _is_int(value["v"], 1, 1)
        ):
            raise ValueError("its fields are not v and signatures")
        found = signature_rows(value["signatures"])
    except (JcsError, ValueError) as error:
        raise BundleRejected(Refusal.MALFORMED_SIGNATURES, str(error)) from None
    if not found:
        raise BundleRejected(Refusal.UNSIGNED, "there is no signature in it")
    return found


def signature_rows(rows: object) -> tuple[Signature, ...]:
    """Raises ValueError."""
    if not isinstance(rows, list) or len(rows) > _MAX_SIGNATURES:
        raise ValueError(f"signatures is not a list of up to {_MAX_SIGNATURES}")
    found = []
    for row in rows:
        if not isinstance(row, dict) or row.keys() != {"key_id", "sig"}:
            raise ValueError("a signature has key_id and sig")
        key_id, sig = row["key_id"], row["sig"]
        if not isinstance(key_id, str) or not isinstance(sig, str) or not sig.isascii():
            raise ValueError("key_id and sig are text")
        found.append(Signature(key_id=key_id, sig=unb64url(sig.encode("ascii"))))
    return tuple(found)


def count_signers(kind: str, payload: bytes, signatures: Iterable[Signature], keys: KeySet) -> frozenset[str]:
    """The trusted keys that signed this. Raises BundleRejected: see MF4."""
    signers = set()
    for each in signatures:
        key = keys.get(each.key_id)
        if key is None:
            continue  # a key of earlier or later roots: neither proof nor harm
        if not key.verifies(pae(kind, payload), each.sig):
            raise BundleRejected(Refusal.BAD_SIGNATURE, f"key {each.key_id}")
        signers.add(key.raw)
    return frozenset(key.kid for key in keys.values() if key.raw in signers)
