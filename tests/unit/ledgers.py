"""Ledgers for the tests: a campaign of two rounds, and a look at its database from outside."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from align.store.ledger.ledger import Ledger
from align.store.snapshots.manifest import Manifest, Provenance
from align.store.snapshots.snapshots import Snapshot

RAM = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
"""Folder for tests with very many durable writes; None for the usual place."""

SERVER: str | None = None
"""A PostgreSQL server that the ledgers lie on, each in a schema of its own; None: files."""

CONFIG: dict[str, Any] = {
    "name": "digits",
    "gate": {"alpha": 0.05},
    "rounds": [{"name": "reverse", "steps": 45}, {"name": "sort", "steps": 45}],
}
REPORT = {"verdict": "accepted", "checks": [{"suite": "general", "p": 0.01}]}

MOVE = """
INSERT INTO alias_moves (alias, previous, target, round, reason, time)
VALUES ('production', ?, ?, ?, '', '')
"""


def snapshot(letter: str) -> Snapshot:
    """A snapshot by name alone: the ledger never looks at files."""
    manifest = Manifest(provenance=Provenance(kind="model"), files=())
    return Snapshot(id=letter * 64, path=Path("unused"), kind="model", manifest=manifest)


BASE, FIRST, SECOND = snapshot("a"), snapshot("b"), snapshot("c")


def url(folder: Path) -> str:
    if SERVER is None:
        return f"sqlite:///{folder / 'ledger.sqlite'}"
    schema = _schema(folder)
    with _connected() as connection:
        connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
    return f"{SERVER}&options=-csearch_path%3D{schema}"


def started(folder: Path, **options: Any) -> Ledger:
    """A campaign of two rounds whose production is the base."""
    ledger = Ledger(url(folder), **options)
    ledger.open_campaign("digits", CONFIG, "hash-1")
    for each in (BASE, FIRST, SECOND):
        ledger.record_snapshot(each)
    ledger.set_alias_initial("production", BASE.id)
    return ledger


@contextmanager
def raw(folder: Path) -> Iterator[Any]:
    """The database as any other program sees it; what it refuses is an IntegrityError of sqlite3."""
    if SERVER is None:
        with closing(sqlite3.connect(folder / "ledger.sqlite")) as connection, connection:
            yield connection
        return
    with _connected() as connection:
        connection.execute(f"SET search_path TO {_schema(folder)}")
        yield _Outside(connection)


class _Outside:
    """Statements as sqlite3 takes them."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def execute(self, statement: str, values: Any = ()) -> Any:
        import psycopg

        try:
            return self._connection.execute(statement.replace("?", "%s"), values or None)
        except psycopg.IntegrityError as error:
            raise sqlite3.IntegrityError(str(error)) from error


def _connected() -> Any:
    import psycopg

    assert SERVER is not None
    return psycopg.connect(SERVER, autocommit=True)


def _schema(folder: Path) -> str:
    return "t" + hashlib.sha256(str(folder).encode()).hexdigest()[:16]


def state(ledger: Ledger) -> list[tuple[str, str, int]]:
    return [(record.name, record.state, record.attempt) for record in ledger.rounds()]


def python(script: str, *arguments: str, before: Sequence[str] = ()) -> subprocess.Popen[str]:
    root = str(Path(__file__).parents[2])
    return subprocess.Popen(
        [*before, sys.executable, "-c", script, *arguments],
        env={**os.environ, "PYTHONPATH": root},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
