"""Integrity of a database as its own engine sees it: pages, indices, and rows that name other rows."""

from __future__ import annotations

from sqlalchemy.exc import DatabaseError

from align.store.database.database import Database

SHOWN = 20
"""Rows of a check that are reported."""


def integrity_faults(database: Database) -> list[str]:
    """Return what SQLite finds wrong with its file, in its own words; a server looks after its own."""
    if database.engine.dialect.name != "sqlite":
        return []
    try:
        with database.read() as connection:
            pages = connection.exec_driver_sql(f"PRAGMA integrity_check({SHOWN})").all()
            rows = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchmany(SHOWN)
    except DatabaseError as error:
        return [str(error.orig)]
    faults = [str(message) for (message,) in pages if message != "ok"]
    return faults + [
        f"row {rowid} of {table} names a row of {parent} that is not there"
        for table, rowid, parent, _ in rows
    ]
