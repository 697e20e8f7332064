"""Every bundle that was ever active here, by its digest: what `replay` decides with, years later.

`state_dir/bundles/<hex>.json` holds the text of all maps and policies of one bundle; of a signed one all of
its files, its manifest and its signatures, so that it starts again, and can be rolled back to, from here
alone. A bundle is kept before it becomes active, so no receipt names one that is not here; nothing is
removed by us.

Invariants (tests/test_bundle_store.py):
  BS1  What keep_bundle() stores has exactly the digest of the bundle; otherwise it raises and stores nothing.
  BS2  load_kept() returns the bundle of the digest asked for, or raises; an edited file is no bundle.
  BS3  A bundle stays loadable here when the reader of new files learns to refuse what people misread.
"""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from ..bundle import Bundle, bundle_digest, load_bundle, source_files
from ..errors import ConfigError
from ..manifest import BundleRejected, parse_manifest
from ..signed_bundle import RawBundle, check_files
from ..yamlfiles import read_file
from .bundle_load import load_signed
from .durable import replace_file

__all__ = ["keep_bundle", "keep_signed", "kept_signed", "load_kept"]

_FOLDER: Final = "bundles"
_CHANGED: Final = "maps or policies changed while they were read; try again"
_KINDS: Final = ("surfaces", "policies")


def keep_bundle(
    state_dir: Path, bundle: Bundle, *, surfaces: Sequence[Path], policies: Sequence[Path]
) -> None:
    """Store the sources of an active bundle, if they are not there yet. Raises ConfigError."""
    path = _path(state_dir, bundle.digest)
    if path.exists():
        return
    roots = zip(_KINDS, (surfaces, policies), strict=True)
    document = {"v": 1} | {kind: [_texts(root) for root in paths] for kind, paths in roots}
    with _unpacked(document) as (kept_surfaces, kept_policies):
        if bundle_digest(kept_surfaces, kept_policies) != bundle.digest:
            raise ConfigError(_CHANGED, file=str(surfaces[0]))
    _write(path, document)


def keep_signed(state_dir: Path, raw: RawBundle) -> None:
    """Store a signed bundle, which was verified. Its signatures may be newer. Raises ConfigError."""
    document = {
        "v": 2,
        "name": raw.name,
        "manifest": raw.manifest.decode(),
        "signatures": (raw.signatures or b"").decode(),
        "files": {path: _encoded(data) for path, data in raw.files.items()},
    }
    _write(_path(state_dir, raw.digest), document)


def kept_signed(state_dir: Path, digest: str) -> RawBundle:
    """A signed bundle as it was kept; its signatures are not looked at. Raises ConfigError."""
    path = _path(state_dir, digest)
    return _signed_of(_read(path, digest), digest, path)


def load_kept(state_dir: Path, digest: str) -> Bundle:
    """The bundle of this digest, to see what it decides. Raises ConfigError when it is not here, or is not
    that bundle any more. Files that would be refused for their characters today are read as they were."""
    path = _path(state_dir, digest)
    document = _read(path, digest)
    if isinstance(document, dict) and document.get("v") == 2:
        raw = _signed_of(document, digest, path)
        try:
            return load_signed(raw, parse_manifest(raw.manifest), tested=True, kept=True)
        except BundleRejected as error:
            raise ConfigError(str(error), file=str(path)) from error
    try:
        with _unpacked(document) as (surfaces, policies):
            if (actual := bundle_digest(surfaces, policies)) != digest:
                raise ConfigError(f"was changed: this is bundle {actual}", file=str(path))
            return load_bundle(surfaces, policies, kept=True)
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        raise ConfigError(f"is not a kept bundle: {error!r}", file=str(path)) from error


def _write(path: Path, document: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        data = json.dumps(document, sort_keys=True, ensure_ascii=False).encode()
        replace_file(path, data, mode=0o600)
    except OSError as error:
        raise ConfigError(f"the bundle cannot be kept: {error.strerror}", file=str(path)) from error


def _read(path: Path, digest: str) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"no bundle {digest} was kept here", file=str(path)) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot be read: {error}", file=str(path)) from error


def _signed_of(document: Any, digest: str, path: Path) -> RawBundle:
    try:
        raw = RawBundle(
            name=document["name"],
            manifest=document["manifest"].encode(),
            signatures=document["signatures"].encode(),
            files={name: _decoded(data) for name, data in document["files"].items()},
        )
        if raw.digest != digest:
            raise ConfigError(f"was changed: this is bundle {raw.digest}", file=str(path))
        check_files(raw, parse_manifest(raw.manifest))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"is not a kept bundle: {error!r}", file=str(path)) from error
    except BundleRejected as error:
        raise ConfigError(f"was changed: {error}", file=str(path)) from error
    return raw


def _encoded(data: bytes) -> str | dict[str, str]:
    try:
        return data.decode()
    except UnicodeDecodeError:  # the body of a captured request
        return {"base64": base64.b64encode(data).decode()}


def _decoded(data: Any) -> bytes:
    return base64.b64decode(data["base64"], validate=True) if isinstance(data, dict) else bytes(data.encode())


def _path(state_dir: Path, digest: str) -> Path:
    return state_dir / _FOLDER / f"{digest.removeprefix('sha256:')}.json"


def _texts(root: Path) -> dict[str, str]:
    try:
        return {name: read_file(file).decode() for file, name in source_files(root)}
    except UnicodeDecodeError as error:
        raise ConfigError(f"cannot be read: {error}", file=str(root)) from error


@contextmanager
def _unpacked(document: dict[str, Any]) -> Iterator[tuple[list[Path], list[Path]]]:
    with tempfile.TemporaryDirectory(prefix="holdgate-bundle-") as folder:
        surfaces, policies = (_unpack(Path(folder) / kind, document[kind]) for kind in _KINDS)
        yield surfaces, policies


def _unpack(folder: Path, roots: list[dict[str, Any]]) -> list[Path]:
    paths = []
    for number, texts in enumerate(roots):
        root = folder / str(number)
        for name, text in texts.items():
            parts = Path(name).parts
            if not parts or Path(name).is_absolute() or ".." in parts:
                raise ValueError(f"the name {name!r}")
            file = root / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8", newline="")
        paths.append(root)
    return paths
