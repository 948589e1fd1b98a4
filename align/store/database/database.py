"""One database and its transactions: a SQLite file, or PostgreSQL for a ledger that many machines reach.

Every write is one transaction that begins by taking the writers' lock (SQLite: ``BEGIN IMMEDIATE`` with
``synchronous=FULL``; PostgreSQL: see `align.store.database.postgres`): when it returns, it is on the disk,
and two
writers are one after the other, never between each other. One connection is kept for the next transaction
(`align.store.database.connections`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any, TypeVar

from sqlalchemy import Connection, event, insert, inspect, select
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DatabaseError,
    NoResultFound,
    NoSuchModuleError,
    OperationalError,
)
from sqlalchemy.schema import CreateIndex

from align.config.store import cut_path
from align.errors import LedgerLost, RunError, StoreError, UserError
from align.store.database import connections, postgres
from align.store.database.followed import Followed
from align.store.database.postgres import is_postgres
from align.store.database.private import close_to_others, make_private
from align.store.ledger.tables.core import SCHEMA_VERSION, metadata, store_schema

T = TypeVar("T")
BUSY_TIMEOUT_S = 30.0
"""Seconds a writer waits for another one. Transactions here take milliseconds."""
SAFE = "run again; everything committed so far is safe"
RESTORE = "keel restore CAMPAIGN brings back the newest backup, and says what came after it"
DAMAGE = "the disk, a copy that was cut short, or a program that wrote to the file"
REFUSALS: Mapping[str, tuple[type[StoreError], str, str]] = {
    "SQLITE_CORRUPT": (LedgerLost, DAMAGE, RESTORE),
    "SQLITE_NOTADB": (LedgerLost, DAMAGE, RESTORE),
    "SQLITE_FULL": (StoreError, "the disk is full", f"free some space and {SAFE}"),
    "SQLITE_IOERR": (StoreError, "the disk is full or failing", f"mend the disk and {SAFE}"),
    "SQLITE_READONLY": (
        StoreError,
        "the file, its folder or the whole file system cannot be written by this user",
        f"let this user write there (chmod u+w), and {SAFE}",
    ),
    "SQLITE_CANTOPEN": (
        StoreError,
        "there is a folder in its place, or this user may not read and write it",
        f"put the file back or correct its permissions, and {SAFE}",
    ),
}
"""Failures of SQLite that no second try mends, by the first part of their names: the error, its likely
cause, and what to do."""

INDEX_NAMES = {
    "sqlite": "SELECT name FROM sqlite_master WHERE type = 'index'",
    "postgresql": "SELECT indexname FROM pg_indexes WHERE schemaname = current_schema()",
}
"""Queries for the names of all indices."""


class Database:
    """Transactions on the ledger's tables, which are created when there are none.

    Args:
        url: ``sqlite:///PATH``, or ``postgresql://USER:PASSWORD@HOST/DATABASE``; what libpq reads from its
            environment (``PGPASSWORD`` and the like) may be left out.

    Raises:
        UserError: no URL, another kind of database, or its driver is not installed.
        StoreError: it cannot be reached, or what is there is no ledger of this version.
    """

    def __init__(self, url: str) -> None:
        self.engine = _engine(url)
        self.where = postgres.shown(self.engine.url)
        if is_postgres(self.engine.url):
            postgres.serialise_writers(self.engine)
            _reach(self.engine)
        else:
            self._use_file(self.engine.url.database)
        connections.close_with(self, self.engine)
        self._followed = Followed()
        self._prepare()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a transaction with one consistent view."""
        with self._translated(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Open a transaction that is committed and on the disk when the block ends without an
        exception."""
        try:
            with (
                self._translated(),
                self.engine.execution_options(write=True).begin() as connection,
            ):
                yield connection
        finally:
            self._followed.note_write()

    def follow(self, name: str, read: Callable[[Connection], T]) -> T:
        """Return what ``read`` reads; kept under its name until something is written to the database.

        Args:
            read: depends on the database alone, and nobody changes what it returns.
        """
        with self.read() as connection:
            return self.followed(connection, name, read)

    def followed(self, connection: Connection, name: str, read: Callable[[Connection], T]) -> T:
        """Return what `follow` does, within a transaction that reads."""
        return self._followed.get(connection, name, read)

    def _use_file(self, file: str | None) -> None:
        if file in (None, "", ":memory:"):
            what = "a ledger in memory would not outlive the process"
            raise UserError(what, where=self.where, remedy="name a file")
        folder = Path(str(file)).parent
        try:
            make_private(folder)
        except OSError as error:
            raise StoreError(
                f"the store's folder cannot be made ({error})",
                where=str(folder),
                remedy="set store to a folder that can be written",
            ) from error
        # SQLite gives its log and its index the rights of the database.
        for path in (Path(f"{file}-wal"), Path(f"{file}-shm")):
            close_to_others(path)
        close_to_others(Path(str(file)), create=True)
        event.listen(self.engine, "connect", _configure)
        connections.fold_writes(self.engine)
        connections.follow_file(self.engine, str(file))

        @event.listens_for(self.engine, "begin")
        def begin(connection: Connection) -> None:
            writes = connection.get_execution_options().get("write", False)
            connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    def _prepare(self) -> None:
        """Create the tables, or check that this version can read what is there and add later ones."""
        try:
            with self.read() as connection:
                fresh = not inspect(connection).has_table(store_schema.name)
            if fresh:
                self._create()
            with self.read() as connection:
                version = connection.execute(select(store_schema.c.version)).scalar_one()
        except (DatabaseError, NoResultFound) as error:
            raise LedgerLost(
                f"this is no ledger ({getattr(error, 'orig', error)})",
                where=self.where,
                remedy=RESTORE,
            ) from error
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"ledger version {version} is newer than {SCHEMA_VERSION}, the newest known here",
                where=self.where,
                cause="a newer Keel wrote this store",
                remedy="update Keel, or set store to another folder",
            )
        self._add_new_tables()
        self._add_new_indices()

    def _create(self) -> None:
        """Create the tables unless another process has just done so."""
        with self.write() as connection:
            if not inspect(connection).has_table(store_schema.name):
                metadata.create_all(connection, checkfirst=False)
                connection.execute(insert(store_schema).values(version=SCHEMA_VERSION))

    def _add_new_tables(self) -> None:
        """Give a store of an older version the tables that came later."""
        with self.read() as connection:
            known = set(inspect(connection).get_table_names())
        missing = [table for table in metadata.sorted_tables if table.name not in known]
        if missing:
            with self.write() as connection:
                for table in missing:
                    table.create(connection, checkfirst=True)

    def _add_new_indices(self) -> None:
        """Give a store of an older version the indices that came later."""
        query = INDEX_NAMES[self.engine.dialect.name]
        with self.read() as connection:
            known = set(connection.exec_driver_sql(query).scalars())
        indices = (index for table in metadata.sorted_tables for index in table.indexes)
        missing = [index for index in indices if index.name not in known]
        if missing:
            with self.write() as connection:
                for index in missing:
                    connection.execute(CreateIndex(index, if_not_exists=True))

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn the database's own failures (full disk, damage, lock, lost server) into errors."""
        try:
            yield
        except DatabaseError as error:
            code = getattr(error.orig, "sqlite_errorname", "").split("_")[:2]
            refused = REFUSALS.get("_".join(code))
            if refused is not None:
                kind, cause, remedy = refused
                is_damaged = kind is LedgerLost
                what = f"this is no ledger that can be read ({error.orig})"
                raise kind(
                    what if is_damaged else f"the ledger could not be used: {error.orig}",
                    where=self.where,
                    cause=cause,
                    remedy=remedy,
                ) from error
            if not isinstance(error, OperationalError):
                raise
            raise RunError(
                f"the ledger could not be used: {str(error.orig).strip()}",
                where=self.where,
                cause="another process that holds the lock, or a server that is gone",
                remedy="remove the cause and run again; everything committed so far is safe",
            ) from error


def holds_ledger(url: str) -> bool:
    """Tell if there is a ledger; make none.

    Raises:
        UserError: as `Database`.
        StoreError: the database cannot be reached.
    """
    engine = _engine(url)
    if not is_postgres(engine.url):
        return Path(engine.url.database or "").is_file()
    try:
        _reach(engine)
        with engine.connect() as connection:
            return inspect(connection).has_table(store_schema.name)
    finally:
        engine.dispose()


def _reach(engine: Engine) -> None:
    """Say at once, and in time, when there is no server to talk to."""
    try:
        with engine.connect():
            pass
    except OperationalError as error:
        raise StoreError(
            f"the ledger's database cannot be reached: {str(error.orig).strip()}",
            where=postgres.shown(engine.url),
            cause="no server at this address, or it knows no such user, password or database",
            remedy="correct the URL, start the server, or set PGPASSWORD",
        ) from None


def _engine(text: str) -> Engine:
    if (lost := cut_path(text)) is not None:
        raise UserError(
            f"the path of the ledger's file would end before {lost!r}",
            where="ledger",
            cause="a ? begins the options of a URL",
            remedy="write %3F for a ? in the path, and %25 for a %",
        )
    try:
        url = postgres.with_driver(make_url(text))
        if is_postgres(url):
            arguments = postgres.connect_arguments(url)
            return connections.keeping_one(url, connect_args=arguments, pool_pre_ping=True)
        if url.get_backend_name() == "sqlite":
            return connections.keeping_one(url)
    except ImportError as error:
        raise UserError(
            f"the database's driver is not installed ({error.name})",
            where="ledger",
            remedy='pip install "keel-align[postgres]"',
        ) from None
    except (ArgumentError, NoSuchModuleError, ValueError):
        # The driver's own message may repeat the URL, and so a password.
        url = None
    raise UserError(
        "this is no database URL that can be used here"
        if url is None
        else f"a ledger cannot lie in {url.get_backend_name()}",
        where="ledger",
        remedy="use sqlite:///PATH or postgresql://USER@HOST/DATABASE",
    )


def _configure(connection: Any, _record: Any) -> None:
    # The driver would begin transactions on its own, and later than asked.
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")
    # SQLite does not wait here, whatever the busy timeout says: of several processes that open a fresh
    # store at once, some find it locked for a moment.
    deadline = monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or monotonic() > deadline:
                raise
            sleep(0.01)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    # What a purge removes is overwritten, not only unlinked.
    connection.execute("PRAGMA secure_delete = ON")
