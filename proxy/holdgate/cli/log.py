"""`holdgate log`: the signed head of the log, proofs for strangers, and a re-verification of everything."""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from ..adapters.anchoring import COSIGNED, STAMPS
from ..adapters.keyfiles import list_problems, load_log_keys, load_public_keys
from ..adapters.open_reader import open_reader
from ..adapters.proofs import NotCovered, change_problems, prove, prove_consistency
from ..adapters.reader import Reader
from ..adapters.sequencer import CHECKPOINT
from ..adapters.timestamps import StampError, read_roots, stamped_at
from ..adapters.verifying import verifying_for
from ..audit import AuditInput, AuditReport, audit
from ..errors import ConfigError
from ..keys import KeySet
from ..note import Checkpoint, verify_log
from ..tlog import TlogError
from .fleet_audit import audit_all
from .one_moment import of_one_moment, retired
from .progress import Progress
from .shared import Commands, add, config_of, group, print_json, say

__all__ = ["register"]

_COVERED_S = 2.0
_UNSEEN = "no earlier checkpoint was given (--since-checkpoint): a roll-back of everything cannot be seen"

_FLEET = "one node's log: counters, and what other nodes did to its permits and claims, need --fleet"


def register(commands: Commands) -> None:
    log = group(commands, "log", does="checkpoint, proofs and audit of the log", example="holdgate log audit")
    add(
        log,
        "checkpoint",
        _checkpoint,
        does="print the signed checkpoint (a C2SP note); keep copies elsewhere",
        example="holdgate log checkpoint > checkpoint-$(date +%F).txt",
    )
    _register_prove(log)
    _register_audit(log)


def _register_prove(log: Commands) -> None:
    proving = add(
        log,
        "prove",
        _prove,
        does="print a proof that a receipt is in the log, or that the log only grew since a checkpoint",
        example="holdgate log prove rcpt_01JC... > refund.tlog-proof",
    )
    what = proving.add_mutually_exclusive_group(required=True)
    witnessed = "under the checkpoint that witnesses cosigned last"
    proving.add_argument("--witnessed", action="store_true", help=witnessed)
    what.add_argument("id", nargs="?", metavar="ID", help="a receipt: prints a c2sp.org/tlog-proof")
    what.add_argument(
        "--since-checkpoint",
        type=Path,
        metavar="FILE",
        help="an earlier checkpoint: prints a c2sp.org/tlog-witness add-checkpoint request",
    )


def _register_audit(log: Commands) -> None:
    auditing = add(
        log,
        "audit",
        _audit,
        does="verify every receipt, signature, tile, claim, outcome and input against the checkpoint",
        example="holdgate log audit --since-checkpoint checkpoint-2026-11-20.txt",
        data=True,
    )
    auditing.add_argument(
        "--timestamps", type=Path, metavar="ROOTS", help="verify the time stamps under these roots (PEM) too"
    )
    auditing.add_argument("--since-checkpoint", type=Path, metavar="FILE", help="an earlier checkpoint")
    auditing.add_argument(
        "--fleet",
        action="store_true",
        help="all nodes of a PostgreSQL store together: claims, counters, and what they did to each other's",
    )
    auditing.add_argument(
        "--state",
        action="append",
        default=[],
        metavar="NODE=DIR",
        help="with --fleet: the state directory of another node, or a copy: keys, checkpoint and tiles",
    )
    auditing.add_argument(
        "--keys",
        action="append",
        default=[],
        metavar="NODE=JWKS",
        help="with --fleet: a file or URL with the receipt keys of a node whose state directory is elsewhere",
    )


def _checkpoint(args: argparse.Namespace) -> int:
    with open_reader(config_of(args)) as reader:
        print(reader.checkpoint().decode("utf-8"), end="")
    return 0


def _prove(args: argparse.Namespace) -> int:
    config = config_of(args)
    state_dir = config.state_dir
    if args.since_checkpoint:
        text = prove_consistency(state_dir, _bytes(args.since_checkpoint))
    else:
        with open_reader(config) as reader:
            stored = reader.get(args.id)
        if stored is None:
            raise ConfigError(f"no receipt has the id {args.id}")
        note = COSIGNED if args.witnessed else CHECKPOINT
        text = _when_covered(state_dir, stored.index, stored.jws, note)
    sys.stdout.write(text.decode("utf-8"))
    return 0


