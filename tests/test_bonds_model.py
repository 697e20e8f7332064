"""ledger.py's claims on objects as a machine, against a vendor that keeps the truth.

One object: created, changed and confirmed under idempotency keys that the vendor knows, with lost, late and
unreadable answers, replays, crashes and reconciliation, in any order. The promise: whenever the ledger would
let somebody act on the object, what it knows of it is what the vendor has.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from evidence import T0
from holdgate.ledger import (
    CONFLICT_SOURCE,
    DISPATCHABLE,
    ONCE_SOURCE,
    Binding,
    ClaimRow,
    OutcomeStatus,
    Verdict,
    appraise,
    bind,
    is_free,
    may_bind,
    remade,
    settle_claim,
    told_by,
)
from holdgate.standing import Made, Prepared, Told

OBJECT, THING = "object", "thing"
KEY_TTL_US, OBJECT_TTL_US = 100, 150
type Content = tuple[int, int]  # amount, and what only the create can say
FATES = st.sampled_from(
    [*("done", "done", "done", "done"), "open", "unread", "lost", "never", "refused", "not sent"]
)


@dataclass(slots=True, kw_only=True)
class Sent:
    receipt_id: str
    claims: tuple[str, ...]
    told: Told
    reached: bool  # the vendor did it, now or when it first came under this key
    status: OutcomeStatus | None = None


class Objects(RuleBasedStateMachine):
    sent = Bundle("sent")

    @initialize()
    def start(self) -> None:
        self.now_us = T0
        self.rows: dict[str, ClaimRow] = {}
        self.known: Prepared | None = None
        self.decided: dict[str, Content] = {}  # receipt -> what its decision says the object is
        self.vendor: Content | None = None
        self.seen: set[str] = set()  # keys under which the vendor did something
        self.all: list[Sent] = []

    # -- requests --------------------------------------------------------------------------------

    @rule(target=sent, fate=FATES)
    def create(self, fate: str) -> Sent | None:
        return self._ask({"create": "native"}, "create", (1, 10), fate)

    @rule(target=sent, key=st.sampled_from("uv"), fate=FATES, forgotten=st.booleans())
    def change(self, key: str, fate: str, forgotten: bool) -> Sent | None:
        before = self._usable()
        if before is None:
            return None
        wanted = {key: "native", OBJECT: ONCE_SOURCE, THING: CONFLICT_SOURCE}
        return self._ask(wanted, key, (ord(key), before[1]), fate, forgotten=forgotten)

    @rule(target=sent, once=st.booleans(), number=st.integers(0, 9), fate=FATES)
    def act(self, once: bool, number: int, fate: str) -> Sent | None:
        """A confirm, or a capture that takes the object for good; its answer makes nothing known."""
        before = self._usable()
        if before is None:
            return None
        wanted = {f"act {number}": "native", OBJECT: ONCE_SOURCE, THING: CONFLICT_SOURCE}
        found = self._ask(wanted, f"act {number}", None, fate, look=not once)
        if found is not None and found.told is Told.NEW:
            assert before == self.vendor  # the promise
        return found

    def _usable(self) -> Content | None:
        """What the gate would be told of the object, whatever the claims say."""
        if self.known is None or self.now_us >= self.known.expires_us:
            return None
        return self.decided[self.known.receipt_id]

    def _ask(
        self,
        wanted: dict[str, str],
        key: str,
        content: Content | None,
        fate: str,
        *,
        look: bool = False,
        forgotten: bool = False,
    ) -> Sent | None:
        verdict, prior, _ = appraise(self.rows, wanted.items(), digest=key, now_us=self.now_us)
        if verdict not in DISPATCHABLE:
            return None
        told = told_by(self.rows, wanted, verdict, digest=key)
        if told is Told.EITHER and forgotten:
            self.seen.discard(key)
        receipt_id = f"rcpt_{len(self.all):04}"
        taken = {name: source for name, source in wanted.items() if not (look and source == ONCE_SOURCE)}
        held = self.rows.get(OBJECT)
        if verdict is Verdict.REPLAY and (held is None or is_free(held)):
            taken.pop(OBJECT, None)  # as adjudicate.py: a replay takes no object that is free
        for name, source in taken.items():
            binding = Binding(
                key=name,
                digest=key,
                expires_us=self.now_us + (KEY_TTL_US if source == "native" else 10**9),
                provider=source == "native",
                source=source,
            )
            row = self.rows.get(name)
            assert may_bind(row, binding, prior=prior, now_us=self.now_us)
            self.rows[name] = bind(row, binding, receipt_id=receipt_id, now_us=self.now_us)
        if content is not None:
            self.decided[receipt_id] = content
        if fate in ("done", "unread", "lost", "open") and key not in self.seen:
            self.seen.add(key)
            self.vendor = content or self.vendor
        made = Sent(
            receipt_id=receipt_id,
            claims=tuple(taken),
            told=told,
            reached=key in self.seen and fate not in ("never", "not sent"),
        )
        self.all.append(made)
        if fate != "open":
            self._settle(made, self._honest(made, fate), named=fate == "done" and content is not None)
        return made

    def _honest(self, made: Sent, fate: str) -> OutcomeStatus:
        """What an adapter says of it: executed is what the vendor answered so, failed what it refused."""
        if fate in ("done", "unread") or (fate == "refused" and made.reached):
            return OutcomeStatus.EXECUTED
        return {"refused": OutcomeStatus.FAILED, "not sent": OutcomeStatus.NOT_SENT}.get(
            fate, OutcomeStatus.UNKNOWN
        )

    # -- what becomes of them --------------------------------------------------------------------

    @rule(made=consumes(sent), answered=st.booleans())
    def end(self, made: Sent | None, answered: bool) -> None:
        if made is not None and made.status is None:
            status = OutcomeStatus.EXECUTED if answered else OutcomeStatus.UNKNOWN
            self._settle(made, status, named=made.receipt_id in self.decided)

    @rule()
    def crash(self) -> None:
        for made in self.all:
            if made.status is None:
                self._settle(made, OutcomeStatus.UNKNOWN, named=False)

    @rule(index=st.integers(0, 30))
    def reconcile(self, index: int) -> None:
        if index < len(self.all) and self.all[index].status is OutcomeStatus.UNKNOWN:
            made = self.all[index]
            found = OutcomeStatus.EXECUTED if made.reached else OutcomeStatus.NOT_SENT
            self._settle(made, OutcomeStatus.RECONCILED, named=False, found=found)

    @rule(step=st.sampled_from([1, KEY_TTL_US // 2, OBJECT_TTL_US]))
    def wait(self, step: int) -> None:
        self.now_us += step

    @rule()
    def forget_what_is_free(self) -> None:
        self.rows = {key: row for key, row in self.rows.items() if not is_free(row)}

    def _settle(
        self,
        made: Sent,
        status: OutcomeStatus,
        *,
        named: bool,
        found: OutcomeStatus = OutcomeStatus.EXECUTED,
    ) -> None:
        made.status = found if status is OutcomeStatus.RECONCILED else status
        before = self.rows.get(OBJECT)
        for key in made.claims:
            if key in self.rows:
                self.rows[key] = settle_claim(
                    self.rows[key], made.receipt_id, status, 200, delivered=True, found=found
                )
        if named and status is OutcomeStatus.EXECUTED:
            told = Made(key=OBJECT, ttl_us=OBJECT_TTL_US, told=made.told)
            is_known, free = remade(before, self.known, made.receipt_id, told, self.now_us)
            if is_known:
                self.known = Prepared(
                    key=OBJECT, receipt_id=made.receipt_id, expires_us=self.now_us + OBJECT_TTL_US
                )
            if free is not None:
                self.rows[OBJECT] = free

    @invariant()
    def what_may_be_acted_on_is_what_the_vendor_has(self) -> None:
        usable = self._usable()
        wanted = {"fresh": "native", OBJECT: ONCE_SOURCE, THING: CONFLICT_SOURCE}
        verdict, _, _ = appraise(self.rows, wanted.items(), digest="fresh", now_us=self.now_us)
        if usable is not None and verdict in DISPATCHABLE:
            assert usable == self.vendor


TestObjects = pytest.mark.slow(Objects.TestCase)
TestObjects.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)


def test_a_replay_whose_answer_cannot_be_read_does_not_make_an_older_content_known() -> None:
    state = Objects()
    state.start()
    state.create(fate="done")
    state.change(key="u", fate="done", forgotten=False)
    state.change(key="v", fate="done", forgotten=False)
    state.change(key="u", fate="unread", forgotten=False)
    state.change(key="u", fate="done", forgotten=False)
    state.what_may_be_acted_on_is_what_the_vendor_has()
