"""`holdgate diff`: what two bundles write and decide differently."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..adapters.bundle_load import load_folder
from ..adapters.bundle_store import load_kept
from ..bundle import Bundle
from ..diff import Difference, diff
from .shared import Commands, add, config_of, print_json, say

__all__ = ["register"]


def register(commands: Commands) -> None:
    parser = add(
        commands,
        "diff",
        _diff,
        does="compare two bundles: what is written otherwise, and which decisions are found to differ",
        example="holdgate diff release-7 release-8 --fail-on newly-permitted",
        data=True,
    )
    what = "a bundle, or a folder with surfaces/ and policies/; or the digest of one that was active here"
    parser.add_argument("old", metavar="OLD", help=what)
    parser.add_argument("new", metavar="NEW")
    parser.add_argument("--fail-on", choices=("newly-permitted",), help="exit 1 where that is found")


def _diff(args: argparse.Namespace) -> int:
    found = diff(_loaded(args, args.old), _loaded(args, args.new))
    if args.json:
        print_json(found.document())
    else:
        _print(found)
    return 1 if args.fail_on and found.newly_permitted else 0


def _loaded(args: argparse.Namespace, name: str) -> Bundle:
    if name.startswith("sha256:"):
        return load_kept(config_of(args).state_dir, name)
    return load_folder(Path(name))


def _print(found: Difference) -> None:
    for edit in found.edits:
        say(f"edited  {edit.what}")
        for sign, text in (("-", edit.old), ("+", edit.new)):
            if text:
                say(f"    {sign} {text}")
    for flip in found.flips:
        say(f"decided {flip.operation} ({flip.surface}): {flip.old} -> {flip.new}")
        values = ", ".join(f"{path} = {value!r}" for path, value in flip.example.items())
        say(f"    when {values or 'at rest'}")
        say(f"    {flip.count} inputs; {' '.join(flip.rules) or 'no rule'}")
    if found.untried:
        print(f"not tried, because facts or earlier requests decide too: {', '.join(found.untried)}")
    print(f"{found.inputs} inputs tried: {found.verdict}")
