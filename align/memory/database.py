"""One database and its transactions. SQLite by default; any SQLAlchemy URL works.

Every write is one ``BEGIN IMMEDIATE`` transaction with ``synchronous=FULL``: when it returns, it is
on the disk, and two writers are one after the other, never between each other. Connections are not
kept, so forked and spawned processes may use the same object.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from sqlalchemy import Connection, create_engine, event, insert, inspect, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError, OperationalError
from sqlalchemy.pool import NullPool

from align.errors import RunError, StoreError, UserError
from align.memory.tables import SCHEMA_VERSION, metadata, store_schema

BUSY_TIMEOUT_S = 30.0
"""How long a writer waits for another one. Transactions here take milliseconds."""


class Database:
    """Transactions on the ledger's tables, which are created when there are none."""

    def __init__(self, url: str) -> None:
        try:
            parsed = make_url(url)
            engine = create_engine(parsed, poolclass=NullPool, **_options(parsed))
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            raise UserError(
                f"this is no database URL that can be used here ({error})",
                where="ledger",
                remedy="use sqlite:///PATH, or install the driver the URL names",
            ) from error
        self.where = parsed.render_as_string(hide_password=True)
        self.engine = engine
        if _is_sqlite(parsed):
            self._use_file(parsed.database)
        self._prepare()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One consistent view."""
        with self._translated(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """All or nothing; committed and on the disk when the block ends without an exception."""
        with self._translated(), self.engine.execution_options(write=True).begin() as connection:
            yield connection

    def _use_file(self, file: str | None) -> None:
        if file in (None, "", ":memory:"):
            what = "a ledger in memory would not outlive the process"
            raise UserError(what, where=self.where, remedy="name a file")
        folder = Path(str(file)).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"the store's folder cannot be made ({error})",
                where=str(folder),
                remedy="set store to a folder that can be written",
            ) from error
        event.listen(self.engine, "connect", _configure)
        event.listen(self.engine, "begin", _begin)

    def _prepare(self) -> None:
        """Create the tables, or check that this version can read those that are there."""
        try:
            with self.read() as connection:
                fresh = not inspect(connection).has_table(store_schema.name)
            if fresh:
                self._create()
            with self.read() as connection:
                version = connection.execute(select(store_schema.c.version)).scalar_one()
        except DatabaseError as error:
            raise StoreError(
                f"this is no ledger ({error.orig})",
                where=self.where,
                remedy="set store to another folder",
            ) from error
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"ledger version {version} is newer than {SCHEMA_VERSION}, the newest known here",
                where=self.where,
                cause="a newer Keel wrote this store",
                remedy="update Keel, or set store to another folder",
            )

    def _create(self) -> None:
        """Create the tables unless another process has just done so."""
        with self.write() as connection:
            if not inspect(connection).has_table(store_schema.name):
                metadata.create_all(connection, checkfirst=False)
                connection.execute(insert(store_schema).values(version=SCHEMA_VERSION))

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """The database's own failures (full disk, lock, lost server) as errors for people."""
        try:
            yield
        except OperationalError as error:
            raise RunError(
                f"the ledger could not be used: {error.orig}",
                where=self.where,
                cause="a full disk, missing permission, or another process that holds the lock",
                remedy="remove the cause and run again; everything committed so far is safe",
            ) from error


def _is_sqlite(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def _options(url: URL) -> dict[str, Any]:
    """Elsewhere than in SQLite, serializable transactions stand in for BEGIN IMMEDIATE."""
    return {} if _is_sqlite(url) else {"isolation_level": "SERIALIZABLE"}


def _configure(connection: Any, _record: Any) -> None:
    # The driver would begin transactions on its own, and later than asked.
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")
    _use_wal(connection)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


def _use_wal(connection: Any) -> None:
    """Switch to write-ahead logging. SQLite does not wait here, whatever the busy timeout says: of several
    processes that open a fresh store at once, some find it locked for a moment."""
    deadline = monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or monotonic() > deadline:
                raise
            sleep(0.01)


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get("write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
