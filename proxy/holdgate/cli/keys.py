"""`holdgate keys`: the public keys that others need in order to verify receipts and the log."""

from __future__ import annotations

import argparse

from ..adapters.keyfiles import load_keys, load_public_keys
from ..keys import jwks, trigguard_keys
from ..note import vkey
from .shared import Commands, add, config_of, group, print_json, print_table

__all__ = ["register"]


def register(commands: Commands) -> None:
    keys = group(commands, "keys", does="list or export public keys", example="holdgate keys list")
    add(
        keys,
        "list",
        _list,
        does="list the keys that sign here",
        example="holdgate keys list --json",
        data=True,
    )
    export = add(
        keys,
        "export",
        _export,
        does="print the public keys for verifiers",
        example="holdgate keys export > keys.json && holdgate verify --keys keys.json receipt.jws",
    )
    export.add_argument(
        "--format",
        choices=("jwks", "pem", "trigguard", "vkey"),
        default="jwks",
        help="receipt keys as jwks (default), pem or trigguard; vkey: the log's verifier key",
    )


def _list(args: argparse.Namespace) -> int:
    config = config_of(args)
    keys, known = load_keys(config.state_dir), load_public_keys(config.state_dir)
    rows = [
        {"purpose": "receipt", "kid": kid, "active": kid == keys.receipt.kid} for kid in sorted(known)
    ] + [{"purpose": "log", "kid": keys.log.kid, "active": True}]
    if args.json:
        print_json(rows)
    else:
        print_table(
            ("PURPOSE", "KID", "ACTIVE"),
            [(str(r["purpose"]), str(r["kid"]), "yes" if r["active"] else "no") for r in rows],
        )
    return 0


def _export(args: argparse.Namespace) -> int:
    config = config_of(args)
    public = load_public_keys(config.state_dir).values()
    match args.format:
        case "vkey":
            print(vkey(config.issuer, load_keys(config.state_dir).log.public))
        case "pem":
            print("".join(key.pem for key in public), end="")
        case "trigguard":
            print_json(trigguard_keys(config.issuer, public))
        case _:
            print_json(jwks(public))
    return 0
