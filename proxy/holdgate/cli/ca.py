"""`holdgate ca`: the CA that agents trust, and its rotation in three steps (adapters/ca_rotation.py)."""

from __future__ import annotations

import argparse
from datetime import timedelta

from ..adapters.ca_rotation import list_cas, retire, rotate, switch
from ..adapters.fitness import active_bundle
from ..config import Config
from ..subtrees import subtrees
from .shared import Commands, add, config_of, group, print_json, print_table

__all__ = ["register"]

_ROTATED = """published: agents that fetch the roots from now on trust both CAs. Next:
  now           give the roots out again: holdgate trust --publish DIR, --bundle FILE, --install PATH...
  after {hours} h   holdgate ca switch; then SIGHUP or restart every instance
  {hours} h later   holdgate ca retire; then give the roots out once more"""


def register(commands: Commands) -> None:
    ca = group(commands, "ca", does="show or rotate the CA that agents trust", example="holdgate ca list")
    add(
        ca,
        "list",
        _list,
        does="list the CAs that agents are to trust now: next, signing, previous",
        example="holdgate ca list --json",
        data=True,
    )
    add(
        ca,
        "rotate",
        _rotate,
        does="make the next CA and publish it beside the one that signs",
        example="holdgate ca rotate && holdgate trust --publish /run/holdgate/trust",
    )
    switching = add(
        ca,
        "switch",
        _switch,
        does="sign with the next CA from the next start or SIGHUP on",
        example="holdgate ca switch && systemctl reload holdgate",
    )
    switching.add_argument("--back", action="store_true", help="sign with the previous CA again")
    retiring = add(
        ca,
        "retire",
        _retire,
        does="stop trusting the previous CA and delete its key",
        example="holdgate ca retire && holdgate trust --publish /run/holdgate/trust",
    )
    for parser in (switching, retiring):
        parser.add_argument("--now", action="store_true", help="do not wait for `ca.overlap_h`")


def _list(args: argparse.Namespace) -> int:
    rows = [
        {
            "standing": state.standing.value,
            "since": f"{state.since:%Y-%m-%dT%H:%M:%SZ}",
            "not_after": f"{state.not_after:%Y-%m-%dT%H:%M:%SZ}",
            "permitted": None if state.permitted is None else list(state.permitted),
            "sha256": state.fingerprint,
        }
        for state in list_cas(config_of(args).state_dir)
    ]
    if args.json:
        print_json(rows)
    else:
        print_table(
            ("STANDING", "SINCE", "NOT AFTER", "NAMES", "SHA256"),
            [
                (
                    str(row["standing"]),
                    str(row["since"]),
                    str(row["not_after"]),
                    "every name" if row["permitted"] is None else " ".join(row["permitted"]),
                    str(row["sha256"])[:16],
                )
                for row in rows
            ],
        )
    return 0


def _rotate(args: argparse.Namespace) -> int:
    config = config_of(args)
    names = subtrees(active_bundle(config).index.hosts()) if config.ca.constrain else None
    rotate(config.state_dir, config.node, names)
    print(_ROTATED.format(hours=config.ca.overlap_h))
    return 0


def _switch(args: argparse.Namespace) -> int:
    config = config_of(args)
    switch(config.state_dir, _overlap(config), back=args.back, at_once=args.now)
    print("switched: send SIGHUP to every instance, or restart it; then wait, and `holdgate ca retire`")
    return 0


def _retire(args: argparse.Namespace) -> int:
    config = config_of(args)
    retire(config.state_dir, _overlap(config), at_once=args.now)
    print(
        "retired: give the roots out once more (holdgate trust), which also takes the old one out of stores"
    )
    return 0


def _overlap(config: Config) -> timedelta:
    return timedelta(hours=config.ca.overlap_h)
