"""`holdgate receipts shred|disclose`: take away what makes a receipt say more, or give it to somebody.

Both leave a signed receipt in the log, durable before anything is destroyed or shown.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from typing import Any, Final

from ..adapters.admin.shapes import decode_jws
from ..adapters.control import ask
from ..adapters.forgetting import Forgetter, Forgotten
from ..adapters.offline import offline_ledger
from ..adapters.open_reader import open_reader
from ..config import Config
from ..erasure import MAX_IDS, SHRED, Erasure
from ..errors import ConfigError
from ..ledger import AdminNote
from ..sealing import SealError
from .shared import Commands, add, config_of, print_json, time_us

__all__ = ["register_disclose", "register_shred"]

DISCLOSE: Final = "disclose"


def register_shred(receipts: Commands) -> None:
    shred = add(
        receipts,
        "shred",
        _shred,
        does="destroy the recorded input, its key and the salt of decisions; their receipts stay valid",
        example="holdgate receipts shred rcpt_01JC...\n"
        "  holdgate receipts shred --surface ehr.read --before 2026-01-01T00:00:00Z --dry-run",
        data=True,
    )
    shred.add_argument("ids", nargs="*", metavar="ID", help="decisions; or name them by the options")
    shred.add_argument("--agent", default="", metavar="ID")
    shred.add_argument("--surface", default="", metavar="NAME", help="surface of the first action")
    shred.add_argument("--before", default="", metavar="TIME", help="such as 2026-01-01T00:00:00Z")
    shred.add_argument("--dry-run", action="store_true", help="say how many, destroy nothing")
    shred.add_argument("--yes", action="store_true", help="needed with options instead of ids")


def register_disclose(receipts: Commands) -> None:
    disclose = add(
        receipts,
        "disclose",
        _disclose,
        does="print the salt of a receipt, for a verifier who has the request (`verify --disclosure`);"
        " a receipt says that it was shown",
        example="holdgate receipts disclose rcpt_01JC... > disclosure.json",
    )
    disclose.add_argument("id", metavar="ID")


def _shred(args: argparse.Namespace) -> int:
    config = config_of(args)
    orders = list(_orders(args))
    _check_ids(config, args.ids)
    counts = _counts(config, orders)
    if args.dry_run or (not args.ids and not args.yes):
        _print(args, config, Forgotten(count=sum(counts), receipt_id="", out_of_files=True), [], dry=True)
        if args.dry_run:
            return 0
        raise ConfigError("an order by agent, surface or time needs --yes")
    done = _forget(config, orders)
    total = Forgotten(
        count=sum(one.count for one in done),
        receipt_id="",
        out_of_files=all(one.out_of_files for one in done),
    )
    _print(args, config, total, [one.receipt_id for one in done if one.receipt_id])
    return 0 if total.out_of_files else 1


def _orders(args: argparse.Namespace) -> Iterator[Erasure]:
    named = Erasure(
        action=SHRED,
        ids=frozenset(args.ids[:MAX_IDS]),
        agent=args.agent,
        surface=args.surface,
        before_us=time_us(args.before, "--before") if args.before else 0,
    )
    yield named
    for start in range(MAX_IDS, len(args.ids), MAX_IDS):
        yield replace(named, ids=frozenset(args.ids[start : start + MAX_IDS]))


def _check_ids(config: Config, ids: list[str]) -> None:
    with open_reader(config) as reader:
        for receipt_id in ids:
            stored = reader.get(receipt_id)
            if stored is None or stored.type != "decision":
                raise ConfigError(f"no decision has the id {receipt_id}")


def _counts(config: Config, orders: list[Erasure]) -> list[int]:
    with open_reader(config) as reader:
        return [reader.count_kept(order) for order in orders]


def _forget(config: Config, orders: list[Erasure]) -> list[Forgotten]:
    """By the running process; where none runs, by this one."""
    done = []
    for order in orders:
        question = {"ask": "forget"} | {k: v for k, v in asdict(order).items() if v and k != "action"}
        question |= {"ids": sorted(order.ids)} if order.ids else {}
        answer = ask(config.state_dir, question)
        if answer is None:
            return asyncio.run(_forget_here(config, orders))
        done.append(Forgotten(**answer))
    return done


async def _forget_here(config: Config, orders: list[Erasure]) -> list[Forgotten]:
    with offline_ledger(config) as ledger:
        forgetter = Forgetter(partial(open_reader, config), ledger)
        return [await forgetter.forget(order, by="local") for order in orders]


def _print(
    args: argparse.Namespace, config: Config, done: Forgotten, receipts: list[str], *, dry: bool = False
) -> None:
    if args.json:
        print_json({"decisions": done.count, "receipts": receipts, "out_of_files": done.out_of_files})
        return
    if not done.count:
        print("nothing is kept of them: it was destroyed before, or never there")
        return
    print(f"{'would destroy' if dry else 'destroyed'} what is kept of {done.count} decisions")
    for receipt_id in receipts:
        print(f"receipt {receipt_id}")
    if not done.out_of_files:
        print(
            "PostgreSQL keeps older versions of these rows until VACUUM, and in its write-ahead log, standbys"
            " and backups"
            if config.store is not None
            else "older pages are still in ledger.db-wal: another program reads the ledger; try again later"
        )


def _disclose(args: argparse.Namespace) -> int:
    config = config_of(args)
    with open_reader(config) as reader:
        receipt, stored = reader.get(args.id), reader.stored(args.id)
    if receipt is None:
        raise ConfigError(f"no receipt has the id {args.id}")
    statement = decode_jws(receipt.jws)
    if "commitment" not in statement.get("request", {}):
        raise ConfigError("this receipt has no commitment: its operation is not `sensitive`")
    if stored is None or not stored.has_salt:
        raise ConfigError("the salt of this receipt was destroyed")
    try:
        kept = stored.open(args.id)
    except SealError as error:
        raise ConfigError(f"{error}; see `holdgate log audit`") from error
    noted = _note_disclosure(config, args.id)
    said: dict[str, Any] = {"receipt": args.id, "salt": stored.salt.hex()}
    if kept is not None:
        said["target"] = kept.target.decode("latin-1")
    print_json(said)
    print(f"recorded as {noted}", file=sys.stderr)
    return 0


def _note_disclosure(config: Config, receipt_id: str) -> str:
    """Record that the salt is shown; the id of that receipt. By the running process, or by this one. Raises
    BackendError, ConfigError: then nothing is shown."""
    question = {"ask": "note", "action": DISCLOSE, "details": {"of": receipt_id}}
    answer = ask(config.state_dir, question)
    if answer is not None:
        return str(answer["id"])
    return asyncio.run(_note_here(config, AdminNote(action=DISCLOSE, by="local", details={"of": receipt_id})))


async def _note_here(config: Config, note: AdminNote) -> str:
    with offline_ledger(config) as ledger:
        return (await ledger.note(note)).receipt_id
