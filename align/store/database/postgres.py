"""Connection to a ledger on PostgreSQL: deadlines, one writer at a time, and commits that are on the
disk.

A campaign has a schema to itself, by default the one its connections find first; to keep several campaigns
in one database, end the URL with ``?options=-csearch_path%3DNAME`` and create the schema.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, event
from sqlalchemy.engine import URL, Engine

from align.store.ledger.tables.rules import WRITER_LOCK

NAMES = ("postgresql", "postgres")
CONNECT_TIMEOUT_S = 10
LOCK_TIMEOUT_S = 30
"""Seconds a writer waits for another one. Transactions here take milliseconds."""
SILENCE_S = 30
"""After so long without a sign of the server a connection counts as lost."""

BEGIN_WRITE = (
    f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'; SET LOCAL synchronous_commit = on; "
    f"SELECT {WRITER_LOCK}"
)
"""First statement of a transaction that writes. Behind the lock READ COMMITTED is enough: every statement
sees all that earlier writers committed, and nobody else writes."""


BEGIN_READ = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"
"""First statement of a transaction that reads."""


def is_postgres(url: URL) -> bool:
    return url.get_backend_name() in NAMES


def with_driver(url: URL) -> URL:
    """Return the URL with the driver that the extra ``postgres`` installs, where it names none."""
    return url.set(drivername="postgresql+psycopg") if url.drivername in NAMES else url


def connect_arguments(url: URL) -> dict[str, Any]:
    """Return deadlines for every wait on the server, where the URL sets none.

    The driver's prepared statements are off: behind a pooler, the next transaction of a connection may meet
    another server process, which knows none of them.
    """
    wanted: dict[str, Any] = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "keepalives_idle": SILENCE_S // 3,
        "keepalives_interval": SILENCE_S // 6,
        "keepalives_count": 4,
        "tcp_user_timeout": SILENCE_S * 1000,
    }
    if url.get_driver_name() == "psycopg":
        wanted["prepare_threshold"] = None
    return {name: value for name, value in wanted.items() if name not in url.query}


def serialise_writers(engine: Engine) -> None:
    """Give reads one consistent view, and let transactions that write come one after the other."""

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("write", False)
        connection.exec_driver_sql(BEGIN_WRITE if writes else BEGIN_READ)


def shown(url: URL) -> str:
    """Return the URL for people: no password, wherever it stands."""
    query = {name: value for name, value in url.query.items() if "password" not in name.lower()}
    return url.set(query=query).render_as_string(hide_password=True)
