"""What the tests of the evidence chain share: fixed keys, a request that everybody knows, a Judge."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from holdgate.adapters.sqlite import SqliteLedger
from holdgate.counters import budget_ids, budget_part
from holdgate.errors import Outcome, Reason
from holdgate.jcs import dumps_input
from holdgate.keys import Signer, SigningKey, key_set
from holdgate.ledger import (
    CONFLICT_SOURCE,
    DISPATCHABLE,
    Binding,
    Budgets,
    Charge,
    ClaimRow,
    Entry,
    Verdict,
    appraise,
    op_key,
)
from holdgate.receipt import admin_statement, decision_statement, input_digest, sign
from holdgate.sealing import Kept, seal
from holdgate.standing import NOTHING_STANDS, Standing
from holdgate.surface.model import Action, Effect, Param

RECEIPT_KEY = SigningKey(seed=bytes(range(32)))
LOG_KEY = SigningKey(seed=bytes(range(1, 33)))
OTHER_KEY = SigningKey(seed=bytes(range(2, 34)))
KEYS = key_set([RECEIPT_KEY.public])
LOG_KEYS = key_set([LOG_KEY.public])
ORIGIN = "holdgate.local/edge-1"
NODE = "edge-1"
T0 = 1_790_000_000_000_000  # microseconds; every test clock starts here
DAY_US = 86_400_000_000
DIGEST = "sha256:" + "a" * 64
OTHER_DIGEST = "sha256:" + "b" * 64
POLICY = "sha256:" + "c" * 64
INPUT = b'{"action":"refund"}'

REFUND = Action(
    surface="payments.refund",
    operation="stripe.PostRefunds",
    effect=Effect.COMMIT,
    params=(
        Param(name="amount", value=500, public=500),
        Param(name="currency", value="usd", public="usd"),
        Param(name="note", value="secret", public=None),
    ),
)


def receipt_id(number: int) -> str:
    return "rcpt_" + str(number).zfill(26)


def permit_statement(**changes: Any) -> dict[str, Any]:
    """A PERMIT with every field that one can have; `changes` are decision_statement's arguments."""
    facts: dict[str, Any] = {
        "receipt_id": receipt_id(1),
        "issuer": ORIGIN,
        "iat_us": T0,
        "node": NODE,
        "outcome": Outcome.PERMIT,
        "reason": Reason.PERMIT_RULE,
        "agent": "refund-bot",
        "request": {
            "method": "POST",
            "target": "/v1/refunds",
            "digest": DIGEST,
            "wire": OTHER_DIGEST,
            "bytes": 27,
            "commitment": "hmac-sha256:" + "d" * 64,
        },
        "policy": {"digest": POLICY, "revision": 3, "signed": True},
        "engine": "cel-strict/1",
        "rules": ("refunds/small", "refunds/any"),
        "actions": (REFUND,),
        "destination": "api.stripe.com:443",
        "idempotency": ("native", "e" * 64),
        "input_digest": input_digest(INPUT),
        "exp_us": T0 + 30_000_000,
        "approval": "appr_1",
        "budget": ("refunds-daily",),
        "replay_of": receipt_id(0),
        "via": "execute",
    }
    return decision_statement(**(facts | changes))


def coverage_details(**changes: Any) -> dict[str, Any]:
    """What a coverage receipt says when everything that is required is closed."""
    facts: dict[str, Any] = {
        "run": "0" * 31 + "1",
        "closed": True,
        "rows": {"closed": ["tcp4.22", "udp4.53"], "not_applicable": ["tcp6.22"], "open": ["icmp4"]},
        "required": ["tcp4.22", "tcp6.22"],
        "report": DIGEST,
        "netns": 4026531840,
        "uid": 65534,
        "agent": "refund-bot",
        "rules": OTHER_DIGEST,
    }
    return facts | changes


def coverage_statement(**changes: Any) -> dict[str, Any]:
    """An admin receipt's statement; `changes` are admin_statement's arguments."""
    facts: dict[str, Any] = {
        "receipt_id": receipt_id(3),
        "issuer": ORIGIN,
        "iat_us": T0 + 2,
        "node": NODE,
        "action": "coverage",
        "by": "local",
        "details": coverage_details(),
    }
    return admin_statement(**(facts | changes))


