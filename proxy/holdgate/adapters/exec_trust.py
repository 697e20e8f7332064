"""What a command sees inside `holdgate exec` so that its TLS clients trust our CA, unmodified.

Three ways, because clients differ: variables (trust.py), the system's bundle, and the bundles that libraries
carry themselves. The latter two are not changed: the command's mount namespace shows copies with our CA.

Invariants (tests/test_exec_trust.py has one test named after each):
  XT1  Only files that hold PEM certificates are shown otherwise, each with its own roots and our CA.
  XT2  No variable that names a proxy reaches the command: inside, nothing but the gate could be one.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from .ca import load_ca
from .trust import java_store_path, trust_env, with_ca, write_bundle, write_java_store

__all__ = ["bundles_of", "client_environment", "overlays", "public_files"]

_SYSTEM: Final = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Alpine, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/ssl/cert.pem",  # Alpine, OpenSSL's default file
    "/usr/lib/ssl/cert.pem",
)
# In Python packages, wherever these are: certifi, stripe, botocore, pip, httplib2, grpc.
_PACKAGED: Final = (
    *("*/cacert.pem", "*/data/ca-certificates.crt", "pip/_vendor/certifi/cacert.pem"),
    *("httplib2/cacerts.txt", "grpc/_cython/_credentials/roots.pem", "*/certs/ca-certificates.crt"),
)
_SITES: Final = ("lib/python3*/site-packages", "lib/python3/dist-packages", "lib/python3*/dist-packages")
_PEM: Final = b"-----BEGIN CERTIFICATE-----"
_LARGEST: Final = 4_000_000
_PROXIES: Final = frozenset({"http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy"})


def public_files(state_dir: Path) -> dict[str, bytes]:
    """What clients need of our CA, below a folder named `ca`. Certificates only. Raises ConfigError."""
    ca = load_ca(state_dir)
    bundle = ca.path.with_name("bundle.pem")
    if not bundle.exists():
        write_bundle(bundle, ca.pem)
    store = java_store_path(bundle)
    if not store.exists() or store.stat().st_mtime < bundle.stat().st_mtime:
        write_java_store(store, ca.pem)
    return {f"ca/{path.name}": path.read_bytes() for path in (ca.path, bundle, store)}


def client_environment(outer: Mapping[str, str], state_dir: Path, place: Path) -> dict[str, str]:
    """The caller's environment with CA variables that lead into `place`, and without proxies (XT2)."""
    ca = (state_dir / "ca").absolute()
    env = {name: value for name, value in outer.items() if name.lower() not in _PROXIES}
    trusted = trust_env(ca / "bundle.pem", ca / "ca.pem")
    for name, value in trusted.items():
        there = value.replace(str(ca), str(place / "ca"))
        # Java's variable holds options of all kinds: ours come last, and the last one counts.
        env[name] = f"{env[name]} {there}" if name == "JAVA_TOOL_OPTIONS" and env.get(name) else there
    return env


def overlays(bundles: Iterable[Path], ca_pem: bytes) -> dict[Path, bytes]:
    """Bundle -> what the command sees in its place (XT1). What cannot be read is left as it is."""
    shown: dict[Path, bytes] = {}
    for path in bundles:
        try:
            target = path.resolve(strict=True)
            if not stat.S_ISREG(target.stat().st_mode) or target.stat().st_size > _LARGEST:
                continue
            data = target.read_bytes()
        except OSError:
            continue
        if _PEM in data:
            shown[target] = with_ca(data, ca_pem)
    return shown


def bundles_of(command: str, environ: Mapping[str, str]) -> Iterator[Path]:
    """Bundles that this command may read: the system's, and those where its Python would import from."""
    yield from (Path(name) for name in _SYSTEM)
    for site in dict.fromkeys(_sites(command, environ)):
        for pattern in _PACKAGED:
            yield from site.glob(pattern)


def _sites(command: str, environ: Mapping[str, str]) -> Iterator[Path]:
    search = environ.get("PATH", os.defpath)
    roots: list[Path] = []
    if (venv := environ.get("VIRTUAL_ENV")) is not None:
        roots.append(Path(venv))
    for name in (command, "python", "python3"):
        found = shutil.which(name, path=search)
        if found is not None:  # a venv's link first, then what it leads to
            roots += [Path(found).absolute().parent.parent, Path(found).resolve().parent.parent]
    roots += [Path(sys.prefix), Path("/usr"), Path("/usr/local")]
    if (home := environ.get("HOME")) is not None:
        roots.append(Path(home) / ".local")
    for root in dict.fromkeys(roots):
        for pattern in _SITES:
            for site in root.glob(pattern):
                yield site
                yield from _linked(site)
    yield from (Path(part) for part in environ.get("PYTHONPATH", "").split(os.pathsep) if part)


def _linked(site: Path) -> Iterator[Path]:
    """Folders that a .pth file adds (a venv on top of another one)."""
    for link in site.glob("*.pth"):
        try:
            lines = link.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
        yield from (Path(line) for line in lines if line.startswith("/"))
