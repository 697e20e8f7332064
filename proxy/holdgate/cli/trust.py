"""`holdgate trust`: what clients need in order to believe the certificates that the proxy makes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..adapters.ca import load_ca
from ..adapters.trust import (
    env_lines,
    install,
    publish,
    trust_env,
    uninstall,
    write_bundle,
    write_roots,
)
from ..errors import ConfigError
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
        "--publish",
        type=Path,
        metavar="DIR",
        help="write ca.pem, bundle.pem, bundle.p12 and env where other users and containers may read them",
    )
    what.add_argument(
        "--install",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="add our CA to bundle files, to every bundle of a venv, to a Java root, or to the system"
        " (/usr/local/share/ca-certificates)",
    )
    what.add_argument("--uninstall", type=Path, nargs="+", metavar="PATH", help="undo --install")
    parser.add_argument(
        "--ca",
        type=Path,
        metavar="FILE",
        help="a published ca.pem, where the state directory cannot be read (not with --env)",
    )


def _trust(args: argparse.Namespace) -> int:
    if args.env:
        return _env(args)
    own, retired = _roots(args)
    if args.bundle is not None:
        write_bundle(args.bundle, own)
        print(f"wrote {args.bundle}", file=sys.stderr)
    elif args.publish is not None:
        publish(args.publish, own)
        print(f"wrote ca.pem, bundle.pem, bundle.p12 and env in {args.publish}", file=sys.stderr)
    else:
        act, paths = (install, args.install) if args.install else (uninstall, args.uninstall)
        for store in act(paths, own, retired=retired):
            print(f"{store.change.value} {store.path}")
    return 0


def _env(args: argparse.Namespace) -> int:
    if args.ca is not None:
        raise ConfigError("--env is about the state directory; beside a published ca.pem there is `env`")
    ca = load_ca(config_of(args).state_dir)
    write_roots(ca.path.parent, ca.pem)
    print(env_lines(trust_env(ca.path.with_name("bundle.pem"), ca.path)), end="")
    return 0


def _roots(args: argparse.Namespace) -> tuple[bytes, bytes]:
    """What agents are to trust, and what they no longer are, PEM."""
    try:
        if args.ca is not None:
            return args.ca.read_bytes(), b""
        ca = load_ca(config_of(args).state_dir)
        retired = ca.path.with_name("retired.pem")
        return ca.pem, retired.read_bytes() if retired.exists() else b""
    except OSError as error:
        raise ConfigError(f"cannot read: {error.strerror}", file=str(error.filename)) from error
