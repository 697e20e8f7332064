"""Keys compared with leaves: what a log says of its keys, and what the lists of keys say.

    leaf after leaf -> the key that signs there (keyhistory.py) -> why a receipt does not count; problems

Pure, part of audit.py (its invariants A7 and A10). The log's first keys are taken from the lists: nothing in
a log can vouch for those.
"""

from __future__ import annotations

from collections.abc import Callable

from .keyhistory import KeyHistory, KeyHistoryError, Purpose
from .keys import NEVER, KeySet, PublicKey
from .receipt import Verified

__all__ = ["KeyAudit"]


class KeyAudit:
    """The keys that the log names while it is read, against the keys that the auditor was given."""

    def __init__(self, receipt_keys: KeySet, log_keys: KeySet, problem: Callable[[str], None]) -> None:
        self._given = {Purpose.RECEIPT: receipt_keys, Purpose.LOG: log_keys}
        self._problem = problem
        self._history: KeyHistory | None = None  # None before the first leaf

    def leaf(self, index: int, found: Verified) -> str:
        """Why the receipt at `index` does not count, as far as keys are concerned; "" when it does."""
        history = self._history or self._begin(found.kid)
        refusal = self._given[Purpose.RECEIPT][found.kid].refuses(index)
        if found.kid != history.active(Purpose.RECEIPT):
            refusal = "not signed with the key that the log names for this leaf"
        if found.type == "admin":
            try:
                history = history.after(index, found.statement["action"], found.statement["details"])
            except KeyHistoryError as error:
                refusal = refusal or str(error)
        self._history = history
        return refusal

    def _begin(self, kid: str) -> KeyHistory:
        # The first log key is the one whose range begins first; a later one begins where it ends.
        oldest = min(self._given[Purpose.LOG].values(), key=lambda key: (key.first_index, key.end_index))
        return KeyHistory.begin(self._given[Purpose.RECEIPT][kid], oldest)

    def end(self) -> None:
        """All leaves were read: now the lists themselves."""
        if self._history is None:
            return
        for purpose in Purpose:
            said, given = self._history.keys(purpose), self._given[purpose]
            # A list that says nothing of ranges at all is no lie; one that leaves a range out is.
            is_silent = all((key.first_index, key.end_index) == (0, NEVER) for key in given.values())
            for kid in sorted(said.keys() | given.keys()):
                self._compare(purpose, kid, said.get(kid), given.get(kid), is_silent=is_silent)

    def _compare(
        self, purpose: Purpose, kid: str, said: PublicKey | None, given: PublicKey | None, *, is_silent: bool
    ) -> None:
        if said is None:
            self._problem(f"the {purpose} key {kid} is listed, and the log does not introduce it")
        elif given is None:
            self._problem(f"the {purpose} key {kid} is not listed, and the log names it")
        elif said.revoked_from_index != given.revoked_from_index:
            self._problem(f"the {purpose} key {kid}: the list and the log disagree on its revocation")
        elif not is_silent and (given.first_index, given.end_index) != (said.first_index, said.end_index):
            self._problem(f"the {purpose} key {kid}: the list and the log disagree where it signs")