def _when_covered(state_dir: Path, index: int, jws: bytes, note: Path) -> bytes:
    """The proof, after the checkpoint that a running instance is about to sign."""
    until = time.monotonic() + _COVERED_S
    while True:
        try:
            return prove(state_dir, index, jws, note=note)
        except NotCovered:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def _audit(args: argparse.Namespace) -> int:
    config = config_of(args)
    origin = config.issuer
    if args.fleet:
        if args.timestamps:
            raise ConfigError("--timestamps is of one node's log: leave --fleet out")
        since = args.since_checkpoint
        return audit_all(
            args, config, (_earlier(since, origin, load_log_keys(config.state_dir)),) if since else ()
        )
    if args.state or args.keys:
        raise ConfigError("--state and --keys go with --fleet")
    gc.disable()  # a million receipts have no cycles, and looking for some is a tenth of the work
    with open_reader(config) as reader, Progress("audit", reader.size, "receipts") as progress:
        given, keys, log_keys, published = _begun(reader, config.state_dir, origin)
        earlier = [_earlier(args.since_checkpoint, origin, log_keys)] if args.since_checkpoint else []
        stamped, wrong = _stamped(config.state_dir, args.timestamps, origin, log_keys)
        report = audit(
            given,
            origin=origin,
            receipt_keys=keys,
            log_keys=log_keys,
            earlier=[*earlier, *stamped],
            progress=progress.show,
            verifying=verifying_for(reader.size),
        )
        reader.end_audit()
        problems = (*report.problems, *published, *wrong, *reader.integrity_problems())
    gc.enable()
    report = replace(report, problems=problems)
    notes = [*(() if earlier or stamped else (_UNSEEN,)), *(() if config.store is None else (_FLEET,))]
    if args.timestamps:
        notes.append(f"{len(stamped) + len(wrong)} time stamps are kept here, and {len(stamped)} verify")
    if args.json:
        print_json(asdict(report) | {"clean": report.is_clean, "notes": notes})
    else:
        _print(report, notes)
    return 0 if report.is_clean else 1


type _Begun = tuple[AuditInput, KeySet, KeySet, tuple[str, ...]]


def _begun(reader: Reader, state_dir: Path, origin: str) -> _Begun:
    """One moment of the log, its lists of keys, and what is wrong with those."""

    def look() -> tuple[_Begun, bool]:
        given = reader.audit_input()
        keys, log_keys = load_public_keys(state_dir), load_log_keys(state_dir)
        problems = (*list_problems(state_dir), *change_problems(state_dir, origin, keys, log_keys))
        fits = not problems and reader.retired_keys() == retired(keys, log_keys)
        return (given, keys, log_keys, problems), fits

    return of_one_moment(look, reader.end_audit)


def _stamped(
    state_dir: Path, roots: Path | None, origin: str, log_keys: KeySet
) -> tuple[list[Checkpoint], list[str]]:
    """The checkpoints whose time stamps verify, and what is wrong with the others."""
    found: list[Checkpoint] = []
    wrong: list[str] = []
    if roots is None:
        return found, wrong
    read_roots(roots)  # also where there is no stamp to verify
    for path in sorted((state_dir / STAMPS).glob("*.tsr")):
        try:
            note = _bytes(path.with_suffix(".checkpoint"))
            stamped_at(_bytes(path), note, roots)
            found.append(verify_log(note, origin, log_keys))
        except (TlogError, StampError) as error:
            wrong.append(f"{path.name}: {error}")
    return found, wrong


def _print(report: AuditReport, notes: Sequence[str]) -> None:
    for problem in report.problems:
        say(f"PROBLEM {problem}")
    print(f"{report.size} receipts, {report.signed} under the checkpoint, root {report.root}")
    print(
        f"{report.permits} permits, {report.outcomes} outcomes, {report.admin} admin,"
        f" {report.inputs} recorded inputs, {report.destroyed} destroyed by order"
    )
    for note in notes:
        say(f"note: {note}")
    print("clean" if report.is_clean else f"{len(report.problems)} problems")


def _earlier(path: Path, origin: str, log_keys: KeySet) -> Checkpoint:
    try:
        return verify_log(_bytes(path), origin, log_keys)
    except TlogError as error:
        raise ConfigError(str(error), file=str(path)) from error


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read: {error.strerror}", file=str(path)) from error
