"""Writes tests/vectors/receipts/ again from fixed keys. CI runs it and looks at the difference.

    python tests/vectors/regenerate.py

`valid/NAME.json` holds {"jws", "statement"}; `invalid/WHAT-IS-WRONG.json` holds {"jws", "reason"}, all to be
verified with `keys.jwks.json`. Each invalid one is signed correctly unless its name says otherwise:
what is wrong must be found by looking, not by the signature.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evidence import (
    DIGEST,
    KEYS,
    NODE,
    ORIGIN,
    OTHER_KEY,
    RECEIPT_KEY,
    REFUND,
    T0,
    coverage_details,
    coverage_statement,
    permit_statement,
    receipt_id,
)
from holdgate.errors import Outcome, Reason
from holdgate.jcs import dumps
from holdgate.keys import b64url, jwks
from holdgate.ledger import OutcomeStatus
from holdgate.receipt import TYP, ReceiptError, outcome_statement, sign, verify
from vectors.folder import write

FOLDER = Path(__file__).resolve().parent / "receipts"
_REFUSAL: dict[str, Any] = {
    "exp_us": 0,
    "approval": "",
    "budget": (),
    "replay_of": "",
    "via": "",
    "idempotency": None,
}


def outcome(**changes: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "receipt_id": receipt_id(2),
        "issuer": ORIGIN,
        "iat_us": T0 + 1,
        "node": NODE,
        "of": receipt_id(1),
        "status": OutcomeStatus.EXECUTED,
        "http_status": 200,
    }
    return outcome_statement(**(facts | changes))


def permit_asked() -> dict[str, Any]:
    """A decision door's, for an action that was named: no destination, and nothing that could be sent."""
    request = {"target": "/v1/refunds", "digest": DIGEST, "bytes": 0}
    return permit_statement(destination="", request=request, via="evaluation", replay_of="")


def valid() -> dict[str, dict[str, Any]]:
    """Statements, by what they show."""
    unreadable = {"digest": DIGEST, "bytes": 12}
    return {
        "permit": permit_statement(),
        "permit-of-40-actions": permit_statement(actions=(REFUND,) * 40),
        "permit-of-a-named-action": permit_asked(),
        "deny": permit_statement(outcome=Outcome.DENY, reason=Reason.DENY_RULE, **_REFUSAL),
        "silence-no-rule": permit_statement(
            outcome=Outcome.SILENCE, reason=Reason.NO_RULE_MATCHED, rules=(), **_REFUSAL
        ),
        "silence-malformed": permit_statement(
            outcome=Outcome.SILENCE,
            reason=Reason.MALFORMED_REQUEST,
            agent="",
            rules=(),
            actions=(),
            destination="",
            input_digest="",
            request=unreadable,
            **_REFUSAL,
        ),
        "already-executed": permit_statement(
            outcome=Outcome.SILENCE,
            reason=Reason.ALREADY_EXECUTED,
            input_digest="",
            rules=(),
            **(_REFUSAL | {"replay_of": receipt_id(0)}),
        ),
        "outcome-executed": outcome(),
        "outcome-unknown": outcome(status=OutcomeStatus.UNKNOWN, http_status=0),
        "admin-coverage": coverage_statement(),
        "admin-coverage-open": coverage_statement(
            details={
                "run": "f" * 32,
                "closed": False,
                "rows": {"open": ["tcp6.443"], "unproven": ["control.proxy"]},
                "required": ["control.proxy", "tcp6.443"],
                "report": DIGEST,
                "netns": 1,
                "uid": 0,
            }
        ),
    }


def jws_of(header: bytes, payload: bytes, key: Any = RECEIPT_KEY) -> bytes:
    signed = b64url(header) + b"." + b64url(payload)
    return signed + b"." + b64url(key.sign(signed))


def header(**changes: Any) -> bytes:
    return dumps({"alg": "EdDSA", "kid": RECEIPT_KEY.kid, "typ": TYP} | changes)


def invalid() -> dict[str, bytes]:
    """Receipts, by what is wrong with them."""
    permit, payload = permit_statement(), dumps(permit_statement())
    good = sign(permit, RECEIPT_KEY)
    first, second, third = good.split(b".")
    found = {
        "signed-by-another-key-under-our-kid": jws_of(header(), payload, OTHER_KEY),
        "signed-by-a-key-that-is-not-published": sign(permit, OTHER_KEY),
        "algorithm-none": b64url(header(alg="none")) + b"." + second + b".",
        "algorithm-hs256": jws_of(header(alg="HS256"), payload),
        "header-type-of-another-token": jws_of(header(typ="JWT"), payload),
        "header-with-a-critical-extension": jws_of(header(crit=["b64"]), payload),
        "header-with-its-own-key": jws_of(header(jwk=OTHER_KEY.public.jwk), payload),
        "header-not-canonical": jws_of(header().replace(b":", b": ", 1), payload),
        "payload-with-white-space": jws_of(header(), payload + b"\n"),
        "payload-with-a-duplicate-key": jws_of(header(), b'{"agent":"x",' + payload[1:]),
        "payload-with-a-float": jws_of(header(), payload.replace(b'"v":1,', b'"v":1.0,')),
        "payload-not-sorted": jws_of(header(), json.dumps(permit, separators=(",", ":")).encode()),
        "payload-a-list": jws_of(header(), b"[]"),
        "base64-with-padding": good + b"=",
        "base64-with-stray-bits": good[:-1] + bytes([good[-1] + 1]),
        "two-parts": first + b"." + second,
        "four-parts": good + b"." + third,
        "too-large": sign(permit, RECEIPT_KEY) + b"A" * 8192,
    }
    found |= {name: jws_of(header(), dumps(item)) for name, item in _statements()}
    return found


