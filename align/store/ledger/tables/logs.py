"""Tables of logs that only grow: a row for each act or event, which the database never changes or removes.

``pinned_settings`` is one too, without a number: what a verdict rests on is written once. All lie in the
ledger's own database.
"""

from __future__ import annotations

from sqlalchemy import Column, ForeignKey, Index, Integer, Table, Text
from sqlalchemy.schema import SchemaItem

from align.store.ledger.tables.core import INTEGER_8, metadata
from align.store.ledger.tables.rules import append_only


def _log(name: str, message: str, *columns: SchemaItem) -> Table:
    """Make a table of numbered rows, with a message for whoever tries to change one."""
    number = Column("seq", Integer, primary_key=True, autoincrement=True)
    table = Table(name, metadata, number, *columns, sqlite_strict=True)
    append_only(table, message, f"{name}_no")
    return table


baseline_log = _log(
    "anchor_log",
    "the log of the anchor is append-only",
    Column("previous", Text, ForeignKey("snapshots.id"), nullable=False),
    Column("snapshot", Text, ForeignKey("snapshots.id"), nullable=False),
    Column("reason", Text, nullable=False),
    Column("decisions", Integer, nullable=False),
    Column("time", Text, nullable=False),
)
"""Moves of the baseline that budgets count from."""

stored_files = _log(
    "stored_files",
    "the record of file hashes is append-only",
    Column("path", Text, nullable=False),
    Column("bytes", INTEGER_8, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("time", Text, nullable=False),
)
"""Files of the store, a row whenever one was written, first read, or replaced."""
Index("stored_files_by_path", stored_files.c.path, stored_files.c.seq)

amendments = _log(
    "amendments",
    "the record of amendments is append-only",
    Column("who", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("changes", Text, nullable=False),
    Column("decisions", Integer, nullable=False),
    Column("config_hash", Text, nullable=False),
    Column("time", Text, nullable=False),
)
"""Changes of the campaign file after the campaign had begun."""

round_drops = _log(
    "round_drops",
    "the record of dropped rounds is append-only",
    Column("index", Integer, nullable=False, unique=True),
    Column("round", Text, nullable=False),
    Column("stays", Integer, nullable=False),
    Column("who", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("time", Text, nullable=False),
)
"""Rounds that a person gave up."""

code_files = _log(
    "code_files",
    "the record of code files is append-only",
    Column("name", Text, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("time", Text, nullable=False),
)
"""User code that ran, a row whenever a file had changed."""

due_skips = _log(
    "due_skips",
    "the record of skipped rounds is append-only",
    Column("schedule", Text, nullable=False),
    Column("due_key", Text, nullable=False),
    Column("round", Text, nullable=False, unique=True),
    Column("who", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("time", Text, nullable=False),
)
"""Rounds that fell due and were skipped."""

collections = _log(
    "collections",
    "the record of collected snapshots is append-only",
    Column("snapshot", Text, ForeignKey("snapshots.id"), nullable=False),
    Column("bytes", INTEGER_8, nullable=False),
    Column("reason", Text, nullable=False),
    Column("returned", Integer, nullable=False),
    Column("time", Text, nullable=False),
)
"""Snapshots whose files were removed on purpose; a row with ``returned`` 1 says that they are back."""

pinned_settings = Table(
    "pinned_settings",
    metadata,
    Column("name", Text, primary_key=True),
    Column("spec", Text, nullable=False),
    sqlite_strict=True,
)
"""Settings of decided rounds and judged suites that the campaign file no longer gives."""
append_only(pinned_settings, "what a verdict rests on is never changed", "pinned_settings_no")
