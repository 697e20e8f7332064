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

__all__ = ["register"]


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
    # Only this command needs the proxy engine, whose import takes longer than most commands.
    from ..adapters.memory import give_back_large_blocks
    from ..adapters.server import serve

    logging.basicConfig(
        level=logging.INFO if args.verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    if not args.verbose:  # what starts, stops and reloads is worth a line; every refusal is not
        logging.getLogger("holdgate").setLevel(logging.INFO)
        logging.getLogger("holdgate.pipeline").setLevel(logging.WARNING)
    config = config_of(args)
    if args.user is not None:
        return _as_user(config, args)
    sys.setswitchinterval(0.001)
    give_back_large_blocks()
    asyncio.run(serve(config, ready=_announce))
    return 0


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


def _announce(server: Server) -> None:
    """One line per listener, then one that says ready: scripts may wait for it, and systemd does."""
    for name, address in (
        ("explicit", server.explicit),
        ("transparent", server.transparent),
        ("admin", server.admin.address),
    ):
        if address is not None:
            print(f"{name} {address}")
    print("ready", flush=True)
    notify("READY=1")
