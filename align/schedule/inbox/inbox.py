"""The inbox itself: numbered, deduplicated rows in streams, next to the ledger that spends them.

Every method is one transaction. What `add` returned is on the disk; a row is stored once however often it
is sent, and a request that carries a key gets the answer it got the first time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from sqlalchemy import Connection, and_, delete, func, select, update

from align.schedule.inbox.numbering import Receipt, Submission, chunks, number_rows
from align.schedule.inbox.rows import Feedback
from align.store.database.database import Database
from align.store.ledger.reservations import (
    AfterRejection,
    Reservation,
    all_reservations,
    ready,
    reserve,
)
from align.store.ledger.tables.inbox import inbox_requests, inbox_rows, inbox_streams
from rollouts.errors import UserError
from rollouts.rows import FileRow

REQUESTS_KEPT_S = 7 * 86400.0
"""Seconds for which the answer to a request with a key is repeated."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Waiting:
    """Rows of a stream that wait for its next round."""

    count: int
    """Usable rows that no round has used."""
    oldest: datetime | None
    """Time at which the first of them arrived, UTC."""
    newest_id: int
    """Number of the stream's last row; 0 where there was none yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredRow:
    """A row with everything that is known of it."""

    stream: str
    number: int
    kind: str | None
    payload: Mapping[str, Any]
    user: str | None
    key: str | None
    source: str
    received: str
    """ISO 8601, UTC."""
    state: Literal["ready", "quarantined"]
    reason: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamCounts:
    """A stream in numbers."""

    stream: str
    ready: int
    quarantined: int
    waiting: int
    """Number of ready rows that no round has used yet."""
    newest: int
    watermark: int
    oldest_waiting: str | None


class Inbox:
    """The rows of every stream of one campaign."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        self.database = database
        self._clock = clock

    def add(
        self, stream: str, rows: Iterable[Feedback], *, key: str | None = None, digest: str = ""
    ) -> Receipt:
        """Store rows, all or none; returns when they are on the disk."""
        submission = Submission(stream=stream, rows=tuple(rows), key=key, digest=digest)
        return self.add_all([submission])[0]

    def add_all(self, submissions: Sequence[Submission]) -> list[Receipt]:
        """Store what many senders sent in one transaction: one wait for the disk serves them all."""
        with self.database.write() as connection:
            return number_rows(connection, submissions, self._now())

    def waiting(self, stream: str, *, above: int | None = None) -> Waiting:
        """Find what the next round of a stream would find new.

        Args:
            above: the number of a row, for rounds that read rows whether or not others have used them;
                None: the stream's watermark.
        """
        counter = select(inbox_streams).where(inbox_streams.c.stream == stream)
        with self.database.read() as connection:
            stream_counters = connection.execute(counter).one_or_none()
            if stream_counters is None:
                return Waiting(count=0, oldest=None, newest_id=0)
            above = stream_counters.watermark if above is None else above
            count, oldest = _new_rows(connection, stream, above)
        return _waiting(count, oldest, stream_counters.newest)

    def arrivals(self) -> dict[str, tuple[Waiting, int]]:
        """Return what waits in every stream, and its watermark; rows that were used are not counted."""
        with self.database.read() as connection:
            streams = connection.execute(select(inbox_streams)).all()
            by_stream = {
                row.stream: (_new_rows(connection, row.stream, row.watermark), row)
                for row in streams
            }
        return {
            stream: (_waiting(count, oldest, row.newest), row.watermark)
            for stream, ((count, oldest), row) in by_stream.items()
        }

    def counts(self) -> list[StreamCounts]:
        """Count every stream that has received something, by name."""
        with self.database.read() as connection:
            streams = connection.execute(select(inbox_streams).order_by(inbox_streams.c.stream))
            return [_counts(connection, *row) for row in streams.all()]

    def reserve(
        self,
        round: str,
        stream: str,
        *,
        use: str = "once",
        limit: int | None = None,
        after_rejection: AfterRejection = "used",
    ) -> Reservation | None:
        """Reserve what a round reads, see `align.store.ledger.reservations`; None where the stream has
        nothing for it."""
        with self.database.write() as connection:
            return reserve(
                connection,
                round,
                stream,
                use=use,
                limit=limit,
                after_rejection=after_rejection,
                now=self._now(),
            )

    def reservations(self) -> list[Reservation]:
        """List what every round reserved, in the order they did."""
        with self.database.read() as connection:
            return all_reservations(connection)

    def read(self, reservation: Reservation) -> list[FileRow]:
        """Return reserved rows as a file would give them, oldest first."""
        columns = select(inbox_rows.c.number, inbox_rows.c.payload)
        wanted = columns.where(ready(reservation.stream, reservation.above, reservation.newest))
        with self.database.read() as connection:
            records = connection.execute(wanted.order_by(inbox_rows.c.number)).all()
        return [
            FileRow(
                location=f"inbox://{reservation.stream} row {number}", values=json.loads(payload)
            )
            for number, payload in records
        ]

    def rows(
        self, stream: str, *, state: str | None = None, newest: int | None = None
    ) -> list[StoredRow]:
        """Return rows of a stream in the order of their numbers; with ``newest`` only so many of the
        last."""
        query = select(inbox_rows).where(inbox_rows.c.stream == stream)
        if state is not None:
            query = query.where(inbox_rows.c.state == state)
        query = query.order_by(inbox_rows.c.number.desc())
        if newest is not None:
            query = query.limit(newest)
        with self.database.read() as connection:
            return [stored_row(row) for row in connection.execute(query)][::-1]

    def row(self, stream: str, number: int) -> StoredRow:
        """Return one row by its number."""
        this = and_(inbox_rows.c.stream == stream, inbox_rows.c.number == number)
        with self.database.read() as connection:
            record = connection.execute(select(inbox_rows).where(this)).one_or_none()
        if record is None:
            raise UserError(
                f"inbox://{stream} has no row {number}",
                remedy="see the numbers with keel feedback list; a purge may have removed it",
            )
        return stored_row(record)

    def quarantine(self, stream: str, numbers: Sequence[int], reason: str) -> int:
        """Set rows aside for good; returns how many were still ready. Sent again, they stay aside."""
        changed = 0
        with self.database.write() as connection:
            for chunk in chunks(numbers):
                these = and_(
                    inbox_rows.c.stream == stream,
                    inbox_rows.c.number.in_(chunk),
                    inbox_rows.c.state == "ready",
                )
                aside = update(inbox_rows).where(these).values(state="quarantined", reason=reason)
                changed += connection.execute(aside).rowcount
        return changed

    def forget_requests(self) -> None:
        """Drop answers that are too old to be asked for again."""
        before = datetime.fromtimestamp(self._clock(), UTC) - timedelta(seconds=REQUESTS_KEPT_S)
        old = inbox_requests.c.received < _iso(before)
        with self.database.write() as connection:
            connection.execute(delete(inbox_requests).where(old))

    def _now(self) -> str:
        return _iso(datetime.fromtimestamp(self._clock(), UTC))


