"""`holdgate reconcile`: permits whose outcome nobody knows, and what somebody found out about one."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Mapping
from typing import Any

from ..adapters.admin.shapes import decode_jws
from ..adapters.control import ask
from ..adapters.offline import offline_ledger
from ..adapters.open_reader import fleet_reader
from ..config import Config
from ..errors import BackendError
from ..ledger import FINDINGS, Finding, OutcomeStatus, State
from . import ask as asking
from .shared import Commands, add, add_node, config_of, group, print_json, print_table

__all__ = ["register"]


def register(commands: Commands) -> None:
    reconcile = group(
        commands,
        "reconcile",
        does="list or settle permitted actions whose outcome is unknown",
        example="holdgate reconcile list",
    )
    listing = add(
        reconcile,
        "list",
        _list,
        does="list what may have happened, oldest first; ask the vendor about each",
        example="holdgate reconcile list --json",
        data=True,
    )
    add_node(listing)
    resolve = add(
        reconcile,
        "resolve",
        _resolve,
        does="record what was found out: keys, conflicts and budgets follow it",
        example="holdgate reconcile resolve rcpt_01JC... --status not_sent --note 'no such refund at Stripe'",
        data=True,
    )
    resolve.add_argument("id", metavar="ID", help="the receipt of the PERMIT")
    resolve.add_argument(
        "--status",
        required=True,
        choices=tuple(status.value for status in FINDINGS),
        help="executed: it happened; failed or not_sent: it did not, and may be tried again",
    )
    resolve.add_argument("--note", default="", metavar="TEXT", help="for the log, at most 256 characters")
    resolve.add_argument(
        "--node-stopped",
        action="store_true",
        help="the permit's node, which is not connected to the database, does not run any more",
    )
    asking.register(reconcile, _record)


def _list(args: argparse.Namespace) -> int:
    with fleet_reader(config_of(args), args.node) as reader:
        stored = [reader.get(permit.receipt_id) for permit in reader.permits(State.UNKNOWN)]
        stored += reader.deserted()
    found = [decode_jws(each.jws) for each in stored if each is not None]
    if args.json:
        print_json(found)
        return 0
    head = ("TIME", "ID", "AGENT", "DESTINATION", "OPERATION", "PARAMETERS")
    print_table(head, [_cells(statement) for statement in found])
    return 0


def _cells(statement: Mapping[str, Any]) -> tuple[str, ...]:
    actions = statement.get("actions", ())
    operations = [action["operation"] for action in actions] or [
        f"{row['operation']} x{row['count']}" for row in statement.get("counts", ())
    ]
    params = [f"{name}={value}" for action in actions for name, value in action["params"].items()]
    return (
        statement["iat"],
        statement["id"],
        statement["agent"],
        statement.get("destination", "-"),
        " ".join(operations) or "-",
        " ".join(params)[:120] or "-",
    )


def _resolve(args: argparse.Namespace) -> int:
    found, stopped = OutcomeStatus(args.status), args.node_stopped
    finding = Finding(of=args.id, found=found, by="local", note=args.note, node_stopped=stopped)
    try:
        receipt = _record(config_of(args), finding)
    except BackendError as error:
        print(error, file=sys.stderr)
        return 1
    if args.json:
        print_json({"id": receipt, "of": finding.of, "status": "reconciled", "found": finding.found.value})
    else:
        print(f"{finding.of}: {finding.found.value}, receipt {receipt}")
    return 0


def _record(config: Config, finding: Finding) -> str:
    """The id of the outcome receipt. The running process writes it; where none runs, this one."""
    question = {
        "ask": "reconcile",
        "of": finding.of,
        "found": finding.found.value,
        "note": finding.note,
        "node_stopped": finding.node_stopped,
    }
    answer = ask(config.state_dir, question)
    if answer is not None:
        return str(answer["id"])
    with offline_ledger(config) as ledger:
        return asyncio.run(ledger.reconcile(finding)).receipt_id
