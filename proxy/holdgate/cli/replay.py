"""`holdgate replay`: decide recorded inputs once more, under the bundles of their time."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

from ..adapters.admin.shapes import decode_jws
from ..adapters.bundle_store import load_kept
from ..adapters.sqlite_reader import SqliteReader
from ..errors import ConfigError
from ..policy_model import PolicySet
from ..replay import Record, Replayed, Verdict, replay
from .shared import Commands, add, config_of, first_index, print_json, whole_number

__all__ = ["policies_of", "register"]

_BUNDLES = 32  # kept in memory at once; a log seldom goes back and forth between more


def register(commands: Commands) -> None:
    parser = add(
        commands,
        "replay",
        _replay,
        does="decide recorded inputs again under their own bundles; every decision must come out the same",
        example="holdgate replay --since 2026-11-01T00:00:00Z",
        data=True,
    )
    parser.add_argument("ids", nargs="*", metavar="ID", help="receipts; without any, the whole log")
    parser.add_argument("--since", default="0", metavar="INDEX|TIME")
    parser.add_argument("--limit", type=whole_number, default=-1, metavar="N")


def _replay(args: argparse.Namespace) -> int:
    state_dir = config_of(args).state_dir
    counts: Counter[Verdict] = Counter()
    shown: list[Replayed] = []
    with SqliteReader(state_dir) as reader:
        records = _chosen(reader, args.ids) if args.ids else _logged(reader, args)
        for result in replay(records, policies_of(state_dir)):
            counts[result.verdict] += 1
            if args.ids or result.verdict in (Verdict.DIFFERENT, Verdict.NO_BUNDLE):
                shown.append(result)
                if not args.json:
                    _print(result)
    if args.json:
        print_json({"counts": {v.value: counts[v] for v in Verdict}, "receipts": [asdict(r) for r in shown]})
    else:
        print(", ".join(f"{counts[verdict]} {verdict.value}" for verdict in Verdict))
    return 1 if counts[Verdict.DIFFERENT] or counts[Verdict.NO_BUNDLE] else 0


def _print(result: Replayed) -> None:
    print(f"{result.id} {result.verdict.value}")
    print(f"  recorded  {result.recorded}")
    if result.now:
        print(f"  now       {result.now}")


def _chosen(reader: SqliteReader, ids: list[str]) -> Iterator[Record]:
    for receipt_id in ids:
        stored = reader.get(receipt_id)
        if stored is None or stored.type != "decision":
            raise ConfigError(f"no decision has the id {receipt_id}")
        yield from _records(reader, stored.index, 1)


def _logged(reader: SqliteReader, args: argparse.Namespace) -> Iterator[Record]:
    yield from _records(reader, first_index(reader, args.since), args.limit)


def _records(reader: SqliteReader, since_index: int, limit: int) -> Iterator[Record]:
    for jws, inputs, salt in reader.decisions(since_index, limit):
        yield Record(statement=decode_jws(jws), inputs=inputs, salt=salt)


def policies_of(state_dir: Path) -> Callable[[str], PolicySet | None]:
    """The policies of kept bundles, by digest; None, and a line that says why, for one that is not here."""

    @lru_cache(maxsize=_BUNDLES)
    def kept(digest: str) -> PolicySet | None:
        try:
            return load_kept(state_dir, digest).policies
        except ConfigError as error:
            print(error, file=sys.stderr)
            return None

    return kept
