"""Tables of a living campaign: amendments, pinned settings, dropped rounds, and the user code that ran.

All but the pinned settings are logs that only grow. They lie in the ledger's own database.
"""

from __future__ import annotations

from sqlalchemy import Column, Integer, Table, Text

from align.store.ledger.tables.core import metadata
from align.store.ledger.tables.rules import append_only

amendments = Table(
    "amendments",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("who", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("changes", Text, nullable=False),
    Column("decisions", Integer, nullable=False),
    Column("config_hash", Text, nullable=False),
    Column("time", Text, nullable=False),
    sqlite_strict=True,
)
append_only(amendments, "the record of amendments is append-only", "amendments_no")

pinned_settings = Table(
    "pinned_settings",
    metadata,
    Column("name", Text, primary_key=True),
    Column("spec", Text, nullable=False),
    sqlite_strict=True,
)
append_only(pinned_settings, "what a verdict rests on is never changed", "pinned_settings_no")

round_drops = Table(
    "round_drops",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("index", Integer, nullable=False, unique=True),
    Column("round", Text, nullable=False),
    Column("stays", Integer, nullable=False),
    Column("who", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("time", Text, nullable=False),
    sqlite_strict=True,
)
append_only(round_drops, "the record of dropped rounds is append-only", "round_drops_no")

code_files = Table(
    "code_files",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("name", Text, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("time", Text, nullable=False),
    sqlite_strict=True,
)
append_only(code_files, "the record of code files is append-only", "code_files_no")
