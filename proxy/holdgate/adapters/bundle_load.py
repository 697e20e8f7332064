"""The last checks of a signed bundle, which need it loaded: it compiles, it type-checks, its tests hold.

The bytes come from memory (bundle_folder.py read them once) and are written into a private folder of our own,
because the loaders read files; nobody else can write there, and it is gone when this returns.

Invariants (tests/test_bundle_load.py):
  BL1  load_signed() returns a Bundle only if every bundled test passed, and there is at least one.
  BL2  Nothing outside the bundle is read: a request that a test names is in it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ..bundle import Bundle, load_bundle
from ..errors import ConfigError
from ..explain import recognised_input
from ..limits import Limits
from ..manifest import MANIFEST, BundleRejected, Manifest, Refusal, parse_manifest
from ..policy import load_policies
from ..policytest import TestReport, run_tests
from ..signed_bundle import RawBundle, check_files
from ..surface.index import SurfaceIndex
from ..surface.load import load_maps
from .bundle_folder import read_folder

__all__ = ["load_folder", "load_signed", "load_unpacked", "unpacked"]


def load_signed(raw: RawBundle, manifest: Manifest, *, tested: bool, kept: bool = False) -> Bundle:
    """`tested`: its tests were run here before, when it was activated. `kept`: it has decided here already
    (strictyaml.load()). Raises BundleRejected."""
    with unpacked(raw.files) as folder:
        try:
            bundle = load_unpacked(folder, raw.digest, manifest, kept=kept)
            report = None if tested else _run_tests(folder, bundle)
        except ConfigError as error:
            raise BundleRejected(Refusal.DOES_NOT_LOAD, _shown(error, folder)) from error
    if report is not None and not report.ok:
        failed = report.failed
        detail = (
            f"{len(failed)} of {len(report.results)} cases failed, first {failed[0].name}" if failed else ""
        )
        raise BundleRejected(Refusal.TESTS_FAILED, detail or "there is no test in it")
    return bundle


def load_folder(folder: Path) -> Bundle:
    """A bundle to look at, not to decide with: signed or not, or plain `surfaces/` and `policies/`.
    Raises ConfigError, BundleRejected."""
    if not (folder / MANIFEST).exists():
        return load_bundle([folder / "surfaces"], [folder / "policies"])
    raw = read_folder(folder)
    manifest = parse_manifest(raw.manifest)
    check_files(raw, manifest)
    return load_signed(raw, manifest, tested=True)


def load_unpacked(folder: Path, digest: str, manifest: Manifest, *, kept: bool = False) -> Bundle:
    """Raises ConfigError."""
    index = SurfaceIndex.compile(load_maps([folder / "surfaces"], kept=kept))
    return Bundle(
        digest=digest,
        revision=manifest.revision,
        signed=True,
        ends_us=manifest.not_after_s * 1_000_000,
        index=index,
        policies=load_policies([folder / "policies"], index, kept=kept),
    )


def _run_tests(folder: Path, bundle: Bundle) -> TestReport:
    """Raises ConfigError for a test that is not one."""
    recognise = partial(_recognised, folder.resolve(), bundle.index)
    return run_tests([folder / "policies"], bundle.policies, bundle.index, recognise)


def _recognised(folder: Path, index: SurfaceIndex, path: Path) -> dict[str, Any]:
    if not path.resolve().is_relative_to(folder):
        raise ConfigError("this request is not in the bundle", file=str(path))
    # Tests compare decisions, not digests: any key will do.
    return recognised_input(path.read_bytes(), index, Limits(), fleet_key=bytes(32))


def _shown(error: ConfigError, folder: Path) -> str:
    return str(error).replace(f"{folder}/", "")


@contextmanager
def unpacked(files: Mapping[str, bytes]) -> Iterator[Path]:
    """The files in a private folder, which ends with the context. Their paths were checked: manifest.py."""
    with tempfile.TemporaryDirectory(prefix="holdgate-bundle-") as name:
        folder = Path(name)
        for path, data in files.items():
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        yield folder
