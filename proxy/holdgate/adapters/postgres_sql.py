"""The statements of a fleet's ledger: one text for PostgreSQL and for CockroachDB (decisions/0013).

Held to what both have: a part of a WITH returns something, even when nobody reads it ("does not return any
columns" there), and no table is written twice in one statement; no write joins; parameters have types.
"""

from __future__ import annotations

from typing import Any, Final

__all__ = [
    "ANSWER",
    "CLAIMS",
    "COUNTERS",
    "DENIALS",
    "ENDED",
    "FORGET",
    "FORGET_ANSWERS",
    "FORGET_DENIALS",
    "FORGET_TWINS",
    "HEAD",
    "INPUTS",
    "KEY_EVENTS",
    "LET_GO",
    "LOCK",
    "NOW_US",
    "ORPHANS",
    "PERMITS",
    "PREPARED",
    "PUT_ANSWERS",
    "PUT_COUNTERS",
    "PUT_DENIALS",
    "PUT_PREPARED",
    "PUT_TWINS",
    "RENEW",
    "STRANDED",
    "UNKNOWN",
    "WRITE",
    "one",
]


async def one(conn: Any, statement: str, *values: Any) -> Any:
    """The first row, or None. asyncpg's fetchrow() and fetchval() ask the server for one row of the result:
    then CockroachDB keeps it open, and refuses what comes next ("multiple active portals")."""
    rows = await conn.fetch(statement, *values)
    return rows[0] if rows else None


