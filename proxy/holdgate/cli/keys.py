"""`holdgate keys`: the keys that sign here; another one in their place; what others need to verify.

A change is a receipt in the log. The running instance writes it, and signs with the new key from the next
receipt on; where none runs, this process does.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Mapping
from typing import Any

from ..adapters.control import ask
from ..adapters.keyfiles import load_log_keys, load_public_keys
from ..adapters.keyring import KeyChange, Revocation, Rotation
from ..adapters.offline import offline_ledger
from ..adapters.proofs import key_changes
from ..config import Config
from ..keyhistory import Purpose
from ..keys import NEVER, PublicKey, jwks, trigguard_keys
from ..note import vkey
from .shared import Commands, add, config_of, group, print_json, print_table, whole_number

__all__ = ["register"]


def register(commands: Commands) -> None:
    keys = group(
        commands, "keys", does="list, rotate, revoke or export keys", example="holdgate keys rotate receipt"
    )
    add(
        keys,
        "list",
        _list,
        does="list the keys that sign or signed here, and where in the log each counts",
        example="holdgate keys list --json",
        data=True,
    )
    rotating = add(
        keys,
        "rotate",
        _rotate,
        does="sign with another key from now on, without a restart; the log names it, signed by the old one",
        example="holdgate keys rotate receipt",
        data=True,
    )
    rotating.add_argument("purpose", choices=tuple(Purpose), help="what the key signs")
    rotating.add_argument(
        "--key-id", default="", metavar="ID", help="a key of the signer process (default: a new key file)"
    )
    revoking = add(
        keys,
        "revoke",
        _revoke,
        does="a key was lost: what it signed counts no more from an index of the log on (rotate it first)",
        example="holdgate keys revoke 0Jk2... --from-index 4711",
        data=True,
    )
    revoking.add_argument("kid", metavar="KID")
    revoking.add_argument(
        "--from-index", type=whole_number, metavar="N", help="default: where the key was retired"
    )
    _register_export(keys)


def _register_export(keys: Commands) -> None:
    export = add(
        keys,
        "export",
        _export,
        does="print the public keys for verifiers",
        example="holdgate keys export > keys.json && holdgate verify --keys keys.json receipt.jws",
    )
    export.add_argument(
        "--format",
        choices=("jwks", "pem", "trigguard", "vkey", "changes"),
        default="jwks",
        help="receipt keys as jwks (default), pem or trigguard; vkey: the log's verifier key;"
        " changes: what leads from an earlier log key to the later ones (verify --log-changes)",
    )


def _list(args: argparse.Namespace) -> int:
    state_dir = config_of(args).state_dir
    rows = [
        _row(purpose, key)
        for purpose, keys in (
            (Purpose.RECEIPT, load_public_keys(state_dir)),
            (Purpose.LOG, load_log_keys(state_dir)),
        )
        for key in sorted(keys.values(), key=lambda key: (key.first_index, key.end_index))
    ]
    if args.json:
        print_json(rows)
    else:
        head = ("PURPOSE", "KID", "ACTIVE", "FROM", "TO", "REVOKED FROM")
        print_table(head, [tuple(_cell(value) for value in row.values()) for row in rows])
    return 0


def _row(purpose: Purpose, key: PublicKey) -> dict[str, Any]:
    retired, revoked = key.end_index != NEVER, key.revoked_from_index != NEVER
    return {
        "purpose": purpose.value,
        "kid": key.kid,
        "active": not retired,
        "from": key.first_index,
        "to": key.end_index - 1 if retired else None,
        "revoked_from": key.revoked_from_index if revoked else None,
    }


def _cell(value: str | int | None) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)


def _rotate(args: argparse.Namespace) -> int:
    config, purpose = config_of(args), Purpose(args.purpose)
    question = {"ask": "rotate", "purpose": purpose.value, "key_id": args.key_id}
    change = Rotation(purpose=purpose, key_id=args.key_id, by="local")
    return _change(args, config, question, change)


def _revoke(args: argparse.Namespace) -> int:
    question = {"ask": "revoke", "kid": args.kid, "from_index": args.from_index}
    return _change(
        args, config_of(args), question, Revocation(kid=args.kid, from_index=args.from_index, by="local")
    )


def _change(args: argparse.Namespace, config: Config, question: Mapping[str, Any], change: KeyChange) -> int:
    answer = ask(config.state_dir, question) or asyncio.run(_offline(config, change))
    if args.json:
        print_json(answer)
    else:
        print(f"done: leaf {answer['index']}, receipt {answer['id']}")
        print("publish the keys again where verifiers have a copy: holdgate keys export", file=sys.stderr)
    return 0


async def _offline(config: Config, change: KeyChange) -> Mapping[str, Any]:
    with offline_ledger(config) as ledger:
        noted = await ledger.change_key(change)
    return {"id": noted.receipt_id, "index": noted.index}


def _export(args: argparse.Namespace) -> int:
    config = config_of(args)
    public = load_public_keys(config.state_dir).values()
    match args.format:
        case "vkey":
            newest = [key for key in load_log_keys(config.state_dir).values() if key.end_index == NEVER]
            print("\n".join(vkey(config.issuer, key) for key in newest))
        case "changes":
            print(key_changes(config.state_dir).decode("utf-8"), end="")
        case "pem":
            print("".join(key.pem for key in public), end="")
        case "trigguard":
            print_json(trigguard_keys(config.issuer, public))
        case _:
            print_json(jwks(public))
    return 0
