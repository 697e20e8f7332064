"""The tables of a PostgreSQL ledger: one schema, `holdgate`, for a whole fleet.

Claims, permits and counters are the fleet's; receipts and what is kept beside them are a node's, under the
index that they have in its log. `fleet` is one row: whoever has it locked is the one who judges.
No triggers, no functions of our own: CockroachDB makes the same tables, from repeatable().
"""

from __future__ import annotations

import re
from typing import Final

from .sqlite_schema import charges_of, charges_text, claim_of, row_of

__all__ = ["STEPS", "TABLES", "VERSION", "charges_of", "charges_text", "claim_of", "repeatable", "row_of"]

_TABLES: Final = """
CREATE TABLE holdgate.fleet (one INTEGER PRIMARY KEY CHECK (one = 1), version INTEGER NOT NULL,
  iat_us BIGINT NOT NULL, key_mark TEXT NOT NULL);
CREATE TABLE holdgate.nodes (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, origin TEXT NOT NULL UNIQUE,
  owner TEXT NOT NULL, size BIGINT NOT NULL, iat_us BIGINT NOT NULL, hashes BYTEA NOT NULL);
CREATE TABLE holdgate.receipts (node INTEGER NOT NULL, idx BIGINT NOT NULL, id TEXT NOT NULL UNIQUE,
  type TEXT NOT NULL, outcome TEXT NOT NULL, reason TEXT NOT NULL, agent TEXT NOT NULL,
  surface TEXT NOT NULL, iat_us BIGINT NOT NULL, jws BYTEA NOT NULL, PRIMARY KEY (node, idx));
CREATE INDEX receipts_admin ON holdgate.receipts (node, reason, idx) WHERE type = 'admin';
CREATE INDEX receipts_time ON holdgate.receipts (iat_us);
CREATE TABLE holdgate.permits (id TEXT PRIMARY KEY, node INTEGER NOT NULL, idx BIGINT NOT NULL,
  state TEXT NOT NULL, owner TEXT NOT NULL, http_status INTEGER NOT NULL, claims TEXT NOT NULL,
  charges TEXT NOT NULL, lender TEXT NOT NULL, UNIQUE (node, idx));
CREATE INDEX permits_open ON holdgate.permits (node, idx) WHERE state IN ('dispatching', 'unknown');
CREATE TABLE holdgate.claims (key TEXT PRIMARY KEY, state TEXT NOT NULL, digest TEXT NOT NULL,
  receipt_id TEXT NOT NULL, http_status INTEGER NOT NULL, expires_us BIGINT NOT NULL,
  provider INTEGER NOT NULL, source TEXT NOT NULL, b_state TEXT NOT NULL, b_receipt TEXT NOT NULL,
  b_status INTEGER NOT NULL);
CREATE TABLE holdgate.counters (id TEXT NOT NULL, at_us BIGINT NOT NULL, until_us BIGINT NOT NULL,
  sum BIGINT NOT NULL, count BIGINT NOT NULL, PRIMARY KEY (id, at_us));
CREATE TABLE holdgate.denials (key TEXT PRIMARY KEY, at_us BIGINT NOT NULL, digest TEXT NOT NULL,
  policy TEXT NOT NULL, receipt_id TEXT NOT NULL, rules TEXT NOT NULL, expires_us BIGINT NOT NULL);
CREATE INDEX denials_age ON holdgate.denials (at_us);
CREATE TABLE holdgate.inputs (node INTEGER NOT NULL, idx BIGINT NOT NULL, json BYTEA NOT NULL,
  PRIMARY KEY (node, idx));
CREATE TABLE holdgate.sealed (node INTEGER NOT NULL, idx BIGINT NOT NULL, data BYTEA NOT NULL,
  PRIMARY KEY (node, idx));
CREATE TABLE holdgate.secrets (node INTEGER NOT NULL, idx BIGINT NOT NULL, salt BYTEA NOT NULL,
  key BYTEA NOT NULL, PRIMARY KEY (node, idx));
CREATE TABLE holdgate.erasing (node INTEGER NOT NULL, idx BIGINT NOT NULL, PRIMARY KEY (node, idx));
INSERT INTO holdgate.fleet VALUES (1, 0, 0, '');
"""

_PREPARED: Final = """
CREATE TABLE holdgate.prepared (key TEXT PRIMARY KEY, receipt_id TEXT NOT NULL, expires_us BIGINT NOT NULL);
CREATE INDEX prepared_age ON holdgate.prepared (expires_us);
"""

# Answers on their way to nodes where identical requests wait: sealed, gone when fetched, and not in the
# write-ahead log, so that no standby has them. A crash of the server empties the table: they decide again.
_TWINS: Final = """
ALTER TABLE holdgate.permits ADD COLUMN waiting TEXT NOT NULL DEFAULT '';
CREATE UNLOGGED TABLE holdgate.twins (node INTEGER NOT NULL, receipt_id TEXT NOT NULL,
  until_us BIGINT NOT NULL, data BYTEA NOT NULL, PRIMARY KEY (node, receipt_id));
"""

# Which answer is kept of which PERMIT: under node and index of its outcome, in `sealed` and `secrets`.
_ANSWERS: Final = """
CREATE TABLE holdgate.answers (id TEXT PRIMARY KEY, node INTEGER NOT NULL, idx BIGINT NOT NULL,
  expires_us BIGINT NOT NULL);
CREATE INDEX answers_age ON holdgate.answers (node, expires_us);
"""

# Until when a node counts as running, by the database's clock, where no lock of a session says it; and which
# engine the fleet uses: under one a node would look gone that runs under the other (postgres_dialect.py).
_LEASES: Final = """
ALTER TABLE holdgate.nodes ADD COLUMN lease_us BIGINT NOT NULL DEFAULT 0;
ALTER TABLE holdgate.fleet ADD COLUMN engine TEXT NOT NULL DEFAULT 'postgresql';
"""

# STEPS[n] turns format n into n + 1; what was released is never edited (sqlite_schema.py says why).
STEPS: Final = (_TABLES, _PREPARED, _TWINS, _ANSWERS, _LEASES)
VERSION: Final = len(STEPS)
TABLES: Final = tuple(re.findall(r"CREATE (?:UNLOGGED )?TABLE holdgate\.(\w+)", "".join(STEPS)))
# What a statement of STEPS begins with -> how it begins, and ends, so that it may be done again.
_REPEATABLE: Final = (
    (re.compile(r"CREATE (?:UNLOGGED )?TABLE (?=holdgate\.)"), "CREATE TABLE IF NOT EXISTS ", ""),
    (re.compile(r"CREATE INDEX (?=\w+ ON holdgate\.)"), "CREATE INDEX IF NOT EXISTS ", ""),
    (re.compile(r"(ALTER TABLE holdgate\.\w+ ADD COLUMN )"), r"\1IF NOT EXISTS ", ""),
    (re.compile(r"(INSERT INTO holdgate\.fleet )"), r"\1", " ON CONFLICT DO NOTHING"),
)


def repeatable(step: str) -> tuple[str, ...]:
    """The statements of a step, each such that doing it again changes nothing; a table is logged then, since
    only PostgreSQL has others. Raises ValueError for a statement of which that is not known."""
    return tuple(_repeatable(" ".join(each.split())) for each in step.split(";") if each.strip())


def _repeatable(statement: str) -> str:
    for begins, instead, end in _REPEATABLE:
        changed, count = begins.subn(instead, statement, count=1)
        if count and begins.match(statement):
            return changed + end
    raise ValueError(f"not known to be repeatable: {statement}")
