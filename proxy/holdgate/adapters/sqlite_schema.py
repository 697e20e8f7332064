"""The tables of a SQLite ledger, and rows to values and back.

One file, `state_dir/ledger.db`. Only sqlite_store.py and sqlite_erase.py write it, through one connection:
SQLite 3.7.0 to 3.51.2 can corrupt a WAL that two connections write or checkpoint at once. Readers open
it `mode=ro`.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from ..errors import ConfigError
from ..ledger import Charge, ClaimRow, Left, State, Total
from ..sealing import KeptAnswer, SealError, Stored
from ..standing import Denial
from ..tlog import Tree
from .store import Permit

__all__ = [
    "ADD_TO_COUNTER",
    "DB_NAME",
    "OPEN_PERMITS",
    "PUT_ANSWER",
    "PUT_CLAIM",
    "PUT_COUNTER",
    "PUT_DENIAL",
    "PUT_PERMIT",
    "PUT_PREPARED",
    "PUT_RECEIPT",
    "READ_ANSWER",
    "STEPS",
    "VERSION",
    "Sizes",
    "answer_of",
    "charges_of",
    "charges_text",
    "claim_of",
    "connect_reader",
    "connect_writer",
    "denial_of",
    "denial_row",
    "kept_input",
    "pack",
    "permits_of",
    "read_input",
    "read_total",
    "row_of",
    "schema_of_new",
    "schema_problems",
    "strangers",
    "unpack",
]

DB_NAME = "ledger.db"
# `head` is one row: the tree over all leaves, changed in the same transaction as the leaves.
# `claims` of a permit are hex keys joined by spaces; b_* is what a replay took over: the state, the
# receipts joined by spaces, the older ones with their status, and the status of the last.
_TABLES = """
CREATE TABLE head (one INTEGER PRIMARY KEY CHECK (one = 1), origin TEXT NOT NULL, node TEXT NOT NULL,
  size INTEGER NOT NULL, iat_us INTEGER NOT NULL, hashes BLOB NOT NULL) STRICT;
CREATE TABLE receipts (idx INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, type TEXT NOT NULL,
  outcome TEXT NOT NULL, reason TEXT NOT NULL, agent TEXT NOT NULL, surface TEXT NOT NULL,
  iat_us INTEGER NOT NULL, jws BLOB NOT NULL) STRICT;
CREATE INDEX receipts_admin ON receipts (reason, idx) WHERE type = 'admin';
CREATE TABLE permits (idx INTEGER PRIMARY KEY, id TEXT NOT NULL, state TEXT NOT NULL, owner TEXT NOT NULL,
  http_status INTEGER NOT NULL, claims TEXT NOT NULL) STRICT;
