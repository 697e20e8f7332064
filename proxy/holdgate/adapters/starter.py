"""A folder that `holdgate run` can start from: configuration, maps, policies, keys.

What is there already is kept, whatever it is; only what is missing is made. The configuration is written
last, so a folder that has one is complete.

Invariants (tests/test_cli.py):
  J1  Nothing that exists is overwritten; a second run makes nothing.
  J2  Secrets are readable by their owner only, and so is the folder that holds them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from ..config import load_config
from ..errors import ConfigError
from ..files import packaged
from ..subtrees import subtrees
from ..surface.index import SurfaceIndex
from ..surface.load import load_maps
from .ca import create_ca
from .keyfiles import create_keys
from .trust import write_bundle

__all__ = ["copy_starters", "initialise", "make_state"]

_STARTERS: Final[tuple[Literal["surfaces", "policies"], ...]] = ("surfaces", "policies")
_TEMPLATE: Final = """\
# Holdgate. Every key is checked at start; an unknown one is refused with file and line.
# Paths are relative to this file.
version: 1
node: {node}                    # name of this instance: in receipts, Proxy-Status and the CA's name
state_dir: {state}              # keys, CA, ledger, log: keep it private (0700) and backed up

listen:
  explicit: 127.0.0.1:8080        # for clients with HTTPS_PROXY=http://127.0.0.1:8080
  transparent: null               # for redirected traffic, e.g. 0.0.0.0:8443
  dns: null                       # answers mapped names only, e.g. 0.0.0.0:5353

admin:
  listen: 127.0.0.1:9090          # health, metrics, receipts; never reachable through the proxy
  open: [metrics]                 # readable without a token: metrics, checkpoint
  tokens: {{}}                      # e.g. ops: {{sha256: "<sha256 of the token, hex>", roles: [operator]}}

surfaces: [./surfaces]            # which API operations there are, and what in them matters
policies: [./policies]            # who may do which of them

# Who is behind the proxy. Nobody else gets anything.
agents:
  - id: local-agent
    groups: [payments]
    match: {{source: [127.0.0.1/32, "::1/128"]}}
# - id: triage                    # known by token: HTTPS_PROXY=http://triage:TOKEN@127.0.0.1:8080
#   match: {{token_sha256: "<sha256 of TOKEN, hex>"}}
# - id: service                   # known by the user that it runs as: `holdgate network up`
#   match: {{user: [refund-bot]}}

# network: {{interfaces: [agents0]}}  # agents behind an interface of this machine: `holdgate network up`
{ca}# limits: {{hold_s: 55, in_flight: 512}}
# receipts: {{header: reference}}   # only the receipt's id in answers, not the receipt itself
# retention: {{inputs_days: 400}}   # recorded inputs are destroyed then; null = never
# upstream:
#   connect_to: {{"fhir.example.org:443": {{address: "10.0.0.7:8443"}}}}   # dial there; names stay
"""
_CONSTRAINED: Final = """\
ca: {constrain: true}             # agents believe its certificates for mapped hosts only; `holdgate ca`
"""
_UNCONSTRAINED: Final = """\
# ca: {constrain: true}           # a CA that agents believe for mapped hosts only; then `holdgate ca rotate`
"""


def initialise(folder: Path, *, node: str, state: Path | None, constrain: bool = False) -> tuple[Path, ...]:
    """Make what is missing in `folder`; returns what was made. Raises ConfigError."""
    config = folder / "holdgate.yaml"
    made: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not config.exists():
            made += copy_starters(folder)
        state_dir = _state_dir(folder, config, state)
        made += make_state(state_dir, node, maps=_maps(folder, config, constrain))
        if not config.exists():
            ca = _CONSTRAINED if constrain else _UNCONSTRAINED
            _write_config(config, _TEMPLATE.format(node=node, state=_yaml_path(folder, state_dir), ca=ca))
            made.append(config)
    except OSError as error:
        raise ConfigError(f"cannot write: {error.strerror}", file=str(error.filename or folder)) from error
    return tuple(made)


def _maps(folder: Path, config: Path, constrain: bool) -> tuple[Path, ...] | None:
    """The maps to constrain the CA to; None for a CA without constraints."""
    if not config.exists():
        return (folder / "surfaces",) if constrain else None
    known = load_config(config)
    if constrain and not known.ca.constrain:
        raise ConfigError("write `ca: {constrain: true}` here, or leave --constrain out", file=str(config))
    return known.surfaces if known.ca.constrain else None


def _state_dir(folder: Path, config: Path, asked: Path | None) -> Path:
    if not config.exists():
        return asked if asked is not None else folder / "state"
    configured = load_config(config).state_dir
    if asked is not None and asked.resolve() != configured.resolve():
        raise ConfigError(
            f"this file says state_dir: {configured}; edit it or leave --state out", file=str(config)
        )
    return configured


def copy_starters(folder: Path) -> list[Path]:
    """Copy the packaged maps and policies, each where nothing of that name is yet."""
    made: list[Path] = []
    for name in _STARTERS:
        target = folder / name
        if not target.exists():
            shutil.copytree(packaged(name), target, ignore=_ignored)
            made.append(target)
    return made


def make_state(state_dir: Path, node: str, *, maps: Sequence[Path] | None = None) -> list[Path]:
    """Make the state directory, its keys and its CA (constrained to `maps`), as far as they are missing."""
    made: list[Path] = []
    if not state_dir.exists():
        state_dir.mkdir(mode=0o700, parents=True)
        made.append(state_dir)
    if state_dir.stat().st_mode & 0o077:
        raise ConfigError("others may read the state directory: chmod 700 it", file=str(state_dir))
    made += create_keys(state_dir)
    if not (state_dir / "ca").exists():
        names = None if maps is None else subtrees(SurfaceIndex.compile(load_maps(maps)).hosts())
        authority = create_ca(state_dir, node, names=names)
        write_bundle(authority.path.with_name("bundle.pem"), authority.pem)
        made.append(state_dir / "ca")
    return made


def _ignored(_folder: str, names: list[str]) -> set[str]:
    return {name for name in names if name.startswith(".") or name == "__pycache__"}


def _yaml_path(folder: Path, state_dir: Path) -> str:
    """The state directory as the configuration writes it: relative where it is inside the folder."""
    inside, outside = folder.resolve(), state_dir.resolve()
    if outside.is_relative_to(inside):
        return json.dumps(f"./{outside.relative_to(inside)}")
    return json.dumps(str(outside))


def _write_config(path: Path, text: str) -> None:
    # O_EXCL: a configuration that appeared meanwhile is somebody's work.
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(text)
    try:
        load_config(path)
    except ConfigError:  # for example a node name that is none: leave nothing that looks complete
        path.unlink()
        raise
