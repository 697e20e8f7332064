"""`holdgate trust`: what clients need in order to believe the certificates that the proxy makes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..adapters.ca import load_ca
from ..adapters.trust import (
    env_lines,
    install,
    java_store_path,
    trust_env,
    uninstall,
    write_bundle,
    write_java_store,
)
from .shared import Commands, add, config_of

__all__ = ["register"]


def register(commands: Commands) -> None:
    parser = add(
        commands,
        "trust",
        _trust,
        does="make clients trust the CA: variables, a bundle file, or the bundles inside packages",
        example='eval "$(holdgate trust --env)"; holdgate trust --install .venv',
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--env", action="store_true", help="print `export NAME=VALUE` lines for a shell")
    what.add_argument("--bundle", type=Path, metavar="FILE", help="write public roots and our CA to FILE")
    what.add_argument(
        "--install",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="add our CA to bundle files, to every bundle of a venv, or to a Java root",
    )
    what.add_argument("--uninstall", type=Path, nargs="+", metavar="PATH", help="undo --install")


def _trust(args: argparse.Namespace) -> int:
    ca = load_ca(config_of(args).state_dir)
    if args.env:
        bundle = ca.path.with_name("bundle.pem")
        write_bundle(bundle, ca.pem)
        write_java_store(java_store_path(bundle), ca.pem)
        print(env_lines(trust_env(bundle, ca.path)), end="")
        return 0
    if args.bundle is not None:
        write_bundle(args.bundle, ca.pem)
        print(f"wrote {args.bundle}", file=sys.stderr)
        return 0
    touched = install(args.install, ca.pem) if args.install else uninstall(args.uninstall, ca.pem)
    for store in touched:
        print(f"{store.change.value} {store.path}")
    return 0