NOW_US: Final = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
LOCK: Final = "SELECT one FROM holdgate.fleet WHERE one = 1 FOR UPDATE"
HEAD: Final = (
    f"SELECT n.owner, n.size, n.iat_us, n.hashes, f.iat_us AS fleet_us, {NOW_US} AS now_us%s"  # noqa: S608
    " FROM holdgate.nodes n CROSS JOIN holdgate.fleet f WHERE n.id = $1"
)
PERMITS: Final = (
    "SELECT id, node, idx, state, http_status, claims, charges, lender, waiting FROM holdgate.permits"
)
CLAIMS: Final = "SELECT * FROM holdgate.claims WHERE key = ANY($1::text[])"
COUNTERS: Final = (
    "SELECT id, until_us, sum, count FROM holdgate.counters WHERE id = ANY($1::text[]) AND until_us > $2"
)
WRITE: Final = """
WITH w_receipts AS (
  INSERT INTO holdgate.receipts (node, idx, id, type, outcome, reason, agent, surface, iat_us, jws)
  SELECT $1::integer, u.* FROM unnest($2::bigint[], $3::text[], $4::text[], $5::text[], $6::text[],
    $7::text[], $8::text[], $9::bigint[], $10::bytea[]) u RETURNING 1),
w_inputs AS (INSERT INTO holdgate.inputs (node, idx, json)
  SELECT $1::integer, u.* FROM unnest($11::bigint[], $12::bytea[]) u RETURNING 1),
w_sealed AS (INSERT INTO holdgate.sealed (node, idx, data)
  SELECT $1::integer, u.* FROM unnest($13::bigint[], $14::bytea[]) u RETURNING 1),
w_secrets AS (INSERT INTO holdgate.secrets (node, idx, salt, key)
  SELECT $1::integer, u.* FROM unnest($13::bigint[], $15::bytea[], $16::bytea[]) u RETURNING 1),
w_erasing AS (INSERT INTO holdgate.erasing (node, idx)
  SELECT $1::integer, u.idx FROM unnest($17::bigint[]) AS u (idx) RETURNING 1),
w_permits AS (
  INSERT INTO holdgate.permits (owner, node, idx, id, state, http_status, claims, charges, lender, waiting)
  SELECT $18::text, $1::integer, u.* FROM unnest($19::bigint[], $20::text[], $21::text[], $22::integer[],
    $23::text[], $24::text[], $25::text[], $40::text[]) u
  ON CONFLICT (id) DO UPDATE SET state = excluded.state, http_status = excluded.http_status,
    charges = excluded.charges, lender = excluded.lender, waiting = excluded.waiting RETURNING 1),
w_claims AS (
  INSERT INTO holdgate.claims (key, state, digest, receipt_id, http_status, expires_us, provider, source,
    b_state, b_receipt, b_status)
  SELECT u.* FROM unnest($26::text[], $27::text[], $28::text[], $29::text[],
    $30::integer[], $31::bigint[], $32::integer[], $33::text[], $34::text[], $35::text[], $36::integer[]) u
  ON CONFLICT (key) DO UPDATE SET state = excluded.state, digest = excluded.digest,
    receipt_id = excluded.receipt_id, http_status = excluded.http_status, expires_us = excluded.expires_us,
    provider = excluded.provider, source = excluded.source, b_state = excluded.b_state,
    b_receipt = excluded.b_receipt, b_status = excluded.b_status RETURNING 1),
w_fleet AS (UPDATE holdgate.fleet SET iat_us = $37::bigint WHERE one = 1 RETURNING 1)
UPDATE holdgate.nodes SET size = $38::bigint, iat_us = $41::bigint, hashes = $39::bytea
WHERE id = $1::integer AND owner = $18::text
"""
# The second condition on the state is the index's own, and lets it be used.
_OPEN: Final = " AND state IN ('dispatching', 'unknown')"
UNKNOWN: Final = f"SELECT count(*) FROM holdgate.permits WHERE node = $1 AND state = 'unknown'{_OPEN}"  # noqa: S608
ORPHANS: Final = (
    f"SELECT id FROM holdgate.permits WHERE node = $1 AND state = 'dispatching'{_OPEN} ORDER BY idx"  # noqa: S608
)
STRANDED: Final = (
    f"SELECT id FROM holdgate.permits WHERE node = $1 AND owner = $2 AND state = 'dispatching'{_OPEN}"  # noqa: S608
)
RENEW: Final = (
    f"UPDATE holdgate.nodes SET lease_us = {NOW_US} + $3::bigint"  # noqa: S608
    " WHERE id = $1::integer AND owner = $2::text"
)
LET_GO: Final = "UPDATE holdgate.nodes SET lease_us = 0 WHERE id = $1::integer AND owner = $2::text"
KEY_EVENTS: Final = (
    "SELECT idx, jws FROM holdgate.receipts WHERE node = $1 AND type = 'admin'"
    " AND reason IN ('key_revoke', 'key_rotate') ORDER BY idx"
)
DENIALS: Final = "SELECT * FROM holdgate.denials WHERE key = ANY($1::text[])"
PUT_DENIALS: Final = """
INSERT INTO holdgate.denials (key, at_us, digest, policy, receipt_id, rules, expires_us)
SELECT u.* FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::text[],
  $7::bigint[]) u
ON CONFLICT (key) DO UPDATE SET at_us = excluded.at_us, digest = excluded.digest, policy = excluded.policy,
  receipt_id = excluded.receipt_id, rules = excluded.rules, expires_us = excluded.expires_us
"""
FORGET_DENIALS: Final = (
    "DELETE FROM holdgate.denials WHERE at_us <="
    " (SELECT at_us FROM holdgate.denials ORDER BY at_us DESC LIMIT 1 OFFSET $1::bigint)"
)
PREPARED: Final = "SELECT key, receipt_id, expires_us FROM holdgate.prepared WHERE key = $1"
PUT_PREPARED: Final = """
INSERT INTO holdgate.prepared (key, receipt_id, expires_us)
SELECT u.* FROM unnest($1::text[], $2::text[], $3::bigint[]) u
ON CONFLICT (key) DO UPDATE SET receipt_id = excluded.receipt_id, expires_us = excluded.expires_us
"""
FORGET: Final = (
    "DELETE FROM holdgate.denials WHERE expires_us <= $1",
    "DELETE FROM holdgate.prepared WHERE expires_us <= $1",
)
INPUTS: Final = """
SELECT i.json, e.data, s.salt, s.key FROM holdgate.receipts r
LEFT JOIN holdgate.inputs i ON i.node = r.node AND i.idx = r.idx
LEFT JOIN holdgate.sealed e ON e.node = r.node AND e.idx = r.idx
LEFT JOIN holdgate.secrets s ON s.node = r.node AND s.idx = r.idx WHERE r.id = $1
"""
# A repeat may come to another node than its first request; the claims are the fleet's, and so are answers.
ANSWER: Final = """
SELECT e.data, s.key FROM holdgate.answers a
JOIN holdgate.sealed e ON e.node = a.node AND e.idx = a.idx
JOIN holdgate.secrets s ON s.node = a.node AND s.idx = a.idx WHERE a.id = $1
"""
PUT_ANSWERS: Final = """
INSERT INTO holdgate.answers (node, id, idx, expires_us)
SELECT $1::integer, u.* FROM unnest($2::text[], $3::bigint[], $4::bigint[]) u
"""
_EXPIRED: Final = (
    "WHERE node = $1 AND idx IN"
    " (SELECT a.idx FROM holdgate.answers a WHERE a.node = $1 AND a.expires_us <= $2)"
)
# Only this node's own: its eraser touches these rows outside the fleet's lock, in the same thread.
FORGET_ANSWERS: Final = (
    f"UPDATE holdgate.secrets SET key = decode(repeat('00', 32), 'hex') {_EXPIRED}",  # noqa: S608
    f"DELETE FROM holdgate.sealed {_EXPIRED}",  # noqa: S608
    "DELETE FROM holdgate.answers WHERE node = $1 AND expires_us <= $2",
)
PUT_TWINS: Final = """
INSERT INTO holdgate.twins (node, receipt_id, until_us, data)
SELECT n.id, u.receipt_id, u.until_us, u.data
FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bytea[]) AS u (name, receipt_id, until_us, data)
JOIN holdgate.nodes n ON n.name = u.name ON CONFLICT DO NOTHING
"""
FORGET_TWINS: Final = "DELETE FROM holdgate.twins WHERE until_us <= $1"
# One snapshot: an outcome is seen together with the answer that was committed with it.
ENDED: Final = """
WITH taken AS (DELETE FROM holdgate.twins WHERE node = $1 AND receipt_id = ANY($2::text[])
  RETURNING receipt_id, data)
SELECT p.id, t.data FROM holdgate.permits p LEFT JOIN taken t ON t.receipt_id = p.id
WHERE p.id = ANY($2::text[]) AND p.state <> 'dispatching'
"""
PUT_COUNTERS: Final = """
INSERT INTO holdgate.counters AS c (id, at_us, until_us, sum, count)
SELECT u.* FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[]) u
ON CONFLICT (id, at_us) DO UPDATE SET sum = c.sum + excluded.sum, count = c.count + excluded.count
"""
