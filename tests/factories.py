"""Valid values of the pipeline's types for tests, small and with one thing changed at a time.

Each factory fills in what the caller does not name and keeps the parts consistent: a Release's
receipt really speaks of its bytes.
"""

from __future__ import annotations

from holdgate.canonical import CanonicalRequest, MediaType
from holdgate.digest import CREDENTIAL_HEADERS, wire_digest
from holdgate.errors import Outcome, Reason
from holdgate.ledger import Entry, Recorded
from holdgate.message import Headers
from holdgate.release import Release
from holdgate.surface.model import Action, Deadlines, Effect, Recognised

HOST = "api.ok.test"
NO_DEADLINES = Deadlines(connect_s=None, first_byte_s=None, total_s=None)
FAR_FUTURE_US = 4_000_000_000_000_000


def make_canonical(
    *,
    method: str = "POST",
    scheme: str = "https",
    host: str = HOST,
    port: int = 443,
    raw_target: bytes = b"/v1/refunds",
    headers: Headers = ((b"Content-Type", b"application/json"),),
    body: bytes = b'{"amount":100}',
) -> CanonicalRequest:
    path = raw_target.partition(b"?")[0].decode("ascii")
    segments = tuple(path[1:].split("/"))
    return CanonicalRequest(
        method=method,
        scheme=scheme,
        host=host,
        port=port,
        raw_target=raw_target,
        segments=segments,
        raw_segments=segments,
        query=() if b"?" in raw_target else None,
        headers=headers,
        fields={name.decode("ascii").lower(): value.decode("utf-8") for name, value in headers},
        repeated=frozenset(),
        content_type=MediaType(essence="application/json", params=()) if body else None,
        content_coding=None,
        body=body,
    )


def wire_headers(request: CanonicalRequest) -> Headers:
    """What `surface/` would send: Host first, Content-Length last."""
    default_port = 443 if request.scheme == "https" else 80
    host = request.host if request.port == default_port else request.destination
    length: Headers = ((b"Content-Length", b"%d" % len(request.body)),) if request.body else ()
    return ((b"Host", host.encode("ascii")), *request.headers, *length)


def make_recognised(
    request: CanonicalRequest | None = None,
    *,
    headers: Headers | None = None,
    deadlines: Deadlines = NO_DEADLINES,
    principal: str | None = "f" * 32,
    effect: Effect = Effect.COMMIT,
) -> Recognised:
    request = request or make_canonical()
    action = Action(surface="payments.refund", operation="stripe.PostRefunds", effect=effect, params=())
    return Recognised(
        actions=(action,),
        target="/v1/refunds",
        principal=principal,
        keys=(),
        require_key=False,
        conflict_keys=(),
        digest="sha256:" + "0" * 64,
        sensitive=False,
        headers=wire_headers(request) if headers is None else headers,
        secret_headers=CREDENTIAL_HEADERS,
        deadlines=deadlines,
        refusal="plain",
        retry_headers=(),
    )


def make_recorded(
    *, wire: str, outcome: Outcome = Outcome.PERMIT, durable: bool = True, agent: str = "refund-bot"
) -> Recorded:
    reason = {
        Outcome.PERMIT: Reason.PERMIT_RULE,
        Outcome.DENY: Reason.DENY_RULE,
        Outcome.SILENCE: Reason.NO_RULE_MATCHED,
    }[outcome]
    entry = Entry(
        receipt_id="rcpt_test",
        outcome=outcome,
        reason=reason,
        rule="refunds/small",
        surface="payments.refund",
        agent=agent,
        policy="sha256:" + "1" * 64,
        iat_us=1_000_000,
        wire=wire,
        jws=b"",
        bindings=(),
        inputs=None,
        prior="",
        prior_status=0,
    )
    return Recorded(entry=entry, index=0, durable=durable)


def make_release(
    request: CanonicalRequest | None = None,
    recognised: Recognised | None = None,
    *,
    agent: str = "refund-bot",
    expires_us: int = FAR_FUTURE_US,
) -> Release:
    request = request or make_canonical()
    recognised = recognised or make_recognised(request)
    wire = wire_digest(
        request.method,
        request.raw_target,
        recognised.headers,
        request.body,
        secret_headers=recognised.secret_headers,
    )
    return Release(
        recorded=make_recorded(wire=wire, agent=agent),
        agent=agent,
        request=request,
        recognised=recognised,
        wire_key=None,
        expires_us=expires_us,
    )
