"""Which key signs where in a log: the first keys, and what the log's own receipts say of keys, folded.

    first keys + `key_rotate` and `key_revoke` receipts in log order -> every key with its range of indices

A rotation is a leaf, signed by the old receipt key, that names the new key. A receipt key counts up to the
leaf that retires it, and the new one from the next leaf on. A log key counts for trees up to the one that
ends with that leaf, and the new one from that tree on: both sign this one checkpoint, so that whoever trusts
the old key can go on to the new one without asking anybody (follow()).

Invariants (tests/test_keyhistory.py has one test named after each):
  KH1  At every index exactly one receipt key counts, and at most one log key, but at a hand-over, two.
  KH2  A rotation that does not name the active key as the old one, or that brings a key back, is refused.
  KH3  The active key is never revoked, a revocation never lies ahead, and it is never taken back.
  KH4  follow() accepts a new log key only from a tree that the old one signed, and that both signed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final

from .errors import HoldgateError
from .keys import KeySet, PublicKey, key_set, unb64url
from .note import Verifier
from .receipt import ReceiptError, verify
from .tlog import TlogError
from .tlogproof import Proof, verify_proof

__all__ = ["ACTIONS", "REVOKE", "ROTATE", "KeyHistory", "KeyHistoryError", "Lineage", "Purpose", "follow"]

ROTATE: Final = "key_rotate"
REVOKE: Final = "key_revoke"
ACTIONS: Final = frozenset({ROTATE, REVOKE})


class KeyHistoryError(HoldgateError):
    """A receipt about keys says what cannot be."""


class Purpose(StrEnum):
    """What a key that is rotated signs."""

    RECEIPT = "receipt"
    LOG = "log"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """The keys of one purpose, one after the other."""

    keys: KeySet
    active: str  # kid

    @classmethod
    def begin(cls, key: PublicKey) -> Lineage:
        return cls(keys=key_set([PublicKey(raw=key.raw)]), active=key.kid)

    def rotated(self, old: str, new: PublicKey, *, end: int) -> Lineage:
        if old != self.active:
            raise KeyHistoryError(f"a rotation of {old}, which is not the key in use")
        if new.kid in self.keys:
            raise KeyHistoryError(f"the key {new.kid} was in use before")
        retired = replace(self.keys[old], end_index=end)
        return Lineage(keys=MappingProxyType({**self.keys, old: retired, new.kid: new}), active=new.kid)

    def revoked(self, kid: str, from_index: int) -> Lineage:
        if kid not in self.keys or kid == self.active:
            raise KeyHistoryError(
                "only a key that was in use, and is no more, is revoked: rotate the active one first"
            )
        if from_index >= self.keys[kid].revoked_from_index:
            raise KeyHistoryError("this key is revoked from an earlier index on")
        gone = replace(self.keys[kid], revoked_from_index=from_index)
        return Lineage(keys=MappingProxyType({**self.keys, kid: gone}), active=self.active)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyHistory:
    """What a log says of its keys, up to some leaf."""

    lineages: Mapping[Purpose, Lineage]

    @classmethod
    def begin(cls, receipt: PublicKey, log: PublicKey) -> KeyHistory:
        return cls(
            lineages=MappingProxyType(
                {Purpose.RECEIPT: Lineage.begin(receipt), Purpose.LOG: Lineage.begin(log)}
            )
        )

    def active(self, purpose: Purpose) -> str:
        return self.lineages[purpose].active

    def keys(self, purpose: Purpose) -> KeySet:
        return self.lineages[purpose].keys

    def after(self, index: int, action: str, details: Mapping[str, Any]) -> KeyHistory:
        """The history with the receipt at `index`; others than those about keys change nothing.

        Raises KeyHistoryError. The details have the shape that statement.py wants.
        """
        if action not in ACTIONS:
            return self
        purpose = Purpose(details["purpose"])
        lineage = self.lineages[purpose]
        if action == ROTATE:
            first = index + 1 if purpose is Purpose.RECEIPT else index
            new = PublicKey(raw=unb64url(details["x"].encode()), first_index=first)
            lineage = lineage.rotated(details["old"], new, end=index + 1)
        else:
            lineage = lineage.revoked(details["kid"], details["from_index"])
            if details["from_index"] > index:
                raise KeyHistoryError("a revocation that lies ahead")
        return KeyHistory(lineages=MappingProxyType({**self.lineages, purpose: lineage}))


def follow(log: Verifier, changes: Iterable[Proof], receipt_keys: KeySet) -> tuple[Verifier, ...]:
    """The keys of a log from the trusted one on, each with its range, by the proofs that a log keeps of its
    changes of key (`state_dir/log/changes/`), in their order. Raises TlogError."""
    found = [log]
    for change in changes:
        found[-1:] = _next(found[-1], change, receipt_keys)
    return tuple(found)


def _next(old: Verifier, change: Proof, receipt_keys: KeySet) -> tuple[Verifier, ...]:
    try:
        verified = verify(change.extra, receipt_keys)
    except ReceiptError as error:
        raise TlogError(f"a change of the log key: {error}") from error
    said = verified.statement
    details = said.get("details", {})
    refusal = receipt_keys[verified.kid].refuses(change.index)
    if refusal or said.get("action") != ROTATE or details["purpose"] != Purpose.LOG:
        raise TlogError(f"not a change of the log key: {refusal or said['type']}")
    if said["iss"] != old.name:
        raise TlogError("a change of another log's key")
    if details["new"] == old.key.kid or details["old"] != old.key.kid:
        # What happened before the key that is trusted tells nothing about it.
        return (old,)
    new = Verifier(
        name=old.name,
        type=old.type,
        key=PublicKey(raw=unb64url(details["x"].encode()), first_index=change.index),
    )
    for verifier in (old, new):
        checkpoint = verify_proof(change, change.extra, verifier)
        if checkpoint.size != change.index + 1:
            raise TlogError("a change of the log key: not the tree that ends with it")
    return replace(old, key=replace(old.key, end_index=change.index + 1)), new