CREATE INDEX permits_open ON permits (idx) WHERE state IN ('dispatching', 'unknown');
CREATE TABLE claims (key TEXT PRIMARY KEY, state TEXT NOT NULL, digest TEXT NOT NULL,
  receipt_id TEXT NOT NULL, http_status INTEGER NOT NULL, expires_us INTEGER NOT NULL,
  provider INTEGER NOT NULL, source TEXT NOT NULL, b_state TEXT NOT NULL, b_receipt TEXT NOT NULL,
  b_status INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE inputs (idx INTEGER PRIMARY KEY, json BLOB NOT NULL) STRICT;
"""

# `sealed` is what is kept of sensitive operations, `secrets` what opens it. Rows of `secrets` are never
# deleted: zeros of the same length are written over them in place, so that SQLite leaves no copy behind.
# `erasing` are the admin receipts whose erasure is not finished.
_SEALED = """
CREATE TABLE sealed (idx INTEGER PRIMARY KEY, data BLOB NOT NULL) STRICT;
CREATE TABLE secrets (idx INTEGER PRIMARY KEY, salt BLOB NOT NULL, key BLOB NOT NULL) STRICT;
CREATE TABLE erasing (idx INTEGER PRIMARY KEY) STRICT;
"""

# What a permit holds of budgets, whose it took over, and the rows that they add up to (counters.py).
_COUNTERS = """
ALTER TABLE permits ADD COLUMN charges TEXT NOT NULL DEFAULT '';
ALTER TABLE permits ADD COLUMN lender TEXT NOT NULL DEFAULT '';
CREATE TABLE counters (id TEXT NOT NULL, at_us INTEGER NOT NULL, until_us INTEGER NOT NULL,
  sum INTEGER NOT NULL, count INTEGER NOT NULL, PRIMARY KEY (id, at_us)) STRICT, WITHOUT ROWID;
"""

# Denials that stick (standing.py). `idx` is the DENY's own leaf; `rules` are full names joined by spaces.
_DENIALS = """
CREATE TABLE denials (key TEXT PRIMARY KEY, idx INTEGER NOT NULL, digest TEXT NOT NULL, policy TEXT NOT NULL,
  receipt_id TEXT NOT NULL, rules TEXT NOT NULL, expires_us INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE INDEX denials_age ON denials (idx);
"""

# Objects that the vendor's answer to a PERMIT named; what they are is in that PERMIT's recorded input.
_PREPARED = """
CREATE TABLE prepared (key TEXT PRIMARY KEY, receipt_id TEXT NOT NULL, expires_us INTEGER NOT NULL)
  STRICT, WITHOUT ROWID;
CREATE INDEX prepared_age ON prepared (expires_us);
"""

# Which answer is kept of which PERMIT: under `idx`, its outcome's leaf, `sealed` and `secrets` have it.
_ANSWERS = """
CREATE TABLE answers (id TEXT PRIMARY KEY, idx INTEGER NOT NULL, expires_us INTEGER NOT NULL)
  STRICT, WITHOUT ROWID;
CREATE INDEX answers_age ON answers (expires_us);
"""

# How many rows these tables have, by whoever wrote them: what else took rows away or put some there is seen
# when the ledger is opened. Rows of the other tables may be forgotten, or are compared with the log.
_SIZES = """
ALTER TABLE head ADD COLUMN claims INTEGER NOT NULL DEFAULT 0;
ALTER TABLE head ADD COLUMN permits INTEGER NOT NULL DEFAULT 0;
ALTER TABLE head ADD COLUMN counters INTEGER NOT NULL DEFAULT 0;
UPDATE head SET claims = (SELECT count(*) FROM claims), permits = (SELECT count(*) FROM permits),
  counters = (SELECT count(*) FROM counters);
"""

# STEPS[n] turns format n into format n + 1; a new ledger takes them all. What was released is never edited:
# a change is one more step, so that an older state directory is brought up to date when it is opened.
STEPS: Final = (_TABLES, _SEALED, _COUNTERS, _DENIALS, _PREPARED, _ANSWERS, _SIZES)
VERSION: Final = len(STEPS)

PUT_RECEIPT = "INSERT INTO receipts VALUES (?,?,?,?,?,?,?,?,?)"
PUT_PERMIT = "INSERT OR REPLACE INTO permits VALUES (?,?,?,?,?,?,?,?)"
ADD_TO_COUNTER = "UPDATE counters SET sum = sum + ?, count = count + ? WHERE id = ? AND at_us = ?"
PUT_COUNTER = "INSERT INTO counters VALUES (?,?,?,?,?)"
# Two halves, because sum() of SQLite fails beyond 64 bits; what is in a row does fit.
READ_COUNTER = (
    "SELECT sum(sum >> 32), sum(sum & 4294967295), sum(count) FROM counters WHERE id = ? AND until_us > ?"
)
PUT_DENIAL = "INSERT OR REPLACE INTO denials VALUES (?,?,?,?,?,?,?)"
PUT_PREPARED = "INSERT OR REPLACE INTO prepared VALUES (?,?,?)"
PUT_ANSWER = "INSERT OR REPLACE INTO answers VALUES (?,?,?)"
READ_ANSWER = (
    "SELECT e.data, s.key FROM answers a JOIN sealed e ON e.idx = a.idx JOIN secrets s ON s.idx = a.idx"
    " WHERE a.id = ?"
)
# The first condition is the index's own, and lets it be used.
OPEN_PERMITS = (
    "SELECT idx, id, http_status, claims, charges, lender FROM permits"
    " WHERE state IN ('dispatching', 'unknown') AND state = ? ORDER BY idx"
)
PUT_CLAIM = "INSERT OR REPLACE INTO claims VALUES (?,?,?,?,?,?,?,?,?,?,?)"


class Sizes(NamedTuple):
    """Rows in tables."""

    claims: int
    permits: int
    counters: int

    @classmethod
    def counted(cls, db: sqlite3.Connection) -> Sizes:
        """What is there: a fifth of a second for a million rows."""
        return cls(*(db.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in cls._fields))  # noqa: S608

    @classmethod
    def written(cls, db: sqlite3.Connection) -> Sizes:
        """What the writer left."""
        return cls(*db.execute("SELECT claims, permits, counters FROM head").fetchone())


def connect_writer(path: Path) -> sqlite3.Connection:
    """The one read-write connection. Raises sqlite3.Error."""
    # Made by the thread that opens, then used by the writer thread alone.
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1.0)
    # Claims have random keys, so every one dirties a page of its own: small pages, small commits. (Set when
    # the file is made; without effect later.)
    db.execute("PRAGMA page_size=2048")
    db.execute("PRAGMA wal_autocheckpoint=2000")  # pages: the same bytes as SQLite's default
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    db.execute("PRAGMA trusted_schema=OFF")
    # What is deleted is overwritten: recorded inputs that were erased must not stay in free pages.
    db.execute("PRAGMA secure_delete=ON")
    return db


def connect_reader(path: Path) -> sqlite3.Connection:
    """A connection that can neither write nor checkpoint. Raises sqlite3.Error."""
    db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=5.0)
    db.execute("PRAGMA query_only=ON")
    db.execute("PRAGMA trusted_schema=OFF")
    return db


def schema_of_new() -> dict[str, str | None]:
    """What a new ledger declares: name -> SQL."""
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        for step in STEPS:
            db.executescript(step)
        return dict(db.execute("SELECT name, sql FROM sqlite_schema"))


def strangers(db: sqlite3.Connection) -> list[str]:
    """What a ledger has none of: a view or virtual table in the place of a table may never end, and a trigger
    may take back what was just written."""
    rows = db.execute(
        "SELECT type, name FROM sqlite_schema WHERE type IN ('view', 'trigger') OR sql LIKE 'create virtual%'"
    )
    return [f"there is a {kind} {name!a}" for kind, name in rows]


def schema_problems(db: sqlite3.Connection) -> list[str]:
    """How the ledger differs from what this version declares. More indexes, or statistics, do not matter."""
    declared = dict(db.execute("SELECT name, sql FROM sqlite_schema"))
    expected = sorted(schema_of_new().items())
    wrong = [f"{name} is not declared as it should be" for name, sql in expected if declared.get(name) != sql]
    return strangers(db) + wrong


def pack(tree: Tree) -> bytes:
    return b"".join(tree.hashes)


def unpack(size: int, hashes: bytes) -> Tree:
    """Raises TlogError when the two do not fit together."""
    return Tree(size=size, hashes=tuple(hashes[i : i + 32] for i in range(0, len(hashes), 32)))


def charges_text(charges: tuple[Charge, ...]) -> str:
    return " ".join(f"{c.meter}:{c.at_us}:{c.until_us}:{c.amount}:{c.count}" for c in charges)


def charges_of(text: str) -> tuple[Charge, ...]:
    """Raises ValueError."""
    found = []
    for part in text.split():
        meter, *numbers = part.split(":")
        at_us, until_us, amount, count = map(int, numbers)
        found.append(Charge(meter=meter, at_us=at_us, until_us=until_us, amount=amount, count=count))
    return tuple(found)


def read_input(db: sqlite3.Connection, receipt_id: str) -> bytes | None:
    """The recorded decision input of a receipt; None where there is none, or where it was destroyed."""
    row = db.execute(
        "SELECT i.json, e.data, s.salt, s.key FROM receipts r LEFT JOIN inputs i ON i.idx = r.idx"
        " LEFT JOIN sealed e ON e.idx = r.idx LEFT JOIN secrets s ON s.idx = r.idx WHERE r.id = ?",
        (receipt_id,),
    ).fetchone()
    return None if row is None else kept_input(receipt_id, *row)


def kept_input(
    receipt_id: str, json: bytes | None, data: bytes | None, salt: bytes | None, key: bytes | None
) -> bytes | None:
    """What is kept in clear or sealed beside a receipt."""
    if json is not None or data is None:
        return json
    try:
        kept = Stored(data=data, salt=salt or b"", key=key or b"").open(receipt_id)
    except SealError:
        return None  # damaged: `log audit` says so
    return None if kept is None else kept.inputs


def answer_of(row: tuple[bytes, bytes] | None) -> KeptAnswer | None:
    """What READ_ANSWER found; None also where its key was destroyed."""
    return KeptAnswer(key=row[1], data=row[0]) if row is not None and any(row[1]) else None


def permits_of(rows: Iterable[tuple[int, str, int, str, str, str]], state: State) -> tuple[Permit, ...]:
    """Rows of OPEN_PERMITS. Raises ConfigError."""
    try:
        return tuple(
            Permit(
                index=row[0],
                receipt_id=row[1],
                state=state,
                http_status=row[2],
                claims=tuple(row[3].split()),
                charges=charges_of(row[4]),
                lender=row[5],
            )
            for row in rows
        )
    except ValueError as error:
        raise ConfigError(f"the ledger is damaged or was edited: {error}", file=DB_NAME) from error


def read_total(db: sqlite3.Connection, meter: str, now_us: int) -> Total:
    high, low, count = db.execute(READ_COUNTER, (meter, now_us)).fetchone()
    return Total(sum=((high or 0) << 32) + (low or 0), count=count or 0)


type _ClaimTuple = tuple[str, str, str, str, int, int, int, str, str, str, int]


def claim_of(row: _ClaimTuple) -> ClaimRow:
    return ClaimRow(
        key=row[0],
        state=State(row[1]),
        digest=row[2],
        receipt_id=row[3],
        http_status=row[4],
        expires_us=row[5],
        provider=bool(row[6]),
        source=row[7],
        before=_before_of(State(row[8]), row[9], row[10]) if row[8] else (),
    )


def _before_of(state: State, receipts: str, http_status: int) -> tuple[Left, ...]:
    """Raises ValueError."""
    *older, last = receipts.split(" ")
    found = []
    for text in older:
        receipt_id, _, status = text.partition(":")
        found.append(Left(state=state, receipt_id=receipt_id, http_status=int(status)))
    return (*found, Left(state=state, receipt_id=last, http_status=http_status))


def row_of(claim: ClaimRow) -> _ClaimTuple:
    state, receipts, status = "", "", 0
    if claim.before:  # they have one state
        *older, last = claim.before
        state, status = str(last.state), last.http_status
        receipts = " ".join([*(f"{left.receipt_id}:{left.http_status}" for left in older), last.receipt_id])
    return (
        claim.key,
        str(claim.state),
        claim.digest,
        claim.receipt_id,
        claim.http_status,
        claim.expires_us,
        int(claim.provider),
        claim.source,
        state,
        receipts,
        status,
    )


type _DenialTuple = tuple[str, int, str, str, str, str, int]


def denial_of(row: _DenialTuple) -> Denial:
    return Denial(
        key=row[0],
        digest=row[2],
        policy=row[3],
        receipt_id=row[4],
        rules=tuple(row[5].split(" ")),
        expires_us=row[6],
    )


def denial_row(index: int, one: Denial) -> _DenialTuple:
    return (one.key, index, one.digest, one.policy, one.receipt_id, " ".join(one.rules), one.expires_us)
