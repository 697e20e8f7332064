"""`holdgate run`: the proxy, the gate and the admin API in this process, or in several (`--workers`)."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import pwd
import signal
import socket
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from ..adapters.sd_notify import notify
from ..config import Config, NetworkMode
from ..errors import ConfigError
from .shared import Commands, add, config_of

if TYPE_CHECKING:
    from ..adapters.instance import Server

__all__ = ["announce", "prepare", "register"]

MOST: Final = 64


def register(commands: Commands) -> None:
    parser = add(
        commands,
        "run",
        _run,
        does="run the proxy, the gate and the admin API; SIGTERM drains, SIGHUP reloads maps and policies",
        example="holdgate run -c holdgate.yaml --workers 2",
    )
    parser.add_argument(
        "--workers",
        type=_workers,
        default=1,
        metavar="N",
        help="more than one: a supervisor, one gate process and N proxy processes on the same port",
    )
    parser.add_argument("--part", help=argparse.SUPPRESS)  # what a supervisor's process is told
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
    if args.part is not None:
        return _part(config, args)
    if args.workers > 1:
        return _supervise(config, args)
    # Only these commands need the proxy engine, whose import takes longer than most of them.
    from ..adapters.server import serve

    asyncio.run(serve(config, ready=announce))
    return 0


def _workers(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MOST):
        raise argparse.ArgumentTypeError(f"1 to {MOST}")
    return int(text)


def _supervise(config: Config, args: argparse.Namespace) -> int:
    from ..adapters.supervisor import Supervisor, divided, programs, reserve

    os.umask(0o077)
    divided(config, args.workers)  # said before anything starts
    handed = _handed(config)
    ports, kept = reserve(config, handed=bool(handed))

    async def supervise() -> int:
        supervisor = Supervisor(
            state_dir=config.state_dir,
            workers=args.workers,
            hold_s=config.limits.hold_s,
            spawn=programs(config, args.workers, ports, handed, ("--verbose",) * args.verbose),
            announce=announce_all,
            clock=time.monotonic,
        )
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, supervisor.stop)
        loop.add_signal_handler(signal.SIGHUP, supervisor.reload)
        return await supervisor.run()

    try:
        return asyncio.run(supervise())
    finally:
        for sock in (*kept, *handed):
            sock.close()


def _handed(config: Config) -> tuple[socket.socket, ...]:
    if config.network_mode is not NetworkMode.TPROXY and "LISTEN_FDS" not in os.environ:
        return ()  # without the import: the engine's
    from ..adapters.handed import take

    return take(config)


def _part(config: Config, args: argparse.Namespace) -> int:
    """One process of a supervisor's."""
    from ..adapters.supervisor import GATE, Part
    from ..adapters.syscalls import die_with_parent

    part = Part.parse(args.part)
    die_with_parent()
    if os.getppid() != part.supervisor:  # it ended before that could be asked for
        return 1
    config = part.bound(config)
    if part.role == GATE:
        from ..adapters.server import serve

        asyncio.run(serve(config, ready=announce, supervisor=part.supervisor))
        return 0
    from ..adapters.worker import serve_worker

    handed = tuple(socket.socket(fileno=number) for number in part.handed)
    asyncio.run(
        serve_worker(
            config,
            part.role,
            part.workers,
            handed=handed,
            ready=lambda worker: announce_all({name: str(at) for name, at in worker.bound.items()}),
        )
    )
    return 0


def announce_all(listeners: Mapping[str, str]) -> None:
    """As announce(), of what several processes listen on."""
    for name in ("explicit", "transparent", "admin", "ext_authz"):
        if name in listeners:
            print(f"{name} {listeners[name]}")
    print("ready", flush=True)
    notify("READY=1")


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
    command += ["--workers", str(args.workers), *["--verbose"] * args.verbose]
    try:
        become(account, open_transparent(config), command)
    except OSError as error:
        raise ConfigError(f"--user {args.user}: {error}") from error
    return 2


def announce(server: Server) -> None:
    """One line per listener, then one that says ready: scripts may wait for it, and systemd does."""
    named = {
        "explicit": server.explicit,
        "transparent": server.transparent,
        "admin": server.admin.address,
        "ext_authz": server.envoy.address if server.envoy is not None else None,
    }
    announce_all({name: str(address) for name, address in named.items() if address is not None})
