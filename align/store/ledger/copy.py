"""A copy of a campaign's ledger, to try out what would happen: what is claimed in it is claimed nowhere.

What a plan writes is copied, in one view of it: due rounds, their clocks, skips and reservations. Of the
inbox the copy holds as many rows as wait, as old as the oldest of them, and nothing that anybody sent. All
other tables of a file are shown and not copied, and refuse to be written; those of a server are copied too.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

from sqlalchemy import (
    ColumnElement,
    Connection,
    MetaData,
    Text,
    cast,
    create_engine,
    event,
    func,
    insert,
    inspect,
    literal,
    make_url,
    select,
)
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.pool import NullPool

from align.config.campaign import CampaignConfig
from align.config.store import sqlite_url
from align.errors import LedgerLost, RunError
from align.store.backups.ledger_backups import ledger_file
from align.store.backups.lost import check_not_lost, damaged
from align.store.database.private import close_to_others
from align.store.ledger.ledger import Ledger
from align.store.ledger.reservations import ready
from align.store.ledger.tables.core import metadata, store_schema
from align.store.ledger.tables.due import due_claims, due_since
from align.store.ledger.tables.inbox import (
    inbox_requests,
    inbox_reservations,
    inbox_rows,
    inbox_streams,
)
from align.store.ledger.tables.logs import due_skips
from align.store.store import known_ledger

ROWS_AT_ONCE = 1000
LEFT_OUT = (inbox_requests.name, inbox_rows.name)
WRITTEN = (store_schema, due_claims, due_since, due_skips, inbox_reservations, inbox_streams)
"""Tables that claims are made in, and that which says that these are a ledger's."""
SHOWN = "store"
"""Name of the ledger beside its copy, within a connection."""


@contextmanager
def ledger_copy(config: CampaignConfig) -> Iterator[Ledger]:
    """Copy the ledger, or make an empty one if there is none yet; the copy goes when the block ends."""
    with TemporaryDirectory(prefix="keel-plan-") as folder:
        file = Path(folder) / "ledger.db"
        close_to_others(file, create=True)
        url = sqlite_url(file)
        path = ledger_file(config)
        with _reading(config) as source:
            is_shown = source is not None and path is not None
            if source is not None:
                _copy(source, url, [t.name for t in WRITTEN] if is_shown else None)
            tables = inspect(source).get_table_names() if is_shown and source is not None else []
        copied = {*LEFT_OUT, *(table.name for table in WRITTEN)}
        ledger = Ledger(url)
        if path is not None and is_shown:
            _show(ledger.database.engine, path, [name for name in tables if name not in copied])
        try:
            yield ledger
        finally:
            ledger.database.engine.dispose()
            if path is not None and is_shown:
                # Whoever only reads leaves a log behind, which goes with one who could write.
                with suppress(DatabaseError), _file(path) as connection:
                    connection.exec_driver_sql("SELECT count(*) FROM sqlite_master")


@contextmanager
def ledger_to_read(config: CampaignConfig) -> Iterator[Ledger]:
    """Open the ledger where that changes nothing in it; else make a copy, as `ledger_copy` does."""
    url = make_url(config.ledger_url)
    path = Path(url.database or "")
    is_file = url.get_backend_name() == "sqlite" and path.is_file()
    if is_file and os.access(path.parent, os.W_OK) and _is_current(path):
        yield Ledger(config.ledger_url)
        return
    with ledger_copy(config) as ledger:
        yield ledger


def _is_current(path: Path) -> bool:
    """Tell if a ledger has every table and index of this version."""
    wanted = {t.name for t in metadata.sorted_tables}
    wanted |= {str(index.name) for t in metadata.sorted_tables for index in t.indexes}
    try:
        with _file(path) as connection:
            query = "SELECT name FROM sqlite_master WHERE type IN ('table', 'index')"
            return wanted <= set(connection.exec_driver_sql(query).scalars())
    except DatabaseError:
        return False


