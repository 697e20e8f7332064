"""Maps, policies and tests become the folder of a bundle; keys of people sign it.

Build loads, type-checks, lints and tests exactly what it writes, so nobody is asked to sign what no node
would take. A policy key is a private JWK like the node's keys, with a purpose of its own; it belongs to a
person or a build system, never to a node: a node that could sign policies could permit itself anything.

Invariants (tests/test_bundle_build.py):
  BB1  What build() writes passes every check but that of signatures.
  BB2  A folder that exists is never written into; a folder that is there is complete.
  BB3  The same sources, revision and window give the same bytes.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..jcs import JcsError, loads_strict
from ..keys import KeyDocumentError, PublicKey, SigningKey, b64url, unb64url
from ..manifest import (
    MANIFEST,
    SIGNATURES,
    BundleRejected,
    FileEntry,
    Manifest,
    Refusal,
    Signature,
    check_paths,
    encode_signatures,
    parse_manifest,
    sign_manifest,
    signature_rows,
)
from ..policy_lint import Finding, lint
from ..signed_bundle import RawBundle
from ..strictyaml import load_file
from ..yamlfiles import yaml_files
from .bundle_load import load_signed
from .durable import replace_file, sync_folder
from .private_file import read_private, write_new

__all__ = [
    "build",
    "gather",
    "make_policy_key",
    "read_policy_key",
    "read_public_key",
    "sign_folder",
    "write_folder",
]

_PURPOSE = "policy"


def gather(surfaces: Sequence[Path], policies: Sequence[Path]) -> dict[str, bytes]:
    """Every file of the bundle by its path in it: the YAML below the roots, and the requests that tests name.
    Raises ConfigError, BundleRejected."""
    found: dict[str, bytes] = {}
    roots = [("surfaces", root) for root in surfaces] + [("policies", root) for root in policies]
    for kind, root in roots:
        for file in _yaml_files(root):
            _add(found, f"{kind}/{_name(file, root)}", file)
            for named in _request_files(file):
                _add(found, _place(named, file, roots), named)
    check_paths(found)
    return found


def build(files: Mapping[str, bytes], **manifest: Any) -> tuple[RawBundle, tuple[Finding, ...]]:
    """The unsigned bundle of these files, loaded and tested, and its lint findings. Raises BundleRejected."""
    entries = tuple(sorted(FileEntry.of(path, data) for path, data in files.items()))
    data = Manifest(files=entries, **manifest).encode()
    raw = RawBundle(name=manifest["name"], manifest=data, signatures=None, files=files)
    loaded = load_signed(raw, parse_manifest(data), tested=False)
    return raw, lint(loaded.policies, loaded.index)


def write_folder(raw: RawBundle, folder: Path) -> None:
    """Complete under another name first, then renamed. Raises ConfigError."""
    scratch = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        if folder.exists():
            raise ConfigError("exists already; name another folder", file=str(folder))
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch.mkdir()
        for path, data in raw.files.items():
            (scratch / path).parent.mkdir(parents=True, exist_ok=True)
            (scratch / path).write_bytes(data)
        if raw.signatures:
            (scratch / SIGNATURES).write_bytes(raw.signatures)
        (scratch / MANIFEST).write_bytes(raw.manifest)
        scratch.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise ConfigError(f"cannot write: {error.strerror}", file=str(folder)) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def sign_folder(raw: RawBundle, folder: Path, keys: Iterable[SigningKey]) -> tuple[Signature, ...]:
    """Add signatures to those that are there. Raises ConfigError, BundleRejected."""
    signatures = [*_stored(raw.signatures), *(sign_manifest(raw.manifest, key) for key in keys)]
    try:
        replace_file(folder / SIGNATURES, encode_signatures(signatures))
    except OSError as error:
        raise ConfigError(f"cannot write: {error.strerror}", file=str(folder / SIGNATURES)) from error
    return tuple(signatures)


def _stored(data: bytes | None) -> tuple[Signature, ...]:
    if data is None:
        return ()
    try:
        return signature_rows(loads_strict(data)["signatures"])
    except (JcsError, ValueError, KeyError, TypeError) as error:
        raise BundleRejected(Refusal.MALFORMED_SIGNATURES, f"remove {SIGNATURES} and sign again") from error


# --- sources ---


def _yaml_files(root: Path) -> list[Path]:
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise ConfigError("no such file or directory", file=str(root))
    return yaml_files(root)


def _name(file: Path, root: Path) -> str:
    return file.name if root == file else file.relative_to(root).as_posix()


def _add(found: dict[str, bytes], path: str, file: Path) -> None:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read: {error.strerror}", file=str(file)) from error
    if found.setdefault(path, data) != data:
        raise ConfigError(f"two files would be {path} in the bundle", file=str(file))


def _request_files(file: Path) -> Iterator[Path]:
    if file.name.endswith("_test.yaml"):
        for name in _named(load_file(file).plain()):
            yield file.parent / name


def _named(value: Any) -> Iterator[str]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        if key == "request_file" and isinstance(item, str):
            yield item
        else:
            yield from _named(item)


def _place(named: Path, test: Path, roots: Sequence[tuple[str, Path]]) -> str:
    """Where a request is in the bundle: below the root that it is below here."""
    full = named.resolve()
    for kind, root in roots:
        if full.is_relative_to(root.resolve()):
            return f"{kind}/{full.relative_to(root.resolve()).as_posix()}"
    raise ConfigError(
        f"names {named}, which is below none of the folders of maps and policies", file=str(test)
    )


# --- keys ---


def make_policy_key(path: Path) -> PublicKey:
    """A new private key at `path`, its public half at `path`.pub. Raises ConfigError."""
    seed = secrets.token_bytes(32)
    key = SigningKey(seed=seed)
    row = {"purpose": _PURPOSE, **key.public.jwk, "d": b64url(seed).decode()}
    try:
        write_new(path, json.dumps(row, indent=2).encode() + b"\n", 0o600)
        write_new(_public_path(path), json.dumps(key.public.jwk, indent=2).encode() + b"\n", 0o644)
    except OSError as error:
        raise ConfigError(f"cannot write: {error.strerror}", file=str(path)) from error
    return key.public


def _public_path(path: Path) -> Path:
    return path.with_name(path.name + ".pub")


def read_policy_key(path: Path) -> SigningKey:
    """Raises ConfigError."""
    try:
        row = json.loads(read_private(path, "this key"))
        if row["purpose"] != _PURPOSE:
            raise ConfigError(f"a {row['purpose']} key does not sign policies", file=str(path))
        key = SigningKey(seed=unb64url(row["d"].encode("ascii")))
        if key.kid != row["kid"]:
            raise ValueError("secret and public half differ")
    except OSError as error:
        raise ConfigError(f"cannot read: {error.strerror}", file=str(path)) from error
    except (ValueError, KeyError, TypeError, AttributeError, KeyDocumentError) as error:
        message = f"not a policy key ({error}); `holdgate bundle keygen` makes one"
        raise ConfigError(message, file=str(path)) from error
    return key


def read_public_key(path: Path) -> PublicKey:
    """Raises ConfigError."""
    try:
        row = json.loads(path.read_bytes())
        if "d" in row:
            raise ConfigError(f"this is the secret half; name {_public_path(path)}", file=str(path))
        if (row["kty"], row["crv"]) != ("OKP", "Ed25519"):
            raise ValueError("no Ed25519 key")
        return PublicKey(raw=unb64url(row["x"].encode("ascii")))
    except OSError as error:
        raise ConfigError(f"cannot read: {error.strerror}", file=str(path)) from error
    except (ValueError, KeyError, TypeError, AttributeError, KeyDocumentError) as error:
        raise ConfigError(f"not a public key: {error}", file=str(path)) from error
