"""The tables of the preference inbox: rows that wait for a round, and which round took which of them.

They lie in the ledger's own database, so a verdict and the watermark it moves are one transaction. Numbers
count up per stream and are dealt inside the transaction that inserts the row: rows become visible in the
order of their numbers, so a watermark never passes a row that appears later. The database's own
autoincrement promises that on SQLite only. A removed row's number is never dealt again.
"""

from __future__ import annotations

from sqlalchemy import (
    CheckConstraint,
    Column,
    Index,
    Integer,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
)

from align.store.ledger.tables.core import metadata

KINDS = ("pair", "rating")
ROW_STATES = ("ready", "quarantined")
RESERVATION_STATES = ("held", "used", "returned")

inbox_streams = Table(
    "inbox_streams",
    metadata,
    Column("stream", Text, primary_key=True),
    Column("newest", Integer, nullable=False),
    Column("watermark", Integer, nullable=False),
    sqlite_strict=True,
)

inbox_rows = Table(
    "inbox_rows",
    metadata,
    Column("stream", Text, nullable=False),
    Column("number", Integer, nullable=False),
    Column("kind", Text, CheckConstraint(f"kind IN {KINDS}")),
    Column("payload", Text, nullable=False),
    Column("hash", Text, nullable=False),
    Column("user_key", Text),
    Column("row_key", Text),
    Column("source", Text, nullable=False),
    Column("received", Text, nullable=False),
    Column("state", Text, CheckConstraint(f"state IN {ROW_STATES}"), nullable=False),
    Column("reason", Text),
    PrimaryKeyConstraint("stream", "number"),
    UniqueConstraint("stream", "hash"),
    UniqueConstraint("stream", "row_key"),
    CheckConstraint("(state = 'quarantined') = (reason IS NOT NULL)"),
    CheckConstraint("kind IS NOT NULL OR state = 'quarantined'"),
    Index("inbox_rows_of_a_user", "user_key"),
    Index("inbox_rows_by_state", "stream", "state", "number", "received"),
    sqlite_strict=True,
)

inbox_requests = Table(
    "inbox_requests",
    metadata,
    Column("key", Text, primary_key=True),
    Column("digest", Text, nullable=False),
    Column("answer", Text, nullable=False),
    Column("received", Text, nullable=False),
    sqlite_strict=True,
)

inbox_reservations = Table(
    "inbox_takes",
    metadata,
    Column("round", Text, primary_key=True),
    Column("stream", Text, nullable=False),
    Column("above", Integer, nullable=False),
    Column("newest", Integer, nullable=False),
    Column("watermark", Integer, nullable=False),
    Column(
        "after_rejection",
        Text,
        CheckConstraint("after_rejection IN ('used', 'returned')"),
        nullable=False,
    ),
    Column("num_rows", Integer, nullable=False),
    Column("state", Text, CheckConstraint(f"state IN {RESERVATION_STATES}"), nullable=False),
    Column("taken", Text, nullable=False),
    Column("ended", Text),
    sqlite_strict=True,
)

inbox_purges = Table(
    "inbox_purges",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("user_sha256", Text, nullable=False),
    Column("report", Text, nullable=False),
    Column("time", Text, nullable=False),
    sqlite_strict=True,
)