@contextmanager
def _reading(config: CampaignConfig) -> Iterator[Connection | None]:
    """Open one consistent view of the ledger; None if there is none."""
    url = make_url(config.ledger_url)
    if url.get_backend_name() != "sqlite":
        ledger = known_ledger(config)
        if ledger is None:
            yield None
        else:
            with ledger.database.read() as connection:
                yield connection
        return
    path = Path(url.database or "")
    check_not_lost(config)
    if not path.is_file():
        yield None
        return
    try:
        with _file(path) as connection:
            yield connection
    except OperationalError as error:
        raise RunError(
            f"the ledger could not be copied: {error.orig}",
            where=str(path),
            cause="missing permission, or a full disk where temporary files lie",
        ) from error
    except DatabaseError as error:
        raise damaged(config, LedgerLost(f"this is no ledger ({error.orig})")) from error


@contextmanager
def _file(path: Path) -> Iterator[Connection]:
    """Open a transaction that reads a ledger as it stands; `Database` would add tables to an old one."""
    file = _address(path, "mode=rw")
    # Without an isolation level the driver begins no transaction of its own.
    connect = partial(
        sqlite3.connect, file, uri=True, check_same_thread=False, isolation_level=None
    )
    engine = create_engine("sqlite://", creator=connect, poolclass=NullPool)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    with engine.begin() as connection:
        yield connection


def _address(path: Path, options: str) -> str:
    """Return the address of a ledger's file with options, or with those of a file that nobody can write."""
    writers = os.access(path.parent, os.W_OK) or path.with_name(f"{path.name}-wal").exists()
    # Where nobody can write, neither can the files be made that keep readers and writers apart.
    return f"file:{quote(str(path.absolute()))}?{options if writers else 'mode=ro&immutable=1'}"


def _show(engine: Engine, path: Path, tables: Iterable[str]) -> None:
    """Show tables of a ledger in every connection to its copy, where they come before the copy's own."""

    @event.listens_for(engine, "do_connect")
    def take_addresses(_: Any, __: Any, ___: Any, options: dict[str, Any]) -> None:
        options["uri"] = True

    @event.listens_for(engine, "connect")
    def show(connection: Any, _: Any) -> None:
        connection.execute(f"ATTACH ? AS {SHOWN}", (_address(path, "mode=ro"),))
        for name in tables:
            view = f'CREATE TEMP VIEW "{name}" AS SELECT * FROM {SHOWN}."{name}"'
            connection.execute(view)

    engine.dispose()


def _copy(source: Connection, url: str, names: Collection[str] | None) -> None:
    """Copy rows without the rules that guard them, since these forbid inserting in another order.

    Args:
        names: tables to copy; None: all.
    """
    known = set(inspect(source).get_table_names())
    chosen = known if names is None else known & {*names, *LEFT_OUT}
    tables = [t for t in metadata.sorted_tables if t.name in chosen]
    plain = MetaData()
    for table in tables:
        table.to_metadata(plain)
    with create_engine(url, poolclass=NullPool).begin() as target:
        plain.create_all(target)
        for table in (t for t in tables if t.name not in LEFT_OUT):
            records = source.execute(select(table), execution_options={"yield_per": ROWS_AT_ONCE})
            for rows in records.mappings().partitions():
                target.execute(insert(table), [dict(row) for row in rows])
        if inbox_rows.name in known:
            _stand_in(source, target)


def _stand_in(source: Connection, target: Connection) -> None:
    """Make rows in place of those that wait in the inbox; they are only counted."""
    streams = select(inbox_streams.c.stream, inbox_streams.c.watermark)
    for stream, watermark in source.execute(streams).all():
        count = select(func.count(), func.min(inbox_rows.c.received))
        waiting, oldest = source.execute(count.where(ready(stream, watermark))).one()
        numbers = select(literal(1).label("n")).cte(recursive=True)
        numbers = numbers.union_all(select(numbers.c.n + 1).where(numbers.c.n < waiting))
        row: dict[str, ColumnElement[Any]] = {
            "stream": literal(stream),
            "number": numbers.c.n + watermark,
            "kind": literal("pair"),
            "payload": literal("{}"),
            "hash": cast(numbers.c.n, Text),
            "source": literal(""),
            "received": literal(oldest),
            "state": literal("ready"),
        }
        if waiting:
            target.execute(insert(inbox_rows).from_select([*row], select(*row.values())))
