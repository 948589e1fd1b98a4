"""Values read from a ledger that are kept until anything is written to it, by whichever process.

A campaign of ten thousand rounds is read in a tenth of a second, and one command asks for its rounds a
hundred times. What is kept is bound to a stamp that the database itself moves with every commit, so nothing
has to be told of a change, and a value is never older than the transaction that asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from sqlalchemy import Connection

from rollouts.machine.collector import without_collector

T = TypeVar("T")
Stamp = tuple[Hashable, ...]


class Followed:
    """Values by name, each as of the stamp that it was read at."""

    def __init__(self) -> None:
        self._values: dict[str, tuple[Stamp, Any]] = {}
        self._writes = 0

    def note_write(self) -> None:
        """Drop every value: this process has written."""
        self._writes += 1
        self._values.clear()

    def get(self, connection: Connection, name: str, read: Callable[[Connection], T]) -> T:
        """Return the value of this name; read it where the database has changed since.

        Args:
            connection: a transaction that reads.
            read: must not depend on anything but the database, and nobody changes what it returns.
        """
        stamp = (self._writes, *_stamp(connection))
        entry = self._values.get(name)
        if entry is not None and entry[0] == stamp:
            value: T = entry[1]
            return value
        with without_collector():
            value = read(connection)
        self._values[name] = (stamp, value)
        return value


def _stamp(connection: Connection) -> Stamp:
    """Return what differs after any commit that this transaction sees.

    SQLite counts the commits of others, connection by connection; PostgreSQL names the transactions that a
    snapshot does not see.
    """
    if connection.dialect.name == "sqlite":
        version = connection.exec_driver_sql("PRAGMA data_version").scalar_one()
        # Gone with the connection, as its count of commits is.
        return connection.info.setdefault("followed", object()), version
    return (connection.exec_driver_sql("SELECT pg_current_snapshot()::text").scalar_one(),)
