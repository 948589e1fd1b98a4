"""Tables of the schedule: rounds that fell due, and the time from which on ticks count.

They lie in the ledger's own database. A claim is inserted once and never changed: what happens to its round
is the ledger's, and what keeps a replaced runner from writing is the attempt number there.
"""

from __future__ import annotations

from sqlalchemy import Column, Integer, Table, Text, UniqueConstraint

from align.store.ledger.tables.core import metadata

due_claims = Table(
    "due_claims",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("schedule", Text, nullable=False),
    Column("due_key", Text, nullable=False),
    Column("round", Text, nullable=False, unique=True),
    Column("spec", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("newest", Integer, nullable=False),
    Column("watermark", Integer, nullable=False),
    Column("claimed", Text, nullable=False),
    UniqueConstraint("schedule", "due_key"),
    sqlite_strict=True,
)

due_since = Table(
    "due_since",
    metadata,
    Column("schedule", Text, primary_key=True),
    Column("clock", Text, nullable=False),
    Column("since", Text, nullable=False),
    sqlite_strict=True,
)
