"""Tables of what later rounds ask of every earlier verdict, drawn from its report when it is committed.

A report is tens of kilobytes, and the next decision depends on all of them: on their number, the error that
they were allowed, and the best snapshot that each suite was last compared with. Nothing here is a record of
its own: a row that is missing, as in stores of earlier versions, is drawn from its report again.
"""

from __future__ import annotations

from sqlalchemy import Column, Index, Integer, PrimaryKeyConstraint, Table, Text

from align.store.ledger.tables.core import REAL_8, metadata

verdict_digests = Table(
    "verdict_digests",
    metadata,
    Column("index", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("outcome", Text),
    Column("gate", Text),
    Column("look", Integer),
    Column("level", REAL_8),
    Column("tried", Text),
    PrimaryKeyConstraint("index", "attempt"),
    sqlite_strict=True,
)

judged_suites = Table(
    "judged_suites",
    metadata,
    Column("index", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("suite", Text, nullable=False),
    Column("hash", Text, nullable=False),
    Column("target_of", Text),
    Column("candidate", Text),
    Column("best", Text),
    Column("items", Text),
    PrimaryKeyConstraint("index", "attempt", "suite"),
    Index("judged_suites_by_name", "suite", "index"),
    Index("judged_suites_by_hash", "hash", "index"),
    Index("judged_suites_of_no_round", "target_of", "suite"),
    sqlite_strict=True,
)
