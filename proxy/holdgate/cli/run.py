"""`holdgate run`: the proxy, the gate and the admin API in this process."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from typing import TYPE_CHECKING

from ..adapters.sd_notify import notify
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
    sys.setswitchinterval(0.001)
    give_back_large_blocks()
    asyncio.run(serve(config, ready=_announce))
    return 0


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
