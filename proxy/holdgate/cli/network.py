"""`holdgate network`: the nftables rules that force agents through the proxy, in this network namespace."""

from __future__ import annotations

import argparse
import sys

from ..adapters.network import apply, boundary, close, is_loaded, is_routed, is_there, remove
from ..network_rules import Boundary, render, render_closed, routing
from .shared import Commands, add, config_of, group, print_json

__all__ = ["register"]


def register(commands: Commands) -> None:
    network = group(
        commands,
        "network",
        does="force agents through the proxy with nftables rules (needs root, but for `print`)",
        example="holdgate network print; holdgate network up",
    )
    for name, run, does in (
        ("up", _up, "load the rules: agents reach the proxy and nothing else"),
        ("status", _status, "compare what is loaded with what `print` gives; exit 1 when it differs"),
        ("print", _print, "print the rules as an nftables script"),
    ):
        add(network, name, run, does=does, example=f"holdgate network {name}", data=name == "status")
    down = add(
        network,
        "down",
        _down,
        does="cut agents off: no proxy and no other network, until `up`",
        example="holdgate network down",
    )
    down.add_argument(
        "--open", action="store_true", help="remove the rules: agents reach everything directly"
    )


def _up(args: argparse.Namespace) -> int:
    wanted = boundary(config_of(args))
    apply(wanted)
    print(f"up: {_who(wanted)} reach the proxy and nothing else")
    return 0


def _down(args: argparse.Namespace) -> int:
    wanted = boundary(config_of(args))
    if args.open:
        remove()
        print(f"open: {_who(wanted)} reach everything that this machine reaches, past the proxy")
    else:
        close(wanted)
        print(f"closed: {_who(wanted)} have no network; `holdgate network down --open` removes the rules")
    return 0


def _status(args: argparse.Namespace) -> int:
    wanted = boundary(config_of(args))
    if is_loaded(render(wanted)):
        state = "up" if not wanted.diverts or is_routed() else "unrouted"
    elif is_loaded(render_closed(wanted)):
        state = "closed"
    else:
        state = "differs" if is_there() else "open"
    if args.json:
        print_json(
            {"state": state, "users": [list(pair) for pair in wanted.users], "interfaces": wanted.interfaces}
        )
    else:
        print(f"{state}: {_SAYS[state]}")
    return 0 if state == "up" else 1


_SAYS = {
    "up": "agents reach the proxy and nothing else",
    "unrouted": "the rules are loaded, and the route for diverted packets is not: agents have no network; "
    "`holdgate network up` sets it",
    "closed": "agents have no network; `holdgate network up` gives them the proxy",
    "differs": "the loaded rules are not those of this configuration; `holdgate network up` replaces them",
    "open": "no rules are loaded: agents reach everything directly",
}


def _print(args: argparse.Namespace) -> int:
    wanted = boundary(config_of(args))
    if wanted.diverts:
        sys.stdout.write("# Before these rules, and for `up` to do:\n")
        for family in (4, 6):
            sys.stdout.write("".join(f"#   ip {line}\n" for line in routing(family=family)))
    sys.stdout.write(render(wanted))
    return 0


def _who(wanted: Boundary) -> str:
    users = [str(first) if first == last else f"{first}-{last}" for first, last in wanted.users]
    parts = ["uid " + ", ".join(users)] if users else []
    return " and ".join([*parts, *(f"whoever is behind {name}" for name in wanted.interfaces)])