def _counts(connection: Connection, stream: str, newest: int, watermark: int) -> StreamCounts:
    """Count the rows of a stream by their state."""
    by_state = select(inbox_rows.c.state, func.count()).where(inbox_rows.c.stream == stream)
    counted = connection.execute(by_state.group_by(inbox_rows.c.state))
    states = {row[0]: row[1] for row in counted}
    waiting, oldest = _new_rows(connection, stream, watermark)
    return StreamCounts(
        stream=stream,
        ready=states.get("ready", 0),
        quarantined=states.get("quarantined", 0),
        waiting=waiting,
        newest=newest,
        watermark=watermark,
        oldest_waiting=oldest,
    )


def _waiting(count: int, oldest: str | None, newest: int) -> Waiting:
    """Make the value from a stream's counters."""
    first = None if oldest is None else datetime.fromisoformat(oldest)
    return Waiting(count=count, oldest=first, newest_id=newest)


def _new_rows(connection: Connection, stream: str, watermark: int) -> tuple[int, str | None]:
    """Count the usable rows above the watermark, and find when the first of them came."""
    new = select(func.count(), func.min(inbox_rows.c.received)).where(ready(stream, watermark))
    count, oldest = connection.execute(new).one()
    return count, oldest


def stored_row(row: Any) -> StoredRow:
    """Restore a row of the table `inbox_rows`."""
    return StoredRow(
        stream=row.stream,
        number=row.number,
        kind=row.kind,
        payload=json.loads(row.payload),
        user=row.user_key,
        key=row.row_key,
        source=row.source,
        received=row.received,
        state=row.state,
        reason=row.reason,
    )


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds")
