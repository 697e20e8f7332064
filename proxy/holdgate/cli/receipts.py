"""`holdgate receipts`: what is in the ledger, whether or not the proxy runs."""

from __future__ import annotations

import argparse

from ..adapters.admin.shapes import decode_jws, export_row
from ..adapters.open_reader import fleet_reader
from ..adapters.reader import StoredReceipt
from ..errors import ConfigError, Outcome
from ..statement import format_us
from .export import register_export
from .forget import register_disclose, register_shred
from .shared import (
    Commands,
    add,
    add_node,
    config_of,
    group,
    print_json,
    print_table,
    time_us,
    whole_number,
)

__all__ = ["register"]


def register(commands: Commands) -> None:
    receipts = group(
        commands,
        "receipts",
        does="list, show, export, disclose or shred receipts",
        example="holdgate receipts list --outcome DENY",
    )
    _register_list(receipts)
    _register_show(receipts)
    register_export(receipts)
    register_disclose(receipts)
    register_shred(receipts)


def _register_list(receipts: Commands) -> None:
    listing = add(
        receipts,
        "list",
        _list,
        does="list receipts, newest first",
        example="holdgate receipts list --agent local-agent --outcome SILENCE --limit 20",
        data=True,
    )
    listing.add_argument("--agent", default="", metavar="ID")
    listing.add_argument("--surface", default="", metavar="NAME")
    listing.add_argument("--outcome", default="", choices=tuple(Outcome))
    listing.add_argument("--since", default="", metavar="TIME", help="such as 2026-11-21T08:00:00Z")
    listing.add_argument("--limit", type=whole_number, default=50, metavar="N")
    listing.add_argument("--cursor", type=whole_number, metavar="N", help="`next` of the page before")
    add_node(listing)


def _register_show(receipts: Commands) -> None:
    show = add(
        receipts,
        "show",
        _show,
        does="show one receipt",
        example="holdgate receipts show rcpt_01JC...",
        data=True,
    )
    show.add_argument("id", metavar="ID")
    show.add_argument("--raw", action="store_true", help="print the JWS as it was signed")
    add_node(show)


def _list(args: argparse.Namespace) -> int:
    with fleet_reader(config_of(args), args.node) as reader:
        page = reader.list(
            agent=args.agent,
            surface=args.surface,
            outcome=args.outcome,
            since_us=time_us(args.since) if args.since else 0,
            limit=args.limit,
            cursor=args.cursor,
        )
    if args.json:
        print_json({"receipts": [export_row(stored) for stored in page.receipts], "next": page.next})
    else:
        head = ("INDEX", "TIME", "ID", "TYPE", "OUTCOME", "REASON", "AGENT", "SURFACE")
        print_table(head, [_cells(stored) for stored in page.receipts])
        if page.next is not None:
            print(f"more: --cursor {page.next}")
    return 0


def _cells(stored: StoredReceipt) -> tuple[str, ...]:
    return (
        str(stored.index),
        format_us(stored.iat_us),
        stored.id,
        stored.type,
        stored.outcome or "-",
        stored.reason,
        stored.agent or "-",
        stored.surface or "-",
    )


def _show(args: argparse.Namespace) -> int:
    with fleet_reader(config_of(args), args.node) as reader:
        stored = reader.get(args.id)
        state = reader.state_of(args.id)
    if stored is None:
        raise ConfigError(f"no receipt has the id {args.id}")
    if args.raw:
        print(stored.jws.decode("ascii"))
    elif args.json:
        print_json(export_row(stored))
    else:
        print_json(decode_jws(stored.jws))
        print(f"log index {stored.index}" + (f", state {state.value}" if state else ""))
    return 0