def _statements() -> Iterator[tuple[str, dict[str, Any]]]:
    permit = permit_statement()
    yield "field-unknown", permit | {"allowed": True}
    yield "field-null-as-text-in-request", permit | {"request": permit["request"] | {"body": "x"}}
    for name in permit:
        if name not in ("approval", "budget", "replay_of", "via", "idempotency"):
            # Without a destination it would be a decision door's, which forwards nothing.
            gone = (name, "via") if name == "destination" else (name,)
            yield f"permit-without-{name}", {key: item for key, item in permit.items() if key not in gone}
    for part in ("request", "policy"):
        for name in permit[part]:
            if name != "commitment":
                rest = {key: item for key, item in permit[part].items() if key != name}
                yield f"permit-without-{part}-{name}", permit | {part: rest}
    asked = permit_asked()
    yield (
        "permit-of-a-named-action-without-a-door",
        {key: item for key, item in asked.items() if key != "via"},
    )
    rest = {key: item for key, item in asked["request"].items() if key != "digest"}
    yield "permit-of-a-named-action-without-digest", asked | {"request": rest}
    yield "permit-without-agent-name", permit | {"agent": ""}
    yield "permit-with-a-refusal-reason", permit | {"reason": "no_rule_matched"}
    yield "permit-that-expired-before-it-was-made", permit | {"exp": permit["iat"]}
    yield "permit-that-points-to-itself", permit | {"replay_of": permit["id"]}
    yield "permit-that-replays-and-supersedes", permit | {"supersedes": receipt_id(5)}
    yield (
        "permit-with-actions-and-counts",
        permit_statement(actions=(REFUND,) * 40) | {"actions": permit["actions"]},
    )
    yield "outcome-word-unknown", permit | {"outcome": "ALLOW"}
    yield "outcome-word-in-lower-case", permit | {"outcome": "permit"}
    yield "type-unknown", permit | {"type": "approval"}
    yield "version-2", permit | {"v": 2}
    yield "version-true", permit | {"v": True}
    yield "time-with-offset", permit | {"iat": "2026-09-21T14:13:20.000000+00:00"}
    yield "time-without-microseconds", permit | {"iat": "2026-09-21T14:13:20Z"}
    yield "time-that-does-not-exist", permit | {"iat": "2026-02-30T14:13:20.000000Z"}
    yield "id-not-a-ulid", permit | {"id": "rcpt_1"}
    yield "digest-in-upper-case", permit | {"input_digest": permit["input_digest"].upper()}
    deny = permit_statement(outcome=Outcome.DENY, reason=Reason.DENY_RULE, **_REFUSAL)
    yield "deny-with-exp", deny | {"exp": permit["exp"]}
    yield "deny-without-rules", {key: item for key, item in deny.items() if key != "rules"}
    yield "silence-with-the-permit-reason", deny | {"outcome": "SILENCE", "reason": "permit_rule"}
    done = outcome()
    yield "outcome-of-itself", done | {"of": done["id"]}
    yield "outcome-with-a-decision", done | {"outcome": "PERMIT"}
    yield "outcome-with-status-0", done | {"http_status": 0}
    yield from _admin()
    yield "outcome-without-of", {key: item for key, item in done.items() if key != "of"}


def _admin() -> Iterator[tuple[str, dict[str, Any]]]:
    said = coverage_statement()

    def details(**changes: Any) -> dict[str, Any]:
        return said | {"details": coverage_details(**changes)}

    yield "admin-action-unknown", said | {"action": "keys.stolen"}
    yield "admin-with-an-outcome", said | {"outcome": "PERMIT"}
    yield "admin-by-nobody", said | {"by": ""}
    yield "admin-without-details", {key: item for key, item in said.items() if key != "details"}
    yield "admin-with-an-unknown-detail", details(note="x")
    yield (
        "coverage-without-report",
        said | {"details": {key: item for key, item in coverage_details().items() if key != "report"}},
    )
    yield "coverage-closed-with-a-required-row-open", details(required=["icmp4", "tcp4.22"])
    yield "coverage-closed-without-a-closed-row", details(rows={"not_applicable": ["tcp4.22", "tcp6.22"]})
    yield "coverage-open-with-every-required-row-closed", details(closed=False)
    yield "coverage-with-a-row-in-two-states", details(rows={"closed": ["tcp4.22"], "open": ["tcp4.22"]})
    yield "coverage-with-a-required-row-that-is-nowhere", details(required=["tcp4.99"])
    yield "coverage-with-an-unknown-state", details(rows={"closed": ["tcp4.22", "tcp6.22"], "fine": ["x"]})


def files() -> dict[str, str]:
    """Every vector file: relative path -> content."""
    found = {"keys.jwks.json": _text(jwks([RECEIPT_KEY.public]))}
    for name, statement in valid().items():
        row = {"jws": sign(statement, RECEIPT_KEY).decode(), "statement": statement}
        found[f"valid/{name}.json"] = _text(row)
    for name, jws in invalid().items():
        found[f"invalid/{name}.json"] = _text({"jws": jws.decode(), "reason": _reason(name, jws)})
    return found


def _reason(name: str, jws: bytes) -> str:
    try:
        verify(jws, KEYS)
    except ReceiptError as error:
        return str(error)
    raise SystemExit(f"{name} verifies")


def _text(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    write(FOLDER, files())
