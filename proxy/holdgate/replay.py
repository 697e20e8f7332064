"""Deciding again what was decided: a recorded input and the bundle of its time in, the same decision out.

The receipt says outcome, reason and rules; the gate is asked once more with the recorded input, and the two
must be the same bytes of canonical JSON. Signatures are not looked at here: `holdgate log audit` does that.

Invariants (tests/test_replay.py):
  RP1  `identical` means that outcome, reason and rules of the receipt are what the gate says now, and what
       shadow policies would have made of it is what was recorded.
  RP2  An input that is not the one the receipt names is `different`, whatever is decided about it.
  RP3  What cannot be decided again (no input, no bundle, decided too late) is never `identical`.
  RP4  An input that was destroyed is `undecidable`, and counted apart from what was never kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from . import gate
from .errors import Reason
from .gate import Decision
from .jcs import JcsError, dumps, loads_input_strict
from .policy_model import PolicySet
from .receipt import input_digest
from .sealing import never_kept

__all__ = ["Record", "Replayed", "Verdict", "replay"]


class Verdict(StrEnum):
    IDENTICAL = "identical"
    DIFFERENT = "different"
    NOT_ASKED = "not_asked"  # refused before the gate, or a denial that was repeated: nothing to decide again
    TOO_LATE = "too_late"  # decided, but after limits.decide_ms; that was a matter of time, not of the input
    UNDECIDABLE = "undecidable"  # the input was destroyed: `receipts shred`, or retention.inputs_days
    NOT_KEPT = "not_kept"  # of a sensitive operation, recorded by a version that did not keep their inputs
    NO_BUNDLE = "no_bundle"  # decided under a bundle that is not here any more


class Record(NamedTuple):
    """One decision receipt, decoded, and the input that was stored with it. A tuple: there are millions."""

    statement: Mapping[str, Any]
    inputs: bytes | None
    salt: bytes = b""  # of the input's digest, where the input was sealed


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    id: str
    verdict: Verdict
    recorded: str  # what the receipt says, canonical JSON
    now: str  # what the gate says now, or why it was not asked; "" when there is nothing to say


def replay(records: Iterable[Record], policies_of: Callable[[str], PolicySet | None]) -> Iterator[Replayed]:
    """Decide every record again, in order. `policies_of` takes a bundle's digest; None: it is not here."""
    for record in records:
        said = record.statement
        recorded = _decision_bytes(said["outcome"], said["reason"], said.get("rules", []))
        verdict, now = _again(record, recorded, policies_of)
        yield Replayed(id=said["id"], verdict=verdict, recorded=recorded.decode(), now=now)


def _again(
    record: Record, recorded: bytes, policies_of: Callable[[str], PolicySet | None]
) -> tuple[Verdict, str]:
    said = record.statement
    if "input_digest" not in said:
        return Verdict.NOT_ASKED, ""
    if record.inputs is None:
        return (Verdict.NOT_KEPT if never_kept(said) else Verdict.UNDECIDABLE), ""
    if input_digest(record.inputs, record.salt) != said["input_digest"]:
        return Verdict.DIFFERENT, "the stored input is not the one that was decided"
    if said["reason"] == Reason.GATE_TIMEOUT.value:
        return Verdict.TOO_LATE, ""
    if said["engine"] != gate.ENGINE or (policies := policies_of(said["policy"]["digest"])) is None:
        return Verdict.NO_BUNDLE, f"{said['engine']} {said['policy']['digest']}"
    try:
        inputs = loads_input_strict(record.inputs)
    except JcsError as error:
        return Verdict.DIFFERENT, f"the stored input cannot be read: {error}"
    now = _of(gate.decide(policies, inputs))
    if now == recorded and gate.shadow_part(policies, inputs) != inputs.get("shadow", {}):
        return Verdict.DIFFERENT, "shadow policies say something else"
    return (Verdict.IDENTICAL if now == recorded else Verdict.DIFFERENT), now.decode()


def _of(decision: Decision) -> bytes:
    return _decision_bytes(decision.outcome.value, decision.reason.value, list(decision.rules))


def _decision_bytes(outcome: str, reason: str, rules: list[str]) -> bytes:
    return dumps({"outcome": outcome, "reason": reason, "rules": rules})
