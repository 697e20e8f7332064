"""`holdgate run`: the proxy, the gate and the admin API in this process."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import pwd
import sys
from typing import TYPE_CHECKING

from ..adapters.sd_notify import notify
from ..config import Config
from ..errors import ConfigError
from .shared import Commands, add, config_of

if TYPE_CHECKING:
    from ..adapters.server import Server

__all__ = ["announce", "prepare", "register"]


def register(commands: Commands) -> None:
    parser = add(
        commands,
        "run",
        _run,
        does="run the proxy, the gate and the admin API; SIGTERM drains, SIGHUP reloads maps and policies",
        example="holdgate run -c holdgate.yaml",
    )
    parser.add_argument("--verbose", action="store_true", help="log every refusal and what led to it")
    parser.add_argument(
        "--user",
        metavar="NAME",
        help="started by root: open what needs a right (network.mode tproxy), then run as this user, without",
    )


def _run(args: argparse.Namespace) -> int:
    config = config_of(args)
    if args.user is not None:
        return _as_user(config, args)
    prepare(verbose=args.verbose)
    # Only these commands need the proxy engine, whose import takes longer than most of them.
    from ..adapters.server import serve

    asyncio.run(serve(config, ready=announce))
    return 0


def prepare(*, verbose: bool) -> None:
    """What a process that serves sets once: its log, and how it shares the interpreter and memory."""
    from ..adapters.memory import give_back_large_blocks

    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    if not verbose:  # what starts, stops and reloads is worth a line; every refusal is not
        logging.getLogger("holdgate").setLevel(logging.INFO)
        logging.getLogger("holdgate.pipeline").setLevel(logging.WARNING)
    sys.setswitchinterval(0.001)
    give_back_large_blocks()


def _as_user(config: Config, args: argparse.Namespace) -> int:
    from ..adapters.handed import become, open_transparent

    if os.geteuid() != 0:
        raise ConfigError("--user needs root; without it Holdgate runs as you")
    try:
        account = pwd.getpwnam(args.user)
    except KeyError:
        raise ConfigError(f"--user: this machine has no user {args.user!r}") from None
    command = [sys.executable, "-P", "-m", "holdgate", "run", "-c", str(config.path)]
    try:
        become(account, open_transparent(config), command + ["--verbose"] * args.verbose)
    except OSError as error:
        raise ConfigError(f"--user {args.user}: {error}") from error
    return 2


def announce(server: Server) -> None:
    """One line per listener, then one that says ready: scripts may wait for it, and systemd does."""
    for name, address in (
        ("explicit", server.explicit),
        ("transparent", server.transparent),
        ("admin", server.admin.address),
        ("ext_authz", server.envoy.address if server.envoy is not None else None),
    ):
        if address is not None:
            print(f"{name} {address}")
    print("ready", flush=True)
    notify("READY=1")
