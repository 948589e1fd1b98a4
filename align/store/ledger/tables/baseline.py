"""The log of the fixed anchor: one row per human act, none of which can be changed or taken back."""

from __future__ import annotations

from sqlalchemy import Column, ForeignKey, Integer, Table, Text

from align.store.ledger.tables.core import metadata
from align.store.ledger.tables.rules import append_only

anchor_log = Table(
    "anchor_log",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("previous", Text, ForeignKey("snapshots.id"), nullable=False),
    Column("snapshot", Text, ForeignKey("snapshots.id"), nullable=False),
    Column("reason", Text, nullable=False),
    Column("decisions", Integer, nullable=False),
    Column("time", Text, nullable=False),
    sqlite_strict=True,
)
append_only(anchor_log, "the log of the anchor is append-only", "anchor_log_no")
