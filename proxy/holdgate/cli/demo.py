"""`holdgate demo`: see it work, with real clients and without anything to set up."""

from __future__ import annotations

import argparse

from .shared import Commands, add

__all__ = ["register"]


def register(commands: Commands) -> None:
    parser = add(
        commands,
        "demo",
        _demo,
        does="start a throw-away instance and stand-in vendors, and drive real clients through it",
        example="holdgate demo --keep",
        config=False,
    )
    parser.add_argument("--keep", action="store_true", help="keep the instance's folder, and say where it is")


def _demo(args: argparse.Namespace) -> int:
    from ..demo.story import tell

    return 0 if tell(keep=args.keep) else 1
