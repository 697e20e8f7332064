"""`holdgate init`: a folder that `holdgate run` can start from; what is in it is in adapters/starter.py."""

from __future__ import annotations

import argparse
from pathlib import Path
from shlex import quote

from ..adapters.starter import initialise
from .shared import Commands, add

__all__ = ["register"]


def register(commands: Commands) -> None:
    parser = add(
        commands,
        "init",
        _init,
        does="write a configuration, starter maps and policies, and make keys; never overwrites",
        example="holdgate init gate && cd gate && holdgate check && holdgate run",
        config=False,
    )
    parser.add_argument("dir", nargs="?", type=Path, default=Path(), metavar="DIR", help="default: here")
    parser.add_argument("--state", type=Path, metavar="DIR", help="state directory (default: DIR/state)")
    parser.add_argument(
        "--constrain", action="store_true", help="make a CA that agents believe for mapped hosts only"
    )
    parser.add_argument("--node", default="edge-1", metavar="NAME", help="name of this instance")


def _init(args: argparse.Namespace) -> int:
    made = initialise(args.dir, node=args.node, state=args.state, constrain=args.constrain)
    for path in made:
        print(f"made {path}")
    if not made:
        print("everything is there already")
    print("\nnext:")
    if args.dir != Path():
        print(f"  cd {quote(str(args.dir))}")
    print("  holdgate check                 # maps, policies and configuration are sound")
    print("  holdgate run                   # then, in the agent's shell and the same folder:")
    print('  eval "$(holdgate trust --env)"; export HTTPS_PROXY=http://127.0.0.1:8080')
    return 0
