"""ledger.py as a machine: arrivals, crashes, outcomes, expiry and reconciliation in any order.

The machine keeps what really happened at the vendor (`effect`), which the ledger never sees. The
promises are about that: no blind second dispatch, whatever the order of events.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from evidence import T0
from holdgate.ledger import (
    CONFLICT_SOURCE,
    DISPATCHABLE,
    Binding,
    ClaimRow,
    OutcomeStatus,
    Verdict,
    appraise,
    bind,
    is_free,
    may_bind,
    settle_claim,
)

TTL_US = 100
_ENDS = [OutcomeStatus.EXECUTED, OutcomeStatus.NOT_SENT, OutcomeStatus.FAILED, OutcomeStatus.UNKNOWN]


@dataclass(slots=True, kw_only=True)
class Dispatch:
    """One permit and what became of it. `effect`: whether the vendor acted on this very dispatch."""

    receipt_id: str
    digest: str
    keys: Mapping[str, str]  # claim -> source
    replay_of: str
    at_us: int
    effect: bool
    status: OutcomeStatus | None = None
    answered: bool = False  # a replay brought the vendor's own answer for this dispatch

    @property
    def in_doubt(self) -> bool:
        return self.status in (None, OutcomeStatus.UNKNOWN) and not self.answered


class Claims(RuleBasedStateMachine):
    dispatches = Bundle("dispatches")

    @initialize()
    def start(self) -> None:
        self.now_us = T0
        self.rows: dict[str, ClaimRow] = {}
        self.made: list[Dispatch] = []

    @rule(
        target=dispatches,
        native=st.sampled_from(["", "vendor", "plain"]),
        natural=st.booleans(),
        digest=st.sampled_from("xy"),
        thing=st.booleans(),
        effect=st.booleans(),
    )
    def arrive(self, native: str, natural: bool, digest: str, thing: bool, effect: bool) -> Dispatch | None:
        keys = {native: "native"} if native else {}
        if natural:
            keys["natural " + digest] = "natural"
        if not keys:
            keys["implicit " + digest] = "implicit"
        if thing:
            keys["thing"] = CONFLICT_SOURCE
        verdict, prior, _ = appraise(self.rows, keys.items(), digest=digest, now_us=self.now_us)
        if verdict not in DISPATCHABLE:
            return None
        self._check_new(verdict, prior, digest, keys)
        receipt_id = f"rcpt_{len(self.made)}"
        for key, source in keys.items():
            wanted = Binding(
                key=key,
                digest=digest,
                expires_us=self.now_us + TTL_US,
                provider=key == "vendor",
                source=source,
            )
            # The store's own check never contradicts what the judge was told.
            assert may_bind(self.rows.get(key), wanted, prior=prior, now_us=self.now_us)
            self.rows[key] = bind(self.rows.get(key), wanted, receipt_id=receipt_id, now_us=self.now_us)
        made = Dispatch(
            receipt_id=receipt_id,
            digest=digest,
            keys=keys,
            replay_of=prior if verdict is Verdict.REPLAY else "",
            at_us=self.now_us,
            # The vendor answers a replay from its own store: it does not act again, but where the first one
            # never arrived.
            effect=effect and not (verdict is Verdict.REPLAY and self._acted(prior)),
        )
        self.made.append(made)
        return made

    def _check_new(self, verdict: Verdict, prior: str, digest: str, keys: Mapping[str, str]) -> None:
        for old in self.made:
            shared = {key for key in keys.keys() & old.keys.keys() if keys[key] in ("native", "natural")}
            fresh = self.now_us < old.at_us + TTL_US
            if not shared or not fresh or verdict is Verdict.REPLAY:
                continue
            # L3: another digest goes out under a live key only after not_sent.
            assert old.digest == digest or old.status is OutcomeStatus.NOT_SENT or old.replay_of
            # No second effect under one live key: what acted, or may have, is never sent again.
            assert not old.effect
        if verdict is not Verdict.FRESH:
            assert prior in {old.receipt_id for old in self.made if old.status is not None}

    @rule(made=consumes(dispatches), status=st.sampled_from(_ENDS), delivered=st.booleans())
    def end(self, made: Dispatch | None, status: OutcomeStatus, delivered: bool) -> None:
        if made is None or made.status is not None:
            return
        # An honest adapter: only `unknown` may hide an effect, and only executed claims one.
        if status in (OutcomeStatus.NOT_SENT, OutcomeStatus.FAILED) and made.effect:
            status = OutcomeStatus.UNKNOWN
        if status is OutcomeStatus.EXECUTED and not (made.replay_of and self._acted(made.replay_of)):
            made.effect = True
        self._settle(made, status, delivered)

    @rule()
    def crash(self) -> None:
        """The process dies. What it had in flight may or may not have happened."""
        for made in self.made:
            if made.status is None:
                self._settle(made, OutcomeStatus.UNKNOWN, delivered=False)

    @rule(index=st.integers(min_value=0, max_value=3), failed=st.booleans())
    def reconcile(self, index: int, failed: bool) -> None:
        """Somebody looks at the vendor, and says what happened."""
        doubts = [made for made in self.made if made.status is OutcomeStatus.UNKNOWN]
        if doubts:
            made = doubts[index % len(doubts)]
            nothing = OutcomeStatus.FAILED if failed else OutcomeStatus.NOT_SENT
            self._settle(
                made,
                OutcomeStatus.RECONCILED,
                delivered=True,
                found=OutcomeStatus.EXECUTED if made.effect else nothing,
            )

    @rule(step=st.sampled_from([1, TTL_US // 2, TTL_US]))
    def wait(self, step: int) -> None:
        self.now_us += step

    @rule()
    def forget_what_is_free(self) -> None:
        """Stores may drop such rows at any time."""
        self.rows = {key: row for key, row in self.rows.items() if not is_free(row)}

    def _settle(
        self,
        made: Dispatch,
        status: OutcomeStatus,
        delivered: bool,
        found: OutcomeStatus = OutcomeStatus.EXECUTED,
    ) -> None:
        made.status = found if status is OutcomeStatus.RECONCILED else status
        if made.status is OutcomeStatus.EXECUTED:
            self._answer(made.replay_of)
        for key in made.keys:
            if key in self.rows:
                self.rows[key] = settle_claim(
                    self.rows[key], made.receipt_id, status, 200, delivered=delivered, found=found
                )

    def _acted(self, receipt_id: str) -> bool:
        """Whether the vendor acted on that dispatch, or on one that it repeats."""
        made = next(made for made in self.made if made.receipt_id == receipt_id)
        return made.effect or (made.replay_of != "" and self._acted(made.replay_of))

    def _answer(self, receipt_id: str) -> None:
        for made in self.made:
            if made.receipt_id == receipt_id:
                made.answered = True
                self._answer(made.replay_of)

    @invariant()
    def at_most_one_is_in_doubt_under_a_key_that_the_vendor_does_not_know(self) -> None:
        for key in {key for made in self.made for key in made.keys if key != "vendor"}:
            # A replay under the vendor's key shares the other keys of the dispatch that it repeats.
            holders = [
                made for made in self.made if made.in_doubt and key in made.keys and not made.replay_of
            ]
            assert len(holders) <= 1, (key, holders)

    @invariant()
    def nothing_in_doubt_is_unprotected(self) -> None:
        """Every dispatch in doubt is still held by each of its claims, or by a replay that took over."""
        for made in self.made:
            if made.in_doubt and not made.replay_of:
                for key in made.keys:
                    row = self.rows.get(key)
                    assert row is not None and not is_free(row), (made, key)


TestClaims = pytest.mark.slow(Claims.TestCase)
TestClaims.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
