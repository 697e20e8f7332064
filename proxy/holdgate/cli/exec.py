"""`holdgate exec`: a command in a network namespace whose only way out is the running proxy."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..adapters.exec_run import run_inside
from ..errors import ConfigError
from .shared import Commands, add, config_of

__all__ = ["register"]


def register(commands: Commands) -> None:
    parser = add(
        commands,
        "exec",
        _exec,
        does="run a command that can reach nothing but the running proxy",
        example="holdgate exec --agent refund-bot -- python agent.py",
    )
    parser.add_argument("--agent", metavar="ID", help="which agent it is (default: the only one there is)")
    parser.add_argument("--user", metavar="NAME", help="run it as this user (root only; default: as you)")
    parser.add_argument(
        "--trust",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a PEM bundle that the command reads, if it is not among those that are found",
    )
    parser.add_argument("command", nargs="+", metavar="CMD", help="after `--`: the command and its arguments")


def _exec(args: argparse.Namespace) -> int:
    for path in args.trust:
        if not path.is_file():
            raise ConfigError("--trust: no such file", file=str(path))
    return run_inside(
        config_of(args), tuple(args.command), agent=args.agent, user=args.user, trust=tuple(args.trust)
    )
