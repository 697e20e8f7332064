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
from ..adapters.open_reader import fleet_reader, nodes, open_reader
from ..adapters.reader import Reader
from ..config import Config
from ..errors import ConfigError
from ..policy_model import PolicySet
from ..replay import Record, Replayed, Verdict, replay
from .shared import Commands, add, add_node, config_of, first_index, print_json, say, whole_number

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
    parser.add_argument("--limit", type=whole_number, default=-1, metavar="N", help="of one log")
    add_node(parser)


def _replay(args: argparse.Namespace) -> int:
    config = config_of(args)
    state_dir = config.state_dir
    counts: Counter[Verdict] = Counter()
    shown: list[Replayed] = []
    for result in replay(_recorded(config, args), policies_of(state_dir)):
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
    say(f"{result.id} {result.verdict.value}")
    say(f"  recorded  {result.recorded}")
    if result.now:
        say(f"  now       {result.now}")


def _recorded(config: Config, args: argparse.Namespace) -> Iterator[Record]:
    """The receipts that are named, or log after log."""
    if args.ids:
        with fleet_reader(config, args.node) as reader:
            for receipt_id in args.ids:
                yield _chosen(reader, receipt_id)
        return
    for node in nodes(config, args.node):
        with open_reader(config, node) as reader:
            yield from _records(reader, first_index(reader, args.since), args.limit)


def _chosen(reader: Reader, receipt_id: str) -> Record:
    decided = reader.decided(receipt_id)
    if decided is None:
        raise ConfigError(f"no decision has the id {receipt_id}")
    jws, inputs, salt = decided
    return Record(statement=decode_jws(jws), inputs=inputs, salt=salt)


def _records(reader: Reader, since_index: int, limit: int) -> Iterator[Record]:
    for jws, inputs, salt in reader.decisions(since_index, limit):
        yield Record(statement=decode_jws(jws), inputs=inputs, salt=salt)


def policies_of(state_dir: Path) -> Callable[[str], PolicySet | None]:
    """The policies of kept bundles, by digest; None, and a line that says why, for one that is not here."""

    @lru_cache(maxsize=_BUNDLES)
    def kept(digest: str) -> PolicySet | None:
        try:
            return load_kept(state_dir, digest).policies
        except ConfigError as error:
            say(error, file=sys.stderr)
            return None

    return kept
