"""Re-verification of all logs of a fleet together: what one node did to another's permits is compared too.

    receipts of all nodes in the order of time + claims, permits and counters of the fleet -> problems

Each log is read as audit.py reads one; what the receipts say of permits, claims, objects and budgets is put
together over all of them. The database is believed in nothing, so the keys of a node come from elsewhere:
from its state directory, or from a list that the auditor was given. What is not at hand is not verified, and
the report says so, node by node: signatures without keys, checkpoint and tiles without the state directory.

Invariants (tests/test_audit_fleet.py has one test named after each):
  AF1  A claim, permit's state or counter that the receipts of all nodes do not bear out is a problem.
  AF2  A receipt that was edited, removed, moved to another node's log, or is out of the fleet's time is a
       problem.
  AF3  What could not be verified for want of keys or of a state directory is in the report, never left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from .audit import STEP, Auditor, Verifying, verified_here
from .audit_permits import Facts, PermitAudit
from .audit_rows import CounterRow, HeadRow, LogRecord
from .audit_tiles import StoredTiles
from .keys import KeySet, key_set
from .ledger import ClaimRow
from .note import Checkpoint
from .receipt import read_unsigned
from .standing import Prepared
from .tiles import Tile

__all__ = ["NOTHING_KEPT", "FleetInput", "FleetReport", "Kept", "NodeReport", "audit_fleet"]

NO_KEYS: Final = "its signatures were not verified: no keys of it were given"
NO_DIRECTORY: Final = (
    "its checkpoint, tiles and lists of keys were not compared: its state directory was not given"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What is known of a node from elsewhere than the database."""

    receipt_keys: KeySet  # empty: not at hand
    log_keys: KeySet  # empty: which key signs where is not compared with what the log says
    checkpoint: bytes | None  # signed note; None: its state directory is not at hand
    tiles: StoredTiles
    earlier: tuple[Checkpoint, ...] = ()


class _NoTiles:
    """Of a node whose state directory is elsewhere."""

    def widths(self, level: int, index: int) -> tuple[int, ...]:
        return ()

    def exact(self, tile: Tile) -> bytes:
        raise FileNotFoundError(tile.path)


NOTHING_KEPT: Final = Kept(receipt_keys=key_set([]), log_keys=key_set([]), checkpoint=None, tiles=_NoTiles())


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetInput:
    """One snapshot of the database."""

    heads: tuple[tuple[str, HeadRow], ...]  # name of the node, end of its log
    fleet_us: int  # the time that the database remembers as the fleet's last
    records: Iterable[LogRecord]  # with their nodes, in the order of time
    claims: Iterable[ClaimRow]  # these are read after `records`
    counters: Iterable[CounterRow]
    prepared: Iterable[Prepared]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReport:
    node: str
    size: int
    signed: int  # leaves under its checkpoint; 0 where that was not at hand
    root: str
    notes: tuple[str, ...]  # what was not verified


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetReport:
    nodes: tuple[NodeReport, ...]
    permits: int
    outcomes: int
    admin: int
    inputs: int
    destroyed: int
    problems: tuple[str, ...]

    @property
    def is_clean(self) -> bool:
        return not self.problems


def audit_fleet(
    given: FleetInput,
    kept: dict[str, Kept],
    *,
    progress: Callable[[int], None] = lambda _: None,
    verifying: Verifying = verified_here,
) -> FleetReport:
    """Verify everything that is at hand; problems are found, never raised. `kept` is by name of the node."""
    facts = Facts()
    logs = {name: _auditor(name, head, kept.get(name, NOTHING_KEPT), facts) for name, head in given.heads}
    whole = PermitAudit(facts, facts.problem)
    known = {kid: key for own in kept.values() for kid, key in own.receipt_keys.items()}
    read = last_us = 0
    for record, found in verifying(given.records, known):
        log = logs.get(record.node)
        if log is None:
            facts.problem(f"{record.id}: in the log of no node")
            continue
        if record.iat_us <= last_us:
            log.problem(f"leaf {record.index} is not later than the fleet's receipt before it ({record.id})")
        last_us = max(last_us, record.iat_us)
        unknown = not kept.get(record.node, NOTHING_KEPT).receipt_keys
        log.leaf(record, read_unsigned(record.jws) if unknown else found)
        read += 1
        if not read % STEP:
            progress(read)
    for name, head in given.heads:
        logs[name].end(head)
    if given.fleet_us < last_us:
        facts.problem("the fleet's time in the database is before its last receipt")
    whole.claims(given.claims)
    whole.prepared(given.prepared)
    whole.counters(given.counters, last_us)
    return _report(given, kept, logs, facts)


def _auditor(name: str, head: HeadRow, own: Kept, facts: Facts) -> Auditor:
    """Of one node's log, before its first leaf."""
    auditor = Auditor(
        head.origin,
        own.receipt_keys,
        own.log_keys,
        own.tiles,
        is_shared=False,
        facts=facts,
        name=f"{name}: ",
    )
    if own.checkpoint is not None:
        auditor.signed(own.checkpoint, own.earlier)
    return auditor


def _report(given: FleetInput, kept: dict[str, Kept], logs: dict[str, Auditor], facts: Facts) -> FleetReport:
    parts = {name: logs[name].report() for name, _ in given.heads}
    return FleetReport(
        nodes=tuple(
            NodeReport(
                node=name,
                size=part.size,
                signed=part.signed,
                root=part.root,
                notes=_unverified(kept.get(name, NOTHING_KEPT)),
            )
            for name, part in parts.items()
        ),
        permits=len(facts.permits),
        outcomes=sum(part.outcomes for part in parts.values()),
        admin=sum(part.admin for part in parts.values()),
        inputs=sum(part.inputs for part in parts.values()),
        destroyed=sum(part.destroyed for part in parts.values()),
        problems=tuple(facts.problems),
    )


def _unverified(kept: Kept) -> tuple[str, ...]:
    no_keys = () if kept.receipt_keys else (NO_KEYS,)
    return (*no_keys, *(() if kept.checkpoint is not None else (NO_DIRECTORY,)))
