"""Table of file hashes: one row whenever a file of the store was written, first read, or replaced."""

from __future__ import annotations

from sqlalchemy import Column, Index, Integer, Table, Text

from align.store.ledger.tables.core import INTEGER_8, metadata
from align.store.ledger.tables.rules import append_only

stored_files = Table(
    "stored_files",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("path", Text, nullable=False),
    Column("bytes", INTEGER_8, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("time", Text, nullable=False),
    sqlite_strict=True,
)
Index("stored_files_by_path", stored_files.c.path, stored_files.c.seq)
append_only(stored_files, "the record of file hashes is append-only", "stored_files_no")
