"""Connections to a ledger's database: one is kept for the next transaction, since opening it costs more
than most transactions do.

Transactions at the same time, of threads or within each other, have further connections, which close with
them. A forked process opens its own, as does one whose ledger's file was replaced. SQLite's log stays open,
but every write is folded into the database at once, so that a copy of the file alone has all of it.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import URL, create_engine, event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import Pool, QueuePool

_engines: weakref.WeakSet[Engine] = weakref.WeakSet()
_of_the_parent: list[Pool] = []
"""Pools of the process that this one was forked from. Neither database allows even to close them here."""


def keeping_one(url: URL, **options: Any) -> Engine:
    """Create an engine that keeps one connection open and opens more while they are needed."""
    engine = create_engine(url, poolclass=QueuePool, pool_size=1, max_overflow=-1, **options)
    _engines.add(engine)
    return engine


def close_with(owner: object, engine: Engine) -> None:
    """Close the kept connection when its owner is gone, at the latest when the process ends.

    SQLite removes its log then.
    """
    weakref.finalize(owner, engine.dispose)


def follow_file(engine: Engine, file: str) -> None:
    """Open a kept connection anew where its file was removed or replaced, say by a restored backup."""

    @event.listens_for(engine, "connect")
    def note(_: Any, record: Any) -> None:
        record.info["file"] = _identity(file)

    @event.listens_for(engine, "checkout")
    def compare(_: Any, record: Any, __: Any) -> None:
        if record.info.get("file") != _identity(file):
            raise DisconnectionError


def fold_writes(engine: Engine) -> None:
    """Move each write from SQLite's log into the database once no reader needs it in the log."""
    event.listen(engine, "connect", _fold_every_page)


@contextmanager
def keeping_log(engine: Engine) -> Iterator[None]:
    """Leave many writes in SQLite's log, which is faster; they are folded in when the block ends."""
    if engine.dialect.name != "sqlite":
        yield
        return
    event.listen(engine, "connect", _fold_thousand_pages)
    engine.dispose()
    try:
        yield
    finally:
        event.remove(engine, "connect", _fold_thousand_pages)
        engine.dispose()


def _fold_every_page(connection: Any, _: Any) -> None:
    connection.execute("PRAGMA wal_autocheckpoint = 1")


def _fold_thousand_pages(connection: Any, _: Any) -> None:
    connection.execute("PRAGMA wal_autocheckpoint = 1000")


def _identity(file: str) -> tuple[int, int] | None:
    """Return what tells a file from another one at the same path; None if there is none."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _leave_to_the_parent() -> None:
    for engine in _engines:
        _of_the_parent.append(engine.pool)
        engine.dispose(close=False)


os.register_at_fork(after_in_child=_leave_to_the_parent)

# SQLAlchemy reports Ctrl-C that comes while a connection is closed as an error, and raises it as well. A
# filter acts in the logger of its own pool class alone.
logging.getLogger(f"{QueuePool.__module__}.{QueuePool.__name__}").addFilter(
    lambda record: not (record.exc_info and isinstance(record.exc_info[1], KeyboardInterrupt))
)
