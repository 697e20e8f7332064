"""`holdgate log`: the signed head of the log, and a re-verification of everything in it."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from ..adapters.keyfiles import load_keys, load_public_keys
from ..adapters.sqlite_reader import SqliteReader
from ..audit import AuditReport, audit
from ..errors import ConfigError
from ..keys import PublicKey
from ..tlog import Checkpoint, TlogError, verify_checkpoint
from .shared import Commands, add, config_of, group, print_json

__all__ = ["register"]

_UNSEEN = "no earlier checkpoint was given (--since-checkpoint): a roll-back of everything cannot be seen"


def register(commands: Commands) -> None:
    log = group(commands, "log", does="checkpoint and audit of the log", example="holdgate log audit")
    add(
        log,
        "checkpoint",
        _checkpoint,
        does="print the signed checkpoint (a C2SP note); keep copies elsewhere",
        example="holdgate log checkpoint > checkpoint-$(date +%F).txt",
    )
    auditing = add(
        log,
        "audit",
        _audit,
        does="verify every receipt, signature, claim, outcome and recorded input against the checkpoint",
        example="holdgate log audit --since-checkpoint checkpoint-2026-11-20.txt",
        data=True,
    )
    auditing.add_argument("--since-checkpoint", type=Path, metavar="FILE", help="an earlier checkpoint")


def _checkpoint(args: argparse.Namespace) -> int:
    with SqliteReader(config_of(args).state_dir) as reader:
        print(reader.checkpoint().decode("utf-8"), end="")
    return 0


def _audit(args: argparse.Namespace) -> int:
    config = config_of(args)
    origin, log_key = config.issuer, load_keys(config.state_dir).log.public
    earlier = _earlier(args.since_checkpoint, origin, log_key) if args.since_checkpoint else None
    with SqliteReader(config.state_dir) as reader:
        report = audit(
            reader.audit_input(),
            origin=origin,
            receipt_keys=load_public_keys(config.state_dir),
            log_key=log_key,
            earlier=earlier,
        )
        reader.end_audit()
    notes = () if earlier is not None else (_UNSEEN,)
    if args.json:
        print_json(asdict(report) | {"clean": report.is_clean, "notes": notes})
    else:
        _print(report, notes)
    return 0 if report.is_clean else 1


def _print(report: AuditReport, notes: tuple[str, ...]) -> None:
    for problem in report.problems:
        print(f"PROBLEM {problem}")
    print(f"{report.size} receipts, {report.signed} under the checkpoint, root {report.root}")
    print(
        f"{report.permits} permits, {report.outcomes} outcomes, {report.admin} admin,"
        f" {report.inputs} recorded inputs"
    )
    for note in notes:
        print(f"note: {note}")
    print("clean" if report.is_clean else f"{len(report.problems)} problems")


def _earlier(path: Path, origin: str, log_key: PublicKey) -> Checkpoint:
    try:
        return verify_checkpoint(path.read_bytes(), origin, log_key)
    except OSError as error:
        raise ConfigError(f"cannot read: {error.strerror}", file=str(path)) from error
    except TlogError as error:
        raise ConfigError(str(error), file=str(path)) from error