class RefundJudge:
    """A Judge that permits whatever its claims leave open, like step 4 to 6 without a policy."""

    def __init__(
        self,
        value: str = "",
        *,
        digest: str = DIGEST,
        source: str = "native",
        provider: bool = False,
        ttl_us: int = DAY_US,
        conflict: str = "",
        inputs: bytes | None = INPUT,
        signer: Signer = RECEIPT_KEY,
        sealed: bool = False,  # of a sensitive operation
        keeps: bool = False,  # its map says `response: keep`
        meters: tuple[str, ...] = (),
        charge: Callable[[Budgets, int, bool], tuple[Charge, ...] | None] = lambda *_: (),
        node: str = NODE,
    ) -> None:
        """`charge` takes budgets, time and whether this is a replay; None refuses."""
        self.meters, self._charge = meters, charge
        self._signer, self._node = signer, node
        self._wanted = [(op_key("scope", value or digest), source)] if value or source == "implicit" else []
        if conflict:
            self._wanted.append((op_key("thing", conflict), CONFLICT_SOURCE))
        self._digest, self._provider, self._ttl_us, self._inputs = digest, provider, ttl_us, inputs
        self._is_sealed, self._keeps = sealed, keeps
        self.denials: tuple[str, ...] = ()
        self.objects: tuple[str, ...] = ()
        self.keys = tuple(key for key, _ in self._wanted)
        self.verdict: Verdict | None = None

    def __call__(
        self,
        claims: Mapping[str, ClaimRow],
        *,
        now_us: int,
        receipt_id: str,
        budgets: Budgets,
        standing: Standing = NOTHING_STANDS,
    ) -> Entry:
        verdict, prior, status = appraise(claims, self._wanted, digest=self._digest, now_us=now_us)
        self.verdict = verdict
        charges = self._charge(budgets, now_us, verdict is Verdict.REPLAY)
        permit = verdict in DISPATCHABLE and charges is not None
        decided = dumps_input({"action": "refund", "budget": budget_part(charges)}) if charges else INPUT
        asked = permit or charges is None  # the gate
        kept = decided if asked and self._inputs == INPUT else self._inputs if asked else None
        reused = verdict is Verdict.REUSED
        refused = Outcome.DENY if reused else Outcome.SILENCE
        outcome = Outcome.PERMIT if permit else refused
        reason = (
            Reason.PERMIT_RULE
            if permit
            else Reason.IDEMPOTENCY_KEY_REUSED
            if reused
            else Reason(verdict.value)
            if verdict not in DISPATCHABLE
            else Reason.NO_RULE_MATCHED
        )
        request = {
            "method": "POST",
            "target": "/v1/refunds",
            "digest": self._digest,
            "wire": DIGEST,
            "bytes": 9,
        }
        salt, sealed = b"", None
        if self._is_sealed:
            salt = secrets.token_bytes(16)
            sealed = seal(
                receipt_id, Kept(target=b"/x", inputs=decided if asked else None), salt, secrets.token_bytes
            )
            request["commitment"] = "hmac-sha256:" + "d" * 64
        keyed = [item for item in self._wanted if item[1] != CONFLICT_SOURCE]
        statement = permit_statement(
            receipt_id=receipt_id,
            issuer=f"holdgate.local/{self._node}",
            node=self._node,
            iat_us=now_us,
            outcome=outcome,
            reason=reason,
            request=request,
            rules=("refunds/small",) if permit else (),
            idempotency=(keyed[0][1], keyed[0][0]) if keyed else None,
            input_digest=input_digest(decided, salt) if asked else "",
            exp_us=now_us + 30_000_000 if permit else 0,
            approval="",
            budget=budget_ids(charges) if permit and charges else (),
            via="",
            replay_of=prior if permit and verdict is Verdict.REPLAY else "",
            supersedes=prior if permit and verdict is Verdict.SUPERSEDE else "",
        )
        bindings = [
            Binding(
                key=key,
                digest=self._digest,
                expires_us=now_us + self._ttl_us,
                provider=self._provider and source != CONFLICT_SOURCE,
                source=source,
            )
            for key, source in self._wanted
        ]
        return Entry(
            receipt_id=receipt_id,
            outcome=outcome,
            reason=reason,
            rule="refunds/small" if permit else "",
            surface="payments.refund",
            agent="refund-bot",
            policy=POLICY,
            iat_us=now_us,
            wire=DIGEST,
            jws=sign(statement, self._signer),
            bindings=tuple(bindings) if permit else (),
            inputs=kept if sealed is None else None,
            prior=prior,
            prior_status=status,
            sealed=sealed,
            charges=charges or () if permit else (),
            recalls=self._keeps and verdict is Verdict.ALREADY_EXECUTED,
        )


def ticking(start: int = T0) -> Callable[[], int]:
    """A clock that moves one millisecond per look."""
    return itertools.count(start, 1000).__next__


def nonces() -> Callable[[], bytes]:
    numbers = itertools.count(1)
    return lambda: next(numbers).to_bytes(16, "little")


def ledger_settings() -> dict[str, Any]:
    """What a ledger of tests is opened with: fixed keys, a clock that ticks."""
    return {
        "receipt_key": RECEIPT_KEY,
        "log_key": LOG_KEY,
        "origin": ORIGIN,
        "node": NODE,
        "clock_us": ticking(),
        "nonce16": nonces(),
        "linger_s": 0.0,
        "headroom_bytes": 0,
    }


def open_ledger(state_dir: Path, **changes: Any) -> SqliteLedger:
    return SqliteLedger.open(state_dir, **(ledger_settings() | changes))
