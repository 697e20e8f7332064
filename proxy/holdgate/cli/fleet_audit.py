"""`holdgate log audit --fleet`: the logs of all nodes of a PostgreSQL store, compared with each other."""

from __future__ import annotations

import argparse
import gc
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..adapters.keyfiles import list_problems, load_log_keys, load_public_keys
from ..adapters.open_reader import whole_fleet
from ..adapters.proofs import change_problems
from ..adapters.sequencer import CHECKPOINT, LOG
from ..adapters.tilestore import TileStore
from ..adapters.verifying import verifying_for
from ..audit_fleet import NOTHING_KEPT, FleetInput, FleetReport, Kept, audit_fleet
from ..config import Config
from ..errors import ConfigError
from ..note import Checkpoint
from .one_moment import of_one_moment, retired
from .progress import Progress
from .shared import print_json, say
from .verify import read_keys

__all__ = ["audit_all"]

if TYPE_CHECKING:  # asyncpg is an extra
    from ..adapters.postgres_reader import PostgresReader


def audit_all(args: argparse.Namespace, config: Config, earlier: tuple[Checkpoint, ...]) -> int:
    """The exit code. `earlier` are checkpoints of this node. Raises ConfigError."""
    elsewhere = _named(args.state, "--state").items()
    directories = {config.node: config.state_dir} | {name: Path(place) for name, place in elsewhere}
    lists = _named(args.keys, "--keys")
    gc.disable()  # as of one log
    if twice := sorted(lists.keys() & directories.keys()):
        raise ConfigError(f"--keys {twice[0]}: its state directory has its keys already")
    with whole_fleet(config) as reader:
        begun = partial(_begun, reader, directories, lists)
        given, kept, wrong = of_one_moment(begun, reader.end_audit)
        if strangers := sorted(kept.keys() - {name for name, _ in given.heads}):
            raise ConfigError(f"no node {strangers[0]} is in the ledger")
        kept[config.node] = replace(kept[config.node], earlier=earlier)
        size = sum(head.size for _, head in given.heads)
        with Progress("audit", size, "receipts") as progress:
            report = audit_fleet(given, kept, progress=progress.show, verifying=verifying_for(size))
        reader.end_audit()
    gc.enable()
    report = replace(report, problems=(*report.problems, *wrong))
    if args.json:
        print_json(asdict(report) | {"clean": report.is_clean})
    else:
        _print(report)
    return 0 if report.is_clean else 1


def _named(words: list[str], option: str) -> dict[str, str]:
    """NODE=PLACE of a repeated option."""
    found: dict[str, str] = {}
    for word in words:
        name, _, place = word.partition("=")
        if not name or not place or name in found:
            raise ConfigError(f"{option} is NODE=PLACE, once for each node; not {word!r}")
        found[name] = place
    return found


type _Begun = tuple[FleetInput, dict[str, Kept], tuple[str, ...]]


def _begun(
    reader: PostgresReader, directories: dict[str, Path], lists: dict[str, str]
) -> tuple[_Begun, bool]:
    """A snapshot, what else is at hand of each node, what is wrong with that; whether all fit together."""
    # Read before the snapshot, so that the database can only be ahead of them.
    notes = {name: _checkpoint(folder) for name, folder in directories.items()}
    given = reader.fleet_input()
    kept = {name: _kept(folder, notes[name]) for name, folder in directories.items()}
    for name, place in lists.items():
        kept[name] = replace(NOTHING_KEPT, receipt_keys=read_keys(place))
    wrong = tuple(_wrong_lists(given, directories, kept))
    sets = [keys for own in kept.values() for keys in (own.receipt_keys, own.log_keys)]
    known = {kid for keys in sets for kid in keys}
    fits = not wrong and {each for each in reader.retired_keys() if each[0] in known} == retired(*sets)
    return (given, kept, wrong), fits


def _checkpoint(folder: Path) -> bytes:
    try:
        return (folder / CHECKPOINT).read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read: {error.strerror}", file=str(folder / CHECKPOINT)) from error


def _kept(folder: Path, note: bytes) -> Kept:
    return Kept(
        receipt_keys=load_public_keys(folder),
        log_keys=load_log_keys(folder),
        checkpoint=note,
        tiles=TileStore(folder / LOG),
    )


def _wrong_lists(given: FleetInput, directories: dict[str, Path], kept: dict[str, Kept]) -> Iterator[str]:
    for name, head in given.heads:
        if (folder := directories.get(name)) is not None:
            own = kept[name]
            changes = change_problems(folder, head.origin, own.receipt_keys, own.log_keys)
            yield from (f"{name}: {text}" for text in (*list_problems(folder), *changes))


def _print(report: FleetReport) -> None:
    for problem in report.problems:
        say(f"PROBLEM {problem}")
    for node in report.nodes:
        print(f"{node.node}: {node.size} receipts, {node.signed} under the checkpoint, root {node.root}")
        for note in node.notes:
            say(f"  note: {note}")
    print(
        f"{report.permits} permits, {report.outcomes} outcomes, {report.admin} admin,"
        f" {report.inputs} recorded inputs, {report.destroyed} destroyed by order"
    )
    print("clean, as far as it was verified" if report.is_clean else f"{len(report.problems)} problems")
