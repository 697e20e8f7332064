"""Step 9: what the agent is told in headers, and what an upstream may not tell it.

Response headers are RFC 9651 structured fields (SPEC.md). Whatever the upstream sent under our
names, hop-by-hop, or as proxy metadata is removed first, so exactly one of ours reaches the agent.

Invariants (tests/test_headers.py):
  H1  No upstream header named Holdgate-* (any case, `_` for `-`), Proxy-*, Alt-Svc or hop-by-hop survives,
      and no reason phrase that speaks of Holdgate.
  H2  Every answer carries exactly one Holdgate-Decision, whatever its status.
  H3  Every value is printable ASCII: no policy or rule name can add a header or a line.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from .errors import Outcome, Reason
from .ledger import Entry
from .message import Headers

__all__ = ["Verdicts", "decision_headers", "upstream_headers", "upstream_reason"]

_HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"content-length",  # the writer sets it again from what it relays
        b"alt-svc",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-status",
        b"x-trigguard-receipt",
    }
)
_RESERVED: Final = (b"holdgate-", b"proxy-", b"tg-", b"x-trigguard-")
_FULL_RECEIPT_BYTES: Final = 3 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """How receipts are shown: the `receipts.header` and `admin.public_url` settings, and our name."""

    node: str
    full: bool
    public_url: str | None


@lru_cache(maxsize=4096)
def _string(text: str) -> str:
    """An RFC 9651 string: quotes and backslashes escaped, what is not printable ASCII replaced."""
    safe = "".join(c if " " <= c <= "~" else "?" for c in text)
    return '"' + safe.replace("\\", "\\\\").replace('"', '\\"') + '"'


def decision_headers(
    entry: Entry | None,
    show: Verdicts,
    *,
    outcome: Outcome,
    reason: Reason,
    sensitive: bool,
    status: str = "",
    replay: bool = False,
) -> Headers:
    """The receipt of one decision as response headers. `entry` is None only when none could be written.

    `replay`: they stand on the answer that the first request got, whose receipt is `entry.prior`.
    """
    item = [outcome.value]
    if entry is not None:
        item.append(f'id="{entry.receipt_id}"')  # our own alphabet: nothing to escape
    item.append(f"reason={reason.value}")
    if entry is not None and entry.rule:
        item.append(f"rule={_string(entry.rule)}")
    if entry is not None and entry.surface:
        item.append(f"surface={_string(entry.surface)}")
    if entry is not None and entry.policy:
        item.append(f"policy={_string(entry.policy)}")
    if status:
        item.append(f"status={status}")
    if replay and entry is not None:
        item.append(f'first="{entry.prior}";replay')
    headers = [(b"Holdgate-Decision", ";".join(item).encode("ascii"))]
    if entry is not None:
        if show.full and not sensitive and len(entry.jws) <= _FULL_RECEIPT_BYTES:
            headers.append((b"Holdgate-Receipt", entry.jws))
        if show.public_url is not None:
            link = f'<{show.public_url.rstrip("/")}/receipts/{entry.receipt_id}>; rel="describedby"'
            headers.append((b"Link", link.encode("ascii")))
    if outcome is not Outcome.PERMIT and not replay:  # a kept answer is no error (RFC 9209)
        name = "".join(c for c in show.node if c.isalnum() or c in "-._") or "holdgate"
        headers.append((b"Proxy-Status", f"{name}; error=http_request_denied".encode("ascii")))
    return tuple(headers)


def upstream_headers(headers: Headers) -> Headers:
    """The upstream's headers without those that are not its to send."""
    named = {
        token.strip().lower()
        for name, value in headers
        if name.lower() == b"connection"
        for token in value.split(b",")
    }
    kept = []
    for name, value in headers:
        low = name.lower()
        if low in _HOP_BY_HOP or low in named:
            continue
        folded = low.replace(b"_", b"-")
        if folded.startswith(_RESERVED):
            continue
        if low == b"link" and b"describedby" in value.lower():
            continue
        kept.append((name, value))
    return tuple(kept)


def upstream_reason(reason: bytes) -> bytes:
    """The upstream's reason phrase. Ours names decision and receipt, and some clients print nothing else."""
    return b"" if b"holdgate" in reason.lower() else reason
