"""Snapshots whose files were removed on purpose: the record that a missing folder is no loss.

A row is committed before the first file goes, so whoever looks for a snapshot finds either its files or the
row. The manifest stays in the ledger.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, insert, select

from align.errors import SnapshotError
from align.store.database.database import Database
from align.store.ledger.tables.core import snapshots
from align.store.ledger.tables.logs import collections
from rollouts.types import SnapshotId


@dataclass(frozen=True, kw_only=True, slots=True)
class Collected:
    """Snapshot that was removed, and the reason for which nothing needed it."""

    snapshot: SnapshotId
    bytes: int
    reason: str
    time: str
    """Time of the removal, ISO 8601, UTC."""
    manifest: str
    """Text of the manifest, whose sha256 is the snapshot's id."""

    def error(self) -> SnapshotError:
        """Return the error for whoever wants the files."""
        return SnapshotError(
            f"snapshot {self.snapshot[:12]} was collected on {self.time[:10]}: {self.reason}",
            where=self.snapshot,
            cause="keel gc, or the campaign's keep, removed its files; what was measured of it stays",
            remedy="name a snapshot that is kept (keel rounds list CAMPAIGN), or restore its folder from "
            "a backup",
        )


@dataclass(frozen=True, slots=True)
class CollectionLog:
    """The record of one ledger."""

    database: Database

    def ids(self) -> frozenset[SnapshotId]:
        """Return the snapshots that were removed and are not back."""
        with self.database.read() as connection:
            return collected_in(connection)

    def find(self, snapshot: SnapshotId) -> Collected | None:
        """Return the record of a snapshot that was removed; None if it was not, or is back."""
        columns = [c for c in collections.c if c.name != "seq"]
        joined = collections.join(snapshots, snapshots.c.id == collections.c.snapshot)
        query = select(*columns, snapshots.c.manifest).select_from(joined)
        query = query.where(snapshots.c.id == snapshot).order_by(collections.c.seq.desc()).limit(1)
        with self.database.read() as connection:
            row = connection.execute(query).one_or_none()
        if row is None or row.returned:
            return None
        return Collected(**{k: v for k, v in row._mapping.items() if k != "returned"})


def collected_in(connection: Connection) -> frozenset[SnapshotId]:
    """Return the snapshots whose newest row says that they were removed."""
    query = select(collections.c.snapshot, collections.c.returned).order_by(collections.c.seq)
    newest: dict[SnapshotId, int] = {
        row.snapshot: row.returned for row in connection.execute(query)
    }
    return frozenset(snapshot for snapshot, returned in newest.items() if not returned)


def note_collected(
    connection: Connection, removed: Iterable[tuple[SnapshotId, int, str]], now: str
) -> None:
    """Record that snapshots will be removed.

    Args:
        removed: each with its bytes and the reason.
    """
    rows = [
        {"snapshot": snapshot, "bytes": size, "reason": reason, "returned": 0, "time": now}
        for snapshot, size, reason in removed
    ]
    if rows:
        connection.execute(insert(collections), rows)


def note_returned(connection: Connection, snapshot: SnapshotId, now: str) -> None:
    """Record that a snapshot is there again, if it was removed."""
    if snapshot in collected_in(connection):
        row = {"snapshot": snapshot, "bytes": 0, "reason": "published again", "returned": 1}
        connection.execute(insert(collections).values(**row, time=now))
