"""`holdgate backtest`: what another bundle would have decided about what was recorded."""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Iterator, Mapping
from itertools import batched
from pathlib import Path
from typing import Any

import orjson

from ..adapters.bundle_load import load_folder
from ..adapters.open_reader import open_reader
from ..adapters.reader import Reader
from ..backtest import NotReplayed, backtest
from ..backtest_report import Change, Report
from ..bundle import Bundle
from ..errors import ConfigError
from ..keys import unb64url
from ..policy_model import PolicySet
from ..replay import Record
from .progress import Progress
from .replay import policies_of
from .shared import Commands, add, config_of, first_index, print_json, say

__all__ = ["backtest_of", "register"]

_TOGETHER = 64  # rows that are decoded step by step: what a step runs stays near the processor
_FLIPS = tuple(change.value for change in Change if change is not Change.SAME)


def register(commands: Commands) -> None:
    parser = add(
        commands,
        "backtest",
        _backtest,
        does="decide what was recorded under another bundle, and show what would have come out otherwise",
        example="holdgate backtest --bundle release-8 --since 2026-11-01T00:00:00Z --fail-on newly-permitted",
        data=True,
    )
    parser.add_argument(
        "--bundle", type=Path, required=True, metavar="DIR", help="a bundle, or surfaces/ and policies/"
    )
    parser.add_argument("--since", default="0", metavar="INDEX|TIME")
    parser.add_argument("--until", metavar="INDEX|TIME", help="not included")
    parser.add_argument(
        "--fail-on", choices=_FLIPS, action="append", default=[], help="exit 1 where there are any"
    )
    parser.add_argument("--accept", metavar="DIGEST", help="of a report: its flips are known and wanted")


def _backtest(args: argparse.Namespace) -> int:
    config = config_of(args)
    state_dir = config.state_dir
    new = load_folder(args.bundle)
    with open_reader(config) as reader:
        first = first_index(reader, args.since)
        end = reader.size if args.until is None else first_index(reader, args.until)
        with Progress("backtest", reader.size, "decisions") as progress:
            try:
                report = backtest_of(
                    reader, policies_of(state_dir), new, first=first, end=end, progress=progress.show
                )
            except NotReplayed as error:
                raise ConfigError(f"{error}; see `holdgate replay`: nothing was compared") from error
    failing = [name for name in args.fail_on if report.count(Change(name))]
    is_accepted = args.accept == report.digest
    if args.json:
        print_json({**report.document(), "digest": report.digest, "accepted": is_accepted})
    else:
        _print(report)
        if failing and not is_accepted:
            print(f"fails on {', '.join(failing)}; where that is wanted: --accept {report.digest}")
    return 1 if failing and not is_accepted else 0


def backtest_of(
    reader: Reader,
    policies_of: Callable[[str], PolicySet | None],
    new: Bundle,
    *,
    first: int = 0,
    end: int = 2**62,
    progress: Callable[[int], None] = lambda _: None,
) -> Report:
    """Over the decisions of a ledger, from one index up to another. Raises NotReplayed, ConfigError."""
    gc.freeze()  # bundles are hundreds of thousands of objects, which no collection needs to go through
    return backtest(
        _records(reader, first, end),
        policies_of,
        new,
        without_effect=reader.without_effect,
        progress=progress,
    )


def _records(reader: Reader, first: int, end: int) -> Iterator[Record]:
    for rows in batched(reader.decisions(first, until=end), _TOGETHER):
        # header.payload.signature; the signature is `log audit`'s to look at
        parts = [unb64url(jws[jws.index(b".") + 1 : jws.rindex(b".")]) for jws, _, _ in rows]
        said: list[Mapping[str, Any]] = [orjson.loads(part) for part in parts]
        for statement, (_, inputs, salt) in zip(said, rows, strict=True):
            yield Record(statement=statement, inputs=inputs, salt=salt)


def _print(report: Report) -> None:
    print(f"{report.records} decisions, {report.replayed} replayed identically, {report.not_asked} not asked")
    _print_tally("frozen counters", report.frozen)
    if report.resimulated == report.frozen:
        print("resimulated counters: the same")
    else:
        _print_tally("resimulated counters", report.resimulated)
    print("what agents would have sent instead is not known")
    print(f"report {report.digest}")


def _print_tally(title: str, tally: Mapping[str, Any]) -> None:
    counts = ", ".join(f"{count} {name}" for name, count in tally["counts"].items())
    print(f"{title}: {counts}")
    for why, count in tally["undecidable"].items():
        say(f"  undecidable {count}: {why}")
    for row in tally["flips"]:
        money = "".join(f", {total} {name}".rstrip() for name, total in row["money"].items())
        say(f"  {row['change']} {row['surface']} {row['rule']} {row['agent']}: {row['count']}{money}")
        print(f"    {' '.join(row['examples'])}")
